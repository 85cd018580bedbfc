"""
What the system reports about a TCP connection: unsent and acknowledged bytes, and a peer that has
left.
"""

import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from mcpbridge.web.tcp import acknowledged, has_left, notice_vanished_peer, raw_socket, unsent

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


class Transport:
    """A transport with a socket, and bytes that are not written to it yet."""

    def __init__(self, handle: object, waiting: bytes = b"") -> None:
        self._handle = handle
        self.dataBuffer = waiting
        self.offset = 0

    def getHandle(self) -> object:
        return self._handle


class Wrapper:
    """A wrapper around a transport, as TLS has one."""

    def __init__(self, transport: object) -> None:
        self.transport = transport


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        closing(socket.create_connection(listener.getsockname())) as ours,
    ):
        theirs, _ = listener.accept()
        with closing(theirs):
            ours.setblocking(False)
            yield ours, theirs


def fill(connection: socket.socket) -> int:
    size = 0
    while True:
        try:
            size += connection.send(bytes(65536))
        except BlockingIOError:
            return size


@linux
def test_bytes_in_the_send_buffer_are_unsent_until_acknowledged(pair: Pair) -> None:
    ours, theirs = pair
    transport = Wrapper(Transport(ours, waiting=b"xyz"))
    assert unsent(transport) == 3
    size = fill(ours)
    held = unsent(transport) - 3
    taken = acknowledged(transport)
    assert 0 < held <= size
    assert taken is not None
    rest = size
    while rest:
        rest -= len(theirs.recv(65536))
    deadline = time.monotonic() + 20
    while unsent(transport) > 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert unsent(transport) == 3
    now = acknowledged(transport)
    assert now is not None
    assert now >= taken + held


def test_transport_without_a_tcp_socket_reports_nothing() -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        for transport in (None, object(), Transport(None), Transport(ours), Wrapper(None)):
            assert raw_socket(transport) is None
            assert unsent(transport) == 0
            assert acknowledged(transport) is None
            assert not has_left(transport)
            notice_vanished_peer(transport, 60)


@linux
def test_closed_connection_reports_only_unwritten_bytes(pair: Pair) -> None:
    ours, _ = pair
    ours.close()
    transport = Transport(ours, b"x")
    assert unsent(transport) == 1
    assert acknowledged(transport) is None
    assert not has_left(transport)
    notice_vanished_peer(transport, 60)


@linux
def test_notice_vanished_peer_sets_tcp_keepalive(pair: Pair) -> None:
    ours, _ = pair
    notice_vanished_peer(Transport(ours), 8)
    option = ours.getsockopt
    assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 2
    assert option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 2
    assert option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
    assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@linux
@pytest.mark.parametrize("how", ["closed", "half", "reset"])
def test_peer_has_left_although_its_bytes_are_unread(pair: Pair, how: str) -> None:
    ours, theirs = pair
    transport = Wrapper(Transport(ours))
    theirs.sendall(b"unread")
    assert not has_left(transport)
    if how == "half":
        theirs.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
    deadline = time.monotonic() + 20
    while not has_left(transport) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert has_left(transport)


def test_lost_connection_has_nothing_unsent() -> None:
    """Twisted's transport has no socket any more, and a timer may look at it all the same."""

    class Lost:
        def getHandle(self) -> object:
            raise AttributeError("socket")

    assert unsent(Lost()) == 0
    assert acknowledged(Lost()) is None
    assert not has_left(Lost())
