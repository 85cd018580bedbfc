"""
Which process of an older server a request of MCP 2026-07-28 is lent.

A process serves one identity, with one set of declared capabilities, and one
request at a time; so what it asks can only be asked of the caller whose
request runs.  Knows processes and who waits; must not know messages.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config import RELISTEN_SECONDS, ServerSettings
from mcpbridge.errors import (
    BackendFailed,
    BridgeError,
    Refused,
    ServerBusy,
    TooManySessions,
)
from mcpbridge.protocol.handshake import HandshakeRefused
from mcpbridge.protocol.headers import Headers, check_params
from mcpbridge.protocol.listens import Change, Filter, acknowledge, read_filter
from mcpbridge.protocol.modern import MAY_ASK, MODERN, ModernRequest
from mcpbridge.protocol.requeststate import presented
from mcpbridge.protocol.rewriting import result_line
from mcpbridge.session.exchange import ENOUGH, UNUSED, Exchange, backend_ended
from mcpbridge.session.group import Group, Kind, Listening
from mcpbridge.session.leased import LeasedProcess
from mcpbridge.session.line import Place, WaitingLine, outlived
from mcpbridge.session.parking import Parking
from mcpbridge.session.pool import Pool
from mcpbridge.session.session import Session
from mcpbridge.session.shared import OtherEra

#: Of how many sets of capabilities it is remembered what the server answers to `server/discover`.
DISCOVERED_KEPT = 64


class Leases:
    """
    All processes of an older server that are lent to stateless clients.

    `untold` is called with why there is none, where nobody waits for it any more.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        pool: Pool,
        line: WaitingLine,
        untold: Callable[[BridgeError], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pool = pool
        self._line = line
        self._untold = untold
        self._parking = Parking(settings, clock)
        self._groups: dict[Kind, Group] = {}
        self._group_of: dict[LeasedProcess, Group] = {}
        self._discovered: dict[Kind, bytes] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    async def ask(self, exchange: Exchange, headers: Headers) -> None:
        """Put a request to a process.  Raises `Refused` and `OtherEra`."""
        request = exchange.request
        kind = _kind(exchange)
        if request.method in MAY_ASK and (state := presented(request)) is not None:
            process = self._parking.find(exchange, state)
            if not exchange.over:
                process.go_on(exchange)
            return
        if request.method == "server/discover" and kind in self._discovered:
            self._discover(exchange, self._discovered[kind])
            return
        listens = read_filter(request.params.get("notifications")) if exchange.listens else None
        process = await self._lease(kind, request)
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
                    process.ask(exchange)
        finally:
            if process.exchange is None and not process.conversation.running:
                process.released()

    def awaits(self, exchange: Exchange) -> bool:
        """Whether a process is parked for this retry, whatever else is known of the server."""
        return self._parking.awaits(exchange)

    def unused(self) -> Session | None:
        """A process that nobody uses just now."""
        for group in self._groups.values():
            if group.free and not group.needs(group.free[0]):
                return group.free[0].session
        return None

    def stop(self) -> None:
        """Who listens is told that this is the end."""
        for group in list(self._groups.values()):
            group.end_listens()

    def _discover(self, exchange: Exchange, result: bytes) -> None:
        exchange.deliver([result_line(exchange.request.id, msgspec.Raw(result))], True)

    # Lending.

    async def _lease(self, kind: Kind, request: ModernRequest) -> LeasedProcess:
        place = Place()
        while True:
            process = self._free(kind)
            if process is not None:
                return process
            try:
                # A server may take longer to start than its clients wait.
                return await outlived(self._open(kind, request), self.returned, self._untold)
            except TooManySessions as error:
                if not (self._group_of or self._pool.has_leaving()):
                    raise ServerBusy(str(error)) from None
                await self._line.wait(place, lambda: self._may_go(kind))

    def _may_go(self, kind: Kind) -> bool:
        group = self._groups.get(kind)
        return bool(group is not None and group.free) or not self._pool.is_full()

    def _free(self, kind: Kind) -> LeasedProcess | None:
        group = self._groups.get(kind)
        while group is not None and group.free:
            process = group.free.pop()
            if not process.upkeep.is_worn():
                process.upkeep.wake()
                return process
            process.session.life.end(ENOUGH)
        return None

    async def _open(self, kind: Kind, request: ModernRequest) -> LeasedProcess:
        try:
            process = self._made(await self._pool.take(), kind, request)
            await self._shake_hands(process)
        except BackendFailed as error:
            if not self._pool.stopping:
                self._pool.fail(str(error))
            raise
        self._pool.readiness.succeeded()
        if len(self._discovered) >= DISCOVERED_KEPT:
            self._discovered.pop(next(iter(self._discovered)))
        self._discovered[kind] = process.conversation.discover_result()
        group = self._group_of.get(process)
        if group is not None:
            group.opened(process, request)
        return process

    def _made(self, session: Session, kind: Kind, request: ModernRequest) -> LeasedProcess:
        """
        Only a group that has something in it is kept, so that there is never
        a second one of a kind.
        """
        process = LeasedProcess(session, request, self._settings, self)
        session.forget = lambda _: process.leave()
        session.stream = process
        group = self._groups.setdefault(kind, Group(kind))
        group.processes.append(process)
        self._group_of[process] = group
        session.opened()
        return process

    async def _shake_hands(self, process: LeasedProcess) -> None:
        life = process.session.life
        try:
            await process.open()
        except HandshakeRefused as error:
            life.end(f"it is of no use: {error}")
            if set(error.supported) & set(MODERN):
                raise OtherEra(str(error)) from None
            raise BackendFailed(str(error)) from None
        except BridgeError as error:
            life.end(f"it is of no use: {error}")
            raise
        except BaseException:
            life.end("it could not be asked")
            raise

    def returned(self, process: LeasedProcess) -> None:
        """It works for nobody: it is for whoever waits, or rests, or has done enough."""
        group = self._group_of.get(process)
        if group is None or process in group.free:
            return
        used = self._settings.reuse == "never" and process.upkeep.served > 0
        if not process.conversation.clean:
            process.session.life.end("its last request may still run")
        elif used or process.upkeep.is_worn():
            process.session.life.end(ENOUGH)
        else:
            group.free.append(process)
            process.upkeep.rest(lambda: self._rested(process))
            self._pool.tell_room()

    def _rested(self, process: LeasedProcess) -> None:
        group = self._group_of.get(process)
        if group is None or process not in group.free:
            return
        if group.needs(process):
            process.upkeep.rest(lambda: self._rested(process))
        else:
            process.session.life.end(UNUSED)

    def lost(self, process: LeasedProcess) -> None:
        """It takes nothing more."""
        group = self._group_of.pop(process, None)
        if group is None:
            return
        group.processes.remove(process)
        if process in group.free:
            group.free.remove(process)
        self.unparked(process)
        if group.unheard:
            group.missed = True
            self._listen_again(group)
        self._forget_empty(group)
        self._line.wake()

    def _forget_empty(self, group: Group) -> None:
        if group.is_empty and self._groups.get(group.kind) is group:
            del self._groups[group.kind]

    # Waiting for the client.

    def parked(self, process: LeasedProcess, request: ModernRequest) -> str:
        """Its request waits for the client; returns the state that brings the client back."""
        return self._parking.enter(process, self._group_of[process].kind.identity, request)

    def unparked(self, process: LeasedProcess) -> None:
        """It does not wait any more, if it did: no state brings a client back to it."""
        self._parking.leave(process)

    # Listening.

    def _listen(self, exchange: Exchange, asked: Filter, process: LeasedProcess) -> None:
        group = self._group_of.get(process)
        initialized = process.conversation.initialized
        if group is None or initialized is None:
            raise backend_ended(process.session, self._settings)
        if not exchange.over:
            exchange.worker = Listening(group, self._unheard)
            group.listen(exchange, acknowledge(asked, initialized.capabilities))

    def _unheard(self, group: Group) -> None:
        """Somebody listens no more: a process may not be needed for that now."""
        self._forget_empty(group)
        self._pool.tell_room()

    def changed(self, process: LeasedProcess, change: Change) -> None:
        """Tell those who listen."""
        group = self._group_of.get(process)
        if group is not None:
            group.tell(change)

    def _listen_again(self, group: Group) -> None:
        """Nothing is left to listen to: have a process again."""
        if self._pool.stopping or group.again is not None or group.example is None:
            return
        delay = max(RELISTEN_SECONDS, self._pool.readiness.wait(self._clock.seconds()))
        group.again = self._clock.callLater(delay, self._open_again, group, group.example)

    def _open_again(self, group: Group, example: ModernRequest) -> None:
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


def _kind(exchange: Exchange) -> Kind:
    return Kind(exchange.identity, exchange.request.capabilities)
