"""
Readers of the bodies of responses: events, one message in JSON, or a text that is not wanted.

Each has a bound, can be paused, and reports its end once.  Knows HTTP's bodies; must not
know what a message means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from mcpbridge.config.tuning import ENDLESS_FACTOR, SMALL_BYTES
from mcpbridge.jsonrpc.event_parser import Event, EventParser
from mcpbridge.jsonrpc.oversized import END_BYTES, Oversized
from mcpbridge.jsonrpc.pieces import Pieces
from mcpbridge.remote.problems import RemoteError
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.timers import Timer

#: How much is read of a body that only explains an error, and for how long.
ERROR_BODY_BYTES = 64 * 1024
ERROR_BODY_SECONDS = 5.0


class Reading(Protocol):
    """All bodies that a session reads: what pauses them together."""

    def begun(self, body: BodyReader) -> None:
        """Note that a body is read, and pause it if the session is paused."""

    def ended(self, body: BodyReader) -> None:
        """Note that a body has come to its end."""

    @property
    def is_paused(self) -> bool:
        """Whether no body is to be read now."""
        ...


class BodyReader(TwistedProtocol):
    """
    The base of all readers.

    `over` is called once: with None at the end of a complete body, or with why it is not
    complete; not after `drop`.  `heard` is called for each piece.
    """

    transport: Any

    def __init__(
        self,
        reading: Reading,
        over: Callable[[Failure | None], None],
        heard: Callable[[], None],
        budget: ResponseBudget | None = None,
    ) -> None:
        self._reading = reading
        self._over = over
        self._heard = heard
        self._budget = budget
        #: The bytes of an unfinished message that are counted in the budget.
        self._counted = 0
        self._held = False
        self._is_over = False

    def read(self, response: Any) -> None:
        """Read the body of a response."""
        response.deliverBody(self)
        if not self._is_over:
            self._reading.begun(self)

    def dataReceived(self, data: bytes) -> None:
        """Take a piece."""
        if not self._is_over:
            self._heard()
            self.received(data)

    def received(self, data: bytes) -> None:
        """Take a piece: that of a subclass."""
        raise NotImplementedError

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        """Report the end."""
        complete = reason.check(ResponseDone, PotentialDataLoss) is not None
        self._end(None if complete else reason)

    def fail(self, text: str) -> None:
        """Give the body up, for this reason."""
        self._end(Failure(RemoteError(text)))
        self._lose()

    def drop(self) -> None:
        """Give the body up without a word: nobody wants it any more."""
        if not self._is_over:
            self._is_over = True
            self._let_go()
            self._lose()

    def _end(self, failure: Failure | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._let_go()
            self._over(failure)

    def _let_go(self) -> None:
        self.count(0)
        self._reading.ended(self)

    def _lose(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    # Flow control.

    @property
    def is_held(self) -> bool:
        """Whether it waits for room in the budget."""
        return self._held

    def pause(self) -> None:
        """Leave the rest in the connection."""
        if not self._is_over and self.transport is not None:
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read the rest, unless the budget is full."""
        if not self._is_over and not self._held and self.transport is not None:
            self.transport.resumeProducing()

    def count(self, waiting: int) -> None:
        """Count an unfinished message in the budget if it is large; wait if that is full."""
        budget = self._budget
        waiting = waiting if waiting > SMALL_BYTES else 0
        if budget is None or waiting == self._counted:
            return
        more, self._counted = waiting - self._counted, waiting
        if more > 0:
            budget.take(more)
        else:
            budget.give_back(-more)
        if not waiting:
            budget.wrote(self)
            self._held = False
        elif budget.hold(self):
            self._held = True
            self.pause()

    def go_on(self) -> None:
        """Read the rest of a large message: the budget has room for it."""
        self._held = False
        # The server could not be heard until now.
        self._heard()
        if not self._reading.is_paused:
            self.resume()


class EventReader(BodyReader):
    """Reads server-sent events of up to `limit` bytes; `events` takes them."""

    def __init__(
        self,
        reading: Reading,
        over: Callable[[Failure | None], None],
        heard: Callable[[], None],
        budget: ResponseBudget | None,
        limit: int,
        events: Callable[[list[Event]], None],
    ) -> None:
        super().__init__(reading, over, heard, budget)
        self._limit = limit
        self._events = events
        self.parser = EventParser(limit)

    def received(self, data: bytes) -> None:
        """Pass on the events that are complete."""
        events = self.parser.receive(data)
        self.count(self.parser.waiting)
        if self.parser.skipped > self._limit * ENDLESS_FACTOR:
            self.fail("sent an event without end")
        elif events:
            self._events(events)


class MessageReader(BodyReader):
    """Reads one message of up to `limit` bytes; of a larger one only `oversized` is kept."""

    def __init__(
        self,
        reading: Reading,
        over: Callable[[Failure | None], None],
        heard: Callable[[], None],
        budget: ResponseBudget | None,
        limit: int,
    ) -> None:
        super().__init__(reading, over, heard, budget)
        self._limit = limit
        self._pieces = Pieces()
        self._size = 0
        self._head = self._tail = b""

    @property
    def body(self) -> bytes:
        """The whole body, if it is not too large."""
        return self._pieces.join()

    @property
    def oversized(self) -> Oversized | None:
        """The ends of a body that is too large; None for any other."""
        if self._size <= self._limit:
            return None
        return Oversized(self._head, self._tail, self._size)

    def received(self, data: bytes) -> None:
        """Keep a piece, or only the ends of what is too large."""
        self._size += len(data)
        if self._size <= self._limit:
            self._pieces.add(data)
            self.count(self._pieces.size)
            return
        if not self._head:
            kept = self._pieces.join() + data
            self._head, data = kept[:END_BYTES], kept
            self._pieces.clear()
            self.count(0)
        self._tail = (self._tail + data[-END_BYTES:])[-END_BYTES:]
        if self._size > self._limit * ENDLESS_FACTOR:
            self.fail("sent a message without end")


class TextReader(BodyReader):
    """
    Reads what explains an error, up to `ERROR_BODY_BYTES` and `ERROR_BODY_SECONDS`.

    What has come by then is taken for all.
    """

    def __init__(
        self,
        reading: Reading,
        over: Callable[[Failure | None], None],
        heard: Callable[[], None],
        clock: IReactorTime,
    ) -> None:
        super().__init__(reading, over, heard)
        self._pieces = Pieces()
        self._timer = Timer(clock)
        self._timer.start(ERROR_BODY_SECONDS, self._finish)

    @property
    def body(self) -> bytes:
        """What has been read."""
        return self._pieces.join()

    def received(self, data: bytes) -> None:
        """Keep a piece, and read no more than is wanted."""
        self._pieces.add(data[: ERROR_BODY_BYTES - self._pieces.size])
        if self._pieces.size == ERROR_BODY_BYTES:
            self._finish()

    def _finish(self) -> None:
        self._end(None)
        self._lose()

    def _let_go(self) -> None:
        self._timer.stop()
        super()._let_go()
