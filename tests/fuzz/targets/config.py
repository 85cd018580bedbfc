"""Configuration files, which others may have written."""

from __future__ import annotations

import json
import re

from mcpbridge.config.dotenv import NotDotenv, parse_dotenv
from mcpbridge.config.expansion import bare_variable, expand
from mcpbridge.config.jsonc import MAX_DEPTH, NotJsonc, parse_jsonc
from tests.fuzz.targets import target


def _reject(name: str) -> None:
    raise ValueError(name)


@target
def jsonc(data: bytes) -> None:
    """JSON is read as the standard library reads it, and any error has a place in the text."""
    try:
        text = data.decode("utf-8")
    except ValueError:
        return
    try:
        model = json.loads(text, parse_constant=_reject)
        strict = True
    except (ValueError, RecursionError):
        strict = False
    try:
        document = parse_jsonc(text)
    except NotJsonc as error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines)
        assert 1 <= error.column <= len(lines[error.line - 1]) + 1
        assert not strict or f"{MAX_DEPTH}" in str(error), "valid JSON was refused"
        return
    written = json.dumps(document.content)
    if "Infinity" in written:
        # A number too large for a float, which JSON cannot write.
        return
    assert json.dumps(parse_jsonc(written).content) == written
    assert json.dumps(parse_jsonc(f"// x\n{text}\n/* y */").content) == written
    assert all(1 <= line <= text.count("\n") + 1 for line in document.lines.values())
    if strict:
        assert json.dumps(model) == written


@target
def dotenv(data: bytes) -> None:
    """What was read can be written with quotes and read again; an error shows no value."""
    try:
        text = data.decode("utf-8")
    except ValueError:
        return
    try:
        variables = parse_dotenv(text)
    except NotDotenv as error:
        assert 1 <= error.line <= text.count("\n") + 1
        assert str(error) == str(NotDotenv(1))
        return
    quoted = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r")
        for name, value in variables.items()
    }
    again = "".join(f'export {name} = "{value}" # x\n' for name, value in quoted.items())
    assert parse_dotenv(again) == variables
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) for name in variables)


_SECRET = "9d1f-secret-of-the-operator"


@target
def expansion(data: bytes) -> None:
    """Text without variables stays as it is, and no error shows the value of one."""
    try:
        text = data.decode("utf-8")
    except ValueError:
        return
    variables = {"NAME": _SECRET, "EMPTY": ""}
    result, problems = expand(text, variables, {"workspaceFolder": "/w"}, lambda path: _SECRET)
    assert not any(_SECRET in each for each in problems)
    assert "\n".join(problems).count("${") <= 2 * text.count("${") * 3
    if "${" not in text and "$$" not in text:
        assert (result, problems) == (text, [])
    assert expand(text.replace("$", "$$"), {}, {}, str) == (text, [])
    name = bare_variable(text)
    assert name is None or text == f"${name}"
