"""
One piece of work for all who ask for it meanwhile.

Knows who waits; must not know what for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class SharedWork(Generic[T]):
    """
    Work that is started by the first who asks, and whose result all get who ask until then.

    The work must not fail.  It goes on if those who wait for it give up: the next one who
    asks will want its result.
    """

    def __init__(self, start: Callable[[], Deferred[T]]) -> None:
        self._start = start
        self._work: Deferred[T] | None = None
        self._waiting: list[Deferred[T]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_running(self) -> bool:
        """True while the work goes on."""
        return self._work is not None

    def run(self) -> None:
        """Start the work unless it goes on."""
        if self._work is not None:
            return
        self._work = work = self._start()
        work.addCallback(self._done)

    def wait(self) -> Deferred[T]:
        """Return a Deferred of the result of the work that goes on, or is started next."""
        waiting: Deferred[T] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting

    def stop(self, result: T) -> None:
        """Cancel the work, if it goes on; give this result to those who wait."""
        work = self._work
        self._done(result)
        if work is not None:
            work.cancel()

    def _done(self, result: T) -> None:
        self._work = None
        waiting, self._waiting = self._waiting, []
        # What one of them does may make another give up.
        for each in tuple(waiting):
            if not each.called:
                each.callback(result)
