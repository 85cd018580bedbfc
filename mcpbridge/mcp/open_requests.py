"""
How many requests of a client its server has not answered, where nothing else knows.

Counts, and does not remember ids: each costs a small part of what a message costs, and the
number is needed once, when the bridge is about to stop.  Knows messages; must not know
sessions.
"""

from __future__ import annotations

import re
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
from mcpbridge.jsonrpc.oversized import peek_at_server

#: The ids of how many cancelled requests are remembered.  More count as not answered.
CANCELLED_IDS = 64

_CANCELLED = "notifications/cancelled"
#: The beginnings of an answer, as nearly all servers write it.
_PLAIN_ANSWER = re.compile(
    rb'\{(?:"jsonrpc":"2\.0","id":(?:[0-9]+|"[^"\\]*+"),"(?:result|error)":|"result":)'
)
#: Tells whether a message of a server is an answer at the first look: None if it has to be read.
is_plain_answer = _PLAIN_ANSWER.match


class OpenRequests:
    """
    Counts the requests of one client, until each is answered.

    The answer to a cancelled request may come, or not: it is not waited for.
    """

    __slots__ = ("_cancelled", "_open")

    def __init__(self) -> None:
        self._open = 0
        #: The ids of requests that were cancelled, until they are answered nevertheless.
        self._cancelled: set[JsonRpcId] = set()

    def __len__(self) -> int:
        return self._open - len(self._cancelled)

    def posted(self, line: bytes, envelope: Envelope | None) -> int:
        """
        Count what a client asks for with a message, or with a batch, whose envelope is None;
        return how many requests that is, for `undo`.
        """
        if envelope is None:
            asked = sum(each.is_request for _, each in _elements(line))
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
        for element, each in _elements(line):
            if each.method == _CANCELLED:
                self._cancel(element)

    def sent(self, line: bytes) -> Envelope | None:
        """
        Note a message that goes to the client; return its envelope if it had to be read and is
        none of an answer.
        """
        if not self._cancelled and is_plain_answer(line) is not None:
            if self._open:
                self._open -= 1
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

    def _answered(self, envelope: Envelope) -> None:
        if not self._open:
            return
        self._open -= 1
        if self._cancelled:
            self._cancelled.discard(envelope.id)
            other = other_spelling(envelope.id)
            if other is not UNSET:
                self._cancelled.discard(other)
            if len(self._cancelled) > self._open:
                # The answer to one of them was on its way before it was cancelled.
                self._cancelled.clear()

    def _cancel(self, line: bytes) -> None:
        ident = cancelled_id(line)
        if ident is not UNSET and len(self._cancelled) < min(self._open, CANCELLED_IDS):
            self._cancelled.add(ident)


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
