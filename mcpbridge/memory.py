"""
Give unused memory of this process back to the system, and keep garbage collections
short and rare.

The C library keeps freed memory for the next allocation: after a few large
requests that may be gigabytes.  Uses malloc_trim(3) and mallopt(3) of the GNU C
library; does nothing where there are no such functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.tuning import (
    COLLECTIONS_BEFORE_FULL,
    MAPPED_BYTES,
    TRIM_SECONDS,
    TRIM_SESSIONS,
)
from mcpbridge.timers import Timer

#: Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_collections_short() -> Callable[[], None]:
    """
    Leave everything that exists now out of garbage collections, and make full ones rare.
    Return a function that undoes both.

    Modules, classes and functions are hundreds of thousands of objects that live
    as long as the process.  A full collection would visit each of them, which takes
    70 ms in which no client is served.  It also visits the objects of live sessions,
    50 µs for each.  Those of an ended session are freed without it, as they leave no
    reference cycle.  This concerns the whole process, so it is for the command, and
    not for an application that embeds the bridge.
    """
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], COLLECTIONS_BEFORE_FULL)

    def undo() -> None:
        gc.set_threshold(*before)
        gc.unfreeze()

    return undo


def map_large_blocks() -> None:
    """
    Let the C library map each block of `MAPPED_BYTES` or more on its own, and unmap it
    when it is freed.

    Such a block grows without being copied.  Otherwise glibc raises its threshold,
    up to 32 MiB, to the size of each mapped block that is freed, and takes later
    blocks of that size from the heap.  This concerns the whole process, too.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        # The ratio that glibc keeps by itself, unless one of them was set.
        mallopt(_M_TRIM_THRESHOLD, 2 * MAPPED_BYTES)


def trim_function() -> Callable[[], object] | None:
    """Return a function that gives memory back; None where the C library has none."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda: trim(0)


class Trimmer:
    """
    Gives memory back `TRIM_SECONDS` after a large amount was freed.

    Once for everything that was freed in that time: a trim takes
    milliseconds where the heap is large.
    """

    def __init__(self, clock: IReactorTime, trim: Callable[[], object] | None) -> None:
        self._trim = trim
        self._timer = Timer(clock)
        self._stopped = False
        self._ended = 0

    def session_ended(self) -> None:
        """Count a session whose memory is about to be freed; many are a large amount."""
        self._ended += 1
        if self._ended >= TRIM_SESSIONS:
            self._ended = 0
            self.freed()

    def freed(self) -> None:
        """Schedule a trim: a large amount of memory was freed, or is about to be."""
        if self._trim is not None and not self._timer.is_running and not self._stopped:
            self._timer.start(TRIM_SECONDS, self._trim)

    def stop(self) -> None:
        """Cancel a scheduled trim, and schedule no more."""
        self._stopped = True
        self._timer.stop()
