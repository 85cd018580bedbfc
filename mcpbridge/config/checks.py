"""
The checks of settings: what a value must be, in words and as a test.

Errors go to terminals and logs, so they show no value that may be a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from typing import Any, Literal, NamedTuple

from mcpbridge.errors import Described, SettingError

#: How an option gives a value: as one text, as a number, by being there, or in parts.
Form = Literal[
    "text",
    "integer",
    "number",
    "flag",
    "directory",
    "file",
    "list",
    "mapping",
    "json",
    "secret",
    "account",
]


class Check(NamedTuple):
    """The rule for a value, in words and as a test, and how an option gives the value."""

    expected: str
    accepts: Callable[[Any], bool]
    #: Makes the errors of a value that must not be shown.
    complain: Callable[[str, Any], Iterator[SettingError]] | None = None
    form: Form = "text"
    #: Stands for the value in `--help`.
    metavar: str = ""
    #: The rule as JSON Schema, as far as that can say it, without null and variables.
    schema: Mapping[str, Any] = {}

    def errors(self, name: str, value: object) -> Iterator[SettingError]:
        """Yield everything that is wrong with a value."""
        if self.accepts(value):
            return
        if self.complain is not None:
            yield from self.complain(name, value)
        else:
            yield SettingError(name, self.expected, value)


#: A text with more digits than this is not taken for an integer.
_DIGITS = re.compile(r"[+-]?[0-9]{1,30}")

#: Characters of other pattern languages, of lists and of shells: no name holds them.
_NO_PATTERN = frozenset("?[]{}$,;|'\"\t\r\n ")


def kind_of(value: object) -> object:
    """Describe a value without showing it, as it may hold a secret."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return Described(f"a string of {len(value)} characters" if value else "an empty string")
    if isinstance(value, (int, float)):
        return Described("a number")
    if isinstance(value, Mapping):
        return Described("an object")
    is_list = isinstance(value, (list, tuple))
    return Described("a list" if is_list else f"a value of type {type(value).__name__}")


def _wrong_command(name: str, value: Any) -> Iterator[SettingError]:
    """Hide a list: it holds arguments."""
    shown = value if isinstance(value, str) else kind_of(value)
    yield SettingError(name, COMMAND.expected, shown)


def _wrong_texts(name: str, value: Any) -> Iterator[SettingError]:
    """Hide arguments: they may be keys and passwords."""
    if not isinstance(value, (list, tuple)):
        yield SettingError(name, TEXTS.expected, kind_of(value))
        return
    for at, each in enumerate(value):
        if not is_text(each):
            yield SettingError(f"{name}[{at}]", _text_for(each), kind_of(each))


def _wrong_names(name: str, value: Any) -> Iterator[SettingError]:
    """Hide values: somebody may write NAME=VALUE for a name."""
    if not isinstance(value, (list, tuple)):
        yield SettingError(name, ENV_NAMES.expected, kind_of(value))
        return
    shown = [_without_value(each) if isinstance(each, str) else kind_of(each) for each in value]
    yield SettingError(name, ENV_NAMES.expected, shown)


def _wrong_environment(name: str, value: Any) -> Iterator[SettingError]:
    """Name the variable and hide its value."""
    if not isinstance(value, Mapping):
        yield SettingError(name, ENVIRONMENT.expected, kind_of(value))
        return
    for key, text in value.items():
        if not _is_env_name(key):
            shown = _without_value(key) if isinstance(key, str) else kind_of(key)
            yield SettingError(name, ENVIRONMENT.expected, Described(f"the name {shown!r}"))
        elif not is_text(text):
            yield SettingError(f"{name}.{key}", _text_for(text), kind_of(text))


def _hidden(expected: str) -> Callable[[str, Any], Iterator[SettingError]]:
    """Make errors for a value that is never shown."""

    def complain(name: str, value: Any) -> Iterator[SettingError]:
        yield SettingError(name, expected, kind_of(value))

    return complain


def _without_value(text: str) -> str:
    name, equals, _ = text.partition("=")
    return f"{name}=..." if equals else name


