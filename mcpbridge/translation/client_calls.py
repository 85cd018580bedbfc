"""
The requests of a legacy client at a server of 2026-07-28.

Each goes to the server with a number of the bridge's own, and says in `_meta`
everything that the session knows of its client.  Knows ids, numbers and
`_meta`; must not know what a method means.  Each step is O(1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mcpbridge.errors import IdInUse, SessionBusy
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.members import (
    Members,
    cancellation_line,
    changed,
    members_of,
    request_line,
)
from mcpbridge.jsonrpc.recent_set import Recent
from mcpbridge.mcp.inflight import CANCELLED_KEPT, MAX_IN_FLIGHT
from mcpbridge.mcp.modern_request import LOG_LEVEL

#: How many bytes are kept for calls that may need input; a single one may have more.
MAX_KEPT_BYTES = 64 * 1024 * 1024


class Step(NamedTuple):
    """
    What a message, or the time, has led to.

    Complete lines for the client and for the backend, in order, and when
    `tick` is to be called; None: not before something else happens.
    """

    to_client: list[bytes]
    to_backend: list[bytes]
    due: float | None


class ClientCall:
    """
    A request of the client that is not answered yet.

    `ident` is its id, and `raw_id` the same as it stands; `params` is kept
    for a call that may be sent again; `number` is its id at the server while
    it is in flight there; `size` is the number of bytes kept for it.

    While the client is asked for input: `rounds` counts how often it was,
    `keys` leads from the bridge's requests to keys of `inputRequests`,
    `responses` are the `inputResponses` so far, and `state` is the server's
    `requestState`.
    """

    __slots__ = (
        "ident",
        "keys",
        "method",
        "number",
        "params",
        "raw_id",
        "responses",
        "rounds",
        "size",
        "state",
    )

    def __init__(self, ident: JsonRpcId, raw_id: msgspec.Raw, method: str) -> None:
        self.ident = ident
        self.raw_id = raw_id
        self.method = method
        self.params: Members = {}
        self.number: int | None = None
        self.size = 0
        self.rounds = 0
        self.keys: dict[str, str] = {}
        self.responses: dict[str, msgspec.Raw] = {}
        self.state: msgspec.Raw | None = None


class ClientCalls:
    """
    The calls that are not answered yet.

    `meta` is what every request says in `_meta`; a member that is `UNSET` is
    removed from what the client gave.
    """

    def __init__(self) -> None:
        self.meta: dict[str, object] = {LOG_LEVEL: msgspec.UNSET}
        self._last_number = 0
        self._by_id: dict[JsonRpcId, ClientCall] = {}
        self._by_number: dict[JsonRpcId | msgspec.UnsetType, ClientCall] = {}
        self._kept_bytes = 0
        #: The numbers of cancelled requests, whose answers may still come.
        self.cancelled: Recent[int] = Recent(CANCELLED_KEPT)

    def add(self, call: ClientCall, size: int = 0) -> None:
        """
        Wait for the answer to a call, and count `size` bytes that are kept for it.

        Raise `IdInUse` and `SessionBusy`; then nothing was stored.
        """
        if call.ident in self._by_id:
            raise IdInUse.of(bytes(call.raw_id))
        if len(self._by_id) >= MAX_IN_FLIGHT:
            raise SessionBusy(f"no more than {MAX_IN_FLIGHT} requests of a session may be open")
        if not self.count(call, size):
            raise SessionBusy("the open requests of the session are too large together")
        self._by_id[call.ident] = call

    def count(self, call: ClientCall, size: int) -> bool:
        """Count more bytes for a call, or fewer; return False where `MAX_KEPT_BYTES` forbids it."""
        others = self._kept_bytes - call.size
        if others and size > 0 and self._kept_bytes + size > MAX_KEPT_BYTES:
            return False
        call.size += size
        self._kept_bytes += size
        return True

    def settle(self, call: ClientCall) -> None:
        """Stop waiting for the answer to a call."""
        del self._by_id[call.ident]
        self._by_number.pop(call.number, None)
        self._kept_bytes -= call.size

    def restore(self, call: ClientCall) -> None:
        """Undo `settle`."""
        self._by_id[call.ident] = self._by_number[call.number] = call
        self._kept_bytes += call.size

    def is_open(self, call: ClientCall) -> bool:
        """Tell whether a call waits for its answer."""
        return self._by_id.get(call.ident) is call

    def with_id(self, ident: JsonRpcId) -> ClientCall | None:
        """Return the open call that has this id at the client."""
        return self._by_id.get(ident)

    def new_request(self, method: str, params: Mapping[str, object]) -> tuple[int, bytes]:
        """Return the number and the line of a new request to the server."""
        self._last_number += 1
        given = params.get("_meta")
        meta = changed(members_of(given) if isinstance(given, msgspec.Raw) else {}, self.meta)
        return self._last_number, request_line(self._last_number, method, {**params, "_meta": meta})

    def send(self, call: ClientCall, method: str, params: Mapping[str, object]) -> bytes:
        """Return the line that puts a call to the server."""
        call.number, line = self.new_request(method, params)
        self._by_number[call.number] = call
        return line

    def send_again(self, call: ClientCall) -> bytes:
        """Return the line of a retry, with `inputResponses` and `requestState`."""
        params: dict[str, object] = dict(call.params)
        if call.responses:
            params["inputResponses"] = call.responses
        if call.state is not None:
            params["requestState"] = call.state
        return self.send(call, call.method, params)

    def undo_send(self, call: ClientCall) -> None:
        """Undo `send`, whose line did not reach the server; the call stays open."""
        del self._by_number[call.number]
        call.number = None

    def take_answered(self, number: JsonRpcId | msgspec.UnsetType) -> ClientCall | None:
        """Return the call that the server has answered under this number; it stays open."""
        call = self._by_number.pop(number, None)
        if call is not None:
            call.number = None
        return call

    def cancel(self, number: int, reason: str | None = None) -> bytes:
        """Return the line that cancels a request at the server, whose answer may be on its way."""
        self.cancelled.add(number)
        return cancellation_line(number, reason)
