"""
The one request that a legacy server works on, and what the server's lines mean for it.

Knows a request of 2026-07-28 and the messages that may belong to it; must not
know the requests before it, nor what else the server was asked.
"""

from __future__ import annotations

import msgspec

from mcpbridge.errors import Refused
from mcpbridge.jsonrpc.ids import own_number_of
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    encode,
    integer_of,
    members_of,
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
from mcpbridge.mcp.subscriptions import Change
from mcpbridge.translation.input_requests import (
    input_requests,
    missing_capability,
    read_url_elicitations,
)
from mcpbridge.translation.server_requests import ServerRequests
from mcpbridge.translation.to_modern import (
    input_required_result,
    outcome_of,
    to_modern_error,
    to_modern_result,
)


class ServerOutput(msgspec.Struct):
    """
    What a line of the server amounts to.

    `notifications` are for the running request's client, in order.
    `response` is the answer for that client, with its own id; `refusal` is
    the answer where the client lacks a capability.  `wants_input`: the server
    has sent a request for the client, which is kept among the translator's
    `server_requests`.  `changes` are for those who listen.  `to_backend` is
    what the bridge answers the server itself.  `tools` is the result of a
    `list_tools`; an empty object where that failed.
    """

    notifications: list[bytes] = []
    response: bytes | None = None
    refusal: Refused | None = None
    wants_input: bool = False
    changes: list[Change] = []
    to_backend: list[bytes] = []
    tools: msgspec.Raw | None = None


class RunningRequest(msgspec.Struct):
    """
    A client's request while a legacy server works on it.

    `number` is its id at the server.  It is `suspended` while its client is
    asked for input; what ends it in the meantime, the server's response or a
    refusal, is `buffered` until a retry brings the client back.
    """

    number: int
    request: ModernRequest
    suspended: bool = False
    buffered: Members | Refused | None = None
    answered: bool = False

    @property
    def may_ask(self) -> bool:
        """Whether the server may ask the client for input on behalf of it."""
        return not self.answered and self.request.method in INPUT_REQUIRED_METHODS

    def owns(self, message: Members, *, alone: bool) -> bool:
        """
        Tell whether a message of the server belongs to it.

        What does not say where it belongs counts as its own only while it is
        `alone`: no request that was given up may still speak.
        """
        if "method" not in message:
            return own_number_of(message.get("id")) == self.number
        method = string_of(message["method"]) or ""
        if method == "notifications/progress":
            return self._is_own_progress(members_of(message.get("params")))
        if not alone or self.answered:
            return False
        if "id" in message:
            return method != "ping" and self.request.method in INPUT_REQUIRED_METHODS
        of_any_request = ("notifications/message", "notifications/cancelled")
        return method in of_any_request or is_of_extension(method)

    def to_client(
        self, method: str, message: Members, params: Members, line: bytes, *, alone: bool
    ) -> bytes | None:
        """Return a notification of the server as its client must see it; None: not at all."""
        if self.suspended:
            return None
        if method == "notifications/progress":
            token = self.request.meta.get(PROGRESS_TOKEN)
            if self.request.progress_token is None or token is None:
                return None
            if not self._is_own_progress(params):
                return None
            return encode(changed(message, {"params": changed(params, {PROGRESS_TOKEN: token})}))
        if not alone:
            return None
        if method == "notifications/message":
            return line if self._wants_log(params) else None
        return line if is_of_extension(method) else None

    def _is_own_progress(self, params: Members) -> bool:
        return integer_of(params.get(PROGRESS_TOKEN)) == self.number

    def _wants_log(self, params: Members) -> bool:
        level, wanted = string_of(params.get("level")), self.request.log_level
        if level not in LOG_LEVELS or wanted not in LOG_LEVELS:
            return False
        return LOG_LEVELS.index(level) >= LOG_LEVELS.index(wanted)

    def finish(
        self,
        output: ServerOutput,
        response: Members,
        server_info: msgspec.Raw | None,
        keys: ServerRequests,
    ) -> None:
        """
        Put the server's response into an output; `keys` gives those of `inputRequests`.

        A server that wants the user to visit a URL says so in an error.  It
        becomes an `input_required` result without state: the retry is a
        request like any other.
        """
        request = self.request
        result, error = outcome_of(response)
        if error is None:
            complete = to_modern_result(request.method, result or {}, server_info)
            output.response = result_line(request.id, complete)
            return
        wanted = read_url_elicitations(request.method, error)
        if not wanted:
            failure = {"jsonrpc": "2.0", "id": request.id, "error": to_modern_error(error)}
            output.response = encode(failure)
        elif (refusal := missing_capability(wanted[0], request)) is not None:
            output.refusal = refusal
        else:
            asked = input_requests({keys.new_key(): each for each in wanted})
            required = input_required_result(asked, None, server_info)
            output.response = result_line(request.id, required)
