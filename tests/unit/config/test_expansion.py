"""Variables in the values of a file."""

import os
from pathlib import Path

import pytest

from mcpbridge.config.expansion import (
    bare_variable,
    expand,
    has_dollars_once_literal,
    read_value,
)
from mcpbridge.config.tuning import VALUE_FILE_BYTES

ENVIRONMENT = {"A": "1", "EMPTY": "", "DOLLARS": "${A}", "_b2": "x"}
PREDEFINED = {"userHome": "/home/me", "/": "/"}


def unreadable(path: str) -> str:
    raise LookupError(f"no {path}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("none", "none"),
        ("${A}", "1"),
        ("a${A}b${A}", "a1b1"),
        ("${_b2}", "x"),
        ("${env:A}", "1"),
        ("${EMPTY}", ""),
        ("${NO:-default}", "default"),
        ("${NO:-}", ""),
        ("${NO:-a:-b}", "a:-b"),
        ("${env:NO:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${A:-default}", "1"),
        ("${DOLLARS}", "${A}"),
        ("${userHome}${/}x", "/home/me/x"),
        ("$A", "$A"),
        ("$", "$"),
        ("pa$$word$", "pa$word$"),
        ("$$", "$"),
        ("$$$", "$$"),
        ("$$$$NAME", "$$NAME"),
        ("$${file:x}", "${file:x}"),
        ("${file:x}/${file:y}", "[x]/[y]"),
        ("{A}", "{A}"),
        ("$ {A}", "$ {A}"),
        ("$${A}", "${A}"),
        ("$$${A}", "$1"),
        ("$$$${A}", "$${A}"),
        ("$${A:-${A}}", "${A:-1}"),
    ],
)
def test_replaced_variables(text: str, expected: str) -> None:
    assert expand(text, ENVIRONMENT, PREDEFINED, "[{}]".format) == (expected, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "${NO}",
            "the environment variable NO is not set; set it for mcpbridge, or write",
        ),
        ("${env:NO}", "the environment variable NO is not set"),
        (
            "${input:api-key}",
            "`${input:api-key}` would ask the user of an editor; write `${API_K",
        ),
        ("${NO:?hush}", "`${NO...}` is not supported; write `${NAME}`, `${NAME:-default}` or"),
        ("${NO-hush}", "`${NO...}` is not supported"),
        ("${command:a.hush}", "`${command:a...}` is not supported"),
        ("${}", "`${}` is not supported"),
        ("${workspaceFolder:x}", "`${workspaceFolder:x}` is not supported"),
        ("${NO:-${A}", "the default of `${NO}` cannot contain a variable"),
        ("${file:}", "`${file:}` needs the path of a file"),
        ("${file:a b}", "no a b"),
        ("x${A", "`${` has no `}`; for a literal `${`, write `$${`"),
    ],
)
def test_variables_that_cannot_be_replaced(text: str, problem: str) -> None:
    [found] = expand(text, ENVIRONMENT, PREDEFINED, unreadable)[1]
    assert found.startswith(problem)
    assert "hush" not in found


def test_all_errors_are_reported() -> None:
    _, problems = expand("${X}${A}${Y}${", ENVIRONMENT, {}, unreadable)
    assert [each.split(";")[0] for each in problems] == [
        "the environment variable X is not set",
        "the environment variable Y is not set",
        "`${` has no `}`",
    ]


@pytest.mark.parametrize(
    ("text", "name"), [("$A_1", "A_1"), ("$A ", None), ("x$A", None), ("${A}", None), ("$1", None)]
)
def test_a_bare_variable(text: str, name: str | None) -> None:
    assert bare_variable(text) == name


@pytest.mark.parametrize(
    ("text", "once"),
    [
        *(("$$", True), ("pa$$word", True), ("$$$A", True), ("$${A}$$", True)),
        *(("$", False), ("$${A}", False), ("$$${A}", False), ("a$b$c", False), ("${A}", False)),
    ],
)
def test_dollars_that_were_literal(text: str, once: bool) -> None:
    assert has_dollars_once_literal(text) is once


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b"two\nlines\n\n", "two\nlines\n"),
        (b" \xc3\xa9 ", " \xe9 "),
        (b"\r", "\r"),
        (b"", ""),
        (b"x" * VALUE_FILE_BYTES, "x" * VALUE_FILE_BYTES),
    ],
)
def test_the_contents_of_a_file(data: bytes, value: str, tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(data)
    path.chmod(0o600)
    warnings: list[str] = []
    assert read_value(str(path), "it", warnings.append) == value
    assert warnings == []


@pytest.mark.parametrize(
    ("data", "mode", "problem"),
    [
        (None, 0, "cannot read it: No such file or directory"),
        (b"hush\xff", 0o600, "it is not valid UTF-8"),
        (b"hush", 0o602, "every user of this machine can change it; run `chmod o-w` on it"),
        (b"x" * (VALUE_FILE_BYTES + 1), 0o600, f"it has more than {VALUE_FILE_BYTES} bytes (VAL"),
    ],
)
def test_a_file_without_a_value(
    data: bytes | None, mode: int, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "value"
    if data is not None:
        path.write_bytes(data)
        path.chmod(mode)
    with pytest.raises(LookupError) as caught:
        read_value(str(path), "it", lambda text: None)
    assert str(caught.value.args[0]).startswith(problem)
    assert "hush" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path, problem in (
        (str(tmp_path), "it is a directory"),
        (str(tmp_path / "pipe"), "it is no regular file"),
        ("a\0b", "its path has a NUL character"),
    ):
        with pytest.raises(LookupError, match=f"cannot read it: {problem}"):
            read_value(path, "it", lambda text: None)


def test_a_file_that_everybody_can_read_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_text("hush")
    path.chmod(0o644)
    warnings: list[str] = []
    assert read_value(str(path), "it", warnings.append) == "hush"
    assert warnings == ["every user of this machine can read it; run `chmod o=` on it"]
