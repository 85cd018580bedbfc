"""Other settings while the bridge runs: bytes of connections on one side, fake backends behind."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from mcpbridge.auth.access import Access
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.named_tokens import make_token
from mcpbridge.bridge import Bridge
from mcpbridge.config import tuning
from mcpbridge.config.changes import AT_START, NAMED_SERVERS, changes, without_restart
from mcpbridge.config.name_lists import read_name_lists
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS, REMOVED_SECONDS
from mcpbridge.errors import CannotListen, Exposed, NotSupported, SettingError, SettingErrors
from mcpbridge.interfaces import ISessionLimiter
from mcpbridge.processes.permits import SessionLimiter
from mcpbridge.processes.pool import RETIRED
from mcpbridge.processes.server_state import Condition
from mcpbridge.server import NOT_ADMITTED, REMOVED
from mcpbridge.tap import Options, makeService
from mcpbridge.testing import FakeBackend
from tests.unit.web.test_refusals import (
    CALL,
    FAST,
    INITIALIZE,
    MODERN_CALL,
    ORDINARY,
    Connection,
    World,
    message,
    modern,
)
from tests.unit.web.test_stateless_http import Launcher, Legacy, Modern, answer

ALICE, BOB = make_token(), make_token()
each_way = pytest.mark.parametrize("way", [FAST, ORDINARY])


#: A message that asks for no answer.
NOTE = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


def stops(backend: Any) -> int:
    """Return how often a backend was told to stop."""
    count: int = backend.events.count("stop")
    return count


def server(name: str, command: str = "x", **settings: Any) -> ServerSettings:
    return ServerSettings(
        command=command, **{"name": name, "base_uri": f"/{name}", "stop_grace": 0, **settings}
    )


def settings_of(*servers: ServerSettings, **bridge: Any) -> BridgeSettings:
    return BridgeSettings(
        servers=servers, **{"listen": (), "allowed_hosts": ("h",), "audit_log": None, **bridge}
    )


class Place(World):
    """A bridge of several servers, whose backends are those of one launcher."""

    def __init__(self, tmp_path: Path, settings: BridgeSettings, **extensions: Any) -> None:
        super().__init__(tmp_path)
        self.launcher = Launcher()
        self.launcher.kind = Legacy
        self.settings = settings
        self.bridge = Bridge(settings, self.reactor, launcher=self.launcher, **extensions)
        self.bridge.startService()
        self.site = self.bridge.site()

    def reload(self, *servers: ServerSettings, **bridge: Any) -> str:
        return self.bridge.reload(settings_of(*servers, **bridge))

    @property
    def names(self) -> list[str]:
        return [each.settings.name for each in self.bridge.servers]

    def open(self, name: str, token: str | None = None) -> str:
        """Open a session at /mcp; return its id."""
        client = self.connect()
        client.send("POST", f"/{name}/mcp", INITIALIZE, token)
        assert client.status() == 200, client.read
        ident = client.header("Mcp-Session-Id")
        assert ident is not None
        client.close()
        return ident

    def status(self, name: str, body: bytes = INITIALIZE, way: str = FAST, **given: Any) -> int:
        client = self.connect(way=way)
        client.send("POST", f"/{name}/mcp", body, **given)
        found = client.status()
        self.read = client.read
        if found:
            client.close()
        return found

    def stream(self, name: str, token: str | None = None) -> tuple[Connection, str]:
        """Open a session at /sse; return its stream, and where to post."""
        stream = self.connect()
        stream.send("GET", f"/{name}/sse", b"", token)
        found = re.search(rb"data: (/\S+/message\S+)", stream.written())
        assert found is not None
        return stream, found[1].decode()

    def respond(self, number: int = -1, **result: Any) -> None:
        """Answer the last request that a backend was sent."""
        backend = self.launcher.backends[number]
        ident = json.loads(backend.sent[-1])["id"]
        backend.receiver.messages_received([answer(ident, result)])
        self.turn()


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    def make(*servers: ServerSettings, **given: Any) -> Place:
        extensions = {key: given.pop(key) for key in ("limiter", "authenticator") if key in given}
        place = Place(tmp_path, settings_of(*servers, **given), **extensions)
        request.addfinalizer(place.stop)
        return place

    return make


# What there is.


@each_way
def test_server_that_is_added_is_served(make: Any, way: str) -> None:
    place = make(server("a"))
    assert place.status("b", way=way) == 404
    assert place.reload(server("a"), server("b")) == "added b"
    assert place.status("b", way=way) == 200
    assert place.status("a", way=way) == 200
    assert place.names == ["a", "b"]


@each_way
def test_server_that_is_removed_lets_its_sessions_end(
    make: Any, way: str, log_lines: list[str]
) -> None:
    place = make(server("a"), server("b"))
    ident, (stream, path) = place.open("b"), place.stream("b")
    assert place.reload(server("a")) == "removed b"
    assert place.status("b", way=way) == 404
    assert REMOVED.encode() in place.read
    late = place.connect()
    late.send("GET", "/b/sse")
    assert late.status() == 404
    assert place.status("b", MODERN_CALL, way=way, version="2026-07-28") == 404
    # Its sessions go on until they end.
    assert place.status("b", CALL, way=way, session=ident) == 0
    client = place.connect(way=way)
    client.send("POST", path, CALL)
    assert client.status() == 202
    place.respond()
    assert b"result" in stream.written()
    stream.close()
    assert place.names == ["a", "b"]
    client = place.connect()
    client.send("DELETE", "/b/mcp", session=ident)
    assert client.status() == 200
    place.reactor.pump([0.1] * 20)
    assert place.names == ["a"]
    assert "server 'b': nothing is left of it" in log_lines
    assert place.status("b", way=way) == 404
    assert REMOVED.encode() not in place.read


def test_removed_server_does_not_drain_for_ever(make: Any) -> None:
    """A client that stays for `REMOVED_SECONDS` has had its time."""
    place = make(server("a"), server("b"))
    stream, _ = place.stream("b")
    place.reload(server("a"))
    place.reactor.pump([REMOVED_SECONDS - 1, 0, 0])
    [backend] = place.launcher.backends
    assert stops(backend) == 0
    place.reactor.pump([1, *[0.1] * 20])
    assert stops(backend) == 1
    assert place.names == ["a"]
    assert b"0\r\n\r\n" in stream.written()


def test_server_without_sessions_is_gone_at_once(make: Any) -> None:
    place = make(server("a"), server("b"))
    place.reload(server("a"))
    assert place.names == ["a"]


def test_server_that_was_removed_may_come_back(make: Any) -> None:
    place = make(server("a"), server("b"))
    ident = place.open("b")
    place.reload(server("a"))
    assert place.reload(server("a"), server("b")) == "added b"
    assert place.status("b", message("ping", 7), session=ident) == 0
    other = place.open("b")
    assert other != ident
    assert len(place.bridge.servers[1].unclosed) == 2
    place.reload(server("a"))
    assert place.names == ["a", "b"]


@each_way
def test_changed_command_is_for_those_who_come(make: Any, way: str) -> None:
    """A session keeps the process that it has."""
    place = make(server("a", "old"))
    ident = place.open("a")
    [old] = place.launcher.backends
    assert place.reload(server("a", "new")) == "changed a (command)"
    assert place.bridge.servers[0].settings.command == "new"
    place.open("a")
    assert len(place.launcher.backends) == 2
    client = place.connect(way=way)
    client.send("POST", "/a/mcp", CALL, session=ident)
    place.respond(0, content=[])
    assert client.status() == 200
    assert stops(old) == 0


def test_call_that_runs_is_answered(make: Any) -> None:
    place = make(server("a"), server("b"))
    idents = [place.open("a"), place.open("b")]
    clients = [place.connect(), place.connect()]
    for client, name, ident in zip(clients, "ab", idents, strict=True):
        client.send("POST", f"/{name}/mcp", CALL, session=ident)
    place.reload(server("a", "other"))
    for number, client in enumerate(clients):
        place.respond(number, content=[{"type": "text", "text": str(number)}])
        assert client.status() == 200
        assert b'"text":"%d"' % number in client.read.replace(b" ", b"")


def test_generation_leaves_nothing(make: Any) -> None:
    place = make(server("a", "0"))
    [served] = place.bridge.servers
    for number in range(1, 6):
        ident = place.open("a")
        place.reload(server("a", str(number)))
        assert len(served._retired) == 1
        client = place.connect()
        client.send("DELETE", "/a/mcp", session=ident)
        place.reactor.pump([0.1] * 20)
        assert served._retired == []
        assert len(served._siblings) == len(place.bridge._pools) == 1
    assert place.bridge._local._launchers == []


def test_session_that_opens_meanwhile_gets_its_process(make: Any) -> None:
    """And the bridge knows it, so that it ends with all others."""
    place = make(server("a", "old"))
    place.launcher.waiting = []
    launched: list[Any] = []
    launch = place.launcher.launch

    def later(receiver: Any, label: str) -> Any:
        waiting: Deferred[Any] = Deferred()
        launched.append((waiting, receiver, label))
        return waiting

    place.launcher.launch = later
    client = place.connect()
    client.send("POST", "/a/mcp", INITIALIZE)
    place.reload(server("a", "new"))
    [(waiting, receiver, label)] = launched
    launch(receiver, label).addCallback(waiting.callback)
    place.turn()
    assert client.status() == 200
    [served] = place.bridge.servers
    assert len(served.unclosed) == 1
    assert len(served._retired) == 1


def test_warm_process_of_before_ends(make: Any) -> None:
    place = make(server("a", "old", warm=1))
    place.reactor.pump([1.0] * 5)
    [old] = place.launcher.backends
    place.reload(server("a", "new", warm=1))
    place.reactor.pump([1.0] * 5)
    assert stops(old) == 1
    assert old.receiver.reason == RETIRED
    assert len(place.launcher.backends) == 2
    place.open("a")
    assert len(place.launcher.backends[1].sent) == 1


@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_stateless_requests_get_the_new_processes(make: Any, kind: Any) -> None:
    place = make(server("a", "old", reuse="identity"))
    place.launcher.kind = kind
    client = place.connect()
    client.send("POST", "/a/mcp", MODERN_CALL, version="2026-07-28")
    place.reload(server("a", "new", reuse="identity"))
    before = len(place.launcher.backends)
    old = place.launcher.backends[-1]
    assert client.status() == 0
    again = place.connect()
    again.send("POST", "/a/mcp", MODERN_CALL, version="2026-07-28")
    assert len(place.launcher.backends) > before
    # The one of before ends with its last request.
    asked = json.loads(old.sent[-1])
    if asked["method"] == "tools/list":
        old.receiver.messages_received([answer(asked["id"], {"tools": []})])
        place.turn()
    [ident] = [json.loads(each)["id"] for each in old.sent if b"tools/call" in each]
    result: dict[str, Any] = {"resultType": "complete", "content": []}
    old.receiver.messages_received([answer(ident, result)])
    place.reactor.pump([0.1] * 20)
    assert client.status() == 200
    assert stops(old) == 1
    if not old.stopped.called:
        old.stopped.callback(None)
    [served] = place.bridge.servers
    assert served._retired == []


def test_subscription_ends_so_that_its_client_looks_again(make: Any) -> None:
    place = make(server("a", "old"))
    place.launcher.kind = Modern
    listen = modern("subscriptions/listen", "s", notifications={"toolsListChanged": True})
    client = place.connect()
    client.send("POST", "/a/mcp", listen, version="2026-07-28")
    backend = place.launcher.backends[-1]
    [asked] = [json.loads(x) for x in backend.sent if b"subscriptions/listen" in x][-1:]
    acknowledged = {
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {
            "_meta": {"io.modelcontextprotocol/subscriptionId": asked["id"]},
            "notifications": {"toolsListChanged": True},
        },
    }
    backend.receiver.messages_received([json.dumps(acknowledged).encode()])
    place.turn()
    assert b"acknowledged" in client.written()
    place.reload(server("a", "new"))
    place.reactor.pump([0.1] * 30)
    written = client.written()
    assert b'"result"' in written
    assert stops(backend) == 1


class Telling(Legacy):
    """A server that says that it tells of other tools, not of other prompts."""

    def send(self, line: bytes) -> None:
        if b'"initialize"' not in line:
            super().send(line)
            return
        FakeBackend.send(self, line)
        result = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {"listChanged": True}, "prompts": {"listChanged": False}},
            "serverInfo": {"name": "telling", "version": "1"},
        }
        self.receiver.messages_received([answer(json.loads(line)["id"], result)])


TOLD = b"notifications/tools/list_changed"


def test_clients_of_sessions_are_told_of_other_lists(make: Any) -> None:
    """As by the server, if it has said that it does so, and of nothing else."""
    place = make(server("a"), server("b"))
    silent, _ = place.stream("b")
    place.launcher.kind = Telling
    starting, _ = place.stream("a")
    sse, path = place.stream("a")
    place.connect().send("POST", path, INITIALIZE)
    ident, listener = place.open("a"), place.connect()
    listener.send("GET", "/a/mcp", session=ident)
    streams = (silent, starting, sse, listener)
    for each in streams:
        each.written()
    denied = {"tools": {"deny": ["x"]}, "prompts": {"deny": ["x"]}}
    lists: dict[str, Any] = {name: read_name_lists(each) for name, each in denied.items()}
    place.reload(server("a", **lists), server("b", **lists))
    place.turn()
    assert [each.written().count(TOLD) for each in streams] == [0, 0, 1, 1]
    # These lists are as they were.
    place.reload(server("a", max_sessions=7, **lists), server("b"))
    place.turn()
    assert [each.written().count(b"list_changed") for each in streams] == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", [Telling, Modern])
def test_subscribers_are_told_of_other_lists(make: Any, kind: Any) -> None:
    place = make(server("a"))
    place.launcher.kind = kind
    client = place.connect()
    wanted = {"toolsListChanged": True, "promptsListChanged": True}
    listen = modern("subscriptions/listen", "s", notifications=wanted)
    client.send("POST", "/a/mcp", listen, version="2026-07-28")
    if kind is Modern:
        backend = place.launcher.backends[-1]
        [asked] = [json.loads(x) for x in backend.sent if b"subscriptions/listen" in x][-1:]
        params = {
            "_meta": {"io.modelcontextprotocol/subscriptionId": asked["id"]},
            "notifications": {"toolsListChanged": True},
        }
        method = "notifications/subscriptions/acknowledged"
        note = {"jsonrpc": "2.0", "method": method, "params": params}
        backend.receiver.messages_received([json.dumps(note).encode()])
        place.turn()
    assert b"acknowledged" in client.written()
    kinds = ("tools", "prompts", "resources")
    lists: dict[str, Any] = {name: read_name_lists({"deny": ["x"]}) for name in kinds}
    place.reload(server("a", **lists))
    place.turn()
    written = client.written()
    assert written.count(b"list_changed") == written.count(TOLD) == 1
    assert b'"io.modelcontextprotocol/subscriptionId":"s"' in written.replace(b" ", b"")


# Who may come in.


def tokens(**names: Any) -> dict[str, Any]:
    secrets = {"alice": ALICE, "bob": BOB}
    found = {name: {"sha256": secrets[name][1], **more} for name, more in names.items()}
    return {"tokens": found}


@each_way
def test_token_that_is_withdrawn_lets_nobody_in(make: Any, way: str) -> None:
    """Neither again, nor any longer; others notice nothing."""
    place = make(server("a"), auth=tokens(alice={}, bob={}))
    ident, (stream, path) = place.open("a", ALICE[0]), place.stream("a", ALICE[0])
    kept, (other, other_path) = place.open("a", BOB[0]), place.stream("a", BOB[0])
    # Known to this connection, which the fast path remembers.
    client = place.connect(way=way)
    client.send("POST", "/a/mcp", NOTE, ALICE[0], session=ident)
    client.written()
    assert place.reload(server("a"), auth=tokens(bob={})) == "changed for all servers auth"
    place.reactor.pump([0.1] * 20)
    client.send("POST", "/a/mcp", CALL, ALICE[0], session=ident)
    assert client.status() in (401, 0)
    place.reactor.pump([1.0] * 5)
    assert b" 401 " in client.read + client.written()
    assert stream.transport.disconnecting or b"0\r\n\r\n" in stream.transport.value()
    assert list(map(stops, place.launcher.backends)) == [1, 1, 0, 0]
    assert place.status("a", CALL, way=way, token=BOB[0], session=kept) == 0
    poster = place.connect(way=way)
    poster.send("POST", other_path, CALL, BOB[0])
    assert poster.status() == 202
    assert path
    assert not other.transport.disconnecting


@each_way
@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_stateless_request_that_lasts_ends_with_its_token(make: Any, way: str, kind: Any) -> None:
    """Whoever's token is withdrawn gets an error in place of the answer; others notice nothing."""
    place = make(server("a"), auth=tokens(alice={}, bob={}))
    place.launcher.kind = kind
    clients = {token: place.connect(way=way) for token in (ALICE[0], BOB[0])}
    for token, client in clients.items():
        client.send("POST", "/a/mcp", MODERN_CALL, token, version="2026-07-28")
        if kind is Legacy:
            # A modern one has answered `tools/list` itself.
            place.respond(tools=[])
    place.reactor.pump([COMMIT_SECONDS, 0.1])
    alice, bob = place.launcher.backends[-2:]
    assert all(b"tools/call" in each.sent[-1] for each in (alice, bob))
    place.reload(server("a"), auth=tokens(bob={}))
    place.reactor.pump([0.1] * 20)
    written = clients[ALICE[0]].written()
    assert NOT_ADMITTED.encode() in written
    assert clients[BOB[0]].status() in (0, 200)
    # Its process is told, or ended.
    assert stops(alice) or b"notifications/cancelled" in alice.sent[-1]
    assert not stops(bob)
    assert b"tools/call" in bob.sent[-1]
    place.respond(content=[{"type": "text", "text": "for bob"}])
    assert b"for bob" in clients[BOB[0]].read + clients[BOB[0]].written()
    [served] = place.bridge.servers
    assert served._lasting == {}


