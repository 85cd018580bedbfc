"""
The text of server-sent events (WHATWG HTML, section 9.2) as MCP uses it.

Knows how an event is written; must not know who reads it.  A line given
here has no newline; a carriage return inside it would end an SSE line, so it
becomes a space.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

#: What an SSE response says of itself: never stored, never held back by a
#: proxy (`X-Accel-Buffering` is nginx's).
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"Content-Type", b"text/event-stream"),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
)

_BEFORE = b"event: message\ndata: "
_AFTER = b"\n\n"
_BETWEEN = _AFTER + _BEFORE
_CHUNK_AFTER = _AFTER + b"\r\n"


def endpoint_event(path: str) -> bytes:
    """The first event of a stream: where messages are to be posted."""
    return b"event: endpoint\ndata: " + path.encode("ascii") + _AFTER


def message_events(lines: Iterable[bytes]) -> bytes:
    """One `message` event for each line, as one piece."""
    text = _BEFORE + _BETWEEN.join(lines) + _AFTER
    return text.replace(b"\r", b" ") if b"\r" in text else text


def identified_event(ident: str, line: bytes) -> bytes:
    """A `message` event that a client can come back to."""
    if b"\r" in line:
        line = line.replace(b"\r", b" ")
    return b"event: message\nid: %b\ndata: %b\n\n" % (ident.encode("ascii"), line)


def priming_event(ident: str, retry: int) -> bytes:
    """An event without data: an id to come back with, and after how many milliseconds."""
    return b"id: %b\nretry: %d\ndata: \n\n" % (ident.encode("ascii"), retry)


def comment() -> bytes:
    """A line that clients ignore and proxies see."""
    return b": keepalive\n\n"


def message_pieces(line: bytes) -> list[bytes]:
    """One event as one chunk, in pieces, so that a long line is not copied; no CR in it."""
    size = len(line) + len(_BETWEEN)
    return [b"%x\r\n%b" % (size, _BEFORE), line, _CHUNK_AFTER]


def message_chunk(lines: list[bytes]) -> bytes:
    """The same as one chunk of a chunked body (RFC 9112, section 7.1), copied once."""
    size = sum(map(len, lines)) + len(lines) * len(_BETWEEN)
    head = b"%x\r\n%b" % (size, _BEFORE)
    if len(lines) == 1:
        line = lines[0]
        if b"\r" in line:
            line = line.replace(b"\r", b" ")
        return b"%b%b%b" % (head, line, _CHUNK_AFTER)
    if any(b"\r" in line for line in lines):
        lines = [line.replace(b"\r", b" ") for line in lines]
    return b"%b%b%b" % (head, _BETWEEN.join(lines), _CHUNK_AFTER)


def ping_message(number: int) -> bytes:
    """The bridge's own ping, in the bytes that APISIX's clients know."""
    return b'{"jsonrpc": "2.0","method": "ping","id":"ping:%d"}' % number


def stderr_message(line: bytes) -> bytes:
    """A line of the backend's stderr as a notification, whatever its bytes are."""
    content = msgspec.json.encode(line.decode("utf-8", "replace"))
    return (
        b'{"jsonrpc":"2.0","method":"notifications/stderr","params":{"content":' + content + b"}}"
    )
