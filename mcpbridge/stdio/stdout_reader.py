"""
Read the messages that a backend writes to its stdout.

Knows lines, their sizes, and what to do with output that is not a message;
does not know what a message means, or how the process ends.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.tuning import ENDLESS_FACTOR, SMALL_BYTES, STDERR_LINE_BYTES
from mcpbridge.jsonrpc.framing import LineFramer, split_lines
from mcpbridge.jsonrpc.malformed_output import UTF16, MalformedOutput, is_message, too_large
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.timers import Timer

#: How long a malformed message may wait for its rest: one behind a Content-Length header
#: for its line end, one over several lines for the others.
REST_SECONDS = 0.2

_OBJECT, _ARRAY = b"{["


class Pipes(Protocol):
    """The backend of a `StdoutReader`, as far as the reader needs it."""

    def pause_pipes(self) -> None:
        """Stop reading the pipes of the process."""

    def resume_pipes(self) -> None:
        """Read the pipes again."""

    def output_over(self, reason: str) -> None:
        """Report the end of the output: nothing more of it can be understood."""


class _Closed:
    """The pipes of a backend that has ended."""

    def pause_pipes(self) -> None:
        """Do nothing."""

    def resume_pipes(self) -> None:
        """Do nothing."""

    def read_more(self) -> bytes:
        """Return nothing."""
        return b""

    def output_over(self, reason: str) -> None:
        """Do nothing: the end was reported."""


_CLOSED = _Closed()


class StdoutReader:
    """
    Splits stdout into lines, and passes those that are messages to `receiver`.

    `receiver` is the session (`mcpbridge.interfaces.IBackendReceiver`).  The
    pipes are read only while the session allows it (`pause`, `resume`) and
    there is room for large messages in `budget`, of which this is a `Source`.
    """

    log = Logger()

    __slots__ = (
        "_budget",
        "_counted",
        "_discarding",
        "_framer",
        "_held",
        "_label",
        "_limit",
        "_malformed",
        "_paused",
        "_pipes",
        "_receiver",
        "_rest_timer",
    )

    def __init__(
        self,
        pipes: Pipes,
        receiver: Any,
        label: str,
        clock: IReactorTime,
        limit: int,
        budget: ResponseBudget | None,
    ) -> None:
        self._pipes = pipes
        self._receiver = receiver
        self._label = label
        self._limit = limit
        self._budget = budget
        self._framer = LineFramer(limit)
        #: Made for the first line that is not plainly a message.
        self._malformed: MalformedOutput | None = None
        self._rest_timer = Timer(clock)
        #: The bytes of the unfinished line that are counted in the budget.
        self._counted = 0
        #: Why the pipes are not read: the session's wish, the budget's.
        self._paused = False
        self._held = False
        self._discarding = False

    @property
    def is_waiting(self) -> bool:
        """True while the pipes are not read, so that output may be left in them."""
        return self._paused or self._held

    # Flow control.

    def pause(self) -> None:
        """Leave the output in the pipes: the session cannot take more."""
        if not self._discarding:
            self._paused = True
            self._pipes.pause_pipes()

    def resume(self) -> None:
        """Read the pipes again, unless the budget is full."""
        self._paused = False
        if not self._held:
            self._pipes.resume_pipes()

    def go_on(self) -> None:
        """Read the rest of a large message: the budget has room for it."""
        self._held = False
        if not self._paused:
            self._pipes.resume_pipes()

    def discard(self) -> None:
        """Throw away what was kept and all that comes: the backend is being stopped."""
        self._discarding = True
        # Discarded output needs no room, and must not wait for any.
        self._framer.finish()
        self._count()
        self._rest_timer.stop()
        self._held = False

    def let_go(self) -> None:
        """Drop the references to the backend and its session: nothing comes any more."""
        self.discard()
        self._pipes = _CLOSED
        self._receiver = self._malformed = None

    # Bytes.

    def receive(self, data: bytes) -> None:
        """Take the next bytes of stdout."""
        if self._discarding:
            return
        framer = self._framer
        if framer.is_at_start and self._malformed is None and data.endswith(b"}\n"):
            # Nearly always: whole messages.  What follows does the same for any output.
            lines = split_lines(data[:-1])
            for line in lines:
                if not (line.startswith(b'{"') and line.endswith(b"}")):
                    break
            else:
                if len(data) <= self._limit:
                    self._receiver.messages_received(lines)
                    return
        lines = framer.receive(data)
        waiting = framer.waiting
        if waiting > self._counted + SMALL_BYTES or waiting < self._counted:
            self._count()
        self._pass_on(lines)
        malformed = self._malformed
        if malformed is not None and malformed.is_within and not self._discarding:
            self._await_rest(malformed)
        if framer.skipped or framer.has_oversized:
            self._report_oversized()

    def finish(self, *, reported: bool) -> None:
        """
        Take the last line, if it is a whole message without a newline.

        `reported`: the end of the output was reported before its actual end.
        """
        self._rest_timer.stop()
        last = self._framer.finish()
        self._count()
        if self._discarding:
            return
        if not reported:
            self._report_oversized()
        # That may have stopped the backend.
        if last and not self._discarding:
            if is_message(last) or last.lstrip()[0] not in (_OBJECT, _ARRAY):
                self._pass_on([last])
            else:
                self.log.warn(
                    "the backend of {session} ended in the middle of a message of {size} bytes",
                    session=self._label,
                    size=len(last),
                )
        if self._malformed is not None and not self._discarding:
            self._malformed.finish()

    def _pass_on(self, lines: list[bytes]) -> None:
        malformed = self._malformed
        if malformed is None or not malformed.is_within:
            for line in lines:
                if not (line.startswith(b'{"') and line.endswith(b"}")):
                    break
            else:
                if lines:
                    self._receiver.messages_received(lines)
                return
        # Some lines may not be MCP: print statements, banners, other framings.
        if malformed is None:
            malformed = self._malformed = MalformedOutput(self._receiver, STDERR_LINE_BYTES)
        malformed.take(lines)
        if malformed.is_utf16:
            self._pipes.output_over(UTF16)

    def _report_oversized(self) -> None:
        """Report lines that were too large to keep, and give up on one without end."""
        for message in self._framer.take_oversized():
            self._receiver.message_lost(too_large(message))
        most = self._limit * ENDLESS_FACTOR
        if self._framer.skipped > most:
            self._pipes.output_over(
                f"the backend wrote an unterminated line of more than {most} bytes"
            )

    # The rest of a malformed message.

    def _await_rest(self, malformed: MalformedOutput) -> None:
        if not self._rest_timer.is_running:
            self._rest_timer.start(REST_SECONDS, self._rest_overdue, malformed)

    def _rest_overdue(self, malformed: MalformedOutput) -> None:
        if self._discarding:
            return
        if self.is_waiting:
            # The rest may be in the pipe.
            self._await_rest(malformed)
            return
        malformed.waited()
        if malformed.body_size:
            # A message behind a header has no line end, and its announced size may be wrong.
            framer = self._framer
            taken = malformed.take_body(*map(framer.begun, (malformed.body_size, framer.waiting)))
            if taken:
                framer.discard(taken)
                self._count()

    # The budget.

    def _count(self) -> None:
        """Count the unfinished line in the budget if it is large; read no more if that is full."""
        budget = self._budget
        if budget is None:
            return
        waiting = self._framer.waiting
        waiting = waiting if waiting > SMALL_BYTES else 0
        more, self._counted = waiting - self._counted, waiting
        if more > 0:
            budget.take(more)
        elif more < 0:
            budget.give_back(-more)
        if not waiting:
            budget.wrote(self)
            if self._held:
                self.go_on()
        elif budget.hold(self):
            self._held = True
            self._pipes.pause_pipes()
