"""
A bridge whose callers need tokens, and a real authorization server, each in a process of
its own.  This module imports nothing of mcpbridge.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.real import parts
from tests.real.bridge import MARKER_VARIABLE, RunningBridge, serving
from tests.real.provider import Client, Provider, Server, free_port, new_key, providing

NAMED_TOKEN = "a-named-token-of-a-test-0123456789"
READ, WRITE = "files:read", "files:write"
#: What every request needs, and a call of `add`.
SCOPES = {"*": READ, "tools/call": {"add": WRITE}}
ALICE = Client("alice", "the secret of alice")
BRIDGE = Client("bridge", "the secret of the bridge")
#: The servers of a bridge by name, and what the authorization server knows of each.
SERVERS = {"jwt": Server(f"{READ} {WRITE}"), "opaque": Server(f"{READ} {WRITE}", "opaque")}


@dataclass
class Site:
    """The URL below which a bridge serves its servers."""

    origin: str

    def url(self, server: str, way: str = "mcp") -> str:
        """Return the URL of a server for a way to speak to it: `mcp`, `sse` or `modern`."""
        return f"{self.origin}/{server}/{'sse' if way == 'sse' else 'mcp'}"

    def resources(self, servers: Mapping[str, Server]) -> dict[str, Server]:
        """Return what the authorization server knows, by URL."""
        return {
            self.url(name, way): server
            for name, server in servers.items()
            for way in ("mcp", "sse")
        }


def new_site() -> Site:
    """Return a site on a port that nobody listens on."""
    return Site(f"http://127.0.0.1:{free_port()}")


@contextlib.contextmanager
def bridged(
    folder: Path, site: Site, issuer: str, servers: Sequence[str]
) -> Iterator[RunningBridge]:
    """Run a bridge with these servers, which need tokens; stop it at the end."""
    mark = uuid.uuid4().hex
    command, *args = parts.demo()
    server = {"command": command, "args": args, "env": {MARKER_VARIABLE: mark}}
    secret = folder / "secret"
    secret.write_text(BRIDGE.secret)
    secret.chmod(0o600)
    digest = hashlib.sha256(NAMED_TOKEN.encode()).hexdigest()
    auth = {
        "tokens": {"alice": {"sha256": digest, "scopes": [READ]}},
        "oauth": {
            "issuer": issuer,
            "introspection": {"client_id": BRIDGE.id, "client_secret_file": str(secret)},
        },
        "scopes": SCOPES,
    }
    settings = {
        "mcpServers": {name: {**server, "base_uri": f"/{name}"} for name in servers},
        "bridge": {
            "listen": [f"tcp:{site.origin.rpartition(':')[2]}:interface=127.0.0.1"],
            "public_url": site.origin,
            "auth": auth,
        },
    }
    file = folder / "bridge.json"
    file.write_text(json.dumps(settings))
    with serving(folder, "--config", str(file), urls=len(servers), marker=mark) as bridge:
        yield bridge
        bridge.stop()
        assert "Traceback" not in bridge.output, bridge.output
        assert "Bearer" not in bridge.output, bridge.output
        assert NAMED_TOKEN not in bridge.output


@dataclass
class Place(Site):
    """A running bridge, and the authorization server of its servers."""

    provider: Provider
    bridge: RunningBridge

    def token(self, server: str, way: str = "mcp", scope: str = READ) -> str:
        """Return a new token of a client for itself."""
        return self.provider.token(ALICE, self.url(server, way), scope)


@contextlib.contextmanager
def authorized(folder: Path, servers: Mapping[str, Server] = SERVERS) -> Iterator[Place]:
    """Run an authorization server, and a bridge with these servers."""
    site = new_site()
    with (
        providing(site.resources(servers), [ALICE, BRIDGE], [new_key("one")]) as provider,
        bridged(folder, site, provider.issuer, list(servers)) as bridge,
    ):
        yield Place(site.origin, provider, bridge)
