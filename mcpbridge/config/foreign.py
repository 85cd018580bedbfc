"""
What the keys of other programs mean in the object of a server.

Knows the files of MCP clients; must not know how a file is read, nor what is made of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from mcpbridge.config.settings import ServerSettings

#: Keys of other programs in a server's object, which might be taken for misspelt
#: settings.
FOREIGN_KEYS = frozenset(
    {
        "alwaysAllow",
        "autoApprove",
        "autoStart",
        "description",
        "dev",
        "gallery",
        "icon",
        "initTimeout",
        "name",
        "networkTimeout",
        "notes",
        "requestTimeout",
        "source",
        "startupTimeout",
        "startup_timeout_ms",
        "startup_timeout_sec",
        "timeout",
        "title",
        "tool_timeout_sec",
        "trust",
        "version",
    }
)
#: Keys that restrict a server or its clients, without case and separators.  The bridge
#: does not enforce them, so it does not serve a server that has them.
_ALLOWS = frozenset({"includetags"})
_DENIES = frozenset({"excludetags", "sandbox", "sandboxenabled"})
#: Keys that list the tools that there are, and those that there are not, in the same
#: spelling.
_ALLOWED_TOOLS = frozenset(
    {"includetools", "includedtools", "enabledtools", "allowedtools", "allowtools"}
)
_DENIED_TOOLS = frozenset(
    {"excludetools", "excludedtools", "disabledtools", "deniedtools", "denytools"}
    | {"blockedtools", "hiddentools"}
)
#: How these are usually written, for one that is misspelt.
_TOOL_KEYS = ("includeTools", "enabledTools", "allowedTools", "excludeTools", "disabledTools")
#: Keys with which other programs log in to a remote server.
_LOGINS = frozenset({"oauth", "authprovidertype"})
#: Keys of a server that the bridge honours although they are not settings.
HONOURED = frozenset({"disabled", "enabled", "envFile", "transport", "type"})
#: Keys that have the URL of a remote server; the first is the setting.
URLS = ("url", "serverUrl", "httpUrl")
#: The words of `type` and `transport`, in lower case and without separators, and the
#: transport that each stands for; None for a command.  What other programs call `http` is
#: Streamable HTTP, or else HTTP+SSE.
_TRANSPORTS = {
    "stdio": None,
    "local": None,
    "http": "auto",
    "remote": "auto",
    "auto": "auto",
    "streamable": "streamable-http",
    "streamablehttp": "streamable-http",
    "sse": "sse",
}
_WORDS = "`stdio`, `http`, `streamable-http` or `sse`"
#: Other words for a setting that are not similar to its name.
_SYNONYMS = {
    "arguments": "args",
    "argv": "args",
    "cmd": "command",
    "directory": "cwd",
    "environ": "env",
    "environment": "env",
    "envvars": "env",
    "workdir": "cwd",
    "workingdir": "cwd",
    "workingdirectory": "cwd",
}
#: The settings of a server that a file may hold.
SERVER_KEYS = frozenset(each.name for each in fields(ServerSettings)) - {"name"}
#: How similar to a known key an unknown one must be to count as misspelt.
_NEAR = 0.8


class Finding(NamedTuple):
    """What is wrong with a key of a server's object."""

    key: str
    text: str


class Transport(NamedTuple):
    """Where a server is, and how it is reached."""

    is_remote: bool
    #: Settings that follow.
    settings: Mapping[str, Any]
    #: The key that has the URL.
    url_key: str
    findings: list[Finding]


