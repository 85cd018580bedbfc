"""Stateless requests to a modern server: several at once on one process."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.config.tuning import LAUNCH_SECONDS, RELISTEN_SECONDS
from mcpbridge.errors import (
    BackendBusy,
    BackendEnded,
    BackendFailed,
    CannotStart,
    HeaderMismatch,
    MessageRefused,
    ServerBusy,
    ServerDown,
    ShuttingDown,
)
from mcpbridge.mcp.header_validation import Headers
from mcpbridge.stateless.concurrent_pool import SERVED_BY_TWO, _ByLoad
from mcpbridge.stateless.concurrent_worker import ConcurrentWorker
from mcpbridge.stateless.exchange import Exchange
from tests.fakes import Legacy, Modern, World


@pytest.fixture
def world() -> Any:
    world = World(Modern)
    yield world
    world.end()


def test_process_serves_several_requests_at_once(world: World) -> None:
    """Their ids may be equal; each gets its own answer."""
    calls = [world.call(f"{number}", "wait") for number in range(16)]
    world.run()
    [backend] = world.live
    for number in reversed(range(16)):
        backend.finish(f"{number}")
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(16)]


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_concurrency_bounds_each_process(count: int) -> None:
    world = World(Modern, limit=2, concurrency=3, queue_timeout=60)
    calls = [world.call(f"{number}", "wait") for number in range(count)]
    for _ in range(count):
        world.run()
        assert all(len(each.calls) <= 3 for each in world.live)
        for backend in world.live:
            for arguments in list(backend.calls.values())[:1]:
                backend.finish(arguments["token"])
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(count)]
    assert len(world.backends) == min(2, -(-count // 3))
    world.end()


def test_answers_in_one_read_admit_as_many_requests() -> None:
    world = World(Modern, limit=1, concurrency=4)
    calls = [world.call(f"{number}", "wait") for number in range(8)]
    world.run()
    [backend] = world.live
    backend.write(*({"id": each, "result": {}} for each in list(backend.calls)))
    backend.calls.clear()
    world.run()
    assert len(backend.calls) == 4
    assert [each.completions for each in calls] == [1] * 4 + [0] * 4
    world.end()


def test_response_that_fails_keeps_no_other_from_its_client(
    world: World, logged_failures: list[Any]
) -> None:
    """Of those that came in one read."""
    calls = [world.call(f"{number}", "wait") for number in range(3)]
    world.run()
    [backend] = world.live

    def fail(lines: list[bytes], final: bool) -> None:
        raise ZeroDivisionError

    calls[1].send = fail  # type: ignore[method-assign]
    backend.write(*({"id": each, "result": {}} for each in list(backend.calls)))
    assert [each.completions for each in calls] == [1, 0, 1]
    assert [each.type for each in logged_failures] == [ZeroDivisionError]


def test_launching_request_does_not_exceed_the_concurrency() -> None:
    world = World(Modern, limit=1, concurrency=1)
    first = world.call("a", "wait", identity="x")
    world.run()
    waiting = [world.call(f"{number}", "wait") for number in range(3)]
    world.live[0].finish("a")
    world.run(1)
    assert first.completions
    [backend] = world.live
    assert len(backend.calls) == 1
    assert len(waiting) == 3
    world.end()


def test_logging_request_has_a_process_to_itself(world: World) -> None:
    """A log message does not name its request, so no other request shares the process."""
    calls = [world.call("a", "wait", level="debug"), world.call("b", "wait")]
    calls.append(world.call("c", "wait", level="debug"))
    calls.append(world.call("d", "wait"))
    world.run()
    told = [sorted(each["token"] for each in backend.calls.values()) for backend in world.live]
    assert sorted(told) == [["a"], ["b", "d"], ["c"]]
    for backend in world.live:
        data = next(iter(backend.calls.values()))["token"]
        backend.write(
            {"method": "notifications/message", "params": {"level": "info", "data": data}}
        )
    logs = [[line["params"]["data"] for line in each.lines] for each in calls]
    assert logs == [["a"], [], ["c"], []]
    for each in calls:
        each.disconnect()


@pytest.mark.parametrize("other", ["x", "z", "", "yy"])
def test_idle_process_of_another_identity_is_not_used(world: World, other: str) -> None:
    world.call("a", identity="y")
    world.run()
    call = world.call("b", identity=other)
    world.run()
    assert call.result["token"] == "b"
    assert len(world.live) == 2


def test_each_identity_has_its_own_process(world: World) -> None:
    calls = [world.call(each, identity=each) for each in "xyxy"]
    world.run()
    assert [each.result["token"] for each in calls] == list("xyxy")
    assert len(world.live) == 2
    for backend in world.live:
        called = [each for each in backend.received if each["method"] == "tools/call"]
        assert len({each["params"]["arguments"]["token"] for each in called}) == 1


def test_identities_take_turns_with_capacity_for_one() -> None:
    world = World(Modern, limit=1, concurrency=1, queue_timeout=60)
    calls = [world.call(f"{number}", identity="xy"[number % 2]) for number in range(6)]
    for _ in range(10):
        world.run(1)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(6)]
    assert len(world.backends) <= 6
    world.end()


def test_many_requests_wait_for_the_first_process() -> None:
    count = 500
    world = World(Modern, limit=1, known=False, max_waiting_requests=1000, concurrency=7)
    calls = [world.call(f"{number}") for number in range(count)]
    for _ in range(30):
        world.run()
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(count)]
    assert len(world.backends) == 1
    world.end()


def test_requests_waiting_for_a_launch_count_as_waiting() -> None:
    world = World(Modern, max_waiting_requests=2)
    world.launcher.delays_launches = True
    calls = [world.call(f"{number}") for number in range(4)]
    assert [each.completions for each in calls] == [0, 0, 0, 1]
    assert isinstance(calls[3].refusal, ServerBusy)
    world.launcher.delays_launches = False
    world.launcher.finish()
    world.run()
    assert [each.result["token"] for each in calls[:3]] == ["0", "1", "2"]
    world.end()


# Clients that leave.


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("aborted", [True, False])
@pytest.mark.parametrize("turns", range(10))
@pytest.mark.parametrize("do", ["echo", "wait"])
def test_client_may_leave_at_any_time(do: str, turns: int, aborted: bool, known: bool) -> None:
    world = World(Modern, limit=1, concurrency=1, queue_timeout=30, known=known)
    call = world.call("a", do)
    for _ in range(turns):
        world.clock.advance(0.1)
    call.disconnect(aborted=aborted)
    other = world.call("b")
    for _ in range(20):
        world.run(0.1)
    assert other.result["token"] == "b"
    world.end()


def test_leaving_client_cancels_its_request(world: World) -> None:
    call, other = world.call("a", "wait"), world.call("b", "wait")
    world.run()
    [backend] = world.live
    [ident] = [each for each, arguments in backend.calls.items() if arguments["token"] == "a"]
    call.disconnect()
    world.run()
    assert backend.received[-1]["method"] == "notifications/cancelled"
    backend.write({"id": ident, "result": {"token": "a"}})
    backend.finish("b")
    assert other.result["token"] == "b"


def test_abandoned_tools_list_is_cancelled(world: World) -> None:
    """An abandoned or unanswered tools/list does not count as work for ever."""
    world.request("server/discover")
    world.run()
    [backend] = world.live
    backend.silent = True
    call = world.call("a")
    world.run()
    call.disconnect()
    late = world.call("b")
    world.run(world.settings.start_timeout)
    assert isinstance(late.refusal, BackendFailed)
    cancelled = [each for each in backend.received if each["method"] == "notifications/cancelled"]
    assert len(cancelled) == 2
    world.run(world.settings.idle_timeout)
    assert not world.live
    world.run(1)
    assert world.limiter.taken == 0


# Processes that end.


def test_death_of_a_process_fails_all_its_requests(world: World) -> None:
    calls = [world.call("a", "wait"), world.call("b", "wait")]
    world.run()
    world.live[0].die()
    assert all(isinstance(each.refusal, BackendEnded) for each in calls)
    again = world.call("c")
    world.run()
    assert again.result["token"] == "c"


def test_process_that_closed_stdin_finishes_but_takes_no_new_request(world: World) -> None:
    """Its answers still arrive; the next request gets another process."""
    call = world.call("a", "wait")
    world.run()
    [backend] = world.live
    backend.close_input()
    other = world.call("b")
    world.run()
    assert other.result["token"] == "b"
    backend.finish("a")
    assert call.result["token"] == "a"
    backend.die()


def test_request_to_a_process_that_just_ended_is_refused(world: World) -> None:
    world.call("a")
    world.run()
    [backend] = world.live
    backend.ended = True
    assert isinstance(world.call("b").refusal, BackendEnded)


class Regional(Modern):
    """A server whose tool wants one of its arguments in a header too."""

    def tools_list(self, message: dict[str, Any]) -> None:
        region = {"type": "string", "x-mcp-header": "Region"}
        schema = {"type": "object", "properties": {"region": region}}
        self.respond(message["id"], {"tools": [{"name": "t", "inputSchema": schema}]})


def test_call_without_a_header_that_its_tool_wants_is_refused(world: World) -> None:
    world.launcher.kind = Regional
    call = world.request("tools/call", {"name": "t", "arguments": {"token": "a", "region": "eu"}})
    world.run()
    assert isinstance(call.refusal, HeaderMismatch)
    [backend] = world.live
    assert not backend.calls


@pytest.mark.parametrize("how", ["dies", "mute"])
@pytest.mark.parametrize("method", ["server/discover", "tools/list", "tools/call"])
def test_process_that_dies_or_hangs_fails_its_request(
    method: str, how: str, log_lines: list[str]
) -> None:
    class Fails(Modern):
        def _receive(self, message: dict[str, Any]) -> None:
            if message.get("method") == method:
                if how == "dies":
                    self.die()
            else:
                super()._receive(message)

    world = World(Fails, limit=1)
    call = world.call("a")
    world.run(1)
    world.run(world.settings.start_timeout)
    if (how, method) == ("mute", "tools/call"):
        call.disconnect()
    else:
        assert isinstance(call.refusal, BackendFailed | BackendEnded)
    has_failed = any("is down after" in line for line in log_lines)
    assert has_failed is (method == "server/discover")
    world.run(1)
    world.end()


def test_server_that_crashes_at_start_is_backed_off(world: World) -> None:
    world.launcher.kind = type("Crashes", (Modern,), {"discover": Modern.die})
    call = world.call("a")
    world.run()
    assert isinstance(call.refusal, BackendFailed)
    world.era.modern = True
    assert isinstance(world.call("b").refusal, ServerDown)


def test_filter_refuses_a_single_message(world: World) -> None:
    assert world.call("a").refusal is None
    world.run()
    assert isinstance(world.call("forbidden").refusal, MessageRefused)
    call = world.call("b")
    world.run()
    assert call.result["token"] == "b"


def test_full_pipe_refuses_a_request(world: World) -> None:
    world.call("a")
    world.run()
    [backend] = world.live
    backend.busy = True
    assert world.call("b").refusal is not None
    backend.busy = False
    call = world.call("c")
    world.run()
    assert call.result["token"] == "c"


@pytest.mark.parametrize("idle", [0, 300])
def test_worn_process_is_replaced(idle: float) -> None:
    """By number of requests or by age, also while idle; it does not stay beside the next one."""
    world = World(Modern, max_process_age=100, max_process_requests=2, idle_timeout=idle)
    for token in "ab":
        world.call(token)
        world.run()
    assert not world.live
    world.call("c")
    world.run(100)
    [old] = world.live
    call = world.call("d")
    world.run(1)
    assert call.result["token"] == "d"
    assert old.ended
    assert world.limiter.taken == 1
    world.end()


def test_server_may_become_a_legacy_server(world: World, log_lines: list[str]) -> None:
    world.call("a")
    world.run()
    world.launcher.kind = Legacy
    world.live[0].die()
    call = world.call("b")
    world.run(1)
    assert call.result["token"] == "b"
    assert world.era.modern is False
    why = "the server answered `server/discover` with an error"
    assert f"server 'default' is legacy now: {why}" in log_lines


@pytest.mark.parametrize("turns", range(6))
def test_bridge_may_stop_at_any_time(turns: int) -> None:
    world = World(Modern, limit=1, concurrency=1)
    calls = [world.call("a", "wait"), world.listen(), world.call("b")]
    for _ in range(turns):
        world.clock.advance(0.05)
    world.stop()
    world.run(1)
    assert [each.completions for each in calls] == [1] * 3
    assert world.limiter.taken == 0
    assert world.clock.getDelayedCalls() == []
    assert isinstance(world.call("d").refusal, ShuttingDown)


# Subscriptions.


class Telling(Modern):
    capabilities: ClassVar[dict[str, Any]] = {"tools": {"listChanged": True}}


def test_subscription_outlives_its_process_with_one_acknowledgement(world: World) -> None:
    world.launcher.kind = Telling
    call = world.listen()
    world.run()
    assert len(call.lines) == 1
    world.live[0].die()
    world.run(RELISTEN_SECONDS)
    world.run()
    [backend] = world.live
    listens = [each["id"] for each in backend.received if each["method"] == "subscriptions/listen"]
    for each in listens:
        backend.notify(each, "notifications/tools/list_changed")
    assert [each["method"] for each in call.lines[1:]] == ["notifications/tools/list_changed"]
    call.disconnect()
    world.run()
    assert backend.received[-1]["method"] == "notifications/cancelled"


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("stop", [False, True])
def test_client_may_leave_or_bridge_may_stop_during_a_resubscription(
    stop: bool, turns: int
) -> None:
    """Nothing is left, and a client that is still there gets its result."""
    world = World(Modern)
    call = world.listen()
    world.run()
    world.live[0].die()
    world.launcher.delays_launches = True
    world.run(0.5)
    for _ in range(turns):
        world.clock.advance(0.2)
    if stop:
        world.stop()
        assert call.result["resultType"] == "complete"
    else:
        call.disconnect()
        # A launch goes on for the next request; this one never finishes.
        world.run(LAUNCH_SECONDS)
        assert world.limiter.taken == 0
    world.end()


def test_subscriber_keeps_its_process_without_the_bridges_own_subscription(world: World) -> None:
    """The server ended that one, but the client's subscription still keeps the process in use."""
    world.launcher.kind = Telling
    world.listen()
    world.run()
    [backend] = world.live
    own = next(each["id"] for each in backend.received if each["method"] == "subscriptions/listen")
    backend.respond(own, {"resultType": "complete"})
    world.call("a")
    world.run(world.settings.idle_timeout)
    assert world.live == [backend]


