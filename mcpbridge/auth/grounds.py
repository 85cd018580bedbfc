"""
What in the settings of `auth` vouches for an identity, so that other settings can be
compared with those under which it was admitted.

Knows settings and names; must not know requests.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from mcpbridge.auth.client_certificates import same_subject
from mcpbridge.auth.identity import CERTIFICATE, NAMED_TOKEN, PROXY
from mcpbridge.auth.named_tokens import NamedTokens
from mcpbridge.config.auth import Auth
from mcpbridge.interfaces import IIdentity


class Grounds:
    """
    The grounds of one server.

    `tokens` are its named tokens, and `own` names authenticators that are not built in,
    which might vouch for anybody.
    """

    def __init__(
        self,
        auth: Auth,
        server: str,
        tokens: NamedTokens | None = None,
        own: Sequence[Hashable] = (),
    ) -> None:
        self._auth = auth
        self._server = server
        self._tokens = tokens
        self._own = tuple(own)

    def of(self, identity: IIdentity) -> Hashable:
        """Return what vouches for an identity, to be compared; None where nothing does."""
        auth, issuer, subject = self._auth, identity.issuer, identity.subject
        if issuer == NAMED_TOKEN and self._tokens is not None:
            return self._tokens.digest_of(subject, self._server)
        if issuer == CERTIFICATE and auth.certificates is not None:
            part = auth.certificates.subject
            allowed = auth.certificates.allow
            if allowed is None or subject in {same_subject(part, each) for each in allowed}:
                return part
            return None
        if issuer == PROXY and auth.proxy is not None:
            return auth.proxy
        if auth.oauth is not None and issuer == auth.oauth.issuer:
            return auth.oauth
        return self._own or None

    def scopes(self, identity: IIdentity) -> frozenset[str]:
        """Return the scopes that an identity has now."""
        auth, issuer, subject = self._auth, identity.issuer, identity.subject
        if issuer == NAMED_TOKEN and self._tokens is not None:
            return self._tokens.scopes_of(subject)
        if issuer == CERTIFICATE and auth.certificates is not None:
            found = frozenset(auth.certificates.scopes)
            for each, scopes in (auth.certificates.allow or {}).items():
                if same_subject(auth.certificates.subject, each) == subject:
                    found |= frozenset(scopes)
            return found
        return frozenset(identity.scopes)
