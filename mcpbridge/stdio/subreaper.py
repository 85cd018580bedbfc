"""
The bridge as the parent of orphans (prctl(2), PR_SET_CHILD_SUBREAPER, Linux).
"""

from __future__ import annotations

import sys

_PR_SET_CHILD_SUBREAPER = 36


def set_child_subreaper(on: bool) -> bool:
    """
    Adopt the orphans of own descendants, or no longer; False where the
    system cannot.  For the whole process, so an embedded bridge leaves it
    alone unless it is told.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False
