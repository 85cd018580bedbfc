"""
Rounds of input: a legacy client's call that a server of 2026-07-28 answers
with `input_required` (basic/patterns/mrtr).

The client gets each entry of `inputRequests` as a request, and when it has
answered all of them the call is sent again with their results.  Knows rounds,
their requests and deadlines; must not know sessions.  Each step is O(1), or
O(1) for each request of a round.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from mcpbridge.errors import INTERNAL_ERROR, InvalidParams
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId
from mcpbridge.jsonrpc.members import (
    Members,
    cancellation_line,
    error_line,
    is_null,
    members,
    members_of,
    request_line,
    result_line,
    string_of,
)
from mcpbridge.mcp.modern_request import TASKS
from mcpbridge.translation.client_calls import ClientCall, ClientCalls, Step
from mcpbridge.translation.input_requests import (
    ELICIT,
    INPUT_REQUEST_METHODS,
    LIST_ROOTS,
    CannotAsk,
    InputCapabilities,
    InputRequest,
    input_capabilities,
)
from mcpbridge.translation.to_legacy import error_message

#: How many rounds of input a call may have.
MAX_ROUNDS = 8
#: How long a client may take to answer the requests of one round, in seconds.
ANSWER_SECONDS = 600.0
#: How long a call waits that gets nothing but `requestState`, in seconds.
PACE_SECONDS = 0.25
#: How many requests to a client may be open at a time.
MAX_OPEN_INPUT_REQUESTS = 256

#: The revision that brought URL mode, and `mode` itself.
_WITH_MODES = "2025-11-25"
_DECLINED = msgspec.Raw(b'{"action":"decline"}')
_PREFIX = "bridge:"


class LegacyClientCapabilities(msgspec.Struct, frozen=True):
    """
    The capabilities of a legacy client.

    `declared` is what the server is told: all but what 2026-07-28 does not
    have.  `has_modes`: the client's revision knows modes of elicitation.
    """

    declared: Mapping[str, object]
    input: InputCapabilities
    has_modes: bool


def read_capabilities(raw: msgspec.Raw | None, version: str) -> LegacyClientCapabilities:
    """
    Read the capabilities of an `initialize`, in a session of that revision.

    Raise `InvalidParams` where one is no object; a null is as good as none.
    """
    declared = _parts(raw, "capabilities")
    declared.pop("tasks", None)
    inner: dict[str, Members] = {}
    for name in ("experimental", "elicitation", "extensions", "roots", "sampling"):
        if name in declared:
            inner[name] = _parts(declared[name], name)
    inner.get("extensions", {}).pop(TASKS, None)
    inner.get("roots", {}).pop("listChanged", None)
    has_modes = version >= _WITH_MODES
    can = input_capabilities(declared)
    if not has_modes and "elicitation" in inner:
        inner["elicitation"].clear()
        can = msgspec.structs.replace(can, forms=True, urls=False)
    return LegacyClientCapabilities({**declared, **inner}, can, has_modes)


def _parts(raw: msgspec.Raw | None, name: str) -> Members:
    """Return the members of an object that are not null."""
    if raw is None:
        return {}
    parts = members(raw)
    if parts is None:
        raise InvalidParams(f"{name} must be an object")
    return {key: part for key, part in parts.items() if not is_null(part)}


class InputRound(NamedTuple):
    """
    One `input_required` result.

    `requests` are for the client, by their keys, with the params that it
    gets; `responses` are given in its place; `state` is the server's.
    """

    requests: list[tuple[str, InputRequest]]
    responses: Members
    state: msgspec.Raw | None


def read_round(result: Members, client: LegacyClientCapabilities) -> InputRound:
    """
    Read an `input_required` result for a client with these capabilities.

    An elicitation that the client cannot take is declined for it.  Raise
    `CannotAsk` for any other request that it cannot take, and for a result
    that is not one of 2026-07-28.
    """
    state = _unless_null(result.get("requestState"))
    if state is not None and not bytes(state).startswith(b'"'):
        raise CannotAsk("the server's requestState is not a string")
    requests = _unless_null(result.get("inputRequests"))
    wanted = {} if requests is None else members(requests)
    if wanted is None:
        raise CannotAsk("the server's inputRequests is not an object")
    if not wanted and state is None:
        raise CannotAsk(
            "the server's input_required result has neither inputRequests nor requestState"
        )
    found = InputRound([], {}, state)
    for key, entry in wanted.items():
        asked = _read_entry(members_of(entry), client)
        if asked is None:
            found.responses[key] = _DECLINED
        else:
            found.requests.append((key, asked))
    return found


def _read_entry(entry: Members, client: LegacyClientCapabilities) -> InputRequest | None:
    """Read an entry of `inputRequests`; None where it is to be declined."""
    method = string_of(entry.get("method"))
    params = members(entry["params"]) if "params" in entry else None
    if method not in INPUT_REQUEST_METHODS or (params is None and method != LIST_ROOTS):
        raise CannotAsk("the server sent an input request that MCP 2026-07-28 does not have")
    asked = InputRequest(method, params)
    if method == ELICIT:
        lacks = asked.mode is None or client.input.missing(asked) is not None
        return None if lacks else _legacy_elicitation(asked, client)
    if client.input.missing(asked) is None:
        return asked
    if method == LIST_ROOTS:
        raise CannotAsk("the server asks for roots, which this client has not declared")
    if client.input.sampling:
        raise CannotAsk(
            "the server asks for sampling with tools, which this client has not declared"
        )
    raise CannotAsk("the server asks for sampling, which this client has not declared")


def _legacy_elicitation(asked: InputRequest, client: LegacyClientCapabilities) -> InputRequest:
    params = asked.params or {}
    if asked.mode == "url":
        # 2025-11-25 wants an id, which 2026-07-28 no longer has.
        ident = msgspec.Raw(b'"%b"' % str(uuid.uuid4()).encode())
        return InputRequest(ELICIT, {"elicitationId": ident, **params})
    if client.has_modes:
        return asked
    return InputRequest(ELICIT, {name: params[name] for name in params if name != "mode"})


def _unless_null(raw: msgspec.Raw | None) -> msgspec.Raw | None:
    return None if is_null(raw) else raw


class PendingInput:
    """
    The calls that wait for the client, or for the time to be sent again.

    The bridge's requests to the client have the ids `bridge:1`, `bridge:2`
    and on.
    """

    def __init__(self) -> None:
        self._last_number = 0
        self._by_id: dict[JsonRpcId, ClientCall] = {}
        # Each has one delay for all calls, so the first is due first.
        self._deadlines: dict[ClientCall, float] = {}
        self._paced: dict[ClientCall, float] = {}

    @property
    def due(self) -> float | None:
        """When the first call is due; None where none waits."""
        both = (self._deadlines, self._paced)
        return min((next(iter(each.values())) for each in both if each), default=None)

    def add(self, call: ClientCall, asked: InputRound, now: float) -> list[bytes]:
        """
        Let a call wait for a round; return the requests as lines for the client.

        A round without any, of `requestState` or declined elicitations alone,
        is paced: a server cannot make the bridge spin.  Raise `CannotAsk`
        where more than `MAX_OPEN_INPUT_REQUESTS` would be open.
        """
        if len(self._by_id) + len(asked.requests) > MAX_OPEN_INPUT_REQUESTS:
            raise CannotAsk(
                f"no more than {MAX_OPEN_INPUT_REQUESTS} input requests to a client may be open"
            )
        call.state = asked.state
        call.responses = dict(asked.responses)
        lines = []
        for key, (method, params) in asked.requests:
            self._last_number += 1
            ident = f"{_PREFIX}{self._last_number}"
            self._by_id[ident] = call
            call.keys[ident] = key
            lines.append(request_line(ident, method, params))
        if lines:
            self._deadlines[call] = now + ANSWER_SECONDS
        else:
            self._paced[call] = now + PACE_SECONDS
        return lines

    def call_of(self, ident: JsonRpcId | msgspec.UnsetType) -> ClientCall | None:
        """Return the call that waits for the answer to this request; None where none does."""
        return None if ident is msgspec.UNSET else self._by_id.get(ident)

    def answer(self, call: ClientCall, ident: str, result: msgspec.Raw) -> bool:
        """Take the client's answer; return True where it was the last one of the round."""
        del self._by_id[ident]
        call.responses[call.keys.pop(ident)] = result
        if not call.keys:
            del self._deadlines[call]
        return not call.keys

    def undo_answer(self, call: ClientCall, ident: str, key: str, now: float) -> None:
        """Open a request again whose answer, the last of a round, could not be used."""
        self._by_id[ident] = call
        call.keys[ident] = key
        self._deadlines[call] = now + ANSWER_SECONDS

    def drop(self, call: ClientCall, answered: JsonRpcId | msgspec.UnsetType = None) -> list[bytes]:
        """
        Let a call wait no more; return the lines that cancel its requests at
        the client, but for the answered one.
        """
        self._deadlines.pop(call, None)
        self._paced.pop(call, None)
        lines = []
        for ident in call.keys:
            del self._by_id[ident]
            if ident != answered:
                lines.append(cancellation_line(ident, "the call it belongs to is over"))
        call.keys = {}
        return lines

    def overdue(self, now: float) -> list[ClientCall]:
        """Return the calls whose client has not answered in time; they wait until dropped."""
        return _due(self._deadlines, now)

    def take_paced(self, now: float) -> list[ClientCall]:
        """Return the calls that may be sent again now; they wait no more."""
        due = _due(self._paced, now)
        for call in due:
            del self._paced[call]
        return due


