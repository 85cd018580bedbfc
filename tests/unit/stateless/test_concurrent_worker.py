"""Requests of 2026-07-28 to a server that speaks it: several at once on one process."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from mcpbridge.config.tuning import LAUNCH_SECONDS, RELISTEN_SECONDS
from mcpbridge.errors import (
    BackendEnded,
    BackendFailed,
    MessageRefused,
    ServerBusy,
    ServerDown,
    ShuttingDown,
)
from tests.fakes import Legacy, Modern, World


@pytest.fixture
def world() -> Any:
    world = World(Modern)
    yield world
    world.end()


def test_several_at_once(world: World) -> None:
    """Whose ids and tokens may be equal; each gets its own."""
    calls = [world.call(f"{number}", "wait") for number in range(16)]
    world.run()
    [backend] = world.live
    for number in reversed(range(16)):
        backend.finish(f"{number}")
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(16)]


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_more_than_may_be_at_once(count: int) -> None:
    world = World(Modern, limit=2, concurrency=3, queue_timeout=60)
    calls = [world.call(f"{number}", "wait") for number in range(count)]
    for _ in range(count):
        world.run()
        assert all(len(each.calls) <= 3 for each in world.live)
        for backend in world.live:
            for arguments in list(backend.calls.values())[:1]:
                backend.finish(arguments["token"])
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(count)]
    assert len(world.backends) == min(2, -(-count // 3))
    world.end()


def test_answers_in_one_piece_make_room_for_as_many() -> None:
    world = World(Modern, limit=1, concurrency=4)
    calls = [world.call(f"{number}", "wait") for number in range(8)]
    world.run()
    [backend] = world.live
    backend.say(*({"id": each, "result": {}} for each in list(backend.calls)))
    backend.calls.clear()
    world.run()
    assert len(backend.calls) == 4
    assert [each.ends for each in calls] == [1] * 4 + [0] * 4
    world.end()


def test_who_starts_one_does_not_come_on_top_of_who_waited() -> None:
    world = World(Modern, limit=1, concurrency=1)
    first = world.call("a", "wait", identity="x")
    world.run()
    waiting = [world.call(f"{number}", "wait") for number in range(3)]
    world.live[0].finish("a")
    world.run(1)
    assert first.ends
    [backend] = world.live
    assert len(backend.calls) == 1
    assert len(waiting) == 3
    world.end()


def test_who_wants_logs_is_alone(world: World) -> None:
    """Nothing would say whose they are; also while its request is about to be made."""
    calls = [world.call("a", "wait", level="debug"), world.call("b", "wait")]
    calls.append(world.call("c", "wait", level="debug"))
    calls.append(world.call("d", "wait"))
    world.run()
    told = [sorted(each["token"] for each in backend.calls.values()) for backend in world.live]
    assert sorted(told) == [["a"], ["b", "d"], ["c"]]
    for backend in world.live:
        data = next(iter(backend.calls.values()))["token"]
        backend.say({"method": "notifications/message", "params": {"level": "info", "data": data}})
    logs = [[line["params"]["data"] for line in each.lines] for each in calls]
    assert logs == [["a"], [], ["c"], []]
    for each in calls:
        each.leave()


def test_others_have_processes_of_their_own(world: World) -> None:
    calls = [world.call(each, identity=each) for each in "xyxy"]
    world.run()
    assert [each.result["token"] for each in calls] == list("xyxy")
    assert len(world.live) == 2
    for backend in world.live:
        called = [each for each in backend.heard if each["method"] == "tools/call"]
        assert len({each["params"]["arguments"]["token"] for each in called}) == 1


def test_others_take_turns_where_there_is_one_place() -> None:
    world = World(Modern, limit=1, concurrency=1, queue_timeout=60)
    calls = [world.call(f"{number}", identity="xy"[number % 2]) for number in range(6)]
    for _ in range(10):
        world.run(1)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(6)]
    assert len(world.backends) <= 6
    world.end()


def test_many_wait_for_the_first_process() -> None:
    count = 500
    world = World(Modern, limit=1, known=False, max_waiting_requests=1000, concurrency=7)
    calls = [world.call(f"{number}") for number in range(count)]
    for _ in range(30):
        world.run()
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(count)]
    assert len(world.backends) == 1
    world.end()


def test_who_waits_for_a_start_is_counted() -> None:
    world = World(Modern, max_waiting_requests=2)
    world.launcher.slow = True
    calls = [world.call(f"{number}") for number in range(4)]
    assert [each.ends for each in calls] == [0, 0, 0, 1]
    assert isinstance(calls[3].refusal, ServerBusy)
    world.launcher.slow = False
    world.launcher.finish()
    world.run()
    assert [each.result["token"] for each in calls[:3]] == ["0", "1", "2"]
    world.end()


# Clients that leave.


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("aborted", [True, False])
@pytest.mark.parametrize("turns", range(10))
@pytest.mark.parametrize("do", ["echo", "wait"])
def test_a_client_that_leaves_at_any_time(do: str, turns: int, aborted: bool, known: bool) -> None:
    world = World(Modern, limit=1, concurrency=1, queue_timeout=30, known=known)
    call = world.call("a", do)
    for _ in range(turns):
        world.clock.advance(0.1)
    call.leave(aborted=aborted)
    other = world.call("b")
    for _ in range(20):
        world.run(0.1)
    assert other.result["token"] == "b"
    world.end()


def test_who_leaves_cancels(world: World) -> None:
    call, other = world.call("a", "wait"), world.call("b", "wait")
    world.run()
    [backend] = world.live
    [ident] = [each for each, arguments in backend.calls.items() if arguments["token"] == "a"]
    call.leave()
    world.run()
    assert backend.heard[-1]["method"] == "notifications/cancelled"
    backend.say({"id": ident, "result": {"token": "a"}})
    backend.finish("b")
    assert other.result["token"] == "b"


def test_nobody_waits_for_the_tools_any_more(world: World) -> None:
    """What was asked for one that left, or not answered, does not count as work for ever."""
    world.request("server/discover")
    world.run()
    [backend] = world.live
    backend.mute = True
    call = world.call("a")
    world.run()
    call.leave()
    late = world.call("b")
    world.run(world.settings.start_timeout)
    assert isinstance(late.refusal, BackendFailed)
    cancelled = [each for each in backend.heard if each["method"] == "notifications/cancelled"]
    assert len(cancelled) == 2
    world.run(world.settings.idle_timeout)
    assert not world.live
    world.run(1)
    assert world.limiter.taken == 0


# Processes that end.


def test_a_process_that_dies(world: World) -> None:
    calls = [world.call("a", "wait"), world.call("b", "wait")]
    world.run()
    world.live[0].die()
    assert all(isinstance(each.refusal, BackendEnded) for each in calls)
    again = world.call("c")
    world.run()
    assert again.result["token"] == "c"


def test_a_process_that_takes_nothing_more(world: World) -> None:
    """What it still says is heard; who comes gets another one."""
    call = world.call("a", "wait")
    world.run()
    [backend] = world.live
    backend.close_input()
    other = world.call("b")
    world.run()
    assert other.result["token"] == "b"
    backend.finish("a")
    assert call.result["token"] == "a"
    backend.die()


def test_a_process_that_has_ended_and_does_not_know_yet(world: World) -> None:
    world.call("a")
    world.run()
    [backend] = world.live
    backend.ended = True
    assert isinstance(world.call("b").refusal, BackendEnded)


@pytest.mark.parametrize("how", ["dies", "mute"])
@pytest.mark.parametrize("method", ["server/discover", "tools/list", "tools/call"])
def test_a_process_that_dies_or_hangs(method: str, how: str) -> None:
    class Fails(Modern):
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
    assert (str(world.pool.backoff) == "ready") is (method != "server/discover")
    world.run(1)
    world.end()


def test_a_server_that_crashes_at_start_is_left_alone(world: World) -> None:
    world.launcher.kind = type("Crashes", (Modern,), {"discover": Modern.die})
    call = world.call("a")
    world.run()
    assert isinstance(call.refusal, BackendFailed)
    world.era.modern = True
    assert isinstance(world.call("b").refusal, ServerDown)


def test_a_filter_that_refuses(world: World) -> None:
    assert world.call("a").refusal is None
    world.run()
    assert isinstance(world.call("forbidden").refusal, MessageRefused)
    call = world.call("b")
    world.run()
    assert call.result["token"] == "b"


def test_a_queue_that_is_full(world: World) -> None:
    world.call("a")
    world.run()
    [backend] = world.live
    backend.busy = True
    assert world.call("b").refusal is not None
    backend.busy = False
    call = world.call("c")
    world.run()
    assert call.result["token"] == "c"


@pytest.mark.parametrize("idle", [0, 300])
def test_a_process_that_is_worn(idle: float) -> None:
    """By age, also while nobody used it; it does not stay beside the next one."""
    world = World(Modern, max_process_age=100, max_process_requests=2, idle_timeout=idle)
    for token in "ab":
        world.call(token)
        world.run()
    assert not world.live
    world.call("c")
    world.run(100)
    [old] = world.live
    call = world.call("d")
    world.run(1)
    assert call.result["token"] == "d"
    assert old.ended
    assert world.limiter.taken == 1
    world.end()


def test_the_server_becomes_another_one(world: World) -> None:
    world.call("a")
    world.run()
    world.launcher.kind = Legacy
    world.live[0].die()
    call = world.call("b")
    world.run(1)
    assert call.result["token"] == "b"
    assert world.era.modern is False


@pytest.mark.parametrize("turns", range(6))
def test_the_bridge_stops_at_any_time(turns: int) -> None:
    world = World(Modern, limit=1, concurrency=1)
    calls = [world.call("a", "wait"), world.listen(), world.call("b")]
    for _ in range(turns):
        world.clock.advance(0.05)
    world.stop()
    world.run(1)
    assert [each.ends for each in calls] == [1] * 3
    assert world.limiter.taken == 0
    assert world.clock.getDelayedCalls() == []
    assert isinstance(world.call("d").refusal, ShuttingDown)


# Listening.


class Telling(Modern):
    capabilities: ClassVar[dict[str, Any]] = {"tools": {"listChanged": True}}


def test_who_listens_is_told_once_and_on(world: World) -> None:
    world.launcher.kind = Telling
    call = world.listen()
    world.run()
    assert len(call.lines) == 1
    world.live[0].die()
    world.run(RELISTEN_SECONDS)
    world.run()
    [backend] = world.live
    listens = [each["id"] for each in backend.heard if each["method"] == "subscriptions/listen"]
    for each in listens:
        backend.note(each, "notifications/tools/list_changed")
    assert [each["method"] for each in call.lines[1:]] == ["notifications/tools/list_changed"]
    call.leave()
    world.run()
    assert backend.heard[-1]["method"] == "notifications/cancelled"


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("stop", [False, True])
def test_while_it_is_to_listen_again(stop: bool, turns: int) -> None:
    """The client leaves, or the bridge stops: nothing is left, and who is there is told."""
    world = World(Modern)
    call = world.listen()
    world.run()
    world.live[0].die()
    world.launcher.slow = True
    world.run(0.5)
    for _ in range(turns):
        world.clock.advance(0.2)
    if stop:
        world.stop()
        assert call.result["resultType"] == "complete"
    else:
        call.leave()
        # A process that is being started is for whoever comes; this one never is.
        world.run(LAUNCH_SECONDS)
        assert world.limiter.taken == 0
    world.end()


def test_a_server_that_ends_what_the_bridge_listens_to(world: World) -> None:
    """Then a client that listens keeps the process in use all the same."""
    world.launcher.kind = Telling
    world.listen()
    world.run()
    [backend] = world.live
    own = next(each["id"] for each in backend.heard if each["method"] == "subscriptions/listen")
    backend.answer(own, {"resultType": "complete"})
    world.call("a")
    world.run(world.settings.idle_timeout)
    assert world.live == [backend]


def test_listening_to_a_server_that_is_another_one(world: World) -> None:
    call = world.listen()
    world.run()
    world.launcher.kind = Legacy
    world.live[0].die()
    world.run(RELISTEN_SECONDS)
    world.run()
    assert isinstance(call.refusal, BackendFailed)


def test_a_line_that_is_no_text(world: World) -> None:
    """It is of nobody, and what comes with it is heard."""
    call = world.call("a", "wait")
    world.run()
    [backend] = world.live
    [ident] = backend.calls
    answer = b'{"jsonrpc":"2.0","id":%d,"result":{"token":"a"}}' % ident
    odd = b'{"jsonrpc":"2.0","id":%d,"result":{},"\x98":1}' % ident
    backend.receiver.messages_received([odd, answer])
    assert call.result["token"] == "a"


@pytest.mark.parametrize("identity", ["x", "y"])
def test_whose_process_is_ended_for_want_of_logs(identity: str) -> None:
    """One's own, of which a cancelled request may still log; not somebody else's."""
    world = World(Modern)
    cancelled = world.call("b", "wait", level="debug", identity="x")
    world.run()
    [muddled] = world.live
    cancelled.leave()
    world.run()
    logging = world.call("c", level="debug", identity=identity)
    world.run(1)
    assert logging.result["token"] == "c"
    assert (muddled in world.live) is (identity == "y")
    world.end()
