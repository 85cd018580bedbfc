"""
A stdio server that offers everything the MCP conformance suite asks for.

Written from what the suite asks, on the official SDK's lowlevel server of the
second generation, in an environment that has the SDK and nothing of ours:

    server.py [--seconds N]

Its names, texts and schemas are the suite's.  `test_reconnection` takes its
time (N seconds, 11 when nothing is said): no stdio server can ask for a stream
to be closed, but the suite leaves one itself after 10 seconds and must get the
answer within 5 more where it resumes the stream.
"""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from mcp import MCPError, types
from mcp.server import NotificationOptions, Server
from mcp.server.stdio import stdio_server

#: Longer than the suite listens, shorter than that and what it waits afterwards.
RECONNECTION_SECONDS = 11.0
#: Between the steps of a tool that reports what it does.
STEP_SECONDS = 0.05

#: A picture of one red pixel, and a sound of one sample.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQIAAAAAAA=="

STATIC_TEXT = "This is the content of the static text resource."
WATCHED_TEXT = "This is the content of the watched resource."


# Schemas.


def an_object(*required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object."""
    return {"type": "object", "properties": properties, "required": list(required)}


def a_text(description: str, **more: Any) -> dict[str, Any]:
    """The JSON schema of a string."""
    return {"type": "string", "description": description, **more}


NOTHING = an_object()

#: What is asked for in full: a schema of many words (SEP-1613), and what elicitations ask:
#: a person, a default of each kind (SEP-1034), a choice of each kind (SEP-1330).
SCHEMAS = json.loads(Path(__file__).with_name("schemas.json").read_text())


# Contents.


def text(what: str) -> types.TextContent:
    """A piece of text."""
    return types.TextContent(type="text", text=what)


def image() -> types.ImageContent:
    """A picture."""
    return types.ImageContent(type="image", data=PNG, mime_type="image/png")


def embedded(uri: str, mime_type: str, content: str) -> types.EmbeddedResource:
    """A resource within a content."""
    resource = types.TextResourceContents(uri=uri, mime_type=mime_type, text=content)
    return types.EmbeddedResource(type="resource", resource=resource)


# Tools.  Each gets the context of its request and its arguments, and returns contents.


class Tool(NamedTuple):
    description: str
    schema: dict[str, Any]
    call: Callable[[Any, dict[str, Any]], Awaitable[list[Any]]]


class ToolFailure(Exception):
    """What a tool says went wrong; the client sees it as the call's result."""


def returning(*contents: Any) -> Callable[[Any, dict[str, Any]], Awaitable[list[Any]]]:
    """A tool that only returns something."""

    async def call(context: Any, arguments: dict[str, Any]) -> list[Any]:
        return list(contents)

    return call


async def log(context: Any, what: str) -> None:
    """Send a log message that belongs to the request."""
    params = types.LoggingMessageNotificationParams(level="info", logger="conformance", data=what)
    notification = types.LoggingMessageNotification(params=params)
    await context.session.send_notification(notification, context.request_id)


async def with_logging(context: Any, arguments: dict[str, Any]) -> list[Any]:
    """Three log messages, some time apart."""
    await log(context, "Tool execution started")
    await asyncio.sleep(STEP_SECONDS)
    await log(context, "Tool processing data")
    await asyncio.sleep(STEP_SECONDS)
    await log(context, "Tool execution completed")
    return [text("Tool with logging executed successfully")]


async def with_progress(context: Any, arguments: dict[str, Any]) -> list[Any]:
    """Three progress notifications, if they were asked for."""
    for done in (0, 50, 100):
        await context.session.report_progress(done, 100, f"Completed step {done} of 100")
        await asyncio.sleep(STEP_SECONDS)
    return [text("Tool with progress executed successfully")]


async def failing(context: Any, arguments: dict[str, Any]) -> list[Any]:
    """A failure."""
    raise ToolFailure("This tool intentionally returns an error for testing")


async def sampling(context: Any, arguments: dict[str, Any]) -> list[Any]:
    """A question to the client's model."""
    result = await context.session.send_request(
        types.CreateMessageRequest(
            params=types.CreateMessageRequestParams(
                messages=[types.SamplingMessage(role="user", content=text(arguments["prompt"]))],
                max_tokens=100,
            )
        ),
        types.CreateMessageResult,
    )
    return [text(f"LLM response: {result.content.text}")]


async def elicit(context: Any, message: str, schema: dict[str, Any]) -> str:
    """A question to the user; what came of it."""
    result = await context.session.elicit_form(message, schema, context.request_id)
    return f"action={result.action}, content={json.dumps(result.content or {})}"


async def elicitation(context: Any, arguments: dict[str, Any]) -> list[Any]:
    return [
        text(f"User response: {await elicit(context, arguments['message'], SCHEMAS['person'])}")
    ]


async def elicitation_defaults(context: Any, arguments: dict[str, Any]) -> list[Any]:
    outcome = await elicit(context, "Please review the fields with defaults", SCHEMAS["defaults"])
    return [text(f"Elicitation completed: {outcome}")]


async def elicitation_enums(context: Any, arguments: dict[str, Any]) -> list[Any]:
    outcome = await elicit(context, "Please select options", SCHEMAS["choices"])
    return [text(f"Elicitation completed: {outcome}")]


def reconnection(seconds: float) -> Callable[[Any, dict[str, Any]], Awaitable[list[Any]]]:
    """A tool whose answer comes when its caller has lost the connection, or given it up."""

    async def call(context: Any, arguments: dict[str, Any]) -> list[Any]:
        await log(context, "The connection may be lost now")
        if context.close_sse_stream is None:
            await asyncio.sleep(seconds)
        else:  # behind the SDK's own transport, which can be asked to
            await context.close_sse_stream()
            await asyncio.sleep(2 * STEP_SECONDS)
        return [text("Reconnection test completed successfully")]

    return call


async def show_arguments(context: Any, arguments: dict[str, Any]) -> list[Any]:
    return [text(f"Called with: {json.dumps(arguments)}")]


def tools(seconds: float) -> dict[str, Tool]:
    """All tools by name."""
    resource = embedded(
        "test://embedded-resource", "text/plain", "This is an embedded resource content."
    )
    mixed = embedded(
        "test://mixed-content-resource", "application/json", '{"test":"data","value":123}'
    )
    audio = types.AudioContent(type="audio", data=WAV, mime_type="audio/wav")
    a_prompt = an_object("prompt", prompt=a_text("The prompt to send to the LLM"))
    a_message = an_object("message", message=a_text("The message to show the user"))
    simple = returning(text("This is a simple text response for testing."))
    several = returning(text("Multiple content types test:"), image(), mixed)
    return {
        "test_simple_text": Tool("Returns text", NOTHING, simple),
        "test_image_content": Tool("Returns a picture", NOTHING, returning(image())),
        "test_audio_content": Tool("Returns a sound", NOTHING, returning(audio)),
        "test_embedded_resource": Tool("Returns a resource", NOTHING, returning(resource)),
        "test_multiple_content_types": Tool("Returns contents of each kind", NOTHING, several),
        "test_tool_with_logging": Tool("Logs what it does", NOTHING, with_logging),
        "test_tool_with_progress": Tool("Reports its progress", NOTHING, with_progress),
        "test_error_handling": Tool("Fails", NOTHING, failing),
        "test_reconnection": Tool("Outlasts a connection", NOTHING, reconnection(seconds)),
        "test_sampling": Tool("Asks the client's model", a_prompt, sampling),
        "test_elicitation": Tool("Asks the user", a_message, elicitation),
        "test_elicitation_sep1034_defaults": Tool(
            "Asks with default values", NOTHING, elicitation_defaults
        ),
        "test_elicitation_sep1330_enums": Tool("Asks for choices", NOTHING, elicitation_enums),
        "json_schema_2020_12_tool": Tool(
            "Has a schema of many words", SCHEMAS["json_schema_2020_12"], show_arguments
        ),
    }


# Resources.

RESOURCES = [
    types.Resource(
        uri="test://static-text",
        name="static-text",
        description="A text that never changes",
        mime_type="text/plain",
    ),
    types.Resource(
        uri="test://static-binary",
        name="static-binary",
        description="A picture that never changes",
        mime_type="image/png",
    ),
    types.Resource(
        uri="test://watched-resource",
        name="watched-resource",
        description="A text to subscribe to",
        mime_type="text/plain",
    ),
]
TEMPLATES = [
    types.ResourceTemplate(
        uri_template="test://template/{id}/data",
        name="template",
        description="Data of any id",
        mime_type="application/json",
    )
]


async def list_resources(context: Any, params: Any) -> types.ListResourcesResult:
    return types.ListResourcesResult(resources=RESOURCES)


async def list_templates(context: Any, params: Any) -> types.ListResourceTemplatesResult:
    return types.ListResourceTemplatesResult(resource_templates=TEMPLATES)


async def read_resource(context: Any, params: Any) -> types.ReadResourceResult:
    uri = str(params.uri)
    contents: Any
    match uri.removeprefix("test://").split("/"):
        case ["static-text"]:
            contents = types.TextResourceContents(uri=uri, mime_type="text/plain", text=STATIC_TEXT)
        case ["static-binary"]:
            contents = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
        case ["watched-resource"]:
            contents = types.TextResourceContents(
                uri=uri, mime_type="text/plain", text=WATCHED_TEXT
            )
        case ["template", ident, "data"]:
            data = json.dumps({"id": ident, "templateTest": True, "data": f"Data for ID: {ident}"})
            contents = types.TextResourceContents(uri=uri, mime_type="application/json", text=data)
        case _:
            raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    return types.ReadResourceResult(contents=[contents])


async def accept(context: Any, params: Any) -> types.EmptyResult:
    """Agree to a subscription, to its end, and to a log level."""
    return types.EmptyResult()


# Prompts.


def a_prompt(name: str, description: str, **arguments: str) -> types.Prompt:
    """What the list says of a prompt; all arguments are required."""
    return types.Prompt(
        name=name,
        description=description,
        arguments=[
            types.PromptArgument(name=key, description=what, required=True)
            for key, what in arguments.items()
        ],
    )


PROMPTS = [
    a_prompt("test_simple_prompt", "Has no arguments"),
    a_prompt("test_prompt_with_arguments", "Has arguments", arg1="The first", arg2="The second"),
    a_prompt(
        "test_prompt_with_embedded_resource",
        "Has a resource within",
        resourceUri="The URI of the resource to embed",
    ),
    a_prompt("test_prompt_with_image", "Has a picture within"),
]


async def list_prompts(context: Any, params: Any) -> types.ListPromptsResult:
    return types.ListPromptsResult(prompts=PROMPTS)


async def get_prompt(context: Any, params: Any) -> types.GetPromptResult:
    given = params.arguments or {}
    contents: list[Any]
    match params.name:
        case "test_simple_prompt":
            contents = [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            values = f"arg1='{given['arg1']}', arg2='{given['arg2']}'"
            contents = [text(f"Prompt with arguments: {values}")]
        case "test_prompt_with_embedded_resource":
            resource = embedded(
                given["resourceUri"], "text/plain", "Embedded resource content for testing."
            )
            contents = [resource, text("Please process the embedded resource above.")]
        case "test_prompt_with_image":
            contents = [image(), text("Please analyze the image above.")]
        case _:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    return types.GetPromptResult(
        messages=[types.PromptMessage(role="user", content=content) for content in contents]
    )


async def complete(context: Any, params: Any) -> types.CompleteResult:
    words = ["paris", "park", "party", "test"]
    values = [word for word in words if word.startswith(params.argument.value)]
    completion = types.Completion(values=values, total=len(values), has_more=False)
    return types.CompleteResult(completion=completion)


# All of it.


def make_server(seconds: float = RECONNECTION_SECONDS) -> Any:
    """The server, for any transport."""
    offered = tools(seconds)

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(name=name, description=each.description, input_schema=each.schema)
                for name, each in offered.items()
            ]
        )

    async def call_tool(context: Any, params: Any) -> types.CallToolResult:
        tool = offered.get(params.name)
        if tool is None:
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
        try:
            return types.CallToolResult(content=await tool.call(context, params.arguments or {}))
        except ToolFailure as failure:
            return types.CallToolResult(content=[text(str(failure))], is_error=True)

    server = Server(
        "conformance",
        version="1",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=accept,
        on_unsubscribe_resource=accept,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
    )
    # not as an argument, which would print that logging is deprecated
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, accept)
    return server


async def serve(seconds: float) -> None:
    """Serve one client on stdin and stdout."""
    server = make_server(seconds)
    changes = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options(changes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a server for the MCP conformance suite")
    parser.add_argument("--seconds", type=float, default=RECONNECTION_SECONDS)
    asyncio.run(serve(parser.parse_args().seconds))
