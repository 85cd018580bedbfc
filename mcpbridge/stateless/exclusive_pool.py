"""
Which process of an older server a request of MCP 2026-07-28 is lent.

A process serves one identity, with one set of declared capabilities, and one
request at a time; so what it asks can only be asked of the caller whose
request runs.  What it says too late could still reach the caller after that;
so unless `reuse` says otherwise it serves one connection, and ends with it.
Knows processes and who waits; must not know messages.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import RELISTEN_SECONDS
from mcpbridge.errors import BackendFailed, BridgeError, Refused, ServerBusy, TooManySessions
from mcpbridge.jsonrpc.members import result_line
from mcpbridge.mcp.header_validation import Headers, check_params
from mcpbridge.mcp.modern_request import INPUT_REQUIRED_METHODS, ModernRequest
from mcpbridge.mcp.request_state import presented
from mcpbridge.mcp.server_card import KnownServer
from mcpbridge.mcp.subscriptions import Change, Filter, acknowledge, read_filter
from mcpbridge.processes.abandoned import Newcomer
from mcpbridge.processes.address_shares import Claim, Hold
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.era import OtherEra
from mcpbridge.processes.first_start import FirstStart
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.exchange import ENOUGH, UNUSED, Exchange, backend_ended
from mcpbridge.stateless.exclusive_group import (
    DiscoverResults,
    ExclusiveGroup,
    GroupKey,
    GroupSubscriber,
)
from mcpbridge.stateless.exclusive_worker import ExclusiveWorker
from mcpbridge.stateless.request_queue import RequestQueue, Ticket, outlived
from mcpbridge.stateless.suspended_calls import SuspendedCalls
from mcpbridge.translation.handshake import HandshakeRefused


class ExclusivePool:
    """
    All processes of an older server that are lent to stateless clients.

    `untold` is called with why there is none, where nobody waits for it any more.
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
        self._untold = untold
        self._parking = SuspendedCalls(settings, clock)
        self._groups: dict[GroupKey, ExclusiveGroup] = {}
        self._group_of: dict[ExclusiveWorker, ExclusiveGroup] = {}
        #: What kind each is of while it has served nobody.
        self._untouched: dict[ExclusiveWorker, GroupKey] = {}
        self._discovered = DiscoverResults()
        #: For whom processes are being opened; some of them may have left.
        self._opening: set[Exchange] = set()
        self._first = FirstStart(pool.backoff, clock, settings.max_waiting_requests)
        #: Free processes that may be ended to make room, longest free first.
        self._resting: dict[ExclusiveWorker, None] = {}
        #: The free process of each connection, which has at most one.
        self._kept: dict[object, ExclusiveWorker] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    async def ask(self, exchange: Exchange, headers: Headers) -> None:
        """Put a request to a process.  Raises `Refused` and `OtherEra`."""
        request = exchange.request
        kind = GroupKey(exchange.identity, request.capabilities, self._scope(exchange))
        if request.method in INPUT_REQUIRED_METHODS and (state := presented(request)) is not None:
            process = self._parking.find(exchange, state)
            if not exchange.over:
                process.counts.take(exchange.claim)
                process.go_on(exchange)
                self._went_on(process, kind)
            return
        if request.method == "server/discover":
            discovered = self._discovered.find(kind, request.client_info)
            if discovered is not None:
                self._discover(exchange, discovered)
                return
        listens = read_filter(request.params.get("notifications")) if exchange.listens else None
        process = await self._lease(kind, exchange)
        try:
            if listens is not None:
                self._listen(exchange, listens, process)
            elif request.method == "server/discover":
                self._discover(exchange, process.conversation.discover_result())
            else:
                if request.method == "tools/call":
                    annotations = await process.tools.annotations(request.name)
                    check_params(request, annotations, headers)
                if process not in self._group_of:
                    raise backend_ended(process.session, self._settings)
                if not exchange.over:
                    process.upkeep.touched = True
                    process.ask(exchange)
        finally:
            if process.exchange is None and not process.conversation.running:
                process.released()

    def awaits(self, exchange: Exchange) -> bool:
        """Whether a process is parked for this retry, whatever else is known of the server."""
        return self._parking.awaits(exchange)

    def unused(self) -> BackendSession | None:
        """A process that nobody uses just now."""
        for process in self._resting:
            if not self._group_of[process].needs(process):
                return process.session
        return None

    def stop(self) -> None:
        """Who listens is told that this is the end."""
        for group in list(self._groups.values()):
            group.end_listens()

    def _discover(self, exchange: Exchange, result: bytes) -> None:
        exchange.deliver([result_line(exchange.request.id, msgspec.Raw(result))], True)

    def connection_lost(self, connection: ClientConnection) -> None:
        """End the process that was kept for it; or give it to others, if it has served nobody."""
        process = self._kept.get(connection)
        if process is not None and not self._group_of[process].listens:
            self._not_free(process)
            process.counts.again()
            self.returned(process)

    # Lending.

    def _scope(self, exchange: Exchange) -> object:
        """What a request must have in common with the next one of the same process."""
        if self._settings.reuse == "identity":
            return None
        if self._settings.reuse == "connection" and exchange.connection is not None:
            return exchange.connection
        return object()

    async def _lease(self, kind: GroupKey, exchange: Exchange) -> ExclusiveWorker:
        request, claim, newcomer = exchange.request, exchange.claim, Newcomer(exchange.client)
        ticket = Ticket()
        while True:
            process = self._free(kind, request)
            if process is not None:
                process.counts.take(claim)
                return process
            if await self._first.wait(self._opens_for_nobody):
                # It may be the one that has been waited for.
                continue
            other = self._kept.get(kind.scope)
            if other is not None and not self._group_of[other].needs(other):
                # A connection that declares other capabilities each time is
                # not to collect a process for each.
                other.session.life.end("its connection has declared other capabilities")
            try:
                # A server may take longer to start than its clients wait.
                opening = self._open_for(exchange, kind, claim, newcomer)
                return await outlived(opening, self.returned, self._untold)
            except TooManySessions as error:
                if not (self._group_of or self._pool.has_leaving()):
                    raise ServerBusy.because(error) from None
                await self._queue.wait(ticket, lambda: self._may_go(kind, request, newcomer))

    async def _open_for(
        self, exchange: Exchange, kind: GroupKey, claim: Claim | None, newcomer: Newcomer
    ) -> ExclusiveWorker:
        self._opening.add(exchange)
        try:
            return await self._open(kind, exchange.request, claim, newcomer)
        finally:
            self._opening.remove(exchange)
            self._first.over()

    def _opens_for_nobody(self) -> bool:
        """Whether a process is being opened whose client has left."""
        return not self._pool.stopping and any(each.over for each in self._opening)

    def _may_go(self, kind: GroupKey, request: ModernRequest, newcomer: Newcomer) -> bool:
        groups = map(self._groups.get, (kind, kind.untouched(request.client_info)))
        return any(group.free for group in groups if group) or not self._pool.is_full(newcomer)

    def _free(self, kind: GroupKey, request: ModernRequest) -> ExclusiveWorker | None:
        process = self._pop_free(kind)
        if process is None and kind.scope is not None:
            process = self._pop_free(kind.untouched(request.client_info))
            if process is not None:
                self._move(process, kind, request)
        return process

    def _pop_free(self, kind: GroupKey) -> ExclusiveWorker | None:
        group = self._groups.get(kind)
        while group is not None and group.free:
            process = group.free[-1]
            self._not_free(process)
            if not process.upkeep.is_worn():
                process.upkeep.wake()
                return process
            process.session.life.end(ENOUGH)
        return None

    def _not_free(self, process: ExclusiveWorker) -> None:
        group = self._group_of[process]
        if process in group.free:
            group.free.remove(process)
        self._resting.pop(process, None)
        if self._kept.get(group.kind.scope) is process:
            del self._kept[group.kind.scope]

    def _went_on(self, process: ExclusiveWorker, kind: GroupKey) -> None:
        """
        A retry may come on any connection.  Where it is not the one that the
        call was made on, two have spoken to the process, and it serves
        neither of them again.
        """
        group = self._group_of.get(process)
        if group is not None and group.kind.scope is not kind.scope:
            self._move(process, kind._replace(scope=object()))

    def _move(
        self, process: ExclusiveWorker, kind: GroupKey, request: ModernRequest | None = None
    ) -> None:
        self._leave(process)
        group = self._enter(process, kind)
        if request is not None:
            group.opened(process, request)

    async def _open(
        self,
        kind: GroupKey,
        request: ModernRequest,
        claim: Claim | None = None,
        newcomer: Newcomer | None = None,
    ) -> ExclusiveWorker:
        # It counts also when its client has left: it is started for that one.
        counts = Hold(claim)
        try:
            process = self._made(await self._pool.take(newcomer), kind, request, counts)
        except BaseException as error:
            counts.release()
            if isinstance(error, BackendFailed):
                self._pool.fail(str(error))
            raise
        try:
            await self._shake_hands(process)
        except BackendFailed as error:
            # It was told who calls and what that client can do.
            self._pool.check.doubt(str(error))
            raise
        self._pool.backoff.succeeded()
        self._discovered.add(kind, request.client_info, process.conversation.discover_result())
        group = self._group_of.get(process)
        if group is not None:
            group.opened(process, request)
        return process

    def _made(
        self, session: BackendSession, kind: GroupKey, request: ModernRequest, counts: Hold
    ) -> ExclusiveWorker:
        process = ExclusiveWorker(session, request, self._settings, self, counts)
        session.gone().addCallback(lambda _: counts.release())
        self._untouched[process] = kind.untouched(request.client_info)
        self._enter(process, kind)
        session.open(lambda _: process.leave(), sink=process, caller_of=process.caller_of)
        return process

    def _enter(self, process: ExclusiveWorker, kind: GroupKey) -> ExclusiveGroup:
        """
        Only a group that has something in it is kept, so that there is never
        a second one of a kind.
        """
        group = self._groups.setdefault(kind, ExclusiveGroup(kind))
        group.processes.append(process)
        self._group_of[process] = group
        if isinstance(kind.scope, ClientConnection):
            kind.scope.observe(self)
        return group

    def _leave(self, process: ExclusiveWorker) -> None:
        self._not_free(process)
        group = self._group_of.pop(process)
        group.processes.remove(process)
        if group.unheard:
            group.missed = True
            self._listen_again(group)
        self._forget_empty(group)

    async def _shake_hands(self, process: ExclusiveWorker) -> None:
        life = process.session.life
        try:
            await process.open()
        except HandshakeRefused as error:
            life.end(f"it is of no use: {error}")
            if error.modern_only:
                raise OtherEra(str(error)) from None
            raise BackendFailed(str(error)) from None
        except BridgeError as error:
            life.end(f"it is of no use: {error}")
            raise
        except BaseException:
            life.end("it could not be asked")
            raise
        told = process.conversation.initialized
        if told is not None:
            self._known.initialized(told.protocol_version, told.server_info)

    def returned(self, process: ExclusiveWorker) -> None:
        """It works for nobody: it is for whoever waits, or rests, or has done enough."""
        group = self._group_of.get(process)
        if group is None or process in group.free:
            return
        upkeep = process.upkeep
        upkeep.touched = upkeep.touched or bool(group.listens)
        if not process.conversation.clean:
            process.session.life.end("its last request may still run")
        elif upkeep.is_worn():
            process.session.life.end(ENOUGH)
        elif group.listens or group.may_keep:
            self._keep(process, group)
        elif upkeep.touched:
            process.session.life.end(group.why_over)
        else:
            # Nobody has used it: it has been told who wanted it, and that is all.
            self._move(process, self._untouched[process])
            self._keep(process, self._group_of[process])

    def _keep(self, process: ExclusiveWorker, group: ExclusiveGroup) -> None:
        """It is free, for requests of its kind."""
        group.free.append(process)
        process.counts.release()
        scope = group.kind.scope
        if isinstance(scope, ClientConnection):
            before = self._kept.get(scope)
            self._kept[scope] = process
            if before is not None and not self._group_of[before].needs(before):
                before.session.life.end("its connection has another one")
        if scope is None or not group.listens:
            self._resting[process] = None
        process.upkeep.rest(lambda: self._rested(process))
        self._pool.tell_room()

    def _rested(self, process: ExclusiveWorker) -> None:
        group = self._group_of.get(process)
        if group is None or process not in group.free:
            return
        if group.needs(process):
            process.upkeep.rest(lambda: self._rested(process))
        else:
            process.session.life.end(UNUSED)

    def lost(self, process: ExclusiveWorker) -> None:
        """It takes nothing more."""
        if process in self._group_of:
            self.unparked(process)
            del self._untouched[process]
            self._leave(process)
            self._queue.wake()

    def _forget_empty(self, group: ExclusiveGroup) -> None:
        if group.is_empty and self._groups.get(group.kind) is group:
            del self._groups[group.kind]

    # Waiting for the client.

    def parked(self, process: ExclusiveWorker, request: ModernRequest) -> str:
        """Its request waits for the client; returns the state that brings the client back."""
        return self._parking.enter(process, self._group_of[process].kind.identity, request)

    def unparked(self, process: ExclusiveWorker) -> None:
        """It does not wait any more, if it did: no state brings a client back to it."""
        self._parking.leave(process)

    # Listening.

    def _listen(self, exchange: Exchange, asked: Filter, process: ExclusiveWorker) -> None:
        group = self._group_of.get(process)
        initialized = process.conversation.initialized
        if group is None or initialized is None:
            raise backend_ended(process.session, self._settings)
        if not exchange.over:
            exchange.assign(GroupSubscriber(group, self._unheard))
            group.listen(exchange, acknowledge(asked, initialized.capabilities))

    def _unheard(self, group: ExclusiveGroup) -> None:
        """Somebody listens no more: a process may not be needed for that now."""
        if not (group.listens or group.may_keep):
            for process in list(group.free):
                process.session.life.end(group.why_over)
        self._forget_empty(group)
        self._pool.tell_room()

    def changed(self, process: ExclusiveWorker, change: Change) -> None:
        """Tell those who listen."""
        group = self._group_of.get(process)
        if group is not None:
            group.tell(change)

    def _listen_again(self, group: ExclusiveGroup) -> None:
        """Nothing is left to listen to: have a process again."""
        if self._pool.stopping or group.again is not None or group.example is None:
            return
        delay = max(RELISTEN_SECONDS, self._pool.backoff.wait(self._clock.seconds()))
        group.again = self._clock.callLater(delay, self._open_again, group, group.example)

    def _open_again(self, group: ExclusiveGroup, example: ModernRequest) -> None:
        group.again = None

        def failed(failure: Failure) -> None:
            if not isinstance(failure.value, Refused):
                # The server is another one: who listens anew gets on with that.
                if failure.check(OtherEra) is None:
                    self.log.failure("listening anew failed", failure)
                group.end_listens()
            elif group.unheard:
                self._listen_again(group)
            self._forget_empty(group)

        if group.unheard:
            opening = Deferred.fromCoroutine(self._open(group.kind, example))
            opening.addCallbacks(self.returned, failed)
