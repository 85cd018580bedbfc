"""What becomes of each line between a client of 2026-07-28 and a backend of before."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.errors import InvalidParams, MethodNotFound, MissingCapability
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.jsonrpc.parsed_message import with_envelope
from mcpbridge.mcp.modern_request import (
    CLIENT_CAPABILITIES,
    INPUT_REQUIRED_METHODS,
    LOG_LEVEL,
    LOG_LEVELS,
    PREFIX,
    PROTOCOL_VERSION,
    REMOVED,
    SERVER_INFO,
    TASKS,
    ModernRequest,
    read_request,
)
from mcpbridge.translation.handshake import MAX_NAMED, HandshakeRefused
from mcpbridge.translation.input_requests import MAX_INPUT_REQUESTS
from mcpbridge.translation.legacy_requests import OWN_KEPT
from mcpbridge.translation.legacy_server import LegacyServerTranslator
from mcpbridge.translation.running_request import ServerOutput
from mcpbridge.translation.server_requests import MAX_KEY_LENGTH, MAX_NAMED_KEYS
from mcpbridge.translation.to_modern import CACHEABLE
from tests.examples import examples

ALL: dict[str, Any] = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}},
    "roots": {},
}
SERVER = {"name": "old", "version": "1"}
CALL = {"name": "echo", "arguments": {"a": 1}}
FORM = {"message": "who?", "requestedSchema": {"type": "object", "properties": {}}}
URL = {"mode": "url", "message": "go", "url": "https://x.example/", "elicitationId": "e-1"}
SAMPLE = {"messages": [], "maxTokens": 1}


def line(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def request(
    method: str = "tools/call",
    params: Any = CALL,
    *,
    ident: Any = "c-1",
    capabilities: Any = ALL,
    level: str | None = None,
    **meta: Any,
) -> ModernRequest:
    meta |= {PROTOCOL_VERSION: "2026-07-28", CLIENT_CAPABILITIES: capabilities}
    if level is not None:
        meta[LOG_LEVEL] = level
    if method == "resources/read":
        params = {"uri": "file:///x", **params}
    body = line(id=ident, method=method, params={**params, "_meta": meta})
    envelope = peek(body)
    assert envelope is not None
    return read_request(with_envelope(body, envelope), version_header="2026-07-28")


def opened(declared: Any = ALL, **result: Any) -> LegacyServerTranslator:
    """A conversation with a backend that has answered `initialize`."""
    conversation = LegacyServerTranslator(json.dumps(declared).encode(), None, "9")
    ident = json.loads(conversation.initialize())["id"]
    answer = {
        "protocolVersion": "2025-11-25",
        "capabilities": {"logging": {}, "tools": {"listChanged": True}, "tasks": {}},
        "serverInfo": SERVER,
        **result,
    }
    (told,) = conversation.handshake(line(id=ident, result=answer)) or []
    assert json.loads(told) == {"jsonrpc": "2.0", "method": "notifications/initialized"}
    return conversation


def asked(conversation: LegacyServerTranslator, **changes: Any) -> Any:
    """Ask; returns the id that the backend sees."""
    return json.loads(conversation.start(request(**changes))[-1])["id"]


def question(ident: Any = 0, method: str = "elicitation/create", params: Any = FORM) -> bytes:
    return line(id=ident, method=method, params=params)


def codes(said: ServerOutput) -> list[Any]:
    """What the backend is answered: an id and an error's code, or an id and a result."""
    return [
        (each["id"], each["error"]["code"] if "error" in each else each["result"])
        for each in map(json.loads, said.to_backend)
    ]


def final(said: ServerOutput) -> Any:
    assert said.response is not None
    return json.loads(said.response)


# The handshake.


@pytest.mark.parametrize(
    ("capabilities", "declared"),
    [
        ({}, {}),
        (ALL, ALL),
        (
            {"extensions": {"a/b": {"c": [1]}, TASKS: {}}, "tasks": {}, "new": {}},
            {"extensions": {"a/b": {"c": [1]}}, "new": {}},
        ),
        ({"extensions": {TASKS: {}}, "new": [1], "newer": None}, {"new": [1]}),
        ({"extensions": {"a/b": 1, "c/d": {}}}, {"extensions": {"c/d": {}}}),
        ({"extensions": {}}, {}),
        ({"extensions": 5}, {}),
        ({"roots": {"listChanged": True, "x": 1}}, {"roots": {"x": 1}}),
        ({"experimental": {"x": {}}, "sampling": None}, {"experimental": {"x": {}}}),
        ({"elicitation": []}, {}),
        (5, {}),
    ],
)
def test_the_server_gets_the_client_s_capabilities(capabilities: Any, declared: Any) -> None:
    """beat: a legacy backend sees exactly the capabilities of its client."""
    conversation = LegacyServerTranslator(json.dumps(capabilities).encode(), None, "9")
    assert json.loads(conversation.initialize()) == {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": declared,
            "clientInfo": {"name": "mcpbridge", "version": "9"},
        },
    }


@pytest.mark.parametrize(
    ("info", "passes"),
    [
        ({"name": "c", "version": "1", "title": "C"}, True),
        ({"name": "c"}, False),
        ({"name": "c", "version": 1}, False),
        ([], False),
    ],
)
def test_client_info_is_the_client_s_or_the_bridge_s(info: Any, passes: bool) -> None:
    raw = msgspec.Raw(json.dumps(info).encode())
    told = json.loads(LegacyServerTranslator(b"{}", raw, "9").initialize())["params"]["clientInfo"]
    assert told == (info if passes else {"name": "mcpbridge", "version": "9"})


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        (line(id=5, method="ping"), [{"jsonrpc": "2.0", "id": 5, "result": {}}]),
        (line(id=None, method="ping"), None),
        (line(method="ping"), None),
        (line(id=5, method="roots/list"), None),
        (line(method="notifications/message", params={}), None),
        (line(id=2, result={}), None),
        (line(id="01", result={}), None),
        (b"Server started", None),
        (b"", None),
        (b"[]", None),
    ],
)
def test_messages_before_the_answer_to_initialize(said: bytes, lines: Any) -> None:
    conversation = LegacyServerTranslator(b"{}", None, "9")
    conversation.initialize()
    written = conversation.handshake(said)
    assert (written and [json.loads(each) for each in written]) == lines
    assert conversation.initialized is None


UNSUPPORTED = {"code": -32022, "message": "no", "data": {"supported": ["2026-07-28", 5]}}


