"""Warnings about backends that failed, with advice for the operator."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CHECK_SECONDS, COMPLAIN_SECONDS
from mcpbridge.errors import BackendFailed, CannotStart
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.failures import FAILURE_CHARS, KEPT_FAILURES
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.server import Server
from mcpbridge.testing import FakeLauncher, RecordingSink
from tests.fakes import no_jitter

INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{}}'
SILENT = "has written nothing for"


class Served:
    """A server with a fake launcher."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.launcher = FakeLauncher()
        values: dict[str, Any] = {"command": "npx", "name": "x", "args": ("--key", "hush")}
        self.server = Server(
            ServerSettings(**{**values, **options}),
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=CombinedLimiter(SessionLimiter(100)),
        )

    def open(self) -> BackendSession:
        found: list[Any] = []
        opening = self.server.open_session(lambda _: RecordingSink())
        Deferred.fromCoroutine(opening).addBoth(found.append)
        session: BackendSession = found[0]
        return session

    def end(self, session: BackendSession, status: str, reason: str | None = None) -> None:
        """Let its backend end by itself."""
        session.backend.exit_status = status
        session.output_closed(reason or f"the backend ended ({status})")
        session.backend.stopped.callback(None)


def warnings_in(lines: list[str]) -> list[str]:
    """Return the warnings among the lines of a log."""
    return [line for line in lines if " failed: " in line or SILENT in line or "not op" in line]


def test_a_backend_that_dies_at_once_is_a_warning(log_lines: list[str]) -> None:
    """It says where to look; arguments may hold keys and are not shown."""
    served = Served()
    session = served.open()
    session.client_message(INITIALIZE, None)
    session.diagnostics_received([b"no such package"])
    served.end(session, "exit status 1")
    (line,) = warnings_in(log_lines)
    assert line == (
        f"session {session.label} of 'x' failed: the backend ended (exit status 1) before it"
        " answered anything; its stderr is above; if that does not tell, run 'npx' with its"
        " arguments yourself"
    )
    assert served.clock.getDelayedCalls() == []


def test_of_a_remote_server_the_advice_is_its_own_log(log_lines: list[str]) -> None:
    served = Served(command="", args=(), url="http://127.0.0.1:1/mcp")
    session = served.open()
    session.client_message(INITIALIZE, None)
    served.end(session, "remote: connection refused", "the remote server is gone")
    [line] = warnings_in(log_lines)
    assert line.endswith(
        "failed: the remote server is gone before it answered anything; look into the log of the"
        " remote server"
    )


def test_there_is_one_line_for_a_cause_not_for_each_client(log_lines: list[str]) -> None:
    served = Served()
    for _ in range(3):
        served.end(served.open(), "exit status 1")
        # What many of them in a row lead to is not the subject here.
        served.server.pool.backoff.succeeded()
    served.end(served.open(), "exit status 127")
    first, second = warnings_in(log_lines)
    assert "exit status 1)" in first
    assert second.endswith("; status 127 most often means that a command was not found")
    served.clock.advance(COMPLAIN_SECONDS)
    served.end(served.open(), "exit status 1")
    assert warnings_in(log_lines)[2].endswith("(3 times since it was last logged)")


@pytest.mark.parametrize(
    ("status", "reason", "has_output", "warns"),
    [
        ("exit status 0", None, False, True),
        ("exit status 0", None, True, False),
        ("exit status 1", None, True, True),
        ("signal 9", None, True, True),
        ("signal 15", "the backend wrote a line of more than 5 bytes", True, True),
    ],
)
def test_ends_that_are_failures(
    status: str, reason: str | None, has_output: bool, warns: bool, log_lines: list[str]
) -> None:
    served = Served()
    session = served.open()
    session.client_message(INITIALIZE, None)
    if has_output:
        session.messages_received([ANSWER])
    served.end(session, status, reason)
    assert len(warnings_in(log_lines)) == warns
    assert ("before it answered" in "".join(warnings_in(log_lines))) == (warns and not has_output)


