"""The connections of Streamable HTTP without connections: what is written, when, and who waits."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS, RETRY_MILLISECONDS
from mcpbridge.errors import MessageRefused
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.message_filters import MessageFilters
from mcpbridge.session.memory_event_store import MemoryEventLog
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.testing import FakeBackend
from mcpbridge.web.content_negotiation import ANYTHING, Accepted
from mcpbridge.web.stream_response import StreamResponse
from mcpbridge.web.watched_connection import WatchedConnection

NEW, OLD = "2025-11-25", "2025-06-18"
EVENTS_ALONE = Accepted(json=False, events=True)
JSON_ALONE = Accepted(json=True, events=False)
COMMENT = b": keepalive\n\n"
PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t"}}'
CHANGED = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'


def answer_to(ident: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"result":{}}' % ident


def event(ident: str, line: bytes) -> bytes:
    return b"event: message\nid: %b\ndata: %b\n\n" % (ident.encode(), line)


def priming(ident: str) -> bytes:
    return b"id: %b\nretry: %d\ndata: \n\n" % (ident.encode(), RETRY_MILLISECONDS)


class FakeTransport:
    """A connection that can be aborted."""

    aborted = False
    #: What is not written, as a transport of Twisted's has it.
    dataBuffer = b""

    def abortConnection(self) -> None:
        self.aborted = True


class FakeRequest:
    """A request as far as an outlet writes to it."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.channel: WatchedConnection | None = WatchedConnection()
        self.code = 200
        self.headers: dict[bytes, bytes] = {}
        self.written: list[bytes] = []
        self.producer: Any = None

    @property
    def text(self) -> bytes:
        return b"".join(self.written)

    @property
    def kind(self) -> bytes:
        return self.headers.get(b"Content-Type", b"")

    def setResponseCode(self, code: int) -> None:
        assert not self.written
        self.code = code

    def setHeader(self, name: bytes, value: bytes) -> None:
        assert not self.written
        self.headers[name] = value

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.written.append(data)


class Opened:
    """One response and its request."""

    def __init__(self, made: Any, transport: Any, may: Accepted, **more: Any) -> None:
        self.transport = transport or FakeTransport()
        self.request = FakeRequest(self.transport)
        self.outlet = StreamResponse(
            self.request, made.streamable, made.settings, made.clock, may=may, **more
        )

    @property
    def finished(self) -> int:
        """1 when the response is complete; completing it twice would raise."""
        return int(self.outlet.finished.called)


class Made:
    """A session of Streamable HTTP whose backend is a fake."""

    def __init__(self, negotiated: str | None = NEW, **changes: Any) -> None:
        self.clock = Clock()
        changes = {"keepalive_interval": 0, "idle_timeout": 0, **changes}
        self.settings = ServerSettings(command="cat", **changes)
        self.backend = FakeBackend()
        self.backend.stopped = succeed(None)
        self.session = BackendSession(
            ident="0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10",
            server="cat",
            clock=self.clock,
            permit=self,
            forget=lambda _: None,
            closed=lambda _: None,
            stderr_notifications=False,
            backend=self.backend,
        )
        self.log = MemoryEventLog(100, 100_000)
        self.streamable = StreamableSession(self.session, self.settings, self.clock, self.log)
        self.session.sink = self.streamable
        self.streamable.negotiated = negotiated
        self.all: list[Opened] = []

    def release(self) -> None:
        """The permit comes back."""

    def post(self, *idents: int, transport: Any = None, batch: bool = False) -> Opened:
        may = JSON_ALONE if self.settings.json_response else ANYTHING
        opened = Opened(self, transport, may, batch=batch)
        asked: list[Any] = [(ident, "t" if ident == 1 else None) for ident in idents]
        stream = self.streamable.router.open_post(asked, opened.outlet)
        opened.outlet.attached(stream)
        self.all.append(opened)
        return opened

    def get(self, last: str = "", transport: Any = None) -> Opened:
        opened = Opened(self, transport, EVENTS_ALONE)
        position = self.streamable.router.position
        if last:
            stream = self.streamable.router.resume(last, opened.outlet)
            position = int(last.rpartition("-")[2])
        else:
            stream = self.streamable.router.open_get(opened.outlet)
        opened.outlet.attached(stream, position)
        self.all.append(opened)
        return opened

    def leave(self, opened: Opened) -> None:
        """The connection is lost, as `notifyFinish` tells it."""
        opened.request.channel = None
        opened.outlet.gone()
        self.streamable.router.detach(opened.outlet.stream, opened.outlet)

    def said(self, *lines: bytes) -> None:
        self.session.messages_received(list(lines))

    @property
    def ended(self) -> str:
        return self.session.reason


