"""
Large bodies at all endpoints: parsed in slices, bounded, and counted until the response is sent.
"""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.tuning import COMMIT_SECONDS, LARGE_TURN_SECONDS, TRIM_BYTES, TRIM_SECONDS
from mcpbridge.errors import NotJson
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, MAX_MEMBERS, WHOLE_BYTES, Slices
from mcpbridge.memory import Trimmer, trim_function
from mcpbridge.sliced_work import SlicedWork
from mcpbridge.web.bounded_request import BodyBudget
from tests.unit.web.test_fast_path import CALL, IDENT, World, post, post_mcp
from tests.unit.web.test_fast_path_stateless import X, ask, asking
from tests.unit.web.test_stateless_http import Legacy, Modern

BIG = "x" * WHOLE_BYTES
LIMIT = 4 * 1024 * 1024
BUDGET = 10 * LIMIT


def call(ident: int = 1, method: str = "x", **params: object) -> bytes:
    message = {"jsonrpc": "2.0", "id": ident, "method": method, "params": {"a": [BIG], **params}}
    return json.dumps(message).encode()


def make_world(fast_path: bool = True, **settings: Any) -> World:
    return World(fast_path=fast_path, limit=LIMIT, **{"budget": BUDGET, **settings})


def run_turns(world: World) -> None:
    """Run all delayed calls that are due."""
    while any(each.getTime() <= world.clock.seconds() for each in world.clock.getDelayedCalls()):
        world.clock.advance(0)


def last_response(world: World) -> tuple[int, Any]:
    """Return the status and the body of the last response."""
    head, _, body = world.transport.value().rpartition(b"\r\n\r\n")
    status = int(head.rpartition(b"HTTP/1.1 ")[2][:3])
    return status, json.loads(body) if body else None


both = pytest.mark.parametrize("fast_path", [True, False])


@both
@pytest.mark.parametrize("cuts", [[], [100, 40_000]])
def test_large_message_is_forwarded_unchanged(fast_path: bool, cuts: list[int]) -> None:
    world = make_world(fast_path)
    for body in (call(), call(method="y"), json.dumps([{"jsonrpc": "2.0", "a": BIG}]).encode()):
        world.receive(post(body, b"Host: h"), cuts)
        assert world.backend.sent[-1:] != [body], "in a turn of its own"
        run_turns(world)
        assert world.backend.sent[-1:] == [body]
        assert last_response(world) == (202, None)
    assert world.site.budget.used == 0


MEDIUM = json.dumps({"jsonrpc": "2.0", "method": "x", "params": "é" + "x" * LARGE_BYTES}).encode()


@both
@pytest.mark.parametrize("cuts", [[], [40_000]])
def test_medium_message_is_parsed_in_one_turn(fast_path: bool, cuts: list[int]) -> None:
    world = make_world(fast_path)
    world.receive(post(MEDIUM, b"Host: h"), cuts)
    if not fast_path:
        assert world.backend.sent == [], "in a turn of its own"
        run_turns(world)
    assert world.backend.sent == [MEDIUM]
    assert last_response(world) == (202, None)
    assert world.site.budget.used == 0


def test_parsing_in_one_turn_is_bounded_by_large_turn_seconds() -> None:
    """
    For all clients together half of LARGE_TURN_SECONDS; further messages wait, and are parsed in
    slices.
    """
    world = make_world()
    many = b'{"jsonrpc":"2.0",%b"method":"x"}' % (b'"method":"x",' * (MAX_MEMBERS + 1))
    now = count(0.0, LARGE_TURN_SECONDS / 3)
    world.server.work = SlicedWork(world.clock, lambda: next(now))
    for number in (1, 2, 3):
        world.receive(post(many, b"Host: h"), [])
        assert world.backend.sent == [many] * min(number, 2)
    run_turns(world)
    assert world.backend.sent == [many] * 3
    world.receive(post(many, b"Host: h"), [])
    assert world.backend.sent == [many] * 4


