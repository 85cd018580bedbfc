"""
Clients that people use, over both transports.

Each third-party client lists the tools and calls one, over HTTP+SSE and over
Streamable HTTP, through the installed `twistd mcpbridge` in its own process.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.real import parts
from tests.real.bridge import LOOPBACK, RunningBridge, serving
from tests.real.parts import ALL_CLIENTS

pytestmark = pytest.mark.slow

#: `twistd` ends by the signal that stopped it, once everything is stopped.
STOPPED = (0,)
TRANSPORTS = ("sse", "mcp")
#: Clients that do not end their session: over Streamable HTTP the idle timeout ends it,
#: and the processes of clients of 2026-07-28 too.
SILENT = ("mcp-remote", "inspector", "mcp-2-client", "fastmcp")
#: Longer than any pause within a session, short enough to wait for.
IDLE = ("--idle-timeout", "8")
#: Clients that show only results.
TERSE = ("inspector",)
#: Clients that answer a server's requests.
ANSWERING = ("mcp-1-session", "mcp-2-session", "npm-sdk-1")


def url(bridge: RunningBridge, transport: str) -> str:
    """Return the URL of a transport."""
    return f"{bridge.url.removesuffix('/sse')}/{transport}"


def options(client: str, transport: str) -> tuple[str, ...]:
    """Return the bridge's options for a client."""
    return (*LOOPBACK, *(IDLE if (transport == "mcp" and client in SILENT) else ()))


def text(seen: dict[str, Any]) -> str:
    """Return the text of the tool's result."""
    assert not seen["result"].get("isError"), seen["result"]
    [content] = seen["result"]["content"]
    said: str = content["text"]
    return said


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("client", ALL_CLIENTS)
def test_client_lists_tools_and_calls_one(client: str, transport: str, tmp_path: Path) -> None:
    with serving(tmp_path, *options(client, transport), "--", *parts.demo()) as bridge:
        at = url(bridge, transport)
        seen = bridge.run_client(ALL_CLIENTS[client], "slow", {"steps": 3, "seconds": 0.3}, at)
        assert {"echo", "add", "clock", "slow", "log"} <= set(seen["tools"])
        assert text(seen).startswith("3 steps")
        assert len(seen["progress"] or ()) == (0 if client in TERSE else 3)
        assert seen["protocolVersion"] >= "2024-11-05"
        assert seen["serverInfo"]["name"]
        bridge.assert_nothing_left()
        assert bridge.stop() in STOPPED


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("client", ANSWERING)
@pytest.mark.parametrize(
    ("tool", "arguments", "asked", "answer"),
    [
        ("test_sampling", {"prompt": "?"}, "sampling/createMessage", "LLM response: an answer"),
        (
            "test_elicitation",
            {"message": "?"},
            "elicitation/create",
            "User response: action=accept",
        ),
    ],
    ids=["sampling", "elicitation"],
)
def test_client_answers_a_request_of_the_server(
    client: str,
    transport: str,
    tool: str,
    arguments: dict[str, Any],
    asked: str,
    answer: str,
    tmp_path: Path,
) -> None:
    """The server asks in the middle of a call, which then succeeds."""
    with serving(tmp_path, *LOOPBACK, "--", *parts.conformance_server()) as bridge:
        seen = bridge.run_client(ALL_CLIENTS[client], tool, arguments, url(bridge, transport))
        assert text(seen).startswith(answer)
        assert seen["asked"] == [asked]
        bridge.assert_nothing_left()
        assert bridge.stop() in STOPPED


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("client", ["mcp-1-session", "npm-sdk-1"])
def test_client_receives_log_messages(client: str, transport: str, tmp_path: Path) -> None:
    """Messages that belong to no request arrive too."""
    with serving(tmp_path, *LOOPBACK, "--", *parts.conformance_server()) as bridge:
        at = url(bridge, transport)
        seen = bridge.run_client(ALL_CLIENTS[client], "test_tool_with_logging", {}, at)
        assert text(seen)
        assert len(seen["logged"]) == 3
        bridge.assert_nothing_left()
        assert bridge.stop() in STOPPED
