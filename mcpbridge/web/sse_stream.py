"""
The event stream of one session, on one HTTP response.

Knows requests and when a client reads; must not know what messages say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web.http_headers import Headers
from zope.interface import implementer

from mcpbridge.config.settings import ServerSettings
from mcpbridge.jsonrpc import sse
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.twisted_internals import AT_ONCE_BYTES, prompt_descriptor, write_at_once
from mcpbridge.web.client_watch import ClientWatch
from mcpbridge.web.tcp import acknowledged, notice_vanished_peer, unsent

_NO_HEADERS = Headers()


@implementer(IPushProducer)
class EventStream:
    """
    Writes a session's messages as server-sent events.

    While the client does not keep up the backend is not read.  A client that
    takes no byte for `peer_timeout` while data waits for it is ended, and so
    is one that takes less than `min_transfer_rate`.
    `finished` is called once, when the response is complete.
    """

    def __init__(
        self,
        request: Any,
        session: BackendSession,
        settings: ServerSettings,
        clock: IReactorTime,
        finished: Callable[[], None],
        pending: Callable[[Any], int] = unsent,
        acknowledged: Callable[[Any], int | None] = acknowledged,
    ) -> None:
        self._request: Any = request
        self._session = session
        self._settings = settings
        self._clock = clock
        self._finished = finished
        self._transport = getattr(request, "transport", None)
        self._descriptor = prompt_descriptor(self._transport)
        self._full = False
        self._ping: IDelayedCall | None = None
        self._watch = ClientWatch(
            clock,
            self._transport,
            settings.peer_timeout,
            settings.min_transfer_rate,
            self._abort,
            pending,
            acknowledged,
        )

    def open(self, endpoint: str) -> None:
        """The head of the response and its first two events, at once."""
        request = self._request
        for name, value in sse.HEADERS:
            request.setHeader(name, value)
        notice_vanished_peer(self._transport, self._settings.peer_timeout)
        if request.channel is not None:
            request.channel.streaming = True
        request.registerProducer(self, True)
        first = sse.endpoint_event(endpoint)
        if self._settings.ping_interval:
            first += self._next_ping()
            self._schedule_ping()
        self._write(first)
        # Read and written; a stream may be open for days.
        request.requestHeaders = request.responseHeaders = _NO_HEADERS
        self._watch.start()

    # What the session asks.

    @property
    def has_reader(self) -> bool:
        """Whether the response is open: the client reads all of it, at its own pace."""
        return self._request is not None

    def send(self, lines: list[bytes]) -> None:
        """Messages, as one piece, and at once where the connection allows it."""
        request = self._request
        if request is None:
            return
        if self._descriptor is None or not request.chunked:
            self._write(sse.message_events(lines))
            return
        if len(lines) == 1 and len(lines[0]) > AT_ONCE_BYTES and b"\r" not in lines[0]:
            pieces = sse.message_pieces(lines[0])
            self._descriptor.writeSequence(pieces)
            size = sum(map(len, pieces))
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
        """Nobody counts them: what passes here is not read."""
        return msgspec.UNSET

    def stop_keepalive(self) -> None:
        """No more pings, and no more looks at the client."""
        self._watch.stop()
        ping, self._ping = self._ping, None
        if ping is not None and ping.active():
            ping.cancel()

    def close(self) -> None:
        """Complete the response; the connection may be gone already."""
        request, self._request = self._request, None
        if request is None:
            return
        try:
            if request.channel is not None:
                request.channel.streaming = False
                request.unregisterProducer()
        finally:
            self._finished()

    def client_gone(self, how: str) -> str:
        """
        There is no connection any more: nothing can be written.  Returns why
        the session ends; `how` is what the transport says.
        """
        self._request = None
        return f"the client went away ({how})"

    # What the connection asks: IPushProducer.

    def pauseProducing(self) -> None:
        """The client does not keep up."""
        self._full = True
        self._session.pause_backend()

    def resumeProducing(self) -> None:
        """All that was written is taken."""
        self._full = False
        self._session.resume_backend()

    def stopProducing(self) -> None:
        """The connection ends; `notifyFinish` tells the rest."""

    # Keeping alive.

    def _write(self, data: bytes) -> None:
        request = self._request
        if request is not None:
            self._watch.wrote(len(data))
            request.write(data)

    def _next_ping(self) -> bytes:
        return sse.message_events([sse.ping_message(self._session.pings.next_number())])

    def _schedule_ping(self) -> None:
        self._ping = self._clock.callLater(self._settings.ping_interval, self._send_ping)

    def _send_ping(self) -> None:
        # Behind a full stream a ping would prove nothing, and wait.
        self._schedule_ping()
        if not self._full:
            self._write(self._next_ping())

    def _abort(self, reason: str) -> None:
        self._session.life.end(reason)
        abort = getattr(self._transport, "abortConnection", None)
        if abort is not None:
            abort()
