"""
Requests of 2026-07-28 get the same response on the fast path and without it, whatever their bytes
are and whatever happens meanwhile.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.errors import Refused
from mcpbridge.jsonrpc.parsed_message import parse_message
from mcpbridge.mcp import modern_request
from mcpbridge.mcp.modern_request import ModernRequest, read_request
from mcpbridge.testing import FakeBackend
from mcpbridge.web import stateless_http
from mcpbridge.web.request_parser import Head, ReceivedRequest
from mcpbridge.web.stateless_http import read_post
from tests.examples import examples
from tests.unit.web.test_fast_path import CALL, FIELDS, IDENT, LIMIT, World, post, post_mcp
from tests.unit.web.test_stateless_http import TOOL, Legacy, Modern, answer, failure


class Instant(Modern):
    """A server that answers before the write of the request returns."""

    def send(self, line: bytes) -> None:
        super().send(line)
        message = json.loads(line)
        if message["method"] == "x":
            self.receiver.messages_received([answer(message["id"], {})])


class Talking(Instant):
    """The same, with a progress notification before the response."""

    def send(self, line: bytes) -> None:
        message = json.loads(line)
        meta = message.get("params", {}).get("_meta", {})
        if message["method"] == "x" and "progressToken" in meta:
            self.receiver.messages_received([progress(meta["progressToken"])])
        super().send(line)


KINDS: list[type[FakeBackend]] = [Modern, Modern, Legacy, Legacy, Instant, Talking, FakeBackend]


def progress(token: object) -> bytes:
    params = {"progressToken": token, "progress": 1}
    message = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
    return json.dumps(message).encode()


class Site(World):
    """A site whose servers for stateless requests are of one kind."""

    def __init__(self, kind: type[FakeBackend], *, fast_path: bool, **settings: Any) -> None:
        super().__init__(fast_path=fast_path, **settings)
        self.launcher.kind = kind

    def let(self, happen: str) -> None:
        """
        Let time pass, or let the servers send something about each request they have received.
        """
        if happen in ("wait", "tick"):
            self.clock.advance(COMMIT_SECONDS if happen == "wait" else COMMIT_SECONDS / 2)
            return
        for backend in self.launcher.backends[2:]:
            for line in list(backend.sent):
                message = json.loads(line)
                if "id" in message and message.get("method") in ("x", "tools/call", "tools/list"):
                    self._tell(backend, message, happen)

    def stopped(self) -> list[bool]:
        """Return which backends were stopped."""
        return ["stop" in each.events for each in self.launcher.backends]

    def _tell(self, backend: FakeBackend, message: dict[str, Any], what: str) -> None:
        if what == "progress":
            said = progress(message.get("params", {}).get("_meta", {}).get("progressToken"))
        elif what == "fail":
            said = failure(message["id"], -32602)
        else:
            result = {"tools": [TOOL]} if message["method"] == "tools/list" else {}
            said = answer(message["id"], result)
        backend.receiver.messages_received([said])


def asking(method: str = "x", **params: Any) -> bytes:
    """Return a complete request without spaces."""
    prefix = "io.modelcontextprotocol/"
    meta: dict[str, Any] = {prefix + "protocolVersion": "2026-07-28"}
    meta[prefix + "clientCapabilities"] = {}
    if method == "x":
        meta["progressToken"] = 1
    message = {"jsonrpc": "2.0", "id": "m", "method": method, "params": {"_meta": meta, **params}}
    return json.dumps(message, separators=(",", ":")).encode()


ASKED = asking()
#: A name that is no UTF-8.
NO_TEXT = ASKED.replace(b'"id"', b'"\x9b"')
CALLED = asking("tools/call", name="tool", arguments={"city": "Bonn"})
#: The same in a value.
NO_VALUE = CALLED.replace(b"Bonn", b"\xff")
#: A line end within a string, which JSON does not have.
NO_JSON = CALLED.replace(b"Bonn", b"Bo\nnn")
BODIES = [
    ASKED,
    CALLED,
    NO_VALUE,
    NO_JSON,
    asking("tools/call", name="tool", arguments={"city": "Ulm"}),
    asking("tools/call", name="tool"),
    asking("tools/call"),
    asking("x", it="refuse"),
    asking("ping"),
    asking("initialize"),
    asking("server/discover"),
    asking("tools/list"),
    asking("subscriptions/listen", notifications={}),
    asking("x", it="y" * LIMIT),
    ASKED.replace(b'"id":"m",', b""),
    ASKED.replace(b'"id":"m"', b'"id":null'),
    ASKED.replace(b'"id":"m"', b'"id":{}'),
    ASKED.replace(b'"id":"m"', b'"id":"m","id":7'),
    ASKED.replace(b'"id":"m"', b'"id":"\\ud800"'),
    ASKED.replace(b"2026-07-28", b"2025-11-25"),
    ASKED.replace(b"2026-07-28", b"2027-01-01"),
    ASKED.replace(b"{}", b"[]"),
    ASKED.replace(b"{}", b"NaN"),
    ASKED.replace(b"{}", b'{"x":' + b"[" * 60 + b"]" * 60 + b"}"),
    ASKED.replace(b'"progressToken":1', b'"progressToken":[]'),
    ASKED.replace(b",", b",\r\n "),
    ASKED.replace(b"x", b"\xff"),
    NO_TEXT,
    b"[%b]" % ASKED,
    b"\xef\xbb\xbf" + ASKED,
    ASKED[:-1],
    CALL,
    b'{"jsonrpc":"2.0","id":7,"result":{}}',
    b"{}",
    b"nonsense",
    b" ",
]
USUAL = [
    b"Host: h",
    b"Accept: application/json, text/event-stream",
    b"Content-Type: application/json",
    b"MCP-Protocol-Version: 2026-07-28",
]
ODD = st.sampled_from(
    [
        b"Host: evil",
        b"Origin: http://h",
        b"Accept: application/json",
        b"Accept: application/jsonx, text/event-stream",
        b"Accept: application/json,text/event-stream;q=0",
        b"Content-Type: text/plain",
        b"Content-Type: Application/JSON",
        b"MCP-Protocol-Version:  2026-07-28\t",
        b"MCP-Protocol-Version: 2026-07-28, 2026-07-28",
        b"MCP-Protocol-Version: 2025-11-25",
        b"MCP-Protocol-Version: 2027-01-01",
        b"MCP-Protocol-Version:",
        b"Mcp-Session-Id: " + IDENT.encode(),
        b"Mcp-Session-Id: x",
        b"Mcp-Method: x",
        b"mcp-method: tools/call ",
        b"Mcp-Method: X",
        b"Mcp-Method: \xff",
        b"Mcp-Method: x\x0b",
        b"Mcp-Method:",
        b"Mcp-Name: tool",
        b"MCP-NAME: =?base64?dG9vbA==?=",
        b"Mcp-Name: =?base64?dG9vbA?=",
        b"Mcp-Name: other",
        b"Mcp-Param-City: Bonn",
        b"mcp-param-city: =?base64?Qm9ubg==?=",
        b"Mcp-Param-City: Ulm",
        b"Mcp-Param-: x",
        b"Mcp-Param-Other: \xe4",
        b"traceparent: 00-1",
        b"traceparent: 00-2",
        b"Connection: close",
        b"Last-Event-ID: 0-0",
    ]
)
HAPPENINGS = st.lists(
    st.sampled_from(["answer", "answer", "answer", "fail", "progress", "wait", "tick"]), max_size=6
)


def ask(body: bytes, *more: bytes, usual: list[bytes] = USUAL) -> bytes:
    """Return a fast request; `more` are header lines."""
    lines = [b"POST /b/mcp HTTP/1.1", *usual, *more, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, b"", b""]) + body


X = ask(ASKED, b"Mcp-Method: x")
TOOLS = (b"Mcp-Method: tools/call", b"Mcp-Name: tool", b"Mcp-Param-City: Bonn")


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Generate a request, more often one of 2026-07-28 than not."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from([X, ask(CALLED, *TOOLS), post(CALL, b"Host: h")]))
    body = draw(st.sampled_from(BODIES))
    usual = list(USUAL)
    if draw(st.booleans()):
        method = b"tools/call" if b"tools/call" in body else b"x"
        usual += TOOLS if method != b"x" else [b"Mcp-Method: x"]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        field = draw(ODD)
        name = field.partition(b":")[0].lower()
        if draw(st.booleans()):
            usual = [each for each in usual if each.partition(b":")[0].lower() != name]
        usual.insert(draw(st.integers(0, len(usual))), field)
    if draw(st.integers(0, 4)) == 0:
        usual += draw(FIELDS)
    return ask(body, usual=usual)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Generate the bytes of a connection: several requests, some with changed bytes."""
    data = bytearray(b"".join(draw(st.lists(requests(), min_size=1, max_size=4))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=examples(500), deadline=None)
@given(streams(), st.lists(st.integers(0, 2000), max_size=4), st.sampled_from(KINDS), HAPPENINGS)
@example(X * 3, [], Modern, ["answer"] * 3)
@example(X * 3, [], Legacy, ["answer"] * 3)
@example(X * 2, [], Modern, ["tick", "answer", "tick", "tick", "answer"])
@example(X * 2, [], Legacy, ["answer", "wait", "progress"])
@example(X * 2, [], Modern, ["progress", "answer", "answer"])
@example(X * 2, [], Modern, ["fail", "fail"])
@example(X + post(CALL, b"Host: h") + X, [], Modern, ["wait", "answer", "answer"])
@example(X * 3 + post(CALL, b"Host: h"), [], Instant, [])
@example(X * 3 + post(CALL, b"Host: h"), [500], Talking, [])
@example(X * 2, [], FakeBackend, ["wait"] * 20)
@example(X + X.replace(b"2026", b"2025", 1), [], FakeBackend, ["tick"] * 40)
@example(ask(NO_TEXT, b"Mcp-Method: x") + X, [], Modern, ["answer"])
@example(post_mcp(NO_TEXT, b"Host: h") + X, [], Modern, ["answer"])
@example(ask(CALLED, *TOOLS) * 2, [], Modern, ["answer", "answer"])
@example(ask(CALLED, *TOOLS[:2]), [], Modern, [])
@example(ask(asking("ping"), b"Mcp-Method: ping") * 2 + X, [], Modern, ["answer"])
def test_fast_path_and_twisted_web_respond_alike(
    data: bytes, cuts: list[int], kind: type[FakeBackend], happenings: list[str]
) -> None:
    """The servers receive the same messages, also when the client leaves."""
    sites = [Site(kind, fast_path=True), Site(kind, fast_path=False)]
    for site in sites:
        site.receive(data, cuts)
        for happening in happenings:
            site.let(happening)
    assert sites[0].seen() == sites[1].seen()
    for site in sites:
        site.channel.connectionLost()
        assert site.site.budget.used == 0, "what was held is given back"
    assert sites[0].seen() == sites[1].seen()
    assert sites[0].stopped() == sites[1].stopped()


@pytest.mark.parametrize("kind", [Modern, Legacy])
@pytest.mark.parametrize("cuts", [[], [250, 400]])
def test_modern_requests_are_served_by_the_fast_path(
    kind: type[FakeBackend], cuts: list[int]
) -> None:
    """A response with one message has the status of that message."""
    site = Site(kind, fast_path=True)
    site.receive(X * 2, cuts)
    site.let("answer")
    site.let("fail")
    assert site.recognised == 2
    first, second = site.seen()[0].split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 OK\r\n")
    assert second.startswith(b"400 Bad Request\r\n")


def test_heads_that_share_a_cache_key_are_recognized_once() -> None:
    """But the name in each is compared with the body."""
    sites = [Site(Modern, fast_path=True), Site(Modern, fast_path=False)]
    fast_path: Any = sites[0].site.fast_path
    recognise = fast_path.recognise
    heads: list[Head] = []

    def noted(head: Head, loopback: int | None, end: Any) -> Any:
        heads.append(head)
        return recognise(head, loopback, end)

    fast_path.recognise = noted
    tool, other = (asking("tools/call", name=each) for each in ("tool", "other"))
    for site in sites:
        for body, name, trace in (
            (tool, b"tool", b"00-1"),
            (other, b"other", b"00-2"),
            (other, b"tool", b"00-3"),
            (tool, b"other", b"00-4"),
        ):
            fields = (b"Mcp-Method: tools/call", b"Mcp-Name: " + name, b"traceparent: " + trace)
            site.receive(ask(body, *fields), [])
            site.let("answer")
    assert len(heads) == 1
    assert sites[0].recognised == 4
    assert sites[0].seen() == sites[1].seen()
    statuses = [each[:3] for each in sites[0].seen()[0].split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"400", b"400"]


def test_request_that_is_handed_over_has_its_own_head() -> None:
    """And not that of an earlier one with the same cache key."""
    site = Site(Modern, fast_path=True)
    heads: list[Head] = []
    serve = site.channel.serve_ordinary

    def noted(received: ReceivedRequest) -> None:
        heads.append(received.head)
        serve(received)

    site.channel.serve_ordinary = noted
    for trace in (b"00-1", b"00-2"):
        site.receive(ask(ASKED, b"Mcp-Method: x", b"traceparent: " + trace), [])
        if trace == b"00-1":
            site.let("answer")
    site.let("progress")
    assert [each.values(b"traceparent") for each in heads] == [[b"00-2"]]


HEADERS = {
    "mcp-protocol-version": ["2026-07-28", " 2026-07-28", "2025-11-25", "2027-01-01"],
    "mcp-method": ["x", "tools/call", "tools/call ", "X", "\xff"],
    "mcp-name": ["tool", "=?base64?dG9vbA==?=", "other", " tool", ""],
}


@settings(deadline=None)
@given(
    st.sampled_from(BODIES),
    st.fixed_dictionaries(
        {}, optional={name: st.lists(st.sampled_from(HEADERS[name])) for name in HEADERS}
    ),
)
@example(
    CALLED, {name: [each[0]] for name, each in HEADERS.items()} | {"mcp-method": ["tools/call"]}
)
@example(ASKED, {name: [each[0]] for name, each in HEADERS.items()})
@example(
    NO_VALUE, {name: [each[0]] for name, each in HEADERS.items()} | {"mcp-method": ["tools/call"]}
)
@example(
    NO_JSON, {name: [each[0]] for name, each in HEADERS.items()} | {"mcp-method": ["tools/call"]}
)
@example(ASKED, {"mcp-protocol-version": ["2026-07-28"], "mcp-method": ["x", "x"]})
def test_request_is_read_alike_whether_its_client_is_known(
    body: bytes, fields: dict[str, list[str]]
) -> None:
    """One of a known client is read more quickly, if nothing is wrong with it."""
    server = Site(Modern, fast_path=True).server

    def outcome() -> object:
        try:
            found = read_post(server, body, lambda name: fields.get(name.lower(), []))
        except Refused as error:
            return type(error), str(error), error.ident
        if found is None:
            return None
        members = [getattr(found, name) for name in ModernRequest.__struct_fields__]
        return [
            {name: bytes(raw) for name, raw in each.items()} if isinstance(each, dict) else each
            for each in members
        ]

    modern_request._known_clients.clear()
    first = outcome()
    message = parse_message(ASKED)
    assert message is not None
    read_request(message, version_header="2026-07-28")
    assert outcome() == first


def test_usual_request_of_a_known_client_is_read_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(Modern, fast_path=True)
    site.receive(X, [])
    site.let("answer")
    monkeypatch.setattr(stateless_http, "parse_message", lambda _: pytest.fail("it was not"))
    site.receive(X, [])
    site.let("answer")
    assert site.seen()[0].count(b"HTTP/1.1 200 OK\r\n") == 2


@pytest.mark.parametrize("kind", [Modern, Legacy])
def test_request_for_which_a_process_is_free_has_no_deferred(
    kind: type[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(kind, fast_path=True)
    site.receive(X, [])
    site.let("answer")
    monkeypatch.setattr(Deferred, "fromCoroutine", lambda _: pytest.fail("it had to wait"))
    site.receive(X, [])
    site.let("answer")
    assert site.seen()[0].count(b"HTTP/1.1 200 OK\r\n") == 2


@pytest.mark.parametrize("method", ["ping", "initialize"])
def test_refusals_are_served_by_the_fast_path(method: str) -> None:
    """
    The error has the id of the request and a code of this revision; no server sees the request.
    """
    site = Site(Modern, fast_path=True)
    site.receive(ask(asking(method), b"Mcp-Method: " + method.encode()), [])
    assert site.recognised == 1
    assert site.seen()[0].startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b'"id":"m"' in site.seen()[0]


def test_immediate_responses_do_not_recurse() -> None:
    """However many requests arrive in one read."""
    sites = [Site(Instant, fast_path=True), Site(Instant, fast_path=False)]
    for site in sites:
        # The ordinary channel does go deeper, in its own way.
        times = 1 if site is sites[0] else 300
        for _ in range(times):
            site.receive(X * (300 // times), [])
    assert sites[0].recognised == 300
    assert sites[0].seen() == sites[1].seen()


def test_json_response_setting_turns_the_fast_path_off() -> None:
    """Notifications are not sent to the client then."""
    site, ordinary = (
        Site(Modern, fast_path=fast_path, json_response=True) for fast_path in (True, False)
    )
    for each in (site, ordinary):
        each.receive(X, [])
        each.let("progress")
        each.let("answer")
    assert site.recognised == 0
    assert site.seen() == ordinary.seen()
    assert site.seen()[0].startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("kind", [Modern, Legacy, FakeBackend])
@pytest.mark.parametrize("waits", [False, True])
def test_lost_connection_cancels_its_request_on_both_paths(
    kind: type[FakeBackend], waits: bool
) -> None:
    """Also if no process works on it yet."""
    sites = [Site(kind, fast_path=True), Site(kind, fast_path=False)]
    for site in sites:
        site.receive(X + X, [])
        if waits:
            site.let("wait")
        asked = len(site.launcher.backends[-1].sent)
        site.channel.connectionLost()
        if kind is not FakeBackend:
            assert len(site.launcher.backends[-1].sent) > asked or site.stopped()[-1]
        else:
            # The probe of the server's era goes on, for the next request.
            assert not site.stopped()[-1]
    assert sites[0].seen()[2:] == sites[1].seen()[2:]
    assert sites[0].stopped() == sites[1].stopped()
    assert sites[0].recognised == 1


def test_closing_connection_gets_no_response() -> None:
    """Its request is cancelled."""
    site = Site(Modern, fast_path=True)
    site.receive(X, [])
    site.transport.disconnecting = True
    site.let("progress")
    assert site.transport.value() == b""
    assert b"notifications/cancelled" in site.launcher.backends[2].sent[-1]
    site.let("answer")
    site.channel.connectionLost()
    assert site.transport.value() == b""


@pytest.mark.parametrize("it", ["", "refuse", "explode"])
def test_filters_that_see_the_caller_turn_the_fast_path_off(
    it: str, logged_failures: list[Any]
) -> None:
    """The caller needs all headers; sessions have read theirs when they were opened."""
    sites = [Site(Instant, fast_path=way, filtered=True) for way in (True, False)]
    for site in sites:
        site.receive(ask(asking("x", it=it), b"Mcp-Method: x") + post(CALL), [])
    assert sites[0].seen() == sites[1].seen()
    assert sites[0].recognised == 1
    assert len(logged_failures) == (2 if it == "explode" else 0)


def test_unexpected_error_is_answered_with_500_on_both_paths(
    logged_failures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The details are only in the log."""

    async def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    sites = [Site(Modern, fast_path=True), Site(Modern, fast_path=False)]
    for site in sites:
        monkeypatch.setattr(site.server.stateless, "ask", fail)
        site.receive(ask(asking("x"), b"Mcp-Method: x"), [])
    assert sites[0].seen() == sites[1].seen()
    assert sites[0].recognised == 1
    assert b" 500 " in sites[0].seen()[0]
    assert len(logged_failures) == 2
