"""Health checks of a bridge, through real sockets, on the ordinary path and the fast path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import Site

from mcpbridge import Bridge, BridgeSettings, ServerSettings
from mcpbridge.errors import CannotStart
from mcpbridge.testing import FakeLauncher

TOKENS = {"tokens": {"alice": {"sha256": "0" * 64}}}
SERVERS = (
    ServerSettings(command="x", name="public", base_uri="/public"),
    ServerSettings(command="x", name="secret", base_uri="/secret", auth=TOKENS),
)


def settings(*servers: ServerSettings, **more: Any) -> BridgeSettings:
    return BridgeSettings(servers=servers, child_subreaper=False, **more)


@pytest.fixture
def start(running_reactor: Any) -> Iterator[Callable[..., Bridge]]:
    """Starts bridges on ports of their own; stops them at the end."""
    started: list[Bridge] = []

    def begin(
        *servers: ServerSettings, launcher: FakeLauncher | None = None, **more: Any
    ) -> Bridge:
        found = settings(*servers, **{"listen": ("tcp:0:interface=127.0.0.1",), **more})
        bridge = Bridge(found, running_reactor, launcher=launcher or FakeLauncher())
        bridge.startService()
        started.append(bridge)
        return bridge

    yield begin
    for each in started:
        pytest_twisted.blockon(each.stopService())


async def check(origin: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Return the status and the text of a response."""
    given: Any = headers
    response = await treq.request(
        method, f"{origin}{path}", headers=given, persistent=False, timeout=60
    )
    return response.code, await treq.text_content(response)


def origin_of(bridge: Bridge) -> str:
    return bridge.urls()[0].removesuffix("/public/mcp")


@pytest.mark.parametrize("fast_path", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_stranger_is_told_what_everybody_may_know(
    fast_path: bool, start: Any, tmp_path: Path
) -> None:
    audit = tmp_path / "audit"
    bridge = start(*SERVERS, fast_path=fast_path, audit_log=str(audit))
    origin = origin_of(bridge)
    for headers in ({}, {"Host": "10.1.2.3:80"}, {"Authorization": "Bearer wrong"}):
        assert await check(origin, "/livez", **headers) == (200, "ok\n")
        assert await check(origin, "/readyz", **headers) == (200, "ready\n")
        assert await check(origin, "/readyz/public", **headers) == (200, "ready\n")
        unknown = await check(origin, "/readyz/unknown", **headers)
        assert await check(origin, "/readyz/secret", **headers) == unknown
        assert unknown[0] == 404
    assert (await check(origin, "/livez", "POST"))[0] == 405
    assert await check(origin, "/livez", "HEAD") == (200, "")
    assert not bridge.counters.refusals
    await bridge.stopService()
    assert audit.read_bytes() == b""


@pytest.mark.parametrize("fast_path", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_missing_program_turns_the_check(
    fast_path: bool, start: Any, running_reactor: Any
) -> None:
    launcher = FakeLauncher()
    launcher.error = CannotStart("no such program")
    bridge = start(SERVERS[0], launcher=launcher, fast_path=fast_path)
    origin = origin_of(bridge)
    assert await check(origin, "/readyz/public") == (200, "ready\n")
    assert (await check(origin, "/public/sse", Accept="text/event-stream"))[0] == 502
    assert await check(origin, "/readyz/public") == (503, "not ready\n")
    assert await check(origin, "/readyz") == (503, "not ready\n")
    assert await check(origin, "/livez") == (200, "ok\n")
    [details] = bridge.health.details()["servers"]
    assert (details["state"], details["why"]) == ("failing", "no such program")

    # The bridge looks for it without a client; this process answers nothing.
    launcher.error = None
    while not launcher.backends:
        await deferLater(running_reactor, 0.05)
    assert await check(origin, "/readyz") == (200, "ready\n")


@pytest_twisted.ensureDeferred
async def test_other_settings_have_other_names(start: Any) -> None:
    bridge = start(*SERVERS)
    origin = origin_of(bridge)
    other = ServerSettings(command="x", name="other", base_uri="/other")
    bridge.reload(settings(SERVERS[0], other, listen=bridge.settings.listen))
    assert await check(origin, "/readyz/other") == (200, "ready\n")
    bridge.reload(settings(other, listen=bridge.settings.listen))
    assert (await check(origin, "/readyz/public"))[0] == 404
    assert await check(origin, "/readyz") == (200, "ready\n")


@pytest_twisted.ensureDeferred
async def test_checks_of_an_embedded_bridge_are_below_its_mount(
    start: Any, running_reactor: Any
) -> None:
    bridge = start(*SERVERS, listen=())
    root = Resource()
    root.putChild(b"tools", bridge.resource())
    port = running_reactor.listenTCP(0, Site(root), interface="127.0.0.1")
    try:
        origin = f"http://127.0.0.1:{port.getHost().port}"
        assert await check(origin, "/tools/livez") == (200, "ok\n")
        assert await check(origin, "/tools/readyz/public/") == (200, "ready\n")
        await bridge.stopService()
        assert await check(origin, "/tools/livez") == (200, "ok\n")
        assert await check(origin, "/tools/readyz") == (503, "not ready\n")
    finally:
        await port.stopListening()
