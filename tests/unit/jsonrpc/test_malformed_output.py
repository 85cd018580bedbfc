"""What a server writes to stdout that is no message on a line of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from mcpbridge.jsonrpc.framing import LineFramer
from mcpbridge.jsonrpc.malformed_output import (
    JOINED_BYTES,
    Lost,
    MalformedOutput,
    _Joined,
    is_message,
    too_large,
    unreadable,
)
from mcpbridge.jsonrpc.oversized import END_BYTES, Oversized

ANSWER = {"jsonrpc": "2.0", "id": 1, "result": {"x": ["{", "]", '"']}}
ASKS = {"jsonrpc": "2.0", "id": "q", "method": "roots/list"}
NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}
LINE = json.dumps(ANSWER).encode()
BOM = b"\xef\xbb\xbf"


class Read:
    """All that a server writes, and what became of it."""

    def __init__(self) -> None:
        self.framer = LineFramer(10 * JOINED_BYTES)
        self.odd = MalformedOutput(self, 50)
        self.messages: list[bytes] = []
        self.lost: list[tuple[str, Any, bool]] = []
        self.certain: list[bool] = []
        self.text: list[bytes] = []
        self.mistakes: list[tuple[str, bytes]] = []

    def write(self, data: bytes) -> Read:
        self.odd.take(self.framer.receive(data))
        return self

    def wait(self) -> Read:
        """Nothing has come for a while."""
        if self.odd.body_size:
            sizes = self.odd.body_size, self.framer.waiting
            taken = self.odd.take_body(*map(self.framer.begun, sizes))
            if taken:
                self.framer.discard(taken)
        return self

    # Receiver.

    def messages_received(self, lines: list[bytes]) -> None:
        self.messages += lines

    def message_lost(self, lost: Lost) -> None:
        self.lost.append((lost.fault, lost.ident, lost.has_method))
        self.certain.append(lost.certain)

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
        b'[{"jsonrpc":"2.0","id":1,"result":"\\ud800"}]',
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
        *(b"hello", b"[INFO] ready", b"{'id': 1}", b"{ id: 1 }", b'"x"', b"1"),
        *(b"{x", b"[1", b"}", b"{" * 100_000, b"\xff\xfe", b"Content-Length: x"),
    ],
)
def test_lines_that_are_not_json_are_text(line: bytes) -> None:
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
@pytest.mark.parametrize("space", ["", " "])
def test_utf16_cannot_be_read(coding: str, space: str) -> None:
    text = json.dumps(ANSWER).replace("{", f"{{{space}", 1) + "\n"
    read = Read().write(text.encode(coding))
    assert read.odd.is_utf16
    assert (read.messages, read.lost, read.text) == ([], [], [])
    assert read.mistakes == [("utf-16", b"")]


@pytest.mark.parametrize("text", ["hello", "[INFO]", "{x"])
def test_a_word_in_utf16_is_text(text: str) -> None:
    read = Read().write(f"{text}\n".encode("utf-16"))
    assert not read.odd.is_utf16
    assert len(read.text) == 1


# Messages over several lines.


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        (ANSWER, [("lines", 1, False)]),
        # It may be a copy of a client's own request: nobody is told of it.
        (ASKS, [("lines", UNSET, False)]),
        (NOTE, [("lines", UNSET, False)]),
        ([ANSWER, ASKS], [("lines", 1, False), ("lines", UNSET, False)]),
        ({**ANSWER, "result": {"x": float("nan")}}, [("lines", 1, False)]),
        ({**ASKS, "params": {"x": float("nan")}}, [("lines", UNSET, False)]),
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
def test_json_over_several_lines_that_is_not_a_message(message: object) -> None:
    read = Read().write(pretty(message) + b"hello\n")
    lines = [*pretty(message).splitlines(), b"hello"]
    assert read.lost == []
    assert read.text == [b"stdout: " + line for line in lines]
    assert read.mistakes == [("text", lines[0]), ("text", b"hello")]


@pytest.mark.parametrize("begun", [b"{\n", b"[\n1,\n", b"Content-Length: 1\n"])
def test_the_next_line_may_belong_to_what_was_begun(begun: bytes) -> None:
    assert not Read().odd.is_within
    assert Read().write(begun).odd.is_within


def test_a_message_between_lines_of_another_one() -> None:
    """What was begun is not waited for."""
    read = Read().write(b'{\n"x":\n' + LINE + b"\n}\n")
    assert read.messages == [LINE]
    assert read.mistakes == [("text", b"{"), ("text", b"}")]
    assert not read.odd.is_within


def test_an_unfinished_message_is_text() -> None:
    read = Read().write(b'[\n"x",\n')
    assert read.text == []
    read.odd.finish()
    read.odd.finish()
    assert read.text == [b"stdout: [", b'stdout: "x",']
    assert read.mistakes == [("text", b"[")]


def test_an_object_within_a_message_over_several_lines_is_part_of_it() -> None:
    whole = b'{"jsonrpc":"2.0","id":1,"result":[\n{},\n{"x":1}\n]}\n'
    read = Read().write(whole)
    assert read.lost == [("lines", 1, False)]
    assert read.messages == []


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        (ANSWER, [("lines", 1, False)]),
        ({"jsonrpc": "2.0", "result": {}, "id": 2}, [("lines", 2, False)]),
    ],
)
def test_joined_bytes(message: dict[str, Any], lost: object) -> None:
    """JOINED_BYTES: of more the ends tell."""
    large = {**message, "result": ["x" * 1000] * (JOINED_BYTES // 1000)}
    read = Read().write(pretty(large))
    assert read.lost == lost
    assert (read.text, read.mistakes) == ([], [])


def test_id_before_the_line_that_exceeds_joined_bytes_is_known() -> None:
    """JOINED_BYTES: the end of the message begins in the lines that are kept."""
    first, last = b'{"jsonrpc":"2.0","result":"', b'",\n"id":1\n}\n'
    large = first.ljust(JOINED_BYTES + 1 - len(last), b"x") + last
    assert Read().write(large).lost == [("lines", 1, False)]


def test_joined_bytes_of_text() -> None:
    """JOINED_BYTES: what may be no message is not kept for longer."""
    lines = [b"{"] + [b'  "%b",' % (b"x" * 1000)] * (JOINED_BYTES // 1000)
    read = Read().write(b"\n".join(lines) + b"\n")
    assert len(read.text) == len(lines)
    assert not read.odd.is_within


@pytest.mark.parametrize(("more", "ident"), [(0, 1), (1, UNSET)])
def test_a_message_of_joined_bytes_is_read_as_a_whole(more: int, ident: object) -> None:
    """JOINED_BYTES, with the line ends; of a message of one byte more the middle is not known."""
    filling = b"y" * END_BYTES
    first = b'{"jsonrpc":"2.0","a":"%b",\n"id":1,"result":[],\n"b":"' % filling
    last = b'%b"\n}\n' % filling
    large = first.ljust(JOINED_BYTES + more - len(last), b"x") + last
    assert Read().write(large).lost == [("lines", ident, False)]


def test_the_end_of_an_invalid_message_of_joined_bytes_is_known() -> None:
    first, last = b'{"jsonrpc":"2.0","result":{"a":NaN,"b":"', b'"},\n"id":1\n}\n'
    large = first.ljust(JOINED_BYTES - len(last), b"x") + last
    assert Read().write(large).lost == [("lines", 1, False)]


@pytest.mark.parametrize("left", [0, 1, 2])
def test_joined_bytes_are_kept_and_no_more(left: int) -> None:
    first = b"{".ljust(JOINED_BYTES - left - len(b"\n"))
    joined = _Joined(first)
    were_large = joined.is_large_text
    joined.add(b"abc")
    assert (were_large, joined.is_large_text) == (False, True)
    assert joined.lines == ([first, b"abc"[:left]] if left else [first])


def test_only_the_ends_of_a_message_over_several_lines_show_what_it_is() -> None:
    filling = b"x" * END_BYTES
    inner = b'"b":{"jsonrpc":"2.0","result":1},'
    read = Read().write(b'{"id":5,"a":"%b",\n%b\n"c":"%b",\n' % (filling, inner, filling))
    read.odd.waited()
    assert read.lost == []


def test_only_the_beginning_of_a_large_message_is_searched() -> None:
    """Not all that is kept of it, for each of its lines: that would be quadratic."""
    joined = _Joined(b'{"jsonrpc": "2.0", "id": 1, "result": [')
    while joined._size <= JOINED_BYTES:
        joined.add(b'  "%b",' % (b"x" * 1000))
        assert not joined.is_large_text
    assert END_BYTES <= len(joined._head) <= END_BYTES + 1
    for _ in range(END_BYTES):
        joined.add(b"end")
    assert len(joined._tail) == END_BYTES


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
@pytest.mark.parametrize("waits", [True, False])
def test_content_length_headers(name: str, more: str, step: int, waits: bool) -> None:
    """Each message is known, though it has no line end; so is the next one, right behind it."""
    data = b"".join(framed(each, name, more) for each in (ANSWER, ASKS, NOTE))
    read = Read()
    for at in range(0, len(data), step):
        read.write(data[at : at + step])
        if waits:
            read.wait()
    read.wait()
    assert read.lost == [
        ("headers", 1, False),
        ("headers", "q", True),
        ("headers", UNSET, True),
    ]
    assert read.certain == [True, True, True]
    assert (read.messages, read.text, read.mistakes) == ([], [], [])
    assert (read.framer.waiting, read.odd.body_size) == (0, 0)


@pytest.mark.parametrize("size", [5, len(LINE), len(LINE) + 1, 10**9 - 1])
@pytest.mark.parametrize("step", [1, 9, 10_000])
@pytest.mark.parametrize("space", [b"", b" ", b"\t "])
def test_a_header_before_a_line_is_text(size: int, step: int, space: bytes) -> None:
    """With a line end of its own a message is right, however it comes in."""
    header = b"Content-Length: %d" % size
    data = header + b"\r\n\r\n" + LINE + space + b"\n"
    read = Read()
    for at in range(0, len(data), step):
        read.write(data[at : at + step])
    assert read.messages == [LINE + space]
    assert read.mistakes == [("text", header)]
    assert (read.odd.is_within, read.odd.body_size) == (False, 0)


@pytest.mark.parametrize("size", [5, len(LINE) - 1, len(LINE) + 9])
def test_a_header_with_a_wrong_size(size: int) -> None:
    """Characters instead of bytes, say; known when nothing more comes."""
    read = Read().write(b"Content-Length: %d\r\n\r\n" % size + LINE)
    assert read.lost == []
    assert read.wait().lost == [("headers", 1, False)]
    assert read.framer.waiting == 0


@pytest.mark.parametrize("last", [b"", b"{", b"Content-Ty"])
def test_a_header_without_a_message_is_text(last: bytes) -> None:
    read = Read().write(b"Content-Length: 5\n" + last).wait()
    assert read.lost == []
    read.odd.finish()
    assert read.text == [b"stdout: Content-Length: 5"]


def test_a_header_with_size_zero_is_text() -> None:
    assert Read().write(b"Content-Length: 0\n").text == [b"stdout: Content-Length: 0"]


def test_a_header_before_text_is_text() -> None:
    read = Read().write(b"Content-Length: 2\nhello\n")
    assert read.text == [b"stdout: Content-Length: 2", b"stdout: hello"]


# Objects that are no messages.


@pytest.mark.parametrize(
    ("line", "ident"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{"x":NaN}}', 1),
        (b'{"result":{"x":NaN},"jsonrpc":"2.0","id":"a"}', "a"),
        (b'{"jsonrpc":"2.0","id":3,"error":{"x":NaN}}', 3),
        (b'{"jsonrpc":"1.0","id":3,"result":{}}', 3),
        (b'{"jsonrpc":"1.0","id":3,"result":{},"x":1}', 3),
        (b'{"jsonrpc":"1.0","id":3,"error":{},"x":1}', 3),
        (b'{"jsonrpc":"2.0","id":3}', 3),
        (b'{"id":1,"result":{}}', 1),
        (b'{"id":1,"error":{},"result":null}', 1),
    ],
)
def test_an_invalid_response_fails_its_request(line: bytes, ident: object) -> None:
    lost = unreadable(line)
    assert (lost.fault, lost.ident, lost.has_method, lost.certain) == (
        "invalid",
        ident,
        False,
        False,
    )
    assert "not a JSON-RPC message: " in lost.why


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":2,"method":"x","params":{"result":\xff}}',
        b'{"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","id":null}',
        b'{"jsonrpc":"2.0","id":true,"result":1}',
        b'{"jsonrpc":"2.0","id":2,"method":5,"result":1}',
        b'{"jsonrpc":"2.0","id":2,"x":NaN}',
        b'{"id":2,"result":NaN}',
        # Logs, and two messages on one line.
        b'{"level":30,"id":1,"msg":"x"}',
        b'{"level":30,"id":1,"result":"x"}',
        b'{"level":"debug","jsonrpc":"2.0","id":7,"msg":"handling"}',
        b'{"jsonrpc":"2.0","method":"x"}{"jsonrpc":"2.0","id":7,"result":{}}',
    ],
)
def test_an_id_counts_only_where_an_answer_was_meant(line: bytes) -> None:
    assert unreadable(line).ident is UNSET


def test_only_the_ends_of_a_large_invalid_object_show_that_it_is_an_answer() -> None:
    filling = b"x" * END_BYTES
    line = b'{"a":"%b","b":{"jsonrpc":"2.0","result":NaN},"c":"%b","id":7}' % (filling, filling)
    assert unreadable(line).ident is UNSET


def test_the_content_of_an_invalid_object_is_not_shown() -> None:
    lost = unreadable(b'{"jsonrpc":"secret","id":1,"result":{}}')
    assert lost.why.endswith('`jsonrpc` is not "2.0"')
    assert "secret" not in str(lost)


@pytest.mark.parametrize("line", [b' {"jsonrpc":"2.0","id":1,"result":NaN}', LINE[:-1] + b" } }"])
def test_an_invalid_object_is_found_among_other_lines(line: bytes) -> None:
    read = Read().write(line + b"\n")
    assert [(fault, has_method) for fault, _, has_method in read.lost] == [("invalid", False)]
    assert (read.text, read.mistakes) == ([], [])


@pytest.mark.parametrize(
    "line", [b"{'jsonrpc': '2.0', 'secret': 1}", b'{ jsonrpc: "secret"', b'"jsonrpc" secret']
)
def test_text_that_may_be_a_message_is_not_shown(line: bytes) -> None:
    read = Read().write(line + b"\n")
    read.odd.finish()
    shown = b"(%d bytes that name jsonrpc are not shown)" % len(line)
    assert read.text == [b"stdout: " + shown]
    assert read.mistakes == [("text", shown)]


def test_only_the_ends_of_a_large_text_are_searched() -> None:
    line = b"x" * END_BYTES + b"jsonrpc" + b"x" * END_BYTES
    assert Read().write(line + b"\n").text == [b"stdout: " + line[:50]]


def test_text_that_begins_no_object_is_not_kept_back() -> None:
    read = Read().write("\xe9 {jsonrpc\n".encode())
    assert len(read.text) == 1
    assert not read.odd.is_within


def test_text_over_several_lines_that_may_be_a_message_is_not_shown() -> None:
    read = Read().write(b'{\n"x": secret,\n"jsonrpc"\n' + LINE + b"\n")
    assert read.messages == [LINE]
    assert read.text == [b"stdout: (22 bytes that name jsonrpc are not shown)"]


def test_a_large_line_that_begins_like_a_message_is_text() -> None:
    """Also where it alone is more than is kept of a message over several lines."""
    line = b'{"x": "' + b"x" * JOINED_BYTES
    read = Read().write(line + b"\n" + LINE + b"\n")
    assert read.text == [b"stdout: " + line[:50]]
    assert read.messages == [LINE]


def test_a_large_first_line_shows_which_request_it_answers() -> None:
    large = json.dumps({**ANSWER, "result": "x" * JOINED_BYTES})
    read = Read().write(large.replace('"result"', '\n"result"').encode() + b"\n")
    assert read.lost == [("lines", 1, False)]
    read = Read().write(large.encode()[:-1] + b"\n}\n")
    assert read.lost == [("lines", 1, False)]


def test_many_escapes_in_a_string_that_is_cut_off() -> None:
    """Linear: to search on from each quote of this line would take days."""
    line = b'{"' + b'\\"' * 4 * JOINED_BYTES
    read = Read().write(line + b"\n" + LINE + b"\n")
    assert read.text == [b"stdout: " + line[:50]]
    assert read.messages == [LINE]


def test_a_batch_between_lines_of_a_message() -> None:
    """It is a message as well."""
    batch = b"[" + LINE + b"]"
    read = Read().write(b"{\n" + batch + b"\n")
    assert read.messages == [batch]
    assert read.text == [b"stdout: {"]


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("last", [LINE, b""])
def test_an_answer_with_line_ends_in_a_string(waits: bool, last: bytes) -> None:
    """It is not told twice, and never shown."""
    read = Read().write(b'{"jsonrpc":"2.0","id":5,"result":{"text":"one\nsecret\nend"}}\n')
    if waits:
        read.odd.waited()
        read.odd.waited()
        assert len(read.lost) == 1
    read.write(last + b"\n")
    read.odd.finish()
    assert read.lost == [("lines", 5, False)]
    assert (read.text, read.mistakes) == ([], [])


def test_an_answer_over_several_lines_that_takes_long() -> None:
    read = Read()
    for line in pretty(ANSWER).splitlines():
        read.write(line + b"\n")
        read.odd.waited()
    read.odd.waited()
    assert read.lost == [("lines", 1, False)]
    assert (read.text, read.mistakes) == ([], [])


def test_a_copy_of_a_message_that_is_not_json_is_not_shown() -> None:
    """As a program prints its own objects."""
    read = Read().write(b"{ jsonrpc: '2.0',\n  id: 1,\n  result: { text: 'secret' } }\nhello\n")
    assert [b"secret" in each for each in read.text] == [False, False]
    assert read.text[-1] == b"stdout: hello"
    assert read.lost == []


# Messages beyond the limit.


@pytest.mark.parametrize(
    ("head", "ident", "has_method"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":"', 1, False),
        (b'{"jsonrpc":"2.0","id":"q","method":"x","params":{', "q", True),
        (b'{"result":"', UNSET, False),
    ],
)
def test_a_message_that_is_too_large(head: bytes, ident: object, has_method: bool) -> None:
    lost = too_large(Oversized(head, b"", 5000))
    assert (lost.fault, lost.ident, lost.has_method, lost.certain) == (
        "oversized",
        ident,
        has_method,
        True,
    )
    assert "a message of 5000 bytes" in lost.why
