"""A server whose first start is slow, and clients that do not wait for it."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import stateless
from tests.e2e.harness import Bridge, backend, request, serving

pytestmark = pytest.mark.slow

#: Seconds the installation takes, and the first client waits.
INSTALL = 5.0
PATIENCE = 2.0
#: Seconds each later client waits: longer and longer, so that one of them waits
#: long enough on any machine.
PATIENCES = [PATIENCE * 1.5**number for number in range(10)]


def config(folder: Path, max_sessions: int, *era: str, **more: Any) -> dict[str, Any]:
    """Return the configuration of a server that is not installed yet."""
    command, *args = backend("installing", folder, INSTALL, *era)
    graces = {"stop_grace": 0.2, "kill_grace": 0.2}
    server = {"command": command, "args": args, "max_sessions": max_sessions, "base_uri": ""}
    return {"mcpServers": {"slow": {**server, **graces, **more}}}


def can_initialize(bridge: Bridge, transport: str, patience: float = PATIENCE) -> bool:
    """Return True if a client with this patience gets an answer to `initialize`."""
    end = time.monotonic() + patience
    body = request("initialize", 1, protocolVersion="2025-11-25", capabilities={})
    headers = "Host: localhost\r\nAccept: application/json, text/event-stream\r\n"
    typed = f"{headers}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    address = ("127.0.0.1", bridge.port)
    with socket.create_connection(address) as one, socket.create_connection(address) as two:
        try:
            if transport == "mcp":
                one.sendall(b"POST /mcp HTTP/1.1\r\n" + typed.encode() + body)
            else:
                one.sendall(f"GET /sse HTTP/1.1\r\n{headers}\r\n".encode())
                found = re.search(rb"/message\S+", read_until(one, rb"/message\S+\s", end))
                assert found is not None
                two.sendall(b"POST %b HTTP/1.1\r\n" % found[0] + typed.encode() + body)
            read_until(one, rb'"result"', end)
        except TimeoutError:
            return False
    return True


def read_until(connection: socket.socket, pattern: bytes, end: float) -> bytes:
    """Read until the data matches the pattern; raise `TimeoutError` at `end`."""
    data = b""
    while not re.search(pattern, data):
        connection.settimeout(max(0.001, end - time.monotonic()))
        piece = connection.recv(65536)
        if not piece or b" 429 " in data[:20]:
            wait_until(end)
            raise TimeoutError
        data += piece
    return data


def wait_until(end: float) -> None:
    """Wait out the patience of a client that was refused."""
    time.sleep(max(0.0, end - time.monotonic()))


def calls(bridge: Bridge, patience: float = PATIENCE) -> bool:
    """Return True if a stateless client with this patience gets an answer."""
    end = time.monotonic() + patience
    with stateless.send(bridge.port, "", "resources/list") as response:
        response.socket.settimeout(patience)
        try:
            answer = response.read_final_message()
        except TimeoutError:
            return False
    if "result" in answer:
        return True
    assert response.status == 429, answer
    wait_until(end)
    return False


def installs(folder: Path) -> int:
    """Return how many installations began."""
    return len((folder / "installs").read_text().splitlines())


@pytest.mark.parametrize("transport", ["mcp", "sse"])
@pytest.mark.parametrize("max_sessions", [1, 10])
def test_impatient_clients_with_sessions_are_served_in_the_end(
    tmp_path: Path, max_sessions: int, transport: str
) -> None:
    """The first client's process starts without it, and the others wait for that process."""
    with serving(config=config(tmp_path, max_sessions)) as bridge:
        assert not can_initialize(bridge, transport)
        line = bridge.wait_for_log("a client left after", "`warm`")
        assert "start_timeout" in line
        assert any(can_initialize(bridge, transport, each) for each in PATIENCES)
        assert installs(tmp_path) == 1
        assert bridge.log.count("a client left after") == 1
        bridge.wait_for_log("its process was kept: it has started")


