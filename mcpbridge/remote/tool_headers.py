"""
Finds out which arguments of a server's tools must be repeated in headers (`x-mcp-header`).

A list of tools that a client asks for says so on its way.  Where none has passed, or tools
have changed, a call is refused, and the list is read by a request of the bridge's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId
from mcpbridge.jsonrpc.malformed_output import Lost
from mcpbridge.jsonrpc.members import encode
from mcpbridge.mcp.header_validation import annotated
from mcpbridge.mcp.own_request import own_request
from mcpbridge.mcp.posted_message import PostedMessage, read_posted
from mcpbridge.remote.calls import Call
from mcpbridge.remote.context import Context
from mcpbridge.remote.responses import ErrorBody

#: How many pages of a list of tools are read.
MAX_PAGES = 20


async def read_tools(context: Context) -> None:
    """Read the list of tools, as far as it can be read, and keep what it says of headers."""
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        params: dict[str, object] = {} if cursor is None else {"cursor": cursor}
        page = await _OwnCall(context, read_posted(encode(own_request("tools/list", params).outer)))
        if page is None:
            return
        found, cursor = annotated(page)
        context.server.learn(found)
        if cursor is None:
            return


class _OwnCall:
    """A request of the bridge's own, of which nobody above knows."""

    def __init__(self, context: Context, message: PostedMessage) -> None:
        #: Fires with the result; with None if there is none.
        self._result: Deferred[msgspec.Raw | None] = Deferred()
        self._reports = context.reports
        Call(message, self, replace(context, reports=self)).post()

    def __await__(self) -> Any:
        return self._result.__await__()

    def _settle(self, result: msgspec.Raw | None) -> None:
        if not self._result.called:
            self._result.callback(result)

    # The owner of the call.

    def headers_of(self, message: PostedMessage) -> dict[str, str]:
        """Return the headers of a modern request."""
        return dict(message.headers())

    def session_headers(self) -> dict[str, str]:
        """Return none: there is no session."""
        return {}

    def responded(self, call: Call, response: Any) -> None:
        """Do nothing."""

    def answered(self, call: Call, envelope: Envelope, ident: JsonRpcId) -> None:
        """Take the result."""
        result = envelope.result
        self._settle(None if isinstance(result, msgspec.UnsetType) else result)

    def refused(self, call: Call, error: ErrorBody, location: str) -> None:
        """Do without."""
        call.drop()

    def deferred(self, call: Call) -> bool:
        """Return False: there is no GET stream."""
        return False

    def unusable(self, call: Call, what: str) -> bool:
        """Return False: the session goes on."""
        return False

    def cannot_connect(self, call: Call, why: str) -> None:
        """Do without: whoever has asked finds out whether the session can go on."""
        call.drop()

    def lost(self, call: Call, why: str) -> None:
        """Do without."""
        call.drop()

    def overdue(self, call: Call) -> None:
        """Do without."""
        call.drop()

    def over(self, call: Call) -> None:
        """Note the end."""
        self._settle(None)

    # What the call reports.

    def messages_received(self, lines: list[bytes]) -> None:
        """Keep them from clients, who have not asked."""

    def messages_made(self, lines: list[bytes]) -> None:
        """Do the same."""

    def message_lost(self, lost: Lost) -> None:
        """Do nothing: there is no result."""

    def misbehaved(self, fault: str, what: str, line: bytes = b"") -> None:
        """Pass it on."""
        self._reports.misbehaved(fault, what, line)

    def unreachable(self, why: str) -> None:
        """Pass it on."""
        self._reports.unreachable(why)

    def died(self, what: str, status: str = "") -> None:
        """Pass it on."""
        self._reports.died(what, status)
