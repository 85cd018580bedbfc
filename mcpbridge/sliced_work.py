"""
Do long work in slices, a little in each iteration of the reactor, so that
other clients are served in between.

Knows time; does not know what the work is.
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
    Shares `LARGE_TURN_SECONDS` of each iteration of the reactor among pieces of work.

    The pieces get a slice each, in turn.  A thread would not help: parsing
    JSON holds the interpreter's lock.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float] = monotonic) -> None:
        def iteration() -> Callable[[], bool]:
            end = now() + LARGE_TURN_SECONDS
            return lambda: now() >= end

        def next_iteration(work: Callable[[], None]) -> IDelayedCall:
            return clock.callLater(0, work)

        self._clock = clock
        self._now = now
        self._tasks = Cooperator(terminationPredicateFactory=iteration, scheduler=next_iteration)
        #: Seconds that `at_once` has used in this iteration; None before its first call.
        self._taken: float | None = None

    def at_once(self, work: Callable[[], Found]) -> Found | None:
        """
        Call `work` now and return its result; it must take only a moment.

        Returns None without calling it if such calls have used half of
        `LARGE_TURN_SECONDS` in this iteration of the reactor: then use `do`.
        """
        if self._taken is None:
            self._taken = 0.0
            self._clock.callLater(0, self._iteration_over)
        if self._taken >= LARGE_TURN_SECONDS / 2:
            return None
        began = self._now()
        found = work()
        self._taken += self._now() - began
        return found

    def _iteration_over(self) -> None:
        self._taken = None

    def do(self, slices: Slices[Found]) -> Deferred[Found]:
        """
        Return a `Deferred` of the result of some work, which fails with what it raises.

        Cancelling the Deferred ends the work.
        """
        found: list[Found] = []
        refused: list[Refused] = []

        def run() -> Iterator[None]:
            try:
                found.append((yield from slices))
            except Refused as refusal:
                # Its traceback would keep everything alive that was parsed so far.
                refused.append(without_frames(refusal))

        def finished(_: object) -> None:
            if refused:
                done.errback(refused.pop())
            else:
                done.callback(found.pop())

        def cancel(_: Deferred[Found]) -> None:
            task.stop()

        def failed(failure: Failure) -> None:
            # After a cancellation the Deferred has failed already.
            if failure.check(TaskStopped) is None:
                done.errback(failure)

        task: CooperativeTask[Iterator[None]] = self._tasks.cooperate(run())
        done: Deferred[Found] = Deferred(cancel)
        task.whenDone().addCallbacks(finished, failed)
        return done
