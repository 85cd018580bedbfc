"""
Files of environment variables (`.env`), as `envFile` names them.

Knows text; must not know whose variables they are.  An error shows no value.
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
    """A line is no assignment; `line` is its number."""

    def __init__(self, line: int) -> None:
        super().__init__("expected NAME=VALUE, a comment or an empty line")
        self.line = line


def parse_dotenv(text: str) -> dict[str, str]:
    """
    The variables that a file assigns; of one that is assigned twice the last.

    Values may be quoted, also over several lines; in double quotes `\\n`, `\\t` and
    the like are escapes.  Nothing is expanded.  Raises `NotDotenv`.
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
