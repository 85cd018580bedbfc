"""
The endpoint of 2026-07-28 without a reactor: bytes of a connection on one side, a fake backend on
the other.
"""

from __future__ import annotations

import base64
import json
from functools import partial
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
from mcpbridge.web.root import Branch, SecuredResource, Serving
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
#: The headers of each request of this revision that do not depend on the request.
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
    """
    A server of 2026-07-28: answers `server/discover` and `tools/list`, and leaves the rest to the
    test.
    """

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
    """A server of 2025-11-25, which answers `initialize`."""

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
    """Launches servers of one kind; with an `error`, launching fails."""

    kind: type[FakeBackend] = Modern

    def launch(self, receiver: Any, label: str) -> Any:
        launched = super().launch(receiver, label)
        if self.error is None:
            self.backends[-1].__class__ = self.kind
        return launched


class Limiter:
    """Limits the number of processes."""

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
    """A filter that refuses one word and raises an unexpected error for another."""

    def from_client(self, session: object, line: bytes) -> bytes:
        if b"refuse" in line:
            raise MessageRefused("refused")
        if b"explode" in line:
            raise RuntimeError("a defect")
        return line

    def from_backend(self, session: object, line: bytes) -> bytes:
        return line


class World:
    """A site with one server."""

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
            SecuredResource(partial(Serving, TransportSecurity(every), root)),
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

    def received(self, method: str) -> list[Any]:
        """Return the messages of this method that the backends have received."""
        decoded = [json.loads(line) for each in self.launcher.backends for line in each.sent]
        return [each for each in decoded if each["method"] == method]

    def say(self, *lines: bytes) -> None:
        self.backend.receiver.messages_received(list(lines))

    def answer_all(self, method: str = "x") -> None:
        """Answer all requests of a method; each result has the `it` of its request."""
        for asked in self.received(method):
            self.say(answer(asked["id"], {"was": asked["params"].get("it")}))


class Connection:
    """A connection, and the bytes written to it."""

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
        """Lose the connection, as when the client closes it."""
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
        """The messages of an event stream, whose events have no ids."""
        assert self.head["content-type"] == "text/event-stream"
        events = self.body.replace(KEPT_ALIVE, b"").split(b"\n\n")
        assert events.pop() == b""
        for each in events:
            assert each.startswith(b"event: message\ndata: "), each
        return [json.loads(each.partition(b"data: ")[2]) for each in events]

    def error(self) -> tuple[int, int, Any]:
        """Return the status, code and id of an error response."""
        assert self.head["content-type"] == "application/json"
        assert self.json["jsonrpc"] == "2.0"
        return self.status, self.json["error"]["code"], self.json["id"]


