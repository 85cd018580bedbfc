"""
The answers and notifications of a server, without what is not there for a client.

Knows which members of results have which lists, and keeps all other bytes as they are; must
not know who decides, nor what was asked for: whatever has the shape of a list is one, so
that no answer passes because its request was overlooked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from mcpbridge.errors import INTERNAL_ERROR
from mcpbridge.jsonrpc.envelope import split_batch
from mcpbridge.jsonrpc.fragments import is_too_deep
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    decode_members,
    decode_string,
    encode,
    error_line,
    is_complete,
    is_null,
    members,
    members_of,
    string_of,
)
from mcpbridge.jsonrpc.sliced_parser import WHOLE_BYTES
from mcpbridge.mcp.name_rules import Kind
from mcpbridge.mcp.named_requests import Allows
from mcpbridge.mcp.subscriptions import UPDATED

#: The largest answer with a list that is read, in bytes, and how many elements a list may
#: have: all of it is read in one turn of the reactor.
MAX_LIST_BYTES = 2 * 1024 * 1024
MAX_LISTED = 5_000


class ListMember(NamedTuple):
    """The member of a result that is a list: of what, and the member of each that names it."""

    kind: Kind
    name: str


LIST_MEMBERS = {
    "tools": ListMember("tools", "name"),
    "prompts": ListMember("prompts", "name"),
    "resources": ListMember("resources", "uri"),
    "resourceTemplates": ListMember("resources", "uriTemplate"),
}

#: Takes the names of one page of a list as the server has sent them, and whether another
#: page follows.
Listed = Callable[[str, list[str], bool], None]

#: Members of results that are no lists, whatever else they have.
_OF_OTHERS = frozenset({"content", "contents", "messages", "structuredContent", "protocolVersion"})
#: How large results begin that are no lists, and how they do that clients do not share either.
_BEGIN = rb'[^{]*\{[^{]*"result"\s*:\s*\{\s*"(?:%b)"\s*:'
_NO_LIST = re.compile(_BEGIN % b"content|contents|messages|structuredContent")
_NOT_SHARED = re.compile(_BEGIN % b"content|messages|structuredContent")
#: Within so many bytes.
_BEGIN_BYTES = 4096
#: What a message that is no JSON has if a lenient client may find in it what is to be left
#: out: a name, or an escape that may stand for a letter or a slash of one.
_SUSPECT = re.compile(
    rb'"(?:%b|cacheScope)"|resources\\?/updated|\\u00[2-7]' % "|".join(LIST_MEMBERS).encode()
)


class _Result(msgspec.Struct):
    tools: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompts: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    resources: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    resourceTemplates: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cacheScope: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Line(msgspec.Struct):
    method: str | msgspec.UnsetType = msgspec.UNSET
    result: _Result | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Line).decode
#: Takes NaN, too, and what follows a value.
_read_begin = json.JSONDecoder().raw_decode


class VisibleLists:
    """
    Takes out of a server's messages what is not there for one client.

    `restricted` are the kinds that may not all be there.  A result that clients may share
    (`cacheScope`, 2026-07-28, server/utilities/caching) becomes private if it is about one of
    `private`.  `listed` is told of the names in each list.
    """

    def __init__(
        self,
        allows: Allows,
        restricted: Iterable[Kind],
        private: Iterable[Kind],
        listed: Listed = lambda member, names, more: None,
    ) -> None:
        self._allows = allows
        kinds = frozenset(restricted)
        self._lists = {name: each for name, each in LIST_MEMBERS.items() if each.kind in kinds}
        self._private = frozenset(private)
        self._listed = listed
        self._unread = _NOT_SHARED if self._private else _NO_LIST

    def filtered(self, line: bytes) -> bytes | None:
        """Return a message of the server as the client may see it; None for none of it."""
        if len(line) > WHOLE_BYTES and self._unread.match(line, 0, _BEGIN_BYTES) is not None:
            return line
        try:
            found = _decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._filtered_slowly(line)
        result = found.result
        if found.method == UPDATED:
            return self._updated(line)
        if isinstance(result, msgspec.UnsetType):
            return line
        for name in self._lists:
            if getattr(result, name) is not msgspec.UNSET:
                return self._without(line)
        if self._private and result.cacheScope is not msgspec.UNSET:
            return self._without(line)
        return line if line.count(b'"result"') < 2 else _once(line, members_of(line))

    def _filtered_slowly(self, line: bytes) -> bytes | None:
        """Do the same for a batch, and for what is not as usual."""
        elements = split_batch(line)
        if elements is not None:
            kept = [each for one in elements if (each := self.filtered(one)) is not None]
            if kept == elements:
                return line
            return b"[" + b",".join(kept) + b"]" if kept else None
        outer = members(line)
        if outer is None:
            # Some clients read what is no JSON: Python writes and takes NaN.
            return line if _SUSPECT.search(line) is None else _without_json(line)
        if string_of(outer.get("method")) == UPDATED:
            return self._updated(line)
        result = members(outer.get("result", b"{}"))
        if result is None:
            return line if _SUSPECT.search(line) is None else self._without(line)
        if self._lists.keys().isdisjoint(result) and "cacheScope" not in result:
            return line if line.count(b'"result"') < 2 else _once(line, outer)
        return self._without(line)

    def _updated(self, line: bytes) -> bytes | None:
        """Return a notification about a resource; None if the resource is not there."""
        uri = string_of(members_of(members_of(line).get("params")).get("uri"))
        return line if uri is None or self._allows("resources", uri) else None

    def _without(self, line: bytes) -> bytes | None:
        """Return an answer without what is not there."""
        outer = members(line)
        if outer is None:
            return _without_json(line)
        result = members(outer.get("result", b""))
        if result is None:
            return _unreadable(outer, "has too many members beside it (MAX_MEMBERS)")
        changes: dict[str, object] = {}
        may_list = _OF_OTHERS.isdisjoint(result)
        for name, member in self._lists.items() if may_list else ():
            listed = result.get(name)
            if listed is None or is_null(listed):
                continue
            if len(line) > MAX_LIST_BYTES:
                return _unreadable(outer, f"has more than {MAX_LIST_BYTES} bytes (MAX_LIST_BYTES)")
            elements = split_batch(bytes(listed))
            if elements is None:
                return _unreadable(outer, f"has {name} that cannot be read")
            if len(elements) > MAX_LISTED:
                return _unreadable(outer, f"has more than {MAX_LISTED} {name} (MAX_LISTED)")
            names = [_name_of(each, member.name) for each in elements]
            kept = [
                each
                for each, found in zip(elements, names, strict=True)
                if found is not None and self._allows(member.kind, found)
            ]
            more = not is_null(result.get("nextCursor"))
            self._listed(name, [each for each in names if each is not None], more)
            if len(kept) != len(elements):
                changes[name] = msgspec.Raw(b"[" + b",".join(kept) + b"]")
        if self._is_shared(result):
            changes["cacheScope"] = "private"
        if not changes and is_complete(result, outer["result"]):
            return _once(line, outer)
        if not changes and not _has_twice(line):
            return line
        return encode({**outer, "result": changed(result, changes)})

    def _is_shared(self, result: Members) -> bool:
        """Tell whether others may get a result from a cache, of which not all may see all."""
        if not self._private or string_of(result.get("cacheScope")) != "public":
            return False
        kinds = {each.kind for name, each in LIST_MEMBERS.items() if name in result}
        if "contents" in result:
            kinds.add("resources")
        return not self._private.isdisjoint(kinds)


def _unreadable(outer: Members, why: str) -> bytes:
    """Return the answer in place of one that cannot be filtered."""
    text = f"the server's list {why}, so the bridge cannot leave out what is not for this client"
    return error_line(outer.get("id", msgspec.Raw(b"null")), INTERNAL_ERROR, text)


def _once(line: bytes, outer: Members) -> bytes:
    """Return a message with each of its members once: of two, a client may read the first."""
    if not outer or is_complete(outer, line):
        return line
    return encode(outer) if line.count(b'"result"') > 1 else line


def _has_twice(line: bytes) -> bool:
    """Tell whether a message may have one of the members twice that are looked at."""
    return any(line.count(b'"%b"' % each.encode()) > 1 for each in ("result", *LIST_MEMBERS))


def _without_json(line: bytes) -> bytes | None:
    """Return the answer in place of one that is no JSON; None in place of anything else."""
    if len(line) > MAX_LIST_BYTES:
        return None
    if is_too_deep(line):
        # Some Pythons would read it.
        return None
    try:
        found, _ = _read_begin(line.decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "method" in found:
        return None
    ident = found.get("id")
    if isinstance(ident, bool) or not isinstance(ident, str | int):
        return None
    return _unreadable({"id": msgspec.Raw(json.dumps(ident).encode())}, "is in no JSON")


def _name_of(element: bytes, member: str) -> str | None:
    """
    Return the name of an element; None for one without, and for one that clients might read
    in different ways, since it has the member twice or in other letters.
    """
    try:
        found = decode_members(element)
        if is_complete(found, element):
            other = member.lower()
            if not any(each.lower() == other for each in found if each != member):
                return decode_string(found[member])
    except (KeyError, ValueError, RecursionError, msgspec.MsgspecError):
        pass
    return _read_strictly(element, member)


def _read_strictly(element: bytes, member: str) -> str | None:
    if element.lstrip()[:1] != b"{":
        return None
    try:
        text = element.decode("utf-8")
        pairs = json.loads(text, object_pairs_hook=list, parse_int=float)
    except (ValueError, RecursionError):
        return None
    named = [(name, each) for name, each in pairs if name.casefold() == member.casefold()]
    if len(named) != 1:
        return None
    [(name, found)] = named
    return found if name == member and isinstance(found, str) else None
