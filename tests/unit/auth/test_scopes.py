"""Which scopes a request needs, and which a caller has."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.auth.scopes import ScopeRules, for_challenge


@pytest.mark.parametrize(
    ("scopes", "always", "reads"),
    [
        ((), (), False),
        ({}, (), False),
        ("use", ("use",), False),
        (["use", "more"], ("use", "more"), False),
        ({"*": "use"}, ("use",), False),
        ({"*": ["use"], "ping": "p"}, ("use",), True),
        ({"tools/call": {"add": "adder"}}, (), True),
    ],
)
def test_what_every_request_needs(scopes: Any, always: tuple[str, ...], reads: bool) -> None:
    rules = ScopeRules(scopes)
    assert (rules.always, rules.reads_messages) == (always, reads)


RULES = ScopeRules(
    {
        "*": "use",
        "prompts/list": ["p", "use"],
        "tools/call": {"add": "adder", "db.*": ["db", "use"], "*_all": "all"},
        "resources/read": {"file:///a[1]?.txt": "one", "*": "any"},
    }
)


@pytest.mark.parametrize(
    ("method", "name", "needed"),
    [
        ("ping", None, ("use",)),
        ("prompts/list", None, ("use", "p")),
        ("Prompts/List", None, ("use",)),
        ("tools/call", "echo", ("use",)),
        ("tools/call", "add", ("use", "adder")),
        ("tools/call", "ADD", ("use",)),
        ("tools/call", "add2", ("use",)),
        ("tools/call", "db.drop", ("use", "db")),
        ("tools/call", "db.\ndrop", ("use", "db")),
        ("tools/call", "dbxdrop", ("use",)),
        ("tools/call", "db.drop_all", ("use", "db", "all")),
        ("tools/call", None, ("use", "adder", "db", "all")),
        ("resources/read", "file:///a[1]?.txt", ("use", "one", "any")),
        ("resources/read", "file:///a1x.txt", ("use", "any")),
        ("resources/read", "", ("use", "any")),
    ],
)
def test_what_a_message_needs(method: str, name: str | None, needed: tuple[str, ...]) -> None:
    """In a pattern `*` alone matches other characters; without a name all may be needed."""
    assert RULES.needed(method, name) == needed


def test_which_methods_need_a_name() -> None:
    assert RULES.needs_name("tools/call")
    assert not RULES.needs_name("prompts/list")


def test_all_scopes_that_may_be_needed() -> None:
    rules = ScopeRules(
        {
            "*": ["use", "offline_access"],
            "ping": ["p", "use"],
            "tools/call": {"add": ["adder", "p"], "x": "offline_access"},
        }
    )
    assert rules.supported() == ["use", "p", "adder"]
    assert for_challenge(["use", "offline_access", "p"]) == "use p"
    assert for_challenge(["offline_access"]) == ""


def test_a_scope_includes_others_also_through_others() -> None:
    rules = ScopeRules((), {"admin": ["write", "admin"], "write": ("read",), "read": ["write"]})
    assert rules.granted(["admin"]) == {"admin", "write", "read"}
    assert rules.granted(["read", "x"]) == {"read", "write", "x"}
    assert rules.granted([]) == frozenset()


@given(st.text(), st.text())
def test_a_pattern_without_a_star_is_a_name(pattern: str, name: str) -> None:
    plain = pattern.replace("*", "")
    rules = ScopeRules({"tools/call": {plain: "s"}})
    assert rules.needed("tools/call", plain) == ("s",)
    assert rules.needed("tools/call", name) == (("s",) if name == plain else ())


@given(st.text(), st.text(), st.text())
def test_a_star_matches_anything(before: str, between: str, after: str) -> None:
    before, after = before.replace("*", ""), after.replace("*", "")
    rules = ScopeRules({"tools/call": {f"{before}*{after}": "s"}})
    assert rules.needed("tools/call", f"{before}{between}{after}") == ("s",)
