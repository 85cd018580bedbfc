"""
What is served over HTTP with one set of settings: paths, who may come in, and the fast
path to them.

Made anew when other settings are loaded.  Knows all that answers requests; must not know
listeners and connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource

from mcpbridge.audit_log import AuditLog
from mcpbridge.auth.factory import AUTHORIZATION, secret_headers
from mcpbridge.auth.failed_attempts import FailedAttempts
from mcpbridge.config.settings import BridgeSettings
from mcpbridge.counters import BridgeCounters
from mcpbridge.health import BridgeHealth
from mcpbridge.pacer import Pacer
from mcpbridge.server import Server
from mcpbridge.web.admission import Admission
from mcpbridge.web.client_addresses import CallerOf, ClientAddresses, no_caller, tell_callers
from mcpbridge.web.endpoints import Endpoint
from mcpbridge.web.fast_path import FastPath
from mcpbridge.web.index import Index
from mcpbridge.web.probes import Probes
from mcpbridge.web.refusals import Delays, Refusals
from mcpbridge.web.root import Branch
from mcpbridge.web.routes import Routes
from mcpbridge.web.server_card import ServerCards
from mcpbridge.web.transport_security import TransportSecurity
from mcpbridge.web.well_known import ResourceMetadata


class ServedTree:
    """
    The resources of all servers below their bases, and the fast path to them.

    `servers` are those that are served, also those that were removed from the settings
    and have sessions left.  `documents` are those of protected resources, by path.
    `endpoints` serve plain requests directly, by method and path.
    """

    def __init__(
        self,
        settings: BridgeSettings,
        servers: Sequence[Server],
        clock: IReactorTime,
        *,
        attempts: FailedAttempts,
        audit: AuditLog | None,
        documents: Mapping[str, dict[str, Any]],
        pacer: Pacer,
        counters: BridgeCounters,
        health: BridgeHealth,
    ) -> None:
        self.security = TransportSecurity(settings, clock)
        self._clock = clock
        self._pacer = pacer
        self._clients = clients = ClientAddresses(settings)
        self._delays = Delays(attempts, clock, clients.of_request)
        present = [each for each in servers if not each.removed]
        self._cards = ServerCards(present, clients.is_proxy)
        is_open = all(each.is_open for each in servers)
        #: Health checks, by the segments of their paths.
        self.probe = Probes(health, [each.settings for each in servers]).find
        self.root = Branch(servers=[each.settings for each in present], hints=is_open)
        self._cards.serve_well_known(self.root)
        ResourceMetadata(documents).serve_well_known(self.root)
        self.endpoints: dict[tuple[bytes, bytes], Endpoint] = {}
        for server in servers:
            self._serve(server)
        self.fast_path = FastPath(servers, self.security, self.endpoints)
        refusals = Refusals(audit, "", clients.address, counters.refusals)
        self.root.index = cast(
            "IResource",
            Index(
                lambda: servers,
                lambda: settings,
                clock,
                origin=lambda request: self._cards.origin(request)[0],
                delays=self._delays,
                refusals=refusals,
            ),
        )
        #: Takes note of a request that transport security has refused.
        self.note = refusals.note

    def _serve(self, server: Server) -> None:
        branch = self.root
        for segment in server.settings.base_uri.split("/")[1:]:
            branch = branch.branch(segment.encode("ascii"))
        admission = Admission(server.settings.name, server.access_control, self._delays)
        clients = self._clients
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
            self._cards,
            caller_of,
            self._pacer,
            admission,
            clients.address,
        )
        branch.serve(server.settings, routes.resource())
        self.endpoints.update(routes.endpoints())
