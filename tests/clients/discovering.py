"""
A real client on the second generation's `Client`, in its own default manner.

It asks `server/discover` first and falls back to `initialize` when the server
does not know that method, as every server of the first generation does.  The
arguments and the output are those of `session.py`.
"""

import asyncio
import json
import sys
from typing import Any

from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client


async def visit(url: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One session from the first byte to the last; returns what was seen."""
    progress: list[float] = []
    logged: list[Any] = []

    async def note_progress(done: float, total: float | None, message: str | None) -> None:
        print(f"progress: {done} of {total}", file=sys.stderr)
        progress.append(done)

    async def note_log(params: Any) -> None:
        logged.append(params.data)

    connect = sse_client if url.endswith("/sse") else streamable_http_client
    async with Client(connect(url), logging_callback=note_log) as client:
        listed = await client.list_tools()
        called = await client.call_tool(tool, arguments, progress_callback=note_progress)
        info = client.server_info
        return {
            "protocolVersion": client.protocol_version,
            "serverInfo": info and info.model_dump(by_alias=True, mode="json"),
            "tools": sorted(one.name for one in listed.tools),
            "result": called.model_dump(by_alias=True, mode="json", exclude_none=True),
            "progress": progress,
            "logged": logged,
        }


if __name__ == "__main__":
    url, tool, *arguments = sys.argv[1:]
    seen = asyncio.run(visit(url, tool, json.loads(arguments[0] if arguments else "{}")))
    print(json.dumps(seen))
