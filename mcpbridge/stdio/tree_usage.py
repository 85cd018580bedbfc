"""
Find out what the process tree of each session uses: memory, descriptors, processes (Linux).

A tree is what carries its session's tag, or is proven to belong to it otherwise
(`procfs`).  One listing of /proc is enough: what it misses, the next one has.  Knows /proc;
must not know sessions.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping

from mcpbridge.process_usage import NO_USAGE, Usage
from mcpbridge.stdio import process_tags, procfs
from mcpbridge.stdio.process_memory import ProcessMemory

#: How many processes are read without a pause; each takes some 40 µs.
MEASURED_PROCESSES = 20

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: Yields now and then; returns what each tree uses.
_Reading = Generator[None, None, dict[int, Usage]]


class TreeUsage:
    """
    Reads what the trees of these leaders use; `leaders` maps the pid of each to its tag.

    `base` is the first of the bridge's tags.
    """

    def __init__(self, base: int, leaders: Mapping[int, int]) -> None:
        self._base = base
        self._leaders = leaders
        # Of its own: two readings may take turns.
        self._memory = ProcessMemory(leaders)

    def read(self, known: Mapping[int, int] = procfs.NOTHING) -> _Reading:
        """
        Find out what each tree uses, by the pid of its leader, and this process by its own.

        A generator that yields after a moment's work each time.  `known` are the tags of
        processes without a tag, by pid.  What cannot be read is left out: without /proc
        everything, and without tags all trees.
        """
        found: dict[int, Usage] = {}
        own = usage_of(os.getpid())
        if own is not None:
            found[os.getpid()] = own
        leader_of = {tag: pid for pid, tag in self._leaders.items() if tag}
        if leader_of and process_tags.machine().proc:
            yield from self._read_trees(found, leader_of, known)
        return found

    def _read_trees(
        self, found: dict[int, Usage], leader_of: Mapping[int, int], known: Mapping[int, int]
    ) -> Generator[None, None, None]:
        memory = self._memory.looking_for(leader_of)
        sessions = {pid: tag for tag, pid in leader_of.items()}
        reader = procfs.Reader(self._base, (), sessions, known, memory)
        examined = measured = 0
        for pid in (yield from _listed(memory)):
            examined += 1
            process = reader.examine(pid)
            if isinstance(process, procfs.Tagged) and not process.zombie:
                leader = leader_of.get(process.tag)
                usage = None if leader is None else usage_of(pid)
                if leader is not None and usage is not None:
                    found[leader] = found.get(leader, NO_USAGE).plus(usage)
                    measured += 1
            if measured >= MEASURED_PROCESSES or examined >= procfs.SLICE:
                examined = measured = 0
                yield


def _listed(memory: ProcessMemory) -> Generator[None, None, list[int]]:
    """Return the pids of one listing of /proc, without those that are no session's."""
    for listing in memory.rounds():
        if listing is not None:
            return list(listing[0])
        yield
    return []


def usage_of(pid: int) -> Usage | None:
    """Return what one process uses; None if /proc does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            resident = int(statm.read(200).split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return Usage(resident * _PAGE_BYTES, _descriptors(f"/proc/{pid}/fd"), 1)


def _descriptors(folder: str) -> int:
    """Return how many descriptors a process has open; 0 if that is another user's secret."""
    try:
        # Since Linux 6.2 that is the size of the folder (proc(5)); before, it has none.
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return 0
