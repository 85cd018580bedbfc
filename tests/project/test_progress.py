"""Long work says how far it is, and makes no noise where nobody looks on."""

from __future__ import annotations

import re
import subprocess
from io import StringIO
from pathlib import Path

import pytest

from tests.progress import Progress

ROOT = Path(__file__).parents[2]
#: Files that `make` is to take for new, so that it has something to do.
CHANGED = ("pyproject.toml", "tests/real/client1.txt")


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_phases_are_lines_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKE_STARTED", "")
    stream = StringIO()
    progress = Progress(stream)
    progress.phase("one")
    progress.count("sessions", 1, 2)
    progress.count("sessions", 2, 2)
    progress.done()
    progress.phase("two")
    assert re.fullmatch(r"\[ +\d+ s\] one\n\[ +\d+ s\] two\n", stream.getvalue())


def test_terminal_has_a_line_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    stream = Terminal()
    progress = Progress(stream)
    progress.count("sessions", 1, 2)
    progress.count("sessions", 2, 2)
    progress.phase("one")
    first, second, *_, last = stream.getvalue().split("\r")[1:]
    assert (first.endswith("sessions: 1 of 2"), second.endswith("sessions: 2 of 2")) == (True, True)
    assert last.endswith("one\n")


def test_ci_has_no_line_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    stream = Terminal()
    Progress(stream).count("sessions", 1, 2)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("target", ["whole", "lint", "conformance", "soak", "real", "bench"])
def test_each_long_target_says_what_it_does(target: str) -> None:
    """`make -n` shows the commands; one of them prints the phase."""
    shown = subprocess.run(
        ["make", "-n", *(f"--assume-new={each}" for each in CHANGED), target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "[%4d s] %s" in shown.stdout
