"""
The responses of a Streamable HTTP session, without connections: what is written when, and what a
slow client delays.
"""

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
from mcpbridge.config.tuning import COMMIT_SECONDS, RETRY_MILLISECONDS, SESSION_SHARE
from mcpbridge.errors import MessageRefused
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.message_filters import MessageFilters
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.session.memory_event_store import MemoryEventLog
from mcpbridge.session.streamable import IDLE_CHECKS, StreamableSession
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
    #: The bytes that are not written yet, as in a transport of Twisted.
    dataBuffer = b""

    def abortConnection(self) -> None:
        self.aborted = True


class FakeRequest:
    """The part of a request that a response uses."""

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


class OpenResponse:
    """One response and its request."""

    def __init__(self, harness: Any, transport: Any, may: Accepted, **more: Any) -> None:
        self.transport = transport or FakeTransport()
        self.request = FakeRequest(self.transport)
        self.outlet = StreamResponse(
            self.request, harness.streamable, harness.settings, harness.clock, may=may, **more
        )

    @property
    def finished(self) -> int:
        """1 when the response is complete; completing it twice would raise."""
        return int(self.outlet.finished.called)


class SessionHarness:
    """A session of Streamable HTTP with a fake backend."""

    def __init__(
        self,
        negotiated: str | None = NEW,
        budget: ResponseBudget | None = None,
        **changes: Any,
    ) -> None:
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
        self.streamable = StreamableSession(
            self.session, self.settings, self.clock, self.log, budget
        )
        self.session.sink = self.streamable
        self.streamable.negotiated = negotiated
        self.all: list[OpenResponse] = []

    def release(self) -> None:
        """Return the permit."""

    def post(self, *idents: int, transport: Any = None, batch: bool = False) -> OpenResponse:
        may = JSON_ALONE if self.settings.json_response else ANYTHING
        opened = OpenResponse(self, transport, may, batch=batch)
        asked: list[Any] = [(ident, "t" if ident == 1 else None) for ident in idents]
        stream = self.streamable.router.open_post(asked, opened.outlet)
        opened.outlet.attached(stream)
        self.all.append(opened)
        return opened

    def get(self, last: str = "", transport: Any = None) -> OpenResponse:
        opened = OpenResponse(self, transport, EVENTS_ALONE)
        position = self.streamable.router.position
        if last:
            stream = self.streamable.router.resume(last, opened.outlet)
            position = int(last.rpartition("-")[2])
        else:
            stream = self.streamable.router.open_get(opened.outlet)
        opened.outlet.attached(stream, position)
        self.all.append(opened)
        return opened

    def leave(self, opened: OpenResponse) -> None:
        """Lose the connection, as `notifyFinish` reports it."""
        opened.request.channel = None
        opened.outlet.gone()
        self.streamable.router.detach(opened.outlet.stream, opened.outlet)

    def backend_sends(self, *lines: bytes) -> None:
        self.session.messages_received(list(lines))

    @property
    def ended(self) -> str:
        return self.session.reason


@pytest.fixture
def harness() -> Iterator[SessionHarness]:
    """A session; at the end no timer may be left, nor a backend paused."""
    one = SessionHarness()
    yield one
    check_end(one)


def check_end(harness: SessionHarness) -> None:
    """End the session, and check that no delayed call and no paused backend is left."""
    harness.session.life.end("the test is over")
    assert harness.clock.getDelayedCalls() == []
    assert harness.backend.events.count("pause") == harness.backend.events.count("resume")
    for opened in harness.all:
        here = opened.request.channel is not None
        assert opened.finished == here
        assert not here or opened.request.producer is None
        assert opened.request.channel is None or not opened.request.channel.streaming


# JSON or events.


def test_single_response_is_json(harness: SessionHarness) -> None:
    opened = harness.post(1)
    assert opened.request.written == []
    harness.backend_sends(answer_to(1))
    assert (opened.request.kind, opened.request.text) == (b"application/json", answer_to(1))
    assert opened.request.headers[b"Content-Length"] == b"%d" % len(answer_to(1))
    assert opened.finished == 1


