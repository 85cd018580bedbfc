"""
The requests that are not answered yet, of the client and of the backend, and
which stream each is on.

Knows ids and progress tokens; must not know what is sent on a stream.  Each
step is O(1), for a batch O(1) for each request of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from mcpbridge.errors import IdInUse, SessionBusy
from mcpbridge.jsonrpc.envelope import JsonRpcId, ProgressToken
from mcpbridge.jsonrpc.ids import is_answer_to, other_spelling
from mcpbridge.jsonrpc.members import encode
from mcpbridge.jsonrpc.recent import Recent

#: How many requests of the client a session waits for at a time.
MAX_IN_FLIGHT = 1024
#: How many cancelled requests are remembered, whose answers may be on their way.
CANCELLED_KEPT = 1024
#: How many unanswered requests of the backend are remembered with their streams.
ASKED_KEPT = 1024


class LogicalStream:
    """What was sent last on a stream, and which requests are open on it."""

    __slots__ = ("answers", "json_only", "name", "number", "open")

    def __init__(self, name: str, *, json_only: bool = False) -> None:
        self.name = name
        #: Whether it carries nothing but its answers, all at once.
        self.json_only = json_only
        self.number = 0
        # In the order of the POST; an id leads to itself, as 1 finds 1.0, too.
        self.open: dict[JsonRpcId, JsonRpcId] = {}
        # What is held back until all answers of a batch are there.
        self.answers: list[bytes] = []


class InFlight:
    """
    The requests in flight, and the POST streams that wait for their answers.

    A stream is named when it is opened: `1`, `2` and on.  It runs until no
    request is open on it.
    """

    def __init__(self) -> None:
        self._opened = 0
        self._running: dict[str | None, LogicalStream] = {}
        # Of a request: its stream, and its token where that stands for it.
        self._requests: dict[JsonRpcId, tuple[LogicalStream, ProgressToken | None]] = {}
        self._tokens: dict[ProgressToken | None, LogicalStream] = {}
        self._cancelled: Recent[JsonRpcId] = Recent(CANCELLED_KEPT)

    def __len__(self) -> int:
        return len(self._requests)

    def open(
        self,
        requests: Sequence[tuple[JsonRpcId, ProgressToken | None]],
        *,
        json_only: bool = False,
    ) -> LogicalStream:
        """
        A stream for these requests.

        An id keeps its JSON type: 1 and "1" are two.  Of two open requests
        with one token, which the specification forbids, the first one has it.
        Raises `IdInUse` and `SessionBusy`; then nothing was stored.
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
        A request is open no more; returns its stream, which is over where
        it has no other.  None: it was not open.
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
        """The same for one that the client has cancelled: its answer may still come."""
        stream = self.settle(ident)
        if stream is not None:
            self._cancelled.add(ident)
        return stream

    def was_cancelled(self, ident: JsonRpcId) -> bool:
        """Whether a request of this id, however the backend spells it, was cancelled lately."""
        return ident in self._cancelled or other_spelling(ident) in self._cancelled

    def meant_by(self, ident: JsonRpcId) -> JsonRpcId | msgspec.UnsetType:
        """
        The id of the open request that the backend means with an id that none
        has: 1 for "1", or the other way round.  UNSET where there is none, or
        one of these was cancelled lately.
        """
        other = other_spelling(ident)
        if other is msgspec.UNSET or other not in self._requests or self.was_cancelled(ident):
            return msgspec.UNSET
        asked = self._requests[other][0].open[other]
        return asked if is_answer_to(ident, asked) else msgspec.UNSET

    def was_opened(self, name: str) -> bool:
        """Whether there is or was a stream of that name."""
        return 0 < int(name) <= self._opened

    def running(self, name: str | None) -> LogicalStream | None:
        """The stream of that name, unless it is over."""
        return self._running.get(name)

    def with_token(self, token: ProgressToken | None) -> LogicalStream | None:
        """The stream of the open request that has this token."""
        return self._tokens.get(token)

    def only(self) -> LogicalStream | None:
        """The stream that runs, where there is just one."""
        return next(iter(self._running.values())) if len(self._running) == 1 else None

    def only_id(self) -> JsonRpcId | msgspec.UnsetType:
        """The id of the only request that is open; UNSET for none or several."""
        return next(iter(self._requests)) if len(self._requests) == 1 else msgspec.UNSET

    def newest_first(self) -> Iterator[LogicalStream]:
        """The streams that run."""
        return reversed(self._running.values())

    def clear(self) -> list[LogicalStream]:
        """Wait for nothing more; returns the streams that ran."""
        streams = list(self._running.values())
        self._running.clear()
        self._requests.clear()
        self._tokens.clear()
        self._cancelled.clear()
        return streams


class Asked:
    """
    The unanswered requests of the backend: on which stream each went, with
    which number; 0 while it waits.  The oldest beyond `ASKED_KEPT` are
    forgotten.
    """

    def __init__(self) -> None:
        self._events: dict[JsonRpcId | msgspec.UnsetType, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._events)

    def add(self, ident: JsonRpcId, stream: str, number: int) -> None:
        """The backend asks."""
        self._events.pop(ident, None)
        if len(self._events) >= ASKED_KEPT:
            del self._events[next(iter(self._events))]
        self._events[ident] = stream, number

    def went(self, ident: JsonRpcId, stream: str, number: int) -> None:
        """One that waited was sent."""
        if ident in self._events:
            self._events[ident] = stream, number

    def settle(self, ident: JsonRpcId | msgspec.UnsetType) -> str | None:
        """It is answered, or cancelled; returns its stream's name where it is known."""
        name, _ = self._events.pop(ident, (None, 0))
        return name

    def after(self, stream: str, number: int) -> list[JsonRpcId]:
        """Those that went on a stream after an event."""
        return [
            ident
            for ident, (name, at) in self._events.items()
            if ident is not msgspec.UNSET and name == stream and at > number
        ]

    def clear(self) -> None:
        """Forget all."""
        self._events.clear()
