"""Processes of a server that has other settings: what they still do, and when they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mcpbridge.config.tuning import COLLECT_SECONDS
from tests.fakes import CAPABILITIES_WITH_TASKS, Call, Legacy, Modern, WithTasks, World


def retire(world: World) -> None:
    world.pool.retire()
    world.stateless.retire()
    world.run()


def suspended(world: World, token: str) -> Call:
    call = world.call(token, "ask")
    world.run(COLLECT_SECONDS)
    assert call.result["resultType"] == "input_required"
    return call


def test_suspended_call_is_resumed_where_it_is() -> None:
    world = World(Legacy)
    call = suspended(world, "a")
    retire(world)
    assert len(world.live) == 1
    retries: list[Any] = []
    ask = world.stateless.ask

    def note(exchange: Any, headers: Any) -> Any:
        retries.append((world.stateless.has(exchange), exchange))
        return ask(exchange, headers)

    world.stateless.ask = note  # type: ignore[method-assign]
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    assert [has for has, _ in retries] == [True]
    world.run(1)
    assert not world.live
    assert world.pool.is_empty
    assert not world.stateless.has_waiting()
    other = world.call("b")
    world.run()
    assert not world.stateless.has(other.exchange)
    world.end()


def test_task_is_known_where_it_is() -> None:
    world = World(WithTasks)
    options: Any = {"capabilities": CAPABILITIES_WITH_TASKS}
    params = {"name": "t", "arguments": {"token": "a", "do": "task"}}
    started = world.request("tools/call", params, **options)
    world.run()
    task = started.result["taskId"]
    retire(world)
    assert len(world.live) == 1
    got = world.request("tasks/get", {"taskId": task}, **options)
    unknown = world.request("tasks/get", {"taskId": "x.1"}, **options)
    stranger = world.request("tasks/get", {"taskId": task}, identity="other", **options)
    assert [world.stateless.has(each.exchange) for each in (got, unknown, stranger)] == [
        *(True, False, False)
    ]
    for wanted, known in (([task], True), (["x.1"], False), ("wrong", False)):
        notifications = {"taskIds": wanted, "toolsListChanged": True}
        listen = world.request("subscriptions/listen", {"notifications": notifications}, **options)
        assert world.stateless.has(listen.exchange) is known
        listen.disconnect()
    world.run()
    world.live[0].complete("1")
    done = world.request("tasks/get", {"taskId": task}, **options)
    world.run()
    assert done.result["status"] == "completed"
    world.run(1)
    assert not world.live
    world.end()


@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_process_ends_with_its_last_request(kind: Any) -> None:
    world = World(kind)
    running = world.call("a", "wait")
    idle = world.call("b") if kind is Legacy else None
    world.run()
    retire(world)
    assert len(world.live) == 1
    world.live[0].finish("a")
    world.run(1)
    assert running.result["token"] == "a"
    assert idle is None or idle.result["token"] == "b"
    assert not world.live
    assert world.pool.is_empty
    world.end()


@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_request_that_waits_gets_a_process(kind: Any) -> None:
    """It came before the other settings, and is not lost."""
    world = World(kind, limit=1, concurrency=1)
    first = world.call("a", "wait")
    second = world.call("b")
    world.run()
    assert world.stateless.has_waiting()
    retire(world)
    world.live[0].finish("a")
    for _ in range(3):
        world.run(1)
    assert (first.result["token"], second.result["token"]) == ("a", "b")
    assert not world.live
    assert not world.stateless.has_waiting()
    world.end()


@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_subscription_is_completed(kind: Any) -> None:
    world = World(kind)
    listen = world.listen()
    world.run()
    retire(world)
    world.run(1)
    assert "result" in listen.lines[-1]
    late = world.listen()
    for _ in range(3):
        world.run(1)
    assert "result" in late.lines[-1]
    assert not world.live
    world.end()


def test_unattended_start_ends() -> None:
    """It would only have prepared what the next session finds."""
    world = World(Legacy)
    ended: list[str] = []

    class Start:
        promised = False
        over = False

        def end(self, why: str) -> None:
            ended.append(why)

    class Session:
        def __init__(self, receiving: bool) -> None:
            self.receiving = receiving

    starts: dict[Any, Any] = world.pool.unattended._starts
    starts[Session(True)] = Start()
    starts[Session(False)] = Start()
    retire(world)
    assert len(ended) == 1
    starts.clear()
    keep: Callable[[Any, str], bool] = world.pool.keep_start
    assert not keep(object(), "its client left")
    world.end()