@pytest.fixture
def made() -> Iterator[Made]:
    """A session; at the end no timer may be left, nor a backend paused."""
    one = Made()
    yield one
    check_end(one)


def check_end(made: Made) -> None:
    """Whatever was open, nothing is left to happen once the session is over."""
    made.session.life.end("the test is over")
    assert made.clock.getDelayedCalls() == []
    assert made.backend.events.count("pause") == made.backend.events.count("resume")
    for opened in made.all:
        here = opened.request.channel is not None
        assert opened.finished == here
        assert not here or opened.request.producer is None
        assert opened.request.channel is None or not opened.request.channel.streaming


# JSON or events.


def test_an_answer_alone_is_json(made: Made) -> None:
    opened = made.post(1)
    assert opened.request.written == []
    made.said(answer_to(1))
    assert (opened.request.kind, opened.request.text) == (b"application/json", answer_to(1))
    assert opened.request.headers[b"Content-Length"] == b"%d" % len(answer_to(1))
    assert opened.finished == 1


def test_something_before_the_answer_makes_events(made: Made) -> None:
    opened = made.post(1)
    made.said(PROGRESS)
    assert opened.request.kind == b"text/event-stream"
    assert opened.request.text == priming("1-0") + event("1-1", PROGRESS)
    assert opened.request.channel is not None
    assert opened.request.channel.streaming
    made.said(answer_to(1))
    assert opened.request.text.endswith(event("1-2", answer_to(1)))
    assert opened.finished == 1


@pytest.mark.parametrize(("negotiated", "head"), [(NEW, priming("1-0")), (OLD, COMMENT)])
def test_a_silent_request_is_committed(negotiated: str, head: bytes) -> None:
    """After `COMMIT_SECONDS` it is a stream; the priming event is for 2025-11-25 alone."""
    made = Made(negotiated)
    opened = made.post(1)
    made.clock.advance(COMMIT_SECONDS - 0.01)
    assert opened.request.written == []
    made.clock.advance(0.01)
    assert (opened.request.kind, opened.request.text) == (b"text/event-stream", head)
    made.said(answer_to(1))
    assert opened.request.text == head + event("1-1", answer_to(1))
    check_end(made)


def test_no_priming_before_the_revision_is_known() -> None:
    """A slow `initialize` is committed without what its client might not understand."""
    made = Made(None)
    made.streamable.initializing(1)
    opened = made.post(1)
    made.clock.advance(COMMIT_SECONDS)
    assert opened.request.text == COMMENT
    made.said(b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25"}}')
    assert made.streamable.negotiated == NEW
    assert made.get().request.text == priming("0-0")
    check_end(made)


@pytest.mark.parametrize(
    "line", [b'{"jsonrpc":"2.0","id":1,"result":7}', b'{"jsonrpc":"2.0","id":1,"result":{}}']
)
def test_an_answer_that_names_no_revision(line: bytes) -> None:
    made = Made(None)
    made.streamable.initializing(1)
    opened = made.post(1)
    made.said(CHANGED, line)
    assert (made.streamable.negotiated, opened.request.text) == (None, line)
    check_end(made)


def test_a_backend_that_refuses_to_initialize() -> None:
    """Its client gets the error; then the session is over."""
    made = Made(None)
    made.streamable.initializing(1)
    opened = made.post(1)
    error = b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}'
    made.said(error)
    assert (opened.request.text, made.ended) == (error, "")
    made.clock.advance(0)
    assert made.ended == "the backend refused to initialize"
    check_end(made)


