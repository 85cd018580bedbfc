"""
What a message asks for: its method, and the name of what that is about.

Read strictly, for a decision about access: a server must not understand another
operation than the bridge.  So a member that some parser might take for one that is read
here makes the message invalid: one with the same name, or in other letters (Go's decoder
ignores their case).  Knows the methods of all revisions; must not know who decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from mcpbridge.errors import NotJson, NotJsonRpc, TooComplex
from mcpbridge.jsonrpc.fragments import Span, is_too_deep, too_deep
from mcpbridge.jsonrpc.large_messages import read_array
from mcpbridge.jsonrpc.members import decode_members, decode_string, is_complete, string_of
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, Slices, outline
from mcpbridge.mcp.modern_request import LISTEN, NAME_BEARING_METHODS, TASK_METHODS

#: The parameter with the name, of each method that may be allowed by name.
NAMED_BY = {
    **{key: value for key, value in NAME_BEARING_METHODS.items() if key not in TASK_METHODS},
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
}


#: The request about a prompt or a resource that is not named by one parameter.
COMPLETE = "completion/complete"
#: Methods of which more than a name is read.
_READ_CLOSELY = frozenset({COMPLETE, LISTEN})

#: What clients may send, in any revision of MCP and in the extension of tasks.
CLIENT_METHODS = frozenset(
    {
        *NAMED_BY,
        *TASK_METHODS,
        *(COMPLETE, "initialize", "logging/setLevel", "ping", "prompts/list"),
        *("resources/list", "resources/templates/list", "server/discover", LISTEN),
        *("tasks/list", "tasks/result", "tools/list"),
        *("notifications/cancelled", "notifications/initialized", "notifications/progress"),
        *("notifications/roots/list_changed", "notifications/tasks/status"),
    }
)


class Operation(NamedTuple):
    """A method, and the name in its parameters; None for a method without one."""

    method: str
    name: str | None = None


class _Params(msgspec.Struct):
    name: str | msgspec.UnsetType = msgspec.UNSET
    uri: str | msgspec.UnsetType = msgspec.UNSET


class _Plain(msgspec.Struct):
    method: str
    params: _Params | msgspec.UnsetType = msgspec.UNSET


_decode_plain = msgspec.json.Decoder(_Plain).decode


class _Object(list[Any]):
    """The members of an object, in pairs and as they are repeated."""


class _Number(str):
    """A number, with its digits as they are: a long one would take too long to convert."""


def read_operations(body: bytes) -> list[Operation]:
    """
    Return the operations of a small message, or of a batch: one for each request and
    notification.  Raise `NotJson`, and `NotJsonRpc` if a server may read another one.
    """
    if is_too_deep(body):
        raise too_deep()
    plain = _read_plain(body) or _read_compact(body)
    if plain is not None:
        return [plain]
    try:
        found = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_Object,
            parse_int=_Number,
            parse_float=_Number,
        )
    except (ValueError, RecursionError):
        raise NotJson("the body is not JSON, not in UTF-8, or nested too deeply") from None
    if type(found) is not list:
        return _operations_of(found)
    if not all(type(each) is _Object for each in found):
        raise NotJsonRpc("an element of the batch is not a JSON-RPC message")
    return [each for message in found for each in _operations_of(message)]


def _read_plain(body: bytes) -> Operation | None:
    """
    Read most messages four times as fast: those in which the names of members that are
    read stand only once, and cannot be there in another spelling.  Return None for others.
    """
    # Only these escapes stand for a letter.
    if b"\\u" in body or not body.isascii():
        return None
    lower = body.lower()
    params = lower.count(b'"params"')
    if lower.count(b'"method"') != 1 or params > 1 or (params and b'"params"' not in body):
        return None
    try:
        message = _decode_plain(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    wanted = NAMED_BY.get(message.method)
    if wanted is None:
        return None if message.method in _READ_CLOSELY else Operation(message.method)
    name = getattr(message.params, wanted, msgspec.UNSET)
    if name is msgspec.UNSET or lower.count(b'"%b"' % wanted.encode("ascii")) != 1:
        return None
    return Operation(message.method, name)


def _read_compact(body: bytes) -> Operation | None:
    """
    Read most others half as fast: those that are written without space, in which no member
    that matters is there twice or in other letters.  Return None for others.
    """
    text = body.strip(b" \t\r\n")
    try:
        if not text.isascii():
            text.decode("utf-8")
        outer = decode_members(text)
        method = decode_string(outer["method"])
        if not is_complete(outer, text) or _has_variants(outer, _OUTER):
            return None
        wanted = NAMED_BY.get(method)
        if wanted is None:
            return None if method in _READ_CLOSELY else Operation(method)
        params = decode_members(outer["params"])
        if not is_complete(params, outer["params"]) or _has_variants(params, (wanted,)):
            return None
        return Operation(method, decode_string(params[wanted]))
    except (KeyError, ValueError, RecursionError, msgspec.MsgspecError):
        return None


def _has_variants(names: Iterable[str], wanted: tuple[str, ...]) -> bool:
    """Tell whether one of these names, in ASCII, is a wanted one in other letters."""
    return any(name.lower() in wanted for name in names if name not in wanted)


def read_large_operations(body: bytes, most: int) -> Slices[list[Operation]]:
    """
    Do the same for a message of any size, or a batch of at most so many elements, in
    slices.  Raise `TooComplex`, too.
    """
    if len(body) <= LARGE_BYTES:
        return read_operations(body)
    if body.lstrip(b" \t\r\n")[:1] != b"[":
        return (yield from _read_large(body.strip(b"\r\n")))
    line, spans = yield from read_array(body, most, messages=True)
    found: list[Operation] = []
    for begin, end in spans:
        element = line[begin:end]
        if len(element) <= LARGE_BYTES:
            found += read_operations(element)
            yield
        else:
            found += yield from _read_large(element)
    return found


def _operations_of(message: object) -> list[Operation]:
    if type(message) is not _Object:
        # Not a message, which is refused elsewhere, or left to the server of an old session.
        return []
    outer = _members(message, *_OUTER)
    method = outer.get("method")
    if method is None:
        return []
    if method == LISTEN:
        wanted = _members(
            _members(outer.get("params"), "notifications").get("notifications"), _URIS
        )
        return [Operation(method), *_subscriptions(wanted.get(_URIS))]
    params = outer.get("params")
    if method == COMPLETE:
        _members(_members(params, "ref").get("ref"), "type", "name", "uri")
    pairs = params if type(params) is _Object else _Object()
    return [_operation(method, [name for name, _ in pairs], dict(pairs).get)]


def _subscriptions(uris: object) -> list[Operation]:
    """
    Return what a `subscriptions/listen` asks for of resources: the same as one
    `resources/subscribe` of older revisions for each.
    """
    if uris is None:
        return []
    if type(uris) is not list or not all(type(each) is str for each in uris):
        raise NotJsonRpc(f"{_URIS} must be a list of strings")
    return [Operation("resources/subscribe", each) for each in uris]


def _read_large(text: bytes) -> Slices[list[Operation]]:
    """Read one large message."""
    names: list[list[str]] = []
    found = yield from outline(text, ("params",), names=names)
    _check_names(names[0], *_OUTER)

    def decoded(spans: dict[str, Span], name: str) -> object:
        begin, end = spans.get(name, (0, 0))
        if end - begin > LARGE_BYTES:
            raise NotJsonRpc(f"{name!r} of the message has more than {LARGE_BYTES} bytes")
        return string_of(msgspec.Raw(text[begin:end])) if end else None

    if "method" not in found[0]:
        return []
    method = decoded(found[0], "method")
    if method in _READ_CLOSELY:
        raise TooComplex(f"a {method} of more than {LARGE_BYTES} bytes cannot be checked")
    params = found[1] if len(found) > 1 else {}
    inner = names[1] if len(found) > 1 else []
    return [_operation(method, inner, lambda name: decoded(params, name))]


def _operation(method: object, names: list[str], value: Callable[[str], object]) -> Operation:
    """Return the operation of a method with parameters of these names and values."""
    if type(method) is not str:
        raise NotJsonRpc("the method of a message must be a string")
    wanted = NAMED_BY.get(method)
    if wanted is None:
        return Operation(method)
    _check_names(names, wanted)
    name = value(wanted)
    if type(name) is not str:
        raise NotJsonRpc(f"{method} needs the parameter {wanted!r}, a string")
    return Operation(method, name)


def _members(pairs: object, *wanted: str) -> dict[str, object]:
    """Return the members of an object, as `_check_names` checks them; none of anything else."""
    if type(pairs) is not _Object:
        return {}
    _check_names([name for name, _ in pairs], *wanted)
    return dict(pairs)


def _check_names(names: Iterable[str], *wanted: str) -> None:
    """Raise `NotJsonRpc` unless each wanted name is there at most once, in these letters."""
    known = {each.casefold(): each for each in wanted}
    found: set[str] = set()
    for name in names:
        meant = known.get(name.casefold())
        if meant is not None:
            if name != meant or name in found:
                raise NotJsonRpc(f"the member {meant!r} is there twice, or in other letters")
            found.add(name)


_OUTER = ("method", "params")
#: The member of a `subscriptions/listen` that names resources.
_URIS = "resourceSubscriptions"
