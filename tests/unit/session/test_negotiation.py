"""How a session of a legacy client begins with a server of either era, and how it goes on."""

from __future__ import annotations

import json
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge.config.tuning import MAX_BACKOFF_SECONDS, STILLBORN_STARTS
from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.jsonrpc.members import members
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.era import ServerEra
from mcpbridge.session.negotiation import (
    LegacyClientAdapter,
    UndecidedAdapter,
    first_adapter,
    is_starting,
)
from mcpbridge.testing import FakeBackend, RecordingSink
from mcpbridge.translation.handshake import refusal
from tests.fakes import no_jitter

INITIALIZE = (
    b'{ "jsonrpc":"2.0", "id":"\\u0061", "method":"initialize",'
    b' "params":{"protocolVersion":"2025-06-18","capabilities":{},"x":1e2} }'
)
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
PROBE = b'{"jsonrpc":"2.0","id":0,"method":"server/discover","params":{}}'
INITIALIZE_RESULT = b'{ "jsonrpc":"2.0","id":"a","result":{"protocolVersion":"2025-06-18"} }'
MODERN_ONLY = (
    b'{"jsonrpc":"2.0","id":"a","error":{"code":-32022,"message":"no",'
    b'"data":{"supported":["2026-07-28"],"requested":"2025-06-18"}}}'
)
NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}'


class SessionHarness:
    """A newly opened session between fakes."""

    def __init__(
        self,
        era: ServerEra | None = None,
        backoff: StartBackoff | None = None,
        start_timeout: float = inf,
    ) -> None:
        self.clock = Clock()
        self.era = era or ServerEra()
        self.backoff = backoff or StartBackoff("cat", no_jitter)
        self.session = BackendSession(
            ident="0c8a4a3e-9f2b-4d52-9a52-6f7b6a2f9d10",
            server="cat",
            clock=self.clock,
            permit=self,
            forget=lambda _: None,
            closed=lambda _: None,
            complain=lambda _, fault, what: self.complaints.append((fault, what)),
        )
        self.complaints: list[tuple[str, str]] = []
        self.backend = self.session.backend = FakeBackend(self.session)
        self.stream = self.session.sink = RecordingSink()
        self.warnings: list[str] = []
        self.session.adapter = first_adapter(
            self.session, self.era, self.backoff, self.warnings.append, start_timeout
        )

    def release(self) -> None:
        """Return the permit."""

    def post(self, *lines: bytes) -> None:
        """Send messages; none may reach the client before this returns."""
        before = list(self.stream.lines)
        try:
            self.session.send_to_backend(list(lines))
        finally:
            assert self.stream.lines == before

    def backend_sends(self, *lines: bytes) -> None:
        self.session.messages_received(list(lines))

    def answers(self) -> list[Any]:
        self.clock.advance(0)
        lines, self.stream.lines = self.stream.lines, []
        return [json.loads(line) for line in lines]

    def sent_message(self, number: int = -1) -> Any:
        return json.loads(self.backend.sent[number])

    def answer(self, result: dict[str, object], number: int = -1) -> None:
        result = {"resultType": "complete", **result}
        self.backend_sends(
            encode({"jsonrpc": "2.0", "id": self.sent_message(number)["id"], "result": result})
        )

    def refuse(self) -> None:
        error = {"code": -32601, "message": "unknown method"}
        self.backend_sends(
            encode({"jsonrpc": "2.0", "id": self.sent_message()["id"], "error": error})
        )

    def initialized(self) -> SessionHarness:
        """Initialize the session with a server that is only modern."""
        self.post(INITIALIZE)
        if isinstance(self.session.adapter, UndecidedAdapter):
            self.backend_sends(MODERN_ONLY)
        capabilities = {"tools": {"listChanged": True}}
        self.answer({"supportedVersions": ["2026-07-28"], "capabilities": capabilities})
        self.post(INITIALIZED)
        [initialized] = self.answers()
        assert initialized["id"] == "a"
        assert "result" in initialized
        return self

    def end(self) -> None:
        self.session.life.end("over")
        self.backend.stopped.callback(None)
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []


def encode(message: object) -> bytes:
    return json.dumps(message).encode()


def is_modern() -> ServerEra:
    era = ServerEra()
    era.legacy = False
    return era


def busy(error: Exception) -> Any:
    def send(line: bytes) -> None:
        raise error

    return send


# Undecided.


def test_initialize_and_its_response_pass_unchanged() -> None:
    harness = SessionHarness()
    harness.post(INITIALIZE)
    harness.backend_sends(NOTE, INITIALIZE_RESULT, NOTE)
    assert harness.backend.sent == [INITIALIZE]
    assert harness.stream.lines == [NOTE, INITIALIZE_RESULT, NOTE]
    assert (harness.era.legacy, harness.session.adapter) == (True, None)
    harness.end()


