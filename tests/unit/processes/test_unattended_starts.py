"""Processes that go on starting after their clients have left."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mcpbridge.config.tuning import COMPLAIN_SECONDS, UNATTENDED_STARTS
from mcpbridge.errors import ShuttingDown, TooManySessions, UnknownSession
from mcpbridge.processes.backend_session import BackendSession
from tests.unit.processes.test_abandoned_sessions import Machine, Served

INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25"}}'
#: What a server that speaks only 2026-07-28 says.
REFUSAL = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}'
START = 30.0

both = pytest.mark.parametrize("sse", [False, True])


def begun(served: Served, client: str | None = None, *, sse: bool = False) -> BackendSession:
    """Open a session whose client has sent `initialize`."""
    [session] = served.coming(client, sse=sse)
    assert isinstance(session, BackendSession)
    session.send_to_backend([INITIALIZE])
    return session


def leave(served: Served, session: BackendSession) -> None:
    served.server.client_left(session, "the client left")


def runs(session: BackendSession) -> bool:
    """Return whether its process was not told to end."""
    return "stop" not in cast("Any", session.backend).events


def kept(served: Served, client: str | None = None, *, sse: bool = False) -> BackendSession:
    session = begun(served, client, sse=sse)
    leave(served, session)
    assert runs(session)
    return session


@both
@pytest.mark.parametrize("said", [ANSWER, REFUSAL])
def test_an_unattended_process_ends_when_it_has_started(sse: bool, said: bytes) -> None:
    served = Machine().serve(10)
    session = kept(served, sse=sse)
    for find in (served.server.find, served.server.find_streamable):
        with pytest.raises(UnknownSession):
            find(session.ident)
    assert served.limiter.taken == 1
    served.clock.advance(6)
    session.messages_received([said])
    served.clock.advance(0)
    assert not runs(session)
    assert session.reason == "the client left; its process was kept: it has started"
    assert served.server.pool.backoff.successes == (said is ANSWER)
    served.gone(session)
    newer = served.open()
    assert newer.backend is not session.backend
    assert cast("Any", newer.backend).sent == []
    assert served.limiter.taken == 1
    newer.life.end("over")
    served.gone(newer)
    assert served.clock.getDelayedCalls() == []


@both
def test_an_unattended_process_ends_after_start_timeout(sse: bool) -> None:
    """Counted from its start, whenever its client left."""
    served = Machine().serve()
    session = begun(served, sse=sse)
    served.clock.advance(10)
    leave(served, session)
    served.clock.advance(START - 10 - 0.5)
    assert runs(session)
    served.clock.advance(0.5)
    assert not runs(session)
    assert session.reason == "the client left; its process was kept: it did not start in time"
    served.gone(session)
    assert served.limiter.taken == 0


@pytest.mark.parametrize("what", ["told nothing", "answered", "late", "told to end", "draining"])
def test_a_process_is_not_kept(what: str) -> None:
    served = Machine().serve()
    session = served.open() if what == "told nothing" else begun(served)
    if what == "answered":
        session.messages_received([ANSWER])
    elif what == "late":
        served.clock.advance(START)
    elif what == "told to end":
        session.life.end("over")
    elif what == "draining":
        session.input_closed("it exited")
    leave(served, session)
    assert not runs(session)
    served.gone(session)
    assert served.server.pool.unattended.unclaimed() is None
    assert served.limiter.taken == 0


def test_at_most_unattended_starts_are_kept(log_lines: list[str]) -> None:
    """The log has one line a minute, however many clients leave."""
    served = Machine().serve(20)
    sessions = [begun(served) for _ in range(8)]
    for each in sessions:
        leave(served, each)
    assert [runs(each) for each in sessions] == [True] * UNATTENDED_STARTS + [False] * 7
    said = [line for line in log_lines if "a client left after" in line]
    assert len(said) == 1
    assert "`warm`" in said[0]
    assert "start_timeout" in said[0]
    served.clock.advance(START)
    for each in sessions:
        served.gone(each)
    served.clock.advance(COMPLAIN_SECONDS)
    last = kept(served)
    assert len([line for line in log_lines if "a client left after" in line]) == 2
    last.life.end("over")
    served.gone(last)


@both
def test_new_clients_wait_for_the_first_start(sse: bool) -> None:
    """None of them starts a process before it is over; then all do."""
    served = Machine().serve(20)
    session = kept(served)
    coming = [served.coming(sse=sse) for _ in range(8)]
    assert coming == [[]] * 8
    assert len(served.launcher.backends) == 1
    session.messages_received([ANSWER])
    served.clock.advance(0)
    served.clock.advance(0)
    assert [type(told[0]) for told in coming] == [BackendSession] * 8
    assert len(served.launcher.backends) == 9


@pytest.mark.parametrize("how", ["dies", "late"])
def test_waiting_clients_proceed_when_the_first_start_fails(how: str) -> None:
    served = Machine().serve(20)
    session = kept(served)
    coming = served.coming()
    if how == "dies":
        session.output_closed("exit status 1")
    else:
        served.clock.advance(START)
    served.clock.advance(0)
    assert isinstance(coming[0], BackendSession)


def test_at_most_max_waiting_requests_wait_for_the_first_start() -> None:
    """The next client starts a process of its own."""
    served = Machine().serve(20, max_waiting_requests=2)
    kept(served)
    coming = [served.coming() for _ in range(3)]
    assert [len(told) for told in coming] == [0, 0, 1]


def test_a_waiting_client_may_leave() -> None:
    served = Machine().serve(20)
    session = kept(served)
    waiting = Deferred.fromCoroutine(served.server.open_streamable(None))
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    session.messages_received([ANSWER])
    served.clock.advance(0)
    served.gone(session)
    served.clock.advance(0)
    assert len(served.launcher.backends) == 1
    assert served.clock.getDelayedCalls() == []


def test_no_client_waits_for_a_server_that_has_worked() -> None:
    served = Machine().serve(20)
    begun(served).messages_received([ANSWER])
    kept(served)
    assert isinstance(served.coming()[0], BackendSession)


@pytest.mark.parametrize("worked", [False, True])
def test_a_client_waits_for_the_permit_of_an_unattended_start(worked: bool) -> None:
    served = Machine().serve(1)
    if worked:
        served.server.pool.backoff.succeeded()
    session = kept(served)
    assert not served.server.pool.is_full()
    first = served.coming()
    assert first == []
    if worked:
        assert served.server.pool.is_full()
        assert served.coming()[0].check(TooManySessions)
    session.messages_received([ANSWER])
    served.clock.advance(0)
    served.clock.advance(0)
    assert first == []
    served.gone(session)
    assert isinstance(first[0], BackendSession)


def test_an_unattended_start_gives_way_to_another_server() -> None:
    machine = Machine(1)
    ours, theirs = machine.serve(), machine.serve()
    session = kept(theirs)
    assert not ours.server.pool.is_full()
    coming = ours.coming()
    assert not runs(session)
    assert (
        session.reason == "the client left; its process was kept: another process needed its slot"
    )
    theirs.gone(session)
    assert isinstance(coming[0], BackendSession)


def test_an_unattended_start_counts_against_no_share() -> None:
    """A client that left may come back, even where its address may have one session."""
    served = Machine().serve(4, max_sessions_per_address=1)
    session = kept(served, "a")
    served.server.pool.backoff.succeeded()
    newer = served.open("a")
    assert served.refused("a")
    session.messages_received([ANSWER])
    served.clock.advance(0)
    served.gone(session)
    assert served.refused("a")
    newer.life.end("over")
    served.gone(newer)
    assert isinstance(served.open("a"), BackendSession)


def test_stopping_ends_unattended_starts_and_waits() -> None:
    served = Machine().serve(20)
    session = kept(served)
    waiting = served.coming()
    stopped: list[Any] = []
    served.server.stop().addCallback(stopped.append)
    assert not runs(session)
    served.gone(session)
    served.clock.advance(0)
    [failure] = waiting
    assert isinstance(failure, Failure)
    assert failure.check(ShuttingDown)
    assert len(stopped) == 1
    assert served.clock.getDelayedCalls() == []
