"""A legacy client before a modern backend: the session, message by message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcpbridge.jsonrpc.envelope import Envelope, read_message
from mcpbridge.jsonrpc.members import members_of
from mcpbridge.mcp.inflight import CANCELLED_KEPT, MAX_IN_FLIGHT
from mcpbridge.mcp.modern_request import TASKS
from mcpbridge.translation import client_calls, input_rounds
from mcpbridge.translation.client_calls import Step
from mcpbridge.translation.legacy_client import LegacyClientTranslator
from mcpbridge.translation.subscription_relay import (
    ACKNOWLEDGED_SECONDS,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MAX_RENEWALS,
    MAX_URI_LENGTH,
    MAX_URIS,
)
from mcpbridge.translation.to_legacy import _SHOWN_CHARS, error_message

PREFIX = "io.modelcontextprotocol/"
EXTENSION_NOTIFICATIONS = ("notifications/x", "ui/notifications/x")
EVERYTHING = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}},
    "roots": {"listChanged": True},
    "tasks": {"list": {}},
}
ALL_LISTS = {name: {"listChanged": True} for name in ("tools", "prompts", "resources")}
FORM = {"method": "elicitation/create", "params": {"mode": "form", "message": "?"}}
URL = {"method": "elicitation/create", "params": {"mode": "url", "url": "https://x", "message": ""}}
SAMPLE = {"method": "sampling/createMessage", "params": {"messages": []}}
WITH_TOOLS = {"method": "sampling/createMessage", "params": {"tools": []}}
ROOTS = {"method": "roots/list"}
MODELESS = {"method": "elicitation/create", "params": {}}
ODD = {"method": "elicitation/create", "params": {"mode": 1}}
CLIENT = {"name": "c", "version": "1"}


def doubled(failures: int) -> float:
    """Return a pause without the jitter that it has in the bridge."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2**failures)


class Talk:
    """A session, what it has said to each side, and the time."""

    def __init__(
        self,
        capabilities: Any = None,
        version: str = "2025-11-25",
        server: Any = None,
        *,
        start: bool = True,
    ) -> None:
        self.reported: list[tuple[str, bytes]] = []
        self.session = LegacyClientTranslator(
            version="9.9",
            pause=doubled,
            report=lambda *told: self.reported.append(told),
        )
        self.now = 100.0
        self.due: float | None = None
        self.client: list[Any] = []
        self.backend: list[Any] = []
        self.lines: list[bytes] = []
        self.envelope = Envelope("2.0")
        if start:
            self.initialize({} if capabilities is None else capabilities, version)
            self.answer({"capabilities": {} if server is None else server})
            self.tell("notifications/initialized")
            self.client.clear()

    def take(self, step: Step) -> None:
        self.due = step.due
        self.lines = step.to_client
        self.client += map(json.loads, step.to_client)
        self.backend += map(json.loads, step.to_backend)
        for line in step.to_backend:
            check_for_backend(line)
        assert not any(b"\n" in line for line in step.to_client + step.to_backend)

    def post(self, line: bytes) -> None:
        line, envelope = read_message(line)
        assert envelope is not None
        self.envelope = envelope
        self.take(self.session.from_client(line, envelope, self.now))

    def say(self, **members: Any) -> None:
        self.post(json.dumps({"jsonrpc": "2.0", **members}).encode())

    def ask(self, ident: Any, method: str, params: Any = None) -> None:
        self.say(id=ident, method=method, **({} if params is None else {"params": params}))

    def tell(self, method: str, **params: Any) -> None:
        self.say(method=method, params=params)

    def initialize(self, capabilities: Any, version: Any = "2025-11-25", **more: Any) -> None:
        params = {"protocolVersion": version, "capabilities": capabilities, **more}
        self.ask("init", "initialize", params)

    def raw(self, line: bytes) -> None:
        self.take(self.session.from_backend(line, self.now))

    def reply(self, **members: Any) -> None:
        self.raw(json.dumps({"jsonrpc": "2.0", **members}).encode())

    def answer(self, result: Any, number: Any = None) -> None:
        """The backend answers its last request, unless another is named."""
        self.reply(id=self.last["id"] if number is None else number, result=result)

    def notify(self, method: str, listen: Any = None, **params: Any) -> None:
        if listen is not None:
            params["_meta"] = {PREFIX + "subscriptionId": listen}
        self.reply(method=f"notifications/{method}", params=params)

    def acknowledge(self, number: int, *uris: str) -> None:
        self.notify(
            "subscriptions/acknowledged", number, notifications={"resourceSubscriptions": uris}
        )

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.session.tick(self.now))

    def undo(self) -> None:
        self.session.undo(self.envelope)
        self.due = self.session.due

    @property
    def last(self) -> Any:
        return self.backend[-1]

    def heard(self) -> list[Any]:
        """What the client has got since."""
        said, self.client = self.client, []
        return said

    def requested(self) -> list[Any]:
        """What the backend has got since."""
        said, self.backend = self.backend, []
        return said


def check_for_backend(line: bytes) -> None:
    """No response, and no request without all that 2026-07-28 wants in `_meta`."""
    message = json.loads(line)
    assert message["jsonrpc"] == "2.0"
    if "id" not in message:
        if message["method"] in EXTENSION_NOTIFICATIONS:
            return
        assert message["method"] == "notifications/cancelled"
        assert isinstance(message["params"]["requestId"], int)
        return
    assert message["method"] not in {"initialize", "ping", "logging/setLevel"}
    assert type(message["id"]) is int
    meta = message["params"]["_meta"]
    assert meta[PREFIX + "protocolVersion"] == "2026-07-28"
    assert "tasks" not in meta[PREFIX + "clientCapabilities"]
    assert {"name", "version"} <= meta[PREFIX + "clientInfo"].keys()


