"""What a server writes to stdout that is no message on a line of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from mcpbridge.protocol.framing import LineFramer
from mcpbridge.protocol.stdout import JOINED_BYTES, Lost, OddLines, is_message, unreadable

ANSWER = {"jsonrpc": "2.0", "id": 1, "result": {"x": ["{", "]", '"']}}
ASKS = {"jsonrpc": "2.0", "id": "q", "method": "roots/list"}
NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}
LINE = json.dumps(ANSWER).encode()
BOM = b"\xef\xbb\xbf"


class Read:
    """All that a server writes, and what became of it."""

    def __init__(self) -> None:
        self.framer = LineFramer(10 * JOINED_BYTES)
        self.odd = OddLines(self, 50)
        self.messages: list[bytes] = []
        self.lost: list[tuple[str, Any, bool]] = []
        self.text: list[bytes] = []
        self.mistakes: list[tuple[str, bytes]] = []

    def write(self, data: bytes) -> Read:
        self.odd.take(self.framer.receive(data))
        size = self.odd.body_size
        begun = self.framer.begun(size)
        if begun and self.odd.take_body(begun):
            self.framer.discard(size)
        return self

    # Receiver.

    def messages_received(self, lines: list[bytes]) -> None:
        self.messages += lines

    def message_lost(self, lost: Lost) -> None:
        self.lost.append((lost.fault, lost.ident, lost.has_method))

    def diagnostics_received(self, lines: list[bytes]) -> None:
        self.text += lines

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        self.mistakes.append((fault, line))


def pretty(message: object, **options: Any) -> bytes:
    return json.dumps(message, indent=2, **options).encode() + b"\n"


def framed(message: object, name: str = "Content-Length", more: str = "") -> bytes:
    """As the Language Server Protocol has it."""
    body = json.dumps(message).encode()
    return f"{name}: {len(body)}\r\n{more}\r\n".encode() + body


# Messages.


@pytest.mark.parametrize(
    "line",
    [
        b" {}",
        b"{ }",
        b"{} ",
        b"[1]",
        b"\t[ ]",
        b'{ "jsonrpc":"2.0","id":1,"result":"\\ud800"}',
        b'{"x":1}',
    ],
)
def test_json_is_a_message(line: bytes) -> None:
    assert is_message(line)
    assert Read().write(line + b"\n").messages == [line]


@pytest.mark.parametrize(
    "line",
    [
        *(b"hello", b"[INFO] ready", b"{'jsonrpc': '2.0'}", b"{ jsonrpc: '2.0' }", b'"x"', b"1"),
        *(b"{x", b"[1", b"}", b"{" * 100_000, b"\xff\xfe", b"Content-Length: x"),
    ],
)
def test_what_is_no_json_is_text(line: bytes) -> None:
    """With the first line of it; how often is for who complains."""
    read = Read().write(line + b"\n" + LINE + b"\n")
    assert read.text == [b"stdout: " + line[:50]]
    assert read.mistakes == [("text", line)]
    assert read.messages == [LINE]
    assert read.lost == []


# A byte order mark, and UTF-16.


def test_a_byte_order_mark_is_skipped() -> None:
    read = Read().write(BOM + LINE + b"\n" + BOM + b"\n" + BOM + b"hello\n")
    assert read.messages == [LINE]
    assert read.text == [b"stdout: hello"]
    assert read.mistakes == [("bom", b"")] * 3 + [("text", b"hello")]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("message", [ANSWER, [ANSWER]])
def test_utf16_cannot_be_read(coding: str, message: object) -> None:
    read = Read().write((json.dumps(message) + "\n").encode(coding))
    assert read.odd.is_utf16
    assert (read.messages, read.lost, read.text) == ([], [], [])
    assert read.mistakes == [("utf-16", b"")]


def test_a_word_in_utf16_is_text() -> None:
    read = Read().write("hello\n".encode("utf-16"))
    assert not read.odd.is_utf16
    assert len(read.text) == 1


# Messages over several lines.


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        (ANSWER, [("lines", 1, False)]),
        (ASKS, [("lines", "q", True)]),
        (NOTE, [("lines", UNSET, True)]),
        ([ANSWER, ASKS], [("lines", 1, False), ("lines", "q", True)]),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_message_over_several_lines(message: object, lost: object, end: bytes) -> None:
    read = Read().write(pretty(message).replace(b"\n", end) + LINE + b"\n")
    assert read.lost == lost
    assert read.messages == [LINE]
    # What a message says is not shown.
    assert (read.text, read.mistakes) == ([], [])


@pytest.mark.parametrize("message", [{"level": "info", "x": [1]}, [1, 2], [[]], {"x": {}}])
def test_json_over_several_lines_that_is_no_message(message: object) -> None:
    read = Read().write(pretty(message) + b"hello\n")
    lines = [*pretty(message).splitlines(), b"hello"]
    assert read.lost == []
    assert read.text == [b"stdout: " + line for line in lines]
    assert read.mistakes == [("text", lines[0]), ("text", b"hello")]


def test_a_message_between_such_lines() -> None:
    """What was begun is not waited for."""
    read = Read().write(b'{\n"x":\n' + LINE + b"\n}\n")
    assert read.messages == [LINE]
    assert read.mistakes == [("text", b"{"), ("text", b"}")]
    assert not read.odd.is_within


def test_what_is_not_finished_is_text() -> None:
    read = Read().write(b'[\n"x",\n')
    assert read.text == []
    read.odd.finish()
    read.odd.finish()
    assert read.text == [b"stdout: [", b'stdout: "x",']
    assert read.mistakes == [("text", b"[")]


def test_an_object_within_such_lines_is_a_part() -> None:
    whole = b'{"jsonrpc":"2.0","id":1,"result":[\n{},\n{"x":1}\n]}\n'
    read = Read().write(whole)
    assert read.lost == [("lines", 1, False)]
    assert read.messages == []


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        (ANSWER, [("lines", 1, False)]),
        ({"jsonrpc": "2.0", "result": {}, "id": 2}, [("lines", 2, False)]),
        ({"x": {}}, []),
    ],
)
def test_joined_bytes(message: dict[str, Any], lost: object) -> None:
    """JOINED_BYTES: of more the ends tell."""
    large = {**message}
    large["result" if "result" in message else "x"] = ["x" * 1000] * (JOINED_BYTES // 1000)
    read = Read().write(pretty(large))
    assert read.lost == lost
    assert len(read.mistakes) == (not lost)


@given(
    st.recursive(st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_any_answer_over_several_lines_is_found(result: object) -> None:
    read = Read().write(pretty({"jsonrpc": "2.0", "id": 5, "result": result}, ensure_ascii=False))
    assert read.lost == [("lines", 5, False)]


# Headers.


@pytest.mark.parametrize("name", ["Content-Length", "content-length", "CONTENT-LENGTH"])
@pytest.mark.parametrize(
    "more", ["", "Content-Type: application/vscode-jsonrpc; charset=utf-8\r\n"]
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_content_length_headers(name: str, more: str, step: int) -> None:
    """Each message is known, though it has no line end; so is the next one, right behind it."""
    data = b"".join(framed(each, name, more) for each in (ANSWER, ASKS, NOTE))
    read = Read()
    for at in range(0, len(data), step):
        read.write(data[at : at + step])
    assert read.lost == [
        ("headers", 1, False),
        ("headers", "q", True),
        ("headers", UNSET, True),
    ]
    assert (read.messages, read.text, read.mistakes) == ([], [], [])
    assert read.framer.waiting == 0


@pytest.mark.parametrize("size", [5, len(LINE), len(LINE) + 1, 10**9 - 1])
def test_a_header_before_a_line_is_text(size: int) -> None:
    header = b"Content-Length: %d" % size
    read = Read()
    for at in range(0, len(LINE), 9):
        read.write((header + b"\n" if not at else b"") + LINE[at : at + 9])
    read.write(b"\n")
    if size == len(LINE):
        # It could be told only when the line was whole, and before its end.
        assert read.lost == [("headers", 1, False)]
    else:
        assert read.messages == [LINE]
        assert read.mistakes == [("text", header)]
    assert not read.odd.is_within


def test_a_header_before_text_is_text() -> None:
    read = Read().write(b"Content-Length: 2\nhello\n")
    assert read.text == [b"stdout: Content-Length: 2", b"stdout: hello"]


# Objects that are no messages.


@pytest.mark.parametrize(
    ("line", "ident", "has_method"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{"x":NaN}}', 1, False),
        (b'{"result":{"x":NaN},"jsonrpc":"2.0","id":"a"}', "a", False),
        (b'{"jsonrpc":"2.0","id":2,"method":"x","params":{"x":\xff}}', 2, True),
        (b'{"jsonrpc":"2.0"}', UNSET, False),
        (b'{"jsonrpc":"1.0","id":3,"result":{}}', 3, False),
        (b'{"level":30,"id":1,"msg":"x"}', UNSET, False),
        (b'{"id":1,"result":{}}', UNSET, False),
    ],
)
def test_what_is_wrong_with_an_object(line: bytes, ident: object, has_method: bool) -> None:
    """An `id` counts only where it is certain that a message was meant."""
    lost = unreadable(line)
    assert (lost.fault, lost.ident, lost.has_method) == ("invalid", ident, has_method)
    assert lost.may_be_text
    assert "no JSON-RPC message: " in lost.why
