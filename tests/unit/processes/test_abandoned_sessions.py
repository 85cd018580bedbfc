"""Streamable HTTP sessions that their clients have abandoned give way to newcomers."""

from __future__ import annotations

from math import ceil
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings, share_of
from mcpbridge.config.tuning import ABANDONED_ADDRESSES, ABANDONED_LOOKS
from mcpbridge.errors import ServerBusy, TooManyOfAddress, TooManySessions, UnknownSession
from mcpbridge.processes.abandoned_sessions import _SLACK, AbandonedSessions, Newcomer
from mcpbridge.processes.address_shares import Shares
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.server import Server
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.testing import FakeLauncher, RecordingSink
from tests.examples import examples
from tests.fakes import Legacy, Modern, World, no_jitter
from tests.unit.mcp.test_stream_router import Connection

GRACE = 60.0
#: What a client is told where nobody knows when there will be room.
UNKNOWN = TooManySessions.retry_after


class Machine:
    """Limits, shares and pools that the servers of one bridge share."""

    def __init__(self, limit: int = 1000, share: int | None = None) -> None:
        self.clock = Clock()
        self.bridge_limiter = SessionLimiter(limit)
        self.shares = Shares(share_of(limit, share), self.clock, what="all", setting="m")
        self.servers: list[Served] = []
        self.pools: list[ProcessPool] = []

    def serve(self, limit: int = 2, **changes: Any) -> Served:
        self.servers.append(Served(self, limit, **changes))
        return self.servers[-1]


class Served:
    """A server with a fake launcher."""

    def __init__(self, machine: Machine, limit: int, **changes: Any) -> None:
        self.clock = machine.clock
        self.launcher = FakeLauncher()
        changes = {"idle_timeout": 0, "max_sessions_per_address": limit, **changes}
        self.limiter: Any = SessionLimiter(limit)
        self.server = Server(
            ServerSettings(command="cat", max_sessions=limit, **changes),
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=CombinedLimiter(machine.bridge_limiter, self.limiter),
            bridge_limiter=machine.bridge_limiter,
            event_store=MemoryEventStore(),
            shares=[machine.shares],
            pools=machine.pools,
        )

    def coming(self, client: str | None = None, *, sse: bool = False) -> list[Any]:
        """Request a session; the list gets the session or the failure."""
        if sse:
            opening = self.server.open_session(lambda _: RecordingSink(), client=client)
        else:
            opening = self.server.open_streamable(client)
        told: list[Any] = []
        Deferred.fromCoroutine(opening).addBoth(told.append)
        return told

    def open(self, client: str | None = None) -> BackendSession:
        [session] = self.coming(client)
        assert isinstance(session, BackendSession), session
        return session

    def refused(self, client: str | None = None) -> TooManySessions:
        [failure] = self.coming(client)
        assert isinstance(failure, Failure)
        assert isinstance(failure.value, TooManySessions)
        return failure.value

    def gone(self, session: BackendSession) -> None:
        """Nothing is left of its process."""
        cast("Any", session.backend).stopped.callback(None)

    def taken_from(
        self, session: BackendSession, client: str | None = None, *, sse: bool = False
    ) -> Any:
        """The place of a session goes to a client, once nothing is left of it."""
        told = self.coming(client, sse=sse)
        assert told == []
        assert session.reason == "its client abandoned it, and another client needed its slot"
        with pytest.raises(UnknownSession):
            self.server.find_streamable(session.ident)
        self.gone(session)
        [newer] = told
        assert isinstance(newer, BackendSession)
        return newer


def face(session: BackendSession) -> StreamableSession:
    return cast("StreamableSession", session.sink)


def reason(*sessions: BackendSession) -> list[bool]:
    """Return which of them were told to end."""
    return [bool(each.reason) for each in sessions]


def test_the_longest_idle_session_gives_way_to_a_newcomer() -> None:
    served = Machine().serve()
    first = served.open()
    served.clock.advance(1)
    second = served.open()
    served.clock.advance(1)
    face(first).touch()
    served.clock.advance(GRACE - 1)
    served.taken_from(second)
    # The other one was heard of since; only when its grace is over too it goes.
    assert served.refused().retry_after == 1
    served.clock.advance(1)
    served.taken_from(first)


