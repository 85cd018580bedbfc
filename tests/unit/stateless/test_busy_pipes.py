"""What the bridge itself says to a process that does not read just now, or never again."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.mcp.inflight import CANCELLED_KEPT, MAX_IN_FLIGHT
from mcpbridge.stateless.exclusive_worker import SUBSCRIBED_AT_ONCE
from mcpbridge.translation.legacy_requests import OWN_KEPT
from tests.fakes import Call, Legacy, Modern, Scripted, World

NOTHING = {"method": "notifications/x"}
MANY = [f"file:///{number}" for number in range(1000)]


class Piped(Scripted):
    """Its pipe takes so many messages that it has not read; with `closed` it takes none."""

    room = 64

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unread = 0
        self.closed = False

    def send(self, line: bytes) -> None:
        if self.closed:
            raise UnknownSession("it takes nothing more")
        if self.unread >= self.room:
            raise BackendBusy("its pipe is full")
        super().send(line)
        self.unread += 1 + line.count(b"\n")

    def _hear(self, message: dict[str, Any]) -> None:
        self.unread -= 1
        super()._hear(message)


class Slow(Piped, Legacy):
    """Answers what it is asked about a resource when it is told to."""

    capabilities: ClassVar[dict[str, Any]] = {"tools": {}, "resources": {"subscribe": True}}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Whether it is to be told of a resource: all that it has heard of that.
        self.told: list[tuple[str, bool]] = []
        self.unanswered: list[int] = []
        #: How many of them there were at most.
        self.most = 0

    def resources_subscribe(self, message: dict[str, Any]) -> None:
        wanted = message["method"] == "resources/subscribe"
        self.told.append((message["params"]["uri"], wanted))
        self.unanswered.append(message["id"])
        self.most = max(self.most, len(self.unanswered))

    resources_unsubscribe = resources_subscribe

    def of(self, uri: str) -> list[bool]:
        """What it has heard of one resource."""
        return [wanted for each, wanted in self.told if each == uri]

    def answer_one(self, *, refuses: bool = False) -> None:
        if self.unanswered:
            ident = self.unanswered.pop(0)
            self.refuse(ident) if refuses else self.answer(ident, {})


class Shared(Piped, Modern):
    """Whose pipe can be full, or closed."""

    @property
    def cancelled(self) -> list[Any]:
        """The tokens of the calls that it heard are cancelled, or of what else their ids."""
        asked = {each["id"]: each["params"] for each in self.heard if "id" in each}
        idents = [e["params"]["requestId"] for e in self.heard if "requestId" in e["params"]]
        return [asked[each].get("arguments", {}).get("token", each) for each in idents]


def listen(world: World, *uris: str) -> Call:
    wanted = {"resourceSubscriptions": list(uris)}
    call = world.request("subscriptions/listen", {"notifications": wanted})
    world.run()
    return call


def settle(world: World, *, refuses: bool = False) -> None:
    """Until no process has anything left to answer."""
    while any(each.unanswered for each in world.live):
        for each in world.live:
            each.answer_one(refuses=refuses)
        world.run()


def one_process(kind: type[Scripted], **options: Any) -> tuple[World, Any]:
    """There is one, and no other can be had."""
    world = World(kind, limit=1, **options)
    world.call("first")
    world.run()
    [process] = world.live
    return world, process


# Those that listen to resources of an older server.


@pytest.mark.parametrize("refuses", [False, True])
def test_who_listens_to_many_resources_ends_no_process(refuses: bool) -> None:
    """Neither the one that works for another, nor the one that rests, nor one that is opened."""
    world = World(Slow, limit=3)
    calls = [world.call("a", "wait")]
    world.run()
    listening = listen(world, *MANY)
    for token in "bc":
        calls.append(world.call(token, "wait"))
        world.run()
    assert len(world.backends) == 3
    for each in world.live:
        assert each.told == [(uri, True) for uri in MANY[:SUBSCRIBED_AT_ONCE]]
        assert len(each.calls) == 1
    for token in "abc":
        for each in world.live:
            each.finish(token)
    assert [each.result["token"] for each in calls] == ["a", "b", "c"]
    settle(world, refuses=refuses)
    assert [each.told for each in world.live] == [[(uri, True) for uri in MANY]] * 3
    assert [each.most for each in world.live] == [SUBSCRIBED_AT_ONCE] * 3
    assert world.live == world.backends
    assert not listening.ends
    world.end()


@pytest.mark.parametrize("held", ["unanswered", "busy"])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("turns", range(1, 5))
def test_what_it_was_not_told_is_not_taken_back(turns: int, known: bool, held: str) -> None:
    """Who comes and goes, or goes and comes, before it could be told: it never hears of that."""
    world, process = one_process(Slow)
    listening = listen(world, "file:///x") if known else None
    settle(world)
    if held == "busy":
        process.busy = True
    else:
        listen(world, *MANY[:SUBSCRIBED_AT_ONCE])
    for _ in range(turns):
        left = listening is not None and listening.leave()
        listening = None if left else listen(world, "file:///x")
    assert process.of("file:///x") == [True] * known
    if held == "busy":
        process.busy = False
        process.say(NOTHING)
        world.run()
    settle(world)
    assert process.of("file:///x") == [True] * known + [not known] * (turns % 2)
    world.end()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("listen"), st.sets(st.sampled_from("abcd"), min_size=1)),
            st.tuples(st.just("leave"), st.integers(0, 9)),
            st.tuples(st.sampled_from(["answer", "full", "reads", "speaks"]), st.integers(0, 1)),
            st.tuples(st.just("turn"), st.none()),
        ),
        max_size=40,
    )
)
def test_in_the_end_it_is_told_of_what_is_listened_to(steps: list[tuple[str, Any]]) -> None:
    """Whenever clients come and go, and the process that works and the one that rests read."""
    world = World(Slow, limit=2)
    call = world.call("a", "wait")
    world.call("b")
    world.run()
    works, rests = processes = world.live
    # Some are unanswered already, so that two more are all that may be.
    some = MANY[: SUBSCRIBED_AT_ONCE - 2]
    streams = [(listen(world, *some), set(some))]
    for step, what in steps:
        if step == "listen":
            wanted = {"resourceSubscriptions": sorted(what)}
            other = world.request("subscriptions/listen", {"notifications": wanted})
            streams.append((other, what))
        elif step == "leave" and streams:
            streams.pop(what % len(streams))[0].leave()
        elif step == "answer":
            processes[what].answer_one()
        elif step in ("full", "reads"):
            processes[what].busy = step == "full"
        elif step == "speaks":
            processes[what].say(NOTHING)
        elif step == "turn":
            world.run()
    for each in processes:
        each.busy = False
        each.say(NOTHING)
    world.run()
    settle(world)
    listened = {uri for _, uris in streams for uri in uris}
    for each in processes:
        heard = {uri: each.of(uri) for uri, _ in each.told}
        assert {uri for uri, told in heard.items() if told[-1]} == listened
        assert each.most <= SUBSCRIBED_AT_ONCE
        # Never the same twice: it hears of a change, or of nothing.
        assert all(told == [not n % 2 for n in range(len(told))] for told in heard.values())
    assert world.live == [works, rests]
    works.finish("a")
    assert call.result["token"] == "a"
    world.end()


def test_who_listens_leaves_while_the_pipe_is_full() -> None:
    """The process is told later, once, and the call of another goes on."""
    world, process = one_process(Slow)
    listening = listen(world, "file:///a", "file:///b")
    settle(world)
    call = world.call("a", "wait")
    world.run()
    process.busy = True
    listening.leave()
    for _ in range(SUBSCRIBED_AT_ONCE):
        # What could not be said is not waited for.
        process.say(NOTHING)
    assert process.told == [("file:///a", True), ("file:///b", True)]
    process.busy = False
    process.say(NOTHING, NOTHING)
    world.run()
    process.finish("a")
    assert call.result["token"] == "a"
    assert process.told[2:] == [("file:///a", False), ("file:///b", False)]
    settle(world)
    assert len(process.told) == 4
    assert world.live == [process]
    world.end()


def test_many_resources_push_no_list_of_tools_out_of_memory() -> None:
    """However many there are, and however late the list comes."""

    class Thinks(Slow):
        room = 10_000

        def tools_list(self, message: dict[str, Any]) -> None:
            self.asked["tools"] = message

    world = World(Thinks, limit=2)
    world.request("server/discover")
    world.run()
    call = world.call("a")
    world.run()
    listen(world, *MANY[: OWN_KEPT + SUBSCRIBED_AT_ONCE])
    [process, _] = world.live
    assert process.unanswered
    Slow.tools_list(process, process.asked["tools"])
    world.run()
    assert call.result["token"] == "a"
    world.end()


class Closes(Slow):
    """Takes nothing more when it has shaken hands, and does not say so."""

    def initialize(self, message: dict[str, Any]) -> None:
        self.closed = True
        super().initialize(message)


@pytest.mark.parametrize("moment", ["opened", "heard", "answers", "speaks", "left"])
@pytest.mark.parametrize("works", [False, True])
def test_who_listens_to_a_process_that_takes_nothing_more(works: bool, moment: str) -> None:
    """Nothing raises, and nothing is left that it would be told."""
    world = World(Slow, limit=4)
    calls = [world.call("a", "wait")]
    stream = listen(world, "file:///a")
    if moment == "opened":
        world.launcher.kind = Closes
    if works or moment == "opened":
        calls += [world.call(each, "wait") for each in "bc"]
        world.run()
    process = world.backends[-1]
    process.busy = moment == "speaks"
    process.closed = moment in ("opened", "heard")
    more = listen(world, *MANY[: 1000 if moment in ("answers", "speaks") else 3])
    process.closed = True
    if moment == "left":
        stream.leave()
    elif moment == "answers":
        process.answer_one()
    process.say(NOTHING)
    assert process.receiver.sink._unsent == {}
    assert [each.refusal for each in (stream, more)] == [None] * 2
    for each in (more, *calls):
        each.leave()
    process.close_input()
    process.die()
    world.end()


# Those that leave a process that works for several.


@pytest.mark.parametrize("who", ["clients", "bridge"])
def test_a_cancellation_waits_while_the_pipe_is_full(who: str) -> None:
    """The requests of others go on; it is said later, once and in order."""
    world, process = one_process(Shared)
    other = world.call("other", "wait")
    calls = [world.call(each, "wait") for each in "abc"]
    world.run()
    expected: list[object] = ["b", "a"]
    if who == "bridge":
        # Its own list of tools, which nobody waits for any more.
        process.receiver.sink.tools.invalidate()
        process.mute = True
        calls[1] = world.call("d")
        world.run()
        expected[0] = process.heard[-1]["id"]
    process.busy = True
    calls[1].leave()
    calls[0].leave()
    assert process.cancelled == []
    assert world.live == [process]
    process.busy = process.mute = False
    process.finish("other")
    world.run()
    assert other.result["token"] == "other"
    assert process.cancelled == expected
    process.finish("c")
    world.run()
    assert calls[2].result["token"] == "c"
    assert process.cancelled == expected
    world.end()


def test_no_more_cancellations_wait_than_may() -> None:
    """The first give way: what they are of is answered after all, and that reaches nobody."""
    many = MAX_IN_FLIGHT - 1
    more = CANCELLED_KEPT - many + 10
    world, process = one_process(
        Shared, concurrency=MAX_IN_FLIGHT, max_process_requests=10_000, max_waiting_requests=4096
    )
    process.room = 10_000
    kept = world.call("kept", "wait")
    calls = [world.call(f"{number}", "wait") for number in range(many)]
    world.run()
    process.busy = True
    for each in calls[:more]:
        each.leave()
    process.busy = False
    late = [world.call(f"late {number}", "wait") for number in range(more)]
    world.run()
    process.busy = True
    for each in [*calls[more:], *late]:
        each.leave()
    assert len(process.receiver.sink._unsent) == CANCELLED_KEPT
    process.busy = False
    process.finish("0")
    world.run()
    tokens = [f"{number}" for number in range(many)] + [f"late {number}" for number in range(more)]
    assert process.cancelled == tokens[-CANCELLED_KEPT:]
    for token in ["kept", *tokens[1:10]]:
        process.finish(token)
    assert not process.calls
    assert kept.result["token"] == "kept"
    world.end()


@pytest.mark.parametrize("busy", [False, True])
def test_who_leaves_a_process_that_takes_nothing_more(busy: bool) -> None:
    """Also where its pipe was full before: nothing raises, and what waited is forgotten."""
    world, process = one_process(Shared)
    calls = [world.call(each, "wait") for each in "abc"]
    world.run()
    process.busy = busy
    calls[0].leave()
    calls[1].leave()
    process.closed = True
    if busy:
        process.say(NOTHING)
    else:
        calls[2].leave()
    world.run()
    assert not process.receiver.sink._unsent
    if busy:
        process.finish("c")
        assert calls[2].result["token"] == "c"
    process.close_input()
    process.die()
    world.run()
    assert not world.live
    world.end()
