"""
The members of JSON objects: read leniently, replaced one by one, and written.

This is the one place that reads a member, writes a JSON-RPC message and copes
with what msgspec does not take.  Knows JSON and the shapes of JSON-RPC 2.0;
must not know what a member means.

A member is a `msgspec.Raw`: the bytes of its value, a view of the message, not
decoded.  So what is not replaced stays byte-identical, lone surrogates and
long numbers too, and a large result costs no objects.  The functions named
`*_of` never raise: a peer may put any JSON anywhere, and a bridge that acts on
one member must not fail because of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from mcpbridge.errors import Refused
from mcpbridge.jsonrpc import surrogates
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, MAX_MEMBERS, at_once, outline

Members = dict[str, msgspec.Raw]

#: Strict decoders.  They raise `MsgspecError`, `UnicodeDecodeError` or `RecursionError` for
#: anything else, and for a lone surrogate.
decode_members = msgspec.json.Decoder(Members).decode
decode_string = msgspec.json.Decoder(str).decode
_decode_number = msgspec.json.Decoder(int | float).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


# Reading.


def members(text: bytes | msgspec.Raw) -> Members | None:
    """
    Return the members of a JSON object, each as it stands.

    Of members with one name the last counts, as in all parsers.  Return None
    for anything else, and for an object of more than `LARGE_BYTES` that has
    more than `MAX_MEMBERS` members.
    """
    large = len(text) > LARGE_BYTES
    # Colons within strings and inner objects count too: this is only a quick
    # way to know that a large object cannot have too many members.
    if large and bytes(text).count(b":") > MAX_MEMBERS:
        return _members_of_large(bytes(text))
    try:
        return decode_members(text)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _members_of_large(bytes(text)) if large else _members_with_surrogates(bytes(text))


def _members_of_large(text: bytes) -> Members | None:
    try:
        # In one slice, in which the parser goes over each value just once.
        found = at_once(outline(text, size=len(text), utf8=False))[0]
    except Refused:
        return None
    view = memoryview(text)
    return {name: msgspec.Raw(view[begin:end]) for name, (begin, end) in found.items()}


def _members_with_surrogates(text: bytes) -> Members | None:
    if not isinstance(surrogates.parse(text), dict):
        return None
    return {name: msgspec.Raw(value) for name, value in surrogates.split_object(text).items()}


def is_complete(found: Mapping[str, msgspec.Raw], text: bytes | msgspec.Raw) -> bool:
    """
    Tell quickly whether these are all members of a JSON object that is written without space:
    no name is there twice, none has an escape, and all are in ASCII.

    False proves nothing.  Whatever is not counted makes the text longer, and nothing makes
    it shorter.
    """
    size = 1 + 4 * len(found) + sum(map(len, found)) + sum(map(len, found.values()))
    return size == len(text)


def members_of(raw: bytes | msgspec.Raw | None) -> Members:
    """Return the members of an object; none for anything else, or for a missing member."""
    return {} if raw is None else members(raw) or {}


def meta_of(params: Mapping[str, msgspec.Raw]) -> Members:
    """Return the members of `_meta`; none where it is missing or no object."""
    return members_of(params.get("_meta"))


def value(text: bytes | msgspec.Raw) -> object:
    """
    Decode a value, lone surrogates included.

    Raise `ValueError` for what is no JSON, is nested too deeply, or has a
    number out of a float's range.
    """
    try:
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return surrogates.loads(bytes(text), _finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number out of range")
    return number


def value_of(raw: msgspec.Raw | None) -> object:
    """Return a decoded value; None for a missing member, and for what cannot be decoded."""
    try:
        return None if raw is None else value(raw)
    except ValueError:
        return None


def string_of(raw: msgspec.Raw | None) -> str | None:
    """Return a string; None for anything else, which is not built, however large it is."""
    if raw is None:
        return None
    try:
        found: str = decode_string(raw)
    except (msgspec.ValidationError, UnicodeDecodeError):
        return None
    except msgspec.DecodeError:
        # It may have a lone surrogate.
        again = value_of(raw) if bytes(raw)[:1] == b'"' else None
        return again if isinstance(again, str) else None
    return found


def strings_of(raw: msgspec.Raw | None) -> list[str]:
    """Return the strings in an array; none for anything else."""
    found = value_of(raw)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def number_of(raw: msgspec.Raw | None) -> int | float | None:
    """Return a number; None for anything else, `true` and `"1"` included."""
    try:
        return None if raw is None else _decode_number(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def integer_of(raw: msgspec.Raw | None) -> int | None:
    """Return an integer, also where it is spelled 1.0; None for anything else."""
    found = number_of(raw)
    return None if found is None or found != int(found) else int(found)


def error_code_of(error: Mapping[str, msgspec.Raw]) -> int | None:
    """Return the code of a JSON-RPC error; None where it has none that is an integer."""
    code = number_of(error.get("code"))
    return code if isinstance(code, int) else None


def elements_of(raw: msgspec.Raw | None) -> list[msgspec.Raw] | None:
    """Return the elements of an array, each as it stands; None for anything else."""
    try:
        return None if raw is None else _decode_list(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def is_null(raw: msgspec.Raw | None) -> bool:
    """Tell whether a member is missing, or null, which many peers write instead."""
    return raw is None or bytes(raw) == b"null"


# Writing.


def encode(message: object) -> bytes:
    """
    Encode a message, or a part of one, on one line.

    `Raw` values go in as they stand; a lone surrogate is escaped.
    """
    try:
        return msgspec.json.encode(message)
    except UnicodeEncodeError:
        return _encode_with_surrogates(message)


def _encode_with_surrogates(content: object) -> bytes:
    if isinstance(content, msgspec.Raw):
        return bytes(content)
    if isinstance(content, Mapping):
        pairs = (
            _encode_with_surrogates(name) + b":" + _encode_with_surrogates(each)
            for name, each in content.items()
        )
        return b"{" + b",".join(pairs) + b"}"
    if isinstance(content, list | tuple):
        return b"[" + b",".join(map(_encode_with_surrogates, content)) + b"]"
    return json.dumps(content).encode("ascii")


def changed(before: Mapping[str, msgspec.Raw], changes: Mapping[str, object]) -> Members:
    """
    Return a copy of an object's members with some replaced or added.

    A replaced member keeps its place, a new one goes to the end, and `UNSET`
    removes one.
    """
    after = dict(before)
    for name, new in changes.items():
        if new is msgspec.UNSET:
            after.pop(name, None)
        else:
            after[name] = new if isinstance(new, msgspec.Raw) else msgspec.Raw(encode(new))
    return after


def with_meta(params: Mapping[str, msgspec.Raw], changes: Mapping[str, object]) -> Members:
    """
    Return params, or a result, with changes to its `_meta`.

    It is made where it is missing or no object, and removed where nothing is
    left in it.
    """
    meta = changed(meta_of(params), changes)
    return changed(params, {"_meta": meta or msgspec.UNSET})


def request_line(
    ident: JsonRpcId | msgspec.Raw, method: str, params: Mapping[str, object] | None = None
) -> bytes:
    """Return a request; without `params` where they are None."""
    message: dict[str, object] = {"jsonrpc": "2.0", "id": ident, "method": method}
    return encode(message if params is None else {**message, "params": params})


def notification_line(method: str, params: Mapping[str, object] | None = None) -> bytes:
    """Return a notification; without `params` where they are None."""
    message: dict[str, object] = {"jsonrpc": "2.0", "method": method}
    return encode(message if params is None else {**message, "params": params})


def cancellation_line(ident: JsonRpcId, reason: str | None = None) -> bytes:
    """Return the `notifications/cancelled` of a request (MCP, cancellation)."""
    params: dict[str, object] = {"requestId": ident}
    if reason is not None:
        params["reason"] = reason
    return notification_line("notifications/cancelled", params)


def result_line(ident: JsonRpcId | msgspec.Raw, result: object) -> bytes:
    """Return a response with a result."""
    return encode({"jsonrpc": "2.0", "id": ident, "result": result})


def error_line(
    ident: JsonRpcId | msgspec.Raw, code: int, message: str, data: object = None
) -> bytes:
    """Return a response with an error; without `data` where that is None."""
    error: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return encode({"jsonrpc": "2.0", "id": ident, "error": error})
