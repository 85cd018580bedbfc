"""Trace contexts in `_meta` (W3C Trace Context)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.jsonrpc.members import members_of, meta_of
from mcpbridge.mcp.trace_context import (
    TRACESTATE_CHARS,
    TraceContext,
    context_of,
    is_unsampled,
    read_traceparent,
    with_context,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def message(**params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "x", "params": params}).encode()


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"00-{TRACE}-{SPAN}-ff", True),
        (f"01-{TRACE}-{SPAN}-01-more", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
    ],
)
def test_a_valid_parent(text: str, sampled: bool) -> None:
    assert read_traceparent(text, "a=1") == TraceContext(
        int(TRACE, 16), int(SPAN, 16), sampled, "a=1"
    )


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_an_invalid_parent_is_none(text: str | None) -> None:
    assert read_traceparent(text) is None


def test_a_long_state_is_dropped() -> None:
    for length, kept in ((TRACESTATE_CHARS, True), (TRACESTATE_CHARS + 1, False)):
        found = read_traceparent(PARENT, "a" * length)
        assert found is not None
        assert bool(found.state) == kept
    assert read_traceparent(PARENT) == TraceContext(int(TRACE, 16), int(SPAN, 16), True, "")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (message(_meta={"traceparent": PARENT}), True),
        (message(_meta={"traceparent": PARENT, "tracestate": "a=1"}), True),
        (message(_meta={"traceparent": 5}), False),
        (message(_meta=[]), False),
        (message(traceparent=PARENT), False),
        (b'{"params":5}', False),
        (b"traceparent", False),
    ],
)
def test_where_a_context_is(line: bytes, found: bool) -> None:
    meta = meta_of(members_of(members_of(line).get("params")))
    assert (context_of(meta) is not None) == found


def test_another_context_takes_its_place() -> None:
    before = message(a=1, _meta={"traceparent": "old", "tracestate": "old", "progressToken": 7})
    after = json.loads(with_context(before, PARENT))
    meta = {"traceparent": PARENT, "progressToken": 7}
    assert after == {**json.loads(before), "params": {"a": 1, "_meta": meta}}
    after = json.loads(with_context(before, PARENT, "b=2"))
    assert after["params"]["_meta"]["tracestate"] == "b=2"


def test_a_request_without_params_gets_some() -> None:
    after = json.loads(with_context(b'{"jsonrpc":"2.0","id":1,"method":"x"}', PARENT))
    assert after["params"] == {"_meta": {"traceparent": PARENT}}


@pytest.mark.parametrize("line", [b"", b"[]", b"5", b'{"params":[1]}', b'{"params":null}', b"{"])
def test_what_is_no_request_stays_as_it_is(line: bytes) -> None:
    assert with_context(line, PARENT) == line


@given(st.text(max_size=80))
def test_no_text_is_trouble(text: str) -> None:
    found = read_traceparent(text)
    assert found is None or found.trace_id


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"00-{TRACE}-{SPAN}-00", True),
        (f"00-{TRACE}-{SPAN}-fe", True),
        (f"00-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-00", False),
        (f"00-{TRACE}-{'0' * 16}-00", False),
        (f"00-{TRACE}-{SPAN}-00-", False),
        # These take another look.
        (f"01-{TRACE}-{SPAN}-00", False),
    ],
)
def test_what_is_not_recorded_is_seen_at_one_look(text: str, found: bool) -> None:
    assert is_unsampled(msgspec.Raw(json.dumps(text).encode())) == found
    if found:
        context = read_traceparent(text)
        assert context is not None
        assert not context.sampled