def _text_for(wrong: object) -> str:
    return "a string without NUL characters" if isinstance(wrong, str) else TEXT.expected


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Accept a string that can be passed to the system."""
    return isinstance(value, str) and "\0" not in value


def _is_env_name(value: object) -> bool:
    return is_text(value) and value != "" and "=" not in str(value)


def _is_env_pattern(value: object) -> bool:
    """Accept one name, in which `*` may match any characters."""
    return _is_env_name(value) and "**" not in str(value) and not set(str(value)) & _NO_PATTERN


def _is_path_prefix(value: object) -> bool:
    return value == "" or (
        isinstance(value, str)
        and value.startswith("/")
        and not value.endswith("/")
        and "//" not in value
        and all(33 <= ord(c) < 127 and c not in "?#%<>" for c in value)
        and not {".", ".."} & set(value.split("/"))
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_secret(value: object) -> bool:
    return is_text(value) and len(str(value)) >= 32


def _is_host(value: object) -> bool:
    return isinstance(value, str) and value != "" and not set(value) & set("/ ?#@")


def _is_network(value: object) -> bool:
    try:
        return value == "unix" or (isinstance(value, str) and bool(ip_network(value, strict=False)))
    except ValueError:
        return False


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _is_field_name(value: object) -> bool:
    """Accept a token (RFC 9110, section 5.1), but not `*`, which CORS reads as any header."""
    return isinstance(value, str) and value != "*" and _TOKEN.fullmatch(value) is not None


def _is_origin(value: object) -> bool:
    if not isinstance(value, str):
        return False
    scheme, separator, host = value.partition("://")
    return value in ("*", "null") or (separator != "" and scheme.isalpha() and _is_host(host))


#: What a path prefix is, and a pattern of names, for schemas.
_PATH_PATTERN = r"^(?:/(?!\.{1,2}(?:/|$))[!\"$&-.0-;=@-~]+)*$"
_ENV_PATTERN = "^(?!.*\\*\\*)[^=?\\[\\]{}$,;|'\"\t\r\n ]+$"
_SOME_TEXT: Mapping[str, Any] = {"type": "string", "minLength": 1}
_DOTTED: Mapping[str, Any] = {"type": "string", "pattern": "[^.]\\.+[^.]"}

COUNT = Check(
    "an integer ≥ 1",
    _is_count,
    form="integer",
    metavar="N",
    schema={"type": "integer", "minimum": 1},
)
SHARE = Check(
    COUNT.expected,
    lambda v: v is None or _is_count(v),
    form="integer",
    metavar="N",
    schema={"type": "integer", "minimum": 1},
)
COUNT_OR_NONE = Check(
    "an integer ≥ 0",
    lambda v: type(v) is int and v >= 0,
    form="integer",
    metavar="N",
    schema={"type": "integer", "minimum": 0},
)
SECONDS = Check(
    "a number of seconds ≥ 0 and ≤ 1000000",
    lambda v: _is_number(v) and 0 <= v <= 1e6,
    form="number",
    metavar="SECONDS",
    schema={"type": "number", "minimum": 0, "maximum": 1_000_000},
)
POSITIVE_SECONDS = Check(
    "a number of seconds > 0 and ≤ 1000000",
    lambda v: _is_number(v) and 0 < v <= 1e6,
    form="number",
    metavar="SECONDS",
    schema={"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000},
)
RATE = Check(
    "a number ≥ 0 and ≤ 1000000",
    lambda v: _is_number(v) and 0 <= v <= 1e6,
    form="number",
    metavar="N",
    schema={"type": "number", "minimum": 0, "maximum": 1_000_000},
)
PART = Check(
    "a number from 0 to 1",
    lambda v: _is_number(v) and 0 <= v <= 1,
    form="number",
    metavar="PART",
    schema={"type": "number", "minimum": 0, "maximum": 1},
)
FLAG = Check(
    "true or false",
    lambda v: isinstance(v, bool),
    form="flag",
    schema={"type": "boolean"},
)
OPTIONAL_FLAG = Check(
    "true, false or null",
    lambda v: v is None or isinstance(v, bool),
    form="flag",
    schema={"type": "boolean"},
)
TEXT = Check(
    "a string",
    is_text,
    schema={"type": "string"},
)
COMMAND = Check(
    "a non-empty string",
    lambda v: is_text(v) and v != "",
    complain=_wrong_command,
    metavar="COMMAND",
    schema=_SOME_TEXT,
)
TEXTS = Check(
    "a list of strings",
    lambda v: isinstance(v, (list, tuple)) and all(map(is_text, v)),
    complain=_wrong_texts,
    form="list",
    metavar="ARG",
    schema={"type": "array", "items": {"type": "string"}},
)
ENV_NAMES = Check(
    "a list of environment variable names, in which `*` matches any characters",
    lambda v: isinstance(v, (list, tuple)) and all(map(_is_env_pattern, v)),
    complain=_wrong_names,
    form="list",
    metavar="NAME",
    schema={"type": "array", "items": {"type": "string", "pattern": _ENV_PATTERN}},
)
ENVIRONMENT = Check(
    "an object whose values are strings and whose keys contain no `=`",
    lambda v: isinstance(v, Mapping) and all(_is_env_name(n) and is_text(s) for n, s in v.items()),
    complain=_wrong_environment,
    form="mapping",
    metavar="NAME=VALUE",
    schema={
        "type": "object",
        "propertyNames": {"pattern": "^[^=]+$"},
        "additionalProperties": {"type": "string"},
    },
)
OBJECT = Check(
    "an object",
    lambda v: isinstance(v, Mapping),
    complain=_hidden("an object"),
    form="json",
    metavar="JSON",
    schema={"type": "object"},
)
_SECRET = "a string of at least 32 characters"
SECRET = Check(
    _SECRET,
    lambda v: v is None or _is_secret(v),
    complain=_hidden(_SECRET),
    form="secret",
    metavar="FILE",
    schema={"type": "string", "minLength": 32},
)
PATH_PREFIX = Check(
    "an empty string, or a path that starts with `/`, does not end with `/`, and has no space, no"
    " `//`, no `.` or `..` segment and none of the characters `?#%<>`",
    _is_path_prefix,
    metavar="PATH",
    schema={"type": "string", "pattern": _PATH_PATTERN},
)
OPTIONAL_PATH_PREFIX = Check(
    PATH_PREFIX.expected,
    lambda v: v is None or _is_path_prefix(v),
    metavar="PATH",
    schema={"type": "string", "pattern": _PATH_PATTERN},
)
DIRECTORY = Check(
    "the path of a directory",
    lambda v: v is None or (is_text(v) and v != ""),
    form="directory",
    metavar="DIR",
    schema=_SOME_TEXT,
)
INPUT_FILE = Check(
    "the path of a file",
    lambda v: v is None or (is_text(v) and v != ""),
    form="file",
    metavar="FILE",
    schema=_SOME_TEXT,
)
OUTPUT_FILE = Check(
    "the path of a file, or `-` for standard output",
    lambda v: v is None or (is_text(v) and v != ""),
    form="file",
    metavar="FILE",
    schema=_SOME_TEXT,
)
DOTTED_NAME = Check(
    "the dotted name of a callable, such as `package.module.Name`",
    lambda v: v is None or (is_text(v) and "." in v.strip(".")),
    metavar="NAME",
    schema=_DOTTED,
)
DOTTED_NAMES = Check(
    "a list of dotted names, such as `package.module.Name`",
    lambda v: isinstance(v, (list, tuple)) and all(is_text(n) and "." in n.strip(".") for n in v),
    form="list",
    metavar="NAME",
    schema={"type": "array", "items": _DOTTED},
)
HOSTS = Check(
    "a list of host names, with or without a port",
    lambda v: isinstance(v, (list, tuple)) and all(_is_host(n) for n in v),
    form="list",
    metavar="HOST",
    schema={"type": "array", "items": {"type": "string", "pattern": "^[^/ ?#@]+$"}},
)
NETWORKS = Check(
    "a list whose entries are IP addresses, networks such as `10.0.0.0/8`, or `unix`",
    lambda v: isinstance(v, (list, tuple)) and all(_is_network(n) for n in v),
    form="list",
    metavar="ADDRESS",
    schema={"type": "array", "items": {"type": "string", "pattern": "^(unix|[0-9A-Fa-f.:/%]+)$"}},
)
HEADER_NAMES = Check(
    "a list of HTTP header names, such as `X-Request-Id`",
    lambda v: isinstance(v, (list, tuple)) and all(_is_field_name(n) for n in v),
    form="list",
    metavar="NAME",
    schema={"type": "array", "items": {"type": "string", "pattern": rf"^(?!\*$){_TOKEN.pattern}$"}},
)
ORIGINS = Check(
    "a list whose entries are origins, such as `https://example.org`, or `*`",
    lambda v: isinstance(v, (list, tuple)) and all(_is_origin(n) for n in v),
    form="list",
    metavar="ORIGIN",
    schema={
        "type": "array",
        "items": {"type": "string", "pattern": "^(\\*|null|[A-Za-z]+://[^/ ?#@]+)$"},
    },
)

#: How many tools of a server may be measured each on its own.
MEASURED_TOOLS = 100
TOOL_NAMES = Check(
    f"a list of at most {MEASURED_TOOLS} names of tools",
    lambda v: (
        isinstance(v, (list, tuple))
        and len(v) <= MEASURED_TOOLS
        and all(is_text(n) and 0 < len(n) <= 128 for n in v)
    ),
    form="list",
    metavar="NAME",
    schema={
        "type": "array",
        "maxItems": MEASURED_TOOLS,
        "items": {"type": "string", "minLength": 1, "maxLength": 128},
    },
)
_LOG_LEVEL = re.compile(r"(?:[a-z_.]+=)?(?:debug|info|warn|error|critical)", re.ASCII)
LOG_LEVELS = Check(
    "a list of levels, `debug`, `info`, `warn`, `error` or `critical`, each for all components"
    " or, as in `web=debug`, for one",
    lambda v: (
        isinstance(v, (list, tuple))
        and all(isinstance(n, str) and _LOG_LEVEL.fullmatch(n) is not None for n in v)
    ),
    form="list",
    metavar="[COMPONENT=]LEVEL",
    schema={"type": "array", "items": {"type": "string", "pattern": f"^{_LOG_LEVEL.pattern}$"}},
)


def one_of(*words: str) -> Check:
    """Make a check that accepts one of a few words."""
    *others, last = (f"`{each}`" for each in words)
    expected = f"{', '.join(others)} or {last}"
    schema = {"enum": list(words)}
    return Check(expected, lambda v: v in words, metavar="|".join(words), schema=schema)


def from_text(form: Form, text: str) -> Any:
    """
    Return the value of a setting that a text stands for.

    A text that should be a number or a flag and is not stays as it is, for the setting's
    check to refuse.
    """
    if form in ("integer", "account"):
        return int(text) if _DIGITS.fullmatch(text) else text
    if form == "number":
        return _number(text)
    if form == "flag":
        return {"true": True, "false": False}.get(text, text)
    return text


def _number(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
