"""
The fast path gives the same response to the same bytes as twisted.web, however they are split, and
also to hostile ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransport

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS, DRAIN_SECONDS, HEAD_SECONDS, REQUEST_SECONDS
from mcpbridge.errors import MessageRefused
from mcpbridge.pacer import Pacer
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.server import Server
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.testing import FakeBackend, RecordingSink
from mcpbridge.twisted_internals import AT_ONCE_BYTES
from mcpbridge.web.fast_path import KNOWN_HOSTS, KNOWN_ORIGINS, FastPath
from mcpbridge.web.request_parser import Head, RequestParser
from mcpbridge.web.site import BridgeSite
from mcpbridge.web.transport_security import TransportSecurity
from tests.examples import examples
from tests.fakes import no_jitter
from tests.unit.web.test_stateless_http import Launcher, Modern, answer

IDENT = "12345678-1234-4234-8234-123456789abc"
LIMIT = 300
CALL = b'{"jsonrpc":"2.0","id":1,"method":"x"}'
META = (
    b'"params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{}}}'
)
MODERN = b'{"jsonrpc":"2.0","id":"m","method":"x",%b}' % META


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
    """A site with one session of each transport and one connection, without a reactor."""

    def __init__(
        self,
        *,
        fast_path: bool,
        budget: int = 10_000,
        full: bool = False,
        json_response: bool = False,
        limit: int = LIMIT,
        hosts: tuple[str, ...] = ("h", "h:8808"),
        loopback: int = 0,
        sessions: int = 100,
        waiting: int = 1024,
        filtered: bool = False,
        access_control: Callable[[Clock], AccessControl | None] = lambda clock: None,
        access: Access = ANYBODY,
        seconds: Callable[[], float] | None = None,
        **bridge: Any,
    ) -> None:
        from mcpbridge.web.root import Branch, SecuredResource, Serving
        from mcpbridge.web.routes import Routes

        self.clock = Clock()
        self.launcher = Launcher()
        self.launcher.kind = FakeBackend
        limiter = _Unlimited()
        server_settings = ServerSettings(
            command="x",
            base_uri="/b",
            max_sessions=sessions,
            max_message_bytes=limit,
            max_waiting_messages=waiting,
            json_response=json_response,
        )
        server = Server(
            server_settings,
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=limiter,
            filters=[Refuser()] if filtered else [],
            event_store=MemoryEventStore(),
            access_control=access_control(self.clock),
        )
        self.server = server
        if access is not ANYBODY:
            access.grounds = server.access_control and server.access_control.grounds
        opened: list[BackendSession] = []
        Deferred.fromCoroutine(
            server.open_session(lambda _: RecordingSink(), access=access)
        ).addCallback(opened.append)
        server.sessions = {IDENT: opened[0]}
        Deferred.fromCoroutine(server.open_streamable(access=access)).addCallback(opened.append)
        server.streamable = {IDENT: opened[1]}
        limiter.full = full
        # Backends that are launched from now on serve requests of 2026-07-28.
        self.launcher.kind = Modern
        self.server = server
        self.streamable: Any = opened[1].sink
        self.backend, self.backend2 = self.launcher.backends
        root = Branch()
        self.pacer = Pacer(self.clock)
        routes = Routes(server, self.clock, self.client_of, pacer=self.pacer)
        root.branch(b"b").leaf = routes.resource()
        all_settings = BridgeSettings(
            servers=(server_settings,),
            max_request_bytes=budget,
            allowed_hosts=hosts,
            **bridge,
        )
        security = TransportSecurity(all_settings)
        self.site = BridgeSite(
            SecuredResource(partial(Serving, security, root)),
            self.clock,
            all_settings,
            FastPath([server], security, routes.endpoints()) if fast_path else None,
            seconds=seconds or self.clock.seconds,
        )
        self.channel: Any = self.site.buildProtocol(None)
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)
        self.channel.loopback = loopback
        if fast_path:
            self.recognised = 0
            for name in ("answer", "post"):
                setattr(
                    self.site.fast_path, name, self._counted(getattr(self.site.fast_path, name))
                )

    def client_of(self, request: Any) -> str | None:
        client: str | None = self.site.clients.of_request(request)
        return client

    def _counted(self, way: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            answer = way(*arguments)
            self.recognised += 1
            return answer

        return counted

    def say(self, line: bytes) -> None:
        """Receive a message from the backend of the Streamable HTTP session."""
        self.backend2.receiver.messages_received([line])

    def calls_of_connection(self) -> list[Any]:
        """Return the delayed calls, except those of sessions."""
        of_sessions = ("StreamableSession", "Failures")
        calls = self.clock.getDelayedCalls()
        return [each for each in calls if not any(name in str(each) for name in of_sessions)]

    def answer_modern(self) -> None:
        """Answer all requests that the backends without a session have received."""
        for backend in self.launcher.backends[2:]:
            for line in list(backend.sent):
                message = json.loads(line)
                if message["method"] == "x":
                    backend.receiver.messages_received([answer(message["id"], {})])

    def receive(self, data: bytes, cuts: list[int]) -> None:
        """Receive the bytes, split at these positions, until the connection closes."""
        places = sorted({cut % (len(data) + 1) for cut in cuts})
        for start, end in zip([0, *places], [*places, len(data)], strict=True):
            if start < end and not self.transport.disconnecting:
                self.channel.dataReceived(data[start:end])
                self.let_turns_pass()

    def let_turns_pass(self) -> None:
        """Serve all pipelined requests, in as many turns as that takes."""
        while len(self.site.turns):
            self.clock.advance(0)

    def seen(self) -> tuple[bytes, bool, list[bytes], list[bytes], list[list[bytes]]]:
        """Return everything that clients and backends can observe."""
        answers = re.sub(rb"\r\nDate: [^\r]+", b"", self.transport.value())
        others = [each.sent for each in self.launcher.backends[2:]]
        closing = self.transport.disconnecting
        return answers, closing, self.backend.sent, self.backend2.sent, others


class _Unlimited:
    full = False

    def is_full(self) -> bool:
        return self.full

    def acquire(self) -> Any:
        return None if self.full else self

    def release(self) -> None:
        pass


TARGETS = st.sampled_from(
    [
        b"/b/message?sessionId=" + IDENT.encode(),
        b"/b/message?sessionId=" + IDENT.replace("1", "2").encode(),
        b"/b/message?sessionId=" + IDENT.upper().encode(),
        b"/b/message?sessionId=" + IDENT.encode() + b"&x=1",
        b"/b/message?sessionId=" + IDENT.encode() + b"&sessionId=x",
        b"/b/message?sessionId=" + IDENT.encode() + b"#x",
        b"/b/message?sessionId=",
        b"/b/message",
        b"/b//message?sessionId=" + IDENT.encode(),
        b"/%62/message?sessionId=" + IDENT.encode(),
        b"/b/message/?sessionId=" + IDENT.encode(),
        b"http://h/b/message?sessionId=" + IDENT.encode(),
        b"/sse",
        b"*",
        b"/b/mcp",
        b"/b/mcp",
        b"/b/mcp?x",
        b"/b/mcp?sessionId=" + IDENT.encode(),
    ]
)
BODIES = st.sampled_from(
    [
        CALL,
        CALL,
        b"",
        b"{}",
        b"[]",
        b"nonsense",
        b'{"jsonrpc":"2.0",\n"method":"x"}\r\n',
        b'{"jsonrpc":"2.0","method":"refuse"}',
        b'{"jsonrpc":"2.0","method":"\xff"}',
        b'{"jsonrpc":"2.0","method":"' + b"x" * LIMIT + b'"}',
        b"POST /b/message?sessionId=" + IDENT.encode() + b" HTTP/1.1\r\n\r\n",
        b"0\r\n\r\n",
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}',
        b'{"jsonrpc":"2.0","id":7,"result":{}}',
        b'{"jsonrpc":"2.0","id":2,"method":"y"}',
        b'{"jsonrpc":"2.0","id":1,"method":"initialize"}',
        b'[{"jsonrpc":"2.0","id":3,"method":"z"}]',
        MODERN,
        MODERN,
        MODERN.replace(b"/", b"\\/"),
        MODERN.replace(b"2026-07-28", b"2025-11-25"),
        MODERN.replace(b"2026-07-28", b"2027-01-01"),
        MODERN.replace(b'"x"', b'"initialize"'),
        MODERN.replace(b'"id":"m",', b""),
        b"[%b]" % MODERN,
    ]
)
STREAMABLE = [
    b"Mcp-Session-Id: " + IDENT.encode(),
    b"Accept: application/json, text/event-stream",
    b"Content-Type: application/json",
]
#: Headers that a client of Streamable HTTP may get wrong.
ODD = st.sampled_from(
    [
        b"",
        b"",
        b"",
        b"MCP-Protocol-Version: 2025-11-25",
        b"MCP-Protocol-Version: 2999-01-01",
        b"MCP-Protocol-Version: 2026-07-28",
        b"MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: x",
        b"MCP-Protocol-Version: 2026-07-28\r\nMCP-Protocol-Version: 2026-07-28\r\nMcp-Method: x",
        b"MCP-Protocol-Version: 2025-11-25\r\nMCP-Protocol-Version: 2026-07-28",
        b"Mcp-Method: x",
        b"Mcp-Session-Id: " + IDENT.encode(),
        b"Mcp-Session-Id: " + IDENT.replace("1", "3").encode(),
        b"Accept: application/json;q=0, text/event-stream",
        b"Content-Type: text/plain",
        b"Last-Event-ID: 0-0",
    ]
)
FIELDS = st.lists(
    st.sampled_from(
        [
            b"Host: h",
            b"Host: H:8808",
            b"Host: evil",
            b"Host: h:evil",
            b"Host:",
            b"Origin: http://h",
            b"Origin: http://evil",
            b"Sec-Fetch-Site: cross-site",
            b"Sec-Fetch-Site: same-origin",
            b"Sec-Fetch-Mode: cors",
            b"User-Agent: Mozilla/5.0",
            b"User-Agent: node",
            b"Content-Type: application/json",
            b"Accept: */*",
            b"Connection: keep-alive",
            b"Connection: close",
            b"connection: Keep-Alive, close",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: identity",
            b"transfer-encoding : chunked",
            b"Content-Length: 5",
            b"Content-Length: +5",
            b"Content-Length: 5, 5",
            b"Content-Length:",
            b"content-length: 0037",
            b"Content-Length: 99999999999999999999",
            b"Content-Length : 37",
            b"Expect: 100-continue",
            b"Upgrade: h2c",
            b"X: a\x00b",
            b"X: a\nContent-Length: 3",
            b"X: a\rb",
            b"X:",
            b"X",
            b": x",
            b" folded",
            b"\tfolded",
            b"X\xff: y",
            b"X: \xff",
            b"X Y: z",
            b"TE: trailers",
            b"Cookie: a=b; c",
            b"Authorization: Basic !!!",
            b"X-Long: " + b"y" * 9000,
        ]
    ),
    max_size=4,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Generate a request, more often a fast one than not."""
    body = draw(BODIES)
    fields = list(draw(FIELDS)) if draw(st.booleans()) else [b"Host: h"]
    streamable = draw(st.booleans())
    if streamable:
        fields += draw(st.sampled_from([STREAMABLE] * 4 + [STREAMABLE[1:], STREAMABLE[:2]]))
        odd = draw(ODD)
        fields += [odd] if odd else []
    if draw(st.integers(0, 9)):
        length = len(body) + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        fields.insert(draw(st.integers(0, len(fields))), b"Content-Length: %d" % max(0, length))
    method = draw(st.sampled_from([b"POST"] * 6 + [b"post", b"GET", b"OPTIONS", b"PRI"]))
    version = draw(st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 "]))
    usual = b"/b/mcp" if streamable else b"/b/message?sessionId=" + IDENT.encode()
    target = draw(TARGETS) if draw(st.booleans()) else usual
    end = draw(st.sampled_from([b"\r\n"] * 9 + [b"\n"]))
    head = end.join([b" ".join([method, target, version]), *fields, b"", b""])
    return head + body


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Generate the bytes of a connection: several requests, some with changed bytes."""
    data = bytearray(b"".join(draw(st.lists(requests(), min_size=1, max_size=4))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        place = draw(st.integers(0, len(data) - 1))
        data[place] = draw(st.integers(0, 255))
    return bytes(data)


def post(body: bytes, *fields: bytes, ident: str = IDENT) -> bytes:
    """Return a fast request to the endpoint of HTTP+SSE."""
    lines = [
        b"POST /b/message?sessionId=%b HTTP/1.1" % ident.encode(),
        b"Content-Length: %d" % len(body),
        *with_host(fields),
    ]
    return b"\r\n".join([*lines, b"", b""]) + body


def with_host(fields: Sequence[bytes]) -> list[bytes]:
    """Add a Host unless there is one."""
    named = any(field.lower().startswith(b"host:") for field in fields)
    return [*fields] if named else [b"Host: h", *fields]


#: The headers of a client of 2026-07-28, besides those of a session.
SAYING = (b"Host: h", b"MCP-Protocol-Version: 2026-07-28", b"Mcp-Method: x")
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{}}'
SAID = st.lists(
    st.sampled_from(
        [
            ANSWER,
            b'{"jsonrpc":"2.0","id":2,"result":{}}',
            b'{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"no"}}',
            b'{"jsonrpc":"2.0","method":"notifications/message"}',
            b'{"jsonrpc":"2.0","id":9,"method":"sampling/createMessage"}',
            b"wait",
            b"modern",
            b"modern",
        ]
    ),
    max_size=5,
)


def post_mcp(body: bytes, *fields: bytes) -> bytes:
    """Return a fast request of Streamable HTTP."""
    lines = [b"POST /b/mcp HTTP/1.1", b"Content-Length: %d" % len(body)]
    lines += [*STREAMABLE, *with_host(fields)]
    return b"\r\n".join([*lines, b"", b""]) + body


@settings(max_examples=examples(400), deadline=None)
@given(streams(), st.lists(st.integers(0, 10_000), max_size=4), SAID)
@example(post(CALL) * 3, [], [])
@example(post(CALL) + b"\r\n" + post(CALL), [5, 60, 140], [])
@example(post(CALL, b"Transfer-Encoding: chunked") + b"0\r\n\r\n", [], [])
@example(post(CALL, b"Content-Length: 3"), [], [])
@example(post(b"x" * (LIMIT + 1)) + post(CALL), [], [])
@example(post(CALL) + post(CALL, b"Connection: close") + post(CALL), [], [])
@example(post_mcp(CALL) + post(CALL), [], [ANSWER])
@example(post_mcp(CALL) + post(CALL), [], [b"wait", ANSWER])
@example(post_mcp(CALL), [], [b'{"jsonrpc":"2.0","method":"notifications/message"}', ANSWER])
@example(post_mcp(CALL) * 2, [], [ANSWER])
@example(post_mcp(CALL, b"MCP-Protocol-Version: 2999-01-01"), [], [ANSWER])
@example(post_mcp(MODERN, *SAYING), [], [b"modern"])
@example(post_mcp(MODERN, *SAYING) * 2 + post_mcp(CALL), [], [b"modern"] * 2 + [ANSWER])
@example(post_mcp(MODERN, *SAYING), [150, 300], [b"wait", b"modern"])
@example(
    post_mcp(MODERN, *SAYING) + post(CALL, b"Connection: close") + b"x" * 20_000, [], [b"modern"]
)
@example(post_mcp(MODERN), [], [ANSWER])
@example(post_mcp(CALL, *SAYING), [], [ANSWER])
@example(post_mcp(b'{"jsonrpc":"2.0","id":1,"method":"initialize"}') + post(CALL), [], [])
@example(post_mcp(b'[{"jsonrpc":"2.0","id":1,"method":"x"}]') + post(CALL), [], [ANSWER])
def test_fast_path_and_twisted_web_respond_alike(
    data: bytes, cuts: list[int], said: list[bytes]
) -> None:
    """Whatever the bytes are and whatever the backend sends."""
    fast, ordinary = (World(fast_path=way, filtered=b"refuse" in data) for way in (True, False))
    for each in (fast, ordinary):
        each.receive(data, cuts)
        for line in said:
            if line == b"wait":
                each.clock.advance(COMMIT_SECONDS)
            elif line == b"modern":
                each.answer_modern()
            else:
                each.say(line)
    assert fast.seen() == ordinary.seen()
    for each in (fast, ordinary):
        each.channel.connectionLost()
        assert each.site.budget.used == 0, "what was held is given back"
        assert not each.streamable.router.has_sinks


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (SAYING, b"200 OK"),
        ([], b"400 Bad Request"),
        ([b"MCP-Protocol-Version: 2025-11-25"], b"400 Bad Request"),
        ([b"MCP-Protocol-Version: 2026-07-28"], b"400 Bad Request"),
    ],
)
@pytest.mark.parametrize("session", [True, False])
def test_modern_request_never_reaches_a_session(
    headers: Sequence[bytes], status: bytes, session: bool
) -> None:
    """Its body decides that it is modern, even if its headers name a session."""
    world, ordinary = World(fast_path=True), World(fast_path=False)
    data = post_mcp(MODERN, *headers)
    if not session:
        data = data.replace(STREAMABLE[0] + b"\r\n", b"")
    for each in (world, ordinary):
        each.receive(data, [])
        each.answer_modern()
        assert each.backend2.sent == []
        assert each.seen()[0].startswith(b"HTTP/1.1 " + status)
    assert world.seen() == ordinary.seen()
    # Requests that also name a session are rare, and left to twisted.web.
    assert world.recognised == (any(b"2026-07-28" in header for header in headers) and not session)


@pytest.mark.parametrize(
    "body",
    [CALL, b"nonsense", b'{"jsonrpc":"2.0","method":"refuse"}', b"{}", b" "],
)
@pytest.mark.parametrize("ident", [IDENT, IDENT.replace("1", "9")])
@pytest.mark.parametrize("cuts", [[], [70], [70, 140, 150]])
def test_fast_requests_are_served_by_the_fast_path(
    body: bytes, ident: str, cuts: list[int]
) -> None:
    """Otherwise the comparison would prove nothing; the body may arrive later."""
    world, ordinary = (World(fast_path=way, filtered=True) for way in (True, False))
    data = post(body, b"Host: h", b"User-Agent: x", ident=ident)
    head = data.index(b"\r\n\r\n") + 4
    for each in (world, ordinary):
        each.receive(data, [head + cut for cut in cuts if head + cut < len(data)])
    assert world.recognised == 1
    assert world.seen() == ordinary.seen()


def test_unexpected_error_of_a_filter_is_answered_with_500_on_both_paths(
    logged_failures: list[Any],
) -> None:
    """The details are only in the log."""
    data = post(b'{"jsonrpc":"2.0","method":"explode"}')
    worlds = [World(fast_path=way, filtered=True) for way in (True, False)]
    for world in worlds:
        world.receive(data, [])
    assert worlds[0].seen() == worlds[1].seen()
    assert worlds[0].recognised == 1
    assert b"500" in worlds[0].seen()[0]
    assert len(logged_failures) == 2


def test_busy_backend_is_answered_with_503_on_both_paths() -> None:
    """The response has `Retry-After`."""
    worlds = [World(fast_path=True), World(fast_path=False)]
    for world in worlds:
        world.backend.busy = True
        world.receive(post(CALL), [])
    assert worlds[0].seen() == worlds[1].seen()
    assert b"503" in worlds[0].seen()[0]
    assert b"Retry-After: 1\r\n" in worlds[0].seen()[0]


def test_body_beyond_the_budget_is_refused_with_503_on_both_paths() -> None:
    """The bytes that were counted are given back."""
    worlds = [World(fast_path=True, budget=LIMIT), World(fast_path=False, budget=LIMIT)]
    for world in worlds:
        world.site.budget.take(LIMIT - 10)
        world.receive(post(CALL), [100])
        world.site.budget.give_back(LIMIT - 10)
    assert worlds[0].seen() == worlds[1].seen()
    assert b"503" in worlds[0].seen()[0]


class Lines:
    """An access log that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def add(self, *facts: Any) -> None:
        self.lines.append(facts)


def test_access_log_is_the_same_on_both_paths() -> None:
    """Also for what is no request at all."""
    worlds = [World(fast_path=True, access_log=True), World(fast_path=False, access_log=True)]
    note = b'{"jsonrpc":"2.0","method":"x"}'
    for world in worlds:
        log: Any = Lines()
        world.site.access_log = log
        world.receive(post(note) + post(b"nonsense") + post_mcp(note) + post_mcp(CALL), [])
        world.say(ANSWER)
        world.receive(post_mcp(MODERN, *SAYING).replace(STREAMABLE[0] + b"\r\n", b""), [])
        world.answer_modern()
        world.receive(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\nnonsense\r\n\r\n", [])
    logs: list[Any] = [world.site.access_log for world in worlds]
    assert logs[0].lines == logs[1].lines
    assert [line[1] for line in logs[0].lines] == [202, 400, 202, 200, 200, 404, 405]
    assert worlds[0].recognised == 5


@pytest.mark.parametrize(
    "meta",
    [
        b'"_meta":{"progressToken":"t"}',
        b'"_meta":{"progress\\u0054oken":"t"}',
        b'"\\u005fmeta":{"progressToken":"t"}',
        b'"_meta":{"other":"t"}',
    ],
)
def test_progress_finds_its_request_however_its_token_is_spelled(meta: bytes) -> None:
    world = World(fast_path=True)
    world.receive(post_mcp(CALL.replace(b"}", b',"params":{%b}}' % meta)), [])
    world.receive(post_mcp(CALL.replace(b'"id":1', b'"id":2')), [])
    told = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t"}}'
    world.say(told)
    assert (told in world.transport.value()) == (b"other" not in meta)


class Socket(FileDescriptor):
    """A plain socket that takes everything."""

    def __init__(self) -> None:
        super().__init__(MemoryReactor())
        self.connected = 1
        self.written: list[bytes] = []

    def write_now(self, data: bytes) -> int:
        self.written.append(data)
        return len(data)


@pytest.mark.parametrize("more", [-1000, 1])
def test_large_answer_is_written_without_a_copy(more: int) -> None:
    """Beyond `AT_ONCE_BYTES` the transport gets the line itself, and the log its size."""
    world, socket, log = World(fast_path=True, access_log=True), Socket(), Lines()
    world.channel._descriptor, world.site.access_log = socket, log  # type: ignore[assignment]
    world.receive(post_mcp(CALL), [])
    line = ANSWER.ljust(AT_ONCE_BYTES + more)
    world.say(line)
    [written] = socket.written
    assert (socket.dataBuffer is line) == (more > 0)
    assert (written + socket.dataBuffer).endswith(
        b"Content-Length: %d\r\n\r\n%b" % (len(line), line)
    )
    assert [each[1:] for each in log.lines] == [(200, len(line))]


@pytest.mark.parametrize("fast_path", [True, False])
def test_large_answer_is_whole_without_a_plain_socket(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    world.receive(post_mcp(CALL), [])
    line = ANSWER.ljust(AT_ONCE_BYTES + 1)
    world.say(line)
    assert world.transport.value().endswith(b"\r\n\r\n" + line)


def head_of(data: bytes) -> Head:
    parser = RequestParser()
    parser.feed(data)
    return parser.ready[0].head


def test_known_hosts_and_known_origins_bound_what_is_cached_of_heads() -> None:
    """More of them are served as well."""
    world = World(fast_path=True, hosts=("h",), allowed_origins=("*",))
    path: Any = world.site.fast_path
    for number in range(KNOWN_HOSTS + KNOWN_ORIGINS):
        fields = b"Host: h:%d" % number, b"Origin: http://o-%d" % number
        request = path.recognise(head_of(post(CALL, *fields)))
        assert b"\r\nAccess-Control-Allow-Origin: http://o-%d\r\n" % number in (
            request.responses.accepted()
        )
    assert path._allows_host.cache_info().currsize == KNOWN_HOSTS
    assert path._responses_with.cache_info().currsize == KNOWN_ORIGINS


@pytest.mark.parametrize("fast_path", [True, False])
def test_refused_body_is_read_for_drain_seconds(fast_path: bool) -> None:
    """The client can read the response meanwhile; then the connection is aborted."""
    world = World(fast_path=fast_path)
    head = post(b"x").partition(b"\r\n\r\n")[0]
    world.channel.dataReceived(head.replace(b"Length: 1", b"Length: 100000") + b"\r\n\r\nx")
    assert world.transport.value().startswith(b"HTTP/1.1 413 ")
    cut: list[bool] = []
    for seconds in (DRAIN_SECONDS - 0.1, 0.1):
        world.clock.advance(seconds)
        cut.append(world.transport.disconnected)
    assert cut == [False, True]
    world.channel.connectionLost()


def test_incomplete_body_is_aborted_after_request_seconds() -> None:
    """The bytes that were counted are given back."""
    world = World(fast_path=True)
    data = post(CALL)
    world.receive(data[:-5], [])
    assert world.site.budget.used == len(CALL) - 5, "what has arrived"
    world.clock.advance(HEAD_SECONDS)
    for _ in range(10):
        world.clock.advance(REQUEST_SECONDS / 10)
    assert world.transport.disconnected
    world.channel.connectionLost()
    assert world.site.budget.used == 0
    assert world.recognised == 0


@pytest.mark.parametrize("cut", [1, 30])
def test_incomplete_head_is_aborted_after_head_seconds(cut: int) -> None:
    """Single bytes that keep arriving do not extend the deadline."""
    world = World(fast_path=True)
    for place in range(cut):
        world.channel.dataReceived(post(CALL)[place : place + 1])
        world.clock.advance(HEAD_SECONDS / 31)
    world.clock.advance(HEAD_SECONDS)
    assert world.transport.disconnected


def one_of(name: bytes, *values: bytes) -> st.SearchStrategy[list[bytes]]:
    """Generate no such field, one of these, or several."""
    field = st.sampled_from([b"%b: %b" % (name, value) for value in values])
    return st.lists(field, max_size=1) | st.lists(field, max_size=2)


#: Headers that transport security checks.
SENDERS = st.tuples(
    one_of(b"Host", b"127.0.0.1:8808", b"localhost", b"h", b"a.example", b"a.example:x", b"b", b""),
    one_of(b"Origin", b"http://a.example", b"http://127.0.0.1:8808", b"https://h", b"null"),
    one_of(b"Sec-Fetch-Site", b"cross-site", b"same-site", b"same-origin", b"none"),
    one_of(b"Sec-Fetch-Mode", b"navigate", b"no-cors", b"cors"),
    one_of(b"Sec-Fetch-Dest", b"document", b"empty", b"image"),
    one_of(b"Sec-Purpose", b"prefetch"),
    one_of(b"User-Agent", b"Mozilla/5.0", b"node", b"curl/8"),
    one_of(b"Accept", b"*/*", b"text/event-stream", b"text/html"),
).map(lambda lists: [field for fields in lists for field in fields])


@settings(max_examples=examples(400), deadline=None)
@given(
    SENDERS,
    st.sampled_from([b"/b/message?sessionId=" + IDENT.encode(), b"/b/mcp", b"/b/sse", b"/b"]),
    st.sampled_from([(), ("h",), ("h", "a.example")]),
    st.sampled_from([0, 8808]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]),
)
@example([b"Host: a.example"], b"/b/mcp", (), 0, b"HTTP/1.1")
@example([b"Host: a.example", b"User-Agent: Mozilla/5.0"], b"/b/mcp", (), 0, b"HTTP/1.1")
@example([b"Host: h", b"Sec-Fetch-Site: same-site"], b"/b/mcp", ("h",), 0, b"HTTP/1.1")
@example([b"Host: h", b"Sec-Fetch-Site: cross-site"], b"/b/sse", ("h",), 0, b"HTTP/1.1")
@example([], b"/b/sse", (), 0, b"HTTP/1.1")
def test_transport_security_is_the_same_on_both_paths(
    sender: list[bytes], target: bytes, hosts: tuple[str, ...], loopback: int, version: bytes
) -> None:
    """Host, Origin and the headers of browsers lead to the same status."""
    if target.startswith(b"/b/sse"):
        data = b"\r\n".join([b"GET %b %b" % (target, version), *sender, b"", b""])
    else:
        lines = [b"POST %b %b" % (target, version), b"Content-Length: %d" % len(CALL), *sender]
        lines += STREAMABLE if target == b"/b/mcp" else []
        data = b"\r\n".join([*lines, b"", b""]) + CALL
    # The limiter is full, so that no request opens a stream.
    worlds = [
        World(fast_path=way, full=True, hosts=hosts, loopback=loopback) for way in (True, False)
    ]
    for world in worlds:
        world.receive(data, [])
        world.say(ANSWER)
    assert worlds[0].seen() == worlds[1].seen()
    answers, _, *sent = worlds[1].seen()
    if answers.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")):
        assert sent == [[], [], []], "a message of it has reached a backend"
    for world in worlds:
        world.channel.connectionLost()


@settings(max_examples=examples(100), deadline=None)
@given(
    FIELDS,
    st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"get"]),
    st.sampled_from([b"/b/sse", b"/b/sse", b"/b/sse?x", b"/b/sse/", b"/b//sse", b"/sse"]),
    st.lists(st.integers(0, 1000), max_size=2),
)
@example([b"Host: h"], b"GET", b"/b/sse", [])
def test_stream_beyond_max_sessions_is_refused_with_429_on_both_paths(
    fields: list[bytes], method: bytes, path: bytes, cuts: list[int]
) -> None:
    """The connection stays open."""
    head = b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), *fields, b"", b""])
    worlds = [World(fast_path=True, full=True), World(fast_path=False, full=True)]
    for world in worlds:
        world.receive(head + post(CALL, b"Host: h"), cuts)
    assert worlds[0].seen() == worlds[1].seen()
    if fields == [b"Host: h"] and method == b"GET" and path == b"/b/sse":
        assert b" 429 Too Many Requests\r\n" in worlds[0].seen()[0]
        assert worlds[0].seen()[2] == [CALL]


