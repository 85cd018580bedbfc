"""
The MCP endpoint of Streamable HTTP: POST, GET and DELETE.

Knows statuses and headers (MCP 2025-11-25, basic/transports); which message
goes where is for the router, and what differs between revisions is in
`mcp.revisions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.errors import (
    MethodNotAllowed,
    MissingSessionId,
    NotAcceptable,
    NotJsonRpc,
    Refused,
    TooManyMcpSessions,
    TooManySessions,
    UnsupportedMediaType,
    UnsupportedVersion,
)
from mcpbridge.jsonrpc.envelope import Envelope, check_element, peek, read_message
from mcpbridge.jsonrpc.large_messages import Message, read_batch, read_large
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.modern_request import (
    MODERN_PROTOCOL_VERSIONS,
    PROTOCOL_VERSION,
    claims_modern,
    is_modern_version,
)
from mcpbridge.mcp.revisions import HANDSHAKE_PROTOCOL_VERSIONS, is_accepted
from mcpbridge.mcp.stream_events import StreamSink
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.endings import ClientLeft
from mcpbridge.server import Server
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.tracing.tracing import HttpContext
from mcpbridge.web.access_expiry import AccessExpiry
from mcpbridge.web.bounded_request import refusal_of, release_body, take_body
from mcpbridge.web.client_addresses import CallerOf, access_of, no_caller
from mcpbridge.web.content_negotiation import ANYTHING, EVENTS, JSON, Accepted, accepted
from mcpbridge.web.pending_response import PendingExchange, PendingStream
from mcpbridge.web.refusals import AddressOf
from mcpbridge.web.response import accept
from mcpbridge.web.stateless_http import ModernEndpoint, limited, not_acceptable, restated
from mcpbridge.web.stream_response import StreamResponse
from mcpbridge.web.trace_headers import recorded_context


class McpEndpoint:
    """
    The endpoint of one server.

    `client_of` returns the address whose share counts for a request, or None;
    `caller_of` who sent it, and `address_of` the address of its client itself.
    """

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
        self._modern = ModernEndpoint(server, clock, client_of, caller_of, address_of)

    async def post(self, request: Any) -> None:
        """Serve a message, or a batch of them, from the client."""
        finished = await self._post(request)
        if finished is not None:
            # All of the body has gone on to the backend.
            release_body(request)
            await finished

    async def _post(self, request: Any) -> Deferred[None] | None:
        """Return what is still to be awaited, when nothing holds the body any more."""
        pending: PendingStream | PendingExchange | None
        take_handed_over = getattr(request.channel, "take_handed_over", None)
        pending = take_handed_over() if take_handed_over is not None else None
        if pending is not None:
            if isinstance(pending, PendingExchange):
                await self._modern.take_over(request, pending)
            else:
                await self._take_over(request, pending)
            return None
        refusal = refusal_of(request)
        body = b"" if refusal is not None else take_body(request)
        unsupported = _unsupported_media(request)
        await self._check_operations(request, body)
        if len(body) > LARGE_BYTES:
            return await self._post_large(request, body, unsupported)
        if self._is_modern(request) or claims_modern(body):
            await self._modern.post(request, body, unsupported or refusal, _accepted(request))
            return None
        if unsupported is not None:
            raise unsupported
        session = self._session_of(request)
        if refusal is not None:
            raise refusal
        self._server.check_size(body)
        line, envelope = read_message(body)
        self._check_version(request, session)
        if envelope is None and session is not None:
            return self._post_batch(request, session, line)
        return await self._post_one(request, session, line, envelope)

    async def _check_operations(self, request: Any, body: bytes) -> None:
        """Raise `InsufficientScope` for a message that its caller may not send."""
        server = self._server
        if not body or not server.reads_operations:
            return
        if _header(request, b"mcp-session-id") and not self._is_modern(request):
            # One that its caller does not have is an error before all others.
            self._session_of(request)
        server.check_size(body)
        if len(body) > LARGE_BYTES:
            await server.check_large_operations(body, access_of(request), "/mcp")
        else:
            server.check_operations(body, access_of(request), "/mcp")

    async def _post_large(
        self, request: Any, body: bytes, unsupported: Refused | None
    ) -> Deferred[None] | None:
        """
        Do the same for a large message, which is parsed in slices.

        Errors of its head are raised before that.  A modern request must have
        its revision in the head.
        """
        if self._is_modern(request):
            await self._modern.post(request, body, unsupported, _accepted(request))
            return None
        if unsupported is not None:
            raise unsupported
        session = self._session_of(request)
        self._server.check_size(body)
        large = await self._server.work.do(read_large(body))
        if large is not None and PROTOCOL_VERSION in (large.meta or {}):
            await self._modern.post(request, large, None, _accepted(request))
            return None
        self._check_version(request, session)
        if large is None and session is not None:
            self._check_batches(session)
            most = self._server.settings.max_waiting_messages
            batch = await self._server.work.do(read_batch(body, most))
            # It may have ended meanwhile.
            ident = _header(request, b"mcp-session-id")
            session = self._server.find_streamable(ident, access_of(request))
            return self._post_elements(request, session, batch)
        if large is None:
            return await self._post_one(request, None, body, None)
        session = self._session_of(request)
        return await self._post_one(request, session, large.line, large.envelope, large.digest)

    async def _post_one(
        self,
        request: Any,
        session: BackendSession | None,
        line: bytes,
        envelope: Envelope | None,
        digest: bytes | None = None,
    ) -> Deferred[None] | None:
        """Pass on one message; progress tokens are read from its `digest`, if it has one."""
        if session is None:
            if envelope is None or envelope.method != "initialize" or not envelope.is_request:
                raise MissingSessionId("no Mcp-Session-Id; a session begins with `initialize`")
            await self._initialize(request, line, envelope)
            return None
        if envelope is None or envelope.method == "initialize":
            raise NotJsonRpc("the session is initialized already")
        digests = None if digest is None else [digest]
        return self._post_messages(
            request, session, [(line, envelope)], batch=False, digests=digests
        )

    async def get(self, request: Any) -> None:
        """Open the GET stream, or with `Last-Event-ID` resume any stream."""
        session = self._find(request)
        if session is None:
            # Clients take 405 for: there is no such stream, go on without it.
            raise MethodNotAllowed(
                "no Mcp-Session-Id; this is an endpoint for MCP clients, whose session begins with"
                " a POST of `initialize`",
                "POST",
            )
        if not _accepted(request).events:
            raise NotAcceptable(f"Accept must allow {EVENTS}")
        request.notifyFinish().addBoth(self._server.hold_stream(access_of(request)))
        streamable = _streamable(session)
        streamable.touch()
        response = self._response(request, streamable, Accepted(json=False, events=True))
        last = _header(request, b"last-event-id")
        if last:
            stream = streamable.router.resume(last, response)
            position = int(last.rpartition("-")[2])
        else:
            position = streamable.router.position
            stream = streamable.router.open_get(response)
        self._attached(request, streamable, response, response, stream, position)
        if session.audited is not None:
            session.audited.done("a stream was opened", self._audited_address(request))

        def expired() -> None:
            streamable.router.detach(stream, response)
            response.end()

        expiry = AccessExpiry(self._clock, lambda: session.access_until, expired)
        request.notifyFinish().addBoth(expiry.stop)
        await response.finished

    def delete(self, request: Any) -> None:
        """End a session for its client."""
        session = self._find(request)
        if session is None:
            raise MissingSessionId("no Mcp-Session-Id; it names the session that is to end")
        self._server.end_for_client(session, self._audited_address(request))
        request.setHeader(b"Content-Length", b"0")

    # The parts of a POST.

    def _recorded(
        self, request: Any, line: bytes, digests: Sequence[bytes] | None
    ) -> HttpContext | None:
        # A message with a digest came in a large body: its parent is not read.
        return recorded_context(self._server, request, line if digests is None else b"")

    async def _initialize(self, request: Any, line: bytes, envelope: Envelope) -> None:
        if request.channel is None:
            raise CancelledError
        self._check_acceptable(request)
        caller = self._caller_of(request)
        if caller is not None:
            caller.initialized(line)
        try:
            address = self._audited_address(request)
            session = await self._server.open_streamable(
                self._client_of(request), caller, access_of(request), address
            )
        except TooManySessions as error:
            refusal = TooManyMcpSessions(str(error))
            refusal.retry_after = error.retry_after
            raise refusal from None
        _streamable(session).initializing(envelope.id)  # type: ignore[arg-type]
        try:
            finished = self._post_messages(
                request, session, [(line, envelope)], batch=False, opens=True
            )
            if finished is not None:
                await finished
        except CancelledError:
            # An id in a head that came before the answer is no use to a client without the answer.
            if not request.startedWriting or _streamable(session).negotiated is None:
                self._server.client_left(session, "the client left before it had the session's id")
            raise
        except Exception as error:
            what = "was refused" if isinstance(error, Refused) else "could not be handled"
            session.life.end(ClientLeft(f"its first message {what}"))
            raise

    def _post_batch(
        self, request: Any, session: BackendSession, line: bytes
    ) -> Deferred[None] | None:
        self._check_batches(session)
        elements = self._server.check_batch(line)
        messages = [(each, check_element(peek(each)), each) for each in elements]
        return self._post_elements(request, session, messages)

    def _post_elements(
        self, request: Any, session: BackendSession, messages: Sequence[Message]
    ) -> Deferred[None] | None:
        """Pass on the messages of a batch, each with its digest."""
        if not messages:
            raise NotJsonRpc("the batch is empty")
        if any(envelope.method == "initialize" for _, envelope, _ in messages):
            raise NotJsonRpc("`initialize` must not be part of a batch")
        return self._post_messages(
            request,
            session,
            [(line, envelope) for line, envelope, _ in messages],
            batch=True,
            digests=[digest for _, _, digest in messages],
        )

    def _check_batches(self, session: BackendSession) -> None:
        if not _streamable(session).revision.batches:
            raise NotJsonRpc("a batch; this session's revision of MCP has none")

    def _post_messages(
        self,
        request: Any,
        session: BackendSession,
        messages: Sequence[tuple[bytes, Envelope]],
        *,
        batch: bool,
        digests: Sequence[bytes] | None = None,
        opens: bool = False,
    ) -> Deferred[None] | None:
        """
        Pass messages on to the session.  Return what is to be awaited; None if
        they ask for nothing.  `opens` if they are the `initialize` that opens it.
        """
        streamable = _streamable(session)
        asks = any(envelope.is_request for _, envelope in messages)
        may = self._check_acceptable(request) if asks else ANYTHING
        made: list[StreamResponse] = []

        def make_response() -> StreamResponse:
            announces = session.ident if opens else None
            made.append(self._response(request, streamable, may, batch=batch, announces=announces))
            return made[0]

        try:
            stream = streamable.receive(
                messages,
                make_response,
                digests,
                json_only=not may.events,
                address=self._audited_address(request),
                http=None if batch else self._recorded(request, messages[0][0], digests),
            )
        except BaseException:
            for response in made:
                response.gone()
            raise
        if stream is None:
            accept(request)
            return None
        response = made[0]
        # Also an `initialize` gets its head before its answer, although only that tells whether
        # the session which the head names comes to life: a first start may take minutes, and
        # clients and proxies give up on a request of which they hear nothing.
        self._attached(request, streamable, response, response, stream, 0)
        return response.finished

    async def _take_over(self, request: Any, pending: PendingStream) -> None:
        """Write the response to a fast request that needs more than one message."""
        response = self._response(request, pending.streamable, self._accepted(request))
        pending.take_over(response)
        # What has come, or has ended it, is written when this returns.
        self._attached(
            request, pending.streamable, response, pending, pending.stream, 0, patience=0
        )
        await response.finished

    # Common parts.

    def _audited_address(self, request: Any) -> str | None:
        """Return where a request came from, if the audit log is to have it."""
        return None if self._server.audit is None else self._address_of(request)

    def _response(
        self,
        request: Any,
        streamable: StreamableSession,
        may: Accepted,
        *,
        batch: bool = False,
        announces: str | None = None,
    ) -> StreamResponse:
        return StreamResponse(
            request,
            streamable,
            self._server.settings,
            self._clock,
            may=may,
            batch=batch,
            announces=announces,
        )

    def _attached(
        self,
        request: Any,
        streamable: StreamableSession,
        response: StreamResponse,
        sink: StreamSink,
        stream: str,
        position: int,
        patience: float = COMMIT_SECONDS,
    ) -> None:
        """Begin a response once its stream is known; `sink` is what the router has attached."""

        def gone(_: object) -> None:
            response.gone()
            streamable.router.detach(stream, sink)

        response.attached(stream, position, patience)
        request.notifyFinish().addErrback(gone)

    def _session_of(self, request: Any) -> BackendSession | None:
        """Return the session that a request names; None without one.  Raises `UnknownSession`."""
        ident = _header(request, b"mcp-session-id")
        return self._server.find_streamable(ident, access_of(request)) if ident else None

    def _is_modern(self, request: Any) -> bool:
        """
        Tell whether a request is of a revision without sessions, by its head.
        One that names a live session is not: there such a version is an error.
        """
        if not is_modern_version(_version(request)):
            return False
        ident = _header(request, b"mcp-session-id")
        return not self._server.has_streamable(ident, access_of(request))

    def _find(self, request: Any) -> BackendSession | None:
        """
        Return the session of a GET or DELETE; None if it names none.  Raises
        `UnknownSession`, `UnsupportedVersion`, and `MethodNotAllowed` for what
        2026-07-28 has removed.
        """
        if _version(request) in MODERN_PROTOCOL_VERSIONS and self._is_modern(request):
            raise restated(MethodNotAllowed("this revision of MCP has POST alone", "POST"))
        session = self._session_of(request)
        self._check_version(request, session)
        return session

    def _check_version(self, request: Any, session: BackendSession | None) -> None:
        header = _version(request)
        negotiated = _streamable(session).negotiated if session is not None else None
        if not is_accepted(header, negotiated):
            raise UnsupportedVersion(header or "", HANDSHAKE_PROTOCOL_VERSIONS)

    def _accepted(self, request: Any) -> Accepted:
        """Return what the response may be: what the client accepts, and the settings allow."""
        return limited(_accepted(request), self._server.settings)

    def _check_acceptable(self, request: Any) -> Accepted:
        """Return the same.  Raises `NotAcceptable` if it may be nothing."""
        may = self._accepted(request)
        if may.nothing:
            raise not_acceptable(self._server.settings)
        return may


def _accepted(request: Any) -> Accepted:
    """Return what the client accepts."""
    return accepted(_header(request, b"accept"))


def _unsupported_media(request: Any) -> Refused | None:
    """Return the refusal of a POST whose `Content-Type` is not JSON; None otherwise."""
    media = _header(request, b"content-type").partition(";")[0].strip().lower()
    if media == JSON:
        return None
    return UnsupportedMediaType(f"the Content-Type is {media!r}; expected {JSON}")


def _streamable(session: BackendSession) -> StreamableSession:
    return cast("StreamableSession", session.sink)


def _version(request: Any) -> str | None:
    """Return the revision in a request's head; None without one."""
    return _header(request, b"mcp-protocol-version") or None


def _header(request: Any, name: bytes) -> str:
    """Return the values of a header, joined."""
    values = request.requestHeaders.getRawHeaders(name) or []
    return ", ".join(value.decode("latin-1") for value in values)
