"""
Limit how often the log repeats a line.

Counts occurrences and time; does not know the text of the line.
"""

from __future__ import annotations

from collections.abc import Hashable

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.tuning import COMPLAIN_SECONDS, MAX_CAUSES


class RateLimitedLog:
    """Counts a recurring problem, which is logged once in `COMPLAIN_SECONDS`."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._not_before = float("-inf")
        self._unlogged = 0

    def add(self) -> None:
        """Count one more occurrence."""
        self._unlogged += 1

    def due(self) -> int | None:
        """
        Return the number of occurrences since the last log line, if another
        line is due now; otherwise None.
        """
        now = self._clock.seconds()
        if now < self._not_before:
            return None
        self._not_before = now + COMPLAIN_SECONDS
        count, self._unlogged = self._unlogged, 0
        return count

    @property
    def quiet(self) -> bool:
        """True if the next occurrence would be logged at once."""
        return self._clock.seconds() >= self._not_before


class RateLimitedLogByCause:
    """
    Limits a log line separately for each of up to `MAX_CAUSES` causes.

    A cause may contain text of a client, such as a header.  While more than
    `MAX_CAUSES` different ones occur within `COMPLAIN_SECONDS`, the further ones
    count as one cause: a client must not be able to fill the log or the memory.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        #: By cause, the one that was added last at the end.
        self._causes: dict[Hashable, RateLimitedLog] = {}
        self._others = RateLimitedLog(clock)

    def add(self, cause: Hashable) -> int | None:
        """
        Count one more occurrence for this cause.

        Returns the number of its occurrences since the last log line, if
        another line is due now; otherwise None.
        """
        counter = self._causes.pop(cause, None)
        if counter is None:
            counter = self._new()
        if counter is not self._others:
            self._causes[cause] = counter
        counter.add()
        return counter.due()

    def _new(self) -> RateLimitedLog:
        if len(self._causes) >= MAX_CAUSES:
            oldest = next(iter(self._causes))
            if not self._causes[oldest].quiet:
                return self._others
            del self._causes[oldest]
        return RateLimitedLog(self._clock)


def times(count: int) -> str:
    """Return a suffix for a log line that stands for `count` occurrences; empty for one."""
    return "" if count == 1 else f" ({count} times since it was last logged)"
