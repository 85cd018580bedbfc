"""
Restores the ids of requests that a server gives back in another spelling.

Knows the unanswered requests; must not know who carries messages.  Only the
sessions that are known to need it have one, as it reads every message.
"""

from __future__ import annotations

import msgspec

from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, cancelled_id, peek_again
from mcpbridge.jsonrpc.ids import other_spelling, with_id
from mcpbridge.jsonrpc.oversized import peek_at_server
from mcpbridge.jsonrpc.recent_set import Recent
from mcpbridge.mcp.inflight import MAX_IN_FLIGHT


class IdRestorer:
    """
    Gives a server's answers the ids that the client gave its requests.

    It knows the newest `MAX_IN_FLIGHT` of the unanswered requests.
    """

    def __init__(self) -> None:
        self._open: Recent[JsonRpcId | msgspec.UnsetType] = Recent(MAX_IN_FLIGHT)

    def __len__(self) -> int:
        return len(self._open)

    def from_client(self, line: bytes, envelope: Envelope) -> None:
        """Take note of a message of the client: a request, or the cancellation of one."""
        if envelope.is_request:
            self._open.add(envelope.id)
        elif envelope.method == "notifications/cancelled":
            self._open.discard(cancelled_id(line))

    def from_backend(self, line: bytes) -> bytes:
        """Return a message of the server; an answer, with the id that the client gave."""
        envelope = peek_at_server(line) or peek_again(line)
        if envelope is None or not envelope.is_response:
            return line
        if self._open.discard(envelope.id):
            return line
        other = other_spelling(envelope.id)
        if other is msgspec.UNSET or not self._open.discard(other):
            return line
        return with_id(line, other)
