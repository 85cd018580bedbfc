"""
Limits, delays and audit records of a bridge, whichever way a request comes in: bytes of
connections on one side, fake backends on the other.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport
from zope.interface import implementer

from mcpbridge.auth.named_tokens import make_token
from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import (
    ATTEMPT_DELAY_SECONDS,
    ATTEMPTS_FREE,
    BURST_SECONDS,
    DELAYED_OF_ADDRESS,
)
from mcpbridge.errors import CannotStart, InvalidToken
from mcpbridge.interfaces import IAuthenticator
from mcpbridge.testing import CLEANLY, FakeBackend
from mcpbridge.web.refusals import transport_of
from tests.unit.web.test_stateless_http import Launcher, Legacy, Modern, answer

ALICE, BOB = make_token(), make_token()
AUTH = {"tokens": {"alice": {"sha256": ALICE[1]}, "bob": {"sha256": BOB[1]}}}
#: The two ways of a request: answered from its bytes, or as a request of twisted.web.
FAST, ORDINARY = "fast", "ordinary"


class TakesBatches(Legacy):
    """A server of 2025-03-26, which leaves all but `initialize` to the test."""

    def send(self, line: bytes) -> None:
        if b'"initialize"' not in line:
            FakeBackend.send(self, line)
            return
        result = {"protocolVersion": "2025-03-26", "capabilities": {}}
        self.receiver.messages_received([answer(json.loads(line)["id"], result)])


class Connection:
    """A connection of a client; what is written to it since it was looked at."""

    def __init__(self, world: World, host: str, way: str) -> None:
        self.world, self.way = world, way
        self.channel: Any = world.site.buildProtocol(None)
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", host, 40000))
        self.channel.makeConnection(self.transport)
        self.read = b""

    def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        token: str | None = None,
        *headers: str,
        session: str = "",
        version: str = "",
    ) -> None:
        fields = ["Host: h", "Accept: application/json, text/event-stream"]
        if token is not None:
            fields.append(f"Authorization: Bearer {token}")
        if session:
            fields.append(f"Mcp-Session-Id: {session}")
        if version:
            fields += [f"MCP-Protocol-Version: {version}", f"Mcp-Method: {_method(body)}"]
            fields += ["Mcp-Name: t"] if b'"name"' in body else []
        if self.way == ORDINARY:
            # No fast request has these two.
            fields += ["Expect: 100-continue"] if body else ["Connection: close"]
        if body:
            fields += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        head = "\r\n".join([f"{method} {path} HTTP/1.1", *fields, *headers, "", ""])
        self.channel.dataReceived(head.encode() + body)
        self.world.turn()

    def written(self) -> bytes:
        """Return what was written since the last call."""
        found = self.transport.value()
        self.transport.clear()
        return found.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")

    def status(self) -> int:
        """Return the status of the response, 0 for none yet, and keep it for `header`."""
        self.read = self.written()
        found = re.match(rb"HTTP/1.1 (\d+)", self.read)
        return 0 if found is None else int(found[1])

    def header(self, name: str) -> str | None:
        found = re.search(rb"(?im)^%b: ([^\r]*)" % name.encode(), self.read)
        return None if found is None else found[1].decode()

    def close(self) -> None:
        self.channel.connectionLost(CLEANLY)
        self.world.turn()


class World:
    """A bridge with one server."""

    def __init__(
        self,
        tmp_path: Path,
        kind: Any = Legacy,
        bridge: Any = MappingProxyType({}),
        authenticator: object = None,
        **changes: Any,
    ) -> None:
        self.reactor = MemoryReactorClock()
        self.path = tmp_path / "audit.jsonl"
        self.launcher = Launcher()
        self.launcher.kind = kind
        of_bridge = {
            key: changes.pop(key)
            for key in list(changes)
            if key in ("auth", "exempt_addresses", "audit_log", "audit_arguments", "fast_path")
        }
        settings = BridgeSettings(
            servers=(ServerSettings(command="x", name="files", **changes),),
            listen=(),
            allowed_hosts=("h",),
            **{"audit_log": str(self.path), **of_bridge, **bridge},
        )
        self.bridge = Bridge(
            settings, self.reactor, launcher=self.launcher, authenticator=authenticator
        )
        [self.server] = self.bridge.servers
        self.site = self.bridge.site()
        self.connections: list[Connection] = []

    def connect(self, host: str = "192.0.2.1", way: str = FAST) -> Connection:
        self.connections.append(Connection(self, host, way))
        return self.connections[-1]

    def turn(self) -> None:
        self.reactor.pump([0] * 3)

    def open_session(
        self, token: str | None = None, host: str = "192.0.2.1", first: bytes = b""
    ) -> str:
        """Open a session of Streamable HTTP; return its id."""
        connection = self.connect(host)
        connection.send("POST", "/mcp", first or INITIALIZE, token)
        assert connection.status() == 200, connection.read
        ident = connection.header("Mcp-Session-Id")
        assert ident is not None
        connection.close()
        return ident

    def open_sse(self, host: str = "192.0.2.1") -> tuple[Connection, str]:
        """Open a session of HTTP+SSE; return its stream, and where to post."""
        stream = self.connect(host)
        stream.send("GET", "/sse")
        found = re.search(rb"data: (/message\S+)", stream.written())
        assert found is not None
        return stream, found[1].decode()

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the audit log since the last call."""
        audit = self.bridge._audit
        assert audit is not None
        audit.flush()
        found = [json.loads(each) for each in self.path.read_text().splitlines()]
        self.path.write_text("")
        return found

    def stop(self) -> None:
        for each in self.connections:
            each.close()
        self.bridge.stopService()
        self.reactor.pump([0.1] * 20)


