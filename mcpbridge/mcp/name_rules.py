"""
Which of a server's tools, prompts and resources are there for whom.

Knows names, patterns and identities; must not know messages.  What is denied must not be
reached in another spelling, since some servers are lenient; what is allowed must be allowed
in every form in which a server may read it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from functools import partial
from typing import Literal, NamedTuple, Protocol
from unicodedata import normalize

from mcpbridge.mcp.uri_forms import WILDCARD, UriForms, pattern_forms, uri_forms

Kind = Literal["tools", "prompts", "resources"]
KINDS: tuple[Kind, ...] = ("tools", "prompts", "resources")

#: The longest name or URI, in characters, of anything that a list may have: a longer one is not
#: there.
LONGEST_NAME = 8192
#: How many identities are remembered with the lists that hold for them, and how many names
#: with what was decided; beyond that, all are forgotten at once.
IDENTITIES_KEPT = 1000
DECISIONS_KEPT = 8192
#: The longest name that is remembered so.
LONGEST_KEPT = 256

_GLOB = frozenset("*?[")
#: What has no width, and what comparisons leave out (Unicode, Default_Ignorable_Code_Point).
_IGNORED = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


class NameList(Protocol):
    """One list of the settings; `allow` is None where all are allowed."""

    @property
    def allow(self) -> Sequence[str] | None:
        """Names and patterns of what is allowed."""
        ...

    @property
    def deny(self) -> Sequence[str]:
        """Names and patterns of what is not."""
        ...

    @property
    def restricts(self) -> bool:
        """False if it allows everything."""
        ...


class NameLists(NameList, Protocol):
    """The lists of one kind: those for all, and those for identities, by patterns."""

    @property
    def identities(self) -> Mapping[str, NameList]:
        """Lists by patterns of the names of identities."""
        ...


class Pattern(NamedTuple):
    """
    A name or pattern as it stands in the settings: where, and for which identities it holds.
    `compiled` returns what tells which names it matches.
    """

    setting: str
    text: str
    compiled: Callable[[], Callable[[str], bool]]
    is_for: Callable[[str], object]


class _Patterns:
    """Names and regular expressions, of which one has to match."""

    def __init__(self, names: Iterable[str], expressions: Iterable[str] = ()) -> None:
        self._names = frozenset(names)
        joined = "|".join(f"(?:{each})" for each in dict.fromkeys(expressions))
        self._expression = re.compile(joined) if joined else None

    def __call__(self, name: str) -> bool:
        if name in self._names:
            return True
        return self._expression is not None and self._expression.fullmatch(name) is not None


def folded(text: str) -> str:
    """
    Return a name as a lenient server may read it: without case, forms of letters, what is
    invisible in it, space around it, and what follows a NUL, which ends a text in C.
    """
    text = text.partition("\0")[0]
    if text.isascii():
        return text.strip().lower()
    plain = normalize("NFKC", normalize("NFKC", text).casefold())
    return normalize("NFKC", _IGNORED.sub("", plain)).strip()


class _Decision(ABC):
    """Decides by one list."""

    @abstractmethod
    def __init__(self, rules: NameList) -> None: ...

    @abstractmethod
    def allows(self, name: str) -> bool:
        """Tell whether something is there."""

    def denies(self, name: str) -> bool:
        """Tell whether it is not."""
        return not self.allows(name)


class _NameDecision(_Decision):
    """Decides about tools or prompts, by one list."""

    def __init__(self, rules: NameList) -> None:
        self._allowed = None if rules.allow is None else _of_names(rules.allow)
        denied = list(rules.deny)
        self._denied = _of_names([*denied, *map(_folded_glob, denied)])

    def allows(self, name: str) -> bool:
        if self._allowed is not None and ("\0" in name or not self._allowed(name)):
            # For a server in C, a NUL would end it before what the pattern wants.
            return False
        return not (self._denied(name) or self._denied(folded(name)))


class _UriDecision(_Decision):
    """Decides about resources, by one list."""

    def __init__(self, rules: NameList) -> None:
        self._allowed: list[_Patterns] | None = None
        if rules.allow is not None:
            allowed = [pattern_forms(each) for each in rules.allow]
            self._allowed = [_of_uris(forms) for forms in zip(*allowed, strict=True)] or [
                _Patterns(())
            ]
        denied = [form for each in rules.deny for form in pattern_forms(each)]
        self._denied = _of_uris([*denied, *map(folded, denied)]) if denied else None

    def allows(self, uri: str) -> bool:
        forms = uri_forms(uri)
        if self._allowed is not None and not all(
            allows(form) for allows, form in zip(self._allowed, forms, strict=False)
        ):
            return False
        return self._denied is None or not any(map(self._denied, _to_deny(forms)))


def _to_deny(forms: UriForms) -> Iterator[str]:
    """Yield all that must not be denied; a directory with a slash is one without."""
    for form in dict.fromkeys(forms):
        yield form
        yield folded(form)
    for form in dict.fromkeys((forms.path, forms.whole)):
        bare = folded(form).rstrip("/")
        yield bare
        yield bare + "/"


def _of_names(patterns: Iterable[str]) -> _Patterns:
    """Compile names, and globs as in fnmatch."""
    patterns = list(patterns)
    return _Patterns(
        (each for each in patterns if _GLOB.isdisjoint(each)),
        (translate(each) for each in patterns if not _GLOB.isdisjoint(each)),
    )


def _of_uris(patterns: Iterable[str]) -> _Patterns:
    """Compile URIs, in which `WILDCARD` stands for any characters."""
    patterns = list(patterns)
    return _Patterns(
        (each for each in patterns if WILDCARD not in each),
        (_uri_expression(each) for each in patterns if WILDCARD in each),
    )


def _uri_expression(pattern: str) -> str:
    # As a glob of fnmatch, whose expressions take linear time.
    return translate("*".join(re.sub(r"([*?[])", r"[\1]", x) for x in pattern.split(WILDCARD)))


def _folded_glob(pattern: str) -> str:
    """Fold a glob, so that what folding makes of a letter has no meaning in it."""
    parts = (
        f"[{plain}]" if each not in _GLOB and (plain := normalize("NFKC", each)) in _GLOB else each
        for each in pattern
    )
    return folded("".join(parts))


def _identity_pattern(text: str) -> Callable[[str], object]:
    """Return what tells whether a pattern, in which only `*` has a meaning, is for an identity."""
    if "*" not in text:
        return text.__eq__
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL).fullmatch


class KindRules:
    """The rules for one kind: tools, prompts or resources."""

    def __init__(self, kind: Kind, lists: NameLists) -> None:
        self.kind = kind
        self._lists = lists
        self._make: type[_Decision] = _UriDecision if kind == "resources" else _NameDecision
        self._shared = [self._make(lists)] if lists.restricts else []
        #: Those of an identity are compiled when it comes for the first time.
        self._of_identities = [
            (_identity_pattern(name), each)
            for name, each in lists.identities.items()
            if each.restricts
        ]
        self._compiled: dict[int, _Decision] = {}
        self._known: dict[str, list[_Decision]] = {}
        self._decided: dict[tuple[int, str], bool] = {}

    @property
    def depends_on_identity(self) -> bool:
        """Whether two identities may see different lists."""
        return bool(self._of_identities)

    def allows(self, name: str, identity: str) -> bool:
        """Tell whether something of this name is there for an identity."""
        decisions = self._for(identity) if self._of_identities else self._shared
        if len(name) > LONGEST_NAME:
            return not decisions
        return all(self._decide(each, name) for each in decisions)

    def _for(self, identity: str) -> list[_Decision]:
        known = self._known.get(identity)
        if known is None:
            if len(self._known) >= IDENTITIES_KEPT:
                self._known.clear()
            theirs = [
                self._decision(number, each)
                for number, (is_for, each) in enumerate(self._of_identities)
                if is_for(identity)
            ]
            known = self._known[identity] = [*self._shared, *theirs]
        return known

    def _decision(self, number: int, lists: NameList) -> _Decision:
        """Return the decision by the list of this number."""
        found = self._compiled.get(number)
        if found is None:
            found = self._compiled[number] = self._make(lists)
        return found

    def _decide(self, decision: _Decision, name: str) -> bool:
        key = id(decision), name
        found = self._decided.get(key)
        if found is None:
            found = decision.allows(name)
            if len(name) <= LONGEST_KEPT:
                if len(self._decided) >= DECISIONS_KEPT:
                    self._decided.clear()
                self._decided[key] = found
        return found

    def patterns(self) -> Iterator[Pattern]:
        """Yield each pattern of the settings, with the setting that has it."""
        yield from self._patterns(self.kind, self._lists, lambda identity: True)
        for name, each in self._lists.identities.items():
            is_for = _identity_pattern(name)
            yield from self._patterns(f"{self.kind}.identities.{name}", each, is_for)

    def _patterns(
        self, place: str, lists: NameList, is_for: Callable[[str], object]
    ) -> Iterator[Pattern]:
        for text in lists.allow or ():
            yield Pattern(f"{place}.allow", text, partial(self._allows_by, text), is_for)
        for text in lists.deny:
            yield Pattern(f"{place}.deny", text, partial(self._denies_by, text), is_for)

    def _allows_by(self, text: str) -> Callable[[str], bool]:
        return self._make(_Single(allow=[text])).allows

    def _denies_by(self, text: str) -> Callable[[str], bool]:
        return self._make(_Single(deny=[text])).denies


class _Single(NamedTuple):
    """One name of the settings, as a list of its own."""

    allow: Sequence[str] | None = None
    deny: Sequence[str] = ()
    restricts: bool = True


class NameRules:
    """The rules of one server, for those kinds that are restricted for anybody."""

    def __init__(self, lists: Mapping[Kind, NameLists]) -> None:
        self.of: dict[Kind, KindRules] = {
            kind: KindRules(kind, each)
            for kind, each in lists.items()
            if each.restricts or any(one.restricts for one in each.identities.values())
        }

    def allows(self, kind: Kind, name: str, identity: str) -> bool:
        """Tell whether something is there for an identity."""
        rules = self.of.get(kind)
        return rules is None or rules.allows(name, identity)
