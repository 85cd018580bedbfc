"""
One `subscriptions/listen` that names tasks (SEP-2663, "Task Status
Notifications"), which several processes may have.

Knows one client's subscription and its parts: one for each worker that has
tasks of it, and one for all else that was asked for.  Must not know which
worker has which task.
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

#: Seconds that the acknowledgement waits for the workers that have the tasks.
ACKNOWLEDGE_SECONDS = 5.0
#: How many messages may wait for it; with more it waits for no part any longer.
MAX_BEFORE_ACKNOWLEDGED = 256


class _Part:
    """
    A part of a subscription, with the worker that serves it and the tasks
    that this has; without a worker, the part that is about no task.
    """

    def __init__(
        self,
        subscription: TaskSubscription,
        worker: ConcurrentWorker | None = None,
        tasks: Sequence[str] = (),
    ) -> None:
        self._subscription = subscription
        self.worker = worker
        self.tasks = tasks
        self.caller = subscription.caller
        self.acknowledged = False
        self.over = False

    def send(self, lines: list[bytes], final: bool) -> None:
        """Take messages; if `final`, the last one is the response."""
        self._subscription.part_received(self, lines, final)

    deliver = send

    def fail(self, refusal: Refused) -> None:
        """Take the end of the process, and with it of its tasks."""
        self._subscription.part_failed(self, refusal)


class TaskSubscription:
    """
    The `Worker` of a client's subscription to tasks.

    Parts are added, and then it begins.  It is acknowledged once, with what
    all parts have promised.  The end of a part does not end the others; if
    its process has ended, its unfinished tasks have failed.
    """

    def __init__(self, exchange: Exchange, clock: IReactorTime) -> None:
        self.caller = exchange.caller
        self._exchange = exchange
        self._parts: list[_Part] = []
        self._rest: Exchange | None = None
        self._promised: Members = {}
        self._tasks: list[str] = []
        #: Messages that wait for the acknowledgement.
        self._waiting: list[bytes] = []
        self._begun = False
        self._acknowledged = False
        self._deadline = Timer(clock)
        self._is_late = False
        #: Why parts have nothing to say, in the order in which they ended.
        self._errors: list[bytes | Refused] = []
        exchange.assign(self)

    def add(self, worker: ConcurrentWorker, tasks: Sequence[str], request: ModernRequest) -> None:
        """Subscribe to tasks of a worker, by its server's own ids, with this request."""
        part = _Part(self, worker, tasks)
        self._parts.append(part)
        try:
            worker.subscribe(request, part)
        except Refused as error:
            part.over = True
            self._errors.append(error)

    def add_rest(self, request: ModernRequest) -> Exchange:
        """Return an exchange with this request, which is about all but tasks."""
        part = _Part(self)
        self._parts.append(part)
        whole = self._exchange
        self._rest = Exchange(request, whole.access, part, caller=self.caller)
        return self._rest

    def begin(self) -> None:
        """All parts have been added: acknowledge when they have."""
        self._begun = True
        self._deadline.start(ACKNOWLEDGE_SECONDS, self._deadline_passed)
        self._settle()

    # What a part calls.

    def part_received(self, part: _Part, lines: list[bytes], final: bool) -> None:
        """Pass messages of a part on, but for its acknowledgement and its response."""
        answer = lines[-1] if final else None
        passing = []
        for line in lines[:-1] if final else lines:
            if part.acknowledged or not _is_acknowledgement(line):
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

    def part_failed(self, part: _Part, refusal: Refused) -> None:
        """End a part with its process, and tell the client that its tasks have failed."""
        part.over = True
        if not part.acknowledged:
            self._errors.append(refusal)
        if part.worker is not None:
            failed = [part.worker.tasks.failed(each, str(refusal)) for each in part.tasks]
            request = self._exchange.request
            self._pass([failed_line(request, each) for each in failed if each is not None])
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

    def _deadline_passed(self) -> None:
        self._is_late = True
        self._settle()

    def _settle(self) -> None:
        """Acknowledge once all parts have, and complete once all have ended."""
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
            self._deadline.stop()
            self._exchange.deliver([complete_line(self._exchange.request.id)], True)

    def _is_settled(self, part: _Part) -> bool:
        has_tasks = part.worker is not None
        return part.acknowledged or part.over or (has_tasks and self._is_late)

    def _acknowledge(self) -> None:
        self._acknowledged = True
        self._deadline.stop()
        first = acknowledged(self._exchange.request, self._promised, self._tasks)
        waiting, self._waiting = self._waiting, []
        self._exchange.deliver([first, *waiting], False)

    def _refuse(self, error: bytes | Refused) -> None:
        self._deadline.stop()
        if isinstance(error, bytes):
            self._exchange.deliver([error], True)
        else:
            self._exchange.fail(error)

    # Worker: what the exchange calls.

    def cancel(self, exchange: Exchange) -> None:
        """End all parts: the client has gone, or is refused."""
        self._deadline.stop()
        if self._rest is not None:
            self._rest.cancel()
        for part in self._parts:
            if part.worker is not None and not part.over:
                part.over = True
                part.worker.unsubscribe(part)

    def pause(self, exchange: Exchange) -> None:
        """Do nothing: others must not wait for one client, whose response is bounded."""

    def resume(self, exchange: Exchange) -> None:
        """Do nothing: nothing was paused."""


def _is_acknowledgement(line: bytes) -> bool:
    envelope = peek(line) if b"acknowledged" in line else None
    return envelope is not None and envelope.method == ACKNOWLEDGED
