"""
One bridge in front of fifty servers, of which ten are broken: the clients of the others do not
notice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from mcpbridge.config.tuning import STILLBORN_STARTS
from tests.e2e.callers import ACCEPT, INITIALIZE, ask, post
from tests.e2e.harness import (
    TIMEOUT,
    Bridge,
    Response,
    SseStream,
    backend,
    request,
    serving,
    wait_until,
)
from tests.e2e.stateless import ToolCaller, in_parallel, repeating_in_background, send
from tests.real.processes import eventually

pytestmark = pytest.mark.slow

GOOD = [f"good{number}" for number in range(40)]
#: What is broken, and how: each kind twice.
BROKEN = {
    "missing": ["no-such-program-anywhere"],
    "crash": ["sh", "-c", "echo cannot work >&2; exit 3"],
    "hang": ["sh", "-c", "exec sleep 1000.$0"],
    "garbage": ["sh", "-c", "while read -r line; do echo this is no JSON; done"],
    "half": ["sh", "-c", "printf '{\"jsonrpc\":'; exec sleep 1000.$0"],
}
#: Those that take clients and never answer them.
SILENT = [f"{kind}{number}" for kind in ("hang", "garbage", "half") for number in (1, 2)]
#: The processes of all servers; half of them are divided among fifty servers, four for each.
SESSIONS = 400
#: Clients of each silent server: more than there are processes left for all of these.
CLIENTS = 45
#: Processes end soon after their clients, also those that are left to start without them.
SOON = {"start_timeout": 3, "stop_grace": 0.5}
#: Descriptors of a process: three pipes and a pidfd.
DESCRIPTORS = 4
#: Threads that use the good servers.
USERS = 4


def config() -> dict[str, Any]:
    servers: dict[str, Any] = {}
    for number, name in enumerate(GOOD):
        command = backend("tools", ("legacy", "modern")[number % 2], 0)
        servers[name] = {"command": command[0], "args": command[1:], **SOON}
    for kind, command in BROKEN.items():
        for number in (1, 2):
            servers[f"{kind}{number}"] = {
                "command": command[0],
                "args": command[1:],
                **SOON,
            }
    return {"mcpServers": servers, "bridge": {"max_sessions": SESSIONS}}


def use(bridge: Bridge, name: str) -> None:
    """Call a tool of a server in each of the three ways; every answer must be the right one."""
    base, number = f"/{name}", 0
    with bridge.open_sse(base) as stream:
        messages = (INITIALIZE, request("tools/call", 2, name="echo", arguments={"token": name}))
        for number, message in enumerate(messages, 1):
            stream.send_message(message)
            while (answer := json.loads(stream.read_message())).get("id") != number:
                assert "method" in answer
        assert json.loads(answer["result"]["content"][0]["text"])["token"] == name
    client = bridge.open_streamable_http(base)
    with client.call("tools/call", name="echo", arguments={"token": name}) as response:
        answer = response.read_final_message()
    assert json.loads(answer["result"]["content"][0]["text"])["token"] == name
    assert client.delete() < 300
    assert ToolCaller(bridge, base).call("echo", name).tool_output["token"] == name


def use_some(bridge: Bridge, number: int) -> None:
    """Use the good servers of one user."""
    for name in GOOD[number::USERS]:
        use(bridge, name)


@contextmanager
def waiting_clients(bridge: Bridge) -> Iterator[None]:
    """Let clients of the silent servers wait, who take all processes that they can get."""
    clients = []
    try:
        for number in range(CLIENTS):
            for name in SILENT:
                clients.append(SseStream(bridge.port, f"/{name}/sse"))
                assert clients[-1].status in (200, 429)
                if not number:
                    clients[-1].read_opening_events()
                    clients[-1].send_message(INITIALIZE)
        assert clients[-1].status == 429
        yield
    finally:
        for each in clients:
            each.close()


def hammer(bridge: Bridge, name: str) -> None:
    """Send a request to a broken server in two ways; every answer must be a clear error."""
    said = {"missing": "not found", "crash": "the backend "}[name.rstrip("12")]
    lines = [f"Accept: {ACCEPT}", "Content-Type: application/json"]
    with Response(bridge.port, "POST", f"/{name}/mcp", INITIALIZE, lines) as response:
        # Before the bridge knows that a server crashes, a session was opened by then.
        assert response.status in ({200, 503} if name.startswith("crash") else {502, 503})
        assert said in response.read_final_message()["error"]["message"]
    with send(bridge.port, f"/{name}", "tools/list") as response:
        assert response.status in (200, 502, 503)
        assert said in response.read_final_message()["error"]["message"]


def test_broken_servers_leave_the_others_alone() -> None:
    with serving(config=config()) as bridge:
        before = bridge.count_descriptors()
        memory = bridge.rss()
        hammers = [
            lambda _, name=name: hammer(bridge, name)
            for name in ("missing1", "missing2", "crash1", "crash2")
        ]
        with waiting_clients(bridge):
            for name in SILENT:
                answer = ask(bridge.port, post(f"/{name}/mcp", INITIALIZE))
                assert answer.status == 429
                text = answer.json["error"]["message"]
                assert f"the bridge's max_sessions is {SESSIONS}, of which " in text
                assert text.endswith("are kept for other servers")
            with repeating_in_background(*hammers):
                in_parallel(USERS, partial(use_some, bridge))
            states = {
                each["name"]: each["state"]
                for each in json.loads(bridge.request("GET", "/").body)["servers"]
            }
        assert len(states) == 50
        conditions = {name: each["condition"] for name, each in states.items()}
        assert {conditions[name] for name in GOOD} == {"ready"}
        assert {conditions[name] for name in SILENT} == {"starting"}
        assert "not found" in states["missing1"]["reason"]
        assert "the backend " in states["crash2"]["reason"]
        assert conditions["missing2"] == conditions["crash1"] == "failing"
        # All that is left are processes of the good servers, ready for the next request.
        assert eventually(lambda: len(bridge.backend_processes()) <= len(GOOD), 3 * TIMEOUT), (
            "\n".join([*map(str, bridge.backend_processes()), bridge.log])
        )
        most = before + DESCRIPTORS * len(GOOD) + 8
        wait_until(lambda: bridge.count_descriptors() <= most)
        assert bridge.rss() - memory < 128 << 20
        # However often they are asked: not each failed start has its own lines.
        lines = bridge.log.splitlines()
        for name, most in (("missing1", 16), ("crash1", 6 * (STILLBORN_STARTS + 8))):
            found = [line for line in lines if f"'{name}'" in line]
            assert len(found) <= most, "\n".join(found)
