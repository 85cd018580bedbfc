"""
Track the processes of all sessions of a bridge by their tags (Linux).

Ending a session means to end whatever its backend has started, including
processes that left its process group, its session and its parent.  A process
table is the only place where all of them are found.  Reading it takes
1.5 µs for each process of the machine, so the bridge reads it once for all
sessions that ask, not once for each, and spends at most a tenth of one
processor on it however many sessions end at once.

What is proof that a process belongs to a session is in `procfs`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Generator, Mapping
from functools import partial
from time import thread_time

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.pacer import ENDS, Pacer
from mcpbridge.stdio import kill_pass, process_tags, procfs
from mcpbridge.stdio.cleanup_records import Cleanup, CleanupRecords
from mcpbridge.stdio.leader import ExitEvents, Leader
from mcpbridge.stdio.process_memory import ProcessMemory
from mcpbridge.stdio.reaper import Reaper, reap
from mcpbridge.stdio.untagged_processes import UntaggedProcesses

#: The pause between two readings of the process table: at least this time, and
#: so many times the processor time that the last reading took.
SWEEP_SECONDS = 0.02
SWEEP_REST_FACTOR = 10.0
#: A reading is interrupted after so long, so that the reactor serves others.
SLICE_SECONDS = 0.003

#: The looks that wait for a reading, by tag.
_Looks = dict[int, list[Deferred[list[int]]]]


class ProcessTracker:
    """
    Assigns tags to sessions, and finds and signals the processes that carry them.

    `base` is the first of the bridge's tags (`process_tags.new_base`), 0 where
    there are none.  `cleanup` is told of processes without a tag, which a
    watchdog could not find by itself.  `processor_time` returns the processor
    time of this thread in seconds: waiting for other processes on a busy
    machine is no reason to read less often.  `pacer` spreads what follows the
    exits and the looks of many sessions.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        base: int,
        cleanup: Cleanup | None = None,
        processor_time: Callable[[], float] = thread_time,
        pacer: Pacer | None = None,
    ) -> None:
        self._clock = clock
        self._pacer = pacer or Pacer(clock)
        #: Tells leaders' exits; for each `Leader`.
        self.exits = ExitEvents(clock, self._pacer)
        self._processor_time = processor_time
        self.base = base
        self._last_tag = 0
        #: Pid and tag of each leader that is not reaped, so that its pid is its own.
        self.leaders: dict[int, int] = {}
        #: The pid of the leader of each tag.
        self._leader_of: dict[int, int] = {}
        #: Those of them that the bridge reaps itself, once their trees are gone.
        self._reaped_late: dict[int, Leader] = {}
        self._untagged = UntaggedProcesses(CleanupRecords() if cleanup is None else cleanup)
        self._memory = ProcessMemory(self.leaders)
        self._reaper = Reaper(clock, base, self.leaders, self._sweep_for_zombies)
        self._looks: _Looks = {}
        self._to_kill: set[int] = set()
        #: True from the moment that a reading is scheduled until it is complete.
        self._sweeping = False
        self._not_before = 0.0

    def new_tag(self) -> int:
        """Return a tag that no living session has; 0 where processes cannot be tagged."""
        if not self.base:
            return 0
        while True:
            # The first tag, `base` itself, is the watchdog's.
            self._last_tag = self._last_tag % (process_tags.TAGS - 1) + 1
            tag = self.base + self._last_tag
            if tag not in self._leader_of and tag not in self._looks:
                return tag

    # Leaders.

    def leader_started(self, pid: int, tag: int, leader: Leader | None = None) -> None:
        """Register a spawned leader; with a `Leader`, its pid is kept when it exits."""
        self.leaders[pid] = tag
        self._leader_of[tag] = pid
        if leader is not None:
            self._reaped_late[pid] = leader
        self._reaper.start()

    def leader_exited(self, pid: int) -> None:
        """Forget a leader that has exited, unless its pid is kept: it may be reused."""
        leader = self._reaped_late.get(pid)
        if leader is None or not leader.unreaped:
            self._forget(pid)

    def has_exited(self, pid: int) -> bool:
        """Return True once Twisted knows that the leader has exited."""
        if pid not in self.leaders:
            return True
        return pid in self._reaped_late and self._reaped_late[pid].exited

    def look_behind_tracer(self, pid: int) -> None:
        """Notice the end of a killed leader whose tracer keeps it from its parent."""
        if pid in self._reaped_late:
            self._reaped_late[pid].look_behind_tracer()

    def release(self, pid: int) -> None:
        """Reap a leader that has exited: nothing is left of its tree."""
        leader = self._reaped_late.get(pid)
        if leader is not None and leader.unreaped:
            self._reaper.reap_leader(pid)
        self._forget(pid)

    def _forget(self, pid: int) -> None:
        tag = self.leaders.pop(pid, None)
        if tag is not None and self._leader_of.get(tag) == pid:
            del self._leader_of[tag]
        self._reaped_late.pop(pid, None)
        self._reaper.stop_if_idle()

    # Looks and signals.

    def look(self, tag: int) -> Deferred[list[int]]:
        """
        Return a `Deferred` of the pids of the living processes of a tag, without the leader.

        If there are none and that is not certain, it fires with the pids of
        processes that were gone before they could be read, which may be
        anybody's.  It fails with `OSError` if the table cannot be read.
        """
        answer: Deferred[list[int]] = Deferred()
        self._looks.setdefault(tag, []).append(answer)
        self._sweep_soon()
        return answer

    def kill(self, tag: int) -> None:
        """Kill all processes of a tag before the next look, in a way that none can outrun."""
        self._to_kill.add(tag)
        self._sweep_soon()

    def signal(self, pid: int, leader: int, tag: int, number: int) -> bool:
        """
        Signal a process if it still belongs to this leader's tree; return True if it does.

        Raises `PermissionError` if it is another user's.
        """
        sessions = {leader: tag} if leader in self.leaders else {}
        ours = partial(kill_pass.is_ours, pid, tag, sessions, self._untagged.tags())
        return procfs.signal_if(pid, number, ours)

    # Reading the process table.

    def _sweep_soon(self) -> None:
        if not self._sweeping:
            self._schedule(self._sweep)

    def _schedule(self, sweep: Callable[[], None]) -> None:
        self._sweeping = True
        delay = max(0.0, self._not_before - self._clock.seconds())
        self._clock.callLater(delay, sweep)

    def _sweep(self) -> None:
        looks, self._looks = self._looks, {}
        to_kill, self._to_kill = self._to_kill, set()
        began = self._processor_time()
        try:
            if to_kill:
                kill_pass.kill_pass(
                    self.base,
                    to_kill,
                    self._sessions(to_kill),
                    self._untagged.tags(),
                    self._oldest_leader(to_kill),
                )
            sessions = self._sessions(looks)
            reading = procfs.read_table(
                self.base,
                _OtherSessions(self.leaders, looks),
                sessions,
                self._untagged.tags(),
                self._oldest_leader(looks),
                [pid for pid in sessions if self.has_exited(pid)],
                self._memory.looking_for(looks) if process_tags.machine().lists_all else None,
            )
        except Exception as error:
            self._finish(looks, error, self._processor_time() - began)
            return
        self._continue(reading, looks, self._processor_time() - began)

    def _sweep_for_zombies(self) -> None:
        """Read the table for adopted children alone, for want of a list of children."""
        if not self._sweeping:
            # A child that nobody reaps must not cost more than a tenth of the time either.
            self._schedule(self._read_for_zombies)

    def _read_for_zombies(self) -> None:
        try:
            reading = procfs.read_table(self.base, (), self.leaders, self._untagged.tags())
        except Exception as error:
            # Looks that were asked for meanwhile wait for the end of this reading.
            self._finish({}, error, 0.0)
            self.log.failure("looking for adopted processes failed")
            return
        self._continue(reading, {}, 0.0)

    def _continue(
        self, reading: Generator[None, None, procfs.Table], looks: _Looks, used: float
    ) -> None:
        """
        Read until the table is complete or the slice is over.

        `used` is the processor time of the slices before, in seconds.
        """
        began = now = self._processor_time()
        try:
            while now - began < SLICE_SECONDS:
                next(reading)
                now = self._processor_time()
        except StopIteration as done:
            result: procfs.Table | Exception = done.value
        except Exception as error:
            # Whatever it is: a process that was not seen may still be there.
            result = error
        else:
            self._clock.callLater(0, self._continue, reading, looks, used + now - began)
            return
        self._finish(looks, result, used + self._processor_time() - began)

    def _finish(self, looks: _Looks, table: procfs.Table | Exception, used: float) -> None:
        """Answer the looks, and schedule the next reading if more were asked for."""
        self._not_before = self._clock.seconds() + max(SWEEP_SECONDS, SWEEP_REST_FACTOR * used)
        self._sweeping = False
        if self._looks or self._to_kill:
            self._sweep_soon()
        found: dict[int, list[int]] = {tag: [] for tag in looks}
        if isinstance(table, procfs.Table):
            try:
                living = self._living(table.found)
            except Exception as error:
                # Every look must be answered: its tree asks again, and signals nobody before.
                living, table = [], error
            for each in living:
                if each.tag in found:
                    found[each.tag].append(each.pid)
        for tag, answers in looks.items():
            result = table if isinstance(table, Exception) else found[tag] or table.unknown
            for answer in answers:
                self._pacer.run(ENDS, partial(_answer, answer, result))

    def _living(self, found: list[procfs.Tagged]) -> list[procfs.Tagged]:
        """Return what lives, without leaders and the watchdog; reap adopted zombies."""
        living = []
        for process in found:
            if process.pid in self.leaders or process.tag == self.base:
                continue
            if process.zombie:
                reap(process.pid)
                continue
            living.append(process)
            if not process.tagged:
                pid, tag, sessions = process.pid, process.tag, self.leaders
                self._untagged.hold(pid, tag, partial(kill_pass.is_ours, pid, tag, sessions, {}))
        return living

    def _sessions(self, tags: Collection[int]) -> dict[int, int]:
        """Return the leaders of these tags; a leader's pid is the id of its process session."""
        return {self._leader_of[tag]: tag for tag in tags if tag in self._leader_of}

    def untagged(self) -> dict[int, int]:
        """Return the tags of the sessions of living processes that carry none, by pid."""
        return self._untagged.tags()

    def _oldest_leader(self, tags: Collection[int]) -> int:
        """
        Return the pid of the oldest leader of these tags; 0 without one, and
        where /proc lists all processes, so that it does not matter.
        """
        if process_tags.machine().lists_all:
            return 0
        return next((pid for pid, tag in self.leaders.items() if tag in tags), 0)


def _answer(look: Deferred[list[int]], result: list[int] | Exception) -> None:
    if isinstance(result, Exception):
        look.errback(result)
    else:
        look.callback(result)


class _OtherSessions(Container[int]):
    """The process sessions of leaders that nobody asks about: they are of no interest."""

    def __init__(self, leaders: Mapping[int, int], looks: Collection[int]) -> None:
        self._leaders = leaders
        self._looks = looks

    def __contains__(self, session: object) -> bool:
        tag = self._leaders.get(session)  # type: ignore[call-overload]
        return tag is not None and tag not in self._looks
