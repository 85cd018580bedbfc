"""The shutdown sequence, step by step, on a clock: nothing too early, nothing left."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement, pairwise, product
from typing import Any, NoReturn

import pytest
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.stdio.shutdown import (
    FIRST_PAUSE_SECONDS,
    KILLS_BEFORE_WARNING,
    LONGEST_PAUSE_SECONDS,
    SHOWN_PROCESSES,
    ShutdownActions,
    build_shutdown,
)
from mcpbridge.testing import FakeTree
from mcpbridge.timers import backoff

STOP_GRACE = 1.0
KILL_GRACE = 2.0


def fail(*_: object) -> NoReturn:
    raise OSError("this step fails")


class Made:
    """A state machine on a clock; `told` is what it did, and when."""

    def __init__(
        self, rest: tuple[int, ...] = (), stop_grace: float = STOP_GRACE, **changes: Any
    ) -> None:
        self.clock = Clock()
        self.told: list[tuple[float, str]] = []
        self.tree = FakeTree(rest)
        self.tree.on_signal = self.signalled
        parts: dict[str, Any] = {
            "close_stdin": lambda: self.tell("close stdin"),
            "gone": lambda: self.tell("gone"),
            "kill_pause": backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, lambda: 0.0),
        }
        self.actions = ShutdownActions(
            clock=self.clock,
            label="0c8a4a3e",
            tree=self.tree,
            stop_grace=stop_grace,
            kill_grace=KILL_GRACE,
            **{**parts, **changes},
        )
        self.shutdown = build_shutdown(self.actions)

    def signalled(self, whom: str, number: int) -> None:
        self.tell(f"{whom} {signal.Signals(number).name}")

    def tell(self, what: str) -> None:
        self.told.append((round(self.clock.seconds(), 6), what))

    def found(self, *rest: int) -> None:
        """All looks that wait are answered with this rest."""
        assert self.tree.looks, "nobody looks"
        self.tree.rest = list(rest)
        self.tree.answer()

    def assert_over(self) -> None:
        assert self.told[-1][1] == "gone"
        assert self.tree.looks == []
        assert self.clock.getDelayedCalls() == []
        told = len(self.told)
        self.shutdown.stop()
        assert len(self.told) == told


def test_a_backend_that_honours_the_end_of_its_input() -> None:
    """The backend honours EOF: released as soon as the process can exit."""
    made = Made()
    made.shutdown.stop()
    made.clock.advance(0.3)
    made.shutdown.leader_exited()
    made.found()
    assert made.told == [(0.0, "close stdin"), (0.3, "gone")]
    made.assert_over()


def test_backend_that_ignores_the_end_of_its_input() -> None:
    """Close stdin → SIGTERM → SIGKILL, two graces, respected exactly."""
    made = Made()
    made.shutdown.stop()
    made.clock.advance(STOP_GRACE - 0.001)
    assert made.told == [(0.0, "close stdin")]
    made.clock.advance(0.001)
    assert made.told[1:] == [(1.0, "leader SIGTERM")]
    made.clock.advance(KILL_GRACE - 0.001)
    assert len(made.told) == 2
    made.clock.advance(0.001)
    assert made.told[2:] == [(3.0, "leader SIGKILL")]
    made.shutdown.leader_exited()
    made.found()
    assert made.told[3:] == [(3.0, "gone")]
    made.assert_over()


def test_a_backend_that_heeds_sigterm() -> None:
    made = Made()
    made.shutdown.stop()
    made.clock.advance(STOP_GRACE)
    made.found()
    made.clock.advance(0.2)
    made.shutdown.leader_exited()
    made.found()
    assert made.told == [(0.0, "close stdin"), (1.0, "leader SIGTERM"), (1.2, "gone")]
    made.assert_over()


def test_without_a_grace() -> None:
    made = Made(stop_grace=0)
    made.shutdown.stop()
    made.clock.advance(0)
    assert made.told == [(0.0, "close stdin"), (0.0, "leader SIGTERM")]


@pytest.mark.parametrize("after", [0.0, STOP_GRACE / 2, STOP_GRACE, STOP_GRACE + KILL_GRACE / 2])
def test_no_grace_any_more(after: float) -> None:
    """An operator does not wait: SIGKILL at once, and after that as always."""
    made = Made()
    made.shutdown.stop()
    made.clock.pump([0.5] * int(after / 0.5))
    made.actions.hurry(made.shutdown)
    made.clock.advance(0)
    made.clock.advance(0)
    assert made.told[-2:] == [(min(after, STOP_GRACE), "leader SIGTERM"), (after, "leader SIGKILL")]
    made.shutdown.leader_exited()
    made.found()
    made.assert_over()


def test_no_grace_for_a_backend_that_is_stopped_later() -> None:
    made = Made()
    made.actions.hurry(made.shutdown)
    assert made.told == []
    made.shutdown.stop()
    made.clock.advance(0)
    made.clock.advance(0)
    assert [what for _, what in made.told] == ["close stdin", "leader SIGTERM", "leader SIGKILL"]


def test_leader_that_leaves_nothing_behind() -> None:
    """The backend exits: child reaped, permit freed; nothing is signalled."""
    made = Made()
    made.shutdown.leader_exited()
    assert made.told == []
    made.found()
    assert made.told == [(0.0, "gone")]
    made.assert_over()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_leader_that_leaves_others_behind(stopped: bool) -> None:
    """Grandchildren: SIGTERM at once, then the kill grace, then the whole tree is gone."""
    made = Made()
    if stopped:
        made.shutdown.stop()
        made.told.clear()
    made.clock.advance(0.5)
    made.shutdown.leader_exited()
    made.found(11, 12)
    assert made.told == [(0.5, "11 SIGTERM"), (0.5, "12 SIGTERM")]
    made.found(12)
    made.clock.advance(KILL_GRACE - 0.001)
    made.found(12)
    assert len(made.told) == 2
    made.clock.advance(0.001)
    made.found(12)
    assert made.told[2:] == [(2.5, "12 SIGKILL")]
    made.clock.advance(FIRST_PAUSE_SECONDS)
    made.found()
    assert made.told[3:] == [(2.55, "gone")]
    made.assert_over()


@pytest.mark.parametrize("stopped", [False, True])
def test_the_group_gets_sigterm_before_anything_is_found(stopped: bool) -> None:
    """Grandchildren in the leader's group need not wait for a look; they get one SIGTERM."""
    made = Made()
    if stopped:
        made.shutdown.stop()
    assert made.tree.group_signals == 0
    made.shutdown.leader_exited()
    assert made.tree.group_signals == 1
    made.found(11)
    made.found()
    assert made.tree.group_signals == 1
    made.assert_over()


