"""How the admin listeners are opened and closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from mcpbridge.admin.listener import AdminListeners
from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.errors import SettingError
from mcpbridge.testing import FakeLauncher
from tests.unit.admin.world import TOKENS


def bridge_of(reactor: Any, *, admin_socket: bool = False, **settings: Any) -> Bridge:
    values: dict[str, Any] = {"listen": (), "child_subreaper": False, **settings}
    return Bridge(
        BridgeSettings(servers=(ServerSettings(command="x", name="a"),), **values),
        reactor,
        launcher=FakeLauncher(),
        admin_socket=admin_socket,
    )


@pytest.mark.parametrize("given", [(), ("none",)])
def test_there_may_be_none(given: tuple[str, ...]) -> None:
    reactor: Any = MemoryReactorClock()
    bridge = bridge_of(reactor, admin_socket=True, admin_listen=given)
    bridge.startService()
    assert not reactor.unixServers
    assert not reactor.tcpServers
    bridge.stopService()


def test_an_embedded_bridge_opens_none_by_itself() -> None:
    reactor: Any = MemoryReactorClock()
    bridge = bridge_of(reactor)
    bridge.startService()
    assert not reactor.unixServers
    bridge.stopService()


@pytest.mark.parametrize(("mode", "opened"), [("", 0o600), (":mode=660", 0o660)])
def test_a_socket_of_the_settings_is_for_its_user_alone(mode: str, opened: int) -> None:
    """Unless they say otherwise: Twisted lets everybody connect."""
    reactor: Any = MemoryReactorClock()
    bridge = bridge_of(reactor, admin_listen=(f"unix:/run/x.sock{mode}",))
    bridge.startService()
    [(_, site, _, found, _)] = reactor.unixServers
    assert found == opened
    assert site.trusted
    bridge.stopService()


def test_over_tcp_nobody_is_trusted(log_lines: list[str]) -> None:
    reactor: Any = MemoryReactorClock()
    listen = ("tcp:9000:interface=127.0.0.1", "tcp:9001:interface=0.0.0.0")
    bridge = bridge_of(reactor, admin_listen=listen, admin_tokens=TOKENS)
    bridge.startService()
    assert [site.trusted for _, site, *_ in reactor.tcpServers] == [False, False]
    assert any("0.0.0.0:9001" in x for x in log_lines if "tokens are sent in clear" in x)
    bridge.stopService()


def test_wrong_tokens_are_wrong_settings(tmp_path: Path) -> None:
    tokens = {"ann": {"file": str(tmp_path / "missing")}}
    with pytest.raises(SettingError, match=r"^admin_tokens\.ann\.file: expected"):
        bridge_of(
            MemoryReactorClock(), admin_listen=("tcp:9000:interface=::1",), admin_tokens=tokens
        )


def test_closing_twice_is_harmless() -> None:
    reactor: Any = MemoryReactorClock()
    bridge = bridge_of(reactor)
    admin = AdminListeners(bridge, reactor)
    for _ in range(2):
        done: list[object] = []
        admin.close().addBoth(done.append)
        assert done
