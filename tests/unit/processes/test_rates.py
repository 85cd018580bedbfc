"""Token buckets: how often a caller may do something."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge.config.tuning import BURST_SECONDS, RATE_LIMITED_CALLERS
from mcpbridge.errors import RateExceeded
from mcpbridge.processes.rates import _LOOKS, _NOTHING, RateLimit, TokenBuckets

#: Rates that are no sum of powers of two, slow ones, and fast ones.
RATES = st.sampled_from([1 / 3, 0.1, 0.7, 1.0, 3.0, 10.0, 1 / 60, 1000.0])
#: A time of day: the largest numbers that a clock of the bridge shows.
TODAY = 1_900_000_000.0


class Time:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@given(
    rate=RATES,
    burst=st.integers(1, 12),
    start=st.sampled_from([0.0, TODAY]),
    steps=st.lists(st.tuples(st.integers(0, 400), st.sampled_from("abc")), max_size=60),
)
def test_no_window_has_more_than_burst_and_rate_allow(
    rate: float, burst: int, start: float, steps: list[tuple[int, str]]
) -> None:
    """And a token is refused only when less than one is there, counted exactly."""
    time = Time(start)
    buckets = TokenBuckets(rate, burst, time)
    taken: dict[str, list[Fraction]] = defaultdict(list)
    exact: dict[str, tuple[Fraction, Fraction]] = {}
    for pause, key in steps:
        time.now += pause / 64
        now = Fraction(time.now)
        tokens, since = exact.get(key, (Fraction(burst), now))
        tokens = min(Fraction(burst), tokens + (now - since) * Fraction(rate))
        if buckets.take(key) is None:
            assert tokens > 1 - 2 * _NOTHING
            tokens -= 1
            taken[key].append(now)
        else:
            assert tokens < 1
        exact[key] = tokens, now
    for times in taken.values():
        for at, first in enumerate(times):
            for count, last in enumerate(times[at:], 1):
                assert count <= burst + Fraction(rate) * (last - first) + Fraction(2 * _NOTHING)


@given(
    rate=RATES,
    burst=st.integers(1, 12),
    start=st.sampled_from([0.0, TODAY]),
    steps=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40)), max_size=60),
)
def test_no_window_has_more_than_one_batch_too_many(
    rate: float, burst: int, start: float, steps: list[tuple[int, int]]
) -> None:
    """Several at once: what is beyond the burst is owed, and told how long."""
    time = Time(start)
    buckets = TokenBuckets(rate, burst, time)
    taken: list[tuple[float, int]] = []
    for pause, count in steps:
        time.now += pause / 64
        seconds = buckets.take("a", count)
        if seconds is not None:
            time.now += seconds
            assert buckets.take("a", count) is None
        taken.append((time.now, count))
    for at, (first, _) in enumerate(taken):
        total = 0
        for last, count in taken[at:]:
            allowed = burst + rate * (last - first) + max(0, count - burst)
            total += count
            assert total <= allowed + 1e-3


@given(
    rate=RATES,
    burst=st.integers(1, 12),
    start=st.sampled_from([0.0, TODAY]),
    pauses=st.lists(st.floats(0, 20), max_size=40),
)
def test_waiting_as_long_as_told_succeeds(
    rate: float, burst: int, start: float, pauses: list[float]
) -> None:
    """And a whole second less is too short."""
    time = Time(start)
    buckets = TokenBuckets(rate, burst, time)
    for pause in pauses:
        time.now += pause
        seconds = buckets.take("a")
        if seconds is None:
            continue
        assert seconds == ceil(seconds) >= 1
        if seconds > 1:
            time.now += seconds - 1.001
            assert buckets.take("a") is not None
            time.now += 1.001
        else:
            time.now += 1
        assert buckets.take("a") is None


@pytest.mark.parametrize("rate", [0.1, 1 / 3, 1 / 7])
@pytest.mark.parametrize("start", [0.0, TODAY])
def test_fractional_rates_lose_nothing_over_time(rate: float, start: float) -> None:
    """Whoever comes at the rate itself is never refused, after any time."""
    time = Time(start)
    buckets = TokenBuckets(rate, 1, time)
    for number in range(5000):
        time.now = start + number / rate
        assert buckets.take("a") is None, number


def test_a_burst_comes_from_a_full_bucket_only() -> None:
    time = Time()
    buckets = TokenBuckets(0.5, 3, time)
    assert [buckets.take("a") for _ in range(4)] == [None, None, None, 2]
    time.now = 2
    assert [buckets.take("a") for _ in range(2)] == [None, 2]
    time.now = 100
    assert [buckets.take("a") for _ in range(4)] == [None, None, None, 2]


def test_a_refusal_takes_nothing() -> None:
    time = Time()
    buckets = TokenBuckets(1, 1, time)
    buckets.take("a")
    for _ in range(100):
        time.now += 0.005
        assert buckets.take("a") == 1
    time.now = 1
    assert buckets.take("a") is None


def test_keys_do_not_know_each_other() -> None:
    buckets = TokenBuckets(1, 1, Time())
    assert [buckets.take("a"), buckets.take("b"), buckets.take("a")] == [None, None, 1]


def test_clock_that_is_set_back_stops_no_caller_for_long() -> None:
    time = Time(10_000)
    buckets = TokenBuckets(1, 1, time)
    buckets.take("a")
    time.now = 0
    assert buckets.take("a") == 1
    time.now = 1
    assert buckets.take("a") is None


def test_new_keys_do_not_fill_the_buckets_of_others() -> None:
    """The table is bounded: those that find no place share one bucket."""
    time = Time()
    buckets = TokenBuckets(0.1, 2, time, most=10)
    for key in range(10):
        assert buckets.take(str(key)) is None
        assert buckets.take(str(key)) is None
    shared = [buckets.take(f"flood{number}") for number in range(1000)]
    assert shared.count(None) == 2
    assert len(buckets) == 10
    for key in range(10):
        assert buckets.take(str(key)) == 10


def test_full_buckets_give_way() -> None:
    """A few at a time are looked at, so that taking a token never takes long: `_LOOKS`."""
    time = Time()
    buckets = TokenBuckets(1, 2, time, most=10)
    # One that stays empty is among those that are full again.
    for _ in range(2):
        buckets.take("busy")
    for key in range(9):
        buckets.take(str(key))
    time.now = 1.5
    assert buckets.take("new") is None
    assert len(buckets) in (10 - _LOOKS + 1, 10 - (_LOOKS - 1) + 1)
    for number in range(20):
        buckets.take(f"other{number}")
    assert len(buckets) == 10
    assert [buckets.take("busy"), buckets.take("busy")] == [None, 1]


def test_there_is_a_bucket_for_each_of_many_callers() -> None:
    """`RATE_LIMITED_CALLERS`; one more shares."""
    time = Time()
    buckets = TokenBuckets(1, 1, time)
    for key in range(RATE_LIMITED_CALLERS):
        assert buckets.take(str(key)) is None
    assert len(buckets) == RATE_LIMITED_CALLERS
    assert [buckets.take("a"), buckets.take("b")] == [None, 1]
    assert len(buckets) == RATE_LIMITED_CALLERS


# The limit of a setting.


def limit(rate: float, clock: Clock) -> RateLimit:
    return RateLimit(rate, clock, what="messages", setting="messages_per_second")


def test_a_limit_of_nothing_is_none() -> None:
    unlimited = limit(0, Clock())
    assert not unlimited.is_on
    for _ in range(1000):
        unlimited.check("alice")


def test_nobody_in_particular_is_not_limited() -> None:
    """Such as an exempt address."""
    limited = limit(0.1, Clock())
    assert limited.is_on
    for _ in range(10):
        limited.check(None)


@pytest.mark.parametrize("rate", [2.0, 0.25, 0.01])
def test_refusal_says_what_is_allowed_and_when(rate: float, log_lines: list[str]) -> None:
    """`BURST_SECONDS`: what a caller may do in that time it may do at once, and at least one."""
    clock = Clock()
    limited = limit(rate, clock)
    for _ in range(max(1, ceil(rate * BURST_SECONDS))):
        limited.check("alice")
    with pytest.raises(RateExceeded, match=r"too many messages.*messages_per_second") as refused:
        limited.check("alice")
    assert refused.value.retry_after == max(1, ceil(1 / rate))
    limited.check("bob")
    clock.advance(refused.value.retry_after)
    limited.check("alice")
    assert [line.partition(":")[0] for line in log_lines] == ["'alice' sends too many messages"]


def test_refusals_are_logged_now_and_then(log_lines: list[str]) -> None:
    """A name cannot forge a line."""
    limited = limit(0.1, Clock())
    limited.check("a\nb")
    for _ in range(50):
        with pytest.raises(RateExceeded):
            limited.check("a\nb")
    assert len(log_lines) == 1
    assert log_lines[0].startswith("'a\\nb' sends")