def errors(said: list[Any]) -> list[tuple[Any, int]]:
    return [(each["id"], each["error"]["code"]) for each in said]


# The handshake.


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2024-10-07", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
    ],
)
def test_initialize_is_answered_by_what_the_server_says_of_itself(asked: str, got: str) -> None:
    talk = Talk(start=False)
    talk.initialize(
        {"roots": {"listChanged": True}}, asked, clientInfo={"name": "c", "version": "1"}
    )
    [discover] = talk.backend
    assert discover["method"] == "server/discover"
    assert discover["params"]["_meta"] == {
        PREFIX + "protocolVersion": "2026-07-28",
        PREFIX + "clientInfo": CLIENT,
        PREFIX + "clientCapabilities": {"roots": {}},
    }
    server = {"name": "s", "version": "2", "title": "S"}
    capabilities = {"tools": {"listChanged": True}, "resources": {"subscribe": True}}
    talk.answer(
        {
            "resultType": "complete",
            "supportedVersions": ["2026-07-28"],
            "capabilities": {
                **capabilities,
                "extensions": {TASKS: {}, "a/b": {"c": [1]}},
                "tasks": {},
                "new": [1],
            },
            "instructions": "do",
            "ttlMs": 1,
            "cacheScope": "public",
            "_meta": {PREFIX + "serverInfo": server},
        }
    )
    assert [each["result"] for each in talk.heard()] == [
        {
            "protocolVersion": got,
            "capabilities": {**capabilities, "extensions": {"a/b": {"c": [1]}}, "new": [1]},
            "serverInfo": server,
            "instructions": "do",
        }
    ]


@pytest.mark.parametrize("info", [None, 1, {}, {"name": "s"}, {"name": "s", "version": 1}])
def test_both_sides_have_a_name_and_a_version(info: Any) -> None:
    talk = Talk(start=False)
    talk.initialize({}, clientInfo=info)
    assert talk.last["params"]["_meta"][PREFIX + "clientInfo"] == {
        "name": "mcpbridge",
        "version": "9.9",
    }
    talk.answer({"_meta": {PREFIX + "serverInfo": info}, "instructions": 1})
    assert talk.heard()[0]["result"] == {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "serverInfo": {"name": "unknown", "version": "0"},
    }


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ([], -32602),
        ({}, -32602),
        (None, -32602),
        ({"protocolVersion": 1}, -32602),
        ({"protocolVersion": "2025-11-25", "capabilities": 1}, -32602),
        ({"protocolVersion": "2025-11-25", "capabilities": []}, -32602),
        ({"protocolVersion": "2025-11-25", "capabilities": {"roots": True}}, -32602),
    ],
)
def test_initialize_that_cannot_be_read(params: Any, code: int) -> None:
    talk = Talk(start=False)
    talk.ask(1, "initialize", params)
    assert errors(talk.heard()) == [(1, code)]
    assert talk.backend == []
    talk.initialize({})
    assert len(talk.backend) == 1


@pytest.mark.parametrize(
    ("capabilities", "version", "declared"),
    [
        (
            EVERYTHING,
            "2025-11-25",
            {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}},
        ),
        (EVERYTHING, "2025-06-18", {"elicitation": {}, "sampling": {"tools": {}}, "roots": {}}),
        ({"sampling": None, "roots": {"listChanged": None}}, "2025-11-25", {"roots": {}}),
        (
            {"experimental": {"x": {}}, "other": 1},
            "2025-11-25",
            {"experimental": {"x": {}}, "other": 1},
        ),
        (
            {"extensions": {"a/b": {"c": [1]}, TASKS: {}}, "tasks": {}},
            "2025-06-18",
            {"extensions": {"a/b": {"c": [1]}}},
        ),
    ],
)
def test_capabilities_as_the_backend_sees_them(
    capabilities: Any, version: str, declared: Any
) -> None:
    talk = Talk(capabilities, version)
    talk.ask(1, "tools/list")
    assert talk.last["params"]["_meta"][PREFIX + "clientCapabilities"] == declared


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": -32601, "message": "no such method"}},
        {"error": 1},
        {"result": 1},
        {"result": {"resultType": "input_required", "requestState": "s"}},
    ],
)
def test_a_server_that_refuses_discovery(answer: Any) -> None:
    """It is an error of `initialize`, which may be sent again."""
    talk = Talk(start=False)
    talk.initialize({})
    talk.reply(id=talk.last["id"], **answer)
    assert errors(talk.heard()) == [("init", -32603)]
    talk.initialize({})
    talk.answer({})
    assert "result" in talk.heard()[0]


def test_initialize_without_capabilities() -> None:
    talk = Talk(start=False)
    talk.ask(1, "initialize", {"protocolVersion": "2025-03-26"})
    assert talk.last["params"]["_meta"][PREFIX + "clientCapabilities"] == {}


def test_an_error_code_beyond_a_float() -> None:
    talk = Talk()
    talk.ask(1, "tools/list")
    line = b'{"jsonrpc":"2.0","id":%d,"error":{"code":1e999,"message":""}}' % talk.last["id"]
    talk.raw(line)
    assert errors(talk.heard()) == [(1, -32603)]


