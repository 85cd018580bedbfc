"""
A request as authenticators see it.

Knows the head of a request and its connection; must not know who reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from zope.interface import implementer

from mcpbridge.interfaces import IAuthenticationRequest

#: Tells whether to hide a header, by its name in any case, that came from this address.
Hides = Callable[[bytes, str | None], bool]


@implementer(IAuthenticationRequest)
class AuthenticationRequest:
    """
    The head of one HTTP request to one server.

    `fields` are the header fields as they came, names in any case.  `address` is the
    IP address of the other end of the connection, `unix` for a UNIX socket, or None;
    `certificate` the client certificate that it has proven to hold, in DER.  `share` is the
    address, also behind a proxy, whose share of what is waited for counts; None if none does.
    """

    def __init__(
        self,
        server: str,
        method: bytes,
        uri: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        address: str | None = None,
        certificate: bytes | None = None,
        *,
        share: str | None = None,
    ) -> None:
        self.server = server
        self.method = method.decode("latin-1")
        self.uri = uri.decode("latin-1")
        self.address = address
        self.certificate = certificate
        self.share = share
        self._fields = fields

    def without(self, hides: Hides) -> AuthenticationRequest:
        """Return a copy without the fields that are hidden."""
        fields = [field for field in self._fields if not hides(field[0], self.address)]
        method, uri = self.method.encode("latin-1"), self.uri.encode("latin-1")
        return AuthenticationRequest(
            self.server, method, uri, fields, self.address, self.certificate, share=self.share
        )

    def values(self, name: str) -> list[str]:
        """Return the values of all fields of this name, which is in lower case."""
        wanted = name.encode("ascii")
        return [value.decode("latin-1") for each, value in self._fields if each.lower() == wanted]

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The fields by name in lower case, their values joined (RFC 9110, section 5.3)."""
        found: dict[str, str] = {}
        for raw_name, raw_value in self._fields:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            found[name] = f"{found[name]}, {value}" if name in found else value
        return MappingProxyType(found)
