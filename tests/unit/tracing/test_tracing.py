"""Which requests are recorded, with which spans, in sessions and without."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from mcpbridge.config.tuning import CLIENT_TEXT_CHARS, TRACED_CALLS
from mcpbridge.jsonrpc.envelope import peek, read_message
from mcpbridge.jsonrpc.parsed_message import parse_message
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.modern_request import ModernRequest, read_request
from mcpbridge.mcp.trace_context import TraceContext
from mcpbridge.processes.traced_calls import TracedSession, begin_request
from mcpbridge.tracing.tracing import ROOT, Attributes, HttpContext, Span, Tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RECORDED, UNRECORDED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


class FakeSpan:
    """A span, with what it was begun with and how it ended."""

    def __init__(self, number: int, name: str, kind: str, **given: Any) -> None:
        self.name, self.kind, self.given = name, kind, given
        self.traceparent = f"00-{number:032x}-{number:016x}-01"
        self.tracestate = ""
        self.ended: list[str] = []

    def end(self, error: str = "") -> None:
        """End it."""
        self.ended.append(error)


class FakeTracer:
    """Keeps the spans that it has begun."""

    def __init__(self, clock: Any) -> None:
        self.spans: list[FakeSpan] = []
        self.stopped = False

    def begin(
        self,
        name: str,
        kind: str,
        attributes: Attributes,
        *,
        parent: TraceContext | Span | None = None,
        link: TraceContext | None = None,
    ) -> FakeSpan:
        """Begin a span."""
        given = {"attributes": attributes, "parent": parent, "link": link}
        self.spans.append(FakeSpan(len(self.spans) + 1, name, kind, **given))
        return self.spans[-1]

    def stop(self) -> Deferred[None]:
        """Stop."""
        self.stopped = True
        return succeed(None)


class Place:
    """Tracing of a session, with a chance that the test sets."""

    def __init__(self, ratio: float = 1.0, chance: float = 0.5) -> None:
        self.tracers: list[FakeTracer] = []
        self.tracing = Tracing(ratio, Clock(), self._make, lambda: chance)
        self.tracing.start()
        self.session = self.open()

    def _make(self, clock: Any) -> FakeTracer:
        self.tracers.append(FakeTracer(clock))
        return self.tracers[-1]

    def open(self) -> TracedSession:
        return TracedSession(self.tracing, server="a", session="1234abcd", backend="pipe")

    @property
    def spans(self) -> list[FakeSpan]:
        """The spans of requests."""
        return [each for each in self.tracers[0].spans if each.kind != "internal"]

    def ask(
        self,
        ident: Any = 1,
        method: str = "tools/call",
        http: HttpContext = lambda: None,
        **params: Any,
    ) -> dict[str, Any]:
        """Have the client send a request; return what passes."""
        line, envelope = read_message(request(ident, method, **params))
        assert envelope is not None
        wanted = self.tracing.wants(line)
        passed = self.session.begin(line, envelope, http=http) if wanted else line
        self.session.sent(passed, envelope)
        found: dict[str, Any] = json.loads(passed)
        return found

    def answer(self, **message: Any) -> None:
        self.session.answered([json.dumps({"jsonrpc": "2.0", **message}).encode()])


def request(ident: Any, method: str, **params: Any) -> bytes:
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    return json.dumps(message if ident is None else {**message, "id": ident}).encode()


# What is recorded.


@pytest.mark.parametrize(
    ("ratio", "parent", "recorded"),
    [
        (1.0, None, True),
        (0.5, None, False),
        (0.51, None, True),
        (0.0, None, False),
        (0.0, RECORDED, True),
        (1.0, UNRECORDED, False),
        (1.0, "nonsense", True),
        (0.0, "nonsense", False),
    ],
)
def test_a_parent_decides_or_else_chance(ratio: float, parent: str | None, recorded: bool) -> None:
    place = Place(ratio)
    meta = {} if parent is None else {"traceparent": parent}
    passed = place.ask(name="echo", _meta=meta)
    assert bool(place.spans) == recorded
    if not recorded:
        assert passed["params"] == {"name": "echo", "_meta": meta}


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (request(1, "ping", _meta={"traceparent": RECORDED}), True),
        (request(1, "ping", _meta={"traceparent": RECORDED}, x="y" * LARGE_BYTES), False),
        (request(1, "ping"), False),
        (b"traceparent", False),
    ],
)
def test_what_may_name_a_parent_is_looked_at(message: bytes, wanted: bool) -> None:
    """Not in a large message, as that would keep others waiting."""
    assert Place(0.0).tracing.wants(message) == wanted
    assert Place(1.0).tracing.wants(message)


def test_the_ratio_may_change() -> None:
    place = Place(0.0)
    place.tracing.change(1.0)
    place.ask()
    assert len(place.spans) == 2


def test_nothing_is_recorded_before_the_start_and_after_the_end() -> None:
    place = Place()
    place.tracing.start()
    assert len(place.tracers) == 1
    place.tracing.stop()
    assert place.tracers[0].stopped
    before = len(place.tracers[0].spans)
    assert place.ask(name="a", _meta={"x": 1})["params"] == {"name": "a", "_meta": {"x": 1}}
    assert place.tracing.begin("mcpbridge spawn", {}) is None
    assert len(place.tracers[0].spans) == before
    place.tracing.stop()


# The spans of a request.


def test_a_call_has_a_span_as_server_and_one_as_client() -> None:
    place = Place()
    passed = place.ask(
        7,
        http=lambda: f"00-{TRACE}-{'1' * 16}-00",
        name="echo",
        _meta={"traceparent": RECORDED, "tracestate": "a=1"},
    )
    server, client = place.spans
    assert (server.name, server.kind, client.name, client.kind) == (
        *("tools/call echo", "server"),
        *("tools/call echo", "client"),
    )
    assert server.given["parent"] == TraceContext(int(TRACE, 16), int(SPAN, 16), True, "a=1")
    assert server.given["link"].span_id == int("1" * 16, 16)
    assert client.given["parent"] is server
    assert server.given["attributes"] == {
        "mcp.method.name": "tools/call",
        "mcpbridge.server": "a",
        "mcp.session.id": "1234abcd",
        "jsonrpc.request.id": 7,
        "gen_ai.tool.name": "echo",
        "gen_ai.operation.name": "execute_tool",
        "network.transport": "tcp",
    }
    assert client.given["attributes"]["network.transport"] == "pipe"
    assert passed["params"] == {"name": "echo", "_meta": {"traceparent": client.traceparent}}
    place.answer(id=7, result={})
    assert (server.ended, client.ended) == ([""], [""])
    place.answer(id=7, result={})
    assert len(server.ended) == 1


def test_other_methods_are_named_without_a_target() -> None:
    place = Place()
    place.ask(1, "resources/read", uri="file:///secret")
    place.ask(2, "prompts/get", name="p")
    place.ask(3, "tools/list", name="x")
    assert [each.name for each in place.spans[::2]] == [
        *("resources/read", "prompts/get p", "tools/list"),
    ]
    assert place.spans[2].given["attributes"]["gen_ai.prompt.name"] == "p"
    assert place.spans[0].given["parent"] is None


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"result": {"isError": True}}, "tool_error"),
        ({"error": {"code": -32602, "message": "no"}}, "-32602"),
        ({"result": 5}, ""),
    ],
)
def test_how_a_request_ends(message: dict[str, Any], error: str) -> None:
    place = Place()
    place.ask(1)
    place.answer(method="notifications/progress")
    place.answer(id=1, method="ping")
    place.answer(id="1", **message)
    assert [each.ended for each in place.spans] == [[error], [error]]


def test_a_cancelled_request_ends() -> None:
    place = Place()
    place.ask(1)
    place.ask(None, "notifications/cancelled", requestId=2)
    place.ask(None, "notifications/cancelled")
    place.ask(None, "notifications/initialized")
    assert place.spans[0].ended == []
    place.ask(None, "notifications/cancelled", requestId=1)
    assert place.spans[0].ended == ["cancelled"]
    assert len(place.spans) == 2


def test_a_refused_request_ends() -> None:
    place = Place()
    place.ask(1)
    for line in (request(1, "x"), request(None, "x")):
        envelope = peek(line)
        assert envelope is not None
        place.session.not_sent(envelope)
    assert place.spans[0].ended == ["refused"]


def test_all_spans_end_with_the_session() -> None:
    place = Place()
    place.ask(1)
    place.session.close()
    place.session.close()
    assert [each.ended for each in place.tracers[0].spans] == [[""], ["no_answer"], ["no_answer"]]
    assert place.tracers[0].spans[0].name == "mcpbridge session"


def test_of_two_requests_with_one_id_the_first_ends() -> None:
    place = Place()
    place.ask(1)
    place.ask(1)
    assert [each.ended for each in place.spans] == [["no_answer"], ["no_answer"], [], []]


def test_no_more_spans_are_open_than_a_number() -> None:
    place = Place()
    for number in range(TRACED_CALLS + 1):
        place.ask(number)
    assert len(place.session.waiting) == TRACED_CALLS
    assert place.spans[0].ended == ["no_answer"]


def test_a_large_message_passes_as_it_is() -> None:
    place = Place()
    sent: dict[str, Any] = {
        "name": "a",
        "_meta": {"traceparent": UNRECORDED},
        "x": "y" * LARGE_BYTES,
    }
    assert place.ask(1, **sent)["params"] == sent
    assert place.spans[0].name == "tools/call a"
    digest = request(2, "tools/call", name="b")
    envelope = peek(digest)
    assert envelope is not None
    assert place.session.begin(b"large", envelope, digest) == b"large"
    assert place.spans[2].name == "tools/call b"


def test_what_clients_invent_can_be_sent() -> None:
    """One span that cannot be encoded would take all that are sent with it along."""
    place = Place()
    place.ask(1, "evil/\ud800")
    place.ask(2, "tools/call", name="a\ud800" + "b" * 1000)
    assert place.spans[0].name == "_OTHER"
    assert place.spans[0].given["attributes"]["mcp.method.name"] == "_OTHER"
    name = "tools/call a?" + "b" * (CLIENT_TEXT_CHARS - 2)
    assert place.spans[2].name == name


def test_an_answer_in_a_batch_ends_its_spans() -> None:
    place = Place()
    place.ask(1)
    answers = [{"jsonrpc": "2.0", "id": 1, "result": {}}, 5, {"jsonrpc": "2.0", "method": "x"}]
    place.session.answered([json.dumps(answers).encode(), b"["])
    assert place.spans[0].ended == [""]


def test_ids_are_attributes_as_they_are_or_as_text() -> None:
    place = Place()
    for ident, shown in ((5, 5), ("x", "x"), (1.5, "1.5"), (1 << 63, str(1 << 63))):
        place.ask(ident)
        assert place.spans[-1].given["attributes"]["jsonrpc.request.id"] == shown


# Requests of 2026-07-28.


def modern(**meta: Any) -> ModernRequest:
    given = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "a", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
        **meta,
    }
    body = request(1, "tools/call", name="echo", _meta=given)
    message = parse_message(body)
    assert message is not None
    return read_request(message, version_header="2026-07-28")


def begin(place: Place, asked: ModernRequest, backend: str = "pipe", **more: bool) -> Any:
    """Begin the spans of a request, as `begin_request`."""
    parent = place.tracing.parent_of(asked.meta)
    if parent is None:
        return asked, None
    return begin_request(
        place.tracing, asked, parent, server="a", backend=backend, http=lambda: None, **more
    )


def test_a_stateless_request_names_another_parent() -> None:
    place = Place(0.0)
    asked = modern(traceparent=RECORDED)
    changed, spans = begin(place, asked, "tcp")
    server, client = place.spans
    assert spans is not None
    assert spans.traceparent == client.traceparent
    assert json.loads(bytes(changed.meta["traceparent"])) == client.traceparent
    assert json.loads(bytes(changed.params["_meta"]))["traceparent"] == client.traceparent
    assert json.loads(bytes(changed.outer["params"]))["_meta"]["traceparent"] == client.traceparent
    assert json.loads(bytes(changed.outer["params"]))["name"] == "echo"
    assert server.given["attributes"]["mcp.protocol.version"] == "2026-07-28"
    assert client.given["attributes"]["network.transport"] == "tcp"
    spans.end("-5")
    assert (server.ended, client.ended) == (["-5"], ["-5"])


def test_a_stateless_request_that_is_not_recorded_stays_as_it_is() -> None:
    place = Place(0.0)
    assert place.tracing.parent_of(modern(traceparent=UNRECORDED).meta) is None
    assert place.tracing.parent_of(modern().meta) is None
    # Nor does one that is large, or that comes when nothing is recorded any more.
    place.tracing.change(1.0)
    asked = modern()
    found, spans = begin(place, asked, large=True)
    assert found is asked
    assert spans is not None
    place.tracing.stop()
    assert begin(place, asked) == (asked, None)


def test_the_root_is_no_parent() -> None:
    assert ROOT.sampled
