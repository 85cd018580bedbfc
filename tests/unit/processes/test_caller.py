"""The caller that filters and observers see with a message."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from mcpbridge.auth.access import Access
from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import CLIENT_TEXT_CHARS, COLLECT_SECONDS
from mcpbridge.errors import MessageRefused
from mcpbridge.interfaces import IMessageFilter, ISessionObserver
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.modern_request import PREFIX
from mcpbridge.processes.caller import _SHOWN_CHARS, Caller
from mcpbridge.testing import FakeBackend, FakeLauncher, FakeReactor
from tests.examples import examples
from tests.fakes import CAPABILITIES_WITH_TASKS, Call, Legacy, Modern, WithTasks, World
from tests.unit.web.test_stateless_http import Legacy as LegacyAtOnce
from tests.unit.web.test_stateless_http import Modern as ModernAtOnce
from tests.unit.web.test_stateless_http import answer, asking, meta

PROXY = "10.0.0.1"


def access_as(name: str) -> Access:
    access = Access()
    access.name = name
    return access


def named(name: str) -> Caller:
    return Caller(None, {}, access_as(name))


@implementer(IMessageFilter, ISessionObserver)
class Watcher:
    """
    Notes who is said to have sent what it sees: the name, the direction and
    the method, or `answer`, of each message.
    """

    def __init__(self) -> None:
        self.filtered: list[tuple[str | None, str, str]] = []
        self.observed: list[tuple[str | None, str, str]] = []
        self.sessions: list[Any] = []
        #: Who had each session when it was opened, and when it was closed.
        self.opened: list[Caller | None] = []
        self.closed: list[Caller | None] = []
        self.callers: list[Caller | None] = []

    def session_opened(self, session: Any) -> None:
        self.sessions.append(session)
        self.opened.append(session.caller)

    def session_closed(self, session: Any, reason: str) -> None:
        self.closed.append(session.caller)

    def message_passed(self, session: Any, from_client: bool, line: bytes) -> None:
        self.observed.append(self._note(session, "in" if from_client else "out", line))

    def from_client(self, session: Any, line: bytes) -> bytes:
        self.callers.append(session.caller)
        self.filtered.append(self._note(session, "in", line))
        if b"forbidden" in line:
            raise MessageRefused("no")
        return line

    def from_backend(self, session: Any, line: bytes) -> bytes:
        self.filtered.append(self._note(session, "out", line))
        if b"unspeakable" in line:
            raise MessageRefused("no")
        return line

    def _note(self, session: Any, way: str, line: bytes) -> tuple[str | None, str, str]:
        caller = session.caller
        method = json.loads(line).get("method", "answer")
        return None if caller is None else caller.identity, way, method

    def of(self, identity: str | None) -> list[str]:
        """Return the messages of a caller that both were given; they must be the same."""
        filtered, observed = (
            [f"{way} {method}" for whose, way, method in noted if whose == identity]
            for noted in (self.filtered, self.observed)
        )
        # An observer hears of an answer when what comes of that has passed already.
        assert sorted(filtered) == sorted(observed)
        return filtered

    def at_rest(self) -> bool:
        """Return whether no process has a caller while nothing passes."""
        return all(each.caller is None for each in self.sessions)


# A caller.


def test_headers_cannot_be_changed() -> None:
    given = {"a": "b"}
    caller = Caller("192.0.2.1", given)
    given["a"] = "c"
    headers: Any = caller.headers
    assert dict(headers) == {"a": "b"}
    with pytest.raises(TypeError):
        headers["a"] = "d"


@pytest.mark.parametrize(
    ("info", "name", "version"),
    [
        (None, None, None),
        ("{}", None, None),
        ("[]", None, None),
        ("7", None, None),
        ('{"name":"n","version":"1"}', "n", "1"),
        ('{"name":"","version":null}', "", None),
        ('{"name":7,"version":["1"]}', None, None),
        ('{"name":{"name":"n"},"version":"1"}', None, "1"),
        ('{"name":"a\\ud800b"}', "a?b", None),
        ('{"name":"' + "\u00e9" * 300 + '"}', "\u00e9" * CLIENT_TEXT_CHARS, None),
    ],
)
def test_the_client_info_is_read(info: str | None, name: str | None, version: str | None) -> None:
    caller = Caller(None, {})
    caller.introduced(None if info is None else msgspec.Raw(info.encode()))
    assert (caller.client_name, caller.client_version) == (name, version)


def initialize(name: str = "inspector", **more: Any) -> bytes:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, **more}
    params["clientInfo"] = {"name": name, "version": "2"}
    return json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    ).encode()


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"initialize"}',
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":[]}',
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"clientInfo":1}}',
        initialize(padding="x" * LARGE_BYTES),
    ],
)
def test_an_initialize_without_client_info(line: bytes) -> None:
    caller = Caller(None, {})
    caller.initialized(line)
    assert (caller.client_name, caller.client_version) == (None, None)
    caller.initialized(initialize())
    caller.initialized(initialize("another"))
    assert (caller.client_name, caller.client_version) == ("inspector", "2")


def test_the_repr_of_a_caller() -> None:
    assert repr(Caller(None, {"authorization": "Bearer s3cret"})) == "<Caller>"
    caller = Caller("192.0.2.1", {"authorization": "Bearer s3cret"}, access_as("i" * 1000))
    caller.introduced(msgspec.Raw(b'{"name":"\\u001b[2Jn\\n","version":"%b"}' % (b"v" * 1000)))
    shown = repr(caller)
    assert "s3cret" not in shown
    assert "authorization" not in shown
    assert shown.isprintable()
    assert shown.startswith("<Caller identity='iii")
    assert r"address='192.0.2.1' name='\x1b[2Jn\n' version='vvv" in shown
    assert f"identity='{'i' * _SHOWN_CHARS}' " in shown
    assert f"version='{'v' * _SHOWN_CHARS}'>" in shown


# Processes that serve requests of 2026-07-28.


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def test_two_callers_at_once_on_one_concurrent_process(watcher: Watcher) -> None:
    """Each call of the filter and of the observer sees its own caller, at the answer too."""
    world = World(Modern, watcher=watcher)
    calls = {}
    for name in ("ann", "bob"):
        world.caller = named(name)
        calls[name] = world.call(name, "wait")
    world.run()
    [backend] = world.live
    # Both in one piece, the last one first.
    idents = {each["token"]: ident for ident, each in backend.calls.items()}
    backend.write(*({"id": idents[name], "result": {"token": name}} for name in ("bob", "ann")))
    world.run()
    for name, call in calls.items():
        assert call.result["token"] == name
        assert watcher.of(name) == ["in tools/call", "out answer"]
    assert watcher.filtered[-2:] == [("bob", "out", "answer"), ("ann", "out", "answer")]
    assert set(watcher.of(None)) == {"in server/discover", "in tools/list", "out answer"}
    assert watcher.opened == [None]
    assert watcher.at_rest()
    world.end()


def test_notifications_before_the_answer_have_their_caller(watcher: Watcher) -> None:
    world = World(Modern, watcher=watcher)
    world.caller = named("ann")
    world.request("tools/call", calling("ann", progressToken="t"), level="info")
    world.caller = named("bob")
    listening = world.listen()
    world.run()
    [backend] = world.live
    asked = next(each for each in backend.received if each["method"] == "tools/call")
    [subscription] = [
        each["id"] for each in backend.received if each["method"] == "subscriptions/listen"
    ]
    watcher.filtered.clear()
    watcher.observed.clear()
    backend.write(
        {"method": "notifications/progress", "params": {"progressToken": asked["id"]}},
        {"method": "notifications/message", "params": {"level": "error", "data": 1}},
        {"method": "notifications/tools/list_changed"},
        {"id": 9, "method": "ping"},
        {"id": 999, "result": {}},
    )
    backend.notify(subscription, "notifications/tools/list_changed")
    assert watcher.of("ann") == ["out notifications/progress", "out notifications/message"]
    assert watcher.of("bob") == ["out notifications/tools/list_changed"]
    assert watcher.of(None) == ["out notifications/tools/list_changed", "out ping", "out answer"]
    listening.disconnect()
    world.end()


def calling(token: str, **more: Any) -> dict[str, Any]:
    """Also progress, whose token the bridge has replaced."""
    own = {
        PREFIX + "protocolVersion": "2026-07-28",
        PREFIX + "clientCapabilities": {},
        PREFIX + "logLevel": "info",
        **more,
    }
    return {"name": "t", "arguments": {"token": token, "do": "wait"}, "_meta": own}


@pytest.mark.parametrize("kind", [Modern, Legacy])
def test_the_caller_of_refused_messages(watcher: Watcher, kind: Any) -> None:
    """After a refusal in either direction the next message has its own caller."""
    world = World(kind, watcher=watcher)
    world.caller = named("ann")
    refused = world.call("forbidden")
    world.run()
    assert isinstance(refused.refusal, MessageRefused)
    assert watcher.at_rest()
    world.caller = named("bob")
    call = world.call("unspeakable")
    world.run()
    assert call.lines[-1]["error"]["message"] == "no"
    assert ("bob", "out", "answer") in watcher.filtered
    assert ("bob", "out", "answer") in watcher.observed
    assert ("ann", "in", "tools/call") in watcher.filtered
    assert watcher.at_rest()
    world.end()


def test_a_renewed_subscription_keeps_its_caller(watcher: Watcher) -> None:
    """The process has ended, and the next one serves the same client's stream."""
    world = World(Modern, watcher=watcher)
    world.caller = named("ann")
    listening = world.listen()
    world.run()
    world.caller = named("bob")
    world.live[0].die()
    world.run(10)
    assert watcher.of("ann").count("in subscriptions/listen") == 2
    assert watcher.of("bob") == []
    listening.disconnect()
    world.end()


