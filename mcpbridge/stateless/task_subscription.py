"""
One stream of `subscriptions/listen` that names tasks (SEP-2663, "Task Status
Notifications"), which several processes may have.

Knows one client's stream and its parts: one for each process that has tasks
of it, and one for all else that is listened for.  Must not know which process
has which task.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from mcpbridge.errors import Refused
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.jsonrpc.members import Members
from mcpbridge.mcp.modern_request import ACKNOWLEDGED, ModernRequest
from mcpbridge.mcp.subscriptions import complete_line
from mcpbridge.mcp.tasks import acknowledged, failed_line, promised_tasks
from mcpbridge.stateless.concurrent_worker import ConcurrentWorker
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.timers import Timer

#: How long the acknowledgement waits for the processes that have the tasks.
ACKNOWLEDGE_SECONDS = 5.0
#: How many messages may wait for it; with more it waits for none of them.
MAX_BEFORE_ACKNOWLEDGED = 256


class _Part:
    """What one process writes of a stream; of tasks, where it has any of it."""

    def __init__(
        self,
        stream: TaskSubscription,
        process: ConcurrentWorker | None = None,
        tasks: Sequence[str] = (),
    ) -> None:
        self._stream = stream
        self.process = process
        self.tasks = tasks
        self.caller = stream.caller
        self.acknowledged = False
        self.over = False

    def send(self, lines: list[bytes], final: bool) -> None:
        """Messages of the process; with `final` the last one is the answer."""
        self._stream.heard(self, lines, final)

    deliver = send

    def fail(self, refusal: Refused) -> None:
        """There will be no more: the process has ended, and with it its tasks."""
        self._stream.lost(self, refusal)


class TaskSubscription:
    """
    A client's stream, the worker of its exchange.

    Each part is added, and then the stream is begun.  There is one
    acknowledgement, of what all have promised.  The end of a part is no end
    of the others; where it is that of a process, its unfinished tasks have
    failed.
    """

    def __init__(self, exchange: Exchange, clock: IReactorTime) -> None:
        self.caller = exchange.caller
        self._exchange = exchange
        self._parts: list[_Part] = []
        self._rest: Exchange | None = None
        self._promised: Members = {}
        self._tasks: list[str] = []
        #: What has come before the acknowledgement could be written.
        self._waiting: list[bytes] = []
        self._begun = False
        self._acknowledged = False
        self._late = Timer(clock)
        self._is_late = False
        #: Why a part has nothing to say, in the order of their ends.
        self._errors: list[bytes | Refused] = []
        exchange.assign(self)

    def add(self, process: ConcurrentWorker, tasks: Sequence[str], request: ModernRequest) -> None:
        """Have a process tell of tasks, by its own ids, with this request."""
        part = _Part(self, process, tasks)
        self._parts.append(part)
        try:
            process.listen(request, part)
        except Refused as error:
            part.over = True
            self._errors.append(error)

    def add_rest(self, request: ModernRequest) -> Exchange:
        """What listens for all but tasks: as any other that listens, with this for its client."""
        part = _Part(self)
        self._parts.append(part)
        self._rest = Exchange(request, self._exchange.identity, part, caller=self.caller)
        return self._rest

    def begin(self) -> None:
        """All parts have been asked."""
        self._begun = True
        self._late.start(ACKNOWLEDGE_SECONDS, self._wait_no_longer)
        self._settle()

    # What a part says.

    def heard(self, part: _Part, lines: list[bytes], final: bool) -> None:
        """Messages of a part."""
        answer = lines[-1] if final else None
        passing = []
        for line in lines[:-1] if final else lines:
            if part.acknowledged or not _acknowledges(line):
                passing.append(line)
                continue
            part.acknowledged = True
            promised, tasks = promised_tasks(line)
            self._promised.update(promised)
            self._tasks += tasks
        if answer is not None:
            part.over = True
            if not part.acknowledged:
                self._errors.append(answer)
        self._pass(passing)
        self._settle()

    def lost(self, part: _Part, refusal: Refused) -> None:
        """A part ends with its process, or there is none for it."""
        part.over = True
        if not part.acknowledged:
            self._errors.append(refusal)
        if part.process is not None:
            found = [part.process.tasks.failed(each, str(refusal)) for each in part.tasks]
            request = self._exchange.request
            self._pass([failed_line(request, each) for each in found if each is not None])
        self._settle()

    # What the client gets.

    def _pass(self, lines: list[bytes]) -> None:
        if self._acknowledged:
            if lines:
                self._exchange.deliver(lines, False)
            return
        self._waiting += lines
        if len(self._waiting) > MAX_BEFORE_ACKNOWLEDGED:
            self._acknowledge()

    def _wait_no_longer(self) -> None:
        self._is_late = True
        self._settle()

    def _settle(self) -> None:
        """Acknowledge when all have, and end when all have ended."""
        if not self._begun or self._exchange.over:
            return
        ended = all(part.over for part in self._parts)
        if not self._acknowledged:
            if ended and self._errors and not any(part.acknowledged for part in self._parts):
                self._refuse(self._errors[0])
                return
            if all(self._is_settled(part) for part in self._parts):
                self._acknowledge()
        if ended:
            self._late.stop()
            self._exchange.deliver([complete_line(self._exchange.request.id)], True)

    def _is_settled(self, part: _Part) -> bool:
        of_tasks = part.process is not None
        return part.acknowledged or part.over or (of_tasks and self._is_late)

    def _acknowledge(self) -> None:
        self._acknowledged = True
        self._late.stop()
        first = acknowledged(self._exchange.request, self._promised, self._tasks)
        waiting, self._waiting = self._waiting, []
        self._exchange.deliver([first, *waiting], False)

    def _refuse(self, error: bytes | Refused) -> None:
        self._late.stop()
        if isinstance(error, bytes):
            self._exchange.deliver([error], True)
        else:
            self._exchange.fail(error)

    # What an exchange asks: Worker.

    def cancel(self, exchange: Exchange) -> None:
        """The client has gone, or is refused: nobody need tell it anything."""
        self._late.stop()
        if self._rest is not None:
            self._rest.cancel()
        for part in self._parts:
            if part.process is not None and not part.over:
                part.over = True
                part.process.leave(part)

    def pause(self, exchange: Exchange) -> None:
        """Others need not wait for one that does not keep up: its response is bounded."""

    def resume(self, exchange: Exchange) -> None:
        """Nothing was paused."""


def _acknowledges(line: bytes) -> bool:
    envelope = peek(line) if b"acknowledged" in line else None
    return envelope is not None and envelope.method == ACKNOWLEDGED
