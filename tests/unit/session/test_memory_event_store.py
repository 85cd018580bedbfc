"""The memory event store: which events it keeps, and which errors it raises for others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from mcpbridge.errors import EventsGone, SettingError
from mcpbridge.interfaces import IEventLog, IEventStore
from mcpbridge.session.memory_event_store import (
    EVENT_BYTES_KEPT,
    EVENTS_KEPT,
    MemoryEventLog,
    MemoryEventStore,
)


def test_interfaces_are_provided() -> None:
    store = MemoryEventStore()
    assert verifyObject(IEventStore, store)
    assert verifyObject(IEventLog, store.open("a"))


def test_each_session_has_its_own_log() -> None:
    store = MemoryEventStore()
    one, other = store.open("one"), store.open("other")
    one.append("1", 1, b"a")
    assert one.after("1", 0) == [(1, b"a")]
    with pytest.raises(EventsGone):
        other.after("1", 0)


@pytest.mark.parametrize(("events", "size"), [(0, 1), (1, 0), (-1, 1), (1.5, 1), (1, True)])
def test_invalid_bounds_are_setting_errors(events: int, size: int) -> None:
    with pytest.raises(SettingError, match=r"max_(events|bytes): expected an integer"):
        MemoryEventStore(events, size)


def test_default_bounds_are_1000_events_and_4_mib() -> None:
    """A further event replaces the oldest."""
    log = MemoryEventStore().open("a")
    for number in range(1, EVENTS_KEPT + 2):
        log.append("1", number, b"{}")
    assert len(log) == EVENTS_KEPT == 1000
    with pytest.raises(EventsGone):
        log.after("1", 0)
    assert len(log.after("1", 1)) == EVENTS_KEPT
    for number in range(1, 6):
        log.append("2", number, b"x" * (EVENT_BYTES_KEPT // 4))
    assert log.size == EVENT_BYTES_KEPT == 4 * 1024 * 1024
    assert [number for number, _ in log.after("2", 1)] == [2, 3, 4, 5]


def test_event_beyond_the_size_bound_is_kept_alone() -> None:
    log = MemoryEventLog(10, 10)
    log.append("1", 1, b"12345")
    log.append("1", 2, b"x" * 11)
    assert log.after("1", 1) == [(2, b"x" * 11)]
    assert (len(log), log.size) == (1, 11)
    log.append("2", 1, b"1")
    assert (len(log), log.size) == (1, 1)


def test_unknown_event_or_stream_is_an_error() -> None:
    log = MemoryEventLog(10, 10)
    log.append("1", 1, b"1")
    assert log.after("1", 1) == []
    for stream, number in (("1", 2), ("2", 0), ("2", 1)):
        with pytest.raises(EventsGone, match=f"event {number + 1} of stream {stream}"):
            log.after(stream, number)


def test_closed_log_is_empty() -> None:
    log = MemoryEventLog(10, 10)
    log.append("1", 1, b"1")
    log.close()
    assert (len(log), log.size) == (0, 0)
    with pytest.raises(EventsGone):
        log.after("1", 0)


@given(
    streams=st.lists(st.tuples(st.sampled_from("012"), st.integers(0, 12))),
    max_events=st.integers(1, 6),
    max_bytes=st.integers(1, 20),
)
def test_log_keeps_the_newest_events_within_both_bounds(
    streams: list[tuple[str, int]], max_events: int, max_bytes: int
) -> None:
    """It returns all later events of a stream, or raises an error."""
    log = MemoryEventLog(max_events, max_bytes)
    numbers = dict.fromkeys("012", 0)
    kept: list[tuple[str, int, bytes]] = []
    for stream, size in streams:
        numbers[stream] += 1
        event = (stream, numbers[stream], b"x" * size)
        log.append(*event)
        kept.append(event)
        while len(kept) > 1 and (
            len(kept) > max_events or sum(len(line) for _, _, line in kept) > max_bytes
        ):
            del kept[0]
    assert (len(log), log.size) == (len(kept), sum(len(line) for _, _, line in kept))
    for stream, last in numbers.items():
        there = {number: line for name, number, line in kept if name == stream}
        for number in range(last + 2):
            wanted = range(number + 1, last + 1)
            if all(each in there for each in wanted) and (wanted or number in there):
                assert log.after(stream, number) == [(each, there[each]) for each in wanted]
            else:
                with pytest.raises(EventsGone):
                    log.after(stream, number)
