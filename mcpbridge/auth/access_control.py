"""
Access control: the one place that asks who has sent a request, whichever way it came in,
and whether its caller may do what it asks for.

Knows authenticators and scopes; must not know how a request is read or answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from math import inf
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mcpbridge.auth.access import Access
from mcpbridge.auth.bearer import UNKNOWN, check_credentials
from mcpbridge.auth.grounds import Grounds
from mcpbridge.auth.identity import is_subject
from mcpbridge.auth.request import AuthenticationRequest, Hides
from mcpbridge.auth.resource_metadata import ProtectedResource
from mcpbridge.auth.scopes import ScopeRules, for_challenge
from mcpbridge.auth.session_environment import SessionEnvironment
from mcpbridge.config.auth import Auth
from mcpbridge.config.tuning import AUTHENTICATION_SECONDS, TOKEN_LEEWAY_SECONDS
from mcpbridge.errors import (
    AuthenticationUnavailable,
    InsufficientScope,
    InvalidToken,
    Unauthorized,
    without_frames,
)
from mcpbridge.mcp.operations import Operation

#: How many callers of a server are remembered with what was found out about them.
KNOWN_CALLERS = 4096
#: The same where each has variables for its processes, which are secrets of up to 256 KiB,
#: and how long these are remembered.
KNOWN_ENVIRONMENTS = 256
SECRETS_SECONDS = 60.0

#: How long a stream or a session goes on without a new request after its caller would have
#: to be asked about again: its token may have been revoked.
UNCHECKED_SECONDS = 3600.0

#: Characters of an `error_description` (RFC 6750, section 3).
_DESCRIPTION = frozenset(map(chr, range(0x20, 0x7F))) - {'"', "\\"}


class AccessControl:
    """
    Admits the requests of one server.

    `authenticators` are asked in turn until one knows the caller.  What is found out
    depends on the fields in `decisive` and on the connection's certificate alone, and is
    remembered for a request with the same ones; not so if `decisive` is None, as with an
    authenticator of the operator's own.

    `hides` tells which headers are taken for absent.  `environment` makes
    the variables of a caller's own processes.  Without `identifies` everybody is admitted,
    and those variables are all that tells callers apart.  `grounds` are what admits them,
    for a comparison with other settings.
    """

    def __init__(
        self,
        server: str,
        authenticators: Sequence[Any],
        *,
        rules: ScopeRules,
        resource: ProtectedResource | None = None,
        decisive: Sequence[str] | None = ("authorization",),
        hides: Hides | None = None,
        environment: SessionEnvironment | None = None,
        identifies: bool = True,
        grounds: Grounds | None = None,
        clock: IReactorTime,
    ) -> None:
        #: Those without settings are like no others.
        self.grounds = Grounds(Auth(), server) if grounds is None else grounds
        #: What decides in its place; see `replace`.
        self._successor: AccessControl | None = None
        self._clock = clock
        #: How often `forget` was called.
        self._generation = 0
        self.identifies = identifies
        self.hides = hides
        self._environment = environment
        self._authenticators = authenticators
        self.rules = rules
        self._resource = resource
        self._decisive = decisive
        self._known: dict[bytes, Access] = {}

    def admit(self, request: AuthenticationRequest) -> Access | Deferred[Access]:
        """
        Return as what a request is admitted, at once or later.

        Raises, or fails with, `Unauthorized` and its subclasses, `Forbidden` and
        `AuthenticationUnavailable`.
        """
        if self._successor is not None:
            return self._successor.admit(request)
        asked = request
        try:
            if self.identifies:
                check_credentials(request)
            key = self._key(request)
            known = self._recall(key)
            if known is not None:
                return self._checked(known)
            if self.hides is not None:
                request = request.without(self.hides)
            waiting = self._authenticate(request, key)
        except Unauthorized as error:
            raise self._challenged(error, request) from None
        if isinstance(waiting, Access):
            return waiting
        found = Deferred.fromCoroutine(self._wait(waiting, request, asked))
        if not found.called:
            found.addTimeout(AUTHENTICATION_SECONDS, self._clock, _timed_out)
        return found

    def recall(self, request: AuthenticationRequest) -> Access | None:
        """Return as what a request like this was admitted lately; None if none was."""
        if self._successor is not None:
            return self._successor.recall(request)
        try:
            if self.identifies:
                check_credentials(request)
            known = self._recall(self._key(request))
            return None if known is None else self._checked(known)
        except Unauthorized:
            return None

    def forget(self) -> None:
        """Ask anew about every caller: what they may do has changed."""
        self._generation += 1
        for key in list(self._known):
            self._drop(key)

    def replace(self, successor: AccessControl) -> None:
        """
        Have another one decide from now on, also about those who are being asked about,
        and about everybody who was admitted already.
        """
        self._successor = successor
        self.forget()

    def still_admits(self, access: Access) -> bool:
        """
        Tell whether a caller has been admitted by something that holds unchanged, under
        these settings or those of before.
        """
        grounds, old, identity = self.grounds, access.grounds, access.identity
        if grounds is old or not self.identifies:
            return True
        if identity is None or old is None:
            return False
        ground = grounds.of(identity)
        return (
            ground is not None
            and ground == old.of(identity)
            and self.rules.granted(grounds.scopes(identity)).issuperset(self.rules.always)
        )

    def check_operations(
        self, access: Access, operations: Sequence[Operation], path: str = "/mcp"
    ) -> None:
        """
        Raise `InsufficientScope` unless the caller has all scopes that these operations
        of one request to a path need.
        """
        needed = dict.fromkeys(
            scope for each in operations for scope in self.rules.needed(each.method, each.name)
        )
        if needed and not access.scopes.issuperset(needed):
            raise self._insufficient(needed, path)

    # One caller.

    def _key(self, request: AuthenticationRequest) -> bytes | None:
        if self._decisive is None:
            return None
        parts = [request.certificate or b"", (request.address or "").encode("latin-1", "replace")]
        for name in self._decisive:
            values = request.values(name)
            parts += [b"%d" % len(values), *(each.encode("latin-1") for each in values)]
        digest = hashlib.sha256()
        for part in parts:
            # With its length: no byte can move from one to the next.
            digest.update(b"%d:%b" % (len(part), part))
        return digest.digest()

    def _drop(self, key: bytes) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            known.fresh_until = -inf

    def _recall(self, key: bytes | None) -> Access | None:
        if key is None:
            return None
        known = self._known.get(key)
        if known is not None and known.fresh_until <= self._clock.seconds():
            self._drop(key)
            return None
        if known is not None:
            # The one that was seen last is the last to be forgotten.
            self._known[key] = self._known.pop(key)
        return known

    def _authenticate(
        self, request: AuthenticationRequest, key: bytes | None
    ) -> Access | Awaitable[Access]:
        if not self.identifies:
            return self._admitted(None, request, key)
        remaining = iter(self._authenticators)
        for authenticator in remaining:
            found = authenticator.authenticate(request)
            if isinstance(found, Deferred):
                return self._authenticate_later(request, key, found, remaining)
            if found is not None:
                return self._admitted(found, request, key)
        raise self._nobody(request)

    async def _authenticate_later(
        self, request: AuthenticationRequest, key: bytes | None, found: Any, remaining: Any
    ) -> Access:
        generation = self._generation
        identity = await found
        while identity is None:
            authenticator = next(remaining, None)
            if authenticator is None:
                raise self._nobody(request)
            identity = authenticator.authenticate(request)
            if isinstance(identity, Deferred):
                identity = await identity
        # What was asked before `forget` may be what is to be forgotten.
        return self._admitted(identity, request, key if generation == self._generation else None)

    async def _wait(
        self,
        waiting: Awaitable[Access],
        request: AuthenticationRequest,
        asked: AuthenticationRequest,
    ) -> Access:
        try:
            access = await waiting
        except Unauthorized as error:
            if self._successor is None:
                raise self._challenged(without_frames(error), request) from None
        except Exception:
            if self._successor is None:
                raise
        else:
            if self._successor is None:
                return access
        # Whoever was asked meanwhile does not decide any more.
        again = self._successor.admit(asked)
        return await again if isinstance(again, Deferred) else again

    def _nobody(self, request: AuthenticationRequest) -> Unauthorized:
        if request.values("authorization"):
            return InvalidToken(UNKNOWN)
        return Unauthorized("this server needs credentials: send `Authorization: Bearer TOKEN`")

    def _admitted(self, identity: Any, request: AuthenticationRequest, key: bytes | None) -> Access:
        if identity is not None and not (
            is_subject(identity.subject)
            and is_subject(identity.issuer)
            and "#" not in identity.issuer
        ):
            # They are written to logs, and part of a key.
            raise InvalidToken("the name of the caller has characters that no name has")
        expires_at = None if identity is None else identity.expires_at
        expires = inf if expires_at is None else expires_at
        until = expires + TOKEN_LEEWAY_SECONDS
        if not until > self._clock.seconds():
            raise InvalidToken("the credentials have expired")
        recheck = getattr(identity, "recheck_at", None)
        if recheck is not None:
            until = min(until, recheck + UNCHECKED_SECONDS)
        access = Access(
            identity,
            scopes=self.rules.granted(() if identity is None else identity.scopes),
            until=until,
            fresh_until=until if recheck is None else min(until, recheck),
        )
        access.grounds = self.grounds
        if self._environment is not None:
            # Scopes first: whether variables are missing is for those who may use the server.
            access = self._environment.admit(self._checked(access), request)
            # Nobody's secrets are kept for long after the client has left.
            access.fresh_until = min(access.fresh_until, self._clock.seconds() + SECRETS_SECONDS)
        if key is not None:
            # What is not remembered any more is not used any more either, so that `forget`
            # reaches all of it.
            self._drop(key)
            most = KNOWN_CALLERS if self._environment is None else KNOWN_ENVIRONMENTS
            while len(self._known) >= most:
                self._drop(next(iter(self._known)))
            self._known[key] = access
        return self._checked(access)

    def _checked(self, access: Access) -> Access:
        """Return the same.  Raises `InsufficientScope` without what every request needs."""
        if not access.scopes.issuperset(self.rules.always):
            raise self._insufficient(self.rules.always, None)
        return access

    # Errors.

    def _insufficient(self, needed: Any, path: str | None) -> InsufficientScope:
        names = for_challenge(needed)
        error = InsufficientScope(f"this needs the scopes: {names}", tuple(needed))
        if path is not None:
            error.challenge = self._challenge(error, path)
        return error

    def _challenged(self, error: Unauthorized, request: AuthenticationRequest) -> Unauthorized:
        error.challenge = self._challenge(error, request.uri.partition("?")[0])
        return error

    def _challenge(self, error: Unauthorized, path: str) -> bytes:
        """Return a `WWW-Authenticate` (RFC 6750, section 3; RFC 9728, section 5.1)."""
        scopes = error.scopes if isinstance(error, InsufficientScope) else self.rules.always
        url = None if self._resource is None else self._resource.metadata_url(path)
        params = {
            "error": error.error,
            "error_description": None if error.error is None else _described(str(error)),
            "resource_metadata": url,
            "scope": for_challenge(scopes) or None,
        }
        given = (f'{name}="{value}"' for name, value in params.items() if value is not None)
        return f"Bearer {', '.join(given)}".rstrip().encode("ascii", "replace")


def _timed_out(result: object, seconds: float) -> object:
    """Say why a Deferred that was cancelled after so many seconds has failed."""
    if isinstance(result, Failure) and result.check(CancelledError):
        raise AuthenticationUnavailable(f"nobody could say in {seconds:g} s who sent the request")
    return result


def _described(text: str) -> str:
    return "".join(each if each in _DESCRIPTION else "'" for each in text)
