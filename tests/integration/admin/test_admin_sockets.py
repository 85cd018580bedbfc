"""How the admin listeners are opened and closed, with real sockets."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.errors import CannotListen
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


@pytest_twisted.ensureDeferred
async def test_the_command_has_a_socket_in_its_state_directory(
    tmp_path: Path, running_reactor: Any, log_lines: list[str]
) -> None:
    folder = tmp_path / "state"
    bridge = bridge_of(running_reactor, admin_socket=True, state_dir=str(folder))
    bridge.startService()
    path = folder / f"admin-{os.getpid()}.sock"
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert f"admin listener at {path}" in log_lines
    await bridge.stopService()
    assert not list(folder.glob("admin*"))


@pytest_twisted.ensureDeferred
async def test_a_socket_that_somebody_removes_keeps_no_bridge_from_stopping(
    tmp_path: Path, running_reactor: Any
) -> None:
    bridge = bridge_of(running_reactor, admin_socket=True, state_dir=str(tmp_path / "state"))
    bridge.startService()
    (tmp_path / "state" / f"admin-{os.getpid()}.sock").unlink()
    await bridge.stopService()
    assert not list((tmp_path / "state").glob("admin*"))


@pytest.mark.parametrize("setting", ["listen", "admin_listen"])
@pytest.mark.parametrize("gone", ["socket", "socket.lock", "whole folder"])
@pytest_twisted.ensureDeferred
async def test_what_somebody_removes_of_a_unix_listener_keeps_no_bridge_from_stopping(
    tmp_path: Path, running_reactor: Any, log_lines: list[str], setting: str, gone: str
) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    given: dict[str, Any] = {setting: (f"unix:{folder}/socket:lockfile=1",)}
    bridge = bridge_of(running_reactor, **given)
    bridge.startService()
    assert sorted(each.name for each in folder.iterdir()) == ["socket", "socket.lock"]
    if gone == "whole folder":
        shutil.rmtree(folder)
    else:
        (folder / gone).unlink()
    await bridge.stopService()
    assert not folder.exists() or not list(folder.iterdir())
    assert not [line for line in log_lines if "was not closed" in line]


@pytest.mark.parametrize("setting", ["listen", "admin_listen"])
@pytest_twisted.ensureDeferred
async def test_a_path_that_another_process_has_taken_stays(
    tmp_path: Path, running_reactor: Any, setting: str
) -> None:
    path, lock = tmp_path / "socket", tmp_path / "socket.lock"
    given: dict[str, Any] = {setting: (f"unix:{path}",)}
    bridge = bridge_of(running_reactor, **given)
    bridge.startService()
    path.unlink()
    path.touch()
    lock.unlink()
    lock.symlink_to(str(os.getppid()))
    await bridge.stopService()
    assert sorted(os.listdir(tmp_path)) == ["socket", "socket.lock"]


@pytest_twisted.ensureDeferred
async def test_a_bridge_serves_without_a_socket(
    tmp_path: Path, running_reactor: Any, log_lines: list[str]
) -> None:
    """One warning says why it has none."""
    (tmp_path / "file").touch()
    bridge = bridge_of(running_reactor, admin_socket=True, state_dir=str(tmp_path / "file"))
    bridge.startService()
    [line] = [line for line in log_lines if "no admin socket" in line]
    assert str(tmp_path / "file") in line
    await bridge.stopService()


@pytest_twisted.ensureDeferred
async def test_one_that_cannot_be_opened_stops_the_start(
    tmp_path: Path, running_reactor: Any
) -> None:
    """Those that were opened before are closed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listen = (f"unix:{tmp_path}/s", f"tcp:{port}:interface=127.0.0.1")
        bridge = bridge_of(running_reactor, admin_listen=listen, admin_tokens=TOKENS)
        with pytest.raises(CannotListen, match=r"admin_listen.*in use"):
            bridge.startService()
    await bridge.stopService()
    await deferLater(running_reactor, 0)
    assert not (tmp_path / "s").exists()
