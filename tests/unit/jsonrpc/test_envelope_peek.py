"""What the stream router reads in a message beyond its envelope."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.jsonrpc import surrogates
from mcpbridge.jsonrpc.envelope import (
    cancelled_id,
    peek,
    peek_again,
    progress_token,
    requested_token,
    split_batch,
)
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES

#: As text that UTF-8 can have; a lone surrogate is written as an escape.
TEXT = st.text(max_size=3) | st.sampled_from(["\ud800", "a\udfff", "[", "]", '"', ","])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SPACES = st.text(" \t\r\n", max_size=2)

LONE = "\ud800"
DEEP = b"[" * 200_000 + b"]" * 200_000


def line_of(params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": "m", "params": params}).encode()


@pytest.mark.parametrize("token", [0, 1, -1, "1", "", "é", 2.5, 10**30])
@pytest.mark.parametrize("message", ["", "\ud800 alone"])
def test_tokens_keep_their_type(token: Any, message: str) -> None:
    """promise: progress echoes its token; a lone surrogate beside it changes nothing."""
    read = progress_token(line_of({"message": message, "progressToken": token}))
    assert (read, type(read)) == (token, type(token))
    read = requested_token(line_of({"x": message, "_meta": {"progressToken": token}}))
    assert (read, type(read)) == (token, type(token))


@pytest.mark.parametrize(
    "params",
    [None, [], {}, 1, {"progressToken": None}, {"progressToken": True}, {"progressToken": [LONE]}],
)
def test_a_message_without_a_token(params: Any) -> None:
    assert progress_token(line_of(params)) is None
    assert requested_token(line_of({"_meta": params})) is None
    assert requested_token(line_of(params)) is None


@pytest.mark.parametrize("line", [b'{"method":"m"}', b"{", b"[]", b'{"params":' + DEEP + b"}"])
def test_a_message_without_params(line: bytes) -> None:
    assert progress_token(line) is None
    assert requested_token(line) is None
    assert cancelled_id(line) is msgspec.UNSET


@pytest.mark.parametrize("ident", [1, "1", None, 1.5])
def test_the_id_of_a_cancellation(ident: Any) -> None:
    assert cancelled_id(line_of({"requestId": ident, "reason": LONE})) == ident
    assert cancelled_id(line_of({"reason": "x"})) is msgspec.UNSET


def test_a_lone_surrogate_hides_no_envelope() -> None:
    line = b'{"jsonrpc":"2.0","id":"7","result":{"text":"\\ud800"}}'
    assert peek(line) is None
    envelope = peek_again(line)
    assert envelope is not None
    assert (envelope.id, envelope.is_response) == ("7", True)


def test_a_large_line_with_a_lone_surrogate_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    filling = b'["\\ud800",%b]' % (b"[]," * LARGE_BYTES + b"1")
    built: list[bytes] = []

    def loads(text: bytes) -> Any:
        built.append(text)
        return json.loads(text)

    monkeypatch.setattr(surrogates, "loads", loads)
    envelope = peek_again(b'{"jsonrpc":"2.0","id":"7","a":1,"error":%b}' % filling)
    assert envelope is not None
    assert (envelope.id, envelope.is_response) == ("7", True)
    assert built == [b'"2.0"', b'"7"']
    assert peek_again(b'{"jsonrpc":"2.0","id":"7","method":%b}' % filling) is None
    assert peek_again(b'{"jsonrpc":"2.0","id":%b}' % filling) is None
    assert peek_again(b'{"jsonrpc":"2.0","id":1,"result":%b' % filling) is None


def test_an_id_of_large_bytes_is_read_behind_a_large_result() -> None:
    """LARGE_BYTES bounds each member of an envelope by itself, wherever it is."""
    line = b'{"result":["\\ud800",%b1],"jsonrpc":"2.0","id":"%b"}'
    ident = b"i" * (LARGE_BYTES - len('""'))
    envelope = peek_again(line % (b"[]," * LARGE_BYTES, ident))
    assert envelope is not None
    assert envelope.id == ident.decode()
    assert peek_again(line % (b"", ident + b"i")) is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"text",
        b"1",
        b"[]",
        b'{"jsonrpc":"1.0","id":1,"result":"\\ud800"}',
        b'"\\ud800"',
        b'["\\ud800"]',
        b'{"jsonrpc":"2.0","id":1,"result":"\\ud800"',
        b'{"jsonrpc":"2.0","id":1,"result":"\\ud800\xff"}',
        b'"\\ud800"' + DEEP,
        b'["\\ud800",' + DEEP + b"]",
    ],
)
def test_lines_without_an_envelope(line: bytes) -> None:
    assert peek_again(line) is None


@given(st.lists(st.tuples(SPACES, VALUES, SPACES)), st.booleans())
def test_elements_of_a_batch_are_byte_identical(
    elements: list[tuple[str, Any, str]], ascii_only: bool
) -> None:
    texts = []
    for _, value, _ in elements:
        text = json.dumps(value, ensure_ascii=ascii_only)
        try:
            texts.append(text.encode())
        except UnicodeEncodeError:
            texts.append(json.dumps(value).encode())
    batch = b",".join(
        before.encode() + text + after.encode()
        for (before, _, after), text in zip(elements, texts, strict=True)
    )
    assert split_batch(b" [" + batch + b"]\r") == texts


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"a":"\\ud800"}',
        b"",
        b"[",
        b"[1,]",
        b"[1 2]",
        b"[] []",
        b'["\\ud800"',
        b'["\\ud800",]',
        DEEP,
        b"[\xff]",
    ],
)
def test_lines_that_are_not_a_batch(line: bytes) -> None:
    assert split_batch(line) is None


def test_empty_batch() -> None:
    assert split_batch(b" [ ] ") == []
