"""
The client of a bridge's admin socket, for the commands of the terminal.

It blocks, and needs no reactor.  Knows where sockets are, and HTTP; must not know what is
shown.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
from collections.abc import Iterator, Mapping, Sequence
from getopt import GetoptError, gnu_getopt
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote

from mcpbridge.admin.socket_file import sockets_in
from mcpbridge.config.masking import printable
from mcpbridge.errors import BridgeError
from mcpbridge.stdio.state_file import candidates

#: How long a response may take, or the next event, in seconds.
ANSWER_SECONDS = 15.0
#: The largest response, or event, that is read, in bytes.
ANSWER_BYTES = 16 * 1024 * 1024
#: Where a bridge that is run as a service has its state, whoever asks.
SERVICE_FOLDERS = ("/run/mcpbridge", "/var/lib/mcpbridge")

#: The exit statuses of the commands.
FINE, FAILED, WRONG_USE, FAILING = 0, 1, 2, 3


class CannotReach(BridgeError):
    """No bridge can be reached, or it is not clear which; the text says why, and what to do."""


class Denied(BridgeError):
    """The bridge did not do what it was asked for; the text says why."""


class SocketConnection(HTTPConnection):
    """A connection to a UNIX socket."""

    def __init__(self, path: str) -> None:
        # The name is one that the bridge accepts as a `Host`.
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class AdminClient:
    """Speaks to the bridge that listens at a socket."""

    def __init__(self, path: str) -> None:
        self.path = path

    def status(self) -> dict[str, Any]:
        """Return the status document.  Raises `CannotReach` and `Denied`."""
        found: dict[str, Any] = self._ask("GET", "/status")
        return found

    def end(self, ident: str) -> str:
        """End a session; return its short id.  Raises `CannotReach` and `Denied`."""
        return str(self._ask("POST", f"/sessions/{quote(ident, safe='')}/end")["ended"])

    def reload(self) -> str:
        """Have the settings read again; return what has changed, or raise as `end` does."""
        return str(self._ask("POST", "/reload")["changed"])

    def events(self) -> Iterator[dict[str, Any]]:
        """
        Yield the status document now and every few seconds, until the bridge stops.  Raises
        `CannotReach` and `Denied`.
        """
        connection, response = self._request("GET", "/events")
        try:
            if response.status != 200:
                self._deny(response)
            while line := response.readline(ANSWER_BYTES):
                if line.startswith(b"data: "):
                    yield json.loads(line[len(b"data: ") :])
        except (OSError, HTTPException, ValueError):
            # It was killed, or stands still.
            return
        finally:
            connection.close()

    def _ask(self, method: str, target: str) -> Any:
        connection, response = self._request(method, target)
        try:
            if response.status != 200:
                self._deny(response)
            return json.loads(response.read(ANSWER_BYTES))
        except (OSError, HTTPException, ValueError) as error:
            raise CannotReach(f"the bridge at {self.path} did not answer: {error}") from None
        finally:
            connection.close()

    def _request(self, method: str, target: str) -> tuple[HTTPConnection, HTTPResponse]:
        connection = SocketConnection(self.path)
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        try:
            connection.request(method, target, headers=headers)
            return connection, connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            raise CannotReach(_why_not(self.path, error)) from None

    def _deny(self, response: HTTPResponse) -> NoReturn:
        """Raise what an error of the bridge says."""
        try:
            found = json.loads(response.read(ANSWER_BYTES))
            lines = found.get("errors") or [found["error"]]
        except (ValueError, KeyError, AttributeError):
            lines = [f"the bridge has answered with the status {response.status}"]
        raise Denied("\n".join(map(str, lines)))


class Found(NamedTuple):
    """What was found where sockets may be."""

    #: The paths and pids of those where a bridge listens.
    live: list[tuple[str, int]]
    #: Those, or their directories, that this user may not open.
    denied: list[str]
    #: Where they were looked for.
    folders: list[str]


def find_client(given: str | None, environment: Mapping[str, str]) -> AdminClient:
    """
    Return the client of the socket at a path, or of the only one in a directory; without one,
    of the only bridge of this user.  Raises `CannotReach`.
    """
    if given is not None and not os.path.isdir(given):
        return AdminClient(given)
    found = look([given] if given is not None else _folders(environment))
    if len(found.live) == 1:
        return AdminClient(found.live[0][0])
    if found.live:
        lines = [f"  pid {pid}: --socket {path}" for path, pid in found.live]
        raise CannotReach("\n".join([f"{len(lines)} bridges run; say which:", *lines]))
    if found.denied:
        raise CannotReach(_denied(found.denied[0]))
    where = ", ".join(found.folders)
    raise CannotReach(
        f"no bridge runs, as far as there is a socket of one in {where}.\n"
        "If one runs, its log says where its admin socket is (give that with --socket PATH), or"
        " why there is none.\nOne that was started by another user, or with `state_dir` or"
        " `admin_listen`, has it elsewhere."
    )


def _folders(environment: Mapping[str, str]) -> list[str]:
    found = candidates(None, environment, os.geteuid())
    return list(dict.fromkeys([*found, *SERVICE_FOLDERS]))


def look(folders: Sequence[str]) -> Found:
    """Look for the sockets in these directories."""
    found = Found([], [], list(folders))
    for folder in folders:
        if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
            found.denied.append(folder)
            continue
        for path, pid in sockets_in(folder):
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(ANSWER_SECONDS)
                    connection.connect(path)
                found.live.append((path, pid))
            except PermissionError:
                found.denied.append(path)
            except OSError:
                # A bridge that was killed has left it.
                continue
    return found


def _why_not(path: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return _denied(path)
    if isinstance(error, FileNotFoundError):
        return f"there is no socket at {path}"
    if isinstance(error, ConnectionRefusedError):
        return f"no bridge listens at {path} any more: it was killed"
    if isinstance(error, TimeoutError):
        return f"the bridge at {path} did not answer in {ANSWER_SECONDS:g} s"
    return f"{path}: {error}"


def _denied(path: str) -> str:
    """Say whose bridge it is, and how to reach it."""
    try:
        owner = pwd.getpwuid(os.stat(path).st_uid).pw_name
    except (OSError, KeyError):
        owner = ""
    user = owner or "USER"
    return (
        f"permission denied: {path} is that of {owner or 'another user'}; run this as the user of"
        f" the bridge, as in `sudo -u {user} mcpbridge status`"
    )


class Arguments(NamedTuple):
    """The command line of a command: its options, and what comes besides them."""

    options: dict[str, str]
    rest: list[str]


class WrongUse(Exception):
    """The command line is wrong; the text says why."""


def parse(arguments: Sequence[str], options: Sequence[str], count: int) -> Arguments:
    """Parse a command line that has so many arguments.  Raises `WrongUse`."""
    try:
        found, rest = gnu_getopt(list(arguments), "h", [*options, "help"])
    except GetoptError as error:
        raise WrongUse(str(error)) from None
    named = {name.lstrip("-"): value for name, value in found}
    if "h" in named:
        named["help"] = ""
    if "help" not in named and len(rest) != count:
        expected = ["no argument", "one argument"][count]
        raise WrongUse(f"expected {expected}, got {len(rest)}")
    return Arguments(named, rest)


def shown(error: BridgeError) -> str:
    """Return the text of an error for a terminal: its lines, without control characters."""
    return "\n".join(printable(line) for line in str(error).split("\n"))
