"""What is counted agrees with what clients have sent and got, over each transport."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import pytest
import pytest_twisted
import treq

from mcpbridge import ServerSettings
from mcpbridge.counters import OTHER, ServerCounters
from tests.client import SseClient
from tests.integration.test_bridge import start, until  # noqa: F401  (a fixture)

DEMO = ServerSettings(
    command=sys.executable, args=("-m", "mcpbridge.demo"), base_uri="/demo", max_sessions=3
)
CALLS = [
    ("tools/call", {"name": "echo", "arguments": {"text": "hello"}}),
    ("tools/list", {}),
    ("evil/method", {}),
]
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "a", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def request(ident: object, method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}


INITIALIZE = request(
    "first",
    "initialize",
    {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "c", "version": "9"},
    },
)
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def operations(counters: ServerCounters) -> dict[str, Counter[str]]:
    """How many requests of each method ended how; an empty string is a result."""
    return {
        each.method: Counter(
            {"": each.answered.count, **{name: x.count for name, x in each.errors.items()}}
        )
        for each in counters.operations
    }


@pytest_twisted.ensureDeferred
async def test_sessions_of_sse(start: Any, running_reactor: Any) -> None:  # noqa: F811
    running = start(DEMO)
    origin = running.origin.removesuffix("/demo")
    client: SseClient = await running.client("/demo/sse", origin)
    messages = [INITIALIZE, INITIALIZED, *(request(n, *call) for n, call in enumerate(CALLS))]
    for each in messages:
        assert (await client.post(json.dumps(each).encode()))[0] == 202
    for _ in range(4):
        await client.read_message()
    server = running.bridge.servers[0]
    (session,) = server.sessions.values()
    assert (session.transport, session.client_name) == ("sse", "c 9")
    assert session.messages_in == len(messages)
    await client.close()
    await until(running_reactor, lambda: not server.unclosed)
    counters = running.bridge.counters.servers[server.settings.name]
    assert counters is server.counters
    assert operations(counters) == {
        "initialize": {"": 1},
        "tools/call": {"": 1},
        "tools/list": {"": 1},
        OTHER: {"": 0, "-32601": 1},
    }
    assert counters.sessions_opened == {"sse": 1}
    assert counters.sessions_closed == {"client_left": 1}
    assert counters.session_seconds.count == 1
    traffic = counters.traffic["sse"]
    assert traffic.messages_in == len(messages)
    assert traffic.bytes_in == sum(len(json.dumps(each)) for each in messages)
    assert traffic.messages_out == 4
    assert counters.spawn_seconds.count == counters.initialize_seconds.count == 1
    assert sum(counters.exits.values()) == 1


@pytest_twisted.ensureDeferred
async def test_sessions_of_streamable_http(start: Any, running_reactor: Any) -> None:  # noqa: F811
    running = start(DEMO)
    url = f"{running.origin}/mcp"
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}

    async def post(message: Any, **more: str) -> Any:
        every: Any = {**headers, **more}
        answer = await treq.post(url, json.dumps(message).encode(), headers=every, persistent=False)
        await treq.content(answer)
        return answer

    opened = await post(INITIALIZE)
    (ident,) = opened.headers.getRawHeaders("mcp-session-id")
    own: Any = {"Mcp-Session-Id": ident}
    await post(INITIALIZED, **own)
    for number, call in enumerate(CALLS):
        assert (await post(request(number, *call), **own)).code == 200
    server = running.bridge.servers[0]
    (session,) = server.streamable.values()
    assert (session.transport, session.client_name) == ("streamable-http", "c 9")
    for _ in range(2):
        assert (await post(request(1, "ping", {}), **{"Mcp-Session-Id": "none"})).code == 404
    assert (await post({"no": "message"}, **own)).code == 400
    ended = await treq.delete(url, headers=own, persistent=False)
    await treq.content(ended)
    await until(running_reactor, lambda: not server.unclosed)
    counters = server.counters
    assert operations(counters) == {
        "initialize": {"": 1},
        "tools/call": {"": 1},
        "tools/list": {"": 1},
        OTHER: {"": 0, "-32601": 1},
    }
    assert counters.sessions_opened == {"streamable-http": 1}
    assert counters.sessions_closed == {"client_left": 1}
    assert counters.refusals == {"UnknownSession": 2, "NotJsonRpc": 1}
    traffic = counters.traffic["streamable-http"]
    assert (traffic.messages_in, traffic.messages_out) == (5, 4)


@pytest_twisted.ensureDeferred
async def test_requests_of_2026(start: Any, running_reactor: Any) -> None:  # noqa: F811
    running = start(DEMO)
    url = f"{running.origin}/mcp"
    sizes = []

    async def post(ident: int, method: str, params: dict[str, Any]) -> int:
        body = json.dumps(request(ident, method, {**params, "_meta": META})).encode()
        sizes.append(len(body))
        headers: Any = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": method,
        }
        if "name" in params:
            headers["Mcp-Name"] = params["name"]
        answer = await treq.post(url, body, headers=headers, persistent=False)
        await treq.content(answer)
        return int(answer.code)

    codes = [await post(number, *call) for number, call in enumerate(CALLS)]
    assert codes == [200, 200, 404]
    counters = running.bridge.servers[0].counters
    assert operations(counters) == {
        "tools/call": {"": 1},
        "tools/list": {"": 1},
        OTHER: {"": 0, "-32601": 1},
    }
    traffic = counters.traffic["stateless"]
    assert (traffic.messages_in, traffic.bytes_in) == (3, sum(sizes))
    assert counters.sessions_opened == {}
    # Without a connection that is reused, each request has a process of its own.
    assert counters.initialize_seconds.count >= len(CALLS)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["/nowhere", "/demo/nothing"])
async def test_refusals_count_at_the_server_if_that_is_known(start: Any, path: str) -> None:  # noqa: F811
    running = start(DEMO)
    origin = running.origin.removesuffix("/demo")
    answer = await treq.get(f"{origin}{path}", persistent=False)
    await treq.content(answer)
    assert answer.code == 404
    known = path.startswith("/demo")
    counters = running.bridge.counters
    assert counters.servers[DEMO.name].refusals == ({"NotFound": 1} if known else {})
