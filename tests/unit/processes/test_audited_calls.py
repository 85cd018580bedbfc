"""What the audit log says of the messages of a session, and of a request without one."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from twisted.internet.task import Clock

from mcpbridge.audit_log import AuditRecord
from mcpbridge.auth.access import ANYBODY
from mcpbridge.config.tuning import AUDIT_ARGUMENT_BYTES, AUDIT_OPEN_CALLS
from mcpbridge.errors import BackendBusy, BackendEnded
from mcpbridge.jsonrpc.envelope import peek, peek_again
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.own_request import own_request
from mcpbridge.processes.audited_calls import DROPPED, AuditedRequest, AuditedSession
from mcpbridge.stateless.exchange import Exchange


def line(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}, separators=(",", ":")).encode()


def call(ident: Any, name: Any = "t", method: str = "tools/call", **params: Any) -> bytes:
    return line(id=ident, method=method, params={"name": name, **params})


def answer(ident: Any, **members: Any) -> bytes:
    return line(id=ident, **(members or {"result": {}}))


class Log:
    """Keeps the records."""

    def __init__(self, *, arguments: bool = False) -> None:
        self.arguments = arguments
        self.records: list[AuditRecord] = []

    def record(self, record: AuditRecord) -> None:
        self.records.append(record)

    def take(self) -> list[AuditRecord]:
        """Return the records, for the last time."""
        records, self.records = self.records, []
        return records


class Session:
    """A session with a log."""

    def __init__(self, *, arguments: bool = False) -> None:
        self.clock = Clock()
        self.log = Log(arguments=arguments)
        log: Any = self.log
        self.audited = AuditedSession(
            log,
            self.clock,
            server="files",
            session="4f8a6bb6",
            transport="sse",
            identity="token#alice",
        )

    def post(
        self,
        *lines: bytes,
        digests: Sequence[bytes] | None = None,
        error: Exception | None = None,
        meanwhile: Sequence[bytes] = (),
        dropped: Collection[int] = (),
    ) -> None:
        def send() -> Collection[int]:
            self.audited.sent(meanwhile)
            if error is not None:
                raise error
            return dropped

        envelopes = [peek(each) or peek_again(each) for each in lines]
        sent = self.audited.post(lines, envelopes, digests, send, "192.0.2.1")
        assert sent is dropped


def test_request_is_recorded_when_it_is_answered() -> None:
    session = Session()
    request, response = call(1, "read_file"), answer(1)
    session.post(request)
    assert session.log.records == []
    session.clock.advance(0.25)
    session.audited.sent([line(method="notifications/message"), response])
    session.audited.sent([response])
    assert session.log.records == [
        AuditRecord(
            server="files",
            outcome="ok",
            identity="token#alice",
            address="192.0.2.1",
            session="4f8a6bb6",
            transport="sse",
            method="tools/call",
            name="read_file",
            request_bytes=len(request),
            response_bytes=len(response),
            seconds=0.25,
        )
    ]
    assert len(session.audited) == 0


@pytest.mark.parametrize(
    ("request_line", "name"),
    [
        (call(1, "a"), "a"),
        (call(1, "p", "prompts/get"), "p"),
        (call(1, "a", "resources/read", uri="file:///x"), "file:///x"),
        (call(1, "a", "resources/subscribe", uri="file:///x"), "file:///x"),
        (call(1, "a", "tools/list"), None),
        (call(1, 5), None),
        (call(1, "a", uri=5, _meta=6, arguments=7), "a"),
        (call(1, "a\ud800"), "a\ud800"),
        (line(id=1, method="tools/call"), None),
        (line(id=1, method="tools/call", params=[1]), None),
    ],
)
def test_name_of_what_is_asked_for(request_line: bytes, name: str | None) -> None:
    session = Session()
    session.post(request_line)
    session.audited.sent([answer(1)])
    [record] = session.log.records
    assert record.name == name


def test_name_in_a_large_message_is_read_from_its_digest() -> None:
    session = Session(arguments=True)
    large = call(1, "a", arguments={"x": "y" * LARGE_BYTES})
    session.post(large, digests=[call(1, "a")])
    session.audited.sent([answer(1)])
    [record] = session.log.records
    assert (record.name, record.request_bytes) == ("a", len(large))
    assert record.arguments is None


def test_error_has_its_code() -> None:
    session = Session()
    session.post(call(1), call(2))
    session.audited.sent([answer(1, error={"code": -32602, "message": "secret"})])
    session.audited.sent([answer(2, error="odd")])
    first, second = session.log.records
    assert (first.outcome, first.code, first.reason) == ("error", -32602, None)
    assert (second.outcome, second.code) == ("error", None)


def test_answer_to_a_request_in_another_spelling() -> None:
    session = Session()
    session.post(call(7), call("8"))
    session.audited.sent([answer("7"), answer(8), answer(9)])
    assert [each.outcome for each in session.log.records] == ["ok", "ok"]


def test_answer_that_comes_while_the_request_is_passed_on() -> None:
    session = Session()
    session.post(call(1), meanwhile=[answer(1)])
    assert [each.outcome for each in session.log.records] == ["ok"]
    assert len(session.audited) == 0


def test_notification_is_recorded_at_once_and_an_answer_of_the_client_is_not() -> None:
    session = Session()
    session.post(line(method="notifications/initialized"), answer(5))
    [record] = session.log.records
    assert (record.outcome, record.method) == ("ok", "notifications/initialized")
    assert record.seconds is None


def test_notification_that_was_dropped_is_refused() -> None:
    """What cancels nothing, as the server does not get it, leaves its request open."""
    session = Session()
    session.post(call(1, "slow"))
    notes = [
        line(method="notifications/cancelled", params={"requestId": 1}),
        line(method="notifications/x"),
        call(2, "answered anyway"),
    ]
    session.post(*notes, dropped={0, 2})
    refused, passed = session.log.records
    assert (refused.outcome, refused.reason) == ("refused", DROPPED)
    assert (passed.outcome, passed.method) == ("ok", "notifications/x")
    assert len(session.audited) == 2


def test_cancelled_request() -> None:
    session = Session()
    session.post(call(1, "slow"))
    session.clock.advance(2)
    session.post(line(method="notifications/cancelled", params={"requestId": 1}))
    session.post(line(method="notifications/cancelled", params={"requestId": 2}))
    session.audited.sent([answer(1)])
    notified, cancelled, again = session.log.records
    assert notified.method == again.method == "notifications/cancelled"
    assert (cancelled.outcome, cancelled.name, cancelled.seconds) == ("cancelled", "slow", 2)


def test_messages_of_a_batch_are_recorded_one_by_one() -> None:
    """In both directions, and of whatever is no message there is no record."""
    session = Session()
    session.post(b"[%b,%b,7]" % (call(1, "a"), line(method="notifications/x")))
    session.audited.sent([b"[%b,8]" % answer(1), b"nonsense"])
    assert [each.name or each.method for each in session.log.records] == ["notifications/x", "a"]


def test_refusal_is_recorded_with_its_method() -> None:
    """By whoever answers the request, it is not recorded again."""
    session = Session()
    refusal = BackendBusy("not now")
    with pytest.raises(BackendBusy):
        session.post(call(1, "a"), line(method="notifications/x"), answer(3), error=refusal)
    assert refusal.audited
    assert [(each.outcome, each.method, each.status) for each in session.log.records] == [
        ("refused", "tools/call", 503),
        ("refused", "notifications/x", 503),
    ]
    assert session.log.records[0].reason == "not now"
    assert len(session.audited) == 0


def test_defect_is_recorded_without_details() -> None:
    session = Session()
    with pytest.raises(RuntimeError):
        session.post(call(1), error=RuntimeError("secret"))
    [record] = session.log.records
    assert record.outcome == "error"
    assert "secret" not in str(record)
    assert len(session.audited) == 0


def test_request_with_the_id_of_an_open_one_takes_its_place() -> None:
    session = Session()
    session.post(call(1, "a"))
    session.post(call(1, "b"))
    session.audited.sent([answer(1)])
    first, second = session.log.records
    assert (first.outcome, first.name) == ("error", "a")
    assert (second.outcome, second.name) == ("ok", "b")


def test_number_of_open_requests_is_limited() -> None:
    """`AUDIT_OPEN_CALLS`: the oldest one counts as not answered."""
    session = Session()
    for number in range(AUDIT_OPEN_CALLS):
        session.post(call(number, str(number)))
    assert session.log.records == []
    session.post(call("new"))
    [record] = session.log.take()
    assert (record.outcome, record.name) == ("error", "0")
    assert len(session.audited) == AUDIT_OPEN_CALLS
    session.audited.sent([answer(0), answer(1)])
    assert [each.name for each in session.log.records] == ["1"]


def test_requests_that_are_open_at_the_end() -> None:
    session = Session()
    session.post(call(1, "a"), call(2, "b"))
    session.clock.advance(3)
    session.audited.close("idle for 300 s")
    session.audited.close("again")
    assert [(each.outcome, each.name, each.seconds) for each in session.log.records] == [
        ("error", "a", 3),
        ("error", "b", 3),
    ]
    assert session.log.records[0].reason == "the session has ended: idle for 300 s"


@pytest.mark.parametrize("arguments", [False, True])
def test_arguments_are_recorded_if_asked_for(arguments: bool) -> None:
    """Nothing of the rest of the message is kept for them."""
    session = Session(arguments=arguments)
    session.post(call(1, arguments={"path": "x"}), call(2), line(id=3, method="ping"))
    session.post(call(4, arguments={"path": "x" * AUDIT_ARGUMENT_BYTES}))
    session.audited.sent([answer(number) for number in (1, 2, 3, 4)])
    first, second, third, fourth = session.log.records
    if not arguments:
        assert {each.arguments for each in session.log.records} == {None}
        return
    assert first.arguments == b'{"path":"x"}'
    assert type(first.arguments) is bytes
    assert second.arguments is third.arguments is None
    assert fourth.arguments is not None
    assert len(fourth.arguments) == AUDIT_ARGUMENT_BYTES + 1


# Requests of 2026-07-28.


class Sink:
    """Takes what is sent."""

    def send(self, lines: list[bytes], final: bool) -> None:
        pass

    def fail(self, refusal: Any) -> None:
        pass


def exchange(
    method: str = "tools/call", *, shows_arguments: bool = False, **params: Any
) -> tuple[Exchange, Log, Clock]:
    log: Any = Log(arguments=shows_arguments)
    clock = Clock()
    request = own_request(method, params)
    audited = AuditedRequest(
        log,
        clock,
        request,
        server="files",
        identity="token#alice",
        address="192.0.2.1",
        size=100,
    )
    return Exchange(request, ANYBODY, Sink(), audited=audited), log, clock


def test_request_without_a_session_is_recorded_when_it_is_answered() -> None:
    made, log, clock = exchange(name="t")
    made.deliver([line(method="notifications/progress")], False)
    clock.advance(0.5)
    assert log.records == []
    made.deliver([answer(0)], True)
    made.cancel()
    [record] = log.records
    assert (record.outcome, record.method, record.name) == ("ok", "tools/call", "t")
    assert (record.transport, record.session) == ("stateless", None)
    assert (record.request_bytes, record.response_bytes) == (100, len(answer(0)))
    assert (record.identity, record.address) == ("token#alice", "192.0.2.1")
    assert record.seconds == 0.5


def test_other_ends_of_a_request_without_a_session() -> None:
    made, log, _ = exchange(name="t")
    made.deliver([answer(0, error={"code": -32602, "message": "x"})], True)
    made, refused, _ = exchange(name="t")
    made.fail(BackendEnded("it has exited"))
    made.deliver([answer(0)], True)
    made, cancelled, _ = exchange(name="t")
    made.cancel()
    made.cancel()
    made, empty, _ = exchange(name="t")
    made.deliver([], True)
    [record] = log.records
    assert (record.outcome, record.code) == ("error", -32602)
    [record] = refused.records
    assert (record.outcome, record.status, record.reason) == ("refused", 502, "it has exited")
    assert [each.outcome for each in cancelled.records] == ["cancelled"]
    assert [(each.outcome, each.response_bytes) for each in empty.records] == [("ok", 0)]


def test_expired_access_is_a_refusal() -> None:
    made, log, _ = exchange("subscriptions/listen", notifications={})
    made.withdraw("its access has ended")
    [record] = log.records
    assert (record.outcome, record.status) == ("refused", 401)


@pytest.mark.parametrize("arguments", [False, True])
def test_arguments_of_a_request_without_a_session(arguments: bool) -> None:
    """No more of them than a line of the log may show."""
    given = {"path": "x" * AUDIT_ARGUMENT_BYTES}
    for method, params in (("tools/call", {"name": "t", "arguments": given}), ("tools/list", {})):
        made, log, _ = exchange(method, **params, shows_arguments=arguments)
        made.deliver([answer(0)], True)
        [record] = log.records
        if arguments and params:
            assert (
                record.arguments
                == json.dumps(given).replace(" ", "").encode()[: AUDIT_ARGUMENT_BYTES + 1]
            )
        else:
            assert record.arguments is None


def test_the_id_of_a_task_is_not_recorded() -> None:
    """Whoever knows it may use it."""
    made, log, _ = exchange("tasks/get", taskId="secret")
    made.deliver([answer(0)], True)
    [record] = log.records
    assert record.method == "tasks/get"
    assert "secret" not in str(record)
