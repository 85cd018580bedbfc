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

from mcpbridge.backend import procfs

#: Of how many processes a descriptor is held at most.
KNOWN_PROCESSES = 256


class Marks:
    """
    The processes that are held, and whose they are.

    `told` is called with pid and start time (clock ticks since the boot) of
    each: what cleans up after a bridge that was killed cannot find it by itself.
    """

    def __init__(self, told: Callable[[int, int], None]) -> None:
        self._told = told
        self._held: dict[int, tuple[int, int]] = {}

    def hold(self, pid: int, tag: int, ours: Callable[[], bool]) -> None:
        """Hold a process, if it is (still) ours once there is a descriptor; see `tags`."""
        if pid in self._held or len(self._held) >= KNOWN_PROCESSES:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, AttributeError):
            return
        if not ours():
            os.close(descriptor)
            return
        self._held[pid] = (tag, descriptor)
        started = procfs.start_time(pid)
        if started is not None:
            self._told(pid, started)

    def tags(self) -> dict[int, int]:
        """
        The tags of the processes that are held and live, by pid.

        Those that have ended are let go, and reaped where they are children:
        their numbers may be used anew.
        """
        for pid, (_, descriptor) in list(self._held.items()):
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            if ended.poll(0):
                del self._held[pid]
                try:
                    os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
                except OSError:
                    pass
                os.close(descriptor)
        return {pid: tag for pid, (tag, _) in self._held.items()}
