"""Who may reuse a legacy server's process: one connection, one identity, or nobody."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.config.tuning import CANCEL_SECONDS, COLLECT_SECONDS, RELISTEN_SECONDS
from mcpbridge.errors import InvalidRequestState
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.exclusive_group import DISCOVERED_KEPT, DiscoverResults, GroupKey
from tests.examples import examples
from tests.fakes import Call, Legacy, World

private = pytest.mark.parametrize("reuse", ["connection", "never"])


class Late(Legacy):
    """A legacy server that asks and logs something for each finished call during the next one."""

    capabilities: ClassVar[dict[str, Any]] = {
        "tools": {"listChanged": True},
        "resources": {"subscribe": True},
        "logging": {},
    }

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.over: list[str] = []

    def _receive(self, message: dict[str, Any]) -> None:
        if message.get("method") == "tools/call":
            for token in self.over:
                params = {"message": token, "requestedSchema": {"type": "object"}}
                self.write(
                    {"method": "notifications/message", "params": {"level": "info", "data": token}},
                    {"id": f"late {token}", "method": "elicitation/create", "params": params},
                )
        super()._receive(message)

    def respond(self, ident: Any, result: dict[str, Any]) -> None:
        if "token" in result:
            self.over.append(result["token"])
        super().respond(ident, result)


@pytest.fixture
def world() -> Any:
    world = World(Late, reuse="connection")
    yield world
    world.end()


def tokens_in(call: Call) -> set[str]:
    """Return the tokens in the log messages and questions that a call received."""
    logs = {
        each["params"]["data"]
        for each in call.lines
        if each.get("method") == "notifications/message"
    }
    asked = {
        question["params"]["message"]
        for each in call.lines
        for question in each.get("result", {}).get("inputRequests", {}).values()
    }
    return logs | asked


def done(world: World, token: str, connection: ClientConnection | None, **options: Any) -> Call:
    call = world.call(token, connection=connection, level="debug", **options)
    world.run()
    world.run(COLLECT_SECONDS)
    assert call.result["token"] == token
    return call


# Isolation.


@private
def test_late_messages_never_reach_another_connection(reuse: str) -> None:
    """A question or log message of a finished call."""
    world = World(Late, reuse=reuse, limit=20)
    connections = [ClientConnection() for _ in range(4)]
    for number in range(12):
        call = done(world, f"{number}", connections[number % 4]) if reuse == "never" else None
        if call is None:
            call = world.call(f"{number}", "wait", connection=connections[number % 4], level="info")
            world.run()
            for each in world.live:
                each.finish(f"{number}")
            world.run()
        own = {f"{each}" for each in range(number % 4, number + 1, 4)}
        assert tokens_in(call) <= own, "of its own connection, or of nobody"
    world.end()


@pytest.mark.parametrize(("reuse", "processes"), [("connection", 1), ("never", 3)])
def test_how_many_processes_the_calls_of_one_connection_get(reuse: str, processes: int) -> None:
    world = World(Late, reuse=reuse)
    connection = ClientConnection()
    for token in "abc":
        done(world, token, connection)
    assert len(world.backends) == processes
    world.end()


def test_late_messages_reach_another_call_of_the_same_identity() -> None:
    """With reuse by identity they do arrive, so the test above can fail."""
    world = World(Late, reuse="identity")
    done(world, "a", ClientConnection())
    other = world.call("b", "wait", connection=ClientConnection(), level="info")
    world.run()
    assert tokens_in(other) == {"a"}
    world.end()


def test_late_question_is_asked_with_those_of_the_next_call(world: World) -> None:
    """Both belong to one connection, and nothing tells the two calls apart."""
    connection = ClientConnection()
    done(world, "a", connection)
    call = world.call("b", "ask", connection=connection)
    world.run(COLLECT_SECONDS)
    assert tokens_in(call) == {"a", "b"}
    retry = call.retry("x")
    world.run()
    assert (retry.result["token"], retry.result["given"]) == ("b", "x")


def test_connection_has_one_process(world: World) -> None:
    one, two = ClientConnection(), ClientConnection()
    for _ in range(3):
        world.request("tools/list", connection=one)
        world.request("tools/list", connection=two)
        world.run()
    assert len(world.backends) == 2


def test_request_of_an_unknown_connection_has_its_own_process(
    world: World, log_lines: list[str]
) -> None:
    """Such as one through a proxy, or to a site that is not the bridge's."""
    for token in "abc":
        assert tokens_in(done(world, token, None)) == set()
    world.run(1)
    assert len(world.backends) == 3
    assert world.limiter.taken == 0
    reason = "it may serve no other caller (reuse)"
    assert len([line for line in log_lines if f": {reason};" in line]) == 3


