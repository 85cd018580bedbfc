"""
The resources of a site: from a path to its server, segment by segment, with
transport security before all of them.

Knows paths; must not know routes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from twisted.web.resource import IResource, Resource

from mcpbridge.config.settings import SERVED_PATHS, ServerSettings
from mcpbridge.errors import NotFound, Refused
from mcpbridge.web.response import error_body
from mcpbridge.web.transport_security import (
    TransportSecurity,
    check_backend_route,
    is_preflight,
    loopback_port,
)
from mcpbridge.web.urls import mcp_at

#: The paths below a base that reach a backend.
_BACKEND_ROUTES = [[path[1:].encode("ascii")] for path in SERVED_PATHS]


class Branch(Resource):
    """
    A prefix of base paths.  If it is the base of a server, what is below it is
    for that server's leaf, except for other servers' bases.  Without `hints` no error
    names a server: only those who may use it are to know of it.
    """

    def __init__(
        self, depth: int = 0, servers: Sequence[ServerSettings] = (), *, hints: bool = True
    ) -> None:
        super().__init__()
        self._hints = hints
        self.leaf: IResource = _Nothing()
        #: What is served at the base itself with a slash; None for nothing.
        self.index: IResource | None = None
        #: The servers that a 404 for the base itself names.
        self._servers = servers
        self._depth = depth

    def serve(self, server: ServerSettings, leaf: IResource) -> None:
        """Serve a server whose base this is."""
        self.leaf = leaf
        self._servers = self._servers or (server,)

    def branch(self, segment: bytes) -> Branch:
        """Return the branch below this one; make it if there is none."""
        below = self.children.get(segment)
        if not isinstance(below, Branch):
            below = Branch(self._depth + 1, hints=self._hints)
            self.putChild(segment, below)
        return below

    def getChild(self, path: bytes, request: Any) -> IResource:
        """Return the leaf, for a path that leads to no other branch."""
        request.prepath.pop()
        request.postpath.insert(0, path)
        if self.index is not None and request.postpath == [b""]:
            return self.index
        if request.postpath[-1] == b"" and request.postpath[:-1] in _BACKEND_ROUTES:
            # Clients and people add a slash at the end; a redirect would lose a POST.
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
        """Answer a request for the base itself, without a slash."""
        return self._nothing(request).render(request)

    def _nothing(self, request: Any) -> _Nothing:
        """Return a 404 that says where MCP is served."""
        if not self._servers or not self._hints:
            return _Nothing()
        mount = request.prepath[: len(request.prepath) - self._depth]
        return _Nothing(mcp_at(self._servers, "".join(f"/{quote(each)}" for each in mount)))


def _is_plain(segment: bytes) -> bool:
    """Tell whether a decoded segment is not empty, is UTF-8, and has no slash."""
    try:
        return segment != b"" and "/" not in segment.decode("utf-8")
    except UnicodeDecodeError:
        return False


class Serving(NamedTuple):
    """
    What is served: the root of it, what protects it, and who takes note of refusals.
    `probe` returns what answers a health check, by the segments of a path.
    """

    security: TransportSecurity
    root: Branch
    note: Callable[[Any, Refused], object] = lambda request, refusal: None
    probe: Callable[[Sequence[bytes]], IResource | None] = lambda segments: None


class SecuredResource(Resource):
    """
    The root of a site: checks transport security for every path.  `serving` returns what
    is served now; `note` of that is called with a request that is refused, and the refusal.
    """

    def __init__(self, serving: Callable[[], Serving]) -> None:
        super().__init__()
        self._serving = serving

    def getChildWithDefault(self, path: bytes, request: Any) -> IResource:
        """Return the branch, or a refusal before anything else happens."""
        channel = request.channel
        loopback = getattr(channel, "loopback", None)
        if loopback is None:
            loopback = loopback_port(getattr(channel, "transport", None))
        security, root, note, find_probe = self._serving()
        probe = find_probe([path, *request.postpath])
        try:
            security.check(request, loopback or None, any_host=probe is not None)
        except Refused as refusal:
            if getattr(channel, "admitted", None) is not None:
                # It was checked when it came, and is being answered: other settings may have
                # been loaded since.
                return cast("IResource", root.getChildWithDefault(path, request))
            security.log_refusal(refusal)
            if probe is None:
                note(request, refusal)
            return _Refusal(refusal)
        if is_preflight(request):
            return _Preflight(security)
        if probe is not None:
            return probe
        resource: IResource = root.getChildWithDefault(path, request)
        return resource

    def render(self, request: Any) -> Any:
        """Serve the root of a site, which has no path at all."""
        request.prepath.append(b"")
        return self.getChildWithDefault(b"", request).render(request)


class _Refusal(Resource):
    """An error response."""

    isLeaf = True

    def __init__(self, refusal: Refused) -> None:
        super().__init__()
        self._refusal = refusal

    def render(self, request: Any) -> bytes:
        return error_body(request, self._refusal)


class _Preflight(Resource):
    """The response to a CORS preflight."""

    isLeaf = True

    def __init__(self, security: TransportSecurity) -> None:
        super().__init__()
        self._security = security

    def render(self, request: Any) -> bytes:
        return self._security.answer_preflight(request)


class _Nothing(Resource):
    """A 404, with a hint where MCP is served."""

    isLeaf = True

    def __init__(self, hint: str = "") -> None:
        super().__init__()
        self._text = f"nothing is served at this path{hint and '; '}{hint}"

    def render(self, request: Any) -> bytes:
        return error_body(request, NotFound(self._text))
