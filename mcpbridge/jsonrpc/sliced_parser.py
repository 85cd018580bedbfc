"""
Reads large JSON texts in slices, without building what they contain.

A parser that builds objects turns 16 MB of `[{},{},...` into a gigabyte and a
pause of seconds; even one that only skips them takes longer than other clients
should wait.  A text is checked as a whole here, but the only objects made are
the members that a bridge acts on.

Knows JSON alone; must not know who runs it.  Each function is a generator that
yields after a bounded piece of work (`SLICE_BYTES`), and returns its result.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeVar

import msgspec

from mcpbridge.errors import NotJson, NotJsonRpc, TooComplex
from mcpbridge.jsonrpc.fragments import (
    MAX_DEPTH,
    OPENINGS,
    TRUNCATED,
    Span,
    brackets,
    check_piece,
    closes,
    closing,
    malformed,
    not_json,
    opening,
    too_deep,
    value_end,
    without_escapes,
    without_surrogates,
)

Found = TypeVar("Found")
#: A generator that does a slice of work each time it is advanced, and returns what it found.
Slices = Generator[None, None, Found]

#: A message of more bytes is read in slices.
LARGE_BYTES = 64 * 1024
#: Where only its outer members are wanted, a message up to here is read as a whole:
#: however it is written, a parser skips so much in about 3 ms.
WHOLE_BYTES = 1280 * 1024
#: How many bytes are looked at in one slice.
SLICE_BYTES = 64 * 1024
#: The most members of a large message, with those of its `params` and its `_meta`.
MAX_MEMBERS = 10_000
#: The longest name of one of these members.
MAX_NAME_BYTES = 64 * 1024
#: The longest number, as a number cannot be cut.
MAX_NUMBER_BYTES = 1024 * 1024

_decode_ident = msgspec.json.Decoder(str | int | float).decode
_decode_name = msgspec.json.Decoder(str).decode

_COMMA, _QUOTE = b',"'
_WHITE = b" \t\r\n"
_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
_PLAIN = re.compile(rb'[^",\[\]{}]*+')
_SCALAR = re.compile(rb"[^ \t\r\n,\[\]{}\":]*+")


def outline(
    text: bytes,
    inner: tuple[str, ...] = (),
    *,
    size: int = SLICE_BYTES,
    utf8: bool = True,
    names: list[list[str]] | None = None,
) -> Slices[list[dict[str, Span]]]:
    """
    Check that a text is a JSON object, with `utf8` in UTF-8, and find its members.

    Return the members of the object, then those of its member `inner[0]`,
    then those of the member `inner[1]` of that, and so on as far as there are
    such objects.  Of members with one name the last counts; the names of all members of
    each such object, as they are repeated, are added to `names`.

    Raise `NotJson`, also where it is nested too deeply, and `TooComplex` for
    more than `MAX_MEMBERS` members.
    """
    if utf8:
        yield from _check_utf8(text, size)
    reader = _Reader(text, size, names)
    at = yield from reader.space(0)
    if text[at : at + 1] != b"{":
        raise reader.unexpected(at, "'{'")
    try:
        end, found = yield from reader.object(at, inner)
    except TooComplex as error:
        error.ident = reader.ident()
        raise
    yield from reader.finish(end)
    return found


def elements(
    text: bytes, most: int, *, messages: bool = False, size: int = SLICE_BYTES
) -> Slices[list[Span]]:
    """
    Check that a text is a JSON array in UTF-8, and find its elements.

    With `messages` all of them must be objects.  Raise `NotJson`, also where
    it is nested too deeply; `NotJsonRpc` at the first element that is no
    object; and `TooComplex` for more than `most`.
    """
    yield from _check_utf8(text, size)
    reader = _Reader(text, size)
    at = yield from reader.space(0)
    if text[at : at + 1] != b"[":
        raise reader.unexpected(at, "'['")
    found: list[Span] = []
    at = yield from reader.space(at + 1)
    if text[at : at + 1] == b"]":
        yield from reader.finish(at + 1)
        return found
    while True:
        if len(found) >= most:
            raise TooComplex(f"the array has more than {most} elements (max_waiting_messages)")
        if messages and text[at : at + 1] != b"{":
            raise NotJsonRpc("an element of the batch is not a JSON-RPC message")
        end = yield from reader.value(at)
        found.append((at, end))
        yield
        at = yield from reader.space(end)
        if text[at : at + 1] == b"]":
            yield from reader.finish(at + 1)
            return found
        at = yield from reader.follow(at, "']'")


def at_once(slices: Slices[Found]) -> Found:
    """Do all the work now, and return its result."""
    while True:
        try:
            next(slices)
        except StopIteration as done:
            result: Found = done.value
            return result


def _check_utf8(text: bytes, size: int) -> Slices[None]:
    at = 0
    while at < len(text):
        end = min(at + size, len(text))
        if end < len(text):
            # Do not cut a character, which has up to four bytes.
            for _ in range(3):
                end -= text[end] & 0xC0 == 0x80
        piece = text[at:end]
        if not piece.isascii():
            try:
                piece.decode("utf-8")
            except UnicodeDecodeError as error:
                raise NotJson(f"the body is not UTF-8 (byte {at + error.start})") from None
        at = end
        yield


class _Reader:
    """A text, and steps that check the next part of it."""

    def __init__(self, text: bytes, size: int, names: list[list[str]] | None = None) -> None:
        self._text = text
        self._names = names
        self._view = memoryview(text)
        self._size = size
        self._members = 0
        #: The members of the outermost object, as far as it has been read.
        self._outer: dict[str, Span] | None = None

    def ident(self) -> str | int | float | None:
        """Return the member `id` of what was read, if it is one that a request may have."""
        begin, end = (self._outer or {}).get("id", (0, 0))
        if end - begin > MAX_NAME_BYTES:
            return None
        try:
            ident: str | int | float = _decode_ident(self._view[begin:end])
            return ident
        except msgspec.MsgspecError:
            return None

    # Between values.

    def space(self, at: int) -> Slices[int]:
        """Skip white space; return where the next other byte is."""
        while True:
            end = _SPACE.match(self._text, at, at + self._size).end()  # type: ignore[union-attr]
            if end < at + self._size:
                return end
            at = end
            yield

    def follow(self, at: int, closing: str) -> Slices[int]:
        """Skip a comma and white space; return where the next value or name begins."""
        if self._text[at : at + 1] != b",":
            raise self.unexpected(at, f"',' or {closing}")
        return (yield from self.space(at + 1))

    def finish(self, at: int) -> Slices[None]:
        """Check that nothing follows."""
        at = yield from self.space(at)
        if at < len(self._text):
            raise not_json("trailing characters", at)

    def unexpected(self, at: int, expected: str) -> NotJson:
        """Return the error for a byte where something else is expected."""
        if at >= len(self._text):
            return not_json(TRUNCATED)
        return not_json(f"expected {expected}", at)

    def object(self, at: int, inner: tuple[str, ...]) -> Slices[tuple[int, list[dict[str, Span]]]]:
        """Check an object; return where it ends, its members, and those of the inner ones."""
        text = self._text
        found: dict[str, Span] = {}
        if self._outer is None:
            self._outer = found
        within: list[dict[str, Span]] = []
        names: list[str] = []
        if self._names is not None:
            self._names.append(names)
        at = yield from self.space(at + 1)
        if text[at : at + 1] == b"}":
            return at + 1, [found]
        while True:
            self._members += 1
            if self._members > MAX_MEMBERS:
                raise TooComplex(
                    f"the message, its params and its _meta have more than {MAX_MEMBERS} members"
                    " (MAX_MEMBERS)"
                )
            name, at = self._name(at)
            if self._names is not None:
                names.append(name)
            at = yield from self.space(at)
            if text[at : at + 1] != b":":
                raise self.unexpected(at, "':'")
            begin = yield from self.space(at + 1)
            enters = bool(inner) and name == inner[0]
            if enters:
                # Of two with one name the last counts.
                within = []
            if enters and text[begin : begin + 1] == b"{":
                end, within = yield from self.object(begin, inner[1:])
            else:
                end = yield from self.value(begin)
            found[name] = begin, end
            yield
            at = yield from self.space(end)
            if text[at : at + 1] == b"}":
                return at + 1, [found, *within]
            at = yield from self.follow(at, "'}'")

    def _name(self, at: int) -> tuple[str, int]:
        """Return a member's name, and where it ends."""
        if self._text[at : at + 1] != b'"':
            raise self.unexpected(at, "'\"'")
        match = _STRING.match(self._text, at, at + MAX_NAME_BYTES)
        if match is None:
            if len(self._text) < at + MAX_NAME_BYTES:
                raise not_json(TRUNCATED)
            raise TooComplex(
                f"the name of a member has more than {MAX_NAME_BYTES} bytes (MAX_NAME_BYTES)"
            )
        try:
            try:
                return _decode_name(match[0]), match.end()
            except msgspec.DecodeError:
                # No name that anybody looks for has a surrogate: another one will do.
                return _decode_name(without_surrogates(match[0])), match.end()
        except msgspec.DecodeError as error:
            raise malformed(error, [(at, match.end())]) from None

    # Values.

    def value(self, at: int) -> Slices[int]:
        """Check a value; return where it ends."""
        if at >= len(self._text):
            raise not_json(TRUNCATED)
        end = value_end(self._view[at : at + self._size])
        if end is not None:
            return self._trimmed(at, at + end)
        first = self._text[at]
        if first == _QUOTE:
            return (yield from self._string(at))
        return (yield from (self._container(at) if first in OPENINGS else self._scalar(at)))

    def _trimmed(self, at: int, end: int) -> int:
        """Return the end of a value without the white space that a parser takes with it."""
        return at + len(self._text[at:end].rstrip(_WHITE))

    def _string(self, at: int) -> Slices[int]:
        begin = at + 1
        while True:
            yield
            end = self._slice_end(begin)
            match = _REST_OF_STRING.match(self._text, begin, end)
            self._check([(begin, end if match is None else match.end() - 1)], b'"', b'"')
            if match is not None:
                return match.end()
            if end == len(self._text):
                raise not_json(TRUNCATED)
            begin = end

    def _scalar(self, at: int) -> Slices[int]:
        begin = at
        while True:
            end = _SCALAR.match(self._text, begin, begin + self._size).end()  # type: ignore[union-attr]
            if end < begin + self._size:
                # A number cannot be cut.  Whether this is one shows with the byte behind it.
                behind = check_piece(self._view, [(at, min(end + 1, len(self._text)))])
                # What follows a number without a delimiter does not belong to it.
                return end if behind is None else min(behind, end)
            if end - at > MAX_NUMBER_BYTES:
                raise TooComplex(
                    f"a number has more than {MAX_NUMBER_BYTES} bytes (MAX_NUMBER_BYTES)"
                )
            begin = end
            yield

    def _container(self, at: int) -> Slices[int]:
        # A container is read slice by slice.  Of each slice only the brackets outside of
        # strings are looked at, which keeps the stack of open containers right, and shows
        # where the container ends.  At the first comma between values behind the slice the
        # text is cut: the piece up to there is checked by msgspec, with a prefix that opens
        # what was open at its beginning and a suffix that closes what is open at its end.
        # A slice that is inside of one string has no such comma; it is checked as a string.
        text = self._text
        #: The open containers, by their first bytes.
        stack = bytearray(text[at : at + 1])
        #: What is not checked yet, without slices that are inside of one string.
        spans, prefix = [(at, at + 1)], b""
        end, quoted = at + 1, False
        while True:
            yield
            begin, end = end, self._slice_end(end)
            piece = without_escapes(text[begin:end])
            if quoted and b'"' not in piece and end < len(text):
                self._check([(begin, end)], b'"', b'"')
                continue
            spans.append((begin, end))
            quoted, found = brackets(piece, quoted)
            if closes(stack, found) or end == len(text):
                return self._last_piece(spans, prefix)
            if len(stack) > MAX_DEPTH:
                raise too_deep()
            cut = self._next_comma(end, quoted, stack)
            if cut is not None:
                comma, stack = cut
                spans.append((end, comma))
                self._check(spans, prefix, closing(stack))
                end, prefix, quoted = comma + 1, opening(stack), False
                spans = []

    def _slice_end(self, at: int) -> int:
        """Return the end of a slice, which does not cut an escape."""
        end = min(at + self._size, len(self._text))
        escape = self._text.rfind(b"\\", max(at, end - 5), end)
        if escape > at and end < len(self._text):
            run = self._text[at : escape + 1]
            if (len(run) - len(run.rstrip(b"\\"))) % 2:
                return escape
        return end

    def _next_comma(self, at: int, quoted: bool, stack: bytearray) -> tuple[int, bytearray] | None:
        """Return the next comma between values and what is open there; None if none is near."""
        text, limit = self._text, at + 2 * self._size
        stack = stack.copy()
        if quoted:
            rest = _REST_OF_STRING.match(text, at, limit)
            if rest is None:
                return None
            at = rest.end()
        # More tokens without a comma are no JSON, or nested too deeply.
        for _ in range(4 * MAX_DEPTH):
            at = _PLAIN.match(text, at, limit).end()  # type: ignore[union-attr]
            if at >= min(limit, len(text)):
                return None
            byte = text[at]
            if byte == _COMMA:
                return at, stack
            if byte == _QUOTE:
                match = _STRING.match(text, at, limit)
                if match is None:
                    return None
                at = match.end()
                continue
            if byte in OPENINGS:
                stack.append(byte)
            elif len(stack) == 1:
                return None
            else:
                stack.pop()
            at += 1
        return None

    def _last_piece(self, spans: list[Span], prefix: bytes) -> int:
        """Check the piece in which a value should end; return where it does."""
        behind = check_piece(self._view, spans, prefix)
        begin, end = spans[-1]
        if behind is not None:
            end = behind
        return self._trimmed(begin, end)

    def _check(self, spans: list[Span], prefix: bytes, suffix: bytes) -> None:
        """Check a piece between two others."""
        behind = check_piece(self._view, spans, prefix, suffix)
        assert behind is None, "what is open was told apart by its brackets"
