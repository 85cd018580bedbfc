"""
Who has sent a request, for filters and observers.

Knows requests; who is told of it is for `session`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcpbridge.processes.caller import ANYBODY, Caller

#: Tells who has sent a request of twisted.web; None where nobody wants to know.
CallerOf = Callable[[Any], Caller | None]


def nobody(request: Any) -> None:
    """Where there is neither a filter nor an observer."""


def callers(address_of: Callable[[Any], str | None]) -> CallerOf:
    """Where there is one; `address_of` tells the address of a request's client."""

    def caller_of(request: Any) -> Caller:
        return Caller(ANYBODY, address_of(request), _headers(request))

    return caller_of


def _headers(request: Any) -> dict[str, str]:
    """By their names in lower case; the fields of one name as one list (RFC 9110, section 5.3)."""
    return {
        name.decode("latin-1").lower(): ", ".join(value.decode("latin-1") for value in values)
        for name, values in request.requestHeaders.getAllRawHeaders()
    }
