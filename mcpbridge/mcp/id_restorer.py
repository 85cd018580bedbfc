"""
A session whose server gives the ids of requests back in another spelling.

Knows the requests that are not answered; must not know who carries messages.
Only sessions that are known to need it have one, as it reads every message.
"""

from __future__ import annotations

import msgspec

from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, cancelled_id, peek, peek_again
from mcpbridge.jsonrpc.ids import other_spelling, with_id
from mcpbridge.jsonrpc.recent import Recent
from mcpbridge.mcp.inflight import MAX_IN_FLIGHT


class IdRestorer:
    """
    The requests of a client whose server gives ids back in another spelling:
    its answers get the ids that the client gave.  Of the requests that are
    not answered the newest `MAX_IN_FLIGHT` are known.
    """

    def __init__(self) -> None:
        self._asked: Recent[JsonRpcId | msgspec.UnsetType] = Recent(MAX_IN_FLIGHT)

    def __len__(self) -> int:
        return len(self._asked)

    def from_client(self, line: bytes, envelope: Envelope) -> None:
        """A message of the client: a request is waited for, a cancelled one is not."""
        if envelope.is_request:
            self._asked.add(envelope.id)
        elif envelope.method == "notifications/cancelled":
            self._asked.discard(cancelled_id(line))

    def from_backend(self, line: bytes) -> bytes:
        """A message of the server, with the id that the client gave where it answers a request."""
        envelope = peek(line) or peek_again(line)
        if envelope is None or not envelope.is_response:
            return line
        if self._asked.discard(envelope.id):
            return line
        other = other_spelling(envelope.id)
        if other is msgspec.UNSET or not self._asked.discard(other):
            return line
        return with_id(line, other)
