"""
Checks pieces of a JSON text that is too large to be parsed in one go.

After a comma, the state of a JSON parser is the stack of open containers, and
nothing else.  So a text may be cut at any comma between values, and each piece
be checked by itself: before it goes a prefix that opens the same containers
(with a first element), behind it a suffix that closes those which are open at
its end.  The pieces are valid if and only if the whole is.

To know the open containers only the brackets of a piece are needed.  Strings
and everything else are deleted with methods of `bytes` that run in C.

Knows JSON alone; must not know where a text is cut.
"""

from __future__ import annotations

import re

import msgspec

from mcpbridge.errors import NotJson

#: The begin and the end of something in a text.
Span = tuple[int, int]

#: How deep arrays and objects of a large message may be nested.
MAX_DEPTH = 500

#: The first bytes of arrays and objects.
OPENINGS = b"[{"
TRUNCATED = "Input data was truncated"

# How often pairs of brackets are removed before the rest is looked at one by one.
_REDUCTIONS = 8

_skip = msgspec.json.Decoder(msgspec.Raw).decode

_CONTENT = bytes(each for each in range(256) if each not in b'"[]{}')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_TRAILING = re.compile(r"JSON is malformed: trailing characters \(byte ([0-9]+)\)")
_BYTE = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte ([0-9]+)\))?")


def value_end(text: memoryview) -> int | None:
    """
    Return where the first value of a text ends, if more than white space
    follows: the parser, which has checked the value then, says where.  Return
    None where nothing follows, and for what is no JSON.

    Raise `NotJson` for what is nested too deeply.
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
    Check a piece that consists of these spans of a text, between a prefix and
    a suffix.

    Return where in the text something follows the value that they make; None
    where nothing does.  Raise `NotJson`.
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
    """Return a piece without escaped backslashes and quotes."""
    if b"\\" in piece:
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    return piece


def brackets(piece: bytes, quoted: bool) -> tuple[bool, bytes]:
    """
    Return whether a piece ends within a string, and its brackets outside of
    strings; `quoted` tells whether it begins within one.
    """
    kept = piece.translate(None, _CONTENT)
    if quoted:
        kept = b'"' + kept
    # Two quotes in a row change nothing for what is around them.
    kept = kept.replace(b'""', b"")
    if b'"' not in kept:
        return False, kept
    parts = kept.split(b'"')
    return len(parts) % 2 == 0, b"".join(parts[::2])


def closes(stack: bytearray, brackets: bytes) -> bool:
    """Tell whether brackets close the whole stack of open ones; otherwise update it."""
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
    """Return what opens these containers, up to and with a comma in the innermost."""
    outer = b"".join(b"[" if each == 0x5B else b'{"":' for each in stack[:-1])
    return outer + (b"[0," if stack[-1] == 0x5B else b'{"":0,')


def closing(stack: bytearray) -> bytes:
    """Return what closes these containers, from a comma in the innermost on."""
    outer = bytes(0x5D if each == 0x5B else 0x7D for each in reversed(stack[:-1]))
    return (b",0]" if stack[-1] == 0x5B else b',"":0}') + outer


def without_surrogates(piece: bytes) -> bytes:
    """
    Return a piece with another escape, of the same length, in place of every
    escaped surrogate, because msgspec refuses lone ones.

    A piece cannot go to `surrogates.parse`, which builds what it reads.
    """
    return _SURROGATE.sub(rb"\\ufffd", piece)


def not_json(why: str, at: int | None = None) -> NotJson:
    """Return an error that says what is wrong, and at which byte."""
    where = "" if at is None else f" (byte {at})"
    return NotJson(f"the body is not JSON: {why}{where}")


def is_too_deep(text: bytes) -> bool:
    """
    Tell whether more than `MAX_DEPTH` arrays and objects of a JSON text are open at a time.

    How deep a parser goes differs between versions of Python; this does not.
    """
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for each in brackets(without_escapes(text), False)[1]:
        depth += 1 if each in OPENINGS else -1
        if depth > MAX_DEPTH:
            return True
    return False


def too_deep() -> NotJson:
    """Return the error for more than `MAX_DEPTH` open arrays and objects."""
    return NotJson(f"the body is nested too deeply: more than {MAX_DEPTH} deep (MAX_DEPTH)")


def malformed(error: msgspec.DecodeError, spans: list[Span], before: int = 0) -> NotJson:
    """Return a parser's error about a piece of these spans, behind `before` bytes of prefix."""
    match = _BYTE.fullmatch(str(error))
    assert match is not None
    if match[2] is None:
        return not_json(match[1])
    return not_json(match[1], _place(int(match[2]), spans, before))


def _place(at: int, spans: list[Span], before: int) -> int:
    """Return where in the text a byte of a piece is."""
    left = at - before
    for begin, end in spans[:-1]:
        if left < end - begin:
            return begin + left
        left -= end - begin
    begin, end = spans[-1]
    return min(begin + left, end)
