"""
The text of server-sent events (WHATWG HTML, section 9.2) as MCP uses them.

Knows how an event is written; must not know who reads it.  A line that is
given here has no newline.  A carriage return in it would end a line of the
event, so it becomes a space.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

#: The headers of a response with events, which must never be stored, nor buffered by a
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
    """Return the first event of a stream: the path to which messages are posted."""
    return b"event: endpoint\ndata: " + path.encode("ascii") + _AFTER


def message_events(lines: Iterable[bytes]) -> bytes:
    """Return one `message` event for each line."""
    text = _BEFORE + _BETWEEN.join(lines) + _AFTER
    return text.replace(b"\r", b" ") if b"\r" in text else text


def identified_event(ident: str, line: bytes) -> bytes:
    """Return a `message` event with an id, after which a client can resume."""
    if b"\r" in line:
        line = line.replace(b"\r", b" ")
    return b"event: message\nid: %b\ndata: %b\n\n" % (ident.encode("ascii"), line)


def priming_event(ident: str, retry: int) -> bytes:
    """Return an event without data: an id to resume after, and the delay in milliseconds."""
    return b"id: %b\nretry: %d\ndata: \n\n" % (ident.encode("ascii"), retry)


def retry_field(retry: int) -> bytes:
    """Return what tells a client after how many milliseconds it may come back; it is no event."""
    return b"retry: %d\n\n" % retry


def comment() -> bytes:
    """Return a comment, which clients ignore and which keeps proxies from timing out."""
    return b": keepalive\n\n"


def message_pieces(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Return one chunk with one event, in pieces: a long line, without CR, is not copied."""
    size = len(line) + len(_BETWEEN)
    return b"%x\r\n%b" % (size, _BEFORE), line, _CHUNK_AFTER


def message_chunk(lines: list[bytes]) -> bytes:
    """Return events, at least one, as one chunk of a chunked body (RFC 9112, section 7.1)."""
    text = lines[0] if len(lines) == 1 else _BETWEEN.join(lines)
    if b"\r" in text:
        text = text.replace(b"\r", b" ")
    return b"%x\r\n%b%b%b" % (len(text) + len(_BETWEEN), _BEFORE, text, _CHUNK_AFTER)


def ping_message(number: int) -> bytes:
    """Return a ping of the bridge, in the bytes that clients of APISIX know."""
    return b'{"jsonrpc": "2.0","method": "ping","id":"ping:%d"}' % number


def stderr_message(line: bytes) -> bytes:
    """Return a line of the server's stderr, of any bytes, as a notification."""
    content = msgspec.json.encode(line.decode("utf-8", "replace"))
    return (
        b'{"jsonrpc":"2.0","method":"notifications/stderr","params":{"content":' + content + b"}}"
    )