@pytest.mark.parametrize("sse", [False, True])
def test_a_newcomer_of_either_transport_gets_the_place(sse: bool) -> None:
    served = Machine().serve(1)
    session = served.open()
    served.clock.advance(GRACE)
    served.taken_from(session, sse=sse)


def test_retry_after_tells_when_the_first_session_is_due() -> None:
    """In whole seconds, rounded up."""
    served = Machine().serve()
    assert served.limiter.limit == 2
    first = served.open()
    served.clock.advance(10.5)
    second = served.open()
    assert served.refused().retry_after == 50
    served.clock.advance(20)
    face(first).touch()
    assert served.refused().retry_after == 40
    face(second).touch()
    assert served.refused().retry_after == 60
    served.clock.advance(59.75)
    assert served.refused().retry_after == 1
    assert reason(first, second) == [False, False]


def test_a_session_with_a_stream_is_not_abandoned() -> None:
    served = Machine().serve(1)
    session = served.open()
    outlet = Connection()
    stream = face(session).router.open_get(outlet)
    served.clock.advance(10 * GRACE)
    assert served.refused().retry_after == UNKNOWN
    # From the end of the connection on it counts, as the transport tells it.
    face(session).router.detach(stream, outlet)
    face(session).touch()
    assert served.refused().retry_after == GRACE
    served.clock.advance(GRACE)
    served.taken_from(session)


def test_a_session_with_a_running_request_is_not_abandoned() -> None:
    """Its client may come back for the answer."""
    served = Machine().serve(1)
    session = served.open()
    outlet = Connection()
    stream = face(session).router.open_post([(1, None)], outlet)
    face(session).router.detach(stream, outlet)
    served.clock.advance(GRACE)
    assert served.refused().retry_after == UNKNOWN
    session.messages_received([b'{"jsonrpc":"2.0","id":1,"result":{}}'])
    # From the answer on, for which it may still come.
    assert served.refused().retry_after == GRACE
    served.clock.advance(GRACE)
    served.taken_from(session)


def test_a_grace_of_zero_turns_it_off() -> None:
    served = Machine().serve(1, abandoned_grace=0)
    session = served.open()
    served.clock.advance(10 * GRACE)
    assert served.refused().retry_after == UNKNOWN
    assert reason(session) == [False]
    assert len(served.server.pool.abandoned) == 0


def test_a_shorter_idle_timeout_is_the_grace() -> None:
    """A session that `idle_timeout` would end need not be spared."""
    served = Machine().serve(1, idle_timeout=20)
    served.clock.advance(1)
    session = served.open()
    assert served.refused().retry_after == 20
    served.clock.pump([4] * 5)
    served.taken_from(session).life.end("over")


def test_a_foreign_limiter_ends_no_session() -> None:
    """Nobody knows why it refuses, so ending a session may not help."""
    served = Machine().serve(2)
    session = served.open()
    served.clock.advance(GRACE)
    served.limiter.acquire = lambda: None
    assert served.refused().retry_after == UNKNOWN
    assert reason(session) == [False]


# The addresses whose sessions give way.


def test_sessions_of_the_newcomers_address_give_way_first() -> None:
    served = Machine().serve(4)
    theirs = [served.open("b"), served.open("b")]
    served.clock.advance(1)
    ours = [served.open("a"), served.open("a")]
    served.clock.advance(GRACE)
    served.taken_from(ours[0], "a")
    assert reason(*theirs, ours[1]) == [False] * 3


def test_other_addresses_give_way_only_above_an_equal_part() -> None:
    """With six sessions and three addresses the part is two."""
    served = Machine().serve(6)
    one, two = [[served.open(client) for _ in range(3)] for client in "ab"]
    served.clock.advance(GRACE)
    served.taken_from(one[0], "c")
    served.taken_from(two[0], "c")
    # What another one has itself nobody else has more of.
    assert served.refused("c").retry_after == GRACE
    served.taken_from(one[1], "d")
    assert reason(one[2], *two[1:]) == [False] * 3


def test_an_address_within_its_part_keeps_its_sessions() -> None:
    served = Machine().serve(3)
    sessions = [served.open(client) for client in "abc"]
    served.clock.advance(10 * GRACE)
    assert served.refused("d").retry_after == UNKNOWN
    assert reason(*sessions) == [False] * 3
    served.taken_from(sessions[1], "b")


