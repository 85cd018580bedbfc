"""
Calls that wait for their clients, and what brings a client back to its own.

Knows which process waits with which call; must not know what is asked.
"""

from __future__ import annotations

from secrets import token_bytes, token_urlsafe

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import InvalidRequestState
from mcpbridge.mcp.modern_request import INPUT_REQUIRED_METHODS, ModernRequest
from mcpbridge.mcp.request_state import StateKey, presented
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.stateless.exclusive_worker import ExclusiveWorker

#: The length of a key that is made at start, and of what names a parked call.
KEY_BYTES = 32
HANDLE_BYTES = 16


class SuspendedCalls:
    """The parked processes of a server, each with a name that counts until it leaves."""

    def __init__(self, settings: ServerSettings, clock: IReactorTime) -> None:
        self._settings = settings
        self._clock = clock
        key = settings.request_state_key
        self._key = StateKey(token_bytes(KEY_BYTES) if key is None else key.encode("utf-8"))
        self._parked: dict[str, ExclusiveWorker] = {}
        self._handles: dict[ExclusiveWorker, str] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def enter(self, process: ExclusiveWorker, identity: str, request: ModernRequest) -> str:
        """A process waits with this call; returns the state for its client."""
        handle = token_urlsafe(HANDLE_BYTES)
        self._parked[handle] = process
        self._handles[process] = handle
        timeout = self._settings.input_timeout
        return self._key.seal(handle, identity, request, self._clock.seconds(), timeout)

    def leave(self, process: ExclusiveWorker) -> None:
        """It does not wait any more, if it did: no state leads to it."""
        handle = self._handles.pop(process, None)
        if handle is not None:
            del self._parked[handle]
            claim, process.claim = process.claim, None
            if claim is not None:
                claim.release()

    def find(self, exchange: Exchange, state: str) -> ExclusiveWorker:
        """The process that waits for this retry.  Raises `InvalidRequestState`."""
        handle = self._key.open(state, exchange.identity, exchange.request, self._clock.seconds())
        process = self._parked.get(handle)
        if process is None or not process.conversation.parked:
            raise InvalidRequestState(
                "what waited for this input is over; send the request again without requestState"
            )
        return process

    def awaits(self, exchange: Exchange) -> bool:
        """Whether there is one."""
        request = exchange.request
        if not self._parked or request.method not in INPUT_REQUIRED_METHODS:
            return False
        try:
            state = presented(request)
            return state is not None and self.find(exchange, state) is not None
        except InvalidRequestState:
            return False
