"""
The UNIX socket of an admin listener in the state directory, and those of other bridges there.

The directory is one that nobody else can write to.  A socket outlives a bridge that is killed,
so the next one removes it.  Knows files and sockets; must not know what is served.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections.abc import Iterator

from mcpbridge.errors import BridgeError
from mcpbridge.pids import another_runs

#: The longest path of a UNIX socket in bytes (unix(7): 108 with the byte that ends it).
SOCKET_PATH_BYTES = 107
#: How many sockets of one pid are told apart: bridges in different containers may share the
#: directory.
SOCKETS_OF_PID = 20
#: A socket where nobody listens is removed after so many seconds, even if there is a process of
#: its pid, which may be another one by now.
STALE_SECONDS = 60.0
#: How long to wait for a bridge whose queue of connections is full, in seconds.
CONNECT_SECONDS = 2.0

_NAME = re.compile(r"admin-([0-9]{1,10})(-[0-9]{1,2})?\.sock", re.ASCII)


class NoSocket(BridgeError):
    """No socket can be made; the text says why."""


def new_path(folder: str) -> str:
    """
    Return the path of a socket for this process, after those of dead bridges are removed.

    Raises `NoSocket`.
    """
    remove_stale(folder)
    pid = os.getpid()
    for number in range(1, SOCKETS_OF_PID + 1):
        more = f"-{number}" if number > 1 else ""
        path = os.path.join(folder, f"admin-{pid}{more}.sock")
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise NoSocket(
                f"{path} has more than {SOCKET_PATH_BYTES} bytes, which no socket can have; set a"
                " shorter `state_dir`, or `admin_listen`"
            )
        if not os.path.lexists(path):
            return path
    raise NoSocket(f"{folder} has {SOCKETS_OF_PID} sockets of this process already")


def sockets_in(folder: str) -> Iterator[tuple[str, int]]:
    """Yield the path and the pid of each socket in a directory, also of dead bridges."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        found = _NAME.fullmatch(name)
        path = os.path.join(folder, name)
        if found is not None and _is_socket(path):
            yield path, int(found[1])


def remove_stale(folder: str) -> None:
    """Remove the sockets of dead bridges; nothing else, and nothing through a link."""
    for path, pid in list(sockets_in(folder)):
        try:
            # One that runs may be a bridge that starts, and does not listen yet.
            if is_dead(path) and (not another_runs(pid) or _age(path) > STALE_SECONDS):
                os.unlink(path)
        except OSError:
            # Another bridge has removed it.
            pass


def is_dead(path: str) -> bool:
    """Tell whether nobody listens at a socket any more."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _age(path: str) -> float:
    return time.time() - os.lstat(path).st_mtime
