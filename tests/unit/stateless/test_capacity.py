"""Which waiting request gets a process, and what wakes it when there is capacity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.tuning import CANCEL_SECONDS, RELISTEN_SECONDS
from mcpbridge.errors import BackendFailed, BridgeError, CannotStart, HeaderMismatch, ServerBusy
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.request_queue import RequestQueue, Ticket, shielded
from tests.examples import examples
from tests.fakes import CAPABILITIES, Call, Legacy, Modern, ScriptedBackend, World

both = pytest.mark.parametrize("kind", [Legacy, Modern])


def two_servers(kind: type[ScriptedBackend], limit: int) -> tuple[World, World]:
    """Return two servers that share `limit` processes, with one request at a time on each."""
    one = World(kind, concurrency=1)
    one.bridge_limiter.limit = limit
    return one, World(kind, concurrency=1, beside=one)


@pytest.mark.parametrize(("kind", "beside"), [(Legacy, False), (Legacy, True), (Modern, True)])
def test_request_that_evicts_a_process_takes_its_capacity(
    kind: type[ScriptedBackend], beside: bool
) -> None:
    """Also when another request of the evicted group is queued meanwhile."""
    one, other = two_servers(kind, 1)
    if not beside:
        other = one
    one.call("a", capabilities={})
    one.run()
    first, later = other.call("b"), one.call("c", capabilities={})
    one.run(ScriptedBackend.stop_seconds)
    assert (first.result["token"], later.completions) == ("b", 0)
    one.run(ScriptedBackend.stop_seconds)
    assert later.result["token"] == "c"
    other.stop()
    one.end()


@both
def test_session_that_evicts_a_process_takes_its_capacity(kind: type[ScriptedBackend]) -> None:
    world = World(kind, limit=1)
    world.call("a")
    world.run()
    taken: list[Any] = []
    Deferred.fromCoroutine(world.pool.take()).addBoth(taken.append)
    later = world.call("b")
    world.run(ScriptedBackend.stop_seconds)
    [session] = taken
    assert isinstance(session, BackendSession)
    assert not later.completions
    world.end()


def test_ticket_keeps_its_turn_in_a_full_queue() -> None:
    """A request that was woken in vain may wait again even if the queue is full by then."""
    queue = RequestQueue(Clock(), 1, 10)
    ticket = Ticket()
    told: list[Any] = []

    def wait(ticket: Ticket) -> None:
        Deferred.fromCoroutine(queue.wait(ticket, lambda: True, None)).addBoth(told.append)

    wait(ticket)
    queue.wake()
    wait(Ticket())
    wait(ticket)
    assert (told, len(queue)) == ([None], 2)
    wait(Ticket())
    assert told.pop().check(ServerBusy)
    queue.wake()
    assert told == [None] * 3


# What wakes a waiting request.


@both
def test_idle_process_of_another_server_is_evicted_for_a_waiting_request(
    kind: type[ScriptedBackend],
) -> None:
    one, other = two_servers(kind, 2)
    one.call("a", "wait")
    other.call("b", "wait")
    one.run()
    waiting = other.call("c")
    one.backends[0].finish("a")
    one.run(ScriptedBackend.stop_seconds)
    assert waiting.result["token"] == "c"
    other.stop()
    one.end()


@both
def test_freed_process_is_told_only_to_servers_whose_requests_wait(
    kind: type[ScriptedBackend],
) -> None:
    """A bridge may have a hundred servers, and a process is freed for each request."""
    one, other = two_servers(kind, 2)
    told: list[World] = []
    for world in (one, other):
        freed = world.capacity_freed

        def record(world: World = world, freed: Callable[[], None] = freed) -> None:
            told.append(world)
            freed()

        world.capacity_freed = record  # type: ignore[method-assign]
    one.call("a")
    one.run()
    assert one in told
    assert other not in told
    for world, token in ((one, "b"), (other, "c")):
        world.call(token, "wait")
        world.run()
    waiting = other.call("d")
    one.backends[0].finish("b")
    assert other in told
    one.run(ScriptedBackend.stop_seconds)
    assert waiting.result["token"] == "d"
    told.clear()
    other.stop()
    assert one not in told
    one.end()


@both
def test_waiting_request_gets_the_spare_process_that_started(kind: type[ScriptedBackend]) -> None:
    world = World(kind, limit=1, warm=1)
    world.launcher.delays_launches = True
    world.pool.start()
    world.run(1)
    call = world.call("a")
    world.launcher.finish()
    world.run()
    assert call.result["token"] == "a"
    world.end()


@both
def test_failed_launch_of_another_server_frees_its_capacity(kind: type[ScriptedBackend]) -> None:
    one, other = two_servers(kind, 2)
    other.call("b", "wait")
    one.launcher.delays_launches = True
    failing, waiting = one.call("a"), other.call("c")
    one.run(1)
    assert not waiting.completions
    [(launched, _)] = one.launcher.waiting
    launched.errback(Failure(CannotStart("no")))
    one.run()
    assert isinstance(failing.refusal, BackendFailed)
    assert waiting.result["token"] == "c"
    other.stop()
    one.end()


@pytest.mark.parametrize("beside", [False, True])
def test_process_is_evicted_once_its_last_subscriber_left(beside: bool) -> None:
    """The process is not needed for subscriptions any more."""
    one, other = two_servers(Legacy, 2)
    if not beside:
        other = one
    listening = one.listen(identity="x")
    other.call("b", "wait")
    one.run()
    waiting = other.call("a")
    one.run(1)
    assert not waiting.completions
    listening.disconnect()
    one.run(ScriptedBackend.stop_seconds)
    assert waiting.result["token"] == "a"
    other.stop()
    one.end()


@pytest.mark.parametrize("known", [True, False])
@both
def test_request_waits_for_the_capacity_of_a_closing_process(
    kind: type[ScriptedBackend], known: bool
) -> None:
    """It is not refused: a process that closed its stdin is about to end."""
    world = World(kind, limit=1)
    world.call("a")
    world.run()
    [draining] = world.backends
    draining.close_input()
    if not known:
        world.era.modern = None
    call = world.call("b")
    world.run()
    assert not call.completions
    draining.die()
    world.run(1)
    world.run(1)
    assert call.result["token"] == "b"
    world.end()


class Rude(Legacy):
    """A legacy server that does not answer cancelled requests."""

    answers_cancelled = False


@settings(max_examples=examples(150))
@given(
    st.tuples(*[st.sampled_from([Legacy, Rude, Modern])] * 2),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.fixed_dictionaries(
        {
            "warm": st.integers(0, 1),
            "idle_timeout": st.sampled_from([0.0, 30.0]),
            "concurrency": st.sampled_from([1, 2]),
            "reuse": st.sampled_from(["connection", "identity", "never"]),
            "max_process_requests": st.sampled_from([1, 3, 1000]),
        }
    ),
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from(["echo", "wait", "ask", "list", "listen", "leave", "die", "finish"]),
            st.integers(0, 9),
            st.sampled_from([0, 0.06, 0.5, 3]),
        ),
        min_size=10,
        max_size=40,
    ),
)
def test_no_request_waits_while_there_is_capacity(
    kinds: tuple[type[ScriptedBackend], type[ScriptedBackend]],
    limits: tuple[int, int, int],
    changes: dict[str, Any],
    steps: list[tuple[int, str, int, float]],
) -> None:
    """Two servers share their capacity; check after each step of any sequence of events."""
    one = World(kinds[0], limits[0], queue_timeout=1e5, **changes)
    both = [one, World(kinds[1], limits[1], beside=one, queue_timeout=1e5, **changes)]
    one.bridge_limiter.limit = limits[2]
    calls: list[Call] = []
    connections = [ClientConnection() for _ in range(4)]
    for each in both:
        each.pool.start()
    for whose, what, which, seconds in steps:
        world = both[whose]
        capabilities: dict[str, Any] = CAPABILITIES if which % 2 else {}
        level = "info" if which > 6 else None
        if what == "list":
            calls.append(world.request("resources/list", capabilities=capabilities))
        elif what == "listen":
            calls.append(world.listen(capabilities=capabilities))
        elif what == "leave":
            for call in calls[-1 - which :][:1]:
                call.disconnect()
        elif what in ("die", "finish"):
            for process in world.live[which % 3 :][:1]:
                tokens = [each["token"] for each in process.calls.values()]
                process.die() if what == "die" else [process.finish(each) for each in tokens]
        else:
            connection = connections[which % 4]
            if which > 7:
                connection.lose()
                connections[which % 4] = ClientConnection()
            token = f"{len(calls)}"
            calls.append(
                world.call(
                    token, what, capabilities=capabilities, level=level, connection=connection
                )
            )
        world.run(seconds)
        for each in both:
            waiting = each.stateless._queue._waiting.values()
            assert not [each.place for each in waiting if each.may_proceed()]
    both[1].stop()
    one.end()
    assert [call.completions for call in calls] == [not call.disconnected for call in calls]


# Which process serves a request.


def test_failed_relaunch_does_not_remove_a_newer_group() -> None:
    """The launch for subscribers who left fails after a new group with the same key has formed."""
    world = World(Legacy)
    listening = world.listen()
    world.run()
    world.backends[0].die()
    world.launcher.delays_launches = True
    world.run(RELISTEN_SECONDS)
    [(launched, _)] = world.launcher.waiting
    listening.disconnect()
    world.launcher.delays_launches = False
    world.call("a")
    world.run()
    launched.errback(Failure(CannotStart("no")))
    call = world.call("b")
    world.run()
    assert call.result["token"] == "b"
    assert len(world.backends) == 3
    world.end()


def test_max_process_requests_bounds_a_concurrent_worker() -> None:
    """Also for requests that all wait for the bridge's own first request."""
    world = World(Modern, limit=2, max_process_requests=2)
    for number in range(5):
        world.call(f"{number}", "wait")
    world.run()
    assert [len(each.calls) for each in world.backends] == [2, 2]
    world.end()


