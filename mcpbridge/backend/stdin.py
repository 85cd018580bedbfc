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
from mcpbridge.transports import AT_ONCE_BYTES


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
        "_paused",
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
        self._size = 0
        self._paused = False
        self._closed = False

    @property
    def waiting(self) -> tuple[int, int]:
        """How many messages wait here, and their bytes."""
        return len(self._waiting or ()), self._size

    def send(self, line: bytes) -> None:
        """
        Write a message, or keep it until the pipe takes it.

        Raises `BackendBusy` where as much as is allowed waits already; an
        empty queue takes any message.  Raises `UnknownSession` once the pipe is closed.
        """
        if not self._paused:
            self._write_line(line)
            return
        if self._closed:
            raise UnknownSession("the session has ended: its backend takes no more messages")
        if self._waiting is None:
            self._waiting = deque()
        if len(self._waiting) >= self._max_messages or self._size >= self._max_bytes:
            raise BackendBusy(
                f"the backend does not read: {len(self._waiting)} messages"
                f" ({self._size} bytes) already wait"
            )
        self._waiting.append(line)
        self._size += len(line)

    def _write_line(self, line: bytes) -> None:
        if len(line) <= AT_ONCE_BYTES:
            self._write(line + b"\n")
        else:
            # Without a copy; nothing can come between the two.
            self._write(line)
            self._write(b"\n")

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport's buffer is empty: write what waits until it is full again."""
        self._paused = False
        while self._waiting and not self._paused:
            line = self._waiting.popleft()
            self._size -= len(line)
            self._write_line(line)
        if not self._waiting:
            self._waiting = None

    def stopProducing(self) -> None:
        """The pipe is closed: what waits has nowhere to go."""
        self._closed = self._paused = True
        self._waiting = None
        self._size = 0
