"""What both transports to a remote server have in common, for the backend that uses them."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred

from mcpbridge.mcp.posted_message import PostedMessage
from mcpbridge.remote.outbox import Outbox


class Transport(Protocol):
    """One session at a remote server.  `outbox` has the messages that wait to be posted."""

    outbox: Outbox

    def put(self, message: PostedMessage) -> None:
        """Send a message as soon as its turn comes."""

    def splits_batches(self) -> bool:
        """Tell whether the messages of a batch must be sent one by one."""
        ...

    def abandon(self) -> None:
        """Send nothing more, and ask for nothing: the session is over at the server."""

    def leave(self, seconds: float) -> Deferred[None]:
        """
        End the session at the server, for which there are so many seconds.

        The `Deferred` fires when that is done, or given up; it never fails.
        """
        ...
