"""
The HTTP connection with bounds that twisted.web does not have.

A request has a deadline, a body a limit; a refused body is answered at once,
while its sender may still be sending.  Knows bytes and time; must not know
what is served.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableDescriptor, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.tuning import (
    DRAIN_BYTES,
    DRAIN_SECONDS,
    GIVE_WAY_SECONDS,
    HEAD_SECONDS,
    LEFT_SECONDS,
    PIPELINED_BYTES,
    RATE_SECONDS,
    REQUEST_SECONDS,
    SLICE_BYTES,
)
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.web.bounded_request import BodyBudget
from mcpbridge.web.client_addresses import ClientAddresses, Peer
from mcpbridge.web.fair_turns import FairTurns
from mcpbridge.web.tcp import has_left, unsent
from mcpbridge.web.transport_security import loopback_port
from mcpbridge.web.watched_connection import CONNECTION_DONE, WatchedConnection


class _Site(Protocol):
    """What a connection asks of its site."""

    clock: IReactorTime
    budget: BodyBudget
    clients: ClientAddresses
    turns: FairTurns
    max_body: int
    min_transfer_rate: int

    def opened(self, channel: BridgeConnection) -> bool:
        """A connection was made; False where there are too many."""

    def closed(self, channel: BridgeConnection) -> None:
        """A connection is gone."""

    def is_pooled(self, transport: Any) -> bool:
        """Whether a proxy may send several clients' requests on this connection."""
        ...


