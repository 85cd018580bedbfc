"""
Find out which process belongs to which session (Linux).

A backend is started with a *tag*: a number that no other session has, set as
the soft and hard limit of two resources that Linux does not limit: RLIMIT_RSS,
without effect since 2.4.30, and RLIMIT_LOCKS, since 2.4.25 (getrlimit(2)).
Every descendant inherits both, through `fork`, `setsid` and `exec`, with a
cleared environment and a new parent.  `ulimit -m` in a start script clears one
of them; the other is still there.

A process without a tag belongs to a session only if something else proves it:
it is in the process session of a leader that is not reaped, whose pid is
therefore still its own, or it was seen there before and has been held by a
descriptor since.  No other process is ever signalled or reaped.

A single pass over /proc proves little: by the time that a listed process is
read it may have forked and exited, and its child is not in the list.  So
passes are repeated for new processes until everything in a listing could be
read; see `read_table`.

Uses the standard library alone, since the watchdog runs this file without the
package.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

if __package__:
    from mcpbridge.stdio.process_tags import (
        LIMITS,
        TAGS,
        listed_processes,
        machine,
        possible_processes,
    )
else:
    # Imported by the watchdog, which runs without the package.
    from process_tags import (  # type: ignore[import-not-found,no-redef]
        LIMITS,
        TAGS,
        listed_processes,
        machine,
        possible_processes,
    )

#: What `tag_of` returns for a process without a tag, and for one that is gone.
NONE = -1
GONE = -2
#: At most so many listings are read until everything in one could be read.
ROUNDS = 50
#: `read_table` yields after so many processes.
SLICE = 500

_LIMIT_LINES = (b"Max resident set", b"Max file locks")
NOTHING: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class Tagged:
    """
    A process of a session.

    `zombie` is True only if none of its threads runs.  `tagged` is False if it
    carries no tag, and something else proves that it belongs to the session.
    """

    pid: int
    tag: int
    zombie: bool
    parent: int
    tagged: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """
    The result of `read_table`.

    `unknown` are the processes of the last listing that had ended before they
    could be read.  If there are any, an empty `found` does not prove that
    nothing is there.
    """

    found: list[Tagged]
    unknown: list[int]


#: The soft and hard limit of each resource in `LIMITS`; `NONE` stands for unlimited.
Limits = list[tuple[int, int]]


def tag_of(pid: int) -> int:
    """
    Return the tag of a process, or whatever number its limit is.

    Returns `NONE` if it has no limit, `GONE` if the process is gone or cannot
    be read.  Raises `OSError` if the bridge is out of descriptors.
    """
    limits = limits_of(pid)
    return GONE if limits is None else tag_in(limits)


def tag_in(limits: Limits) -> int:
    """
    Return the tag in these limits, or whatever number they are; `NONE` without a limit.

    Without privileges a limit can only be lowered, so the higher one counts.
    """
    return max((soft if soft == hard else NONE for soft, hard in limits), default=NONE)


def are_foreign(limits: Limits, base: int) -> bool:
    """
    Tell whether a process with these limits has no tag of this base, and can get none.

    A process may raise its soft limit up to the hard one, but without privileges it
    cannot raise the hard one.  If no limit can be read it may have any tag.
    """
    return bool(limits) and not any(base <= hard < base + TAGS for _, hard in limits)


def limits_of(pid: int) -> Limits | None:
    """
    Return the limits of a process that may be tags: an empty list if they cannot be
    read, None if the process has exited.  Raises `OSError` if the bridge is out of
    descriptors.
    """
    try:
        return [resource.prlimit(pid, each) for each in LIMITS]
    except ProcessLookupError:
        return None
    except (OSError, AttributeError):
        # Another user's process: prlimit(2) is refused, but everybody may read its file.
        return _limits_in_file(pid)


def _limits_in_file(pid: int) -> Limits | None:
    try:
        limits = os.open(f"/proc/{pid}/limits", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            # What was not seen is not gone.
            raise
        return [] if error.errno in (errno.EPERM, errno.EACCES) else None
    try:
        text = os.read(limits, 4096)
    except OSError:
        return None
    finally:
        os.close(limits)
    found: Limits = []
    for name in _LIMIT_LINES:
        at = text.find(name)
        if at >= 0:
            soft, hard = text[at + len(name) : text.index(b"\n", at)].split()[:2]
            found.append((_limit(soft), _limit(hard)))
    return found or None


def _limit(text: bytes) -> int:
    return int(text) if text.isdigit() else NONE


def own_children() -> list[int] | None:
    """Return this process's children, with zombies; None if the kernel does not list them."""
    found: list[int] = []
    try:
        for thread in map(int, os.listdir("/proc/self/task")):
            try:
                with open(f"/proc/self/task/{thread}/children", "rb") as children:
                    found += map(int, children.read().split())
            except FileNotFoundError:
                # The thread has ended, or the kernel was built without CONFIG_PROC_CHILDREN.
                if thread == os.getpid():
                    return None
    except OSError:
        return None
    return found


