"""
Starts the engine for tests, and shows what it has.
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
#: The names that its CLI has; it is the same.
NAMES = ("docker", "podman", "nerdctl")
#: What every bridge's containers have.
LABEL = "mcpbridge.bridge"


class Engine:
    """A daemon that runs, and its CLI in a folder of its own."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.bin = folder / "bin"
        self.socket = folder / "socket"
        self._process = process

    def run(self, *arguments: str) -> str:
        """What a command of the CLI prints."""
        command = [str(self.bin / "docker"), "--host", str(self.socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def containers(self, *filters: str) -> list[str]:
        """The ids of all containers."""
        return self.run("ps", *(f"--filter=label={each}" for each in filters)).split()

    def start(self, label: str, *command: str, volumes: bool = False) -> None:
        """A container that was started by hand."""
        line = [str(self.bin / "docker"), "--host", str(self.socket), "run", "-d", "--label", label]
        line += ["--label=mcpbridge.remove-volumes=true"] if volumes else []
        line.append("image")
        # The pipes are the container's for as long as it runs.
        subprocess.run(
            [*line, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

    def calls(self, command: str) -> list[list[str]]:
        """The arguments of all calls of a command, without the program's name."""
        notes = Path(f"{self.socket}.notes")
        lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
        called: list[tuple[str, list[str]]] = [json.loads(line) for line in lines]
        return [line[1:] for did, line in called if did == command]

    def go_away(self) -> None:
        """Answer no more."""
        self._say("away")

    def come_back(self) -> None:
        """Answer again."""
        self._say("back")

    def set(self, what: str, value: Any = "") -> None:
        """Turn on one of the daemon's vices."""
        Path(f"{self.socket}.{what}").write_text(str(value), encoding="utf-8")

    def unset(self, what: str) -> None:
        """Turn it off."""
        Path(f"{self.socket}.{what}").unlink()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


@contextlib.contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine for as long as the block lasts; its containers end with it."""
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
