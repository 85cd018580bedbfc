"""
Bridge and watchdog killed with SIGKILL, in every order: the next start ends
whatever they left.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import Bridge, backend, serving, wait_until
from tests.e2e.test_teardown import READY, SHORT_OPTIONS
from tests.real.processes import Process, alive

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def bridge_with(folder: Path) -> Iterator[Bridge]:
    """Run a bridge with its state files in this folder."""
    options = (*SHORT_OPTIONS, "--state-dir", str(folder))
    with serving(*options, command=backend("scattered")) as bridge:
        yield bridge


def kill_together(bridge: Bridge, watchdog: Process) -> None:
    """Kill both before either can run again."""
    for pid in (bridge.process.pid, watchdog.pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in (bridge.process.pid, watchdog.pid):
        os.kill(pid, signal.SIGKILL)


def kill_watchdog_first(bridge: Bridge, watchdog: Process) -> None:
    """Kill the watchdog, and the bridge before it can start another one."""
    os.kill(bridge.process.pid, signal.SIGSTOP)
    os.kill(watchdog.pid, signal.SIGKILL)
    wait_until(lambda: not alive(watchdog))
    bridge.process.kill()


def kill_bridge_first(bridge: Bridge, watchdog: Process) -> None:
    """Kill the bridge, and the watchdog before it can clean up."""
    os.kill(watchdog.pid, signal.SIGSTOP)
    bridge.process.kill()
    bridge.process.wait()
    os.kill(watchdog.pid, signal.SIGKILL)


def stop_watchdog(bridge: Bridge, watchdog: Process) -> None:
    """Kill the bridge, and stop the watchdog for good."""
    os.kill(watchdog.pid, signal.SIGSTOP)
    bridge.process.kill()


Kill = Callable[[Bridge, Process], None]
EVERY_ORDER: Sequence[Kill] = (
    kill_together,
    kill_watchdog_first,
    kill_bridge_first,
    stop_watchdog,
)


@pytest.mark.parametrize("kill", EVERY_ORDER)
def test_next_start_ends_the_processes_of_a_killed_bridge(tmp_path: Path, kill: Kill) -> None:
    """The daemons of a bridge that died with its watchdog; another bridge is not affected."""
    with bridge_with(tmp_path) as neighbour, bridge_with(tmp_path) as bridge:
        theirs = neighbour.open_sse()
        assert theirs.read_message() == READY
        undisturbed = neighbour.marked_processes()
        watchdog = bridge.wait_for_watchdog()
        assert bridge.open_sse().read_message() == READY
        everything = bridge.marked_processes()
        kill(bridge, watchdog)
        bridge.process.wait()
        # The backend itself dies with the bridge; its daemons do not.
        wait_until(lambda: len(bridge.marked_processes()) == 3)
        assert len(list(tmp_path.glob("bridge-*.json"))) == 2
        with bridge_with(tmp_path) as following:
            pid = bridge.process.pid
            following.wait_for_log(f"a bridge that was killed (pid {pid}) had left 3 processes")
            assert not bridge.marked_processes()
            assert not any(map(alive, everything))
            wait_until(lambda: not alive(watchdog))
            assert following.open_sse().read_message() == READY
        assert neighbour.marked_processes() == undisturbed
        assert len(list(tmp_path.glob("bridge-*.json"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_watchdog_of_a_killed_bridge_leaves_nothing_for_the_next_start(tmp_path: Path) -> None:
    with bridge_with(tmp_path) as bridge:
        watchdog = bridge.wait_for_watchdog()
        assert bridge.open_sse().read_message() == READY
        bridge.kill()
        wait_until(lambda: not alive(watchdog))
        assert not bridge.marked_processes()
    with bridge_with(tmp_path) as following:
        following.wait_for_log("had left 0 processes and 0 containers")
    assert list(tmp_path.iterdir()) == []


def test_paused_watchdog_is_resumed_when_the_bridge_stops(tmp_path: Path) -> None:
    """It learns that nothing is left, and ends by itself."""
    with bridge_with(tmp_path) as bridge:
        watchdog = bridge.wait_for_watchdog()
        assert bridge.open_sse().read_message() == READY
        os.kill(watchdog.pid, signal.SIGSTOP)
        bridge.stop()
        # If it had been killed, the state file would be left for the next start.
        assert list(tmp_path.iterdir()) == []


def catches(process: Process, number: int) -> bool:
    """Return True if a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def test_signals_do_not_end_the_watchdog(tmp_path: Path) -> None:
    with bridge_with(tmp_path) as bridge:
        watchdog = bridge.wait_for_watchdog()
        wait_until(lambda: catches(watchdog, signal.SIGUSR1))
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE):
            os.kill(watchdog.pid, number)
        assert bridge.open_sse().read_message() == READY
        bridge.kill()
        wait_until(lambda: not bridge.marked_processes())
        wait_until(lambda: not alive(watchdog))
        assert "the watchdog ended" not in bridge.log