def test_logging_request_is_served_under_steady_load() -> None:
    world = World(Modern, limit=1)
    calls = [world.call("0", "wait")]
    world.run()
    [backend] = world.backends
    logged = world.call("logged", level="info")
    for number in range(1, 10):
        calls.append(world.call(f"{number}", "wait"))
        world.run()
        backend.finish(f"{number - 1}")
        world.run()
    assert logged.result["token"] == "logged"
    impatient = world.call("impatient", level="info")
    waiting = world.call("10")
    world.run()
    assert not waiting.completions
    # A request whose client left holds nobody back.
    impatient.disconnect()
    world.run()
    assert waiting.result["token"] == "10"
    backend.finish("9")
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(10)]
    world.end()


def test_waiting_logging_requests_do_not_starve_others() -> None:
    """A long call keeps the logging requests waiting, but other requests are served."""
    world = World(Modern, limit=1)
    long = world.call("long", "wait")
    world.run()
    logged, calls = [], []
    for number in range(5):
        logged.append(world.call(f"logged {number}", level="info"))
        world.run(1)
        calls.append(world.call(f"{number}"))
        world.run(3)
    world.run(world.settings.queue_timeout)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(5)]
    assert all(isinstance(each.refusal, ServerBusy) for each in logged)
    assert not long.completions
    world.end()


