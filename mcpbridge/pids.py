"""
Whether a process runs.

Knows pids; must not know whose they are.
"""

from __future__ import annotations

import os


def another_runs(pid: int) -> bool:
    """Tell whether a process other than this one has a pid."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # It is another user's.
        pass
    return True
