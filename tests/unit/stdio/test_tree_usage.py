"""What process trees use; their processes are this one, and some that the test defines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.process_usage import Usage
from mcpbridge.stdio import process_memory, process_tags, procfs, tree_usage
from mcpbridge.stdio.process_tags import Machine
from mcpbridge.stdio.procfs import SLICE, Tagged
from mcpbridge.stdio.tree_usage import MEASURED_PROCESSES, TreeUsage, usage_of

BASE = 1 << 40
OWN = os.getpid()
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")


def read(usage: TreeUsage) -> tuple[dict[int, Usage], int]:
    """Return what a reading has found, and how often it has paused."""
    reading = usage.read()
    pauses = 0
    while True:
        try:
            next(reading)
        except StopIteration as done:
            return done.value, pauses
        pauses += 1


class Table:
    """Processes by pid; each uses 1 byte, 2 descriptors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processes: dict[int, Any]) -> None:
        self.processes = processes
        monkeypatch.setattr(process_memory.ProcessMemory, "rounds", lambda memory: self.rounds())
        monkeypatch.setattr(procfs.Reader, "examine", lambda reader, pid: processes[pid])
        monkeypatch.setattr(tree_usage, "usage_of", self.usage_of)
        monkeypatch.setattr(process_tags, "machine", lambda: Machine(tags=True))

    def rounds(self) -> Iterator[Any]:
        yield None
        yield list(self.processes), True
        pytest.fail("one listing is enough")

    def usage_of(self, pid: int) -> Usage | None:
        return None if pid < 0 else Usage(1, 2, 1)


def test_each_tree_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    Table(
        monkeypatch,
        {
            10: Tagged(10, BASE + 1, False, 1),
            11: Tagged(11, BASE + 1, False, 10),
            # It has ended, is gone, is no session's, cannot be read, or is of no leader.
            12: Tagged(12, BASE + 1, True, 10),
            13: False,
            14: None,
            -15: Tagged(-15, BASE + 1, False, 10),
            16: Tagged(16, BASE + 9, False, 1),
            20: Tagged(20, BASE + 2, False, 1),
        },
    )
    found, _ = read(TreeUsage(BASE, {10: BASE + 1, 20: BASE + 2, 30: BASE + 3}))
    assert found == {OWN: Usage(1, 2, 1), 10: Usage(2, 4, 2), 20: Usage(1, 2, 1)}


@pytest.mark.parametrize(("process", "each"), [(True, MEASURED_PROCESSES), (False, SLICE)])
def test_it_pauses_now_and_then(monkeypatch: pytest.MonkeyPatch, process: bool, each: int) -> None:
    tagged = Tagged(10, BASE + 1, False, 1) if process else None
    Table(monkeypatch, dict.fromkeys(range(10, 10 + each * 3), tagged))
    # One pause is that of the listing.
    assert read(TreeUsage(BASE, {10: BASE + 1}))[1] == 4


@pytest.mark.parametrize(
    ("machine", "leaders"),
    [
        (Machine(tags=True, proc=False), {10: BASE + 1}),
        (Machine(tags=False), {10: 0}),
        (Machine(tags=True), {}),
    ],
)
def test_without_proc_or_tags_there_are_no_trees(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, leaders: dict[int, int]
) -> None:
    monkeypatch.setattr(process_tags, "machine", lambda: machine)
    monkeypatch.setattr(tree_usage, "usage_of", lambda pid: None)
    assert read(TreeUsage(BASE, leaders)) == ({}, 0)


@needs_proc
def test_this_process_uses_something() -> None:
    found = usage_of(OWN)
    assert found is not None
    assert found.memory_bytes > 1024 * 1024
    assert found.descriptors >= 3
    assert found.processes == 1


@needs_proc
def test_descriptors_are_counted_where_the_folder_has_no_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stat:
        st_size = 0

    expected = usage_of(OWN)
    monkeypatch.setattr(os, "stat", lambda path: Stat)
    found = usage_of(OWN)
    assert found is not None
    assert expected is not None
    # The listing itself needs one.
    assert abs(found.descriptors - expected.descriptors) <= 2


def test_a_process_that_is_gone_uses_nothing() -> None:
    assert usage_of(1 << 30) is None


@needs_proc
def test_descriptors_of_another_user_may_be_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> Any:
        raise PermissionError(path)

    monkeypatch.setattr(os, "stat", refuse)
    found = usage_of(OWN)
    assert found is not None
    assert found.descriptors == 0
