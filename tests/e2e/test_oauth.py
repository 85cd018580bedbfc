"""
Access tokens of a real authorization server, admitted by an `OAuthAuthenticator` over HTTP.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThread

from mcpbridge.auth.oauth import OAuthAuthenticator, make_issuer
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.config.auth import OAuth, read_auth
from mcpbridge.errors import AuthenticationUnavailable, InvalidToken
from tests.real.provider import Client, Provider, Server, free_port, new_key, providing

pytestmark = pytest.mark.slow

FILES = "https://mcp.example.org/files/mcp"
OPAQUE = "https://mcp.example.org/opaque/mcp"
SERVERS = {
    FILES: Server("files:read files:write"),
    OPAQUE: Server("files:read", "opaque"),
}
ALICE = Client("alice", "the secret of alice, 1")
BRIDGE = Client("bridge", "the secret: of the bridge/+%")


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with providing(SERVERS, [ALICE, BRIDGE], [new_key("one")]) as running:
        yield running


class Admission:
    """The authenticators of two servers that share an issuer, in this process."""

    def __init__(self, reactor: Any, issuer: str, secret_file: Path) -> None:
        secret_file.write_text(BRIDGE.secret)
        asked = {"client_id": BRIDGE.id, "client_secret_file": str(secret_file)}
        settings = read_auth({"oauth": {"issuer": issuer, "introspection": asked}}).oauth
        assert isinstance(settings, OAuth)
        self.issuer = make_issuer(settings, reactor)
        self._servers = {url: OAuthAuthenticator(settings, (url,), self.issuer) for url in SERVERS}

    async def admit(self, token: str, url: str = FILES) -> Any:
        fields = [(b"Authorization", f"Bearer {token}".encode())]
        path = urllib.parse.urlsplit(url).path.encode()
        request = AuthenticationRequest("files", b"POST", path, fields, "127.0.0.1")
        return await maybeDeferred(self._servers[url].authenticate, request)

    async def refuse(self, token: str, url: str = FILES) -> str:
        with pytest.raises(InvalidToken) as caught:
            await self.admit(token, url)
        return str(caught.value)


@pytest.fixture
def admission(running_reactor: Any, provider: Provider, tmp_path: Path) -> Iterator[Admission]:
    one = Admission(running_reactor, provider.issuer, tmp_path / "secret")
    yield one
    one.issuer.stop()


async def token(provider: Provider, url: str, scope: str | None = None) -> str:
    got: str = await deferToThread(provider.token, ALICE, url, scope)
    return got


@pytest_twisted.ensureDeferred
async def test_a_signed_token(provider: Provider, admission: Admission) -> None:
    good = await token(provider, FILES, "files:read")
    identity = await admission.admit(good)
    assert (identity.issuer, identity.subject) == (provider.issuer, "alice")
    assert identity.scopes == {"files:read"}
    assert identity.expires_at == identity.claims["exp"]
    again = await admission.admit(good)
    # Of another moment, and otherwise the same.
    assert replace(again, recheck_at=identity.recheck_at) == identity
    assert "another server" in await admission.refuse(good, OPAQUE)
    assert "signature" in await admission.refuse(good[:-4] + "AAAA")


@pytest_twisted.ensureDeferred
async def test_an_opaque_token(provider: Provider, admission: Admission) -> None:
    good = await token(provider, OPAQUE, "files:read")
    identity = await admission.admit(good, OPAQUE)
    assert (identity.issuer, identity.subject) == (provider.issuer, "alice")
    assert identity.scopes == {"files:read"}
    assert identity.recheck_at < identity.expires_at
    assert "another server" in await admission.refuse(good)
    assert "not active" in await admission.refuse("unknown", OPAQUE)


@pytest_twisted.ensureDeferred
async def test_a_revoked_token(provider: Provider, admission: Admission) -> None:
    revoked = await token(provider, OPAQUE)
    await deferToThread(provider.revoke, ALICE, revoked)
    assert "not active" in await admission.refuse(revoked, OPAQUE)


@pytest_twisted.ensureDeferred
async def test_rotated_keys_and_an_issuer_that_is_away(
    running_reactor: Any, tmp_path: Path
) -> None:
    port, old, new = free_port(), new_key("old"), new_key("new")
    with providing(SERVERS, [ALICE, BRIDGE], [old, new], port) as provider:
        issuer = provider.issuer
        admission = Admission(running_reactor, issuer, tmp_path / "secret")
        first = await token(provider, FILES)
        opaque = await token(provider, OPAQUE)
        await admission.admit(first)
    # Known keys go on; what needs the issuer is unavailable, and not wrong.
    assert (await admission.admit(first)).subject == "alice"
    with pytest.raises(AuthenticationUnavailable):
        await admission.admit(opaque, OPAQUE)
    with providing(SERVERS, [ALICE, BRIDGE], [new, old], port) as provider:
        assert provider.issuer == issuer
        second = await token(provider, FILES)
        assert (await admission.admit(second)).subject == "alice"
        assert (await admission.admit(first)).subject == "alice"
    admission.issuer.stop()
