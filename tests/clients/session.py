"""
A real client on the official SDK's `ClientSession`.

Runs unchanged on the first and the second generation of the SDK, in an
environment that has one of them and nothing of ours:

    session.py URL TOOL [ARGUMENTS]

Connects, over HTTP+SSE where the URL ends with `/sse` and else over Streamable
HTTP, initializes, lists the tools, calls one with the arguments (JSON) and
prints what it saw as one JSON object.  Progress goes to stderr as it comes,
and into the object.  It answers what the server asks, and notes that too.  The
variable `MCP_TOKEN` has a token that is sent with each request.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

from mcp import ClientSession, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client


@contextlib.asynccontextmanager
async def connect(url: str, headers: dict[str, str]) -> AsyncIterator[tuple[Any, Any]]:
    """Connect with the transport that belongs to a URL; yields both directions."""
    if url.endswith("/sse"):
        async with sse_client(url, headers) as (read, write, *_):
            yield read, write
        return
    async with (
        create_mcp_http_client(headers) as http_client,
        streamable_http_client(url, http_client=http_client) as (read, write, *_),
    ):
        yield read, write


async def visit(url: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One session from the first byte to the last; returns what was seen."""
    progress: list[float] = []
    logged: list[Any] = []
    asked: list[str] = []

    async def note_progress(done: float, total: float | None, message: str | None) -> None:
        print(f"progress: {done} of {total}", file=sys.stderr)
        progress.append(done)

    async def note_log(params: Any) -> None:
        logged.append(params.data)

    async def sample(context: Any, params: Any) -> types.CreateMessageResult:
        asked.append("sampling/createMessage")
        answer = types.TextContent(type="text", text="an answer")
        return types.CreateMessageResult(role="assistant", content=answer, model="a model")

    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        asked.append("elicitation/create")
        schema = params.model_dump(by_alias=True)["requestedSchema"]
        return types.ElicitResult(
            action="accept", content=dict.fromkeys(schema["required"], "text")
        )

    token = os.environ.get("MCP_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        connect(url, headers) as (read, write),
        ClientSession(
            read,
            write,
            logging_callback=note_log,
            sampling_callback=sample,
            elicitation_callback=elicit,
        ) as session,
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
        "asked": asked,
    }


if __name__ == "__main__":
    url, tool, *arguments = sys.argv[1:]
    seen = asyncio.run(visit(url, tool, json.loads(arguments[0] if arguments else "{}")))
    print(json.dumps(seen))
