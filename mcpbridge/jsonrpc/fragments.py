"""
Pieces of a JSON text that is too large to be looked at in one go.

After a comma, a JSON parser's state is the stack of containers that are open,
and nothing else.  So a text may be cut at any comma between values, and each
piece checked by itself: in front of it goes what opens the same containers
(and a first element), behind it what closes those that are open at its end.
The pieces are valid if and only if the whole is.  That needs no more of a
piece than its brackets, for which strings and all else are deleted with
functions that run in C.

Knows JSON alone; must not know where a text is cut.
"""

from __future__ import annotations

import re

import msgspec

from mcpbridge.errors import NotJson

#: Where something begins and ends.
Span = tuple[int, int]

#: How deep arrays and objects of a large message may be nested.
MAX_DEPTH = 500

#: The first bytes of arrays and objects.
OPENINGS = b"[{"
TRUNCATED = "Input data was truncated"

# How often pairs of brackets are removed before the rest is gone through one by one.
_REDUCTIONS = 8

_skip = msgspec.json.Decoder(msgspec.Raw).decode

_CONTENT = bytes(each for each in range(256) if each not in b'"[]{}')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_TRAILING = re.compile(r"JSON is malformed: trailing characters \(byte ([0-9]+)\)")
_BYTE = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte ([0-9]+)\))?")


def value_end(text: memoryview) -> int | None:
    """
    Where the value ends that a text begins with, where something other than
    white space stands behind it: the parser says where that is, and has
    checked the value then.  None where nothing does, or it is no JSON.

    Raises `NotJson` for what is nested too deeply.
    """
    try:
        _skip(text)
    except msgspec.DecodeError as error:
        return _trailing(error)
    except RecursionError:
        raise too_deep() from None
    return None


def check_piece(
    text: memoryview, spans: list[Span], prefix: bytes = b"", suffix: bytes = b""
) -> int | None:
    """
    Check a piece that consists of these spans of a text, between others.

    Returns where in the text something stands behind the value that it is,
    None where nothing does.  Raises `NotJson`.
    """
    piece = b"".join((prefix, *(text[begin:end] for begin, end in spans), suffix))
    try:
        try:
            _skip(piece)
        except msgspec.DecodeError as error:
            if _trailing(error) is not None:
                raise
            _skip(without_surrogates(piece))
    except msgspec.DecodeError as error:
        behind = _trailing(error)
        if behind is None:
            raise malformed(error, spans, len(prefix)) from None
        return _place(behind, spans, len(prefix))
    except RecursionError:
        raise too_deep() from None
    return None


def _trailing(error: msgspec.DecodeError) -> int | None:
    match = _TRAILING.fullmatch(str(error))
    return None if match is None else int(match[1]) - 1


def without_escapes(piece: bytes) -> bytes:
    """The same without backslashes and quotes that are escaped."""
    if b"\\" in piece:
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    return piece


def brackets(piece: bytes, quoted: bool) -> tuple[bool, bytes]:
    """
    The brackets of a piece that stand outside of strings, and whether it ends
    within one; `quoted`: whether it begins within one.
    """
    kept = piece.translate(None, _CONTENT)
    if quoted:
        kept = b'"' + kept
    # Two quotes side by side: what is around them stays within or outside.
    kept = kept.replace(b'""', b"")
    if b'"' not in kept:
        return False, kept
    parts = kept.split(b'"')
    return len(parts) % 2 == 0, b"".join(parts[::2])


def closes(stack: bytearray, brackets: bytes) -> bool:
    """Whether brackets close all that is open; otherwise it is updated."""
    for _ in range(_REDUCTIONS):
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    for each in brackets:
        if each in OPENINGS:
            stack.append(each)
        elif len(stack) == 1:
            return True
        else:
            stack.pop()
    return False


def opening(stack: bytearray) -> bytes:
    """What opens these containers, up to behind a comma in the last of them."""
    outer = b"".join(b"[" if each == 0x5B else b'{"":' for each in stack[:-1])
    return outer + (b"[0," if stack[-1] == 0x5B else b'{"":0,')


def closing(stack: bytearray) -> bytes:
    """What closes them, from a comma in the last of them on."""
    outer = bytes(0x5D if each == 0x5B else 0x7D for each in reversed(stack[:-1]))
    return (b",0]" if stack[-1] == 0x5B else b',"":0}') + outer


def without_surrogates(piece: bytes) -> bytes:
    """
    The same with other characters in place of all surrogates that are written
    as escapes, as long in bytes: JSON's grammar has lone ones (RFC 8259,
    section 8.2), the fast parser does not.
    """
    return _SURROGATE.sub(rb"\\ufffd", piece)


def not_json(why: str, at: int | None = None) -> NotJson:
    """What is wrong, and at which byte."""
    where = "" if at is None else f" (byte {at})"
    return NotJson(f"the body is not JSON: {why}{where}")


def too_deep() -> NotJson:
    """More than `MAX_DEPTH` arrays and objects are open."""
    return NotJson(f"the body is nested too deeply: more than {MAX_DEPTH} deep (MAX_DEPTH)")


def malformed(error: msgspec.DecodeError, spans: list[Span], before: int = 0) -> NotJson:
    """What a parser says of a piece that consists of these spans, with so much before them."""
    match = _BYTE.fullmatch(str(error))
    assert match is not None
    if match[2] is None:
        return not_json(match[1])
    return not_json(match[1], _place(int(match[2]), spans, before))


def _place(at: int, spans: list[Span], before: int) -> int:
    """Where a byte of a piece stands in the text."""
    left = max(0, at - before)
    for begin, end in spans[:-1]:
        if left < end - begin:
            return begin + left
        left -= end - begin
    begin, end = spans[-1]
    return min(begin + left, end)
