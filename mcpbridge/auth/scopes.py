"""
Which scopes a request needs, and which a caller has.

Knows names of scopes and of MCP's methods; must not know whom they are granted to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: The key of scopes that every request needs.
EVERY_REQUEST = "*"
#: Asked for by clients that want a refresh token, and of no use to a resource server: neither
#: a challenge nor the metadata names it (MCP 2026-07-28, basic/authorization).
_OFFLINE = "offline_access"


def _listed(scopes: Any) -> tuple[str, ...]:
    return (scopes,) if isinstance(scopes, str) else tuple(scopes)


def _pattern(name: str) -> re.Pattern[str]:
    """Compile a name in which `*`, and nothing else, matches any characters."""
    return re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)


class ScopeRules:
    """
    The setting `scopes` of a server: by method, and by the name of what a method is about.

    `hierarchy` tells which scopes a scope includes, directly or through others.
    """

    def __init__(self, scopes: Any = (), hierarchy: Mapping[str, Iterable[str]] = {}) -> None:
        rules = scopes if isinstance(scopes, Mapping) else {EVERY_REQUEST: scopes}
        #: Those that every request needs.
        self.always: tuple[str, ...] = ()
        self._of_methods: dict[str, tuple[str, ...]] = {}
        self._of_names: dict[str, list[tuple[re.Pattern[str], tuple[str, ...]]]] = {}
        for method, needed in rules.items():
            if isinstance(needed, Mapping):
                self._of_names[method] = [
                    (_pattern(name), _listed(x)) for name, x in needed.items()
                ]
            elif method == EVERY_REQUEST:
                self.always = _listed(needed)
            else:
                self._of_methods[method] = _listed(needed)
        self._hierarchy = {each: tuple(included) for each, included in hierarchy.items()}

    @property
    def reads_messages(self) -> bool:
        """True if what a request needs depends on its message."""
        return bool(self._of_methods or self._of_names)

    def needs_name(self, method: str) -> bool:
        """Tell whether what a request of a method needs depends on the name in it."""
        return method in self._of_names

    def needed(self, method: str, name: str | None = None) -> tuple[str, ...]:
        """Return all scopes that a message needs, each once."""
        found = [*self.always, *self._of_methods.get(method, ())]
        for pattern, scopes in self._of_names.get(method, ()):
            if name is None or pattern.fullmatch(name):
                found += scopes
        return tuple(dict.fromkeys(found))

    def granted(self, scopes: Iterable[str]) -> frozenset[str]:
        """Return these scopes, and all that they include."""
        found: set[str] = set()
        waiting = list(scopes)
        while waiting:
            scope = waiting.pop()
            if scope not in found:
                found.add(scope)
                waiting += self._hierarchy.get(scope, ())
        return frozenset(found)

    def supported(self) -> list[str]:
        """Return all scopes that any request may need, for the metadata of the server."""
        named = (scopes for rules in self._of_names.values() for _, scopes in rules)
        found = [*self.always, *_joined(self._of_methods.values()), *_joined(named)]
        return [each for each in dict.fromkeys(found) if each != _OFFLINE]


def for_challenge(scopes: Iterable[str]) -> str:
    """Return the value of `scope` in a challenge."""
    return " ".join(each for each in scopes if each != _OFFLINE)


def _joined(lists: Iterable[tuple[str, ...]]) -> list[str]:
    return [scope for each in lists for scope in each]
