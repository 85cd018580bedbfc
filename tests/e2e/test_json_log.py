"""The log as JSON: of the console script, and of a daemon whose file is opened again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import TIMEOUT, backend, wait_until
from tests.real.processes import eventually

pytestmark = pytest.mark.slow

PROGRAMS = Path(sys.executable).parent


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log, in which there is nothing else; the last may be half there."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for(path: Path, message: str) -> dict[str, Any]:
    """Wait for a line with a message that begins so; return it."""

    def found() -> list[dict[str, Any]]:
        return [each for each in lines_of(path) if each["message"].startswith(message)]

    assert eventually(found, TIMEOUT), path.read_text()
    return found()[0]


def use(path: Path) -> None:
    """Open a session, leave, and get the index."""
    url = wait_for(path, "serving http")["url"]
    origin = re.match(r"http://[^/]*", url)
    assert origin is not None
    with urllib.request.urlopen(f"{origin[0]}/sse", timeout=TIMEOUT) as stream:
        assert stream.readline().startswith(b"event: endpoint")
    with urllib.request.urlopen(f"{origin[0]}/", timeout=TIMEOUT) as index:
        assert index.status == 200


def arguments(folder: Path) -> list[str]:
    options = ["--port", "0", "--state-dir", str(folder / "state"), "--access-log"]
    return [*options, "--log-format", "json", "--log-level", "twisted=warn"]


def check(path: Path) -> None:
    """Check that a log has a session and its request, with their fields."""
    opened = wait_for(path, "session ")
    assert opened["component"] == "processes.backend_session"
    assert opened["message"] == f"session {opened['session']} of {opened['server']!r} opened"
    assert len(opened["session"]) == 8
    closed = wait_for(path, f"session {opened['session']} of {opened['server']!r} closed")
    assert closed["reason"].startswith("the client went away")
    request = wait_for(path, "127.0.0.1 GET / 200")
    assert (request["component"], request["uri"], request["code"]) == ("access", "/", 200)
    assert not [each for each in lines_of(path) if each["component"].startswith("twisted.")]


def test_console_script_writes_json(tmp_path: Path) -> None:
    path = tmp_path / "log"
    command = [str(PROGRAMS / "mcpbridge"), *arguments(tmp_path), "--", *backend("echo")]
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
    try:
        use(path)
        check(path)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)


def test_daemon_writes_json_and_opens_its_file_again(tmp_path: Path) -> None:
    """As logrotate has it: the file is renamed, and SIGHUP is sent."""
    path, pidfile = tmp_path / "log", tmp_path / "pid"
    given = [str(PROGRAMS / "twistd"), f"--pidfile={pidfile}", f"--logfile={path}", "mcpbridge"]
    command = [*given, *arguments(tmp_path), "--", *backend("echo")]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=TIMEOUT)
    pid = int(pidfile.read_text())
    try:
        use(path)
        check(path)
        path.rename(tmp_path / "old")
        os.kill(pid, signal.SIGHUP)
        assert wait_for(path, "SIGHUP: reopened")["level"] == "info"
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not pidfile.exists())
