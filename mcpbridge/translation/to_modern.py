"""
Responses of a legacy server, as a client of 2026-07-28 must see them.

Knows results and errors of both eras; must not know which request they answer.
What needs no change stays byte-identical.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mcpbridge.errors import INTERNAL_ERROR, INVALID_PARAMS
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    elements_of,
    encode,
    error_code_of,
    is_null,
    members,
    members_of,
    with_meta,
)
from mcpbridge.mcp.modern_request import SERVER_INFO

#: Methods whose results say how long they may be kept (2026-07-28, server/utilities/caching).
CACHEABLE = frozenset(
    {
        "server/discover",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
    }
)
#: 2025-11-25, client/elicitation, "URL Elicitation Required Error".
URL_ELICITATION_REQUIRED = -32042
#: 2025-11-25, server/resources, "Error Handling": a resource is not found.
RESOURCE_NOT_FOUND = -32002


class Outcome(NamedTuple):
    """The members of a response's result, or those of its error: one is None."""

    result: Members | None
    error: Members | None


def outcome_of(response: Members) -> Outcome:
    """
    Read the result or the error of a response, once.

    An error that is no object becomes one, and so does a result that is none.
    """
    raw = response.get("error")
    if raw is None or is_null(raw):
        result = members(response.get("result", b""))
        return Outcome(result, _NEITHER if result is None else None)
    return Outcome(None, members(raw) or _NEITHER)


def to_modern_result(method: str, result: Members, server_info: msgspec.Raw | None) -> Members:
    """
    Return a result with the members that 2026-07-28 asks for.

    A tool loses `execution`, which that revision does not have, and one that
    can only be called as a task is left out.
    """
    modern = _with_server_info(result, server_info)
    modern["resultType"] = _COMPLETE
    if method in CACHEABLE:
        # A legacy server does not say how long, so: not at all.
        modern = changed(modern, {"ttlMs": 0, "cacheScope": "private"})
    if method == "tools/list" and "tools" in result:
        modern = changed(modern, {"tools": _tools(result["tools"])})
    return modern


def input_required_result(
    requests: msgspec.Raw | None, state: str | None, server_info: msgspec.Raw | None
) -> Members:
    """Return an InputRequiredResult; requests or state must be there."""
    result: dict[str, object] = {"resultType": "input_required"}
    if requests is not None:
        result["inputRequests"] = requests
    if state is not None:
        result["requestState"] = state
    return _with_server_info(changed({}, result), server_info)


def to_modern_error(error: Members) -> Members:
    """
    Return an error with a message, and with a code that 2026-07-28 allows: it
    forbids two of the older ones (basic/index, "Error Codes").
    """
    code = error_code_of(error)
    changes: dict[str, object] = {}
    if code == RESOURCE_NOT_FOUND:
        changes["code"] = INVALID_PARAMS
    elif code is None or code == URL_ELICITATION_REQUIRED:
        changes["code"] = INTERNAL_ERROR
    if not bytes(error.get("message", b"")).startswith(b'"'):
        changes["message"] = "the server gave no reason"
    return changed(error, changes)


_COMPLETE = msgspec.Raw(b'"complete"')
_NEITHER = changed(
    {}, {"code": INTERNAL_ERROR, "message": "the server's answer has neither a result nor an error"}
)


def _with_server_info(result: Members, server_info: msgspec.Raw | None) -> Members:
    """Name the server in `_meta` (basic/index, "Per-response protocol fields")."""
    if "_meta" in result or server_info is None:
        return with_meta(
            result, {SERVER_INFO: msgspec.UNSET if server_info is None else server_info}
        )
    return {**result, "_meta": msgspec.Raw(encode({SERVER_INFO: server_info}))}


def _tools(listed: msgspec.Raw) -> object:
    tools = elements_of(listed)
    if tools is None:
        return listed
    kept: list[object] = []
    for each in tools:
        tool = members_of(each)
        if "execution" not in tool:
            kept.append(each)
        elif not _needs_task(tool.pop("execution")):
            kept.append(tool)
    return kept


def _needs_task(execution: msgspec.Raw) -> bool:
    return bytes(members_of(execution).get("taskSupport", b"")) == b'"required"'
