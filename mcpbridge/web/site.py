"""
The site of a bridge's own listeners: its limits, its log, its connections.

Knows connections; must not know what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import perf_counter
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import Site

from mcpbridge.config.settings import BridgeSettings, share_of
from mcpbridge.config.tuning import IDLE_SECONDS
from mcpbridge.counters import BridgeCounters
from mcpbridge.errors import Refused
from mcpbridge.guard import guarded
from mcpbridge.pacer import Pacer
from mcpbridge.processes.address_shares import Shares
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.timers import Timer
from mcpbridge.web.access_log import AccessLog, LoggedRequest
from mcpbridge.web.bounded_request import BodyBudget, BridgeRequest
from mcpbridge.web.client_addresses import ClientAddresses
from mcpbridge.web.connection import BridgeConnection, RefuseSender
from mcpbridge.web.connection_limits import Connections
from mcpbridge.web.fair_turns import FairTurns
from mcpbridge.web.fast_connection import FastConnection
from mcpbridge.web.fast_path import FastPath, FastResponses
from mcpbridge.web.request_parser import Head
from mcpbridge.web.transport_security import listener_of

#: How long connections may take to close when the bridge stops.
CLOSE_SECONDS = 1.0
#: A client that has heard nothing of the stop may send a request so long after its last one.
QUIET_SECONDS = 0.5


#: A component of its own, so that its level can be set alone.
_access_lines = Logger(namespace="mcpbridge.access")


class BridgeSite(Site):
    """
    Serves a resource with bounded bodies, waits and connections, over HTTP/1.1.

    `is_costly` tells which requests wait for their turn where many come at once,
    `refuse_sender` whose large bodies are not received,
    `counters` count what is no request at all, and `pacer` spreads the ends of connections
    over iterations of the reactor.
    Its connections ask it for their limits (`connection.ConnectionSite`).  `freed` is
    called when a large request body is given back, `seconds` is `FairTurns`'
    clock.
    """

    log_lines = Logger()

    def __init__(
        self,
        resource: IResource,
        reactor: Any,
        settings: BridgeSettings,
        fast_path: FastPath | None = None,
        responses: ResponseBudget | None = None,
        *,
        is_costly: Callable[[Head], bool] = lambda head: True,
        refuse_sender: RefuseSender = lambda head, end, share: None,
        pacer: Pacer | None = None,
        counters: BridgeCounters | None = None,
        freed: Callable[[], None] = lambda: None,
        seconds: Callable[[], float] = perf_counter,
    ) -> None:
        super().__init__(
            resource,
            requestFactory=BridgeRequest,
            timeout=IDLE_SECONDS,
            reactor=reactor,
            parsePOSTFormSubmission=False,
        )
        self.clock: IReactorTime = reactor
        self.fast_path = fast_path
        # Not Twisted's generic one, which may become HTTP/2.
        self.protocol: Any = BridgeConnection if self.fast_path is None else FastConnection
        self.turns = FairTurns(reactor, seconds)
        self.pacer = pacer or Pacer(reactor)
        self.is_costly = is_costly
        self.refuse_sender = refuse_sender
        self._body_shares = Shares(
            1, reactor, what="request bytes", setting="max_request_bytes_per_address"
        )
        self.budget = BodyBudget(1, self._body_shares, freed)
        self.responses = responses
        self.channels: set[BridgeConnection] = set()
        self._connections = Connections(1, 1, reactor)
        self._configure(settings)
        #: Gets each request that is complete; None while there is no access log.
        self.access_log = AccessLog(reactor, _access_lines) if settings.access_log else None
        self._refusals = FastResponses()
        self._counters = counters or BridgeCounters()
        self._emptied: Deferred[None] | None = None
        self._abort_timer = Timer(reactor)

    def _configure(self, settings: BridgeSettings) -> None:
        """Hold what the settings say for all connections and requests from now on."""
        self.clients = ClientAddresses(settings)
        self.max_body = max(server.max_message_bytes for server in settings.servers)
        share = share_of(settings.max_request_bytes, settings.max_request_bytes_per_address)
        # One message must fit into a share, however small that is.
        self._body_shares.limit = max(share, self.max_body)
        self.budget.limit = settings.max_request_bytes
        # A connection does not know which servers' responses will be written to it.
        self.peer_timeout = max(server.peer_timeout for server in settings.servers)
        self.min_transfer_rate = min(server.min_transfer_rate for server in settings.servers)
        self._connections.change(
            settings.connection_limit,
            share_of(settings.connection_limit, settings.max_connections_per_address),
        )

    def reconfigure(self, settings: BridgeSettings, fast_path: FastPath) -> None:
        """
        Serve with other settings from now on.

        Connections stay open; which of them are a trusted proxy's, and are not counted, was
        decided when they were opened.
        """
        self._configure(settings)
        if self.fast_path is not None:
            self.fast_path = fast_path
        for channel in self.channels:
            if isinstance(channel, FastConnection):
                channel.settings_changed()

    def close_those_of(self, listeners: Collection[object]) -> None:
        """Close the connections of listeners that are closed, each when it has been answered."""
        for channel in list(self.channels):
            if listener_of(channel.transport) in listeners:
                guarded(self.log_lines, "closing a connection", channel.leave)

    def drain(self, busy: Collection[str]) -> None:
        """
        Close connections as the bridge is about to stop, each when it has been answered and
        then quiet for `QUIET_SECONDS`: what its client has sent by then gets a response.

        Those stay on which the clients of these sessions, by their ids, may answer what
        their servers ask them.
        """
        for channel in list(self.channels):
            guarded(self.log_lines, "closing a connection", channel.drain, busy, QUIET_SECONDS)

    @property
    def unfinished(self) -> int:
        """How many connections have something to be served or sent."""
        return sum(channel.is_unfinished() for channel in self.channels)

    def opened(self, channel: BridgeConnection) -> bool:
        """Count a connection; return False if there are too many."""
        if not self._connections.admit(channel):
            return False
        self.channels.add(channel)
        return True

    def closed_by_client(self, channel: BridgeConnection) -> None:
        """Let a connection that its client has closed give way first."""
        self._connections.closed_by_client(channel)

    def closed(self, channel: BridgeConnection) -> None:
        """Count a connection no more."""
        self._connections.remove(channel)
        self.channels.discard(channel)
        if not self.channels and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            self._abort_timer.stop()
            emptied.callback(None)

    def is_pooled(self, transport: Any) -> bool:
        """
        Tell whether a proxy may send several clients' requests on this connection.

        A peer on a UNIX socket has no address, and is a proxy more often than not.
        """
        peer = transport.getPeer()
        return isinstance(peer, UNIXAddress) or self.clients.is_proxy(peer)

    def refusal(self, refused: Refused, host: str) -> bytes:
        """
        Return the whole response to a request of this address that is not HTTP
        as it should be; count and log it.
        """
        self._counters.refusals[type(refused).__name__] += 1
        if self.access_log is not None:
            size = len(refused.body())
            self.access_log.add(LoggedRequest.of(host, b"-", b"-", None), refused.status, size)
        return self._refusals.error_response(refused, close=True)

    def close_connections(self) -> Deferred[None]:
        """
        Close all connections when what was written is sent, and abort those that
        are left after `CLOSE_SECONDS`.  Fires when all are closed.
        """
        if self.access_log is not None:
            self.access_log.stop()
        if not self.channels:
            return succeed(None)
        emptied = self._emptied = Deferred()
        self._abort_timer.start(CLOSE_SECONDS, self._abort_all)
        for channel in list(self.channels):
            guarded(self.log_lines, "closing a connection", channel.loseConnection)
        return emptied

    def _abort_all(self) -> None:
        self._abort_timer.start(CLOSE_SECONDS, self._abort_all)
        for channel in list(self.channels):
            guarded(self.log_lines, "closing a connection", channel.transport.abortConnection)

    def log(self, request: Any) -> None:
        """
        Add a line for a complete request to the access log, if that is on; it ends
        with the session, if a header names one, and never has a whole session id.
        """
        if self.access_log is not None:
            named = request.requestHeaders.getRawHeaders(b"mcp-session-id") or [None]
            host = getattr(request.client, "host", "-")
            line = LoggedRequest.of(host, request.method, request.uri, named[0])
            self.access_log.add(line, request.code, request.sentLength)

    def acceptableProtocols(self) -> list[bytes]:
        """Return HTTP/1.1 alone: Twisted calls its HTTP/2 private and a draft."""
        return [b"http/1.1"]
