"""
The connection with a fast path: a fast request is answered from the bytes at
hand, every other one by twisted.web, on the same connection, in any order.

Knows where requests begin and end; which of them are fast is for `fast_path`.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.guard import guarded
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, WHOLE_BYTES
from mcpbridge.twisted_internals import prompt_descriptor, write_at_once
from mcpbridge.web.client_addresses import ClientAddresses, in_head
from mcpbridge.web.connection import BridgeConnection
from mcpbridge.web.fast_path import FastPath, FastRequest, NotFastAfterAll
from mcpbridge.web.pending_response import PendingExchange, PendingStream
from mcpbridge.web.watched_connection import CONNECTION_DONE

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[^\r]*")


class FastConnection(BridgeConnection):
    """
    A connection whose site has a fast path.

    At any time it is in one of four states: between requests; the body of a
    fast request is `arriving`; a fast request is `pending`, without its
    response; or twisted.web has a request.  `_parse` decides which of both
    gets the bytes of the next request, and never changes its mind within one:
    `_serve_fast` either serves a whole request or returns it, from its first
    byte on.
    """

    __slots__ = ("_descriptor", "_last_head", "_last_request", "_pieces")

    _descriptor: Any
    #: The head of the last request, and what the fast path made of it.
    _last_head: bytes
    _last_request: FastRequest | None
    #: A fast request whose body is arriving, in pieces.
    arriving: FastRequest | None = None
    _pieces: list[bytes]
    _arrived = 0
    _missing = 0
    #: The address whose share counts for that body, or for the request in work.
    _sender: str | None = None
    #: Bytes of the budget that a request holds which is pending or was handed over.
    _working = 0
    #: A fast request that waits for its response.
    pending: PendingStream | PendingExchange | None = None
    #: When it has waited so long that it gets an event stream.
    _commit_at = 0.0
    _commit_call: IDelayedCall | None = None
    #: A pending request on its way to its endpoint; see `take_handed_over`.
    _handed_over: PendingStream | PendingExchange | None = None

    def connectionMade(self) -> None:
        """Begin between requests."""
        self._descriptor = prompt_descriptor(self.transport)
        self._last_head, self._last_request = b"", None
        self._pieces = []
        super().connectionMade()

    def _parse(self, data: bytes) -> None:
        """Give bytes to the fast path, and from the first other request on to twisted.web."""
        if not self._draining and self.is_between_requests():
            data = self._serve_fast(self.site.fast_path, data)
            if not data:
                self.resetTimeout()
                return
        super()._parse(data)

    def timeoutConnection(self) -> None:
        """Close an idle connection; one with a pending request is not idle."""
        if self.pending is not None:
            self.setTimeout(self.timeOut)
        else:
            super().timeoutConnection()

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Drop what is arriving, and detach what is pending."""
        self._release_body()
        self._release_working()
        commit, self._commit_call = self._commit_call, None
        if commit is not None:
            commit.cancel()
        pending, self.pending = self.pending, None
        if pending is not None:
            guarded(self.log, "giving up a request", pending.detach)
        super().connectionLost(reason)

    def requestDone(self, request: Any) -> None:
        """Release what a request held that was handed over."""
        self._release_working()
        super().requestDone(request)

    def _arrived_of_body(self) -> int:
        return self._arrived if self.arriving is not None else super()._arrived_of_body()

    # The next request, from its head to its response.

    def _serve_fast(self, fast_path: FastPath, data: bytes) -> bytes:
        """
        Serve one fast request, and leave what is behind it to `_pipelined`.
        Return what is for twisted.web, from the first byte of a request on.
        """
        if self.arriving is not None:
            return self._receive_body(fast_path, self.arriving, data)
        end = data.find(b"\r\n\r\n") + 4
        request = self._recognise(fast_path, data[: end - 4]) if end > 3 else None
        if request is None:
            return self._refuse_stream(fast_path, data, end)
        behind = end + request.length
        if len(data) < behind:
            self.arriving, self._missing = request, request.length
            self._sender = self.client_address()
            data = data[end:]
            return self._receive_body(fast_path, request, data) if data else b""
        budget = self.site.budget
        if budget.used and not budget.has_room(request.length, self.client_address()):
            # What has arrived at once is not counted, but refused alike.
            return data
        return self._answer(fast_path, request, data[end:behind], data[behind:])

    def _recognise(self, fast_path: FastPath, head: bytes) -> FastRequest | None:
        """Read a head, unless it is the last one again, as it is for most clients."""
        if head != self._last_head:
            request = fast_path.recognise(head, self.loopback or None)
            if request is not None:
                # A larger body is parsed in slices: twisted.web's request waits for that.
                large = LARGE_BYTES if request.streamable else WHOLE_BYTES
                if request.length > min(self.site.max_body, large):
                    request = None
            self._last_head, self._last_request = head, request
        return self._last_request

    def _refuse_stream(self, fast_path: FastPath, data: bytes, end: int) -> bytes:
        """Refuse `GET /sse` cheaply while no session can be opened; return other requests."""
        if end < 4 or not data.startswith(b"GET "):
            return data
        refusal = fast_path.refuse_stream(
            data[: end - 4], self.loopback or None, self.client_address
        )
        if refusal is None:
            return data
        self._pipelined = data[end:]
        self._write(refusal)
        return b""

    def _receive_body(self, fast_path: FastPath, request: FastRequest, data: bytes) -> bytes:
        """Receive some of the body of `arriving`, and answer the request when that is all."""
        missing = self._missing
        piece = data[:missing]
        if not self.site.budget.take(len(piece), self._sender):
            # twisted.web refuses it, with what has arrived so far.
            arrived = b"".join(self._pieces)
            self._release_body()
            return self._last_request_with(arrived + data)
        self._pieces.append(piece)
        self._arrived += len(piece)
        self._missing -= len(piece)
        if self._missing:
            return b""
        body = b"".join(self._pieces)
        self._release_body()
        return self._answer(fast_path, request, body, data[missing:])

    def _answer(
        self, fast_path: FastPath, request: FastRequest, body: bytes, behind: bytes
    ) -> bytes:
        """Answer a complete request, or make it the pending one; return one that is not fast."""
        if self._deadline is not None:
            self._set_deadline(None)
        self._pipelined = behind
        try:
            if not request.streamable:
                self._write(fast_path.answer(request, body))
                return b""
            response = fast_path.post(request, body, self)
        except NotFastAfterAll:
            self._pipelined = b""
            return self._last_request_with(body + behind)
        if isinstance(response, bytes):
            self._write(response)
        elif not isinstance(response, PendingExchange):
            self.pending = response
            self._commit_later(COMMIT_SECONDS)
        else:
            # It has all of its request until its response is written.
            client = self.client_address()
            if not self.site.budget.take(len(body), client):
                self._pipelined = b""
                return self._last_request_with(body + behind)
            self._working, self._sender = len(body), client
            self.pending = response
            # An error of a queued request has a status of its own.
            self._commit_later(request.server.settings.queue_timeout + COMMIT_SECONDS)
            response.begin()
        return b""

    def _last_request_with(self, data: bytes) -> bytes:
        """Put the head of the last request back before its body and what is behind that."""
        return b"%b\r\n\r\n%b" % (self._last_head, data)

    def client_address(self) -> str | None:
        """Return the address whose share counts for the last request; None if none does."""
        peer = self.peer
        if not peer.proxy:
            return peer.share
        clients: ClientAddresses = self.site.clients
        return clients.client(peer, in_head(self._last_head))

    def _release_body(self) -> None:
        """Let go of the pieces of a body."""
        if self.arriving is not None:
            self.site.budget.give_back(self._arrived, self._sender)
            self._arrived = 0
            self.arriving = None
            self._pieces = []

    def _release_working(self) -> None:
        """Let go of what the pending or handed-over request held of the budget."""
        working, self._working = self._working, 0
        if working:
            self.site.budget.give_back(working, self._sender)

    def _write(self, response: bytes) -> None:
        if self._descriptor is None:
            self.transport.write(response)
            self._watch_response(len(response))
        elif not write_at_once(self._descriptor, response):
            self._watch_response(len(response))

    # Responses that come later: PendingConnection.

    def respond(self, response: bytes) -> None:
        """Write all of the response to the pending request."""
        pending, self.pending = self.pending, None
        self.share = None if pending is None else pending.share
        if self._working:
            self._release_working()
        self._write(response)
        self.share = None
        self._parse_pipelined()

    def assigned(self, exchange: PendingExchange) -> None:
        """Give a request that is not queued any more as long as others have."""
        if self.pending is exchange:
            self._commit_later(COMMIT_SECONDS)

    def hand_over(self) -> None:
        """
        Hand the pending request over to twisted.web, for a response of more
        than one message.

        twisted.web parses the same head again, without a body; the endpoint
        asks for what was pending (`take_handed_over`), and takes it over before
        this returns.
        """
        if self.pending is None or self.transport.disconnecting:
            return
        self._handed_over, self.pending = self.pending, None
        parsing, self._parsing = self._parsing, True
        try:
            super()._parse(_LENGTH.sub(b"", self._last_head) + b"\r\n\r\n")
        finally:
            self._parsing = parsing
            # Taken over by now, or by nobody: not by another request.
            self._handed_over = None
        self._parse_pipelined()

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
