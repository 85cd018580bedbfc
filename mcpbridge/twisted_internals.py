"""
Every private name of Twisted that the bridge uses, behind a public one.

Twisted may rename or remove what begins with an underscore in any release.  So
that a new release breaks in one place, no other module uses such a name, and
`tests/unit/test_twisted_internals.py` tests for each of them that it exists and
still does what is said here.  Knows Twisted; must not know MCP.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet import endpoints, process, unix
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import (
    IListeningPort,
    IProcessProtocol,
    IProcessTransport,
    IProtocolFactory,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.process import ProcessReader, ProcessWriter
from twisted.internet.tcp import Connection, Port
from twisted.logger import FileLogObserver, FilteringLogObserver, ILogObserver, Logger
from twisted.python import log

from mcpbridge.pids import another_runs

if sys.platform == "linux":
    from select import EPOLLIN, EPOLLOUT

    from twisted.internet.epollreactor import EPollReactor

    _READ_OR_WRITE = EPOLLIN | EPOLLOUT

# Descriptors: twisted.internet.abstract.

#: So much is read from a pipe at once: all that a pipe holds, unless it was enlarged.
#: From twice as much on, the memory would be mapped anew for each read, which takes 15 µs.
READ_BYTES = 64 * 1024
#: So many writes are collected, or so many bytes of them, which is what one pipe holds.
COLLECTED_WRITES = 64
COLLECTED_BYTES = 64 * 1024
#: After so many events what is collected is written: others may take long.
FLUSH_EVENTS = 8
#: More than this is left to the transport, which does not copy what it cannot
#: write at once.
AT_ONCE_BYTES = 128 * 1024


def prompt_descriptor(transport: Any) -> FileDescriptor | None:
    """
    Return the transport if it is a plain socket, made ready for `write_at_once`
    and `dispatch_directly`; None if it is anything else.
    """
    if not isinstance(transport, Connection) or transport.TLS:
        return None
    own: Any = transport
    own.write_now = transport.socket.send
    own.is_direct = True
    return transport


def prompt_writer(pipe: Any) -> FileDescriptor | None:
    """
    Return the pipe of a process's input, made ready for `write_at_once` and
    `COLLECTED`; None if it is anything else.
    """
    if not isinstance(pipe, ProcessWriter):
        return None
    own: Any = pipe
    own.write_now = partial(os.write, pipe.fd)
    return pipe


def read_directly(pipe: Any, received: Callable[[bytes], None]) -> None:
    """
    Pass what is read from the pipe of a process's output to `received`, instead
    of to its `ProcessProtocol`.  Anything but such a pipe is left alone.

    One read takes `READ_BYTES`, and not 8 KiB as that of `twisted.internet.fdesc`.
    The end of the output, and errors, are reported as without this.
    """
    if isinstance(pipe, ProcessReader):
        own: Any = pipe
        own.doRead = partial(_read_pipe, pipe.fd, received)
        own.is_direct = True


def _read_pipe(fd: int, received: Callable[[bytes], None]) -> Exception | None:
    """Do what `ProcessReader.doRead` does, and return what it returns."""
    try:
        data = os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return CONNECTION_LOST
    if not data:
        return CONNECTION_DONE
    received(data)
    return None


def write_at_once(descriptor: Any, data: bytes) -> bool:
    """
    Write to a socket or a pipe what it takes now, and leave the rest to the transport.
    Return True if it took everything.

    Twisted's transports write in the next iteration of the reactor, which costs
    two system calls to learn that the descriptor is writable.  It nearly always
    is.  Order is kept: while earlier data is still buffered, all of this goes
    behind it.  An error is reported in the next iteration, as with `write`: the
    transport meets it again.
    """
    if (
        len(data) <= AT_ONCE_BYTES
        and not descriptor.dataBuffer
        # The length of what `write` has collected and not yet moved to `dataBuffer`.
        and not descriptor._tempDataLen
        and descriptor.connected
        and not descriptor.disconnecting
    ):
        try:
            written = descriptor.write_now(data)
        except OSError:
            written = 0
        if written == len(data):
            return True
        data = data[written:]
    descriptor.write(data)
    return False


def write_large(descriptor: Any, data: bytes) -> None:
    """
    Write data of more than `AT_ONCE_BYTES` to a descriptor that `prompt_descriptor` has returned.

    Before it writes, Twisted joins all that it was given, which takes 10 ms for 16 MiB.
    Here what it was given before is written at once; if the socket takes that, `data`
    becomes the buffer of the transport as it is.
    """
    if (
        not descriptor.dataBuffer
        and descriptor._tempDataLen <= AT_ONCE_BYTES
        and descriptor.connected
        and not descriptor.disconnecting
    ):
        collected = b"".join(descriptor._tempDataBuffer)
        descriptor._tempDataBuffer, descriptor._tempDataLen = [], 0
        if not collected or write_at_once(descriptor, collected):
            descriptor.dataBuffer, descriptor.offset = data, 0
            descriptor._maybePauseProducer()
            descriptor.startWriting()
            return
    descriptor.write(data)


class CollectedWrites:
    """
    Writes to pipes that wait until the events of this iteration of the reactor are handled.

    Several clients' messages to one backend then take one `write`, and wake its
    process up once.  They never wait for another event: `is_open` is True only
    while `dispatch_directly` handles those that are there.  Before all of them are
    handled, what is there after `FLUSH_EVENTS` is written, and `COLLECTED_WRITES`
    or `COLLECTED_BYTES` together.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._count = self._size = 0
        self._pieces: dict[Any, list[bytes]] = {}

    def write(self, descriptor: Any, data: bytes) -> None:
        """
        Collect data for a descriptor that `prompt_writer` has returned.

        It is written at once while nothing is to be collected.
        """
        if not self.is_open:
            write_at_once(descriptor, data)
            return
        pieces = self._pieces.get(descriptor)
        if pieces is None:
            self._pieces[descriptor] = [data]
        else:
            pieces.append(data)
        self._count += 1
        self._size += len(data)
        if self._count >= COLLECTED_WRITES or self._size >= COLLECTED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write everything that was collected."""
        collected, self._pieces = self._pieces, {}
        self._count = self._size = 0
        for descriptor, pieces in collected.items():
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            try:
                write_at_once(descriptor, data)
            except BaseException:
                # What the transport calls back; other backends get their messages.
                log.callWithLogger(descriptor, log.err)


COLLECTED = CollectedWrites()


def buffered_bytes(descriptor: Any) -> int:
    """Return how many bytes a descriptor has been given and not written; 0 for other objects."""
    data = getattr(descriptor, "dataBuffer", None)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        return 0
    collected = int(getattr(descriptor, "_tempDataLen", 0))
    return len(data) - int(getattr(descriptor, "offset", 0)) + collected


# The reactor: twisted.internet.epollreactor.


def dispatch_directly(reactor: Any) -> Callable[[], None]:
    """
    Let Twisted's epoll reactor read direct descriptors without a log context.
    Return a function that undoes it.

    For each event Twisted builds a context that names the descriptor in what
    `twisted.python.log` writes meanwhile, which takes longer than to read a
    message.  The bridge writes nothing there; only what reports an exception
    does, and has that context here, too.  So only the time changes.

    Of descriptors that `prompt_descriptor` has returned, or that were given to
    `read_directly`, `EPOLLIN` without `EPOLLOUT` is handled here, as `_doReadOrWrite`
    does.  It need not ask for their `fileno()`: the read of a closed one fails as well.
    All other events go to `_doReadOrWrite`, as `doPoll` does it.  Writes are
    `COLLECTED` until all events are handled.

    A descriptor whose peer has closed it is lost by `lose_in_turn` of its protocol, if
    it has that method: it is given a function that calls `connectionLost`, and may
    call it later.

    Other classes of reactors, and one with a `doIteration` of its own, are left
    alone, and so are all reactors where there is no epoll.
    """
    own: Any = reactor
    if (
        sys.platform != "linux"
        or type(reactor) is not EPollReactor
        or "doIteration" in vars(reactor)
    ):
        return lambda: None
    poll = reactor._poller.poll
    selectables = reactor._selectables
    read_or_write = reactor._doReadOrWrite
    disconnect = reactor._disconnectSelectable
    readers = reactor._reads
    stop_reading = reactor.removeReader
    stop_writing = reactor.removeWriter

    def iterate(timeout: float | None) -> None:
        try:
            events = poll(-1 if timeout is None else timeout, len(selectables))
        except InterruptedError:
            return
        COLLECTED.is_open = True
        try:
            handle(events)
        finally:
            COLLECTED.is_open = False
            COLLECTED.flush()

    def handle(events: list[tuple[int, int]]) -> None:
        for number, (fd, event) in enumerate(events, 1):
            if not number % FLUSH_EVENTS:
                COLLECTED.flush()
            # Looked up late: what an earlier event has closed gets no event.
            selectable: Any = selectables.get(fd)
            if event & _READ_OR_WRITE == EPOLLIN and getattr(selectable, "is_direct", False):
                read(selectable)
            elif event & _READ_OR_WRITE or _turn_of(selectable) is None:
                if selectable is not None:
                    log.callWithLogger(selectable, read_or_write, selectable, fd, event)
            elif fd in readers:
                lose(selectable, CONNECTION_DONE, True)
            else:
                # It waits for writing only, and epoll would report it in each iteration.
                stop_writing(selectable)
                lose(selectable, CONNECTION_LOST, False)

    def read(selectable: Any) -> None:
        try:
            why = selectable.doRead()
        except BaseException as error:
            log.callWithLogger(selectable, log.err)
            log.callWithLogger(selectable, disconnect, selectable, error, False)
        else:
            if why:
                lose(selectable, why, True)

    def lose(selectable: Any, why: Exception, reading: bool) -> None:
        take_turn = _turn_of(selectable)
        if take_turn is None:
            log.callWithLogger(selectable, disconnect, selectable, why, reading)
            return
        # While it waits for its turn, epoll would report it in each iteration.
        stop_reading(selectable)
        take_turn(partial(lose_now, selectable, why, reading))

    def lose_now(selectable: Any, why: Exception, reading: bool) -> None:
        if not _is_ending(selectable):
            log.callWithLogger(selectable, disconnect, selectable, why, reading)

    def undo() -> None:
        if vars(reactor).get("doIteration") is iterate:
            del reactor.doIteration

    own.doIteration = iterate
    return undo


def _turn_of(descriptor: Any) -> Callable[[Callable[[], None]], object] | None:
    """Return the method `lose_in_turn` of a descriptor's protocol; None without one."""
    if isinstance(descriptor, Connection):
        protocol = getattr(descriptor, "protocol", None)
    elif isinstance(descriptor, (ProcessReader, ProcessWriter)):
        protocol = getattr(descriptor.proc, "proto", None)
    else:
        return None
    return getattr(protocol, "lose_in_turn", None)


