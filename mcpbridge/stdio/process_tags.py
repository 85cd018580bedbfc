"""
What holds on this machine: whether processes can be tagged, seen and signalled.

Uses the standard library alone, like `procfs`, which is built on it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

#: Tags of one bridge lie in `[base, base + TAGS)`.
TAGS = 1 << 24
#: `resource` has no name for it.
RLIMIT_LOCKS = 10
#: The limits that are a tag, and have no effect on Linux.
LIMITS = (resource.RLIMIT_RSS, RLIMIT_LOCKS)
#: The highest number of a process where the system does not say: its default on
#: 64-bit machines.
DEFAULT_PID_MAX = 1 << 22
_CAP_SYS_PTRACE = 19


@dataclass(frozen=True, slots=True)
class Machine:
    """What holds on this machine; see `machine`."""

    tags: bool
    proc: bool = True
    hidden: bool = False
    pidfds: bool = True


@cache
def machine() -> Machine:
    """
    Find out what holds on this machine.

    `tags`: limits of processes can be read and set.  `proc`: there is a
    /proc of this PID namespace.  `hidden`: /proc does not show all processes
    (proc(5), `hidepid`).  `pidfds`: pidfd_open(2) works.
    """
    if not sys.platform.startswith("linux"):
        return Machine(tags=False, proc=False, pidfds=False)
    try:
        proc = os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        proc = False
    try:
        own = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(own, 0)
        finally:
            os.close(own)
        pidfds = True
    except (OSError, AttributeError):
        pidfds = False
    try:
        resource.prlimit(os.getpid(), RLIMIT_LOCKS)
        tags = True
    except (OSError, AttributeError):
        tags = False
    return Machine(tags, proc, proc and _hides(), pidfds)


def _hides() -> bool:
    try:
        with (
            open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts,
            open("/proc/self/status", encoding="utf-8", errors="replace") as status,
        ):
            return hides(mounts, status)
    except (OSError, IndexError, ValueError):
        return True


def hides(mounts: Iterable[str], status: Iterable[str]) -> bool:
    """
    Whether /proc is mounted so that processes of others do not show in it,
    from the lines of /proc/self/mountinfo and /proc/self/status.
    """
    options: list[str] = []
    for mount in mounts:
        fields = mount.split()
        if fields[4] == "/proc":
            # What is mounted last is what is seen.
            options = fields[-1].split(",")
    said = dict(each.partition("=")[::2] for each in options)
    if said.get("hidepid", "off") in ("0", "off"):
        return False
    [able] = [line.split()[1] for line in status if line.startswith("CapEff:")]
    if int(able, 16) >> _CAP_SYS_PTRACE & 1:
        return False
    if said["hidepid"] in ("4", "ptraceable"):
        return True
    return said.get("gid", "0") not in map(str, (*os.getgroups(), os.getegid()))


def shortcomings() -> list[str]:
    """What does not hold on this machine, and what follows from it; one sentence each."""
    here = machine()
    if not sys.platform.startswith("linux"):
        return ["this is not Linux: what leaves the process group of its backend is not ended"]
    if not here.tags or not choose_base(bytes(8), hard_limit()):
        why = (
            "processes cannot be tagged (RLIMIT_RSS or RLIMIT_LOCKS of the bridge is limited, or"
            " prlimit(2) is refused): what leaves the process group of its backend is not ended,"
            " and nothing is if the bridge is killed"
        )
        return [why]
    said = []
    if not here.proc:
        said.append(
            "there is no /proc of this PID namespace: processes are looked for by their numbers,"
            " which is slower, and those of other users are not found"
        )
    elif here.hidden:
        said.append(
            "/proc hides processes (hidepid): they are looked for by their numbers too, which is"
            " slower, and those of other users are not found"
        )
    if not here.pidfds:
        said.append(
            "pidfd_open(2) is refused: processes are signalled by number, after their tag and"
            " start time were read twice"
        )
    return said


def hard_limit() -> int:
    """The highest tag that this process may set; -1: any."""
    limits = [resource.getrlimit(each)[1] for each in LIMITS]
    return min((each for each in limits if each >= 0), default=-1)


def choose_base(random: bytes, hard_limit: int) -> int:
    """
    A base for the tags of one bridge, from eight random bytes.

    Not above `hard_limit` (-1: no limit), which only a privileged process may
    raise: it is that of an outer bridge where a backend is itself a bridge.
    Returns 0 where there is no room for tags.
    """
    top = (1 << 62) if hard_limit < 0 else min(hard_limit, 1 << 62)
    slots = top // TAGS - 1
    if slots < 1 << 16:
        return 0
    return (slots // 2 + int.from_bytes(random, "big") % (slots // 2)) * TAGS


def new_base() -> int:
    """Choose the base of a bridge's tags at random; 0 where processes cannot be tagged."""
    return choose_base(os.urandom(8), hard_limit()) if machine().tags else 0


def carry(tag: int) -> None:
    """Tag this process.  Raises `OSError` or `ValueError` where a limit is lower."""
    for each in LIMITS:
        resource.setrlimit(each, (tag, tag))


def newest_process() -> int:
    """The number of the newest process; 0 where /proc does not tell."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as loadavg:
            return int(loadavg.read(200).split()[4])
    except (OSError, IndexError, ValueError):
        return 0


def listed_processes() -> list[int]:
    """The numbers of all processes that /proc shows, newest first.  Raises `OSError`."""
    names = [name for name in os.listdir("/proc") if name[0].isdigit()]
    return [int(name) for name in reversed(names)]


def possible_processes(since: int) -> Iterable[int]:
    """
    Every number that a process may have, newest first; from `since` on, where
    that is not 0: the oldest process of interest has that number.
    """
    most = DEFAULT_PID_MAX
    try:
        with open("/proc/sys/kernel/pid_max", "rb") as limit:
            most = int(limit.read())
    except (OSError, ValueError):
        pass
    newest = (newest_process() or _newest_by_spawning()) if since else 0
    if not newest:
        return range(most, 0, -1)
    if since <= newest:
        return range(newest, since - 1, -1)
    return [*range(newest, 0, -1), *range(most, since - 1, -1)]


def _newest_by_spawning() -> int:
    try:
        newest = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(newest, 0)
    except OSError:
        return 0
    return newest
