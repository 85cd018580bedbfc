"""
Named tokens: secrets that the operator has given to callers, each under a name.

Knows digests of tokens; must not know the tokens, other than while it reads them from
a file.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from mcpbridge.auth.bearer import bearer_token
from mcpbridge.auth.identity import NAMED_TOKEN, Identity
from mcpbridge.auth.secret_file import read_secret
from mcpbridge.config.auth import NamedToken
from mcpbridge.errors import Described, Forbidden, SettingError
from mcpbridge.interfaces import IAuthenticator

#: What a token of `mcpbridge token` begins with, so that scanners for secrets recognize it.
PREFIX = "mcpb_"
#: The random bytes of such a token.
TOKEN_BYTES = 32
#: The least that a token in a file must have, for 128 random bits in base64.
LEAST_CHARACTERS = 22


def make_token() -> tuple[str, str]:
    """Return a new token, and its SHA-256 in hexadecimal digits."""
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    return token, _digest(token).hex()


@implementer(IAuthenticator)
class NamedTokens:
    """
    Identifies callers by named tokens, which are those of a `setting`.  Raises `SettingError`
    for a file that has none.

    A digest is compared with each one, in constant time: how long an answer takes says
    nothing about the tokens.
    """

    def __init__(self, tokens: Mapping[str, NamedToken], setting: str = "auth.tokens") -> None:
        self._callers = [
            (_digest_of(f"{setting}.{name}", each), name, each, frozenset(each.scopes))
            for name, each in tokens.items()
        ]
        names: dict[bytes, str] = {}
        for digest, name, *_ in self._callers:
            other = names.setdefault(digest, name)
            if other != name:
                got = Described(f"that of {other!r}")
                raise SettingError(f"{setting}.{name}", "a token of its own", got)

    def authenticate(self, request: Any) -> Identity | None:
        """
        Return the identity of a caller with a named token; None for any other token.
        Raises `Forbidden` if it is not for this server.
        """
        token = bearer_token(request)
        if token is None:
            return None
        digest = _digest(token)
        found = None
        for known, name, settings, scopes in self._callers:
            if hmac.compare_digest(known, digest):
                found = name, settings, scopes
        if found is None:
            return None
        name, settings, scopes = found
        if settings.servers is not None and request.server not in settings.servers:
            raise Forbidden(f"the token of {name!r} is not for this server")
        return Identity(issuer=NAMED_TOKEN, subject=name, scopes=scopes)

    def digest_of(self, name: str, server: str) -> bytes | None:
        """Return the digest of a token; None if there is none for this server."""
        for digest, each, settings, _ in self._callers:
            if each == name and (settings.servers is None or server in settings.servers):
                return digest
        return None

    def scopes_of(self, name: str) -> frozenset[str]:
        """Return the scopes of a token; none for one that does not exist."""
        found = (scopes for _, each, _, scopes in self._callers if each == name)
        return next(found, frozenset())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _digest_of(setting: str, settings: NamedToken) -> bytes:
    if settings.sha256 is not None:
        return bytes.fromhex(settings.sha256)
    return _digest(read_secret(settings.file or "", f"{setting}.file", LEAST_CHARACTERS))
