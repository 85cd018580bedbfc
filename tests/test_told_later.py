"""What the bridge itself has to say to a process that does not listen just now."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.errors import UnknownSession
from mcpbridge.protocol.inflight import MAX_IN_FLIGHT
from mcpbridge.protocol.multiplexer import CANCELLED_KEPT
from mcpbridge.session.leased import SUBSCRIBED_AT_ONCE
from tests.fakes import Call, Legacy, Modern, World


class Slow(Legacy):
    """Answers what it is asked about resources when it is told to."""

    capabilities: ClassVar[dict[str, Any]] = {"tools": {}, "resources": {"subscribe": True}}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.open: list[dict[str, Any]] = []
        self.subscribed: Counter[str] = Counter()
        self.refuses = False

    def resources_subscribe(self, message: dict[str, Any]) -> None:
        self.subscribed[message["params"]["uri"]] += 1
        self.open.append(message)

    def resources_unsubscribe(self, message: dict[str, Any]) -> None:
        self.subscribed[message["params"]["uri"]] -= 1
        self.open.append(message)

    def settle(self) -> None:
        """Answer one."""
        message = self.open.pop(0)
        if self.refuses:
            self.refuse(message["id"])
        else:
            self.answer(message["id"], {})


def listen(world: World, *uris: str) -> Call:
    wanted = {"resourceSubscriptions": list(uris)}
    return world.request("subscriptions/listen", {"notifications": wanted})


def settle(world: World) -> None:
    """Until nothing is left to be answered; never more than a few at a time."""
    while any(each.open for each in world.live):
        for each in world.live:
            assert len(each.open) <= SUBSCRIBED_AT_ONCE
            if each.open:
                each.settle()
        world.run()


MANY = [f"file:///{number}" for number in range(1000)]


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_many_resources(busy: bool, refuses: bool) -> None:
    """Each is subscribed once, to the process that there is and to the next one."""
    world = World(Slow, limit=2)
    call = world.call("a", "wait")
    world.run()
    [first] = world.live
    first.refuses = refuses
    listen(world, *MANY)
    world.run()
    first.busy = busy
    listen(world, "file:///more")
    world.run()
    first.busy = False
    settle(world)
    first.finish("a")
    world.run()
    settle(world)
    assert call.result["token"] == "a"
    expected = Counter([*MANY, "file:///more"])
    assert [each.subscribed for each in world.live] == [expected] * 2
    for each in world.live:
        each.die()
    world.run(1)
    world.run(1)
    settle(world)
    assert [each.subscribed for each in world.live] == [expected]
    world.end()


def test_what_it_was_not_told_need_not_be_taken_back() -> None:
    world = World(Slow, limit=1)
    world.call("a")
    world.run()
    [process] = world.live
    waiting = listen(world, *MANY[:SUBSCRIBED_AT_ONCE])
    world.run()
    listen(world, "file:///x").leave()
    world.run()
    settle(world)
    assert "file:///x" not in process.subscribed
    waiting.leave()
    world.run()
    again = listen(world, *MANY[:SUBSCRIBED_AT_ONCE])
    world.run()
    settle(world)
    assert not again.ends
    assert process.subscribed == Counter(MANY[:SUBSCRIBED_AT_ONCE])
    world.end()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("listen"), st.sets(st.sampled_from("abc"), min_size=1)),
            st.tuples(st.just("leave"), st.integers(0, 9)),
            st.sampled_from(["answer", "busy", "idle", "turn"]),
        ),
        max_size=25,
    )
)
def test_in_the_end_it_knows_what_is_listened_to(steps: list[Any]) -> None:
    """In whatever order clients come and go, and it answers and reads."""
    world = World(Slow, limit=1)
    world.call("a")
    world.run()
    [process] = world.live
    streams: list[tuple[Call, set[str]]] = []
    for step in steps:
        if step == "answer":
            if process.open:
                process.settle()
        elif step in ("busy", "idle"):
            process.busy = step == "busy"
        elif step == "turn":
            world.run()
        elif step[0] == "listen":
            streams.append((listen(world, *sorted(step[1])), step[1]))
        elif streams:
            streams.pop(step[1] % len(streams))[0].leave()
    process.busy = False
    world.run()
    # Whatever it says next is when it is told the rest.
    process.say({"method": "notifications/x"})
    world.run()
    settle(world)
    wanted = {uri for _, uris in streams for uri in uris}
    assert {uri for uri, count in process.subscribed.items() if count} == wanted
    assert set(process.subscribed.values()) <= {0, 1}
    assert world.live == [process]
    world.end()


def test_what_could_not_be_said_is_not_waited_for() -> None:
    world = World(Slow, limit=1)
    call = world.call("a", "wait")
    world.run()
    [process] = world.live
    process.finish("a")
    world.run()
    assert call.ends
    process.busy = True
    for uri in MANY[: 2 * SUBSCRIBED_AT_ONCE]:
        listen(world, uri)
        world.run()
    process.busy = False
    process.say({"method": "notifications/x"})
    world.run()
    settle(world)
    assert process.subscribed == Counter(MANY[: 2 * SUBSCRIBED_AT_ONCE])
    world.end()


def test_who_listens_leaves_while_another_call_runs_on_a_busy_process() -> None:
    world = World(Slow, limit=1)
    listening = listen(world, "file:///a")
    world.run()
    settle(world)
    call = world.call("a", "wait")
    world.run()
    [process] = world.live
    process.busy = True
    listening.leave()
    world.run()
    process.busy = False
    process.finish("a")
    world.run()
    assert call.result["token"] == "a"
    assert process.subscribed["file:///a"] == 0
    settle(world)
    world.end()


def test_many_resources_push_nothing_out_of_memory() -> None:
    """The bridge's own list of tools is still known when its answer comes."""

    class Later(Slow):
        def tools_list(self, message: dict[str, Any]) -> None:
            self.clock.callLater(1, super().tools_list, message)

    world = World(Later, limit=1)
    world.request("server/discover")
    world.run()
    call = world.call("a")
    world.run()
    listen(world, *MANY)
    for _ in range(3):
        world.run(1)
        settle(world)
    assert call.result["token"] == "a"
    world.end()


