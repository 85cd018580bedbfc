"""
Process trees: finding what belongs to a session, and signalling only that.

`Sweeper` reads the table of processes for the whole bridge, seldom enough to
cost little however many sessions end at once; `TaggedTree` is the tree of one
session by its tag (Linux), `GroupTree` by its process group (elsewhere).
"""

from __future__ import annotations

import os
import resource
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mcpbridge.backend import procfs

#: At the least this time between two readings of the table of processes, and
#: this many times what the last one took: a tenth of one processor at most.
SWEEP_SECONDS = 0.02
SWEEP_REST_FACTOR = 10.0
#: How often adopted children that have exited are reaped while sessions live.
REAP_SECONDS = 2.0


class Sweeper:
    """
    Hands out tags, and answers who carries one.

    Reaps what the bridge has adopted of its sessions, by pid, and nothing
    else: the status of a child of somebody else is not taken.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        hard = resource.getrlimit(resource.RLIMIT_RSS)[1]
        #: 0 where there are no tags: without Linux's /proc nobody could read them.
        self.base = procfs.choose_base(os.urandom(8), hard) if procfs.readable() else 0
        self._next = 0
        #: The leaders that have not been reaped: Twisted waits for those.
        self.leaders: dict[int, int] = {}
        self._wanted: dict[int, list[Deferred[list[int]]]] = {}
        self._call: IDelayedCall | None = None
        self._not_before = 0.0
        self._reaping: IDelayedCall | None = None

    def new_tag(self) -> int:
        """A tag that no living session has; 0 where tags cannot be had."""
        if not self.base:
            return 0
        in_use = set(self.leaders.values()) | self._wanted.keys()
        while True:
            # The first is the guardian's.
            self._next = self._next % (procfs.TAGS - 1) + 1
            if self.base + self._next not in in_use:
                return self.base + self._next

    def leader_started(self, pid: int, tag: int) -> None:
        """A leader was spawned; until it is reaped it is Twisted's."""
        self.leaders[pid] = tag
        if self._reaping is None:
            self._reaping = self._clock.callLater(REAP_SECONDS, self._reap_adopted)

    def leader_reaped(self, pid: int) -> None:
        """Twisted has reaped the leader: its number may be used anew."""
        self.leaders.pop(pid, None)
        if not self.leaders and self._reaping is not None:
            self._reaping.cancel()
            self._reaping = None

    def look(self, tag: int) -> Deferred[list[int]]:
        """
        The pids that carry the tag and live, without the leader.

        Fails with `OSError` where the table cannot be read.
        """
        asked: Deferred[list[int]] = Deferred()
        self._wanted.setdefault(tag, []).append(asked)
        if self._call is None:
            delay = max(0.0, self._not_before - self._clock.seconds())
            self._call = self._clock.callLater(delay, self._sweep)
        return asked

    def _sweep(self) -> None:
        self._call = None
        wanted, self._wanted = self._wanted, {}
        # What is in the process session of another live leader is not sought.
        others = {pid for pid, tag in self.leaders.items() if tag not in wanted}
        began = self._clock.seconds()
        try:
            found = self._find(others)
        except OSError as error:
            for asked in [each for waiting in wanted.values() for each in waiting]:
                asked.errback(error)
            return
        finally:
            now = self._clock.seconds()
            self._not_before = now + max(SWEEP_SECONDS, SWEEP_REST_FACTOR * (now - began))
        for tag, waiting in wanted.items():
            pids = [each.pid for each in found if each.tag == tag]
            for asked in waiting:
                asked.callback(pids)

    def _find(self, others: set[int]) -> list[procfs.Tagged]:
        """What is tagged and lives, beside leaders and guardian; adopted zombies are reaped."""
        living = []
        me = os.getpid()
        for process in procfs.find_tagged(self.base, others):
            if process.pid in self.leaders or process.tag == self.base:
                continue
            if not process.zombie:
                living.append(process)
            elif process.parent == me:
                self._reap(process.pid)
        return living

    def _reap(self, pid: int) -> None:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass

    def _reap_adopted(self) -> None:
        """
        Now and then: is there a child that has exited and is not Twisted's?

        Looking costs one system call, and takes no status from anybody.
        """
        self._reaping = self._clock.callLater(REAP_SECONDS, self._reap_adopted)
        try:
            exited = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if exited is not None and exited.si_pid not in self.leaders:
            try:
                self._find(set())
            except OSError:
                self.log.failure("cannot look for adopted processes")


class TaggedTree:
    """The process tree of one session, by its tag."""

    log = Logger()

    __slots__ = ("_pid", "_seen", "_sweeper", "_tag")

    def __init__(self, pid: int, tag: int, sweeper: Sweeper) -> None:
        self._pid = pid
        self._tag = tag
        self._sweeper = sweeper
        self._seen = False

    def signal_leader(self, number: int) -> None:
        """The leader is not reaped, so its number is its own, and its group's."""
        signal_group(self._pid, number)

    def signal_rest(self, pids: list[int], number: int) -> None:
        """Only those that still carry the tag are signalled."""
        for pid in pids:
            try:
                procfs.signal_tagged(pid, self._tag, number)
            except OSError as error:
                self.log.warn("cannot signal process {pid}: {error}", pid=pid, error=error.strerror)

    def look(self) -> Deferred[list[int]]:
        """
        What carries the tag, beside the leader.

        Where there was something before, nothing counts only when it is seen
        twice: a process may be born behind the place that a look has passed.
        """

        def again(pids: list[int]) -> Any:
            if pids:
                self._seen = True
                return pids
            return self._sweeper.look(self._tag) if self._seen else pids

        return self._sweeper.look(self._tag).addCallback(again)


class GroupTree:
    """
    The process group of one session, where there are no tags.

    A group keeps its number while it has a member, so a group that answers
    right after its leader has exited is the leader's.
    """

    def __init__(self, pid: int, clock: IReactorTime) -> None:
        self._pid = pid
        self._clock = clock

    def signal_leader(self, number: int) -> None:
        """The leader and its group."""
        signal_group(self._pid, number)

    def signal_rest(self, pids: list[int], number: int) -> None:
        """The group: nothing more is known of the rest."""
        if pids:
            signal_group(self._pid, number)

    def look(self) -> Deferred[list[int]]:
        """The group's number while it has a member."""
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

    Until `setsid` has run in the child, its group is the bridge's own: then
    the child alone is signalled.
    """
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
