"""
Every private name of Twisted that the bridge uses, behind a public one.

Twisted may rename or remove what begins with an underscore in any release.  So
that a new release breaks in one place, no other module uses such a name, and
`tests/unit/test_twisted_internals.py` tests for each of them that it exists and
still does what is said here.  Knows Twisted; must not know MCP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import process
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.internet.tcp import Connection
from twisted.logger import ILogObserver, Logger
from twisted.web.http import HTTPChannel
from twisted.web.server import Request

# Descriptors: twisted.internet.abstract.

#: More than this is left to the transport, which does not copy what it cannot
#: write at once.
AT_ONCE_BYTES = 128 * 1024


def prompt_descriptor(transport: Any) -> FileDescriptor | None:
    """Return the transport if it is a plain socket that `write_at_once` may write to."""
    return transport if isinstance(transport, Connection) and not transport.TLS else None


def write_at_once(descriptor: Any, data: bytes) -> bool:
    """
    Write to a socket or a pipe what it takes now, and leave the rest to the transport.
    Return True if it took everything.

    Twisted's transports write in the next iteration of the reactor, which costs
    two system calls to learn that the descriptor is writable.  It nearly always
    is.  Order is kept: while earlier data is still buffered, all of this goes
    behind it.  An error is reported in the next iteration, as with `write`.
    """
    if (
        len(data) <= AT_ONCE_BYTES
        and not descriptor.dataBuffer
        # The length of what `write` has collected and not yet moved to `dataBuffer`.
        and not descriptor._tempDataLen
        and descriptor.connected
        and not descriptor.disconnecting
    ):
        written = descriptor.writeSomeData(data)
        if type(written) is int:
            if written == len(data):
                return True
            data = data[written:]
    descriptor.write(data)
    return False


def buffered_bytes(descriptor: Any) -> int:
    """Return how many bytes a descriptor has been given and not written; 0 for other objects."""
    data = getattr(descriptor, "dataBuffer", None)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        return 0
    collected = int(getattr(descriptor, "_tempDataLen", 0))
    return len(data) - int(getattr(descriptor, "offset", 0)) + collected


# HTTP: twisted.web.http.


class OpenChannel(HTTPChannel):
    """
    An `HTTPChannel` that tells its subclass what it is doing.

    `HTTPChannel` is in line mode while it reads a head, and in raw mode while it
    reads a body or a request is handled.  It keeps what arrives in three
    places: `LineReceiver`'s `_buffer` of bytes not yet split into lines, the
    transfer decoder, and `_dataBuffer` for what arrived behind the request that
    is handled.  None of that is public.

    `is_busy` and `is_between_requests` are called for each message of a
    client: they read attributes, and call nothing.
    """

    # With more than thirty attributes in its dictionary an instance has one of
    # its own, of a kilobyte and more (PEP 412); these are always set.
    __slots__ = ("_dataBuffer", "_handlingRequest", "_networkProducer", "_transferDecoder")

    transport: Any
    requests: list[Any]
    _networkProducer: Any
    #: The idle timeout, which is moved on as bytes arrive.
    _TimeoutMixin__timeoutCall: IDelayedCall | None
    #: What a subclass receives, and what it answers, without a request of
    #: twisted.web's; None while there is nothing.
    arriving: Any = None
    pending: Any = None

    # What is being received or handled.

    def is_busy(self) -> bool:
        """Tell whether a request is being handled, or too much of a response is unsent."""
        return self.pending is not None or self._handlingRequest or self._waitingForTransport

    def is_between_requests(self) -> bool:
        """Tell whether the channel has no byte of a request and may receive another one."""
        return bool(
            self.line_mode
            and self.persistent
            and not (self.requests or self._buffer)
            # Within its own `dataReceived` it only buffers what it is given.
            and not self._busyReceiving
        )

    def is_handling_request(self) -> bool:
        """Tell whether a request is complete and its response is not."""
        return self._handlingRequest

    def is_receiving_request(self) -> bool:
        """Tell whether a part of a request has arrived, and not yet all of it."""
        return (
            self.arriving is not None
            or bool(self.requests or self._buffer)
            or self._transferDecoder is not None
        )

    def is_receiving_body(self) -> bool:
        """Tell whether the body of a request is arriving."""
        return self.arriving is not None or self._transferDecoder is not None

    def is_receiving_chunks(self) -> bool:
        """Tell whether a body is arriving in the chunked transfer coding."""
        return self.length is None and self._transferDecoder is not None

    def is_transport_full(self) -> bool:
        """Tell whether the transport has asked not to be written to."""
        return self._waitingForTransport

    def last_received(self) -> float | None:
        """Return when bytes last arrived, by the reactor's clock; None without an idle timeout."""
        timeout = self._TimeoutMixin__timeoutCall
        if timeout is None or self.timeOut is None:
            return None
        return timeout.getTime() - float(self.timeOut)

    # What has arrived and is not parsed.

    def has_pipelined(self) -> bool:
        """Tell whether the channel holds bytes that arrived behind the request it handles."""
        return bool(self._dataBuffer)

    def pipelined_length(self) -> int:
        """Return how many bytes arrived behind the request that is handled."""
        return sum(map(len, self._dataBuffer))

    def take_pipelined(self) -> bytes:
        """
        Take out all bytes that arrived behind the request that is handled.

        They are behind a request that had a body, or in the buffer of lines
        behind one that had none, and never in both.
        """
        data = b"".join([*self._dataBuffer, self._buffer])
        self._dataBuffer = []
        self._buffer = b""
        return data

    def take_unparsed(self) -> bytes:
        """Take out the bytes behind the head that has just been parsed."""
        data: bytes = self._buffer
        self._buffer = b""
        return data

    def discard_pipelined(self) -> None:
        """Drop what arrived behind the request that is handled."""
        self._dataBuffer = []

    # What is done before its time.

    def handle_request_now(self) -> None:
        """Pass on the request whose head has been parsed, without waiting for its body."""
        self.requests[-1].requestReceived(self._command, self._path, self._version)

    def may_continue(self) -> bool:
        """Tell whether a client that sent `Expect: 100-continue` shall send its body."""
        return True

    def _send100Continue(self) -> None:
        if self.may_continue():
            super()._send100Continue()

    # The transport, as `HTTPChannel` wraps one that is no push producer.

    def pause_reading(self) -> None:
        """Receive no more until `resume_reading`."""
        self._networkProducer.pauseProducing()

    def resume_reading(self) -> None:
        """Receive again."""
        self._networkProducer.resumeProducing()

    def unregister_from_transport(self) -> None:
        """Be told no more whether the transport may be written to."""
        self._networkProducer.unregisterProducer()


