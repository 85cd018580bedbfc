"""
What waits for a client that has no GET stream open.

Knows notifications and requests of the backend, and two bounds; must not
know streams.  Each step is O(1), emptying it O(n).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

import msgspec

from mcpbridge.jsonrpc.envelope import JsonRpcId

#: The id of a request; unset for a notification.
MaybeId = JsonRpcId | msgspec.UnsetType


#: What a room may hold even while the budget is full.
SMALL_BYTES = 64 * 1024


class Budget(Protocol):
    """What all rooms, and others, may hold together."""

    full: bool

    def take(self, size: int) -> None:
        """So many bytes more are held."""

    def give_back(self, size: int) -> None:
        """So many bytes are not held any more."""


class BacklogMessage(NamedTuple):
    """
    A message that waits; `asked` is its id where it is a request, which has
    waited since `since`.
    """

    line: bytes
    asked: MaybeId
    since: float = 0.0


class Backlog:
    """
    Messages in their order, at most `max_events` with at most `max_bytes`.

    Where there is no room the oldest notification gives way, and where there
    is none left the oldest request.  What is larger than `max_bytes` by
    itself gives way at once.  While the budget is full, there is room for
    `SMALL_BYTES`.
    """

    def __init__(self, max_events: int, max_bytes: int, budget: Budget | None = None) -> None:
        self._budget = budget
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._arrived = 0
        self._bytes = 0
        # Both in order; the number of its arrival is each one's first.
        self._notifications: deque[tuple[int, BacklogMessage]] = deque()
        self._requests: deque[tuple[int, BacklogMessage]] = deque()

    def __len__(self) -> int:
        return len(self._notifications) + len(self._requests)

    @property
    def size(self) -> int:
        """The bytes of all that wait."""
        return self._bytes

    def add(self, waiter: BacklogMessage) -> list[BacklogMessage]:
        """Let one wait; returns those that give way, which may be this one."""
        if len(waiter.line) > self._max_bytes:
            return [waiter]
        self._arrived += 1
        self._bytes += len(waiter.line)
        queue = self._notifications if waiter.asked is msgspec.UNSET else self._requests
        queue.append((self._arrived, waiter))
        gone = []
        if self._budget is not None:
            self._budget.take(len(waiter.line))
        while len(self) > self._max_events or self._bytes > self._room():
            _, oldest = (self._notifications or self._requests).popleft()
            self._gone(oldest)
            gone.append(oldest)
        return gone

    @property
    def oldest_request(self) -> float | None:
        """Since when the first request waits; None where none does."""
        return self._requests[0][1].since if self._requests else None

    def take_oldest_request(self) -> BacklogMessage:
        """The request that has waited longest; there is one."""
        _, waiter = self._requests.popleft()
        self._gone(waiter)
        return waiter

    def withdraw(self, asked: MaybeId) -> bool:
        """Let a request wait no more, which takes as long as many wait; whether it did."""
        for at, (_, waiter) in enumerate(self._requests):
            if waiter.asked == asked:
                del self._requests[at]
                self._gone(waiter)
                return True
        return False

    def _gone(self, waiter: BacklogMessage) -> None:
        self._bytes -= len(waiter.line)
        if self._budget is not None:
            self._budget.give_back(len(waiter.line))

    def _room(self) -> int:
        full = self._budget is not None and self._budget.full
        return min(SMALL_BYTES, self._max_bytes) if full else self._max_bytes

    def take(self) -> list[BacklogMessage]:
        """All that wait, in the order in which they came; then none does."""
        both = sorted([*self._notifications, *self._requests], key=lambda each: each[0])
        self._notifications.clear()
        self._requests.clear()
        if self._budget is not None:
            self._budget.give_back(self._bytes)
        self._bytes = 0
        return [waiter for _, waiter in both]
