"""
Requests that a client pipelines, and responses that it does not read: bounded alike on the fast
path and without it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from mcpbridge.config.tuning import (
    ABORT_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    LEFT_SECONDS,
    PIPELINED_BYTES,
    REQUEST_SECONDS,
    SLICE_BYTES,
    SLOW_SECONDS,
)
from mcpbridge.response_budget import ResponseBudget, Share
from mcpbridge.web import connection, watched_connection
from tests.unit.web.test_fast_path import MODERN, SAYING, World, post, post_mcp

both = pytest.mark.parametrize("fast_path", [True, False])


def call(ident: int) -> bytes:
    """Return a request of a session, of nearly the largest size."""
    line = b'{"jsonrpc":"2.0","id":%d,"method":"x","params":"%b"}' % (ident, b"x" * 200)
    return post_mcp(line)


def answer(ident: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"result":{}}' % ident


def answered_ids(world: World) -> list[int]:
    """Return the ids of the requests that were answered, in order."""
    return [int(each) for each in re.findall(rb'"id":(\d+),"result"', world.transport.value())]


def requests_sent(world: World) -> int:
    """Return how many messages the backend has received."""
    return len(world.backend2.sent)


@both
@pytest.mark.parametrize("piece", [1000, 50_000])
def test_pipelined_bytes_are_bounded(fast_path: bool, piece: int) -> None:
    """Reading pauses while more than PIPELINED_BYTES wait; each request is answered, in order."""
    world = World(fast_path=fast_path)
    transport = world.transport
    count = 3 * PIPELINED_BYTES // len(call(100))
    data = b"".join(call(100 + each) for each in range(count))
    unread = [data[at : at + piece] for at in range(0, len(data), piece)]
    answers = 0
    while answers < count:
        # A transport reads while it is not paused.
        while unread and transport.producerState == "producing":
            world.channel.dataReceived(unread.pop(0))
        assert requests_sent(world) == answers + 1
        world.say(answer(100 + answers))
        answers += 1
    assert answered_ids(world) == list(range(100, 100 + count))
    assert transport.producerState == "producing"
    world.channel.connectionLost()


@both
def test_reading_is_paused_beyond_pipelined_bytes(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    world.channel.dataReceived(call(1))
    size = 0
    while world.transport.producerState == "producing":
        world.channel.dataReceived(call(2))
        size += len(call(2))
    assert PIPELINED_BYTES < size <= PIPELINED_BYTES + len(call(2))
    world.channel.connectionLost()
    assert not world.channel._departure_check.is_running


@both
@pytest.mark.parametrize("data", [call(1) * 2, post_mcp(MODERN, *SAYING) * 2])
def test_unread_responses_do_not_accumulate(fast_path: bool, data: bytes) -> None:
    """The next request is served only when the client has read the previous response."""
    world = World(fast_path=fast_path)
    world.channel.dataReceived(data)
    # The transport pauses when its buffer is full, and resumes when it is empty.
    world.channel.pauseProducing()
    world.say(answer(1))
    world.answer_modern()
    begun = [requests_sent(world), *(len(each.sent) for each in world.launcher.backends[2:])]
    assert world.transport.value().count(b"HTTP/1.1 200") == 1
    world.channel.dataReceived(post(b"{}"))
    world.channel.resumeProducing()
    assert [requests_sent(world), *(len(each.sent) for each in world.launcher.backends[2:])] > begun
    world.say(answer(1))
    world.answer_modern()
    assert world.transport.value().count(b"HTTP/1.1 200") == 2
    assert b"400 Bad Request" in world.transport.value()
    assert world.transport.producerState == "producing"
    world.channel.connectionLost()


@both
def test_pipelined_requests_wait_while_a_response_is_unread(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    world.channel.pauseProducing()
    world.channel.dataReceived(call(1) * 3)
    assert requests_sent(world) == 0
    world.channel.resumeProducing()
    assert requests_sent(world) == 1
    world.channel.connectionLost()


CLOSING = call(2).replace(b"Host", b"Connection: close\r\nHost")


@both
@pytest.mark.parametrize("first", [call(1), post_mcp(MODERN, *SAYING)])
@pytest.mark.parametrize("last", [CLOSING, b"nonsense\r\n\r\n", b"GET /x HTTP/1.0\r\n\r\n"])
@pytest.mark.parametrize("behind", [b"", b"x" * PIPELINED_BYTES, call(3) * 100])
def test_bytes_after_the_last_request_are_dropped(
    fast_path: bool, first: bytes, last: bytes, behind: bytes
) -> None:
    """A transport that is closing is neither paused nor resumed: it would raise an error."""
    world = World(fast_path=fast_path)
    world.channel.dataReceived(first + last + behind)
    for _ in range(2):
        world.say(answer(1))
        world.answer_modern()
        world.say(answer(2))
        world.let_turns_pass()
    assert world.transport.disconnecting
    assert requests_sent(world) <= 2
    written = world.transport.value()
    # TLS keeps reading until its peer has sent close_notify.
    world.channel.dataReceived(call(4) * 100)
    assert world.transport.producerState == "producing"
    assert requests_sent(world) <= 2
    assert world.transport.value() == written
    kept = world.channel
    assert (kept._pipelined, kept._parser, kept._reading_paused) == (b"", None, False)
    world.channel.connectionLost()


@both
def test_paused_connection_is_resumed_before_it_is_closed(fast_path: bool) -> None:
    """TLS closes once the peer's close_notify has been read."""
    world = World(fast_path=fast_path)
    world.channel.dataReceived(call(1) + call(2) * (PIPELINED_BYTES // 100))
    assert world.transport.producerState == "paused"
    world.channel.loseConnection()
    assert world.transport.producerState == "producing"
    assert not world.channel._reading_paused
    world.channel.connectionLost()


@both
def test_connection_is_aborted_beyond_drain_bytes_after_the_last_request(
    fast_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "DRAIN_BYTES", 1000)
    world = World(fast_path=fast_path)
    world.channel.dataReceived(CLOSING)
    world.say(answer(2))
    assert world.transport.disconnecting
    gone: list[bool] = []
    for data in (b"x" * 1000, b"x"):
        world.channel.dataReceived(data)
        gone.append(world.transport.disconnected)
    assert gone == [False, True]
    world.channel.connectionLost()


@both
def test_too_long_line_closes_the_connection(fast_path: bool) -> None:
    """Nothing after it is parsed as a request."""
    world = World(fast_path=fast_path)
    world.channel.dataReceived(b"GET /" + b"x" * 30_000)
    assert world.transport.disconnecting
    written = world.transport.value()
    assert written.startswith(b"HTTP/1.1 431 ")
    world.channel.dataReceived(b"\r\n\r\n" + call(1) * 100)
    assert requests_sent(world) == 0
    assert world.transport.value() == written
    world.channel.connectionLost()


@both
@pytest.mark.parametrize("left", [True, False])
def test_departure_of_a_client_is_detected_while_reading_is_paused(
    fast_path: bool, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection closes although bytes of the client are still unread."""
    gone: list[Any] = []
    monkeypatch.setattr(connection, "has_left", lambda transport: bool(gone))
    world = World(fast_path=fast_path)
    world.channel.dataReceived(call(1) + call(2) * (PIPELINED_BYTES // 100))
    assert world.transport.producerState == "paused"
    for _ in range(5):
        world.clock.advance(LEFT_SECONDS)
        assert not world.transport.disconnecting
    gone += [left] * left
    world.clock.advance(LEFT_SECONDS)
    assert world.transport.disconnecting is left
    world.channel.connectionLost()


@both
def test_departure_is_checked_only_while_reading_is_paused(
    fast_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(connection, "has_left", looks.append)
    world = World(fast_path=fast_path)
    count = (PIPELINED_BYTES + SLICE_BYTES) // len(call(2)) + 2
    world.channel.dataReceived(call(1) + call(2) * count)
    world.say(answer(1))
    for _ in range(count):
        world.say(answer(2))
    assert world.transport.producerState == "producing"
    for _ in range(3):
        world.clock.advance(LEFT_SECONDS)
    assert len(looks) == 1
    world.channel.connectionLost()


@both
def test_each_request_head_has_its_own_deadline(fast_path: bool) -> None:
    """A client that has always sent half of its next request is in time with each."""
    world = World(fast_path=fast_path)
    half = len(post(b"{}")) // 2
    for _ in range(10):
        world.channel.dataReceived(post(b"{}")[:half])
        world.clock.advance(HEAD_SECONDS * 0.6)
        assert not world.transport.disconnecting
        world.channel.dataReceived(post(b"{}")[half:] + post(b"{}")[:half])
        world.clock.advance(HEAD_SECONDS * 0.6)
        assert not world.transport.disconnecting
        world.channel.dataReceived(post(b"{}")[half:])
    world.channel.dataReceived(post(b"{}")[:half])
    world.clock.advance(HEAD_SECONDS)
    assert world.transport.disconnecting
    world.channel.connectionLost()


@both
def test_each_request_body_has_its_own_deadline(fast_path: bool) -> None:
    """Several slow requests may together take longer than REQUEST_SECONDS."""
    world = World(fast_path=fast_path)
    request = post(b"{}")
    world.channel.dataReceived(request[:-1])
    pause = HEAD_SECONDS * 0.6
    for _ in range(int(REQUEST_SECONDS / pause) + 5):
        world.clock.advance(pause)
        assert not world.transport.disconnecting
        world.channel.dataReceived(request[-1:] + request[:-1])
    world.channel.connectionLost()


@both
@pytest.mark.parametrize("closes", [True, False])
def test_idle_connection_is_closed_after_idle_seconds(fast_path: bool, closes: bool) -> None:
    """One whose transport does not close is aborted ABORT_SECONDS later."""
    world: Any = World(fast_path=fast_path)
    world.clock.advance(IDLE_SECONDS / 2)
    world.channel.dataReceived(post(b"{}"))
    world.clock.advance(IDLE_SECONDS - 0.1)
    assert not world.transport.disconnecting
    world.clock.advance(0.1)
    assert world.transport.disconnecting
    if closes:
        world.channel.connectionLost()
    world.clock.advance(ABORT_SECONDS)
    assert bool(world.transport.disconnected) is not closes
    if not closes:
        world.channel.connectionLost()
    assert not world.calls_of_connection()


@both
def test_connection_is_not_idle_while_a_request_waits_for_its_response(fast_path: bool) -> None:
    """After the response it has all of IDLE_SECONDS again."""
    world: Any = World(fast_path=fast_path)
    world.channel.dataReceived(call(1))
    world.clock.pump([1] * int(2.5 * IDLE_SECONDS))
    assert not world.transport.disconnecting
    world.say(answer(1))
    world.clock.pump([1] * int(IDLE_SECONDS - 2))
    assert not world.transport.disconnecting
    world.clock.pump([1] * 3)
    assert world.transport.disconnecting
    world.channel.connectionLost()


@both
@pytest.mark.parametrize("behind", [b"", call(1)])
def test_client_is_asked_for_the_body_that_it_holds_back(fast_path: bool, behind: bytes) -> None:
    """Once, when the request before it is answered (RFC 9110, section 10.1.1)."""
    world = World(fast_path=fast_path)
    expecting = post(b"{}").replace(b"Host", b"Expect: 100-continue\r\nHost")
    world.channel.dataReceived(behind + expecting[:-2])
    asked = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert world.transport.value().count(asked) == (not behind)
    world.say(answer(1))
    assert world.transport.value().count(asked) == 1
    world.channel.dataReceived(b"{")
    world.channel.dataReceived(b"}")
    assert world.transport.value().count(asked) == 1
    assert b"HTTP/1.1 400" in world.transport.value()
    world.channel.connectionLost()


@both
def test_slow_reader_is_not_closed_as_idle(
    fast_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only once it reads nothing more is its connection closed."""
    untaken = [1000]
    monkeypatch.setattr(watched_connection, "unsent", lambda transport: untaken[0])
    monkeypatch.setattr(watched_connection, "acknowledged", lambda transport: None)
    world: Any = World(fast_path=fast_path)
    world.channel.dataReceived(call(1))
    world.say(answer(1))
    for _ in range(5):
        world.clock.pump([1] * 59)
        assert not world.transport.disconnecting
        # As slow as a modem.
        untaken[0] -= 60 * 512
    world.clock.pump([1] * 55)
    assert not world.transport.disconnecting
    world.clock.pump([1] * 10)
    assert world.transport.disconnecting
    world.channel.connectionLost()
    assert not world.calls_of_connection()


@both
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_client_that_does_not_read_its_response_is_aborted(
    fast_path: bool, close: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is aborted after `peer_timeout`, also if the connection is to close after the response."""
    monkeypatch.setattr(watched_connection, "unsent", lambda transport: 1000)
    monkeypatch.setattr(watched_connection, "acknowledged", lambda transport: 17)
    world = World(fast_path=fast_path)
    aborted: list[float] = []
    transport: Any = world.transport
    transport.abortConnection = lambda: aborted.append(world.clock.seconds())
    world.channel.dataReceived(call(1).replace(b"Host", close + b"Host"))
    world.say(answer(1))
    world.clock.pump([1] * 59)
    assert not aborted
    world.clock.pump([1] * 7)
    assert aborted
    world.channel.connectionLost()
    assert not world.calls_of_connection()


@both
@pytest.mark.parametrize("rate", [100, 512])
def test_client_that_sends_a_body_below_min_transfer_rate_is_aborted(
    fast_path: bool, rate: int
) -> None:
    """The rate is measured over a minute that begins when the deadline of the head has passed."""
    world = World(fast_path=fast_path, budget=100_000, limit=100_000)
    head, _, _ = call(1).partition(b"\r\n\r\n")
    head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: 90000", head)
    world.channel.dataReceived(head + b"\r\n\r\n")
    for _ in range(100):
        if world.transport.disconnecting:
            break
        world.channel.dataReceived(b"x" * rate)
        world.clock.advance(1)
    assert world.transport.disconnecting is (rate < 512)
    world.channel.connectionLost()
    assert world.site.budget.used == 0


@both
@pytest.mark.parametrize("end", ["taken", "lost", "cut off"])
def test_unsent_bytes_count_until_they_are_sent_or_the_connection_is_lost(
    fast_path: bool, end: str
) -> None:
    """Beyond the session's share its backend is paused."""
    world: Any = World(fast_path=fast_path)
    told: list[str] = []
    world.streamable.share = Share(100, lambda: told.append("pause"), lambda: told.append("resume"))
    budget = world.site.responses = ResponseBudget(1000, world.clock)
    world.channel.dataReceived(call(1))
    world.transport.dataBuffer = b"x" * 700
    world.say(answer(1))
    assert (budget.used, world.streamable.share.used, told) == (700, 700, ["pause"])
    if end == "cut off":
        world.clock.advance(SLOW_SECONDS)
        budget.take(500)
        assert world.transport.disconnecting
        assert budget.used == 500
        budget.give_back(500)
    world.transport.dataBuffer = b""
    if end == "taken":
        world.channel.resumeProducing()
    else:
        world.channel.connectionLost()
    assert (budget.used, world.streamable.share.used, told) == (0, 0, ["pause", "resume"])
    if end == "taken":
        world.channel.connectionLost()
    assert not world.calls_of_connection()
    assert not budget._readers


@both
def test_response_counts_only_against_its_own_session(fast_path: bool) -> None:
    """The next response on the connection may belong to another session, or to none."""
    world: Any = World(fast_path=fast_path)
    told: list[str] = []
    world.streamable.share = Share(100, lambda: told.append("pause"), lambda: told.append("resume"))
    budget = world.site.responses = ResponseBudget(1000, world.clock)
    world.channel.dataReceived(call(1))
    world.say(answer(1))
    assert answered_ids(world) == [1]
    world.transport.dataBuffer = b"x" * 700
    world.channel.dataReceived(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (budget.used, world.streamable.share.used, told) == (700, 0, [])
    # Nor is a session that has ended kept by a connection that is open.
    assert world.channel.share is None
    world.transport.dataBuffer = b""
    world.channel.connectionLost()


def test_only_received_bytes_of_a_body_count() -> None:
    """A client that announces a large body and sends little does not use up the budget."""
    world = World(fast_path=True, budget=2000)
    others = [world.site.buildProtocol(None) for _ in range(10)]
    for each in others:
        each.makeConnection(type(world.transport)())
        each.dataReceived(call(1)[:-200])
    assert world.site.budget.used < 1000
    world.receive(call(1), [len(call(1)) - 10])
    world.say(answer(1))
    assert answered_ids(world) == [1]
    for each in (*others, world.channel):
        each.connectionLost()
    assert world.site.budget.used == 0


@both
def test_client_is_asked_for_a_body_only_behind_all_responses(fast_path: bool) -> None:
    """Also those that wait for their turn."""
    world = World(fast_path=fast_path)
    expecting = post(b"{}").replace(b"Host", b"Expect: 100-continue\r\nHost")
    world.channel.dataReceived(post(b"{}") * 12 + expecting[:-2])
    world.let_turns_pass()
    answers = re.findall(rb"HTTP/1.1 (\d+)", world.transport.value())
    assert answers == [b"400"] * 12 + [b"100"]
    world.channel.connectionLost()
