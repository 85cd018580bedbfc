"""
The stream of `subscriptions/listen` for a client of 2026-07-28, where the
bridge itself answers it (basic/patterns/subscriptions).

Knows filters and the lines of a stream; must not know who subscribes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from mcpbridge.errors import InvalidParams
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    encode,
    members_of,
    notification_line,
    result_line,
    string_of,
    with_meta,
)
from mcpbridge.mcp.modern_request import ACKNOWLEDGED, SERVER_INFO, SUBSCRIPTION_ID

#: The most resources in one subscription.
MAX_RESOURCES = 1024

UPDATED = "notifications/resources/updated"
#: The notifications beside updates, and the member of the filter for each.
LIST_CHANGED = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}
RESOURCES = "resourceSubscriptions"
_LISTS = ("tools", "prompts", "resources")


class Change(NamedTuple):
    """
    A notification for subscribers: the member of the filter that asks for it,
    the resource where it is about one, and the line as it came.
    """

    kind: str
    uri: str | None
    line: bytes


class Filter(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a client subscribes to, or is promised: a SubscriptionFilter."""

    tools_list_changed: bool = False
    prompts_list_changed: bool = False
    resources_list_changed: bool = False
    resource_subscriptions: tuple[str, ...] = ()

    def wants(self, change: Change) -> bool:
        """
        Tell whether a change passes the filter.

        A change of a resource also passes for one that contains it
        (2026-07-28, `ResourceUpdatedNotification`).
        """
        if change.uri is None:
            return bool(getattr(self, _FIELDS[change.kind]))
        return any(_is_part(change.uri, uri) for uri in self.resource_subscriptions)


_FIELDS = {
    "toolsListChanged": "tools_list_changed",
    "promptsListChanged": "prompts_list_changed",
    "resourcesListChanged": "resources_list_changed",
}


def _is_part(uri: str, whole: str) -> bool:
    return uri == whole or uri.startswith(whole.rstrip("/") + "/")


def read_filter(raw: msgspec.Raw | None) -> Filter:
    """
    Read the filter of a `subscriptions/listen`, a member of its `params`.

    A resource that is named twice counts once.  Raise `InvalidParams`,
    without an id, where the filter is missing or no SubscriptionFilter, and
    for more than `MAX_RESOURCES` resources.
    """
    if raw is None:
        raise InvalidParams("params.notifications is missing")
    try:
        wanted = msgspec.json.decode(raw, type=Filter)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidParams(f"params.notifications: {error}") from None
    if len(wanted.resource_subscriptions) > MAX_RESOURCES:
        raise InvalidParams(f"a stream may be about {MAX_RESOURCES} resources at most")
    return msgspec.structs.replace(
        wanted, resource_subscriptions=tuple(dict.fromkeys(wanted.resource_subscriptions))
    )


def acknowledge(wanted: Filter, capabilities: Members) -> Filter:
    """Return the part of a filter that a server with these capabilities can serve."""
    return Filter(
        wanted.tools_list_changed and _can(capabilities, "tools", "listChanged"),
        wanted.prompts_list_changed and _can(capabilities, "prompts", "listChanged"),
        wanted.resources_list_changed and _can(capabilities, "resources", "listChanged"),
        wanted.resource_subscriptions if _can(capabilities, "resources", "subscribe") else (),
    )


def told_lists(initialize_result: msgspec.Raw) -> frozenset[str]:
    """Return the lists of whose changes a server promises to tell (`listChanged`)."""
    capabilities = members_of(members_of(initialize_result).get("capabilities"))
    return frozenset(name for name in _LISTS if _can(capabilities, name, "listChanged"))


def list_changes(lists: Iterable[str]) -> Iterator[Change]:
    """Yield the changes of these lists: "tools", "prompts" and "resources"."""
    for name in lists:
        yield Change(
            f"{name}ListChanged", None, notification_line(f"notifications/{name}/list_changed")
        )


def _can(capabilities: Members, name: str, what: str) -> bool:
    return bytes(members_of(capabilities.get(name)).get(what, b"")) == b"true"


def read_change(method: str, params: msgspec.Raw | None, line: bytes) -> Change | None:
    """Return a notification as a change; None where it is none, or names no resource."""
    if method in LIST_CHANGED:
        return Change(LIST_CHANGED[method], None, line)
    if method != UPDATED or params is None:
        return None
    uri = string_of(members_of(params).get("uri"))
    return None if uri is None else Change(RESOURCES, uri, line)


def promised_by(line: bytes) -> Filter:
    """Return the filter that an acknowledgement promises; an empty one if it cannot be read."""
    params = members_of(members_of(line).get("params"))
    try:
        return read_filter(params.get("notifications"))
    except InvalidParams:
        return Filter()


def all_changes(promised: Filter) -> Iterator[Change]:
    """Yield a change of everything in a filter, for after a time without notifications."""
    for method, kind in LIST_CHANGED.items():
        if getattr(promised, _FIELDS[kind]):
            yield Change(kind, None, notification_line(method))
    for uri in promised.resource_subscriptions:
        yield Change(RESOURCES, uri, notification_line(UPDATED, {"uri": uri}))


def acknowledged_line(listen_id: JsonRpcId, promised: Filter) -> bytes:
    """Return the acknowledgement, which is the first line of a stream."""
    params = {"_meta": {SUBSCRIPTION_ID: listen_id}, "notifications": promised}
    return notification_line(ACKNOWLEDGED, params)


def change_line(listen_id: JsonRpcId, change: Change) -> bytes:
    """Return a change as a notification on a stream; the rest of its `_meta` is kept."""
    message = members_of(change.line)
    params = members_of(message.get("params"))
    return encode(changed(message, {"params": with_meta(params, {SUBSCRIPTION_ID: listen_id})}))


def complete_line(listen_id: JsonRpcId, server_info: msgspec.Raw | None = None) -> bytes:
    """Return the response that ends a stream from the server's side ("Graceful Closure")."""
    meta: dict[str, object] = {SUBSCRIPTION_ID: listen_id}
    if server_info is not None:
        meta[SERVER_INFO] = server_info
    return result_line(listen_id, {"resultType": "complete", "_meta": meta})
