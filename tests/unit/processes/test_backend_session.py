"""A session: its life, the path of its messages, and the server that opens it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn
from uuid import UUID

import pytest
from msgspec import UNSET
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    ATTENDED_FACTOR,
    LAUNCH_SECONDS,
    MEASURED_REQUESTS,
    STDERR_TAIL_CHARS,
    STDERR_TAIL_LINES,
    UNREAD_BYTES_PER_SECOND,
)
from mcpbridge.counters import ServerCounters
from mcpbridge.errors import (
    BackendBusy,
    BackendFailed,
    CannotStart,
    EmptyBody,
    MessageRefused,
    MessageTooLarge,
    NotJson,
    NotJsonRpc,
    ShuttingDown,
    TooManySessions,
    UnknownSession,
)
from mcpbridge.interfaces import (
    IBackendReceiver,
    ICaller,
    IMessageFilter,
    ISessionInfo,
    ISessionObserver,
)
from mcpbridge.jsonrpc.envelope import read_message
from mcpbridge.jsonrpc.malformed_output import Lost
from mcpbridge.mcp.open_requests import OpenRequests
from mcpbridge.processes.backend_faults import LOST_KEPT, LOST_SECONDS, SHOWN_CHARS
from mcpbridge.processes.backend_session import LABEL_CHARS, BackendSession
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.measured_calls import MeasuredSession, Measures
from mcpbridge.processes.message_filters import MAX_FILTERED_BATCH, MessageFilters
from mcpbridge.processes.permits import SessionLimiter
from mcpbridge.processes.throttle import WINDOW_SECONDS
from mcpbridge.processes.traced_calls import TracedSession
from mcpbridge.server import Server
from mcpbridge.testing import FakeBackend, FakeLauncher, RecordingSink
from mcpbridge.tracing.tracing import Tracing
from tests.fakes import no_jitter
from tests.unit.tracing.test_tracing import FakeTracer

IDENT = "0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10"
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"secret":"swordfish"}}'
REPLY = b'{"jsonrpc":"2.0","id":1,"result":{"secret":"swordfish"}}'
NOTE = b'{"jsonrpc":"2.0","method":"notifications/message"}'
ASKED = b'{"jsonrpc":"2.0","id":"x","method":"roots/list"}'


def fail(*_: object) -> NoReturn:
    raise RuntimeError("this step fails")


@implementer(ISessionObserver)
class Observer:
    """Records the calls of its methods."""

    def __init__(self, order: list[str] | None = None) -> None:
        self.told = [] if order is None else order

    def session_opened(self, session: Any) -> None:
        self.told.append("opened")

    def message_passed(self, session: Any, from_client: bool, line: bytes) -> None:
        self.told.append(f"{'in' if from_client else 'out'} {line.decode()}")

    def session_closed(self, session: Any, reason: str) -> None:
        self.told.append(f"closed: {reason}")


@implementer(ISessionObserver)
class FailingObserver:
    session_opened = message_passed = session_closed = fail


@implementer(IMessageFilter)
class Filter:
    """Replaces words; refuses a message with `forbidden`, fails on one with `broken`."""

    def __init__(self, old: bytes = b"", new: bytes = b"") -> None:
        self.old, self.new = old, new

    def from_client(self, session: Any, line: bytes) -> bytes:
        if b"request" in line:
            raise MessageRefused("not here")
        if b"broken" in line:
            raise RuntimeError("a defect of the filter")
        return line.replace(self.old, self.new) if self.old else line

    from_backend = from_client


class Made:
    """A live session with a fake backend and sink; `order` has the calls that all of them got."""

    def __init__(self, filters: list[Filter] | None = None, **options: Any) -> None:
        self.order: list[str] = []
        self.clock = Clock()
        self.backend = FakeBackend()
        self.stream = RecordingSink()
        self.backend.events = self.stream.events = self.order
        self.session = BackendSession(
            ident=IDENT,
            server="cat",
            clock=self.clock,
            permit=self,
            forget=lambda _: self.order.append("forget"),
            closed=lambda _: self.order.append("closed"),
            filters=MessageFilters(filters) if filters else None,
            **options,
        )
        self.session.backend = self.backend
        self.session.sink = self.stream

    def release(self) -> None:
        self.order.append("release")

    def post(self, line: bytes) -> None:
        self.session.client_message(*read_message(line))


# The end of a session.

TEARDOWN = ["forget", "stop_keepalive", "close", "stop"]
AFTERWARDS = ["release", "closed"]


def test_the_interfaces() -> None:
    session = Made().session
    verifyObject(ISessionInfo, session)
    verifyObject(ICaller, Caller(None, {}))
    verifyObject(IBackendReceiver, session)
    verifyObject(ISessionObserver, Observer())
    verifyObject(IMessageFilter, Filter())


@pytest.mark.parametrize(
    "end",
    [
        lambda session: session.life.end("the client went away"),
        lambda session: session.output_closed("the backend ended"),
        lambda session: (session.input_closed("no more"), session.output_closed("ended")),
        lambda session: (session.input_closed("no more"), session.life.end("the client left")),
    ],
)
def test_the_order_of_the_teardown_is_fixed(end: Callable[[BackendSession], None]) -> None:
    """promise: the keepalive stops, then the stream, then the backend; the permit last."""
    made = Made()
    end(made.session)
    assert [step for step in made.order if step != "forget"] == TEARDOWN[1:]
    assert made.order[0] == "forget"
    made.backend.stopped.callback(None)
    assert made.order[-2:] == AFTERWARDS
    assert made.session.ended.called


def test_the_permit_is_returned_once_when_the_process_tree_is_gone() -> None:
    """promise: the permit returned; live backends never exceed the limit."""
    made = Made()
    made.session.life.end("first")
    made.session.life.end("second")
    made.session.input_closed("third")
    made.session.output_closed("fourth")
    made.clock.advance(3600)
    assert "release" not in made.order
    made.backend.stopped.callback(None)
    made.session.life.gone()
    made.session.life.end("fifth")
    made.session.output_closed("sixth")
    assert made.order == TEARDOWN + AFTERWARDS
    assert made.session.reason == "first"


def test_a_backend_that_stops_at_once() -> None:
    made = Made()
    made.backend.stopped = succeed(None)
    made.session.life.end("over")
    assert made.order == TEARDOWN + AFTERWARDS


def test_ending_during_the_teardown_changes_nothing() -> None:
    made = Made()
    made.stream.closing = lambda: made.session.life.end("again")
    made.session.life.end("first")
    assert made.order == TEARDOWN
    assert made.session.reason == "first"


@pytest.mark.parametrize(
    ("where", "step"),
    [
        ("session", "forget"),
        ("stream", "stop_keepalive"),
        ("stream", "close"),
        ("module", "log_end"),
        ("observer", "session_closed"),
        ("session", "closed"),
        ("made", "release"),
    ],
)
def test_a_teardown_step_that_raises_skips_no_other(
    where: str, step: str, logged_failures: list[Failure], monkeypatch: pytest.MonkeyPatch
) -> None:
    """promise: each step guarded, so that a step that raises skips no other."""
    made = Made(observers=[observer := Observer()])
    observer.told = made.order
    holder: Any = {"made": made, "observer": observer}.get(where) or getattr(made, where, None)
    if step == "log_end":
        monkeypatch.setattr(f"mcpbridge.processes.backend_session.{step}", fail)
    else:
        setattr(holder, step, fail)
    made.session.life.end("over")
    made.backend.stopped.callback(None)
    every = [*TEARDOWN, "release", "closed: over", "closed"]
    failed = "closed: over" if step == "session_closed" else step
    assert made.order == [each for each in every if each != failed]
    assert made.session.ended.called
    assert [failure.getErrorMessage() for failure in logged_failures] == ["this step fails"]


@pytest.mark.parametrize("stop", [fail, lambda: None])
def test_a_backend_that_may_still_run_keeps_its_permit(
    stop: Any, logged_failures: list[Failure], log_lines: list[str]
) -> None:
    """Where `stop` raises or returns no Deferred the limit must still hold."""
    made = Made()
    setattr(made.backend, "stop", stop)  # noqa: B010
    made.session.life.end("over")
    assert made.order == TEARDOWN[:-1]
    assert not made.session.ended.called
    assert f"session {IDENT[:8]} keeps its slot" in log_lines


def test_a_backend_that_failed_to_stop_keeps_its_permit(
    logged_failures: list[Failure], log_lines: list[str]
) -> None:
    made = Made()
    made.session.life.end("over")
    made.backend.stopped.errback(Failure(RuntimeError("stopping failed")))
    assert made.order == TEARDOWN
    assert len(logged_failures) == 1
    assert f"session {IDENT[:8]} keeps its slot" in log_lines


def test_output_still_passes_while_the_session_drains() -> None:
    """The backend takes no more messages, but what it has written still goes out."""
    made = Made()
    made.session.input_closed("the backend ended (exit status 1)")
    assert made.order == ["forget"]
    made.session.messages_received([REPLY])
    made.session.diagnostics_received([b"bye"])
    assert made.stream.lines[0] == REPLY
    assert len(made.stream.lines) == 2
    made.session.output_closed("the backend ended (exit status 1)")
    assert made.session.reason == "the backend ended (exit status 1)"


def test_nothing_passes_after_the_end() -> None:
    made = Made(observers=[observer := Observer()])
    made.session.life.end("over")
    made.session.messages_received([REPLY])
    made.session.diagnostics_received([b"bye"])
    assert made.stream.lines == []
    assert observer.told == []


# The path of a message.


def test_messages_pass_unchanged() -> None:
    """beat: a one-line body passes byte-identical; keep: a line of stdout as it was written."""
    made = Made(observers=[observer := Observer()])
    made.post(CALL)
    made.session.messages_received([REPLY, b"[1]", b"{what is this}"])
    assert made.backend.sent == [CALL]
    assert made.stream.lines == [REPLY, b"[1]", b"{what is this}"]
    assert observer.told == [
        f"in {CALL.decode()}",
        f"out {REPLY.decode()}",
        "out [1]",
        "out {what is this}",
    ]


def test_messages_are_counted() -> None:
    made = Made()
    made.post(CALL)
    made.post(b"[\n1]")
    made.session.messages_received([REPLY, NOTE])
    made.session.messages_received([])
    session = made.session
    assert (session.messages_in, session.bytes_in) == (2, len(CALL) + 4)
    assert (session.messages_out, session.bytes_out) == (2, len(REPLY) + len(NOTE))


def test_every_message_of_a_batch_is_counted() -> None:
    made = Made()
    made.session.send_to_backend([CALL, NOTE])
    assert (made.session.messages_in, made.session.bytes_in) == (2, len(CALL) + len(NOTE))


def test_a_busy_backend_gets_nothing_and_nothing_is_counted() -> None:
    """promise: beyond the bound the POST is refused, nothing is dropped silently."""
    made = Made(observers=[observer := Observer()])
    made.backend.busy = True
    with pytest.raises(BackendBusy):
        made.post(CALL)
    assert (made.session.messages_in, observer.told) == (0, [])


PONG = b'{"jsonrpc":"2.0","id":"ping:1","result":{}}'


def test_the_answer_to_our_ping_is_consumed() -> None:
    """beat: the answer to the bridge's own ping is consumed by the bridge."""
    made = Made(observers=[observer := Observer()], filters=[Filter(b"ping", b"pong")])
    made.session.pings.next_number()
    made.post(PONG)
    assert (made.backend.sent, observer.told, made.session.messages_in) == ([], [], 0)
    made.post(PONG)
    assert len(made.backend.sent) == 1


