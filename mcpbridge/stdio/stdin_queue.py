"""
The queue of messages towards a backend's stdin.

Knows its bounds, and whether the pipe takes more; must not know what a
message says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.twisted_internals import AT_ONCE_BYTES

#: How much of a large message its transport gets at a time.
PIECE_BYTES = 1280 * 1024


@implementer(IPushProducer)
class StdinQueue:
    """
    Messages that wait while the pipe is full, in order.

    A producer of the process's stdin: the transport pauses it when enough is
    buffered there, and resumes it when all of that is written.
    """

    __slots__ = (
        "_closed",
        "_max_bytes",
        "_max_messages",
        "_messages",
        "_paused",
        "_rest",
        "_size",
        "_waiting",
        "_write",
    )

    def __init__(self, write: Callable[[bytes], None], max_messages: int, max_bytes: int) -> None:
        self._write = write
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        # Most often nothing waits, and an empty deque is not small.
        self._waiting: deque[bytes] | None = None
        self._messages = 0
        #: A large message that is being written, and how much of it was.
        self._rest: tuple[bytes, int] | None = None
        self._size = 0
        self._paused = False
        self._closed = False

    @property
    def waiting(self) -> tuple[int, int]:
        """How many messages wait here, and their bytes."""
        return self._messages, self._size

    def send(self, line: bytes) -> None:
        """
        Write a message, or several on lines of their own, or keep them until
        the pipe takes them.

        Raises `BackendBusy` where as much as is allowed waits already, or
        more messages would; an empty queue takes any number.  Raises
        `UnknownSession` once the pipe is closed.
        """
        if not self._paused:
            self._write_line(line)
            return
        if self._closed:
            raise UnknownSession("the session has ended: its backend takes no more messages")
        if self._waiting is None:
            self._waiting = deque()
        messages = _count(line)
        too_many = self._messages + messages > self._max_messages and self._waiting
        if too_many or self._size >= self._max_bytes:
            raise BackendBusy(
                f"the backend does not read: {self._messages} messages"
                f" ({self._size} bytes) already wait"
            )
        self._waiting.append(line)
        self._messages += messages
        self._size += len(line)

    def _write_line(self, line: bytes) -> None:
        if len(line) <= AT_ONCE_BYTES:
            self._write(line + b"\n")
        else:
            self._rest = line, 0
            self._write_rest()

    def _write_rest(self) -> None:
        """
        Some more of a large message, in pieces: a transport that has all of
        it copies what the pipe does not take, and others wait for that.
        """
        while self._rest is not None and not self._paused:
            line, begin = self._rest
            end = begin + PIECE_BYTES
            piece = line[begin:end]
            if end < len(line):
                self._rest = line, end
            else:
                self._rest = None
                piece += b"\n"
            self._write(piece)

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport's buffer is empty: write what waits until it is full again."""
        self._paused = False
        self._write_rest()
        while self._waiting and not self._paused:
            line = self._waiting.popleft()
            self._messages -= _count(line)
            self._size -= len(line)
            self._write_line(line)
        if not self._waiting:
            self._waiting = None

    def stopProducing(self) -> None:
        """The pipe is closed: what waits has nowhere to go."""
        self._closed = self._paused = True
        self._rest = None
        self._waiting = None
        self._messages = self._size = 0


def _count(line: bytes) -> int:
    """
    How many messages these are: one on each line, but of an array as many as
    say that they are one.
    """
    if line[:1] == b"[":
        return max(1, line.count(b'"jsonrpc"'))
    return line.count(b"\n") + 1
