"""
Keep the pid of a backend's process until nothing of its tree is left.

An exited process keeps its pid, and with it the ids of its process group and
session, until it is reaped.  So the bridge learns of the exit without reaping
(waitid(2), WNOWAIT), tells Twisted, and reaps when the whole tree is gone.
Until then a signal to the group reaches its members and nobody else, and a
process in the session is the backend's, with or without a tag.
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

    At each SIGCHLD, Twisted calls `reapProcess` of every process transport.
    This object replaces that method of one transport.
    """

    def __init__(self, transport: Any, pid: int) -> None:
        self._transport = transport
        self._pid = pid
        self.exited = False
        #: True as long as the pid is certain to be that of this process.
        self.unreaped = True
        self._transport.reapProcess = self.look

    def look(self) -> None:
        """Tell Twisted if the process has exited."""
        if self.exited:
            return
        try:
            found = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # It was reaped by somebody who waits for any child.
            self.unreaped = False
            self._tell_twisted(0)
            return
        if found is None:
            return
        status = found.si_status
        if found.si_code == os.CLD_EXITED:
            status <<= 8
        elif found.si_code == os.CLD_DUMPED:
            status |= _CORE_DUMPED
        self._tell_twisted(status)

    def look_behind_tracer(self) -> None:
        """
        Tell Twisted, too, if the process is dead but traced.

        The kernel hides its end from its parent until the tracer has seen it,
        which may be never (ptrace(2)).  Nothing of the process runs.
        """
        self.look()
        if not self.exited and procfs.is_dead(self._pid):
            self._tell_twisted(signal.SIGKILL)

    def _tell_twisted(self, status: int) -> None:
        self.exited = True
        transport, self._transport = self._transport, None
        del transport.reapProcess
        process.unregisterReapProcessHandler(self._pid, transport)
        transport.processEnded(status)
