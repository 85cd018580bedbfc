"""A message filter that changes nothing: what filters cost at least."""

from __future__ import annotations

from zope.interface import implementer

from mcpbridge.interfaces import IMessageFilter


@implementer(IMessageFilter)
class PassThrough:
    """Returns each message as it was given; made with the settings of its server."""

    def __init__(self, settings: object) -> None:
        pass

    def from_client(self, session: object, line: bytes) -> bytes:
        """Return the message."""
        return line

    def from_backend(self, session: object, line: bytes) -> bytes:
        """Return the message."""
        return line
