"""
The response to a fast request, while its first message is awaited.

Most often that message is all of it, and is written without a request object of
twisted.web; otherwise the request is handed over to twisted.web, and a
`Response` takes this one's place.  Knows one stream or one exchange; must not
know sockets, nor how a response is written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.auth.access import Access
from mcpbridge.errors import Refused
from mcpbridge.mcp.header_validation import Headers
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.stream_events import Event, StreamSink
from mcpbridge.processes.audited_calls import AuditedRequest
from mcpbridge.processes.measured_calls import MeasuredRequest
from mcpbridge.response_budget import Share
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.exchange import Exchange, ExchangeSink, Work
from mcpbridge.tracing.tracing import RequestSpans


class PendingConnection(Protocol):
    """The connection of a pending response; a `FastConnection`."""

    def respond(self, response: bytes, large_body: bytes = b"") -> None:
        """Write the whole response to the pending request; a large body is separate."""

    def hand_over(self) -> None:
        """
        Hand the pending request over to twisted.web, whose endpoint calls
        `take_over` before this returns; not if the connection is closing.
        """

    def queued(self) -> None:
        """Note that the pending request is queued."""

    def assigned(self, exchange: PendingExchange) -> None:
        """Note that the request of an exchange has a process, or has been answered."""

    def client_address(self) -> str | None:
        """Return the address whose share counts for the request; None if none does."""

    def audited_address(self) -> str | None:
        """Return the address of the client itself, for the audit log; None if it is unknown."""

    def traceparent(self) -> str | None:
        """Return the `traceparent` of the HTTP request, if it has one."""

    def client_connection(self) -> ClientConnection | None:
        """Return the client's connection; None if it is a proxy's, for several clients."""


class ResponseEncoder(Protocol):
    """The bytes of whole responses; a `FastPath`."""

    def json_response(self, line: bytes) -> tuple[bytes, bytes]:
        """
        Return the head and the body of a response that is one message of a session; a
        small body is in the same bytes as the head, and the second part empty.
        """
        ...

    def exchange_response(self, line: bytes) -> tuple[bytes, bytes]:
        """Return a response that is the answer of an exchange, with its status, in two parts."""
        ...

    def exchange_error(self, refusal: Refused) -> bytes:
        """Return a response that is an error of an exchange."""
        ...


#: Has a process work on a request with these headers.  Returns None if a process has it or it
#: has been answered, and otherwise a coroutine that waits for a process and raises nothing
#: but `CancelledError`.
StartWork = Callable[[Exchange, Headers], Work | None]
Sink = TypeVar("Sink", StreamSink, ExchangeSink)


class PendingResponse(ABC, Generic[Sink]):
    """Stands in for a response until its first message is there."""

    #: What the session of the response may hold unsent; None if nothing is counted.
    share: Share | None = None

    def __init__(self, connection: PendingConnection, encoder: ResponseEncoder) -> None:
        self._connection = connection
        self._encoder = encoder
        self._response: Sink | None = None

    def take_over(self, response: Sink) -> None:
        """Write to this response from now on."""
        self._response = response

    @abstractmethod
    def detach(self) -> None:
        """Be told that the connection is lost."""

    def give_up(self) -> None:
        """Be told that the request has been answered otherwise: write nothing any more."""
        self._response = self._no_reader()
        self.detach()

    @abstractmethod
    def _no_reader(self) -> Sink:
        """Return a sink that writes nothing."""

    def _handed_over(self) -> Sink | None:
        """Return the response of twisted.web's request; None if the connection is closing."""
        if self._response is None:
            self._connection.hand_over()
        return self._response


