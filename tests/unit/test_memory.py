"""Memory is returned to the system after the end of many sessions."""

from __future__ import annotations

import ctypes

import pytest
from twisted.internet.task import Clock

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import MAPPED_BYTES, TRIM_SECONDS, TRIM_SESSIONS
from mcpbridge.jsonrpc.pieces import JOINED_BYTES
from mcpbridge.memory import Trimmer, map_large_blocks
from mcpbridge.processes.permits import SessionLimiter


def test_memory_is_returned_after_the_end_of_many_sessions() -> None:
    """`TRIM_SESSIONS`, by the permits that they give back; `TRIM_SECONDS` later."""
    clock = Clock()
    trimmed: list[float] = []
    trimmer = Trimmer(clock, lambda: trimmed.append(clock.seconds()))
    settings = BridgeSettings(servers=(ServerSettings(command="x"),))
    limiter = SessionLimiter(settings.session_limit, trimmer.session_ended)
    for _ in range(2):
        permits = [limiter.acquire() for _ in range(TRIM_SESSIONS)]
        for permit in permits[1:]:
            assert permit is not None
            permit.release()
            permit.release()
        assert clock.getDelayedCalls() == []
        assert permits[0] is not None
        permits[0].release()
        assert len(clock.getDelayedCalls()) == 1
        clock.advance(TRIM_SECONDS)
    assert trimmed == [TRIM_SECONDS, 2 * TRIM_SECONDS]


class Library:
    """A C library that keeps what it is told."""

    def __init__(self, told: list[tuple[int, int]]) -> None:
        self.mallopt = lambda name, value: told.append((name, value))


@pytest.mark.parametrize("library", [Library, lambda told: object()])
def test_large_blocks_are_mapped_where_the_library_can_be_told(
    monkeypatch: pytest.MonkeyPatch, library: type[Library]
) -> None:
    """M_MMAP_THRESHOLD, and twice as much for M_TRIM_THRESHOLD; other libraries are left alone."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library(told))
    map_large_blocks()
    expected = [(-3, MAPPED_BYTES), (-1, 2 * MAPPED_BYTES)]
    assert told == (expected if library is Library else [])


def test_bytes_that_are_copied_as_they_arrive_are_mapped() -> None:
    """So their buffer grows without being copied."""
    assert MAPPED_BYTES <= JOINED_BYTES
