"""
Round robin among connections that have more to serve than one quick request.

Knows connections and time; must not know requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.tuning import SLICE_REQUESTS, SLICE_SECONDS, TURN_SECONDS
from mcpbridge.guard import guarded


class Turn(Protocol):
    """A connection with pipelined requests, which are parsed slice by slice."""

    def serve_slice(self) -> None:
        """Serve the next request, and more while `FairTurns.may_go_on`."""

    def fail(self) -> None:
        """Close the connection: serving a request has raised."""


class FairTurns:
    """
    A queue of connections, served round robin in slices of a few requests.

    The reactor dispatches every readable descriptor before it polls again, so
    a read that holds thousands of pipelined requests delays everybody, and a
    read on each of forty connections forty times as much.  A connection
    therefore serves at once only the first request of what it has read, or,
    while the queue is empty, a slice: `SLICE_REQUESTS` for at most
    `SLICE_SECONDS`.  Then it joins this queue, which is served slice by slice
    from a delayed call, once in each iteration of the reactor, for
    `TURN_SECONDS` in all.  A client that sends one request at a time never
    joins it, and waits for about one turn.

    An ordinary request, which takes a tenth of a millisecond or more, begins at
    once only while such requests have not taken `TURN_SECONDS` since the last
    turn (`may_begin`): hundreds of clients may open or end their sessions
    within one iteration, and others are not to wait for all of them.

    The queue needs no bound of its own: a connection is in it once, and what
    it has read and not served is bounded by `PIPELINED_BYTES`.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, seconds: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        # Not the reactor's clock, which may stand still within an iteration.
        self._seconds = seconds
        self._waiting: OrderedDict[Turn, None] = OrderedDict()
        #: The next turn; None while the queue is empty, and within a turn.
        self._call: IDelayedCall | None = None
        self._running = False
        #: Whether no ordinary request was served in the turn that is running.
        self._is_first = False
        #: When the turn that is running ends.
        self._ends = 0.0
        #: Seconds that ordinary requests have taken since the last turn.
        self._taken = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def now(self) -> float:
        """Return the time at which a slice begins, for `may_go_on`."""
        return self._seconds()

    def may_go_on(self, served: int, began: float) -> bool:
        """
        Tell whether a connection may serve another request in its slice, which
        began at that time and has served so many.
        """
        return (
            (self._running or not self._waiting)
            and served < SLICE_REQUESTS
            and self._seconds() - began < SLICE_SECONDS
        )

    def may_begin(self) -> bool:
        """Tell whether an ordinary request may be served now; otherwise its connection joins."""
        if self._running:
            # The first of a turn always may: however slow the machine is, each turn serves one.
            is_first, self._is_first = self._is_first, False
            return is_first or self._seconds() < self._ends
        return self._taken < TURN_SECONDS

    def took(self, began: float) -> None:
        """Count the time of an ordinary request, which began at that time and is served."""
        if not self._running:
            self._taken += self._seconds() - began
            if self._taken >= TURN_SECONDS:
                self._run_soon()

    def join(self, connection: Turn) -> None:
        """Put a connection at the end of the queue."""
        self._waiting[connection] = None
        self._run_soon()

    def _run_soon(self) -> None:
        if self._call is None and not self._running:
            self._call = self._clock.callLater(0, self._run)

    def leave(self, connection: Turn) -> None:
        """Take a connection out of the queue, if it is there."""
        if connection in self._waiting:
            del self._waiting[connection]
            call = self._call
            if call is not None and not self._waiting:
                self._call = None
                call.cancel()

    def _run(self) -> None:
        """Serve slices in order, until `TURN_SECONDS` are over or the queue is empty."""
        self._call = None
        self._running = self._is_first = True
        self._taken = 0.0
        self._ends = self._seconds() + TURN_SECONDS
        try:
            while self._waiting:
                connection, _ = self._waiting.popitem(last=False)
                try:
                    connection.serve_slice()
                except Exception:
                    # As the reactor does with a connection whose `dataReceived` raises.
                    self.log.failure("serving a pipelined request failed", Failure())
                    guarded(self.log, "ending a connection", connection.fail)
                if self._seconds() >= self._ends:
                    break
        finally:
            self._running = False
            if self._waiting:
                self._call = self._clock.callLater(0, self._run)