class PendingStream(PendingResponse[StreamSink]):
    """The pending response to a request of a session: the sink of one of its streams."""

    def __init__(
        self,
        streamable: StreamableSession,
        connection: PendingConnection,
        encoder: ResponseEncoder,
    ) -> None:
        super().__init__(connection, encoder)
        self.streamable = streamable
        self.share = streamable.share
        self.stream = ""

    def detach(self) -> None:
        """Detach the connection, which is lost, from the stream."""
        self.streamable.router.detach(self.stream, self)
        # From now on the session may be idle.
        self.streamable.touch()

    def _no_reader(self) -> StreamSink:
        return _NoReader()

    # Called by the router: StreamSink.

    @property
    def takes_events(self) -> bool:
        """As of the response that takes over; a fast request accepts JSON and events."""
        return self._response is None or self._response.takes_events

    def answer(self, line: bytes) -> bool:
        """Write a message as all of the response, unless that has become an event stream."""
        if self._response is not None:
            return self._response.answer(line)
        self._connection.respond(*self._encoder.json_response(line))
        return True

    def send(self, events: list[Event], final: bool) -> None:
        """Write the first of several messages, or an error at the session's end."""
        if self._response is None and final and len(events) == 1:
            self._connection.respond(*self._encoder.json_response(events[0].line))
        else:
            self._sink().send(events, final)

    def end(self) -> None:
        """Complete the response; nothing more comes."""
        self._sink().end()

    def unwritten(self) -> int:
        """Return 0: this carries no GET stream."""
        return 0

    def displaced(self) -> None:
        """Complete the response: another connection has the stream."""
        self._sink().displaced()

    def _sink(self) -> StreamSink:
        response = self._handed_over()
        if response is None:
            response = self._response = _NoReader()
        return response


class _NoReader:
    """The sink of a stream whose connection is closing."""

    takes_events = False

    def answer(self, line: bytes) -> bool:
        """Return False, so that the message is kept for a client that comes back."""
        return False

    def send(self, events: list[Event], final: bool) -> None:
        """Do nothing: the event store has the messages."""

    def end(self) -> None:
        """Do nothing."""

    def unwritten(self) -> int:
        """Return 0."""
        return 0

    def displaced(self) -> None:
        """Do nothing."""


class _NoExchangeReader:
    """The sink of an exchange whose request was answered otherwise."""

    def send(self, lines: list[bytes], final: bool) -> None:
        """Do nothing."""

    def fail(self, refusal: Refused) -> None:
        """Do nothing."""


class PendingExchange(PendingResponse[ExchangeSink]):
    """The pending response to a request of 2026-07-28: an exchange and its sink."""

    log = Logger()

    def __init__(
        self,
        asked: ModernRequest,
        headers: Headers,
        access: Access,
        connection: PendingConnection,
        encoder: ResponseEncoder,
        work: StartWork,
        proxied: bool,
        audited: AuditedRequest | None = None,
        measured: MeasuredRequest | None = None,
        traced: RequestSpans | None = None,
    ) -> None:
        super().__init__(connection, encoder)
        self.exchange = Exchange(
            asked,
            access,
            self,
            None if proxied else connection.client_connection(),
            client=access.name or connection.client_address(),
            audited=audited,
            measured=measured,
            traced=traced,
        )
        self._headers = headers
        self._work = work
        self._working: Deferred[None] | None = None

    def begin(self) -> None:
        """Have the request worked on.  The response may be written when this returns."""
        waiting = self._work(self.exchange, self._headers)
        if waiting is None:
            self._connection.assigned(self)
            return
        self._connection.queued()
        self._working = Deferred.fromCoroutine(waiting)
        self._working.addCallback(lambda _: self._connection.assigned(self))
        self._working.addErrback(self._stopped)

    def detach(self) -> None:
        """Cancel the exchange: its connection is lost, which is how a client cancels."""
        self.exchange.cancel()
        if self._working is not None:
            self._working.cancel()

    def _no_reader(self) -> ExchangeSink:
        return _NoExchangeReader()

    def _stopped(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self.log.failure("a request failed", failure)

    # Called by the exchange: ExchangeSink.

    def send(self, lines: list[bytes], final: bool) -> None:
        """Write messages of the server: the answer alone, or more."""
        if self._response is None and final and len(lines) == 1:
            self._connection.respond(*self._encoder.exchange_response(lines[0]))
            return
        response = self._handed_over()
        if response is None:
            # The connection is closing: nobody will read it.  The work that
            # has brought this may be running just now, and ends by itself.
            self.exchange.cancel()
        else:
            response.send(lines, final)

    def fail(self, refusal: Refused) -> None:
        """Write an error of the bridge as the answer."""
        if self._response is None:
            self._connection.respond(self._encoder.exchange_error(refusal))
        else:
            self._response.fail(refusal)
