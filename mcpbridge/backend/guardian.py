"""
The guardian: one small process beside the bridge, for the day it is killed.

It waits on its standard input.  When that ends, the bridge has stopped or
was killed with SIGKILL; then every process that still carries a tag of the
bridge is killed.  Run as `python -I -S guardian.py BASE`; it needs nothing
but the standard library and `procfs.py` beside it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time

#: How long the guardian goes on killing before it gives up.
GIVE_UP_SECONDS = 30.0
#: Between two looks.
PAUSE_SECONDS = 0.02
#: How many looks in a row must find nothing: a process may be born behind
#: the place in /proc that a look has passed.
CLEAN_LOOKS = 2
#: `resource` has no name for it.
_RLIMIT_LOCKS = 10


def wait_for_end(descriptor: int) -> None:
    """Return when nothing can be read any more."""
    while os.read(descriptor, 4096):
        pass


def kill_all(base: int) -> int:
    """Kill what carries a tag of this base; return how many processes are left."""
    from killing import kill_pass  # type: ignore[import-not-found]
    from procfs import find_tagged  # type: ignore[import-not-found]

    give_up = time.monotonic() + GIVE_UP_SECONDS
    clean = 0
    me = os.getpid()
    left: list[int] = []
    while clean < CLEAN_LOOKS and time.monotonic() < give_up:
        try:
            kill_pass(base)
            # A zombie holds nothing, and is its parent's to reap.
            left = [each.pid for each in find_tagged(base) if not each.zombie and each.pid != me]
        except OSError:
            # What was not seen is not gone.
            left = [-1]
        clean = 0 if left else clean + 1
        time.sleep(PAUSE_SECONDS)
    return len(left)


def main(base: int) -> int:
    """Wait, then clean up; the exit status is 0 when nothing is left."""
    # A bridge may itself be the backend of another, which would kill all that
    # carries the tag of that session: this process carries one of its own.
    for limit in (resource.RLIMIT_RSS, _RLIMIT_LOCKS):
        resource.setrlimit(limit, (base, base))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        os.setsid()
    except PermissionError:
        pass
    os.chdir("/")
    wait_for_end(0)
    return 1 if kill_all(base) else 0


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main(int(sys.argv[1])))
