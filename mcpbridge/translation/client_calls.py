"""
The requests of a legacy client at a backend of 2026-07-28: each is sent with
a number of the bridge's own, and says in `_meta` all that the session knows.

Knows ids, numbers and `_meta`; must not know what a method means.  Each step
is O(1).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mcpbridge.errors import IdInUse, SessionBusy
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.members import Members, cancellation_line, changed, members_of, request_line
from mcpbridge.jsonrpc.recent import Recent
from mcpbridge.mcp.inflight import CANCELLED_KEPT, MAX_IN_FLIGHT
from mcpbridge.mcp.modern_request import LOG_LEVEL

#: How many bytes are kept for the calls that may come back; one alone may have more.
MAX_KEPT_BYTES = 64 * 1024 * 1024


class ClientCall:
    """
    A request of the client that is not answered yet.

    `ident` is its id, as it stands in `shown`; `params`, for a call that may
    come back, what it is sent with; `number`, its id at the backend while it
    is in flight there; `size`, the bytes that are kept for it.
    """

    __slots__ = (
        "answers",
        "ident",
        "method",
        "number",
        "params",
        "questions",
        "rounds",
        "shown",
        "size",
        "state",
    )

    def __init__(self, ident: JsonRpcId, shown: msgspec.Raw, method: str) -> None:
        self.ident = ident
        self.shown = shown
        self.method = method
        self.params: Members = {}
        self.number: int | None = None
        self.size = 0
        self.rounds = 0
        self.state: msgspec.Raw | None = None
        self.questions: dict[str, str] = {}
        self.answers: dict[str, msgspec.Raw] = {}


class ClientCalls:
    """
    Those that are not answered yet.

    `meta` is what each request says: members of `_meta`, as they stand; one
    that is `UNSET` is taken out of what the client says.
    """

    def __init__(self) -> None:
        self.meta: dict[str, object] = {LOG_LEVEL: msgspec.UNSET}
        self._numbers = 0
        self._by_id: dict[JsonRpcId, ClientCall] = {}
        self._by_number: dict[JsonRpcId | msgspec.UnsetType, ClientCall] = {}
        self._kept = 0
        #: Those whose answers may come, but are not waited for.
        self.late: Recent[int] = Recent(CANCELLED_KEPT)

    def record(self, call: ClientCall, size: int = 0) -> None:
        """
        Wait for an answer, and keep that many bytes for it.  Raises `IdInUse`
        and `SessionBusy`; then nothing was stored.
        """
        if call.ident in self._by_id:
            raise IdInUse.of(bytes(call.shown))
        if len(self._by_id) >= MAX_IN_FLIGHT:
            raise SessionBusy(f"no more than {MAX_IN_FLIGHT} requests of a session may be open")
        if not self.keep(call, size):
            raise SessionBusy("the open requests of the session are too large together")
        self._by_id[call.ident] = call

    def keep(self, call: ClientCall, size: int) -> bool:
        """Keep more bytes for a call, or less; False where there is no room, and nothing is."""
        others = self._kept - call.size
        if others and size > 0 and self._kept + size > MAX_KEPT_BYTES:
            return False
        call.size += size
        self._kept += size
        return True

    def settle(self, call: ClientCall) -> None:
        """Wait for no answer to it."""
        del self._by_id[call.ident]
        self._by_number.pop(call.number, None)
        self._kept -= call.size

    def restore(self, call: ClientCall) -> None:
        """Wait for it again, as before `settle`."""
        self._by_id[call.ident] = self._by_number[call.number] = call
        self._kept += call.size

    def has(self, call: ClientCall) -> bool:
        """Whether it waits for an answer."""
        return self._by_id.get(call.ident) is call

    def with_id(self, ident: JsonRpcId) -> ClientCall | None:
        """The call with that id of the client."""
        return self._by_id.get(ident)

    def ask(self, method: str, params: Mapping[str, object]) -> tuple[int, bytes]:
        """A request for the backend: its number, and its line."""
        self._numbers += 1
        given = params.get("_meta")
        meta = changed(members_of(given) if isinstance(given, msgspec.Raw) else {}, self.meta)
        return self._numbers, request_line(self._numbers, method, {**params, "_meta": meta})

    def send(self, call: ClientCall, method: str, params: Mapping[str, object]) -> bytes:
        """The line that asks the backend what a call wants to know."""
        call.number, line = self.ask(method, params)
        self._by_number[call.number] = call
        return line

    def retry(self, call: ClientCall) -> bytes:
        """The same once more, with the answers to the backend's questions and its state."""
        params: dict[str, object] = dict(call.params)
        if call.answers:
            params["inputResponses"] = call.answers
        if call.state is not None:
            params["requestState"] = call.state
        return self.send(call, call.method, params)

    def unsend(self, call: ClientCall) -> None:
        """It did not reach the backend, but waits on."""
        del self._by_number[call.number]
        call.number = None

    def answered(self, number: JsonRpcId | msgspec.UnsetType) -> ClientCall | None:
        """The backend has answered that number: in flight no more.  None: it was not."""
        call = self._by_number.pop(number, None)
        if call is not None:
            call.number = None
        return call

    def cancellation(self, number: int, reason: str | None = None) -> bytes:
        """The line that cancels a request, for the backend, whose answer may be on its way."""
        self.late.add(number)
        return cancellation_line(number, reason)
