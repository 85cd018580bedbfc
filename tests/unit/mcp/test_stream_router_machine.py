"""
Any interleaving of messages, disconnects and resumptions: each message is
delivered exactly once, in order for its stream, and within the bounds.

Beside the router there is a model of lists, which searches where the router
looks up, and a client, which reads late, loses its connections with what it
has not read, and comes back with the last event that it has seen.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mcpbridge.errors import CannotResume, IdInUse
from mcpbridge.jsonrpc.envelope import Envelope
from mcpbridge.jsonrpc.ids import with_id
from mcpbridge.mcp.stream_delivery import TAKEOVER_SECONDS
from mcpbridge.mcp.stream_events import Event
from mcpbridge.mcp.stream_router import StreamRouter
from mcpbridge.session.memory_event_store import MemoryEventLog
from tests.examples import examples

IDS = st.sampled_from([1, "1", 2, "2", "a"])
#: What a backend may write instead.
OTHER: dict[Any, Any] = {1: "1", "1": 1, 2: "2", "2": 2}
TOKENS = st.sampled_from([None, 1, "1", "t"])
#: What a backend may say: a kind and an id or a token for it.
MESSAGES = st.tuples(
    st.sampled_from(["answer", "answer", "progress", "log", "changed", "ask", "cancel"]),
    IDS,
)


class StreamSink:
    """A connection: what was sent and not read yet, and whether it is over."""

    takes_events = True

    def __init__(self) -> None:
        self.unread: list[Event] = []
        self.over = ""

    def answer(self, line: bytes) -> bool:
        return False

    def send(self, events: list[Event], final: bool) -> None:
        assert events
        assert not self.over, "sent on a connection that is over"
        self.unread += events
        if final:
            self.over = "final"

    def end(self) -> None:
        assert not self.over
        self.over = "end"

    def unwritten(self) -> int:
        return len(self.unread)

    def displaced(self) -> None:
        assert not self.over
        self.over = "displaced"


class Stream:
    """The model of one: what was sent, and how much of it the client has."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.read = 0
        self.open: list[Any] = []
        self.held: list[bytes] = []
        #: What the router has attached, and whether the client still has it too.
        self.outlet: StreamSink | None = None
        #: What the client reads from; it may be over, or dropped unnoticed.
        self.reading: StreamSink | None = None