@pytest.mark.parametrize("level", [None, "debug"])
def test_subscribers_do_not_affect_logging_requests(level: str | None) -> None:
    """No call joins a process that logs for another; a subscription's log level does not count."""
    world = World(Modern, limit=1)
    logged = world.call("logged", "wait", level="debug")
    world.run()
    world.listen(level=level)
    other = world.call("other", "wait")
    world.run()
    [process] = world.backends
    assert len(process.calls) == 1
    logged.disconnect()
    world.run()
    # It may still log for the cancelled request, which does not concern subscribers.
    world.listen(level=level)
    world.run()
    assert len(process.calls) == 1
    third = world.call("third")
    world.run()
    assert third.result["token"] == "third"
    process.finish("other")
    assert other.result["token"] == "other"
    world.listen(level=level)
    world.run(1)
    assert world.backends == [process]
    world.end()


def test_process_with_a_cancelled_logging_request_is_replaced_for_the_next() -> None:
    """Only another logging request replaces it, even if it has a subscriber."""
    world = World(Modern, limit=1)
    world.listen()
    left = world.call("a", "wait", level="debug")
    world.run()
    left.disconnect()
    ordinary = world.call("b", "wait")
    logged = world.call("c", "wait", level="debug")
    world.run(1)
    [first] = world.backends
    first.finish("b")
    world.run(ScriptedBackend.stop_seconds)
    assert ordinary.result["token"] == "b"
    [_, second] = world.backends
    second.write({"method": "notifications/message", "params": {"level": "info", "data": "x"}})
    second.finish("c")
    assert [each.get("method") for each in logged.lines] == ["notifications/message", None]
    world.end()