def test_notification_before_the_response_opens_an_event_stream(harness: SessionHarness) -> None:
    opened = harness.post(1)
    harness.backend_sends(PROGRESS)
    assert opened.request.kind == b"text/event-stream"
    assert opened.request.text == priming("1-0") + event("1-1", PROGRESS)
    assert opened.request.channel is not None
    assert opened.request.channel.streaming
    harness.backend_sends(answer_to(1))
    assert opened.request.text.endswith(event("1-2", answer_to(1)))
    assert opened.finished == 1


@pytest.mark.parametrize(("negotiated", "head"), [(NEW, priming("1-0")), (OLD, COMMENT)])
def test_silent_request_opens_an_event_stream_after_commit_seconds(
    negotiated: str, head: bytes
) -> None:
    """Only clients of 2025-11-25 get a priming event."""
    harness = SessionHarness(negotiated)
    opened = harness.post(1)
    harness.clock.advance(COMMIT_SECONDS - 0.01)
    assert opened.request.written == []
    harness.clock.advance(0.01)
    assert (opened.request.kind, opened.request.text) == (b"text/event-stream", head)
    harness.backend_sends(answer_to(1))
    assert opened.request.text == head + event("1-1", answer_to(1))
    check_end(harness)


def test_stream_of_initialize_has_no_priming_event() -> None:
    """The client's revision is not known yet."""
    harness = SessionHarness(None)
    harness.streamable.initializing(1)
    opened = harness.post(1)
    harness.clock.advance(COMMIT_SECONDS)
    assert opened.request.text == COMMENT
    harness.backend_sends(b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25"}}')
    assert harness.streamable.negotiated == NEW
    assert harness.get().request.text == priming("0-0")
    check_end(harness)


@pytest.mark.parametrize(
    "line", [b'{"jsonrpc":"2.0","id":1,"result":7}', b'{"jsonrpc":"2.0","id":1,"result":{}}']
)
def test_initialize_result_without_a_revision_passes_unchanged(line: bytes) -> None:
    harness = SessionHarness(None)
    harness.streamable.initializing(1)
    opened = harness.post(1)
    harness.backend_sends(CHANGED, line)
    assert (harness.streamable.negotiated, opened.request.text) == (None, line)
    check_end(harness)


def test_initialize_error_reaches_the_client_and_ends_the_session() -> None:
    harness = SessionHarness(None)
    harness.streamable.initializing(1)
    opened = harness.post(1)
    error = b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}'
    harness.backend_sends(error)
    assert (opened.request.text, harness.ended) == (error, "")
    harness.clock.advance(0)
    assert harness.ended == "the backend refused to initialize"
    check_end(harness)


def test_each_response_to_a_batch_is_an_event(harness: SessionHarness) -> None:
    opened = harness.post(1, 2, batch=True)
    harness.backend_sends(answer_to(2))
    assert opened.finished == 0
    harness.backend_sends(answer_to(1))
    assert opened.request.text.endswith(event("1-1", answer_to(2)) + event("1-2", answer_to(1)))
    assert opened.finished == 1


def test_json_response_setting_answers_with_json_only() -> None:
    """Neither time nor progress opens a stream; a batch is answered with an array."""
    harness = SessionHarness(json_response=True)
    one, two = harness.post(1), harness.post(2, 3, batch=True)
    harness.clock.advance(COMMIT_SECONDS * 10)
    harness.backend_sends(PROGRESS, answer_to(1), answer_to(3))
    assert (one.request.kind, one.request.text) == (b"application/json", answer_to(1))
    assert two.request.written == []
    harness.backend_sends(answer_to(2))
    assert two.request.text == b"[" + answer_to(3) + b"," + answer_to(2) + b"]"
    check_end(harness)


def test_resumed_response_opens_its_stream_at_once(harness: SessionHarness) -> None:
    """That is, in the next iteration of the reactor."""
    opened = OpenResponse(harness, None, ANYTHING)
    opened.outlet.attached(
        harness.streamable.router.open_post([(1, None)], opened.outlet), patience=0
    )
    harness.all.append(opened)
    assert opened.request.written == []
    harness.clock.advance(0)
    assert opened.request.text == priming("1-0")


# Streams that end with nothing on them.


