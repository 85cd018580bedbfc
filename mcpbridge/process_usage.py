"""
What processes use of the machine, as it was a moment ago.

Knows numbers and how old they may be; must not know where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.shared_work import SharedWork

#: So many seconds an answer is good for.
USAGE_SECONDS = 5.0
#: So many may wait for an answer; others get the one before.
USAGE_WAITERS = 100


class Usage(NamedTuple):
    """What a process and all that it has started use."""

    #: Resident memory in bytes, shared pages counted for each process.
    memory_bytes: int
    descriptors: int
    processes: int

    def plus(self, other: Usage) -> Usage:
        """Return what both use together."""
        return Usage(*(mine + its for mine, its in zip(self, other, strict=True)))


#: What nothing uses.
NO_USAGE = Usage(0, 0, 0)
#: By the pid of the first process of each tree.
Usages = Mapping[int, Usage]


class RecentUsage:
    """
    What process trees use, read again when the last answer is too old.

    `read` finds it out, and is called once for all who ask meanwhile.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, read: Callable[[], Deferred[Usages]]) -> None:
        self._clock = clock
        self._reading = SharedWork(self._begin, USAGE_WAITERS)
        self._read = read
        self._last: Usages = {}
        #: When that was read, in seconds of the clock; None before.
        self._read_at: float | None = None

    def get(self) -> Deferred[Usages]:
        """Return a Deferred of what each tree uses, which never fails."""
        at = self._read_at
        if at is not None and 0 <= self._clock.seconds() - at < USAGE_SECONDS:
            return succeed(self._last)
        return self._reading.join() or succeed(self._last)

    def _begin(self) -> Deferred[Usages]:
        return maybeDeferred(self._read).addCallbacks(self._keep, self._failed)

    def _keep(self, found: Usages) -> Usages:
        self._last, self._read_at = found, self._clock.seconds()
        return found

    def _failed(self, failure: Failure) -> Usages:
        self.log.failure("finding out what processes use failed; going on", failure)
        return self._keep(self._last)