# stderr.


def test_stderr_is_a_notification() -> None:
    """promise: stderr lines as `notifications/stderr`, these bytes."""
    made = Made()
    made.session.diagnostics_received([b'a "quote"', b"\xff"])
    assert made.stream.lines == [
        b'{"jsonrpc":"2.0","method":"notifications/stderr","params":{"content":"a \\"quote\\""}}',
        '{"jsonrpc":"2.0","method":"notifications/stderr","params":{"content":"\ufffd"}}'.encode(),
    ]


def test_stderr_notifications_can_be_turned_off() -> None:
    """promise: a setting turns it off."""
    made = Made(stderr_notifications=False)
    made.session.diagnostics_received([b"oops"])
    assert made.stream.lines == []
    assert list(made.session.stderr_tail) == [b"oops"]


# Output that nobody reads.

FLOOD = b"x" * (UNREAD_BYTES_PER_SECOND + 1)


def test_a_backend_that_floods_without_a_reader_is_paused() -> None:
    """`UNREAD_BYTES_PER_SECOND` bounds the output that is thrown away."""
    made = Made()
    made.stream.has_reader = False
    made.session.messages_received([FLOOD])
    assert made.order == ["pause"]
    made.clock.advance(WINDOW_SECONDS)
    assert made.order == ["pause", "resume"]
    made.stream.has_reader = True
    made.session.messages_received([FLOOD])
    assert made.order == ["pause", "resume"]


