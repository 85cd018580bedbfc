"""
Log events as JSON, an object on each line, for programs that collect logs.

Twisted's `eventAsJSON` is made to restore events: it writes the logger, the source and
everything else that an event has, flattened, and without the text that people read.  So
only `formatEvent` is Twisted's here; the fields are chosen, and an encoder in C writes them.

Knows events; must not know files, nor what a log line is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from twisted.logger import LogEvent, LogLevel, formatEvent

from mcpbridge.config.tuning import (
    LOG_FIELD_CHARS,
    LOG_FIELDS,
    LOG_LINE_BYTES,
    LOG_MESSAGE_CHARS,
    LOG_SHORT_CHARS,
    LOG_TRACEBACK_CHARS,
)

#: What each line begins with; an event's own fields of these names are left out.
FIRST_FIELDS = ("time", "level", "component", "message")
#: What a line keeps that is too long with all of its fields.
AGREED_FIELDS = ("server", "session", "identity", "reason")

#: Members of the events of Twisted's former log, which say nothing more.
_LEGACY = frozenset(
    {"time", "system", "isError", "message", "format", "failure", "why", "printed", "logLevel"}
)
_OMITTED = _LEGACY.union(FIRST_FIELDS, ("traceback",))
#: What JSON allows in a string, but a terminal or a reader of lines takes for something else.
_UNSAFE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
#: A half of a surrogate pair, which UTF-8 cannot encode.
_SURROGATE = re.compile("[\ud800-\udfff]")

_encoder = msgspec.json.Encoder()


def json_line(event: LogEvent) -> str | None:
    """Format an event as a line; return None for one without a text or failure."""
    fields = _fields(event)
    if fields is None:
        return None
    line = _encoded(fields)
    if len(line) > LOG_LINE_BYTES:
        line = _encoded(_shortened(fields))
    return printable_json(line.decode("utf-8")) + "\n"


def printable_json(text: str) -> str:
    """Escape, in JSON, what is no character for people."""
    return text if text.isascii() and "\x7f" not in text else _UNSAFE.sub(_escape, text)


def rfc3339(when: float) -> str:
    """Return a time since the epoch as RFC 3339 has it, in UTC with milliseconds."""
    second = int(when)
    return f"{_second(second)}.{int((when - second) * 1000):03d}Z"


@lru_cache(1)
def _second(second: int) -> str:
    """Format a second; most events are of the same one as the event before."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def component_of(namespace: object) -> str:
    """Return the component of a logger's namespace: its module below `mcpbridge`."""
    if not isinstance(namespace, str):
        return ""
    module, dot, last = namespace.removeprefix("mcpbridge.").rpartition(".")
    # The last part is a class where the logger is an attribute of one.
    return module if dot and last.lstrip("_")[:1].isupper() else f"{module}{dot}{last}"


class AccessLine(msgspec.Struct, gc=False):
    """
    A line about a request, in the order in which `json_line` has its fields; those that are
    empty are left out.
    """

    time: str
    level: str
    component: str
    message: str
    peer: str
    method: str | msgspec.UnsetType
    uri: str | msgspec.UnsetType
    code: int
    size: int
    session: str | msgspec.UnsetType = msgspec.UNSET


def access_lines(lines: Iterable[AccessLine]) -> str:
    """Return lines about requests, each as `json_line` would format its event."""
    return printable_json(_encoder.encode_lines(lines).decode("utf-8"))


def _fields(event: LogEvent) -> dict[str, Any] | None:
    text, failure = formatEvent(event), event.get("log_failure")
    if not text and failure is None:
        return None
    message = _cut(text, LOG_MESSAGE_CHARS)
    fields: dict[str, Any] = {
        "time": rfc3339(event.get("log_time") or 0.0),
        "level": getattr(event.get("log_level"), "name", LogLevel.info.name),
        "component": component_of(event.get("log_namespace")),
        "message": message,
    }
    for name, value in event.items():
        if len(fields) >= LOG_FIELDS:
            break
        if name in _OMITTED or name.startswith("log_"):
            continue
        if isinstance(value, str):
            # Neither an empty text, nor one that is all of the message.
            if value and value != text:
                fields[name] = _cut(str(value), LOG_FIELD_CHARS)
        elif value is None or type(value) in (bool, int, float):
            fields[name] = value
    if failure is not None:
        fields["traceback"] = _traceback(failure)
    return fields


def _traceback(failure: Any) -> str:
    try:
        text = str(failure.getTraceback())
    except Exception:
        return "(the traceback cannot be formatted)"
    # Its end says what went wrong.
    cut = len(text) - LOG_TRACEBACK_CHARS
    return text if cut <= 0 else f"({cut} characters left out) ...{text[cut:]}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... (cut; {len(text)} characters)"


def _encoded(fields: dict[str, Any]) -> bytes:
    try:
        return _encoder.encode(fields)
    except (ValueError, OverflowError):
        # A surrogate, or an integer with more digits than Python writes.
        return _encoder.encode({_clean(name): _clean(value) for name, value in fields.items()})


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub(_escape, value)
    if type(value) is int and value.bit_length() > 63:
        return str(value) if value.bit_length() < 4 * LOG_SHORT_CHARS else "(too large)"
    return value


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _shortened(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what is most important, cut so that escapes cannot make it too long again."""
    names = (*FIRST_FIELDS, *AGREED_FIELDS, "traceback")
    return {
        name: value[-LOG_SHORT_CHARS:] if name == "traceback" else _cut_value(value)
        for name in names
        if (value := fields.get(name)) is not None
    }


def _cut_value(value: Any) -> Any:
    return _cut(value, LOG_SHORT_CHARS) if isinstance(value, str) else value
