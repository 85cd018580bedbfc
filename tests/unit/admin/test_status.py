"""The status document: what it says, what it never says, and what it costs."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from mcpbridge.admin.server_numbers import ProcessCounts
from mcpbridge.admin.status import FRESH_SECONDS, SLICE_SESSIONS, STATUS_SESSIONS, Status
from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import CannotStart, InternalError
from mcpbridge.process_usage import Usage
from tests.unit.admin.world import ANSWER, INITIALIZE, World

SECRET = "hush"


def document(world: World) -> dict[str, Any]:
    """Return a new status document."""
    found: list[bytes] = []
    Status(world.bridge, world.reactor, lambda: 1000.0).document().addCallback(found.append)
    for _ in range(100):
        if found:
            break
        world.reactor.advance(0)
    parsed: dict[str, Any] = json.loads(found[0])
    return parsed


def test_it_says_what_an_operator_asks_for() -> None:
    world = World(
        ServerSettings(command="npx", args=("--key", SECRET), env={"KEY": SECRET}, name="a"),
    )
    session = world.open()
    session.client_message(INITIALIZE, None)
    session.messages_received([ANSWER])
    session.backend.pid = 77
    session.owner = "ann"
    counters = world.server.counters
    counters.operation("tools/call").succeeded(0.15)
    counters.operation("tools/call").failed("-32603", 1)
    counters.refusals["TooManySessions"] += 2
    counters.traffic["stateless"].messages_in += 5
    counters.exits["exit status 1"] += 1
    world.bridge.counters.refusals["NotFound"] += 1
    used = {77: Usage(1, 2, 3), os.getpid(): Usage(4, 5, 6)}
    world.bridge.usage = lambda: succeed(used)  # type: ignore[method-assign]
    world.reactor.advance(10)
    found = document(world)
    assert (found["pid"], found["condition"], found["now"]) == (os.getpid(), "serving", 1000.0)
    assert (found["memory_bytes"], found["descriptors"]) == (4, 5)
    assert found["sessions"] == {"live": 1, "limit": world.bridge.settings.session_limit}
    assert found["connections"]["open"] == 0
    assert found["refusals"] == {"NotFound": 1}
    [server] = found["servers"]
    assert (server["name"], server["state"], server["why"]) == ("a", "ready", "")
    assert server["sessions"] == {"live": 1, "opened": 1, "limit": 100}
    assert server["processes"] == {**dict.fromkeys(ProcessCounts._fields, 0), "session": 1}
    assert (server["requests"], server["errors"], server["waiting"]) == (2, 1, 0)
    assert server["messages"]["in"] == 6
    assert server["messages"]["bytes_out"] == len(ANSWER)
    assert server["latency"]["p50"] == pytest.approx(0.15)
    assert server["refusals"] == {"TooManySessions": 2}
    assert server["exits"] == {"exit status 1": 1}
    assert found["listed"] == [
        {
            "id": session.label,
            "server": "a",
            "transport": "sse",
            "identity": "ann",
            "client": "",
            "opened": 990.0,
            "state": "open",
            "pid": 77,
            "messages_in": 1,
            "messages_out": 1,
            "bytes_in": len(INITIALIZE),
            "bytes_out": len(ANSWER),
            "refused": 0,
            "memory_bytes": 1,
            "processes": 3,
        }
    ]
    text = json.dumps(found)
    assert SECRET not in text
    assert "npx" not in text
    assert session.ident not in text
    assert found["not_listed"] == 0


def test_a_silent_session_starts_and_one_that_ends_is_said_to() -> None:
    world = World()
    first, second, third = world.open(), world.open(), world.open()
    second.input_closed("it closed its stdin")
    third.life.end("x")
    found = document(world)
    states = {each["id"]: each["state"] for each in found["listed"]}
    assert states == {first.label: "starting", second.label: "ending", third.label: "closing"}
    assert found["servers"][0]["processes"]["ending"] == 2


def test_a_failing_server_says_why_and_what_it_wrote() -> None:
    world = World(ServerSettings(command="x", name="a", warm=1))
    world.server.start()
    world.reactor.advance(1)
    [spare] = world.server.unclosed
    spare.diagnostics_received([b"KEY is \x1b[31mmissing"])
    world.die(spare)
    found = document(world)
    [server] = found["servers"]
    assert server["state"] == "failing"
    assert "exit status 1" in server["why"]
    assert server["retry_in"] >= 1
    assert server["since"] == 1000.0
    [failure] = server["failures"]
    assert failure["exit"] == "exit status 1"
    assert failure["session"] == spare.label
    assert failure["stderr"] == ["KEY is \\x1b[31mmissing"]
    assert failure["what"] == "the backend ended (exit status 1) before it answered anything"
    world.bridge.stopService()


def test_a_missing_program_is_told() -> None:
    world = World()
    world.launcher.error = CannotStart("cannot start 'x': not found")
    world.open()
    [server] = document(world)["servers"]
    assert server["state"] == "failing"
    assert server["failures"][0]["what"].endswith("cannot start 'x': not found")


def test_it_lists_the_oldest_sessions_and_counts_the_others(monkeypatch: Any) -> None:
    assert STATUS_SESSIONS == 500
    monkeypatch.setattr("mcpbridge.admin.status.STATUS_SESSIONS", 3)
    world = World(
        ServerSettings(command="x", name="a", max_sessions=10, max_sessions_per_address=10)
    )
    opened = []
    for _ in range(5):
        opened.append(world.open().label)
        world.reactor.advance(1)
    found = document(world)
    assert [each["id"] for each in found["listed"]] == opened[:3]
    assert found["not_listed"] == 2


def test_it_is_made_in_slices(monkeypatch: Any) -> None:
    """Others have their turn between, however many sessions there are."""
    assert SLICE_SESSIONS == 100
    monkeypatch.setattr("mcpbridge.admin.status.SLICE_SESSIONS", 1)
    world = World()
    for _ in range(3):
        world.open()
    status = Status(world.bridge, world.reactor)
    slices = status._collect({})
    assert sum(1 for _ in slices) >= 4


def test_all_who_ask_share_one_document() -> None:
    world = World()
    status = Status(world.bridge, world.reactor)
    gone, *others = (status.document() for _ in range(4))
    gone.addErrback(lambda _: None)
    gone.cancel()
    found: list[bytes] = []
    for each in others:
        each.addCallback(found.append)
    world.reactor.pump([0] * 5)
    assert len(found) == 3
    assert len({id(each) for each in found}) == 1
    status.document().addCallback(found.append)
    assert found[3] is found[0]
    world.reactor.advance(FRESH_SECONDS)
    world.open()
    status.document().addCallback(found.append)
    world.reactor.pump([0] * 5)
    assert found[4] != found[0]


def test_a_defect_fails_all_who_ask_and_not_the_next(logged_failures: list[Any]) -> None:
    world = World()
    status = Status(world.bridge, world.reactor)
    usage = world.bridge.usage

    def defective() -> Deferred[Any]:
        raise ZeroDivisionError

    world.bridge.usage = defective  # type: ignore[method-assign]
    failed: list[Any] = []
    status.document().addErrback(failed.append)
    assert failed[0].check(InternalError)
    world.bridge.usage = usage  # type: ignore[method-assign]
    found: list[bytes] = []
    status.document().addCallback(found.append)
    world.reactor.pump([0] * 5)
    assert found
    assert len(logged_failures) == 1