def test_a_batch_is_answered_by_one_event_each(made: Made) -> None:
    opened = made.post(1, 2, batch=True)
    made.said(answer_to(2))
    assert opened.finished == 0
    made.said(answer_to(1))
    assert opened.request.text.endswith(event("1-1", answer_to(2)) + event("1-2", answer_to(1)))
    assert opened.finished == 1


def test_json_alone() -> None:
    """Neither time nor progress makes events of it; a batch is an array."""
    made = Made(json_response=True)
    one, two = made.post(1), made.post(2, 3, batch=True)
    made.clock.advance(COMMIT_SECONDS * 10)
    made.said(PROGRESS, answer_to(1), answer_to(3))
    assert (one.request.kind, one.request.text) == (b"application/json", answer_to(1))
    assert two.request.written == []
    made.said(answer_to(2))
    assert two.request.text == b"[" + answer_to(3) + b"," + answer_to(2) + b"]"
    check_end(made)


def test_a_response_taken_over_is_committed_next(made: Made) -> None:
    """One that was patient before has its head at the next turn of the reactor."""
    opened = Opened(made, None, ANYTHING)
    opened.outlet.attached(made.streamable.router.open_post([(1, None)], opened.outlet), patience=0)
    made.all.append(opened)
    assert opened.request.written == []
    made.clock.advance(0)
    assert opened.request.text == priming("1-0")


# Streams that end with nothing on them.


def test_a_cancelled_request_was_accepted(made: Made) -> None:
    opened = made.post(1)
    made.streamable.router.cancel(1)
    assert (opened.request.code, opened.request.written) == (202, [])
    assert opened.request.headers == {b"Content-Length": b"0"}
    assert opened.finished == 1


def test_nothing_more_to_come_back_for(made: Made) -> None:
    """A stream that was cancelled after it began: its client comes back once, not for ever."""
    opened = made.post(1)
    made.said(PROGRESS)
    made.streamable.router.cancel(1)
    assert opened.finished == 1
    again = made.get("1-1")
    assert (again.request.code, again.request.headers, again.finished) == (204, {}, 1)


def test_a_displaced_connection_ends(made: Made) -> None:
    opened = made.post(1)
    made.said(PROGRESS)
    again = made.get("1-0")
    assert (opened.finished, again.finished) == (1, 0)
    assert again.request.text == priming("1-0") + event("1-1", PROGRESS)
    made.said(answer_to(1))
    assert answer_to(1) not in opened.request.text
    assert again.request.text.endswith(event("1-2", answer_to(1)))


def test_held_messages_come_with_the_get_stream(made: Made) -> None:
    made.said(CHANGED)
    opened = made.get()
    assert opened.request.text == priming("0-0") + event("0-1", CHANGED)
    made.leave(opened)
    again = made.get()
    assert again.request.text == priming("0-1")


def test_nothing_is_written_to_a_lost_connection(made: Made) -> None:
    opened = made.post(1)
    opened.request.channel = None
    opened.outlet.gone()
    made.said(PROGRESS, answer_to(1))
    made.clock.advance(COMMIT_SECONDS)
    assert opened.request.written == []
    opened.outlet.end()
    assert opened.finished == 0


# Keep-alive.


def test_keepalive_comments() -> None:
    """On every open stream, from its beginning to its end."""
    made = Made(keepalive_interval=3)
    stream, call = made.get(), made.post(1)
    made.clock.pump([COMMIT_SECONDS, 1, 2, 1])
    assert stream.request.text == priming("0-0") + COMMENT * 2
    assert call.request.text == priming("1-0") + COMMENT
    made.said(answer_to(1))
    made.leave(stream)
    made.clock.advance(10)
    assert stream.request.text.count(COMMENT) == 2
    assert call.request.text.count(COMMENT) == 1
    check_end(made)


def test_no_keepalive(made: Made) -> None:
    """0: none."""
    stream = made.get()
    made.clock.pump([15] * 10)
    assert stream.request.text == priming("0-0")


# Clients that do not read.