@pytest.mark.parametrize(
    ("answer", "code", "supported", "text"),
    [
        ({"error": UNSUPPORTED}, -32022, ("2026-07-28",), "initialize: no"),
        ({"error": {"code": -32601, "message": "no"}}, -32601, (), "initialize: no"),
        ({"error": {"code": 1.5, "data": {"supported": 5}}}, None, (), "no reason"),
        ({"error": {"code": -1, "message": 5, "data": 5}}, -1, (), "no reason"),
        (
            {"error": {"code": -1, "data": {"supported": ["x"] * (MAX_NAMED + 1)}}},
            -1,
            ("x",) * MAX_NAMED,
            "refused",
        ),
        ({"error": 5}, -32603, (), "neither"),
        ({"result": 5}, -32603, (), "neither"),
        ({}, -32603, (), "neither"),
        ({"result": {}}, None, (), "not know: none"),
        ({"result": {"protocolVersion": "2026-07-28"}}, None, (), "not know: '2026-07-28'"),
        ({"result": {"protocolVersion": 5}}, None, (), "not know: none"),
    ],
)
def test_a_refused_handshake(answer: Any, code: Any, supported: Any, text: str) -> None:
    conversation = LegacyServerTranslator(b"{}", None, "9")
    conversation.initialize()
    with pytest.raises(HandshakeRefused, match=text) as caught:
        conversation.handshake(line(id=1, **answer))
    assert (caught.value.code, caught.value.supported) == (code, supported)
    assert conversation.initialized is None


@pytest.mark.parametrize(
    ("code", "supported", "modern"),
    [
        (-32022, (), True),
        (-32601, (), True),
        (-32602, (), False),
        (None, (), False),
        (-32602, ("2026-07-28",), True),
        (-32022, ("2025-11-25",), False),
    ],
)
def test_refusals_that_mean_a_modern_server(
    code: int | None, supported: tuple[str, ...], modern: bool
) -> None:
    assert HandshakeRefused("no", code, supported).modern_only is modern


def test_the_discover_result_of_a_legacy_server() -> None:
    """MCP, server/discover; tasks are not offered, and nothing is to be cached."""
    assert json.loads(opened(instructions="Read me.").discover_result()) == {
        "supportedVersions": ["2026-07-28"],
        "capabilities": {"logging": {}, "tools": {"listChanged": True}},
        "instructions": "Read me.",
        "_meta": {SERVER_INFO: SERVER},
        "resultType": "complete",
        "ttlMs": 0,
        "cacheScope": "private",
    }


@pytest.mark.parametrize(
    "strange",
    [
        {"capabilities": 5, "serverInfo": 5, "instructions": 5},
        {"capabilities": {"tools": 5, "logging": None}, "serverInfo": {"name": "x"}},
    ],
)
def test_the_discover_result_of_an_unusual_server(strange: Any) -> None:
    result = json.loads(opened(**strange).discover_result())
    assert result["capabilities"] == {}
    assert "instructions" not in result
    assert "_meta" not in result


def test_nothing_is_sent_before_the_handshake() -> None:
    with pytest.raises(RuntimeError, match="not initialized"):
        LegacyServerTranslator(b"{}", None, "9").discover_result()


# A request.


def test_a_request_as_the_server_gets_it() -> None:
    """beat: what only 2026-07-28 knows is stripped, all else passes."""
    params = {**CALL, "inputResponses": {}, "requestState": "s", "task": {"ttl": 1}, "x": [1.0]}
    conversation = opened()
    meta: dict[str, Any] = {LOG_LEVEL + "x": 1, "progressToken": "t", "traceparent": "00-1"}
    (written,) = conversation.start(request(params=params, **meta))
    assert json.loads(written) == {
        "jsonrpc": "2.0",
        "id": 2,
        "method": "tools/call",
        "params": {**CALL, "x": [1.0], "_meta": {"progressToken": 2, "traceparent": "00-1"}},
    }


def test_the_meta_of_a_declared_extension_passes() -> None:
    """The prefix is that of the specification, and of the extensions beside it."""
    ui = PREFIX + "ui"
    meta: dict[str, Any] = {ui: {"a": 1}, TASKS: {}, PREFIX + "other": 1}
    able: dict[str, Any] = {"extensions": {ui: {}, TASKS: {}, PROTOCOL_VERSION: {}}}
    (written,) = opened().start(request("tools/list", {}, capabilities=able, **meta))
    assert json.loads(written)["params"] == {"_meta": {ui: {"a": 1}}}


@pytest.mark.parametrize("method", ["ui/open", "x"])
def test_a_request_of_an_extension_passes_with_all_its_parameters(method: str) -> None:
    params = {"task": 1, "inputResponses": [2], "requestState": {}, "x": None}
    conversation = opened()
    (written,) = conversation.start(request(method, params))
    asked_for = json.loads(written)
    assert (asked_for["method"], asked_for["params"]) == (method, params)
    said = final(conversation.from_backend(line(id=asked_for["id"], result={"y": 1})))
    assert said["result"] == {
        "y": 1,
        "resultType": "complete",
        "_meta": {SERVER_INFO: SERVER},
    }


def test_an_empty_meta_is_not_sent() -> None:
    (written,) = opened().start(request("tools/list", {}, progressToken=None))
    assert json.loads(written)["params"] == {}


@pytest.mark.parametrize(
    "method",
    [*sorted(REMOVED), "server/discover", "subscriptions/listen", "tasks/x", "notifications/x"],
)
def test_methods_that_are_not_forwarded(method: str) -> None:
    """MCP, basic/index: a method that 2026-07-28 has removed is not found."""
    conversation = opened()
    with pytest.raises(MethodNotFound) as caught:
        conversation.start(request(method, level="debug"))
    assert caught.value.ident == "c-1"
    assert not conversation.has_request


def test_one_request_at_a_time() -> None:
    conversation = opened()
    for call in (conversation.take_buffered, lambda: conversation.suspend("s")):
        with pytest.raises(RuntimeError, match="no request is running"):
            call()
    asked(conversation)
    assert conversation.has_request
    assert not conversation.is_idle
    with pytest.raises(RuntimeError, match="works on another"):
        asked(conversation)


def test_undo_start_leaves_nothing() -> None:
    conversation = opened()
    before = conversation.start(request(level="info"))
    conversation.undo_start()
    assert conversation.is_idle
    again = conversation.start(request(level="info"))
    assert len(before) == len(again) == 2
    assert (
        conversation.from_backend(line(id=json.loads(before[1])["id"], result={})) == ServerOutput()
    )
    assert conversation.from_backend(line(id=json.loads(again[1])["id"], result={})).response


