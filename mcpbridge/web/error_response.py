"""
Errors as HTTP answers.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from mcpbridge.errors import Refused, without_frames


def phrase(status: int) -> bytes:
    """The reason phrase of a status (RFC 9110, section 15; RFC 6585, section 4)."""
    return HTTPStatus(status).phrase.encode("ascii")


def answer(request: Any, refusal: Refused) -> bytes:
    """Set status and headers of a refusal; return its body."""
    body = without_frames(refusal).body()
    request.setResponseCode(refusal.status, phrase(refusal.status))
    for name, value in refusal.headers():
        request.setHeader(name, value)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body