def test_an_outlet_is_a_producer(made: Made) -> None:
    assert verifyObject(IPushProducer, made.get().outlet)


def test_the_backend_waits_for_the_slowest(made: Made) -> None:
    """It is paused by the first connection that is full, and goes on when none is."""
    made.said(PROGRESS)
    one, two, three = made.get(), made.post(1), made.post(2)
    made.clock.advance(COMMIT_SECONDS)
    told = made.backend.events
    one.request.producer.pauseProducing()
    two.request.producer.pauseProducing()
    two.request.producer.pauseProducing()
    assert told == ["pause"]
    one.request.producer.resumeProducing()
    one.request.producer.resumeProducing()
    three.request.producer.resumeProducing()
    assert told == ["pause"]
    two.request.producer.stopProducing()
    assert told == ["pause"]
    two.request.producer.resumeProducing()
    assert told == ["pause", "resume"]


@pytest.mark.parametrize("how", ["gone", "answered", "cancelled", "displaced"])
def test_a_lost_connection_does_not_pause_the_backend(made: Made, how: str) -> None:
    """However a full connection ends, the backend goes on."""
    opened = made.post(1)
    made.said(PROGRESS)
    opened.request.producer.pauseProducing()
    if how == "gone":
        made.leave(opened)
    elif how == "answered":
        made.said(answer_to(1))
    elif how == "cancelled":
        made.streamable.router.cancel(1)
    else:
        made.get("1-1")
    assert made.backend.events == ["pause", "resume"]


class Stalled(Connection):
    """A connection with bytes that the peer does not take."""

    aborted = 0

    def __init__(self, reactor: Any) -> None:
        pair = socket.socketpair()
        super().__init__(pair[0], Protocol(), reactor)
        pair[1].close()
        pair[0].close()
        self.dataBuffer = b"x"

    def abortConnection(self) -> None:
        self.aborted += 1


def test_a_stalled_connection_ends_and_the_session_lives() -> None:
    """After `peer_timeout` without a byte taken."""
    made = Made(peer_timeout=8)
    transport = Stalled(made.clock)
    opened, other = made.get(transport=transport), made.post(2)
    opened.request.producer.pauseProducing()
    made.clock.pump([2] * 3)
    assert transport.aborted == 0
    made.clock.pump([2] * 2)
    assert transport.aborted == 1
    assert not other.transport.aborted
    made.leave(opened)
    assert made.backend.events == ["pause", "resume"]
    assert made.ended == ""
    made.said(CHANGED)
    assert event("0-1", CHANGED) in made.get().request.text
    check_end(made)


# Idleness.


def test_an_idle_session_ends() -> None:
    made = Made(idle_timeout=40)
    made.clock.pump([10] * 3)
    assert made.ended == ""
    made.clock.advance(10)
    assert made.ended == "idle for 40 s"
    assert made.backend.events == ["stop"]
    check_end(made)


def test_never_idle() -> None:
    """0: never."""
    made = Made(idle_timeout=0)
    made.clock.pump([1e6] * 5)
    assert made.ended == ""
    check_end(made)


@pytest.mark.parametrize("kind", ["get", "post"])
def test_not_idle_while_a_stream_is_open(kind: str) -> None:
    """The time runs from when the last one is gone."""
    made = Made(idle_timeout=40)
    opened = made.get() if kind == "get" else made.post(1)
    made.clock.pump([10] * 20)
    assert made.ended == ""
    # Just before the next look: all of the time is still to come.
    made.clock.advance(9)
    made.leave(opened)
    made.clock.pump([1, 10, 10, 10])
    assert made.ended == ""
    made.clock.pump([10] * 2)
    assert made.ended == "idle for 40 s"
    check_end(made)


def test_a_message_of_the_client_is_a_sign_of_life() -> None:
    made = Made(idle_timeout=40)
    for _ in range(10):
        made.clock.pump([10] * 3)
        made.streamable.touch()
    assert made.ended == ""
    check_end(made)