@pytest.mark.parametrize("method", sorted(CACHEABLE - {"server/discover"} | {"tools/call", "x/y"}))
def test_a_result_is_completed(method: str) -> None:
    """MCP, basic/index, "Result Responses", and utilities/caching."""
    conversation = opened()
    number = asked(conversation, method=method, ident=3.0)
    body = b'{"jsonrpc":"2.0","id":%d,"result":{"v": [1.0, "\\ud800"],"_meta":{"k":1}}}' % number
    said = conversation.from_backend(body)
    assert b'"id":3.0' in (said.response or b"")
    assert b'[1.0, "\\ud800"]' in (said.response or b"")
    expected: dict[str, Any] = {
        "v": [1.0, "\ud800"],
        "resultType": "complete",
        "_meta": {"k": 1, SERVER_INFO: SERVER},
    }
    if method in CACHEABLE:
        expected |= {"ttlMs": 0, "cacheScope": "private"}
    assert final(said)["result"] == expected
    assert not conversation.has_request
    assert conversation.is_idle
    assert conversation.from_backend(body).response is None
    assert conversation.dropped == {"unasked": 1}


def test_a_server_without_a_name_stays_without() -> None:
    conversation = opened(serverInfo=None)
    number = asked(conversation)
    result = {"resultType": "x", "_meta": {SERVER_INFO: {}}}
    assert final(conversation.from_backend(line(id=number, result=result)))["result"] == {
        "resultType": "complete"
    }


@pytest.mark.parametrize(
    ("tools", "seen"),
    [
        ([], []),
        (5, 5),
        ([5, {"name": "a"}], [5, {"name": "a"}]),
        ([{"name": "a", "execution": {"taskSupport": "optional"}}], [{"name": "a"}]),
        ([{"name": "a", "execution": 5}, {"name": "b"}], [{"name": "a"}, {"name": "b"}]),
        ([{"name": "a", "execution": {"taskSupport": "required"}}, {"name": "b"}], [{"name": "b"}]),
    ],
)
def test_tools_that_need_a_task_are_hidden(tools: Any, seen: Any) -> None:
    conversation = opened()
    number = asked(conversation, method="tools/list")
    said = conversation.from_backend(line(id=number, result={"tools": tools}))
    assert final(said)["result"]["tools"] == seen


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        ({"code": -32601, "message": "m", "data": 1}, {"code": -32601, "message": "m", "data": 1}),
        ({"code": -32002, "message": "m", "data": 1}, {"code": -32602, "message": "m", "data": 1}),
        ({"code": -32042, "message": "m"}, {"code": -32603, "message": "m"}),
        ({"code": "x", "message": "m"}, {"code": -32603, "message": "m"}),
        ({"code": 7}, {"code": 7, "message": "the server gave no reason"}),
        ({"code": 7, "message": 5}, {"code": 7, "message": "the server gave no reason"}),
    ],
)
def test_errors_have_codes_of_2026(error: Any, seen: Any) -> None:
    """MCP, basic/index, "Error Codes": -32002 and -32042 must not be emitted."""
    conversation = opened()
    said = conversation.from_backend(line(id=asked(conversation), error=error))
    assert final(said) == {"jsonrpc": "2.0", "id": "c-1", "error": seen}


@pytest.mark.parametrize("answer", [{}, {"result": 5}, {"result": None}, {"error": 5}])
def test_a_response_without_result_or_error_is_an_error(answer: Any) -> None:
    conversation = opened()
    said = conversation.from_backend(line(id=asked(conversation), **answer))
    assert final(said)["error"]["code"] == -32603


def test_an_error_of_null_counts_as_missing() -> None:
    conversation = opened()
    said = conversation.from_backend(line(id=asked(conversation), error=None, result={}))
    assert "result" in final(said)


@pytest.mark.parametrize("ident", ["02", True, None, [2], {}, 2.5, "x" * 99])
def test_an_answer_to_another_id_is_dropped(ident: Any) -> None:
    conversation = opened()
    assert asked(conversation) == 2
    assert conversation.from_backend(line(id=ident, result={})) == ServerOutput()
    assert conversation.from_backend(line(id=2.0, result={})).response is not None


# Notifications.


@pytest.mark.parametrize("token", ["t", 7, 7.0, "", 10**30])
def test_progress_has_the_client_s_own_token(token: Any) -> None:
    conversation = opened()
    number = asked(conversation, progressToken=token)
    params = {"progressToken": number, "progress": 0.5, "message": "m"}
    said = conversation.from_backend(line(method="notifications/progress", params=params))
    (note,) = said.notifications
    assert json.dumps(json.loads(note)["params"]) == json.dumps({**params, "progressToken": token})


def test_the_messages_of_a_process_s_300th_request_reach_its_client() -> None:
    conversation = opened()
    for _ in range(300):
        conversation.from_backend(line(id=asked(conversation), result={}))
    number = asked(conversation, progressToken="t")
    progress = line(method="notifications/progress", params={"progressToken": number})
    answer = line(id=number, result={})
    assert conversation.belongs_to_request(progress)
    assert conversation.belongs_to_request(answer)
    assert len(conversation.from_backend(progress).notifications) == 1
    assert final(conversation.from_backend(answer))["id"] == "c-1"


@pytest.mark.parametrize("params", [None, [], {}, {"progressToken": "2"}, {"progressToken": 3}])
def test_progress_of_no_request_is_dropped(params: Any) -> None:
    conversation = opened()
    assert asked(conversation, progressToken=2) == 2
    said = conversation.from_backend(line(method="notifications/progress", params=params))
    assert said == ServerOutput()
    assert conversation.dropped == {"unwanted": 1}


def test_progress_without_a_token_is_dropped() -> None:
    conversation = opened()
    progress = line(method="notifications/progress", params={"progressToken": 2, "progress": 1})
    assert conversation.from_backend(progress) == ServerOutput()
    assert asked(conversation) == 2
    assert conversation.from_backend(progress) == ServerOutput()


@pytest.mark.parametrize("wanted", [None, *LOG_LEVELS])
@pytest.mark.parametrize("level", [None, "loud", 5, *LOG_LEVELS])
def test_log_messages_below_the_requested_level_are_dropped(wanted: str | None, level: Any) -> None:
    """MCP, utilities/logging: at or above the level, and none without one."""
    conversation = opened()
    said = line(method="notifications/message", params={"level": level, "data": 1.0})
    assert conversation.from_backend(said).notifications == []
    asked(conversation, level=wanted)
    loud = (
        wanted is not None
        and level in LOG_LEVELS
        and LOG_LEVELS.index(level) >= LOG_LEVELS.index(wanted)
    )
    assert conversation.from_backend(said).notifications == ([said] if loud else [])


def test_the_log_level_is_sent_when_it_changes() -> None:
    conversation = opened()
    levels = []
    for level in ("info", "info", None, "debug"):
        lines = [json.loads(each) for each in conversation.start(request(level=level))]
        levels.append([each["params"]["level"] for each in lines[:-1]])
        assert conversation.from_backend(line(id=lines[0]["id"], result={})).to_backend == []
        conversation.from_backend(line(id=lines[-1]["id"], result={}))
    assert levels == [["info"], [], [], ["debug"]]
    assert conversation.dropped["late"] == 0


