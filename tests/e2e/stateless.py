"""
A client of 2026-07-28 that knows nothing of the bridge: every request is a
POST of its own.  And what a tool of `backends/tools.py` is called with, and by
how many at once.

Knows `tools.py` and the wire; nothing of mcpbridge is imported.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from tests.e2e.harness import PATIENCE, Bridge, Response, Wire, carrying, request

VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
CAPABLE: dict[str, Any] = {"elicitation": {}}
T = TypeVar("T")


class Busy(Exception):
    """The limits allowed no more just now."""


def let_in(status: int, headers: dict[str, str]) -> None:
    """Raise `Busy` for a request that is to come back later, and was told when."""
    if status == 429:
        assert int(headers["retry-after"]) >= 1
        raise Busy


class Told(NamedTuple):
    """What came of a call: notifications, and the answer."""

    status: int
    before: list[Any]
    answer: Any

    @property
    def result(self) -> Any:
        """Its result, which it must have."""
        assert "result" in self.answer, self
        return self.answer["result"]

    @property
    def said(self) -> Any:
        """What the tool said."""
        assert self.result["resultType"] == "complete", self
        return json.loads(self.result["content"][0]["text"])

    def of(self, method: str) -> list[Any]:
        """The `params` of those notifications that came before it."""
        name = f"notifications/{method}"
        return [each["params"] for each in self.before if each["method"] == name]


def send(port: int, base: str, method: str, **params: Any) -> Response:
    """Send a request; its `_meta` is completed.  Ids need not differ, so they do not."""
    meta = {
        f"{PREFIX}protocolVersion": VERSION,
        f"{PREFIX}clientInfo": {"name": "tests", "version": "1"},
        f"{PREFIX}clientCapabilities": CAPABLE,
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


def listen(port: int, base: str = "") -> Response:
    """Listen for changes of the tools, to be acknowledged first."""
    response = send(port, base, "subscriptions/listen", notifications={"toolsListChanged": True})
    try:
        let_in(response.status, response.headers)
        assert response.message()["method"] == "notifications/subscriptions/acknowledged"
    except BaseException:
        response.close()
        raise
    return response


class Caller:
    """Calls tools of a server."""

    def __init__(self, bridge: Bridge, base: str = "") -> None:
        self.port = bridge.port
        self.base = base

    def begin(
        self, tool: str, token: str, _meta: dict[str, Any] | None = None, **more: Any
    ) -> Response:
        """Send a call, with these arguments and members of `params` beside `arguments`."""
        arguments = {"token": token, "steps": 5}
        params = {"name": tool, "arguments": arguments, "_meta": _meta or {}, **more}
        return send(self.port, self.base, "tools/call", **params)

    def call(self, tool: str, token: str, **more: Any) -> Told:
        """Call a tool, and wait for all that comes of it."""
        with self.begin(tool, token, **more) as response:
            let_in(response.status, response.headers)
            if "event-stream" not in response.kind:
                return Told(response.status, [], response.json)
            *before, answer = response.messages()
            return Told(response.status, before, answer)

    def ask(self, token: str) -> Told:
        """Have the tool ask; whatever it asks, it must be this call's own question."""
        told = self.call("ask", token)
        assert told.result["resultType"] == "input_required", told
        [asked] = told.result["inputRequests"].values()
        assert (asked["method"], asked["params"]["message"]) == ("elicitation/create", token)
        return told

    def reply(self, token: str, told: Told, answer: str) -> Told:
        """Answer what the tool asked."""
        [key] = told.result["inputRequests"]
        responses = {key: {"action": "accept", "content": {"answer": answer}}}
        state = told.result["requestState"]
        return self.call("ask", token, inputResponses=responses, requestState=state)


class KeptAlive(Wire):
    """Calls tools, one after the other, on one connection that is kept open."""

    def __init__(self, port: int, base: str) -> None:
        super().__init__(port)
        self._base = base

    def call(self, tool: str, token: str) -> Any:
        """Call a tool; what it said."""
        meta = {
            f"{PREFIX}protocolVersion": VERSION,
            f"{PREFIX}clientCapabilities": CAPABLE,
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
            # It took long: events, the last of which is the answer.
            answer = b"".join(self.chunks()).rstrip().rpartition(b"data: ")[2]
        else:
            answer = self.take(int(headers["content-length"]))
        return json.loads(json.loads(answer)["result"]["content"][0]["text"])


def together(count: int, work: Callable[[int], T]) -> list[T]:
    """Do something so many times at once; each is given its number."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


@contextlib.contextmanager
def again_and_again(*works: Callable[[int], object]) -> Iterator[None]:
    """Do all of these meanwhile, each over and over; each time has a number."""
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
            assert each.result(PATIENCE)


class Census:
    """Counts the processes of a bridge, again and again; the most there were at once, by name."""

    def __init__(self, bridge: Bridge, *names: str) -> None:
        self.most = dict.fromkeys(names, 0)
        self.most_of_all = 0
        self.samples = 0
        self._bridge = bridge

    def count(self) -> dict[str, int]:
        """How many there are now, by what their command lines hold."""
        commands = [
            each.command
            for each in carrying(self._bridge.mark)
            if each.pid != self._bridge.process.pid
        ]
        found = {name: sum(name in each for each in commands) for name in self.most}
        self.most = {name: max(found[name], most) for name, most in self.most.items()}
        self.most_of_all = max(self.most_of_all, len(commands))
        self.samples += 1
        return found

    def step(self, _: int) -> None:
        """One look, for `again_and_again`."""
        self.count()
        time.sleep(0.02)