def test_messages_out_of_order() -> None:
    talk = Talk(start=False)
    talk.ask(1, "tools/list")
    talk.ask(2, "ping")
    talk.initialize({})
    talk.initialize({})
    talk.tell("notifications/initialized")
    talk.ask(3, "tools/list")
    one, two, three = talk.heard()
    assert errors([one, three]) == [(1, -32600), ("init", -32600)]
    assert two == {"jsonrpc": "2.0", "id": 2, "result": {}}
    assert [each["method"] for each in talk.requested()] == ["server/discover", "tools/list"]
    talk.answer({"capabilities": ALL_LISTS}, 1)
    assert talk.last["params"]["notifications"] == {
        "toolsListChanged": True,
        "promptsListChanged": True,
        "resourcesListChanged": True,
    }


# Requests and answers.


def test_a_request_says_all_about_its_client() -> None:
    talk = Talk({"roots": {}})
    talk.ask("a", "tools/call", {"_meta": {"progressToken": 7, "traceparent": "t"}, "name": "x"})
    talk.ask("b", "prompts/list")
    first, second = talk.backend[-2:]
    assert first["id"] != second["id"]
    assert first["params"]["name"] == "x"
    assert first["params"]["_meta"] == {
        "progressToken": 7,
        "traceparent": "t",
        PREFIX + "protocolVersion": "2026-07-28",
        PREFIX + "clientInfo": {"name": "mcpbridge", "version": "9.9"},
        PREFIX + "clientCapabilities": {"roots": {}},
    }
    talk.answer({"prompts": []}, second["id"])
    talk.answer({"content": []}, first["id"])
    assert [each["id"] for each in talk.heard()] == ["b", "a"]
    assert talk.due is None


def test_bytes_pass_as_they_are() -> None:
    """Ids, arguments and results keep their spelling, lone surrogates too."""
    talk = Talk()
    arguments = rb'{"a" : 1.0, "b":"\ud800", "c":[1e2]}'
    line = (
        rb'{"jsonrpc":"2.0","id":1.0,"method":"tools/call","params":{"arguments":%s}}' % arguments
    )
    read, envelope = read_message(line)
    assert envelope is not None
    [sent] = talk.session.from_client(read, envelope, 0).to_backend
    assert arguments in sent
    number = json.loads(sent)["id"]
    talk.raw(
        rb'{"jsonrpc":"2.0","id":%d,' % number
        + rb'"result":{"content":[ {"x":"\udfff"} ],"resultType":"complete"}}'
    )
    assert talk.lines == [rb'{"jsonrpc":"2.0","id":1.0,"result":{"content":[ {"x":"\udfff"} ]}}']


def test_methods_that_a_legacy_client_does_not_have() -> None:
    talk = Talk()
    talk.ask(1, "tools/call", {"task": {}, "inputResponses": {}, "requestState": "x", "name": "n"})
    assert set(talk.last["params"]) == {"_meta", "name"}
    talk.ask(2, "tools/list", {"_meta": {PREFIX + "logLevel": "debug"}})
    assert PREFIX + "logLevel" not in talk.last["params"]["_meta"]
    talk.requested()
    for number, method in enumerate(
        ["tasks/get", "tasks/x", "server/discover", "subscriptions/listen"]
    ):
        talk.ask(number + 3, method)
        assert errors(talk.heard()) == [(number + 3, -32601)]
    wrong: list[Any] = [[], 1, {"_meta": 1}]
    for params in wrong:
        talk.ask(9, "tools/list", params)
        assert errors(talk.heard()) == [(9, -32602)]
    assert talk.backend == []


def test_log_level() -> None:
    talk = Talk()
    for wrong in ({}, {"level": "loud"}, {"level": 1}):
        talk.ask(1, "logging/setLevel", wrong)
        assert errors(talk.heard()) == [(1, -32602)]
    talk.ask(1, "logging/setLevel", {"level": "warning"})
    assert talk.heard()[0]["result"] == {}
    talk.ask(2, "tools/list", {"_meta": None})
    assert talk.last["params"]["_meta"][PREFIX + "logLevel"] == "warning"


@pytest.mark.parametrize(
    ("method", "result", "seen"),
    [
        ("tools/list", {"tools": [], "ttlMs": 1, "cacheScope": "public"}, {"tools": []}),
        ("x/own", {"ttlMs": 1}, {"ttlMs": 1}),
        ("tools/call", {"_meta": {PREFIX + "serverInfo": {}, "a": 1}}, {"_meta": {"a": 1}}),
        ("tools/call", {"_meta": {PREFIX + "serverInfo": {}}}, {}),
    ],
)
def test_results(method: str, result: Any, seen: Any) -> None:
    talk = Talk()
    talk.ask(1, method)
    talk.answer({"resultType": "complete", **result})
    assert talk.heard() == [{"jsonrpc": "2.0", "id": 1, "result": seen}]


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        ({"error": {"code": -32602, "message": "no", "data": 1}}, -32602, "no"),
        ({"error": {"code": -32020, "message": "no"}}, -32603, "bridge"),
        ({"error": {"code": -32021, "message": "no"}}, -32603, "bridge"),
        ({"error": {"code": -32022, "message": "no"}}, -32603, "bridge"),
        ({"error": {"code": True, "message": "no"}}, -32603, "not a JSON-RPC"),
        ({"error": {"code": 1}}, -32603, "not a JSON-RPC"),
        ({"error": "no"}, -32603, "not a JSON-RPC"),
        ({"result": None}, -32603, "not a JSON-RPC"),
        ({}, -32603, "not a JSON-RPC"),
        ({"result": {"resultType": "task"}}, -32603, "type"),
        ({"result": {"resultType": 1}}, -32603, "type"),
        ({"result": {"resultType": "input_required", "requestState": "s"}}, -32603, "type"),
    ],
)
def test_errors(answer: Any, code: int, text: str) -> None:
    talk = Talk()
    talk.ask(1, "tools/list")
    talk.reply(id=talk.last["id"], **answer)
    [said] = talk.heard()
    assert (said["id"], said["error"]["code"]) == (1, code)
    assert text in said["error"]["message"]


