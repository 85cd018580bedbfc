"""Stateless requests to a legacy server: exclusive workers, suspended calls and subscribers."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from mcpbridge.config.tuning import CANCEL_SECONDS, COLLECT_SECONDS, RELISTEN_SECONDS
from mcpbridge.errors import (
    BackendBusy,
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
from tests.fakes import VERSION, Legacy, Modern, World


class Telling(Legacy):
    """A legacy server with subscriptions."""

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


def suspended(world: World, token: str, **options: Any) -> Any:
    call = world.call(token, "ask", **options)
    world.run(COLLECT_SECONDS)
    assert call.elicitation_message == token
    return call


def test_second_call_reuses_the_process(world: World) -> None:
    call = world.call("a")
    world.run()
    assert call.result["token"] == "a"
    again = world.call("b")
    world.run()
    assert again.result["token"] == "b"
    assert len(world.backends) == 1


def test_only_discover_is_answered_without_asking_the_server_again(world: World) -> None:
    first = world.request("server/discover")
    world.run(1)
    again, other = world.request("server/discover"), world.request("prompts/list")
    world.run()
    for discover in (first, again):
        assert discover.result["supportedVersions"] == [VERSION]
    [backend] = world.live
    requests = [each["method"] for each in backend.received if "id" in each]
    assert requests == ["initialize", "prompts/list"]
    assert not other.completions


@pytest.mark.parametrize("reuse", ["identity", "never"])
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_concurrent_calls_get_their_own_questions_and_answers(count: int, reuse: str) -> None:
    world = World(Legacy, limit=17, reuse=reuse)
    for _ in range(3):
        tokens = [f"caller-{number}" for number in range(count)]
        calls = [world.call(each, "ask") for each in tokens]
        world.run(COLLECT_SECONDS)
        world.run(1)
        assert [each.elicitation_message for each in calls] == tokens
        retries = [call.retry(f"for {token}") for call, token in zip(calls, tokens, strict=True)][
            ::-1
        ]
        world.run(1)
        got = [(each.result["token"], each.result["given"]) for each in retries]
        assert got == [(token, f"for {token}") for token in tokens][::-1]
    if reuse == "never":
        assert all(len(each.open_requests) + len(_called(each)) <= 1 for each in world.backends)
    world.end()


def _called(backend: Any) -> list[Any]:
    return [each for each in backend.received if each.get("method") == "tools/call"]


def test_messages_read_with_an_answer_do_not_reach_the_next_call() -> None:
    """A question or log message read in one piece with the answer precedes the next request."""
    world = World(Legacy, limit=1)
    first = world.call("a", "wait", level="debug")
    world.run(1)
    second = world.call("b", "wait", level="debug")
    world.run()
    [backend] = world.live
    [ident] = backend.calls
    question = {"message": "a", "requestedSchema": {"type": "object"}}
    backend.write(
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
    assert any(each.get("id") == "late" and "error" in each for each in backend.received)
    world.end()


@pytest.mark.parametrize("other", [{"identity": "other"}, {"capabilities": {}}])
def test_other_identity_or_capabilities_have_their_own_process(world: World, other: Any) -> None:
    world.call("a")
    world.run()
    [first] = world.live
    call = world.call("b", **other)
    world.run()
    assert call.result["token"] == "b"
    [_, second] = world.live
    assert [len(_called(each)) for each in (first, second)] == [1, 1]


def test_identities_take_turns_with_capacity_for_one() -> None:
    world = World(Legacy, limit=1, queue_timeout=60)
    calls = [world.call(f"{number}", identity="xy"[number % 2]) for number in range(6)]
    for _ in range(10):
        world.run(1)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(6)]
    for backend in world.backends[1:]:
        assert len({int(each["params"]["arguments"]["token"]) % 2 for each in _called(backend)}) < 2
    world.end()


def test_group_is_kept_while_it_gets_its_first_process() -> None:
    """Otherwise there would be two groups, and the processes of one would be lost."""
    world = World(Legacy, limit=1)
    world.call("a", identity="x")
    world.run()
    first = world.call("b")  # waits for the capacity of the other's process
    second = world.call("c")
    for _ in range(3):
        world.run(1)
    assert (first.result["token"], second.result["token"]) == ("b", "c")
    third = world.call("d")
    world.run()
    assert third.result["token"] == "d"
    world.end()


# Suspended calls.


def test_second_retry_of_a_suspended_call_is_refused(world: World) -> None:
    call = suspended(world, "a")
    first, second = call.retry("x"), call.retry("y")
    assert isinstance(second.refusal, InvalidRequestState)
    world.run()
    assert first.result == {**first.result, "token": "a", "given": "x"}
    third = call.retry("z")
    assert isinstance(third.refusal, InvalidRequestState)


def test_retry_with_another_identity_arguments_or_state_is_refused(world: World) -> None:
    call = suspended(world, "a")
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


def test_question_that_a_retry_leaves_open_is_asked_again(world: World) -> None:
    call = world.call("a", "wait")
    world.run()
    [backend] = world.live
    backend.response_received = backend.events.append
    [ident] = backend.calls
    for token in ("one", "two"):
        backend.ask(ident, {"token": token})
    world.run(COLLECT_SECONDS)
    first, second = call.result["inputRequests"]
    retry = call.retry(inputResponses={first: {"action": "decline"}})
    world.run(COLLECT_SECONDS)
    assert list(retry.result["inputRequests"]) == [second]
    last = retry.retry("x")
    backend.finish("a")
    assert last.result["token"] == "a"


def test_malformed_retry_may_be_sent_again(world: World) -> None:
    call = suspended(world, "a")
    assert call.retry("x", inputResponses=[]).refusal is not None
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"


def test_retry_refused_by_a_filter_ends_the_suspended_call(world: World) -> None:
    call = suspended(world, "a")
    assert isinstance(call.retry("forbidden").refusal, MessageRefused)
    assert isinstance(call.retry("x").refusal, InvalidRequestState)
    world.run(1)
    assert world.limiter.taken == 0


def test_retry_after_input_timeout_is_refused(world: World) -> None:
    """The process is free again; the old state does not resume the call suspended on it now."""
    call = suspended(world, "a")
    world.run(world.settings.input_timeout)
    [backend] = world.live
    other = suspended(world, "b")
    assert world.live == [backend]
    assert isinstance(call.retry("x").refusal, InvalidRequestState)
    assert len(world.stateless._exclusive._suspended) == 1
    retry = other.retry("y")
    world.run()
    assert retry.result["given"] == "y"
    assert len(world.stateless._exclusive._suspended) == 0


def test_retry_after_the_death_of_its_process_is_refused(world: World) -> None:
    call = suspended(world, "a")
    world.live[0].die()
    assert isinstance(call.retry("x").refusal, InvalidRequestState)


def test_death_of_a_process_fails_a_running_retry(world: World) -> None:
    call = suspended(world, "a")
    retry = call.retry("x")
    world.live[0].die()
    assert isinstance(retry.refusal, BackendEnded)


def test_process_of_a_suspended_call_is_not_evicted() -> None:
    world = World(Legacy, limit=1, queue_timeout=5)
    call = suspended(world, "a")
    other = world.call("b")
    world.run(5)
    assert isinstance(other.refusal, ServerBusy)
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    world.end()


def test_retry_needs_no_probe() -> None:
    """A probe would need the capacity that the suspended call holds."""
    world = World(Legacy, limit=1)
    call = suspended(world, "a")
    world.era.modern = None
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    world.end()


def test_question_of_a_process_that_closed_stdin_is_not_asked(world: World) -> None:
    """Nobody could answer it: the call ends with the process instead of waiting for ever."""
    call = world.call("a", "wait")
    world.run(1)
    [backend] = world.live
    backend.close_input()
    backend.ask(next(iter(backend.calls)), {"token": "a"})
    world.run(COLLECT_SECONDS)
    assert not call.completions
    backend.die()
    assert isinstance(call.refusal, BackendEnded)


def test_process_that_closes_stdin_while_asking_ends_its_call(world: World) -> None:
    call = world.call("a", "ask")
    world.run()
    world.run()
    [backend] = world.live
    assert backend.open_requests
    backend.close_input()
    world.run(COLLECT_SECONDS)
    backend.die()
    assert isinstance(call.refusal, BackendEnded)


# Clients that leave.


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("aborted", [True, False])
@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("do", ["echo", "wait", "ask"])
def test_client_may_leave_at_any_time(do: str, turns: int, aborted: bool, known: bool) -> None:
    world = World(Legacy, limit=1, queue_timeout=30, known=known)
    call = world.call("a", do)
    for _ in range(turns):
        world.clock.advance(0.1)
    call.disconnect(aborted=aborted)
    other = world.call("b", "ask")
    for _ in range(40):
        world.run(0.1)
    if call.disconnected or do != "ask":
        assert other.elicitation_message == "b"
        retry = other.retry("x")
        world.run(1)
        assert retry.result["given"] == "x"
    world.end()


@pytest.mark.parametrize("polite", [True, False])
def test_cancelled_request_frees_its_worker(world: World, polite: bool) -> None:
    """A process that does not answer the cancellation is ended."""
    call = world.call("a", "wait")
    world.run(1)
    [backend] = world.live
    backend.answers_cancelled = polite
    call.disconnect()
    world.run()
    assert backend.received[-1]["method"] == "notifications/cancelled"
    world.run(CANCEL_SECONDS)
    assert (world.live == [backend]) is polite
    other = world.call("b")
    world.run()
    assert other.result["token"] == "b"


def test_worker_of_a_cancelled_request_serves_nobody_until_it_answers(world: World) -> None:
    """Its late question and answer reach no other call."""
    call = world.call("a", "wait")
    world.run(1)
    [backend] = world.live
    backend.answers_cancelled = False
    call.disconnect()
    other = world.call("b", "ask")
    world.run(0.2)
    assert other.elicitation_message == "b"
    backend.ask(next(iter(backend.calls)), {"token": "a"})
    backend.finish("a")
    world.run()
    assert len(other.lines) == 1
    again = world.call("c")
    world.run()
    assert again.result["token"] == "c"


def test_output_of_a_process_has_a_reader_until_its_cancelled_request_ends(world: World) -> None:
    call = world.call("a", "wait")
    world.run(1)
    worker: Any = call.exchange._worker
    [backend] = world.live
    backend.answers_cancelled = False
    assert worker.has_reader
    call.disconnect()
    assert worker.has_reader
    backend.finish("a")
    assert not worker.has_reader


@pytest.mark.parametrize("turns", range(8))
def test_bridge_may_stop_at_any_time(turns: int) -> None:
    world = World(Telling, limit=2)
    calls = [world.call("a", "ask"), world.listen(), world.call("b"), world.call("c", "wait")]
    for _ in range(turns):
        world.clock.advance(0.05)
    world.stop()
    world.run(1)
    assert [each.completions for each in calls] == [1] * 4
    assert world.limiter.taken == 0
    assert world.clock.getDelayedCalls() == []
    late = world.call("d")
    assert isinstance(late.refusal, ShuttingDown)


# Processes that fail.


def test_server_that_cannot_start_is_backed_off(world: World) -> None:
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
def test_process_that_dies_or_hangs_fails_its_request(method: str, how: str) -> None:
    """Whenever it does, the client gets an error and the capacity is free again."""

    class Fails(Legacy):
        def _receive(self, message: dict[str, Any]) -> None:
            if message.get("method") == method:
                if how == "dies":
                    self.die()
            else:
                super()._receive(message)

    world = World(Fails, limit=1)
    call = world.call("a")
    world.run(1)
    world.run(world.settings.start_timeout)
    if (how, method) == ("mute", "tools/call"):
        call.disconnect()
    else:
        assert isinstance(call.refusal, BackendFailed | BackendEnded)
    world.run(CANCEL_SECONDS)
    # The bridge starts one more process to see whether the server is at fault.
    world.run(world.settings.start_timeout)
    world.run(1)
    # It does so again while the server fails, but lets clients have the only process.
    assert not world.pool.capacity.is_full(None)
    world.end()


def test_unsent_tools_list_fails_its_call(world: World) -> None:
    """No timer is left."""
    world.request("server/discover")
    world.run()
    [backend] = world.live
    backend.ended = True
    assert isinstance(world.call("a").refusal, UnknownSession)


@pytest.mark.parametrize("how", ["filter", "busy"])
def test_worker_of_an_unsent_call_takes_the_next(how: str) -> None:
    world = World(Legacy, limit=1)
    world.call("a")
    world.run(1)
    [backend] = world.live
    backend.busy = how == "busy"
    refused = world.call("b" if how == "busy" else "forbidden")
    world.run()
    assert isinstance(refused.refusal, BackendBusy if how == "busy" else MessageRefused)
    backend.busy = False
    call = world.call("c")
    world.run(1)
    assert call.result["token"] == "c"
    assert world.backends == [backend]
    world.end()


def test_server_may_become_a_modern_server(world: World) -> None:
    world.call("a")
    world.run()
    world.launcher.kind = Modern
    world.live[0].die()
    call = world.call("b")
    world.run(1)
    assert call.result["token"] == "b"
    assert world.era.modern is True


@pytest.mark.parametrize("age", [0.5, 100])
def test_worker_beyond_max_process_age_is_replaced(age: float) -> None:
    world = World(Legacy, max_process_age=age, idle_timeout=0)
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


def test_worker_serves_max_process_requests() -> None:
    world = World(Legacy, max_process_requests=3)
    for token in "abcd":
        call = world.call(token)
        world.run(1)
        assert call.result["token"] == token
    assert [len(_called(each)) for each in world.backends] == [3, 1]
    world.end()


def test_max_process_age_of_0_is_no_limit() -> None:
    world = World(Legacy, max_process_age=0, idle_timeout=0)
    world.call("a")
    world.run(1)
    [backend] = world.live
    world.run(1_000_000)
    call = world.call("b")
    world.run(1)
    assert call.result["token"] == "b"
    assert world.backends == [backend]
    world.end()


# Waiting.


def test_queue_keeps_order_and_is_bounded_in_number_and_time() -> None:
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
    blocking.disconnect()
    world.end()


def test_request_that_cannot_use_a_free_worker_does_not_block_others() -> None:
    """The only process with a subscriber is not evicted, but serves its own group."""
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
    assert not other.completions
    world.end()


def test_woken_request_that_leaves_wakes_the_next() -> None:
    world = World(Legacy, limit=1)
    first = world.call("a", "wait")
    world.run(1)
    world.launcher.delays_launches = True
    second, third = world.call("b", identity="y"), world.call("c", identity="y")
    first.disconnect()
    world.run(CANCEL_SECONDS)
    world.run(1)
    assert len(world.launcher.waiting) == 1
    second.disconnect()
    world.run()
    world.launcher.delays_launches = False
    world.launcher.finish()
    world.run(1)
    world.run(1)
    while world.launcher.waiting:
        world.launcher.finish()
        world.run(1)
    assert third.result["token"] == "c"
    world.end()


def test_many_requests_wait_for_the_first_process() -> None:
    """They are woken one after the other, not recursively."""
    count = 500
    world = World(Legacy, limit=2, max_waiting_requests=1000, queue_timeout=100)
    calls = [world.call(f"{number}") for number in range(count)]
    for _ in range(400):
        world.run(0.01)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(count)]
    world.end()


# Subscriptions.


def test_subscription_outlives_its_process_with_one_acknowledgement(world: World) -> None:
    """The client need not know that the process ended."""
    world.launcher.kind = Telling
    call = world.listen()
    world.run(1)
    assert [each["method"] for each in call.lines] == ["notifications/subscriptions/acknowledged"]
    [first] = world.live
    first.die()
    world.run(RELISTEN_SECONDS)
    world.run(1)
    [second] = world.live
    assert any(each.get("method") == "resources/subscribe" for each in second.received)
    # Nobody knows what changed in between.
    changes = ["notifications/tools/list_changed", "notifications/resources/updated"]
    assert [each["method"] for each in call.lines[1:]] == changes
    assert call.lines[2]["params"]["uri"] == "file:///a"
    second.write({"method": "notifications/resources/updated", "params": {"uri": "file:///a"}})
    assert [each["method"] for each in call.lines[3:]] == ["notifications/resources/updated"]
    call.disconnect()
    world.run()
    assert any(each.get("method") == "resources/unsubscribe" for each in second.received)
    group = next(iter(world.stateless._exclusive._groups.values()))
    assert group.workers


def test_subscription_moves_on_when_its_last_process_is_worn(world: World) -> None:
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
    backend.write({"method": "notifications/tools/list_changed"})
    assert len(listening.lines) == told + 1
    world.end()


def test_client_that_leaves_before_it_is_subscribed_leaves_nothing(world: World) -> None:
    world.launcher.kind = Telling
    call = world.listen()
    call.disconnect(aborted=False)
    world.run(1)
    [group] = world.stateless._exclusive._groups.values()
    assert group.subscribers == {}
    world.run(world.settings.idle_timeout)
    assert not world.live
    world.run(1)
    assert world.stateless._exclusive._groups == {}


def test_subscription_completes_when_the_server_becomes_a_modern_server() -> None:
    """The client can subscribe again, and no process is started in vain for ever."""
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


def test_resubscription_to_a_crashing_server_is_backed_off() -> None:
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
    # One is started for the subscriber, and one to see whether the server is at fault.
    assert len(world.backends) < 2 * 80
    assert not call.completions
    call.disconnect()
    world.end()


def test_only_the_client_being_served_resumes_the_process() -> None:
    """An earlier client that reads again does not resume the process of the next one."""
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


def test_worker_with_an_abandoned_request_is_not_reused() -> None:
    """Its late answer would be taken for that of the next request."""
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
