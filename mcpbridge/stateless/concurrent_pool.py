"""
Which process of a server that speaks MCP 2026-07-28 works on a request.

Knows how many workers there are and what each has to do; must not know
messages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from math import inf
from typing import Literal, NamedTuple, get_args

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import BackendFailed, BridgeError, InvalidParams, MethodNotFound, Refused
from mcpbridge.guard import guarded
from mcpbridge.mcp.header_validation import Headers, check_params
from mcpbridge.mcp.modern_request import TASK_METHODS
from mcpbridge.mcp.server_card import KnownServer
from mcpbridge.mcp.subscriptions import complete_line
from mcpbridge.mcp.tasks import (
    declares_tasks,
    owner_of,
    subscription_to,
    task_ids,
    undeclared,
    unknown_task,
    without_tasks,
)
from mcpbridge.processes.abandoned_sessions import Newcomer
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.stateless.concurrent_worker import ConcurrentWorker
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.stateless.request_queue import RequestQueue, SingleFlight, Ticket, shielded
from mcpbridge.stateless.task_subscription import TaskSubscription
from mcpbridge.stateless.worker_pool import WorkerPool

#: The part of `max_process_requests` during which a process and its successor both serve
#: requests is 1 of so many.
SERVED_BY_TWO = 10
#: The ticket of all requests that have not waited.
_NOT_WAITING = Ticket()
#: Why a process ends that can serve no request for log messages, where one needs a process.
MUDDLED = "it may still log for a cancelled request"


#: What a request needs of a worker of its identity: to be one of `concurrency` requests;
#: to be the only one, as it wants log messages; or, if it is a subscription, nothing.
_Need = Literal["place", "alone", "nothing"]
_NEEDS: tuple[_Need, ...] = get_args(_Need)


class _Line(NamedTuple):
    """The line of those requests that wait for the same workers."""

    identity: str
    need: _Need


class _ByLoad:
    """
    Workers of one identity, those with the least to do first.

    A request changes the load of its worker by one, so a change takes
    constant time, and so does finding the first, on average.
    """

    def __init__(self) -> None:
        # For each load the workers that have it, in the order in which they reached it.
        self._levels: list[dict[ConcurrentWorker, None]] = []
        self._loads: dict[ConcurrentWorker, int] = {}
        # No level below this one has any worker.
        self._lowest = 0

    def first(self) -> ConcurrentWorker:
        """Return the one with the least to do, and of several the one that has been so longest."""
        levels = self._levels
        while not levels[self._lowest]:
            self._lowest += 1
        return next(iter(levels[self._lowest]))

    def __iter__(self) -> Iterator[ConcurrentWorker]:
        for level in self._levels[self._lowest :]:
            yield from level

    def __len__(self) -> int:
        return len(self._loads)

    def update(self, worker: ConcurrentWorker) -> None:
        """Note the load of a worker, which may be a new one."""
        load, before = worker.load, self._loads.get(worker)
        if load == before:
            return
        if before is not None:
            del self._levels[before][worker]
        while len(self._levels) <= load:
            self._levels.append({})
        self._levels[load][worker] = None
        self._loads[worker] = load
        if load < self._lowest:
            self._lowest = load

    def remove(self, worker: ConcurrentWorker) -> None:
        """Forget a worker."""
        del self._levels[self._loads.pop(worker)][worker]


class ConcurrentPool(WorkerPool):
    """
    All workers of a server that speaks MCP 2026-07-28.

    A request goes to the worker of its identity that has the least to do.
    When all have `concurrency` requests another is started, and when the
    limits allow none the request waits in the queue.
    """

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        pool: ProcessPool,
        queue: RequestQueue,
        failed_unclaimed: Callable[[BridgeError], None],
        known: KnownServer,
    ) -> None:
        super().__init__(settings, clock, pool, queue, failed_unclaimed, known)
        # As an ordered set.
        self._workers: dict[ConcurrentWorker, None] = {}
        self._by_load: dict[str, _ByLoad] = {}
        #: From which load on a worker can take no request with such a need.
        self._limits = {"place": settings.concurrency, "alone": 1, "nothing": inf}
        #: Of the requests in the queue, those that need a worker to themselves.
        self._wanting_alone: list[Ticket] = []
        #: Workers by the part of their tasks' ids that names them.
        self._owners: dict[str, ConcurrentWorker] = {}
        #: Whether the server has tasks, as far as it has said.
        self._offers_tasks: bool | None = None
        part = settings.max_process_requests // SERVED_BY_TWO
        #: After how many requests another worker is started beside one.
        self._nearly_worn = settings.max_process_requests - part if part else inf
        #: By identity: a process that starts slowly, perhaps because of credentials of its
        #: client, keeps no other identity waiting.
        self._starting = SingleFlight(settings.max_waiting_requests)
        #: Subscriptions whose process has ended, and the call or the work
        #: that will find them another.
        self._resubscribing: dict[Exchange, IDelayedCall | Deferred[None]] = {}

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def running(self) -> int:
        """How many requests are being worked on, without subscriptions."""
        return sum(worker.running for worker in self._workers)

    def _has_process(self) -> bool:
        return bool(self._workers) or self._starting.is_any_busy

    # Requests.

    def ask_at_once(self, exchange: Exchange, headers: Headers) -> bool:
        """
        Have a free worker work on a request.  Returns False if it has to wait:
        then use `ask`.  Raises a `Refused`.
        """
        request = exchange.request
        if request.method in TASK_METHODS:
            self._ask_owner(exchange)
            return True
        if exchange.is_subscription:
            return False
        worker = self._take_free(exchange, _NOT_WAITING)
        if worker is None:
            return False
        if request.method == "tools/call":
            annotations = worker.tools.known(request.name)
            if annotations is None:
                return False
            check_params(request, annotations, headers)
        self._give(worker, exchange)
        return True

    async def ask(self, exchange: Exchange, headers: Headers) -> None:
        """Have a worker work on a request.  Raises a `Refused` and `OtherEra`."""
        if exchange.is_subscription:
            tasks = task_ids(exchange.request)
            if tasks:
                await self._subscribe_to_tasks(exchange, tasks)
                return
        worker = await self._reserve(exchange)
        try:
            request = exchange.request
            if request.method == "tools/call":
                annotations = await worker.tools.annotations(request.name)
                check_params(request, annotations, headers)
            if worker not in self._workers:
                raise worker.ended_error()
            if not exchange.over:
                self._give(worker, exchange)
        finally:
            self._unreserve(worker)

    def _give(self, worker: ConcurrentWorker, exchange: Exchange) -> None:
        worker.usage.end_idle()
        if not exchange.is_subscription:
            worker.alone = exchange.request.log_level is not None
        try:
            worker.ask(exchange)
        except BaseException:
            self.worker_freed(worker)
            raise
        if worker.load:
            self._update(worker)
        else:
            # It has answered already, before this request was counted.
            self.worker_freed(worker)
        if worker.usage.served >= self._nearly_worn and not (
            self._pool.retired or worker.is_replaced or self._starting.is_busy(worker.identity)
        ):
            self._replace_soon(worker)

    def idle_process(self) -> BackendSession | None:
        """Return a process that nobody uses just now, or None."""
        return next((each.session for each in self._without_load() if not each.in_use), None)

    def has(self, exchange: Exchange) -> bool:
        """Tell whether a request is about a task of one of these workers."""
        request = exchange.request
        if request.method in TASK_METHODS:
            return self._owner(exchange, request.name or "")[0] is not None
        if not exchange.is_subscription or not self._owners:
            return False
        try:
            tasks = task_ids(request)
        except InvalidParams:
            return False
        return any(self._owner(exchange, each)[0] is not None for each in tasks)

    def retire(self) -> None:
        """End each worker as soon as it has nothing to do, and has no task."""
        for worker in list(self._workers):
            worker.usage.retired = True
        for worker in list(self._workers):
            self.worker_freed(worker)
        self.stop()

    def stop(self) -> None:
        """End the subscriptions that have no process; the others end with theirs."""
        resubscribing, self._resubscribing = self._resubscribing, {}
        for exchange, waiting in resubscribing.items():
            guarded(self.log, "a response", self._complete, exchange)
            waiting.cancel()

    # Tasks.

    def _ask_owner(self, exchange: Exchange) -> None:
        """
        Give a request about a task to the worker that has it, however much
        that has to do: no other can answer, and it is little work.
        """
        request = exchange.request
        worker, ident = self._owner(exchange, request.name or "")
        if worker is None:
            if self._offers_tasks is False:
                raise MethodNotFound(f"the server has no tasks, and no {request.method!r}")
            raise unknown_task(request)
        self._hold(worker)
        try:
            if not exchange.over:
                worker.ask_about_task(exchange, ident)
        finally:
            self._unreserve(worker)

    async def _subscribe_to_tasks(self, exchange: Exchange, tasks: list[str]) -> None:
        """
        Subscribe to these tasks with every worker that has one of them, and
        with one worker to all else that the client wants.  A task that does
        not exist is not promised.  Raises a `Refused` and `OtherEra`.
        """
        request = exchange.request
        if not declares_tasks(request):
            raise undeclared()
        owned: dict[ConcurrentWorker, list[str]] = {}
        for each in tasks:
            worker, ident = self._owner(exchange, each)
            if worker is not None:
                owned.setdefault(worker, []).append(ident)
        subscription = TaskSubscription(exchange, self._clock)
        try:
            rest = without_tasks(request)
            if rest is not None:
                await self.ask(subscription.add_rest(rest), lambda _: [])
            if exchange.over:
                return
            for worker, idents in owned.items():
                subscription.add(worker, idents, subscription_to(request, idents))
        except BaseException:
            subscription.cancel(exchange)
            raise
        subscription.begin()

    def _owner(self, exchange: Exchange, task: str) -> tuple[ConcurrentWorker | None, str]:
        """Return the worker that has a task of this identity, and the server's id of the task."""
        owner, ident = owner_of(task)
        worker = self._owners.get(owner)
        if worker is None or worker.identity != exchange.identity:
            return None, ident
        return worker, ident

    # Which worker.

    async def _reserve(self, exchange: Exchange) -> ConcurrentWorker:
        """Return a worker for a request, which counts among its load until `_unreserve`."""
        ticket = Ticket()

        def reserve_free() -> ConcurrentWorker | None:
            worker = self._take_free(exchange, ticket)
            if worker is not None:
                self._use(worker, exchange)
            return worker

        worker = reserve_free()
        if worker is not None:
            return worker
        return await self._acquire(
            reserve_free, partial(self._start, exchange), partial(self._wait, exchange, ticket)
        )

    def _take_free(self, exchange: Exchange, ticket: Ticket) -> ConcurrentWorker | None:
        """
        Return the worker with the least to do that can take this request.

        Nearly always that is the one with the least to do of all.  Where it is
        not, those are ended that are to make room for another.
        """
        need = _need(exchange)
        by_load = self._by_load.get(exchange.identity)
        if by_load is not None:
            first = by_load.first()
            if first.load < self._limits[need] and self._has_capacity(first, need, ticket):
                return first
        found = self._free(exchange, ticket)
        for worker in self._replaceable(exchange):
            worker.session.life.end(worker.usage.worn_by() or MUDDLED)
        return found

    def _free(self, exchange: Exchange, ticket: Ticket) -> ConcurrentWorker | None:
        need = _need(exchange)
        for worker in self._by_load.get(exchange.identity, ()):
            if worker.load >= self._limits[need]:
                # The others have no less to do.
                return None
            if self._has_capacity(worker, need, ticket):
                return worker
        return None

    def _has_capacity(self, worker: ConcurrentWorker, need: _Need, ticket: Ticket) -> bool:
        """Return whether a worker may have this request, where it has not too many."""
        if worker.usage.is_worn(worker.reserved) and self._can_replace(worker):
            return False
        if need == "nothing":
            return True
        if worker.hung:
            return False
        if need == "alone":
            if len(worker.tasks):
                # A log message that names no request may be a task's.
                return self._pool.is_full()
            return not worker.muddled
        # An earlier request may wait until this worker has nothing to do.
        if worker.alone:
            return not worker.load
        wanting = self._wanting_alone
        return not wanting or not worker.load or not ticket.is_behind(wanting)

    def _can_replace(self, worker: ConcurrentWorker) -> bool:
        """
        Return whether a worn worker is to take no more requests.  One that a
        task keeps, for an hour perhaps, goes on if there can be no other.
        """
        return not (len(worker.tasks) and self._pool.is_full())

    def _replaceable(self, exchange: Exchange) -> list[ConcurrentWorker]:
        """Return the workers that are to make room for one that can do what this request needs."""
        return [each for each in self._without_load() if self._is_replaceable(each, exchange)]

    def _without_load(self) -> Iterator[ConcurrentWorker]:
        for by_load in self._by_load.values():
            for worker in by_load:
                if worker.load:
                    break
                yield worker

    def _is_replaceable(self, worker: ConcurrentWorker, exchange: Exchange) -> bool:
        if len(worker.tasks):
            return False
        silent = worker.identity == exchange.identity and worker.muddled
        return worker.usage.is_worn() or (silent and _need(exchange) == "alone")

    async def _wait(self, exchange: Exchange, ticket: Ticket) -> None:
        wants_alone = _need(exchange) == "alone"
        if wants_alone:
            self._wanting_alone.append(ticket)
        try:
            await self._queue.wait(
                ticket,
                lambda: self._may_proceed(exchange, ticket),
                exchange.client,
                _Line(exchange.identity, _need(exchange)),
            )
        finally:
            if wants_alone:
                self._wanting_alone.remove(ticket)
                # It was ahead of other identities' requests, too.
                for identity in {exchange.identity, *self._by_load}:
                    self._wake(identity)

    def _may_proceed(self, exchange: Exchange, ticket: Ticket) -> bool:
        return (
            self._free(exchange, ticket) is not None
            or not self._pool.is_full(Newcomer(exchange.client))
            or bool(self._replaceable(exchange))
        )

    def _use(self, worker: ConcurrentWorker, exchange: Exchange) -> None:
        self._hold(worker)
        if not exchange.is_subscription:
            worker.alone = exchange.request.log_level is not None

    def _hold(self, worker: ConcurrentWorker) -> None:
        worker.usage.end_idle()
        worker.reserved += 1
        self._update(worker)

    def _update(self, worker: ConcurrentWorker) -> None:
        """Note the load of a worker, unless it is gone."""
        if worker in self._workers:
            self._by_load[worker.identity].update(worker)

    def _unreserve(self, worker: ConcurrentWorker) -> None:
        worker.reserved -= 1
        self.worker_freed(worker)

    # The life of a worker.

    async def _start(self, exchange: Exchange) -> ConcurrentWorker | None:
        """Start a worker, for this request and others; None: another request has tried."""
        if not await self._starting.is_first(exchange.identity):
            return None
        taking = self._pool.take(Newcomer(exchange.client), exchange.access.environment)
        starting = self._start_one(taking, exchange.identity, _need(exchange) == "alone")
        # A server may take longer to start than its clients wait.
        return await shielded(starting, self._unreserve, self._failed_unclaimed)

    async def _start_one(
        self, taking: Awaitable[BackendSession], identity: str, alone: bool
    ) -> ConcurrentWorker:
        try:
            session = await taking
            worker = await self.open(session, identity, self._settings.start_timeout)
            self._hold(worker)
            worker.alone = alone
        except BackendFailed as error:
            self._pool.fail(str(error))
            raise
        finally:
            self._starting.done(identity)
        self._wake(worker.identity)
        return worker

    def _replace_soon(self, worn: ConcurrentWorker) -> None:
        """
        Start the worker that takes the place of one which has nearly served
        `max_process_requests`: requests would have to wait for it.  Where the
        limits allow no other process, they do.
        """
        worn.is_replaced = True
        replacing = Deferred.fromCoroutine(self._replace(worn))
        replacing.addErrback(lambda why: self.log.failure("replacing a process failed", why))

    async def _replace(self, worn: ConcurrentWorker) -> None:
        try:
            await self._starting.is_first(worn.identity)
            try:
                session = await self._pool.take_free(worn.session.environment)
                if session is None:
                    return
                worker = await self._begin(session, worn.identity, self._settings.start_timeout)
            finally:
                # The list of tools may take long, and others are not to wait for it.
                self._starting.done(worn.identity)
            if worn.tools.known(None) is not None:
                await self._read_tools(worker)
            self._add(worker)
        except BridgeError as error:
            if isinstance(error, BackendFailed):
                self._pool.fail(str(error))
            self._failed_unclaimed(error)
        self._wake(worn.identity)

    async def _read_tools(self, worker: ConcurrentWorker) -> None:
        """Ask a new process for its tools before it gets any request; end one that hangs."""
        with suppress(Refused):
            await worker.tools.annotations(None)
        if worker.hung:
            worker.session.life.end("it does not respond")
        if not worker.session.receiving:
            raise worker.failed_error()

    async def open(
        self, session: BackendSession, identity: str, patience: float
    ) -> ConcurrentWorker:
        """
        Make a worker of a process that nobody has used.

        Raises a `Refused`, and `OtherEra` for a legacy server; then the
        process has been ended.
        """
        worker = await self._begin(session, identity, patience)
        self._add(worker)
        return worker

    async def _begin(
        self, session: BackendSession, identity: str, patience: float
    ) -> ConcurrentWorker:
        """Do the same, but leave the worker out of the pool: no request gets it."""
        worker = ConcurrentWorker(session, identity, self._settings, self, self._known)
        worker.usage.retired = self._pool.retired
        session.open(
            lambda _: self.worker_lost(worker),
            sink=worker,
            caller_of=worker.caller_of,
            owner=identity,
        )
        await self._introduce(worker, patience)
        self._pool.backoff.succeeded()
        return worker

    def _add(self, worker: ConcurrentWorker) -> None:
        if self._pool.retired and not worker.usage.retired:
            # That has happened while it was introduced.  It ends unless somebody is to have it.
            worker.usage.retired = True
            self._clock.callLater(0, self.worker_freed, worker)
        self._workers[worker] = None
        self._by_load.setdefault(worker.identity, _ByLoad()).update(worker)
        self._owners[worker.tasks.owner] = worker
        self._offers_tasks = worker.offers_tasks
        self._begin_idle(worker)

    def worker_freed(self, worker: ConcurrentWorker) -> None:
        """A worker has less to do: it is for whoever waits, or idle, or has done enough."""
        if worker not in self._workers:
            return
        self._update(worker)
        is_unused = not (worker.load or len(worker.tasks))
        if is_unused and (why := _why_finished(worker)) is not None:
            # Its subscriptions go on with another process.
            worker.session.life.end(why)
        elif is_unused and not worker.in_use:
            worker.alone = False
            self._begin_idle(worker)
        self._wake(worker.identity)
        if is_unused:
            # It may give way to a process of any server.
            self._pool.announce_capacity()

    def _wake(self, identity: str) -> None:
        """Let requests of this identity look again: a worker has less to do, or is gone."""
        if len(self._queue):
            self._queue.wake(*(_Line(identity, each) for each in _NEEDS))

    def _begin_idle(self, worker: ConcurrentWorker) -> None:
        worker.usage.begin_idle(lambda: worker.session.life.end(worker.usage.idle_reason))

    def worker_lost(self, worker: ConcurrentWorker) -> None:
        """The process of a worker takes nothing more: forget it."""
        if worker in self._workers:
            del self._workers[worker]
            by_load = self._by_load[worker.identity]
            by_load.remove(worker)
            if not len(by_load):
                del self._by_load[worker.identity]
            del self._owners[worker.tasks.owner]
            self._wake(worker.identity)

    # Subscriptions whose process has ended.

    def subscription_lost(self, exchange: Exchange) -> None:
        """Subscribe again with another process: the client need not know that one has ended."""
        if self._pool.stopping or self._pool.retired:
            # With other settings the server may be another one: the client is to look again.
            self._complete(exchange)
        if exchange.over:
            return
        exchange.assign(self)
        delay = self._reopening_delay()
        self._resubscribing[exchange] = self._clock.callLater(delay, self._resubscribe, exchange)

    def _resubscribe(self, exchange: Exchange) -> None:
        asking = Deferred.fromCoroutine(self.ask(exchange, lambda _: []))
        self._resubscribing[exchange] = asking
        asking.addBoth(self._resubscribed, exchange)

    def _resubscribed(self, result: object, exchange: Exchange) -> None:
        self._resubscribing.pop(exchange, None)
        if exchange.over or not isinstance(result, Failure):
            return
        if isinstance(result.value, Refused):
            self.subscription_lost(exchange)
        else:
            exchange.fail(BackendFailed("what was listened to is gone"))

    def _complete(self, exchange: Exchange) -> None:
        exchange.deliver([complete_line(exchange.request.id)], True)

    # Worker: what such a subscription's exchange calls.

    def cancel(self, exchange: Exchange) -> None:
        """Do not subscribe again: the client has gone."""
        waiting = self._resubscribing.pop(exchange, None)
        if waiting is not None:
            waiting.cancel()

    def pause(self, exchange: Exchange) -> None:
        """Do nothing: nothing is sent meanwhile."""

    def resume(self, exchange: Exchange) -> None:
        """Do nothing: nothing was paused."""


def _why_finished(worker: ConcurrentWorker) -> str | None:
    """Return why a worker takes no more requests; None if it may."""
    return "it does not respond" if worker.hung else worker.usage.worn_by()


def _need(exchange: Exchange) -> _Need:
    if exchange.is_subscription:
        return "nothing"
    return "place" if exchange.request.log_level is None else "alone"
