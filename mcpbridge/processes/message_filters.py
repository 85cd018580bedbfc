"""
The message filters of a server (`IMessageFilter`), and the answers to what they refuse.

Knows single messages and the filters' verdicts; must not know how a message
reaches the backend or the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
from twisted.logger import Logger

from mcpbridge.errors import MessageRefused
from mcpbridge.jsonrpc.envelope import peek, peek_again, split_batch
from mcpbridge.jsonrpc.members import error_line


class FilteredSession(Protocol):
    """The session whose messages are filtered; each filter is given it, too."""

    refused: int

    @property
    def label(self) -> str:
        """The part of the session's id that a log may show."""
        ...

    def answer_backend(self, line: bytes) -> None:
        """Answer a request of the backend."""


class FilteredPost(NamedTuple):
    """What filters made of the messages of one POST."""

    passed: list[bytes]
    #: JSON-RPC errors for the client, for the requests that were refused.
    answers: list[bytes]
    #: The indexes of the messages that were dropped.
    dropped: set[int]


class MessageFilters:
    """
    Asks filters about each message, the first one first.

    It has no state: one object serves all sessions of a server.
    """

    log = Logger()

    def __init__(self, filters: Sequence[Any]) -> None:
        self._filters = filters

    def from_client(self, session: FilteredSession, line: bytes) -> bytes:
        """Return a client's message as it is to pass.  Raises `MessageRefused`."""
        for each in self._filters:
            line = each.from_client(session, line)
        return line

    def from_post(self, session: FilteredSession, lines: Sequence[bytes]) -> FilteredPost:
        """
        Filter the messages of one POST, each by itself.

        A request that is refused is answered with an error, as the backend
        would do.  In the place of a refused response the backend gets an
        error, since it waits for one; a refused notification is dropped.
        """
        post = FilteredPost([], [], set())
        for number, line in enumerate(lines):
            kept = self._from_client_or_refusal(session, line, post.answers)
            if kept is None:
                post.dropped.add(number)
            else:
                post.passed.append(kept)
        return post

    def _from_client_or_refusal(
        self, session: FilteredSession, line: bytes, answers: list[bytes], *, is_batch: bool = True
    ) -> bytes | None:
        # `is_batch` is False for the elements of a batch: an array within an
        # array is no message of JSON-RPC, so its elements are not looked at.
        try:
            return self.from_client(session, line)
        except MessageRefused as refusal:
            text = str(refusal)
        elements = split_batch(line) if is_batch else None
        if elements is not None:
            return _batch_of(
                self._from_client_or_refusal(session, each, answers, is_batch=False)
                for each in elements
            )
        session.refused += 1
        envelope = peek(line) or peek_again(line)
        if envelope is None or isinstance(envelope.id, msgspec.UnsetType):
            return None
        answer = error_line(envelope.id, MessageRefused.code, text)
        if envelope.is_request:
            answers.append(answer)
            return None
        return answer if envelope.is_response else None

    def from_backend(
        self, session: FilteredSession, line: bytes, *, is_batch: bool = True
    ) -> bytes | None:
        """
        Return a backend's message as it is to pass; None where it is dropped.

        In the place of a refused response the client gets an error, since it
        waits for one.  A refused request of the backend is answered with an
        error.  A filter that fails refuses the message.  If a batch is
        refused, its messages are filtered one by one; `is_batch` is False for
        these.
        """
        filtered = line
        try:
            for each in self._filters:
                filtered = each.from_backend(session, filtered)
            return filtered
        except MessageRefused as refusal:
            text = str(refusal)
        except Exception:
            self.log.failure("a filter failed; session {label}", label=session.label)
            text = "the message could not be checked"
        elements = split_batch(line) if is_batch else None
        if elements is not None:
            return _batch_of(self.from_backend(session, each, is_batch=False) for each in elements)
        session.refused += 1
        envelope = peek(line) or peek_again(line)
        if envelope is None or isinstance(envelope.id, msgspec.UnsetType):
            return None
        answer = error_line(envelope.id, MessageRefused.code, text)
        if envelope.is_response:
            return answer
        if envelope.is_request:
            session.answer_backend(answer)
        return None


def _batch_of(messages: Iterable[bytes | None]) -> bytes | None:
    """Return the messages that passed as one batch; None if none has."""
    passed = [each for each in messages if each is not None]
    return b"[" + b",".join(passed) + b"]" if passed else None
