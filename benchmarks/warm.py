"""
Measures what processes that are started ahead save: from connecting until
`initialize` is answered, cold and warm, in front of quick and slow servers.

`python benchmarks/warm.py [--sessions N] [--everything COMMAND ...]`; prints a
table.  Sessions come in bursts of `BURST`, one after the other; before each
burst all that are kept ready have had the time to start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import systems
from running import START_SECONDS, STOP_SECONDS, free_port

#: How many are kept ready, and come one after the other.
BURST = 10
SLOW_SECONDS = 1
#: How far apart processes are started ahead, and a margin.
APART_SECONDS = 0.1
SETTLE_SECONDS = 1.0
EVERYTHING = (
    systems.HERE.parent
    / ".real/node/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
)
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "warm", "version": "1"},
}


class Figure(NamedTuple):
    """Milliseconds until `initialize` was answered."""

    p50: float
    p90: float


@contextlib.contextmanager
def serving(mcpbridge: str, command: list[str], warm: int) -> Iterator[int]:
    """A bridge in front of a server; yields its port once it listens."""
    port = free_port()
    # Room for those that are ending while the next burst is got ready.
    server = {"command": command[0], "args": command[1:], "warm": warm, "max_sessions": 4 * BURST}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"mcpServers": {"server": {**server, "base_uri": ""}}}))
        line = [mcpbridge, "--config", str(config), "--listen", f"tcp:{port}:interface=127.0.0.1"]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for(port, process, log)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise SystemExit(f"the bridge does not serve:\n{log.read_text(errors='replace')}")


def session(port: int) -> float:
    """One session over Streamable HTTP: seconds from connecting until its first answer."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE}
    body = json.dumps(message).encode()
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(_head("POST", len(body)) + body)
        answer = b""
        # The result is the last that comes of it, as JSON or as an event.
        while b'"serverInfo"' not in answer:
            some = connection.recv(65536)
            if not some:
                raise SystemExit(f"no answer to `initialize`: {answer!r}")
            answer += some
        took = time.perf_counter() - began
    head = answer.partition(b"\r\n\r\n")[0].decode("latin-1")
    fields = (line.partition(": ") for line in head.split("\r\n"))
    headers = {name.lower(): value for name, _, value in fields}
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(_head("DELETE", 0, f"Mcp-Session-Id: {headers['mcp-session-id']}\r\n"))
        connection.recv(65536)
    return took


def _head(method: str, size: int, more: str = "") -> bytes:
    return (
        f"{method} /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Accept: application/json, text/event-stream\r\nContent-Length: {size}\r\n{more}\r\n"
    ).encode("ascii")


def measure(mcpbridge: str, command: list[str], sessions: int, start: float | None) -> Figure:
    """Cold where `start` is None; otherwise warm, of a server that needs so many seconds."""
    took: list[float] = []
    with serving(mcpbridge, command, 0 if start is None else BURST) as port:
        while len(took) < sessions:
            if start is not None:
                # At worst all of them compute on one core.
                time.sleep(BURST * max(APART_SECONDS, start) + SETTLE_SECONDS)
            took += [session(port) for _ in range(min(BURST, sessions - len(took)))]
    deciles = statistics.quantiles(took, n=10)
    return Figure(statistics.median(took) * 1000, deciles[8] * 1000)


def servers(everything: list[str]) -> dict[str, list[str]]:
    """What is measured: their names and command lines."""
    quick = str(systems.BUILD / "echo")
    found = {
        "a quick server (echo.c)": [quick],
        f"one that sleeps {SLOW_SECONDS} s first": [
            "sh",
            "-c",
            f'sleep {SLOW_SECONDS}; "$0"',
            quick,
        ],
    }
    if everything:
        found["server-everything (node)"] = everything
    return found


def report(figures: dict[str, tuple[Figure, Figure]]) -> str:
    """The table."""
    quick = next(iter(figures.values()))[0].p50
    lines = [
        "| until initialize is answered, p50 (p90) | cold | warm | cold/warm | warm/quick cold |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, (cold, warm) in figures.items():
        cells = [f"{each.p50:.1f} ms ({each.p90:.1f})" for each in (cold, warm)]
        ratios = [f"{cold.p50 / warm.p50:.1f}", f"{warm.p50 / quick:.2f}"]
        lines.append("| " + " | ".join([name, *cells, *ratios]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    beside = Path(sys.executable).with_name("mcpbridge")
    node = shutil.which("node")
    default = [node, str(EVERYTHING)] if node and EVERYTHING.exists() else []
    parser.add_argument("--sessions", type=int, default=50, help="sessions of each kind")
    parser.add_argument("--mcpbridge", default=str(beside), help="the program")
    parser.add_argument("--everything", nargs="+", default=default, help="server-everything")
    arguments = parser.parse_args()
    systems.build()
    figures = {}
    for name, command in servers(arguments.everything).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        cold = measure(arguments.mcpbridge, command, arguments.sessions, None)
        warm = measure(arguments.mcpbridge, command, arguments.sessions, cold.p50 / 1000)
        figures[name] = cold, warm
    print(report(figures))


if __name__ == "__main__":
    main()