@each_way
def test_stateless_request_that_waits_gets_no_process_of_one_that_ends(make: Any, way: str) -> None:
    """What it asks for is not done, also where its own client had the process before."""
    settings = server("a", max_sessions=1, concurrency=1, max_sessions_per_identity=50)
    place = make(settings, auth=tokens(alice={}, bob={}))
    place.launcher.kind = Modern
    clients = [place.connect(way=way) for _ in range(3)]
    for client in clients:
        client.send("POST", "/a/mcp", MODERN_CALL, ALICE[0], version="2026-07-28")
        place.reactor.pump([COMMIT_SECONDS / 2] * 3 if client is clients[0] else [0.1])
    [backend] = place.launcher.backends
    place.reload(settings, auth=tokens(bob={}))
    place.reactor.pump([0.1] * 20)
    assert all(NOT_ADMITTED.encode() in each.written() for each in clients)
    assert sum(b"tools/call" in each for each in backend.sent) == 1
    assert len(place.launcher.backends) == 1
    [served] = place.bridge.servers
    assert (served._lasting, served._waiting) == ({}, {})


@each_way
def test_stateless_request_that_waits_ends_with_its_token(make: Any, way: str) -> None:
    """No process is started for it any more."""
    place = make(server("a", max_sessions=1), auth=tokens(alice={}, bob={}))
    running, waiting = place.connect(way=way), place.connect(way=way)
    running.send("POST", "/a/mcp", MODERN_CALL, BOB[0], version="2026-07-28")
    place.respond(tools=[])
    waiting.send("POST", "/a/mcp", MODERN_CALL, ALICE[0], version="2026-07-28")
    started = len(place.launcher.backends)
    assert waiting.status() == 0
    place.reload(server("a", max_sessions=1), auth=tokens(bob={}))
    assert waiting.status() == 401
    assert NOT_ADMITTED.encode() in waiting.read
    place.respond(content=[])
    assert running.status() == 200
    place.reactor.pump([0.1] * 20)
    assert len(place.launcher.backends) == started
    [served] = place.bridge.servers
    assert served._lasting == {}


