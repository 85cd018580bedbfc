"""
Collects bytes that arrive in pieces.

Knows sizes; must not know what the bytes mean.
"""

from __future__ import annotations

from io import SEEK_END, BytesIO

#: At most so many bytes are joined in one step, which takes up to 2 ms.
JOINED_BYTES = 4 * 1024 * 1024


class Pieces:
    """
    Collects bytes; `join` returns them.

    To join 16 MiB takes 10 ms in which nobody is served, as each page of new memory
    is touched for the first time.  So more than `JOINED_BYTES` are copied as they
    arrive, into a buffer that grows without being copied itself
    (`mcpbridge.memory.map_large_blocks`).
    """

    __slots__ = ("_buffer", "_pieces", "size")

    def __init__(self) -> None:
        #: How many bytes have been added.
        self.size = 0
        self._pieces: list[bytes] = []
        self._buffer: BytesIO | None = None

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        self.size += len(piece)
        if self._buffer is not None:
            self._buffer.write(piece)
            return
        self._pieces.append(piece)
        if self.size > JOINED_BYTES:
            self._buffer = BytesIO(b"".join(self._pieces))
            self._buffer.seek(0, SEEK_END)
            self._pieces.clear()

    def join(self) -> bytes:
        """Return all bytes."""
        return b"".join(self._pieces) if self._buffer is None else self._buffer.getvalue()

    def first(self, size: int) -> bytes:
        """Return the first bytes, or all of them if there are fewer."""
        if self._buffer is not None:
            return bytes(self._buffer.getbuffer()[:size])
        found: list[bytes] = []
        for piece in self._pieces:
            found.append(piece[:size])
            size -= len(found[-1])
            if not size:
                break
        return b"".join(found)

    def clear(self) -> None:
        """Drop all bytes."""
        self.size = 0
        self._pieces.clear()
        self._buffer = None
