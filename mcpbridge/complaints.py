"""
What goes wrong again and again, and is to be said in the log only now and then.

Knows time and numbers; must not know what is said.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config import COMPLAIN_SECONDS


class Complaints:
    """Counts what is not said each time, at most every `COMPLAIN_SECONDS`."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._not_before = float("-inf")
        self._unsaid = 0

    def add(self) -> None:
        """It has happened once more."""
        self._unsaid += 1

    def due(self) -> int | None:
        """
        How many were added since the last time, where it is to be said now;
        None: too soon.
        """
        now = self._clock.seconds()
        if now < self._not_before:
            return None
        self._not_before = now + COMPLAIN_SECONDS
        count, self._unsaid = self._unsaid, 0
        return count
