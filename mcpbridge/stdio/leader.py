"""
The number of a backend's process, kept until nothing of its tree is left.

A process that has exited keeps its number, and its process group and session
theirs, until it is reaped.  So the bridge learns of the exit without reaping
(waitid(2), WNOWAIT) and tells Twisted; it reaps when the whole tree is gone.
Until then a signal to the group reaches what is in it and nobody else, and
what is in the session is the backend's, with or without a tag.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet import process

from mcpbridge.stdio import procfs

_CORE_DUMPED = 0x80


class Leader:
    """
    Stands between Twisted and one process (`twisted.internet.process.Process`).

    Twisted looks for exited processes at each SIGCHLD, by calling
    `reapProcess` of each transport; that is where this steps in.
    """

    def __init__(self, transport: Any, pid: int) -> None:
        self._transport = transport
        self._pid = pid
        self.exited = False
        #: Whether the number is (still) that of this process.
        self.held = True
        self._transport.reapProcess = self.look

    def look(self) -> None:
        """Tell Twisted if the process has exited."""
        if self.exited:
            return
        try:
            found = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # Somebody has reaped it who waits for any child.
            self.held = False
            self._tell(0)
            return
        if found is None:
            return
        status = found.si_status
        if found.si_code == os.CLD_EXITED:
            status <<= 8
        elif found.si_code == os.CLD_DUMPED:
            status |= _CORE_DUMPED
        self._tell(status)

    def look_behind_tracer(self) -> None:
        """
        Tell Twisted also of a process that is dead, but traced.

        The kernel keeps its end from its parent until the tracer has seen to
        it, which may be never (ptrace(2)).  Nothing of the process runs.
        """
        self.look()
        if not self.exited and procfs.is_dead(self._pid):
            self._tell(signal.SIGKILL)

    def _tell(self, status: int) -> None:
        self.exited = True
        transport, self._transport = self._transport, None
        del transport.reapProcess
        process.unregisterReapProcessHandler(self._pid, transport)
        transport.processEnded(status)


def reap(pid: int) -> bool:
    """Reap one child if it has exited; False while it has not."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