def test_a_flood_of_stderr_that_no_client_gets_is_paused() -> None:
    made = Made(stderr_notifications=False)
    # Who reads may wait for an answer behind it: ATTENDED_FACTOR.
    made.session.diagnostics_received([FLOOD])
    assert made.order == []
    made.session.diagnostics_received([FLOOD] * ATTENDED_FACTOR)
    assert made.order == ["pause"]
    made.clock.advance(WINDOW_SECONDS)
    made.stream.has_reader = False
    made.order.clear()
    made.session.diagnostics_received([FLOOD])
    assert made.order == ["pause"]
    assert made.stream.lines == []
    made.session.life.end("the client went away")
    assert made.order == ["pause", "resume", *TEARDOWN]
    made.session.diagnostics_received([FLOOD])
    assert made.clock.getDelayedCalls() == []


def test_a_client_message_resumes_a_throttled_backend() -> None:
    made = Made()
    made.stream.has_reader = False
    made.session.messages_received([FLOOD])
    made.post(CALL)
    assert made.order == ["pause", "resume"]
    assert made.backend.sent == [CALL]
    made.post(CALL)
    assert made.order == ["pause", "resume"]


def test_a_slow_client_keeps_a_throttled_backend_paused() -> None:
    """There are two reasons to pause; the backend is resumed when neither is left."""
    made = Made()
    made.stream.has_reader = False
    made.session.pause_backend()
    made.session.messages_received([FLOOD])
    made.clock.advance(WINDOW_SECONDS)
    assert made.order == ["pause", "pause"]
    made.session.messages_received([FLOOD])
    made.session.resume_backend()
    assert made.order == ["pause", "pause", "pause"]
    made.clock.advance(WINDOW_SECONDS)
    assert made.order == ["pause", "pause", "pause", "resume"]


# Filters.


def test_filters_are_applied_in_order() -> None:
    made = Made(filters=[Filter(b"sword", b"word"), Filter(b"wordfish", b"***")])
    made.post(CALL)
    made.session.messages_received([REPLY])
    assert made.backend.sent == [CALL.replace(b"swordfish", b"***")]
    assert made.stream.lines == [REPLY.replace(b"swordfish", b"***")]
    assert made.session.bytes_in == len(made.backend.sent[0])


def test_a_refused_request_is_answered_with_the_reason() -> None:
    """The answer takes the normal path, and not from within the client's own call."""
    made = Made(filters=[Filter()])
    made.post(CALL.replace(b"swordfish", b"request"))
    assert (made.backend.sent, made.session.messages_in, made.stream.lines) == ([], 0, [])
    made.clock.advance(0)
    ident = json.loads(CALL)["id"]
    error = {"code": -32000, "message": "not here"}
    assert json.loads(made.stream.lines[0]) == {"jsonrpc": "2.0", "id": ident, "error": error}
    assert made.session.refused == 1


def test_a_refused_message_without_an_answer_is_dropped_and_counted() -> None:
    made = Made(filters=[Filter()])
    made.post(b'{"jsonrpc":"2.0","method":"request"}')
    made.clock.advance(0)
    assert (made.backend.sent, made.stream.lines, made.session.refused) == ([], [], 1)


def test_a_refused_cancellation_cancels_nothing_for_those_who_count() -> None:
    """The server has not got it, and goes on with the request."""
    counters = ServerCounters("cat")
    made = Made(filters=[Filter()], requests=OpenRequests())
    made.session.measured = MeasuredSession(Measures(counters, made.clock))
    made.post(CALL)
    params = '{"requestId":1}'
    made.post(f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}'.encode())
    assert made.backend.sent == [CALL]
    assert made.session.requests is not None
    made.session.requests.give_up_cancelled()
    assert len(made.session.requests) == 1
    assert len(made.session.measured) == 1


