"""
How often the log says that something has gone wrong once more.

Knows time and numbers; must not know what is said.
"""

from __future__ import annotations

from collections.abc import Hashable

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.tuning import COMPLAIN_SECONDS, MAX_CAUSES


class RateLimitedLog:
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

    @property
    def quiet(self) -> bool:
        """Whether nothing was logged for so long that it would be logged at once."""
        return self._clock.seconds() >= self._not_before


class RateLimitedLogByCause:
    """
    The same for each of several causes, of which `MAX_CAUSES` are remembered.

    A client may have a part in a cause, such as a header that it sent: while
    there are more of them within `COMPLAIN_SECONDS`, the rest counts as one.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        #: By cause, the one that was added last at the end.
        self._causes: dict[Hashable, RateLimitedLog] = {}
        self._others = RateLimitedLog(clock)

    def add(self, cause: Hashable) -> int | None:
        """
        It has happened once more for this cause.  Returns how often since it
        was logged last, if it is to be logged now; None where that is too soon.
        """
        complaints = self._causes.pop(cause, None)
        if complaints is None:
            complaints = self._new()
        if complaints is not self._others:
            self._causes[cause] = complaints
        complaints.add()
        return complaints.due()

    def _new(self) -> RateLimitedLog:
        if len(self._causes) >= MAX_CAUSES:
            oldest = next(iter(self._causes))
            if not self._causes[oldest].quiet:
                return self._others
            del self._causes[oldest]
        return RateLimitedLog(self._clock)


def times(count: int) -> str:
    """How often it has happened, to be put behind a line; nothing where that was once."""
    return "" if count == 1 else f" ({count} times since this was said last)"