def read_transport(entry: Mapping[str, Any]) -> Transport:
    """Read the keys that say whether a server is a command, or remote."""
    urls = [key for key in URLS if entry.get(key) is not None]
    settings: dict[str, Any] = {"url": entry[urls[0]]} if urls else {}
    found = [
        Finding(key, f"another URL than `{urls[0]}`; remove one of them")
        for key in urls[1:]
        if entry[key] != settings["url"]
    ]
    words: dict[str, str | None] = {}
    for key in ("type", "transport"):
        given = entry.get(key)
        if given is None:
            continue
        word = plain(given) if isinstance(given, str) else ""
        if word in _TRANSPORTS:
            words[key] = _TRANSPORTS[word]
        else:
            got = f", got {given[:40]!r}" if isinstance(given, str) else ""
            found.append(Finding(key, f"expected {_WORDS}{got}"))
    found += _contradictions(entry, words, bool(urls))
    named = {each for each in words.values() if each not in (None, "auto")}
    if named:
        settings["remote_transport"] = named.pop()
    is_remote = bool(urls) or any(each is not None for each in words.values())
    return Transport(is_remote, settings, urls[0] if urls else URLS[0], found)


def _contradictions(
    entry: Mapping[str, Any], words: Mapping[str, str | None], has_url: bool
) -> Iterator[Finding]:
    """Yield what is wrong with words that are right by themselves."""
    for key, word in words.items():
        if word is None and has_url:
            yield Finding(key, f"`{entry[key]}` is a command, which has no URL")
        elif word is not None and not has_url:
            yield Finding(key, f"`{entry[key]}` is a remote server, which needs a `url`")
    several = {each for each in words.values() if each != "auto"}
    if len(several) > 1 and has_url and None not in several:
        yield Finding("transport", "another transport than `type`; remove one of them")


def lists_tools(key: str) -> Literal["allow", "deny"] | None:
    """Tell whether a key of another program allows or denies tools."""
    if plain(key) in _ALLOWED_TOOLS:
        return "allow"
    return "deny" if plain(key) in _DENIED_TOOLS else None


def restricts_tools(key: str, names: object) -> bool:
    """Tell whether such a list restricts anything."""
    if names is None:
        return False
    if lists_tools(key) == "allow":
        # An empty list allows nothing.
        return not isinstance(names, list) or "*" not in names
    return names != []


def judge(key: str, value: object, *, is_remote: bool) -> str | None:
    """Return why a server cannot be served with an unknown key; None if it is ignored."""
    word = plain(key)
    if key.startswith(("_", "$", "/", "#", "x-")) or key in FOREIGN_KEYS:
        return None
    if is_restriction(key):
        if not _restricts(value, allows=word in _ALLOWS):
            return None
        if "sandbox" in word:
            return (
                f"`{key}`: mcpbridge has no such sandbox; remove the key to serve without one"
                " (`user` and `limits` confine a backend in part)"
            )
        return (
            f"`{key}` restricts tools by tags, which servers do not send; remove it, and name the"
            " tools in `tools`"
        )
    if word in _LOGINS:
        if is_remote and value:
            return f"`{key}`: mcpbridge does not log in to remote servers; put a token in `headers`"
        return None
    near = nearest(word, SERVER_KEYS | HONOURED | {*_TOOL_KEYS})
    return None if near is None else unknown(key, near)


def is_restriction(key: str) -> bool:
    """Tell whether a key restricts what the bridge does not enforce, or lists tools."""
    return plain(key) in _ALLOWS | _DENIES | _ALLOWED_TOOLS | _DENIED_TOOLS


def _restricts(value: object, *, allows: bool) -> bool:
    """Tell whether a list of tags, or a sandbox, restricts anything."""
    if allows:
        # An empty list allows nothing; `*` is all.
        return not (
            value is None or value in ({}, "*") or (isinstance(value, list) and "*" in value)
        )
    return bool(value)


def plain(key: str) -> str:
    """Return a key without case and separators."""
    return key.lower().replace("_", "").replace("-", "")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known key that a misspelt one stands for, if there is one."""
    if word in _SYNONYMS:
        return _SYNONYMS[word]
    ours = {plain(each): each for each in known}
    near = difflib.get_close_matches(word, ours, n=1, cutoff=_NEAR)
    return ours[near[0]] if near else None


def unknown(key: str, meant: str) -> str:
    """Say what is wrong with a misspelt key."""
    return f"unknown key `{key}`; did you mean `{meant}`?"