class BridgeConnection(WatchedConnection):
    """
    An HTTP/1.1 connection that does not wait or store without bound.

    One request at a time: what comes behind it waits until its answer is
    complete and on its way, and beyond `PIPELINED_BYTES` is not read.  Of many
    that have arrived together a few are served at once, and the others when
    it is the connection's turn again.
    `streaming` is set while an endless answer is written: what a client sends
    behind it can never be answered, and too much of it ends the connection.
    """

    # With more than thirty attributes in its dictionary an instance has one of
    # its own, of a kilobyte and more (PEP 412); these are always set.
    __slots__ = (
        "_client_connection",
        "_dataBuffer",
        "_handlingRequest",
        "_networkProducer",
        "_transferDecoder",
        "loopback",
        "peer",
        "requests",
    )

    site: Any
    transport: Any
    #: Twisted's own, which is moved on as bytes come.
    _TimeoutMixin__timeoutCall: IDelayedCall | None
    _networkProducer: Any
    streaming = False
    log = Logger()
    _deadline: IDelayedCall | None = None
    _draining = False
    #: Whether no request is taken any more: what still arrives is thrown away.
    _discarding = False
    _drained = 0
    _behind = 0
    _admitted = True
    #: What came behind the request that is handled.
    _later = b""
    #: Whether bytes are being taken: what is left of them is seen to then.
    _taking = False
    #: Whether no more is read, and what looks whether the client has left.
    _full = False
    _looking: IDelayedCall | None = None
    #: How much of a body had arrived when that was last looked at.
    _arrived_before: int | None = None

    def connectionMade(self) -> None:
        """Count the connection; refuse it where there are too many."""
        self._client_connection: ClientConnection | None = None
        super().connectionMade()
        #: 0 where the listener is not on loopback.
        self.loopback = loopback_port(self.transport) or 0
        #: Who is at the other end.
        self.peer: Peer = self.site.clients.peer(self.transport.getPeer())
        self._admitted = self.site.opened(self)
        if not self._admitted:
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Bytes of requests, or of what was refused and is thrown away."""
        if self._discarding:
            self._drain(data)
        elif self._later or self._is_busy():
            self._later += data
            if self.streaming:
                self._behind += len(data)
                if self._behind > PIPELINED_BYTES:
                    self.log.info("a client sends behind its open stream; closing its connection")
                    self.transport.abortConnection()
                    return
            self._settle()
        else:
            self._take_all(data)

    # One request after the other.

    def _is_busy(self) -> bool:
        """Whether a request is handled, or its answer is not taken."""
        return self._handlingRequest or self._waitingForTransport

    def _take_all(self, data: bytes) -> None:
        """
        Take bytes, request by request while the last one is done and the
        connection's slice lasts; what is left waits.
        """
        self._taking = True
        served = 0
        began = 0.0
        try:
            while True:
                self._take(data)
                if not self._later or self._is_busy():
                    break
                site: _Site = self.site
                turns = site.turns
                if not served:
                    began = turns.now()
                served += 1
                if not turns.may_go_on(served, began):
                    turns.join(self)
                    break
                data, self._later = self._later, b""
        finally:
            self._taking = False
        self._watch()
        if self._later or self._dataBuffer or self._full:
            self._settle()

    def _take(self, data: bytes) -> None:
        """
        Bytes for twisted.web's channel, which serves one request at the most:
        `requestDone` takes what is behind that out of its hands.
        """
        if self.length is None and self._transferDecoder is not None:
            # A chunk costs the same whether it has one byte or a thousand.
            self._later = data[SLICE_BYTES:] + self._later
            data = data[:SLICE_BYTES]
        super().dataReceived(data)

    # What a turn asks.

    def serve_slice(self) -> None:
        """Go on with what has arrived."""
        self._go_on()

    def fail(self) -> None:
        """Serving a request has raised."""
        self.transport.abortConnection()

    def _go_on(self) -> None:
        """With what came behind a request, when that is done."""
        if self._taking:
            return
        if self._later and not self._is_busy():
            data, self._later = self._later, b""
            self._take_all(data)
        elif self._full:
            self._settle()

    def _settle(self) -> None:
        """Where much came behind a request, no more is read until that is done."""
        if self.transport.disconnecting:
            # Nothing of it will be served.  TLS goes on reading, for the peer's goodbye.
            self._later, self._dataBuffer = b"", []
            self._full = False
            return
        behind = len(self._later)
        if self._dataBuffer:
            behind += sum(map(len, self._dataBuffer))
        full = behind > PIPELINED_BYTES
        if full:
            self._networkProducer.pauseProducing()
            if self._looking is None:
                self._looking = self.site.clock.callLater(LEFT_SECONDS, self._look)
        elif self._full and (self._handlingRequest or not self._waitingForTransport):
            self._networkProducer.resumeProducing()
        self._full = full

    def _look(self) -> None:
        """Who is not read is not heard leaving either."""
        self._looking = None
        if has_left(self.transport):
            self.transport.abortConnection()
        elif self._full:
            self._looking = self.site.clock.callLater(LEFT_SECONDS, self._look)

    def requestDone(self, request: Any) -> None:
        """An answer is complete: what came behind it is next."""
        # At any time bytes are in one of the first two: behind a request with a
        # body, or behind one without, which is still being read line by line.
        self._later = b"".join([*self._dataBuffer, self._buffer, self._later])
        self._dataBuffer = []
        self._buffer = b""
        self._behind = 0
        super().requestDone(request)
        if self.persistent:
            self._go_on()

    def resumeProducing(self) -> None:
        """What was written is taken."""
        super().resumeProducing()
        self._go_on()

    def allContentReceived(self) -> None:
        """All of a request is there; the next one has a deadline of its own."""
        self._set_deadline(None)
        super().allContentReceived()

    def allHeadersReceived(self) -> None:
        """The head is there: a body that is known to be too large is not awaited."""
        super().allHeadersReceived()
        if self.length is None:
            # Chunked: for `_take`, in slices.
            self._later, self._buffer = self._buffer + self._later, b""
        self._answer_refused_body()

    def rawDataReceived(self, data: bytes) -> None:
        """Some of the body."""
        if self._draining:
            self._drain(data)
            return
        super().rawDataReceived(data)
        if not self._handlingRequest:
            self._answer_refused_body()

    def loseConnection(self) -> None:
        """
        Close; where a body is still arriving, only after what was written
        has had a chance to be read: closing at once would reset it.  No
        request that has arrived behind is served any more.
        """
        self._later, self._dataBuffer = b"", []
        self._discarding = True
        self.site.turns.leave(self)
        if not self._draining:
            if (self._full or self._waitingForTransport) and not self.transport.disconnecting:
                # TLS reads its peer's goodbye before it closes.
                self._networkProducer.resumeProducing()
            self._full = False
            super().loseConnection()
            return
        self.setTimeout(None)
        self._networkProducer.unregisterProducer()
        # TLS has no half-close: there the sender reads the answer meanwhile.
        half_closeable: Any = IHalfCloseableDescriptor(self.transport, None)
        if half_closeable is not None:
            half_closeable.loseWriteConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        """No line of a head is that long."""
        self.loseConnection()

    def timeoutConnection(self) -> None:
        """Idle for too long.  What is drained has a deadline of its own."""
        if not self._draining:
            super().timeoutConnection()

    # What the table of connections asks.

    def idle_since(self) -> float | None:
        """When something was last heard; None while a request is begun or its answer waits."""
        idle = self._TimeoutMixin__timeoutCall
        if idle is None or self._is_busy() or self._later or self.requests or self._buffer:
            return None
        if self._draining or self._in_body() or self.timeOut is None:
            return None
        return idle.getTime() - float(self.timeOut)

    def give_way(self) -> bool:
        """Close an idle connection; False where the last answer is not taken yet."""
        if unsent(self.transport):
            return False
        self.setTimeout(None)
        # TLS waits for its peer to close as well, and another connection has the place.
        self._abortingCall = self.site.clock.callLater(GIVE_WAY_SECONDS, self._make_way)
        self.loseConnection()
        return True

    def _make_way(self) -> None:
        """Without a line in the log: that would be one for each connection of a flood."""
        self._abortingCall = None
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Gone: stop the clocks."""
        self._set_deadline(None)
        self._later, self._dataBuffer = b"", []
        self.site.turns.leave(self)
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
        try:
            super().connectionLost(reason)
            # The requests have been told: what is kept for the next one is not needed.
            if self._client_connection is not None:
                self._client_connection.lose()
        finally:
            # Last of all, and whatever has failed: with the last connection the
            # stop of the bridge goes on.
            if self._admitted:
                self.site.closed(self)

    def client_connection(self) -> ClientConnection | None:
        """
        This connection, for what may serve it alone.  None where it is a
        proxy's, on which several clients' requests may come.
        """
        if self._client_connection is None and not self.site.is_pooled(self.transport):
            self._client_connection = ClientConnection()
        return self._client_connection

    def _send100Continue(self) -> None:
        if self.requests[-1].refusal is None:
            super()._send100Continue()

    def _answer_refused_body(self) -> None:
        """Answer before the body is complete, then throw the rest away."""
        if not self.requests or self.requests[-1].refusal is None:
            return
        self._draining = self._discarding = True
        self.persistent = 0
        request = self.requests[-1]
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        self._set_deadline(DRAIN_SECONDS)
        request.requestReceived(self._command, self._path, self._version)

    def _drain(self, data: bytes) -> None:
        self._drained += len(data)
        if self._drained > DRAIN_BYTES:
            self.transport.abortConnection()

    def _watch(self) -> None:
        """A request that has begun must be complete in time."""
        if self._draining:
            return
        if self._handlingRequest:
            self._set_deadline(None)
        elif self.requests or self._buffer or self._in_body():
            if self._deadline is None:
                self._began = self.site.clock.seconds()
                self._arrived_before = None
                self._set_deadline(HEAD_SECONDS)
        else:
            self._set_deadline(None)

    def _in_body(self) -> bool:
        """Whether a body is arriving, whose head was in time."""
        return self._transferDecoder is not None

    def _arrived_of_body(self) -> int:
        """How many bytes of the body that is arriving are there."""
        return self.requests[-1]._held if self.requests else 0

    def _sends_enough(self) -> bool:
        """Whether of the body as much has arrived since the last time as must."""
        before, self._arrived_before = self._arrived_before, self._arrived_of_body()
        due = self.site.min_transfer_rate * RATE_SECONDS
        return before is None or self._arrived_before - before >= due

    def _set_deadline(self, seconds: float | None) -> None:
        deadline = self._deadline
        if deadline is not None:
            self._deadline = None
            if deadline.active():
                deadline.cancel()
        if seconds is not None:
            self._deadline = self.site.clock.callLater(seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if not self._draining and self._in_body():
            # The head was in time; the body has longer, as long as it arrives.
            left = self._began + REQUEST_SECONDS - self.site.clock.seconds()
            if left > 0 and self._sends_enough():
                self._set_deadline(min(left, RATE_SECONDS))
                return
        self.transport.abortConnection()
