"""
The spellings of a URI that a server may take for the same resource.

Knows RFC 3986 and what servers do beside it: many cut the scheme off and give the rest
to the file system, which knows neither queries nor percent-encoding.  Must not know
which resources anybody may read.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

#: How often a percent-encoded text is decoded: some servers do that more than once.
DECODINGS = 3

_PARTS = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SLASHES = re.compile(r"[/\\]+")
#: A scheme, an authority or none, and a path in which nothing can be spelled in another way.
_PLAIN = re.compile(
    r"(?!file://[^/])([a-z][a-z0-9+.-]*+):(?://(?![^/]*[A-Z])(?![^/]*\./|[^/]*\.$))?+"
    r"((?:/?+[A-Za-z0-9_~-][A-Za-z0-9._~-]*+)++)"
)
#: Stands for a `*` in a pattern: for private use in Unicode, so that nothing changes it.
WILDCARD = "\uf8ff"
#: Hosts in a `file` URI that mean this machine.
_LOCAL = frozenset({"", "localhost", "127.0.0.1", "[::1]"})
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443", "ftp": "21"}


class UriForms(NamedTuple):
    """
    One URI in four forms, or a pattern of such URIs.

    `written` is as it was sent; `normal` after RFC 3986, section 6.2.2.  `path` is all
    decoded, without query and fragment, and `whole` the same of all of it, as if nothing but
    slashes had a meaning.
    """

    written: str
    normal: str
    path: str
    whole: str


def uri_forms(uri: str) -> UriForms:
    """Return the forms of a URI.  Never raises: what is no URI has forms, too."""
    plain = _PLAIN.fullmatch(uri)
    if plain is not None:
        short = f"{plain[1]}:/{plain[2].lstrip('/')}"
        return UriForms(uri, uri, short, short)
    return any_forms(uri)


def any_forms(uri: str) -> UriForms:
    """Do the same without the quick way for what nearly all URIs look like."""
    text = uri.strip()
    match = _PARTS.fullmatch(text)
    assert match is not None, "every text has these parts"
    scheme, authority, path, query, fragment = (each or "" for each in match.groups())
    if match[1] is None:
        bare = _flat(text).lstrip("/")
        return UriForms(uri, _normal_escapes(text), bare, bare)
    scheme, host = scheme.lower(), authority.lower()
    begin = f"{scheme}:" if match[2] is None else f"{scheme}://{_normal_escapes(host)}"
    normal_path = _normal_escapes(path)
    if "/." in normal_path:
        normal_path = _without_dots(normal_path)
    normal = begin + normal_path + _normal_escapes(query) + _normal_escapes(fragment)
    host = _plain_host(scheme, _decoded(host))
    rest = path if match[2] is None else f"{host}{path}"
    short = f"{scheme}:{_flat(rest)}"
    whole = f"{scheme}:{_flat(rest + query + fragment)}" if query or fragment else short
    return UriForms(uri, normal, short, whole)


def pattern_forms(pattern: str) -> UriForms:
    """Return the forms of a pattern, with `WILDCARD` in place of each `*`."""
    text = pattern.replace("*", WILDCARD)
    if WILDCARD not in text.partition(":")[0]:
        return any_forms(text)
    # Of which scheme it is, if any, is not known: so neither is where its path begins.
    loose = _SLASHES.sub("/", _decoded(text)).lstrip("/")
    return UriForms(text, _normal_escapes(text), loose, loose)


def _normal_escapes(text: str) -> str:
    """Decode what need not be encoded, and write the rest in capital letters."""
    return text if "%" not in text else _ENCODED.sub(_normal_escape, text)


def _normal_escape(match: re.Match[str]) -> str:
    letter = chr(int(match[0][1:], 16))
    return letter if letter in _UNRESERVED else match[0].upper()


def _decoded(text: str) -> str:
    for _ in range(DECODINGS):
        if "%" not in text:
            break
        text = unquote(text, errors="surrogateescape")
    return text


def _flat(text: str) -> str:
    """Return a decoded path from the root, as a file system reads it."""
    flat = _SLASHES.sub("/", "/" + _decoded(text))
    if "/." in flat:
        flat = _without_dots(flat)
    # The C library takes a NUL for the end.
    return flat.partition("\0")[0]


def _without_dots(path: str) -> str:
    """Remove dot segments (RFC 3986, section 5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            if len(kept) > 1:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept)


def _plain_host(scheme: str, authority: str) -> str:
    """Return the host, with a port only if that is not the usual one."""
    host = authority.rpartition("@")[2]
    name, colon, port = host.rpartition(":")
    if colon and port in ("", _DEFAULT_PORTS.get(scheme)):
        host = name
    return "" if scheme == "file" and host in _LOCAL else host.rstrip(".")
