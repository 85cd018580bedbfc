"""
A named server: its settings, its processes, and the tables of its live sessions.

The one place that decides about a client's message, whichever transport it came
by.  Knows sessions; must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from random import random
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.audit_log import AuditLog, Transport
from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.config.settings import ServerSettings, share_of
from mcpbridge.config.tuning import REMOVED_SECONDS
from mcpbridge.counters import ServerCounters
from mcpbridge.errors import (
    MessageTooLarge,
    NotFound,
    Refused,
    ShuttingDown,
    TooComplex,
    TooManySessions,
    TooManyStreams,
    Unauthorized,
    UnknownSession,
)
from mcpbridge.generation import Extensions, ProcessGeneration
from mcpbridge.guard import guarded
from mcpbridge.interfaces import IKillableBackend
from mcpbridge.jsonrpc.envelope import check_id, peek, read_message, split_batch
from mcpbridge.jsonrpc.large_messages import (
    read_foreign_batch,
    read_large,
    read_whole,
    read_whole_later,
)
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, WHOLE_BYTES
from mcpbridge.mcp.header_validation import Headers
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.name_rules import Kind
from mcpbridge.mcp.open_requests import OpenRequests
from mcpbridge.mcp.operations import read_large_operations, read_operations
from mcpbridge.mcp.subscriptions import list_changes
from mcpbridge.processes.abandoned_sessions import Newcomer
from mcpbridge.processes.address_shares import Claim, Claims, Shares
from mcpbridge.processes.audited_calls import AuditedRequest, AuditedSession, record_refusal
from mcpbridge.processes.backend_session import BackendSession, Sink
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.endings import ClientLeft, EndedByOperator, NotAdmitted, Removed, kind_of
from mcpbridge.processes.failures import KEPT_FAILURES, Failure
from mcpbridge.processes.measured_calls import MeasuredRequest, MeasuredSession, Measures
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.processes.rates import RateLimit
from mcpbridge.processes.server_state import ServerState, state_of
from mcpbridge.processes.traced_calls import TracedSession, begin_request
from mcpbridge.processes.visibility import Visibility
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.session.negotiation import first_adapter, is_starting
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.sliced_work import SlicedWork
from mcpbridge.stateless.exchange import Exchange, Work
from mcpbridge.timers import Timer
from mcpbridge.tracing.tracing import HttpContext, RequestSpans, Tracing

#: What a client is told of a server that is not in the settings any more.
REMOVED = "this server is not served any more; ask its operator"
#: Why a session ends whose client could not open it any more.
NOT_ADMITTED = NotAdmitted("the settings do not admit its client any more")
#: Settings with which new processes need not be started.
_IN_PLACE = frozenset({"auth", "tools", "prompts", "resources"})


class Server:
    """
    Opens sessions, finds them, and ends them all when the bridge stops.

    `limiter` is a `CombinedLimiter`, and `bridge_limiter` the part of it that
    all servers share, `own_limit` the part that follows its settings, if it has one;
    `launcher`, `observers` and `filters` provide the interfaces of those names.
    `shares` are those of client addresses over all servers.
    `work` is shared by all servers of a bridge, so that only one large message
    at a time keeps others waiting.
    `pools` are the process pools of all servers of the bridge, and `jitter`
    varies the pauses between failed starts (`StartBackoff`).  `access_control` admits the
    callers; None admits everybody.  `audit` gets a record of each message of a client.
    `counters` are its own, and with `measure` requests are measured, too; with `tracing`
    they are recorded.

    A session belongs to the caller who has opened it (`Access.key`).  For any other caller
    it does not exist.

    `reconfigure` gives it other settings; `released` is called once nothing is left of the
    processes of before, and `drained` once that is so of a server that was removed from the
    settings (`remove`).
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
        own_limit: SessionLimiter | None = None,
        observers: Sequence[Any] = (),
        filters: Sequence[Any] = (),
        event_store: Any = None,
        budget: ResponseBudget | None = None,
        shares: Sequence[Shares] = (),
        streams: Shares | None = None,
        work: SlicedWork | None = None,
        pools: list[ProcessPool] | None = None,
        jitter: Callable[[], float] = random,
        access_control: AccessControl | None = None,
        audit: AuditLog | None = None,
        counters: ServerCounters | None = None,
        measure: bool = False,
        tracing: Tracing | None = None,
        drained: Callable[[Server], object] = lambda server: None,
        released: Callable[[Extensions], object] = lambda extensions: None,
    ) -> None:
        self.audit = audit
        self.counters = counters or ServerCounters(settings.name)
        #: Measures the requests of clients; None where nobody wants that.
        self.measures: Measures | None = None
        if measure:
            self.measures = Measures(self.counters, clock, settings.metrics_tools)
        #: Records spans; None where nobody wants that.
        self.tracing = tracing
        self._budget = budget
        #: The live sessions of HTTP+SSE by id, and those of Streamable HTTP.
        self.sessions: dict[str, BackendSession] = {}
        self.streamable: dict[str, BackendSession] = {}
        self._clock = clock
        self._streams = streams
        self._jitter = jitter
        self._drained = drained
        self._released = released
        #: True once it was removed from the settings, while sessions of it go on.
        self.removed = False
        #: True once new sessions and requests are refused, as the bridge is about to stop.
        self.draining = False
        #: True between `start` and `stop`.
        self._running = False
        self._drain_timer = Timer(clock)
        #: Reads large messages in slices, for all servers of the bridge.
        self.work = work or SlicedWork(clock)
        self._bridge_limiter = bridge_limiter
        self._pools = [] if pools is None else pools
        #: The process pools of this server, of all generations.
        self._siblings: list[ProcessPool] = []
        self.settings = settings
        #: What is there for whom.
        self.visibility = Visibility(
            settings.name,
            settings.tools,
            settings.prompts,
            settings.resources,
            self._visibility_changed,
        )
        self._control_access(access_control)
        name = repr(settings.name)
        what = f"the sessions of server {name}"
        self._own_shares = _shares(settings, clock, what, of_identities=not self.is_open)
        self.claims = Claims(self._own_shares, *shares)
        #: How often a caller may open a session, and send a message.
        self.session_rate = RateLimit(
            settings.new_sessions_per_second,
            clock,
            what=f"requests for new sessions of server {name}",
            setting="new_sessions_per_second",
        )
        self.message_rate = RateLimit(
            settings.messages_per_second,
            clock,
            what=f"messages to server {name}",
            setting="messages_per_second",
        )
        #: The share of its client's address that each session holds.
        self._claim_of: dict[BackendSession, Claim] = {}
        #: Requests of 2026-07-28 that wait for a process, and those that last, and what ends
        #: each.  There are no more than connections.
        self._waiting: dict[object, tuple[Exchange, Callable[[], object]]] = {}
        self._lasting: dict[object, tuple[Exchange, Callable[[], object]]] = {}
        #: Those whose sessions and requests go on after new settings were loaded.
        self._retired: list[ProcessGeneration] = []
        extensions = Extensions(launcher, limiter, own_limit, observers, filters, event_store)
        self._generation = self._generate(extensions)

    def _generate(self, extensions: Extensions) -> ProcessGeneration:
        """Make what starts processes with the present settings."""
        generation = ProcessGeneration(
            self.settings,
            self._clock,
            extensions,
            bridge_limiter=self._bridge_limiter,
            claims=self.claims,
            pools=self._pools,
            siblings=self._siblings,
            over=self._over,
            visibility=self.visibility,
            counters=self.counters,
            tracing=self.tracing,
            jitter=self._jitter,
        )
        #: What those get who come now: looked up once, as each message needs some of it.
        self.pool, self.stateless = generation.pool, generation.stateless
        self.era = generation.era
        self._event_store = extensions.event_store
        #: True where filters or observers need to know who calls.
        self.tells_callers = bool(extensions.observers or extensions.filters)
        return generation

    def _control_access(self, control: AccessControl | None) -> None:
        self.access_control = control
        #: True if it depends on a message whether its caller may send it.
        self.reads_operations = self._reads_operations()

    # Other settings.

    @property
    def extensions(self) -> Extensions:
        """What starts, limits and watches its processes."""
        return self._generation.extensions

    def reconfigure(
        self,
        settings: ServerSettings,
        extensions: Extensions | None,
        access_control: AccessControl | None,
        shares: Sequence[Shares],
    ) -> None:
        """
        Serve with other settings from now on.

        Whoever comes gets processes of these settings, started by these `extensions`, or by
        those that there are if they are None; their limiter is the server's own.  Sessions
        and requests that have a process
        keep it.  Access and limits hold for all of them, at once.
        """
        self.settings = settings
        self.removed = False
        self._drain_timer.stop()
        if self.measures is not None:
            self.measures.change_tools(settings.metrics_tools)
        was_open = self.is_open
        self.change_access(access_control)
        self.visibility.replace(settings.tools, settings.prompts, settings.resources)
        self.session_rate.change(settings.new_sessions_per_second)
        self.message_rate.change(settings.messages_per_second)
        self._own_shares.limit = _share(settings, of_identities=not self.is_open)
        if was_open != self.is_open:
            what = f"the sessions of server {settings.name!r}"
            self._own_shares = _shares(settings, self._clock, what, of_identities=not self.is_open)
        self.claims.replace(self._own_shares, *shares)
        if self.extensions.own_limit is not None:
            self.extensions.own_limit.change(settings.max_sessions)
        check = self._rate_check
        for session in chain(self.sessions.values(), self.streamable.values()):
            session.check_rate = check(session.client)
        if self._bridge_limiter is not None:
            self._bridge_limiter.change(settings.max_sessions)
        if extensions is not None:
            both = (self._bridge_limiter, extensions.limiter)
            limiter = CombinedLimiter(*(each for each in both if each is not None))
            self._retire()
            self._generation = self._generate(extensions._replace(limiter=limiter))
            if self._running:
                self._generation.start()

    def remove(self) -> None:
        """Open no sessions any more; those that there are go on for `REMOVED_SECONDS`."""
        self.removed = True
        if self._bridge_limiter is not None:
            self._bridge_limiter.close()
        self._retire()
        self._drain_timer.start(REMOVED_SECONDS, self._end_removed)
        self._look_drained()

    def _end_removed(self) -> None:
        for session in list(self.unclosed):
            why = f"its server was removed {REMOVED_SECONDS:g} s ago (REMOVED_SECONDS)"
            session.life.end(Removed(why))

    def _retire(self) -> None:
        generation = self._generation
        if not generation.retired:
            self._retired.append(generation)
            generation.retire()

    def _over(self, generation: ProcessGeneration) -> None:
        """Nothing is left of a generation that was retired."""
        if generation in self._retired:
            self._retired.remove(generation)
            guarded(self.log, "letting go of a launcher", self._released, generation.extensions)
            self._look_drained()

    def _look_drained(self) -> None:
        if self.removed and not self._retired:
            self._drain_timer.stop()
            if self.measures is not None:
                self.measures.stop()
            self._drained(self)

    def change_access(self, control: AccessControl | None) -> None:
        """Have the access of callers decided otherwise, also of those who are here."""
        before = self.access_control
        self._control_access(control)
        if before is not None and control is not None:
            before.replace(control)

        # First what waits: it would get the processes of what ends.
        self._end_requests(self._waiting)
        for session in [*self.sessions.values(), *self.streamable.values()]:
            if not self.admits(session.access):
                session.life.end(NOT_ADMITTED)
        self._end_requests(self._lasting)

    def _end_requests(self, held: dict[object, tuple[Exchange, Callable[[], object]]]) -> None:
        for exchange, end in list(held.values()):
            if not self.admits(exchange.access):
                guarded(self.log, "ending a request", end)

    def admits(self, access: Access) -> bool:
        """Tell whether a caller that was admitted at some time is so under the settings of now."""
        control = self.access_control
        if control is None:
            # Nobody is known any more by whom a session could be found.
            return not access.key
        return control.still_admits(access)

    @property
    def longest_grace(self) -> float:
        """The most seconds for which its processes may take their time to end."""
        settings = [each.settings for each in self.generations]
        return max(each.stop_grace + each.kill_grace for each in settings)

    def _rate_check(self, client: str | None) -> Callable[[int], object] | None:
        return partial(self.message_rate.check, client) if self.message_rate.is_on else None

    @property
    def unclosed(self) -> set[BackendSession]:
        """All processes of which something is left, those of live sessions among them."""
        if not self._retired:
            return self.pool.unclosed
        return set().union(*(each.unclosed for each in self._siblings))

    @property
    def generations(self) -> list[ProcessGeneration]:
        """Those of which something is left, the present one among them."""
        return [*(each for each in self._retired if each is not self._generation), self._generation]

    async def open_streamable(
        self,
        client: str | None = None,
        caller: Caller | None = None,
        access: Access = ANYBODY,
        address: str | None = None,
    ) -> BackendSession:
        """
        Open a session of Streamable HTTP, with a `StreamableSession` for its
        sink.  Its client gets no stderr: it expects nothing but MCP.

        Takes and raises what `open_session` does.
        """
        event_store = self._event_store

        def make_sink(session: BackendSession) -> StreamableSession:
            events = event_store.open(session.ident)
            return StreamableSession(session, self.settings, self._clock, events, self._budget)

        # Its first message is to come: no process is started for one that is refused.
        self.message_rate.check(client, look=True)
        session = await self.open_session(
            make_sink,
            self.streamable,
            stderr_notifications=False,
            client=client,
            caller=caller,
            access=access,
            address=address,
        )
        streamable = cast("StreamableSession", session.sink)
        self._pool_of(session).abandoned.add(session, client, streamable.last_heard)
        return session

    async def open_session(
        self,
        make_sink: Callable[[BackendSession], Sink],
        table: dict[str, BackendSession] | None = None,
        *,
        stderr_notifications: bool = True,
        client: str | None = None,
        caller: Caller | None = None,
        access: Access = ANYBODY,
        address: str | None = None,
    ) -> BackendSession:
        """
        Open a session on a process that nobody has used, and add it to `table`.

        `make_sink` is called once the backend runs.  `client` is the address
        whose share the session counts against, until nothing of it is left;
        `caller` is what filters and observers are told of the client, and `access` as
        what it was admitted, with its variables for the process (`env_from`).  `address` is
        the client's, for the audit log.

        Raises `NotFound` if the server was removed, `ShuttingDown`, `RateExceeded`,
        `TooManyOfAddress`, and what `ProcessPool.take` raises; then no permit is held and no
        process left.
        """
        self._check_open(access)
        self.session_rate.check(client)
        live = self.sessions if table is None else table
        claim = await self.pool.claim(client)
        try:
            # Other settings may have been loaded meanwhile, and while its process starts.
            self._check_open(access)
            generation = self._generation
            pool, era = generation.pool, generation.era
            session = await pool.take(Newcomer(client), access.environment)
            try:
                self._check_open(access)
            except Refused:
                session.life.end(Removed("the settings have changed while it started"))
                raise
        except BaseException as error:
            if claim is not None:
                claim.release()
            if isinstance(error, TooManySessions):
                self.pool.log_refusal()
            raise
        if claim is not None:
            self._claim_of[session] = claim
            session.ended.addCallback(lambda _: self._release(session))
        session.open(
            partial(self._forget, live, pool),
            adapter=first_adapter(
                session, era, pool.backoff, pool.check.doubt, generation.settings.start_timeout
            ),
            caller=caller,
            access=access,
            stderr_notifications=stderr_notifications and generation.settings.stderr_notifications,
        )
        session.client = client
        session.transport = "sse" if live is self.sessions else "streamable-http"
        if self.measures is not None:
            session.measured = MeasuredSession(self.measures)
        if self.tracing is not None:
            session.recorder = TracedSession(
                self.tracing,
                server=self.settings.name,
                session=session.label,
                backend=self._backend_transport,
            )
        session.check_rate = self._rate_check(client)
        if live is self.sessions:
            session.requests = OpenRequests()
        if self.visibility.rules is not None:
            session.visibility = self.visibility
        if self.audit is not None:
            session.audited = AuditedSession(
                self.audit,
                self._clock,
                server=self.settings.name,
                session=session.label,
                transport="sse" if session.transport == "sse" else "streamable-http",
                identity=access.name,
            )
        try:
            session.connect(make_sink(session))
        except BaseException:
            session.life.end(ClientLeft("the stream could not be opened"))
            raise
        if session.audited is not None and live is self.sessions:
            # That of Streamable HTTP has a record of its `initialize`.
            session.audited.done("a stream and its session were opened", address)
        live[session.ident] = session
        self.counters.sessions_opened[session.transport] += 1
        pool.failures.watch(session)
        return session

    def _check_open(self, access: Access) -> None:
        """
        Raise `ShuttingDown`, `NotFound` and `Unauthorized` where this caller may open no
        session now.
        """
        if self.draining:
            raise _shutting_down()
        if self.removed:
            raise NotFound(REMOVED)
        self.check_admitted(access)

    def hold_stream(self, access: Access) -> Callable[[object], None]:
        """
        Count an open stream of a caller; return what is to be called, once and with
        anything, when it has ended.

        A stream takes a connection for as long as its client likes, and where the caller
        is known, its address may be that of many, or exempt.  Callers without an identity
        are not counted here.  Raises `TooManyStreams`.
        """
        streams, name = self._streams, access.name
        if streams is None or not name:
            return lambda result: None
        if not streams.take(name):
            raise TooManyStreams(
                f"{streams.whose} has reached its limit of open streams: {streams.limit}"
                f" ({streams.setting})"
            )
        return lambda result: streams.give_back(name)

    def hold_request(
        self, exchange: Exchange, end: Callable[[], object], *, waits: bool = False
    ) -> Callable[[object], None]:
        """
        Have `end` called when other settings do not admit the caller of a request of
        2026-07-28 any more, which may run for long, or `waits` for a process; return what is
        to be called, with anything, when it is over.
        """
        held, key = self._waiting if waits else self._lasting, object()
        held[key] = exchange, end
        if not self.admits(exchange.access):
            # Other settings were loaded between its admission and now.
            guarded(self.log, "ending a request", end)

        def release(result: object) -> None:
            held.pop(key, None)

        return release

    def audited(
        self, request: ModernRequest, access: Access, address: str | None, size: int
    ) -> AuditedRequest | None:
        """Return what makes the record of a request of so many bytes; None without a log."""
        if self.audit is None:
            return None
        return AuditedRequest(
            self.audit,
            self._clock,
            request,
            server=self.settings.name,
            identity=access.name,
            address=address,
            size=size,
        )

    def measured(self, request: ModernRequest, size: int) -> MeasuredRequest | None:
        """Return what measures a request of so many bytes; None where nobody wants that."""
        return None if self.measures is None else self.measures.request(request, size)

    def traced(
        self, request: ModernRequest, http: HttpContext, *, large: bool = False
    ) -> tuple[ModernRequest, RequestSpans | None]:
        """
        Return a request as it is to be worked on, and its spans if it is recorded.

        `http` is the context of its HTTP request.  A `large` one is neither searched for a
        parent nor written anew: others would have to wait.
        """
        tracing = self.tracing
        parent = None if tracing is None else tracing.parent_of({} if large else request.meta)
        if tracing is None or parent is None:
            return request, None
        return begin_request(
            tracing,
            request,
            parent,
            server=self.settings.name,
            backend=self._backend_transport,
            http=http,
            large=large,
        )

    @property
    def _backend_transport(self) -> str:
        return "tcp" if self.settings.is_remote else "pipe"

    def note_refusal(
        self,
        refusal: Refused,
        access: Access,
        *,
        address: Callable[[], str | None],
        transport: Transport,
        size: int = 0,
    ) -> None:
        """Count an HTTP request that was refused, and have a record made unless it has one."""
        self.counters.refusals[type(refusal).__name__] += 1
        if self.audit is not None:
            record_refusal(
                self.audit,
                refusal,
                server=self.settings.name,
                identity=access.name,
                address=address(),
                transport=transport,
                size=size,
            )

    def end_for_client(self, session: BackendSession, address: str | None = None) -> None:
        """End a session because its client wants that; `address` is for the audit log."""
        if session.audited is not None:
            session.audited.done("the session was ended", address)
        session.life.end(ClientLeft("the client ended it"))

    def client_left(self, session: BackendSession, why: str) -> None:
        """
        End a session whose client is gone for good.  A process that has not
        answered `initialize` may be kept until it has started.
        """
        why = ClientLeft(why)
        if is_starting(session) and self._pool_of(session).keep_start(session, why):
            # The process serves nobody now, so its client may have another session.
            self._release(session)
        else:
            session.life.end(why)

    def _pool_of(self, session: BackendSession) -> ProcessPool:
        """Return the pool that a session's process is of."""
        return next((each for each in self._siblings if session in each.unclosed), self.pool)

    def _release(self, session: BackendSession) -> None:
        claim = self._claim_of.pop(session, None)
        if claim is not None:
            claim.release()

    def refusal(self, client: Callable[[], str | None]) -> TooManySessions | None:
        """
        Return the error for a session that is requested now and for which
        there is no process; None where there is one.  `client` returns the
        address whose share it would count against, and is called only if that
        matters.
        """
        if not self.pool.is_full():
            return None
        newcomer = Newcomer(client())
        return self.pool.too_many(newcomer) if self.pool.is_full(newcomer) else None

    @property
    def is_open(self) -> bool:
        """True if everybody may use the server."""
        return self.access_control is None or not self.access_control.identifies

    def state(self) -> ServerState:
        """Return whether it is ready, starting, failing or being removed, and why."""
        pool, era = self.pool, self.era
        return state_of(
            pool.backoff,
            pool.unclosed,
            pool.spares,
            self._clock.seconds(),
            answered=era.known.info is not None or era.legacy is not None or era.modern is not None,
            ended=pool.has_ended,
            cannot_start=pool.cannot_start,
            stopping=pool.stopping or self.removed,
        )

    # For operators.

    @property
    def pools(self) -> list[ProcessPool]:
        """Its process pools: that of the present settings, and those of before."""
        return list(self._siblings)

    @property
    def waiting(self) -> int:
        """How many requests of 2026-07-28 wait for a process."""
        return sum(each.stateless.waiting_count for each in self.generations)

    @property
    def recent_failures(self) -> list[Failure]:
        """The last failures of its processes, the newest first."""
        found = [failure for pool in self._siblings for failure in pool.failures.recent]
        return sorted(found, reverse=True)[:KEPT_FAILURES]

    def end_session(self, session: BackendSession, why: str) -> None:
        """End one of its sessions or other processes, because an operator wants that."""
        # A spare process that ends by itself is a failed start.
        self._pool_of(session).spares.discard(session)
        session.life.end(EndedByOperator(why))

    def check_admitted(self, access: Access) -> None:
        """
        Raise `Unauthorized` for work for a caller whom nobody has admitted, or whom the
        settings do not admit any more.
        """
        if not self.admits(access):
            raise Unauthorized("the settings have changed; send the request again")

    def find(self, ident: str, access: Access = ANYBODY) -> BackendSession:
        """
        Return the live session of HTTP+SSE with this id, of this caller.  Raises
        `UnknownSession`; and `ShuttingDown`, where it may have ended for that.
        """
        return self._of_caller(self.sessions.get(ident), access)

    def find_streamable(self, ident: str, access: Access = ANYBODY) -> BackendSession:
        """
        Return the live session of Streamable HTTP with this id, of this caller.  Raises
        what `find` raises.
        """
        return self._of_caller(self.streamable.get(ident), access)

    def _of_caller(self, session: BackendSession | None, access: Access) -> BackendSession:
        """
        Return a session, if it is of this caller, who has access to it from now on as long as
        by this request.  Raises the same error for one that does not exist.
        """
        if session is None or session.owner != access.key:
            if self.draining:
                raise _shutting_down()
            raise UnknownSession("no such session, or it has ended")
        if access.until > session.access_until:
            session.access_until = access.until
        return session

    def has_streamable(self, ident: str, access: Access) -> bool:
        """Tell whether `find_streamable` would return a session."""
        session = self.streamable.get(ident)
        return session is not None and session.owner == access.key

    def check_size(self, body: bytes) -> None:
        """Raise `MessageTooLarge` for a body beyond `max_message_bytes`."""
        if len(body) > self.settings.max_message_bytes:
            raise MessageTooLarge(f"a message may have {self.settings.max_message_bytes} bytes")

    def _reads_operations(self) -> bool:
        control = self.access_control
        has_rules = control is not None and control.rules.reads_messages
        return has_rules or self.visibility.rules is not None

    def _visibility_changed(self, kinds: Collection[Kind]) -> None:
        """Have the lists hold for those who are here, and tell them of it as a server does."""
        self.reads_operations = self._reads_operations()
        visibility = None if self.visibility.rules is None else self.visibility
        for table in (self.sessions, self.streamable):
            for session in list(table.values()):
                session.visibility = visibility
                told = [kind for kind in kinds if kind in session.told_lists]
                if told:
                    lines = [each.line for each in list_changes(told)]
                    guarded(self.log, "telling of other lists", session.send_as_backend, lines)
        changes = list(list_changes(kinds))
        for exchange in {exchange for exchange, _ in self._lasting.values()}:
            guarded(self.log, "telling of other lists", exchange.tell, changes)

    def check_operations(self, body: bytes, access: Access, path: str) -> None:
        """
        Raise `InsufficientScope` for a small message, or a batch, that its caller may not
        send, and `NotJsonRpc` for one that a server may read in another way than the bridge;
        call this where `reads_operations`.  `path` is that of the request.
        """
        operations = read_operations(body)
        if self.access_control is not None:
            self.access_control.check_operations(access, operations, path)

    async def check_large_operations(self, body: bytes, access: Access, path: str) -> None:
        """Do the same for a message of any size, which is read in slices."""
        most = self.settings.max_waiting_messages
        operations = await self.work.do(read_large_operations(body, most))
        if self.access_control is not None:
            self.access_control.check_operations(access, operations, path)

    def receive(
        self,
        ident: str,
        body: bytes,
        access: Access = ANYBODY,
        address: str | None = None,
        http: HttpContext | None = None,
    ) -> bool:
        """
        Pass a message that a client posted on to the session of this id.  `address` is
        where it came from, for the audit log, and `http` the context of its HTTP request, if
        it is to be recorded (`Tracing.wants`).

        Returns False, having done nothing, for one of more than `LARGE_BYTES`
        that would take too long to read at once: that is for `receive_large`.
        Raises a `Refused` that says why the message cannot pass; then nothing
        was stored.
        """
        session = self.find(ident, access)
        self.check_size(body)
        if len(body) > LARGE_BYTES:
            if self.reads_operations:
                return False
            whole = None
            if len(body) <= WHOLE_BYTES:
                whole = self.work.at_once(partial(read_whole, body))
            if whole is None:
                return False
            session.client_message(*whole, address=address, http=http)
            return True
        line, envelope = read_message(body)
        if self.reads_operations:
            self.check_operations(line, access, "/sse")
        # An empty batch is a message, too.
        count = 1 if envelope is not None else max(1, len(self.check_batch(line)))
        session.client_message(line, envelope, count=count, address=address, http=http)
        return True

    async def receive_large(
        self,
        ident: str,
        body: bytes,
        access: Access = ANYBODY,
        address: str | None = None,
        http: HttpContext | None = None,
    ) -> None:
        """
        Pass on a message of more than `LARGE_BYTES`, while others are served.
        One that is larger than `WHOLE_BYTES`, or that its envelope alone does
        not describe, is read in slices.  Raises what `receive` raises.
        """
        self.find(ident, access)
        self.check_size(body)
        if self.reads_operations:
            await self.check_large_operations(body, access, "/sse")
        if len(body) <= WHOLE_BYTES:
            whole = await self.work.do(read_whole_later(body))
            if whole is not None:
                self.find(ident, access).client_message(*whole, address=address, http=http)
                return
        large = await self.work.do(read_large(body))
        # The session is looked up again: it may have ended meanwhile.
        if large is not None:
            self.find(ident, access).client_message(
                large.line, large.envelope, large.digest, address=address, http=http
            )
        else:
            if len(body) > WHOLE_BYTES and self.visibility.rules is not None:
                # Its messages are looked at in one turn of the reactor.
                raise TooComplex(f"an array of more than {WHOLE_BYTES} bytes cannot be checked")
            most = self.settings.max_waiting_messages
            line, count = await self.work.do(read_foreign_batch(body, most))
            self.find(ident, access).client_message(
                line, None, count=max(1, count), address=address, http=http
            )

    def check_batch(self, line: bytes) -> list[bytes]:
        """
        Return the elements of a small batch.  Raises `TooComplex` for more
        than may wait for a backend, and `NotJsonRpc` for a request with null
        for an id, which could not be answered.
        """
        elements = split_batch(line) or []
        most = self.settings.max_waiting_messages
        if len(elements) > most:
            raise TooComplex(f"the array has more than {most} elements (max_waiting_messages)")
        for element in elements:
            check_id(peek(element))
        return elements

    def ask(self, exchange: Exchange, headers: Headers) -> Work | None:
        """
        Have a request of 2026-07-28 worked on, as `StatelessDispatcher.ask` does: by the
        processes that know what it is about, or else by those of the present settings.
        """
        if self.draining:
            shutting_down = _shutting_down()
            shutting_down.ident = exchange.request.id
            raise shutting_down
        for generation in self._retired:
            if generation.has(exchange):
                return generation.stateless.ask(exchange, headers)
        if self.removed:
            error = NotFound(REMOVED)
            error.ident = exchange.request.id
            raise error
        return self.stateless.ask(exchange, headers)

    def start(self) -> None:
        """Begin to keep processes ready, where the settings say so."""
        self._running = True
        self._generation.start()

    # The end of the bridge.

    def drain(self) -> None:
        """
        Refuse new sessions and requests with `ShuttingDown`, and those that wait for a
        process; go on with those that run.  Processes are not ended by this.
        """
        self.draining = True
        for session in chain(self.sessions.values(), self.streamable.values()):
            session.refusing = True
        for each in self.generations:
            each.begin_stop()

    @property
    def running(self) -> int:
        """How many requests of clients are being worked on; subscriptions do not count."""
        sessions = chain(self.sessions.values(), self.streamable.values())
        stateless = sum(each.stateless.running for each in self.generations)
        return sum(map(_requests_of, sessions)) + stateless

    def busy_sessions(self) -> Iterator[str]:
        """Yield the ids of the sessions that have a request to answer."""
        for session in chain(self.sessions.values(), self.streamable.values()):
            if _requests_of(session):
                yield session.ident

    def end_idle(self, why: str) -> None:
        """End the sessions that have no request to answer."""
        for session in [*self.sessions.values(), *self.streamable.values()]:
            if not _requests_of(session):
                guarded(self.log, "ending a session", session.life.end, why)

    def give_up_cancelled(self) -> None:
        """Do not wait for the answers to requests any longer that were cancelled."""
        for session in self.sessions.values():
            if session.requests is not None:
                session.requests.give_up_cancelled()

    def kill(self) -> None:
        """Kill the processes of all sessions, which are being stopped, at once."""
        for session in list(self.unclosed):
            if IKillableBackend.providedBy(session.backend):
                guarded(self.log, "killing a backend", session.backend.kill)

    def stop(self) -> Deferred[Any]:
        """End all sessions; fires when nothing of them is left."""
        self._running = False
        self._drain_timer.stop()
        if self.measures is not None:
            self.measures.stop()
        generations = self.generations
        for each in generations:
            each.begin_stop()
        return DeferredList([each.stop() for each in generations])

    def _forget(
        self, table: dict[str, BackendSession], pool: ProcessPool, session: BackendSession
    ) -> None:
        if table.pop(session.ident, None) is not None:
            counters = self.counters
            counters.sessions_closed[kind_of(session.reason)] += 1
            counters.session_seconds.add(self._clock.seconds() - session.opened_at)
        pool.abandoned.remove(session)


def needs_new_processes(before: ServerSettings, after: ServerSettings) -> bool:
    """Tell whether a process that was started with some settings does not fit others."""
    return any(
        getattr(before, each.name) != getattr(after, each.name)
        for each in fields(ServerSettings)
        if each.name not in _IN_PLACE
    )


def _shares(
    settings: ServerSettings, clock: IReactorTime, what: str, *, of_identities: bool
) -> Shares:
    """Return what each caller may have of the sessions of a server."""
    return Shares(
        _share(settings, of_identities=of_identities),
        clock,
        what=what,
        setting="max_sessions_per_identity" if of_identities else "max_sessions_per_address",
        of_identities=of_identities,
    )


def _share(settings: ServerSettings, *, of_identities: bool) -> int:
    if of_identities:
        return share_of(settings.max_sessions, settings.max_sessions_per_identity)
    return share_of(settings.max_sessions, settings.max_sessions_per_address)


def _requests_of(session: BackendSession) -> int:
    """Return how many requests of its client are not answered."""
    if session.requests is not None:
        return len(session.requests)
    return cast("StreamableSession", session.sink).router.in_flight


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the bridge is shutting down")
