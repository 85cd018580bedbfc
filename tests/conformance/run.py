"""
Runs the MCP conformance suite against the installed bridge.

    python -m tests.conformance.run [--url URL] [--only TEXT] [--auth | --remote]
        [BRIDGE OPTION ...]

Starts `twistd mcpbridge`, with further options if there are any, in front of
one of the servers that are here, once for each suite, and runs the suite against
its `/mcp`; or runs them all against the server at a URL.  `--only` names suites by
a part of their names.  With `--auth`, the bridge admits only who sends a token, and the
suite sends it.  With `--remote`, a second bridge stands before the first one, whose server
is a remote one to it.  Says for each check that did not succeed what it was and
why, and closes with a line for each suite that says how many of its scenarios
passed.  Exits with 0 only where all did, without a warning, but for what
`misses.toml` expects, and the resumption of a stream was really tried.

Nothing of mcpbridge is imported.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.progress import Progress
from tests.real import parts
from tests.real.bridge import LOOPBACK, MARKER_VARIABLE, RunningBridge, serving

MODULES = parts.REAL / "conformance" / "node_modules"
#: The checks that cannot succeed, by the names of the suites.
MISSES = Path(__file__).with_name("misses.toml")
#: Makes the suite send the token in this variable, which it has no option for.
SENDER = Path(__file__).with_name("send_token.cjs")
TOKEN_VARIABLE = "MCPBRIDGE_TEST_TOKEN"
TOKEN = "the-token-of-the-conformance-suite"
#: What one suite may take; the older ones wait 14 seconds for one tool.
SECONDS = 300
#: How many suites run at once.
AT_ONCE = 2
#: Statuses that are to be told, and that fail the run.
BAD = ("FAILURE", "WARNING")
#: The scenario that leaves a stream and resumes it, and its check of that.
POLLING = "server-sse-polling"
RESUMED = "server-sse-disconnect-resume"
#: Scenarios of an extension, which the suite runs unasked: a run of their own has its server.
EXTENSION = "tasks-"
#: Scenarios that the suite runs without counting them, and that are to pass as well.
UNCOUNTED = (
    "http-custom-header-server-validation",
    "http-header-validation",
    "json-schema-2020-12",
)

_FOLDER = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")

Check = dict[str, Any]
Command = Callable[[], list[str]]


@dataclass(frozen=True)
class Suite:
    """
    One run: its name here, the suite's package, what is run, how many scenarios count.

    `backend` is the command line of what the bridge is in front of, which is started
    ahead where the suite gives a call less time than that takes.  A modern suite has
    no streams that are resumed, and has scenarios that do not count.  One of an
    extension has its scenarios alone, all of which count.
    """

    name: str
    package: str
    selection: Sequence[str]
    scenarios: int
    backend: Command
    modern: bool = False
    ahead: bool = False
    extension: bool = False

    def run(self, url: str, folder: Path, *, auth: bool = False, remote: bool = False) -> "Outcome":
        """Run it against a server, with its results in a folder."""
        script = parts.built(MODULES / self.package / "dist" / "index.js")
        sender = ["--require", str(SENDER)] if auth else []
        command = [parts.node(), *sender, script]
        command += ["server", "--url", url, "--output-dir", str(folder)]
        try:
            done = subprocess.run(
                [*command, *self.selection],
                env={**os.environ, TOKEN_VARIABLE: TOKEN},
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
        found = results(folder, extension=self.extension)
        return Outcome(self, found, printed, expected(self.name), auth, remote)


def legacy(name: str, revision: str, scenarios: int, backend: Command) -> Suite:
    """A suite of clients with a handshake, of a revision."""
    selection = ("--requirements", revision)
    return Suite(name, "conformance-0.2.0", selection, scenarios, backend)


def modern(name: str, backend: Command, ahead: bool = False) -> Suite:
    """A suite of clients without a handshake."""
    name = f"2026-07-28 ({name})"
    selection = ("--requirements", "2026-07-28")
    return Suite(name, "conformance-0.2.0", selection, 37, backend, modern=True, ahead=ahead)


def modern_only() -> list[str]:
    """The server that refuses a handshake."""
    return parts.conformance_server("modern")


SUITES = (
    Suite("0.1.16", "conformance-0.1.16", ("--suite", "all"), 32, parts.conformance_server),
    legacy("2025-11-25", "2025-11-25", 33, parts.conformance_server),
    legacy("2025-11-25 (modern-only backend)", "2025-11-25", 33, modern_only),
    modern("dual-era, Python SDK", parts.conformance_server),
    modern("npm SDK", parts.npm_conformance_server),
    modern("legacy-only backend", parts.legacy_conformance_server, ahead=True),
    Suite(
        "tasks (SEP-2663)",
        "conformance-0.2.0",
        ("--suite", "pending"),
        10,
        parts.tasks_conformance_server,
        modern=True,
        extension=True,
    ),
)


def expected(suite: str) -> dict[tuple[str, str], str]:
    """The checks of a suite that cannot succeed, by scenario and check, and why."""
    misses = tomllib.loads(MISSES.read_text()).get(suite, [])
    return {(miss["scenario"], miss["check"]): miss["why"] for miss in misses}


def results(folder: Path, *, extension: bool = False) -> dict[str, list[Check] | None]:
    """The checks of each scenario, or of the extension's alone; none where it broke off."""
    found: dict[str, list[Check] | None] = {}
    for each in sorted(folder.iterdir()):
        name = _FOLDER.fullmatch(each.name)
        if name and name["scenario"].startswith(EXTENSION) is extension:
            file = each / "checks.json"
            found[name["scenario"]] = json.loads(file.read_text()) if file.exists() else None
    return found


