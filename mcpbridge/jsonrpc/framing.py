"""
Splits a stream of bytes into lines (MCP specification, basic/transports, "stdio").

Knows newlines and sizes; must not know what a line means or where it comes
from.  Each byte is looked at once, and the pieces of a line are joined only
when its end is there.  So the work is linear in the size of a line, however
many pieces it arrives in.
"""

from __future__ import annotations

from mcpbridge.jsonrpc.oversized import END_BYTES, Oversized


class LineFramer:
    """
    Collects bytes until a newline ends a line.

    A line comes without its newline and without one carriage return before
    it; a blank line does not come at all.  With `cut`, a line of more than
    `limit` bytes loses the rest.  Otherwise it is skipped, and
    `take_oversized` returns its two ends once its end has come.
    """

    __slots__ = ("_cut", "_head", "_limit", "_oversized", "_parts", "_size", "_skipped", "_tail")

    def __init__(self, limit: int, *, cut: bool = False) -> None:
        self._limit = limit
        self._cut = cut
        self._parts: list[bytes] = []
        self._size = 0
        # Of the line that is being skipped: how many bytes have come, and its two ends.
        self._skipped = 0
        self._head = self._tail = b""
        self._oversized: list[Oversized] = []

    @property
    def is_at_start(self) -> bool:
        """Whether the next byte begins a line."""
        return not (self._size or self._skipped)

    @property
    def waiting(self) -> int:
        """How many bytes of an unfinished line are kept."""
        return self._size

    def receive(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the lines that they complete."""
        if b"\n" not in data:
            # Of a large line, which this finds out ten times as fast as `split`.
            self._keep(data)
            return []
        lines: list[bytes] = []
        *ended, tail = data.split(b"\n")
        for piece in ended:
            if self._skipped or self._parts or len(piece) > self._limit:
                self._keep(piece)
                piece = self._take()
            if piece.endswith(b"\r"):
                piece = piece[:-1]
            if piece and not piece.isspace():
                lines.append(piece)
        if tail:
            self._keep(tail)
        return lines

    @property
    def skipped(self) -> int:
        """How many bytes have come of a line that is being skipped; 0 where none is."""
        return self._skipped

    @property
    def has_oversized(self) -> bool:
        """Whether `take_oversized` has a line to return."""
        return bool(self._oversized)

    def take_oversized(self) -> list[Oversized]:
        """Return the skipped lines whose ends have come, each once."""
        taken, self._oversized = self._oversized, []
        return taken

    def begun(self, size: int) -> bytes:
        """Return the first `size` bytes of the unfinished line; nothing if it has fewer."""
        if self._size < size:
            return b""
        found: list[bytes] = []
        for part in self._parts:
            found.append(part[:size])
            size -= len(found[-1])
            if not size:
                break
        return b"".join(found)

    def discard(self, size: int) -> None:
        """Drop the first `size` bytes of the unfinished line, as if a newline followed them."""
        rest = b"".join(self._parts)[size:]
        self._parts = [rest] if rest else []
        self._size = len(rest)

    def finish(self) -> bytes:
        """Return the last line, without a newline, at the end of the stream; it may be empty."""
        last = self._take().removesuffix(b"\r")
        return b"" if last.isspace() else last

    def _keep(self, piece: bytes) -> None:
        if self._skipped:
            self._skip(piece)
            return
        space = self._limit - self._size
        if len(piece) > space:
            if not self._cut:
                kept = b"".join(self._parts)
                self._parts.clear()
                self._size = 0
                self._head = (kept[:END_BYTES] + piece[:END_BYTES])[:END_BYTES]
                self._skip(kept)
                self._skip(piece)
                return
            piece = piece[:space]
        if piece:
            self._parts.append(piece)
            self._size += len(piece)

    def _skip(self, piece: bytes) -> None:
        self._skipped += len(piece)
        self._tail = (self._tail + piece[-END_BYTES:])[-END_BYTES:]

    def _take(self) -> bytes:
        if self._skipped:
            self._oversized.append(Oversized(self._head, self._tail, self._skipped))
            self._skipped = 0
            self._head = self._tail = b""
        line = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return line
