"""
A legacy backend's answer, as a client of 2026-07-28 must see it.

Knows the shapes of results and errors of both eras; must not know which
request they belong to.  What needs no change stays byte-identical.
"""

from __future__ import annotations

import msgspec

from mcpbridge.errors import INTERNAL_ERROR, INVALID_PARAMS
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    elements_of,
    error_code_of,
    is_null,
    members,
    members_of,
    with_meta,
)
from mcpbridge.mcp.modern_request import SERVER_INFO

#: Whose results say how long they may be kept (2026-07-28, server/utilities/caching).
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


def complete(method: str, result: Members, server_info: msgspec.Raw | None) -> Members:
    """A result with what 2026-07-28 asks of it; tools without what it has no word for."""
    changes: dict[str, object] = {"resultType": "complete"}
    if method in CACHEABLE:
        # A legacy server says nothing of it, so: do not.
        changes.update(ttlMs=0, cacheScope="private")
    if method == "tools/list" and "tools" in result:
        changes["tools"] = _tools(result["tools"])
    return changed(_signed(result, server_info), changes)


def input_required(
    requests: msgspec.Raw | None, state: str | None, server_info: msgspec.Raw | None
) -> Members:
    """An InputRequiredResult; one of the two must be there."""
    whole: dict[str, object] = {"resultType": "input_required"}
    if requests is not None:
        whole["inputRequests"] = requests
    if state is not None:
        whole["requestState"] = state
    return _signed(changed({}, whole), server_info)


def error_of(message: Members) -> Members | None:
    """
    The error of a response; None where it has a result.  An error that is no
    object becomes one, and so does a result that is none.
    """
    error = message.get("error")
    if error is None or is_null(error):
        result = message.get("result")
        return _NO_OBJECT if result is None or members(result) is None else None
    return members(error) or _NO_OBJECT


def modern_error(error: Members) -> Members:
    """
    An error with a code of 2026-07-28, which forbids two of the older ones
    (basic/index, "Error Codes"), and with a message.
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


_NO_OBJECT = changed(
    {}, {"code": INTERNAL_ERROR, "message": "the server's answer has neither a result nor an error"}
)


def _signed(result: Members, server_info: msgspec.Raw | None) -> Members:
    """The same with the server's name (basic/index, "Per-response protocol fields")."""
    return with_meta(result, {SERVER_INFO: msgspec.UNSET if server_info is None else server_info})


def _tools(listed: msgspec.Raw) -> object:
    """Tools without `execution`; none that can only be called as a task."""
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