def test_normal_ends_are_not_logged_as_failures(log_lines: list[str]) -> None:
    """The client left, however the backend ended then; or the bridge was stopped."""
    served = Served()
    first, second = served.open(), served.open()
    first.life.end("the client went away")
    first.backend.exit_status = "signal 9"
    first.backend.stopped.callback(None)
    served.server.stop()
    second.output_closed("the backend ended (signal 2)")
    second.backend.stopped.callback(None)
    assert warnings_in(log_lines) == []
    assert served.clock.getDelayedCalls() == []


def test_a_silent_backend_is_a_warning(log_lines: list[str]) -> None:
    """It is a warning after `start_timeout`, and the session goes on."""
    served = Served(start_timeout=20.0, args=())
    session = served.open()
    session.client_message(INITIALIZE, None)
    served.clock.advance(20)
    (line,) = warnings_in(log_lines)
    assert line.startswith(
        f"session {session.label} of 'x': the backend has written nothing for 20 s (start_timeout);"
        " the session goes on."
    )
    assert line.endswith("it has written nothing to stderr: run 'npx' yourself to see what it does")
    assert session.receiving
    served.open().client_message(INITIALIZE, None)
    served.clock.advance(20)
    assert len(warnings_in(log_lines)) == 1


def test_a_backend_without_requests_is_not_silent(log_lines: list[str]) -> None:
    """A client of `/sse` may wait; the time of the backend begins with its first request."""
    served = Served(start_timeout=20.0)
    quiet, answered = served.open(), served.open()
    answered.client_message(INITIALIZE, None)
    answered.messages_received([ANSWER])
    served.clock.advance(20)
    served.clock.advance(20)
    assert warnings_in(log_lines) == []
    quiet.client_message(INITIALIZE, None)
    served.clock.advance(20)
    assert len(warnings_in(log_lines)) == 1


@pytest.mark.parametrize(
    ("mode", "place"),
    [
        ("log", "its stderr is above"),
        ("none", "its stderr ended with 'stderr: two'"),
        ("file", "its stderr is in "),
    ],
)
def test_the_warning_says_where_stderr_is(
    mode: str, place: str, log_lines: list[str], tmp_path: Any
) -> None:
    served = Served(stderr_log=mode, stderr_dir=str(tmp_path))
    session = served.open()
    session.diagnostics_received([b"one", b"two"])
    served.end(session, "exit status 1")
    (line,) = warnings_in(log_lines)
    assert place in line
    assert ("'x' " + session.label + " stderr: two" in log_lines) == (mode == "log")
    served.server.stop()


def test_a_failed_start_is_one_line(log_lines: list[str]) -> None:
    served = Served()
    served.launcher.error = CannotStart("cannot start 'npx': it was not found")
    for _ in range(3):
        failure: Any = served.open()
        assert failure.check(BackendFailed)
    (line,) = warnings_in(log_lines)
    assert line.endswith("of 'x' not opened: cannot start 'npx': it was not found")


def test_stderr_of_a_spare_process_is_marked(log_lines: list[str]) -> None:
    served = Served(warm=1)
    served.server.start()
    served.clock.advance(1)
    (backend,) = served.launcher.backends
    backend.receiver.diagnostics_received([b"one"])
    session = served.open()
    session.diagnostics_received([b"two"])
    assert f"'x' {session.label} (no client yet) stderr: one" in log_lines
    assert f"'x' {session.label} stderr: two" in log_lines
    for each in served.launcher.backends:
        each.stopped.callback(None)
    served.server.stop()


