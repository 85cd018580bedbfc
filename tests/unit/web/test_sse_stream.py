"""The event stream on one response: its bytes, its pings, and who does not read it."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.testing import FakeBackend
from mcpbridge.web.sse_stream import EventStream
from mcpbridge.web.watched_connection import WatchedConnection

ENDPOINT = "/base/message?sessionId=0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10"


class FakeTransport:
    """A connection that can be aborted."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class FakeRequest:
    """A request as far as a stream writes to it."""

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


class Made:
    """A stream that is open; `waiting` and `taken` are what the connection says of itself."""

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


def test_it_is_a_producer() -> None:
    verifyObject(IPushProducer, Made().stream)


# What is written.


def test_the_first_bytes() -> None:
    """keep: the first two events at once and byte for byte; the headers."""
    made = Made()
    assert b"".join(made.request.written) == (
        b"event: endpoint\n"
        b"data: /base/message?sessionId=0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10\n"
        b"\n"
        b"event: message\n"
        b'data: {"jsonrpc": "2.0","method": "ping","id":"ping:1"}\n'
        b"\n"
    )
    assert len(made.request.written) == 1
    assert made.request.headers == {
        b"Content-Type": b"text/event-stream",
        b"Cache-Control": b"no-cache",
        b"X-Accel-Buffering": b"no",
    }
    assert made.request.producer is made.stream
    assert made.request.channel is not None
    assert made.request.channel.streaming


def test_messages_are_written_as_one_piece() -> None:
    """keep: each message line is one `event: message`, data the line as it was written."""
    made = Made()
    made.stream.send([b"[1]", b'{"a": 2}'])
    assert made.request.written[1:] == [
        b'event: message\ndata: [1]\n\nevent: message\ndata: {"a": 2}\n\n'
    ]


