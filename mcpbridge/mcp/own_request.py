"""
Requests of 2026-07-28 that the bridge itself makes.

Knows what such a request says of its sender; must not know where it goes.
"""

from __future__ import annotations

from mcpbridge._version import __version__
from mcpbridge.jsonrpc.members import request_line
from mcpbridge.jsonrpc.parsed_message import parse_message
from mcpbridge.mcp.modern_request import (
    CLIENT_CAPABILITIES,
    CLIENT_INFO,
    MODERN_PROTOCOL_VERSIONS,
    PROTOCOL_VERSION,
    ModernRequest,
    read_request,
)


def own_request(
    method: str, params: dict[str, object], extensions: dict[str, object] | None = None
) -> ModernRequest:
    """
    Return a request of the bridge's own.

    The bridge declares no capabilities but these extensions: a server must
    not ask it for input.
    """
    meta = {
        PROTOCOL_VERSION: MODERN_PROTOCOL_VERSIONS[-1],
        CLIENT_INFO: {"name": "mcpbridge", "version": __version__},
        CLIENT_CAPABILITIES: {} if extensions is None else {"extensions": extensions},
    }
    line = request_line(0, method, {**params, "_meta": meta})
    parsed = parse_message(line)
    assert parsed is not None
    return read_request(parsed, version_header=MODERN_PROTOCOL_VERSIONS[-1])
