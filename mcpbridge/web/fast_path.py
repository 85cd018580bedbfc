"""
The fast path of a connection: requests that post a message, answered without a
request object of twisted.web.

A client that posts sends nearly the same head again and again, and all that
is wanted of it is a session.  What is recognized here is exactly what the
ordinary path would understand in the same way; anything else, and anything
in doubt, is left to it.  Knows the heads of requests; must not decide about a
message: that is for the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from math import inf
from time import time
from typing import NamedTuple, cast
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers as HeaderFields
from twisted.web.server import version

from mcpbridge.audit_log import Transport
from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.errors import InternalError, NotFound, Refused
from mcpbridge.jsonrpc.envelope import read_message
from mcpbridge.mcp.modern_request import LISTEN, MODERN_PROTOCOL_VERSIONS, claims_modern
from mcpbridge.mcp.revisions import HANDSHAKE_PROTOCOL_VERSIONS, is_accepted
from mcpbridge.server import Server
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.twisted_internals import AT_ONCE_BYTES
from mcpbridge.web.admission import EndOf
from mcpbridge.web.endpoints import Endpoint
from mcpbridge.web.pending_response import (
    PendingConnection,
    PendingExchange,
    PendingStream,
    StartWork,
)
from mcpbridge.web.request_parser import Head, ReceivedRequest
from mcpbridge.web.response import reason_phrase
from mcpbridge.web.stateless_http import PROXY_HEADERS, read_post, restated, status_of, work_on
from mcpbridge.web.transport_security import (
    BROWSER_FIELDS,
    PREFETCH_FIELDS,
    TransportSecurity,
    check_backend_route,
    is_browser_agent,
)

#: How many `Host` values are cached with whether they are allowed.
KNOWN_HOSTS = 256
#: How many origins have the heads of their responses cached.
KNOWN_ORIGINS = 64

_END = b"\r\n\r\n"
_IDENT = re.compile(rb"[0-9a-f-]{36}")
_QUERY = b"sessionId="
#: Fields by which a request is checked more closely: those that browsers send.
_OF_BROWSERS = BROWSER_FIELDS | {b"origin"}
#: Fields that change whether a request is answered, and how.
_NOT_FAST = PREFETCH_FIELDS | {b"expect", b"trailer", b"te"}
#: Fields of which only the presence is read.
_PROXY = frozenset(name.encode("ascii") for name in PROXY_HEADERS)


class FastRequest(NamedTuple):
    """
    What the head of a fast request says; `streamable` if it is for `/mcp`.

    A request of 2026-07-28 has no `ident` of a session; `work` starts the work on
    it.  `proxied` if a proxy has sent it.  `responses` makes the bytes of its
    response.  None of this may depend on the values of `VARYING` fields: heads with
    the same `cache_key` share it.

    `access` is as what its caller was admitted; it holds for requests with the same head,
    until `fresh_until`.
    """

    server: Server
    ident: str
    streamable: bool
    responses: FastResponses
    work: StartWork | None = None
    proxied: bool = False
    access: Access = ANYBODY


class _Checked:
    """A request for `TransportSecurity`, which may give fields to its response."""

    def __init__(self, head: Head) -> None:
        self.method = head.method
        self.clientproto = head.version
        self.requestHeaders = HeaderFields()
        for name, value in head.fields:
            self.requestHeaders.addRawHeader(name, value)
        self.given: list[tuple[bytes, bytes]] = []

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Note a field of the response."""
        self.given.append((name, value))


def _may_post(fields: dict[bytes, bytes]) -> bool:
    """Tell whether the endpoint accepts the usual headers of a POST; in doubt not."""
    accept = fields.get(b"accept", b"")
    return (
        accept == b"application/json, text/event-stream"
        or {part.strip(b" \t") for part in accept.split(b",")} >= _ACCEPTED
    ) and fields.get(b"content-type", b"").lower() == b"application/json"


def _text(value: bytes) -> str:
    return value.decode("latin-1")


