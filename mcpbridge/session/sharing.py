"""
Which process of a server that speaks MCP 2026-07-28 works on a request.

Knows how many there are and what each has to do; must not know messages.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mcpbridge.config import RELISTEN_SECONDS, ServerSettings
from mcpbridge.errors import BackendFailed, BridgeError, Refused, ServerBusy, TooManySessions
from mcpbridge.protocol.headers import Headers, check_params
from mcpbridge.protocol.listens import complete_line
from mcpbridge.session.exchange import Exchange, WaitingLine, backend_ended
from mcpbridge.session.pool import Pool
from mcpbridge.session.session import Session
from mcpbridge.session.shared import OtherEra, SharedProcess


class SharedProcesses:
    """
    All shared processes of a server.

    A request goes to the one with the least to do; where all have as many as
    `concurrency` allows another is started, and where the limits allow none
    it waits in line.  None serves two identities.
    """

    log = Logger()

    def __init__(
        self, settings: ServerSettings, clock: IReactorTime, pool: Pool, line: WaitingLine
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pool = pool
        self._line = line
        self._processes: list[SharedProcess] = []
        self._start = DeferredLock()
        self._again: set[IDelayedCall] = set()

    def __len__(self) -> int:
        return len(self._processes)

    async def ask(self, exchange: Exchange, headers: Headers) -> None:
        """Put a request to a process.  Raises `Refused` and `OtherEra`."""
        process = await self._reserve(exchange)
        try:
            request = exchange.request
            if request.method == "tools/call":
                check_params(request, await process.annotations(request.name), headers)
            if process not in self._processes:
                raise backend_ended(process.session, self._settings)
            if not exchange.over:
                process.ask(exchange)
        finally:
            process.reserved -= 1
            self._freed(process)

    async def open(self, session: Session, identity: str, patience: float) -> SharedProcess:
        """
        Make one of a process that nobody has used.  Raises `Refused`, and
        `OtherEra` where the server is older; then it has ended.
        """
        process = SharedProcess(
            session,
            identity,
            self._settings,
            freed=self._freed,
            lost=self._lost,
            orphaned=self._listen_again,
        )
        session.forget = lambda _: self._lost(process)
        session.stream = process
        session.opened()
        try:
            await process.open(patience)
        except OtherEra as error:
            session.life.end(f"it is not needed: {error}")
            raise
        except BridgeError as error:
            session.life.end(f"it is of no use: {error}")
            raise
        except BaseException:
            session.life.end("it is not needed: the client left")
            raise
        self._pool.readiness.succeeded()
        self._processes.append(process)
        self._freed(process)
        return process

    def unused(self) -> Session | None:
        """A process that nobody uses just now."""
        return next((each.session for each in self._processes if not each.in_use), None)

    def stop(self) -> None:
        """Listen for nothing any more."""
        for call in self._again:
            call.cancel()
        self._again.clear()

    async def _reserve(self, exchange: Exchange) -> SharedProcess:
        while True:
            process = self._free(exchange)
            if process is None:
                try:
                    process = await self._another(exchange)
                except TooManySessions as error:
                    if not (self._processes or self._pool.has_leaving()):
                        raise ServerBusy(str(error)) from None
                    await self._line.wait()
                    continue
            if process in self._processes:
                process.upkeep.wake()
                process.reserved += 1
                return process

    def _free(self, exchange: Exchange) -> SharedProcess | None:
        limit = 1 if exchange.request.log_level is not None else self._settings.concurrency
        free = [
            each
            for each in self._processes
            if each.identity == exchange.identity
            and not each.upkeep.is_worn()
            and (exchange.listens or (each.load < limit and not (each.alone and each.load)))
        ]
        return min(free, key=lambda each: each.load, default=None)

    async def _another(self, exchange: Exchange) -> SharedProcess:
        """Start one, or take one that somebody else has started meanwhile."""
        await self._start.acquire()
        try:
            process = self._free(exchange)
            if process is None:
                session = await self._pool.take()
                process = await self.open(session, exchange.identity, self._settings.start_timeout)
            return process
        except BackendFailed as error:
            self._pool.fail(str(error))
            raise
        finally:
            self._start.release()

    def _freed(self, process: SharedProcess) -> None:
        """It has less to do: it is for whoever waits, or rests, or has done enough."""
        if process not in self._processes:
            return
        if not process.in_use:
            process.alone = False
            if process.upkeep.is_worn():
                process.session.life.end("it has been used enough")
            else:
                process.upkeep.rest(
                    lambda: process.session.life.end("nobody has used it for a while")
                )
        elif process.upkeep.is_worn() and not process.load:
            # Only listened to: what listens is listened for elsewhere.
            process.session.life.end("it has been used enough")
        self._line.wake()

    def _lost(self, process: SharedProcess) -> None:
        """It takes no more requests."""
        if process in self._processes:
            self._processes.remove(process)
            self._line.wake()

    def _listen_again(self, exchange: Exchange) -> None:
        """The process has ended; its client need not know ("Unexpected Termination")."""
        if self._pool.stopping:
            exchange.deliver([complete_line(exchange.request.id)], True)
        if exchange.over:
            return
        exchange.worker = None
        delay = max(RELISTEN_SECONDS, self._pool.readiness.wait(self._clock.seconds()))

        def again() -> None:
            self._again.discard(call)
            if not exchange.over:
                asking = Deferred.fromCoroutine(self.ask(exchange, lambda _: []))
                asking.addErrback(failed)

        def failed(failure: object) -> None:
            why = getattr(failure, "value", None)
            if isinstance(why, Refused) and not self._pool.stopping:
                self._listen_again(exchange)
            else:
                exchange.fail(BackendFailed("what was listened to is gone"))

        call = self._clock.callLater(delay, again)
        self._again.add(call)
