"""
Errors as HTTP answers.
"""

from __future__ import annotations

from typing import Any

from mcpbridge.errors import Refused


def answer(request: Any, refusal: Refused) -> bytes:
    """Set status and headers of a refusal; return its body."""
    body = refusal.body()
    request.setResponseCode(refusal.status)
    for name, value in refusal.headers():
        request.setHeader(name, value)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body