def test_invalid_messages_of_the_server() -> None:
    talk = Talk()
    talk.ask(1, "tools/list")
    for line in (b"", b"[]", b"x", b"[" * 100_000, b'{"jsonrpc":"2.0"}', b'{"id":1}'):
        talk.raw(line)
    talk.reply(id=1, method="roots/list")
    talk.reply(id="1", result={})
    talk.reply(id=None, error={"code": 1, "message": ""})
    talk.reply(id=99, result={})
    talk.notify("cancelled", requestId=talk.last["id"])
    talk.notify("cancelled")
    assert talk.heard() == []
    assert talk.session.dropped == {"invalid": 5, "request": 1, "unasked": 6}


def test_cancellation() -> None:
    talk = Talk()
    talk.ask("a", "tools/call")
    number = talk.last["id"]
    talk.tell("notifications/cancelled", requestId="b")
    talk.tell("notifications/cancelled")
    talk.tell("notifications/roots/list_changed")
    talk.tell("notifications/initialized")
    talk.requested()
    talk.tell("notifications/cancelled", requestId="a", reason="enough")
    [cancelled] = talk.requested()
    assert cancelled["params"] == {"requestId": number, "reason": "enough"}
    talk.answer({}, number)
    talk.tell("notifications/cancelled", requestId="a")
    assert not talk.client + talk.backend


@pytest.mark.parametrize("method", EXTENSION_NOTIFICATIONS)
def test_a_notification_of_an_extension_passes_as_it_stands(method: str) -> None:
    talk = Talk(start=False)
    talk.tell(method)
    assert talk.backend == []
    talk = Talk()
    talk.requested()
    talk.tell(method, a=1.0)
    talk.tell("notifications/tasks/status", a=1)
    talk.tell("notifications/progress", progressToken=1)
    assert talk.requested() == [{"jsonrpc": "2.0", "method": method, "params": {"a": 1.0}}]


def test_initialize_is_not_cancelled() -> None:
    talk = Talk(start=False)
    talk.initialize({})
    talk.tell("notifications/cancelled", requestId="init")
    assert len(talk.backend) == 1
    talk.answer({})
    assert talk.heard()[0]["id"] == "init"


def test_bounds_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk()
    for number in range(MAX_IN_FLIGHT):
        talk.ask(number, "tools/list")
    talk.ask(0, "tools/list")
    talk.ask("more", "tools/list")
    assert errors(talk.heard()) == [(0, -32600), ("more", -32000)]
    monkeypatch.setattr(client_calls, "MAX_KEPT_BYTES", 100)
    talk = Talk()
    talk.ask(1, "tools/call", {"name": "x" * 200})
    talk.ask(2, "tools/call", {"name": "x"})
    assert errors(talk.heard()) == [(2, -32000)]
    talk.answer({}, talk.last["id"])
    talk.ask(3, "tools/call", {"name": "x"})
    assert [each["id"] for each in talk.heard()] == [1]


def test_a_request_of_which_nothing_is_kept_is_never_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_calls, "MAX_KEPT_BYTES", 100)
    talk = Talk()
    talk.ask(1, "tools/call", {"name": "x" * 200})
    talk.ask(2, "tools/list")
    assert talk.heard() == []
    assert talk.last["method"] == "tools/list"


# Questions.


def asked(talk: Talk, requests: Any, state: Any = "s", method: str = "tools/call") -> None:
    """A call that the backend answers with questions."""
    talk.ask("call", method, {"name": "n"})
    talk.requested()
    require(talk, 0, requests, state)


def require(talk: Talk, number: int, requests: Any, state: Any = "s") -> None:
    result = {"resultType": "input_required", "inputRequests": requests, "requestState": state}
    numbers = talk.session._calls._by_number
    talk.answer({key: of for key, of in result.items() if of is not None}, max(numbers))  # type: ignore[type-var]


def test_input_requests_reach_the_client_and_the_call_is_retried() -> None:
    talk = Talk(EVERYTHING)
    asked(talk, {"f": FORM, "u": URL, "s": SAMPLE, "t": WITH_TOOLS, "r": ROOTS}, "s\u00e9")
    form, url, *others = talk.heard()
    assert [each["id"] for each in (form, url, *others)] == [f"bridge:{n}" for n in range(1, 6)]
    assert form["params"] == FORM["params"]
    assert len(url["params"].pop("elicitationId")) == 36
    assert url["params"] == URL["params"]
    assert [each.get("params") for each in others] == [{"messages": []}, {"tools": []}, None]
    assert talk.due == talk.now + input_rounds.ANSWER_SECONDS
    for number in range(5, 0, -1):
        assert talk.backend == []
        talk.say(id=f"bridge:{number}", result={"n": number})
    talk.say(id="bridge:1", result={})
    talk.say(id="other", result={})
    [again] = talk.requested()
    assert again["params"]["requestState"] == "s\u00e9"
    assert again["params"]["name"] == "n"
    answers = {key: {"n": n} for n, key in enumerate("fustr", 1)}
    assert again["params"]["inputResponses"] == answers
    require(talk, 0, {"f": FORM}, None)
    talk.say(id="bridge:6", result={"action": "cancel"})
    [third] = talk.requested()
    assert third["id"] > again["id"]
    assert "requestState" not in third["params"]
    assert third["params"]["inputResponses"] == {"f": {"action": "cancel"}}
    talk.answer({"resultType": "complete", "content": []}, third["id"])
    assert talk.heard()[-1] == {"jsonrpc": "2.0", "id": "call", "result": {"content": []}}
    assert talk.due is None


