"""
The limits on processes of a server, of the bridge, of an address and of an identity: each holds
on every way in, and the answer says which it is.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.callers import (
    ACCEPT,
    INITIALIZE,
    ask,
    auth,
    authorization,
    demo,
    head,
    modern,
    modern_lines,
    post,
)
from tests.e2e.harness import Connection, serving

pytestmark = pytest.mark.slow

#: What APISIX's clients get at `/sse`, whichever `max_sessions` it is.
CONTRACT = "too many concurrent MCP sessions"
REACHED = "your {} has reached its limit of sessions: 1 ({})"
#: For each limit: settings of the servers and of the bridge, whether callers have tokens, the
#: server of the second request, and what its answer names.
LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], bool, str, str]] = {
    "server": ({"max_sessions": 1}, {}, False, "a", "the server's max_sessions is 1"),
    "bridge": ({}, {"max_sessions": 1}, False, "b", "the bridge's max_sessions is 1"),
    "address": (
        {"max_sessions_per_address": 1},
        {},
        False,
        "a",
        REACHED.format("address", "max_sessions_per_address"),
    ),
    "address of the bridge": (
        {},
        {"max_sessions_per_address": 1},
        False,
        "b",
        REACHED.format("address", "max_sessions_per_address of the bridge"),
    ),
    "identity": (
        {"max_sessions_per_identity": 1},
        {},
        True,
        "a",
        REACHED.format("identity", "max_sessions_per_identity"),
    ),
    "identity of the bridge": (
        {},
        {"max_sessions_per_identity": 1},
        True,
        "b",
        REACHED.format("identity", "max_sessions_per_identity of the bridge"),
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_each_limit_holds_on_every_way_in(limit: str) -> None:
    of_server, of_bridge, tokens, second, text = LIMITS[limit]
    config: dict[str, Any] = {
        "mcpServers": {
            name: demo(f"/{name}", queue_timeout=0.2, **of_server) for name in ("a", "b")
        },
        "bridge": {**of_bridge, **({"auth": auth()} if tokens else {})},
    }
    if limit.startswith("address"):
        config["bridge"]["exempt_addresses"] = []
    lines = authorization("alice") if tokens else []
    with serving(config=config) as bridge, Connection(bridge.port) as first:
        first.send(head("GET", "/a/sse", lines))
        assert first.read_head()[0] == 200
        usual = [f"Accept: {ACCEPT}", "Content-Type: application/json", *lines]
        requests = {
            "sse": head("GET", f"/{second}/sse", lines),
            "mcp": post(f"/{second}/mcp", INITIALIZE, *lines),
            "2026": head(
                "POST",
                f"/{second}/mcp",
                [*usual, *modern_lines("tools/list")],
                len(modern("tools/list")),
            )
            + modern("tools/list"),
        }
        for way, request in requests.items():
            answer = ask(bridge.port, request)
            assert answer.status == 429, (way, answer)
            assert int(answer.headers["retry-after"]) > 0
            if way == "sse":
                told = answer.json["error_msg"]
                assert told == (CONTRACT if "max_sessions is" in text else text)
            else:
                told = answer.json["error"]["message"]
                assert told.endswith(text), (way, told)
        other = authorization("carol") if tokens else []
        if limit.startswith("identity"):
            # It is the limit of one identity: another one is let in.
            assert ask(bridge.port, post(f"/{second}/mcp", INITIALIZE, *other)).status == 200
