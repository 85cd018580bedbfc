"""Messages of JSON-RPC, and what a client asks for in one."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

from mcpbridge.errors import NotJson, NotJsonRpc, Refused, TooComplex
from mcpbridge.jsonrpc.envelope import cancelled_id, peek_again, read_message, requested_token
from mcpbridge.jsonrpc.large_messages import read_batch, read_large, read_whole
from mcpbridge.jsonrpc.members import members
from mcpbridge.jsonrpc.parsed_message import parse_message
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, at_once
from mcpbridge.jsonrpc.surrogates import may_have_surrogates
from mcpbridge.mcp.operations import (
    NAMED_BY,
    Operation,
    read_large_operations,
    read_operations,
)
from tests.fuzz.targets import target

#: So many elements of a batch are read.
_MOST = 1000


class Pairs(list[Any]):
    """The members of an object, in pairs."""


def loads(text: bytes | str, *, pairs: bool = False) -> Any:
    """Decode JSON with the standard library; raise `ValueError` for what it does not take."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        return json.loads(text, parse_int=str, object_pairs_hook=Pairs if pairs else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _outcome(function: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return function(*arguments, **named)
    except Refused as error:
        return type(error)


def _envelope(found: Any) -> tuple[Any, ...]:
    return found.method, found.id, found.is_request, found.is_response


def _repeats(data: bytes) -> bool:
    """Tell whether an object has several members of a name: some readers check only the last."""
    try:
        names = [name for name, _ in loads(data, pairs=True)]
    except (TypeError, ValueError):
        return False
    return len(names) > len(set(names))


@target
def json_messages(data: bytes) -> None:
    """All readers of a message find the same envelope, which is what it says."""
    if _repeats(data):
        return
    small = _outcome(read_message, data)
    large = _outcome(lambda: at_once(read_large(data, size=16)))
    parsed = _outcome(parse_message, data)
    whole = read_whole(data)
    if isinstance(small, type):
        assert whole is None
        assert parsed is small
        # A large text is not read to its end to find that it is no object.
        begins = data.strip(b" \t\r\n")[:1] == b"{"
        # The result of an older reader is said in other words.
        assert large is small or not begins or {large, small} <= {NotJson, TooComplex}
        return
    line, envelope = small
    assert b"\n" not in line
    assert b"\r" not in line
    assert line.split() == data.split(), "only space between tokens has changed"
    if envelope is None:
        assert parsed is None
        assert large is None
        return
    assert whole is None or whole == small
    model = loads(line)
    assert model["jsonrpc"] == "2.0"
    assert envelope.is_response or model["method"] == envelope.method
    assert _envelope(parsed.envelope) == _envelope(envelope)
    if large is TooComplex:
        return
    assert _envelope(large.envelope) == _envelope(envelope)
    assert large.line == parsed.line == line
    if not may_have_surrogates(line):
        assert requested_token(large.digest) == requested_token(line)
        assert cancelled_id(large.digest) == cancelled_id(line)
    # In a name that nobody looks for, `read_large` replaces a lone surrogate.
    for found in (parsed,) if may_have_surrogates(line) else (large, parsed):
        assert found.outer == members(line)
        assert {name: loads(bytes(raw)) for name, raw in found.outer.items()} == model
        params = members(found.outer["params"]) if "params" in found.outer else None
        assert found.params == params
        assert found.meta == (members(params["_meta"]) if params and "_meta" in params else None)


@target
def json_batches(data: bytes) -> None:
    """A batch has the elements that the standard library sees, byte for byte."""
    try:
        found = at_once(read_batch(data, _MOST, size=16))
    except Refused:
        return
    model = loads(data)
    assert isinstance(model, list)
    assert [loads(line) for line, _, _ in found] == model
    for line, envelope, _ in found:
        assert line in data.translate(bytes.maketrans(b"\r\n", b"  "))
        assert envelope.method or envelope.is_response
        assert peek_again(line) is None or loads(line)


