"""
Find the commands that a document shows, and run them as a reader would.

A block that is to be run is fenced as `console` and follows a comment:

    <!-- test: run -->
    ```console
    $ make serve &
    $ curl -sN --max-time 2 http://127.0.0.1:8808/sse
    event: endpoint
    data: /message?sessionId=...
    ```

A line that begins with `$ ` is a command; it continues on the next line if it
ends with a backslash, or if that line begins with `> `.  The lines below it are
the output that the document shows: each must be printed, in that order, and
`...` stands for any text.  A command that ends with ` &` is a server: it keeps
running until the last block is done, and the next command starts when the URL
that the server prints answers.  The directory and the variables of a command
are kept for the next one.  A command must succeed within its time limit; the
status 28 of `curl --max-time` counts as success.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.real.bridge import URL, status_of
from tests.real.processes import eventually

MARKER = "<!-- test: run -->"
_BLOCK = re.compile(
    rf"^{re.escape(MARKER)}[ \t]*\n\s*?```console[ \t]*\n(?P<body>.*?)^```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
CURL_TIMED_OUT = 28

#: Variables of the shell that runs the tests, which the commands must not inherit.
NOT_INHERITED = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")

#: Runs a command, and saves its variables and its directory for the next one.
_WRAPPER = """\
trap 'status=$?; pwd > "$STATE/cwd"; env -0 > "$STATE/env"; exit $status' EXIT
set -a
{command}
"""


@dataclass
class Command:
    """A command, and the output that the document shows for it."""

    text: str
    shown: list[str] = field(default_factory=list)

    @property
    def serves(self) -> bool:
        """True if the command is a server, which keeps running."""
        return self.text.endswith(" &")

    def first_missing_line(self, output: str) -> str | None:
        """Return the first shown line that is not printed, or not in order."""
        printed = iter(output.splitlines())
        for line in self.shown:
            words = re.escape(line.strip()).replace(re.escape("..."), ".*")
            if not any(re.fullmatch(words, one.strip()) for one in printed):
                return line
        return None


def commands(document: str) -> list[Command]:
    """Return the commands of all marked blocks of a document, in order."""
    found: list[Command] = []
    for block in _BLOCK.finditer(document):
        found.extend(_commands_of(block["body"]))
    return found


def count_stray_markers(document: str) -> int:
    """Count the markers that do not precede a `console` block."""
    return document.count(MARKER) - len(_BLOCK.findall(document))


def _commands_of(body: str) -> Iterator[Command]:
    command = None
    for line in body.splitlines():
        if line.startswith("$ "):
            if command:
                yield command
            command = Command(line[2:].strip())
        elif command is None:
            raise ValueError(f"output before the first command: {line}")
        elif not command.shown and (command.text.endswith("\\") or line.startswith("> ")):
            command.text += "\n" + line.removeprefix("> ")
        elif line.strip() not in ("", "..."):
            command.shown.append(line)
    if command:
        yield command


class CommandFailed(AssertionError):
    """A command does not do what the document says."""


class DocumentRunner:
    """
    Runs the commands of a document one after the other, in a directory.

    It is a context manager, which stops each server with its whole process group
    at the end.
    """

    def __init__(self, folder: Path, scratch: Path, seconds: float = 300) -> None:
        self._scratch = scratch
        self._seconds = seconds
        self._cwd = str(folder)
        self._env = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        self._env |= {"STATE": str(scratch), "PYTHONUNBUFFERED": "1"}
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            _stop_group(server)

    def run(self, steps: list[Command]) -> None:
        """Run the commands in order; raise `CommandFailed` at the first that fails."""
        for step in steps:
            if re.search(r"\bmake test\b|\bpytest\b|\.ci/run", step.text):
                raise CommandFailed(f"this would run the test that runs it: {step.text}")
            if step.serves:
                self._serve(step)
            else:
                self._run(step)

    def _run(self, step: Command) -> None:
        try:
            done = subprocess.run(
                ["bash", "-c", _WRAPPER.format(command=step.text)],
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self._seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as slow:
            printed = (slow.stdout or b"").decode(errors="replace")
            raise CommandFailed(f"$ {step.text}\nruns for {self._seconds} s:\n{printed}") from None
        output = done.stdout.decode(errors="replace")
        if done.returncode not in (0, CURL_TIMED_OUT):
            raise CommandFailed(f"$ {step.text}\nexit status {done.returncode}:\n{output}")
        self._check(step, output)
        self._cwd = (self._scratch / "cwd").read_text().rstrip("\n")
        kept = (self._scratch / "env").read_bytes().decode(errors="surrogateescape")
        self._env = dict(one.split("=", 1) for one in kept.split("\0") if "=" in one)

    def _serve(self, step: Command) -> None:
        log = self._scratch / f"server-{len(self._servers)}.log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                ["bash", "-c", step.text.removesuffix("&")],
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._servers.append(server)

        def ready() -> bool:
            if server.poll() is not None:
                raise CommandFailed(
                    f"$ {step.text}\nended with {server.returncode}:\n{log.read_text()}"
                )
            urls = URL.findall(log.read_text(errors="replace"))
            return bool(urls) and all(_answers(url) for url in urls)

        if not eventually(ready, self._seconds):
            raise CommandFailed(f"$ {step.text}\nserves no URL:\n{log.read_text(errors='replace')}")
        self._check(step, log.read_text(errors="replace"))

    def _check(self, step: Command, output: str) -> None:
        if (line := step.first_missing_line(output)) is not None:
            raise CommandFailed(f"$ {step.text}\ndoes not print\n{line}\nbut\n{output}")


def _answers(url: str) -> bool:
    try:
        return status_of(url) == 200
    except OSError:
        return False


def _stop_group(server: subprocess.Popen[bytes]) -> None:
    """Stop a server and its process group with SIGTERM, then with SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        deadline = time.monotonic() + 10
        while _group_lives(server) and time.monotonic() < deadline:
            time.sleep(0.05)
    server.wait()


def _group_lives(server: subprocess.Popen[bytes]) -> bool:
    server.poll()
    try:
        os.killpg(server.pid, 0)
    except ProcessLookupError:
        return False
    return True