def test_a_server_without_logging_gets_no_log_level() -> None:
    assert len(opened(capabilities={}).start(request(level="debug"))) == 1


@pytest.mark.parametrize(
    "method",
    [
        "notifications/elicitation/complete",
        "notifications/tasks",
        "notifications/tasks/status",
        "notifications/roots/list_changed",
        "",
        5,
    ],
)
def test_other_notifications_are_dropped(method: Any) -> None:
    conversation = opened()
    asked(conversation, level="debug")
    assert conversation.from_backend(line(method=method, params={})) == ServerOutput()
    assert conversation.dropped == {"unwanted": 1}


@pytest.mark.parametrize("method", ["notifications/x", "ui/notifications/x"])
def test_a_notification_of_an_extension_is_for_the_running_request(method: str) -> None:
    """As it stands; and never for a request that may not be the one it belongs to."""
    conversation = opened()
    note = line(method=method, params={"a": 1.0, "_meta": {"ui": {}}})
    assert conversation.from_backend(note).notifications == []
    asked(conversation)
    assert conversation.from_backend(note).notifications == [note]
    conversation.cancel(None)
    assert conversation.from_backend(note).notifications == []
    asked(conversation)
    assert conversation.from_backend(note).notifications == []
    assert conversation.dropped == {"unwanted": 3}


@pytest.mark.parametrize("running", [True, False])
def test_changes_are_for_subscribers(running: bool) -> None:
    conversation = opened()
    if running:
        asked(conversation, level="debug")
    said = line(method="notifications/tools/list_changed")
    assert conversation.from_backend(said).changes == [("toolsListChanged", None, said)]
    said = line(method="notifications/resources/updated", params={"uri": "a:b"})
    assert conversation.from_backend(said).changes == [("resourceSubscriptions", "a:b", said)]


# Questions.


@pytest.mark.parametrize("method", sorted(INPUT_REQUIRED_METHODS))
@pytest.mark.parametrize(
    ("asks", "params", "entry"),
    [
        ("elicitation/create", FORM, FORM),
        ("elicitation/create", {**FORM, "mode": "form", "_meta": {}, "task": {}}, None),
        ("elicitation/create", URL, {k: v for k, v in URL.items() if k != "elicitationId"}),
        ("sampling/createMessage", {**SAMPLE, "tools": [], "_meta": {"a": 1}}, None),
        ("sampling/createMessage", SAMPLE, SAMPLE),
        ("roots/list", {}, {}),
        ("roots/list", {"_meta": {"a": 1}}, {}),
        ("roots/list", {"x": 1}, {"x": 1}),
    ],
)
def test_a_request_of_the_server_is_an_input_request(
    method: str, asks: str, params: Any, entry: Any
) -> None:
    """MCP, patterns/mrtr: from the backend's request to the answer to it, and the end."""
    if entry is None:
        entry = {k: v for k, v in params.items() if k not in ("_meta", "task")}
    conversation = opened()
    number = asked(conversation, method=method)
    said = conversation.from_backend(question("q", asks, params))
    assert said == ServerOutput(wants_input=True)
    assert json.loads(conversation.suspend("s")) == {
        "jsonrpc": "2.0",
        "id": "c-1",
        "result": {
            "resultType": "input_required",
            "inputRequests": {"q": {"method": asks, **({"params": entry} if entry else {})}},
            "requestState": "s",
            "_meta": {SERVER_INFO: SERVER},
        },
    }
    assert conversation.is_suspended
    given = {"inputResponses": {"q": {"action": "decline"}, "other": {}}}
    lines = conversation.resume(request(method, {**CALL, **given}, ident=9))
    assert [json.loads(each) for each in lines] == [
        {"jsonrpc": "2.0", "id": "q", "result": {"action": "decline"}}
    ]
    assert conversation.take_buffered() == ServerOutput()
    assert (conversation.has_request, conversation.is_suspended) == (True, False)
    assert final(conversation.from_backend(line(id=number, result={})))["id"] == 9


@pytest.mark.parametrize(
    ("declared", "asks", "params", "required"),
    [
        ({}, "elicitation/create", FORM, {"elicitation": {}}),
        ({}, "elicitation/create", URL, {"elicitation": {"url": {}}}),
        ({"elicitation": {}}, "elicitation/create", FORM, None),
        ({"elicitation": {}}, "elicitation/create", URL, {"elicitation": {"url": {}}}),
        ({"elicitation": {"form": {}}}, "elicitation/create", FORM, None),
        ({"elicitation": {"url": {}}}, "elicitation/create", FORM, {"elicitation": {"form": {}}}),
        ({"elicitation": {"url": {}}}, "elicitation/create", URL, None),
        ({}, "sampling/createMessage", SAMPLE, {"sampling": {}}),
        ({"sampling": {}}, "sampling/createMessage", SAMPLE, None),
        (
            {"sampling": {}},
            "sampling/createMessage",
            {**SAMPLE, "tools": []},
            {"sampling": {"tools": {}}},
        ),
        ({}, "sampling/createMessage", {"toolChoice": {}}, {"sampling": {"tools": {}}}),
        (
            {"sampling": {"tools": True}},
            "sampling/createMessage",
            {"toolChoice": {}},
            {"sampling": {"tools": {}}},
        ),
        ({"sampling": {"tools": {}}}, "sampling/createMessage", {"toolChoice": {}}, None),
        ({"sampling": 5}, "sampling/createMessage", SAMPLE, {"sampling": {}}),
        ({}, "roots/list", {}, {"roots": {}}),
        ({"roots": {}}, "roots/list", {}, None),
    ],
)
@pytest.mark.parametrize("parked", [False, True])
def test_an_input_request_needs_a_capability(
    declared: Any, asks: str, params: Any, required: Any, parked: bool
) -> None:
    """MCP, basic/index: -32021 names what the client has not declared."""
    conversation = opened(declared)
    number = asked(conversation, capabilities=declared)
    if parked:
        conversation.suspend("s")
    said = conversation.from_backend(question(4, asks, params))
    assert said.wants_input is (required is None)
    if required is None:
        return
    assert codes(said) == [(4, -32600)]
    if parked:
        assert said.refusal is None
        assert conversation.resume(request(capabilities=declared, ident="retry")) == []
        said = conversation.take_buffered()
    assert isinstance(said.refusal, MissingCapability)
    assert said.refusal.data == {"requiredCapabilities": required}
    assert said.refusal.ident == ("retry" if parked else "c-1")
    # It is answered, but the backend may still work on it.
    assert (conversation.has_request, conversation.is_idle) == (False, False)
    assert conversation.from_backend(line(id=number, result={})) == ServerOutput()
    assert conversation.is_idle
    assert conversation.dropped == {"late": 1}