def test_on_a_socket_messages_are_written_at_once() -> None:
    """The same events as chunks, behind what is buffered already, nothing out of order."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        reactor: Any = FakeWriting()
        connection = Connection(ours, Protocol(), reactor)
        connection.connected = True
        made = Made(connection, opened=False)
        made.stream.send([b"[1]"])
        assert theirs.recv(1000) == chunk(b"[1]")
        connection.write(b"before ")
        made.stream.send([b"[2]", b"[3]"])
        connection.doWrite()
        assert theirs.recv(1000) == b"before " + chunk(b"[2]", b"[3]")
        large = b"[" + b"x" * 2_000_000
        made.stream.send([large])
        made.stream.send([b"[4]"])
        received = bytearray()
        while len(received) < len(chunk(large) + chunk(b"[4]")):
            connection.doWrite()
            received += theirs.recv(1 << 20)
        assert bytes(received) == chunk(large) + chunk(b"[4]")
        assert made.request.written == []


class FakeWriting:
    """A reactor that is told who wants to write."""

    def addWriter(self, writer: Any) -> None: ...

    def removeWriter(self, writer: Any) -> None: ...


def chunk(*lines: bytes) -> bytes:
    """Events as a chunk (RFC 9112, section 7.1)."""
    events = b"".join(b"event: message\ndata: " + line + b"\n\n" for line in lines)
    return b"%x\r\n%b\r\n" % (len(events), events)


# Pings.


def test_a_ping_each_interval() -> None:
    """keep: then a ping every 30 s, `ping:2`, `ping:3`, strictly increasing."""
    made = Made()
    made.clock.advance(29.9)
    assert made.pings() == [b"ping:1"]
    made.clock.advance(0.1)
    assert made.pings() == [b"ping:1", b"ping:2"]
    assert made.request.written[1] == (
        b'event: message\ndata: {"jsonrpc": "2.0","method": "ping","id":"ping:2"}\n\n'
    )
    made.clock.pump([30.0] * 3)
    assert made.pings() == [b"ping:1", b"ping:2", b"ping:3", b"ping:4", b"ping:5"]


def test_the_interval_is_a_setting() -> None:
    """keep: the interval is a setting."""
    made = Made(ping_interval=0.5)
    made.clock.advance(0.5)
    assert len(made.pings()) == 2


def test_no_pings() -> None:
    """`--ping-interval 0`: none at all, not even the first."""
    made = Made(ping_interval=0)
    assert made.request.written == [f"event: endpoint\ndata: {ENDPOINT}\n\n".encode()]
    made.clock.pump([10.0] * 10)
    assert made.pings() == []


def test_no_ping_waits_behind_a_full_stream() -> None:
    """Pings are not queued behind a full stream; afterwards they go on without a gap."""
    made = Made(peer_timeout=1000)
    made.stream.pauseProducing()
    made.clock.pump([30.0] * 5)
    assert made.pings() == [b"ping:1"]
    made.stream.resumeProducing()
    made.clock.advance(30)
    assert made.pings() == [b"ping:1", b"ping:2"]


# Backpressure.


def test_a_client_that_does_not_keep_up_pauses_its_own_backend() -> None:
    """A client that does not read its stream stops the reading of its own backend."""
    made = Made()
    made.stream.pauseProducing()
    assert made.session.backend.events == ["pause"]
    made.stream.resumeProducing()
    assert made.session.backend.events == ["pause", "resume"]


@pytest.mark.parametrize("tells", [True, False])
def test_a_client_that_takes_no_byte_is_ended(tells: bool) -> None:
    """promise: a network that just dies: the session stops, with the reason."""
    made = Made(peer_timeout=8)
    made.waiting = 100
    made.taken = 10 if tells else None
    made.clock.pump([0.1] * 79)
    assert made.finished == 0
    made.clock.pump([0.1] * 16)
    assert made.session.reason == "the client read nothing for 8 s"
    assert made.transport.aborted
    assert made.finished == 1
    assert made.clock.getDelayedCalls() == []


def test_a_client_that_stalls_later_has_its_whole_time() -> None:
    made = Made(peer_timeout=8)
    made.clock.pump([1.0] * 100)
    made.waiting = 100
    made.clock.pump([1.0] * 7)
    assert not made.transport.aborted
    made.clock.pump([1.0] * 5)
    assert made.transport.aborted


def test_a_client_that_reads_slowly_is_served() -> None:
    """Below `peer_timeout` nothing is lost: one byte in that time is enough."""
    made = Made(peer_timeout=8, min_transfer_rate=0)
    made.waiting = 1000
    made.taken = 0
    for _ in range(20):
        made.clock.pump([1.0] * 6)
        made.taken += 1
    assert not made.transport.aborted
    assert made.finished == 0


def test_a_client_that_reads_too_slowly_is_ended() -> None:
    """`min_transfer_rate`, and the log says how little it took."""
    made = Made(peer_timeout=8, min_transfer_rate=10)
    made.waiting = 1000
    made.taken = 0
    while made.clock.seconds() < 59:
        made.clock.pump([1.0] * 4)
        made.taken += 1
    assert not made.transport.aborted
    made.clock.pump([1.0] * 4)
    assert made.transport.aborted
    assert "bytes in 60 s (min_transfer_rate)" in made.session.reason


def test_a_client_with_nothing_to_take_is_not_stalled() -> None:
    made = Made(peer_timeout=8, ping_interval=0)
    made.taken = 50
    made.clock.pump([1.0] * 100)
    assert not made.transport.aborted


def test_without_the_systems_help_what_was_written_tells() -> None:
    """Where acknowledged bytes are not known: written, and no longer waiting, is taken."""
    made = Made(peer_timeout=8, ping_interval=0)
    made.waiting = 100
    for _ in range(10):
        made.stream.send([b"[1]"])
        made.clock.pump([1.0] * 6)
    assert not made.transport.aborted
    made.clock.pump([1.0] * 12)
    assert made.transport.aborted


# The end.


def test_close() -> None:
    """promise: the stream ends, once, and the keepalive wait with it."""
    made = Made()
    channel = made.request.channel
    made.stream.stop_keepalive()
    made.stream.close()
    made.stream.close()
    assert channel is not None
    assert not channel.streaming
    assert (made.finished, made.request.producer) == (1, None)
    assert made.clock.getDelayedCalls() == []
    made.stream.send([b"[1]"])
    assert len(made.request.written) == 1


def test_the_keepalive_may_be_stopped_before_it_began_and_twice() -> None:
    made = Made(opened=False)
    made.stream.stop_keepalive()
    made.stream.open(ENDPOINT)
    made.stream.stop_keepalive()
    made.stream.stop_keepalive()
    assert made.clock.getDelayedCalls() == []


def test_close_when_the_connection_is_gone_already() -> None:
    made = Made()
    made.request.channel = None
    made.stream.close()
    assert made.finished == 1


def test_a_client_that_is_gone_is_written_nothing() -> None:
    """promise: the client goes away: nothing more is written, nor waited for."""
    made = Made()
    made.stream.client_gone("lost")
    made.stream.send([b"[1]"])
    made.clock.advance(30)
    made.stream.stop_keepalive()
    made.stream.close()
    assert len(made.request.written) == 1
    assert made.clock.getDelayedCalls() == []


def test_the_connection_may_ask_to_stop() -> None:
    made = Made()
    made.stream.stopProducing()
    assert made.finished == 0
