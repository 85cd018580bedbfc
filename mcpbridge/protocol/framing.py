"""
Lines out of a stream of bytes (MCP specification, basic/transports, "stdio").

Knows newlines and sizes; must not know what a line means or where it came
from.  Each byte is looked at once, and the pieces of a line are joined only
when its end is there: linear in the size of a line, however many pieces it
arrives in.
"""

from __future__ import annotations


class LineTooLong(Exception):
    """
    A line grew beyond the limit before its end came.

    `lines` are the whole lines that came before it in the same bytes.
    """

    def __init__(self, limit: int, lines: list[bytes]) -> None:
        super().__init__(f"a line is longer than {limit} bytes")
        self.limit = limit
        self.lines = lines


class LineFramer:
    """
    Collects bytes until a newline ends a line.

    A line is given without its newline and without one carriage return
    before it; a blank line is not given at all.  Of a line beyond `limit`
    bytes the rest is skipped with `cut`; otherwise `LineTooLong` is raised
    and the framer is of no further use.
    """

    __slots__ = ("_cut", "_limit", "_parts", "_size")

    def __init__(self, limit: int, *, cut: bool = False) -> None:
        self._limit = limit
        self._cut = cut
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def waiting(self) -> int:
        """How many bytes of an unfinished line are kept."""
        return self._size

    def receive(self, data: bytes) -> list[bytes]:
        """
        Take the next bytes, return the lines that they complete.

        Raises `LineTooLong`.
        """
        lines: list[bytes] = []
        *ended, tail = data.split(b"\n")
        for piece in ended:
            if self._parts or len(piece) > self._limit:
                self._keep(piece, lines)
                piece = self._take()
            if piece.endswith(b"\r"):
                piece = piece[:-1]
            if piece and not piece.isspace():
                lines.append(piece)
        if tail:
            self._keep(tail, lines)
        return lines

    def finish(self) -> bytes:
        """At the end of the stream: the last line that no newline ended, or nothing."""
        last = self._take().removesuffix(b"\r")
        return b"" if last.isspace() else last

    def _keep(self, piece: bytes, before: list[bytes]) -> None:
        room = self._limit - self._size
        if len(piece) > room:
            if not self._cut:
                self._parts.clear()
                self._size = 0
                raise LineTooLong(self._limit, before)
            piece = piece[:room]
        if piece:
            self._parts.append(piece)
            self._size += len(piece)

    def _take(self) -> bytes:
        line = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return line
