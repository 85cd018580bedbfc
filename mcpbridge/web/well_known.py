"""
Protected resource metadata over HTTP (RFC 9728, section 3): for clients that do not have
a token yet, so that it needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.web.resource import Resource

from mcpbridge.errors import NotFound
from mcpbridge.mcp.server_card import as_json
from mcpbridge.web.response import error_body, without_body
from mcpbridge.web.root import Branch
from mcpbridge.web.server_card import allow_all

#: How long clients may keep it.
METADATA_CACHE = b"public, max-age=300"


class ResourceMetadata(Resource):
    """The documents of all servers, by the path of the endpoint that each is about."""

    isLeaf = True

    def __init__(self, documents: Mapping[str, dict[str, Any]]) -> None:
        super().__init__()
        self._bodies = {path: as_json(each) for path, each in documents.items()}

    def serve_well_known(self, root: Branch) -> None:
        """Serve them below `/.well-known` of a site."""
        if self._bodies:
            root.branch(b".well-known").putChild(b"oauth-protected-resource", self)

    def render_GET(self, request: Any) -> bytes:
        """Return the document of the path that follows, or an error."""
        segments = [each.decode("latin-1") for each in request.postpath]
        if segments and not segments[-1]:
            segments.pop()
        body = self._bodies.get("".join(f"/{each}" for each in segments))
        if body is None:
            return error_body(request, NotFound("no protected resource has this path"))
        allow_all(request)
        request.setHeader(b"Cache-Control", METADATA_CACHE)
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        request.setHeader(b"Content-Length", b"%d" % len(body))
        return without_body(request, body)
