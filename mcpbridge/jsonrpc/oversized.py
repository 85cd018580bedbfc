"""
What is known of a message that was too large to be kept: its two ends.

Knows JSON-RPC and the first and the last bytes of a line; must not know who
waits for it.  Only members of the outermost object count, and a guess is
never made: what the ends do not say is not known.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import msgspec

from mcpbridge.jsonrpc.envelope import JsonRpcId

#: How much of each end of such a line is kept.
END_BYTES = 4096

#: How many of the last members are looked at, and how many commas for each of
#: them, as a string may have some.
LAST_MEMBERS = 16
COMMAS = 8

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_SCALAR = rb"(?:" + _STRING + rb"|-?[0-9][0-9.eE+-]*|true|false|null)"
_SPACE = rb"[ \t\r]*"
#: A string may be cut off: a search that failed there would be quadratic.
_TOKEN = re.compile(_STRING + rb"?|[{}\[\],:]|[^\s{}\[\],:\"]+")
_LAST_MEMBER = re.compile(_SPACE.join([rb",", _STRING, rb":", _SCALAR, rb""]))


class Oversized(NamedTuple):
    """A line that was not kept: its first and last bytes, at most `END_BYTES`, and its size."""

    head: bytes
    tail: bytes
    size: int

    def members(self) -> dict[str, object]:
        """
        The members that the ends show of the outermost object: scalars by
        their values, others as UNSET, as it is known only that they are there.
        """
        return _first_members(self.head) | _last_members(self.tail)

    @property
    def ident(self) -> JsonRpcId | msgspec.UnsetType:
        """The id of the message, UNSET where neither end shows it."""
        return _ident(self.members())

    @property
    def has_method(self) -> bool:
        """Whether it is known to be a request or a notification: no response has `params`."""
        return _has_method(self.members())

    @property
    def answered(self) -> JsonRpcId | msgspec.UnsetType:
        """The id of the message, UNSET also where it is a request or a notification."""
        found = self.members()
        return msgspec.UNSET if _has_method(found) else _ident(found)


def _ident(found: dict[str, object]) -> JsonRpcId | msgspec.UnsetType:
    ident = found.get("id", msgspec.UNSET)
    is_id = isinstance(ident, str | int | float) and not isinstance(ident, bool)
    return ident if is_id else msgspec.UNSET  # type: ignore[return-value]


def _has_method(found: dict[str, object]) -> bool:
    return not {"method", "params"}.isdisjoint(found)


def _first_members(head: bytes) -> dict[str, object]:
    found: dict[str, object] = {}
    depth = 0
    name: str | None = None
    before = b""
    tokens = [match[0] for match in _TOKEN.finditer(head)]
    for token, after in zip(tokens, [*tokens[1:], b""], strict=True):
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
        elif depth == 1 and after == b":" and before in b"{,":
            name = _text(token)
            if name is not None:
                found[name] = msgspec.UNSET
        elif depth == 1 and before == b":" and name is not None and after in (b",", b"}"):
            # What is cut off has nothing behind it.
            found |= _loads(b'{"%b":%b}' % (name.encode("ascii", "ignore"), token))
        before = token
    return found


def _last_members(tail: bytes) -> dict[str, object]:
    """The last members of an object, as long as they are scalars, up to its end."""
    found: dict[str, object] = {}
    rest = tail.rstrip(b" \t\r")
    if not rest.endswith(b"}"):
        return found
    rest = rest[:-1]
    for _ in range(LAST_MEMBERS):
        at = _last_member(rest)
        if at is None:
            break
        found = _loads(b"{%b}" % rest[at + 1 :]) | found
        rest = rest[:at]
    return found


def _last_member(text: bytes) -> int | None:
    """Where the comma before it stands; None where it is no scalar."""
    at = len(text)
    for _ in range(COMMAS):
        at = text.rfind(b",", 0, at)
        if at < 0:
            return None
        if _LAST_MEMBER.fullmatch(text, at):
            return at
    return None


def _text(token: bytes) -> str | None:
    """The name of a member that matters; None for all others."""
    name = next(iter(_loads(b"{%b:0}" % token)), "")
    return name if name in ("id", "method", "params") else None


def _loads(text: bytes) -> dict[str, object]:
    try:
        found: dict[str, object] = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found