def test_a_subscription_to_tasks_has_its_caller(watcher: Watcher) -> None:
    world = World(WithTasks, watcher=watcher)
    world.caller = named("ann")
    params = {"name": "t", "arguments": {"token": "a", "do": "task"}}
    call = world.request("tools/call", params, capabilities=CAPABILITIES_WITH_TASKS)
    world.run()
    world.caller = named("bob")
    wanted = {"taskIds": [call.result["taskId"]], "toolsListChanged": True}
    stream = world.request(
        "subscriptions/listen", {"notifications": wanted}, capabilities=CAPABILITIES_WITH_TASKS
    )
    world.run()
    world.live[0].complete("1")
    assert watcher.of("bob").count("in subscriptions/listen") == 2
    assert watcher.of("bob")[-1] == "out notifications/tasks"
    assert "out notifications/tasks" not in watcher.of("ann")
    stream.disconnect()
    world.end()


def test_callers_one_after_the_other_on_an_exclusive_process(watcher: Watcher) -> None:
    world = World(Legacy, watcher=watcher)
    for name in ("ann", "bob"):
        world.caller = named(name)
        call = world.call(name)
        world.run()
        assert call.result["token"] == name
        assert watcher.of(name) == ["in tools/call", "out answer"]
    [process] = world.stateless._exclusive._group_of
    assert process._caller is None, "nobody's headers are kept"
    [backend] = world.live
    backend.write({"method": "notifications/message", "params": {"level": "info", "data": 1}})
    # What the bridge asks for itself passes no filter, but its answers do.
    assert set(watcher.of(None)) == {"out answer", "out notifications/message"}
    assert watcher.opened == [None]
    assert watcher.at_rest()
    world.end()


