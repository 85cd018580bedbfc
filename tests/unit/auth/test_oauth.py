"""Access tokens at a server: who is let in, at once or when the issuer was asked."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from zope.interface.verify import verifyObject

from mcpbridge.auth.access_token import MAX_TOKEN_BYTES
from mcpbridge.auth.identity import Identity, name_of
from mcpbridge.auth.issuer import ACTIVE_SECONDS, KEYS_REFETCH_SECONDS, Issuer
from mcpbridge.auth.oauth import VERIFIED_SECONDS, OAuthAuthenticator, make_issuer
from mcpbridge.config.auth import Introspection, OAuth
from mcpbridge.config.tuning import SECRET_FILE_BYTES, TOKEN_LEEWAY_SECONDS
from mcpbridge.errors import AuthenticationUnavailable, InvalidToken, SettingError
from mcpbridge.interfaces import IAuthenticator, IIdentity
from tests.tokens import (
    AUDIENCE,
    INTROSPECTION,
    ISSUER,
    JWKS,
    METADATA,
    NOW,
    FakeFetcher,
    away,
    base64url,
    bearer,
    claims,
    jwk,
    key,
    published,
    request,
    signed,
)


class Server:
    """A server whose issuer is a fake; its clock says the time."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.fetcher = FakeFetcher(published())
        self.settings = OAuth(issuer=ISSUER, **settings)
        self.issuer = Issuer(self.settings, self.clock, self.fetcher, "s3cret")
        self.authenticator = self.at(AUDIENCE)

    def at(self, *audience: str) -> OAuthAuthenticator:
        return OAuthAuthenticator(self.settings, audience, self.issuer, self.clock.seconds)

    def refused(self, token: str) -> str:
        """Return why a token is refused."""
        with pytest.raises(InvalidToken) as caught:
            self.admit(token)
        assert token not in str(caught.value)
        return str(caught.value)

    def admit(self, token: str) -> Identity:
        """Return the identity of a token for which nobody must be waited for."""
        return now(self.authenticator.authenticate(bearer(token)))


def now(found: Any) -> Identity:
    """Return a result that is there; raises the error if it is one."""
    if isinstance(found, Deferred):
        results: list[Any] = []
        found.addBoth(results.append)
        [found] = results
        if not isinstance(found, Identity):
            found.raiseException()
    assert isinstance(found, Identity)
    return found


def test_it_is_an_authenticator() -> None:
    server = Server()
    assert verifyObject(IAuthenticator, server.authenticator)
    identity = server.admit(signed())
    assert verifyObject(IIdentity, identity)
    assert name_of(identity) == f"{ISSUER}#alice"
    assert identity.scopes == {"files:read", "files:write"}
    assert (identity.expires_at, identity.recheck_at) == (NOW + 600, NOW + VERIFIED_SECONDS)
    assert dict(identity.claims) == claims()


def test_a_known_key_needs_no_deferred() -> None:
    server = Server()
    first = server.authenticator.authenticate(bearer(signed()))
    assert isinstance(first, Deferred)
    assert now(first) == server.authenticator.authenticate(bearer(signed()))


@pytest.mark.parametrize(
    "headers", [(), ("Basic YTpi",), ("DPoP abc",), ("Bearer",), ("Bearer a b",)]
)
def test_other_credentials_are_for_others(headers: tuple[str, ...]) -> None:
    server = Server()
    assert server.authenticator.authenticate(request(*headers)) is None
    assert server.fetcher.requests == []


def with_header(token: str, **header: Any) -> str:
    """Return a token with another header, and the signature of the first."""
    return ".".join((signed(header=header).split(".")[0], *token.split(".")[1:]))


def hmac_with_public_key(kid: str = "one") -> str:
    """The classic confusion: the public key as the secret of an HMAC."""
    pem = key("RS256", kid).as_pem(private=False)
    text = f"{base64url(json.dumps({'alg': 'HS256', 'kid': kid}).encode())}." + base64url(
        json.dumps(claims()).encode()
    )
    return f"{text}.{base64url(hmac.new(pem, text.encode(), hashlib.sha256).digest())}"