def closed(line: bytes) -> None:
    raise UnknownSession("it takes nothing more")


@pytest.mark.parametrize("gone", ["reads", "ends", "closes"])
def test_a_client_leaves_a_shared_process_that_does_not_read(gone: str) -> None:
    """Its cancellation waits; the others' requests go on."""
    world = World(Modern, limit=1)
    first, second = world.call("a", "wait"), world.call("b", "wait")
    third = world.call("c", "wait")
    world.run()
    [process] = world.live
    process.busy = True
    first.leave()
    third.leave()
    world.run()
    assert not second.ends
    process.busy = False
    if gone == "reads":
        process.finish("b")
        world.run()
        assert second.result["token"] == "b"
        cancelled = [each for each in process.heard if each["method"] == "notifications/cancelled"]
        asked = {
            each["params"]["arguments"]["token"]: each["id"]
            for each in process.heard
            if each["method"] == "tools/call"
        }
        said = [each["params"]["requestId"] for each in cancelled]
        assert said == [asked["a"], asked["c"]]
    else:
        if gone == "closes":
            # It takes nothing more, and still says something.
            process.send = closed
            process.say({"method": "notifications/x"})
        process.die()
        world.run()
        assert second.refusal is not None
    world.end()


def test_no_more_cancellations_wait_than_may() -> None:
    """The oldest gives way; what it was of is answered to nobody, which is all it costs."""
    world = World(Modern, limit=1, concurrency=MAX_IN_FLIGHT, max_process_requests=100_000)
    kept = world.call("kept", "wait")
    world.run()
    [shared] = world.stateless._shared._processes
    [process] = world.live
    for _ in range(3):
        process.busy = False
        half = [world.call(f"{number}", "wait") for number in range(CANCELLED_KEPT // 2)]
        world.run()
        process.busy = True
        for each in half:
            each.leave()
        world.run()
        assert len(shared._unsaid) <= CANCELLED_KEPT
    assert len(shared._unsaid) == CANCELLED_KEPT
    process.busy = False
    process.finish("kept")
    world.run()
    assert kept.result["token"] == "kept"
    assert not shared._unsaid
    world.end()
