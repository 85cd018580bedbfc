"""
The ids of requests, and the spellings in which servers give them back.

JSON-RPC 2.0, section 5: the id of a response "MUST be the same as the value of
the id member in the Request Object".  Some servers turn a number into text, or
the other way round; nothing else counts as the same id.  Knows ids; must not
know which requests are open.
"""

from __future__ import annotations

import re

import msgspec

from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.members import changed, encode, integer_of, members, string_of

#: The canonical decimal text of an integer, of at most 18 digits.
_CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,17}")

_CANONICAL_BYTES = re.compile(_CANONICAL.pattern.encode("ascii"))

_OPENS_ID = frozenset(b'"-0123456789')


def other_spelling(ident: JsonRpcId | msgspec.UnsetType) -> str | int | msgspec.UnsetType:
    """
    Return the text of an integer, or the integer that a text in JSON's
    spelling stands for; UNSET for anything else, such as 1.0 and "01".
    """
    if type(ident) is int:
        text = str(ident)
        return text if _CANONICAL.fullmatch(text) else msgspec.UNSET
    if type(ident) is str and _CANONICAL.fullmatch(ident):
        return int(ident)
    return msgspec.UNSET


def is_answer_to(
    ident: JsonRpcId | msgspec.UnsetType, asked: JsonRpcId | msgspec.UnsetType
) -> bool:
    """Tell whether a response with the first id answers a request with the second."""
    return ident == asked or (asked is not msgspec.UNSET and _same(other_spelling(ident), asked))


def own_number(ident: object) -> int:
    """
    Return which of the bridge's own numbers, all above 0, an id stands for:
    7, 7.0 and "7" do for 7.  Return 0 for anything else.
    """
    if isinstance(ident, str):
        text = other_spelling(ident)
        return text if isinstance(text, int) else 0
    if isinstance(ident, float) and ident.is_integer():
        return int(ident)
    return ident if isinstance(ident, int) and not isinstance(ident, bool) else 0


def own_number_of(raw: msgspec.Raw | None) -> int | None:
    """Return which of these numbers an undecoded id stands for; None where it is none."""
    if raw is None:
        return None
    digits = bytes(raw)
    if _CANONICAL_BYTES.fullmatch(digits):
        # As nearly all servers write it.
        return int(digits) or None
    text = string_of(raw)
    return (integer_of(raw) if text is None else own_number(text)) or None


def is_id(raw: msgspec.Raw | None) -> bool:
    """Tell whether a member is a string or a number, as the id of a request must be."""
    return raw is not None and bytes(raw)[0] in _OPENS_ID


def same_id(one: msgspec.Raw, other: msgspec.Raw | None) -> bool:
    """Tell whether two ids are the same, however their strings are escaped."""
    if other is None or bytes(one) == bytes(other):
        return other is not None
    text = string_of(one)
    return text is not None and text == string_of(other)


def with_id(line: bytes, ident: JsonRpcId) -> bytes:
    """Return a message with another id; unchanged where it cannot be read."""
    outer = members(line)
    return line if outer is None else encode(changed(outer, {"id": ident}))


def _same(one: object, other: object) -> bool:
    # 1 equals 1.0, but is no other spelling of it.
    return type(one) is type(other) and one == other
