"""
MCP Apps (`io.modelcontextprotocol/ui`) from a legacy server to a client of
2026-07-28: the server offers its view to those who declare the extension.
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
    """The result of a request of a client with these extensions."""
    able = {"extensions": extensions} if extensions else {}
    meta = {f"{PREFIX}clientCapabilities": able}
    with send(bridge.port, "", method, **params, _meta=meta) as response:
        message = response.json if "json" in response.kind else response.messages()[-1]
    return message["result"]


def test_only_who_declares_the_extension_is_offered_the_view(bridge: Bridge) -> None:
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


def test_the_server_s_extensions_are_discovered(bridge: Bridge) -> None:
    discovered = ask(bridge, "server/discover", UI)
    assert discovered["capabilities"]["extensions"] == {"com.example/echo": {"a": [1]}}


def test_the_view_is_read_as_it_stands(bridge: Bridge) -> None:
    [content] = ask(bridge, "resources/read", UI, uri=VIEW)["contents"]
    assert content == {
        "uri": VIEW,
        "mimeType": MIME_TYPE,
        "text": "<p>sunny",
        "_meta": {"ui": {"prefersBorder": True}},
    }


def test_the_tool_is_called(bridge: Bridge) -> None:
    result = ask(bridge, "tools/call", UI, name="weather", arguments={})
    assert result["content"] == [{"type": "text", "text": "sunny"}]
