"""
A web application that also serves an MCP server.

Run it with

    twistd -noy docs/examples/embed.py

The application is at http://127.0.0.1:8080/, and the MCP server at
/tools/demo/mcp and /tools/demo/sse.  Set the environment variable LISTEN to
listen on another endpoint.
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


class HomePage(Resource):
    """The application's own page."""

    def getChild(self, path: bytes, request: Any) -> Any:
        """Serve this page at `/`, and what was put below it everywhere else."""
        return self if path == b"" else super().getChild(path, request)

    def render_GET(self, request: Any) -> bytes:
        """Return the text of the page."""
        return b"hello from the application\n"


def without_query(timestamp: str, request: Any) -> str:
    """
    Format a line of the access log without the query.

    The query of a post to `/message` holds the session id, which is a secret.
    """
    method, path = (
        each.decode("ascii", "backslashreplace")
        for each in (request.method, request.uri.partition(b"?")[0])
    )
    return f"{request.client.host} {method} {path} {request.code}"


def make_bridge(reactor: Any) -> Bridge:
    """Create a bridge for the bundled demo server, without a listener of its own."""
    demo = ServerSettings(
        name="demo",
        command=sys.executable,
        args=("-m", "mcpbridge.demo"),
        base_uri="/demo",
        max_sessions=10,
    )
    return Bridge(BridgeSettings(servers=(demo,), listen=()), reactor)


def make_service(reactor: Any, listen: str = LISTEN) -> MultiService:
    """Create the application's services: the bridge, and a site that serves it below /tools."""
    services = MultiService()
    bridge = make_bridge(reactor)
    # Services stop in reverse order: first the listener, so that no session
    # begins, and then the bridge, which ends the sessions.
    bridge.setServiceParent(services)

    root = HomePage()
    root.putChild(b"tools", bridge.resource())
    site = Site(root, logFormatter=without_query, reactor=reactor, parsePOSTFormSubmission=False)
    endpoint = serverFromString(reactor, listen)
    StreamServerEndpointService(endpoint, site).setServiceParent(services)
    return services


def make_application() -> Any:
    """Create the application that `twistd -y` runs."""
    from twisted.internet import reactor

    application = Application("shop")
    make_service(reactor).setServiceParent(application)
    return application


application = make_application()
