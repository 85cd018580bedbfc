"""
A local backend: the process protocol of one stdio MCP server.

Knows the three pipes and the ladder that ends the process tree; must not
know sessions beyond the receiver it reports to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import ENDLESS_FACTOR, SMALL_BYTES, STDERR_LINE_BYTES
from mcpbridge.guard import guarded
from mcpbridge.interfaces import IBackend
from mcpbridge.jsonrpc.framing import LineFramer
from mcpbridge.jsonrpc.malformed_output import UTF16, OddLines, is_message, too_large
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.stdio.shutdown import Shutdown, ShutdownActions, Tree, build_shutdown
from mcpbridge.stdio.stdin_queue import StdinQueue
from mcpbridge.twisted_internals import write_at_once

#: How much Twisted reads of a pipe at once (`twisted.internet.fdesc.readFromFD`),
#: and how much more is read when there was as much.
TWISTED_READ_BYTES = 8192
READ_BYTES = 256 * 1024
#: How long after the end of stdout the exit status may take to be known.
EXIT_NEWS_SECONDS = 0.1
#: How long a message that has begun oddly may wait for its rest: one behind a Content-Length
#: header for a line end, one over several lines for the others.
REST_SECONDS = 0.2

_OBJECT, _ARRAY = b"{["


@implementer(IBackend)
class StdioBackend(ProcessProtocol):
    """
    One process: lines of its stdout are messages, its stderr is for people.

    `begin` is called right after the spawn, before the reactor turns;
    `reaped` with the leader's pid when that may be used anew.  `remove` is
    called when the process tree is gone, and ends what the tree has started
    elsewhere, a container: its argument says whether the tree was signalled,
    and what it returns fires when that is gone too.
    """

    log = Logger()
    transport: Any

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        receiver: Any,
        label: str,
        reaped: Callable[[int], None],
        budget: ResponseBudget | None = None,
        *,
        remove: Callable[[bool], Deferred[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._receiver = receiver
        self._label = label
        self._reaped = reaped
        self._remove = remove
        #: Whether nothing is left outside the process tree.
        self._removed = remove is None
        self._pid: int | None = None
        self._paused = False
        #: What was seen of its end before its exit status.
        self._news = ""
        self._deadline: IDelayedCall | None = None
        self._closing_stdin: IDelayedCall | None = None
        self._stdout = LineFramer(settings.max_message_bytes)
        #: What it has written to stdout that is not plainly a message, once there is any.
        self._odd: OddLines | None = None
        self._rest_call: IDelayedCall | None = None
        self._stderr = LineFramer(STDERR_LINE_BYTES, cut=True)
        self._budget = budget
        #: What counts of a line that is not complete; whether it waits for room.
        self._counted = 0
        self._held = False
        self._discarding = False
        self._output_reported = False
        self._gone = False
        self._ended = False
        self._waiters: list[Deferred[None]] = []
        self.exit_status: str | None = None

    def begin(self, pid: int | None, tree: Tree) -> None:
        """The process was spawned; without a pid it has exited already."""
        self._pid = pid
        settings = self._settings
        self._queue = StdinQueue(
            self._write, settings.max_waiting_messages, settings.max_waiting_bytes
        )
        writer = self.transport.pipes.get(0)
        if isinstance(writer, FileDescriptor):
            # What the pipe does not take waits in the queue, and is counted.
            writer.bufferSize = 0
        self.transport.registerProducer(self._queue, True)
        self._actions = ShutdownActions(
            clock=self._clock,
            label=self._label,
            tree=tree,
            stop_grace=settings.stop_grace,
            kill_grace=settings.kill_grace,
            close_stdin=self._close_stdin,
            gone=self._tree_gone,
        )
        self._shutdown: Shutdown = build_shutdown(self._actions)
        if pid is None:
            self._clock.callLater(0, self._leader_exited)

    @property
    def pid(self) -> int | None:
        """The leader's pid; None once it may be another process's."""
        return self._pid if self.exit_status is None else None

    # IBackend.

    def send(self, line: bytes) -> None:
        """One message to the backend's stdin.  Raises `BackendBusy`."""
        self._queue.send(line)

    def pause(self) -> None:
        """Leave what the backend writes in its pipes."""
        if not self._discarding:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read the pipes again."""
        self._paused = False
        if not self._held:
            self.transport.resumeProducing()

    def go_on(self) -> None:
        """There is room for what the backend writes."""
        self._held = False
        if not self._paused:
            self.transport.resumeProducing()

    def stop(self) -> Deferred[None]:
        """End the whole process tree; fires when it is gone and reaped."""
        stopped: Deferred[None] = Deferred()
        self._waiters.append(stopped)
        self._discarding = True
        # What is thrown away is not to wait, nor to count.
        self._stdout.finish()
        self._count()
        self._no_rest_call()
        self._held = False
        guarded(self.log, "resuming a backend's pipes", self.resume)
        self._shutdown.stop()
        if self._gone:
            self._close_pipes()
        self._settle()
        return stopped

    # ProcessProtocol.

    def outReceived(self, data: bytes) -> None:
        """Bytes of stdout: messages, one a line."""
        if self._discarding:
            return
        if len(data) == TWISTED_READ_BYTES:
            data += self._read_on()
        lines = self._stdout.receive(data)
        waiting = self._stdout.waiting
        if waiting > self._counted + SMALL_BYTES or waiting < self._counted:
            self._count()
        self._pass_on(lines)
        if self._odd is not None and self._odd.is_within and not self._discarding:
            self._await_rest(self._odd)
        if self._stdout.skipped or self._stdout.has_oversized:
            self._skip()

    def _await_rest(self, odd: OddLines) -> None:
        """What a message lacks, a line end or more of it, may be on its way."""
        if self._rest_call is None:
            self._rest_call = self._clock.callLater(REST_SECONDS, self._rest_awaited, odd)

    def _rest_awaited(self, odd: OddLines) -> None:
        self._rest_call = None
        framer = self._stdout
        if self._discarding:
            return
        if self._paused or self._held:
            # It may be in the pipe.
            self._await_rest(odd)
            return
        odd.waited()
        if odd.body_size:
            # A message with a header has no line end, and the size may be wrong.
            taken = odd.take_body(*map(framer.begun, (odd.body_size, framer.waiting)))
            if taken:
                framer.discard(taken)
                self._count()

    def _skip(self) -> None:
        """A line was too large to be kept, or is about to be."""
        limit = self._settings.max_message_bytes
        for message in self._stdout.take_oversized():
            self._receiver.message_lost(too_large(message))
        if self._stdout.skipped > limit * ENDLESS_FACTOR:
            endless = f"of more than {limit * ENDLESS_FACTOR} bytes"
            self._output_over(f"the backend wrote a line without end, {endless}")

    def errReceived(self, data: bytes) -> None:
        """Bytes of stderr: text, one line a line."""
        lines = self._stderr.receive(data)
        if lines:
            # Also while it is stopped: its last words say why it has failed.
            self._receiver.diagnostics_received(lines)

    def inConnectionLost(self) -> None:
        """The backend takes nothing more."""
        self._queue.stopProducing()
        closing, self._closing_stdin = self._closing_stdin, None
        if closing is not None and closing.active():
            closing.cancel()
        if not self._discarding:
            self._news = "the backend closed its stdin"
            self._receiver.input_closed(self._news)
            self._shutdown.stop()

    def outConnectionLost(self) -> None:
        """The end of stdout; a last line that no newline ended counts if it is whole."""
        self._no_rest_call()
        last = self._stdout.finish()
        self._count()
        if not (self._discarding or self._output_reported):
            self._skip()
        if last and not self._discarding:
            if is_message(last) or last.lstrip()[0] not in (_OBJECT, _ARRAY):
                self._pass_on([last])
            else:
                self.log.warn(
                    "the backend of {label} ended in the middle of a message of {size} bytes",
                    label=self._label,
                    size=len(last),
                )
        if self._odd is not None and not self._discarding:
            self._odd.finish()
        if self.exit_status is None and not self._discarding:
            # It has most often exited, and the signal that says so is on its way.
            self._no_deadline()
            self._deadline = self._clock.callLater(EXIT_NEWS_SECONDS, self._closed_stdout)
        else:
            self._output_over(self._how_it_ended())

    def _closed_stdout(self) -> None:
        self._deadline = None
        self._output_over(self._news or "the backend closed its stdout")

    def errConnectionLost(self) -> None:
        """The end of stderr."""
        last = self._stderr.finish()
        if last:
            self._receiver.diagnostics_received([last])

    def processExited(self, reason: Failure) -> None:
        """The leader is reaped; pipes may still hold what it wrote."""
        error = reason.value
        if isinstance(error, ProcessTerminated) and error.signal is not None:
            self.exit_status = f"signal {error.signal}"
        else:
            self.exit_status = f"exit status {getattr(error, 'exitCode', 0) or 0}"
        if self._pid is not None:
            self._reaped(self._pid)
            self._leader_exited()

    def _leader_exited(self) -> None:
        if not self._discarding:
            self._receiver.input_closed(self._how_it_ended())
            if 1 not in self.transport.pipes:
                self._output_over(self._how_it_ended())
        self._shutdown.leader_exited()

    def processEnded(self, reason: Failure) -> None:
        """The leader is reaped and all pipes are closed."""
        self._ended = True
        self._settle()

    # The pipes.

    def _write(self, data: bytes) -> None:
        """To stdin, at once where it takes it."""
        writer = self.transport.pipes.get(0)
        if isinstance(writer, FileDescriptor):
            write_at_once(writer, data)
        else:
            self.transport.write(data)

    def _read_on(self) -> bytes:
        """
        What more is in the pipe now: the reactor reads little at a time, and
        a large message would take many of its turns.
        """
        reader = self.transport.pipes.get(1)
        if not isinstance(reader, FileDescriptor):
            return b""
        try:
            return os.read(reader.fileno(), READ_BYTES)
        except OSError:
            # Nothing now, or an error that the reactor finds for itself.
            return b""

    def _count(self) -> None:
        """A large line that is not complete counts; while there is no room it is not read on."""
        budget = self._budget
        if budget is None:
            return
        waiting = self._stdout.waiting
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
            self.transport.pauseProducing()

    # What follows from them.

    def _how_it_ended(self) -> str:
        # What was told to end has ended for the reason that it was told for.
        if self._news and (self.exit_status is None or self._actions.signalled):
            return self._news
        return f"the backend ended ({self.exit_status})" if self.exit_status else ""

    def _pass_on(self, lines: list[bytes]) -> None:
        odd = self._odd
        if odd is None or not odd.is_within:
            for line in lines:
                if not (line.startswith(b'{"') and line.endswith(b"}")):
                    break
            else:
                if lines:
                    self._receiver.messages_received(lines)
                return
        # Some may not be MCP: print statements, banners, other framings.
        if odd is None:
            odd = self._odd = OddLines(self._receiver, STDERR_LINE_BYTES)
        odd.take(lines)
        if odd.is_utf16:
            self._output_over(UTF16)

    def _output_over(self, reason: str) -> None:
        self._no_deadline()
        if not self._output_reported:
            self._output_reported = True
            if not self._discarding:
                self._receiver.output_closed(reason)

    def _close_stdin(self) -> None:
        """
        Close stdin without flushing it: what the backend does not read would
        keep the pipe open.

        On the next turn of the reactor, never inside an event.  The list that
        one `epoll_wait` has returned may still hold an event for this very
        descriptor; were it closed now, a connection accepted later in the
        list could get its number, and the stale event would close *that*.
        """
        self._queue.stopProducing()
        if self._closing_stdin is None and 0 in self.transport.pipes:
            self._closing_stdin = self._clock.callLater(0, self._stdin_closed)

    def _stdin_closed(self) -> None:
        # The pipe may have been lost by itself meanwhile.
        writer = self.transport.pipes.get(0)
        if writer is not None:
            writer.connectionLost(Failure(ConnectionDone()))

    def _close_pipes(self) -> None:
        self._no_deadline()
        self._close_stdin()
        self.transport.loseConnection()

    def _tree_gone(self) -> None:
        self._gone = True
        if self._discarding:
            self._close_pipes()
        elif not self._output_reported:
            # What it wrote last is still in the pipe, and may wait for the
            # client.  Where it does not end, a stranger holds it open.
            self._deadline = self._clock.callLater(self._settings.kill_grace, self._late)
        if self._remove is not None:
            killed = self.exit_status is not None and self.exit_status.startswith("signal")
            self._remove(self._actions.signalled or killed).addCallback(self._all_removed)
        self._settle()

    def _all_removed(self, _: None) -> None:
        self._removed = True
        self._settle()

    def _late(self) -> None:
        self._deadline = None
        if self._paused or self._held:
            self._deadline = self._clock.callLater(self._settings.kill_grace, self._late)
        else:
            self._output_over(self._how_it_ended())

    def _no_rest_call(self) -> None:
        call, self._rest_call = self._rest_call, None
        if call is not None:
            call.cancel()

    def _no_deadline(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def _settle(self) -> None:
        if self._gone and self._ended and self._removed:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(None)