def _is_ending(descriptor: Any) -> bool:
    """Tell whether `connectionLost` of a descriptor was called, or the reactor is about to."""
    if isinstance(descriptor, ProcessReader):
        return not descriptor.connected or bool(descriptor.disconnecting)
    return not descriptor.connected or getattr(descriptor, "_aborting", False)


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


def keep_open_for_others(port: IListeningPort) -> None:
    """
    Have one of Twisted's ports close its socket and nothing else, when it stops listening.

    Twisted shuts sockets down first.  One that was inherited is also the parent's, and the
    next process's: shut down, it would accept nothing there either.  Twisted knows that of
    TCP, but not of UNIX sockets.
    """
    if isinstance(port, Port):
        own: Any = port
        own._shouldShutdown = False


def accept_waiting(port: IListeningPort, most: int) -> None:
    """
    Accept up to so many connections that wait at one of Twisted's ports.

    Their clients have connected, and would get a reset when it stops listening.
    """
    if isinstance(port, Port) and port.connected:
        own: Any = port
        own.numberAccepts = most
        own.doRead()


def inherited_descriptors() -> tuple[list[int], dict[str, int]]:
    """Return the descriptors that systemd has passed to this process, and those with names."""
    passed = endpoints._SystemdParser._sddaemon
    return passed.inheritedDescriptors(), passed.inheritedNamedDescriptors()


