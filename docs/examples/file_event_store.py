"""
An event store that keeps each session's events in a file.

In a configuration file: "event_store": "file_event_store.FileEventStore", with
"options": {"events": "/var/lib/mcpbridge"}.  Give the bridge a directory of its
own for this.
"""

import os
import tempfile
from pathlib import Path
from typing import IO

from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.errors import EventsGone, SettingError
from mcpbridge.interfaces import IEventLog, IEventStore

#: The most bytes kept for one session.  Beyond it, the log drops all of its
#: events and starts again at the beginning of the file.
EVENTS_BYTES = 64 * 1024 * 1024


@implementer(IEventLog)
class FileEventLog:
    """The events of one session: their lines in a file, and the position of each line."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        #: Offset and size of each event, by stream and number.
        self._positions: dict[tuple[str, int], tuple[int, int]] = {}
        self._end = 0

    def append(self, stream: str, number: int, line: bytes) -> None:
        """
        Keep an event.

        If it cannot be written, drop all events: a client that resumes must
        get an error rather than a stream with a gap.
        """
        try:
            if self._end + len(line) > EVENTS_BYTES:
                self._forget()
            written = os.pwrite(self._file.fileno(), line, self._end)
        except OSError:
            written = -1
        if written == len(line):
            self._positions[stream, number] = (self._end, written)
            self._end += written
        else:
            self._forget()

    def after(self, stream: str, number: int) -> list[tuple[int, bytes]]:
        """
        Return all events of a stream after the given one.

        Raises `EventsGone` if the next event is not kept.
        """
        events = []
        at = number + 1
        while (position := self._positions.get((stream, at))) is not None:
            start, size = position
            line = os.pread(self._file.fileno(), size, start)
            if len(line) != size:
                raise EventsGone(f"event {at} of stream {stream} cannot be read")
            events.append((at, line))
            at += 1
        if not events and (stream, number) not in self._positions:
            raise EventsGone(f"event {at} of stream {stream} is not kept")
        return events

    def close(self) -> None:
        """Delete the file: it has no name, so it is gone with its last descriptor."""
        self._positions.clear()
        self._file.close()

    def _forget(self) -> None:
        self._positions.clear()
        self._end = 0


@implementer(IEventStore)
class FileEventStore:
    """
    Creates a log for each session, in the directory `options.events`.

    The files have no names, so nobody can see a session id there, and none of
    them is left behind however the bridge ends.
    """

    def __init__(self, settings: ServerSettings) -> None:
        path = settings.options.get("events")
        if not isinstance(path, str) or not Path(path).is_dir():
            raise SettingError("options.events", "the path of a directory", path)
        self._directory = path

    def open(self, session_id: str) -> FileEventLog:
        """Create the log of a new session."""
        return FileEventLog(tempfile.TemporaryFile(dir=self._directory, buffering=0))
