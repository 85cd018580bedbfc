"""Requests of 2026-07-28 to an older server: leases, parked calls, and those who listen."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from mcpbridge.config.tuning import CANCEL_SECONDS, COLLECT_SECONDS, RELISTEN_SECONDS
from mcpbridge.errors import (
    BackendEnded,
    BackendFailed,
    CannotStart,
    InvalidRequestState,
    MessageRefused,
    ServerBusy,
    ServerDown,
    ShuttingDown,
    UnknownSession,
)
from tests.fakes import Legacy, Modern, World


class Telling(Legacy):
    """One that can be listened to."""

    capabilities: ClassVar[dict[str, Any]] = {
        "tools": {"listChanged": True},
        "resources": {"subscribe": True},
        "logging": {},
    }


@pytest.fixture
def world() -> Any:
    world = World(Legacy)
    yield world
    world.end()


def parked(world: World, token: str, **options: Any) -> Any:
    call = world.call(token, "ask", **options)
    world.run(COLLECT_SECONDS)
    assert call.question == token
    return call


def test_a_call(world: World) -> None:
    call = world.call("a")
    world.run()
    assert call.result["token"] == "a"
    again = world.call("b")
    world.run()
    assert again.result["token"] == "b"
    assert len(world.backends) == 1


@pytest.mark.parametrize("reuse", ["identity", "never"])
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_callers_at_once(count: int, reuse: str) -> None:
    """Each gets its own question, and its own answer: n of n, also where processes are few."""
    world = World(Legacy, limit=17, reuse=reuse)
    for _ in range(3):
        tokens = [f"caller-{number}" for number in range(count)]
        calls = [world.call(each, "ask") for each in tokens]
        world.run(COLLECT_SECONDS)
        world.run(1)
        assert [each.question for each in calls] == tokens
        retries = [call.retry(f"for {token}") for call, token in zip(calls, tokens, strict=True)][
            ::-1
        ]
        world.run(1)
        got = [(each.result["token"], each.result["given"]) for each in retries]
        assert got == [(token, f"for {token}") for token in tokens][::-1]
    if reuse == "never":
        assert all(len(each.asked) + len(_called(each)) <= 1 for each in world.backends)
    world.end()


def _called(backend: Any) -> list[Any]:
    return [each for each in backend.heard if each.get("method") == "tools/call"]


def test_what_came_with_the_last_answer_is_not_for_the_next() -> None:
    """A question, a log: read in one piece with the answer, it was said before the next request."""
    world = World(Legacy, limit=1)
    first = world.call("a", "wait", level="debug")
    world.run(1)
    second = world.call("b", "wait", level="debug")
    world.run()
    [backend] = world.live
    [ident] = backend.calls
    question = {"message": "a", "requestedSchema": {"type": "object"}}
    backend.say(
        {"id": ident, "result": {"token": "a"}},
        {"id": "late", "method": "elicitation/create", "params": question},
        {"method": "notifications/message", "params": {"level": "error", "data": "a"}},
    )
    world.run(COLLECT_SECONDS)
    assert first.result["token"] == "a"
    backend.finish("b")
    world.run()
    assert second.result["token"] == "b"
    assert len(second.lines) == 1
    assert any(each.get("id") == "late" and "error" in each for each in backend.heard)
    world.end()


@pytest.mark.parametrize("other", [{"identity": "other"}, {"able": {}}])
def test_others_have_processes_of_their_own(world: World, other: Any) -> None:
    world.call("a")
    world.run()
    [first] = world.live
    call = world.call("b", **other)
    world.run()
    assert call.result["token"] == "b"
    [_, second] = world.live
    assert [len(_called(each)) for each in (first, second)] == [1, 1]


def test_others_take_turns_where_there_is_one_place() -> None:
    world = World(Legacy, limit=1, queue_timeout=60)
    calls = [world.call(f"{number}", identity="xy"[number % 2]) for number in range(6)]
    for _ in range(10):
        world.run(1)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(6)]
    for backend in world.backends[1:]:
        assert len({int(each["params"]["arguments"]["token"]) % 2 for each in _called(backend)}) < 2
    world.end()


def test_a_group_is_not_forgotten_while_it_gets_its_first_process() -> None:
    """Then there would be two, and the processes of one would be nobody's."""
    world = World(Legacy, limit=1)
    world.call("a", identity="x")
    world.run()
    first = world.call("b")  # waits until the place of the other is free
    second = world.call("c")
    for _ in range(3):
        world.run(1)
    assert (first.result["token"], second.result["token"]) == ("b", "c")
    third = world.call("d")
    world.run()
    assert third.result["token"] == "d"
    world.end()


