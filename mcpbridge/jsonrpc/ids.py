"""
The ids of requests, and how servers that are not exact give them back.

JSON-RPC 2.0, section 5: the id of a response "MUST be the same as the value of
the id member in the Request Object".  Some servers turn a number into text, or
the other way round; nothing else is taken for the same id.
"""

from __future__ import annotations

import re

import msgspec

from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.members import changed, encode, integer_of, members, string_of

#: The one way in which an integer is written as decimal text, at most 18 digits.
_CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,17}")

_OPENS_ID = frozenset(b'"-0123456789')


def other_spelling(ident: JsonRpcId | msgspec.UnsetType) -> str | int | msgspec.UnsetType:
    """
    The text of an integer, or the integer that a text is, where it is written
    as JSON writes integers; UNSET for all else, such as 1.0 and "01".
    """
    if type(ident) is int:
        said = str(ident)
        return said if _CANONICAL.fullmatch(said) else msgspec.UNSET
    if type(ident) is str and _CANONICAL.fullmatch(ident):
        return int(ident)
    return msgspec.UNSET


def is_answer_to(
    ident: JsonRpcId | msgspec.UnsetType, asked: JsonRpcId | msgspec.UnsetType
) -> bool:
    """Whether a response with this id answers the request with that one."""
    return ident == asked or (asked is not msgspec.UNSET and _same(other_spelling(ident), asked))


def own_number(ident: object) -> int:
    """
    Which of the bridge's own numbers, all above 0, an answer has: 7, 7.0 or
    "7"; 0 for anything else.
    """
    if isinstance(ident, str):
        said = other_spelling(ident)
        return said if isinstance(said, int) else 0
    if isinstance(ident, float) and ident.is_integer():
        return int(ident)
    return ident if isinstance(ident, int) and not isinstance(ident, bool) else 0


def own_number_of(raw: msgspec.Raw | None) -> int | None:
    """The same of a member that is not decoded: 0 and below too for a number; None otherwise."""
    said = string_of(raw)
    return integer_of(raw) if said is None else own_number(said) or None


def is_id(raw: msgspec.Raw | None) -> bool:
    """Whether it is a string or a number, as the id of a request must be."""
    return raw is not None and bytes(raw)[0] in _OPENS_ID


def same_id(one: msgspec.Raw, other: msgspec.Raw | None) -> bool:
    """Whether two ids are the same, however they are spelled."""
    if other is None or bytes(one) == bytes(other):
        return other is not None
    said = string_of(one)
    return said is not None and said == string_of(other)


def with_id(line: bytes, ident: JsonRpcId) -> bytes:
    """A message with another id; as it is where it cannot be written anew."""
    outer = members(line)
    return line if outer is None else encode(changed(outer, {"id": ident}))


def _same(one: object, other: object) -> bool:
    # 1 equals 1.0, but is no other spelling of it.
    return type(one) is type(other) and one == other