class Full(Telling):
    """A server that reads nothing for a while, once it has answered `server/discover`."""

    def discover(self, message: dict[str, Any]) -> None:
        self.busy = True
        super().discover(message)


def test_process_that_the_bridge_could_not_subscribe_to_is_used(
    world: World, log_lines: list[str]
) -> None:
    world.launcher.kind = Full
    refused = world.call("a")
    world.run()
    assert isinstance(refused.refusal, BackendBusy)
    [backend] = world.live
    assert [each for each in log_lines if each.endswith(" are not watched")] != []
    backend.busy = False
    call = world.call("b")
    world.run()
    assert call.result["token"] == "b"
    assert world.backends == [backend]


def test_subscription_fails_when_the_server_becomes_a_legacy_server(world: World) -> None:
    call = world.listen()
    world.run()
    world.launcher.kind = Legacy
    world.live[0].die()
    world.run(RELISTEN_SECONDS)
    world.run()
    assert isinstance(call.refusal, BackendFailed)


def test_line_of_invalid_utf8_is_dropped(world: World) -> None:
    """The messages read together with it are delivered."""
    call = world.call("a", "wait")
    world.run()
    [backend] = world.live
    [ident] = backend.calls
    answer = b'{"jsonrpc":"2.0","id":%d,"result":{"token":"a"}}' % ident
    odd = b'{"jsonrpc":"2.0","id":%d,"result":{},"\x98":1}' % ident
    backend.receiver.messages_received([odd, answer])
    assert call.result["token"] == "a"


