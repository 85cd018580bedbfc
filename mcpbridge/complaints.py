"""
How often the log says that something has gone wrong once more.

Knows time and numbers; must not know what is said.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config import COMPLAIN_SECONDS


class Complaints:
    """Counts what goes wrong again and again: it is logged once in `COMPLAIN_SECONDS`."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._not_before = float("-inf")
        self._unsaid = 0

    def add(self) -> None:
        """It has happened once more."""
        self._unsaid += 1

    def due(self) -> int | None:
        """
        How often it has happened since it was logged last, if it is to be
        logged now; None where that is too soon.
        """
        now = self._clock.seconds()
        if now < self._not_before:
            return None
        self._not_before = now + COMPLAIN_SECONDS
        count, self._unsaid = self._unsaid, 0
        return count
