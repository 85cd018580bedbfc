"""
What a legacy backend asks of the client, as a client of 2026-07-28 is asked:
an entry of `inputRequests` (basic/patterns/mrtr).

Knows the three kinds of questions and the capabilities they take; must not
know which request they belong to.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mcpbridge.errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    SERVER_ERROR,
    BridgeError,
    InvalidParams,
    MissingCapability,
)
from mcpbridge.jsonrpc.ids import same_id
from mcpbridge.jsonrpc.members import (
    Members,
    elements_of,
    encode,
    error_code_of,
    error_line,
    members,
    members_of,
    result_line,
    string_of,
)
from mcpbridge.mcp.modern_request import INPUT_REQUIRED_METHODS, ModernRequest
from mcpbridge.translation.to_modern import URL_ELICITATION_REQUIRED

ELICIT = "elicitation/create"
SAMPLE = "sampling/createMessage"
LIST_ROOTS = "roots/list"
#: What a backend may ask of a client.
QUESTIONS = frozenset({ELICIT, SAMPLE, LIST_ROOTS})

#: The most questions of a request that may be open.
MAX_QUESTIONS = 64
#: The longest id of a question that becomes a key of `inputRequests`, in characters.
MAX_KEY_LENGTH = 128
#: How many ids of a call's questions become keys; later questions are `input-N`.
MAX_NAMED_KEYS = 1024
#: What a key of the bridge's own begins with.
_OWN_KEY = "input-"

#: What 2026-07-28 does not have in the parameters of a question.
_LEGACY_PARAMS = frozenset({"_meta", "task", "elicitationId"})


class ServerRequest(NamedTuple):
    """An open request of the backend: its own id, as it stands, and what it asks."""

    ident: msgspec.Raw
    method: str
    params: Members

    def entry(self) -> dict[str, object]:
        """As a value of `inputRequests`."""
        if self.method == LIST_ROOTS and not self.params:
            return {"method": self.method}
        return {"method": self.method, "params": self.params}

    def missing(self, capabilities: bytes) -> dict[str, object] | None:
        """
        The capabilities that it takes and the client has not declared, as a
        ClientCapabilities object; None where nothing is missing.
        """
        declared = members_of(capabilities)
        if self.method == ELICIT:
            return _missing_mode(declared, _mode(self.params))
        if self.method == LIST_ROOTS:
            return None if _has(declared, "roots") else {"roots": {}}
        if self.params.keys() & {"tools", "toolChoice"}:
            sampling = _object(declared, "sampling") or {}
            return None if _has(sampling, "tools") else {"sampling": {"tools": {}}}
        return None if _has(declared, "sampling") else {"sampling": {}}


class NoQuestion(BridgeError):
    """A request of the backend is none that a client could be asked; `code` is for the backend."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def read_question(ident: msgspec.Raw, method: str, params: msgspec.Raw | None) -> ServerRequest:
    """
    A request of the backend as a question.

    Raises `NoQuestion` for another method, and for parameters that no client
    could make sense of.
    """
    if method not in QUESTIONS:
        raise NoQuestion(METHOD_NOT_FOUND, "a client of this bridge has no such method")
    given = {} if params is None else members(params)
    if given is None:
        raise NoQuestion(INVALID_PARAMS, "params is not an object")
    kept = _without_legacy(given)
    if method == ELICIT and _mode(kept) is None:
        raise NoQuestion(INVALID_PARAMS, "the mode of an elicitation is form or url")
    return ServerRequest(ident, method, kept)


def read_required(method: str, error: Members) -> list[ServerRequest]:
    """
    The questions of an error -32042, "URL elicitation required" (2025-11-25,
    client/elicitation); empty where it is another, does not say them as it
    should, or answers a method that may not ask.
    """
    if method not in INPUT_REQUIRED_METHODS or error_code_of(error) != URL_ELICITATION_REQUIRED:
        return []
    listed = elements_of(members_of(error.get("data")).get("elicitations"))
    found = []
    for each in (listed or [])[:MAX_QUESTIONS]:
        params = members_of(each)
        if _mode(params) != "url":
            return []
        found.append(ServerRequest(msgspec.Raw(b"null"), ELICIT, _without_legacy(params)))
    return found


