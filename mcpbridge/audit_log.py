"""
The audit log: who has asked what of which server, and what came of it, as lines of JSON.

Knows records and the file; must not know requests, sessions or connections, which make
the records.  Nothing that fails here fails anything else.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from stat import S_ISREG
from time import gmtime, strftime, time
from typing import Literal, NamedTuple

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.tuning import (
    AUDIT_ARGUMENT_BYTES,
    AUDIT_BATCH,
    AUDIT_QUEUE_BYTES,
    AUDIT_QUEUE_RECORDS,
    AUDIT_RETRY_SECONDS,
    AUDIT_SECONDS,
    AUDIT_TEXT_CHARS,
)
from mcpbridge.guard import guarded
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.timers import Timer

#: Stands for the standard output of the bridge.
STDOUT = "-"

Transport = Literal["sse", "streamable-http", "stateless", ""]
Outcome = Literal["ok", "error", "refused", "cancelled"]

#: About how many bytes a record takes besides the text of clients.
_RECORD_BYTES = 300
#: A record that takes more than this may have texts that are to be shortened.
_LONG_RECORD = _RECORD_BYTES + AUDIT_TEXT_CHARS
#: Line ends and tabs between the tokens of JSON, which are of no meaning.
_ONE_LINE = bytes.maketrans(b"\t\r\n", b"   ")


class AuditRecord(NamedTuple):
    """
    One request or notification of a client, or one HTTP request that was refused, or that
    has opened a stream or ended a session.

    `server` is empty where it is not known.  `identity` is the name of who has sent it,
    empty without authentication; `address` the client's, None if it is unknown.
    `session` is the short id that the log shows.  `name` is that of the tool or prompt,
    or the URI of the resource.  `seconds` is how long the answer took; None for what has
    none.  `code` is that of a JSON-RPC error, `status` that of HTTP, where it was refused,
    and `reason` says why, or what a request without a message was for.  `arguments` is the
    JSON of the arguments, if these are to be logged.
    """

    server: str
    outcome: Outcome
    identity: str = ""
    address: str | None = None
    session: str | None = None
    transport: Transport = ""
    method: str | None = None
    name: str | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    seconds: float | None = None
    code: int | None = None
    status: int | None = None
    reason: str | None = None
    arguments: bytes | None = None


class _Line(msgspec.Struct, omit_defaults=True):
    """A line of the log; its members are in the order of the documentation."""

    time: str
    outcome: str | None = None
    identity: str = ""
    address: str | None = None
    server: str | None = None
    session: str | None = None
    transport: str = ""
    method: str | None = None
    name: str | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    duration_ms: float | None = None
    code: int | None = None
    status: int | None = None
    reason: str | None = None
    arguments: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    arguments_cut: str | None = None
    lost: int | None = None


class AuditLog:
    """
    Writes records to a file, or to standard output, a batch at a time.

    `record` only appends.  Records are encoded and written after `AUDIT_SECONDS`, or in
    the next iteration of the reactor once there are `AUDIT_BATCH`.  Each line is
    appended whole, unless the disk is full.

    While the file cannot be written, `AUDIT_QUEUE_RECORDS` records wait, or
    `AUDIT_QUEUE_BYTES` of them, and it is tried again every `AUDIT_RETRY_SECONDS`.
    Further records are lost: they are counted, and the next line that can be written
    says how many there were.  The log of the bridge says why, now and then.

    A file that was moved or removed is made again, so that it can be rotated; a new one
    is for its owner alone.  A write to a file does not wait, but the file system may: it
    should be local.  A pipe or a terminal that takes nothing counts as one that cannot
    be written.

    `seconds` returns the time since the epoch.
    """

    log = Logger()

    def __init__(
        self,
        path: str,
        clock: IReactorTime,
        *,
        arguments: bool = False,
        seconds: Callable[[], float] = time,
    ) -> None:
        self.path = path
        #: Whether records should have the arguments.
        self.arguments = arguments
        self._file = _File(path)
        self._seconds = seconds
        #: Each with its time, and about how many bytes it takes.
        self._queue: deque[tuple[float, AuditRecord, int]] = deque()
        self._queued_bytes = 0
        #: How many records were lost since the last line that says so.
        self._lost = 0
        self._failing = False
        self._stopped = False
        self._timer = Timer(clock)
        self._complaints = RateLimitedLog(clock)
        self._second = -1
        self._second_text = ""

    def __len__(self) -> int:
        return len(self._queue)

    def start(self) -> None:
        """Open the file; one that cannot be opened is reported."""
        self._write_batch()

    def record(self, record: AuditRecord) -> None:
        """Have a record written soon; its time is now."""
        queue = self._queue
        if len(queue) >= AUDIT_QUEUE_RECORDS or self._queued_bytes >= AUDIT_QUEUE_BYTES:
            self._lost += 1
            return
        size = _size(record)
        if size > _LONG_RECORD:
            record = _shortened(record)
            size = _size(record)
        queue.append((self._seconds(), record, size))
        self._queued_bytes += size
        if self._stopped:
            self.flush()
        elif len(queue) == AUDIT_BATCH and not self._failing:
            self._timer.start(0, self.flush)
        elif not self._timer.is_running:
            self._timer.start(AUDIT_SECONDS, self.flush)

    def flush(self) -> None:
        """Write a batch of the records that wait, and soon the next, if there are more."""
        self._timer.stop()
        guarded(self.log, "writing the audit log", self._write_batch)
        if self._stopped:
            self._file.close()
        elif self._failing:
            self._timer.start(AUDIT_RETRY_SECONDS, self.flush)
        elif self._queue:
            self._timer.start(0, self.flush)

    def stop(self) -> None:
        """Write what waits, close the file, and from now on write each record at once."""
        self._stopped = True
        while self._queue or self._lost or self._file.is_torn:
            before = len(self._queue), self._lost
            self.flush()
            if self._failing or before == (len(self._queue), self._lost):
                self._give_up()
                break
        self._timer.stop()
        self._file.close()

    def _write_batch(self) -> None:
        count = min(len(self._queue), AUDIT_BATCH)
        lines = [
            # A record that cannot be encoded, which is a defect, must not stop the others.
            guarded(self.log, "encoding an audit record", self._line, when, record) or b""
            for when, record, _ in islice(self._queue, count)
        ]
        # What was lost came after everything that waits.
        lost = self._lost if count == len(self._queue) else 0
        if lost:
            lines.append(self._encoded(_Line(self._stamp(self._seconds()), lost=lost)))
        taken, error = self._file.append(lines)
        for _ in range(min(taken, count)):
            self._queued_bytes -= self._queue.popleft()[2]
        if taken > count:
            self._lost -= lost
        self._failing = error is not None
        if error is not None:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        count = self._complaints.due()
        if count is not None:
            self.log.warn(
                "cannot write the audit log {path!r}: {reason}; {waiting} records wait, {lost} are"
                " lost (audit_log)",
                path=self.path,
                reason=error.strerror or str(error),
                waiting=len(self._queue),
                lost=self._lost,
            )

    def _give_up(self) -> None:
        """Lose the records that wait: the bridge stops."""
        self.log.warn(
            "{count} records of the audit log {path!r} are lost (audit_log)",
            path=self.path,
            count=self._lost + len(self._queue) + self._file.is_torn,
        )
        self._queue.clear()
        self._lost = self._queued_bytes = 0

    def _line(self, when: float, record: AuditRecord) -> bytes:
        line = _Line(
            self._stamp(when),
            record.outcome,
            record.identity,
            record.address,
            record.server or None,
            record.session,
            record.transport,
            record.method,
            record.name,
            record.request_bytes,
            record.response_bytes,
            None if record.seconds is None else round(record.seconds * 1000, 3),
            record.code,
            record.status,
            record.reason,
        )
        if record.arguments is not None:
            if len(record.arguments) <= AUDIT_ARGUMENT_BYTES:
                line.arguments = msgspec.Raw(record.arguments.translate(_ONE_LINE))
            else:
                line.arguments_cut = _utf8(record.arguments[:AUDIT_ARGUMENT_BYTES])
        return self._encoded(line)

    def _encoded(self, line: _Line) -> bytes:
        try:
            encoded = msgspec.json.encode(line)
        except UnicodeEncodeError:
            # A lone surrogate, which JSON can have and UTF-8 cannot.
            for each in line.__struct_fields__:
                text = getattr(line, each)
                if isinstance(text, str):
                    setattr(line, each, text.encode("utf-8", "backslashreplace").decode())
            encoded = msgspec.json.encode(line)
        return _printable(encoded) + b"\n"

    def _stamp(self, when: float) -> str:
        """Return a time as RFC 3339 has it, in UTC, with milliseconds."""
        milliseconds = int(when * 1000)
        second = milliseconds // 1000
        if second != self._second:
            self._second = second
            self._second_text = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        return f"{self._second_text}.{milliseconds % 1000:03}Z"


class _File:
    """
    The file of the log, which is opened when it is needed.

    If it takes only a part of a line, the rest is written first the next time.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None
        self._is_regular = False
        #: The line of which only a part is written, and the rest of it.
        self._torn = b""
        self._rest = b""

    def append(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """
        Append as many of these lines as possible.

        Returns how many it has taken, and why it has not taken more, if so.
        """
        try:
            fd = self._open()
        except OSError as error:
            return 0, error
        at = len(self._rest)
        data = self._rest + b"".join(lines)
        written, why = self._write(fd, data)
        taken = 0
        for line in lines:
            if at >= written and line:
                break
            at += len(line)
            taken += 1
        if taken:
            self._torn = lines[taken - 1]
        self._rest = data[written:at]
        return taken, why

    @property
    def is_torn(self) -> bool:
        """True if only a part of the last line is written."""
        return bool(self._rest)

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None and self._path != STDOUT:
            os.close(fd)

    def _open(self) -> int:
        """Return the descriptor of what is at the path now."""
        if self._fd is not None and (self._path == STDOUT or self._is_current(self._fd)):
            return self._fd
        self.close()
        if self._path == STDOUT:
            fd = _STDOUT_FD
        else:
            fd = os.open(self._path, _FLAGS, 0o600)
            if self._rest:
                # This may be a new file, which has nothing of the line.
                self._rest = self._torn
        self._fd = fd
        self._is_regular = S_ISREG(os.fstat(fd).st_mode)
        return fd

    def _is_current(self, fd: int) -> bool:
        """Tell whether the file is still at the path, and has not been moved or removed."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        ours = os.fstat(fd)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _write(self, fd: int, data: bytes) -> tuple[int, OSError | None]:
        """Write what can be written without waiting; return how much, and what prevented more."""
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                written += os.write(fd, self._piece(fd, view[written:]))
        except OSError as error:
            return written, error
        return written, None

    def _piece(self, fd: int, rest: memoryview) -> memoryview:
        """
        Return what can be written without waiting.  Raises `BlockingIOError` for nothing.

        The mode of standard output is not for the bridge to change, as it shares it.
        """
        if self._is_regular:
            return rest
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError("nobody reads it")
        return rest[: select.PIPE_BUF]


_STDOUT_FD = 1
#: Opening a named pipe that nobody reads must not wait.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC


def _size(record: AuditRecord) -> int:
    """Return about how many bytes a record takes."""
    size = _RECORD_BYTES + len(record.identity)
    for text in (record.method, record.name, record.reason, record.arguments):
        if text is not None:
            size += len(text)
    return size


def _shortened(record: AuditRecord) -> AuditRecord:
    """Return a record without the ends of long texts."""
    arguments = record.arguments
    return record._replace(
        identity=_cut(record.identity) or "",
        method=_cut(record.method),
        name=_cut(record.name),
        reason=_cut(record.reason),
        # One more tells that they are cut.
        arguments=None if arguments is None else arguments[: AUDIT_ARGUMENT_BYTES + 1],
    )


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= AUDIT_TEXT_CHARS:
        return text
    return f"{text[:AUDIT_TEXT_CHARS]}..."


def _utf8(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _printable(line: bytes) -> bytes:
    """
    Return JSON in which everything that a terminal does not print is escaped.

    Control characters of ASCII are escaped already; others can only be in strings.
    """
    if line.isascii() and b"\x7f" not in line:
        return line
    text = _utf8(line)
    if text.isprintable():
        return line
    return "".join(each if each.isprintable() else _escape(each) for each in text).encode()


def _escape(character: str) -> str:
    encoded = character.encode("utf-16-be")
    return "".join(f"\\u{encoded[at : at + 2].hex()}" for at in range(0, len(encoded), 2))
