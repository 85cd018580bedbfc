"""
The default event store, in memory.

Knows events and bounds; must not know who resumes a stream.
"""

from __future__ import annotations

from collections import OrderedDict

from zope.interface import implementer

from mcpbridge.config.checks import COUNT
from mcpbridge.config.tuning import EVENT_OVERHEAD, MIB
from mcpbridge.errors import EventsGone, SettingError
from mcpbridge.interfaces import IEventLog, IEventStore
from mcpbridge.response_budget import ResponseBudget

#: How much is kept for one session.
EVENTS_KEPT = 1000
EVENT_BYTES_KEPT = 4 * MIB


@implementer(IEventLog)
class MemoryEventLog:
    """
    The last events of one session.

    Events are dropped in the order in which they came, so of a stream nothing
    is missing behind the first event that is kept: each step is O(1), a replay
    O(n) in the events it returns.  A budget over its limit drops the oldest
    events of all logs.
    """

    def __init__(
        self, max_events: int, max_bytes: int, budget: ResponseBudget | None = None
    ) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._budget = budget
        self._bytes = 0
        #: Each with its place in the order of all logs of the budget.
        self._events: OrderedDict[tuple[str, int], tuple[int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._events)

    @property
    def size(self) -> int:
        """Return the bytes of all events that are kept."""
        return self._bytes

    def append(self, stream: str, number: int, line: bytes) -> None:
        """Keep an event, and drop the oldest that do not fit with it."""
        budget = self._budget
        if budget is not None and not self._events:
            budget.keep(self)
        self._events[stream, number] = (0 if budget is None else budget.next_age(), line)
        self._bytes += len(line)
        while len(self._events) > 1 and (
            len(self._events) > self._max_events or self._bytes > self._max_bytes
        ):
            self.drop_oldest()
        if budget is not None:
            budget.take(len(line) + EVENT_OVERHEAD)

    def age(self) -> int | None:
        """Return the place of the oldest event in the order of all logs; None without one."""
        return next(iter(self._events.values()))[0] if self._events else None

    def drop_oldest(self) -> None:
        """Drop the oldest event."""
        _, (_, oldest) = self._events.popitem(last=False)
        self._bytes -= len(oldest)
        if self._budget is not None:
            self._budget.give_back(len(oldest) + EVENT_OVERHEAD)
            if not self._events:
                self._budget.forget(self)

    def after(self, stream: str, number: int) -> list[tuple[int, bytes]]:
        """Return the events of a stream after that one.  Raises `EventsGone`."""
        events = []
        at = number + 1
        while (kept := self._events.get((stream, at))) is not None:
            events.append((at, kept[1]))
            at += 1
        if not events and (stream, number) not in self._events:
            raise EventsGone(f"event {at} of stream {stream} is not kept")
        return events

    def close(self) -> None:
        """Drop all events."""
        if self._budget is not None and self._events:
            self._budget.forget(self)
            self._budget.give_back(self._bytes + EVENT_OVERHEAD * len(self._events))
        self._events.clear()
        self._bytes = 0


@implementer(IEventStore)
class MemoryEventStore:
    """
    Keeps at most `max_events` of each session, with at most `max_bytes`; a
    larger event is kept alone.

    Raises `SettingError` for an invalid bound.
    """

    def __init__(
        self,
        max_events: int = EVENTS_KEPT,
        max_bytes: int = EVENT_BYTES_KEPT,
        budget: ResponseBudget | None = None,
    ) -> None:
        for name, bound in (("max_events", max_events), ("max_bytes", max_bytes)):
            if not COUNT.accepts(bound):
                raise SettingError(name, COUNT.expected, bound)
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._budget = budget

    def open(self, session_id: str) -> MemoryEventLog:
        """Return the log of a new session."""
        return MemoryEventLog(self._max_events, self._max_bytes, self._budget)
