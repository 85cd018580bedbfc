"""Permits: never more than the limit, and none is returned twice."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mcpbridge.config.tuning import COMPLAIN_SECONDS, GUARANTEED_DIVISOR
from mcpbridge.errors import SettingError
from mcpbridge.interfaces import IPermit, ISessionLimiter
from mcpbridge.processes.permits import (
    BridgeLimiter,
    CombinedLimiter,
    Permit,
    RefusalLog,
    SessionLimiter,
)


@implementer(ISessionLimiter)
class Failing:
    """A limiter of an extension."""

    def acquire(self) -> object | None:
        raise OSError("the database is down")


def test_the_interfaces() -> None:
    for limiter in (SessionLimiter(1), CombinedLimiter(SessionLimiter(1))):
        verifyObject(ISessionLimiter, limiter)
        verifyObject(IPermit, limiter.acquire())


@pytest.mark.parametrize("limit", [None, "2", True, False, 0, -1, 1.0, float("inf"), [1]])
def test_a_limit_that_is_no_integer_is_refused(limit: Any) -> None:
    """promise: a limit that is not an integer is refused, never taken for unlimited."""
    with pytest.raises(SettingError, match="max_sessions: expected an integer ≥ 1"):
        SessionLimiter(limit)


def test_no_permit_beyond_the_limit() -> None:
    """promise: `acquire` below the limit is true, at the limit false."""
    limiter = SessionLimiter(2)
    first, second = limiter.acquire(), limiter.acquire()
    assert first is not None
    assert second is not None
    assert limiter.acquire() is None
    assert limiter.acquire() is None
    first.release()
    assert limiter.acquire() is not None
    assert limiter.acquire() is None


def test_every_short_sequence_of_acquire_and_release() -> None:
    """promise: release never goes below zero; a permit released twice counts once."""
    for history in product(["acquire", 0, 1, 2], repeat=6):
        limiter = SessionLimiter(2)
        permits: list[Permit] = []
        out: set[int] = set()
        for step in history:
            if step == "acquire":
                permit = limiter.acquire()
                assert (permit is not None) is (len(out) < 2), history
                if permit is not None:
                    out.add(len(permits))
                    permits.append(permit)
            elif isinstance(step, int) and step < len(permits):
                permits[step].release()
                out.discard(step)
            assert limiter.taken == len(out), history


def test_a_combined_permit_takes_one_of_each_or_none() -> None:
    """promise: a refused request holds no permit, of none of the limiters."""
    whole, part = SessionLimiter(3), SessionLimiter(1)
    both = CombinedLimiter(whole, part)
    permit = both.acquire()
    assert permit is not None
    assert (whole.taken, part.taken) == (1, 1)
    assert both.acquire() is None
    assert (whole.taken, part.taken) == (1, 1)
    permit.release()
    permit.release()
    assert (whole.taken, part.taken) == (0, 0)


def test_a_limiter_that_raises_leaves_no_permit_taken() -> None:
    whole = SessionLimiter(1)
    with pytest.raises(OSError, match="database"):
        CombinedLimiter(whole, Failing()).acquire()
    assert whole.taken == 0


def test_refusals_are_logged_now_and_then(log_lines: list[str]) -> None:
    clock = Clock()
    refusals = RefusalLog("cat", clock)
    for _ in range(100):
        refusals.add(lambda: "no room")
    assert log_lines == ["server 'cat' is full: no room; refused since the last such line: 1"]
    clock.advance(COMPLAIN_SECONDS)
    refusals.add(lambda: "no room")
    assert log_lines[1:] == ["server 'cat' is full: no room; refused since the last such line: 100"]


# What one server has of the bridge's.


def test_each_server_has_its_guaranteed_part() -> None:
    """A server that takes all it can leaves the others their part, and gets no more than that."""
    whole = BridgeLimiter(4 * GUARANTEED_DIVISOR)
    greedy, other = whole.part(100), whole.part(100)
    assert (greedy.guaranteed, other.guaranteed) == (2, 2)
    taken = [greedy.acquire() for _ in range(4 * GUARANTEED_DIVISOR)]
    assert [each is not None for each in taken] == [True] * 6 + [False] * 2
    assert greedy.is_full()
    assert greedy.exceeds_guarantee
    assert greedy.reserved == 2
    assert not other.is_full()
    held = [other.acquire(), other.acquire()]
    assert None not in held
    assert other.acquire() is None
    assert not other.exceeds_guarantee
    assert (whole.taken, whole.kept, greedy.reserved) == (whole.limit, 0, 0)
    # What the other one returns is still its own.
    held[0].release()  # type: ignore[union-attr]
    assert greedy.is_full()
    assert not other.is_full()
    taken[0].release()  # type: ignore[union-attr]
    assert not greedy.is_full()


def test_no_more_is_kept_than_a_server_may_use() -> None:
    whole = BridgeLimiter(100)
    small, large = whole.part(3), whole.part(100)
    assert (small.guaranteed, large.guaranteed, whole.kept) == (3, 25, 28)


def test_nothing_is_kept_where_there_is_little() -> None:
    whole = BridgeLimiter(3)
    first, second = whole.part(100), whole.part(100)
    assert [first.acquire() is not None for _ in range(4)] == [True, True, True, False]
    assert second.is_full()


def test_nothing_is_kept_for_a_server_that_is_stopped() -> None:
    returned: list[int] = []
    whole = BridgeLimiter(8, lambda: returned.append(whole.taken))
    stopped, other = whole.part(100), whole.part(100)
    permit = stopped.acquire()
    stopped.close()
    stopped.close()
    assert (stopped.guaranteed, other.guaranteed, whole.kept) == (0, 4, 4)
    assert [other.acquire() is not None for _ in range(8)] == [True] * 7 + [False]
    assert permit is not None
    permit.release()
    permit.release()
    assert (returned, whole.kept) == ([7], 0)
    assert other.acquire() is not None
    # A server that comes later has its part as soon as there is something.
    late = whole.part(100)
    assert late.is_full()


def test_a_plain_limiter_guarantees_nothing() -> None:
    limiter = SessionLimiter(2)
    limiter.close()
    assert limiter.exceeds_guarantee
    assert limiter.reserved == 0


@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from(["take", "give", "close", "open"]), st.integers(0, 9))),
)
def test_parts_never_exceed_the_whole(
    limit: int, most: list[int], steps: list[tuple[str, int]]
) -> None:
    """Whatever is taken, returned, opened and closed, the counts stay true."""
    whole = BridgeLimiter(limit)
    parts = [whole.part(each) for each in most]
    held: list[tuple[Any, Any]] = []
    changed = False
    for step, number in steps:
        part = parts[number % len(parts)]
        if step == "take":
            full = part.is_full()
            permit = part.acquire()
            assert (permit is None) == full
            if permit is not None:
                held.append((part, permit))
        elif step == "give" and held:
            held.pop(number % len(held))[1].release()
        elif step == "close":
            part.close()
            changed = True
        elif step == "open":
            parts.append(whole.part(number + 1))
            changed = True
        assert whole.taken == len(held) == sum(each.taken for each in parts) <= limit
        assert whole.kept == sum(max(0, each.guaranteed - each.taken) for each in parts)
        if not changed:
            assert all(each.taken >= each.guaranteed or not each.is_full() for each in parts)
