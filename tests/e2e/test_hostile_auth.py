"""
Hostile requests do not get past access control, and a client beside them notices nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.e2e.callers import (
    ACCEPT,
    TOKENS,
    Answer,
    Wire,
    ask,
    auth,
    authorization,
    demo,
    head,
    open_session,
    post,
)
from tests.e2e.harness import Bridge, request, serving
from tests.hostile_requests import HOSTILE, INITIALIZE, SESSION, SSE, SUM, Hostile

pytestmark = pytest.mark.slow

CAROL = authorization("carol")


class Healthy:
    """A client of both servers with a session of its own, on connections that stay open."""

    def __init__(self, bridge: Bridge) -> None:
        self._session = f"Mcp-Session-Id: {open_session(bridge.port, '/tools', 'alice')}"
        self._wire = Wire(bridge.port)
        self._calls = 0

    def call(self) -> None:
        """Call the tool that not everybody may call; the result must be the right one."""
        self._calls += 1
        arguments = {"a": self._calls, "b": 1000}
        body = request("tools/call", self._calls, name="add", arguments=arguments)
        answer = self._wire.ask(post("/tools/mcp", body, *authorization("alice"), self._session))
        assert answer.status == 200, answer
        assert answer.json["id"] == self._calls
        assert answer.json["result"]["content"][0]["text"] == str(self._calls + 1000)

    def close(self) -> None:
        """Close its connection."""
        self._wire.close()


class World(NamedTuple):
    """A bridge, a client that uses it as it should, and the sessions of one that does not."""

    bridge: Bridge
    healthy: Healthy
    session: str
    sse: str
    stream: Wire

    def raw(self, hostile: Hostile) -> bytes:
        """Return the bytes of a request, with the sessions in their places."""
        found = hostile.raw.replace(SESSION, self.session.encode("ascii"))
        return found.replace(SSE, self.sse.encode("ascii"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Serve one server without scopes, and one with a tool that needs one."""
    tools = demo("/tools", auth={"scopes": {"tools/call": {"add": "adder"}}})
    servers = {"open": demo("/open", max_sessions=1000), "tools": tools}
    with serving(config={"mcpServers": servers, "bridge": {"auth": auth()}}) as bridge:
        healthy = Healthy(bridge)
        opened = ask(bridge.port, post("/tools/mcp", INITIALIZE, *CAROL))
        with Wire(bridge.port) as stream:
            stream.send(head("GET", "/tools/sse", [f"Accept: {ACCEPT}", *CAROL]))
            assert stream.answer().status == 200
            sse = stream.read_until(b"\n\n").rpartition(b"sessionId=")[2].decode("ascii")
            yield World(bridge, healthy, opened.headers["mcp-session-id"], sse, stream)
            # The server of the hostile client has seen none of its forbidden calls.
            last = post(f"/tools/message?sessionId={sse}", request("ping", "last"), *CAROL)
            assert ask(bridge.port, last).status == 202
            seen = b""
            while b'"last"' not in seen:
                seen = stream.read_until(b"\n\n")
                assert SUM not in seen
                assert b'"id": 7' not in seen
        healthy.close()
        for token in TOKENS.values():
            assert token is None or token not in bridge.log


def answers(world: World, hostile: Hostile) -> list[Answer]:
    """Send the bytes, and return all responses; the healthy client calls a tool meanwhile."""
    with Wire(world.bridge.port) as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A refusal may come, and the connection end, before all is sent.
            wire.send(world.raw(hostile))
        world.healthy.call()
        found = [wire.answer() for _ in hostile.statuses]
        with contextlib.suppress(OSError):
            wire.half_close()
        assert wire.read_eof(), "there is one more response"
    return found


@pytest.mark.parametrize("hostile", HOSTILE, ids=[each.name for each in HOSTILE])
def test_hostile(world: World, hostile: Hostile) -> None:
    found = answers(world, hostile)
    assert tuple(each.status for each in found) == hostile.statuses, found
    for each in found:
        assert SUM not in each.raw
        if each.status == 401 or b"this needs the scopes" in each.body:
            assert each.challenge is not None
        elif each.status != 400:
            assert each.challenge is None
    if hostile.code is not None:
        assert json.loads(found[-1].body)["error"]["code"] == hostile.code
    world.healthy.call()


def test_there_are_enough() -> None:
    names = [each.name for each in HOSTILE]
    assert len(names) >= 200
    assert len(set(names)) == len(names)