def test_the_address_with_most_sessions_gives_way() -> None:
    served = Machine().serve(7)
    few = [served.open("few") for _ in range(3)]
    many = [served.open("many") for _ in range(4)]
    served.clock.advance(GRACE)
    for each in many[:3]:
        face(each).touch()
    served.taken_from(many[3], "c")
    # Then who has nearly as many, where none of the first one's may be ended.
    served.taken_from(few[0], "c")
    assert reason(*few[1:], *many[:3]) == [False] * 5


def test_exempt_addresses_keep_their_sessions() -> None:
    """`exempt_addresses` may have everything."""
    served = Machine().serve(2)
    sessions = [served.open(None), served.open(None)]
    served.clock.advance(10 * GRACE)
    assert served.refused("a").retry_after == UNKNOWN
    served.taken_from(sessions[0], None)


def test_an_exempt_newcomer_replaces_those_above_their_part() -> None:
    served = Machine().serve(2)
    sessions = [served.open("a"), served.open("a")]
    served.clock.advance(GRACE)
    served.taken_from(sessions[0], None)
    assert served.refused(None).retry_after == GRACE
    assert reason(sessions[1]) == [False]


@pytest.mark.parametrize("over_all", [False, True])
def test_a_share_that_is_full_of_abandoned_sessions(over_all: bool, log_lines: list[str]) -> None:
    """promise: its own address gets one of its own, and nobody is told of a refusal."""
    machine = Machine(share=2 if over_all else None)
    served = machine.serve(8, max_sessions_per_address=8 if over_all else 2)
    beside = machine.serve() if over_all else served
    first = beside.open("a")
    served.clock.advance(2)
    second = served.open("a")
    error = served.refused("a")
    assert (type(error), error.retry_after) == (TooManyOfAddress, GRACE - 2)
    told = len(log_lines)
    served.clock.advance(GRACE - 2)
    coming = served.coming("a")
    assert reason(first, second) == [True, False]
    beside.gone(first)
    assert isinstance(coming[0], BackendSession)
    assert not [line for line in log_lines[told:] if "has reached its share" in line]


def test_a_full_share_of_one_server_ends_a_session_of_that_server() -> None:
    """The end of another server's session would not help."""
    machine = Machine()
    served, beside = machine.serve(4, max_sessions_per_address=1), machine.serve()
    other = beside.open("a")
    served.clock.advance(GRACE)
    served.open("a")
    assert served.refused("a").retry_after == GRACE
    assert reason(other) == [False]


# Several servers.


def test_a_session_of_another_server_gives_way_at_the_bridges_limit() -> None:
    machine = Machine(2)
    ours, theirs = machine.serve(), machine.serve()
    sessions = [theirs.open(), theirs.open()]
    machine.clock.advance(30)
    face(sessions[0]).touch()
    assert ours.refused().retry_after == 30
    machine.clock.advance(30)
    coming = ours.coming()
    assert reason(*sessions) == [False, True]
    theirs.gone(sessions[1])
    assert isinstance(coming[0], BackendSession)


def test_a_session_of_another_server_stays_at_the_servers_own_limit() -> None:
    machine = Machine(2)
    ours, theirs = machine.serve(1), machine.serve(1)
    theirs.open()
    machine.clock.advance(GRACE)
    ours.open()
    assert ours.refused().retry_after == GRACE


# The order in which processes give way.


def test_a_spare_process_gives_way_before_a_session() -> None:
    machine = Machine(2)
    ours, theirs = machine.serve(), machine.serve(1, warm=1)
    session = ours.open()
    theirs.server.start()
    machine.clock.advance(GRACE)
    [spare] = theirs.launcher.backends
    coming = ours.coming()
    assert reason(session) == [False]
    spare.stopped.callback(None)
    assert isinstance(coming[0], BackendSession)
    theirs.server.stop()


def test_the_wait_for_an_ending_session_is_bounded() -> None:
    served = Machine().serve(1)
    session = served.open()
    served.clock.advance(GRACE)
    told = served.coming()
    served.clock.advance(100)
    assert told[0].check(TooManySessions)
    served.gone(session)
    assert served.limiter.taken == 0


