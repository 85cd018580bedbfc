"""
A legacy stdio server: the official SDK of the first generation.

Runs in an environment that has that SDK and nothing of ours.  What it offers is
in `offer.json`; `slow` appends to the file that `MATRIX_MARKS` names.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.stdio import stdio_server

OFFER = json.loads(Path(__file__).with_name("offer.json").read_text())
#: Longer than anybody waits.
SLOW_SECONDS = 30
STEP_SECONDS = 0.02

server: Any = Server("matrix-legacy", version="1")
touched = 0
subscribed: set[str] = set()


def mark(what: str) -> None:
    """Note what has happened where the test looks for it; whole lines do not mix."""
    with open(os.environ["MATRIX_MARKS"], "a", encoding="utf-8") as file:
        file.write(f"{what}\n")


@server.list_tools()
async def list_tools() -> list[types.Tool]:
    return [types.Tool.model_validate(each) for each in OFFER["tools"]]


@server.call_tool()
async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
    call = {"echo": echo, "count": count, "slow": slow, "ask": ask, "touch": touch}[name]
    return [types.TextContent(type="text", text=await call(arguments))]


async def echo(arguments: dict[str, Any]) -> str:
    said: str = arguments["message"]
    return said


async def count(arguments: dict[str, Any]) -> str:
    steps = arguments["steps"]
    context = server.request_context
    token = context.meta and context.meta.progressToken
    for step in range(1, steps + 1):
        await asyncio.sleep(STEP_SECONDS)
        if token is not None:
            await context.session.send_progress_notification(token, step, steps)
    return f"counted {steps}"


async def slow(arguments: dict[str, Any]) -> str:
    mark(f"started {arguments['mark']}")
    try:
        await asyncio.sleep(SLOW_SECONDS)
    except asyncio.CancelledError:
        mark(f"cancelled {arguments['mark']}")
        raise
    return "not cancelled"


async def ask(arguments: dict[str, Any]) -> str:
    context = server.request_context
    question = OFFER["question"]
    answer = await context.session.elicit_form(
        question["message"], question["requestedSchema"], context.request_id
    )
    return f"{answer.action}: {(answer.content or {}).get('name')}"


async def touch(arguments: dict[str, Any]) -> str:
    global touched
    touched += 1
    if OFFER["uri"] in subscribed:
        await server.request_context.session.send_resource_updated(OFFER["uri"])
    return f"touched {touched}"


@server.list_resources()
async def list_resources() -> list[types.Resource]:
    return [types.Resource(uri=OFFER["uri"], name="thing", mimeType="text/plain")]


@server.read_resource()
async def read_resource(uri: Any) -> list[Any]:
    return [ReadResourceContents(content=f"touched {touched}", mime_type="text/plain")]


@server.subscribe_resource()
async def subscribe(uri: Any) -> None:
    subscribed.add(str(uri))


@server.unsubscribe_resource()
async def unsubscribe(uri: Any) -> None:
    subscribed.discard(str(uri))


async def serve() -> None:
    """Serve one client on stdin and stdout."""
    options = server.create_initialization_options()
    # this SDK never says so by itself
    options.capabilities.resources.subscribe = True
    async with stdio_server() as (read, write):
        await server.run(read, write, options)


if __name__ == "__main__":
    asyncio.run(serve())
