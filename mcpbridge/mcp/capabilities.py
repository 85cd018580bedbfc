"""
Capabilities and notifications that pass between peers of the two eras.

Knows what belongs to the specification itself, and that the extension of tasks
is not passed; must not know what any other extension means.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import msgspec

from mcpbridge.jsonrpc.members import Members, encode, members_of, string_of
from mcpbridge.mcp.modern_request import ACKNOWLEDGED, TASKS

#: The notifications of the specification, in any revision.  Those that pass
#: between the eras are translated one by one.
_CORE_NOTIFICATIONS = frozenset(
    {
        "notifications/cancelled",
        "notifications/elicitation/complete",
        "notifications/initialized",
        "notifications/message",
        "notifications/progress",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
        "notifications/roots/list_changed",
        ACKNOWLEDGED,
        "notifications/tasks",
        "notifications/tools/list_changed",
    }
)


def is_of_extension(method: object) -> bool:
    """
    Tell whether a notification's method is that of an extension, so that it
    passes from one era to the other; what is no string is not.
    """
    return (
        isinstance(method, str)
        and method != ""
        and method not in _CORE_NOTIFICATIONS
        and not method.startswith("notifications/tasks/")
    )


def with_extensions(capabilities: Members) -> Members:
    """
    Return capabilities with only those `extensions` that need no translation.

    One whose value is no object is left out, as a peer may refuse all of them
    because of it; `extensions` itself is left out where none remain.
    """
    raw = capabilities.get("extensions")
    if raw is None:
        return capabilities
    found = members_of(raw)
    kept = {name: each for name, each in found.items() if name != TASKS and _is_object(each)}
    if found and len(kept) == len(found):
        return capabilities
    rest = {name: each for name, each in capabilities.items() if name != "extensions"}
    return {**rest, "extensions": msgspec.Raw(encode(kept))} if kept else rest


def well_formed(capabilities: Members, known: AbstractSet[str]) -> Members:
    """
    Return capabilities without nulls, and without those of the `known` names
    whose values are no objects.
    """
    return {
        name: each
        for name, each in capabilities.items()
        if (_is_object(each) if name in known else bytes(each) != b"null")
    }


def is_implementation(raw: msgspec.Raw | None) -> bool:
    """Tell whether a member is an Implementation, which has a name and a version."""
    found = members_of(raw)
    return all(string_of(found.get(name)) is not None for name in ("name", "version"))


def _is_object(raw: msgspec.Raw) -> bool:
    return bytes(raw).startswith(b"{")