def test_two_callers_at_once_on_exclusive_processes(watcher: Watcher) -> None:
    world = World(Legacy, watcher=watcher)
    calls = {}
    for name in ("ann", "bob"):
        world.caller = named(name)
        calls[name] = world.call(name, "wait")
    world.run()
    for backend in world.live:
        backend.write({"method": "notifications/message", "params": {"level": "info", "data": 1}})
        for name in ("bob", "ann"):
            backend.finish(name)
    for name, call in calls.items():
        assert call.result["token"] == name
        assert watcher.of(name) == ["in tools/call", "out notifications/message", "out answer"]
    world.end()


def test_an_input_request_and_its_retry(watcher: Watcher) -> None:
    """A suspended call keeps its caller; the retry has one of its own."""
    world = World(Legacy, watcher=watcher)
    world.caller = named("ann")
    call = world.call("a", "ask")
    world.run(COLLECT_SECONDS)
    [backend] = world.live
    backend.write({"method": "notifications/message", "params": {"level": "info", "data": 1}})
    assert watcher.of("ann") == [
        *("in tools/call", "out elicitation/create", "out notifications/message")
    ]
    assert call.elicitation_message == "a"
    world.caller = named("ann again")
    retry = call.retry("x")
    world.run()
    assert retry.result["given"] == "x"
    assert watcher.of("ann again") == ["in answer", "out answer"]
    assert watcher.at_rest()
    world.end()


