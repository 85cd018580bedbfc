"""Limits of open connections: no address has them all, and idle connections give way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mcpbridge.config.tuning import (
    COMPLAIN_SECONDS,
    GIVE_WAY_SECONDS,
    IDLE_ADDRESSES,
    IDLE_CANDIDATES,
    IDLE_LOOK_SECONDS,
    IDLE_SECONDS,
)
from mcpbridge.web import watched_connection
from mcpbridge.web.client_addresses import Peer
from mcpbridge.web.connection_limits import Connections
from tests.unit.web.test_fast_path import CALL, World, post, post_mcp

both = pytest.mark.parametrize("fast_path", [True, False])
NOTE = b'{"jsonrpc":"2.0","method":"x"}'


class FakeConnection:
    """A connection that has been idle since some time, or is busy."""

    def __init__(
        self, address: str, since: float | None, *, exempt: bool = False, full: bool = False
    ) -> None:
        self.peer = Peer(address, exempt)
        self.since = since
        self.full = full
        self.gone = False

    def idle_since(self) -> float | None:
        return self.since

    def give_way(self) -> bool:
        self.gone = not self.full
        return self.gone


def admit_all(connections: Connections, *fakes: FakeConnection) -> list[bool]:
    return [connections.admit(each) for each in fakes]


@pytest.mark.parametrize(("limit", "share"), [(4, 4), (100, 4)])
def test_connection_that_its_client_has_closed_gives_way_before_an_idle_one(
    limit: int, share: int
) -> None:
    """Each of them once; where none is left, or none can be lost, an idle one does."""
    connections = Connections(limit, share, Clock())
    idle, *left = (FakeConnection("a", since) for since in (0.0, None, None, None))
    assert admit_all(connections, idle, *left) == [True] * 4
    for each in left:
        connections.closed_by_client(each)
    connections.remove(left[0])
    left[1].full = True
    more = [FakeConnection("a", None) for _ in range(4)]
    assert admit_all(connections, *more[:2]) == [True, True]
    assert (idle.gone, left[1].gone, left[2].gone) == (True, False, False)
    assert admit_all(connections, *more[2:]) == [True, False]
    assert left[2].gone
    assert len(connections) == 4


def test_connection_that_is_not_counted_does_not_give_way() -> None:
    connections = Connections(1, 1, Clock())
    refused = FakeConnection("a", None)
    connections.closed_by_client(refused)
    assert admit_all(connections, FakeConnection("a", None), FakeConnection("a", None)) == [
        True,
        False,
    ]
    assert not refused.gone


def test_longest_idle_connection_of_the_address_with_most_gives_way() -> None:
    connections = Connections(6, 4, Clock())
    few = [FakeConnection("few", 0.0), FakeConnection("few", 0.1)]
    most = [
        FakeConnection("most", 3.0),
        FakeConnection("most", 1.0),
        FakeConnection("most", None),
        FakeConnection("most", 2.0),
    ]
    assert all(admit_all(connections, *few, *most))
    assert admit_all(connections, FakeConnection("new", 9.0), FakeConnection("other", 9.0)) == [
        True,
        True,
    ]
    assert [each.gone for each in most] == [False, True, False, True]
    assert not any(each.gone for each in few)
    assert len(connections) == 6


def test_address_at_its_limit_displaces_only_its_own_connections(log_lines: list[str]) -> None:
    clock = Clock()
    connections = Connections(100, 2, clock)
    other, idle = FakeConnection("b", 0.0), FakeConnection("a", 5.0)
    assert all(
        admit_all(connections, other, idle, FakeConnection("a", None), FakeConnection("a", None))
    )
    assert idle.gone
    assert admit_all(connections, FakeConnection("a", 6.0), FakeConnection("a", 6.0)) == [
        False,
        False,
    ]
    assert not other.gone
    assert log_lines == [
        (
            "a has reached its share of connections: 2 (max_connections_per_address); refused"
            " since the last such line, of all addresses: 1"
        )
    ]
    clock.advance(COMPLAIN_SECONDS)
    assert admit_all(connections, FakeConnection("a", 6.0)) == [False]
    assert log_lines[1].endswith("of all addresses: 2")
    assert len(connections) == 3


def test_exempt_address_may_have_all_connections_but_gives_way() -> None:
    connections = Connections(5, 2, Clock())
    exempt = [FakeConnection("local", float(each), exempt=True) for each in range(5)]
    assert all(admit_all(connections, *exempt))
    assert admit_all(
        connections, FakeConnection("a", None), FakeConnection("a", None), FakeConnection("a", None)
    ) == [
        True,
        True,
        False,
    ]
    assert [each.gone for each in exempt] == [True, True, False, False, False]


def test_new_connection_is_refused_if_none_is_idle(log_lines: list[str]) -> None:
    clock = Clock()
    connections = Connections(3, 3, clock)
    busy = [
        FakeConnection("a", None),
        FakeConnection("b", None),
        FakeConnection("c", 0.0, full=True),
    ]
    assert all(admit_all(connections, *busy))
    assert admit_all(connections, FakeConnection("d", 0.0), FakeConnection("e", 0.0)) == [
        False,
        False,
    ]
    assert log_lines == ["refusing connections: 3 are open (max_connections)"]
    # Further connections do not start another search at once.
    busy[0].since = 1.0
    assert admit_all(connections, FakeConnection("d", 0.0)) == [False]
    clock.advance(IDLE_LOOK_SECONDS * 3)
    assert admit_all(connections, FakeConnection("d", 0.0)) == [True]
    assert busy[0].gone


@pytest.mark.parametrize(
    ("busy", "admitted"), [(IDLE_ADDRESSES - 1, True), (IDLE_ADDRESSES, False)]
)
def test_search_for_an_idle_connection_is_bounded(
    busy: int, admitted: bool, log_lines: list[str]
) -> None:
    """`IDLE_ADDRESSES`, those with most connections first."""
    fakes = [FakeConnection(f"busy {number}", None) for number in range(busy) for _ in range(2)]
    idle = FakeConnection("idle", 0.0)
    connections = Connections(len(fakes) + 1, 2, Clock())
    assert all(admit_all(connections, *fakes, idle))
    assert admit_all(connections, FakeConnection("new", 0.0)) == [admitted]
    assert idle.gone is admitted
    assert len(log_lines) == (not admitted)


def test_connection_that_became_busy_does_not_give_way() -> None:
    connections = Connections(3, 3, Clock())
    fakes = [FakeConnection("a", 0.0), FakeConnection("a", 1.0), FakeConnection("a", 2.0)]
    assert all(admit_all(connections, *fakes, FakeConnection("b", 9.0)))
    fakes[1].since = None
    assert admit_all(connections, FakeConnection("c", 9.0)) == [True]
    assert [each.gone for each in fakes] == [True, False, True]


def test_one_search_finds_many_idle_connections() -> None:
    looked = [0]

    class Counted(FakeConnection):
        def idle_since(self) -> float | None:
            looked[0] += 1
            return super().idle_since()

    count = 50 * IDLE_CANDIDATES
    connections = Connections(count, count, Clock())
    assert all(admit_all(connections, *(Counted("a", float(each)) for each in range(count))))
    # As many as are open come from elsewhere, and each takes the place of one.
    for each in range(count // 4):
        assert connections.admit(FakeConnection(str(each), None))
    assert looked[0] < (count // 4 / IDLE_CANDIDATES + 1) * count + count
    assert len(connections) == count


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 9)), max_size=60))
def test_counts_match_the_open_connections(steps: list[tuple[str, bool, int]]) -> None:
    connections = Connections(6, 3, Clock())
    known: list[FakeConnection] = []
    for address, opens, number in steps:
        if opens:
            fake = FakeConnection(address, None if number < 5 else float(number))
            if connections.admit(fake):
                known.append(fake)
        elif known:
            connections.remove(known[number % len(known)])
            connections.remove(known.pop(number % len(known)))
        known = [each for each in known if not each.gone]
        assert len(connections) == len(known) <= 6
        per = {each: sum(fake.peer.address == each for fake in known) for each in "abc"}
        assert max(per.values()) <= 3
        by_count = {
            count: {each for each in per if per[each] == count} for count in set(per.values()) - {0}
        }
        assert {
            count: set(each) for count, each in connections._fullest._by_count.items()
        } == by_count
        assert set(connections._of) == {each for each in per if per[each]}


# Real channels.


def connect(world: World, host: str) -> tuple[Any, StringTransport]:
    made = world.site.buildProtocol(None)
    transport = StringTransport(peerAddress=IPv4Address("TCP", host, 1))
    made.makeConnection(transport)
    return made, transport


@both
def test_idle_connections_of_one_address_do_not_block_others(fast_path: bool) -> None:
    """Half of them are refused, and the others give way."""
    world = World(fast_path=fast_path, max_connections=10)
    flood = []
    for _ in range(20):
        flood.append(connect(world, "192.0.2.1"))
        world.clock.advance(0.001)
    assert len(world.site._connections) == 6
    others = [connect(world, f"192.0.2.{each}") for each in range(2, 10)]
    for made, transport in others:
        world.clock.advance(0.001)
        made.dataReceived(post(NOTE))
        assert transport.value().startswith(b"HTTP/1.1 202")
        assert not transport.disconnecting
    assert len(world.site._connections) == 10
    for made, _ in (*flood, *others):
        made.connectionLost()
    world.channel.connectionLost()
    assert len(world.site._connections) == 0
    assert not world.site.channels


BUSY = [
    post(NOTE)[:20],
    post(NOTE)[:-5],
    post_mcp(CALL),
    b"POST /b/message HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx",
]


@both
@pytest.mark.parametrize("data", BUSY)
def test_connection_with_an_incomplete_request_is_not_idle(fast_path: bool, data: bytes) -> None:
    world = World(fast_path=fast_path)
    world.channel.dataReceived(data)
    assert world.channel.idle_since() is None
    world.channel.connectionLost()


@both
def test_connection_is_idle_since_its_last_bytes(
    fast_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(fast_path=fast_path)
    assert world.channel.idle_since() == 0.0
    world.clock.advance(7)
    world.channel.dataReceived(post(NOTE))
    assert world.channel.idle_since() == 7.0
    world.clock.advance(IDLE_SECONDS - 1)
    assert world.channel.idle_since() == 7.0
    monkeypatch.setattr(watched_connection, "unsent", lambda transport: 1)
    assert not world.channel.give_way()
    assert not world.seen()[1]
    monkeypatch.setattr(watched_connection, "unsent", lambda transport: 0)
    assert world.channel.give_way()
    assert world.seen()[1]
    world.channel.connectionLost()


@both
def test_connection_that_gives_way_is_aborted_after_give_way_seconds(
    fast_path: bool, log_lines: list[str]
) -> None:
    """A TLS client that does not close would otherwise stay, uncounted."""
    world = World(fast_path=fast_path)
    aborted: list[float] = []
    world.transport.abortConnection = lambda: aborted.append(  # type: ignore[method-assign]
        world.clock.seconds()
    )
    log_lines.clear()
    assert world.channel.give_way()
    world.clock.advance(GIVE_WAY_SECONDS)
    assert aborted == [GIVE_WAY_SECONDS]
    assert log_lines == []
    world.channel.connectionLost()
    assert not world.calls_of_connection()
