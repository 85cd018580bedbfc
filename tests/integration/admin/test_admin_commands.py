"""`mcpbridge status`, `end` and `reload` at a bridge that runs in the test's own reactor."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from mcpbridge import admin_client
from mcpbridge import status_command as status_command_module
from mcpbridge.admin_client import (
    ANSWER_BYTES,
    ANSWER_SECONDS,
    FAILED,
    FAILING,
    FINE,
    WRONG_USE,
    AdminClient,
    CannotReach,
    Denied,
    find_client,
)
from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.control_commands import end_command, reload_command
from mcpbridge.errors import CannotStart
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.status_command import status_command, style_of
from mcpbridge.status_text import Style
from mcpbridge.testing import FakeLauncher, RecordingSink

COMMANDS = {"status": status_command, "end": end_command, "reload": reload_command}


class Served:
    """A bridge with its admin socket in a directory."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.folder = folder
        self.launcher = FakeLauncher()
        settings = BridgeSettings(
            servers=(ServerSettings(command="x", name="a", stop_grace=0),),
            listen=(),
            state_dir=str(folder),
            child_subreaper=False,
        )
        self.bridge = Bridge(settings, reactor, launcher=self.launcher, admin_socket=True)
        self.bridge.startService()
        self.path = str(folder / f"admin-{os.getpid()}.sock")

    async def open(self) -> BackendSession:
        session = await self.bridge.servers[0].open_session(lambda _: RecordingSink())
        session.ended.addErrback(lambda _: None)
        return session

    async def run(self, name: str, *arguments: str) -> int:
        """Run a command with the socket of this bridge."""
        return await self.call(COMMANDS[name], [*arguments, "--socket", self.path])

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await deferToThread(function, *arguments)


@pytest.fixture
def served(running_reactor: Any, tmp_path: Path) -> Iterator[Served]:
    found = Served(running_reactor, tmp_path / "state")
    yield found
    stopped = found.bridge.stopService()
    for backend in found.launcher.backends:
        if not backend.stopped.called:
            backend.stopped.callback(None)
    pytest_twisted.blockon(stopped)


@pytest_twisted.ensureDeferred
async def test_the_status_is_a_table(served: Served, capsys: Any) -> None:
    session = await served.open()
    assert await served.run("status") == FINE
    text = capsys.readouterr().out
    assert f"pid {os.getpid()}, serving" in text
    assert session.label in text
    assert "\x1b" not in text


@pytest_twisted.ensureDeferred
async def test_a_failing_server_has_a_status_of_its_own(served: Served, capsys: Any) -> None:
    served.launcher.error = CannotStart("cannot start 'x': it was not found")
    opening = Deferred.fromCoroutine(served.open())
    opening.addErrback(lambda _: None)
    assert await served.run("status") == FAILING
    assert "a: failing" in capsys.readouterr().out
    assert await served.run("status", "--json") == FAILING
    [server] = json.loads(capsys.readouterr().out)["servers"]
    assert server["state"] == "failing"


@pytest_twisted.ensureDeferred
async def test_a_session_is_ended(served: Served, capsys: Any) -> None:
    session = await served.open()
    assert await served.run("end", session.label[:5]) == FINE
    assert capsys.readouterr().out == f"session {session.label} is ended\n"
    assert not session.receiving
    assert await served.run("end", session.label) == FAILED
    assert "there is no session" in capsys.readouterr().err


@pytest_twisted.ensureDeferred
async def test_a_reload_without_a_file_is_told(served: Served, capsys: Any) -> None:
    assert await served.run("reload") == FAILED
    assert "from no file" in capsys.readouterr().err
    served.bridge.reload_file = lambda: "changed: \x1b[1m"  # type: ignore[method-assign]
    assert await served.run("reload") == FINE
    assert capsys.readouterr().out == "loaded: changed: \\x1b[1m\n"


@pytest_twisted.ensureDeferred
async def test_it_is_watched_until_it_stops(
    served: Served, capsys: Any, running_reactor: Any
) -> None:
    watching = served.call(status_command, ["--watch", "--json", "--socket", served.path])
    waiting = Deferred.fromCoroutine(watching)
    shown = errors = ""
    # Its thread may be slow to begin.
    while not shown and not waiting.called:
        await deferLater(running_reactor, 0.01)
        shown, more = capsys.readouterr()
        errors += more
    document = json.loads(shown.splitlines()[0])
    assert (document["pid"], document["condition"]) == (os.getpid(), "serving")
    await served.bridge.stopService()
    assert await waiting == FAILED
    errors += capsys.readouterr().err
    assert f"the bridge at {served.path} has stopped" in errors


@pytest_twisted.ensureDeferred
async def test_the_only_socket_of_a_directory_is_found(
    served: Served, running_reactor: Any, tmp_path: Path
) -> None:
    folder = str(served.folder)
    found = await served.call(find_client, None, {"STATE_DIRECTORY": folder})
    assert found.path == served.path
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(served.folder / "admin-1.sock"))
    try:
        assert (await served.call(find_client, folder, {})).path == served.path
        dead.listen()
        with pytest.raises(CannotReach) as caught:
            await served.call(find_client, folder, {})
        lines = str(caught.value).splitlines()
        assert lines[0] == "2 bridges run; say which:"
        assert f"  pid {os.getpid()}: --socket {served.path}" in lines
    finally:
        dead.close()
        (served.folder / "admin-1.sock").unlink()


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_bridge_it_says_where_it_has_looked(
    name: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_client, "SERVICE_FOLDERS", (str(tmp_path / "service"),))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert COMMANDS[name](["abcd"] if name == "end" else []) == FAILED
    error = capsys.readouterr().err
    assert error.startswith(f"mcpbridge {name}: no bridge runs")
    for folder in ("state", "service"):
        assert str(tmp_path / folder) in error
    assert "--socket PATH" in error


