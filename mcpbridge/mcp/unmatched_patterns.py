"""
Names and patterns of the settings that match nothing of what a server has: most likely
mistakes.

Knows patterns and the lists that pass; must not know who reads the warnings.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

from mcpbridge.mcp.name_rules import KINDS, Kind, NameRules, Pattern
from mcpbridge.mcp.visible_lists import LIST_MEMBERS

#: How many names and patterns of the settings of one kind are looked at.
MAX_PATTERNS = 10_000
#: How many names of one kind are collected, and how often one is compared with a pattern;
#: beyond that there are no warnings about the kind.
MAX_COLLECTED = 10_000
MAX_COMPARISONS = 20_000
#: With how many names a pattern is compared for a hint, and how many warnings there are for
#: one list.
HINTED_NAMES = 500
MAX_WARNINGS = 20


class UnmatchedPatterns:
    """
    Collects what a server lists until a list is complete, and then finds what matches nothing.

    The pages of a list may be read by several clients: nobody gets a page whose cursor
    nobody got.  Each pattern is looked at once.
    """

    def __init__(self, rules: NameRules) -> None:
        self._waiting: dict[Kind, list[Pattern]] = {
            kind: list(islice(rules.of[kind].patterns(), MAX_PATTERNS)) if kind in rules.of else []
            for kind in KINDS
        }
        self._names: dict[str, dict[str, None]] = {member: {} for member in LIST_MEMBERS}
        self._complete: set[str] = set()

    def listed(self, member: str, names: Iterable[str], more: bool, identity: str) -> list[str]:
        """
        Take a page of a list that this identity gets; `more` if others follow.  Return
        warnings.
        """
        kind = LIST_MEMBERS[member].kind
        waiting = self._waiting[kind]
        if not waiting:
            return []
        known = self._names[member]
        known.update(dict.fromkeys(names))
        if len(known) > MAX_COLLECTED:
            self._give_up(kind)
        elif not more:
            self._complete.add(member)
            if kind != "resources":
                return self._compare(kind, known, identity)
            if self._names["resourceTemplates"]:
                # A pattern may be about resources that are in no list.
                self._give_up(kind)
            elif self._complete >= {"resources", "resourceTemplates"}:
                return self._compare(kind, self._names["resources"], identity)
        return []

    def _give_up(self, kind: Kind) -> None:
        self._waiting[kind] = []
        for member, each in LIST_MEMBERS.items():
            if each.kind == kind:
                self._names[member] = {}

    def _compare(self, kind: Kind, names: dict[str, None], identity: str) -> list[str]:
        waiting = self._waiting[kind]
        due = [each for each in waiting if each.is_for(identity)]
        self._waiting[kind] = [each for each in waiting if not each.is_for(identity)]
        unmatched: list[Pattern] = []
        left = MAX_COMPARISONS
        for pattern in due:
            if pattern.text in names:
                continue
            left -= len(names)
            if left < 0:
                break
            if not any(map(pattern.compiled(), names)):
                unmatched.append(pattern)
        warnings = [_warning(kind, each, names) for each in unmatched[:MAX_WARNINGS]]
        if len(unmatched) > MAX_WARNINGS:
            more = len(unmatched) - MAX_WARNINGS
            warnings.append(f"{kind}: {more} other names of the settings match nothing either")
        if not self._waiting[kind]:
            self._give_up(kind)
        return warnings


def _warning(kind: Kind, pattern: Pattern, names: dict[str, None]) -> str:
    near = get_close_matches(pattern.text, list(names)[:HINTED_NAMES], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "correct it, or remove it"
    return (
        f"{pattern.setting}: {pattern.text!r} matches none of the {len(names)} {kind} that the"
        f" server has listed; {hint}"
    )