def adopt_unix_port(reactor: Any, descriptor: int, factory: IProtocolFactory) -> IListeningPort:
    """
    Listen on an inherited UNIX socket, whose path and mode stay as they are.

    `adoptStreamPort` would let everybody use it (mode 0666), and remove its path at the end,
    where others could not find it any more.
    """
    port: Any = unix.Port._fromListeningDescriptor(reactor, descriptor, factory)
    # As of an abstract socket, which has no path.
    port._bindPath = b"\0" + port._bindPath
    port.startListening()
    listening: IListeningPort = port
    return listening


def remove_unix_path(port: IListeningPort) -> None:
    """
    Remove the path of a UNIX listener that is about to close, and its lock; do nothing for any
    other listener.

    Twisted does the same, and never closes the listener where that fails, as after somebody
    else has removed one of them.
    """
    own: Any = port
    if not isinstance(port, unix.Port) or own._bindPath[:1] == b"\0":
        return
    path, own._bindPath = own._bindPath, b"\0" + own._bindPath
    lock, own.lockFile = own.lockFile, None
    if lock is not None and _is_of_another(os.fsencode(lock.name)):
        # Somebody has removed both, and another bridge listens there now.
        return
    for each in (path,) if lock is None else (path, lock.name):
        with suppress(OSError):
            os.unlink(each)


