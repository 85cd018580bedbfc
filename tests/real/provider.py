"""
A real authorization server in a process of its own: oidc-provider, from npm.

Starts it, rotates its keys, and gets tokens of it, with nothing of mcpbridge.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc.jwk import ECKey

from tests.real.parts import REAL, ROOT, built, node

#: Seconds before a wait fails; no assertion is about this time.
PATIENCE = 60


@dataclass(frozen=True)
class Server:
    """
    A server that tokens are for: its scopes, separated by spaces, and their format.

    The clock that dates its tokens is `behind` by some seconds.
    """

    scope: str = ""
    format: str = "jwt"
    ttl: int = 3600
    behind: int = 0


@dataclass(frozen=True)
class Client:
    """A client that gets tokens for itself."""

    id: str
    secret: str
    scope: str = ""


def new_key(kid: str) -> dict[str, Any]:
    """Return a private key to sign tokens with, as a JSON Web Key."""
    key = ECKey.generate_key("P-256", private=True)
    return {**key.as_dict(private=True), "kid": kid, "alg": "ES256", "use": "sig"}


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@dataclass
class Provider:
    """A running authorization server."""

    issuer: str

    def token(self, client: Client, resource: str, scope: str | None = None) -> str:
        """Return an access token of a client for a server."""
        form = {"grant_type": "client_credentials", "resource": resource}
        if scope is not None:
            form["scope"] = scope
        token: str = self.post("/token", client, form)["access_token"]
        return token

    def revoke(self, client: Client, token: str) -> None:
        """Revoke a token."""
        self.post("/token/revocation", client, {"token": token})

    def post(self, path: str, client: Client, form: Mapping[str, str]) -> Any:
        """Post a form as a client; return the answer."""
        pair = ":".join(map(urllib.parse.quote_plus, (client.id, client.secret)))
        request = urllib.request.Request(
            self.issuer + path,
            urllib.parse.urlencode(form).encode(),
            {"Authorization": "Basic " + b64encode(pair.encode()).decode()},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            content = response.read()
        return json.loads(content) if content else None


@contextlib.contextmanager
def providing(
    servers: Mapping[str, Server],
    clients: Sequence[Client],
    keys: Sequence[Mapping[str, Any]],
    port: int | None = None,
) -> Iterator[Provider]:
    """Run a provider; `keys` are those to sign with, the newest first."""
    modules = built(REAL / "auth" / "node_modules")
    settings = {
        "port": free_port() if port is None else port,
        "keys": list(keys),
        "servers": {url: vars(server) for url, server in servers.items()},
        "clients": [vars(client) for client in clients],
    }
    script = str(ROOT / "tests" / "real" / "provider.mjs")
    with subprocess.Popen(
        [node(), script, modules, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            issuer = process.stdout.readline().strip()
            assert issuer, "the provider does not start"
            yield Provider(issuer)
        finally:
            process.kill()
