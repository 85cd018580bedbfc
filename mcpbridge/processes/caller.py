"""
Who has sent a message, for filters and observers.

Knows what there is to be known of a client; must not know HTTP, nor what the
address and the headers are read from.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from zope.interface import implementer

from mcpbridge.config.tuning import CLIENT_TEXT_CHARS
from mcpbridge.interfaces import ICaller
from mcpbridge.jsonrpc.members import members_of, string_of
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES

#: Whoever comes, as long as nobody is asked who it is.
ANYBODY = ""

#: How much `repr` shows of each text.
_SHOWN_CHARS = 60


@implementer(ICaller)
class Caller:
    """
    The client of a session, or of one request of 2026-07-28.

    It is made only where there are filters or observers to ask for it.
    """

    __slots__ = ("address", "client_name", "client_version", "headers", "identity")

    def __init__(self, identity: str, address: str | None, headers: Mapping[str, str]) -> None:
        self.identity = identity
        self.address = address
        self.headers: Mapping[str, str] = MappingProxyType(dict(headers))
        self.client_name: str | None = None
        self.client_version: str | None = None

    def __repr__(self) -> str:
        """For a log: no headers, which hold secrets, and no control characters."""
        known = {
            "identity": self.identity,
            "address": self.address,
            "name": self.client_name,
            "version": self.client_version,
        }
        shown = (f"{name}={each[:_SHOWN_CHARS]!r}" for name, each in known.items() if each)
        return f"<{' '.join(['Caller', *shown])}>"

    def introduced(self, info: msgspec.Raw | None) -> None:
        """What it says of itself: its `clientInfo`, as it stands; None where it says nothing."""
        said = members_of(info)
        self.client_name = _kept(string_of(said.get("name")))
        self.client_version = _kept(string_of(said.get("version")))

    def initialized(self, line: bytes) -> None:
        """
        It has sent this `initialize`.  What it has said once stays; and of a
        large one nothing is read, so that nobody has to wait for that.
        """
        if self.client_name is not None or self.client_version is not None:
            return
        if len(line) <= LARGE_BYTES:
            params = members_of(members_of(line).get("params"))
            self.introduced(params.get("clientInfo"))


def _kept(said: str | None) -> str | None:
    """So much of a text that it is no burden, without lone surrogates: it may be written."""
    if said is None:
        return None
    return said[:CLIENT_TEXT_CHARS].encode("utf-8", "replace").decode("utf-8")
