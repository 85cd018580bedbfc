"""
A legacy client in front of a server that speaks 2026-07-28 alone: the session
that the one has and the other does not is kept here.

Knows the messages of both eras; must not know HTTP, pipes or a clock: the
time is an argument, in seconds, and what is to be written is returned.  What
needs no change passes byte-identical.  A message is O(1), but for those that
change what is subscribed to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec

from mcpbridge.errors import INTERNAL_ERROR, InvalidParams, MethodNotFound, NotJsonRpc, Refused
from mcpbridge.jsonrpc.envelope import Envelope, cancelled_id, peek, peek_again
from mcpbridge.jsonrpc.ids import own_number
from mcpbridge.jsonrpc.members import (
    Members,
    encode,
    error_line,
    is_null,
    members,
    members_of,
    meta_of,
    number_of,
    result_line,
    string_of,
)
from mcpbridge.mcp import revisions
from mcpbridge.mcp.capabilities import is_implementation, is_of_extension
from mcpbridge.mcp.modern_request import (
    ACKNOWLEDGED,
    CLIENT_CAPABILITIES,
    CLIENT_INFO,
    INPUT_REQUIRED_METHODS,
    LISTEN,
    LOG_LEVEL,
    LOG_LEVELS,
    MODERN_PROTOCOL_VERSIONS,
    PROTOCOL_VERSION,
    SERVER_INFO,
    SUBSCRIPTION_ID,
)
from mcpbridge.translation.client_calls import ClientCall, ClientCalls, Step
from mcpbridge.translation.input_rounds import InputRounds, read_capabilities
from mcpbridge.translation.subscription_relay import RelayStep, SubscriptionRelay
from mcpbridge.translation.to_legacy import (
    error_message,
    initialize_result,
    list_filters,
    result_type,
    subscribed_uris,
    to_legacy_error,
    to_legacy_notification,
    to_legacy_result,
)

#: Methods that no client of these revisions has; the server must not answer what it
#: means by them.
_UNKNOWN_METHODS = frozenset({"server/discover", LISTEN})
#: Parameters that are the bridge's to write, or ask for a task, which is not offered.
_REMOVED_PARAMS = ("task", "inputResponses", "requestState")
_ENDED = "it has ended the subscription"
#: Why a message reached nobody: it answers nothing that is open; it is no
#: message; it is a request, which a modern server must not send; it is of no
#: subscription that counts.
Why = Literal["unasked", "invalid", "request", "not subscribed"]


class LegacyClientTranslator:
    """
    One session of a legacy client, and the process that it has to itself.

    `version` is the bridge's own, for a client that does not say its name.
    `pause` gives the seconds to wait before a subscription is renewed, after
    so many that did not last.  `dropped` counts the messages that reached
    nobody, by the reason; where that is the server's mistake, `report` is
    called with it and the message.
    """

    def __init__(
        self,
        *,
        version: str,
        pause: Callable[[int], float],
        report: Callable[[Why, bytes], None] = lambda why, line: None,
    ) -> None:
        self._report = report
        self._bridge_info = {"name": "mcpbridge", "version": version}
        self._state: Literal["new", "initializing", "open"] = "new"
        self._revision = ""
        self._calls = ClientCalls()
        self._rounds = InputRounds(self._calls)
        self._relay: SubscriptionRelay[ClientCall] = SubscriptionRelay(
            self._calls.new_request, self._calls.cancel, pause
        )
        #: Whether the client has sent `notifications/initialized`.
        self._client_ready = False
        self._undo: tuple[Envelope, Callable[[], None]] | None = None
        self.dropped: Counter[Why] = Counter()
        self._server_info: msgspec.Raw | None = None

    def from_client(self, line: bytes, envelope: Envelope, now: float) -> Step:
        """Take one message of the client; no batch.  At most one line is for the backend."""
        step = Step([], [], None)
        undo = None
        if envelope.is_request:
            outer = members_of(line)
            raw_id = msgspec.Raw(bytes(outer.get("id", b"")) or encode(envelope.id))
            call = ClientCall(envelope.id, raw_id, str(envelope.method))  # type: ignore[arg-type]
            try:
                undo = self._request(line, outer, call, now, step)
            except Refused as refused:
                step.to_client.append(error_line(raw_id, refused.code, str(refused)))
        elif envelope.is_response:
            undo = self._client_response(line, envelope, now, step)
        elif envelope.method == "notifications/cancelled":
            undo = self._cancel(line, step)
        elif envelope.method == "notifications/initialized" and not self._client_ready:
            self._client_ready = True
            undo = self._listen_to_lists(now, step)
        elif self._state == "open" and is_of_extension(envelope.method):
            step.to_backend.append(line)
        self._undo = (envelope, undo) if undo and step.to_backend else None
        return self._with_due(step)

    def undo(self, envelope: Envelope) -> None:
        """
        Undo the last `from_client`, whose line the backend could not take.

        Nothing of that message has happened then.  The client must not get
        that step's lines, and may send the message again.  `due` may be
        another one afterwards.
        """
        if self._undo is not None and self._undo[0] is envelope:
            self._undo[1]()
            self._undo = None

    def from_backend(self, line: bytes, now: float) -> Step:
        """Take one line of the backend, whatever it is."""
        step = Step([], [], None)
        envelope = peek(line) or peek_again(line)
        if envelope is None:
            self._drop("invalid", line)
        elif envelope.method is not msgspec.UNSET and envelope.id is not msgspec.UNSET:
            self._drop("request", line)
        elif envelope.method is not msgspec.UNSET:
            self._notification(line, envelope.method, now, step)
        else:
            self._response(line, envelope, now, step)
        return self._with_due(step)

    def tick(self, now: float) -> Step:
        """Do what is due: fail late calls, send paced ones again, renew the subscription."""
        step = Step([], [], None)
        self._rounds.tick(now, step)
        self._relayed(self._relay.tick(now), step)
        return self._with_due(step)

    def take_server_info(self) -> msgspec.Raw | None:
        """Return the server's info, from when the session opened; only once."""
        taken, self._server_info = self._server_info, None
        return taken

    @property
    def due(self) -> float | None:
        """When `tick` is to be called, as of now."""
        dues = [each for each in (self._rounds.due, self._relay.due) if each is not None]
        return min(dues, default=None)

    def _with_due(self, step: Step) -> Step:
        return step._replace(due=self.due)

    # From the client.  What sends a line to the backend returns what undoes it.

    def _request(
        self, line: bytes, outer: Members, call: ClientCall, now: float, step: Step
    ) -> Callable[[], None] | None:
        """Raises `Refused` where the answer is an error; then nothing is recorded."""
        method, raw_id = call.method, call.raw_id
        if method != "initialize":
            if method == "ping":
                step.to_client.append(result_line(raw_id, {}))
                return None
            if self._state == "new":
                raise NotJsonRpc("the session is not initialized; send `initialize` first")
            if method in _UNKNOWN_METHODS or method.startswith("tasks/"):
                raise MethodNotFound("this server has no such method")
        params = _object_param(outer.get("params"), "params")
        if method == "initialize":
            return self._initialize(call, params, step)
        if method == "logging/setLevel":
            level = string_of(params.get("level"))
            if level not in LOG_LEVELS:
                raise InvalidParams(f"level: expected one of {', '.join(LOG_LEVELS)}")
            self._calls.meta[LOG_LEVEL] = level
            step.to_client.append(result_line(raw_id, {}))
            return None
        if method in ("resources/subscribe", "resources/unsubscribe"):
            return self._subscribe(call, params, now, step)
        return self._forward(call, params, len(line), step)

    def _initialize(self, call: ClientCall, params: Members, step: Step) -> Callable[[], None]:
        if self._state != "new":
            raise NotJsonRpc("the session is initialized already")
        version = string_of(params.get("protocolVersion"))
        if version is None:
            raise InvalidParams("protocolVersion must be a string")
        known = revisions.HANDSHAKE_PROTOCOL_VERSIONS
        revision = version if version in known else known[-1]
        capabilities = read_capabilities(params.get("capabilities"), revision)
        self._calls.add(call)
        self._state, self._revision, self._rounds.client = "initializing", revision, capabilities
        info = params.get("clientInfo")
        self._calls.meta |= {
            PROTOCOL_VERSION: MODERN_PROTOCOL_VERSIONS[-1],
            CLIENT_INFO: info if is_implementation(info) else self._bridge_info,
            CLIENT_CAPABILITIES: msgspec.Raw(encode(capabilities.declared)),
        }
        step.to_backend.append(self._calls.send(call, "server/discover", {}))

        def undo() -> None:
            self._calls.settle(call)
            self._state = "new"

        return undo

    def _subscribe(
        self, call: ClientCall, params: Members, now: float, step: Step
    ) -> Callable[[], None]:
        uri = string_of(params.get("uri"))
        if uri is None:
            raise InvalidParams("uri must be a string")
        restore = self._relay.snapshot(now)
        if call.method == "resources/unsubscribe":
            self._relayed(self._relay.unsubscribe(uri, now), step)
            step.to_client.append(result_line(call.raw_id, {}))
            return restore
        self._calls.add(call)
        self._relayed(self._relay.subscribe(call, uri, now), step)

        def undo() -> None:
            restore()
            self._calls.settle(call)

        return undo

    def _forward(
        self, call: ClientCall, params: Members, size: int, step: Step
    ) -> Callable[[], None]:
        _object_param(params.get("_meta"), "_meta")
        if call.method in INPUT_REQUIRED_METHODS:
            for name in _REMOVED_PARAMS:
                params.pop(name, None)
            call.params = params
        self._calls.add(call, size if call.params else 0)
        step.to_backend.append(self._calls.send(call, call.method, params))
        return lambda: self._calls.settle(call)

    def _listen_to_lists(self, now: float, step: Step) -> Callable[[], None] | None:
        """Subscribe to changes of lists, once both sides are ready."""
        if not self._client_ready or self._state != "open":
            return None
        restore = self._relay.snapshot(now)
        step.to_backend.extend(self._relay.listen(now))
        return restore

    def _cancel(self, line: bytes, step: Step) -> Callable[[], None] | None:
        ident = cancelled_id(line)
        call = None if ident is msgspec.UNSET else self._calls.with_id(ident)
        if call is None or call.method == "initialize":
            return None
        self._rounds.drop(call, step)
        number = call.number
        self._calls.settle(call)
        if number is None:
            return None
        reason = string_of(members_of(members_of(line).get("params")).get("reason"))
        step.to_backend.append(self._calls.cancel(number, reason))
        return lambda: self._calls.restore(call)

    def _client_response(
        self, line: bytes, envelope: Envelope, now: float, step: Step
    ) -> Callable[[], None] | None:
        call = self._rounds.call_of(envelope)
        if call is None:
            self.dropped["unasked"] += 1
            return None
        return self._rounds.answer(call, line, str(envelope.id), now, step)

    # From the backend.

    def _response(self, line: bytes, envelope: Envelope, now: float, step: Step) -> None:
        number = own_number(envelope.id)
        call = self._calls.take_answered(number)
        response = members_of(line)
        if call is None:
            why = error_message(response) if "error" in response else _ENDED
            if not self._end_listen(number, why, now, step) and number not in self._calls.cancelled:
                self._report("unasked", line)
            return
        result = members(response.get("result", b""))
        kind = None if result is None else result_type(result)
        if (
            result is not None
            and kind == "input_required"
            and call.method in INPUT_REQUIRED_METHODS
        ):
            self._rounds.begin(call, result, now, step)
            return
        self._calls.settle(call)
        if result is not None and kind == "complete":
            if call.method == "initialize":
                self._open(call, result, now, step)
            else:
                line = to_legacy_result(response, result, call.raw_id, call.method)
                step.to_client.append(line)
        elif call.method == "initialize":
            self._state = "new"
            text = f"the server did not answer server/discover: {error_message(response)}"
            step.to_client.append(error_line(call.raw_id, INTERNAL_ERROR, text))
        else:
            step.to_client.append(to_legacy_error(response, call.raw_id))

    def _open(self, call: ClientCall, discovered: Members, now: float, step: Step) -> None:
        self._state = "open"
        self._server_info = meta_of(discovered).get(SERVER_INFO)
        self._relay.set_list_filters(list_filters(discovered))
        result = initialize_result(discovered, self._revision)
        step.to_client.append(result_line(call.raw_id, result))
        self._listen_to_lists(now, step)

    def _notification(self, line: bytes, method: str, now: float, step: Step) -> None:
        if method == "notifications/cancelled":
            number = cancelled_id(line)
            if self._end_listen(number, _ENDED, now, step):
                # It may answer it all the same.
                self._calls.cancelled.add(own_number(number))
            return
        acknowledged = method == ACKNOWLEDGED
        # Most notifications are of no subscription, which shows without decoding them.
        if not acknowledged and b"ubscriptionId" not in line and b"\\u" not in line:
            step.to_client.append(line)
            return
        notification = members_of(line)
        params = members_of(notification.get("params"))
        meta = meta_of(params)
        number = number_of(meta.get(SUBSCRIPTION_ID))
        if acknowledged:
            uris = subscribed_uris(params.get("notifications"))
            self._relayed(self._relay.acknowledged(number, uris, now), step)
        elif SUBSCRIPTION_ID not in meta:
            step.to_client.append(line)
        elif self._relay.is_current(number):
            step.to_client.append(to_legacy_notification(notification))
        else:
            self.dropped["not subscribed"] += 1

    def _end_listen(self, number: object, why: str, now: float, step: Step) -> bool:
        """End a subscription; return False where the number is none's."""
        relayed = self._relay.ended(number, why, now)
        if relayed is None:
            self.dropped["unasked"] += 1
        else:
            self._relayed(relayed, step)
        return relayed is not None

    def _drop(self, why: Why, line: bytes) -> None:
        self.dropped[why] += 1
        self._report(why, line)

    def _relayed(self, relayed: RelayStep[ClientCall], step: Step) -> None:
        step.to_backend.extend(relayed.to_backend)
        for call, refusal in relayed.answers:
            if not self._calls.is_open(call):
                continue
            self._calls.settle(call)
            if refusal is None:
                step.to_client.append(result_line(call.raw_id, {}))
            else:
                step.to_client.append(error_line(call.raw_id, refusal.code, refusal.text))


def _object_param(raw: msgspec.Raw | None, name: str) -> Members:
    """
    Return the members of an object that may be missing, or null.

    Raise `InvalidParams`, with its name, for anything else.
    """
    if raw is None or is_null(raw):
        return {}
    found = members(raw)
    if found is None:
        raise InvalidParams(f"{name} must be an object")
    return found
