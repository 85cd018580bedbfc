"""Servers that break the framing of stdio, and what their clients and operators see."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.harness import Bridge, SseStream, backend, request, serving
from tests.e2e.stateless import send

INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}}

Call = Callable[[str], Any]


def at_sse(bridge: Bridge, ident: int | str = 7) -> Call:
    """Return a function that calls a tool over HTTP+SSE and returns the answer."""
    stream = bridge.open_sse()
    stream.send_message(request("initialize", 1, **INITIALIZE))
    assert answer_of(stream)["id"] == 1

    def call(tool: str) -> Any:
        stream.send_message(request("tools/call", ident, name=tool, arguments={}))
        return answer_of(stream)

    return call


def answer_of(stream: SseStream) -> Any:
    """Return the next message that is not a notification of a stderr line."""
    while True:
        message = json.loads(stream.read_message())
        if "method" not in message:
            return message


def at_mcp(bridge: Bridge, ident: int | str = 7) -> Call:
    """Return the same over Streamable HTTP."""
    client = bridge.open_streamable_http()

    def call(tool: str) -> Any:
        body = request("tools/call", ident, name=tool, arguments={})
        with client.send("POST", body) as response:
            return response.read_final_message()

    return call


def of_2026(bridge: Bridge, ident: int = 1) -> Call:
    """Return the same with stateless requests."""

    def call(tool: str) -> Any:
        with send(bridge.port, "", "tools/call", name=tool, arguments={}) as response:
            return response.read_final_message()

    return call


pytestmark = pytest.mark.slow

clients = pytest.mark.parametrize("client", [at_sse, at_mcp, of_2026])


@clients
@pytest.mark.parametrize(
    ("how", "error", "logged"),
    [
        ("headers", "Content-Length headers", ["Content-Length headers", "one line of JSON"]),
        ("lines", "over several lines", ["over several lines", "without indentation"]),
    ],
)
def test_misframed_answer_fails_its_call(
    client: Callable[[Bridge], Call], how: str, error: str, logged: list[str]
) -> None:
    """The error names the server's mistake, and the session goes on."""
    with serving(command=backend("misframed", "well")) as bridge:
        call = client(bridge)
        failed = call(how)
        assert failed["id"] in (1, 7)
        assert error in failed["error"]["message"]
        bridge.wait_for_log("#warn", *logged)
        assert "result" in call("well")


@pytest.mark.parametrize("client", [at_mcp, of_2026])
def test_answer_with_nan_fails_its_call(client: Callable[[Bridge], Call]) -> None:
    """On `/sse`, every line in braces passes unchanged."""
    with serving(command=backend("misframed", "well")) as bridge:
        call = client(bridge)
        assert "not a JSON-RPC message" in call("nan")["error"]["message"]
        bridge.wait_for_log("#warn", "not a JSON-RPC message")
        assert "result" in call("well")


@clients
@pytest.mark.parametrize(
    ("how", "logged"),
    [
        ("bom", ["byte order mark"]),
        ("print", ["something other than JSON", "bytes that name jsonrpc are not shown"]),
        ("hello", ["something other than JSON", "hello from the server"]),
        ("dump", ["over several lines", "if it is the answer"]),
    ],
)
def test_misframed_answer_that_can_be_read_passes(
    client: Callable[[Bridge], Call], how: str, logged: list[str]
) -> None:
    """The log still names the mistake."""
    with serving(command=backend("misframed", how)) as bridge:
        call = client(bridge)
        assert call(how)["result"]["content"] == [{"type": "text", "text": "done"}]
        bridge.wait_for_log("#warn", *logged)


@pytest.mark.parametrize(
    ("client", "first"),
    [(at_sse, "text id")]
    + [(each, how) for each in (at_mcp, of_2026) for how in ("well", "text id")],
)
def test_number_id_answered_as_text_is_restored(client: Callable[..., Call], first: str) -> None:
    """On `/sse`, where ids are not read, only if the answer to `initialize` shows it."""
    with serving(command=backend("misframed", first)) as bridge:
        answer = client(bridge)("text id")
        assert answer["id"] in (1, 7)
        assert type(answer["id"]) is int
        assert "result" in answer


@pytest.mark.parametrize("client", [at_sse, at_mcp])
def test_text_id_answered_as_number_is_restored(client: Callable[..., Call]) -> None:
    with serving(command=backend("misframed", "text id")) as bridge:
        answer = client(bridge, "7")("text id")
        assert (answer["id"], "result" in answer) == ("7", True)


@pytest.mark.parametrize("client", [at_mcp, of_2026])
def test_unexpected_answer_is_dropped_and_logged(client: Callable[[Bridge], Call]) -> None:
    with serving(command=backend("misframed", "well")) as bridge:
        call = client(bridge)
        assert "result" in call("twice")
        bridge.wait_for_log("#warn", "answered a request that is not open")
        assert "result" in call("well")


@clients
def test_utf16_output_ends_the_process(client: Callable[[Bridge], Call]) -> None:
    """Nothing of it can be read; waiting clients get the reason."""
    with serving(command=backend("misframed", "well")) as bridge:
        call = client(bridge)
        if client is at_sse:
            with pytest.raises(StopIteration):
                call("utf-16")
        else:
            assert "UTF-16" in call("utf-16")["error"]["message"]
        bridge.wait_for_log("UTF-16", " closed after ")
        bridge.wait_until_empty()
