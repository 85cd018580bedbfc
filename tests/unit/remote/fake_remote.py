"""A remote server in memory: a test reads what it was sent, and writes its responses."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.config.oauth import origin_of
from mcpbridge.config.settings import ServerSettings
from mcpbridge.remote.backend import RemoteBackend
from mcpbridge.remote.connections import Connections
from mcpbridge.remote.context import RemoteServer
from mcpbridge.remote.http_client import HttpClient
from mcpbridge.remote.problems import shown_url

INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{}}'
)


def request(ident: int, method: str = "tools/list", params: str = "{}") -> bytes:
    """Return a request of a legacy client."""
    text = f'{{"jsonrpc":"2.0","id":{ident},"method":"{method}","params":{params}}}'
    return text.encode()


def modern(ident: int, method: str = "tools/list", params: bytes = b"") -> bytes:
    """Return a request of 2026-07-28."""
    inner = META + (b"," + params if params else b"")
    return b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":{%b}}' % (
        ident,
        method.encode(),
        inner,
    )


def result(ident: int, content: str = "{}") -> bytes:
    """Return an answer."""
    return f'{{"jsonrpc":"2.0","id":{ident},"result":{content}}}'.encode()


class Sent(NamedTuple):
    """A request as the server has read it; names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Wire(StringTransport):
    """One connection, seen from the server."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.is_open = True
        self.paused = False

    def sent(self) -> list[Sent]:
        """Return the requests on this connection so far."""
        rest, found = self.value(), []
        while b"\r\n\r\n" in rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
            method, target, _ = first.split(" ")
            size = int(headers.get("content-length", 0))
            found.append(Sent(method, target, headers, rest[:size]))
            rest = rest[size:]
        return found

    # What the server does.

    def say(self, data: bytes) -> None:
        """Write bytes."""
        if self.is_open:
            self.protocol.dataReceived(data)

    def respond(self, status: int, body: bytes = b"", kind: str = "", **headers: str) -> None:
        """Write a whole response."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
        lines += [f"Content-Type: {kind}"] if kind else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.say("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def answer(self, body: bytes, **headers: str) -> None:
        """Respond with JSON."""
        self.respond(200, body, "application/json; charset=utf-8", **headers)

    def stream(self, **headers: str) -> None:
        """Begin a response with events."""
        lines = ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked"]
        lines += ["Content-Type: text/event-stream"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.say("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def event(self, data: bytes, *, name: str = "", ident: str = "") -> None:
        """Write an event."""
        fields = (f"event: {name}\n" if name else "") + (f"id: {ident}\n" if ident else "")
        self.chunk(fields.encode() + b"data: " + data + b"\n\n")

    def chunk(self, data: bytes) -> None:
        """Write a part of a stream."""
        self.say(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        """End a stream as HTTP wants it."""
        self.say(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Lose the connection."""
        self._close(ConnectionLost())

    # ITransport.

    def abortConnection(self) -> None:
        self._close(ConnectionDone())

    def loseConnection(self) -> None:
        self._close(ConnectionDone())

    def _close(self, why: Exception) -> None:
        if self.is_open:
            self.is_open = False
            self.protocol.connectionLost(Failure(why))

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False


@implementer(IStreamClientEndpoint)
class Network:
    """Leads to the server; `refusal` is raised instead if it is set."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.refusal: Exception | None = None

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        if self.refusal is not None:
            return fail(self.refusal)
        protocol = protocolFactory.buildProtocol(None)
        self.wires.append(Wire(protocol))
        protocol.makeConnection(self.wires[-1])
        return succeed(protocol)


class Receiver:
    """The session above."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.events: list[tuple[Any, ...]] = []
        self.within_call = False

    def _note(self, *event: Any) -> None:
        assert not self.within_call, "reported within a call"
        self.events.append(event)

    def messages_received(self, lines: list[bytes]) -> None:
        assert not self.within_call, "reported within a call"
        self.lines += lines

    def message_lost(self, lost: Any) -> None:
        self._note("lost", lost)

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        self._note("misbehaved", fault, what)

    def diagnostics_received(self, lines: list[bytes]) -> None:
        self._note("diagnostics", lines)

    def input_closed(self, reason: str) -> None:
        self._note("input", reason)

    def output_closed(self, reason: str) -> None:
        self._note("output", reason)

    @property
    def death(self) -> str:
        """Why the backend has died; empty if it lives."""
        reasons = {event[1] for event in self.events if event[0] in ("input", "output")}
        kinds = [event[0] for event in self.events if event[0] in ("input", "output")]
        assert kinds in ([], ["input", "output"])
        return str(reasons.pop()) if reasons else ""


class Remote:
    """A backend with its server."""

    def __init__(self, url: str = "http://remote.test/mcp?key=secret", **changes: Any) -> None:
        self.settings = ServerSettings(name="test", command="", url=url, **changes)
        self.clock = Clock()
        self.network = Network()
        self.receiver = Receiver()
        origin = origin_of(url)
        self.connections = Connections(self.clock, self.network, 10.0, is_tls=False)
        headers = dict(self.settings.headers)
        self.client = HttpClient(self.clock, self.connections, origin, headers)
        path = url.partition("://")[2].partition("/")[2]
        self.server = RemoteServer(
            self.settings, origin, f"/{path}", shown_url(url), self.settings.remote_transport
        )
        self.backend = RemoteBackend(self.server, self.client, self.clock, self.receiver)

    @property
    def wires(self) -> list[Wire]:
        """All connections."""
        return self.network.wires

    @property
    def sent(self) -> list[Sent]:
        """All requests, by connection."""
        return [each for wire in self.wires for each in wire.sent()]

    def send(self, *lines: bytes) -> None:
        """Send messages as the session does."""
        self.receiver.within_call = True
        try:
            for line in lines:
                self.backend.send(line)
        finally:
            self.receiver.within_call = False
        self.turn()

    def turn(self, seconds: float = 0) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    def wire_of(self, body: bytes) -> Wire:
        """Return the connection whose last request has this body."""
        [wire] = [each for each in self.wires if each.sent() and each.sent()[-1].body == body]
        return wire

    def initialize(self, version: str = "2025-11-25", session: str = "s1") -> None:
        """Open a session, with a GET stream that waits for its response."""
        self.send(INITIALIZE)
        headers = {"Mcp_Session_Id": session} if session else {}
        answer = json.dumps({"protocolVersion": version})
        self.wire_of(INITIALIZE).answer(result(1, answer), **headers)
        self.send(INITIALIZED)
        self.wire_of(INITIALIZED).respond(202)
        self.turn()
        self.receiver.lines.clear()

    def listen(self) -> Wire:
        """Accept the GET stream."""
        [wire] = [each for each in self.wires if each.sent() and each.sent()[-1].method == "GET"]
        wire.stream()
        return wire

    def stop(self) -> list[None]:
        """Stop the backend; return the list that gets an element when it has stopped."""
        stopped: list[None] = []
        self.backend.stop().addCallback(stopped.append)
        self.turn()
        return stopped

    def finish(self) -> None:
        """Stop the backend, and see that nothing is left."""
        stopped = self.stop()
        self.turn(self.settings.stop_grace)
        self.turn()
        assert stopped == [None]
        assert not any(wire.is_open for wire in self.wires)
        assert not self.clock.getDelayedCalls()
