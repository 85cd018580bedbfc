"""Other settings at SIGHUP, under load, in front of real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import TIMEOUT, Bridge, backend, request, serving, wait_until

pytestmark = pytest.mark.slow

#: Calls that are in flight, in all, and the sessions that have most of them.
CALLS = 1000
SESSIONS = 4
PREFIX = "io.modelcontextprotocol/"
HEAD = re.compile(rb"HTTP/1.1 (\d+) .*?\r\n\r\n", re.DOTALL)


class Client:
    """Sends requests over connections of its own, and reads what comes back."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def send(
        self, method: str, path: str, body: bytes = b"", **fields: str
    ) -> tuple[asyncio.StreamReader, int, str]:
        """Send a request; return what follows the head of the response, and its status."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        self._writers.append(writer)
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += ["Accept: application/json, text/event-stream", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}"] if body else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        return reader, int(head.split()[1]), head.decode()

    async def post(self, path: str, body: bytes, **fields: str) -> tuple[int, bytes, str]:
        """Send a message; return the status, the response, and its head."""
        reader, status, head = await self.send("POST", path, body, **fields)
        return status, await reader.read(), head

    def close(self) -> None:
        for each in self._writers:
            each.close()


def text_of(response: bytes) -> str:
    """Return the text of the answer to a call."""
    found = re.search(rb'"text": ?"([^"]*)"', response)
    assert found is not None, response
    return found[1].decode()


def call(word: str, ident: object = 1, **meta: Any) -> bytes:
    params: dict[str, Any] = {"name": "say", "arguments": {"word": word}}
    if meta:
        params["_meta"] = meta
    return request("tools/call", ident, **params)


def modern_call(word: str) -> bytes:
    return call(
        word,
        **{
            f"{PREFIX}protocolVersion": "2026-07-28",
            f"{PREFIX}clientInfo": {"name": "c", "version": "1"},
            f"{PREFIX}clientCapabilities": {},
        },
    )


MODERN = {"MCP_Protocol_Version": "2026-07-28", "Mcp_Method": "tools/call", "Mcp_Name": "say"}
INITIALIZE = request(
    "initialize",
    0,
    protocolVersion="2025-11-25",
    capabilities={},
    clientInfo={"name": "c", "version": "1"},
)


async def open_session(client: Client, name: str) -> dict[str, str]:
    """Open a session at /mcp; return the fields of its requests."""
    status, _, head = await client.post(f"/{name}/mcp", INITIALIZE)
    assert status == 200, head
    found = re.search(r"(?i)mcp-session-id: (\S+)", head)
    assert found is not None
    return {"Mcp_Session_Id": found[1]}


async def over_sse(client: Client, name: str, words: list[str]) -> list[tuple[str, str]]:
    """Make calls in one session at /sse; return each word and what was answered."""
    reader, status, _ = await client.send("GET", f"/{name}/sse")
    assert status == 200
    await reader.readuntil(b"data: ")
    path = (await reader.readline()).decode().strip()
    status, response, _ = await client.post(path, INITIALIZE)
    assert status == 202, response
    for number, word in enumerate(words):
        status, *_ = await client.post(path, call(word, number + 1))
        assert status == 202
    found: dict[int, str] = {}
    while len(found) < len(words):
        line = await reader.readline()
        if line.startswith(b"data: {"):
            message = json.loads(line[6:])
            if message.get("id") and "result" in message:
                found[message["id"]] = message["result"]["content"][0]["text"]
    return [(word, found[number + 1]) for number, word in enumerate(words)]


async def over_mcp(client: Client, name: str, words: list[str]) -> list[tuple[str, str]]:
    """Do the same in one session at /mcp."""
    session = await open_session(client, name)

    async def one(number: int, word: str) -> tuple[str, str]:
        status, response, _ = await client.post(f"/{name}/mcp", call(word, number), **session)
        assert status == 200, response
        return word, text_of(response)

    found = await asyncio.gather(*(one(number, word) for number, word in enumerate(words, 1)))
    await client.send("DELETE", f"/{name}/mcp", b"", **session)
    return found


async def stateless(client: Client, name: str, words: list[str]) -> list[tuple[str, str]]:
    """Do the same with requests of 2026-07-28."""

    async def one(word: str) -> tuple[str, str]:
        status, response, _ = await client.post(f"/{name}/mcp", modern_call(word), **MODERN)
        assert status == 200, response
        return word, text_of(response)

    return await asyncio.gather(*map(one, words))


Way = Callable[[Client, str, list[str]], Awaitable[list[tuple[str, str]]]]


def reload(bridge: Bridge, config: dict[str, Any], says: str) -> None:
    """Write another file, and have it loaded."""
    (bridge.folder / "config.json").write_text(json.dumps(config))
    bridge.process.send_signal(signal.SIGHUP)
    bridge.wait_for_log("SIGHUP: ", says)


#: A token in a file that is not there.
TOKEN_FILE = {"tokens": {"x": {"file": "no such file"}}}


def servers(gate: Path, **names: str) -> dict[str, Any]:
    """Return entries; each value is the era and the name that the server answers with."""
    found: dict[str, Any] = {}
    for name, given in names.items():
        program, *args = backend("held", *given.split(), gate)
        found[name] = {"command": program, "args": args, "concurrency": CALLS}
        found[name]["max_waiting_requests"] = CALLS
    return found


def test_calls_in_flight_are_answered_over_a_reload(tmp_path: Path) -> None:
    """A thousand, of which none is lost, and none is answered by another server's process."""
    gate = tmp_path / "gate"
    before = {
        **servers(gate, stays="legacy stays", changes="legacy before", leaves="legacy leaves"),
        **servers(gate, newer="modern newer", rewritten="modern before", dropped="modern dropped"),
    }
    names = {"stays": "stays", "changes": "before", "leaves": "leaves"}
    modern = {"newer": "newer", "rewritten": "before", "dropped": "dropped"}
    plan: list[tuple[Way, str, str]] = []
    for _ in range(SESSIONS):
        plan += [
            (way, name, answers) for name, answers in names.items() for way in (over_sse, over_mcp)
        ]
    plan += [
        (stateless, name, answers) for name, answers in modern.items() for _ in range(SESSIONS)
    ]
    each = CALLS // len(plan) + 1

    async def all_calls(bridge: Bridge, config: dict[str, Any]) -> None:
        client = Client(bridge.port)
        calls = [
            asyncio.ensure_future(way(client, name, [f"{at}.{i}" for i in range(each)]))
            for at, (way, name, _) in enumerate(plan)
        ]
        try:
            # They are in flight when every process has all of its calls.
            await asyncio.to_thread(wait_until_in_flight, bridge, each * len(plan))
            marker = bridge.marker
            after = servers(
                gate, stays="legacy stays", changes="legacy after", comes="legacy comes"
            ) | servers(gate, newer="modern newer", rewritten="modern after")
            for server in after.values():
                server["args"] = [*server["args"], marker]
            for name in ("stays", "newer"):
                after[name] = before[name]
            await asyncio.to_thread(
                reload, bridge, {**config, "mcpServers": after}, "removed leaves, dropped"
            )
            assert [task.exception() for task in calls if task.done()] == []
            gate.touch()
            answered = await asyncio.wait_for(asyncio.gather(*calls), TIMEOUT)
            for (_, _, name), found in zip(plan, answered, strict=True):
                assert [text for _, text in found] == [f"{name} {word}" for word, _ in found]
            assert sum(map(len, answered)) >= CALLS
            # Whoever comes now gets what the file says now.
            for name, answers in (("stays", "stays"), ("changes", "after"), ("comes", "comes")):
                for way in (over_sse, over_mcp):
                    assert await way(client, name, ["x"]) == [("x", f"{answers} x")]
            for name, answers in (("newer", "newer"), ("rewritten", "after")):
                assert await stateless(client, name, ["x"]) == [("x", f"{answers} x")]
            for name in ("leaves", "dropped"):
                status, response, _ = await client.post(f"/{name}/mcp", INITIALIZE)
                assert status == 404, response
        finally:
            client.close()
            for task in calls:
                task.cancel()

    config = {"mcpServers": before, "bridge": {"max_sessions": 500}}
    with serving(config=config) as bridge:
        asyncio.run(all_calls(bridge, config))
        # The sessions of those that were removed have ended with their clients.
        wait_until(lambda: "server 'leaves': nothing is left of it" in bridge.log)
        wait_until(lambda: "server 'dropped': nothing is left of it" in bridge.log)


