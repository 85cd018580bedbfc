"""The metadata of protected resources over HTTP, which needs no token."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.web.root import Branch, SecuredResource, Serving
from mcpbridge.web.site import BridgeSite
from mcpbridge.web.transport_security import TransportSecurity
from mcpbridge.web.well_known import METADATA_CACHE, ResourceMetadata

WELL_KNOWN = "/.well-known/oauth-protected-resource"
DOCUMENTS = {path: {"resource": f"https://mcp.example.org{path}"} for path in ("/a/mcp", "/a/sse")}
ROOT: dict[str, dict[str, Any]] = {"": {"resource": "https://mcp.example.org"}}


def response_to(
    target: str, documents: dict[str, dict[str, Any]], method: str = "GET", *lines: str
) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers and the body of a response."""
    settings = BridgeSettings(servers=(ServerSettings(command="x"),), allowed_hosts=("h",))
    root = Branch()
    ResourceMetadata(documents).serve_well_known(root)
    site = BridgeSite(
        SecuredResource(partial(Serving, TransportSecurity(settings), root)),
        Clock(),
        settings,
        seconds=lambda: 0.0,
    )
    channel: Any = site.buildProtocol(None)
    transport = StringTransport()
    channel.makeConnection(transport)
    head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: h", "Connection: close", *lines])
    channel.dataReceived(head.encode("latin-1") + b"\r\n\r\n")
    first, _, body = transport.value().partition(b"\r\n\r\n")
    status, *fields = first.decode("latin-1").split("\r\n")
    headers = dict(each.split(": ", 1) for each in fields)
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a/mcp", "/a/mcp"),
        ("/a/mcp/", "/a/mcp"),
        ("/a/mcp?x=1", "/a/mcp"),
        ("/%61/mcp", "/a/mcp"),
        ("/a/sse", "/a/sse"),
        ("", ""),
        ("/", ""),
    ],
)
def test_each_resource_has_its_document(target: str, path: str) -> None:
    documents = {**DOCUMENTS, **ROOT}
    status, headers, body = response_to(f"{WELL_KNOWN}{target}", documents)
    assert (status, json.loads(body)) == (200, documents[path])
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == METADATA_CACHE.decode()
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert headers["Content-Length"] == str(len(body))


def test_head_has_no_body() -> None:
    status, headers, body = response_to(f"{WELL_KNOWN}/a/mcp", DOCUMENTS, "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    "target",
    ["", "/", "/a", "/A/mcp", "/a/mcp/x", "//a/mcp", "/a//mcp", "/b/mcp", "/a/mcp//"],
)
def test_other_paths_have_none(target: str) -> None:
    status, _, body = response_to(f"{WELL_KNOWN}{target}", DOCUMENTS)
    assert status == 404
    assert b"mcp.example.org" not in body


def test_without_documents_nothing_is_served() -> None:
    assert response_to(f"{WELL_KNOWN}/a/mcp", {})[0] == 404
