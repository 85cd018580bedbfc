"""What is there for each client: the path of messages through a session, and its change."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.audit_log import AuditRecord
from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.scopes import ScopeRules
from mcpbridge.config.name_lists import read_name_lists
from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import BackendBusy, MessageRefused, NotJsonRpc, TooComplex
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, WHOLE_BYTES
from mcpbridge.mcp.own_request import own_request
from mcpbridge.processes.audited_calls import AuditedSession
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.permits import SessionLimiter
from mcpbridge.processes.visibility import VIEWS_KEPT, WARNINGS_KEPT, Visibility
from mcpbridge.server import Server
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.stateless.exchange import NO_LISTS, Exchange
from mcpbridge.testing import FakeLauncher, RecordingSink
from tests.fakes import no_jitter

DENIED = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}'
ALLOWED = b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"a"}}'
NOTE = b'{"jsonrpc":"2.0","method":"notifications/message"}'
TOLD = b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"x"}}'
UNKNOWN = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"Unknown tool: x"}}'
LIST = b'{"jsonrpc":"2.0","id":3,"result":{"tools":[{"name":"x"},{"name":"a"}]}}'
WITHOUT = b'{"jsonrpc":"2.0","id":3,"result":{"tools":[{"name":"a"}]}}'
UPDATE = (
    b'{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///x"}}'
)


def visibility(tools: Any = None, prompts: Any = None, resources: Any = None) -> Visibility:
    return Visibility(
        "s", read_name_lists(tools), read_name_lists(prompts), read_name_lists(resources)
    )


DENY_X = {"deny": ["x"]}
BOB = Access(Identity(issuer="token", subject="bob"), key="token#bob\0digest")


def test_nothing_is_asked_where_nothing_is_restricted() -> None:
    open_to_all = visibility()
    assert open_to_all.rules is None
    lines = [LIST]
    assert open_to_all.from_client("", [DENIED], None) is None
    assert open_to_all.to_client("", lines) is lines
    request = own_request("tools/call", {"name": "x"})
    assert open_to_all.judged("", request) is request


def test_what_is_left_of_a_post() -> None:
    lists = visibility(DENY_X)
    assert lists.from_client("", [ALLOWED], None) is None
    assert lists.from_client("", [ALLOWED, NOTE], None) is None
    post = lists.from_client("", [DENIED, ALLOWED, TOLD, NOTE], None)
    assert post == ([ALLOWED, NOTE], [1, 3], [UNKNOWN], {0, 2})


@pytest.mark.parametrize(
    ("batch", "passed", "answers"),
    [
        ([DENIED, ALLOWED, TOLD], b"[%b]" % ALLOWED, [UNKNOWN]),
        ([DENIED, TOLD], None, [UNKNOWN]),
        ([DENIED, b"1", b"[%b]" % DENIED], b"[1,[%b]]" % DENIED, [UNKNOWN]),
    ],
)
def test_what_is_left_of_a_batch(
    batch: list[bytes], passed: bytes | None, answers: list[bytes]
) -> None:
    """An array in an array is refused before, as no server has to read one."""
    post = visibility(DENY_X).from_client("", [b"[%b]" % b",".join(batch)], None)
    assert post is not None
    assert post.passed == ([] if passed is None else [passed])
    assert post.answers == answers


@pytest.mark.parametrize("line", [b"[%b,%b]" % (ALLOWED, NOTE), b"[]", b"1"])
def test_lines_that_pass_as_they_are(line: bytes) -> None:
    assert visibility(DENY_X).from_client("", [line], None) is None


def test_a_large_message_is_judged_by_its_digest() -> None:
    post = visibility(DENY_X).from_client("", [b"{what is large}"], [DENIED])
    assert post is not None
    assert (post.passed, post.answers) == ([], [UNKNOWN])


def test_requests_of_2026_07_28() -> None:
    lists = visibility(DENY_X, DENY_X, {"deny": ["file:///x"]})
    refused: list[tuple[str, Any]] = [
        ("tools/call", {"name": "x"}),
        ("prompts/get", {"name": "x"}),
        ("resources/read", {"uri": "file:///x"}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "x"}}),
    ]
    for method, params in refused:
        answer = lists.judged("", own_request(method, params))
        assert isinstance(answer, bytes)
        assert json.loads(answer)["error"]["code"] == -32602
    passed: list[tuple[str, Any]] = [
        ("tools/call", {"name": "a"}),
        ("tools/list", {}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "a"}}),
        ("subscriptions/listen", {"notifications": {}}),
    ]
    for method, params in passed:
        request = own_request(method, params)
        assert lists.judged("", request) is request


def test_the_number_of_views_has_a_bound() -> None:
    lists = visibility({"identities": {"token#*": DENY_X}})
    for number in range(VIEWS_KEPT + 2):
        assert lists.to_client(f"token#{number}", [LIST]) == [WITHOUT]
    assert len(lists._views) <= VIEWS_KEPT
    assert lists.to_client("", [LIST]) == [LIST]


def test_warnings_are_logged_once(log_lines: list[str]) -> None:
    lists = visibility({"deny": ["y"]})
    for _ in range(2):
        lists.to_client("", [LIST])
        lists.replace(*map(read_name_lists, ({"deny": ["y"]}, None, None)))
    warning = "server 's': tools.deny: 'y' matches none of the 2 tools that the server has listed"
    assert [each.partition(";")[0] for each in log_lines] == [warning]


def test_the_number_of_warnings_that_are_remembered_has_a_bound() -> None:
    assert visibility()._warned._limit == WARNINGS_KEPT


# Sessions.


class Filter:
    """Refuses what has `refused`, and turns `b` into `x`."""

    def from_client(self, session: Any, line: bytes) -> bytes:
        if b"refused" in line:
            raise MessageRefused("not here")
        return line.replace(b'"b"', b'"x"')

    from_backend = from_client


class Records:
    """An audit log, as far as sessions know it."""

    arguments = False

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.record = self.records.append


def by(name: str) -> Access:
    return Access(Identity(issuer="token", subject=name))


class AdmitsAll(AccessControl):
    """Access control for which every caller of the tests is somebody."""

    def __init__(self) -> None:
        super().__init__("s", [], rules=ScopeRules(), clock=Clock())

    def still_admits(self, access: Access) -> bool:
        return True


class World:
    """A server with lists, and its sessions."""

    def __init__(self, tools: Any = DENY_X, filters: Any = (), resources: Any = None) -> None:
        self.clock = Clock()
        self.launcher: Any = FakeLauncher()
        self.server = Server(
            ServerSettings(command="cat", name="s", tools=tools, resources=resources),
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=SessionLimiter(10),
            filters=filters,
            event_store=MemoryEventStore(),
            access_control=AdmitsAll(),
        )

    def run(self, coroutine: Coroutine[Deferred[Any], Any, Any]) -> Any:
        found: list[Any] = []
        Deferred.fromCoroutine(coroutine).addCallback(found.append)
        return found[0]

    def open_sse(self, access: Access | None = None) -> tuple[BackendSession, Any]:
        sink = RecordingSink()
        session = self.run(
            self.server.open_session(lambda session: sink, access=access or Access())
        )
        return session, sink

    def post(self, session: BackendSession, body: bytes) -> None:
        """Post a message at `/message`, and let what is due happen."""
        if not self.server.receive(session.ident, body):
            Deferred.fromCoroutine(self.server.receive_large(session.ident, body))
            for _ in range(100):
                self.clock.advance(0)
        self.clock.advance(0)


def sent(session: BackendSession) -> list[bytes]:
    found: list[bytes] = session.backend.sent
    return found


def test_a_session_without_what_is_denied() -> None:
    world = World(resources={"deny": ["file:///x"]})
    session, sink = world.open_sse()
    for each in (DENIED, TOLD, ALLOWED):
        world.post(session, each)
    session.messages_received([LIST, UPDATE])
    assert sent(session) == [ALLOWED]
    assert sink.lines == [UNKNOWN, WITHOUT]
    assert session.refused == 0


def test_a_session_of_an_unrestricted_server_has_nothing_to_ask() -> None:
    session, _ = World(tools=None).open_sse()
    assert session.visibility is None


def test_a_large_message_of_a_session() -> None:
    world = World()
    session, sink = world.open_sse()
    world.post(session, DENIED[:-1] + b" " * LARGE_BYTES + b"}")
    world.post(session, b"[%b,%b%b]" % (DENIED, b" " * LARGE_BYTES, ALLOWED))
    assert sent(session) == [b"[%b]" % ALLOWED]
    assert sink.lines == [UNKNOWN, UNKNOWN]


def test_a_batch_that_is_too_large_to_be_looked_at_at_once() -> None:
    for tools, error in ((DENY_X, TooComplex), (None, type(None))):
        world = World(tools)
        session, _ = world.open_sse()
        found: list[object] = []
        body = b"[%b%b]" % (ALLOWED, b" " * WHOLE_BYTES)
        posting = Deferred.fromCoroutine(world.server.receive_large(session.ident, body))
        posting.addErrback(lambda failure: failure.value).addCallback(found.append)
        while not found:
            world.clock.advance(0)
        assert isinstance(found[0], error)


def test_what_is_ambiguous_is_refused() -> None:
    world = World()
    session, _ = world.open_sse()
    with pytest.raises(NotJsonRpc):
        world.post(session, ALLOWED.replace(b"}}", b',"NAME":"x"}}'))
    assert sent(session) == []


def test_the_lists_see_what_the_client_sends_and_what_it_gets() -> None:
    """A filter may do what a client may not, and cannot show it what is not there."""
    world = World(filters=[Filter()])
    session, sink = world.open_sse()
    renamed = ALLOWED.replace(b'"a"', b'"b"')
    world.post(session, renamed)
    assert sent(session) == [DENIED.replace(b'"id":1', b'"id":2')]
    world.post(session, DENIED)
    session.messages_received([LIST.replace(b'"x"', b'"b"')])
    assert sink.lines == [UNKNOWN, WITHOUT]


def test_indexes_of_what_lists_and_filters_drop() -> None:
    session, _ = World(filters=[Filter()]).open_sse()
    refused = NOTE.replace(b"message", b"refused")
    assert session.post_to_backend([TOLD, refused, NOTE, ALLOWED]) == {0, 1}
    assert sent(session) == [b"\n".join([NOTE, ALLOWED])]


def test_nothing_is_answered_where_the_backend_is_busy() -> None:
    world = World()
    session, sink = world.open_sse()
    session.backend.busy = True
    with pytest.raises(BackendBusy):
        session.post_to_backend([DENIED, ALLOWED])
    world.clock.advance(1)
    assert sink.lines == []


def test_the_audit_log_has_a_call_and_its_error() -> None:
    world, log = World(), Records()
    session, _ = world.open_sse()
    session.audited = AuditedSession(
        log,  # type: ignore[arg-type]
        world.clock,
        server="s",
        session="1",
        transport="sse",
    )
    world.post(session, DENIED)
    [record] = log.records
    assert (record.outcome, record.name, record.code) == ("error", "x", -32602)


def test_each_identity_has_its_own_lists() -> None:
    world = World({"identities": {"token#bob": DENY_X}})
    (alice, for_alice), (bob, for_bob) = map(world.open_sse, map(by, ("alice", "bob")))
    for session in (alice, bob):
        session.post_to_backend([DENIED])
        session.messages_received([LIST])
    world.clock.advance(0)
    assert (sent(alice), for_alice.lines) == ([DENIED], [LIST])
    assert (sent(bob), for_bob.lines) == ([], [WITHOUT, UNKNOWN])


def visible(*sessions: BackendSession) -> list[Visibility | None]:
    return [each.visibility for each in sessions]


def test_other_lists_hold_for_living_sessions_at_once() -> None:
    world = World(tools=None)
    session, sink = world.open_sse()
    streamable = world.run(world.server.open_streamable())
    world.post(session, DENIED)
    nothing = read_name_lists(None)
    world.server.visibility.replace(read_name_lists(DENY_X), nothing, nothing)
    assert [world.server.reads_operations] == [True]
    assert visible(streamable, session) == [world.server.visibility] * 2
    world.post(session, DENIED)
    # The answer to a request from before.
    session.messages_received([LIST])
    world.server.visibility.replace(nothing, nothing, nothing)
    assert [world.server.reads_operations] == [False]
    assert visible(streamable, session) == [None, None]
    world.post(session, DENIED)
    session.messages_received([LIST])
    assert sent(session) == [DENIED, DENIED]
    assert sink.lines == [UNKNOWN, WITHOUT, LIST]


def test_the_kinds_whose_lists_have_changed_are_told() -> None:
    told: list[list[str]] = []
    nothing, some = read_name_lists(None), read_name_lists(DENY_X)
    lists = Visibility("s", nothing, nothing, nothing, lambda kinds: told.append([*kinds]))
    lists.replace(nothing, nothing, nothing)
    lists.replace(some, nothing, some)
    lists.replace(read_name_lists(DENY_X), some, nothing)
    assert told == [["tools", "resources"], ["prompts", "resources"]]


# Requests of 2026-07-28.


class Recorder:
    """A response."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def send(self, lines: list[bytes], final: bool) -> None:
        self.lines += lines

    def fail(self, refusal: Any) -> None:
        raise AssertionError(refusal)