def test_requests_that_are_not_timed_count_where_they_are_passed_on() -> None:
    """Those that the backend refused to take do not count, nor does what asks for nothing."""
    counters = ServerCounters("cat")
    made = Made()
    measures = Measures(counters, made.clock)
    made.session.measured = MeasuredSession(measures)
    for number in range(MEASURED_REQUESTS + 5):
        made.post(b'{"jsonrpc":"2.0","id":%d,"method":"ping"}' % number)
    assert list(measures.only_counted) == ["ping"]
    made.post(b'{"jsonrpc":"2.0","method":"ping"}')
    made.post(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    made.post(b'[{"jsonrpc":"2.0","id":"a","method":"ping"},{"jsonrpc":"2.0","id":"b"}]')
    made.backend.busy = True
    # Also under the id of one that is timed.
    for ident in (b'"c"', b"7"):
        with pytest.raises(BackendBusy):
            made.post(b'{"jsonrpc":"2.0","id":%b,"method":"ping"}' % ident)
    made.session.messages_received([b'{"jsonrpc":"2.0","id":0,"result":{}}'])
    assert counters.operation("ping").answered.count == 5 + 1 + 1
    made.session.life.end("done")
    ping = counters.operation("ping")
    assert ping.errors["no_answer"].count == MEASURED_REQUESTS - 1
    measures.stop()


def test_only_a_message_that_is_to_be_recorded_meets_the_recorder() -> None:
    made = Made()
    tracing = Tracing(1.0, made.clock, FakeTracer)
    tracing.start()
    made.session.recorder = TracedSession(tracing, server="cat", session="1234", backend="pipe")

    def records() -> bool:
        return made.session.recording is not None

    made.post(CALL)
    assert (made.backend.sent, records()) == ([CALL], False)
    made.session.client_message(*read_message(CALL), http=lambda: None)
    assert b"traceparent" in made.backend.sent[1]
    assert records()
    made.session.messages_received([NOTE])
    assert records()
    made.session.messages_received([REPLY])
    assert not records()
    # A parent that is not recorded.
    trace = b'"_meta":{"traceparent":"00-%b-%b-00"}' % (b"1" * 32, b"2" * 16)
    line = b'{"jsonrpc":"2.0","id":5,"method":"ping","params":{%b}}' % trace
    made.session.client_message(*read_message(line), http=lambda: None)
    assert (made.backend.sent[2], records()) == (line, False)


def test_a_refused_answer_of_the_client_is_an_error_for_the_backend() -> None:
    made = Made(filters=[Filter()])
    made.post(b'{"jsonrpc":"2.0","id":"q","result":"request"}')
    error = {"code": -32000, "message": "not here"}
    assert json.loads(made.backend.sent[0]) == {"jsonrpc": "2.0", "id": "q", "error": error}
    assert made.clock.getDelayedCalls() == []


def test_a_batch_passes_without_its_refused_messages() -> None:
    made = Made(filters=[Filter()])
    call = b'{"jsonrpc":"2.0","id":%d,"method":"%b"}'
    bad = [call % (1, b"request"), b'{"jsonrpc":"2.0","method":"request"}']
    made.post(b"[" + b",".join([bad[0], call % (2, b"m"), bad[1], call % (3, b"m")]) + b"]")
    assert json.loads(made.backend.sent[0]) == [json.loads(call % (n, b"m")) for n in (2, 3)]
    made.clock.advance(0)
    assert [json.loads(each)["id"] for each in made.stream.lines] == [1]
    made.post(b"[" + b",".join(bad) + b"]")
    assert (len(made.backend.sent), made.session.refused) == (1, 4)
    made.session.life.end("the client left")
    made.clock.advance(0)
    assert len(made.stream.lines) == 1


def test_a_nested_array_is_refused_as_a_whole() -> None:
    """It is no message, and filtering each of its elements could take very long."""
    made = Made(filters=[Filter()])
    call = b'{"jsonrpc":"2.0","id":1,"method":"%b"}'
    made.post(b"[[[" + call % b"request" + b"," + call % b"m" + b"]]," + call % b"m" + b"]")
    made.clock.advance(0)
    assert (made.backend.sent, made.stream.lines) == ([b"[" + call % b"m" + b"]"], [])
    assert made.session.refused == 1


def test_a_busy_backend_means_no_answers_to_refused_messages() -> None:
    """The client sends all of them again."""
    made = Made(filters=[Filter()])
    made.backend.busy = True
    lines = [CALL, CALL.replace(b"swordfish", b"request")]
    with pytest.raises(BackendBusy):
        made.session.post_to_backend(lines)
    assert made.clock.getDelayedCalls() == []


def test_send_to_backend_raises_the_refusal() -> None:
    """A worker, which has no client's stream, answers with the refusal itself."""
    made = Made(filters=[Filter()])
    with pytest.raises(MessageRefused, match="not here"):
        made.session.send_to_backend([CALL, CALL.replace(b"swordfish", b"request")])
    assert made.backend.sent == []


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (ASKED.replace(b"roots/list", b"request"), "not here"),
        (ASKED.replace(b"roots/list", b"broken"), "the message could not be checked"),
        (NOTE.replace(b"message", b"request"), None),
        (NOTE.replace(b"message", b"broken"), None),
        (b'["request"]', None),
        (b"[" + ASKED.replace(b"roots/list", b"request") + b"]", "not here"),
    ],
)
def test_a_refused_message_of_the_backend(
    line: bytes, answer: str | None, logged_failures: list[Failure]
) -> None:
    """A refused request is answered with an error; everything else is dropped and counted."""
    made = Made(filters=[Filter()], observers=[observer := Observer()])
    made.session.messages_received([NOTE, line, REPLY])
    assert made.stream.lines == [NOTE, REPLY]
    assert (made.session.refused, made.session.messages_out) == (1, 2)
    assert len(observer.told) == 2
    assert len(logged_failures) == (b"broken" in line)
    answers = [json.loads(each) for each in made.backend.sent]
    assert answers == (
        [{"jsonrpc": "2.0", "id": "x", "error": {"code": -32000, "message": answer}}]
        if answer
        else []
    )


