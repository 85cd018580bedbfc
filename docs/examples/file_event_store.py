"""
An event store that keeps what was sent in files, one for each session.

In a configuration file: "event_store": "file_event_store.FileEventStore", with
"options": {"events": "/var/lib/mcpbridge"}, a directory of the bridge's own.
"""

import os
import tempfile
from pathlib import Path
from typing import IO

from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.errors import EventsGone, SettingError
from mcpbridge.interfaces import IEventLog, IEventStore

#: Of one session no more is kept: then its file begins anew.
EVENTS_BYTES = 64 * 1024 * 1024


@implementer(IEventLog)
class FileEventLog:
    """One session's events: their lines in a file, and where each of them lies."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[tuple[str, int], tuple[int, int]] = {}
        self._end = 0

    def append(self, stream: str, number: int, line: bytes) -> None:
        """Keep an event; where it cannot be, nothing older may be either."""
        try:
            if self._end + len(line) > EVENTS_BYTES:
                self._forget()
            written = os.pwrite(self._file.fileno(), line, self._end)
        except OSError:
            written = -1
        if written == len(line):
            self._places[stream, number] = (self._end, written)
            self._end += written
        else:
            self._forget()

    def after(self, stream: str, number: int) -> list[tuple[int, bytes]]:
        """All of a stream behind that event.  Raises `EventsGone`."""
        events = []
        at = number + 1
        while (place := self._places.get((stream, at))) is not None:
            start, size = place
            line = os.pread(self._file.fileno(), size, start)
            if len(line) != size:
                raise EventsGone(f"event {at} of stream {stream} cannot be read")
            events.append((at, line))
            at += 1
        if not events and (stream, number) not in self._places:
            raise EventsGone(f"event {at} of stream {stream} is not kept")
        return events

    def close(self) -> None:
        """Keep nothing: a file without a name is gone with its last descriptor."""
        self._places.clear()
        self._file.close()

    def _forget(self) -> None:
        self._places.clear()
        self._end = 0


@implementer(IEventStore)
class FileEventStore:
    """
    Files in the directory `options.events`.

    They have no name there, so that no id of a session is to be seen, and
    nothing is left behind however the bridge ends.
    """

    def __init__(self, settings: ServerSettings) -> None:
        path = settings.options.get("events")
        if not isinstance(path, str) or not Path(path).is_dir():
            raise SettingError("options.events", "the path of a directory", path)
        self._directory = path

    def open(self, session_id: str) -> FileEventLog:
        """The log of a new session."""
        return FileEventLog(tempfile.TemporaryFile(dir=self._directory, buffering=0))