@pytest.mark.parametrize(
    ("after", "goes_on"),
    [
        (tokens(alice={}), True),
        (tokens(alice={"scopes": ["read"]}), True),
        (tokens(alice={"servers": ["a"]}), True),
        (tokens(alice={"servers": ["b"]}), False),
        ({"tokens": {"alice": {"sha256": BOB[1]}}}, False),
        (tokens(bob={}), False),
        ({**tokens(alice={}), "scopes": "read"}, False),
        ({**tokens(alice={"scopes": ["read"]}), "scopes": "read"}, True),
        ({"proxy": {"header": "X-User", "addresses": ["127.0.0.1"]}}, False),
        (None, False),
    ],
)
def test_session_ends_if_its_client_would_not_be_admitted(
    make: Any, after: Any, goes_on: bool
) -> None:
    place = make(server("a"), server("b"), auth=tokens(alice={}))
    place.open("a", ALICE[0])
    place.reload(server("a"), server("b"), auth=after)
    place.reactor.pump([0.1] * 20)
    [backend] = place.launcher.backends
    assert stops(backend) == (0 if goes_on else 1)


def test_session_of_anybody_ends_when_callers_must_be_known(make: Any) -> None:
    place = make(server("a"))
    place.open("a")
    place.reload(server("a"), auth=tokens(alice={}))
    place.reactor.pump([0.1] * 20)
    assert list(map(stops, place.launcher.backends)) == [1]
    assert place.status("a") == 401