def test_reconnecting_clients_start_no_second_install(tmp_path: Path) -> None:
    """Eight come at once while the first client's process starts."""
    with serving(config=config(tmp_path, 20)) as bridge:
        assert not can_initialize(bridge, "mcp")
        bridge.wait_for_log("a client left after")
        served: list[bool] = []

        def keep_trying() -> None:
            served.append(any(can_initialize(bridge, "mcp", each) for each in PATIENCES))

        workers = [threading.Thread(target=keep_trying) for _ in range(8)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        assert served == [True] * 8
        assert installs(tmp_path) == 1


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("max_sessions", [1, 10])
def test_impatient_stateless_clients_are_served_in_the_end(
    tmp_path: Path, max_sessions: int, era: str
) -> None:
    """The launch that the first client caused goes on, and the others wait for it."""
    patient = {"probe_timeout": 300, "start_timeout": 300}
    with serving(config=config(tmp_path, max_sessions, era, **patient)) as bridge:
        assert not calls(bridge)
        assert any(calls(bridge, each) for each in PATIENCES)
        assert installs(tmp_path) == 1
        # Clients that left hold no capacity.
        assert any(calls(bridge, each) for each in PATIENCES)


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_stateless_clients_start_at_most_two_installs(tmp_path: Path, era: str) -> None:
    """Also where the probe found nothing out, and the bridge takes the server for a legacy one."""
    patient = {"probe_timeout": 1, "start_timeout": 300}
    with serving(config=config(tmp_path, 10, era, **patient)) as bridge:
        assert not calls(bridge)
        assert any(calls(bridge, each) for each in PATIENCES)
        # The first one was ended after `probe_timeout`, perhaps before it had begun.
        assert installs(tmp_path) <= 2


#: Seconds that no test waits for: the installation ends when its test says so.
FOREVER = 3600.0


@pytest.mark.parametrize("transport", ["sse", "mcp", "stateless", "modern"])
def test_client_that_waits_for_an_install_hears_of_the_bridge(
    tmp_path: Path, transport: str
) -> None:
    """
    It gets the head of an event stream and a comment or a ping while the server is being
    installed; when it leaves, the process is kept.  The log says what is waited for.
    """
    era = [transport] if transport == "modern" else []
    folder = tmp_path / "installing"
    folder.mkdir()
    npx = tmp_path / "npx"
    command, *args = backend("installing", folder, FOREVER, *era)
    npx.write_text(f'#!/bin/sh\necho "npm warn: fetching" >&2\nexec {command} "$@"\n')
    npx.chmod(0o755)
    server = {"command": str(npx), "args": args, "base_uri": "", "start_timeout": 300}
    server |= {"probe_timeout": 300, "stop_grace": 0.2, "kill_grace": 0.2}
    with serving(config={"mcpServers": {"slow": server}}) as bridge:
        address = ("127.0.0.1", bridge.port)
        with socket.create_connection(address) as one, socket.create_connection(address) as two:
            end = time.monotonic() + 60
            head = begin(transport, one, two, end)
            if transport != "sse":
                head = read_until(one, rb"\r\n:", end)
            assert b" 200 " in head[:20]
            assert b"text/event-stream" in head
            bridge.wait_for_log("waiting for its first answer for", "npx may be downloading")
            assert "(last stderr: npm warn: fetching)" in bridge.log


def begin(transport: str, one: socket.socket, two: socket.socket, end: float) -> bytes:
    """
    Send what makes a server start.  Return what the first socket has received, up to a ping
    on `/sse`, and nothing otherwise.
    """
    accept = "Host: localhost\r\nAccept: application/json, text/event-stream\r\n"
    body = request("initialize", 1, protocolVersion="2025-11-25", capabilities={})
    path, received = "/mcp", b""
    if transport in ("stateless", "modern"):
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "x", "version": "1"},
        }
        body = request("resources/list", 1, _meta=meta)
        accept += "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: resources/list\r\n"
    elif transport == "sse":
        one.sendall(f"GET /sse HTTP/1.1\r\n{accept}\r\n".encode())
        received = read_until(one, rb"event: message", end)
        found = re.search(rb"/message\S+", received)
        assert found is not None
        path, one = found[0].decode(), two
    typed = f"{accept}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    one.sendall(f"POST {path} HTTP/1.1\r\n{typed}".encode() + body)
    return received
