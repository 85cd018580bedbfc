"""
Requests of clients that name a tool, a prompt or a resource, and what a client is told that
names one which is not there for it.

Knows methods and errors of all revisions; must not know who decides.  It reads leniently:
`mcp.operations` has refused before what another parser might read in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from mcpbridge.errors import INVALID_PARAMS, METHOD_NOT_FOUND
from mcpbridge.jsonrpc.members import (
    changed,
    error_line,
    members,
    members_of,
    string_of,
    strings_of,
)
from mcpbridge.mcp.modern_request import LISTEN, ModernRequest
from mcpbridge.mcp.name_rules import LONGEST_NAME, Kind, folded
from mcpbridge.mcp.operations import CLIENT_METHODS, COMPLETE, NAMED_BY
from mcpbridge.mcp.subscriptions import RESOURCES

#: Until 2025-11-25, server/resources, "Error Handling".
RESOURCE_NOT_FOUND = -32002
#: An error shows so many characters of a name.
SHOWN_NAME = 500

_TOO_LONG = "x" * (LONGEST_NAME + 1)
#: Methods whose parameters name something.
_NAMING = frozenset({*NAMED_BY, COMPLETE, LISTEN})

#: Tells whether something is there for the client in question.
Allows = Callable[[Kind, str], bool]

#: What the methods of `NAMED_BY` are about.
KINDS_OF: dict[str, Kind] = {
    "tools/call": "tools",
    "prompts/get": "prompts",
    "resources/read": "resources",
    "resources/subscribe": "resources",
    "resources/unsubscribe": "resources",
}


class Missing(NamedTuple):
    """The error for something that does not exist, or not for this client."""

    code: int
    text: str
    data: object = None

    def line(self, ident: msgspec.Raw) -> bytes:
        """Return the answer to the request of this id."""
        return error_line(ident, self.code, self.text, self.data)


def missing(
    method: str, params: Mapping[str, msgspec.Raw], allows: Allows, *, modern: bool = False
) -> Missing | None:
    """
    Return the error for a request with these parameters whose object is not there; None for
    all others.  `modern` if it is of 2026-07-28, whose codes are others.
    """
    wanted = NAMED_BY.get(method)
    if wanted is not None:
        kind = KINDS_OF[method]
        name = string_of(params.get(wanted))
        # A digest is without a name that is too long; nothing of that name is there.
        if allows(kind, _TOO_LONG if name is None else name):
            return None
        return _missing(kind, name or "", modern)
    if method == COMPLETE:
        return _missing_reference(members_of(params.get("ref")), allows)
    if method == LISTEN:
        uris = strings_of(members_of(params.get("notifications")).get(RESOURCES))
        absent = next((each for each in uris if not allows("resources", each)), None)
        return None if absent is None else _missing("resources", absent, modern)
    if _is_disguised(method):
        return Missing(METHOD_NOT_FOUND, f"Method not found: {method[:SHOWN_NAME]}")
    return None


def _is_disguised(method: str) -> bool:
    """Tell whether a server that is lenient could take a method for one that names something."""
    return method not in CLIENT_METHODS and folded(method) in _NAMING


def _missing(kind: Kind, name: str, modern: bool) -> Missing:
    shown = name[:SHOWN_NAME]
    if kind == "resources":
        code = INVALID_PARAMS if modern else RESOURCE_NOT_FOUND
        return Missing(code, "Resource not found", {"uri": shown})
    return Missing(INVALID_PARAMS, f"Unknown {kind[:-1]}: {shown}")


def _missing_reference(ref: Mapping[str, msgspec.Raw], allows: Allows) -> Missing | None:
    """Look at both members, whatever the type says: the server may look at one alone."""
    prompt, uri = string_of(ref.get("name")), string_of(ref.get("uri"))
    if prompt is not None and not allows("prompts", prompt):
        return Missing(INVALID_PARAMS, f"Unknown prompt: {prompt[:SHOWN_NAME]}")
    if uri is not None and not allows("resources", uri):
        return Missing(INVALID_PARAMS, f"Unknown resource: {uri[:SHOWN_NAME]}")
    return None


class Verdict(NamedTuple):
    """What becomes of a message: it passes, or not, perhaps with an answer."""

    passes: bool
    answer: bytes | None = None


#: Of nearly all messages.
PASSES = Verdict(True)
_DROPPED = Verdict(False)


class _Named(msgspec.Struct):
    name: str | msgspec.UnsetType = msgspec.UNSET
    uri: str | msgspec.UnsetType = msgspec.UNSET


class _Message(msgspec.Struct):
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: _Named | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Message).decode


def judge(line: bytes, allows: Allows) -> Verdict | None:
    """
    Return what becomes of one message of a session; None for a line that is no object, such
    as a batch.  Of a large message `line` may be a digest.
    """
    try:
        message = _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _judge_closely(line, allows)
    method = message.method
    if isinstance(method, msgspec.UnsetType):
        return PASSES
    wanted = NAMED_BY.get(method)
    if wanted is None:
        unnamed = method not in (COMPLETE, LISTEN) and not _is_disguised(method)
        return PASSES if unnamed else _judge_closely(line, allows)
    name = getattr(message.params, wanted, msgspec.UNSET)
    if name is not msgspec.UNSET and allows(KINDS_OF[method], name):
        return PASSES
    return _judge_closely(line, allows)


def _judge_closely(line: bytes, allows: Allows) -> Verdict | None:
    """Do the same for a message that does not pass, or is not as usual."""
    outer = members(line)
    if outer is None:
        return None
    method = string_of(outer.get("method"))
    params = members_of(outer.get("params"))
    absent = None if method is None else missing(method, params, allows)
    if absent is None:
        return PASSES
    return Verdict(False, absent.line(outer["id"])) if "id" in outer else _DROPPED


def judge_request(request: ModernRequest, allows: Allows) -> bytes | ModernRequest:
    """
    Return the answer to a request of 2026-07-28 for what is not there; else the request as it
    is to pass, which is nearly always the same one.
    """
    method = request.method
    if method == LISTEN:
        return without_missing_resources(request, allows)
    kind = KINDS_OF.get(method)
    if kind is None:
        if method != COMPLETE and not _is_disguised(method):
            return request
    elif request.name is not None and allows(kind, request.name):
        return request
    absent = missing(method, request.params, allows, modern=True)
    return request if absent is None else absent.line(request.outer["id"])


def without_missing_resources(request: ModernRequest, allows: Allows) -> ModernRequest:
    """
    Return a `subscriptions/listen` without the resources that are not there, which are not
    acknowledged then, as a server does with those that do not exist.
    """
    wanted = members_of(request.params.get("notifications"))
    uris = strings_of(wanted.get(RESOURCES))
    kept = [each for each in uris if allows("resources", each)]
    if len(kept) == len(uris):
        return request
    params = changed(request.params, {"notifications": changed(wanted, {RESOURCES: kept})})
    outer = changed(request.outer, {"params": params})
    return msgspec.structs.replace(request, outer=outer, params=params)
