"""The fields of the log have the same names everywhere, so that programs find them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpbridge.logs.json_lines import FIRST_FIELDS

PACKAGE = Path(__file__).parents[2] / "mcpbridge"
METHODS = {"debug", "info", "warn", "error", "critical", "failure", "emit"}

#: What a session, a server, an identity and a reason are called.
AGREED = {"server", "session", "identity", "reason"}
#: The names of all other fields.  None of these may be a session, a server, an identity or a
#: reason under another name.
OTHERS = """
    address advice after all before bytes_in bytes_out caller changed command confinement
    containers count dropped ended engine era error file files filter hint hosts host ident issuer
    limit line lost left messages_in messages_out missing mode most note origin path pause pid
    problem processes rate refused report seconds sessions setting signal size state stderr text
    timeout times url used waiting warning what when which
"""


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in ("exec_shim.py", "watchdog_program.py", "testing.py", "demo.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _is_log_call(node):
                where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                yield where, node


def _is_log_call(node: ast.Call) -> bool:
    match node.func:
        case ast.Attribute(ast.Name(name) | ast.Attribute(_, name), method):
            return method in METHODS and name.strip("_").split("_")[-1] in ("log", "lines")
    return False


CALLS = list(log_calls())


def test_there_are_log_calls() -> None:
    """The walker itself: where it were blind, the rules below would hold by chance."""
    assert len(CALLS) > 100


@pytest.mark.parametrize(("where", "call"), CALLS, ids=[where for where, _ in CALLS])
def test_fields_have_agreed_names(where: str, call: ast.Call) -> None:
    for keyword in call.keywords:
        assert keyword.arg is not None, f"{where}: the fields must be written out"
        assert keyword.arg in AGREED.union(OTHERS.split()), f"{where}: {keyword.arg}"
        assert keyword.arg not in {*FIRST_FIELDS, "traceback"}, where
        match keyword.value:
            case ast.Attribute(_, "label" | "_label" | "ident") | ast.Name("label"):
                assert keyword.arg == "session", f"{where}: a session is `session`"
            case ast.Attribute(ast.Attribute(_, "settings" | "_settings"), "name"):
                assert keyword.arg == "server", f"{where}: a server is `server`"
            case ast.Attribute(_, "caller_name"):
                assert keyword.arg == "identity", f"{where}: an identity is `identity`"
            case ast.Attribute(_, "reason" | "why") | ast.Name("why" | "reason"):
                assert keyword.arg == "reason", f"{where}: a reason is `reason`"


@pytest.mark.parametrize(("where", "call"), CALLS, ids=[where for where, _ in CALLS])
def test_text_is_a_format(where: str, call: ast.Call) -> None:
    """What is put into the text beforehand is no field; braces in it would be read as a format."""
    assert not [arg for arg in call.args if isinstance(arg, ast.JoinedStr)], where