@both
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (MEDIUM[:-1], 400),
        (MEDIUM.replace(b"2.0", b"1.0"), 400),
        (MEDIUM.replace(b"method", b"nothing"), 400),
        (MEDIUM.replace(b"xx", b"x\xff", 1), 400),
        (MEDIUM.replace(b"xx", b"\\ud800", 1), 202),
        (b"[%b]" % MEDIUM, 202),
    ],
)
def test_large_message_is_parsed_in_slices(fast_path: bool, body: bytes, status: int) -> None:
    world = make_world(fast_path)
    world.receive(post(body, b"Host: h"), [])
    assert world.backend.sent == []
    run_turns(world)
    assert last_response(world)[0] == status
    assert world.backend.sent == ([body] if status == 202 else [])
    assert world.site.budget.used == 0


@both
def test_pipelined_message_stays_behind_a_large_one(fast_path: bool) -> None:
    world = make_world(fast_path)
    world.receive(post(call(), b"Host: h") + post(CALL, b"Host: h"), [])
    run_turns(world)
    assert world.backend.sent == [call(), CALL]


@both
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"[" + b"1," * LARGE_BYTES + b"1]", 413, "1024 elements (max_waiting_messages)"),
        (b"{" + b'"a":1,' * LARGE_BYTES + b'"a":1}', 413, "MAX_MEMBERS"),
        (b"[" * 2 * LARGE_BYTES, 400, "nested too deeply"),
        (call()[:-1], 400, "truncated"),
        (b" " * 2 * LARGE_BYTES, 400, "empty"),
        (b'"%b"' % BIG.encode(), 400, "it is not an object"),
        (b'{"a":"%b"}' % BIG.encode(), 400, "not a JSON-RPC"),
    ],
)
def test_invalid_large_message_is_refused_and_not_forwarded(
    fast_path: bool, body: bytes, status: int, words: str
) -> None:
    world = make_world(fast_path)
    world.receive(post(body, b"Host: h"), [])
    run_turns(world)
    found = last_response(world)
    assert found[0] == status
    assert words in found[1]["error"]["message"]
    world.receive(post_mcp(body), [])
    run_turns(world)
    # There arrays are refused for what they are.
    assert last_response(world)[0] in (status, 400)
    assert (world.backend.sent, world.backend2.sent) == ([], [])
    assert world.site.budget.used == 0


@both
def test_message_to_a_session_that_ends_meanwhile_is_answered_with_404(fast_path: bool) -> None:
    world = make_world(fast_path)
    world.receive(post(call(), b"Host: h"), [])
    world.server.sessions.clear()
    run_turns(world)
    assert last_response(world)[0] == 404
    assert world.backend.sent == []


@both
def test_message_of_a_client_that_leaves_meanwhile_is_dropped(fast_path: bool) -> None:
    world = make_world(fast_path)
    world.receive(post(call(), b"Host: h"), [])
    world.receive(post_mcp(call(), b"Host: h"), [])
    assert world.site.budget.used > 0
    world.channel.connectionLost()
    run_turns(world)
    assert world.backend.sent == []
    assert world.site.budget.used == 0


# Batches.


def batch(count: int, size: int = 0) -> bytes:
    message = {"jsonrpc": "2.0", "method": "a", "params": {"x": "y" * size}}
    return json.dumps([message] * count).encode()


@both
@pytest.mark.parametrize("size", [0, 10_000])
def test_batch_beyond_max_waiting_messages_is_refused_with_413(fast_path: bool, size: int) -> None:
    """Each message of it counts, at both endpoints; nothing of a refused batch is forwarded."""
    for posted in (post, post_mcp):
        world = make_world(fast_path, waiting=20)
        world.streamable.negotiated = "2025-03-26"
        world.receive(posted(batch(21, size), b"Host: h"), [])
        run_turns(world)
        status, body = last_response(world)
        assert status == 413
        assert "20 elements (max_waiting_messages)" in body["error"]["message"]
        assert (world.backend.sent, world.backend2.sent) == ([], [])
        world.receive(posted(batch(20, size), b"Host: h"), [])
        run_turns(world)
        assert last_response(world) == (202, None)
        assert len(world.backend.sent + world.backend2.sent) == 1


