"""
Which revisions of MCP a server's processes speak, and what it has said of itself.
"""

from __future__ import annotations

from mcpbridge.errors import BridgeError
from mcpbridge.mcp.server_card import KnownServer


class OtherEra(BridgeError):
    """The server does not speak what it was taken to speak."""


class ServerEra:
    """
    What is known of a server: whether its processes take `initialize`
    (legacy), and whether they take requests of 2026-07-28 (modern).  None: not
    known.  A process may know both and is bound to one by what it is first told.
    """

    def __init__(self) -> None:
        self.legacy: bool | None = None
        self.modern: bool | None = None
        #: What its card says.
        self.known = KnownServer()