def _model(message: Any) -> set[Operation]:
    """Return each operation that any reader of a message might see in it."""
    if not isinstance(message, Pairs):
        return set()

    def named(pairs: Any, wanted: str) -> list[Any]:
        if not isinstance(pairs, Pairs):
            return []
        # Go's decoder ignores the case of letters, also of those that are not of ASCII.
        return [value for name, value in pairs if name.casefold() == wanted]

    found = set()
    methods, params = named(message, "method"), named(message, "params") or [None]
    for method, each in product(methods, params):
        wanted = NAMED_BY.get(method) if isinstance(method, str) else None
        if not isinstance(method, str):
            continue
        names = [None] if wanted is None else named(each, wanted) or [None]
        found |= {Operation(method, name if isinstance(name, str) else None) for name in names}
        if method == "subscriptions/listen":
            for inner in named(each, "notifications"):
                for uris in named(inner, "resourcesubscriptions"):
                    for uri in uris if isinstance(uris, list) else []:
                        found.add(Operation("resources/subscribe", uri))
    return found


@target
def operations(data: bytes) -> None:
    """Nothing that any server might read in a message is missing in what it asks for."""
    if isinstance(_outcome(read_message, data), type):
        # No server sees it.
        return
    small = _outcome(read_operations, data)
    try:
        message = loads(data, pairs=True)
    except ValueError:
        return
    if not isinstance(small, type):
        each = message if type(message) is list else [message]
        assert set().union(*map(_model, each)) <= set(small)
    # The same message, too large to be read in one go.
    opening = data.find(b"{")
    if opening < 0 or data[:opening].strip() not in (b"", b"["):
        return
    padded = data[: opening + 1] + b" " * LARGE_BYTES + data[opening + 1 :]
    large = _outcome(lambda: at_once(read_large_operations(padded, _MOST)))
    if isinstance(small, type):
        assert isinstance(large, type), "a large message is not read less strictly"
    else:
        # Elements that are no messages are refused elsewhere, too.
        assert large == small or large in (TooComplex, *[NotJsonRpc] * (type(message) is list))


#: What messages are built of.  The first half of the names are read somewhere.
_NAMES = (
    *("method", "params", "name", "uri", "id", "jsonrpc", "_meta", "notifications"),
    *("resourceSubscriptions", "progressToken", "arguments", "result", "error", "requestId"),
    *("Method", "m\\u0065thod", "Params", "param\u017f", "p\\u0061rams", "Name", "NAME", "Uri"),
    *("URI", "resourcesubscriptions", "Notifications", "\\ud800", "x", ""),
)
_VALUES = (
    *('"tools/call"', '"tools\\/call"', '"TOOLS/CALL"', '"resources/read"', '"prompts/get"'),
    *('"subscriptions/listen"', '"resources/subscribe"', '"tools/list"', '"a"', '"\\u0061"'),
    *('"b"', '"A"', '"\\ud800"', '"2.0"', "1", "1.5", "null", "true", "1e400", '""'),
)
_MOST_NESTED = 5


def _build(data: bytes) -> str:
    """Build JSON of the words above, each byte of the input being one choice."""
    choices = iter(data)

    def build(depth: int) -> str:
        choice = next(choices, 0)
        if choice < 128 or depth > _MOST_NESTED:
            return _VALUES[choice % len(_VALUES)]
        number = choice % 4
        if choice < 160:
            return f"[{','.join(build(depth + 1) for _ in range(number))}]"
        return members_of(depth, number + 1)

    def members_of(depth: int, number: int) -> str:
        pairs = []
        for _ in range(number):
            name = _NAMES[next(choices, 0) % len(_NAMES)]
            pairs.append(f'"{name}":{build(depth + 1)}')
        return f"{{{','.join(pairs)}}}"

    count = next(choices, 0)
    whole = '"jsonrpc":"2.0","id":1,' + members_of(0, count % 5 + 1)[1:-1]
    return f"[{{{whole}}},{build(0)}]" if count > 200 else f"{{{whole}}}"


@target
def built_messages(data: bytes) -> None:
    """All readers agree on messages that are JSON, of words that are read."""
    body = _build(data).encode("utf-8")
    json_messages(body)
    json_batches(body)
    operations(body)
