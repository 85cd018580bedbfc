"""A delayed call that can be replaced and cancelled."""

from __future__ import annotations

from twisted.internet.task import Clock

from mcpbridge.timers import Timer


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
