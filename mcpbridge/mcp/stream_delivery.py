"""
The logical streams of a session and the connections that carry them: what is
written at once, what waits, and what a client gets again that comes back
(MCP, basic/transports, "Resumability and Redelivery").

Knows streams, connections, the event store and the backlog; must not know why
a message goes on a stream.  Sending is O(1); a resumption takes as long as
what it replays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from mcpbridge.errors import CannotResume, EventsGone, StreamTaken
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.mcp.backlog import Backlog, BacklogMessage, MaybeId
from mcpbridge.mcp.inflight import InFlight, LogicalStream, ServerRequests
from mcpbridge.mcp.stream_events import DropReason, Event, EventStore, StreamSink

#: The name of the GET stream.
STANDALONE = "0"

#: How often in `TAKEOVER_SECONDS` a connection may take the GET stream from
#: another one.  A client that comes back through a proxy which has kept its
#: old connection needs one; two clients that take the stream from each other
#: would go on for ever.
TAKEOVERS = 6
TAKEOVER_SECONDS = 10.0

_EVENT_ID = re.compile(r"(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})")


class StreamDelivery:
    """
    The streams of one session, and who carries them.

    `requests` are the client's, with their POST streams; `asked` are the
    server's requests, each with the event that it was.  `refuse` is called
    with the id of a server's request that reached nobody, `waiting` each time
    that one begins to wait.  `dropped` counts the messages that reached
    nobody.  With `json_only` no stream but the GET stream can be resumed.
    """

    def __init__(
        self,
        store: EventStore,
        backlog: Backlog,
        requests: InFlight,
        asked: ServerRequests,
        *,
        refuse: Callable[[JsonRpcId], None],
        waiting: Callable[[], None],
        dropped: Counter[DropReason],
        now: Callable[[], float],
        json_only: bool,
    ) -> None:
        self.standalone = LogicalStream(STANDALONE)
        #: The connection of each stream that has one.
        self.sinks: dict[str, StreamSink] = {}
        self.backlog = backlog
        self._store = store
        self._requests = requests
        self._asked = asked
        self._refuse = refuse
        self._waiting = waiting
        self._dropped = dropped
        self._now = now
        self._json_only = json_only
        #: When the GET stream was taken over, the last few times.
        self._takeovers: tuple[float, ...] = ()

    # Messages.

    def send(self, stream: LogicalStream, line: bytes, request_id: MaybeId = msgspec.UNSET) -> None:
        """
        Send a message on a stream; `request_id` is its id where it is a request.

        Without a connection it waits on the GET stream; on any other one it
        is only kept for a resumption.
        """
        sink = self.sinks.get(stream.name)
        if sink is None and stream is self.standalone:
            if request_id is msgspec.UNSET:
                self._wait(BacklogMessage(line, request_id))
            else:
                self._wait(BacklogMessage(line, request_id, self._now()))
                self._waiting()
            return
        final = stream is not self.standalone and not stream.open
        if final:
            self.sinks.pop(stream.name, None)
        events = _number(stream, [line])
        self._store.append(stream.name, stream.number, line)
        if sink is not None:
            sink.send(events, final)

    def send_answers(self, stream: LogicalStream) -> None:
        """Send all answers of a stream that carries nothing else, and end it."""
        sink = self.sinks.pop(stream.name, None)
        if sink is None:
            # It has no event id with which a client could come back.
            self._dropped["unread"] += len(stream.answers)
        else:
            sink.send(_number(stream, stream.answers), True)

    def answer_whole(self, stream: LogicalStream, line: bytes) -> bool:
        """
        Send a message as the whole of a response, which nobody can resume, so
        that it need not be kept.  Return False where that cannot be.
        """
        sink = self.sinks.pop(stream.name, None)
        if sink is None:
            return False
        if not sink.answer(line):
            self.sinks[stream.name] = sink
            return False
        return True

    def end(self, stream: LogicalStream) -> None:
        """End a stream without a last message."""
        sink = self.sinks.pop(stream.name, None)
        if sink is not None:
            sink.end()

    def close(
        self, running: Iterable[LogicalStream], error_for: Callable[[JsonRpcId], bytes]
    ) -> None:
        """End all streams; a request that is open on one gets an error."""
        sinks = dict(self.sinks)
        self.sinks.clear()
        self._dropped["unread"] += len(self.backlog.take())
        for stream in running:
            sink = sinks.pop(stream.name, None)
            if sink is None:
                self._dropped["unread"] += len(stream.answers)
            else:
                lines = [*stream.answers, *map(error_for, stream.open)]
                sink.send(_number(stream, lines), True)
        for sink in sinks.values():
            sink.end()
        # They lead back to the session, which is to be freed without the garbage collector.
        self._refuse = self._waiting = _nothing

    # Connections.

    def open_get(self, sink: StreamSink) -> None:
        """
        Attach the GET stream in place of the connection that has it.

        What waits is sent, and before it what that connection has not
        written.  Raise `StreamTaken` beyond `TAKEOVERS` in `TAKEOVER_SECONDS`.
        """
        self._check_takeover()
        displaced = self.sinks.get(STANDALONE)
        events = [] if displaced is None else self._unwritten(displaced)
        events += self._take_backlog()
        self._attach(STANDALONE, sink, events)

    def resume(self, last_event_id: str, sink: StreamSink) -> str:
        """
        Replay what came after an event on its stream, then attach the
        connection in place of the one that is there; of a stream that is over
        the last event is final.  Return the stream's name.

        Raise `CannotResume`; a server's request among what is lost is refused
        then, where no connection is left that could have it.  Raise
        `StreamTaken` as `open_get` does.
        """
        match = _EVENT_ID.fullmatch(last_event_id)
        if match is None:
            raise CannotResume("Last-Event-ID is no event of this session")
        name, number = match[1], int(match[2])
        stream = self.standalone if name == STANDALONE else self._requests.running(name)
        try:
            events = self._missed(name, stream, number)
        except EventsGone:
            if name not in self.sinks:
                for request_id in self._asked.after(name, number):
                    self._refuse(request_id)
            raise CannotResume("what came after this Last-Event-ID is not kept") from None
        if stream is None:
            if events:
                sink.send(events, True)
            else:
                sink.end()
            return name
        if stream is self.standalone:
            self._check_takeover()
            events += self._take_backlog()
        self._attach(name, sink, events)
        return name

    def detach(self, name: str, sink: StreamSink) -> None:
        """Forget a connection that is gone, if it still has the stream."""
        if self.sinks.get(name) is sink:
            del self.sinks[name]

    def _attach(self, name: str, sink: StreamSink, events: list[Event]) -> None:
        displaced = self.sinks.get(name)
        self.sinks[name] = sink
        if events:
            sink.send(events, False)
        # Last: what it sets free may bring the next message.
        if displaced is not None:
            displaced.displaced()

    def _check_takeover(self) -> None:
        """Count a takeover of the GET stream, if it is one.  Raise `StreamTaken`."""
        if STANDALONE not in self.sinks:
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
        self._takeovers = (*self._takeovers[1 - TAKEOVERS :], now)

    def _unwritten(self, sink: StreamSink) -> list[Event]:
        """Return what the GET stream's connection has not written, as far as it is kept."""
        count = sink.unwritten()
        if not count:
            return []
        number = self.standalone.number - count
        try:
            return self._missed(STANDALONE, self.standalone, number)
        except EventsGone:
            self._dropped["unread"] += count
            for request_id in self._asked.after(STANDALONE, number):
                self._refuse(request_id)
            return []

    def _missed(self, name: str, stream: LogicalStream | None, number: int) -> list[Event]:
        """
        Return what came on a stream after that event; the stream is None
        where it is over.  Raise `EventsGone`, also where a store leaves a gap.
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

    # The backlog of the GET stream.

    def _wait(self, message: BacklogMessage) -> None:
        for _, request_id, _ in self.backlog.add(message):
            self._dropped["no room"] += 1
            if request_id is not msgspec.UNSET:
                self._refuse(request_id)

    def _take_backlog(self) -> list[Event]:
        events = []
        for line, request_id, _ in self.backlog.take():
            events += _number(self.standalone, [line])
            self._store.append(STANDALONE, self.standalone.number, line)
            if request_id is not msgspec.UNSET:
                self._asked.sent(request_id, STANDALONE, self.standalone.number)
        return events


def _number(stream: LogicalStream, lines: Iterable[bytes]) -> list[Event]:
    """Return lines as the next events of a stream."""
    events = []
    for line in lines:
        stream.number += 1
        events.append(Event(f"{stream.name}-{stream.number}", line))
    return events


def _nothing(*arguments: object) -> None:
    """Do nothing: the session has ended."""
