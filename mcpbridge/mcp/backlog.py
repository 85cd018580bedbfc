"""
Messages that wait for a client without a GET stream.

Knows notifications and requests of the server, and two bounds; must not know
streams.  Each step is O(1), emptying it O(n).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

import msgspec

from mcpbridge.jsonrpc.envelope import JsonRpcId

#: The id of a request; unset for a notification.
MaybeId = JsonRpcId | msgspec.UnsetType


#: How many bytes a backlog may hold even while the budget is full.
SMALL_BYTES = 64 * 1024


class Budget(Protocol):
    """A bound for what all backlogs, and others, hold together."""

    full: bool

    def take(self, size: int) -> None:
        """Count that many more bytes."""

    def give_back(self, size: int) -> None:
        """Count that many fewer bytes."""


class BacklogMessage(NamedTuple):
    """
    A message that waits; `request_id` is its id where it is a request, which
    has waited since `since`.
    """

    line: bytes
    request_id: MaybeId
    since: float = 0.0


#: The queue of all sessions in which nothing waits, which are nearly all: an empty one of
#: their own would take 760 bytes.  It takes nothing.
_NOTHING: deque[tuple[int, BacklogMessage]] = deque(maxlen=0)


class Backlog:
    """
    Messages in their order, at most `max_events` with at most `max_bytes`.

    A message that does not fit makes the oldest notification give way, and
    where there is none the oldest request, as somebody waits for its answer.
    One that is larger than `max_bytes` by itself is not taken.  While the
    budget is full, `SMALL_BYTES` may wait.
    """

    def __init__(self, max_events: int, max_bytes: int, budget: Budget | None = None) -> None:
        self._budget = budget
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._arrived = 0
        self._bytes = 0
        # Two queues, each in order; the number of its arrival is first in each entry.
        self._notifications = self._requests = _NOTHING

    def __len__(self) -> int:
        return len(self._notifications) + len(self._requests)

    @property
    def size(self) -> int:
        """The bytes of all messages that wait."""
        return self._bytes

    def add(self, message: BacklogMessage) -> list[BacklogMessage]:
        """Let a message wait; return those that give way, which may be this one."""
        if len(message.line) > self._max_bytes:
            return [message]
        self._arrived += 1
        self._bytes += len(message.line)
        if message.request_id is msgspec.UNSET:
            if self._notifications is _NOTHING:
                self._notifications = deque()
            self._notifications.append((self._arrived, message))
        else:
            if self._requests is _NOTHING:
                self._requests = deque()
            self._requests.append((self._arrived, message))
        dropped = []
        if self._budget is not None:
            self._budget.take(len(message.line))
        while len(self) > self._max_events or self._bytes > self._capacity():
            _, oldest = (self._notifications or self._requests).popleft()
            self._count_removed(oldest)
            dropped.append(oldest)
        return dropped

    @property
    def oldest_request(self) -> float | None:
        """Since when the first request waits; None where none does."""
        return self._requests[0][1].since if self._requests else None

    def take_oldest_request(self) -> BacklogMessage:
        """Remove and return the request that has waited longest; there is one."""
        _, message = self._requests.popleft()
        self._count_removed(message)
        return message

    def remove_request(self, request_id: MaybeId) -> bool:
        """Remove a request; return False where it does not wait.  O(n) in the requests."""
        for at, (_, message) in enumerate(self._requests):
            if message.request_id == request_id:
                del self._requests[at]
                self._count_removed(message)
                return True
        return False

    def _count_removed(self, message: BacklogMessage) -> None:
        self._bytes -= len(message.line)
        if self._budget is not None:
            self._budget.give_back(len(message.line))

    def _capacity(self) -> int:
        full = self._budget is not None and self._budget.full
        return min(SMALL_BYTES, self._max_bytes) if full else self._max_bytes

    def take(self) -> list[BacklogMessage]:
        """Remove and return all messages, in the order in which they came."""
        both = sorted([*self._notifications, *self._requests], key=lambda each: each[0])
        self._notifications = self._requests = _NOTHING
        if self._budget is not None:
            self._budget.give_back(self._bytes)
        self._bytes = 0
        return [message for _, message in both]
