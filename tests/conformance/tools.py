"""
What the servers for the MCP conformance suite do, whatever SDK and era they speak.

What they offer is in `offer.json`: names, texts, schemas and questions, all of
them the suite's.  Here is what a tool does when it is called, in terms of a
`Call`, which each server makes of its SDK's.  It imports no SDK and nothing of
ours; a server runs in an environment that has its SDK alone.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

#: How long `test_reconnection` takes.  No stdio server can ask for a stream to be
#: closed, but the suite leaves one itself when it has listened for 10 seconds, and
#: must get the answer within 5 more, where it resumes the stream.  A stream on which
#: nothing is said begins up to 2 seconds after the call: what is called by a client
#: that wants no log messages says nothing.
RECONNECTION_SECONDS = 13.5
#: Between the steps of a tool that reports what it does.
STEP_SECONDS = 0.05

OFFER = json.loads(Path(__file__).with_name("offer.json").read_text())
QUESTIONS = OFFER["questions"]
#: The capability that a client declares for each kind of question.
CAPABILITIES = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}

Json = dict[str, Any]


class Call(Protocol):
    """A `tools/call` or `prompts/get`: what it brought, and what can be done meanwhile."""

    @property
    def arguments(self) -> Json:
        """What the caller has sent."""

    def can(self, capability: str) -> bool:
        """Whether the client has declared the capability."""

    async def ask(self, questions: dict[str, Json]) -> dict[str, Json]:
        """Ask all these questions at once; the answers, by the same keys."""

    async def log(self, what: str) -> None:
        """Send a log message that belongs to the call."""

    async def progress(self, done: int, total: int, message: str) -> None:
        """Report the progress of the call, if that was asked for."""

    async def changed(self, kind: str) -> None:
        """Tell whoever wants to know that the list of this kind, `tools` or `prompts`, changed."""

    async def outlast(self, seconds: float) -> None:
        """Close the stream of the call if the transport can, or else wait until it is given up."""


class ToolFailure(Exception):
    """What a tool says went wrong; the client sees it as the call's result."""


class Unknown(Exception):
    """There is no such tool, prompt or resource: an error for the client, with data."""

    def __init__(self, what: str, data: Json | None = None) -> None:
        super().__init__(what)
        self.data = data


Tool = Callable[[Call], Awaitable[list[Json]]]


def fill(template: Any, values: Json) -> Any:
    """A template with `{name}` replaced by the value of that name, wherever it stands."""
    filled = json.dumps(template)
    for name, value in values.items():
        filled = filled.replace(f"{{{name}}}", json.dumps(str(value))[1:-1])
    return json.loads(filled)


def text(what: str) -> Json:
    """A piece of text."""
    return {"type": "text", "text": what}


async def ask_rounds(call: Call, rounds: Iterable[list[str]]) -> dict[str, Json]:
    """Ask questions by their keys, round after round; all answers."""
    answers: dict[str, Json] = {}
    for keys in rounds:
        answers |= await call.ask({key: QUESTIONS[key] for key in keys})
    return answers


# Tools.  Each gets its call, and returns contents.


def returning(contents: list[Json]) -> Tool:
    """A tool that only returns something."""

    async def tool(call: Call) -> list[Json]:
        return contents

    return tool


def asking(rounds: Iterable[list[str]]) -> Tool:
    """A tool that asks questions, round after round, and tells the answers."""

    async def tool(call: Call) -> list[Json]:
        return [text(f"state-ok: {json.dumps(await ask_rounds(call, rounds))}")]

    return tool


async def asking_what_can_be_asked(call: Call) -> list[Json]:
    """The questions of the kinds that the client has declared."""
    keys = ("user_name", "capital_question")
    return await asking([[key for key in keys if call.can(_capability(QUESTIONS[key]))]])(call)


def _capability(question: Json) -> str:
    return CAPABILITIES[question["method"]]


async def with_logging(call: Call) -> list[Json]:
    """Three log messages, some time apart."""
    await call.log("Tool execution started")
    await asyncio.sleep(STEP_SECONDS)
    await call.log("Tool processing data")
    await asyncio.sleep(STEP_SECONDS)
    await call.log("Tool execution completed")
    return [text("Tool with logging executed successfully")]


async def with_progress(call: Call) -> list[Json]:
    """Three progress notifications, if they were asked for."""
    for done in (0, 50, 100):
        await call.progress(done, 100, f"Completed step {done} of 100")
        await asyncio.sleep(STEP_SECONDS)
    return [text("Tool with progress executed successfully")]


async def failing(call: Call) -> list[Json]:
    """A failure."""
    raise ToolFailure("This tool intentionally returns an error for testing")


