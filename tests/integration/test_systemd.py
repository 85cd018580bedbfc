"""What a service manager is told, and when."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from mcpbridge.systemd import VARIABLES, ServiceManager


class Listening:
    """A service manager that listens at a path."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    def told(self) -> list[list[str]]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return found


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    listening = Listening(tmp_path / "notify")
    yield listening
    listening.socket.close()


def test_all_that_is_told(listening: Listening) -> None:
    clock = Clock()
    environment = {"NOTIFY_SOCKET": listening.path, "HOME": "/root"}
    manager = ServiceManager.of(environment, clock)
    assert environment == {"HOME": "/root"}
    manager.ready("serving\n2 servers")
    [ready] = listening.told()
    assert ready == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=serving 2 servers"]
    manager.reloading()
    [[first, when, status]] = listening.told()
    assert (first, status) == ("RELOADING=1", "STATUS=reading the settings again")
    name, _, microseconds = when.partition("=")
    assert name == "MONOTONIC_USEC"
    assert int(microseconds) > 0
    manager.stopping("finishing 3 requests", 40.5)
    assert listening.told() == [
        ["STOPPING=1", "EXTEND_TIMEOUT_USEC=40500000", "STATUS=finishing 3 requests"]
    ]
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("pid", ["", "7"])
def test_the_watchdog_is_told_twice_as_often_as_it_wants(listening: Listening, pid: str) -> None:
    clock = Clock()
    environment = {"NOTIFY_SOCKET": listening.path, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": pid}
    manager = ServiceManager.of(environment, clock)
    manager._pid = lambda: 7
    clock.advance(10)
    assert listening.told() == []
    manager.ready("x")
    assert listening.told()[1:] == [["WATCHDOG=1"]]
    clock.advance(1.4)
    assert listening.told() == []
    clock.advance(0.1)
    assert listening.told() == [["WATCHDOG=1"]]
    # After a reload it goes on with one timer.
    manager.ready("x")
    assert len(clock.getDelayedCalls()) == 1
    manager.stop()
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("microseconds", "pid"), [("3000000", "8"), ("", ""), ("many", ""), ("-1", ""), ("0", "7")]
)
def test_no_watchdog(listening: Listening, microseconds: str, pid: str) -> None:
    """It is another process's, as this one has become a daemon; or there is none."""
    clock = Clock()
    manager = ServiceManager(clock, listening.path, watchdog_pid=int(pid) if pid else None)
    environment = {"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}
    other = ServiceManager.of({"NOTIFY_SOCKET": listening.path, **environment}, clock)
    for each in (manager, other):
        each.ready("x")
    assert len(listening.told()) == 2
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative"])
def test_nobody_is_told_without_a_socket(address: str, log_lines: list[str]) -> None:
    environment = {"NOTIFY_SOCKET": address, **dict.fromkeys(VARIABLES[1:], "1")}
    manager = ServiceManager.of(environment, Clock())
    assert environment == {}
    manager.ready("x")
    manager.stopping("x", 1)
    assert log_lines == []


def test_errors_are_logged_once(tmp_path: Path, log_lines: list[str]) -> None:
    manager = ServiceManager(Clock(), str(tmp_path / "nothing"))
    manager.ready("x")
    manager.reloading()
    assert log_lines == [
        "the service manager cannot be told of the bridge: No such file or directory"
    ]


def test_a_service_manager_that_does_not_read_delays_nobody(
    listening: Listening, log_lines: list[str]
) -> None:
    manager = ServiceManager(Clock(), listening.path)
    for _ in range(3000):
        manager.ready("x" * 100)
    assert len(log_lines) == 1