@pytest.mark.parametrize(
    ("running", "asks", "params", "code"),
    [
        (None, "elicitation/create", FORM, -32601),
        ("tools/list", "elicitation/create", FORM, -32601),
        ("completion/complete", "roots/list", {}, -32601),
        ("tools/call", "tasks/get", {}, -32601),
        ("tools/call", "", {}, -32601),
        ("tools/call", 5, {}, -32601),
        ("tools/call", "elicitation/create", [], -32602),
        ("tools/call", "elicitation/create", {"mode": "x"}, -32602),
        ("tools/call", "elicitation/create", {"mode": 5}, -32602),
        ("tools/call", "sampling/createMessage", 5, -32602),
    ],
)
def test_requests_that_a_server_may_not_send(
    running: Any, asks: Any, params: Any, code: int
) -> None:
    conversation = opened()
    if running is not None:
        asked(conversation, method=running)
    said = conversation.from_backend(question(1.5, asks, params))
    assert codes(said) == [(1.5, code)]
    assert not said.wants_input
    assert said.refusal is None
    assert not conversation.server_requests.by_key


@pytest.mark.parametrize("running", [True, False])
def test_a_ping_is_answered(running: bool) -> None:
    conversation = opened()
    if running:
        asked(conversation)
    assert codes(conversation.from_backend(line(id="p", method="ping"))) == [("p", {})]


@pytest.mark.parametrize("ident", [None, True, {}, []])
def test_a_request_needs_an_id(ident: Any) -> None:
    conversation = opened()
    assert conversation.from_backend(question(ident)) == ServerOutput()
    assert conversation.dropped == {"invalid": 1}


def test_open_input_requests_are_bounded() -> None:
    conversation = opened()
    asked(conversation)
    for each in range(MAX_INPUT_REQUESTS):
        assert conversation.from_backend(question(each)).wants_input
    assert codes(conversation.from_backend(question("x"))) == [("x", -32603)]
    assert len(conversation.server_requests.by_key) == MAX_INPUT_REQUESTS


