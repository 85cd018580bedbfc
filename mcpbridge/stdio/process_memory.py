"""
Remember whose a process is, so that a reading of the process table examines only new ones.

Reading whose a process is takes several system calls.  A machine may run
thousands of processes that the bridge has nothing to do with, and the bridge
itself may have thousands of sessions, when one of them ends.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice

from mcpbridge.stdio.procfs import NONE, ROUNDS, SLICE

#: At most so many processes are remembered; then everything is forgotten.
REMEMBERED_PROCESSES = 1 << 16
#: More entries than twice as many as there are processes, and this many, are
#: mostly of processes that have ended; then everything is forgotten, too.
FORGOTTEN_PROCESSES = 1024


class ProcessMemory:
    """
    The processes that earlier readings have examined, and whose they are.

    What is remembered of a process does not change while it lives:

    - One that belongs to no session of the bridge never will: tags and process
      sessions are inherited at fork, and nobody enters another's session.  Only
      a leader gets its tag later, from its exec chain; so a leader without a
      tag is not remembered, nor is a process that might have hidden its own
      (`procfs.are_foreign`).
    - One that belongs to a session of the bridge belongs to no other one.  It
      may lose its tag, so it is left out only while others are looked at.

    A pid says which process is meant only until it is reused.  The number of
    the inode of /proc/PID, which is part of a listing, tells both processes
    apart: the kernel numbers these inodes as it makes them, and drops that of a
    process when the process is reaped (`proc_pid_make_inode` and
    `proc_flush_pid` in fs/proc).  If it drops one earlier, for want of memory,
    that process is examined again.

    `leaders` maps the pids of leaders that are not reaped to their tags.
    """

    def __init__(self, leaders: Mapping[int, int]) -> None:
        self._leaders = leaders
        #: By name in /proc: the inode of a process of no session.
        self._foreign: dict[str, int] = {}
        #: The inode and the tag of a process of a session.
        self._tagged: dict[str, tuple[int, int]] = {}
        #: The inodes of those in the last listing that are not remembered, by pid.
        self._inodes: dict[int, int] = {}
        self._tags: Collection[int] = ()

    def __len__(self) -> int:
        return len(self._foreign) + len(self._tagged)

    def looking_for(self, tags: Collection[int]) -> ProcessMemory:
        """Begin a reading that looks for these tags; return this object."""
        self._tags = tags
        return self

    def rounds(self) -> Iterator[tuple[Iterable[int], bool] | None]:
        """Do what `procfs.rounds` does, without the processes that are known."""
        for _ in range(ROUNDS):
            yield from self._list()
            # Newest first: those have had least time to go.
            yield reversed(self._inodes), True

    def remember(self, pid: int, session: int, tag: int) -> None:
        """Note the session and the tag of a process of the last listing, `NONE` without one."""
        inode = self._inodes.get(pid, 0)
        # The kernel has no memory for an inode where the number is 1.
        if inode <= 1:
            return
        # Also the process that leads this session, and one that has lost its tag there.
        tag = self._leaders.get(session, tag)
        if tag != NONE:
            self._tagged[str(pid)] = inode, tag
        elif pid not in self._leaders:
            self._foreign[str(pid)] = inode

    def _list(self) -> Iterator[None]:
        """List the processes that are not known in `_inodes`, oldest first, in slices."""
        foreign, tagged, tags = self._foreign, self._tagged, self._tags
        inodes = self._inodes = {}
        foreign_inode = foreign.get
        count = 0
        with os.scandir("/proc") as entries:
            while batch := list(islice(entries, SLICE)):
                # The number of the inode is part of the listing: this is no system call.
                others = [
                    (entry.name, inode)
                    for entry in batch
                    if foreign_inode(entry.name) != (inode := entry.inode())
                ]
                for name, inode in others:
                    if not name.isdigit():
                        continue
                    known = tagged.get(name)
                    if known is None or known[0] != inode or known[1] in tags:
                        inodes[int(name)] = inode
                count += len(batch)
                if len(batch) == SLICE:
                    yield
        if len(self) > min(2 * count + FORGOTTEN_PROCESSES, REMEMBERED_PROCESSES):
            foreign.clear()
            tagged.clear()