def test_a_socket_that_is_not_there_is_told(tmp_path: Path, capsys: Any) -> None:
    path = str(tmp_path / "none")
    assert status_command(["--socket", path]) == FAILED
    assert f"there is no socket at {path}" in capsys.readouterr().err
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    assert status_command(["--watch", "--socket", path]) == FAILED
    assert "it was killed" in capsys.readouterr().err


def test_a_bridge_of_another_user_is_told(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test may run as root, who may open everything."""

    def denied(self: AdminClient, *_: object) -> Any:
        raise CannotReach(admin_client._why_not(self.path, PermissionError()))

    monkeypatch.setattr(AdminClient, "_request", denied)
    assert status_command(["--socket", str(tmp_path / "s")]) == FAILED
    error = capsys.readouterr().err
    assert "permission denied" in error
    assert "as in `sudo -u" in error
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(CannotReach, match="permission denied"):
        find_client(str(tmp_path), {})


def answering(path: Path, *answers: bytes) -> socket.socket:
    """Answer connections to a socket, one after the other, in a thread."""
    import threading

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        for each in answers:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(each)
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_what_is_no_answer_of_a_bridge_is_told(tmp_path: Path) -> None:
    assert ANSWER_BYTES > 1_000_000
    head = b"HTTP/1.1 %s\r\nConnection: close\r\n\r\n"
    with answering(
        tmp_path / "s",
        b"hello",
        head % b"200 OK" + b"no json",
        head % b"500 X" + b"no json",
        head % b"200 OK" + b"data: no json\n\n",
    ):
        client = AdminClient(str(tmp_path / "s"))
        with pytest.raises(CannotReach):
            client.status()
        with pytest.raises(CannotReach, match="did not answer"):
            client.status()
        with pytest.raises(Denied, match="the status 500"):
            client.status()
        assert list(client.events()) == []


def test_a_bridge_that_stands_still_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ANSWER_SECONDS > 0
    monkeypatch.setattr(admin_client, "ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(CannotReach, match=r"did not answer in 0\.05 s"):
            AdminClient(str(tmp_path / "s")).status()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("status", ["--what"]),
        ("status", ["a"]),
        ("status", ["--socket"]),
        ("end", []),
        ("end", ["a", "b"]),
        ("reload", ["x"]),
    ],
)
def test_wrong_use_prints_the_usage(name: str, arguments: list[str], capsys: Any) -> None:
    assert COMMANDS[name](arguments) == WRONG_USE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"mcpbridge {name}: ")
    assert f"Usage: mcpbridge {name} [options]" in captured.err


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_no_error(name: str, option: str, capsys: Any) -> None:
    assert COMMANDS[name]([option]) == FINE
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: mcpbridge {name} [options]")
    assert "exit status" in text


class Terminal:
    """An output that may be a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_only_a_terminal_has_colours() -> None:
    terminal: Any = Terminal(terminal=True)
    pipe: Any = Terminal(terminal=False)
    assert style_of(terminal, {}).colours
    assert not style_of(terminal, {"NO_COLOR": "1"}).colours
    assert not style_of(terminal, {"TERM": "dumb"}).colours
    assert style_of(pipe, {"COLUMNS": "60"}) == Style(60)
    assert style_of(pipe, {"COLUMNS": "x"}) == Style(status_command_module._UNLIMITED)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """As in `mcpbridge status | head -1`."""
    program = "from mcpbridge.status_command import status_command; import sys"
    program += "; sys.exit(status_command(['--socket', sys.argv[1]]))"
    document = tmp_path / "s"
    body = b'{"servers": [], "padding": "%s"}' % (b"x" * 10)
    with answering(document, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body):
        run = subprocess.Popen(
            [sys.executable, "-c", program.replace("[", "['--json', ", 1), str(document)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert run.stdout is not None
        run.stdout.close()
        assert run.stderr is not None
        errors = run.stderr.read()
        run.stderr.close()
        assert run.wait() == FINE, errors
    assert errors == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest_twisted.ensureDeferred
async def test_the_screen_is_as_it_was_after_a_watch(
    served: Served, number: signal.Signals
) -> None:
    program = (
        "import pty, os, sys\n"
        "from mcpbridge.status_command import status_command\n"
        "sys.exit(status_command(['--watch', '--socket', sys.argv[1]]))\n"
    )
    await served.open()
    text, status = await served.call(_watch_on_terminal, program, served.path, number)
    assert status == FINE, text
    assert text.startswith("\x1b[?1049h\x1b[?25l\x1b[H")
    assert "serving" in text
    assert "Traceback" not in text
    assert "\x1b[?25h\x1b[?1049l" in text


def _watch_on_terminal(program: str, path: str, number: signal.Signals) -> tuple[str, int]:
    """Watch on a terminal until the status is there; return what was written, and the status."""
    ours, theirs = os.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        start_new_session=True,
    )
    os.close(theirs)
    data = b""
    try:
        while b"SESSION" not in data:
            data += os.read(ours, 65536)
        run.send_signal(number)
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:
                break
            if not more:
                break
            data += more
        return data.decode(), run.wait()
    finally:
        run.kill()
        run.wait()
        os.close(ours)