@both
def test_large_batch_follows_the_rules_of_its_revision(fast_path: bool) -> None:
    world = make_world(fast_path)
    messages = [
        {"jsonrpc": "2.0", "id": n, "method": "x", "params": {"a": BIG[:40_000]}} for n in (1, 2)
    ]
    body = json.dumps(messages).encode()
    world.streamable.negotiated = "2025-06-18"
    world.receive(post_mcp(body), [])
    run_turns(world)
    assert last_response(world)[0] == 400, "a revision without batches"
    world.streamable.negotiated = "2025-03-26"
    for odd, words in ((b"[]", "empty"), (b'[{"jsonrpc":"2.0","id":1,"method":"initialize"}]', "")):
        world.receive(post_mcp(odd + b" " * LARGE_BYTES), [])
        run_turns(world)
        status, refusal = last_response(world)
        assert status == 400
        assert words in refusal["error"]["message"]
    world.receive(post_mcp(body), [])
    run_turns(world)
    assert b"".join(world.backend2.sent).count(b'"id"') == 2
    for ident in (1, 2):
        world.say(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % ident)
    assert world.transport.value().count(b'"result"') == 2
    assert world.site.budget.used == 0


# Streamable HTTP.


@both
def test_large_call_gets_its_notifications_and_its_response(fast_path: bool) -> None:
    world = make_world(fast_path)
    body = call(7, "tools/call", _meta={"progressToken": "t"})
    world.receive(post_mcp(body), [])
    run_turns(world)
    assert world.backend2.sent == [body]
    assert world.site.budget.used == 0, "the backend has it: it is not held here"
    progress = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t"}}'
    world.say(progress)
    world.say(b'{"jsonrpc":"2.0","id":7,"result":{}}')
    assert progress in world.transport.value()
    assert b'"result"' in world.transport.value()


@both
def test_session_id_is_checked_before_a_large_body(fast_path: bool) -> None:
    for fields, status in (
        ([b"Mcp-Session-Id: " + IDENT.replace("1", "3").encode()], 404),
        ([], 400),
    ):
        world = make_world(fast_path)
        usual = [b"Accept: application/json, text/event-stream", b"Content-Type: application/json"]
        names = {each.partition(b":")[0] for each in fields}
        kept = [each for each in usual if each.partition(b":")[0] not in names]
        for body in (call(), b"[%b]" % call()):
            world.receive(ask(body, *fields, usual=[b"Host: h", *kept]), [])
            run_turns(world)
            assert last_response(world)[0] == status


@both
def test_large_initialize_opens_a_session_but_not_twice(fast_path: bool) -> None:
    world = make_world(fast_path)
    body = call(1, "initialize")
    world.receive(post_mcp(body), [])
    run_turns(world)
    assert last_response(world)[0] == 400, "it is initialized already"
    usual = [b"Host: h", b"Accept: */*", b"Content-Type: application/json"]
    world.receive(ask(body, usual=usual), [])
    run_turns(world)
    assert world.launcher.backends[2].sent == [body]


# Requests of 2026-07-28.

HEAD = (b"Mcp-Method: x",)


@both
@pytest.mark.parametrize("kind", [Modern, Legacy])
def test_large_stateless_request_counts_until_it_is_answered(fast_path: bool, kind: Any) -> None:
    world = make_world(fast_path)
    world.launcher.kind = kind
    body = asking("x", a=[BIG])
    world.receive(ask(body, *HEAD), [])
    run_turns(world)
    assert world.site.budget.used == len(body)
    said = [json.loads(line) for each in world.launcher.backends for line in each.sent]
    (line,) = [each for each in said if each["method"] == "x"]
    assert line["params"]["a"] == [BIG]
    world.answer_modern()
    run_turns(world)
    assert last_response(world)[0] == 200
    assert world.site.budget.used == 0


@pytest.mark.parametrize("late", [False, True])
def test_small_stateless_request_counts_until_it_is_answered(late: bool) -> None:
    worlds = [make_world(fast_path=True), make_world(fast_path=False)]
    for world in worlds:
        world.receive(X, [])
        assert world.site.budget.used == len(asking("x"))
        if late:
            world.clock.advance(COMMIT_SECONDS)
            world.clock.advance(COMMIT_SECONDS)
        world.answer_modern()
        assert world.site.budget.used == 0
        world.receive(X, [])
        world.channel.connectionLost()
        assert world.site.budget.used == 0
    assert worlds[0].recognised > 0


