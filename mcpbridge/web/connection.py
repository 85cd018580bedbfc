"""
The half of an HTTP connection that reads: one request at a time, within bounds
on time and memory.

A request has a deadline, a body a limit; a refused body is answered at once,
while its sender may still be sending.  Knows bytes and time; must not know
what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableDescriptor, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.tuning import (
    ABORT_SECONDS,
    DRAIN_BYTES,
    DRAIN_SECONDS,
    GIVE_WAY_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    LEFT_SECONDS,
    PIPELINED_BYTES,
    RATE_SECONDS,
    REQUEST_SECONDS,
    SLICE_BYTES,
)
from mcpbridge.errors import MessageTooLarge, Refused
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.pacer import LOST_CONNECTIONS, Pacer
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.timers import Timer
from mcpbridge.web.access_log import AccessLog
from mcpbridge.web.admission import EndOf, end_of
from mcpbridge.web.bounded_request import BodyBudget, BridgeRequest
from mcpbridge.web.client_addresses import ClientAddresses, Peer
from mcpbridge.web.endpoints import Endpoint
from mcpbridge.web.fair_turns import FairTurns
from mcpbridge.web.request_parser import NO_HEAD, Head, ReceivedRequest, RequestParser
from mcpbridge.web.tcp import has_left
from mcpbridge.web.transport_security import loopback_port
from mcpbridge.web.watched_connection import CONNECTION_DONE, WatchedConnection

#: Returns the refusal of a request by its head, at once or later; see `FastPath.refuse_sender`.
RefuseSender = Callable[[Head, EndOf, str | None], Refused | Deferred[Refused | None] | None]


class ConnectionSite(Protocol):
    """The part of `BridgeSite` that a connection uses."""

    clock: IReactorTime
    budget: BodyBudget
    clients: ClientAddresses
    turns: FairTurns
    pacer: Pacer
    requestFactory: Callable[[BridgeConnection], BridgeRequest]
    fast_path: Any
    access_log: AccessLog | None
    is_costly: Callable[[Head], bool]
    refuse_sender: RefuseSender
    max_body: int
    peer_timeout: float
    min_transfer_rate: int
    responses: ResponseBudget | None

    def opened(self, channel: BridgeConnection) -> bool:
        """Count a new connection; return False if there are too many."""

    def closed_by_client(self, channel: BridgeConnection) -> None:
        """Note that a client has closed a connection, whose `connectionLost` comes later."""

    def closed(self, channel: BridgeConnection) -> None:
        """Count a connection no more."""

    def is_pooled(self, transport: Any) -> bool:
        """Tell whether a proxy may send several clients' requests on this connection."""
        ...

    def refusal(self, refused: Refused, host: str) -> bytes:
        """
        Return the whole response to a request of this address that is not HTTP
        as it should be, and log it.
        """
        ...