def test_cancelled_request_is_answered_with_202(harness: SessionHarness) -> None:
    opened = harness.post(1)
    harness.streamable.router.cancel(1)
    assert (opened.request.code, opened.request.written) == (202, [])
    assert opened.request.headers == {b"Content-Length": b"0"}
    assert opened.finished == 1


def test_resuming_a_cancelled_stream_is_answered_with_204(harness: SessionHarness) -> None:
    """So its client does not reconnect again and again."""
    opened = harness.post(1)
    harness.backend_sends(PROGRESS)
    harness.streamable.router.cancel(1)
    assert opened.finished == 1
    again = harness.get("1-1")
    assert (again.request.code, again.request.headers, again.finished) == (204, {}, 1)


def test_resumption_ends_the_older_connection_of_the_stream(harness: SessionHarness) -> None:
    opened = harness.post(1)
    harness.backend_sends(PROGRESS)
    again = harness.get("1-0")
    assert (opened.finished, again.finished) == (1, 0)
    assert again.request.text == priming("1-0") + event("1-1", PROGRESS)
    harness.backend_sends(answer_to(1))
    assert answer_to(1) not in opened.request.text
    assert again.request.text.endswith(event("1-2", answer_to(1)))


def test_waiting_messages_are_sent_on_the_get_stream(harness: SessionHarness) -> None:
    harness.backend_sends(CHANGED)
    opened = harness.get()
    assert opened.request.text == priming("0-0") + event("0-1", CHANGED)
    harness.leave(opened)
    again = harness.get()
    assert again.request.text == priming("0-1")


def test_nothing_is_written_to_a_lost_connection(harness: SessionHarness) -> None:
    opened = harness.post(1)
    opened.request.channel = None
    opened.outlet.gone()
    harness.backend_sends(PROGRESS, answer_to(1))
    harness.clock.advance(COMMIT_SECONDS)
    assert opened.request.written == []
    opened.outlet.end()
    assert opened.finished == 0


# Keep-alive.


def test_open_streams_get_keepalive_comments() -> None:
    harness = SessionHarness(keepalive_interval=3)
    stream, call = harness.get(), harness.post(1)
    harness.clock.pump([COMMIT_SECONDS, 1, 2, 1])
    assert stream.request.text == priming("0-0") + COMMENT * 2
    assert call.request.text == priming("1-0") + COMMENT
    harness.backend_sends(answer_to(1))
    harness.leave(stream)
    harness.clock.advance(10)
    assert stream.request.text.count(COMMENT) == 2
    assert call.request.text.count(COMMENT) == 1
    check_end(harness)


def test_keepalive_interval_0_sends_no_comments(harness: SessionHarness) -> None:
    stream = harness.get()
    harness.clock.pump([15] * 10)
    assert stream.request.text == priming("0-0")


# Clients that do not read.


def test_response_is_a_push_producer(harness: SessionHarness) -> None:
    assert verifyObject(IPushProducer, harness.get().outlet)


def test_backend_is_paused_until_no_connection_is_full(harness: SessionHarness) -> None:
    harness.backend_sends(PROGRESS)
    one, two, three = harness.get(), harness.post(1), harness.post(2)
    harness.clock.advance(COMMIT_SECONDS)
    told = harness.backend.events
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


@pytest.mark.parametrize("message", [0.5, 2])
def test_backend_waits_while_its_session_exceeds_its_share(message: float) -> None:
    """
    `SESSION_SHARE`: the part of `max_response_bytes` that one session may use
    for unread responses, which is at least one message.
    """
    part = 10_000
    budget = ResponseBudget(SESSION_SHARE * part, Clock())
    harness = SessionHarness(budget=budget, max_message_bytes=int(message * part))
    share = harness.streamable.share
    assert share is not None
    share.change(int(max(1, message) * part))
    assert harness.backend.events == []
    share.change(1)
    assert harness.backend.events == ["pause"]
    share.change(-1)
    assert harness.backend.events == ["pause", "resume"]


