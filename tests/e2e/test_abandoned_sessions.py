"""Sessions that their clients abandoned give way to new clients."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from tests.e2e.harness import Bridge, StreamableHttpClient, backend, request, serving, wait_until
from tests.e2e.stateless import ToolCaller

#: Long enough for the next request even on a slow machine.
GRACE = 4.0
pytestmark = pytest.mark.slow

#: Seconds by which a client is later than `Retry-After`.
LATE = 0.05


def config(max_sessions: int, over_all: int = 100, **settings: Any) -> dict[str, Any]:
    """Return the configuration of two servers, each with this limit."""
    command, *args = backend("tools", "legacy", 0)
    server = {
        "command": command,
        "args": args,
        "max_sessions": max_sessions,
        "abandoned_grace": GRACE,
        "stop_grace": 0.2,
        "kill_grace": 0.2,
        **settings,
    }
    servers = {name: {**server, "base_uri": f"/{name}"} for name in ("one", "two")}
    return {"mcpServers": servers, "bridge": {"max_sessions": over_all}}


def retry_after_of_a_new_client(bridge: Bridge, base: str) -> float:
    """Return the `Retry-After` of the 429 that a new client gets."""
    with bridge.new_client(base).call("initialize", protocolVersion="2025-11-25") as answer:
        assert answer.status == 429
        return float(answer.headers["retry-after"])


def abandoned(client: StreamableHttpClient) -> StreamableHttpClient:
    """Close the client's connections without ending its session."""
    client.disconnect()
    return client


@pytest.mark.parametrize("base", ["/one", "/two"])
def test_new_client_replaces_an_abandoned_session(base: str) -> None:
    """It gets in after its `Retry-After`, at either server; the old client gets 404."""
    with serving(config=config(1, over_all=1)) as bridge:
        client = abandoned(bridge.open_streamable_http("/one"))
        wait = retry_after_of_a_new_client(bridge, base)
        assert 1 <= wait <= GRACE
        time.sleep(wait + LATE)
        newer = bridge.open_streamable_http(base)
        assert len(bridge.marked_processes()) == 1
        with client.call("ping") as answer:
            assert answer.status == 404
        client.session_id = ""
        line = bridge.wait_for_log("its client abandoned it, and another client needed its slot")
        assert "in 2 messages" in line
        with newer.call("tools/list") as answer:
            assert "result" in answer.read_final_message()


def test_session_with_a_stream_or_a_request_is_not_abandoned() -> None:
    """However long it is silent; its grace period starts when the stream or request ends."""
    with serving(config=config(2)) as bridge:
        listens, works = (bridge.open_streamable_http("/one") for _ in range(2))
        stream = listens.open_get_stream()
        assert stream.status == 200
        running = works.call("tools/call", name="wait", arguments={"token": "x"})
        wait_until(lambda: "in 3 messages" in report(bridge))
        running.close()
        time.sleep(GRACE + 1)
        assert retry_after_of_a_new_client(bridge, "/one") == 5
        stream.close()
        wait_until(lambda: retry_after_of_a_new_client(bridge, "/one") <= GRACE)
        time.sleep(GRACE)
        bridge.open_streamable_http("/one")
        with listens.call("ping") as answer:
            assert answer.status == 404
        listens.session_id = ""
        with works.call("ping") as answer:
            assert answer.status == 200


def test_client_of_any_transport_replaces_an_abandoned_session() -> None:
    """It may use HTTP+SSE or a stateless request."""
    with serving(config=config(1)) as bridge:
        abandoned(bridge.open_streamable_http("/one")).session_id = ""
        time.sleep(GRACE + LATE)
        stream = bridge.open_sse("/one")
        assert len(bridge.marked_processes()) == 1
        stream.close()
        bridge.close_clients()
        abandoned(bridge.open_streamable_http("/one")).session_id = ""
        time.sleep(GRACE + LATE)
        assert ToolCaller(bridge, "/one").call("echo", "x").tool_output["token"] == "x"


def test_clients_that_never_end_their_sessions_are_all_served() -> None:
    """Eight clients share a limit of three; each gets in after the `Retry-After` it was given."""
    with serving(config=config(3)) as bridge:
        for number in range(8):
            visitor = bridge.new_client("/one")
            with visitor.send("POST", request("initialize", 1)) as answer:
                retry_after = answer.headers.get("retry-after")
                assert answer.status == (200 if retry_after is None else 429)
                assert retry_after is None or number >= 3
            if retry_after is not None:
                time.sleep(float(retry_after) + LATE)
                with visitor.send("POST", request("initialize", 1)) as answer:
                    assert answer.status == 200, "Retry-After was too short"
            visitor.disconnect()
        assert len(bridge.marked_processes()) <= 3


def report(bridge: Bridge) -> str:
    """Return the log after SIGUSR1 made the bridge report its sessions."""
    bridge.process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    return bridge.log
