"""Metrics of a bridge with real processes, checked by Prometheus' own tool."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, cast

import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families

from mcpbridge import Bridge, ServerSettings
from mcpbridge.admin.metrics import Exposition
from tests.client import SseClient
from tests.integration.test_bridge import start  # noqa: F401  (a fixture)
from tests.real.parts import command, need_processes

#: A server that has a child of its own.
FORKS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=-1)
for line in sys.stdin:
    print('{"jsonrpc":"2.0","id":1,"result":{}}', flush=True)
"""
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
SERVER = ServerSettings(name="forks", command=sys.executable, args=("-S", "-c", FORKS))


class View:
    """A bridge as the admin listener sees it."""

    condition = "serving"

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bridge, name)


def values(body: bytes, name: str) -> dict[str, float]:
    """Return the values of a metric by server, of all other labels together."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(body.decode()):
        for each in family.samples:
            if each.name == name:
                server = each.labels.get("server", "")
                found[server] = found.get(server, 0) + each.value
    return found


def lint(body: bytes) -> None:
    """Have Prometheus' own tool look for mistakes in metrics, and for names that it advises not."""
    check = [command("promtool"), "check", "metrics"]
    done = subprocess.run(check, input=body, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest_twisted.ensureDeferred
async def test_a_process_tree_is_measured(start: Any, running_reactor: Any) -> None:  # noqa: F811
    need_processes()
    running = start(SERVER)
    client: SseClient = await running.client("/sse", running.origin)
    assert (await client.post(PING))[0] == 202
    await client.read_message()
    bridge = running.bridge
    assert bridge.connection_count >= 1
    (session,) = bridge.servers[0].unclosed
    usages = await bridge.usage()
    assert usages is await bridge.usage()
    own, tree = usages[os.getpid()], usages[session.backend.pid]
    assert own.processes == 1
    assert own.memory_bytes > 0
    assert own.descriptors > 0
    assert tree.processes == 2
    assert tree.memory_bytes > 0
    assert tree.descriptors >= 6

    exposition = Exposition(cast("Any", View(bridge)), running_reactor)
    content_type, body = await exposition.text("")
    assert content_type.startswith("text/plain")
    assert values(body, "mcpbridge_backend_processes") == {"forks": 2}
    assert values(body, "mcpbridge_backend_memory_bytes") == {"forks": tree.memory_bytes}
    assert values(body, "mcpbridge_sessions") == {"forks": 1}
    # One message of the client, and besides its answer none of the server.
    assert values(body, "mcpbridge_messages_total") == {"forks": 2}
    assert values(body, "mcpbridge_connections")[""] >= 1
    await client.close()
    lint(body)
