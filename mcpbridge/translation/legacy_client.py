"""
A legacy client in front of a backend that speaks 2026-07-28 alone: the
session that the one has and the other does not is kept here.

Knows the messages of both eras; must not know HTTP, pipes or a clock: the
time is an argument, in seconds, and what is to be written is returned.  What
needs no change passes byte-identical.  A message is O(1), but for those that
change what is subscribed to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from mcpbridge.errors import INTERNAL_ERROR, InvalidParams, MethodNotFound, NotJsonRpc, Refused
from mcpbridge.jsonrpc.envelope import Envelope, cancelled_id, peek, peek_again
from mcpbridge.jsonrpc.ids import own_number
from mcpbridge.jsonrpc.members import (
    Members,
    encode,
    error_line,
    members,
    members_of,
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
from mcpbridge.translation.client_calls import ClientCall, ClientCalls
from mcpbridge.translation.input_rounds import (
    MAX_ROUNDS,
    CannotAsk,
    InputCapabilities,
    PendingInput,
    read_input_capabilities,
    read_round,
)
from mcpbridge.translation.subscription_relay import Heard, SubscriptionRelay
from mcpbridge.translation.to_legacy import (
    changing_lists,
    initialize_result,
    kind_of,
    lower_error,
    lower_notification,
    lower_result,
    params_of,
    reason_of,
    uris_of,
)

#: What no client of these revisions has; what it means by it the backend must not answer.
_ABSENT = frozenset({"server/discover", LISTEN})
#: Tasks are not offered, and the others are the bridge's to write.
_NOT_OF_THE_CLIENT = ("task", "inputResponses", "requestState")
_ENDED = "it has ended the subscription"
#: Why a message reached nobody: it answers nothing that is open; it is no
#: message; a modern backend must not ask; it is of no listen that counts.
Why = Literal["unasked", "invalid", "request", "not listened to"]


class Step(NamedTuple):
    """
    What is to be done: complete lines for the client and for the backend, in
    order, and when `tick` is to be called; None: not before something happens.
    """

    to_client: list[bytes]
    to_backend: list[bytes]
    due: float | None


class LegacyClientTranslator:
    """
    One session of a legacy client, and the process that it has to itself.

    `version` is the bridge's own, for a client that does not say its name.
    `dropped` counts what reached nobody, by its reason; where that is the
    backend's mistake, `report` is called with it and the message.
    """

    def __init__(
        self, *, version: str, report: Callable[[Why, bytes], None] = lambda why, line: None
    ) -> None:
        self._report = report
        self._name = {"name": "mcpbridge", "version": version}
        self._state: Literal["new", "asked", "open"] = "new"
        self._revision = ""
        self._abilities = InputCapabilities({})
        self._calls = ClientCalls()
        self._waiting = PendingInput()
        self._listening: SubscriptionRelay[ClientCall] = SubscriptionRelay(
            self._calls.ask, self._calls.cancellation
        )
        self._ready = False
        self._undo: tuple[Envelope, Callable[[], None]] | None = None
        self.dropped: Counter[Why] = Counter()
        self._server_info: msgspec.Raw | None = None

    def from_client(self, line: bytes, envelope: Envelope, now: float) -> Step:
        """One message of the client; no batch.  At most one line is for the backend."""
        step = Step([], [], None)
        undo = None
        if envelope.is_request:
            outer = members_of(line)
            shown = msgspec.Raw(bytes(outer.get("id", b"")) or encode(envelope.id))
            call = ClientCall(envelope.id, shown, str(envelope.method))  # type: ignore[arg-type]
            try:
                undo = self._request(line, outer, call, now, step)
            except Refused as refused:
                step.to_client.append(error_line(shown, refused.code, str(refused)))
        elif envelope.is_response:
            undo = self._answer(line, envelope, now, step)
        elif envelope.method == "notifications/cancelled":
            undo = self._cancel(line, step)
        elif envelope.method == "notifications/initialized" and not self._ready:
            self._ready = True
            undo = self._start(now, step)
        elif self._state == "open" and is_of_extension(envelope.method):
            step.to_backend.append(line)
        self._undo = (envelope, undo) if undo and step.to_backend else None
        return self._done(step)

    def undo(self, envelope: Envelope) -> None:
        """
        The backend could not take the line that the last `from_client` had
        for it: nothing of that message has happened, and the client, which
        must not get that step's lines, may send it again.  `due` may be
        another one then.
        """
        if self._undo is not None and self._undo[0] is envelope:
            self._undo[1]()
            self._undo = None

    def from_backend(self, line: bytes, now: float) -> Step:
        """One line of the backend, whatever it is."""
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
        return self._done(step)

    def tick(self, now: float) -> Step:
        """Time has passed: give up, send again, listen again."""
        step = Step([], [], None)
        for call in self._waiting.late(now):
            self._fail(call, "the client did not answer the server's questions in time", step)
        step.to_backend.extend(map(self._calls.retry, self._waiting.paced(now)))
        self._hear(self._listening.tick(now), step)
        return self._done(step)

    def take_server_info(self) -> msgspec.Raw | None:
        """What the backend said of itself when the session opened; only once."""
        taken, self._server_info = self._server_info, None
        return taken

    @property
    def due(self) -> float | None:
        """When `tick` is to be called, as of now."""
        dues = [each for each in (self._waiting.due, self._listening.due) if each is not None]
        return min(dues, default=None)

    def _done(self, step: Step) -> Step:
        return step._replace(due=self.due)

    # Requests of the client.

    def _request(
        self, line: bytes, outer: Members, call: ClientCall, now: float, step: Step
    ) -> Callable[[], None] | None:
        """Raises `Refused` where the answer is an error; then nothing is recorded."""
        method, shown = call.method, call.shown
        if method != "initialize":
            if method == "ping":
                step.to_client.append(result_line(shown, {}))
                return None
            if self._state == "new":
                raise NotJsonRpc("the session is not initialized; send `initialize` first")
            if method in _ABSENT or method.startswith("tasks/"):
                raise MethodNotFound("this server has no such method")
        params = params_of(outer.get("params"), "params")
        if method == "initialize":
            return self._initialize(call, params, step)
        if method == "logging/setLevel":
            level = string_of(params.get("level"))
            if level not in LOG_LEVELS:
                raise InvalidParams(f"level: expected one of {', '.join(LOG_LEVELS)}")
            self._calls.meta[LOG_LEVEL] = level
            step.to_client.append(result_line(shown, {}))
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
        revision = (
            version
            if version in revisions.HANDSHAKE_PROTOCOL_VERSIONS
            else revisions.HANDSHAKE_PROTOCOL_VERSIONS[-1]
        )
        abilities = read_input_capabilities(params.get("capabilities"), revision)
        self._calls.record(call)
        self._state, self._revision, self._abilities = "asked", revision, abilities
        info = params.get("clientInfo")
        self._calls.meta |= {
            PROTOCOL_VERSION: MODERN_PROTOCOL_VERSIONS[-1],
            CLIENT_INFO: info if is_implementation(info) else self._name,
            CLIENT_CAPABILITIES: msgspec.Raw(encode(abilities.declared)),
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
        restore = self._listening.mark(now)
        if call.method == "resources/unsubscribe":
            self._hear(self._listening.unsubscribe(uri, now), step)
            step.to_client.append(result_line(call.shown, {}))
            return restore
        self._calls.record(call)
        self._hear(self._listening.subscribe(call, uri, now), step)

        def undo() -> None:
            restore()
            self._calls.settle(call)

        return undo

    def _forward(
        self, call: ClientCall, params: Members, size: int, step: Step
    ) -> Callable[[], None]:
        params_of(params.get("_meta"), "_meta")
        if call.method in INPUT_REQUIRED_METHODS:
            for name in _NOT_OF_THE_CLIENT:
                params.pop(name, None)
            call.params = params
        self._calls.record(call, size if call.params else 0)
        step.to_backend.append(self._calls.send(call, call.method, params))
        return lambda: self._calls.settle(call)

    # What else the client says.

    def _start(self, now: float, step: Step) -> Callable[[], None] | None:
        """Listen to changed lists, once both sides are there."""
        if not self._ready or self._state != "open":
            return None
        restore = self._listening.mark(now)
        step.to_backend.extend(self._listening.listen(now))
        return restore

    def _cancel(self, line: bytes, step: Step) -> Callable[[], None] | None:
        ident = cancelled_id(line)
        call = None if ident is msgspec.UNSET else self._calls.with_id(ident)
        if call is None or call.method == "initialize":
            return None
        step.to_client.extend(self._waiting.drop(call))
        number = call.number
        self._calls.settle(call)
        if number is None:
            return None
        reason = string_of(members_of(members_of(line).get("params")).get("reason"))
        step.to_backend.append(self._calls.cancellation(number, reason))
        return lambda: self._calls.restore(call)

    def _answer(
        self, line: bytes, envelope: Envelope, now: float, step: Step
    ) -> Callable[[], None] | None:
        """The client answers a question: the last answer sends the call again."""
        call = self._waiting.asker(envelope.id)
        if call is None:
            self.dropped["unasked"] += 1
            return None
        ident, outer = str(envelope.id), members_of(line)
        if members(outer.get("result", b"")) is None:
            text = f"the client did not answer the server's question: {reason_of(outer)}"
            self._fail(call, text, step, ident)
            return None
        if not self._calls.keep(call, len(line)):
            self._fail(call, "the client's answers are too large", step, ident)
            return None
        key = call.questions[ident]
        if not self._waiting.answer(call, ident, outer["result"]):
            return None
        step.to_backend.append(self._calls.retry(call))

        def undo() -> None:
            self._calls.unsend(call)
            self._calls.keep(call, -len(line))
            self._waiting.take_back(call, ident, key, now)

        return undo

    def _fail(self, call: ClientCall, why: str, step: Step, answered: str | None = None) -> None:
        """Answer a call that came so far: a tool says what is wrong in its result."""
        step.to_client.extend(self._waiting.drop(call, answered))
        self._calls.settle(call)
        if call.method == "tools/call":
            content = [{"type": "text", "text": why}]
            step.to_client.append(result_line(call.shown, {"content": content, "isError": True}))
        else:
            step.to_client.append(error_line(call.shown, INTERNAL_ERROR, why))

    # What the backend says.

    def _response(self, line: bytes, envelope: Envelope, now: float, step: Step) -> None:
        number = own_number(envelope.id)
        call = self._calls.answered(number)
        answer = members_of(line)
        if call is None:
            why = reason_of(answer) if "error" in answer else _ENDED
            if not self._unlisten(number, why, now, step) and number not in self._calls.late:
                self._report("unasked", line)
            return
        result = members(answer.get("result", b""))
        kind = "error" if result is None else kind_of(result)
        if (
            result is not None
            and kind == "input_required"
            and call.method in INPUT_REQUIRED_METHODS
        ):
            self._ask_client(call, result, now, step)
            return
        self._calls.settle(call)
        if result is not None and kind == "complete":
            if call.method == "initialize":
                self._open(call, result, now, step)
            else:
                step.to_client.append(lower_result(answer, result, call.shown, call.method))
            return
        if call.method == "initialize":
            self._state = "new"
            text = f"the server did not say what it can: {reason_of(answer)}"
            step.to_client.append(error_line(call.shown, INTERNAL_ERROR, text))
        else:
            step.to_client.append(lower_error(answer, call.shown))

    def _open(self, call: ClientCall, discovered: Members, now: float, step: Step) -> None:
        self._state = "open"
        self._server_info = members_of(discovered.get("_meta")).get(SERVER_INFO)
        self._listening.want(changing_lists(discovered))
        said = initialize_result(discovered, self._revision)
        step.to_client.append(result_line(call.shown, said))
        self._start(now, step)

    def _ask_client(self, call: ClientCall, result: Members, now: float, step: Step) -> None:
        call.rounds += 1
        if call.rounds > MAX_ROUNDS:
            self._fail(call, f"the server has asked for input more than {MAX_ROUNDS} times", step)
            return
        try:
            asked = read_round(result, self._abilities)
            step.to_client.extend(self._waiting.add(call, asked, now))
        except CannotAsk as why:
            self._calls.settle(call)
            step.to_client.append(error_line(call.shown, INTERNAL_ERROR, str(why)))

    def _notification(self, line: bytes, method: str, now: float, step: Step) -> None:
        if method == "notifications/cancelled":
            number = cancelled_id(line)
            if self._unlisten(number, _ENDED, now, step):
                # It may answer it all the same.
                self._calls.late.add(own_number(number))
            return
        acknowledged = method == ACKNOWLEDGED
        if not acknowledged and b"ubscriptionId" not in line and b"\\u" not in line:
            step.to_client.append(line)
            return
        notice = members_of(line)
        params = members_of(notice.get("params"))
        meta = members_of(params.get("_meta"))
        number = number_of(meta.get(SUBSCRIPTION_ID))
        if acknowledged:
            uris = uris_of(params.get("notifications"))
            self._hear(self._listening.acknowledged(number, uris, now), step)
        elif SUBSCRIPTION_ID not in meta:
            step.to_client.append(line)
        elif self._listening.brings(number):
            step.to_client.append(lower_notification(notice))
        else:
            self.dropped["not listened to"] += 1

    def _unlisten(self, number: object, why: str, now: float, step: Step) -> bool:
        """Whether it was a subscription, which is over now."""
        heard = self._listening.ended(number, why, now)
        if heard is None:
            self.dropped["unasked"] += 1
        else:
            self._hear(heard, step)
        return heard is not None

    def _drop(self, why: Why, line: bytes) -> None:
        self.dropped[why] += 1
        self._report(why, line)

    def _hear(self, heard: Heard[ClientCall], step: Step) -> None:
        step.to_backend.extend(heard.to_backend)
        for call, problem in heard.answers:
            if not self._calls.has(call):
                continue
            self._calls.settle(call)
            said = error_line(call.shown, *problem) if problem else result_line(call.shown, {})
            step.to_client.append(said)
