"""Requests for what is not there, and their answers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mcpbridge.jsonrpc.members import members_of
from mcpbridge.jsonrpc.parsed_message import parse_message
from mcpbridge.mcp.modern_request import PREFIX, ModernRequest, read_request
from mcpbridge.mcp.name_rules import LONGEST_NAME, Kind
from mcpbridge.mcp.named_requests import (
    SHOWN_NAME,
    Missing,
    Verdict,
    judge,
    judge_request,
    missing,
    without_missing_resources,
)


def allows(kind: Kind, name: str) -> bool:
    if kind == "prompts" and len(name) > LONGEST_NAME:
        # As where these are not restricted.
        return True
    return not name.startswith("x")


def line(method: str, params: Any = None, **outer: Any) -> bytes:
    message = {"jsonrpc": "2.0", "method": method, **outer}
    return json.dumps(message if params is None else {**message, "params": params}).encode()


PROMPT = {"ref": {"type": "ref/prompt", "name": "x"}}
RESOURCE = {"ref": {"type": "ref/resource", "uri": "x:{a}"}}
LISTEN_TO = {"notifications": {"resourceSubscriptions": ["a:a", "x:a"]}}


@pytest.mark.parametrize(
    ("method", "params", "modern", "expected"),
    [
        ("tools/call", {"name": "x"}, False, (-32602, "Unknown tool: x", None)),
        ("tools/call", {"name": "a"}, False, None),
        ("tools/call", {}, False, (-32602, "Unknown tool: ", None)),
        ("tools/call", {"name": 1}, False, (-32602, "Unknown tool: ", None)),
        ("prompts/get", {}, False, None),
        ("prompts/get", {"name": "x"}, True, (-32602, "Unknown prompt: x", None)),
        ("resources/read", {"uri": "x:a"}, False, (-32002, "Resource not found", {"uri": "x:a"})),
        ("resources/read", {"uri": "x:a"}, True, (-32602, "Resource not found", {"uri": "x:a"})),
        (
            "resources/subscribe",
            {"uri": "x:a"},
            False,
            (-32002, "Resource not found", {"uri": "x:a"}),
        ),
        (
            "resources/unsubscribe",
            {"uri": "x:a"},
            False,
            (-32002, "Resource not found", {"uri": "x:a"}),
        ),
        ("completion/complete", PROMPT, False, (-32602, "Unknown prompt: x", None)),
        ("completion/complete", RESOURCE, True, (-32602, "Unknown resource: x:{a}", None)),
        ("completion/complete", {"ref": {"name": "a", "uri": "a:"}}, False, None),
        ("completion/complete", {"ref": 1}, False, None),
        (
            "subscriptions/listen",
            LISTEN_TO,
            False,
            (-32002, "Resource not found", {"uri": "x:a"}),
        ),
        ("subscriptions/listen", {"notifications": {}}, False, None),
        ("tools/list", {"name": "x"}, False, None),
        ("custom/call", {"name": "x"}, False, None),
        ("Tools/Call", {"name": "a"}, False, (-32601, "Method not found: Tools/Call", None)),
        (" ping", {}, False, None),
    ],
)
def test_missing(method: str, params: Any, modern: bool, expected: Any) -> None:
    raw = members_of(json.dumps(params).encode())
    found = missing(method, raw, allows, modern=modern)
    assert found == (None if expected is None else Missing(*expected))
    verdict = judge(line(method, params, id=1), allows)
    assert verdict is not None
    assert verdict.passes is (expected is None)


def test_answers_have_the_id_as_it_was_written() -> None:
    asked = b'{"jsonrpc":"2.0","id":1.50e1,"method":"tools/call","params":{"name":"x"}}'
    error = b'{"code":-32602,"message":"Unknown tool: x"}'
    assert judge(asked, allows) == Verdict(
        False, b'{"jsonrpc":"2.0","id":1.50e1,"error":%b}' % error
    )


def test_a_long_name_is_cut() -> None:
    verdict = judge(line("tools/call", {"name": "x" * (SHOWN_NAME + 1)}, id=1), allows)
    assert verdict is not None
    assert verdict.answer is not None
    assert json.loads(verdict.answer)["error"]["message"] == f"Unknown tool: {'x' * SHOWN_NAME}"


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        (line("tools/call", {"name": "x"}), Verdict(False)),
        (line("tools/call", {"name": "a"}), Verdict(True)),
        (line("ping", id=1), Verdict(True)),
        (line("prompts/get", [1], id=1), Verdict(True)),
        (b'{"jsonrpc":"2.0","id":1,"result":{"name":"x"}}', Verdict(True)),
        (b'[{"jsonrpc":"2.0"}]', None),
        (b"1", None),
    ],
)
def test_other_messages(message: bytes, verdict: Verdict | None) -> None:
    assert judge(message, allows) == verdict


def listen(notifications: Any) -> ModernRequest:
    meta = {f"{PREFIX}protocolVersion": "2026-07-28", f"{PREFIX}clientCapabilities": {}}
    params = {"notifications": notifications, "_meta": meta, "other": 1}
    parsed = parse_message(line("subscriptions/listen", params, id=1))
    assert parsed is not None
    return read_request(parsed, version_header="2026-07-28")


def test_a_subscription_without_what_is_not_there() -> None:
    wanted = {"resourceSubscriptions": ["a:a", "x:a", "b:b"], "toolsListChanged": True}
    found = without_missing_resources(listen(wanted), allows)
    expected = {"resourceSubscriptions": ["a:a", "b:b"], "toolsListChanged": True}
    assert json.loads(bytes(found.params["notifications"])) == expected
    params = json.loads(msgspec.json.encode(found.outer))["params"]
    assert (params["notifications"], params["other"]) == (expected, 1)


@pytest.mark.parametrize("notifications", [{}, {"resourceSubscriptions": ["a:a"]}, 1])
def test_a_subscription_that_passes_as_it_is(notifications: Any) -> None:
    asked = listen(notifications)
    assert without_missing_resources(asked, allows) is asked


def asked(method: str, **params: Any) -> ModernRequest:
    meta = {f"{PREFIX}protocolVersion": "2026-07-28", f"{PREFIX}clientCapabilities": {}}
    message = {"jsonrpc": "2.0", "id": 7, "method": method, "params": {"_meta": meta, **params}}
    parsed = parse_message(json.dumps(message).encode())
    assert parsed is not None
    return read_request(parsed, version_header="2026-07-28")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/list", {}),
        ("tools/call", {"name": "y"}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "y"}}),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["a:a"]}}),
    ],
)
def test_a_request_for_what_is_there_passes_as_it_is(method: str, params: Any) -> None:
    request = asked(method, **params)
    assert judge_request(request, allows) is request


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("tools/call", {"name": "x"}, -32602),
        ("prompts/get", {"name": "xy"}, -32602),
        ("completion/complete", PROMPT, -32602),
        ("Tools/Call", {"name": "x"}, -32601),
    ],
)
def test_a_request_for_what_is_not_there_is_answered(method: str, params: Any, code: int) -> None:
    answer = judge_request(asked(method, **params), allows)
    assert isinstance(answer, bytes)
    error = json.loads(answer)
    assert (error["id"], error["error"]["code"]) == (7, code)


def test_a_subscription_is_left_without_what_is_not_there() -> None:
    found = judge_request(asked("subscriptions/listen", **LISTEN_TO), allows)
    assert isinstance(found, ModernRequest)
    assert json.loads(bytes(found.params["notifications"])) == {"resourceSubscriptions": ["a:a"]}
