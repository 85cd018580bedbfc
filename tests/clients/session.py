"""
A real client on the official SDK's `sse_client` and `ClientSession`.

Runs unchanged on the first and the second generation of the SDK, in an
environment that has one of them and nothing of ours:

    session.py URL TOOL [ARGUMENTS]

Connects, initializes, lists the tools, calls one with the arguments (JSON)
and prints what it saw as one JSON object.  Progress goes to stderr as it
comes, and into the object.
"""

import asyncio
import json
import sys
from typing import Any

from mcp import ClientSession
from mcp.client.sse import sse_client


async def visit(url: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One session from the first byte to the last; returns what was seen."""
    progress: list[float] = []
    logged: list[Any] = []

    async def note_progress(done: float, total: float | None, message: str | None) -> None:
        print(f"progress: {done} of {total}", file=sys.stderr)
        progress.append(done)

    async def note_log(params: Any) -> None:
        logged.append(params.data)

    async with (
        sse_client(url) as (read, write),
        ClientSession(read, write, logging_callback=note_log) as session,
    ):
        initialized = await session.initialize()
        listed = await session.list_tools()
        called = await session.call_tool(tool, arguments, progress_callback=note_progress)
        await session.send_ping()
    # by alias: the names of the wire, which both generations share
    return {
        **initialized.model_dump(by_alias=True, mode="json"),
        "tools": sorted(one.name for one in listed.tools),
        "result": called.model_dump(by_alias=True, mode="json", exclude_none=True),
        "progress": progress,
        "logged": logged,
    }


if __name__ == "__main__":
    url, tool, *arguments = sys.argv[1:]
    seen = asyncio.run(visit(url, tool, json.loads(arguments[0] if arguments else "{}")))
    print(json.dumps(seen))
