"""
The private names of Twisted exist and do what the bridge uses them for.

A failure here, under a new version of Twisted, names what has to change in
`mcpbridge.twisted_internals`.
"""

from __future__ import annotations

import ast
import errno
import re
import signal
import sys
from collections.abc import Iterator
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import process, tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.testing import MemoryReactor
from twisted.logger import (
    LogEvent,
    Logger,
    LogPublisher,
    formatEventAsClassicLogText,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.web.server import Request

from mcpbridge import twisted_internals
from mcpbridge.testing import FakeReactor
from mcpbridge.twisted_internals import (
    AT_ONCE_BYTES,
    CONNECTION_CLOSED,
    CONNECTION_NOT_ACCEPTED,
    DESCRIPTOR_RESERVED_AGAIN,
    RESERVED_DESCRIPTOR_RELEASED,
    PreparedProcess,
    accept_waiting,
    buffered_bytes,
    formats_as_text_file,
    is_twistd_handler,
    keep_open_for_others,
    log_port_to,
    observed_files,
    observers_of,
    spawn_prepared,
    write_at_once,
    write_large,
    write_to_file,
)

PACKAGE = Path(twisted_internals.__file__).parent
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {Path(twisted_internals.__file__)})

#: How Twisted spells its private names, and the bridge never.
CAMEL_CASE = re.compile(r"_[a-z]+[A-Z]\w*|_[A-Z]\w*__\w+")


#: Those that a subclass could override, of the one class of Twisted with any that the bridge has.
PRIVATE_OF_REQUESTS = frozenset(dir(Request))


