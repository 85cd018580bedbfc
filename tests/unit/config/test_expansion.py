"""Variables in the values of a file."""

import pytest

from mcpbridge.config.expansion import bare_variable, expand

ENVIRONMENT = {"A": "1", "EMPTY": "", "DOLLARS": "${A}", "_b2": "x"}
PREDEFINED = {"userHome": "/home/me", "/": "/"}


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
        ("pa$$word$", "pa$$word$"),
        ("{A}", "{A}"),
        ("$ {A}", "$ {A}"),
        ("$${A}", "${A}"),
        ("$$${A}", "$1"),
        ("$$$${A}", "$${A}"),
        ("$${A:-${A}}", "${A:-1}"),
    ],
)
def test_replaced_variables(text: str, expected: str) -> None:
    assert expand(text, ENVIRONMENT, PREDEFINED) == (expected, [])


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
        ("${NO:?hush}", "`${NO...}` is not supported; write `${NAME}` or `${NAME:-default}`, or"),
        ("${NO-hush}", "`${NO...}` is not supported"),
        ("${command:a.hush}", "`${command:a...}` is not supported"),
        ("${}", "`${}` is not supported"),
        ("${workspaceFolder:x}", "`${workspaceFolder:x}` is not supported"),
        ("${NO:-${A}", "the default of `${NO}` cannot contain a variable"),
        ("x${A", "`${` has no `}`; for a literal `${`, write `$${`"),
    ],
)
def test_variables_that_cannot_be_replaced(text: str, problem: str) -> None:
    [found] = expand(text, ENVIRONMENT, PREDEFINED)[1]
    assert found.startswith(problem)
    assert "hush" not in found


def test_all_errors_are_reported() -> None:
    _, problems = expand("${X}${A}${Y}${", ENVIRONMENT, {})
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