def test_state_is_byte_exact() -> None:
    talk = Talk()
    talk.ask(1, "tools/call")
    state = rb'"\u0041\/\ud800 \n"'
    number = talk.last["id"]
    result = rb'{"resultType":"input_required","requestState":%s}' % state
    talk.raw(rb'{"jsonrpc":"2.0","id":%d,"result":%s}' % (number, result))
    assert talk.due == talk.now + input_rounds.PACE_SECONDS
    step = talk.session.tick(talk.now + input_rounds.PACE_SECONDS / 2)
    assert step.to_backend == []
    [again] = talk.session.tick(talk.now + input_rounds.PACE_SECONDS).to_backend
    assert b'"requestState":' + state in again
    assert b"inputResponses" not in again
    assert talk.session.tick(talk.now + 1) == ([], [], None)


@pytest.mark.parametrize(
    ("capabilities", "version", "request_", "passes"),
    [
        ({}, "2025-11-25", FORM, False),
        ({"elicitation": {}}, "2025-11-25", FORM, True),
        ({"elicitation": {}}, "2025-11-25", URL, False),
        ({"elicitation": {"url": {}}}, "2025-11-25", FORM, False),
        ({"elicitation": {"url": {}}}, "2025-11-25", URL, True),
        ({"elicitation": {"url": {}}}, "2025-06-18", URL, False),
        ({"elicitation": {"url": {}}}, "2025-06-18", FORM, True),
        ({"elicitation": {}}, "2025-11-25", ODD, False),
        ({"elicitation": {}}, "2025-11-25", MODELESS, True),
    ],
)
def test_an_elicitation_that_the_client_does_not_support_is_declined(
    capabilities: Any, version: str, request_: Any, passes: bool
) -> None:
    talk = Talk(capabilities, version)
    asked(talk, {"k": request_}, None)
    if passes:
        [question] = talk.heard()
        has_mode = version == "2025-11-25" and "mode" in request_["params"]
        assert ("mode" in question["params"]) == has_mode
        return
    assert not talk.client + talk.backend
    talk.wait(input_rounds.PACE_SECONDS)
    assert talk.last["params"]["inputResponses"] == {"k": {"action": "decline"}}


@pytest.mark.parametrize(
    ("requests", "state"),
    [
        ({"k": SAMPLE}, "s"),
        ({"k": ROOTS}, "s"),
        ({"k": FORM, "l": ROOTS}, None),
        ({"k": {"method": "x", "params": {}}}, None),
        ({"k": {"method": "elicitation/create"}}, None),
        ({"k": {"method": 1, "params": {}}}, None),
        ({"k": 1}, None),
        ([], "s"),
        ({}, None),
        (None, None),
        (None, 1),
    ],
)
@pytest.mark.parametrize("method", ["tools/call", "prompts/get", "resources/read"])
def test_an_unsupported_input_request_ends_the_call(requests: Any, state: Any, method: str) -> None:
    talk = Talk({"elicitation": {}})
    asked(talk, requests, state, method)
    assert errors(talk.heard()) == [("call", -32603)]
    assert talk.backend == []
    assert talk.due is None


def test_sampling_with_tools_needs_its_own_capability() -> None:
    talk = Talk({"sampling": {}})
    asked(talk, {"k": WITH_TOOLS})
    assert errors(talk.heard()) == [("call", -32603)]


def test_null_counts_as_missing() -> None:
    talk = Talk()
    talk.ask(1, "tools/call")
    talk.answer({"resultType": "input_required", "inputRequests": None, "requestState": "s"})
    talk.wait(input_rounds.PACE_SECONDS)
    assert talk.last["params"]["requestState"] == "s"


def failed(talk: Talk, method: str) -> str:
    """The text of the failure that the client was told last."""
    said = talk.heard()[-1]
    assert said["id"] == "call"
    if method == "tools/call":
        assert said["result"]["isError"] is True
        return str(said["result"]["content"][0]["text"])
    assert said["error"]["code"] == -32603
    return str(said["error"]["message"])


@pytest.mark.parametrize("method", ["tools/call", "prompts/get", "resources/read"])
class TestACallThatFails:
    @pytest.mark.parametrize(
        "answer",
        [
            {"error": {"code": -1, "message": "not now"}},
            {"error": {"code": -1, "message": 1}},
            {"result": 1},
        ],
    )
    def test_by_the_clients_answer(self, method: str, answer: Any) -> None:
        talk = Talk(EVERYTHING)
        asked(talk, {"a": FORM, "b": ROOTS}, method=method)
        talk.heard()
        talk.say(id="bridge:1", **answer)
        cancelled = talk.client[0]
        assert (cancelled["method"], cancelled["params"]["requestId"]) == (
            "notifications/cancelled",
            "bridge:2",
        )
        assert "did not answer" in failed(talk, method)
        talk.say(id="bridge:2", result={})
        assert not talk.client + talk.backend

    def test_by_time(self, method: str) -> None:
        talk = Talk(EVERYTHING)
        asked(talk, {"a": FORM}, method=method)
        talk.wait(input_rounds.ANSWER_SECONDS - 1)
        assert len(talk.heard()) == 1
        talk.wait(1)
        assert talk.client[0]["params"]["requestId"] == "bridge:1"
        assert "in time" in failed(talk, method)
        assert talk.due is None

    def test_by_too_many_rounds(self, method: str) -> None:
        talk = Talk()
        asked(talk, None, method=method)
        for _ in range(input_rounds.MAX_ROUNDS):
            assert talk.heard() == []
            talk.wait(input_rounds.PACE_SECONDS)
            require(talk, 0, None)
        assert str(input_rounds.MAX_ROUNDS) in failed(talk, method)

    def test_by_size(self, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client_calls, "MAX_KEPT_BYTES", 2000)
        talk = Talk(EVERYTHING)
        talk.ask("other", method, {"x": 1})
        asked(talk, {"a": FORM}, method=method)
        talk.say(id="bridge:1", result={"x": "y" * 2000})
        assert "too large" in failed(talk, method)


