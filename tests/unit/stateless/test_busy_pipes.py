"""The bridge's own messages to a process whose stdin pipe is full or closed."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.mcp.inflight import CANCELLED_KEPT, MAX_IN_FLIGHT
from mcpbridge.stateless.exclusive_worker import SUBSCRIBED_AT_ONCE
from mcpbridge.translation.legacy_requests import OWN_KEPT
from tests.fakes import Call, Legacy, Modern, ScriptedBackend, World

NOTHING = {"method": "notifications/x"}
MANY = [f"file:///{number}" for number in range(1000)]


class Piped(ScriptedBackend):
    """A server whose pipe holds `room` unread messages; with `closed` it takes none."""

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

    def _receive(self, message: dict[str, Any]) -> None:
        self.unread -= 1
        super()._receive(message)


class Slow(Piped, Legacy):
    """A legacy server that answers resource subscriptions only when the test says so."""

    capabilities: ClassVar[dict[str, Any]] = {"tools": {}, "resources": {"subscribe": True}}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: The URIs received, with True for a subscribe and False for an unsubscribe.
        self.told: list[tuple[str, bool]] = []
        self.unanswered: list[int] = []
        #: The largest number of unanswered requests.
        self.most = 0

    def resources_subscribe(self, message: dict[str, Any]) -> None:
        wanted = message["method"] == "resources/subscribe"
        self.told.append((message["params"]["uri"], wanted))
        self.unanswered.append(message["id"])
        self.most = max(self.most, len(self.unanswered))

    resources_unsubscribe = resources_subscribe

    def of(self, uri: str) -> list[bool]:
        """Return True for each subscribe to a resource, False for each unsubscribe."""
        return [wanted for each, wanted in self.told if each == uri]

    def answer_one(self, *, refuses: bool = False) -> None:
        if self.unanswered:
            ident = self.unanswered.pop(0)
            self.respond_with_error(ident) if refuses else self.respond(ident, {})


class Shared(Piped, Modern):
    """A modern server whose pipe can be full or closed."""

    @property
    def cancelled(self) -> list[Any]:
        """The tokens of the cancelled calls, or the ids of requests that have no token."""
        asked = {each["id"]: each["params"] for each in self.received if "id" in each}
        idents = [e["params"]["requestId"] for e in self.received if "requestId" in e["params"]]
        return [asked[each].get("arguments", {}).get("token", each) for each in idents]


def listen(world: World, *uris: str) -> Call:
    wanted = {"resourceSubscriptions": list(uris)}
    call = world.request("subscriptions/listen", {"notifications": wanted})
    world.run()
    return call


def settle(world: World, *, refuses: bool = False) -> None:
    """Let all processes answer until no request is open."""
    while any(each.unanswered for each in world.live):
        for each in world.live:
            each.answer_one(refuses=refuses)
        world.run()


def one_process(kind: type[ScriptedBackend], **options: Any) -> tuple[World, Any]:
    """Return a world with one running process and no capacity for another."""
    world = World(kind, limit=1, **options)
    world.call("first")
    world.run()
    [process] = world.live
    return world, process


# Resource subscriptions to a legacy server.


@pytest.mark.parametrize("refuses", [False, True])
def test_subscribing_to_many_resources_ends_no_process(refuses: bool) -> None:
    """Each process has at most SUBSCRIBED_AT_ONCE unanswered subscriptions, and all survive."""
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
    assert not listening.completions
    world.end()


@pytest.mark.parametrize("held", ["unanswered", "busy"])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("turns", range(1, 5))
def test_undelivered_subscription_is_not_unsubscribed(turns: int, known: bool, held: str) -> None:
    """Changes that cancel out before they can be sent never reach the process."""
    world, process = one_process(Slow)
    listening = listen(world, "file:///x") if known else None
    settle(world)
    if held == "busy":
        process.busy = True
    else:
        listen(world, *MANY[:SUBSCRIBED_AT_ONCE])
    for _ in range(turns):
        left = listening is not None and listening.disconnect()
        listening = None if left else listen(world, "file:///x")
    assert process.of("file:///x") == [True] * known
    if held == "busy":
        process.busy = False
        process.write(NOTHING)
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
def test_processes_end_up_subscribed_to_what_clients_want(steps: list[tuple[str, Any]]) -> None:
    """In whatever order clients come and go and processes read."""
    world = World(Slow, limit=2)
    call = world.call("a", "wait")
    world.call("b")
    world.run()
    works, rests = processes = world.live
    # These are unanswered, which leaves room for two more.
    some = MANY[: SUBSCRIBED_AT_ONCE - 2]
    streams = [(listen(world, *some), set(some))]
    for step, what in steps:
        if step == "listen":
            wanted = {"resourceSubscriptions": sorted(what)}
            other = world.request("subscriptions/listen", {"notifications": wanted})
            streams.append((other, what))
        elif step == "leave" and streams:
            streams.pop(what % len(streams))[0].disconnect()
        elif step == "answer":
            processes[what].answer_one()
        elif step in ("full", "reads"):
            processes[what].busy = step == "full"
        elif step == "speaks":
            processes[what].write(NOTHING)
        elif step == "turn":
            world.run()
    for each in processes:
        each.busy = False
        each.write(NOTHING)
    world.run()
    settle(world)
    listened = {uri for _, uris in streams for uri in uris}
    for each in processes:
        heard = {uri: each.of(uri) for uri, _ in each.told}
        assert {uri for uri, told in heard.items() if told[-1]} == listened
        assert each.most <= SUBSCRIBED_AT_ONCE
        # Only changes are sent, so subscribe and unsubscribe alternate.
        assert all(told == [not n % 2 for n in range(len(told))] for told in heard.values())
    assert world.live == [works, rests]
    works.finish("a")
    assert call.result["token"] == "a"
    world.end()


def test_unsubscriptions_wait_for_a_full_pipe() -> None:
    """They are sent later, once, and another client's call goes on."""
    world, process = one_process(Slow)
    listening = listen(world, "file:///a", "file:///b")
    settle(world)
    call = world.call("a", "wait")
    world.run()
    process.busy = True
    listening.disconnect()
    for _ in range(SUBSCRIBED_AT_ONCE):
        # An unsent message does not count as unanswered.
        process.write(NOTHING)
    assert process.told == [("file:///a", True), ("file:///b", True)]
    process.busy = False
    process.write(NOTHING, NOTHING)
    world.run()
    process.finish("a")
    assert call.result["token"] == "a"
    assert process.told[2:] == [("file:///a", False), ("file:///b", False)]
    settle(world)
    assert len(process.told) == 4
    assert world.live == [process]
    world.end()


