"""
A backend on this machine: the process protocol of one stdio MCP server.

Knows the three pipes, and when the process tree is gone; does not know
sessions beyond the receiver that it reports to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ProcessTerminated
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import STDERR_LINE_BYTES
from mcpbridge.guard import guarded
from mcpbridge.interfaces import IKillableBackend
from mcpbridge.jsonrpc.framing import LineFramer
from mcpbridge.pacer import ENDS, Pacer
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.stdio.confinement import limit_hint
from mcpbridge.stdio.shutdown import Shutdown, ShutdownActions, Tree, build_shutdown
from mcpbridge.stdio.stdin_queue import StdinQueue
from mcpbridge.stdio.stdout_reader import StdoutReader
from mcpbridge.timers import Timer
from mcpbridge.twisted_internals import COLLECTED, prompt_writer, read_directly

#: How long after the end of stdout the exit status may take to be known.
EXIT_NEWS_SECONDS = 0.1


@implementer(IKillableBackend)
class StdioBackend(ProcessProtocol):
    """
    One process: lines of its stdout are messages, its stderr is text for people.

    The launcher calls `begin` right after the spawn, in the same iteration of
    the reactor.  `reaped` is called with the leader's pid when the process has
    exited.  `remove` is called when the process tree is gone, and ends what
    the tree has started elsewhere, a container: its argument is True if the
    tree was signalled, and its `Deferred` fires when that is gone, too.
    `pacer` spreads the ends of many backends over iterations of the reactor.
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
        pacer: Pacer | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pacer = pacer or Pacer(clock)
        self._receiver = receiver
        self._label = label
        self._reaped = reaped
        self._remove = remove
        self._pid: int | None = None
        self._stdout = StdoutReader(
            self, receiver, label, clock, settings.max_message_bytes, budget
        )
        self._stderr = LineFramer(STDERR_LINE_BYTES, cut=True)
        #: A reason for the end that was seen before the exit status.
        self._early_reason = ""
        #: Reports the end of the output if nothing else does in time.
        self._output_timer = Timer(clock)
        self._closing_stdin = Timer(clock)
        #: True once `stop` was called: the session takes nothing more.
        self._stopping = False
        self._output_reported = False
        # A backend has stopped when all three are True: the process tree is gone, the
        # leader is reaped and its pipes are closed, nothing is left outside the tree.
        self._tree_gone = False
        self._pipes_closed = False
        self._removed = remove is None
        self._stopped: list[Deferred[None]] = []
        self.exit_status: str | None = None

    def begin(self, pid: int | None, tree: Tree) -> None:
        """Begin to serve the spawned process; without a pid it has exited already."""
        self._pid = pid
        settings = self._settings
        pipes = self.transport.pipes
        writer = prompt_writer(pipes.get(0))
        write = self.transport.write
        if writer is not None:
            # What the pipe does not take waits in the queue, where it is bounded.
            writer.bufferSize = 0
            write = partial(COLLECTED.write, writer)
        self._stdin = StdinQueue(write, settings.max_waiting_messages, settings.max_waiting_bytes)
        read_directly(pipes.get(1), self._stdout.receive)
        read_directly(pipes.get(2), self.errReceived)
        self.transport.registerProducer(self._stdin, True)
        self._actions = ShutdownActions(
            clock=self._clock,
            label=self._label,
            tree=tree,
            stop_grace=settings.stop_grace,
            kill_grace=settings.kill_grace,
            close_stdin=self._close_stdin,
            gone=self._on_tree_gone,
        )
        self._shutdown: Shutdown = build_shutdown(self._actions)
        if pid is None:
            self._clock.callLater(0, self._leader_exited)

    @property
    def pid(self) -> int | None:
        """The leader's pid; None once it has exited, since it may be reused."""
        return self._pid if self.exit_status is None else None

    # IBackend.

    def send(self, line: bytes) -> None:
        """Write one message to stdin.  Raises `BackendBusy` and `UnknownSession`."""
        self._stdin.send(line)

    def pause(self) -> None:
        """Leave what the backend writes in its pipes."""
        self._stdout.pause()

    def resume(self) -> None:
        """Read the pipes again."""
        self._stdout.resume()

    def stop(self) -> Deferred[None]:
        """End the whole process tree; the `Deferred` fires when it is gone and reaped."""
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        self._stopping = True
        self._stdout.discard()
        self._stdin.stopProducing()
        self._pacer.run(ENDS, self._stop)
        return stopped

    def kill(self) -> None:
        """End the whole process tree with SIGKILL, without a grace."""
        self._actions.hurry(self._shutdown)

    def _stop(self) -> None:
        guarded(self.log, "resuming a backend's pipes", self.resume)
        self._shutdown.stop()
        if self._tree_gone:
            self._close_pipes()
        self._fire_if_stopped()

    # ProcessProtocol.

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Dispatch bytes of a pipe that is not read directly (`read_directly`)."""
        if childFD == 1:
            self._stdout.receive(data)
        else:
            self.errReceived(data)

    def errReceived(self, data: bytes) -> None:
        """Pass lines of stderr on, also after `stop`: the last ones tell why it failed."""
        lines = self._stderr.receive(data)
        if lines:
            self._receiver.diagnostics_received(lines)

    def lose_in_turn(self, lose: Callable[[], None]) -> None:
        """Lose a pipe that the process has closed in its turn: hundreds may end at one time."""
        self._pacer.run(ENDS, lose)

    def inConnectionLost(self) -> None:
        """End the backend if it was not told to close its stdin."""
        self._stdin.stopProducing()
        self._closing_stdin.stop()
        if not self._stopping:
            self._early_reason = "the backend closed its stdin"
            self._pacer.run(ENDS, self._report_closed_stdin)

    def _report_closed_stdin(self) -> None:
        if not self._stopping:
            self._receiver.input_closed(self._early_reason)
            self._shutdown.stop()

    def outConnectionLost(self) -> None:
        """Take the last line, and report the end of the output."""
        self._stdout.finish(reported=self._output_reported)
        if self.exit_status is None and not self._stopping:
            # Most often the process has exited, and SIGCHLD is about to tell its status.
            self._output_timer.start(EXIT_NEWS_SECONDS, self._stdout_closed)
        else:
            self.output_over(self._how_it_ended())

    def _stdout_closed(self) -> None:
        # Behind the exits that wait for their turn: this process may have exited, too.
        self._pacer.run(ENDS, self._report_closed_stdout)

    def _report_closed_stdout(self) -> None:
        self.output_over(self._early_reason or "the backend closed its stdout")

    def errConnectionLost(self) -> None:
        """Pass the last line of stderr on."""
        last = self._stderr.finish()
        if last:
            self._receiver.diagnostics_received([last])

    def processExited(self, reason: Failure) -> None:
        """Note the leader's exit status; the pipes may still hold what it wrote."""
        error = reason.value
        if isinstance(error, ProcessTerminated) and error.signal is not None:
            self.exit_status = f"signal {error.signal}"
        else:
            self.exit_status = f"exit status {getattr(error, 'exitCode', 0) or 0}"
        if self._pid is not None:
            self._reaped(self._pid)
            self._leader_exited()

    def _leader_exited(self) -> None:
        if not self._stopping:
            self._receiver.input_closed(self._how_it_ended())
            if 1 not in self.transport.pipes:
                self.output_over(self._how_it_ended())
        self._shutdown.leader_exited()

    def processEnded(self, reason: Failure) -> None:
        """Note that the leader has exited and all its pipes are closed."""
        self._pipes_closed = True
        self._fire_if_stopped()

    # What the reader of stdout needs.

    def pause_pipes(self) -> None:
        """Stop reading stdout and stderr."""
        self.transport.pauseProducing()

    def resume_pipes(self) -> None:
        """Read stdout and stderr again."""
        self.transport.resumeProducing()

    def output_over(self, reason: str) -> None:
        """Report the end of the output once, unless the backend was told to stop."""
        self._output_timer.stop()
        if not self._output_reported:
            self._output_reported = True
            if not self._stopping:
                self._receiver.output_closed(reason)

    # The end.

    def _how_it_ended(self) -> str:
        # A process that was signalled has ended for the reason why it was.
        if self._early_reason and (self.exit_status is None or self._actions.signalled):
            return self._early_reason
        if not self.exit_status:
            return ""
        hint = limit_hint(self._settings.limits, self.exit_status)
        return f"the backend ended ({self.exit_status}){hint}"

    def _close_stdin(self) -> None:
        """
        Close stdin without flushing it: a backend that does not read would
        keep the pipe open.

        It happens in the next iteration of the reactor, never inside an
        event.  The list that one `epoll_wait` has returned may still hold an
        event for this very descriptor; if it were closed now, a connection
        accepted later in the list could get its number, and the stale event
        would close that connection.
        """
        self._stdin.stopProducing()
        if not self._closing_stdin.is_running and 0 in self.transport.pipes:
            self._closing_stdin.start(0, self._drop_stdin)

    def _drop_stdin(self) -> None:
        # The pipe may have been lost meanwhile.
        writer = self.transport.pipes.get(0)
        if writer is not None:
            writer.connectionLost(Failure(ConnectionDone()))

    def _close_pipes(self) -> None:
        self._output_timer.stop()
        self._close_stdin()
        self.transport.loseConnection()

    def _on_tree_gone(self) -> None:
        self._tree_gone = True
        if self._stopping:
            self._close_pipes()
        elif not self._output_reported:
            # The last output is still in the pipe, and may wait for the client.  If the
            # pipe does not end, a process of somebody else holds it open.
            self._output_timer.start(self._settings.kill_grace, self._output_overdue)
        if self._remove is not None:
            killed = self.exit_status is not None and self.exit_status.startswith("signal")
            self._remove(self._actions.signalled or killed).addCallback(self._on_removed)
        self._fire_if_stopped()

    def _output_overdue(self) -> None:
        if self._stdout.is_waiting:
            self._output_timer.start(self._settings.kill_grace, self._output_overdue)
        else:
            self.output_over(self._how_it_ended())

    def _on_removed(self, _: None) -> None:
        self._removed = True
        self._fire_if_stopped()

    def _fire_if_stopped(self) -> None:
        if self._tree_gone and self._pipes_closed and self._removed:
            stopped, self._stopped = self._stopped, []
            for each in stopped:
                each.callback(None)
            if stopped:
                self._let_go()

    def _let_go(self) -> None:
        """
        Let go of what leads back here, so that the session is freed now, and not when the
        garbage collector comes, which keeps others waiting where there are thousands.
        """
        self._receiver = None
        self._stdin.let_go()
        self._stdout.let_go()
        self._actions.close_stdin = self._actions.gone = _nothing


def _nothing() -> None:
    """Do nothing: the backend has ended."""