async def sampling(call: Call) -> list[Json]:
    """A question of the caller's to the client's model."""
    messages = [{"role": "user", "content": text(call.arguments["prompt"])}]
    params = {"messages": messages, "maxTokens": 100}
    answers = await call.ask({"sample": {"method": "sampling/createMessage", "params": params}})
    return [text(f"LLM response: {answers['sample']['content']['text']}")]


async def elicit(call: Call, question: Json) -> str:
    """A question to the user; what came of it."""
    answer = (await call.ask({"elicit": question}))["elicit"]
    return f"action={answer['action']}, content={json.dumps(answer.get('content') or {})}"


async def elicitation(call: Call) -> list[Json]:
    """A question of the caller's to the user."""
    person = QUESTIONS["person"]
    question = {**person, "params": {**person["params"], "message": call.arguments["message"]}}
    return [text(f"User response: {await elicit(call, question)}")]


def eliciting(key: str) -> Tool:
    """A tool that asks the user a question of its own."""

    async def tool(call: Call) -> list[Json]:
        return [text(f"Elicitation completed: {await elicit(call, QUESTIONS[key])}")]

    return tool


def reconnection(seconds: float) -> Tool:
    """A tool whose answer comes when its caller has lost the connection, or given it up."""

    async def tool(call: Call) -> list[Json]:
        await call.log("The connection may be lost now")
        await call.outlast(seconds)
        return [text("Reconnection test completed successfully")]

    return tool


def changing(kind: str, items: list[Json]) -> Tool:
    """A tool that puts an item on the list of a kind, or takes it off again."""
    item = OFFER["sometimes"][kind]

    async def tool(call: Call) -> list[Json]:
        if item in items:
            items.remove(item)
        else:
            items.append(item)
        await call.changed(kind)
        return [text(f"The list of {kind} has changed")]

    return tool


async def show_arguments(call: Call) -> list[Json]:
    """What the caller has sent."""
    return [text(f"Called with: {json.dumps(call.arguments)}")]


class Offer:
    """All that one server offers; the lists of tools and of prompts are as they are now."""

    def __init__(self, seconds: float) -> None:
        self.tools: list[Json] = list(OFFER["tools"])
        self.prompts: list[Json] = list(OFFER["prompts"])
        self.resources: list[Json] = OFFER["resources"]
        self.templates: list[Json] = OFFER["resourceTemplates"]
        self._calls: dict[str, Tool] = {
            **{name: returning(contents) for name, contents in OFFER["results"].items()},
            **{name: asking(rounds) for name, rounds in OFFER["rounds"].items()},
            "test_input_required_result_capabilities": asking_what_can_be_asked,
            "test_tool_with_logging": with_logging,
            "test_logging_tool": with_logging,
            "test_tool_with_progress": with_progress,
            "test_error_handling": failing,
            "test_reconnection": reconnection(seconds),
            "test_sampling": sampling,
            "test_elicitation": elicitation,
            "test_elicitation_sep1034_defaults": eliciting("defaults"),
            "test_elicitation_sep1330_enums": eliciting("choices"),
            "test_trigger_tool_change": changing("tools", self.tools),
            "test_trigger_prompt_change": changing("prompts", self.prompts),
            "test_custom_header": show_arguments,
            "json_schema_2020_12_tool": show_arguments,
        }

    async def call_tool(self, name: str, call: Call) -> Json:
        """
        The result of a tool.

        Raises:
            Unknown: there is no such tool.
        """
        if name not in self._calls:
            raise Unknown(f"Unknown tool: {name}")
        try:
            return {"content": await self._calls[name](call)}
        except ToolFailure as failure:
            return {"content": [text(str(failure))], "isError": True}

    async def get_prompt(self, name: str, call: Call) -> Json:
        """
        The messages of a prompt, made of its arguments and of the answers to its questions.

        Raises:
            Unknown: there is no such prompt.
        """
        if name not in OFFER["messages"]:
            raise Unknown(f"Unknown prompt: {name}")
        values = dict(call.arguments)
        for answer in (await ask_rounds(call, OFFER["rounds"].get(name, ()))).values():
            values |= answer.get("content") or {}
        return {"messages": fill(OFFER["messages"][name], values)}

    def read_resource(self, uri: str) -> Json:
        """
        The contents of a resource, or of one that the template makes.

        Raises:
            Unknown: there is no such resource.
        """
        if found := re.fullmatch(r"test://template/([^/]+)/data", uri):
            return {"contents": [fill(OFFER["templateContents"], {"id": found[1]})]}
        if uri not in OFFER["contents"]:
            raise Unknown("Resource not found", {"uri": uri})
        return {"contents": [OFFER["contents"][uri]]}

    def complete(self, begun: str) -> Json:
        """The words that begin as this does."""
        words = [word for word in OFFER["completions"] if word.startswith(begun)]
        return {"completion": {"values": words, "total": len(words), "hasMore": False}}
