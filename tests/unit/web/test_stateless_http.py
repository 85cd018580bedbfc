"""
The endpoint of 2026-07-28 without a reactor: the bytes of a connection on one
side, a backend in memory on the other.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.errors import CannotStart, MessageRefused, UnknownSession
from mcpbridge.server import Server
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.testing import CLEANLY, FakeBackend, FakeLauncher
from mcpbridge.web.root import Branch, SecuredResource
from mcpbridge.web.routes import Routes
from mcpbridge.web.site import BridgeSite
from mcpbridge.web.stateless_http import status_of
from mcpbridge.web.transport_security import TransportSecurity
from tests.fakes import no_jitter

VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
LIMIT = 20_000
ROOM = 2_000
KEPT_ALIVE = b": keepalive\n\n"
#: What a client of this revision sends with each request, but for what it is.
USUAL = {
    "Host": "h",
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": VERSION,
}
TOOL = {
    "name": "tool",
    "inputSchema": {
        "type": "object",
        "properties": {"city": {"type": "string", "x-mcp-header": "City"}},
    },
}


class Modern(FakeBackend):
    """A server of 2026-07-28: says who it is and what it has; the rest is for the test."""

    def send(self, line: bytes) -> None:
        super().send(line)
        message = json.loads(line)
        result: dict[str, Any] = {"resultType": "complete"}
        if message["method"] == "server/discover":
            result |= {"supportedVersions": [VERSION], "capabilities": {"tools": {}}}
        elif message["method"] == "tools/list":
            result |= {"tools": [TOOL]}
        else:
            return
        self.receiver.messages_received([answer(message["id"], result)])


class Legacy(FakeBackend):
    """A server of 2025-11-25, which shakes hands."""

    def send(self, line: bytes) -> None:
        super().send(line)
        message = json.loads(line)
        if message["method"] == "server/discover":
            self.receiver.messages_received([failure(message["id"], -32601)])
        elif message["method"] == "initialize":
            result = {"protocolVersion": "2025-11-25", "capabilities": {}}
            result["serverInfo"] = {"name": "old", "version": "1"}
            self.receiver.messages_received([answer(message["id"], result)])

    def stop(self) -> Any:
        stopped = super().stop()
        if not stopped.called:
            stopped.callback(None)
        return stopped


class Launcher(FakeLauncher):
    """Gives servers of one kind; with an `error`, none."""

    kind: type[FakeBackend] = Modern

    def launch(self, receiver: Any, label: str) -> Any:
        launched = super().launch(receiver, label)
        if self.error is None:
            self.backends[-1].__class__ = self.kind
        return launched


class Limiter:
    """A limit of the processes."""

    def __init__(self) -> None:
        self.left = 1000

    def is_full(self) -> bool:
        return not self.left

    def acquire(self) -> Any:
        if not self.left:
            return None
        self.left -= 1
        return self

    def release(self) -> None:
        self.left += 1


class Refuser:
    """A filter that refuses one word, and breaks on another."""

    def from_client(self, session: object, line: bytes) -> bytes:
        if b"refuse" in line:
            raise MessageRefused("refused")
        if b"explode" in line:
            raise RuntimeError("a defect")
        return line

    def from_backend(self, session: object, line: bytes) -> bytes:
        return line


class World:
    """A site and its one server."""

    def __init__(self, **changes: Any) -> None:
        self.clock = Clock()
        self.launcher = Launcher()
        self.limiter = Limiter()
        changes = {"max_message_bytes": LIMIT, "max_waiting_bytes": ROOM, **changes}
        settings = ServerSettings(command="x", **changes)
        self.server = Server(
            settings,
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=self.limiter,
            filters=[Refuser()],
            event_store=MemoryEventStore(),
        )
        root = Branch()
        root.leaf = Routes(self.server, self.clock).resource()
        every = BridgeSettings(servers=(settings,), allowed_hosts=("h",))
        self.site = BridgeSite(
            SecuredResource(TransportSecurity(every), root),
            self.clock,
            every,
            seconds=self.clock.seconds,
        )

    def connect(self) -> Connection:
        return Connection(self)

    def post(self, message: Any, **headers: Any) -> Connection:
        """A request on a connection of its own."""
        connection = self.connect()
        connection.post(message, **headers)
        return connection

    @property
    def backend(self) -> FakeBackend:
        return self.launcher.backends[-1]

    def told(self, method: str) -> list[Any]:
        """What the server was told by this method."""
        decoded = [json.loads(line) for each in self.launcher.backends for line in each.sent]
        return [each for each in decoded if each["method"] == method]

    def say(self, *lines: bytes) -> None:
        self.backend.receiver.messages_received(list(lines))

    def answer_all(self, method: str = "x") -> None:
        """All requests of a method, as they were asked."""
        for asked in self.told(method):
            self.say(answer(asked["id"], {"was": asked["params"].get("it")}))


class Connection:
    """A connection, and what is written to it."""

    def __init__(self, world: World) -> None:
        self.channel: Any = world.site.buildProtocol(None)
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)

    def send(self, head: str, body: bytes = b"") -> None:
        self.channel.dataReceived(head.encode("latin-1") + b"\r\n\r\n" + body)

    def post(
        self, message: Any, *more: str, line: str = "POST /mcp HTTP/1.1", **headers: Any
    ) -> None:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        given: dict[str, Any] = {**USUAL, "Content-Length": len(body)}
        if isinstance(message, dict) and "method" in message:
            given["Mcp-Method"] = message["method"]
            if message["method"] == "tools/call":
                given["Mcp-Name"] = message["params"]["name"]
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
        self.send("\r\n".join([line, *lines, *more]), body)

    def leave(self) -> None:
        """The client closes it."""
        self.channel.connectionLost(CLEANLY)

    def is_cut_off(self) -> bool:
        return bool(self.transport.disconnected)

    @property
    def text(self) -> bytes:
        return self.transport.value()

    @property
    def head(self) -> dict[str, str]:
        lines = self.text.partition(b"\r\n\r\n")[0].decode("latin-1").lower().split("\r\n")
        return dict(line.split(": ", 1) for line in lines[1:])

    @property
    def status(self) -> int:
        return int(self.text.split(b" ", 2)[1]) if self.text else 0

    @property
    def body(self) -> bytes:
        body = self.text.partition(b"\r\n\r\n")[2]
        if self.head.get("transfer-encoding") != "chunked":
            return body
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
        return whole

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def messages(self) -> list[Any]:
        """Those of an event stream, which has nothing to come back with."""
        assert self.head["content-type"] == "text/event-stream"
        events = self.body.replace(KEPT_ALIVE, b"").split(b"\n\n")
        assert events.pop() == b""
        for each in events:
            assert each.startswith(b"event: message\ndata: "), each
        return [json.loads(each.partition(b"data: ")[2]) for each in events]

    def error(self) -> tuple[int, int, Any]:
        """Status, code and id of a refusal."""
        assert self.head["content-type"] == "application/json"
        assert self.json["jsonrpc"] == "2.0"
        return self.status, self.json["error"]["code"], self.json["id"]


def answer(ident: object, result: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": ident, "result": result}).encode()


def failure(ident: object, code: object) -> bytes:
    error = {"code": code, "message": "no"}
    return json.dumps({"jsonrpc": "2.0", "id": ident, "error": error}).encode()


def meta(**changes: Any) -> dict[str, Any]:
    """What each request says of itself."""
    said = {"protocolVersion": VERSION, "clientCapabilities": {}, **changes}
    return {PREFIX + name: value for name, value in said.items() if value is not None}


def asking(method: str = "x", ident: object = "a", **params: Any) -> dict[str, Any]:
    """A request."""
    params = {"_meta": meta(), **params}
    return {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}


def calling(**arguments: Any) -> dict[str, Any]:
    return asking("tools/call", name="tool", arguments=arguments)


def progress(token: object) -> bytes:
    params = {"progressToken": token, "progress": 1}
    return json.dumps(
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
    ).encode()


@pytest.fixture
def world() -> World:
    return World()


# Answers.


def test_an_answer_alone_is_json(world: World) -> None:
    """200, with the id of the client, whatever it was for the server."""
    posted = world.post(asking(it=7))
    assert posted.status == 0
    world.answer_all()
    assert (posted.status, posted.head["content-type"]) == (200, "application/json")
    assert posted.json == {"jsonrpc": "2.0", "id": "a", "result": {"was": 7}}
    assert "mcp-session-id" not in posted.head


def test_what_comes_before_it_makes_events(world: World) -> None:
    """The first message decides; no proxy is to hold them back, and none has an id."""
    posted = world.post(asking(_meta={**meta(), "progressToken": "t"}))
    [asked] = world.told("x")
    world.say(progress(asked["params"]["_meta"]["progressToken"]))
    assert posted.head["content-type"] == "text/event-stream"
    assert posted.head["cache-control"] == "no-cache"
    assert posted.head["x-accel-buffering"] == "no"
    world.answer_all()
    before, last = posted.messages
    assert before["params"]["progressToken"] == "t"
    assert last["id"] == "a"
    assert posted.text.endswith(b"0\r\n\r\n")
    assert b"\nid:" not in posted.body
    assert b"retry:" not in posted.body


def test_both_at_once_make_events(world: World) -> None:
    posted = world.post(asking(_meta={**meta(), "progressToken": 3}))
    [asked] = world.told("x")
    token = asked["params"]["_meta"]["progressToken"]
    world.say(progress(token), answer(asked["id"], {}))
    assert [each.get("method") for each in posted.messages] == ["notifications/progress", None]


def test_silence_makes_events() -> None:
    """After `COMMIT_SECONDS`, kept alive by comments; an error then comes as an event, with 200."""
    world = World(keepalive_interval=5)
    posted = world.post(asking())
    world.clock.advance(COMMIT_SECONDS - 0.01)
    assert posted.status == 0
    world.clock.advance(0.01)
    assert (posted.status, posted.body) == (200, KEPT_ALIVE)
    world.clock.advance(5)
    assert posted.body == KEPT_ALIVE * 2
    [asked] = world.told("x")
    world.say(failure(asked["id"], -32601))
    assert [each["error"]["code"] for each in posted.messages] == [-32601]
    assert posted.text.endswith(b"0\r\n\r\n")


def test_json_alone() -> None:
    """`json_response`: neither time nor progress makes events, and events need not be accepted."""
    world = World(json_response=True)
    message = asking(_meta={**meta(), "progressToken": "t"})
    posted = world.post(message, Accept="application/json")
    world.clock.advance(COMMIT_SECONDS * 10)
    [asked] = world.told("x")
    world.say(progress(asked["params"]["_meta"]["progressToken"]))
    assert posted.status == 0
    world.answer_all()
    assert (posted.status, posted.json["id"]) == (200, "a")


@pytest.mark.parametrize("json_response", [False, True])
def test_listening_is_events(json_response: bool) -> None:
    """Acknowledged, told, and at the end answered, under the client's own id."""
    world = World(json_response=json_response)
    posted = world.post(asking("subscriptions/listen", 5, notifications={}))
    [asked] = world.told("subscriptions/listen")
    subscription = {PREFIX + "subscriptionId": asked["id"]}
    world.clock.advance(COMMIT_SECONDS)
    assert posted.body == KEPT_ALIVE
    for method in ("subscriptions/acknowledged", "tools/list_changed"):
        params = {"_meta": subscription, "notifications": {}}
        line = {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}
        world.say(json.dumps(line).encode())
    world.say(answer(asked["id"], {"resultType": "complete", "_meta": subscription}))
    *before, last = posted.messages
    assert len(before) == 2
    told = [each["params"]["_meta"] for each in before] + [last["result"]["_meta"]]
    assert told == [{PREFIX + "subscriptionId": 5}] * 3
    assert (posted.status, last["id"]) == (200, 5)
    assert posted.text.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (-32700, 400),
        (-32600, 400),
        (-32601, 404),
        (-32602, 400),
        (-32020, 400),
        (-32021, 400),
        (-32022, 400),
        (-32603, 200),
        (-32601.0, 404),
        (1, 200),
        ("x", 200),
        (None, 200),
        (1e300, 200),
    ],
)
def test_status_of_an_answer(world: World, code: object, status: int) -> None:
    """A server's error keeps its code, and the status says it, too."""
    posted = world.post(asking())
    [asked] = world.told("x")
    world.say(failure(asked["id"], code))
    assert (posted.status, posted.json["error"]["code"]) == (status, code)
    assert posted.json["id"] == "a"


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b'{"jsonrpc":"2.0","id":1,"error":7}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1e999}}',
        b'{"jsonrpc":"2.0","id":1,"error":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_status_of_what_cannot_be_read(line: bytes) -> None:
    assert status_of(line) == 200