def test_what_a_backend_says_to_nobody_is_none() -> None:
    """However much it says, its session ends when the client stays away."""
    made = Made(idle_timeout=40)
    for _ in range(4):
        made.clock.advance(10)
        made.said(CHANGED)
    assert made.ended == "idle for 40 s"
    check_end(made)


def test_an_answer_that_was_awaited_is_one() -> None:
    """The time runs from when the client got it."""
    made = Made(idle_timeout=40)
    made.clock.pump([10, 9])
    made.post(1)
    made.said(answer_to(1))
    made.clock.pump([1, 10, 10, 10])
    assert made.ended == ""
    made.clock.pump([10])
    assert made.ended == "idle for 40 s"
    check_end(made)


# The end.


@pytest.mark.parametrize("shown", [False, True])
def test_open_requests_get_an_error(shown: bool) -> None:
    """It names why, the exit status among it; stderr where the setting allows."""
    made = Made(stderr_in_errors=shown)
    silent, loud, stream = made.post(2), made.post(1), made.get()
    made.said(PROGRESS)
    made.session.diagnostics_received([b"it hurts \xff"])
    made.session.output_closed("the backend exited with status 7")
    error = msgspec.json.decode(silent.request.text)
    assert (silent.request.kind, error["id"]) == (b"application/json", 2)
    assert error["error"]["code"] == -32000
    assert error["error"]["message"].endswith(": the backend exited with status 7")
    assert error["error"].get("data") == ({"stderr": ["it hurts \ufffd"]} if shown else None)
    assert b'"id":1,"error"' in loud.request.text
    assert stream.request.text == priming("0-0")
    assert [each.finished for each in (silent, loud, stream)] == [1, 1, 1]
    assert len(made.log) == 0
    check_end(made)


def test_no_stderr_where_there_was_none() -> None:
    made = Made(stderr_in_errors=True)
    opened = made.post(1)
    made.session.life.end("so be it")
    assert "data" not in msgspec.json.decode(opened.request.text)["error"]
    check_end(made)


def test_dropped_messages_are_counted(made: Made, log_lines: list[str]) -> None:
    """Once, in the log, when the session ends."""
    made.said(answer_to(9), CHANGED)
    made.session.life.end("so be it")
    [line] = [line for line in log_lines if "reached nobody" in line]
    assert "'unasked': 1" in line
    assert "'unread': 1" in line


def test_a_request_that_finds_no_room_is_answered() -> None:
    """A request of the backend that reaches nobody gets an error, and so it knows."""
    made = Made(max_waiting_messages=1)
    for ident in (1, 2):
        made.said(b'{"jsonrpc":"2.0","id":"s%d","method":"roots/list"}' % ident)
    [line] = made.backend.sent
    error = msgspec.json.decode(line)
    assert (error["id"], error["error"]["code"]) == ("s1", -32000)
    assert b'"s2"' in made.get().request.text
    check_end(made)


def test_every_open_request_gets_its_error_at_the_end() -> None:
    """Whatever its id is: a string that is no text keeps no other from its own."""
    made = Made()
    strange, plain = Opened(made, None, ANYTHING), Opened(made, None, ANYTHING)
    for ident, opened in (("\ud800", strange), (7, plain)):
        stream = made.streamable.router.open_post([(ident, None)], opened.outlet)
        opened.outlet.attached(stream)
    made.session.life.end("over")
    assert (strange.finished, plain.finished) == (1, 1)
    assert b"\\ud800" in strange.request.text
    assert b'"id":7' in plain.request.text


# A GET stream that is taken over.


def test_what_the_transport_still_holds_moves(made: Made) -> None:
    """Each event once: what is written stays, what is not comes on the newer connection."""
    old = made.get()
    lines = [
        CHANGED,
        CHANGED.replace(b"tools", b"prompts"),
        CHANGED.replace(b"tools", b"resources"),
    ]
    made.said(lines[0])
    made.said(lines[1])
    old.transport.dataBuffer = b"x" * 1000
    made.said(lines[2])
    sizes = [len(event(f"0-{n}", line)) for n, line in enumerate(lines, 1)]
    # All of the last chunk, and the line end behind the last but one.
    last = sizes[2] + len(b"%x" % sizes[2]) + 4
    old.transport.dataBuffer = b"x" * (last + 3)
    assert old.outlet.unwritten() == 2
    new = made.get()
    assert new.request.text == priming("0-1") + b"".join(
        event(f"0-{n}", lines[n - 1]) for n in (2, 3)
    )
    assert (old.finished, old.transport.aborted) == (1, True)
    made.said(CHANGED)
    assert new.request.text.endswith(event("0-4", CHANGED))


