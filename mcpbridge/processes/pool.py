"""
The processes of one server: each is started when somebody needs it, or ahead
of that, and holds a permit until nothing of it is left.

Knows processes that nobody uses yet; must not know what they will be used for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from random import random
from typing import Any, Protocol
from uuid import uuid4

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    LAUNCH_SECONDS,
    MAX_BACKOFF_SECONDS,
    REMOTE_BACKOFF_SECONDS,
)
from mcpbridge.counters import ServerCounters
from mcpbridge.errors import BackendFailed, CannotStart, ShuttingDown, TooManySessions
from mcpbridge.guard import guarded
from mcpbridge.processes.abandoned_sessions import AbandonedSessions, Newcomer
from mcpbridge.processes.address_shares import Claim, Claims
from mcpbridge.processes.backend_session import NO_VARIABLES, BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.canary import Canary
from mcpbridge.processes.capacity import Capacity, gone_in_time
from mcpbridge.processes.endings import Removed, Stopped
from mcpbridge.processes.failures import Failures
from mcpbridge.processes.message_filters import MessageFilters
from mcpbridge.processes.permits import RefusalLog, SessionLimiter
from mcpbridge.processes.slow_starts import SlowStarts
from mcpbridge.processes.spares import SpareProcesses
from mcpbridge.processes.start_check import StartCheck, neutral_initialize
from mcpbridge.processes.stderr_log import ServerStderr
from mcpbridge.processes.unattended_starts import UnattendedStarts
from mcpbridge.tracing.tracing import Span, Tracing

#: Why a process ends that was started with settings of before.
RETIRED = Removed("its server has other settings now")


class PoolObserver(Protocol):
    """Uses the processes of a pool once it has handed them out."""

    def idle_process(self) -> BackendSession | None:
        """Return a process that is not in use and may be ended."""
        ...

    def capacity_freed(self) -> None:
        """A process is gone, so another one may be started."""


class NoObserver:
    """The observer of a pool whose processes are never given back."""

    def idle_process(self) -> BackendSession | None:
        """Return None: all processes are in use."""
        return None

    def capacity_freed(self) -> None:
        """Do nothing: nobody waits."""


class ProcessPool:
    """
    Hands out processes that nobody has used, within the limits.

    `limiter` is a `CombinedLimiter`, and `bridge_limiter` the part of it that
    all servers share.  `claims` are the shares of client addresses.  `pools` are
    those of all servers of the bridge, which may end processes for one
    another: the pool adds itself, also to its `siblings`, the pools of the same server
    with other settings, which share its limits.  `counters` are those of the server, and `jitter`
    is that of `StartBackoff`.

    `spares` keeps processes ready, `unattended` are those whose clients left
    while they started, `capacity` decides who gives way where the limits are
    reached, and `check` finds out whether the server can be started, in doubt or
    when `canary` has it do so.

    With `env_from` a process has variables of one client.  So none is started
    before there is a client, and as a process may fail because of what its
    client gave it, none counts as a failed start of the server.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        *,
        launcher: Any,
        limiter: Any,
        bridge_limiter: SessionLimiter | None = None,
        observers: Sequence[Any] = (),
        filters: Sequence[Any] = (),
        check_request: Callable[[], bytes] = neutral_initialize,
        claims: Claims | None = None,
        observer: PoolObserver | None = None,
        pools: list[ProcessPool] | None = None,
        siblings: list[ProcessPool] | None = None,
        counters: ServerCounters | None = None,
        tracing: Tracing | None = None,
        jitter: Callable[[], float] = random,
    ) -> None:
        self.settings = settings
        #: The sessions that may give way once their clients have abandoned them.
        self.abandoned = AbandonedSessions(settings)
        longest = REMOTE_BACKOFF_SECONDS if settings.is_remote else MAX_BACKOFF_SECONDS
        self.backoff = StartBackoff(settings.name, jitter, longest)
        #: All processes of which something is left, whoever uses them.
        self.unclosed: set[BackendSession] = set()
        self.launching: set[Deferred[Any]] = set()
        #: True once a process has ended.
        self.has_ended = False
        #: True once no process is started any more.
        self.stopping = False
        #: True once the server has another pool for those who come.
        self.retired = False
        #: How many are about to get a process.
        self._taking = 0
        #: Since when, and why, no process can be started at all; None where one could be.
        self.cannot_start: tuple[float, str] | None = None
        self.counters = counters or ServerCounters(settings.name)
        self._tracing = tracing
        self._clock = clock
        self._launcher = launcher
        self._observer = observer or NoObserver()
        self._observers = observers
        self._filters = MessageFilters(filters) if filters else None
        self._stderr = ServerStderr(settings, clock)
        self.failures = Failures(settings, clock, self._stderr)
        self._slow_starts = SlowStarts(settings, clock)
        self._exhausted = RefusalLog(settings.name, clock, "cannot start backends")
        self._pools = [] if pools is None else pools
        #: Those whose requests wait for a process, as an ordered set; one for all pools.
        self._waiting: dict[ProcessPool, None] = self._pools[0]._waiting if self._pools else {}
        self._pools.append(self)
        self._siblings = [] if siblings is None else siblings
        self._siblings.append(self)
        self._bridge_limiter = bridge_limiter
        self.capacity = Capacity(
            settings,
            clock,
            limiter=limiter,
            bridge_limiter=bridge_limiter,
            claims=claims or Claims(),
            pool=self,
            pools=self._pools,
            siblings=self._siblings,
        )
        self.spares = SpareProcesses(settings, clock, self.backoff, self)
        self.unattended = UnattendedStarts(settings, clock, self.backoff)
        self.check = StartCheck(settings, clock, self.backoff, self, check_request)
        self.canary = Canary(settings, clock, self.check.try_now, self._results, jitter)

    # For those who need a process.

    async def take(
        self, newcomer: Newcomer | None = None, environment: Mapping[str, str] = NO_VARIABLES
    ) -> BackendSession:
        """
        Return a session whose backend nobody has used, and which has no sink
        yet.  For a newcomer an abandoned session is ended, where the limits
        are reached.  `environment` are the client's variables (`env_from`).

        Raises `TooManySessions`, `BackendFailed`, `ServerDown` and
        `ShuttingDown`; then no permit is held and no process left.
        """
        self._taking += 1
        try:
            return await self._take(newcomer, environment)
        finally:
            self._taking -= 1
            if self.retired and not self._taking:
                self._observer.capacity_freed()

    async def _take(
        self, newcomer: Newcomer | None, environment: Mapping[str, str]
    ) -> BackendSession:
        if self.stopping:
            raise ShuttingDown("the bridge is shutting down")
        if len(self.unattended):
            await self.unattended.wait_for_first()
            if self.stopping:
                raise ShuttingDown("the bridge is shutting down")
        spare = self.spares.take()
        if spare is not None:
            return spare
        self.backoff.check(self._clock.seconds())
        return await self.start_process(await self.capacity.acquire(newcomer), environment)

    async def take_free(
        self, environment: Mapping[str, str] = NO_VARIABLES
    ) -> BackendSession | None:
        """
        Do the same if a process is ready or may be started now, without ending
        another one for it; return None otherwise.  Raises `BackendFailed` and
        `ShuttingDown`.
        """
        if self.stopping or len(self.unattended):
            return None
        spare = self.spares.take()
        if spare is not None or self.backoff.wait(self._clock.seconds()):
            return spare
        permit = self.capacity.try_acquire()
        return None if permit is None else await self.start_process(permit, environment)

    async def claim(self, address: str | None, amount: float = 1) -> Claim | None:
        """
        Take so much of the shares of an address, for which its own abandoned
        sessions are ended.  Raises `TooManyOfAddress`.
        """
        return await self.capacity.claim(address, amount)

    def is_full(self, newcomer: Newcomer | None = None) -> bool:
        """Return whether `take` would raise `TooManySessions` now."""
        if self.stopping or len(self.spares) or self.backoff.wait(self._clock.seconds()):
            return False
        return self.capacity.is_full(newcomer)

    def too_many(self, newcomer: Newcomer | None) -> TooManySessions:
        """Return the error for a newcomer for whom there is no process."""
        return self.capacity.too_many(newcomer)

    def log_refusal(self) -> None:
        """Log, now and then, that a request for a process was refused."""
        self.capacity.log_refusal()

    def keep_start(self, session: BackendSession, why: str) -> bool:
        """
        Let the process of a session start without its client, which has left.
        Returns False where that may not be (`UnattendedStarts.keep`).
        """
        return not (self.stopping or self.retired) and self.unattended.keep(session, why)

    async def gone_in_time(self, session: BackendSession) -> bool:
        """Wait for the end of a session that was told to end; see `capacity.gone_in_time`."""
        return await gone_in_time(session, self.settings, self._clock)

    def fail(self, why: str, session: BackendSession | None = None) -> None:
        """
        Note that a process was of no use, so the server is left alone for a
        while; unless that may be due to variables of the process's client.  `session` is that
        process, if it was started and no client has been told.
        """
        if session is not None:
            self.note_failed_start(session, why)
        if self.settings.env_from:
            return
        self.backoff.failed(self._clock.seconds(), why)
        self.spares.look()
        self.check.recover()

    def note_failed_start(self, session: BackendSession, why: str) -> None:
        """Have operators see that a process was of no use, and why."""
        self.failures.start_failed(session, why, gone=session not in self.unclosed)

    def _results(self) -> int | None:
        """Return how many requests have got a result; None if that says nothing of this pool."""
        # Counters are the server's, and processes of older settings may go on for long.
        return self.counters.results() if self._siblings == [self] else None

    def has_pending_change(self) -> bool:
        """Return whether a process is about to end or to start; who waits is told of either."""
        return bool(self.launching or len(self.unattended)) or any(
            each.leaving for each in self.unclosed
        )

    # Starting and stopping the pool.

    def start(self) -> None:
        """Begin to keep processes ready."""
        self._stderr.start()
        before = takewhile(lambda pool: pool is not self, self._pools)
        self.spares.start(sum(pool.settings.warm > 0 for pool in before))
        self.canary.start()

    def retire(self) -> None:
        """
        Keep no processes ready any more: the server has another pool.  What runs goes on,
        and who waits may still get a process.
        """
        self.retired = True
        self.canary.stop()
        self.check.stop()
        self.spares.stop()
        for spare in list(self.spares):
            self.spares.discard(spare)
            spare.life.end(RETIRED)
        self.unattended.end_all(RETIRED)

    @property
    def is_empty(self) -> bool:
        """True while there is no process, and none about to be."""
        return not (self.unclosed or self.launching or self._taking)

    def leave(self) -> None:
        """Be no pool of the bridge any more: nothing is left of a pool that was retired."""
        for pools in (self._pools, self._siblings):
            if self in pools:
                pools.remove(self)
        self._waiting.pop(self, None)
        self._close_stderr(None)

    def begin_stop(self) -> None:
        """Start no more processes."""
        self.stopping = True
        if self._bridge_limiter is not None:
            self._bridge_limiter.close()

    def stop(self) -> Deferred[Any]:
        """End all processes; fires when nothing of them is left."""
        self.begin_stop()
        self.canary.stop()
        self.check.stop()
        self.spares.stop()
        self.capacity.stop()
        self.unattended.stop()
        for launching in list(self.launching):
            launching.cancel()
        unclosed = list(self.unclosed)
        for session in unclosed:
            session.life.end(Stopped("the bridge is shutting down"))
        gone = DeferredList([session.gone() for session in unclosed])
        return gone.addCallback(self._close_stderr)

    def _close_stderr(self, result: Any) -> Any:
        guarded(self.log, "closing the file of stderr", self._stderr.stop)
        return result

    # Starting a process: ProcessStarter.

    def acquire(self) -> Any:
        """Return a permit that is free; None where there is none."""
        return self.capacity.try_acquire()

    def acquire_spare(self) -> Any:
        """Return a permit if another one is free beside it; None otherwise."""
        return self.capacity.try_acquire_spare()

    def has_settled_since(self, time: float) -> bool:
        """Tell whether a process is kept ready that was started since, and has settled."""
        return any(map(partial(self.spares.has_settled, since=time), self.spares))

    async def start_process(
        self, permit: Any, environment: Mapping[str, str] = NO_VARIABLES
    ) -> BackendSession:
        """Start a process with this permit.  Raises `BackendFailed` and `ShuttingDown`."""
        try:
            session = BackendSession(
                ident=str(uuid4()),
                server=self.settings.name,
                clock=self._clock,
                permit=permit,
                forget=self.spares.lost,
                closed=self._closed,
                observers=self._observers,
                filters=self._filters,
                stderr=self._stderr.process(),
                complain=self.failures.misbehaved,
                starts=self._slow_starts,
                announced=False,
                environment=environment,
                counters=self.counters,
            )
            session.started(await self._launch(session))
        except BaseException:
            permit.release()
            self.announce_capacity()
            raise
        self.unclosed.add(session)
        return session

    async def _launch(self, session: BackendSession) -> Any:
        launching: Deferred[Any]
        began = self._clock.seconds()
        span = self._begin_span(session)
        if session.environment:
            launching = self._launcher.launch_with(session, session.label, session.environment)
        else:
            launching = self._launcher.launch(session, session.label)
        self.launching.add(launching)
        if not launching.called or launching.paused:
            launching.addTimeout(LAUNCH_SECONDS, self._clock)
        try:
            backend = await launching
            self.counters.spawn_seconds.add(self._clock.seconds() - began)
            self.cannot_start = None
            if span is not None:
                span.end()
                span = None
            return backend
        except CancelledError:
            if self.stopping:
                raise ShuttingDown("the bridge is shutting down") from None
            raise
        except CannotStart as error:
            raise self._failed(session, str(error), error.exhausted) from None
        except defer.TimeoutError:
            why = f"the backend took longer than {LAUNCH_SECONDS:g} s to start"
            raise self._failed(session, why) from None
        finally:
            self.launching.discard(launching)
            if span is not None:
                span.end("not_started")

    def _begin_span(self, session: BackendSession) -> Span | None:
        if self._tracing is None:
            return None
        attributes = {"mcpbridge.server": self.settings.name, "mcp.session.id": session.label}
        return self._tracing.begin("mcpbridge spawn", attributes)

    def _failed(self, session: BackendSession, why: str, exhausted: bool = False) -> BackendFailed:
        if exhausted:
            # Not the server's fault: the machine has no descriptors, processes or memory left.
            self._exhausted.add(lambda: why)
        else:
            since = self._clock.seconds() if self.cannot_start is None else self.cannot_start[0]
            self.cannot_start = since, why
            self.counters.not_started += 1
            self.failures.not_opened(session.label, why)
            self.check.recover()
        return BackendFailed(why)

    def _closed(self, session: BackendSession) -> None:
        self.unclosed.discard(session)
        self.has_ended = True
        self.counters.closed(session.transport, session)
        self.counters.exited(session.backend.exit_status)
        guarded(self.log, "telling of a failure", self._log_failure, session)
        self.unattended.closed(session)
        if self.stopping:
            return
        # Those who wait come before the check, which has no client.  A spare process
        # is started a moment later, when they have had their turn.
        self.spares.capacity_freed()
        self.announce_capacity()
        if not self.retired:
            self.check.look()

    def _log_failure(self, session: BackendSession) -> None:
        self.failures.closed(session, warn=not self.stopping)

    def announce_capacity(self) -> None:
        """There may be a process, or capacity for one: tell those who wait, at all servers."""
        self._observer.capacity_freed()
        for pool in list(self._waiting):
            if pool is not self:
                pool.capacity_freed()

    def note_waiting(self, waiting: bool) -> None:
        """Note whether any request for a process of this server waits, which others then tell."""
        if waiting:
            self._waiting[self] = None
        else:
            self._waiting.pop(self, None)

    # Giving way: YieldingPool.

    @property
    def process_count(self) -> int:
        """How many processes hold a permit, those that are being launched among them."""
        return len(self.unclosed) + len(self.launching)

    @property
    def exceeds_guarantee(self) -> bool:
        """True if the end of one of its processes helps other servers."""
        return self._bridge_limiter is None or self._bridge_limiter.exceeds_guarantee

    def unused(self) -> BackendSession | None:
        """
        Return a process that nobody uses just now.  Spare ones come late, and that of a
        check last.
        """
        session = self._observer.idle_process()
        return session or self.spares.newest() or self.check.process

    def end_unused(self, session: BackendSession) -> None:
        """End the process that `unused` has returned."""
        self.spares.discard(session)
        self.check.discard(session)
        session.life.end("another process needed its slot")

    def capacity_freed(self) -> None:
        """Tell those who wait for a process of this server that they may get one."""
        self._observer.capacity_freed()
