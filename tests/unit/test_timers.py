"""Timers, and the pauses between retries."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge.timers import Timer, backoff


def test_it_calls_once() -> None:
    clock, called = Clock(), list[str]()
    timer = Timer(clock)
    assert (timer.is_running, timer.due) == (False, None)
    timer.start(2, lambda: called.append("a"))
    assert (timer.is_running, timer.due) == (True, 2.0)
    clock.advance(2)
    assert (called, timer.is_running, timer.due) == (["a"], False, None)
    clock.advance(10)
    assert called == ["a"]


def test_a_new_call_replaces_the_old_one() -> None:
    clock, called = Clock(), list[str]()
    timer = Timer(clock)
    timer.start(1, lambda: called.append("old"))
    timer.start(2, lambda: called.append("new"))
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(5)
    assert called == ["new"]


def test_a_stopped_timer_calls_nothing() -> None:
    clock, called = Clock(), list[str]()
    timer = Timer(clock)
    timer.stop()
    timer.start(1, lambda: called.append("a"))
    timer.stop()
    timer.stop()
    assert (timer.is_running, clock.getDelayedCalls()) == (False, [])
    clock.advance(5)
    assert called == []


def test_the_call_may_start_the_timer_again() -> None:
    clock, called = Clock(), list[float]()
    timer = Timer(clock)

    def again() -> None:
        called.append(clock.seconds())
        if len(called) < 3:
            timer.start(1, again)

    timer.start(1, again)
    for _ in range(5):
        clock.advance(1)
    assert (called, timer.is_running) == ([1.0, 2.0, 3.0], False)


def test_a_call_is_made_once_with_its_arguments() -> None:
    clock, made = Clock(), list[tuple[int, ...]]()
    timer = Timer(clock)
    timer.start(1, lambda *told: made.append(told), 1, 2)
    clock.advance(0.9)
    assert made == []
    clock.advance(0.1)
    assert (made, timer.is_running, clock.getDelayedCalls()) == ([(1, 2)], False, [])


def test_a_call_that_was_made_keeps_nothing_alive() -> None:
    """Otherwise every object with a timer would wait for the garbage collector."""

    class Owner:
        def __init__(self, clock: Clock) -> None:
            self.timer = Timer(clock)
            self.timer.start(1, self.done)

        def done(self) -> None:
            pass

    clock = Clock()
    owner = Owner(clock)
    gone = weakref.ref(owner)
    gc.disable()
    try:
        clock.advance(1)
        del owner
        assert gone() is None
    finally:
        gc.enable()


def test_pauses_double_up_to_the_longest() -> None:
    pause = backoff(0.5, 3, jitter=lambda: 0.0)
    assert [pause(attempts) for attempts in range(5)] == [0.5, 1, 2, 3, 3]


@given(st.floats(0.01, 10), st.floats(10, 100), st.integers(0, 10**6), st.floats(0, 1))
def test_jitter_adds_a_part_of_the_first_pause(
    first: float, longest: float, attempts: int, jitter: float
) -> None:
    plain = backoff(first, longest, jitter=lambda: 0.0)(attempts)
    assert first <= plain <= longest
    assert backoff(first, longest, jitter=lambda: jitter)(attempts) == pytest.approx(
        plain + first * jitter
    )


def test_pauses_vary_by_default() -> None:
    pause = backoff(1, 60)
    assert len({pause(0) for _ in range(50)}) > 1
    assert all(1 <= pause(0) <= 2 for _ in range(50))