@pytest.mark.parametrize(("asked", "said"), [(b"1", b'"1"'), (b'"1"', b"1")])
def test_ids_that_the_server_returns_as_another_type_are_restored(
    asked: bytes, said: bytes
) -> None:
    """This lasts for the whole session, and the fault is logged."""
    harness = SessionHarness()
    harness.post(INITIALIZE.replace(b'"\\u0061"', asked))
    harness.backend_sends(NOTE, INITIALIZE_RESULT.replace(b'"a"', said))
    assert [each.get("id") for each in harness.answers()] == [None, json.loads(asked)]
    assert [fault for fault, _ in harness.complaints] == ["ids"]
    ping = b'{"jsonrpc":"2.0","id":%b,"method":"ping"}'
    harness.post(ping % b"7", b"[%b,%b]" % (ping % b"8", ping % b'"x"'))
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 8}}
    harness.post(encode(cancelled))
    for ident in ("7", "8", "x", "99"):
        harness.backend_sends(encode({"jsonrpc": "2.0", "id": ident, "result": {}}))
    assert [each["id"] for each in harness.answers()] == [7, "8", "x", "99"]
    assert len(harness.backend.sent) == 3
    harness.end()


@pytest.mark.parametrize("member", [b"", b',"x":"\\ud800"'])
def test_discover_is_answered_by_the_bridge_until_the_era_is_known(member: bytes) -> None:
    """The response comes after the call has returned; a legacy server never sees the request."""
    probe = PROBE[:-1] + member + b"}"
    harness = SessionHarness()
    harness.post(probe)
    [answer] = harness.answers()
    assert (answer["id"], answer["error"]["code"]) == (0, -32601)
    harness.post(NOTE, probe, INITIALIZE, probe.replace(b'"id":0,', b""))
    assert harness.backend.sent == [NOTE + b"\n" + INITIALIZE]
    assert len(harness.answers()) == 1
    assert isinstance(harness.session.adapter, UndecidedAdapter)
    harness.end()


def test_discover_is_not_answered_if_the_backend_is_busy() -> None:
    harness = SessionHarness()
    harness.backend.busy = True
    with pytest.raises(BackendBusy):
        harness.post(PROBE, INITIALIZE)
    assert harness.answers() == []


def test_other_initialize_errors_leave_the_era_undecided() -> None:
    """The client may try again, and the bridge still answers `server/discover`."""
    harness = SessionHarness()
    error = b'{"jsonrpc":"2.0","id":"a","error":{"code":-32602,"message":"no"}}'
    harness.post(INITIALIZE)
    harness.backend_sends(error)
    assert harness.stream.lines == [error]
    assert harness.era.legacy is None
    harness.post(PROBE)
    harness.post(INITIALIZE)
    harness.backend_sends(INITIALIZE_RESULT)
    assert harness.backend.sent == [INITIALIZE] * 2
    assert harness.era.legacy is True


def test_server_that_is_only_modern_keeps_its_process() -> None:
    harness = SessionHarness()
    harness.post(INITIALIZE)
    harness.backend_sends(MODERN_ONLY)
    assert harness.stream.lines == []
    assert harness.era.legacy is False
    assert isinstance(harness.session.adapter, LegacyClientAdapter)
    assert [json.loads(line)["method"] for line in harness.backend.sent] == [
        "initialize",
        "server/discover",
    ]
    harness.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}})
    [initialized] = harness.answers()
    assert initialized["result"]["protocolVersion"] == "2025-06-18"
    harness.end()


@pytest.mark.parametrize("error", [BackendBusy("busy"), UnknownSession("gone")])
def test_initialize_error_passes_if_the_backend_takes_no_more(error: Exception) -> None:
    """As when the backend exits after it; nothing is raised."""
    harness = SessionHarness()
    harness.post(INITIALIZE)
    setattr(harness.backend, "send", busy(error))  # noqa: B010
    harness.backend_sends(NOTE, MODERN_ONLY)
    assert harness.stream.lines == [NOTE, MODERN_ONLY]
    assert harness.era.legacy is False
    harness.end()


@pytest.mark.parametrize(
    ("error", "modern"),
    [
        (b'{"code":-32022}', True),
        (b'{"code":-32022,"data":7}', True),
        (b'{"code":-32022,"data":{"supported":[7]}}', True),
        (b'{"code":-32022,"data":{"supported":["2025-06-18"]}}', False),
        (b'{"code":-32602,"data":{"supported":["2026-07-28"]}}', True),
        (b'{"code":-32602,"data":{"supported":["2024-11-05"]}}', False),
        (b'{"code":-32601}', True),
        (b'{"code":-32601,"data":{"supported":["2024-11-05"]}}', False),
        (b'{"code":-32602}', False),
        (b'{"code":"-32022"}', False),
        (b"7", False),
        (b"{", False),
        (b'{"code":' + b"[" * 100000, False),
        (b'{"data":' + b"[" * 100000 + b"]" * 100000 + b',"code":-32022}', False),
    ],
)
def test_initialize_error_shows_whether_a_server_is_only_modern(error: bytes, modern: bool) -> None:
    assert refusal(members(error) or {}).modern_only is modern