@pytest.mark.parametrize(
    ("ident", "cancelled", "gone"),
    [
        (1, b"1", True),
        ("a", b'"a"', True),
        ("a", b'"\\u0061"', True),
        (1, b'"1"', False),
        ("1", b"1", False),
        (1, b"2", False),
        ("a", b'"b"', False),
        ("a", b"null", False),
    ],
)
def test_a_server_cancels_its_request(ident: Any, cancelled: bytes, gone: bool) -> None:
    conversation = opened()
    asked(conversation)
    conversation.from_backend(question(ident))
    head = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{'
    assert conversation.from_backend(head + b"}}") == ServerOutput()
    assert conversation.from_backend(head + b'"requestId":%b}}' % cancelled) == ServerOutput()
    assert (not conversation.server_requests.by_key) is gone
    # With nothing left to ask there is still the state.
    assert ("inputRequests" in json.loads(conversation.suspend("s"))["result"]) is not gone


def test_unanswered_input_requests_are_sent_again() -> None:
    conversation = opened()
    asked(conversation)
    conversation.from_backend(question(1))
    conversation.from_backend(question(2, "roots/list", {}))
    conversation.suspend("s")
    conversation.from_backend(question(3))
    lines = conversation.resume(request(params={**CALL, "inputResponses": {"input-2": {}}}))
    assert [json.loads(each)["id"] for each in lines] == [2]
    again = json.loads(conversation.suspend("t"))["result"]
    assert sorted(again["inputRequests"]) == ["input-1", "input-3"]
    assert conversation.resume(request(params=CALL, level="debug"))[0].find(b"setLevel") > 0


@pytest.mark.parametrize(
    ("idents", "keys"),
    [
        (["user_name", "a", 1, 2.0], ["user_name", "a", "input-1", "input-2"]),
        (["", "a\x00", "a\n", "\u202e", "x" * (MAX_KEY_LENGTH + 1)], "12345"),
        (["x" * MAX_KEY_LENGTH, "é \U0001f600"], ["x" * MAX_KEY_LENGTH, "é \U0001f600"]),
        (["a", "a"], ["a", "input-1"]),
        # Nor do the two kinds of keys collide, whichever is first.
        (["input-2", 5, 6, 7], ["input-2", "input-1", "input-3", "input-4"]),
        ([5, "input-1", "input-9", "input-x"], ["input-1", "input-2", "input-9", "input-x"]),
        (["input-01"], ["input-01"]),
    ],
)
def test_a_string_id_is_the_key_of_an_input_request(idents: list[Any], keys: Any) -> None:
    if isinstance(keys, str):
        keys = [f"input-{each}" for each in keys]
    conversation = opened()
    asked(conversation)
    for ident in idents:
        assert conversation.from_backend(question(ident)).wants_input
    assert list(conversation.server_requests.by_key) == keys
    result = json.loads(conversation.suspend("s"))["result"]
    assert list(result["inputRequests"]) == keys
    given = {"inputResponses": {key: {"action": "cancel"} for key in keys}}
    lines = conversation.resume(request(params={**CALL, **given}))
    assert [json.loads(each)["id"] for each in lines] == idents


def test_an_id_with_a_lone_surrogate_is_not_a_key() -> None:
    conversation = opened()
    asked(conversation)
    raw = b'{"jsonrpc":"2.0","id":"\\ud800","method":"roots/list"}'
    assert conversation.from_backend(raw).wants_input
    assert list(conversation.server_requests.by_key) == ["input-1"]


def test_a_key_is_used_once_in_a_call_and_again_in_the_next() -> None:
    """Clients may merge the answers of several rounds."""
    conversation = opened()
    number = asked(conversation)
    for key in ("a", "input-1"):
        conversation.from_backend(question("a"))
        assert list(conversation.server_requests.by_key) == [key]
        conversation.suspend("s")
        conversation.resume(request(params={**CALL, "inputResponses": {key: {}}}))
    conversation.from_backend(line(id=number, result={}))
    asked(conversation)
    conversation.from_backend(question("a"))
    assert list(conversation.server_requests.by_key) == ["a"]


def test_a_bounded_number_of_ids_become_keys() -> None:
    """MAX_NAMED_KEYS: those of a call that asks for ever are not remembered for ever."""
    conversation = opened()
    asked(conversation)
    for number in range(MAX_NAMED_KEYS + 2):
        conversation.from_backend(question(f"q{number}"))
        [key] = conversation.server_requests.by_key
        assert key.startswith("q") is (number < MAX_NAMED_KEYS)
        conversation.suspend("s")
        conversation.resume(request(params={**CALL, "inputResponses": {key: {}}}))


@pytest.mark.parametrize("given", [5, [], None, {"input-1": 5}, {"other": None}])
def test_responses_are_objects(given: Any) -> None:
    conversation = opened()
    asked(conversation)
    conversation.from_backend(question())
    conversation.suspend("s")
    with pytest.raises(InvalidParams) as caught:
        conversation.resume(request(params={**CALL, "inputResponses": given}, ident="r"))
    assert caught.value.ident == "r"
    assert conversation.is_suspended
    assert list(conversation.server_requests.by_key) == ["input-1"]


def test_a_retry_must_declare_the_capabilities_of_open_input_requests() -> None:
    """MCP, basic/index: nothing is inferred from an earlier request."""
    conversation = opened()
    asked(conversation)
    conversation.from_backend(question())
    conversation.suspend("s")
    with pytest.raises(MissingCapability):
        conversation.resume(request(capabilities={}))
    assert conversation.is_suspended
    given = {"inputResponses": {"input-1": {"action": "cancel"}}}
    assert len(conversation.resume(request(params={**CALL, **given}, capabilities={}))) == 1


def test_a_response_while_suspended_is_buffered() -> None:
    conversation = opened()
    number = asked(conversation, progressToken="t", level="debug")
    conversation.from_backend(question("q"))
    conversation.suspend("s")
    progress = line(method="notifications/progress", params={"progressToken": number})
    assert conversation.from_backend(progress) == ServerOutput()
    said = conversation.from_backend(line(id=number, result={"v": 1}))
    assert codes(said) == [("q", -32000)]
    assert said.response is None
    # It is over: nothing more is asked, and what comes twice counts once.
    assert codes(conversation.from_backend(question(8))) == [(8, -32601)]
    assert conversation.from_backend(line(id=number, result={"v": 2})) == ServerOutput()
    given = {"inputResponses": {"input-1": {"action": "accept"}}}
    assert conversation.resume(request(params={**CALL, **given}, ident=5, level="info")) == []
    answer = final(conversation.take_buffered())
    assert (answer["id"], answer["result"]["v"]) == (5, 1)
    assert conversation.is_idle


def test_a_refusal_while_suspended_takes_precedence_over_the_response() -> None:
    conversation = opened({})
    number = asked(conversation, capabilities={})
    conversation.suspend("s")
    conversation.from_backend(question(1))
    conversation.from_backend(question(2, "roots/list", {}))
    conversation.from_backend(line(id=number, result={}))
    conversation.resume(request(capabilities={}))
    said = conversation.take_buffered()
    assert said.refusal is not None
    assert said.refusal.data == {"requiredCapabilities": {"elicitation": {}}}
    assert conversation.is_idle


# URL elicitation required.


@pytest.mark.parametrize(
    ("elicitations", "method", "outcome"),
    [
        ([URL], "tools/call", 1),
        ([URL, {**URL, "url": "b:c"}], "resources/read", 2),
        ([URL] * (MAX_INPUT_REQUESTS + 1), "tools/call", MAX_INPUT_REQUESTS),
        ([URL], "tools/list", None),
        ([], "tools/call", None),
        ([FORM], "tools/call", None),
        ([5], "tools/call", None),
        (5, "tools/call", None),
    ],
)
def test_url_elicitation_required(elicitations: Any, method: str, outcome: int | None) -> None:
    """From -32042 to `input_required`, which has no state: the retry is a fresh call."""
    conversation = opened()
    error = {"code": -32042, "message": "m", "data": {"elicitations": elicitations}}
    said = conversation.from_backend(line(id=asked(conversation, method=method), error=error))
    assert conversation.is_idle
    if outcome is None:
        assert final(said)["error"]["code"] == -32603
        return
    result = final(said)["result"]
    assert result["resultType"] == "input_required"
    assert "requestState" not in result
    assert len(result["inputRequests"]) == outcome
    assert result["inputRequests"]["input-1"] == {
        "method": "elicitation/create",
        "params": {k: v for k, v in URL.items() if k != "elicitationId"},
    }


@pytest.mark.parametrize("data", [{}, {"elicitations": None}, 5])
def test_url_elicitation_required_without_elicitations(data: Any) -> None:
    conversation = opened()
    error = {"code": -32042, "message": "m", "data": data}
    said = conversation.from_backend(line(id=asked(conversation), error=error))
    assert final(said)["error"] == {**error, "code": -32603}


def test_url_elicitation_needs_its_capability() -> None:
    conversation = opened()
    error = {"code": -32042, "message": "m", "data": {"elicitations": [URL]}}
    number = asked(conversation, capabilities={"elicitation": {}})
    said = conversation.from_backend(line(id=number, error=error))
    assert said.response is None
    assert said.refusal is not None
    assert said.refusal.data == {"requiredCapabilities": {"elicitation": {"url": {}}}}
    assert conversation.is_idle


# Cancellation.


@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("reason", [None, "gone"])
def test_a_cancelled_request(parked: bool, reason: str | None) -> None:
    conversation = opened()
    number = asked(conversation, level="debug")
    conversation.from_backend(question("q"))
    if parked:
        conversation.suspend("s")
    told, refusal = map(json.loads, conversation.cancel(reason))
    params = {"requestId": number, **({"reason": reason} if reason else {})}
    assert told == {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
    assert (refusal["id"], refusal["error"]["code"]) == ("q", -32000)
    assert not conversation.has_request
    assert conversation.cancel(reason) == []
    # Whose is it?  That is never guessed.
    other = asked(conversation, level="debug")
    assert codes(conversation.from_backend(question(1))) == [(1, -32601)]
    message = line(method="notifications/message", params={"level": "error"})
    assert conversation.from_backend(message) == ServerOutput()
    assert conversation.from_backend(line(id=number, result={})) == ServerOutput()
    assert conversation.dropped == {"late": 1, "unwanted": 1}
    assert conversation.from_backend(question(2)).wants_input
    assert conversation.from_backend(line(id=other, result={})).response is not None
    assert conversation.is_idle


@pytest.mark.parametrize("method", ["resources/list", "completion/complete"])
def test_input_requests_of_a_cancelled_request_reach_no_other(method: str) -> None:
    """Servers ask and log at any method; until it is answered it may be of either."""
    conversation = opened()
    number = asked(conversation, method=method)
    assert len(conversation.cancel(None)) == 1
    assert not conversation.is_idle
    other = asked(conversation)
    assert not conversation.from_backend(question(1)).wants_input
    conversation.from_backend(line(id=number, result={}))
    assert conversation.from_backend(question(2)).wants_input
    conversation.from_backend(line(id=other, result={}))
    assert conversation.is_idle


def test_a_late_list_of_tools_is_not_taken_for_the_next() -> None:
    """What the bridge asks for itself is abandoned like what a client asks."""
    conversation = opened()
    late = json.loads(conversation.requests.list_tools(None))["id"]
    conversation.requests.stop_listing()
    clean = [conversation.is_idle]
    listed = json.loads(conversation.requests.list_tools(None))["id"]
    assert conversation.from_backend(line(id=late, result={"tools": []})).tools is None
    clean.append(conversation.is_idle)
    assert conversation.from_backend(line(id=listed, result={"tools": []})).tools is not None
    conversation.requests.stop_listing()
    assert [*clean, conversation.is_idle] == [False, True, True]


def test_unanswered_requests_of_the_bridge_are_counted() -> None:
    conversation = opened()
    before = conversation.requests.unanswered
    first = json.loads(conversation.requests.subscribe("file:///a"))["id"]
    conversation.requests.unsubscribe("file:///b")
    counts = [conversation.requests.unanswered]
    conversation.requests.undo_own()
    counts.append(conversation.requests.unanswered)
    conversation.from_backend(line(id=first, result={}))
    assert [*counts, conversation.requests.unanswered] == [before + 2, before + 1, before]


def test_stop_listing_without_a_list_changes_nothing() -> None:
    """It could not be written, so no answer will come that might be taken for another."""
    conversation = opened()
    conversation.requests.list_tools(None)
    conversation.requests.undo_own()
    conversation.requests.stop_listing()
    assert conversation.is_idle


def test_an_answered_request_is_not_cancelled() -> None:
    conversation = opened()
    number = asked(conversation)
    conversation.suspend("s")
    conversation.from_backend(line(id=number, result={}))
    assert conversation.cancel("expired") == []
    assert conversation.is_idle


@pytest.mark.parametrize(("cancelled", "idle"), [(OWN_KEPT, True), (OWN_KEPT + 2, False)])
def test_after_more_than_own_kept_cancelled_requests_a_process_is_never_idle(
    cancelled: int, idle: bool
) -> None:
    conversation = opened()
    numbers = []
    for _ in range(cancelled):
        numbers.append(asked(conversation))
        conversation.cancel(None)
    for number in numbers:
        assert not conversation.is_idle
        conversation.from_backend(line(id=number, result={}))
    assert conversation.is_idle is idle
    assert conversation.dropped["late"] == OWN_KEPT
    conversation.from_backend(line(id=0, result={}))
    assert conversation.is_idle is idle


# The bridge's own requests.


def test_requests_of_the_bridge_s_own() -> None:
    conversation = opened()
    number = asked(conversation)
    lines = [
        conversation.requests.subscribe("a:b"),
        conversation.requests.unsubscribe("a:b"),
        conversation.requests.list_tools(None),
        conversation.requests.list_tools("next"),
        conversation.requests.list_tools("more"),
    ]
    sent = [json.loads(each) for each in lines]
    assert [(each["method"], each["params"]) for each in sent] == [
        ("resources/subscribe", {"uri": "a:b"}),
        ("resources/unsubscribe", {"uri": "a:b"}),
        ("tools/list", {}),
        ("tools/list", {"cursor": "next"}),
        ("tools/list", {"cursor": "more"}),
    ]
    idents = [each["id"] for each in sent]
    assert len({*idents, number}) == 6
    outcomes: list[Any] = [{"result": {}}, {"error": {}}, {"result": {"tools": [1.0]}}]
    outcomes += [{"error": {"code": 1}}, {"result": 5}]
    said = [
        conversation.from_backend(line(id=ident, **outcome))
        for ident, outcome in zip(idents, outcomes, strict=True)
    ]
    assert said[:2] == [ServerOutput(), ServerOutput()]
    assert [bytes(each.tools or b"") for each in said[2:]] == [b'{"tools": [1.0]}', b"{}", b"{}"]
    assert conversation.has_request
    assert not conversation.dropped


def test_own_requests_are_bounded() -> None:
    conversation = opened()
    first = json.loads(conversation.requests.list_tools(None))["id"]
    for _ in range(OWN_KEPT):
        last = json.loads(conversation.requests.list_tools(None))["id"]
    assert conversation.from_backend(line(id=first, result={})).tools is None
    assert conversation.from_backend(line(id=last, result={})).tools is not None


# Lines of any kind.


def test_the_elements_of_a_batch_are_read_one_by_one() -> None:
    """2025-03-26, basic, "Batching": implementations must take what comes in one."""
    conversation = opened()
    number = asked(conversation)
    parts = [line(id="p", method="ping"), line(id=number, result={}), b"5"]
    said = conversation.from_backend(b"[%b]" % b",".join(parts))
    assert codes(said) == [("p", {})]
    assert said.response is not None
    assert conversation.dropped == {"invalid": 1}


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"id":2,"result":{}}',
        b'{"jsonrpc":"1.0","id":2,"result":{}}',
        b'{"jsonrpc":"2.0","id":2,"result":{}',
        b"[" * 100_000,
        b'{"jsonrpc":"2.0","id":2,"result":' + b"[" * 100_000,
        b'{"jsonrpc":"2.0","id":2,"result":NaN}',
        b'{"jsonrpc":1e999,"id":2,"result":{}}',
        b"\xff",
    ],
)
def test_invalid_lines_are_dropped(said: bytes) -> None:
    conversation = opened()
    assert asked(conversation) == 2
    assert conversation.from_backend(said) == ServerOutput()
    assert conversation.dropped == {"invalid": 1}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
