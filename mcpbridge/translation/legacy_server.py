"""
A client of 2026-07-28 in front of a backend that wants `initialize`: the
translation of one backend's messages, upward and down.

Knows what the backend has been told and asked, and which request of a client
it works for; must not know the clock, the pipes, nor who the client is.  On
legacy stdio nothing says which request a question of the backend belongs to,
so it works for one request at a time, and nothing is ever guessed: while an
abandoned request may still speak, no question reaches a client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from mcpbridge.errors import INVALID_REQUEST, METHOD_NOT_FOUND, Refused
from mcpbridge.jsonrpc.envelope import split_batch
from mcpbridge.jsonrpc.ids import is_id, own_number_of
from mcpbridge.jsonrpc.members import (
    Members,
    cancellation_line,
    changed,
    encode,
    error_line,
    integer_of,
    members,
    members_of,
    notification_line,
    result_line,
    string_of,
)
from mcpbridge.mcp.capabilities import is_of_extension
from mcpbridge.mcp.modern_request import (
    INPUT_REQUIRED_METHODS,
    LOG_LEVELS,
    PROGRESS_TOKEN,
    ModernRequest,
)
from mcpbridge.mcp.subscriptions import read_change
from mcpbridge.translation import to_modern
from mcpbridge.translation.handshake import Initialized, initialize_params, read_answer
from mcpbridge.translation.input_requests import (
    NoQuestion,
    OpenQuestions,
    ServerRequest,
    input_requests,
    missing_of,
    read_question,
    read_required,
    read_responses,
)
from mcpbridge.translation.legacy_requests import OWN_KEPT, Outgoing, check_passed
from mcpbridge.translation.server_output import ServerOutput


@dataclass(slots=True)
class _Call:
    """The request that the backend works for."""

    number: int
    request: ModernRequest
    parked: bool = False
    #: What came while it was parked: the backend's answer, or a refusal.
    held: Members | Refused | None = None
    answered: bool = False


class LegacyServerTranslator:
    """
    One legacy backend, initialized once, serving one request at a time.

    `capabilities` are those that the clients declare, canonical: all requests
    must declare the same, or a backend hides what it could do, or offers what
    it cannot.  `version` is the bridge's own, for where `client_info` is
    missing or no Implementation.  `report` is called with what the backend
    says wrongly, and what is wrong with it.
    """

    def __init__(
        self,
        capabilities: bytes,
        client_info: msgspec.Raw | None,
        version: str,
        report: Callable[[str, bytes], None] = lambda why, line: None,
    ) -> None:
        #: The backend's answer to `initialize`, once it is there.
        self.initialized: Initialized | None = None
        #: How many of the backend's lines went nowhere, and why.
        self.dropped: Counter[str] = Counter()
        self._report = report
        self._opening = initialize_params(capabilities, client_info, version)
        self._outgoing = Outgoing()
        self._open = OpenQuestions()
        self._call: _Call | None = None
        self._abandoned: set[int] = set()
        self._listing: int | None = None

    @property
    def questions(self) -> dict[str, ServerRequest]:
        """The backend's open questions to the running request's client, by key."""
        return self._open.by_key

    @property
    def only_open(self) -> int | msgspec.UnsetType:
        """The number of the request that runs, where the bridge has asked nothing beside it."""
        if self._call is None or self._abandoned or self.unanswered:
            return msgspec.UNSET
        return self._call.number

    @property
    def running(self) -> bool:
        """A request is at the backend, and its client has no last answer yet."""
        return self._call is not None

    @property
    def parked(self) -> bool:
        """The running request was answered with questions, and waits to be resumed."""
        return self._call is not None and self._call.parked

    @property
    def clean(self) -> bool:
        """
        No request runs, and none that was given up may still ask: the backend
        can work for another request.
        """
        return self._call is None and not self._abandoned

    # The handshake.

    def initialize(self) -> bytes:
        """The line that opens the conversation (2025-11-25, basic/lifecycle)."""
        return self._outgoing.request("initialize", self._opening)

    def handshake(self, line: bytes) -> list[bytes] | None:
        """
        A line of the backend before `initialized` is set.  Returns what is to
        be written next, also where a `ping` came first; None: nothing yet.

        Raises `HandshakeRefused`.
        """
        message = members_of(line)
        if "method" in message:
            pinged = string_of(message["method"]) == "ping" and is_id(message.get("id"))
            return [result_line(message["id"], {})] if pinged else None
        if self._outgoing.settle(own_number_of(message.get("id"))) is None:
            is_rpc = "id" in message and string_of(message.get("jsonrpc")) == "2.0"
            self._drop("unasked" if is_rpc else "invalid", line)
            return None
        self.initialized = read_answer(message)
        return [notification_line("notifications/initialized")]

    def discover_result(self) -> bytes:
        """The DiscoverResult for clients: the result, without an envelope."""
        return self._known().discover_result()

    # What clients want.

    def ask(self, request: ModernRequest) -> list[bytes]:
        """
        The lines that put a client's request to the backend, which must not
        be running another (`RuntimeError`).

        Raises `MethodNotFound` for what 2026-07-28 has removed, and what is
        for the bridge to answer.
        """
        if self._call is not None:
            raise RuntimeError("the backend works for another request")
        check_passed(request)
        lines = self._set_level(request)
        self._open.begin()
        number, line = self._outgoing.passed(request)
        self._call = _Call(number, request)
        return [*lines, line]

    def unasked(self) -> None:
        """The lines of `ask` could not be written: the backend has never heard of the request."""
        self._call = None
        self._outgoing.forget_level()

    def input_required(self, request_state: str) -> bytes:
        """
        The answer for the running request's client: what the backend asks,
        and the state that the retry must bring.  The request is parked then.
        """
        call = self._running()
        call.parked = True
        asked = input_requests(self.questions) if self.questions else None
        result = to_modern.input_required(asked, request_state, self._known().server_info)
        return result_line(call.request.id, result)

    def resume(self, request: ModernRequest) -> list[bytes]:
        """
        The lines that answer the backend's questions with what a retry
        brings; the parked request now answers to the retry's id, token and
        log level.  Questions that are not answered stay; unknown keys are
        ignored.  What came in the meantime is `held`.

        Raises `InvalidParams` for `inputResponses` that are no objects, and
        `MissingCapability` where the client declares no more what an
        unanswered question takes; nothing has changed then.
        """
        call = self._running()
        given = read_responses(request)
        for key, question in self.questions.items():
            missing = None if key in given else missing_of(question, request)
            if missing is not None:
                raise missing
        call.request = request
        call.parked = False
        lines = [] if call.answered else self._set_level(request)
        return lines + self._open.answer(given)

    def held(self) -> ServerOutput:
        """What came for a request while it was parked, once it is resumed: its end, or nothing."""
        said = ServerOutput()
        call = self._running()
        if isinstance(call.held, Refused):
            said.refused = call.held
            said.refused.ident = call.request.id
            said.to_backend += self._give_up(call, "the request it belongs to was refused")
        elif call.held is not None:
            self._finish(said, call, call.held)
        return said

    def cancel(self, reason: str | None) -> list[bytes]:
        """
        Give the running request up, where there is one: the lines that say so
        to the backend.  Its answer, should it come, is dropped.
        """
        call = self._call
        if call is None:
            return []
        lines = self._give_up(call, "the request it belongs to was cancelled")
        if not call.answered:
            lines.insert(0, cancellation_line(call.number, reason))
        return lines

    # What the bridge wants.

    @property
    def unanswered(self) -> int:
        """How many requests of the bridge's own have no answer yet."""
        return self._outgoing.waiting

    def unsaid(self) -> None:
        """The last request of the bridge's own could not be written."""
        if self._outgoing.settle(self._outgoing.last):
            self._listing = None

    def subscribe(self, uri: str) -> bytes:
        """A request of the bridge's own, whose answer is swallowed."""
        return self._outgoing.request("resources/subscribe", {"uri": uri})

    def unsubscribe(self, uri: str) -> bytes:
        """The same, to take it back."""
        return self._outgoing.request("resources/unsubscribe", {"uri": uri})

    def list_tools(self, cursor: str | None) -> bytes:
        """A request of the bridge's own, whose result is in `ServerOutput.tools`."""
        line = self._outgoing.request("tools/list", {} if cursor is None else {"cursor": cursor})
        self._listing = self._outgoing.last
        return line

    def unlisted(self) -> None:
        """Nobody waits for the result of `list_tools`, which is not to be taken for another."""
        if self._listing is not None:
            self._abandoned.add(self._listing)
            self._listing = None

    def _set_level(self, request: ModernRequest) -> list[bytes]:
        """The backend has one level for all; it is told where another is wanted."""
        logs = "logging" in self._known().capabilities
        return self._outgoing.set_level(request) if logs else []

    # What the backend says.

    def from_backend(self, line: bytes) -> ServerOutput:
        """What a line of the backend amounts to, after the handshake; never raises for one."""
        said = ServerOutput()
        # 2025-03-26, basic, "Batching": a backend may send arrays.
        for each in split_batch(line) or [line]:
            message = members(each)
            if message is None or string_of(message.get("jsonrpc")) != "2.0":
                self._drop("invalid", each)
            elif "method" not in message:
                self._answered(said, message, each)
            elif "id" not in message:
                self._notified(said, message, each)
            elif is_id(message["id"]):
                self._asked(said, message["id"], message)
            else:
                self._drop("invalid", each)
        return said

    def is_of_request(self, line: bytes) -> bool:
        """
        Whether a line of the backend, before it is told, is of the request
        that runs: as far as that can be said.
        """
        call = self._call
        if call is None:
            return False
        found = map(members, split_batch(line) or [line])
        return any(self._is_of(call, message) for message in found if message is not None)

    def _is_of(self, call: _Call, message: Members) -> bool:
        if "method" not in message:
            return own_number_of(message.get("id")) == call.number
        method = string_of(message["method"]) or ""
        if method == "notifications/progress":
            params = members_of(message.get("params"))
            return integer_of(params.get(PROGRESS_TOKEN)) == call.number
        # The rest does not say of which request it is.
        if self._abandoned or call.answered:
            return False
        if "id" in message:
            return method != "ping" and call.request.method in INPUT_REQUIRED_METHODS
        of_call = ("notifications/message", "notifications/cancelled")
        return method in of_call or is_of_extension(method)

    def _drop(self, why: str, line: bytes) -> None:
        self.dropped[why] += 1
        self._report(why, line)

    def _answered(self, said: ServerOutput, message: Members, line: bytes) -> None:
        number = own_number_of(message.get("id"))
        call = self._call
        if call is not None and number == call.number and not call.answered:
            call.answered = True
            said.to_backend += self._open.withdraw("the request it belongs to was answered")
            if not call.parked:
                self._finish(said, call, message)
            elif call.held is None:
                call.held = message
        elif (listed := self._outgoing.settle(number)) is not None:
            if number in self._abandoned:
                self._abandoned.remove(number)
                self.dropped["late"] += 1
            elif listed:
                self._listing = None
                failed = to_modern.error_of(message) is not None
                said.tools = msgspec.Raw(b"{}") if failed else message["result"]
        elif number in self._abandoned:
            self._abandoned.remove(number)
            self.dropped["late"] += 1
        else:
            self._drop("unasked", line)

    def _finish(self, said: ServerOutput, call: _Call, message: Members) -> None:
        """The backend has answered a request that is not parked."""
        self._call = None
        request, info = call.request, self._known().server_info
        error = to_modern.error_of(message)
        if error is None:
            result = to_modern.complete(request.method, members_of(message["result"]), info)
            said.final = result_line(request.id, result)
            return
        required = read_required(request.method, error)
        if not required:
            failure = {"jsonrpc": "2.0", "id": request.id, "error": to_modern.modern_error(error)}
            said.final = encode(failure)
        elif (missing := missing_of(required[0], request)) is not None:
            said.refused = missing
        else:
            # The retry is a request like any other: there is no state.
            asked = input_requests({self._open.key(): each for each in required})
            said.final = result_line(request.id, to_modern.input_required(asked, None, info))

    def _asked(self, said: ServerOutput, ident: msgspec.Raw, message: Members) -> None:
        method = string_of(message["method"]) or ""
        if method == "ping":
            said.to_backend.append(result_line(ident, {}))
            return
        try:
            question = read_question(ident, method, message.get("params"))
            call = self._may_ask()
            missing = missing_of(question, call.request)
            if missing is None:
                self._open.add(question)
                said.asked = True
                return
        except NoQuestion as error:
            said.to_backend.append(error_line(ident, error.code, str(error)))
            return
        why = "the client has not declared the capability that this takes"
        said.to_backend.append(error_line(ident, INVALID_REQUEST, why))
        if call.parked:
            call.held = call.held or missing
        else:
            said.refused = missing
            said.to_backend += self._give_up(call, "the request it belongs to was refused")

    def _may_ask(self) -> _Call:
        """The request that a question belongs to; raises `NoQuestion` where there is none."""
        call = self._call
        if call is None or call.answered or call.request.method not in INPUT_REQUIRED_METHODS:
            raise NoQuestion(METHOD_NOT_FOUND, "no request is running that may ask the client")
        if self._abandoned:
            raise NoQuestion(METHOD_NOT_FOUND, "it may belong to a request that was given up")
        return call

    def _notified(self, said: ServerOutput, message: Members, line: bytes) -> None:
        method = string_of(message["method"]) or ""
        change = read_change(method, message.get("params"), line)
        params = members_of(message.get("params"))
        if change is not None:
            said.changed.append(change)
        elif method == "notifications/cancelled":
            self._open.take_back(params.get("requestId"))
        elif (note := self._note(method, message, params, line)) is not None:
            said.notes.append(note)
        else:
            self.dropped["unwanted"] += 1

    def _note(self, method: str, message: Members, params: Members, line: bytes) -> bytes | None:
        """A notification as the running request's client must see it; None: it must not."""
        call = self._call
        if call is None or call.parked:
            return None
        if method == "notifications/progress":
            token = call.request.meta.get(PROGRESS_TOKEN)
            if call.request.progress_token is None or token is None:
                return None
            if integer_of(params.get(PROGRESS_TOKEN)) != call.number:
                return None
            return encode(changed(message, {"params": changed(params, {PROGRESS_TOKEN: token})}))
        if method == "notifications/message" and not self._abandoned:
            level, wanted = string_of(params.get("level")), call.request.log_level
            if level in LOG_LEVELS and wanted in LOG_LEVELS:
                return line if LOG_LEVELS.index(level) >= LOG_LEVELS.index(wanted) else None
        # It says of no request whose it is, so it must not be that of another.
        elif is_of_extension(method) and not self._abandoned:
            return line
        return None

    def _give_up(self, call: _Call, why: str) -> list[bytes]:
        """The running request has no client any more; the backend may still work on it."""
        self._call = None
        if not call.answered:
            # Where too many are, 0 stands for the rest: it is never answered.
            kept = len(self._abandoned) < OWN_KEPT
            self._abandoned.add(call.number if kept else 0)
        return self._open.withdraw(why)

    def _running(self) -> _Call:
        if self._call is None:
            raise RuntimeError("no request is running")
        return self._call

    def _known(self) -> Initialized:
        if self.initialized is None:
            raise RuntimeError("the backend is not initialized")
        return self.initialized