@pytest.mark.parametrize("how", ["gone", "answered", "cancelled", "displaced"])
def test_backend_is_resumed_when_a_full_connection_ends(harness: SessionHarness, how: str) -> None:
    """However it ends."""
    opened = harness.post(1)
    harness.backend_sends(PROGRESS)
    opened.request.producer.pauseProducing()
    if how == "gone":
        harness.leave(opened)
    elif how == "answered":
        harness.backend_sends(answer_to(1))
    elif how == "cancelled":
        harness.streamable.router.cancel(1)
    else:
        harness.get("1-1")
    assert harness.backend.events == ["pause", "resume"]


class StalledConnection(Connection):
    """A connection with bytes that the client does not read."""

    aborted = 0

    def __init__(self, reactor: Any) -> None:
        pair = socket.socketpair()
        super().__init__(pair[0], Protocol(), reactor)
        pair[1].close()
        pair[0].close()
        self.dataBuffer = b"x"

    def abortConnection(self) -> None:
        self.aborted += 1


def test_connection_is_aborted_after_peer_timeout_but_its_session_goes_on() -> None:
    harness = SessionHarness(peer_timeout=8)
    transport = StalledConnection(harness.clock)
    opened, other = harness.get(transport=transport), harness.post(2)
    opened.request.producer.pauseProducing()
    harness.clock.pump([2] * 3)
    assert transport.aborted == 0
    harness.clock.pump([2] * 2)
    assert transport.aborted == 1
    assert not other.transport.aborted
    harness.leave(opened)
    assert harness.backend.events == ["pause", "resume"]
    assert harness.ended == ""
    harness.backend_sends(CHANGED)
    assert event("0-1", CHANGED) in harness.get().request.text
    check_end(harness)


# Idleness.


def test_idle_session_ends_after_idle_timeout() -> None:
    harness = SessionHarness(idle_timeout=40)
    harness.clock.pump([10] * 3)
    assert harness.ended == ""
    harness.clock.advance(10)
    assert harness.ended == "idle for 40 s"
    assert harness.backend.events == ["stop"]
    check_end(harness)


def test_idle_session_ends_at_a_check() -> None:
    """There are `IDLE_CHECKS` in an `idle_timeout`: it ends up to one of them late."""
    harness = SessionHarness(idle_timeout=40)
    check = 40 / IDLE_CHECKS
    harness.clock.advance(check / 2)
    harness.streamable.touch()
    for _ in range(2 * IDLE_CHECKS):
        harness.clock.advance(check / 2)
    assert harness.ended == ""
    harness.clock.advance(check / 2)
    assert harness.ended == "idle for 40 s"
    check_end(harness)


def test_never_idle() -> None:
    """0: never."""
    harness = SessionHarness(idle_timeout=0)
    harness.clock.pump([1e6] * 5)
    assert harness.ended == ""
    check_end(harness)


@pytest.mark.parametrize("kind", ["get", "post"])
def test_session_with_an_open_stream_is_not_idle(kind: str) -> None:
    """The timeout begins when the last stream has ended."""
    harness = SessionHarness(idle_timeout=40)
    opened = harness.get() if kind == "get" else harness.post(1)
    harness.clock.pump([10] * 20)
    assert harness.ended == ""
    # Just before the next check, the whole timeout still lies ahead.
    harness.clock.advance(9)
    harness.leave(opened)
    harness.clock.pump([1, 10, 10, 10])
    assert harness.ended == ""
    harness.clock.pump([10] * 2)
    assert harness.ended == "idle for 40 s"
    check_end(harness)


def test_message_of_the_client_restarts_idle_timeout() -> None:
    harness = SessionHarness(idle_timeout=40)
    for _ in range(10):
        harness.clock.pump([10] * 3)
        harness.streamable.touch()
    assert harness.ended == ""
    check_end(harness)


def test_notifications_of_the_backend_do_not_restart_idle_timeout() -> None:
    harness = SessionHarness(idle_timeout=40)
    for _ in range(4):
        harness.clock.advance(10)
        harness.backend_sends(CHANGED)
    assert harness.ended == "idle for 40 s"
    check_end(harness)


def test_idle_timeout_begins_when_a_response_is_delivered() -> None:
    harness = SessionHarness(idle_timeout=40)
    harness.clock.pump([10, 9])
    harness.post(1)
    harness.backend_sends(answer_to(1))
    harness.clock.pump([1, 10, 10, 10])
    assert harness.ended == ""
    harness.clock.pump([10])
    assert harness.ended == "idle for 40 s"
    check_end(harness)


