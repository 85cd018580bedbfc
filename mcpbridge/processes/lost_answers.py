"""
Answers of a backend that cannot pass, and the requests that fail for that.

What looks like a spoiled answer may be a copy of one, which a server wrote for
people to read, and the answer itself may be about to follow.  So a request
fails only if its answer has not come `LOST_SECONDS` later.

Knows ids, as the backend has them, and time; must not know who asked.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mcpbridge.jsonrpc.envelope import JsonRpcId, peek, peek_again
from mcpbridge.jsonrpc.ids import other_spelling

#: How long the real answer may take.
LOST_SECONDS = 0.3
#: How many are waited for at a time; of more nothing is told.
LOST_KEPT = 32


class LostAnswers:
    """Those of one backend; `fail` is called with an id, and why its request fails."""

    def __init__(self, clock: IReactorTime, fail: Callable[[JsonRpcId, str], None]) -> None:
        self._clock = clock
        self._fail = fail
        #: When each is due, and why; the oldest first.
        self._due: dict[JsonRpcId, tuple[float, str]] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._due)

    @property
    def is_full(self) -> bool:
        """Whether no more are waited for."""
        return len(self._due) >= LOST_KEPT

    def add(self, ident: JsonRpcId, why: str) -> None:
        """What looks like the answer to this request cannot pass."""
        if self.is_full or ident in self._due:
            return
        self._due[ident] = self._clock.seconds() + LOST_SECONDS, why
        if self._timer is None:
            self._timer = self._clock.callLater(LOST_SECONDS, self._tick)

    def heard(self, lines: list[bytes]) -> None:
        """The backend wrote these messages, the real answers perhaps."""
        for line in lines:
            envelope = peek(line) or peek_again(line)
            if envelope is not None and envelope.is_response:
                for ident in (envelope.id, other_spelling(envelope.id)):
                    if not isinstance(ident, msgspec.UnsetType):
                        self._due.pop(ident, None)

    def stop(self) -> None:
        """Nobody waits any more."""
        self._due.clear()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._due:
            ident, (due, why) = next(iter(self._due.items()))
            if due > now:
                self._timer = self._clock.callLater(due - now, self._tick)
                return
            del self._due[ident]
            self._fail(ident, why)
