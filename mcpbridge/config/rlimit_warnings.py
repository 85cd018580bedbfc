"""
Warnings about resource limits that are too low for the settings.

Knows getrlimit(2); must not know sessions beyond their number.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

#: Descriptors of a session: three pipes, its stream, and a connection for its requests.
DESCRIPTORS_PER_SESSION = 5
#: Descriptors of the bridge itself, and some for short-lived connections.
DESCRIPTORS_BESIDE = 64

Limits = Callable[[int], tuple[int, int]]


def rlimit_warnings(sessions: int, getrlimit: Limits = resource.getrlimit) -> list[str]:
    """Return a line for each limit of this process that so many sessions would exceed."""
    found = []
    descriptors = sessions * DESCRIPTORS_PER_SESSION + DESCRIPTORS_BESIDE
    allowed = getrlimit(resource.RLIMIT_NOFILE)[0]
    if _is_below(allowed, descriptors):
        found.append(
            f"{sessions} sessions (max_sessions) need about {descriptors} file descriptors, but the"
            f" limit is {allowed}; raise it (ulimit -n, LimitNOFILE=) or lower --max-sessions"
        )
    processes = getattr(resource, "RLIMIT_NPROC", None)
    # It does not apply to the superuser (setrlimit(2)).
    if processes is not None and os.geteuid() != 0:
        allowed = getrlimit(processes)[0]
        if _is_below(allowed, sessions):
            found.append(
                f"{sessions} sessions (max_sessions) need as many processes, but the limit of this"
                f" user is {allowed}; raise it (ulimit -u, LimitNPROC=) or lower --max-sessions"
            )
    return found


def _is_below(allowed: int, wanted: int) -> bool:
    return allowed != resource.RLIM_INFINITY and allowed < wanted
