"""Credentials, and what authorization servers answer."""

from __future__ import annotations

import json
import os
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.auth.access_token import TokenRules, is_signed, read_signed
from mcpbridge.auth.bearer import MAX_CREDENTIALS, bearer_token, check_credentials
from mcpbridge.auth.client_certificates import ClientCertificateAuthenticator
from mcpbridge.auth.identity import Identity, is_subject
from mcpbridge.auth.issuer import Introspected, Issuer
from mcpbridge.auth.keys import read_keys
from mcpbridge.auth.outbound import Answer
from mcpbridge.auth.proxy_identity import ProxyIdentityAuthenticator
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.auth.session_environment import SessionEnvironment
from mcpbridge.config.auth import ClientCertificates, Introspection, OAuth, ProxyIdentity
from mcpbridge.config.env_from import read_rules
from mcpbridge.config.tuning import TOKEN_LEEWAY_SECONDS
from mcpbridge.errors import (
    Forbidden,
    InvalidToken,
    MalformedCredentials,
    MissingCredentials,
    UnusableCredentials,
)
from tests.fuzz.targets import fields_of, target
from tests.fuzz.targets.messages import loads

_ISSUER = "https://login.example.org"
_AUDIENCE = "https://mcp.example.org/mcp"
_NOW = 1_800_000_000.0
_ALGORITHMS = ("RS256", "ES256", "PS256", "EdDSA")


def _request(*fields: tuple[bytes, bytes], uri: bytes = b"/mcp") -> AuthenticationRequest:
    return AuthenticationRequest("s", b"POST", uri, fields, "10.0.0.1")


@target
def bearer(data: bytes) -> None:
    """A request that passes has at most one token, and none in its query."""
    query, *values = data.split(b"\n")
    request = _request(*((b"Authorization", each) for each in values), uri=b"/mcp?" + query)
    token = bearer_token(request)
    try:
        check_credentials(request)
    except MalformedCredentials:
        return
    for separator in "&;":
        names = parse_qsl(query.decode("latin-1"), keep_blank_values=True, separator=separator)
        assert all(name.lower() != "access_token" for name, _ in names)
    assert len(values) <= 1
    text = values[0].decode("latin-1").strip(" \t") if values else ""
    assert len(text) <= MAX_CREDENTIALS
    scheme, _, rest = text.partition(" ")
    if scheme.lower() == "bearer":
        assert token == rest.strip(" ")
        assert re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token)
    else:
        assert token is None


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


_RULES = TokenRules(_ISSUER, (_AUDIENCE,), "scope")


def _check_identity(identity: Identity, claims: Mapping[str, Any]) -> None:
    """Check an identity against the claims that it was made of."""
    assert identity.issuer == _ISSUER
    assert 0 < len(identity.subject) <= 255
    assert identity.subject in (claims.get("sub"), claims.get("client_id"))
    audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    assert any(each.lower().rstrip("/") == _AUDIENCE for each in audiences)
    granted = claims.get("scope") or ()
    assert identity.scopes <= set(granted.split(" ") if isinstance(granted, str) else granted)
    assert claims.get("nbf", 0) <= _NOW + TOKEN_LEEWAY_SECONDS
    assert claims.get("exp", _NOW) >= _NOW - TOKEN_LEEWAY_SECONDS
    assert "cnf" not in claims


@target
def access_tokens(data: bytes) -> None:
    """A token that is accepted has one spelling, and says all that it must say."""
    header, payload, signature = fields_of(data, 3)
    made = f"{_encoded(header)}.{_encoded(payload)}.{_encoded(signature)}"
    for token in (data.decode("latin-1"), made):
        try:
            if not is_signed(token):
                continue
            found = read_signed(token, _ALGORITHMS)
        except InvalidToken:
            continue
        assert found.algorithm in _ALGORITHMS
        assert f"{found.signed.decode()}.{_encoded(found.signature)}" == token
        if token is not made:
            continue
        head, claims = json.loads(header.decode()), json.loads(payload.decode())
        assert head["alg"] == found.algorithm
        assert found.claims == claims
        assert not {"crit", "b64", "enc"} & set(head)
        try:
            _RULES.check(found.claims, _NOW)
        except InvalidToken:
            continue
        assert claims["iss"] == _ISSUER
        assert claims["exp"] >= _NOW - TOKEN_LEEWAY_SECONDS
        _check_identity(_RULES.identity(found.claims), claims)