def test_a_newcomer_may_leave_while_a_session_ends_for_it() -> None:
    served = Machine().serve(1)
    session = served.open()
    served.clock.advance(GRACE)
    opening = Deferred.fromCoroutine(served.server.open_streamable(None))
    opening.addErrback(lambda _: None)
    opening.cancel()
    served.gone(session)
    assert served.limiter.taken == 0
    assert served.clock.getDelayedCalls() == []


def test_one_of_many_newcomers_gets_the_place() -> None:
    served = Machine().serve(1)
    session = served.open()
    served.clock.advance(GRACE)
    coming = [served.coming() for _ in range(5)]
    assert [len(told) for told in coming] == [0, 1, 1, 1, 1]
    served.gone(session)
    assert isinstance(coming[0][0], BackendSession)


# What the fast path is told.


def test_refusal_tells_when_to_retry_without_opening_a_session() -> None:
    served = Machine().serve(2)
    first, second = served.open("a"), served.open("b")
    served.clock.advance(10)
    face(second).touch()
    asked: list[str] = []

    def client(name: str) -> Any:
        def tell() -> str:
            asked.append(name)
            return name

        return tell

    for name, seconds in (("a", 50), ("b", 60), ("c", UNKNOWN)):
        refusal = served.server.refusal(client(name))
        assert refusal is not None
        assert refusal.retry_after == seconds
    served.clock.advance(50)
    assert served.server.refusal(client("a")) is None
    assert served.server.refusal(client("b")) is not None
    served.taken_from(first, "a")
    assert served.server.pool.unused() is None
    second.life.end("over")
    served.gone(second)
    asked.clear()
    # While there is a permit the address does not matter.
    assert served.server.refusal(client("a")) is None
    assert asked == []


# Requests of 2026-07-28.


class Beside:
    """A world of stateless requests in which `/mcp` sessions hold all permits."""

    def __init__(self, kind: Any, limit: int, **changes: Any) -> None:
        self.world = World(kind, limit, **changes)
        self.faces: list[float | None] = []

    def hold(self) -> BackendSession:
        """A session takes a place."""
        taken: list[Any] = []
        world = self.world
        Deferred.fromCoroutine(world.pool.take(Newcomer(None))).addCallback(taken.append)
        [session] = taken
        now = world.clock.seconds()
        world.pool.abandoned.add(session, None, lambda: now)
        session.forget = world.pool.abandoned.remove
        return cast("BackendSession", session)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_a_stateless_request_replaces_an_abandoned_session(kind: Any, known: bool) -> None:
    beside = Beside(kind, 1, known=known)
    world = beside.world
    session = beside.hold()
    call = world.call("a")
    assert isinstance(call.refusal, ServerBusy)
    assert call.refusal.retry_after == GRACE
    world.run(GRACE)
    call = world.call("a")
    world.run(Legacy.stop_seconds)
    assert reason(session) == [True]
    world.run(2 * Legacy.stop_seconds)
    assert call.result["token"] == "a"
    world.end()


@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_a_queued_request_proceeds_when_a_session_may_be_ended(kind: Any) -> None:
    beside = Beside(kind, 2, concurrency=1)
    world = beside.world
    beside.hold()
    world.run(GRACE - 5)
    world.call("long", "wait")
    world.run()
    waiting = world.call("b")
    world.run(4)
    assert not waiting.completions
    world.run(1)
    world.run(Legacy.stop_seconds)
    assert waiting.result["token"] == "b"
    world.end()


@pytest.mark.parametrize("leaves", [False, True])
def test_a_request_replaces_an_abandoned_session_of_its_own_address(leaves: bool) -> None:
    beside = Beside(Legacy, 2, max_sessions_per_address=1)
    world = beside.world
    world.client = "a"
    held: list[Any] = []
    Deferred.fromCoroutine(world.pool.claim("a")).addCallback(held.append)
    Deferred.fromCoroutine(world.pool.take(Newcomer("a"))).addCallback(held.append)
    claim, session = held
    session.ended.addCallback(lambda _: claim.release())
    began = world.clock.seconds()
    world.pool.abandoned.add(session, "a", lambda: began)
    session.forget = world.pool.abandoned.remove
    call = world.call("x")
    assert isinstance(call.refusal, ServerBusy)
    assert call.refusal.retry_after == GRACE
    world.run(GRACE)
    call = world.call("x", connection=ClientConnection())
    assert reason(session) == [True]
    if leaves:
        call.disconnect(aborted=False)
    world.run(Legacy.stop_seconds)
    world.run(1)
    if not leaves:
        assert call.result["token"] == "x"
    assert len(world.shares) == 0
    world.end()


