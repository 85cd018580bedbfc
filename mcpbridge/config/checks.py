"""
What a setting must be, in words and as a test; and what is told of one that is wrong.

An error goes to terminals and logs, so it shows nothing that may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from typing import Any, NamedTuple

from mcpbridge.errors import SettingError


class Check(NamedTuple):
    """What a setting must be, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]
    #: The errors where the value itself is not to be shown.
    complain: Callable[[str, Any], Iterator[SettingError]] | None = None

    def errors(self, name: str, value: object) -> Iterator[SettingError]:
        """All that is wrong with a value; nothing where it is accepted."""
        if self.accepts(value):
            return
        if self.complain is not None:
            yield from self.complain(name, value)
        else:
            yield SettingError(name, self.expected, value)


#: What is no part of a variable's name, but of other patterns, of lists and of shells.
_NO_PATTERN = frozenset("?[]{}$,;|'\"\t\r\n ")


def kind_of(value: object) -> object:
    """What a value is, where what it holds may be secret."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return f"<a string of {len(value)} characters>"
    if isinstance(value, (int, float)):
        return "<a number>"
    if isinstance(value, Mapping):
        return "<an object>"
    return "<a list>" if isinstance(value, (list, tuple)) else f"<{type(value).__name__}>"


def _wrong_command(name: str, value: Any) -> Iterator[SettingError]:
    """A list has the arguments in it."""
    shown = value if isinstance(value, str) else kind_of(value)
    yield SettingError(name, COMMAND.expected, shown)


def _wrong_texts(name: str, value: Any) -> Iterator[SettingError]:
    """Arguments hold keys and passwords."""
    if not isinstance(value, (list, tuple)):
        yield SettingError(name, TEXTS.expected, kind_of(value))
        return
    for at, each in enumerate(value):
        if not is_text(each):
            yield SettingError(f"{name}[{at}]", _text_for(each), kind_of(each))


def _wrong_names(name: str, value: Any) -> Iterator[SettingError]:
    """Somebody may write NAME=VALUE for a name."""
    if not isinstance(value, (list, tuple)):
        yield SettingError(name, ENV_NAMES.expected, kind_of(value))
        return
    shown = [_without_value(each) if isinstance(each, str) else kind_of(each) for each in value]
    yield SettingError(name, ENV_NAMES.expected, shown)


def _wrong_environment(name: str, value: Any) -> Iterator[SettingError]:
    """Only the variable is named."""
    if not isinstance(value, Mapping):
        yield SettingError(name, ENVIRONMENT.expected, kind_of(value))
        return
    for key, text in value.items():
        if not _is_env_name(key):
            shown = _without_value(key) if isinstance(key, str) else kind_of(key)
            yield SettingError(name, ENVIRONMENT.expected, f"<the name {shown!r}>")
        elif not is_text(text):
            yield SettingError(f"{name}.{key}", _text_for(text), kind_of(text))


def _hidden(expected: str) -> Callable[[str, Any], Iterator[SettingError]]:
    """For a value that is never shown."""

    def complain(name: str, value: Any) -> Iterator[SettingError]:
        yield SettingError(name, expected, kind_of(value))

    return complain


def _without_value(text: str) -> str:
    name, equals, _ = text.partition("=")
    return f"{name}=..." if equals else name


def _text_for(wrong: object) -> str:
    return "a string without NUL" if isinstance(wrong, str) else TEXT.expected


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether it is a string that the system takes."""
    return isinstance(value, str) and "\0" not in value


def _is_env_name(value: object) -> bool:
    return is_text(value) and value != "" and "=" not in str(value)


def _is_env_pattern(value: object) -> bool:
    """Whether it is a name in which `*` may stand for any characters, and not several names."""
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
    """A token (RFC 9110, section 5.1); not `*`, which CORS reads as any header."""
    return isinstance(value, str) and value != "*" and _TOKEN.fullmatch(value) is not None


def _is_origin(value: object) -> bool:
    if not isinstance(value, str):
        return False
    scheme, separator, host = value.partition("://")
    return value in ("*", "null") or (separator != "" and scheme.isalpha() and _is_host(host))


COUNT = Check("an integer ≥ 1", _is_count)
SHARE = Check("an integer ≥ 1, or null for a half", lambda v: v is None or _is_count(v))
COUNT_OR_NONE = Check("an integer ≥ 0", lambda v: type(v) is int and v >= 0)
SECONDS = Check("a number of seconds ≥ 0 and ≤ 1000000", lambda v: _is_number(v) and 0 <= v <= 1e6)
POSITIVE_SECONDS = Check(
    "a number of seconds > 0 and ≤ 1000000", lambda v: _is_number(v) and 0 < v <= 1e6
)
FLAG = Check("true or false", lambda v: isinstance(v, bool))
TEXT = Check("a string", is_text)
COMMAND = Check(
    "a string that is not empty", lambda v: is_text(v) and v != "", complain=_wrong_command
)
TEXTS = Check(
    "a list of strings",
    lambda v: isinstance(v, (list, tuple)) and all(map(is_text, v)),
    complain=_wrong_texts,
)
ENV_NAMES = Check(
    "a list of names of environment variables, in which `*` stands for any characters",
    lambda v: isinstance(v, (list, tuple)) and all(map(_is_env_pattern, v)),
    complain=_wrong_names,
)
ENVIRONMENT = Check(
    "an object of strings, with names that hold no `=`",
    lambda v: isinstance(v, Mapping) and all(_is_env_name(n) and is_text(s) for n, s in v.items()),
    complain=_wrong_environment,
)
OBJECT = Check("an object", lambda v: isinstance(v, Mapping), complain=_hidden("an object"))
_SECRET = "a string of at least 32 characters"
SECRET = Check(_SECRET, lambda v: v is None or _is_secret(v), complain=_hidden(_SECRET))
PATH_PREFIX = Check(
    "an empty string or a path that starts with `/`, does not end with `/`, and holds no space,"
    " no `//`, no part `.` or `..` and none of `?#%<>`",
    _is_path_prefix,
)
OPTIONAL_PATH_PREFIX = Check(PATH_PREFIX.expected, lambda v: v is None or _is_path_prefix(v))
DIRECTORY = Check("the path of a directory", lambda v: v is None or (is_text(v) and v != ""))
DOTTED_NAME = Check(
    "the dotted name of a callable, as in `package.module.Name`",
    lambda v: v is None or (is_text(v) and "." in v.strip(".")),
)
DOTTED_NAMES = Check(
    "a list of dotted names, as in `package.module.Name`",
    lambda v: isinstance(v, (list, tuple)) and all(is_text(n) and "." in n.strip(".") for n in v),
)
HOSTS = Check(
    "a list of host names, with a port or without",
    lambda v: isinstance(v, (list, tuple)) and all(_is_host(n) for n in v),
)
NETWORKS = Check(
    "a list of IP addresses and networks, as in `10.0.0.0/8`, or `unix`",
    lambda v: isinstance(v, (list, tuple)) and all(_is_network(n) for n in v),
)
HEADER_NAMES = Check(
    "a list of names of HTTP header fields, as in `X-Request-Id`",
    lambda v: isinstance(v, (list, tuple)) and all(_is_field_name(n) for n in v),
)
ORIGINS = Check(
    "a list of origins, as in `https://example.org`, or `*`",
    lambda v: isinstance(v, (list, tuple)) and all(_is_origin(n) for n in v),
)
