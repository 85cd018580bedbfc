"""
Protected resource metadata (RFC 9728): where clients learn who issues tokens for a server.

Knows the URLs under which clients see the servers; must not know requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcpbridge.config.settings import ServerSettings

#: Where the metadata is, before the path of what it is about (RFC 9728, section 3.1).
WELL_KNOWN = "/.well-known/oauth-protected-resource"
#: The endpoints that have metadata; `/message` belongs to `/sse`.
ENDPOINTS = ("mcp", "sse")


class ProtectedResource:
    """
    The endpoints of one server, as clients see them: below `public_url`, never below what
    a `Host` says.  `issuers` are the authorization servers, `scopes` all that may be needed.
    """

    def __init__(
        self,
        public_url: str,
        settings: ServerSettings,
        issuers: Sequence[str] = (),
        scopes: Sequence[str] = (),
    ) -> None:
        base = settings.base_uri if settings.public_path is None else settings.public_path
        self._origin = public_url
        self._base = base
        self._name = settings.name
        self._issuers = list(issuers)
        self._scopes = list(scopes)

    @property
    def audience(self) -> tuple[str, ...]:
        """What the audience of a token for this server may be: any URL of it."""
        paths = [f"{self._base}/{each}" for each in (*ENDPOINTS, "message")]
        return tuple(f"{self._origin}{path}" for path in (*paths, self._base, f"{self._base}/"))

    def metadata_url(self, path: str) -> str | None:
        """Return the URL of the metadata for a request to a path; None if there is none."""
        if not self._issuers:
            return None
        endpoint = "mcp" if path.rstrip("/").endswith("/mcp") else "sse"
        return f"{self._origin}{WELL_KNOWN}{self._base}/{endpoint}"

    def documents(self) -> dict[str, dict[str, Any]]:
        """
        Return the metadata by what follows `WELL_KNOWN`: for each endpoint, and for the
        whole site if the server is at its root; none without an authorization server.
        """
        if not self._issuers:
            return {}
        paths = [f"{self._base}/{each}" for each in ENDPOINTS]
        if not self._base:
            paths.append("")
        return {path: self._document(path) for path in paths}

    def _document(self, path: str) -> dict[str, Any]:
        document: dict[str, Any] = {
            "resource": f"{self._origin}{path}",
            "authorization_servers": self._issuers,
            "bearer_methods_supported": ["header"],
            "resource_name": self._name,
        }
        if self._scopes:
            document["scopes_supported"] = self._scopes
        return document
