"""
The trace context of HTTP requests: the header `traceparent` (W3C Trace Context, section 3.2).

Knows requests of twisted.web; must not know spans.
"""

from __future__ import annotations

from typing import Any

from mcpbridge.server import Server
from mcpbridge.tracing.tracing import HttpContext


def http_context(request: Any) -> HttpContext:
    """Return a callable that returns the `traceparent` of a request of twisted.web."""
    named = request.requestHeaders.getRawHeaders(b"traceparent")
    return lambda: named[0].decode("latin-1") if named else None


def recorded_context(server: Server, request: Any, message: bytes) -> HttpContext | None:
    """Return the context of a request if its message is to be recorded; None otherwise."""
    tracing = server.tracing
    return None if tracing is None or not tracing.wants(message) else http_context(request)
