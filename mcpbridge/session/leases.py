"""
Which process of an older server a request of MCP 2026-07-28 is lent.

A process serves one identity, with one set of declared capabilities, and one
request at a time; so what it asks can only be asked of the caller whose
request runs.  Knows processes and who waits; must not know messages.
"""

from __future__ import annotations

from collections import Counter
from secrets import token_bytes, token_urlsafe
from typing import NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mcpbridge.config import RELISTEN_SECONDS, ServerSettings
from mcpbridge.errors import (
    BackendFailed,
    BridgeError,
    InvalidRequestState,
    ServerBusy,
    TooManySessions,
)
from mcpbridge.guard import guarded
from mcpbridge.protocol.handshake import HandshakeRefused
from mcpbridge.protocol.headers import Headers, check_params
from mcpbridge.protocol.listens import (
    Change,
    Filter,
    acknowledge,
    acknowledged_line,
    complete_line,
    notification_line,
    read_filter,
)
from mcpbridge.protocol.modern import MAY_ASK, MODERN, ModernRequest
from mcpbridge.protocol.requeststate import StateKey, presented
from mcpbridge.protocol.rewriting import result_line
from mcpbridge.session.exchange import Exchange, WaitingLine, backend_ended
from mcpbridge.session.leased import LeasedProcess
from mcpbridge.session.pool import Pool
from mcpbridge.session.session import Session
from mcpbridge.session.shared import OtherEra

#: The length of a key that is made at start, and of what names a parked request.
KEY_BYTES = 32
HANDLE_BYTES = 16
#: Of how many sets of capabilities it is remembered what the server answers to `server/discover`.
DISCOVERED_KEPT = 64


class Kind(NamedTuple):
    """Who may be lent the same processes."""

    identity: str
    capabilities: bytes