# When a process ends.


def test_process_ends_with_its_connection(world: World, log_lines: list[str]) -> None:
    connection = ClientConnection()
    done(world, "a", connection)
    assert world.limiter.taken == 1
    connection.lose()
    world.run(1)
    assert world.limiter.taken == 0
    assert any("the connection that it served is closed" in each for each in log_lines)
    assert world.stateless._exclusive._groups == {}


@pytest.mark.parametrize("aborted", [True, False])
@pytest.mark.parametrize("do", ["wait", "echo", "ask"])
@pytest.mark.parametrize("turns", range(8))
def test_connection_may_be_lost_at_any_time(
    world: World, turns: int, do: str, aborted: bool
) -> None:
    """Its processes end, except those of suspended calls; no other process does."""
    kept = ClientConnection()
    done(world, "kept", kept)
    connection = ClientConnection()
    call = world.call("a", do, connection=connection)
    for _ in range(turns):
        world.clock.advance(0.02)
    call.disconnect(aborted=aborted)
    connection.lose()
    world.run(CANCEL_SECONDS)
    world.run(1)
    suspended = len(world.stateless._exclusive._suspended)
    untouched = [each for each in world.live if not each.calls and not each.over]
    assert world.limiter.taken == 1 + suspended + len(untouched)
    assert done(world, "again", kept).result["token"] == "again"


def test_connection_may_be_lost_twice_or_before_its_first_request(world: World) -> None:
    connection = ClientConnection()
    connection.lose()
    connection.lose()
    done(world, "a", connection)
    world.run(1)
    assert world.limiter.taken == 0


def test_failing_observer_does_not_stop_the_others(logged_failures: Any) -> None:
    class Fails:
        def connection_lost(self, connection: ClientConnection) -> None:
            raise RuntimeError("a defect")

    world = World(Late, reuse="connection")
    connection = ClientConnection()
    connection.observe(Fails())
    done(world, "a", connection)
    connection.lose()
    world.run(1)
    assert [each.getErrorMessage() for each in logged_failures] == ["a defect"]
    assert world.limiter.taken == 0
    world.end()


@pytest.mark.parametrize(
    ("setting", "value", "seconds", "reason"),
    [
        ("max_process_requests", 1, 0, "it reached max_process_requests"),
        ("max_process_age", 50.0, 60, "it reached max_process_age"),
        ("idle_timeout", 50.0, 60, "idle for 50 s"),
    ],
)
def test_process_limits_apply_within_a_connection(
    setting: str, value: Any, seconds: float, reason: str, log_lines: list[str]
) -> None:
    world = World(Late, reuse="connection", **{setting: value})
    connection = ClientConnection()
    done(world, "a", connection)
    world.run(seconds)
    done(world, "b", connection)
    assert len(world.backends) == 2
    world.run(1)
    assert any(f": {reason};" in line for line in log_lines)
    world.end()


# How many processes a connection has.


def test_connection_has_one_idle_process(world: World, log_lines: list[str]) -> None:
    """However many sets of capabilities it declares, one after the other."""
    connection = ClientConnection()
    for number in range(8):
        done(world, f"{number}", connection, capabilities={"experimental": {f"{number % 3}": {}}})
        world.run(1)
        assert len(world.live) == 1
    world.run(1)
    assert world.limiter.taken == 1
    reason = "its connection now declares different capabilities"
    assert len([line for line in log_lines if f": {reason};" in line]) == 7


def test_connection_with_a_suspended_call_has_one_idle_process(
    world: World, log_lines: list[str]
) -> None:
    connection = ClientConnection()
    call = world.call("a", "ask", connection=connection)
    world.run(COLLECT_SECONDS)
    done(world, "b", connection)
    assert len(world.live) == 2
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    world.run(1)
    assert len(world.live) == 1
    assert any(": its connection already has an idle process;" in line for line in log_lines)


