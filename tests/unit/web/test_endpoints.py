"""
Requests that open and end sessions get the same response whether the fast path dispatches them to
their handlers or the resources of the site do, whatever happens meanwhile.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.errors import CannotStart
from mcpbridge.testing import FakeBackend
from mcpbridge.twisted_internals import AT_ONCE_BYTES
from tests.examples import examples
from tests.unit.web.test_fast_path import (
    CALL,
    FIELDS,
    IDENT,
    ODD,
    STREAMABLE,
    Lines,
    Socket,
    World,
    head_of,
    post,
)

INITIALIZE = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25"}}'
REFUSAL = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no"}}'
NOTE = b'{"jsonrpc":"2.0","method":"notifications/message"}'
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f-]{21}")


class Place(World):
    """A site whose backends start at once, or when they are told to."""

    def __init__(self, *, fast_path: bool, late: bool = False, **settings: Any) -> None:
        super().__init__(fast_path=fast_path, **settings)
        self.launcher.kind = FakeBackend
        self.starting: list[Deferred[Any]] = []
        if late:
            self.launch = self.launcher.launch
            self.launcher.launch = self.launch_late  # type: ignore[method-assign]

    def launch_late(self, receiver: Any, label: str) -> Deferred[Any]:
        def start(_: object) -> Any:
            return self.launch(receiver, label)

        starting: Deferred[Any] = Deferred()
        self.starting.append(starting)
        return starting.addCallback(start)

    def let(self, happen: str) -> None:
        """Let something happen to the sessions that were opened."""
        if happen == "lose":
            self.channel.connectionLost()
        elif happen == "wait":
            self.clock.advance(COMMIT_SECONDS)
        elif happen == "keepalive":
            self.clock.advance(self.server.settings.keepalive_interval)
        elif happen in ("start", "fail"):
            starting, self.starting = self.starting, []
            for each in starting:
                if happen == "start":
                    each.callback(None)
                else:
                    each.errback(CannotStart("no such program"))
        else:
            for backend in self.launcher.backends[2:]:
                if happen == "stop":
                    backend.receiver.output_closed("it has ended")
                    if not backend.stopped.called:
                        backend.stopped.callback(None)
                else:
                    line = {"answer": ANSWER, "refuse": REFUSAL, "say": NOTE}[happen]
                    backend.receiver.messages_received([line])

    def observed(self) -> tuple[object, ...]:
        """Return all that clients and backends can observe; ids are random."""
        answers, *rest = self.seen()
        return (
            _ID.sub(b"ID", answers),
            *rest,
            [each.events for each in self.launcher.backends],
            [len(self.server.sessions), len(self.server.streamable)],
            self.site.budget.used,
        )


def request(method: bytes, target: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    length = [b"Content-Length: %d" % len(body)] if body else []
    head = [b"%b %b HTTP/1.1" % (method, target), *length, *fields, b"", b""]
    return b"\r\n".join(head) + body


OPEN = request(b"GET", b"/b/sse", b"Host: h", b"Accept: text/event-stream")
BEGIN = request(b"POST", b"/b/mcp", b"Host: h", *STREAMABLE[1:], body=INITIALIZE)
LISTEN = request(b"GET", b"/b/mcp", b"Host: h", b"Accept: text/event-stream", STREAMABLE[0])
END = request(b"DELETE", b"/b/mcp", b"Host: h", STREAMABLE[0])
UNKNOWN = END.replace(IDENT.encode(), IDENT.replace("1", "9").encode())


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Generate a request that opens or ends a session or a stream, more often a plain one."""
    plain = draw(st.sampled_from([OPEN, BEGIN, LISTEN, END, post(CALL)]))
    if draw(st.booleans()):
        return plain
    method = draw(st.sampled_from([b"GET", b"POST", b"DELETE", b"HEAD", b"PUT", b"get"]))
    paths = [b"/b/sse", b"/b/mcp", b"/b/mcp/", b"/b/sse/", b"/b//sse", b"/b/sse?x=1", b"/%62/sse"]
    target = draw(st.sampled_from(paths))
    fields = [b"Host: h", *draw(st.lists(st.sampled_from(STREAMABLE), unique=True))]
    fields += [each for each in [draw(ODD)] if each]
    fields += draw(FIELDS)
    body = draw(st.sampled_from([b"", INITIALIZE, CALL, b"nonsense"]))
    version = draw(st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0"]))
    data = request(method, target, *fields, body=body)
    return data.replace(b"HTTP/1.1", version, 1)


HAPPENS = st.lists(
    st.sampled_from(
        [
            *("start", "start", "answer", "answer", "fail", "refuse", "say", "wait", "stop"),
            *("lose", "keepalive"),
        ]
    ),
    max_size=5,
)


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(requests(), min_size=1, max_size=3).map(b"".join),
    st.lists(st.integers(0, 10_000), max_size=3),
    HAPPENS,
    st.booleans(),
)
@example(OPEN, [], ["say", "lose"], False)
@example(OPEN, [], ["say", "stop"], False)
@example(OPEN + OPEN, [], ["start", "stop", "start", "say", "lose"], True)
@example(OPEN, [], ["lose", "start"], True)
@example(OPEN, [], ["fail"], True)
@example(BEGIN + END, [], ["answer"], False)
@example(BEGIN, [], ["refuse"], False)
@example(BEGIN, [], ["say", "answer"], False)
@example(BEGIN, [], ["lose", "start"], True)
@example(BEGIN, [], ["fail"], True)
@example(BEGIN, [], ["start", "lose", "answer"], True)
@example(BEGIN, [], ["keepalive", "answer"], False)
@example(LISTEN, [], ["say", "lose"], False)
@example(END + UNKNOWN + LISTEN, [], [], False)
def test_both_ways_to_a_handler_respond_alike(
    data: bytes, cuts: list[int], happens: list[str], late: bool
) -> None:
    places = [Place(fast_path=way, late=late) for way in (True, False)]
    lost = False
    for place in places:
        place.receive(data, cuts)
    for happen in happens:
        if happen == "lose":
            if lost:
                continue
            lost = True
        for place in places:
            place.let(happen)
            place.let_turns_pass()
        assert places[0].observed() == places[1].observed()
    assert places[0].observed() == places[1].observed()
    for place in places:
        if not lost:
            place.let("lose")
        place.let("start")
    assert places[0].observed() == places[1].observed()
    assert places[0].site.budget.used == 0
    assert not places[0].streamable.router.has_sinks


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (OPEN, True),
        (OPEN.replace(b"/sse", b"/sse/"), True),
        (BEGIN, True),
        (LISTEN, True),
        (END, True),
        (OPEN.replace(b"GET", b"HEAD"), False),
        (OPEN.replace(b"/b/sse", b"/b/sse?x"), False),
        (OPEN.replace(b"/b/sse", b"/%62/sse"), False),
        (OPEN.replace(b"Host: h", b"Host: evil"), False),
        (OPEN.replace(b"Host: h", b"Host: h\r\nOrigin: http://h"), False),
        (OPEN.replace(b"Host: h", b"Host: h\r\nSec-Fetch-Site: none"), False),
        (OPEN.replace(b"Host: h", b"Host: h\r\nUser-Agent: Mozilla/5.0"), False),
        (OPEN.replace(b"Host: h", b"Host: h\r\nPurpose: prefetch"), False),
        (OPEN.replace(b"Host: h", b"Host: h\r\nExpect: 100-continue"), False),
        (OPEN.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (post(CALL), False),
    ],
)
def test_plain_requests_are_dispatched_directly(data: bytes, plain: bool) -> None:
    """Otherwise the comparison would prove nothing."""
    path: Any = World(fast_path=True).site.fast_path
    assert (path.endpoint(head_of(data)) is not None) is plain


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (END, True),
        (END.replace(b"/mcp", b"/mcp/"), True),
        (END.replace(b"Host", b"MCP-Protocol-Version: 2025-06-18\r\nHost"), True),
        (END.replace(b"Host", b"MCP-Protocol-Version: 2026-07-28\r\nHost"), False),
        (END.replace(b"Host", b"MCP-Protocol-Version: x\r\nHost"), False),
        (END.replace(b"Host", b"MCP-Protocol-Version:\r\nHost"), False),
        (END.replace(b"Host", b"Connection: close\r\nHost"), False),
        (END.replace(b"Host: h", b"Host: evil"), False),
        (END.replace(b"Host: h", b"Host: h\r\nOrigin: http://h"), False),
        (END.replace(b"/mcp", b"/mcp?x"), False),
        (END.replace(b"/mcp", b"/sse"), False),
        (END.replace(b"DELETE", b"GET"), False),
        (UNKNOWN, False),
        (request(b"DELETE", b"/b/mcp", b"Host: h"), False),
        (request(b"DELETE", b"/b/mcp", b"Host: h", STREAMABLE[0], body=CALL), True),
    ],
)
def test_plain_end_of_a_session_needs_no_request_object(data: bytes, plain: bool) -> None:
    """With the same response as without the fast path; a body is no reason for another one."""
    place, ordinary = Place(fast_path=True), Place(fast_path=False)
    path: Any = place.site.fast_path
    assert (path.end_session(head_of(data)) is not None) is plain
    place = Place(fast_path=True)
    for each in (place, ordinary):
        each.receive(data, [])
    assert place.observed() == ordinary.observed()
    assert ("stop" in place.backend2.events) is (b"DELETE" in data and b"200 OK" in place.seen()[0])


