"""Server cards of a bridge in front of servers of both eras, over the network."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from tests.e2e.harness import Bridge, backend, processes_with_argument, serving
from tests.e2e.stateless import send

pytestmark = pytest.mark.slow


def get(bridge: Bridge, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=60)
    try:
        connection.request(
            "GET", path, headers={name.replace("_", "-"): each for name, each in headers.items()}
        )
        response = connection.getresponse()
        body = response.read()
        named = {name.lower(): each for name, each in response.getheaders()}
        return response.status, named, json.loads(body) if body else None
    finally:
        connection.close()


def test_card_exists_once_its_server_has_identified_itself() -> None:
    commands = {"new": backend("tools", "modern", 0), "old": backend("tools", "legacy", 0)}
    config = {
        "mcpServers": {
            name: {"command": command[0], "args": command[1:]} for name, command in commands.items()
        }
    }
    with serving(config=config) as bridge:
        before = len(processes_with_argument(bridge.marker))
        cards = ["/old/mcp/server-card", "/new/mcp/server-card"]
        for path in (*cards, "/.well-known/ai-catalog.json"):
            status, headers, body = get(bridge, path)
            assert (status, headers["cache-control"]) == (404, "no-store")
            assert "said yet" in body["error"]["message"]
        assert get(bridge, "/.well-known/mcp/server-card")[0] == 404
        # These requests started no process.
        assert len(processes_with_argument(bridge.marker)) == before
        for number, name in enumerate(config["mcpServers"], 1):
            with send(bridge.port, f"/{name}", "tools/list") as response:
                assert response.status == 200
                assert "tools" in response.json["result"]
            status, headers, card = get(bridge, f"/{name}/mcp/server-card")
            assert (status, headers["content-type"]) == (200, "application/mcp-server-card+json")
            assert card["remotes"][0]["url"] == f"http://127.0.0.1:{bridge.port}/{name}/mcp"
            assert "2026-07-28" in card["remotes"][0]["supportedProtocolVersions"]
            tag = headers["etag"]
            status, headers, nothing = get(bridge, f"/{name}/mcp/server-card", If_None_Match=tag)
            assert (status, headers["etag"], nothing) == (304, tag, None)
            catalog = get(bridge, "/.well-known/ai-catalog.json")[2]
            assert len(catalog["entries"]) == number
        origin = f"http://127.0.0.1:{bridge.port}"
        urls = {each["url"].removeprefix(origin) for each in catalog["entries"]}
        assert urls == set(cards)
        # Cards are subject to transport security too.
        assert get(bridge, "/old/mcp/server-card", Origin="https://evil.example")[0] == 403
        assert get(bridge, "/old/mcp/server-card", Host="evil.example")[0] == 403


def test_session_of_a_handshake_client_provides_the_card() -> None:
    for era in ("legacy", "modern"):
        with serving(command=backend("tools", era, 0)) as bridge:
            assert get(bridge, "/.well-known/mcp/server-card")[0] == 404
            session = bridge.open_streamable_http()
            status, _, card = get(bridge, "/.well-known/mcp/server-card")
            assert status == 200
            assert card["remotes"][1] == {
                "type": "sse",
                "url": f"http://127.0.0.1:{bridge.port}/sse",
            }
            assert card == get(bridge, "/mcp/server-card")[2]
            assert session.delete() < 300
