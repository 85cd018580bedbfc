"""
One HTTP response that is JSON or a stream of server-sent events, whichever it
turns out to be.

Knows requests and when a client reads; must not know what it is told, nor
whose messages they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge.config.settings import ServerSettings
from mcpbridge.jsonrpc import sse
from mcpbridge.response_budget import Share
from mcpbridge.web.client_watch import ClientWatch
from mcpbridge.web.tcp import notice_vanished_peer


@implementer(IPushProducer)
class Response:
    """
    A response that nobody has begun yet.

    `paused` and `resumed` are called as the client keeps up or does not;
    `finished` once, when the response is complete; `over` when it is complete
    or its connection is lost.  A client that takes no byte for `peer_timeout`
    while data waits for it, or less than `min_transfer_rate`, is cut off; once
    the response is complete, by the connection itself.
    """

    log = Logger()

    def __init__(
        self,
        request: Any,
        settings: ServerSettings,
        clock: IReactorTime,
        *,
        finished: Callable[[], None],
        paused: Callable[[], None],
        resumed: Callable[[], None],
        over: Callable[[], None],
        share: Share | None = None,
    ) -> None:
        self.request = request
        if share is not None and request.channel is not None:
            # What is not taken counts, where the connection is one of the bridge's own.
            request.channel.share = share
        self.streaming = False
        #: Bytes of the event stream after its head, as they are on the wire.
        self.written = 0
        self._settings = settings
        self._clock = clock
        self._finished = finished
        self._paused = paused
        self._resumed = resumed
        self._over = over
        self._timer: IDelayedCall | None = None
        self._watch = ClientWatch(
            clock,
            getattr(request, "transport", None),
            settings.peer_timeout,
            settings.min_transfer_rate,
            self._cut_off,
        )

    def begin_after(self, patience: float, begin: Callable[[], None]) -> None:
        """Call that and nothing else, unless something is written before."""
        self._cancel_timer()
        self._timer = self._clock.callLater(patience, begin)

    def begin(self, first: bytes) -> None:
        """The head of an event stream, and what comes first on it."""
        self._cancel_timer()
        self.streaming = True
        request = self.request
        for name, value in sse.HEADERS:
            request.setHeader(name, value)
        notice_vanished_peer(request.transport, self._settings.peer_timeout)
        if request.channel is not None:
            request.channel.streaming = True
        request.registerProducer(self, True)
        self._watch.start()
        self.write(first)
        self._keep_alive_later()

    def write(self, data: bytes) -> None:
        """Events."""
        request = self.request
        if request is not None:
            size = len(data)
            # With what frames a chunk: its size in hexadecimal digits, and two line ends.
            self.written += size + (size.bit_length() + 3) // 4 + 4
            self._watch.wrote(size)
            request.write(data)

    def write_json(self, body: bytes, status: int = 200) -> None:
        """All of the response."""
        request = self.request
        if status != 200:
            request.setResponseCode(status)
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        self.finish()

    def finish(self) -> None:
        """The response is complete."""
        request, self.request = self.request, None
        self._stop()
        if request is None:
            return
        try:
            if request.channel is not None and self.streaming:
                request.channel.streaming = False
                request.unregisterProducer()
        finally:
            self._finished()

    def gone(self) -> None:
        """The connection is lost."""
        self.request = None
        self._stop()

    def abort(self) -> None:
        """The client takes nothing: its connection ends."""
        abort = getattr(getattr(self.request, "transport", None), "abortConnection", None)
        if abort is not None:
            abort()

    def _cut_off(self, reason: str) -> None:
        self.log.info("closing a connection: {reason}", reason=reason)
        self.abort()

    # What the connection asks: IPushProducer.

    def pauseProducing(self) -> None:
        """The client does not keep up."""
        self._watch.arm()
        self._paused()

    def resumeProducing(self) -> None:
        """It does again."""
        self._resumed()

    def stopProducing(self) -> None:
        """The connection ends; `notifyFinish` tells the rest."""

    # Keeping alive.

    def _keep_alive_later(self) -> None:
        if self._settings.keepalive_interval and self.request is not None:
            self._timer = self._clock.callLater(self._settings.keepalive_interval, self._keep_alive)

    def _keep_alive(self) -> None:
        self._keep_alive_later()
        self.write(sse.comment())

    def _stop(self) -> None:
        self._cancel_timer()
        self._watch.stop()
        self._over()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
