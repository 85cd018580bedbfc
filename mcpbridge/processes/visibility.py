"""
What of a server's tools, prompts and resources is there for each client: the one object
that requests and answers pass, whichever transport they come by.

Knows the rules and messages; must not know HTTP, nor who has which session.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from twisted.logger import Logger

from mcpbridge.config.name_lists import NameLists
from mcpbridge.jsonrpc.envelope import split_batch
from mcpbridge.jsonrpc.recent_set import Recent
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.name_rules import KINDS, Kind, NameRules
from mcpbridge.mcp.named_requests import PASSES, judge, judge_request
from mcpbridge.mcp.unmatched_patterns import UnmatchedPatterns
from mcpbridge.mcp.visible_lists import VisibleLists

#: How many identities have what is there for them kept ready.
VIEWS_KEPT = 1000
#: Of so many patterns it is remembered that there was a warning.
WARNINGS_KEPT = 1000


class VisiblePost(NamedTuple):
    """What is left of the messages of one POST."""

    passed: list[bytes]
    #: The index that each of those had.
    places: list[int]
    #: The answers to the requests for what is not there.
    answers: list[bytes]
    #: The indexes of the messages that were dropped.
    dropped: Collection[int]


class _View:
    """What is there for one identity."""

    def __init__(
        self, rules: NameRules, identity: str, listed: Callable[[str, list[str], bool, str], None]
    ) -> None:
        self._rules = rules
        self._identity = identity
        private = [kind for kind, each in rules.of.items() if each.depends_on_identity]
        self.lists = VisibleLists(
            self.allows,
            rules.of,
            private,
            lambda member, names, more: listed(member, names, more, identity),
        )

    def allows(self, kind: Kind, name: str) -> bool:
        return self._rules.allows(kind, name, self._identity)


class Visibility:
    """
    The lists of one server.

    `rules` are None where they restrict nobody: then nothing else is to be asked.
    `changed` is called with the kinds whose lists have become others.
    """

    log = Logger()

    def __init__(
        self,
        server: str,
        tools: NameLists,
        prompts: NameLists,
        resources: NameLists,
        changed: Callable[[Collection[Kind]], object] = lambda kinds: None,
    ) -> None:
        self._server = server
        self._changed = changed
        #: What was warned of: a list that comes again is none for another warning.
        self._warned: Recent[str] = Recent(WARNINGS_KEPT)
        self._views: dict[str, _View] = {}
        self.rules: NameRules | None = None
        self._use(tools, prompts, resources)

    def replace(self, tools: NameLists, prompts: NameLists, resources: NameLists) -> None:
        """Have other lists hold from now on, for living sessions, too."""
        before = self._lists
        self._use(tools, prompts, resources)
        kinds = [kind for kind in KINDS if self._lists[kind] != before[kind]]
        if kinds:
            self._changed(kinds)

    def _use(self, tools: NameLists, prompts: NameLists, resources: NameLists) -> None:
        self._lists: dict[Kind, NameLists] = {
            "tools": tools,
            "prompts": prompts,
            "resources": resources,
        }
        rules = NameRules(self._lists)
        self._views.clear()
        self.rules = rules if rules.of else None
        self._unmatched = UnmatchedPatterns(rules)

    # Messages of sessions.

    def from_client(
        self, identity: str, lines: Sequence[bytes], digests: Sequence[bytes] | None
    ) -> VisiblePost | None:
        """
        Look at the messages of one POST, each a message or a batch; of large ones `digests`
        have the names.  Return None if all of it passes as it is.
        """
        view = self._view(identity)
        if view is None:
            return None
        if len(lines) == 1 and judge(digests[0] if digests else lines[0], view.allows) is PASSES:
            # Nearly every one.
            return None
        post = VisiblePost([], [], [], set[int]())
        for number, line in enumerate(lines):
            kept = self._kept(view, line, digests[number] if digests else line, post.answers)
            if kept is not None:
                post.passed.append(kept)
                post.places.append(number)
        if post.places == list(range(len(lines))) and post.passed == list(lines):
            return None
        dropped = set(range(len(lines))) - set(post.places)
        return post._replace(dropped=dropped)

    def _kept(self, view: _View, line: bytes, digest: bytes, answers: list[bytes]) -> bytes | None:
        """Return what is left of a line; None for nothing."""
        verdict = judge(digest, view.allows)
        if verdict is None:
            elements = split_batch(line) or []
            kept = [each for each in elements if self._passes(view, each, answers)]
            if len(kept) == len(elements):
                return line
            return b"[" + b",".join(kept) + b"]" if kept else None
        if verdict.answer is not None:
            answers.append(verdict.answer)
        return line if verdict.passes else None

    def _passes(self, view: _View, element: bytes, answers: list[bytes]) -> bool:
        verdict = judge(element, view.allows)
        if verdict is not None and verdict.answer is not None:
            answers.append(verdict.answer)
        return verdict is None or verdict.passes

    def to_client(self, identity: str, lines: list[bytes]) -> list[bytes]:
        """Return messages for a client without what is not there for it."""
        view = self._view(identity)
        if view is None:
            return lines
        filtered = view.lists.filtered
        return [kept for line in lines if (kept := filtered(line)) is not None]

    # Requests of 2026-07-28.

    def judged(self, identity: str, request: ModernRequest) -> bytes | ModernRequest:
        """
        Return the answer to a request for what is not there; else the request as it is to
        pass, which is nearly always the same one.
        """
        view = self._view(identity)
        return request if view is None else judge_request(request, view.allows)

    def _view(self, identity: str) -> _View | None:
        view = self._views.get(identity)
        if view is None and self.rules is not None:
            if len(self._views) >= VIEWS_KEPT:
                self._views.clear()
            view = self._views[identity] = _View(self.rules, identity, self._listed)
        return view

    # Warnings.

    def _listed(self, member: str, names: list[str], more: bool, identity: str) -> None:
        for warning in self._unmatched.listed(member, names, more, identity):
            setting = warning.partition(" matches ")[0]
            if setting not in self._warned:
                self._warned.add(setting)
                self.log.warn("server {server!r}: {warning}", server=self._server, warning=warning)
