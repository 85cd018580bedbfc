"""The command `mcpbridge token`."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from mcpbridge.config.auth import read_auth
from mcpbridge.token_command import USAGE, token_command


def test_it_prints_a_token_and_the_line_for_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert token_command(["alice@example.org"]) == 0
    printed = capsys.readouterr()
    [token] = re.findall(r"^    (mcpb_\S+)$", printed.out, re.MULTILINE)
    [line] = re.findall(r'^    ("alice@example.org": .*)$', printed.out, re.MULTILINE)
    tokens = json.loads(f"{{{line}}}")
    assert tokens["alice@example.org"]["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    read_auth({"tokens": tokens})
    # The token itself is shown once.
    assert printed.out.count(token) == 1
    assert printed.err == ""


def test_each_call_makes_another_token(capsys: pytest.CaptureFixture[str]) -> None:
    token_command(["a"])
    first = capsys.readouterr().out
    token_command(["a"])
    assert capsys.readouterr().out != first


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert token_command([flag]) == 0
    assert capsys.readouterr() == (USAGE, "")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [""],
        ["a", "b"],
        ["a b"],
        ["a#b"],
        ["a" * 65],
        ["-x"],
        ["--name"],
        ["a\n"],
        ["caf\u00e9"],
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert token_command(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mcpbridge token: expected a NAME")
    assert printed.err.endswith(USAGE)
    assert (f"got {len(arguments)} arguments" in printed.err) == (len(arguments) != 1)
