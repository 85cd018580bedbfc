"""
Records spans of requests, by OpenTelemetry's conventions for MCP.

Whether a request is recorded is decided here, before OpenTelemetry is asked: to ask takes
longer than the bridge needs for a tenth of a request.  Knows spans; must not know sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import random
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.tuning import CLIENT_TEXT_CHARS
from mcpbridge.counters import OTHER
from mcpbridge.jsonrpc.members import members_of, meta_of
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.operations import CLIENT_METHODS
from mcpbridge.mcp.trace_context import (
    TRACEPARENT,
    TraceContext,
    context_of,
    is_unsampled,
    read_traceparent,
)

#: How long the last spans may take to be sent when the bridge stops, in seconds.
FLUSH_SECONDS = 3.0
#: The parent of a request that has none.
ROOT = TraceContext(0, 0, sampled=True)
#: Returns the `traceparent` of an HTTP request, if it has one.
HttpContext = Callable[[], str | None]

#: The attributes of a span.
Attributes = Mapping[str, str | int]


class Span(Protocol):
    """A span that has begun."""

    @property
    def traceparent(self) -> str:
        """How a request names it as its parent."""
        ...

    @property
    def tracestate(self) -> str:
        """What else a request says of it."""
        ...

    def end(self, error: str = "") -> None:
        """End it; `error` is the kind of its failure."""


class Tracer(Protocol):
    """Begins spans, and sends them away."""

    def begin(
        self,
        name: str,
        kind: str,
        attributes: Attributes,
        *,
        parent: TraceContext | Span | None = None,
        link: TraceContext | None = None,
    ) -> Span:
        """Begin a span; `kind` is `server`, `client` or `internal`."""
        ...

    def stop(self) -> Deferred[None]:
        """Send away what has ended; fires soon, and never fails."""
        ...


class RequestSpans:
    """
    The spans of a request: the bridge's as a server, and as a client of the backend, which
    the backend's own have for a parent.
    """

    __slots__ = ("_client", "_server")

    def __init__(self, server: Span, client: Span) -> None:
        self._server = server
        self._client = client

    @property
    def traceparent(self) -> str:
        """The parent for the backend."""
        return self._client.traceparent

    @property
    def tracestate(self) -> str:
        """What else the backend is told."""
        return self._client.tracestate

    def end(self, error: str = "") -> None:
        """End both; `error` is the kind of failure, as in the counters."""
        self._client.end(error)
        self._server.end(error)


class Tracing:
    """
    Decides which requests are recorded, and begins their spans.

    A request whose parent is recorded is, too, and one whose parent is not recorded is not;
    of those without a parent, the part `ratio` is, from 0 to 1.  `make_tracer` is called
    once the process is the one that serves.
    """

    def __init__(
        self,
        ratio: float,
        clock: IReactorTime,
        make_tracer: Callable[[IReactorTime], Tracer],
        chance: Callable[[], float] = random,
    ) -> None:
        self._ratio = ratio
        self._clock = clock
        self._make_tracer = make_tracer
        self._chance = chance
        self._tracer: Tracer | None = None

    def start(self) -> None:
        """Begin to record."""
        if self._tracer is None:
            self._tracer = self._make_tracer(self._clock)

    def stop(self) -> Deferred[None]:
        """Record nothing any more; fires when what has ended is sent away, or soon."""
        tracer, self._tracer = self._tracer, None
        return succeed(None) if tracer is None else tracer.stop()

    def change(self, ratio: float) -> None:
        """Record another part of the requests from now on."""
        self._ratio = ratio

    def wants(self, message: bytes) -> bool:
        """
        Tell whether a message of a session is to be recorded, as far as can be told at one
        look: it may name a parent that says otherwise (`parent_in`).
        """
        # A search for one byte is many times as fast as one for a word; the parent is in `_meta`.
        # A large message is not read for it: others would have to wait.
        if b"_" in message and len(message) <= LARGE_BYTES and b"traceparent" in message:
            return True
        return self._chance() < self._ratio

    def parent_in(self, message: bytes) -> TraceContext | None:
        """
        Return the parent of a request that `wants` has found, or `ROOT`; None if it is not to
        be recorded after all.
        """
        if b"_" not in message or b"traceparent" not in message:
            # Chance has decided (`wants`), and is not asked again.
            return ROOT
        return self.parent_of(meta_of(members_of(members_of(message).get("params"))))

    def parent_of(self, meta: Mapping[str, msgspec.Raw]) -> TraceContext | None:
        """
        Return the parent of a request with this `_meta`, or `ROOT`; None if it is not to be
        recorded.
        """
        named = meta.get(TRACEPARENT)
        if named is not None:
            if is_unsampled(named):
                return None
            found = context_of(meta)
            if found is not None:
                return found if found.sampled else None
        return ROOT if self._chance() < self._ratio else None

    def begin_request(
        self,
        parent: TraceContext,
        method: str,
        target: str | None,
        attributes: Attributes,
        *,
        backend: str = "pipe",
        http: HttpContext | None = None,
    ) -> RequestSpans | None:
        """
        Begin the spans of a request, of which `target` is the tool or prompt that it names;
        None once nothing is recorded any more.

        `backend` is how the backend is reached, as `network.transport` says it, and `http` the
        context of the HTTP request, which they are linked to.
        """
        tracer = self._tracer
        if tracer is None:
            return None
        # Clients invent neither names of spans nor texts that cannot be sent.
        name = method = method if method in CLIENT_METHODS else OTHER
        given: dict[str, str | int] = {"mcp.method.name": method, **attributes}
        if target is not None and method in _TARGETS:
            target = _sendable(target)
            name = f"{method} {target}"
            given[_TARGETS[method]] = target
        if method == "tools/call":
            given["gen_ai.operation.name"] = "execute_tool"
        server = tracer.begin(
            name,
            "server",
            {**given, "network.transport": "tcp"},
            parent=None if parent is ROOT else parent,
            link=None if http is None else read_traceparent(http()),
        )
        client = tracer.begin(
            name, "client", {**given, "network.transport": backend}, parent=server
        )
        return RequestSpans(server, client)

    def begin(self, name: str, attributes: Attributes) -> Span | None:
        """Begin a span of the bridge's own work, if that is recorded; None otherwise."""
        if self._tracer is None or self._chance() >= self._ratio:
            return None
        return self._tracer.begin(name, "internal", attributes)


_TARGETS = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}


def text_attribute(value: Any) -> str | int:
    """Return an id as the value of an attribute: a number of 64 bits, or a text."""
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    return _sendable(str(value))


def _sendable(text: str) -> str:
    """Cut a text of a client, and replace lone surrogates, which cannot be encoded."""
    return text[:CLIENT_TEXT_CHARS].encode("utf-8", "replace").decode("utf-8")
