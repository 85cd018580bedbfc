"""
Finds the Streamable HTTP session that its client has abandoned and that gives
way to a newcomer.

Knows addresses, times and how many sessions an address has; must not know how
a session ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import NamedTuple

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import ABANDONED_ADDRESSES, ABANDONED_LOOKS
from mcpbridge.processes.address_shares import Fullest
from mcpbridge.processes.backend_session import BackendSession

#: An index may hold so many ended sessions, beside as many as it has live ones.
_SLACK = 16


class Newcomer(NamedTuple):
    """A client that needs a process; the address is None where it counts against no share."""

    address: str | None


class Due(NamedTuple):
    """A session, and the time on the clock from which it may be ended for a newcomer."""

    at: float
    session: BackendSession


class _Entry:
    """A live session; `last_heard` returns when its client sent something, None while in use."""

    __slots__ = ("address", "last_heard", "session")

    def __init__(
        self, session: BackendSession, address: str | None, last_heard: Callable[[], float | None]
    ) -> None:
        #: None once the session has ended.
        self.session: BackendSession | None = session
        self.address = address
        self.last_heard = last_heard


class _Oldest:
    """
    Sessions in the order in which their clients were last heard of.

    Clients send messages far more often than anybody asks for this order, so a
    message does not touch the heap.  A session stays where it was when it was
    last looked at, which is never behind its proper position, and is moved
    when it reaches the top.  A session in use goes to the end, and is looked
    at again when it has been there for the grace.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Entry]] = []
        self._number = 0
        self._ended = 0

    def __len__(self) -> int:
        return len(self._heap) - self._ended

    def add(self, entry: _Entry, now: float) -> None:
        """Add a session that was opened now."""
        self._number += 1
        heappush(self._heap, (now, self._number, entry))

    def ended(self) -> None:
        """Note that a session has ended; once these are many, they are removed from the heap."""
        self._ended += 1
        if self._ended > _SLACK + len(self):
            self._heap = [each for each in self._heap if each[2].session is not None]
            heapify(self._heap)
            self._ended = 0

    def first(self, now: float, grace: float) -> Due | None:
        """
        Return the session that was left longest ago, with the end of its
        grace.  Returns None where all are in use, or where it would take more
        than `ABANDONED_LOOKS` to find one whose grace is not over yet.
        """
        heap = self._heap
        looks = ABANDONED_LOOKS
        while heap:
            noted, number, entry = heap[0]
            if entry.session is None:
                heappop(heap)
                self._ended -= 1
                continue
            since = entry.last_heard()
            if since == noted:
                return Due(since + grace, entry.session)
            if noted + grace > now:
                looks -= 1
                if noted >= now or not looks:
                    break
            heapreplace(heap, (now if since is None else since, number, entry))
        return None


class AbandonedSessions:
    """
    The live `/mcp` sessions of one server, by the addresses of their clients.

    A session may be ended for a newcomer when it has no connection and no
    running request, and its client was not heard of for `abandoned_grace`, or
    for `idle_timeout` where that is shorter.
    """

    def __init__(self, settings: ServerSettings) -> None:
        grace = settings.abandoned_grace or inf
        self._grace = min(grace, settings.idle_timeout or inf)
        self._never = grace == inf
        self._entries: dict[BackendSession, _Entry] = {}
        self._of: dict[str | None, _Oldest] = {}
        #: The addresses by how many sessions they have.
        self._fullest = Fullest()

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self, session: BackendSession, address: str | None, last_heard: Callable[[], float | None]
    ) -> None:
        """
        Add a session that was opened now.  `last_heard` returns the time on
        the clock when its client was last heard of, or None while that has a
        connection or a request; the time never goes back.
        """
        if self._never:
            return
        entry = self._entries[session] = _Entry(session, address, last_heard)
        of_address = self._of.setdefault(address, _Oldest())
        of_address.add(entry, session.clock.seconds())
        self._counted(address, len(of_address) - 1, len(of_address))

    def remove(self, session: BackendSession) -> None:
        """Remove a session that has ended, or is about to."""
        entry = self._entries.pop(session, None)
        if entry is None:
            return
        # The heap holds the entry until it is cleared, but not the session.
        entry.session, entry.last_heard = None, _never
        of_address = self._of[entry.address]
        of_address.ended()
        self._counted(entry.address, len(of_address) + 1, len(of_address))
        if not of_address:
            del self._of[entry.address]

    def first_of(self, address: str | None, now: float) -> Due | None:
        """Return the session of this address that gives way first, if one was found."""
        of_address = self._of.get(address)
        return None if of_address is None else of_address.first(now, self._grace)

    def fullest(self) -> list[str]:
        """Return some of the addresses with most sessions, the fullest first."""
        return self._fullest.first(ABANDONED_ADDRESSES)

    def _counted(self, address: str | None, before: int, after: int) -> None:
        # The address None is not limited, so it is never over its part.
        if address is not None:
            self._fullest.changed(address, before, after)


def _never() -> None:
    """Return None, as for a session in use."""


def first_of(address: str | None, where: Iterable[AbandonedSessions], now: float) -> Due | None:
    """Return the session of this address that gives way first, at any of these servers."""
    found = (each.first_of(address, now) for each in where)
    return min((due for due in found if due is not None), key=_at, default=None)


def first_for(
    newcomer: Newcomer,
    where: Iterable[AbandonedSessions],
    above: Callable[[Iterable[str]], Iterable[str]],
    now: float,
) -> Due | None:
    """
    Return the session that gives way to a newcomer: one of its own address,
    or else one of an address that has more than its part, the fullest first.
    `above` selects these among others (`Claims.above`).  Where none may be
    ended yet, return the one that may be ended first.
    """
    where = list(where)
    own = first_of(newcomer.address, where, now)
    if own is not None and own.at <= now:
        return own
    soonest = own
    others = dict.fromkeys(address for each in where for address in each.fullest())
    others.pop(newcomer.address or "", None)
    for address in above(others):
        due = first_of(address, where, now)
        if due is not None and due.at <= now:
            return due
        soonest = min((each for each in (soonest, due) if each is not None), key=_at, default=None)
    return soonest


def _at(due: Due) -> float:
    return due.at
