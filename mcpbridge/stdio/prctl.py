"""
The calls of prctl(2) that the bridge and its programs need (Linux).

Uses the standard library alone: `exec_shim` imports it without the package.
"""

from __future__ import annotations

import sys

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


def set_parent_death_signal(number: int) -> bool:
    """Have this process signalled when its parent dies; return False if that is impossible."""
    return _prctl(_PR_SET_PDEATHSIG, number)


def set_child_subreaper(on: bool) -> bool:
    """
    Make this process the parent of its orphaned descendants, or stop doing so.

    Returns False if that is impossible.  It concerns the whole process, so an
    embedded bridge does it only if it is configured to.
    """
    return _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def clear_ambient_capabilities() -> bool:
    """Have no capability survive the next execution; False if there are none, on old kernels."""
    return _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def _prctl(option: int, argument: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False
