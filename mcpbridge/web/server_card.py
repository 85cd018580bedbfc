"""
Server cards over HTTP: `/mcp/server-card` below each base, and what is at the
well-known places of the site.

A card is made of what the server has said to somebody before.  It never starts
a backend, so that it may be asked for by anybody who may speak to the bridge.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from twisted.web.resource import Resource

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import NothingHere, Refused
from mcpbridge.mcp.server_card import (
    CARD_TYPE,
    CATALOG_TYPE,
    KnownServer,
    Place,
    as_json,
    catalog,
    matches,
    server_card,
)
from mcpbridge.server import Server
from mcpbridge.web.response import error_body
from mcpbridge.web.root import Branch

#: Where the card of a server is, below its base.
CARD_PATH = "/mcp/server-card"
#: The extension asks for an hour; what is not complete yet is asked for again.
CARD_CACHE = b"public, max-age=3600"
_AGAIN = b"no-cache"
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")


class CardUnknown(NothingHere):
    """The server has not said yet what would stand in its card."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """It may be known soon, so this is not kept."""
        return [*super().headers(), (b"Cache-Control", b"no-store")]


class ServerCards:
    """
    The cards of all servers.

    `is_proxy` tells whether an `IAddress` is that of a trusted proxy, which
    says how its client has come to it.
    """

    def __init__(
        self, servers: Sequence[Server], is_proxy: Callable[[Any], bool] = lambda address: False
    ) -> None:
        self._servers = servers
        self._is_proxy = is_proxy

    def card(self, request: Any, server: Server, mount: Sequence[bytes]) -> bytes:
        """The card of a server; `mount` is where the bridge is.  Raises `CardUnknown`."""
        origin, host = self._origin(request)
        made = _card(server.settings, server.era.known, origin, host, mount)
        if made is None:
            raise CardUnknown(_not_yet(server.settings.name))
        return _document(request, made[1], CARD_TYPE, CARD_CACHE)

    def only(self, request: Any, mount: Sequence[bytes]) -> bytes:
        """
        The card of the one server, or of that which is at the root.  Raises
        `CardUnknown`, and `NothingHere` where there is neither.
        """
        found = [each for each in self._servers if not each.settings.base_uri]
        if not found and len(self._servers) == 1:
            found = list(self._servers)
        if not found:
            raise NothingHere(
                "there are several servers; /.well-known/ai-catalog.json has their cards"
            )
        return self.card(request, found[0], mount)

    def catalog(self, request: Any, mount: Sequence[bytes]) -> bytes:
        """The catalog of all cards that are known.  Raises `CardUnknown` where none is."""
        origin, host = self._origin(request)
        found = [
            made
            for each in self._servers
            if (made := _card(each.settings, each.era.known, origin, host, mount)) is not None
        ]
        if not found:
            raise CardUnknown(_not_yet(None))
        complete = len(found) == len(self._servers)
        cache = CARD_CACHE if complete else _AGAIN
        return _document(request, catalog(found, host), CATALOG_TYPE, cache)

    def serve_well_known(self, root: Branch) -> None:
        """Serve what is below `/.well-known` of a site."""
        below = root.branch(b".well-known")
        below.putChild(b"ai-catalog.json", _Document(self.catalog, 2))
        for name in (b"server-card", b"server-card.json"):
            below.branch(b"mcp").putChild(name, _Document(self.only, 3))

    def _origin(self, request: Any) -> tuple[str, str]:
        """Scheme and authority of the URLs, as the client has them, and the host alone."""
        hosts = request.requestHeaders.getRawHeaders(b"host") or [b"localhost"]
        authority = hosts[0].decode("latin-1").strip().lower()
        match = _AUTHORITY.fullmatch(authority)
        host = authority if match is None else match[1].strip("[]")
        return f"{self._scheme(request)}://{authority}", host

    def _scheme(self, request: Any) -> str:
        if request.isSecure():
            return "https"
        channel = request.channel
        if channel is not None and self._is_proxy(channel.getPeer()):
            said = request.requestHeaders.getRawHeaders(b"x-forwarded-proto") or []
            if [each.strip().lower() for each in said] == [b"https"]:
                return "https"
        return "http"


def _card(
    settings: ServerSettings, known: KnownServer, origin: str, host: str, mount: Sequence[bytes]
) -> tuple[str, dict[str, Any]] | None:
    """The URL of a card, and the card."""
    base = settings.public_path
    if base is None:
        base = "".join(f"/{quote(each)}" for each in mount) + settings.base_uri
    at = f"{origin}{base}"
    card = server_card(known, Place(host, f"{at}/mcp", f"{at}/sse"))
    return None if card is None else (f"{at}{CARD_PATH}", card)


def _not_yet(name: str | None) -> str:
    who = "no server has" if name is None else f"server {name!r} has not"
    return (
        f"{who} said yet what it is, and a card starts no backend;"
        " ask again when a client has connected"
    )


def _document(request: Any, document: dict[str, Any], media_type: str, cache: bytes) -> bytes:
    body = as_json(document)
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    allow_all(request)
    request.setHeader(b"Cache-Control", cache)
    request.setHeader(b"ETag", etag.encode("ascii"))
    sent = request.requestHeaders.getRawHeaders(b"if-none-match") or []
    if matches([each.decode("latin-1") for each in sent], etag):
        request.setResponseCode(304)
        return b""
    request.setHeader(b"Content-Type", media_type.encode("ascii"))
    request.setHeader(b"X-Content-Type-Options", b"nosniff")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body


def allow_all(request: Any) -> None:
    """Let a script of any page that the gate let pass read it (docs/discovery.md, "CORS")."""
    request.setHeader(b"Access-Control-Allow-Origin", b"*")
    request.setHeader(b"Access-Control-Allow-Methods", b"GET")
    request.setHeader(b"Access-Control-Allow-Headers", b"Content-Type, If-None-Match")
    request.setHeader(b"Access-Control-Expose-Headers", b"ETag")


class _Document(Resource):
    """A document below `/.well-known`; `depth` is how many segments its path has."""

    isLeaf = True

    def __init__(self, make: Callable[[Any, Sequence[bytes]], bytes], depth: int) -> None:
        super().__init__()
        self._make = make
        self._depth = depth

    def render_GET(self, request: Any) -> bytes:
        """The document, or why there is none."""
        try:
            if request.postpath:
                raise NothingHere("nothing is served at this path")
            return self._make(request, request.prepath[: -self._depth])
        except Refused as refusal:
            return error_body(request, refusal)