def test_process_that_is_idle_for_longest_is_evicted() -> None:
    world = World(Late, reuse="connection", limit=3)
    connections = [ClientConnection() for _ in range(4)]
    for number in range(3):
        done(world, f"{number}", connections[number])
        world.run(1)
    done(world, "again", connections[0])
    call = world.call("new", connection=connections[3])
    world.run(1)
    assert call.result["token"] == "new"
    assert [each.ended for each in world.backends] == [False, True, False, False]
    world.end()


# Unused processes.


@private
@pytest.mark.parametrize(("info", "same"), [("one", True), ("two", False)])
def test_unused_process_serves_the_next_client_with_the_same_info(
    reuse: str, info: str, same: bool
) -> None:
    """So a slow server gets ready even if no client waits for it."""
    world = World(Late, reuse=reuse)
    world.launcher.delays_launches = True
    connection = ClientConnection()
    first = world.call("a", connection=connection, info={"name": "one", "version": "1"})
    world.run()
    first.disconnect()
    connection.lose()
    world.launcher.delays_launches = False
    world.launcher.finish()
    world.run()
    [ready] = world.live
    done(world, "b", ClientConnection(), info={"name": info, "version": "1"})
    assert (world.backends == [ready]) is same
    # By now it has been used.
    world.run(1)
    done(world, "c", ClientConnection(), info={"name": "one", "version": "1"})
    world.run(1)
    assert len(ready.over) == 1, "it has served one caller, and no other"
    world.end()


@private
def test_discover_result_is_kept_per_client_info(reuse: str) -> None:
    world = World(Late, reuse=reuse, limit=10)
    for name in ("one", "two", "one", "two"):
        call = world.request(
            "server/discover", connection=ClientConnection(), info={"name": name, "version": "1"}
        )
        world.run()
        assert call.result["supportedVersions"] == ["2026-07-28"]
    assert len(world.backends) == 2
    world.end()


def test_discover_results_are_bounded_by_discovered_kept() -> None:
    known, kind = DiscoverResults(), GroupKey("", b"{}", object())
    for number in range(DISCOVERED_KEPT + 1):
        known.add(kind, msgspec.Raw(b'{"name":"%d"}' % number), b"%d" % number)
    assert known.find(kind, msgspec.Raw(b'{"name":"0"}')) is None
    assert known.find(kind, msgspec.Raw(b'{"name":"%d"}' % DISCOVERED_KEPT)) is not None
    assert known.find(kind, None) is None


# Retries.


@private
@pytest.mark.parametrize("lost", [True, False])
def test_retry_may_come_on_another_connection(reuse: str, lost: bool) -> None:
    """Its process then serves nobody else, because two connections have used it."""
    world = World(Late, reuse=reuse)
    first, second = ClientConnection(), ClientConnection()
    call = world.call("a", "ask", connection=first)
    world.run(COLLECT_SECONDS)
    assert call.elicitation_message == "a"
    [process] = world.live
    if lost:
        first.lose()
        world.run(5)
    retry = call.retry("x", second)
    assert isinstance(call.retry("y", second).refusal, InvalidRequestState)
    world.run()
    assert retry.result["given"] == "x"
    world.run(1)
    assert process.ended
    for connection in (first, second):
        assert tokens_in(done(world, "b", connection)) == set()
    world.end()


def test_retry_on_the_same_connection_keeps_the_process(world: World) -> None:
    connection = ClientConnection()
    call = world.call("a", "ask", connection=connection)
    world.run(COLLECT_SECONDS)
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    done(world, "b", connection)
    assert len(world.backends) == 1


def test_suspended_call_without_a_retry_ends_after_input_timeout(world: World) -> None:
    connection = ClientConnection()
    world.call("a", "ask", connection=connection)
    world.run(COLLECT_SECONDS)
    connection.lose()
    world.run(world.settings.input_timeout)
    world.run(CANCEL_SECONDS)
    world.run(1)
    assert world.limiter.taken == 0


# Subscriptions.


@private
def test_subscriber_receives_notifications_of_its_own_process_only(reuse: str) -> None:
    world = World(Late, reuse=reuse)
    connection = ClientConnection()
    listening = world.listen(connection=connection)
    world.run()
    other = world.listen(connection=ClientConnection())
    world.run()
    [own, of_other] = world.live
    of_other.write({"method": "notifications/tools/list_changed"})
    assert (len(listening.lines), len(other.lines)) == (1, 2)
    own.write({"method": "notifications/resources/updated", "params": {"uri": "file:///a"}})
    assert (len(listening.lines), len(other.lines)) == (2, 2)
    # The process lives as long as its subscriber.
    world.run(world.settings.idle_timeout * 3)
    assert len(world.live) == 2
    listening.disconnect()
    connection.lose()
    world.run(1)
    assert world.live == [of_other]
    world.end()


