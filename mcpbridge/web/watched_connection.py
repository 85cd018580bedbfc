"""
The half of an HTTP connection that writes: what a request of twisted.web needs
of its channel, and a watch over a client that does not read its responses.

Knows what is unsent in a transport, and for how long; must not know what it is,
nor how a request is read.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from zope.interface import implementer

from mcpbridge.config.tuning import SLOW_SECONDS
from mcpbridge.response_budget import ResponseBudget, Share
from mcpbridge.web.client_watch import ClientWatch
from mcpbridge.web.tcp import acknowledged, buffered, unsent

CONNECTION_DONE = Failure(ConnectionDone())
_NO_LINES: list[bytes] = []


class _Site(Protocol):
    """The part of `BridgeSite` that this uses."""

    clock: IReactorTime
    peer_timeout: float
    min_transfer_rate: int
    responses: ResponseBudget | None


@implementer(IPushProducer)
class WatchedConnection(TwistedProtocol):
    """
    A connection that is aborted when its client does not read a response.

    Responses of every kind end here: what is left of a complete event stream,
    JSON, errors, and what is written without a request object.  It costs
    nothing as long as the socket takes all at once.

    It is the channel of a `twisted.web.http.Request`, and for its transport the
    producer of all responses, which pauses the one that is being written.
    """

    transport: Any
    site: Any
    #: Set while an endless response is written, which has a `ClientWatch` of its own.
    streaming = False
    #: True while the response is an event stream whose session ends with the connection.
    ends_session = False
    log = Logger()
    #: The request of twisted.web that has no complete response yet.
    request: Any = None
    #: The head of its response, until it is written together with the first bytes of the body.
    _head: list[bytes] = _NO_LINES
    #: The producer of its response.
    _producer: Any = None
    #: Whether the transport has asked not to be written to.
    _transport_full = False
    #: Checks whether the client reads; made when something is unsent for the first time.
    _client_watch: ClientWatch | None = None
    _gone = False
    #: What the session of this response may hold unsent; None if there is no session.
    share: Share | None = None
    #: Unsent bytes that are counted; since when, and what the client had acknowledged then.
    _counted = 0
    _counted_for: Share | None = None
    _behind_since = 0.0
    _behind_taken = 0

    def connectionMade(self) -> None:
        """Write each response without delay, as it is one message most often."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Stop watching, count no more, and tell the request."""
        self._gone = True
        watch, self._client_watch = self._client_watch, None
        if watch is not None:
            watch.stop()
        self._count(0)
        request, self.request = self.request, None
        if request is not None:
            request.connectionLost(reason)

    # The channel of a request.

    def getPeer(self) -> IAddress:
        """Return the address of the other end."""
        peer: IAddress = self.transport.getPeer()
        return peer

    def getHost(self) -> IAddress:
        """Return the address of this end."""
        host: IAddress = self.transport.getHost()
        return host

    def isSecure(self) -> bool:
        """Tell whether the connection is one of TLS."""
        return ISSLTransport(self.transport, None) is not None

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Keep the head of a response, to be written with the first bytes of its body."""
        lines = [b"%b %b %b\r\n" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            lines += [b"%b: %b\r\n" % (name, value) for value in values]
        lines.append(b"\r\n")
        self._head = lines

    def write(self, data: bytes) -> None:
        """Write some of the body of a response."""
        self.writeSequence([data])

    def writeSequence(self, pieces: list[bytes]) -> None:
        """Write some of the body of a response."""
        head, self._head = self._head, _NO_LINES
        self.write_pieces([*head, *pieces] if head else pieces)

    def write_pieces(self, pieces: list[bytes]) -> None:
        """Write the next bytes of a response."""
        self.transport.writeSequence(pieces)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register the push producer of the response that is being written."""
        if self._producer is not None or not streaming:
            raise RuntimeError("a response has one producer, which pushes")
        self._producer = producer

    def unregisterProducer(self) -> None:
        """Pause the producer no more."""
        self._producer = None

    def requestDone(self, request: Any) -> None:
        """Watch a complete response until it is sent."""
        if self._head:
            # The response has no body.
            self.writeSequence(_NO_LINES)
        self.request = None
        self._watch_response(request.sentLength)
        # What is unsent goes on to count there; the next response may be of no session.
        self.share = None

    def loseConnection(self) -> None:
        """Close when all that was written is sent; watch that it is."""
        if not self.transport.disconnecting:
            self.transport.unregisterProducer()
        self.transport.loseConnection()
        self._watch_response()

    # Called by responses.

    def stream_begins(self) -> None:
        """Leave it to an endless response to watch whether it is taken."""
        self.streaming = True

    def stream_ends(self) -> None:
        """Watch responses again."""
        self.streaming = self.ends_session = False

    def count_for(self, share: Share) -> None:
        """Count what the client does not take of this response for a session as well."""
        self.share = share

    # Called by the transport: IPushProducer.

    def pauseProducing(self) -> None:
        """Watch the client, which does not keep up, and read no more of its requests."""
        self._transport_full = True
        if self._producer is not None:
            self._producer.pauseProducing()
        if self.request is None:
            self.transport.pauseProducing()
        if self.streaming:
            self.measure()
        else:
            self._watch_response()

    def resumeProducing(self) -> None:
        """Count no more: all is sent."""
        self.measure()
        self._transport_full = False
        if self._producer is not None:
            self._producer.resumeProducing()
        if self.request is None:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Stop the producer: the transport has lost its connection."""
        if self._producer is not None:
            self._producer.stopProducing()

    def has_unsent(self) -> bool:
        """Tell whether the client has not taken all that was written."""
        return bool(unsent(self.transport))

    def _watch_response(self, size: int = 0) -> None:
        """Watch that a response of so many bytes is sent in time; some of it may not be yet."""
        if self._gone:
            return
        if self._client_watch is None:
            site: _Site = self.site
            self._client_watch = ClientWatch(
                site.clock,
                self.transport,
                site.peer_timeout,
                site.min_transfer_rate,
                self._cut_off,
                unsent,
                acknowledged,
                self.measure,
            )
        self._client_watch.arm(size)
        self.measure()

    # Called by the response budget: Reader.

    def measure(self) -> None:
        """Count what is unsent in this process; what the kernel holds is not ours."""
        if not self._gone:
            self._count(buffered(self.transport))

    def slowness(self) -> float:
        """Return how many seconds the client needs for what is unsent, at its rate until now."""
        seconds: float = self.site.clock.seconds() - self._behind_since
        if seconds < SLOW_SECONDS:
            return 0.0
        taken = (acknowledged(self.transport) or 0) - self._behind_taken
        return self._counted * seconds / max(taken, 1)

    def cut_off(self, reason: str) -> None:
        """Abort the connection: the memory is needed for others."""
        self._count(0)
        self._gone = True
        if self._client_watch is not None:
            self._client_watch.stop()
        self._cut_off(reason)

    def _count(self, size: int) -> None:
        more, self._counted = size - self._counted, size
        site: _Site = self.site
        budget = site.responses
        if budget is None or not more:
            return
        if more == size:
            # Nothing was unsent before.
            self._behind_since = site.clock.seconds()
            self._behind_taken = acknowledged(self.transport) or 0
            self._counted_for = self.share
            budget.behind(self)
        if self._counted_for is not None:
            self._counted_for.change(more)
        if more > 0:
            budget.take(more)
        else:
            budget.give_back(-more)
            if not size:
                budget.caught_up(self)

    def _cut_off(self, reason: str) -> None:
        self.log.info("closing a connection: {reason}", reason=reason)
        self.transport.abortConnection()