def test_a_cancelled_call_cancels_its_input_requests() -> None:
    talk = Talk(EVERYTHING)
    asked(talk, {"a": FORM, "b": ROOTS})
    talk.heard()
    talk.tell("notifications/cancelled", requestId="call")
    assert [each["params"]["requestId"] for each in talk.heard()] == ["bridge:1", "bridge:2"]
    assert talk.backend == []
    assert talk.due is None
    asked(talk, None)
    talk.tell("notifications/cancelled", requestId="call")
    talk.wait(1)
    assert talk.backend == []


def test_open_input_requests_are_bounded() -> None:
    talk = Talk(EVERYTHING)
    asked(talk, {str(n): ROOTS for n in range(input_rounds.MAX_OPEN_INPUT_REQUESTS)})
    assert len(talk.heard()) == input_rounds.MAX_OPEN_INPUT_REQUESTS
    talk.ask("more", "tools/call")
    require(talk, 0, {"a": ROOTS})
    assert errors(talk.heard()) == [("more", -32603)]


# Notifications and subscriptions.


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0", "method":"notifications/progress","params":{"progressToken": 1.0}}',
        b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"\\u00e9"}}',
        b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}',
        b'{"jsonrpc":"2.0","method":"x","params":{"data":"subscriptionId"}}',
        b'{"jsonrpc":"2.0","method":"x","params":[1, "\\ud800"]}',
    ],
)
def test_notifications_pass_as_they_are(line: bytes) -> None:
    talk = Talk()
    talk.raw(line)
    assert talk.lines == [line]


