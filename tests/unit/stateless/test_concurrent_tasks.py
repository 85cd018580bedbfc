"""Tasks of 2026-07-28: who may use them, which process runs them, and how long it is kept."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from mcpbridge.errors import (
    InvalidParams,
    MethodNotFound,
    MissingCapability,
    Refused,
    ServerBusy,
    ShuttingDown,
)
from mcpbridge.mcp.tasks import POLL_SECONDS, RESULT_SECONDS
from mcpbridge.stateless.concurrent_worker import TASKS_SECONDS
from tests.fakes import CAPABILITIES_WITH_TASKS, Call, Legacy, Modern, WithTasks, World


@pytest.fixture
def world() -> Any:
    world = World(WithTasks)
    yield world
    world.end()


def begin(world: World, token: str = "a", **options: Any) -> str:
    call = task(world, token, **options)
    assert call.result["resultType"] == "task"
    return str(call.result["taskId"])


def task(world: World, token: str = "a", *, identity: str = "", **arguments: Any) -> Call:
    params = {"name": "t", "arguments": {"token": token, "do": "task", **arguments}}
    call = world.request(
        "tools/call", params, capabilities=CAPABILITIES_WITH_TASKS, identity=identity
    )
    world.run()
    return call


def ask(world: World, method: str, ident: str, *, identity: str = "", **params: Any) -> Call:
    params = {"taskId": ident, **params}
    call = world.request(
        f"tasks/{method}", params, capabilities=CAPABILITIES_WITH_TASKS, identity=identity
    )
    world.run()
    return call


def test_tasks_with_equal_backend_ids_are_kept_apart() -> None:
    world = World(WithTasks, concurrency=2)
    params = [{"name": "t", "arguments": {"token": f"{each}", "do": "task"}} for each in range(6)]
    calls = [
        world.request("tools/call", each, capabilities=CAPABILITIES_WITH_TASKS) for each in params
    ]
    world.run()
    assert len(world.live) > 1
    idents = [each.result["taskId"] for each in calls]
    assert len(set(idents)) == 6
    for number, ident in enumerate(idents):
        got = ask(world, "get", ident).result
        assert (got["taskId"], got["token"]) == (ident, f"{number}")
    ask(world, "update", idents[3], inputResponses={"q": {"a": 1}})
    assert ask(world, "get", idents[3]).result["got"] == {"q": {"a": 1}}
    assert ask(world, "cancel", idents[4]).result == {"resultType": "complete"}
    states = [ask(world, "get", each).result["status"] for each in idents]
    assert states == ["working"] * 4 + ["cancelled", "working"]
    world.end()


def test_task_can_be_polled_while_its_process_is_at_its_limits() -> None:
    world = World(WithTasks, limit=1, concurrency=1, max_process_requests=2)
    ident = begin(world)
    world.call("b", "wait")
    world.run()
    for _ in range(5):
        assert ask(world, "get", ident).result["status"] == "working"
    assert world.live[0].calls
    world.live[0].finish("b")
    world.live[0].complete("1")
    assert ask(world, "get", ident).result["status"] == "completed"
    world.run(1)
    # It has reached max_process_requests and has no task left.
    assert not world.live
    world.end()


@pytest.mark.parametrize("method", ["get", "update", "cancel"])
@pytest.mark.parametrize("other", ["w", "y"])
def test_foreign_and_unknown_tasks_are_refused_alike(world: World, method: str, other: str) -> None:
    ident = begin(world, identity="x")
    owner = ident.partition(".")[0]
    foreign = ask(world, method, ident, identity=other, inputResponses={}).refusal
    never = [
        ask(world, method, each, identity=other, inputResponses={}).refusal
        for each in ("1", "x.1", f"{owner}.2", "")
    ]
    assert isinstance(foreign, InvalidParams)
    for each in never:
        assert isinstance(each, InvalidParams)
        assert (each.status, str(each)) == (foreign.status, str(foreign))
    # Nothing reached the process, and none was started for it.
    [backend] = world.live
    assert not any(each["method"].startswith("tasks/") for each in backend.received)
    assert ask(world, "get", ident, identity="x").result["status"] == "working"


def test_client_must_declare_the_tasks_capability(world: World) -> None:
    begin(world)
    refusal = world.request("tasks/get", {"taskId": "x.1"}).refusal
    assert isinstance(refusal, MissingCapability)


def test_legacy_server_has_no_tasks() -> None:
    world = World(Legacy, known=False)
    for each in ("get", "update", "cancel", "list", "result"):
        call = ask(world, each, "x.1")
        world.run(1)
        assert isinstance(call.refusal, MethodNotFound)
    world.end()


def test_modern_server_without_the_tasks_capability_has_no_tasks() -> None:
    world = World(Modern)
    assert isinstance(ask(world, "get", "x.1").refusal, InvalidParams)
    world.call("a")
    world.run()
    assert isinstance(ask(world, "get", "x.1").refusal, MethodNotFound)
    world.end()


@pytest.mark.parametrize("method", ["list", "result"])
def test_removed_task_methods_are_unknown(world: World, method: str) -> None:
    assert isinstance(ask(world, method, "1").refusal, MethodNotFound)


# How long a process is kept.


def test_process_with_a_task_outlives_its_idle_timeout() -> None:
    world = World(WithTasks, idle_timeout=4)
    ident = begin(world, seconds=8)
    for _ in range(8):
        world.run(1)
    assert ask(world, "get", ident).result["status"] == "completed"
    world.run(3)
    assert len(world.live) == 1
    # A completed task stays readable as long as its process lives.
    assert ask(world, "get", ident).result["status"] == "completed"
    world.run(4)
    assert not world.live
    assert isinstance(ask(world, "get", ident).refusal, InvalidParams)
    world.end()


def test_bridge_polls_a_task_that_no_client_polls() -> None:
    world = World(WithTasks, idle_timeout=4)
    begin(world, seconds=8)
    for _ in range(int(POLL_SECONDS + 2)):
        world.run(1)
    assert world.live[0].received[-1]["method"] == "tasks/get"
    for _ in range(int(RESULT_SECONDS - 2)):
        world.run(1)
    assert len(world.live) == 1
    for _ in range(8):
        world.run(1)
    assert not world.live
    world.end()


def test_bridge_polls_one_task_at_a_time() -> None:
    """`TASKS_SECONDS` between two of a process, however many are due."""
    times: list[float] = []

    class Timed(WithTasks):
        def tasks_get(self, message: dict[str, Any]) -> None:
            times.append(self.clock.seconds())
            super().tasks_get(message)

    world = World(Timed, limit=1)
    for token in "abc":
        begin(world, token)
    world.clock.advance(POLL_SECONDS - TASKS_SECONDS)
    while len(times) < 3 and world.clock.seconds() < POLL_SECONDS + 5 * TASKS_SECONDS:
        world.run(TASKS_SECONDS / 8)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([TASKS_SECONDS] * 2, abs=TASKS_SECONDS / 4)
    world.end()


def test_bridge_polls_a_task_of_a_process_that_sends_messages_all_the_time(world: World) -> None:
    begin(world)
    [backend] = world.live
    for _ in range(int(2 * POLL_SECONDS + 2)):
        backend.write({"method": "notifications/x"})
        world.run(0.5)
    assert backend.received[-1]["method"] == "tasks/get"


@pytest.mark.parametrize("how", ["ttl", "setting"])
def test_task_lifetime_is_bounded_by_its_ttl_and_by_task_timeout(how: str) -> None:
    kind = type("Short", (WithTasks,), {"ttl_ms": 20_000 if how == "ttl" else None})
    world = World(kind, idle_timeout=4, task_timeout=3600 if how == "ttl" else 20)
    begin(world)
    world.live[0].silent = True
    for _ in range(20):
        world.run(1)
    assert len(world.live) == 1
    for _ in range(5):
        world.run(1)
    assert not world.live
    world.end()


def test_task_unknown_to_its_server_releases_its_process() -> None:
    world = World(WithTasks, idle_timeout=4)
    begin(world)
    world.live[0].tasks.clear()
    for _ in range(int(POLL_SECONDS + 6)):
        world.run(1)
    assert not world.live
    world.end()


def test_bridge_polls_again_after_a_full_pipe(world: World) -> None:
    begin(world)
    [backend] = world.live
    backend.busy = True
    for _ in range(int(POLL_SECONDS + 1)):
        world.run(1)
    backend.busy = False
    heard = len(backend.received)
    for _ in range(int(POLL_SECONDS + 1)):
        world.run(1)
    assert [each["method"] for each in backend.received[heard:]] == ["tasks/get"]


def test_process_with_a_task_is_neither_evicted_nor_replaced_for_its_age() -> None:
    world = World(WithTasks, limit=1, max_process_age=100, queue_timeout=5)
    ident = begin(world, identity="x")
    other = world.call("b", identity="y")
    world.run(6)
    assert isinstance(other.refusal, ServerBusy)
    world.run(200)
    assert ask(world, "get", ident, identity="x").result["status"] == "working"
    world.live[0].complete("1")
    ask(world, "get", ident, identity="x")
    world.run(1)
    assert not world.live
    world.end()


def test_worn_process_with_a_task_goes_on_without_capacity_for_another() -> None:
    world = World(WithTasks, limit=1, max_process_requests=1)
    ident = begin(world)
    for each in "bcd":
        call = world.call(each)
        world.run()
        assert call.result["token"] == each
    assert len(world.backends) == 1
    world.live[0].complete("1")
    assert ask(world, "get", ident).result["status"] == "completed"
    world.run(1)
    assert not world.live
    world.end()


def test_logging_request_gets_a_process_without_a_task() -> None:
    """Without capacity for one, it is served without log messages."""
    world = World(WithTasks, limit=2)
    begin(world)
    calls = [world.call(each, "wait", level="debug") for each in "bc"]
    world.run()
    [first, second] = world.live
    assert [each["token"] for each in second.calls.values()] == ["b"]
    assert [each["token"] for each in first.calls.values()] == ["c"]
    for backend in (first, second):
        backend.write({"method": "notifications/message", "params": {"level": "info", "data": "x"}})
    assert [len(each.lines) for each in calls] == [1, 0]
    for each in calls:
        each.disconnect()
    world.end()


def test_unanswered_poll_of_a_finished_task_does_not_block_its_process(world: World) -> None:
    """Not even where the request before it wanted log messages, and was the only one."""
    ident = begin(world)
    [backend] = world.live
    backend.complete("1")
    ask(world, "get", ident)
    world.call("b", level="debug")
    world.run()
    backend.silent = True
    poll, call = ask(world, "get", ident), world.call("c")
    world.run()
    assert world.backends == [backend]
    assert [each["method"] for each in backend.received[-2:]] == ["tasks/get", "tools/call"]
    poll.disconnect()
    call.disconnect()


# How a task ends.


@pytest.mark.parametrize("polling", [False, True])
def test_tasks_end_with_their_process(world: World, polling: bool) -> None:
    ident = begin(world)
    [backend] = world.live
    if polling:
        backend.silent = True
        world.run(POLL_SECONDS + 1)
    waiting = ask(world, "get", ident) if polling else None
    backend.die()
    world.run(1)
    assert isinstance(ask(world, "get", ident).refusal, InvalidParams)
    assert waiting is None or isinstance(waiting.refusal, Refused)


def test_abandoned_poll_is_cancelled(world: World) -> None:
    ident = begin(world)
    [backend] = world.live
    backend.silent = True
    asking = ask(world, "get", ident)
    asking.disconnect()
    world.run()
    assert backend.received[-1]["method"] == "notifications/cancelled"


def test_task_requests_are_refused_while_the_bridge_stops(world: World) -> None:
    ident = begin(world)
    world.stop()
    assert isinstance(ask(world, "get", ident).refusal, ShuttingDown)
    world.run(1)
    assert world.limiter.taken == 0
