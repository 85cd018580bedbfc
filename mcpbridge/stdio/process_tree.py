"""
Process trees: finding what belongs to a session, and signalling only that.

`Sweeper` reads the table of processes for the whole bridge, seldom enough to
cost little however many sessions end at once; `TaggedTree` is the tree of one
session by its tag (Linux), `GroupTree` by its process group (elsewhere).
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Collection, Generator
from functools import partial
from time import thread_time

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mcpbridge.stdio import kill_pass, process_tags, procfs
from mcpbridge.stdio.leader import Leader, reap
from mcpbridge.stdio.untagged import Mark, Marks

#: At the least this time between two readings of the table of processes, and
#: this many times what the last one took: a tenth of one processor at most.
SWEEP_SECONDS = 0.02
SWEEP_REST_FACTOR = 10.0
#: After so long the reactor gets its turn within a reading.
SLICE_SECONDS = 0.003
#: How often adopted children that have exited are reaped while sessions live.
REAP_SECONDS = 0.25
#: After so many of them the reactor gets its turn.
REAPED_AT_ONCE = 500
#: How many looks in a row must find nothing.
CLEAN_LOOKS = 2


def _tell_nobody(tag: int, pid: int, started: int) -> None:
    pass


class Sweeper:
    """
    Hands out tags, and answers who carries one.

    Reaps what the bridge has adopted of its sessions, by pid, and nothing
    else: the status of a child of somebody else is not taken.

    `seen` and `ended` are called for each process of a session that was seen
    without a tag; see `Marks`.  `spent` tells the processor time of this
    thread: what a reading waited for others on a busy machine is no reason to
    read less.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        seen: Mark = _tell_nobody,
        ended: Mark = _tell_nobody,
        spent: Callable[[], float] = thread_time,
    ) -> None:
        self._clock = clock
        self._spent = spent
        able = process_tags.machine().tags
        #: 0 where there are no tags.
        self.base = (
            process_tags.choose_base(os.urandom(8), process_tags.hard_limit()) if able else 0
        )
        self._next = 0
        #: The leaders that have not been reaped.
        self.leaders: dict[int, int] = {}
        self._held: dict[int, Leader] = {}
        #: Leaders whose trees are gone, and whose tracers do not let go.
        self._traced: set[int] = set()
        self._marks = Marks(seen, ended)
        self._wanted: dict[int, list[Deferred[list[int]]]] = {}
        self._to_kill: set[int] = set()
        self._call: IDelayedCall | None = None
        self._not_before = 0.0
        self._reaping: IDelayedCall | None = None

    def new_tag(self) -> int:
        """A tag that no living session has; 0 where tags cannot be had."""
        if not self.base:
            return 0
        in_use = set(self.leaders.values()) | self._wanted.keys()
        while True:
            # The first is the watchdog's.
            self._next = self._next % (process_tags.TAGS - 1) + 1
            if self.base + self._next not in in_use:
                return self.base + self._next

    # Leaders.

    def leader_started(self, pid: int, tag: int, leader: Leader | None = None) -> None:
        """A leader was spawned; with a `Leader` its number is kept when it exits."""
        self.leaders[pid] = tag
        if leader is not None:
            self._held[pid] = leader
        if self._reaping is None:
            self._reaping = self._clock.callLater(REAP_SECONDS, self._reap_adopted)

    def leader_exited(self, pid: int) -> None:
        """Twisted knows that the leader has exited: its number is kept, or may be used anew."""
        leader = self._held.get(pid)
        if leader is None or not leader.held:
            self._forget(pid)

    def has_exited(self, pid: int) -> bool:
        """Whether Twisted knows that the leader has exited."""
        return pid not in self.leaders or (pid in self._held and self._held[pid].exited)

    def look_behind_tracer(self, pid: int) -> None:
        """The leader was killed: it may be dead though its parent is not told."""
        if pid in self._held:
            self._held[pid].look_behind_tracer()

    def release(self, pid: int) -> None:
        """Nothing is left of the tree of a leader that has exited: reap it."""
        leader = self._held.get(pid)
        if leader is not None and leader.held and not reap(pid):
            self._traced.add(pid)
        self._forget(pid)

    def _forget(self, pid: int) -> None:
        self.leaders.pop(pid, None)
        self._held.pop(pid, None)
        if not self.leaders and not self._traced and self._reaping is not None:
            self._reaping.cancel()
            self._reaping = None
            # Nothing is left of the last session but zombies, and nobody looks any more.
            for child in procfs.own_children() or ():
                self._reap_child(child)

    # Looks.

    def look(self, tag: int) -> Deferred[list[int]]:
        """
        The pids that are of this tag and live, without the leader.

        Where nothing is found and that is not certain, the pids of what was
        gone before it could be read; they may be anybody's.  Fails with
        `OSError` where the table cannot be read.
        """
        asked: Deferred[list[int]] = Deferred()
        self._wanted.setdefault(tag, []).append(asked)
        self._sweep_soon()
        return asked

    def kill(self, tag: int) -> None:
        """Before the next look, kill what is of this tag so that it cannot outrun it."""
        self._to_kill.add(tag)
        self._sweep_soon()

    def signal(self, pid: int, leader: int, tag: int, number: int) -> bool:
        """
        Signal a process if it is still of this leader's tree; whether it is.

        Raises `PermissionError` where it is another user's.
        """
        sessions = {leader: tag} if leader in self.leaders else {}
        ours = partial(kill_pass.is_ours, pid, tag, sessions, self._marks.tags())
        return procfs.signal_if(pid, number, ours)

    def _sweep_soon(self) -> None:
        if self._call is None:
            delay = max(0.0, self._not_before - self._clock.seconds())
            self._call = self._clock.callLater(delay, self._sweep)

    def _sweep(self) -> None:
        wanted, self._wanted = self._wanted, {}
        to_kill, self._to_kill = self._to_kill, set()
        began = self._spent()
        try:
            if to_kill:
                sessions = self._sessions(to_kill)
                known = self._marks.tags()
                kill_pass.kill_pass(self.base, to_kill, sessions, known, self._since(to_kill))
            # What is in the process session of another live leader is not sought.
            others = {pid for pid, tag in self.leaders.items() if tag not in wanted}
            reading = procfs.read_table(
                self.base, others, self._sessions(wanted), self._marks.tags(), self._since(wanted)
            )
        except Exception as error:
            self._answer(wanted, error, self._spent() - began)
            return
        self._read_on(reading, wanted, self._spent() - began)

    def _read_on(
        self,
        reading: Generator[None, None, procfs.Table],
        wanted: dict[int, list[Deferred[list[int]]]],
        busy: float,
    ) -> None:
        """Read until it is done, or the reactor is to have its turn; `busy`: the time so far."""
        began = now = self._spent()
        try:
            while now - began < SLICE_SECONDS:
                next(reading)
                now = self._spent()
        except StopIteration as done:
            answer: procfs.Table | Exception = done.value
        except Exception as error:
            # Whatever it is: what was not seen is not gone.
            answer = error
        else:
            busy += now - began
            self._call = self._clock.callLater(0, self._read_on, reading, wanted, busy)
            return
        self._answer(wanted, answer, busy + self._spent() - began)

    def _answer(
        self,
        wanted: dict[int, list[Deferred[list[int]]]],
        table: procfs.Table | Exception,
        busy: float,
    ) -> None:
        self._not_before = self._clock.seconds() + max(SWEEP_SECONDS, SWEEP_REST_FACTOR * busy)
        self._call = None
        if self._wanted or self._to_kill:
            self._sweep_soon()
        found: dict[int, list[int]] = {tag: [] for tag in wanted}
        if isinstance(table, procfs.Table):
            try:
                living = self._sort_out(table.found)
            except Exception as error:
                # Whoever asked has to be told: it asks again, and signals nobody before.
                living, table = [], error
            for each in living:
                if each.tag in found:
                    found[each.tag].append(each.pid)
        for tag, waiting in wanted.items():
            for asked in waiting:
                if isinstance(table, Exception):
                    asked.errback(table)
                else:
                    asked.callback(found[tag] or table.unknown)

    def _sort_out(self, found: list[procfs.Tagged]) -> list[procfs.Tagged]:
        """What lives, beside leaders and watchdog; adopted zombies are reaped."""
        living = []
        for process in found:
            if process.pid in self.leaders or process.tag == self.base:
                continue
            if process.zombie:
                reap(process.pid)
                continue
            living.append(process)
            if not process.marked:
                pid, tag, sessions = process.pid, process.tag, self.leaders
                self._marks.hold(pid, tag, partial(kill_pass.is_ours, pid, tag, sessions, {}))
        return living

    def _sessions(self, tags: Collection[int]) -> dict[int, int]:
        """The leaders of these tags whose numbers are theirs, and so their process sessions."""
        return {pid: tag for pid, tag in self.leaders.items() if tag in tags}

    def _since(self, tags: Collection[int]) -> int:
        """The oldest of these leaders; 0 where there is none."""
        return next((pid for pid, tag in self.leaders.items() if tag in tags), 0)

    # Adopted processes.

    def _reap_adopted(self) -> None:
        """
        Now and then: which children have exited that are not Twisted's?

        By the kernel's list of own children, so that it costs a few
        microseconds for each child, whatever else runs on the machine.  A
        process that forks and exits without end leaves thousands in a second:
        were they read of the whole table, for a tenth of the time at most,
        there would be more of them at each look.
        """
        self._reaping = None
        self._traced = {pid for pid in self._traced if not reap(pid)}
        if not self.leaders and not self._traced:
            return
        children = procfs.own_children()
        if children is None:
            self._sweep_for_zombies()
            self._reap_later(REAP_SECONDS)
        else:
            self._reap_of(deque(children))

    def _reap_of(self, children: deque[int]) -> None:
        self._reaping = None
        for _ in range(min(REAPED_AT_ONCE, len(children))):
            self._reap_child(children.popleft())
        if children:
            self._reaping = self._clock.callLater(0, self._reap_of, children)
        else:
            self._reap_later(REAP_SECONDS)

    def _reap_child(self, pid: int) -> None:
        """No status is taken from anybody: what is not tagged is not ours."""
        try:
            tag = procfs.tag_of(pid)
        except OSError:
            return
        # The first tag is the watchdog's, which Twisted waits for.
        if self.base < tag < self.base + process_tags.TAGS and pid not in self.leaders:
            reap(pid)

    def _reap_later(self, seconds: float) -> None:
        if self.leaders or self._traced:
            self._reaping = self._clock.callLater(seconds, self._reap_adopted)

    def _sweep_for_zombies(self) -> None:
        if self._call is None:
            # A child that nobody reaps must not cost more than a tenth of the time either.
            delay = max(0.0, self._not_before - self._clock.seconds())
            self._call = self._clock.callLater(delay, self._read_for_zombies)

    def _read_for_zombies(self) -> None:
        try:
            reading = procfs.read_table(
                self.base, (), self.leaders, self._marks.tags(), self._since(set())
            )
        except Exception as error:
            # Whoever asks meanwhile waits for the end of this.
            self._answer({}, error, 0.0)
            self.log.failure("looking for adopted processes failed")
            return
        self._read_on(reading, {}, 0.0)


