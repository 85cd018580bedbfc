"""
A call of a legacy client that a modern backend answers with questions: what
the client can be asked, and which answers are still to come (2026-07-28,
basic/patterns/mrtr).

Knows `input_required` results, questions and their deadlines; must not know
how a call is sent to the backend.  Each step is O(1), for a round O(1) for
each question of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mcpbridge.errors import InvalidParams
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.members import (
    cancellation_line,
    is_null,
    members,
    members_of,
    request_line,
    string_of,
)
from mcpbridge.mcp.modern_request import TASKS
from mcpbridge.translation.client_calls import ClientCall

#: How often a call may come back with questions.
MAX_ROUNDS = 8
#: How long a client may take for the questions of one round, in seconds.
LEG_SECONDS = 600.0
#: How long a call waits that comes back with `requestState` alone, in seconds.
PACE_SECONDS = 0.25
#: How many questions to a client may be open at a time.
MAX_QUESTIONS = 256

#: The revision that has brought URL mode, and `mode` itself.
_WITH_MODES = "2025-11-25"
_DECLINED = msgspec.Raw(b'{"action":"decline"}')
_PREFIX = "bridge:"
_ELICIT, _SAMPLE, _ROOTS = "elicitation/create", "sampling/createMessage", "roots/list"


class CannotAsk(Exception):
    """The client cannot be asked what the backend wants to know; why, as the client reads it."""


class InputCapabilities(msgspec.Struct, frozen=True):
    """
    What a client can be asked.

    `declared` is what the backend is told: the client's capabilities but for
    those that 2026-07-28 does not have.
    """

    declared: Mapping[str, object]
    forms: bool = False
    urls: bool = False
    sampling: bool = False
    sampling_tools: bool = False
    roots: bool = False
    modes: bool = False


def read_input_capabilities(capabilities: msgspec.Raw | None, version: str) -> InputCapabilities:
    """
    The capabilities of an `initialize` in a session of that revision; a null
    is as good as none.  Raises `InvalidParams` where one is no object.
    """
    declared = dict(_parts(capabilities, "capabilities"))
    declared.pop("tasks", None)
    inner: dict[str, dict[str, msgspec.Raw]] = {}
    for name in ("experimental", "elicitation", "extensions", "roots", "sampling"):
        if name in declared:
            inner[name] = _parts(declared[name], name)
    inner.get("extensions", {}).pop(TASKS, None)
    elicitation, sampling = inner.get("elicitation"), inner.get("sampling", {})
    inner.get("roots", {}).pop("listChanged", None)
    modes = version >= _WITH_MODES
    if elicitation is not None and not modes:
        elicitation.clear()
    return InputCapabilities(
        {**declared, **inner},
        # No mode is form mode (2025-11-25, client/elicitation, "Capabilities").
        forms=elicitation is not None and (not elicitation or "form" in elicitation),
        urls=elicitation is not None and "url" in elicitation,
        sampling="sampling" in inner,
        sampling_tools="tools" in sampling,
        roots="roots" in inner,
        modes=modes,
    )


def _parts(raw: msgspec.Raw | None, name: str) -> dict[str, msgspec.Raw]:
    """The members that are not null."""
    if raw is None:
        return {}
    parts = members(raw)
    if parts is None:
        raise InvalidParams(f"{name} is no object")
    return {key: part for key, part in parts.items() if not is_null(part)}


class InputRequest(NamedTuple):
    """What the backend asks under a key; the params as the client gets them."""

    key: str
    method: str
    params: Mapping[str, object] | None


class InputRound(NamedTuple):
    """
    One `input_required` result: what the client is to be asked, what is
    answered in its place, and the backend's state, as it stands.
    """

    questions: list[InputRequest]
    answers: dict[str, msgspec.Raw]
    state: msgspec.Raw | None


def read_round(result: Mapping[str, msgspec.Raw], client: InputCapabilities) -> InputRound:
    """
    What a result asks, of a client with these abilities.

    An elicitation that the client cannot do is declined in its place.  Raises
    `CannotAsk` for all else that it cannot, and for a result that is not one
    of 2026-07-28.
    """
    state = _unless_null(result.get("requestState"))
    if state is not None and not bytes(state).startswith(b'"'):
        raise CannotAsk("the server's requestState is no string")
    requests = _unless_null(result.get("inputRequests"))
    wanted = {} if requests is None else members(requests)
    if wanted is None:
        raise CannotAsk("the server's inputRequests are no object")
    if not wanted and state is None:
        raise CannotAsk("the server wants input, but does not say what")
    found = InputRound([], {}, state)
    for key, entry in wanted.items():
        question = _read_question(key, members_of(entry), client)
        if question is None:
            found.answers[key] = _DECLINED
        else:
            found.questions.append(question)
    return found


def _read_question(
    key: str, entry: Mapping[str, msgspec.Raw], client: InputCapabilities
) -> InputRequest | None:
    """One entry of `inputRequests`; None: it is declined."""
    method = string_of(entry.get("method"))
    params = members(entry["params"]) if "params" in entry else None
    if method == _ROOTS:
        if not client.roots:
            raise CannotAsk("the server asks for roots, which this client has not declared")
        return InputRequest(key, method, params)
    if method not in (_ELICIT, _SAMPLE) or params is None:
        raise CannotAsk("the server asks something that MCP 2026-07-28 does not have")
    if method == _ELICIT:
        return _read_elicitation(key, params, client)
    if not client.sampling:
        raise CannotAsk("the server asks for sampling, which this client has not declared")
    if not client.sampling_tools and not params.keys().isdisjoint(("tools", "toolChoice")):
        raise CannotAsk("the server asks for sampling with tools, which this client cannot")
    return InputRequest(key, method, params)


def _read_elicitation(
    key: str, params: Mapping[str, msgspec.Raw], client: InputCapabilities
) -> InputRequest | None:
    mode = string_of(params["mode"]) if "mode" in params else "form"
    if mode == "form" and client.forms:
        if client.modes:
            return InputRequest(key, _ELICIT, params)
        return InputRequest(key, _ELICIT, {name: params[name] for name in params if name != "mode"})
    if mode == "url" and client.urls:
        # 2025-11-25 wants an id, which this revision no longer has.
        return InputRequest(key, _ELICIT, {"elicitationId": str(uuid.uuid4()), **params})
    return None


def _unless_null(raw: msgspec.Raw | None) -> msgspec.Raw | None:
    return None if is_null(raw) else raw


class PendingInput:
    """
    The calls that wait for the client, or for the time to be sent again, and
    the bridge's own questions: `bridge:1`, `bridge:2` and on.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._questions: dict[JsonRpcId, ClientCall] = {}
        # Each with one delay for all, so what comes first is due first.
        self._legs: dict[ClientCall, float] = {}
        self._paced: dict[ClientCall, float] = {}

    @property
    def due(self) -> float | None:
        """When the first of them is due; None where none waits."""
        return min((next(iter(all_.values())) for all_ in self._both() if all_), default=None)

    def add(self, call: ClientCall, asked: InputRound, now: float) -> list[bytes]:
        """
        Let a call wait for a round; returns the questions as lines for the
        client.  A round without any, of `requestState` or declined answers
        alone, is paced: a backend cannot make the bridge spin.  Raises
        `CannotAsk` where too many are open already.
        """
        if len(self._questions) + len(asked.questions) > MAX_QUESTIONS:
            raise CannotAsk(f"no more than {MAX_QUESTIONS} questions to a client may be open")
        call.state = asked.state
        call.answers = dict(asked.answers)
        lines = []
        for key, method, params in asked.questions:
            self._asked += 1
            ident = f"{_PREFIX}{self._asked}"
            self._questions[ident] = call
            call.questions[ident] = key
            lines.append(request_line(ident, method, params))
        if lines:
            self._legs[call] = now + LEG_SECONDS
        else:
            self._paced[call] = now + PACE_SECONDS
        return lines

    def asker(self, ident: JsonRpcId | msgspec.UnsetType) -> ClientCall | None:
        """The call for which the client was asked that; None: it was not, or is answered."""
        return None if ident is msgspec.UNSET else self._questions.get(ident)

    def answer(self, call: ClientCall, ident: str, result: msgspec.Raw) -> bool:
        """The client has answered; returns whether that was the last answer of the round."""
        del self._questions[ident]
        call.answers[call.questions.pop(ident)] = result
        if not call.questions:
            del self._legs[call]
        return not call.questions

    def take_back(self, call: ClientCall, ident: str, key: str, now: float) -> None:
        """The last answer of the round could not be used: it is open again."""
        self._questions[ident] = call
        call.questions[ident] = key
        self._legs[call] = now + LEG_SECONDS

    def drop(self, call: ClientCall, answered: JsonRpcId | msgspec.UnsetType = None) -> list[bytes]:
        """A call waits no more; returns the cancellations of its questions but the answered one."""
        self._legs.pop(call, None)
        self._paced.pop(call, None)
        lines = []
        for ident in call.questions:
            del self._questions[ident]
            if ident != answered:
                lines.append(cancellation_line(ident, "the call it belongs to is over"))
        call.questions = {}
        return lines

    def late(self, now: float) -> list[ClientCall]:
        """The calls whose client has not answered in time; they wait on until dropped."""
        return _due(self._legs, now)

    def paced(self, now: float) -> list[ClientCall]:
        """The calls that have waited long enough to be sent again; they wait no more."""
        due = _due(self._paced, now)
        for call in due:
            del self._paced[call]
        return due

    def _both(self) -> tuple[dict[ClientCall, float], dict[ClientCall, float]]:
        return self._legs, self._paced


def _due(waiting: Mapping[ClientCall, float], now: float) -> list[ClientCall]:
    due = []
    for call, at in waiting.items():
        if at > now:
            break
        due.append(call)
    return due