def wait_until_in_flight(bridge: Bridge, count: int) -> None:
    """Wait until the processes have been sent so many calls."""

    def sent() -> int:
        os.kill(bridge.process.pid, signal.SIGUSR1)
        report = bridge.log.rpartition("sessions and other processes:")[2]
        return sum(map(int, re.findall(r"in (\d+) messages", report)))

    wait_until(lambda: sent() >= count)


def test_file_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    """The log says what is wrong, and where; clients notice nothing."""
    gate = tmp_path / "gate"
    gate.touch()
    config: dict[str, Any] = {"mcpServers": servers(gate, a="legacy a")}

    def wrong(bridge: Bridge, text: str, *says: str) -> None:
        (bridge.folder / "config.json").write_text(text)
        count = bridge.log.count("nothing has changed")
        bridge.process.send_signal(signal.SIGHUP)
        wait_until(lambda: bridge.log.count("nothing has changed") > count)
        bridge.wait_for_log(*says)

    async def works(bridge: Bridge) -> None:
        client = Client(bridge.port)
        try:
            assert await over_mcp(client, "a", ["x"]) == [("x", "a x")]
            assert await over_sse(client, "a", ["x"]) == [("x", "a x")]
        finally:
            client.close()

    with serving(config=config) as bridge:
        path = bridge.folder / "config.json"
        for text, says in (
            ("{", f"{path}:1:2: "),
            ('{"mcpServers": {"a": {"command": "x", "max_sessions": 0}}}', "mcpServers.a.max_sess"),
            ('{"mcpServers": {}}', "expected at least one server"),
            ('{"mcpServers": {"a": {"comand": "x"}, "b": {"command": "x"}}}', "`comand`"),
            (json.dumps({**config, "bridge": {"auth": TOKEN_FILE}}), "auth.tokens.x.file"),
        ):
            wrong(bridge, text, says)
            asyncio.run(works(bridge))
        os.unlink(path)
        bridge.process.send_signal(signal.SIGHUP)
        bridge.wait_for_log(f"{path}: No such file or directory")
        asyncio.run(works(bridge))
        reload(bridge, config, f"loaded {path}: nothing has changed")
        asyncio.run(works(bridge))