def start_time(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot; None if unknown."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_dead(pid: int) -> bool:
    """Return True if a process has ended and waits to be reaped; False if unknown."""
    fields = _stat(pid)
    # `Z` is the state of the main thread; other threads may still run.
    return bool(fields) and fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third on; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            # The name, in parentheses, may contain anything: read what follows it.
            fields = stat.read(4096).rpartition(b")")[2].split()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return []
    return fields if len(fields) > 19 else []


class Memory(Protocol):
    """What earlier readings have found out; see `process_memory`, which the watchdog lacks."""

    def rounds(self) -> Iterator[tuple[Iterable[int], bool] | None]:
        """Do what `rounds` does, without the processes that are known; None ends a slice."""

    def remember(self, pid: int, session: int, tag: int) -> None:
        """Note the session and the tag of a process that was examined, `NONE` without one."""


class Reader:
    """Examines processes one by one, by all that proves whose they are; see `read_table`."""

    def __init__(
        self,
        base: int,
        skip_sessions: Container[int],
        sessions: Mapping[int, int],
        known: Mapping[int, int],
        memory: Memory | None = None,
    ) -> None:
        self._base = base
        self._skip = skip_sessions
        self._sessions = sessions
        self._known = known
        self._memory = memory
        self.examined: set[int] = set()

    def examine(self, pid: int) -> Tagged | bool | None:
        """Return a `Tagged` for a session's process, None for another one, False if it is gone."""
        try:
            session = os.getsid(pid)
        except ProcessLookupError:
            return False
        except OSError:
            session = -1
        # Session 0 is the kernel's own.
        if session == 0 or session in self._skip:
            self.examined.add(pid)
            if self._memory is not None:
                self._memory.remember(pid, session, NONE)
            return None
        limits = limits_of(pid)
        if limits is None:
            return False
        self.examined.add(pid)
        tag = tag_in(limits)
        tagged = self._base <= tag < self._base + TAGS
        if not tagged:
            tag = self._sessions.get(session) or self._known.get(pid) or NONE
        if self._memory is not None and (tag != NONE or are_foreign(limits, self._base)):
            self._memory.remember(pid, session, tag)
        if not tagged and (tag == NONE or pid == session):
            return None
        fields = _stat(pid)
        if fields:
            zombie = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
            return Tagged(pid, tag, zombie, int(fields[1]), tagged)
        ended = _has_ended(pid)
        return False if ended is None else Tagged(pid, tag, ended, 0, tagged)


def _has_ended(pid: int) -> bool | None:
    """Do what `is_dead` does where /proc does not show the process; None if it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    process = _open(pid)
    if process is None:
        return False
    try:
        ended = select.poll()
        ended.register(process, select.POLLIN)
        return bool(ended.poll(0))
    finally:
        os.close(process)


def read_table(
    base: int,
    skip_sessions: Container[int] = (),
    sessions: Mapping[int, int] = NOTHING,
    known: Mapping[int, int] = NOTHING,
    since: int = 0,
    ended: Iterable[int] = (),
    memory: Memory | None = None,
) -> Generator[None, None, Table]:
    """
    Find all processes with a tag of this base, with zombies.

    A generator that yields now and then, so that its caller can do something
    else, and returns a `Table`.  It costs about 1.5 µs for each process that is
    not skipped.

    `skip_sessions` are the ids of process sessions (setsid(2)) of no interest:
    a process cannot enter the session of another, so one system call spares
    reading its limits.  `sessions` maps unreaped leaders to their tags, and
    `known` maps processes that are held by a descriptor to theirs; a process
    in one of those counts without a tag.  `ended` are processes that had ended
    before this began, and are still zombies: they have no more children, so they
    need not be read.  `memory` spares reading what an earlier call has read.

    A process may renew itself: fork, and exit at once.  One of its generations
    is always in the listing, because new pids are higher than those that the
    listing has passed.  If that generation can be read, it is found.  If it is
    gone by then, or a zombie, the next round lists its descendant.  So a round
    in which everything could be read proves that nothing was there, except at
    the moment when pids start again from the lowest; against that a tree must
    be seen empty twice.
    """
    reader = Reader(base, skip_sessions, sessions, known, memory)
    reader.examined.update(ended)
    found: list[Tagged] = []
    unknown: list[int] = []
    count = 0
    for listing in rounds(since) if memory is None else memory.rounds():
        if listing is None:
            yield
            continue
        pids, listed = listing
        unknown = []
        for pid in pids:
            count += 1
            if count % SLICE == 0:
                yield
            each = None if pid in reader.examined else reader.examine(pid)
            if isinstance(each, Tagged):
                found.append(each)
            if listed and (each is False or (isinstance(each, Tagged) and each.zombie)):
                unknown.append(pid)
        if listed and not unknown:
            break
    return Table(found, unknown)


def rounds(since: int) -> Generator[tuple[Iterable[int], bool], None, None]:
    """
    Yield pids to examine, round after round, and whether they were listed.

    A listed process that is gone was there a moment ago.  Where /proc does not
    show all processes, the first round is every possible pid.
    """
    here = machine()
    if not here.lists_all:
        yield possible_processes(since), False
    for _ in range(ROUNDS if here.proc else 0):
        yield listed_processes(), True


def find_tagged(base: int, skip_sessions: Container[int] = ()) -> list[Tagged]:
    """Return all processes with a tag of this base, with zombies, at once; see `read_table`."""
    reading = read_table(base, skip_sessions)
    while True:
        try:
            next(reading)
        except StopIteration as done:
            found: list[Tagged] = done.value.found
            return found


def _open(pid: int) -> int | None:
    """Open a pidfd; return None if that is impossible.  Raises `ProcessLookupError`."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (OSError, AttributeError):
        # Refused, or out of descriptors.
        return None


def signal_if(pid: int, number: int, ours: Callable[[], bool]) -> bool:
    """
    Signal a process if `ours` returns True for it; return False if it does not.

    The descriptor is opened before `ours` is called, so that the signal
    reaches the process that was examined, or nobody (pidfd_open(2)).  Without
    a descriptor `ours` is called twice and the start time compared: a pid is
    reused only after all others.  Raises `PermissionError` if the process is
    another user's.
    """
    try:
        process = _open(pid)
        if process is None:
            started = start_time(pid)
            if not ours() or not ours() or start_time(pid) != started:
                return False
            os.kill(pid, number)
            return True
        try:
            if not ours():
                return False
            signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)
    except ProcessLookupError:
        return False
    return True


def signal_tagged(pid: int, tag: int, number: int) -> bool:
    """Signal a process if it carries the tag; see `signal_if`."""
    return signal_if(pid, number, lambda: tag_of(pid) == tag)
