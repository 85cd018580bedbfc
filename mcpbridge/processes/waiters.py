"""
Requests that wait until something is over, in order of arrival.

Knows who waits; must not know what for.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mcpbridge.processes.backoff import StartBackoff


class Waiters:
    """Those who wait for one thing to be over; one that is cancelled waits no more."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Wait until the Deferred that stands for this call in `take` fires."""
        turn: Deferred[None] = Deferred()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def take(self) -> list[Deferred[None]]:
        """Return all of them for the caller to fire, the longest waiting first."""
        taken, self._waiting = self._waiting, []
        return taken


class FirstStart:
    """
    Lets one process of a server start before the others.

    The first start may do what is done only once: `npx` installs a package.
    While it goes on without a client, new clients wait for it instead of
    doing the same beside it; but only as long as no process of the server has
    ever answered, and never more of them than `limit`.
    """

    def __init__(self, backoff: StartBackoff, clock: IReactorTime, limit: int) -> None:
        self._backoff = backoff
        self._clock = clock
        self._limit = limit
        self._turns = Waiters()

    async def wait(self, goes_on: Callable[[], bool]) -> bool:
        """
        Wait until there is no such start any more; `goes_on` says whether
        there is one.  Return at once where as many wait as may.  Returns
        whether it has waited.
        """
        waited = False
        while not self._backoff.successes and goes_on() and len(self._turns) < self._limit:
            waited = True
            await self._turns.wait()
        return waited

    def over(self) -> None:
        """A start has ended: let all who wait look again, each in a turn of its own."""
        for turn in self._turns.take():
            self._clock.callLater(0, _fire, turn)


def _fire(turn: Deferred[None]) -> None:
    if not turn.called:
        turn.callback(None)
