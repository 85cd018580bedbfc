"""
Server cards over HTTP: `/mcp/server-card` below each base, and the documents
below `/.well-known` of the site.

A card is made of what the server has told a client before.  It never starts a
backend, so that anybody may request it who may send requests to the bridge.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from twisted.web.resource import Resource

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import NotFound, Refused
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
from mcpbridge.web.response import error_body, without_body
from mcpbridge.web.root import Branch

#: The path of a server's card, below its base.
CARD_PATH = "/mcp/server-card"
#: The extension asks for an hour; an incomplete catalog is not cached.
CARD_CACHE = b"public, max-age=3600"
_AGAIN = b"no-cache"
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")


class CardUnknown(NotFound):
    """Raised while the server has told no client what its card has."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return headers that forbid caching: the card may be known soon."""
        return [*super().headers(), (b"Cache-Control", b"no-store")]


class ServerCards:
    """
    The cards of all servers.

    `is_proxy` tells whether an `IAddress` is that of a trusted proxy, whose
    `X-Forwarded-Proto` is believed.
    """

    def __init__(
        self, servers: Sequence[Server], is_proxy: Callable[[Any], bool] = lambda address: False
    ) -> None:
        #: Those of which anybody may know.  The card of another one is below its base, for
        #: those who may use it.
        self._servers = [each for each in servers if each.is_open and not each.settings.env_from]
        self._is_proxy = is_proxy

    def card(self, request: Any, server: Server, mount: Sequence[bytes]) -> bytes:
        """Return the card of a server; `mount` is the bridge's path.  Raises `CardUnknown`."""
        if server.settings.env_from:
            # It would be made of what a process has said that has another caller's variables.
            raise NotFound("a server with `env_from` has no card: each caller may see another one")
        origin, host = self.origin(request)
        made = _card(server.settings, server.era.known, origin, host, mount)
        if made is None:
            raise CardUnknown(_not_yet(server.settings.name))
        return _document(request, made[1], CARD_TYPE, CARD_CACHE)

    def only(self, request: Any, mount: Sequence[bytes]) -> bytes:
        """
        Return the card of the only server, or of the one at the root.  Raises
        `CardUnknown`, and `NotFound` if there is neither.
        """
        found = [each for each in self._servers if not each.settings.base_uri]
        if not found and len(self._servers) == 1:
            found = list(self._servers)
        if not found:
            raise NotFound(
                "there are several servers; /.well-known/ai-catalog.json has their cards"
            )
        return self.card(request, found[0], mount)

    def catalog(self, request: Any, mount: Sequence[bytes]) -> bytes:
        """Return the catalog of all known cards.  Raises `CardUnknown` if there is none."""
        origin, host = self.origin(request)
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

    def origin(self, request: Any) -> tuple[str, str]:
        """Return scheme and authority of the URLs, as the client sees them, and the host alone."""
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
            schemes = request.requestHeaders.getRawHeaders(b"x-forwarded-proto") or []
            if [each.strip().lower() for each in schemes] == [b"https"]:
                return "https"
        return "http"


def _card(
    settings: ServerSettings, known: KnownServer, origin: str, host: str, mount: Sequence[bytes]
) -> tuple[str, dict[str, Any]] | None:
    """Return the URL of a card, and the card; None while it is unknown."""
    base = settings.public_path
    if base is None:
        base = "".join(f"/{quote(each)}" for each in mount) + settings.base_uri
    at = f"{origin}{base}"
    card = server_card(known, Place(host, f"{at}/mcp", f"{at}/sse"))
    return None if card is None else (f"{at}{CARD_PATH}", card)


def _not_yet(name: str | None) -> str:
    who = "no server has" if name is None else f"server {name!r} has not"
    return (
        f"{who} said yet what it is, and a request for a card starts no backend;"
        " try again after a client has connected"
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
    return without_body(request, body)


def allow_all(request: Any) -> None:
    """Let the script of any page read it that passed transport security (docs/discovery.md)."""
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
        """Return the document, or an error."""
        try:
            if request.postpath:
                raise NotFound("nothing is served at this path")
            return self._make(request, request.prepath[: -self._depth])
        except Refused as refusal:
            return error_body(request, refusal)