@each_way
def test_scopes_that_are_narrowed_hold_at_once(make: Any, way: str) -> None:
    """For a living session, and for a connection that the fast path knows."""
    auth = {**tokens(alice={"scopes": ["call"]}), "scopes": {"tools/call": "call"}}
    place = make(server("a"), auth=auth)
    ident = place.open("a", ALICE[0])
    client = place.connect(way=way)
    client.send("POST", "/a/mcp", CALL, ALICE[0], session=ident)
    place.respond(content=[])
    assert client.status() == 200
    place.reload(server("a"), auth={**tokens(alice={}), "scopes": {"tools/call": "call"}})
    client = client if way == FAST else place.connect(way=way)
    client.send("POST", "/a/mcp", message("tools/call", 2, name="t"), ALICE[0], session=ident)
    assert client.status() == 403


class Asks:
    """An authenticator that answers when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[Any]] = []

    def authenticate(self, request: Any) -> Deferred[Any]:
        self.waiting.append(Deferred())
        return self.waiting[-1]


def test_caller_who_is_being_asked_about_is_asked_about_again(make: Any) -> None:
    """What is found out under the settings of before does not count."""
    from zope.interface import implementer

    from mcpbridge.interfaces import IAuthenticator

    asks = implementer(IAuthenticator)(Asks)()
    place = make(server("a"), authenticator=asks, exempt_addresses=())
    client = place.connect()
    client.send("POST", "/a/mcp", INITIALIZE)
    place.reload(server("a"))
    [first] = asks.waiting
    first.callback(Identity(issuer="x", subject="alice"))
    place.turn()
    assert client.status() == 0
    assert len(asks.waiting) == 2
    asks.waiting[1].callback(Identity(issuer="x", subject="alice"))
    place.turn()
    assert client.status() == 200


# Limits.


def test_limit_that_is_narrowed_counts_those_who_are_there(make: Any) -> None:
    nobody: dict[str, Any] = {"exempt_addresses": ("192.0.2.1",)}
    place = make(server("a", max_sessions=3), **nobody)
    place.open("a")
    place.open("a")
    place.reload(server("a", max_sessions=2), **nobody)
    assert place.status("a") == 429
    place.reload(server("a", max_sessions=3), **nobody)
    assert place.status("a") == 200
    assert place.status("a") == 429
    place.reload(server("a", max_sessions=9), max_sessions=3, **nobody)
    assert place.status("a") == 429
    place.reload(server("a", max_sessions=9), max_sessions=4, **nobody)
    assert place.status("a") == 200


def test_share_of_an_address_is_narrowed_at_once(make: Any) -> None:
    place = make(server("a"), exempt_addresses=())
    place.open("a")
    place.reload(server("a", max_sessions_per_address=1), exempt_addresses=())
    assert place.status("a") == 429
    place.reload(server("a"), exempt_addresses=(), max_sessions_per_address=1)
    assert place.status("a") == 429
    place.reload(server("a"), exempt_addresses=())
    assert place.status("a") == 200


def test_rate_holds_for_living_sessions_at_once(make: Any) -> None:
    place = make(server("a"), exempt_addresses=())
    ident = place.open("a")
    place.reload(server("a", messages_per_second=0.1), exempt_addresses=())
    first = place.status("a", NOTE, session=ident)
    assert first == 202
    assert place.status("a", NOTE, session=ident) == 429
    place.reload(server("a"), exempt_addresses=())
    assert place.status("a", NOTE, session=ident) == 202


def test_limiter_of_the_application_stays(make: Any) -> None:
    from zope.interface import implementer

    @implementer(ISessionLimiter)
    class Nobody:
        def acquire(self) -> None:
            return None

    place = make(server("a"), limiter=Nobody())
    assert place.status("a") == 429
    place.reload(server("a", "new"))
    assert place.status("a") == 429


# Listeners, and what fails.


#: The number of a port that somebody else has.
TAKEN = 9


class Port:
    """An open listener."""

    def __init__(self, reactor: Any, number: int) -> None:
        self.reactor, self.number, self.open = reactor, number, True

    def getHost(self) -> Any:
        from twisted.internet.address import IPv4Address

        return IPv4Address("TCP", "127.0.0.1", self.number)

    def stopListening(self) -> None:
        self.open = False


def listening(place: Place) -> list[int]:
    ports: list[Any] = [port for _, port in place.bridge._ports]
    assert all(port.open for port in ports)
    return [port.number for port in ports]


@pytest.fixture
def on_ports(make: Any, monkeypatch: pytest.MonkeyPatch) -> Place:
    place: Place = make(server("a"))

    def listen(number: int, factory: Any, backlog: int, interface: str) -> Port:
        if number == TAKEN:
            raise CannotListenError(interface, number, OSError("in use"))
        return Port(place.reactor, number)

    monkeypatch.setattr(place.reactor, "listenTCP", listen)
    return place


def local(*numbers: int) -> dict[str, Any]:
    return {"listen": tuple(f"tcp:{each}:interface=127.0.0.1" for each in numbers)}


def test_listeners_that_stay_are_not_touched(on_ports: Place) -> None:
    place = on_ports
    line = place.reload(server("a"), **local(1, 2))
    assert line == "listens on tcp:1:interface=127.0.0.1, tcp:2:interface=127.0.0.1"
    kept = place.bridge._ports[1][1]
    line = place.reload(server("a"), **local(2, 3))
    assert line.startswith("listens on tcp:3:")
    assert "; closed tcp:1:" in line
    assert listening(place) == [2, 3]
    assert place.bridge._ports[0][1] is kept
    # Several may have one description.
    place.reload(server("a"), **local(0, 0))
    place.reload(server("a"), **local(0))
    assert listening(place) == [0]


def test_listener_that_cannot_be_opened_changes_nothing(on_ports: Place) -> None:
    place = on_ports
    place.reload(server("a"), **local(1))
    before = place.bridge.settings
    with pytest.raises(CannotListen, match="cannot listen on 'tcp:9"):
        place.reload(server("a", "new"), server("b"), **local(2, 9))
    assert listening(place) == [1]
    assert place.names == ["a"]
    assert place.bridge.settings is before
    assert place.bridge.servers[0]._retired == []
    assert place.bridge._local._launchers == []
    assert place.status("a") == 200


def test_server_that_others_could_reach_changes_nothing(on_ports: Place) -> None:
    place = on_ports
    place.reload(server("a"), auth=tokens(alice={}), **local(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mcpbridge.bridge.exposed", lambda ports: ["http://0.0.0.0:1"])
        with pytest.raises(Exposed, match="'a'"):
            place.reload(server("a"), **local(1))
        assert place.status("a") == 401
        place.reload(server("a"), insecure=True, **local(1))
    assert place.status("a") == 200


@pytest.mark.parametrize(
    ("servers", "bridge", "named"),
    [
        ([], {}, "mcpServers"),
        ([server("a", launcher="no.such.Thing")], {}, "mcpServers.a.launcher"),
        ([server("a")], {"auth": {"tokens": {"x": {"file": "/no/such/file"}}}}, "auth.tokens.x"),
        ([server("a", auth={"tokens": {"x": {"file": "/no"}}})], {}, "auth.tokens.x"),
    ],
)
def test_wrong_settings_change_nothing(make: Any, servers: Any, bridge: Any, named: str) -> None:
    place = make(server("a"), auth=tokens(alice={}))
    ident = place.open("a", ALICE[0])
    with pytest.raises(SettingError, match=re.escape(named)):
        place.reload(*servers, **bridge)
    assert place.status("a", CALL, token=ALICE[0], session=ident) == 0
    assert place.status("a", token=ALICE[0]) == 200
    assert place.bridge.servers[0]._retired == []


def test_what_needs_a_restart_is_named_and_does_not_change(make: Any) -> None:
    place = make(server("a"))
    line = place.reload(server("a"), access_log=True, insecure=True)
    assert line == "changed for all servers insecure; changed only by a restart access_log"
    assert place.bridge.settings.access_log is False
    assert place.reload(server("a"), access_log=True).endswith(
        "changed only by a restart access_log"
    )


def test_larger_messages_are_accepted_at_once(make: Any) -> None:
    place = make(server("a", max_message_bytes=1000))
    large = message("tools/call", 1, name="t", arguments={"x": "y" * 2000})
    assert place.status("a", large) == 413
    place.reload(server("a", max_message_bytes=10_000))
    ident = place.open("a")
    assert place.status("a", large, session=ident) == 0


def test_bridge_that_does_not_run_is_changed_alike(tmp_path: Path) -> None:
    place = World(tmp_path)
    bridge = Bridge(settings_of(server("a")), place.reactor, launcher=Launcher())
    assert bridge.reload(settings_of(server("a"), server("b"), **local(1))).startswith("added b")
    assert [each.settings.name for each in bridge.servers] == ["a", "b"]
    assert bridge._ports == []
    assert bridge.site().fast_path is not None
    place.stop()


def test_stop_waits_for_processes_of_before(make: Any) -> None:
    place = make(server("a", stop_grace=7, kill_grace=8))
    place.open("a")
    place.reload(server("a", "new", kill_grace=0))
    place.open("a")
    assert place.bridge.longest_stop() >= 15
    place.bridge.stopService()
    place.reactor.pump([0.1] * 20)
    assert list(map(stops, place.launcher.backends)) == [1, 1]


# What has changed.


def test_changes_are_said_in_a_line() -> None:
    before = settings_of(server("a"), server("b"), server("c"))
    after = settings_of(server("a", "y", args=("1",)), server("c"), server("d"), insecure=True)
    assert str(changes(before, after)) == (
        "added d; changed a (command, args); removed b; changed for all servers insecure"
    )
    assert str(changes(before, before)) == "nothing has changed"
    many = settings_of(*(server(f"s{each}") for each in range(NAMED_SERVERS + 2)))
    assert str(changes(settings_of(server("a")), many)).endswith("s19 and 2 more; removed a")


def test_settings_that_need_a_restart() -> None:
    """Each is one of the bridge, and stays."""
    names = {each.name for each in dataclasses.fields(BridgeSettings)}
    assert names >= AT_START
    before, after = settings_of(server("a")), settings_of(server("b"), fast_path=False)
    assert without_restart(before, after) == dataclasses.replace(after, fast_path=True)


# The file.


class Command:
    """The service of `twistd`, with a file."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.path = folder / "config.json"
        self.write({"a": {}})
        given = Options()
        given.parseOptions(["--config", str(self.path), *options])
        self.options = given
        self.service: Any = makeService(given)

    def write(self, servers: dict[str, Any], **bridge: Any) -> None:
        launcher = {"command": "x", "launcher": "tests.thirdparty.ParrotLauncher"}
        entries = {name: {**launcher, **entry} for name, entry in servers.items()}
        content = {"mcpServers": entries, "bridge": {"listen": [], **bridge}}
        self.path.write_text(json.dumps(content))

    def reload(self) -> bool:
        found: bool = self.service._reload()
        return found

    @property
    def names(self) -> list[str]:
        return [each.settings.name for each in self.service.servers]


