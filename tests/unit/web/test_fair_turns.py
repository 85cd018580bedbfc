"""
Connections with several requests take turns, on the fast path and without it: no client waits for
the pipelined requests of another.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mcpbridge.config.tuning import (
    PIPELINED_BYTES,
    SLICE_BYTES,
    SLICE_REQUESTS,
    SLICE_SECONDS,
    TURN_SECONDS,
)
from mcpbridge.pacer import PACED_SECONDS
from mcpbridge.testing import FakeBackend
from mcpbridge.web.fair_turns import FairTurns
from tests.unit.web.test_fast_path import CALL, MODERN, SAYING, World, head_of, post, post_mcp

both = pytest.mark.parametrize("fast_path", [True, False])
NOTE = b'{"jsonrpc":"2.0","method":"x"}'
#: Requests that are answered at once, each in another way.
AT_ONCE = [
    b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n",
    post(NOTE),
    post_mcp(NOTE),
    post(b"{}"),
    b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n" + post(NOTE),
    post_mcp(MODERN.replace(b'"id":"m",', b""), *SAYING),
]


class Connection:
    """Another connection to the site."""

    def __init__(self, world: World) -> None:
        self.channel: Any = world.site.buildProtocol(None)
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)

    def answers(self) -> int:
        return self.transport.value().count(b"HTTP/1.1 ")


def connections(world: World, count: int) -> list[Connection]:
    return [Connection(world) for _ in range(count)]


def close(world: World, *others: Connection) -> None:
    """Lose all connections, and check that the queue is empty."""
    for each in (world.channel, *(other.channel for other in others)):
        each.connectionLost()
    assert_queue_empty(world)


def assert_queue_empty(world: World) -> None:
    turns = world.site.turns
    assert not len(turns)
    assert turns._call is None


class RecordedConnection:
    """A connection with `left` requests to serve, each of which takes some time."""

    def __init__(
        self, name: str, turns: FairTurns, log: list[str], left: int, takes: float
    ) -> None:
        self.name, self.turns, self.log, self.left, self.takes = name, turns, log, left, takes
        self.failed = False

    def serve_slice(self) -> None:
        served, began = 0, self.turns.now()
        while True:
            self.left -= 1
            self.log.append(self.name)
            if self.takes < 0:
                raise RuntimeError("a defect")
            TIME[0] += self.takes
            served += 1
            if not self.left:
                return
            if not self.turns.may_go_on(served, began):
                self.turns.join(self)
                return

    def fail(self) -> None:
        self.failed = True


TIME = [0.0]


class Iterations(Clock):
    """A clock that logs each delayed call, which the reactor makes in its next iteration."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    def callLater(self, *arguments: Any, **named: Any) -> Any:
        self.log.append("|")
        return super().callLater(*arguments, **named)


def make_queue(takes: float, *lefts: int) -> tuple[Clock, list[str], list[RecordedConnection]]:
    log: list[str] = []
    clock = Iterations(log)
    turns = FairTurns(clock, lambda: TIME[0])
    recorded = [
        RecordedConnection(name, turns, log, left, takes)
        for name, left in zip("abc", lefts, strict=False)
    ]
    for each in recorded:
        turns.join(each)
    return clock, log, recorded


def test_turns_are_bounded_in_time_and_serve_connections_in_order() -> None:
    """Each request takes half a turn, so two are served in an iteration of the reactor."""
    clock, log, _ = make_queue(TURN_SECONDS / 2, 3, 2, 1)
    clock.advance(0)
    assert "".join(log) == "|ab|ca|ba"


def test_each_connection_is_served_one_slice_at_a_time() -> None:
    clock, log, _ = make_queue(0.0, SLICE_REQUESTS + 1, SLICE_REQUESTS, 1)
    clock.advance(0)
    assert "".join(log) == "|" + "a" * SLICE_REQUESTS + "b" * SLICE_REQUESTS + "ca"


def test_slice_is_bounded_by_slice_requests_and_slice_seconds() -> None:
    turns = FairTurns(Clock(), lambda: TIME[0])
    now = turns.now()
    assert turns.may_go_on(SLICE_REQUESTS - 1, now)
    assert not turns.may_go_on(SLICE_REQUESTS, now)
    assert not turns.may_go_on(1, now - SLICE_SECONDS)