class BridgeConnection(WatchedConnection):
    """
    An HTTP/1.1 connection that does not wait or store without bound.

    One request at a time: what arrives behind it waits, unparsed, in
    `_pipelined` until its response is complete and written, and beyond
    `PIPELINED_BYTES` is not read.  What is parsed is a slice of that; the
    requests in it wait in the parser's `ready`.  After a few of them, or a few
    slices, the connection gives way to others (`FairTurns`).

    `streaming` is set while an endless response is written: what a client
    sends behind it can never be answered, and too much of it closes the
    connection.
    """

    site: ConnectionSite
    log = Logger()
    #: A request that waits for its response without a request object; see `FastConnection`.
    pending: Any = None
    #: Made for the first byte; a stream needs none.
    _parser: RequestParser | None = None
    #: Bytes that arrived behind the request that is handled.
    _pipelined = b""
    #: Whether requests are being served: what is left of them is dealt with after that.
    _serving = False
    #: Aborts the connection if a request does not arrive in time.
    _deadline: IDelayedCall | None = None
    #: When the request that is arriving began to.
    _began = 0.0
    #: How much of a body had arrived when its rate was last checked.
    _arrived_before: int | None = None
    #: Whether a refused body is still arriving, behind its response.
    _draining = False
    #: Whether no request is accepted any more: what still arrives is dropped.
    _discarding = False
    _drained = 0
    #: Whether the connection is kept when the response is complete.
    _persistent = True
    #: True once it closes after the response to its next request: its listener is closed.
    leaving = False
    #: The head of the last request; of none once a stream has begun.
    _last_head: Head = NO_HEAD
    #: Bytes that arrived behind an endless response.
    _behind_stream = 0
    _admitted = True
    #: Whether reading is paused because too much is pipelined.
    _reading_paused = False
    #: Has whether the sender of a large body is refused, while that is being found out.
    _sender_check: Deferred[None] | None = None
    _departure_check: Timer | None = None
    #: Aborts the connection if it does not close in time.
    _closing: Timer | None = None
    _idle_check: IDelayedCall | None = None
    _client_connection: ClientConnection | None = None
    #: Calls `connectionLost`, while that waits for its turn because the client has closed it.
    _lose: Callable[[], None] | None = None

    def connectionMade(self) -> None:
        """Count the connection; refuse it if there are too many."""
        super().connectionMade()
        #: 0 where the listener is not on loopback.
        self.loopback = loopback_port(self.transport) or 0
        #: Who is at the other end.
        peer = self.transport.getPeer()
        self.peer: Peer = self.site.clients.peer(peer)
        self._share_of_peer = self.peer.share
        #: The address of the other end, for the access log.
        self.host: str = getattr(peer, "host", "-")
        #: When anything last arrived or was answered.
        self._active_at: float = self.site.clock.seconds()
        self._check_idle_in(IDLE_SECONDS)
        self._admitted = self.site.opened(self)
        if not self._admitted:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Stop all timers, and tell the site last."""
        self._lose = None
        self._set_deadline(None)
        self._stop_idle_check()
        self._drop_unserved()
        self._stop_sender_check()
        self.site.turns.leave(self)
        for timer in (self._departure_check, self._closing):
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

    def dataReceived(self, data: bytes) -> None:
        """Receive bytes of requests, or of a refused body that is dropped."""
        self._active_at = self.site.clock.seconds()
        if self._discarding:
            self._drain(data)
        elif self._pipelined or self.is_busy():
            self._hold(data)
        else:
            self._serve_requests(data)

    def is_busy(self) -> bool:
        """Tell whether a request has no complete response, or too much of one is unsent."""
        return self.pending is not None or self.request is not None or self._transport_full

    # One request after the other.

    def _serve_requests(self, data: bytes) -> None:
        """
        Serve request by request while the last one is done and the
        connection's slice lasts; the rest waits.
        """
        parser = self._parser
        if parser is None:
            parser = self._parser = RequestParser()
        ready = parser.ready
        self._serving = True
        slices = 0
        began = 0.0
        try:
            while True:
                if data and not ready:
                    piece, data = data, b""
                    if len(piece) > SLICE_BYTES:
                        size = parser.slice_size
                        piece, data = piece[:size], piece[size:]
                    parser.feed(piece)
                    if parser.receiving is not None:
                        self._check_body(parser, parser.receiving)
                if ready:
                    if self._deadline is not None:
                        self._set_deadline(None)
                    received = ready.pop(0)
                    if not self.serve(received):
                        ready.insert(0, received)
                        self.site.turns.join(self)
                        break
                if self._discarding or not (ready or data) or self.is_busy():
                    break
                turns = self.site.turns
                if not slices:
                    began = turns.now()
                slices += 1
                if not turns.may_go_on(slices, began):
                    turns.join(self)
                    break
        finally:
            self._serving = False
        if self._discarding:
            self._drop_unserved()
            return
        if data:
            self._pipelined = data + self._pipelined
        if parser.has_begun or self._deadline is not None:
            self._update_deadline(parser)
        elif self.streaming and not ready:
            # A stream is for long, and nothing can follow it.
            parser.close()
            self._parser = None
        if self._pipelined or self._reading_paused:
            self._limit_pipelined()

    def serve(self, received: ReceivedRequest) -> bool:
        """
        Serve a request that is complete or refused: as one of twisted.web.
        Return False, having done nothing, if it has to wait for its turn.
        """
        if received.refusal is not None or not self.site.is_costly(received.head):
            self.serve_ordinary(received)
            return True
        turns = self.site.turns
        if not turns.may_begin():
            return False
        began = turns.now()
        self.serve_ordinary(received)
        turns.took(began)
        return True

    def serve_ordinary(self, received: ReceivedRequest) -> None:
        """Serve a request as one of twisted.web."""
        head = received.head
        refusal = received.refusal
        if refusal is None and received.arrived > self.site.max_body:
            refusal = self._too_large()
        if head is NO_HEAD:
            assert refusal is not None
            self.give_back(received)
            self.transport.write(self.site.refusal(refusal, self.host))
            self.loseConnection()
            return
        self._last_head = head
        request: BridgeRequest = self.site.requestFactory(self)
        self._persistent = head.persistent and received.refusal is None and not self.leaving
        if received.refusal is not None:
            self.give_back(received)
            self._refuse_the_rest()
        if not self._persistent and head.version == b"HTTP/1.1":
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        if refusal is None:
            request.endpoint = self.endpoint_of(head)
        self.request = request
        request.receive(received, refusal)

    def endpoint_of(self, head: Head) -> Endpoint | None:
        """Return what serves a request directly; None if the resources of the site do."""
        return None

    def requestDone(self, request: Any) -> None:
        """Go on with what arrived behind a request whose response is complete."""
        request.let_go()
        self._behind_stream = 0
        self._active_at = self.site.clock.seconds()
        super().requestDone(request)
        if self._persistent:
            self._go_on()
        else:
            self.loseConnection()

    def resumeProducing(self) -> None:
        """Go on when the transport has written what it was given."""
        super().resumeProducing()
        self._go_on()

    def _go_on(self) -> None:
        """Go on with what arrived behind a request, if that is done."""
        if self._serving:
            return
        parser = self._parser
        waits = parser is not None and (parser.ready or parser.has_begun)
        if (self._pipelined or waits) and not self.is_busy():
            data, self._pipelined = self._pipelined, b""
            self._serve_requests(data)
        elif self._reading_paused:
            self._limit_pipelined()

    def _hold(self, data: bytes) -> None:
        """Keep what arrives behind a request, within bounds."""
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

    def _limit_pipelined(self) -> None:
        """Pause reading while more than `PIPELINED_BYTES` wait behind a request."""
        if self.transport.disconnecting:
            # Nothing of it will be served.  TLS goes on reading, for the peer's close_notify.
            self._drop_unserved()
            self._reading_paused = False
            return
        pause = len(self._pipelined) > PIPELINED_BYTES
        if pause:
            self.transport.pauseProducing()
            if self._departure_check is None:
                self._departure_check = Timer(self.site.clock)
            if not self._departure_check.is_running:
                self._departure_check.start(LEFT_SECONDS, self._check_departure)
        elif self._reading_paused and (self.request is not None or not self._transport_full):
            self.transport.resumeProducing()
        self._reading_paused = pause

    def _check_departure(self) -> None:
        """Abort if the client has left: without reading, nothing else tells."""
        if has_left(self.transport):
            self.transport.abortConnection()
        elif self._reading_paused and self._departure_check is not None:
            self._departure_check.start(LEFT_SECONDS, self._check_departure)

    def _has_unserved(self) -> bool:
        """Tell whether anything has arrived that is not served yet."""
        parser = self._parser
        return bool(self._pipelined) or (
            parser is not None and bool(parser.ready or parser.has_begun)
        )

    def _drop_unserved(self) -> None:
        """Drop what has arrived and is not served."""
        self._pipelined = b""
        parser, self._parser = self._parser, None
        if parser is not None:
            for received in (parser.receiving, *parser.ready):
                if received is not None:
                    self.give_back(received)
            parser.close()

    # The body of a request, while it arrives.

    def _check_body(self, parser: RequestParser, receiving: ReceivedRequest) -> None:
        """Count what has arrived of a body, and refuse one that is too large or too much."""
        limit = self.site.max_body
        length = receiving.content_length
        if receiving.arrived > limit or (length is not None and int(length) > limit):
            parser.refuse(self._too_large())
            return
        expected = receiving.arrived if length is None else int(length)
        if expected > LARGE_BYTES and not receiving.sender_checked:
            receiving.sender_checked = True
            refusal = self._refuse_sender(receiving)
            if refusal is not None:
                parser.refuse(refusal)
            if parser.receiving is not receiving:
                return
        size = receiving.arrived - receiving.counted
        if size and not self.count_body(receiving, size):
            parser.refuse(self.site.budget.refusal(size))

    def _refuse_sender(self, receiving: ReceivedRequest) -> Refused | None:
        """Return the refusal of the sender of a body; None if there is none, or not yet."""
        share = self.address_of(receiving)
        found = self.site.refuse_sender(receiving.head, self.end, share)
        if not isinstance(found, Deferred):
            return found
        # Of the request before this one, if its body came sooner than the answer.
        self._stop_sender_check()
        checked = found.addCallback(self._sender_checked, receiving)
        checked.addErrback(lambda failure: self.log.failure("refusing a sender failed", failure))
        if not checked.called:
            self._sender_check = checked
        return None

    def _sender_checked(self, refusal: Refused | None, receiving: ReceivedRequest) -> None:
        self._sender_check = None
        parser = self._parser
        if refusal is not None and parser is not None and parser.receiving is receiving:
            parser.refuse(refusal)
            self._go_on()

    def _stop_sender_check(self) -> None:
        check, self._sender_check = self._sender_check, None
        if check is not None:
            check.cancel()

    def end(self) -> tuple[str | None, bytes | None]:
        """Return the address of the other end, and its client certificate."""
        return end_of(self.transport)

    def count_body(self, received: ReceivedRequest, size: int) -> bool:
        """Count so many bytes more of a body; return False if that is too much."""
        if received.sender is None:
            received.sender = self.address_of(received)
        if not self.site.budget.take(size, received.sender):
            return False
        received.counted += size
        return True

    def give_back(self, received: ReceivedRequest) -> None:
        """Count a body no more."""
        counted, received.counted = received.counted, 0
        if counted:
            self.site.budget.give_back(counted, received.sender)

    def _too_large(self) -> MessageTooLarge:
        return MessageTooLarge(f"a message may have {self.site.max_body} bytes")

    def address_of(self, received: ReceivedRequest) -> str | None:
        """Return the address whose share counts for a request; None if none does."""
        peer = self.peer
        if not peer.proxy:
            return self._share_of_peer
        return self.site.clients.client(peer, received.head.text_values)

    def client_connection(self) -> ClientConnection | None:
        """
        Return this connection, for what may serve it alone; None if it is a
        proxy's, on which several clients' requests may come.
        """
        if self._client_connection is None and not self.site.is_pooled(self.transport):
            self._client_connection = ClientConnection()
        return self._client_connection

    # Streams.

    def stream_begins(self) -> None:
        """Let the stream tell whether its client is there."""
        super().stream_begins()
        self._last_head = NO_HEAD
        self._stop_idle_check()

    def stream_ends(self) -> None:
        """Expect requests again."""
        super().stream_ends()
        if not self._gone:
            self._check_idle_in(IDLE_SECONDS)

    # Called by the reactor.

    def lose_in_turn(self, lose: Callable[[], None]) -> None:
        """
        Lose the connection, which its client has closed, at once or in its turn.

        Hundreds of clients may close theirs at one time, and the end of each takes
        long.  A connection can wait if it is idle, or if its session ends with it.  Any
        other stream must be detached at once: what is written to it would be lost, and
        the client may have come back on another connection already.
        """
        ends_session = self.ends_session and not self._has_unserved()
        if ends_session or self.idle_since() is not None:
            self._lose = lose
            self.site.closed_by_client(self)
            self.site.pacer.run(LOST_CONNECTIONS, lose)
        else:
            lose()

    # Called by `FairTurns`.

    def serve_slice(self) -> None:
        """Go on with what has arrived."""
        self._go_on()

    def fail(self) -> None:
        """Close: serving a request has raised."""
        self.transport.abortConnection()

    # The end.

    def loseConnection(self) -> None:
        """
        Close; where a body is still arriving, only after what was written
        has had a chance to be read: closing at once would reset it.  No
        request that has arrived behind is served any more.
        """
        self._pipelined = b""
        if self._parser is not None and not self._serving:
            self._drop_unserved()
        self._discarding = True
        self.site.turns.leave(self)
        paused = self._reading_paused or self._transport_full
        if paused and not self.transport.disconnecting:
            # To drop the rest of a body.  And TLS reads its peer's close_notify
            # before it closes.
            self.transport.resumeProducing()
        self._reading_paused = False
        if not self._draining:
            super().loseConnection()
            return
        self._stop_idle_check()
        self.transport.unregisterProducer()
        # TLS has no half-close: there the sender reads the response meanwhile.
        half_closeable: Any = IHalfCloseableDescriptor(self.transport, None)
        if half_closeable is not None:
            half_closeable.loseWriteConnection()

    def leave(self, *, quiet_for: float = 0.0) -> None:
        """
        Close once it has been idle for `quiet_for` seconds, now if it has; and otherwise
        after the next response.
        """
        self.leaving = True
        self._persistent = False
        request = self.request
        if request is not None and not request.startedWriting:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        since = None if self._discarding else self.idle_since()
        if since is not None and self.site.clock.seconds() - since >= quiet_for:
            self.loseConnection()

    def drain(self, busy: Collection[str], quiet_for: float) -> None:
        """
        Do the same, as the bridge is about to stop; unless answers of its client may come on
        it: it is idle, and its last request was for one of these sessions.  A proxy may send
        the answers of any client.
        """
        if busy and not self.is_busy() and (self.peer.proxy or self._last_session() in busy):
            return
        self.leave(quiet_for=quiet_for)

    def _last_session(self) -> str:
        """Return the id of the session that its last request was for; empty without one."""
        named = self._last_head.values(b"mcp-session-id")
        found = named[0] if named else self._last_head.target.rpartition(b"sessionId=")[2]
        return found.decode("latin-1")

    def is_unfinished(self) -> bool:
        """
        Tell whether anything is to be served or sent, or may still come in.  A stream that
        nothing is unsent of is not waited for.
        """
        if self.has_unsent() or self._has_unserved():
            return True
        return not (self.streaming if self.is_busy() else self._discarding)

    def _refuse_the_rest(self) -> None:
        """Drop what still arrives of a refused request, for a while."""
        self._draining = self._discarding = True
        self._set_deadline(DRAIN_SECONDS)

    def _drain(self, data: bytes) -> None:
        self._drained += len(data)
        if self._drained > DRAIN_BYTES:
            self.transport.abortConnection()

    def _close_within(self, seconds: float) -> None:
        """Close, and abort the connection if that takes longer."""
        if self._closing is None:
            self._closing = Timer(self.site.clock)
        self._closing.start(seconds, self.transport.abortConnection)
        self.loseConnection()

    # Called by `Connections`.

    def idle_since(self) -> float | None:
        """Return when it was last active; None while a request is begun or its response waits."""
        if self._has_unserved() or self._draining or self.is_busy():
            return None
        return self._active_at

    def give_way(self) -> bool:
        """Close an idle connection; return False if its client has not read the last response."""
        if self.has_unsent():
            return False
        if self._lose is not None:
            self._lose()
            return True
        # TLS waits for its peer to close as well, and another connection needs the capacity.
        # Without a line in the log: that would be one for each connection of a flood.
        self._stop_idle_check()
        self._close_within(GIVE_WAY_SECONDS)
        return True

    # Idleness.  One delayed call, which a message does not touch.

    def _check_idle_in(self, seconds: float) -> None:
        if self._idle_check is None:
            self._idle_check = self.site.clock.callLater(seconds, self._check_idle)

    def _stop_idle_check(self) -> None:
        check, self._idle_check = self._idle_check, None
        if check is not None:
            check.cancel()

    def _check_idle(self) -> None:
        """Close an idle connection; while a response is unsent, `ClientWatch` decides."""
        self._idle_check = None
        left = self._active_at + IDLE_SECONDS - self.site.clock.seconds()
        if left > 0:
            self._check_idle_in(left)
        elif self.pending is not None or self.request is not None or self._draining:
            self._check_idle_in(IDLE_SECONDS)
        elif self.has_unsent():
            self._watch_response()
            self._check_idle_in(IDLE_SECONDS)
        else:
            self._close_within(ABORT_SECONDS)

    # A request that has begun must be complete in time.

    def _update_deadline(self, parser: RequestParser) -> None:
        """Start the deadline of a request that has begun, or stop that of one that is complete."""
        if self.is_busy() or parser.ready or not parser.has_begun:
            self._set_deadline(None)
            return
        receiving = parser.receiving
        if receiving is not None and receiving.head.expects_continue and not receiving.continued:
            # The client may hold the body back until it is asked (RFC 9110, section 10.1.1).
            receiving.continued = True
            if not receiving.arrived:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._deadline is None:
            self._began = self.site.clock.seconds()
            self._arrived_before = None
            self._set_deadline(HEAD_SECONDS)

    def _sends_enough(self, receiving: ReceivedRequest) -> bool:
        """Tell whether the body has arrived at `min_transfer_rate` since the last check."""
        before, self._arrived_before = self._arrived_before, receiving.arrived
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
        receiving = None if self._parser is None else self._parser.receiving
        if not self._draining and receiving is not None:
            left = self._began + REQUEST_SECONDS - self.site.clock.seconds()
            if left > 0 and self._sends_enough(receiving):
                self._set_deadline(min(left, RATE_SECONDS))
                return
        self.transport.abortConnection()
