"""Which process gives way where the limits are reached."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CAPACITY_TRIES
from mcpbridge.errors import TooManyOfAddress, TooManySessions
from mcpbridge.processes.abandoned_sessions import Due
from mcpbridge.processes.address_shares import Claims, Shares
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.capacity import Candidate, Capacity, Kind, YieldingPool, who_gives_way

NOW = 100.0


def session(name: str) -> BackendSession:
    """Something that stands for a session: it is only chosen, never used."""
    return cast("BackendSession", name)


class Pool:
    """A pool with at most one unused process, and one unattended start."""

    def __init__(self, unused: str | None = None, start: str | None = None) -> None:
        self._unused = unused
        self._start = start
        self.unattended = self

    def unused(self) -> Any:
        return self._unused

    def unclaimed(self) -> Any:
        return self._start


def choose(own: Pool, *others: Pool, due: Due | None = None) -> tuple[Kind, str, Pool] | None:
    pools = [cast("YieldingPool", pool) for pool in (own, *others)]
    chosen: Candidate | None = who_gives_way(pools[0], pools[1:], lambda: due, NOW)
    return cast("tuple[Kind, str, Pool] | None", chosen)


DUE = Due(NOW, session("abandoned"))


def test_nobody_gives_way() -> None:
    assert choose(Pool()) is None
    assert choose(Pool(), Pool(), Pool()) is None


def test_an_unused_process_of_the_server_itself_comes_first() -> None:
    own, other = Pool("mine", "my start"), Pool("theirs", "their start")
    assert choose(own, other, due=DUE) == (Kind.UNUSED, "mine", own)


def test_an_unused_process_of_another_server_comes_before_all_that_are_of_use() -> None:
    own, other = Pool(None, "my start"), Pool("theirs", "their start")
    assert choose(own, Pool(), other, due=DUE) == (Kind.UNUSED, "theirs", other)


def test_an_unattended_start_of_another_server_comes_before_an_abandoned_session() -> None:
    own, other = Pool(None, "my start"), Pool(None, "their start")
    assert choose(own, other, due=DUE) == (Kind.OTHERS_START, "their start", other)


def test_an_abandoned_session_comes_before_a_start_of_the_server_itself() -> None:
    own = Pool(None, "my start")
    assert choose(own, Pool(), due=DUE) == (Kind.ABANDONED, "abandoned", own)


@pytest.mark.parametrize("due", [None, Due(NOW + 1, session("abandoned"))])
def test_a_session_whose_grace_is_not_over_stays(due: Due | None) -> None:
    own = Pool(None, "my start")
    assert choose(own, Pool(), due=due) == (Kind.OWN_START, "my start", own)
    assert choose(Pool(), Pool(), due=due) is None


def test_abandoned_sessions_are_not_searched_where_another_process_is_found() -> None:
    """The search looks at the sessions of many addresses."""

    def search() -> Due | None:
        raise AssertionError("there is no need")

    own = cast("YieldingPool", Pool("mine"))
    chosen: Any = who_gives_way(own, [], search, NOW)
    assert chosen == (Kind.UNUSED, "mine", own)


class Denying:
    """A limiter of an extension, which gives no permit whatever ends."""

    def acquire(self) -> None:
        return None

    def is_full(self) -> bool:
        return False


class Yielding(Pool):
    """A pool that always has one more process that nobody uses."""

    stopping = False
    process_count = 0

    def __init__(self) -> None:
        super().__init__("unused")
        self.ended = 0

    def unused(self) -> Any:
        return self

    def end_unused(self, session: object) -> None:
        self.ended += 1

    def gone(self) -> Deferred[None]:
        return succeed(None)


class Clinging(Yielding):
    """A pool that always has one more abandoned session, which gives nothing back as it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.abandoned = self.life = self

    def first_of(self, address: str | None, now: float) -> Any:
        return Due(now, cast("BackendSession", self))

    def end(self, reason: str) -> None:
        self.ended += 1


def capacity_of(pool: Any, *, limiter: Any, claims: Claims) -> Capacity:
    return Capacity(
        ServerSettings(command="x"),
        Clock(),
        limiter=limiter,
        bridge_limiter=None,
        claims=claims,
        pool=pool,
        pools=[pool],
    )


def test_no_more_than_capacity_tries_processes_are_ended_for_a_new_one() -> None:
    """A limiter that says no all the same must not cost a server all its processes."""
    pool = Yielding()
    capacity = capacity_of(pool, limiter=Denying(), claims=Claims())
    failed: list[Any] = []
    Deferred.fromCoroutine(capacity.acquire(None)).addErrback(failed.append)
    assert [each.type for each in failed] == [TooManySessions]
    assert pool.ended == CAPACITY_TRIES


def test_no_more_than_capacity_tries_sessions_are_ended_for_the_share_of_their_address() -> None:
    """A share that stays used up must not cost an address all its sessions."""
    pool = Clinging()
    used_up = Claims(Shares(0, Clock(), what="sessions", setting="max_sessions_per_address"))
    capacity = capacity_of(pool, limiter=None, claims=used_up)
    failed: list[Any] = []
    Deferred.fromCoroutine(capacity.claim("a", 1)).addErrback(failed.append)
    assert [each.type for each in failed] == [TooManyOfAddress]
    assert pool.ended == CAPACITY_TRIES