class OpenRequest(Request):
    """A `Request` that tells its subclass when its response is complete."""

    def completed(self) -> None:
        """Called once when the response is complete, before the next request is parsed."""

    def _cleanup(self) -> None:
        # `notifyFinish` would do, later, and with a Deferred for each request.
        self.completed()
        super()._cleanup()


# Listeners: twisted.internet.tcp.

#: How the formats of the events begin that a `Port` logs when it cannot accept
#: a connection.  Where descriptors run out it closes one that it has in reserve,
#: accepts and closes a connection, and reserves the descriptor again.
RESERVED_DESCRIPTOR_RELEASED = "EMFILE encountered"
CONNECTION_CLOSED = "EMFILE recovery"
DESCRIPTOR_RESERVED_AGAIN = "Re-reserving EMFILE"
CONNECTION_NOT_ACCEPTED = "Could not accept new connection"


def log_port_to(port: IListeningPort, observer: ILogObserver) -> None:
    """Pass the log events of one of Twisted's ports to an observer; leave other ports alone."""
    logger = getattr(port, "_logger", None)
    if isinstance(logger, Logger):
        own: Any = port
        own._logger = Logger(namespace=logger.namespace, source=port, observer=observer)


# Processes: twisted.internet.process.


@contextmanager
def descriptors_closed_by_child() -> Iterator[None]:
    """
    Let `spawnProcess` look at three descriptors instead of all.

    It asks the system about each open descriptor, one by one, so as to close
    in the child what would be inherited: milliseconds where there are
    thousands.  Where the child closes them itself that is in vain.  Twisted
    has no argument for it, so its function is replaced for the whole process
    while this context lasts, which must hold one synchronous spawn.
    """
    list_descriptors = process._listOpenFDs
    process._listOpenFDs = lambda: [0, 1, 2]
    try:
        yield
    finally:
        process._listOpenFDs = list_descriptors


# Logs and signals: twisted.logger, twisted.scripts.


def observed_files(publisher: Any) -> Iterator[Any]:
    """
    Yield the files that the observers of a publisher write to.

    twistd keeps the observer of --logfile to itself, and no public way leads
    from the publisher to its observers, nor from an observer to its file.
    """
    for observer in list(getattr(publisher, "_observers", ())):
        file = getattr(observer, "_outFile", None)
        if file is not None:
            yield file


def is_twistd_handler(handler: Callable[..., object] | int | None) -> bool:
    """Tell whether a signal handler is one that twistd has installed."""
    return getattr(handler, "__module__", "") == "twisted.scripts._twistd_unix"