def test_file_is_read_again(tmp_path: Path, log_lines: list[str], monkeypatch: Any) -> None:
    """Also by a daemon, which has changed its directory."""
    monkeypatch.chdir(tmp_path)
    command = Command(Path())
    monkeypatch.chdir("/")
    command.path = tmp_path / "config.json"
    command.write({"a": {"args": ["1"]}, "b": {"unknown thing": 1}}, strict=False)
    assert command.reload()
    assert log_lines[-1] == f"SIGHUP: loaded {command.path}: added b; changed a (args)"
    assert "`unknown thing`" in log_lines[-2]
    assert command.names == ["a", "b"]
    # What the log has said is not said again.
    assert command.reload()
    assert log_lines[-1].endswith(": nothing has changed")
    assert sum("`unknown thing`" in line for line in log_lines) == 1


@pytest.mark.parametrize(
    ("servers", "bridge", "says"),
    [
        ({"a": {"max_sessions": 0}, "b": {}}, {}, "mcpServers.a.max_sessions: expected"),
        ({"a": {}, "b": {"disabled": "yes"}}, {"strict": True}, "mcpServers.b.disabled: expected"),
        ({"a": {}}, {"max_sessions": 0}, "bridge.max_sessions: expected"),
        ({"a": {"launcher": "no.such.Thing"}}, {}, "mcpServers.a.launcher: expected"),
        ({"a": {"auth": {"tokens": {"x": {"file": "y"}}}}}, {}, "auth.tokens.x.file: expected"),
    ],
)
def test_wrong_file_is_not_loaded(
    tmp_path: Path, log_lines: list[str], servers: Any, bridge: Any, says: str
) -> None:
    command = Command(tmp_path)
    command.write(servers, **bridge)
    assert command.reload()
    assert says in log_lines[-2]
    assert f"SIGHUP: {command.path} was not loaded, and nothing has changed" in log_lines[-1]
    assert command.names == ["a"]


