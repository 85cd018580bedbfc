"""
The daemon of the fake engine: `daemon.py SOCKET`.

A container is a child process of the daemon with the pipes of the CLI; like a
real container it outlives the CLI.  The daemon writes `ready` to stdout, and
exits with its containers when its stdin ends.

Requests and responses are lines of JSON; a request to run a container comes with
the descriptors of the CLI.  The file SOCKET.slow has the seconds that creating a
container takes, SOCKET.stuck makes `rm` fail, and SOCKET.blind makes `ps` ignore
its filters.  SOCKET.notes lists all requests.
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
    """Create a container without starting it."""
    with contextlib.suppress(OSError, ValueError):
        time.sleep(float(Path(path + ".slow").read_text()))
    ident = secrets.token_hex(32)
    with lock:
        if order["name"] and order["name"] in [each["name"] for each in containers.values()]:
            return {"error": f"the container name {order['name']!r} is already in use"}
        containers[ident] = {**order, "process": None}
    return {"id": ident}


def run(connection: socket.socket, order: dict[str, Any], descriptors: list[int]) -> None:
    """Create a container, start it and wait; these are separate steps, as with a real engine."""
    answer = create(order)
    try:
        connection.sendall(json.dumps(answer).encode() + b"\n")
        if "id" not in answer or not connection.recv(100).startswith(b"start"):
            return
    except OSError:
        # The CLI was killed, but the container exists.
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
    """Return the ids of the containers with all these labels."""
    if os.path.exists(path + ".blind"):
        return list(containers)
    return [
        ident
        for ident, each in containers.items()
        if all(each["labels"].get(name) == value for name, value in filters)
    ]


def remove(idents: list[str]) -> dict[str, Any]:
    """Kill and remove containers."""
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
    """Send a signal to a container."""
    process = containers[ident]["process"] if ident in containers else None
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    return {"output": []}


def serve(connection: socket.socket) -> None:
    """Serve a request."""
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
    """Start a thread for each request."""
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
        # `away` and `back` make the daemon unreachable for a while.
        if line == "away\n":
            os.rename(path, path + ".away")
        elif line == "back\n":
            os.rename(path + ".away", path)
        print("done", flush=True)
    remove(list(containers))


main()
