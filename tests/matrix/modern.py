"""
A stdio server of both eras, or of the modern one alone: the official SDK of the
second generation.

    modern.py [--modern-only]

Runs in an environment that has that SDK and nothing of ours.  What it offers is
in `offer.json`; `slow` appends to the file that `MATRIX_MARKS` names.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from mcp import types
from mcp.server import NotificationOptions, Server, runner
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated

OFFER = json.loads(Path(__file__).with_name("offer.json").read_text())
FIRST_MODERN = "2026-07-28"
#: Longer than anybody waits.
SLOW_SECONDS = 30
STEP_SECONDS = 0.02

bus = InMemorySubscriptionBus()
touched = 0
subscribed: set[str] = set()


def mark(what: str) -> None:
    """Note what has happened where the test looks for it; whole lines do not mix."""
    with open(os.environ["MATRIX_MARKS"], "a", encoding="utf-8") as file:
        file.write(f"{what}\n")


async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[types.Tool.model_validate(each) for each in OFFER["tools"]])


async def call_tool(context: Any, params: Any) -> Any:
    tools = {"echo": echo, "count": count, "slow": slow, "ask": ask, "touch": touch}
    said: Any = await tools[params.name](context, params)
    if not isinstance(said, str):
        return said
    return types.CallToolResult(content=[types.TextContent(type="text", text=said)])


async def echo(context: Any, params: Any) -> str:
    said: str = params.arguments["message"]
    return said


async def count(context: Any, params: Any) -> str:
    steps = params.arguments["steps"]
    for step in range(1, steps + 1):
        await asyncio.sleep(STEP_SECONDS)
        await context.session.report_progress(step, steps)
    return f"counted {steps}"


async def slow(context: Any, params: Any) -> str:
    mark(f"started {params.arguments['mark']}")
    try:
        await asyncio.sleep(SLOW_SECONDS)
    except asyncio.CancelledError:
        mark(f"cancelled {params.arguments['mark']}")
        raise
    return "not cancelled"


async def ask(context: Any, params: Any) -> Any:
    """In the legacy era a question in the middle of the call, in the modern one between two."""
    question = OFFER["question"]
    if context.protocol_version < FIRST_MODERN:
        answer = await context.session.elicit_form(
            question["message"], question["requestedSchema"], context.request_id
        )
    elif params.input_responses is None:
        asked = types.ElicitRequest(params=types.ElicitRequestFormParams.model_validate(question))
        return types.InputRequiredResult(input_requests={"name": asked}, request_state="asked")
    elif params.request_state != "asked":
        return f"another state: {params.request_state}"
    else:
        answer = params.input_responses["name"]
    return f"{answer.action}: {(answer.content or {}).get('name')}"


async def touch(context: Any, params: Any) -> str:
    global touched
    touched += 1
    await bus.publish(ResourceUpdated(uri=OFFER["uri"]))
    if OFFER["uri"] in subscribed:
        await context.session.send_resource_updated(OFFER["uri"])
    return f"touched {touched}"


async def list_resources(context: Any, params: Any) -> types.ListResourcesResult:
    thing = types.Resource(uri=OFFER["uri"], name="thing", mime_type="text/plain")
    return types.ListResourcesResult(resources=[thing])


async def read_resource(context: Any, params: Any) -> types.ReadResourceResult:
    text = f"touched {touched}"
    contents = types.TextResourceContents(uri=params.uri, mime_type="text/plain", text=text)
    return types.ReadResourceResult(contents=[contents])


async def subscribe(context: Any, params: Any) -> types.EmptyResult:
    subscribed.add(str(params.uri))
    return types.EmptyResult()


async def unsubscribe(context: Any, params: Any) -> types.EmptyResult:
    subscribed.discard(str(params.uri))
    return types.EmptyResult()


def make_server(name: str) -> Any:
    """The server, for any transport."""
    return Server(
        name,
        version="1",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=unsubscribe,
        on_subscriptions_listen=ListenHandler(bus),
    )


async def serve(modern_only: bool) -> None:
    """Serve one client on stdin and stdout."""
    server = make_server("matrix-modern" if modern_only else "matrix-dual")
    async with stdio_server() as (read, write):
        if not modern_only:
            options = server.create_initialization_options(NotificationOptions())
            await server.run(read, write, options)
            return
        # What the SDK's own loop comes to once a client has opened the modern era.  Private, but
        # the SDK has no switch for it, and its version is pinned.
        async with server.lifespan(server) as state:
            await runner._serve_modern_stream(
                server, read, write, lifespan_state=state, raise_exceptions=False
            )


if __name__ == "__main__":
    asyncio.run(serve("--modern-only" in sys.argv[1:]))