@pytest.mark.parametrize("fast_path", [True, False])
def test_defect_at_the_end_of_a_session_is_answered_with_500(
    fast_path: bool, logged_failures: list[Any]
) -> None:
    place = Place(fast_path=fast_path)

    class Defect:
        def end(self, reason: str) -> None:
            raise RuntimeError("a defect")

    place.server.streamable[IDENT].life = Defect()  # type: ignore[assignment]
    place.receive(END, [])
    assert place.transport.value().startswith(b"HTTP/1.1 500 ")
    assert len(logged_failures) == 1


@pytest.mark.parametrize("public_path", [None, "/outside"])
def test_stream_names_the_path_to_post_to(public_path: str | None) -> None:
    """As the client sees it."""
    for fast_path in (True, False):
        place = Place(fast_path=fast_path)
        object.__setattr__(place.server.settings, "public_path", public_path)
        place.receive(OPEN, [])
        expected = b"data: %b/message?sessionId=" % (public_path or "/b").encode()
        assert expected in place.transport.value()
        place.channel.connectionLost()


def test_opening_and_ending_are_the_same_in_the_access_log() -> None:
    """A stream has its line when it is over."""
    logs = []
    for fast_path in (True, False):
        place = Place(fast_path=fast_path, access_log=True)
        log: Any = Lines()
        place.site.access_log = log
        for data in (BEGIN, END, UNKNOWN, OPEN):
            place.receive(data, [])
            place.let("answer")
        place.let("stop")
        logs.append([(*asked[:3], bool(asked.session), *rest) for asked, *rest in log.lines])
    assert logs[0] == logs[1]
    assert [line[4] for line in logs[0]] == [200, 200, 404, 200]


