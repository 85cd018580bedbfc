"""
The bridge: the composition root, where all objects are made and wired.

What `twistd mcpbridge` runs, and what an application embeds.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from mcpbridge.config.rlimit_warnings import rlimit_warnings
from mcpbridge.config.settings import BridgeSettings, ServerSettings, share_of
from mcpbridge.config.tuning import CONTAINER_STOP_SECONDS, REPORTED_LINES, STOP_SLACK_SECONDS
from mcpbridge.config.warnings import configuration_warnings
from mcpbridge.errors import CannotListen
from mcpbridge.extensions import load, verified
from mcpbridge.guard import guarded
from mcpbridge.interfaces import (
    IBackendLauncher,
    IEventStore,
    IMessageFilter,
    ISessionLimiter,
    ISessionObserver,
)
from mcpbridge.memory import Trimmer, trim_function
from mcpbridge.processes.address_shares import Shares
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.server import Server
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.session_report import session_lines
from mcpbridge.sliced_work import SlicedWork
from mcpbridge.stdio.cleanup_records import CleanupRecords
from mcpbridge.stdio.exec_chain import PythonShim, find_chain
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.prctl import set_child_subreaper
from mcpbridge.stdio.process_tags import new_base, shortcomings
from mcpbridge.stdio.process_tracker import ProcessTracker
from mcpbridge.stdio.recovery import Journal, Recovery
from mcpbridge.stdio.state_file import candidates
from mcpbridge.stdio.watchdog import END_SECONDS, Watchdog
from mcpbridge.web.listeners import AcceptErrors, make_endpoint
from mcpbridge.web.transport_security import TransportSecurity
from mcpbridge.web.urls import exposed, served_urls

#: A page whose name is rebound to this machine's address is of the same origin
#: as the bridge; only the names that clients use tell it from them.
_NAME_THE_HOSTS = (
    "; name the hosts that clients use with --allowed-hosts (allowed_hosts), so that no web page"
    " reaches it under a name of its own (DNS rebinding)"
)


class Bridge(Service):
    """
    A Twisted service that serves stdio MCP servers over HTTP.

    Give it to an application with `setServiceParent`, or start and stop it
    with `startService` and `stopService`.  With `listen=()` in its settings
    it opens no port: put `resource()` under a site of your own.

    `launcher`, `limiter`, `observers` and `filters` serve all servers that
    name none of their own in the settings; see `mcpbridge.interfaces`.
    Raises `SettingError` for an extension that does not provide its
    interface.
    """

    log = Logger()

    def __init__(
        self,
        settings: BridgeSettings,
        reactor: Any = None,
        *,
        launcher: object | None = None,
        limiter: object | None = None,
        event_store: object | None = None,
        observers: Sequence[object] = (),
        filters: Sequence[object] = (),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.settings = settings
        self._reactor: Any = reactor
        self._clock: IReactorTime = reactor
        self._environment = environment
        self._launcher = verified("launcher", IBackendLauncher, launcher)
        self._limiter = verified("limiter", ISessionLimiter, limiter)
        self._trimmer = Trimmer(self._clock, trim_function())
        self._budget = ResponseBudget(settings.max_response_bytes, self._clock, self._trimmer.freed)
        self._event_store = verified("event_store", IEventStore, event_store) or (
            MemoryEventStore(budget=self._budget)
        )
        self._observers = [verified("observers", ISessionObserver, each) for each in observers]
        self._filters = [verified("filters", IMessageFilter, each) for each in filters]
        records = CleanupRecords()
        base = new_base()
        self._journal = Journal(self._clock, records)
        self._watchdog = Watchdog(reactor, base, records, self._journal.changed)
        self._recovery = Recovery(reactor, base)
        self._tracker = ProcessTracker(self._clock, base, self._watchdog)
        #: The value of the label that tells this bridge's containers from all others.
        self._bridge_id = f"{base:x}-{secrets.token_hex(8)}"
        self._security = TransportSecurity(settings, self._clock)
        self._accept_errors = AcceptErrors(self._clock)
        self._over_all = SessionLimiter(settings.max_sessions)
        self._shares = Shares(
            share_of(settings.max_sessions, settings.max_sessions_per_address),
            self._clock,
            what="the sessions of all servers",
            setting="max_sessions_per_address of the bridge",
        )
        self._work = SlicedWork(self._clock)
        self._launchers: list[tuple[str, Any]] = []
        self._pools: list[ProcessPool] = []
        self.servers = [self._build_server(each) for each in settings.servers]
        self._ports: list[IListeningPort] = []
        self._site: Any = None
        self._resource: IResource | None = None
        #: The rest of `log_sessions`.
        self._reporting: IDelayedCall | None = None

    # For embedding.

    def resource(self) -> IResource:
        """
        All servers, each below its base: put it anywhere in a site.

        Imports klein, and with it the reactor.  A site that is not the
        bridge's own knows nothing of its limits on bodies and connections;
        give it `parsePOSTFormSubmission=False`.
        """
        if self._resource is None:
            from mcpbridge.web.client_addresses import ClientAddresses
            from mcpbridge.web.request_caller import callers, nobody
            from mcpbridge.web.root import Branch, SecuredResource
            from mcpbridge.web.routes import Routes
            from mcpbridge.web.server_card import ServerCards

            clients = ClientAddresses(self.settings)
            cards = ServerCards(self.servers, clients.is_proxy)
            root = Branch()
            cards.serve_well_known(root)
            for server in self.servers:
                branch = root
                for segment in server.settings.base_uri.split("/")[1:]:
                    branch = branch.branch(segment.encode("ascii"))
                caller_of = callers(clients.address) if server.tells_callers else nobody
                routes = Routes(server, self._clock, clients.of_request, cards, caller_of)
                branch.serve(server.settings, routes.resource())
            root.told = self.settings.servers
            self._resource = cast("IResource", SecuredResource(self._security, root))
        return self._resource

    def site(self) -> Any:
        """A site for the resource, with all limits: what the bridge's own listeners serve."""
        if self._site is None:
            from mcpbridge.web.fast_path import FastPath
            from mcpbridge.web.site import BridgeSite

            fast_path = FastPath(self.servers, self._security) if self.settings.fast_path else None
            self._site = BridgeSite(
                self.resource(),
                self._reactor,
                self.settings,
                fast_path,
                self._budget,
                freed=self._trimmer.freed,
            )
        return self._site

    def urls(self) -> list[str]:
        """What is served by the bridge's own listeners."""
        return served_urls(self._ports, self.settings.servers)

    def log_sessions(self) -> None:
        """
        Write a line to the log for each process of each server.

        A few at a time, so that nobody waits for thousands of lines; while
        lines are still to be written a further call does nothing.
        """
        if self._reporting is not None:
            return
        now = self._clock.seconds()
        lines = [line for server in self.servers for line in session_lines(server, now)]
        self.log.info("{count} sessions and other processes:", count=len(lines))
        self._log_lines(iter(lines))

    def _log_lines(self, lines: Iterator[str]) -> None:
        self._reporting = None
        for line in islice(lines, REPORTED_LINES):
            self.log.info("{line}", line=line)
        rest = list(lines)
        if rest:
            self._reporting = self._clock.callLater(0, self._log_lines, iter(rest))

    # IService.

    def privilegedStartService(self) -> None:
        """
        Open the listeners, all or none.  Raises `CannotListen`.
        """
        super().privilegedStartService()
        if self._ports:
            return
        for description in self.settings.listen:
            try:
                self._listen(description)
            except CannotListen:
                self._close_ports()
                raise

    def startService(self) -> None:
        """Start to serve, and say where."""
        if self.running:
            return
        self.privilegedStartService()
        super().startService()
        if any(isinstance(launcher, LocalLauncher) for _, launcher in self._launchers):
            self._prepare_for_processes()
        for url in self.urls():
            self.log.info("serving {url}", url=url)
        for origin in exposed(self._ports):
            self.log.warn(
                "{origin} may be reached from other machines, and there is no authentication:"
                " whoever reaches it runs a backend{hosts}",
                origin=origin,
                hosts="" if self.settings.allowed_hosts else _NAME_THE_HOSTS,
            )
        for doubt in configuration_warnings(self.settings, self._environment):
            self.log.warn("{doubt}", doubt=doubt)
        for name, launcher in self._launchers:
            problem = guarded(self.log, "checking a launcher", launcher.check)
            if problem is not None:
                self.log.warn("server {name!r}: {problem}", name=name, problem=problem)
        for server in self.servers:
            server.start()

    def stopService(self) -> Deferred[Any]:
        """
        Stop to listen, end all sessions; fires when nothing of them is left,
        or when the graces of all servers and `STOP_SLACK_SECONDS` are over, and
        the watchdog has ended.
        """
        super().stopService()
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        closed = [self._close_ports()]
        ended = DeferredList([server.stop() for server in self.servers])
        if self._site is not None:
            closed.append(self._site.close_connections())
        done: Deferred[None] = Deferred()
        patience = self._clock.callLater(self._longest_end(), self._give_up, done)

        def all_ended(_: object) -> None:
            if patience.active():
                patience.cancel()
                done.callback(None)

        ended.addCallback(all_ended)
        done.addCallback(lambda _: self._nothing_more_to_count())
        stopped = done.addCallback(lambda _: DeferredList([*closed, self._recovery.stop()]))
        nothing_left = stopped.addCallback(lambda _: self._watchdog.stop())
        return nothing_left.addCallback(self._close_journal)

    def _nothing_more_to_count(self) -> None:
        self._budget.stop()
        self._trimmer.stop()

    def longest_stop(self) -> float:
        """How many seconds `stopService` takes at most."""
        # Connections are closed meanwhile, the watchdog ends after that.
        local = any(isinstance(each, LocalLauncher) for _, each in self._launchers)
        return self._longest_end() + (END_SECONDS if local else 0.0)

    def _longest_end(self) -> float:
        """How many seconds the end of all sessions may take."""
        graces = [each.stop_grace + each.kill_grace for each in self.settings.servers]
        slack = STOP_SLACK_SECONDS
        if any(
            isinstance(each, LocalLauncher) and each.starts_containers
            for _, each in self._launchers
        ):
            slack += CONTAINER_STOP_SECONDS
        return max(graces, default=0) + slack

    def _give_up(self, done: Deferred[None]) -> None:
        left = sum(len(server.unclosed) for server in self.servers)
        self.log.critical("{left} sessions could not be ended", left=left)
        done.callback(None)

    def _close_journal(self, nothing_left: bool) -> None:
        """Without anything left the next start need not look for it."""
        left = any(server.unclosed for server in self.servers)
        guarded(
            self.log,
            "closing the state file",
            lambda: self._journal.close(clean=nothing_left and not left),
        )

    def _prepare_for_processes(self) -> None:
        """What concerns the whole process, so only once the service starts."""
        sessions = min(
            self.settings.max_sessions, sum(each.max_sessions for each in self.settings.servers)
        )
        for shortage in rlimit_warnings(sessions):
            self.log.warn("{shortage}", shortage=shortage)
        missing = shortcomings()
        if missing:
            self.log.warn("processes of backends: {missing}", missing="; ".join(missing))
        if isinstance(find_chain(), PythonShim):
            self.log.info("no compiled launcher and no util-linux: backends start more slowly")
        wanted = self.settings.child_subreaper
        if wanted if wanted is not None else bool(self.settings.listen):
            set_child_subreaper(True)
        if self._tracker.base:
            folders = candidates(self.settings.state_dir, self._environment, os.geteuid())
            self._journal.open(folders, self._tracker.base)
            self._watchdog.start()
            self._recovery.start(folders)

    def _listen(self, description: str) -> None:
        """Open one listener.  Raises `CannotListen`."""
        failures: list[Failure] = []
        try:
            listening = make_endpoint(self._reactor, description).listen(self.site())
        except Exception as error:
            raise CannotListen(f"cannot listen on {description!r}: {error}") from error

        def listens(port: IListeningPort) -> None:
            self._ports.append(port)
            self._accept_errors.watch(port)

        listening.addCallbacks(listens, failures.append)
        if failures:
            why = failures[0].getErrorMessage()
            raise CannotListen(f"cannot listen on {description!r}: {why}") from failures[0].value

    def _close_ports(self) -> Deferred[Any]:
        ports, self._ports = self._ports, []
        return DeferredList(
            [maybeDeferred(port.stopListening) for port in ports], consumeErrors=True
        )

    # Wiring.

    def _build_server(self, settings: ServerSettings) -> Server:
        """One server with all that belongs to it."""
        launcher = (
            load("launcher", IBackendLauncher, settings.launcher, settings)
            or self._launcher
            or LocalLauncher(
                settings,
                self._reactor,
                self._tracker,
                self._environment,
                budget=self._budget,
                cleanup=self._watchdog,
                bridge_id=self._bridge_id,
            )
        )
        limiter = (
            load("limiter", ISessionLimiter, settings.limiter, settings)
            or self._limiter
            or SessionLimiter(settings.max_sessions)
        )
        observers = [
            load("observers", ISessionObserver, each, settings) for each in settings.observers
        ]
        filters = [load("filters", IMessageFilter, each, settings) for each in settings.filters]
        event_store = (
            load("event_store", IEventStore, settings.event_store, settings) or self._event_store
        )
        self._launchers.append((settings.name, launcher))
        return Server(
            settings,
            self._clock,
            launcher=launcher,
            limiter=CombinedLimiter(self._over_all, limiter),
            over_all=self._over_all,
            observers=[*self._observers, *observers],
            filters=[*self._filters, *filters],
            event_store=event_store,
            budget=self._budget,
            shares=[self._shares],
            work=self._work,
            pools=self._pools,
        )
