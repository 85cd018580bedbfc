"""
JSON with comments and trailing commas (JSONC), as the files of MCP clients have it.

Knows text and the place of each value in it; must not know what the values mean.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

#: The keys and indices that lead to a value.
Keys = tuple[str | int, ...]
#: How deeply objects and lists may be nested.
MAX_DEPTH = 100

#: Space and comments between two tokens.
_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.+-])")
_WORD = re.compile(r"[\w.+-]+")
_NEWLINE = re.compile(r"\n")
#: Words of other languages, and what JSON writes for them.
_FOREIGN = {"True": "true", "False": "false", "None": "null", "undefined": "null"}
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}


class NotJsonc(ValueError):
    """A text is not JSON: the error, with its line and column, counted from 1."""

    def __init__(self, problem: str, line: int, column: int) -> None:
        super().__init__(problem)
        self.line = line
        self.column = column


class Document(NamedTuple):
    """The value of a text, the line of each value in it, and its duplicate keys."""

    content: Any
    lines: Mapping[Keys, int]
    #: Each with the line of its second occurrence.
    repeated: list[tuple[Keys, int]]


def parse_jsonc(text: str) -> Document:
    """Read JSON that may have comments and trailing commas.  Raises `NotJsonc`."""
    return _Parser(text).document()


class _Parser:
    """Reads one text from front to back."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(found.end() for found in _NEWLINE.finditer(text))]
        self._lines: dict[Keys, int] = {}
        self._repeated: list[tuple[Keys, int]] = []

    def document(self) -> Document:
        """Read the whole text."""
        content = self._value(())
        if self._next():
            self._fail("the end of the file")
        return Document(content, self._lines, self._repeated)

    def _value(self, keys: Keys) -> Any:
        following = self._next()
        self._lines.setdefault(keys, self._line())
        if following in ("{", "["):
            if len(keys) >= MAX_DEPTH:
                self._raise(f"nested too deeply, more than {MAX_DEPTH} levels")
            return self._object(keys) if following == "{" else self._list(keys)
        if following == '"':
            return self._string()
        number = _NUMBER.match(self._text, self._at)
        if number is not None:
            return self._scalar(number)
        word = _WORD.match(self._text, self._at)
        if word is not None and word[0] in _CONSTANTS:
            self._at = word.end()
            return _CONSTANTS[word[0]]
        return self._fail("a value")

    def _object(self, keys: Keys) -> dict[str, Any]:
        content: dict[str, Any] = {}
        self._at += 1
        while (following := self._next()) != "}":
            if following != '"':
                self._fail("a name in double quotes" if following else "`}`")
            line = self._line()
            name = self._string()
            if name in content:
                self._repeated.append(((*keys, name), line))
            self._lines.setdefault((*keys, name), line)
            if self._next() != ":":
                self._fail("`:`")
            self._at += 1
            content[name] = self._value((*keys, name))
            self._separate("}")
        self._at += 1
        return content

    def _list(self, keys: Keys) -> list[Any]:
        content: list[Any] = []
        self._at += 1
        while (following := self._next()) != "]":
            if not following:
                self._fail("`]`")
            content.append(self._value((*keys, len(content))))
            self._separate("]")
        self._at += 1
        return content

    def _separate(self, end: str) -> None:
        """Skip a comma, which is optional behind the last value."""
        following = self._next()
        if following == ",":
            self._at += 1
        elif following != end:
            self._fail(f"`,` or `{end}`")

    def _string(self) -> str:
        found = _STRING.match(self._text, self._at)
        if found is None:
            self._raise("the string is not closed in its line")
        text: str = self._scalar(found)
        return text

    def _scalar(self, found: re.Match[str]) -> Any:
        try:
            value = json.loads(found[0])
        except json.JSONDecodeError as error:
            self._at += error.pos
            self._raise("the string has an invalid escape after `\\`")
        except ValueError:
            self._raise("the number has too many digits")
        self._at = found.end()
        return value

    def _next(self) -> str:
        """Return the next character behind space and comments; empty at the end."""
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        following = self._text[self._at : self._at + 1]
        if self._text.startswith("/*", self._at):
            self._raise("the comment is not closed")
        return following

    def _line(self) -> int:
        return bisect_right(self._starts, self._at)

    def _fail(self, expected: str) -> NoReturn:
        # Show one character only: the word may be a password without its quotes.
        got = repr(self._text[self._at]) if self._at < len(self._text) else "the end of the file"
        word = _WORD.match(self._text, self._at)
        if word is not None and word[0] in _FOREIGN:
            got = f"{word[0]} (write {_FOREIGN[word[0]]})"
        self._raise(f"expected {expected}, got {got}")

    def _raise(self, problem: str) -> NoReturn:
        line = self._line()
        raise NotJsonc(problem, line, self._at - self._starts[line - 1] + 1) from None
