"""
Queue messages for a backend's stdin.

Knows its bounds and whether the pipe is full; does not know what a message says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.twisted_internals import AT_ONCE_BYTES

#: So much of a large message is handed to its transport at a time.
PIECE_BYTES = 1280 * 1024


@implementer(IPushProducer)
class StdinQueue:
    """
    Keeps messages in order while the pipe is full.

    It is the producer of the process's stdin: the transport pauses it when its
    buffer is full, and resumes it when the buffer is empty.
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
        # None while nothing waits, as most often: an empty deque takes hundreds of bytes.
        self._waiting: deque[bytes] | None = None
        self._messages = 0
        #: A large message that is being written, and the bytes of it that were written.
        self._rest: tuple[bytes, int] | None = None
        self._size = 0
        self._paused = False
        self._closed = False

    @property
    def waiting(self) -> tuple[int, int]:
        """The number of messages that wait here, and of their bytes."""
        return self._messages, self._size

    def send(self, line: bytes) -> None:
        """
        Write a message, or several on lines of their own; queue them if the pipe is full.

        Raises `BackendBusy` if the queue has its maximum of bytes, or would have
        more messages than allowed; an empty queue takes any number of them.
        Raises `UnknownSession` once the pipe is closed.
        """
        if not self._paused:
            if len(line) <= AT_ONCE_BYTES:
                self._write(line + b"\n")
            else:
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
                f"the backend does not read its stdin: {self._messages} messages"
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
        Write a large message in pieces, as far as the pipe takes them.

        A transport that got all of it at once would copy what the pipe does
        not take, again and again, while other clients wait.
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
        """Queue further messages: the transport's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Write queued messages until the transport's buffer is full again."""
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
        """Drop all queued messages: the pipe is closed."""
        self._closed = self._paused = True
        self._rest = None
        self._waiting = None
        self._messages = self._size = 0

    def let_go(self) -> None:
        """Drop the reference to the backend, whose pipe is closed for good."""
        self.stopProducing()
        self._write = _nowhere


def _nowhere(line: bytes) -> None:
    """Write nothing: the pipe is closed."""


def _count(line: bytes) -> int:
    """
    Count the messages of a line, or of several lines.

    Each line is one, but an array, a batch, counts as many as there are
    `"jsonrpc"` in it.
    """
    if line[:1] == b"[":
        return max(1, line.count(b'"jsonrpc"'))
    return line.count(b"\n") + 1