IDS = st.integers(0, 12) | st.sampled_from(["q", "2", 2.0, None]) | ANY
METHODS = st.sampled_from(
    [
        "elicitation/create",
        "roots/list",
        "sampling/createMessage",
        "ping",
        "notifications/progress",
        "notifications/message",
        "notifications/cancelled",
        "notifications/resources/updated",
        "notifications/tools/list_changed",
    ]
)
PARAMS = (
    st.fixed_dictionaries(
        {},
        optional={
            "mode": st.sampled_from(["url", "form"]) | ANY,
            "progressToken": IDS,
            "requestId": IDS,
            "level": st.sampled_from(LOG_LEVELS) | ANY,
            "uri": ANY,
            "_meta": ANY,
            "elicitations": ANY,
        },
    )
    | ANY
)
ERRORS = st.fixed_dictionaries(
    {},
    optional={"code": st.sampled_from([-32002, -32042, 1]) | ANY, "message": ANY, "data": PARAMS},
)
MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0") | ANY},
    optional={
        "id": IDS,
        "method": METHODS | ANY,
        "params": PARAMS,
        "result": PARAMS,
        "error": ERRORS | ANY,
    },
) | st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "id": IDS, "method": METHODS})
LINES = (
    st.one_of(MESSAGES, st.lists(MESSAGES, max_size=3), ANY).map(lambda m: json.dumps(m).encode())
    | st.binary()
)
MOVES = st.lists(
    LINES | st.sampled_from(["ask", "park", "resume", "cancel", "tools", "list"]), max_size=25
)