def test_a_batch_of_the_backend_passes_without_its_refused_messages() -> None:
    """A refused response is an error in its place, since the client waits for each of them."""
    made = Made(filters=[Filter()])
    refused = REPLY.replace(b"swordfish", b"request")
    made.session.messages_received([b"[" + b",".join([NOTE, refused, b"[%b]" % NOTE]) + b"]"])
    made.session.messages_received([b"[" + b",".join([refused, ASKED, NOTE]) + b"]"])
    error = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "not here"}}
    assert list(map(json.loads, made.stream.lines)) == [
        [json.loads(NOTE), error, [json.loads(NOTE)]],
        [error, json.loads(ASKED), json.loads(NOTE)],
    ]
    assert (made.session.refused, made.backend.sent) == (2, [])


@pytest.mark.parametrize("more", [0, 1])
def test_a_refused_batch_of_the_backend_is_filtered_up_to_max_filtered_batch(more: int) -> None:
    refused = REPLY.replace(b"swordfish", b"request")
    complaints: list[str] = []
    made = Made(filters=[Filter()], complain=lambda _, fault, what: complaints.append(what))
    size = MAX_FILTERED_BATCH + more
    made.session.messages_received([b"[" + b",".join([refused] * size) + b"]"])
    assert made.session.refused == size
    if more:
        assert made.stream.lines == []
        assert "MAX_FILTERED_BATCH" in complaints[0]
    else:
        assert [len(json.loads(each)) for each in made.stream.lines] == [MAX_FILTERED_BATCH]


@pytest.mark.parametrize("size", [1, 5])
def test_a_filter_that_fails_on_a_batch_is_logged_once(
    size: int, logged_failures: list[Failure]
) -> None:
    made = Made(filters=[Filter()])
    made.session.messages_received([b"[" + b",".join([NOTE, b'"broken"'] * size) + b"]"])
    assert json.loads(made.stream.lines[0]) == [json.loads(NOTE)] * size
    assert made.session.refused == size
    assert len(logged_failures) == 1


def test_a_refused_answer_is_an_error_for_the_client() -> None:
    """Without an answer it would wait for ever."""
    made = Made(filters=[Filter()])
    made.session.messages_received([REPLY.replace(b"swordfish", b"request")])
    error = {"code": -32000, "message": "not here"}
    assert list(map(json.loads, made.stream.lines)) == [{"jsonrpc": "2.0", "id": 1, "error": error}]
    assert (made.session.refused, made.backend.sent) == (1, [])


def test_a_backend_that_does_not_read_the_answer_to_its_request() -> None:
    made = Made(filters=[Filter()])
    made.backend.busy = True
    made.session.messages_received([ASKED.replace(b"roots/list", b"request")])
    assert made.order == TEARDOWN
    assert "does not read the responses" in made.session.reason


def test_a_refused_request_of_a_backend_that_closed_its_stdin() -> None:
    """Its stdin is closed, but its output still passes."""

    def closed(line: bytes) -> None:
        raise UnknownSession("its backend takes no more messages")

    made = Made(filters=[Filter()])
    setattr(made.backend, "send", closed)  # noqa: B010
    made.session.input_closed("the backend closed its stdin")
    made.session.messages_received([ASKED.replace(b"roots/list", b"request"), REPLY])
    assert made.stream.lines == [REPLY]


def test_a_filter_that_fails_on_a_message_of_the_client() -> None:
    made = Made(filters=[Filter()])
    with pytest.raises(RuntimeError, match="a defect of the filter"):
        made.post(CALL.replace(b"swordfish", b"broken"))
    assert made.backend.sent == []


# Observers.


def test_an_observer_that_raises_is_logged(logged_failures: list[Failure]) -> None:
    """promise: a step that raises skips no other; other observers are told all the same."""
    made = Made(observers=[FailingObserver(), observer := Observer()])
    made.session.open(made.session.forget, stderr_notifications=True)
    made.post(CALL)
    made.session.messages_received([REPLY])
    made.session.life.end("over")
    made.backend.stopped.callback(None)
    assert observer.told == [
        "opened",
        f"in {CALL.decode()}",
        f"out {REPLY.decode()}",
        "closed: over",
    ]
    assert made.backend.sent == [CALL]
    assert made.stream.lines == [REPLY]
    assert made.order == TEARDOWN + AFTERWARDS
    assert len(logged_failures) == 4


# The log.


