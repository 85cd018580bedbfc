"""Messages written anew: what is not replaced stays as it is, byte for byte."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.jsonrpc.members import (
    cancellation_line,
    changed,
    elements_of,
    encode,
    error_code_of,
    error_line,
    integer_of,
    is_complete,
    is_null,
    members,
    members_of,
    meta_of,
    notification_line,
    number_of,
    request_line,
    result_line,
    string_of,
    strings_of,
    value,
    with_meta,
)
from mcpbridge.jsonrpc.sliced_parser import MAX_MEMBERS

Raw = msgspec.Raw
ANY_TEXT = st.text(st.characters(exclude_categories=()))
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
    max_leaves=8,
)
#: A lone surrogate, which the fast parser does not take.
LONE = rb'"\ud800"'


def texts(found: dict[str, msgspec.Raw] | None) -> dict[str, bytes]:
    assert found is not None
    return {name: bytes(raw) for name, raw in found.items()}


@pytest.mark.parametrize("lone", [b"1", LONE, b'{"a,}":' + LONE + b"}", rb'"\uDFFF\\"'])
@pytest.mark.parametrize("space", [b"", b" ", b"\t\r\n "])
def test_members_keep_their_bytes(lone: bytes, space: bytes) -> None:
    content = [b'"a"', b":", lone, b",", b'"b c"', b":", b'[ 1.0 , {"d":1e2} ]', b",", b'"\\u0065"']
    text = space + space.join([b"{", *content, b":", b'"caf\xc3\xa9"', b"}"]) + space
    assert texts(members(text)) == {
        "a": lone,
        "b c": b'[ 1.0 , {"d":1e2} ]',
        "e": b'"caf\xc3\xa9"',
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"{}", {}),
        (b'{"a":1,"a":2}', {"a": b"2"}),
        (b'{"a":1,"a":' + LONE + b"}", {"a": LONE}),
        (b'{"a":' + b"9" * 300 + b"}", {"a": b"9" * 300}),
        (rb'{"\ud800":{ }}', {"\ud800": b"{ }"}),
        (rb'{ "\ud800" : { } }', {"\ud800": b"{ }"}),
    ],
)
def test_members_of_unusual_objects(text: bytes, found: dict[str, bytes]) -> None:
    assert texts(members(text)) == found
    assert texts(members(Raw(text))) == found


@pytest.mark.parametrize("more", [b"", b',"b":[%b1]' % (b'{"x":1},' * (MAX_MEMBERS + 1))])
def test_values_are_not_decoded_however_large_the_object_is(more: bytes) -> None:
    assert texts(members(b'{"a":"\xff"%b}' % more))["a"] == b'"\xff"'


@pytest.mark.parametrize("inside", [b"", LONE])
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1",
        b"null",
        b"[%b]",
        b'{"a":%b',
        b'{"a":[%b],}',
        b'{"a":[%b,NaN]}',
        b'{"a":[%b]} x',
        b'{"a":[%b],"b":"caf\xc3',
        b'\xef\xbb\xbf{"a":[%b]}',
        b'{"a":%b' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_texts_without_members(text: bytes, inside: bytes) -> None:
    assert members(text.replace(b"%b", inside)) is None


@settings(deadline=None)
@given(st.dictionaries(ANY_TEXT, JSON_VALUES), st.booleans())
def test_any_object_survives_a_round_trip(content: dict[str, Any], spaced: bool) -> None:
    text = json.dumps(content, indent=1 if spaced else None).encode()
    found = members(text)
    assert found is not None
    assert {name: value(raw) for name, raw in found.items()} == content
    assert json.loads(encode(found)) == content
    assert all(bytes(raw) in text for raw in found.values())


@settings(deadline=None)
@given(st.binary())
def test_members_never_raises(text: bytes) -> None:
    members(text)
    members(b'{"\\ud800":' + text + b"}")


# Values.


@pytest.mark.parametrize(
    "text", ["1", '"\\ud800"', '["\\ud800",1.5]', "[1.5,null]", '{"a":"\\ud800"}', "9" * 300]
)
def test_value_decodes(text: str) -> None:
    assert value(text.encode()) == value(Raw(text.encode())) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"NaN",
        b"1e999",
        b"-1e999",
        b"9" * 5000,
        b"\xff",
        b"[1",
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_value_refuses_what_is_not_json(text: bytes) -> None:
    with pytest.raises(ValueError):
        value(text)


# Changes.


def test_changed_keeps_the_order_and_the_other_members() -> None:
    before = members(b'{"a": [ 1 ],"b":' + LONE + b',"c":1e2}')
    assert before is not None
    after = changed(before, {"a": 7, "b": msgspec.UNSET, "d": Raw(b"[ 2 ]"), "x": msgspec.UNSET})
    assert encode(after) == b'{"a":7,"c":1e2,"d":[ 2 ]}'
    assert texts(after) == {"a": b"7", "c": b"1e2", "d": b"[ 2 ]"}
    assert encode(before) == b'{"a":[ 1 ],"b":' + LONE + b',"c":1e2}'


@pytest.mark.parametrize(
    ("params", "changes", "after"),
    [
        (b'{"_meta":{"a":[ ],"b":1},"c":2}', {"b": 2}, b'{"_meta":{"a":[ ],"b":2},"c":2}'),
        (b'{"_meta":{"b":1},"c":2}', {"b": msgspec.UNSET}, b'{"c":2}'),
        (b'{"c":2}', {"b": "x"}, b'{"c":2,"_meta":{"b":"x"}}'),
        (b'{"_meta":7}', {"b": {"d": None}}, b'{"_meta":{"b":{"d":null}}}'),
        (b'{"_meta":{}}', {}, b"{}"),
        (rb'{"_meta":{"\ud800":1}}', {"b": 1}, rb'{"_meta":{"\ud800":1,"b":1}}'),
    ],
)
def test_with_meta(params: bytes, changes: dict[str, object], after: bytes) -> None:
    before = members(params)
    assert before is not None
    assert encode(with_meta(before, changes)) == after


def test_meta_of() -> None:
    assert texts(meta_of({"_meta": Raw(b'{"a":1}')})) == {"a": b"1"}
    assert meta_of({"_meta": Raw(b"[]")}) == {}
    assert meta_of({}) == {}


def test_lone_surrogates_are_escaped_wherever_they_are() -> None:
    message = {"\ud800": [Raw(b"[ 1 ]"), "\udfff", ("a",)], "b": {"c": None, "d": 1.5}}
    text = encode(message)
    assert text == rb'{"\ud800":[[ 1 ],"\udfff",["a"]],"b":{"c":null,"d":1.5}}'


# Answers.


def test_responses() -> None:
    assert result_line(7, {"a": Raw(b"[ ]")}) == b'{"jsonrpc":"2.0","id":7,"result":{"a":[ ]}}'
    assert result_line(Raw(b"1.0"), {}) == b'{"jsonrpc":"2.0","id":1.0,"result":{}}'
    assert json.loads(error_line("a", -32603, "no", {"b": 1})) == {
        "jsonrpc": "2.0",
        "id": "a",
        "error": {"code": -32603, "message": "no", "data": {"b": 1}},
    }
    assert "data" not in json.loads(error_line(None, -32603, "no"))["error"]


@pytest.mark.parametrize("text", [b'{"\x98":1}', b'{"jsonrpc":"2.0","id":1,"\x98":1}'])
def test_a_name_that_is_not_utf8(text: bytes) -> None:
    """The fast parser has an error of its own for that."""
    assert members(text) is None


@pytest.mark.parametrize(
    ("text", "string", "number", "integer"),
    [
        (None, None, None, None),
        (b'"a"', "a", None, None),
        (LONE, "\ud800", None, None),
        (b"1", None, 1, 1),
        (b"1.0", None, 1.0, 1),
        (b"1.5", None, 1.5, None),
        (b"true", None, None, None),
        (b"null", None, None, None),
        (b"1e999", None, None, None),
        (b'{"a":1}', None, None, None),
        (b"[" * 100_000 + b"]" * 100_000, None, None, None),
    ],
)
def test_scalars(text: bytes | None, string: Any, number: Any, integer: Any) -> None:
    raw = None if text is None else Raw(text)
    assert (string_of(raw), number_of(raw), integer_of(raw)) == (string, number, integer)
    assert is_null(raw) == (text in (None, b"null"))


@pytest.mark.parametrize(
    ("text", "elements", "strings"),
    [
        (None, None, []),
        (b'["a", 1 ,' + b'"b"]', [b'"a"', b"1", b'"b"'], ["a", "b"]),
        (b"[]", [], []),
        (b"{}", None, []),
        (b"[" * 100_000 + b"]" * 100_000, None, []),
    ],
)
def test_arrays(text: bytes | None, elements: Any, strings: list[str]) -> None:
    raw = None if text is None else Raw(text)
    found = elements_of(raw)
    assert (None if found is None else [bytes(each) for each in found]) == elements
    assert strings_of(raw) == strings


def test_members_of_anything() -> None:
    assert texts(members_of(Raw(b'{"a":1}'))) == {"a": b"1"}
    assert members_of(None) == members_of(b"[]") == members_of(b"") == {}


@pytest.mark.parametrize(("code", "read"), [("-32601", -32601), ("1.0", None), ('"1"', None)])
def test_error_codes(code: str, read: Any) -> None:
    assert error_code_of({"code": Raw(code.encode())}) == read
    assert error_code_of({}) is None


def test_requests_and_notifications() -> None:
    assert request_line(1, "a") == b'{"jsonrpc":"2.0","id":1,"method":"a"}'
    assert json.loads(request_line(Raw(b"1.0"), "a", {"b": Raw(b"2")}))["params"] == {"b": 2}
    assert notification_line("a") == b'{"jsonrpc":"2.0","method":"a"}'
    assert json.loads(notification_line("a", {"b": 1}))["params"] == {"b": 1}
    assert json.loads(cancellation_line(7)) == {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 7},
    }
    assert json.loads(cancellation_line("a", "why"))["params"] == {
        "requestId": "a",
        "reason": "why",
    }


names = st.sampled_from(["a", "A", "a b", "\u00e9", "\\u0061", '\\"', ""])
values = st.sampled_from(["1", "[ ]", '"x"', "{}", '"\u00e9"', '{"a":1,"a":2}'])
spaces = st.sampled_from(["", "", "", " "])


@given(st.lists(st.tuples(names, values)), spaces, spaces)
def test_no_member_is_overlooked(pairs: list[tuple[str, str]], before: str, behind: str) -> None:
    text = "{" + ",".join(f'{before}"{name}"{behind}:{value}' for name, value in pairs) + "}"
    found = members_of(text.encode())
    if is_complete(found, text.encode()):
        assert [*found] == [name for name, _ in pairs]
    elif len({*pairs}) == len(pairs) and all(x in ("a", "A", "a b", "") for x, _ in pairs):
        plain = {name for name, _ in pairs}
        assert before or behind or len(plain) < len(pairs) or not pairs
