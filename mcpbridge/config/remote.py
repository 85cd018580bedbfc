"""
The settings of a remote server: its URL, and what is sent with each request.

Knows URLs and headers; must not know how requests are made.  No error shows a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from mcpbridge.config.auth import PROTOCOL_HEADERS
from mcpbridge.config.checks import Check, kind_of
from mcpbridge.errors import Described, SettingError

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
#: RFC 9110, section 5.5, without whitespace at the ends and without obsolete octets.
_FIELD_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
#: How many headers a remote server may be sent.
REMOTE_HEADERS = 64
_URL = "an `http` or `https` URL without a user, a password and a fragment"
_HEADERS = "an object of HTTP headers, whose values are strings"


def _wrong_url(name: str, value: Any) -> Iterator[SettingError]:
    """Hide the URL: its query may have a key."""
    if not isinstance(value, str):
        yield SettingError(name, _URL, kind_of(value))
        return
    why = _error_of(value)
    if why is not None:
        yield SettingError(name, _URL, Described(why))


def _error_of(url: str) -> str | None:
    """Return what is wrong with a URL."""
    if not url.isascii() or any(not "!" <= each <= "~" for each in url):
        return "a URL with a character that must be percent-encoded"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "a text that is no URL"
    if parts.scheme not in ("http", "https"):
        return "one of another scheme, or none"
    if parts.username is not None or parts.password is not None:
        return "one with a user or a password; send it in `headers`"
    if not parts.hostname or port == 0:
        return "one without a host, or with port 0"
    return "one with a fragment" if "#" in url else None


def _wrong_headers(name: str, value: Any) -> Iterator[SettingError]:
    """Name the header and hide its value."""
    if not isinstance(value, Mapping):
        yield SettingError(name, _HEADERS, kind_of(value))
        return
    if len(value) > REMOTE_HEADERS:
        yield SettingError(name, f"at most {REMOTE_HEADERS} headers (REMOTE_HEADERS)", len(value))
    seen: set[str] = set()
    for header, text in value.items():
        if not isinstance(header, str) or not _FIELD_NAME.fullmatch(header):
            shown = header.partition(":")[0] if isinstance(header, str) else kind_of(header)
            expected = "names of HTTP headers, such as `X-Api-Key`"
            yield SettingError(name, expected, Described(f"the name {shown!r}"))
            continue
        place = f"{name}.{header}"
        if header.lower() in PROTOCOL_HEADERS:
            expected = "a header of your own; the bridge sets this one"
            yield SettingError(place, expected, Described(header))
        elif header.lower() in seen:
            yield SettingError(place, "each header once", Described("it in other letters, too"))
        elif not isinstance(text, str):
            yield SettingError(place, "a string", kind_of(text))
        elif not _FIELD_VALUE.fullmatch(text):
            expected = "a value of printable ASCII characters, without spaces at its ends"
            yield SettingError(place, expected, kind_of(text))
        seen.add(header.lower())


REMOTE_URL = Check(
    _URL,
    lambda v: v is None or next(_wrong_url("", v), None) is None,
    complain=_wrong_url,
    metavar="URL",
    schema={"type": "string", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@ ]+(?:[/?][^# ]*)?$"},
)
FIELDS = Check(
    _HEADERS,
    lambda v: next(_wrong_headers("", v), None) is None,
    complain=_wrong_headers,
    form="mapping",
    metavar="NAME=VALUE",
    schema={
        "type": "object",
        "maxProperties": REMOTE_HEADERS,
        "propertyNames": {"pattern": f"^{_FIELD_NAME.pattern}$"},
        "additionalProperties": {"type": "string", "minLength": 1},
    },
)
