"""
What the index lists, and the index as JSON for programs.

Knows servers as a caller may see them; must not know how it is found out who may.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.mcp.server_card import Place, server_card
from mcpbridge.processes.server_state import ServerState
from mcpbridge.server import Server
from mcpbridge.web.client_snippets import Credentials, Target, configurations


class ListedServer(NamedTuple):
    """A server; `title` and `description` are what it has said of itself, if anything."""

    target: Target
    sse: str
    state: ServerState
    title: str = ""
    description: str = ""


class Listing(NamedTuple):
    """
    The servers that one caller may see.

    `note` tells the caller what to do about others, and `protected` is True where there may be
    some.  `version` is the bridge's, or an empty string for strangers.
    """

    origin: str
    servers: list[ListedServer]
    note: str = ""
    protected: bool = False
    version: str = ""


def listed(server: Server, credentials: Credentials, prefix: str) -> ListedServer:
    """Return a server of which `prefix` is the URL up to its `/mcp`."""
    settings = server.settings
    target = Target(settings.name, f"{prefix}/mcp", credentials, _headers(settings))
    sse = f"{prefix}/sse"
    title, description = _said(server, target.mcp, sse)
    return ListedServer(target, sse, server.state(), title, description)


def credentials_of(server: Server, settings: BridgeSettings) -> Credentials:
    """Return what the clients of a server of a bridge with these settings have to send."""
    auth = settings.auth_of(server.settings)
    if server.is_open:
        return Credentials.NONE
    if auth is not None and auth.oauth is not None:
        return Credentials.OAUTH
    if auth is not None and auth.tokens:
        return Credentials.TOKEN
    return Credentials.OTHER


def _headers(settings: ServerSettings) -> tuple[str, ...]:
    found = (each.header for each in settings.env_from.values())
    return tuple(dict.fromkeys(each for each in found if each is not None))


def _said(server: Server, mcp: str, sse: str) -> tuple[str, str]:
    """Return title and description of a server, unless each caller may see another one."""
    if server.settings.env_from:
        return "", ""
    card = server_card(server.era.known, Place("", mcp, sse))
    if card is None:
        return "", ""
    title, description = str(card["title"]), str(card["description"])
    return title, "" if description == title else description


def as_json(listing: Listing) -> bytes:
    """Return a listing as JSON, indented for those who read it in a terminal."""
    bridge = {"name": "mcpbridge"}
    if listing.version:
        bridge["version"] = listing.version
    document: dict[str, Any] = {"bridge": bridge, "servers": [_server(x) for x in listing.servers]}
    if listing.note:
        document["note"] = listing.note
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _server(server: ListedServer) -> dict[str, Any]:
    target, state = server.target, server.state
    found: dict[str, Any] = {"name": target.name}
    if server.title:
        found["title"] = server.title
    if server.description:
        found["description"] = server.description
    found["urls"] = {"streamable-http": target.mcp, "sse": server.sse}
    found["credentials"] = target.credentials.value
    if target.headers:
        found["headers"] = list(target.headers)
    condition: dict[str, Any] = {"condition": state.condition.value}
    if state.since is not None:
        condition["since"] = f"{datetime.fromtimestamp(state.since, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if state.why:
        condition["reason"] = state.why
    if state.retry_in is not None:
        condition["retryInSeconds"] = state.retry_in
    found["state"] = condition
    found["clients"] = configurations(target)
    return found
