"""
Work that is done once for all who ask for its result while it goes on.

Knows Deferreds; must not know what the work is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

Found = TypeVar("Found")


class SharedWork(Generic[Found]):
    """
    Does one piece of work at a time; whoever asks meanwhile gets the result of that one.

    `start` begins it.  At most `limit` wait for a result.
    """

    log = Logger()

    def __init__(self, start: Callable[[], Deferred[Found]], limit: int) -> None:
        self._start = start
        self._limit = limit
        #: As an ordered set.
        self._waiting: dict[Deferred[Found], None] = {}
        self._running = False

    def join(self) -> Deferred[Found] | None:
        """
        Return a Deferred of its own for the result, which fails with what the work raises;
        None where too many wait.  Cancelling it leaves the work to the others.
        """
        if len(self._waiting) >= self._limit:
            return None
        waiter: Deferred[Found] = Deferred(self._leave)
        self._waiting[waiter] = None
        if not self._running:
            self._running = True
            maybeDeferred(self._start).addBoth(self._finished)
        return waiter

    def _leave(self, waiter: Deferred[Found]) -> None:
        self._waiting.pop(waiter, None)

    def _finished(self, result: Found | Failure) -> None:
        self._running = False
        waiting, self._waiting = self._waiting, {}
        if isinstance(result, Failure):
            if not waiting:
                self.log.failure("work failed for whose result nobody waits any more", result)
            for each in waiting:
                each.errback(result)
        else:
            for each in waiting:
                each.callback(result)
