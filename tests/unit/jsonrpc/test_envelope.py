"""What passes as a message, and in which bytes; the standard library's parser judges."""

import json
import string
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpbridge.errors import EmptyBody, NotJson, NotJsonRpc
from mcpbridge.jsonrpc.envelope import (
    SECOND_PARSE_BYTES,
    is_json,
    named_param,
    one_line,
    peek,
    read_message,
)

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.text(string.ascii_letters)},
    optional={"id": st.integers() | st.text(), "params": JSON_VALUES},
)


def is_valid(body: bytes) -> bool:
    """What RFC 8259 says of it, as Python's own parser reads it."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


def verdict(body: bytes) -> str:
    """Whether a body passes, or the name of its error."""
    try:
        line, _ = read_message(body)
    except (EmptyBody, NotJson, NotJsonRpc) as error:
        return type(error).__name__
    assert not set(line) & set(b"\r\n")
    return "passes"


# What passes.


@settings(deadline=None)
@given(MESSAGES)
def test_a_message_of_one_line_passes_byte_identical(message: dict[str, Any]) -> None:
    """beat: a one-line body passes byte-identical."""
    body = json.dumps(message).encode()
    line, envelope = read_message(body)
    assert line is body
    assert envelope is not None
    assert envelope.method == message["method"]
    assert envelope.is_request is ("id" in message)


@settings(deadline=None)
@given(MESSAGES, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from([2, "\t", 0]))
def test_a_pretty_printed_body_is_one_line_of_the_same_json(
    message: dict[str, Any], end: str, indent: int | str
) -> None:
    """beat: a pretty-printed body becomes one line, the same JSON."""
    body = (json.dumps(message, indent=indent) + "\n").replace("\n", end).encode()
    line, _ = read_message(body)
    assert not set(line) & set(b"\r\n")
    assert json.loads(line) == message


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"[1,2]", b"[1,2]"),
        (b"[1,\n2]", b"[1, 2]"),
        (b"[1,\r\n2]\r\n", b"[1,  2]"),
        (b"\n\n[1]\n\n", b"[1]"),
        (b" [1] ", b" [1] "),
        (b'["\\n"]', b'["\\n"]'),
    ],
)
def test_line_ends_become_spaces(body: bytes, line: bytes) -> None:
    """beat: a pretty-printed body becomes one line; nothing is written anew."""
    assert one_line(body) == line
    assert read_message(body) == (line, None)


@pytest.mark.parametrize("body", [b"[]", b"[1]", b'[{"jsonrpc":"2.0","method":"x"}]', b"\t[\n]"])
def test_an_array_passes_without_an_envelope(body: bytes) -> None:
    assert read_message(body)[1] is None


@pytest.mark.parametrize("members", list(product([False, True], repeat=4)))
def test_every_combination_of_members(members: tuple[bool, ...]) -> None:
    """beat: JSON that is no JSON-RPC message is refused; each that is one passes."""
    texts = ('"method":"m"', '"id":7', '"result":null', '"error":{}')
    method, ident, result, error = members
    held = [text for text, there in zip(texts, members, strict=True) if there]
    body = ("{" + ",".join(['"jsonrpc":"2.0"', *held]) + "}").encode()
    is_answer = not method and ident and (result or error)
    assert verdict(body) == ("passes" if method or is_answer else "NotJsonRpc")
    envelope = peek(body)
    assert envelope is not None
    assert envelope.is_request is (method and ident)
    assert envelope.is_response is is_answer


@pytest.mark.parametrize("ident", ["1", "-1", "1.5", '"a"', "9" * 300])
def test_every_kind_of_id(ident: str) -> None:
    envelope = read_message(b'{"jsonrpc":"2.0","method":"m","id":%b}' % ident.encode())[1]
    assert envelope is not None
    assert envelope.id == json.loads(ident)


# What does not.


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n\t "])
def test_an_empty_body(body: bytes) -> None:
    """keep: an empty body is refused with 400."""
    assert verdict(body) == "EmptyBody"


CALL = b'{"jsonrpc":"2.0","method":"m","params":%b}'


@pytest.mark.parametrize(
    "body",
    [
        b"hello",
        b"{",
        b"[1",
        CALL[:-1] % b"1",
        CALL % b"1" + b"}",
        CALL % b"1" + CALL % b"2",
        CALL % b"NaN",
        CALL % b"Infinity",
        CALL % b"01",
        CALL % b"[1,]",
        CALL % b"'a'",
        CALL % b'"a\nb"',
        CALL % b'"a\x00b"',
        CALL % b'"\\x"',
        CALL % b'"\\ud800',
        CALL % b'["\\ud800",NaN]',
        b'{"jsonrpc":"1.0","a":[1,}',
        # not UTF-8: alone, cut short, a surrogate, in a member that nobody reads
        b"\xff",
        CALL % b'"caf\xc3"',
        CALL % b'"\xed\xa0\x80"',
        # another encoding, or a byte order mark
        b"\xef\xbb\xbf" + CALL % b"1",
        b"\xef\xbb\xbf" + CALL % b'"\\ud800"',
        (CALL % b"1").decode().encode("utf-16-le"),
        # in UTF-16 this character and the letter behind it are the bytes of `\ud`
        (CALL % '"\u755cd"'.encode()).decode().encode("utf-16-le"),
    ],
)
def test_invalid_json_is_refused(body: bytes) -> None:
    """beat: a body that is not JSON gets 400; nothing is forwarded."""
    assert not is_valid(body)
    assert verdict(body) == "NotJson"
    assert peek(body) is None or body.startswith(CALL[:10])


@pytest.mark.parametrize("shape", ["%s", '{"jsonrpc":"2.0","method":"m","params":%s}'])
@pytest.mark.parametrize("depth", [50_000, 200_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
@pytest.mark.parametrize("inside", ["", '"\\ud800"'])
def test_deep_nesting_is_refused(shape: str, depth: int, brackets: str, inside: str) -> None:
    """Nesting beyond all reason is refused with 400, whoever would stumble on it."""
    opening, closing = brackets[:-1], brackets[-1]
    inside = inside if opening == "[" else inside or "1"
    body = shape % (opening * depth + inside + closing * depth)
    assert verdict(body.encode()) == "NotJson"


def test_deep_nesting_after_an_invalid_member_is_refused() -> None:
    depth = 100_000
    body = b'{"jsonrpc":"1.0","a":' + b"[" * depth + b"]" * depth + b"}"
    assert verdict(body) == "NotJson"
    assert peek(b"[" * depth) is None
    assert not is_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"1",
        b'"text"',
        b"null",
        b"{}",
        b'{"method":"m"}',
        b'{"jsonrpc":"1.0","method":"m"}',
        b'{"jsonrpc":2.0,"method":"m"}',
        b'{"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","method":7}',
        b'{"jsonrpc":"2.0","method":null}',
        b'{"jsonrpc":"2.0","method":"m","id":true}',
        b'{"jsonrpc":"2.0","method":"m","id":[1]}',
        b'{"jsonrpc":"2.0","id":1e999,"result":{}}',
        # the same, found by the second parser
        b'"\\ud800"',
        b'{"a":"\\ud800"}',
        b'{"jsonrpc":"2.0","id":[],"result":"\\ud800"}',
        b'{"jsonrpc":"2.0","result":"\\ud800"}',
        b'{"jsonrpc":"2.0","method":7,"method":"m","a":"\\ud800"}',
    ],
)
def test_json_that_is_not_a_message_is_refused(body: bytes) -> None:
    """beat: JSON that is no JSON-RPC message gets 400, -32600."""
    assert is_valid(body)
    assert verdict(body) == "NotJsonRpc"


# Lone surrogates are in JSON's grammar.


@pytest.mark.parametrize(
    "body",
    [
        CALL % b'"\\ud800"',
        CALL % b'"\\uDFFF x"',
        CALL % b'["\\uD800",1e5]',
        b'{"jsonrpc":"2.0","id":1,"result":"\\ud800"}',
        b'{"jsonrpc":"2.0","id":1,"error":{"message":"\\ud800"}}',
        b'{"jsonrpc":"2.0","id":"\\ud800","result":{}}',
    ],
)
def test_a_lone_surrogate_passes(body: bytes) -> None:
    """beat: what is JSON passes byte-identical, lone surrogates too."""
    line, envelope = read_message(body)
    assert line is body
    assert envelope is not None


@pytest.mark.parametrize("number", [b"1e400", b"-1e400"])
def test_an_id_out_of_range_is_refused_beside_a_lone_surrogate_too(number: bytes) -> None:
    """The parser for these takes it, and an answer would have to have it."""
    message = b'{"jsonrpc":"2.0","id":%b,"method":"a","params":"%b"}'
    assert verdict(message % (number, b"a")) == "NotJsonRpc"
    assert verdict(message % (number, b"\\ud800")) == "NotJsonRpc"


def test_a_lone_surrogate_in_an_array_passes() -> None:
    body = b'["\\ud800"]'
    assert read_message(body) == (body, None)


def test_a_large_body_is_not_parsed_twice() -> None:
    filling = b"x" * SECOND_PARSE_BYTES
    assert verdict(CALL % (b'"%b"' % filling)) == "passes"
    assert verdict(CALL % (b'"%b\\ud800"' % filling)) == "NotJson"
    largest = CALL % (b'"\\ud800%b"' % filling[len(CALL % rb'"\ud800"') :])
    assert len(largest) == SECOND_PARSE_BYTES
    assert verdict(largest) == "passes"


# The two parsers agree.


def test_every_short_text_is_judged_as_the_standard_library_does() -> None:
    for size in range(1, 5):
        for letters in product(b'[]{},:"\\1-.e 0\n', repeat=size):
            body = bytes(letters)
            assert is_json(body) is is_valid(body), body
            if not body.isspace():
                assert (verdict(body) != "NotJson") is is_valid(body), body


@settings(deadline=None)
@given(JSON_VALUES, st.data())
@example("\ud800", None)
def test_any_value_passes_and_any_damaged_one_is_refused(
    value: Any, data: st.DataObject | None
) -> None:
    body = bytearray(CALL % json.dumps(value).encode())
    assert verdict(bytes(body)) == "passes"
    if data is not None:
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + 1] = data.draw(st.binary(max_size=2))
        assert (verdict(bytes(body)) != "NotJson") is is_valid(bytes(body))


@settings(deadline=None)
@given(st.binary())
def test_peek_never_raises(line: bytes) -> None:
    envelope = peek(line)
    assert envelope is None or is_valid(line)


@pytest.mark.parametrize(
    ("line", "name", "found"),
    [
        (b'{"params":{"name":"add","uri":"x"}}', "name", "add"),
        (b'{"params":{"name":"add","uri":"x"}}', "uri", "x"),
        (b'{"params":{"uri":"x"}}', "name", None),
        (b'{"params":{"name":"add"}}', "uri", None),
        (b'{"params":{"name":1}}', "name", None),
        (b'{"params":{"uri":null}}', "uri", None),
        (b'{"params":[]}', "name", None),
        (b'{"params":[]}', "uri", None),
        (b"{}", "name", None),
        (b"{}", "uri", None),
        (b"[", "name", None),
    ],
)
def test_the_name_in_a_message(line: bytes, name: str, found: str | None) -> None:
    assert named_param(line, name) == found
