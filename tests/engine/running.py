"""
Start the fake container engine, and inspect its containers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: The names of the CLI, which is the same program under each.
NAMES = ("docker", "podman", "nerdctl")
#: The label of the containers of every bridge.
LABEL = "mcpbridge.bridge"


class Engine:
    """A running daemon, and its CLI in a folder of its own."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.bin = folder / "bin"
        self.socket = folder / "socket"
        self._process = process

    def run(self, *arguments: str) -> str:
        """Run a command of the CLI; return its output."""
        command = [str(self.bin / "docker"), "--host", str(self.socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def containers(self, *filters: str) -> list[str]:
        """Return the ids of all containers, or of those with a label."""
        return self.run("ps", *(f"--filter=label={each}" for each in filters)).split()

    def start(self, label: str, *command: str, volumes: bool = False) -> None:
        """Start a container without the bridge."""
        line = [str(self.bin / "docker"), "--host", str(self.socket), "run", "-d", "--label", label]
        line += ["--label=mcpbridge.remove-volumes=true"] if volumes else []
        line.append("image")
        # The container keeps the pipes as long as it runs.
        subprocess.run(
            [*line, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

    def commands(self, command: str) -> list[list[str]]:
        """Return the arguments of all calls of a command, without the name of the program."""
        notes = Path(f"{self.socket}.notes")
        lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
        called: list[tuple[str, list[str]]] = [json.loads(line) for line in lines]
        return [line[1:] for did, line in called if did == command]

    def stop_answering(self) -> None:
        """Make the daemon unreachable."""
        self._command("away")

    def resume_answering(self) -> None:
        """Make the daemon reachable again."""
        self._command("back")

    def enable_fault(self, what: str, value: Any = "") -> None:
        """Enable a fault of the daemon: `slow`, `stuck` or `blind`."""
        Path(f"{self.socket}.{what}").write_text(str(value), encoding="utf-8")

    def disable_fault(self, what: str) -> None:
        """Disable a fault of the daemon."""
        Path(f"{self.socket}.{what}").unlink()

    def _command(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


@contextlib.contextmanager
def running_engine() -> Iterator[Engine]:
    """Run an engine until the block ends; its containers end with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bin").mkdir()
        text = (HERE / "cli.py").read_text(encoding="utf-8")
        for each in NAMES:
            program = folder / "bin" / each
            program.write_text(f"#!{sys.executable} -IS\n{text}", encoding="utf-8")
            program.chmod(0o755)
        daemon = subprocess.Popen(
            [sys.executable, "-I", "-S", HERE / "daemon.py", folder / "socket"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.defpath},
        )
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        try:
            assert daemon.stdout.readline() == "ready\n"
            yield Engine(folder, daemon)
        finally:
            daemon.stdin.close()
            try:
                daemon.wait(30)
            finally:
                daemon.kill()
                daemon.wait()
                daemon.stdout.close()