def test_single_connection_is_served_for_a_whole_turn() -> None:
    clock, log, _ = make_queue(0.0, 10 * SLICE_REQUESTS)
    clock.advance(0)
    assert "".join(log) == "|" + "a" * 10 * SLICE_REQUESTS
    assert not clock.getDelayedCalls()


def test_failing_request_closes_only_its_own_connection(
    logged_failures: list[Any],
) -> None:
    clock, log, (bad, good) = make_queue(0.0, 3, 3)
    bad.takes = -1.0
    clock.advance(0)
    assert "".join(log) == "|abbb"
    assert bad.failed
    assert not good.failed
    assert not clock.getDelayedCalls()
    assert [each.type for each in logged_failures] == [RuntimeError]


def test_turns_go_on_when_closing_a_connection_fails(logged_failures: list[Any]) -> None:
    def fail() -> None:
        raise ValueError("another defect")

    clock, log, (bad, _) = make_queue(0.0, 1, 1)
    bad.takes, bad.fail = -1.0, fail  # type: ignore[method-assign]
    clock.advance(0)
    assert "".join(log) == "|ab"
    assert [each.type for each in logged_failures] == [RuntimeError, ValueError]


def test_delayed_call_is_cancelled_when_the_queue_becomes_empty() -> None:
    clock, _, (one, other) = make_queue(0.0, 1, 1)
    one.turns.leave(one)
    one.turns.leave(one)
    assert clock.getDelayedCalls()
    one.turns.leave(other)
    assert not clock.getDelayedCalls()


@both
@pytest.mark.parametrize("request_", AT_ONCE)
def test_one_slice_of_the_requests_in_a_read_is_served_at_once(
    fast_path: bool, request_: bytes
) -> None:
    world = World(fast_path=fast_path)
    each = request_.count(b"HTTP/1.1\r\n")
    world.channel.dataReceived(request_ * 100)
    assert world.transport.value().count(b"HTTP/1.1 ") == SLICE_REQUESTS
    world.let_turns_pass()
    assert world.transport.value().count(b"HTTP/1.1 ") == 100 * each
    assert world.transport.producerState == "producing"
    close(world)


@both
@pytest.mark.parametrize("request_", AT_ONCE[:4])
def test_one_request_of_a_read_is_served_while_others_wait(
    fast_path: bool, request_: bytes
) -> None:
    world = World(fast_path=fast_path)
    others = connections(world, 40)
    for other in others:
        other.channel.dataReceived(request_ * 50)
    # The first was served a whole slice, because no other was waiting yet.
    assert [other.answers() for other in others] == [SLICE_REQUESTS] + [1] * 39
    world.let_turns_pass()
    assert [other.answers() for other in others] == [50] * 40
    close(world, *others)


@both
@pytest.mark.parametrize("request_", AT_ONCE[:4])
def test_single_request_never_waits_for_pipelined_requests_of_others(
    fast_path: bool, request_: bytes
) -> None:
    world = World(fast_path=fast_path)
    others = connections(world, 3)
    for other in others:
        other.channel.dataReceived(request_ * 100)
    world.channel.dataReceived(request_)
    assert world.transport.value().count(b"HTTP/1.1 ") == 1
    assert world.channel not in world.site.turns._waiting
    close(world, *others)


