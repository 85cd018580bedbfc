"""
Splits a stream of bytes into lines (MCP specification, basic/transports, "stdio").

Knows newlines and sizes; must not know what a line means or where it comes
from.  Each byte is looked at once, and the pieces of a line are joined when its
end arrives.  So the work is linear in the size of a line, however many pieces it
arrives in.
"""

from __future__ import annotations

from mcpbridge.jsonrpc.oversized import END_BYTES, Oversized
from mcpbridge.jsonrpc.pieces import Pieces

#: `bytes.split` takes 10 µs for a line of 16 KiB.  To `find` its end takes a tenth of that, but
#: costs more for each line, so it is for lines of this size.
LONG_LINE_BYTES = 1024


def split_lines(data: bytes) -> list[bytes]:
    """Split at newlines as `bytes.split` does, but quickly if the first line is a long one."""
    if len(data) < LONG_LINE_BYTES or data.find(b"\n", 0, LONG_LINE_BYTES) >= 0:
        return data.split(b"\n")
    lines: list[bytes] = []
    begin = 0
    while (end := data.find(b"\n", begin)) >= 0:
        lines.append(data[begin:end])
        begin = end + 1
    lines.append(data[begin:])
    return lines


class LineFramer:
    """
    Collects bytes until a newline ends a line.

    A line comes without its newline and without one carriage return before
    it; a blank line does not come at all.  With `cut`, a line of more than
    `limit` bytes loses the rest.  Otherwise it is skipped, and
    `take_oversized` returns its two ends once its end has come.
    """

    __slots__ = ("_cut", "_head", "_limit", "_oversized", "_parts", "_skipped", "_tail")

    def __init__(self, limit: int, *, cut: bool = False) -> None:
        self._limit = limit
        self._cut = cut
        self._parts = Pieces()
        # Of the line that is being skipped: how many bytes have come, and its two ends.
        self._skipped = 0
        self._head = self._tail = b""
        self._oversized: list[Oversized] = []

    @property
    def is_at_start(self) -> bool:
        """Whether the next byte begins a line."""
        return not (self._parts.size or self._skipped)

    @property
    def waiting(self) -> int:
        """How many bytes of an unfinished line are kept."""
        return self._parts.size

    def receive(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the lines that they complete."""
        if b"\n" not in data:
            # A part of a large line.
            self._keep(data)
            return []
        lines: list[bytes] = []
        *ended, tail = split_lines(data)
        for piece in ended:
            if self._skipped or self._parts.size or len(piece) > self._limit:
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
        return self._parts.first(size) if self._parts.size >= size else b""

    def discard(self, size: int) -> None:
        """Drop the first `size` bytes of the unfinished line, as if a newline followed them."""
        rest = self._parts.join()[size:]
        self._parts.clear()
        if rest:
            self._parts.add(rest)

    def finish(self) -> bytes:
        """Return the last line, without a newline, at the end of the stream; it may be empty."""
        last = self._take().removesuffix(b"\r")
        return b"" if last.isspace() else last

    def _keep(self, piece: bytes) -> None:
        if self._skipped:
            self._skip(piece)
            return
        parts = self._parts
        space = self._limit - parts.size
        if len(piece) > space:
            if not self._cut:
                kept = parts.join()
                parts.clear()
                self._head = (kept[:END_BYTES] + piece[:END_BYTES])[:END_BYTES]
                self._skip(kept)
                self._skip(piece)
                return
            piece = piece[:space]
        if piece:
            parts.add(piece)

    def _skip(self, piece: bytes) -> None:
        self._skipped += len(piece)
        self._tail = (self._tail + piece[-END_BYTES:])[-END_BYTES:]

    def _take(self) -> bytes:
        if self._skipped:
            self._oversized.append(Oversized(self._head, self._tail, self._skipped))
            self._skipped = 0
            self._head = self._tail = b""
        line = self._parts.join()
        self._parts.clear()
        return line
