"""
Start `twistd` as a fork of a process that has imported everything.

A bridge imports some 750 modules, which takes most of its startup time.  Each
worker of pytest has a fork server of `multiprocessing`, which imports them
once.  It has no reactor: each fork makes its own.  The installed program
itself is started by tests/e2e/test_real_servers.py, test_clients.py and
test_signals.py, and by tests/integration/test_tap.py.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path

from tests.real.processes import descendants

#: The modules to import: all that a bridge needs and that do not import the reactor.
PRELOADED = [
    "mcpbridge.bridge",
    "mcpbridge.tap",
    "mcpbridge.web.pending_response",
    "mcpbridge.web.server_card",
    "mcpbridge.web.site",
    "mcpbridge.web.sse_stream",
    "mcpbridge.web.streamable_http",
    "twisted.internet.posixbase",
    "twisted.scripts.twistd",
    "twisted.trial.itrial",
    "twisted.web.template",
    "twisted.words.iwords",
    "werkzeug.routing",
    "werkzeug.test",
]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(PRELOADED)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Run the fork server of this process, and assert that no bridge is left of it at the end."""
    for name in PRELOADED:
        # The fork server says nothing about a module that it does not find.
        assert find_spec(name), f"{name} is not there"
    before = descendants(os.getpid())
    forkserver.ensure_running()
    started = descendants(os.getpid()) - before
    yield
    left = {bridge for each in started for bridge in descendants(each.pid)}
    assert not left, f"left behind: {left}"


def _run_twistd(arguments: Sequence[str], cwd: Path, output: Path) -> None:
    """Become what a shell would have started, and run `twistd`."""
    assert "twisted.internet.reactor" not in sys.modules, "the fork server has made a reactor"
    os.chdir(cwd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    log = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.argv = ["twistd", *arguments]
    from twisted.scripts.twistd import run

    run()


class ForkedTwistd:
    """A `twistd` that runs; has the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: Sequence[str], cwd: Path, output: Path) -> None:
        self._process = _CONTEXT.Process(target=_run_twistd, args=(arguments, cwd, output))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        #: The exit status, negative for a signal; None until `poll` or `wait` has seen its end.
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None if it runs."""
        if self.returncode is None:
            self.returncode = self._process.exitcode
            if self.returncode is not None:
                self._process.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status; raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("twistd", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)
