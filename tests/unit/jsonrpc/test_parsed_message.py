"""A message of a client that is read once is the same as one that is read member by member."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.errors import EmptyBody, NotJson, NotJsonRpc, Refused
from mcpbridge.jsonrpc.envelope import peek, read_message
from mcpbridge.jsonrpc.members import members
from mcpbridge.jsonrpc.parsed_message import ParsedMessage, parse_message, with_envelope

IDS = st.none() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=3)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | st.just("1.0") | st.just(2.0),
        "id": IDS | st.just([1]) | st.just(True) | st.just("\ud800"),
        "method": st.sampled_from(["a", "", "\ud800", "caf\xe9", None, 7]),
        "params": st.just({}) | st.just([]) | st.just({"_meta": {"a": 1}, "b": "\ud800"}),
        "result": st.just({}),
        "error": st.just(7),
    },
)


def shown(found: dict[str, Any] | None) -> Any:
    return None if found is None else {name: bytes(raw) for name, raw in found.items()}


def refusal(read: Callable[[bytes], object], body: bytes) -> Refused | None:
    try:
        read(body)
    except Refused as error:
        return error
    return None


def parsed(body: bytes) -> ParsedMessage:
    found = parse_message(body)
    assert found is not None
    return found


def test_a_request_and_its_members() -> None:
    body = (
        b'\n{"jsonrpc":"2.0","id":1.0,\r\n"method":"a","params":{"b":[ 1 ],"_meta":{"c":"\xc3"}}}'
    )
    found = parsed(body.replace(b"\xc3", "\xe9".encode()))
    assert b"\n" not in found.line
    assert found.digest == found.line
    assert (found.envelope.id, found.envelope.method) == (1.0, "a")
    assert found.envelope.is_request
    assert shown(found.outer)["id"] == b"1.0"
    assert shown(found.params)["b"] == b"[ 1 ]"
    assert shown(found.meta) == {"c": '"\xe9"'.encode()}


@pytest.mark.parametrize(
    ("params", "found"),
    [(None, (None, None)), (b"[]", (None, None)), (b'{"_meta":1}', ({"_meta": b"1"}, None))],
)
def test_params_or_meta_that_are_missing(params: bytes | None, found: Any) -> None:
    member = b"" if params is None else b',"params":' + params
    message = parsed(b'{"jsonrpc":"2.0","method":"a"%b}' % member)
    assert (shown(message.params), shown(message.meta)) == found


def test_a_response_is_read() -> None:
    found = parsed(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    assert found.envelope.is_response
    assert shown(found.outer)["result"] == b"{}"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", EmptyBody),
        (b"\r\n", EmptyBody),
        (b"{", NotJson),
        (b'{"jsonrpc":"2.0","method":"a","b":"\xff"}', NotJson),
        (b'{"jsonrpc":"2.0","method":"\xff"}', NotJson),
        (b"7", NotJsonRpc),
        (b'{"jsonrpc":"1.0","method":"a"}', NotJsonRpc),
        (b'{"jsonrpc":"3.0","method":"a"}', NotJsonRpc),
        (b'{"jsonrpc":2.0,"method":"a"}', NotJsonRpc),
        (b'{"method":"a"}', NotJsonRpc),
        (b'{"jsonrpc":"2.0","id":null,"method":"a"}', NotJsonRpc),
        (b'{"jsonrpc":"2.0","id":[1],"method":"a"}', NotJsonRpc),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', NotJsonRpc),
        # On one line these would be JSON.
        (b'{"jsonrpc":"2.0","id":1,"method":"a\n"}', NotJson),
        (b'{"jsonrpc":"2.0",\r\n"id":1,"method":"a","params":{"b\r":1}}', NotJson),
    ],
)
def test_invalid_messages_are_refused(body: bytes, error: type[Refused]) -> None:
    with pytest.raises(error):
        parse_message(body)


def test_an_array_is_not_read() -> None:
    assert parse_message(b"[7]") is None


@given(MESSAGES, st.booleans())
def test_parse_message_agrees_with_read_message(content: dict[str, Any], spaced: bool) -> None:
    body = json.dumps(content, indent=1 if spaced else None).encode()
    refusals = [refusal(read_message, body), refusal(parse_message, body)]
    assert repr(refusals[0]) == repr(refusals[1])
    if refusals[0] is not None:
        return
    line, envelope = read_message(body)
    found = parsed(body)
    assert envelope is not None
    assert (found.line, shown(found.outer)) == (line, shown(members(line)))
    for name in ("method", "id", "is_request", "is_response"):
        assert getattr(found.envelope, name) == getattr(envelope, name)
    same = with_envelope(line, envelope)
    assert (shown(found.params), shown(found.meta)) == (shown(same.params), shown(same.meta))


def test_escapes_in_names_and_values_make_no_difference() -> None:
    body = rb'{"jsonrpc":"2\u002e0","id":1,"\u006dethod":"\u0061"}'
    found, envelope = parsed(body), peek(body)
    assert found.envelope == envelope
