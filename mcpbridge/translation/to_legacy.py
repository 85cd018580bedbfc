"""
Messages of a server of 2026-07-28, as a client of an earlier revision must see them.

Knows the messages of both eras; must not know which call is open, nor what a
client is subscribed to.  What needs no change stays byte-identical.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from mcpbridge.errors import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    MISSING_CAPABILITY,
    UNSUPPORTED_VERSION,
)
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    encode,
    error_code_of,
    error_line,
    members_of,
    meta_of,
    string_of,
    strings_of,
    value_of,
    with_meta,
)
from mcpbridge.mcp.capabilities import is_implementation, with_extensions
from mcpbridge.mcp.modern_request import SERVER_INFO, SUBSCRIPTION_ID

#: Methods whose results say how long they may be kept (server/utilities/caching).
_CACHEABLE = frozenset(
    {"prompts/list", "resources/list", "resources/read", "resources/templates/list", "tools/list"}
)
#: Errors that blame the sender of a request of 2026-07-28, which is the bridge.
_CAUSED_BY_BRIDGE = frozenset({HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION})
#: The member of a subscription's filter for each capability with `listChanged`.
_LIST_FILTERS = {
    "tools": "toolsListChanged",
    "prompts": "promptsListChanged",
    "resources": "resourcesListChanged",
}
_UNKNOWN_SERVER = {"name": "unknown", "version": "0"}
_UNREADABLE = "the server's answer is not a JSON-RPC 2.0 response"
_OTHER_TYPE = "the server's result is of a type that this client's revision does not have"
#: How much of a peer's error message the bridge repeats, in characters.
_SHOWN_CHARS = 200

ResultType = Literal["complete", "input_required", "unknown"]


def subscribed_uris(raw: msgspec.Raw | None) -> frozenset[str]:
    """Return the resources in a filter of `subscriptions/listen`."""
    return frozenset(strings_of(members_of(raw).get("resourceSubscriptions")))


def error_message(response: Mapping[str, msgspec.Raw]) -> str:
    """Return the message of a response's error, cut to a readable length."""
    message = string_of(members_of(response.get("error")).get("message"))
    return "no reason was given" if message is None else message[:_SHOWN_CHARS]


def initialize_result(discovered: Members, revision: str) -> dict[str, object]:
    """Return the InitializeResult of a session, from the result of `server/discover`."""
    capabilities = members_of(discovered.get("capabilities"))
    capabilities.pop("tasks", None)
    server_info = meta_of(discovered).get(SERVER_INFO)
    result: dict[str, object] = {
        "protocolVersion": revision,
        "capabilities": with_extensions(capabilities),
        "serverInfo": server_info if is_implementation(server_info) else _UNKNOWN_SERVER,
    }
    instructions = discovered.get("instructions")
    if string_of(instructions) is not None:
        result["instructions"] = instructions
    return result


def list_filters(discovered: Members) -> list[str]:
    """Return the members of a subscription's filter for the lists that may change."""
    capabilities = members_of(discovered.get("capabilities"))
    return [
        flag
        for name, flag in _LIST_FILTERS.items()
        if value_of(members_of(capabilities.get(name)).get("listChanged")) is True
    ]


def result_type(result: Members) -> ResultType:
    """Return the type of a result (basic/index, "ResultType"), which is complete by default."""
    found = string_of(result["resultType"]) if "resultType" in result else "complete"
    if found == "complete":
        return "complete"
    return "input_required" if found == "input_required" else "unknown"


def to_legacy_result(response: Members, result: Members, raw_id: msgspec.Raw, method: str) -> bytes:
    """Return a response with a complete result; `raw_id` is the client's id, as it stands."""
    changes: dict[str, object] = {"resultType": msgspec.UNSET}
    if method in _CACHEABLE:
        changes |= {"ttlMs": msgspec.UNSET, "cacheScope": msgspec.UNSET}
    legacy = changed(result, changes)
    if "_meta" in legacy:
        legacy = with_meta(legacy, {SERVER_INFO: msgspec.UNSET})
    return encode({**response, "id": raw_id, "result": legacy})


def to_legacy_error(response: Members, raw_id: msgspec.Raw) -> bytes:
    """Return any other response as an error."""
    if members_of(response.get("result")):
        return error_line(raw_id, INTERNAL_ERROR, _OTHER_TYPE)
    error = members_of(response.get("error"))
    code = error_code_of(error)
    if code is None or string_of(error.get("message")) is None:
        return error_line(raw_id, INTERNAL_ERROR, _UNREADABLE)
    if code in _CAUSED_BY_BRIDGE:
        why = error_message(response)
        text = f"the server refuses the request as the bridge has translated it: {why}"
        return error_line(raw_id, INTERNAL_ERROR, text)
    return encode({**response, "id": raw_id})


def to_legacy_notification(notification: Members) -> bytes:
    """Return a notification of a subscription without the subscription's number."""
    params = with_meta(members_of(notification.get("params")), {SUBSCRIPTION_ID: msgspec.UNSET})
    return encode({**notification, "params": params})