@given(
    st.lists(
        st.sampled_from(
            [
                INITIALIZE,
                PROBE,
                NOTE,
                b"[%s,7]" % INITIALIZE,
                b"[]",
                b'{"jsonrpc":"2.0","id":null,"method":"initialize"}',
                b'{"jsonrpc":"2.0","id":"\\ud800","method":"server/discover"}',
            ]
        )
    ),
    st.lists(
        st.sampled_from(
            [
                INITIALIZE_RESULT,
                MODERN_ONLY,
                NOTE,
                b"{",
                b"[" * 5000,
                b'{"jsonrpc":"2.0","id":"a","error":7}',
                b'{"jsonrpc":"2.0","id":"a","error":{"code":NaN}}',
                b'{"jsonrpc":"2.0","id":"a","result":"\\ud800"}',
                b'{"jsonrpc":"2.0","id":null,"error":{"code":-32022}}',
            ]
        )
    ),
)
def test_no_sequence_of_messages_raises_an_error(client: list[bytes], backend: list[bytes]) -> None:
    harness = SessionHarness()
    for number in range(max(len(client), len(backend))):
        harness.post(*client[number : number + 1])
        harness.backend_sends(*backend[number : number + 1])
        harness.clock.advance(0)
    harness.end()


INFO = {"name": "s", "version": "1"}


def initialize_response(**more: object) -> bytes:
    result = {"protocolVersion": "2025-06-18", "serverInfo": INFO, **more}
    return encode({"jsonrpc": "2.0", "id": "a", "result": result})


def test_server_info_of_a_legacy_server_is_remembered() -> None:
    harness = SessionHarness()
    harness.post(INITIALIZE)
    assert harness.era.known.info is None
    harness.backend_sends(initialize_response())
    assert json.loads(harness.era.known.info or b"") == INFO
    assert harness.era.known.versions == ("2025-06-18", "2026-07-28")


def test_server_info_is_not_remembered_if_the_id_was_used_twice() -> None:
    """Otherwise the result of a tool could pass for that of `initialize`."""
    harness = SessionHarness()
    harness.post(b'{"jsonrpc":"2.0","id":"a","method":"tools/call"}', INITIALIZE)
    harness.backend_sends(initialize_response())
    assert harness.session.adapter is None
    assert harness.era.known.info is None


def test_server_info_of_a_modern_server_is_remembered() -> None:
    harness = SessionHarness(is_modern())
    harness.post(INITIALIZE)
    meta = {"io.modelcontextprotocol/serverInfo": INFO}
    harness.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}, "_meta": meta})
    assert json.loads(harness.era.known.info or b"") == INFO
    assert harness.era.known.versions[-1] == "2026-07-28"
    assert SessionHarness(is_modern()).initialized().era.known.info is None


# Legacy clients of modern servers.


def test_known_modern_server_gets_no_initialize() -> None:
    harness = SessionHarness(is_modern()).initialized()
    assert harness.sent_message(0)["method"] == "server/discover"
    harness.end()


def test_delayed_calls_end_with_the_session() -> None:
    harness = SessionHarness(is_modern()).initialized()
    assert harness.sent_message()["method"] == "subscriptions/listen"
    # The subscription has ended, and will be renewed after a pause.
    harness.answer({})
    assert harness.clock.getDelayedCalls() != []
    harness.end()


def test_ended_subscription_is_renewed() -> None:
    harness = SessionHarness(is_modern()).initialized()
    harness.answer({})
    count = len(harness.backend.sent)
    harness.clock.advance(3600)
    assert harness.sent_message(count)["method"] == "subscriptions/listen"
    harness.end()


def test_message_refused_by_a_busy_backend_can_be_sent_again() -> None:
    harness = SessionHarness(is_modern())
    harness.backend.busy = True
    for _ in range(2):
        with pytest.raises(BackendBusy):
            harness.post(INITIALIZE)
    assert harness.answers() == []
    harness.backend.busy = False
    harness.initialized()
    harness.backend.busy = True
    call = b'{"jsonrpc":"2.0","id":5,"method":"tools/list"}'
    with pytest.raises(BackendBusy):
        harness.post(call)
    harness.backend.busy = False
    harness.post(call)
    harness.answer({"tools": []})
    assert [each["id"] for each in harness.answers()] == [5]
    harness.end()


