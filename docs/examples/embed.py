"""
An application of its own that serves an MCP server beside its pages.

Run it with

    twistd -noy docs/examples/embed.py

and open http://127.0.0.1:8080/; the MCP server is at /tools/demo/sse.  LISTEN
in the environment is another endpoint to listen on.
"""

import os
import sys
from typing import Any

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application, MultiService
from twisted.internet.endpoints import serverFromString
from twisted.web.resource import Resource
from twisted.web.server import Site

from mcpbridge import Bridge, BridgeSettings, ServerSettings

LISTEN = os.environ.get("LISTEN", "tcp:8080:interface=127.0.0.1")


class Front(Resource):
    """The application's own page."""

    def getChild(self, path: bytes, request: Any) -> Any:
        """The page itself, where nothing was put below it."""
        return self if path == b"" else super().getChild(path, request)

    def render_GET(self, request: Any) -> bytes:
        """Say hello."""
        return b"hello from the application\n"


def without_query(timestamp: str, request: Any) -> str:
    """A line of the access log; the query may hold a session's id, which is a secret."""
    method, path = (
        each.decode("ascii", "backslashreplace")
        for each in (request.method, request.uri.partition(b"?")[0])
    )
    return f"{request.client.host} {method} {path} {request.code}"


def make_bridge(reactor: Any) -> Bridge:
    """A bridge without a listener of its own, for the bundled demo server."""
    demo = ServerSettings(
        name="demo",
        command=sys.executable,
        args=("-m", "mcpbridge.demo"),
        base_uri="/demo",
        max_sessions=10,
    )
    return Bridge(BridgeSettings(servers=(demo,), listen=()), reactor)


def make_service(reactor: Any, listen: str = LISTEN) -> MultiService:
    """The whole application: the bridge, and a site that has it below /tools."""
    services = MultiService()
    bridge = make_bridge(reactor)
    # Services stop in reverse order: first nobody comes in, then the sessions end.
    bridge.setServiceParent(services)

    root = Front()
    root.putChild(b"tools", bridge.resource())
    site = Site(root, logFormatter=without_query, reactor=reactor, parsePOSTFormSubmission=False)
    endpoint = serverFromString(reactor, listen)
    StreamServerEndpointService(endpoint, site).setServiceParent(services)
    return services


def make_application() -> Any:
    """What twistd looks for."""
    from twisted.internet import reactor

    application = Application("shop")
    make_service(reactor).setServiceParent(application)
    return application


application = make_application()
