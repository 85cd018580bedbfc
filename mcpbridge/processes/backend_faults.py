"""
What happens where a backend does what MCP forbids: which calls fail, and what the log is told.

Knows single messages and the ids that the backend uses; must not know which
client sent a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from mcpbridge.errors import INTERNAL_ERROR
from mcpbridge.jsonrpc.envelope import JsonRpcId, peek, peek_again
from mcpbridge.jsonrpc.ids import other_spelling
from mcpbridge.jsonrpc.malformed_output import Lost, unreadable
from mcpbridge.jsonrpc.members import encode, error_line
from mcpbridge.processes.stderr_log import printable
from mcpbridge.timers import Timer

#: Seconds within which the real answer may follow what looks like a damaged copy of it.
LOST_SECONDS = 0.3
#: So many answers are awaited at a time; further damaged ones are ignored.
LOST_KEPT = 32
#: So many characters of a faulty line are shown in a warning.
SHOWN_CHARS = 200


class FaultySession(Protocol):
    """The session of a backend that makes mistakes."""

    def only_open_request(self) -> JsonRpcId | msgspec.UnsetType:
        """
        Return the backend's id of the only request that it has to answer;
        UNSET where it has to answer none, several, or an unknown number.
        """
        ...

    def answer_backend(self, line: bytes) -> None:
        """Answer a request of the backend."""

    def answer_for_backend(self, line: bytes) -> None:
        """Answer a request of the client in the backend's place."""

    def message_lost(self, lost: Lost) -> None:
        """Handle a message that cannot pass, unless the session has ended."""

    def warn(self, fault: str, what: str) -> None:
        """Log a warning about the backend; `fault` is the kind of mistake."""


class LostAnswers:
    """
    Damaged answers of one backend, until the real ones come or their requests fail.

    What looks like a damaged answer may be a copy that the server wrote for
    people to read, and the answer itself may be about to follow.  So a request
    fails only if its answer has not come `LOST_SECONDS` later; then `fail` is
    called with its id, as the backend spells it, and the reason.
    """

    def __init__(self, clock: IReactorTime, fail: Callable[[JsonRpcId, str], None]) -> None:
        self._clock = clock
        self._fail = fail
        #: When each request fails, and why; the oldest first.
        self._due: dict[JsonRpcId, tuple[float, str]] = {}
        self._timer = Timer(clock)

    def __len__(self) -> int:
        return len(self._due)

    @property
    def is_full(self) -> bool:
        """True while as many answers are awaited as may be."""
        return len(self._due) >= LOST_KEPT

    def add(self, ident: JsonRpcId, why: str) -> None:
        """Note that what looks like the answer to this request cannot pass."""
        if self.is_full or ident in self._due:
            return
        self._due[ident] = self._clock.seconds() + LOST_SECONDS, why
        if not self._timer.is_running:
            self._timer.start(LOST_SECONDS, self._fail_overdue)

    def messages_received(self, lines: list[bytes]) -> None:
        """Look for real answers among the backend's messages."""
        for line in lines:
            envelope = peek(line) or peek_again(line)
            if envelope is not None and envelope.is_response:
                for ident in (envelope.id, other_spelling(envelope.id)):
                    if not isinstance(ident, msgspec.UnsetType):
                        self._due.pop(ident, None)

    def stop(self) -> None:
        """Forget all of them: no request fails any more."""
        self._due.clear()
        self._timer.stop()

    def _fail_overdue(self) -> None:
        now = self._clock.seconds()
        while self._due:
            ident, (due, why) = next(iter(self._due.items()))
            if due > now:
                self._timer.start(due - now, self._fail_overdue)
                return
            del self._due[ident]
            self._fail(ident, why)


class BackendFaults:
    """
    Deals with the mistakes of one backend, each at the lowest cost: a message
    that cannot pass costs no more than itself.
    """

    def __init__(self, session: FaultySession, clock: IReactorTime) -> None:
        self._session = session
        self._lost_answers = LostAnswers(clock, self._fail)
        #: True while the bridge itself delivers an error in the backend's place.
        self._failing = False

    def stop(self) -> None:
        """The session ends: fail no more requests."""
        self._lost_answers.stop()

    def messages_received(self, lines: list[bytes]) -> None:
        """Look among the backend's messages for those that were taken for lost."""
        if self._lost_answers:
            self._lost_answers.messages_received(lines)

    def message_lost(self, lost: Lost) -> None:
        """
        Handle a message that cannot pass.  The request that it answers fails,
        a request of the backend is answered with an error, and a notification
        is dropped.
        """
        ident = lost.ident
        if ident is msgspec.UNSET and lost.certain and not lost.has_method:
            ident = self._session.only_open_request()
        self._session.warn(lost.fault, f"{lost.why}; {_consequence(lost, ident)}")
        if ident is msgspec.UNSET:
            return
        if not lost.certain:
            self._lost_answers.add(ident, lost.why)
        elif lost.has_method:
            self._session.answer_backend(error_line(ident, INTERNAL_ERROR, lost.why))
        else:
            self._fail(ident, lost.why)

    def _fail(self, ident: JsonRpcId, why: str) -> None:
        self._failing = True
        try:
            self._session.answer_for_backend(error_line(ident, INTERNAL_ERROR, why))
        finally:
            self._failing = False

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        """Warn of a mistake by which nothing is lost, and show the line unless it is empty."""
        self._session.warn(fault, f"{what}: {printable(line, SHOWN_CHARS)}" if line else what)

    def message_dropped(self, why: str, line: bytes) -> None:
        """
        Warn of a backend's message that reached no client, where that is its fault.

        `why` is `invalid`, `unasked`, `request`, or something that is nobody's
        fault.  A line that is `invalid` is handled like any that cannot pass.
        """
        if self._failing:
            # The bridge wrote it, not the backend.
            return
        if why == "invalid":
            if not self._lost_answers.is_full:
                self._session.message_lost(unreadable(line))
        elif why in _DROPPED:
            envelope = peek(line) or peek_again(line)
            ident = encode(None if envelope is None else envelope.id)
            what = _DROPPED[why]
            if why == "unasked" and envelope is not None and envelope.id is None:
                why, what = "null", _NULL_ID
            self._session.warn(why, f"{what} (id {printable(ident, SHOWN_CHARS)})")


_DROPPED = {
    "unasked": (
        "the server answered a request that is not open (never made, or answered already);"
        " the answer is dropped"
    ),
    "request": "the server sent a request, which 2026-07-28 does not allow; it is dropped",
}

_NULL_ID = (
    "the server answered no request in particular, most often because it could not read one;"
    " the answer is dropped"
)


def _consequence(lost: Lost, ident: JsonRpcId | msgspec.UnsetType) -> str:
    """Say for the log what a lost message leads to."""
    if not lost.certain:
        if ident is msgspec.UNSET:
            return "it is dropped"
        return "if it is the answer to a call and no other follows, the call fails"
    if lost.has_method:
        return "it is a notification" if ident is msgspec.UNSET else "the request is refused"
    if ident is msgspec.UNSET:
        return "the call that it answers is not known, and a client may wait for it"
    return "the call that it answers fails"