class Group:
    """The processes of one kind, and who listens to them."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.processes: list[LeasedProcess] = []
        self.free: list[LeasedProcess] = []
        self.listens: dict[Exchange, Filter] = {}
        #: How many listen to each resource.
        self.resources: Counter[str] = Counter()
        #: A request of this kind, with which a process can be opened.
        self.example: ModernRequest | None = None
        self.again: IDelayedCall | None = None


class Leases:
    """All processes of an older server that are lent to stateless clients."""

    log = Logger()

    def __init__(
        self, settings: ServerSettings, clock: IReactorTime, pool: Pool, line: WaitingLine
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pool = pool
        self._line = line
        key = settings.request_state_key
        self._key = StateKey(token_bytes(KEY_BYTES) if key is None else key.encode("utf-8"))
        self._groups: dict[Kind, Group] = {}
        self._group_of: dict[LeasedProcess, Group] = {}
        self._parked: dict[str, LeasedProcess] = {}
        self._discovered: dict[Kind, bytes] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    async def ask(self, exchange: Exchange, headers: Headers) -> None:
        """Put a request to a process.  Raises `Refused` and `OtherEra`."""
        request = exchange.request
        kind = Kind(exchange.identity, request.capabilities)
        if request.method in MAY_ASK and (state := presented(request)) is not None:
            self._go_on(exchange, state)
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
                    check_params(request, await process.annotations(request.name), headers)
                if process not in self._group_of:
                    raise backend_ended(process.session, self._settings)
                if not exchange.over:
                    process.ask(exchange)
        finally:
            if process.exchange is None and not process.conversation.running:
                self.returned(process)

    def unused(self) -> Session | None:
        """A process that nobody uses just now."""
        for group in self._groups.values():
            if group.free and not (group.listens and len(group.processes) == 1):
                return group.free[0].session
        return None

    def stop(self) -> None:
        """Who listens is told that this is the end."""
        for group in list(self._groups.values()):
            self._no_again(group)
            for exchange in list(group.listens):
                guarded(self.log, "a response", self._end_of, exchange)
            group.listens.clear()

    def _end_of(self, exchange: Exchange) -> None:
        exchange.deliver([complete_line(exchange.request.id)], True)

    def _discover(self, exchange: Exchange, result: bytes) -> None:
        exchange.deliver([result_line(exchange.request.id, msgspec.Raw(result))], True)

    # Lending.

    async def _lease(self, kind: Kind, request: ModernRequest) -> LeasedProcess:
        while True:
            group = self._groups.setdefault(kind, Group(kind))
            if group.free:
                process = group.free.pop()
                process.upkeep.wake()
                return process
            try:
                return await self._open(group, request)
            except TooManySessions as error:
                if not (self._group_of or self._pool.has_leaving()):
                    raise ServerBusy(str(error)) from None
                await self._line.wait()
            finally:
                self._forget_empty(group)

    async def _open(self, group: Group, request: ModernRequest) -> LeasedProcess:
        session = await self._pool.take()
        process = LeasedProcess(session, request, self._settings, self)
        session.forget = lambda _: self.lost(process)
        session.stream = process
        self._group_of[process] = group
        group.processes.append(process)
        session.opened()
        try:
            await process.open()
        except HandshakeRefused as error:
            session.life.end(f"it is of no use: {error}")
            if set(error.supported) & set(MODERN):
                raise OtherEra(str(error)) from None
            self._pool.fail(str(error))
            raise BackendFailed(str(error)) from None
        except BridgeError as error:
            session.life.end(f"it is of no use: {error}")
            self._pool.fail(str(error))
            raise
        except BaseException:
            session.life.end("it is not needed: the client left")
            raise
        self._pool.readiness.succeeded()
        group.example = request
        if len(self._discovered) >= DISCOVERED_KEPT:
            self._discovered.pop(next(iter(self._discovered)))
        self._discovered[group.kind] = process.conversation.discover_result()
        for uri in group.resources:
            process.subscribe(uri)
        return process

    def returned(self, process: LeasedProcess) -> None:
        """It works for nobody: it is for whoever waits, or rests, or has done enough."""
        group = self._group_of.get(process)
        if group is None or process in group.free:
            return
        used = self._settings.reuse == "never" and process.upkeep.served > 0
        if not process.conversation.clean:
            process.session.life.end("its last request may still run")
        elif used or process.upkeep.is_worn():
            process.session.life.end("it has been used enough")
        else:
            group.free.append(process)
            process.upkeep.rest(lambda: self._rested(process))
            self._line.wake()

    def _rested(self, process: LeasedProcess) -> None:
        group = self._group_of.get(process)
        if group is None or process not in group.free:
            return
        if group.listens and len(group.processes) == 1:
            # Somebody listens to it.
            process.upkeep.rest(lambda: self._rested(process))
        else:
            process.session.life.end("nobody has used it for a while")

    def lost(self, process: LeasedProcess) -> None:
        """It takes nothing more."""
        group = self._group_of.pop(process, None)
        if group is None:
            return
        group.processes.remove(process)
        if process in group.free:
            group.free.remove(process)
        for handle in [each for each, parked in self._parked.items() if parked is process]:
            del self._parked[handle]
        if group.listens and not group.processes:
            self._listen_again(group)
        self._forget_empty(group)
        self._line.wake()

    def _forget_empty(self, group: Group) -> None:
        if not (group.processes or group.listens or group.again):
            self._groups.pop(group.kind, None)

    # Waiting for the client.

    def parked(self, process: LeasedProcess, request: ModernRequest) -> str:
        """Its request waits for the client; returns the state that brings the client back."""
        handle = token_urlsafe(HANDLE_BYTES)
        self._parked[handle] = process
        return self._key.seal(
            handle,
            self._group_of[process].kind.identity,
            request,
            self._clock.seconds(),
            self._settings.input_timeout,
        )

    def _go_on(self, exchange: Exchange, state: str) -> None:
        request, now = exchange.request, self._clock.seconds()
        handle = self._key.open(state, exchange.identity, request, now)
        process = self._parked.get(handle)
        if process is None or not process.conversation.parked:
            raise InvalidRequestState(
                "what waited for this input is over; send the request again without requestState"
            )
        process.go_on(exchange)
        self._parked.pop(handle, None)

    # Listening.

    def _listen(self, exchange: Exchange, asked: Filter, process: LeasedProcess) -> None:
        group = self._group_of.get(process)
        initialized = process.conversation.initialized
        if group is None or initialized is None:
            raise backend_ended(process.session, self._settings)
        promised = acknowledge(asked, initialized.capabilities)
        exchange.worker = _Listening(self, group)
        group.listens[exchange] = promised
        exchange.deliver([acknowledged_line(exchange.request.id, promised)], False)
        for uri in promised.resource_subscriptions:
            group.resources[uri] += 1
            if group.resources[uri] == 1:
                for each in list(group.processes):
                    if each.conversation.initialized is not None:
                        each.subscribe(uri)

    def unlisten(self, exchange: Exchange, group: Group) -> None:
        """Its client has gone."""
        promised = group.listens.pop(exchange, None)
        for uri in () if promised is None else promised.resource_subscriptions:
            group.resources[uri] -= 1
            if not group.resources[uri]:
                del group.resources[uri]
                for each in list(group.processes):
                    if each.conversation.initialized is not None:
                        each.unsubscribe(uri)
        if not group.listens:
            self._no_again(group)
        self._forget_empty(group)

    def changed(self, process: LeasedProcess, change: Change) -> None:
        """Tell those who listen."""
        group = self._group_of.get(process)
        for exchange, promised in [] if group is None else list(group.listens.items()):
            if promised.wants(change):
                line = notification_line(exchange.request.id, change)
                guarded(self.log, "a response", exchange.deliver, [line], False)

    def _listen_again(self, group: Group) -> None:
        """Nothing is left to listen to: have a process again."""
        if self._pool.stopping or group.again is not None or group.example is None:
            return
        delay = max(RELISTEN_SECONDS, self._pool.readiness.wait(self._clock.seconds()))
        group.again = self._clock.callLater(delay, self._open_again, group, group.example)

    def _open_again(self, group: Group, example: ModernRequest) -> None:
        group.again = None

        def failed(failure: object) -> None:
            if group.listens and not group.processes:
                self._listen_again(group)

        if group.listens and not group.processes:
            opening = Deferred.fromCoroutine(self._open(group, example))
            opening.addCallbacks(self.returned, failed)

    def _no_again(self, group: Group) -> None:
        again, group.again = group.again, None
        if again is not None and again.active():
            again.cancel()


class _Listening:
    """What stands for all processes of a group, for one who listens."""

    def __init__(self, leases: Leases, group: Group) -> None:
        self._leases = leases
        self._group = group

    def cancel(self, exchange: Exchange) -> None:
        """The client has gone."""
        self._leases.unlisten(exchange, self._group)

    def pause(self, exchange: Exchange) -> None:
        """Others need not wait for one that does not keep up: its response is bounded."""

    def resume(self, exchange: Exchange) -> None:
        """Nothing was paused."""