# Parked calls.


def test_a_retry_twice_at_once(world: World) -> None:
    call = parked(world, "a")
    first, second = call.retry("x"), call.retry("y")
    assert isinstance(second.refusal, InvalidRequestState)
    world.run()
    assert first.result == {**first.result, "token": "a", "given": "x"}
    third = call.retry("z")
    assert isinstance(third.refusal, InvalidRequestState)


def test_a_retry_of_another_or_of_something_else(world: World) -> None:
    call = parked(world, "a")
    call.exchange.identity = "other"
    assert isinstance(call.retry("x").refusal, InvalidRequestState)
    call.exchange.identity = ""
    arguments = {"token": "b", "do": "ask"}
    assert isinstance(call.retry("x", arguments=arguments).refusal, InvalidRequestState)
    state = call.result["requestState"]
    changed = state[:-2] + ("A" if state[-2] != "A" else "B") + state[-1]
    assert isinstance(call.retry("x", requestState=changed).refusal, InvalidRequestState)
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"


def test_a_retry_that_cannot_be_read_may_be_sent_again(world: World) -> None:
    call = parked(world, "a")
    assert call.retry("x", inputResponses=[]).refusal is not None
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"


def test_a_retry_that_a_filter_refuses(world: World) -> None:
    call = parked(world, "a")
    assert isinstance(call.retry("forbidden").refusal, MessageRefused)
    assert isinstance(call.retry("x").refusal, InvalidRequestState)
    world.run(1)
    assert world.limiter.taken == 0


def test_a_retry_after_its_time(world: World) -> None:
    """The process is free again; the old state does not lead to what is parked on it then."""
    call = parked(world, "a")
    world.run(world.settings.input_timeout)
    [backend] = world.live
    other = parked(world, "b")
    assert world.live == [backend]
    assert isinstance(call.retry("x").refusal, InvalidRequestState)
    assert len(world.stateless._exclusive._suspended) == 1
    retry = other.retry("y")
    world.run()
    assert retry.result["given"] == "y"
    assert len(world.stateless._exclusive._suspended) == 0


def test_a_retry_after_the_death_of_its_process(world: World) -> None:
    call = parked(world, "a")
    world.live[0].die()
    assert isinstance(call.retry("x").refusal, InvalidRequestState)


def test_the_death_of_a_process_while_a_retry_runs(world: World) -> None:
    call = parked(world, "a")
    retry = call.retry("x")
    world.live[0].die()
    assert isinstance(retry.refusal, BackendEnded)


def test_what_is_parked_makes_no_room() -> None:
    world = World(Legacy, limit=1, queue_timeout=5)
    call = parked(world, "a")
    other = world.call("b")
    world.run(5)
    assert isinstance(other.refusal, ServerBusy)
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    world.end()


def test_a_parked_call_is_found_whatever_is_known_of_the_server() -> None:
    """To find that out would take the place that it has."""
    world = World(Legacy, limit=1)
    call = parked(world, "a")
    world.era.modern = None
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    world.end()


def test_a_question_of_a_process_that_takes_no_answers(world: World) -> None:
    """It cannot be asked: the call ends with the process, and does not wait for ever."""
    call = world.call("a", "wait")
    world.run(1)
    [backend] = world.live
    backend.close_input()
    backend.ask(next(iter(backend.calls)), {"token": "a"})
    world.run(COLLECT_SECONDS)
    assert not call.ends
    backend.die()
    assert isinstance(call.refusal, BackendEnded)


