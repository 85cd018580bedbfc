"""The pid of a backend stays reserved after its exit until its process tree is gone."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from twisted.internet import process
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import directlyProvides

from mcpbridge.pacer import Pacer
from mcpbridge.stdio import procfs
from mcpbridge.stdio.leader import ExitEvents, Leader
from mcpbridge.stdio.reaper import reap
from tests.real.processes import eventually

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="numbers are kept on Linux"
)

#: Attaches to the process that it is given and does nothing more (PTRACE_SEIZE).
TRACER = """
import ctypes, sys, time
if ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), 0, 0) != 0:
    print("refused", flush=True)
else:
    print("traces", flush=True)
    time.sleep(600)
"""


class Transport:
    """The part of a Twisted process that reaping uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.statuses: list[int] = []
        self.reapProcess: Callable[[], None] = lambda: None

    def processEnded(self, status: int) -> None:
        self.statuses.append(status)


class Child:
    """A child whose exit Twisted waits for."""

    def __init__(self, *command: str, events: ExitEvents | None = None) -> None:
        self.pid = os.posix_spawn(command[0], command, {})
        self.transport = Transport(self.pid)
        handlers: dict[int, Any] = process.reapProcessHandlers
        handlers[self.pid] = self.transport
        self.leader = Leader(self.transport, self.pid, events)

    def wait(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def spawn() -> Iterator[Callable[..., Child]]:
    """Return a function that starts children; reap them after the test."""
    children: list[Child] = []

    def make(*command: str, events: ExitEvents | None = None) -> Child:
        children.append(Child(*command, events=events))
        return children[-1]

    yield make
    for each in children:
        if not each.leader.exited:
            process.reapProcessHandlers.pop(each.pid, None)
        try:
            os.kill(each.pid, signal.SIGKILL)
            os.waitpid(each.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [("exit 0", 0, None), ("exit 7", 7, None), ("kill -TERM $$", None, signal.SIGTERM)],
)
def test_exit_is_reported_to_twisted_but_the_pid_stays_reserved(
    spawn: Callable[..., Child], script: str, code: int | None, number: int | None
) -> None:
    """The status is that of wait(2)."""
    child = spawn("/bin/sh", "-c", script)
    child.wait()
    child.transport.reapProcess()
    [status] = child.transport.statuses
    if code is not None:
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == code
    else:
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == number
    assert child.pid not in process.reapProcessHandlers
    child.leader.look()
    assert child.transport.statuses == [status]
    assert procfs.is_dead(child.pid)
    assert reap(child.pid)
    assert reap(child.pid)


def test_running_process_has_not_exited(spawn: Callable[..., Child]) -> None:
    child = spawn("/bin/sleep", "600")
    child.transport.reapProcess()
    child.leader.look_behind_tracer()
    assert not child.leader.exited
    assert not reap(child.pid)


def test_exit_is_reported_if_another_has_reaped_the_process(spawn: Callable[..., Child]) -> None:
    """Its pid is not reserved then."""
    child = spawn("/bin/true")
    os.waitpid(child.pid, 0)
    child.transport.reapProcess()
    assert child.leader.exited
    assert not child.leader.unreaped
    assert child.transport.statuses == [0]


class Reactor(Clock):
    """A clock with readers."""

    def __init__(self) -> None:
        super().__init__()
        directlyProvides(self, IReactorFDSet)
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def read(self) -> None:
        """Wait until a reader is readable, and let it read."""
        [reader] = self.readers
        assert select.select([reader], [], [], 60)[0], "nothing to read"
        reader.doRead()


def test_exit_is_reported_without_asking_for_each_leader(spawn: Callable[..., Child]) -> None:
    """At SIGCHLD, Twisted asks for those in its table: they are not in there."""
    reactor = Reactor()
    events = ExitEvents(reactor, Pacer(reactor))
    descriptors = os.listdir("/proc/self/fd")
    children = [spawn("/bin/sleep", "600", events=events) for _ in range(3)]
    assert process.reapProcessHandlers.keys().isdisjoint(each.pid for each in children)
    for child in children[:2]:
        os.kill(child.pid, signal.SIGTERM)
        child.wait()
        # Twisted asks once more when the last pipe is closed, and the exit has its turn.
        child.transport.reapProcess()
        assert child.transport.statuses == []
    reactor.read()
    for child in children[:2]:
        assert child.transport.statuses == [signal.SIGTERM]
        assert procfs.is_dead(child.pid), "its pid stays reserved"
    assert not children[2].leader.exited
    os.kill(children[2].pid, signal.SIGKILL)
    reactor.read()
    assert children[2].transport.statuses == [signal.SIGKILL]
    # Nothing is left open.
    assert reactor.readers == []
    assert events.fileno() == -1
    events.doRead()
    assert os.listdir("/proc/self/fd") == descriptors
    reactor.advance(0)
    assert reactor.getDelayedCalls() == []


def test_exits_are_paced(spawn: Callable[..., Child]) -> None:
    reactor = Reactor()
    pacer = Pacer(reactor)
    child = spawn("/bin/true", events=ExitEvents(reactor, pacer))
    pacer.run("other", lambda: setattr(reactor, "rightNow", 1.0))
    reactor.read()
    assert child.transport.statuses == []
    reactor.advance(0)
    assert child.transport.statuses == [0]


@pytest.mark.parametrize("without", ["pidfd_open", "epoll", "readers"])
def test_without_exit_events_the_leader_stays_in_the_table_of_twisted(
    spawn: Callable[..., Child], monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    """For want of a descriptor, say."""

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    reactor = Clock() if without == "readers" else Reactor()
    events = ExitEvents(reactor, Pacer(reactor))
    descriptors = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        if without != "readers":
            patch.setattr(
                *((os, "pidfd_open") if without == "pidfd_open" else (select, "epoll")), fail
            )
        child = spawn("/bin/true", events=events)
    assert os.listdir("/proc/self/fd") == descriptors
    child.wait()
    handlers: dict[int, Any] = process.reapProcessHandlers
    handlers[child.pid].reapProcess()
    assert child.transport.statuses == [0]


def test_leaders_go_back_to_twisted_if_their_exits_cannot_be_watched_any_more(
    spawn: Callable[..., Child],
) -> None:
    """As the reactor does it with a reader that fails, and when it stops."""
    reactor = Reactor()
    events = ExitEvents(reactor, Pacer(reactor))
    descriptors = os.listdir("/proc/self/fd")
    children = [spawn("/bin/sleep", "600", events=events) for _ in range(2)]
    os.kill(children[0].pid, signal.SIGTERM)
    children[0].wait()
    reactor.removeReader(events)
    events.connectionLost(Failure(ConnectionLost()))
    assert children[0].transport.statuses == [signal.SIGTERM]
    os.kill(children[1].pid, signal.SIGTERM)
    children[1].wait()
    handlers: dict[int, Any] = process.reapProcessHandlers
    handlers[children[1].pid].reapProcess()
    assert children[1].transport.statuses == [signal.SIGTERM]
    assert os.listdir("/proc/self/fd") == descriptors


def test_exit_that_the_kernel_hides_is_left_to_twisted(spawn: Callable[..., Child]) -> None:
    """The pidfd of a traced process is readable before its parent may learn of the end."""
    reactor = Reactor()
    child = spawn("/bin/sleep", "600", events=ExitEvents(reactor, Pacer(reactor)))
    child.leader._look_once()
    assert child.pid in process.reapProcessHandlers
    os.kill(child.pid, signal.SIGKILL)
    reactor.read()
    assert child.transport.statuses == [signal.SIGKILL]
    assert child.pid not in process.reapProcessHandlers


def test_exit_of_a_traced_process_is_detected(spawn: Callable[..., Child]) -> None:
    """The tracer may hide the exit from its parent as long as it likes."""
    child = spawn("/bin/sleep", "600")
    with subprocess.Popen(
        [sys.executable, "-c", TRACER, str(child.pid)], stdout=subprocess.PIPE
    ) as tracer:
        assert tracer.stdout is not None
        if tracer.stdout.readline() != b"traces\n":
            pytest.skip("this machine does not let a process be traced")
        os.kill(child.pid, signal.SIGKILL)
        assert eventually(lambda: procfs.is_dead(child.pid), 60)
        child.leader.look()
        assert not child.leader.exited
        child.leader.look_behind_tracer()
        assert child.transport.statuses == [signal.SIGKILL]
        assert not reap(child.pid)
        tracer.kill()
    assert eventually(lambda: reap(child.pid), 60)
