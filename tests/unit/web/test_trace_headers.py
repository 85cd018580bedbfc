"""Which requests are recorded on either way through the bridge, and what their spans name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.tracing.tracing import Tracing
from tests.unit.tracing.test_tracing import RECORDED, SPAN, TRACE, UNRECORDED, FakeTracer
from tests.unit.web.test_refusals import FAST, ORDINARY, World, message, modern
from tests.unit.web.test_stateless_http import Modern

#: The span of the HTTP request, as its header names it.
OUTER = "1" * 16
HEADER = f"traceparent: 00-{TRACE}-{OUTER}-01"
WAYS = ("/message", "/mcp", "2026-07-28")


class Traced:
    """A bridge whose requests are recorded, or this part of them."""

    def __init__(self, tmp_path: Path, kind: str, ratio: float) -> None:
        self.kind = kind
        self.world = World(tmp_path, **({"kind": Modern} if kind == "2026-07-28" else {}))
        self.tracers: list[FakeTracer] = []
        self.world.server.tracing = tracing = Tracing(ratio, self.world.reactor, self._make)
        tracing.start()

    def _make(self, clock: Any) -> FakeTracer:
        self.tracers.append(FakeTracer(clock))
        return self.tracers[-1]

    def post(self, way: str, size: int = 0, **meta: Any) -> None:
        """Open a session, if there is to be one, and post a call of this size."""
        own = json.loads(modern("x"))["params"]["_meta"] if self.kind == "2026-07-28" else {}
        params = {"name": "t", "arguments": {"x": "y" * size}, "_meta": {**own, **meta}}
        body = message("tools/call", 5, **params)
        if self.kind == "2026-07-28":
            client = self.world.connect(way=way)
            client.send("POST", "/mcp", body, None, HEADER, version="2026-07-28")
        elif self.kind == "/mcp":
            ident = self.world.open_session()
            self.world.connect(way=way).send("POST", "/mcp", body, None, HEADER, session=ident)
        else:
            stream = self.world.connect()
            stream.send("GET", "/sse")
            path = stream.written().split(b"data: ")[1].split()[0].decode()
            self.world.connect(way=way).send("POST", path, body, None, HEADER)
        self.world.reactor.pump([0] * 20)

    @property
    def spans(self) -> list[Any]:
        """The spans of the call."""
        found = self.tracers[0].spans
        return [each for each in found if each.name == "tools/call t" and each.kind == "server"]


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    def make(kind: str, ratio: float) -> Traced:
        traced = Traced(tmp_path, kind, ratio)
        request.addfinalizer(traced.world.stop)
        return traced

    return make


@pytest.mark.parametrize("way", [FAST, ORDINARY])
@pytest.mark.parametrize("kind", WAYS)
def test_a_request_has_its_parent_and_a_link_to_its_http_request(
    make: Any, kind: str, way: str
) -> None:
    traced = make(kind, 0.0)
    traced.post(way, traceparent=RECORDED)
    [span] = traced.spans
    assert span.given["parent"].span_id == int(SPAN, 16)
    assert span.given["link"].span_id == int(OUTER, 16)


@pytest.mark.parametrize("way", [FAST, ORDINARY])
@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize(
    ("ratio", "size", "recorded"),
    [(1.0, 0, False), (0.0, LARGE_BYTES, False), (1.0, LARGE_BYTES, True)],
)
def test_a_parent_that_is_not_recorded_decides_unless_the_message_is_large(
    make: Any, kind: str, way: str, ratio: float, size: int, recorded: bool
) -> None:
    """Of a large one the parent is not read, so chance decides."""
    traced = make(kind, ratio)
    traced.post(way, size, traceparent=UNRECORDED)
    assert bool(traced.spans) == recorded
    assert all(each.given["parent"] is None for each in traced.spans)
