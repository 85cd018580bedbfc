"""
Runs the MCP conformance suite against the installed bridge.

    python -m tests.conformance.run [--url URL] [BRIDGE OPTION ...]

Starts `twistd mcpbridge`, with further options if there are any, in front of
`server.py` and runs both versions of the suite against its `/mcp`; or runs them
against the server at a URL.  Says for each check that did not succeed what it
was and why, and closes with a line for each version that says how many of its
scenarios passed.  Exits with 0 only where all did, without a warning, and the
resumption of a stream was really tried.

Nothing of mcpbridge is imported.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.real.bridge import LOOPBACK, serving
from tests.real.parts import REAL, built, conformance_server, node

MODULES = REAL / "conformance" / "node_modules"
#: What one version may take; both wait 11 seconds for one tool.
SECONDS = 300
#: Statuses that are to be told, and that fail the run.
BAD = ("FAILURE", "WARNING")
#: The scenario that leaves a stream and resumes it, and its check of that.
POLLING = "server-sse-polling"
RESUMED = "server-sse-disconnect-resume"

_FOLDER = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")

Check = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """One version of the suite: its name here, its package, what is run, how many scenarios."""

    name: str
    package: str
    selection: Sequence[str]
    scenarios: int

    def run(self, url: str, folder: Path) -> "Outcome":
        """Run it against a server, with its results in a folder."""
        script = built(MODULES / self.package / "dist" / "index.js")
        command = [node(), script, "server", "--url", url, "--output-dir", str(folder)]
        try:
            done = subprocess.run(
                [*command, *self.selection],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                timeout=SECONDS,
                check=False,
            )
            printed = done.stdout
        except subprocess.TimeoutExpired:
            printed = f"it did not end within {SECONDS} seconds"
        return Outcome(self, results(folder), printed)


SUITES = (
    Suite("0.1.16", "conformance-0.1.16", ("--suite", "all"), 32),
    Suite("2025-11-25", "conformance-0.2.0", ("--requirements", "2025-11-25"), 33),
)


def results(folder: Path) -> dict[str, list[Check] | None]:
    """The checks of each scenario; none where it broke off."""
    found: dict[str, list[Check] | None] = {}
    for each in sorted(folder.iterdir()):
        if name := _FOLDER.fullmatch(each.name):
            file = each / "checks.json"
            found[name["scenario"]] = json.loads(file.read_text()) if file.exists() else None
    return found


@dataclass(frozen=True)
class Outcome:
    """What came of a suite."""

    suite: Suite
    checks: dict[str, list[Check] | None]
    printed: str

    def passed(self) -> int:
        """How many scenarios have no failure, as the suite itself counts."""
        return sum(
            checks is not None and all(check["status"] != "FAILURE" for check in checks)
            for checks in self.checks.values()
        )

    def complaints(self) -> Iterator[str]:
        """What is wrong, a line for each; none where all is well."""
        for scenario, checks in self.checks.items():
            if checks is None:
                yield f"{scenario}: broke off"
                continue
            for check in checks:
                if check["status"] in BAD:
                    why = check.get("errorMessage") or json.dumps(check.get("details"))
                    yield f"{scenario}: {check['status']} {check['id']}: {why}"
        if (count := len(self.checks)) != self.suite.scenarios:
            yield f"{count} scenarios were run, not {self.suite.scenarios}:\n{self.printed}"
        if self.polling().get(RESUMED) not in ("SUCCESS", *BAD):
            # it passes too where it tests nothing, as with an answer in JSON
            yield f"{POLLING}: no stream was resumed: {self.polling()}"

    def polling(self) -> dict[str, str]:
        """The statuses of the checks of streams that are left and resumed."""
        return {
            check["id"]: check["status"]
            for check in self.checks.get(POLLING) or []
            if check["id"].startswith("server-sse-")
        }

    def closing_line(self) -> str:
        """How many scenarios passed."""
        return f"conformance {self.suite.name}: {self.passed()}/{self.suite.scenarios}"


def judge(outcomes: Sequence[Outcome]) -> int:
    """Print what there is to say; the exit status."""
    status = 0
    for outcome in outcomes:
        for complaint in outcome.complaints():
            print(f"{outcome.suite.name} {complaint}")
            status = 1
    for outcome in outcomes:
        print(outcome.closing_line())
    return status


@contextlib.contextmanager
def bridged(folder: Path, options: Sequence[str]) -> Iterator[str]:
    """The URL of a bridge in front of the server; what it printed is shown if it fails."""
    with serving(folder, *LOOPBACK, *options, "--", *conformance_server()) as bridge:
        try:
            yield bridge.url.removesuffix("/sse") + "/mcp"
        finally:
            bridge.stop()
            if "Traceback" in bridge.output:
                print(bridge.output)


def run(url: str | None, options: Sequence[str]) -> int:
    """Run all versions, each in front of a server of its own; the exit status."""
    outcomes = []
    for suite in SUITES:
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            found = folder / "results"
            found.mkdir()
            at = url or stack.enter_context(bridged(folder, options))
            outcomes.append(suite.run(at, found))
    return judge(outcomes)


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="run the MCP conformance suite")
    parser.add_argument("--url", help="of a server that is there, in the place of a bridge")
    known, options = parser.parse_known_args(arguments)
    try:
        return run(known.url, options)
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        print(f"the conformance suite was not run: {missing}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
