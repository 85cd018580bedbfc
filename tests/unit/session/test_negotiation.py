"""What a session of an older client begins with, and how it goes on."""

from __future__ import annotations

import json
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
TOLD = b'{ "jsonrpc":"2.0","id":"a","result":{"protocolVersion":"2025-06-18"} }'
MODERN_ONLY = (
    b'{"jsonrpc":"2.0","id":"a","error":{"code":-32022,"message":"no",'
    b'"data":{"supported":["2026-07-28"],"requested":"2025-06-18"}}}'
)
NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}'


class Made:
    """A session that has just been opened, between fakes."""

    def __init__(self, era: ServerEra | None = None, backoff: StartBackoff | None = None) -> None:
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
        self.doubts: list[str] = []
        self.session.adapter = first_adapter(
            self.session, self.era, self.backoff, self.doubts.append
        )

    def release(self) -> None:
        """As a permit."""

    def post(self, *lines: bytes) -> None:
        """Nothing comes to the client from within its own call."""
        before = list(self.stream.lines)
        try:
            self.session.send_to_backend(list(lines))
        finally:
            assert self.stream.lines == before

    def say(self, *lines: bytes) -> None:
        self.session.messages_received(list(lines))

    def answers(self) -> list[Any]:
        self.clock.advance(0)
        lines, self.stream.lines = self.stream.lines, []
        return [json.loads(line) for line in lines]

    def asked(self, number: int = -1) -> Any:
        return json.loads(self.backend.sent[number])

    def answer(self, result: dict[str, object], number: int = -1) -> None:
        result = {"resultType": "complete", **result}
        self.say(encode({"jsonrpc": "2.0", "id": self.asked(number)["id"], "result": result}))

    def refuse(self) -> None:
        error = {"code": -32601, "message": "unknown method"}
        self.say(encode({"jsonrpc": "2.0", "id": self.asked()["id"], "error": error}))

    def opened(self) -> Made:
        """Initialized, before a backend that is modern alone."""
        self.post(INITIALIZE)
        if isinstance(self.session.adapter, UndecidedAdapter):
            self.say(MODERN_ONLY)
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


def test_initialize_and_its_answer_pass_as_they_are() -> None:
    made = Made()
    made.post(INITIALIZE)
    made.say(NOTE, TOLD, NOTE)
    assert made.backend.sent == [INITIALIZE]
    assert made.stream.lines == [NOTE, TOLD, NOTE]
    assert (made.era.legacy, made.session.adapter) == (True, None)
    made.end()


@pytest.mark.parametrize(("asked", "said"), [(b"1", b'"1"'), (b'"1"', b"1")])
def test_a_server_that_spells_ids_in_another_way(asked: bytes, said: bytes) -> None:
    """Its answers get the client's ids, all through the session, and it is named."""
    made = Made()
    made.post(INITIALIZE.replace(b'"\\u0061"', asked))
    made.say(NOTE, TOLD.replace(b'"a"', said))
    assert [each.get("id") for each in made.answers()] == [None, json.loads(asked)]
    assert [fault for fault, _ in made.complaints] == ["ids"]
    ping = b'{"jsonrpc":"2.0","id":%b,"method":"ping"}'
    made.post(ping % b"7", b"[%b,%b]" % (ping % b"8", ping % b'"x"'))
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 8}}
    made.post(encode(cancelled))
    for ident in ("7", "8", "x", "99"):
        made.say(encode({"jsonrpc": "2.0", "id": ident, "result": {}}))
    assert [each["id"] for each in made.answers()] == [7, "8", "x", "99"]
    assert len(made.backend.sent) == 3
    made.end()


@pytest.mark.parametrize("member", [b"", b',"x":"\\ud800"'])
def test_a_probe_is_answered_here(member: bytes) -> None:
    """Never before an older backend, and not from within the call."""
    probe = PROBE[:-1] + member + b"}"
    made = Made()
    made.post(probe)
    [answer] = made.answers()
    assert (answer["id"], answer["error"]["code"]) == (0, -32601)
    made.post(NOTE, probe, INITIALIZE, probe.replace(b'"id":0,', b""))
    assert made.backend.sent == [NOTE + b"\n" + INITIALIZE]
    assert len(made.answers()) == 1
    assert isinstance(made.session.adapter, UndecidedAdapter)
    made.end()


def test_nothing_is_answered_where_the_rest_was_not_taken() -> None:
    made = Made()
    made.backend.busy = True
    with pytest.raises(BackendBusy):
        made.post(PROBE, INITIALIZE)
    assert made.answers() == []


