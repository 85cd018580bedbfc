"""Lines of the log that say what a client waits for while its process starts."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import MAX_STARTING_LOG_SECONDS, STARTING_LOG_SECONDS
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.slow_starts import _STDERR_CHARS
from mcpbridge.server import Server
from mcpbridge.testing import FakeLauncher, RecordingSink
from tests.fakes import no_jitter

INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{}}'


class Served:
    """A server with a fake launcher, whose clients wait."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        values: dict[str, Any] = {"command": "/usr/bin/npx", "name": "x", "start_timeout": 10_000}
        self.server = Server(
            ServerSettings(**{**values, **options}),
            self.clock,
            jitter=no_jitter,
            launcher=FakeLauncher(),
            limiter=CombinedLimiter(SessionLimiter(100)),
        )

    def open(self, *, asks: bool = True) -> BackendSession:
        found: list[Any] = []
        opening = self.server.open_session(lambda _: RecordingSink())
        Deferred.fromCoroutine(opening).addBoth(found.append)
        session: BackendSession = found[0]
        if asks:
            session.client_message(INITIALIZE, None)
        return session

    def end(self, *sessions: BackendSession) -> None:
        """End the sessions; no timer is left."""
        for each in sessions:
            each.life.end("the client went away")
            backend: Any = each.backend
            backend.stopped.callback(None)
        assert self.clock.getDelayedCalls() == []


def told(lines: list[str]) -> list[str]:
    return [line for line in lines if "first answer" in line or "answered after" in line]


def test_what_is_waited_for_is_logged_again_and_again(log_lines: list[str]) -> None:
    """`STARTING_LOG_SECONDS`, then twice as long, and so on."""
    served = Served()
    session = served.open()
    served.clock.advance(STARTING_LOG_SECONDS - 0.1)
    assert told(log_lines) == []
    served.clock.advance(0.1)
    begin = f"session {session.label} of 'x': "
    waiting = f"{begin}waiting for its first answer for"
    hint = "; npx may be downloading a package"
    assert told(log_lines) == [f"{waiting} {STARTING_LOG_SECONDS:g} s{hint}"]
    session.diagnostics_received([b"added 1", b"npm warn \x1b[1m" + b"x" * _STDERR_CHARS])
    served.clock.advance(2 * STARTING_LOG_SECONDS)
    line = told(log_lines)[1]
    assert line.startswith(f"{waiting} {3 * STARTING_LOG_SECONDS:g} s{hint} (last stderr: npm warn")
    assert "\\x1b" in line
    assert line.endswith(" bytes))")
    served.clock.advance(2)
    session.messages_received([ANSWER])
    assert told(log_lines)[2:] == [f"{begin}answered after {3 * STARTING_LOG_SECONDS + 2:g} s"]
    session.messages_received([ANSWER])
    assert len(told(log_lines)) == 3
    served.end(session)


def test_interval_grows_to_a_maximum(log_lines: list[str]) -> None:
    """`MAX_STARTING_LOG_SECONDS`."""
    served = Served()
    session = served.open()
    for _ in range(100):
        served.clock.advance(MAX_STARTING_LOG_SECONDS / 10)
    before = len(told(log_lines))
    for _ in range(10):
        served.clock.advance(MAX_STARTING_LOG_SECONDS)
    assert len(told(log_lines)) == before + 10
    served.end(session)


def test_nothing_is_logged_of_a_process_that_answers_soon(log_lines: list[str]) -> None:
    served = Served()
    session = served.open()
    session.messages_received([ANSWER])
    assert [call for call in served.clock.getDelayedCalls() if "_look" in str(call)] == []
    served.clock.advance(2 * STARTING_LOG_SECONDS)
    assert told(log_lines) == []
    served.end(session)


def test_nothing_is_logged_before_the_client_has_sent_anything(log_lines: list[str]) -> None:
    served = Served(command="x")
    session = served.open(asks=False)
    for _ in range(10):
        served.clock.advance(STARTING_LOG_SECONDS)
    assert told(log_lines) == []
    session.client_message(INITIALIZE, None)
    for _ in range(2):
        served.clock.advance(STARTING_LOG_SECONDS)
    [line] = told(log_lines)
    assert line.endswith(" s")
    served.end(session)


def test_one_line_stands_for_many_sessions(log_lines: list[str]) -> None:
    """And only who was named is said to have answered."""
    served = Served()
    sessions = [served.open() for _ in range(10)]
    served.clock.advance(STARTING_LOG_SECONDS)
    assert len(told(log_lines)) == 1
    for each in sessions:
        each.messages_received([ANSWER])
    assert len(told(log_lines)) == 2
    served.end(*sessions)


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("uvx", "; uvx may be downloading a package"),
        ("/opt/bin/docker", "; docker may be pulling an image"),
        ("python3", ""),
        ("npx.sh", ""),
    ],
)
def test_hint_is_of_the_program(command: str, hint: str, log_lines: list[str]) -> None:
    served = Served(command=command)
    session = served.open()
    served.clock.advance(STARTING_LOG_SECONDS)
    assert told(log_lines)[0].partition(" for 5 s")[2] == hint
    served.end(session)
