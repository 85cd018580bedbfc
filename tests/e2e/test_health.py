"""A server that cannot be used turns its health check, and turns it back without a client."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Bridge, backend, request, serving, wait_until

pytestmark = pytest.mark.slow

#: What each server does instead of serving, until it is repaired.
BROKEN = {
    "variable": "echo 'the variable TOKEN is not set' >&2; exit 2",
    "crash": "kill -9 $$",
    "hang": "exec sleep 1000",
    "garbage": "echo 'Welcome!'; exec sleep 1000",
}
#: Seconds until a process has hung, and until a pause between two checks is over for certain.
START_TIMEOUT = 0.5
LONG = 100.0
HOST = "Host: localhost\r\nContent-Type: application/json\r\n"
ACCEPT = "Accept: application/json, text/event-stream\r\n"


def good() -> str:
    """Return the command line of a server that works; `$@` has the marker."""
    return f'exec {shlex.join(backend("tools", "legacy", 0))} "$@"'


def config(folder: Path, **more: Any) -> dict[str, Any]:
    """Return five servers that are broken, until there is a file of that name."""
    scripts = {
        name: f"if [ -e {shlex.quote(str(folder / name))} ]; then {good()}; fi; {broken}"
        for name, broken in BROKEN.items()
    }
    lines = {name: ["sh", "-c", script, "sh"] for name, script in scripts.items()}
    lines["program"] = [str(folder / "program")]
    common = {"start_timeout": START_TIMEOUT, "stop_grace": 0.1, "kill_grace": 0.1, **more}
    return {
        "mcpServers": {
            name: {"command": command, "args": args, "base_uri": f"/{name}", **common}
            for name, (command, *args) in lines.items()
        }
    }


def repair(folder: Path, name: str) -> None:
    """Let a server start from now on."""
    made = folder / f"{name}.new"
    made.write_text(f"#!/bin/sh\n{good()}\n")
    made.chmod(0o755)
    made.rename(folder / name)


def come(bridge: Bridge, name: str) -> None:
    """Come as a client that waits somewhat longer than a process may take to start."""
    body = request("initialize", 1, protocolVersion="2025-11-25", capabilities={})
    head = f"POST /{name}/mcp HTTP/1.1\r\n{HOST}{ACCEPT}Content-Length: {len(body)}\r\n\r\n"
    with bridge.connect() as client:
        client.socket.sendall(head.encode("ascii") + body)
        client.socket.settimeout(2 * START_TIMEOUT)
        try:
            while client.socket.recv(4096):
                pass
        except TimeoutError:
            pass


def status(bridge: Bridge, target: str) -> int:
    return bridge.request("GET", target).status


def test_five_kinds_of_broken_servers_turn_and_turn_back(tmp_path: Path) -> None:
    names = [*BROKEN, "program"]
    with serving(config=config(tmp_path)) as bridge:
        assert {status(bridge, f"/readyz/{each}") for each in names} == {200}
        assert status(bridge, "/readyz") == 200, "nobody has used one yet"

        def turned(name: str) -> bool:
            if status(bridge, f"/readyz/{name}") == 503:
                return True
            come(bridge, name)
            return False

        for name in names:
            wait_until(lambda name=name: turned(name), LONG)  # type: ignore[misc]
        wait_until(lambda: status(bridge, "/readyz") == 503)
        assert status(bridge, "/livez") == 200
        for name in names:
            repair(tmp_path, name)
        wait_until(lambda: status(bridge, "/readyz") == 200, LONG)
        for name in names:
            ready = f"/readyz/{name}"
            wait_until(lambda ready=ready: status(bridge, ready) == 200, LONG)  # type: ignore[misc]
        bridge.wait_until_empty()


def test_the_canary_turns_servers_that_nobody_uses(tmp_path: Path) -> None:
    with serving(config=config(tmp_path, canary_interval=1.0)) as bridge:
        wait_until(lambda: status(bridge, "/readyz") == 503, LONG)
        repair(tmp_path, "crash")
        wait_until(lambda: status(bridge, "/readyz/crash") == 200, LONG)
        assert status(bridge, "/readyz") == 200
