"""
Which revisions of MCP a server speaks, as far as it is known, and how its
answer to the message that decides it (`initialize`) is recognized.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mcpbridge.errors import BackendFailed, BridgeError
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, peek, peek_again
from mcpbridge.jsonrpc.ids import is_answer_to
from mcpbridge.mcp.server_card import KnownServer


class OtherEra(BridgeError):
    """The server does not speak the revisions that it was expected to speak."""


class NoAnswer(BackendFailed):
    """The server has not answered in time the request that shows its era."""


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


def find_answer(
    lines: Iterable[bytes], ident: JsonRpcId | msgspec.UnsetType
) -> tuple[int, Envelope] | None:
    """
    Find the answer to the request with this id among messages of a server.

    Returns its index and its envelope, whose id may be spelled in another way
    (`is_answer_to`); None where it has not come yet.
    """
    for number, line in enumerate(lines):
        envelope = peek(line) or peek_again(line)
        if envelope is not None and envelope.is_response and is_answer_to(envelope.id, ident):
            return number, envelope
    return None
