"""
Processes of sessions that carry no tag, each held by a descriptor.

A number says whose a process is only while it cannot be used anew.  A
descriptor (pidfd_open(2)) tells when the process has ended, so what was once
proven of it stays true until then.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from mcpbridge.stdio import procfs

#: What is called with tag, pid and start time.
Mark = Callable[[int, int, int], None]
#: Of how many processes a descriptor is held at most.
KNOWN_PROCESSES = 256


class Marks:
    """
    The processes that are held, and whose they are.

    `seen` is called with tag, pid and start time (clock ticks since the boot;
    0 where that is not told) of each, and `ended` with the same when it has
    ended: what cleans up after a bridge that was killed cannot find them by
    itself.
    """

    def __init__(self, seen: Mark, ended: Mark) -> None:
        self._seen = seen
        self._ended = ended
        #: By pid: tag, start time and descriptor.
        self._held: dict[int, tuple[int, int, int]] = {}

    def hold(self, pid: int, tag: int, ours: Callable[[], bool]) -> None:
        """Hold a process, if it is (still) ours once there is a descriptor; see `tags`."""
        if pid in self._held or len(self._held) >= KNOWN_PROCESSES:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, AttributeError):
            return
        try:
            proven = ours()
            started = procfs.start_time(pid) or 0
        except OSError:
            # This descriptor may have been the last one.
            proven, started = False, 0
        if not proven:
            os.close(descriptor)
            return
        self._held[pid] = (tag, started, descriptor)
        self._seen(tag, pid, started)

    def tags(self) -> dict[int, int]:
        """
        The tags of the processes that are held and live, by pid.

        Those that have ended are let go, and reaped where they are children:
        their numbers may be used anew.
        """
        for pid, (tag, started, descriptor) in list(self._held.items()):
            over = select.poll()
            over.register(descriptor, select.POLLIN)
            if over.poll(0):
                del self._held[pid]
                try:
                    os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
                except OSError:
                    pass
                os.close(descriptor)
                self._ended(tag, pid, started)
        return {pid: tag for pid, (tag, _, _) in self._held.items()}
