"""
Tokens and keys of a fake authorization server, and a fake client that asks it.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from twisted.internet.defer import Deferred, fail, succeed

from mcpbridge.auth.outbound import Answer, OutboundError
from mcpbridge.auth.request import AuthenticationRequest

ISSUER = "https://login.example.org/tenant"
METADATA = "https://login.example.org/.well-known/oauth-authorization-server/tenant"
JWKS = "https://login.example.org/tenant/jwks"
INTROSPECTION = "https://login.example.org/tenant/introspect"
AUDIENCE = "https://mcp.example.org/files/mcp"
NOW = 1_800_000_000.0


def base64url(data: bytes) -> str:
    """Return base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


@cache
def key(algorithm: str, kid: str) -> Any:
    """Return the private key of this id, which is the same in each call."""
    if algorithm.startswith("ES"):
        return ECKey.generate_key({"256": "P-256", "384": "P-384", "512": "P-521"}[algorithm[2:]])
    if algorithm in ("EdDSA", "Ed25519"):
        return OKPKey.generate_key("Ed25519")
    return RSAKey.generate_key(2048)


def jwk(algorithm: str = "ES256", kid: str = "one", **members: Any) -> dict[str, Any]:
    """Return the public part of a key, as an issuer publishes it."""
    public = key(algorithm, kid).as_dict(private=False)
    return {**public, "kid": kid, "alg": algorithm, "use": "sig", **members}


def claims(**changed: Any) -> dict[str, Any]:
    """Return good claims; those that are changed to None are left out."""
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "client_id": "app",
        "iat": int(NOW) - 10,
        "exp": int(NOW) + 600,
        "scope": "files:read files:write",
        "jti": "1",
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def signed(
    payload: Mapping[str, Any] | bytes | None = None,
    *,
    algorithm: str = "ES256",
    kid: str | None = "one",
    header: Mapping[str, Any] | bytes | None = None,
    by: str | None = None,
) -> str:
    """
    Return a token, by default a good one.

    `header` adds to the header, or is all of it in bytes; `by` is the id of another key.
    """
    if not isinstance(header, bytes):
        made = {"alg": algorithm, "typ": "at+jwt", "kid": kid, **(header or {})}
        header = json.dumps({k: v for k, v in made.items() if v is not None}).encode()
    if not isinstance(payload, bytes):
        payload = json.dumps(claims() if payload is None else payload).encode()
    text = f"{base64url(header)}.{base64url(payload)}"
    model = JWSRegistry.algorithms["Ed25519" if algorithm == "EdDSA" else algorithm]
    signature = model.sign(text.encode(), key(algorithm, by or kid or "one"))
    return f"{text}.{base64url(signature)}"


def signed_rs256(text: str, kid: str) -> bytes:
    """Return a signature of RSA with PKCS #1, made without joserfc."""
    private = key("RS256", kid).private_key
    signature: bytes = private.sign(text.encode(), padding.PKCS1v15(), SHA256())
    return signature


def request(*authorization: str, server: str = "files") -> AuthenticationRequest:
    """Return a request with these `Authorization` headers."""
    fields = [(b"Authorization", each.encode("utf-8")) for each in authorization]
    return AuthenticationRequest(server, b"POST", b"/files/mcp", fields, "192.0.2.1")


def bearer(token: str) -> AuthenticationRequest:
    """Return a request with a bearer token."""
    return request(f"Bearer {token}")


class FakeFetcher:
    """
    Answers what `answers` has for a URL: JSON, an `Answer`, an `OutboundError`, or the
    result of a function of the form.  While `held`, nobody is answered until `release`.
    """

    def __init__(self, answers: Mapping[str, Any] | None = None) -> None:
        self.answers = dict(answers or {})
        self.requests: list[str] = []
        self.public_only: dict[str, bool] = {}
        self.sent: list[tuple[Mapping[str, str] | None, bytes | None]] = []
        self.held = False
        self.open: list[Callable[[], object]] = []
        self.cancelled: list[str] = []

    def fetch(
        self,
        url: str,
        *,
        public_only: bool,
        form: Mapping[str, str] | None = None,
        authorization: bytes | None = None,
    ) -> Deferred[Answer]:
        self.requests.append(url)
        self.public_only[url] = public_only
        self.sent.append((form, authorization))
        if not self.held:
            return self._answered(url, form)
        waiting: Deferred[Answer] = Deferred(lambda _: self.cancelled.append(url))
        self.open.append(lambda: self._answered(url, form).chainDeferred(waiting))
        return waiting

    def release(self) -> None:
        """Answer all who wait."""
        waiting, self.open = self.open, []
        for each in waiting:
            each()

    def _answered(self, url: str, form: Mapping[str, str] | None) -> Deferred[Answer]:
        answer = self.answers.get(url, Answer(404, b""))
        if callable(answer):
            answer = answer(form)
        if isinstance(answer, Exception):
            return fail(answer)
        if not isinstance(answer, Answer):
            answer = Answer(200, json.dumps(answer).encode())
        return succeed(answer)

    def count(self, url: str) -> int:
        """Return how often a URL was fetched."""
        return self.requests.count(url)


def away() -> OutboundError:
    """Return the failure of a request to an issuer that does not answer."""
    return OutboundError("connection refused")


def published(*keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an issuer publishes, with these keys."""
    return {
        METADATA: {
            "issuer": ISSUER,
            "jwks_uri": JWKS,
            "introspection_endpoint": INTROSPECTION,
            "scopes_supported": ["x"],
        },
        JWKS: {"keys": list(keys or [jwk()])},
    }