def test_a_process_that_takes_no_more_while_questions_are_collected(world: World) -> None:
    call = world.call("a", "ask")
    world.run()
    world.run()
    [backend] = world.live
    assert backend.asked
    backend.close_input()
    world.run(COLLECT_SECONDS)
    backend.die()
    assert isinstance(call.refusal, BackendEnded)


# Clients that leave.


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("aborted", [True, False])
@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("do", ["echo", "wait", "ask"])
def test_a_client_that_leaves_at_any_time(do: str, turns: int, aborted: bool, known: bool) -> None:
    world = World(Legacy, limit=1, queue_timeout=30, known=known)
    call = world.call("a", do)
    for _ in range(turns):
        world.clock.advance(0.1)
    call.leave(aborted=aborted)
    other = world.call("b", "ask")
    for _ in range(40):
        world.run(0.1)
    if call.gone or do != "ask":
        assert other.question == "b"
        retry = other.retry("x")
        world.run(1)
        assert retry.result["given"] == "x"
    world.end()


@pytest.mark.parametrize("polite", [True, False])
def test_what_was_cancelled_is_not_in_the_way(world: World, polite: bool) -> None:
    call = world.call("a", "wait")
    world.run(1)
    [backend] = world.live
    backend.polite = polite
    call.leave()
    world.run()
    assert backend.heard[-1]["method"] == "notifications/cancelled"
    world.run(CANCEL_SECONDS)
    assert (world.live == [backend]) is polite
    other = world.call("b")
    world.run()
    assert other.result["token"] == "b"


def test_a_late_answer_and_a_late_question(world: World) -> None:
    """While it may still speak, its process is nobody's."""
    call = world.call("a", "wait")
    world.run(1)
    [backend] = world.live
    backend.polite = False
    call.leave()
    other = world.call("b", "ask")
    world.run(0.2)
    assert other.question == "b"
    backend.ask(next(iter(backend.calls)), {"token": "a"})
    backend.finish("a")
    world.run()
    assert len(other.lines) == 1
    again = world.call("c")
    world.run()
    assert again.result["token"] == "c"


@pytest.mark.parametrize("turns", range(8))
def test_the_bridge_stops_at_any_time(turns: int) -> None:
    world = World(Telling, limit=2)
    calls = [world.call("a", "ask"), world.listen(), world.call("b"), world.call("c", "wait")]
    for _ in range(turns):
        world.clock.advance(0.05)
    world.stop()
    world.run(1)
    assert [each.ends for each in calls] == [1] * 4
    assert world.limiter.taken == 0
    assert world.clock.getDelayedCalls() == []
    late = world.call("d")
    assert isinstance(late.refusal, ShuttingDown)


# Processes that are of no use.


def test_a_server_that_cannot_be_started(world: World) -> None:
    """It is left alone for a while."""
    world.launcher.error = CannotStart("no such program")
    assert isinstance(world.call("a").refusal, BackendFailed)
    assert isinstance(world.call("b").refusal, ServerDown)
    world.launcher.error = None
    world.run(60)
    call = world.call("c")
    world.run(1)
    assert call.result["token"] == "c"


@pytest.mark.parametrize("method", ["initialize", "tools/list", "tools/call"])
@pytest.mark.parametrize("how", ["dies", "mute"])
def test_a_process_that_dies_or_hangs(method: str, how: str) -> None:
    """Whenever it does: the client is told, and the place is free."""

    class Fails(Legacy):
        def _hear(self, message: dict[str, Any]) -> None:
            if message.get("method") == method:
                if how == "dies":
                    self.die()
            else:
                super()._hear(message)

    world = World(Fails, limit=1)
    call = world.call("a")
    world.run(1)
    world.run(world.settings.start_timeout)
    if (how, method) == ("mute", "tools/call"):
        call.leave()
    else:
        assert isinstance(call.refusal, BackendFailed | BackendEnded)
    world.run(CANCEL_SECONDS)
    # Whether that was the server's fault is found out.
    world.run(world.settings.start_timeout)
    world.run(1)
    assert world.limiter.taken == 0
    world.end()


