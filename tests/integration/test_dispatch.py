"""
`dispatch_directly` changes how long an event takes, and nothing else.

Hypothesis writes what happens to some descriptors, which two epoll reactors
then go through: one as Twisted made it, and one that dispatches directly.  Both
must have read the same, have lost the same descriptors for the same reasons,
and have logged the same errors in the same contexts.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.process import ProcessReader, ProcessWriter
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.python import context, log
from twisted.python.failure import Failure

from mcpbridge import twisted_internals
from mcpbridge.twisted_internals import (
    COLLECTED,
    COLLECTED_BYTES,
    COLLECTED_WRITES,
    READ_BYTES,
    dispatch_directly,
    prompt_descriptor,
    prompt_writer,
    read_directly,
    write_at_once,
)

if sys.platform != "linux":
    pytest.skip("there is no epoll", allow_module_level=True)

from twisted.internet.epollreactor import EPollReactor

Trace = list[tuple[object, ...]]

#: What a descriptor is: two that are read directly, and one that Twisted dispatches.
KINDS = ("socket", "output", "foreign")
#: What its handler does with what it has read.
REACTIONS = ("nothing", "raise", "lose", "abort another", "pause another", "write", "interrupt")
REACTION = st.sampled_from(REACTIONS)
STEP = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 5), REACTION),
    st.tuples(st.just("close"), st.integers(0, 5), st.just("nothing")),
    st.tuples(st.just("turn"), st.just(0), st.just("nothing")),
)


class Interrupt(BaseException):
    """What `except Exception` does not catch."""


class Foreign(FileDescriptor):
    """A descriptor that the bridge knows nothing of."""

    def __init__(self, reactor: Any, fd: int, end: End) -> None:
        super().__init__(reactor)
        self.fd, self.end, self.connected = fd, end, 1

    def fileno(self) -> int:
        return self.fd

    def doRead(self) -> Any:
        data = os.read(self.fd, 1000)
        return self.end.dataReceived(data) if data else log  # anything true ends it

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        os.close(self.fd)
        self.end.connectionLost(reason)

    def logPrefix(self) -> str:
        return f"Foreign {self.end.number}"


class End(Protocol):
    """One of the descriptors: what it reads and how it ends goes into the trace."""

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.number = run, number
        self.reaction = "nothing"
        self.kind = KINDS[number % len(KINDS)]
        reactor = run.reactor
        if self.kind == "socket":
            ours, theirs = socket.socketpair()
            self.peer = theirs.detach()
            self.descriptor: Any = Connection(ours, self, reactor)
            self.descriptor.connected = 1
            self.descriptor.logstr = f"Socket {number}"
            assert prompt_descriptor(self.descriptor) is self.descriptor
            self.descriptor.startReading()
        else:
            ours_fd, self.peer = os.pipe()
            if self.kind == "output":
                self.descriptor = ProcessReader(reactor, self, str(number), ours_fd)
                read_directly(self.descriptor, self.dataReceived)
            else:
                self.descriptor = Foreign(reactor, ours_fd, self)
                self.descriptor.startReading()

    def send(self, reaction: str) -> None:
        self.reaction = reaction
        if self.peer >= 0:
            try:
                os.write(self.peer, b"data")
            except OSError as error:
                self.run.trace.append((self.number, "not sent", error.errno))

    def close(self) -> None:
        if self.peer >= 0:
            os.close(self.peer)
            self.peer = -1

    # From the reactor.

    @property
    def proto(self) -> End:
        """The protocol of a process, which this is for its pipe."""
        return self

    def lose_in_turn(self, lose: Callable[[], None]) -> None:
        self.run.take_turn(lose)

    def dataReceived(self, data: bytes) -> None:
        self.run.trace.append((self.number, "read", data))
        other = self.run.ends[(self.number + 1) % len(self.run.ends)].descriptor
        match self.reaction:
            case "raise":
                raise ValueError(f"from {self.number}")
            case "interrupt":
                raise Interrupt(f"from {self.number}")
            case "lose":
                self.descriptor.loseConnection()
            case "abort another":
                if other.connected:
                    other.connectionLost(Failure(ValueError("aborted")))
            case "pause another":
                other.stopReading()
                self.run.reactor.callLater(0, self.resume, other)
            case "write":
                if self.kind == "socket":
                    self.descriptor.write(b"answer")

    def resume(self, other: Any) -> None:
        if other.connected:
            other.startReading()

    def childConnectionLost(self, name: str, reason: Failure) -> None:
        os.close(self.descriptor.fd)
        self.connectionLost(reason)

    def childDataReceived(self, name: str, data: bytes) -> None:
        raise AssertionError("a pipe that is read directly calls no ProcessProtocol")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.run.trace.append((self.number, "lost", reason.type, reason.getErrorMessage()))


class Run:
    """A reactor of its own, with six descriptors."""

    def __init__(self, *, direct: bool) -> None:
        self.trace: Trace = []
        #: The ends of descriptors that wait for their turns; None if each has it at once.
        self.waiting: list[Callable[[], None]] | None = None
        self.reactor: Any = EPollReactor()
        self.undo = dispatch_directly(self.reactor) if direct else lambda: None
        self.ends: list[End] = []
        for number in range(6):
            self.ends.append(End(self, number))

    def take_turn(self, lose: Callable[[], None]) -> None:
        if self.waiting is None:
            lose()
        else:
            self.waiting.append(lose)

    def lost(self) -> list[object]:
        """Return the numbers of the descriptors that are lost."""
        return [each[0] for each in self.trace if each[1] == "lost"]

    def turn(self) -> None:
        self.reactor.runUntilCurrent()
        self.reactor.doIteration(0)

    def observe(self, event: dict[str, Any]) -> None:
        if event.get("isError"):
            failure = event["failure"]
            error = (failure.type, failure.getErrorMessage())
            self.trace.append(("logged", event["system"], *error))

    def go(self, steps: list[tuple[str, int, str]]) -> Trace:
        log.addObserver(self.observe)
        try:
            for what, number, reaction in steps:
                if what == "send":
                    self.ends[number].send(reaction)
                elif what == "close":
                    self.ends[number].close()
                else:
                    self.turn()
            for _ in range(3):
                self.turn()
            self.trace.append(("open", *(end.descriptor.connected for end in self.ends)))
        finally:
            log.removeObserver(self.observe)
        return list(self.trace)

    def close(self) -> None:
        for end in self.ends:
            end.close()
            if end.descriptor.connected:
                end.descriptor.connectionLost(Failure(ValueError("the end")))
        self.reactor.removeAll()
        self.reactor.waker.connectionLost(None)
        self.reactor._poller.close()


@contextmanager
def running(*, direct: bool) -> Iterator[Run]:
    run = Run(direct=direct)
    try:
        yield run
    finally:
        run.close()


def trace(steps: list[tuple[str, int, str]], *, direct: bool) -> Trace:
    with running(direct=direct) as run:
        assert ("doIteration" in vars(run.reactor)) is direct
        return run.go(steps)


@given(st.lists(STEP, max_size=30))
def test_both_dispatchers_do_the_same(steps: list[tuple[str, int, str]]) -> None:
    assert trace(steps, direct=True) == trace(steps, direct=False)


@pytest.mark.parametrize("number", range(3), ids=KINDS)
@pytest.mark.parametrize("reaction", REACTIONS)
def test_each_reaction_alone(number: int, reaction: str) -> None:
    steps = [("send", number, reaction), ("turn", 0, ""), ("send", number, "nothing")]
    steps += [("turn", 0, ""), ("close", number, "")]
    assert trace(steps, direct=True) == trace(steps, direct=False)


@pytest.mark.parametrize("number", range(3), ids=KINDS)
def test_exception_ends_one_descriptor_and_is_logged_once(number: int) -> None:
    found = trace(
        [("send", each, "raise" if each == number else "") for each in range(3)], direct=True
    )
    assert [each for each in found if each[1] == "lost"] == [
        (number, "lost", ValueError, f"from {number}")
    ]
    assert len([each for each in found if each[0] == "logged"]) == 1
    assert [each[0] for each in found if each[1] == "read"] == [0, 1, 2]


def test_direct_descriptors_get_no_log_context() -> None:
    """Otherwise nothing would be gained."""
    contexts = []

    class Asking(End):
        def dataReceived(self, data: bytes) -> None:
            contexts.append(context.get(log.ILogContext)["system"])

    with running(direct=True) as run:
        for each in run.ends[:3]:
            each.__class__ = Asking
            if each.kind == "output":
                read_directly(each.descriptor, each.dataReceived)
        run.go([("send", each, "") for each in range(3)])
    assert contexts == ["-", "-", "Foreign 2"]


@pytest.mark.parametrize("number", [0, 1], ids=KINDS[:2])
def test_end_may_wait_for_its_turn(number: int) -> None:
    """What was sent before is read at once, and the reactor does not report the end again."""
    with running(direct=True) as run:
        run.waiting = []
        run.ends[number].send("nothing")
        run.ends[number].close()
        run.ends[2].close()
        for _ in range(5):
            run.turn()
        assert run.trace[0] == (number, "read", b"data")
        assert run.lost() == [2], "one that nobody has a turn for"
        [lose] = run.waiting
        lose()
        assert run.lost() == [2, number]
        lose()
        assert run.lost() == [2, number]


@pytest.mark.parametrize("number", [0, 1], ids=KINDS[:2])
@pytest.mark.parametrize("how", ["lost", "closed", "aborted"])
@pytest.mark.parametrize("early", [True, False])
def test_what_is_closed_while_its_end_waits_is_lost_once(
    number: int, how: str, early: bool
) -> None:
    """Whichever comes first."""
    with running(direct=True) as run:
        run.waiting = []
        descriptor = run.ends[number].descriptor
        run.ends[number].close()
        run.turn()
        if how == "lost":
            descriptor.connectionLost(Failure(ValueError("meanwhile")))
        elif how == "closed":
            descriptor.loseConnection()
        else:
            getattr(descriptor, "abortConnection", descriptor.loseConnection)()
        if early:
            run.waiting[0]()
        run.turn()
        run.turn()
        run.waiting[0]()
        run.turn()
        assert run.lost() == [number]
        assert len(run.waiting) == 1


@pytest.mark.parametrize("number", [0, 1], ids=KINDS[:2])
def test_reading_that_is_resumed_while_an_end_waits_changes_nothing(number: int) -> None:
    """The end is learned of again, and happens once."""
    with running(direct=True) as run:
        run.waiting = []
        run.ends[number].close()
        run.turn()
        run.ends[number].descriptor.startReading()
        run.turn()
        for lose in run.waiting:
            lose()
        assert run.lost() == [number]


def test_input_of_a_process_that_has_closed_it_waits_for_its_turn() -> None:
    with running(direct=True) as run:
        pipe = Pipe(run)
        run.waiting = []
        pipe.proto = run.ends[0]
        pipe.descriptor.startReading()
        os.close(pipe.reading)
        for _ in range(3):
            run.turn()
        assert not pipe.lost
        [lose] = run.waiting
        lose()
        assert pipe.lost


def test_full_input_of_a_process_that_has_exited_waits_for_one_turn() -> None:
    """It waits to be written to as well, and its end would be reported in each iteration."""
    with running(direct=True) as run:
        pipe = Pipe(run)
        run.waiting = []
        pipe.proto = run.ends[0]
        pipe.descriptor.write(bytes(1 << 20))
        run.turn()
        os.close(pipe.reading)
        for _ in range(3):
            run.turn()
        assert not pipe.lost
        [lose] = run.waiting
        lose()
        assert pipe.lost


def test_interrupted_poll_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
            raise InterruptedError

    with running(direct=False) as run:
        poller, run.reactor._poller = run.reactor._poller, Interrupted()
        undo = dispatch_directly(run.reactor)
        run.reactor.doIteration(None)
        undo()
        run.reactor._poller = poller
        assert run.trace == []


def test_direct_dispatch_can_be_undone() -> None:
    with running(direct=True) as run:
        installed = run.reactor.doIteration
        assert dispatch_directly(run.reactor)() is None
        assert run.reactor.doIteration is installed, "only the first caller undoes it"
        run.undo()
        run.undo()
        assert "doIteration" not in vars(run.reactor)
        # Somebody else's is left alone.
        run.reactor.doIteration = installed
        run.undo()
        other = run.reactor.doIteration = lambda timeout: None
        run.undo()
        assert run.reactor.doIteration is other


def test_other_reactors_are_left_alone() -> None:
    class Subclass(EPollReactor):
        """Its `doPoll` may do anything."""

    reactor: Any = Subclass()
    dispatch_directly(reactor)()
    assert "doIteration" not in vars(reactor)
    reactor.removeAll()
    reactor.waker.connectionLost(None)
    reactor._poller.close()
    something = object()
    dispatch_directly(something)()


# Collected writes.


class Pipe:
    """The pipe of a process's input, which belongs to a run's reactor."""

    #: The protocol of the process.
    proto: Any = None

    def __init__(self, run: Run) -> None:
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.descriptor: Any = ProcessWriter(run.reactor, self, "0", writing)
        assert prompt_writer(self.descriptor) is self.descriptor
        self.lost = False

    def childConnectionLost(self, name: str, reason: Failure) -> None:
        os.close(self.descriptor.fd)
        self.lost = True

    def read(self) -> bytes:
        try:
            return os.read(self.reading, 1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self.reading)
        if not self.lost:
            self.descriptor.connectionLost(Failure(ValueError("the end")))


class Writing(End):
    """What it reads makes it write `lines`; `written` is what was in the pipe after each."""

    pipe: Pipe
    lines: list[bytes]
    written: list[bytes]

    def dataReceived(self, data: bytes) -> None:
        for line in self.lines:
            COLLECTED.write(self.pipe.descriptor, line)
            self.written.append(self.pipe.read())


@contextmanager
def writing(*lines: list[bytes], direct: bool = True) -> Iterator[tuple[Run, Pipe, list[bytes]]]:
    """Yield a run that has such ends, its pipe, and what each of them has written."""
    written: list[bytes] = []
    with running(direct=direct) as run:
        pipe = Pipe(run)
        try:
            # The sockets of the run.
            for end, own in zip(run.ends[::3], lines, strict=False):
                end.__class__ = Writing
                end.pipe, end.lines, end.written = pipe, own, written  # type: ignore[attr-defined]
                end.send("nothing")
            yield run, pipe, written
        finally:
            pipe.close()


@pytest.mark.parametrize("direct", [True, False])
def test_writes_of_one_iteration_are_one_write(direct: bool) -> None:
    """Where the reactor dispatches directly; and they wait for no other event."""
    with writing([b"1\n", b"2\n"], [b"3\n"], direct=direct) as (run, pipe, written):
        run.turn()
        assert written == ([b"", b"", b""] if direct else [b"1\n", b"2\n", b"3\n"])
        assert pipe.read() == (b"1\n2\n3\n" if direct else b"")
    assert not COLLECTED.is_open


@pytest.mark.parametrize("events", [2, 3])
def test_collected_writes_wait_for_less_than_flush_events(
    events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of others may come in the same iteration, and each take long."""
    monkeypatch.setattr(twisted_internals, "FLUSH_EVENTS", events)
    with writing([b"1"], [b"2"]) as (run, pipe, written):
        run.turn()
        assert written == ([b"", b"1"] if events == 2 else [b"", b""])
        assert pipe.read() == (b"2" if events == 2 else b"12")


