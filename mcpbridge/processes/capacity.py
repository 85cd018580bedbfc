"""
The permits of one server, and which process gives way where they have run out.

Knows limits, the shares of client addresses and which processes could be
ended; must not know how one is started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from math import ceil
from typing import Any, NamedTuple, Protocol

from twisted.internet import defer
from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CAPACITY_TRIES, STOP_SLACK_SECONDS
from mcpbridge.errors import ShuttingDown, TooManyOfAddress, TooManySessions
from mcpbridge.processes.abandoned_sessions import (
    AbandonedSessions,
    Due,
    Newcomer,
    first_for,
    first_of,
)
from mcpbridge.processes.address_shares import Claim, Claims
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.endings import GaveWay
from mcpbridge.processes.permits import RefusalLog, SessionLimiter
from mcpbridge.processes.unattended_starts import UnattendedStarts
from mcpbridge.timers import Timer


class YieldingPool(Protocol):
    """The processes of one server that may give way; a `ProcessPool`."""

    stopping: bool
    #: Sessions that their clients may have abandoned.
    abandoned: AbandonedSessions
    unattended: UnattendedStarts

    @property
    def process_count(self) -> int:
        """How many processes hold a permit, those that are being launched among them."""
        ...

    @property
    def exceeds_guarantee(self) -> bool:
        """True if the end of one of its processes helps other servers."""
        ...

    def unused(self) -> BackendSession | None:
        """Return a process that nobody uses just now."""
        ...

    def end_unused(self, session: BackendSession) -> None:
        """End the process that `unused` has returned."""

    def capacity_freed(self) -> None:
        """Tell those who wait for a process that they may get one."""


class Kind(Enum):
    """The kinds of processes that give way, in the order in which they do."""

    UNUSED = 1
    #: An unattended start of another server.
    OTHERS_START = 2
    ABANDONED = 3
    #: An unattended start of the same pool; it is waited for, and not ended.
    OWN_START = 4


class Candidate(NamedTuple):
    """A process that gives way, and the pool that it belongs to."""

    kind: Kind
    session: BackendSession
    pool: YieldingPool


def who_gives_way(
    own: YieldingPool,
    others: Sequence[YieldingPool],
    abandoned: Callable[[], Due | None],
    now: float,
) -> Candidate | None:
    """
    Choose the process that gives its permit to a new one of `own`; end nothing.

    First comes what nobody misses: a process that is not in use, of this
    server or of another.  An unattended start of another server may save
    somebody time, so it comes next.  An abandoned session is the only one with
    a client who may return.  An unattended start of this server comes last: to
    end it and to begin again would take longer than to wait for it.
    `abandoned` returns the session that is next to give way, which it does
    when its time has come.
    """
    for pool in (own, *others):
        session = pool.unused()
        if session is not None:
            return Candidate(Kind.UNUSED, session, pool)
    for pool in others:
        session = pool.unattended.unclaimed()
        if session is not None:
            return Candidate(Kind.OTHERS_START, session, pool)
    due = abandoned()
    if due is not None and due.at <= now:
        return Candidate(Kind.ABANDONED, due.session, own)
    session = own.unattended.unclaimed()
    return None if session is None else Candidate(Kind.OWN_START, session, own)


class Capacity:
    """
    Hands out the permits of one server, for which other processes are ended if need be.

    `limiter` is a `CombinedLimiter`, and `bridge_limiter` the part of it that
    all servers share.  `claims` are the shares of client addresses.  `pools` are
    those of all servers of the bridge: where it is the limit over all of them
    that is reached, a process of another server may give way.  `siblings` are those of
    the same server, which share its limit.
    """

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        *,
        limiter: Any,
        bridge_limiter: SessionLimiter | None,
        claims: Claims,
        pool: YieldingPool,
        pools: Sequence[YieldingPool],
        siblings: Sequence[YieldingPool] = (),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._limiter = limiter
        self._bridge_limiter = bridge_limiter
        self._claims = claims
        self._pool = pool
        self._pools = pools
        self._siblings = siblings
        self._refusals = RefusalLog(settings.name, clock)
        #: Runs until the next abandoned session may be ended for someone who waits.
        self._announcement = Timer(clock)

    def try_acquire(self) -> Any:
        """Return a permit that is free; None where there is none."""
        return self._limiter.acquire()

    def try_acquire_spare(self) -> Any:
        """Return a permit if another one is free beside it; None otherwise."""
        permit = self._limiter.acquire()
        if permit is not None and self._limiter.is_full():
            permit.release()
            return None
        return permit

    async def acquire(self, newcomer: Newcomer | None) -> Any:
        """
        Return a permit, for which processes are ended or waited for, if need
        be.  Raises `TooManySessions` and `ShuttingDown`.
        """
        for _ in range(CAPACITY_TRIES):
            permit = self._limiter.acquire()
            if permit is not None:
                return permit
            candidate = self._candidate(newcomer)
            if candidate is None:
                break
            gone = await self._give_way(candidate)
            if self._pool.stopping:
                raise ShuttingDown("the bridge is shutting down")
            if not gone:
                break
        raise self.too_many(newcomer)

    async def claim(self, address: str | None, amount: float) -> Claim | None:
        """
        Take so much of the shares of an address, for which its own abandoned
        sessions are ended.  Raises `TooManyOfAddress`.
        """
        for _ in range(CAPACITY_TRIES):
            due = self._own_due(address, amount)
            if due is None or due.at > self._clock.seconds():
                break
            if not await self._end_abandoned(due.session):
                break
        try:
            return self._claims.take(address, amount)
        except TooManyOfAddress as error:
            self._set_retry_after(error, self._own_due(address, amount))
            raise

    def is_full(self, newcomer: Newcomer | None) -> bool:
        """Return whether `acquire` would raise `TooManySessions` now."""
        return self._limiter.is_full() and self._candidate(newcomer) is None

    def too_many(self, newcomer: Newcomer | None) -> TooManySessions:
        """
        Return the error for a newcomer for whom there is no permit.  Where an
        abandoned session may be ended later, the error says when, and those
        who wait look again then.
        """
        limit = self._limit_reached("the server's")
        error = TooManySessions(f"too many concurrent MCP sessions: {limit}")
        due = self._due_for(newcomer)
        self._set_retry_after(error, due)
        if due is not None:
            self._announce_at(due.at)
        return error

    def log_refusal(self) -> None:
        """Log, now and then, that a request for a process was refused."""
        self._refusals.add(self._why_full)

    def stop(self) -> None:
        """Cancel the timer."""
        self._announcement.stop()

    # Who gives way.

    def _candidate(self, newcomer: Newcomer | None) -> Candidate | None:
        own, *others = self._yielding_pools()
        return who_gives_way(own, others, partial(self._due_for, newcomer), self._clock.seconds())

    async def _give_way(self, candidate: Candidate) -> bool:
        """Have a process give way; return whether nothing of it is left when that is due."""
        kind, session, pool = candidate
        if kind is Kind.OWN_START:
            return await pool.unattended.outlast(session)
        if kind is Kind.ABANDONED:
            return await self._end_abandoned(session)
        if kind is Kind.UNUSED:
            pool.end_unused(session)
        else:
            pool.unattended.end(session)
        return await gone_in_time(session, self._settings, self._clock)

    async def _end_abandoned(self, session: BackendSession) -> bool:
        session.life.end(GaveWay("its client abandoned it, and another client needed its slot"))
        return await gone_in_time(session, self._settings, self._clock)

    def _due_for(self, newcomer: Newcomer | None) -> Due | None:
        """Return the abandoned session that gives way to a newcomer next, now or later."""
        # Where a limiter of an extension says no, an ended session may not help.
        if newcomer is None or not self._limiter.is_full():
            return None
        of_bridge = self._is_bridge_full()
        limit = self._settings.max_sessions
        if of_bridge and self._bridge_limiter is not None:
            limit = self._bridge_limiter.limit
        above = partial(
            self._claims.above, newcomer=newcomer.address, limit=limit, of_bridge=of_bridge
        )
        where = [pool.abandoned for pool in self._yielding_pools()]
        return first_for(newcomer, where, above, self._clock.seconds())

    def _own_due(self, address: str | None, amount: float) -> Due | None:
        """Return an address's own session that gives way next, if its share is used up."""
        over = self._claims.over(address, amount)
        if over is None:
            return None
        pools = self._all_pools() if self._claims.are_the_bridges(over) else self._own_pools()
        return first_of(address, [pool.abandoned for pool in pools], self._clock.seconds())

    def _yielding_pools(self) -> Sequence[YieldingPool]:
        """Return the pools whose processes may give way; this server's first."""
        if not self._is_bridge_full():
            return self._own_pools()
        # What a server has of its guaranteed part would stay its own.
        own, others = self._own_pools(), self._all_pools()
        return [*own, *(each for each in others if each not in own and each.exceeds_guarantee)]

    def _own_pools(self) -> list[YieldingPool]:
        """Return the pools of this server; the one that needs a process first."""
        return [self._pool, *(each for each in self._siblings if each is not self._pool)]

    def _all_pools(self) -> list[YieldingPool]:
        return [self._pool, *(each for each in self._pools if each is not self._pool)]

    def _count(self) -> int:
        """Return how many processes of this server hold a permit."""
        return sum(each.process_count for each in self._own_pools())

    def _is_bridge_full(self) -> bool:
        """Return whether the bridge's limit is reached, and not the server's own."""
        # Each process of this server holds a permit of its own limit; once these are
        # used up, the end of another server's process would not help.
        return (
            self._count() < self._settings.max_sessions
            and self._bridge_limiter is not None
            and self._bridge_limiter.is_full()
        )

    # What those are told who get none.

    def _set_retry_after(self, error: TooManySessions, due: Due | None) -> None:
        if due is not None:
            error.retry_after = max(1, ceil(due.at - self._clock.seconds()))

    def _announce_at(self, at: float) -> None:
        """Let those who wait look again then; one timer serves all, and the earliest time wins."""
        due = self._announcement.due
        if not self._pool.stopping and (due is None or due > at):
            delay = max(0.0, at - self._clock.seconds())
            self._announcement.start(delay, self._pool.capacity_freed)

    def _why_full(self) -> str:
        return f"it has {self._count()} processes, and {self._limit_reached('its')}"

    def _limit_reached(self, whose: str) -> str:
        """Name the limit that is reached, and its setting."""
        limiter = self._bridge_limiter
        if self._count() >= self._settings.max_sessions:
            return f"{whose} max_sessions is {self._settings.max_sessions}"
        if limiter is not None and limiter.is_full():
            kept = limiter.reserved
            others = f", of which {kept} are kept for other servers" if kept else ""
            return f"the bridge's max_sessions is {limiter.limit}{others}"
        return "a limiter, or the number that may wait, allows no more"


async def gone_in_time(
    session: BackendSession, settings: ServerSettings, clock: IReactorTime
) -> bool:
    """
    Wait until nothing of a session is left that was told to end.  Returns
    False where that takes longer than the graces of its server allow.
    """
    patience = settings.stop_grace + settings.kill_grace + STOP_SLACK_SECONDS
    try:
        await session.gone().addTimeout(patience, clock)
    except defer.TimeoutError:
        return False
    return True
