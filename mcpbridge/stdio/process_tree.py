"""
The process tree of one session: find what is left of it, and signal only that.

`TaggedTree` goes by the session's tag (Linux), `GroupTree` by its process
group (elsewhere).  Both are a `mcpbridge.stdio.shutdown.Tree`.
"""

from __future__ import annotations

import os
import signal

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mcpbridge.stdio.process_tracker import SWEEP_SECONDS, ProcessTracker

#: A tree is gone when so many looks in a row have found nothing.  One is not enough: a
#: process may be born behind the place in the process table that a look has passed.
CLEAN_LOOKS = 2


class TaggedTree:
    """The process tree of one session, by its tag."""

    log = Logger()

    __slots__ = (
        "_group_terminated",
        "_killed_leader",
        "_kills",
        "_pid",
        "_tag",
        "_tracker",
        "_warned",
    )

    def __init__(self, pid: int | None, tag: int, tracker: ProcessTracker) -> None:
        #: -1: it exited during the spawn, and Twisted has reaped it.
        self._pid = -1 if pid is None else pid
        self._tag = tag
        self._tracker = tracker
        self._kills = 0
        #: True once the leader's group has had SIGTERM.
        self._group_terminated = False
        self._killed_leader = False
        self._warned = False

    def signal_leader(self, number: int) -> None:
        """Signal the leader and its group; it is not reaped, so both ids are its own."""
        self._killed_leader = number == signal.SIGKILL
        if self._pid in self._tracker.leaders:
            signal_group(self._pid, number)
            self._group_terminated |= number == signal.SIGTERM

    def terminate_group(self) -> None:
        """Send SIGTERM to what is left in the group; its leader is not reaped."""
        if self._pid in self._tracker.leaders:
            signal_group(self._pid, signal.SIGTERM)
            self._group_terminated = True

    def signal_rest(self, pids: list[int], number: int) -> None:
        """
        Signal those of these processes that still belong to this tree.

        A program may take a second SIGTERM for a demand to give up its cleanup,
        so what has had one with the group gets no other.

        A process that forks faster than it is found would outrun any number
        of signals.  So from the second SIGKILL on there is a `kill_pass`, too.
        """
        if number == signal.SIGKILL:
            self._kills += 1
            self.signal_leader(number)
            if self._kills > 1:
                self._tracker.kill(self._tag)
        for pid in pids:
            if number == signal.SIGTERM and self._had_sigterm(pid):
                continue
            try:
                self._tracker.signal(pid, self._pid, self._tag, number)
            except OSError as error:
                self._warn(pid, error)

    def _had_sigterm(self, pid: int) -> bool:
        """
        Return True for a process in the leader's group if that has had SIGTERM.

        One that was born there since was started by a process that has handled
        the signal, as a part of its cleanup.
        """
        # The id of a group is not reused while its leader is not reaped.
        if not self._group_terminated or self._pid not in self._tracker.leaders:
            return False
        try:
            return os.getpgid(pid) == self._pid
        except OSError:
            return False

    def _warn(self, pid: int, error: OSError) -> None:
        """Log the first failure only: signals are repeated until the tree is gone."""
        if not self._warned:
            self._warned = True
            self.log.warn("cannot signal process {pid}: {error}", pid=pid, error=error.strerror)

    def look(self) -> Deferred[list[int]]:
        """
        Return a `Deferred` of the pids of the tree, without the leader.

        It fires with an empty list only after `CLEAN_LOOKS` looks in a row
        have found nothing, all begun after the leader's exit if it has exited.
        Then the leader is reaped, and its pid may be reused.
        """
        return self._look_again(self._tracker.has_exited(self._pid), 0)

    def _look_again(self, exited: bool, clean: int) -> Deferred[list[int]]:
        """
        Look again, after `clean` looks in a row that found nothing; `exited` tells whether
        the leader had exited before this one.
        """
        look = self._tracker.look(self._tag)
        return look.addCallback(self._judge, exited, clean)

    def _judge(self, pids: list[int], before: bool, clean: int) -> list[int] | Deferred[list[int]]:
        if self._killed_leader:
            self._tracker.look_behind_tracer(self._pid)
        if pids:
            return pids
        # What the leader started after this look began, the look may have missed.
        exited = self._tracker.has_exited(self._pid)
        clean = clean + 1 if before == exited else 0
        if clean < CLEAN_LOOKS:
            return self._look_again(exited, clean)
        if exited:
            self._tracker.release(self._pid)
        return []


class GroupTree:
    """
    The process group of one session, where there are no tags.

    A group id is not reused while the group has a member, so a group that
    exists right after its leader has exited is the leader's.
    """

    def __init__(self, pid: int, clock: IReactorTime) -> None:
        self._pid = pid
        self._clock = clock

    def signal_leader(self, number: int) -> None:
        """Signal the leader and its group."""
        signal_group(self._pid, number)

    def terminate_group(self) -> None:
        """Do nothing: the leader is reaped, so a look must tell first that its group is there."""

    def signal_rest(self, pids: list[int], number: int) -> None:
        """Signal the group: its members are not known one by one."""
        if pids:
            signal_group(self._pid, number)

    def look(self) -> Deferred[list[int]]:
        """Return a `Deferred` of a list of the group's id while it has a member."""
        return deferLater(self._clock, SWEEP_SECONDS, self._members)

    def _members(self) -> list[int]:
        try:
            os.killpg(self._pid, 0)
        except ProcessLookupError:
            return []
        except PermissionError:
            pass
        return [self._pid]


def signal_group(pid: int, number: int) -> None:
    """
    Signal a leader that is not reaped, with its group.

    Until the child has called setsid(2) its group is the bridge's own: then
    only the child is signalled.
    """
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
