"""
Requests of MCP 2026-07-28 to one server: of which era the server is, and with
that, which pool of workers has them.

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
    ShuttingDown,
    TooManyOfAddress,
    TooManySessions,
)
from mcpbridge.mcp.header_validation import Headers
from mcpbridge.mcp.modern_request import REMOVED, TASK_METHODS
from mcpbridge.processes.abandoned_sessions import Newcomer
from mcpbridge.processes.address_shares import Claim, Claims
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.era import NoAnswer, OtherEra, ServerEra
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.processes.visibility import Visibility
from mcpbridge.stateless.concurrent_pool import ConcurrentPool
from mcpbridge.stateless.exchange import Exchange, Work
from mcpbridge.stateless.exclusive_pool import ExclusivePool
from mcpbridge.stateless.request_queue import RequestQueue, SingleFlight, Ticket, shielded

#: How often one request may find that the server is not of the era it was taken for.
ERA_TRIES = 3


class StatelessDispatcher:
    """
    The way in for requests that belong to no session.

    The era is found out once, by a `server/discover` to a process that is
    thrown away if it does not answer that; and again when a process turns out
    to be of the other one.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        pool: ProcessPool,
        era: ServerEra,
        claims: Claims,
        visibility: Visibility | None = None,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._claims = claims
        self._visibility = visibility
        self._era = era
        #: How many requests are neither answered nor with a worker yet.
        self._asking = 0
        self._probing = SingleFlight(settings.max_waiting_requests)
        self._queue = RequestQueue(
            clock, settings.max_waiting_requests, settings.queue_timeout, pool.note_waiting
        )
        self._concurrent = ConcurrentPool(
            settings, clock, pool, self._queue, partial(self._reconsider_era, True), era.known
        )
        self._exclusive = ExclusivePool(
            settings, clock, pool, self._queue, partial(self._reconsider_era, False), era.known
        )

    def ask(self, exchange: Exchange, headers: Headers) -> Work | None:
        """
        Have a request worked on; the response goes to the exchange's sink.

        Returns None if a process has it already, as usual, and otherwise a
        coroutine that waits for one.  `headers` returns the values of one of
        the request's header fields.  Both raise a `Refused`, with the
        request's `ident`, if nobody works on it.
        """
        request = exchange.request
        try:
            if request.method in REMOVED:
                raise _no_such_method(exchange)
            visibility = exchange.visibility = self._visibility
            if visibility is not None and visibility.rules is not None:
                judged = visibility.judged(exchange.access.name, request)
                if isinstance(judged, bytes):
                    exchange.deliver([judged], True)
                    return None
                exchange.request = judged
            if exchange.client is None or self._charge_at_once(exchange):
                pool = self._pool_for(exchange)
                if pool is not None and pool.ask_at_once(exchange, headers):
                    return None
        except Refused as error:
            raise self._refusal(error, exchange) from None
        return self._ask_later(exchange, headers)

    async def _ask_later(self, exchange: Exchange, headers: Headers) -> None:
        self._asking += 1
        try:
            if exchange.client is not None and exchange.claim is None:
                exchange.charge(await self._wait_for_claim(exchange))
            if not exchange.over:
                await self._ask_either(exchange, headers)
        except Refused as error:
            raise self._refusal(error, exchange) from None
        finally:
            self._asking -= 1
            if self._pool.retired and not self._asking:
                self._pool.announce_capacity()

    def _refusal(self, error: Refused, exchange: Exchange) -> Refused:
        """Return what the client is told if its request could not be worked on."""
        if isinstance(error, TooManySessions | ServerBusy):
            if not isinstance(error, TooManyOfAddress):
                self._pool.log_refusal()
            error = ServerBusy.because(error)
        error.ident = exchange.request.id
        return error

    def idle_process(self) -> BackendSession | None:
        """Return a process that nobody uses just now, which may be ended; or None."""
        return self._concurrent.idle_process() or self._exclusive.idle_process()

    def capacity_freed(self) -> None:
        """Let requests that wait for a process look again: there may be room for one."""
        self._queue.wake()

    def has(self, exchange: Exchange) -> bool:
        """
        Tell whether a request is about what one of these processes has: a suspended call,
        or a task.
        """
        return self._exclusive.has_suspended(exchange) or self._concurrent.has(exchange)

    @property
    def running(self) -> int:
        """How many requests are being worked on, or wait; subscriptions do not count."""
        return self._asking + self._concurrent.running + self._exclusive.running

    def has_waiting(self) -> bool:
        """Tell whether a request waits for a process."""
        return self._asking > 0

    @property
    def waiting_count(self) -> int:
        """How many requests wait for a process."""
        return self._asking

    @property
    def exclusive_count(self) -> int:
        """How many processes work on one request at a time."""
        return len(self._exclusive)

    @property
    def concurrent_count(self) -> int:
        """How many processes work on several requests at one time."""
        return len(self._concurrent)

    def retire(self) -> None:
        """End each worker as soon as it is not needed: the server has other settings."""
        self._concurrent.retire()
        self._exclusive.retire()

    def stop(self) -> None:
        """End all subscriptions, and refuse what waits; the rest ends with its process."""
        self._concurrent.stop()
        self._exclusive.stop()
        self._queue.stop()

    # The client's share.

    def _charge_at_once(self, exchange: Exchange) -> bool:
        """
        Count a request against its client's share: as a whole process of a
        legacy server, or as a part of one that serves several requests.
        Returns False if its share is used up.
        """
        # The retry of a suspended call has its process already.
        always = self._exclusive.has_suspended(exchange)
        claim = self._claims.take_if_free(exchange.client, self._amount(), always=always)
        exchange.charge(claim)
        return claim is not None

    async def _wait_for_claim(self, exchange: Exchange) -> Claim | None:
        """Do the same after sessions that the client has abandoned are ended for it."""
        claim = await self._pool.claim(exchange.client, self._amount())
        if exchange.over and claim is not None:
            # Its client has left meanwhile.
            claim.release()
            return None
        return claim

    def _amount(self) -> float:
        return 1 / self._settings.concurrency if self._era.modern else 1

    # Which pool.

    def _pool_for(self, exchange: Exchange) -> ConcurrentPool | ExclusivePool | None:
        """
        Return the pool that works on a request, None while the server's era is
        not known.  Raises `ShuttingDown` and `MethodNotFound`.
        """
        if self._pool.stopping:
            raise ShuttingDown("the bridge is shutting down")
        # A suspended call may hold the process that probing would need.
        modern = False if self._exclusive.has_suspended(exchange) else self._era.modern
        if modern:
            return self._concurrent
        if modern is None:
            return None
        if exchange.request.method in TASK_METHODS:
            # A legacy server has no tasks that a client could name here.
            raise _no_such_method(exchange)
        return self._exclusive

    async def _ask_either(self, exchange: Exchange, headers: Headers) -> None:
        why = ""
        for _ in range(ERA_TRIES):
            pool = self._pool_for(exchange)
            while pool is None:
                await self._wait_for_era(exchange)
                pool = self._pool_for(exchange)
            modern = pool is self._concurrent
            try:
                await pool.ask(exchange, headers)
            except OtherEra as error:
                why = str(error)
                self._reconsider_era(modern, error)
            except BackendFailed as error:
                self._reconsider_era(modern, error)
                raise
            else:
                return
        raise BackendFailed(f"the server is of no era that lasts: {why}")

    # The server's era.

    def _reconsider_era(self, modern: bool, error: BridgeError) -> None:
        """Draw from this error, of a server taken to be of this era, what it says of that."""
        if isinstance(error, OtherEra):
            self._era.modern = not modern
            self.log.info(
                "server {server!r} is {era} now: {reason}",
                server=self._settings.name,
                era="legacy" if modern else "modern",
                reason=str(error),
            )
        elif (
            isinstance(error, BackendFailed)
            and self._pool.backoff.failures
            and not (len(self._concurrent) or len(self._exclusive))
        ):
            # It cannot be started at all, and may be another one when it can.
            # A server that only dislikes what one caller says of itself is
            # not probed again, which would cost all the others.
            self._era.modern = None

    async def _wait_for_era(self, exchange: Exchange) -> None:
        """Find out the era, or wait until another request has tried."""
        if await self._probing.is_first():
            await shielded(self._find_out(exchange), lambda _: None)

    async def _find_out(self, exchange: Exchange) -> None:
        try:
            self._era.modern = await self._probe(exchange)
        finally:
            self._probing.done()

    async def _probe(self, exchange: Exchange) -> bool:
        """
        Return whether the server answers `server/discover` as a modern one
        does.  Any other answer, silence and death too, are a legacy server's
        (basic/transports/stdio, "Backward Compatibility").

        A remote server does not die of a request that it does not know: that it
        cannot be asked says nothing of its era.  Raises `BackendFailed` then.
        """
        session = await self._take_process(exchange)
        try:
            await self._concurrent.open(session, exchange.identity, self._settings.probe_timeout)
        except (OtherEra, BackendFailed) as error:
            # Its permit may be the only one.  But it is not waited for without
            # end: not every process ends that is told to.
            await self._pool.gone_in_time(session)
            if self._settings.is_remote and not isinstance(error, OtherEra | NoAnswer):
                raise
            return False
        return True

    async def _take_process(self, exchange: Exchange) -> BackendSession:
        ticket, newcomer = Ticket(), Newcomer(exchange.client)
        while True:
            try:
                return await self._pool.take(newcomer, exchange.access.environment)
            except BackendFailed as error:
                self._pool.fail(str(error))
                raise
            except TooManySessions:
                workers = len(self._concurrent) + len(self._exclusive)
                if not (workers or self._pool.has_pending_change()):
                    raise
                await self._queue.wait(
                    ticket, lambda: not self._pool.is_full(newcomer), newcomer.address
                )


def _no_such_method(exchange: Exchange) -> MethodNotFound:
    request = exchange.request
    return MethodNotFound(f"MCP {request.version} has no method {request.method!r}")
