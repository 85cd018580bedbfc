"""The news fragments: their form, and the NEWS.md that towncrier makes of them."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mcpbridge import __version__
from tests.real.parts import ROOT

CONFIG: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
FRAGMENTS = ROOT / CONFIG["directory"]
#: The headings of the kinds, in their order.
HEADINGS: dict[str, str] = {kind["directory"]: kind["name"] for kind in CONFIG["type"]}
#: Files of the directory that are not fragments.
OTHERS = {"README.md", "template.md"}
#: A change fits on two lines of a screen.
MAX_LENGTH = 220
_NAME = re.compile(r"(?P<issue>[1-9]\d*)\.(?P<kind>[a-z]+)(\.[1-9]\d*)?\.md")


class Fragment(NamedTuple):
    """One change: its issue, its kind and its line."""

    issue: int
    kind: str
    text: str

    def words(self) -> str:
        """Return what the changes of an issue are sorted by."""
        return self.text.replace("`", "").replace("--", "").lower()


def flaw(name: str, content: str) -> str | None:
    """Describe what is wrong with a fragment, or return None."""
    match = _NAME.fullmatch(name)
    text = content.removesuffix("\n")
    if match is None:
        return "its name is not ISSUE.KIND.md or ISSUE.KIND.NUMBER.md"
    if match["kind"] not in HEADINGS:
        return f"its kind is none of {', '.join(HEADINGS)}"
    if text == content or "\n" in text:
        return "it is not one line with a newline at its end"
    if len(text) > MAX_LENGTH:
        return f"it has {len(text)} characters, and {MAX_LENGTH} are allowed"
    if not re.match(r"[A-Z0-9`]", text) or not text.endswith("."):
        return "it is not a sentence"
    if text.count("`") % 2:
        return "a backtick is not closed"
    return None


def fragments() -> dict[str, str]:
    """Read all fragments, by the names of their files."""
    paths = (path for path in FRAGMENTS.iterdir() if path.name not in OTHERS)
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def test_every_fragment_is_one_line_of_a_known_kind() -> None:
    found = {name: flaw(name, content) for name, content in fragments().items()}
    assert {name: reason for name, reason in found.items() if reason} == {}


def test_no_two_fragments_say_the_same() -> None:
    """Towncrier makes one line of them, which names both issues."""
    texts = Counter(fragments().values())
    assert [text for text, times in texts.items() if times > 1] == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("3.feature.md", "`/mcp` serves it.\n", None),
        ("30.bugfix.12.md", "2026-07-28 works.\n", None),
        ("feature.md", "It works.\n", "its name is not"),
        ("3.feature.one.md", "It works.\n", "its name is not"),
        ("3.feature.1.rst", "It works.\n", "its name is not"),
        ("3.feture.md", "It works.\n", "its kind is none of removal, feature, bugfix, doc"),
        ("3.feature.md", "It works.", "it is not one line"),
        ("3.feature.md", "It\nworks.\n", "it is not one line"),
        ("3.feature.md", "", "it is not one line"),
        ("3.feature.md", "A" * 219 + ".\n", None),
        ("3.feature.md", "A" * 220 + ".\n", "it has 221 characters"),
        ("3.feature.md", "\n", "it is not a sentence"),
        ("3.feature.md", "- It works.\n", "it is not a sentence"),
        ("3.feature.md", "It works\n", "it is not a sentence"),
        ("3.feature.md", "`/mcp works.\n", "a backtick is not closed"),
    ],
)
def test_a_flawed_fragment_is_noticed(name: str, content: str, reason: str | None) -> None:
    assert (flaw(name, content) or "").startswith(reason or "")
    assert (flaw(name, content) is None) == (reason is None)


def test_news_has_the_line_below_which_releases_are_put() -> None:
    assert (ROOT / CONFIG["filename"]).read_text().count(CONFIG["start_string"]) == 1


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy what towncrier reads, for releases of the test's own."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / CONFIG["filename"], tmp_path)
    directory = tmp_path / CONFIG["directory"]
    directory.mkdir()
    for name in OTHERS:
        shutil.copy(FRAGMENTS / name, directory)
    return tmp_path


@pytest.fixture
def towncrier() -> Callable[..., str]:
    """Run towncrier in a folder and return its output."""

    def run(cwd: Path, *arguments: str) -> str:
        command = (sys.executable, "-m", "towncrier", "build", *arguments)
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_draft_has_every_change_in_order(towncrier: Callable[..., str]) -> None:
    """By kind, then by issue, then by words, whatever order the directory has."""
    changes: list[Fragment] = []
    for name, content in fragments().items():
        issue, kind = name.split(".")[:2]
        changes.append(Fragment(int(issue), kind, content.strip()))
    changes.sort(key=lambda change: (change.issue, change.words()))
    expected: list[str] = []
    for kind, heading in HEADINGS.items():
        lines = [f"- {text} (#{issue})" for issue, its_kind, text in changes if its_kind == kind]
        expected += [f"### {heading}", *lines] if lines else []
    title, *rest = filter(None, towncrier(ROOT, "--draft").splitlines())
    assert re.fullmatch(rf"## {re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)", title)
    assert rest == expected


@pytest.mark.slow
def test_a_release_goes_below_the_introduction_and_above_the_last(
    checkout: Path, towncrier: Callable[..., str]
) -> None:
    news = checkout / CONFIG["filename"]
    introduction, marker, older = news.read_text().partition(CONFIG["start_string"])
    release = ("--yes", "--date", "2030-01-01", "--version")
    for version, name, text in (
        ("8.0", "3.feature.1.md", "`--new` is new."),
        ("8.1", "4.bugfix.md", "It works."),
    ):
        (checkout / CONFIG["directory"] / name).write_text(text + "\n")
        towncrier(checkout, *release, version)
        assert {path.name for path in (checkout / CONFIG["directory"]).iterdir()} == OTHERS
    newer = (
        "\n## 8.1 (2030-01-01)\n\n### Bug fixes\n\n- It works. (#4)\n"
        "\n## 8.0 (2030-01-01)\n\n### Features\n\n- `--new` is new. (#3)\n"
    )
    written = news.read_text()
    assert written.startswith(introduction + marker + newer)
    assert written.removeprefix(introduction + marker + newer).strip() == older.strip()
