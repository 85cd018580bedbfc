"""
The spans of the requests of a session, from when each comes until it is over.

Knows requests and their answers; must not know how spans are recorded.  A request whose
spans are recorded names them as its parent when it goes to the backend; all others pass as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mcpbridge.config.tuning import TRACED_CALLS
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
from mcpbridge.jsonrpc.members import changed
from mcpbridge.jsonrpc.oversized import peek_at_server
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.trace_context import TraceContext, context_members, with_context
from mcpbridge.processes.measured_calls import CANCELLED, NO_ANSWER, error_in
from mcpbridge.tracing.tracing import (
    HttpContext,
    RequestSpans,
    Span,
    Tracing,
    text_attribute,
)


class TracedSession:
    """
    Records the requests of one session of a client.

    `session` is the short id, and `backend` how the backend is reached, `pipe` or `tcp`.  No
    more than `TRACED_CALLS` are awaited; beyond that, the oldest counts as not answered.
    """

    __slots__ = ("_attributes", "_backend", "_span", "_tracing", "waiting")

    def __init__(self, tracing: Tracing, *, server: str, session: str, backend: str) -> None:
        self._tracing = tracing
        self._backend = backend
        self._attributes = {"mcpbridge.server": server, "mcp.session.id": session}
        #: The spans of requests that are recorded, by their ids, in the order in which they came.
        self.waiting: dict[JsonRpcId, RequestSpans] = {}
        self._span: Span | None = tracing.begin("mcpbridge session", self._attributes)

    def begin(
        self,
        line: bytes,
        envelope: Envelope,
        digest: bytes | None = None,
        http: HttpContext | None = None,
    ) -> bytes:
        """
        Return a message of the client, which is to be recorded, as it is to pass: if it is a
        request, with another parent.  A `digest` has the names of a large message, which passes
        as it is; `http` is the context of the HTTP request.
        """
        if not envelope.is_request:
            return line
        # A large message is neither searched nor written anew: others would have to wait.
        large = digest is not None or len(line) > LARGE_BYTES
        parent = self._tracing.parent_in(b"" if large else line)
        if parent is None:
            return line
        method, ident = str(envelope.method), _id(envelope)
        spans = self._tracing.begin_request(
            parent,
            method,
            named_param(digest or line, "name"),
            {**self._attributes, "jsonrpc.request.id": text_attribute(ident)},
            backend=self._backend,
            http=http,
        )
        if spans is None:
            return line
        self.end(ident, NO_ANSWER)
        self.waiting[ident] = spans
        if len(self.waiting) > TRACED_CALLS:
            self.end(next(iter(self.waiting)), NO_ANSWER)
        if large:
            return line
        return with_context(line, spans.traceparent, spans.tracestate)

    def not_sent(self, envelope: Envelope) -> None:
        """End the spans of a request that was refused."""
        if envelope.is_request:
            self.end(_id(envelope), "refused")

    def sent(self, line: bytes, envelope: Envelope) -> None:
        """Note that a message has passed, which may cancel a request that is recorded."""
        if envelope.method == "notifications/cancelled":
            ident = cancelled_id(line)
            if isinstance(ident, (str, int, float)):
                self.end(ident, CANCELLED)

    def answered(self, lines: Sequence[bytes]) -> None:
        """Note messages for the client, among which may be answers."""
        for line in lines:
            envelope = peek_at_server(line) or peek_again(line)
            if envelope is not None:
                self._answered(line, envelope)
                continue
            for element in split_batch(line) or ():
                found = peek(element) or peek_again(element)
                if found is not None:
                    self._answered(element, found)

    def _answered(self, line: bytes, envelope: Envelope) -> None:
        if not envelope.is_response:
            return
        ident = _id(envelope)
        if ident not in self.waiting:
            other = other_spelling(ident)
            ident = other if isinstance(other, (str, int)) else ident
        self.end(ident, error_in(line) or "")

    def end(self, ident: JsonRpcId, error: str) -> None:
        """End the spans of a request."""
        spans = self.waiting.pop(ident, None)
        if spans is not None:
            spans.end(error)

    def close(self) -> None:
        """End all spans: nothing more is answered."""
        for ident in list(self.waiting):
            self.end(ident, NO_ANSWER)
        span, self._span = self._span, None
        if span is not None:
            span.end()


def begin_request(
    tracing: Tracing,
    request: ModernRequest,
    parent: TraceContext,
    *,
    server: str,
    backend: str,
    http: HttpContext,
    large: bool = False,
) -> tuple[ModernRequest, RequestSpans | None]:
    """
    Begin the spans of a request of 2026-07-28 with this parent; return the request as it is to
    be worked on: with another parent, unless it is large.
    """
    attributes = {
        "mcpbridge.server": server,
        "jsonrpc.request.id": text_attribute(request.id),
        "mcp.protocol.version": request.version,
    }
    spans = tracing.begin_request(
        parent, request.method, request.name, attributes, backend=backend, http=http
    )
    if spans is None or large:
        return request, spans
    meta = changed(request.meta, context_members(spans.traceparent, spans.tracestate))
    params = changed(request.params, {"_meta": meta})
    outer = changed(request.outer, {"params": params})
    return msgspec.structs.replace(request, outer=outer, params=params, meta=meta), spans


def _id(envelope: Envelope) -> JsonRpcId:
    """Return the id of a request or an answer, which has one."""
    ident = envelope.id
    return ident if isinstance(ident, (str, int, float)) else None