@pytest.mark.parametrize("identity", ["w", "x", "y"])
def test_logging_request_replaces_only_a_process_of_its_own_identity(identity: str) -> None:
    """A cancelled request may still log on it."""
    world = World(Modern)
    cancelled = world.call("b", "wait", level="debug", identity="x")
    world.run()
    [muddled] = world.live
    cancelled.disconnect()
    world.run()
    logging = world.call("c", level="debug", identity=identity)
    world.run(1)
    assert logging.result["token"] == "c"
    assert (muddled in world.live) is (identity != "x")
    world.end()


def test_worn_process_ends_that_answers_at_once() -> None:
    """Its answer comes before the write of the request returns."""

    class Prompt(Modern):
        def send(self, line: bytes) -> None:
            message = json.loads(line)
            if message.get("method") == "tools/call" and len(self.received) > 3:
                self._receive(message)
            else:
                super().send(line)

    world = World(Prompt, max_process_requests=3)
    for token in "abc":
        assert not any(each.ended for each in world.backends)
        call = world.call(token)
        world.run()
        assert call.result["token"] == token
    assert [each.ended for each in world.backends] == [True]
    world.end()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_worn_process_ends_while_another_one_serves(order: tuple[int, int]) -> None:
    world = World(Modern, concurrency=1, max_process_age=100, idle_timeout=0)
    for token in "01":
        world.call(token, "wait")
        world.run(60)
    worn, other = both = world.live
    for which in order:
        both[which].finish(f"{which}")
        world.run()
    calls = [world.call("a")]
    world.run()
    calls.append(world.call("b"))
    world.run()
    assert (worn.ended, other.ended) == (True, False)
    assert [each.result["token"] for each in calls] == ["a", "b"]
    world.end()


