"""
One piece of work for all who ask for its result while it goes on.

Knows who waits; must not know what for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

T = TypeVar("T")


class SharedWork(Generic[T]):
    """
    Work that is started by the first who asks, and whose result all get who ask until then.

    It goes on if those who wait for it give up: the next one who asks will want its result.
    If it fails, so do the Deferreds of all who wait.  With a `limit`, `join` lets no more wait.
    """

    log = Logger()

    def __init__(self, start: Callable[[], Deferred[T]], limit: int | None = None) -> None:
        self._start = start
        self._limit = limit
        self._work: Deferred[T] | None = None
        #: As an ordered set.
        self._waiting: dict[Deferred[T], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_running(self) -> bool:
        """True while the work goes on."""
        return self._work is not None

    def run(self) -> None:
        """Start the work unless it goes on."""
        if self._work is None:
            self._work = work = maybeDeferred(self._start)
            work.addBoth(self._finished, work)

    def wait(self) -> Deferred[T]:
        """Return a Deferred of the result of the work that goes on, or is started next."""
        waiting: Deferred[T] = Deferred(self._give_up)
        self._waiting[waiting] = None
        return waiting

    def join(self) -> Deferred[T] | None:
        """Start the work unless it goes on, and wait for it; None where too many wait."""
        if self._limit is not None and len(self._waiting) >= self._limit:
            return None
        waiting = self.wait()
        self.run()
        return waiting

    def stop(self, result: T) -> None:
        """Cancel the work, if it goes on; give this result to those who wait."""
        work, self._work = self._work, None
        self._tell(result)
        if work is not None:
            work.cancel()

    def _give_up(self, waiting: Deferred[T]) -> None:
        self._waiting.pop(waiting, None)

    def _finished(self, result: T | Failure, work: Deferred[T]) -> None:
        # Of work that was stopped nobody wants the result, nor how it was cancelled.
        if self._work is work:
            self._work = None
            self._tell(result)

    def _tell(self, result: T | Failure) -> None:
        waiting, self._waiting = self._waiting, {}
        if isinstance(result, Failure) and not waiting:
            self.log.failure("work failed for whose result nobody waits any more", result)
        for each in waiting:
            # What one of them does may make another give up.
            if each.called:
                continue
            if isinstance(result, Failure):
                each.errback(result)
            else:
                each.callback(result)
