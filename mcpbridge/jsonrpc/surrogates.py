"""
A second parser for JSON that has a lone surrogate in it.

`"\\ud800"` alone is within JSON's grammar (RFC 8259, section 8.2), and servers
in JavaScript write it when they cut a string in the middle of an emoji.
msgspec refuses it, even in a value that it only skips, so one such character
in a result would cost a client its answer.  The standard library takes it, at
about a tenth of the speed; it is asked only where msgspec has failed.

Knows JSON alone; must not know messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

_scan = json.JSONDecoder().raw_decode
_OPENING = re.compile(r"[ \t\r\n]*[{\[][ \t\r\n]*")
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n,]*")


def may_have_surrogates(text: bytes) -> bool:
    """Tell whether a text has an escape that may be a surrogate, lone or in a pair."""
    return b"\\ud" in text or b"\\uD" in text


def parse(text: bytes) -> object | None:
    """
    Decode an object or array that msgspec refused for a lone surrogate.

    Return None where a surrogate cannot have been the reason, and for what is
    no JSON or nested too deeply.  Never raises.
    """
    if not may_have_surrogates(text):
        return None
    try:
        return loads(text)
    except (ValueError, RecursionError):
        return None


def loads(text: bytes, parse_float: Callable[[str], float] | None = None) -> object:
    """
    Decode JSON in UTF-8, lone surrogates included.

    Raise `ValueError` for anything else, such as `NaN`, and `RecursionError`
    for JSON that is nested too deeply.
    """
    # Decoded first: given bytes, this parser would guess UTF-16, or skip a BOM.
    return json.loads(text.decode("utf-8"), parse_constant=_refuse, parse_float=parse_float)


def split_array(text: bytes) -> list[bytes]:
    """Return the elements, byte for byte, of what `parse` found to be an array."""
    return [element for element, _ in _parts(text.decode("utf-8"), "]")]


def split_object(text: bytes) -> dict[str, bytes]:
    """
    Return the members, byte for byte, of what `parse` found to be an object;
    the last of those with one name.
    """
    return {name: value for value, name in _parts(text.decode("utf-8"), "}")}


def _parts(text: str, closing: str) -> Iterator[tuple[bytes, str]]:
    """Yield each value with its name, which is empty in an array."""
    at = _OPENING.match(text).end()  # type: ignore[union-attr]
    while text[at] != closing:
        name = ""
        if closing == "}":
            name, at = _scan(text, at)
            at = _COLON.match(text, at).end()  # type: ignore[union-attr]
        _, stop = _scan(text, at)
        yield text[at:stop].encode("utf-8"), name
        at = _COMMA.match(text, stop).end()  # type: ignore[union-attr]


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
