"""The event stream of HTTP+SSE: its bytes, its pings, and clients that do not read it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.jsonrpc.envelope import read_message
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.testing import FakeBackend
from mcpbridge.twisted_internals import AT_ONCE_BYTES
from mcpbridge.web.sse_stream import EventStream
from mcpbridge.web.watched_connection import WatchedConnection

ENDPOINT = "/base/message?sessionId=0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10"


class FakeTransport:
    """A connection that can be aborted."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class FakeRequest:
    """The part of a request that a stream uses."""

    chunked = 1

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.channel: WatchedConnection | None = WatchedConnection()
        self.headers: dict[bytes, bytes] = {}
        self.written: list[bytes] = []
        self.sentLength = 0
        self.producer: Any = None

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


class StreamHarness:
    """An open stream; `waiting` and `taken` are what the connection reports."""

    def __init__(self, transport: Any = None, *, opened: bool = True, **changes: Any) -> None:
        self.clock = Clock()
        self.session = BackendSession(
            ident="0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10",
            server="cat",
            clock=self.clock,
            permit=None,
            forget=lambda _: None,
            closed=lambda _: None,
            backend=FakeBackend(),
        )
        self.transport = transport or FakeTransport()
        self.request = FakeRequest(self.transport)
        self.waiting = 0
        self.taken: int | None = None
        self.stream = EventStream(
            self.request,
            self.session,
            ServerSettings(command="cat", **changes),
            self.clock,
            pending=lambda _: self.waiting,
            acknowledged=lambda _: self.taken,
        )
        self.session.sink = self.stream
        if opened:
            self.stream.open(ENDPOINT)

    @property
    def finished(self) -> int:
        """1 when the response is complete; completing it twice would raise."""
        return int(self.stream.finished.called)

    def pings(self) -> list[bytes]:
        """The ids of all pings written."""
        text = b"".join(self.request.written)
        return [part.partition(b'"')[0] for part in text.split(b'"id":"')[1:]]


def test_stream_is_a_push_producer() -> None:
    verifyObject(IPushProducer, StreamHarness().stream)


# What is written.


def test_stream_begins_with_endpoint_and_ping() -> None:
    """Both events are written at once, byte for byte."""
    harness = StreamHarness()
    assert b"".join(harness.request.written) == (
        b"event: endpoint\n"
        b"data: /base/message?sessionId=0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10\n"
        b"\n"
        b"event: message\n"
        b'data: {"jsonrpc": "2.0","method": "ping","id":"ping:1"}\n'
        b"\n"
    )
    assert len(harness.request.written) == 1
    assert harness.request.headers == {
        b"Content-Type": b"text/event-stream",
        b"Cache-Control": b"no-cache",
        b"X-Accel-Buffering": b"no",
    }
    assert harness.request.producer is harness.stream
    assert harness.request.channel is not None
    assert harness.request.channel.streaming


def test_messages_of_one_read_are_written_at_once() -> None:
    """The data of each event is the line as the backend wrote it."""
    harness = StreamHarness()
    harness.stream.send([b"[1]", b'{"a": 2}'])
    assert harness.request.written[1:] == [
        b'event: message\ndata: [1]\n\nevent: message\ndata: {"a": 2}\n\n'
    ]


