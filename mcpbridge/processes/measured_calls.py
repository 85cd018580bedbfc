"""
How long the requests of clients take, and how they end, for the counters of a server.

Knows requests and their answers; must not know HTTP, nor who reads the counters.  It is
told of messages where they pass anyway, and changes none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.tuning import (
    CLIENT_TEXT_CHARS,
    MEASURED_CALLS,
    MEASURED_REQUESTS,
    MEASURED_SECONDS,
)
from mcpbridge.counters import OTHER, Operation, ServerCounters
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
from mcpbridge.jsonrpc.members import error_code_of, members_of, string_of
from mcpbridge.jsonrpc.oversized import peek_at_server
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.operations import CLIENT_METHODS
from mcpbridge.timers import Timer

#: What is counted of a request that got no result, beside the codes of JSON-RPC.
TOOL_ERROR, CANCELLED, NO_ANSWER = "tool_error", "cancelled", "no_answer"

#: In longer answers it is quicker to look for the id at their two ends.
_LONG_BYTES = 1024
#: The two ends of an answer, as most servers write it.
_HEAD = re.compile(rb'\{"jsonrpc":"2\.0","id":([0-9]{1,15}|"[^"\\]{0,100}"),"(?:(result)|error)":')
_TAIL = re.compile(rb'[}\]"],"jsonrpc":"2\.0","id":([0-9]{1,15}|"[^"\\]{0,100}")\}\Z')
_IS_ERROR = re.compile(rb'"isError": ?true')
_END_BYTES = 160


_Operations: TypeAlias = dict[str | msgspec.UnsetType, Operation]


class _Result(msgspec.Struct, gc=False):
    isError: bool = False


class _Answer(msgspec.Struct, gc=False):
    """What is read of a message of a server; that nothing else is makes it quick."""

    id: str | int | float | None = None
    method: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: _Result | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Answer).decode
_UNSET = msgspec.UNSET


class Measures:
    """
    What is measured at one server; `tools` are the names of tools that are measured each on
    its own.

    Within `MEASURED_SECONDS` no more than `MEASURED_REQUESTS` are timed; the others only count.
    """

    def __init__(
        self, counters: ServerCounters, clock: IReactorTime, tools: Iterable[str] = ()
    ) -> None:
        self.counters = counters
        self.seconds = clock.seconds
        self.tools = frozenset(tools)
        #: Operations by method, but for `initialize`, for calls of tools if some of them are
        #: measured each on its own, and for methods that are not MCP's.
        self.by_method: _Operations = {}
        #: Those whose requests are only counted: a look here is all that is done for most
        #: requests of a busy server.
        self.only_counted: _Operations = {}
        self._left = MEASURED_REQUESTS
        self._timer = Timer(clock)
        self._traffic = counters.traffic["stateless"]
        self._untimed = MeasuredRequest(self, None)

    def may_time(self, operation: Operation) -> bool:
        """Tell whether to time a request; count it if not."""
        if not self._left:
            operation.untimed += 1
            return False
        if self._left == MEASURED_REQUESTS:
            self._timer.start(MEASURED_SECONDS, self._time_again)
        self._left -= 1
        if not self._left:
            self.only_counted = self.by_method
        return True

    def _time_again(self) -> None:
        self.only_counted = {}
        self._left = MEASURED_REQUESTS

    def stop(self) -> None:
        """Time no more requests."""
        self._timer.stop()
        self._left = 0
        self.only_counted = self.by_method

    def change_tools(self, tools: Iterable[str]) -> None:
        """Measure other tools each on its own from now on."""
        self.tools = frozenset(tools)
        self.by_method.pop("tools/call", None)

    def operation(self, method: str) -> Operation:
        """Return that of a method, which counts as `_OTHER` if it is not one of MCP."""
        if method not in CLIENT_METHODS:
            return self.counters.operation(OTHER)
        found = self.counters.operation(method)
        if method != "initialize" and not (self.tools and method == "tools/call"):
            self.by_method[method] = found
        return found

    def of_tool(self, name: str | None) -> Operation:
        """Return that of calls of a tool."""
        tool = name if name is not None and name in self.tools else ""
        return self.counters.operation("tools/call", tool)

    def request(self, request: ModernRequest, size: int) -> MeasuredRequest:
        """Begin to measure a request of 2026-07-28 of so many bytes."""
        traffic = self._traffic
        traffic.messages_in += 1
        traffic.bytes_in += size
        method = request.method
        operation = self.only_counted.get(method)
        if operation is not None:
            operation.untimed += 1
            return self._untimed
        if self.tools and method == "tools/call":
            operation = self.of_tool(request.name)
        else:
            operation = self.by_method.get(method) or self.operation(method)
        return MeasuredRequest(self, operation) if self.may_time(operation) else self._untimed


class MeasuredSession:
    """
    Measures the requests of one session: from when each comes until it is answered,
    cancelled, or will not be answered any more.  Those that are not timed only count.

    The answer to a request is the message of the server that has its id.  No more than
    `MEASURED_CALLS` are awaited; beyond that, the oldest counts as not answered.
    """

    __slots__ = ("_by_method", "_client", "_seconds", "measures", "waiting")

    def __init__(self, measures: Measures) -> None:
        self.measures = measures
        self._seconds = measures.seconds
        self._by_method = measures.by_method
        #: Requests that are timed, by their ids, in the order in which they came.
        self.waiting: dict[JsonRpcId, tuple[float, Operation]] = {}
        self._client = ""

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def client_name(self) -> str:
        """What the client's `initialize` says of it: `NAME VERSION`, or nothing."""
        return self._client

    @property
    def oldest(self) -> float | None:
        """Since when the oldest request waits, on the clock; None without one."""
        return next((began for began, _ in self.waiting.values()), None)

    def begin(self, line: bytes, envelope: Envelope | None, digest: bytes | None = None) -> bool:
        """
        Note a message of the client, or a batch if there is no `envelope`.  A `digest` has
        the names of a large message.  Return True if `sent` is to be called once it has passed.
        """
        if envelope is None:
            # A large batch was read in slices, and would take long to read again.
            for element in split_batch(line) or () if len(line) <= LARGE_BYTES else ():
                found = peek(element) or peek_again(element)
                if found is not None:
                    self.begin(element, found)
            return len(line) <= LARGE_BYTES
        ident = envelope.id
        operation = self._by_method.get(envelope.method)
        waiting = self.waiting
        if operation is None or ident is _UNSET or ident in waiting:
            if envelope.method is _UNSET or ident is _UNSET:
                return envelope.method == "notifications/cancelled"
            operation = self._operation(envelope.method, digest or line)
            self._end(ident, NO_ANSWER)
        if not self.measures.may_time(operation):
            return False
        waiting[ident] = self._seconds(), operation
        if len(waiting) > MEASURED_CALLS:
            self._end(next(iter(waiting)), NO_ANSWER)
        return False

    def begin_all(
        self,
        lines: Sequence[bytes],
        envelopes: Sequence[Envelope],
        digests: Sequence[bytes] | None,
    ) -> bool:
        """Do the same for the messages of one POST."""
        if len(lines) == 1:
            return self.begin(lines[0], envelopes[0], digests[0] if digests else None)
        later = False
        for message in zip(lines, envelopes, digests or lines, strict=True):
            later |= self.begin(*message)
        return later

    def not_sent(self, line: bytes, envelope: Envelope | None, digest: bytes | None = None) -> None:
        """Forget the requests of a message, or of a batch, that was refused; see `begin`."""
        if envelope is not None:
            if not envelope.is_request:
                # The id of an answer is one of the server.
                return
            ident: Any = envelope.id
            if self.waiting.pop(ident, None) is None:
                operation = self._operation(str(envelope.method), digest or line)
                if operation.untimed:
                    operation.untimed -= 1
            return
        for element in split_batch(line) or () if len(line) <= LARGE_BYTES else ():
            found = peek(element) or peek_again(element)
            if found is not None:
                self.not_sent(element, found)

    def sent(self, line: bytes, envelope: Envelope | None) -> None:
        """Note that a message, or a batch, has passed which may cancel requests."""
        if envelope is not None and envelope.method == "notifications/cancelled":
            ident = cancelled_id(line)
            if ident is not _UNSET:
                self._end(ident, CANCELLED)
            return
        for element in split_batch(line) or ():
            found = peek(element)
            if found is not None and found.method == "notifications/cancelled":
                self.sent(element, found)

    def answered(self, lines: Sequence[bytes]) -> None:
        """Note messages for the client, among which may be answers."""
        waiting = self.waiting
        now = self._seconds()
        for line in lines:
            if len(line) > _LONG_BYTES and self._answered_at_ends(line, now):
                continue
            try:
                answer = _decode(line)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                self._answered_otherwise(line, now)
                continue
            result = answer.result
            if result is None or result.isError:
                self._not_plain(answer, now)
                continue
            call = waiting.pop(answer.id, None)
            if call is None:
                call = self._respelled(answer.id)
                if call is None:
                    continue
            began, operation = call
            operation.succeeded(now - began)

    def close(self) -> None:
        """Note that nothing more is answered."""
        for ident in list(self.waiting):
            self._end(ident, NO_ANSWER)

    def _operation(self, method: str, digest: bytes) -> Operation:
        if method == "tools/call" and self.measures.tools:
            return self.measures.of_tool(named_param(digest, "name"))
        if method == "initialize" and len(digest) <= LARGE_BYTES:
            params = members_of(members_of(digest).get("params"))
            self._client = client_text(params.get("clientInfo"))
        return self.measures.operation(method)

    def _end(self, ident: JsonRpcId, error: str) -> None:
        call = self.waiting.pop(ident, None)
        if call is not None:
            began, operation = call
            operation.failed(error, self._seconds() - began)

    def _not_plain(self, answer: _Answer, now: float) -> None:
        """Note what is no result, or one that says that a tool has failed."""
        if answer.method is not _UNSET:
            return
        call = self.waiting.pop(answer.id, None) or self._respelled(answer.id)
        if call is None:
            return
        began, operation = call
        if answer.error is not _UNSET:
            operation.failed(_code(answer.error), now - began)
        elif answer.result is not None:
            operation.failed(TOOL_ERROR, now - began)
        else:
            operation.succeeded(now - began)

    def _respelled(self, ident: JsonRpcId) -> tuple[float, Operation] | None:
        """Return the call that a server means with the text of a number, or the other way."""
        other = other_spelling(ident)
        return None if other is _UNSET else self.waiting.pop(other, None)

    def _answered_at_ends(self, line: bytes, now: float) -> bool:
        """Note a long answer; return False for what is not one at the first look."""
        found = _HEAD.match(line)
        fails = found is not None and found[2] is None
        if found is None:
            found = _TAIL.search(line, len(line) - _END_BYTES)
            if found is None or not line.startswith((b'{"result":', b'{"jsonrpc":"2.0","result":')):
                return False
        text = found[1]
        is_text = text.startswith(b'"')
        ident = text[1:-1].decode("utf-8", "replace") if is_text else int(text)
        call = self.waiting.pop(ident, None)
        if call is None:
            return False
        began, operation = call
        ends = line[:_END_BYTES], line[-_END_BYTES:]
        if fails:
            operation.failed(_code(msgspec.Raw(line[found.end() : -1])), now - began)
        elif any(map(_IS_ERROR.search, ends)):
            operation.failed(TOOL_ERROR, now - began)
        else:
            operation.succeeded(now - began)
        return True

    def _answered_otherwise(self, line: bytes, now: float) -> None:
        """Note what is read in another way: a batch, a result that is no object."""
        for element in split_batch(line) or (line,):
            envelope = peek_at_server(element) or peek_again(element)
            if envelope is None or not envelope.is_response or envelope.id is _UNSET:
                continue
            call = self.waiting.pop(envelope.id, None) or self._respelled(envelope.id)
            if call is None:
                continue
            began, operation = call
            if envelope.error is _UNSET:
                operation.succeeded(now - began)
            else:
                operation.failed(_code(envelope.error), now - began)


