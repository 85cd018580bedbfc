"""Shares of client addresses: of request bytes, and of sessions."""

from __future__ import annotations

import re
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mcpbridge.config.tuning import CANCEL_SECONDS, COLLECT_SECONDS, COMPLAIN_SECONDS
from mcpbridge.errors import ServerBusy
from mcpbridge.processes.address_shares import Claims, Shares
from mcpbridge.stateless.client_connection import ClientConnection
from tests import fakes
from tests.unit.web.test_fast_path import LIMIT, World, post

both = pytest.mark.parametrize("fast_path", [True, False])
NOTE = b'{"jsonrpc":"2.0","method":"x"}'
#: A body of nearly the largest size, of which the last byte never comes.
UNFINISHED = post(b'{"jsonrpc":"2.0","method":"%b"}' % (b"x" * (LIMIT - 40)))[:-1]
HELD = len(UNFINISHED.partition(b"\r\n\r\n")[2])


def test_each_address_has_its_share_and_no_more(log_lines: list[str]) -> None:
    clock = Clock()
    shares = Shares(3, clock, what="sessions", setting="max_sessions_per_address")
    assert [shares.take("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert shares.take("b")
    shares.give_back("a")
    assert shares.take("a")
    assert len(log_lines) == 1
    clock.advance(COMPLAIN_SECONDS)
    assert not shares.take("a")
    assert log_lines[1] == (
        "a has reached its share of sessions: 3 (max_sessions_per_address); refused since the last"
        " such line, of all addresses: 2"
    )
    for address in "aaab":
        shares.give_back(address)
    assert len(shares) == 0


def test_log_says_whose_share_is_used_up(log_lines: list[str]) -> None:
    for of_identities in (False, True):
        shares = Shares(1, Clock(), what="x", setting="y", of_identities=of_identities)
        shares.refused("a")
    assert [each.rpartition(", ")[2] for each in log_lines] == [
        "of all addresses: 1",
        "of all identities: 1",
    ]


def test_a_claim_is_taken_if_it_is_free() -> None:
    shares = [Shares(2, Clock(), what="x", setting="y") for _ in range(2)]
    claims = Claims(*shares)
    shares[1].add("a", 1)
    first = claims.take_if_free("a")
    assert first is not None
    assert claims.take_if_free("a") is None
    assert claims.take_if_free(None) is None
    assert [each.taken("a") for each in shares] == [1, 2]
    # For work that has its process already.
    retry = claims.take_if_free("a", always=True)
    assert retry is not None
    for each in (first, retry):
        each.release()
    assert [each.taken("a") for each in shares] == [0, 1]


def test_the_address_none_is_not_limited() -> None:
    shares = Shares(1, Clock(), what="x", setting="y")
    assert all(shares.take(None) for _ in range(5))
    shares.give_back(None)
    assert len(shares) == 0


def test_fractions_add_up_to_the_limit_and_to_nothing() -> None:
    shares = Shares(2, Clock(), what="x", setting="y")
    part = 1 / 7
    taken = 0
    while shares.take("a", part):
        taken += 1
    assert taken == 14
    for _ in range(taken):
        shares.give_back("a", part)
    assert len(shares) == 0


# Request bytes.


def connect(world: World, host: str) -> tuple[Any, StringTransport]:
    made = world.site.buildProtocol(None)
    transport = StringTransport(peerAddress=IPv4Address("TCP", host, 1))
    made.makeConnection(transport)
    return made, transport


def forwarded(request: bytes, client: str) -> bytes:
    return request.replace(b"\r\n", b"\r\nX-Forwarded-For: %b\r\n" % client.encode(), 1)


def status(transport: StringTransport) -> bytes:
    return transport.value()[9:12]


@both
@pytest.mark.parametrize("cuts", [[], [150, 250]])
def test_endless_bodies_of_one_address_lock_no_other_out(
    fast_path: bool, cuts: list[int], log_lines: list[str]
) -> None:
    """promise: one address holds half of the budget at most, and is told which setting says so."""
    world = World(fast_path=fast_path, budget=10 * HELD)
    held = []
    for _ in range(17):
        made, transport = connect(world, "192.0.2.1")
        for start, end in zip([0, *cuts], [*cuts, len(UNFINISHED)], strict=True):
            made.dataReceived(UNFINISHED[start:end])
        held.append((made, transport))
    answers = [status(transport) for _, transport in held]
    assert answers == [b""] * 5 + [b"503"] * 12
    assert b"max_request_bytes_per_address" in held[5][1].value()
    assert b"Retry-After: 1\r\n" in held[5][1].value()
    assert world.site.budget.used == 5 * HELD
    assert len([line for line in log_lines if "reached its share of request bytes" in line]) == 1
    other, transport = connect(world, "192.0.2.2")
    other.dataReceived(post(NOTE)[:-1])
    other.dataReceived(post(NOTE)[-1:])
    assert status(transport) == b"202"
    for made, _ in (*held, (other, transport)):
        made.connectionLost()
    world.channel.connectionLost()
    assert world.site.budget.used == 0
    shares: Any = world.site.budget._shares
    assert len(shares) == 0


@both
def test_behind_a_trusted_proxy_each_client_has_a_share(fast_path: bool) -> None:
    world = World(fast_path=fast_path, budget=4 * HELD, trusted_proxies=("10.0.0.1",))
    opened = []
    for client in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"):
        opened.append(connect(world, "10.0.0.1"))
        opened[-1][0].dataReceived(forwarded(UNFINISHED, client))
    assert [status(transport) for _, transport in opened] == [b"", b"", b"503", b""]
    # Nobody else is believed.
    opened.append(connect(world, "192.0.2.2"))
    opened[-1][0].dataReceived(forwarded(UNFINISHED, "192.0.2.3"))
    opened.append(connect(world, "192.0.2.2"))
    opened[-1][0].dataReceived(forwarded(UNFINISHED, "192.0.2.4"))
    assert [status(transport) for _, transport in opened[4:]] == [b"", b"503"]
    for made, _ in opened:
        made.connectionLost()
    world.channel.connectionLost()
    assert world.site.budget.used == 0


@pytest.mark.parametrize("full", ["budget", "share"])
@pytest.mark.parametrize("cuts", [[], [50], [-1], [-30], [100, 140, -1]])
@pytest.mark.parametrize("behind", [b"", post(NOTE)])
def test_both_request_paths_answer_a_full_budget_alike(
    full: str, cuts: list[int], behind: bytes
) -> None:
    """A request may arrive at once or in pieces."""
    seen = []
    for fast_path in (True, False):
        world = World(fast_path=fast_path, budget=LIMIT if full == "budget" else 2 * LIMIT)
        others = [connect(world, "192.0.2.1" if full == "budget" else "192.168.1.1")]
        others[0][0].dataReceived(UNFINISHED)
        used = world.site.budget.used
        assert used == HELD
        data = post(NOTE + b" " * 200) + behind
        world.receive(data, [cut % len(data) for cut in cuts])
        answers, closing, *sent = world.seen()
        assert answers.startswith(b"HTTP/1.1 503")
        assert world.site.budget.used == used
        seen.append((re.sub(rb"\r\nDate: [^\r]+", b"", answers), closing, sent))
        for made in (world.channel, others[0][0]):
            made.connectionLost()
        assert world.site.budget.used == 0
    assert seen[0] == seen[1]


# Sessions.

INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
BEGIN = (
    b"POST /b/mcp HTTP/1.1\r\nHost: h\r\nAccept: application/json, text/event-stream\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(INITIALIZE), INITIALIZE)
)


def end_all(world: World) -> None:
    """End all sessions, and let nothing of their processes be left."""
    for session in list(world.server.unclosed):
        session.life.end("the test is over")
    for backend in world.launcher.backends:
        if not backend.stopped.called:
            backend.stopped.callback(None)


@both
@pytest.mark.parametrize("opens", [BEGIN, b"GET /b/sse HTTP/1.1\r\nHost: h\r\n\r\n"])
@pytest.mark.parametrize("proxied", [False, True])
def test_one_address_does_not_get_all_sessions(
    fast_path: bool, opens: bytes, proxied: bool, log_lines: list[str]
) -> None:
    """promise: a share is refused like a full server, with the setting's name."""
    world = World(fast_path=fast_path, trusted_proxies=("10.0.0.1",), sessions=6)
    server = world.server
    opened = []

    def begin(client: str) -> bytes:
        request = forwarded(opens, client) if proxied else opens
        opened.append(connect(world, "10.0.0.1" if proxied else client))
        opened[-1][0].dataReceived(request)
        return status(opened[-1][1])

    before = len(server.unclosed)
    # An answer to `initialize` is still to come, where nothing was refused.
    answers = [begin("192.0.2.1") for _ in range(5)]
    assert len(server.unclosed) == before + 3
    assert answers[3:] == [b"429", b"429"]
    refused = opened[3][1].value()
    assert b"max_sessions_per_address" in refused
    assert b"Retry-After: 5\r\n" in refused
    assert begin("192.0.2.2") != b"429"
    assert len(server.unclosed) == before + 4
    assert len([line for line in log_lines if "has reached its share of the sessions" in line]) == 1
    # A place is free again when nothing of its session is left.
    end_all(world)
    assert not server.unclosed
    assert begin("192.0.2.1") != b"429"
    for made, _ in opened:
        made.connectionLost()
    end_all(world)
    world.channel.connectionLost()


@pytest.mark.parametrize("kind", [fakes.Legacy, fakes.Modern])
def test_running_requests_count_against_the_share(kind: Any) -> None:
    """A legacy server's process serves one of them, a modern server's `concurrency`."""
    world = fakes.World(kind, limit=4, concurrency=3)
    share = 2 if kind is fakes.Legacy else 6
    world.client = "a"
    calls = [world.call("a", "wait") for _ in range(share)]
    world.run()
    assert not [each for each in calls if each.refusal]
    one_more = world.call("a")
    assert isinstance(one_more.refusal, ServerBusy)
    assert "max_sessions_per_address" in str(one_more.refusal)
    world.client = "b"
    other = world.call("b")
    world.run()
    assert other.result["token"] == "b"
    world.client = "a"
    calls.pop().disconnect()
    world.run(5)
    again = world.call("c")
    world.run(5)
    assert again.result["token"] == "c"
    for each in calls:
        each.disconnect()
    world.run(5)
    assert len(world.shares) == 0
    world.end()


def test_a_suspended_call_counts_until_its_process_is_free() -> None:
    world = fakes.World(fakes.Legacy, limit=4)
    world.client = "a"
    parked = [world.call(token, "ask") for token in "xy"]
    world.run(COLLECT_SECONDS)
    assert [each.elicitation_message for each in parked] == ["x", "y"]
    assert isinstance(world.call("z").refusal, ServerBusy)
    # Who comes back for its own is let in.
    again = parked[0].retry("x")
    world.run()
    assert again.refusal is None
    world.run(world.settings.input_timeout)
    assert len(world.shares) == 0
    world.end()


def test_a_process_counts_for_the_client_that_left_while_it_started() -> None:
    world = fakes.World(fakes.Legacy, limit=4)
    # Otherwise all others would wait for that start.
    world.pool.backoff.succeeded()
    world.launcher.silent = True
    for _ in range(3):
        world.client = "a"
        for call in [world.call("a") for _ in range(4)]:
            world.run()
            call.disconnect()
    assert len(world.live) == 2
    world.launcher.silent = False
    world.client = "b"
    other = world.call("b")
    world.run()
    assert other.result["token"] == "b"
    world.run(world.settings.start_timeout)
    world.run(fakes.Legacy.stop_seconds)
    assert len(world.shares) == 0
    world.end()


@pytest.mark.parametrize("reuse", ["identity", "connection", "never"])
def test_a_process_counts_until_its_cancelled_request_is_over_or_it_is_gone(reuse: str) -> None:
    world = fakes.World(fakes.Legacy, limit=4, reuse=reuse)
    world.client = "a"
    calls = [world.call("a", "wait", connection=ClientConnection()) for _ in range(2)]
    world.run()
    for each in world.backends:
        each.answers_cancelled = False
    for each in calls:
        each.disconnect()
    world.run()
    assert isinstance(world.call("a").refusal, ServerBusy)
    world.run(CANCEL_SECONDS)
    assert isinstance(world.call("a").refusal, ServerBusy)
    world.run(fakes.Legacy.stop_seconds)
    assert (world.live, len(world.shares)) == ([], 0)
    world.end()


def test_a_free_process_does_not_count_but_one_that_ends_with_its_connection_does() -> None:
    world = fakes.World(fakes.Legacy, limit=4, reuse="connection")
    world.client = "a"
    connections = [ClientConnection() for _ in range(2)]
    for connection in connections:
        call = world.call("a", connection=connection)
        world.run()
        assert call.result["token"] == "a"
    assert len(world.shares) == 0
    for connection in connections:
        connection.lose()
    assert isinstance(world.call("a").refusal, ServerBusy)
    world.run(fakes.Legacy.stop_seconds)
    assert (world.live, len(world.shares)) == ([], 0)
    world.end()


def test_a_retry_counts_once() -> None:
    world = fakes.World(fakes.Legacy, limit=6)
    world.client = "a"
    asked = world.call("x", "ask")
    world.run(COLLECT_SECONDS)
    again = asked.retry("x")
    assert world.shares.taken("a") == 1
    world.run()
    assert again.result["given"] == "x"
    assert len(world.shares) == 0
    world.end()
