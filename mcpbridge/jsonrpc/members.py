"""
Messages written anew: some members replaced, all others as they stand.

Knows JSON alone; must not know what a member means.  A member is kept as its
bytes and never decoded, so what is not replaced stays byte-identical, lone
surrogates and long numbers too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import msgspec

from mcpbridge.errors import Refused
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, MAX_MEMBERS, at_once, outline

Members = dict[str, msgspec.Raw]

_decode = msgspec.json.Decoder(Members).decode
_scan = json.JSONDecoder().raw_decode
_OPENING = re.compile(r"[ \t\r\n]*\{[ \t\r\n]*")
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n,]*")


def members(text: bytes | msgspec.Raw) -> Members | None:
    """
    The members of an object, as they stand; None for what is no JSON object,
    and for a large one with more than `MAX_MEMBERS` members.

    Of members with one name there is the last, as all parsers have it.
    """
    size = len(text) if isinstance(text, bytes) else memoryview(text).nbytes
    large = size > LARGE_BYTES
    # Objects within it may have them, but nothing else is counted as fast.
    if large and bytes(text).count(b":") > MAX_MEMBERS:
        return _members_of_large(bytes(text))
    try:
        return _decode(text)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _members_of_large(bytes(text)) if large else _members_again(bytes(text))


def _members_of_large(text: bytes) -> Members | None:
    try:
        # In one slice, in which the parser goes over each value just once.
        found = at_once(outline(text, size=len(text), utf8=False))[0]
    except Refused:
        return None
    view = memoryview(text)
    return {name: msgspec.Raw(view[begin:end]) for name, (begin, end) in found.items()}


def _members_again(text: bytes) -> Members | None:
    """The same where a lone surrogate is in the way of the fast parser, even as raw."""
    if b"\\ud" not in text.lower():
        return None
    try:
        if not isinstance(_loads(text), dict):
            return None
        return _split(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _split(text: str) -> Members:
    """The members of what is known to be an object, with a parser that tells where a value ends."""
    found: Members = {}
    at = _OPENING.match(text).end()  # type: ignore[union-attr]
    while text[at] != "}":
        name, end = _scan(text, at)
        at = _COLON.match(text, end).end()  # type: ignore[union-attr]
        _, end = _scan(text, at)
        found[name] = msgspec.Raw(text[at:end].encode("utf-8"))
        at = _COMMA.match(text, end).end()  # type: ignore[union-attr]
    return found


def value(text: bytes | msgspec.Raw) -> object:
    """
    What a member says, decoded, lone surrogates too.

    Raises `ValueError` for what is no JSON, is nested too deeply, or has a
    number that no machine holds.
    """
    try:
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return _loads(bytes(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _loads(text: bytes) -> object:
    # As text: of bytes this parser would guess UTF-16, or skip a BOM.
    return json.loads(text.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number out of range")
    return number


def encode(message: object) -> bytes:
    """A message, or a part of one, on one line; what is `Raw` in it, as it stands."""
    try:
        return msgspec.json.encode(message)
    except UnicodeEncodeError:
        return _encode_again(message)


def _encode_again(content: object) -> bytes:
    """The same where a name or a text has a lone surrogate: it is escaped."""
    if isinstance(content, msgspec.Raw):
        return bytes(content)
    if isinstance(content, Mapping):
        pairs = (_encode_again(name) + b":" + _encode_again(of) for name, of in content.items())
        return b"{" + b",".join(pairs) + b"}"
    if isinstance(content, list | tuple):
        return b"[" + b",".join(map(_encode_again, content)) + b"]"
    return json.dumps(content).encode("ascii")


def changed(before: Mapping[str, msgspec.Raw], changes: Mapping[str, object]) -> Members:
    """
    Members with some replaced, in their place, or added behind; `UNSET`
    removes one.  What was before is left alone.
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
    Params, or a result, with changes to its `_meta`, which is made where it
    is missing or no object, and goes where nothing is left of it.
    """
    meta = changed(meta_of(params), changes)
    return changed(params, {"_meta": meta or msgspec.UNSET})


def meta_of(params: Mapping[str, msgspec.Raw]) -> Members:
    """The members of `_meta`; none where it is missing or no object."""
    meta = params.get("_meta")
    return {} if meta is None else members(meta) or {}


def error_line(
    ident: JsonRpcId | msgspec.Raw, code: int, message: str, data: object = None
) -> bytes:
    """An answer that is an error; without data where that is None."""
    error: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return encode({"jsonrpc": "2.0", "id": ident, "error": error})


def result_line(ident: JsonRpcId | msgspec.Raw, result: object) -> bytes:
    """An answer that is a result."""
    return encode({"jsonrpc": "2.0", "id": ident, "result": result})
