"""
The composition root: `Bridge` makes all objects and connects them.

It is the service that `twistd mcpbridge` runs and that an application embeds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from mcpbridge.audit_log import AuditLog
from mcpbridge.auth.factory import AUTHORIZATION, AccessControls, secret_headers
from mcpbridge.auth.failed_attempts import FailedAttempts
from mcpbridge.config.settings import BridgeSettings, ServerSettings, share_of
from mcpbridge.config.tuning import CONTAINER_STOP_SECONDS, REPORTED_LINES, STOP_SLACK_SECONDS
from mcpbridge.config.warnings import configuration_warnings
from mcpbridge.errors import CannotListen, Exposed
from mcpbridge.extensions import load, verified
from mcpbridge.guard import guarded
from mcpbridge.interfaces import (
    IAuthenticator,
    IBackendLauncher,
    IEnvironmentLauncher,
    IEventStore,
    IMessageFilter,
    ISessionLimiter,
    ISessionObserver,
)
from mcpbridge.memory import Trimmer, trim_function
from mcpbridge.pacer import Pacer
from mcpbridge.processes.address_shares import Shares
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.server import Server
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.session_report import session_lines
from mcpbridge.sliced_work import SlicedWork
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.local_processes import LocalProcesses
from mcpbridge.timers import Timer
from mcpbridge.web.listeners import AcceptErrors, make_endpoint
from mcpbridge.web.transport_security import TransportSecurity
from mcpbridge.web.urls import exposed, served_urls

#: A page whose host name is rebound to this machine's address has the same origin as the
#: bridge.  Only the host names that clients use tell the two apart.
_NAME_THE_HOSTS = (
    "; name the hosts that clients use with --allowed-hosts (allowed_hosts), so that no web page"
    " reaches it under a name of its own (DNS rebinding)"
)

_EXPOSED = (
    "{origin} can be reached from other machines, and anybody could use {what} there: set `auth`"
    " (bridge.auth; make a token with `mcpbridge token NAME`), listen on loopback (--host"
    " 127.0.0.1), or pass --insecure to let everybody in"
)
#: How many servers an error names.
NAMED_SERVERS = 3


class Bridge(Service):
    """
    A Twisted service that serves stdio MCP servers over HTTP.

    Give it to an application with `setServiceParent`, or start and stop it
    with `startService` and `stopService`.  With `listen=()` in its settings
    it opens no port: put `resource()` under a site of your own.

    `launcher`, `limiter`, `event_store`, `observers`, `filters` and `authenticator`
    are extensions for all servers (`mcpbridge.interfaces`).  A server's own
    launcher, limiter or event store, named in its settings, takes their
    place; its own observers and filters are added, and its own ways to
    authenticate a caller come after the `authenticator`.  Raises `SettingError`
    for an extension that does not provide its interface.
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
        authenticator: object | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.settings = settings
        self._reactor: Any = reactor
        self._clock: IReactorTime = reactor
        self._environment = environment

        # Memory, shared by all servers.
        self._trimmer = Trimmer(self._clock, trim_function())
        self._budget = ResponseBudget(settings.max_response_bytes, self._clock, self._trimmer.freed)
        self._work = SlicedWork(self._clock)

        # Extensions, for servers that name none of their own.
        self._launcher = verified("launcher", IBackendLauncher, launcher)
        self._limiter = verified("limiter", ISessionLimiter, limiter)
        self._event_store = verified("event_store", IEventStore, event_store)
        if self._event_store is None:
            self._event_store = MemoryEventStore(budget=self._budget)
        self._observers = [verified("observers", ISessionObserver, each) for each in observers]
        self._filters = [verified("filters", IMessageFilter, each) for each in filters]

        # Who may come in.
        self._access_controls = AccessControls(
            settings,
            reactor,
            lambda name, server: load("auth.authenticator", IAuthenticator, name, server),
            verified("authenticator", IAuthenticator, authenticator),
        )

        # Limits over all servers.
        self._bridge_limiter = SessionLimiter(settings.session_limit, self._trimmer.session_ended)
        self._shares = Shares(
            share_of(settings.session_limit, settings.max_sessions_per_address),
            self._clock,
            what="the sessions of all servers",
            setting="max_sessions_per_address of the bridge",
        )
        self._identity_shares = Shares(
            share_of(settings.session_limit, settings.max_sessions_per_identity),
            self._clock,
            what="the sessions of all servers",
            setting="max_sessions_per_identity of the bridge",
            of_identities=True,
        )
        self._streams = Shares(
            share_of(settings.connection_limit, settings.max_streams_per_identity),
            self._clock,
            what="open streams",
            setting="max_streams_per_identity",
            of_identities=True,
        )
        self._attempts = FailedAttempts(self._clock)
        self._pools: list[ProcessPool] = []

        #: None without `audit_log`.
        self._audit: AuditLog | None = None
        if settings.audit_log is not None:
            self._audit = AuditLog(
                settings.audit_log, self._clock, arguments=settings.audit_arguments
            )

        # Servers and their launchers.
        self._local = LocalProcesses(reactor, environment)
        self._launchers: list[tuple[str, Any]] = []
        self.servers = [self._build_server(each) for each in settings.servers]

        # HTTP; the site is made when it is first asked for, as it imports the reactor.
        self._security = TransportSecurity(settings, self._clock)
        self._accept_errors = AcceptErrors(self._clock)
        self._ports: list[IListeningPort] = []
        #: Spreads the ends of connections, when many clients leave at one time.
        self._pacer = Pacer(self._clock)
        self._site: Any = None
        self._resource: IResource | None = None
        #: What serves requests directly, without the resource, by method and path; made with it.
        self._endpoints: dict[tuple[bytes, bytes], Any] = {}

        #: Writes the next lines of `log_sessions`.
        self._report_timer = Timer(self._clock)

    def _build_server(self, settings: ServerSettings) -> Server:
        """Make one server, with its extensions or else those of the bridge."""
        # A launcher that sets no variables would start processes without their credentials.
        interface = IEnvironmentLauncher if settings.env_from else IBackendLauncher
        launcher = load("launcher", interface, settings.launcher, settings)
        if launcher is None:
            setting = f"mcpServers.{settings.name}.env_from"
            launcher = verified(setting, interface, self._launcher)
        if launcher is None:
            launcher = self._local.launcher(settings, self._budget)
        elif isinstance(launcher, LocalLauncher):
            self._local.include(launcher)
        self._launchers.append((settings.name, launcher))
        limiter = load("limiter", ISessionLimiter, settings.limiter, settings)
        if limiter is None:
            limiter = self._limiter
        if limiter is None:
            limiter = SessionLimiter(settings.max_sessions)
        event_store = load("event_store", IEventStore, settings.event_store, settings)
        control = self._access_controls.of(settings)
        identifies = control is not None and control.identifies
        return Server(
            settings,
            self._clock,
            launcher=launcher,
            limiter=CombinedLimiter(self._bridge_limiter, limiter),
            bridge_limiter=self._bridge_limiter,
            observers=[
                *self._observers,
                *(
                    load("observers", ISessionObserver, each, settings)
                    for each in settings.observers
                ),
            ],
            filters=[
                *self._filters,
                *(load("filters", IMessageFilter, each, settings) for each in settings.filters),
            ],
            event_store=self._event_store if event_store is None else event_store,
            budget=self._budget,
            shares=[self._identity_shares if identifies else self._shares],
            streams=self._streams,
            work=self._work,
            pools=self._pools,
            access_control=control,
            audit=self._audit,
        )

    # For embedding.

    def resource(self) -> IResource:
        """
        Return a resource that serves all servers, each below its base.

        It may be put anywhere in a site.  The call imports klein, and with it
        the reactor.  A site of your own does not apply the bridge's limits on
        bodies and connections; give it `parsePOSTFormSubmission=False`.
        """
        if self._resource is None:
            from mcpbridge.web.admission import Admission
            from mcpbridge.web.client_addresses import (
                CallerOf,
                ClientAddresses,
                no_caller,
                tell_callers,
            )
            from mcpbridge.web.refusals import Delays, Refusals
            from mcpbridge.web.root import Branch, SecuredResource
            from mcpbridge.web.routes import Routes
            from mcpbridge.web.server_card import ServerCards
            from mcpbridge.web.well_known import ResourceMetadata

            clients = ClientAddresses(self.settings)
            delays = Delays(self._attempts, self._clock, clients.of_request)
            cards = ServerCards(self.servers, clients.is_proxy)
            is_open = all(each.is_open for each in self.servers)
            root = Branch(servers=self.settings.servers, hints=is_open)
            cards.serve_well_known(root)
            ResourceMetadata(self._access_controls.documents).serve_well_known(root)
            for server in self.servers:
                branch = root
                for segment in server.settings.base_uri.split("/")[1:]:
                    branch = branch.branch(segment.encode("ascii"))
                admission = Admission(server.settings.name, server.access_control, delays)
                caller_of: CallerOf = no_caller
                if server.tells_callers:
                    secrets = {*secret_headers(server.settings)}
                    if not server.is_open:
                        secrets.add(AUTHORIZATION)
                    caller_of = tell_callers(clients.address, admission.hides(secrets))
                routes = Routes(
                    server,
                    self._clock,
                    clients.share_of,
                    cards,
                    caller_of,
                    self._pacer,
                    admission,
                    clients.address,
                )
                branch.serve(server.settings, routes.resource())
                self._endpoints.update(routes.endpoints())
            note = Refusals(self._audit, "", clients.address).note
            self._resource = cast("IResource", SecuredResource(self._security, root, note))
        return self._resource

    def site(self) -> Any:
        """Return the site of the bridge's own listeners: the resource, with all limits."""
        if self._site is None:
            from mcpbridge.web.fast_path import FastPath
            from mcpbridge.web.site import BridgeSite

            resource = self.resource()
            fast_path = FastPath(self.servers, self._security, self._endpoints)
            self._site = BridgeSite(
                resource,
                self._reactor,
                self.settings,
                fast_path if self.settings.fast_path else None,
                self._budget,
                is_costly=fast_path.is_costly,
                refuse_sender=fast_path.refuse_sender,
                pacer=self._pacer,
                freed=self._trimmer.freed,
            )
        return self._site

    def urls(self) -> list[str]:
        """Return the URLs that the bridge's own listeners serve."""
        return served_urls(self._ports, self.settings.servers)

    def log_sessions(self) -> None:
        """
        Log one line for each process of each server.

        `REPORTED_LINES` are logged in each iteration of the reactor, so that
        clients need not wait for thousands.  A call before the last line is
        logged does nothing.
        """
        if self._report_timer.is_running:
            return
        now = self._clock.seconds()
        count = sum(len(server.unclosed) for server in self.servers)
        self.log.info("{count} sessions and other processes:", count=count)
        lines = [session_lines(server, now) for server in self.servers]
        self._log_lines(chain.from_iterable(lines))

    def _log_lines(self, lines: Iterator[str]) -> None:
        logged = 0
        for line in islice(lines, REPORTED_LINES):
            self.log.info("{line}", line=line)
            logged += 1
        if logged == REPORTED_LINES:
            self._report_timer.start(0, self._log_lines, lines)

    # IService.

    def privilegedStartService(self) -> None:
        """Open all listeners, or none of them and raise `CannotListen`."""
        super().privilegedStartService()
        if self._ports:
            return
        try:
            for description in self.settings.listen:
                self._listen(description)
            self._check_exposure()
        except CannotListen:
            self._close_ports()
            raise

    def startService(self) -> None:
        """Start to serve; log the URLs and everything that an operator should look at."""
        if self.running:
            return
        self.privilegedStartService()
        super().startService()
        self._local.start(self.settings)
        if self._audit is not None:
            self._audit.start()
        for url in self.urls():
            self.log.info("serving {url}", url=url)
        self._warn_of_exposure()
        for warning in configuration_warnings(self.settings, self._environment):
            self.log.warn("{warning}", warning=warning)
        for name, launcher in self._launchers:
            problem = guarded(self.log, "checking a launcher", launcher.check)
            if problem is not None:
                self.log.warn("server {name!r}: {problem}", name=name, problem=problem)
        for server in self.servers:
            server.start()

    def _check_exposure(self) -> None:
        """Raise `Exposed` if other machines reach a server that asks nobody who they are."""
        what, origins = self._open_servers(), exposed(self._ports)
        if what and origins and not self.settings.insecure:
            raise Exposed(_EXPOSED.format(origin=origins[0], what=what))

    def _open_servers(self) -> str:
        """Name servers that let everybody in; return an empty string if there are none."""
        found = [each.settings.name for each in self.servers if each.is_open]
        more = f" and {len(found) - NAMED_SERVERS} more" if len(found) > NAMED_SERVERS else ""
        return ", ".join(map(repr, found[:NAMED_SERVERS])) + more

    def _warn_of_exposure(self) -> None:
        if not self._open_servers():
            return
        for origin in exposed(self._ports):
            self.log.warn(
                "{origin} may be reached from other machines, and there is no authentication:"
                " whoever reaches it runs a backend{hosts}",
                origin=origin,
                hosts="" if self.settings.allowed_hosts else _NAME_THE_HOSTS,
            )

    def stopService(self) -> Deferred[Any]:
        """
        Close the listeners, end all sessions, and stop the watchdog.

        The `Deferred` fires when nothing is left, after `longest_stop` seconds
        at most.
        """
        super().stopService()
        self._report_timer.stop()
        closed = [self._close_ports()]
        ended = self._end_sessions()
        if self._site is not None:
            closed.append(self._site.close_connections())

        def sessions_ended(_: object) -> Deferred[Any]:
            self._budget.stop()
            self._access_controls.stop()
            self._trimmer.stop()
            if self._audit is not None:
                self._audit.stop()
            return DeferredList([*closed, self._local.stop_recovery()])

        def watchdog_ended(nothing_left: bool) -> None:
            left = any(server.unclosed for server in self.servers)
            self._local.close(clean=nothing_left and not left)

        ended.addCallback(sessions_ended)
        stopped = ended.addCallback(lambda _: self._local.stop_watchdog())
        return stopped.addCallback(watchdog_ended)

    def _end_sessions(self) -> Deferred[None]:
        """End all sessions, or give up after `_longest_end` seconds."""
        ended: Deferred[None] = Deferred()

        def give_up() -> None:
            left = sum(len(server.unclosed) for server in self.servers)
            self.log.critical("{left} sessions could not be ended", left=left)
            ended.callback(None)

        def all_ended(_: object) -> None:
            if patience.is_running:
                patience.stop()
                ended.callback(None)

        stopped = DeferredList([server.stop() for server in self.servers])
        patience = Timer(self._clock)
        patience.start(self._longest_end(), give_up)
        stopped.addCallback(all_ended)
        return ended

    def longest_stop(self) -> float:
        """Return the most seconds that `stopService` takes."""
        # Connections are closed while sessions end; the watchdog ends after that.
        return self._longest_end() + self._local.longest_stop

    def _longest_end(self) -> float:
        """Return the most seconds that the end of all sessions takes."""
        graces = [each.stop_grace + each.kill_grace for each in self.settings.servers]
        slack = STOP_SLACK_SECONDS
        if self._local.starts_containers:
            slack += CONTAINER_STOP_SECONDS
        return max(graces, default=0) + slack

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
