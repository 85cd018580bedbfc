"""Large messages, read in slices: the same envelope, tokens and refusals as of small ones."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.errors import (
    EmptyBody,
    HeaderMismatch,
    InvalidParams,
    NotJson,
    NotJsonRpc,
    Refused,
    TooComplex,
)
from mcpbridge.jsonrpc.envelope import cancelled_id, peek, read_message, requested_token
from mcpbridge.jsonrpc.large_messages import (
    MAX_HEAD_BYTES,
    read_array,
    read_batch,
    read_foreign_batch,
    read_large,
    read_whole,
    read_whole_later,
)
from mcpbridge.jsonrpc.members import members, string_of
from mcpbridge.jsonrpc.parsed_message import ParsedMessage, parse_message, with_envelope
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, MAX_MEMBERS, at_once
from mcpbridge.mcp.header_validation import Annotation, annotated, check_params
from mcpbridge.mcp.modern_request import (
    CLIENT_CAPABILITIES,
    CLIENT_INFO,
    LISTEN,
    LOG_LEVEL,
    MAX_CLIENT_INFO_BYTES,
    MAX_LISTEN_BYTES,
    PROTOCOL_VERSION,
    ModernRequest,
    read_request,
)
from mcpbridge.mcp.multiplexer import Multiplexer
from mcpbridge.translation.legacy_requests import LegacyRequests

VERSION = "2026-07-28"
META: dict[str, object] = {PROTOCOL_VERSION: VERSION, CLIENT_CAPABILITIES: {}}
BIG = "x" * LARGE_BYTES

TOKENS = st.none() | st.integers(-9, 9) | st.text(max_size=3) | st.just([1]) | st.just(0.5)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | st.just("1.0"),
        "id": TOKENS,
        "method": st.sampled_from(["a", "notifications/cancelled", "", None, 7]),
        "result": st.sampled_from([{}, None, [], {"a": [1]}]),
        "error": st.sampled_from([{}, {"code": 1}]),
        "params": st.sampled_from([None, [], 7])
        | st.fixed_dictionaries(
            {},
            optional={
                "requestId": TOKENS,
                "progressToken": TOKENS,
                "_meta": st.sampled_from([None, []])
                | st.fixed_dictionaries({}, optional={"progressToken": TOKENS}),
                "arguments": st.just({"a": [1, {"b": "c"}]}),
            },
        ),
        "x": st.just([]),
    },
)


def large(body: bytes, size: int = 64) -> ParsedMessage:
    found = at_once(read_large(body, size=size))
    assert found is not None
    return found


@given(MESSAGES, st.sampled_from([None, 2]), st.sampled_from([16, 64, 4096]))
def test_a_large_message_is_read_like_a_small_one(
    content: dict[str, Any], indent: int | None, size: int
) -> None:
    body = json.dumps(content, indent=indent).encode() + b"\r\n"
    refused: Refused | None = None
    try:
        line, envelope = read_message(body)
    except Refused as error:
        refused = error
    if refused is not None:
        with pytest.raises(type(refused)) as caught:
            large(body, size)
        assert str(caught.value) == str(refused)
        return
    found = large(body, size)
    assert found.line == line
    assert envelope is not None
    for name in ("jsonrpc", "id", "method"):
        assert getattr(found.envelope, name) == getattr(envelope, name)
    assert found.envelope.is_response == envelope.is_response
    assert requested_token(found.digest) == requested_token(line)
    assert cancelled_id(found.digest) == cancelled_id(line)
    assert found.outer == members(line)
    params = members(found.outer["params"]) if "params" in found.outer else None
    assert found.params == params
    meta = None if params is None or "_meta" not in params else members(params["_meta"])
    assert found.meta == meta


@given(MESSAGES, st.sampled_from(["", "é", "\ud800"]), st.sampled_from([None, 2]))
def test_read_whole_agrees_with_read_large_or_returns_none(
    content: dict[str, Any], text: str, indent: int | None
) -> None:
    body = json.dumps({**content, "text": text}, indent=indent, ensure_ascii=text != "é").encode()
    found = read_whole(body)
    assert at_once(read_whole_later(body)) == found
    if found is not None:
        assert found == read_message(body)
    elif text != "\ud800" and content.get("method") != "":
        with pytest.raises(Refused):
            read_message(body)


@pytest.mark.parametrize("method", ["a", "é"])
def test_read_whole_reads_a_message(method: str) -> None:
    body = f'\n{{"jsonrpc":"2.0",\n"method":"{method}"}}'.encode()
    assert read_whole(body) == read_message(body)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"jsonrpc":"2.0","method":"a","b":"\xff"}'])
def test_read_whole_leaves_the_rest_to_read_large(body: bytes) -> None:
    assert read_whole(body) is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", EmptyBody),
        (b" " * 200, EmptyBody),
        (b"\r\n", EmptyBody),
        (b" " * 200 + b"x", NotJson),
        (b"7", NotJsonRpc),
        (b'"x', NotJsonRpc),
        (b"x", NotJson),
        (b'{"jsonrpc":"2.0","method":"\xff"}', NotJson),
        (b'{"jsonrpc":"2.0","id":"%b","method":"x"}' % (b"a" * MAX_HEAD_BYTES), TooComplex),
        (b'{"jsonrpc":"2.0","id":1,"method":"%b"}' % (b"a" * MAX_HEAD_BYTES), TooComplex),
    ],
)
def test_invalid_messages_are_refused(body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        large(body)


def test_a_line_end_within_a_string_is_no_json() -> None:
    with pytest.raises(NotJson):
        large(b'{"jsonrpc":"2.0","method":"a","params":["x\ny"]}')


def test_a_token_that_is_too_long_is_ignored() -> None:
    token = "t" * MAX_HEAD_BYTES
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "a", "params": {"_meta": {"progressToken": token}}}
    )
    assert requested_token(large(body.encode()).digest) is None


def test_an_id_of_max_head_bytes_is_read_behind_large_params() -> None:
    ident = "i" * (MAX_HEAD_BYTES - len('""'))
    body = json.dumps({"jsonrpc": "2.0", "params": {"x": BIG}, "id": ident, "method": "a"})
    assert large(body.encode(), 4096).envelope.id == ident


def test_a_token_of_max_head_bytes_is_read_behind_large_params() -> None:
    token = "t" * (MAX_HEAD_BYTES - len('""'))
    params = {"x": BIG, "_meta": {"progressToken": token}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "a", "params": params})
    assert requested_token(large(body.encode(), 4096).digest) == token


def test_read_large_returns_none_for_an_array() -> None:
    body = b' \r\n[{"a":1},\r\n[2]]'
    assert at_once(read_large(body)) is None
    line, spans = at_once(read_array(body, 2, messages=False))
    assert [line[begin:end] for begin, end in spans] == [b'{"a":1}', b"[2]"]
    assert b"\n" not in line
    with pytest.raises(TooComplex):
        at_once(read_array(body, 1, messages=False))


def test_the_messages_of_a_batch() -> None:
    big = {"jsonrpc": "2.0", "id": 2, "method": "b", "params": {"_meta": {"progressToken": "t"}}}
    big["params"]["x"] = BIG  # type: ignore[index]
    small = {"jsonrpc": "2.0", "id": 1, "method": "a"}
    body = json.dumps([small, big, {"jsonrpc": "2.0", "id": 3, "result": {}}]).encode()
    found = at_once(read_batch(body, 3))
    assert [json.loads(line) for line, _, _ in found][:2] == [small, big]
    assert [envelope.id for _, envelope, _ in found] == [1, 2, 3]
    assert [requested_token(digest) for _, _, digest in found] == [None, "t", None]
    assert len(found[1][2]) < 200


@pytest.mark.parametrize(
    "element",
    [
        *(b"{}", b'{"jsonrpc":"2.0"}', b'{"jsonrpc":"2.0","id":1}'),
        *(b"1", b"[]", b'"%b"' % BIG.encode()),
    ],
)
def test_a_batch_of_anything_else_is_refused(element: bytes) -> None:
    with pytest.raises(NotJsonRpc):
        at_once(read_batch(b"[%b]" % element, 9))


# Requests of 2026-07-28.


def asked(
    method: str = "tools/call",
    meta: dict[str, object] | None = None,
    params: dict[str, object] | None = None,
) -> ModernRequest:
    content = {"name": "t", "_meta": {**META, **(meta or {})}, **(params or {})}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": content}).encode()
    found = large(body, 4096)
    request = read_request(found, version_header=VERSION)
    parsed = parse_message(body)
    assert parsed is not None
    same = read_request(parsed, version_header=VERSION)
    for name in ModernRequest.__struct_fields__:
        assert getattr(request, name) == getattr(same, name)
    return request


def test_a_large_request_is_read_and_forwarded_like_a_small_one() -> None:
    request = asked(
        meta={"progressToken": "t", LOG_LEVEL: "info", CLIENT_INFO: {"name": "x", "version": "1"}},
        params={"arguments": {"a": [{"b": BIG}] * 3}},
    )
    said = json.loads(Multiplexer[int]().send_to_backend(request, 1))
    assert said["params"]["arguments"] == {"a": [{"b": BIG}] * 3}
    assert said["params"]["_meta"]["progressToken"] == said["id"] == 1
    _, line = LegacyRequests().forward(request)
    assert json.loads(line)["params"]["arguments"] == {"a": [{"b": BIG}] * 3}
    assert json.loads(line)["params"]["_meta"] == {"progressToken": 1}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "params is missing"),
        ({"params": []}, "params must be an object"),
        ({"params": {}}, "params._meta is missing"),
        ({"params": {"_meta": 7}}, "params._meta must be an object"),
    ],
)
def test_a_missing_member_is_named(params: dict[str, object], words: str) -> None:
    found = large(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "a", **params}).encode())
    with pytest.raises(InvalidParams) as caught:
        read_request(found, version_header=VERSION)
    assert str(caught.value) == words
    assert caught.value.ident == 1


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({CLIENT_INFO: {"name": "x" * MAX_CLIENT_INFO_BYTES}}, "MAX_CLIENT_INFO_BYTES"),
        ({CLIENT_CAPABILITIES: {"x": [{}] * 100_000}}, "clientCapabilities has more than"),
        ({LOG_LEVEL: [{}] * 100}, "must be one of"),
        ({"progressToken": {"a": 1}}, "must be a string or an integer"),
        ({PROTOCOL_VERSION: [1]}, "must be a string"),
    ],
)
def test_members_that_are_too_large_or_of_another_type_are_not_built(
    meta: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        asked(meta=meta)
    assert words in str(caught.value)


def test_a_listen_may_not_be_as_large_as_other_requests() -> None:
    with pytest.raises(TooComplex, match="MAX_LISTEN_BYTES"):
        asked(LISTEN, params={"notifications": {"x": "y" * MAX_LISTEN_BYTES}})
    assert asked(LISTEN, params={"notifications": {"x": BIG}}).method == LISTEN


def test_headers_are_compared_with_large_arguments_without_building_them() -> None:
    annotations = (
        Annotation(("a",), "Mcp-Param-A", "string"),
        Annotation(("b", "c"), "Mcp-Param-C", "integer"),
        Annotation(("b", "d"), "Mcp-Param-D", "integer"),
        Annotation(("list",), "Mcp-Param-L", "string"),
        Annotation(("list", "x"), "Mcp-Param-X", "string"),
        Annotation(("none",), "Mcp-Param-N", "string"),
    )

    def headers(name: str) -> list[str]:
        return {"Mcp-Param-A": ["x"], "Mcp-Param-C": ["7"]}.get(name, [])

    arguments: dict[str, object] = {"list": [{"y": BIG}], "a": "x", "b": {"c": 7, "d": {}}}
    check_params(asked(params={"arguments": arguments}), annotations, headers)
    for wrong in ({"a": "y"}, {"b": {"c": 8}}, {"none": "x"}, {str(n): n for n in range(20_000)}):
        with pytest.raises(HeaderMismatch):
            check_params(asked(params={"arguments": {**arguments, **wrong}}), annotations, headers)


# Of backends.


def test_members_of_a_large_object() -> None:
    few = json.dumps({"a": {"b": [{"c": 1}] * 20_000}, "d": 1}).encode()
    assert members(few) == {"a": few[6:-9], "d": msgspec.Raw(b"1")} or len(members(few) or {}) == 2
    assert (members(few) or {})["d"] == msgspec.Raw(b"1")
    assert members(msgspec.Raw(few)) == members(few)
    many = json.dumps({str(each): each for each in range(MAX_MEMBERS + 1)}).encode()
    assert len(many) > LARGE_BYTES
    assert members(many) is None
    assert members(b"[%b]" % few) is None
    surrogate = b'{"a":"\\ud800","b":"%b"}' % BIG.encode()
    found = members(surrogate)
    assert found is not None
    assert bytes(found["a"]) == b'"\\ud800"'


def test_string_of_reads_strings_only() -> None:
    assert string_of(msgspec.Raw(b'"a"')) == "a"
    assert string_of(msgspec.Raw(b'"\\ud800"')) == "\ud800"
    for odd in (b"[%b]" % (b"{}," * 9), b"7", b"", b"x", b'"', b'"\xff"', b'"\\ud800'):
        assert string_of(msgspec.Raw(odd)) is None
    assert string_of(None) is None


def test_annotations_of_a_large_list_of_tools() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A"}}}
    tools: list[object] = [{"name": f"t{n}", "description": BIG[:500]} for n in range(200)]
    assert annotated(json.dumps({"tools": tools, "nextCursor": "c"}).encode()) == ({}, "c")
    tools += [{"name": "t1", "inputSchema": schema}, 7, {"name": 7}, {"inputSchema": schema}]
    tools.append({"name": "big", "inputSchema": {**schema, "title": BIG * 20}})
    found, cursor = annotated(json.dumps({"tools": tools}).encode())
    assert (list(found), cursor) == (["t1"], None)
    assert found["t1"][0].header == "Mcp-Param-A"
    tools.append({"name": "t1", "inputSchema": {"type": "object"}})
    assert annotated(json.dumps({"tools": tools}).encode())[0] == {}
    for odd in ({"tools": {"x-mcp-header": BIG}}, {"tools": [schema] * 10_001}):
        assert annotated(json.dumps(odd).encode())[0] == {}


def test_peek_reads_a_large_line() -> None:
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"x": BIG}}).encode()
    envelope = peek(line)
    assert envelope is not None
    assert envelope.is_response


def test_a_name_that_is_not_utf8_is_refused() -> None:
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "?", "_meta": META}}
    ).encode()
    envelope = peek(body)
    assert envelope is not None
    broken = with_envelope(body.replace(b'"?"', b'"\xff"'), envelope)
    with pytest.raises(InvalidParams, match="must be a string"):
        read_request(broken, version_header=VERSION)


@pytest.mark.parametrize("padding", ["", BIG * 10])
def test_a_foreign_batch_passes_but_for_an_id_of_null(padding: str) -> None:
    """Its elements are for the backend to judge, small or large; nobody could answer such an id."""
    fine = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"p": padding}}).encode()
    body = b'[7, %b,\n{}, "%b"]' % (fine, padding.encode())
    assert at_once(read_foreign_batch(body, 4)) == (body.replace(b"\n", b" "), 4)
    with pytest.raises(NotJsonRpc, match="not null"):
        at_once(read_foreign_batch(b"[%b]" % fine.replace(b'"id": 1', b'"id": null'), 3))


def test_a_whole_message_whose_id_is_null_is_looked_at_again() -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": None, "method": "x", "params": {"p": BIG}}).encode()
    assert read_whole(body) is None
    with pytest.raises(NotJsonRpc, match="not null"):
        at_once(read_large(body))
