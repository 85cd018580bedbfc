"""The sentence that names the URLs of servers."""

from __future__ import annotations

import pytest

from mcpbridge.config.settings import ServerSettings
from mcpbridge.web.urls import _NAMED, mcp_at


@pytest.mark.parametrize("more", [0, 2])
def test_first_servers_are_named(more: int) -> None:
    """`_NAMED`, and the others are counted."""
    servers = [
        ServerSettings(name=f"s{number}", command="x", base_uri=f"/s{number}")
        for number in range(_NAMED + more)
    ]
    named = ", ".join(f"/m/s{number}/mcp" for number in range(_NAMED))
    assert mcp_at(servers, "/m") == f"MCP is at {named}" + (f" and {more} more" if more else "")


def test_single_server_is_named_with_both_endpoints() -> None:
    assert mcp_at([ServerSettings(command="x", base_uri="/s")], "") == "MCP is at /s/mcp and /s/sse"
