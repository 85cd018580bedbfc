"""
Counts processes in /proc, so that a test can say that none is left.

A process is found in two ways, since one that double-forked has left the
first: as a descendant of the bridge, and by a mark in the environment that it
was started with.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
#: Seconds between two looks of `eventually`: one may read files of every process.
LONGEST_PAUSE = 0.1


@dataclass(frozen=True)
class Process:
    """One process; the start time tells it from a later one with its number."""

    pid: int
    started: str
    command: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})"


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty if it is gone, or not ours to read."""
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def _pids() -> Iterator[int]:
    for name in os.listdir(PROC):
        if name.isdigit():
            yield int(name)


def _stat(pid: int) -> list[str]:
    """The fields of a process's `stat` from the third on: state, parent, …"""
    # the second is the name in parentheses, which may itself hold some
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _process(pid: int) -> Process | None:
    stat = _stat(pid)
    if not stat:
        return None
    command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, stat[19], command or "zombie")


def descendants(root: int) -> set[Process]:
    """The processes below one, zombies too."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        if stat := _stat(pid):
            children.setdefault(int(stat[1]), []).append(pid)
    found, waiting = set(), list(children.get(root, ()))
    while waiting:
        pid = waiting.pop()
        waiting.extend(children.get(pid, ()))
        if process := _process(pid):
            found.add(process)
    return found


def marked(mark: str) -> set[Process]:
    """The processes with a text in the environment that they were started with."""
    text = mark.encode()
    processes = (_process(pid) for pid in _pids() if text in _read(pid, "environ"))
    return {process for process in processes if process is not None}


def alive(process: Process) -> bool:
    """
    Whether it is that process still, and runs.

    A zombie does not: below the bridge `descendants` has it; elsewhere it is
    for a parent to reap that is none of ours.
    """
    stat = _stat(process.pid)
    return bool(stat) and stat[0] not in "ZX" and stat[19] == process.started


def eventually(what: Callable[[], object], seconds: float) -> bool:
    """Whether something becomes true in time; looks less often the longer it takes."""
    deadline = time.monotonic() + seconds
    pause = 0.01
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
    return True
