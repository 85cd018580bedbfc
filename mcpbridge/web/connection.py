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
from mcpbridge.timers import Timer
from mcpbridge.web.bounded_request import BodyBudget
from mcpbridge.web.client_addresses import ClientAddresses, Peer
from mcpbridge.web.fair_turns import FairTurns
from mcpbridge.web.tcp import has_left, unsent
from mcpbridge.web.transport_security import loopback_port
from mcpbridge.web.watched_connection import CONNECTION_DONE, WatchedConnection


class _Site(Protocol):
    """The part of `BridgeSite` that a connection uses."""

    clock: IReactorTime
    budget: BodyBudget
    clients: ClientAddresses
    turns: FairTurns
    max_body: int
    min_transfer_rate: int

    def opened(self, channel: BridgeConnection) -> bool:
        """Count a new connection; return False if there are too many."""

    def closed(self, channel: BridgeConnection) -> None:
        """Count a connection no more."""

    def is_pooled(self, transport: Any) -> bool:
        """Tell whether a proxy may send several clients' requests on this connection."""
        ...


class BridgeConnection(WatchedConnection):
    """
    An HTTP/1.1 connection that does not wait or store without bound.

    One request at a time: what arrives behind it waits in `_pipelined` until
    its response is complete and written, and beyond `PIPELINED_BYTES` is not
    read.  twisted.web's own channel would parse all that one read has brought,
    and serve it in one go; this one hands it the bytes in slices, takes back
    what is behind a request in `requestDone`, and gives way to other
    connections (`FairTurns`) after a few requests.

    `streaming` is set while an endless response is written: what a client
    sends behind it can never be answered, and too much of it closes the
    connection.
    """

    # As in `OpenChannel`: attributes that every connection has.
    __slots__ = ("_client_connection", "loopback", "peer")

    site: Any
    streaming = False
    log = Logger()
    #: Aborts the connection if a request does not arrive in time.
    _deadline: IDelayedCall | None = None
    #: Whether a refused body is still arriving, behind its response.
    _draining = False
    #: Whether no request is accepted any more: what still arrives is dropped.
    _discarding = False
    _drained = 0
    #: Bytes that arrived behind an endless response.
    _behind_stream = 0
    _admitted = True
    #: Bytes that arrived behind the request that is handled.
    _pipelined = b""
    #: Whether bytes are being parsed: what is left of them is dealt with after that.
    _parsing = False
    #: Whether reading is paused because too much is pipelined.
    _reading_paused = False
    _departure_check: Timer | None = None
    _giving_way: Timer | None = None
    #: How much of a body had arrived when its rate was last checked.
    _arrived_before: int | None = None

    def connectionMade(self) -> None:
        """Count the connection; refuse it if there are too many."""
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
        """Receive bytes of requests, or of a refused body that is dropped."""
        if self._discarding:
            self._drain(data)
        elif self._pipelined or self.is_busy():
            self._pipelined += data
            if self.streaming:
                self._behind_stream += len(data)
                if self._behind_stream > PIPELINED_BYTES:
                    self.log.info(
                        "a client sent more data on a connection with an open stream; closing it"
                    )
                    self.transport.abortConnection()
                    return
            self._limit_pipelined()
        else:
            self._parse_requests(data)

    # One request after the other.

    def _parse_requests(self, data: bytes) -> None:
        """
        Parse request by request while the last one is done and the
        connection's slice lasts; the rest stays in `_pipelined`.
        """
        self._parsing = True
        served = 0
        began = 0.0
        try:
            while True:
                self._parse(data)
                if not self._pipelined or self.is_busy():
                    break
                site: _Site = self.site
                turns = site.turns
                if not served:
                    began = turns.now()
                served += 1
                if not turns.may_go_on(served, began):
                    turns.join(self)
                    break
                data, self._pipelined = self._pipelined, b""
        finally:
            self._parsing = False
        self._update_deadline()
        if self._pipelined or self._reading_paused or self.has_pipelined():
            self._limit_pipelined()

    def _parse(self, data: bytes) -> None:
        """
        Give bytes to twisted.web's channel, which serves one request at most:
        `requestDone` takes from it what is behind that.
        """
        if self.is_receiving_chunks():
            # A chunk costs the same whether it has one byte or a thousand.
            self._pipelined = data[SLICE_BYTES:] + self._pipelined
            data = data[:SLICE_BYTES]
        super().dataReceived(data)

    def _parse_pipelined(self) -> None:
        """Go on with what arrived behind a request, if that is done."""
        if self._parsing:
            return
        if self._pipelined and not self.is_busy():
            data, self._pipelined = self._pipelined, b""
            self._parse_requests(data)
        elif self._reading_paused:
            self._limit_pipelined()

    def _limit_pipelined(self) -> None:
        """Pause reading while more than `PIPELINED_BYTES` wait behind a request."""
        if self.transport.disconnecting:
            # Nothing of it will be served.  TLS goes on reading, for the peer's close_notify.
            self._discard_pipelined()
            self._reading_paused = False
            return
        pause = len(self._pipelined) + self.pipelined_length() > PIPELINED_BYTES
        if pause:
            self.pause_reading()
            if self._departure_check is None:
                self._departure_check = Timer(self.site.clock)
            if not self._departure_check.is_running:
                self._departure_check.start(LEFT_SECONDS, self._check_departure)
        elif self._reading_paused and (self.is_handling_request() or not self.is_transport_full()):
            self.resume_reading()
        self._reading_paused = pause

    def _discard_pipelined(self) -> None:
        """Drop what arrived behind the request that is handled."""
        self._pipelined = b""
        self.discard_pipelined()

    def _check_departure(self) -> None:
        """Abort if the client has left: without reading, nothing else tells."""
        if has_left(self.transport):
            self.transport.abortConnection()
        elif self._reading_paused and self._departure_check is not None:
            self._departure_check.start(LEFT_SECONDS, self._check_departure)

    def requestDone(self, request: Any) -> None:
        """Go on with what arrived behind a request whose response is complete."""
        self._pipelined = self.take_pipelined() + self._pipelined
        self._behind_stream = 0
        super().requestDone(request)
        if self.persistent:
            self._parse_pipelined()

    def resumeProducing(self) -> None:
        """Go on when the transport has written what it was given."""
        super().resumeProducing()
        self._parse_pipelined()

    def allContentReceived(self) -> None:
        """Stop the deadline of a complete request; the next one has its own."""
        self._set_deadline(None)
        super().allContentReceived()

    def allHeadersReceived(self) -> None:
        """Refuse a body that is known to be too large, without waiting for it."""
        super().allHeadersReceived()
        if self.length is None:
            # Chunked: for `_parse`, in slices.
            self._pipelined = self.take_unparsed() + self._pipelined
        self._answer_refused_body()

    def rawDataReceived(self, data: bytes) -> None:
        """Receive some of a body."""
        if self._draining:
            self._drain(data)
            return
        super().rawDataReceived(data)
        if not self.is_handling_request():
            self._answer_refused_body()

    def loseConnection(self) -> None:
        """
        Close; where a body is still arriving, only after what was written
        has had a chance to be read: closing at once would reset it.  No
        request that has arrived behind is served any more.
        """
        self._discard_pipelined()
        self._discarding = True
        self.site.turns.leave(self)
        if not self._draining:
            paused = self._reading_paused or self.is_transport_full()
            if paused and not self.transport.disconnecting:
                # TLS reads its peer's close_notify before it closes.
                self.resume_reading()
            self._reading_paused = False
            super().loseConnection()
            return
        self.setTimeout(None)
        self.unregister_from_transport()
        # TLS has no half-close: there the sender reads the response meanwhile.
        half_closeable: Any = IHalfCloseableDescriptor(self.transport, None)
        if half_closeable is not None:
            half_closeable.loseWriteConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Close: no line of a head is that long."""
        self.loseConnection()

    def timeoutConnection(self) -> None:
        """Close an idle connection.  One that is drained has a deadline of its own."""
        if not self._draining:
            super().timeoutConnection()

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Stop all timers, and tell the site last."""
        self._set_deadline(None)
        self._discard_pipelined()
        self.site.turns.leave(self)
        for timer in (self._departure_check, self._giving_way):
            if timer is not None:
                timer.stop()
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
        Return this connection, for what may serve it alone; None if it is a
        proxy's, on which several clients' requests may come.
        """
        if self._client_connection is None and not self.site.is_pooled(self.transport):
            self._client_connection = ClientConnection()
        return self._client_connection

    # Called by `FairTurns`.

    def serve_slice(self) -> None:
        """Go on with what has arrived."""
        self._parse_pipelined()

    def fail(self) -> None:
        """Close: serving a request has raised."""
        self.transport.abortConnection()

    # Called by `Connections`.

    def idle_since(self) -> float | None:
        """Return when bytes last arrived; None while a request is begun or its response waits."""
        if self.is_busy() or self._pipelined or self._draining or self.is_receiving_request():
            return None
        return self.last_received()

    def give_way(self) -> bool:
        """Close an idle connection; return False if its client has not read the last response."""
        if unsent(self.transport):
            return False
        self.setTimeout(None)
        # TLS waits for its peer to close as well, and another connection needs the capacity.
        # Without a line in the log: that would be one for each connection of a flood.
        self._giving_way = Timer(self.site.clock)
        self._giving_way.start(GIVE_WAY_SECONDS, self.transport.abortConnection)
        self.loseConnection()
        return True

    # A refused body is answered before it is complete, and the rest dropped.

    def may_continue(self) -> bool:
        """Ask no client for a body that is refused."""
        return self.requests[-1].refusal is None

    def _answer_refused_body(self) -> None:
        if not self.requests or self.requests[-1].refusal is None:
            return
        self._draining = self._discarding = True
        self.persistent = 0
        self.requests[-1].responseHeaders.setRawHeaders(b"Connection", [b"close"])
        self._set_deadline(DRAIN_SECONDS)
        self.handle_request_now()

    def _drain(self, data: bytes) -> None:
        self._drained += len(data)
        if self._drained > DRAIN_BYTES:
            self.transport.abortConnection()

    # A request that has begun must be complete in time.

    def _update_deadline(self) -> None:
        """Start the deadline of a request that has begun, or stop that of one that is complete."""
        if self._draining:
            return
        if self.is_handling_request() or not self.is_receiving_request():
            if self._deadline is not None:
                self._set_deadline(None)
        elif self._deadline is None:
            self._began = self.site.clock.seconds()
            self._arrived_before = None
            self._set_deadline(HEAD_SECONDS)

    def _arrived_of_body(self) -> int:
        """Return how many bytes have arrived of the body that is being received."""
        return self.requests[-1].held if self.requests else 0

    def _sends_enough(self) -> bool:
        """Tell whether the body has arrived at `min_transfer_rate` since the last check."""
        before, self._arrived_before = self._arrived_before, self._arrived_of_body()
        due = self.site.min_transfer_rate * RATE_SECONDS
        return before is None or self._arrived_before - before >= due

    def _set_deadline(self, seconds: float | None) -> None:
        # Not a `Timer`, which would be one more object for each connection.
        deadline = self._deadline
        if deadline is not None:
            self._deadline = None
            if deadline.active():
                deadline.cancel()
        if seconds is not None:
            self._deadline = self.site.clock.callLater(seconds, self._check_deadline)

    def _check_deadline(self) -> None:
        """Abort, unless the head was in time and the body arrives quickly enough."""
        self._deadline = None
        if not self._draining and self.is_receiving_body():
            left = self._began + REQUEST_SECONDS - self.site.clock.seconds()
            if left > 0 and self._sends_enough():
                self._set_deadline(min(left, RATE_SECONDS))
                return
        self.transport.abortConnection()
