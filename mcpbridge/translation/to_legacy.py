"""
What a backend of 2026-07-28 says, as a client of an earlier revision must
see it.

Knows the messages of both eras; must not know which call is open or what is
subscribed to.  What needs no change stays byte-identical.
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
    InvalidParams,
)
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    encode,
    error_code_of,
    error_line,
    is_null,
    members,
    members_of,
    string_of,
    strings_of,
    value_of,
    with_meta,
)
from mcpbridge.mcp.capabilities import is_implementation, with_extensions
from mcpbridge.mcp.modern_request import SERVER_INFO, SUBSCRIPTION_ID

#: The results that say how long they may be kept (server/utilities/caching).
_CACHEABLE = frozenset(
    {"prompts/list", "resources/list", "resources/read", "resources/templates/list", "tools/list"}
)
#: Errors that blame the sender of a request of 2026-07-28, which is the bridge.
_OF_THE_BRIDGE = frozenset({HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION})
_LISTS = {
    "tools": "toolsListChanged",
    "prompts": "promptsListChanged",
    "resources": "resourcesListChanged",
}
_UNKNOWN = {"name": "unknown", "version": "0"}
_UNREADABLE = "the server's answer is none of JSON-RPC 2.0"
_OTHER_KIND = "the server's result is of a kind that this client cannot have"
#: How much of a text of others is repeated in one of the bridge's, in characters.
_SHOWN = 200

Kind = Literal["complete", "input_required", "unknown"]


def params_of(raw: msgspec.Raw | None, name: str) -> Members:
    """
    The members of an object that may be missing, or null.  Raises
    `InvalidParams`, which names it, for anything else.
    """
    found = {} if is_null(raw) else members(raw)  # type: ignore[arg-type]
    if found is None:
        raise InvalidParams(f"{name} must be an object")
    return found


def uris_of(raw: msgspec.Raw | None) -> frozenset[str]:
    """The resources in a filter of `subscriptions/listen`."""
    return frozenset(strings_of(members_of(raw).get("resourceSubscriptions")))


def reason_of(answer: Mapping[str, msgspec.Raw]) -> str:
    """Why an answer is an error, in the words of its sender, cut to a readable length."""
    said = string_of(members_of(answer.get("error")).get("message"))
    return "no reason was given" if said is None else said[:_SHOWN]


def initialize_result(discovered: Members, revision: str) -> dict[str, object]:
    """The InitializeResult of a session, from the result of `server/discover`."""
    capabilities = members_of(discovered.get("capabilities"))
    capabilities.pop("tasks", None)
    said: dict[str, object] = {
        "protocolVersion": revision,
        "capabilities": with_extensions(capabilities),
    }
    server = members_of(discovered.get("_meta")).get(SERVER_INFO)
    said["serverInfo"] = server if is_implementation(server) else _UNKNOWN
    instructions = discovered.get("instructions")
    if string_of(instructions) is not None:
        said["instructions"] = instructions
    return said


def changing_lists(discovered: Members) -> list[str]:
    """The members of a filter for the lists of which the server tells that they change."""
    capabilities = members_of(discovered.get("capabilities"))
    return [
        flag
        for name, flag in _LISTS.items()
        if value_of(members_of(capabilities.get(name)).get("listChanged")) is True
    ]


def kind_of(result: Members) -> Kind:
    """What a result is (basic/index, "ResultType"); one that does not say is complete."""
    said = string_of(result["resultType"]) if "resultType" in result else "complete"
    if said == "complete":
        return "complete"
    return "input_required" if said == "input_required" else "unknown"


def lower_result(answer: Members, result: Members, shown: msgspec.Raw, method: str) -> bytes:
    """An answer with a result that is complete; `shown` is the client's id, as it stands."""
    changes: dict[str, object] = {"resultType": msgspec.UNSET}
    if method in _CACHEABLE:
        changes |= {"ttlMs": msgspec.UNSET, "cacheScope": msgspec.UNSET}
    plain = changed(result, changes)
    if "_meta" in plain:
        plain = with_meta(plain, {SERVER_INFO: msgspec.UNSET})
    return encode({**answer, "id": shown, "result": plain})


def lower_error(answer: Members, shown: msgspec.Raw) -> bytes:
    """Any other answer."""
    if members_of(answer.get("result")):
        return error_line(shown, INTERNAL_ERROR, _OTHER_KIND)
    error = members_of(answer.get("error"))
    code = error_code_of(error)
    if code is None or string_of(error.get("message")) is None:
        return error_line(shown, INTERNAL_ERROR, _UNREADABLE)
    if code in _OF_THE_BRIDGE:
        text = f"the server refuses what the bridge has made of the request: {reason_of(answer)}"
        return error_line(shown, INTERNAL_ERROR, text)
    return encode({**answer, "id": shown})


def lower_notification(notice: Members) -> bytes:
    """A notification of a subscription, without the number of that."""
    params = with_meta(members_of(notice.get("params")), {SUBSCRIPTION_ID: msgspec.UNSET})
    return encode({**notice, "params": params})
