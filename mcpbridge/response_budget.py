"""
Bound the memory of all responses that clients have not read yet.

Counts bytes, and makes room when there are too many: first the oldest stored
events go, which are for clients that may reconnect; then the slowest clients
are disconnected; then backends are paused in the middle of large messages.
Knows no socket, process or session: each registers itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.tuning import (
    EVENTS_DROPPED,
    FULL_GROWTH,
    FULL_SECONDS,
    SLOW_SECONDS,
    TRIM_BYTES,
)
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.timers import Timer


class EventLog(Protocol):
    """The stored events of a session, of which the oldest may be dropped."""

    def age(self) -> int | None:
        """Return the number that `next_age` gave its oldest event; None if there is none."""

    def drop_oldest(self) -> None:
        """Drop the oldest event, and report the freed bytes to the budget."""


class Reader(Protocol):
    """A connection with bytes that its client has not read."""

    def measure(self) -> None:
        """Report the present number of unread bytes to the budget."""

    def slowness(self) -> float:
        """Estimate the seconds until all is read, at the client's pace; 0 if unknown."""

    def cut_off(self, reason: str) -> None:
        """Close the connection, and report its bytes as freed."""


class Source(Protocol):
    """A backend that is writing a large message."""

    def go_on(self) -> None:
        """Continue to read the backend."""


class ResponseBudget:
    """
    Keeps unread responses below `limit` bytes, apart from small ones and one large one.

    A message is large from `SMALL_BYTES` on.  While the budget is `full`, a
    backend in the middle of a large message is not read: `hold`.  If all of
    them waited so, each with half a message, none would ever finish; so one at
    a time may continue, and the next one once the first one's message is read.

    `freed` is called whenever `TRIM_BYTES` were freed.
    """

    log = Logger()

    def __init__(
        self, limit: int, clock: IReactorTime, freed: Callable[[], None] = lambda: None
    ) -> None:
        self.limit = limit
        self.used = 0
        self.full = False
        self._freed = freed
        self._freed_bytes = 0
        self._age = 0
        self._logs: dict[EventLog, None] = {}
        self._readers: dict[Reader, None] = {}
        self._held: dict[Source, None] = {}
        #: The one source that may continue, and the bytes in use when it was let.
        self._continuing: Source | None = None
        self._ceiling = 0
        self._relieving = False
        #: While the budget is full: above so many bytes room is made again.
        self._relieve_above = 0
        self._stopped = False
        self._timer = Timer(clock)
        self._full_log = RateLimitedLog(clock)

    def next_age(self) -> int:
        """Return a number for a new event, larger than all before."""
        self._age += 1
        return self._age

    def take(self, size: int) -> None:
        """Count so many bytes more."""
        self.used += size
        if self.used > self.limit and self.used > self._relieve_above and not self._relieving:
            self._relieve()

    def give_back(self, size: int) -> None:
        """Count so many bytes less."""
        self.used -= size
        self._freed_bytes += size
        if self._freed_bytes >= TRIM_BYTES:
            self._freed_bytes = 0
            self._freed()
        if self.full and self.used <= self.limit:
            self._relieve_above = 0
            # In the next iteration: bytes freed here often move elsewhere in a moment.
            self._check_in(0)

    def keep(self, log: EventLog) -> None:
        """Register a log that has events."""
        self._logs[log] = None

    def forget(self, log: EventLog) -> None:
        """Unregister a log without events."""
        self._logs.pop(log, None)

    def behind(self, reader: Reader) -> None:
        """Register a connection with unread bytes."""
        self._readers[reader] = None

    def caught_up(self, reader: Reader) -> None:
        """Unregister a connection whose client has read everything."""
        self._readers.pop(reader, None)

    def hold(self, source: Source) -> bool:
        """
        Return True if a backend must wait in the middle of a large message.

        Its `go_on` is called when it may continue.
        """
        if not self.full or source is self._continuing:
            return False
        self._held[source] = None
        return True

    def wrote(self, source: Source) -> None:
        """Note that a backend's large message is complete, or that the backend has ended."""
        self._held.pop(source, None)
        if source is self._continuing:
            self._continuing = None

    def stop(self) -> None:
        """Stop the timer; from now on bytes are only counted."""
        self._stopped = True
        self._timer.stop()

    def _relieve(self) -> None:
        """
        Make room; if that is not enough, become full.

        While full, this is repeated every `FULL_SECONDS`, or when the use has
        grown by one part in `FULL_GROWTH` of the limit.  It looks at all logs
        and clients, which is too expensive for each message.
        """
        self._relieving = True
        try:
            self._drop_events()
            if self.used > self.limit:
                self._cut_off_slowest()
        finally:
            self._relieving = False
        self._relieve_above = 0
        if self.used > self.limit:
            self._relieve_above = self.used + self.limit // FULL_GROWTH
            self._become_full()

    def _drop_events(self) -> None:
        """
        Drop the oldest events of all sessions until a little room is free.

        Slightly more than necessary, since finding the oldest event means
        looking at all logs; but only slightly, since small events are dropped
        one by one, at 4 µs each.
        """
        oldest = [(age, n, log) for n, log in enumerate(self._logs) if (age := log.age())]
        heapq.heapify(oldest)
        target = self.limit - self.limit // EVENTS_DROPPED
        while oldest and self.used > target:
            _, number, log = oldest[0]
            log.drop_oldest()
            age = log.age()
            if age is None:
                heapq.heappop(oldest)
            else:
                heapq.heapreplace(oldest, (age, number, log))

    def _cut_off_slowest(self) -> None:
        for reader in list(self._readers):
            reader.measure()
        slow = [(reader.slowness(), n, reader) for n, reader in enumerate(self._readers)]
        for slowness, _, reader in sorted(slow, reverse=True):
            if self.used <= self.limit or slowness <= SLOW_SECONDS:
                break
            self._readers.pop(reader, None)
            reader.cut_off("the slowest reader while the bridge is full (max_response_bytes)")

    def _become_full(self) -> None:
        if not self.full:
            self.full = True
            if self._full_log.due() is not None:
                self.log.warn(
                    "{used} bytes of responses wait for their clients (max_response_bytes):"
                    " backends wait with large messages",
                    used=self.used,
                )
        if not self._timer.is_running:
            self._check_in(FULL_SECONDS)

    def _check_in(self, seconds: float) -> None:
        if not self._stopped:
            self._timer.start(seconds, self._check)

    def _check(self) -> None:
        if self.used > self.limit:
            self._relieve()
        if self.used <= self.limit:
            self.full = False
            self._continuing, self._ceiling = None, 0
            held, self._held = self._held, {}
            for source in held:
                source.go_on()
        elif self._continuing is None and self._held:
            self._continue_one()

    def _continue_one(self) -> None:
        if self._ceiling and self.used > self._ceiling:
            # The message of the last one is not read yet.
            return
        self._ceiling = self.used
        source = self._continuing = next(iter(self._held))
        del self._held[source]
        source.go_on()


class Share:
    """
    The part of the budget that one session may use.

    Calls `pause` when the session's unread responses exceed `limit` bytes,
    and `resume` when they no longer do.
    """

    def __init__(self, limit: int, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._paused = False
        self.used = 0

    def change(self, size: int) -> None:
        """Count so many bytes more; less if negative."""
        self.used += size
        if self._paused is not (self.used > self._limit):
            self._paused = not self._paused
            (self._pause if self._paused else self._resume)()
