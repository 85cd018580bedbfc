"""The commands of the README work in a fresh clone; and the reader that proves it works."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.console import (
    MARKER,
    Command,
    CommandFailed,
    DocumentRunner,
    commands,
    count_stray_markers,
)
from tests.real.parts import ROOT, command, need

SAMPLE = f"""
Text.

{MARKER}
```console
$ PORT=$(cat port)
$ cd sub
$ {sys.executable} -u ../server.py &
$ echo "in $(basename "$PWD")" \\
>     and on
in sub and ...
$ {sys.executable} -c "
> import urllib.request
> print('first')
> print(urllib.request.urlopen('http://127.0.0.1:$PORT/sse').read().decode())
> print('last')"
...
served
last
```

```console
$ false, and not to be run
```
"""

SERVER = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"served")

server = HTTPServer(("127.0.0.1", 0), Answer)
open("../port", "w").write(str(server.server_port))
print(f"serving on http://127.0.0.1:{server.server_port}/sse", flush=True)
server.serve_forever()
"""


#: How long a command may take that is to end; nothing is proven by it.
PATIENCE = 60.0


def block(*lines: str) -> str:
    """A document that is one block to run."""
    return "\n".join([MARKER, "```console", *lines, "```", ""])


def follow(document: str, tmp_path: Path, seconds: float = PATIENCE) -> None:
    """Follow a document in a new folder."""
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    with DocumentRunner(folder, scratch, seconds) as runner:
        runner.run(commands(document))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("no block", []),
        ("```console\n$ not marked\n```\n", []),
        (f"{MARKER}\n```sh\n$ not console\n```\n", []),
        (block("$ one", "$ two"), [Command("one"), Command("two")]),
        (block("$ one", "out", "", "...", "put"), [Command("one", ["out", "put"])]),
        (block("$ one \\", "  two"), [Command("one \\\n  two")]),
        (block("$ one <<END", "> two", "> END"), [Command("one <<END\ntwo\nEND")]),
        (block("$ one") + "text\n" + block("$ two"), [Command("one"), Command("two")]),
        (f"{MARKER}\n\n```console\n$ one\n```\n", [Command("one")]),
    ],
)
def test_commands_are_found(document: str, expected: list[Command]) -> None:
    assert commands(document) == expected


def test_a_marker_before_nothing_is_noticed() -> None:
    assert count_stray_markers(f"{MARKER}\n```sh\n```\n") == 1
    assert count_stray_markers(SAMPLE) == 0


@pytest.mark.parametrize(
    ("shown", "output", "missing"),
    [
        ([], "anything", None),
        (["a", "c"], "a\nb\nc\n", None),
        (["c", "a"], "a\nb\nc\n", "a"),
        (["id=... (x)"], "  id=12 (x)\n", None),
        (["a"], "ab\n", "a"),
    ],
)
def test_shown_lines_are_compared(shown: list[str], output: str, missing: str | None) -> None:
    assert Command("x", shown).first_missing_line(output) == missing


def test_a_sample_is_followed_and_its_server_stopped(tmp_path: Path) -> None:
    sub = tmp_path / "folder" / "sub"
    scratch = tmp_path / "scratch"
    sub.mkdir(parents=True)
    scratch.mkdir()
    (sub.parent / "server.py").write_text(SERVER)
    (sub.parent / "port").write_text("")
    steps = commands(SAMPLE)
    # the port is known only once the server runs
    steps.insert(3, Command("PORT=$(cat ../port)"))
    with DocumentRunner(sub.parent, scratch, PATIENCE) as runner:
        runner.run(steps)
        port = int((sub.parent / "port").read_text())
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()


@pytest.mark.parametrize(
    ("lines", "seconds", "complaint"),
    [
        (["$ false"], PATIENCE, "exit status 1"),
        (["$ exit 3"], PATIENCE, "exit status 3"),
        (["$ echo a", "b"], PATIENCE, "does not print\nb"),
        (["$ exec sleep 600"], 0.5, "runs for"),
        (["$ exit 4 &"], PATIENCE, "ended with 4"),
        (["$ exec sleep 600 &"], 0.5, "serves no URL"),
        (["$ make test"], PATIENCE, "would run the test that runs it"),
    ],
)
def test_what_does_not_work_is_told(
    lines: list[str], seconds: float, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(CommandFailed, match=complaint):
        follow(block(*lines), tmp_path, seconds)


def free(port: int) -> bool:
    """Whether nothing listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(PATIENCE)
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_the_readme_works_in_a_fresh_clone(tmp_path: Path) -> None:
    need((ROOT / ".git").exists(), "this tree is no git checkout")
    need((ROOT / "README.md").exists(), "there is no README.md")
    need(free(8808), "port 8808, which the README uses, is taken on this machine")
    clone, scratch = tmp_path / "mcpbridge", tmp_path / "scratch"
    git = command("git")
    subprocess.run([git, "clone", "--quiet", "--no-hardlinks", ROOT, clone], check=True)
    need((clone / "README.md").exists(), "README.md is not committed")
    scratch.mkdir()
    readme = (clone / "README.md").read_text(encoding="utf-8")
    assert count_stray_markers(readme) == 0
    steps = commands(readme)
    assert steps, f"README.md has no block marked {MARKER}"
    with DocumentRunner(clone, scratch) as runner:
        runner.run(steps)
