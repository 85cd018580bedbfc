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

from mcpbridge.protocol.envelope import JsonRpcId

#: How much of each end of such a line is kept.
END_BYTES = 4096

_STRING = rb'"(?:[^"\\]|\\.)*"'
_SCALAR = rb"(?:" + _STRING + rb"|-?[0-9][0-9.eE+-]*|true|false|null)"
_SPACE = rb"[ \t\r]*"
_TOKEN = re.compile(_STRING + rb"|[{}\[\],:]|[^\s{}\[\],:\"]+")
#: The last members of an object, where all of them are scalars, up to its end.
_LAST_MEMBERS = re.compile(
    rb"((?:" + _SPACE.join([rb",", _STRING, rb":", _SCALAR, rb""]) + rb")+)\}" + _SPACE + rb"\Z"
)


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
        found = _first_members(self.head)
        last = _LAST_MEMBERS.search(self.tail)
        if last is not None:
            found |= _loads(b"{%b}" % last[1].lstrip(b" \t\r,"))
        return found

    @property
    def ident(self) -> JsonRpcId | msgspec.UnsetType:
        """The id of the message, UNSET where neither end shows it."""
        ident = self.members().get("id", msgspec.UNSET)
        is_id = isinstance(ident, str | int | float) and not isinstance(ident, bool)
        return ident if is_id else msgspec.UNSET  # type: ignore[return-value]

    @property
    def has_method(self) -> bool:
        """Whether it is known to be a request or a notification: no response has `params`."""
        return not {"method", "params"}.isdisjoint(self.members())


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
