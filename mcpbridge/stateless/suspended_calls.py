"""
Calls that wait for their clients' answers, and the `requestState` that brings
a retry to its own.

Knows which worker waits with which call; must not know what is asked.
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

#: Bytes of a signing key that is made at startup, and of a suspended call's handle.
KEY_BYTES = 32
HANDLE_BYTES = 16


class SuspendedCalls:
    """The suspended workers of a server, each under a random handle."""

    def __init__(self, settings: ServerSettings, clock: IReactorTime) -> None:
        self._settings = settings
        self._clock = clock
        key = settings.request_state_key
        self._key = StateKey(token_bytes(KEY_BYTES) if key is None else key.encode("utf-8"))
        self._workers: dict[str, ExclusiveWorker] = {}
        self._handles: dict[ExclusiveWorker, str] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, worker: ExclusiveWorker, identity: str, request: ModernRequest) -> str:
        """Suspend a worker with this call; return the `requestState` for its client."""
        handle = token_urlsafe(HANDLE_BYTES)
        self._workers[handle] = worker
        self._handles[worker] = handle
        timeout = self._settings.input_timeout
        return self._key.seal(handle, identity, request, self._clock.seconds(), timeout)

    def remove(self, worker: ExclusiveWorker) -> None:
        """Make its `requestState` void, and release its claim; no matter if it is not here."""
        handle = self._handles.pop(worker, None)
        if handle is not None:
            del self._workers[handle]
            claim, worker.claim = worker.claim, None
            if claim is not None:
                claim.release()

    def find(self, exchange: Exchange, state: str) -> ExclusiveWorker:
        """Return the worker that waits for this retry.  Raises `InvalidRequestState`."""
        handle = self._key.open(state, exchange.identity, exchange.request, self._clock.seconds())
        worker = self._workers.get(handle)
        if worker is None or not worker.translator.is_suspended:
            raise InvalidRequestState(
                "what waited for this input is over; send the request again without requestState"
            )
        return worker

    def has(self, exchange: Exchange) -> bool:
        """Return whether a worker waits for this request, as its retry."""
        request = exchange.request
        if not self._workers or request.method not in INPUT_REQUIRED_METHODS:
            return False
        try:
            state = presented(request)
            return state is not None and self.find(exchange, state) is not None
        except InvalidRequestState:
            return False