class StreamsMachine(RuleBasedStateMachine):
    """The router against its model."""

    @initialize(
        json_only=st.booleans(), waiting=st.integers(1, 5), kept=st.sampled_from([1, 4, 10, 1000])
    )
    def start(self, json_only: bool, waiting: int, kept: int) -> None:
        self.json_only, self.max_waiting, self.max_kept = json_only, waiting, kept
        self.log = MemoryEventLog(kept, 1 << 30)
        self.to_backend: list[Any] = []
        self.router = StreamRouter(
            self.log,
            max_waiting_events=waiting,
            max_waiting_bytes=10_000,
            answer_backend=lambda line: self.to_backend.append(json.loads(line)["id"]),
            now=itertools.count(0, TAKEOVER_SECONDS).__next__,
            json_only=json_only,
        )
        self.said = 0
        self.streams = {"0": Stream()}
        self.tokens: list[tuple[Any, Any]] = []
        self.waiting: list[tuple[bytes, Any]] = []
        self.kept: list[tuple[str, int]] = []
        self.asked: dict[Any, tuple[str, int]] = {}
        self.refused: list[Any] = []
        self.cancelled: set[Any] = set()
        self.dropped: Counter[str] = Counter()

    # The model.

    def running(self) -> list[str]:
        return [name for name, stream in self.streams.items() if stream.open]

    def holder(self, ident: Any) -> str | None:
        """The stream on which a request is open."""
        for name, stream in self.streams.items():
            if ident in stream.open:
                return name
        return None

    def keep(self, name: str, line: bytes) -> None:
        stream = self.streams[name]
        stream.sent.append(line)
        self.kept = [*self.kept, (name, len(stream.sent))][-self.max_kept :]

    def flush(self) -> None:
        for line, asked in self.waiting:
            self.keep("0", line)
            if asked is not None and asked in self.asked:
                self.asked[asked] = "0", len(self.streams["0"].sent)
        self.waiting = []

    def expect(self, name: str, line: bytes, asked: Any = None) -> None:
        """The line is to go on that stream."""
        if name != "0" or self.streams["0"].outlet is not None:
            self.keep(name, line)
            return
        self.waiting.append((line, asked))
        while len(self.waiting) > self.max_waiting:
            victim = next((each for each in self.waiting if each[1] is None), self.waiting[0])
            self.waiting.remove(victim)
            self.dropped["no room"] += 1
            if victim[1] is not None:
                self.refuse(victim[1])

    def refuse(self, asked: Any) -> None:
        self.refused.append(asked)
        self.asked.pop(asked, None)

    def settle(self, name: str, ident: Any) -> None:
        self.streams[name].open.remove(ident)
        self.tokens = [each for each in self.tokens if each[0] != (name, ident)]

    def unassociated(self) -> str:
        running = self.running()
        return running[0] if len(running) == 1 and not self.json_only else "0"

    def of_question(self) -> str:
        """The same for a request, which goes where somebody reads it."""
        name, listens = self.unassociated(), self.streams["0"].outlet is not None
        if self.json_only or (name == "0" and listens):
            return "0"
        if name != "0":
            return "0" if listens and self.streams[name].outlet is None else name
        read = [each for each in self.running() if self.streams[each].outlet is not None]
        return read[-1] if read else "0"

    def expect_answer(self, line: bytes, ident: Any) -> None:
        name = self.holder(ident)
        other = OTHER.get(ident)
        if name is None and not self.cancelled & {ident, other}:
            name = self.holder(other)
            line, ident = with_id(line, other), other
        if name is None:
            self.dropped["unasked"] += 1
            return
        stream = self.streams[name]
        self.settle(name, ident)
        if self.json_only:
            stream.held.append(line)
            if not stream.open:
                self.release(stream)
        else:
            self.keep(name, line)
            if not stream.open:
                stream.outlet = None

    def release(self, stream: Stream) -> None:
        """All answers at once, where somebody is there."""
        if stream.outlet is None:
            self.dropped["unread"] += len(stream.held)
        else:
            stream.sent += stream.held
        stream.outlet = None

    def say(self, kind: str, about: Any) -> bytes:
        """A message of the backend, and what the model makes of it."""
        self.said += 1
        message: dict[str, Any] = {"jsonrpc": "2.0"}
        params: dict[str, Any] = {"said": self.said}
        if kind == "answer":
            message |= {"id": about, "result": {"said": self.said}}
        else:
            if kind == "progress":
                params["progressToken"] = about
            elif kind == "cancel":
                params["requestId"] = about
            elif kind == "ask":
                message["id"] = about
            method = {
                "progress": "notifications/progress",
                "log": "notifications/message",
                "changed": "notifications/resources/list_changed",
                "ask": "sampling/createMessage",
                "cancel": "notifications/cancelled",
            }[kind]
            message |= {"method": method, "params": params}
        line = json.dumps(message).encode()
        if kind == "answer":
            self.expect_answer(line, about)
        elif kind == "progress":
            names = [name for (name, _), token in self.tokens if token == about]
            self.expect(names[0] if names and not self.json_only else "0", line)
        elif kind == "cancel" and any(about == asked for _, asked in self.waiting):
            held = next(each for each in self.waiting if each[1] == about)
            self.waiting.remove(held)
            self.asked.pop(about, None)
        elif kind == "cancel":
            name, _ = self.asked.pop(about, ("0", 0))
            self.expect(name if self.streams[name].open else "0", line)
        elif kind == "changed":
            self.expect("0", line)
        elif kind == "log":
            self.expect(self.unassociated(), line)
        else:
            name = self.of_question()
            stream = self.streams[name]
            waits = name == "0" and stream.outlet is None
            self.asked.pop(about, None)
            self.asked[about] = name, 0 if waits else len(stream.sent) + 1
            self.expect(name, line, about)
        return line

    # The backend.

    @rule(messages=st.lists(MESSAGES, min_size=1, max_size=3), batch=st.booleans())
    def backend_says(self, messages: list[tuple[str, Any]], batch: bool) -> None:
        lines = []
        for kind, about in messages:
            line = self.say(kind, about)
            lines.append(line)
            if not batch:
                self.router.route(line)
        if batch:
            self.router.route(b"[" + b", ".join(lines) + b"]")

    # The client.

    @rule(requests=st.lists(st.tuples(IDS, TOKENS), min_size=1, max_size=3), busy=st.booleans())
    def post(self, requests: list[tuple[Any, Any]], busy: bool) -> None:
        outlet = StreamSink()
        ids = [ident for ident, _ in requests]
        if len(set(ids)) < len(ids) or any(self.holder(ident) for ident in ids):
            with pytest.raises(IdInUse):
                self.router.open_post(requests, outlet)
            return
        name = self.router.open_post(requests, outlet)
        assert name == str(len(self.streams))
        stream = self.streams[name] = Stream()
        if busy:
            self.router.abandon(name)
            return
        stream.open = ids
        stream.outlet = stream.reading = outlet
        for ident, token in requests:
            if token is not None and token not in [each for _, each in self.tokens]:
                self.tokens.append(((name, ident), token))

    @rule()
    def get(self) -> None:
        outlet = StreamSink()
        stream = self.streams["0"]
        # Without an id the client says that it does without what it has not read;
        # what is still with the older connection moves.
        displaced, moved = stream.outlet, []
        stream.read = len(stream.sent)
        if displaced is not None:
            first = len(stream.sent) - len(displaced.unread)
            numbers = range(first + 1, len(stream.sent) + 1)
            if all(("0", number) in self.kept for number in numbers):
                moved = list(numbers)
                stream.read = first
            else:
                self.dropped["unread"] += len(displaced.unread)
                for asked, (where, number) in list(self.asked.items()):
                    if where == "0" and number > first:
                        self.refuse(asked)
        stream.outlet = stream.reading = outlet
        self.flush()
        self.router.open_get(outlet)
        assert [ident for ident, _ in outlet.unread[: len(moved)]] == [f"0-{n}" for n in moved]
        assert displaced is None or displaced.over == "displaced"

    @rule(data=st.data(), count=st.integers(1, 4))
    def read(self, data: st.DataObject, count: int) -> None:
        self.read_some(data.draw(st.sampled_from(sorted(self.streams))), count)

    def read_some(self, name: str, count: int) -> None:
        stream = self.streams[name]
        if stream.reading is None:
            return
        for ident, line in stream.reading.unread[:count]:
            assert ident == f"{name}-{stream.read + 1}", "an event is missing, or there twice"
            assert line == stream.sent[stream.read]
            stream.read += 1
        del stream.reading.unread[:count]

    @rule(data=st.data(), noticed=st.booleans())
    def drop(self, data: st.DataObject, noticed: bool) -> None:
        """The connection is lost with what was not read; the news may come late."""
        name = data.draw(st.sampled_from(sorted(self.streams)))
        stream = self.streams[name]
        stream.reading = None
        if noticed and stream.outlet is not None:
            self.router.detach(name, stream.outlet)
            stream.outlet = None

    @rule(data=st.data())
    def late_news(self, data: st.DataObject) -> None:
        """A connection that is not attached goes: that changes nothing."""
        self.router.detach(data.draw(st.sampled_from(sorted(self.streams))), StreamSink())

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        self.come_back(data.draw(st.sampled_from(sorted(self.streams))))

    def come_back(self, name: str) -> bool:
        """Resume with the last event that was read; whether that is possible."""
        stream, outlet = self.streams[name], StreamSink()
        last = f"{name}-{stream.read}"
        missed = range(stream.read + 1, len(stream.sent) + 1)
        runs = name == "0" or bool(stream.open)
        possible = all((name, number) in self.kept for number in missed) and (
            bool(missed) or runs or (name, stream.read) in self.kept
        )
        if (self.json_only and name != "0") or not possible:
            if stream.outlet is None:
                for asked, (where, number) in list(self.asked.items()):
                    if where == name and number > stream.read:
                        self.refuse(asked)
            with pytest.raises(CannotResume):
                self.router.resume(last, outlet)
            return False
        displaced, stream.reading = stream.outlet, outlet
        if runs:
            stream.outlet = outlet
        if name == "0":
            self.flush()
        assert self.router.resume(last, outlet) == name
        assert displaced is None or displaced.over == "displaced"
        assert outlet.over == ("" if runs else "final" if missed else "end")
        return True

    @rule(ident=IDS)
    def cancel(self, ident: Any) -> None:
        name = self.holder(ident)
        outlet = None
        if name is not None:
            stream = self.streams[name]
            self.settle(name, ident)
            self.cancelled.add(ident)
            if not stream.open:
                outlet, stream.outlet = stream.outlet, stream.outlet
                if stream.held:
                    self.release(stream)
                stream.outlet = None
        self.router.cancel(ident)
        if outlet is not None:
            assert outlet.over == ("final" if self.streams[str(name)].held else "end")

    @rule(ident=IDS)
    def answer_backend(self, ident: Any) -> None:
        self.asked.pop(ident, None)
        self.router.answered_backend(Envelope("2.0", id=ident))

    # What holds at all times.

    @invariant()
    def tables_agree(self) -> None:
        router = self.router
        assert router.in_flight == sum(len(each.open) for each in self.streams.values())
        attached = {name for name, each in self.streams.items() if each.outlet is not None}
        assert router.has_sinks == bool(attached)
        assert router.dropped == self.dropped
        assert router.position == len(self.streams["0"].sent)
        assert self.to_backend == self.refused
        assert len(router._asked) == len(self.asked)
        assert len(router._backlog) == len(self.waiting) <= self.max_waiting
        assert len(self.log) == len(self.kept) <= self.max_kept
        for each in self.streams.values():
            assert each.outlet is None or not each.outlet.over

    @invariant()
    def nothing_is_on_two_streams(self) -> None:
        everything = [line for stream in self.streams.values() for line in stream.sent]
        assert len(everything) == len(set(everything))

    def teardown(self) -> None:
        """Every stream is read to its end, by a client that comes back where it has to."""
        if not hasattr(self, "streams"):
            return
        for name, stream in self.streams.items():
            self.read_some(name, 1 << 30)
            if stream.read == len(stream.sent) or self.come_back(name):
                self.read_some(name, 1 << 30)
                assert stream.read == len(stream.sent)
            else:
                assert self.json_only or self.max_kept < 1000, "nothing had to be lost"


TestStreams = StreamsMachine.TestCase
TestStreams.settings = settings(max_examples=examples(300), stateful_step_count=50, deadline=None)
