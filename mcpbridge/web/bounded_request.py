"""
A request whose body is kept in memory, within bounds.

Knows sizes; must not know what is served.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.python.failure import Failure

from mcpbridge.config.tuning import TRIM_BYTES
from mcpbridge.errors import MessageTooLarge, Refused, RequestMemoryFull
from mcpbridge.processes.address_shares import Shares
from mcpbridge.twisted_internals import OpenRequest


class BodyBudget:
    """
    Counts the bytes of all request bodies, from their arrival until the
    response is written, against `limit`, and those of each client address
    against its share.  `freed` is called when a large one is given back.
    """

    def __init__(
        self,
        limit: int,
        shares: Shares | None = None,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        self._limit = limit
        self._shares = shares
        self._freed = freed
        self.used = 0

    def has_room(self, size: int, address: str | None = None) -> bool:
        """Tell whether `take` would succeed."""
        if self.used + size > self._limit:
            return False
        return self._shares is None or not self._shares.is_over(address, size)

    def take(self, size: int, address: str | None = None) -> bool:
        """Count bytes of a client; return False, and count none, if they exceed a limit."""
        if self.used + size > self._limit:
            return False
        if self._shares is not None and not self._shares.take(address, size):
            return False
        self.used += size
        return True

    def give_back(self, size: int, address: str | None = None) -> None:
        """Count bytes of a client no more."""
        self.used -= size
        if self._shares is not None:
            self._shares.give_back(address, size)
        if size >= TRIM_BYTES:
            self._freed()

    def refusal(self, size: int) -> RequestMemoryFull:
        """Return the error for a body that `take` has not counted."""
        if self.used + size > self._limit or self._shares is None:
            return RequestMemoryFull(
                "the bridge is receiving as much as it may hold (max_request_bytes)"
            )
        return RequestMemoryFull(
            "your address is sending as much at a time as it may:"
            f" {self._shares.limit} bytes ({self._shares.setting})"
        )


class BridgeRequest(OpenRequest):
    """
    A request whose body is kept in memory, up to the site's limit.

    `refusal` is set if the body was refused; a route raises it once it knows
    that nothing else is wrong.
    """

    channel: Any
    content: Any
    refusal: Refused | None = None
    #: Bytes of the body that count against the budget of the site.
    held = 0
    #: The address whose share it counts against.
    _client: str | None = None

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that is too long; `length` is None for a chunked one."""
        self.content = BytesIO()
        if length is not None and length > self.channel.site.max_body:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """Keep some more of the body, or refuse all of it."""
        if self.refusal is not None:
            return
        size = len(data)
        site = self.channel.site
        if self.held + size > site.max_body:
            self._refuse()
            return
        if not self.held:
            self._client = site.clients.of_request(self)
        if not site.budget.take(size, self._client):
            self.refusal = site.budget.refusal(size)
            self.let_go()
        else:
            self.held += size
            self.content.write(data)

    def body(self) -> bytes:
        """
        Return the whole body, and free what held it.  It counts until the
        response is written: whoever works on it has it in some form.
        """
        body: bytes = self.content.getvalue()
        self.content = BytesIO()
        return body

    def _refuse(self) -> None:
        limit = self.channel.site.max_body
        self.let_go()
        self.refusal = MessageTooLarge(f"a message may have {limit} bytes")

    def let_go(self) -> None:
        """Free the body, and count it no more."""
        if self.held and self.channel is not None:
            self.channel.site.budget.give_back(self.held, self._client)
            self.held = 0
        self.content = BytesIO()

    def completed(self) -> None:
        """Release the body when the response is complete."""
        self.let_go()

    def connectionLost(self, reason: Failure) -> None:
        """Release the body: the connection is lost."""
        self.let_go()
        super().connectionLost(reason)


# For requests of any site: a route may be mounted under an application's own.


def refusal_of(request: Any) -> Refused | None:
    """Return why the body of a request was refused; None if it was not."""
    refusal: Refused | None = getattr(request, "refusal", None)
    return refusal


def take_body(request: Any) -> bytes:
    """Return the whole body of a request, which keeps no copy if it is a `BridgeRequest`."""
    body: bytes = request.body() if isinstance(request, BridgeRequest) else request.content.read()
    return body


def release_body(request: Any) -> None:
    """Free the body of a request whose messages have gone on to the backend."""
    if isinstance(request, BridgeRequest):
        request.let_go()
