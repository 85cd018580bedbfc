"""Spans of OpenTelemetry's SDK."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from twisted.internet.task import Clock

from mcpbridge.mcp.trace_context import TraceContext
from mcpbridge.tracing.opentelemetry import OpenTelemetryTracer
from mcpbridge.tracing.tracing import FLUSH_SECONDS, Tracing

PARENT = TraceContext(7, 8, sampled=True, state="a=1")


class Exported:
    """An application's own provider, and what it has exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    found = Exported()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: found.provider)
    yield found
    found.provider.shutdown()


def test_spans_go_to_the_provider_of_the_application(exported: Exported) -> None:
    tracer = OpenTelemetryTracer(Clock())
    server = tracer.begin("a", "server", {"x": 1}, parent=PARENT, link=PARENT)
    client = tracer.begin("b", "client", {}, parent=server)
    assert client.traceparent.startswith(f"00-{7:032x}-")
    assert client.tracestate == "a=1"
    client.end("-32602")
    server.end()
    tracer.begin("c", "internal", {}).end("tool_error")
    tracer.stop()
    second, first, third = exported.spans
    assert (first.name, first.kind, second.kind, third.kind) == (
        *("a", SpanKind.SERVER, SpanKind.CLIENT, SpanKind.INTERNAL),
    )
    assert first.parent is not None
    assert (first.parent.trace_id, first.parent.span_id) == (7, 8)
    assert first.links[0].context.trace_id == 7
    assert dict(first.attributes or {}) == {"x": 1}
    assert first.status.status_code is StatusCode.UNSET
    assert second.status.status_code is StatusCode.ERROR
    assert dict(second.attributes or {}) == {
        "error.type": "-32602",
        "rpc.response.status_code": "-32602",
    }
    assert dict(third.attributes or {}) == {"error.type": "tool_error"}
    assert third.parent is None


class FakeReactor(Clock):
    """A clock whose calls from threads are made by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.called = threading.Event()
        self.from_threads: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def callFromThread(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Keep the call."""
        self.from_threads.append((call, arguments))
        self.called.set()


class FakeProvider(TracerProvider):
    """The bridge's own provider, whose end the test decides."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(shutdown_on_exit=False)
        self.error = error

    def shutdown(self) -> None:
        """Be shut down."""
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, OSError("refused")])
def test_the_last_spans_are_sent_in_a_thread(error: Exception | None, log_lines: list[str]) -> None:
    reactor = FakeReactor()
    tracer = OpenTelemetryTracer(reactor, InMemorySpanExporter)
    assert tracer._own is not None
    tracer._own.shutdown()
    tracer._own = FakeProvider(error)
    done = tracer.stop()
    assert reactor.called.wait(30)
    for call, arguments in reactor.from_threads:
        call(*arguments)
    assert done.called
    assert not reactor.getDelayedCalls()
    assert log_lines == (["the last spans were not sent: refused"] if error else [])
    assert tracer.stop().called


def test_the_end_does_not_wait_for_ever(log_lines: list[str]) -> None:
    reactor = FakeReactor()
    tracer = OpenTelemetryTracer(reactor, InMemorySpanExporter)
    assert tracer._own is not None
    tracer._own.shutdown()
    tracer._own = FakeProvider(None)
    done = tracer.stop()
    assert reactor.called.wait(30)
    reactor.advance(FLUSH_SECONDS)
    assert done.called
    assert log_lines == ["the last spans were not sent: it took longer than 3 s"]
    for call, arguments in reactor.from_threads:
        call(*arguments)


def test_spans_of_the_bridge_itself(exported: Exported) -> None:
    tracing = Tracing(1.0, Clock(), OpenTelemetryTracer)
    tracing.start()
    span = tracing.begin("mcpbridge spawn", {"mcpbridge.server": "a"})
    assert span is not None
    span.end()
    assert [each.name for each in exported.spans] == ["mcpbridge spawn"]
