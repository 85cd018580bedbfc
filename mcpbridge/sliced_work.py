"""
Work that is done in slices, a little in each turn of the reactor, so that
others are served in between.

Knows time; must not know what the work is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import CooperativeTask, Cooperator, TaskStopped
from twisted.python.failure import Failure

from mcpbridge.config.tuning import LARGE_TURN_SECONDS
from mcpbridge.errors import Refused, without_frames
from mcpbridge.jsonrpc.sliced_parser import Slices

Found = TypeVar("Found")


class SlicedWork:
    """
    Does all the work that it is given, in turns of `LARGE_TURN_SECONDS`; each gets
    a slice, one after the other.  A thread would not help: what the work is
    done with holds the interpreter's lock.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float] = monotonic) -> None:
        def turn() -> Callable[[], bool]:
            end = now() + LARGE_TURN_SECONDS
            return lambda: now() >= end

        def soon(work: Callable[[], None]) -> IDelayedCall:
            return clock.callLater(0, work)

        self._clock = clock
        self._now = now
        self._tasks = Cooperator(terminationPredicateFactory=turn, scheduler=soon)
        #: How long what was done at once has taken in this turn of the reactor.
        self._taken: float | None = None

    def at_once(self, work: Callable[[], Found]) -> Found | None:
        """
        Do some work now, which must take less than a turn, and return its
        result.  Once such work has taken half of `LARGE_TURN_SECONDS` in a turn
        of the reactor, returns None and does nothing.
        """
        if self._taken is None:
            self._taken = 0.0
            self._clock.callLater(0, self._next_turn)
        if self._taken >= LARGE_TURN_SECONDS / 2:
            return None
        began = self._now()
        found = work()
        self._taken += self._now() - began
        return found

    def _next_turn(self) -> None:
        self._taken = None

    def do(self, slices: Slices[Found]) -> Deferred[Found]:
        """
        The result of some work, or its error.  Cancelled, it is not gone on with.
        """
        found: list[Found] = []
        refused: list[Refused] = []

        def run() -> Iterator[None]:
            try:
                found.append((yield from slices))
            except Refused as refusal:
                # With its traceback, the task would hold all that was read.
                refused.append(without_frames(refusal))

        def finished(_: object) -> None:
            if refused:
                done.errback(refused.pop())
            else:
                done.callback(found.pop())

        def cancel(_: Deferred[Found]) -> None:
            task.stop()

        def failed(failure: Failure) -> None:
            # Who has cancelled it is told so by the Deferred itself.
            if failure.check(TaskStopped) is None:
                done.errback(failure)

        task: CooperativeTask[Iterator[None]] = self._tasks.cooperate(run())
        done: Deferred[Found] = Deferred(cancel)
        task.whenDone().addCallbacks(finished, failed)
        return done