@pytest.mark.parametrize("kind", [Modern, Legacy])
def test_late_messages_for_a_client_that_left_have_no_caller(watcher: Watcher, kind: Any) -> None:
    """Nor do they have another client's."""
    world = World(kind, watcher=watcher, limit=1)
    world.caller = named("ann")
    call = world.call("a", "wait")
    world.run()
    [backend] = world.live
    backend.answers_cancelled = False
    [ident] = backend.calls
    call.disconnect()
    world.caller = named("bob")
    other = world.call("b")
    backend.write({"id": ident, "result": {"token": "a"}})
    world.run()
    assert other.result["token"] == "b"
    assert watcher.of("ann") == ["in tools/call"]
    assert watcher.of("bob") == ["in tools/call", "out answer"]
    world.end()


@pytest.mark.parametrize("kind", [Modern, Legacy])
def test_a_spare_process_has_no_caller(watcher: Watcher, kind: Any) -> None:
    world = World(kind, watcher=watcher, warm=1)
    world.pool.start()
    world.run(10)
    [backend] = world.live
    backend.write({"method": "notifications/message", "params": {"level": "info", "data": 1}})
    world.caller = named("ann")
    call = world.call("a")
    world.run()
    assert call.result["token"] == "a"
    assert (None, "out", "notifications/message") in watcher.filtered
    assert watcher.of("ann") == ["in tools/call", "out answer"]
    world.end()


class Suspicious:
    """Records messages with one caller's token that are attributed to another."""

    def __init__(self) -> None:
        self.right = 0
        self.wrong: list[tuple[str | None, bytes]] = []

    def session_opened(self, session: Any) -> None:
        if session.caller is not None:
            self.wrong.append((session.caller.identity, b"opened"))

    def session_closed(self, session: Any, reason: str) -> None:
        if session.caller is not None:
            self.wrong.append((session.caller.identity, b"closed"))

    def message_passed(self, session: Any, from_client: bool, line: bytes) -> None:
        self._check(session, line)

    def from_client(self, session: Any, line: bytes) -> bytes:
        self._check(session, line)
        return line

    from_backend = from_client

    def _check(self, session: Any, line: bytes) -> None:
        identity = None if session.caller is None else session.caller.identity
        tokens = set(_TOKEN.findall(line.decode()))
        asks = json.loads(line).get("method") == "tools/call"
        if tokens and (asks or identity is not None) and tokens != {identity}:
            self.wrong.append((identity, line))
        self.right += tokens == {identity}


