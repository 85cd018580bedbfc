"""
The bridge's own `ping` requests, and which answers are to them.

Knows ids; must not know timers or streams.
"""

from __future__ import annotations

from mcpbridge.jsonrpc.envelope import Envelope

#: How many unanswered pings, of either side, are remembered.
PINGS_KEPT = 256

_PREFIX = "ping:"


class PingLedger:
    """
    Numbers the bridge's pings, and tells their answers from the answers to
    the server's requests, which may use the same ids.
    """

    __slots__ = ("_number", "_ours", "_theirs")

    def __init__(self) -> None:
        self._number = 0
        self._ours: dict[str, None] = {}
        self._theirs: dict[str, None] = {}

    def next_number(self) -> int:
        """
        Return the number of the next ping: 1, 2, 3 and on.

        A number is left out while the server has an unanswered request with
        the same id.  Beyond `PINGS_KEPT` unanswered pings the oldest is
        forgotten, and its answer would pass to the server.
        """
        self._number += 1
        while f"{_PREFIX}{self._number}" in self._theirs:
            self._number += 1
        if len(self._ours) >= PINGS_KEPT:
            del self._ours[next(iter(self._ours))]
        self._ours[f"{_PREFIX}{self._number}"] = None
        return self._number

    def backend_sent(self, envelope: Envelope) -> None:
        """
        Take note of a message of the server: where it is a request with the id
        of an unanswered ping, the answers to both pass from now on.
        """
        ident = envelope.id
        if isinstance(ident, str) and ident.startswith(_PREFIX) and envelope.is_request:
            self._ours.pop(ident, None)
            if len(self._theirs) >= PINGS_KEPT:
                del self._theirs[next(iter(self._theirs))]
            self._theirs[ident] = None

    def is_ours(self, envelope: Envelope) -> bool:
        """Tell, once, whether a message of the client answers a ping of the bridge."""
        ident = envelope.id
        if not isinstance(ident, str) or not envelope.is_response:
            return False
        if ident in self._theirs:
            del self._theirs[ident]
            return False
        if ident in self._ours:
            del self._ours[ident]
            return True
        return False
