"""
The stream of the status: an event at once, and then one every `STATUS_SECONDS`.

Knows streams and those that are not read; must not know what is in the status.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.errors import TooManyStreams
from mcpbridge.guard import guarded
from mcpbridge.jsonrpc import sse
from mcpbridge.timers import Timer

#: The seconds between two events.
STATUS_SECONDS = 2.0
#: How many streams there may be.
ADMIN_STREAMS = 8
#: A stream ends whose client has read nothing for so many seconds.
ADMIN_STALLED_SECONDS = 30.0


@implementer(IPushProducer)
class EventStream:
    """
    The stream of one request.

    While its client does not keep up events are left out, so that one is buffered at most.
    """

    def __init__(self, request: Any, clock: IReactorTime) -> None:
        self._request = request
        self._paused = False
        self._timer = Timer(clock)

    def open(self) -> None:
        """Write the head of the response."""
        for name, value in sse.HEADERS:
            self._request.setHeader(name, value)
        self._request.registerProducer(self, True)

    def send(self, event: bytes) -> None:
        """Write an event, unless the client has not read those before."""
        if not self._paused:
            self._request.write(event)

    def close(self) -> None:
        """End the response."""
        self._timer.stop()
        self._request.unregisterProducer()
        self._request.finish()

    def lost(self) -> None:
        """Stop: the connection is lost."""
        self._timer.stop()

    def _stalled(self) -> None:
        self._request.channel.abort()

    # IPushProducer.

    def pauseProducing(self) -> None:
        """Leave out events; end the stream if that goes on."""
        if not self._paused:
            self._paused = True
            self._timer.start(ADMIN_STALLED_SECONDS, self._stalled)

    def resumeProducing(self) -> None:
        """Write events again."""
        self._paused = False
        self._timer.stop()

    def stopProducing(self) -> None:
        """Do nothing: the request tells of the end of its connection."""


class EventStreams:
    """
    All streams, which get the same events: `document` returns a Deferred of the status, which is
    asked for once for all of them, and only while there are any.
    """

    log = Logger()

    def __init__(self, document: Callable[[], Deferred[bytes]], clock: IReactorTime) -> None:
        self._document = document
        self._clock = clock
        self._timer = Timer(clock)
        #: In the order in which they were opened.
        self._streams: dict[EventStream, None] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, request: Any) -> None:
        """Answer a request with a stream.  Raises `TooManyStreams`."""
        if len(self._streams) >= ADMIN_STREAMS:
            raise TooManyStreams(
                f"{ADMIN_STREAMS} clients watch the status already (ADMIN_STREAMS); close one"
            )
        stream = EventStream(request, self._clock)
        self._streams[stream] = None
        # Neither the end of the response nor that of its connection needs more than this.
        request.notifyFinish().addBoth(self._ended, stream)
        stream.open()
        self._send_to([stream])
        if not self._timer.is_running:
            self._timer.start(STATUS_SECONDS, self._tick)

    def stop(self) -> None:
        """End all streams."""
        self._timer.stop()
        for stream in list(self._streams):
            guarded(self.log, "closing a stream", stream.close)

    def _ended(self, result: object, stream: EventStream) -> None:
        self._streams.pop(stream, None)
        stream.lost()
        if not self._streams:
            self._timer.stop()

    def _tick(self) -> None:
        self._timer.start(STATUS_SECONDS, self._tick)
        self._send_to(list(self._streams))

    def _send_to(self, streams: list[EventStream]) -> None:
        self._document().addCallbacks(
            self._write, self._failed, callbackArgs=(streams,), errbackArgs=(streams,)
        )

    def _write(self, document: bytes, streams: list[EventStream]) -> None:
        event = b"event: status\ndata: " + document + b"\n\n"
        for each in streams:
            if each in self._streams:
                guarded(self.log, "writing an event", each.send, event)

    def _failed(self, failure: Failure, streams: list[EventStream]) -> None:
        """The status has logged why; these streams wait for the next event."""
