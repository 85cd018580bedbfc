"""
Identities that a reverse proxy has found out and sends in a header.

Knows which peers are believed, and what a header may name; must not know how the
proxy has found out.
"""

from __future__ import annotations

import re
from functools import lru_cache

from zope.interface import implementer

from mcpbridge.auth.identity import MAX_SUBJECT_CHARS, PROXY, Identity, is_subject
from mcpbridge.config.auth import ProxyIdentity, plain_name
from mcpbridge.config.networks import Networks
from mcpbridge.errors import MalformedCredentials
from mcpbridge.interfaces import IAuthenticationRequest, IAuthenticator

#: How many addresses are cached with whether they are a proxy's.
KNOWN_PEERS = 1024
#: RFC 6749, section 3.3.
_SCOPE = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]{1,256}")


@implementer(IAuthenticator)
class ProxyIdentityAuthenticator:
    """
    Believes the header of `settings.addresses`, and nobody else's.

    The address that counts is the one that the connection comes from, never one that a
    header names.

    `X_User` and `X-User` are two headers, of which only the configured one counts.  But
    software that turns names into variables takes them for one (RFC 3875, section 4.1.18),
    so that `hides` knows every spelling: what else a client writes is shown to nobody.
    """

    def __init__(self, settings: ProxyIdentity) -> None:
        self._header = settings.header.lower()
        self._scopes_header = (settings.scopes_header or "").lower()
        #: The names, in lower case, of the headers on which the answer depends, besides the
        #: address.
        self.decisive = tuple(each for each in (self._header, self._scopes_header) if each)
        #: The same in bytes: they are deleted from the requests of all peers that are not
        #: believed.  `hides` also knows the names that look like one of them.
        self.strips = frozenset(each.encode("ascii") for each in self.decisive)
        self._plain_names = {plain_name(each) for each in self.decisive}
        self._is_proxy = lru_cache(KNOWN_PEERS)(Networks(settings.addresses).holds)

    def believes(self, address: str | None) -> bool:
        """Tell whether the peer at an address, or `unix`, may say who its callers are."""
        return address is not None and self._is_proxy(address)

    def hides(self, name: bytes, address: str | None) -> bool:
        """
        Tell whether to delete a header, by its name in any case, from what filters and
        backends get of a request from this address.
        """
        if plain_name(name.decode("latin-1")) not in self._plain_names:
            return False
        return name.lower() not in self.strips or not self.believes(address)

    def authenticate(self, request: object) -> Identity | None:
        """
        Return the identity that a proxy names; None for other peers and without the header.

        Raises `MalformedCredentials` for a header that is not one name.
        """
        seen = IAuthenticationRequest(request)
        if not self.believes(seen.address):
            return None
        subject = self._only(seen, self._header)
        if subject is None:
            return None
        try:
            # A proxy writes UTF-8; fields are decoded byte by byte.
            subject = subject.encode("latin-1").decode("utf-8")
        except ValueError:
            raise MalformedCredentials(f"{self._header} is not UTF-8") from None
        if not is_subject(subject):
            raise MalformedCredentials(
                f"{self._header} must be 1 to {MAX_SUBJECT_CHARS} printable characters"
            )
        return Identity(issuer=PROXY, subject=subject, scopes=self._scopes(seen))

    def _scopes(self, request: IAuthenticationRequest) -> frozenset[str]:
        if not self._scopes_header:
            return frozenset()
        text = self._only(request, self._scopes_header) or ""
        scopes = frozenset(text.replace(",", " ").split(" ")) - {""}
        if not all(map(_SCOPE.fullmatch, scopes)):
            raise MalformedCredentials(f"{self._scopes_header} is no list of scopes")
        return scopes

    def _only(self, request: IAuthenticationRequest, header: str) -> str | None:
        """Return the only value of a header, without spaces around it; None without one."""
        values = request.values(header)
        if len(values) > 1:
            raise MalformedCredentials(f"there are several {header}")
        return values[0].strip(" \t") if values else None
