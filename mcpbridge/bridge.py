"""
The composition root: `Bridge` makes all objects and connects them.

It is the service that `twistd mcpbridge` runs and that an application embeds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from mcpbridge.audit_log import AuditLog
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.factory import AccessControls
from mcpbridge.auth.failed_attempts import FailedAttempts
from mcpbridge.config.changes import changes, without_restart
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import CONTAINER_STOP_SECONDS, REPORTED_LINES, STOP_SLACK_SECONDS
from mcpbridge.config.warnings import configuration_warnings
from mcpbridge.counters import BridgeCounters
from mcpbridge.drain import Drain
from mcpbridge.errors import (
    Ambiguous,
    CannotListen,
    Described,
    Exposed,
    NotFound,
    NotSupported,
    SettingError,
    SettingErrors,
    ShuttingDown,
)
from mcpbridge.extensions import load, verified
from mcpbridge.generation import Extensions
from mcpbridge.guard import guarded
from mcpbridge.health import BridgeHealth
from mcpbridge.interfaces import (
    IAuthenticator,
    IBackendLauncher,
    IEnvironmentLauncher,
    IEventStore,
    IMessageFilter,
    ISessionLimiter,
    ISessionObserver,
)
from mcpbridge.limits import BridgeLimits
from mcpbridge.loop_lag import LoopLag
from mcpbridge.memory import Trimmer, trim_function
from mcpbridge.pacer import Pacer
from mcpbridge.process_usage import RecentUsage, Usages
from mcpbridge.processes.backend_session import LABEL_CHARS
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.server import Server, needs_new_processes
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.session_report import session_lines
from mcpbridge.sliced_work import SlicedWork
from mcpbridge.stdio.confinement import describe_confinement
from mcpbridge.stdio.confinement_check import confinement_errors
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.local_processes import LocalProcesses
from mcpbridge.stdio.state_file import candidates, open_state_directory
from mcpbridge.timers import Timer
from mcpbridge.tracing.tracing import FLUSH_SECONDS, Tracing
from mcpbridge.twisted_internals import keep_open_for_others
from mcpbridge.web.listeners import AcceptErrors, close_port, make_endpoint, stop_listening
from mcpbridge.web.urls import exposed, index_urls, served_urls

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
#: At least so many characters of its id name a session for an operator.
LEAST_LABEL_CHARS = 4
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

    With `admin_socket` and without `admin_listen` the admin listener is a socket in the
    state directory.
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
        admin_socket: bool = False,
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

        self._authenticator = verified("authenticator", IAuthenticator, authenticator)

        #: Records spans; None where nobody wants that.
        self._tracing = self._make_tracing() if settings.tracing else None
        #: What has happened at all servers, and at none of them.
        self.counters = BridgeCounters()
        #: `serving`, `draining` or `stopping`.
        self.condition = "serving"
        #: Whether it and its servers are ready.
        self.health = BridgeHealth(lambda: self.servers, lambda: self.condition, self._clock)
        self._limits = BridgeLimits(settings, self._clock, self._trimmer.session_ended)
        self._attempts = FailedAttempts(self._clock)
        self._pools: list[ProcessPool] = []

        #: None without `audit_log`.
        self._audit: AuditLog | None = None
        if settings.audit_log is not None:
            self._audit = AuditLog(
                settings.audit_log, self._clock, arguments=settings.audit_arguments
            )

        # Who may come in; servers and their launchers.
        self._check_confinement(settings.servers)
        self._local = LocalProcesses(reactor, environment)
        self._usage = RecentUsage(self._clock, lambda: self._work.do(self._local.read_usage()))
        self._lag = LoopLag(self._clock)
        self._access_controls = self._control_access(settings)
        #: The servers by their bases; also those that were removed and have sessions left.
        self._served: dict[str, Server] = {}
        self._launchers: list[tuple[str, Any]] = []
        for each in settings.servers:
            self._serve(each, self._extensions(each), self._access_controls.of(each))

        # HTTP, which is made when it is first asked for, as it imports the reactor.
        self._accept_errors = AcceptErrors(self._clock)
        #: The open listeners, each with its description.
        self._ports: list[tuple[str, IListeningPort]] = []
        #: Spreads the ends of connections, when many clients leave at one time.
        self._pacer = Pacer(self._clock)
        self._site: Any = None
        self._resource: IResource | None = None
        #: True while other settings are taken, after which all is served anew.
        self._changing = False
        #: What is served with the present settings: a `ServedTree`.
        self._tree: Any = None

        #: The admin listeners; None without any.
        self._admin = self._make_admin(admin_socket)

        #: Writes the next lines of `log_sessions`.
        self._report_timer = Timer(self._clock)
        self._drain = Drain(self._clock, lambda: self.servers, lambda: self._site)

    @property
    def servers(self) -> list[Server]:
        """All servers; also those that were removed from the settings and have sessions left."""
        return list(self._served.values())

    def _make_tracing(self) -> Tracing:
        """Make what records spans.  Raises `SettingError` without OpenTelemetry."""
        try:
            # Imported only here: OpenTelemetry is an extra, and takes long to import.
            from mcpbridge.tracing.opentelemetry import OpenTelemetryTracer
        except ImportError as error:
            raise SettingError(
                "tracing",
                "OpenTelemetry, which `pip install 'mcpbridge[tracing]'` installs",
                Described(str(error)),
            ) from None
        return Tracing(self.settings.trace_ratio, self._clock, OpenTelemetryTracer)

    # What operators see: `admin.view.BridgeView`.

    @property
    def connection_count(self) -> int:
        """How many connections of clients are open."""
        return 0 if self._site is None else len(self._site.channels)

    @property
    def loop_lag(self) -> float:
        """The longest delay of the reactor in the last `LAG_SECONDS`, in seconds."""
        return self._lag.longest

    @property
    def response_bytes(self) -> int:
        """How many bytes are held for clients that have not read them yet."""
        return self._budget.used

    def usage(self) -> Deferred[Usages]:
        """
        Find out what each process tree uses, by the pid of its first process, and this process
        by its own.  The answer is at most `USAGE_SECONDS` old; what cannot be read is left
        out, and the Deferred never fails.
        """
        return self._usage.get()

    def _check_confinement(self, servers: Sequence[ServerSettings]) -> None:
        """Raise `SettingError` if this machine cannot confine servers as configured."""
        errors: list[SettingError] = []
        for each in servers:
            if each.launcher is None and self._launcher is None and not each.is_remote:
                errors += confinement_errors(each, self._environment)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise SettingErrors([str(each) for each in errors])

    def _control_access(
        self, settings: BridgeSettings, previous: AccessControls | None = None
    ) -> AccessControls:
        """Make what decides who may come in."""
        return AccessControls(
            settings,
            self._reactor,
            lambda name, server: load("auth.authenticator", IAuthenticator, name, server),
            self._authenticator,
            previous,
        )

    def _extensions(self, settings: ServerSettings, before: Server | None = None) -> Extensions:
        """Make what starts and watches the processes of a server, or else that of the bridge."""
        # A launcher that sets no variables would start processes without their credentials.
        interface = IEnvironmentLauncher if settings.env_from else IBackendLauncher
        launcher = load("launcher", interface, settings.launcher, settings)
        if launcher is None:
            setting = f"mcpServers.{settings.name}.env_from"
            launcher = verified(setting, interface, self._launcher)
        observers = [load("observers", ISessionObserver, x, settings) for x in settings.observers]
        filters = [load("filters", IMessageFilter, x, settings) for x in settings.filters]
        event_store = load("event_store", IEventStore, settings.event_store, settings)
        limiter = load("limiter", ISessionLimiter, settings.limiter, settings)
        if settings.is_remote:
            launcher = self._remote_launcher(settings)
        elif launcher is None:
            launcher = self._local.launcher(settings, self._budget)
        elif isinstance(launcher, LocalLauncher):
            self._local.include(launcher)
        limiter = self._limiter if limiter is None else limiter
        own_limit = None
        if limiter is None:
            # What its processes of before have counts as well.
            own_limit = None if before is None else before.extensions.own_limit
            own_limit = own_limit or SessionLimiter(settings.max_sessions)
        return Extensions(
            launcher,
            own_limit if limiter is None else limiter,
            own_limit,
            [*self._observers, *observers],
            [*self._filters, *filters],
            self._event_store if event_store is None else event_store,
        )

    def _serve(
        self, settings: ServerSettings, extensions: Extensions, control: AccessControl | None
    ) -> Server:
        """Add a server."""
        part = self._limits.sessions.part(settings.max_sessions)
        server = Server(
            settings,
            self._clock,
            launcher=extensions.launcher,
            limiter=CombinedLimiter(part, extensions.limiter),
            bridge_limiter=part,
            own_limit=extensions.own_limit,
            observers=extensions.observers,
            filters=extensions.filters,
            event_store=extensions.event_store,
            budget=self._budget,
            shares=self._shares(control),
            streams=self._limits.streams,
            work=self._work,
            pools=self._pools,
            access_control=control,
            audit=self._audit,
            counters=self.counters.of(settings.name),
            measure=self.settings.metrics,
            tracing=self._tracing,
            drained=self._drained,
            released=lambda extensions: self._local.exclude(extensions.launcher),
        )
        self._served[settings.base_uri] = server
        self._launchers.append((settings.name, extensions.launcher))
        return server

    def _shares(self, control: AccessControl | None) -> list[Any]:
        return self._limits.shares(of_identities=control is not None and control.identifies)

    # Other settings.

    def reload(self, settings: BridgeSettings) -> str:
        """
        Serve with other settings from now on; return what has changed, in one line.

        New sessions get processes of the new settings, and those that there are keep
        theirs; a server that is removed opens none any more, and its sessions go on until
        they end.  Who may come in, which tools there are, and limits hold at once for
        everybody.  A session whose client would not be admitted any more ends.
        Listeners that are in both settings stay open.

        Raises `SettingError`, `CannotListen`, and `ShuttingDown` once it is about to stop; then
        nothing has changed.
        """
        if self.condition != "serving":
            raise ShuttingDown("the bridge is shutting down")
        before = self.settings
        found = changes(before, settings)
        if not settings.servers:
            raise SettingError("mcpServers", "at least one server", Described("none"))
        prepared = self._prepare(without_restart(before, settings), found.opened)
        self._commit(prepared, found.closed)
        return str(found)

    def _prepare(self, settings: BridgeSettings, opened: Sequence[str]) -> _Prepared:
        """Do all that may fail."""
        controls = self._control_access(settings, self._access_controls)
        servers: list[_PreparedServer] = []
        ports: list[tuple[str, IListeningPort]] = []
        try:
            for each in settings.servers:
                before = self._served.get(each.base_uri)
                server = _PreparedServer(each, None, controls.of(each))
                if before is None or before.removed or needs_new_processes(before.settings, each):
                    self._check_confinement([each])
                    server = server._replace(extensions=self._extensions(each, before))
                servers.append(server)
            ports.extend(self._listen(each) for each in (opened if self.running else ()))
            kept = [port for description, port in self._ports if description in settings.listen]
            self._check_exposure(
                [*kept, *(port for _, port in ports)],
                [each.settings.name for each in servers if not each.identifies],
                insecure=settings.insecure,
            )
        except BaseException:
            controls.discard()
            for made in servers:
                if made.extensions is not None:
                    self._local.exclude(made.extensions.launcher)
            for _, port in ports:
                close_port(port).addErrback(self._not_closed)
            raise
        present = {each.base_uri for each in settings.servers}
        removed = [
            (each, self._control_of_removed(controls, each))
            for each in self.servers
            if each.settings.base_uri not in present
        ]
        return _Prepared(settings, controls, servers, removed, ports)

    def _control_of_removed(self, controls: AccessControls, server: Server) -> AccessControl | None:
        """
        Return who may go on to use a server that is not in the settings: what these say of
        callers holds there, too.  None where nobody can be told apart any more.
        """
        try:
            return controls.of(server.settings)
        except SettingError as error:
            name = server.settings.name
            self.log.warn("server {server!r} was removed: {error}", server=name, error=error)
            return None

    def _commit(self, prepared: _Prepared, closed: Sequence[str]) -> None:
        """Serve with what was prepared."""
        settings, controls, servers, removed, ports = prepared
        warned = set(configuration_warnings(self.settings, self._environment))
        self.settings = settings
        self._limits.change(settings)
        if self._tracing is not None:
            self._tracing.change(settings.trace_ratio)
        self._access_controls = controls
        known = {id(launcher) for _, launcher in self._launchers}
        self._launchers = []
        for new in servers:
            base = new.settings.base_uri
            server = self._served.get(base)
            if server is None and new.extensions is not None:
                server = self._serve(new.settings, new.extensions, new.control)
                if self.running:
                    server.start()
            elif server is not None:
                shares = self._shares(new.control)
                server.reconfigure(new.settings, new.extensions, new.control, shares)
                self._launchers.append((new.settings.name, server.extensions.launcher))
        for each in self.servers:
            each.counters.name = each.settings.name
        self.counters.keep([each.counters for each in self.servers])
        self._changing = True
        for server, control in removed:
            server.change_access(control)
            if not server.removed:
                server.remove()
        self._changing = False
        # Requests that wait for an issuer of before ask those of now.
        controls.take_over()
        if self.running:
            self._local.start(settings)
            self._check_launchers([x for x in self._launchers if id(x[1]) not in known])
        self._ports += ports
        before = {port for _, port in self._ports}
        self._close_ports(closed).addErrback(self._not_closed)
        self._rebuild()
        if self._site is not None:
            self._site.close_those_of(before - {port for _, port in self._ports})
        for warning in configuration_warnings(settings, self._environment):
            if warning not in warned:
                self.log.warn("{warning}", warning=warning)

    def _drained(self, server: Server) -> None:
        """Forget a server that was removed, and of which nothing is left."""
        if self._served.get(server.settings.base_uri) is server:
            del self._served[server.settings.base_uri]
            self.counters.keep([each.counters for each in self.servers])
            self.log.info("server {server!r}: nothing is left of it", server=server.settings.name)
            if not self._changing:
                self._rebuild()

    def _rebuild(self) -> None:
        """Serve over HTTP what there is now."""
        if self._tree is None:
            return
        self._tree = self._make_tree()
        if self._site is not None:
            self._site.reconfigure(self.settings, self._tree.fast_path)

    def _not_closed(self, failure: Failure) -> None:
        self.log.failure("a listener could not be closed", failure)

    def _remote_launcher(self, settings: ServerSettings) -> object:
        # Imported here, as most bridges have local servers alone.
        from mcpbridge.remote.launcher import RemoteLauncher

        return RemoteLauncher(settings, self._reactor, self._environment, budget=self._budget)

    # For embedding.

    def resource(self) -> IResource:
        """
        Return a resource that serves all servers, each below its base.

        It may be put anywhere in a site.  The call imports klein, and with it
        the reactor.  A site of your own does not apply the bridge's limits on
        bodies and connections; give it `parsePOSTFormSubmission=False`.
        """
        if self._resource is None:
            from mcpbridge.web.root import SecuredResource, Serving

            self._tree = self._make_tree()

            def serving() -> Serving:
                tree = self._tree
                return Serving(tree.security, tree.root, tree.note, tree.probe)

            self._resource = SecuredResource(serving)
        return self._resource

    def _make_tree(self) -> Any:
        """Make what is served over HTTP with the present settings."""
        from mcpbridge.web.tree import ServedTree

        return ServedTree(
            self.settings,
            self.servers,
            self._clock,
            attempts=self._attempts,
            audit=self._audit,
            documents=self._access_controls.documents,
            pacer=self._pacer,
            counters=self.counters,
            health=self.health,
        )

    def site(self) -> Any:
        """Return the site of the bridge's own listeners: the resource, with all limits."""
        if self._site is None:
            from mcpbridge.web.site import BridgeSite

            resource = self.resource()
            self._site = BridgeSite(
                resource,
                self._reactor,
                self.settings,
                self._tree.fast_path if self.settings.fast_path else None,
                self._budget,
                is_costly=lambda head: bool(self._tree.fast_path.is_costly(head)),
                refuse_sender=lambda *given: self._tree.fast_path.refuse_sender(*given),
                pacer=self._pacer,
                counters=self.counters,
                freed=self._trimmer.freed,
            )
        return self._site

    def urls(self) -> list[str]:
        """Return the URLs that the bridge's own listeners serve."""
        return served_urls([port for _, port in self._ports], self.settings.servers)

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

    # What operators do: the rest of `BridgeView`.

    def _make_admin(self, admin_socket: bool) -> Any:
        """Make the admin listeners; return None where there are to be none."""
        given = self.settings.admin_listen
        if given in ((), ("none",)) or (given is None and not admin_socket):
            return None
        # Imported here, as an embedded bridge seldom has any.
        from mcpbridge.admin.listener import AdminListeners

        return AdminListeners(self, self._reactor, self._state_directory)

    def _state_directory(self) -> str:
        """Return the state directory; make it if it is missing.  Raises `NoStateDirectory`."""
        folders = candidates(self.settings.state_dir, self._environment, os.geteuid())
        return open_state_directory(folders)

    def end_session(self, ident: str, why: str) -> str:
        """
        End the session, or another process, whose short id this is, or begins with it; return
        its short id.

        Raises `NotFound` if there is none, and `Ambiguous` if there are several.
        """
        if not LEAST_LABEL_CHARS <= len(ident) <= LABEL_CHARS:
            raise NotFound(
                f"a session is named by {LEAST_LABEL_CHARS} to {LABEL_CHARS} characters of its id"
            )
        found = [
            (server, session)
            for server in self.servers
            for session in server.unclosed
            if session.receiving and session.ident.startswith(ident)
        ]
        if not found:
            raise NotFound(f"there is no session {ident!r}, or it has ended")
        if len(found) > 1:
            raise Ambiguous(f"{len(found)} sessions begin with {ident!r}; write more of its id")
        [(server, session)] = found
        server.end_session(session, why)
        return session.label

    def reload_file(self) -> str:
        """Raise `NotSupported`: the settings are from no file.  The command has one."""
        raise NotSupported("the settings of this bridge are from no file that could be read again")

    # IService.

    def privilegedStartService(self) -> None:
        """Open all listeners, or none of them and raise `CannotListen`."""
        super().privilegedStartService()
        if self._ports:
            return
        try:
            for description in self.settings.listen:
                self._ports.append(self._listen(description))
            ports = [port for _, port in self._ports]
            self._check_exposure(ports, self._open_servers(), insecure=self.settings.insecure)
            if self._admin is not None:
                self._admin.open()
        except CannotListen:
            self._close_ports()
            raise

    def startService(self) -> None:
        """Start to serve; log the URLs and everything that an operator should look at."""
        if self.running:
            return
        self.privilegedStartService()
        super().startService()
        self.condition = "serving"
        self._local.start(self.settings)
        self._lag.start()
        if self._audit is not None:
            self._audit.start()
        if self._tracing is not None:
            # A wrong variable of OpenTelemetry is no reason not to serve.
            guarded(self.log, "beginning to record spans", self._tracing.start)
        if self._admin is not None:
            self._admin.start()
        for url in self.urls():
            self.log.info("serving {url}", url=url)
        for url in index_urls([port for _, port in self._ports]):
            self.log.info("see {url} for all servers, and for how to connect to them", url=url)
        self._warn_of_exposure()
        for warning in configuration_warnings(self.settings, self._environment):
            self.log.warn("{warning}", warning=warning)
        self._check_launchers(self._launchers)
        for server in self.servers:
            server.start()

    def _check_launchers(self, launchers: Sequence[tuple[str, Any]]) -> None:
        """Warn of what would prevent starts, and log what confines the processes."""
        for name, launcher in launchers:
            problem = guarded(self.log, "checking a launcher", launcher.check)
            if problem is not None:
                self.log.warn("server {server!r}: {problem}", server=name, problem=problem)
        settings = {each.name: each for each in self.settings.servers}
        for name, launcher in launchers:
            confinement = describe_confinement(settings[name])
            if not confinement:
                continue
            if isinstance(launcher, LocalLauncher):
                text = "server {server!r} is confined: {confinement}"
                self.log.info(text, server=name, confinement=confinement)
            else:
                self.log.warn(
                    "server {server!r}: its own launcher has to confine it, the bridge does not"
                    " ({confinement})",
                    server=name,
                    confinement=confinement,
                )

    def _check_exposure(
        self, ports: Sequence[IListeningPort], open_servers: Sequence[str], *, insecure: bool
    ) -> None:
        """Raise `Exposed` if other machines reach a server that asks nobody who they are."""
        origins = exposed(ports)
        if open_servers and origins and not insecure:
            raise Exposed(_EXPOSED.format(origin=origins[0], what=_named(open_servers)))

    def _open_servers(self) -> list[str]:
        """Return the names of the servers that let everybody in."""
        return [each.settings.name for each in self.servers if each.is_open]

    def _warn_of_exposure(self) -> None:
        if not self._open_servers():
            return
        for origin in exposed([port for _, port in self._ports]):
            self.log.warn(
                "{origin} may be reached from other machines, and there is no authentication:"
                " whoever reaches it runs a backend{hosts}",
                origin=origin,
                hosts="" if self.settings.allowed_hosts else _NAME_THE_HOSTS,
            )

    def drain(self) -> Deferred[None]:
        """
        Close the listeners, finish running requests, and refuse new ones with `ShuttingDown`.

        An application that wants no request to be lost calls this before `stopService`.  The
        `Deferred` fires when no request runs any more, after `drain_timeout` seconds at most;
        at once where that is 0, and nothing is refused then.  Sessions end as soon as they
        have no request to answer.
        """
        if self.running and self.condition == "serving" and self.settings.drain_timeout:
            self.condition = "draining"
            self._close_ports().addErrback(self._not_closed)
            self._drain.start(self.settings.drain_timeout)
        return self._drain.over()

    def draining_for(self) -> str:
        """Return which requests `drain` waits for, in a few words; nothing if for none."""
        return self._drain.left() if self._drain.is_running else ""

    def hurry(self) -> None:
        """Do not wait for running requests any longer: the `Deferred` of `drain` fires."""
        self._drain.hurry()

    def kill(self) -> None:
        """Kill the processes of all sessions at once, without the graces of a stop."""
        for server in self.servers:
            server.kill()

    def stopService(self) -> Deferred[Any]:
        """
        Close the listeners, end all sessions, and stop the watchdog.

        The `Deferred` fires when nothing is left, after `longest_stop` seconds
        at most.
        """
        super().stopService()
        self.condition = "stopping"
        self._drain.hurry()
        self._report_timer.stop()
        self._lag.stop()
        closed = [self._close_ports()]
        self._local.begin_stop()
        ended = self._end_sessions()
        if self._site is not None:
            closed.append(self._site.close_connections())

        def sessions_ended(_: object) -> Deferred[Any]:
            self._budget.stop()
            self._access_controls.stop()
            self._trimmer.stop()
            if self._audit is not None:
                self._audit.stop()
            if self._tracing is not None:
                closed.append(self._tracing.stop())
            return DeferredList([*closed, self._local.stop_recovery()])

        def watchdog_ended(nothing_left: bool) -> None:
            left = any(server.unclosed for server in self.servers)
            self._local.close(clean=nothing_left and not left)

        def close_admin(result: Any) -> Any:
            # The last of all: operators watch how the bridge stops.
            if self._admin is None:
                return result
            return self._admin.close().addCallback(lambda _: result)

        ended.addCallback(sessions_ended)
        stopped = ended.addCallback(lambda _: self._local.stop_watchdog())
        return stopped.addCallback(watchdog_ended).addBoth(close_admin)

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
        flush = 0.0 if self._tracing is None else FLUSH_SECONDS
        return self._longest_end() + flush + self._local.longest_stop

    def _longest_end(self) -> float:
        """Return the most seconds that the end of all sessions takes."""
        graces = [each.longest_grace for each in self.servers]
        slack = STOP_SLACK_SECONDS
        if self._local.starts_containers:
            slack += CONTAINER_STOP_SECONDS
        return max(graces, default=0) + slack

    def _listen(self, description: str) -> tuple[str, IListeningPort]:
        """Open one listener.  Raises `CannotListen`."""
        failures: list[Failure] = []
        ports: list[IListeningPort] = []
        try:
            listening = make_endpoint(self._reactor, description).listen(self.site())
        except Exception as error:
            raise CannotListen(f"cannot listen on {description!r}: {error}") from error

        def listens(port: IListeningPort) -> None:
            ports.append(port)
            keep_open_for_others(port)
            self._accept_errors.watch(port)

        listening.addCallbacks(listens, failures.append)
        if failures:
            why = failures[0].getErrorMessage()
            raise CannotListen(f"cannot listen on {description!r}: {why}") from failures[0].value
        if not ports:
            raise CannotListen(f"cannot listen on {description!r}: it does not listen at once")
        return description, ports[0]

    def _close_ports(self, descriptions: Sequence[str] | None = None) -> Deferred[Any]:
        """Close listeners of these descriptions, or all; each description is for one."""
        closed: list[tuple[str, IListeningPort]] = self._ports
        kept: list[tuple[str, IListeningPort]] = []
        if descriptions is not None:
            left = Counter(descriptions)
            closed = []
            for description, port in self._ports:
                (closed if left[description] > 0 else kept).append((description, port))
                left[description] -= 1
        self._ports = kept
        return DeferredList([stop_listening(*each) for each in closed], consumeErrors=True)


class _PreparedServer(NamedTuple):
    """
    A server of other settings: its own, its extensions unless its processes are started as
    before, and who may use it.
    """

    settings: ServerSettings
    extensions: Extensions | None
    control: AccessControl | None

    @property
    def identifies(self) -> bool:
        """True if it asks callers who they are."""
        return self.control is not None and self.control.identifies


class _Prepared(NamedTuple):
    """All that may fail of a change of the settings, done."""

    settings: BridgeSettings
    controls: AccessControls
    servers: list[_PreparedServer]
    #: The servers that these settings do not have, and who may use what is left of them.
    removed: list[tuple[Server, AccessControl | None]]
    ports: list[tuple[str, IListeningPort]]


def _named(servers: Sequence[str]) -> str:
    """Name servers in an error."""
    more = f" and {len(servers) - NAMED_SERVERS} more" if len(servers) > NAMED_SERVERS else ""
    return ", ".join(map(repr, servers[:NAMED_SERVERS])) + more
