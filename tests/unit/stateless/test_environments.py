"""A process that has variables of one client (`env_from`) never works for another."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.config.tuning import COLLECT_SECONDS, RELISTEN_SECONDS
from mcpbridge.errors import BackendFailed, InvalidParams, InvalidRequestState
from mcpbridge.stateless.client_connection import ClientConnection
from tests.examples import examples
from tests.fakes import (
    CAPABILITIES_WITH_TASKS,
    Call,
    Legacy,
    Modern,
    ScriptedBackend,
    WithTasks,
    World,
)

RULES: Any = {"TOKEN": {"header": "X-Token"}}


class _Watching(ScriptedBackend):
    """A server that notes which tokens are not those of its own environment."""

    def _receive(self, message: dict[str, Any]) -> None:
        if message.get("method") == "tools/call":
            owner = message["params"]["arguments"]["token"].partition(" ")[0]
            if owner != self.environment.get("TOKEN"):
                self.strangers.append(owner)
        super()._receive(message)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.strangers: list[str] = []


class WatchingLegacy(_Watching, Legacy):
    capabilities: ClassVar[dict[str, Any]] = {
        "tools": {"listChanged": True},
        "resources": {"subscribe": True},
    }


class WatchingModern(_Watching, Modern):
    pass


class WatchingTasks(_Watching, WithTasks):
    pass


KINDS = (WatchingLegacy, WatchingModern)
each_kind = pytest.mark.parametrize("kind", KINDS)


def world_of(kind: type[ScriptedBackend], **changes: Any) -> World:
    return World(kind, **{"env_from": RULES, "limit": 8, **changes})


def called(world: World, who: str, number: int = 0, do: str = "echo", **options: Any) -> Call:
    """Call a tool as the access control would: the identity tells the variables apart."""
    call = world.call(
        f"{who} {number}", do, identity=f"x\0{who}", environment={"TOKEN": who}, **options
    )
    world.run(COLLECT_SECONDS)
    return call


def environments(world: World) -> list[Any]:
    return [each.environment.get("TOKEN") for each in world.backends]


def check(world: World) -> None:
    for backend in world.backends:
        assert backend.strangers == []


@each_kind
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("reuse", ["connection", "identity", "never"])
def test_two_clients_never_share_a_process(
    kind: type[ScriptedBackend], known: bool, reuse: str
) -> None:
    """Not even on one connection, nor the one that has shown the server's era."""
    world = world_of(kind, known=known, reuse=reuse)
    connection = ClientConnection()
    for number in range(3):
        for who in ("alice", "bob"):
            call = called(world, who, number, connection=connection)
            world.run(1)
            assert call.result["token"] == f"{who} {number}"
    check(world)
    assert set(environments(world)) == {"alice", "bob"}
    world.end()


@each_kind
def test_a_free_process_gives_way_to_another_client_and_is_not_given_to_it(
    kind: type[ScriptedBackend],
) -> None:
    world = world_of(kind, limit=1)
    for number, who in enumerate(["alice", "bob", "alice"]):
        call = called(world, who, number)
        world.run(1)
        assert call.result["token"] == f"{who} {number}"
    check(world)
    assert environments(world) == ["alice", "bob", "alice"]
    world.end()


@each_kind
def test_a_process_whose_client_left_while_it_started_is_not_given_to_another(
    kind: type[ScriptedBackend],
) -> None:
    world = world_of(kind)
    world.launcher.delays_launches = True
    left = called(world, "alice")
    left.disconnect()
    world.launcher.finish()
    world.run()
    other = called(world, "bob")
    world.launcher.finish()
    world.run(1)
    assert other.result["token"] == "bob 0"
    check(world)
    assert environments(world) == ["alice", "bob"]
    world.end()


def test_the_process_that_replaces_a_worn_one_has_the_same_variables() -> None:
    """It is started before the old one has served its last request."""
    world = world_of(WatchingModern, max_process_requests=10)
    for number in range(10):
        assert called(world, "alice", number).result["token"] == f"alice {number}"
    world.run(1)
    assert environments(world) == ["alice", "alice"]
    assert called(world, "alice", 10).result["token"] == "alice 10"
    check(world)
    world.end()


@pytest.mark.parametrize("reuse", ["connection", "identity"])
def test_a_process_for_subscribers_has_the_same_variables(reuse: str) -> None:
    """The group of a legacy server opens another one when its process has ended."""
    world = world_of(WatchingLegacy, reuse=reuse)
    connection = ClientConnection()
    listening = world.listen(
        identity="x\0alice", environment={"TOKEN": "alice"}, connection=connection
    )
    world.run()
    world.backends[0].die()
    world.run(RELISTEN_SECONDS)
    world.run(1)
    assert environments(world) == ["alice", "alice"]
    listening.disconnect()
    world.end()


def test_a_subscription_that_is_renewed_has_the_same_variables() -> None:
    """A modern server's subscription finds another process."""
    world = world_of(WatchingModern)
    listening = world.listen(identity="x\0alice", environment={"TOKEN": "alice"})
    world.run()
    world.backends[0].die()
    world.run(RELISTEN_SECONDS)
    world.run(1)
    assert environments(world) == ["alice", "alice"]
    listening.disconnect()
    world.end()


