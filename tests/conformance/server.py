"""
A stdio server that offers everything the MCP conformance suite asks for.

On the official SDK's lowlevel server of the second generation, in an
environment that has the SDK and nothing of ours:

    python -m tests.conformance.server [--seconds N] [--era both|modern|legacy]

It speaks both eras, that of its client's first request, or one alone: a modern
one refuses `initialize` and waits on, a legacy one does not know what modern
clients ask.
"""

import argparse
import asyncio
import json
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from mcp import MCPError, types
from mcp.server import NotificationOptions, Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp.shared.message import ServerMessageMetadata, SessionMessage

from tests.conformance.tools import (
    CAPABILITIES,
    RECONNECTION_SECONDS,
    STEP_SECONDS,
    Json,
    Offer,
    Unknown,
)

#: The revisions without a handshake.
MODERN = ("2026-07-28",)
ERAS = ("both", "modern", "legacy")

#: How a question to a client is sent, and its answer read.
ASKED: dict[str, tuple[Any, Any]] = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}
EVENTS = {"tools": ToolsListChanged, "prompts": PromptsListChanged}


class InputNeeded(Exception):
    """The call cannot go on without input; `result` is what to answer it with."""

    def __init__(self, result: Any) -> None:
        self.result = result


class Call:
    """A call as the tools see it, in either era."""

    def __init__(self, context: Any, params: Any, bus: InMemorySubscriptionBus) -> None:
        self.arguments: Json = params.arguments or {}
        self._context = context
        self._session = context.session
        self._params = params
        self._bus = bus
        self._modern = context.protocol_version in MODERN

    def can(self, capability: str) -> bool:
        declared = self._session.client_capabilities
        return declared is not None and getattr(declared, capability) is not None

    async def ask(self, questions: dict[str, Json]) -> dict[str, Json]:
        """
        Ask all these questions at once; the answers by the same keys.

        A legacy client is sent requests.  A modern one must have brought the
        answers: if it has not, the call ends with what it is to bring when it
        tries again, and with a state that holds the answers so far.
        """
        if not self._modern:
            answers = await asyncio.gather(*map(self._request, questions.values()))
            return dict(zip(questions, answers, strict=True))
        needed = {CAPABILITIES[question["method"]] for question in questions.values()}
        if lacking := [capability for capability in needed if not self.can(capability)]:
            raise MCPError(
                types.MISSING_REQUIRED_CLIENT_CAPABILITY,
                "This tool asks what the client has not declared",
                {"requiredCapabilities": {capability: {} for capability in lacking}},
            )
        brought = self._brought()
        if missing := {key: asked for key, asked in questions.items() if key not in brought}:
            more = {"inputRequests": missing, "requestState": json.dumps(brought)}
            raise InputNeeded(types.InputRequiredResult.model_validate(more))
        return {key: brought[key] for key in questions}

    async def log(self, what: str) -> None:
        await self._session.send_log_message(
            "info", what, "conformance", related_request_id=self._context.request_id
        )

    async def progress(self, done: int, total: int, message: str) -> None:
        await self._session.report_progress(done, total, message)

    async def changed(self, kind: str) -> None:
        await self._bus.publish(EVENTS[kind]())
        if not self._modern:
            await getattr(self._session, f"send_{kind.removesuffix('s')}_list_changed")()

    async def outlast(self, seconds: float) -> None:
        if self._context.close_sse_stream is None:
            await asyncio.sleep(seconds)
        else:  # behind the SDK's own transport
            await self._context.close_sse_stream()
            await asyncio.sleep(2 * STEP_SECONDS)

    def _brought(self) -> dict[str, Json]:
        """What a modern client answers now, and has answered before."""
        before = json.loads(self._params.request_state or "{}")
        now = self._params.input_responses or {}
        return {**before, **{key: plain(answer) for key, answer in now.items()}}

    async def _request(self, question: Json) -> Json:
        request, result = ASKED[question["method"]]
        related = ServerMessageMetadata(related_request_id=self._context.request_id)
        asked = request.model_validate(question)
        return plain(await self._session.send_request(asked, result, metadata=related))


def plain(model: Any) -> Json:
    """Something of the SDK's as it is on the wire."""
    written: Json = model.model_dump(by_alias=True, mode="json", exclude_none=True)
    return written


