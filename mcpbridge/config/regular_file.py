"""
Reads files that settings name, within a bound.

A settings file is read again while the bridge serves clients, so nothing may wait here:
not for the writer of a FIFO, and for no device.
"""

from __future__ import annotations

import os
import stat


def read_regular_file(path: str, most: int) -> tuple[bytes, int]:
    """
    Return the contents of a file, one byte more than `most` at most, and its mode.

    Raises `OSError` for one that cannot be read or is no regular file, and `ValueError` for
    a path with a NUL character.
    """
    # The open of a FIFO that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise OSError(0, f"it is {what}")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(most + 1), mode
    finally:
        os.close(descriptor)