def test_opening_and_closing_are_logged(log_lines: list[str]) -> None:
    """One line each, with the counters and the end of stderr."""
    made = Made(filters=[Filter()])
    made.session.open(made.session.forget, stderr_notifications=True)
    made.post(CALL)
    made.session.messages_received([REPLY, NOTE.replace(b"message", b"request")])
    made.session.diagnostics_received([b"line %d" % number for number in range(7)])
    made.session.diagnostics_received([b"\x1b[31mred\n" + b"x" * 9999])
    made.clock.advance(12.34)
    made.session.life.end("the client went away")
    made.backend.exit_status = "signal 9"
    made.backend.stopped.callback(None)
    opened, closed = log_lines
    assert opened == "session 0c8a4a3e of 'cat' opened"
    sent = sum(map(len, made.stream.lines))
    assert closed.startswith(
        "session 0c8a4a3e of 'cat' closed after 12.3 s: the client went away;"
        f" in 1 messages ({len(CALL)} B), out 9 ({sent} B), refused 1; backend: signal 9;"
        " last stderr: line 3 | line 4 | line 5 | line 6 | \\x1b[31mred\\nxxx"
    )
    assert closed.isprintable()
    assert len(closed) < 1000
    last = [bytes(each) for each in made.session.stderr_tail]
    assert len(last) == STDERR_TAIL_LINES
    assert len(last[-1]) == STDERR_TAIL_CHARS


def test_the_log_holds_no_full_session_id_and_no_message_contents(
    log_lines: list[str], logged_failures: list[Failure]
) -> None:
    """Whatever goes wrong."""
    made = Made(filters=[Filter()], observers=[FailingObserver()])
    made.session.open(made.session.forget, stderr_notifications=True)
    made.post(CALL)
    made.session.messages_received([REPLY, CALL.replace(b"tools", b"request")])
    made.session.messages_received([CALL.replace(b"tools", b"broken")])
    setattr(made.backend, "stop", fail)  # noqa: B010
    made.session.life.end("over")
    text = "\n".join(log_lines)
    assert IDENT[:8] in text
    assert IDENT[:9] not in text
    assert "swordfish" not in text
    assert "tools/call" not in text


# The server: opening.


class Opened:
    """A server with a fake launcher, and the sinks of its sessions."""

    def __init__(self, limit: int = 1, launcher: Any = None, **options: Any) -> None:
        self.clock = Clock()
        self.launcher: Any = launcher or FakeLauncher()
        self.limiter = SessionLimiter(limit)
        self.streams: list[RecordingSink] = []
        self.server = Server(
            ServerSettings(command="cat", max_message_bytes=1000),
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=self.limiter,
            **options,
        )

    def make_sink(self, session: BackendSession) -> RecordingSink:
        assert session.backend is not None
        self.streams.append(RecordingSink())
        return self.streams[-1]

    def open(self, make_sink: Any = None) -> BackendSession:
        return result_of(self.server.open_session(make_sink or self.make_sink))


def result_of(coroutine: Coroutine[Deferred[Any], Any, Any]) -> Any:
    """Return or raise the result of a coroutine that waits for nothing."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


class SlowLauncher(FakeLauncher):
    """A launcher whose backends start when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[Deferred[FakeBackend]] = []

    def launch(self, receiver: Any, label: str) -> Deferred[FakeBackend]:
        self.launched.append(Deferred())
        return self.launched[-1]


def test_a_session_opens() -> None:
    opened = Opened(observers=[observer := Observer()])
    session = opened.open()
    assert opened.server.find(session.ident) is session
    assert session.sink is opened.streams[0]
    assert (observer.told, opened.limiter.taken) == (["opened"], 1)
    [backend] = opened.launcher.backends
    assert (backend.receiver, backend.label) == (session, session.ident[:LABEL_CHARS])


def test_ids_are_version_4_and_lower_case() -> None:
    """keep: session ids are unguessable, lower-case UUID version 4."""
    opened = Opened(limit=20)
    idents = {opened.open().ident for _ in range(20)}
    assert len(idents) == 20
    for ident in idents:
        assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", ident)
        assert UUID(ident).version == 4


def test_the_permit_is_acquired_before_anything_else() -> None:
    """promise: at the limit 429; no header and no process before the permit."""
    opened = Opened(limit=1)
    first = opened.open()
    with pytest.raises(TooManySessions):
        opened.open()
    assert (len(opened.launcher.backends), len(opened.streams)) == (1, 1)
    first.life.end("over")
    with pytest.raises(TooManySessions):
        opened.open()
    opened.launcher.backends[0].stopped.callback(None)
    opened.open()
    assert opened.limiter.taken == 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (CannotStart("cannot start 'cat': it was not found"), BackendFailed),
        (RuntimeError("a defect of the launcher"), RuntimeError),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_backend_that_cannot_start_holds_no_permit(
    error: Exception, raised: type[Exception], at_once: bool, log_lines: list[str]
) -> None:
    """promise: a command that cannot start holds no permit; beat: a clear error answer."""
    launcher: Any = FakeLauncher() if at_once else SlowLauncher()
    opened = Opened(launcher=launcher)
    if at_once:
        launcher.error = error
    opening = Deferred.fromCoroutine(opened.server.open_session(opened.make_sink))
    failures: list[Failure] = []
    opening.addErrback(failures.append)
    if not at_once:
        assert opened.limiter.taken == 1
        launcher.launched[0].errback(Failure(error))
    assert failures[0].type is raised
    assert str(failures[0].value) == str(error)
    assert (opened.limiter.taken, opened.streams, opened.server.unclosed) == (0, [], set())
    if raised is BackendFailed:
        assert str(error) in log_lines[0]


def test_a_launcher_that_raises_holds_no_permit() -> None:
    opened = Opened()
    setattr(opened.launcher, "launch", fail)  # noqa: B010
    with pytest.raises(RuntimeError, match="this step fails"):
        opened.open()
    assert opened.limiter.taken == 0


