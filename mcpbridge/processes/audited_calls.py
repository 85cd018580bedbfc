"""
What the audit log says of the calls of clients: when each began, and how it ended.

Knows messages and their answers; must not know HTTP, nor how a record is written.  It is
told of messages where they pass anyway, and changes none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from twisted.internet.interfaces import IReactorTime

from mcpbridge.audit_log import AuditLog, AuditRecord, Outcome, Transport
from mcpbridge.config.tuning import AUDIT_ARGUMENT_BYTES, AUDIT_OPEN_CALLS
from mcpbridge.errors import Refused
from mcpbridge.jsonrpc.envelope import (
    Envelope,
    JsonRpcId,
    cancelled_id,
    named_param,
    peek,
    peek_again,
    split_batch,
)
from mcpbridge.jsonrpc.ids import other_spelling
from mcpbridge.jsonrpc.members import error_code_of, members_of
from mcpbridge.jsonrpc.oversized import peek_at_server
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.operations import NAMED_BY

_CANCELLED = "notifications/cancelled"

#: Why a notification is refused that nobody answers.
DROPPED = "it was dropped: a filter refuses it, or it is about something that is not there"

#: The index of a line, a message of it, its envelope, and what its parameters are read from.
_Message = tuple[int, bytes, Envelope, bytes]


class _Call(NamedTuple):
    """A call whose answer is awaited, or anything else that a client asks for."""

    began: float
    #: None for what is no message.
    method: str | None
    name: str | None
    size: int
    arguments: bytes | None
    address: str | None


class AuditedSession:
    """
    Makes the records of one session: one for each notification of its client, and one
    for each request, once that is answered, cancelled, or will not be answered any more;
    and of its streams and its end, as far as its client asks for them.

    `session` is the short id.  The answer to a request is the message of the server that
    has its id.  No more than `AUDIT_OPEN_CALLS` requests are awaited; beyond that, the
    oldest one counts as not answered.
    """

    __slots__ = ("_clock", "_identity", "_log", "_open", "_server", "_session", "_via")

    def __init__(
        self,
        log: AuditLog,
        clock: IReactorTime,
        *,
        server: str,
        session: str,
        transport: Transport,
        identity: str = "",
    ) -> None:
        self._log = log
        self._clock = clock
        self._server = server
        self._session = session
        self._via: Transport = transport
        self._identity = identity
        #: By the id, in the order in which they came.
        self._open: dict[JsonRpcId, _Call] = {}

    def __len__(self) -> int:
        return len(self._open)

    def post(
        self,
        lines: Sequence[bytes],
        envelopes: Sequence[Envelope | None],
        digests: Sequence[bytes] | None,
        send: Callable[[], Collection[int]],
        address: str | None,
    ) -> Collection[int]:
        """
        Send messages of the client to the backend by calling `send`, and note them.  It
        returns the indexes of the lines that were dropped, and so does this; of a batch a part
        may be dropped, which is not told here.  What it raises is the refusal of all of them.

        `envelopes` are theirs, None for a batch, and of large ones `digests` have the names in
        their parameters.  `address` is where this POST came from: whoever has stolen an id and
        a token need not come from where the session does.
        """
        first = envelopes[0]
        if len(lines) == 1 and first is not None:
            # Nearly every message.
            messages = [(0, lines[0], first, (digests or lines)[0])]
        else:
            messages = list(_messages(lines, envelopes, digests or lines))
        calls = [self._begin(*each[1:], address) for each in messages]
        try:
            dropped = send()
        except BaseException as error:
            self._not_sent(messages, calls, error)
            raise
        for (number, _, envelope, digest), call in zip(messages, calls, strict=True):
            if call is None or envelope.is_request:
                # A dropped request has an answer, which says why.
                continue
            if number in dropped:
                self._record("refused", call, timed=False, reason=DROPPED)
            else:
                self._record("ok", call, timed=False)
                if call.method == _CANCELLED:
                    self._cancel(digest)
        return dropped

    def done(self, what: str, address: str | None) -> None:
        """Note what a client has got that is no message: a stream, the end of its session."""
        call = _Call(self._clock.seconds(), None, None, 0, None, address)
        self._record("ok", call, timed=False, reason=what)

    def sent(self, lines: Sequence[bytes]) -> None:
        """Note messages that go to the client."""
        if not self._open:
            return
        for line in lines:
            envelope = peek_at_server(line) or peek_again(line)
            if envelope is not None:
                self._answered(envelope, len(line))
            else:
                for element in split_batch(line) or ():
                    self._answered(peek(element), len(element))

    def close(self, reason: str) -> None:
        """Note that nothing more is answered."""
        calls, self._open = list(self._open.values()), {}
        for call in calls:
            self._record("error", call, reason=f"the session has ended: {reason}")

    def _begin(
        self, line: bytes, envelope: Envelope, digest: bytes, address: str | None
    ) -> _Call | None:
        """Note a request or notification; return None for an answer of the client."""
        if not isinstance(envelope.method, str):
            return None
        method = envelope.method
        wanted = NAMED_BY.get(method)
        name = None if wanted is None else named_param(digest, wanted)
        arguments = None
        if self._log.arguments and len(line) <= LARGE_BYTES:
            arguments = _arguments(members_of(members_of(line).get("params")).get("arguments"))
        call = _Call(self._clock.seconds(), method, name, len(line), arguments, address)
        if envelope.is_request:
            ident = _id(envelope)
            before = self._open.pop(ident, None)
            if before is None and len(self._open) >= AUDIT_OPEN_CALLS:
                before = self._open.pop(next(iter(self._open)))
            if before is not None:
                self._record("error", before, reason="it was not answered before many others")
            self._open[ident] = call
        return call

    def _answered(self, envelope: Envelope | None, size: int) -> None:
        if envelope is None or not envelope.is_response:
            return
        call = self._open.pop(_id(envelope), None)
        if call is None:
            other = other_spelling(envelope.id)
            call = None if other is msgspec.UNSET else self._open.pop(other, None)
        if call is None:
            return
        if envelope.error is msgspec.UNSET:
            self._record("ok", call, size=size)
        else:
            code = error_code_of(members_of(envelope.error))
            self._record("error", call, size=size, code=code)

    def _cancel(self, line: bytes) -> None:
        ident = cancelled_id(line)
        call = None if ident is msgspec.UNSET else self._open.pop(ident, None)
        if call is not None:
            self._record("cancelled", call)

    def _not_sent(
        self, messages: Sequence[_Message], calls: Sequence[_Call | None], error: BaseException
    ) -> None:
        for (_, _, envelope, _), call in zip(messages, calls, strict=True):
            if call is None:
                continue
            if envelope.is_request and self._open.get(_id(envelope)) is call:
                del self._open[_id(envelope)]
            if isinstance(error, Refused):
                error.audited = True
                code, status, why = error.code, error.status, str(error)
                self._record("refused", call, timed=False, code=code, status=status, reason=why)
            else:
                self._record("error", call, timed=False, reason="a defect; the log has more")

    def _record(
        self,
        outcome: Outcome,
        call: _Call,
        *,
        timed: bool = True,
        size: int = 0,
        code: int | None = None,
        status: int | None = None,
        reason: str | None = None,
    ) -> None:
        self._log.record(
            AuditRecord(
                self._server,
                outcome,
                self._identity,
                call.address,
                self._session,
                self._via,
                call.method,
                call.name,
                call.size,
                size,
                self._clock.seconds() - call.began if timed else None,
                code,
                status,
                reason,
                call.arguments,
            )
        )


class AuditedRequest:
    """Makes the record of one request of 2026-07-28; each method ends it."""

    __slots__ = ("_began", "_clock", "_log", "_record")

    def __init__(
        self,
        log: AuditLog,
        clock: IReactorTime,
        request: ModernRequest,
        *,
        server: str,
        identity: str,
        address: str | None,
        size: int,
    ) -> None:
        self._log = log
        self._clock = clock
        self._began = clock.seconds()
        method, name = request.method, request.name
        arguments = _arguments(request.params.get("arguments")) if log.arguments else None
        self._record = AuditRecord(
            server,
            "ok",
            identity,
            address,
            transport="stateless",
            method=method,
            # A task's id is a handle: whoever knows it may use it.
            name=name if method in NAMED_BY else None,
            request_bytes=size,
            arguments=arguments,
        )

    def answered(self, lines: Sequence[bytes]) -> None:
        """Note the messages that end it, of which the last one is the response."""
        size = sum(map(len, lines))
        envelope = peek_at_server(lines[-1]) if lines else None
        if envelope is None or envelope.error is msgspec.UNSET:
            self._end("ok", response_bytes=size)
        else:
            code = error_code_of(members_of(envelope.error))
            self._end("error", response_bytes=size, code=code)

    def refused(self, refusal: Refused) -> None:
        """Note an error of the bridge."""
        self._end("refused", code=refusal.code, status=refusal.status, reason=str(refusal))

    def cancelled(self) -> None:
        """Note that the client has gone."""
        self._end("cancelled")

    def _end(self, outcome: Outcome, **fields: Any) -> None:
        seconds = self._clock.seconds() - self._began
        self._log.record(self._record._replace(outcome=outcome, seconds=seconds, **fields))


def record_refusal(
    log: AuditLog,
    refusal: Refused,
    *,
    server: str,
    identity: str,
    address: str | None,
    transport: Transport,
    size: int = 0,
) -> None:
    """Make the record of an HTTP request that was refused, unless its messages have theirs."""
    if not refusal.audited:
        log.record(
            AuditRecord(
                server,
                "refused",
                identity,
                address,
                transport=transport,
                request_bytes=size,
                code=refusal.code,
                status=refusal.status,
                reason=str(refusal),
            )
        )


def _messages(
    lines: Sequence[bytes], envelopes: Sequence[Envelope | None], digests: Sequence[bytes]
) -> Iterator[_Message]:
    """Yield the messages, those of a batch one by one."""
    for number, (line, envelope, digest) in enumerate(zip(lines, envelopes, digests, strict=True)):
        if envelope is not None:
            yield number, line, envelope, digest
            continue
        for element in split_batch(line) or ():
            found = peek(element) or peek_again(element)
            if found is not None:
                yield number, element, found, element


def _id(envelope: Envelope) -> JsonRpcId:
    """Return the id of a request or an answer, which has one."""
    ident: Any = envelope.id
    return ident  # type: ignore[no-any-return]


def _arguments(raw: msgspec.Raw | None) -> bytes | None:
    """Return a copy, or its first bytes: the rest of the message is not to be kept."""
    return None if raw is None else bytes(memoryview(raw)[: AUDIT_ARGUMENT_BYTES + 1])
