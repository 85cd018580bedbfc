"""
Health checks over HTTP: `/livez`, `/readyz` and `/readyz/NAME`, for everybody.

They tell nothing but yes or no, so that they need neither credentials nor a `Host` of the
bridge: a kubelet sends the address of its pod.  Knows paths; must not know what readiness is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.web.resource import IResource, Resource

from mcpbridge.config.settings import SERVED_PATHS, ServerSettings
from mcpbridge.errors import MethodNotAllowed, NotFound
from mcpbridge.health import BridgeHealth, is_ready
from mcpbridge.server import Server
from mcpbridge.web.response import error_body, without_body

_UNKNOWN = "there is no server of this name whose readiness is told here"


class Probes:
    """
    The health checks of a listener.

    Paths of `servers` come first.  With `all_names` each server is known by its name;
    without, only those are that everybody may use: a name is no secret to guess here.
    """

    def __init__(
        self,
        health: BridgeHealth,
        servers: Sequence[ServerSettings] = (),
        *,
        all_names: bool = False,
    ) -> None:
        self._health = health
        self._taken = {f"{each.base_uri}{path}" for each in servers for path in SERVED_PATHS}
        self._all_names = all_names

    def find(self, segments: Sequence[bytes]) -> IResource | None:
        """Return what answers for a path, given by its decoded segments; None for others."""
        try:
            names = [each.decode("utf-8") for each in segments]
        except UnicodeDecodeError:
            return None
        if len(names) > 1 and not names[-1]:
            names.pop()
        if not all(names) or "/".join(["", *names]) in self._taken:
            return None
        if names == ["livez"]:
            return _Probe(lambda: True, "ok")
        if names == ["readyz"]:
            return _Probe(self._health.is_ready)
        if len(names) == 2 and names[0] == "readyz":
            return _Probe(lambda: self._is_ready(names[1]))
        return None

    def _is_ready(self, name: str) -> bool | None:
        server: Server | None = self._health.server(name)
        if server is None or not (self._all_names or server.is_open):
            return None
        return self._health.takes_clients and is_ready(server)


class _Probe(Resource):
    """A health check: 200 for True, 503 for False, and 404 for None."""

    isLeaf = True

    def __init__(self, check: Callable[[], bool | None], good: str = "ready") -> None:
        super().__init__()
        self._check = check
        self._good = good

    def render(self, request: Any) -> bytes:
        """Answer with one line."""
        request.setHeader(b"Cache-Control", b"no-store")
        if request.method not in (b"GET", b"HEAD"):
            return error_body(request, MethodNotAllowed("a health check takes GET", "GET, HEAD"))
        found = self._check()
        if found is None:
            return error_body(request, NotFound(_UNKNOWN))
        body = f"{self._good}\n" if found else "not ready\n"
        request.setResponseCode(200 if found else 503)
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        request.setHeader(b"Content-Length", b"%d" % len(body))
        return without_body(request, body.encode("ascii"))
