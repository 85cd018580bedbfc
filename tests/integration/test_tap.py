"""Run twistd and its plugin as real processes: errors, signals and messages."""

import gc
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from mcpbridge.config.tuning import COLLECTIONS_BEFORE_FULL
from mcpbridge.tap import Options, makeService
from tests.e2e.harness import processes_with_argument
from tests.real.parts import need_processes
from tests.real.processes import eventually

TWISTD = Path(sys.executable).with_name("twistd")


def twistd(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TWISTD, "-n", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            "--max-sessions 0 cat",
            "mcpbridge: --max-sessions (max_sessions): expected an integer ≥ 1, got 0\n",
        ),
        (
            "--sessions 1 cat",
            "mcpbridge: unknown option --sessions; did you mean --max-sessions?\n",
        ),
    ],
)
def test_invalid_settings_are_one_line_and_start_nothing(
    arguments: str, line: str, tmp_path: Path
) -> None:
    """The line names the field, and the exit status is not 0."""
    done = twistd("mcpbridge", *arguments.split(), folder=tmp_path)
    assert done.returncode != 0
    assert (done.stdout, done.stderr) == ("", line)
    assert list(tmp_path.iterdir()) == []


def test_twistd_exits_if_it_cannot_listen(tmp_path: Path) -> None:
    """An address in use: one line, an exit status, and no state file is left."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        free = "tcp:0:interface=127.0.0.1"
        arguments = ("mcpbridge", "--listen", free, "--listen", listen, "cat")
        done = twistd("--pidfile=twistd.pid", *arguments, folder=tmp_path)
    assert done.returncode != 0
    assert f"mcpbridge: cannot listen on '{listen}': " in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_daemon_that_cannot_listen_fails_its_command(tmp_path: Path) -> None:
    """The command ends with a status and the reason; the log has the details."""
    need_processes()
    marker = str(uuid.uuid4().int)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        line = ["--pidfile=pid", "--logfile=log", "mcpbridge", "--listen", listen, "cat", marker]
        done = subprocess.run(
            [TWISTD, *line],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert f"cannot listen on '{listen}'" in done.stdout
    assert eventually(lambda: not processes_with_argument(marker), 60)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert f"cannot listen on '{listen}': " in log
    assert "in use" in log
    assert "Traceback" not in log


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the signal handlers afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest_twisted.ensureDeferred
@pytest.mark.usefixtures("handlers")
async def test_bridge_without_listeners_is_a_warning(
    tmp_path: Path, log_lines: list[str], running_reactor: Any
) -> None:
    """If twistd runs nothing else.  The reactor is the bridge's while it runs."""
    path = tmp_path / "config.json"
    path.write_text('{"mcpServers": {"a": {"command": "cat"}}, "bridge": {"listen": []}}')
    options = Options()
    options.parseOptions(["--config", str(path)])
    service: Any = makeService(options)
    before = gc.get_threshold()
    service.startService()
    if sys.platform == "linux":
        assert "doIteration" in vars(running_reactor), "it dispatches directly"
    assert gc.get_freeze_count(), "a full collection takes long"
    assert gc.get_threshold() == (*before[:2], COLLECTIONS_BEFORE_FULL)
    await service.stopService()
    assert "doIteration" not in vars(running_reactor)
    assert not gc.get_freeze_count()
    assert gc.get_threshold() == before
    assert "nothing is served: there is no listener (--listen, bridge.listen)" in log_lines


@pytest_twisted.ensureDeferred
@pytest.mark.usefixtures("handlers")
async def test_notices_about_a_configuration_file_are_logged(
    tmp_path: Path, log_lines: list[str]
) -> None:
    path = tmp_path / "config.json"
    entries = '"a": {"command": "cat", "ic\\u001bon": 1}, "b": {}, "c": {"enabled": false}'
    path.write_text(f'{{"mcpServers": {{{entries}}}, "bridge": {{"listen": []}}}}')
    options = Options()
    options.parseOptions(["--config", str(path)])
    service: Any = makeService(options)
    service.startService()
    await service.stopService()
    no_command = "there is no `command`, nor the `url` of a remote server"
    assert f"{path}:1: mcpServers.b: not served: {no_command}" in log_lines
    assert f"{path}:1: mcpServers.c: not served: it is disabled" in log_lines
    ignored = r"`ic\x1bon` (in a) is not a setting of mcpbridge and is ignored"
    assert f"{path}:1: {ignored}" in log_lines


def test_twistd_prints_all_reasons_if_no_server_is_left(tmp_path: Path) -> None:
    """Each on a line of its own; the exit status is 1."""
    path = tmp_path / "config.json"
    path.write_text('{"mcpServers": {"a": {"comand": "x"},\n"b": {"url": "ftp://x"}}}')
    done = twistd("mcpbridge", "--config", str(path), folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith(f"mcpbridge: {path}:1: mcpServers.a.comand: unknown key")
    assert second.startswith(f"mcpbridge: {path}:2: mcpServers.b.url: expected an `http` or")
