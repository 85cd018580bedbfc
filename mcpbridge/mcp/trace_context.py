"""
The trace context of a request (W3C Trace Context), as MCP carries it in `params._meta`.

Its members there have no prefix (basic/index, "_meta").  Knows their text; must not know
who records spans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mcpbridge.jsonrpc.members import (
    changed,
    encode,
    members,
    members_of,
    string_of,
    with_meta,
)

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
#: Trace Context, section 3.2.2; a later version may have more behind the flags.
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
#: A `traceparent` in JSON of a span that is not recorded, as nearly all write it.
_UNSAMPLED = re.compile(
    rb'"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]"'
).fullmatch
#: A longer `tracestate` may be dropped (section 3.3.1.5).
TRACESTATE_CHARS = 512


class TraceContext(NamedTuple):
    """A span of somebody else: its trace, itself, whether it is recorded, and `tracestate`."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""


def read_traceparent(text: str | None, state: str | None = None) -> TraceContext | None:
    """Return the context that a `traceparent` describes; None if it is missing or invalid."""
    found = None if text is None else _PARENT.fullmatch(text)
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    # The last bit of the flags says that the parent is recorded (section 3.2.2.5.1).
    sampled = int(flags, 16) % 2 == 1
    known = "" if state is None or len(state) > TRACESTATE_CHARS else state
    return TraceContext(int(trace, 16), int(span, 16), sampled, known)


def is_unsampled(traceparent: msgspec.Raw) -> bool:
    """
    Tell quickly whether a `traceparent` names a span that is not recorded; False means only
    that `context_of` has to look.
    """
    return _UNSAMPLED(traceparent) is not None


def context_of(meta: Mapping[str, msgspec.Raw]) -> TraceContext | None:
    """Return the context in a `_meta`; None if there is no valid one."""
    return read_traceparent(string_of(meta.get(TRACEPARENT)), string_of(meta.get(TRACESTATE)))


def context_members(traceparent: str, tracestate: str = "") -> dict[str, object]:
    """Return the changes to a `_meta` that is to have this context."""
    return {TRACEPARENT: traceparent, TRACESTATE: tracestate or msgspec.UNSET}


def with_context(line: bytes, traceparent: str, tracestate: str = "") -> bytes:
    """Return a request with this context in its `_meta`, in place of any other."""
    outer = members_of(line)
    raw = outer.get("params")
    if not outer or (raw is not None and members(raw) is None):
        return line
    params = with_meta(members_of(raw), context_members(traceparent, tracestate))
    return encode(changed(outer, {"params": params}))