def test_a_client_that_leaves_before_the_backend_runs_holds_no_permit() -> None:
    """promise: the client goes away, and the permit returns."""
    opened = Opened(launcher=SlowLauncher())
    opening = Deferred.fromCoroutine(opened.server.open_session(opened.make_sink))
    failures: list[Failure] = []
    opening.addErrback(failures.append)
    assert opened.limiter.taken == 1
    opening.cancel()
    assert failures[0].type is CancelledError
    assert opened.limiter.taken == 0
    assert opened.clock.getDelayedCalls() == []


def test_a_launch_that_times_out_holds_no_permit() -> None:
    """Every wait has a bound: the client gets a clear error, the permit returns."""
    opened = Opened(launcher=SlowLauncher())
    opening = Deferred.fromCoroutine(opened.server.open_session(opened.make_sink))
    failures: list[Failure] = []
    opening.addErrback(failures.append)
    opened.clock.advance(LAUNCH_SECONDS - 1)
    assert failures == []
    opened.clock.advance(1)
    assert failures[0].type is BackendFailed
    assert "to start" in str(failures[0].value)
    assert opened.limiter.taken == 0


def test_a_stream_that_cannot_be_opened_ends_the_session(log_lines: list[str]) -> None:
    """promise: a request that failed holds no permit: it returns with the backend's end."""
    opened = Opened(observers=[observer := Observer()])
    with pytest.raises(RuntimeError, match="this step fails"):
        opened.open(fail)
    [backend] = opened.launcher.backends
    assert backend.events == ["stop"]
    assert (opened.server.sessions, opened.limiter.taken) == ({}, 1)
    backend.stopped.callback(None)
    assert (opened.limiter.taken, opened.server.unclosed) == (0, set())
    # Who counts sessions hears of both its ends or of neither.
    assert observer.told in ([], ["opened", "closed: the stream could not be opened"])


# The server: messages.


@pytest.mark.parametrize("body", [b"", b"hello", CALL])
def test_an_unknown_session_is_unknown_whatever_the_body(body: bytes) -> None:
    """promise: an unknown or missing sessionId gets 404, nothing stored."""
    opened = Opened()
    session = opened.open()
    for ident in ("", IDENT, session.ident.upper()):
        with pytest.raises(UnknownSession):
            opened.server.receive(ident, body)
    assert opened.launcher.backends[0].sent == []
    assert opened.server.sessions.keys() == {session.ident}


@pytest.mark.parametrize("input_only", [True, False])
def test_an_ended_session_is_unknown(input_only: bool) -> None:
    """promise: an ended sessionId gets 404, also while its last words go out."""
    opened = Opened()
    session = opened.open()
    if input_only:
        session.input_closed("the backend closed its stdin")
    else:
        session.life.end("over")
    with pytest.raises(UnknownSession):
        opened.server.receive(session.ident, CALL)
    assert opened.launcher.backends[0].sent == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", EmptyBody),
        (b"hello", NotJson),
        (b"\xff", NotJson),
        (b"{}", NotJsonRpc),
        (b"[" + b" " * 999 + b"]", MessageTooLarge),
    ],
)
def test_a_bad_body_is_refused_and_the_session_lives(body: bytes, error: type[Exception]) -> None:
    """beat: a body that is not JSON gets an error, nothing is forwarded."""
    opened = Opened()
    session = opened.open()
    with pytest.raises(error):
        opened.server.receive(session.ident, body)
    opened.server.receive(session.ident, CALL)
    opened.server.receive(session.ident, b"[" + b" " * 998 + b"]")
    assert len(opened.launcher.backends[0].sent) == 2


def test_two_sessions_never_cross() -> None:
    """keep: two clients, two backends; closing one leaves the other working."""
    opened = Opened(limit=2)
    one, two = opened.open(), opened.open()
    one.messages_received([b"[1]"])
    two.messages_received([b"[2]"])
    opened.server.receive(one.ident, b"[10]")
    one.life.end("over")
    opened.server.receive(two.ident, b"[20]")
    two.messages_received([b"[3]"])
    assert [stream.lines for stream in opened.streams] == [[b"[1]"], [b"[2]", b"[3]"]]
    assert [backend.sent for backend in opened.launcher.backends] == [[b"[10]"], [b"[20]"]]


# The server: stopping.


def test_stopping_ends_all_sessions_and_waits_for_them() -> None:
    """beat: shutdown with sessions open: every backend stopped and reaped."""
    opened = Opened(limit=3)
    sessions = [opened.open() for _ in range(3)]
    sessions[0].life.end("the client went away")
    stopped = opened.server.stop()
    assert [session.reason for session in sessions[1:]] == ["the bridge is shutting down"] * 2
    for backend in opened.launcher.backends:
        assert not stopped.called
        assert backend.events == ["stop"]
        backend.stopped.callback(None)
    assert stopped.called
    assert opened.limiter.taken == 0
    with pytest.raises(ShuttingDown):
        opened.open()
    assert opened.limiter.taken == 0


def test_stopping_while_a_backend_starts() -> None:
    opened = Opened(launcher=SlowLauncher())
    opening = Deferred.fromCoroutine(opened.server.open_session(opened.make_sink))
    failures: list[Failure] = []
    opening.addErrback(failures.append)
    stopped = opened.server.stop()
    assert failures[0].type is ShuttingDown
    assert stopped.called
    assert opened.limiter.taken == 0


# Mistakes of a backend.


class Complaining(Made):
    """A session, and the warnings about its backend."""

    def __init__(self, **options: Any) -> None:
        self.complaints: list[tuple[str, str]] = []
        super().__init__(
            complain=lambda _, fault, what: self.complaints.append((fault, what)), **options
        )


