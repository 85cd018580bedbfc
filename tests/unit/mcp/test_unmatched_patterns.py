"""Patterns of the settings that match nothing."""

from __future__ import annotations

from typing import Any

from mcpbridge.config.name_lists import NameLists, read_name_lists
from mcpbridge.mcp.name_rules import KINDS, Kind, NameRules
from mcpbridge.mcp.unmatched_patterns import (
    HINTED_NAMES,
    MAX_COLLECTED,
    MAX_COMPARISONS,
    MAX_PATTERNS,
    MAX_WARNINGS,
    UnmatchedPatterns,
)


def patterns(**values: Any) -> UnmatchedPatterns:
    lists: dict[Kind, NameLists] = {kind: read_name_lists(values.get(kind)) for kind in KINDS}
    return UnmatchedPatterns(NameRules(lists))


def test_after_the_last_page_each_is_warned_of_once() -> None:
    found = patterns(tools={"allow": ["read_fil", "read_*", "zzz"], "deny": ["ECHO", "echos"]})
    assert found.listed("tools", ["echo", "read_file"], True, "") == []
    assert found.listed("tools", ["write"], False, "") == [
        (
            "tools.allow: 'read_fil' matches none of the 3 tools that the server has listed;"
            " did you mean 'read_file'?"
        ),
        (
            "tools.allow: 'zzz' matches none of the 3 tools that the server has listed;"
            " correct it, or remove it"
        ),
        (
            "tools.deny: 'echos' matches none of the 3 tools that the server has listed;"
            " did you mean 'echo'?"
        ),
    ]
    assert found.listed("tools", ["write"], False, "") == []


def test_what_is_exact_is_matched() -> None:
    assert patterns(tools=["a"]).listed("tools", ["a"], False, "") == []


def test_other_kinds() -> None:
    found = patterns(prompts=["a"])
    assert found.listed("tools", ["b"], False, "") == []
    assert len(found.listed("prompts", ["b"], False, "")) == 1


def test_lists_of_identities_wait_for_these() -> None:
    found = patterns(tools={"identities": {"token#bob": {"deny": ["x"]}}})
    assert found.listed("tools", ["a"], False, "token#alice") == []
    [warning] = found.listed("tools", ["a"], False, "token#bob")
    assert warning.startswith("tools.identities.token#bob.deny: 'x' matches none of the 1 tools")
    assert found.listed("tools", ["a"], False, "token#bob") == []


def test_resources_are_compared_only_where_there_are_no_templates() -> None:
    without = patterns(resources=["x:*"])
    assert without.listed("resources", ["a:b"], False, "") == []
    assert len(without.listed("resourceTemplates", [], False, "")) == 1
    with_templates = patterns(resources=["x:*"])
    assert with_templates.listed("resourceTemplates", ["x:{a}"], False, "") == []
    assert with_templates.listed("resources", ["a:b"], False, "") == []


def test_the_number_of_names_has_a_bound() -> None:
    found = patterns(tools=["x"])
    assert found.listed("tools", map(str, range(MAX_COLLECTED + 1)), True, "") == []
    assert found.listed("tools", ["a"], False, "") == []


def test_the_number_of_comparisons_has_a_bound() -> None:
    names = [str(number) for number in range(MAX_COMPARISONS // 2)]
    found = patterns(tools=["x", "y", "z"])
    assert [each.split("'")[1] for each in found.listed("tools", names, False, "")] == ["x", "y"]


def test_the_number_of_warnings_has_a_bound() -> None:
    found = patterns(tools=[f"x{number}" for number in range(MAX_WARNINGS + 2)])
    warnings = found.listed("tools", ["a"], False, "")
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1] == "tools: 2 other names of the settings match nothing either"


def test_only_some_names_are_hints() -> None:
    names = [f"{number:09}" for number in range(HINTED_NAMES)]
    found = patterns(tools=["ech"])
    [warning] = found.listed("tools", [*names, "echo"], False, "")
    assert warning.endswith("correct it, or remove it")


def test_the_number_of_patterns_has_a_bound() -> None:
    most = ["a"] * 1000
    identities = {f"token#{number}": {"deny": most} for number in range(MAX_PATTERNS // 1000)}
    found = patterns(tools={"identities": {**identities, "token#last": {"deny": ["x"]}}})
    assert found.listed("tools", ["b"], False, "token#last") == []
