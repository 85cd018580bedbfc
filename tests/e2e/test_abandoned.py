"""Sessions that their clients have abandoned give way to those who come."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from tests.e2e.harness import Bridge, Streamable, backend, request, serving, until
from tests.e2e.stateless import Caller

#: Long enough that a slow machine gets its next request in before it is over.
GRACE = 4.0
pytestmark = pytest.mark.slow

#: How much later than it was told a client comes.
LATE = 0.05


def config(max_sessions: int, over_all: int = 100, **settings: Any) -> dict[str, Any]:
    """Two servers, each with so many places."""
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


def refused(bridge: Bridge, base: str) -> float:
    """For how long a client that comes is told to stay away."""
    with bridge.visitor(base).call("initialize", protocolVersion="2025-11-25") as answer:
        assert answer.status == 429
        return float(answer.headers["retry-after"])


def left(client: Streamable) -> Streamable:
    """Its client closes its connections, and is not heard of any more."""
    client.drop()
    return client


@pytest.mark.parametrize("base", ["/one", "/two"])
def test_a_newcomer_has_the_place_of_a_session_that_was_abandoned(base: str) -> None:
    """In time as it was told, at the same server and at another one; the other gets a 404."""
    with serving(config=config(1, over_all=1)) as bridge:
        client = left(bridge.streamable("/one"))
        wait = refused(bridge, base)
        assert 1 <= wait <= GRACE
        time.sleep(wait + LATE)
        newer = bridge.streamable(base)
        assert len(bridge.marked()) == 1
        with client.call("ping") as answer:
            assert answer.status == 404
        client.ident = ""
        line = bridge.wait_for_log(
            "its client has abandoned it, and another client needed its permit"
        )
        assert "in 2 messages" in line
        with newer.call("tools/list") as answer:
            assert "result" in answer.answer()


def test_a_session_with_a_stream_or_a_request_stays() -> None:
    """However long it is silent; when that ends its time begins."""
    with serving(config=config(2)) as bridge:
        listens, works = (bridge.streamable("/one") for _ in range(2))
        stream = listens.listen()
        assert stream.status == 200
        running = works.call("tools/call", name="wait", arguments={"token": "x"})
        until(lambda: "in 3 messages" in report(bridge))
        running.close()
        time.sleep(GRACE + 1)
        assert refused(bridge, "/one") == 5
        stream.close()
        until(lambda: refused(bridge, "/one") <= GRACE)
        time.sleep(GRACE)
        bridge.streamable("/one")
        with listens.call("ping") as answer:
            assert answer.status == 404
        listens.ident = ""
        with works.call("ping") as answer:
            assert answer.status == 200


def test_a_client_of_every_kind_gets_the_place() -> None:
    """Of HTTP+SSE, and of 2026-07-28."""
    with serving(config=config(1)) as bridge:
        left(bridge.streamable("/one")).ident = ""
        time.sleep(GRACE + LATE)
        stream = bridge.open("/one")
        assert len(bridge.marked()) == 1
        stream.close()
        bridge.hang_up()
        left(bridge.streamable("/one")).ident = ""
        time.sleep(GRACE + LATE)
        assert Caller(bridge, "/one").call("echo", "x").said["token"] == "x"


def test_clients_that_never_say_goodbye() -> None:
    """Eight of them at three places: each is served, by the time that it was told at the latest."""
    with serving(config=config(3)) as bridge:
        for number in range(8):
            visitor = bridge.visitor("/one")
            with visitor.send("POST", request("initialize", 1)) as answer:
                told = answer.headers.get("retry-after")
                assert answer.status == (200 if told is None else 429)
                assert told is None or number >= 3
            if told is not None:
                time.sleep(float(told) + LATE)
                with visitor.send("POST", request("initialize", 1)) as answer:
                    assert answer.status == 200, "what it was told was not true"
            visitor.drop()
        assert len(bridge.marked()) <= 3


def report(bridge: Bridge) -> str:
    """What SIGUSR1 has it say of its sessions."""
    bridge.process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    return bridge.log
