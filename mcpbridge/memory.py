"""
Memory that is free in this process, given back to the system.

The C library keeps what was freed for the next one who asks: after a few large
requests that may be gigabytes.  Knows malloc_trim(3) of the GNU C library;
elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mcpbridge.config.tuning import TRIM_SECONDS


def trim_function() -> Callable[[], object] | None:
    """What gives memory back; None where the C library has no such function."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda: trim(0)


class Trimmer:
    """Gives memory back some time after much was freed: `TRIM_SECONDS`, at most so often."""

    def __init__(self, clock: IReactorTime, trim: Callable[[], object] | None) -> None:
        self._clock = clock
        self._trim = trim
        self._call: IDelayedCall | None = None
        self._stopped = False

    def freed(self) -> None:
        """Much was freed, or is about to be."""
        if self._trim is not None and self._call is None and not self._stopped:
            self._call = self._clock.callLater(TRIM_SECONDS, self._do)

    def stop(self) -> None:
        """Not any more: what is left goes with the process."""
        self._stopped = True
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _do(self) -> None:
        self._call = None
        if self._trim is not None:
            self._trim()