# What a request costs.


def test_request_for_which_a_worker_is_free_does_not_wait(world: World) -> None:
    asked: list[object] = []
    ask = world.stateless.ask

    def recorded(exchange: Exchange, headers: Headers) -> Any:
        asked.append(ask(exchange, headers))
        return asked[-1]

    world.stateless.ask = recorded  # type: ignore[method-assign]
    calls = [world.call("a")]
    assert asked.pop() is not None
    world.run()
    calls += [world.call(each) for each in "bc"]
    assert asked == [None, None]
    world.run()
    assert [each.result["token"] for each in calls] == ["a", "b", "c"]


def test_request_does_not_touch_the_timer_of_an_idle_worker(world: World) -> None:
    world.call("a")
    world.run()
    [timer] = [each for each in world.clock.getDelayedCalls() if each.getTime() > 100]
    for _ in range(3):
        world.call("b")
        world.run(10)
    assert timer in world.clock.getDelayedCalls()
    # The end comes when it has been idle for that long, and not before.
    world.run(world.settings.idle_timeout - 11)
    assert len(world.live) == 1
    world.run(1)
    assert world.live == []


def test_request_looks_at_one_of_many_full_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Modern, limit=20, concurrency=1)
    for number in range(20):
        world.call(f"{number}", "wait")
        world.run()
    assert len(world.live) == 20
    looked: list[object] = []
    load = ConcurrentWorker.load

    def recorded(worker: ConcurrentWorker) -> int:
        looked.append(worker)
        return int(load.__get__(worker))

    monkeypatch.setattr(ConcurrentWorker, "load", property(recorded))
    waiting = world.call("late")
    world.run()
    assert len(looked) < 10
    monkeypatch.undo()
    world.live[7].finish("7")
    world.run()
    assert waiting.result["token"] == "late"
    world.end()