class MeasuredRequest:
    """
    Measures one request of 2026-07-28; one instance stands for all that are not timed.

    The first of its response and of `ended` counts.
    """

    __slots__ = ("_began", "_counters", "_operation", "_seconds", "_traffic")

    def __init__(self, measures: Measures, operation: Operation | None) -> None:
        self._counters = measures.counters
        self._traffic = measures.counters.traffic["stateless"]
        self._seconds = measures.seconds
        #: None if it is not timed.
        self._operation = operation
        self._began = 0.0 if operation is None else measures.seconds()

    def sent(self, lines: Sequence[bytes], final: bool) -> None:
        """Count messages that the client gets; if `final`, the last is the response."""
        traffic = self._traffic
        traffic.messages_out += len(lines)
        for line in lines:
            traffic.bytes_out += len(line)
        if final and self._operation is not None:
            self._answered(self._operation, lines[-1])

    def _answered(self, operation: Operation, line: bytes) -> None:
        seconds = self._seconds() - self._began
        error = error_in(line)
        if error is None:
            operation.succeeded(seconds)
        else:
            operation.failed(error, seconds)

    def refused(self, refusal: Refused) -> None:
        """Note an error of the bridge."""
        self._counters.refusals[type(refusal).__name__] += 1
        self.ended(str(refusal.code))

    def ended(self, error: str) -> None:
        """Note that there is no response."""
        if self._operation is not None:
            self._operation.failed(error, self._seconds() - self._began)


def error_in(line: bytes) -> str | None:
    """Return what is counted of an answer that is no result; None for a result."""
    if len(line) <= LARGE_BYTES:
        try:
            answer = _decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        else:
            if answer.error is not _UNSET:
                return _code(answer.error)
            return TOOL_ERROR if answer.result is not None and answer.result.isError else None
    envelope = peek_at_server(line)
    return None if envelope is None or envelope.error is _UNSET else _code(envelope.error)


def _code(error: msgspec.Raw) -> str:
    """Return the code of an error, as it is counted."""
    code = error_code_of(members_of(error))
    return OTHER if code is None else str(code)


def client_text(info: msgspec.Raw | None) -> str:
    """Return `NAME VERSION` of a `clientInfo`, as far as it says so."""
    given = members_of(info)
    texts = (string_of(given.get(each)) for each in ("name", "version"))
    text = " ".join(each for each in texts if each)[:CLIENT_TEXT_CHARS]
    # A lone surrogate cannot be encoded, and would spoil whatever shows the text.
    return text.encode("utf-8", "replace").decode("utf-8")