_ACCEPTED = {b"application/json", b"text/event-stream"}


#: The access of a caller who is not known yet: a request with the same head may be fast later.
NOT_YET = Access(until=-inf, fresh_until=-inf)


def _refusal_of(failure: Failure) -> Refused | None:
    """Return the refusal; None for a defect, which is reported when it is asked about again."""
    return failure.value if isinstance(failure.value, Refused) else None


def _no_end() -> tuple[str | None, bytes | None]:
    return None, None


class NotFastAfterAll(Exception):
    """Raised for a message that is for twisted.web: a batch, `initialize`, a large one."""


class FastResponses:
    """
    The bytes of whole responses, with the same `extra` fields in each head, such
    as those that let a script read it.
    """

    log = Logger()

    def __init__(self, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._extra = b"".join(b"%b: %b\r\n" % field for field in extra)
        self._second = 0
        self._server_fields = b""
        self._accepted = b""
        self._ended = b""
        self._json_head = b""

    def accepted(self) -> bytes:
        """Return the response to a message that asks for no answer."""
        self._update()
        return self._accepted

    def ended(self) -> bytes:
        """Return the response to a `DELETE` that has ended a session."""
        self._update()
        return self._ended

    def json_response(self, line: bytes, status: int = 200) -> tuple[bytes, bytes]:
        """
        Return the head and the body of a response that is one message; a small body is
        in the same bytes as the head, and the second part empty.
        """
        self._update()
        head = self._json_head if status == 200 else _status_line(status) + self._json_fields
        if len(line) > AT_ONCE_BYTES:
            return b"%b%d%b" % (head, len(line), _END), line
        return b"%b%d%b%b" % (head, len(line), _END, line), b""

    def exchange_response(self, line: bytes) -> tuple[bytes, bytes]:
        """Return a response that is the answer of an exchange, with its status, in two parts."""
        return self.json_response(line, status_of(line))

    def exchange_error(self, refusal: Refused) -> bytes:
        """Return a response that is an error of an exchange."""
        return self.error_response(restated(refusal))

    def failure(self, error: Exception) -> bytes:
        """Return the response for what a request has raised."""
        if isinstance(error, Refused):
            return self.error_response(error)
        self.log.failure("a request failed", Failure(error))
        return self.error_response(InternalError.of_ours())

    def error_response(self, refusal: Refused, *, close: bool = False) -> bytes:
        """Return a response that is an error; with `close` it is the last one."""
        self._update()
        body = refusal.body()
        fields = b"".join(b"%b: %b\r\n" % field for field in refusal.headers())
        return b"%b%b%b%bContent-Length: %d%b%b" % (
            _status_line(refusal.status),
            b"Connection: close\r\n" if close else b"",
            self._server_fields,
            fields,
            len(body),
            _END,
            body,
        )

    def _update(self) -> None:
        """Make the parts of heads that change with the second, which `Date` has."""
        now = int(time())
        if now != self._second:
            self._second = now
            self._server_fields = b"Server: %b\r\nDate: %b\r\n%b" % (
                version,
                datetimeToString(now),
                self._extra,
            )
            self._accepted, self._ended = (
                b"%b%bContent-Length: 0%b" % (_status_line(status), self._server_fields, _END)
                for status in (202, 200)
            )
            self._json_fields = (
                b"%bContent-Type: application/json\r\nContent-Length: " % self._server_fields
            )
            self._json_head = _status_line(200) + self._json_fields


def _status_line(code: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (code, reason_phrase(code))


class FastPath:
    """
    Answers fast requests for the servers of one site.

    `endpoints` serve other plain requests directly, by method and path.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        security: TransportSecurity,
        endpoints: Mapping[tuple[bytes, bytes], Endpoint],
    ) -> None:
        self._security = security
        self._endpoints = endpoints
        self._allows_host = lru_cache(KNOWN_HOSTS)(security.allows_host)
        self._servers = {
            f"{server.settings.base_uri}/{name}{slash}".encode("ascii"): (server, name == "mcp")
            for server in servers
            for name in ("message", "mcp")
            for slash in ("", "/")
        }
        self._streams = {
            f"{server.settings.base_uri}/sse{slash}".encode("ascii"): server
            for server in servers
            for slash in ("", "/")
        }
        #: Whether no server lets everybody in, who could fill the memory anyway.
        self._is_protected = not any(each.is_open for each in servers)
        self._responses = FastResponses()
        self._responses_with = lru_cache(KNOWN_ORIGINS)(FastResponses)

    def recognise(
        self, head: Head, loopback: int | None = None, end: EndOf = _no_end
    ) -> FastRequest | None:
        """
        Read the head of a fast request; return None for one of twisted.web's.  That is also
        one with the access `NOT_YET`, but the next one with its head is to be asked about.

        `loopback` is the port of the listener, if it is on loopback; `end` tells who is
        at the other end.
        """
        if head.method != b"POST" or not head.persistent:
            return None
        path, asks, query = head.target.partition(b"?")
        server, streamable = self._servers.get(path, (None, False))
        if server is None:
            return None
        fields = self._fields(head, loopback)
        if fields is None:
            return None
        responses = self._responses
        if not _OF_BROWSERS.isdisjoint(fields) or is_browser_agent(fields.get(b"user-agent", b"")):
            checked = _Checked(head)
            try:
                self._security.check(checked, loopback)
                check_backend_route(checked)
            except Refused:
                return None
            if checked.given:
                responses = self._responses_with(tuple(checked.given))
        access = self._access(server, head, end)
        if not streamable:
            ident = query[len(_QUERY) :]
            if not query.startswith(_QUERY) or not _IDENT.fullmatch(ident):
                return None
            return FastRequest(server, ident.decode("ascii"), False, responses, access=access)
        if asks or not _may_post(fields):
            return None
        revision = fields.get(b"mcp-protocol-version", b"2025-11-25").decode("latin-1")
        ident = fields.get(b"mcp-session-id", b"")
        if revision in MODERN_PROTOCOL_VERSIONS:
            # With `json_response` some messages are not for the client; filters and
            # observers that are told of the caller are told of all headers.
            if ident or server.settings.json_response or server.tells_callers:
                return None
            proxied = not _PROXY.isdisjoint(fields)
            work = partial(work_on, server)
            return FastRequest(server, "", True, responses, work, proxied, access)
        if revision not in HANDSHAKE_PROTOCOL_VERSIONS or not _IDENT.fullmatch(ident):
            return None
        return FastRequest(server, ident.decode("ascii"), True, responses, access=access)

    def _access(self, server: Server, head: Head, end: EndOf) -> Access:
        """Return as what a request is admitted, if that is known already; else `NOT_YET`."""
        control = server.access_control
        if control is None:
            return ANYBODY
        name = server.settings.name
        request = AuthenticationRequest(name, head.method, head.target, head.fields, *end())
        return control.recall(request) or NOT_YET

    def refuse_sender(
        self, head: Head, end: EndOf, share: str | None = None
    ) -> Refused | Deferred[Refused | None] | None:
        """
        Return the refusal of a request whose body is large, and still arriving; None if its
        client may go on.  A Deferred of that, which does not fail, if somebody has to be
        asked who it is; `share` is the address whose share that takes.

        So nobody without credentials can fill the memory for bodies, except for as long as
        it takes to find out that they are wrong.
        """
        path = unquote_to_bytes(head.target.partition(b"?")[0])
        server = self._servers.get(path, (None, False))[0] or self._streams.get(path)
        if server is None:
            return NotFound("nothing is served at this path") if self._is_protected else None
        if server.access_control is None:
            return None
        name = server.settings.name
        request = AuthenticationRequest(
            name, head.method, head.target, head.fields, *end(), share=share
        )
        try:
            waiting = server.access_control.admit(request)
        except Refused as refusal:
            return refusal
        except Exception:
            # A defect of an authenticator, which is asked again, and reported then.
            return None
        if isinstance(waiting, Deferred):
            # Asked once more when all of it is there, and then most likely known.
            return waiting.addCallbacks(lambda access: None, _refusal_of)
        return None

    def _fields(self, head: Head, loopback: int | None) -> dict[bytes, bytes] | None:
        """Return the fields of a head by name; None for a request of twisted.web's."""
        fields = dict(head.fields)
        if len(fields) != len(head.fields) or not _NOT_FAST.isdisjoint(fields):
            return None
        return fields if self._allows_host(fields.get(b"host"), loopback) else None

    def _is_allowed(self, head: Head, loopback: int | None) -> bool:
        """
        Tell whether transport security allows a request.  Those that a browser may have
        sent are left to the resources of the site, which check more.
        """
        fields = self._fields(head, loopback)
        return (
            fields is not None
            and _OF_BROWSERS.isdisjoint(fields)
            and not is_browser_agent(fields.get(b"user-agent", b""))
        )

    def endpoint(self, head: Head, loopback: int | None = None) -> Endpoint | None:
        """Return what the resources of the site would dispatch a request to, if that is certain."""
        endpoint = self._endpoints.get((head.method, head.target))
        if endpoint is None or head.version != b"HTTP/1.1" or not self._is_allowed(head, loopback):
            return None
        return endpoint

    def is_costly(self, head: Head) -> bool:
        """
        Tell whether a request may open or end a session, which takes long: of
        many that come at once each waits for its turn.
        """
        path = head.target.partition(b"?")[0]
        if path in self._streams:
            return True
        server, streamable = self._servers.get(path, (None, False))
        if server is None or not streamable:
            return False
        if head.method == b"POST":
            revisions = map(_text, head.values(b"mcp-protocol-version"))
            return not (
                head.values(b"mcp-session-id")
                or any(each in MODERN_PROTOCOL_VERSIONS for each in revisions)
            )
        return True

    def refuse_stream(
        self,
        head: Head,
        loopback: int | None,
        client: Callable[[], str | None] = lambda: None,
        end: EndOf = _no_end,
        connection: PendingConnection | None = None,
    ) -> bytes | None:
        """
        Return the refusal of `GET /sse` if its server can open no session now;
        None for other requests, and if it can.

        Under a flood of clients a refusal is to cost little.  `client` returns
        the address whose share counts for the request; `connection` is its own.
        """
        server = self._streams.get(head.target)
        if server is None or not head.persistent:
            return None
        access = self._access(server, head, end)
        if access is NOT_YET:
            return None
        refusal = server.refusal(lambda: access.name or client())
        if refusal is None:
            return None
        if not self._is_allowed(head, loopback):
            return None
        server.pool.log_refusal()
        server.note_refusal(refusal, access, address=_address_of(connection), transport="sse")
        return self._responses.error_response(refusal)

    def end_session(
        self,
        head: Head,
        loopback: int | None = None,
        end: EndOf = _no_end,
        address: Callable[[], str | None] = lambda: None,
    ) -> bytes | None:
        """
        End the session that a `DELETE` names, and return the whole response; None if
        there is no such session, and for all that the ordinary path must look at.

        `address` returns that of the client itself, for the audit log.
        """
        server, streamable = self._servers.get(head.target, (None, False))
        if server is None or not streamable or head.method != b"DELETE" or not head.persistent:
            return None
        if not self._is_allowed(head, loopback):
            return None
        access = self._access(server, head, end)
        fields = dict(head.fields)
        ident = _text(fields.get(b"mcp-session-id", b""))
        if access is NOT_YET or not server.has_streamable(ident, access):
            return None
        session = server.find_streamable(ident, access)
        revision = fields.get(b"mcp-protocol-version")
        if not is_accepted(
            None if revision is None else _text(revision),
            cast("StreamableSession", session.sink).negotiated,
        ):
            return None
        try:
            server.end_for_client(session, None if server.audit is None else address())
        except Exception as error:
            return self._responses.failure(error)
        return self._responses.ended()

    def answer(
        self, request: FastRequest, body: bytes, connection: PendingConnection | None = None
    ) -> bytes:
        """
        Let the server decide about a message to `/message`; return the whole
        response.  Raises `NotFastAfterAll` if that takes longer.
        """
        server, http = request.server, None
        tracing = server.tracing
        if tracing is not None and connection is not None and tracing.wants(body):
            http = connection.traceparent
        try:
            address = _audited_address(server, connection)
            received = server.receive(request.ident, body, request.access, address, http)
        except Exception as error:
            self._note(request, error, "sse", connection, len(body))
            return request.responses.failure(error)
        if not received:
            raise NotFastAfterAll
        return request.responses.accepted()

    def post(
        self, request: FastRequest, received: ReceivedRequest, connection: PendingConnection
    ) -> bytes | PendingStream | PendingExchange:
        """
        Let the server decide about a message to `/mcp`.  Return the whole
        response, or a pending one: an exchange is to be begun by the caller.
        Raises `NotFastAfterAll`.
        """
        if request.work is not None:
            return self._post_modern(request, request.work, received, connection)
        responses, body = request.responses, received.body
        if claims_modern(body):
            raise NotFastAfterAll
        try:
            server, access = request.server, request.access
            streamable = cast(
                "StreamableSession", server.find_streamable(request.ident, access).sink
            )
            server.check_size(body)
            if server.reads_operations:
                server.check_operations(body, access, "/mcp")
            line, envelope = read_message(body)
            if envelope is None or envelope.method == "initialize":
                raise NotFastAfterAll
            pending = PendingStream(streamable, connection, responses)
            address = _audited_address(server, connection)
            tracing, http = server.tracing, None
            if tracing is not None and tracing.wants(body):
                http = connection.traceparent
            stream = streamable.receive(
                [(line, envelope)], lambda: pending, address=address, http=http
            )
        except NotFastAfterAll:
            raise
        except Exception as error:
            self._note(request, error, "streamable-http", connection, len(body))
            return responses.failure(error)
        if stream is None:
            return responses.accepted()
        pending.stream = stream
        return pending

    def _post_modern(
        self,
        request: FastRequest,
        work: StartWork,
        received: ReceivedRequest,
        connection: PendingConnection,
    ) -> bytes | PendingExchange:
        """Make an exchange of a request of 2026-07-28, most of which have one message as answer."""
        headers, server, access = received.head.mcp_values, request.server, request.access
        try:
            if server.reads_operations:
                server.check_operations(received.body, access, "/mcp")
            asked = read_post(server, received.body, headers)
        except Refused as error:
            self._note(request, error, "stateless", connection, len(received.body))
            return request.responses.error_response(error)
        if asked is None or asked.method == LISTEN:
            raise NotFastAfterAll
        audited = None
        if server.audit is not None:
            address = connection.audited_address()
            audited = server.audited(asked, access, address, len(received.body))
        measured, spans = server.measured(asked, len(received.body)), None
        if server.tracing is not None:
            asked, spans = server.traced(asked, connection.traceparent)
        return PendingExchange(
            *(asked, headers, access, connection, request.responses, work, request.proxied),
            audited,
            measured,
            spans,
        )

    def _note(
        self,
        request: FastRequest,
        error: Exception,
        transport: Transport,
        connection: PendingConnection | None,
        size: int,
    ) -> None:
        """Take note of a fast request that is refused."""
        if isinstance(error, Refused):
            request.server.note_refusal(
                error,
                request.access,
                address=_address_of(connection),
                transport=transport,
                size=size,
            )


def _address_of(connection: PendingConnection | None) -> Callable[[], str | None]:
    return _nowhere if connection is None else connection.audited_address


def _nowhere() -> None:
    return None


def _audited_address(server: Server, connection: PendingConnection | None) -> str | None:
    """Return where a request came from, if the audit log is to have it."""
    return None if server.audit is None or connection is None else connection.audited_address()
