"""Steps run at once as long as an iteration of the reactor has time for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock

from mcpbridge.pacer import PACED_SECONDS, Pacer


class Made:
    """A pacer, and steps that each take a whole budget, or as long as they are told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pacer = Pacer(self.clock)
        self.ran: list[str] = []

    def step(self, name: str, seconds: float = PACED_SECONDS) -> None:
        self.ran.append(name)
        self.clock.rightNow += seconds

    def run(self, key: str, name: str, seconds: float = PACED_SECONDS) -> Any:
        step = partial(self.step, name, seconds)
        self.pacer.run(key, step)
        return step

    def next(self) -> str:
        """Return what the next iteration of the reactor runs."""
        before = len(self.ran)
        # A `Clock` would also run what is asked for meanwhile.
        calls, self.clock.calls = self.clock.calls, []
        for call in calls:
            call.called = 1
            call.func(*call.args, **call.kw)
        return " ".join(self.ran[before:])


def test_steps_run_at_once_until_the_time_of_an_iteration_is_over() -> None:
    """`PACED_SECONDS`: a step that has begun goes on, and later ones wait."""
    made = Made()
    for name in "abcd":
        made.run("x", name, PACED_SECONDS * 0.4)
    assert made.ran == ["a", "b", "c"]
    assert made.next() == "d"
    made.run("x", "e", PACED_SECONDS)
    assert made.ran[-1] == "e"
    assert made.next() == ""
    assert made.clock.getDelayedCalls() == []


def test_at_least_one_step_runs_in_each_iteration() -> None:
    made = Made()
    for name in "abc":
        made.run("x", name, 100 * PACED_SECONDS)
    assert made.ran == ["a"]
    assert made.next() == "b"
    assert made.next() == "c"


def test_a_step_does_not_overtake_those_that_wait() -> None:
    made = Made()
    made.run("x", "a")
    made.run("x", "b")
    made.clock.callLater(0, made.run, "x", "c", 0)
    assert made.next() == "b"
    assert made.next() == "c"


def test_keys_take_turns() -> None:
    made = Made()
    for name in ("x1", "x2", "x3", "y1", "y2", "z1"):
        made.run(name[0], name)
    assert [made.next() for _ in range(5)] == ["x2", "y1", "z1", "x3", "y2"]


def test_time_of_a_step_within_another_counts_once() -> None:
    """Otherwise half of an iteration would be lost."""
    made = Made()
    made.pacer.run("x", lambda: made.run("y", "a", PACED_SECONDS * 0.6))
    made.run("x", "b", 0)
    assert made.ran == ["a", "b"]
    made.run("x", "c", PACED_SECONDS * 0.5)
    made.run("x", "d", 0)
    assert made.ran == ["a", "b", "c"]


def test_a_step_may_ask_for_another() -> None:
    """The other is a part of it as long as none waits."""
    made = Made()
    made.run("x", "a")
    made.pacer.run("x", lambda: made.run("x", "b"))
    assert made.next() == "b"
    assert made.next() == ""
    made.run("x", "c")
    made.pacer.run("x", lambda: made.run("x", "e"))
    made.run("x", "d")
    assert [made.next() for _ in range(3)] == ["d", "e", ""]
    assert made.clock.getDelayedCalls() == []


def test_a_cancelled_step_does_not_run() -> None:
    made = Made()
    first = made.run("x", "a")
    second, third = made.run("x", "b"), made.run("x", "c")
    made.pacer.cancel("x", first)
    made.pacer.cancel("y", third)
    made.pacer.cancel("x", second)
    assert made.next() == "c"
    last = made.run("x", "d")
    made.pacer.cancel("x", last)
    assert made.next() == ""
    assert made.clock.getDelayedCalls() == []


def test_a_step_that_fails_prevents_no_other(logged_failures: list[Any]) -> None:
    made = Made()
    made.run("x", "a")

    def fail() -> None:
        raise ValueError("it fails")

    made.pacer.run("x", fail)
    made.run("x", "b")
    assert made.next() == "b"
    assert [each.type for each in logged_failures] == [ValueError]


def test_a_step_that_is_interrupted_is_over() -> None:
    """What `guarded` lets pass: others still have the time of one iteration only."""
    made = Made()

    def interrupt() -> None:
        made.step("a", 0.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.pacer.run("x", interrupt)
    made.run("x", "b")
    made.run("x", "c")
    assert made.ran == ["a", "b"]
    assert made.next() == "c"


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_step_that_takes_no_time_leaves_no_delayed_call(seconds: float) -> None:
    """A clock may also be set back."""
    made = Made()
    made.run("x", "a", seconds)
    assert made.clock.getDelayedCalls() == []