def own_key() -> str:
    """A token that brings its own key along."""
    return signed(header={"jwk": jwk(kid="evil"), "jku": "https://evil.example"}, by="evil")


#: Tokens that look good and are not, by what is wrong with them.
FORGED: dict[str, Callable[[], str]] = {
    "no signature": lambda: signed().rpartition(".")[0] + ".",
    "a signature of nothing": lambda: signed(b"{}").rpartition(".")[0] + "." + base64url(b""),
    "a signature of zeros": lambda: signed().rpartition(".")[0] + "." + "A" * 86,
    "a signature of r = s = n": lambda: signed().rpartition(".")[0] + "." + "_" * 85 + "w",
    "a short signature": lambda: signed()[:-4],
    "a long signature": lambda: signed() + "AAAA",
    "another token's signature": lambda: (
        signed().rpartition(".")[0] + "." + signed(claims(jti="2")).rpartition(".")[2]
    ),
    "another subject": lambda: ".".join(
        (signed().split(".")[0], signed(claims(sub="root")).split(".")[1], signed().split(".")[2])
    ),
    "another header": lambda: with_header(signed(), typ="JWT"),
    "another key of this id": lambda: signed(by="evil"),
    "another key without an id": lambda: signed(kid=None, by="evil"),
    "its own key": own_key,
    "an unknown key": lambda: signed(kid="evil"),
    "the id of a key with a path": lambda: signed(kid="../../one", by="one"),
    "the id of a key with NUL": lambda: signed(kid="one\0", by="one"),
    "the id of a key for SQL": lambda: signed(kid="' OR 1=1 --", by="one"),
    "the id of a key that is empty": lambda: signed(kid="", by="one"),
    "the id of a key that is huge": lambda: signed(kid="k" * 5000, by="one"),
    "an algorithm of another key": lambda: signed(algorithm="RS256"),
    "an algorithm that is not allowed": lambda: signed(algorithm="ES384"),
    "an HMAC of a public key": hmac_with_public_key,
    "alg none": lambda: ".".join((base64url(b'{"alg":"none"}'), signed().split(".")[1], "")),
    "an encrypted token": lambda: "eyJhbGciOiJkaXIifQ..AA.AA.AA",
    "an opaque token": lambda: "opaque",
    "two tokens": lambda: f"{signed()}.{signed()}",
    "a token in a token": lambda: signed(signed().encode()),
    "a token with padding": lambda: signed() + "==",
    "a long token": lambda: signed(claims(x="x" * MAX_TOKEN_BYTES)),
    "100 kB": lambda: "a" * 100_000,
    "another audience": lambda: signed(claims(aud="https://mcp.example.org/other/mcp")),
    "another issuer": lambda: signed(claims(iss="https://evil.example.org")),
    "an expired token": lambda: signed(claims(exp=int(NOW) - 60)),
    "a token of tomorrow": lambda: signed(claims(nbf=int(NOW) + 86400)),
    "a token that never expires": lambda: signed(claims(exp=None)),
    "exp in a string": lambda: signed(claims(exp=str(int(NOW) + 60))),
    "exp NaN": lambda: signed(b'{"exp":NaN}'),
    "exp 1e400": lambda: signed(b'{"exp":1e400}'),
    "a bound token": lambda: signed(claims(cnf={"jkt": "x"})),
    "an ID token": lambda: signed(claims(at_hash="x")),
    "a logout token": lambda: signed(header={"typ": "logout+jwt"}),
    "a critical extension": lambda: signed(header={"crit": ["x"], "x": 1}),
    "an unencoded payload": lambda: signed(header={"b64": False, "crit": ["b64"]}),
}


