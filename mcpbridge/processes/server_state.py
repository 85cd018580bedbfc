"""
What the processes of a server say of its state, in plain words, for people and programs.

Knows failures and processes; must not know who asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from math import ceil
from typing import NamedTuple

from mcpbridge.config.tuning import SETTLED_SECONDS
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.backoff import StartBackoff


class Condition(Enum):
    """What a client may expect that comes now."""

    #: A process has answered.
    READY = "ready"
    #: Processes that are kept ready run, and no client has used one yet.
    UNUSED = "kept ready"
    #: Nobody has needed a process yet.
    NOT_STARTED = "not started yet"
    #: No process is running, and none answered before it ended.
    NOT_RUNNING = "not running"
    #: Processes run, and none has answered yet.
    STARTING = "starting"
    #: The last start failed.
    FAILING = "failing"
    #: Nothing more is started: the server was removed, or the bridge stops.
    DRAINING = "draining"


class ServerState(NamedTuple):
    """
    The state of a server.

    `since` is when it began, in seconds of the clock, where that is known; `why` is the
    reason of failed starts, as clients are told it, and `retry_in` the seconds until the next
    try.
    """

    condition: Condition
    since: float | None = None
    why: str = ""
    retry_in: int | None = None

    @property
    def text(self) -> str:
        """What there is to say of it beyond its condition; an empty string for nothing."""
        if self.condition is Condition.FAILING:
            return f"{self.why}; next try in {self.retry_in} s" if self.retry_in else self.why
        return _TEXTS.get(self.condition, "")


_TEXTS = {
    Condition.NOT_STARTED: "the first client starts it",
    Condition.NOT_RUNNING: (
        "no process is running, and none answered before it ended; the next client starts one"
    ),
    Condition.UNUSED: "no client has used a process yet",
    Condition.STARTING: "no process has answered yet",
    Condition.DRAINING: "running sessions go on, and no new ones begin",
}


def state_of(
    backoff: StartBackoff,
    processes: Iterable[BackendSession],
    spares: Iterable[BackendSession],
    now: float,
    *,
    answered: bool = False,
    ended: bool = False,
    cannot_start: tuple[float, str] | None = None,
    stopping: bool = False,
) -> ServerState:
    """
    Return the state of a server with these processes, of which `spares` are kept ready;
    `cannot_start` is since when, and why, the system starts none.  `answered` is True if one
    has ever answered, and `ended` if one has run and is gone.

    A spare process is silent until it is used, so that all there is to say of it is that it has
    lived for `SETTLED_SECONDS`.
    """
    if stopping:
        return ServerState(Condition.DRAINING)
    if backoff.failures:
        wait = ceil(backoff.wait(now))
        return ServerState(Condition.FAILING, backoff.failing_since, backoff.why, wait or None)
    if cannot_start is not None:
        since, why = cannot_start
        return ServerState(Condition.FAILING, since, why)
    if answered:
        return ServerState(Condition.READY)
    return _of_silent(processes, spares, now, ended=ended)


def _of_silent(
    processes: Iterable[BackendSession],
    spares: Iterable[BackendSession],
    now: float,
    *,
    ended: bool,
) -> ServerState:
    """Return the state of a server of which no process has answered before."""
    first: float | None = None
    for each in processes:
        if each.has_output:
            return ServerState(Condition.READY)
        if each.leaving:
            ended = True
        elif first is None or each.opened_at < first:
            first = each.opened_at
    if any(now - each.opened_at >= SETTLED_SECONDS for each in spares):
        return ServerState(Condition.UNUSED)
    if first is None:
        return ServerState(Condition.NOT_RUNNING if ended else Condition.NOT_STARTED)
    return ServerState(Condition.STARTING, first)
