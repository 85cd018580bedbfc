"""
MCP Apps (`io.modelcontextprotocol/ui`) from a legacy server to a client of
2026-07-28: only clients that declare the extension see the server's view.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.harness import Bridge, serving
from tests.e2e.stateless import PREFIX, send
from tests.real import parts

pytestmark = pytest.mark.slow

VIEW = "ui://weather/view.html"
MIME_TYPE = "text/html;profile=mcp-app"
UI = {f"{PREFIX}ui": {"mimeTypes": [MIME_TYPE]}}


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    with serving(command=parts.apps_server()) as running:
        yield running


def ask(bridge: Bridge, method: str, extensions: dict[str, Any], **params: Any) -> Any:
    """Return the result of a request from a client with these extensions."""
    able = {"extensions": extensions} if extensions else {}
    meta = {f"{PREFIX}clientCapabilities": able}
    with send(bridge.port, "", method, **params, _meta=meta) as response:
        message = (
            response.json
            if "json" in response.content_type
            else response.read_remaining_messages()[-1]
        )
    return message["result"]


def test_view_is_offered_only_to_clients_that_declare_the_extension(bridge: Bridge) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "text alone"),
        (UI, "with a view"),
        ({**UI, "com.example/other": {}}, "with a view"),
        ({"com.example/other": {}}, "text alone"),
    ]
    for extensions, description in cases:
        [tool] = ask(bridge, "tools/list", extensions)["tools"]
        assert tool["description"] == description
        ui = tool.get("_meta", {}).get("ui")
        assert ui == ({"resourceUri": VIEW} if description == "with a view" else None)


def test_discovery_includes_the_servers_extensions(bridge: Bridge) -> None:
    discovered = ask(bridge, "server/discover", UI)
    assert discovered["capabilities"]["extensions"] == {"com.example/echo": {"a": [1]}}


def test_view_is_read_unchanged(bridge: Bridge) -> None:
    [content] = ask(bridge, "resources/read", UI, uri=VIEW)["contents"]
    assert content == {
        "uri": VIEW,
        "mimeType": MIME_TYPE,
        "text": "<p>sunny",
        "_meta": {"ui": {"prefersBorder": True}},
    }


def test_tool_with_a_view_can_be_called(bridge: Bridge) -> None:
    result = ask(bridge, "tools/call", UI, name="weather", arguments={})
    assert result["content"] == [{"type": "text", "text": "sunny"}]
