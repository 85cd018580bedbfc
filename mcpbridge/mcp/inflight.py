"""
The unanswered requests of a session, the client's and the server's, and the
stream that each is on.

Knows ids and progress tokens; must not know what is sent on a stream.  Each
step is O(1), or O(1) for each request of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from mcpbridge.errors import IdInUse, SessionBusy
from mcpbridge.jsonrpc.envelope import JsonRpcId, ProgressToken
from mcpbridge.jsonrpc.ids import is_answer_to, other_spelling
from mcpbridge.jsonrpc.members import encode
from mcpbridge.jsonrpc.recent_set import Recent

#: How many requests of its client a session may have in flight.
MAX_IN_FLIGHT = 1024
#: How many cancelled requests are remembered, whose answers may be on their way.
CANCELLED_KEPT = 1024
#: How many unanswered requests of the server are remembered with their streams.
ASKED_KEPT = 1024


class LogicalStream:
    """A stream: the number of its last event, and the requests that are open on it."""

    __slots__ = ("answers", "json_only", "name", "number", "open")

    def __init__(self, name: str, *, json_only: bool = False) -> None:
        self.name = name
        #: Whether it carries nothing but its answers, all of them at once.
        self.json_only = json_only
        self.number = 0
        # In the order of the POST.  An id leads to itself as the client wrote it: 1 finds 1.0.
        self.open: dict[JsonRpcId, JsonRpcId] = {}
        # Answers that wait until those to the whole batch are there.
        self.answers: list[bytes] = []


class InFlight:
    """
    The client's requests in flight, and the POST streams that wait for their answers.

    Streams are named `1`, `2` and on in the order in which they are opened.
    One runs until no request is open on it.
    """

    def __init__(self) -> None:
        self._opened = 0
        self._running: dict[str | None, LogicalStream] = {}
        # By request: its stream, and its progress token where that leads to it.
        self._requests: dict[JsonRpcId, tuple[LogicalStream, ProgressToken | None]] = {}
        self._tokens: dict[ProgressToken | None, LogicalStream] = {}
        self._cancelled: Recent[JsonRpcId] = Recent(CANCELLED_KEPT)

    def __len__(self) -> int:
        return len(self._requests)

    def open(
        self,
        requests: Sequence[tuple[JsonRpcId, ProgressToken | None]],
        *,
        json_only: bool,
    ) -> LogicalStream:
        """
        Open a stream for requests, by their ids and progress tokens.

        An id keeps its JSON type: 1 and "1" are two ids.  Of two open requests
        with one token, which the specification forbids, the first has it.
        Raise `IdInUse` and `SessionBusy`; then nothing was stored.
        """
        if len(self._requests) + len(requests) > MAX_IN_FLIGHT:
            raise SessionBusy(f"no more than {MAX_IN_FLIGHT} requests of a session may be open")
        stream = LogicalStream(str(self._opened + 1), json_only=json_only)
        for ident, _ in requests:
            if ident in self._requests or ident in stream.open:
                raise IdInUse.of(encode(ident))
            stream.open[ident] = ident
        self._opened += 1
        self._running[stream.name] = stream
        for ident, token in requests:
            if token in self._tokens:
                token = None
            elif token is not None:
                self._tokens[token] = stream
            self._requests[ident] = stream, token
        return stream

    def settle(self, ident: JsonRpcId) -> LogicalStream | None:
        """
        Close a request; return its stream, which is over where it has no
        other.  Return None where the request was not open.
        """
        stream, token = self._requests.pop(ident, (None, None))
        if stream is not None:
            if token is not None:
                del self._tokens[token]
            del stream.open[ident]
            if not stream.open:
                del self._running[stream.name]
        return stream

    def cancel(self, ident: JsonRpcId) -> LogicalStream | None:
        """Do the same for a request that the client has cancelled: its answer may still come."""
        stream = self.settle(ident)
        if stream is not None:
            self._cancelled.add(ident)
        return stream

    def was_cancelled(self, ident: JsonRpcId) -> bool:
        """Tell whether a request of this id, in either spelling, was cancelled lately."""
        return ident in self._cancelled or other_spelling(ident) in self._cancelled

    def respelled(self, ident: JsonRpcId) -> JsonRpcId | msgspec.UnsetType:
        """
        Return the id of the open request that the server means with an id
        that none has: 1 for "1", or the other way round.  Return UNSET where
        there is none, or one of the two was cancelled lately.
        """
        other = other_spelling(ident)
        if other is msgspec.UNSET or other not in self._requests or self.was_cancelled(ident):
            return msgspec.UNSET
        own = self._requests[other][0].open[other]
        return own if is_answer_to(ident, own) else msgspec.UNSET

    def was_opened(self, name: str) -> bool:
        """Tell whether there is or was a stream of that name."""
        return 0 < int(name) <= self._opened

    def running(self, name: str | None) -> LogicalStream | None:
        """Return the stream of that name; None where it is over."""
        return self._running.get(name)

    def with_token(self, token: ProgressToken | None) -> LogicalStream | None:
        """Return the stream of the open request that has this token."""
        return self._tokens.get(token)

    def only_stream(self) -> LogicalStream | None:
        """Return the stream that runs, where exactly one does."""
        return next(iter(self._running.values())) if len(self._running) == 1 else None

    def only_id(self) -> JsonRpcId | msgspec.UnsetType:
        """Return the id of the only open request; UNSET for none or several."""
        return next(iter(self._requests)) if len(self._requests) == 1 else msgspec.UNSET

    def newest_first(self) -> Iterator[LogicalStream]:
        """Return the streams that run, the newest first."""
        return reversed(self._running.values())

    def clear(self) -> list[LogicalStream]:
        """Forget all; return the streams that ran."""
        streams = list(self._running.values())
        self._running.clear()
        self._requests.clear()
        self._tokens.clear()
        self._cancelled.clear()
        return streams


class ServerRequests:
    """
    The unanswered requests of the server: the stream that each went on, and
    the number that it has there, 0 while it waits.  The oldest beyond
    `ASKED_KEPT` are forgotten.
    """

    def __init__(self) -> None:
        self._events: dict[JsonRpcId | msgspec.UnsetType, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._events)

    def add(self, ident: JsonRpcId, stream: str, number: int) -> None:
        """Remember a request."""
        self._events.pop(ident, None)
        if len(self._events) >= ASKED_KEPT:
            del self._events[next(iter(self._events))]
        self._events[ident] = stream, number

    def sent(self, ident: JsonRpcId, stream: str, number: int) -> None:
        """Take note that a request which waited was sent."""
        if ident in self._events:
            self._events[ident] = stream, number

    def settle(self, ident: JsonRpcId | msgspec.UnsetType) -> str | None:
        """Forget a request, answered or cancelled; return its stream's name where it is known."""
        name, _ = self._events.pop(ident, (None, 0))
        return name

    def after(self, stream: str, number: int) -> list[JsonRpcId]:
        """Return the ids of the requests that went on a stream after an event."""
        return [
            ident
            for ident, (name, at) in self._events.items()
            if ident is not msgspec.UNSET and name == stream and at > number
        ]

    def clear(self) -> None:
        """Forget all."""
        self._events.clear()
