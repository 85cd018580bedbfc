"""
The processes of one server: each is started when somebody wants it, or ahead
of that, and holds a permit until nothing of it is left.

Knows sessions that nobody has yet; must not know what they will be used for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any, Protocol, cast
from uuid import uuid4

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    KEPT_STARTS,
    LAUNCH_SECONDS,
    MAX_BACKOFF_SECONDS,
    ROOM_TRIES,
    SETTLED_SECONDS,
    STARVED_SECONDS,
    STOP_SLACK_SECONDS,
    WARM_SECONDS,
)
from mcpbridge.errors import BackendFailed, CannotStart, Stopping, TooManyOfAddress, TooManySessions
from mcpbridge.guard import guarded
from mcpbridge.processes.abandoned import AbandonedSessions, Due, Newcomer, first_for, first_of
from mcpbridge.processes.address_shares import Claim, Claims
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.buffered_output import BufferedOutput
from mcpbridge.processes.failures import Failures
from mcpbridge.processes.first_start import FirstStart
from mcpbridge.processes.kept_start import KeptStart
from mcpbridge.processes.message_filters import MessageFilters
from mcpbridge.processes.permits import RefusalLog, SessionLimiter
from mcpbridge.processes.start_check import StartCheck, neutral_initialize
from mcpbridge.processes.stderr import ServerStderr
from mcpbridge.rate_limited_log import RateLimitedLog


class PoolObserver(Protocol):
    """Who uses the processes of a pool once it has handed them out."""

    def idle_process(self) -> BackendSession | None:
        """A process that nobody uses just now, which may be ended; or None."""
        ...

    def capacity_freed(self) -> None:
        """A process is gone, and there may be room for another."""


class NoObserver:
    """Whoever takes a process from this pool never gives one back."""

    def idle_process(self) -> BackendSession | None:
        """There is none."""
        return None

    def capacity_freed(self) -> None:
        """Nobody waits for that."""


class ProcessPool:
    """
    Hands out processes that nobody has used, within the limits.

    `warm` of them are kept ready, started one at a time, never beyond what
    the limiter allows, replaced when they are too old.  `limiter` is a
    `CombinedLimiter`, and `over_all` the part of it that is for all servers.
    `claims` are the shares of client addresses.  `pools` are those of all
    servers of the bridge, whose unused processes may have to make room for one
    another: the pool adds itself.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        *,
        launcher: Any,
        limiter: Any,
        over_all: SessionLimiter | None = None,
        observers: Sequence[Any] = (),
        filters: Sequence[Any] = (),
        greeting: Callable[[], bytes] = neutral_initialize,
        claims: Claims | None = None,
        observer: PoolObserver | None = None,
        pools: list[ProcessPool] | None = None,
    ) -> None:
        self.settings = settings
        #: The sessions that may have to give way where the limits are reached.
        self.abandoned = AbandonedSessions(settings)
        self.backoff = StartBackoff(settings.name)
        #: Whether it can be started, where that is in doubt.
        self.check = StartCheck(
            settings,
            clock,
            self.backoff,
            acquire=limiter.acquire,
            start=self._start,
            failed=self.fail,
            greeting=greeting,
        )
        #: All that are not closed, whoever has them.
        self.unclosed: set[BackendSession] = set()
        self._observer = observer or NoObserver()
        self._pools = [] if pools is None else pools
        self._pools.append(self)
        #: Whether no process is started any more.
        self.stopping = False
        self._clock = clock
        self._launcher = launcher
        self._limiter = limiter
        self._over_all = over_all
        self._claims = claims or Claims()
        self._observers = observers
        self._filters = MessageFilters(filters) if filters else None
        self._stderr = ServerStderr(settings, clock)
        self.failures = Failures(settings, clock, self._stderr)
        self._refusals = RefusalLog(settings.name, clock)
        self._exhausted = RefusalLog(settings.name, clock, "cannot start backends")
        self._impatient = RateLimitedLog(clock)
        #: Processes that go on starting without a client, until nothing of them is left.
        self._kept: dict[BackendSession, KeptStart] = {}
        self._first = FirstStart(self.backoff, clock, settings.max_waiting_requests)
        self._spares: deque[BackendSession] = deque()
        self._launching: set[Deferred[Any]] = set()
        self._warming = False
        #: Whether the limits allowed no spare process when one was to be started.
        self._starved = False
        #: No spare process is started or replaced before.
        self._earliest = 0.0
        self._tending = False
        self._wake: IDelayedCall | None = None
        #: Says that there is room, when the next abandoned session may be ended.
        self._room: IDelayedCall | None = None

    async def take(self, newcomer: Newcomer | None = None) -> BackendSession:
        """
        A session with a backend that nobody has used, and no stream yet.  For
        a newcomer an abandoned session is ended, where the limits are reached.

        Raises `TooManySessions`, `BackendFailed`, `ServerDown` and
        `Stopping`; then no permit is held and no process left.
        """
        if self.stopping:
            raise Stopping("the bridge is shutting down")
        if self._kept:
            await self._first_start()
        if self._spares:
            return self._take_spare()
        self.backoff.check(self._clock.seconds())
        return await self._start(await self._make_room(newcomer))

    async def claim(self, address: str | None, amount: float = 1) -> Claim | None:
        """
        So much of the shares of an address, for which its own abandoned
        sessions are ended.  Raises `TooManyOfAddress` and `Stopping`.
        """
        for _ in range(ROOM_TRIES):
            due = self._own_due(address, amount)
            if due is None or due.at > self._clock.seconds():
                break
            if not await self._ended_for(due):
                break
        try:
            return self._claims.take(address, amount)
        except TooManyOfAddress as error:
            self._say_when(error, self._own_due(address, amount))
            raise

    def start(self) -> None:
        """Begin to keep processes ready."""
        self._stderr.start()
        self._warming = self.settings.warm > 0
        self._not_before(WARM_SECONDS)

    def begin_stop(self) -> None:
        """Start no more processes."""
        self.stopping = True

    def stop(self) -> Deferred[Any]:
        """End all processes; fires when nothing of them is left."""
        self.begin_stop()
        self.check.stop()
        self._no_wake()
        self._no_room()
        self._first.over()
        for launching in list(self._launching):
            launching.cancel()
        unclosed = list(self.unclosed)
        for session in unclosed:
            session.life.end("the bridge stops")
        gone = DeferredList([session.gone() for session in unclosed])
        return gone.addCallback(self._close_stderr)

    def _close_stderr(self, result: Any) -> Any:
        guarded(self.log, "closing the file of stderr", self._stderr.stop)
        return result

    def is_full(self, newcomer: Newcomer | None = None) -> bool:
        """Whether `take` would raise `TooManySessions` now."""
        if self.stopping or self._spares or self.backoff.wait(self._clock.seconds()):
            return False
        if not self._limiter.is_full():
            return False
        if any(pool.has_unused() or pool.free_start() for pool in self._who_may_give()):
            return False
        due = self._due_for(newcomer)
        return due is None or due.at > self._clock.seconds()

    def too_many(self, newcomer: Newcomer | None) -> TooManySessions:
        """What a newcomer is told for whom there is no room; it knows when there may be."""
        error = TooManySessions("too many concurrent MCP sessions")
        due = self._due_for(newcomer)
        self._say_when(error, due)
        if due is not None:
            self._tell_room_at(due.at)
        return error

    # Starting.

    async def _start(self, permit: Any) -> BackendSession:
        try:
            session = BackendSession(
                ident=str(uuid4()),
                server=self.settings.name,
                clock=self._clock,
                permit=permit,
                forget=self._lost,
                closed=self._closed,
                observers=self._observers,
                filters=self._filters,
                stderr_notifications=False,
                stderr=self._stderr.process(),
                complain=self.failures.misbehaved,
                announced=False,
            )
            session.started(await self._launch(session))
        except BaseException:
            permit.release()
            self.tell_room()
            raise
        self.unclosed.add(session)
        return session

    async def _launch(self, session: BackendSession) -> Any:
        launching = cast("Deferred[Any]", self._launcher.launch(session, session.label))
        self._launching.add(launching)
        if not launching.called or launching.paused:
            launching.addTimeout(LAUNCH_SECONDS, self._clock)
        try:
            return await launching
        except CancelledError:
            if self.stopping:
                raise Stopping("the bridge is shutting down") from None
            raise
        except CannotStart as error:
            raise self._failed(session, str(error), error.exhausted) from None
        except defer.TimeoutError:
            why = f"the backend took longer than {LAUNCH_SECONDS:g} s to start"
            raise self._failed(session, why) from None
        finally:
            self._launching.discard(launching)

    def _failed(self, session: BackendSession, why: str, exhausted: bool = False) -> BackendFailed:
        if exhausted:
            self._exhausted.add(lambda: why)
            return BackendFailed(why)
        self.failures.not_opened(session.label, why)
        return BackendFailed(why)

    # Room.

    async def _make_room(self, newcomer: Newcomer | None) -> Any:
        """
        A permit; for it processes that nobody uses are ended, if need be, and
        then sessions that their clients have abandoned.
        """
        for _ in range(ROOM_TRIES):
            permit = self._limiter.acquire()
            if permit is not None:
                return permit
            given = (pool.give_one_up() for pool in self._who_may_give())
            session = next((each for each in given if each is not None), None)
            session = session or self._start_of_a_neighbour()
            due = None if session is not None else self._due_for(newcomer)
            if session is not None:
                gone = await self.gone_in_time(session)
            elif due is not None and due.at <= self._clock.seconds():
                gone = await self._ended_for(due)
            elif (kept := self.free_start()) is not None:
                gone = await self._kept_gone(kept)
            else:
                break
            if self.stopping:
                raise Stopping("the bridge is shutting down")
            if not gone:
                break
        raise self.too_many(newcomer)

    # Starts whose clients have left.

    def keep_start(self, session: BackendSession, why: str) -> bool:
        """
        The client of a session has left while its process starts: let that go
        on, where the bounds allow it.  It keeps its permit, and ends when it
        has started, or after `start_timeout`.
        """
        left = session.opened_at + self.settings.start_timeout - self._clock.seconds()
        if self.stopping or len(self._kept) >= KEPT_STARTS or left <= 0:
            return False
        self._kept[session] = KeptStart(session, why, left, self._first.over)
        self._impatient.add()
        count = self._impatient.due()
        if count is not None:
            self.log.warn(
                "server {server!r}: a client left after {seconds:.1f} s, before its process had"
                " answered; that goes on starting for up to {timeout:g} s (start_timeout), so that"
                " the next one need not install what it installs. With `warm` processes are"
                " started before clients come. Clients that left so since this was said last:"
                " {count}",
                server=self.settings.name,
                seconds=self._clock.seconds() - session.opened_at,
                timeout=self.settings.start_timeout,
                count=count,
            )
        return True

    def free_start(self) -> BackendSession | None:
        """One of these for whose place nobody waits."""
        return next((each for each, kept in self._kept.items() if not kept.promised), None)

    async def _first_start(self) -> None:
        """Wait for the one that is kept, which is ahead of any other."""
        await self._first.wait(lambda: not all(kept.over for kept in self._kept.values()))
        if self.stopping:
            raise Stopping("the bridge is shutting down")

    def _start_of_a_neighbour(self) -> BackendSession | None:
        """End one of another server: it is nobody's, and somebody needs its place."""
        for pool in self._who_may_give():
            session = None if pool is self else pool.free_start()
            if session is not None:
                pool._kept[session].promised = True
                pool._kept[session].end("its place was needed")
                return session
        return None

    async def _kept_gone(self, session: BackendSession) -> bool:
        """Wait for the place of one of our own, which is ahead of any other that were started."""
        kept = self._kept[session]
        kept.promised = True
        patience = kept.until - self._clock.seconds()
        patience += self.settings.stop_grace + self.settings.kill_grace + STOP_SLACK_SECONDS
        try:
            await session.gone().addTimeout(max(0.0, patience), self._clock)
        except defer.TimeoutError:
            return False
        finally:
            kept.promised = False
        return True

    # Abandoned sessions.

    def _due_for(self, newcomer: Newcomer | None) -> Due | None:
        """The abandoned session that gives way to a newcomer next, now or later."""
        # Another limiter than these is not known to be helped by that.
        if newcomer is None or not self._limiter.is_full():
            return None
        over_all = self._is_over_all_full()
        limit = self.settings.max_sessions
        if over_all and self._over_all is not None:
            limit = self._over_all.limit
        above = partial(
            self._claims.above, newcomer=newcomer.address, limit=limit, over_all=over_all
        )
        where = [pool.abandoned for pool in self._who_may_give()]
        return first_for(newcomer, where, above, self._clock.seconds())

    def _own_due(self, address: str | None, amount: float) -> Due | None:
        """The same of an address that has its share, and among its own sessions."""
        over = self._claims.over(address, amount)
        if over is None:
            return None
        pools = self._all_pools() if self._claims.is_over_all(over) else [self]
        return first_of(address, [pool.abandoned for pool in pools], self._clock.seconds())

    async def _ended_for(self, due: Due) -> bool:
        """End an abandoned session; whether nothing is left of it when that is due."""
        due.session.life.end("its client has abandoned it, and its place was needed")
        return await self.gone_in_time(due.session)

    def _say_when(self, error: TooManySessions, due: Due | None) -> None:
        if due is not None:
            error.retry_after = max(1, ceil(due.at - self._clock.seconds()))

    def _tell_room_at(self, at: float) -> None:
        """Who waits in line is told then that a session may be ended; one timer for all."""
        if self.stopping or (self._room is not None and self._room.getTime() <= at):
            return
        self._no_room()
        delay = max(0.0, at - self._clock.seconds())
        self._room = self._clock.callLater(delay, self._room_due)

    def _room_due(self) -> None:
        self._room = None
        self._observer.capacity_freed()

    def _no_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.cancel()

    async def gone_in_time(self, session: BackendSession) -> bool:
        """Whether nothing of a session that was told to end is left when that is due."""
        settings = self.settings
        patience = settings.stop_grace + settings.kill_grace + STOP_SLACK_SECONDS
        try:
            await session.gone().addTimeout(patience, self._clock)
        except defer.TimeoutError:
            return False
        return True

    def refused(self) -> None:
        """Somebody was refused for want of room: the log is told."""
        self._refusals.add(self._why_full)

    def _why_full(self) -> str:
        ours = len(self.unclosed) + len(self._launching)
        if ours >= self.settings.max_sessions:
            limit = f"its max_sessions is {self.settings.max_sessions}"
        elif self._over_all is not None and self._over_all.is_full():
            limit = f"the bridge's max_sessions is {self._over_all.limit}"
        else:
            limit = "a limiter, or the number that may wait, allows no more"
        return f"it has {ours} processes, and {limit}"

    def _who_may_give(self) -> Sequence[ProcessPool]:
        """Whose processes may be ended for one of ours."""
        return self._all_pools() if self._is_over_all_full() else [self]

    def _all_pools(self) -> list[ProcessPool]:
        """This pool, and those of the other servers."""
        return [self, *(each for each in self._pools if each is not self)]

    def _is_over_all_full(self) -> bool:
        """Whether it is the bridge's limit that is reached, and not the server's own."""
        # Each holds a permit; where they are as many as may be, no other server can help.
        ours = len(self.unclosed) + len(self._launching)
        return (
            ours < self.settings.max_sessions
            and self._over_all is not None
            and self._over_all.is_full()
        )

    def has_unused(self) -> bool:
        """Whether there is a process that nobody uses just now."""
        return bool(self._spares) or self._observer.idle_process() is not None

    def has_leaving(self) -> bool:
        """Whether a process is about to end, or to be there: who waits is told."""
        return bool(self._launching or self._kept) or any(each.leaving for each in self.unclosed)

    def give_one_up(self) -> BackendSession | None:
        """End a process that nobody uses just now, if there is one."""
        session = self._observer.idle_process()
        if session is None and self._spares:
            session = self._spares.pop()
        if session is not None:
            session.life.end("its place was needed")
        return session

    # Spare processes.

    def _take_spare(self) -> BackendSession:
        session = self._spares.popleft()
        lines = cast("BufferedOutput", session.adapter).lines
        session.adapt(None)
        if self._age(session) >= SETTLED_SECONDS:
            self.backoff.succeeded()
        if lines:
            # What comes in this turn would overtake them.
            session.pause_backend()
            self._clock.callLater(0, self._hand_on, session, lines)
        self._not_before(WARM_SECONDS)
        return session

    def _hand_on(self, session: BackendSession, lines: list[bytes]) -> None:
        """What a process said while nobody had it, for who has it now."""
        if session.receiving:
            session.resume_backend()
            session.messages_received(lines)

    def _age(self, session: BackendSession) -> float:
        return self._clock.seconds() - session.opened_at

    def _not_before(self, delay: float) -> None:
        """Leave the spare processes as they are for so long."""
        self._earliest = self._clock.seconds() + delay
        self._look()

    def _look(self) -> None:
        """Wake when there is something to do next; a step under way looks at its end."""
        self._no_wake()
        if self.stopping or not self._warming or self._tending:
            return
        due = self._due()
        if due is not None:
            delay = max(0.0, due - self._clock.seconds())
            self._wake = self._clock.callLater(delay, self._wake_up)

    def _due(self) -> float | None:
        """When a spare process is to be started, or replaced."""
        if len(self._spares) < self.settings.warm:
            now = self._clock.seconds()
            return max(self._earliest, now + self.backoff.wait(now))
        if not self.settings.max_process_age:
            return None
        return max(self._earliest, self._spares[0].opened_at + self.settings.max_process_age)

    def _wake_up(self) -> None:
        self._wake = None
        Deferred.fromCoroutine(self._tend()).addErrback(self._not_tended)

    def _not_tended(self, failure: Failure) -> None:
        self.log.failure("keeping processes ready failed", failure)
        self.fail("something failed that should not; the log has more")

    async def _tend(self) -> None:
        """One step, and one at a time."""
        self._tending = True
        try:
            self._retire()
            if len(self._spares) < self.settings.warm:
                await self._add_spare()
        finally:
            self._tending = False
            self._not_before(STARVED_SECONDS if self._starved else WARM_SECONDS)

    def _retire(self) -> None:
        age = self.settings.max_process_age
        if self._spares and age and self._spares[0].opened_at + age <= self._clock.seconds():
            session = self._spares.popleft()
            if self._age(session) >= SETTLED_SECONDS:
                self.backoff.succeeded()
            session.life.end("it has waited long enough")

    async def _add_spare(self) -> None:
        permit = self._limiter.acquire()
        self._starved = permit is None
        if self._starved:
            return
        try:
            session = await self._start(permit)
        except Stopping:
            return
        except BackendFailed as error:
            self.fail(str(error))
            return
        session.adapt(BufferedOutput(session))
        self._spares.append(session)
        self.tell_room()

    def fail(self, why: str) -> None:
        """A process was of no use: leave the server alone for a while."""
        self.backoff.failed(self._clock.seconds(), why)
        self._look()

    # Ends.

    def _lost(self, session: BackendSession) -> None:
        """
        A spare process has ended, or is about to; where nobody told it to and
        it was not there for long, that is a failed start.
        """
        if session not in self._spares:
            return
        self._spares.remove(session)
        why = session.reason or "it ended before it was used"
        # Nobody reads what it still has to say.
        session.life.end(why)
        if self.stopping:
            return
        if self._age(session) < MAX_BACKOFF_SECONDS:
            self.fail(why)
        else:
            self.backoff.succeeded()
            self._look()

    def _closed(self, session: BackendSession) -> None:
        self.unclosed.discard(session)
        guarded(self.log, "telling of a failure", self._tell_failure, session)
        self._kept.pop(session, None)
        if self.stopping:
            return
        if self._starved:
            self._starved = False
            self._earliest = self._clock.seconds() + WARM_SECONDS
        self._look()
        self.tell_room()
        # Those who wait come first.
        self.check.look()

    def _tell_failure(self, session: BackendSession) -> None:
        self.failures.closed(session, said=not self.stopping)

    def tell_room(self) -> None:
        """There may be a process, or room for one: here, or at another server."""
        self._observer.capacity_freed()
        for pool in self._pools:
            if pool is not self:
                pool._observer.capacity_freed()

    def _no_wake(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and wake.active():
            wake.cancel()
