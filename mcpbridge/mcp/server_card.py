"""
Server cards (SEP-2127, the extension `server-card`): a document in which
clients that are not connected yet find what a server has said of itself, and
the catalog of several.

Knows the documents; must not know how they are served, nor how a server is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from mcpbridge.jsonrpc.members import encode, members_of, meta_of, string_of
from mcpbridge.mcp.modern_request import MODERN_PROTOCOL_VERSIONS, SERVER_INFO
from mcpbridge.mcp.revisions import HANDSHAKE_PROTOCOL_VERSIONS

CARD_TYPE = "application/mcp-server-card+json"
CATALOG_TYPE = "application/ai-catalog+json"
SCHEMA = "https://static.modelcontextprotocol.io/schemas/v1/server-card.schema.json"

#: The largest `serverInfo` of a card, in bytes; a server with a larger one has no card.
MAX_INFO_BYTES = 64 * 1024
#: The longest texts that the schema of a card allows, in characters.
MAX_NAME, MAX_VERSION, MAX_TEXT = 200, 255, 100

_NAME = re.compile(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+")
_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9._-]+")
_NOT_IN_HOST = re.compile(r"[^a-zA-Z0-9.-]+")
_URL = re.compile(r"https?://[^\s]+")


class _Info(msgspec.Struct):
    name: str
    version: str


class KnownServer:
    """A server as its answers to `initialize` and `server/discover` describe it."""

    def __init__(self) -> None:
        #: Its `serverInfo`, None while it is not known, and the revisions that clients may use.
        self.info: bytes | None = None
        self.versions: tuple[str, ...] = ()

    def initialized(self, version: str, info: msgspec.Raw | None) -> None:
        """
        Learn that a process accepted `initialize` with that revision.  The
        bridge translates for clients of 2026-07-28.
        """
        if version in HANDSHAKE_PROTOCOL_VERSIONS and self._learn(info):
            usable = {*self.versions, version, *MODERN_PROTOCOL_VERSIONS}
            self.versions = tuple(
                each
                for each in (*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS)
                if each in usable
            )

    def initialize_result(self, result: msgspec.Raw) -> None:
        """Learn the same from the result of `initialize`."""
        found = members_of(result)
        version = string_of(found.get("protocolVersion"))
        if version is not None:
            self.initialized(version, found.get("serverInfo"))

    def discovered(self, info: msgspec.Raw | None) -> None:
        """
        Learn that a process answered `server/discover` with this
        `serverInfo`.  The bridge keeps sessions for clients of every older
        revision.
        """
        if self._learn(info):
            self.versions = (*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS)

    def _learn(self, info: msgspec.Raw | None) -> bool:
        """Keep a copy, as the answer that it is a part of may be much larger."""
        if info is None or len(info) > MAX_INFO_BYTES:
            return False
        kept = bytes(info)
        if kept != self.info:
            try:
                msgspec.json.decode(kept, type=_Info)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return False
            self.info, self.versions = kept, ()
        return True


def info_of_discovery(result: bytes | msgspec.Raw) -> msgspec.Raw | None:
    """Return the `serverInfo` of a DiscoverResult."""
    return meta_of(members_of(result)).get(SERVER_INFO)


class Place(NamedTuple):
    """The host that serves a server, without its port, and the URLs of its endpoints."""

    host: str
    mcp: str
    sse: str


def server_card(known: KnownServer, place: Place) -> dict[str, Any] | None:
    """Return a server's card; None where nothing is known of it yet."""
    if known.info is None:
        return None
    info: dict[str, Any] = msgspec.json.decode(known.info)
    name, title = info["name"], _text(info.get("title"))
    shown = title or _text(name) or "MCP server"
    card: dict[str, Any] = {
        "$schema": SCHEMA,
        "name": card_name(name, place.host),
        "version": info["version"][:MAX_VERSION],
        "description": _text(info.get("description")) or shown,
        "title": shown,
    }
    if _is_url(info.get("websiteUrl")):
        card["websiteUrl"] = info["websiteUrl"]
    icons = info.get("icons")
    if isinstance(icons, list) and icons and all(map(_is_icon, icons)):
        card["icons"] = icons
    card["remotes"] = [
        {
            "type": "streamable-http",
            "url": place.mcp,
            "supportedProtocolVersions": list(known.versions),
        },
        {"type": "sse", "url": place.sse},
    ]
    return card


def card_name(name: str, host: str) -> str:
    """
    Return a name in reverse-DNS format: the server's own where it is in that
    format, otherwise the host's with the server's behind the slash.
    """
    if _NAME.fullmatch(name) and len(name) <= MAX_NAME:
        return name
    labels = _NOT_IN_HOST.sub("-", host).strip("-.").split(".")
    numbers = all(each.isdigit() for each in labels)
    space = ".".join(labels if numbers else reversed(labels)) or "localhost"
    slug = _slug(name)
    return f"{space[: MAX_NAME - 1 - len(slug)]}/{slug}"


def catalog(cards: Iterable[tuple[str, dict[str, Any]]], host: str) -> dict[str, Any]:
    """Return the AI Catalog of cards, each with its URL."""
    entries: list[dict[str, str]] = []
    used: set[str] = set()
    publisher = _NOT_IN_HOST.sub("-", host).strip("-.") or "localhost"
    for url, card in cards:
        base = identifier = f"urn:air:{publisher}:mcp:{_slug(card['name'].rpartition('/')[2])}"
        number = 1
        while identifier in used:
            number += 1
            identifier = f"{base}-{number}"
        used.add(identifier)
        entries.append({"identifier": identifier, "type": CARD_TYPE, "url": url})
    return {"specVersion": "1.0", "entries": entries}


def as_json(document: dict[str, Any]) -> bytes:
    """Return a document as it is sent."""
    return encode(document)


def matches(tags: Sequence[str], etag: str) -> bool:
    """Tell whether `If-None-Match` has a tag (RFC 9110, section 13.1.2: weak comparison)."""
    listed = [each.strip() for each in ",".join(tags).split(",")]
    return "*" in listed or any(each.removeprefix("W/") == etag for each in listed)


def _slug(name: str) -> str:
    return _NOT_IN_NAME.sub("-", name).strip("-.")[:MAX_TEXT] or "server"


def _text(value: object) -> str | None:
    """Return a text on one line, cut to the schema's length; None for anything else."""
    if not isinstance(value, str):
        return None
    line = " ".join(value.split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def _is_url(value: object) -> bool:
    return isinstance(value, str) and _URL.fullmatch(value) is not None


def _is_icon(icon: object) -> bool:
    return isinstance(icon, dict) and isinstance(icon.get("src"), str)