def test_mistakes_are_logged_once_in_complain_seconds(log_lines: list[str]) -> None:
    """Once for each kind of mistake, whichever session makes it."""
    served = Served()
    one, two = served.open(), served.open()
    for session in (one, two, two):
        session.misbehaved("text", "it writes text", b"hello")
    two.misbehaved("bom", "it writes a mark", b"{}")
    lines = [line for line in log_lines if "it writes" in line]
    assert lines == [
        f"session {one.label} of 'x': it writes text: hello",
        f"session {two.label} of 'x': it writes a mark: {{}}",
    ]
    served.clock.advance(COMPLAIN_SECONDS)
    one.misbehaved("text", "it writes text", b"again")
    assert log_lines[-1].endswith("it writes text: again (3 times since it was last logged)")


def test_the_last_failures_are_kept_for_operators() -> None:
    """The newest first, and one that is repeated once."""
    served = Served(max_sessions=100, max_sessions_per_address=100)
    for number in range(KEPT_FAILURES + 2):
        session = served.open()
        session.diagnostics_received([b"line %d" % number, b"\x1b]0;title\x07"])
        served.end(session, f"exit status {number}")
    recent = served.server.recent_failures
    assert [each.exit for each in recent] == [f"exit status {n}" for n in (6, 5, 4, 3, 2)]
    assert recent[0].session == session.label
    assert recent[0].stderr == ("line 6", r"\x1b]0;title\x07")
    served.end(served.open(), "exit status 4")
    recent = served.server.recent_failures
    assert [each.exit for each in recent] == [f"exit status {n}" for n in (4, 6, 5, 3, 2)]


def test_a_text_of_a_failure_has_a_bound() -> None:
    served = Served()
    session = served.open()
    session.misbehaved("x", "y" * (2 * FAILURE_CHARS), b"")
    [failure] = served.server.recent_failures
    assert failure.what == "y" * FAILURE_CHARS


def test_silence_is_a_failure_that_is_kept() -> None:
    served = Served(start_timeout=30)
    session = served.open()
    session.client_message(INITIALIZE, None)
    session.diagnostics_received([b"waiting for the database"])
    served.clock.advance(30)
    [failure] = served.server.recent_failures
    assert failure.what.startswith("a process has written nothing to stdout for 30 s")
    assert failure.stderr == ("waiting for the database",)
    assert failure.exit == ""


def test_garbage_is_a_failure_that_is_kept() -> None:
    served = Served()
    session = served.open()
    session.misbehaved("text", "the server wrote something other than JSON", b"hello")
    [failure] = served.server.recent_failures
    assert failure.what == "the server wrote something other than JSON: hello"


def test_a_program_that_is_not_found_is_kept() -> None:
    served = Served()
    served.launcher.error = CannotStart("cannot start 'npx': it was not found")
    served.open()
    [failure] = served.server.recent_failures
    assert failure.what.endswith("cannot start 'npx': it was not found")


def test_a_client_that_leaves_is_no_failure() -> None:
    served = Served()
    session = served.open()
    session.life.end("the client left")
    session.backend.exit_status = "signal 15"
    session.backend.stopped.callback(None)
    assert not served.server.recent_failures


def test_failed_starts_without_a_client_are_kept() -> None:
    """A spare process that ends, and one that is checked and does not answer."""
    served = Served(warm=1, start_timeout=5)
    served.server.start()
    served.clock.advance(1)
    [spare] = served.server.unclosed
    spare.diagnostics_received([b"KEY is missing"])
    spare.input_closed("the backend closed its stdin")
    spare.backend.exit_status = "exit status 3"
    spare.backend.stopped.callback(None)
    [failure] = served.server.recent_failures
    assert failure.what == "the backend ended (exit status 3) before it answered anything"
    assert failure.stderr == ("KEY is missing",)
    served.clock.advance(CHECK_SECONDS)
    for each in list(served.server.unclosed):
        served.server.end_session(each, "x")
        each.backend.stopped.callback(None)
    served.server.pool.check.doubt("a client broke it")
    served.clock.advance(5)
    hung = [x for x in served.server.unclosed if "no answer" in x.reason]
    assert hung
    for each in hung:
        each.backend.stopped.callback(None)
    what = served.server.recent_failures[0].what
    assert what == "a start failed: no answer to the first message in 5 s"
