"""
Which process of a server that speaks MCP 2026-07-28 works on a request.

Knows how many there are and what each has to do; must not know messages.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import RELISTEN_SECONDS
from mcpbridge.errors import (
    BackendFailed,
    BridgeError,
    MethodNotFound,
    Refused,
    ServerBusy,
    TooManySessions,
)
from mcpbridge.guard import guarded
from mcpbridge.mcp.header_validation import Headers, check_params
from mcpbridge.mcp.modern_request import TASK_METHODS
from mcpbridge.mcp.server_card import KnownServer
from mcpbridge.mcp.subscriptions import complete_line
from mcpbridge.mcp.tasks import (
    declares_tasks,
    listening_for,
    owner_of,
    task_ids,
    undeclared,
    unknown_task,
    without_tasks,
)
from mcpbridge.processes.abandoned import Newcomer
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.era import OtherEra
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.stateless.concurrent_worker import ConcurrentWorker
from mcpbridge.stateless.exchange import ENOUGH, UNUSED, Exchange, backend_ended
from mcpbridge.stateless.request_queue import RequestQueue, SingleFlight, Ticket, outlived
from mcpbridge.stateless.task_subscription import TaskSubscription


class ConcurrentPool:
    """
    All shared processes of a server.

    A request goes to the one with the least to do; where all have as many as
    `concurrency` allows another is started, and where the limits allow none
    it waits in line.  None serves two identities.  `untold` is called with
    why there is none, where nobody waits for it any more.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        pool: ProcessPool,
        line: RequestQueue,
        untold: Callable[[BridgeError], None],
        known: KnownServer | None = None,
    ) -> None:
        self._known = known or KnownServer()
        self._settings = settings
        self._clock = clock
        self._pool = pool
        self._queue = line
        self._processes: list[ConcurrentWorker] = []
        self._untold = untold
        #: Of those that wait in line for a process to themselves.
        self._alone: list[Ticket] = []
        #: Those that may have tasks, by what stands in the tasks' ids.
        self._owners: dict[str, ConcurrentWorker] = {}
        #: Whether the server has tasks, as far as it has said.
        self._offers_tasks: bool | None = None
        self._start = SingleFlight(settings.max_waiting_requests)
        #: Those that are to listen again, and what will have them do so.
        self._again: dict[Exchange, IDelayedCall | Deferred[None]] = {}

    def __len__(self) -> int:
        return len(self._processes)

    async def ask(self, exchange: Exchange, headers: Headers) -> None:
        """Put a request to a process.  Raises `Refused` and `OtherEra`."""
        if exchange.request.method in TASK_METHODS:
            self._ask_owner(exchange)
            return
        if exchange.listens:
            named = task_ids(exchange.request)
            if named:
                await self._listen_to_owners(exchange, named)
                return
        process = await self._reserve(exchange)
        try:
            request = exchange.request
            if request.method == "tools/call":
                annotations = await process.tools.annotations(request.name)
                check_params(request, annotations, headers)
            if process not in self._processes:
                raise backend_ended(process.session, self._settings)
            if not exchange.over:
                process.ask(exchange)
        finally:
            self._let_go(process)

    def _ask_owner(self, exchange: Exchange) -> None:
        """
        Put a request about a task to the process that has it, however much
        that has to do: nobody else can answer, and it takes no work.
        """
        request = exchange.request
        process, ident = self._owner(exchange, request.name or "")
        if process is None:
            if self._offers_tasks is False:
                raise MethodNotFound(f"the server has no tasks, and no {request.method!r}")
            raise unknown_task(request)
        process.upkeep.wake()
        process.reserved += 1
        try:
            if not exchange.over:
                process.ask_task(exchange, ident)
        finally:
            self._let_go(process)

    async def _listen_to_owners(self, exchange: Exchange, named: list[str]) -> None:
        """
        Have all processes that have one of these tasks tell of it, and one of
        all else that is listened for.  A task that is not there is not
        promised.  Raises `Refused` and `OtherEra`.
        """
        request = exchange.request
        if not declares_tasks(request):
            raise undeclared()
        shares: dict[ConcurrentWorker, list[str]] = {}
        for each in named:
            process, ident = self._owner(exchange, each)
            if process is not None:
                shares.setdefault(process, []).append(ident)
        stream = TaskSubscription(exchange, self._clock)
        try:
            rest = without_tasks(request)
            if rest is not None:
                await self.ask(stream.add_rest(rest), lambda _: [])
            if exchange.over:
                return
            for process, idents in shares.items():
                stream.add(process, idents, listening_for(request, idents))
        except BaseException:
            stream.cancel(exchange)
            raise
        stream.begin()

    def _owner(self, exchange: Exchange, task: str) -> tuple[ConcurrentWorker | None, str]:
        """Which process has a task, and its id there; None also where it is somebody else's."""
        owner, ident = owner_of(task)
        process = self._owners.get(owner)
        if process is None or process.identity != exchange.identity:
            return None, ident
        return process, ident

    async def open(
        self, session: BackendSession, identity: str, patience: float
    ) -> ConcurrentWorker:
        """
        Make one of a process that nobody has used.  Raises `Refused`, and
        `OtherEra` where the server is older; then it has ended.
        """
        process = ConcurrentWorker(
            session,
            identity,
            self._settings,
            freed=self._freed,
            lost=self._lost,
            orphaned=self._listen_again,
            known=self._known,
        )
        session.open(lambda _: self._lost(process), sink=process, caller_of=process.caller_of)
        try:
            await process.open(patience)
        except OtherEra as error:
            session.life.end(f"it is not needed: {error}")
            raise
        except BridgeError as error:
            session.life.end(f"it is of no use: {error}")
            raise
        except BaseException:
            session.life.end("it could not be asked")
            raise
        self._pool.backoff.succeeded()
        self._processes.append(process)
        self._owners[process.tasks.owner] = process
        self._offers_tasks = process.offers_tasks
        self._rest(process)
        return process

    def unused(self) -> BackendSession | None:
        """A process that nobody uses just now."""
        return next((each.session for each in self._processes if not each.in_use), None)

    def stop(self) -> None:
        """Who listens is told that this is the end."""
        again, self._again = self._again, {}
        for exchange, waiting in again.items():
            guarded(self.log, "a response", self._end_of, exchange)
            waiting.cancel()

    async def _reserve(self, exchange: Exchange) -> ConcurrentWorker:
        ticket = Ticket()
        while True:
            self._end_worn(exchange)
            process = self._free(exchange, ticket)
            if process is not None:
                self._hold(process, exchange)
                return process
            try:
                process = await self._another(exchange)
            except TooManySessions as error:
                if not (self._processes or self._pool.has_leaving()):
                    raise ServerBusy.because(error) from None
                await self._wait(exchange, ticket)
            else:
                if process is not None:
                    return process

    async def _wait(self, exchange: Exchange, ticket: Ticket) -> None:
        alone = _wants_logs(exchange)
        if alone:
            self._alone.append(ticket)
        try:
            await self._queue.wait(ticket, lambda: self._may_go(exchange, ticket))
        finally:
            if alone:
                self._alone.remove(ticket)
                self._queue.wake()

    def _may_go(self, exchange: Exchange, ticket: Ticket) -> bool:
        return (
            self._free(exchange, ticket) is not None
            or not self._pool.is_full(Newcomer(exchange.client))
            or any(self._is_over(each, exchange) for each in self._processes)
        )

    def _is_over(self, process: ConcurrentWorker, exchange: Exchange) -> bool:
        """Whether it is to make room for a process that can do what this request wants."""
        if process.load or len(process.tasks):
            return False
        silent = process.identity == exchange.identity and process.muddled
        return process.upkeep.is_worn() or (silent and _wants_logs(exchange))

    def _hold(self, process: ConcurrentWorker, exchange: Exchange) -> None:
        process.upkeep.wake()
        process.reserved += 1
        if not exchange.listens:
            process.alone = exchange.request.log_level is not None

    def _let_go(self, process: ConcurrentWorker) -> None:
        process.reserved -= 1
        self._freed(process)

    def _free(self, exchange: Exchange, ticket: Ticket) -> ConcurrentWorker | None:
        free = [
            each
            for each in self._processes
            if each.identity == exchange.identity
            and not (each.upkeep.is_worn() and self._may_replace(each))
            and self._has_room(each, exchange, ticket)
        ]
        return min(free, key=lambda each: each.load, default=None)

    def _has_room(self, process: ConcurrentWorker, exchange: Exchange, ticket: Ticket) -> bool:
        if exchange.listens:
            return True
        if process.hung:
            return False
        served = process.upkeep.served + process.reserved
        if served >= self._settings.max_process_requests and self._may_replace(process):
            return False
        if process.load and not _wants_logs(exchange) and ticket.is_behind(self._alone):
            # Somebody who came before waits until it is empty: no more is put on top.
            return False
        if len(process.tasks) and _wants_logs(exchange) and not self._pool.is_full():
            # A log that names no request may be of a task: none is told while there is one.
            return False
        limit = 1 if _wants_logs(exchange) else self._settings.concurrency
        return process.load < limit and not (process.alone and process.load)

    def _may_replace(self, process: ConcurrentWorker) -> bool:
        """
        Whether a worn process is to work no more.  One that a task keeps, which
        may be for an hour, goes on where there is no room for another.
        """
        return not (len(process.tasks) and self._pool.is_full())

    async def _another(self, exchange: Exchange) -> ConcurrentWorker | None:
        """Start one, for this request and others; None: somebody else has, or has tried."""
        if not await self._start.is_first():
            return None
        # A server may take longer to start than its clients wait.
        return await outlived(self._start_one(exchange), self._let_go, self._untold)

    async def _start_one(self, exchange: Exchange) -> ConcurrentWorker:
        try:
            session = await self._pool.take(Newcomer(exchange.client))
            process = await self.open(session, exchange.identity, self._settings.start_timeout)
            self._hold(process, exchange)
        except BackendFailed as error:
            self._pool.fail(str(error))
            raise
        finally:
            self._start.done()
        self._queue.wake()
        return process

    def _freed(self, process: ConcurrentWorker) -> None:
        """It has less to do: it is for whoever waits, or rests, or has done enough."""
        if process not in self._processes:
            return
        if process.load or len(process.tasks):
            pass
        elif process.hung or process.upkeep.is_worn():
            # Who only listens to it is listened for elsewhere.
            process.session.life.end("it does not answer" if process.hung else ENOUGH)
        elif not process.in_use:
            process.alone = False
            self._rest(process)
        self._pool.tell_room()

    def _rest(self, process: ConcurrentWorker) -> None:
        process.upkeep.rest(lambda: process.session.life.end(UNUSED))

    def _end_worn(self, exchange: Exchange) -> None:
        """What became too old while nobody used it is not to stay beside another."""
        for process in list(self._processes):
            if self._is_over(process, exchange):
                process.session.life.end(ENOUGH)

    def _lost(self, process: ConcurrentWorker) -> None:
        """It takes no more requests."""
        if process in self._processes:
            self._processes.remove(process)
            del self._owners[process.tasks.owner]
            self._queue.wake()

    # Listening.

    def _listen_again(self, exchange: Exchange) -> None:
        """The process has ended; its client need not know ("Unexpected Termination")."""
        if self._pool.stopping:
            self._end_of(exchange)
        if exchange.over:
            return
        exchange.assign(self)
        delay = max(RELISTEN_SECONDS, self._pool.backoff.wait(self._clock.seconds()))
        self._again[exchange] = self._clock.callLater(delay, self._ask_again, exchange)

    def _ask_again(self, exchange: Exchange) -> None:
        asking = Deferred.fromCoroutine(self.ask(exchange, lambda _: []))
        self._again[exchange] = asking
        asking.addBoth(self._asked_again, exchange)

    def _asked_again(self, result: object, exchange: Exchange) -> None:
        self._again.pop(exchange, None)
        if exchange.over or not isinstance(result, Failure):
            return
        if isinstance(result.value, Refused):
            self._listen_again(exchange)
        else:
            exchange.fail(BackendFailed("what was listened to is gone"))

    def _end_of(self, exchange: Exchange) -> None:
        exchange.deliver([complete_line(exchange.request.id)], True)

    # What an exchange asks that is to listen again: Worker.

    def cancel(self, exchange: Exchange) -> None:
        """The client has gone."""
        waiting = self._again.pop(exchange, None)
        if waiting is not None:
            waiting.cancel()

    def pause(self, exchange: Exchange) -> None:
        """Nothing comes for it."""

    def resume(self, exchange: Exchange) -> None:
        """Nothing was paused."""


def _wants_logs(exchange: Exchange) -> bool:
    return exchange.request.log_level is not None and not exchange.listens
