"""What the bridge itself says to a process that does not read just now, or never again."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.session.leased import SUBSCRIBED_AT_ONCE
from mcpbridge.session.shared import SharedProcess
from tests.fakes import Call, Legacy, Modern, Scripted, World

CANCELLED = "notifications/cancelled"
#: What a process says that means nothing.
NOTHING = {"method": "notifications/x"}
#: More resources than a pipe takes at once.
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

    def resources_subscribe(self, message: dict[str, Any]) -> None:
        wanted = message["method"] == "resources/subscribe"
        self.told.append((message["params"]["uri"], wanted))
        self.unanswered.append(message["id"])
        assert len(self.unanswered) <= SUBSCRIBED_AT_ONCE

    resources_unsubscribe = resources_subscribe

    def of(self, uri: str) -> list[bool]:
        """What it has heard of one resource."""
        return [wanted for each, wanted in self.told if each == uri]

    def answer_one(self, *, refuses: bool = False) -> None:
        if self.unanswered and refuses:
            self.refuse(self.unanswered.pop(0))
        elif self.unanswered:
            self.answer(self.unanswered.pop(0), {})


class SlowToList(Slow):
    """Tells its tools when it is told to; its pipe takes anything."""

    room = 10_000

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.lists: list[dict[str, Any]] = []

    def tools_list(self, message: dict[str, Any]) -> None:
        self.lists.append(message)

    def list_tools(self) -> None:
        while self.lists:
            super().tools_list(self.lists.pop())


class Shared(Piped, Modern):
    """Whose pipe can be full, or closed."""

    @property
    def cancelled(self) -> list[Any]:
        """The tokens of the calls that it heard are cancelled, or of what else their ids."""
        asked = {each["id"]: each["params"] for each in self.heard if "id" in each}
        idents = [e["params"]["requestId"] for e in self.heard if e.get("method") == CANCELLED]
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


def leased(world: World) -> Any:
    """The bridge's side of the only process."""
    [process] = world.stateless._leases._group_of
    return process


def shared(world: World) -> SharedProcess:
    [process] = world.stateless._shared._processes
    return process


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
        if listening is None:
            listening = listen(world, "file:///x")
        else:
            listening.leave()
            listening = None
    assert process.of("file:///x") == [True] * known
    process.busy = False
    process.say(NOTHING)
    world.run()
    settle(world)
    odd = bool(turns % 2)
    assert process.of("file:///x") == [True] * known + [not known] * odd
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
    # Some are unanswered already, so that a few more are all that may be.
    streams = [
        (listen(world, *MANY[: SUBSCRIBED_AT_ONCE - 2]), set(MANY[: SUBSCRIBED_AT_ONCE - 2]))
    ]
    for step, what in steps:
        if step == "listen":
            wanted = {"resourceSubscriptions": sorted(what)}
            call_ = world.request("subscriptions/listen", {"notifications": wanted})
            streams.append((call_, what))
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
        # Never the same twice: it hears of a change, or of nothing.
        assert all(told == [not n % 2 for n in range(len(told))] for told in heard.values())
    assert world.live == [works, rests]
    works.finish("a")
    assert call.result["token"] == "a"
    world.end()