@pytest.mark.parametrize("fast_path", [True, False])
def test_share_of_a_client_behind_a_proxy_bounds_a_fast_request_too(fast_path: bool) -> None:
    """And not that of the proxy, which has none."""
    world = World(
        fast_path=fast_path, trusted_proxies=("192.168.1.1",), max_request_bytes_per_address=LIMIT
    )
    channel: Any = world.site.buildProtocol(None)
    transport = StringTransport()
    channel.makeConnection(transport)
    client = "192.0.2.1"
    world.site.budget.take(LIMIT - 10, client)
    channel.dataReceived(post(CALL, b"Host: h", b"X-Forwarded-For: 192.0.2.1"))
    assert transport.value().startswith(b"HTTP/1.1 503 ")
    world.site.budget.give_back(LIMIT - 10, client)
    channel.connectionLost()


@pytest.mark.parametrize("fast_path", [True, False])
def test_body_that_is_malformed_reaches_no_route(fast_path: bool) -> None:
    """No session is opened, and none is ended."""
    world = World(fast_path=fast_path, hosts=("h",))
    before = len(world.launcher.backends)
    for head in (b"GET /b/sse", b"GET /b/mcp", b"DELETE /b/mcp"):
        channel: Any = world.site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        fields = b"Host: h\r\nTransfer-Encoding: chunked\r\n" + STREAMABLE[0]
        channel.dataReceived(b"%b HTTP/1.1\r\n%b\r\n\r\nZZ\r\n" % (head, fields))
        assert transport.value().startswith(b"HTTP/1.1 400 ")
        channel.connectionLost()
    assert len(world.launcher.backends) == before
    assert world.server.streamable


@pytest.mark.parametrize("fast_path", [True, False])
def test_complete_body_that_is_too_large_leaves_the_connection_open(fast_path: bool) -> None:
    """There is nothing left of it that would have to be dropped."""
    world = World(fast_path=fast_path)
    world.receive(post(b"x" * (LIMIT + 1)) + post(b"{}"), [])
    statuses = re.findall(rb"HTTP/1.1 (\d+)", world.transport.value())
    assert statuses == [b"413", b"400"]
    assert not world.transport.disconnecting
