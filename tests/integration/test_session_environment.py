"""Variables of a client in the environment of its own process (`env_from`), for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from mcpbridge import Bridge, BridgeSettings, ServerSettings
from mcpbridge.auth.access import ANYBODY
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.auth.session_environment import SessionEnvironment
from mcpbridge.errors import SettingError
from mcpbridge.testing import FakeLauncher, RecordingSink
from tests.thirdparty import ParrotLauncher

#: Answers each request with its own environment.
PROGRAM = """
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": dict(os.environ)}))
    sys.stdout.flush()
"""
RULES: Any = {"TOKEN": {"header": "X-Token", "required": True}, "REGION": {"header": "X-Region"}}


class Client(RecordingSink):
    """A client whose first message is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.got: Deferred[bytes] = Deferred()

    def send(self, lines: list[bytes]) -> None:
        super().send(lines)
        self.got.callback(lines[0])


@pytest.fixture
def bridge(running_reactor: Any, tmp_path: Path) -> Iterator[Bridge]:
    program = tmp_path / "server.py"
    program.write_text(PROGRAM)
    server = ServerSettings(
        command=sys.executable,
        args=(str(program),),
        env={"REGION": "default"},
        env_from=RULES,
        stop_grace=5.0,
    )
    settings = BridgeSettings(servers=(server,), listen=(), child_subreaper=False)
    made = Bridge(settings, running_reactor)
    made.startService()
    yield made
    pytest_twisted.blockon(made.stopService())


def command_line(pid: int) -> bytes:
    """Return what `ps` shows of a process."""
    shown = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, check=True)
    assert shown.stdout
    return shown.stdout


async def environment_of(bridge: Bridge, *fields: tuple[bytes, bytes]) -> tuple[Any, Any]:
    """Open a session with these headers; return it, and the environment of its process."""
    [server] = bridge.servers
    rules = SessionEnvironment(server.settings.env_from)
    request = AuthenticationRequest("default", b"POST", b"/mcp", fields)
    access = rules.admit(ANYBODY, request)
    client = Client()
    session = await server.open_session(lambda _: client, access=access)
    session.post_to_backend([b'{"jsonrpc":"2.0","id":1,"method":"x"}'])
    return session, json.loads(await client.got)["result"]


@pytest_twisted.ensureDeferred
async def test_each_client_has_its_variables_in_its_process(
    bridge: Bridge, log_lines: list[str]
) -> None:
    """And nowhere else: not in a command line, the log, nor the bridge's environment."""
    alice = ((b"X-Token", b"hush-alice"), (b"X-Region", b"hush-eu"))
    session, found = await environment_of(bridge, *alice)
    assert (found["TOKEN"], found["REGION"]) == ("hush-alice", "hush-eu")
    other, found = await environment_of(bridge, (b"X-Token", "hush-Jos\xe9".encode()))
    assert (found["TOKEN"], found["REGION"]) == ("hush-Jos\xe9", "default")
    for each in (session, other):
        assert b"hush" not in command_line(each.backend.pid)
        assert "hush" not in repr(each)
    bridge.log_sessions()
    for each in (session, other):
        each.life.end("over")
        await each.gone()
    assert any("2 sessions and other processes" in line for line in log_lines)
    assert any("closed after" in line for line in log_lines)
    assert not [line for line in log_lines if "hush" in line]
    assert "TOKEN" not in os.environ


def server(**settings: Any) -> BridgeSettings:
    one = ServerSettings(**{"command": "cat", "name": "s", "env_from": RULES, **settings})
    return BridgeSettings(servers=(one,), listen=(), child_subreaper=False)


@pytest.mark.parametrize("named", [True, False])
def test_a_launcher_that_sets_no_variables_is_refused_at_the_start(
    running_reactor: Any, named: bool
) -> None:
    """For a server with `env_from`; others may have it."""
    name = "tests.thirdparty.ParrotLauncher"
    options: Any = {} if named else {"launcher": ParrotLauncher(ServerSettings(command="x"))}
    changes: Any = {"launcher": name} if named else {}
    with pytest.raises(SettingError) as caught:
        Bridge(server(**changes), running_reactor, **options)
    setting = "launcher" if named else "env_from"
    assert caught.value.name == f"mcpServers.s.{setting}"
    assert "IEnvironmentLauncher" in str(caught.value)
    Bridge(server(**changes, env_from={}), running_reactor, **options)


def test_a_launcher_that_sets_variables_is_used(running_reactor: Any) -> None:
    Bridge(server(), running_reactor, launcher=FakeLauncher())
