"""Subscriptions to tasks that run on several processes."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.config.tuning import RELISTEN_SECONDS
from mcpbridge.errors import BackendBusy, BackendFailed, InvalidParams, MissingCapability, Refused
from mcpbridge.mcp.modern_request import SUBSCRIPTION_ID
from mcpbridge.stateless.task_subscription import ACKNOWLEDGE_SECONDS, MAX_BEFORE_ACKNOWLEDGED
from tests.fakes import CAPABILITIES_WITH_TASKS, Call, Legacy, WithTasks, World

ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
CHANGED = "notifications/tools/list_changed"


@pytest.fixture
def world() -> Any:
    world = World(WithTasks, concurrency=1, max_process_requests=1)
    yield world
    world.end()


def begin(world: World, *tokens: str, identity: str = "") -> list[str]:
    """Start tasks, each on its own process, where its id is `1`."""
    idents = []
    for token in tokens:
        arguments = {"token": token, "do": "task"}
        params = {"name": "t", "arguments": arguments}
        call = world.request(
            "tools/call", params, capabilities=CAPABILITIES_WITH_TASKS, identity=identity
        )
        world.run()
        idents.append(str(call.result["taskId"]))
    return idents


def listen(
    world: World, *idents: str, capabilities: Any = CAPABILITIES_WITH_TASKS, **more: Any
) -> Call:
    identity = more.pop("identity", "")
    wanted = {"taskIds": list(idents), **more}
    params = {"notifications": wanted}
    call = world.request(
        "subscriptions/listen", params, capabilities=capabilities, identity=identity
    )
    world.run()
    return call


def events(call: Call) -> list[Any]:
    """Summarize each line of a subscription, checking the subscription id of each."""
    found: list[Any] = []
    for line in call.lines:
        ident = call.message["id"]
        if "result" in line:
            assert line["result"]["_meta"][SUBSCRIPTION_ID] == ident
            found.append("end")
            continue
        params = line["params"]
        assert params["_meta"][SUBSCRIPTION_ID] == ident
        if line["method"] == ACKNOWLEDGED:
            found.append(params["notifications"])
        elif line["method"] == "notifications/tasks":
            found.append((params["taskId"], params["status"]))
        else:
            found.append(line["method"])
    return found


def test_one_subscription_covers_tasks_of_several_processes(world: World) -> None:
    first, second, third = begin(world, "a", "b", "c")
    assert len(world.live) == 3
    call = listen(world, third, first, "x.1")
    other = listen(world, second)
    assert events(call) == [{"taskIds": [third, first]}]
    for backend in world.live:
        backend.complete("1")
    world.run()
    assert events(call)[1:] == [(first, "completed"), (third, "completed")]
    assert events(other) == [{"taskIds": [second]}, (second, "completed")]
    backends = world.live
    for each in (call, other):
        each.disconnect()
    world.run()
    assert all(backend.ended or not backend.subscriptions for backend in backends)
    # Each has reached max_process_requests and has no subscriber left.
    world.run(1)
    assert not world.live


def test_other_notifications_come_from_one_process_and_outlive_it(world: World) -> None:
    [ident] = begin(world, "a")
    call = listen(world, ident, toolsListChanged=True)
    assert events(call) == [{"taskIds": [ident], "toolsListChanged": True}]
    owner, other = world.live
    [subscription] = [each for each, names in other.subscriptions.items() if not names]
    other.notify(subscription, CHANGED)
    assert events(call)[1:] == [CHANGED]
    owner.die()
    other.die()
    world.run(RELISTEN_SECONDS)
    world.run()
    assert events(call)[2:] == [(ident, "failed"), CHANGED]
    [new] = world.live
    [subscription] = new.subscriptions
    new.notify(subscription, CHANGED)
    assert events(call)[4:] == [CHANGED]
    call.disconnect()


def test_death_of_a_process_fails_its_tasks_only(world: World) -> None:
    first, second = begin(world, "a", "b")
    call = listen(world, first, second)
    one, other = world.live
    one.die()
    assert events(call)[1:] == [(first, "failed")]
    error = call.lines[-1]["params"]["error"]
    assert error["code"] == -32603
    assert "died" in error["message"]
    assert not call.completions
    other.complete("1")
    # A completed task does not fail.
    other.die()
    assert events(call)[2:] == [(second, "completed"), "end"]


def test_subscription_ends_when_each_process_has_ended_its_part(world: World) -> None:
    first, second = begin(world, "a", "b")
    call = listen(world, first, second)
    for backend in world.live:
        assert not call.completions
        [subscription] = backend.subscriptions
        backend.respond(subscription, {"resultType": "complete"})
    assert events(call)[1:] == ["end"]


def test_acknowledgement_comes_first_and_waits_for_all_processes(world: World) -> None:
    first, second = begin(world, "a", "b")
    one, other = world.live
    other.silent = True
    call = listen(world, first, second)
    one.complete("1")
    assert not call.lines
    world.run(ACKNOWLEDGE_SECONDS)
    assert events(call) == [{"taskIds": [first]}, (first, "completed")]
    # A late acknowledgement still counts.
    other.silent = False
    other.subscriptions_listen(other.received[-1])
    other.complete("1")
    assert events(call)[2:] == [(second, "completed")]
    call.disconnect()


def test_notifications_before_the_acknowledgement_are_bounded(world: World) -> None:
    first, second = begin(world, "a", "b")
    one, other = world.live
    other.silent = True
    call = listen(world, first, second)
    for _ in range(MAX_BEFORE_ACKNOWLEDGED):
        one.complete("1")
    assert not call.lines
    one.complete("1")
    assert len(call.lines) == MAX_BEFORE_ACKNOWLEDGED + 2
    assert events(call)[0] == {"taskIds": [first]}
    call.disconnect()


def test_unknown_tasks_are_not_acknowledged(world: World) -> None:
    assert events(listen(world, "x.1", "1")) == [{}, "end"]
    assert not world.backends
    call = listen(world, "x.1", toolsListChanged=True)
    assert events(call) == [{"toolsListChanged": True}]
    call.disconnect()


def test_tasks_of_another_identity_are_not_acknowledged(world: World) -> None:
    [ident] = begin(world, "a", identity="x")
    assert events(listen(world, ident, identity="y")) == [{}, "end"]
    call = listen(world, ident, identity="x")
    assert events(call) == [{"taskIds": [ident]}]
    call.disconnect()


def test_client_must_declare_the_tasks_capability(world: World) -> None:
    [ident] = begin(world, "a")
    assert isinstance(listen(world, ident, capabilities={}).refusal, MissingCapability)


def test_task_ids_must_be_a_list(world: World) -> None:
    params = {"notifications": {"taskIds": 5}}
    call = world.request("subscriptions/listen", params, capabilities=CAPABILITIES_WITH_TASKS)
    assert isinstance(call.refusal, InvalidParams)


def test_process_that_refuses_a_task_subscription_is_left_out(world: World) -> None:
    """Its error is the answer if no other process acknowledges."""
    first, second = begin(world, "a", "b")
    one, other = world.live
    one.subscriptions_listen = lambda message: one.respond_with_error(message["id"])
    assert listen(world, first).lines[-1]["error"]["code"] == -32601
    call = listen(world, first, second)
    assert events(call) == [{"taskIds": [second]}]
    call.disconnect()
    other.busy = True
    assert isinstance(listen(world, second).refusal, BackendBusy | Refused)
    other.busy = False


def test_death_before_the_acknowledgement_fails_the_subscription(world: World) -> None:
    [ident] = begin(world, "a")
    [backend] = world.live
    backend.silent = True
    call = listen(world, ident)
    backend.die()
    assert isinstance(call.refusal, Refused)


def test_other_notifications_end_when_the_server_becomes_a_legacy_server() -> None:
    world = World(WithTasks, limit=1, concurrency=1, max_process_requests=1)
    [ident] = begin(world, "a")
    call = listen(world, ident, toolsListChanged=True)
    assert events(call) == [{"taskIds": [ident], "toolsListChanged": True}]
    world.launcher.kind = Legacy
    world.live[0].die()
    world.run(RELISTEN_SECONDS)
    world.run()
    # A legacy server has no such subscription, so that part is over.
    assert events(call)[1:] == [(ident, "failed"), "end"]
    world.end()


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("how", ["leaves", "aborts", "stops", "dies"])
def test_client_process_or_bridge_may_end_at_any_time(how: str, turns: int) -> None:
    world = World(WithTasks, concurrency=1, max_process_requests=1)
    first, second = begin(world, "a", "b")
    world.launcher.delays_launches = True
    params = {"notifications": {"taskIds": [first, second], "toolsListChanged": True}}
    call = world.request("subscriptions/listen", params, capabilities=CAPABILITIES_WITH_TASKS)
    for _ in range(turns):
        world.clock.advance(0)
        if world.launcher.waiting and turns > 2:
            world.launcher.finish()
    if how == "stops":
        world.stop()
        world.run(1)
        assert call.completions
    elif how == "dies":
        starting = [backend for _, backend in world.launcher.waiting]
        for backend in world.live:
            if backend not in starting:
                backend.die()
        world.run()
        call.disconnect()
    else:
        call.disconnect(aborted=how == "aborts")
    for _ in range(len(world.launcher.waiting)):
        world.launcher.finish()
    world.run(1)
    world.end()


def test_stop_of_the_bridge_fails_tasks_and_ends_the_subscription(world: World) -> None:
    first, second = begin(world, "a", "b")
    call = listen(world, first, second)
    world.stop()
    world.run(1)
    assert sorted(events(call)[1:3]) == sorted([(first, "failed"), (second, "failed")])
    assert events(call)[3:] == ["end"]


def test_failed_launch_for_other_notifications_fails_the_subscription() -> None:
    world = World(WithTasks, concurrency=1, max_process_requests=1)
    [ident] = begin(world, "a")
    world.launcher.kind = type("Crashes", (WithTasks,), {"discover": WithTasks.die})
    [backend] = world.live
    backend.receiver.input_closed("it takes nothing more")
    call = listen(world, ident, toolsListChanged=True)
    assert isinstance(call.refusal, BackendFailed)
    backend.die()
    world.end()
