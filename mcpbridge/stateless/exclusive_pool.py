"""
Which process of a legacy server works on a request of MCP 2026-07-28.

A worker serves one identity, with one set of declared capabilities, and one
request at a time; so whatever the server asks can only be for the caller
whose request runs.  What it says too late could still reach the next caller,
so unless `reuse` says otherwise a worker serves one connection, and ends with
it.  Knows workers and who waits; must not know messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import BackendFailed, BridgeError, Refused
from mcpbridge.jsonrpc.members import result_line
from mcpbridge.mcp.header_validation import Annotations, Headers, check_params
from mcpbridge.mcp.modern_request import INPUT_REQUIRED_METHODS, ModernRequest
from mcpbridge.mcp.request_state import presented
from mcpbridge.mcp.server_card import KnownServer
from mcpbridge.mcp.subscriptions import Change, Filter, acknowledge, read_filter
from mcpbridge.processes.abandoned_sessions import Newcomer
from mcpbridge.processes.address_shares import Claim, Hold
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.era import OtherEra
from mcpbridge.processes.pool import RETIRED, ProcessPool
from mcpbridge.processes.waiters import FirstStart
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.stateless.exclusive_group import (
    DiscoverResults,
    ExclusiveGroup,
    GroupKey,
    GroupSubscriber,
)
from mcpbridge.stateless.exclusive_worker import ExclusiveWorker
from mcpbridge.stateless.request_queue import RequestQueue, Ticket, shielded
from mcpbridge.stateless.suspended_calls import SuspendedCalls
from mcpbridge.stateless.worker_pool import WorkerPool


class ExclusivePool(WorkerPool):
    """All workers of a legacy server, in groups of those that may serve the same requests."""

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
        self._suspended = SuspendedCalls(settings, clock)
        self._groups: dict[GroupKey, ExclusiveGroup] = {}
        self._group_of: dict[ExclusiveWorker, ExclusiveGroup] = {}
        #: The key of each worker's group while it has served nobody.
        self._untouched: dict[ExclusiveWorker, GroupKey] = {}
        self._discovered = DiscoverResults()
        #: For whom workers are being opened; some of them may have left.
        self._opening: set[Exchange] = set()
        self._first = FirstStart(pool.backoff, clock, settings.max_waiting_requests)
        #: Free workers that may be ended to make room, longest free first.
        self._idle: dict[ExclusiveWorker, None] = {}
        #: The free worker of each connection, which has at most one.
        self._free_of: dict[object, ExclusiveWorker] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    @property
    def running(self) -> int:
        """How many requests are being worked on, without subscriptions."""
        return sum(worker.exchange is not None for worker in self._group_of)

    # Requests.

    def ask_at_once(self, exchange: Exchange, headers: Headers) -> bool:
        """
        Have a free worker work on a request, or answer it.  Returns False if
        it has to wait: then use `ask`.  Raises a `Refused`.
        """
        request = exchange.request
        key = self._key(exchange)
        if request.method in INPUT_REQUIRED_METHODS and (state := presented(request)) is not None:
            self._resume(exchange, state, key)
            return True
        if request.method == "server/discover":
            discovered = self._discovered.find(key, request.client_info)
            if discovered is not None:
                self._answer_discover(exchange, discovered)
            return discovered is not None
        if exchange.is_subscription:
            return False
        worker = self._take_free(key, request, exchange.claim)
        if worker is None:
            return False
        try:
            annotations: Annotations | None = ()
            if request.method == "tools/call":
                annotations = worker.tools.known(request.name)
            if annotations is not None:
                self._give(worker, exchange, annotations, headers)
        finally:
            if worker.is_unused:
                worker.release()
        return annotations is not None

    async def ask(self, exchange: Exchange, headers: Headers) -> None:
        """Have a worker work on a request.  Raises a `Refused` and `OtherEra`."""
        request = exchange.request
        promised = None
        if exchange.is_subscription:
            promised = read_filter(request.params.get("notifications"))
        worker = await self._worker_for(self._key(exchange), exchange)
        try:
            if promised is not None:
                self._subscribe(exchange, promised, worker)
            elif request.method == "server/discover":
                self._answer_discover(exchange, worker.translator.discover_result())
            else:
                annotations: Annotations = ()
                if request.method == "tools/call":
                    annotations = await worker.tools.annotations(request.name)
                self._give(worker, exchange, annotations, headers)
        finally:
            if worker.is_unused:
                worker.release()

    def _give(
        self,
        worker: ExclusiveWorker,
        exchange: Exchange,
        annotations: Annotations,
        headers: Headers,
    ) -> None:
        """Have a worker that was taken work on a request.  Raises a `Refused`."""
        check_params(exchange.request, annotations, headers)
        if worker not in self._group_of:
            raise worker.ended_error()
        if not exchange.over:
            worker.usage.touched = True
            worker.ask(exchange)

    def _key(self, exchange: Exchange) -> GroupKey:
        return GroupKey(exchange.identity, exchange.request.capabilities, self._scope(exchange))

    def has_suspended(self, exchange: Exchange) -> bool:
        """Return whether a worker waits for this retry, whatever else is known of the server."""
        return self._suspended.has(exchange)

    def idle_process(self) -> BackendSession | None:
        """Return a process that nobody uses just now, or None."""
        for worker in self._idle:
            if not self._group_of[worker].needs(worker):
                return worker.session
        return None

    def retire(self) -> None:
        """End all subscriptions, and each worker as soon as it works on nothing."""
        self.stop()
        for worker in list(self._group_of):
            worker.usage.retired = True
            if worker in self._group_of[worker].free:
                worker.session.life.end(RETIRED)

    def stop(self) -> None:
        """End all subscriptions."""
        for group in list(self._groups.values()):
            group.end_subscriptions()

    def connection_lost(self, connection: ClientConnection) -> None:
        """End the worker that was kept for it; or give it to others, if it has served nobody."""
        worker = self._free_of.get(connection)
        if worker is not None and not self._group_of[worker].subscribers:
            self._take(worker)
            worker.hold.renew()
            self.worker_free(worker)

    def _answer_discover(self, exchange: Exchange, result: bytes) -> None:
        exchange.deliver([result_line(exchange.request.id, msgspec.Raw(result))], True)

    def _scope(self, exchange: Exchange) -> object:
        """Return what the next request on the same worker must have in common with this one."""
        if self._settings.reuse == "identity":
            return None
        if self._settings.reuse == "connection" and exchange.connection is not None:
            return exchange.connection
        return object()

    # Suspended calls.

    def _resume(self, exchange: Exchange, state: str, key: GroupKey) -> None:
        worker = self._suspended.find(exchange, state)
        if exchange.over:
            return
        worker.hold.take(exchange.claim)
        worker.resume_call(exchange)
        # A retry may come on any connection.  If it is not the one of the
        # call, two have spoken to the process, and it serves neither again.
        group = self._group_of.get(worker)
        if group is not None and group.key.scope is not key.scope:
            self._move(worker, key._replace(scope=object()))

    def worker_suspended(self, worker: ExclusiveWorker, request: ModernRequest) -> str:
        """Keep a worker for the retry of this request; return its `requestState`."""
        return self._suspended.add(worker, self._group_of[worker].key.identity, request)

    def worker_resumed(self, worker: ExclusiveWorker) -> None:
        """A worker waits no more, if it did: its `requestState` is void."""
        self._suspended.remove(worker)

    # Which worker.

    async def _worker_for(self, key: GroupKey, exchange: Exchange) -> ExclusiveWorker:
        # A worker counts against the client that it was made for, also when
        # that has left, and has no claim any more.
        request, claim = exchange.request, exchange.claim
        worker = self._take_free(key, request, claim)
        if worker is not None:
            return worker
        ticket, newcomer = Ticket(), Newcomer(exchange.client)
        return await self._acquire(
            partial(self._take_free, key, request, claim),
            partial(self._start, key, exchange, claim, newcomer),
            lambda: self._queue.wait(
                ticket,
                lambda: self._may_proceed(key, request, newcomer),
                newcomer.address,
                *{key, key.untouched(request.client_info)},
            ),
        )

    def _take_free(
        self, key: GroupKey, request: ModernRequest, claim: Claim | None
    ) -> ExclusiveWorker | None:
        worker = self._pop_free(key)
        if worker is None and key.scope is not None:
            worker = self._pop_free(key.untouched(request.client_info))
            if worker is not None:
                self._move(worker, key, request)
        if worker is not None:
            worker.hold.take(claim)
        return worker

    def _pop_free(self, key: GroupKey) -> ExclusiveWorker | None:
        group = self._groups.get(key)
        while group is not None and group.free:
            worker = next(reversed(group.free))
            self._take(worker)
            worn = worker.usage.worn_by()
            if worn is None:
                worker.usage.end_idle()
                return worker
            worker.session.life.end(worn)
        return None

    def _take(self, worker: ExclusiveWorker) -> None:
        """A worker is not free any more."""
        group = self._group_of[worker]
        group.free.pop(worker, None)
        self._idle.pop(worker, None)
        if self._free_of.get(group.key.scope) is worker:
            del self._free_of[group.key.scope]

    def _may_proceed(self, key: GroupKey, request: ModernRequest, newcomer: Newcomer) -> bool:
        groups = map(self._groups.get, (key, key.untouched(request.client_info)))
        return any(group.free for group in groups if group) or not self._pool.is_full(newcomer)

    async def _start(
        self, key: GroupKey, exchange: Exchange, claim: Claim | None, newcomer: Newcomer
    ) -> ExclusiveWorker | None:
        """Open a worker; None where it is worth looking for a free one again."""
        if await self._first.wait(self._opens_for_nobody):
            # The start that was waited for may have made one that this request can have.
            return None
        other = self._free_of.get(key.scope)
        if other is not None and not self._group_of[other].needs(other):
            # A connection that declares other capabilities each time must not
            # collect a process for each.
            other.session.life.end("its connection now declares different capabilities")
        # A server may take longer to start than its clients wait.
        opening = self._open_for(exchange, key, claim, newcomer)
        return await shielded(opening, self.worker_free, self._failed_unclaimed)

    async def _open_for(
        self, exchange: Exchange, key: GroupKey, claim: Claim | None, newcomer: Newcomer
    ) -> ExclusiveWorker:
        self._opening.add(exchange)
        try:
            return await self._open(
                key, exchange.request, exchange.access.environment, claim, newcomer
            )
        finally:
            self._opening.remove(exchange)
            self._first.over()

    def _opens_for_nobody(self) -> bool:
        """Return whether a worker is being opened whose client has left."""
        return not self._pool.stopping and any(each.over for each in self._opening)

    # The life of a worker.

    async def _open(
        self,
        key: GroupKey,
        request: ModernRequest,
        environment: Mapping[str, str],
        claim: Claim | None = None,
        newcomer: Newcomer | None = None,
    ) -> ExclusiveWorker:
        hold = Hold(claim)
        try:
            session = await self._pool.take(newcomer, environment)
            worker = self._adopt(session, key, request, hold)
        except BaseException as error:
            hold.release()
            if isinstance(error, BackendFailed):
                self._pool.fail(str(error))
            raise
        try:
            await self._introduce(worker, self._settings.start_timeout)
        except BackendFailed as error:
            # That may be the fault of the client: the server was told who it
            # is and what it can do.
            self._pool.note_failed_start(session, str(error))
            self._pool.check.doubt(str(error))
            raise
        told = worker.translator.initialized
        if told is not None:
            self._known.initialized(told.protocol_version, told.server_info)
        self._pool.backoff.succeeded()
        self._discovered.add(key, request.client_info, worker.translator.discover_result())
        group = self._group_of.get(worker)
        if group is not None:
            group.opened(worker, request)
        return worker

    def _adopt(
        self, session: BackendSession, key: GroupKey, request: ModernRequest, hold: Hold
    ) -> ExclusiveWorker:
        worker = ExclusiveWorker(session, request, self._settings, self, hold)
        worker.usage.retired = self._pool.retired
        session.gone().addCallback(lambda _: hold.release())
        self._untouched[worker] = key.untouched(request.client_info)
        self._enter(worker, key)
        session.open(
            lambda _: worker.leave(),
            sink=worker,
            caller_of=worker.caller_of,
            owner=key.identity,
        )
        return worker

    def _enter(self, worker: ExclusiveWorker, key: GroupKey) -> ExclusiveGroup:
        """
        Put a worker into its group.  A group is kept only while it has
        something in it, so that there are never two with one key.
        """
        group = self._groups.setdefault(key, ExclusiveGroup(key, self._clock))
        group.workers.append(worker)
        self._group_of[worker] = group
        if isinstance(key.scope, ClientConnection):
            key.scope.observe(self)
        return group

    def _leave(self, worker: ExclusiveWorker) -> None:
        self._take(worker)
        group = self._group_of.pop(worker)
        group.workers.remove(worker)
        if group.lacks_worker:
            group.missed = True
            self._reopen_later(group)
        self._forget_if_empty(group)

    def _move(
        self, worker: ExclusiveWorker, key: GroupKey, request: ModernRequest | None = None
    ) -> None:
        self._leave(worker)
        group = self._enter(worker, key)
        if request is not None:
            group.opened(worker, request)

    def worker_free(self, worker: ExclusiveWorker) -> None:
        """A worker works on nothing: keep it for other requests, or end it."""
        group = self._group_of.get(worker)
        if group is None or worker in group.free:
            return
        usage = worker.usage
        usage.touched = usage.touched or bool(group.subscribers)
        if not worker.translator.is_idle:
            worker.session.life.end("its last request may still be running")
        elif (worn := usage.worn_by()) is not None:
            worker.session.life.end(worn)
        elif group.subscribers or group.is_reusable:
            self._keep(worker, group)
        elif usage.touched:
            worker.session.life.end(group.end_reason)
        else:
            # It has been told which client wanted it, and that is all.
            self._move(worker, self._untouched[worker])
            self._keep(worker, self._group_of[worker])

    def _keep(self, worker: ExclusiveWorker, group: ExclusiveGroup) -> None:
        """Keep a free worker for requests with the key of its group."""
        group.free[worker] = None
        worker.hold.release()
        scope = group.key.scope
        if isinstance(scope, ClientConnection):
            before = self._free_of.get(scope)
            self._free_of[scope] = worker
            if before is not None and not self._group_of[before].needs(before):
                before.session.life.end("its connection already has an idle process")
        if scope is None or not group.subscribers:
            self._idle[worker] = None
        worker.usage.begin_idle(lambda: self._expired(worker))
        # Those who can use it come before those who need its permit.
        self._queue.wake(group.key)
        self._pool.announce_capacity()

    def _expired(self, worker: ExclusiveWorker) -> None:
        """A worker has been free for `idle_timeout`."""
        group = self._group_of.get(worker)
        if group is None or worker not in group.free:
            return
        if group.needs(worker):
            worker.usage.begin_idle(lambda: self._expired(worker))
        else:
            worker.session.life.end(worker.usage.idle_reason)

    def worker_lost(self, worker: ExclusiveWorker) -> None:
        """The process of a worker takes nothing more: forget it."""
        if worker in self._group_of:
            self.worker_resumed(worker)
            del self._untouched[worker]
            self._leave(worker)
            self._queue.wake()

    def _forget_if_empty(self, group: ExclusiveGroup) -> None:
        if group.is_empty and self._groups.get(group.key) is group:
            del self._groups[group.key]

    # Subscriptions.

    def _subscribe(self, exchange: Exchange, asked: Filter, worker: ExclusiveWorker) -> None:
        group = self._group_of.get(worker)
        initialized = worker.translator.initialized
        if group is None or initialized is None:
            raise worker.ended_error()
        if not exchange.over:
            exchange.assign(GroupSubscriber(group, self._subscriber_left))
            group.subscribe(exchange, acknowledge(asked, initialized.capabilities))

    def _subscriber_left(self, group: ExclusiveGroup) -> None:
        """End the free workers that were kept for it alone."""
        if not (group.subscribers or group.is_reusable):
            for worker in list(group.free):
                worker.session.life.end(group.end_reason)
        self._forget_if_empty(group)
        self._pool.announce_capacity()

    def worker_notified(self, worker: ExclusiveWorker, change: Change) -> None:
        """Pass a notification of the server to the subscribers of its group."""
        group = self._group_of.get(worker)
        if group is not None:
            group.notify(change)

    def _reopen_later(self, group: ExclusiveGroup) -> None:
        """A group has subscribers and no worker: open one after a while."""
        if self._pool.retired:
            # With other settings the server may be another one: the clients are to look again.
            group.end_subscriptions()
            return
        if self._pool.stopping or group.reopening.is_running or group.example is None:
            return
        reopen = partial(self._reopen, group, group.example)
        group.reopening.start(self._reopening_delay(), reopen)

    def _reopen(self, group: ExclusiveGroup, example: ModernRequest) -> None:
        def failed(failure: Failure) -> None:
            if not isinstance(failure.value, Refused):
                # If the server has changed its era, a new subscription gets on with that.
                if failure.check(OtherEra) is None:
                    self.log.failure("opening a process for subscribers failed", failure)
                group.end_subscriptions()
            elif group.lacks_worker:
                self._reopen_later(group)
            self._forget_if_empty(group)

        if group.lacks_worker:
            opening = Deferred.fromCoroutine(self._open(group.key, example, group.environment))
            opening.addCallbacks(self.worker_free, failed)
