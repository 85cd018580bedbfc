"""
The answer to a plain request of Streamable HTTP, most often one message.

Waits for it without a request object of twisted.web; where it turns out that
more than one message is to be written, the ordinary channel is handed a
request to write to.  Knows one stream of a session; must not know sockets.
"""

from __future__ import annotations

from collections.abc import Callable

from mcpbridge.mcp.stream_events import Event, StreamSink
from mcpbridge.session.streamable import StreamableSession


class PendingResponse:
    """
    Stands in for a response until the first message is there.

    `answer` is called with a body that is all of the answer; `hand_over` when
    an ordinary response has to take its place, which it does by `take_over`
    before that returns.
    """

    def __init__(
        self,
        streamable: StreamableSession,
        answer: Callable[[bytes], None],
        hand_over: Callable[[], None],
    ) -> None:
        self.streamable = streamable
        self.stream = ""
        self._answer = answer
        self._hand_over = hand_over
        self._response: StreamSink | None = None

    def take_over(self, response: StreamSink) -> None:
        """What the router says from now on is for this response."""
        self._response = response

    def detach(self) -> None:
        """The connection is gone."""
        self.streamable.router.detach(self.stream, self)
        # From now on the session may be idle.
        self.streamable.touch()

    # What the router asks: Outlet.

    @property
    def takes_events(self) -> bool:
        """As its response does; a plain request accepts both."""
        return self._response is None or self._response.takes_events

    def answer(self, line: bytes) -> bool:
        """The answer, at once."""
        if self._response is not None:
            return self._response.answer(line)
        self._answer(line)
        return True

    def send(self, events: list[Event], final: bool) -> None:
        """The first of several messages, or an error at the session's end."""
        if self._response is None and final and len(events) == 1:
            self._answer(events[0].line)
        else:
            self._ordinary().send(events, final)

    def end(self) -> None:
        """Nothing more comes."""
        self._ordinary().end()

    def unwritten(self) -> int:
        """It carries no GET stream."""
        return 0

    def displaced(self) -> None:
        """Another connection has the stream."""
        self._ordinary().displaced()

    def _ordinary(self) -> StreamSink:
        if self._response is None:
            self._hand_over()
        if self._response is None:
            # The connection was lost meanwhile.
            self._response = _Nowhere()
        return self._response


class _Nowhere:
    """A response that nobody reads."""

    takes_events = False

    def answer(self, line: bytes) -> bool:
        """It is kept for whoever comes back."""
        return False

    def send(self, events: list[Event], final: bool) -> None:
        """Lost, but for the store."""

    def end(self) -> None:
        """Nothing to end."""

    def unwritten(self) -> int:
        """Nothing is written."""
        return 0

    def displaced(self) -> None:
        """Nothing to end."""
