"""Protected resource metadata (RFC 9728): what it says, and under which URLs."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.auth.resource_metadata import WELL_KNOWN, ProtectedResource
from mcpbridge.config.settings import ServerSettings

ORIGIN = "https://mcp.example.org"
ISSUERS = ["https://login.example.org"]


def resource(scopes: list[str] | None = None, issuers: Any = ISSUERS, **server: Any) -> Any:
    settings = ServerSettings(command="x", **{"name": "files", "base_uri": "/files", **server})
    return ProtectedResource(ORIGIN, settings, issuers, scopes or [])


def test_each_endpoint_has_a_document() -> None:
    assert resource(["read", "write"]).documents() == {
        f"/files/{endpoint}": {
            "resource": f"{ORIGIN}/files/{endpoint}",
            "authorization_servers": ISSUERS,
            "bearer_methods_supported": ["header"],
            "resource_name": "files",
            "scopes_supported": ["read", "write"],
        }
        for endpoint in ("mcp", "sse")
    }


def test_a_server_at_the_root_is_the_resource_of_the_whole_site() -> None:
    documents = resource(base_uri="").documents()
    assert {path: each["resource"] for path, each in documents.items()} == {
        "/mcp": f"{ORIGIN}/mcp",
        "/sse": f"{ORIGIN}/sse",
        "": ORIGIN,
    }
    assert all("scopes_supported" not in each for each in documents.values())


def test_clients_see_the_public_path() -> None:
    found = resource(public_path="/public/x")
    assert list(found.documents()) == ["/public/x/mcp", "/public/x/sse"]
    assert found.metadata_url("/files/mcp") == f"{ORIGIN}{WELL_KNOWN}/public/x/mcp"


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/files/mcp", "mcp"),
        ("/files/mcp/", "mcp"),
        ("/mcp", "mcp"),
        ("/files/sse", "sse"),
        ("/files/message", "sse"),
        ("/files/mcp/server-card", "sse"),
        ("", "sse"),
        ('/x"\r\ny', "sse"),
    ],
)
def test_the_metadata_of_a_request(path: str, endpoint: str) -> None:
    """Nothing of what a client has sent is in the URL."""
    assert resource().metadata_url(path) == f"{ORIGIN}{WELL_KNOWN}/files/{endpoint}"


def test_there_is_none_without_an_authorization_server() -> None:
    found = resource(issuers=())
    assert found.documents() == {}
    assert found.metadata_url("/files/mcp") is None


def test_a_token_may_be_for_any_url_of_its_server_and_for_no_other() -> None:
    assert set(resource().audience) == {
        f"{ORIGIN}/files{path}" for path in ("", "/", "/mcp", "/sse", "/message")
    }
    assert set(resource(base_uri="").audience) == {
        f"{ORIGIN}{path}" for path in ("", "/", "/mcp", "/sse", "/message")
    }
