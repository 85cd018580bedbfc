"""
The access log: one line for each finished request, formatted and written in batches.

Knows what a log may show of a request; must not know connections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from time import time
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from msgspec import UNSET
from twisted.internet.interfaces import IReactorTime
from twisted.logger import FileLogObserver, ILogObserver, LogEvent, Logger, LogLevel, LogPublisher

from mcpbridge.config.tuning import ACCESS_LOG_CHARACTERS, ACCESS_LOG_LINES, ACCESS_LOG_SECONDS
from mcpbridge.guard import guarded
from mcpbridge.logs.json_lines import AccessLine, access_lines, component_of, json_line, rfc3339
from mcpbridge.logs.levels import LevelFilter
from mcpbridge.timers import Timer
from mcpbridge.twisted_internals import formats_as_text_file, observers_of, write_to_file

#: How many bytes of a target a log shows, after what may be an id is cut.
_SHOWN_BYTES = 2000
#: How often a target is decoded to find an id that is escaped more than once.
_DECODINGS = 3
#: More hexadecimal digits in a row than the eight that a log may show, with hyphens
#: or without: an id, or a piece of one, whatever stands before or behind it.
_SESSION_ID = re.compile(rb"(?i)([0-9a-f](?:-?[0-9a-f]){7})(?:-?[0-9a-f])+")
#: A parameter of a query that may hold a secret, by its name.
_SECRET = re.compile(
    rb"(?i)([a-z0-9_.-]*(?:token|secret|passw|api[_-]?key|authorization)[a-z0-9_.-]*=)[^&;#\s]*"
)
#: An id as the bridge makes them, for a header that is to be one.
_WHOLE_ID = re.compile(rb"([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: How many targets are remembered as the log shows them, and how long each may be.
_REMEMBERED = 4096
_REMEMBERED_BYTES = 256

#: The text of a line, without a session and with one.
_FORMAT = "{peer} {method} {uri} {code} {size}"
_FORMAT_WITH_SESSION = f"{_FORMAT} {{session}}"
#: The formatter of the console script, as its module and name.
_CONSOLE_FORMATTER = ("mcpbridge.script", "console_line")


def redacted(text: bytes) -> str:
    """
    Return a request's target, or other bytes of a client, as a log may show it.

    What may be a session id or a piece of one is cut to eight characters, and the
    value of a parameter that may be a secret is left out, however it was escaped; and
    there are no control characters.
    """
    shown = decoded = unquote_to_bytes(text)
    for _ in range(_DECODINGS):
        before, decoded = decoded, unquote_to_bytes(decoded)
        if decoded == before:
            break
        if _SESSION_ID.search(decoded) or _SECRET.search(decoded):
            shown = decoded
    else:
        # Escaped too often: what it means in the end is not for the log.
        shown = shown.partition(b"%")[0]
    # Cut last: a cut before it could leave of an id what no longer looks like one.
    shown = _SESSION_ID.sub(rb"\1...", _SECRET.sub(rb"\1...", shown))
    return repr(shown[:_SHOWN_BYTES])[2:-1]


_remembered = lru_cache(_REMEMBERED)(redacted)


def _shown(text: bytes) -> str:
    return _remembered(text) if len(text) <= _REMEMBERED_BYTES else redacted(text)


class LoggedRequest(NamedTuple):
    """
    What a line shows of a request: text that is safe and redacted.  `session` is a short
    id, or empty.
    """

    peer: str
    method: str
    uri: str
    session: str

    @classmethod
    def of(cls, peer: str, method: bytes, target: bytes, session: bytes | None) -> LoggedRequest:
        """
        Return what a line shows of a request.

        `peer` is the address, `target` the request's target as it was sent, and
        `session` the value of its `Mcp-Session-Id`, if it has one.
        """
        found = None if session is None else _WHOLE_ID.fullmatch(session)
        shown = "" if found is None else found[1].decode("ascii")
        return cls(peer, _shown(method)[:20], _shown(target), shown)


#: The time of a request since the epoch, the request, the status and the size of its response.
_Line = tuple[float, LoggedRequest, int, int]
#: What stands before and behind the text of an event.
_Frame = tuple[str, str]


class AccessLog:
    """
    Writes a line for each finished request to the observers of a logger.

    Twisted takes 15 to 35 microseconds for each event that it writes to a file, as
    much as the bridge takes for the request.  So lines are collected for at most
    `ACCESS_LOG_SECONDS`, `ACCESS_LOG_LINES` lines and `ACCESS_LOG_CHARACTERS` characters, and
    a log file or terminal, of text or JSON, gets them in one write.  Each has the time of its
    request and the form of any other line of that file.  An observer of another kind
    gets an event for each request, with its time, when the batch is written.  One that
    wants no such events (`log_level`) gets nothing, and is not asked for each.

    Lines are in the order in which the requests finished.  A line that something
    else logs meanwhile may come before them, by no more than
    `ACCESS_LOG_SECONDS`.

    `seconds` returns the time since the epoch.
    """

    def __init__(
        self, clock: IReactorTime, log: Logger, seconds: Callable[[], float] = time
    ) -> None:
        self._log = log
        self._seconds = seconds
        self._lines: list[_Line] = []
        #: Characters of clients in `_lines`.
        self._held = 0
        self._most_lines = ACCESS_LOG_LINES
        self._timer = Timer(clock)
        #: What each file has before and behind a text in this second.
        self._frames: dict[FileLogObserver, _Frame | None] = {}
        self._second = 0

    def add(self, request: LoggedRequest, code: int, size: int) -> None:
        """Add a request that is finished; `size` is the length of its response's content."""
        lines = self._lines
        lines.append((self._seconds(), request, code, size))
        self._held += len(request.method) + len(request.uri)
        if len(lines) >= self._most_lines or self._held >= ACCESS_LOG_CHARACTERS:
            self.flush()
        elif len(lines) == 1 and not self._timer.is_running:
            self._timer.start(ACCESS_LOG_SECONDS, self.flush)

    def flush(self) -> None:
        """Write the lines that wait."""
        lines, self._lines, self._held = self._lines, [], 0
        if lines:
            self._write(lines)

    def stop(self) -> None:
        """Write the lines that wait, and from now on each line at once."""
        self._timer.stop()
        self._most_lines = 1
        self.flush()

    def _write(self, lines: Sequence[_Line]) -> None:
        others = []
        for observer in observers_of(self._log.observer):
            if isinstance(observer, LevelFilter):
                if not observer.levels.logs(self._log.namespace, LogLevel.info):
                    continue
                observer = observer.observer
            if _is_text_file(observer):
                guarded(self._log, "writing the access log", self._write_file, observer, lines)
            elif _is_json_file(observer):
                guarded(self._log, "writing the access log", self._write_json, observer, lines)
            else:
                others.append(observer)
        if others:
            # Goes on with the next observer if one fails, as Twisted does.
            publish = LogPublisher(*others)
            for line in lines:
                publish(self._event(line))

    def _write_file(self, observer: FileLogObserver, lines: Sequence[_Line]) -> None:
        texts = []
        for second, group in groupby(lines, _second_of):
            frame = self._frame(observer, second)
            if frame is None:
                texts += [observer.formatEvent(self._event(line)) or "" for line in group]
            else:
                before, after = frame
                texts += [f"{before}{_text(line)}{after}" for line in group]
        write_to_file(observer, "".join(texts))

    def _write_json(self, observer: FileLogObserver, lines: Sequence[_Line]) -> None:
        component = component_of(self._log.namespace)
        texts = access_lines(
            AccessLine(
                rfc3339(when),
                LogLevel.info.name,
                component,
                _text((when, request, code, size)),
                request.peer,
                request.method or UNSET,
                request.uri or UNSET,
                code,
                size,
                request.session or UNSET,
            )
            for when, request, code, size in lines
        )
        write_to_file(observer, texts)

    def _frame(self, observer: FileLogObserver, second: int) -> _Frame | None:
        """
        Return what a file has before and behind the text of an event in this second;
        None if that changes within the second.
        """
        if second != self._second:
            self._second, self._frames = second, {}
        if observer not in self._frames:
            first, last = (self._frame_at(observer, second + part) for part in (0.0, 0.75))
            self._frames[observer] = first if first == last else None
        return self._frames[observer]

    def _frame_at(self, observer: FileLogObserver, when: float) -> _Frame | None:
        event = self._event((when, LoggedRequest("-", "GET", "/", ""), 200, 0))
        before, text, after = (observer.formatEvent(event) or "").partition("- GET / 200 0")
        return (before, after) if text else None

    def _event(self, line: _Line) -> LogEvent:
        """Make the event that `Logger.info` makes, but with the time of the request."""
        when, (peer, method, uri, session), code, size = line
        event = {
            "log_logger": self._log,
            "log_level": LogLevel.info,
            "log_namespace": self._log.namespace,
            "log_source": self._log.source,
            "log_format": _FORMAT_WITH_SESSION if session else _FORMAT,
            "log_time": when,
            "peer": peer,
            "method": method,
            "uri": uri,
            "code": code,
            "size": size,
        }
        if session:
            event["session"] = session
        return event


def _text(line: _Line) -> str:
    _, (peer, method, uri, session), code, size = line
    text = f"{peer} {method} {uri} {code} {size}"
    return f"{text} {session}" if session else text


def _is_text_file(observer: ILogObserver) -> bool:
    """
    Tell whether an observer writes each event to a file as one line: a prefix with the
    time, and the text.  Other formatters may look at the text, or leave events out.
    """
    if type(observer) is not FileLogObserver:
        return False
    formatter = observer.formatEvent
    name = getattr(formatter, "__module__", ""), getattr(formatter, "__qualname__", "")
    return name == _CONSOLE_FORMATTER or formats_as_text_file(formatter)


def _is_json_file(observer: ILogObserver) -> bool:
    """Tell whether an observer writes each event to a file as `json_line` formats it."""
    return type(observer) is FileLogObserver and observer.formatEvent is json_line


def _second_of(line: _Line) -> int:
    return int(line[0])