_TOKEN = re.compile(r'"(?:token|message)": ?"(who [0-9])"')


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["echo", "wait", "ask", "retry", "leave", "finish"]),
            st.integers(0, 3),
            st.sampled_from([None, 0.0, COLLECT_SECONDS, 3.0]),
        ),
        max_size=30,
    ),
    st.sampled_from([Modern, Legacy]),
    st.integers(1, 3),
)
def test_no_caller_is_taken_for_another(
    steps: list[tuple[str, int, float | None]], kind: Any, limit: int
) -> None:
    watcher = Suspicious()
    world = World(kind, limit, watcher=watcher, queue_timeout=5)
    calls: list[Call] = []
    retried: set[Call] = set()
    for what, number, seconds in steps:
        who = f"who {number}"
        mine = [each for each in calls if each.message["params"]["arguments"]["token"] == who]
        world.caller = named(who)
        if what == "retry":
            for call in mine:
                done = call.completions and not call.refusal and call not in retried
                if done and "inputRequests" in call.lines[-1].get("result", {}):
                    retried.add(call)
                    calls.append(call.retry("x"))
        elif what == "leave":
            for call in mine[-1:]:
                call.disconnect()
        elif what == "finish":
            for backend in world.live:
                backend.finish(who)
        else:
            calls.append(world.call(who, what))
        if seconds is not None:
            world.run(seconds)
    for call in calls:
        call.disconnect()
    world.run(world.settings.input_timeout)
    world.end()
    assert watcher.wrong == []
    # Each answer has been seen by the filter and by the observer.
    answered = [call for call in calls if call.completions and not call.refusal]
    assert watcher.right >= 2 * len(answered)


# From the wire.


class Launcher(FakeLauncher):
    """A launcher of one kind of fake servers."""

    kind: type[FakeBackend] = FakeBackend

    def launch(self, receiver: Any, label: str) -> Any:
        launched = super().launch(receiver, label)
        self.backends[-1] = launched.result = self.kind(receiver, label)
        return launched


class Site:
    """A bridge in memory, with the fast path, and connections to it."""

    def __init__(
        self,
        watcher: Watcher | None,
        kind: type[FakeBackend] = FakeBackend,
        *,
        fast_path: bool = True,
        only: str = "",
    ) -> None:
        self.launcher = Launcher()
        self.launcher.kind = kind
        settings = BridgeSettings(
            servers=(ServerSettings(command="x"),),
            listen=(),
            trusted_proxies=(PROXY,),
            fast_path=fast_path,
        )
        watchers = [] if watcher is None else [watcher]
        self.reactor = FakeReactor()
        self.bridge = Bridge(
            settings,
            self.reactor,
            launcher=self.launcher,
            filters=[] if only == "observers" else watchers,
            observers=[] if only == "filters" else watchers,
            environment={},
        )

    def send(
        self, line: str, *headers: str, body: bytes = b"", end: Any = "192.0.2.1"
    ) -> StringTransport:
        """A request on a connection of its own, from that end."""
        site = self.bridge.site()
        channel = site.buildProtocol(None)
        peer = IPv4Address("TCP", end, 1) if isinstance(end, str) else end
        transport = StringTransport(peerAddress=peer)
        channel.makeConnection(transport)
        length = [f"Content-Length: {len(body)}"] if body else []
        head = "\r\n".join([f"{line} HTTP/1.1", "Host: h", *length, *headers])
        channel.dataReceived(head.encode("latin-1") + b"\r\n\r\n" + body)
        while len(site.turns):
            # On a slow machine it may have to wait for one.
            self.reactor.advance(0)
        return transport

    def post(self, body: bytes, *headers: str, **options: Any) -> StringTransport:
        """To `/mcp`."""
        usual = ["Accept: application/json, text/event-stream", "Content-Type: application/json"]
        return self.send("POST /mcp", *usual, *headers, body=body, **options)

    def ask(self, method: str, *headers: str, info: Any = None, **options: Any) -> StringTransport:
        """A request of 2026-07-28."""
        body = json.dumps(asking(method, _meta=meta(clientInfo=info))).encode()
        own = ["MCP-Protocol-Version: 2026-07-28", f"Mcp-Method: {method}"]
        return self.post(body, *own, *headers, **options)

    def answer_all(self) -> None:
        for backend in self.launcher.backends:
            for asked in map(json.loads, backend.sent):
                if asked.get("method") == "x":
                    backend.receiver.messages_received([answer(asked["id"], {})])


NOTE = b'{"jsonrpc":"2.0","method":"notifications/x"}'