def test_a_group_that_had_sigterm_with_its_leader_gets_no_other() -> None:
    made = Made()
    made.shutdown.stop()
    made.clock.advance(STOP_GRACE)
    made.shutdown.leader_exited()
    assert made.tree.group_signals == 0
    made.found()
    made.assert_over()


def test_newborn_process_gets_its_own_sigterm() -> None:
    made = Made()
    made.shutdown.leader_exited()
    made.found(11)
    made.found(11, 12)
    made.found(11, 12)
    made.found()
    assert made.told == [(0.0, "11 SIGTERM"), (0.0, "12 SIGTERM"), (0.0, "gone")]
    made.assert_over()


def test_strays_beside_a_living_leader() -> None:
    """The whole tree: what left the leader's group is signalled with it."""
    made = Made()
    made.shutdown.stop()
    made.clock.advance(STOP_GRACE)
    made.found(11)
    made.clock.advance(KILL_GRACE)
    made.found(11, 12)
    assert made.told[1:] == [
        (1.0, "leader SIGTERM"),
        (1.0, "11 SIGTERM"),
        (3.0, "leader SIGKILL"),
        (3.0, "11 SIGKILL"),
        (3.0, "12 SIGKILL"),
    ]
    made.shutdown.leader_exited()
    made.found(12)
    assert made.told[6:] == [(3.0, "12 SIGKILL")]
    made.clock.advance(LONGEST_PAUSE_SECONDS)
    made.found()
    made.assert_over()


