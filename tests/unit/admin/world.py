"""A bridge with its admin listeners in memory, and connections to them."""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from mcpbridge.admin.listener import AdminListeners
from mcpbridge.auth.named_tokens import make_token
from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.testing import FakeLauncher, RecordingSink

#: A token that may see, and one that may also control.
VIEWER, MASTER = make_token(), make_token()
TOKENS = {
    "eve": {"sha256": VIEWER[1]},
    "ann": {"sha256": MASTER[1], "role": "control"},
}
INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{}}'
AS_JSON = ("Content-Type: application/json",)


class Connection:
    """A connection to an admin listener."""

    def __init__(self, world: World, site: Any, *, host: str = "127.0.0.1") -> None:
        peer: Any = IPv4Address("TCP", host, 4000)
        here: Any = IPv4Address("TCP", "127.0.0.1", 9000)
        if site.trusted:
            peer, here = UNIXAddress(None), UNIXAddress(b"/s")
        self.world = world
        self.transport = Transport(here, peer)
        self.channel = self.transport.protocol = site.buildProtocol(peer)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """Send bytes, and let the reactor have some turns."""
        if not self.transport.is_closed:
            self.channel.dataReceived(data)
        self.world.turn()

    def request(
        self,
        method: str,
        target: str,
        *headers: str,
        token: str | None = None,
        host: str = "localhost",
    ) -> Response:
        """Send a request; return its response, as far as it has come."""
        fields = [f"Host: {host}", *headers]
        if token is not None:
            fields.append(f"Authorization: Bearer {token}")
        self.send("\r\n".join([f"{method} {target} HTTP/1.1", *fields, "", ""]).encode())
        return self.response()

    def response(self) -> Response:
        """Return what was written since the last call."""
        found = self.transport.value()
        self.transport.clear()
        return Response(found)

    def close(self) -> None:
        """Close the connection from the other end."""
        if not self.transport.is_closed:
            self.transport.is_closed = True
            self.channel.connectionLost(Failure(ConnectionDone()))
        self.world.turn()


class Transport(StringTransport):
    """A transport that can be aborted, which the protocol is told."""

    is_closed = False
    aborted = False

    def __init__(self, here: Any, peer: Any) -> None:
        super().__init__(hostAddress=here, peerAddress=peer)

    def abortConnection(self) -> None:
        self.aborted = True
        self._lost()

    def loseConnection(self) -> None:
        super().loseConnection()
        self._lost()

    def _lost(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    protocol: Any = None


class Response:
    """A response, read as far as it was written."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        head, _, self.body = data.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1.[01] ([0-9]+)", head)
        self.status = 0 if found is None else int(found[1])
        lines = head.decode("latin-1").split("\r\n")[1:]
        self.headers = {
            name.lower(): value for name, _, value in (x.partition(": ") for x in lines)
        }

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class World:
    """A bridge whose servers have fake backends."""

    def __init__(self, *servers: ServerSettings, **settings: Any) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.launcher = FakeLauncher()
        values: dict[str, Any] = {"listen": (), "admin_tokens": TOKENS, **settings}
        self.bridge = Bridge(
            BridgeSettings(servers=servers or (ServerSettings(command="x", name="a"),), **values),
            self.reactor,
            launcher=self.launcher,
        )
        self.server = self.bridge.servers[0]
        self.admin = AdminListeners(self.bridge, self.reactor)
        self.trusted = self.admin.site(trusted=True)
        self.public = self.admin.site(trusted=False)

    def turn(self) -> None:
        self.reactor.pump([0] * 6)

    def connect(self, *, trusted: bool = True, host: str = "127.0.0.1") -> Connection:
        return Connection(self, self.trusted if trusted else self.public, host=host)

    def get(self, target: str, *headers: str, token: str | None = None) -> Response:
        """Get something over the UNIX socket, or with a token over TCP."""
        return self.connect(trusted=token is None).request("GET", target, *headers, token=token)

    def post(self, target: str, *headers: str, token: str | None = None) -> Response:
        connection = self.connect(trusted=token is None)
        return connection.request("POST", target, *(headers or AS_JSON), token=token)

    def open(self) -> BackendSession:
        """Open a session of HTTP+SSE."""
        found: list[Any] = []
        opening = self.server.open_session(lambda _: RecordingSink())
        Deferred.fromCoroutine(opening).addBoth(found.append)
        session: BackendSession = found[0]
        return session

    def die(self, session: BackendSession, status: str = "exit status 1") -> None:
        """Let the backend of a session end by itself."""
        session.backend.exit_status = status
        session.output_closed(f"the backend ended ({status})")
        session.backend.stopped.callback(None)
