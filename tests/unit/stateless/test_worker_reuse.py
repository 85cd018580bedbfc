"""What an older server's process is kept for: one connection, one identity, or nothing."""

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
    """Asks and logs something for each call that is over, as soon as the next one is there."""

    capabilities: ClassVar[dict[str, Any]] = {
        "tools": {"listChanged": True},
        "resources": {"subscribe": True},
        "logging": {},
    }

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.over: list[str] = []

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("method") == "tools/call":
            for token in self.over:
                params = {"message": token, "requestedSchema": {"type": "object"}}
                self.say(
                    {"method": "notifications/message", "params": {"level": "info", "data": token}},
                    {"id": f"late {token}", "method": "elicitation/create", "params": params},
                )
        super()._hear(message)

    def answer(self, ident: Any, result: dict[str, Any]) -> None:
        if "token" in result:
            self.over.append(result["token"])
        super().answer(ident, result)


@pytest.fixture
def world() -> Any:
    world = World(Late, reuse="connection")
    yield world
    world.end()


def tokens_in(call: Call) -> set[str]:
    """Whose log messages and questions a call was told."""
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


# What is isolated.


@private
def test_what_comes_late_never_reaches_another_connection(reuse: str) -> None:
    """A question and a log message of a call that is over."""
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


def test_one_identity_shares_what_comes_late() -> None:
    """What `identity` means, so that the test above is known to test something."""
    world = World(Late, reuse="identity")
    done(world, "a", ClientConnection())
    other = world.call("b", "wait", connection=ClientConnection(), level="info")
    world.run()
    assert tokens_in(other) == {"a"}
    world.end()


def test_a_question_that_comes_late_is_asked_with_those_of_the_next_call(world: World) -> None:
    """Both are of one connection, and nothing says that they are of two calls."""
    connection = ClientConnection()
    done(world, "a", connection)
    call = world.call("b", "ask", connection=connection)
    world.run(COLLECT_SECONDS)
    assert tokens_in(call) == {"a", "b"}
    retry = call.retry("x")
    world.run()
    assert (retry.result["token"], retry.result["given"]) == ("b", "x")


def test_one_process_for_the_requests_of_a_connection(world: World) -> None:
    one, two = ClientConnection(), ClientConnection()
    for _ in range(3):
        world.request("tools/list", connection=one)
        world.request("tools/list", connection=two)
        world.run()
    assert len(world.backends) == 2


def test_a_request_of_an_unknown_connection_has_a_process_of_its_own(world: World) -> None:
    """One that came through a proxy, or to a site that is not the bridge's."""
    for token in "abc":
        assert tokens_in(done(world, token, None)) == set()
    world.run(1)
    assert len(world.backends) == 3
    assert world.limiter.taken == 0


# When it ends.


def test_its_process_ends_with_a_connection(world: World, log_lines: list[str]) -> None:
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
def test_a_connection_that_is_lost_at_any_time(
    world: World, turns: int, do: str, aborted: bool
) -> None:
    """What it had is ended, unless a call waits for its client; nothing else is."""
    kept = ClientConnection()
    done(world, "kept", kept)
    connection = ClientConnection()
    call = world.call("a", do, connection=connection)
    for _ in range(turns):
        world.clock.advance(0.02)
    call.leave(aborted=aborted)
    connection.lose()
    world.run(CANCEL_SECONDS)
    world.run(1)
    parked = len(world.stateless._exclusive._suspended)
    untouched = [each for each in world.live if not each.calls and not each.over]
    assert world.limiter.taken == 1 + parked + len(untouched)
    assert done(world, "again", kept).result["token"] == "again"


def test_a_connection_is_lost_twice_or_before_its_first_request(world: World) -> None:
    connection = ClientConnection()
    connection.lose()
    connection.lose()
    done(world, "a", connection)
    world.run(1)
    assert world.limiter.taken == 0


def test_an_observer_that_fails_keeps_no_other_from_being_told(logged_failures: Any) -> None:
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
    ("setting", "value", "seconds"),
    [("max_process_requests", 1, 0), ("max_process_age", 50.0, 60), ("idle_timeout", 50.0, 60)],
)
def test_the_limits_of_a_process_still_hold(setting: str, value: Any, seconds: float) -> None:
    world = World(Late, reuse="connection", **{setting: value})
    connection = ClientConnection()
    done(world, "a", connection)
    world.run(seconds)
    done(world, "b", connection)
    assert len(world.backends) == 2
    world.end()


# How many it may have.


def test_a_connection_has_one_free_process(world: World) -> None:
    """However many sets of capabilities it declares, one after the other."""
    connection = ClientConnection()
    for number in range(8):
        done(world, f"{number}", connection, able={"experimental": {f"{number % 3}": {}}})
        world.run(1)
        assert len(world.live) == 1
    world.run(1)
    assert world.limiter.taken == 1


def test_a_connection_of_a_parked_call_has_one_free_process(world: World) -> None:
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


def test_who_needs_room_gets_that_of_the_process_that_is_free_for_longest() -> None:
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


# What nobody has used.


