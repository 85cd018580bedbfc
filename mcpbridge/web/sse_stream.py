"""
The event stream of one session, on one HTTP response.

Knows a session of HTTP+SSE and its response; must not know what messages say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers

from mcpbridge.config.settings import ServerSettings
from mcpbridge.jsonrpc import sse
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.mcp.open_requests import OpenRequests
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.endings import ClientStalled
from mcpbridge.twisted_internals import AT_ONCE_BYTES, prompt_descriptor, write_at_once, write_large
from mcpbridge.web.response import Response
from mcpbridge.web.tcp import acknowledged, unsent
from mcpbridge.web.watched_connection import WatchedConnection

_NO_HEADERS = Headers()


class EventStream(Response):
    """
    The sink of a session: writes its messages as server-sent events.

    While the client does not keep up the backend is not read.  A client that
    does not read at all ends its session.  Pings of the client keep the stream
    alive, rather than comments, every `ping_interval`.
    """

    def __init__(
        self,
        request: Any,
        session: BackendSession,
        settings: ServerSettings,
        clock: IReactorTime,
        pending: Callable[[Any], int] = unsent,
        acknowledged: Callable[[Any], int | None] = acknowledged,
    ) -> None:
        super().__init__(
            request,
            settings,
            clock,
            keepalive_interval=settings.ping_interval,
            pending=pending,
            acknowledged=acknowledged,
        )
        self._session = session
        requests = session.requests
        self._requests = OpenRequests() if requests is None else requests
        self._transport = getattr(request, "transport", None)
        self._descriptor = prompt_descriptor(self._transport)

    def open(self, endpoint: str) -> None:
        """Write the head of the response, the `endpoint` event and a ping, at once."""
        request = self.request
        first = sse.endpoint_event(endpoint)
        if self.settings.ping_interval:
            first += self.keepalive()
        self.begin(first)
        if isinstance(request.channel, WatchedConnection):
            request.channel.ends_session = True
        # Read and written; a stream may be open for days.
        request.requestHeaders = request.responseHeaders = _NO_HEADERS

    # Called by the session.

    @property
    def has_reader(self) -> bool:
        """True while the response is open: the client reads all of it, at its own pace."""
        return self.request is not None

    def send(self, lines: list[bytes]) -> None:
        """Write messages as one chunk, and at once where the connection allows it."""
        request = self.request
        if request is None:
            return
        for line in lines:
            envelope = self._requests.sent(line)
            if envelope is not None:
                # The backend may use an id that looks like that of a ping of the bridge.
                self._session.pings.backend_sent(envelope)
        if self._descriptor is None or not request.chunked:
            self.write(sse.message_events(lines))
            return
        if len(lines) == 1 and len(lines[0]) > AT_ONCE_BYTES and b"\r" not in lines[0]:
            before, line, after = sse.message_pieces(lines[0])
            write_at_once(self._descriptor, before)
            write_large(self._descriptor, line)
            self._descriptor.write(after)
            size = len(before) + len(line) + len(after)
            self._watch.arm(size)
        else:
            chunk = sse.message_chunk(lines)
            size = len(chunk)
            if write_at_once(self._descriptor, chunk):
                self._watch.wrote(size)
            else:
                self._watch.arm(size)
        request.sentLength += size

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """Return UNSET: the requests of a session of HTTP+SSE are not counted."""
        return msgspec.UNSET

    def close(self) -> None:
        """Complete the response; does nothing if the connection is lost."""
        self.finish()

    def client_gone(self, how: str) -> str:
        """Write no more.  Return why the session ends; `how` is the transport's reason."""
        self.gone()
        return f"the client went away ({how})"

    # Called by the response.

    def keepalive(self) -> bytes:
        """Return the next ping of the client."""
        return sse.message_events([sse.ping_message(self._session.pings.next_number())])

    def client_paused(self) -> None:
        """Stop reading the backend."""
        self._session.pause_backend()

    def client_resumed(self) -> None:
        """Read the backend again."""
        self._session.resume_backend()

    def client_stalled(self, reason: str) -> None:
        """End the session, and abort the connection."""
        self._session.life.end(ClientStalled(reason))
        # The session's end may have completed the response, and let go of the request.
        abort = getattr(self._transport, "abortConnection", None)
        if abort is not None:
            abort()
