"""
Files of environment variables (`.env`), which `envFile` names.

Knows text; must not know which server gets the variables.  Its errors show no values.
"""

from __future__ import annotations

import re

_LINE = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][\w.-]*)[ \t]*=[ \t]*
    (?:
        "(?P<double>(?:[^"\\]|\\.)*)"
      | '(?P<single>[^']*)'
      | (?P<plain>(?!["'])[^\n]*?)
    )
    [ \t]*(?:(?<=[ \t])\#[^\n]*)?(?:\n|\Z)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_NOTHING = re.compile(r"[ \t]*(?:\#[^\n]*)?(?:\n|\Z)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}


class NotDotenv(ValueError):
    """A line is not an assignment; `line` is its number."""

    def __init__(self, line: int) -> None:
        super().__init__("expected NAME=VALUE, a comment or an empty line")
        self.line = line


def parse_dotenv(text: str) -> dict[str, str]:
    """
    Return the variables that a file assigns; the last assignment of a name counts.

    A quoted value may span lines; in double quotes `\\n`, `\\t` and the like are
    escapes.  Variables in values are not replaced.  Raises `NotDotenv`.
    """
    text = text.replace("\r\n", "\n")
    variables: dict[str, str] = {}
    at = 0
    while at < len(text):
        nothing = _NOTHING.match(text, at)
        if nothing is not None:
            at = nothing.end()
            continue
        found = _LINE.match(text, at)
        if found is None:
            raise NotDotenv(text.count("\n", 0, at) + 1)
        double = found["double"]
        if double is not None:
            value = _ESCAPE.sub(lambda each: _ESCAPES.get(each[1], each[0]), double)
        else:
            value = found["single"] if found["single"] is not None else found["plain"]
        variables[found["name"]] = value
        at = found.end()
    return variables
