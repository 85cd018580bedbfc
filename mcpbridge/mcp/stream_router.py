"""
Which message goes on which stream of a session of Streamable HTTP, and what
a client gets again that comes back (MCP, basic/transports, "Multiple
Connections" and "Resumability and Redelivery").

Knows messages and logical streams: the GET stream, named `0`, and one for
each POST that carries requests, named `1`, `2` and on.  Must not know HTTP,
SSE or connections: one is an `StreamSink` here, and may come and go while its
stream lives.  Each message is O(1); a resumption is as long as what it
replays.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from mcpbridge.errors import SERVER_ERROR, EventsGone, EventsLost, StreamTaken, UnknownSession
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
from mcpbridge.mcp.backlog import Backlog, BacklogMessage, Budget, MaybeId
from mcpbridge.mcp.inflight import Asked, InFlight, LogicalStream
from mcpbridge.mcp.stream_events import Event, EventStore, StreamSink

#: The name of the GET stream.
STANDALONE = "0"

#: So often in so many seconds a connection may take the GET stream from
#: another one.  A client that comes back through a proxy which has kept its
#: old connection needs one; two clients that take the stream from each other
#: would go on for ever.
TAKEOVERS = 6
TAKEOVER_SECONDS = 10.0

#: Why a message of the backend reached nobody: it answers no request that is
#: open (never made, answered, cancelled); it is no JSON-RPC message, which a
#: client could make nothing of; there was no room for it to wait; the session
#: ended, or a client that takes JSON alone went, before it was read.
Why = Literal["unasked", "invalid", "no room", "unread"]

_EVENT_ID = re.compile(r"(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})")


class StreamRouter:
    """
    The streams of one session.

    A message of the backend goes on one stream: an answer on that of its
    request; progress on that of the request with its token; a request or
    another notification on the POST stream that runs, where there is exactly
    one, otherwise on the GET stream; there, too, what says of itself that it
    belongs to no request.  A request goes on the newest POST stream that can
    carry it where the GET stream has no outlet, so that somebody reads it;
    where there is none, it waits for `input_timeout` seconds at most: `tick`
    is to be called when it is `due`, and `held` is called for each.  With
    `json_only` a POST stream has nothing but its answers, all at once, and
    cannot be resumed.

    While a POST stream has no outlet its messages are in `store`; for the
    GET stream they wait, within the two bounds.  `answer_backend` is called
    with a line for the backend when a request of it reached nobody.

    `dropped` counts what reached nobody, by its reason; where the backend is
    to blame, `report` is called with it and the message.  Whatever opens a
    stream raises `UnknownSession` after `close`.
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
        held: Callable[[], None] = lambda: None,
        report: Callable[[Why, bytes], None] = lambda why, line: None,
    ) -> None:
        self._store = store
        self._answer_backend = answer_backend
        self._json_only = json_only
        self._closed = False
        self._requests = InFlight()
        self._standalone = LogicalStream(STANDALONE)
        self._waiting = Backlog(max_waiting_events, max_waiting_bytes, budget)
        self._outlets: dict[str, StreamSink] = {}
        self._asked = Asked()
        self._now = now
        self._input_timeout = input_timeout
        self._held = held
        self._report = report
        #: When the GET stream was last taken over.
        self._takeovers: deque[float] = deque(maxlen=TAKEOVERS)
        self.dropped: Counter[Why] = Counter()

    @property
    def in_flight(self) -> int:
        """How many requests of the client are not answered yet."""
        return len(self._requests)

    @property
    def only_open(self) -> MaybeId:
        """The id of the only request that is not answered yet; UNSET for none or several."""
        return self._requests.only_id()

    @property
    def has_outlets(self) -> bool:
        """Whether any connection is attached."""
        return bool(self._outlets)

    @property
    def position(self) -> int:
        """The number of the last event of the GET stream; 0 before the first."""
        return self._standalone.number

    @property
    def due(self) -> float | None:
        """When a request of the backend has waited long enough; None where none waits."""
        since = self._waiting.oldest_request
        return None if since is None else since + self._input_timeout

    def tick(self) -> None:
        """Answer the requests of the backend that have waited too long with an error."""
        while (due := self.due) is not None and due <= self._now():
            self.dropped["unread"] += 1
            waiter = self._waiting.take_oldest_request()
            assert waiter.asked is not msgspec.UNSET
            self._refuse(waiter.asked)

    # Connections.

    def open_post(
        self,
        requests: Sequence[tuple[JsonRpcId, ProgressToken | None]],
        outlet: StreamSink,
        *,
        json_only: bool = False,
    ) -> str:
        """
        A stream for the requests of one POST, at least one, by their ids and
        progress tokens.  Returns its name.  With `json_only` its client takes
        nothing but the answers, as if the router had that.

        Raises `IdInUse` and `SessionBusy`; then nothing was stored.
        """
        self._check_open()
        json_only = json_only or self._json_only
        name = self._requests.open(requests, json_only=json_only).name
        self._outlets[name] = outlet
        return name

    def abandon(self, stream: str) -> None:
        """Undo `open_post`: the backend did not take the message."""
        running = self._requests.running(stream)
        for ident in [] if running is None else list(running.open):
            self._requests.settle(ident)
            self._outlets.pop(stream, None)

    def open_get(self, outlet: StreamSink) -> str:
        """
        Attach the GET stream, in place of the connection that has it; what
        waits is sent, and before it what that connection has not written.
        Returns the stream's name.

        Raises `StreamTaken` beyond `TAKEOVERS` in `TAKEOVER_SECONDS`.
        """
        self._check_open()
        self._check_takeover()
        displaced = self._outlets.get(STANDALONE)
        events = [] if displaced is None else self._unwritten(displaced)
        events += self._take_waiting()
        self._attach(STANDALONE, outlet, events)
        return STANDALONE

    def resume(self, last_event_id: str, outlet: StreamSink) -> str:
        """
        Replay what came after an event on its stream, then attach the outlet
        in place of the one that is there; of a stream that is over the last
        event is final.  Returns the stream's name.

        Raises `EventsLost`; a request of the backend among what is lost is
        answered then, where no connection is left that could have it.  Raises
        `StreamTaken` as `open_get` does.
        """
        self._check_open()
        match = _EVENT_ID.fullmatch(last_event_id)
        if match is None:
            raise EventsLost("Last-Event-ID is no event of this session")
        name, number = match[1], int(match[2])
        stream = self._standalone if name == STANDALONE else self._requests.running(name)
        try:
            events = self._missed(name, stream, number)
        except EventsGone:
            if name not in self._outlets:
                for asked in self._asked.after(name, number):
                    self._refuse(asked)
            raise EventsLost("what came after this Last-Event-ID is not kept") from None
        if stream is None:
            if events:
                outlet.send(events, True)
            else:
                outlet.end()
            return name
        if stream is self._standalone:
            self._check_takeover()
            events += self._take_waiting()
        self._attach(name, outlet, events)
        return name

    def detach(self, stream: str, outlet: StreamSink) -> None:
        """
        The connection is gone; the requests go on ("a disconnection SHOULD
        NOT be interpreted as the client cancelling its request").
        """
        if self._outlets.get(stream) is outlet:
            del self._outlets[stream]

    # From the client.

    def cancel(self, request_id: JsonRpcId) -> None:
        """The client has cancelled a request; where it was the last of its stream, that ends."""
        stream = self._requests.cancel(request_id)
        if stream is None or stream.open:
            return
        if stream.answers:
            self._send_answers(stream)
        elif (outlet := self._outlets.pop(stream.name, None)) is not None:
            outlet.end()

    def answered_backend(self, envelope: Envelope) -> None:
        """The client has answered a request of the backend."""
        self._asked.settle(envelope.id)

    # From the backend.

    def route(self, line: bytes) -> None:
        """
        Send a line of the backend on its stream; of a batch (2025-03-26,
        basic, "Batching") each element on its own.
        """
        envelope = peek(line)
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
        The session is over: each open request gets an error, the line that
        `error_for` makes of its id, and every outlet ends.
        """
        self._closed = True
        running = self._requests.clear()
        outlets, self._outlets = self._outlets, {}
        self._asked.clear()
        self.dropped["unread"] += len(self._waiting.take())
        for stream in running:
            outlet = outlets.pop(stream.name, None)
            if outlet is None:
                self.dropped["unread"] += len(stream.answers)
            else:
                lines = [*stream.answers, *map(error_for, stream.open)]
                outlet.send(_number(stream, lines), True)
        for outlet in outlets.values():
            outlet.end()

    # Where a message goes.

    def _route(self, line: bytes, envelope: Envelope) -> None:
        if self._closed:
            self.dropped["unread"] += 1
        elif isinstance(envelope.method, str):
            if envelope.id is msgspec.UNSET:
                if envelope.method == "notifications/cancelled" and self._withdraw(line):
                    return
                self._send(self._stream_of_notification(line, envelope.method), line)
            else:
                self._ask(line, envelope.id)
        elif envelope.id is not msgspec.UNSET and envelope.is_response:
            self._answer(line, envelope.id)
        else:
            self._drop("invalid", line)

    def _answer(self, line: bytes, ident: JsonRpcId) -> None:
        stream = self._requests.settle(ident)
        if stream is None:
            self._answer_oddly(line, ident)
        elif not stream.json_only:
            if not (stream.open or stream.number) and self._is_answer(stream, line):
                return
            self._send(stream, line)
        else:
            stream.answers.append(line)
            if not stream.open:
                self._send_answers(stream)

    def _answer_oddly(self, line: bytes, ident: JsonRpcId) -> None:
        """An answer with an id that no open request has, unless it is spelled in another way."""
        meant = self._requests.meant_by(ident)
        if meant is not msgspec.UNSET:
            self._answer(with_id(line, meant), meant)
        elif self._requests.was_cancelled(ident):
            self.dropped["unasked"] += 1
        else:
            self._drop("unasked", line)

    def _drop(self, why: Why, line: bytes) -> None:
        self.dropped[why] += 1
        self._report(why, line)

    def _is_answer(self, stream: LogicalStream, line: bytes) -> bool:
        """Whether a message was all of a response, which nobody can resume: it is not kept."""
        outlet = self._outlets.pop(stream.name, None)
        if outlet is None:
            return False
        if not outlet.answer(line):
            self._outlets[stream.name] = outlet
            return False
        return True

    def _stream_of_notification(self, line: bytes, method: str) -> LogicalStream:
        stream: LogicalStream | None = None
        if method == "notifications/progress":
            # Of a request that is over: on no other's stream.
            stream = self._requests.with_token(progress_token(line))
        elif method == "notifications/cancelled":
            stream = self._requests.running(self._asked.settle(cancelled_id(line)))
        elif not method.endswith("/list_changed") and method != "notifications/resources/updated":
            stream = self._requests.only()
        return self._standalone if stream is None or stream.json_only else stream

    def _ask(self, line: bytes, ident: JsonRpcId) -> None:
        stream = self._stream_of_question()
        waits = stream is self._standalone and STANDALONE not in self._outlets
        self._asked.add(ident, stream.name, 0 if waits else stream.number + 1)
        self._send(stream, line, ident)

    def _stream_of_question(self) -> LogicalStream:
        """One where a request of the backend is read; the GET stream where there is none."""
        if self._json_only:
            return self._standalone
        listens = STANDALONE in self._outlets
        only = self._requests.only()
        if only is not None and not only.json_only:
            outlet = self._outlets.get(only.name)
            # Who has lost the connection may come back to the stream.
            if (not listens) if outlet is None else outlet.takes_events:
                return only
        if not listens:
            for stream in self._requests.newest_first():
                outlet = None if stream.json_only else self._outlets.get(stream.name)
                if outlet is not None and outlet.takes_events:
                    return stream
        return self._standalone

    def _withdraw(self, line: bytes) -> bool:
        """Whether a request that is cancelled was still waiting: then nobody hears of either."""
        if self._waiting.oldest_request is None:
            return False
        asked = cancelled_id(line)
        if asked is msgspec.UNSET or not self._waiting.withdraw(asked):
            return False
        self._asked.settle(asked)
        return True

    def _send(self, stream: LogicalStream, line: bytes, asked: MaybeId = msgspec.UNSET) -> None:
        outlet = self._outlets.get(stream.name)
        if outlet is None and stream is self._standalone:
            if asked is msgspec.UNSET:
                self._wait(BacklogMessage(line, asked))
            else:
                self._wait(BacklogMessage(line, asked, self._now()))
                self._held()
            return
        final = stream is not self._standalone and not stream.open
        if final:
            self._outlets.pop(stream.name, None)
        events = _number(stream, [line])
        self._store.append(stream.name, stream.number, line)
        if outlet is not None:
            outlet.send(events, final)

    def _send_answers(self, stream: LogicalStream) -> None:
        outlet = self._outlets.pop(stream.name, None)
        if outlet is None:
            # It has no event id that it could come back with.
            self.dropped["unread"] += len(stream.answers)
        else:
            outlet.send(_number(stream, stream.answers), True)

    # Who has a stream.

    def _attach(self, name: str, outlet: StreamSink, events: list[Event]) -> None:
        """In place of the connection that has the stream, and with these events first."""
        displaced = self._outlets.get(name)
        self._outlets[name] = outlet
        if events:
            outlet.send(events, False)
        # Last: what it sets free may bring the next message.
        if displaced is not None:
            displaced.displaced()

    def _check_takeover(self) -> None:
        """Count a takeover of the GET stream, if it is one.  Raises `StreamTaken`."""
        if STANDALONE not in self._outlets:
            return
        now = self._now()
        if len(self._takeovers) == TAKEOVERS:
            left = self._takeovers[0] + TAKEOVER_SECONDS - now
            if left > 0:
                raise StreamTaken(
                    f"the GET stream of this session was taken over {TAKEOVERS} times in"
                    f" {TAKEOVER_SECONDS:g} s: do two clients use one session?",
                    int(left) + 1,
                )
        self._takeovers.append(now)

    def _unwritten(self, outlet: StreamSink) -> list[Event]:
        """What the GET stream's connection has not written, as far as it is kept."""
        count = outlet.unwritten()
        if not count:
            return []
        number = self._standalone.number - count
        try:
            return self._missed(STANDALONE, self._standalone, number)
        except EventsGone:
            self.dropped["unread"] += count
            for asked in self._asked.after(STANDALONE, number):
                self._refuse(asked)
            return []

    # What waits, and what is missed.

    def _wait(self, waiter: BacklogMessage) -> None:
        for _, asked, _ in self._waiting.add(waiter):
            self.dropped["no room"] += 1
            if asked is not msgspec.UNSET:
                self._refuse(asked)

    def _take_waiting(self) -> list[Event]:
        stream = self._standalone
        events = []
        for line, asked, _ in self._waiting.take():
            events += _number(stream, [line])
            self._store.append(STANDALONE, stream.number, line)
            if asked is not msgspec.UNSET:
                self._asked.went(asked, STANDALONE, stream.number)
        return events

    def _missed(self, name: str, stream: LogicalStream | None, number: int) -> list[Event]:
        """
        What came on a stream after that event; the stream is None where it
        is over.  Raises `EventsGone`, also where a store leaves a gap.
        """
        if name != STANDALONE and (self._json_only or not self._requests.was_opened(name)):
            raise EventsGone
        if stream is not None and stream.json_only:
            raise EventsGone
        if stream is not None and number >= stream.number:
            if number == stream.number:
                return []
            raise EventsGone
        kept = self._store.after(name, number)
        end = number + len(kept) if stream is None else stream.number
        if [each for each, _ in kept] != list(range(number + 1, end + 1)):
            raise EventsGone
        return [Event(f"{name}-{each}", line) for each, line in kept]

    def _refuse(self, asked: JsonRpcId) -> None:
        self._asked.settle(asked)
        why = "the request did not reach the client"
        self._answer_backend(error_line(asked, SERVER_ERROR, why))

    def _check_open(self) -> None:
        if self._closed:
            raise UnknownSession("the session has ended")


def _number(stream: LogicalStream, lines: Iterable[bytes]) -> list[Event]:
    """The next events of a stream."""
    events = []
    for line in lines:
        stream.number += 1
        events.append(Event(f"{stream.name}-{stream.number}", line))
    return events
