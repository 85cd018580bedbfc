"""
Requests of MCP 2026-07-28 at the endpoint of Streamable HTTP: each a POST of
its own, without a session.

Knows statuses and headers (2026-07-28, basic/transports/streamable-http); which
process works on a request is for `stateless.dispatcher`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.errors import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    MISSING_CAPABILITY,
    PARSE_ERROR,
    UNSUPPORTED_VERSION,
    BackendEnded,
    InternalError,
    NotAcceptable,
    NotJsonRpc,
    RateExceeded,
    Refused,
    ServerBusy,
    TooManyStreams,
    UnknownSession,
    UnsupportedVersion,
    without_frames,
)
from mcpbridge.jsonrpc import sse
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.jsonrpc.large_messages import read_large
from mcpbridge.jsonrpc.members import integer_of, members_of
from mcpbridge.jsonrpc.parsed_message import ParsedMessage, parse_message, valid_line
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.header_validation import Headers, check_headers, headers_match
from mcpbridge.mcp.modern_request import (
    LISTEN,
    MODERN_PROTOCOL_VERSIONS,
    ModernRequest,
    read_request,
    try_read_request,
)
from mcpbridge.server import NOT_ADMITTED, Server
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.exchange import Exchange, Work
from mcpbridge.web.access_expiry import EXPIRED, AccessExpiry
from mcpbridge.web.client_addresses import CallerOf, access_of, no_caller
from mcpbridge.web.content_negotiation import ANYTHING, EVENTS, JSON, Accepted
from mcpbridge.web.pending_response import PendingExchange
from mcpbridge.web.refusals import AddressOf
from mcpbridge.web.response import Response, accept
from mcpbridge.web.trace_headers import http_context

#: The statuses of responses that are errors, by code; that of all others is 200.
STATUSES = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    METHOD_NOT_FOUND: 404,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
}

#: Codes that no new implementation should use.
LEGACY_CODES = range(-32019, -31999)

#: Headers that proxies add: a request with one of them has come on a connection
#: of the proxy, which may send the requests of several clients on it.
PROXY_HEADERS = frozenset({"forwarded", "via", "x-forwarded-for", "x-real-ip"})


class ModernEndpoint:
    """The endpoint of one server for requests without a session."""

    log = Logger()

    def __init__(
        self,
        server: Server,
        clock: IReactorTime,
        client_of: Callable[[Any], str | None] = lambda request: None,
        caller_of: CallerOf = no_caller,
        address_of: AddressOf = no_caller,
    ) -> None:
        self._address_of = address_of
        self._server = server
        self._clock = clock
        self._client_of = client_of
        self._caller_of = caller_of

    async def post(
        self, request: Any, body: bytes | ParsedMessage, refusal: Refused | None, accepted: Accepted
    ) -> None:
        """
        Serve a request or a notification.  Raises `Refused`: `refusal`, if the
        head has been refused already, with the id of the request.
        """
        headers = _headers(request)
        if refusal is not None:
            raise of_request(refusal, body)
        if isinstance(body, bytes) and len(body) <= LARGE_BYTES:
            asked = read_post(self._server, body, headers)
        else:
            asked = await _read_large(self._server, body, headers)
        if asked is None:
            # A notification: the specification has none for clients to send over HTTP.
            accept(request)
            return
        settings = self._server.settings
        listens = asked.method == LISTEN
        # A subscription needs events, whatever the settings say.
        may = accepted._replace(json=False) if listens else limited(accepted, settings)
        if may.nothing:
            refusal = restated(not_acceptable(settings, listens=listens))
            refusal.ident = asked.id
            raise refusal
        access = access_of(request)
        self._server.check_admitted(access)
        if listens:
            try:
                request.notifyFinish().addBoth(self._server.hold_stream(access))
            except TooManyStreams as error:
                busy = ServerBusy.because(error)
                busy.retry_after, busy.ident = error.retry_after, asked.id
                raise busy from None
        spans = None
        if self._server.tracing is not None:
            large = not isinstance(body, bytes) or len(body) > LARGE_BYTES
            asked, spans = self._server.traced(asked, http_context(request), large=large)
        caller = self._caller_of(request)
        if caller is not None:
            caller.introduced(asked.client_info)
        response = ExchangeResponse(request, settings, self._clock, may)
        exchange = response.exchange = Exchange(
            asked,
            access,
            response,
            _connection(request),
            client=self._client_of(request),
            caller=caller,
            traced=spans,
        )
        size = len(body if isinstance(body, bytes) else body.line)
        exchange.measured = self._server.measured(asked, size)
        if self._server.audit is not None:
            exchange.audited = self._server.audited(asked, access, self._address_of(request), size)

        def gone(_: object) -> None:
            exchange.cancel()
            response.gone()
            response.exchange = None

        request.notifyFinish().addErrback(gone)
        if listens:
            expired = partial(exchange.withdraw, EXPIRED)
            expiry = AccessExpiry(self._clock, lambda: access.until, expired)
            request.notifyFinish().addBoth(expiry.stop)
        self._hold(request, exchange)
        try:
            # An error of a queued request has a status of its own.
            response.wait(settings.queue_timeout + COMMIT_SECONDS)
            waiting = work_on(self._server, exchange, headers)
            if waiting is not None:
                await waiting
            response.wait(COMMIT_SECONDS)
        except CancelledError:
            gone(None)
            raise
        await response.finished

    async def take_over(self, request: Any, pending: PendingExchange) -> None:
        """Write the response to a fast request that needs more than one message."""
        response = ExchangeResponse(request, self._server.settings, self._clock, ANYTHING)
        response.exchange = pending.exchange

        def gone(_: object) -> None:
            pending.detach()
            response.gone()
            response.exchange = None

        request.notifyFinish().addErrback(gone)
        pending.take_over(response)
        self._hold(request, pending.exchange)
        # What has come is written by now; if nothing has, it has taken long.
        response.wait(0)
        await response.finished

    def _hold(self, request: Any, exchange: Exchange) -> None:
        """Have it end at once if other settings do not admit its caller any more."""
        if not exchange.over:
            end = partial(exchange.withdraw, NOT_ADMITTED)
            request.notifyFinish().addBoth(self._server.hold_request(exchange, end))


def read_post(server: Server, body: bytes, headers: Headers) -> ModernRequest | None:
    """
    Read a request, and check what can be checked without its server; return
    None for a notification.  Raises `Refused`, with the id of the request.
    """
    try:
        server.check_size(body)
        line = valid_line(body)
        asked = None if line is None else try_read_request(line)
        if asked is not None and headers_match(asked, headers):
            return asked
        return _checked(parse_message(body), headers)
    except Refused as error:
        raise of_request(error, body) from None


async def _read_large(
    server: Server, body: bytes | ParsedMessage, headers: Headers
) -> ModernRequest | None:
    """Do the same for a message that is parsed in slices, or was already."""
    large: ParsedMessage | None = None
    try:
        if isinstance(body, ParsedMessage):
            large = body
        else:
            server.check_size(body)
            large = await server.work.do(read_large(body))
        return _checked(large, headers)
    except Refused as error:
        raise of_request(error, large or b"") from None


def _checked(message: ParsedMessage | None, headers: Headers) -> ModernRequest | None:
    if message is None or message.envelope.method is msgspec.UNSET:
        raise NotJsonRpc("expected one request or notification")
    versions = headers("MCP-Protocol-Version")
    version = versions[0] if versions else None
    if message.envelope.id is msgspec.UNSET:
        if version is not None and version.strip(" \t") not in MODERN_PROTOCOL_VERSIONS:
            raise UnsupportedVersion(version, MODERN_PROTOCOL_VERSIONS)
        return None
    asked = read_request(message, version_header=version)
    check_headers(asked, headers)
    return asked


def of_request(refusal: Refused, body: bytes | ParsedMessage) -> Refused:
    """
    Return a refusal in the codes of 2026-07-28, with the id of the request if
    that can be read.  No large body is read for that alone.
    """
    digest = body.digest if isinstance(body, ParsedMessage) else body
    if refusal.ident is None and len(digest) <= LARGE_BYTES:
        refusal.ident = _ident(digest)
    return restated(refusal)


def work_on(server: Server, exchange: Exchange, headers: Headers) -> Work | None:
    """
    Have a request worked on; any error becomes its answer.

    Returns None if a process has the request, or it has been answered, and
    otherwise a coroutine that waits for a process, which raises nothing but
    `CancelledError` if it is cancelled.
    """
    try:
        server.message_rate.check(exchange.client)
        waiting = server.ask(exchange, headers)
    except RateExceeded as error:
        exchange.fail(ServerBusy.because(error))
        return None
    except Exception as error:
        _fail(exchange, error)
        return None
    return None if waiting is None else _wait(server, exchange, waiting)


async def _wait(server: Server, exchange: Exchange, waiting: Work) -> None:
    work = Deferred.fromCoroutine(_answered(exchange, waiting))
    withdrawn = False

    def withdraw() -> None:
        nonlocal withdrawn
        withdrawn = True
        exchange.withdraw(NOT_ADMITTED)
        work.cancel()

    release = server.hold_request(exchange, withdraw, waits=True)
    try:
        await work
    except CancelledError:
        if not withdrawn:
            raise
    finally:
        release(None)


async def _answered(exchange: Exchange, waiting: Work) -> None:
    # No error may stay in a Deferred of `_wait`, nor keep its traceback: a traceback through
    # a Deferred leads back to the error, a cycle that would keep a large request until the
    # garbage collector comes.
    try:
        await waiting
    except CancelledError:
        raise
    except Exception as error:
        _fail(exchange, error)
        without_frames(error)


def _fail(exchange: Exchange, error: Exception) -> None:
    if isinstance(error, UnknownSession):
        exchange.fail(BackendEnded("the request was not answered: its process is ending"))
    elif isinstance(error, Refused):
        exchange.fail(error)
    else:
        # Not left to the routes: an event stream may have begun.
        ModernEndpoint.log.failure("a request failed", Failure(error))
        exchange.fail(InternalError.of_ours())


class ExchangeResponse(Response):
    """
    The sink of one exchange (`ExchangeSink`): JSON if its only message is the
    answer, otherwise events, without ids: nobody can come back to them.
    """

    def __init__(
        self, request: Any, settings: ServerSettings, clock: IReactorTime, may: Accepted
    ) -> None:
        super().__init__(request, settings, clock)
        self.exchange: Exchange | None = None
        self._may = may
        self._answered = False
        #: Bytes written since the client does not keep up.
        self._behind = 0

    def wait(self, seconds: float) -> None:
        """Begin an event stream, and keep it alive, if nothing is written for so long from now."""
        if self.request is not None and not self.streaming and self._may.events:
            self.commit_after(seconds)

    # Called by the exchange: ExchangeSink.

    def send(self, lines: list[bytes], final: bool) -> None:
        """Write messages of the server; with `final` the last one is the answer."""
        if self.request is not None:
            self._send(lines, final)
        if final:
            self._done()

    def _send(self, lines: list[bytes], final: bool) -> None:
        if not self._may.events:
            lines = lines[-1:] if final else []
        if not self.streaming and final and len(lines) == 1:
            status = status_of(lines[0])
            # An error has a status, which events have not, whatever the client accepts.
            if self._may.json or status != 200:
                self.write_json(lines[0], status)
                return
        if lines:
            if not self.streaming:
                self.commit()
            self._write_bounded(sse.message_events(lines))
            if final:
                self.finish()

    def fail(self, refusal: Refused) -> None:
        """Write an error of the bridge as the answer."""
        if self.request is not None:
            restated(refusal)
            if self.streaming:
                self._write_bounded(sse.message_events([refusal.body()]))
                self.finish()
            else:
                self.write_error(refusal)
        self._done()

    def _done(self) -> None:
        """
        Let go of the exchange, which is over.

        It has all of its request, and this is kept until the garbage collector
        comes.  But not before its worker has been told that this client keeps up.
        """
        self._answered = True
        if not self.paused:
            self.exchange = None

    def _write_bounded(self, events: bytes) -> None:
        self.write(events)
        if self.paused:
            self._behind += len(events)
            if self._behind > self.settings.max_waiting_bytes:
                # Nobody else is to wait for this client.
                self.abort()

    # Called by the response.

    def client_paused(self) -> None:
        """Have the worker send less, if it can."""
        if self.exchange is not None:
            self.exchange.pause()

    def client_resumed(self) -> None:
        """Have the worker send again."""
        self._behind = 0
        if self.exchange is not None:
            self.exchange.resume()
        if self._answered:
            self.exchange = None

    def ended(self) -> None:
        """Tell the worker that it need not wait for this client."""
        self.client_resumed()


def limited(accepted: Accepted, settings: ServerSettings) -> Accepted:
    """Return what a response may be: what the client accepts, and the settings allow."""
    return accepted._replace(events=False) if settings.json_response else accepted


def not_acceptable(settings: ServerSettings, *, listens: bool = False) -> NotAcceptable:
    """Return the error for a client that accepts nothing of what a response may be."""
    if listens:
        return NotAcceptable(f"Accept must allow {EVENTS}")
    either = JSON if settings.json_response else f"{JSON} or {EVENTS}"
    return NotAcceptable(f"Accept must allow {either}")


def restated(refusal: Refused) -> Refused:
    """
    Replace a code that 2026-07-28 has left to older implementations
    (basic/index, "Error Codes"); return the refusal.
    """
    if refusal.code in LEGACY_CODES:
        refusal.code = INTERNAL_ERROR if refusal.status >= 500 else INVALID_REQUEST
    return refusal


def _ident(body: bytes) -> str | int | float | None:
    """Return the id of a request that is otherwise invalid; None if it has none."""
    envelope = peek(body)
    if envelope is None or not envelope.is_request or isinstance(envelope.id, msgspec.UnsetType):
        return None
    return envelope.id


def status_of(line: bytes) -> int:
    """Return the status of a response that is this answer alone."""
    # A worker has written its outer members, none with an escape in its name: a result
    # is told by searching, which is quicker than to decode it.
    envelope = peek(line) if b'"error"' in line else None
    if envelope is None or isinstance(envelope.error, msgspec.UnsetType):
        return 200
    code = integer_of(members_of(envelope.error).get("code"))
    return 200 if code is None else STATUSES.get(code, 200)


def _connection(request: Any) -> ClientConnection | None:
    """
    Return the client's connection; None behind a proxy, and on a site that is
    not the bridge's own, whose connections do not tell when they are lost.
    """
    known = getattr(request.channel, "client_connection", None)
    if known is None or any(map(request.requestHeaders.hasHeader, PROXY_HEADERS)):
        return None
    connection: ClientConnection | None = known()
    return connection


def _headers(request: Any) -> Headers:
    def get(name: str) -> list[str]:
        values = request.requestHeaders.getRawHeaders(name.encode("latin-1"), [])
        return [value.decode("latin-1") for value in values]

    return get
