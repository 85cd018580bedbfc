"""Spans of a real bridge, as a receiver of OTLP over HTTP gets them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.harness import Bridge, backend, request, serving, wait_until
from tests.e2e.stateless import send

pytestmark = pytest.mark.slow

TRACE, PARENT, OUTER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "1" * 16
RECORDED, UNRECORDED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


class Receiver:
    """What receives spans."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[tuple[dict[str, str], Any]] = []

    def spans(self, name: str) -> list[Any]:
        """Return the spans of this name."""
        return [span for _, span in list(self.received) if span.name == name]

    def pair(self, name: str) -> tuple[Any, Any]:
        """Wait for the two spans of a request, as a server and as a client."""
        wait_until(lambda: len(self.spans(name)) == 2)
        server, client = sorted(self.spans(name), key=lambda each: int(each.kind))
        assert client.parent_span_id == server.span_id
        assert client.trace_id == server.trace_id
        return server, client


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                given = {x.key: x.value.string_value for x in resource.resource.attributes}
                for scope in resource.scope_spans:
                    receiver.received += [(given, span) for span in scope.spans]
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def traced(receiver: Receiver, *options: str) -> Iterator[Bridge]:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    command = backend("meta")
    with serving("--tracing", *options, command=command, environment=environment) as bridge:
        yield bridge


def meta_in(message: Any) -> Any:
    return json.loads(message["result"]["content"][0]["text"])


def without_flags(meta: Any) -> Any:
    """Return a `_meta` without the flags of its parent, of which there may be more than one."""
    return {**meta, "traceparent": meta["traceparent"][:-3]}


def traceparent_of(span: Any) -> str:
    return f"00-{span.trace_id.hex()}-{span.span_id.hex()}"


def test_a_trace_goes_through_the_bridge_in_every_era() -> None:
    with receiving() as receiver, traced(receiver, "--trace-ratio", "0") as bridge:
        http = f"traceparent: 00-{TRACE}-{OUTER}-01"
        meta = {"traceparent": RECORDED, "progressToken": 7}
        stream = bridge.open_sse()
        stream.post(request("tools/call", 1, name="sse", _meta=meta), http)
        found = without_flags(meta_in(json.loads(stream.read_message())))
        server, client = receiver.pair("tools/call sse")
        assert found == {"traceparent": traceparent_of(client), "progressToken": 7}
        assert server.trace_id.hex() == TRACE
        assert server.parent_span_id.hex() == PARENT
        assert [each.span_id.hex() for each in server.links] == [OUTER]

        streamable = bridge.open_streamable_http()
        answer = streamable.call("tools/call", http, name="mcp", _meta=meta)
        found = without_flags(meta_in(answer.read_final_message()))
        server, client = receiver.pair("tools/call mcp")
        assert found == {"traceparent": traceparent_of(client), "progressToken": 7}
        assert [each.span_id.hex() for each in server.links] == [OUTER]

        with send(bridge.port, "", "tools/call", name="stateless", _meta=meta) as response:
            found = without_flags(meta_in(response.read_final_message()))
        server, client = receiver.pair("tools/call stateless")
        assert found["traceparent"] == traceparent_of(client)
        assert server.parent_span_id.hex() == PARENT

        resource, _ = receiver.received[0]
        assert resource["service.name"] == "mcpbridge"
        assert resource["deployment.environment.name"] == "test"
        # Nothing else was recorded, as the ratio is 0.
        assert len(receiver.received) == 6


def test_what_is_not_recorded_passes_as_it_is() -> None:
    with receiving() as receiver, traced(receiver) as bridge:
        meta = {"traceparent": UNRECORDED, "tracestate": "a=1"}
        stream = bridge.open_sse()
        stream.post(request("tools/call", 1, name="a", _meta=meta))
        assert meta_in(json.loads(stream.read_message())) == meta
        stream.post(request("tools/list", 2))
        found = without_flags(meta_in(json.loads(stream.read_message())))
        server, client = receiver.pair("tools/list")
        assert found == {"traceparent": traceparent_of(client)}
        assert server.parent_span_id == b""
        stream.close()
        wait_until(lambda: receiver.spans("mcpbridge session"))
        assert receiver.spans("mcpbridge spawn")
        assert not receiver.spans("tools/call a")


def test_the_last_spans_are_sent_at_the_end() -> None:
    with receiving() as receiver:
        with traced(receiver) as bridge:
            stream = bridge.open_sse()
            stream.post(request("tools/list", 2))
            stream.read_message()
        assert receiver.spans("tools/list")
        assert receiver.spans("mcpbridge session")


def test_a_receiver_that_is_not_there_disturbs_nobody() -> None:
    nowhere = Receiver("http://127.0.0.1:1")
    with traced(nowhere) as bridge:
        stream = bridge.open_sse()
        stream.post(request("tools/list", 2))
        assert "traceparent" in meta_in(json.loads(stream.read_message()))
