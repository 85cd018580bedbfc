"""
A request whose body is kept in memory, within bounds.

Knows sizes; must not know what is served.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.server import Request, version

from mcpbridge.config.tuning import TRIM_BYTES
from mcpbridge.errors import Refused, RequestMemoryFull
from mcpbridge.processes.address_shares import Shares
from mcpbridge.web.endpoints import Endpoint
from mcpbridge.web.request_parser import ReceivedRequest


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
        self.limit = limit
        self._shares = shares
        self._freed = freed
        self.used = 0

    def has_room(self, size: int, address: str | None = None) -> bool:
        """Tell whether `take` would succeed."""
        if self.used + size > self.limit:
            return False
        return self._shares is None or not self._shares.is_over(address, size)

    def take(self, size: int, address: str | None = None) -> bool:
        """Count bytes of a client; return False, and count none, if they exceed a limit."""
        if self.used + size > self.limit:
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
        if self.used + size > self.limit or self._shares is None:
            return RequestMemoryFull(
                "the bridge is receiving as much as it may hold (max_request_bytes)"
            )
        return RequestMemoryFull(
            "your address is sending as much at a time as it may:"
            f" {self._shares.limit} bytes ({self._shares.setting})"
        )


class BridgeRequest(Request):
    """
    A request whose body is kept in memory, up to the site's limit.

    `refusal` is set if the body was refused; a route raises it once it knows
    that nothing else is wrong.
    """

    channel: Any
    content: Any
    refusal: Refused | None = None
    #: What serves it directly; None if the resources of its site do.
    endpoint: Endpoint | None = None
    #: What was received, which knows what counts against the budget of the site.
    _received: ReceivedRequest | None = None

    def receive(self, received: ReceivedRequest, refusal: Refused | None) -> None:
        """
        Serve a request that has been received, or refuse its body.

        All of the body counts until the response is written: whoever works on
        it has it in some form.
        """
        head = received.head
        add = self.requestHeaders.addRawHeader
        for name, value in head.fields:
            add(name, value)
        if received.content_length is not None:
            add(b"content-length", received.content_length)
        self.refusal = refusal
        self.content = BytesIO()
        if refusal is None and received.arrived:
            channel = self.channel
            self._received = received
            size = received.arrived - received.counted
            if size and not channel.count_body(received, size):
                self.refusal = channel.site.budget.refusal(size)
                self.let_go()
        self.requestReceived(head.method, head.target, head.version)

    def process(self) -> None:
        """Serve the request by its endpoint, or by the resources of the site."""
        endpoint = self.endpoint
        if endpoint is None:
            super().process()
            return
        self.site = self.channel.site
        self.setHeader(b"Server", version)
        self.setHeader(b"Date", datetimeToString())
        endpoint.serve(self)

    def body(self) -> bytes:
        """Return the whole body, and free what held it."""
        received = self._received
        if received is None:
            return b""
        body = received.body
        received.drop_body()
        return body

    def let_go(self) -> None:
        """Free the body, and count it no more."""
        received, self._received = self._received, None
        if received is not None:
            received.drop_body()
            if self.channel is not None:
                self.channel.give_back(received)

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
