"""
Makes the access control of each server of a bridge, from the settings.

Knows all kinds of authenticators, and what servers share; must not know requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.named_tokens import NamedTokens
from mcpbridge.auth.resource_metadata import ProtectedResource
from mcpbridge.auth.scopes import ScopeRules
from mcpbridge.auth.session_environment import SessionEnvironment
from mcpbridge.config.auth import Auth
from mcpbridge.config.settings import BridgeSettings, ServerSettings

#: Loads an `IAuthenticator` by its dotted name, for a server.
LoadAuthenticator = Callable[[str, ServerSettings], Any]


class AccessControls:
    """
    The access control of the servers of one bridge.

    `authenticator` is the application's own, for all servers without settings of their own.
    """

    def __init__(
        self,
        settings: BridgeSettings,
        now: Callable[[], float],
        load: LoadAuthenticator,
        authenticator: Any = None,
    ) -> None:
        self._settings = settings
        self._now = now
        self._load = load
        self._authenticator = authenticator
        #: The metadata of all servers, by the path of what it is about.
        self.documents: dict[str, dict[str, Any]] = {}

    def of(self, server: ServerSettings) -> AccessControl | None:
        """Return the access control of a server; None if it lets everybody in."""
        auth = self._settings.auth_of(server)
        if auth is None:
            if self._authenticator is None or server.auth is False:
                return self._without_identities(server)
            auth = Auth()
        rules = ScopeRules(auth.scopes, auth.scope_hierarchy)
        issuers = [] if auth.oauth is None else [auth.oauth.issuer]
        resource = ProtectedResource(
            self._settings.public_url or "", server, issuers, rules.supported()
        )
        self.documents.update(resource.documents())
        own = self._own(auth, server)
        authenticators, decisive = self._built_in(auth, resource)
        return AccessControl(
            server.name,
            [*own, *authenticators],
            rules=rules,
            resource=resource,
            decisive=None if own else [*decisive, *secret_headers(server)],
            environment=_environment(server, authorization="authorization" in decisive),
            now=self._now,
        )

    def _without_identities(self, server: ServerSettings) -> AccessControl | None:
        """Return what admits everybody; None unless callers give variables to processes."""
        environment = _environment(server, authorization=False, authenticates=False)
        if environment is None:
            return None
        return AccessControl(
            server.name,
            [],
            rules=ScopeRules(),
            decisive=secret_headers(server),
            environment=environment,
            identifies=False,
            now=self._now,
        )

    def _own(self, auth: Auth, server: ServerSettings) -> list[Any]:
        """Return the authenticators that are not built in."""
        found = [] if self._authenticator is None else [self._authenticator]
        if auth.authenticator is not None:
            found.append(self._load(auth.authenticator, server))
        return found

    def _built_in(self, auth: Auth, resource: ProtectedResource) -> tuple[list[Any], list[str]]:
        """Return the built-in authenticators, and the fields that decide."""
        found: list[Any] = []
        decisive: list[str] = []
        if auth.tokens:
            found.append(NamedTokens(auth.tokens))
            decisive.append("authorization")
        return found, decisive


def secret_headers(server: ServerSettings) -> list[str]:
    """Return the headers that give variables to processes, in lower case."""
    return [each.header.lower() for each in server.env_from.values() if each.header is not None]


def _environment(
    server: ServerSettings, *, authorization: bool, authenticates: bool = True
) -> SessionEnvironment | None:
    """Return what makes the variables of a caller's processes; None if there are none."""
    if not server.env_from:
        return None
    return SessionEnvironment(
        server.env_from,
        server=server.name,
        authenticates=authenticates,
        authorization_authenticates=authorization,
    )