@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED.keys())
def test_forged_tokens_are_refused(make: Callable[[], str]) -> None:
    server = Server()
    try:
        found = server.authenticator.authenticate(bearer(make()))
    except InvalidToken:
        found = None
    if found is not None:
        # Its key is looked for once more.
        server.clock.advance(KEYS_REFETCH_SECONDS)
        with pytest.raises(InvalidToken):
            now(found)
    assert server.admit(signed()).subject == "alice"
    assert server.fetcher.count(JWKS) <= 2


def test_what_cannot_be_good_asks_nobody() -> None:
    server = Server()
    changed: dict[str, Any]
    for changed in ({"iss": "x"}, {"aud": "x"}, {"exp": 1}, {"sub": ""}, {"cnf": {}}):
        server.refused(signed(claims(**changed)))
    assert server.fetcher.requests == []


def test_the_audience_of_the_settings_comes_first() -> None:
    server = Server(audience=("api://files", "other"))
    assert server.admit(signed(claims(aud="api://files"))).subject == "alice"
    assert "another server" in server.refused(signed())


def test_each_server_has_its_own_audience() -> None:
    server = Server()
    other = server.at("https://mcp.example.org/other/mcp")
    server.admit(signed())
    with pytest.raises(InvalidToken):
        other.authenticate(bearer(signed()))
    both = signed(claims(aud=["https://mcp.example.org/other/mcp", AUDIENCE]))
    assert now(other.authenticate(bearer(both))) == server.admit(both)


def test_scopes_of_another_claim() -> None:
    server = Server(scope_claim="permissions")
    assert server.admit(signed(claims(permissions=["a", "b"]))).scopes == {"a", "b"}
    assert server.admit(signed()).scopes == frozenset()


def test_a_token_expires_with_leeway() -> None:
    server = Server()
    token = signed(claims(exp=int(NOW)))
    server.clock.advance(TOKEN_LEEWAY_SECONDS - 1)
    assert server.admit(token).expires_at == NOW
    server.clock.advance(1)
    assert "expired" in server.refused(token)


def test_a_token_may_expire_while_its_key_is_waited_for() -> None:
    server = Server()
    server.admit(signed())
    server.fetcher.answers[JWKS] = {"keys": [jwk(kid="two")]}
    found = server.authenticator.authenticate(
        bearer(signed(claims(exp=NOW - TOKEN_LEEWAY_SECONDS + 1), kid="two"))
    )
    server.clock.advance(KEYS_REFETCH_SECONDS)
    with pytest.raises(InvalidToken, match="expired"):
        now(found)


def test_keys_are_rotated_without_a_refusal() -> None:
    """The issuer publishes a key before it signs with it, at any time between fetches."""
    server = Server()
    waiting: list[tuple[float, Any]] = []
    keys = ["0"]
    server.fetcher.answers[JWKS] = {"keys": [jwk(kid="0")]}
    for second in range(3600):
        if second % 97 == 96:
            keys = [*keys[-2:], str(second)]
            server.fetcher.answers[JWKS] = {"keys": [jwk(kid=kid) for kid in keys]}
        token = signed(claims(exp=NOW + 4000), kid=keys[-1] if second % 2 else keys[-2:][0])
        found = server.authenticator.authenticate(bearer(token))
        if isinstance(found, Deferred):
            waiting.append((second, found))
        else:
            assert found is not None
        server.clock.advance(1)
    server.clock.advance(KEYS_REFETCH_SECONDS)
    assert len(waiting) > 10
    for _, each in waiting:
        assert now(each).subject == "alice"
    assert server.fetcher.count(JWKS) <= 3600 / KEYS_REFETCH_SECONDS + 1


def test_an_issuer_that_is_away_is_no_wrong_token() -> None:
    server = Server()
    server.fetcher.answers[METADATA] = away()
    with pytest.raises(AuthenticationUnavailable) as caught:
        server.admit(signed())
    assert caught.value.status == 503
    assert caught.value.retry_after
    assert "expired" in server.refused(signed(claims(exp=1)))


