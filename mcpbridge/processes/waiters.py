"""
Waiting for one thing to be over, in the order of arrival.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred


class Waiters:
    """Who waits for one thing to be over; whoever is cancelled waits no more."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Until somebody fires the Deferred that stands for it in `take`."""
        turn: Deferred[None] = Deferred()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def take(self) -> list[Deferred[None]]:
        """All of them, to be fired, longest waiting first."""
        taken, self._waiting = self._waiting, []
        return taken