@dataclass(frozen=True)
class Outcome:
    """
    What came of a suite; `expected` are the checks that cannot succeed, and why.

    With `auth`, the bridge needed a token; with `remote`, there were two bridges.
    """

    suite: Suite
    checks: dict[str, list[Check] | None]
    printed: str
    expected: dict[tuple[str, str], str] = field(default_factory=dict)
    auth: bool = False
    remote: bool = False

    def uncounted(self) -> Sequence[str]:
        """The scenarios that are run beside those that count."""
        return UNCOUNTED if self.suite.modern and not self.suite.extension else ()

    def counted(self) -> list[str]:
        """The scenarios that count."""
        return [scenario for scenario in self.checks if scenario not in self.uncounted()]

    def passed(self) -> int:
        """How many scenarios have no failure, as the suite itself counts."""
        return sum(
            checks is not None and all(check["status"] != "FAILURE" for check in checks)
            for checks in map(self.checks.get, self.counted())
        )

    def bad(self) -> list[tuple[str, Check]]:
        """The checks that did not succeed, with their scenarios."""
        return [
            (scenario, check)
            for scenario, checks in self.checks.items()
            for check in checks or []
            if check["status"] in BAD
        ]

    def complaints(self) -> Iterator[str]:
        """What is wrong, a line for each; none where all is well."""
        missed = set()
        for scenario, check in self.bad():
            missed.add((scenario, check["id"]))
            if (scenario, check["id"]) not in self.expected:
                why = check.get("errorMessage") or json.dumps(check.get("details"))
                yield f"{scenario}: {check['status']} {check['id']}: {why}"
        for scenario, ident in self.expected:
            if (scenario, ident) not in missed:
                yield f"{scenario}: {ident} is expected to be missed, and was not"
        yield from (
            f"{scenario}: broke off" for scenario, checks in self.checks.items() if checks is None
        )
        yield from (
            f"{scenario}: was not run"
            for scenario in self.uncounted()
            if scenario not in self.checks
        )
        if (count := len(self.counted())) != self.suite.scenarios:
            yield f"{count} scenarios were run, not {self.suite.scenarios}:\n{self.printed}"
        if not self.suite.modern and self.polling().get(RESUMED) not in ("SUCCESS", *BAD):
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
        name = f"{self.suite.name} with a token" if self.auth else self.suite.name
        name = f"{name}, remote" if self.remote else name
        return f"conformance {name}: {self.passed()}/{self.suite.scenarios}"


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
def remotely_bridged(suite: Suite, folder: Path, options: Sequence[str]) -> Iterator[str]:
    """The URL of a bridge in front of another one, which is a remote server to it."""
    with bridged(suite, folder, (), auth=False) as url:
        server: dict[str, Any] = {"url": url, "base_uri": ""}
        if suite.ahead:
            server |= {"warm": 4, "reuse": "identity"}
        file = folder / "remote.json"
        file.write_text(json.dumps({"mcpServers": {"conformance": server}}))
        command = [*LOOPBACK, *options, "--config", str(file)]
        with serving(folder, *command, marker=uuid.uuid4().hex) as bridge:
            yield from _until_stopped(bridge)