def test_list_changes_are_subscribed_to_once_the_client_is_ready() -> None:
    talk = Talk(server={"tools": {"listChanged": True}, "prompts": {"listChanged": 1}})
    listen = talk.last
    assert listen["params"]["notifications"] == {"toolsListChanged": True}
    talk.notify("tools/list_changed", listen["id"])
    talk.notify("tools/list_changed", True)
    assert talk.session.dropped == {"not subscribed": 2}
    talk.acknowledge(listen["id"])
    talk.acknowledge(77)
    talk.notify("tools/list_changed", listen["id"])
    assert talk.heard() == [
        {"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {}}
    ]


def test_a_subscription_is_answered_when_its_listen_is_acknowledged() -> None:
    talk = Talk(server=ALL_LISTS)
    first = talk.last["id"]
    talk.acknowledge(first)
    talk.requested()
    talk.ask(1, "resources/subscribe", {"uri": "a:b"})
    [listen] = talk.requested()
    assert listen["params"]["notifications"]["resourceSubscriptions"] == ["a:b"]
    talk.ask(2, "resources/subscribe", {"uri": "a:b"})
    talk.ask(3, "resources/subscribe", {"uri": "c"})
    talk.ask(4, "resources/subscribe", {"uri": "d"})
    talk.ask(5, "resources/unsubscribe", {"uri": "d"})
    assert [each["id"] for each in talk.heard()] == [4, 5]
    talk.notify("tools/list_changed", first)
    talk.notify("tools/list_changed", listen["id"])
    assert len(talk.heard()) == 1
    talk.acknowledge(listen["id"], "a:b")
    assert [each["id"] for each in talk.heard()] == [1, 2]
    cancelled, again = talk.requested()
    assert cancelled["params"]["requestId"] == first
    assert again["params"]["notifications"]["resourceSubscriptions"] == ["a:b", "c"]
    talk.notify("tools/list_changed", first)
    assert talk.heard() == []
    talk.notify("resources/updated", listen["id"], uri="a:b")
    assert talk.heard()[0]["params"] == {"uri": "a:b"}
    talk.acknowledge(again["id"], "a:b")
    assert errors(talk.heard()) == [(3, -32603)]
    talk.ask(6, "resources/subscribe", {"uri": "a:b"})
    assert talk.heard()[0]["result"] == {}
    assert len(talk.requested()) == 1
    assert talk.due is None


def test_unsubscribing_answers_the_subscription_to_that_resource_alone() -> None:
    talk = Talk()
    for number, uri in enumerate(["a:a", "a:b", "a:c", "a:d"]):
        talk.ask(number, "resources/subscribe", {"uri": uri})
    talk.ask(4, "resources/unsubscribe", {"uri": "a:c"})
    assert [each["id"] for each in talk.heard()] == [2, 4]
    talk.acknowledge(talk.last["id"], "a:a")
    talk.acknowledge(talk.last["id"], "a:a", "a:b", "a:d")
    assert [(each["id"], each["result"]) for each in talk.heard()] == [(0, {}), (1, {}), (3, {})]


def test_unsubscribing_from_all_ends_the_listen() -> None:
    talk = Talk()
    talk.ask(1, "resources/subscribe", {"uri": "a"})
    number = talk.last["id"]
    talk.acknowledge(number, "a")
    talk.requested()
    talk.ask(2, "resources/unsubscribe", {"uri": "b"})
    talk.ask(3, "resources/unsubscribe", {"uri": "a"})
    [cancelled] = talk.requested()
    assert cancelled["params"]["requestId"] == number
    talk.answer({}, number)
    assert [each["id"] for each in talk.heard()] == [1, 2, 3]
    assert talk.session.dropped == {"unasked": 1}
    talk.ask(4, "resources/subscribe", {"uri": "a"})
    talk.ask(5, "resources/unsubscribe", {"uri": "a"})
    talk.acknowledge(talk.last["id"], "a")
    assert talk.last["method"] == "notifications/cancelled"


def test_bounds_of_subscriptions() -> None:
    talk = Talk()
    for wrong in ({}, {"uri": 1}, {"uri": "x" * (MAX_URI_LENGTH + 1)}):
        talk.ask(1, "resources/subscribe", wrong)
        assert errors(talk.heard()) == [(1, -32602)]
    for number in range(MAX_URIS):
        talk.session._relay._uris[str(number)] = None
    talk.ask(1, "resources/subscribe", {"uri": "more"})
    assert errors(talk.heard()) == [(1, -32000)]
    assert talk.backend[1:] == []


def test_a_subscription_that_the_server_refuses() -> None:
    talk = Talk()
    talk.ask(1, "resources/subscribe", {"uri": "a"})
    talk.reply(id=talk.last["id"], error={"code": -32601, "message": "never"})
    [said] = talk.heard()
    assert "never" in said["error"]["message"]
    assert talk.due is None
    talk.ask(2, "resources/subscribe", {"uri": "a"})
    talk.ask(3, "resources/subscribe", {"uri": "b"})
    talk.reply(id=talk.last["id"], result={})
    assert errors(talk.heard()) == [(2, -32603)]
    assert talk.last["params"]["notifications"] == {"resourceSubscriptions": ["b"]}


def test_a_refused_subscription_is_not_renewed() -> None:
    talk = Talk()
    talk.ask(1, "resources/subscribe", {"uri": "a"})
    talk.acknowledge(talk.last["id"])
    assert errors(talk.heard()) == [(1, -32603)]
    talk.ask(2, "resources/subscribe", {"uri": "b"})
    assert talk.last["params"]["notifications"] == {"resourceSubscriptions": ["b"]}
    talk.reply(id=talk.last["id"], error={"code": -1, "message": "no"})
    assert errors(talk.heard()) == [(2, -32603)]
    assert talk.due is None


def test_a_cancelled_subscription_is_not_answered() -> None:
    talk = Talk()
    talk.ask(1, "resources/subscribe", {"uri": "a"})
    talk.tell("notifications/cancelled", requestId=1)
    talk.acknowledge(talk.last["id"], "a")
    assert talk.heard() == []


def test_a_listen_that_is_not_acknowledged() -> None:
    talk = Talk()
    talk.ask(1, "resources/subscribe", {"uri": "a"})
    number = talk.last["id"]
    assert talk.due == talk.now + ACKNOWLEDGED_SECONDS
    talk.wait(ACKNOWLEDGED_SECONDS - 1)
    assert talk.heard() == []
    talk.wait(1)
    assert errors(talk.heard()) == [(1, -32603)]
    assert talk.last["params"] == {"requestId": number}


def test_the_end_of_a_listen_does_not_end_the_one_that_replaces_it() -> None:
    talk = Talk(server=ALL_LISTS)
    first = talk.last["id"]
    talk.acknowledge(first)
    talk.ask(1, "resources/subscribe", {"uri": "a"})
    second = talk.last["id"]
    talk.notify("cancelled", requestId="x")
    talk.answer({}, first)
    assert talk.heard() == []
    talk.acknowledge(second, "a")
    assert [each["result"] for each in talk.heard()] == [{}]


def test_subscriptions_work_after_300_requests() -> None:
    talk = Talk()
    for number in range(300):
        talk.ask(number, "tools/list")
        talk.answer({})
    talk.client.clear()
    talk.ask("s", "resources/subscribe", {"uri": "a"})
    listen = talk.last["id"]
    talk.acknowledge(listen, "a")
    talk.notify("resources/updated", listen, uri="a")
    assert [each.get("id") for each in talk.heard()] == ["s", None]
    talk.answer({}, listen)
    assert talk.due == talk.now + FIRST_PAUSE
    talk.ask("t", "resources/subscribe", {"uri": "b"})
    talk.reply(id=talk.last["id"], error={"code": -1, "message": "no"})
    assert errors(talk.heard()) == [("t", -32603)]


@pytest.mark.parametrize("cancels", [False, True])
def test_a_listen_that_ends_is_renewed_a_few_times(cancels: bool) -> None:
    talk = Talk(server=ALL_LISTS)
    pauses = []
    for _ in range(MAX_RENEWALS + 1):
        number = talk.last["id"]
        talk.acknowledge(number)
        if cancels:
            talk.notify("cancelled", requestId=number)
        else:
            talk.answer({}, number)
        if talk.due is not None:
            pauses.append(talk.due - talk.now)
            talk.wait(pauses[-1])
    assert pauses == list(map(doubled, range(MAX_RENEWALS)))
    assert not talk.due
    talk.ask(1, "resources/subscribe", {"uri": "a"})
    number = talk.last["id"]
    talk.acknowledge(number, "a")
    talk.now += LONGEST_PAUSE
    talk.answer({}, number)
    assert talk.due == talk.now + FIRST_PAUSE
    talk.ask(2, "resources/subscribe", {"uri": "a"})
    talk.acknowledge(talk.last["id"], "a")
    assert [each["id"] for each in talk.heard()] == [1, 2]


# A backend that takes no more.


def test_undo_restores_the_state_before_a_message() -> None:
    talk = Talk(EVERYTHING, start=False)
    for _ in range(2):
        talk.initialize(EVERYTHING)
        talk.undo()
    talk.undo()
    talk.initialize(EVERYTHING)
    talk.answer({"capabilities": ALL_LISTS})
    talk.tell("notifications/initialized")
    talk.undo()
    assert talk.due == talk.now + FIRST_PAUSE
    talk.wait(FIRST_PAUSE)
    listen = talk.last["id"]
    talk.ask("x", "tools/call")
    talk.undo()
    talk.ask("x", "tools/call")
    call = talk.last["id"]
    for _ in range(2):
        talk.tell("notifications/cancelled", requestId="x")
        assert talk.last["params"]["requestId"] == call
        talk.undo()
    talk.heard()
    talk.answer({"resultType": "input_required", "inputRequests": {"a": FORM, "b": ROOTS}}, call)
    talk.say(id="bridge:1", result={})
    talk.undo()
    for _ in range(2):
        talk.say(id="bridge:2", result={"roots": []})
        again = talk.last
        assert again["params"]["inputResponses"] == {"a": {}, "b": {"roots": []}}
        talk.undo()
    talk.say(id="bridge:2", result={"roots": []})
    talk.answer({}, talk.last["id"])
    assert talk.heard()[-1]["id"] == "x"
    talk.acknowledge(listen)
    for _ in range(2):
        talk.ask("s", "resources/subscribe", {"uri": "a"})
        subscribing = talk.last
        assert subscribing["params"]["notifications"]["resourceSubscriptions"] == ["a"]
        talk.undo()
    talk.notify("tools/list_changed", listen)
    assert len(talk.heard()) == 1
    talk.ask("s", "resources/subscribe", {"uri": "a"})
    talk.ask("t", "resources/subscribe", {"uri": "a"})
    talk.undo()
    talk.acknowledge(talk.last["id"], "a")
    assert [each["id"] for each in talk.heard()] == ["s", "t"]
    talk.ask("u", "resources/unsubscribe", {"uri": "a"})
    talk.undo()
    talk.ask("v", "resources/subscribe", {"uri": "a"})
    assert [each["id"] for each in talk.heard()] == ["u", "v"]
    assert talk.session._calls._kept_bytes == 0


def test_server_info_is_taken_once() -> None:
    talk = Talk(start=False)
    assert talk.session.take_server_info() is None
    talk.initialize({})
    info = {"name": "s", "version": "1"}
    talk.answer({"capabilities": {}, "_meta": {PREFIX + "serverInfo": info}})
    taken = talk.session.take_server_info()
    assert taken is not None
    assert json.loads(bytes(taken)) == info
    assert talk.session.take_server_info() is None


# Answers of backends that are not exact.


def test_ids_that_the_server_returns_as_text() -> None:
    """From the first answer on, and of a listen."""
    talk = Talk(start=False)
    talk.initialize({})
    talk.answer({"capabilities": ALL_LISTS}, str(talk.last["id"]))
    talk.tell("notifications/initialized")
    listen = talk.last["id"]
    talk.answer({}, str(listen))
    talk.heard()
    talk.ask("mine", "tools/list")
    talk.answer({"resultType": "complete", "tools": []}, str(talk.last["id"]))
    assert [each["id"] for each in talk.heard()] == ["mine"]
    assert talk.reported == []


@pytest.mark.parametrize("ident", ["x", "01", 99, None])
def test_unexpected_answers_are_reported(ident: Any) -> None:
    """But not those of what was cancelled."""
    talk = Talk()
    talk.reply(id=ident, result={})
    assert [why for why, _ in talk.reported] == ["unasked"]
    talk.ask(1, "tools/list")
    number = talk.last["id"]
    talk.tell("notifications/cancelled", requestId=1)
    for late in (number, str(number)):
        talk.answer({"tools": []}, late)
    assert len(talk.reported) == 1


def test_cancelled_kept() -> None:
    """CANCELLED_KEPT: the answer to the oldest is unasked like any other."""
    talk = Talk()
    numbers = []
    for _ in range(CANCELLED_KEPT + 1):
        talk.ask(1, "tools/list")
        numbers.append(talk.last["id"])
        talk.tell("notifications/cancelled", requestId=1)
    talk.answer({}, numbers[1])
    assert talk.reported == []
    talk.answer({}, numbers[0])
    assert [why for why, _ in talk.reported] == ["unasked"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "invalid"),
        (b'{"level":30}', "invalid"),
        (b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}', "request"),
    ],
)
def test_invalid_lines_are_reported(line: bytes, why: str) -> None:
    talk = Talk()
    talk.raw(line)
    assert talk.reported == [(why, line)]


def test_a_listen_that_ends_twice_is_not_reported() -> None:
    """By a notification, and by its answer."""
    talk = Talk(server=ALL_LISTS)
    listen = talk.last["id"]
    talk.notify("cancelled", requestId=listen)
    talk.answer({}, listen)
    assert talk.reported == []


@pytest.mark.parametrize("length", [_SHOWN_CHARS, _SHOWN_CHARS + 1])
def test_error_of_a_peer_is_cut(length: int) -> None:
    """`_SHOWN_CHARS` of its message are repeated."""
    response = {"error": {"code": 1, "message": "x" * length}}
    assert error_message(members_of(json.dumps(response).encode())) == "x" * _SHOWN_CHARS