def exchanged(method: str, lines: list[bytes], lists: Visibility | None) -> list[bytes]:
    """Return what a client gets."""
    recorder = Recorder()
    params: dict[str, object] = {"name": "a"}
    exchange = Exchange(own_request(method, params), BOB, recorder)
    exchange.visibility = lists
    exchange.deliver(lines, False)
    return recorder.lines


def test_answers_of_2026_07_28() -> None:
    lists = visibility({"identities": {"token#bob": DENY_X}}, None, {"deny": ["file:///x"]})
    assert exchanged("tools/list", [LIST], lists) == [WITHOUT]
    assert exchanged("tools/list", [LIST], visibility()) == [LIST]
    assert exchanged("tools/list", [LIST], None) == [LIST]
    assert exchanged("subscriptions/listen", [UPDATE], lists) == []
    for method in NO_LISTS:
        assert exchanged(method, [LIST], lists) == [LIST]


def test_a_request_for_what_is_denied_needs_no_process() -> None:
    world = World()
    recorder = Recorder()
    exchange = Exchange(own_request("tools/call", {"name": "x"}), ANYBODY, recorder)
    assert world.server.stateless.ask(exchange, lambda name: []) is None
    assert exchange.over
    assert recorder.lines == [UNKNOWN.replace(b'"id":1', b'"id":0')]
    assert world.launcher.backends == []


def test_a_subscription_to_what_is_denied_is_made_without_it() -> None:
    world = World(tools=None, resources={"deny": ["file:///x"]})
    wanted: dict[str, object] = {
        "notifications": {"resourceSubscriptions": ["file:///x", "file:///a"]}
    }
    exchange = Exchange(own_request("subscriptions/listen", wanted), ANYBODY, Recorder())
    waiting = world.server.stateless.ask(exchange, lambda name: [])
    assert waiting is not None
    waiting.close()
    notifications = json.loads(bytes(exchange.request.params["notifications"]))
    assert notifications == {"resourceSubscriptions": ["file:///a"]}
