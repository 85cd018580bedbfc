"""
Operators at the admin socket of a real bridge: what fails and why, and what they can do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import (
    LOOPBACK,
    TIMEOUT,
    Bridge,
    Connection,
    backend,
    request,
    serving,
    shell,
    wait_until,
)
from tests.real.parts import beside_python

pytestmark = pytest.mark.slow

JSON = ("Content-Type: application/json", "Accept: application/json, text/event-stream")


def run(*arguments: str) -> tuple[int, str]:
    """Run a command of `mcpbridge`; return its exit status and all that it has printed."""
    done = subprocess.run(
        [beside_python("mcpbridge"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode()


def sockets(bridge: Bridge) -> list[Path]:
    return sorted((bridge.folder / "state").glob("admin-*.sock"))


def entry(command: list[str], **settings: Any) -> dict[str, Any]:
    return {"command": command[0], "args": command[1:], **settings}


def test_an_operator_sees_and_ends_a_session_and_loads_other_settings() -> None:
    config = {"mcpServers": {"echo": entry(backend("echo"))}}
    with serving(config=config) as bridge:
        stream = bridge.open_sse("/echo")
        folder = str(bridge.folder / "state")
        status, text = run("status", "--socket", folder)
        assert status == 0, text
        assert f"pid {bridge.process.pid}, serving" in text
        assert stream.session_id[:8] in text
        bridge.wait_for_backends(1)
        status, text = run("end", stream.session_id[:8], "--socket", folder)
        assert (status, text) == (0, f"session {stream.session_id[:8]} is ended\n")
        assert stream.read_remaining_messages() == []
        bridge.wait_until_empty()
        config["mcpServers"]["more"] = entry(backend("echo"))
        (bridge.folder / "config.json").write_text(json.dumps(config))
        status, text = run("reload", "--socket", folder)
        assert status == 0, text
        assert "more" in text
        bridge.wait_for_log("reload: loaded ")
        (bridge.folder / "config.json").write_text("{")
        status, text = run("reload", "--socket", folder)
        assert status == 1
        assert "config.json" in text
        bridge.stop()
        assert not sockets(bridge)


#: Why each server fails, as a newcomer has to see it.
FAILURES = {
    "missing-program": (entry(["no-such-program"]), "no-such-program"),
    "missing-variable": (
        entry(shell('echo "$${API_KEY:?is not set}"')),
        "API_KEY: is not set",
    ),
    "crash": (
        entry([sys.executable, "-c", "raise RuntimeError('the database is away')"]),
        "RuntimeError: the database is away",
    ),
    "hang": (entry(shell("exec sleep 1000"), start_timeout=1), "has written nothing to stdout"),
    "garbage": (
        entry(shell("echo Starting up...; while read -r line; do :; done")),
        "something other than JSON to stdout",
    ),
}


def test_an_operator_sees_why_servers_fail() -> None:
    """A program or a variable that is missing, a crash, a hang, and garbage on stdout."""
    config = {"mcpServers": {name: server for name, (server, _) in FAILURES.items()}}
    with serving(config=config) as bridge:
        initialize = request(
            "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "x"}
        )
        waiting = []
        for name in FAILURES:
            client = Connection(bridge.port)
            waiting.append(client)
            head = f"POST /{name}/mcp HTTP/1.1\r\nHost: localhost:{bridge.port}\r\n"
            fields = "".join(f"{each}\r\n" for each in JSON)
            length = f"Content-Length: {len(initialize)}\r\n\r\n"
            client.send((head + fields + length).encode() + initialize)

        def all_are_told() -> bool:
            _, text = run("status", "--json", "--socket", str(bridge.folder / "state"))
            told = {each["name"]: json.dumps(each) for each in json.loads(text)["servers"]}
            return all(text in told[name] for name, (_, text) in FAILURES.items())

        wait_until(all_are_told)
        status, text = run("status", "--socket", str(bridge.folder / "state"))
        assert status == 3
        for _, expected in FAILURES.values():
            assert expected in text
        for client in waiting:
            client.close()


def test_the_socket_of_a_killed_bridge_is_removed_at_the_next_start() -> None:
    with serving() as bridge:
        [dead] = sockets(bridge)
        bridge.kill()
        assert run("status", "--socket", str(dead))[0] == 1
        folder = bridge.folder / "state"
        line = ["-n", "--pidfile=", "mcpbridge", *LOOPBACK, "--state-dir", str(folder)]
        log = bridge.folder / "log2"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [beside_python("twistd"), *line, "--", *backend("echo")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(lambda: "serving http" in log.read_text())
            [live] = sockets(bridge)
            assert live.name == f"admin-{process.pid}.sock"
            status, text = run("status", "--socket", str(folder))
            assert status == 0, text
            assert f"pid {process.pid}" in text
        finally:
            process.terminate()
            process.wait()
        assert not sockets(bridge)
