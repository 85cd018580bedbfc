"""
Whose turn it is among connections that have more than one request to serve.

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
    """A connection with requests that have arrived and are not served."""

    def serve_slice(self) -> None:
        """Serve the next request, and more while `FairTurns.may_go_on`."""

    def fail(self) -> None:
        """Serving it has raised: end the connection."""


class FairTurns:
    """
    A queue of connections, served round robin in slices of a few requests.

    The reactor dispatches every readable descriptor before it polls again, so
    a read that holds thousands of pipelined requests delays everybody, and a
    read on each of forty connections forty times as much.  A connection
    therefore serves at once only the first request of what it has read, or,
    while nobody waits, a slice: `SLICE_REQUESTS` for at most `SLICE_SECONDS`.
    Then it joins this queue, which is served slice by slice from a delayed
    call, once an iteration of the reactor, for `TURN_SECONDS` in all.  Whoever
    sends one request at a time never joins it, and waits for about one turn.

    The queue needs no bound of its own: a connection is in it once, and what
    it has read and not served is bounded by `PIPELINED_BYTES`.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, seconds: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        # Not the clock's: it may stand still within an iteration of the reactor.
        self._seconds = seconds
        self._waiting: OrderedDict[Turn, None] = OrderedDict()
        #: Set while somebody waits, but not within a turn.
        self._call: IDelayedCall | None = None
        self._running = False

    def __len__(self) -> int:
        return len(self._waiting)

    def now(self) -> float:
        """When a slice begins, for `may_go_on`."""
        return self._seconds()

    def may_go_on(self, served: int, began: float) -> bool:
        """
        Whether a connection may serve another request in its slice, which
        began then and has served so many.
        """
        return (
            (self._running or not self._waiting)
            and served < SLICE_REQUESTS
            and self._seconds() - began < SLICE_SECONDS
        )

    def join(self, connection: Turn) -> None:
        """Go to the back of the queue."""
        self._waiting[connection] = None
        if self._call is None and not self._running:
            self._call = self._clock.callLater(0, self._run)

    def leave(self, connection: Turn) -> None:
        """Have no more to serve, or be gone.  Does nothing for one that is not in the queue."""
        if connection in self._waiting:
            del self._waiting[connection]
            call = self._call
            if call is not None and not self._waiting:
                self._call = None
                call.cancel()

    def _run(self) -> None:
        """One turn: slices in order, until the time is over or nobody waits."""
        self._call = None
        self._running = True
        ends = self._seconds() + TURN_SECONDS
        try:
            while self._waiting:
                connection, _ = self._waiting.popitem(last=False)
                try:
                    connection.serve_slice()
                except Exception:
                    # As the reactor does with a connection whose `dataReceived` raises.
                    self.log.failure("serving a pipelined request failed", Failure())
                    guarded(self.log, "ending a connection", connection.fail)
                if self._seconds() >= ends:
                    break
        finally:
            self._running = False
            if self._waiting:
                self._call = self._clock.callLater(0, self._run)