def test_no_more_than_so_many_writes_are_collected() -> None:
    """`COLLECTED_WRITES`: the rest of the iteration may take long."""
    with writing([b"x"] * (COLLECTED_WRITES + 1)) as (run, pipe, written):
        run.turn()
        assert written == [b""] * (COLLECTED_WRITES - 1) + [b"x" * COLLECTED_WRITES, b""]
        assert pipe.read() == b"x"


def test_no_more_than_so_many_bytes_are_collected() -> None:
    """`COLLECTED_BYTES`: what the pipe does not take waits in the queue, which has a bound."""
    lines = [b"x" * (COLLECTED_BYTES - 1), b"y", b"z"]
    with writing(lines) as (run, pipe, written):
        run.turn()
        assert [len(each) for each in written] == [0, COLLECTED_BYTES, 0]
        assert pipe.read() == b"z"


def test_what_is_collected_for_a_pipe_that_is_lost_meanwhile_is_dropped() -> None:
    with writing([b"lost\n"]) as (run, pipe, _):
        run.ends[3].send("nothing")
        run.ends[3].dataReceived = (  # type: ignore[method-assign]
            lambda data: pipe.descriptor.connectionLost(Failure(ValueError("lost")))
        )
        run.turn()
        assert pipe.lost
        assert pipe.read() == b""