def test_server_that_was_skipped_already_keeps_nothing_from_changing(
    tmp_path: Path, log_lines: list[str]
) -> None:
    """But one that is served must not be lost by a mistake in its entry."""
    command = Command(tmp_path)
    command.write({"a": {}, "b": {"max_sessions": 0}, "c": {}})
    command.reload()
    assert command.names == ["a", "c"]
    assert "mcpServers.b: not served" in log_lines[-2]
    command.write({"a": {}, "b": {"max_sessions": 0}, "c": {"max_sessions": 0}})
    command.reload()
    assert command.names == ["a", "c"]
    assert "nothing has changed" in log_lines[-1]


def test_command_has_no_file_to_read(tmp_path: Path) -> None:
    options = Options()
    options.parseOptions(["x"])
    service: Any = makeService(options)
    assert service._reload() is False
    with pytest.raises(NotSupported):
        service.reload_file()


def test_an_operator_has_the_file_read_again_as_sighup_does(
    tmp_path: Path, log_lines: list[str]
) -> None:
    """And is told what has changed, or what is wrong."""
    command = Command(tmp_path)
    command.write({"a": {}, "b": {}})
    assert command.service.reload_file() == "added b"
    assert log_lines[-1] == f"reload: loaded {command.path}: added b"
    command.write({"a": {"max_sessions": 0}, "b": {"max_sessions": 0}}, strict=True)
    with pytest.raises(SettingErrors) as caught:
        command.service.reload_file()
    assert [line.partition("mcpServers.")[2][:14] for line in caught.value.lines] == [
        "a.max_sessions",
        "b.max_sessions",
    ]
    assert command.names == ["a", "b"]
    assert command.service.counters.reloads == {"loaded": 1, "failed": 1}