def test_the_kill_grace_begins_with_the_first_sigterm() -> None:
    """A leader that exits late in its grace gains no time for the rest."""
    made = Made()
    made.shutdown.stop()
    made.clock.advance(STOP_GRACE)
    made.found(11)
    made.clock.advance(KILL_GRACE - 0.5)
    made.shutdown.leader_exited()
    made.found(11, 12)
    assert made.told[2:] == [(1.0, "11 SIGTERM"), (2.5, "12 SIGTERM")]
    made.clock.advance(0.5)
    made.found(11, 12)
    assert made.told[4:] == [(3.0, "11 SIGKILL"), (3.0, "12 SIGKILL")]


def test_tree_is_not_gone_while_the_leader_lives() -> None:
    """The permit returns when the tree is gone, the leader with it."""
    made = Made()
    made.shutdown.stop()
    made.clock.advance(STOP_GRACE)
    made.found()
    made.clock.advance(KILL_GRACE)
    made.found()
    assert "gone" not in [what for _, what in made.told]


@pytest.mark.parametrize("who", ["leader", "rest"])
def test_what_cannot_be_killed_is_tried_again(who: str, log_lines: list[str]) -> None:
    """A process that cannot be killed keeps its permit, is logged once and tried again."""
    made = Made(rest=(11,))
    if who == "leader":
        made.tree.rest = []
        made.shutdown.stop()
        made.clock.advance(STOP_GRACE + KILL_GRACE)
        name = "leader"
    else:
        made.shutdown.leader_exited()
        made.tree.answer()
        made.clock.advance(KILL_GRACE)
        name = "11"
    for _ in range(4000):
        made.tree.answer()
        made.clock.advance(0.01)
    kills = [at for at, what in made.told if what == f"{name} SIGKILL"]
    pauses = [round(after - before, 2) for before, after in pairwise(kills)]
    expected = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert pauses[: len(expected)] == pytest.approx(expected, abs=0.03)
    assert max(pauses) == pytest.approx(LONGEST_PAUSE_SECONDS, abs=0.03)
    [warning] = [line for line in log_lines if "do not die from SIGKILL" in line]
    assert "0c8a4a3e" in warning
    assert (", 11;" in warning) is (who == "rest")
    assert len(kills) > KILLS_BEFORE_WARNING
    if who == "leader":
        made.shutdown.leader_exited()
    made.clock.advance(LONGEST_PAUSE_SECONDS)
    made.found()
    made.assert_over()


def test_the_warning_comes_with_the_last_of_some_kills(log_lines: list[str]) -> None:
    made = Made()
    made.shutdown.stop()
    made.clock.pump([STOP_GRACE, KILL_GRACE])
    for kill in range(1, KILLS_BEFORE_WARNING + 1):
        assert len(made.told) == 2 + kill
        assert bool(log_lines) is (kill == KILLS_BEFORE_WARNING)
        made.clock.advance(FIRST_PAUSE_SECONDS * 2 ** (kill - 1))


def test_warning_names_some_of_the_processes(log_lines: list[str]) -> None:
    """`SHOWN_PROCESSES`."""
    rest = tuple(range(101, 101 + SHOWN_PROCESSES + 1))
    made = Made(rest=rest)
    made.shutdown.leader_exited()
    made.tree.answer()
    made.clock.advance(KILL_GRACE)
    while not log_lines:
        made.tree.answer()
        made.clock.advance(LONGEST_PAUSE_SECONDS)
    named = "".join(f", {pid}" for pid in rest[:SHOWN_PROCESSES])
    assert f"do not die from SIGKILL{named};" in log_lines[0]
    made.tree.rest = []
    made.clock.advance(LONGEST_PAUSE_SECONDS)
    made.found()
    made.assert_over()


def test_a_look_that_fails_is_tried_again(logged_failures: list[Failure]) -> None:
    """What was not seen is not gone."""
    made = Made(rest=(11,))
    made.shutdown.leader_exited()
    for _ in range(2):
        made.tree.looks.pop().errback(OSError("too many open files"))
        assert made.told == []
        # Said once.
        assert len(logged_failures) == 1
        made.clock.advance(LONGEST_PAUSE_SECONDS - 0.01)
        assert made.tree.looks == []
        made.clock.advance(0.01)
    made.tree.answer()
    assert made.told == [(10.0, "11 SIGTERM")]
    made.found()
    made.assert_over()


