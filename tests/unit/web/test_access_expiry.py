"""
Access that ends, and access that is found out later: what becomes of requests and streams, on the
fast path and without it.
"""

from __future__ import annotations

import json
from functools import partial
from math import inf
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from mcpbridge.auth.access_control import UNCHECKED_SECONDS, AccessControl
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.scopes import ScopeRules
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS, TOKEN_LEEWAY_SECONDS
from mcpbridge.errors import AuthenticationUnavailable, Forbidden, InvalidToken
from mcpbridge.interfaces import IAuthenticator
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.server import Server
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.session_report import session_lines
from mcpbridge.testing import CLEANLY, FakeBackend
from mcpbridge.web.access_expiry import EXPIRED, AccessExpiry
from mcpbridge.web.client_addresses import Peer
from mcpbridge.web.fast_path import FastPath
from mcpbridge.web.root import Branch, SecuredResource, Serving
from mcpbridge.web.routes import Routes
from mcpbridge.web.site import BridgeSite
from mcpbridge.web.transport_security import TransportSecurity
from tests.fakes import no_jitter
from tests.unit.web.test_stateless_http import Launcher, Legacy, Limiter, Modern, answer

#: When the tests begin, in seconds since the epoch.
NOW = 1_000_000.0
#: When the token `short` expires, and when access ends that it gives.
SHORT = NOW + 100
END = SHORT + TOKEN_LEEWAY_SECONDS
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
    b'"capabilities":{},"clientInfo":{"name":"x","version":"1"}}}'
)
CALL = b'{"jsonrpc":"2.0","id":5,"method":"x","params":{}}'
META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{}}'
)
LISTEN = (
    b'{"jsonrpc":"2.0","id":9,"method":"subscriptions/listen","params":'
    b'{"notifications":{"toolsListChanged":true},%b}}' % META
)
MODERN_CALL = b'{"jsonrpc":"2.0","id":"m","method":"x","params":{%b}}' % META


class Talker(Modern):
    """A server of 2026-07-28 that acknowledges subscriptions."""

    def send(self, line: bytes) -> None:
        super().send(line)
        message = json.loads(line)
        if message.get("method") == "subscriptions/listen":
            meta = {"io.modelcontextprotocol/subscriptionId": message["id"]}
            params = {"_meta": meta, "notifications": message["params"]["notifications"]}
            told = {
                "jsonrpc": "2.0",
                "method": "notifications/subscriptions/acknowledged",
                "params": params,
            }
            self.receiver.messages_received([json.dumps(told).encode()])