def test_events_of_one_chunk_are_told_apart(made: Made) -> None:
    old = made.get()
    made.said(CHANGED)
    made.leave(old)
    made.said(PROGRESS, CHANGED)
    old = made.get()
    for more, left in ((1, 2), (0, 1), (-len(event("0-3", CHANGED)), 0)):
        old.transport.dataBuffer = b"x" * (2 + len(event("0-3", CHANGED)) + more)
        assert old.outlet.unwritten() == left


def test_an_older_connection_that_has_written_all_is_closed_in_order(made: Made) -> None:
    old = made.get()
    made.said(CHANGED)
    new = made.get()
    assert (old.finished, old.transport.aborted) == (1, False)
    assert new.request.text == priming("0-1")
    assert made.post(1).outlet.unwritten() == 0
    made.leave(new)
    assert new.outlet.unwritten() == 0


class NoSecrets:
    """A filter."""

    def from_client(self, session: object, line: bytes) -> bytes:
        if b"secret" in line:
            raise MessageRefused("that is secret")
        return line

    def from_backend(self, session: object, line: bytes) -> bytes:
        return line


def receive(made: Made, opened: Opened, *lines: bytes) -> str | None:
    messages = [(line, peek(line)) for line in lines]
    return made.streamable.receive(messages, lambda: opened.outlet)  # type: ignore[arg-type]


def test_a_refused_call_is_answered_with_its_id(made: Made) -> None:
    """beat: a 403 without an id ends clients of SDK 1.x; this one is an answer like any other."""
    made.session.filters = MessageFilters([NoSecrets()])
    opened = Opened(made, None, ANYTHING)
    call = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"%b"}}'
    assert receive(made, opened, call % b"secret") == "1"
    assert opened.request.written == []
    made.clock.advance(0)
    assert opened.request.code == 200
    assert msgspec.json.decode(opened.request.text) == {
        "jsonrpc": "2.0",
        "id": 7,
        "error": {"code": -32000, "message": "that is secret"},
    }
    assert receive(made, Opened(made, None, ANYTHING), call % b"open") == "2"
    assert made.backend.sent == [call % b"open"]


def test_a_refused_cancellation_cancels_nothing(made: Made) -> None:
    made.session.filters = MessageFilters([NoSecrets()])
    opened = made.post(1)
    cancelled = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1%b}}'
    assert receive(made, opened, cancelled % b',"reason":"secret"') is None
    assert (made.streamable.router.in_flight, made.backend.sent) == (1, [])
    assert receive(made, opened, cancelled % b"") is None
    assert (made.streamable.router.in_flight, len(made.backend.sent)) == (0, 1)


def test_a_question_is_held_as_long_as_its_client_may_take(made: Made) -> None:
    asked = b'{"jsonrpc":"2.0","id":"%b","method":"elicitation/create"}'
    made.said(asked % b"a")
    made.clock.advance(made.settings.input_timeout - 1)
    made.said(asked % b"b")
    assert made.backend.sent == []
    made.clock.advance(1)
    assert [msgspec.json.decode(each)["id"] for each in made.backend.sent] == ["a"]
    get = made.get()
    assert asked % b"b" in get.request.text
    made.clock.advance(made.settings.input_timeout)
    assert len(made.backend.sent) == 1
    made.leave(get)
    made.said(asked % b"c")


def test_a_response_that_must_be_json_takes_no_question() -> None:
    made = Made(json_response=True)
    post, get = made.post(1), made.get()
    assert (post.outlet.takes_events, get.outlet.takes_events) == (False, True)
    made.leave(get)
    assert not get.outlet.takes_events
    check_end(made)