class TaggedTree:
    """The process tree of one session, by its tag."""

    log = Logger()

    __slots__ = ("_killed_leader", "_kills", "_pid", "_sweeper", "_tag", "_warned")

    def __init__(self, pid: int | None, tag: int, sweeper: Sweeper) -> None:
        #: -1: it has exited within the spawn, and Twisted has reaped it.
        self._pid = -1 if pid is None else pid
        self._tag = tag
        self._sweeper = sweeper
        self._kills = 0
        self._killed_leader = False
        self._warned = False

    def signal_leader(self, number: int) -> None:
        """The leader is not reaped, so its number is its own, and its group's."""
        self._killed_leader = number == signal.SIGKILL
        if self._pid in self._sweeper.leaders:
            signal_group(self._pid, number)

    def signal_rest(self, pids: list[int], number: int) -> None:
        """
        Only those that are still of this tree are signalled.

        From the second SIGKILL on, nothing outruns it: see `killing`.
        """
        if number == signal.SIGKILL:
            self._kills += 1
            self.signal_leader(number)
            if self._kills > 1:
                self._sweeper.kill(self._tag)
        for pid in pids:
            try:
                self._sweeper.signal(pid, self._pid, self._tag, number)
            except OSError as error:
                self._warn(pid, error)

    def _warn(self, pid: int, error: OSError) -> None:
        """Once: it is tried again and again."""
        if not self._warned:
            self._warned = True
            self.log.warn("cannot signal process {pid}: {error}", pid=pid, error=error.strerror)

    def look(self) -> Deferred[list[int]]:
        """
        What is of this tree, beside the leader.

        Nothing counts only where `CLEAN_LOOKS` in a row have seen nothing,
        all begun when the leader had exited, if it has.  Then the leader is
        reaped, and its number is free.
        """
        sweeper, pid = self._sweeper, self._pid
        exited, clean = sweeper.has_exited(pid), 0

        def judge(pids: list[int]) -> list[int] | Deferred[list[int]]:
            nonlocal exited, clean
            if self._killed_leader:
                sweeper.look_behind_tracer(pid)
            if pids:
                return pids
            before, exited = exited, sweeper.has_exited(pid)
            clean = clean + 1 if before == exited else 0
            if clean < CLEAN_LOOKS:
                return sweeper.look(self._tag).addCallback(judge)
            if exited:
                sweeper.release(pid)
            return []

        return sweeper.look(self._tag).addCallback(judge)


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
