"""The memory event store: what is kept, what goes, what is said of it."""

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


def test_sessions_have_logs_of_their_own() -> None:
    store = MemoryEventStore()
    one, other = store.open("one"), store.open("other")
    one.append("1", 1, b"a")
    assert one.after("1", 0) == [(1, b"a")]
    with pytest.raises(EventsGone):
        other.after("1", 0)


@pytest.mark.parametrize(("events", "size"), [(0, 1), (1, 0), (-1, 1), (1.5, 1), (1, True)])
def test_bounds_are_checked(events: int, size: int) -> None:
    with pytest.raises(SettingError, match=r"max_(events|bytes): expected an integer"):
        MemoryEventStore(events, size)


def test_default_bounds_are_reached() -> None:
    """The 1,001st event takes the first one's place, and 4 MiB are as many as are kept."""
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


def test_one_that_is_too_large_is_kept_alone() -> None:
    log = MemoryEventLog(10, 10)
    log.append("1", 1, b"12345")
    log.append("1", 2, b"x" * 11)
    assert log.after("1", 1) == [(2, b"x" * 11)]
    assert (len(log), log.size) == (1, 11)
    log.append("2", 1, b"1")
    assert (len(log), log.size) == (1, 1)


def test_a_stream_of_which_nothing_is_known() -> None:
    log = MemoryEventLog(10, 10)
    log.append("1", 1, b"1")
    assert log.after("1", 1) == []
    for stream, number in (("1", 2), ("2", 0), ("2", 1)):
        with pytest.raises(EventsGone, match=f"event {number + 1} of stream {stream}"):
            log.after(stream, number)


def test_nothing_is_kept_after_the_end() -> None:
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
def test_any_history_is_kept_as_a_list_would(
    streams: list[tuple[str, int]], max_events: int, max_bytes: int
) -> None:
    """The newest within both bounds, and all of a stream behind an event or an error."""
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
