"""Which names are there for whom."""

from __future__ import annotations

import unicodedata
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpbridge.config.name_lists import NameLists, read_name_lists
from mcpbridge.mcp.name_rules import (
    DECISIONS_KEPT,
    IDENTITIES_KEPT,
    KINDS,
    LONGEST_KEPT,
    LONGEST_NAME,
    Kind,
    KindRules,
    NameRules,
    folded,
)


def rules(value: Any, kind: Kind = "tools") -> KindRules:
    return KindRules(kind, read_name_lists(value))


def allows(value: Any, name: str, identity: str = "", kind: Kind = "tools") -> bool:
    return rules(value, kind).allows(name, identity)


@pytest.mark.parametrize(
    ("value", "name", "there"),
    [
        (None, "a", True),
        ({"allow": ["a"]}, "a", True),
        ({"allow": ["a"]}, "A", False),
        ({"allow": ["a"]}, " a", False),
        ({"allow": []}, "a", False),
        ({"allow": ["a*"]}, "ab", True),
        ({"allow": ["a*"]}, "ba", False),
        ({"allow": ["a?"]}, "ab", True),
        ({"allow": ["a?"]}, "abc", False),
        ({"allow": ["a[bc]"]}, "ac", True),
        ({"allow": ["a[!bc]"]}, "ac", False),
        ({"allow": ["a[*]"]}, "a*", True),
        ({"allow": ["a[*]"]}, "ab", False),
        ({"allow": ["*"], "deny": ["a"]}, "a", False),
        ({"allow": ["a"], "deny": ["a"]}, "a", False),
        ({"deny": ["a"]}, "b", True),
        ({"deny": ["a"]}, "A", False),
        ({"deny": ["A"]}, "a", False),
        ({"deny": ["a"]}, "\t a\n", False),
        ({"deny": ["a"]}, "\uff41", False),
        ({"deny": ["\uff41"]}, "a", False),
        ({"deny": ["stra\u00dfe"]}, "STRASSE", False),
        ({"deny": ["set_*"]}, "\u017fET_x", False),
        ({"deny": ["a"]}, "a\0b", False),
        ({"deny": ["a"]}, "\ufeffa", False),
        ({"deny": ["ab"]}, "a\u200bb\u00ad", False),
        ({"deny": ["ab"]}, "a\u3164\ufe0fb", False),
        ({"deny": ["a\u200bb"]}, "ab", False),
        ({"allow": ["*_read"]}, "delete\0_read", False),
        ({"allow": ["a"]}, "a\0b", False),
        ({"deny": ["A*"]}, "ab", False),
        ({"deny": ["[!a]x"]}, "bx", False),
        ({"deny": ["[!a]x"]}, "ax", True),
        # What folding makes of a letter is no glob.
        ({"deny": ["a\uff0a"]}, "a*", False),
        ({"deny": ["a\uff0a"]}, "ab", True),
        ({"deny": ["a\uff1f"]}, "ab", True),
        ({"deny": ["a\uff3bb"]}, "A[B", False),
    ],
)
def test_names(value: Any, name: str, there: bool) -> None:
    assert allows(value, name) is there


SECRET = {"deny": ["file:///secret/*"]}
PUBLIC = {"allow": ["file:///pub/*"]}


@pytest.mark.parametrize(
    "uri",
    [
        "file:///secret/x",
        "FILE:///secret/x",
        "file:///SECRET/x",
        "file:///%73ecret/x",
        "file:///%2573ecret/x",
        "file:///secret%2fx",
        "file:///secret%5cx",
        "file:///pub/../secret/x",
        "file:///pub/%2e%2e/secret/x",
        "file:///pub/..%2F..%2Fsecret/x",
        "file:///./secret/./x",
        "file:////secret//x",
        "file:/secret/x",
        "file://localhost/secret/x",
        "file:///secret/x?y",
        "file:///secret/x#y",
        "file:///pub?/../secret/x",
        "file:///pub#/../secret/x",
        "file:///secret",
        "file:///secret/",
        " file:///secret/x\n",
        "file:///\uff53ecret/x",
    ],
)
def test_no_spelling_reaches_what_is_denied(uri: str) -> None:
    assert not allows(SECRET, uri, kind="resources")
    assert not allows(PUBLIC, uri, kind="resources")


@pytest.mark.parametrize(
    "uri",
    [
        "file:///pub/x",
        "file:///pub/x/y.md",
        "file:///pub/",
        "file:///pub/a%20b",
        "file:///pub/x?y=1",
    ],
)
def test_what_is_allowed(uri: str) -> None:
    assert allows(SECRET, uri, kind="resources")
    assert allows(PUBLIC, uri, kind="resources")


@pytest.mark.parametrize(
    "uri",
    [
        "file:///pub/../x",
        "file:///pub/%2e%2e/x",
        "file:///pub/..%2fx",
        "file:///pub/..\\x",
        "file:///pub/y?/../../x",
        "file:///pub/%252e%252e/x",
        "FILE:///pub/x",
        "file:///PUB/x",
    ],
)
def test_what_is_allowed_is_so_in_each_form(uri: str) -> None:
    assert not allows(PUBLIC, uri, kind="resources")


