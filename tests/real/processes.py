"""
Find processes in /proc, so that a test can assert that none is left.

A process is found as a descendant of the bridge or, after a double fork, by a
variable in the environment that it was started with.
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
    """A process; its start time distinguishes it from a later one with the same pid."""

    pid: int
    started: str
    command: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})"


def _read(pid: int, name: str) -> bytes:
    """Return a file of a process; empty if the process is gone or the file cannot be read."""
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def _pids() -> Iterator[int]:
    for name in os.listdir(PROC):
        if name.isdigit():
            yield int(name)


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's `stat` from the third on: state, parent, …"""
    # The second is the name in parentheses, which may itself contain parentheses.
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _process(pid: int) -> Process | None:
    stat = _stat(pid)
    if not stat:
        return None
    command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, stat[19], command or "zombie")


def descendants(root: int) -> set[Process]:
    """Return the descendants of a process, including zombies."""
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


def processes_with_variable(marker: str) -> set[Process]:
    """Return the processes with this text in the environment that they were started with."""
    text = marker.encode()
    processes = (_process(pid) for pid in _pids() if text in _read(pid, "environ"))
    return {process for process in processes if process is not None}


def alive(process: Process) -> bool:
    """
    Return True if the process still runs.

    A zombie does not: `descendants` finds zombies of the bridge, and other ones
    are left for their parents to reap.
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