# The successor of a process that has nearly served enough.


@pytest.mark.parametrize("how", ["starts", "cannot start", "dies", "no permit"])
def test_successor_is_started_for_the_last_tenth_of_its_requests(how: str) -> None:
    """`SERVED_BY_TWO`: nobody waits for it."""

    class Dies(Modern):
        def discover(self, message: dict[str, Any]) -> None:
            if [self] == crowd.backends[1:]:
                self.die()
            else:
                super().discover(message)

    most = 2 * SERVED_BY_TWO
    limit = 1 if how == "no permit" else 3
    crowd = World(Dies if how == "dies" else Modern, limit, max_process_requests=most)
    calls = []
    for number in range(most - 3):
        calls.append(crowd.call(f"{number}"))
        crowd.run()
    if how == "cannot start":
        crowd.launcher.error = CannotStart("no")
    calls.append(crowd.call("held", "wait"))
    crowd.run()
    [first, *others] = crowd.backends
    if how == "starts":
        [second] = others
        # It knows its tools before it is asked for anything.
        assert second.received[-1]["method"] == "tools/list"
        calls.append(crowd.call("more"))
        crowd.run()
        assert second.received[-1]["method"] == "tools/call"
    else:
        assert crowd.live == [first]
        crowd.launcher.error = None
    first.finish("held")
    for number in range(6):
        crowd.run(100)
        calls.append(crowd.call(f"after {number}"))
        crowd.run()
    assert first.ended
    assert len(crowd.live) == 1
    assert [each.completions for each in calls] == [1] * len(calls)
    crowd.end()


