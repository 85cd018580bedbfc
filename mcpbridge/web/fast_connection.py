"""
The connection with the front before it: plain requests are answered from the
bytes at hand, everything else goes to the ordinary channel, on the same
connection, at any request.

Knows where requests begin and end; what is plain is for `fast_path`.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.guard import guarded
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, WHOLE_BYTES
from mcpbridge.transports import prompt_descriptor, write_at_once
from mcpbridge.web.client_addresses import ClientAddresses, in_head
from mcpbridge.web.connection import BridgeConnection
from mcpbridge.web.fast_path import FastPath, FastRequest, NotFastAfterAll
from mcpbridge.web.pending_exchange import PendingExchange
from mcpbridge.web.pending_response import PendingResponse
from mcpbridge.web.watched_connection import CONNECTION_DONE

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[^\r]*")


class FastConnection(BridgeConnection):
    """
    A connection whose site has a front.

    At any time it is in one of four states: between requests; a plain
    request's body is `_arriving`; one is `_waiting` for its answer; or the
    ordinary channel has a request.
    """

    __slots__ = ("_descriptor", "_last_head", "_last_plain", "_pieces")

    _descriptor: Any
    #: The head of the last request, and what it was recognised as.
    _last_head: bytes
    _last_plain: FastRequest | None
    #: A plain request whose body is arriving, in pieces.
    _arriving: FastRequest | None = None
    _missing = 0
    _held = 0
    #: The address whose share that, or what is at work, counts against.
    _sender: str | None = None
    _pieces: list[bytes]
    #: What the request that waits, or was handed over, holds of the budget.
    _working = 0
    #: A plain request that waits for its answer.
    _waiting: PendingResponse | PendingExchange | None = None
    #: When it has waited for long.
    _due = 0.0
    _commit_call: IDelayedCall | None = None
    #: What the endpoint of Streamable HTTP takes over of a plain request.
    handed_over: PendingResponse | PendingExchange | None = None

    def connectionMade(self) -> None:
        """Nothing has arrived."""
        self._descriptor = prompt_descriptor(self.transport)
        self._last_head, self._last_plain = b"", None
        self._pieces = []
        super().connectionMade()

    def _is_busy(self) -> bool:
        return self._waiting is not None or self._handlingRequest or self._waitingForTransport

    def _take(self, data: bytes) -> None:
        """Bytes for the front, or from the first request on that is not plain for twisted.web."""
        if self._is_between_requests():
            data = self._serve_plain(self.site.fast_path, data)
            if not data:
                self.resetTimeout()
                return
        super()._take(data)

    def timeoutConnection(self) -> None:
        """Idle for too long; what waits for an answer is not idle."""
        if self._waiting is not None:
            self.setTimeout(self.timeOut)
        else:
            super().timeoutConnection()

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Gone, with what was arriving or waiting."""
        self._let_go()
        self._done()
        commit, self._commit_call = self._commit_call, None
        if commit is not None:
            commit.cancel()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            guarded(self.log, "giving up a request", waiting.detach)
        super().connectionLost(reason)

    def _in_body(self) -> bool:
        return self._arriving is not None or super()._in_body()

    def _is_between_requests(self) -> bool:
        """Whether the ordinary channel has nothing at all of a request."""
        return bool(
            self.line_mode
            and self.persistent
            and not (self.requests or self._buffer or self._draining)
            # Within it nothing could be handed over.
            and not self._busyReceiving
        )

    def _arrived_of_body(self) -> int:
        return self._held if self._arriving is not None else super()._arrived_of_body()

    # Requests.

    def _serve_plain(self, fast_path: FastPath, data: bytes) -> bytes:
        """
        Answer one plain request at once, and leave what is behind it for
        later; return what is left to the ordinary channel, from the first byte
        of a request on.
        """
        while data:
            fast_request = self._arriving
            if fast_request is not None:
                piece = data[: self._missing]
                if not self.site.budget.take(len(piece), self._sender):
                    # Whose answer it is that there is no room.
                    arrived = b"".join(self._pieces)
                    self._let_go()
                    return b"%b\r\n\r\n%b%b" % (self._last_head, arrived, data)
                self._held += len(piece)
                data = data[self._missing :]
                self._pieces.append(piece)
                self._missing -= len(piece)
                if self._missing:
                    break
                body = b"".join(self._pieces)
                self._let_go()
            else:
                end = data.find(b"\r\n\r\n") + 4
                fast_request = self._recognise(fast_path, data[: end - 4]) if end > 3 else None
                if fast_request is None:
                    refusal = self._refuse_stream(fast_path, data, end)
                    if refusal is None:
                        return data
                    self._later = data[end:]
                    self._write(refusal)
                    return b""
                if len(data) - end < fast_request.length:
                    self._arriving, self._missing = fast_request, fast_request.length
                    self._sender = self._client()
                    data = data[end:]
                    continue
                body = data[end : end + fast_request.length]
                budget = self.site.budget
                if budget.used and not budget.has_room(fast_request.length, self._client()):
                    # What has arrived at once is not counted, but refused alike.
                    return data
                data = data[end + fast_request.length :]
            if self._deadline is not None:
                self._set_deadline(None)
            self._later = data
            try:
                if not fast_request.streamable:
                    self._write(fast_path.answer(fast_request, body))
                    return b""
                answer = fast_path.post(
                    fast_request,
                    body,
                    self._answered,
                    self._hand_over,
                    self._client,
                    self.client_connection,
                )
            except NotFastAfterAll:
                self._later = b""
                return self._last_head + b"\r\n\r\n" + body + data
            if isinstance(answer, bytes):
                self._write(answer)
                return b""
            if not isinstance(answer, PendingExchange):
                self._waiting = answer
                self._commit_later(COMMIT_SECONDS)
                return b""
            # It has all of its request until its answer is out.
            client = self._client()
            if not self.site.budget.take(len(body), client):
                self._later = b""
                return b"%b\r\n\r\n%b%b" % (self._last_head, body, data)
            self._working, self._sender = len(body), client
            self._waiting = answer
            # An error of those who wait in line has a status of its own.
            self._commit_later(fast_request.server.settings.queue_timeout + COMMIT_SECONDS)
            self._begin(answer)
            return b""
        return b""

    def _refuse_stream(self, fast_path: FastPath, data: bytes, end: int) -> bytes | None:
        """Under a flood of clients for whom there is no room, saying so is to be cheap."""
        if end < 4 or not data.startswith(b"GET "):
            return None
        return fast_path.refuse_stream(data[: end - 4], self.loopback or None, self._client)

    def _recognise(self, fast_path: FastPath, head: bytes) -> FastRequest | None:
        """A client writes the same head again and again."""
        if head != self._last_head:
            fast_request = fast_path.recognise(head, self.loopback or None)
            if fast_request is not None:
                # A larger body is read in slices: the ordinary channel waits for that.
                large = LARGE_BYTES if fast_request.streamable else WHOLE_BYTES
                if fast_request.length > min(self.site.max_body, large):
                    fast_request = None
            self._last_head, self._last_plain = head, fast_request
        return self._last_plain

    def _client(self) -> str | None:
        """The address whose share the last request counts against; None: nobody's."""
        peer = self.peer
        if not peer.proxy:
            return peer.share
        clients: ClientAddresses = self.site.clients
        return clients.client(peer, in_head(self._last_head))

    def _let_go(self) -> None:
        """Of the pieces of a body."""
        if self._arriving is not None:
            self.site.budget.give_back(self._held, self._sender)
            self._held = 0
            self._arriving = None
            self._pieces = []

    def _done(self) -> None:
        """With the request that was at work."""
        working, self._working = self._working, 0
        if working:
            self.site.budget.give_back(working, self._sender)

    def requestDone(self, request: Any) -> None:
        """What was handed over is done, or a request of the ordinary channel's own."""
        self._done()
        super().requestDone(request)

    def _write(self, answer: bytes) -> None:
        if self._descriptor is None:
            self.transport.write(answer)
            self._answer_waits(len(answer))
        elif not write_at_once(self._descriptor, answer):
            self._answer_waits(len(answer))

    # Answers that come later.

    def _begin(self, exchange: PendingExchange) -> None:
        """Have it worked on; its answer may be there when this returns."""

        def begun() -> None:
            if self._waiting is exchange:
                self._commit_later(COMMIT_SECONDS)

        exchange.begin(begun)

    def _answered(self, answer: bytes) -> None:
        """All of the answer to a request that waited for it."""
        waiting, self._waiting = self._waiting, None
        self.share = waiting.streamable.share if isinstance(waiting, PendingResponse) else None
        if self._working:
            self._done()
        self._write(answer)
        self.share = None
        self._go_on()

    def _hand_over(self) -> None:
        """
        More than one message is to be written: the ordinary channel gets the
        same head without a body, and its endpoint takes over what waits.
        """
        if self._waiting is None or self.transport.disconnecting:
            return
        self.handed_over, self._waiting = self._waiting, None
        taking, self._taking = self._taking, True
        try:
            super()._take(_LENGTH.sub(b"", self._last_head) + b"\r\n\r\n")
        finally:
            self._taking = taking
            # Taken over by now, or by nobody: not by another request.
            self.handed_over = None
        self._go_on()

    def _commit_later(self, patience: float) -> None:
        """
        A request that has no answer for long is answered with events.  One
        timer for all of a connection's requests: it is not stopped when there
        is an answer, but finds another request, or none.
        """
        self._due = self.site.clock.seconds() + patience
        if self._commit_call is None:
            self._commit_call = self.site.clock.callLater(COMMIT_SECONDS, self._commit)

    def _commit(self) -> None:
        self._commit_call = None
        if self._waiting is None:
            return
        left = self._due - self.site.clock.seconds()
        if left > 0:
            # Never later than the next request may need it.
            soon = min(left, COMMIT_SECONDS)
            self._commit_call = self.site.clock.callLater(soon, self._commit)
        else:
            self._hand_over()
