"""
How often the process table and the adopted children are looked at, on a clock.
What is found there is tested in `tests/integration`, with real processes.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from twisted.internet.task import Clock

from mcpbridge.pacer import PACED_SECONDS, Pacer
from mcpbridge.stdio import kill_pass, procfs
from mcpbridge.stdio import reaper as reaper_module
from mcpbridge.stdio.process_tracker import SWEEP_REST_FACTOR, SWEEP_SECONDS, ProcessTracker
from mcpbridge.stdio.reaper import REAP_SECONDS, Reaper, any_exited

BASE = 1 << 40
#: In how many steps the clock passes a pause.
STEPS = 16


@pytest.mark.parametrize("used", [0.0, SWEEP_SECONDS])
def test_readings_of_the_process_table_have_pauses(
    monkeypatch: pytest.MonkeyPatch, used: float
) -> None:
    """
    `SWEEP_SECONDS`, or `SWEEP_REST_FACTOR` times what a reading `used`, between
    two of them, however often somebody asks.
    """
    clock, spent, readings = Clock(), 0.0, list[float]()

    def read(*_: object) -> Generator[None, None, procfs.Table]:
        nonlocal spent
        yield
        readings.append(clock.seconds())
        spent += used
        return procfs.Table([procfs.Tagged(7, BASE + 1, False, 1)], [])

    monkeypatch.setattr(procfs, "read_table", read)
    tracker = ProcessTracker(clock, BASE, processor_time=lambda: spent)

    def ask(_: object = None) -> None:
        if len(readings) < 4:
            tracker.look(BASE + 1).addCallback(ask)

    ask()
    pause = max(SWEEP_SECONDS, SWEEP_REST_FACTOR * used)
    clock.pump([0, *[pause / STEPS] * 4 * STEPS])
    assert readings == pytest.approx([0, pause, 2 * pause, 3 * pause], abs=pause / 4)
    assert clock.getDelayedCalls() == []


def test_answers_of_one_reading_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the end of each of hundreds of trees takes a moment."""

    def read(*_: object) -> Generator[None, None, procfs.Table]:
        yield
        return procfs.Table([], [])

    monkeypatch.setattr(procfs, "read_table", read)
    clock, answered = Clock(), list[int]()
    pacer = Pacer(clock)
    tracker = ProcessTracker(clock, BASE, processor_time=lambda: 0.0, pacer=pacer)

    def work(pids: list[int]) -> None:
        answered.append(len(pids))
        clock.rightNow += PACED_SECONDS

    for tag in range(1, 4):
        tracker.look(BASE + tag).addCallback(work)
    [sweep] = clock.calls
    clock.calls = []
    sweep.called = 1
    tracker._sweep()
    assert len(answered) == 1
    clock.advance(0)
    assert answered == [0, 0, 0]
    clock.advance(0)
    assert clock.getDelayedCalls() == []


def test_adopted_children_are_looked_for_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `REAP_SECONDS` while there is a leader, and once more when it is gone."""
    monkeypatch.setattr(reaper_module, "any_exited", lambda: True)
    clock, looks = Clock(), list[float]()

    def children() -> list[int]:
        looks.append(clock.seconds())
        assert len(looks) < 10, "it looks without end"
        return []

    monkeypatch.setattr(procfs, "own_children", children)
    leaders = {7: BASE + 1}
    reaper = Reaper(clock, BASE, leaders, sweep_for_zombies=lambda: None)
    reaper.start()
    reaper.start()
    clock.pump([REAP_SECONDS / STEPS] * (3 * STEPS + 1))
    times: list[Any] = [REAP_SECONDS, 2 * REAP_SECONDS, 3 * REAP_SECONDS]
    assert looks == pytest.approx(times, abs=REAP_SECONDS / 4)
    leaders.clear()
    reaper.stop_if_idle()
    clock.advance(2 * REAP_SECONDS)
    assert looks == pytest.approx([*times, times[-1]], abs=REAP_SECONDS / 4)
    assert clock.getDelayedCalls() == []


def test_children_are_not_looked_at_while_none_has_exited(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: that would take longer with each session."""
    clock, exited, looks = Clock(), [False], list[float]()

    def children() -> list[int]:
        looks.append(clock.seconds())
        return []

    monkeypatch.setattr(reaper_module, "any_exited", lambda: exited[0])
    monkeypatch.setattr(procfs, "own_children", children)
    leaders = {7: BASE + 1}
    reaper = Reaper(clock, BASE, leaders, sweep_for_zombies=lambda: looks.append(-1))
    reaper.start()
    clock.pump([REAP_SECONDS] * 3)
    assert looks == []
    exited[0] = True
    clock.advance(REAP_SECONDS)
    assert looks == [4 * REAP_SECONDS]
    leaders.clear()
    reaper.stop_if_idle()
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("answer", "exited"),
    [
        (None, False),
        (object(), True),
        (ChildProcessError(), False),
        (OSError(), True),
        (AttributeError(), True),
    ],
)
def test_whether_any_child_has_exited(
    answer: object, exited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waitid(*asked: int) -> object:
        assert asked == (os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(os, "waitid", waitid)
    assert any_exited() is exited


def test_table_is_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """`SLICE` processes at a time."""
    monkeypatch.setattr(procfs, "rounds", lambda since: iter([(range(1, 4 * procfs.SLICE), True)]))
    monkeypatch.setattr(procfs.Reader, "examine", lambda self, pid: None)
    assert len(list(procfs.read_table(BASE))) == 3


def test_chase_of_a_forking_process_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """`CHASES`: one that always has a newer child is left to the next round."""
    newest = iter(range(1000, 1000 + 10 * kill_pass.CHASES, 10))
    listings = iter([([1], True), ([], True)])
    visited: list[int] = []

    def examine(reader: procfs.Reader, pid: int) -> bool:
        visited.append(pid)
        return False

    monkeypatch.setattr(kill_pass, "newest_process", lambda: next(newest))
    monkeypatch.setattr(kill_pass, "rounds", lambda since: listings)
    monkeypatch.setattr(procfs.Reader, "examine", examine)
    assert kill_pass.kill_pass(BASE) == 0
    assert list(newest) == []
    assert len(visited) >= kill_pass.CHASES
