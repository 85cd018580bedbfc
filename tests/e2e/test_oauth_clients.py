"""
Real clients with tokens, against the installed `twistd mcpbridge` and a real authorization
server, each in a process of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.real import parts
from tests.real.bridge import MARKER_VARIABLE, RunningBridge, serving
from tests.real.parts import Client, JavaScriptClient
from tests.real.provider import Client as Confidential
from tests.real.provider import Provider, Server, free_port, new_key, providing

pytestmark = pytest.mark.slow

BROWSER = [sys.executable, str(parts.CLIENTS / "browser.py")]
#: Clients that can get a token by themselves.
CLIENTS = {
    "python-1": Client("client1", "authorizing.py"),
    "python-2": Client("client2", "authorizing.py"),
    "fastmcp": Client("fastmcp", "authorizing_fast.py"),
    "npm-1": JavaScriptClient("clients", "authorizing.cjs"),
    "npm-2": JavaScriptClient("clients", "authorizing.cjs"),
}
#: Those of 2026-07-28.
MODERN = ("python-2", "fastmcp", "npm-2")
WAYS = [
    *((client, way) for client in CLIENTS for way in ("mcp", "sse")),
    *((client, "modern") for client in MODERN),
]
NAMED_TOKEN = "a named token of a test, 0123456789"
READ, WRITE = "files:read", "files:write"
#: What every request needs, and a call of `add`.
SCOPES = {"*": READ, "tools/call": {"add": WRITE}}
ALICE = Confidential("alice", "the secret of alice")
BRIDGE = Confidential("bridge", "the secret of the bridge")
HELLO = ["echo", {"text": "hello"}, 0]


@dataclass
class Place:
    """A bridge, and the authorization server of its servers."""

    provider: Provider
    bridge: RunningBridge
    origin: str

    def url(self, server: str, way: str) -> str:
        """Return the URL of a server's endpoint for a way to speak to it."""
        return f"{self.origin}/{server}/{'sse' if way == 'sse' else 'mcp'}"

    def run(self, client: str, way: str, *calls: list[Any], server: str = "jwt", **more: Any) -> Any:
        """Run a client that makes calls; return what it saw."""
        settings = {
            "url": self.url(server, way),
            "calls": calls or [HELLO],
            "modern": way == "modern",
            **more,
        }
        arguments = [json.dumps(settings)]
        if client.startswith("npm"):
            arguments.insert(0, client[-1])
        seen = self.bridge.run_command([*CLIENTS[client].command(), *arguments])
        if seen["protocolVersion"]:
            assert (seen["protocolVersion"] == "2026-07-28") is (way == "modern")
        return seen

    def sessions(self, server: str) -> int:
        """Return how many processes of a server have been started."""
        return self.bridge.output.count(f"{server}' opened")


#: The servers, and what the authorization server knows of each.
SERVERS = {
    "jwt": Server(f"{READ} {WRITE}"),
    "opaque": Server(f"{READ} {WRITE}", "opaque"),
    # The bridge takes them for four seconds after they were issued: 30 more than `exp`.
    "short": Server(READ, ttl=3, behind=29),
}


@contextlib.contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Run a provider, and a bridge with all servers."""
    origin = f"http://127.0.0.1:{free_port()}"
    known = {
        f"{origin}/{name}/{end}": server
        for name, server in SERVERS.items()
        for end in ("mcp", "sse")
    }
    with providing(known, [ALICE, BRIDGE], [new_key("one")]) as provider:
        secret = folder / "secret"
        secret.write_text(BRIDGE.secret)
        secret.chmod(0o600)
        auth = {
            "tokens": {
                "alice": {
                    "sha256": hashlib.sha256(NAMED_TOKEN.encode()).hexdigest(),
                    "scopes": [READ],
                }
            },
            "oauth": {
                "issuer": provider.issuer,
                "introspection": {"client_id": BRIDGE.id, "client_secret_file": str(secret)},
            },
            "scopes": SCOPES,
        }
        with bridged(folder, origin, SERVERS, auth) as bridge:
            yield Place(provider, bridge, origin)


@contextlib.contextmanager
def bridged(folder: Path, origin: str, servers: Any, auth: Any) -> Iterator[RunningBridge]:
    """Run a bridge with a configuration file; stop it at the end."""
    mark = uuid.uuid4().hex
    command, *args = parts.demo()
    server = {"command": command, "args": args, "env": {MARKER_VARIABLE: mark}}
    port = origin.rpartition(":")[2]
    file = folder / "bridge.json"
    file.write_text(
        json.dumps(
            {
                "mcpServers": {name: {**server, "base_uri": f"/{name}"} for name in servers},
                "bridge": {
                    "listen": [f"tcp:{port}:interface=127.0.0.1"],
                    "public_url": origin,
                    "auth": auth,
                },
            }
        )
    )
    with serving(folder, "--config", str(file), urls=len(servers), marker=mark) as bridge:
        yield bridge
        bridge.stop()
        assert "Traceback" not in bridge.output, bridge.output
        assert NAMED_TOKEN not in bridge.output


@pytest.fixture(scope="module")
def running(tmp_path_factory: Any) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("clients")) as one:
        yield one


@pytest.mark.parametrize(("client", "way"), WAYS)
def test_a_client_gets_a_token_by_itself(client: str, way: str, running: Place) -> None:
    """From the challenge to the metadata, a registration, a code with PKCE, and a token."""
    seen = running.run(client, way, browser=BROWSER)
    assert seen["error"] is None
    assert seen["results"] == ["hello"]
    assert seen["visits"] == 1