# The end.


@pytest.mark.parametrize("shown", [False, True])
def test_exit_of_the_backend_fails_open_requests(shown: bool) -> None:
    """The error has the exit status, and stderr if `stderr_in_errors` is set."""
    harness = SessionHarness(stderr_in_errors=shown)
    silent, loud, stream = harness.post(2), harness.post(1), harness.get()
    harness.backend_sends(PROGRESS)
    harness.session.diagnostics_received([b"it hurts \xff"])
    harness.session.output_closed("the backend exited with status 7")
    error = msgspec.json.decode(silent.request.text)
    assert (silent.request.kind, error["id"]) == (b"application/json", 2)
    assert error["error"]["code"] == -32000
    assert error["error"]["message"].endswith(": the backend exited with status 7")
    assert error["error"].get("data") == ({"stderr": ["it hurts \ufffd"]} if shown else None)
    assert b'"id":1,"error"' in loud.request.text
    assert stream.request.text == priming("0-0")
    assert [each.finished for each in (silent, loud, stream)] == [1, 1, 1]
    assert len(harness.log) == 0
    check_end(harness)


def test_error_without_stderr_output_has_no_data() -> None:
    harness = SessionHarness(stderr_in_errors=True)
    opened = harness.post(1)
    harness.session.life.end("so be it")
    assert "data" not in msgspec.json.decode(opened.request.text)["error"]
    check_end(harness)


def test_dropped_messages_are_logged_when_the_session_ends(
    harness: SessionHarness, log_lines: list[str]
) -> None:
    """In one line, with their numbers."""
    harness.backend_sends(answer_to(9), CHANGED)
    harness.session.life.end("so be it")
    [line] = [line for line in log_lines if "reached nobody" in line]
    assert "'unasked': 1" in line
    assert "'unread': 1" in line


def test_server_request_that_is_dropped_gets_an_error() -> None:
    """Otherwise the backend would wait for its response."""
    harness = SessionHarness(max_waiting_messages=1)
    for ident in (1, 2):
        harness.backend_sends(b'{"jsonrpc":"2.0","id":"s%d","method":"roots/list"}' % ident)
    [line] = harness.backend.sent
    error = msgspec.json.decode(line)
    assert (error["id"], error["error"]["code"]) == ("s1", -32000)
    assert b'"s2"' in harness.get().request.text
    check_end(harness)


def test_each_open_request_gets_an_error_whatever_its_id_is() -> None:
    """Also one whose id cannot be encoded as UTF-8."""
    harness = SessionHarness()
    strange, plain = OpenResponse(harness, None, ANYTHING), OpenResponse(harness, None, ANYTHING)
    for ident, opened in (("\ud800", strange), (7, plain)):
        stream = harness.streamable.router.open_post([(ident, None)], opened.outlet)
        opened.outlet.attached(stream)
    harness.session.life.end("over")
    assert (strange.finished, plain.finished) == (1, 1)
    assert b"\\ud800" in strange.request.text
    assert b'"id":7' in plain.request.text


# A GET stream that is taken over.


def test_unwritten_events_move_to_the_newer_get_stream(harness: SessionHarness) -> None:
    """Each event is sent once: those still buffered come on the newer connection."""
    old = harness.get()
    lines = [
        CHANGED,
        CHANGED.replace(b"tools", b"prompts"),
        CHANGED.replace(b"tools", b"resources"),
    ]
    harness.backend_sends(lines[0])
    harness.backend_sends(lines[1])
    old.transport.dataBuffer = b"x" * 1000
    harness.backend_sends(lines[2])
    sizes = [len(event(f"0-{n}", line)) for n, line in enumerate(lines, 1)]
    # The whole last chunk, and a part of the line end of the one before it.
    last = sizes[2] + len(b"%x" % sizes[2]) + 4
    old.transport.dataBuffer = b"x" * (last + 3)
    assert old.outlet.unwritten() == 2
    new = harness.get()
    assert new.request.text == priming("0-1") + b"".join(
        event(f"0-{n}", lines[n - 1]) for n in (2, 3)
    )
    assert (old.finished, old.transport.aborted) == (1, True)
    harness.backend_sends(CHANGED)
    assert new.request.text.endswith(event("0-4", CHANGED))


