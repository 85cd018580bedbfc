"""
Processes of sessions that carry no tag, each held by a pidfd.

A pid says which process is meant only until it is reused.  A pidfd
(pidfd_open(2)) tells when its process has ended; until then what was once
proven of the pid stays true.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from mcpbridge.stdio import procfs
from mcpbridge.stdio.cleanup_records import Cleanup, ProcessRecord

#: At most so many processes are held by a descriptor.
KNOWN_PROCESSES = 256


class UntaggedProcesses:
    """
    Remembers untagged processes and their sessions' tags for as long as they live.

    `cleanup` is told of each: after the bridge was killed nothing else leads
    to a process without a tag.
    """

    def __init__(self, cleanup: Cleanup) -> None:
        self._cleanup = cleanup
        #: By pid: tag, record and descriptor.
        self._held: dict[int, tuple[int, ProcessRecord, int]] = {}

    def hold(self, pid: int, tag: int, ours: Callable[[], bool]) -> None:
        """
        Hold a process by a descriptor, unless too many are held.

        `ours` is called once the descriptor is open, so that its answer is
        about the process that is held, and not about a later one of that pid.
        """
        if pid in self._held or len(self._held) >= KNOWN_PROCESSES:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, AttributeError):
            return
        try:
            proven = ours()
            record = ProcessRecord(pid, procfs.start_time(pid) or 0)
        except OSError:
            # That descriptor may have been the last one that the bridge could open.
            proven = False
        if not proven:
            os.close(descriptor)
            return
        self._held[pid] = (tag, record, descriptor)
        self._cleanup.add(tag, record)

    def tags(self) -> dict[int, int]:
        """
        Return the tags of the processes that are held and live, by pid.

        Releases those that have ended, and reaps them if they are children:
        their pids may be reused.
        """
        for pid, (tag, record, descriptor) in list(self._held.items()):
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            if ended.poll(0):
                del self._held[pid]
                try:
                    os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
                except OSError:
                    pass
                os.close(descriptor)
                self._cleanup.drop(tag, record)
        return {pid: tag for pid, (tag, _, _) in self._held.items()}
