"""Tasks of one process: their ids as clients see them, and which of them run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcpbridge.errors import InvalidParams, MissingCapability
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.jsonrpc.members import encode, members
from mcpbridge.jsonrpc.parsed_message import with_envelope
from mcpbridge.mcp.modern_request import (
    CLIENT_CAPABILITIES,
    LISTEN,
    LOG_LEVEL,
    MODERN_PROTOCOL_VERSIONS,
    PROTOCOL_VERSION,
    SUBSCRIPTION_ID,
    TASKS,
    ModernRequest,
    read_request,
)
from mcpbridge.mcp.multiplexer import Delivery, Multiplexer
from mcpbridge.mcp.tasks import (
    _KEPT_BYTES,
    MAX_LISTENED_TASKS,
    MAX_TASKS,
    POLL_SECONDS,
    RESULT_SECONDS,
    Tasks,
    acknowledged,
    declares_tasks,
    failed_line,
    for_owner,
    owner_of,
    promised_tasks,
    subscription_to,
    task_ids,
    unknown_task,
    without_tasks,
)

DECLARED: dict[str, Any] = {"extensions": {TASKS: {}}}


def request(
    method: str = "tools/call", able: Any = DECLARED, level: str | None = None, **params: Any
) -> ModernRequest:
    meta = {PROTOCOL_VERSION: MODERN_PROTOCOL_VERSIONS[-1], CLIENT_CAPABILITIES: able}
    if level is not None:
        meta[LOG_LEVEL] = level
    params = {"name": "t", **params, "_meta": meta}
    message = {"jsonrpc": "2.0", "id": "mine", "method": method, "params": params}
    line = json.dumps(message).encode()
    envelope = peek(line)
    assert envelope is not None
    return read_request(with_envelope(line, envelope), version_header=MODERN_PROTOCOL_VERSIONS[-1])


def task(ident: Any = "1", status: Any = "working", **more: Any) -> dict[str, Any]:
    return {"taskId": ident, "status": status, "createdAt": "C", "ttlMs": 60000, **more}


def answer(number: int, result: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()


def said(method: str, subscription: Any = None, **params: Any) -> bytes:
    if subscription is not None:
        params["_meta"] = {SUBSCRIPTION_ID: subscription}
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


def told(delivery: Delivery[str] | None) -> Any:
    assert delivery is not None
    return json.loads(delivery.line)


class World:
    def __init__(self, limit: float = 3600.0) -> None:
        self.now = 100.0
        self.tasks = Tasks(limit=limit, now=lambda: self.now)
        self.shared: Multiplexer[str] = Multiplexer(self.tasks)
        self._tags = 0

    def ask(self, asked: ModernRequest, **options: Any) -> int:
        self._tags += 1
        line = self.shared.send_to_backend(asked, f"{self._tags}", **options)
        number = json.loads(line)["id"]
        assert isinstance(number, int)
        return number

    def result(self, asked: ModernRequest, result: Any, **options: Any) -> Any:
        line = answer(self.ask(asked, **options), result)
        return told(self.shared.from_backend(line))["result"]

    def create(self, ident: str = "1", **more: Any) -> Any:
        return self.result(request(), {"resultType": "task", **task(ident, **more)})

    def get(self, *, own: bool = False, **more: Any) -> Any:
        got = {"resultType": "complete", **task(**more)}
        return self.result(request("tasks/get", taskId="1"), got, own=own)


@pytest.fixture
def world() -> World:
    return World()


# Ids.


def test_a_task_id_has_an_owner_that_cannot_be_guessed(world: World) -> None:
    named = world.create("a.b")["taskId"]
    assert named == f"{world.tasks.owner}.a.b"
    assert owner_of(named) == (world.tasks.owner, "a.b")
    assert owner_of("none") == ("", "none")
    # 18 random bytes are 144 bits, 6 of which are one letter.
    owners = {Tasks().owner for _ in range(100)}
    assert len(owners) == 100
    assert {len(each) for each in owners} == {24}
    assert all("." not in each for each in owners)


def test_a_task_is_renamed_wherever_it_is_a_result(world: World) -> None:
    created = world.create(pollIntervalMs=5000)
    assert created == {
        "resultType": "task",
        **task(world.tasks.name("1")),
        "pollIntervalMs": 5000,
    }
    inner = {"content": [], "structuredContent": {"taskId": "1", "resultType": "task"}}
    assert world.get(status="completed", result=inner) == {
        "resultType": "complete",
        **task(world.tasks.name("1"), "completed"),
        "result": inner,
    }
    cancelled = world.result(request("tasks/cancel", taskId="1"), {"resultType": "complete"})
    assert cancelled == {"resultType": "complete"}


@pytest.mark.parametrize(
    "result",
    [
        {"resultType": "complete", "content": [], "taskId": "1"},
        {"resultType": "complete", "content": [{"taskId": "1"}]},
        {"resultType": "tasks", "taskId": "1", "status": "working"},
        {"taskId": "1", "status": "working"},
        {"resultType": "task", "taskId": 5, "status": "working"},
        {"resultType": "task", "task": {"taskId": "1"}},
        ["taskId"],
    ],
)
def test_other_results_are_unchanged(world: World, result: Any) -> None:
    assert world.result(request(), result) == result
    assert not len(world.tasks)


def test_a_task_without_a_status_is_renamed_and_not_followed(world: World) -> None:
    assert world.create(status=None)["taskId"] == world.tasks.name("1")
    assert not len(world.tasks)


def test_results_for_clients_without_tasks_are_unchanged(world: World) -> None:
    result = {"resultType": "task", **task()}
    assert world.result(request(able={}), result) == result
    assert not len(world.tasks)


def test_an_error_is_unchanged(world: World) -> None:
    number = world.ask(request("tasks/get", taskId="1"))
    error = {"code": -32602, "message": 'no "taskId"', "data": {"taskId": "1"}}
    line = json.dumps({"jsonrpc": "2.0", "id": number, "error": error}).encode()
    assert told(world.shared.from_backend(line))["error"] == error


def test_a_notification_is_renamed_for_subscribers(world: World) -> None:
    number = world.ask(request(LISTEN, notifications={"taskIds": ["1"]}))
    promised = {"taskIds": ["1", 2], "toolsListChanged": True}
    line = said("notifications/subscriptions/acknowledged", number, notifications=promised)
    heard = told(world.shared.from_backend(line))["params"]
    assert heard["notifications"] == {"taskIds": [world.tasks.name("1")], "toolsListChanged": True}
    line = said("notifications/tasks", number, **task())
    heard = told(world.shared.from_backend(line))["params"]
    assert heard == {**task(world.tasks.name("1")), "_meta": {SUBSCRIPTION_ID: "mine"}}
    assert len(world.tasks) == 1
    line = said("notifications/tasks", number, **task(status="completed"))
    assert world.shared.from_backend(line) is not None
    assert not len(world.tasks)


@pytest.mark.parametrize("promised", [{}, {"toolsListChanged": True}, None, []])
def test_an_acknowledgement_without_tasks_is_unchanged(world: World, promised: Any) -> None:
    number = world.ask(request(LISTEN, notifications={}))
    line = said("notifications/subscriptions/acknowledged", number, notifications=promised)
    assert told(world.shared.from_backend(line))["params"]["notifications"] == promised


def test_promised_tasks_that_are_not_a_list(world: World) -> None:
    number = world.ask(request(LISTEN, notifications={}))
    line = said("notifications/subscriptions/acknowledged", number, notifications={"taskIds": 1})
    assert told(world.shared.from_backend(line))["params"]["notifications"] == {"taskIds": []}


def test_a_notification_without_a_subscription_updates_the_task(world: World) -> None:
    world.create()
    assert world.shared.from_backend(said("notifications/tasks", **task(status="failed"))) is None
    # Its client has not heard of it.
    assert len(world.tasks) == 1
    world.now += RESULT_SECONDS
    world.tasks.expire()
    assert not len(world.tasks)


# Which run.


def test_a_task_is_unfinished_until_its_client_knows(world: World) -> None:
    world.create()
    world.get(status="input_required")
    assert len(world.tasks) == 1
    world.get(status="completed")
    assert not len(world.tasks)
    world.get(status="completed")
    assert not len(world.tasks)


@pytest.mark.parametrize(
    ("ttl", "limit", "seconds"),
    [(60_000, 3600, 60), (None, 30, 30), (900_000, 30, 30), ("x", 30, 30), (True, 30, 30)],
)
def test_a_task_keeps_its_process_for_its_ttl_and_no_longer_than_the_setting(
    ttl: Any, limit: float, seconds: float
) -> None:
    world = World(limit)
    world.create(ttlMs=ttl)
    world.now += seconds - 0.01
    world.tasks.expire()
    assert len(world.tasks) == 1
    world.now += 1
    world.tasks.expire()
    assert not len(world.tasks)


def test_a_ttl_counts_from_the_beginning_and_may_change(world: World) -> None:
    world.create(ttlMs=60_000)
    world.now += 50
    world.get(ttlMs=100_000)
    world.now += 49
    world.tasks.expire()
    assert len(world.tasks) == 1
    world.now += 1
    world.tasks.expire()
    assert not len(world.tasks)


def test_the_bridge_polls_a_task_of_which_it_hears_nothing(world: World) -> None:
    world.create(pollIntervalMs=1000)
    assert world.tasks.next_to_poll() is None
    world.now += POLL_SECONDS
    assert world.tasks.next_to_poll() == "1"
    assert world.tasks.next_to_poll() is None
    world.now += POLL_SECONDS
    world.get(own=True, pollIntervalMs=20_000)
    world.now += 39
    assert world.tasks.next_to_poll() is None
    world.now += 1
    assert world.tasks.next_to_poll() == "1"


def test_a_finished_task_keeps_its_process_until_its_client_knows(world: World) -> None:
    world.create(ttlMs=None)
    world.get(own=True, status="completed")
    world.now += RESULT_SECONDS - 1
    world.tasks.expire()
    assert len(world.tasks) == 1
    assert world.tasks.next_to_poll() is None
    assert world.tasks.failed("1", "why") is None
    world.get(status="completed")
    assert not len(world.tasks)


def test_a_task_that_the_server_does_not_know_any_more(world: World) -> None:
    world.create()
    world.tasks.forget("2")
    world.tasks.forget("1")
    assert not len(world.tasks)


def test_the_last_max_tasks_are_remembered(world: World) -> None:
    for number in range(MAX_TASKS + 1):
        world.create(f"{number}")
    assert len(world.tasks) == MAX_TASKS
    assert world.tasks.failed("0", "why") is None
    assert world.tasks.failed(f"{MAX_TASKS}", "why") is not None


def test_no_log_is_delivered_while_a_task_runs(world: World) -> None:
    asked = request(able={}, level="debug")
    world.ask(asked)
    log = said("notifications/message", level="info", data="x")
    assert world.shared.from_backend(log) is not None
    world.create()
    assert world.shared.from_backend(log) is None


def test_a_task_whose_process_has_ended_has_failed(world: World) -> None:
    world.create(pollIntervalMs=7, ttlMs=9)
    failed = world.tasks.failed("1", "it died")
    assert failed is not None
    found = json.loads(failed_line(request(), failed))
    assert found["method"] == "notifications/tasks"
    params = found["params"]
    assert params.pop("lastUpdatedAt").endswith("Z")
    assert params == {
        "_meta": {SUBSCRIPTION_ID: "mine"},
        "taskId": world.tasks.name("1"),
        "status": "failed",
        "statusMessage": "it died",
        "createdAt": "C",
        "ttlMs": 9,
        "pollIntervalMs": 7,
        "error": {"code": -32603, "message": "it died"},
    }


def test_a_long_member_is_not_kept(world: World) -> None:
    longest = "x" * (_KEPT_BYTES - len('""'))
    world.create("1", createdAt=longest)
    world.create("2", createdAt=longest + "x")
    kept, replaced = world.tasks.failed("1", "why"), world.tasks.failed("2", "why")
    assert kept is not None
    assert json.loads(encode(kept))["createdAt"] == longest
    assert replaced is not None
    assert len(str(replaced["createdAt"])) < 30


def test_a_large_task_is_renamed_and_not_kept_whole() -> None:
    world = World()
    result = {"content": [{"type": "text", "text": "x" * 2_000_000}]}
    assert world.get(status="completed", result=result)["result"] == result


# Requests.


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        (DECLARED, True),
        ({}, False),
        ({"extensions": {}}, False),
        ({"extensions": None, "x": TASKS}, False),
        ({"extensions": {"x": {TASKS: {}}}}, False),
        ({TASKS: {}}, False),
    ],
)
def test_whether_tasks_are_declared(able: Any, expected: bool) -> None:
    assert declares_tasks(request(able=able)) is expected
    error = unknown_task(request("tasks/get", able, taskId="1"))
    assert isinstance(error, InvalidParams if expected else MissingCapability)
    assert error.data == (None if expected else {"requiredCapabilities": DECLARED})


def test_a_request_for_its_owner() -> None:
    asked = for_owner(request("tasks/update", taskId="o.1", inputResponses={"a": 1}), "1")
    message = json.loads(encode(asked.outer))
    assert message["params"]["taskId"] == "1"
    assert message["params"]["inputResponses"] == {"a": 1}
    assert message["id"] == "mine"


def test_tasks_in_a_subscription() -> None:
    wanted = {"toolsListChanged": True, "taskIds": ["a.1", "b.1", "a.1"]}
    asked = request(LISTEN, notifications=wanted)
    assert task_ids(asked) == ["a.1", "b.1"]
    rest = without_tasks(asked)
    assert rest is not None
    assert json.loads(encode(rest.outer))["params"]["notifications"] == {"toolsListChanged": True}
    one = json.loads(encode(subscription_to(asked, ["1"]).outer))
    assert one["params"]["notifications"] == {"taskIds": ["1"]}
    assert without_tasks(request(LISTEN, notifications={"taskIds": []})) is None
    assert task_ids(request(LISTEN, notifications={})) == []
    assert task_ids(request(LISTEN)) == []


def test_max_listened_tasks() -> None:
    named = [str(number) for number in range(MAX_LISTENED_TASKS)]
    assert task_ids(request(LISTEN, notifications={"taskIds": named})) == named


@pytest.mark.parametrize("named", [5, [5], {}, ["x"] * (MAX_LISTENED_TASKS + 1)])
def test_invalid_tasks_in_a_subscription(named: Any) -> None:
    with pytest.raises(InvalidParams, match=r"tasks at most|list of strings"):
        task_ids(request(LISTEN, notifications={"taskIds": named}))


def test_an_acknowledgement_of_several_processes() -> None:
    asked = request(LISTEN, notifications={})
    promised = members(b'{"toolsListChanged":true}') or {}
    line = acknowledged(asked, promised, ["a.1"])
    params = json.loads(line)["params"]
    assert params == {
        "_meta": {SUBSCRIPTION_ID: "mine"},
        "notifications": {"toolsListChanged": True, "taskIds": ["a.1"]},
    }
    assert promised_tasks(line) == (promised, ["a.1"])
    assert promised_tasks(acknowledged(asked, {}, [])) == ({}, [])
    assert promised_tasks(b"[]") == ({}, [])


@pytest.mark.parametrize("name", ["ttlMs", "pollIntervalMs"])
@pytest.mark.parametrize(("digits", "kept"), [("9" * 400, 1), ("-" + "9" * 400, 0)])
def test_a_duration_beyond_a_float_is_bounded(
    world: World, name: str, digits: str, kept: int
) -> None:
    number = world.ask(request())
    line = b'{"jsonrpc":"2.0","id":%d,"result":{"resultType":"task","taskId":"1","%b":%b,' % (
        number,
        name.encode(),
        digits.encode(),
    )
    assert world.shared.from_backend(line + b'"status":"working"}}') is not None
    world.tasks.expire()
    assert len(world.tasks) == (kept if name == "ttlMs" else 1)


def test_a_duration_that_is_no_valid_number(world: World) -> None:
    number = world.ask(request())
    line = b'{"jsonrpc":"2.0","id":%d,"result":{"resultType":"task","taskId":"1","ttlMs":1e999,' % (
        number
    )
    line += b'"status":"working"}}'
    assert world.shared.from_backend(line) is not None
    assert len(world.tasks) == 1