def test_another_error_leaves_it_undecided() -> None:
    """The client tries again, and a probe is still no matter of the backend's."""
    made = Made()
    error = b'{"jsonrpc":"2.0","id":"a","error":{"code":-32602,"message":"no"}}'
    made.post(INITIALIZE)
    made.say(error)
    assert made.stream.lines == [error]
    assert made.era.legacy is None
    made.post(PROBE)
    made.post(INITIALIZE)
    made.say(TOLD)
    assert made.backend.sent == [INITIALIZE] * 2
    assert made.era.legacy is True


def test_a_backend_that_is_modern_alone_keeps_its_process() -> None:
    made = Made()
    made.post(INITIALIZE)
    made.say(MODERN_ONLY)
    assert made.stream.lines == []
    assert made.era.legacy is False
    assert isinstance(made.session.adapter, LegacyClientAdapter)
    assert [json.loads(line)["method"] for line in made.backend.sent] == [
        "initialize",
        "server/discover",
    ]
    made.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}})
    [initialized] = made.answers()
    assert initialized["result"]["protocolVersion"] == "2025-06-18"
    made.end()


@pytest.mark.parametrize("error", [BackendBusy("busy"), UnknownSession("gone")])
def test_a_backend_that_refuses_and_takes_no_more(error: Exception) -> None:
    """One that ends of it, say: the client reads what it said, nothing is raised."""
    made = Made()
    made.post(INITIALIZE)
    setattr(made.backend, "send", busy(error))  # noqa: B010
    made.say(NOTE, MODERN_ONLY)
    assert made.stream.lines == [NOTE, MODERN_ONLY]
    assert made.era.legacy is False
    made.end()


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
def test_which_errors_say_so(error: bytes, modern: bool) -> None:
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
                TOLD,
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
def test_whatever_they_say_nothing_is_raised(client: list[bytes], backend: list[bytes]) -> None:
    made = Made()
    for number in range(max(len(client), len(backend))):
        made.post(*client[number : number + 1])
        made.say(*backend[number : number + 1])
        made.clock.advance(0)
    made.end()


INFO = {"name": "s", "version": "1"}


def told(**more: object) -> bytes:
    result = {"protocolVersion": "2025-06-18", "serverInfo": INFO, **more}
    return encode({"jsonrpc": "2.0", "id": "a", "result": result})


def test_what_an_older_server_says_of_itself_is_known_from_then_on() -> None:
    made = Made()
    made.post(INITIALIZE)
    assert made.era.known.info is None
    made.say(told())
    assert json.loads(made.era.known.info or b"") == INFO
    assert made.era.known.versions == ("2025-06-18", "2026-07-28")


def test_an_answer_that_may_be_to_something_else_makes_nothing_known() -> None:
    """With the id of `initialize` once more, a tool could say what a client tells it to."""
    made = Made()
    made.post(b'{"jsonrpc":"2.0","id":"a","method":"tools/call"}', INITIALIZE)
    made.say(told())
    assert made.session.adapter is None
    assert made.era.known.info is None


def test_what_a_newer_server_says_of_itself_is_known_from_then_on() -> None:
    made = Made(is_modern())
    made.post(INITIALIZE)
    meta = {"io.modelcontextprotocol/serverInfo": INFO}
    made.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}, "_meta": meta})
    assert json.loads(made.era.known.info or b"") == INFO
    assert made.era.known.versions[-1] == "2026-07-28"
    assert Made(is_modern()).opened().era.known.info is None


# Downward.


def test_what_is_known_is_not_asked_again() -> None:
    made = Made(is_modern()).opened()
    assert made.asked(0)["method"] == "server/discover"
    made.end()


def test_the_timers_end_with_the_session() -> None:
    made = Made(is_modern()).opened()
    assert made.asked()["method"] == "subscriptions/listen"
    # The subscription ends, and is to be had again after a while.
    made.answer({})
    assert made.clock.getDelayedCalls() != []
    made.end()


def test_what_is_to_be_had_again_is() -> None:
    made = Made(is_modern()).opened()
    made.answer({})
    count = len(made.backend.sent)
    made.clock.advance(3600)
    assert made.asked(count)["method"] == "subscriptions/listen"
    made.end()