def test_defect_is_logged_and_the_bridge_goes_on(
    tmp_path: Path, log_lines: list[str], logged_failures: list[Any], monkeypatch: Any
) -> None:
    command = Command(tmp_path)

    def fail(settings: Any) -> str:
        raise RuntimeError("a defect")

    monkeypatch.setattr(command.service, "reload", fail)
    assert command.reload()
    assert "could not be loaded; restart the bridge" in log_lines[-1]
    assert len(logged_failures) == 1


# What happens meanwhile.


def later(place: Place) -> list[Callable[[], None]]:
    """Have processes launched later; return what completes each launch, once it is asked for."""
    launched: list[Callable[[], None]] = []
    launch = place.launcher.launch

    def launch_later(receiver: Any, label: str) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred()

        def complete() -> None:
            launch(receiver, label).addCallback(waiting.callback)
            place.turn()

        launched.append(complete)
        return waiting

    place.launcher.launch = launch_later  # type: ignore[method-assign]
    return launched


@pytest.mark.parametrize("transport", ["sse", "mcp"])
@pytest.mark.parametrize("before", [True, False])
def test_session_is_not_opened_for_a_client_who_is_not_admitted_any_more(
    make: Any, transport: str, before: bool
) -> None:
    """Whether its token is withdrawn while its process starts, or callers must be known then."""
    place = make(server("a"), auth=tokens(alice={}) if before else None)
    launched = later(place)
    client = place.connect()
    token = ALICE[0] if before else None
    if transport == "sse":
        client.send("GET", "/a/sse", b"", token)
    else:
        client.send("POST", "/a/mcp", INITIALIZE, token)
    place.reload(server("a"), auth=tokens(bob={}))
    launched[0]()
    assert client.status() == 401
    place.reactor.pump([0.1] * 20)
    assert list(map(stops, place.launcher.backends)) == [1]
    assert place.bridge.servers[0].unclosed == set()


def test_session_is_not_opened_at_a_server_that_is_removed_meanwhile(make: Any) -> None:
    """Nobody would end its process when the bridge stops."""
    nobody: dict[str, Any] = {"exempt_addresses": (), "max_sessions_per_address": 1}
    place = make(server("a", stop_grace=5), server("b"), **nobody)
    place.open("a")
    place.reactor.pump([5.0] * 20)
    [abandoned] = place.launcher.backends
    abandoned.__class__ = Modern  # It takes its time to end.
    client = place.connect()
    client.send("POST", "/b/mcp", INITIALIZE)
    assert client.status() == 0
    assert stops(abandoned) == 1
    place.reload(server("a", stop_grace=5), **nobody)
    assert place.names == ["a"]
    abandoned.stopped.callback(None)
    place.reactor.pump([0.1] * 20)
    assert client.status() == 404
    assert len(place.launcher.backends) == 1


def test_removed_server_knows_who_may_come_in_now(make: Any) -> None:
    place = make(server("a"), server("b"), auth=tokens(alice={}, bob={}))
    idents = {name: place.open("b", token[0]) for name, token in (("a", ALICE), ("b", BOB))}
    place.reload(server("a"), auth=tokens(bob={}))
    place.reactor.pump([0.1] * 20)
    assert list(map(stops, place.launcher.backends)) == [1, 0]
    assert place.status("b", NOTE, token=ALICE[0], session=idents["a"]) in (0, 401)
    assert place.status("b", NOTE, token=BOB[0], session=idents["b"]) == 202
    place.reload(server("a"), auth=tokens(alice={}))
    place.reactor.pump([0.1] * 20)
    assert list(map(stops, place.launcher.backends)) == [1, 1]


