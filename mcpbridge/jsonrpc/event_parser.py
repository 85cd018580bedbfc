"""
Reads a stream of server-sent events (WHATWG HTML, section 9.2.6, "Interpreting an event stream").

Knows lines, fields and sizes; must not know what an event means or where it comes
from.  Each byte is looked at once, and the pieces of a line are joined when its end
arrives, so the work is linear in the size of an event.
"""

from __future__ import annotations

from typing import NamedTuple

from mcpbridge.jsonrpc.oversized import END_BYTES, Oversized
from mcpbridge.jsonrpc.pieces import Pieces

#: The longest id and name that are kept, and the most digits of `retry`; others are ignored.
FIELD_BYTES = 4096
RETRY_DIGITS = 9

_BOM = b"\xef\xbb\xbf"
_DATA = b"data"


class Event(NamedTuple):
    """
    An event: its name, its data with the lines joined by newlines, and the last id so far.

    The data is None for an event of more bytes than the limit, of which `oversized` has
    the ends.  The id is empty if there has been none.
    """

    name: bytes
    data: bytes | None
    last_id: bytes
    oversized: Oversized | None = None


class EventParser:
    """
    Splits bytes into events, of which the data may have up to `limit` bytes.

    Events without data are returned, too: they change the last id.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: The unfinished line.
        self._line = Pieces()
        #: Whether the next newline belongs to a carriage return before it.
        self._after_return = False
        self._at_start = True
        #: Of the event so far: its lines of data, and how many bytes these are.
        self._data: list[bytes] = []
        self._size = 0
        self._has_fields = False
        self._name = b""
        # Of data that is too large: its ends, and its size.
        self._head = self._tail = b""
        self._skipped = 0
        #: Whether the unfinished line is skipped; and of one that is no data, its size so far.
        self._skipping = False
        self._ignored = 0
        self._id = b""
        self.last_id = b""
        #: The last `retry`, in milliseconds; None if there has been none.
        self.retry: int | None = None

    @property
    def waiting(self) -> int:
        """How many bytes of an unfinished event are kept."""
        return self._line.size + self._size

    @property
    def skipped(self) -> int:
        """How many bytes have come of an event or a line that is too large, and not over."""
        return self._skipped + self._ignored

    def receive(self, data: bytes) -> list[Event]:
        """Take the next bytes; return the events that they complete."""
        if self._after_return and data:
            self._after_return = False
            if data.startswith(b"\n"):
                data = data[1:]
        if b"\r" in data:
            self._after_return = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            self._keep(data)
            return []
        events: list[Event] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            if self._line.size or self._skipping:
                self._keep(piece)
                piece = self._take()
            event = self._line_ended(piece)
            if event is not None:
                events.append(event)
        self._keep(rest)
        return events

    def _keep(self, piece: bytes) -> None:
        if self._ignored:
            self._ignored += len(piece)
        elif self._skipping:
            self._skip(piece)
        elif self._line.size + len(piece) > self._limit + FIELD_BYTES:
            line = self._take() + piece[:END_BYTES]
            self._skipping = True
            if line.startswith(b"data:"):
                self._begin_skipping(line[5:].removeprefix(b" "))
                self._skip(piece[END_BYTES:])
            else:
                self._ignored = len(line) + len(piece[END_BYTES:])
        elif piece:
            self._line.add(piece)

    def _take(self) -> bytes:
        """Return the line that has ended, or nothing if it was skipped."""
        line = self._line.join()
        self._line.clear()
        return line

    def _line_ended(self, line: bytes) -> Event | None:
        if self._skipping:
            self._has_fields = self._has_fields or not self._ignored
            self._skipping, self._ignored = False, 0
            return None
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch() if self._has_fields else None
        name, _, value = line.partition(b":")
        if name:
            self._has_fields = True
            self._field(name, value.removeprefix(b" "))
        return None

    def _field(self, name: bytes, value: bytes) -> None:
        if name == _DATA:
            self._add(value)
        elif len(value) > FIELD_BYTES:
            pass
        elif name == b"event":
            self._name = value
        elif name == b"id":
            if b"\0" not in value:
                self._id = value
        elif name == b"retry" and value.isdigit() and len(value) <= RETRY_DIGITS:
            self.retry = int(value)

    def _add(self, value: bytes) -> None:
        if self._skipped:
            self._skip(value)
        elif self._size + len(value) > self._limit:
            self._begin_skipping(value)
        else:
            self._data.append(value)
            # The newline that joins it to the next line counts as well.
            self._size += len(value) + 1

    def _begin_skipping(self, value: bytes) -> None:
        kept = b"\n".join([*self._data, value])
        self._data.clear()
        self._size = 0
        self._head = kept[:END_BYTES]
        self._skip(kept)

    def _skip(self, piece: bytes) -> None:
        self._skipped += len(piece)
        self._tail = (self._tail + piece[-END_BYTES:])[-END_BYTES:]

    def _dispatch(self) -> Event:
        self.last_id = self._id
        name = self._name or b"message"
        if self._skipped:
            oversized = Oversized(self._head, self._tail, self._skipped)
            event = Event(name, None, self.last_id, oversized)
        else:
            event = Event(name, b"\n".join(self._data), self.last_id)
        self._data.clear()
        self._size = self._skipped = 0
        self._head = self._tail = self._name = b""
        self._has_fields = False
        return event
