"""
The connection with a fast path: a fast request is answered from its bytes,
every other one as a request of twisted.web, on the same connection, in any order.

Which requests are fast is for `fast_path`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.guard import guarded
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, WHOLE_BYTES
from mcpbridge.twisted_internals import (
    AT_ONCE_BYTES,
    prompt_descriptor,
    write_at_once,
    write_large,
)
from mcpbridge.web.access_log import AccessLog, LoggedRequest
from mcpbridge.web.connection import BridgeConnection
from mcpbridge.web.endpoints import Endpoint
from mcpbridge.web.fast_path import NOT_YET, FastRequest, NotFastAfterAll
from mcpbridge.web.pending_response import PendingExchange, PendingStream
from mcpbridge.web.request_parser import Head, ReceivedRequest
from mcpbridge.web.watched_connection import CONNECTION_DONE

_STATUS = slice(len("HTTP/1.1 "), len("HTTP/1.1 200"))
_END = b"\r\n\r\n"


class FastConnection(BridgeConnection):
    """
    A connection whose site has a fast path.

    A request is answered here at once, or is `pending` until its first message
    is there, or goes to twisted.web.  The last is possible as long as nothing
    is written, also after some time: see `hand_over`.
    """

    _descriptor: Any = None
    #: The `cache_key` of the last request's head, and what the fast path made of it.
    _last_key: object = None
    _last_request: FastRequest | None = None
    #: What the access log shows of it, once a line was needed.
    _logged: LoggedRequest | None = None
    #: A fast request that waits for its response.
    pending: PendingStream | PendingExchange | None = None
    #: The request that is being answered or is pending.
    _received: ReceivedRequest | None = None
    #: When it has waited so long that it gets an event stream.
    _commit_at = 0.0
    _commit_call: IDelayedCall | None = None
    #: As what the request was admitted that is handed over just now.
    admitted: Access | None = None
    #: A pending request on its way to its endpoint; see `take_handed_over`.
    _handed_over: PendingStream | PendingExchange | None = None

    def connectionMade(self) -> None:
        """Begin between requests."""
        self._descriptor = prompt_descriptor(self.transport)
        super().connectionMade()

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Detach what is pending."""
        self._release_body()
        commit, self._commit_call = self._commit_call, None
        if commit is not None:
            commit.cancel()
        pending, self.pending = self.pending, None
        if pending is not None:
            guarded(self.log, "giving up a request", pending.detach)
        super().connectionLost(reason)

    def stream_begins(self) -> None:
        """Keep nothing of the last request: a stream is for long."""
        super().stream_begins()
        self._last_request = self._logged = self._last_key = None

    def settings_changed(self) -> None:
        """Look anew at the next request, also if it has the same head as the last one."""
        self._last_key = None

    def requestDone(self, request: Any) -> None:
        """Release the body of a request that was handed over."""
        self._release_body()
        super().requestDone(request)

    def serve(self, received: ReceivedRequest) -> bool:
        """Answer a request here if it is a fast one; others as `BridgeConnection`."""
        head = received.head
        request = self._last_request
        if (head.cache_key is not self._last_key or self.leaving) or (
            request is not None
            and request.access is not ANYBODY
            and request.access.fresh_until <= self.site.clock.seconds()
        ):
            # Most clients send the same head again and again, or one that differs in a trace.
            request = None
            if not self.leaving:
                request = self.site.fast_path.recognise(head, self.loopback or None, self.end)
            self._last_request = request
            self._logged = None
            self._last_key = head.cache_key
        self._last_head = head
        if request is None or request.access is NOT_YET or received.refusal is not None:
            return self._refuse_stream(received) or super().serve(received)
        size = received.arrived
        # A larger body is parsed in slices, as one of twisted.web.
        large = LARGE_BYTES if request.streamable else WHOLE_BYTES
        budget = self.site.budget
        if not 0 < size <= min(self.site.max_body, large) or (
            # What has arrived at once is not counted, but refused alike.
            budget.used and not budget.has_room(size - received.counted, self.address_of(received))
        ):
            return super().serve(received)
        self._received = received
        try:
            if request.streamable:
                self._post(request, received)
            else:
                self._write(self.site.fast_path.answer(request, received.body, self))
                self._release_body()
        except NotFastAfterAll:
            self._received = None
            return super().serve(received)
        return True

    def serve_ordinary(self, received: ReceivedRequest) -> None:
        """End a session for a `DELETE` here, if it is plain; others as `BridgeConnection`."""
        if received.refusal is None and not received.arrived and not self.leaving:
            head = received.head
            ended = self.site.fast_path.end_session(
                head, self.loopback or None, self.end, partial(self._address_of_client, head)
            )
            if ended is not None:
                self._write(ended)
                return
        super().serve_ordinary(received)

    def endpoint_of(self, head: Head) -> Endpoint | None:
        """Return what serves a request directly; see `FastPath.endpoint`."""
        endpoint: Endpoint | None = self.site.fast_path.endpoint(head, self.loopback or None)
        return endpoint

    def _refuse_stream(self, received: ReceivedRequest) -> bool:
        """Refuse `GET /sse` cheaply while no session can be opened; return False otherwise."""
        head = received.head
        if head.method != b"GET" or received.refusal is not None or received.arrived:
            return False
        if self.leaving:
            return False
        self._received = received
        refusal = self.site.fast_path.refuse_stream(
            head, self.loopback or None, self.client_address, self.end, self
        )
        self._received = None
        if refusal is None:
            return False
        self._write(refusal)
        return True

    def _post(self, request: FastRequest, received: ReceivedRequest) -> None:
        """Answer a message to `/mcp`, or make it the pending one.  Raises `NotFastAfterAll`."""
        response = self.site.fast_path.post(request, received, self)
        if isinstance(response, bytes):
            self._write(response)
            self._release_body()
        elif not isinstance(response, PendingExchange):
            self._release_body()
            self.pending = response
            self._commit_later(COMMIT_SECONDS)
        else:
            # It has all of its request until its response is written.
            if not self.count_body(received, received.arrived - received.counted):
                raise NotFastAfterAll
            self.pending = response
            response.begin()

    def _release_body(self) -> None:
        """Let go of the body of the request that was answered or is pending."""
        received, self._received = self._received, None
        if received is not None and received.counted:
            self.give_back(received)

    def audited_address(self) -> str | None:
        """Return the address of the client of the last request; None if it is unknown."""
        return self._address_of_client(self._last_head)

    def traceparent(self) -> str | None:
        """Return the `traceparent` of the last request, if it has one."""
        return next(iter(self._last_head.text_values("traceparent")), None)

    def _address_of_client(self, head: Head) -> str | None:
        return self.site.clients.address_behind(self.transport.getPeer(), head.text_values)

    def client_address(self) -> str | None:
        """Return the address whose share counts for the last request; None if none does."""
        received = self._received
        return self._share_of_peer if received is None else self.address_of(received)

    def _write(self, response: bytes, large_body: bytes = b"") -> None:
        """Write a response, whose body is separate if it is large, so that it is not copied."""
        size = len(response) + len(large_body)
        log = self.site.access_log
        if log is not None:
            self._log(log, response, size)
        if self._descriptor is None:
            self.transport.write(response)
        elif write_at_once(self._descriptor, response) and not large_body:
            return
        if large_body:
            self.write(large_body)
        self._watch_response(size)

    def write_pieces(self, pieces: list[bytes]) -> None:
        """Write the next bytes of a response: small ones at once, large ones without a copy."""
        descriptor = self._descriptor
        if descriptor is None:
            super().write_pieces(pieces)
        elif sum(map(len, pieces)) <= AT_ONCE_BYTES:
            write_at_once(descriptor, b"".join(pieces))
        else:
            for piece in pieces:
                if len(piece) > AT_ONCE_BYTES:
                    write_large(descriptor, piece)
                else:
                    descriptor.write(piece)

    def _log(self, log: AccessLog, response: bytes, size: int) -> None:
        line = self._logged
        if line is None:
            head = self._last_head
            named = head.values(b"mcp-session-id")
            line = LoggedRequest.of(
                self.host, head.method, head.target, named[0] if named else None
            )
            self._logged = line
        log.add(line, int(response[_STATUS]), size - response.index(_END) - len(_END))

    # Responses that come later: PendingConnection.

    def respond(self, response: bytes, large_body: bytes = b"") -> None:
        """Write the whole response to the pending request; a large body is separate."""
        pending, self.pending = self.pending, None
        self.share = None if pending is None else pending.share
        self._release_body()
        self._active_at = self.site.clock.seconds()
        if self.leaving:
            status, _, rest = response.partition(b"\r\n")
            response = b"%b\r\nConnection: close\r\n%b" % (status, rest)
        self._write(response, large_body)
        self.share = None
        if self.leaving:
            self.loseConnection()
        else:
            self._go_on()

    def queued(self) -> None:
        """Commit later: if a queued request fails, its error has a status of its own."""
        request = self._last_request
        if request is not None:
            self._commit_later(request.server.settings.queue_timeout + COMMIT_SECONDS)

    def assigned(self, exchange: PendingExchange) -> None:
        """Commit a request that a process has after `COMMIT_SECONDS`."""
        if self.pending is exchange:
            self._commit_later(COMMIT_SECONDS)

    def hand_over(self) -> None:
        """
        Hand the pending request over to twisted.web, for a response of more
        than one message.

        twisted.web gets the same head, without a body; the endpoint asks for
        what was pending (`take_handed_over`), and takes it over before this
        returns.
        """
        if self.pending is None or self.transport.disconnecting:
            return
        self._handed_over, self.pending = self.pending, None
        self.admitted = self._last_request and self._last_request.access
        serving, self._serving = self._serving, True
        try:
            self.serve_ordinary(ReceivedRequest(self._last_head))
        finally:
            self._serving = serving
            left, self._handed_over = self._handed_over, None
            self.admitted = None
            if left is not None:
                # Nobody has taken it over, as with other settings it would be refused now.  What
                # still comes for it must not be written: another request may wait here.
                guarded(self.log, "giving up a request", left.give_up)
        self._go_on()

    def take_handed_over(self) -> PendingStream | PendingExchange | None:
        """Return what the request that twisted.web handles now is to take over, if anything."""
        handed_over, self._handed_over = self._handed_over, None
        return handed_over

    def _commit_later(self, seconds: float) -> None:
        """
        Answer the pending request with an event stream if it still has no
        response after so many seconds.

        One timer serves all requests of a connection: a response does not stop
        it, so that a message costs no delayed call, and when it fires it finds
        another request, or none.
        """
        self._commit_at = self.site.clock.seconds() + seconds
        if self._commit_call is None:
            self._commit_call = self.site.clock.callLater(COMMIT_SECONDS, self._commit)

    def _commit(self) -> None:
        self._commit_call = None
        if self.pending is None:
            return
        left = self._commit_at - self.site.clock.seconds()
        if left > 0:
            # Never later than the next request may need it.
            soon = min(left, COMMIT_SECONDS)
            self._commit_call = self.site.clock.callLater(soon, self._commit)
        else:
            self.hand_over()
