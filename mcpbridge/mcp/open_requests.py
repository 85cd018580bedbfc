"""
How many requests of a client its server has not answered, where nothing else knows.

Counts, and hardly remembers ids: each message costs a small part of what it costs anyway,
and the number is needed once, when the bridge is about to stop.  Where something is in doubt
there are rather too many than too few.  Knows messages; must not know sessions.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from msgspec import UNSET

from mcpbridge.jsonrpc.envelope import (
    Envelope,
    JsonRpcId,
    cancelled_id,
    peek,
    peek_again,
    split_batch,
)
from mcpbridge.jsonrpc.ids import other_spelling
from mcpbridge.jsonrpc.members import encode
from mcpbridge.jsonrpc.oversized import peek_at_server
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES

#: The ids of how many cancelled requests are remembered.
CANCELLED_IDS = 64
#: Of how many answers it is known that they have passed, in case one is cancelled too late.
LAST_ANSWERS = 16

_CANCELLED = "notifications/cancelled"
#: The beginnings of an answer, as nearly all servers write it.
_PLAIN_ANSWER = re.compile(
    rb'\{(?:"jsonrpc":"2\.0","id":([0-9]+|"[^"\\]*+"),"(?:result|error)":|"result":)'
)
#: Tells whether a message of a server is an answer at the first look: None if it has to be read.
is_plain_answer = _PLAIN_ANSWER.match
#: So much of the end of an answer has its id, if the beginning has not.
_ID_BYTES = 64


class OpenRequests:
    """
    Counts the requests of one client, until each is answered.

    The answer to a cancelled request may come, or not: it counts as open until
    `give_up_cancelled`.
    """

    __slots__ = ("_answers", "_cancelled", "_open")

    def __init__(self) -> None:
        self._open = 0
        #: The ids of requests that were cancelled, the oldest first, until they are answered.
        self._cancelled: dict[JsonRpcId, None] = {}
        #: The ids of the last answers in JSON, or their ends, which have the ids.
        self._answers: deque[bytes] = deque(maxlen=LAST_ANSWERS)

    def __len__(self) -> int:
        return self._open

    def posted(self, line: bytes, envelope: Envelope | None, count: int = 1) -> int:
        """
        Count what a client asks for with a message, or with a batch of `count` messages,
        whose envelope is None; return how many requests that is, for `undo`.
        """
        if envelope is None:
            # A large batch was read in slices, and would take long to read again.
            small = len(line) <= LARGE_BYTES
            asked = sum(each.is_request for _, each in _elements(line)) if small else count
            self._open += asked
            return asked
        if envelope.id is UNSET or envelope.method is UNSET:
            return 0
        self._open += 1
        return 1

    def undo(self, asked: int) -> None:
        """Count requests no more that did not reach the server."""
        self._open -= asked

    def taken(self, line: bytes, envelope: Envelope | None) -> None:
        """Note that the server has got no request, but another message or a batch."""
        if envelope is not None:
            if envelope.method == _CANCELLED:
                self._cancel(line)
            return
        for element, each in _elements(line) if len(line) <= LARGE_BYTES else ():
            if each.method == _CANCELLED:
                self._cancel(element)

    def sent(self, line: bytes) -> Envelope | None:
        """
        Note a message that goes to the client; return its envelope if it had to be read and is
        none of an answer.
        """
        plain = is_plain_answer(line)
        if plain is not None and not self._cancelled:
            if self._open:
                self._open -= 1
                self._answers.append(plain[1] or line[-_ID_BYTES:])
            return None
        envelope = peek_at_server(line)
        if envelope is not None:
            if not envelope.is_response:
                return envelope
            self._answered(envelope)
            return None
        found = peek_again(line)
        for _, each in _elements(line) if found is None else [(line, found)]:
            if each.is_response:
                self._answered(each)
        return found

    def give_up_cancelled(self) -> None:
        """Count requests no more that were cancelled, and have not been answered."""
        self._open -= min(self._open, len(self._cancelled))
        self._cancelled.clear()

    def _answered(self, envelope: Envelope) -> None:
        ident = envelope.id
        # An error without an id is about something that could not be read.
        if not self._open or ident is None or ident is UNSET:
            return
        self._open -= 1
        self._answers.append(encode(ident))
        if self._cancelled:
            self._cancelled.pop(ident, None)
            other = other_spelling(ident)
            if other is not UNSET:
                self._cancelled.pop(other, None)

    def _cancel(self, line: bytes) -> None:
        ident = cancelled_id(line)
        if ident is UNSET or not self._open or ident in self._cancelled or self._is_late(ident):
            return
        if len(self._cancelled) >= CANCELLED_IDS:
            # It was cancelled long ago, and will not be answered.
            del self._cancelled[next(iter(self._cancelled))]
            self._open -= 1
        self._cancelled[ident] = None

    def _is_late(self, ident: JsonRpcId) -> bool:
        """Tell whether a request was answered just before it was cancelled."""
        text = encode(ident)
        end = b'"id":' + text + b"}"
        return any(each == text or each.endswith(end) for each in self._answers)


def asks(line: bytes, envelope: Envelope | None) -> bool:
    """Tell whether a message is a request, or a batch (without an envelope) has one."""
    if envelope is not None:
        return envelope.is_request
    return any(each.is_request for _, each in _elements(line))


def _elements(line: bytes) -> Iterator[tuple[bytes, Envelope]]:
    """Yield the messages of a batch that can be read."""
    for element in split_batch(line) or ():
        found = peek(element) or peek_again(element)
        if found is not None:
            yield element, found
