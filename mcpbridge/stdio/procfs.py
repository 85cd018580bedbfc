"""
Which processes belong to which session (Linux).

A backend is started with a *tag*: a number that no other session has, as the
soft and hard limit of two resources that Linux does not limit: RLIMIT_RSS,
without effect since 2.4.30, and RLIMIT_LOCKS, since 2.4.25 (getrlimit(2)).
Every descendant inherits both through `fork`, `setsid`, `exec`, a cleared
environment and a new parent.  `ulimit -m` in a start script clears one of
them; the other still says whose the process is.

A process without a tag is ours only where something else proves it: it is in
the process session of a leader that has not been reaped, whose number is
therefore the leader's, or it was seen there before and a descriptor of it has
been held since.  Anything else is never signalled and never reaped.

A single pass over /proc proves little.  By the time that a listed process is
read it may have forked and exited, and its child is not in the list.  So a
pass is repeated for what is new until a listing holds nothing that could not
be read; see `read_table`.

Uses the standard library alone: the watchdog runs this file by itself.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass

if __package__:
    from mcpbridge.stdio.process_tags import (
        LIMITS,
        TAGS,
        listed_processes,
        machine,
        possible_processes,
    )
else:
    # Beside the watchdog, which runs without the package.
    from process_tags import (  # type: ignore[import-not-found,no-redef]
        LIMITS,
        TAGS,
        listed_processes,
        machine,
        possible_processes,
    )

#: What `tag_of` gives where there is no tag.
NONE = -1
GONE = -2
#: How often new processes are listed until all of a listing could be read.
ROUNDS = 50
#: After so many processes `read_table` lets its caller do something else.
SLICE = 500

_LIMIT_LINES = (b"Max resident set", b"Max file locks")
NOTHING: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class Tagged:
    """
    A process of a session.

    `zombie` is True only if no thread of it runs.  `tagged` is False where it
    carries no tag, and something else proves whose it is.
    """

    pid: int
    tag: int
    zombie: bool
    parent: int
    tagged: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """
    What a pass over all processes has found.

    `unknown` are the processes of the last listing that had ended before they
    could be read: with any of those, nothing found is not nothing there.
    """

    found: list[Tagged]
    unknown: list[int]


def tag_of(pid: int) -> int:
    """
    The tag of a process, or whatever number its limit is; `NONE` where it has
    none, `GONE` where the process is gone or tells nothing.  Raises `OSError`
    where there are no descriptors left to read with.

    Without privileges a limit can only be lowered, so the higher one counts.
    """
    try:
        limits = [resource.prlimit(pid, each) for each in LIMITS]
    except ProcessLookupError:
        return GONE
    except (OSError, AttributeError):
        # Another user's: prlimit(2) is refused, but everybody may read this.
        return _tag_in_file(pid)
    return max(soft if soft == hard else NONE for soft, hard in limits)


def _tag_in_file(pid: int) -> int:
    try:
        limits = os.open(f"/proc/{pid}/limits", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            # What was not seen is not gone.
            raise
        return NONE if error.errno in (errno.EPERM, errno.EACCES) else GONE
    try:
        text = os.read(limits, 4096)
    except OSError:
        return GONE
    finally:
        os.close(limits)
    found = GONE
    for name in _LIMIT_LINES:
        at = text.find(name)
        if at >= 0:
            soft, hard = text[at + len(name) : text.index(b"\n", at)].split()[:2]
            found = max(found, int(soft) if soft == hard and soft.isdigit() else NONE)
    return found


def own_children() -> list[int] | None:
    """The children of this process, zombies among them; None where the kernel has no list."""
    found: list[int] = []
    try:
        for thread in map(int, os.listdir("/proc/self/task")):
            try:
                with open(f"/proc/self/task/{thread}/children", "rb") as children:
                    found += map(int, children.read().split())
            except FileNotFoundError:
                # A thread that has ended; or a kernel without CONFIG_PROC_CHILDREN.
                if thread == os.getpid():
                    return None
    except OSError:
        return None
    return found


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot; None where that is not told."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_dead(pid: int) -> bool:
    """Whether a process has ended and waits to be reaped; False where that is not told."""
    fields = _stat(pid)
    # `Z` is the state of the main thread alone: others may run without it.
    return bool(fields) and fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on; empty where it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            # The name, in parentheses, may hold anything: read behind it.
            fields = stat.read(4096).rpartition(b")")[2].split()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return []
    return fields if len(fields) > 19 else []


class Reader:
    """Examines processes one by one; knows what proves whose they are."""

    def __init__(
        self,
        base: int,
        skip_sessions: Collection[int],
        sessions: Mapping[int, int],
        known: Mapping[int, int],
    ) -> None:
        self._base = base
        self._skip = skip_sessions
        self._sessions = sessions
        self._known = known
        self.examined: set[int] = set()

    def examine(self, pid: int) -> Tagged | bool | None:
        """
        What a process is: `Tagged` if it is of a session, None if it is not,
        False if it is gone.
        """
        try:
            session = os.getsid(pid)
        except ProcessLookupError:
            return False
        except OSError:
            session = -1
        # Session 0 is the kernel's own.
        if session == 0 or session in self._skip:
            self.examined.add(pid)
            return None
        tag = tag_of(pid)
        if tag == GONE:
            return False
        self.examined.add(pid)
        tagged = self._base <= tag < self._base + TAGS
        if not tagged:
            tag = self._sessions.get(session) or self._known.get(pid) or NONE
            if tag == NONE or pid == session:
                return None
        fields = _stat(pid)
        if fields:
            zombie = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
            return Tagged(pid, tag, zombie, int(fields[1]), tagged)
        ended = _has_ended(pid)
        return False if ended is None else Tagged(pid, tag, ended, 0, tagged)


def _has_ended(pid: int) -> bool | None:
    """The same as `is_dead` where /proc does not show the process; None if it is gone."""
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
    skip_sessions: Collection[int] = (),
    sessions: Mapping[int, int] = NOTHING,
    known: Mapping[int, int] = NOTHING,
    since: int = 0,
) -> Generator[None, None, Table]:
    """
    Find all processes with a tag of this base, zombies among them; a generator
    that now and then lets its caller do something else, and returns a `Table`.

    `skip_sessions` are ids of process sessions (setsid(2)) that are not of
    interest: a process cannot enter the session of another, so one system
    call spares the reading of its limits.  `sessions` maps leaders that have
    not been reaped to their tags, `known` processes of which a descriptor is
    held; what is in one of those counts without a tag.  Costs about 1.5 µs
    for each process that is not skipped.

    A process may renew itself: fork, and exit at once.  One of its
    generations is always in the listing, because new numbers are higher than
    those that the listing has passed.  If that one can be read, it is found.
    If it is gone by then, or a zombie, the next round lists its descendant.
    So a round in which everything listed could be read shows that nothing was
    there; but for the moment in which the numbers begin anew, for which there
    are two looks.
    """
    reader = Reader(base, skip_sessions, sessions, known)
    found: list[Tagged] = []
    unknown: list[int] = []
    count = 0
    for pids, listed in rounds(since):
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
    Numbers of processes, round after round, and whether they were listed: if
    so, one that is gone was there a moment ago.  First of all, where /proc
    does not show all processes, every number that may be one.
    """
    here = machine()
    if here.hidden or not here.proc:
        yield possible_processes(since), False
    for _ in range(ROUNDS if here.proc else 0):
        yield listed_processes(), True


def find_tagged(base: int, skip_sessions: Collection[int] = ()) -> list[Tagged]:
    """All processes with a tag of this base, zombies among them, at once; see `read_table`."""
    reading = read_table(base, skip_sessions)
    while True:
        try:
            next(reading)
        except StopIteration as done:
            found: list[Tagged] = done.value.found
            return found


def _open(pid: int) -> int | None:
    """A descriptor of a process; None where there can be none.  Raises `ProcessLookupError`."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (OSError, AttributeError):
        # Refused, or out of descriptors.
        return None


def signal_if(pid: int, number: int, ours: Callable[[], bool]) -> bool:
    """
    Signal a process if it is (still) ours; False where it is not.

    The descriptor is opened before `ours` is asked, so that the signal goes
    to the process that was seen, or to nobody (pidfd_open(2)).  Where there
    can be none, `ours` is asked twice and the start time compared: a number
    is used again only after all others.  Raises `PermissionError` where the
    process is another user's.
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
    """Signal a process if it (still) carries the tag; see `signal_if`."""
    return signal_if(pid, number, lambda: tag_of(pid) == tag)