def test_batch_is_split_for_a_modern_server() -> None:
    """
    Revision 2025-03-26 has batches; messages that cannot be sent get an error, the others are sent.
    """
    harness = SessionHarness(is_modern()).initialized()
    one, other = (b'{"jsonrpc":"2.0","id":%d,"method":"tools/list"}' % n for n in (5, 6))
    count = len(harness.backend.sent)
    harness.post(b"[%s, 7, %s]" % (one, other))
    assert [json.loads(line)["method"] for line in harness.backend.sent[count:]] == [
        "tools/list"
    ] * 2
    harness.answer({"tools": []}, -1)
    harness.answer({"tools": []}, -2)
    assert [each["id"] for each in harness.answers()] == [6, 5]
    ping = b'{"jsonrpc":"2.0","id":7,"method":"ping"}'
    harness.backend.busy = True
    harness.post(b"[%s,%s]" % (ping, one))
    assert [(each["id"], "error" in each) for each in harness.answers()] == [(7, False), (5, True)]
    with pytest.raises(BackendBusy):
        harness.post(b"[%s,%s]" % (one, other))
    assert harness.answers() == []
    harness.end()


def test_backend_that_does_not_read_ends_the_session() -> None:
    harness = SessionHarness(is_modern()).initialized()
    harness.answer({})
    harness.backend.busy = True
    harness.clock.advance(3600)
    harness.clock.advance(0)
    assert not harness.session.receiving
    assert "does not read" in harness.session.reason
    harness.end()


def test_backend_that_closed_stdin_may_still_send_messages() -> None:
    harness = SessionHarness(is_modern()).initialized()
    setattr(harness.backend, "send", busy(UnknownSession("gone")))  # noqa: B010
    harness.answer({})
    harness.session.input_closed("it exited")
    harness.clock.advance(3600)
    assert harness.session.receiving
    harness.end()


@pytest.mark.parametrize("how", ["refused", "ended", "answered"])
def test_era_is_forgotten_when_a_server_contradicts_it(how: str) -> None:
    """By an error, or by exiting."""
    harness = SessionHarness(is_modern())
    harness.backoff.failed(0.0, "no")
    harness.post(INITIALIZE)
    if how == "refused":
        harness.refuse()
        assert "error" in harness.answers()[0]
    elif how == "answered":
        harness.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}})
    harness.end()
    assert harness.era.legacy is (False if how == "answered" else None)
    assert bool(harness.backoff.failures) is (how != "answered")


@pytest.mark.parametrize("how", ["silent", "spoke", "lasted", "left"])
def test_repeated_silent_exits_are_reported(how: str) -> None:
    """Not if a process has sent something or lasted long, or if its client has left."""
    era, backoff = ServerEra(), StartBackoff("cat", no_jitter)
    for number in range(STILLBORN_STARTS):
        harness = SessionHarness(era, backoff)
        harness.post(INITIALIZE)
        if how == "spoke":
            harness.backend_sends(NOTE)
        if how == "lasted":
            harness.clock.advance(MAX_BACKOFF_SECONDS)
        if how != "left":
            harness.backend.exit_status = "exit status 3"
        harness.end()
        last = number == STILLBORN_STARTS - 1
        assert harness.warnings == (["over"] if how == "silent" and last else [])
    assert str(backoff) == "ready"


@pytest.mark.parametrize(("waited", "reported"), [(29, False), (30, True), (1000, True)])
def test_repeated_silence_is_reported(waited: float, reported: bool) -> None:
    """Clients that leave after `start_timeout` without an answer are as many failed starts."""
    era, backoff = ServerEra(), StartBackoff("cat", no_jitter)
    for number in range(STILLBORN_STARTS):
        harness = SessionHarness(era, backoff, start_timeout=30.0)
        harness.post(INITIALIZE)
        harness.clock.advance(waited)
        harness.end()
        last = number == STILLBORN_STARTS - 1
        silent = ["no answer to `initialize` in 30 s"]
        assert harness.warnings == (silent if last and reported else [])
    assert str(backoff) == "ready"


@pytest.mark.parametrize("error", [True, False])
def test_response_to_a_similar_id_does_not_affect_the_era(
    error: bool,
) -> None:
    """A client may use 1 and "1" at the same time."""
    harness = SessionHarness(is_modern())
    harness.post(INITIALIZE.replace(b'"\\u0061"', b"1"))
    harness.post(b'{"jsonrpc":"2.0","id":"1","method":"tools/list"}')
    if error:
        harness.refuse()
    else:
        harness.answer({"tools": []})
    assert (harness.era.legacy, harness.era.known.info, harness.backoff.successes) == (
        False,
        None,
        0,
    )
    assert is_starting(harness.session)
    harness.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}}, 0)
    assert (harness.era.legacy, harness.backoff.successes) == (False, 1)
    assert not is_starting(harness.session)
    harness.end()
