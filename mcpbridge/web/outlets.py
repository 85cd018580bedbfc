"""
HTTP responses of Streamable HTTP: what a stream's messages are written to.

JSON or server-sent events, decided when the first message is there (MCP,
basic/transports, "Sending Messages to the Server").  Knows requests and when
a client reads; must not know which message belongs where.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from mcpbridge.config import COMMIT_SECONDS, RETRY_MILLISECONDS, ServerSettings
from mcpbridge.protocol import sse
from mcpbridge.protocol.streams import Event
from mcpbridge.session.streamable import StreamableFace
from mcpbridge.web.sockets import notice_vanished_peer
from mcpbridge.web.watch import ClientWatch


@implementer(IPushProducer)
class ResponseOutlet:
    """
    One response, attached to one stream of a session.

    With `may_be_json` it is JSON when all that it gets is final; a silent
    request becomes an event stream after `COMMIT_SECONDS`, so that its
    connection is kept alive and the client has an event to come back to.
    `finished` is called once, when the response is complete.
    """

    def __init__(
        self,
        request: Any,
        face: StreamableFace,
        settings: ServerSettings,
        clock: IReactorTime,
        finished: Callable[[], None],
        *,
        may_be_json: bool,
        batch: bool = False,
    ) -> None:
        self._request = request
        self._face = face
        self._settings = settings
        self._clock = clock
        self._finished = finished
        self._may_be_json = may_be_json
        self._batch = batch
        self._streaming = False
        self._timer: IDelayedCall | None = None
        self._watch = ClientWatch(
            clock,
            getattr(request, "transport", None),
            settings.peer_timeout,
            self._abort,
        )
        #: The stream that it is attached to, and the event before its first.
        self.stream = ""
        self.position = 0

    def opened(self, stream: str, position: int = 0, patience: float = COMMIT_SECONDS) -> None:
        """It is attached; an event stream begins at once, what may be JSON after `patience`."""
        self.stream = stream
        self.position = position
        if self._request is None or self._streaming:
            return
        if not self._may_be_json:
            self._begin()
        elif not self._settings.json_response:
            self._timer = self._clock.callLater(patience, self._commit)

    def gone(self) -> None:
        """The connection is lost."""
        self._request = None
        self._stop()

    # What the router asks: Outlet.

    def send(self, events: list[Event], final: bool) -> None:
        """Messages of the stream."""
        if self._request is None:
            return
        if not self._streaming and self._may_be_json and final and self._fits_json(events):
            self._write_json([event.line for event in events])
            return
        if not self._streaming:
            self._begin(events[0].ident)
        self._write(b"".join(sse.identified_event(each.ident, each.line) for each in events))
        if final:
            self.end()

    def end(self) -> None:
        """The stream is over; where there was nothing on it, the answer says so."""
        request = self._request
        if request is not None and not self._streaming:
            # Not as events: a client would come back to them again and again.
            # A cancelled request was accepted; of a stream that is over and
            # was read, `No Content` ends a client's reconnecting (WHATWG
            # HTML, section 9.2.2).
            request.setResponseCode(202 if self._may_be_json else 204)
            if self._may_be_json:
                request.setHeader(b"Content-Length", b"0")
        self._finish()

    def displaced(self) -> None:
        """Another connection has the stream."""
        self.end()

    # What the connection asks: IPushProducer.

    def pauseProducing(self) -> None:
        """The client does not keep up."""
        self._face.pause(self)

    def resumeProducing(self) -> None:
        """It does again."""
        self._face.resume(self)

    def stopProducing(self) -> None:
        """The connection ends; `notifyFinish` tells the rest."""

    # Writing.

    def _fits_json(self, events: list[Event]) -> bool:
        return len(events) == 1 or self._settings.json_response

    def _write_json(self, lines: list[bytes]) -> None:
        request = self._request
        body = b"[" + b",".join(lines) + b"]" if self._batch else lines[0]
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        self._finish()

    def _commit(self) -> None:
        if not self._streaming and self._request is not None:
            self._begin()

    def _begin(self, first: str = "") -> None:
        """The head of an event stream, and where the revision has one the priming event."""
        self._cancel_timer()
        self._streaming = True
        request = self._request
        for name, value in sse.HEADERS:
            request.setHeader(name, value)
        notice_vanished_peer(request.transport, self._settings.peer_timeout)
        if request.channel is not None:
            request.channel.streaming = True
        request.registerProducer(self, True)
        self._watch.start()
        stream, _, number = first.partition("-")
        before = f"{stream}-{int(number) - 1}" if number else f"{self.stream}-{self.position}"
        primes = self._face.revision.primes and self._face.negotiated is not None
        self._write(sse.priming_event(before, RETRY_MILLISECONDS) if primes else sse.comment())
        self._keep_alive_later()

    def _keep_alive_later(self) -> None:
        if self._settings.keepalive_interval:
            self._timer = self._clock.callLater(self._settings.keepalive_interval, self._keep_alive)

    def _keep_alive(self) -> None:
        self._keep_alive_later()
        self._write(sse.comment())

    def _write(self, data: bytes) -> None:
        request = self._request
        if request is not None:
            self._watch.wrote(len(data))
            request.write(data)

    def _finish(self) -> None:
        request, self._request = self._request, None
        self._stop()
        if request is None:
            return
        try:
            if request.channel is not None and self._streaming:
                request.channel.streaming = False
                request.unregisterProducer()
        finally:
            self._finished()

    def _stop(self) -> None:
        self._cancel_timer()
        self._watch.stop()
        self._face.resume(self)
        # From now on the session may be idle.
        self._face.touch()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _abort(self) -> None:
        """The client takes nothing: this connection ends, the session lives."""
        request = self._request
        abort = getattr(getattr(request, "transport", None), "abortConnection", None)
        if abort is not None:
            abort()
