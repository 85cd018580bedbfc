"""The text of events, read back as a browser would (WHATWG HTML, section 9.2)."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpbridge.jsonrpc import sse

LINES = st.lists(st.binary().map(lambda line: line.replace(b"\n", b"")), min_size=1)


def read_events(text: bytes) -> list[tuple[bytes, bytes]]:
    """The events in a text, as (type, data); a last one without its blank line is not there."""
    events = []
    *blocks, rest = re.sub(rb"\r\n?", b"\n", text).split(b"\n\n")
    assert rest == b""
    for block in blocks:
        fields: dict[bytes, list[bytes]] = {}
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            fields.setdefault(name, []).append(value.removeprefix(b" "))
        assert fields.keys() == {b"event", b"data"}
        events.append((b"\n".join(fields[b"event"]), b"\n".join(fields[b"data"])))
    return events


def test_the_first_events() -> None:
    """keep: the first two events, byte for byte, LF line ends."""
    path = "/base/message?sessionId=0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10"
    assert sse.endpoint_event(path) + sse.message_events([sse.ping_message(1)]) == (
        b"event: endpoint\n"
        b"data: /base/message?sessionId=0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10\n"
        b"\n"
        b"event: message\n"
        b'data: {"jsonrpc": "2.0","method": "ping","id":"ping:1"}\n'
        b"\n"
    )


def test_the_headers() -> None:
    """keep: Content-Type and Cache-Control; add: X-Accel-Buffering."""
    assert dict(sse.HEADERS) == {
        b"Content-Type": b"text/event-stream",
        b"Cache-Control": b"no-cache",
        b"X-Accel-Buffering": b"no",
    }


def test_an_endpoint_is_ascii() -> None:
    with pytest.raises(UnicodeEncodeError):
        sse.endpoint_event("/größe/message")


@settings(deadline=None)
@given(LINES)
def test_each_line_is_one_event(lines: list[bytes]) -> None:
    """keep: one `event: message` for each line, data the line as it was written."""
    text = sse.message_events(iter(lines))
    assert read_events(text) == [(b"message", line.replace(b"\r", b" ")) for line in lines]
    assert b"\r" not in text


@settings(deadline=None)
@given(LINES)
@example([b"a\rb"])
@example([b"a\rb", b"c"])
@example([b"a", b"b"])
def test_a_chunk_holds_the_same_events(lines: list[bytes]) -> None:
    """keep: one `event: message` for each line, also as a chunk of RFC 9112, section 7.1."""
    size, _, rest = sse.message_chunk(lines).partition(b"\r\n")
    assert rest == sse.message_events(lines) + b"\r\n"
    assert int(size, 16) == len(rest) - 2


def test_the_pieces_of_a_chunk_hold_the_line_itself() -> None:
    """A long line is not copied."""
    line = b"[1]"
    pieces = sse.message_pieces(line)
    assert b"".join(pieces) == sse.message_chunk([line])
    assert pieces[1] is line


@pytest.mark.parametrize("number", [1, 2, 30, 2**40])
def test_a_ping(number: int) -> None:
    """keep: `ping:1`, `ping:2` and on."""
    assert json.loads(sse.ping_message(number)) == {
        "jsonrpc": "2.0",
        "method": "ping",
        "id": f"ping:{number}",
    }


@pytest.mark.parametrize(
    ("line", "content"),
    [
        (b"plain", b"plain"),
        (b'a "quote" and a \\', rb"a \"quote\" and a \\"),
        (b"tab\t bell\x07 escape\x1b[0m", rb"tab\t bell\u0007 escape\u001b[0m"),
        (b"caf\xc3\xa9", b"caf\xc3\xa9"),
        (b"\xff\xfe", b"\xef\xbf\xbd\xef\xbf\xbd"),
        (b"", b""),
    ],
)
def test_stderr_byte_for_byte(line: bytes, content: bytes) -> None:
    """promise: stderr as `notifications/stderr`, these bytes, no spaces, JSON-escaped."""
    assert sse.stderr_message(line) == (
        b'{"jsonrpc":"2.0","method":"notifications/stderr","params":{"content":"%b"}}' % content
    )


@settings(deadline=None)
@given(st.binary())
def test_stderr_of_any_bytes(line: bytes) -> None:
    """promise: stderr is JSON-escaped whatever the bytes are."""
    message = sse.stderr_message(line)
    assert json.loads(message)["params"] == {"content": line.decode("utf-8", "replace")}
    assert not re.search(rb"[\x00-\x1f]", message)


def test_events_with_ids() -> None:
    """Streamable HTTP: an id, and no carriage return that would end a line."""
    assert sse.identified_event("3-7", b'{"a":1}') == (
        b'event: message\nid: 3-7\ndata: {"a":1}\n\n'
    )
    assert sse.identified_event("0-1", b'{"a":\r1}') == (
        b'event: message\nid: 0-1\ndata: {"a": 1}\n\n'
    )


def test_the_priming_event_has_an_empty_data_line() -> None:
    """2025-11-25: without a `data` line a client would not take the id."""
    assert sse.priming_event("3-0", 1000) == b"id: 3-0\nretry: 1000\ndata: \n\n"


def test_a_comment_is_not_an_event() -> None:
    """What keeps a connection alive is a line that clients ignore."""
    assert sse.comment().startswith(b":")
    assert sse.comment().endswith(b"\n\n")


def test_a_client_is_told_when_it_may_come_back() -> None:
    """It is no event: there is no data (HTML, "Interpreting an event stream")."""
    assert sse.retry_field(1500) == b"retry: 1500\n\n"
