"""The admin socket in the state directory, and what dead bridges leave there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpbridge.admin import socket_file
from mcpbridge.admin.socket_file import (
    CONNECT_SECONDS,
    SOCKET_PATH_BYTES,
    SOCKETS_OF_PID,
    STALE_SECONDS,
    NoSocket,
    is_dead,
    new_path,
    remove_stale,
    sockets_in,
)


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    """Return sockets that are closed at the end."""
    found: list[socket.socket] = []
    yield found
    for each in found:
        each.close()


def bind(path: Path, opened: list[socket.socket], *, listen: bool = True) -> Path:
    each = socket.socket(socket.AF_UNIX)
    opened.append(each)
    each.bind(str(path))
    if listen:
        each.listen()
    return path


@pytest.fixture
def dead_pid() -> int:
    """Return the pid of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    return ended.pid


def test_sockets_of_dead_bridges_are_removed(
    tmp_path: Path, dead_pid: int, opened: list[socket.socket]
) -> None:
    """Nothing else is, whatever its name."""
    live = bind(tmp_path / f"admin-{dead_pid}-2.sock", opened)
    dead = bind(tmp_path / f"admin-{dead_pid}.sock", opened, listen=False)
    kept = [
        live,
        bind(tmp_path / "admin-x.sock", opened, listen=False),
        bind(tmp_path / f"other-{dead_pid}.sock", opened, listen=False),
        # Another bridge may be about to listen there.
        bind(tmp_path / "admin-1.sock", opened, listen=False),
    ]
    file, link = tmp_path / f"admin-{dead_pid}-3.sock", tmp_path / f"admin-{dead_pid}-4.sock"
    file.touch()
    elsewhere = bind(tmp_path / "elsewhere", opened, listen=False)
    link.symlink_to(elsewhere)
    remove_stale(str(tmp_path))
    assert not dead.exists()
    assert all(each.exists() for each in (*kept, file, link, elsewhere))


def test_an_old_socket_of_another_process_is_removed(
    tmp_path: Path, opened: list[socket.socket]
) -> None:
    """Its pid was given to another process since."""
    path = bind(tmp_path / "admin-1.sock", opened, listen=False)
    old = path.stat().st_mtime - STALE_SECONDS - 1
    os.utime(path, (old, old))
    remove_stale(str(tmp_path))
    assert not path.exists()


def test_the_path_names_the_process(tmp_path: Path, opened: list[socket.socket]) -> None:
    """A bridge in another container may have the same pid."""
    first = Path(new_path(str(tmp_path)))
    assert first.name == f"admin-{os.getpid()}.sock"
    bind(first, opened)
    second = Path(new_path(str(tmp_path)))
    assert second.name == f"admin-{os.getpid()}-2.sock"
    bind(second, opened)
    assert list(sockets_in(str(tmp_path))) == [
        (str(second), os.getpid()),
        (str(first), os.getpid()),
    ]


def test_there_is_an_end_of_them(tmp_path: Path) -> None:
    for number in range(1, SOCKETS_OF_PID + 1):
        more = f"-{number}" if number > 1 else ""
        (tmp_path / f"admin-{os.getpid()}{more}.sock").touch()
    with pytest.raises(NoSocket, match="sockets of this process already"):
        new_path(str(tmp_path))


def test_a_path_that_no_socket_can_have_is_told(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * SOCKET_PATH_BYTES)
    with pytest.raises(NoSocket, match="set a shorter `state_dir`, or `admin_listen`"):
        new_path(str(folder))


def test_a_bridge_that_is_busy_is_not_dead(
    tmp_path: Path, opened: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CONNECT_SECONDS > 0
    monkeypatch.setattr(socket_file, "CONNECT_SECONDS", 0.01)
    path = bind(tmp_path / "s", opened, listen=False)
    assert is_dead(str(path))
    opened[0].listen(0)
    for _ in range(3):
        assert not is_dead(str(path))
    assert not is_dead(str(tmp_path / "missing"))


def test_a_directory_that_is_missing_has_none(tmp_path: Path) -> None:
    assert not list(sockets_in(str(tmp_path / "missing")))
    remove_stale(str(tmp_path / "missing"))