@pytest.mark.parametrize("fast_path", [True, False])
def test_a_session_of_sse(watcher: Watcher, fast_path: bool) -> None:
    site = Site(watcher, fast_path=fast_path)
    end = UNIXAddress(None) if not fast_path else "192.0.2.1"
    stream = site.send("GET /sse", "X-Team: red", "x-team: blue", "Authorization: s3cret", end=end)
    [caller] = watcher.opened
    assert caller is not None
    assert (caller.identity, caller.address) == ("", "192.0.2.1" if fast_path else None)
    assert dict(caller.headers) == {
        "host": "h",
        "x-team": "red, blue",
        "authorization": "s3cret",
    }
    [session] = site.bridge.servers[0].sessions.values()
    target = f"POST /message?sessionId={session.ident}"
    site.send(target, "X-Team: green", body=NOTE)
    assert (caller.client_name, caller.client_version) == (None, None)
    site.send(target, body=initialize())
    site.send(target, body=initialize("another"))
    site.launcher.backends[0].receiver.messages_received([answer(1, {})])
    assert answer(1, {}) in stream.value()
    assert (caller.client_name, caller.client_version) == ("inspector", "2")
    assert watcher.callers == [caller] * 3
    assert len(watcher.of("")) == 4
    assert caller.headers["x-team"] == "red, blue"
    session.life.end("enough")
    site.launcher.backends[0].stopped.callback(None)
    assert watcher.closed == [caller]


def test_a_session_of_streamable_http(watcher: Watcher) -> None:
    """The request that opens it tells, so the caller is known from the beginning."""
    site = Site(watcher)
    forwarded = ("X-Forwarded-For: 198.51.100.7", "X-Team: red")
    first = site.post(initialize(), *forwarded, end=PROXY)
    [caller] = watcher.opened
    assert caller is not None
    assert (caller.address, caller.client_name) == ("198.51.100.7", "inspector")
    site.launcher.backends[0].receiver.messages_received([answer(1, {})])
    assert answer(1, {}) in first.value()
    [session] = site.bridge.servers[0].streamable.values()
    site.post(NOTE, f"Mcp-Session-Id: {session.ident}", "X-Team: blue")
    assert watcher.callers == [caller, caller]
    assert watcher.of("") == ["in initialize", "out answer", "in notifications/x"]
    assert (session.caller, caller.headers["x-team"]) == (caller, "red")


@pytest.mark.parametrize("kind", [ModernAtOnce, LegacyAtOnce])
def test_each_stateless_request_has_its_caller(watcher: Watcher, kind: type[FakeBackend]) -> None:
    """Also for those that come over the same connection."""
    site = Site(watcher, kind)
    asked = [
        site.ask("x", "X-Team: red", info={"name": "one", "version": 1}),
        site.ask("x", "X-Team: blue", "X-Forwarded-For: 127.0.0.1", end=PROXY),
    ]
    site.answer_all()
    assert [each.value().partition(b"\r\n")[0] for each in asked] == [b"HTTP/1.1 200 OK"] * 2
    one, other = (each for each in watcher.callers if each is not None)
    assert (one.address, one.client_name, one.client_version) == ("192.0.2.1", "one", None)
    assert (other.address, other.client_name) == ("127.0.0.1", None)
    assert (one.headers["x-team"], other.headers["x-team"]) == ("red", "blue")
    assert one.headers["mcp-method"] == "x"
    assert watcher.at_rest()


@pytest.mark.parametrize("only", ["filters", "observers"])
def test_filters_or_observers_alone_get_callers(watcher: Watcher, only: str) -> None:
    site = Site(watcher, ModernAtOnce, only=only)
    site.ask("x")
    site.answer_all()
    seen, unseen = watcher.filtered, watcher.observed
    if only == "observers":
        seen, unseen = unseen, seen
    assert [each for each in seen if each[0] == ""] == [("", "in", "x"), ("", "out", "answer")]
    assert unseen == []


def test_no_caller_is_made_without_filters_and_observers() -> None:
    site = Site(None, ModernAtOnce)
    site.send("GET /sse")
    site.post(initialize())
    transport = site.ask("x")
    server = site.bridge.servers[0]
    assert all(each.caller is None for each in server.unclosed)
    assert len(server.unclosed) == 3
    site.answer_all()
    assert transport.value().startswith(b"HTTP/1.1 200")
