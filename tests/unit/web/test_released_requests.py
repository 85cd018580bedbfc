"""Nothing of a request that was refused stays: overload is when memory is short."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.errors import CannotStart
from mcpbridge.stateless.exchange import Exchange
from tests.unit.test_reload import Place, server, settings_of
from tests.unit.web.test_refusals import FAST, MODERN_CALL, ORDINARY
from tests.unit.web.test_stateless_http import Legacy, Modern


def exchanges() -> int:
    return sum(type(each) is Exchange for each in gc.get_objects())


@pytest.mark.parametrize("way", [FAST, ORDINARY])
@pytest.mark.parametrize("kind", [Legacy, Modern])
@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"max_sessions_per_address": 1}, b"max_sessions_per_address"),
        ({"max_waiting_requests": 1}, b"max_waiting_requests"),
        ({"queue_timeout": 1}, b"queue_timeout"),
        ({"max_sessions": 2}, b"no such program"),
    ],
)
def test_refused_request_leaves_no_cycle(
    tmp_path: Path, way: str, kind: type, limit: dict[str, int], why: bytes
) -> None:
    """It is gone without the garbage collector."""
    settings: dict[str, Any] = {
        "max_sessions": 1,
        "max_sessions_per_address": 9,
        "concurrency": 1,
        **limit,
    }
    place = Place(tmp_path, settings_of(server("a", reuse="identity", **settings)))
    place.launcher.kind = kind
    for _ in range(2 if "max_waiting_requests" in limit else 1):
        place.connect(way=way).send("POST", "/a/mcp", MODERN_CALL, version="2026-07-28")
    status = 429
    if "max_sessions" in limit:
        place.launcher.error, status = CannotStart("no such program"), 502
    gc.collect()
    gc.disable()
    try:
        before = exchanges()
        client = place.connect(way=way)
        client.send("POST", "/a/mcp", MODERN_CALL, version="2026-07-28")
        if "queue_timeout" in limit:
            assert exchanges() == before + 1
            place.reactor.pump([1.1, 0.1])
        assert client.status() == status
        assert why in client.read
        client.close()
        place.connections.remove(client)
        del client
        assert exchanges() == before
    finally:
        gc.enable()
        place.stop()
