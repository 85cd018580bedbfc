"""Permits: never more than the limit, and none is returned twice."""

from itertools import product
from typing import Any

import pytest
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mcpbridge.config.tuning import COMPLAIN_SECONDS
from mcpbridge.errors import SettingError
from mcpbridge.interfaces import IPermit, ISessionLimiter
from mcpbridge.processes.permits import CombinedLimiter, Permit, RefusalLog, SessionLimiter


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