def test_a_list_of_tools_that_could_not_be_asked_for(world: World) -> None:
    """No timer is left of it."""
    world.request("server/discover")
    world.run()
    [backend] = world.live
    backend.ended = True
    assert isinstance(world.call("a").refusal, UnknownSession)


def test_the_server_becomes_another_one(world: World) -> None:
    world.call("a")
    world.run()
    world.launcher.kind = Modern
    world.live[0].die()
    call = world.call("b")
    world.run(1)
    assert call.result["token"] == "b"
    assert world.era.modern is True


def test_a_process_that_is_too_old_is_not_lent() -> None:
    world = World(Legacy, max_process_age=100, idle_timeout=0)
    world.call("a")
    world.run(1)
    [old] = world.live
    world.run(100)
    call = world.call("b")
    world.run(1)
    assert call.result["token"] == "b"
    assert old.ended
    assert world.limiter.taken == 1
    world.end()


# Waiting.


def test_the_line() -> None:
    """In order, bounded in number and in time."""
    world = World(Legacy, limit=1, max_waiting_requests=2, queue_timeout=10)
    first = world.call("a", "wait")
    world.run(1)
    second, third, fourth = world.call("b"), world.call("c"), world.call("d")
    assert isinstance(fourth.refusal, ServerBusy)
    world.run(5)
    world.live[0].finish("a")
    world.run()
    assert [each.result["token"] for each in (first, second, third)] == ["a", "b", "c"]
    blocking = world.call("e", "wait")
    world.run()
    late = world.call("f")
    world.run(10)
    assert isinstance(late.refusal, ServerBusy)
    blocking.leave()
    world.end()


def test_who_cannot_use_what_is_free_does_not_keep_it_from_others() -> None:
    """The only process that somebody listens to makes no room, but works for its own kind."""
    world = World(Telling, limit=1)
    world.listen(identity="x")
    world.run(1)
    busy = world.call("a", "wait", identity="x")
    world.run()
    other, same = world.call("b", identity="y"), world.call("c", identity="x")
    world.live[0].finish("a")
    world.run()
    assert busy.result["token"] == "a"
    assert same.result["token"] == "c"
    assert not other.ends
    world.end()


def test_who_was_woken_and_leaves_passes_it_on() -> None:
    world = World(Legacy, limit=1)
    first = world.call("a", "wait")
    world.run(1)
    world.launcher.slow = True
    second, third = world.call("b", identity="y"), world.call("c", identity="y")
    first.leave()
    world.run(CANCEL_SECONDS)
    world.run(1)
    assert len(world.launcher.waiting) == 1
    second.leave()
    world.run()
    world.launcher.slow = False
    world.launcher.finish()
    world.run(1)
    world.run(1)
    while world.launcher.waiting:
        world.launcher.finish()
        world.run(1)
    assert third.result["token"] == "c"
    world.end()


def test_many_wait_for_the_first_process() -> None:
    """Those that wait are told one after the other, not one by the other."""
    count = 500
    world = World(Legacy, limit=2, max_waiting_requests=1000, queue_timeout=100)
    calls = [world.call(f"{number}") for number in range(count)]
    for _ in range(400):
        world.run(0.01)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(count)]
    world.end()


# Listening.