@pytest.mark.parametrize("when", ["launch", "discover", "tools"])
def test_bridge_may_stop_while_a_successor_starts(when: str) -> None:
    class Slow(Modern):
        def discover(self, message: dict[str, Any]) -> None:
            if self is crowd.backends[0] or when != "discover":
                super().discover(message)

        def tools_list(self, message: dict[str, Any]) -> None:
            if self is crowd.backends[0] or when != "tools":
                super().tools_list(message)

    crowd = World(Slow, max_process_requests=SERVED_BY_TWO)
    for number in range(SERVED_BY_TWO - 1):
        if number == SERVED_BY_TWO - 2 and when == "launch":
            crowd.launcher.delays_launches = True
        crowd.call(f"{number}")
        crowd.run()
    assert len(crowd.backends) == 2
    crowd.end()


class _Loaded:
    load = 0


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([-1, 0, 1, 3, None])), max_size=60))
def test_workers_are_sorted_by_load(steps: list[tuple[int, int | None]]) -> None:
    index, known = _ByLoad(), dict[int, Any]()
    for which, change in steps:
        if change is None:
            if which in known:
                index.remove(known.pop(which))
        else:
            worker = known.setdefault(which, _Loaded())
            worker.load = max(0, worker.load + change)
            index.update(worker)
        found: list[Any] = list(index)
        assert [each.load for each in found] == sorted(each.load for each in known.values())
        assert set(found) == set(known.values())
        assert len(index) == len(known)
        if known:
            assert index.first() is found[0]


class SilentSuccessor(Modern):
    """A server whose second process answers `server/discover` and then nothing any more."""

    made = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.number = SilentSuccessor.made
        SilentSuccessor.made += 1

    def tools_list(self, message: dict[str, Any]) -> None:
        if self.number == 1:
            self.silent = True
        else:
            super().tools_list(message)


@pytest.fixture
def silent_successor() -> World:
    """A process that is nearly worn, and the successor that was started for it."""
    SilentSuccessor.made = 0
    world = World(SilentSuccessor, limit=4, concurrency=2, max_process_requests=10)
    for number in range(9):
        world.call(f"a{number}", "echo", identity="A")
        world.run()
    assert len(world.backends) == 2
    return world


def test_successor_that_does_not_answer_is_ended(silent_successor: World) -> None:
    """And does not hold a permit until it has been idle for long."""
    silent_successor.run(silent_successor.settings.start_timeout + 1)
    assert [each.ended for each in silent_successor.backends] == [False, True]


def test_successor_that_does_not_answer_delays_no_other_identity(silent_successor: World) -> None:
    """It is asked for its tools when others may start processes again."""
    other = silent_successor.call("b", "echo", identity="B")
    silent_successor.run()
    assert other.completions == 1


def test_request_that_waited_behind_one_that_left_is_asked_whoever_sent_it() -> None:
    """A request with a log level goes before those of all identities."""
    world = World(Modern, limit=1, concurrency=2)
    for name, options in (
        ("b1", {"identity": "B"}),
        ("c", {"identity": "C"}),
        ("a", {"identity": "A", "level": "info"}),
        ("b2", {"identity": "B"}),
    ):
        last = world.call(name, "wait", **options)
        if name == "a":
            leaving = last
        world.run()
        world.clock.advance(1)
    leaving.disconnect()
    world.run()
    [process] = world.live
    assert [each["token"] for each in process.calls.values()] == ["b1", "b2"]
