"""
The first start of a server, where its client has left: others wait for it,
so that they do not all begin what it does only once (`npx` installs a package).

Knows who waits; must not know what starts.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.waiters import Waiters


class FirstStart:
    """Those who wait for it, as long as no process of the server has ever answered."""

    def __init__(self, backoff: StartBackoff, clock: IReactorTime, limit: int) -> None:
        self._backoff = backoff
        self._clock = clock
        self._limit = limit
        self._turns = Waiters()

    async def wait(self, goes_on: Callable[[], bool]) -> bool:
        """
        Wait until there is no such start any more; `goes_on` says whether there
        is.  Where too many wait already, one goes on at once.  Returns whether
        it has waited.
        """
        waited = False
        while not self._backoff.successes and goes_on() and len(self._turns) < self._limit:
            waited = True
            await self._turns.wait()
        return waited

    def over(self) -> None:
        """One has come to an end: all who wait look again, each in a turn of its own."""
        for turn in self._turns.take():
            self._clock.callLater(0, _fire, turn)


def _fire(turn: Deferred[None]) -> None:
    if not turn.called:
        turn.callback(None)
