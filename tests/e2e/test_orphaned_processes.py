"""
Backends that leave processes behind in ways that are hard to detect: when a
session is closed, none of its processes runs, and its permit is free.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.e2e.harness import Bridge, backend, serving, wait_until

pytestmark = pytest.mark.slow

GRACES = ("--stop-grace", "0.1", "--kill-grace", "0.1")
READY = b'{"jsonrpc":"2.0","method":"ready"}'


def running(folder: Path) -> list[str]:
    """Return the sessions with a running process: each holds a lock until its last one ends."""
    found = []
    for name in os.listdir(folder):
        lock = os.open(folder / name, os.O_WRONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(name)
        finally:
            os.close(lock)
    return found


def open_and_leave(bridge: Bridge) -> None:
    """Open a session, close it, and wait until the log says that it is closed."""
    with bridge.open_sse() as stream:
        assert stream.read_message() == READY
    bridge.wait_for_close(stream)


@pytest.mark.parametrize(
    ("how", "sessions"),
    [
        ("ending", 24),
        ("renew-5", 3),
        ("renew-1", 3),
        ("threads", 3),
        ("limit", 3),
        ("limits", 3),
    ],
)
def test_closed_session_leaves_no_process(how: str, sessions: int, tmp_path: Path) -> None:
    """Processes that daemonize while ending, keep forking or lost their tag are ended too."""
    command = backend("orphans", how, tmp_path)
    with serving(*GRACES, "--max-sessions", "1", command=command) as bridge:
        for _ in range(sessions):
            # A session can open only when the permit of the previous one is free.
            open_and_leave(bridge)
            assert not running(tmp_path)
        assert len(os.listdir(tmp_path)) == sessions
        # The orphans that the bridge adopted are reaped.
        bridge.wait_until_empty()


@pytest.mark.parametrize("how", ["renew-1", "threads", "limit"])
def test_killed_bridge_leaves_no_process(how: str, tmp_path: Path) -> None:
    """The watchdog keeps up with forks, and finds threads and changed limits."""
    command = backend("orphans", how, tmp_path)
    with serving(*GRACES, command=command) as bridge:
        bridge.wait_for_watchdog()
        assert bridge.open_sse().read_message() == READY
        assert running(tmp_path)
        bridge.kill()
        wait_until(lambda: not running(tmp_path))
        wait_until(lambda: not bridge.marked_processes())
