"""
What the system allows this process, against what the settings promise.

Knows getrlimit(2); must not know sessions beyond their number.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

#: Descriptors of a session: three pipes, its stream, and a connection that posts.
DESCRIPTORS_PER_SESSION = 5
#: Descriptors of the bridge itself, and some more for what comes and goes.
DESCRIPTORS_BESIDE = 64

Limits = Callable[[int], tuple[int, int]]


def rlimit_warnings(sessions: int, getrlimit: Limits = resource.getrlimit) -> list[str]:
    """
    A line for each limit of this process that so many sessions would reach.
    """
    found = []
    descriptors = sessions * DESCRIPTORS_PER_SESSION + DESCRIPTORS_BESIDE
    allowed = getrlimit(resource.RLIMIT_NOFILE)[0]
    if _is_below(allowed, descriptors):
        found.append(
            f"{sessions} sessions (max_sessions) need about {descriptors} descriptors, and"
            f" {allowed} are allowed: raise the limit (ulimit -n) or lower max_sessions"
        )
    processes = getattr(resource, "RLIMIT_NPROC", None)
    # The superuser is not bound by it (setrlimit(2)).
    if processes is not None and os.geteuid() != 0:
        allowed = getrlimit(processes)[0]
        if _is_below(allowed, sessions):
            found.append(
                f"{sessions} sessions (max_sessions) are as many processes, and this user may"
                f" have {allowed}: raise the limit (ulimit -u) or lower max_sessions"
            )
    return found


def _is_below(allowed: int, wanted: int) -> bool:
    return allowed != resource.RLIM_INFINITY and allowed < wanted
