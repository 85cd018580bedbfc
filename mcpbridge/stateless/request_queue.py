"""
Stateless requests that wait: for a process, or for one of them to start what
all of them need.

Knows order, number and time; must not know what they wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from math import inf
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.errors import BridgeError, ServerBusy, ShuttingDown
from mcpbridge.processes.waiters import Waiters

T = TypeVar("T")


class Ticket:
    """A request's place in the queue, which it keeps until it has a process."""

    #: When it began to wait; infinity as long as it has not.
    since = inf

    def is_behind(self, others: Iterable[Ticket]) -> bool:
        """Return whether one of the others began to wait before."""
        return any(each.since <= self.since for each in others)


class RequestQueue:
    """
    Requests that wait for a process, longest waiting first.

    At most `limit` of them wait, each for at most `timeout` seconds.
    """

    def __init__(self, clock: IReactorTime, limit: int, timeout: float) -> None:
        self._clock = clock
        self._limit = limit
        self._timeout = timeout
        self._waiting: dict[Deferred[None], tuple[float, Callable[[], bool]]] = {}
        self._stopped = False
        self._waking = False
        self._wake_again = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, ticket: Ticket, may_proceed: Callable[[], bool]) -> None:
        """
        Return when there may be a process: `may_proceed` is asked after each
        change.  A request that waits again keeps its place and its deadline.

        Raises `ServerBusy` where too many wait or the time is over, and
        `ShuttingDown`.
        """
        if self._stopped:
            raise _stopping()
        now = self._clock.seconds()
        if ticket.since == inf:
            if len(self._waiting) >= self._limit:
                raise ServerBusy("all processes are at work, and as many requests wait as may")
            ticket.since = now
        turn: Deferred[None] = Deferred()
        self._waiting[turn] = ticket.since, may_proceed
        turn.addTimeout(max(0.0, ticket.since + self._timeout - now), self._clock)
        try:
            await turn
        except defer.TimeoutError:
            raise ServerBusy(f"all processes have been at work for {self._timeout:g} s") from None
        finally:
            self._waiting.pop(turn, None)

    def wake(self) -> None:
        """
        Let every request proceed for which there may be a process now, the
        longest waiting first.  Called from within itself, it starts over.
        """
        self._wake_again = True
        if self._waking:
            return
        self._waking = True
        try:
            while self._wake_again:
                self._wake_again = False
                self._wake_once()
        finally:
            self._waking = False

    def _wake_once(self) -> None:
        # A request that waits for the second time is at the end of the
        # dictionary, and may have waited longest.
        for turn, (_, may_proceed) in sorted(self._waiting.items(), key=lambda each: each[1][0]):
            if turn in self._waiting and may_proceed():
                del self._waiting[turn]
                turn.callback(None)

    def stop(self) -> None:
        """Fail all that wait with `ShuttingDown`."""
        self._stopped = True
        waiting, self._waiting = self._waiting, {}
        for turn in waiting:
            turn.errback(_stopping())


def _stopping() -> ShuttingDown:
    return ShuttingDown("the bridge is shutting down")


class SingleFlight:
    """
    Lets one of several requests do what all of them need, while at most
    `limit` others wait until it is done.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy = False
        self._waiters = Waiters()

    async def is_first(self) -> bool:
        """
        Return True to the request that is to do it, and to call `done`; and
        False to the others, after that call.  Raises `ServerBusy`.
        """
        if not self._busy:
            self._busy = True
            return True
        if len(self._waiters) >= self._limit:
            raise ServerBusy("a process is being started, and as many requests wait as may")
        await self._waiters.wait()
        return False

    def done(self) -> None:
        """It is done, or has failed: whoever still needs it tries next."""
        self._busy = False
        for turn in self._waiters.take():
            turn.callback(None)


_log = Logger()


async def shielded(
    work: Coroutine[Deferred[Any], Any, T],
    unclaimed: Callable[[T], object],
    failed_unclaimed: Callable[[BridgeError], object] = lambda _: None,
) -> T:
    """
    Await work that goes on when the caller is cancelled, since others have a
    use for it.

    Then `unclaimed` is called with its result, or `failed_unclaimed` with the
    `BridgeError` that it raised.  Raises what the work raises.
    """
    waiting: Deferred[T] = Deferred()

    def done(result: T) -> None:
        if waiting.called:
            unclaimed(result)
        else:
            waiting.callback(result)

    def failed(failure: Failure) -> None:
        if not waiting.called:
            waiting.errback(failure)
        elif isinstance(failure.value, BridgeError):
            failed_unclaimed(failure.value)
        else:
            _log.failure("work that nobody waits for any more failed", failure)

    Deferred.fromCoroutine(work).addCallback(done).addErrback(failed)
    return await waiting