def test_many_subscriptions_do_not_displace_a_pending_tools_list() -> None:
    """However many subscriptions there are, and however late the tools arrive."""

    class Thinks(Slow):
        room = 10_000

        def tools_list(self, message: dict[str, Any]) -> None:
            self.open_requests["tools"] = message

    world = World(Thinks, limit=2)
    world.request("server/discover")
    world.run()
    call = world.call("a")
    world.run()
    listen(world, *MANY[: OWN_KEPT + SUBSCRIBED_AT_ONCE])
    [process, _] = world.live
    assert process.unanswered
    Slow.tools_list(process, process.open_requests["tools"])
    world.run()
    assert call.result["token"] == "a"
    world.end()


class Closes(Slow):
    """Closes its stdin during the handshake without reporting it."""

    def initialize(self, message: dict[str, Any]) -> None:
        self.closed = True
        super().initialize(message)


@pytest.mark.parametrize("moment", ["opened", "heard", "answers", "speaks", "left"])
@pytest.mark.parametrize("works", [False, True])
def test_closed_stdin_drops_unsent_subscriptions(works: bool, moment: str) -> None:
    """Nothing raises, and no unsent message is left."""
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
        stream.disconnect()
    elif moment == "answers":
        process.answer_one()
    process.write(NOTHING)
    assert process.receiver.sink._unsent == {}
    assert [each.refusal for each in (stream, more)] == [None] * 2
    for each in (more, *calls):
        each.disconnect()
    process.close_input()
    process.die()
    world.end()


# Cancellations to a concurrent worker.


@pytest.mark.parametrize("who", ["clients", "bridge"])
def test_cancellations_wait_for_a_full_pipe(who: str) -> None:
    """They are sent later, once and in order, and other requests go on."""
    world, process = one_process(Shared)
    other = world.call("other", "wait")
    calls = [world.call(each, "wait") for each in "abc"]
    world.run()
    expected: list[object] = ["b", "a"]
    if who == "bridge":
        # The bridge's own tools/list, which no call needs any more.
        process.receiver.sink.tools.invalidate()
        process.silent = True
        calls[1] = world.call("d")
        world.run()
        expected[0] = process.received[-1]["id"]
    process.busy = True
    calls[1].disconnect()
    calls[0].disconnect()
    assert process.cancelled == []
    assert world.live == [process]
    process.busy = process.silent = False
    process.finish("other")
    world.run()
    assert other.result["token"] == "other"
    assert process.cancelled == expected
    process.finish("c")
    world.run()
    assert calls[2].result["token"] == "c"
    assert process.cancelled == expected
    world.end()


def test_unsent_cancellations_are_bounded_by_cancelled_kept() -> None:
    """The oldest are dropped; the answers to their requests reach nobody."""
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
        each.disconnect()
    process.busy = False
    late = [world.call(f"late {number}", "wait") for number in range(more)]
    world.run()
    process.busy = True
    for each in [*calls[more:], *late]:
        each.disconnect()
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
def test_closed_stdin_drops_unsent_cancellations(busy: bool) -> None:
    """Nothing raises, also if the pipe was full before."""
    world, process = one_process(Shared)
    calls = [world.call(each, "wait") for each in "abc"]
    world.run()
    process.busy = busy
    calls[0].disconnect()
    calls[1].disconnect()
    process.closed = True
    if busy:
        process.write(NOTHING)
    else:
        calls[2].disconnect()
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
