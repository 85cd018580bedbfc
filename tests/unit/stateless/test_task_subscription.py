"""Streams of notifications of tasks that several processes have."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.config.tuning import RELISTEN_SECONDS
from mcpbridge.errors import BackendBusy, BackendFailed, InvalidParams, MissingCapability, Refused
from mcpbridge.mcp.modern_request import SUBSCRIPTION_ID
from mcpbridge.stateless.task_subscription import ACKNOWLEDGE_SECONDS, MAX_BEFORE_ACKNOWLEDGED
from tests.fakes import ABLE_TASKS, Call, Legacy, WithTasks, World

ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
CHANGED = "notifications/tools/list_changed"


@pytest.fixture
def world() -> Any:
    world = World(WithTasks, concurrency=1, max_process_requests=1)
    yield world
    world.end()


def begin(world: World, *tokens: str, identity: str = "") -> list[str]:
    """Tasks, each on a process of its own, which all call theirs `1`."""
    idents = []
    for token in tokens:
        arguments = {"token": token, "do": "task"}
        params = {"name": "t", "arguments": arguments}
        call = world.request("tools/call", params, able=ABLE_TASKS, identity=identity)
        world.run()
        idents.append(str(call.result["taskId"]))
    return idents


def listen(world: World, *idents: str, able: Any = ABLE_TASKS, **more: Any) -> Call:
    identity = more.pop("identity", "")
    wanted = {"taskIds": list(idents), **more}
    params = {"notifications": wanted}
    call = world.request("subscriptions/listen", params, able=able, identity=identity)
    world.run()
    return call


def told(call: Call) -> list[Any]:
    """What each line of a stream says, all of them of that stream."""
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


def test_one_stream_of_several_processes(world: World) -> None:
    first, second, third = begin(world, "a", "b", "c")
    assert len(world.live) == 3
    call = listen(world, third, first, "x.1")
    other = listen(world, second)
    assert told(call) == [{"taskIds": [third, first]}]
    for backend in world.live:
        backend.complete("1")
    world.run()
    assert told(call)[1:] == [(first, "completed"), (third, "completed")]
    assert told(other) == [{"taskIds": [second]}, (second, "completed")]
    backends = world.live
    for each in (call, other):
        each.leave()
    world.run()
    assert all(backend.ended or not backend.listens for backend in backends)
    # Each had done enough, and nobody needs any of them now.
    world.run(1)
    assert not world.live


def test_all_else_comes_from_one_process_and_goes_on_after_its_end(world: World) -> None:
    [ident] = begin(world, "a")
    call = listen(world, ident, toolsListChanged=True)
    assert told(call) == [{"taskIds": [ident], "toolsListChanged": True}]
    owner, other = world.live
    [subscription] = [each for each, names in other.listens.items() if not names]
    other.note(subscription, CHANGED)
    assert told(call)[1:] == [CHANGED]
    owner.die()
    other.die()
    world.run(RELISTEN_SECONDS)
    world.run()
    assert told(call)[2:] == [(ident, "failed"), CHANGED]
    [new] = world.live
    [subscription] = new.listens
    new.note(subscription, CHANGED)
    assert told(call)[4:] == [CHANGED]
    call.leave()


def test_the_end_of_one_process_ends_its_share_alone(world: World) -> None:
    first, second = begin(world, "a", "b")
    call = listen(world, first, second)
    one, other = world.live
    one.die()
    assert told(call)[1:] == [(first, "failed")]
    error = call.lines[-1]["params"]["error"]
    assert error["code"] == -32603
    assert "died" in error["message"]
    assert not call.ends
    other.complete("1")
    # What is over has not failed.
    other.die()
    assert told(call)[2:] == [(second, "completed"), "end"]


def test_a_process_that_ends_its_share(world: World) -> None:
    first, second = begin(world, "a", "b")
    call = listen(world, first, second)
    for backend in world.live:
        assert not call.ends
        [subscription] = backend.listens
        backend.answer(subscription, {"resultType": "complete"})
    assert told(call)[1:] == ["end"]


def test_the_acknowledgement_comes_first_and_waits_for_all(world: World) -> None:
    first, second = begin(world, "a", "b")
    one, other = world.live
    other.mute = True
    call = listen(world, first, second)
    one.complete("1")
    assert not call.lines
    world.run(ACKNOWLEDGE_SECONDS)
    assert told(call) == [{"taskIds": [first]}, (first, "completed")]
    # It may still come.
    other.mute = False
    other.subscriptions_listen(other.heard[-1])
    other.complete("1")
    assert told(call)[2:] == [(second, "completed")]
    call.leave()


def test_of_what_comes_before_it_only_so_much_waits(world: World) -> None:
    first, second = begin(world, "a", "b")
    one, other = world.live
    other.mute = True
    call = listen(world, first, second)
    for _ in range(MAX_BEFORE_ACKNOWLEDGED):
        one.complete("1")
    assert not call.lines
    one.complete("1")
    assert len(call.lines) == MAX_BEFORE_ACKNOWLEDGED + 2
    assert told(call)[0] == {"taskIds": [first]}
    call.leave()


def test_tasks_that_are_not_there_are_not_promised(world: World) -> None:
    assert told(listen(world, "x.1", "1")) == [{}, "end"]
    assert not world.backends
    call = listen(world, "x.1", toolsListChanged=True)
    assert told(call) == [{"toolsListChanged": True}]
    call.leave()


def test_nobody_listens_to_the_tasks_of_another(world: World) -> None:
    [ident] = begin(world, "a", identity="x")
    assert told(listen(world, ident, identity="y")) == [{}, "end"]
    call = listen(world, ident, identity="x")
    assert told(call) == [{"taskIds": [ident]}]
    call.leave()


def test_who_has_not_declared_tasks(world: World) -> None:
    [ident] = begin(world, "a")
    assert isinstance(listen(world, ident, able={}).refusal, MissingCapability)


def test_what_is_no_list_of_tasks(world: World) -> None:
    params = {"notifications": {"taskIds": 5}}
    call = world.request("subscriptions/listen", params, able=ABLE_TASKS)
    assert isinstance(call.refusal, InvalidParams)


def test_a_server_that_does_not_tell_of_tasks(world: World) -> None:
    """Its error is the answer where nobody else has promised anything."""
    first, second = begin(world, "a", "b")
    one, other = world.live
    one.subscriptions_listen = lambda message: one.refuse(message["id"])
    assert listen(world, first).lines[-1]["error"]["code"] == -32601
    call = listen(world, first, second)
    assert told(call) == [{"taskIds": [second]}]
    call.leave()
    other.busy = True
    assert isinstance(listen(world, second).refusal, BackendBusy | Refused)
    other.busy = False


def test_a_process_that_ends_before_it_has_promised(world: World) -> None:
    [ident] = begin(world, "a")
    [backend] = world.live
    backend.mute = True
    call = listen(world, ident)
    backend.die()
    assert isinstance(call.refusal, Refused)


def test_there_is_no_process_for_all_else() -> None:
    world = World(WithTasks, limit=1, concurrency=1, max_process_requests=1)
    [ident] = begin(world, "a")
    call = listen(world, ident, toolsListChanged=True)
    assert told(call) == [{"taskIds": [ident], "toolsListChanged": True}]
    world.launcher.kind = Legacy
    world.live[0].die()
    world.run(RELISTEN_SECONDS)
    world.run()
    # The other era has what it listens for no more; its share is over.
    assert told(call)[1:] == [(ident, "failed"), "end"]
    world.end()


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("how", ["leaves", "aborts", "stops", "dies"])
def test_at_any_time(how: str, turns: int) -> None:
    world = World(WithTasks, concurrency=1, max_process_requests=1)
    first, second = begin(world, "a", "b")
    world.launcher.slow = True
    params = {"notifications": {"taskIds": [first, second], "toolsListChanged": True}}
    call = world.request("subscriptions/listen", params, able=ABLE_TASKS)
    for _ in range(turns):
        world.clock.advance(0)
        if world.launcher.waiting and turns > 2:
            world.launcher.finish()
    if how == "stops":
        world.stop()
        world.run(1)
        assert call.ends
    elif how == "dies":
        starting = [backend for _, backend in world.launcher.waiting]
        for backend in world.live:
            if backend not in starting:
                backend.die()
        world.run()
        call.leave()
    else:
        call.leave(aborted=how == "aborts")
    for _ in range(len(world.launcher.waiting)):
        world.launcher.finish()
    world.run(1)
    world.end()


def test_the_bridge_stops(world: World) -> None:
    first, second = begin(world, "a", "b")
    call = listen(world, first, second)
    world.stop()
    world.run(1)
    assert sorted(told(call)[1:3]) == sorted([(first, "failed"), (second, "failed")])
    assert told(call)[3:] == ["end"]


def test_the_process_of_all_else_cannot_be_had() -> None:
    world = World(WithTasks, concurrency=1, max_process_requests=1)
    [ident] = begin(world, "a")
    world.launcher.kind = type("Crashes", (WithTasks,), {"discover": WithTasks.die})
    [backend] = world.live
    backend.receiver.input_closed("it takes nothing more")
    call = listen(world, ident, toolsListChanged=True)
    assert isinstance(call.refusal, BackendFailed)
    backend.die()
    world.end()
