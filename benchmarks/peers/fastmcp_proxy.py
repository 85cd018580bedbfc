"""FastMCP's proxy in front of a stdio server: fastmcp_proxy.py sse|http PORT COMMAND [ARG ...]."""

import sys

from fastmcp.server import create_proxy

transport, port, command, *args = sys.argv[1:]
proxy = create_proxy({"mcpServers": {"echo": {"command": command, "args": args}}}, name="proxy")
proxy.run(
    transport=transport,
    host="127.0.0.1",
    port=int(port),
    show_banner=False,
    log_level="WARNING",
)
