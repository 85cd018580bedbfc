"""
The same offer by a server that knows no revision without a handshake.

On the official SDK's lowlevel server of the first generation, in an environment
that has the SDK and nothing of ours:

    python -m tests.conformance.legacy [--seconds N]

What a tool asks is a request to the client in the middle of the call, and what
is not there is `-32002`, as both were before 2026-07-28.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mcp import McpError, types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import ServerMessageMetadata

from tests.conformance.tools import RECONNECTION_SECONDS, Json, Offer, Unknown

#: What a resource that is not there is answered with, up to 2025-11-25.
RESOURCE_NOT_FOUND = -32002

#: How the answer to a question to a client is read.
ANSWERS: dict[str, Any] = {
    "elicitation/create": types.ElicitResult,
    "sampling/createMessage": types.CreateMessageResult,
    "roots/list": types.ListRootsResult,
}


class Call:
    """A call as the tools see it."""

    def __init__(self, context: Any, arguments: Json | None) -> None:
        self.arguments: Json = arguments or {}
        self._context = context
        self._session = context.session

    def can(self, capability: str) -> bool:
        declared = self._session.client_params.capabilities
        return getattr(declared, capability) is not None

    async def ask(self, questions: dict[str, Json]) -> dict[str, Json]:
        answers = await asyncio.gather(*map(self._request, questions.values()))
        return dict(zip(questions, answers, strict=True))

    async def log(self, what: str) -> None:
        await self._session.send_log_message(
            "info", what, "conformance", related_request_id=self._context.request_id
        )

    async def progress(self, done: int, total: int, message: str) -> None:
        token = self._context.meta and self._context.meta.progressToken
        if token is not None:
            await self._session.send_progress_notification(token, done, total, message)

    async def changed(self, kind: str) -> None:
        await getattr(self._session, f"send_{kind.removesuffix('s')}_list_changed")()

    async def outlast(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _request(self, question: Json) -> Json:
        related = ServerMessageMetadata(related_request_id=self._context.request_id)
        request = types.ServerRequest.model_validate(question)
        result = ANSWERS[question["method"]]
        answered = await self._session.send_request(request, result, metadata=related)
        answer: Json = answered.model_dump(by_alias=True, mode="json", exclude_none=True)
        return answer


def make_server(seconds: float = RECONNECTION_SECONDS) -> Any:
    """The server, for any transport."""
    offer = Offer(seconds)
    server: Any = Server("conformance", version="1")

    def call(params: Any) -> Call:
        return Call(server.request_context, params.arguments)

    async def call_tool(params: Any) -> Json:
        return await offer.call_tool(params.name, call(params))

    async def get_prompt(params: Any) -> Json:
        return await offer.get_prompt(params.name, call(params))

    async def read_resource(params: Any) -> Json:
        return offer.read_resource(str(params.uri))

    async def complete(params: Any) -> Json:
        return offer.complete(params.argument.value)

    async def accept(params: Any) -> Json:
        return {}

    def listing(key: str, items: list[Json]) -> Callable[[Any], Awaitable[Json]]:
        async def handler(params: Any) -> Json:
            return {key: items}

        return handler

    handlers: list[tuple[Any, Any, Callable[[Any], Awaitable[Json]]]] = [
        (types.ListToolsRequest, types.ListToolsResult, listing("tools", offer.tools)),
        (types.CallToolRequest, types.CallToolResult, call_tool),
        (
            types.ListResourcesRequest,
            types.ListResourcesResult,
            listing("resources", offer.resources),
        ),
        (
            types.ListResourceTemplatesRequest,
            types.ListResourceTemplatesResult,
            listing("resourceTemplates", offer.templates),
        ),
        (types.ReadResourceRequest, types.ReadResourceResult, read_resource),
        (types.SubscribeRequest, types.EmptyResult, accept),
        (types.UnsubscribeRequest, types.EmptyResult, accept),
        (types.ListPromptsRequest, types.ListPromptsResult, listing("prompts", offer.prompts)),
        (types.GetPromptRequest, types.GetPromptResult, get_prompt),
        (types.CompleteRequest, types.CompleteResult, complete),
        (types.SetLevelRequest, types.EmptyResult, accept),
    ]
    for request, result, handler in handlers:
        server.request_handlers[request] = answering(result, handler)
    return server


def answering(result: Any, handler: Callable[[Any], Awaitable[Json]]) -> Callable[..., Any]:
    """A handler of the SDK's, of one that takes parameters and returns what goes on the wire."""

    async def handle(request: Any) -> types.ServerResult:
        try:
            answer = await handler(request.params)
        except Unknown as unknown:
            code = RESOURCE_NOT_FOUND if unknown.data else types.INVALID_PARAMS
            error = types.ErrorData(code=code, message=str(unknown), data=unknown.data)
            raise McpError(error) from None
        return types.ServerResult(result.model_validate(answer))

    return handle


async def serve(server: Any) -> None:
    """Serve one client on stdin and stdout."""
    changes = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options(changes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a legacy server for the MCP conformance suite")
    parser.add_argument("--seconds", type=float, default=RECONNECTION_SECONDS)
    asyncio.run(serve(make_server(parser.parse_args().seconds)))
