"""
Limits on open connections, in all and by client address; one that its client has
closed, or else an idle one, gives way to a new one.

Knows numbers, addresses and idleness; must not know what a connection is for.
"""

from __future__ import annotations

from collections import deque
from heapq import nsmallest
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.tuning import IDLE_ADDRESSES, IDLE_CANDIDATES, IDLE_LOOK_SECONDS
from mcpbridge.processes.address_shares import Fullest, Shares
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.web.client_addresses import Peer


class Connection(Protocol):
    """A connection that is counted."""

    peer: Peer

    def idle_since(self) -> float | None:
        """Return when bytes last arrived; None while it has anything to do."""

    def give_way(self) -> bool:
        """Close, unless something would be lost by it; return whether it does."""


class _Found:
    """The idle connections of an address that were found, in the order in which they give way."""

    def __init__(self) -> None:
        self.idle: deque[tuple[float, Connection]] = deque()
        self.not_before = float("-inf")


class Connections:
    """
    At most `limit` connections, and of each address at most its share.

    If one too many is opened, a connection that its client has closed gives way, if
    its `connectionLost` still waits for its turn; otherwise the one that has been
    idle longest.  If the address has its share, it is one of the same address;
    otherwise one that any client has closed, or an idle one of the address with the
    most connections.  If there is none the new one is refused.  That costs the same
    however many are open, except for a search for idle ones, which finds many
    at once.
    """

    log = Logger()

    def __init__(self, limit: int, share: int, clock: IReactorTime) -> None:
        self._limit = limit
        self._clock = clock
        self._shares = Shares(
            share, clock, what="connections", setting="max_connections_per_address"
        )
        self._count = 0
        self._of: dict[str, dict[Connection, None]] = {}
        #: Addresses by how many connections they have.
        self._fullest = Fullest()
        self._found: dict[str, _Found] = {}
        #: By address, the connections that clients have closed and that are not lost yet.
        self._closed_by_clients: dict[str, dict[Connection, None]] = {}
        self._refusals = RateLimitedLog(clock)

    def __len__(self) -> int:
        return self._count

    def change(self, limit: int, share: int) -> None:
        """Allow so many from now on; those that are open stay."""
        self._limit, self._shares.limit = limit, share

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; return False if there are too many."""
        address = connection.peer.address
        if connection.peer.share is not None and len(self._of.get(address, ())) >= (
            self._shares.limit
        ):
            if not (self._lose_closed(address) or self._make_room(address)):
                self._shares.refused(address)
                return False
        elif self._count >= self._limit and not (
            self._lose_closed(next(iter(self._closed_by_clients), ""))
            or any(map(self._make_room, self._fullest.first(IDLE_ADDRESSES)))
        ):
            self._refused()
            return False
        of_address = self._of.setdefault(address, {})
        of_address[connection] = None
        self._counted(address, len(of_address) - 1, len(of_address))
        return True

    def closed_by_client(self, connection: Connection) -> None:
        """Let a connection that its client has closed give way first."""
        address = connection.peer.address
        if connection in self._of.get(address, ()):
            self._closed_by_clients.setdefault(address, {})[connection] = None

    def remove(self, connection: Connection) -> None:
        """Count a connection no more; does nothing the second time."""
        address = connection.peer.address
        self._forget_closed(connection)
        of_address = self._of.get(address, {})
        if connection not in of_address:
            return
        del of_address[connection]
        self._counted(address, len(of_address) + 1, len(of_address))
        if not of_address:
            del self._of[address]
            self._found.pop(address, None)

    def _counted(self, address: str, before: int, after: int) -> None:
        self._count += after - before
        self._fullest.changed(address, before, after)

    def _forget_closed(self, connection: Connection) -> None:
        address = connection.peer.address
        closed = self._closed_by_clients.get(address)
        if closed is not None:
            closed.pop(connection, None)
            if not closed:
                del self._closed_by_clients[address]

    def _lose_closed(self, address: str) -> bool:
        """Lose a connection that a client of this address has closed; False if none gives way."""
        closed = self._closed_by_clients.get(address)
        if not closed:
            return False
        connection = next(iter(closed))
        self._forget_closed(connection)
        if not connection.give_way():
            return False
        self.remove(connection)
        return True

    def _make_room(self, address: str) -> bool:
        """Close an idle connection of an address; return False if none gives way."""
        found = self._found.get(address)
        if found is None:
            found = self._found[address] = _Found()
        now = self._clock.seconds()
        if not found.idle and now >= found.not_before:
            found.idle.extend(self._look(address))
            if len(found.idle) < IDLE_CANDIDATES:
                found.not_before = now + IDLE_LOOK_SECONDS * len(self._of[address])
        while found.idle:
            since, connection = found.idle.popleft()
            # Since it was found it may have been closed, or had something to do.
            is_open = connection in self._of[address]
            if is_open and connection.idle_since() == since and connection.give_way():
                self.remove(connection)
                return True
        return False

    def _look(self, address: str) -> list[tuple[float, Connection]]:
        idle = (
            (since, connection)
            for connection in self._of.get(address, ())
            if (since := connection.idle_since()) is not None
        )
        return nsmallest(IDLE_CANDIDATES, idle, key=lambda each: each[0])

    def _refused(self) -> None:
        if self._refusals.due() is not None:
            self.log.warn(
                "refusing connections: {limit} are open (max_connections)", limit=self._limit
            )
