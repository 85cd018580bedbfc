"""
How long a remote server that owes something may send nothing (`response_timeout`).

Time does not count while the server cannot be heard, as the bridge does not read, nor
while the server itself waits for its client, which may have to ask a human.

Knows time, and which requests of the server are open; must not know what it owes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, peek, peek_again, split_batch
from mcpbridge.jsonrpc.ids import is_answer_to
from mcpbridge.timers import Timer

#: How many requests of the server that wait for its client are remembered.
QUESTIONS_KEPT = 256


class Watched(Protocol):
    """Something of which the server owes a part."""

    heard_at: float

    def overdue(self) -> None:
        """The server has sent nothing for too long."""


class Silence:
    """
    Finds what has heard nothing for `seconds`; 0 is never.

    There is one timer for all, so that a piece of a response costs an assignment.
    `is_deaf` tells whether the bridge reads nothing, or not all.
    """

    def __init__(
        self, clock: IReactorTime, seconds: float, is_deaf: Callable[[], bool] = lambda: False
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._is_deaf = is_deaf
        self._watched: dict[Watched, None] = {}
        #: The ids of the server's requests that the client has not answered.
        self._questions: dict[JsonRpcId, None] = {}
        self._timer = Timer(clock)

    def watch(self, each: Watched) -> None:
        """Begin to watch."""
        each.heard_at = self._clock.seconds()
        self._watched[each] = None
        if self._seconds and not self._timer.is_running:
            self._timer.start(self._seconds, self._look)

    def unwatch(self, each: Watched) -> None:
        """Watch no more."""
        self._watched.pop(each, None)
        if not self._watched:
            self.stop()

    def stop(self) -> None:
        """Watch nothing any more."""
        self._watched.clear()
        self._questions.clear()
        self._timer.stop()

    def begin_again(self) -> None:
        """Count from now on: only now can the server be heard, or go on."""
        now = self._clock.seconds()
        for each in self._watched:
            each.heard_at = now

    def server_sent(self, envelopes: Iterable[Envelope]) -> None:
        """Note the requests among messages of the server."""
        for each in envelopes:
            if each.method == "notifications/cancelled":
                # One of its requests is not answered then; which one need not be known.
                self._questions.clear()
            elif each.is_request and each.method != "ping" and self._watched:
                self._note(each.id)

    def _note(self, ident: object) -> None:
        if isinstance(ident, str | int | float):
            self._questions[ident] = None
            if len(self._questions) > QUESTIONS_KEPT:
                del self._questions[next(iter(self._questions))]

    def client_answered(self, line: bytes) -> None:
        """Note the answer of the client to one request of the server, or to several."""
        if not self._questions:
            return
        for part in split_batch(line) or [line]:
            envelope = peek(part) or peek_again(part)
            if envelope is not None and envelope.is_response:
                ident = envelope.id
                for asked in [each for each in self._questions if is_answer_to(ident, each)]:
                    del self._questions[asked]
        self.begin_again()

    def _look(self) -> None:
        if self._questions or self._is_deaf():
            self.begin_again()
        latest = self._clock.seconds() - self._seconds
        for each in [each for each in self._watched if each.heard_at <= latest]:
            self._watched.pop(each, None)
            each.overdue()
        if self._watched:
            first = min(each.heard_at for each in self._watched)
            wait = max(0.0, first + self._seconds - self._clock.seconds())
            self._timer.start(wait, self._look)
