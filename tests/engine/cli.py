"""
The CLI of the fake engine, under the name `docker`, `podman` or `nerdctl`.

It finds its daemon by `--host SOCKET` or DOCKER_HOST, and supports what a bridge
uses of `run`, `ps`, `container inspect` and `rm`.  Like a real CLI, it forwards
SIGTERM to the container and keeps waiting, does not affect the container when it
is killed itself, and refuses a cidfile that exists.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, TextIO

FLAGS = ("-i", "-t", "-d", "--rm", "--init", "--interactive")


def ask(order: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[socket.socket, TextIO]:
    """Send a request to the daemon; return the connection and its responses."""
    host = dict(options(sys.argv[1:])[0]).get("--host") or os.environ["DOCKER_HOST"]
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(host)
    except OSError:
        sys.exit(f"Cannot connect to the daemon at unix://{host}. Is the daemon running?")
    order["line"] = sys.argv
    socket.send_fds(connection, [json.dumps(order).encode()], descriptors)
    return connection, connection.makefile("r", encoding="utf-8")


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """Return the response of the daemon; exit if it is an error."""
    connection, lines = ask(order)
    said: dict[str, Any] = json.loads(lines.readline())
    connection.close()
    if "error" in said:
        sys.exit(f"Error response from daemon: {said['error']}")
    return said


def options(line: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Split arguments into options and the rest."""
    arguments, found = list(line), []
    while arguments and arguments[0].startswith("-"):
        name, equals, value = arguments.pop(0).partition("=")
        if not equals and name not in FLAGS:
            value = arguments.pop(0)
        found.append((name, value))
    return found, arguments


def run(arguments: list[str]) -> int:
    """Run a container, as `run` does; return the exit status."""
    given, rest = options(arguments)
    named = dict(given)
    cidfile = named.get("--cidfile")
    if cidfile is not None and os.path.exists(cidfile):
        print(f"container ID file found, delete {cidfile}", file=sys.stderr)
        return 125
    order = {
        "do": "run",
        "labels": dict(v.partition("=")[::2] for n, v in given if n in ("-l", "--label")),
        "rm": "--rm" in named,
        "name": named.get("--name", ""),
        # The first of `rest` is the image, which is not used.
        "command": rest[1:],
    }
    with_input = 0 if {"-i", "--interactive"} & named.keys() else os.open(os.devnull, os.O_RDONLY)
    connection, lines = ask(order, [with_input, 1, 2])
    made = json.loads(lines.readline())
    if "error" in made:
        print(made["error"], file=sys.stderr)
        return 125
    if cidfile is not None:
        with open(cidfile, "x", encoding="ascii") as file:
            file.write(made["id"])
    kill = {"do": "kill", "id": made["id"], "signal": int(signal.SIGTERM)}
    signal.signal(signal.SIGTERM, lambda *_: answer(kill))
    connection.sendall(b"start\n")
    if "-d" in named:
        print(made["id"])
        return 0
    ended = lines.readline()
    return int(json.loads(ended)["status"]) if ended else 125


def main() -> int:
    """Run a command; return the exit status."""
    _, rest = options(sys.argv[1:])
    command = rest.pop(0)
    if command == "container":
        command = rest.pop(0)
    if command == "run":
        return run(rest)
    if command == "ps":
        pairs = re.findall(r"label=(\S+?)=(\S+)", " ".join(rest))
        print(*answer({"do": "ps", "filters": pairs})["output"], sep="\n")
    elif command == "inspect":
        wanted = re.findall(r'index \.Config\.Labels "([^"]+)"', rest[0])
        labels = answer({"do": "inspect", "id": rest[-1]})["labels"]
        print(*(labels.get(name, "") for name in wanted))
    elif command == "rm":
        ids = [each for each in rest if not each.startswith("-")]
        print(*answer({"do": "rm", "ids": ids})["output"], sep="\n")
    return 0


sys.exit(main())