@both
def test_responses_are_in_the_order_of_the_requests(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    other = Connection(world)
    other.channel.dataReceived(AT_ONCE[0] * 100)
    wanted = [404, 202, 400] * 20
    world.channel.dataReceived((AT_ONCE[0] + post(NOTE) + post(b"{}")) * 20)
    world.let_turns_pass()
    answers = world.transport.value().split(b"HTTP/1.1 ")[1:]
    assert [int(each[:3]) for each in answers] == wanted
    close(world, other)


@both
def test_requests_after_a_call_wait_for_its_response(fast_path: bool) -> None:
    """Whatever turn it is, pipelined requests stay in order."""
    world = World(fast_path=fast_path)
    world.channel.dataReceived(post_mcp(NOTE) * 20 + post_mcp(CALL) + post_mcp(NOTE) * 20)
    world.let_turns_pass()
    assert world.transport.value().count(b"HTTP/1.1 202") == 20
    world.say(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    world.let_turns_pass()
    assert world.transport.value().count(b"HTTP/1.1 202") == 40
    close(world)


@both
@pytest.mark.parametrize("cut", [10, 100, -10, -5])
def test_request_split_across_reads_is_joined_after_pipelined_requests(
    fast_path: bool, cut: int
) -> None:
    world = World(fast_path=fast_path)
    half = post(NOTE)[:cut]
    world.channel.dataReceived(post(NOTE) * 50 + half)
    world.channel.dataReceived(post(NOTE)[cut:] + post(NOTE) * 50)
    assert world.transport.value().count(b"HTTP/1.1 202") == SLICE_REQUESTS
    world.let_turns_pass()
    assert len(world.backend.sent) == 101
    assert world.transport.value().count(b"HTTP/1.1 202") == 101
    close(world)


@both
def test_queued_connection_is_not_read_beyond_pipelined_bytes(fast_path: bool) -> None:
    """Its place in the queue itself takes only a few bytes."""
    world = World(fast_path=fast_path)
    other = Connection(world)
    other.channel.dataReceived(AT_ONCE[0] * 100)
    size = 0
    while world.transport.producerState == "producing":
        world.channel.dataReceived(post(NOTE) * 8)
        size += 8 * len(post(NOTE))
    assert PIPELINED_BYTES < size < PIPELINED_BYTES + 16 * len(post(NOTE))
    world.let_turns_pass()
    assert world.transport.producerState == "producing"
    assert len(world.backend.sent) == size // len(post(NOTE))
    close(world, other)


@both
def test_unread_response_delays_only_its_own_connection(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    other = Connection(world)
    for channel in (world.channel, other.channel):
        channel.dataReceived(post(NOTE) * 20)
    world.channel.pauseProducing()
    world.let_turns_pass()
    assert other.answers() == 20
    assert len(world.backend.sent) == 20 + SLICE_REQUESTS
    world.channel.resumeProducing()
    world.let_turns_pass()
    assert len(world.backend.sent) == 40
    close(world, other)


@both
@pytest.mark.parametrize("how", ["lost", "stop", "close"])
def test_connection_lost_in_the_queue_is_not_served(fast_path: bool, how: str) -> None:
    world = World(fast_path=fast_path)
    other = Connection(world)
    for channel in (world.channel, other.channel):
        channel.dataReceived(post(NOTE) * 20)
    sent = len(world.backend.sent)
    if how == "lost":
        world.channel.connectionLost()
    elif how == "stop":
        world.site.close_connections()
        other.channel.connectionLost()
    else:
        world.channel.loseConnection()
    world.let_turns_pass()
    assert len(world.backend.sent) == sent + (0 if how == "stop" else 19)
    if how != "lost":
        world.channel.connectionLost()
    if how != "stop":
        other.channel.connectionLost()
    assert_queue_empty(world)


@both
def test_requests_after_connection_close_are_not_served(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    world.channel.dataReceived(post(NOTE) + post(NOTE, b"Connection: close") + post(NOTE) * 20)
    world.let_turns_pass()
    assert len(world.backend.sent) == 2
    assert world.transport.disconnecting
    close(world)


@both
@pytest.mark.parametrize("headed", [True, False])
def test_body_in_tiny_chunks_takes_turns_too(fast_path: bool, headed: bool) -> None:
    """Thousands of chunks in one read cost as much as hundreds of requests."""
    world = World(fast_path=fast_path, budget=100_000)
    world.site.max_body = 100_000
    head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunks = b"1\r\n \r\n" * 10_000
    if headed:
        world.channel.dataReceived(head + chunks)
    else:
        world.channel.dataReceived(head)
        world.channel.dataReceived(chunks)
    taken = world.site.budget.used
    assert 0 < taken <= SLICE_REQUESTS * SLICE_BYTES / 6 + 1
    assert world.transport.producerState == "paused"
    world.let_turns_pass()
    assert world.site.budget.used == 10_000
    world.channel.dataReceived(b"1e\r\n" + NOTE + b"\r\n0\r\n\r\n" + post(b"{}"))
    world.let_turns_pass()
    assert world.site.budget.used == 0
    assert world.transport.value().count(b"HTTP/1.1 ") == 2
    close(world)


def test_ordinary_requests_begin_at_once_for_turn_seconds() -> None:
    """After that they join the queue; the next turn begins anew."""
    clock, log, [first] = make_queue(0.0, 1)
    turns = first.turns
    clock.advance(0)
    assert log == ["|", "a"]
    for taken in (0.0, 0.4, 0.8):
        assert turns.may_begin(), taken
        began = turns.now()
        TIME[0] += 0.4 * TURN_SECONDS
        turns.took(began)
    assert not turns.may_begin()
    assert log == ["|", "a", "|"]
    clock.advance(0)
    assert turns.may_begin()
    assert turns._call is None


def test_many_ordinary_requests_at_once_hold_up_nobody() -> None:
    """They are served in several turns, in order, and fast ones at once meanwhile."""
    ticks = itertools.count()
    # Each look at this clock takes a tenth of a turn.
    world = World(fast_path=True, seconds=lambda: next(ticks) * TURN_SECONDS / 10)
    others = connections(world, 50)
    for each in others:
        each.channel.dataReceived(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    answers = [each.answers() for each in others]
    served = sum(answers)
    assert 0 < served < 20
    assert answers == [1] * served + [0] * (50 - served)
    world.channel.dataReceived(post(NOTE))
    assert world.transport.value().startswith(b"HTTP/1.1 202")
    world.let_turns_pass()
    assert [each.answers() for each in others] == [1] * 50
    close(world, *others)


@pytest.mark.parametrize(
    ("request_", "costly"),
    [
        (b"GET /b/sse HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"GET /b/sse/?x HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"DELETE /b/mcp HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (post_mcp(CALL).replace(b"Mcp-Session-Id", b"X"), True),
        (post_mcp(CALL), False),
        (post_mcp(MODERN, *SAYING).replace(b"Mcp-Session-Id", b"X"), False),
        (post(CALL), False),
        (b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", False),
    ],
)
def test_only_requests_that_open_or_end_sessions_wait_for_their_turn(
    request_: bytes, costly: bool
) -> None:
    """Others are served at once: they are few, or quick."""
    world = World(fast_path=True)
    path: Any = world.site.fast_path
    assert path.is_costly(head_of(request_)) is costly
    ticks = itertools.count()
    world = World(fast_path=False, seconds=lambda: next(ticks) * TURN_SECONDS)
    world.site.is_costly = path.is_costly
    others = connections(world, 2)
    for each in others:
        each.channel.dataReceived(request_)
    assert len(world.site.turns) == costly
    close(world, *others)


def test_ends_of_many_sessions_are_spread_over_iterations() -> None:
    """When their clients leave at one time, each ends when its turn comes."""
    world: Any = World(fast_path=True, sessions=10)
    world.launcher.kind = FakeBackend
    first, second = connections(world, 2)
    for each in (first, second):
        each.channel.dataReceived(b"GET /b/sse HTTP/1.1\r\nHost: h\r\n\r\n")
    before = len(world.server.sessions)
    world.pacer.run("x", lambda: world.clock.advance(PACED_SECONDS))
    for each in (first, second):
        each.channel.connectionLost()
    assert len(world.server.sessions) == before
    world.clock.advance(0)
    assert len(world.server.sessions) == before - 2
    close(world)


def test_request_that_waits_for_its_turn_is_dropped_with_its_connection() -> None:
    ticks = itertools.count()
    world = World(fast_path=True, seconds=lambda: next(ticks) * TURN_SECONDS)
    first, second = connections(world, 2)
    for each in (first, second):
        each.channel.dataReceived(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert [first.answers(), second.answers(), len(world.site.turns)] == [1, 0, 1]
    assert second.channel.idle_since() is None
    second.channel.dataReceived(b"GET /y HTTP/1.1\r\nHost: h\r\n\r\n")
    second.channel.connectionLost()
    assert_queue_empty(world)
    assert second.answers() == 0
    close(world, first)


@both
def test_rest_of_a_refused_body_is_read_although_reading_was_paused(fast_path: bool) -> None:
    """Its sender would not see the response before it has sent everything."""
    world = World(fast_path=fast_path, budget=100_000)
    world.site.max_body = 9000
    head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    world.channel.dataReceived(head + b"1\r\n \r\n" * 10_000)
    assert world.transport.producerState == "paused"
    world.let_turns_pass()
    assert world.transport.value().startswith(b"HTTP/1.1 413 ")
    assert world.transport.producerState == "producing"
    close(world)


def test_each_turn_serves_an_ordinary_request_however_slow_the_machine_is() -> None:
    """Also where looking at the clock takes longer than a turn may."""
    ticks = itertools.count()
    world = World(fast_path=True, seconds=lambda: next(ticks) * 2 * TURN_SECONDS)
    others = connections(world, 5)
    for each in others:
        each.channel.dataReceived(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    for _ in range(5):
        world.clock.advance(0)
    assert [each.answers() for each in others] == [1] * 5
    close(world, *others)