def test_failure_of_one_pipe_keeps_nothing_from_the_others() -> None:
    """What the transport calls back may fail."""

    def fail(data: bytes) -> int:
        raise ValueError("from a callback")

    with running(direct=True) as other, writing([b"lost"], [b"1\n"]) as (run, pipe, _):
        broken = Pipe(other)
        broken.descriptor.write_now = fail
        run.ends[0].pipe = broken  # type: ignore[attr-defined]
        [*_, logged, _] = run.go([("turn", 0, "")])
        assert logged == ("logged", "-", ValueError, "from a callback")
        assert pipe.read() == b"1\n"
        broken.close()


# Reads and writes without Twisted's own functions.


def test_one_read_takes_all_that_a_pipe_holds() -> None:
    """`READ_BYTES`."""
    with running(direct=True) as run:
        end = run.ends[1]
        assert end.kind == "output"
        data = b"x" * READ_BYTES
        assert os.write(end.peer, data) == READ_BYTES
        assert run.go([("turn", 0, "")])[0] == (1, "read", data)
        # A larger pipe takes several.
        fcntl.fcntl(end.peer, fcntl.F_SETPIPE_SZ, 2 * READ_BYTES)
        assert os.write(end.peer, data + b"y") == READ_BYTES + 1
        run.trace.clear()
        assert run.go([("turn", 0, "")])[:2] == [(1, "read", data), (1, "read", b"y")]