def test_unwritten_events_of_one_chunk_are_counted(harness: SessionHarness) -> None:
    old = harness.get()
    harness.backend_sends(CHANGED)
    harness.leave(old)
    harness.backend_sends(PROGRESS, CHANGED)
    old = harness.get()
    for more, left in ((1, 2), (0, 1), (-len(event("0-3", CHANGED)), 0)):
        old.transport.dataBuffer = b"x" * (2 + len(event("0-3", CHANGED)) + more)
        assert old.outlet.unwritten() == left


def test_older_get_stream_without_unwritten_events_is_not_aborted(harness: SessionHarness) -> None:
    old = harness.get()
    harness.backend_sends(CHANGED)
    new = harness.get()
    assert (old.finished, old.transport.aborted) == (1, False)
    assert new.request.text == priming("0-1")
    assert harness.post(1).outlet.unwritten() == 0
    harness.leave(new)
    assert new.outlet.unwritten() == 0


class RefusingFilter:
    """A filter that refuses messages with the word `secret`."""

    def from_client(self, session: object, line: bytes) -> bytes:
        if b"secret" in line:
            raise MessageRefused("that is secret")
        return line

    def from_backend(self, session: object, line: bytes) -> bytes:
        return line


def receive(harness: SessionHarness, opened: OpenResponse, *lines: bytes) -> str | None:
    messages = [(line, peek(line)) for line in lines]
    return harness.streamable.receive(messages, lambda: opened.outlet)  # type: ignore[arg-type]


def test_call_refused_by_a_filter_gets_an_error_with_its_id(harness: SessionHarness) -> None:
    """Clients of SDK 1.x end at a 403 without an id."""
    harness.session.filters = MessageFilters([RefusingFilter()])
    opened = OpenResponse(harness, None, ANYTHING)
    call = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"%b"}}'
    assert receive(harness, opened, call % b"secret") == "1"
    assert opened.request.written == []
    harness.clock.advance(0)
    assert opened.request.code == 200
    assert msgspec.json.decode(opened.request.text) == {
        "jsonrpc": "2.0",
        "id": 7,
        "error": {"code": -32000, "message": "that is secret"},
    }
    assert receive(harness, OpenResponse(harness, None, ANYTHING), call % b"open") == "2"
    assert harness.backend.sent == [call % b"open"]


def test_cancellation_refused_by_a_filter_cancels_nothing(harness: SessionHarness) -> None:
    harness.session.filters = MessageFilters([RefusingFilter()])
    opened = harness.post(1)
    cancelled = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1%b}}'
    assert receive(harness, opened, cancelled % b',"reason":"secret"') is None
    assert (harness.streamable.router.in_flight, harness.backend.sent) == (1, [])
    assert receive(harness, opened, cancelled % b"") is None
    assert (harness.streamable.router.in_flight, len(harness.backend.sent)) == (0, 1)


def test_server_request_waits_for_a_stream_until_input_timeout(harness: SessionHarness) -> None:
    asked = b'{"jsonrpc":"2.0","id":"%b","method":"elicitation/create"}'
    harness.backend_sends(asked % b"a")
    harness.clock.advance(harness.settings.input_timeout - 1)
    harness.backend_sends(asked % b"b")
    assert harness.backend.sent == []
    harness.clock.advance(1)
    assert [msgspec.json.decode(each)["id"] for each in harness.backend.sent] == ["a"]
    get = harness.get()
    assert asked % b"b" in get.request.text
    harness.clock.advance(harness.settings.input_timeout)
    assert len(harness.backend.sent) == 1
    harness.leave(get)
    harness.backend_sends(asked % b"c")


def test_json_only_response_takes_no_server_request() -> None:
    harness = SessionHarness(json_response=True)
    post, get = harness.post(1), harness.get()
    assert (post.outlet.takes_events, get.outlet.takes_events) == (False, True)
    harness.leave(get)
    assert not get.outlet.takes_events
    check_end(harness)
