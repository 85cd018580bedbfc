"""Which processes a reading of the table must examine, with a listing that the test defines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.stdio import process_memory, procfs
from mcpbridge.stdio.process_memory import (
    FORGOTTEN_PROCESSES,
    REMEMBERED_PROCESSES,
    ProcessMemory,
)
from mcpbridge.stdio.procfs import NONE

BASE = 1 << 40
TAG, OTHER = BASE + 1, BASE + 2


class Entry:
    """An entry of a directory."""

    def __init__(self, name: str, inode: int) -> None:
        self.name = name
        self._inode = inode

    def inode(self) -> int:
        return self._inode


class Listing:
    """What `os.scandir` returns for /proc."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = iter(entries)

    def __enter__(self) -> Iterator[Entry]:
        return self._entries

    def __exit__(self, *_: object) -> None:
        pass


class Machine:
    """Processes by pid: the inode, the process session and the tag of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.leaders: dict[int, int] = {}
        self.memory = ProcessMemory(self.leaders)
        self.processes: dict[int, tuple[int, int, int]] = {}
        monkeypatch.setattr(os, "scandir", self._scan)

    def _scan(self, path: str) -> Listing:
        assert path == "/proc"
        found = [Entry(str(pid), each[0]) for pid, each in sorted(self.processes.items())]
        return Listing([Entry("self", 3), Entry("1x", 4), *found])

    def read(self, *tags: int) -> list[int]:
        """Examine what a reading for these tags has to; return it in order."""
        rounds = self.memory.looking_for(tags).rounds()
        [listing] = [each for each in islice(rounds, 1) if each is not None]
        pids = list(listing[0])
        for pid in pids:
            _, session, tag = self.processes[pid]
            self.memory.remember(pid, session, tag)
        return pids


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_process_of_no_session_is_examined_once(machine: Machine) -> None:
    machine.processes = {7: (70, 7, NONE), 8: (80, 7, NONE)}
    assert machine.read(TAG) == [8, 7], "the newest first"
    assert machine.read(TAG) == []
    machine.processes[9] = (90, 7, NONE)
    assert machine.read(OTHER) == [9]


def test_a_pid_that_was_reused_is_examined_again(machine: Machine) -> None:
    """The inode of /proc/PID tells the processes apart."""
    machine.processes = {7: (70, 7, NONE), 8: (80, 8, OTHER)}
    machine.read(TAG)
    machine.processes = {7: (71, 7, TAG), 8: (81, 8, TAG)}
    assert machine.read(TAG) == [8, 7]


def test_a_process_of_a_session_is_left_out_while_others_are_looked_at(machine: Machine) -> None:
    """By its tag, or by its process session."""
    machine.leaders.update({8: OTHER, 7: TAG})
    machine.processes = {7: (70, 7, TAG), 8: (80, 8, NONE), 9: (90, 8, NONE), 10: (100, 1, OTHER)}
    assert machine.read(TAG) == [10, 9, 8, 7]
    assert machine.read(TAG) == [7]
    assert machine.read(OTHER) == [10, 9, 8]
    assert machine.read(TAG, OTHER) == [10, 9, 8, 7]


def test_a_leader_that_has_no_tag_yet_is_not_remembered(machine: Machine) -> None:
    """It is still in the bridge's own process session, too."""
    machine.leaders[7] = TAG
    machine.processes = {7: (70, 1, NONE)}
    assert machine.read(OTHER) == [7]
    assert machine.read(OTHER) == [7]
    machine.processes = {7: (70, 7, TAG)}
    assert machine.read(OTHER) == [7]
    assert machine.read(OTHER) == []


def test_a_listing_without_inodes_is_not_trusted(machine: Machine) -> None:
    """The kernel says 1 where it has no memory for an inode."""
    machine.processes = {7: (1, 7, NONE)}
    assert machine.read(TAG) == [7]
    assert machine.read(TAG) == [7]


def test_a_process_that_was_not_listed_is_not_remembered(machine: Machine) -> None:
    machine.memory.remember(7, 7, NONE)
    assert len(machine.memory) == 0


def test_a_listing_is_read_in_slices(machine: Machine) -> None:
    """`SLICE` entries at a time."""
    machine.processes = {pid: (pid, 1, NONE) for pid in range(2, procfs.SLICE * 2)}
    parts = list(islice(machine.memory.looking_for([TAG]).rounds(), 3))
    assert parts[:2] == [None, None]
    assert parts[2] is not None
    assert len(list(parts[2][0])) == 2 * procfs.SLICE - 2


def test_there_is_a_last_round(machine: Machine) -> None:
    assert len(list(machine.memory.looking_for([TAG]).rounds())) == procfs.ROUNDS


@pytest.mark.parametrize("bound", ["REMEMBERED_PROCESSES", "FORGOTTEN_PROCESSES"])
def test_what_is_remembered_is_bounded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """Processes that have ended are forgotten now and then, and so are too many that run."""
    assert FORGOTTEN_PROCESSES < REMEMBERED_PROCESSES
    monkeypatch.setattr(process_memory, bound, 4)
    if bound == "REMEMBERED_PROCESSES":
        machine.processes = {pid: (pid, 1, NONE) for pid in range(2, 7)}
        machine.read(TAG)
        assert len(machine.memory) == 5
    else:
        # Of 2, which are not pids, and a new process, there were 8 and twice 3.
        for pid in range(2, 13):
            machine.processes = {pid: (pid, 1, NONE if pid % 2 else OTHER)}
            machine.read(TAG)
        assert len(machine.memory) == 11
    machine.read(TAG)
    assert len(machine.memory) == 0
    assert machine.read(TAG) == sorted(machine.processes, reverse=True)


Change = st.tuples(st.integers(2, 6), st.sampled_from([None, NONE, TAG, OTHER]), st.booleans())


@given(st.lists(st.tuples(st.lists(Change, max_size=4), st.sets(st.sampled_from([TAG, OTHER])))))
def test_no_process_of_a_session_that_is_looked_at_is_left_out(history: Any) -> None:
    """Whatever is born, ends, is replaced under its pid, or loses its tag between readings."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine, inode = Machine(monkeypatch), 100
        for changes, tags in history:
            for pid, tag, born in changes:
                if tag is None:
                    machine.processes.pop(pid, None)
                elif born or pid not in machine.processes:
                    inode += 1
                    machine.processes[pid] = inode, pid, tag
                else:
                    # A tag can only be lost.
                    known, session, _ = machine.processes[pid]
                    machine.processes[pid] = known, session, NONE
            wanted = {pid for pid, (_, _, tag) in machine.processes.items() if tag in tags}
            assert wanted <= set(machine.read(*tags))
