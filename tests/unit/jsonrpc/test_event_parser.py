"""Events out of a stream of bytes: every way to cut it up gives the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.jsonrpc.event_parser import FIELD_BYTES, RETRY_DIGITS, Event, EventParser
from mcpbridge.jsonrpc.oversized import END_BYTES

LIMIT = 100_000


def parsed(*pieces: bytes, limit: int = LIMIT) -> list[Event]:
    """Return the events of a stream that arrives in these pieces."""
    parser = EventParser(limit)
    return [event for piece in pieces for event in parser.receive(piece)]


def data(*pieces: bytes, limit: int = LIMIT) -> list[bytes | None]:
    return [event.data for event in parsed(*pieces, limit=limit)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(b"message", b"a", b"")]),
        (b"data:a\n\n", [(b"message", b"a", b"")]),
        (b"data:  a\n\n", [(b"message", b" a", b"")]),
        (b"data: a\ndata: b\n\n", [(b"message", b"a\nb", b"")]),
        (b"data\n\n", [(b"message", b"", b"")]),
        (b"event: endpoint\ndata: /x\n\n", [(b"endpoint", b"/x", b"")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"message", b"a", b"")]),
        (b"id: 1\ndata:\n\ndata: a\n\n", [(b"message", b"", b"1"), (b"message", b"a", b"1")]),
        (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [(b"message", b"a", b"1"), (b"message", b"b", b"")]),
        (b"id: a\0b\ndata: a\n\n", [(b"message", b"a", b"")]),
        (b": a comment\n\n", []),
        (b"\n\n\n", []),
        (b"data: a\n", []),
        (b"other: x\ndata: a\n\n", [(b"message", b"a", b"")]),
    ],
)
def test_fields(stream: bytes, events: list[tuple[bytes, bytes, bytes]]) -> None:
    assert [each[:3] for each in parsed(stream)] == events
    assert [each[:3] for each in parsed(stream.replace(b"\n", b"\r\n"))] == events
    assert [each[:3] for each in parsed(stream.replace(b"\n", b"\r"))] == events


STREAMS = st.lists(
    st.sampled_from([b"data: {}", b"data", b"id: 1", b"event: x", b": c", b"", b"", b"x" * 20])
)


@given(
    STREAMS,
    st.lists(st.integers(0, 200)),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([LIMIT, 5]),
)
def test_every_way_to_cut_it_up_gives_the_same(
    lines: list[bytes], cuts: list[int], end: bytes, limit: int
) -> None:
    stream = end.join([*lines, b"", b""])
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[begin:stop] for begin, stop in pairwise(at)]
    whole = parsed(b"\n".join([*lines, b"", b""]), limit=limit)
    assert parsed(*pieces, limit=limit) == whole
    assert parsed(*(stream[i : i + 1] for i in range(len(stream))), limit=limit) == whole


def test_retry() -> None:
    parser = EventParser(LIMIT)
    assert parser.retry is None
    parser.receive(b"retry: 1500\nretry: x\nretry: -1\nretry:\n")
    parser.receive(b"retry: " + b"9" * (RETRY_DIGITS + 1) + b"\n")
    assert parser.retry == 1500


def test_long_fields_are_ignored() -> None:
    long = b"x" * (FIELD_BYTES + 1)
    [event] = parsed(b"id: " + long + b"\nevent: " + long + b"\ndata: a\n\n")
    assert event[:3] == (b"message", b"a", b"")


def test_an_unfinished_event_is_counted() -> None:
    parser = EventParser(LIMIT)
    parser.receive(b"data: abc\ndata: de")
    assert parser.waiting == len("abc") + 1 + len("data: de")
    parser.receive(b"\n\n")
    assert parser.waiting == 0


@pytest.mark.parametrize("size", [7, 64])
def test_of_data_that_is_too_large_the_ends_are_kept(size: int) -> None:
    limit = 10_000
    text = b'{"id":1,' + b"x" * 50_000 + b'"end":2}'
    stream = b"data: " + text + b"\n\ndata: next\n\n"
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    for arrived in (pieces, [stream]):
        large, after = parsed(*arrived, limit=limit)
        assert large.data is None
        assert large.oversized is not None
        assert large.oversized.size == len(text)
        assert large.oversized.head == text[:END_BYTES]
        assert large.oversized.tail == text[-END_BYTES:]
        assert after.data == b"next"


def test_many_lines_of_data_may_be_too_large_as_well() -> None:
    [event] = parsed(b"data: 12345\n" * 3 + b"\n", limit=12)
    assert event.data is None
    assert event.oversized is not None
    assert event.oversized.size == 17
    [event] = parsed(b"data: 12345\n" * 4 + b"\n", limit=12)
    assert event.oversized is not None
    assert event.oversized.tail.endswith(b"12345")


def test_a_long_line_that_is_no_data_spoils_no_event() -> None:
    comment = b": " + b"x" * 50_000
    for size in (7, 100_000):
        stream = comment + b"\ndata: a\n" + comment + b"\n\n"
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert data(*pieces, limit=100) == [b"a"]


def test_what_is_skipped_is_counted_as_long_as_it_goes_on() -> None:
    parser = EventParser(100)
    parser.receive(b"data: " + b"x" * 50_000)
    assert parser.skipped >= 4096
    parser.receive(b"y" * 10_000)
    parser.receive(b"\n\n")
    assert parser.skipped == 0
    parser.receive(b":" + b"x" * 50_000)
    parser.receive(b"x" * 50_000)
    assert parser.skipped > 90_000
    parser.receive(b"\n")
    assert parser.skipped == 0