def test_small_request_beyond_the_budget_is_refused_on_both_paths() -> None:
    worlds = [make_world(fast_path=True), make_world(fast_path=False)]
    for world in worlds:
        world.site.budget.take(BUDGET - 10)
        world.receive(X, [])
        world.site.budget.give_back(BUDGET - 10)
    assert worlds[0].seen() == worlds[1].seen()
    assert last_response(worlds[0])[0] == 503


@both
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (asking("x", **{f"k{n}": 1 for n in range(20_000)}), 413, -32600),
        (asking("y", a=BIG), 400, -32020),
        (b"[%b]" % asking("x", a=BIG), 400, -32600),
        (asking("x", a=BIG)[:-1], 400, -32700),
        (asking("x", a=BIG).replace(b'"id":"m",', b""), 202, None),
    ],
)
def test_invalid_large_stateless_request_is_refused(
    fast_path: bool, body: bytes, status: int, code: int | None
) -> None:
    world = make_world(fast_path)
    world.receive(ask(body, *HEAD), [])
    run_turns(world)
    found = last_response(world)
    assert found[0] == status
    if code is not None:
        assert found[1]["error"]["code"] == code
        assert found[1]["id"] == (None if code == -32700 or body[:1] == b"[" else "m")
    assert world.site.budget.used == 0


@both
def test_large_stateless_request_without_its_headers_is_refused(fast_path: bool) -> None:
    world = make_world(fast_path)
    usual = [b"Host: h", b"Accept: */*", b"Content-Type: application/json"]
    world.receive(ask(asking("x", a=BIG), usual=usual), [])
    run_turns(world)
    assert last_response(world)[0] == 400
    assert last_response(world)[1]["error"]["code"] == -32020
    refused = [b"Host: h", b"Accept: x/y", b"Content-Type: application/json"]
    refused += [b"MCP-Protocol-Version: 2026-07-28", *HEAD]
    world.receive(ask(asking("x", a=BIG), usual=refused), [])
    run_turns(world)
    assert last_response(world)[0] == 406


# The work, and the memory.


def counting(steps: int, result: str = "") -> Slices[str]:
    for _ in range(steps):
        yield
    if not result:
        raise NotJson("wrong")
    return result


def test_sliced_work_is_spread_over_reactor_iterations() -> None:
    time = [0.0]

    class Counted(Clock):
        turns = 0

        def callLater(self, delay: float, *args: Any, **kw: Any) -> Any:
            self.turns += 1
            if self.turns == 3:
                cancelled.cancel()
            return super().callLater(delay, *args, **kw)

    clock = Counted()

    def now() -> float:
        time[0] += LARGE_TURN_SECONDS / 4
        return time[0]

    sliced = SlicedWork(clock, now)
    found: list[str] = []
    for result in ("a", "b"):
        sliced.do(counting(5, result)).addCallback(found.append)
    failed = sliced.do(counting(5))
    cancelled = sliced.do(counting(50, "c"))
    clock.advance(0)
    assert found == ["a", "b"]
    assert clock.turns >= 5, "others are served in between"
    assert isinstance(_failure(failed), NotJson)
    assert isinstance(_failure(cancelled), CancelledError)


def _failure(deferred: Deferred[Any]) -> BaseException | None:
    found: list[BaseException | None] = []

    def failed(failure: Failure) -> None:
        found.append(failure.value)

    deferred.addErrback(failed)
    return found[0]


def test_memory_is_returned_at_most_once_in_trim_seconds() -> None:
    clock, trims = Clock(), [0]

    def trim() -> None:
        trims[0] += 1

    trimmer = Trimmer(clock, trim)
    budget = BodyBudget(10 * TRIM_BYTES, freed=trimmer.freed)
    for size, expected in ((TRIM_BYTES - 1, 0), (TRIM_BYTES, 1), (TRIM_BYTES, 2)):
        for _ in range(3):
            assert budget.take(size)
            budget.give_back(size)
        clock.advance(TRIM_SECONDS)
        assert trims == [expected]
    trimmer.freed()
    trimmer.stop()
    trimmer.freed()
    assert not clock.getDelayedCalls()
    trimmer.stop()


def test_trimmer_without_malloc_trim_does_nothing() -> None:
    clock = Clock()
    Trimmer(clock, None).freed()
    assert not clock.getDelayedCalls()
    trim = trim_function()
    if trim is not None:
        trim()