@private
@pytest.mark.parametrize(("info", "same"), [("one", True), ("two", False)])
def test_a_process_that_its_caller_did_not_wait_for(reuse: str, info: str, same: bool) -> None:
    """It is for the next one who says the same of itself: a slow server gets ready all the same."""
    world = World(Late, reuse=reuse)
    world.launcher.slow = True
    connection = ClientConnection()
    first = world.call("a", connection=connection, info={"name": "one", "version": "1"})
    world.run()
    first.leave()
    connection.lose()
    world.launcher.slow = False
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
def test_what_a_server_says_of_itself_is_known_for_the_words_that_it_was_told(reuse: str) -> None:
    world = World(Late, reuse=reuse, limit=10)
    for name in ("one", "two", "one", "two"):
        call = world.request(
            "server/discover", connection=ClientConnection(), info={"name": name, "version": "1"}
        )
        world.run()
        assert call.result["supportedVersions"] == ["2026-07-28"]
    assert len(world.backends) == 2
    world.end()


def test_what_is_known_of_a_server_is_bounded_by_discovered_kept() -> None:
    known, kind = DiscoverResults(), GroupKey("", b"{}", object())
    for number in range(DISCOVERED_KEPT + 1):
        known.add(kind, msgspec.Raw(b'{"name":"%d"}' % number), b"%d" % number)
    assert known.find(kind, msgspec.Raw(b'{"name":"0"}')) is None
    assert known.find(kind, msgspec.Raw(b'{"name":"%d"}' % DISCOVERED_KEPT)) is not None
    assert known.find(kind, None) is None


# Retries.


@private
@pytest.mark.parametrize("lost", [True, False])
def test_a_retry_on_any_connection(reuse: str, lost: bool) -> None:
    """It reaches its process, which then serves nobody else: two have spoken to it."""
    world = World(Late, reuse=reuse)
    first, second = ClientConnection(), ClientConnection()
    call = world.call("a", "ask", connection=first)
    world.run(COLLECT_SECONDS)
    assert call.question == "a"
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


def test_a_retry_on_the_same_connection(world: World) -> None:
    """Its process goes on to serve that."""
    connection = ClientConnection()
    call = world.call("a", "ask", connection=connection)
    world.run(COLLECT_SECONDS)
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    done(world, "b", connection)
    assert len(world.backends) == 1


def test_nobody_comes_back_for_a_parked_call(world: World) -> None:
    connection = ClientConnection()
    world.call("a", "ask", connection=connection)
    world.run(COLLECT_SECONDS)
    connection.lose()
    world.run(world.settings.input_timeout)
    world.run(CANCEL_SECONDS)
    world.run(1)
    assert world.limiter.taken == 0


# Listening.


@private
def test_a_listener_hears_its_own_process_alone(reuse: str) -> None:
    world = World(Late, reuse=reuse)
    connection = ClientConnection()
    listening = world.listen(connection=connection)
    world.run()
    other = world.listen(connection=ClientConnection())
    world.run()
    [own, of_other] = world.live
    of_other.say({"method": "notifications/tools/list_changed"})
    assert (len(listening.lines), len(other.lines)) == (1, 2)
    own.say({"method": "notifications/resources/updated", "params": {"uri": "file:///a"}})
    assert (len(listening.lines), len(other.lines)) == (2, 2)
    # It is kept however long that takes, and ended with it.
    world.run(world.settings.idle_timeout * 3)
    assert len(world.live) == 2
    listening.leave()
    connection.lose()
    world.run(1)
    assert world.live == [of_other]
    world.end()


@private
@pytest.mark.parametrize("lose_first", [True, False])
def test_a_listener_has_a_process_again(reuse: str, lose_first: bool) -> None:
    world = World(Late, reuse=reuse)
    connection = ClientConnection()
    listening = world.listen(connection=connection)
    world.run()
    world.live[0].die()
    world.run(RELISTEN_SECONDS)
    world.run(1)
    [second] = world.live
    second.say({"method": "notifications/tools/list_changed"})
    assert listening.lines[-1]["method"] == "notifications/tools/list_changed"
    if lose_first:
        connection.lose()
    listening.leave()
    connection.lose()
    world.run(1)
    assert world.limiter.taken == 0
    assert world.stateless._exclusive._groups == {}
    world.end()


def test_the_process_of_a_listener_makes_no_room() -> None:
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
def test_whatever_happens(
    steps: list[tuple[str, int, float]], reuse: str, limit: int, warm: int
) -> None:
    """
    No call is told anything of another connection's, a connection has at most
    one process that is free, and nothing is left at the end.
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
        is_busy = which in busy and not (busy[which].ends or busy[which].gone)
        if what == "lose":
            if is_busy:
                busy[which].leave(aborted=bool(len(calls) % 2))
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
                able: Any = [{}, {"elicitation": {"form": {}}}][len(calls) % 3 > 0]
                call = world.call(token, what, able=able, connection=connection, level="info")
            busy[which] = call
            calls.append((id(connection), call))
        world.run(seconds)
        for _, call in calls:
            answered = call.ends and not call.refusal and call not in known
            if answered and "inputRequests" in call.lines[-1]["result"]:
                known.append(call)
                asked.append(call)
        leases = world.stateless._exclusive
        free = [each for group in leases._groups.values() for each in group.free]
        kept = list(leases._free_of.values())
        assert len(set(kept)) == len(kept) <= len(free)
        assert set(leases._idle) <= set(free)
    for whose, call in calls:
        for token in tokens_in(call):
            assert whose in owner[token], "of another connection"
    for connection in connections:
        connection.lose()
    for _, call in calls:
        call.leave()
    world.run(world.settings.input_timeout)
    world.run(world.settings.idle_timeout)
    assert world.stateless._exclusive._free_of == {}
    world.end()
