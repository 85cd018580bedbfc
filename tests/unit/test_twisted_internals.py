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
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import process, tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.logger import LogEvent, Logger, LogPublisher, textFileLogObserver
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site

from mcpbridge import twisted_internals
from mcpbridge.twisted_internals import (
    AT_ONCE_BYTES,
    CONNECTION_CLOSED,
    CONNECTION_NOT_ACCEPTED,
    DESCRIPTOR_RESERVED_AGAIN,
    RESERVED_DESCRIPTOR_RELEASED,
    OpenChannel,
    OpenRequest,
    buffered_bytes,
    descriptors_closed_by_child,
    is_twistd_handler,
    log_port_to,
    observed_files,
    write_at_once,
)

PACKAGE = Path(twisted_internals.__file__).parent
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {Path(twisted_internals.__file__)})

#: How Twisted spells its private names, and the bridge never.
CAMEL_CASE = re.compile(r"_[a-z]+[A-Z]\w*|_[A-Z]\w*__\w+")


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
            if CAMEL_CASE.fullmatch(name) and name in dir(OpenChannel) + dir(OpenRequest):
                yield name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twisted"):
            yield from (each.name for each in node.names if each.name.startswith("_"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_module_uses_private_names_of_twisted(path: Path) -> None:
    assert list(private_names_of_twisted(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_that_test_finds_them() -> None:
    text = Path(twisted_internals.__file__).read_text(encoding="utf-8")
    found = set(private_names_of_twisted(ast.parse(text)))
    assert found >= {"_tempDataLen", "_handlingRequest", "_listOpenFDs", "_cleanup", "_outFile"}
    assert "_TimeoutMixin__timeoutCall" in found


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


# HTTP.


class Request(OpenRequest):
    """A request whose response the test completes."""

    channel: Any
    done = 0

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def process(self) -> None:
        self.channel.processed.append((self, self.channel.state()))

    def completed(self) -> None:
        assert self in self.channel.requests
        self.done += 1


class Channel(OpenChannel):
    """A channel with a log of its requests, each with the channel's state at that time."""

    requestFactory = Request
    early = False
    continues = True

    def __init__(self) -> None:
        super().__init__()
        self.processed: list[tuple[Request, dict[str, bool]]] = []
        self.taken: list[bytes] = []
        self.unparsed = b""

    def state(self) -> dict[str, bool]:
        return {
            name: True
            for name in (
                "is_busy",
                "is_between_requests",
                "is_handling_request",
                "is_receiving_request",
                "is_receiving_body",
                "is_receiving_chunks",
                "is_transport_full",
                "has_pipelined",
            )
            if getattr(self, name)()
        }

    def may_continue(self) -> bool:
        return self.continues

    def allHeadersReceived(self) -> None:
        super().allHeadersReceived()
        if self.early:
            self.unparsed = self.take_unparsed()
            self.handle_request_now()

    def requestDone(self, request: Any) -> None:
        self.taken.append(self.take_pipelined())
        super().requestDone(request)


HEAD = b"POST / HTTP/1.1\r\nHost: h\r\n"
BODY = HEAD + b"Content-Length: 4\r\n\r\n"
CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
HANDLING = {"is_busy": True, "is_handling_request": True, "is_receiving_request": True}


class World:
    """A channel on a transport, with a clock."""

    def __init__(self, transport: Any = None, timeout: float | None = 60) -> None:
        self.clock = Clock()
        channel: Any = Channel()
        self.channel: Channel = channel
        channel.site = Site(Resource(), parsePOSTFormSubmission=False)
        channel.timeOut = timeout
        channel.callLater = self.clock.callLater
        self.transport = transport or StringTransport()
        self.channel.makeConnection(self.transport)

    def finish(self) -> Request:
        request, _ = self.channel.processed[-1]
        request.finish()
        return request


def test_a_channel_between_requests() -> None:
    world = World()
    assert world.channel.state() == {"is_between_requests": True}
    world.channel.dataReceived(GET)
    world.finish()
    assert world.channel.state() == {"is_between_requests": True}


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (b"G", {"is_receiving_request"}),
        (HEAD, {"is_receiving_request"}),
        (BODY, {"is_receiving_request", "is_receiving_body"}),
        (CHUNKS, {"is_receiving_request", "is_receiving_body", "is_receiving_chunks"}),
    ],
)
def test_a_channel_that_receives_a_request(data: bytes, state: set[str]) -> None:
    world = World()
    world.channel.dataReceived(data)
    assert set(world.channel.state()) == state


@pytest.mark.parametrize("data", [GET, BODY + b"body", CHUNKS + b"4\r\nbody\r\n0\r\n\r\n"])
def test_a_channel_that_handles_a_request(data: bytes) -> None:
    world = World()
    world.channel.dataReceived(data)
    [(_, within)] = world.channel.processed
    assert within.pop("has_pipelined", True)
    assert within == HANDLING
    assert world.channel.is_busy()
    assert not world.channel.is_between_requests()


def test_within_its_own_call_a_channel_only_buffers() -> None:
    """It is in no other way between requests there, and would parse nothing."""
    world = World()
    between = []

    def process_and_finish(request: Any) -> None:
        request.channel.line_mode = 1
        request.channel.requests, requests = [], request.channel.requests
        between.append(request.channel.is_between_requests())
        request.channel.requests = requests

    class Finishing(Request):
        process = process_and_finish

    world.channel.requestFactory = Finishing
    world.channel.dataReceived(GET)
    assert between == [False]


def test_a_channel_after_its_last_request_is_not_between_requests() -> None:
    world = World()
    world.channel.dataReceived(GET.replace(b"Host", b"Connection: close\r\nHost"))
    world.finish()
    assert "is_between_requests" not in world.channel.state()


def test_what_a_subclass_receives_or_answers_itself_counts() -> None:
    channel = World().channel
    channel.arriving = object()
    assert channel.is_receiving_request()
    assert channel.is_receiving_body()
    assert not channel.is_busy()
    channel.arriving, channel.pending = None, object()
    assert channel.is_busy()


@pytest.mark.parametrize("first", [GET, BODY + b"body"])
@pytest.mark.parametrize("together", [True, False])
def test_pipelined_bytes_are_taken_in_order(first: bytes, together: bool) -> None:
    world = World()
    if together:
        world.channel.dataReceived(first + b"behind")
    else:
        world.channel.dataReceived(first)
        world.channel.dataReceived(b"beh")
        world.channel.dataReceived(b"ind")
    assert world.channel.has_pipelined()
    assert world.channel.pipelined_length() == 6
    world.finish()
    assert world.channel.taken == [b"behind"]
    assert world.channel.state() == {"is_between_requests": True}


@pytest.mark.parametrize("first", [GET, BODY + b"body"])
def test_pipelined_bytes_are_taken_from_within_a_request(first: bytes) -> None:
    """Behind a request without a body they are in the buffer of lines at that time."""
    world = World()

    class Finishing(Request):
        def process(self) -> None:
            super().process()
            self.finish()

    world.channel.requestFactory = Finishing
    world.channel.dataReceived(first + b"behind")
    assert world.channel.taken == [b"behind"]
    assert world.channel.state() == {"is_between_requests": True}


def test_pipelined_bytes_are_discarded() -> None:
    world = World()
    world.channel.dataReceived(GET)
    world.channel.dataReceived(b"behind")
    world.channel.discard_pipelined()
    assert not world.channel.has_pipelined()
    assert world.channel.pipelined_length() == 0
    world.finish()
    assert world.channel.taken == [b""]


def test_a_request_is_handled_before_its_body() -> None:
    world = World()
    world.channel.early = True
    world.channel.dataReceived(BODY + b"bo")
    [(request, _)] = world.channel.processed
    assert (request.method, request.uri, request.clientproto) == (b"POST", b"/", b"HTTP/1.1")
    assert world.channel.unparsed == b"bo"


@pytest.mark.parametrize("continues", [True, False])
def test_a_client_is_asked_to_continue(continues: bool) -> None:
    world = World()
    world.channel.continues = continues
    world.channel.dataReceived(BODY.replace(b"Host", b"Expect: 100-continue\r\nHost"))
    assert (b"100 Continue" in world.transport.value()) == continues


def test_a_full_transport() -> None:
    world = World()
    world.channel.pauseProducing()
    assert world.channel.state().keys() >= {"is_busy", "is_transport_full"}
    world.channel.resumeProducing()
    assert world.channel.state() == {"is_between_requests": True}


def test_reading_is_paused_and_resumed() -> None:
    world = World()
    world.channel.pause_reading()
    assert world.transport.producerState == "paused"
    world.channel.resume_reading()
    assert world.transport.producerState == "producing"
    assert world.transport.producer is world.channel
    world.channel.unregister_from_transport()
    assert world.transport.producer is None


def test_a_transport_that_cannot_be_paused() -> None:
    """`HTTPChannel` wraps one that is no push producer."""

    class Plain:
        def registerProducer(self, producer: object, streaming: bool) -> None:
            """Whoever is no producer takes one, and forgets it."""

        def getPeer(self) -> None:
            """It has none."""

    channel = World(transport=Plain()).channel
    channel.pause_reading()
    channel.resume_reading()
    channel.unregister_from_transport()


def test_when_bytes_were_last_received() -> None:
    world = World()
    world.clock.advance(10)
    assert world.channel.last_received() == 0
    world.channel.dataReceived(GET)
    assert world.channel.last_received() is None
    world.clock.advance(5)
    world.finish()
    assert world.channel.last_received() == 15
    assert World(timeout=None).channel.last_received() is None
    world.channel.connectionLost(Failure(ConnectionDone()))
    assert world.channel.last_received() is None


def test_a_complete_request_is_told_once() -> None:
    world = World()
    world.channel.dataReceived(GET)
    assert world.channel.processed[0][0].done == 0
    assert world.finish().done == 1
    world.channel.dataReceived(GET)
    assert world.finish().done == 1


def test_a_connection_has_no_dictionary_of_its_own_for_what_all_have() -> None:
    """They are slots: assigning them does not make the instance's dictionary larger."""
    assert OpenChannel.__slots__
    for name in OpenChannel.__slots__:
        assert name not in vars(World().channel)
        assert hasattr(World().channel, name)


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


# Processes.


def test_the_list_of_descriptors_comes_back_after_an_error() -> None:
    original = process._listOpenFDs
    with pytest.raises(ValueError, match="no such"), descriptors_closed_by_child():
        raise ValueError("no such program")
    assert process._listOpenFDs is original
    assert {0, 1, 2} <= set(original())


# Logs and signals.


def test_the_files_of_observers_are_found() -> None:
    file, other = StringIO(), StringIO()
    events: list[LogEvent] = []
    other_kind: Any = events.append
    publisher = LogPublisher(textFileLogObserver(file), other_kind, textFileLogObserver(other))
    assert list(observed_files(publisher)) == [file, other]
    assert list(observed_files(object())) == []


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
