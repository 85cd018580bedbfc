"""
Run a real Prometheus with a configuration of its own, on a port of its own.

It changes nothing of a Prometheus that is installed as a service, and needs no root.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.real.parts import command
from tests.real.processes import eventually

#: Seconds that it may take to start, to scrape or to stop; no assertion is about this time.
PATIENCE = 90.0
_LISTENS = re.compile(r"Listening on.* address=127\.0\.0\.1:(\d+)")


class Prometheus:
    """A Prometheus that runs; what it prints goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._port = ""

    @property
    def log(self) -> str:
        """Everything that it has printed."""
        return self._log.read_text(errors="replace")

    def is_ready(self) -> bool:
        """Tell whether it listens, and remember where."""
        assert self._process.poll() is None, self.log
        found = _LISTENS.search(self.log)
        self._port = found[1] if found else ""
        return bool(found)

    def api(self, path: str, **query: str) -> Any:
        """Return the `data` of an answer of its API (prometheus.io, "HTTP API")."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urlencode(query)}"
        with urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """Return the only value of a query now; None where there is none."""
        found = self.api("query", query=query)["result"]
        if not found:
            return None
        [one] = found
        return float(one["value"][1])

    def rules(self) -> list[Any]:
        """Return all rules, once each was looked at (prometheus.io, "Rules")."""
        found: list[Any] = []

        def are_known() -> bool:
            found[:] = [x for group in self.api("rules")["groups"] for x in group["rules"]]
            return all(each["health"] != "unknown" for each in found)

        assert eventually(are_known, PATIENCE), found
        return found

    def wait_for(self, query: str, expected: float) -> None:
        """Wait until a query has this value."""
        found: list[float | None] = []

        def is_there() -> bool:
            found.append(self.value(query))
            return found[-1] == expected

        assert eventually(is_there, PATIENCE), (query, found[-1], self.log)


@contextlib.contextmanager
def running(folder: Path, configuration: Path) -> Iterator[Prometheus]:
    """Run Prometheus during the block, with this configuration file and its data in `folder`."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                command("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    one = Prometheus(process, log)
    try:
        assert eventually(one.is_ready, PATIENCE), one.log
        yield one
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