def test_what_was_not_taken_has_not_happened() -> None:
    made = Made(is_modern())
    made.backend.busy = True
    for _ in range(2):
        with pytest.raises(BackendBusy):
            made.post(INITIALIZE)
    assert made.answers() == []
    made.backend.busy = False
    made.opened()
    made.backend.busy = True
    call = b'{"jsonrpc":"2.0","id":5,"method":"tools/list"}'
    with pytest.raises(BackendBusy):
        made.post(call)
    made.backend.busy = False
    made.post(call)
    made.answer({"tools": []})
    assert [each["id"] for each in made.answers()] == [5]
    made.end()


def test_a_batch_is_taken_apart() -> None:
    """2025-03-26 has them; what is not taken of one is answered, the rest goes on."""
    made = Made(is_modern()).opened()
    one, other = (b'{"jsonrpc":"2.0","id":%d,"method":"tools/list"}' % n for n in (5, 6))
    count = len(made.backend.sent)
    made.post(b"[%s, 7, %s]" % (one, other))
    assert [json.loads(line)["method"] for line in made.backend.sent[count:]] == ["tools/list"] * 2
    made.answer({"tools": []}, -1)
    made.answer({"tools": []}, -2)
    assert [each["id"] for each in made.answers()] == [6, 5]
    ping = b'{"jsonrpc":"2.0","id":7,"method":"ping"}'
    made.backend.busy = True
    made.post(b"[%s,%s]" % (ping, one))
    assert [(each["id"], "error" in each) for each in made.answers()] == [(7, False), (5, True)]
    with pytest.raises(BackendBusy):
        made.post(b"[%s,%s]" % (one, other))
    assert made.answers() == []
    made.end()


def test_a_backend_that_does_not_read_ends_the_session() -> None:
    made = Made(is_modern()).opened()
    made.answer({})
    made.backend.busy = True
    made.clock.advance(3600)
    made.clock.advance(0)
    assert not made.session.receiving
    assert "does not read" in made.session.reason
    made.end()


def test_a_backend_that_takes_no_more_may_still_speak() -> None:
    made = Made(is_modern()).opened()
    setattr(made.backend, "send", busy(UnknownSession("gone")))  # noqa: B010
    made.answer({})
    made.session.input_closed("it exited")
    made.clock.advance(3600)
    assert made.session.receiving
    made.end()


@pytest.mark.parametrize("how", ["refused", "ended", "answered"])
def test_a_server_that_has_become_another_is_asked_again(how: str) -> None:
    """What is known of a server holds as long as it answers that way."""
    made = Made(is_modern())
    made.backoff.failed(0.0, "no")
    made.post(INITIALIZE)
    if how == "refused":
        made.refuse()
        assert "error" in made.answers()[0]
    elif how == "answered":
        made.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}})
    made.end()
    assert made.era.legacy is (False if how == "answered" else None)
    assert bool(made.backoff.failures) is (how != "answered")


@pytest.mark.parametrize("how", ["silent", "spoke", "lasted", "left"])
def test_processes_that_end_without_a_word(how: str) -> None:
    """Many in a row are a doubt; not where it has spoken, or its client has left."""
    era, backoff = ServerEra(), StartBackoff("cat", no_jitter)
    for number in range(STILLBORN_STARTS):
        made = Made(era, backoff)
        made.post(INITIALIZE)
        if how == "spoke":
            made.say(NOTE)
        if how == "lasted":
            made.clock.advance(MAX_BACKOFF_SECONDS)
        if how != "left":
            made.backend.exit_status = "exit status 3"
        made.end()
        last = number == STILLBORN_STARTS - 1
        assert made.doubts == (["over"] if how == "silent" and last else [])
    assert str(backoff) == "ready"


@pytest.mark.parametrize("error", [True, False])
def test_an_answer_to_another_request_with_a_similar_id_says_nothing_of_the_era(
    error: bool,
) -> None:
    """A client may use 1 and "1" at the same time."""
    made = Made(is_modern())
    made.post(INITIALIZE.replace(b'"\\u0061"', b"1"))
    made.post(b'{"jsonrpc":"2.0","id":"1","method":"tools/list"}')
    if error:
        made.refuse()
    else:
        made.answer({"tools": []})
    assert (made.era.legacy, made.era.known.info, made.backoff.successes) == (False, None, 0)
    assert is_starting(made.session)
    made.answer({"supportedVersions": ["2026-07-28"], "capabilities": {}}, 0)
    assert (made.era.legacy, made.backoff.successes) == (False, 1)
    assert not is_starting(made.session)
    made.end()
