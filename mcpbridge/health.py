"""
Whether the bridge and its servers are ready, from what has really happened.

One session that crashes proves nothing, as its client may be to blame; neither does a server
that is idle, or that nobody has used yet.  Knows servers; must not know who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.tuning import FAILED_STARTS
from mcpbridge.processes.server_state import Condition
from mcpbridge.server import Server

#: What the states of a server are called in details.
STATES = {each: each.name.lower().replace("_", " ") for each in Condition}


def is_ready(server: Server) -> bool:
    """
    Tell whether a client that comes now may expect to be served.

    A server is not ready while the system cannot start it, while its starts fail in a row,
    and once it starts nothing more.  Only starts count that no client has a part in
    (`StartCheck`).  One that failed is enough, as clients are told to come later then; unless
    a process works, whose clients would lose it to another bridge behind the same load
    balancer.  Then it takes `FAILED_STARTS`.

    With `env_from` a start may always fail because of what its client sent, and nobody but a
    client can find out that it works again.
    """
    pool = server.pool
    if server.removed or pool.stopping:
        return False
    if server.settings.env_from:
        return True
    if pool.cannot_start is not None:
        return False
    failures = pool.backoff.failures
    return not failures or (failures < FAILED_STARTS and _has_working_process(server))


def _has_working_process(server: Server) -> bool:
    return any(each.has_output and not each.leaving for each in server.unclosed)


class _Seen(NamedTuple):
    """How many results and successful starts there were, and when that was new."""

    results: int
    starts: int
    at: float | None


class BridgeHealth:
    """
    The readiness of a bridge and of its servers.

    `servers` returns all of them, and `condition` that of the bridge: `serving`, or why it
    takes no new clients.
    """

    def __init__(
        self,
        servers: Callable[[], Iterable[Server]],
        condition: Callable[[], str],
        clock: IReactorTime,
    ) -> None:
        self._servers = servers
        self._condition = condition
        self._clock = clock
        #: What each server had answered when it was last looked at, and when that was news.
        self._seen: WeakKeyDictionary[Server, _Seen] = WeakKeyDictionary()

    def is_ready(self) -> bool:
        """Tell whether the bridge takes new clients, and at least one server is ready."""
        return self.takes_clients and any(map(is_ready, self._present()))

    @property
    def takes_clients(self) -> bool:
        """True unless the bridge drains or stops."""
        return self._condition() == "serving"

    def server(self, name: str) -> Server | None:
        """Return the server of this name; None if there is none that takes new clients."""
        return next((each for each in self._present() if each.settings.name == name), None)

    def details(self) -> dict[str, Any]:
        """Return what is known of the bridge and of all servers, for JSON."""
        return {
            "ready": self.is_ready(),
            "condition": self._condition(),
            "servers": [self.details_of(each) for each in self._present()],
        }

    def details_of(self, server: Server) -> dict[str, Any]:
        """
        Return what is known of a server, for JSON.

        `since` is when its state began, in seconds since the epoch; `retry_in` and
        `last_answered` are in seconds from now, and what is not known is None.  An answer
        counts as given when this is next called: it is to be called regularly.
        """
        state = server.state()
        answered = self._answered_at(server)
        return {
            "name": server.settings.name,
            "ready": is_ready(server),
            "state": STATES[state.condition],
            "since": state.since,
            "why": state.text,
            "retry_in": state.retry_in,
            "failed_starts": server.pool.backoff.failures,
            "last_answered": None if answered is None else self._clock.seconds() - answered,
        }

    def _present(self) -> list[Server]:
        return [each for each in self._servers() if not each.removed]

    def _answered_at(self, server: Server) -> float | None:
        """Return when a process of a server has last answered; None if that is not known."""
        # No message stores the time for this: it is found out when somebody asks.
        results, starts = server.counters.results(), server.pool.backoff.successes
        seen = self._seen.get(server, _Seen(results, starts, None))
        is_news = results > seen.results or starts > seen.starts
        at = self._clock.seconds() if is_news else seen.at
        self._seen[server] = _Seen(results, starts, at)
        return at
