"""Requests of 2026-07-28 that the bridge itself makes."""

from typing import Any

import msgspec
import pytest

from mcpbridge._version import __version__
from mcpbridge.mcp.modern_request import CLIENT_INFO, MODERN_PROTOCOL_VERSIONS, TASKS
from mcpbridge.mcp.own_request import own_request


@pytest.mark.parametrize(
    ("extensions", "capabilities"),
    [(None, b"{}"), ({TASKS: {}}, b'{"extensions":{"%b":{}}}' % TASKS.encode())],
)
def test_an_own_request_declares_only_extensions(extensions: Any, capabilities: bytes) -> None:
    request = own_request("tasks/get", {"taskId": "1"}, extensions)
    assert (request.method, request.name) == ("tasks/get", "1")
    assert request.version == MODERN_PROTOCOL_VERSIONS[-1]
    assert request.capabilities == capabilities
    info = msgspec.json.decode(request.meta[CLIENT_INFO])
    assert info == {"name": "mcpbridge", "version": __version__}
