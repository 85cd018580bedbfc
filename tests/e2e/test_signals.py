"""
Signals to a bridge on a terminal, in the background and as a daemon.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import TIMEOUT, Bridge, SseStream, backend, request, serving, wait_until
from tests.e2e.test_teardown import SHORT_OPTIONS, open_ready
from tests.real.parts import beside_python
from tests.real.processes import alive, descendants

pytestmark = pytest.mark.slow


def test_signals_other_than_stop_signals_end_no_session(tmp_path: Path) -> None:
    """SIGHUP, SIGUSR1 and SIGUSR2 end nothing; SIGUSR1 reports the sessions; SIGQUIT stops."""
    with serving(*SHORT_OPTIONS, command=backend("scattered")) as bridge:
        stream = open_ready(bridge, "")
        [leader] = [each for each in bridge.descendants() if "scattered.py" in each.command]
        bridge.process.send_signal(signal.SIGHUP)
        bridge.wait_for_log("SIGHUP: there is no log file to reopen")
        bridge.process.send_signal(signal.SIGUSR2)
        bridge.wait_for_log("SIGUSR2 does nothing")
        bridge.process.send_signal(signal.SIGUSR1)
        bridge.wait_for_log("1 sessions and other processes:")
        bridge.wait_for_log(
            f"session {stream.session_id[:8]} of ", "/sse, open, ", f"pid {leader.pid},"
        )
        assert stream.round_trip(request("x")) == request("x")
        bridge.descendants()
        bridge.process.send_signal(signal.SIGQUIT)
        bridge.assert_stopped([0])
        assert "SIGQUIT: received, shutting down" in bridge.log
        assert "the bridge is shutting down" in bridge.wait_for_close(stream)


def test_second_stop_signal_logs_how_long_stopping_may_take() -> None:
    """It ends nothing, as no request runs; a third one would."""
    waits = ["sh", "-c", "while [ ! -e leave ]; do sleep 0.1; done"]
    with serving("--stop-grace", "1000", "--kill-grace", "100", command=waits) as bridge:
        bridge.open_sse()
        bridge.wait_for_backends(1)
        bridge.process.send_signal(signal.SIGTERM)
        bridge.wait_for_log("SIGTERM: received, shutting down")
        bridge.process.send_signal(signal.SIGINT)
        bridge.wait_for_log("SIGINT: already stopping, which may take up to 1110 s; the next")
        (bridge.folder / "leave").touch()
        assert bridge.process.wait(60) == 0


def test_ignored_sighup_stays_ignored() -> None:
    """Under `nohup` the bridge outlives its terminal, without a log line."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        # With an environment it is a program of its own, which inherits what is ignored here.
        with serving(*SHORT_OPTIONS, environment={}) as bridge:
            stream = bridge.open_sse()
            bridge.process.send_signal(signal.SIGHUP)
            bridge.process.send_signal(signal.SIGUSR2)
            bridge.wait_for_log("SIGUSR2")
            assert stream.round_trip(request("x")) == request("x")
            assert "SIGHUP:" not in bridge.log
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def running(line: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Bridge]]:
    """Run a bridge that logs to a file; yield its process and a `Bridge` for its clients."""
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL)
    serves = re.compile(r"serving http://127\.0\.0\.1:(\d+)/sse")
    try:
        wait_until(lambda: log.exists() and serves.search(log.read_text()))
        found = serves.search(log.read_text())
        assert found is not None
        yield process, Bridge(process, log.parent, "", int(found[1]))
    finally:
        process.kill()
        process.wait()


def twistd(folder: Path, *options: str) -> list[str]:
    """Return the command line of a bridge that logs to `log`."""
    bridge = ["--listen", "tcp:0:interface=127.0.0.1", "--state-dir", str(folder / "state")]
    paths = [f"--pidfile={folder / 'pid'}", f"--logfile={folder / 'log'}", f"--rundir={folder}"]
    command = [beside_python("twistd"), *options, *paths, "mcpbridge", *bridge, *SHORT_OPTIONS]
    return [*command, "--", *backend("scattered"), "no marker"]


def test_sighup_reopens_the_log_file(tmp_path: Path) -> None:
    """A daemon's log is renamed, as by logrotate, and continues in a new file."""
    log, old = tmp_path / "log", tmp_path / "log.1"
    with running(twistd(tmp_path), log) as (_, bridge):
        pid = int((tmp_path / "pid").read_text())
        processes = descendants(pid)
        try:
            os.rename(log, old)
            os.kill(pid, signal.SIGHUP)
            wait_until(lambda: log.exists() and f"SIGHUP: reopened {log}" in log.read_text())
            # twistd itself would rotate the file at this one.
            os.kill(pid, signal.SIGUSR1)
            wait_until(lambda: "0 sessions and other processes" in log.read_text())
            with SseStream(bridge.port).read_opening_events():
                wait_until(lambda: "opened" in log.read_text())
                processes |= descendants(pid)
            assert sorted(each.name for each in tmp_path.glob("log*")) == ["log", "log.1"]
            assert "opened" not in old.read_text()
        finally:
            os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: "Server Shut Down" in log.read_text())
        wait_until(lambda: not any(map(alive, processes)))
        assert "SIGQUIT: received, shutting down" in log.read_text()


#: Execute a command with a terminal, as the leader of its session.
ON_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), termios.TIOCSCTTY, 0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_terminal_that_hangs_up_stops_the_bridge(tmp_path: Path) -> None:
    """A closed window or lost ssh ends every session in order; `kill -HUP` does not."""
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    log = tmp_path / "log"
    line = [sys.executable, "-c", ON_A_TERMINAL, name, *twistd(tmp_path, "-n")]
    try:
        with running(line, log) as (process, bridge):
            os.close(theirs)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: "SIGHUP: reopened" in log.read_text())
            with SseStream(bridge.port).read_opening_events() as stream:
                assert stream.read_message() == b'{"jsonrpc":"2.0","method":"ready"}'
                processes = descendants(process.pid)
                os.close(ours)
                assert process.wait(TIMEOUT) == 0
                wait_until(lambda: not any(map(alive, processes)))
            assert "SIGHUP: the terminal is gone, shutting down" in log.read_text()
            assert "the bridge is shutting down" in log.read_text()
    finally:
        with contextlib.suppress(OSError):
            os.close(ours)