def _due(waiting: Mapping[ClientCall, float], now: float) -> list[ClientCall]:
    due = []
    for call, at in waiting.items():
        if at > now:
            break
        due.append(call)
    return due


class InputRounds:
    """The rounds of input of a session's calls."""

    def __init__(self, calls: ClientCalls) -> None:
        self._calls = calls
        self._pending = PendingInput()
        #: The client's, once it has sent `initialize`.
        self.client = LegacyClientCapabilities({}, InputCapabilities(), False)

    @property
    def due(self) -> float | None:
        """When `tick` has something to do; None where nothing waits."""
        return self._pending.due

    def begin(self, call: ClientCall, result: Members, now: float, step: Step) -> None:
        """Ask the client for what an `input_required` result wants, or fail the call."""
        call.rounds += 1
        if call.rounds > MAX_ROUNDS:
            self.fail(call, f"the server has asked for input more than {MAX_ROUNDS} times", step)
            return
        try:
            asked = read_round(result, self.client)
            step.to_client.extend(self._pending.add(call, asked, now))
        except CannotAsk as why:
            self._calls.settle(call)
            step.to_client.append(error_line(call.raw_id, INTERNAL_ERROR, str(why)))

    def call_of(self, envelope: Envelope) -> ClientCall | None:
        """Return the call for which a response of the client is; None for any other response."""
        return self._pending.call_of(envelope.id)

    def answer(
        self, call: ClientCall, line: bytes, ident: str, now: float, step: Step
    ) -> Callable[[], None] | None:
        """
        Take the response to the request `ident`; the last of a round sends the call again.

        Return what undoes that, None where nothing was sent.
        """
        outer = members_of(line)
        if members(outer.get("result", b"")) is None:
            why = f"the client did not answer the server's question: {error_message(outer)}"
            self.fail(call, why, step, ident)
            return None
        if not self._calls.count(call, len(line)):
            self.fail(call, "the client's answers are too large", step, ident)
            return None
        key = call.keys[ident]
        if not self._pending.answer(call, ident, outer["result"]):
            return None
        step.to_backend.append(self._calls.send_again(call))

        def undo() -> None:
            self._calls.undo_send(call)
            self._calls.count(call, -len(line))
            self._pending.undo_answer(call, ident, key, now)

        return undo

    def drop(self, call: ClientCall, step: Step) -> None:
        """Cancel at the client what it is asked for a call that is over."""
        step.to_client.extend(self._pending.drop(call))

    def tick(self, now: float, step: Step) -> None:
        """Fail the calls that have waited too long, and send the paced ones again."""
        for call in self._pending.overdue(now):
            self.fail(call, "the client did not answer the server's questions in time", step)
        step.to_backend.extend(map(self._calls.send_again, self._pending.take_paced(now)))

    def fail(self, call: ClientCall, why: str, step: Step, answered: str | None = None) -> None:
        """
        Answer a call that came as far as asking the client.

        A tool says what is wrong in its result, where a model can read it.
        """
        step.to_client.extend(self._pending.drop(call, answered))
        self._calls.settle(call)
        if call.method == "tools/call":
            content = [{"type": "text", "text": why}]
            step.to_client.append(result_line(call.raw_id, {"content": content, "isError": True}))
        else:
            step.to_client.append(error_line(call.raw_id, INTERNAL_ERROR, why))
