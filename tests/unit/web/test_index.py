"""The index: who sees which servers, and what a response is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from mcpbridge._version import __version__
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.failed_attempts import FailedAttempts
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.scopes import ScopeRules
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import ATTEMPT_DELAY_SECONDS, ATTEMPTS_FREE
from mcpbridge.errors import AuthenticationUnavailable, InvalidToken
from mcpbridge.mcp.server_card import KnownServer
from mcpbridge.processes.server_state import Condition, ServerState
from mcpbridge.web.index import NO_SERVER, SERVERS_PER_TURN, UNCHECKED, Index
from mcpbridge.web.index_page import UNFOLDED_SERVERS
from mcpbridge.web.refusals import Delays
from mcpbridge.web.root import Branch, SecuredResource, Serving
from mcpbridge.web.site import BridgeSite
from mcpbridge.web.transport_security import TransportSecurity

ALICE = Identity(issuer="i", subject="alice")
AUTH = {"tokens": {"alice": {"sha256": "0" * 64}}}
HTML = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


class Authenticator:
    """Answers by token: an identity, or what a function returns or raises."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked = 0

    def authenticate(self, request: Any) -> Any:
        self.asked += 1
        [value] = request.values("authorization") or [""]
        answer = self.answers.get(value.removeprefix("Bearer "))
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


class Era:
    def __init__(self) -> None:
        self.known = KnownServer()


class StubServer:
    """What the index asks of a `Server`."""

    def __init__(self, name: str, clock: Any, authenticator: Any = None, **settings: Any) -> None:
        scopes = settings.pop("scopes", {})
        self.settings = ServerSettings(
            command="x",
            name=name,
            base_uri=settings.pop("base_uri", f"/{name}"),
            auth=None if authenticator is not None else False,
            **settings,
        )
        self.era = Era()
        self.removed = False
        self.condition = ServerState(Condition.NOT_STARTED)
        self.access_control: Any = None
        if authenticator is not None:
            self.access_control = AccessControl(
                name, [authenticator], rules=ScopeRules(scopes), clock=clock
            )

    @property
    def is_open(self) -> bool:
        return self.access_control is None

    def state(self) -> ServerState:
        return self.condition


