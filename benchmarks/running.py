"""
Running a server under test on one core and the load generator on another.

Knows processes and cores; must not know which figure is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from systems import BUILD, System, load_options

START_SECONDS = 40.0
STOP_SECONDS = 25.0
#: Some peers wait for connections that nobody closes.
PEER_STOP_SECONDS = 1.0
#: What a bridge needs for a session: three pipes, and one or two connections of its client.
DESCRIPTORS_OF_A_SESSION = {"sse": 6, "streamable": 5}
#: Its own, and those that opening eight sessions at a time needs beside.
OTHER_DESCRIPTORS = 200
OTHER_PROCESSES = 1000
MOST_DESCRIPTORS = 65536
Result = dict[str, Any]


class NotMeasured(Exception):
    """There is no figure; the text says why."""


def cores() -> list[int]:
    """The cores this may run on."""
    return sorted(os.sched_getaffinity(0))


def on_core(index: int, command: list[str]) -> list[str]:
    """The command on one of our cores, where there are two."""
    available = cores()
    if len(available) < 2:
        return command
    return ["taskset", "-c", str(available[index]), *command]


def echo_command(*options: str) -> list[str]:
    """The backend, on the core of the load generator."""
    available = cores()
    pinned = ["--cpu", str(available[1])] if len(available) >= 2 else []
    return [str(BUILD / "echo"), *pinned, *options]


def free_port() -> int:
    """A port of the loopback interface that was free just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def rss_kib(pid: int) -> int:
    """The memory of one process."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Rss:"):
                return int(line.split()[1])
    raise NotMeasured("no memory figure")


def _children(pid: int) -> list[int]:
    """All descendants of a process."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    direct = [int(each) for each in text.split()]
    return direct + [more for each in direct for more in _children(each)]


def raise_limits() -> None:
    """Let this process and what it starts have as many descriptors as the tests need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (MOST_DESCRIPTORS, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
            return
        except (OSError, ValueError):
            continue


def most_sessions(transport: str) -> int:
    """How many sessions descriptors and processes allow at a time."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [(files - OTHER_DESCRIPTORS) // DESCRIPTORS_OF_A_SESSION[transport]]
    if processes != resource.RLIM_INFINITY:
        limits.append(processes - OTHER_PROCESSES)
    for path in ("/proc/sys/kernel/pid_max", "/sys/fs/cgroup/pids.max"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()) - OTHER_PROCESSES)
    return min(limits)


class Server:
    """A running server under test."""

    def __init__(self, system: System, process: subprocess.Popen[bytes], port: int) -> None:
        self.system = system
        self.process = process
        self.port = port
        #: until it listened
        self.start_seconds = 0.0

    @property
    def pid(self) -> int:
        """Of the server's own process."""
        return self.process.pid

    def rss(self) -> int:
        """KiB of the server's own process."""
        return rss_kib(self.pid)

    def backends(self) -> list[int]:
        """Process ids of its backends, but for the caller's."""
        found = []
        for pid in _children(self.pid):
            try:
                if os.readlink(f"/proc/{pid}/exe") == str(BUILD / "echo"):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    found += [] if b"--fifo" in line else [pid]
            except OSError:
                pass  # it is gone
        return found

    def settle(self, patience: float = 30) -> None:
        """Wait until no backend is left.  Raises `NotMeasured`."""
        stop = time.monotonic() + patience
        while self.backends():
            if time.monotonic() > stop:
                raise NotMeasured(f"backends were left after {patience:g} s")
            time.sleep(0.05)
        time.sleep(0.2)

    def _load(self, mode: str, options: dict[str, object]) -> list[str]:
        line = [str(BUILD / "load"), mode, "--port", str(self.port), "--pid", str(self.pid)]
        line += load_options(self.system)
        for name, value in options.items():
            line += [f"--{name.replace('_', '-')}", str(value)]
        return on_core(1, line)

    def load(self, mode: str, **options: object) -> Result:
        """One run of the load generator."""
        options.setdefault("timeout", 20)
        patience = float(str(options["timeout"])) + 15
        try:
            done = subprocess.run(
                self._load(mode, options),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotMeasured("the load generator took too long") from None
        if not done.stdout and done.stderr:
            raise NotMeasured(done.stderr.decode("utf-8", "replace").strip().splitlines()[-1])
        return parse(done.stdout)

    @contextlib.contextmanager
    def beside(self, mode: str, **options: object) -> Iterator[Result]:
        """The load generator beside what the block does; the result is whole behind it."""
        options.setdefault("timeout", 60)
        process = subprocess.Popen(
            self._load(mode, options), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        result: Result = {}
        try:
            yield result
            out, _ = process.communicate(timeout=90)
            result.update(parse(out))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    @contextlib.contextmanager
    def holding(self, mode: str, **options: object) -> Iterator[Result]:
        """The load generator, for as long as it holds what it has opened."""
        options.setdefault("timeout", 120)
        process = subprocess.Popen(
            self._load(mode, options), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        result: Result = {}
        try:
            if process.stdout.readline() != b"holding\n":
                raise NotMeasured("the load generator did not get there")
            yield result
            out, _ = process.communicate(b"\n", timeout=60)
            result.update(parse(out))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def parse(text: bytes) -> Result:
    """The last line of the load generator, as it is JSON."""
    lines = text.decode("utf-8", "replace").strip().splitlines()
    try:
        result: Result = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise NotMeasured("the load generator printed nothing") from None
    return result


def checked(result: Result) -> Result:
    """The result, if nothing went wrong.  Raises `NotMeasured`."""
    errors = {name: n for name, n in result.get("errors", {}).items() if n}
    if result.get("dead_sessions") or errors:
        what = ", ".join(f"{n} {name}" for name, n in errors.items()) or "sessions died"
        raise NotMeasured(f"errors: {what} ({result.get('sample', '')[:80]})")
    if result.get("unanswered"):
        raise NotMeasured(f"{result['unanswered']} requests were never answered")
    if result.get("timed_out"):
        raise NotMeasured("not in time")
    return result


@contextlib.contextmanager
def running(system: System, *backend_options: str) -> Iterator[Server]:
    """A server on its core, until the block ends; nothing of it is left then."""
    port = free_port()
    try:
        command = system.command(port, echo_command(*system.backend, *backend_options))
    except (OSError, subprocess.SubprocessError) as error:
        raise NotMeasured(f"it cannot be started ({error})") from None
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            on_core(0, command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **system.environment},
            start_new_session=True,
        )
        server = Server(system, process, port)
        try:
            _wait_until_it_listens(server, log)
            yield server
        finally:
            _stop(process, STOP_SECONDS if system.ours else PEER_STOP_SECONDS)


def _wait_until_it_listens(server: Server, log: Any) -> None:
    start = time.monotonic()
    stop = start + START_SECONDS
    while time.monotonic() < stop:
        if server.process.poll() is not None:
            log.seek(0)
            last = log.read()[-200:].decode("utf-8", "replace").strip().splitlines()
            raise NotMeasured(f"it ended at once: {' '.join(last[-1:])}")
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", server.port)) == 0:
                server.start_seconds = time.monotonic() - start
                time.sleep(0.2)
                return
        time.sleep(0.02)
    raise NotMeasured(f"it did not listen within {START_SECONDS:g} s")


def _stop(process: subprocess.Popen[bytes], patience: float) -> None:
    """End the server, and what it left in its process group."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def kill_survivors(result: Result) -> None:
    """End backends that a server left behind; they are ours, by their program."""
    for pid in result.get("survivors", []):
        try:
            if os.readlink(f"/proc/{pid}/exe") == str(BUILD / "echo"):
                os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
