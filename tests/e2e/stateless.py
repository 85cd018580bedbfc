"""
Clients that send stateless requests of 2026-07-28, one or many at once.

`ToolCaller` knows the tools of `backends/tools.py`.  This module imports nothing
of mcpbridge.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from tests.e2e.harness import (
    TIMEOUT,
    Bridge,
    Connection,
    Response,
    processes_with_argument,
    request,
)

VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
CLIENT_CAPABILITIES: dict[str, Any] = {"elicitation": {}}
T = TypeVar("T")


class TooManyRequests(Exception):
    """The bridge refused a request with 429."""


def raise_for_429(status: int, headers: dict[str, str]) -> None:
    """Raise `TooManyRequests` if the status is 429; the response must have `Retry-After`."""
    if status == 429:
        assert int(headers["retry-after"]) >= 1
        raise TooManyRequests


class CallOutcome(NamedTuple):
    """The status of a call, its notifications and its JSON-RPC response."""

    status: int
    notifications: list[Any]
    response: Any

    @property
    def result(self) -> Any:
        """The result; fail if the response is an error."""
        assert "result" in self.response, self
        return self.response["result"]

    @property
    def tool_output(self) -> Any:
        """The output of the tool, decoded from JSON."""
        assert self.result["resultType"] == "complete", self
        return json.loads(self.result["content"][0]["text"])

    def params_of(self, method: str) -> list[Any]:
        """Return the `params` of each notification of this method."""
        name = f"notifications/{method}"
        return [each["params"] for each in self.notifications if each["method"] == name]


def send(port: int, base: str, method: str, **params: Any) -> Response:
    """Send a request, with the required members of `_meta`; its id is always 1."""
    meta = {
        f"{PREFIX}protocolVersion": VERSION,
        f"{PREFIX}clientInfo": {"name": "tests", "version": "1"},
        f"{PREFIX}clientCapabilities": CLIENT_CAPABILITIES,
        **params.pop("_meta", {}),
    }
    lines = [
        "Accept: application/json, text/event-stream",
        "Content-Type: application/json",
        f"MCP-Protocol-Version: {VERSION}",
        f"Mcp-Method: {method}",
    ]
    if method == "tools/call":
        lines.append(f"Mcp-Name: {params['name']}")
    elif method == "resources/read":
        lines.append(f"Mcp-Name: {params['uri']}")
    return Response(port, "POST", f"{base}/mcp", request(method, 1, **params, _meta=meta), lines)


def subscribe(port: int, base: str = "") -> Response:
    """Subscribe to changes of the list of tools, and read the acknowledgement."""
    response = send(port, base, "subscriptions/listen", notifications={"toolsListChanged": True})
    try:
        raise_for_429(response.status, response.headers)
        assert response.read_message()["method"] == "notifications/subscriptions/acknowledged"
    except BaseException:
        response.close()
        raise
    return response


class ToolCaller:
    """Calls the tools of one server."""

    def __init__(self, bridge: Bridge, base: str = "") -> None:
        self.port = bridge.port
        self.base = base

    def start_call(
        self, tool: str, token: str, _meta: dict[str, Any] | None = None, **more: Any
    ) -> Response:
        """Send a tool call, with `more` as further members of `params`."""
        arguments = {"token": token, "steps": 5}
        params = {"name": tool, "arguments": arguments, "_meta": _meta or {}, **more}
        return send(self.port, self.base, "tools/call", **params)

    def call(self, tool: str, token: str, **more: Any) -> CallOutcome:
        """Call a tool, and read its notifications and its response."""
        with self.start_call(tool, token, **more) as response:
            raise_for_429(response.status, response.headers)
            if "event-stream" not in response.content_type:
                return CallOutcome(response.status, [], response.json)
            *before, answer = response.read_remaining_messages()
            return CallOutcome(response.status, before, answer)

    def start_elicitation(self, token: str) -> CallOutcome:
        """Call the tool `ask`, and check that its elicitation is the one for this token."""
        outcome = self.call("ask", token)
        assert outcome.result["resultType"] == "input_required", outcome
        [elicitation] = outcome.result["inputRequests"].values()
        assert (elicitation["method"], elicitation["params"]["message"]) == (
            "elicitation/create",
            token,
        )
        return outcome

    def answer_elicitation(self, token: str, outcome: CallOutcome, answer: str) -> CallOutcome:
        """Call the tool again, with this answer to its elicitation."""
        [key] = outcome.result["inputRequests"]
        responses = {key: {"action": "accept", "content": {"answer": answer}}}
        state = outcome.result["requestState"]
        return self.call("ask", token, inputResponses=responses, requestState=state)


class KeepAliveConnection(Connection):
    """Calls tools one after the other on a connection that stays open."""

    def __init__(self, port: int, base: str) -> None:
        super().__init__(port)
        self._base = base

    def call(self, tool: str, token: str) -> Any:
        """Call a tool, and return its output."""
        meta = {
            f"{PREFIX}protocolVersion": VERSION,
            f"{PREFIX}clientCapabilities": CLIENT_CAPABILITIES,
        }
        params = {"name": tool, "arguments": {"token": token}, "_meta": meta}
        body = request("tools/call", 1, **params)
        lines = [
            f"Host: {self.host}",
            f"Content-Length: {len(body)}",
            "Accept: application/json, text/event-stream",
            "Content-Type: application/json",
            f"MCP-Protocol-Version: {VERSION}",
            "Mcp-Method: tools/call",
            f"Mcp-Name: {tool}",
        ]
        head = "".join(f"{line}\r\n" for line in lines)
        self.send(f"POST {self._base}/mcp HTTP/1.1\r\n{head}\r\n".encode() + body)
        status, headers = self.read_head()
        assert status == 200, status
        if headers.get("transfer-encoding") == "chunked":
            # The call took long, so this is an event stream; its last event is the response.
            answer = b"".join(self.read_chunks()).rstrip().rpartition(b"data: ")[2]
        else:
            answer = self.read(int(headers["content-length"]))
        return json.loads(json.loads(answer)["result"]["content"][0]["text"])


def in_parallel(count: int, work: Callable[[int], T]) -> list[T]:
    """Call `work` in this many threads at once, each with its number; return the results."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


