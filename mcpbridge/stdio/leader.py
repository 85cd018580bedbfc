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
import select
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet import process
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.guard import guarded
from mcpbridge.pacer import ENDS, Pacer
from mcpbridge.stdio import procfs

_CORE_DUMPED = 0x80


@implementer(IReadDescriptor)
class ExitEvents:
    """
    Tells which leader has exited, without asking about each that lives.

    SIGCHLD does not say which child has exited, so at each one Twisted asks
    the kernel about every process that it has spawned.  Nor can the kernel be
    asked for any child that has exited: leaders that wait to be reaped, and
    children of an embedding application, would be its answer again and again.
    A pidfd (pidfd_open(2)) becomes readable when its process exits.  All of
    them are in one epoll set, and the reactor watches that.
    """

    log = Logger()

    def __init__(self, reactor: Any, pacer: Pacer) -> None:
        self._reactor = reactor
        self._pacer = pacer
        self._epoll: select.epoll | None = None
        #: What to call, by pidfd.
        self._watched: dict[int, Callable[[], None]] = {}

    def watch(self, pid: int, exited: Callable[[], None]) -> bool:
        """
        Call `exited` once when this child, which is not reaped, has exited, or
        when it is not watched any more.

        Returns False where that is impossible: without pidfd_open(2), or
        without a free descriptor.
        """
        if not IReactorFDSet.providedBy(self._reactor):
            return False
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, AttributeError):
            return False
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._reactor.addReader(self)
            self._epoll.register(descriptor, select.EPOLLIN)
        except OSError:
            os.close(descriptor)
            self._close_if_unused()
            return False
        self._watched[descriptor] = exited
        return True

    def _close_if_unused(self) -> None:
        if not self._watched and self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    # IReadDescriptor.

    def fileno(self) -> int:
        """Return the descriptor of the epoll set."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        """Report exits, as many as this iteration of the reactor has time for."""
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0):
            exited = self._watched.pop(descriptor)
            # Closing is not enough while a child that is being spawned has a copy (epoll(7)).
            guarded(self.log, "an epoll set", self._epoll.unregister, descriptor)
            guarded(self.log, "closing a pidfd", os.close, descriptor)
            self._pacer.run(ENDS, exited)
        self._close_if_unused()

    def connectionLost(self, reason: Failure) -> None:
        """
        Give all leaders back to Twisted: the reactor stops, or `doRead` has failed.
        """
        watched, self._watched = self._watched, {}
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            guarded(self.log, "closing an epoll set", epoll.close)
        for descriptor, exited in watched.items():
            guarded(self.log, "closing a pidfd", os.close, descriptor)
            self._pacer.run(ENDS, exited)

    def logPrefix(self) -> str:
        """Return the name of this in the log."""
        return "ExitEvents"


class Leader:
    """
    Stands between Twisted and one process (`twisted.internet.process.Process`).

    At each SIGCHLD, Twisted calls `reapProcess` of every process transport in
    its table.  This object replaces that method of one transport, and takes the
    transport out of the table where `events` tells of the exit.
    """

    def __init__(self, transport: Any, pid: int, events: ExitEvents | None = None) -> None:
        self._transport = transport
        self._pid = pid
        self.exited = False
        #: True as long as the pid is certain to be that of this process.
        self.unreaped = True
        self._transport.reapProcess = self.look
        if events is not None and events.watch(pid, self._look_once):
            process.unregisterReapProcessHandler(pid, transport)
            # Twisted also calls it when the last pipe is closed, which is too early.
            self._transport.reapProcess = _wait_for_the_event

    def _look_once(self) -> None:
        self.look()
        if not self.exited:
            # It is traced, and the kernel hides its end until the tracer has seen it; or it
            # is watched no more.
            self._transport.reapProcess = self.look
            process.reapProcessHandlers[self._pid] = self._transport

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
        process.reapProcessHandlers.pop(self._pid, None)
        transport.processEnded(status)


def _wait_for_the_event() -> None:
    """Do nothing: `ExitEvents` tells of the exit, in its turn."""
