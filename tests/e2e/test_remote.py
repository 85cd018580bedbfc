"""
Remote servers behind the bridge: one that dies and comes back, and native ones of the SDKs.

The first is another bridge, in front of the demo.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Bridge, serving, wait_until
from tests.e2e.stateless import send
from tests.real import parts

pytestmark = pytest.mark.slow

DEMO = [sys.executable, "-I", "-m", "mcpbridge.demo"]
SCRIPT = Path(parts.__file__).with_name("http_server.py")


def far(port: int = 0) -> contextlib.AbstractContextManager[Bridge]:
    """Run the remote server, on a port."""
    listen = ("--listen", f"tcp:{port}:interface=127.0.0.1")
    return serving("--stop-grace", "0.1", command=DEMO, listen=listen)


def near(port: int, endpoint: str = "mcp") -> contextlib.AbstractContextManager[Bridge]:
    """Run the bridge before it."""
    url = f"http://127.0.0.1:{port}/{endpoint}"
    return serving(config={"mcpServers": {"far": {"url": url, "base_uri": ""}}})


def echo(bridge: Bridge, text: str) -> None:
    """Call a tool in a session of its own."""
    client = bridge.open_streamable_http()
    with client.call("tools/call", name="echo", arguments={"text": text}) as response:
        [content] = response.read_final_message()["result"]["content"]
    assert content["text"] == text
    assert client.delete() == 200
    client.session_id = ""


@pytest.mark.parametrize("endpoint", ["mcp", "sse"])
def test_death_of_the_server_is_told_and_its_return_is_used(endpoint: str) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(far())
        bridge = stack.enter_context(near(first.port, endpoint))
        echo(bridge, "before")
        client = bridge.open_streamable_http()
        waiting = client.call("tools/call", name="slow", arguments={"seconds": 3600})
        assert waiting.status == 200
        assert waiting.content_type == "text/event-stream"
        first.kill()
        failure = waiting.read_final_message()["error"]["message"]
        assert f"the remote server http://127.0.0.1:{first.port}/{endpoint}" in failure
        line = bridge.wait_for_close(client)
        assert "backend: remote: " in line
        with client.call("tools/list") as response:
            assert response.status == 404
        with bridge.new_client().call("initialize", protocolVersion="2025-11-25") as response:
            assert response.status in (502, 503)
            assert b"connection refused" in response.body
        stack.enter_context(far(first.port))
        wait_until(lambda: opens_session(bridge))
        echo(bridge, "after")


def opens_session(bridge: Bridge) -> bool:
    """Tell whether the bridge, which waits before it tries again, opens a session now."""
    client = bridge.new_client()
    with client.call("initialize", protocolVersion="2025-11-25") as response:
        if response.status == 200:
            client.session_id = response.headers["mcp-session-id"]
            return True
        assert response.status in (502, 503), response.body
        return False


def test_modern_requests_go_on_after_a_restart() -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(far())
        bridge = stack.enter_context(near(first.port))

        def call() -> int:
            arguments = {"text": "a"}
            with send(bridge.port, "", "tools/call", name="echo", arguments=arguments) as response:
                return response.status

        assert call() == 200
        first.kill()
        assert call() != 200
        stack.enter_context(far(first.port))
        wait_until(lambda: call() == 200)


# Native servers.


@contextlib.contextmanager
def native(environment: str, endpoint: str) -> Iterator[str]:
    """Run a native server of a Python SDK; yield its URL."""
    python = parts.built(parts.REAL / environment / "bin" / "python")
    with subprocess.Popen(
        [python, str(SCRIPT), endpoint], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/{endpoint}"
        finally:
            process.kill()


def visit(bridge: Bridge, server: str, tool: str) -> Any:
    """Let a real client call a tool, and answer what it asks."""
    command = parts.CLIENTS_BY_NAME["mcp-1-session"].command()
    url = f"http://127.0.0.1:{bridge.port}/{server}/mcp"
    done = subprocess.run(
        [*command, url, tool], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("environment", ["client1", "client2"])
def test_native_servers_of_both_generations(environment: str) -> None:
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(native(environment, name)) for name in ("mcp", "sse")}
        servers = {f"over-{name}": {"url": url} for name, url in urls.items()}
        bridge = stack.enter_context(serving(config={"mcpServers": servers}))
        for server in servers:
            seen = visit(bridge, server, "ask")
            assert seen["progress"] == [1, 2, 3]
            assert seen["result"]["content"][0]["text"] == "accept: text"