class _Fetcher:
    """Answers everything with the same bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def fetch(self, url: str, **_: Any) -> Deferred[Answer]:
        answer: Deferred[Answer] = Deferred()
        answer.callback(Answer(200, self.content))
        return answer


@target
def introspection(data: bytes) -> None:
    """An answer is that of an active token only if it says so, and is for this server."""
    clock = Clock()
    clock.advance(_NOW)
    asked = Introspection(
        client_id="app", client_secret_file="x", endpoint="https://login.example.org/introspect"
    )
    issuer = Issuer(OAuth(issuer=_ISSUER, introspection=asked), clock, _Fetcher(data), "secret")
    found: list[Any] = []
    answer = issuer.introspect("token")
    if isinstance(answer, Deferred):
        answer.addBoth(found.append)
    else:
        found.append(answer)
    issuer.stop()
    assert not clock.getDelayedCalls()
    (result,) = found
    if not isinstance(result, Introspected) or result.claims is None:
        return
    claims = json.loads(data.decode("utf-8"))
    assert claims["active"] is True
    try:
        _RULES.check_introspected(result.claims, _NOW)
    except InvalidToken:
        return
    identity = _RULES.introspected_identity(result.claims, _NOW + 1)
    _check_identity(identity, claims)
    assert identity.recheck_at is not None
    assert identity.recheck_at <= _NOW + 1


@target
def keys(data: bytes) -> None:
    """No key of a set verifies anything but signatures of its own algorithms."""
    try:
        found = read_keys(data, _ALGORITHMS)
    except ValueError:
        return
    document = json.loads(data.decode("utf-8"))
    assert len(found) + found.skipped == len(document["keys"])
    kids = [each.get("kid") for each in document["keys"] if isinstance(each, dict)]
    for algorithm in _ALGORITHMS:
        for kid in (None, *kids):
            if isinstance(kid, str | None):
                for key in found.fitting(kid, algorithm):
                    assert key.kid == kid or kid is None
                    assert key.algorithms <= set(_ALGORITHMS)
                    assert not key.verifies(algorithm, b"signed", data[:256])
                    assert not key.verifies("none", b"signed", b"")
                    assert not key.verifies("HS256", b"signed", data[:32])
    assert not found.fitting(None, "none")
    assert not found.fitting(None, "HS256")


_PARTS = ("common_name", "email", "dns", "uri", "fingerprint")


@target
def certificates(data: bytes) -> None:
    """A certificate names a subject that may be shown, or nobody."""
    request = AuthenticationRequest("s", b"POST", b"/mcp", [], "192.0.2.1", data)
    for part in _PARTS:
        authenticator = ClientCertificateAuthenticator(
            ClientCertificates(subject=part), now=lambda: 0.0
        )
        try:
            found = authenticator.authenticate(request)
        except (InvalidToken, Forbidden) as error:
            error.body()
            continue
        assert found is not None
        assert is_subject(found.subject)
        assert found.subject.isprintable()
        if part in ("email", "dns", "uri"):
            assert found.subject.encode("ascii") in data.lower() + data


_PROXY = ProxyIdentityAuthenticator(
    ProxyIdentity(header="X-User", addresses=("10.0.0.0/8",), scopes_header="X-Scopes")
)


@target
def proxy_identity(data: bytes) -> None:
    """Only a proxy names a caller, by text that may be shown."""
    user, scopes = fields_of(data, 2)
    fields = [(b"X-User", user), (b"X-Scopes", scopes), (b"X_User", data)]
    other = AuthenticationRequest("s", b"POST", b"/mcp", fields, "192.0.2.1")
    assert _PROXY.authenticate(other) is None
    assert _PROXY.hides(b"X-User", "192.0.2.1")
    assert _PROXY.hides(b"x_uSer", "10.0.0.1")
    try:
        found = _PROXY.authenticate(_request(*fields))
    except MalformedCredentials as error:
        error.body()
        return
    assert found is not None
    assert found.subject == user.decode("utf-8").strip(" \t") == found.subject.strip()
    assert found.subject.isprintable()
    for scope in found.scopes:
        assert re.fullmatch(r"[!#-\[\]-~]+", scope)
        assert scope.encode() in scopes


_ENVIRONMENT = SessionEnvironment(
    read_rules({"TOKEN": {"header": "X-Token"}, "WHO": {"claim": "who", "required": True}})
)


def _variables(header: bytes, claim: object) -> Mapping[str, str] | None:
    identity = Identity(issuer=_ISSUER, subject="alice", claims={"who": claim})
    try:
        return _ENVIRONMENT.of(_request((b"X-Token", header)), identity)
    except (UnusableCredentials, MissingCredentials) as error:
        error.body()
        assert len(header) < 8 or header.decode("latin-1") not in str(error)
        return None


@target
def session_environment(data: bytes) -> None:
    """A variable can be given to a process, is what the caller sent, and is never shown."""
    header, claim = fields_of(data, 2)
    try:
        value = loads(claim)
    except ValueError:
        value = claim.decode("latin-1")
    found = _variables(header, value)
    if found is None:
        return
    assert os.fsencode(found.get("TOKEN", "")) == header
    for each in found.values():
        assert all(" " <= letter != "\x7f" for letter in each)
        assert len(each) < 3 or f"={each}" not in repr(found)
    assert repr(found) in ("<SessionVariables WHO>", "<SessionVariables TOKEN, WHO>")
    digest = _ENVIRONMENT.digest(found)
    assert _ENVIRONMENT.digest(dict(found)) == digest
    other = _variables(header + b"x", value)
    assert other is None or _ENVIRONMENT.digest(other) != digest
