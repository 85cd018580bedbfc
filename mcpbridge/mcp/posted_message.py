"""
A message that is posted to a server over Streamable HTTP: what its transport must know of it.

Knows JSON-RPC, and the headers of a request of 2026-07-28 (basic/transports/
streamable-http, "Standard Request Headers"); must not know HTTP otherwise, nor what
comes of the message.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from mcpbridge.jsonrpc.envelope import (
    Envelope,
    JsonRpcId,
    cancelled_id,
    peek,
    peek_again,
    split_batch,
)
from mcpbridge.jsonrpc.members import members_of, meta_of, string_of
from mcpbridge.mcp.header_validation import Annotations, encoded, param_headers
from mcpbridge.mcp.modern_request import NAME_BEARING_METHODS, PROTOCOL_VERSION, claims_modern

#: The longest name that is sent in a header; a longer one could not be checked anyway, as
#: servers bound their headers.
NAME_CHARS = 4096


class Kind(Enum):
    """What a message is, as far as its POST differs."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    BATCH = "batch"
    #: Neither of these: whoever gets it says what is wrong.
    UNKNOWN = "unknown"


class PostedMessage(msgspec.Struct, frozen=True, eq=False):
    """
    One message.

    `idents` are the ids of the requests in it: one, or those of a batch.  `version` is
    that of a request of 2026-07-28 or later, whose POST says more; None otherwise.
    """

    line: bytes
    kind: Kind
    idents: tuple[JsonRpcId, ...] = ()
    method: str | None = None
    version: str | None = None

    @property
    def is_request(self) -> bool:
        """Whether it must be answered."""
        return bool(self.idents)

    @property
    def cancels(self) -> JsonRpcId | msgspec.UnsetType:
        """The id of the request that it cancels; UNSET for any other message."""
        if self.method != "notifications/cancelled":
            return msgspec.UNSET
        return cancelled_id(self.line)

    @property
    def tool(self) -> str | None:
        """The tool that it calls."""
        if self.method != "tools/call":
            return None
        return string_of(members_of(members_of(self.line).get("params")).get("name"))

    def headers(self, annotations: Annotations = ()) -> list[tuple[str, str]]:
        """
        Return the headers that say what is in a modern request; none for any other.

        `annotations` are those of the tool that it calls.
        """
        if self.version is None or self.method is None:
            return []
        found = [
            ("MCP-Protocol-Version", encoded(self.version)),
            ("Mcp-Method", encoded(self.method)),
        ]
        named_by = NAME_BEARING_METHODS.get(self.method)
        if named_by is None:
            return found
        params = members_of(members_of(self.line).get("params"))
        name = string_of(params.get(named_by))
        if name is not None and len(name) <= NAME_CHARS:
            found.append(("Mcp-Name", encoded(name)))
        if annotations:
            found += param_headers(params.get("arguments"), annotations)
        return found


def read_posted(line: bytes) -> PostedMessage:
    """Read one line; never raises."""
    envelope = peek(line) or peek_again(line)
    if envelope is None:
        parts = split_batch(line)
        if parts is None:
            return PostedMessage(line, Kind.UNKNOWN)
        found = [peek(each) or peek_again(each) for each in parts]
        return PostedMessage(line, Kind.BATCH, tuple(_requests(found)))
    if isinstance(envelope.method, msgspec.UnsetType):
        return PostedMessage(line, Kind.RESPONSE if envelope.is_response else Kind.UNKNOWN)
    if not envelope.is_request:
        return PostedMessage(line, Kind.NOTIFICATION, (), envelope.method)
    idents = tuple(_requests([envelope]))
    version = _version(line) if claims_modern(line) else None
    return PostedMessage(line, Kind.REQUEST, idents, envelope.method, version)


def _requests(envelopes: list[Envelope | None]) -> list[JsonRpcId]:
    return [
        each.id
        for each in envelopes
        if each is not None and each.is_request and not isinstance(each.id, msgspec.UnsetType)
    ]


def _version(line: bytes) -> str | None:
    params = members_of(members_of(line).get("params"))
    return string_of(meta_of(params).get(PROTOCOL_VERSION))