@contextmanager
def on_a_socket() -> Iterator[tuple[StreamHarness, Connection, socket.socket]]:
    """Yield a stream on a real socket, its connection and the client's end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        reactor: Any = FakeWriterReactor()
        connection = Connection(ours, Protocol(), reactor)
        connection.connected = True
        yield StreamHarness(connection, opened=False), connection, theirs


def test_messages_on_a_socket_follow_buffered_bytes_as_chunks() -> None:
    with on_a_socket() as (harness, connection, theirs):
        harness.stream.send([b"[1]"])
        assert theirs.recv(1000) == chunk(b"[1]")
        connection.write(b"before ")
        harness.stream.send([b"[2]", b"[3]"])
        connection.doWrite()
        assert theirs.recv(1000) == b"before " + chunk(b"[2]", b"[3]")
        large = b"[" + b"x" * 2_000_000
        harness.stream.send([large])
        harness.stream.send([b"[4]"])
        received = bytearray()
        while len(received) < len(chunk(large) + chunk(b"[4]")):
            connection.doWrite()
            received += theirs.recv(1 << 20)
        assert bytes(received) == chunk(large) + chunk(b"[4]")
        assert harness.request.written == []


@pytest.mark.parametrize("size", [AT_ONCE_BYTES, AT_ONCE_BYTES + 1])
def test_large_message_is_the_same_event(size: int) -> None:
    """Longer than `AT_ONCE_BYTES` it is written without a copy."""
    with on_a_socket() as (harness, connection, theirs):
        large = b"[" + b"1" * (size - 2) + b"]"
        harness.stream.send([large])
        received = bytearray()
        while len(received) < len(chunk(large)):
            connection.doWrite()
            received += theirs.recv(1 << 20)
        assert bytes(received) == chunk(large)
        assert harness.request.sentLength == len(chunk(large))


class FakeWriterReactor:
    """A reactor that is told who wants to write."""

    def addWriter(self, writer: Any) -> None: ...

    def removeWriter(self, writer: Any) -> None: ...


def chunk(*lines: bytes) -> bytes:
    """Return the events as one chunk (RFC 9112, section 7.1)."""
    events = b"".join(b"event: message\ndata: " + line + b"\n\n" for line in lines)
    return b"%x\r\n%b\r\n" % (len(events), events)


# Pings.


def test_pings_are_sent_every_30_seconds_and_numbered() -> None:
    harness = StreamHarness()
    harness.clock.advance(29.9)
    assert harness.pings() == [b"ping:1"]
    harness.clock.advance(0.1)
    assert harness.pings() == [b"ping:1", b"ping:2"]
    assert harness.request.written[1] == (
        b'event: message\ndata: {"jsonrpc": "2.0","method": "ping","id":"ping:2"}\n\n'
    )
    harness.clock.pump([30.0] * 3)
    assert harness.pings() == [b"ping:1", b"ping:2", b"ping:3", b"ping:4", b"ping:5"]


def test_ping_interval_can_be_set() -> None:
    harness = StreamHarness(ping_interval=0.5)
    harness.clock.advance(0.5)
    assert len(harness.pings()) == 2


def test_ping_interval_0_sends_no_pings() -> None:
    """Not even the first."""
    harness = StreamHarness(ping_interval=0)
    assert harness.request.written == [f"event: endpoint\ndata: {ENDPOINT}\n\n".encode()]
    harness.clock.pump([10.0] * 10)
    assert harness.pings() == []


def test_no_pings_are_queued_on_a_full_stream() -> None:
    """Later pings continue without a gap in their numbers."""
    harness = StreamHarness(peer_timeout=1000)
    harness.stream.pauseProducing()
    harness.clock.pump([30.0] * 5)
    assert harness.pings() == [b"ping:1"]
    harness.stream.resumeProducing()
    harness.clock.advance(30)
    assert harness.pings() == [b"ping:1", b"ping:2"]


# Backpressure.


def test_client_that_does_not_read_pauses_its_backend() -> None:
    harness = StreamHarness()
    harness.stream.pauseProducing()
    assert harness.session.backend.events == ["pause"]
    harness.stream.resumeProducing()
    assert harness.session.backend.events == ["pause", "resume"]


@pytest.mark.parametrize("tells", [True, False])
def test_session_ends_when_its_client_reads_nothing_for_peer_timeout(tells: bool) -> None:
    """promise: a network that just dies: the session stops, with the reason."""
    harness = StreamHarness(peer_timeout=8)
    harness.waiting = 100
    harness.taken = 10 if tells else None
    harness.clock.pump([0.1] * 79)
    assert harness.finished == 0
    harness.clock.pump([0.1] * 16)
    assert harness.session.reason == "the client read nothing for 8 s"
    assert harness.transport.aborted
    assert harness.finished == 1
    assert harness.clock.getDelayedCalls() == []


def test_peer_timeout_begins_when_the_client_stops_reading() -> None:
    harness = StreamHarness(peer_timeout=8)
    harness.clock.pump([1.0] * 100)
    harness.waiting = 100
    harness.clock.pump([1.0] * 7)
    assert not harness.transport.aborted
    harness.clock.pump([1.0] * 5)
    assert harness.transport.aborted


def test_client_that_takes_one_byte_in_peer_timeout_is_served() -> None:
    """Without `min_transfer_rate`."""
    harness = StreamHarness(peer_timeout=8, min_transfer_rate=0)
    harness.waiting = 1000
    harness.taken = 0
    for _ in range(20):
        harness.clock.pump([1.0] * 6)
        harness.taken += 1
    assert not harness.transport.aborted
    assert harness.finished == 0


def test_session_ends_when_its_client_reads_below_min_transfer_rate() -> None:
    """The reason has the rate."""
    harness = StreamHarness(peer_timeout=8, min_transfer_rate=10)
    harness.waiting = 1000
    harness.taken = 0
    while harness.clock.seconds() < 59:
        harness.clock.pump([1.0] * 4)
        harness.taken += 1
    assert not harness.transport.aborted
    harness.clock.pump([1.0] * 4)
    assert harness.transport.aborted
    assert "bytes in 60 s (min_transfer_rate)" in harness.session.reason


def test_client_without_unread_bytes_is_not_stalled() -> None:
    harness = StreamHarness(peer_timeout=8, ping_interval=0)
    harness.taken = 50
    harness.clock.pump([1.0] * 100)
    assert not harness.transport.aborted


def test_written_bytes_count_where_acknowledged_bytes_are_unknown() -> None:
    """Bytes that no longer wait to be written count as read."""
    harness = StreamHarness(peer_timeout=8, ping_interval=0)
    harness.waiting = 100
    for _ in range(10):
        harness.stream.send([b"[1]"])
        harness.clock.pump([1.0] * 6)
    assert not harness.transport.aborted
    harness.clock.pump([1.0] * 12)
    assert harness.transport.aborted


# The end.


def test_closed_stream_is_finished_once_and_writes_nothing() -> None:
    harness = StreamHarness()
    channel = harness.request.channel
    harness.stream.stop_keepalive()
    harness.stream.close()
    harness.stream.close()
    assert channel is not None
    assert not channel.streaming
    assert (harness.finished, harness.request.producer) == (1, None)
    assert harness.clock.getDelayedCalls() == []
    harness.stream.send([b"[1]"])
    assert len(harness.request.written) == 1


def test_keepalive_may_be_stopped_early_and_twice() -> None:
    harness = StreamHarness(opened=False)
    harness.stream.stop_keepalive()
    harness.stream.open(ENDPOINT)
    harness.stream.stop_keepalive()
    harness.stream.stop_keepalive()
    assert harness.clock.getDelayedCalls() == []


def test_close_after_a_lost_connection_finishes() -> None:
    harness = StreamHarness()
    harness.request.channel = None
    harness.stream.close()
    assert harness.finished == 1


def test_nothing_is_written_after_the_client_has_left() -> None:
    harness = StreamHarness()
    harness.stream.client_gone("lost")
    harness.stream.send([b"[1]"])
    harness.clock.advance(30)
    harness.stream.stop_keepalive()
    harness.stream.close()
    assert len(harness.request.written) == 1
    assert harness.clock.getDelayedCalls() == []


def test_stop_producing_does_not_finish_the_stream() -> None:
    harness = StreamHarness()
    harness.stream.stopProducing()
    assert harness.finished == 0


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        (b'{"jsonrpc":"2.0","id":"ping:1","method":"roots/list"}', True),
        (b'{"jsonrpc":"2.0","id":"\\u0070ing:1","method":"roots/list"}', True),
        (b'{"jsonrpc":"2.0","id":"ping:2","method":"roots/list"}', False),
        (b'{"jsonrpc":"2.0","id":"ping:1","result":{}}', False),
        (b'{"not json ping:1', False),
        (b'{"jsonrpc":"2.0","method":"notifications/message"}', False),
    ],
)
@pytest.mark.parametrize("length", [0, 2000])
def test_an_answer_to_a_request_of_the_backend_passes(
    asked: bytes, passes: bool, length: int
) -> None:
    """
    beat: an answer to a request of the backend passes, whatever its id, and
    however long that request is.
    """
    harness = StreamHarness()
    assert harness.pings() == [b"ping:1"]
    harness.session.messages_received([asked.rjust(length)])
    pong = b'{"jsonrpc":"2.0","id":"ping:1","result":{}}'
    harness.session.client_message(*read_message(pong))
    assert harness.session.backend.sent == ([pong] if passes else [])
