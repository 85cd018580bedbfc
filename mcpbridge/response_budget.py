"""
What all answers may hold together that clients have not taken yet.

Counts bytes, and says who gives way when there are too many: events that are
kept for clients that may come back, then the slowest client's connection; then
what is still to come waits in its backend.  Knows no socket, process or
session: each registers itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mcpbridge.config.tuning import (
    EVENTS_DROPPED,
    FULL_GROWTH,
    FULL_SECONDS,
    SLOW_SECONDS,
    TRIM_BYTES,
)
from mcpbridge.rate_limited_log import RateLimitedLog


class EventLog(Protocol):
    """The events of a session, the oldest of which may be dropped."""

    def age(self) -> int | None:
        """When its oldest event came, as `next_age` has counted; None without one."""

    def drop_oldest(self) -> None:
        """Drop that; reports what is freed."""


class Reader(Protocol):
    """A connection with bytes that its client has not taken."""

    def measure(self) -> None:
        """Report how many these are now."""

    def slowness(self) -> float:
        """Seconds that they will take, at the client's pace; 0 as long as that is not known."""

    def cut_off(self, reason: str) -> None:
        """Close the connection; reports that nothing waits any more."""


class Source(Protocol):
    """A backend that is writing a large message."""

    def go_on(self) -> None:
        """Read on."""


class ResponseBudget:
    """
    At most `limit` bytes of answers, but for small ones and one large one.

    A message is large from `SMALL_BYTES` on.  While the budget is `full`, a
    backend that is writing a large one is not read: `hold`.  So as not to
    have all of them wait for each other, each with half a message, the first
    of them may go on alone; the next one when what that wrote is out.

    `freed` is called when much was freed.
    """

    log = Logger()

    def __init__(
        self, limit: int, clock: IReactorTime, freed: Callable[[], None] = lambda: None
    ) -> None:
        self.limit = limit
        self.used = 0
        self.full = False
        self._clock = clock
        self._freed = freed
        self._freed_bytes = 0
        self._age = 0
        self._logs: dict[EventLog, None] = {}
        self._readers: dict[Reader, None] = {}
        self._held: dict[Source, None] = {}
        #: The one that goes on, and what was used when it began to.
        self._going: Source | None = None
        self._ceiling = 0
        self._relieving = False
        #: While it is full: from how many bytes on all are looked at again.
        self._enough = 0
        self._stopped = False
        self._call: IDelayedCall | None = None
        self._complaints = RateLimitedLog(clock)

    def next_age(self) -> int:
        """A number for an event, larger than all before."""
        self._age += 1
        return self._age

    def take(self, size: int) -> None:
        """So many bytes more are held."""
        self.used += size
        if self.used > self.limit and self.used > self._enough and not self._relieving:
            self._relieve()

    def give_back(self, size: int) -> None:
        """So many bytes are not held any more."""
        self.used -= size
        self._freed_bytes += size
        if self._freed_bytes >= TRIM_BYTES:
            self._freed_bytes = 0
            self._freed()
        if self.full and self.used <= self.limit:
            self._enough = 0
            # Not now: what is freed here may be held elsewhere in a moment.
            self._look_in(0)

    def keep(self, log: EventLog) -> None:
        """This log has events."""
        self._logs[log] = None

    def forget(self, log: EventLog) -> None:
        """It has none any more."""
        self._logs.pop(log, None)

    def behind(self, reader: Reader) -> None:
        """Something waits for this client."""
        self._readers[reader] = None

    def caught_up(self, reader: Reader) -> None:
        """Nothing does any more."""
        self._readers.pop(reader, None)

    def hold(self, source: Source) -> bool:
        """Whether this one must wait with its large message; it is told when to go on."""
        if not self.full or source is self._going:
            return False
        self._held[source] = None
        return True

    def wrote(self, source: Source) -> None:
        """Its large message is complete, or it has ended."""
        self._held.pop(source, None)
        if source is self._going:
            self._going = None

    def stop(self) -> None:
        """No more looks; what is left is only counted."""
        self._stopped = True
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _relieve(self) -> None:
        """
        Make room; where too little gives way it is full.  Then this is done
        again a second later, or when one part in `FULL_GROWTH` of the limit
        more has come: it looks at all logs and clients, which is too much to
        be done for each message.
        """
        self._relieving = True
        try:
            self._drop_events()
            if self.used > self.limit:
                self._cut_off_slowest()
        finally:
            self._relieving = False
        self._enough = 0
        if self.used > self.limit:
            self._enough = self.used + self.limit // FULL_GROWTH
            self._become_full()

    def _drop_events(self) -> None:
        """
        Some more than need be, for to look for the oldest means to look at all
        logs; but not many, for small ones are dropped one by one, at 4 µs each.
        """
        oldest = [(age, n, log) for n, log in enumerate(self._logs) if (age := log.age())]
        heapq.heapify(oldest)
        enough = self.limit - self.limit // EVENTS_DROPPED
        while oldest and self.used > enough:
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
            if self._complaints.due() is not None:
                self.log.warn(
                    "{used} bytes of answers wait for their clients (max_response_bytes):"
                    " backends wait with large messages",
                    used=self.used,
                )
        if self._call is None:
            self._look_in(FULL_SECONDS)

    def _look_in(self, seconds: float) -> None:
        if self._stopped:
            return
        if self._call is not None and self._call.active():
            self._call.reset(seconds)
        else:
            self._call = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._call = None
        if self.used > self.limit:
            self._relieve()
        if self.used <= self.limit:
            self.full = False
            self._going, self._ceiling = None, 0
            held, self._held = self._held, {}
            for source in held:
                source.go_on()
        elif self._going is None and self._held:
            self._let_one_go()

    def _let_one_go(self) -> None:
        if self._ceiling and self.used > self._ceiling:
            # What the last one wrote is not out.
            return
        self._ceiling = self.used
        source = self._going = next(iter(self._held))
        del self._held[source]
        source.go_on()


class Share:
    """
    What one session may hold of that in answers that are not taken; beyond it
    its own backend is not read.
    """

    def __init__(self, limit: int, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._paused = False
        self.used = 0

    def change(self, size: int) -> None:
        """So many bytes more, or less."""
        self.used += size
        if self._paused is not (self.used > self._limit):
            self._paused = not self._paused
            (self._pause if self._paused else self._resume)()
