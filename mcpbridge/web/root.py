"""
From a path to the server that it belongs to, segment by segment, literally.

Knows paths; must not know routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from twisted.web.resource import IResource, Resource

from mcpbridge.config.settings import SERVED_PATHS, ServerSettings
from mcpbridge.errors import NothingHere, Refused
from mcpbridge.web.response import error_body
from mcpbridge.web.transport_security import (
    TransportSecurity,
    check_backend_route,
    is_preflight,
    loopback_port,
)
from mcpbridge.web.urls import mcp_at

#: What is below a base and reaches a backend.
_BACKEND_ROUTES = [[path[1:].encode("ascii")] for path in SERVED_PATHS]


class Branch(Resource):
    """
    A part of a base path.  What is below it and no other server's base is
    for its own leaf, if a server has its base here.
    """

    def __init__(self, depth: int = 0) -> None:
        super().__init__()
        self.leaf: IResource = _Nothing()
        #: Those whose URLs are told where somebody asks for the base itself.
        self.told: Sequence[ServerSettings] = ()
        self._depth = depth

    def serve(self, server: ServerSettings, leaf: IResource) -> None:
        """A server has its base here."""
        self.leaf = leaf
        self.told = (server,)

    def branch(self, segment: bytes) -> Branch:
        """The branch below this one, made if need be."""
        below = self.children.get(segment)
        if not isinstance(below, Branch):
            below = Branch(self._depth + 1)
            self.putChild(segment, below)
        return below

    def getChild(self, path: bytes, request: Any) -> IResource:
        """Not another branch: hand the rest of the path to the leaf."""
        request.prepath.pop()
        request.postpath.insert(0, path)
        if request.postpath[-1] == b"" and request.postpath[:-1] in _BACKEND_ROUTES:
            # Clients and people write a slash at the end; a redirect would lose a POST.
            request.postpath.pop()
        if not all(map(_is_plain, request.postpath)):
            return self._nothing(request)
        if request.postpath in _BACKEND_ROUTES:
            try:
                check_backend_route(request)
            except Refused as refusal:
                return _Refusal(refusal)
        return self.leaf

    def render(self, request: Any) -> Any:
        """The base itself, without a slash."""
        return self._nothing(request).render(request)

    def _nothing(self, request: Any) -> _Nothing:
        """What is at the base: the words where to look."""
        if not self.told:
            return _Nothing()
        mount = request.prepath[: len(request.prepath) - self._depth]
        return _Nothing(mcp_at(self.told, "".join(f"/{quote(each)}" for each in mount)))


def _is_plain(segment: bytes) -> bool:
    """Whether a decoded segment is there, is UTF-8, and hides no slash."""
    try:
        return segment != b"" and "/" not in segment.decode("utf-8")
    except UnicodeDecodeError:
        return False


class SecuredResource(Resource):
    """What stands before all branches: the gate, on every path."""

    def __init__(self, security: TransportSecurity, root: Branch) -> None:
        super().__init__()
        self._security = security
        self._root = root

    def getChildWithDefault(self, path: bytes, request: Any) -> IResource:
        """The branch, or a refusal before anything else happens."""
        channel = request.channel
        loopback = getattr(channel, "loopback", None)
        if loopback is None:
            loopback = loopback_port(getattr(channel, "transport", None))
        try:
            self._security.check(request, loopback or None)
        except Refused as refusal:
            self._security.complain(refusal)
            return _Refusal(refusal)
        if is_preflight(request):
            return _Preflight(self._security)
        resource: IResource = self._root.getChildWithDefault(path, request)
        return resource

    def render(self, request: Any) -> Any:
        """The root of a site has no path at all."""
        request.prepath.append(b"")
        return self.getChildWithDefault(b"", request).render(request)


class _Refusal(Resource):
    """What the gate says."""

    isLeaf = True

    def __init__(self, refusal: Refused) -> None:
        super().__init__()
        self._refusal = refusal

    def render(self, request: Any) -> bytes:
        return error_body(request, self._refusal)


class _Preflight(Resource):
    """What a browser's script may do."""

    isLeaf = True

    def __init__(self, security: TransportSecurity) -> None:
        super().__init__()
        self._security = security

    def render(self, request: Any) -> bytes:
        return self._security.answer_preflight(request)


class _Nothing(Resource):
    """Nothing is served here."""

    isLeaf = True

    def __init__(self, hint: str = "") -> None:
        super().__init__()
        self._text = f"nothing is served at this path{hint and '; '}{hint}"

    def render(self, request: Any) -> bytes:
        return error_body(request, NothingHere(self._text))