async def answer(kind: Any, result: Awaitable[Json]) -> Any:
    """The result of a call, or that it needs input, or that there is nothing of that name."""
    try:
        return kind.model_validate(await result)
    except InputNeeded as needed:
        return needed.result
    except Unknown as unknown:
        raise MCPError(types.INVALID_PARAMS, str(unknown), unknown.data) from None


def listing(kind: Any, key: str, items: list[Json]) -> Callable[..., Awaitable[Any]]:
    """A handler that lists what there is, as it is then."""

    async def handler(context: Any, params: Any) -> Any:
        return kind.model_validate({key: items})

    return handler


async def accept(context: Any, params: Any) -> types.EmptyResult:
    """Agree to a subscription, to its end, and to a log level."""
    return types.EmptyResult()


def make_server(seconds: float = RECONNECTION_SECONDS) -> Any:
    """The server, for any transport."""
    offer = Offer(seconds)
    bus = InMemorySubscriptionBus()

    async def call_tool(context: Any, params: Any) -> Any:
        called = offer.call_tool(params.name, Call(context, params, bus))
        return await answer(types.CallToolResult, called)

    async def get_prompt(context: Any, params: Any) -> Any:
        called = offer.get_prompt(params.name, Call(context, params, bus))
        return await answer(types.GetPromptResult, called)

    async def read_resource(context: Any, params: Any) -> Any:
        async def reading() -> Json:
            return offer.read_resource(str(params.uri))

        return await answer(types.ReadResourceResult, reading())

    async def complete(context: Any, params: Any) -> Any:
        return types.CompleteResult.model_validate(offer.complete(params.argument.value))

    templates = listing(types.ListResourceTemplatesResult, "resourceTemplates", offer.templates)
    server = Server(
        "conformance",
        version="1",
        on_list_tools=listing(types.ListToolsResult, "tools", offer.tools),
        on_call_tool=call_tool,
        on_list_resources=listing(types.ListResourcesResult, "resources", offer.resources),
        on_list_resource_templates=templates,
        on_read_resource=read_resource,
        on_subscribe_resource=accept,
        on_unsubscribe_resource=accept,
        on_subscriptions_listen=ListenHandler(bus),
        on_list_prompts=listing(types.ListPromptsResult, "prompts", offer.prompts),
        on_get_prompt=get_prompt,
        on_completion=complete,
        on_set_logging_level=accept,
    )
    security = RequestStateSecurity.ephemeral()
    server.middleware.append(RequestStateBoundary(security, default_audience=server.name))
    return server


class WithoutHandshake:
    """What is read, but for `initialize`, which is refused: the SDK would take to that era."""

    def __init__(self, read: Any, write: Any) -> None:
        self._read = read
        self._write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._read, name)

    def __aiter__(self) -> "WithoutHandshake":
        return self

    async def __anext__(self) -> Any:
        async for item in self._read:
            message = getattr(item, "message", None)
            if getattr(message, "method", None) != "initialize":
                return item
            await self._write.send(SessionMessage(refusal(message)))
        raise StopAsyncIteration


def refusal(initialize: Any) -> types.JSONRPCError:
    """What a modern server answers to `initialize`: the revisions that it speaks."""
    data = {"supported": list(MODERN), "requested": initialize.params.get("protocolVersion")}
    message = "This server speaks no revision with a handshake"
    error = types.ErrorData(code=types.UNSUPPORTED_PROTOCOL_VERSION, message=message, data=data)
    return types.JSONRPCError(jsonrpc="2.0", id=initialize.id, error=error)


async def serve(server: Any, era: str) -> None:
    """Serve one client on stdin and stdout."""
    changes = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
    options = server.create_initialization_options(changes)
    async with stdio_server() as (read, write):
        if era == "both":
            await server.run(read, write, options)
        elif era == "modern":
            await server.run(WithoutHandshake(read, write), write, options)
        else:
            async with server.lifespan(server) as state:
                await serve_loop(server, read, write, lifespan_state=state, init_options=options)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="a server for the MCP conformance suite")
    parser.add_argument("--seconds", type=float, default=RECONNECTION_SECONDS)
    parser.add_argument("--era", choices=ERAS, default="both")
    options = parser.parse_args()
    # logging and sampling are, and are wanted all the same
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    asyncio.run(serve(make_server(options.seconds), options.era))


if __name__ == "__main__":
    main()
