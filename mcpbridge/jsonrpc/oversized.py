"""
Reads the two ends of a message that is too large to be kept, or to be read as a whole.

Knows JSON-RPC and the first and the last bytes of a line; must not know who
waits for it.  Only members of the outermost object count, and nothing is
guessed: what the ends do not show is not known.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import msgspec

from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, peek
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES

#: How many bytes of each end are kept.
END_BYTES = 4096

#: How many of the last members are read, and how many commas are tried for each of
#: them, as a string may contain some.
LAST_MEMBERS = 16
COMMAS = 8

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_SCALAR = rb"(?:" + _STRING + rb"|-?[0-9][0-9.eE+-]*|true|false|null)"
_SPACE = rb"[ \t\r]*"
#: A string may be cut off: if it did not match, the search would be quadratic.
_TOKEN = re.compile(_STRING + rb"?|[{}\[\],:]|[^\s{}\[\],:\"]+")
_LAST_MEMBER = re.compile(_SPACE.join([rb",", _STRING, rb":", _SCALAR, rb""]))


#: A member before the large one, and the beginning of that.
_FIRST_MEMBER = re.compile(_SPACE.join([rb"", _STRING, rb":", _SCALAR, rb","]))
_LARGE_MEMBER = re.compile(_SPACE.join([rb"", _STRING, rb":", rb"(?=[{\[\"])"]))


def peek_at_server(line: bytes) -> Envelope | None:
    """
    Do what `peek` does for a server's line, in a time that does not grow with it.

    Of a line of more than `LARGE_BYTES` only the two ends are read, if they
    show a whole request or response around one large member.  What is large is
    not checked then, and `result` and `error` only tell that they exist.
    """
    if len(line) > LARGE_BYTES:
        envelope = peek(_without_large_member(line))
        if envelope is not None and (envelope.is_request or envelope.is_response):
            return envelope
    return peek(line)


def _without_large_member(line: bytes) -> bytes:
    """
    Return an object with `{}` for its first member that is no scalar, and without
    what stands between that and the last scalars; nothing if the ends do not show it.
    """
    if not line.startswith(b"{"):
        return b""
    head = line[:END_BYTES]
    at = 1
    while match := _FIRST_MEMBER.match(head, at):
        at = match.end()
    large = _LARGE_MEMBER.match(head, at)
    rest = line[-END_BYTES:].rstrip(b" \t\r")
    if large is None or not rest.endswith(b"}"):
        return b""
    begin = len(rest) - 1
    for _ in range(LAST_MEMBERS):
        before = _last_member(rest[:begin])
        if before is None:
            break
        begin = before
    return b"%b{}%b" % (head[: large.end()], rest[begin:])


class Oversized(NamedTuple):
    """A line that was not kept: up to `END_BYTES` of each end, and its size."""

    head: bytes
    tail: bytes
    size: int

    def members(self) -> dict[str, object]:
        """
        Return the members of the outermost object that the ends show: scalars
        with their values, others as UNSET, as only their presence is known.
        """
        return _first_members(self.head) | _last_members(self.tail)

    @property
    def ident(self) -> JsonRpcId | msgspec.UnsetType:
        """The id of the message; UNSET where neither end shows it."""
        return _ident(self.members())

    @property
    def has_method(self) -> bool:
        """Whether it is known to be a request or a notification: no response has `params`."""
        return _has_method(self.members())

    @property
    def answered(self) -> JsonRpcId | msgspec.UnsetType:
        """The id of a response; UNSET also for a request or a notification."""
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
            # A value that is cut off has nothing behind it.
            found |= _loads(b'{"%b":%b}' % (name.encode("ascii", "ignore"), token))
        before = token
    return found


def _last_members(tail: bytes) -> dict[str, object]:
    """Return the last members of an object, as far back as they are scalars."""
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
    """Return where the comma before the last member is; None where its value is no scalar."""
    at = len(text)
    for _ in range(COMMAS):
        at = text.rfind(b",", 0, at)
        if at < 0:
            return None
        if _LAST_MEMBER.fullmatch(text, at):
            return at
    return None


def _text(token: bytes) -> str | None:
    """Return the name of a member that matters; None for any other."""
    name = next(iter(_loads(b"{%b:0}" % token)), "")
    return name if name in ("id", "method", "params") else None


def _loads(text: bytes) -> dict[str, object]:
    try:
        found: dict[str, object] = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found
