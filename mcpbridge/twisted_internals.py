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
from twisted.internet.interfaces import IListeningPort
from twisted.internet.tcp import Connection
from twisted.logger import FileLogObserver, ILogObserver, Logger

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


def observers_of(publisher: Any) -> list[ILogObserver]:
    """Return the observers of a publisher, or the observer itself if it is none."""
    return list(getattr(publisher, "_observers", (publisher,)))


def observed_files(publisher: Any) -> Iterator[Any]:
    """
    Yield the files that the observers of a publisher write to.

    twistd keeps the observer of --logfile to itself, and no public way leads
    from the publisher to its observers, nor from an observer to its file.
    """
    for observer in observers_of(publisher):
        file = getattr(observer, "_outFile", None)
        if file is not None:
            yield file


def formats_as_text_file(formatter: Callable[..., object]) -> bool:
    """Tell whether a formatter of events is that of Twisted's `textFileLogObserver`."""
    name = getattr(formatter, "__module__", ""), getattr(formatter, "__qualname__", "")
    return name == ("twisted.logger._file", "textFileLogObserver.<locals>.formatEvent")


def write_to_file(observer: FileLogObserver, text: str) -> None:
    """Write a text to the file of an observer, in its encoding, and flush the file."""
    FileLogObserver(observer._outFile, lambda _: text)({})


def is_twistd_handler(handler: Callable[..., object] | int | None) -> bool:
    """Tell whether a signal handler is one that twistd has installed."""
    return getattr(handler, "__module__", "") == "twisted.scripts._twistd_unix"