# Refusals.


WRONG: dict[str, tuple[Any, dict[str, Any], int, int, object]] = {
    "no JSON": (b"no JSON", {}, 400, -32700, None),
    "no UTF-8": (b"\xff", {}, 400, -32700, None),
    "nothing": (b"", {}, 400, -32600, None),
    "a batch": ([asking()], {}, 400, -32600, None),
    "no object": (b"7", {}, 400, -32600, None),
    "a response": ({"jsonrpc": "2.0", "id": 1, "result": {}}, {}, 400, -32600, None),
    "id null": (asking(ident=None), {}, 400, -32600, None),
    "no params": ({"jsonrpc": "2.0", "id": 1, "method": "x"}, {}, 400, -32602, 1),
    "no _meta": (asking(_meta=7), {}, 400, -32602, "a"),
    "no version": (asking(_meta=meta(protocolVersion=None)), {}, 400, -32602, "a"),
    "no capabilities": (asking(_meta=meta(clientCapabilities=None)), {}, 400, -32602, "a"),
    "no level": (asking(_meta=meta(logLevel="loud")), {}, 400, -32602, "a"),
    "header alone": (asking(_meta={}), {}, 400, -32602, "a"),
    "_meta alone": (asking(), {"MCP_Protocol_Version": None}, 400, -32020, "a"),
    "an older header": (asking(), {"MCP_Protocol_Version": "2025-11-25"}, 400, -32020, "a"),
    "a later header": (asking(), {"MCP_Protocol_Version": "2027-01-01"}, 400, -32020, "a"),
    "a later version": (
        asking(_meta=meta(protocolVersion="2027-01-01")),
        {"MCP_Protocol_Version": "2027-01-01"},
        400,
        -32022,
        "a",
    ),
    "no Mcp-Method": (asking(), {"Mcp_Method": None}, 400, -32020, "a"),
    "another Mcp-Method": (asking(), {"Mcp_Method": "X"}, 400, -32020, "a"),
    "no Mcp-Name": (calling(), {"Mcp_Name": None}, 400, -32020, "a"),
    "another Mcp-Name": (calling(), {"Mcp_Name": "Tool"}, 400, -32020, "a"),
    "Mcp-Name in bad Base64": (calling(), {"Mcp_Name": "=?base64?!?="}, 400, -32020, "a"),
    "Mcp-Name not ASCII": (calling(), {"Mcp_Name": "t\xf6\xf6l"}, 400, -32020, "a"),
    "no Mcp-Param": (calling(city="B"), {}, 400, -32020, "a"),
    "another Mcp-Param": (calling(city="B"), {"Mcp_Param_City": "b"}, 400, -32020, "a"),
    "Mcp-Param of nothing": (calling(), {"Mcp_Param_City": "b"}, 400, -32020, "a"),
    "initialize": (asking("initialize"), {}, 404, -32601, "a"),
    "ping": (asking("ping", 2.5), {}, 404, -32601, 2.5),
    "not acceptable": (asking(), {"Accept": "text/html"}, 406, -32600, "a"),
    "another kind": (asking(), {"Content_Type": "text/plain"}, 415, -32600, "a"),
    "too large": (asking(it="x" * LIMIT), {}, 413, -32600, None),
    "refused": (asking(it="refuse"), {}, 400, -32600, "a"),
    "a defect": (asking(it="explode"), {}, 500, -32603, "a"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals(world: World, name: str, logged_failures: list[Any]) -> None:
    """Each a JSON-RPC error with the id of the request, in no code that is left to others."""
    message, headers, *error = WRONG[name]
    posted = world.post(message, **headers)
    assert [*posted.error()] == error
    assert world.told("x") == world.told("tools/call") == []
    assert len(logged_failures) == (name == "a defect")
    if name == "a later version":
        data = {"supported": [VERSION], "requested": "2027-01-01"}
        assert posted.json["error"]["data"] == data


def test_too_large_for_the_site() -> None:
    """It is refused before it is there: all that is known of it is its head."""
    world = World()
    connection = world.connect()
    connection.send(
        "\r\n".join(
            ["POST /mcp HTTP/1.1", f"Content-Length: {LIMIT + 1}"]
            + [f"{name}: {value}" for name, value in USUAL.items()]
        )
    )
    assert connection.error() == (413, -32600, None)
    connection.leave()


@pytest.mark.parametrize("name", ["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"])
def test_repeated_headers(world: World, name: str) -> None:
    """Who reads the first and who reads the last must not be told two things."""
    connection = world.connect()
    value = {"Mcp-Method": "tools/call", "Mcp-Name": "tool"}.get(name, VERSION)
    connection.post(calling(), f"{name}: {value}")
    assert connection.error() == (400, -32020, "a")


def test_headers_in_base64(world: World) -> None:
    """The sentinel is decoded, of names and of parameters."""
    city = "=?base64?" + base64.b64encode("Köln".encode()).decode() + "?="
    name = "=?base64?" + base64.b64encode(b"tool").decode() + "?="
    posted = world.post(calling(city="Köln"), Mcp_Name=name, Mcp_Param_City=city)
    [asked] = world.told("tools/call")
    world.say(answer(asked["id"], {}))
    assert posted.status == 200


@pytest.mark.parametrize(("header", "value"), [("Origin", "http://evil"), ("Host", "evil")])
def test_the_gate_comes_first(world: World, header: str, value: str) -> None:
    """403 before anything is looked at: no process is started."""
    posted = world.post(asking(), **{header: value})
    assert posted.status == 403
    assert world.launcher.backends == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_post_alone(world: World, method: str) -> None:
    """405 for what is no more, with what there is; a session's id does not help."""
    connection = world.connect()
    head = {**USUAL, "MCP-Protocol-Version": VERSION, "Mcp-Session-Id": "x", "Last-Event-ID": "0-0"}
    lines = [f"{name}: {value}" for name, value in head.items()]
    connection.send("\r\n".join([f"{method} /mcp HTTP/1.1", *lines]))
    assert connection.error() == (405, -32600, None)
    assert connection.head["allow"] == "post"


def test_a_session_is_nothing_here(world: World) -> None:
    """`Mcp-Session-Id` and `Last-Event-ID` of a modern request are not looked at."""
    posted = world.post(asking(), Mcp_Session_Id="none", Last_Event_ID="0-0")
    world.answer_all()
    assert posted.status == 200
    assert "mcp-session-id" not in posted.head


@pytest.mark.parametrize("headers", [{}, {"Mcp_Method": None}])
def test_a_notification_is_taken(world: World, headers: dict[str, Any]) -> None:
    """202, and nobody is told: none is defined."""
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    posted = world.post(message, **headers)
    assert (posted.status, posted.body) == (202, b"")
    assert world.launcher.backends == []


def test_no_process_is_left() -> None:
    """429 with Retry-After: sessions have them all."""
    world = World()
    world.limiter.left = 0
    posted = world.post(asking())
    assert posted.error() == (429, -32603, "a")
    assert posted.head["retry-after"] == "1"


def test_the_line_is_full() -> None:
    """429 at once where as many wait as may, and for who waits too long."""
    world = World(concurrency=1, max_waiting_requests=1, queue_timeout=8)
    world.post(asking())
    world.limiter.left = 0
    waiting, late = world.post(asking(ident="b")), world.post(asking(ident="c"))
    assert late.error() == (429, -32603, "c")
    assert late.head["retry-after"] == "1"
    world.clock.advance(COMMIT_SECONDS)
    assert waiting.status == 0
    world.clock.advance(8)
    assert waiting.error() == (429, -32603, "b")
    assert waiting.head["retry-after"] == "1"


def test_a_server_that_does_not_start(world: World) -> None:
    """502 with the reason."""
    world.launcher.error = CannotStart("no such program")
    posted = world.post(asking())
    assert posted.error() == (502, -32603, "a")
    assert "no such program" in posted.json["error"]["message"]


def test_a_server_that_is_down(world: World) -> None:
    """503 with Retry-After, while it is left alone."""
    world.server.pool.fail("it crashed")
    posted = world.post(asking())
    assert posted.error() == (503, -32603, "a")
    assert posted.head["retry-after"] == "1"
    assert world.launcher.backends == []


def test_a_process_that_is_ending(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """502: a stateless client has no session that could be unknown."""

    async def ask(exchange: Any, headers: Any) -> None:
        raise UnknownSession("its backend takes no more messages")

    monkeypatch.setattr(world.server.stateless, "ask", ask)
    assert world.post(asking()).error() == (502, -32603, "a")


def test_a_backend_that_does_not_read(world: World) -> None:
    """503 with Retry-After, in a code of this revision."""
    world.post(asking())
    world.backend.busy = True
    posted = world.post(asking(ident=2))
    assert posted.error() == (503, -32603, 2)
    assert posted.head["retry-after"] == "1"


def test_the_bridge_stops(world: World) -> None:
    world.server.pool.begin_stop()
    posted = world.post(asking())
    assert posted.error() == (503, -32603, "a")
    assert "retry-after" in posted.head


@pytest.mark.parametrize("begun", [False, True])
def test_the_process_ends(world: World, begun: bool) -> None:
    """502; once events have begun, an event."""
    posted = world.post(asking())
    world.clock.advance(COMMIT_SECONDS if begun else 0)
    world.backend.receiver.output_closed("it crashed")
    if begun:
        [error] = posted.messages
        assert (posted.status, error["id"], error["error"]["code"]) == (200, "a", -32603)
        assert posted.text.endswith(b"0\r\n\r\n")
    else:
        assert posted.error() == (502, -32603, "a")


def test_a_defect_after_events_have_begun(
    world: World, logged_failures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an event, too, and the stream is complete: no second answer behind the first."""

    async def ask(exchange: Any, headers: Any) -> None:
        world.clock.advance(world.server.settings.queue_timeout + COMMIT_SECONDS)
        raise RuntimeError("a defect")

    monkeypatch.setattr(world.server.stateless, "ask", ask)
    posted = world.post(asking())
    [error] = posted.messages
    assert (posted.status, error["id"], error["error"]["code"]) == (200, "a", -32603)
    assert posted.text.endswith(b"0\r\n\r\n")
    assert len(logged_failures) == 1


# Clients that leave, or do not read.


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("json_response", [False, True])
@pytest.mark.parametrize("method", ["x", "subscriptions/listen"])
def test_a_lost_connection_cancels(method: str, json_response: bool, begun: bool) -> None:
    """basic/patterns/cancellation: any disconnect; on stdio it is a notification."""
    world = World(json_response=json_response)
    posted = world.post(asking(method))
    other = world.post(asking(ident="b", it=1))
    world.clock.advance(COMMIT_SECONDS if begun else 0)
    posted.leave()
    [asked] = [each for each in world.told(method) if each["params"].get("it") != 1]
    [cancelled] = world.told("notifications/cancelled")
    assert cancelled["params"]["requestId"] == asked["id"]
    before = posted.text
    world.say(answer(asked["id"], {}))
    assert posted.text == before, "nothing more is sent"
    world.answer_all()
    assert b'"id": "b"' in other.text or b'"id":"b"' in other.text


def test_a_connection_lost_while_its_request_is_queued(world: World) -> None:
    """Nothing was asked, so nothing is cancelled; and nobody's turn is lost."""
    world = World(concurrency=1)
    first = world.post(asking(it=1))
    world.limiter.left = 0
    gone, last = world.post(asking(it=2)), world.post(asking(it=3))
    gone.leave()
    world.answer_all()
    assert first.json["result"] == {"was": 1}
    world.answer_all()
    assert last.json["result"] == {"was": 3}
    assert [each["params"]["it"] for each in world.told("x")] == [1, 3]
    assert world.told("notifications/cancelled") == []


def test_a_slow_reader_delays_no_other_client(world: World) -> None:
    """It is cut off at `max_waiting_bytes`; the others of its process go on."""
    slow = world.post(asking(_meta={**meta(), "progressToken": "t"}))
    other = world.post(asking(ident="b"))
    mine, others = world.told("x")
    line = progress(mine["params"]["_meta"]["progressToken"])
    world.say(line)
    slow.channel.pauseProducing()
    assert "pause" not in world.backend.events
    world.say(*[line] * (ROOM // len(line) - 5))
    assert not slow.is_cut_off()
    world.say(*[line] * 10)
    assert slow.is_cut_off()
    slow.leave()
    assert [each["params"]["requestId"] for each in world.told("notifications/cancelled")] == [
        mine["id"]
    ]
    world.say(answer(others["id"], {}))
    assert other.status == 200


def test_a_slow_reader_holds_up_its_own_process(world: World) -> None:
    """A process that works for nobody else is not read meanwhile, and read again for the next."""
    world.launcher.kind = Legacy
    slow = world.post(asking(_meta={**meta(), "progressToken": "t"}))
    backend = world.backend
    [asked] = world.told("x")
    world.say(progress(asked["params"]["_meta"]["progressToken"]))
    assert slow.head["content-type"] == "text/event-stream"
    slow.channel.pauseProducing()
    assert backend.events.count("pause") == backend.events.count("resume") + 1
    slow.leave()
    assert backend.events.index("pause") < backend.events.index("resume")
    [cancelled] = world.told("notifications/cancelled")
    assert cancelled["params"]["requestId"] == asked["id"]


def test_a_client_that_catches_up_may_fall_behind_again(world: World) -> None:
    posted = world.post(asking(_meta={**meta(), "progressToken": "t"}))
    [asked] = world.told("x")
    line = progress(asked["params"]["_meta"]["progressToken"])
    world.say(line)
    for _ in range(5):
        posted.channel.pauseProducing()
        world.say(*[line] * (ROOM // len(line) - 5))
        posted.channel.resumeProducing()
    assert not posted.is_cut_off()
    world.answer_all()
    assert posted.text.endswith(b"0\r\n\r\n")


# Connections.


def test_two_requests_in_a_row(world: World) -> None:
    """Pipelined: the second is asked when the first is answered, and both are, in order."""
    connection = world.connect()
    connection.post(asking(ident=1, it=1))
    connection.post(asking(ident=2, it=2))
    assert len(world.told("x")) == 1
    world.answer_all()
    world.answer_all()
    answers = connection.text.split(b"HTTP/1.1 200 OK")[1:]
    assert [json.loads(each.partition(b"\r\n\r\n")[2])["id"] for each in answers] == [1, 2]


def test_http_1_0(world: World) -> None:
    """No chunks: the events end with the connection."""
    connection = world.connect()
    connection.post(asking(), line="POST /mcp HTTP/1.0")
    world.clock.advance(COMMIT_SECONDS)
    world.answer_all()
    assert "transfer-encoding" not in connection.head
    assert [each["id"] for each in connection.messages] == ["a"]
    assert connection.transport.disconnecting


def test_older_clients_beside_it(world: World) -> None:
    """A session and a request without one: neither sees the other's."""
    older = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}
    opened = world.post(older, MCP_Protocol_Version=None)
    backend = world.backend
    modern = world.post(asking(ident=1))
    assert world.backend is not backend
    world.answer_all()
    assert (modern.json["id"], opened.status) == (1, 0)
    backend.receiver.messages_received([answer(1, {"protocolVersion": "2025-11-25"})])
    assert opened.json["result"] == {"protocolVersion": "2025-11-25"}
    assert opened.head["mcp-session-id"]
