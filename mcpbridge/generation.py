"""
The processes of one server that are started with the same settings.

A server has one generation, until other settings are loaded: then new sessions and
requests get the processes of a new one, while the sessions of the one before keep
theirs until they end.  Knows processes and who may have them; must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import random
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.counters import ServerCounters
from mcpbridge.guard import guarded
from mcpbridge.processes.address_shares import Claims
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.era import ServerEra
from mcpbridge.processes.permits import SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.processes.visibility import Visibility
from mcpbridge.session.negotiation import check_request
from mcpbridge.stateless.dispatcher import StatelessDispatcher
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.tracing.tracing import Tracing


class Extensions(NamedTuple):
    """
    What starts, limits and watches the processes of a generation.

    They provide `IBackendLauncher`, `ISessionLimiter` (a `CombinedLimiter`),
    `ISessionObserver`, `IMessageFilter` and `IEventStore`.
    """

    launcher: Any
    limiter: Any
    #: The part of the limiter that the bridge has made for the server; None without one.
    own_limit: SessionLimiter | None = None
    observers: Sequence[Any] = ()
    filters: Sequence[Any] = ()
    event_store: Any = None


class ProcessGeneration:
    """
    The process pool of some settings, and the requests of 2026-07-28 that it serves.

    `claims`, `siblings` and the limiter of `extensions` are shared by all generations of a
    server, `pools` and `bridge_limiter` by all servers of a bridge.  `over` is called once
    nothing is left of a generation that was retired.  `visibility` is what is there for whom,
    and `counters` are the server's.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        extensions: Extensions,
        *,
        bridge_limiter: SessionLimiter | None,
        claims: Claims,
        pools: list[ProcessPool],
        siblings: list[ProcessPool],
        over: Callable[[ProcessGeneration], object],
        visibility: Visibility | None = None,
        counters: ServerCounters | None = None,
        tracing: Tracing | None = None,
        jitter: Callable[[], float] = random,
    ) -> None:
        self.settings = settings
        self.extensions = extensions
        self.era = ServerEra()
        self._over = over
        #: True once it takes no new sessions and requests.
        self.retired = False
        self.pool = ProcessPool(
            settings,
            clock,
            launcher=extensions.launcher,
            limiter=extensions.limiter,
            bridge_limiter=bridge_limiter,
            observers=extensions.observers,
            filters=extensions.filters,
            check_request=partial(check_request, self.era),
            claims=claims,
            observer=self,
            pools=pools,
            siblings=siblings,
            counters=counters,
            tracing=tracing,
            jitter=jitter,
        )
        self.stateless = StatelessDispatcher(
            settings, clock, self.pool, self.era, claims, visibility
        )

    def start(self) -> None:
        """Begin to keep processes ready, where the settings say so."""
        self.pool.start()

    def begin_stop(self) -> None:
        """Start nothing more, and end what waits for requests."""
        self.pool.begin_stop()
        # Whatever fails here, the processes end.
        guarded(self.log, "telling subscribers that the bridge stops", self.stateless.stop)

    def stop(self) -> Deferred[Any]:
        """End all processes; fires when nothing of them is left."""
        return self.pool.stop()

    def retire(self) -> None:
        """
        Take no new sessions, and no requests but those that have a process here or wait
        for one; end each process as soon as it is not needed any more.
        """
        if self.retired:
            return
        self.retired = True
        self.pool.retire()
        guarded(self.log, "retiring processes", self.stateless.retire)
        self._look()

    def has(self, exchange: Exchange) -> bool:
        """Tell whether a request is about something that only a process of these can answer."""
        return self.stateless.has(exchange)

    # PoolObserver.

    def idle_process(self) -> BackendSession | None:
        """Return a worker's process that nobody uses just now; the pool may end it."""
        return self.stateless.idle_process()

    def capacity_freed(self) -> None:
        """Let requests that wait for a process look again: there may be one."""
        self.stateless.capacity_freed()
        if self.retired:
            self._look()

    def _look(self) -> None:
        """Leave once nothing is left."""
        if self.pool.is_empty and not self.stateless.has_waiting():
            self.pool.leave()
            self._over(self)
