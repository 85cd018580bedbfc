"""
The stream on which a legacy server sends what belongs to no request (GET, 2025-03-26 and
later, basic/transports, "Listening for Messages from the Server").

Where it breaks, it is opened again after a pause, with `Last-Event-ID`; at once for the
first time, since a broken stream is how the death of a server shows.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.tuning import RETRY_MILLISECONDS
from mcpbridge.jsonrpc.envelope import Envelope
from mcpbridge.jsonrpc.event_parser import Event
from mcpbridge.jsonrpc.malformed_output import too_large
from mcpbridge.remote.bodies import EventReader
from mcpbridge.remote.calls import MIN_RETRY_SECONDS, retry_seconds
from mcpbridge.remote.context import EVENTS, Context, content_type, header_of, read_text
from mcpbridge.remote.problems import CannotConnect
from mcpbridge.remote.responses import ErrorBody, envelopes_of, message_line
from mcpbridge.timers import Timer, backoff

#: How often the stream is opened in vain, one time after the other; then the server has none.
LISTEN_TRIES = 8
#: The longest pause between two streams that bring nothing.
LONGEST_PAUSE_SECONDS = 30.0


class ListeningOwner(Protocol):
    """The transport that the stream belongs to."""

    def session_headers(self) -> dict[str, str]:
        """Return the headers that name the session and its revision."""
        ...

    def from_listening(self, envelopes: list[Envelope]) -> bool:
        """Note answers that come on this stream; return False if nobody waits for one."""
        ...

    def stream_refused(self, error: ErrorBody, location: str) -> bool:
        """End the session if the status means that; return whether it does."""
        ...

    def stream_unreachable(self, why: str) -> bool:
        """End the session, as there is no connection, if that means that; return whether."""
        ...

    def no_stream(self) -> None:
        """Note that the server has no such stream, or not any more."""


class Listening:
    """The GET stream of one session."""

    log = Logger()

    def __init__(self, owner: ListeningOwner, context: Context) -> None:
        self._owner = owner
        self._context = context
        self._asking: Deferred[Any] | None = None
        self._reader: EventReader | None = None
        self._timer = Timer(context.clock)
        self._pause = backoff(RETRY_MILLISECONDS / 1000, LONGEST_PAUSE_SECONDS)
        self._last_id = b""
        self._retry: int | None = None
        #: How many streams in a row have brought nothing; and how many of these were refused.
        self._idle_streams = self._failures = 0
        self._was_open = self._is_over = False

    @property
    def is_open(self) -> bool:
        """Whether the server has such a stream, as far as is known."""
        return not self._is_over

    @property
    def is_connected(self) -> bool:
        """Whether a stream is open now."""
        return self._reader is not None

    def open(self) -> None:
        """Open the stream."""
        headers = {"Accept": EVENTS, **self._owner.session_headers()}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id.decode("latin-1")
        target = self._context.server.target
        asking = self._context.client.request("GET", target, headers)
        # It may have failed already.
        self._asking = asking
        asking.addCallbacks(self._responded, self._failed)
        asking.addErrback(self._defect)

    def _defect(self, failure: Failure) -> None:
        self.log.failure("listening to a remote server failed", failure)
        self._give_up()

    def _failed(self, failure: Failure) -> None:
        self._asking = None
        if self._is_over:
            return
        if not failure.check(CannotConnect):
            self._try_later()
        elif not self._owner.stream_unreachable(str(failure.value)):
            # If the server is gone, all that is connected breaks very soon.
            self._try_later(soon=True)

    def _try_later(self, *, soon: bool = False) -> None:
        self._failures += 1
        if self._failures >= LISTEN_TRIES:
            what = "the remote server does not let the bridge listen; what it sends may be missing"
            self._context.reports.misbehaved("listening", what)
            self._give_up()
        else:
            first = soon and self._failures == 1
            pause = MIN_RETRY_SECONDS if first else self._pause(self._failures)
            self._timer.start(pause, self.open)

    def _responded(self, response: Any) -> None:
        self._asking = None
        if self._is_over:
            return
        status = response.code
        if status == 200 and content_type(response) == EVENTS:
            self._was_open = True
            context = self._context
            self._reader = EventReader(
                context.bodies, self._ended, _nothing, context.budget, context.limit, self._events
            )
            self._reader.read(response)
            return
        where = header_of(response, b"Location")
        read_text(
            response, self._context, lambda body: self._refused(ErrorBody(status, body), where)
        )

    def _refused(self, error: ErrorBody, location: str) -> None:
        if self._is_over:
            return
        # Some servers without such a stream answer 404 where they should answer 405.  So the
        # session is over only where there has been a stream.
        if self._was_open and self._owner.stream_refused(error, location):
            return
        if error.status >= 500 or error.status in (409, 429):
            self._try_later()
        elif self._last_id:
            # It does not know the event: begin anew.
            self._last_id = b""
            self._try_later()
        else:
            # Most often 405: the server has no such stream.
            self._give_up()

    def _events(self, events: list[Event]) -> None:
        self._failures = 0
        lines: list[bytes] = []
        reports = self._context.reports
        for event in events:
            if event.oversized is not None:
                reports.message_lost(too_large(event.oversized))
            elif event.name == b"message" and event.data:
                line = message_line(event.data)
                envelopes = None if line is None else envelopes_of(line)
                if line is None or envelopes is None:
                    what = "the remote server sent an event that is not a message"
                    reports.misbehaved("event", what)
                elif self._owner.from_listening(envelopes):
                    lines.append(line)
        if lines:
            self._idle_streams = 0
            reports.messages_received(lines)

    def _ended(self, failure: Failure | None) -> None:
        reader, self._reader = self._reader, None
        if self._is_over:
            return
        assert reader is not None
        self._last_id = reader.parser.last_id or self._last_id
        if reader.parser.retry is not None:
            self._retry = reader.parser.retry
        if failure is not None and not self._idle_streams:
            pause = 0.0
        elif self._retry is not None:
            pause = retry_seconds(self._retry)
        else:
            pause = self._pause(self._idle_streams)
        self._idle_streams += 1
        self._timer.start(pause, self.open)

    def _give_up(self) -> None:
        self.drop()
        self._owner.no_stream()

    def drop(self) -> None:
        """Listen no more."""
        self._is_over = True
        self._timer.stop()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.drop()


def _nothing() -> None:
    """Do nothing: this stream owes no message."""
