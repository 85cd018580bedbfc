"""
Clients of 2026-07-28 in front of a legacy server, which wants `initialize`:
the translation of one process's messages in both directions.

Knows what the process was sent, and which client's request it works on; must
not know the clock, the pipes, nor who the client is.

A message on stdio does not say which request it belongs to, unless it is a
response or progress.  So a process works on one request at a time, and its
requests for input, its logs and the notifications of extensions belong to
that one.  The bridge never guesses: while a request that was given up may
still speak, none of these reaches a client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from mcpbridge.errors import INVALID_REQUEST, METHOD_NOT_FOUND, Refused
from mcpbridge.jsonrpc.envelope import split_batch
from mcpbridge.jsonrpc.ids import is_id, own_number_of
from mcpbridge.jsonrpc.members import (
    Members,
    cancellation_line,
    error_line,
    members,
    members_of,
    notification_line,
    result_line,
    string_of,
)
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.subscriptions import read_change
from mcpbridge.translation.handshake import Initialized, initialize_params, read_answer
from mcpbridge.translation.input_requests import (
    CannotAsk,
    missing_capability,
    read_input_responses,
    read_server_request,
)
from mcpbridge.translation.legacy_requests import LegacyRequests, check_method
from mcpbridge.translation.running_request import RunningRequest, ServerOutput
from mcpbridge.translation.server_requests import ServerRequests
from mcpbridge.translation.to_modern import input_required_result, outcome_of


class LegacyServerTranslator:
    """
    One process of a legacy server, initialized once, working on one request at a time.

    `capabilities` are those that the clients declare, as canonical JSON.  All
    requests must declare the same: otherwise the server would hide what it
    can do, or offer what a client cannot take.  `version` is the bridge's
    own, for where `client_info` is missing or no Implementation.  `report` is
    called with why a message of the server reached nobody, and the message.

    `requests` makes the bridge's own requests to the server.
    """

    def __init__(
        self,
        capabilities: bytes,
        client_info: msgspec.Raw | None,
        version: str,
        report: Callable[[str, bytes], None] = lambda why, line: None,
    ) -> None:
        #: The server's answer to `initialize`, once it is there.
        self.initialized: Initialized | None = None
        #: How many of the server's messages reached nobody, by the reason.
        self.dropped: Counter[str] = Counter()
        self.requests = LegacyRequests()
        #: The server's requests to the running request's client.
        self.server_requests = ServerRequests()
        self._report = report
        self._initialize_params = initialize_params(capabilities, client_info, version)
        self._running: RunningRequest | None = None

    @property
    def only_open(self) -> int | msgspec.UnsetType:
        """The number of the request that runs; UNSET where any other may be answered, too."""
        if self._running is None or self.requests.has_abandoned or self.requests.unanswered:
            return msgspec.UNSET
        return self._running.number

    @property
    def has_request(self) -> bool:
        """Whether the server works on a request whose client has no final answer yet."""
        return self._running is not None

    @property
    def is_suspended(self) -> bool:
        """Whether the running request waits for its client's input."""
        return self._running is not None and self._running.suspended

    @property
    def is_idle(self) -> bool:
        """Whether the process can work on another request: none runs, and none was given up."""
        return self._running is None and not self.requests.has_abandoned

    # The handshake.

    def initialize(self) -> bytes:
        """Return the line that opens the conversation (2025-11-25, basic/lifecycle)."""
        return self.requests.own("initialize", self._initialize_params)

    def handshake(self, line: bytes) -> list[bytes] | None:
        """
        Take a line of the server before `initialized` is set.

        Return the lines to write next, also where a `ping` came first; None
        where there is nothing to write.  Raise `HandshakeRefused`.
        """
        message = members_of(line)
        if "method" in message:
            is_ping = string_of(message["method"]) == "ping" and is_id(message.get("id"))
            return [result_line(message["id"], {})] if is_ping else None
        if self.requests.settle_own(own_number_of(message.get("id"))) is None:
            is_rpc = "id" in message and string_of(message.get("jsonrpc")) == "2.0"
            self._drop("unasked" if is_rpc else "invalid", line)
            return None
        self.initialized = read_answer(message)
        return [notification_line("notifications/initialized")]

    def discover_result(self) -> bytes:
        """Return the DiscoverResult for clients, without an envelope."""
        return self._server().discover_result()

    # From clients.

    def start(self, request: ModernRequest) -> list[bytes]:
        """
        Return the lines that put a client's request to the server.

        Raise `MethodNotFound` for what 2026-07-28 has removed, and for what
        the bridge answers itself; `RuntimeError` while another one runs.
        """
        if self._running is not None:
            raise RuntimeError("the server works on another request")
        check_method(request)
        lines = self._set_level(request)
        self.server_requests.start_call()
        number, line = self.requests.forward(request)
        self._running = RunningRequest(number, request)
        return [*lines, line]

    def undo_start(self) -> None:
        """Undo `start`, whose lines could not be written."""
        self._running = None
        self.requests.forget_level()

    def suspend(self, request_state: str) -> bytes:
        """
        Suspend the running request until its client comes back.

        Return its answer: what the server asks for, and the state that the
        retry must bring.
        """
        running = self._request()
        running.suspended = True
        asked = self.server_requests.input_requests()
        result = input_required_result(asked, request_state, self._server().server_info)
        return result_line(running.request.id, result)

    def resume(self, request: ModernRequest) -> list[bytes]:
        """
        Go on with the suspended request, for its retry.

        Return the lines that answer the server's requests with the retry's
        `inputResponses`.  From now on the request has the retry's id, progress
        token and log level.  A request of the server without a response stays
        open; a response without a request is ignored.  Take what came in the
        meantime with `take_buffered`.

        Raise `InvalidParams` for `inputResponses` that are no objects, and
        `MissingCapability` where the client no longer declares what an
        unanswered request needs; then nothing has changed.
        """
        running = self._request()
        responses = read_input_responses(request)
        for key, each in self.server_requests.by_key.items():
            missing = None if key in responses else missing_capability(each.asked, request)
            if missing is not None:
                raise missing
        running.request = request
        running.suspended = False
        lines = [] if running.answered else self._set_level(request)
        return lines + self.server_requests.answer(responses)

    def take_buffered(self) -> ServerOutput:
        """Return what came for a resumed request while it was suspended: its end, or nothing."""
        output = ServerOutput()
        running = self._request()
        if isinstance(running.buffered, Refused):
            output.refusal = running.buffered
            output.refusal.ident = running.request.id
            output.to_backend += self._give_up(running, "the request it belongs to was refused")
        elif running.buffered is not None:
            self._finish(output, running, running.buffered)
        return output

    def cancel(self, reason: str | None) -> list[bytes]:
        """
        Give up the running request, if there is one; return the lines that
        say so to the server.  Its answer, should it come, is dropped.
        """
        running = self._running
        if running is None:
            return []
        lines = self._give_up(running, "the request it belongs to was cancelled")
        if not running.answered:
            lines.insert(0, cancellation_line(running.number, reason))
        return lines

    def _set_level(self, request: ModernRequest) -> list[bytes]:
        """Return the line that changes the process's log level, which all its requests share."""
        logs = "logging" in self._server().capabilities
        return self.requests.set_level(request) if logs else []

    # From the server.

    def from_backend(self, line: bytes) -> ServerOutput:
        """Take a line of the server after the handshake.  Never raises for one."""
        output = ServerOutput()
        # 2025-03-26, basic, "Batching": a server may send arrays.
        for each in split_batch(line) or [line]:
            message = members(each)
            if message is None or not _is_rpc(message):
                self._drop("invalid", each)
            elif "method" not in message:
                self._response(output, message, each)
            elif "id" not in message:
                self._notification(output, message, each)
            elif is_id(message["id"]):
                self._server_request(output, message["id"], message)
            else:
                self._drop("invalid", each)
        return output

    def belongs_to_request(self, line: bytes) -> bool:
        """
        Tell whether a line of the server, before `from_backend` takes it,
        belongs to the request that runs, as far as that can be told.
        """
        running = self._running
        if running is None:
            return False
        alone = not self.requests.has_abandoned
        found = map(members, split_batch(line) or [line])
        return any(running.owns(each, alone=alone) for each in found if each is not None)

    def _drop(self, why: str, line: bytes) -> None:
        self.dropped[why] += 1
        self._report(why, line)

    def _response(self, output: ServerOutput, message: Members, line: bytes) -> None:
        number = own_number_of(message.get("id"))
        running = self._running
        if running is not None and number == running.number and not running.answered:
            running.answered = True
            why = "the request it belongs to was answered"
            if self.server_requests.by_key:
                output.to_backend += self.server_requests.refuse_all(why)
            if not running.suspended:
                self._finish(output, running, message)
            elif running.buffered is None:
                running.buffered = message
            return
        listed = self.requests.settle_own(number)
        if self.requests.settle_abandoned(number):
            self.dropped["late"] += 1
        elif listed is None:
            self._drop("unasked", line)
        elif listed:
            failed = outcome_of(message).error is not None
            output.tools = msgspec.Raw(b"{}") if failed else message["result"]

    def _finish(self, output: ServerOutput, running: RunningRequest, response: Members) -> None:
        self._running = None
        running.finish(output, response, self._server().server_info, self.server_requests)

    def _server_request(self, output: ServerOutput, ident: msgspec.Raw, message: Members) -> None:
        method = string_of(message["method"]) or ""
        if method == "ping":
            output.to_backend.append(result_line(ident, {}))
            return
        try:
            asked = read_server_request(method, message.get("params"))
            running = self._asking_request()
            missing = missing_capability(asked, running.request)
            if missing is None:
                self.server_requests.add(ident, asked)
                output.wants_input = True
                return
        except CannotAsk as error:
            output.to_backend.append(error_line(ident, error.code, str(error)))
            return
        why = "the client has not declared the capability that this needs"
        output.to_backend.append(error_line(ident, INVALID_REQUEST, why))
        if running.suspended:
            running.buffered = running.buffered or missing
        else:
            output.refusal = missing
            output.to_backend += self._give_up(running, "the request it belongs to was refused")

    def _asking_request(self) -> RunningRequest:
        """Return the request on whose behalf the server asks.  Raise `CannotAsk`."""
        running = self._running
        if running is None or not running.may_ask:
            raise CannotAsk("no request is running that may ask the client", METHOD_NOT_FOUND)
        if self.requests.has_abandoned:
            raise CannotAsk("it may belong to a request that was given up", METHOD_NOT_FOUND)
        return running

    def _notification(self, output: ServerOutput, message: Members, line: bytes) -> None:
        method = string_of(message["method"]) or ""
        change = read_change(method, message.get("params"), line)
        if change is not None:
            output.changes.append(change)
            return
        params = members_of(message.get("params"))
        if method == "notifications/cancelled":
            self.server_requests.cancel(params.get("requestId"))
            return
        shown = None
        if self._running is not None:
            alone = not self.requests.has_abandoned
            shown = self._running.to_client(method, message, params, line, alone=alone)
        if shown is None:
            self.dropped["unwanted"] += 1
        else:
            output.notifications.append(shown)

    def _give_up(self, running: RunningRequest, why: str) -> list[bytes]:
        """Let a request go whose client has gone; the server may still work on it."""
        self._running = None
        if not running.answered:
            self.requests.abandon(running.number)
        return self.server_requests.refuse_all(why)

    def _request(self) -> RunningRequest:
        if self._running is None:
            raise RuntimeError("no request is running")
        return self._running

    def _server(self) -> Initialized:
        if self.initialized is None:
            raise RuntimeError("the server is not initialized")
        return self.initialized


def _is_rpc(message: Members) -> bool:
    version = message.get("jsonrpc")
    return version is not None and (bytes(version) == b'"2.0"' or string_of(version) == "2.0")
