"""Memory is returned to the system after the end of many sessions."""

from __future__ import annotations

from twisted.internet.task import Clock

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import TRIM_SECONDS, TRIM_SESSIONS
from mcpbridge.memory import Trimmer
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