# Opaque tokens.

ASKED = Introspection(client_id="bridge", client_secret_file="x")


def introspecting(**changed: Any) -> Server:
    server = Server(introspection=ASKED)
    server.fetcher.answers[INTROSPECTION] = {
        "active": True,
        "token_type": "Bearer",
        **claims(**changed),
    }
    return server


def test_an_opaque_token_is_introspected() -> None:
    server = introspecting()
    identity = server.admit("opaque")
    assert (identity.issuer, identity.subject) == (ISSUER, "alice")
    assert identity.scopes == {"files:read", "files:write"}
    assert (identity.expires_at, identity.recheck_at) == (NOW + 600, NOW + ACTIVE_SECONDS)
    assert server.authenticator.authenticate(bearer("opaque")) == identity
    assert server.fetcher.count(INTROSPECTION) == 1
    assert server.admit(signed()).subject == "alice"
    assert server.fetcher.count(INTROSPECTION) == 1


def test_an_answer_is_never_used_after_the_token_has_expired() -> None:
    server = introspecting(exp=int(NOW) + 5)
    assert server.admit("opaque").recheck_at == NOW + 5
    server.clock.advance(5)
    assert "expired" in server.refused("opaque")


def test_an_answer_is_for_each_server() -> None:
    server = introspecting()
    server.admit("opaque")
    with pytest.raises(InvalidToken, match="another server"):
        server.at("https://mcp.example.org/other/mcp").authenticate(bearer("opaque"))


@pytest.mark.parametrize(
    "changed",
    [
        {"active": False},
        {"aud": None},
        {"aud": "x"},
        {"iss": "x"},
        {"token_type": "DPoP"},
        {"cnf": {"jkt": "x"}},
        {"sub": None, "client_id": None},
        {"exp": int(NOW)},
        {"nbf": int(NOW) + 60},
    ],
)
def test_what_is_not_for_this_server_is_refused(changed: dict[str, Any]) -> None:
    server = introspecting(**changed)
    server.refused("opaque")


def test_without_introspection_opaque_tokens_are_refused() -> None:
    server = Server()
    assert "no JWT" in server.refused("opaque")
    assert server.fetcher.requests == []


# The settings.


def test_an_issuer_is_made_with_the_files_of_its_settings(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    asked = Introspection(client_id="bridge", client_secret_file=str(secret))
    issuer = make_issuer(OAuth(issuer=ISSUER, introspection=asked), MemoryReactorClock())
    assert issuer.settings.issuer == ISSUER
    assert issuer._secret == "s3cret"
    issuer.stop()


@pytest.mark.parametrize(
    "content", [None, b"", b" \n", b"\xff", b"s3cret" + b" " * SECRET_FILE_BYTES]
)
def test_a_wrong_secret_file_is_reported(tmp_path: Path, content: bytes | None) -> None:
    secret = tmp_path / "s3cret"
    if content is not None:
        secret.write_bytes(content)
    asked = Introspection(client_id="bridge", client_secret_file=str(secret))
    with pytest.raises(SettingError) as caught:
        make_issuer(OAuth(issuer=ISSUER, introspection=asked), MemoryReactorClock(), "auth.oauth")
    assert caught.value.name == "auth.oauth.introspection.client_secret_file"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
)
def test_wrong_authorities_are_reported(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError) as caught:
        make_issuer(OAuth(issuer=ISSUER, ca_file=str(path)), MemoryReactorClock())
    assert caught.value.name == "auth.oauth.ca_file"


@pytest.mark.parametrize("module", ["joserfc", "twisted.internet.ssl"])
def test_the_extra_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingError, match=r"pip install 'mcpbridge\[auth\]'"):
        make_issuer(OAuth(issuer=ISSUER), MemoryReactorClock())