def test_who_listens_is_told_once_and_on(world: World) -> None:
    """Also when its process has ended: it need not know."""
    world.launcher.kind = Telling
    call = world.listen()
    world.run(1)
    assert [each["method"] for each in call.lines] == ["notifications/subscriptions/acknowledged"]
    [first] = world.live
    first.die()
    world.run(RELISTEN_SECONDS)
    world.run(1)
    [second] = world.live
    assert any(each.get("method") == "resources/subscribe" for each in second.heard)
    # What has happened in between nobody knows.
    changes = ["notifications/tools/list_changed", "notifications/resources/updated"]
    assert [each["method"] for each in call.lines[1:]] == changes
    assert call.lines[2]["params"]["uri"] == "file:///a"
    second.say({"method": "notifications/resources/updated", "params": {"uri": "file:///a"}})
    assert [each["method"] for each in call.lines[3:]] == ["notifications/resources/updated"]
    call.leave()
    world.run()
    assert any(each.get("method") == "resources/unsubscribe" for each in second.heard)
    group = next(iter(world.stateless._exclusive._groups.values()))
    assert group.workers


def test_the_last_process_is_worn(world: World) -> None:
    world = World(Telling, max_process_requests=1)
    listening = world.listen()
    world.run(1)
    call = world.call("a")
    world.run()
    assert call.result["token"] == "a"
    assert not world.live
    world.run(RELISTEN_SECONDS)
    world.run()
    [backend] = world.live
    told = len(listening.lines)
    backend.say({"method": "notifications/tools/list_changed"})
    assert len(listening.lines) == told + 1
    world.end()


def test_a_client_that_left_before_it_could_listen(world: World) -> None:
    world.launcher.kind = Telling
    call = world.listen()
    call.leave(aborted=False)
    world.run(1)
    [group] = world.stateless._exclusive._groups.values()
    assert group.subscribers == {}
    world.run(world.settings.idle_timeout)
    assert not world.live
    world.run(1)
    assert world.stateless._exclusive._groups == {}


def test_listening_to_a_server_that_is_another_one() -> None:
    """The stream ends, so that the client may listen anew; and no process is started for ever."""
    world = World(Telling)
    call = world.listen()
    world.run(1)
    world.launcher.kind = Modern
    world.live[0].die()
    for _ in range(20):
        world.run(RELISTEN_SECONDS)
    assert call.result["resultType"] == "complete"
    assert len(world.backends) == 2
    again = world.listen()
    world.run(1)
    assert len(again.lines) == 1
    world.end()


def test_who_listens_while_the_server_is_down_is_no_storm() -> None:
    class Crashes(Telling):
        def initialize(self, message: dict[str, Any]) -> None:
            self.die()

    world = World(Telling)
    call = world.listen()
    world.run(1)
    world.launcher.kind = Crashes
    world.live[0].die()
    for _ in range(3600):
        world.clock.advance(1)
    # One is started for who listens, and one to see that it is the server's fault.
    assert len(world.backends) < 2 * 80
    assert not call.ends
    call.leave()
    world.end()


def test_only_the_client_that_is_served_resumes_the_process() -> None:
    """An earlier client that reads again does not let the process of the next one go on."""
    world = World(Legacy, limit=1)
    first = world.call("a", "wait")
    world.run()
    worker: Any = first.exchange._worker
    [backend] = world.live
    backend.finish("a")
    second = world.call("b", "wait")
    world.run()
    assert second.exchange._worker is worker
    second.exchange.pause()
    assert worker is not None
    worker.resume(first.exchange)
    assert backend.events[-1] == "pause"
    second.exchange.resume()
    assert backend.events[-1] == "resume"
    backend.finish("b")
    world.run()
    assert second.result["token"] == "b"
    world.end()


def test_a_process_that_may_still_answer_something_else_is_not_used_again() -> None:
    """A request that was given up may be answered at any time, as if it were the next one's."""
    world = World(Legacy, limit=1)
    first = world.call("a", "wait")
    world.run()
    worker: Any = first.exchange._worker
    worker.translator.requests.abandon(0)
    [backend] = world.live
    backend.finish("a")
    second = world.call("b")
    world.run(1)
    assert (first.result["token"], second.result["token"]) == ("a", "b")
    assert len(world.backends) == 2
    assert "stop" in backend.events
    world.end()
