"""
The daemon of an engine for tests: `daemon.py SOCKET`.

What it calls a container is a process of its own with the pipes of the CLI;
like a real one it outlives the CLI, and only the daemon knows of it.  It says
`ready` on stdout, and ends, with its containers, when its stdin ends.

A request is a line of JSON, with the CLI's descriptors beside it where it is
to run something; answers are lines of JSON.  The file SOCKET.slow holds how
many seconds the creation of a container takes, SOCKET.stuck makes `rm` fail,
SOCKET.blind makes `ps` list everything whatever it is asked for.  Every
request is noted in SOCKET.notes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

path = sys.argv[1]
lock = threading.Lock()
containers: dict[str, dict[str, Any]] = {}


def create(order: dict[str, Any]) -> dict[str, Any]:
    """A container that does not run yet."""
    with contextlib.suppress(OSError, ValueError):
        time.sleep(float(Path(path + ".slow").read_text()))
    ident = secrets.token_hex(32)
    with lock:
        if order["name"] and order["name"] in [each["name"] for each in containers.values()]:
            return {"error": f"the container name {order['name']!r} is already in use"}
        containers[ident] = {**order, "process": None}
    return {"id": ident}


def run(connection: socket.socket, order: dict[str, Any], descriptors: list[int]) -> None:
    """Create a container, then start it and wait; two steps, as with a real engine."""
    answer = create(order)
    try:
        connection.sendall(json.dumps(answer).encode() + b"\n")
        if "id" not in answer or not connection.recv(100).startswith(b"start"):
            return
    except OSError:
        # The CLI was killed: what it has asked for exists.
        return
    container = containers[answer["id"]]
    container["process"] = process = subprocess.Popen(
        order["command"],
        stdin=descriptors[0],
        stdout=descriptors[1],
        stderr=descriptors[2],
        env={"PATH": os.defpath},
        start_new_session=True,
    )
    while descriptors:
        os.close(descriptors.pop())
    status = process.wait()
    if order["rm"]:
        with lock:
            containers.pop(answer["id"], None)
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps({"status": status % 256}).encode() + b"\n")


def listed(filters: list[tuple[str, str]]) -> list[str]:
    """The ids of those with all these labels."""
    if os.path.exists(path + ".blind"):
        return list(containers)
    return [
        ident
        for ident, each in containers.items()
        if all(each["labels"].get(name) == value for name, value in filters)
    ]


def remove(idents: list[str]) -> dict[str, Any]:
    """Kill and forget them."""
    if os.path.exists(path + ".stuck"):
        return {"error": "removal is stuck"}
    missing = [ident for ident in idents if ident not in containers]
    if missing:
        return {"error": f"No such container: {missing[0]}"}
    for ident in idents:
        process = containers[ident]["process"]
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with lock:
            containers.pop(ident, None)
    return {"output": idents}


def kill(ident: str, number: int) -> dict[str, Any]:
    """A signal for what runs in one."""
    process = containers[ident]["process"] if ident in containers else None
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    return {"output": []}


def serve(connection: socket.socket) -> None:
    """One request."""
    with connection:
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        order = json.loads(data)
        with open(path + ".notes", "a", encoding="utf-8") as notes:
            notes.write(json.dumps([order["do"], order["line"]]) + "\n")
        if order["do"] == "run":
            run(connection, order, descriptors)
            return
        answer: dict[str, Any]
        if order["do"] == "ps":
            answer = {"output": listed(order["filters"])}
        elif order["do"] == "inspect":
            known = order["id"] in containers
            answer = (
                {"labels": containers[order["id"]]["labels"]}
                if known
                else {"error": f"No such container: {order['id']}"}
            )
        elif order["do"] == "rm":
            answer = remove(order["ids"])
        else:
            answer = kill(order["id"], order["signal"])
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(answer).encode() + b"\n")


def accept(listener: socket.socket) -> None:
    """A thread for each request."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def main() -> None:
    """Serve until stdin ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        # `away`, `back`: an engine that does not answer for a while.
        if line == "away\n":
            os.rename(path, path + ".away")
        elif line == "back\n":
            os.rename(path + ".away", path)
        print("done", flush=True)
    remove(list(containers))


main()