@contextlib.contextmanager
def repeating_in_background(*works: Callable[[int], object]) -> Iterator[None]:
    """Call each function repeatedly in a thread during the block, with a count of its calls."""
    over = threading.Event()

    def work(number: int) -> int:
        done = 0
        while not over.is_set():
            works[number](done)
            done += 1
        return done

    with ThreadPoolExecutor(len(works)) as threads:
        going = [threads.submit(work, number) for number in range(len(works))]
        try:
            yield
        finally:
            over.set()
        for each in going:
            assert each.result(TIMEOUT)


class ProcessCounter:
    """Counts the processes of a bridge repeatedly, and remembers the highest counts."""

    def __init__(self, bridge: Bridge, *names: str) -> None:
        self.max_by_name = dict.fromkeys(names, 0)
        self.max_total = 0
        self.samples = 0
        self._bridge = bridge

    def count(self) -> dict[str, int]:
        """Count the processes that run now, by the names in their command lines."""
        commands = [
            each.command
            for each in processes_with_argument(self._bridge.marker)
            if each.pid != self._bridge.process.pid
        ]
        found = {name: sum(name in each for each in commands) for name in self.max_by_name}
        self.max_by_name = {name: max(found[name], most) for name, most in self.max_by_name.items()}
        self.max_total = max(self.max_total, len(commands))
        self.samples += 1
        return found

    def sample(self, _: int) -> None:
        """Count once, and pause; to be used with `repeating_in_background`."""
        self.count()
        time.sleep(0.02)
