"""
Which message goes on which stream of a session of Streamable HTTP (MCP,
basic/transports, "Multiple Connections").

Knows messages and logical streams: the GET stream, named `0`, and one for
each POST that carries requests, named `1`, `2` and on.  Must not know HTTP,
SSE or connections: one is a `StreamSink` here, and may come and go while its
stream lives.  Each message is O(1).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from mcpbridge.errors import SERVER_ERROR, UnknownSession
from mcpbridge.jsonrpc.envelope import (
    Envelope,
    JsonRpcId,
    ProgressToken,
    cancelled_id,
    peek,
    peek_again,
    progress_token,
    split_batch,
)
from mcpbridge.jsonrpc.ids import with_id
from mcpbridge.jsonrpc.members import error_line
from mcpbridge.jsonrpc.oversized import peek_at_server
from mcpbridge.mcp.backlog import Backlog, Budget, MaybeId
from mcpbridge.mcp.inflight import InFlight, LogicalStream, ServerRequests
from mcpbridge.mcp.stream_delivery import STANDALONE, StreamDelivery
from mcpbridge.mcp.stream_events import DropReason, EventStore, StreamSink


class StreamRouter:
    """
    The streams of one session.

    A message of the server goes on one stream.  An answer goes on that of its
    request, and progress on that of the request with its token.  A request or
    another notification goes on the POST stream that runs, where there is
    exactly one, otherwise on the GET stream; so does a notification that by
    its nature belongs to no request.  Where the GET stream has no connection,
    a request goes on the newest POST stream that can carry it, so that
    somebody reads it.  Where there is none it waits, for `input_timeout`
    seconds at most: `tick` is to be called when it is `due`, and
    `request_waits` is called each time that a request begins to wait.

    With `json_only` a POST stream carries nothing but its answers, all at
    once, and cannot be resumed.  While a POST stream has no connection its
    messages are in `store`; for the GET stream they wait within the two
    bounds.  `answer_backend` is called with the answer to a request of the
    server that reached nobody.

    `dropped` counts the messages that reached nobody, by the reason; where
    the server is to blame, `report` is called with it and the message.  What
    opens a stream raises `UnknownSession` after `close`.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        max_waiting_events: int,
        max_waiting_bytes: int,
        answer_backend: Callable[[bytes], None],
        json_only: bool = False,
        budget: Budget | None = None,
        now: Callable[[], float] = time.monotonic,
        input_timeout: float = 600.0,
        request_waits: Callable[[], None] = lambda: None,
        report: Callable[[DropReason, bytes], None] = lambda why, line: None,
    ) -> None:
        self._answer_backend = answer_backend
        self._json_only = json_only
        self._closed = False
        self._now = now
        self._input_timeout = input_timeout
        self._report = report
        self._requests = InFlight()
        self._asked = ServerRequests()
        self._backlog = Backlog(max_waiting_events, max_waiting_bytes, budget)
        self.dropped: Counter[DropReason] = Counter()
        self._delivery = StreamDelivery(
            store,
            self._backlog,
            self._requests,
            self._asked,
            refuse=self._refuse,
            waiting=request_waits,
            dropped=self.dropped,
            now=now,
            json_only=json_only,
        )
        self._standalone = self._delivery.standalone
        #: The connection of each stream that has one; for reading.
        self.sinks: Mapping[str, StreamSink] = self._delivery.sinks

    @property
    def in_flight(self) -> int:
        """How many requests of the client are not answered yet."""
        return len(self._requests)

    @property
    def only_open(self) -> MaybeId:
        """The id of the only request that is not answered yet; UNSET for none or several."""
        return self._requests.only_id()

    @property
    def has_sinks(self) -> bool:
        """Whether any connection is attached."""
        return bool(self.sinks)

    @property
    def position(self) -> int:
        """The number of the last event of the GET stream; 0 before the first."""
        return self._standalone.number

    @property
    def due(self) -> float | None:
        """When a request of the server has waited long enough; None where none waits."""
        since = self._backlog.oldest_request
        return None if since is None else since + self._input_timeout

    def tick(self) -> None:
        """Answer the requests of the server that have waited too long with an error."""
        while (due := self.due) is not None and due <= self._now():
            self.dropped["unread"] += 1
            message = self._backlog.take_oldest_request()
            assert message.request_id is not msgspec.UNSET
            self._refuse(message.request_id)

    # Connections.

    def open_post(
        self,
        requests: Sequence[tuple[JsonRpcId, ProgressToken | None]],
        sink: StreamSink,
        *,
        json_only: bool = False,
    ) -> str:
        """
        Open a stream for the requests of one POST, at least one, by their ids
        and progress tokens; return its name.  With `json_only` its client
        takes nothing but the answers, as if the router had that.

        Raise `IdInUse` and `SessionBusy`; then nothing was stored.
        """
        if self._closed:
            self._check_open()
        json_only = json_only or self._json_only
        name = self._requests.open(requests, json_only=json_only).name
        self._delivery.sinks[name] = sink
        return name

    def abandon(self, stream: str) -> None:
        """Undo `open_post`: the backend did not take the message."""
        running = self._requests.running(stream)
        for ident in [] if running is None else list(running.open):
            self._requests.settle(ident)
            self._delivery.sinks.pop(stream, None)

    def open_get(self, sink: StreamSink) -> str:
        """Attach the GET stream, as `StreamDelivery.open_get`; return the stream's name."""
        self._check_open()
        self._delivery.open_get(sink)
        return STANDALONE

    def resume(self, last_event_id: str, sink: StreamSink) -> str:
        """Attach the stream of an event and replay what came after it; return its name."""
        self._check_open()
        return self._delivery.resume(last_event_id, sink)

    def detach(self, stream: str, sink: StreamSink) -> None:
        """
        Forget a connection that is gone; the requests go on ("a disconnection
        SHOULD NOT be interpreted as the client cancelling its request").
        """
        self._delivery.detach(stream, sink)

    # From the client.

    def cancel(self, request_id: JsonRpcId) -> None:
        """Cancel a request for the client; its stream ends where it was the last of it."""
        stream = self._requests.cancel(request_id)
        if stream is None or stream.open:
            return
        if stream.answers:
            self._delivery.send_answers(stream)
        else:
            self._delivery.end(stream)

    def answered_backend(self, envelope: Envelope) -> None:
        """Take note that the client has answered a request of the server."""
        self._asked.settle(envelope.id)

    # From the server.

    def route(self, line: bytes) -> None:
        """
        Send a line of the server on its stream; of a batch (2025-03-26,
        basic, "Batching") each element on its own.
        """
        envelope = peek_at_server(line)
        if envelope is not None:
            self._route(line, envelope)
            return
        batch = split_batch(line)
        for element in [line] if batch is None else batch:
            # A lone surrogate keeps no answer from its client.
            envelope = peek(element) or peek_again(element)
            if envelope is None:
                self._drop("invalid", element)
            else:
                self._route(element, envelope)

    def close(self, error_for: Callable[[JsonRpcId], bytes]) -> None:
        """
        End the session's streams: each open request gets an error, the line
        that `error_for` makes of its id, and every response ends.
        """
        self._closed = True
        running = self._requests.clear()
        self._asked.clear()
        self._delivery.close(running, error_for)
        # They lead back to the session, which is to be freed without the garbage collector.
        self._answer_backend = self._report = _nothing

    def _route(self, line: bytes, envelope: Envelope) -> None:
        if self._closed:
            self.dropped["unread"] += 1
        elif isinstance(envelope.method, str):
            if envelope.id is msgspec.UNSET:
                if envelope.method == "notifications/cancelled" and self._withdraw(line):
                    return
                stream = self._stream_of_notification(line, envelope.method)
                self._delivery.send(stream, line)
            else:
                self._request(line, envelope.id)
        elif envelope.id is not msgspec.UNSET and envelope.is_response:
            self._answer(line, envelope.id)
        else:
            self._drop("invalid", line)

    def _answer(self, line: bytes, ident: JsonRpcId) -> None:
        stream = self._requests.settle(ident)
        if stream is None:
            self._answer_respelled(line, ident)
        elif not stream.json_only:
            # The only message of its stream can be all of the response.
            if not (stream.open or stream.number) and self._delivery.answer_whole(stream, line):
                return
            self._delivery.send(stream, line)
        else:
            stream.answers.append(line)
            if not stream.open:
                self._delivery.send_answers(stream)

    def _answer_respelled(self, line: bytes, ident: JsonRpcId) -> None:
        """Route an answer whose id is that of no open request, unless in another spelling."""
        meant = self._requests.respelled(ident)
        if meant is not msgspec.UNSET:
            self._answer(with_id(line, meant), meant)
        elif self._requests.was_cancelled(ident):
            self.dropped["unasked"] += 1
        else:
            self._drop("unasked", line)

    def _stream_of_notification(self, line: bytes, method: str) -> LogicalStream:
        stream: LogicalStream | None = None
        if method == "notifications/progress":
            # Of a request that is over: on no other's stream.
            stream = self._requests.with_token(progress_token(line))
        elif method == "notifications/cancelled":
            stream = self._requests.running(self._asked.settle(cancelled_id(line)))
        elif not method.endswith("/list_changed") and method != "notifications/resources/updated":
            stream = self._requests.only_stream()
        return self._standalone if stream is None or stream.json_only else stream

    def _request(self, line: bytes, ident: JsonRpcId) -> None:
        stream = self._stream_of_request()
        waits = stream is self._standalone and STANDALONE not in self._delivery.sinks
        self._asked.add(ident, stream.name, 0 if waits else stream.number + 1)
        self._delivery.send(stream, line, ident)

    def _stream_of_request(self) -> LogicalStream:
        """Return a stream where the client reads a request; the GET stream where there is none."""
        if self._json_only:
            return self._standalone
        sinks = self._delivery.sinks
        has_get = STANDALONE in sinks
        only = self._requests.only_stream()
        if only is not None and not only.json_only:
            sink = sinks.get(only.name)
            # A client that has lost the connection may come back to the stream.
            if (not has_get) if sink is None else sink.takes_events:
                return only
        if not has_get:
            for stream in self._requests.newest_first():
                sink = None if stream.json_only else sinks.get(stream.name)
                if sink is not None and sink.takes_events:
                    return stream
        return self._standalone

    def _withdraw(self, line: bytes) -> bool:
        """Forget a cancelled request that still waits: the client hears of neither."""
        if self._backlog.oldest_request is None:
            return False
        request_id = cancelled_id(line)
        if request_id is msgspec.UNSET or not self._backlog.remove_request(request_id):
            return False
        self._asked.settle(request_id)
        return True

    def _drop(self, why: DropReason, line: bytes) -> None:
        self.dropped[why] += 1
        self._report(why, line)

    def _refuse(self, request_id: JsonRpcId) -> None:
        self._asked.settle(request_id)
        why = "the request did not reach the client"
        self._answer_backend(error_line(request_id, SERVER_ERROR, why))

    def _check_open(self) -> None:
        if self._closed:
            raise UnknownSession("the session has ended")


def _nothing(*arguments: object) -> None:
    """Do nothing: the session has ended."""
