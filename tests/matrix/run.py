"""
Runs the matrix: every client in front of every backend, through one bridge.

    python -m tests.matrix.run [--write | --remote | --remote-sse]

prints the outcomes that are no success as they come; with `--write` the table
in `docs/compatibility.md` is written from them.  With `--remote` a second bridge serves
the first one's servers as remote ones, over Streamable HTTP, and with `--remote-sse` over
HTTP+SSE.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.matrix.cells import BACKENDS, OPERATIONS, ROWS, SDKS, Outcome, plan
from tests.matrix.table import DOCUMENT, with_table
from tests.real import parts
from tests.real.bridge import MARKER_VARIABLE, RunningBridge, serving

#: How many clients run at the same time.
PARALLEL = 2
#: For all that one client does, in seconds; its operations have deadlines of their own.
CLIENT_SECONDS = 80


def backend(name: str) -> list[str]:
    """The command line of a backend."""
    match name:
        case "legacy":
            return parts.matrix_script("client1", "legacy.py")
        case "dual":
            return parts.matrix_script("client2", "modern.py")
        case "modern":
            return [*parts.matrix_script("client2", "modern.py"), "--modern-only"]
        case "everything":
            return parts.everything_server()
        case "time":
            return parts.time_server()
    raise ValueError(name)


class Matrix:
    """The matrix in front of a running bridge; each row is run once, when it is asked for."""

    def __init__(self, bridge: RunningBridge, marks: Path) -> None:
        self.bridge = bridge
        self._marks = marks
        self._urls = {url.split("/")[-2]: url.removesuffix("/sse") for url in bridge.urls}
        self._rows: dict[str, list[Outcome]] = {}

    def row(self, name: str) -> list[Outcome]:
        """The outcomes of one kind of client."""
        if name not in self._rows:
            # here, where a missing part can still be a skip
            commands = {sdk: self._command(name, sdk) for sdk in ROWS[name].sdks}
            with ThreadPoolExecutor(PARALLEL) as pool:
                outputs = pool.map(self._output, commands.values())
            self._rows[name] = [
                outcome
                for sdk, (lines, ended) in zip(commands, outputs, strict=True)
                for outcome in _complete(name, sdk, lines, ended)
            ]
        return self._rows[name]

    def outcomes(self) -> list[Outcome]:
        """All outcomes."""
        return [outcome for name in ROWS for outcome in self.row(name)]

    def _command(self, row: str, name: str) -> list[str]:
        revision, endpoint = ROWS[row].revision, ROWS[row].endpoint
        sdk = SDKS[name]
        plans = {
            each: {"url": f"{url}/{endpoint}", **plan(each, f"{row}-{name}-{each}")}
            for each, url in self._urls.items()
        }
        return [*parts.matrix_script(sdk.environment, sdk.script), revision, json.dumps(plans)]

    def _output(self, command: Sequence[str]) -> tuple[list[Any], str]:
        """The JSON lines that a client prints, and what else is known of its end."""
        with subprocess.Popen(
            command,
            env={**os.environ, "MATRIX_MARKS": str(self._marks)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=CLIENT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                output, errors = process.communicate()
                errors += f"\nkilled after {CLIENT_SECONDS} seconds"
        # what a killed one has left of a line is no JSON
        lines = [line for line in output.splitlines(keepends=True) if line.endswith("\n")]
        ended = f"ended with {process.returncode}: {errors[-500:]}"
        return [json.loads(line) for line in lines], ended


def _complete(row: str, sdk: str, lines: list[Any], ended: str) -> list[Outcome]:
    """The outcomes of a client; one that it has not reported is a failure."""
    found = {(one["backend"], one["op"]): Outcome(row, sdk, **one) for one in lines}
    outcomes = []
    for each in BACKENDS:
        lost = Outcome(row, sdk, each, "connect", why=ended)
        connected = found.get((each, "connect"), lost)
        outcomes.append(connected)
        for op in OPERATIONS:
            lost = Outcome(row, sdk, each, op, why=connected.why or ended)
            outcomes.append(found.get((each, op), lost))
        if (each, "close") in found:
            outcomes.append(found[each, "close"])
    return outcomes


@contextlib.contextmanager
def matrix(folder: Path, remote: str = "") -> Iterator[Matrix]:
    """
    The matrix, with a bridge that serves its backends until the end.

    `remote` is the endpoint, `mcp` or `sse`, at which a second bridge finds them.
    """
    mark, marks = uuid.uuid4().hex, folder / "marks"
    marks.touch()
    servers = {}
    for name in BACKENDS:
        command, *args = backend(name)
        environment = {MARKER_VARIABLE: mark, "MATRIX_MARKS": str(marks)}
        servers[name] = {
            "command": command,
            "args": args,
            "env": environment,
            # A subscription and the call that changes the resource come on two connections.
            "reuse": "identity",
        }
    config = folder / "bridge.json"
    listen = ["tcp:0:interface=127.0.0.1"]
    config.write_text(json.dumps({"mcpServers": servers, "bridge": {"listen": listen}}))
    with serving(folder, "--config", str(config), urls=len(servers), marker=mark) as bridge:
        if not remote:
            yield Matrix(bridge, marks)
            return
        entries = {
            url.split("/")[-2]: {"url": f"{url.removesuffix('/sse')}/{remote}", "reuse": "identity"}
            for url in bridge.urls
        }
        config = folder / "remote.json"
        config.write_text(json.dumps({"mcpServers": entries, "bridge": {"listen": listen}}))
        with serving(folder, "--config", str(config), urls=len(servers), marker=mark) as second:
            yield Matrix(second, marks)


def main(arguments: list[str]) -> int:
    """Run all of it; 1 where something failed."""
    failed = 0
    remote = {"--remote": "mcp", "--remote-sse": "sse"}.get(arguments[0] if arguments else "", "")
    with tempfile.TemporaryDirectory() as folder, matrix(Path(folder), remote) as running:
        for name in ROWS:
            wrong = [each for each in running.row(name) if not (each.ok or each.absent)]
            failed += len(wrong)
            # once for each reason: one that cannot connect cannot do anything
            said = {(each.sdk, each.backend, each.why): each for each in reversed(wrong)}
            for outcome in reversed(said.values()):
                print(outcome, flush=True)
        outcomes = running.outcomes()
    print(f"{sum(each.ok for each in outcomes)} of {len(outcomes)} ok, {failed} failed")
    if "--write" in arguments:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(with_table(text, outcomes), encoding="utf-8")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