@pytest.mark.parametrize(
    ("lost", "client", "backend", "said"),
    [
        (Lost("x", "why", 1, certain=True), [1], [], "why; the call that it answers fails"),
        (Lost("x", "why", "q", True, certain=True), [], ["q"], "why; the request is refused"),
        (Lost("x", "why", UNSET, True, certain=True), [], [], "why; it is a notification"),
        (Lost("x", "why", certain=True), [], [], "why; the call that it answers is not known"),
        (Lost("x", "why"), [], [], "why; it is dropped"),
    ],
)
def test_a_message_that_cannot_pass(
    lost: Lost, client: list[Any], backend: list[Any], said: str
) -> None:
    """The side that waits for an answer gets an error with the reason."""
    made = Complaining()
    made.session.message_lost(lost)
    assert [json.loads(line)["id"] for line in made.stream.lines] == client
    assert [json.loads(line)["id"] for line in made.backend.sent] == backend
    for line in (*made.stream.lines, *made.backend.sent):
        assert json.loads(line)["error"] == {"code": -32603, "message": "why"}
    [(fault, what)] = made.complaints
    assert fault == lost.fault
    assert what.startswith(said)
    assert made.clock.getDelayedCalls() == []


@pytest.mark.parametrize("answer", [b"", REPLY, REPLY.replace(b'"id":1', b'"id":"1"')])
def test_a_request_fails_only_if_no_answer_follows_a_damaged_copy(answer: bytes) -> None:
    """It fails `LOST_SECONDS` later."""
    made = Complaining()
    made.session.message_lost(Lost("lines", "why", 1))
    made.session.message_lost(Lost("lines", "again", 1))
    made.session.messages_received([NOTE])
    if answer:
        made.session.messages_received([answer])
    made.clock.advance(LOST_SECONDS)
    [_, last] = map(json.loads, made.stream.lines)
    assert last["id"] in (1, "1")
    assert ("error" in last) == (not answer)
    assert made.clock.getDelayedCalls() == []


def test_at_most_lost_kept_answers_are_awaited() -> None:
    """Further damaged answers are ignored until one of these is over."""
    made = Complaining()
    line = b'{"jsonrpc":"2.0","id":%d,"result":NaN}'
    made.session.message_dropped("invalid", line % 0)
    made.clock.advance(LOST_SECONDS / 2)
    for number in range(1, 2 * LOST_KEPT):
        made.session.message_dropped("invalid", line % number)
        made.session.message_lost(Lost("lines", "why", number))
    made.clock.advance(LOST_SECONDS / 2)
    assert [json.loads(line)["id"] for line in made.stream.lines] == [0]
    made.clock.advance(LOST_SECONDS / 2)
    assert [json.loads(line)["id"] for line in made.stream.lines] == list(range(LOST_KEPT))
    made.session.message_dropped("invalid", line % 99)
    made.clock.advance(LOST_SECONDS)
    assert json.loads(made.stream.lines[-1])["id"] == 99
    assert made.clock.getDelayedCalls() == []


def test_a_message_that_cannot_pass_when_the_session_ends() -> None:
    made = Complaining()
    made.session.message_lost(Lost("lines", "why", 1))
    made.session.life.end("over")
    made.session.message_lost(Lost("lines", "why", 2))
    assert made.clock.getDelayedCalls() == []
    assert len(made.complaints) == 1
    assert made.stream.lines == []


def test_the_bridges_own_error_causes_no_warning() -> None:
    """The request was answered before, so the error is dropped."""
    made = Complaining()
    made.stream.send = lambda lines: made.session.message_dropped("unasked", lines[0])  # type: ignore[method-assign]
    made.session.message_lost(Lost("x", "why", 1, certain=True))
    assert [fault for fault, _ in made.complaints] == ["x"]


def test_a_line_is_shown_escaped_and_cut() -> None:
    made = Complaining()
    made.session.misbehaved("text", "what it does", b"\x1b[31m\xff" + b"x" * 999)
    [(fault, what)] = made.complaints
    assert fault == "text"
    assert what.startswith(r"what it does: \x1b[31m\xffxxx")
    assert len(what) < SHOWN_CHARS + 50


@pytest.mark.parametrize(
    ("why", "line", "said"),
    [
        ("unasked", REPLY, "(id 1)"),
        ("unasked", REPLY.replace(b'"id":1', b'"id":"\\u001b"'), r'(id "\u001b")'),
        ("request", ASKED, '(id "x")'),
        ("null", b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}', "(id null)"),
    ],
)
def test_a_dropped_message_is_logged_with_its_id(why: str, line: bytes, said: str) -> None:
    """Its contents are never logged."""
    made = Complaining()
    made.session.message_dropped("unasked" if why == "null" else why, line)
    [(fault, what)] = made.complaints
    assert fault == why
    assert what.endswith(said)
    assert "swordfish" not in what


def test_a_message_dropped_without_fault_is_not_logged() -> None:
    made = Complaining()
    made.session.message_dropped("no room", REPLY)
    assert made.complaints == []


def test_an_answer_that_is_no_json_fails_its_call() -> None:
    """Python writes NaN, which is not JSON."""
    made = Complaining()
    made.session.message_dropped("invalid", b'{"jsonrpc":"2.0","id":1,"result":{"x":NaN}}')
    assert made.stream.lines == []
    made.clock.advance(LOST_SECONDS)
    [answer] = map(json.loads, made.stream.lines)
    assert answer["id"] == 1
    assert "not a JSON-RPC message" in answer["error"]["message"]
    assert [fault for fault, _ in made.complaints] == ["invalid"]
