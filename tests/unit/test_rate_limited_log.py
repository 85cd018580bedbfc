"""What is said only now and then."""

from __future__ import annotations

from twisted.internet.task import Clock

from mcpbridge.config.tuning import COMPLAIN_SECONDS, MAX_CAUSES
from mcpbridge.rate_limited_log import RateLimitedLog, RateLimitedLogByCause, times


def test_first_occurrence_is_due_and_later_ones_after_a_pause() -> None:
    clock = Clock()
    complaints = RateLimitedLog(clock)
    complaints.add()
    assert complaints.due() == 1
    complaints.add()
    complaints.add()
    clock.advance(COMPLAIN_SECONDS - 0.001)
    assert complaints.due() is None
    clock.advance(0.001)
    assert complaints.due() == 2
    clock.advance(COMPLAIN_SECONDS)
    assert complaints.due() == 0, "something may be said that is not counted"


def test_each_cause_has_its_own_pause() -> None:
    clock = Clock()
    complaints = RateLimitedLogByCause(clock)
    assert complaints.add("a") == 1
    assert complaints.add("b") == 1
    assert [complaints.add("a"), complaints.add("a"), complaints.add("b")] == [None] * 3
    clock.advance(COMPLAIN_SECONDS)
    assert complaints.add("a") == 3
    assert complaints.add("b") == 2


def test_causes_beyond_the_maximum_count_as_one() -> None:
    """bound: MAX_CAUSES; those that are known are still said, and old ones give way."""
    clock = Clock()
    complaints = RateLimitedLogByCause(clock)
    said = [complaints.add(number) for number in range(MAX_CAUSES + 10)]
    assert said == [1] * (MAX_CAUSES + 1) + [None] * 9
    clock.advance(COMPLAIN_SECONDS)
    assert complaints.add(MAX_CAUSES - 1) == 1
    assert [complaints.add(f"new {number}") for number in range(2 * MAX_CAUSES)].count(
        1
    ) == MAX_CAUSES - 1
    assert len(complaints._causes) == MAX_CAUSES


def test_suffix_for_repeated_occurrences() -> None:
    assert times(1) == ""
    assert times(3) == " (3 times since it was last logged)"
