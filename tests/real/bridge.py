"""
Start the installed `twistd mcpbridge` in a process of its own, as a user does.

This module imports nothing of mcpbridge.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.real.parts import Client, beside_python, need_processes
from tests.real.processes import Process, alive, descendants, eventually, processes_with_variable

#: The URLs that a bridge prints.
URL = re.compile(r"http://[^\s'\"<>]+/sse\b")
#: A variable in the environment of each backend, with a value that is unique to the test.
MARKER_VARIABLE = "MCPBRIDGE_TEST_MARK"
#: Seconds before a wait fails; no assertion is about this time.
PATIENCE = 60
LOOPBACK = ("--listen", "tcp:0:interface=127.0.0.1")


@dataclass
class RunningBridge:
    """A running bridge; `seen` has all of its processes that were ever found."""

    process: subprocess.Popen[str]
    marker: str
    seen: set[Process] = field(default_factory=set)
    _lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """Everything that the bridge has printed so far."""
        return "".join(self._lines)

    @property
    def urls(self) -> list[str]:
        """The URLs that the bridge has printed, in that order."""
        return list(dict.fromkeys(URL.findall(self.output)))

    @property
    def url(self) -> str:
        """The URL of the only server."""
        [url] = self.urls
        return url

    def backends(self) -> set[Process]:
        """Return the processes of backends: descendants, and processes with the marker."""
        below = {one for one in descendants(self.process.pid) if "watchdog" not in one.command}
        found = below | processes_with_variable(f"{MARKER_VARIABLE}={self.marker}")
        self.seen |= found
        return found

    def run_client(
        self, client: Client, tool: str, arguments: dict[str, Any], url: str | None = None
    ) -> dict[str, Any]:
        """Run a real client against the bridge; return what the client saw."""
        return self.run_command([*client.command(), url or self.url, tool, json.dumps(arguments)])

    def run_command(self, command: Sequence[str]) -> dict[str, Any]:
        """Run a real client by its command line; return what it printed, which is JSON."""
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                while True:
                    self.backends()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        output, errors = process.communicate(timeout=0.25)
                        break
                    assert self.process.poll() is None, f"the bridge has ended:\n{self.output}"
            finally:
                process.kill()
        assert process.returncode == 0, f"{errors}\n--- the bridge:\n{self.output}"
        seen: dict[str, Any] = json.loads(output)
        return seen

    def assert_nothing_left(self, seconds: float = PATIENCE) -> None:
        """Assert that every backend that was ever seen ends in time."""
        # A short-lived backend may not have been seen, but it is in the log.
        assert self.seen or "' opened" in self.output, "there was no backend"
        eventually(lambda: not self._left(), seconds)
        left = ", ".join(str(process) for process in self._left())
        assert not left, f"left behind: {left}\n--- the bridge:\n{self.output}"

    def _left(self) -> set[Process]:
        return self.backends() | {process for process in self.seen if alive(process)}

    def stop(self, seconds: float = PATIENCE) -> int:
        """Stop the bridge as a service manager does, with SIGTERM; return its exit status."""
        below = descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the bridge does not stop:\n{self.output}") from None
        # The watchdog ends a moment after the bridge.
        eventually(lambda: not any(alive(process) for process in below), PATIENCE)
        left = ", ".join(str(process) for process in below if alive(process))
        assert not left, f"outlived the bridge: {left}"
        assert not processes_with_variable(f"{MARKER_VARIABLE}={self.marker}")
        return status

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)


@contextlib.contextmanager
def serving(
    cwd: Path, *arguments: str, launch: Sequence[str] = (), urls: int = 1, marker: str = ""
) -> Iterator[RunningBridge]:
    """
    Run `twistd mcpbridge` with these arguments, and wait until it has printed its URLs.

    `launch` is another command that starts it.  A `marker` is the value of
    `MARKER_VARIABLE` that a configuration file gives to its servers.  At the end,
    the bridge and all processes that it left behind are killed.
    """
    need_processes()
    launch = launch or [beside_python("twistd"), "-n", "--pidfile=", "mcpbridge"]
    if not marker:
        marker = uuid.uuid4().hex
        arguments = ("--env", f"{MARKER_VARIABLE}={marker}", *arguments)
    process = subprocess.Popen(
        [*launch, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    bridge = RunningBridge(process, marker)
    reader = threading.Thread(target=bridge._collect)
    reader.start()
    try:
        ready = eventually(lambda: len(bridge.urls) >= urls or process.poll() is not None, PATIENCE)
        assert ready, f"no URL after {PATIENCE} seconds:\n{bridge.output}"
        assert process.poll() is None, f"ended with {process.returncode}:\n{bridge.output}"
        yield bridge
    finally:
        process.kill()
        process.wait()
        _kill(processes_with_variable(f"{MARKER_VARIABLE}={marker}"))
        reader.join(PATIENCE)
        assert process.stdout is not None
        process.stdout.close()


def _kill(processes: set[Process]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def status_of(url: str) -> int:
    """Return the status of a GET; the body, which may never end, is not read."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", parts.path)
        return connection.getresponse().status
