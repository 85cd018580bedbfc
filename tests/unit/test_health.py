"""When a server and the bridge are ready, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    BACKOFF_SECONDS,
    FAILED_STARTS,
    MAX_BACKOFF_SECONDS,
    STILLBORN_STARTS,
)
from mcpbridge.errors import CannotStart
from mcpbridge.health import STATES, BridgeHealth, is_ready
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.server import Server
from mcpbridge.testing import FakeLauncher, RecordingSink
from tests.fakes import no_jitter

INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
ANSWER = b'{"jsonrpc":"2.0","id":%d,"result":{"protocolVersion":"2025-11-25"}}'


class Served:
    """A server, whose processes do what a test says."""

    def __init__(self, name: str = "a", clock: Clock | None = None, **settings: Any) -> None:
        self.clock = clock or Clock()
        self.launcher = FakeLauncher()
        self.server = Server(
            ServerSettings(**{"command": "x", "name": name, "base_uri": f"/{name}", **settings}),
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=CombinedLimiter(SessionLimiter(10)),
        )
        self.server.start()

    def open(self) -> BackendSession | None:
        """Open a session, and send `initialize`; return None if that is refused."""
        opened: list[BackendSession] = []
        opening = self.server.open_session(lambda _: RecordingSink())
        Deferred.fromCoroutine(opening).addCallbacks(opened.append, lambda _: None)
        for session in opened:
            session.send_to_backend([INITIALIZE])
            return session
        return None

    def answer(self, number: int = -1, ident: int = 1) -> None:
        """Have a process answer `initialize`, whose id in checks is 0."""
        self.launcher.backends[number].receiver.messages_received([ANSWER % ident])

    def crash(self, number: int = -1) -> None:
        """Have a process end by itself."""
        backend = self.launcher.backends[number]
        backend.exit_status = "exit status 1"
        backend.receiver.output_closed("the backend ended (exit status 1)")
        if not backend.stopped.called:
            backend.stopped.callback(None)

    def crashes(self, count: int) -> None:
        """Open so many sessions, each of which crashes."""
        for _ in range(count):
            assert self.open() is not None
            self.crash()

    def is_ready(self) -> bool:
        return is_ready(self.server)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.stop()


def test_a_server_that_nobody_has_used_is_ready(served: Served) -> None:
    assert served.is_ready()
    assert served.open() is not None
    assert served.is_ready(), "it starts"
    served.answer()
    served.clock.advance(100_000)
    assert served.is_ready(), "idle is ready"


def test_a_server_whose_sessions_crash_is_not_ready_once_a_check_crashes(served: Served) -> None:
    """A session's crash proves nothing: the bridge starts a process of its own."""
    served.crashes(STILLBORN_STARTS - 1)
    served.clock.advance(1000)
    assert served.is_ready()
    assert len(served.launcher.backends) == STILLBORN_STARTS - 1
    served.crashes(1)
    assert len(served.launcher.backends) == STILLBORN_STARTS + 1
    assert served.is_ready(), "it is being checked"
    served.crash()
    assert not served.is_ready()
    assert served.open() is None

    served.clock.advance(BACKOFF_SECONDS)
    assert not served.is_ready(), "it is being checked again"
    served.answer(ident=0)
    assert served.is_ready()
    assert served.open() is not None


def test_a_server_that_hangs_is_not_ready_once_a_check_has_timed_out() -> None:
    served = Served(start_timeout=30.0)
    for _ in range(STILLBORN_STARTS):
        session = served.open()
        assert session is not None
        served.clock.advance(30)
        session.life.end("its client left")
        served.launcher.backends[-1].stopped.callback(None)
        assert served.is_ready()
    served.clock.advance(30)
    assert not served.is_ready()
    served.server.stop()


def test_a_missing_program_is_not_ready_at_once_and_looked_for(served: Served) -> None:
    served.launcher.error = CannotStart("no such program")
    assert served.open() is None
    assert not served.is_ready()
    served.clock.advance(MAX_BACKOFF_SECONDS)
    assert not served.is_ready()
    served.launcher.error = None
    served.clock.advance(MAX_BACKOFF_SECONDS)
    served.answer(ident=0)
    assert served.is_ready()