class World:
    """A site with an index and nothing else."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.servers: list[Any] = []
        self.settings = BridgeSettings(
            servers=(ServerSettings(command="x"),),
            allowed_hosts=("h",),
            auth=AUTH,
            insecure=True,
            **settings,
        )
        self.attempts = FailedAttempts(self.clock)
        self.refused: list[Exception] = []
        delays = Delays(self.attempts, self.clock, lambda request: "192.0.2.1")
        self.root = Branch()
        index: Any = Index(
            lambda: self.servers,
            lambda: self.settings,
            self.clock,
            origin=lambda request: "http://h",
            delays=delays,
            refusals=self,  # type: ignore[arg-type]
        )
        self.root.index = index
        security = TransportSecurity(self.settings)
        self.site = BridgeSite(
            SecuredResource(partial(Serving, security, self.root)),
            self.clock,
            self.settings,
            seconds=lambda: 0.0,
        )

    def note(self, request: Any, error: Exception) -> None:
        self.refused.append(error)

    def add(self, name: str, authenticator: Any = None, **settings: Any) -> StubServer:
        self.servers.append(StubServer(name, self.clock, authenticator, **settings))
        added: StubServer = self.servers[-1]
        return added

    def send(self, *lines: str, token: str = "", method: str = "GET", path: str = "/") -> Sent:
        sent = [f"{method} {path} HTTP/1.1", "Host: h", *lines]
        if token:
            sent.append(f"Authorization: Bearer {token}")
        return Sent(self.site, sent)

    def names(self, token: str = "") -> list[str]:
        return [each["name"] for each in self.send(token=token).json["servers"]]


class Sent:
    """A request, and what has come of it."""

    def __init__(self, site: Any, lines: list[str]) -> None:
        self.channel = site.buildProtocol(None)
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1))
        self.channel.makeConnection(self.transport)
        self.channel.dataReceived("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def leave(self) -> None:
        """Close the connection, as the client does."""
        self.channel.connectionLost(Failure(ConnectionDone()))

    @property
    def answered(self) -> bool:
        return bool(self.transport.value())

    @property
    def status(self) -> int:
        return int(self.transport.value().split()[1])

    @property
    def headers(self) -> dict[str, str]:
        head = self.transport.value().partition(b"\r\n\r\n")[0].decode("latin-1")
        return dict(line.split(": ", 1) for line in head.split("\r\n")[1:])

    @property
    def body(self) -> bytes:
        return self.transport.value().partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
def world() -> World:
    return World()


# Who sees what.


def test_each_caller_sees_the_servers_that_admit_it(world: World) -> None:
    authenticator = Authenticator(alice=ALICE, late=lambda: succeed(ALICE))
    world.add("open")
    world.add("private", authenticator)
    world.add("strict", authenticator, scopes={"*": "use"})
    world.add("other", Authenticator())
    assert world.names() == ["open"]
    for token in ("alice", "late"):
        document = world.send(token=token).json
        assert [each["name"] for each in document["servers"]] == ["open", "private"]
        assert document["bridge"]["version"] == __version__
        assert "note" not in document
    assert world.refused == []


def test_a_caller_is_told_what_to_do(world: World) -> None:
    authenticator = Authenticator(
        alice=ALICE, away=AuthenticationUnavailable("away"), wrong=InvalidToken("it is `old`")
    )
    world.add("strict", authenticator, scopes={"*": "use"})

    def note(token: str = "") -> str:
        document = world.send(token=token).json
        assert document["bridge"] == {"name": "mcpbridge"}
        assert document["servers"] == []
        text: str = document["note"]
        assert "strict" not in text
        return text

    assert "Authorization: Bearer TOKEN" in note()
    assert note("alice") == NO_SERVER
    assert note("away") == UNCHECKED
    assert "not accepted: it is `old`" in note("wrong")
    assert "not accepted: it is <code>old</code>" in world.send(HTML, token="wrong").body.decode()


def test_a_bridge_that_is_open_says_nothing_of_credentials(world: World) -> None:
    world.add("open")
    document = world.send().json
    assert "note" not in document
    assert "version" not in document["bridge"]
    assert b"<form" not in world.send(HTML).body


def test_the_list_is_that_of_the_time_of_the_request(world: World) -> None:
    world.add("first")
    assert world.names() == ["first"]
    world.servers[:] = [StubServer("second", world.clock)]
    assert world.names() == ["second"]


def test_wrong_credentials_are_one_failed_attempt(world: World) -> None:
    """However many servers there are; right ones and none are no attempt."""
    authenticator = Authenticator(alice=ALICE)
    for number in range(5):
        world.add(f"s{number}", authenticator)
    for number in range(ATTEMPTS_FREE):
        assert world.send(token="guess").status == 200
        assert len(world.refused) == number + 1
    for token in ("", "alice"):
        assert world.send(token=token).answered
    delayed = world.send(token="guess")
    assert not delayed.answered
    world.clock.advance(ATTEMPT_DELAY_SECONDS)
    assert (delayed.status, delayed.json["servers"]) == (200, [])
    assert len(world.refused) == ATTEMPTS_FREE + 1
    # Its client does not wait for it.
    world.send(token="guess").leave()
    assert world.send(token="alice").answered


def test_more_delayed_answers_than_may_be_come_at_once(world: World) -> None:
    world.add("s", Authenticator())
    sent = [world.send(token="guess") for _ in range(40)]
    assert sent[-1].json["servers"] == []


def test_a_token_for_one_server_is_no_failed_attempt_at_others(world: World) -> None:
    world.add("mine", Authenticator(alice=ALICE))
    world.add("other", Authenticator())
    for _ in range(3 * ATTEMPTS_FREE):
        assert world.names("alice") == ["mine"]
    assert len(world.attempts) == 0


@pytest.mark.parametrize("late", [True, False])
def test_a_defect_of_an_authenticator_hides_its_server(
    world: World, late: bool, logged_failures: list[Any]
) -> None:
    def odd() -> Any:
        if late:
            return fail(ZeroDivisionError())
        raise ZeroDivisionError

    world.add("odd", Authenticator(alice=odd))
    world.add("mine", Authenticator(alice=ALICE))
    assert world.names("alice") == ["mine"]
    assert len(logged_failures) == 1


def test_a_client_that_leaves_cancels_all_questions(world: World) -> None:
    cancelled: list[str] = []

    def ask(name: str) -> Callable[[], Deferred[Any]]:
        return lambda: Deferred(lambda _: cancelled.append(name))

    world.add("a", Authenticator(alice=ask("a")))
    world.add("b", Authenticator(alice=ask("b")))
    sent = world.send(token="alice")
    assert not sent.answered
    sent.leave()
    assert sorted(cancelled) == ["a", "b"]
    assert not sent.answered


def test_others_have_their_turn_while_many_servers_are_asked(world: World) -> None:
    """After each `SERVERS_PER_TURN` of them, and a client may leave meanwhile."""
    cancelled: list[str] = []
    slow = Authenticator(alice=lambda: Deferred(lambda _: cancelled.append("slow")))
    authenticator = Authenticator(alice=ALICE)
    world.add("slow", slow)
    for number in range(2 * SERVERS_PER_TURN):
        world.add(f"s{number}", authenticator)
    gone = world.send(token="alice")
    assert authenticator.asked == SERVERS_PER_TURN - 1
    gone.leave()
    world.clock.advance(0)
    assert (cancelled, authenticator.asked) == (["slow"], SERVERS_PER_TURN - 1)
    del world.servers[0]
    sent = world.send(token="alice")
    assert not sent.answered
    world.clock.pump([0] * 2)
    assert len(sent.json["servers"]) == 2 * SERVERS_PER_TURN


# What is said of a server.


def test_a_server_as_json(world: World) -> None:
    server = world.add("time")
    server.era.known.info = b'{"name":"t","version":"1","title":"Time","description":"It ticks"}'
    server.condition = ServerState(Condition.FAILING, 1_800_000_000.0, "it crashed", 3)
    [found] = world.send().json["servers"]
    clients = found.pop("clients")
    assert found == {
        "name": "time",
        "title": "Time",
        "description": "It ticks",
        "urls": {"streamable-http": "http://h/time/mcp", "sse": "http://h/time/sse"},
        "credentials": "none",
        "state": {
            "condition": "failing",
            "since": "2027-01-15T08:00:00Z",
            "reason": "it crashed",
            "retryInSeconds": 3,
        },
    }
    assert clients["cursor"] == {"mcpServers": {"time": {"url": "http://h/time/mcp"}}}
    page = world.send(HTML).body.decode()
    assert "It crashed; next try in 3 s" in page
    assert '<time datetime="2027-01-15T08:00:00Z">' in page
    assert "Time: It ticks" in page


def test_a_server_with_variables_of_its_callers(world: World) -> None:
    rules = {"TOKEN": {"header": "X-Token"}, "NAME": {"claim": "sub"}}
    server = world.add("mine", Authenticator(alice=ALICE), env_from=rules)
    server.era.known.info = b'{"name":"t","version":"1","title":"That of another caller"}'
    [found] = world.send(token="alice").json["servers"]
    assert (found["headers"], found["credentials"]) == (["X-Token"], "token")
    assert "title" not in found
    page = world.send(HTML, token="alice").body.decode()
    assert (
        "Needs a token; your operator gives you one. Needs values of your own in: X-Token." in page
    )


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"oauth": {"issuer": "https://i.example"}}, "oauth"),
        ({"tokens": {}, "proxy": {"header": "X-User", "addresses": ["127.0.0.1"]}}, "other"),
    ],
)
def test_credentials_of_other_kinds(auth: dict[str, Any], expected: str) -> None:
    world = World(public_url="https://mcp.example.org")
    server = world.add("s", Authenticator(alice=ALICE))
    object.__setattr__(server.settings, "auth", auth)
    [found] = world.send(token="alice").json["servers"]
    assert found["credentials"] == expected
    assert b"log in" in world.send(HTML, token="alice").body or expected == "other"


@pytest.mark.parametrize(
    ("settings", "server", "url"),
    [
        ({}, {"base_uri": ""}, "http://h/mcp"),
        ({}, {"public_path": "/out"}, "http://h/out/mcp"),
        ({"public_url": "https://mcp.example.org"}, {}, "https://mcp.example.org/s/mcp"),
    ],
)
def test_urls_are_those_that_clients_use(
    settings: dict[str, Any], server: dict[str, Any], url: str
) -> None:
    world = World(**settings)
    world.add("s", **server)
    [found] = world.send().json["servers"]
    assert found["urls"]["streamable-http"] == url


def test_the_page_escapes_what_operators_and_servers_write(world: World) -> None:
    evil = "<script>alert(1)</script>'\"&"
    server = world.add(evil, base_uri="/e")
    info = {"name": "t", "version": "1", "title": evil, "description": f"{evil}!"}
    server.era.known.info = json.dumps(info).encode()
    server.condition = ServerState(Condition.FAILING, None, evil)
    page = world.send(HTML).body.decode()
    assert "<script>alert" not in page
    assert page.count(escape(evil)) >= 4
    assert page.count("<script>") == 1


def test_many_servers_are_folded(world: World) -> None:
    for number in range(UNFOLDED_SERVERS):
        world.add(f"s{number}")
    page = world.send(HTML).body
    assert (page.count(b"<details open>"), page.count(b"All servers")) == (UNFOLDED_SERVERS, 1)
    world.add("more")
    assert b"<details open>" not in world.send(HTML).body
    world.servers[1:] = []
    page = world.send(HTML).body
    assert b"All servers" not in page
    assert b"1 server at" in page
    world.servers.clear()
    assert b"0 servers at" in world.send(HTML).body


# The response.


@pytest.mark.parametrize(
    ("accept", "content"),
    [
        ([], "application/json"),
        (["Accept: */*"], "application/json"),
        (["Accept: application/json, text/event-stream"], "application/json"),
        ([HTML], "text/html; charset=utf-8"),
        (["Accept: text/*"], "text/html; charset=utf-8"),
        (["Accept: text/html;q=0.1, application/json;q=0.2"], "application/json"),
    ],
)
def test_json_or_a_page(world: World, accept: list[str], content: str) -> None:
    world.add("s")
    sent = world.send(*accept)
    assert (sent.status, sent.headers["Content-Type"]) == (200, content)
    assert sent.headers["Cache-Control"] == "no-store"
    assert sent.headers["Vary"] == "Accept, Authorization"
    assert int(sent.headers["Content-Length"]) == len(sent.body)
    policy = sent.headers.get("Content-Security-Policy", "")
    assert ("default-src 'none'" in policy) == ("html" in content)
    head = world.send(*accept, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == sent.headers["Content-Length"]


@pytest.mark.parametrize("protected", [True, False])
def test_a_client_that_takes_the_index_for_a_server_is_told_where_it_is(
    world: World, protected: bool
) -> None:
    """But a stranger is not told of servers that are not open."""
    world.add("s", Authenticator() if protected else None)
    hint = "" if protected else "; MCP is at /s/mcp and /s/sse"
    sent = world.send(method="POST")
    assert (sent.status, sent.headers["Allow"]) == (405, "GET, HEAD")
    assert sent.json["error"]["message"] == f"the index takes GET{hint}"
    sent = world.send("Accept: text/event-stream")
    assert sent.status == 406
    assert sent.json["error"]["message"] == f"the index is application/json or text/html{hint}"


def test_transport_security_comes_first(world: World) -> None:
    world.add("s")
    assert world.send("Origin: https://evil.example").status == 403
    site = "Sec-Fetch-Site: cross-site"
    assert world.send(site, "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script").status == 403
    own = world.send("Origin: http://h")
    assert own.headers["Access-Control-Allow-Origin"] == "http://h"
    assert own.headers["Vary"] == "Origin, Accept, Authorization"
    assert world.send("Origin: http://h", path="//").status == 404


def test_a_defect_is_an_answer(world: World, logged_failures: list[Any]) -> None:
    server = world.add("s")
    server.state = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    assert world.send().status == 500
    assert len(logged_failures) == 1
