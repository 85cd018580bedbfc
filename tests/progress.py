"""
Says how far long work is: a line for each phase, and on a terminal a line that moves.

In CI, and wherever else nobody looks on, only phases are printed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TextIO

#: Seconds between two changes of the line that moves.
REDRAW_SECONDS = 0.2


class Progress:
    """
    The progress of some work, with the seconds since `make` was started, or else this program.

    It may be used from several threads.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._moves = self._stream.isatty() and not os.environ.get("CI")
        self._lock = threading.Lock()
        self._begun = float(os.environ.get("MAKE_STARTED") or time.time())
        self._drawn = 0.0
        self._width = 0

    def phase(self, text: str) -> None:
        """Print what begins, or has ended."""
        with self._lock:
            self._wipe()
            print(self._line(text), file=self._stream, flush=True)

    def count(self, what: str, done: int, total: int) -> None:
        """Show how much is done, on a terminal."""
        now = time.monotonic()
        with self._lock:
            if self._moves and (now - self._drawn >= REDRAW_SECONDS or done == total):
                self._drawn = now
                line = self._line(f"{what}: {done} of {total}")
                self._stream.write(f"\r{line.ljust(self._width)}")
                self._stream.flush()
                self._width = len(line)

    def done(self) -> None:
        """Remove the line that moves."""
        with self._lock:
            self._wipe()

    def _wipe(self) -> None:
        if self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()
            self._width = 0

    def _line(self, text: str) -> str:
        return f"[{time.time() - self._begun:4.0f} s] {text}"
