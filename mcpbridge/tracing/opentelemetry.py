"""
Spans of OpenTelemetry's SDK, sent by OTLP over HTTP.

Imported only where traces are wanted.  An application that has set a tracer provider of
its own gets the spans there.  Knows the SDK; must not know what is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge._version import __version__
from mcpbridge.mcp.trace_context import TraceContext
from mcpbridge.tracing.tracing import FLUSH_SECONDS, Attributes, Span

_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}


class OpenTelemetrySpan:
    """A span of the SDK (`Span`)."""

    __slots__ = ("span",)

    def __init__(self, span: trace.Span) -> None:
        self.span = span

    @property
    def traceparent(self) -> str:
        """How a request names it as its parent."""
        context = self.span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def tracestate(self) -> str:
        """What else a request says of it."""
        return self.span.get_span_context().trace_state.to_header()

    def end(self, error: str = "") -> None:
        """End it; `error` is the kind of its failure."""
        if error:
            self.span.set_attribute("error.type", error)
            if error.lstrip("-").isdigit():
                self.span.set_attribute("rpc.response.status_code", error)
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class OpenTelemetryTracer:
    """
    Begins spans of the SDK (`Tracer`).

    Where they go, and as whose, is in the variables that OpenTelemetry defines:
    `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME` and others.
    They are sent by a thread of the SDK's own.
    """

    log = Logger()

    def __init__(
        self, clock: IReactorTime, make_exporter: Callable[[], SpanExporter] = OTLPSpanExporter
    ) -> None:
        self._reactor: Any = clock
        self._own: TracerProvider | None = None
        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider):
            # What is recorded has been decided before.
            resource = Resource.create()
            if str(resource.attributes.get(SERVICE_NAME)).startswith("unknown_service"):
                own = {SERVICE_NAME: "mcpbridge", SERVICE_VERSION: __version__}
                resource = resource.merge(Resource(own))
            provider = self._own = TracerProvider(sampler=ALWAYS_ON, resource=resource)
            self._own.add_span_processor(BatchSpanProcessor(make_exporter()))
        self._tracer = provider.get_tracer("mcpbridge", __version__)

    def begin(
        self,
        name: str,
        kind: str,
        attributes: Attributes,
        *,
        parent: TraceContext | Span | None = None,
        link: TraceContext | None = None,
    ) -> OpenTelemetrySpan:
        """Begin a span; `kind` is `server`, `client` or `internal`."""
        above: trace.Span | None = None
        if isinstance(parent, OpenTelemetrySpan):
            above = parent.span
        elif isinstance(parent, TraceContext):
            above = NonRecordingSpan(_context(parent))
        # An empty context, as that of the thread is none of ours.
        context = Context() if above is None else set_span_in_context(above, Context())
        links = [] if link is None else [Link(_context(link))]
        span = self._tracer.start_span(
            name, context, _KINDS[kind], attributes=dict(attributes), links=links
        )
        return OpenTelemetrySpan(span)

    def stop(self) -> Deferred[None]:
        """Send away what has ended; fires after `FLUSH_SECONDS` at most, and never fails."""
        own, self._own = self._own, None
        if own is None:
            return succeed(None)
        done: Deferred[None] = Deferred()

        def finish(why: str) -> None:
            if done.called:
                return
            if timer.active():
                timer.cancel()
            if why:
                self.log.warn("the last spans were not sent: {reason}", reason=why)
            done.callback(None)

        def shut_down() -> None:
            why = ""
            try:
                own.shutdown()
            except Exception as error:
                why = str(error)
            self._reactor.callFromThread(finish, why)

        timer = self._reactor.callLater(
            FLUSH_SECONDS, finish, f"it took longer than {FLUSH_SECONDS:g} s"
        )
        # Not of the reactor's pool, whose end would wait for it.
        threading.Thread(target=shut_down, daemon=True).start()
        return done


def _context(given: TraceContext) -> SpanContext:
    state = TraceState.from_header([given.state]) if given.state else TraceState()
    flags = TraceFlags(TraceFlags.SAMPLED if given.sampled else TraceFlags.DEFAULT)
    return SpanContext(given.trace_id, given.span_id, True, flags, state)