# The cost of the search.


class Counted:
    """A session in the heap, and how often it was looked at."""

    looks = 0

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.heard: float | None = clock.seconds()

    def last_heard(self) -> float | None:
        Counted.looks += 1
        return self.heard


def index(count: int, address: str | None = "a") -> tuple[Clock, AbandonedSessions, list[Any]]:
    clock = Clock()
    sessions: list[Any] = [Counted(clock) for _ in range(count)]
    found = AbandonedSessions(ServerSettings(command="x", idle_timeout=0))
    for each in sessions:
        found.add(each, address, each.last_heard)
    return clock, found, sessions


def test_a_flood_of_refusals_does_not_look_at_all_sessions() -> None:
    """Each is looked at once per grace, and each client causes at most `ABANDONED_LOOKS` more."""
    clock, found, sessions = index(1000)
    for each in sessions:
        each.heard = None
    clock.advance(GRACE)
    Counted.looks = 0
    assert found.first_of("a", clock.seconds()) is None
    assert Counted.looks <= len(sessions) + ABANDONED_LOOKS
    for _ in range(100):
        clock.advance(0.01)
        Counted.looks = 0
        assert found.first_of("a", clock.seconds()) is None
        assert Counted.looks <= ABANDONED_LOOKS


def test_an_abandoned_session_is_found_among_many_in_use() -> None:
    """By the first client that is refused, or by one of the next."""
    clock, found, sessions = index(10 * ABANDONED_LOOKS)
    for each in sessions[:-1]:
        each.heard = None
    clock.advance(10)
    told = [found.first_of("a", clock.seconds()) for _ in range(11)]
    assert told[0] is None
    assert told[-1] is not None
    assert (told[-1].at, told[-1].session) == (GRACE, sessions[-1])


def test_ended_sessions_are_removed_from_the_heap() -> None:
    """`_SLACK` may stay, however many come and go while one session stays in use."""
    clock, found, [stays] = index(1)
    stays.heard = None
    for _ in range(1000):
        each: Any = Counted(clock)
        found.add(each, "a", each.last_heard)
        found.remove(each)
        found.remove(each)
        assert len(found._of["a"]._heap) <= _SLACK + 2
    assert len(found) == 1
    found.remove(stays)
    assert (len(found), found._of, found._fullest._by_count) == (0, {}, {})


def test_at_most_abandoned_addresses_are_looked_at() -> None:
    """Those with most sessions."""
    clock = Clock()
    found = AbandonedSessions(ServerSettings(command="x"))
    for number in range(2 * ABANDONED_ADDRESSES):
        for _ in range(number + 1):
            each: Any = Counted(clock)
            found.add(each, f"{number}", each.last_heard)
    fullest = list(found.fullest())
    assert len(fullest) == ABANDONED_ADDRESSES
    assert fullest[0] == f"{2 * ABANDONED_ADDRESSES - 1}"


@settings(max_examples=examples(200))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "touch", "use", "leave", "end", "look"]),
            st.integers(0, 7),
            st.sampled_from([0.0, 1.0, 25.0, 61.0]),
        ),
        max_size=60,
    )
)
def test_the_session_that_was_left_longest_ago_gives_way(
    steps: list[tuple[str, int, float]],
) -> None:
    """For any history of few enough sessions to look at all of them."""
    clock, found, sessions = index(0)
    for what, which, seconds in steps:
        each: Any = sessions[which % len(sessions)] if sessions else None
        if what == "open" and len(sessions) < 8:
            each = Counted(clock)
            sessions.append(each)
            found.add(each, "a", each.last_heard)
        elif each is not None and what in ("touch", "leave"):
            each.heard = clock.seconds()
        elif each is not None and what == "use":
            each.heard = None
        elif each is not None and what == "end":
            sessions.remove(each)
            found.remove(each)
        left = [each.heard for each in sessions if each.heard is not None]
        due = found.first_of("a", clock.seconds())
        if not left:
            assert due is None
        elif min(left) < clock.seconds():
            assert due is not None
            assert due.at == min(left) + GRACE
            assert cast("Any", due.session).heard == min(left)
            assert ceil(due.at) >= due.at
        clock.advance(seconds)
