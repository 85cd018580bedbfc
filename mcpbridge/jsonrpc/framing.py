"""
Lines out of a stream of bytes (MCP specification, basic/transports, "stdio").

Knows newlines and sizes; must not know what a line means or where it came
from.  Each byte is looked at once, and the pieces of a line are joined only
when its end is there: linear in the size of a line, however many pieces it
arrives in.
"""

from __future__ import annotations

from mcpbridge.jsonrpc.oversized import END_BYTES, Oversized


class LineFramer:
    """
    Collects bytes until a newline ends a line.

    A line is given without its newline and without one carriage return
    before it; a blank line is not given at all.  Of a line beyond `limit`
    bytes the rest is skipped with `cut`; otherwise all of it but its two
    ends, which `take_oversized` gives when its end has come.
    """

    __slots__ = ("_cut", "_head", "_limit", "_oversized", "_parts", "_size", "_skipped", "_tail")

    def __init__(self, limit: int, *, cut: bool = False) -> None:
        self._limit = limit
        self._cut = cut
        self._parts: list[bytes] = []
        self._size = 0
        # Of a line that is skipped: how much of it has come, and its ends.
        self._skipped = 0
        self._head = self._tail = b""
        self._oversized: list[Oversized] = []

    @property
    def waiting(self) -> int:
        """How many bytes of an unfinished line are kept."""
        return self._size

    def receive(self, data: bytes) -> list[bytes]:
        """Take the next bytes, return the lines that they complete."""
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
        """How many bytes have come of a line that is skipped; 0 where none is."""
        return self._skipped

    @property
    def has_oversized(self) -> bool:
        """Whether `take_oversized` has any to give."""
        return bool(self._oversized)

    def take_oversized(self) -> list[Oversized]:
        """The lines beyond the limit whose ends have come, each once."""
        taken, self._oversized = self._oversized, []
        return taken

    def begun(self, size: int) -> bytes:
        """The first bytes of the unfinished line; nothing where there are not so many."""
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
        """Go on behind the first bytes of the unfinished line, as if a newline stood there."""
        rest = b"".join(self._parts)[size:]
        self._parts = [rest] if rest else []
        self._size = len(rest)

    def finish(self) -> bytes:
        """At the end of the stream: the last line that no newline ended, or nothing."""
        last = self._take().removesuffix(b"\r")
        return b"" if last.isspace() else last

    def _keep(self, piece: bytes) -> None:
        if self._skipped:
            self._skip(piece)
            return
        room = self._limit - self._size
        if len(piece) > room:
            if not self._cut:
                kept = b"".join(self._parts)
                self._parts.clear()
                self._size = 0
                self._head = (kept[:END_BYTES] + piece[:END_BYTES])[:END_BYTES]
                self._skip(kept)
                self._skip(piece)
                return
            piece = piece[:room]
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