def test_one_failed_start_does_not_count_while_a_process_works(served: Served) -> None:
    """Its sessions would be sent elsewhere."""
    served.open()
    served.answer()
    for number in range(1, FAILED_STARTS + 1):
        served.server.pool.fail("it crashed")
        assert served.is_ready() is (number < FAILED_STARTS)
        served.server.pool.check.stop()
        served.clock.advance(MAX_BACKOFF_SECONDS)


def test_a_process_that_ends_works_no_more(served: Served) -> None:
    session = served.open()
    served.answer()
    served.server.pool.fail("it crashed")
    assert served.is_ready()
    assert session is not None
    session.life.drain()
    assert not served.is_ready()


def test_clients_variables_may_be_to_blame() -> None:
    served = Served(env_from={"TOKEN": {"header": "x-token"}})
    served.launcher.error = CannotStart("no such program")
    assert served.open() is None
    served.server.pool.fail("it crashed")
    assert served.is_ready()
    served.server.stop()


def test_a_server_that_is_removed_or_stopped_is_not_ready() -> None:
    removed, stopped = Served(), Served()
    removed.server.remove()
    stopped.server.stop()
    assert not removed.is_ready()
    assert not stopped.is_ready()


class Bridged:
    """The health of a bridge with two servers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.servers = [Served(name, self.clock) for name in "ab"]
        self.condition = "serving"
        servers = [each.server for each in self.servers]
        self.health = BridgeHealth(lambda: servers, lambda: self.condition, self.clock)


@given(down=st.sets(st.sampled_from([0, 1])), condition=st.sampled_from(["serving", "draining"]))
def test_the_bridge_is_ready_while_one_server_is(down: set[int], condition: str) -> None:
    bridged = Bridged()
    bridged.condition = condition
    for number in down:
        bridged.servers[number].server.pool.fail("it crashed")
    assert bridged.health.is_ready() is (len(down) < 2 and condition == "serving")
    assert bridged.health.takes_clients is (condition == "serving")


def test_a_removed_server_is_not_looked_at() -> None:
    bridged = Bridged()
    bridged.servers[0].server.remove()
    bridged.servers[1].server.pool.fail("it crashed")
    assert not bridged.health.is_ready()
    assert bridged.health.server("a") is None
    assert bridged.health.server("b") is bridged.servers[1].server
    assert [each["name"] for each in bridged.health.details()["servers"]] == ["b"]


def test_details_say_what_is_known() -> None:
    bridged = Bridged()
    first = bridged.servers[0]
    bridged.clock.advance(1000)
    first.server.pool.fail("it crashed")
    found = bridged.health.details()
    assert found == {
        "ready": True,
        "condition": "serving",
        "servers": [
            {
                "name": "a",
                "ready": False,
                "state": "failing",
                "since": 1000.0,
                "why": "it crashed; next try in 1 s",
                "retry_in": 1,
                "failed_starts": 1,
                "last_answered": None,
            },
            {
                "name": "b",
                "ready": True,
                "state": "not started",
                "since": None,
                "why": "the first client starts it",
                "retry_in": None,
                "failed_starts": 0,
                "last_answered": None,
            },
        ],
    }


def test_details_tell_when_a_request_was_answered() -> None:
    """That is when they are asked for: no message has the time stored."""
    bridged = Bridged()
    server = bridged.servers[0].server

    def last_answered() -> Any:
        return bridged.health.details_of(server)["last_answered"]

    server.counters.operation("ping").succeeded(0.1)
    assert last_answered() is None, "it may be long ago"
    bridged.clock.advance(10)
    server.counters.operation("ping").succeeded(0.1)
    assert last_answered() == 0
    bridged.clock.advance(10)
    assert last_answered() == 10
    server.counters.operation("ping").failed("-32603", 0.1)
    assert last_answered() == 10
    bridged.servers[0].open()
    bridged.servers[0].answer()
    assert last_answered() == 0


def test_states_have_the_names_of_the_status_document() -> None:
    assert set(STATES.values()) == {
        *("ready", "unused", "not started", "not running", "starting", "failing", "draining")
    }