def read_responses(request: ModernRequest) -> Members:
    """
    The `inputResponses` of a retry; none where it brings none.

    Raises `InvalidParams` where they or one of them are no objects.
    """
    raw = request.params.get("inputResponses")
    given = {} if raw is None else members(raw)
    if given is None or any(members(each) is None for each in given.values()):
        error = InvalidParams("params.inputResponses and its members must be objects")
        error.ident = request.id
        raise error
    return given


def missing_of(question: ServerRequest, request: ModernRequest) -> MissingCapability | None:
    """The answer for a request whose client has not declared what a question takes."""
    required = question.missing(request.capabilities)
    if required is None:
        return None
    names = " and ".join(required)
    error = MissingCapability(f"the server needs {names} of the client for this", required)
    error.ident = request.id
    return error


class OpenQuestions:
    """The questions of the running request that are not answered, by their keys."""

    def __init__(self) -> None:
        self.by_key: dict[str, ServerRequest] = {}
        self._keys = 0
        # Those that the server named in this call, also where they are answered.
        self._named: set[str] = set()

    def begin(self) -> None:
        """Another request runs: what was a key for the last one may be one again."""
        self._named.clear()

    def key(self, ident: msgspec.Raw | None = None) -> str:
        """
        A key of `inputRequests` that is used once in a call: clients may merge rounds.

        A string that the server gave its question as its id is the key, where
        it is unique and may be one; otherwise, and for a number, it is
        `input-N`.
        """
        named = string_of(ident)
        if named is not None and self._may_be_key(named):
            self._named.add(named)
            return named
        while True:
            self._keys += 1
            key = f"{_OWN_KEY}{self._keys}"
            if key not in self._named:
                return key

    def _may_be_key(self, named: str) -> bool:
        if len(self._named) >= MAX_NAMED_KEYS or not 0 < len(named) <= MAX_KEY_LENGTH:
            return False
        if named in self._named or any(unicodedata.category(each)[0] == "C" for each in named):
            return False
        number = named.removeprefix(_OWN_KEY)
        own = number != named and number.isascii() and number.isdigit()
        return not (own and int(number) <= self._keys)

    def add(self, question: ServerRequest) -> None:
        """The backend asks; raises `NoQuestion` where it asks too much."""
        if len(self.by_key) >= MAX_QUESTIONS:
            raise NoQuestion(INTERNAL_ERROR, f"{MAX_QUESTIONS} requests are open already")
        self.by_key[self.key(question.ident)] = question

    def answer(self, given: Members) -> list[bytes]:
        """The lines for the backend, for those that are answered."""
        keys = [key for key in self.by_key if key in given]
        return [result_line(self.by_key.pop(key).ident, given[key]) for key in keys]

    def take_back(self, ident: msgspec.Raw | None) -> None:
        """The backend needs no answer any more."""
        for key in [key for key, each in self.by_key.items() if same_id(each.ident, ident)]:
            del self.by_key[key]

    def withdraw(self, why: str) -> list[bytes]:
        """Nobody will answer them: the lines that say so to the backend."""
        lines = [error_line(each.ident, SERVER_ERROR, why) for each in self.by_key.values()]
        self.by_key.clear()
        return lines


def input_requests(questions: Mapping[str, ServerRequest]) -> msgspec.Raw:
    """The `inputRequests` of a result."""
    return msgspec.Raw(encode({key: question.entry() for key, question in questions.items()}))


def _without_legacy(params: Members) -> Members:
    return {name: each for name, each in params.items() if name not in _LEGACY_PARAMS}


def _mode(params: Members) -> str | None:
    """`form`, which may be left unsaid, or `url`; None for anything else."""
    mode = string_of(params["mode"]) if "mode" in params else "form"
    return mode if mode in ("form", "url") else None


def _missing_mode(declared: Members, mode: str | None) -> dict[str, object] | None:
    """An empty object declares forms alone (client/elicitation, "Capabilities")."""
    modes = _object(declared, "elicitation")
    if mode == "url":
        there = modes is not None and "url" in modes
        return None if there else {"elicitation": {"url": {}}}
    if modes is None:
        return {"elicitation": {}}
    return None if "form" in modes or "url" not in modes else {"elicitation": {"form": {}}}


def _has(declared: Members, name: str) -> bool:
    return bytes(declared.get(name, b"")).startswith(b"{")


def _object(outer: Members, name: str) -> Members | None:
    return members(outer[name]) if name in outer else None