@pytest.mark.parametrize("fast_path", [True, False])
def test_defect_of_a_handler_is_answered_with_500(
    fast_path: bool, logged_failures: list[Any]
) -> None:
    """The details are only in the log."""
    place = Place(fast_path=fast_path)

    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    place.server.open_session = explode  # type: ignore[method-assign,assignment]
    place.receive(OPEN + post(CALL), [])
    statuses = re.findall(rb"HTTP/1.1 (\d+)", place.transport.value())
    assert statuses == [b"500", b"202"]
    assert b"a defect" not in place.transport.value()
    assert len(logged_failures) == 1


@pytest.mark.parametrize("data", [OPEN, BEGIN])
@pytest.mark.parametrize("defect", [True, False])
def test_what_fails_after_the_connection_is_lost_is_only_logged(
    data: bytes, defect: bool, logged_failures: list[Any]
) -> None:
    """A client that leaves is no failure."""
    place = Place(fast_path=True, late=True)
    place.receive(data, [])
    if defect:

        def cancelled(starting: Deferred[Any]) -> None:
            starting.errback(RuntimeError("a defect"))

        place.starting[0]._canceller = cancelled
    place.let("lose")
    assert len(logged_failures) == defect
    assert place.transport.value() == b""


class Descriptor:
    """A socket that takes all that is written to it at once, and counts the writes."""

    dataBuffer = b""
    _tempDataLen = 0
    connected = True
    disconnecting = False

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.later: list[bytes] = []

    def write_now(self, data: bytes) -> int:
        self.written.append(data)
        return len(data)

    def write(self, data: bytes) -> None:
        self.later.append(data)


@pytest.mark.parametrize("data", [OPEN, BEGIN, LISTEN, END, UNKNOWN])
def test_response_begins_with_one_write_at_once(data: bytes) -> None:
    """Its head with the beginning of its body, or without one."""
    place, ordinary = Place(fast_path=True), Place(fast_path=False)
    descriptor = place.channel._descriptor = Descriptor()
    for each in (place, ordinary):
        each.receive(data, [])
        each.let("answer")
    [written] = descriptor.written[:1] if data is OPEN else descriptor.written
    expected, found = (
        re.sub(rb"\r\nDate: [^\r]+", b"", _ID.sub(b"ID", each))
        for each in (ordinary.transport.value(), written)
    )
    assert expected.startswith(found)
    assert b"\r\n\r\n" in found
    assert (place.transport.value(), descriptor.later) == (b"", [])


def test_large_body_is_left_to_the_transport() -> None:
    """It is not copied."""
    place = Place(fast_path=True)
    socket = place.channel._descriptor = Socket()
    large = b"x" * (AT_ONCE_BYTES + 1)
    place.channel.writeSequence([b"before", large, b"behind"])
    assert socket.written == [b"before"]
    assert socket.dataBuffer is large
    assert socket._tempDataBuffer == [b"behind"]