def test_errors_of_a_read_are_those_of_twisted() -> None:
    """Nothing to read is no error; a closed pipe is lost, and ended output is done."""
    with running(direct=True) as run:
        reader = run.ends[1].descriptor
        assert reader.doRead() is None
        run.ends[1].close()
        assert reader.doRead() is CONNECTION_DONE
        reader.stopReading()
        spare = os.dup(reader.fd)
        os.close(reader.fd)
        assert reader.doRead() is CONNECTION_LOST
        os.dup2(spare, reader.fd)
        os.close(spare)


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_write_to_a_full_or_lost_descriptor_is_left_to_the_transport(kind: str) -> None:
    """It is reported in the next iteration, and what was written is in order."""
    with writing([]) as (run, pipe, _):
        end = run.ends[0]
        descriptor: Any = pipe.descriptor if kind == "pipe" else end.descriptor
        reading = pipe.reading if kind == "pipe" else end.peer
        os.set_blocking(reading, False)
        taken = 0
        while write_at_once(descriptor, b"x" * 1000):
            taken += 1000
        assert not write_at_once(descriptor, b"last")
        received = b""
        while len(received) < taken + 1004:
            received += os.read(reading, 1 << 20)
            run.turn()
        assert received == b"x" * (taken + 1000) + b"last"
        if kind == "pipe":
            os.close(pipe.reading)
            pipe.reading = os.dup(end.peer)
        else:
            end.close()
        assert not write_at_once(descriptor, b"lost")
        assert descriptor.connected
        run.turn()
        run.turn()
        assert not descriptor.connected
        assert not write_at_once(descriptor, b"lost")