def _is_of_another(lock: bytes) -> bool:
    """
    Tell whether a lock is that of another process which lives.

    A process that has become a daemon finds the pid of its parent, which is gone.
    """
    try:
        pid = int(os.readlink(lock))
    except (OSError, ValueError):
        return False
    return another_runs(pid)


# Processes: twisted.internet.process.


#: Signals whose disposition a child may set.
_SIGNALS = tuple(map(int, signal.valid_signals()))


class PreparedProcess(process.Process):
    """
    A `Process` whose program prepares itself: it closes all descriptors but 0, 1 and 2.

    Twisted asks the system about each open descriptor, one by one, so as to
    close in the child what would be inherited: milliseconds where there are
    thousands.  It also asks Python about each signal, so as to reset those
    that are ignored; here all are reset, by the system.
    """

    def _trySpawnInsteadOfFork(
        self,
        path: Any,
        uid: int | None,
        gid: int | None,
        executable: str,
        args: list[str],
        environment: Mapping[str, str],
        kwargs: dict[str, Any],
    ) -> bool:
        pipes: dict[int, int] = kwargs["fdmap"]
        if min(pipes.values()) <= 2:
            # This process was started without one of them, so a pipe has its number.
            taken: bool = super()._trySpawnInsteadOfFork(
                path, uid, gid, executable, args, environment, kwargs
            )
            return taken
        self.pid = os.posix_spawn(
            executable,
            args,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, own, child) for child, own in pipes.items()],
            setsigdef=_SIGNALS,
        )
        return True


def spawn_prepared(
    reactor: Any, protocol: IProcessProtocol, args: list[str], environment: Mapping[str, str]
) -> IProcessTransport:
    """
    Spawn a program that prepares itself as `PreparedProcess` says, by its absolute path.

    Raises `OSError`.  A reactor that spawns in a way of its own is left to do so.
    """
    if isinstance(reactor, PosixReactorBase) and hasattr(os, "posix_spawn"):
        return PreparedProcess(reactor, args[0], args, environment, None, protocol)
    spawned: IProcessTransport = reactor.spawnProcess(protocol, args[0], args, environment)
    return spawned


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
        if isinstance(observer, FilteringLogObserver):
            observer = observer._observer
        file = file_of(observer)
        if file is not None:
            yield file


def file_of(observer: Any) -> Any:
    """Return the file that an observer writes to; None without one."""
    return getattr(observer, "_outFile", None)


def twistd_observer(options: Mapping[str, Any]) -> Any:
    """
    Make the observer that twistd makes of its options: of standard output, a log file,
    which it also rotates at SIGUSR1, or syslog, whose observer is one of the former log.
    """
    from twisted.scripts._twistd_unix import UnixAppLogger

    return UnixAppLogger(options)._getLogObserver()


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
