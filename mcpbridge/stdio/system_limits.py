"""
What the system allows this process: descriptors and processes, against the sessions
that the settings allow.

Knows getrlimit(2), /proc and cgroups; must not know sessions beyond their number.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mcpbridge.config.settings import BridgeSettings

#: Descriptors of a session: three pipes, a pidfd, its stream, and a connection for its
#: requests.
DESCRIPTORS_PER_SESSION = 6
#: Descriptors of the bridge itself, and some for short-lived connections.
DESCRIPTORS_BESIDE = 64

GetLimit = Callable[[int], tuple[int, int]]
SetLimit = Callable[[int, tuple[int, int]], None]


class ProcessLimit(NamedTuple):
    """A limit on processes: how many more there may be, and how it is raised."""

    what: str
    left: int
    remedy: str


def sessions_of(settings: BridgeSettings) -> int:
    """Return how many sessions the settings allow at most."""
    return min(settings.session_limit, sum(each.max_sessions for each in settings.servers))


def raise_descriptor_limit(
    settings: BridgeSettings,
    getrlimit: GetLimit = resource.getrlimit,
    setrlimit: SetLimit = resource.setrlimit,
) -> tuple[int, int] | None:
    """
    Raise the soft limit on descriptors if it is too low for the sessions, as far as the
    hard limit allows and all connections need.

    Returns the limit before and after; None if it was not raised.
    """
    sessions = sessions_of(settings)
    soft, hard = getrlimit(resource.RLIMIT_NOFILE)
    if not _is_below(soft, _descriptors(sessions)):
        return None
    # A session that has two connections needs six descriptors; one that has more, more.
    wanted = _descriptors(sessions) + settings.connection_limit
    raised = min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted
    if raised <= soft:
        return None
    try:
        setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):
        return None
    return soft, raised


def limit_warnings(
    settings: BridgeSettings,
    getrlimit: GetLimit = resource.getrlimit,
    root: str = "/",
) -> Iterator[str]:
    """
    Yield a line for each limit of the system that the sessions would exceed.

    `root` is the directory that has `proc` and `sys`.
    """
    sessions = sessions_of(settings)
    allowed = getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = _descriptors(sessions)
    if _is_below(allowed, needed):
        enough = max(0, allowed - DESCRIPTORS_BESIDE) // DESCRIPTORS_PER_SESSION
        yield (
            f"{sessions} sessions (max_sessions) need about {needed} file descriptors, but this"
            f" process may have {allowed}, which is enough for about {enough}; raise the limit"
            " (ulimit -n, LimitNOFILE=) or lower --max-sessions"
        )
    limits = [each for each in _process_limits(getrlimit, Path(root)) if each.left < sessions]
    if limits:
        what, left, remedy = min(limits, key=lambda each: each.left)
        yield (
            f"{sessions} sessions (max_sessions) need at least as many processes, but {what} allows"
            f" only {max(0, left)} more; raise it ({remedy}) or lower --max-sessions"
        )


def _descriptors(sessions: int) -> int:
    return sessions * DESCRIPTORS_PER_SESSION + DESCRIPTORS_BESIDE


def _is_below(allowed: int, wanted: int) -> bool:
    return allowed != resource.RLIM_INFINITY and allowed < wanted


def _process_limits(getrlimit: GetLimit, root: Path) -> Iterator[ProcessLimit]:
    """Yield the limits on processes that are known here; all of them count threads, too."""
    per_user = getattr(resource, "RLIMIT_NPROC", None)
    # It does not apply to the superuser (setrlimit(2)).
    if per_user is not None and os.geteuid() != 0:
        allowed = getrlimit(per_user)[0]
        if allowed != resource.RLIM_INFINITY:
            # How many the user has already is not looked for.
            yield ProcessLimit("the limit of this user", allowed, "ulimit -u, LimitNPROC=")
    for folder in _cgroups(root):
        most = _number(folder / "pids.max")
        if most is not None:
            left = most - (_number(folder / "pids.current") or 0)
            yield ProcessLimit("the cgroup", left, "pids.max, TasksMax=, --pids-limit")
    running = _running(root / "proc/loadavg")
    for name in ("pid_max", "threads-max"):
        most = _number(root / "proc/sys/kernel" / name)
        if most is not None:
            yield ProcessLimit(f"kernel.{name}", most - running, f"sysctl kernel.{name}")


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield the directory of each cgroup that this process is in, for its number of processes."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        # HIERARCHY:CONTROLLERS:PATH (cgroups(7)); version 2 names no controllers.
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "pids" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("pids" if controllers else "")
        own = top / path.lstrip("/")
        yield from (own, *(each for each in own.parents if top in (each, *each.parents)))


def _number(path: Path) -> int | None:
    """Return the number in a file; None without such a file, or for `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _running(path: Path) -> int:
    """Return how many threads the system has, from /proc/loadavg; 0 if that is not known."""
    try:
        return int(path.read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0