def test_the_rest_of_a_subscription_to_tasks_has_the_same_variables() -> None:
    world = world_of(WatchingTasks)
    wanted = {"toolsListChanged": True, "taskIds": ["none"]}
    listening = world.request(
        "subscriptions/listen",
        {"notifications": wanted},
        identity="x\0alice",
        environment={"TOKEN": "alice"},
        capabilities=CAPABILITIES_WITH_TASKS,
    )
    world.run(1)
    assert environments(world) == ["alice"]
    listening.disconnect()
    world.end()


def test_a_suspended_call_is_not_resumed_with_other_variables() -> None:
    world = world_of(WatchingLegacy)
    asked = called(world, "alice", do="ask")
    message = {**asked.message, "params": {**asked.message["params"]}}
    answer = {"action": "accept", "content": {"token": "x"}}
    message["params"].update(
        inputResponses=dict.fromkeys(asked.result["inputRequests"], answer),
        requestState=asked.result["requestState"],
    )
    stolen = Call(world, message, "caller x\0bob", None, {"TOKEN": "bob"})
    world.run()
    assert isinstance(stolen.refusal, InvalidRequestState)
    again = asked.retry("given")
    world.run()
    assert again.result["given"] == "given"
    check(world)
    world.end()


def test_a_task_is_not_known_with_other_variables() -> None:
    world = world_of(WatchingTasks)
    started = called(world, "alice", do="task", capabilities=CAPABILITIES_WITH_TASKS)
    task = {"taskId": started.result["taskId"]}
    options: Any = {"capabilities": CAPABILITIES_WITH_TASKS}
    stolen = world.request(
        "tasks/get", task, identity="x\0bob", environment={"TOKEN": "bob"}, **options
    )
    own = world.request(
        "tasks/get", task, identity="x\0alice", environment={"TOKEN": "alice"}, **options
    )
    world.run()
    assert isinstance(stolen.refusal, InvalidParams)
    assert own.result["status"] == "working"
    world.end()


class Choosy(WatchingModern):
    """A server that ends at once if its token is wrong."""

    def _receive(self, message: dict[str, Any]) -> None:
        if self.environment.get("TOKEN") == "wrong":
            self.die()
        else:
            super()._receive(message)


@pytest.mark.parametrize("known", [True, False])
def test_a_client_with_wrong_credentials_disturbs_no_other(known: bool) -> None:
    """Neither does its failure set the server down, nor decide its era for long."""
    world = world_of(Choosy, known=known)
    for number in range(5):
        wrong = called(world, "wrong", number)
        world.run(1)
        assert isinstance(wrong.refusal, BackendFailed)
        right = called(world, "right", number)
        world.run(1)
        assert right.result["token"] == f"right {number}"
    check(world)
    world.end()


STEP = st.tuples(
    st.sampled_from(["alice", "bob", "carol"]),
    st.sampled_from(["echo", "wait", "ask", "listen", "leave", "die"]),
    st.integers(0, 2),
)


@given(
    st.sampled_from(KINDS),
    st.booleans(),
    st.sampled_from(["connection", "identity", "never"]),
    st.integers(1, 4),
    st.lists(STEP, max_size=25),
)
@settings(max_examples=examples(100))
def test_whatever_clients_do_no_process_sees_the_call_of_another(
    kind: type[ScriptedBackend],
    known: bool,
    reuse: str,
    limit: int,
    steps: list[tuple[str, str, int]],
) -> None:
    world = world_of(
        kind, known=known, reuse=reuse, limit=limit, max_process_requests=10, concurrency=2
    )
    connections = [ClientConnection() for _ in range(3)]
    calls: list[Call] = []
    for number, (who, do, at) in enumerate(steps):
        if do == "leave" and calls:
            calls.pop(at % len(calls)).disconnect()
        elif do == "die" and world.live:
            world.live[at % len(world.live)].die()
        elif do == "listen":
            options: Any = {"identity": f"x\0{who}", "environment": {"TOKEN": who}}
            calls.append(world.listen(connection=connections[at], **options))
        elif do not in ("leave", "die"):
            calls.append(called(world, who, number, do, connection=connections[at]))
        world.run(0.3)
    check(world)
    assert None not in environments(world)
    for call in calls:
        call.disconnect()
    world.end()


class Hanging(WatchingModern):
    """A server that answers nothing if its token is slow."""

    def _receive(self, message: dict[str, Any]) -> None:
        if self.environment.get("TOKEN") != "slow":
            super()._receive(message)


def test_a_client_whose_process_starts_slowly_keeps_no_other_waiting() -> None:
    world = world_of(Hanging)
    slow = called(world, "slow")
    other = called(world, "other")
    assert other.result["token"] == "other 0"
    assert not slow.completions
    assert environments(world) == ["slow", "other"]
    world.run(world.settings.start_timeout)
    assert isinstance(slow.refusal, BackendFailed)
    world.end()
