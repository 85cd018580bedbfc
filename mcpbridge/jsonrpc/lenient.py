"""
Members of a message of which little is known, where any JSON may stand.

Knows JSON alone; must not know what a member is for.  Never raises.
"""

from __future__ import annotations

import msgspec

from mcpbridge.jsonrpc.ids import own_number
from mcpbridge.jsonrpc.members import value

_decode_text = msgspec.json.Decoder(str).decode

_OPENS_ID = frozenset(b'"-0123456789')


def text(raw: msgspec.Raw | None) -> str | None:
    """A string, decoded; None for anything else."""
    if raw is None:
        return None
    try:
        said: str = _decode_text(raw)
    except (msgspec.ValidationError, UnicodeDecodeError):
        # Whatever else it is, and however large: it is not built.
        return None
    except msgspec.DecodeError:
        return _odd_text(raw)
    return said


def _odd_text(raw: msgspec.Raw) -> str | None:
    """A string with a lone surrogate; None for what is no JSON at all."""
    try:
        found = value(raw) if bytes(raw)[:1] == b'"' else None
    except ValueError:
        return None
    return None if found is None else str(found)


def whole_number(raw: msgspec.Raw | None) -> int | None:
    """An integer, also where it is spelled 1.0; None for anything else, a string too."""
    try:
        found = None if raw is None else msgspec.json.decode(raw, type=int | float)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if found is None or found != int(found) else int(found)


def answered_number(raw: msgspec.Raw | None) -> int | None:
    """The number in the id of an answer, "7" too; None for anything else."""
    said = text(raw)
    return whole_number(raw) if said is None else own_number(said) or None


def is_id(raw: msgspec.Raw | None) -> bool:
    """Whether it is a string or a number, as the id of a request must be."""
    return raw is not None and bytes(raw)[0] in _OPENS_ID


def same_id(one: msgspec.Raw, other: msgspec.Raw | None) -> bool:
    """Whether two ids are the same, however they are spelled."""
    if other is None or bytes(one) == bytes(other):
        return other is not None
    said = text(one)
    return said is not None and said == text(other)