@pytest.fixture
def make_world(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Make a world, which ends with the test."""

    def make(**changes: Any) -> World:
        world = World(tmp_path, **changes)
        request.addfinalizer(world.stop)
        return world

    return make


def message(method: str, ident: object = 1, **params: Any) -> bytes:
    content: dict[str, Any] = {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}
    return json.dumps(content).encode()


def modern(method: str, ident: object = 1, **params: Any) -> bytes:
    prefix = "io.modelcontextprotocol/"
    meta = {f"{prefix}protocolVersion": "2026-07-28", f"{prefix}clientCapabilities": {}}
    return message(method, ident, _meta=meta, **params)


def _method(body: bytes) -> str:
    method: str = json.loads(body)["method"]
    return method


INITIALIZE = message(
    "initialize",
    0,
    protocolVersion="2025-11-25",
    capabilities={},
    clientInfo={"name": "c", "version": "1"},
)
CALL = message("tools/call", 1, name="t", arguments={"x": 1})
MODERN_CALL = modern("tools/call", "m", name="t", arguments={"x": 1})

each_way = pytest.mark.parametrize("way", [FAST, ORDINARY])


# The audit log.


@each_way
def test_call_over_streamable_http_is_recorded(make_world: Any, way: str) -> None:
    world = make_world()
    ident = world.open_session()
    [opened] = world.records()
    assert (opened["method"], opened["outcome"]) == ("initialize", "ok")
    client = world.connect(way=way)
    client.send("POST", "/mcp", CALL, session=ident)
    [backend] = world.launcher.backends
    response = answer(1, {})
    world.reactor.advance(0.25)
    backend.receiver.messages_received([response])
    assert client.status() == 200
    [record] = world.records()
    assert record.pop("time").endswith("Z")
    assert record == {
        "outcome": "ok",
        "address": "192.0.2.1",
        "server": "files",
        "session": ident[:8],
        "transport": "streamable-http",
        "method": "tools/call",
        "name": "t",
        "request_bytes": len(CALL),
        "response_bytes": len(response),
        "duration_ms": 250.0,
    }


@each_way
def test_call_over_sse_is_recorded(make_world: Any, way: str) -> None:
    world = make_world(audit_arguments=True)
    stream, path = world.open_sse()
    world.records()
    client = world.connect(way=way)
    client.send("POST", path, CALL)
    assert client.status() == 202
    client.send("POST", path, message("tools/call", 2, name="u"))
    [backend] = world.launcher.backends
    backend.receiver.messages_received([answer(1, {})])
    [record] = world.records()
    assert (record["transport"], record["name"], record["outcome"]) == ("sse", "t", "ok")
    assert record["arguments"] == {"x": 1}
    assert record["address"] == "192.0.2.1"
    stream.close()
    [record] = world.records()
    assert (record["name"], record["outcome"]) == ("u", "error")
    assert "the client went away" in record["reason"]


@each_way
def test_call_without_a_session_is_recorded(make_world: Any, way: str) -> None:
    world = make_world(kind=Modern)
    client = world.connect(way=way)
    client.send("POST", "/mcp", MODERN_CALL, version="2026-07-28")
    backend = world.launcher.backends[-1]
    sent = [json.loads(each) for each in backend.sent]
    [ident] = [each["id"] for each in sent if each["method"] == "tools/call"]
    backend.receiver.messages_received([answer(ident, {"resultType": "complete", "content": []})])
    assert client.status() == 200
    [record] = world.records()
    assert record.pop("time")
    assert record.pop("duration_ms") >= 0
    assert record.pop("response_bytes") > 20
    assert record == {
        "outcome": "ok",
        "address": "192.0.2.1",
        "server": "files",
        "transport": "stateless",
        "method": "tools/call",
        "name": "t",
        "request_bytes": len(MODERN_CALL),
    }


@each_way
def test_client_that_leaves_has_cancelled(make_world: Any, way: str) -> None:
    world = make_world(kind=Modern)
    client = world.connect(way=way)
    client.send("POST", "/mcp", MODERN_CALL, version="2026-07-28")
    client.close()
    [record] = world.records()
    assert (record["outcome"], record["name"]) == ("cancelled", "t")


@each_way
@pytest.mark.parametrize(
    ("method", "path", "status", "transport"),
    [
        ("POST", "/message?sessionId=" + "0" * 36, 404, "sse"),
        ("POST", "/mcp", 404, "streamable-http"),
        ("GET", "/mcp", 404, "streamable-http"),
        ("DELETE", "/mcp", 404, "streamable-http"),
    ],
)
def test_refusal_is_recorded(
    make_world: Any, way: str, method: str, path: str, status: int, transport: str
) -> None:
    world = make_world()
    client = world.connect(way=way)
    ident = "12345678-1234-4234-8234-123456789abc"
    client.send(method, path, CALL if method == "POST" else b"", session=ident)
    assert client.status() == status
    [record] = world.records()
    assert record.pop("time")
    record.pop("request_bytes")
    assert record == {
        "outcome": "refused",
        "address": "192.0.2.1",
        "server": "files",
        "transport": transport,
        "response_bytes": 0,
        "code": -32001,
        "status": 404,
        "reason": "no such session, or it has ended",
    }


@each_way
def test_message_that_the_backend_does_not_take_is_recorded_once(make_world: Any, way: str) -> None:
    world = make_world()
    ident = world.open_session()
    world.records()
    [backend] = world.launcher.backends
    backend.busy = True
    client = world.connect(way=way)
    client.send("POST", "/mcp", CALL, session=ident)
    status = client.status()
    [record] = world.records()
    assert (record["outcome"], record["status"], record["name"]) == ("refused", status, "t")


@each_way
def test_identity_is_recorded_and_no_token(make_world: Any, way: str) -> None:
    world = make_world(auth=AUTH)
    ident = world.open_session(ALICE[0])
    client = world.connect(way=way)
    client.send("POST", "/mcp", CALL, ALICE[0], session=ident)
    world.launcher.backends[0].receiver.messages_received([answer(1, {})])
    client.send("POST", "/mcp", CALL, BOB[0], session=ident)
    client.send("POST", "/mcp", CALL, session=ident)
    client.send("POST", "/mcp", CALL, "wrong", session=ident)
    records = world.records()
    text = json.dumps(records)
    assert ALICE[0] not in text
    assert "wrong" not in text.replace("credentials were wrong", "")
    assert [(each.get("identity"), each["outcome"], each.get("status")) for each in records] == [
        ("token#alice", "ok", None),
        ("token#alice", "ok", None),
        ("token#bob", "refused", 404),
        (None, "refused", 401),
        (None, "refused", 401),
    ]


@each_way
def test_streams_and_ended_sessions_are_recorded(make_world: Any, way: str) -> None:
    world = make_world(auth=AUTH)
    ident = world.open_session(ALICE[0])
    world.records()
    for host, method, path, session, status, what in (
        ("192.0.2.2", "GET", "/mcp", ident, 200, "a stream was opened"),
        ("192.0.2.3", "DELETE", "/mcp", ident, 200, "the session was ended"),
        ("192.0.2.4", "GET", "/sse", "", 200, "a stream and its session were opened"),
    ):
        client = world.connect(host, way)
        client.send(method, path, b"", ALICE[0], session=session)
        world.reactor.advance(1)
        assert client.status() == status, client.read
        [record] = world.records()
        assert record.pop("time")
        if session:
            assert record["session"] == ident[:8]
        assert len(record.pop("session")) == 8
        assert record == {
            "outcome": "ok",
            "identity": "token#alice",
            "address": host,
            "server": "files",
            "transport": transport_of(path.encode()),
            "request_bytes": 0,
            "response_bytes": 0,
            "reason": what,
        }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("PUT", "/mcp", 405), ("GET", "/message", 405), ("GET", "/nothing", 404)],
)
def test_request_that_no_route_serves_is_recorded(
    make_world: Any, method: str, path: str, status: int
) -> None:
    world = make_world(base_uri="/files", auth=AUTH)
    client = world.connect()
    client.send(method, f"/files{path}", b"", ALICE[0])
    assert client.status() == status
    [record] = world.records()
    assert (record["outcome"], record["status"]) == ("refused", status)
    assert (record["server"], record["identity"]) == ("files", "token#alice")


@each_way
@pytest.mark.parametrize("padding", ["", "x" * 70_000])
def test_each_message_is_recorded_with_its_own_address(
    make_world: Any, padding: str, way: str
) -> None:
    """Not with that of the session, from which whoever has stolen its id does not come."""
    world = make_world(kind=TakesBatches)
    ident = world.open_session(first=INITIALIZE.replace(b"2025-11-25", b"2025-03-26"))
    _, path = world.open_sse()
    world.records()
    for number, target in enumerate(["/mcp", path]):
        backend = world.launcher.backends[number]
        own = world.connect("192.0.2.7", way)
        stolen, other = (world.connect("192.0.2.66", way) for _ in range(2))
        stolen.send("POST", target, message("x/a", 1, p=padding), session=ident)
        own.send("POST", target, message("x/b", 2, p=padding), session=ident)
        other.send("POST", target, b"[%b]" % message("x/c", 3, p=padding), session=ident)
        world.reactor.pump([0] * 50)
        backend.receiver.messages_received([answer(each, {}) for each in (2, 3, 1)])
        records = world.records()
        assert [(each["method"], each["address"]) for each in records] == [
            ("x/b", "192.0.2.7"),
            ("x/c", "192.0.2.66"),
            ("x/a", "192.0.2.66"),
        ]


@each_way
def test_refusal_of_transport_security_is_recorded(make_world: Any, way: str) -> None:
    """Before it is known which server it is for."""
    world = make_world()
    client = world.connect(way=way)
    client.send("POST", "/mcp", CALL, None, "Origin: https://evil.example")
    assert client.status() == 403
    [record] = world.records()
    assert (record["outcome"], record["status"]) == ("refused", 403)
    assert record["address"] == "192.0.2.1"
    assert "server" not in record


def test_without_an_audit_log_nothing_is_recorded(make_world: Any) -> None:
    world = make_world(audit_log=None)
    ident = world.open_session()
    assert world.server.audit is None
    assert world.server.find_streamable(ident).audited is None
    assert not world.path.exists()


@pytest.mark.parametrize(
    ("path", "transport"),
    [
        (b"/sse", "sse"),
        (b"/a/message/", "sse"),
        (b"/a/mcp", "streamable-http"),
        (b"/mcp/server-card", ""),
        (b"/", ""),
    ],
)
def test_transport_of_a_path(path: bytes, transport: str) -> None:
    assert transport_of(path) == transport


# Rates.


@each_way
def test_messages_of_a_session_are_limited(make_world: Any, way: str) -> None:
    """On both transports; `Retry-After` is true, and what is refused goes nowhere."""
    world = make_world(messages_per_second=0.5)
    burst = int(0.5 * BURST_SECONDS)
    ident = world.open_session()
    stream, path = world.open_sse()
    backend = world.launcher.backends[0]
    client = world.connect(way=way)
    for number in range(1, burst):
        # `initialize` was the first one.
        client.send("POST", "/mcp", message("ping", number), session=ident)
        backend.receiver.messages_received([answer(number, {})])
        assert client.status() == 200
    sent = list(backend.sent)
    client.send("POST", "/mcp", message("ping", 99), session=ident)
    assert client.status() == 429
    assert client.header("Retry-After") == "2"
    assert b"messages_per_second" in client.read
    # All sessions of one address together.
    client.send("POST", path, message("ping", 99))
    assert client.status() == 429
    assert backend.sent == sent
    other = world.connect("192.0.2.2", way)
    other.send("POST", "/mcp", message("ping", 99), session=ident)
    assert other.status() == 429, "the session is that of the first address"
    world.reactor.advance(2)
    client.send("POST", path, message("ping", 100))
    assert client.status() == 202
    world.records()
    stream.close()


@each_way
@pytest.mark.parametrize("padding", ["", "x" * 70_000])
@pytest.mark.parametrize("transport", ["/mcp", "/message"])
def test_each_message_of_a_batch_counts(
    make_world: Any, transport: str, padding: str, way: str
) -> None:
    """Large batches too; one larger than what may come at once is owed for afterwards."""
    world = make_world(kind=TakesBatches, messages_per_second=0.5, ping_interval=0)
    burst = int(0.5 * BURST_SECONDS)
    ident, path = "", transport
    if transport == "/mcp":
        # The only revision of this transport that has batches.
        ident = world.open_session(first=INITIALIZE.replace(b"2025-11-25", b"2025-03-26"))
    else:
        _, path = world.open_sse()
    [backend] = world.launcher.backends
    world.reactor.advance(BURST_SECONDS)

    def send(count: int) -> Connection:
        client = world.connect(way=way)
        notes = [message("notifications/x", p=padding) for _ in range(count)]
        notes = [each.replace(b'"id": 1, ', b"") for each in notes]
        client.send("POST", path, b"[%b]" % b",".join(notes), session=ident)
        world.reactor.pump([0] * 50)
        return client

    assert send(burst - 1).status() == 202
    before = list(backend.sent)
    client = send(2)
    assert client.status() == 429
    assert client.header("Retry-After") == "2"
    assert backend.sent == before
    assert send(1).status() == 202
    world.reactor.advance(BURST_SECONDS)
    assert send(burst + 3).status() == 202
    client = send(1)
    assert (client.status(), client.header("Retry-After")) == (429, "8")
    world.records()


@each_way
def test_requests_without_a_session_are_limited(make_world: Any, way: str) -> None:
    """With the code that requests of this revision have for 429."""
    world = make_world(kind=Modern, messages_per_second=0.1)
    client = world.connect(way=way)
    client.send("POST", "/mcp", MODERN_CALL, version="2026-07-28")
    busy = world.connect(way=way)
    busy.send("POST", "/mcp", MODERN_CALL, version="2026-07-28")
    assert busy.status() == 429
    assert busy.header("Retry-After") == "10"
    body = json.loads(busy.read.partition(b"\r\n\r\n")[2])
    assert (body["id"], body["error"]["code"]) == ("m", -32603)
    [record] = world.records()
    assert (record["outcome"], record["status"], record["name"]) == ("refused", 429, "t")


def test_new_sessions_are_limited(make_world: Any) -> None:
    world = make_world(new_sessions_per_second=0.1)
    world.open_session()
    client = world.connect()
    client.send("POST", "/mcp", INITIALIZE)
    assert client.status() == 429
    assert client.header("Retry-After") == "10"
    assert b"new_sessions_per_second" in client.read
    stream = world.connect()
    stream.send("GET", "/sse")
    assert stream.status() == 429
    assert len(world.launcher.backends) == 1
    world.open_session(host="192.0.2.2")
    world.reactor.advance(10)
    world.open_session()


def test_no_process_is_started_for_a_first_message_that_is_too_early(make_world: Any) -> None:
    world = make_world(messages_per_second=0.1)
    world.open_session()
    client = world.connect()
    client.send("POST", "/mcp", INITIALIZE)
    assert client.status() == 429
    assert len(world.launcher.backends) == 1


def test_exempt_addresses_have_no_rate(make_world: Any) -> None:
    world = make_world(new_sessions_per_second=0.1, messages_per_second=0.1)
    for _ in range(3):
        world.open_session(host="127.0.0.1")


# Identities.


@each_way
def test_rates_of_identities_do_not_depend_on_addresses(make_world: Any, way: str) -> None:
    """Also from an exempt address, and two identities of one address do not share theirs."""
    world = make_world(auth=AUTH, messages_per_second=0.1, kind=Modern)
    for host, token, status in (
        ("192.0.2.1", ALICE[0], 0),
        ("127.0.0.1", ALICE[0], 429),
        ("192.0.2.1", BOB[0], 0),
    ):
        client = world.connect(host, way)
        client.send("POST", "/mcp", MODERN_CALL, token, version="2026-07-28")
        assert client.status() == status


def test_identity_has_a_share_of_the_sessions(make_world: Any) -> None:
    """Half of them by default, wherever it comes from."""
    world = make_world(auth=AUTH, max_sessions=4)
    for number in range(2):
        world.open_session(ALICE[0], f"192.0.2.{number}")
    client = world.connect("127.0.0.1")
    client.send("POST", "/mcp", INITIALIZE, ALICE[0])
    assert client.status() == 429
    assert b"your identity has reached its limit of sessions: 2" in client.read
    assert b"max_sessions_per_identity" in client.read
    for number in range(2):
        world.open_session(BOB[0], f"192.0.2.{number}")


def test_identity_has_a_share_of_the_sessions_of_all_servers(make_world: Any) -> None:
    world = make_world(auth=AUTH, bridge={"max_sessions_per_identity": 1})
    world.open_session(ALICE[0])
    stream = world.connect("192.0.2.2")
    stream.send("GET", "/sse", b"", ALICE[0])
    assert stream.status() == 429
    assert b"max_sessions_per_identity of the bridge" in stream.read
    world.open_session(BOB[0])


@pytest.fixture
def streaming(make_world: Any) -> Any:
    """A world in which a caller may have two streams, and a function that opens one."""
    world = make_world(auth=AUTH, bridge={"max_streams_per_identity": 2}, audit_log=None)

    def open_stream(kind: str, token: str = ALICE[0], host: str = "192.0.2.1") -> Connection:
        ident = world.open_session(token) if kind == "GET /mcp" else ""
        client = world.connect(host)
        if kind == LISTEN:
            body = modern(kind, 7, notifications={"toolsListChanged": True})
            client.send("POST", "/mcp", body, token, version="2026-07-28")
        else:
            client.send(*kind.split(), b"", token, session=ident)
        world.reactor.advance(5)
        return client

    return world, open_stream


LISTEN = "subscriptions/listen"
STREAMS = ("GET /sse", "GET /mcp", LISTEN)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("others", ["GET /sse", "GET /mcp", LISTEN])
def test_identity_has_a_share_of_the_open_streams(streaming: Any, kind: str, others: str) -> None:
    """Of all kinds together, from wherever; a stream that ends makes room for another."""
    world, open_stream = streaming
    open_ones = [open_stream(others, host="192.0.2.2"), open_stream(others, host="127.0.0.1")]
    assert [each.status() for each in open_ones] == [200, 200]
    for _ in range(2):
        refused = open_stream(kind)
        assert refused.status() == 429
        assert refused.header("Retry-After") == "5"
        assert b"your identity has reached its limit of open streams: 2" in refused.read
        assert b"max_streams_per_identity" in refused.read
        body = json.loads(refused.read.partition(b"\r\n\r\n")[2])
        expected = (7, -32603) if kind == LISTEN else (None, -32000)
        assert (body["id"], body["error"]["code"]) == expected
    assert open_stream(kind, BOB[0]).status() == 200
    open_ones[0].close()
    assert open_stream(kind).status() == 200
    assert open_stream(kind).status() == 429
    for each in world.connections:
        each.close()
    assert len(world.bridge._limits.streams) == 0


def test_stream_that_the_server_ends_counts_no_more(streaming: Any) -> None:
    world, open_stream = streaming
    for _ in range(3):
        assert open_stream("GET /sse").status() == 200
        [session] = world.server.sessions.values()
        session.life.end("a test")
        world.reactor.advance(1)


def test_request_that_opens_no_stream_does_not_count(streaming: Any) -> None:
    world, open_stream = streaming
    client = world.connect()
    for _ in range(3):
        client.send("GET", "/mcp", b"", ALICE[0])
        assert client.status() == 405
    world.launcher.error = CannotStart("no process")
    for _ in range(3):
        assert open_stream("GET /sse").status() >= 500
    assert len(world.bridge._limits.streams) == 0


def test_streams_of_a_server_without_auth_have_the_limits_of_addresses(make_world: Any) -> None:
    world = make_world(bridge={"max_streams_per_identity": 1})
    for _ in range(2):
        world.open_sse()


def test_addresses_have_their_share_where_nobody_is_known(make_world: Any) -> None:
    world = make_world(max_sessions_per_identity=1, max_sessions_per_address=2)
    for _ in range(2):
        world.open_session()
    client = world.connect()
    client.send("POST", "/mcp", INITIALIZE)
    assert client.status() == 429
    assert b"your address has reached its limit of sessions: 2" in client.read


# Failed attempts.


def fail_freely(world: World, host: str = "192.0.2.1") -> None:
    for _ in range(ATTEMPTS_FREE):
        client = world.connect(host)
        client.send("POST", "/mcp", CALL, "wrong")
        assert client.status() == 401
        client.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/mcp"), ("GET", "/mcp"), ("DELETE", "/mcp"), ("GET", "/sse"), ("POST", "/message")],
)
def test_answers_to_failed_attempts_are_delayed(make_world: Any, method: str, path: str) -> None:
    """Whatever is attempted; and with the challenge that they have without delay."""
    world = make_world(auth=AUTH)
    fail_freely(world)
    client = world.connect()
    client.send(method, path, CALL if method == "POST" else b"", "wrong")
    world.reactor.advance(ATTEMPT_DELAY_SECONDS - 0.01)
    assert client.status() == 0
    world.reactor.advance(0.01)
    world.turn()
    assert client.status() == 401
    assert 'error="invalid_token"' in (client.header("WWW-Authenticate") or "")


def test_valid_credentials_are_never_delayed(make_world: Any) -> None:
    """Nor requests without any: that is how clients ask what they need."""
    world = make_world(auth=AUTH)
    fail_freely(world)
    waiting = [world.connect() for _ in range(DELAYED_OF_ADDRESS + 1)]
    for each in waiting:
        each.send("POST", "/mcp", CALL, "wrong")
    assert [each.status() for each in waiting] == [0] * DELAYED_OF_ADDRESS + [401]
    world.open_session(ALICE[0])
    client = world.connect()
    client.send("POST", "/mcp", INITIALIZE)
    assert client.status() == 401


@each_way
@pytest.mark.parametrize(("token", "status"), [("expired", 401), ("two words", 400)])
def test_neighbours_of_an_attacker_learn_what_is_wrong(
    make_world: Any, token: str, status: int, way: str
) -> None:
    """At once, where as many answers as may be are delayed, and with the challenge."""
    world = make_world(auth=AUTH)
    fail_freely(world)
    for _ in range(DELAYED_OF_ADDRESS):
        world.connect().send("POST", "/mcp", CALL, "wrong")
    client = world.connect(way=way)
    client.send("POST", "/mcp", CALL, token)
    assert client.status() == status
    assert client.header("Retry-After") == "1"
    assert 'error="invalid_' in (client.header("WWW-Authenticate") or "")
    # Those that come first are delayed no less than before.
    assert [each.status() for each in world.connections[-3:-1]] == [0, 0]


def test_client_that_does_not_wait_leaves_nothing_behind(make_world: Any) -> None:
    """Its attempt counts all the same."""
    world = make_world(auth=AUTH, audit_log=None)
    fail_freely(world)
    before = len(world.reactor.getDelayedCalls())
    for path in ("/mcp", "/message"):
        client = world.connect()
        client.send("POST", path, CALL, "wrong")
        client.close()
    assert len(world.reactor.getDelayedCalls()) == before
    client = world.connect()
    client.send("POST", "/mcp", CALL, "wrong")
    world.reactor.advance(2 * ATTEMPT_DELAY_SECONDS)
    assert client.status() == 0


def test_exempt_addresses_are_not_delayed(make_world: Any) -> None:
    world = make_world(auth=AUTH)
    for _ in range(3):
        fail_freely(world, "127.0.0.1")


@implementer(IAuthenticator)
class Later:
    """Finds out later that a token is wrong, as from an authorization server."""

    def __init__(self) -> None:
        self.asked: list[Deferred[None]] = []

    def authenticate(self, request: Any) -> Any:
        self.asked.append(Deferred())
        return self.asked[-1]


def test_answer_is_delayed_that_was_waited_for(make_world: Any) -> None:
    """And its client may leave at any time."""
    later = Later()
    world = make_world(authenticator=later, audit_log=None)
    before = len(world.reactor.getDelayedCalls())
    clients = [world.connect() for _ in range(ATTEMPTS_FREE + 3)]
    for each in clients:
        each.send("POST", "/mcp", CALL, "wrong")
        if each is not clients[-1]:
            later.asked[-1].errback(InvalidToken("no"))
            world.turn()
    assert [each.status() for each in clients] == [401] * ATTEMPTS_FREE + [0, 0, 0]
    clients[-1].close()
    clients[-2].close()
    world.reactor.advance(ATTEMPT_DELAY_SECONDS)
    world.turn()
    assert clients[-3].status() == 401
    for each in clients[:-2]:
        each.close()
    assert len(world.reactor.getDelayedCalls()) == before
