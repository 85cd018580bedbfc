"""
How late the reactor is: by how much a timer fires after it was due.

Whatever keeps the reactor from a timer keeps it from all clients, too.  Knows time; must
not know who looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

from twisted.internet.interfaces import IReactorTime

from mcpbridge.timers import Timer

#: The pause between two looks, and for how long a look counts, in seconds.
LAG_LOOK_SECONDS = 0.5
LAG_SECONDS = 10.0


class LoopLag:
    """
    Measures, from `start` to `stop`, how late a timer fires.

    `now` is a clock that nobody sets: where the time of day jumps, no timer is late.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._timer = Timer(clock)
        #: When the timer is due, on `now`.
        self._due = 0.0
        #: When the last looks were, and how late; there are no more within `LAG_SECONDS`.
        self._looks: deque[tuple[float, float]] = deque(maxlen=int(LAG_SECONDS / LAG_LOOK_SECONDS))

    @property
    def longest(self) -> float:
        """The longest delay of the last `LAG_SECONDS`, in seconds; 0 while it is stopped."""
        now = self._now()
        late = [lag for at, lag in self._looks if now - at <= LAG_SECONDS]
        if self._timer.is_running:
            # Also that of the look which is to come.
            late.append(now - self._due)
        return max(0.0, *late) if late else 0.0

    def start(self) -> None:
        """Begin to measure."""
        self._due = self._now() + LAG_LOOK_SECONDS
        self._timer.start(LAG_LOOK_SECONDS, self._look)

    def stop(self) -> None:
        """Measure no more, and forget what was measured."""
        self._timer.stop()
        self._looks.clear()

    def _look(self) -> None:
        now = self._now()
        self._looks.append((now, now - self._due))
        self.start()
