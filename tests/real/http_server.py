"""
A native HTTP server of the official Python SDK, of either generation.

    http_server.py (mcp | sse) [--json] [--port N]

Runs in an environment that has the SDK and nothing of ours, and prints its port.  Its tools
are those that tests call: `echo`, and `ask`, which reports its progress and asks the client.
"""

import argparse
import socket
from typing import Any

import uvicorn

try:
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as Server
except ImportError:
    from mcp.server.mcpserver import Context
    from mcp.server.mcpserver import MCPServer as Server
from pydantic import BaseModel

server: Any = Server("native")


class Name(BaseModel):  # type: ignore[misc]
    name: str


@server.tool()
def echo(text: str) -> str:
    """Return the text."""
    return text


@server.tool()
async def ask(context: Context) -> str:
    """Report three steps, and ask the client for a name."""
    for step in range(1, 4):
        await context.report_progress(step, 3)
    result = await context.elicit("Who are you?", Name)
    return f"{result.action}: {result.data.name}"


def main() -> None:
    """Serve until the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint", choices=["mcp", "sse"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if options.endpoint == "sse":
        app = server.sse_app()
    elif hasattr(server.settings, "json_response"):
        server.settings.json_response = options.json
        app = server.streamable_http_app()
    else:
        app = server.streamable_http_app(json_response=options.json)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", options.port))
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=0)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
