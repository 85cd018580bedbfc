"""
Access tokens of an OAuth 2.1 authorization server: JWTs, and opaque ones by introspection.

Knows the settings of `auth.oauth` and puts its parts together; must not know what a token
must say, nor how an issuer is asked.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mcpbridge.auth.access_token import (
    SignedToken,
    TokenRules,
    is_signed,
    read_signed,
)
from mcpbridge.auth.bearer import bearer_token
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.issuer import Introspected, Issuer
from mcpbridge.auth.keys import VerificationKey
from mcpbridge.auth.outbound import OutboundClient
from mcpbridge.auth.secret_file import read_secret
from mcpbridge.config.auth import OAuth
from mcpbridge.config.tuning import SECRET_FILE_BYTES
from mcpbridge.errors import Described, InvalidToken, SettingError
from mcpbridge.interfaces import IAuthenticator

#: How long a signature that was verified counts.  Then it is verified again, so that keys
#: are fetched, and a withdrawn one noticed, also where no new token comes.
VERIFIED_SECONDS = 300.0


@implementer(IAuthenticator)
class OAuthAuthenticator:
    """
    Accepts the issuer's access tokens for one server.

    A token must name one of `audience`, unless the settings have an audience of their own.
    `issuer` is shared by the servers with equal settings; `now` returns the time in seconds
    since the epoch.
    """

    def __init__(
        self,
        settings: OAuth,
        audience: Sequence[str],
        issuer: Issuer,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._algorithms = settings.algorithms
        self._introspects = settings.introspection is not None
        self._issuer = issuer
        self._now = now
        self._rules = TokenRules(
            settings.issuer, settings.audience or audience, settings.scope_claim
        )

    def authenticate(self, request: Any) -> Identity | Deferred[Identity] | None:
        """
        Return the identity of the bearer token, None without one.

        It comes by a Deferred if the issuer must be asked.
        """
        token = bearer_token(request)
        if token is None:
            return None
        share: str | None = getattr(request, "share", None)
        if is_signed(token):
            return self._signed(read_signed(token, self._algorithms), share)
        if not self._introspects:
            raise InvalidToken("the token is no JWT")
        answer = self._issuer.introspect(token, share)
        if isinstance(answer, Deferred):
            return answer.addCallback(self._introspected)
        return self._introspected(answer)

    def _signed(self, token: SignedToken, share: str | None) -> Identity | Deferred[Identity]:
        # What a token says against itself needs no signature.  So only one that could be
        # good makes the bridge ask for keys, and an expired one is refused while the issuer
        # is away.
        self._rules.check(token.claims, self._now())
        keys = self._issuer.keys_for(token.kid, token.algorithm, share)
        if isinstance(keys, Deferred):
            return keys.addCallback(partial(self._verified_late, token))
        return self._verified(token, keys)

    def _verified_late(self, token: SignedToken, keys: tuple[VerificationKey, ...]) -> Identity:
        """It may have expired while it waited for the keys."""
        self._rules.check(token.claims, self._now())
        return self._verified(token, keys)

    def _verified(self, token: SignedToken, keys: tuple[VerificationKey, ...]) -> Identity:
        if any(key.verifies(token.algorithm, token.signed, token.signature) for key in keys):
            return self._rules.identity(token.claims, self._now() + VERIFIED_SECONDS)
        raise InvalidToken("the signature of the token is wrong")

    def _introspected(self, answer: Introspected) -> Identity:
        if answer.claims is None:
            raise InvalidToken("the token is not active")
        now = self._now()
        self._rules.check_introspected(answer.claims, now)
        return self._rules.introspected_identity(
            answer.claims, now + self._issuer.seconds_left(answer)
        )


def make_issuer(
    settings: OAuth,
    reactor: Any,
    name: str = "auth.oauth",
    withdrawn: Callable[[], object] = lambda: None,
) -> Issuer:
    """
    Return the issuer of some settings, with the client that asks it; it calls `withdrawn`
    when it no longer publishes a key.

    Reads the files that they name.  Raises `SettingError` without the extra `auth`, and for
    a file that cannot be used; no error shows what is in one.
    """
    secret, authorities = _files(settings, name)
    try:
        import joserfc  # noqa: F401

        client = OutboundClient(reactor, authorities)
    except ImportError as error:
        expected = "the extra `auth`: pip install 'mcpbridge[auth]'"
        got = Described(f"no module {error.name!r}")
        raise SettingError(name, expected, got) from None
    except ValueError as error:
        expected = "a file with certificates in PEM"
        raise SettingError(f"{name}.ca_file", expected, Described(str(error))) from None
    return Issuer(settings, reactor, client, secret, withdrawn)


def issuer_files(settings: OAuth, name: str = "auth.oauth") -> bytes:
    """
    Return a digest of the files that the settings of an issuer name, to be compared.

    Raises `SettingError` for one that cannot be used.
    """
    secret, authorities = _files(settings, name)
    digest = hashlib.sha256(hashlib.sha256(secret.encode()).digest())
    digest.update(authorities or b"")
    return digest.digest()


def _files(settings: OAuth, name: str) -> tuple[str, bytes | None]:
    """Return the secret for introspection, and the certificates of the authorities."""
    secret, authorities = "", None
    if settings.introspection is not None:
        label = f"{name}.introspection.client_secret_file"
        secret = read_secret(settings.introspection.client_secret_file, label, spaces=True)
    if settings.ca_file is not None:
        authorities = _read(settings.ca_file, f"{name}.ca_file", "certificates in PEM")
    return secret, authorities


def _read(path: str, label: str, content: str) -> bytes:
    expected = f"a file with {content}"
    try:
        with open(path, "rb") as file:
            data = file.read(SECRET_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not the name of a file"
        raise SettingError(label, expected, Described(f"one that cannot be read: {why}")) from None
    if len(data) > SECRET_FILE_BYTES:
        got = Described(f"one of more than {SECRET_FILE_BYTES} bytes")
        raise SettingError(label, expected, got)
    return data