@implementer(IAuthenticator)
class Authenticator:
    """Knows tokens, and what to return or raise for each; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.tokens: dict[str, Any] = {
            "short": identity(SHORT),
            "long": identity(NOW + 1000),
            "other": Identity(issuer="i", subject="bob", expires_at=NOW + 5000),
            "endless": identity(None),
        }

    def authenticate(self, request: Any) -> Any:
        self.asked += 1
        found = self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if isinstance(found, Exception):
            raise found
        return found() if callable(found) else found


def identity(expires_at: float | None, **more: Any) -> Identity:
    return Identity(issuer="i", subject="alice", expires_at=expires_at, **more)


class World:
    """
    A site with one server.  With `remembers`, what the authenticator finds out is remembered,
    as with those that are built in.
    """

    def __init__(
        self, *, fast_path: bool = True, remembers: bool = True, kind: type[FakeBackend] = Legacy
    ) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.launcher = Launcher()
        self.launcher.kind = kind
        self.authenticator = Authenticator()
        self.control = AccessControl(
            "s",
            [self.authenticator],
            rules=ScopeRules(),
            decisive=("authorization",) if remembers else None,
            clock=self.clock,
        )
        settings = ServerSettings(command="x", keepalive_interval=10_000)
        self.server = Server(
            settings,
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=Limiter(),
            event_store=MemoryEventStore(),
            access_control=self.control,
        )
        root = Branch()
        routes = Routes(self.server, self.clock)
        root.leaf = routes.resource()
        every = BridgeSettings(servers=(settings,), allowed_hosts=("h",))
        security = TransportSecurity(every)
        fast = FastPath([self.server], security, routes.endpoints())
        self.site = BridgeSite(
            SecuredResource(partial(Serving, security, root)),
            self.clock,
            every,
            fast if fast_path else None,
            refuse_sender=fast.refuse_sender,
            seconds=self.clock.seconds,
        )

    def until(self, time: float) -> None:
        """Advance the clock to a time."""
        self.clock.pump([time - self.clock.seconds()])

    def connect(self) -> Connection:
        return Connection(self)

    def open_session(self, token: str) -> str:
        """Open a session of Streamable HTTP."""
        opened = self.connect().post(INITIALIZE, token)
        assert opened.status == 200, opened.text
        ident = opened.text.partition(b"Mcp-Session-Id: ")[2].partition(b"\r\n")[0]
        return ident.decode("ascii")

    @property
    def backend(self) -> FakeBackend:
        return self.launcher.backends[-1]

    def received(self, method: str = "x") -> list[Any]:
        """Return the messages of this method that the backends have received."""
        decoded = [json.loads(line) for each in self.launcher.backends for line in each.sent]
        return [each for each in decoded if each.get("method") == method]

    def answer(self) -> None:
        """Answer the last request of a backend."""
        self.backend.receiver.messages_received([answer(self.received()[-1]["id"], {"was": 1})])


class Connection:
    """A connection of a client, which reads all."""

    def __init__(self, world: World) -> None:
        self.channel: Any = world.site.buildProtocol(None)
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)

    def send(
        self, line: str, token: str | None, body: bytes | None = None, *more: str
    ) -> Connection:
        lines = [f"{line} HTTP/1.1", "Host: h", *more]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines.append("Accept: application/json, text/event-stream")
        self.channel.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        return self

    def post(
        self, body: bytes, token: str | None, session: str | None = None, path: str = "/mcp"
    ) -> Connection:
        more = [] if session is None else [f"Mcp-Session-Id: {session}"]
        if b"2026-07-28" in body:
            method = json.loads(body)["method"]
            more += ["MCP-Protocol-Version: 2026-07-28", f"Mcp-Method: {method}"]
        return self.send(f"POST {path}", token, body, *more)

    def get(self, path: str, token: str, session: str | None = None, *more: str) -> Connection:
        lines = [] if session is None else [f"Mcp-Session-Id: {session}"]
        return self.send(f"GET {path}", token, None, *lines, *more)

    def leave(self) -> None:
        """Lose the connection, as when the client closes it."""
        self.channel.connectionLost(CLEANLY)

    @property
    def text(self) -> bytes:
        return self.transport.value()

    @property
    def statuses(self) -> list[int]:
        return [int(each[:3]) for each in self.text.split(b"HTTP/1.1 ")[1:]]

    @property
    def status(self) -> int:
        return self.statuses[-1] if self.text else 0

    def is_complete(self) -> bool:
        """True if a response in chunks has ended."""
        return self.text.endswith(b"0\r\n\r\n")


both = pytest.mark.parametrize("fast_path", [True, False])


# Streams.


def open_sse(world: World, token: str) -> tuple[Connection, str]:
    """Open a session of HTTP+SSE; return its stream and where to post."""
    stream = world.connect().get("/sse", token)
    assert stream.status == 200
    return stream, stream.text.partition(b"data: ")[2].partition(b"\n")[0].decode("ascii")


@both
def test_a_stream_of_sse_ends_with_its_access(fast_path: bool, log_lines: list[str]) -> None:
    world = World(fast_path=fast_path)
    stream, _ = open_sse(world, "short")
    world.until(END - 1)
    assert not stream.is_complete()
    world.until(END + 1)
    assert stream.is_complete()
    assert not world.server.sessions
    assert any(EXPIRED in line for line in log_lines)


@both
def test_a_newer_token_of_the_same_identity_prolongs_a_stream_of_sse(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    stream, target = open_sse(world, "short")
    world.until(SHORT)
    assert world.connect().post(CALL, "long", path=target).status == 202
    world.until(END + 1)
    assert not stream.is_complete()
    # An older token does not shorten it.
    world.authenticator.tokens["older"] = identity(END + 10)
    assert world.connect().post(CALL, "older", path=target).status == 202
    world.until(NOW + 1000 + TOKEN_LEEWAY_SECONDS - 1)
    assert not stream.is_complete()
    world.until(NOW + 1000 + TOKEN_LEEWAY_SECONDS + 1)
    assert stream.is_complete()


@both
def test_a_token_of_another_identity_prolongs_nothing(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    stream, target = open_sse(world, "short")
    assert world.connect().post(CALL, "other", path=target).status == 404
    world.until(END + 1)
    assert stream.is_complete()


def test_a_stream_without_an_end_of_access_has_no_timer() -> None:
    world = World()
    before = len(world.clock.getDelayedCalls())
    stream, _ = open_sse(world, "short")
    timed = len(world.clock.getDelayedCalls())
    stream.leave()
    endless = World()
    open_sse(endless, "endless")
    assert len(endless.clock.getDelayedCalls()) - before == timed - before - 1


@both
def test_a_get_stream_ends_with_its_access_but_not_its_session(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    ident = world.open_session("short")
    stream = world.connect().get("/mcp", "short", ident)
    assert stream.status == 200
    world.until(END - 1)
    assert not stream.is_complete()
    world.until(END + 1)
    assert stream.is_complete()
    # With a new token the client goes on.
    again = world.connect().get("/mcp", "long", ident)
    assert (again.status, again.is_complete()) == (200, False)


@both
def test_a_stream_of_an_identity_that_is_not_asked_about_again_ends(fast_path: bool) -> None:
    """Its token has no expiry, and may have been revoked."""
    world = World(fast_path=fast_path)

    def lately() -> Identity:
        return identity(None, recheck_at=world.clock.seconds() + 60)

    world.authenticator.tokens["opaque"] = lately
    ident = world.open_session("opaque")
    stream = world.connect().get("/mcp", "opaque", ident)
    world.until(NOW + UNCHECKED_SECONDS)
    assert not stream.is_complete()
    # Each request asks about it again, and prolongs the session.
    assert world.connect().post(b'{"jsonrpc":"2.0","method":"n"}', "opaque", ident).status == 202
    world.until(NOW + 2 * UNCHECKED_SECONDS)
    assert not stream.is_complete()
    world.until(NOW + 2 * UNCHECKED_SECONDS + 61)
    assert stream.is_complete()
    again = world.connect().get("/mcp", "opaque", ident)
    assert (again.status, again.is_complete()) == (200, False)


def test_a_subscription_of_such_an_identity_ends() -> None:
    world = World(kind=Talker)
    world.authenticator.tokens["opaque"] = identity(None, recheck_at=NOW + 60)
    stream = world.connect().post(LISTEN, "opaque")
    assert stream.status == 200
    world.until(NOW + 60 + UNCHECKED_SECONDS - 1)
    assert not stream.is_complete()
    world.until(NOW + 60 + UNCHECKED_SECONDS + 1)
    assert stream.is_complete()


@both
def test_a_newer_token_prolongs_a_get_stream(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    ident = world.open_session("short")
    stream = world.connect().get("/mcp", "short", ident)
    world.until(SHORT)
    world.connect().post(CALL, "other", ident)
    world.connect().post(CALL, "long", ident)
    world.until(END + 1)
    assert not stream.is_complete()
    world.until(NOW + 1000 + TOKEN_LEEWAY_SECONDS + 1)
    assert stream.is_complete()


@both
def test_a_stream_that_is_over_leaves_no_timer(fast_path: bool) -> None:
    """Neither one that its client has left, nor one that was resumed and was complete."""
    world = World(fast_path=fast_path)
    ident = world.open_session("short")
    waits = world.connect().post(CALL, "short", ident)
    world.until(NOW + COMMIT_SECONDS + 1)
    event = waits.text.partition(b"\nid: ")[2].partition(b"\n")[0].decode("ascii")
    event = event or waits.text.partition(b"id: ")[2].partition(b"\n")[0].decode("ascii")
    world.answer()
    assert waits.is_complete()
    world.until(NOW + 10)

    def expiries() -> int:
        return sum(each.getTime() == END for each in world.clock.getDelayedCalls())

    assert expiries() == 0
    stream = world.connect().get("/mcp", "short", ident)
    assert expiries() == 1
    stream.leave()
    assert expiries() == 0
    resumed = world.connect().get("/mcp", "short", ident, f"Last-Event-ID: {event}")
    assert (resumed.status, resumed.is_complete()) == (200, True)
    assert expiries() == 0


@both
def test_a_subscription_ends_with_the_access_of_its_request(fast_path: bool) -> None:
    """It belongs to no session, so a newer token does not prolong it."""
    world = World(fast_path=fast_path, kind=Talker)
    stream = world.connect().post(LISTEN, "short")
    assert b"notifications/subscriptions/acknowledged" in stream.text
    world.connect().post(MODERN_CALL, "long")
    world.until(END - 1)
    assert not stream.is_complete()
    world.until(END + 1)
    assert stream.is_complete()
    assert b'"error"' in stream.text
    before = [each for each in world.clock.getDelayedCalls() if each.getTime() == END]
    assert not before


def test_an_expiry_waits_again_for_what_was_prolonged_and_stops() -> None:
    clock, until, expired = Clock(), [10.0], list[float]()
    expiry = AccessExpiry(clock, lambda: until[0], lambda: expired.append(clock.seconds()))
    until[0] = 15.0
    clock.advance(10)
    assert not expired
    clock.advance(5)
    assert expired == [15.0]
    expiry.stop()
    stopped = AccessExpiry(clock, lambda: 20.0, lambda: expired.append(0.0))
    stopped.stop()
    late = AccessExpiry(clock, lambda: -inf, lambda: expired.append(-1.0))
    clock.advance(0)
    assert expired == [15.0, -1.0]
    late.stop()
    AccessExpiry(clock, lambda: inf, lambda: expired.append(-2.0))
    assert not clock.getDelayedCalls()


# Requests.


@both
@pytest.mark.parametrize("modern", [False, True])
def test_an_accepted_request_finishes(fast_path: bool, modern: bool) -> None:
    """Whether its answer is one message, or comes so late that it is a stream."""
    world = World(fast_path=fast_path, kind=Talker if modern else Legacy)
    session = None if modern else world.open_session("short")
    world.until(END - 1)
    connection = world.connect()
    # So that the next one is a fast one.
    connection.post(MODERN_CALL if modern else CALL, "short", session)
    world.answer()
    assert connection.statuses == [200]
    connection.post(MODERN_CALL if modern else CALL, "short", session)
    world.until(END + COMMIT_SECONDS + 1)
    assert connection.statuses == [200, 200]
    world.answer()
    assert connection.is_complete()
    assert connection.text.count(b'"was":') == 2


def test_a_fast_request_is_admitted_anew_after_its_access_has_ended() -> None:
    world = World()
    session = world.open_session("short")
    connection = world.connect()
    asked = world.authenticator.asked
    for _ in range(3):
        connection.post(CALL, "short", session)
        world.answer()
    assert connection.statuses == [200] * 3
    assert world.authenticator.asked == asked
    # No pause is so long that the connection would be closed.
    for time in (NOW + 50, NOW + 100, END - 1):
        world.until(time)
        connection.post(CALL, "short", session)
        world.answer()
    assert (connection.statuses, world.authenticator.asked) == ([200] * 6, asked)
    # The connection is the same, and so is the head.
    world.clock.pump([2.0])
    world.authenticator.tokens["short"] = InvalidToken("it has expired")
    connection.post(CALL, "short", session)
    assert (connection.status, world.authenticator.asked) == (401, asked + 1)
    assert b'error="invalid_token"' in connection.text
    assert len(world.received()) == 6


def test_an_identity_is_asked_about_again_when_its_issuer_wants_that() -> None:
    world = World()
    world.authenticator.tokens["short"] = lambda: identity(None, recheck_at=NOW + 5)
    session = world.open_session("short")
    connection = world.connect()
    connection.post(CALL, "short", session)
    world.answer()
    asked = world.authenticator.asked
    world.until(NOW + 4)
    connection.post(CALL, "short", session)
    world.answer()
    assert world.authenticator.asked == asked
    world.until(NOW + 5)
    world.authenticator.tokens["short"] = InvalidToken("revoked")
    connection.post(CALL, "short", session)
    assert connection.statuses == [200, 200, 401]


def test_what_is_forgotten_is_asked_about_again_on_the_same_connection() -> None:
    world = World()
    session = world.open_session("endless")
    connection = world.connect()
    for _ in range(2):
        connection.post(CALL, "endless", session)
        world.answer()
    world.control.forget()
    world.authenticator.tokens["endless"] = InvalidToken("revoked")
    connection.post(CALL, "endless", session)
    assert connection.statuses == [200, 200, 401]


@both
def test_an_identity_that_has_expired_is_not_admitted(fast_path: bool) -> None:
    for remembers in (True, False):
        world = World(fast_path=fast_path, remembers=remembers)
        for expires in (NOW - TOKEN_LEEWAY_SECONDS, 0.0, -inf, float("nan")):
            for found in (identity(expires), lambda expires=expires: succeed(identity(expires))):
                world.authenticator.tokens["old"] = found
                assert world.connect().post(INITIALIZE, "old").status == 401
        assert not world.launcher.backends


# Authenticators that need time.

WAYS = [
    ("POST", "/mcp", INITIALIZE),
    ("GET", "/sse", None),
    ("POST", "/message?sessionId=x", CALL),
    ("HEAD", "/mcp", None),
]
ways = pytest.mark.parametrize("way", WAYS, ids=[f"{each[0]} {each[1]}" for each in WAYS])
Way = tuple[str, str, bytes | None]
#: What an identity gets on each of the ways.
STATUSES = {
    ("POST", "/mcp"): 200,
    ("GET", "/sse"): 200,
    ("POST", "/message"): 404,
    ("HEAD", "/mcp"): 405,
}


def waiting(world: World) -> Deferred[Any]:
    """Let the authenticator return a Deferred for the token `slow`; return that."""
    found: Deferred[Any] = Deferred()
    world.authenticator.tokens["slow"] = lambda: found
    return found


@both
@ways
def test_a_request_waits_for_its_authenticator(fast_path: bool, way: Way) -> None:
    world = World(fast_path=fast_path, remembers=False)
    method, path, body = way
    found = waiting(world)
    connection = world.connect().send(f"{method} {path}", "slow", body)
    assert connection.text == b""
    world.until(NOW + 20)
    assert (connection.text, world.launcher.backends) == (b"", [])
    found.callback(identity(SHORT))
    assert connection.status == STATUSES[method, path.partition("?")[0]]


@both
@ways
@pytest.mark.parametrize(
    ("outcome", "status", "is_defect"),
    [
        (None, 401, False),
        (InvalidToken("no"), 401, False),
        (Forbidden("not here"), 403, False),
        (AuthenticationUnavailable("later"), 503, False),
        (ValueError("odd: secret-token"), 500, True),
        (CancelledError(), 500, True),
        (True, 500, True),
        ("alice", 500, True),
        ({"issuer": "i", "subject": "alice"}, 500, True),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_nobody_is_let_in_by_a_failure(
    fast_path: bool,
    way: Way,
    outcome: Any,
    status: int,
    is_defect: bool,
    late: bool,
    logged_failures: list[Any],
) -> None:
    world = World(fast_path=fast_path, remembers=False)
    method, path, body = way
    connection = world.connect()
    if late:
        found = waiting(world)
        connection.send(f"{method} {path}", "slow", body)
        if isinstance(outcome, Exception):
            found.errback(outcome)
        else:
            found.callback(outcome)
    else:
        world.authenticator.tokens["slow"] = outcome
        connection.send(f"{method} {path}", "slow", body)
    assert connection.statuses == [status]
    assert not world.launcher.backends
    assert b"secret-token" not in connection.text
    assert bool(logged_failures) == is_defect
    # The connection goes on.
    connection.send(f"{method} {path}", "long", body)
    assert connection.statuses == [status, STATUSES[method, path.partition("?")[0]]]


@both
@ways
def test_a_client_that_leaves_cancels_its_authentication(fast_path: bool, way: Way) -> None:
    world = World(fast_path=fast_path, remembers=False)
    method, path, body = way
    cancelled: list[Any] = []
    world.authenticator.tokens["slow"] = lambda: Deferred(cancelled.append)
    connection = world.connect().send(f"{method} {path}", "slow", body)
    connection.leave()
    assert len(cancelled) == 1
    assert not world.launcher.backends
    assert connection.text == b""


@both
@ways
def test_an_identity_that_is_found_when_the_client_has_left(fast_path: bool, way: Way) -> None:
    """The authenticator does not let itself be cancelled."""
    world = World(fast_path=fast_path, remembers=False)
    method, path, body = way
    world.authenticator.tokens["slow"] = lambda: Deferred(
        lambda each: each.callback(identity(SHORT))
    )
    connection = world.connect().send(f"{method} {path}", "slow", body)
    connection.leave()
    assert connection.text == b""
    assert not world.launcher.backends


@both
@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (None, 401),
        (InvalidToken("no"), 401),
        (Forbidden("no"), 403),
        (AuthenticationUnavailable("later"), 503),
    ],
)
@pytest.mark.parametrize(
    "coding", [f"Content-Length: {10 * LARGE_BYTES}", "Transfer-Encoding: chunked"]
)
def test_a_large_body_is_not_received_from_one_who_is_refused(
    fast_path: bool, outcome: Any, status: int, coding: str
) -> None:
    world = World(fast_path=fast_path, remembers=False)
    world.authenticator.tokens["slow"] = outcome
    connection = world.connect()
    connection.send("POST /mcp", "slow", None, coding)
    if "chunked" in coding:
        piece = b" " * LARGE_BYTES
        for _ in range(2):
            connection.channel.dataReceived(b"%x\r\n%b\r\n" % (len(piece), piece))
            # So much is parsed in several turns.
            world.clock.pump([0.01] * 50)
    assert connection.statuses == [status]
    assert world.site.budget.used == 0


@both
@pytest.mark.parametrize(
    ("error", "status"),
    [(InvalidToken("no"), 401), (Forbidden("no"), 403), (AuthenticationUnavailable("later"), 503)],
)
def test_a_large_body_is_received_only_until_its_sender_is_refused(
    fast_path: bool, error: Exception, status: int
) -> None:
    world = World(fast_path=fast_path, remembers=False)
    found = waiting(world)
    connection = world.connect()
    connection.send("POST /mcp", "slow", None, f"Content-Length: {10 * LARGE_BYTES}")
    connection.channel.dataReceived(b" " * LARGE_BYTES)
    assert connection.text == b""
    assert world.site.budget.used > 0
    # Asked once more by the resource, which answers.
    world.authenticator.tokens["slow"] = error
    found.errback(error)
    assert connection.statuses == [status]
    assert world.site.budget.used == 0
    # Nothing that follows is received, or answered.
    connection.channel.dataReceived(b" " * LARGE_BYTES)
    assert (connection.statuses, world.site.budget.used) == ([status], 0)
    assert world.authenticator.asked == 2
    connection.leave()


@both
def test_a_large_body_is_received_from_one_who_is_admitted_later(fast_path: bool) -> None:
    world = World(fast_path=fast_path, remembers=False)
    found = waiting(world)
    body = b" " * (2 * LARGE_BYTES) + INITIALIZE
    connection = world.connect()
    length = f"Content-Length: {len(body)}"
    connection.send("POST /mcp", "slow", None, length, "Content-Type: application/json")
    connection.channel.dataReceived(body[:LARGE_BYTES])
    found.callback(identity(SHORT))
    world.authenticator.tokens["slow"] = identity(SHORT)
    connection.channel.dataReceived(body[LARGE_BYTES:])
    world.clock.pump([0.01] * 50)
    assert connection.statuses == [200]


@both
def test_a_large_body_that_comes_sooner_than_the_answer_is_answered_once(fast_path: bool) -> None:
    world = World(fast_path=fast_path, remembers=False)
    asked: list[Deferred[Any]] = []
    cancelled: list[Deferred[Any]] = []

    def ask() -> Deferred[Any]:
        asked.append(Deferred(cancelled.append))
        return asked[-1]

    world.authenticator.tokens["slow"] = ask
    body = b" " * (2 * LARGE_BYTES) + INITIALIZE
    connection = world.connect()
    connection.send("POST /mcp", "slow", None, f"Content-Length: {len(body)}")
    connection.channel.dataReceived(body)
    world.clock.pump([0.01] * 50)
    assert len(asked) == 2
    asked[1].errback(InvalidToken("no"))
    assert (connection.statuses, cancelled) == ([401], [])
    # The next one is found out about anew, and nobody waits for what was asked before.
    connection.send("POST /mcp", "slow", None, f"Content-Length: {len(body)}")
    assert cancelled == asked[:1]
    for _ in range(2):
        asked[-1].errback(InvalidToken("no"))
    assert connection.statuses == [401, 401]


@both
def test_nobody_is_asked_about_a_large_body_whose_client_has_left(fast_path: bool) -> None:
    world = World(fast_path=fast_path, remembers=False)
    cancelled: list[Any] = []
    world.authenticator.tokens["slow"] = lambda: Deferred(cancelled.append)
    connection = world.connect()
    connection.send("POST /mcp", "slow", None, f"Content-Length: {10 * LARGE_BYTES}")
    connection.channel.dataReceived(b" " * LARGE_BYTES)
    connection.leave()
    assert len(cancelled) == 1
    assert (connection.text, world.site.budget.used) == (b"", 0)


@both
def test_whose_share_it_takes_to_find_out_who_sends_a_large_body(fast_path: bool) -> None:
    world = World(fast_path=fast_path, remembers=False)
    shares: list[str | None] = []

    class Recorder:
        def authenticate(self, request: Any) -> None:
            shares.append(request.share)

    world.control._authenticators = [Recorder()]
    connection = world.connect()
    connection.channel.peer = Peer("203.0.113.9")
    connection.channel._share_of_peer = "203.0.113.9"
    connection.send("POST /mcp", "slow", None, f"Content-Length: {10 * LARGE_BYTES}")
    assert (shares[0], connection.statuses) == ("203.0.113.9", [401])


@both
@pytest.mark.parametrize(
    ("path", "status"), [("/m%63p", 401), ("/mcp/", 401), ("/nothing", 401), ("/", 404)]
)
def test_a_large_body_to_any_path_is_not_received(fast_path: bool, path: str, status: int) -> None:
    world = World(fast_path=fast_path, remembers=False)
    world.authenticator.tokens["slow"] = None
    connection = world.connect()
    connection.send(f"POST {path}", "slow", None, f"Content-Length: {10 * LARGE_BYTES}")
    assert connection.statuses == [status]
    assert world.site.budget.used == 0


@both
@pytest.mark.parametrize("outcome", [ValueError("odd"), True])
@pytest.mark.parametrize("late", [False, True])
def test_a_defect_is_an_answer_to_a_large_body_too(
    fast_path: bool, outcome: Any, late: bool, logged_failures: list[Any]
) -> None:
    world = World(fast_path=fast_path, remembers=False)

    def odd() -> Any:
        return fail(outcome) if isinstance(outcome, Exception) else succeed(outcome)

    world.authenticator.tokens["slow"] = odd if late else outcome
    body = b" " * (2 * LARGE_BYTES) + CALL
    connection = world.connect()
    connection.send("POST /mcp", "slow", None, f"Content-Length: {len(body)}")
    assert connection.text == b""
    connection.channel.dataReceived(body[:LARGE_BYTES])
    connection.channel.dataReceived(body[LARGE_BYTES:])
    assert connection.statuses == [500]
    assert len(logged_failures) == 1


@both
def test_requests_behind_one_that_waits(fast_path: bool) -> None:
    """They are served in order, each with its own token."""
    world = World(fast_path=fast_path, remembers=False)
    session = world.open_session("long")
    found = waiting(world)
    connection = world.connect()
    ping = b'{"jsonrpc":"2.0","method":"n"}'
    connection.post(ping, "slow", session)
    for token in ("long", "other", "nonsense", "long"):
        connection.post(ping, token, session)
    assert connection.text == b""
    found.callback(identity(SHORT))
    assert connection.statuses == [202, 202, 404, 401, 202]


@both
def test_a_second_authenticator_is_asked_when_the_first_knows_nothing(fast_path: bool) -> None:
    world = World(fast_path=fast_path, remembers=False)
    second = Authenticator()
    world.control._authenticators = [world.authenticator, second, second]
    for nothing in (None, lambda: succeed(None)):
        world.authenticator.tokens["both"] = nothing
        for found in (identity(SHORT), lambda: succeed(identity(SHORT))):
            second.tokens["both"] = found
            assert world.connect().post(INITIALIZE, "both").status == 200
        second.tokens["both"] = lambda: fail(InvalidToken("no"))
        assert world.connect().post(INITIALIZE, "both").status == 401
        second.tokens["both"] = lambda: succeed(None)
        assert world.connect().post(INITIALIZE, "both").status == 401


@both
@pytest.mark.parametrize("path", ["/message", "/mcp", "/sse", "/mcp/server-card", "/", "//x"])
@pytest.mark.parametrize("token", [None, "endless"])
def test_no_query_of_a_head_request_is_in_the_log(
    fast_path: bool, path: str, token: str | None, log_lines: list[str]
) -> None:
    """Twisted logs the target of each `HEAD` whose resource returns a body."""
    connection = World(fast_path=fast_path).connect()
    query = "sessionId=12345678-1234-1234-1234-123456789abc&key=s3cret"
    connection.send(f"HEAD {path}?{query}", token)
    [status] = connection.statuses
    assert status >= 400
    assert connection.text.endswith(b"\r\n\r\n")
    assert not [line for line in log_lines if "s3cret" in line or "123456789abc" in line]


@both
def test_the_log_names_whom_a_process_of_a_modern_client_works_for(
    fast_path: bool, log_lines: list[str]
) -> None:
    world = World(fast_path=fast_path, kind=Modern)
    world.connect().post(MODERN_CALL, "endless")
    assert [line for line in log_lines if "opened for i#alice" in line]
    lines = list(session_lines(world.server, world.clock.seconds()))
    assert any(" of 'default' for i#alice: " in line for line in lines)
