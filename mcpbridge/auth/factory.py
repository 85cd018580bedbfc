"""
Makes the access control of each server of a bridge, from the settings.

Knows all kinds of authenticators, and what servers share; must not know requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

from twisted.logger import Logger

from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.bearer import NoOtherToken
from mcpbridge.auth.client_certificates import ClientCertificateAuthenticator
from mcpbridge.auth.grounds import Grounds
from mcpbridge.auth.issuer import Issuer
from mcpbridge.auth.named_tokens import NamedTokens
from mcpbridge.auth.oauth import OAuthAuthenticator, issuer_files, make_issuer
from mcpbridge.auth.proxy_identity import ProxyIdentityAuthenticator
from mcpbridge.auth.request import Hides
from mcpbridge.auth.resource_metadata import ProtectedResource
from mcpbridge.auth.scopes import EVERY_REQUEST, ScopeRules
from mcpbridge.auth.session_environment import SessionEnvironment
from mcpbridge.config.auth import Auth, OAuth
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.errors import Described, SettingError
from mcpbridge.guard import guarded
from mcpbridge.mcp.operations import CLIENT_METHODS, NAMED_BY

#: The header that has a token, in lower case.
AUTHORIZATION = "authorization"
#: Loads an `IAuthenticator` by its dotted name, for a server.
LoadAuthenticator = Callable[[str, ServerSettings], Any]


class AccessControls:
    """
    The access control of the servers of one bridge.

    `authenticator` is the application's own; it is asked before those of the settings.
    Call `stop` when no request will come any more.

    With `previous`, these take the place of others: once all servers have theirs (`of`),
    call `take_over`, or `discard` if the others are to go on.  What an issuer was asked is
    kept.
    """

    log = Logger()

    def __init__(
        self,
        settings: BridgeSettings,
        reactor: Any,
        load: LoadAuthenticator,
        authenticator: Any = None,
        previous: AccessControls | None = None,
    ) -> None:
        self._previous = previous
        self._settings = settings
        self._reactor = reactor
        #: What is asked about tokens, by its settings, and a digest of the files they name.
        self._issuers: dict[OAuth, tuple[Issuer, bytes]] = {}
        #: The access controls that remember what each issuer's keys have verified.
        self._controls_of: dict[OAuth, list[AccessControl]] = {}
        #: The same of those who decide now; one table for all that take each other's place.
        self._deciding: dict[OAuth, list[AccessControl]] = (
            self._controls_of if previous is None else previous._deciding
        )
        self._load = load
        #: The authenticators of the operator's own, with the server that each was made for.
        self._loaded: dict[tuple[str, str], tuple[ServerSettings, Any]] = {}
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
        SettingError.raise_all(scope_errors(f"mcpServers.{server.name}.auth.scopes", auth.scopes))
        rules = ScopeRules(auth.scopes, auth.scope_hierarchy)
        issuers = [] if auth.oauth is None else [auth.oauth.issuer]
        resource = ProtectedResource(
            self._settings.public_url or "", server, issuers, rules.supported()
        )
        self.documents.update(resource.documents())
        own = self._own(auth, server)
        names: list[Any] = [each for each in (self._authenticator, auth.authenticator) if each]
        tokens = NamedTokens(auth.tokens) if auth.tokens else None
        authenticators, decisive, hides = self._built_in(auth, resource, tokens)
        control = AccessControl(
            server.name,
            [*own, *authenticators],
            rules=rules,
            resource=resource,
            decisive=None if own else [*decisive, *secret_headers(server)],
            hides=hides,
            environment=_environment(server, authorization=bool(own) or AUTHORIZATION in decisive),
            grounds=Grounds(auth, server.name, tokens, names),
            clock=self._reactor,
        )
        if auth.oauth is not None:
            self._controls_of.setdefault(auth.oauth, []).append(control)
        return control

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
            clock=self._reactor,
        )

    def _own(self, auth: Auth, server: ServerSettings) -> list[Any]:
        """Return the authenticators that are not built in."""
        found = [] if self._authenticator is None else [self._authenticator]
        if auth.authenticator is not None:
            # One that was made for the same server is kept: it may have connections.
            key = auth.authenticator, server.name
            made = {} if self._previous is None else self._previous._loaded
            if key not in self._loaded:
                known = made.get(key)
                if known is None or known[0] != server:
                    known = server, self._load(auth.authenticator, server)
                self._loaded[key] = known
            found.append(self._loaded[key][1])
        return found

    def take_over(self) -> None:
        """Take the place of the previous ones, and stop what only these have used."""
        previous, self._previous = self._previous, None
        if previous is None:
            return
        self._deciding.clear()
        self._deciding.update(self._controls_of)
        self._stop(previous._issuers, self._issuers)

    def discard(self) -> None:
        """Stop what the previous ones do not use."""
        self._stop(self._issuers, {} if self._previous is None else self._previous._issuers)

    def stop(self) -> None:
        """Ask no issuer any more."""
        self._stop(self._issuers, {})

    def _stop(
        self,
        issuers: Mapping[OAuth, tuple[Issuer, bytes]],
        kept: Mapping[OAuth, tuple[Issuer, bytes]],
    ) -> None:
        """Stop issuers that are not among those that are kept."""
        kept_ones = {issuer for issuer, _ in kept.values()}
        for issuer, _ in issuers.values():
            if issuer not in kept_ones:
                guarded(self.log, "stopping to ask an issuer", issuer.stop)

    def _now(self) -> float:
        now: float = self._reactor.seconds()
        return now

    def _forget(self, settings: OAuth) -> None:
        """Verify all tokens of an issuer anew: it has withdrawn a key."""
        for control in self._deciding.get(settings, ()):
            control.forget()

    def _oauth(self, settings: OAuth, resource: ProtectedResource) -> OAuthAuthenticator:
        """Return the authenticator of one server; servers with equal settings share its issuer."""
        if settings not in self._issuers:
            self._issuers[settings] = self._issuer(settings)
        issuer, _ = self._issuers[settings]
        return OAuthAuthenticator(settings, resource.audience, issuer, self._now)

    def _issuer(self, settings: OAuth) -> tuple[Issuer, bytes]:
        """Return the issuer that is asked already, unless the files of it have changed."""
        files = issuer_files(settings)
        known = None if self._previous is None else self._previous._issuers.get(settings)
        if known is not None and known[1] == files:
            return known
        withdrawn = partial(self._forget, settings)
        return make_issuer(settings, self._reactor, withdrawn=withdrawn), files

    def _built_in(
        self, auth: Auth, resource: ProtectedResource, tokens: NamedTokens | None
    ) -> tuple[list[Any], list[str], Hides | None]:
        """Return the built-in authenticators, the fields that decide, and what is hidden."""
        found: list[Any] = []
        hides: Hides | None = None
        decisive: list[str] = []
        if tokens is not None:
            found.append(tokens)
        if auth.oauth is not None:
            found.append(self._oauth(auth.oauth, resource))
        if found:
            found.append(NoOtherToken())
            decisive.append(AUTHORIZATION)
        # After the tokens: what a client sends on purpose counts before what its connection has.
        if auth.certificates is not None:
            found.append(ClientCertificateAuthenticator(auth.certificates, self._now))
        if auth.proxy is not None:
            proxy = ProxyIdentityAuthenticator(auth.proxy)
            found.append(proxy)
            decisive += proxy.decisive
            hides = proxy.hides
        return found, decisive, hides


def scope_errors(name: str, scopes: Any) -> Iterator[SettingError]:
    """
    Yield an error for each rule that would never hold, so that what it was to protect
    would be open.
    """
    for method, rule in scopes.items() if isinstance(scopes, Mapping) else ():
        if method != EVERY_REQUEST and method not in CLIENT_METHODS:
            near = get_close_matches(method, sorted(CLIENT_METHODS), n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            yield SettingError(name, "methods of MCP, or `*`", Described(f"`{method}`{hint}"))
        elif isinstance(rule, Mapping) and method not in NAMED_BY:
            yield SettingError(
                f"{name}.{method}",
                f"scopes, as only {', '.join(sorted(NAMED_BY))} name something",
                Described("an object of names"),
            )


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
