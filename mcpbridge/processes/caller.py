"""
Who has sent a message, for filters and observers.

Knows what can be known of a client; must not know HTTP, nor where the address
and the headers come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from zope.interface import implementer

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.config.tuning import CLIENT_TEXT_CHARS
from mcpbridge.interfaces import ICaller
from mcpbridge.jsonrpc.members import members_of, string_of
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES

#: How much `repr` shows of each text.
_SHOWN_CHARS = 60


@implementer(ICaller)
class Caller:
    """
    The client of a session, or of one request of 2026-07-28.

    Made only for servers with filters or observers, who are the ones to read it.
    """

    __slots__ = (
        *("address", "claims", "client_name", "client_version", "headers", "identity"),
        "scopes",
    )

    def __init__(
        self, address: str | None, headers: Mapping[str, str], access: Access = ANYBODY
    ) -> None:
        self.identity = access.name
        self.scopes = access.scopes
        self.claims: Mapping[str, Any] = getattr(access.identity, "claims", {})
        self.address = address
        self.headers: Mapping[str, str] = MappingProxyType(dict(headers))
        self.client_name: str | None = None
        self.client_version: str | None = None

    def __repr__(self) -> str:
        """Show the caller for a log: without headers, which hold secrets, or control characters."""
        known = {
            "identity": self.identity,
            "address": self.address,
            "name": self.client_name,
            "version": self.client_version,
        }
        shown = (f"{name}={each[:_SHOWN_CHARS]!r}" for name, each in known.items() if each)
        return f"<{' '.join(['Caller', *shown])}>"

    def introduced(self, info: msgspec.Raw | None) -> None:
        """Read its `clientInfo`; None where it sent none."""
        given = members_of(info)
        self.client_name = _encodable(string_of(given.get("name")))
        self.client_version = _encodable(string_of(given.get("version")))

    def initialized(self, line: bytes) -> None:
        """
        Read the `clientInfo` of its `initialize`, unless it is known already.
        A large one is not read, since other clients would have to wait.
        """
        if self.client_name is not None or self.client_version is not None:
            return
        if len(line) <= LARGE_BYTES:
            params = members_of(members_of(line).get("params"))
            self.introduced(params.get("clientInfo"))


def _encodable(text: str | None) -> str | None:
    """Cut a text to `CLIENT_TEXT_CHARS`, and replace lone surrogates, which cannot be encoded."""
    if text is None:
        return None
    return text[:CLIENT_TEXT_CHARS].encode("utf-8", "replace").decode("utf-8")