def test_one_look_at_a_time() -> None:
    made = Made()
    made.shutdown.stop()
    made.clock.advance(STOP_GRACE)
    made.clock.advance(KILL_GRACE)
    made.shutdown.leader_exited()
    assert len(made.tree.looks) == 1
    made.found()
    made.assert_over()


def test_failing_step_does_not_prevent_the_next(
    logged_failures: list[Failure],
) -> None:
    """A step that fails prevents no other."""
    made = Made(close_stdin=fail)
    made.tree.on_signal = fail
    made.shutdown.stop()
    made.clock.advance(STOP_GRACE)
    made.found(11)
    made.clock.advance(KILL_GRACE)
    made.found(11)
    assert made.tree.signals == [
        ("leader", "SIGTERM"),
        ("11", "SIGTERM"),
        ("leader", "SIGKILL"),
        ("11", "SIGKILL"),
    ]
    assert len(logged_failures) == 5
    made.shutdown.leader_exited()
    made.found()
    made.assert_over()


@pytest.mark.parametrize("moment", range(7))
def test_stop_may_come_again_at_any_time(moment: int) -> None:
    """The same story with and without a second `stop` in its middle."""
    stories = []
    for again in (moment, None):
        made = Made()
        steps: list[Callable[[], object]] = [
            made.shutdown.stop,
            partial(made.clock.advance, STOP_GRACE),
            partial(made.clock.advance, KILL_GRACE),
            made.shutdown.leader_exited,
            partial(made.found, 11),
            partial(made.clock.advance, 5),
            made.found,
        ]
        for number, step in enumerate(steps):
            step()
            if number == again:
                made.shutdown.stop()
        made.assert_over()
        stories.append(made.told)
    assert stories[0] == stories[1]


LEADERS = ("at EOF", "SIGTERM", "SIGKILL")
RESTS = [
    rest
    for size in range(3)
    for rest in combinations_with_replacement(("SIGTERM", "SIGKILL", "alone"), size)
]


@pytest.mark.parametrize("dies_of", LEADERS)
@pytest.mark.parametrize("look_takes", [0, 0.7, 4.0])
def test_every_small_tree_is_gone_in_the_end(dies_of: str, look_takes: float) -> None:
    """The whole tree is gone, whoever heeds what; nobody is signalled too early."""
    for rest, stops in product(RESTS, [True, False]):
        pids = dict(enumerate(rest, 11))
        made = Made(tuple(pids))

        def signalled(whom: str, number: int, made: Made = made, pids: Any = pids) -> None:
            name = signal.Signals(number).name
            made.tell(f"{whom} {name}")
            if whom == "leader" and dies_of == name:
                made.clock.callLater(0.01, made.shutdown.leader_exited)
            elif whom != "leader" and name in (pids[int(whom)], "SIGKILL"):
                made.tree.rest = [pid for pid in made.tree.rest if str(pid) != whom]

        made.tree.on_signal = signalled
        if stops:
            made.shutdown.stop()
        if dies_of == "at EOF" or not stops:
            made.shutdown.leader_exited()
        # Who dies alone does so before long.
        alone = [pid for pid, what in pids.items() if what == "alone"]
        waited = 0.0
        for _ in range(200):
            made.clock.advance(0.1)
            if made.clock.seconds() > 2:
                made.tree.rest = [pid for pid in made.tree.rest if pid not in alone]
            waited = waited + 0.1 if made.tree.looks else 0.0
            if waited >= look_takes:
                waited = 0.0
                made.tree.answer()
        assert [what for _, what in made.told].count("gone") == 1, (rest, stops)
        made.assert_over()
        first_kill = min((at for at, what in made.told if "SIGKILL" in what), default=99.0)
        first_term = min((at for at, what in made.told if "SIGTERM" in what), default=0.0)
        assert first_kill >= round(first_term + KILL_GRACE, 6)