@private
@pytest.mark.parametrize("lose_first", [True, False])
def test_subscriber_gets_a_new_process_after_a_death(reuse: str, lose_first: bool) -> None:
    world = World(Late, reuse=reuse)
    connection = ClientConnection()
    listening = world.listen(connection=connection)
    world.run()
    world.live[0].die()
    world.run(RELISTEN_SECONDS)
    world.run(1)
    [second] = world.live
    second.write({"method": "notifications/tools/list_changed"})
    assert listening.lines[-1]["method"] == "notifications/tools/list_changed"
    if lose_first:
        connection.lose()
    listening.disconnect()
    connection.lose()
    world.run(1)
    assert world.limiter.taken == 0
    assert world.stateless._exclusive._groups == {}
    world.end()


def test_process_of_a_subscriber_is_not_evicted() -> None:
    world = World(Late, reuse="connection", limit=2)
    done(world, "a", connection := ClientConnection())
    world.listen(connection=connection)
    world.run()
    done(world, "b", ClientConnection())
    call = world.call("c", connection=ClientConnection())
    world.run(1)
    assert call.result["token"] == "c"
    assert [each.ended for each in world.backends] == [False, True, False]
    world.end()


# All of it together.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["echo", "wait", "ask", "listen", "retry", "lose", "die", "finish"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 0.06, 0.5, 3.0]),
    ),
    max_size=40,
)


@settings(max_examples=examples(150), deadline=None)
@given(STEPS, st.sampled_from(["connection", "never"]), st.integers(1, 5), st.integers(0, 1))
def test_connections_stay_isolated_in_any_sequence_of_events(
    steps: list[tuple[str, int, float]], reuse: str, limit: int, warm: int
) -> None:
    """
    No call receives another connection's data, a connection has at most one free process,
    and nothing is left at the end.
    """
    world = World(Late, limit, reuse=reuse, warm=warm, queue_timeout=5)
    world.pool.start()
    connections = [ClientConnection() for _ in range(6)]
    busy: dict[int, Call] = {}
    asked: list[Call] = []
    known: list[Call] = []
    calls: list[tuple[int, Call]] = []
    owner: dict[str, set[int]] = {}
    for what, which, seconds in steps:
        connection = connections[which]
        is_busy = which in busy and not (busy[which].completions or busy[which].disconnected)
        if what == "lose":
            if is_busy:
                busy[which].disconnect(aborted=bool(len(calls) % 2))
            connection.lose()
            connections[which] = ClientConnection()
        elif what in ("die", "finish"):
            for each in world.live[which : which + 1]:
                tokens = [one["token"] for one in each.calls.values()]
                each.die() if what == "die" else [each.finish(one) for one in tokens]
        elif not is_busy:
            if what == "retry":
                if not asked:
                    continue
                call = asked.pop(0).retry("x", connection)
                owner[call.message["params"]["arguments"]["token"]].add(id(connection))
            elif what == "listen":
                call = world.listen(connection=connection)
            else:
                token = f"{len(calls)}"
                owner[token] = {id(connection)}
                capabilities: Any = [{}, {"elicitation": {"form": {}}}][len(calls) % 3 > 0]
                call = world.call(
                    token, what, capabilities=capabilities, connection=connection, level="info"
                )
            busy[which] = call
            calls.append((id(connection), call))
        world.run(seconds)
        for _, call in calls:
            answered = call.completions and not call.refusal and call not in known
            if answered and "inputRequests" in call.lines[-1]["result"]:
                known.append(call)
                asked.append(call)
        pool = world.stateless._exclusive
        free = [each for group in pool._groups.values() for each in group.free]
        kept = list(pool._free_of.values())
        assert len(set(kept)) == len(kept) <= len(free)
        assert set(pool._idle) <= set(free)
    for whose, call in calls:
        for token in tokens_in(call):
            assert whose in owner[token], "of another connection"
    for connection in connections:
        connection.lose()
    for _, call in calls:
        call.disconnect()
    world.run(world.settings.input_timeout)
    world.run(world.settings.idle_timeout)
    assert world.stateless._exclusive._free_of == {}
    world.end()
