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
from twisted.python.failure import Failure

from mcpbridge.errors import MessageRefused
from mcpbridge.jsonrpc.envelope import peek, peek_again, split_batch
from mcpbridge.jsonrpc.members import error_line

#: The messages of a backend's batch that filters look at one by one, in one turn of the reactor.
MAX_FILTERED_BATCH = 1000


class FilteredSession(Protocol):
    """The session whose messages are filtered; each filter is given it, too."""

    refused: int

    @property
    def label(self) -> str:
        """The part of the session's id that a log may show."""
        ...

    def answer_backend(self, line: bytes) -> None:
        """Answer a request of the backend."""

    def warn(self, fault: str, what: str) -> None:
        """Log a warning about the backend; `fault` is the kind of mistake."""


class FilteredPost(NamedTuple):
    """What filters made of the messages of one POST."""

    passed: list[bytes]
    #: JSON-RPC errors for the client, for the requests that were refused.
    answers: list[bytes]
    #: The indexes of the messages that were dropped.
    dropped: set[int]


class _FilterFailed(MessageRefused):
    """Refuses a message because a filter raised another exception, which is kept."""

    def __init__(self, error: Exception) -> None:
        super().__init__("the message could not be checked")
        self.error = error


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

    def from_backend(self, session: FilteredSession, line: bytes) -> bytes | None:
        """
        Return a backend's message as it is to pass; None where it is dropped.

        In the place of a refused response the client gets an error, since it
        waits for one.  A refused request of the backend is answered with an
        error.  A filter that fails refuses the message.  If a batch is
        refused, its messages are filtered one by one; one of more than
        `MAX_FILTERED_BATCH` messages is dropped with a warning.
        """
        verdict = self._verdict(session, line)
        if isinstance(verdict, bytes):
            return verdict
        elements = split_batch(line)
        if not elements:
            self._log_failure(session, [verdict])
            return self._refuse(session, line, verdict)
        if len(elements) > MAX_FILTERED_BATCH:
            self._log_failure(session, [verdict])
            session.refused += len(elements)
            session.warn(
                "filtered batch",
                f"a filter refused a batch of {len(elements)} messages; it is dropped with all its"
                f" responses, because no more than {MAX_FILTERED_BATCH} messages are filtered one"
                " by one (MAX_FILTERED_BATCH)",
            )
            return None
        verdicts = [self._verdict(session, each) for each in elements]
        self._log_failure(session, [verdict, *verdicts])
        return _batch_of(
            each if isinstance(each, bytes) else self._refuse(session, element, each)
            for element, each in zip(elements, verdicts, strict=True)
        )

    def _verdict(self, session: FilteredSession, line: bytes) -> bytes | MessageRefused:
        """Return the message as it is to pass, or its refusal."""
        try:
            for each in self._filters:
                line = each.from_backend(session, line)
            return line
        except MessageRefused as refusal:
            return refusal
        except Exception as error:
            return _FilterFailed(error)

    def _log_failure(
        self, session: FilteredSession, verdicts: Iterable[bytes | MessageRefused]
    ) -> None:
        """Log the first failure of a filter: the messages of a batch may all have the same one."""
        for each in verdicts:
            if isinstance(each, _FilterFailed):
                text = "a filter failed; session {session}"
                self.log.failure(text, Failure(each.error), session=session.label)
                return

    def _refuse(
        self, session: FilteredSession, line: bytes, refusal: MessageRefused
    ) -> bytes | None:
        session.refused += 1
        envelope = peek(line) or peek_again(line)
        if envelope is None or isinstance(envelope.id, msgspec.UnsetType):
            return None
        answer = error_line(envelope.id, MessageRefused.code, str(refusal))
        if envelope.is_response:
            return answer
        if envelope.is_request:
            session.answer_backend(answer)
        return None


def _batch_of(messages: Iterable[bytes | None]) -> bytes | None:
    """Return the messages that passed as one batch; None if none has."""
    passed = [each for each in messages if each is not None]
    return b"[" + b",".join(passed) + b"]" if passed else None
