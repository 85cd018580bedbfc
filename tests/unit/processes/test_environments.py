"""Processes that are started with variables of one client (`env_from`)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from mcpbridge.auth.access import Access
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CHECK_SECONDS
from mcpbridge.errors import CannotStart
from mcpbridge.processes.abandoned_sessions import Newcomer
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.server import Server
from mcpbridge.testing import FakeLauncher, FakeReactor, RecordingSink
from tests.fakes import no_jitter

RULES: Any = {"TOKEN": {"header": "X-Token"}}
ALICE, BOB = {"TOKEN": "hush alice"}, {"TOKEN": "hush bob"}


class Made:
    """A pool with a fake launcher."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeReactor()
        self.launcher = FakeLauncher()
        limiter = SessionLimiter(4)
        self.pool = ProcessPool(
            ServerSettings(**{"command": "cat", "env_from": RULES, **settings}),
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=CombinedLimiter(SessionLimiter(9), limiter),
        )
        self.pool.start()

    def take(self, *arguments: Any) -> BackendSession:
        return self._result(self.pool.take(*arguments))

    def take_free(self, *arguments: Any) -> BackendSession:
        return self._result(self.pool.take_free(*arguments))

    def _result(self, coroutine: Any) -> Any:
        results: list[Any] = []
        Deferred.fromCoroutine(coroutine).addCallback(results.append)
        return results[0]

    def end(self) -> None:
        self.pool.stop()
        for each in self.launcher.backends:
            each.stopped.callback(None)
        assert self.clock.getDelayedCalls() == []


def test_a_process_is_started_with_the_variables_of_its_client() -> None:
    made = Made()
    for take in (lambda: made.take(Newcomer(None), ALICE), lambda: made.take_free(ALICE)):
        session = take()
        assert session.environment == ALICE
        assert made.launcher.backends[-1].environment == ALICE
    assert made.take().environment == {}
    assert [each.environment for each in made.launcher.backends] == [ALICE, ALICE, {}]
    made.end()


def test_a_session_does_not_show_them() -> None:
    made = Made()
    session = made.take(Newcomer(None), ALICE)
    assert "hush" not in repr(session)
    made.end()


def test_a_launcher_for_servers_without_variables_need_not_take_any() -> None:
    """`launch` is called where there are none."""
    made = Made(env_from={})
    made.launcher.launch_with = None  # type: ignore[assignment, method-assign]
    assert made.take().environment == {}
    made.end()


def test_no_process_is_started_before_there_is_a_client() -> None:
    made = Made()
    made.clock.pump([1.0] * 10)
    assert made.launcher.backends == []
    made.end()


@pytest.mark.parametrize(("rules", "starts"), [(RULES, 0), ({}, 1)])
def test_the_server_is_not_checked_without_credentials(rules: Any, starts: int) -> None:
    made = Made(env_from=rules)
    made.pool.check.doubt("a process ended")
    made.clock.advance(CHECK_SECONDS)
    assert len(made.launcher.backends) == starts
    made.end()


@pytest.mark.parametrize(("rules", "text"), [(RULES, "ready"), ({}, "down after 1 failed start")])
def test_a_client_whose_credentials_are_wrong_does_not_set_the_server_down(
    rules: Any, text: str
) -> None:
    """A process that ends at once may do so because of what its client gave it."""
    made = Made(env_from=rules)
    made.pool.fail("it ended")
    assert str(made.pool.backoff).startswith(text)
    made.end()


def test_a_start_that_goes_on_without_its_client_is_given_to_nobody_else() -> None:
    """It ends when it has started, and the next client gets a process of its own."""
    made = Made()
    session = made.take(Newcomer(None), ALICE)
    session.open(lambda _: None, sink=RecordingSink())
    assert made.pool.keep_start(session, "its client left")
    waiting: list[Any] = []
    for taking in (made.pool.take(Newcomer(None), BOB), made.pool.take_free(BOB)):
        Deferred.fromCoroutine(taking).addCallback(waiting.append)
    # What may not wait gets none.
    assert waiting == [None]
    session.messages_received([b'{"jsonrpc":"2.0","id":1,"result":{}}'])
    made.clock.pump([0.0] * 3)
    made.launcher.backends[0].stopped.callback(None)
    made.clock.pump([0.0] * 3)
    [_, other] = waiting
    assert other is not session
    assert [each.environment for each in made.launcher.backends] == [ALICE, BOB]
    made.launcher.backends.pop(0)
    made.end()


def test_a_failed_launch_does_not_log_them(log_lines: list[str]) -> None:
    made = Made()
    made.launcher.error = CannotStart("not found")
    failed: list[Any] = []
    Deferred.fromCoroutine(made.pool.take(Newcomer(None), ALICE)).addErrback(failed.append)
    assert log_lines
    assert "hush" not in "".join(log_lines) + str(failed) + failed[0].getTraceback()
    made.end()


@pytest.mark.parametrize("streamable", [False, True])
def test_a_server_opens_a_session_with_them(streamable: bool) -> None:
    clock, launcher = FakeReactor(), FakeLauncher()
    server = Server(
        ServerSettings(command="cat", env_from=RULES),
        clock,
        launcher=launcher,
        limiter=CombinedLimiter(SessionLimiter(9), SessionLimiter(9)),
        event_store=_Store(),
    )
    access = Access(environment=ALICE)
    if streamable:
        opening = server.open_streamable("10.0.0.1", access=access)
    else:
        opening = server.open_session(lambda _: RecordingSink(), access=access)
    opened: list[Any] = []
    Deferred.fromCoroutine(opening).addCallback(opened.append)
    assert opened[0].environment == ALICE
    [backend] = launcher.backends
    assert backend.environment == ALICE
    server.stop()
    backend.stopped.callback(None)
    assert clock.getDelayedCalls() == []


class _Store:
    """An event store that keeps nothing."""

    def open(self, session_id: str) -> Any:
        return self

    def close(self) -> None: ...
