"""What the state of a server is called, and from what it follows."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.config.tuning import SETTLED_SECONDS
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.server_state import Condition, ServerState, state_of

NOW = 1000.0


class Process:
    """What is asked of a `BackendSession`."""

    def __init__(self, age: float = 0.0, *, output: bool = False, leaving: bool = False) -> None:
        self.opened_at = NOW - age
        self.has_output = output
        self.leaving = leaving


def state(*processes: Process, spares: tuple[Process, ...] = (), **more: Any) -> ServerState:
    backoff = more.pop("backoff", None) or StartBackoff("s", lambda: 0.0)
    found: Any = [*processes, *spares]
    kept: Any = spares
    return state_of(backoff, found, kept, NOW, **more)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (state(), (Condition.NOT_STARTED, None)),
        (state(Process(3), Process(5)), (Condition.STARTING, NOW - 5)),
        (state(Process(3), Process(5, leaving=True)), (Condition.STARTING, NOW - 3)),
        (state(Process(5, leaving=True)), (Condition.NOT_RUNNING, None)),
        (state(ended=True), (Condition.NOT_RUNNING, None)),
        (state(Process(2), ended=True), (Condition.STARTING, NOW - 2)),
        (state(answered=True, ended=True), (Condition.READY, None)),
        (state(Process(3), Process(5, output=True)), (Condition.READY, None)),
        (state(answered=True), (Condition.READY, None)),
        (state(spares=(Process(1),)), (Condition.STARTING, NOW - 1)),
        (state(spares=(Process(SETTLED_SECONDS),)), (Condition.UNUSED, None)),
        (state(answered=True, stopping=True), (Condition.DRAINING, None)),
        (state(answered=True, cannot_start=(7.0, "no")), (Condition.FAILING, 7.0)),
    ],
)
def test_state(found: ServerState, expected: tuple[Condition, float | None]) -> None:
    assert found[:2] == expected


def test_failed_starts_are_told_until_one_succeeds() -> None:
    backoff = StartBackoff("s", lambda: 0.0)
    backoff.failed(NOW - 5, "it crashed")
    backoff.failed(NOW - 0.5, "it crashed again")
    found = state(answered=True, backoff=backoff)
    assert found == ServerState(Condition.FAILING, NOW - 5, "it crashed again", 2)
    assert found.text == "it crashed again; next try in 2 s"
    later = state_of(backoff, [], [], NOW + 100)
    assert (later.retry_in, later.text) == (None, "it crashed again")
    backoff.succeeded()
    assert backoff.failing_since is None
    assert state(answered=True, backoff=backoff).condition is Condition.READY


def test_each_condition_has_a_text_but_ready() -> None:
    silent = [each for each in Condition if not ServerState(each, why="why").text]
    assert silent == [Condition.READY]
