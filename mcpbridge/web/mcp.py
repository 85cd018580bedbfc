"""
The MCP endpoint of Streamable HTTP: POST, GET and DELETE.

Knows statuses and headers (MCP 2025-11-25, basic/transports); which message
goes where is for the router, and what differs between revisions is in
`protocol.revisions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from mcpbridge.config import COMMIT_SECONDS
from mcpbridge.errors import (
    MissingSession,
    NotAcceptable,
    NotJsonRpc,
    Refused,
    TooManyMcpSessions,
    TooManySessions,
    UnsupportedMedia,
    UnsupportedVersion,
    WrongMethod,
)
from mcpbridge.protocol.envelope import (
    Envelope,
    peek,
    read_message,
    split_batch,
)
from mcpbridge.protocol.events import Outlet
from mcpbridge.protocol.modern import claims_modern, is_modern_version
from mcpbridge.protocol.revisions import SUPPORTED, is_accepted
from mcpbridge.session.server import Server
from mcpbridge.session.session import Session
from mcpbridge.session.streamable import StreamableFace
from mcpbridge.web.handover import WaitingAnswer
from mcpbridge.web.modern import ModernEndpoint, restated
from mcpbridge.web.outlets import ResponseOutlet
from mcpbridge.web.waiting import WaitingExchange

JSON = "application/json"
EVENTS = "text/event-stream"


class McpEndpoint:
    """
    The endpoint of one server; `client_of` tells the address whose share a
    request counts against.
    """

    def __init__(
        self,
        server: Server,
        clock: IReactorTime,
        client_of: Callable[[Any], str | None] = lambda request: None,
    ) -> None:
        self._server = server
        self._clock = clock
        self._client_of = client_of
        self._modern = ModernEndpoint(server, clock, client_of)

    async def post(self, request: Any) -> None:
        """A message, or a batch of them, from the client."""
        waiting: WaitingAnswer | WaitingExchange | None
        waiting = getattr(request.channel, "handed_over", None)
        if waiting is not None:
            request.channel.handed_over = None
            if isinstance(waiting, WaitingExchange):
                await self._modern.take_over(request, waiting)
            else:
                await self._take_over(request, waiting)
            return
        refusal: Refused | None = getattr(request, "refusal", None)
        body = b""
        if refusal is None:
            body = request.body() if hasattr(request, "body") else request.content.read()
        unacceptable = self._unacceptable(request)
        if is_modern_version(_version(request)) or claims_modern(body):
            await self._modern.post(request, body, unacceptable or refusal)
            return
        if unacceptable is not None:
            raise unacceptable
        ident = _header(request, b"mcp-session-id")
        session = self._server.find_streamable(ident) if ident else None
        if refusal is not None:
            raise refusal
        self._server.check_size(body)
        line, envelope = read_message(body)
        self._check_version(request, session)
        if session is None:
            if envelope is None or envelope.method != "initialize" or not envelope.is_request:
                raise MissingSession("no Mcp-Session-Id; a session begins with `initialize`")
            await self._initialize(request, line, envelope)
        elif envelope is None:
            await self._post_batch(request, session, line)
        elif envelope.method == "initialize":
            raise NotJsonRpc("the session is initialized already")
        else:
            await self._post_messages(request, session, [(line, envelope)], batch=False)

    async def get(self, request: Any) -> None:
        """The GET stream, or with Last-Event-ID what was missed of any stream."""
        _check_era(request)
        if not _accepts(request, (EVENTS,)):
            raise NotAcceptable(f"Accept must hold {EVENTS}")
        session = self._find(request)
        face = _face(session)
        face.touch()
        finished, outlet = self._outlet(request, face, may_be_json=False)
        last = _header(request, b"last-event-id")
        if last:
            stream = face.router.resume(last, outlet)
            position = int(last.rpartition("-")[2])
        else:
            position = face.router.position
            stream = face.router.open_get(outlet)
        self._opened(request, face, outlet, outlet, stream, position)
        await finished

    def delete(self, request: Any) -> None:
        """The client has no more use for the session."""
        _check_era(request)
        session = self._find(request)
        session.life.end("the client ended it")
        request.setHeader(b"Content-Length", b"0")

    # The parts of a POST.

    async def _initialize(self, request: Any, line: bytes, envelope: Envelope) -> None:
        if request.channel is None:
            raise CancelledError
        try:
            session = await self._server.open_streamable(self._client_of(request))
        except TooManySessions as error:
            raise TooManyMcpSessions(str(error)) from None
        request.setHeader(b"Mcp-Session-Id", session.ident.encode("ascii"))
        _face(session).initializing(envelope.id)  # type: ignore[arg-type]
        try:
            await self._post_messages(request, session, [(line, envelope)], batch=False)
        except CancelledError:
            if not request.startedWriting:
                session.life.end("the client left before it had the session's id")
            raise
        except Exception as error:
            # The answer names no session that is over.
            request.responseHeaders.removeHeader(b"Mcp-Session-Id")
            what = "was refused" if isinstance(error, Refused) else "could not be handled"
            session.life.end(f"its first message {what}")
            raise

    async def _post_batch(self, request: Any, session: Session, line: bytes) -> None:
        if not _face(session).revision.batches:
            raise NotJsonRpc("a batch; this session's revision of MCP has none")
        elements = split_batch(line)
        if not elements:
            raise NotJsonRpc("the batch is empty")
        messages = []
        for element in elements:
            envelope = peek(element)
            if envelope is None or not (envelope.method or envelope.is_response):
                raise NotJsonRpc("an element of the batch is no JSON-RPC message")
            if envelope.method == "initialize":
                raise NotJsonRpc("`initialize` must not be part of a batch")
            messages.append((element, envelope))
        await self._post_messages(request, session, messages, batch=True)

    async def _post_messages(
        self,
        request: Any,
        session: Session,
        messages: Sequence[tuple[bytes, Envelope]],
        *,
        batch: bool,
    ) -> None:
        face = _face(session)
        outlets: list[tuple[Deferred[None], ResponseOutlet]] = []

        def make_outlet() -> ResponseOutlet:
            outlets.append(self._outlet(request, face, may_be_json=True, batch=batch))
            return outlets[0][1]

        try:
            stream = face.receive(messages, make_outlet)
        except BaseException:
            for _, outlet in outlets:
                outlet.gone()
            raise
        if stream is None:
            request.setResponseCode(202)
            request.setHeader(b"Content-Length", b"0")
            return
        finished, outlet = outlets[0]
        self._opened(request, face, outlet, outlet, stream, 0)
        await finished

    async def _take_over(self, request: Any, waiting: WaitingAnswer) -> None:
        """Write what was posted past the ordinary channel, and needs more than one message."""
        finished, outlet = self._outlet(request, waiting.face, may_be_json=True)
        waiting.take_over(outlet)
        # What has come, or has ended it, is written when this returns.
        self._opened(request, waiting.face, outlet, waiting, waiting.stream, 0, patience=0)
        await finished

    # Common parts.

    def _outlet(
        self, request: Any, face: StreamableFace, *, may_be_json: bool, batch: bool = False
    ) -> tuple[Deferred[None], ResponseOutlet]:
        finished: Deferred[None] = Deferred()
        outlet = ResponseOutlet(
            request,
            face,
            self._server.settings,
            self._clock,
            lambda: finished.callback(None),
            may_be_json=may_be_json,
            batch=batch,
        )
        return finished, outlet

    def _opened(
        self,
        request: Any,
        face: StreamableFace,
        outlet: ResponseOutlet,
        attached: Outlet,
        stream: str,
        at: int,
        patience: float = COMMIT_SECONDS,
    ) -> None:
        def gone(_: object) -> None:
            outlet.gone()
            face.router.detach(stream, attached)

        outlet.opened(stream, at, patience)
        request.notifyFinish().addErrback(gone)

    def _find(self, request: Any) -> Session:
        ident = _header(request, b"mcp-session-id")
        if not ident:
            raise MissingSession(
                "no Mcp-Session-Id; this is an endpoint for MCP clients, whose session begins with"
                " a POST of `initialize`"
            )
        session = self._server.find_streamable(ident)
        self._check_version(request, session)
        return session

    def _check_version(self, request: Any, session: Session | None) -> None:
        header = _version(request)
        negotiated = _face(session).negotiated if session is not None else None
        if not is_accepted(header, negotiated):
            raise UnsupportedVersion(header or "", SUPPORTED)

    def _unacceptable(self, request: Any) -> Refused | None:
        """What the head of a POST says against it, if anything."""
        wanted = (JSON,) if self._server.settings.json_response else (JSON, EVENTS)
        if not _accepts(request, wanted):
            return NotAcceptable(f"Accept must hold {' and '.join(wanted)}")
        media = _header(request, b"content-type").partition(";")[0].strip().lower()
        if media != JSON:
            return UnsupportedMedia(f"the Content-Type is {media!r}; expected {JSON}")
        return None


def _accepts(request: Any, wanted: Sequence[str]) -> bool:
    """Whether its `Accept` holds all of these; one that is missing holds anything."""
    accepted = {
        part.partition(";")[0].strip().lower() for part in _header(request, b"accept").split(",")
    }
    if "*/*" in accepted or accepted == {""}:
        return True
    return all(media in accepted or f"{media.partition('/')[0]}/*" in accepted for media in wanted)


def _face(session: Session) -> StreamableFace:
    return cast("StreamableFace", session.stream)


def _version(request: Any) -> str | None:
    """The revision that a request says it is of."""
    return _header(request, b"mcp-protocol-version") or None


def _check_era(request: Any) -> None:
    """Raise `WrongMethod` for what 2026-07-28 has removed."""
    if is_modern_version(_version(request)):
        raise restated(WrongMethod("this revision of MCP has POST alone", "POST"))


def _header(request: Any, name: bytes) -> str:
    """A header's values, joined as one."""
    values = request.requestHeaders.getRawHeaders(name) or []
    return ", ".join(value.decode("latin-1") for value in values)