@pytest.mark.parametrize("leaves", [True, False])
def test_exclusive_worker_that_does_not_list_its_tools_ends(leaves: bool) -> None:
    world = World(type("Deaf", (Legacy,), {"tools_list": None}))
    call = world.call("a")
    world.run()
    if leaves:
        call.disconnect()
        world.run(CANCEL_SECONDS)
    else:
        world.run(world.settings.start_timeout)
        assert isinstance(call.refusal, BackendFailed)
    assert not world.live
    world.end()


def test_concurrent_worker_that_does_not_list_its_tools_takes_no_new_request() -> None:
    """It ends when its current requests are done."""
    world = World(type("Deaf", (Modern,), {"tools_list": None}))
    busy = world.request("prompts/get", {"name": "p"})
    call = world.call("a")
    world.run()
    [hung] = world.backends
    world.run(world.settings.start_timeout)
    assert isinstance(call.refusal, BackendFailed)
    world.request("prompts/get", {"name": "q"})
    world.run()
    [_, other] = world.backends
    assert other.received[-1]["params"]["name"] == "q"
    assert not hung.ended
    busy.disconnect()
    assert hung.ended
    world.end()


class Paged(Legacy):
    """Lists its tools in two pages, and after the first page only when the test says so."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.lists: list[dict[str, Any]] = []

    def tools_list(self, message: dict[str, Any]) -> None:
        self.lists.append(message)
        if len(self.lists) == 1 and "cursor" not in message["params"]:
            self.tell()

    def tell(self) -> None:
        asked, self.lists = self.lists, []
        region = {"type": "string", "x-mcp-header": "Region"}
        schema = {"type": "object", "properties": {"region": region}}
        page = {"tools": [{"name": "t", "inputSchema": schema}], "nextCursor": "2"}
        for message in asked:
            self.respond(message["id"], {"tools": []} if "cursor" in message["params"] else page)


def test_partial_tools_list_is_not_taken_as_complete() -> None:
    """The call that needed it has left; the next call asks again to check its headers."""
    world = World(Paged, limit=1)
    left = world.call("a")
    world.run()
    left.disconnect()
    call = world.request("tools/call", {"name": "t", "arguments": {"token": "b", "region": "eu"}})
    world.run()
    for _ in range(2):
        [process] = world.backends
        process.tell()
        world.run()
    assert isinstance(call.refusal, HeaderMismatch)
    world.end()


# A launch outlives the request that caused it: of a legacy server, of a modern server, and
# during the probe.
ways = pytest.mark.parametrize(("kind", "known"), [(Legacy, True), (Modern, True), (Modern, False)])


@ways
def test_launch_survives_clients_that_give_up(kind: type[ScriptedBackend], known: bool) -> None:
    """The server starts once, and serves the client that is there when it is ready."""
    world = World(kind, limit=1, concurrency=1, known=known, probe_timeout=30)
    world.launcher.delays_launches = True
    for token in "ab":
        call = world.call(token)
        world.run(5)
        call.disconnect()
    world.launcher.finish()
    world.run()
    last = world.call("c")
    world.run()
    assert last.result["token"] == "c"
    assert len(world.backends) == 1
    world.end()


@pytest.mark.parametrize(
    ("kind", "known", "seconds"),
    [(Modern, None, 15), (Modern, False, 8), (Legacy, None, 15), (Legacy, True, 8)],
)
def test_probe_survives_clients_that_give_up(
    kind: type[ScriptedBackend], known: bool | None, seconds: int
) -> None:
    """
    Also if the server starts more slowly than its clients wait, and its era is not the one
    remembered, or guessed from its silence.
    """

    class Slow(kind):  # type: ignore[misc,valid-type]
        def _receive(self, message: dict[str, Any]) -> None:
            first = message.get("method") in ("initialize", "server/discover")
            self.clock.callLater(seconds if first else 0, super()._receive, message)

    world = World(Slow, limit=2, known=False)
    world.era.modern = known
    for _ in range(12):
        call = world.call("a")
        for _ in range(6):
            world.run(1)
        if call.completions:
            break
        call.disconnect()
    assert call.result["token"] == "a"
    world.end()


def test_changed_server_is_probed_again_after_its_client_left() -> None:
    """The server does not answer a request that no client waits for any more."""

    class Older(Legacy):
        def discover(self, message: dict[str, Any]) -> None:
            """Ignore the unknown method."""

    world = World(Modern)
    world.launcher.kind = Older
    call = world.call("a")
    world.run(1)
    call.disconnect()
    world.run(world.settings.start_timeout)
    assert world.era.modern is None
    world.end()


@pytest.mark.parametrize("how", ["delays_launches", "silent"])
@ways
def test_abandoned_launch_ends_with_the_bridge(
    kind: type[ScriptedBackend], known: bool, how: str
) -> None:
    world = World(kind, known=known)
    setattr(world.launcher, how, True)
    call = world.call("a")
    world.run()
    call.disconnect()
    world.run(1)
    assert world.limiter.taken == 1
    world.end()


@ways
def test_defect_in_an_abandoned_launch_is_logged(
    kind: type[ScriptedBackend], known: bool, logged_failures: list[Failure]
) -> None:
    """The next request is served."""
    world = World(kind, known=known)
    world.launcher.delays_launches = True
    world.call("a").disconnect()
    world.launcher.delays_launches = False
    [(launched, _)] = world.launcher.waiting
    defect = RuntimeError("a defect")
    launched.errback(Failure(defect))
    assert [each.value for each in logged_failures] == [defect]
    call = world.call("b")
    world.run()
    assert call.result["token"] == "b"
    world.end()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("outcome", [None, ServerBusy("full"), RuntimeError("a defect")])
def test_shielded_work_survives_cancellation_of_its_caller(
    outcome: Exception | None, left: bool, logged_failures: list[Failure]
) -> None:
    working: Deferred[None] = Deferred()
    told: list[Any] = []
    unwanted: list[None] = []
    untold: list[BridgeError] = []

    async def work() -> None:
        await working

    asking = Deferred.fromCoroutine(shielded(work(), unwanted.append, untold.append))
    asking.addErrback(lambda failure: failure.value).addCallback(told.append)
    if left:
        asking.cancel()
    working.callback(None) if outcome is None else working.errback(outcome)
    if not left:
        asking.cancel()  # too late
        assert (told, unwanted, untold, logged_failures) == ([outcome], [], [], [])
        return
    assert isinstance(told[0], CancelledError)
    assert unwanted == [None] * (outcome is None)
    assert untold == ([outcome] if isinstance(outcome, ServerBusy) else [])
    defects = [outcome] if isinstance(outcome, RuntimeError) else []
    assert [each.value for each in logged_failures] == defects