@pytest.mark.parametrize(
    ("value", "uri", "there"),
    [
        ({"allow": ["memo://one"]}, "memo://one", True),
        ({"allow": ["memo://one"]}, "memo://two", False),
        ({"allow": ["memo://%6Fne"]}, "memo://one", False),
        ({"allow": ["x://a%2Fb"]}, "x://a%2Fb", True),
        ({"allow": ["x://a%2Fb"]}, "x://a/b", False),
        ({"allow": ["note"]}, "note", True),
        ({"allow": ["*.md"]}, "file:///pub/x.md", True),
        ({"allow": ["*://HOST/*"], "deny": ["*/x"]}, "http://HOST/x", False),
        ({"allow": []}, "memo://one", False),
        ({"allow": ["x://a?b=[1]"]}, "x://a?b=[1]", True),
        ({"allow": ["x://a?b=[1]"]}, "x://a?b=1", False),
        ({"allow": ["x://?*"]}, "x://ab", False),
        ({"deny": ["*secret*"]}, "file:///a/SECRET.txt", False),
        ({"allow": ["file:///pub/*.md"]}, "file:///pub/key\0.md", False),
        ({"deny": ["x://a?b"]}, "x://a", False),
        ({"allow": ["x:///{path}"]}, "x:///{path}", True),
        ({"allow": ["x:///{path}"]}, "x:///{other}", False),
    ],
)
def test_resources(value: Any, uri: str, there: bool) -> None:
    assert allows(value, uri, kind="resources") is there


def test_what_is_too_long_is_not_there() -> None:
    assert allows({"allow": ["a*"]}, "a" * LONGEST_NAME)
    assert not allows({"allow": ["a*"]}, "a" * (LONGEST_NAME + 1))
    assert not allows({"deny": ["b"]}, "a" * (LONGEST_NAME + 1))
    only_bob = {"identities": {"bob": {"deny": ["b"]}}}
    assert allows(only_bob, "a" * (LONGEST_NAME + 1), "alice")


def test_identities() -> None:
    found = rules(
        {
            "deny": ["root"],
            "identities": {
                "token#alice": {"allow": ["a", "root"]},
                "token#*": {"deny": ["x"]},
                "oauth#[a]": {"deny": ["y"]},
                "nobody": {"allow": ["*"]},
            },
        }
    )
    assert found.depends_on_identity
    assert [found.allows(each, "token#alice") for each in ("a", "b", "x", "root")] == [
        *(True, False, False, False)
    ]
    assert [found.allows(each, "token#bob") for each in ("a", "b", "x", "root")] == [
        *(True, True, False, False)
    ]
    assert [found.allows(each, "") for each in ("a", "x", "root")] == [True, True, False]
    assert [found.allows("y", each) for each in ("oauth#[a]", "oauth#a")] == [False, True]
    assert not rules({"deny": ["a"]}).depends_on_identity


def test_what_is_remembered_has_a_bound() -> None:
    found = rules({"deny": ["x"], "identities": {"*": {"deny": ["y"]}}})
    for number in range(IDENTITIES_KEPT + 2):
        assert not found.allows("y", str(number))
    assert len(found._known) == 2
    for number in range(DECISIONS_KEPT + 2):
        assert found.allows(str(number), "")
    assert len(found._decided) <= DECISIONS_KEPT
    before = len(found._decided)
    assert found.allows("a" * (LONGEST_KEPT + 1), "")
    assert len(found._decided) == before
    assert not found.allows("x", "")
    assert not found.allows("x", "")


def test_patterns_and_where_they_stand() -> None:
    value = {"allow": ["a*"], "deny": ["b"], "identities": {"token#*": {"allow": ["c"]}}}
    found = [(x.setting, x.text) for x in rules(value).patterns()]
    assert found == [
        ("tools.allow", "a*"),
        ("tools.deny", "b"),
        ("tools.identities.token#*.allow", "c"),
    ]
    shared, denied, own = rules(value).patterns()
    assert shared.compiled()("ab")
    assert not shared.compiled()("b")
    assert denied.compiled()("B")
    assert not denied.compiled()("a")
    assert shared.is_for("")
    assert own.is_for("token#x")
    assert not own.is_for("x")
    [uri] = rules(["x:*"], "resources").patterns()
    assert uri.compiled()("x:a")
    assert not uri.compiled()("y:a")


def test_only_what_is_restricted_has_rules() -> None:
    lists: dict[Kind, NameLists] = dict.fromkeys(KINDS, NameLists())
    assert not NameRules(lists).of
    lists["prompts"] = read_name_lists({"identities": {"a": {"allow": []}}})
    lists["resources"] = read_name_lists({"deny": ["x:a"]})
    found = NameRules(lists)
    assert set(found.of) == {"prompts", "resources"}
    assert found.allows("tools", "a", "a")
    assert not found.allows("prompts", "a", "a")
    assert found.allows("prompts", "a", "b")
    assert not found.allows("resources", "x:a", "b")


names = st.text(st.sampled_from("aAbB*?[]!-\u017f\uff41\uff0a \u00df"), max_size=8)


@given(names, names)
@example("[", "[")
@example("a[", "A[")
def test_deny_is_at_least_what_fnmatch_says(pattern: str, name: str) -> None:
    if not pattern:
        return
    denied = not allows({"deny": [pattern]}, name)
    if fnmatchcase(name, pattern):
        assert denied
        for other in (name.upper(), name.lower(), f" {name}", unicodedata.normalize("NFKC", name)):
            if folded(other) == folded(name) and not set("*?[") & set(pattern):
                assert not allows({"deny": [pattern]}, other)
    assert allows({"allow": [pattern]}, name) is fnmatchcase(name, pattern)


@given(st.text())
def test_folding_twice_changes_nothing(text: str) -> None:
    assert folded(folded(text)) == folded(text)


def test_many_wildcards_take_no_time() -> None:
    assert not allows({"allow": ["*a" * 300 + "b"]}, "a" * LONGEST_NAME)
    assert not allows({"allow": ["x:" + "*a" * 300 + "b"]}, "x:" + "a" * 8000, kind="resources")
