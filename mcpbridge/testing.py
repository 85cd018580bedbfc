"""
Fakes for tests of mcpbridge and of its extensions.  Part of the public interface.

`FakeReactor` is a `Clock` that spawns `FakeProcess` objects: a test feeds
their stdout, checks what was written to their stdin, and advances the clock.
`FakeBackend` and `FakeLauncher` stand in for the backend of a session,
`RecordingSink` for its client.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.errors import BackendBusy
from mcpbridge.interfaces import IEnvironmentLauncher, IKillableBackend


class FakePipe:
    """The write end of a fake process's stdin."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process

    def connectionLost(self, reason: Failure) -> None:
        """Close the pipe at once."""
        self._process.close_input()


class FakeProcess:
    """
    A process that exists only in memory.

    It is the transport of a `ProcessProtocol`, and lets a test act as the
    process: `say`, `complain`, `exit`, `end`.
    """

    def __init__(self, pid: int, protocol: Any, line: Sequence[str], env: Any) -> None:
        self.pid: int | None = pid
        self.protocol = protocol
        self.line = list(line)
        self.env = env
        self.written: list[bytes] = []
        self.signals: list[int] = []
        self.paused = False
        self.producer: Any = None
        self.pipes: dict[int, Any] = {0: FakePipe(self), 1: None, 2: None}
        self._exit: Failure | None = None
        protocol.makeConnection(self)

    # For tests: what the process does.

    def say(self, data: bytes) -> None:
        """Write bytes to stdout."""
        self.protocol.childDataReceived(1, data)

    def complain(self, data: bytes) -> None:
        """Write bytes to stderr."""
        self.protocol.childDataReceived(2, data)

    def close_input(self) -> None:
        """Close the pipe of stdin, from either side."""
        if self.pipes.pop(0, self) is not self:
            if self.producer is not None:
                self.producer.stopProducing()
            self.protocol.childConnectionLost(0)
            self._settle()

    def close_output(self, descriptor: int = 1) -> None:
        """Close stdout, or with 2 stderr."""
        if self.pipes.pop(descriptor, self) is not self:
            self.protocol.childConnectionLost(descriptor)
            self._settle()

    def exit(self, status: int = 0, signalled: int | None = None) -> None:
        """Exit, with a status or by a signal, and be reaped; the pipes stay open."""
        clean = status == 0 and signalled is None
        reason: Any = ProcessDone(0) if clean else ProcessTerminated(status, signalled, 0)
        self._exit = Failure(reason)
        self.pid = None
        self.protocol.processExited(self._exit)
        self._settle()

    def end(self, status: int = 0, signalled: int | None = None) -> None:
        """Exit and close all pipes: the usual end of a process."""
        self.close_input()
        self.exit(status, signalled)
        self.close_output(1)
        self.close_output(2)

    def _settle(self) -> None:
        if self._exit is not None and not self.pipes:
            self.pipes = {-1: None}
            self.protocol.processEnded(self._exit)

    # IProcessTransport, as far as the bridge uses it.

    def write(self, data: bytes) -> None:
        """Record bytes for stdin in `written`, while that is open."""
        if 0 in self.pipes:
            self.written.append(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Remember the producer of stdin."""
        self.producer = producer

    def pauseProducing(self) -> None:
        """Set `paused`."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Clear `paused`."""
        self.paused = False

    def signalProcess(self, number: int) -> None:
        """Record a signal in `signals`."""
        self.signals.append(number)

    def closeStdin(self) -> None:
        """Close stdin."""
        self.close_input()

    def loseConnection(self) -> None:
        """Close all pipes."""
        self.close_input()
        self.close_output(1)
        self.close_output(2)


class FakeReactor(Clock):
    """A clock that spawns fake processes, or raises `spawn_error` if that is set."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.spawn_error: Exception | None = None

    def spawnProcess(
        self, protocol: Any, executable: str, args: Sequence[str], env: Any = None, **_: Any
    ) -> FakeProcess:
        """Spawn a fake process, with a pid that no real process has."""
        if self.spawn_error is not None:
            raise self.spawn_error
        process = FakeProcess(2**30 + len(self.processes), protocol, args, env)
        self.processes.append(process)
        return process


class FakeTree:
    """
    A process tree in memory: `rest` holds the pids beside the leader.

    A look is answered when `answer` is called, or with `prompt` at once.
    Signals are recorded in `signals`, and passed to `on_signal`.
    """

    def __init__(self, rest: Sequence[int] = (), *, prompt: bool = False) -> None:
        self.rest = list(rest)
        self.prompt = prompt
        self.signals: list[tuple[str, Any]] = []
        self.group_signals = 0
        self.on_signal: Callable[[str, int], None] = lambda whom, number: None
        self.looks: list[Deferred[list[int]]] = []

    def signal_leader(self, number: int) -> None:
        """Record a signal to the leader and its group."""
        self.signals.append(("leader", signal.Signals(number).name))
        self.on_signal("leader", number)

    def terminate_group(self) -> None:
        """Count in `group_signals` a SIGTERM for the group of a leader that has exited."""
        self.group_signals += 1

    def signal_rest(self, pids: list[int], number: int) -> None:
        """Record a signal to each of these processes."""
        for pid in pids:
            self.signals.append((str(pid), signal.Signals(number).name))
            self.on_signal(str(pid), number)

    def look(self) -> Deferred[list[int]]:
        """Return a `Deferred` of `rest`."""
        if self.prompt:
            return succeed(list(self.rest))
        self.looks.append(Deferred())
        return self.looks[-1]

    def answer(self) -> None:
        """Answer all looks that wait, with the present `rest`."""
        looks, self.looks = self.looks, []
        for look in looks:
            look.callback(list(self.rest))


@implementer(IKillableBackend)
class FakeBackend:
    """A backend that records what it is sent and told; a test fires `stopped` to end it."""

    def __init__(self, receiver: Any = None, label: str = "") -> None:
        self.receiver = receiver
        self.label = label
        self.sent: list[bytes] = []
        self.events: list[str] = []
        self.busy = False
        self.stopped: Deferred[None] = Deferred()
        self.exit_status: str | None = None
        #: The variables that it was started with for its client.
        self.environment: Mapping[str, str] = {}

    def send(self, line: bytes) -> None:
        """Record a message; raise `BackendBusy` while `busy` is set."""
        if self.busy:
            raise BackendBusy("the fake backend is busy")
        self.sent.append(line)

    def pause(self) -> None:
        """Record the call in `events`."""
        self.events.append("pause")

    def resume(self) -> None:
        """Record the call in `events`."""
        self.events.append("resume")

    def stop(self) -> Deferred[None]:
        """Record the call in `events`."""
        self.events.append("stop")
        return self.stopped

    def kill(self) -> None:
        """Record the call in `events`."""
        self.events.append("kill")


@implementer(IEnvironmentLauncher)
class FakeLauncher:
    """Starts fake backends at once, or fails with `error` if that is set."""

    def __init__(self) -> None:
        self.backends: list[FakeBackend] = []
        self.error: Exception | None = None

    def launch(self, receiver: Any, label: str) -> Deferred[FakeBackend]:
        """Return a fired `Deferred` of a new fake backend, or a failed one."""
        launched: Deferred[FakeBackend] = Deferred()
        if self.error is not None:
            launched.errback(Failure(self.error))
        else:
            self.backends.append(FakeBackend(receiver, label))
            launched.callback(self.backends[-1])
        return launched

    def launch_with(
        self, receiver: Any, label: str, environment: Mapping[str, str]
    ) -> Deferred[FakeBackend]:
        """Do what `launch` does, and set the variables as the backend's `environment`."""
        before = len(self.backends)
        launched = self.launch(receiver, label)
        for backend in self.backends[before:]:
            backend.environment = environment
        return launched

    def check(self) -> str | None:
        """Report no problem."""
        return None


class RecordingSink:
    """The sink of a session, which records what its client would get."""

    def __init__(self) -> None:
        self.has_reader = True
        self.lines: list[bytes] = []
        self.events: list[str] = []
        self.closing: Callable[[], None] = lambda: None

    def send(self, lines: list[bytes]) -> None:
        """Record the messages."""
        self.lines.extend(lines)

    def only_open(self) -> msgspec.UnsetType:
        """Report that open requests are not counted."""
        return msgspec.UNSET

    def stop_keepalive(self) -> None:
        """Record the call in `events`."""
        self.events.append("stop_keepalive")

    def close(self) -> None:
        """Record the call in `events`."""
        self.events.append("close")
        self.closing()


#: The reason of a connection that ended without an error.
CLEANLY = Failure(ConnectionDone())