@settings(deadline=None, max_examples=examples(200))
@given(MOVES)
def test_any_line_at_any_time(moves: list[Any]) -> None:
    """No line raises; each request has one end at most, with its own id, and only in its time."""
    conversation = opened()
    current = None

    def check(said: ServerOutput) -> None:
        nonlocal current
        for end in (
            said.response and json.loads(said.response)["id"],
            said.refusal and said.refusal.ident,
        ):
            if end is not None:
                assert end == current
                current = None
        assert not (said.notifications and not conversation.has_request and said.response is None)
        assert all(json.loads(each)["jsonrpc"] == "2.0" for each in said.to_backend)

    for number, move in enumerate(moves):
        if isinstance(move, bytes):
            check(conversation.from_backend(move))
        elif move == "ask" or move == "list":
            if not conversation.has_request:
                current = f"c-{number}"
                method = "tools/call" if move == "ask" else "tools/list"
                conversation.start(request(method, ident=current, level="info", progressToken=0))
        elif move == "tools":
            conversation.requests.list_tools(None)
        elif move == "cancel":
            conversation.cancel("x")
            current = None
        elif move == "park" and current is not None and not conversation.is_suspended:
            assert json.loads(conversation.suspend("s"))["id"] == current
            current = None
        elif move == "resume" and conversation.is_suspended:
            current = f"c-{number}"
            given: dict[str, Any] = {
                key: {} for key in list(conversation.server_requests.by_key)[::2]
            }
            conversation.resume(request(params={**CALL, "inputResponses": given}, ident=current))
            check(conversation.take_buffered())
        assert conversation.has_request is (current is not None or conversation.is_suspended)


def test_only_open_request() -> None:
    conversation = opened()
    assert conversation.only_open is msgspec.UNSET
    asked(conversation)
    assert isinstance(conversation.only_open, int)


# Answers of backends that are not exact.


def reporting(reported: list[tuple[str, bytes]]) -> LegacyServerTranslator:
    """A conversation that has not begun, and what it reports."""
    return LegacyServerTranslator(b"{}", None, "9", lambda *told: reported.append(told))


def test_ids_that_the_server_returns_as_text() -> None:
    """From the handshake on."""
    reported: list[tuple[str, bytes]] = []
    conversation = reporting(reported)
    ident = json.loads(conversation.initialize())["id"]
    result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": SERVER}
    assert conversation.handshake(line(id=str(ident), result=result))
    number = asked(conversation)
    said = conversation.from_backend(line(id=str(number), result={"content": []}))
    assert final(said)["id"] == "c-1"
    assert reported == []


@pytest.mark.parametrize("ident", ["01", "1.0", "x", None, 99, "99", True, [1]])
def test_unexpected_answers_are_reported(ident: Any) -> None:
    reported: list[tuple[str, bytes]] = []
    conversation = reporting(reported)
    conversation.initialize()
    odd = line(id=ident, result={})
    assert conversation.handshake(odd) is None
    result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": SERVER}
    assert conversation.handshake(line(id=1, result=result))
    number = asked(conversation)
    conversation.from_backend(odd)
    assert reported == [("unasked", odd)] * 2
    conversation.cancel(None)
    conversation.from_backend(line(id=str(number), result={}))
    assert reported == [("unasked", odd)] * 2


@pytest.mark.parametrize("odd", [b"{", b"[1]", b'{"level":30,"id":1}', b'{"id":1,"result":{}}'])
def test_invalid_lines_are_reported(odd: bytes) -> None:
    reported: list[tuple[str, bytes]] = []
    conversation = reporting(reported)
    conversation.initialize()
    result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": SERVER}
    if b"result" not in odd and b'"id":1' not in odd:
        assert conversation.handshake(odd) is None
        assert [why for why, _ in reported] == ["invalid"]
    assert conversation.handshake(line(id=1, result=result))
    reported.clear()
    conversation.from_backend(odd)
    assert [why for why, _ in reported] == ["invalid"]


# Whose a line is.


def test_lines_that_belong_to_the_running_request() -> None:
    """Its answer, its progress, its questions, and what only it can have caused."""
    conversation = opened()
    log = line(method="notifications/message", params={"level": "info", "data": 1})
    assert not conversation.belongs_to_request(log)
    own = json.loads(conversation.requests.list_tools(None))["id"]
    number = asked(conversation, progressToken="t")

    def progress(token: Any) -> bytes:
        return line(method="notifications/progress", params={"progressToken": token, "progress": 1})

    of_it = [
        line(id=number, result={}),
        line(id=str(number), result={}),
        line(id=float(number), error={"code": 1, "message": "no"}),
        progress(number),
        question(),
        log,
        line(method="notifications/cancelled", params={"requestId": 0}),
        b"[%b,%b]" % (line(id=own, result={}), line(id=number, result={})),
    ]
    of_none = [
        line(id=own, result={}),
        line(id=f"0{number}", result={}),
        progress(number + 1),
        progress("t"),
        line(id=1, method="ping"),
        line(method="notifications/tools/list_changed"),
        line(method="notifications/resources/updated", params={"uri": "a:b"}),
        line(method="notifications/initialized"),
        b"[1, []]",
        b"nonsense",
    ]
    assert all(map(conversation.belongs_to_request, of_it))
    assert not any(map(conversation.belongs_to_request, of_none))
    conversation.cancel("left")
    assert not any(map(conversation.belongs_to_request, of_it))


def test_ambiguous_lines_after_a_cancellation_belong_to_no_request() -> None:
    conversation = opened()
    asked(conversation)
    conversation.cancel("left")
    number = asked(conversation)
    log = line(method="notifications/message", params={"level": "info", "data": 1})
    assert not conversation.belongs_to_request(log)
    assert not conversation.belongs_to_request(question())
    assert conversation.belongs_to_request(line(id=number, result={}))


def test_lines_after_the_response_to_a_suspended_request_belong_to_none() -> None:
    conversation = opened()
    number = asked(conversation)
    conversation.from_backend(question())
    conversation.suspend("state")
    log = line(method="notifications/message", params={"level": "info", "data": 1})
    assert conversation.belongs_to_request(log)
    conversation.from_backend(line(id=number, result={}))
    assert not conversation.belongs_to_request(log)


def test_a_request_that_may_not_ask_has_no_input_requests() -> None:
    conversation = opened()
    asked(conversation, method="tools/list", params={})
    assert not conversation.belongs_to_request(question())
