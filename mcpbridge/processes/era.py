"""
Which revisions of MCP a server speaks, as far as it is known.
"""

from __future__ import annotations

from mcpbridge.errors import BridgeError
from mcpbridge.mcp.server_card import KnownServer


class OtherEra(BridgeError):
    """The server does not speak the revisions that it was expected to speak."""


class ServerEra:
    """
    The eras of one server: `legacy` if its processes take `initialize`,
    `modern` if they take requests of 2026-07-28; None where that is not known.

    A server may speak both.  Each of its processes is then bound to one era by
    the first message that it gets.
    """

    def __init__(self) -> None:
        self.legacy: bool | None = None
        self.modern: bool | None = None
        #: What the server card says of it.
        self.known = KnownServer()
