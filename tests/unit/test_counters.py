"""What is counted, and how durations become percentiles."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.counters import (
    MAX_ERRORS,
    MAX_OPERATIONS,
    OTHER,
    SECONDS_BOUNDS,
    BridgeCounters,
    Histogram,
    Operation,
    ServerCounters,
    Traffic,
    quantile,
)


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram()
    for each in (0.0, 0.01, 0.011, 300.0, 300.1):
        histogram.add(each)
    assert histogram.buckets == [2, 1, *[0] * 11, 1, 1]
    assert histogram.count == 5
    assert histogram.total == pytest.approx(600.121)


@given(st.lists(st.floats(0, 1000), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_within_the_bucket_of_the_value(values: list[float], part: float) -> None:
    parts = [Histogram(), Histogram()]
    for at, each in enumerate(values):
        parts[at % 2].add(each)
    found = quantile(parts, part)
    assert found is not None
    exact = sorted(values)[ceil(part * len(values)) - 1]
    lower = max((x for x in (0.0, *SECONDS_BOUNDS) if x < exact), default=0.0)
    upper = next((x for x in SECONDS_BOUNDS if x >= exact), lower)
    assert lower <= found <= upper


def test_without_durations_there_is_no_quantile() -> None:
    assert quantile([], 0.5) is None
    assert quantile([Histogram()], 0.5) is None


def test_what_takes_longest_counts_as_the_last_bound() -> None:
    histogram = Histogram()
    histogram.add(1e6)
    assert quantile([histogram], 0.5) == SECONDS_BOUNDS[-1]


def test_errors_beyond_a_number_are_counted_together() -> None:
    operation = Operation("tools/call")
    for number in range(MAX_ERRORS + 5):
        operation.failed(str(number), 1.0)
    assert len(operation.errors) == MAX_ERRORS + 1
    assert operation.errors[OTHER].count == 5
    assert operation.error_count == MAX_ERRORS + 5
    assert operation.answered.count == 0


def test_operations_beyond_a_number_are_counted_together() -> None:
    counters = ServerCounters("a")
    for number in range(MAX_OPERATIONS + 5):
        counters.operation("tools/call", f"tool {number}").answered.add(1.0)
    assert len(counters.operations) == MAX_OPERATIONS + 1
    other = counters.operation(OTHER)
    assert (other.method, other.tool, other.answered.count) == (OTHER, "", 5)
    assert counters.operation("tools/call", "tool 0").answered.count == 1


def test_counters_of_a_server_go_on_while_there_is_one() -> None:
    counters = BridgeCounters()
    first, second = counters.of("a"), counters.of("b")
    assert counters.of("a") is first
    first.name = "c"
    counters.keep([first])
    assert counters.servers == {"c": first}
    assert counters.of("b") is not second


def test_messages_of_a_session_are_added_to_those_of_its_transport() -> None:
    counters, session = ServerCounters("a"), Traffic()
    session.messages_in, session.bytes_in, session.messages_out, session.bytes_out = 1, 2, 3, 4
    for transport in ("sse", "sse", "stateless", ""):
        counters.closed(transport, session)
    sse = counters.traffic["sse"]
    assert (sse.messages_in, sse.bytes_in, sse.messages_out, sse.bytes_out) == (2, 4, 6, 8)
    assert counters.traffic["streamable-http"].messages_in == 0


@pytest.mark.parametrize(
    ("status", "counted"),
    [
        ("exit status 1", "exit status 1"),
        ("signal 9", "signal 9"),
        ("remote: session closed", "other"),
        ("exit status 1\n", "other"),
        (None, "other"),
    ],
)
def test_ends_of_processes_are_counted_in_few_ways(status: str | None, counted: str) -> None:
    counters = ServerCounters("a")
    counters.exited(status)
    assert counters.exits == {counted: 1}
