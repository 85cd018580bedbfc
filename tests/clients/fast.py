"""
A real client on FastMCP, in its own default manner.

Like the SDK's `Client`, it asks `server/discover` first.  The arguments and the
output are those of `session.py`.
"""

import asyncio
import json
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import SSETransport, StreamableHttpTransport


async def visit(url: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One session from the first byte to the last; returns what was seen."""
    progress: list[float] = []
    logged: list[Any] = []

    async def note_progress(done: float, total: float | None, message: str | None) -> None:
        progress.append(done)

    async def note_log(message: Any) -> None:
        logged.append(message.data)

    transport = SSETransport if url.endswith("/sse") else StreamableHttpTransport
    async with Client(transport(url), log_handler=note_log) as client:
        listed = await client.list_tools()
        called = await client.call_tool_mcp(tool, arguments, progress_handler=note_progress)
        info = client.server_info
        return {
            "protocolVersion": client.protocol_version,
            "serverInfo": info and info.model_dump(by_alias=True, mode="json"),
            "tools": sorted(one.name for one in listed),
            "result": called.model_dump(by_alias=True, mode="json", exclude_none=True),
            "progress": progress,
            "logged": logged,
        }


if __name__ == "__main__":
    url, tool, *arguments = sys.argv[1:]
    seen = asyncio.run(visit(url, tool, json.loads(arguments[0] if arguments else "{}")))
    print(json.dumps(seen))