def _until_stopped(bridge: RunningBridge) -> Iterator[str]:
    try:
        yield bridge.url.removesuffix("/sse") + "/mcp"
    finally:
        bridge.stop()
        if "Traceback" in bridge.output:
            print(bridge.output)


@contextlib.contextmanager
def bridged(suite: Suite, folder: Path, options: Sequence[str], *, auth: bool) -> Iterator[str]:
    """The URL of a bridge in front of a server; what it printed is shown if it fails."""
    mark = ""
    command = ["--", *suite.backend()]
    if suite.ahead or auth:
        mark = uuid.uuid4().hex
        command = ["--config", str(config(suite, folder, mark, auth=auth))]
    with serving(folder, *LOOPBACK, *options, *command, marker=mark) as bridge:
        yield from _until_stopped(bridge)


def config(suite: Suite, folder: Path, mark: str, *, auth: bool = False) -> Path:
    """
    A configuration file with the suite's server, for what no option can say: that it is
    started ahead, and that its callers need a token.

    The suite is one caller with many connections, and listens on one of them
    for what it changes on another: that takes a server of one identity.
    """
    command, *args = suite.backend()
    server: dict[str, Any] = {
        "command": command,
        "args": args,
        "env": {MARKER_VARIABLE: mark},
        "base_uri": "",
    }
    if suite.ahead:
        server |= {"warm": 4, "reuse": "identity"}
    if auth:
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        server["auth"] = {"tokens": {"conformance": {"sha256": digest}}}
    file = folder / "bridge.json"
    file.write_text(json.dumps({"mcpServers": {"conformance": server}}))
    return file


def outcome_of(
    suite: Suite, url: str | None, options: Sequence[str], *, auth: bool, remote: bool
) -> Outcome:
    """Run one suite, in front of a server of its own if there is no URL."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        found = folder / "results"
        found.mkdir()
        if url is None and remote:
            url = stack.enter_context(remotely_bridged(suite, folder, options))
        elif url is None:
            url = stack.enter_context(bridged(suite, folder, options, auth=auth))
        return suite.run(url, found, auth=auth, remote=remote)


def run(
    suites: Sequence[Suite],
    url: str | None,
    options: Sequence[str],
    *,
    auth: bool,
    remote: bool = False,
) -> int:
    """Run suites, some at once; the exit status."""
    progress = Progress()

    def outcome(suite: Suite) -> Outcome:
        progress.phase(f"{suite.name}: {suite.scenarios} scenarios")
        found = outcome_of(suite, url, options, auth=auth, remote=remote)
        progress.phase(f"{suite.name}: done")
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return judge(list(pool.map(outcome, suites)))


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="run the MCP conformance suite")
    parser.add_argument("--url", help="of a server that is there, in the place of a bridge")
    parser.add_argument("--only", default="", help="the suites whose names have this in them")
    parser.add_argument("--auth", action="store_true", help="admit only who sends a token")
    parser.add_argument("--remote", action="store_true", help="put a second bridge before it")
    known, options = parser.parse_known_args(arguments)
    suites = [suite for suite in SUITES if known.only in suite.name]
    if not suites:
        parser.error(f"no suite has {known.only!r} in its name")
    if known.auth and known.remote:
        parser.error("--auth and --remote cannot be combined")
    try:
        return run(suites, known.url, options, auth=known.auth, remote=known.remote)
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        print(f"the conformance suite was not run: {missing}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