def answer(ident: object, result: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": ident, "result": result}).encode()


def failure(ident: object, code: object) -> bytes:
    error = {"code": code, "message": "no"}
    return json.dumps({"jsonrpc": "2.0", "id": ident, "error": error}).encode()


def meta(**changes: Any) -> dict[str, Any]:
    """Return the `_meta` that each request must have."""
    said = {"protocolVersion": VERSION, "clientCapabilities": {}, **changes}
    return {PREFIX + name: value for name, value in said.items() if value is not None}


def asking(method: str = "x", ident: object = "a", **params: Any) -> dict[str, Any]:
    """Return a request."""
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


def test_single_response_is_json(world: World) -> None:
    """It has the client's id, whatever the id is that the server saw."""
    posted = world.post(asking(it=7))
    assert posted.status == 0
    world.answer_all()
    assert (posted.status, posted.head["content-type"]) == (200, "application/json")
    assert posted.json == {"jsonrpc": "2.0", "id": "a", "result": {"was": 7}}
    assert "mcp-session-id" not in posted.head


def test_notification_before_the_response_opens_an_event_stream(world: World) -> None:
    """The events have no ids, and a header turns off buffering in proxies."""
    posted = world.post(asking(_meta={**meta(), "progressToken": "t"}))
    [asked] = world.received("x")
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


def test_notification_and_response_in_one_read_open_an_event_stream(world: World) -> None:
    posted = world.post(asking(_meta={**meta(), "progressToken": 3}))
    [asked] = world.received("x")
    token = asked["params"]["_meta"]["progressToken"]
    world.say(progress(token), answer(asked["id"], {}))
    assert [each.get("method") for each in posted.messages] == ["notifications/progress", None]


def test_silent_request_opens_an_event_stream_after_commit_seconds() -> None:
    """Keepalive comments follow; a later error is an event, and the status stays 200."""
    world = World(keepalive_interval=5)
    posted = world.post(asking())
    world.clock.advance(COMMIT_SECONDS - 0.01)
    assert posted.status == 0
    world.clock.advance(0.01)
    assert (posted.status, posted.body) == (200, KEPT_ALIVE)
    world.clock.advance(5)
    assert posted.body == KEPT_ALIVE * 2
    [asked] = world.received("x")
    world.say(failure(asked["id"], -32601))
    assert [each["error"]["code"] for each in posted.messages] == [-32601]
    assert posted.text.endswith(b"0\r\n\r\n")


def test_json_response_setting_answers_with_json_only() -> None:
    """Neither time nor progress opens a stream, and the client need not accept events."""
    world = World(json_response=True)
    message = asking(_meta={**meta(), "progressToken": "t"})
    posted = world.post(message, Accept="application/json")
    world.clock.advance(COMMIT_SECONDS * 10)
    [asked] = world.received("x")
    world.say(progress(asked["params"]["_meta"]["progressToken"]))
    assert posted.status == 0
    world.answer_all()
    assert (posted.status, posted.json["id"]) == (200, "a")


@pytest.mark.parametrize("json_response", [False, True])
def test_subscription_is_an_event_stream(json_response: bool) -> None:
    """Acknowledgement, notifications and final result have the client's own id."""
    world = World(json_response=json_response)
    posted = world.post(asking("subscriptions/listen", 5, notifications={}))
    [asked] = world.received("subscriptions/listen")
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
def test_status_matches_the_error_code_of_the_server(
    world: World, code: object, status: int
) -> None:
    """The error itself passes unchanged."""
    posted = world.post(asking())
    [asked] = world.received("x")
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
def test_status_of_an_unreadable_response_is_200(line: bytes) -> None:
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
def test_invalid_requests_are_refused_with_a_json_rpc_error(
    world: World, name: str, logged_failures: list[Any]
) -> None:
    """The error has the id of the request, and no code reserved for other purposes."""
    message, headers, *error = WRONG[name]
    posted = world.post(message, **headers)
    assert [*posted.error()] == error
    assert world.received("x") == world.received("tools/call") == []
    assert len(logged_failures) == (name == "a defect")
    if name == "a later version":
        data = {"supported": [VERSION], "requested": "2027-01-01"}
        assert posted.json["error"]["data"] == data


def test_content_length_beyond_the_limit_is_refused_with_413() -> None:
    """It is refused before the body has arrived."""
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
def test_repeated_header_is_refused(world: World, name: str) -> None:
    """An intermediary might read the first one, and the server the last one."""
    connection = world.connect()
    value = {"Mcp-Method": "tools/call", "Mcp-Name": "tool"}.get(name, VERSION)
    connection.post(calling(), f"{name}: {value}")
    assert connection.error() == (400, -32020, "a")


def test_base64_headers_are_decoded(world: World) -> None:
    """This applies to names and to parameters."""
    city = "=?base64?" + base64.b64encode("Köln".encode()).decode() + "?="
    name = "=?base64?" + base64.b64encode(b"tool").decode() + "?="
    posted = world.post(calling(city="Köln"), Mcp_Name=name, Mcp_Param_City=city)
    [asked] = world.received("tools/call")
    world.say(answer(asked["id"], {}))
    assert posted.status == 200


@pytest.mark.parametrize(("header", "value"), [("Origin", "http://evil"), ("Host", "evil")])
def test_foreign_origin_or_host_is_refused_with_403(world: World, header: str, value: str) -> None:
    """No process is started."""
    posted = world.post(asking(), **{header: value})
    assert posted.status == 403
    assert world.launcher.backends == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_methods_other_than_post_are_refused_with_405(world: World, method: str) -> None:
    """`Allow` names POST; a session id makes no difference."""
    connection = world.connect()
    head = {**USUAL, "MCP-Protocol-Version": VERSION, "Mcp-Session-Id": "x", "Last-Event-ID": "0-0"}
    lines = [f"{name}: {value}" for name, value in head.items()]
    connection.send("\r\n".join([f"{method} /mcp HTTP/1.1", *lines]))
    assert connection.error() == (405, -32600, None)
    assert connection.head["allow"] == "post"


def test_session_id_is_ignored(world: World) -> None:
    """`Mcp-Session-Id` and `Last-Event-ID` have no meaning for a modern request."""
    posted = world.post(asking(), Mcp_Session_Id="none", Last_Event_ID="0-0")
    world.answer_all()
    assert posted.status == 200
    assert "mcp-session-id" not in posted.head


@pytest.mark.parametrize("headers", [{}, {"Mcp_Method": None}])
def test_notification_is_accepted_with_202_and_dropped(
    world: World, headers: dict[str, Any]
) -> None:
    """The specification defines no notification from client to server over HTTP."""
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    posted = world.post(message, **headers)
    assert (posted.status, posted.body) == (202, b"")
    assert world.launcher.backends == []


def test_request_is_refused_with_429_while_sessions_use_all_processes() -> None:
    """The response has `Retry-After`."""
    world = World()
    world.limiter.left = 0
    posted = world.post(asking())
    assert posted.error() == (429, -32603, "a")
    assert posted.head["retry-after"] == "1"


def test_full_queue_and_queue_timeout_are_answered_with_429() -> None:
    """A full queue is answered at once, a waiting request after `queue_timeout`."""
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


def test_failed_start_is_answered_with_502(world: World) -> None:
    """The error gives the reason."""
    world.launcher.error = CannotStart("no such program")
    posted = world.post(asking())
    assert posted.error() == (502, -32603, "a")
    assert "no such program" in posted.json["error"]["message"]


def test_server_in_backoff_is_answered_with_503(world: World) -> None:
    """The response has `Retry-After`, and no process is started."""
    world.server.pool.fail("it crashed")
    posted = world.post(asking())
    assert posted.error() == (503, -32603, "a")
    assert posted.head["retry-after"] == "1"
    assert world.launcher.backends == []


def test_ending_process_is_answered_with_502(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not a 404: a stateless client has no session."""

    async def ask(exchange: Any, headers: Any) -> None:
        raise UnknownSession("its backend takes no more messages")

    monkeypatch.setattr(world.server.stateless, "ask", ask)
    assert world.post(asking()).error() == (502, -32603, "a")


def test_busy_backend_is_answered_with_503(world: World) -> None:
    """The response has `Retry-After`, and a code of this revision."""
    world.post(asking())
    world.backend.busy = True
    posted = world.post(asking(ident=2))
    assert posted.error() == (503, -32603, 2)
    assert posted.head["retry-after"] == "1"


def test_stopping_bridge_answers_with_503(world: World) -> None:
    world.server.pool.begin_stop()
    posted = world.post(asking())
    assert posted.error() == (503, -32603, "a")
    assert "retry-after" in posted.head


@pytest.mark.parametrize("begun", [False, True])
def test_exit_of_the_process_fails_the_request(world: World, begun: bool) -> None:
    """The status is 502; on an open stream the error is an event."""
    posted = world.post(asking())
    world.clock.advance(COMMIT_SECONDS if begun else 0)
    world.backend.receiver.output_closed("it crashed")
    if begun:
        [error] = posted.messages
        assert (posted.status, error["id"], error["error"]["code"]) == (200, "a", -32603)
        assert posted.text.endswith(b"0\r\n\r\n")
    else:
        assert posted.error() == (502, -32603, "a")


def test_unexpected_error_on_an_open_stream_is_an_event(
    world: World, logged_failures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is completed, and no second response follows."""

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
def test_lost_connection_cancels_its_request(method: str, json_response: bool, begun: bool) -> None:
    """
    Any disconnect is a cancellation (basic/patterns/cancellation); over stdio it is a notification.
    """
    world = World(json_response=json_response)
    posted = world.post(asking(method))
    other = world.post(asking(ident="b", it=1))
    world.clock.advance(COMMIT_SECONDS if begun else 0)
    posted.leave()
    [asked] = [each for each in world.received(method) if each["params"].get("it") != 1]
    [cancelled] = world.received("notifications/cancelled")
    assert cancelled["params"]["requestId"] == asked["id"]
    before = posted.text
    world.say(answer(asked["id"], {}))
    assert posted.text == before, "nothing more is sent"
    world.answer_all()
    assert b'"id": "b"' in other.text or b'"id":"b"' in other.text


def test_lost_connection_removes_its_queued_request(world: World) -> None:
    """Nothing was sent, so nothing is cancelled, and the next request keeps its turn."""
    world = World(concurrency=1)
    first = world.post(asking(it=1))
    world.limiter.left = 0
    gone, last = world.post(asking(it=2)), world.post(asking(it=3))
    gone.leave()
    world.answer_all()
    assert first.json["result"] == {"was": 1}
    world.answer_all()
    assert last.json["result"] == {"was": 3}
    assert [each["params"]["it"] for each in world.received("x")] == [1, 3]
    assert world.received("notifications/cancelled") == []


def test_slow_reader_is_cut_off_at_max_waiting_bytes(world: World) -> None:
    """Other clients of the same process are not delayed."""
    slow = world.post(asking(_meta={**meta(), "progressToken": "t"}))
    other = world.post(asking(ident="b"))
    mine, others = world.received("x")
    line = progress(mine["params"]["_meta"]["progressToken"])
    world.say(line)
    slow.channel.pauseProducing()
    assert "pause" not in world.backend.events
    world.say(*[line] * (ROOM // len(line) - 5))
    assert not slow.is_cut_off()
    world.say(*[line] * 10)
    assert slow.is_cut_off()
    slow.leave()
    assert [each["params"]["requestId"] for each in world.received("notifications/cancelled")] == [
        mine["id"]
    ]
    world.say(answer(others["id"], {}))
    assert other.status == 200


def test_slow_reader_pauses_its_exclusive_process(world: World) -> None:
    """The process is read again when the client has left."""
    world.launcher.kind = Legacy
    slow = world.post(asking(_meta={**meta(), "progressToken": "t"}))
    backend = world.backend
    [asked] = world.received("x")
    world.say(progress(asked["params"]["_meta"]["progressToken"]))
    assert slow.head["content-type"] == "text/event-stream"
    slow.channel.pauseProducing()
    assert backend.events.count("pause") == backend.events.count("resume") + 1
    slow.leave()
    assert backend.events.index("pause") < backend.events.index("resume")
    [cancelled] = world.received("notifications/cancelled")
    assert cancelled["params"]["requestId"] == asked["id"]


def test_client_may_fall_behind_repeatedly_if_it_catches_up(world: World) -> None:
    posted = world.post(asking(_meta={**meta(), "progressToken": "t"}))
    [asked] = world.received("x")
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


def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    """The second is sent to the server when the first is answered."""
    connection = world.connect()
    connection.post(asking(ident=1, it=1))
    connection.post(asking(ident=2, it=2))
    assert len(world.received("x")) == 1
    world.answer_all()
    world.answer_all()
    answers = connection.text.split(b"HTTP/1.1 200 OK")[1:]
    assert [json.loads(each.partition(b"\r\n\r\n")[2])["id"] for each in answers] == [1, 2]


def test_http_1_0_client_gets_an_unchunked_stream(world: World) -> None:
    """The stream ends with the connection."""
    connection = world.connect()
    connection.post(asking(), line="POST /mcp HTTP/1.0")
    world.clock.advance(COMMIT_SECONDS)
    world.answer_all()
    assert "transfer-encoding" not in connection.head
    assert [each["id"] for each in connection.messages] == ["a"]
    assert connection.transport.disconnecting


def test_session_and_stateless_request_do_not_affect_each_other(world: World) -> None:
    """They use the same id."""
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
