"""
Tags of processes, and what this machine allows: tagging, seeing and signalling them.

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
#: The limits that serve as a tag; Linux does not enforce them.
LIMITS = (resource.RLIMIT_RSS, RLIMIT_LOCKS)
#: The highest pid if the system does not tell: the default on 64-bit machines.
DEFAULT_PID_MAX = 1 << 22
_CAP_SYS_PTRACE = 19


@dataclass(frozen=True, slots=True)
class Machine:
    """The abilities of this machine that matter here; see `machine`."""

    tags: bool
    proc: bool = True
    hidden: bool = False
    pidfds: bool = True

    @property
    def lists_all(self) -> bool:
        """True if /proc lists all processes, so that none need be looked for by its pid."""
        return self.proc and not self.hidden


@cache
def machine() -> Machine:
    """
    Find out what this machine allows.

    `tags`: resource limits of processes can be read and set.  `proc`: there is
    a /proc of this PID namespace.  `hidden`: /proc does not show all processes
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
    Return True if /proc is mounted so that it hides other users' processes.

    `mounts` and `status` are the lines of /proc/self/mountinfo and
    /proc/self/status.
    """
    options: list[str] = []
    for mount in mounts:
        fields = mount.split()
        if fields[4] == "/proc":
            # A later mount hides an earlier one.
            options = fields[-1].split(",")
    given = dict(each.partition("=")[::2] for each in options)
    if given.get("hidepid", "off") in ("0", "off"):
        return False
    [capabilities] = [line.split()[1] for line in status if line.startswith("CapEff:")]
    if int(capabilities, 16) >> _CAP_SYS_PTRACE & 1:
        return False
    if given["hidepid"] in ("4", "ptraceable"):
        return True
    return given.get("gid", "0") not in map(str, (*os.getgroups(), os.getegid()))


def shortcomings() -> list[str]:
    """Return what this machine lacks, and what follows from that, as clauses for the log."""
    here = machine()
    if not sys.platform.startswith("linux"):
        return ["this is not Linux: processes that leave their backend's process group stay"]
    if not here.tags or not choose_base(bytes(8), hard_limit()):
        why = (
            "processes cannot be tagged (RLIMIT_RSS or RLIMIT_LOCKS of the bridge is limited, or"
            " prlimit(2) is refused): those that leave the process group of their backend are"
            " not ended, and if the bridge is killed, only the backends themselves are"
        )
        return [why]
    found = []
    if not here.proc:
        found.append(
            "there is no /proc of this PID namespace: processes are looked for pid by pid,"
            " which is slower, and those of other users are not found"
        )
    elif here.hidden:
        found.append(
            "/proc hides processes (hidepid): they are looked for pid by pid, too, which is"
            " slower, and those of other users are not found"
        )
    if not here.pidfds:
        found.append(
            "pidfd_open(2) is refused: processes are signalled by pid, after their tag and"
            " start time were read twice"
        )
    return found


def hard_limit() -> int:
    """Return the highest tag that this process may set; -1 if it may set any."""
    limits = [resource.getrlimit(each)[1] for each in LIMITS]
    return min((each for each in limits if each >= 0), default=-1)


def choose_base(random: bytes, hard_limit: int) -> int:
    """
    Choose a base for the tags of one bridge, from eight random bytes.

    It is not above `hard_limit` (-1: no limit), which only a privileged
    process may raise: where a backend is itself a bridge, the outer bridge's
    tag is that limit.  Returns 0 if there is no room for tags.
    """
    top = (1 << 62) if hard_limit < 0 else min(hard_limit, 1 << 62)
    slots = top // TAGS - 1
    if slots < 1 << 16:
        return 0
    return (slots // 2 + int.from_bytes(random, "big") % (slots // 2)) * TAGS


def new_base() -> int:
    """Choose the base of a bridge's tags at random; 0 where processes cannot be tagged."""
    return choose_base(os.urandom(8), hard_limit()) if machine().tags else 0


def newest_process() -> int:
    """Return the pid of the newest process; 0 if /proc does not tell."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as loadavg:
            return int(loadavg.read(200).split()[4])
    except (OSError, IndexError, ValueError):
        return 0


def listed_processes() -> list[int]:
    """Return the pids of all processes that /proc shows, newest first.  Raises `OSError`."""
    names = [name for name in os.listdir("/proc") if name[0].isdigit()]
    return [int(name) for name in reversed(names)]


def possible_processes(since: int) -> Iterable[int]:
    """
    Iterate over every pid that a process may have, newest first.

    `since` is the pid of the oldest process of interest, 0 if unknown: what
    is older is left out.
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
