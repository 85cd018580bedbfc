"""
Requests of MCP 2026-07-28 that wait: for a process, or for one of them to
find out what all of them need.

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

from mcpbridge.errors import BridgeError, ServerBusy, Stopping
from mcpbridge.processes.waiters import Waiters

T = TypeVar("T")


class Ticket:
    """Where a request stands in line; it keeps that until it has a process."""

    #: When it began to wait; that is still to come.
    since = inf

    def is_behind(self, others: Iterable[Ticket]) -> bool:
        """Whether one of the others came before."""
        return any(each.since <= self.since for each in others)


class RequestQueue:
    """Requests that wait for a process, in their order, bounded in number and time."""

    def __init__(self, clock: IReactorTime, limit: int, timeout: float) -> None:
        self._clock = clock
        self._limit = limit
        self._timeout = timeout
        self._waiting: dict[Deferred[None], tuple[float, Callable[[], bool]]] = {}
        self._stopped = False
        self._waking = False
        self._again = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, ticket: Ticket, may_go: Callable[[], bool]) -> None:
        """
        Returns when there may be a process: when `may_go` said so after
        something had changed.  Raises `ServerBusy` and `Stopping`.
        """
        if self._stopped:
            raise _stopping()
        now = self._clock.seconds()
        if ticket.since == inf:
            if len(self._waiting) >= self._limit:
                raise ServerBusy("all processes are at work, and as many requests wait as may")
            ticket.since = now
        turn: Deferred[None] = Deferred()
        self._waiting[turn] = ticket.since, may_go
        turn.addTimeout(max(0.0, ticket.since + self._timeout - now), self._clock)
        try:
            await turn
        except defer.TimeoutError:
            raise ServerBusy(f"all processes have been at work for {self._timeout:g} s") from None
        finally:
            self._waiting.pop(turn, None)

    def wake(self) -> None:
        """
        Something has changed: all go on for whom there may be a process now,
        who has waited longest first.  Called meanwhile, it is done once more.
        """
        self._again = True
        if self._waking:
            return
        self._waking = True
        try:
            while self._again:
                self._again = False
                self._wake_once()
        finally:
            self._waking = False

    def _wake_once(self) -> None:
        for turn, (_, may_go) in sorted(self._waiting.items(), key=lambda each: each[1][0]):
            if turn in self._waiting and may_go():
                del self._waiting[turn]
                turn.callback(None)

    def stop(self) -> None:
        """Nobody waits any more."""
        self._stopped = True
        waiting, self._waiting = self._waiting, {}
        for turn in waiting:
            turn.errback(_stopping())


def _stopping() -> Stopping:
    return Stopping("the bridge is shutting down")


class SingleFlight:
    """
    Requests that need the same thing done: one does it, and the others wait
    until that is over.  As many may wait as may wait in line.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._at_work = False
        self._turns = Waiters()

    async def is_first(self) -> bool:
        """
        Whether it is the caller who does it, and calls `done`; for others,
        returns when that was called.  Raises `ServerBusy`.
        """
        if not self._at_work:
            self._at_work = True
            return True
        if len(self._turns) >= self._limit:
            raise ServerBusy("a process is being started, and as many requests wait as may")
        await self._turns.wait()
        return False

    def done(self) -> None:
        """It is done, or cannot be: who still needs it is to try."""
        self._at_work = False
        for turn in self._turns.take():
            turn.callback(None)


_log = Logger()


async def outlived(
    work: Coroutine[Deferred[Any], Any, T],
    unwanted: Callable[[T], object],
    untold: Callable[[BridgeError], object] = lambda _: None,
) -> T:
    """
    What comes of work that goes on when its caller is cancelled, as others
    have a use for it; then `unwanted` is called with that, or `untold` with
    what it raises.  Raises what it raises.
    """
    waiting: Deferred[T] = Deferred()

    def done(result: T) -> None:
        if waiting.called:
            unwanted(result)
        else:
            waiting.callback(result)

    def failed(failure: Failure) -> None:
        if not waiting.called:
            waiting.errback(failure)
        elif isinstance(failure.value, BridgeError):
            untold(failure.value)
        else:
            _log.failure("what nobody waits for any more failed", failure)

    Deferred.fromCoroutine(work).addCallback(done).addErrback(failed)
    return await waiting
