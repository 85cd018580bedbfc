"""
What an access token says, and whether that admits its bearer here.

Knows JSON Web Tokens (RFC 7519), their profile for access tokens (RFC 9068) and the
answers of introspection (RFC 7662), which have the same claims.  Must not know keys, the
network or the clock: the time is an argument.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from mcpbridge.auth.identity import Identity
from mcpbridge.config.tuning import TOKEN_LEEWAY_SECONDS
from mcpbridge.errors import InvalidToken
from mcpbridge.jsonrpc.fragments import is_too_deep

#: A longer token is refused before anything of it is read.
MAX_TOKEN_BYTES = 16 * 1024
#: OpenID Connect Core, section 2.
MAX_SUBJECT_CHARS = 255
#: Times after the end of the year 9999 are nonsense, and could overflow.
MAX_EPOCH_SECONDS = 253402300799

#: Tokens with dots are JWTs (RFC 7515, section 7.1), or encrypted ones (RFC 7516).
_SIGNED = re.compile(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", re.ASCII)
_ENCRYPTED = re.compile(r"[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*){4}", re.ASCII)
#: RFC 6749, section 3.3.
_SCOPE = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: RFC 9068, section 4, and what most servers send.  Many send none, which says no more
#: than `JWT`: what else is a JWT of theirs is told from an access token by its audience.
_TYPES = frozenset({"at+jwt", "application/at+jwt", "jwt", "application/jwt"})
#: Claims of ID tokens and of security events, which are no access tokens.
_FOREIGN_CLAIMS = ("at_hash", "c_hash", "events")


class _Header(msgspec.Struct):
    """The header of a JWT, as far as it is read (RFC 7515, section 4.1)."""

    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    enc: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    b64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_header_decoder = msgspec.json.Decoder(_Header)
_claims_decoder = msgspec.json.Decoder(dict[str, Any])


class SignedToken(NamedTuple):
    """A JWT whose signature is still to be verified: until then nothing in it is true."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def is_signed(token: str) -> bool:
    """
    Tell whether a token has the form of a JWT; if not, it is an opaque one.

    Raises `InvalidToken` for one that is too long, and for the form of an encrypted one:
    the bridge has no key for it.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidToken(f"the token has more than {MAX_TOKEN_BYTES} bytes (MAX_TOKEN_BYTES)")
    if _ENCRYPTED.fullmatch(token):
        raise InvalidToken("the token is encrypted")
    return _SIGNED.fullmatch(token) is not None


def read_signed(token: str, algorithms: tuple[str, ...]) -> SignedToken:
    """
    Return the parts of a token for which `is_signed` is true.

    Raises `InvalidToken`, whatever is in it: it was sent by anybody.
    """
    signed, _, signature_text = token.rpartition(".")
    header_text, _, payload_text = signed.partition(".")
    try:
        # msgspec does not look whether what it skips is UTF-8 (RFC 7519, section 7.2).
        header = _header_decoder.decode(_json(header_text).decode("utf-8"))
        claims = _claims_decoder.decode(_json(payload_text))
        signature = _decoded(signature_text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidToken("the token cannot be read") from None
    if header.alg not in algorithms:
        raise InvalidToken("the algorithm of the token is not allowed")
    if header.typ is not None and header.typ.lower() not in _TYPES:
        raise InvalidToken("the token is of another type than an access token")
    if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
        raise InvalidToken("the token needs an extension that is not supported")
    if header.enc is not msgspec.UNSET:
        raise InvalidToken("the token is encrypted")
    return SignedToken(header.alg, header.kid, claims, signed.encode("ascii"), signature)


def _json(text: str) -> bytes:
    """Return a decoded part that is JSON.  Raises `ValueError`, also if it is nested too deeply."""
    data = _decoded(text)
    if is_too_deep(data):
        raise ValueError("nested too deeply")
    return data


def _decoded(text: str) -> bytes:
    """Return the bytes of base64url without padding.  Raises `ValueError` for what is none."""
    # What is left over in the last character must be 0, or one token had many spellings.
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(text) % 4 and _LEFT_OVER[len(text) % 4] & _VALUES[text[-1]]:
        raise ValueError("not canonical")
    return data


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_VALUES = {each: value for value, each in enumerate(_ALPHABET)}
#: By the number of characters of the last group: the bits that belong to no byte.
_LEFT_OVER = (0, 0x3F, 0x0F, 0x03)


class TokenRules:
    """What the claims of a token must say for one server."""

    def __init__(self, issuer: str, audience: Sequence[str], scope_claim: str) -> None:
        self._issuer = issuer
        self._audience = frozenset(map(_canonical, audience))
        self._scope_claim = scope_claim

    def check(self, claims: Mapping[str, Any], now: float) -> None:
        """Raise `InvalidToken` unless a JWT with these claims admits its bearer now."""
        if claims.get("iss") != self._issuer:
            raise InvalidToken("the token is of another issuer")
        self._check_audience(claims)
        if _time(claims, "exp") is None:
            raise InvalidToken("the token never expires")
        self._check_times(claims, now)
        _check_kind(claims)
        _subject(claims.get("sub"))
        self._scopes(claims)

    def check_introspected(self, claims: Mapping[str, Any], now: float) -> None:
        """
        Raise `InvalidToken` unless the issuer's answer about a token admits its bearer now.

        The issuer has been asked, so it need not name itself, nor a time of expiry; but
        it must say whom the token is for.  At the time of expiry its answer is void.
        """
        if "iss" in claims and claims["iss"] != self._issuer:
            raise InvalidToken("the token is of another issuer")
        kind = claims.get("token_type", "bearer")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise InvalidToken("the token is no bearer token")
        self._check_audience(claims)
        self._check_times(claims, now)
        expires = _time(claims, "exp")
        if expires is not None and now >= expires:
            raise InvalidToken("the token has expired")
        _check_kind(claims)
        _subject(_introspected_subject(claims))
        self._scopes(claims)

    def identity(self, claims: Mapping[str, Any], until: float | None = None) -> Identity:
        """
        Return the identity of claims that `check` has passed, and whose source is proven.

        That has to be proven again `until` then; None for never.
        """
        return Identity(
            issuer=self._issuer,
            subject=_subject(claims.get("sub")),
            scopes=self._scopes(claims),
            claims=MappingProxyType(dict(claims)),
            expires_at=_time(claims, "exp"),
            recheck_at=until,
        )

    def introspected_identity(self, claims: Mapping[str, Any], until: float) -> Identity:
        """
        Return the identity of an answer that `check_introspected` has passed.

        The issuer has to be asked again `until` then: it may have revoked the token.
        """
        expires = _time(claims, "exp")
        return Identity(
            issuer=self._issuer,
            subject=_subject(_introspected_subject(claims)),
            scopes=self._scopes(claims),
            claims=MappingProxyType(dict(claims)),
            expires_at=expires,
            recheck_at=until if expires is None else min(until, expires),
        )

    def _check_audience(self, claims: Mapping[str, Any]) -> None:
        named = claims.get("aud")
        audiences = named if isinstance(named, list) else [named]
        if not all(isinstance(each, str) for each in audiences):
            raise InvalidToken("the token does not say whom it is for")
        if self._audience.isdisjoint(map(_canonical, audiences)):
            raise InvalidToken("the token is for another server")

    def _check_times(self, claims: Mapping[str, Any], now: float) -> None:
        expires, begins, issued = (_time(claims, name) for name in ("exp", "nbf", "iat"))
        if expires is not None and now >= expires + TOKEN_LEEWAY_SECONDS:
            raise InvalidToken("the token has expired")
        if begins is not None and now < begins - TOKEN_LEEWAY_SECONDS:
            raise InvalidToken("the token is not valid yet")
        if issued is not None and now < issued - TOKEN_LEEWAY_SECONDS:
            raise InvalidToken("the token was issued in the future")

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[str]:
        """Return the scopes of a token; what cannot be one grants nothing."""
        named = claims.get(self._scope_claim)
        if named is None:
            return frozenset()
        scopes = named.split(" ") if isinstance(named, str) else named
        if not isinstance(scopes, list) or not all(isinstance(each, str) for each in scopes):
            raise InvalidToken("the scopes of the token cannot be read")
        return frozenset(each for each in scopes if _SCOPE.fullmatch(each))


def _canonical(audience: str) -> str:
    """
    Return the canonical form of an audience, which most often is the URL of a server.

    A slash at the end makes no difference, nor does the case of its scheme and host
    (2026-07-28, basic/authorization, "Canonical Server URI").
    """
    scheme, separator, rest = audience.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return audience
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}".lower() + f"{slash}{path}".rstrip("/")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a time; raises `InvalidToken` if it is none (RFC 7519, section 2)."""
    value = claims.get(name)
    if name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidToken(f"the {name!r} of the token is no time")
    if not 0 <= value <= MAX_EPOCH_SECONDS:
        raise InvalidToken(f"the {name!r} of the token is no time")
    return float(value)


def _check_kind(claims: Mapping[str, Any]) -> None:
    if "cnf" in claims:
        # It is worth nothing without a proof of possession, which is not verified here.
        raise InvalidToken("the token is bound to a key, which is not supported")
    if any(name in claims for name in _FOREIGN_CLAIMS):
        raise InvalidToken("the token is of another type than an access token")


def _introspected_subject(claims: Mapping[str, Any]) -> object:
    """A client that acts for itself may have no other subject (RFC 9068, section 2.2)."""
    return claims["sub"] if "sub" in claims else claims.get("client_id")


def _subject(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidToken("the token names no subject")
    if len(value) > MAX_SUBJECT_CHARS or _CONTROL.search(value):
        raise InvalidToken("the subject of the token cannot be one")
    return value