def private_names_of_twisted(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            others = not isinstance(node.value, ast.Name) and "super()" in ast.unparse(node.value)
            if CAMEL_CASE.fullmatch(node.attr) or (others and node.attr == "_cleanup"):
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if CAMEL_CASE.fullmatch(node.value):
                yield node.value
        elif isinstance(node, (ast.Name, ast.FunctionDef)):
            name = node.id if isinstance(node, ast.Name) else node.name
            if CAMEL_CASE.fullmatch(name) and name in PRIVATE_OF_REQUESTS:
                yield name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twisted"):
            yield from (each.name for each in node.names if each.name.startswith("_"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_module_uses_private_names_of_twisted(path: Path) -> None:
    assert list(private_names_of_twisted(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_that_test_finds_them() -> None:
    text = Path(twisted_internals.__file__).read_text(encoding="utf-8")
    found = set(private_names_of_twisted(ast.parse(text)))
    assert found >= {"_tempDataLen", "_trySpawnInsteadOfFork", "_outFile"}
    overriding = "class A:\n def _cleanup(self): super()._cleanup()"
    assert list(private_names_of_twisted(ast.parse(overriding))) == ["_cleanup"]


# Descriptors.


class Descriptor(FileDescriptor):
    """A descriptor that keeps what is written, `room` bytes at most."""

    def __init__(self, room: int = 1000) -> None:
        super().__init__(MemoryReactor())
        self.connected = 1
        self.room = room
        self.written = b""

    def writeSomeData(self, data: bytes) -> int:
        data = bytes(data[: self.room])
        self.written += data
        self.room -= len(data)
        return len(data)

    #: As `prompt_descriptor` makes it.
    write_now = writeSomeData

    def startWriting(self) -> None:
        """The test calls doWrite."""


def test_what_fits_is_written_at_once() -> None:
    descriptor = Descriptor()
    assert write_at_once(descriptor, b"first")
    assert descriptor.written == b"first"
    assert buffered_bytes(descriptor) == 0


def test_what_does_not_fit_is_left_to_the_transport() -> None:
    descriptor = Descriptor(room=3)
    assert not write_at_once(descriptor, b"first")
    assert descriptor.written == b"fir"
    assert buffered_bytes(descriptor) == 2


@pytest.mark.parametrize("size", [AT_ONCE_BYTES, AT_ONCE_BYTES + 1])
def test_large_write_is_left_to_the_transport(size: int) -> None:
    """Beyond `AT_ONCE_BYTES`; it is written all the same."""
    descriptor = Descriptor(room=2 * AT_ONCE_BYTES)
    data = b"x" * size
    assert write_at_once(descriptor, data) is (size <= AT_ONCE_BYTES)
    assert len(descriptor.written) == (size if size <= AT_ONCE_BYTES else 0)
    assert buffered_bytes(descriptor) == size - len(descriptor.written)
    while buffered_bytes(descriptor):
        descriptor.doWrite()
    assert descriptor.written == data


def test_nothing_overtakes_what_the_transport_has_collected() -> None:
    """`_tempDataLen` counts what `write` has collected and not moved to `dataBuffer`."""
    descriptor = Descriptor()
    descriptor.write(b"first")
    assert not descriptor.dataBuffer
    assert buffered_bytes(descriptor) == 5
    assert not write_at_once(descriptor, b" second")
    assert descriptor.written == b""
    assert buffered_bytes(descriptor) == 12
    descriptor.doWrite()
    assert descriptor.written == b"first second"
    assert buffered_bytes(descriptor) == 0
    assert write_at_once(descriptor, b" third")


def test_what_is_partly_written_from_the_buffer_counts_with_its_rest() -> None:
    descriptor = Descriptor(room=4)
    descriptor.write(b"first")
    descriptor.doWrite()
    assert (descriptor.written, buffered_bytes(descriptor)) == (b"firs", 1)


class Producer:
    """A producer that counts how often it is paused."""

    def __init__(self) -> None:
        self.paused = 0

    def pauseProducing(self) -> None:
        self.paused += 1

    def resumeProducing(self) -> None:
        """Nothing more comes."""


@pytest.mark.parametrize("before", [b"", b"head "])
@pytest.mark.parametrize("room", [0, 3, 1000])
def test_large_write_is_not_copied(before: bytes, room: int) -> None:
    """The transport writes the object itself, behind what was there, if that could be written."""
    descriptor, producer = Descriptor(room), Producer()
    descriptor.registerProducer(producer, True)  # type: ignore[arg-type]
    descriptor.write(before)
    data = b"x" * (AT_ONCE_BYTES + 1)
    write_large(descriptor, data)
    adopted = len(before) <= room
    assert (descriptor.dataBuffer is data) == adopted
    assert buffered_bytes(descriptor) == len(before) + len(data) - len(descriptor.written)
    assert producer.paused == 1
    descriptor.write(b" tail")
    descriptor.room = 2 * len(data)
    while buffered_bytes(descriptor):
        descriptor.doWrite()
    assert descriptor.written == before + data + b" tail"


@pytest.mark.parametrize("state", ["full", "closing", "lost", "collected"])
def test_large_write_is_left_to_the_transport_where_it_cannot_be_next(state: str) -> None:
    """Also where more than `AT_ONCE_BYTES` are collected, which would be copied here."""
    descriptor = Descriptor(room=0)
    before = b"first" if state != "collected" else b"y" * (AT_ONCE_BYTES + 1)
    descriptor.write(before)
    if state == "full":
        descriptor.doWrite()
    descriptor.disconnecting = state == "closing"
    descriptor.connected = state != "lost"
    data = b"x" * (AT_ONCE_BYTES + 1)
    write_large(descriptor, data)
    assert descriptor.dataBuffer is not data
    descriptor.connected = 1
    descriptor.room = len(before) + len(data)
    descriptor.doWrite()
    while buffered_bytes(descriptor):
        descriptor.doWrite()
    assert descriptor.written == before + (b"" if state == "lost" else data)


# Listeners.


class Exhausted:
    """A listening socket in a process that has no descriptor left."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def accept(self) -> Any:
        if self.errors:
            raise OSError(self.errors.pop(0), "none left")
        self.errors.append(errno.EAGAIN)
        return self, ("127.0.0.1", 1)

    def close(self) -> None:
        """A connection that is closed at once."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            errno.EMFILE,
            [RESERVED_DESCRIPTOR_RELEASED, CONNECTION_CLOSED, DESCRIPTOR_RESERVED_AGAIN],
        ),
        (errno.ENFILE, [CONNECTION_NOT_ACCEPTED]),
    ],
)
def test_what_a_port_logs_when_it_cannot_accept(error: int, expected: list[str]) -> None:
    events: list[LogEvent] = []
    port: Any = tcp.Port(0, Factory(), reactor=MemoryReactor())
    tcp._reservedFD.reserve()  # As each listener does when it starts.
    log_port_to(port, events.append)  # type: ignore[arg-type]
    port.socket, port.numberAccepts = Exhausted(error), 100
    port.doRead()
    formats = [str(event["log_format"]) for event in events]
    assert len(formats) == len(expected)
    for text, start in zip(formats, expected, strict=True):
        assert text.startswith(start)
    if error == errno.ENFILE:
        assert events[0]["acceptError"] == "ENFILE"


def test_a_port_keeps_its_namespace_and_source() -> None:
    events: list[LogEvent] = []
    port: Any = tcp.Port(0, Factory(), reactor=MemoryReactor())
    namespace = port._logger.namespace
    assert isinstance(port._logger, Logger)
    log_port_to(port, events.append)  # type: ignore[arg-type]
    port._logger.info("something")
    assert (events[0]["log_namespace"], events[0]["log_source"]) == (namespace, port)


class Waiting:
    """A listening socket at which connections wait."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.closed: list[str] = []

    def accept(self) -> Any:
        if not self.count:
            raise OSError(errno.EAGAIN, "none left")
        self.count -= 1
        return Socket(), ("127.0.0.1", 1)

    def shutdown(self, how: int) -> None:
        self.closed.append("shutdown")

    def close(self) -> None:
        self.closed.append("close")


class Socket:
    """A connection that nobody takes, as the factory makes no protocol."""

    def close(self) -> None: ...

    def setblocking(self, blocking: bool) -> None: ...

    def fileno(self) -> int:
        return -1


class NoProtocol(Factory):
    """Makes no protocol."""

    noisy = False

    def buildProtocol(self, address: object) -> None: ...


@pytest.mark.parametrize(("waiting", "left"), [(0, 0), (5, 0), (12, 2)])
def test_connections_that_wait_are_accepted(
    monkeypatch: pytest.MonkeyPatch, waiting: int, left: int
) -> None:
    port: Any = tcp.Port(0, NoProtocol(), reactor=MemoryReactor())
    monkeypatch.setattr("twisted.internet.fdesc._setCloseOnExec", lambda descriptor: None)
    port.socket, port.connected = Waiting(waiting), True
    accept_waiting(port, 10)
    assert port.socket.count == left


def test_a_socket_of_others_is_closed_only() -> None:
    """Shut down, it would be of no use to them."""
    port: Any = tcp.Port(0, NoProtocol(), reactor=MemoryReactor())
    waiting = port.socket = Waiting(0)
    keep_open_for_others(port)
    port._closeSocket(True)
    assert waiting.closed == ["close"]


@pytest.mark.parametrize("call", [keep_open_for_others, lambda port: accept_waiting(port, 1)])
def test_other_ports_are_left_alone(call: Any) -> None:
    port = object()
    call(port)


# Processes.


def test_a_pipe_with_the_number_of_a_standard_stream_is_left_to_twisted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a process that was started without stdin."""
    told: list[Any] = []

    def spawn(self: object, *arguments: Any) -> bool:
        told.append(arguments)
        return True

    monkeypatch.setattr(process.Process, "_trySpawnInsteadOfFork", spawn)
    prepared = PreparedProcess.__new__(PreparedProcess)
    line, pipes = ["/bin/true"], {"fdmap": {0: 0, 1: 4, 2: 6}}
    arguments: Any = (None, None, None, line[0], line, {}, pipes)
    assert prepared._trySpawnInsteadOfFork(*arguments)
    assert told == [arguments]


def test_a_reactor_may_spawn_in_its_own_way() -> None:
    reactor = FakeReactor()
    transport: Any = spawn_prepared(reactor, ProcessProtocol(), ["/bin/true", "x"], {"A": "b"})
    assert reactor.processes == [transport]
    assert (transport.line, transport.env) == (["/bin/true", "x"], {"A": "b"})


# Logs and signals.


def test_the_files_of_observers_are_found() -> None:
    file, other = StringIO(), StringIO()
    events: list[LogEvent] = []
    other_kind: Any = events.append
    publisher = LogPublisher(textFileLogObserver(file), other_kind, textFileLogObserver(other))
    assert list(observed_files(publisher)) == [file, other]
    assert list(observed_files(object())) == []
    assert observers_of(publisher)[1] == other_kind
    assert observers_of(other_kind) == [other_kind]


def test_the_formatter_of_text_files_is_known() -> None:
    file = StringIO()
    assert formats_as_text_file(textFileLogObserver(file).formatEvent)
    assert formats_as_text_file(textFileLogObserver(file, None).formatEvent)
    assert not formats_as_text_file(jsonFileLogObserver(file).formatEvent)
    assert not formats_as_text_file(partial(formatEventAsClassicLogText))


@pytest.mark.parametrize("file", [StringIO(), BytesIO()])
def test_a_text_is_written_to_the_file_of_an_observer(file: Any) -> None:
    """In the encoding that the observer uses, and flushed."""
    flushed: list[None] = []
    file.flush = lambda: flushed.append(None)
    write_to_file(textFileLogObserver(file), "one \u00e9\ntwo\n")
    expected = "one \u00e9\ntwo\n"
    assert file.getvalue() == (expected if isinstance(file, StringIO) else expected.encode())
    assert flushed == [None]


def test_the_signal_handler_of_twistd_is_known(tmp_path: Path) -> None:
    from twisted.scripts._twistd_unix import UnixAppLogger

    assert "twisted.scripts._twistd_unix" in sys.modules
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    try:
        options = {"logfile": str(tmp_path / "twistd.log"), "syslog": False, "nodaemon": False}
        observer: Any = UnixAppLogger({**options, "prefix": "", "logger": None})._getLogObserver()
        observer._outFile.close()
        handler = signal.getsignal(signal.SIGUSR1)
        assert handler != signal.SIG_DFL
        assert is_twistd_handler(handler)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not is_twistd_handler(signal.SIG_DFL)
    assert not is_twistd_handler(lambda number, frame: None)
