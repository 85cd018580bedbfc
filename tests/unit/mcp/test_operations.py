"""
What a message asks for, read so that no other parser understands another operation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpbridge.errors import BridgeError, NotJson, NotJsonRpc, TooComplex
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, at_once
from mcpbridge.mcp.modern_request import LISTEN
from mcpbridge.mcp.operations import (
    COMPLETE,
    NAMED_BY,
    Operation,
    read_large_operations,
    read_operations,
)

#: The most elements of a batch.
MOST = 10
CALL = Operation("tools/call", "add")


def large(body: bytes) -> bytes:
    """Return the same message or batch, so large that it is read in slices."""
    at = max(body.find(b"{"), body.find(b"[")) if body[:1] not in b"[{" else 0
    return body[: at + 1] + b" " * LARGE_BYTES + body[at + 1 :]


def read_in_slices(body: bytes) -> list[Operation]:
    return at_once(read_large_operations(large(body), MOST))


def read_by_size(body: bytes) -> list[Operation]:
    return at_once(read_large_operations(body, MOST))


readers = pytest.mark.parametrize("read", [read_operations, read_by_size, read_in_slices])
Read = Callable[[bytes], list[Operation]]


@readers
@pytest.mark.parametrize(
    ("body", "operations"),
    [
        (b'{"method":"ping"}', [("ping", None)]),
        (b'{"method":"ping","params":{"name":"x","name":"y"}}', [("ping", None)]),
        (b'{"method":"ping","params":[1]}', [("ping", None)]),
        (b'{"method":"tools/call","params":{"name":"add"}}', [("tools/call", "add")]),
        (b'{"params":{"name":"add"},"method":"tools/call"}', [("tools/call", "add")]),
        (b' {"method" : "tools/call" , "params": {"name" :"add"} } ', [("tools/call", "add")]),
        (b'{"m\\u0065thod":"tools\\/call","params":{"n\\u0061me":"\\u0061dd"}}', [CALL]),
        (
            '{"method":"tools/call","params":{"name":"caf\u00e9"}}'.encode(),
            [("tools/call", "caf\u00e9")],
        ),
        (
            b'{"method":"tools/call","params":{"name":"add","arguments":{"name":1,"Name":2}}}',
            [CALL],
        ),
        (b'{"method":"prompts/get","params":{"name":"p","uri":1}}', [("prompts/get", "p")]),
        (b'{"method":"resources/read","params":{"uri":"u","name":1}}', [("resources/read", "u")]),
        (b'{"method":"resources/subscribe","params":{"uri":"u"}}', [("resources/subscribe", "u")]),
        (
            b'{"method":"resources/unsubscribe","params":{"uri":"u"}}',
            [("resources/unsubscribe", "u")],
        ),
        (b'{"method":"tasks/get","params":{"taskId":"t"}}', [("tasks/get", None)]),
        (b'{"id":1,"result":{}}', []),
        (b"{}", []),
        (b'{"method":"x","n":1e999999,"m":123456789012345678901234567890}', [("x", None)]),
        (b'{"method":"x","text":"\\ud800"}', [("x", None)]),
    ],
)
def test_the_operation_of_a_message(
    read: Read, body: bytes, operations: list[tuple[str, str | None]]
) -> None:
    assert read(body) == operations


@readers
def test_a_batch_has_the_operations_of_all_elements(read: Read) -> None:
    body = (
        b'[{"method":"ping"},{"id":1,"result":{}},'
        b'{"method":"tools/call","params":{"name":"add"}},{"method":"ping"}]'
    )
    assert read(body) == [("ping", None), CALL, ("ping", None)]
    assert read(b"[]") == []


def test_elements_of_a_batch_may_be_large() -> None:
    call = large(b'{"method":"tools/call","params":{"name":"add"}}')
    assert read_in_slices(b'[{"method":"ping"},%b,%b]' % (call, call)) == [
        ("ping", None),
        CALL,
        CALL,
    ]


@pytest.mark.parametrize("body", [b"1", b"null", b'"method"', b"true", b'{"method":null}'])
def test_what_is_no_message_has_no_operation(body: bytes) -> None:
    """It is refused elsewhere."""
    assert read_operations(body) == []


@readers
@pytest.mark.parametrize(
    "body",
    [
        b'{"method":"ping","method":"tools/call"}',
        b'{"method":"ping","Method":"tools/call"}',
        b'{"METHOD":"tools/call"}',
        b'{"method":"ping","meth\\u006fd":"tools/call"}',
        b'{"method":"tools/call","params":{"name":"x"},"params":{"name":"y"}}',
        b'{"method":"tools/call","params":{"name":"x"},"Params":{"name":"y"}}',
        '{"method":"tools/call","params":{"name":"x"},"param\u017f":{}}'.encode(),
        b'{"method":"tools/call","params":{"name":"x","name":"y"}}',
        b'{"method":"tools/call","params":{"name":"x","NAME":"y"}}',
        b'{"method":"tools/call","params":{"Name":"x"}}',
        # Also where no name is read.
        b'{"method":"tools/list","Params":{}}',
        b'{"method":"tools/call","params":{}}',
        b'{"method":"tools/call","params":["add"]}',
        b'{"method":"tools/call","params":null}',
        b'{"method":"tools/call"}',
        b'{"method":"tools/call","params":{"name":1}}',
        b'{"method":"tools/call","params":{"name":null}}',
        b'{"method":"resources/read","params":{"name":"x"}}',
        b'{"method":1}',
        b'{"method":{}}',
        b"[1]",
        b'[[{"method":"ping"}]]',
        b'[{"method":"ping"},null]',
        b'[{"method":"ping","Method":"x"}]',
    ],
)
def test_what_some_server_reads_in_another_way_is_refused(read: Read, body: bytes) -> None:
    with pytest.raises(NotJsonRpc):
        read(body)


@readers
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"method":"ping"',
        b'{"method":"ping"} {"method":"tools/call"}',
        b'{"method":"ping",}',
        b"{'method':'ping'}",
        b'{"method":"pi\nng"}',
        b'{"method":"ping","x":"\xff"}',
        b'{"method":"ping","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'[{"method":"ping"}',
    ],
)
def test_what_is_no_json_is_refused(read: Read, body: bytes) -> None:
    with pytest.raises(NotJson):
        read(body)


def test_a_byte_order_mark_and_utf_16_are_no_json() -> None:
    for body in (b'\xef\xbb\xbf{"method":"ping"}', '{"method":"ping"}'.encode("utf-16")):
        with pytest.raises(NotJson):
            read_operations(body)


def listen(filter_: str, more: str = "") -> bytes:
    return f'{{"method":"{LISTEN}","params":{{"notifications":{filter_}{more}}}}}'.encode()


@pytest.mark.parametrize(
    ("body", "uris"),
    [
        (listen("{}"), []),
        (listen('{"toolsListChanged":true}'), []),
        (listen('{"resourceSubscriptions":null}'), []),
        (listen('{"resourceSubscriptions":[]}'), []),
        (listen('{"resourceSubscriptions":["a","b"]}'), ["a", "b"]),
        (listen('{"resource\\u0053ubscriptions":["\\u0061"]}'), ["a"]),
        (listen("1"), []),
        (f'{{"method":"{LISTEN}"}}'.encode(), []),
        (f'{{"method":"{LISTEN}","params":[]}}'.encode(), []),
    ],
)
def test_a_subscription_asks_for_each_of_its_resources(body: bytes, uris: list[str]) -> None:
    assert read_operations(body) == [
        (LISTEN, None),
        *(("resources/subscribe", each) for each in uris),
    ]


@pytest.mark.parametrize(
    "body",
    [
        listen('{"resourceSubscriptions":"a"}'),
        listen('{"resourceSubscriptions":[1]}'),
        listen('{"resourceSubscriptions":{}}'),
        listen('{"resourceSubscriptions":[],"resourceSubscriptions":["a"]}'),
        listen('{"ResourceSubscriptions":["a"]}'),
        listen("{}", ',"notifications":{"resourceSubscriptions":["a"]}'),
        listen("{}", ',"Notifications":{"resourceSubscriptions":["a"]}'),
    ],
)
def test_a_subscription_that_may_be_read_in_another_way_is_refused(body: bytes) -> None:
    with pytest.raises(NotJsonRpc):
        read_operations(body)


def test_a_subscription_that_is_read_in_slices_is_refused() -> None:
    with pytest.raises(TooComplex, match=LISTEN):
        read_in_slices(listen("{}"))


def completion(params: str) -> bytes:
    return f'{{"method":"{COMPLETE}","params":{params}}}'.encode()


@pytest.mark.parametrize(
    "params",
    ['{"ref":{"type":"ref/prompt","name":"a"},"argument":{"name":"x"}}', '{"ref":1}', "{}", "[]"],
)
def test_a_completion_is_one_operation(params: str) -> None:
    assert read_operations(completion(params)) == [(COMPLETE, None)]


@pytest.mark.parametrize(
    "params",
    [
        '{"ref":{"name":"a","name":"b"}}',
        '{"ref":{"name":"a","Name":"b"}}',
        '{"ref":{"uri":"a","ur\\u0069":"b"}}',
        '{"ref":{"name":"a"},"ref":{"name":"b"}}',
        '{"ref":{"type":"ref/prompt","TYPE":"ref/resource"}}',
        '{"REF":{"name":"a"}}',
    ],
)
def test_a_completion_that_may_be_read_in_another_way_is_refused(params: str) -> None:
    with pytest.raises(NotJsonRpc):
        read_operations(completion(params))


def test_a_completion_that_is_read_in_slices_is_refused() -> None:
    with pytest.raises(TooComplex, match=COMPLETE):
        read_in_slices(completion("{}"))


def test_names_that_are_as_large_as_messages_are_refused() -> None:
    """A name of LARGE_BYTES is not decoded at once."""
    name = b"x" * LARGE_BYTES
    for body in (
        b'{"method":"tools/call","params":{"name":"%b"}}' % name,
        b'{"method":"%b"}' % name,
    ):
        with pytest.raises(NotJsonRpc, match=str(LARGE_BYTES)):
            at_once(read_large_operations(body, MOST))


def test_a_batch_of_too_many_elements_is_refused() -> None:
    assert len(read_in_slices(b"[%b]" % b",".join([b'{"method":"x"}'] * MOST))) == MOST
    with pytest.raises(TooComplex):
        read_in_slices(b"[%b]" % b",".join([b'{"method":"x"}'] * (MOST + 1)))


# Other parsers.


Pairs = list[tuple[str, Any]]
#: What one of these parsers has understood: the method, and the member that names something.
Understood = tuple[object, object]


class _Pairs(list[Any]):
    """The members of an object."""


def pick(pairs: Iterable[tuple[str, Any]], name: str, *, folds: bool, first: bool) -> list[Any]:
    """Return the values that a parser finds under a name, the one that counts last."""
    found = [
        value
        for key, value in pairs
        if key == name or (folds and key.casefold() == name.casefold())
    ]
    return found[::-1] if first else found


def understood(message: Pairs, *, folds: bool, first: bool, merges: bool) -> Understood:
    """
    Return what a parser understands that ignores case or not, takes the first or the last of
    several members, and merges several objects or not (Go does, into one structure).
    """
    methods = pick(message, "method", folds=folds, first=first)
    method = methods[-1] if methods else None
    all_params = [
        each if type(each) is _Pairs else _Pairs()
        for each in pick(message, "params", folds=folds, first=first)
    ]
    params = all_params if merges else all_params[-1:]
    pairs = [pair for each in params for pair in each]
    key = NAMED_BY.get(method) if isinstance(method, str) else None
    names = [] if key is None else pick(pairs, key, folds=folds, first=first)
    return method, names[-1] if names else None


def rendered(data: Any, value: Any) -> str:
    """Return JSON of a value, its strings with or without escapes."""
    if isinstance(value, _Pairs):
        inner = ",".join(f"{rendered(data, name)}:{rendered(data, each)}" for name, each in value)
        return f"{{{inner}}}"
    if isinstance(value, str) and data.draw(st.booleans()):
        return '"' + "".join(f"\\u{ord(each):04x}" for each in value) + '"'
    return json.dumps(value, ensure_ascii=data.draw(st.booleans()))


METHODS = st.sampled_from(["tools/call", "resources/read", "ping", "Tools/Call", LISTEN, None, 1])
NAMES = st.sampled_from(["add", "echo", "ADD", "", None, 1])
INNER = st.sampled_from(["name", "Name", "uri", "URI", "NAME", "name ", "x", "params", "method"])
OUTER = st.sampled_from(
    ["method", "Method", "METHOD", "params", "Params", "param\u017f", "id", "x", "name"]
)
objects = st.lists(st.tuples(INNER, NAMES), max_size=4).map(_Pairs)
values = st.one_of(METHODS, objects, st.just([1]))
messages = st.lists(
    st.one_of(
        st.tuples(st.just("method"), METHODS),
        st.tuples(st.just("params"), objects),
        st.tuples(OUTER, values),
    ),
    max_size=5,
).map(_Pairs)


@given(messages, st.data())
def test_no_other_parser_understands_another_operation(message: Any, data: Any) -> None:
    """Or the message is refused, however it is read."""
    body = rendered(data, message).encode()
    for read in (read_operations, read_in_slices):
        try:
            found = read(body)
        except BridgeError:
            continue
        for folds, first, merges in product((False, True), repeat=3):
            method, name = understood(message, folds=folds, first=first, merges=merges)
            assert found == ([] if method is None else [(method, name)])


@example('{"method":"ping"}')
@example('{"method":"ping","method":"x"}')
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    try:
        read_operations(body)
    except (NotJson, NotJsonRpc):
        return
    json.loads(body)


CALLED = (
    b'{"id":1,"method":"tools/call","params":{"name":"add",'
    b'"arguments":{"name":1,"x":"\\u0061\xc3\xa9"}}}'
)


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (CALLED, CALL),
        (CALLED + b"\n", CALL),
        (CALLED.replace(b":", b" : "), CALL),
        (CALLED.replace(b"tools/call", b"tools\\/call"), CALL),
        (b'{"method":"ping","x":"\\u0061"}', Operation("ping")),
        (b'{"method":"completion/complete","x":"\\u0061"}', Operation(COMPLETE)),
        (CALLED.replace(b'"x"', b'"NAME"'), CALL),
    ],
)
def test_messages_with_escapes_and_names_elsewhere(body: bytes, operation: Operation) -> None:
    assert read_operations(body) == [operation]


@pytest.mark.parametrize(
    "body",
    [
        CALLED.replace(b'"arguments"', b'"NAME"'),
        CALLED.replace(b'"arguments"', b'"n\\u0061me"'),
        CALLED.replace(b'"arguments"', b'"name"'),
        CALLED.replace(b'"id"', b'"Method"'),
        CALLED.replace(b'"id"', b'"param\xc5\xbf"'),
        CALLED.replace(b'"id"', b'"params"'),
        CALLED.replace(b'"id"', b'"method"'),
        CALLED.replace(b'"name":"add"', b'"name":["add"]'),
    ],
)
def test_the_same_that_may_be_read_in_another_way(body: bytes) -> None:
    with pytest.raises(NotJsonRpc):
        read_operations(body)


def test_a_name_that_is_not_utf8() -> None:
    with pytest.raises(NotJson):
        read_operations(CALLED.replace(b"\xc3\xa9", b"\xff"))
