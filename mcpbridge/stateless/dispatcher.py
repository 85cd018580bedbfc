"""
Requests of MCP 2026-07-28 to one server: which era its processes are of, and
with that, who works on a request.

Knows what it takes to find that out; must not know HTTP.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import (
    BackendFailed,
    BridgeError,
    MethodNotFound,
    Refused,
    ServerBusy,
    Stopping,
    TooManyOfAddress,
    TooManySessions,
)
from mcpbridge.mcp.header_validation import Headers
from mcpbridge.mcp.modern_request import REMOVED, TASK_METHODS
from mcpbridge.processes.abandoned import Newcomer
from mcpbridge.processes.address_shares import Claims
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.era import OtherEra, ServerEra
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.stateless.concurrent_pool import ConcurrentPool
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.stateless.exclusive_pool import ExclusivePool
from mcpbridge.stateless.request_queue import RequestQueue, SingleFlight, Ticket, outlived

#: How often it may turn out that a server is not of the era that it was taken for.
TURNS = 3


class StatelessDispatcher:
    """
    The way in for requests that belong to no session.

    The era is found out once, with `server/discover` on a process that is
    thrown away where it does not answer it, and again when a process turns
    out to be of the other one.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        pool: ProcessPool,
        era: ServerEra,
        claims: Claims | None = None,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._claims = claims or Claims()
        self._era = era
        self._probing = SingleFlight(settings.max_waiting_requests)
        self._queue = RequestQueue(clock, settings.max_waiting_requests, settings.queue_timeout)
        self._shared = ConcurrentPool(
            settings, clock, pool, self._queue, partial(self._learn, True), era.known
        )
        self._leases = ExclusivePool(
            settings, clock, pool, self._queue, partial(self._learn, False), era.known
        )

    async def ask(self, exchange: Exchange, headers: Headers) -> None:
        """
        Have a request worked on; what comes of it goes to its outlet.

        `headers` gives the values of a header of the request's.  Raises a
        `Refused`, with the request's `ident`, where nobody works on it.
        """
        request = exchange.request
        try:
            if request.method in REMOVED:
                raise _no_method(exchange)
            if exchange.client is not None:
                await self._claim(exchange)
                if exchange.over:
                    return
            await self._ask(exchange, headers)
        except (TooManySessions, ServerBusy) as error:
            if not isinstance(error, TooManyOfAddress):
                self._pool.refused()
            busy = ServerBusy.because(error)
            busy.ident = request.id
            raise busy from None
        except Refused as error:
            error.ident = request.id
            raise

    def capacity_freed(self) -> None:
        """There may be room for a process: let those who wait for one look again."""
        self._queue.wake()

    def stop(self) -> None:
        """Who listens is told that this is the end; all else ends with its process."""
        self._shared.stop()
        self._leases.stop()
        self._queue.stop()

    async def _claim(self, exchange: Exchange) -> None:
        """
        Until it is over it counts as what it has of a process: all of an older
        one, or of one that several share its part.
        """
        amount = 1 / self._settings.concurrency if self._era.modern else 1
        # What is parked for a retry has its place already.
        always = self._leases.awaits(exchange)
        if always or self._claims.over(exchange.client, amount) is None:
            exchange.charge(self._claims.take(exchange.client, amount, always=always))
            return
        claim = await self._pool.claim(exchange.client, amount)
        if not exchange.over:
            exchange.charge(claim)
        elif claim is not None:
            # Its client has left meanwhile.
            claim.release()

    async def _ask(self, exchange: Exchange, headers: Headers) -> None:
        why = ""
        for _ in range(TURNS):
            if self._pool.stopping:
                raise Stopping("the bridge is shutting down")
            # A parked process may hold the place that finding out would take.
            modern = not self._leases.awaits(exchange) and await self._is_modern(exchange)
            if not modern and exchange.request.method in TASK_METHODS:
                # An older server has no tasks that could be named here.
                raise _no_method(exchange)
            try:
                await (self._shared if modern else self._leases).ask(exchange, headers)
            except OtherEra as error:
                why = str(error)
                self._learn(modern, error)
            except BackendFailed as error:
                self._learn(modern, error)
                raise
            else:
                return
        raise BackendFailed(f"the server is of no era that lasts: {why}")

    def _learn(self, modern: bool, error: BridgeError) -> None:
        """What it says of the server, which was taken to be of this era, that this went wrong."""
        if isinstance(error, OtherEra):
            self._era.modern = not modern
            self.log.info("server {server!r}: {why}", server=self._settings.name, why=str(error))
        elif (
            isinstance(error, BackendFailed)
            and self._pool.backoff.failures
            and not (len(self._shared) or len(self._leases))
        ):
            # It may have become another one.  Not where it can be started, and only did not
            # take what one caller says of itself: to find out anew would cost all the others.
            self._era.modern = None

    async def _is_modern(self, exchange: Exchange) -> bool:
        while self._era.modern is None:
            if await self._probing.is_first():
                await outlived(self._find_out(exchange), lambda _: None)
        return self._era.modern

    async def _find_out(self, exchange: Exchange) -> None:
        try:
            self._era.modern = await self._probe(exchange.identity, Newcomer(exchange.client))
        finally:
            self._probing.done()

    async def _probe(self, identity: str, newcomer: Newcomer) -> bool:
        """
        Any answer but that of a modern server, silence and death too, say that
        it is an older one (basic/transports/stdio, "Backward Compatibility").
        """
        session = await self._take(newcomer)
        try:
            await self._shared.open(session, identity, self._settings.probe_timeout)
        except (OtherEra, BackendFailed):
            # Its place may be the only one there is; but not all that is told to end does.
            await self._pool.gone_in_time(session)
            return False
        return True

    async def _take(self, newcomer: Newcomer) -> BackendSession:
        ticket = Ticket()
        while True:
            try:
                return await self._pool.take(newcomer)
            except BackendFailed as error:
                self._pool.fail(str(error))
                raise
            except TooManySessions:
                if not (len(self._shared) or len(self._leases) or self._pool.has_leaving()):
                    raise
                await self._queue.wait(ticket, lambda: not self._pool.is_full(newcomer))

    def idle_process(self) -> BackendSession | None:
        """A process that nobody uses just now, which may be ended; or None."""
        return self._shared.unused() or self._leases.unused()


def _no_method(exchange: Exchange) -> MethodNotFound:
    request = exchange.request
    return MethodNotFound(f"MCP {request.version} has no method {request.method!r}")