def test_settings_of_a_removed_server_that_cannot_be_used_admit_nobody(
    make: Any, tmp_path: Path, log_lines: list[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(ALICE[0])
    secret.chmod(0o600)
    own = {"tokens": {"alice": {"file": str(secret)}}}
    place = make(server("a"), server("b", auth=own))
    place.open("b", ALICE[0])
    secret.unlink()
    place.reload(server("a"))
    assert any("server 'b' was removed: " in line for line in log_lines)
    place.reactor.pump([0.1] * 20)
    assert list(map(stops, place.launcher.backends)) == [1]


def test_worker_that_is_introduced_meanwhile_ends(make: Any) -> None:
    """The process is of the settings of before, and nobody will find it."""
    place = make(server("a", "old", reuse="identity", idle_timeout=0))

    class Slow(Modern):
        def send(self, line: bytes) -> None:
            if b"server/discover" in line and len(self.sent) == 0:
                self.sent.append(line)
            else:
                super().send(line)

    place.launcher.kind = Slow
    client = place.connect()
    client.send("POST", "/a/mcp", MODERN_CALL, version="2026-07-28")
    [old] = place.launcher.backends
    place.reload(server("a", "new", reuse="identity", idle_timeout=0))
    client.close()
    ident = json.loads(old.sent[0])["id"]
    result = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
    old.receiver.messages_received([answer(ident, {"resultType": "complete", **result})])
    place.reactor.pump([0.1] * 20)
    assert stops(old) == 1
    old.stopped.callback(None)
    place.reactor.pump([0.1] * 20)
    assert place.bridge.servers[0]._retired == []


def test_warm_process_that_is_launched_meanwhile_ends(make: Any) -> None:
    place = make(server("a", "old", warm=1))
    launched = later(place)
    place.reactor.pump([1.0] * 5)
    place.reload(server("a", "new"))
    for complete in launched:
        complete()
    place.reactor.pump([0.1] * 20)
    assert list(map(stops, place.launcher.backends)) == [1]
    assert place.bridge.servers[0]._retired == []


def test_response_is_for_the_request_that_it_answers(make: Any) -> None:
    """Also where other settings refuse its head, and another request is on the connection."""
    place = make(server("a"))
    one, two = place.open("a"), place.open("a")
    client = place.connect()
    client.send("POST", "/a/mcp", CALL, session=one)
    place.reload(server("a"), allowed_hosts=("other",))
    # It takes so long that it gets a stream.
    place.reactor.pump([1.0] * 3)
    assert client.status() == 200
    second = message("tools/call", 77, name="t")
    head = f"POST /a/mcp HTTP/1.1\r\nHost: other\r\nMcp-Session-Id: {two}\r\n"
    head += "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"
    client.channel.dataReceived(f"{head}Content-Length: {len(second)}\r\n\r\n".encode() + second)
    place.turn()
    assert client.written() == b""
    place.respond(0, content=[{"type": "text", "text": "of one"}])
    written = client.written()
    assert b"of one" in written
    assert written.endswith(b"0\r\n\r\n")
    place.respond(1, content=[{"type": "text", "text": "of two"}])
    written = client.written()
    assert b"of two" in written
    assert b"of one" not in written


@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_response_that_nobody_takes_over_is_given_up(make: Any, kind: Any) -> None:
    """Whatever answers its request instead: nothing more is written for it."""
    place = make(server("a", reuse="identity"))
    place.launcher.kind = kind
    client = place.connect()
    if kind is Legacy:
        client.send("POST", "/a/mcp", CALL, session=place.open("a"))
    else:
        client.send("POST", "/a/mcp", MODERN_CALL, version="2026-07-28")
    client.channel.serve_ordinary = lambda received: None
    client.channel.hand_over()
    client.written()
    backend = place.launcher.backends[-1]
    [ident] = [json.loads(each)["id"] for each in backend.sent if b"tools/call" in each]
    result = {"resultType": "complete", "content": []}
    backend.receiver.messages_received([answer(ident, result)])
    place.turn()
    assert client.written() == b""


@each_way
def test_connections_of_a_closed_listener_are_closed(make: Any, way: str) -> None:
    """Each when it has been answered: the settings may protect other listeners less."""
    place = make(server("a"))
    idle, busy = place.connect(way=way), place.connect(way=way)
    listener = Port(place.reactor, 1)
    for each in (idle, busy):
        each.transport.server = listener
    busy.send("POST", "/a/mcp", CALL, session=place.open("a"))
    other = place.connect()
    place.bridge._site.reconfigure(place.bridge.settings, place.bridge._tree.fast_path)
    place.bridge._site.close_those_of({listener})
    place.turn()
    assert idle.transport.disconnecting
    assert not busy.transport.disconnecting
    assert not other.transport.disconnecting
    place.respond(content=[])
    assert busy.status() == 200
    busy.send("POST", "/a/mcp", NOTE, session="0" * 36)
    place.turn()
    assert busy.transport.disconnecting


def test_bridge_that_does_not_run_starts_nothing(tmp_path: Path) -> None:
    place = World(tmp_path)
    launcher = Launcher()
    bridge = Bridge(settings_of(server("a", warm=1)), place.reactor, launcher=launcher)
    bridge.reload(settings_of(server("a", "new", warm=1), server("b", warm=1)))
    place.reactor.pump([1.0] * 10)
    assert launcher.backends == []
    place.stop()


def test_limiter_of_the_application_keeps_its_limit(make: Any) -> None:
    limiter = SessionLimiter(5)
    place = make(server("a"), limiter=limiter)
    place.reload(server("a", "new", max_sessions=50))
    assert limiter.limit == 5


def test_large_request_that_came_before_is_refused_like_any_other(make: Any) -> None:
    """It was admitted as anybody's, and callers must be known when it has been read."""
    place = make(server("a"))
    body = message(
        "initialize",
        0,
        protocolVersion="2025-11-25",
        capabilities={"x": ["y" * 10] * 40_000},
        clientInfo={"name": "c", "version": "1"},
    )
    client = place.connect()
    head = "POST /a/mcp HTTP/1.1\r\nHost: h\r\nAccept: application/json, text/event-stream\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    client.channel.dataReceived(head.encode() + body)
    assert client.status() == 0
    place.reload(server("a"), auth=tokens(alice={}))
    place.reactor.pump([0.01] * 200)
    assert client.status() == 401


def test_subscription_of_a_client_who_is_not_admitted_any_more_ends_at_once(make: Any) -> None:
    place = make(server("a"), auth=tokens(alice={}))
    ended: list[str] = []
    [served] = place.bridge.servers
    access = Access(Identity(issuer="token", subject="alice"))
    served.hold_request(SimpleNamespace(access=access), lambda: ended.append("ended"))
    assert ended == ["ended"]


def test_internal_constants_have_names_of_their_own() -> None:
    names = re.findall(r"(?m)^([A-Z][A-Z0-9_]*)(?::[^=]*)? = ", Path(tuning.__file__).read_text())
    assert len(names) == len(set(names))


def test_the_state_of_a_server_is_that_of_its_present_processes(make: Any) -> None:
    place = make(server("a"))
    [present] = place.bridge.servers
    ident = place.open("a")
    place.reload(server("a", "y"))
    session = present.streamable[ident]
    session.life.end("done")
    place.turn()
    assert present.counters.exits
    # Those of before say nothing of it.
    assert present.state().condition is Condition.NOT_STARTED
    stream, _ = place.stream("a")
    assert present.state().condition is Condition.STARTING
    stream.close()
    place.turn()
    assert present.state().condition is Condition.NOT_RUNNING
