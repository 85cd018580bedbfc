"""
What can be said of a server in numbers, for metrics.

Knows servers, their sessions and processes; must not know in which form they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mcpbridge.admin.view import BridgeView
from mcpbridge.counters import ServerCounters, Traffic
from mcpbridge.health import is_ready
from mcpbridge.jsonrpc.sliced_parser import Slices
from mcpbridge.process_usage import NO_USAGE, Usages
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.server_state import Condition
from mcpbridge.server import Server

#: How many sessions are looked at without a pause; each takes half a microsecond.
SUMMED_SESSIONS = 1000


class ProcessCounts(NamedTuple):
    """The processes of a server, by what they are used for."""

    #: A client's session.
    session: int
    #: Requests of 2026-07-28, one at a time, or several at one time.
    exclusive: int
    concurrent: int
    #: Nothing yet: it is kept ready.
    warm: int
    #: Nothing yet: it is being started, or asked what it can do.
    starting: int
    #: Nothing any more: it ends.
    ending: int


def process_counts(server: Server) -> ProcessCounts:
    """Count the processes of a server."""
    generations = server.generations
    session = len(server.sessions) + len(server.streamable)
    exclusive = sum(each.stateless.exclusive_count for each in generations)
    concurrent = sum(each.stateless.concurrent_count for each in generations)
    warm = sum(len(each.pool.spares) for each in generations)
    unclosed = server.unclosed
    ending = sum(each.leaving for each in unclosed)
    starting = sum(len(each.pool.launching) for each in generations)
    starting += max(0, len(unclosed) - session - exclusive - concurrent - warm - ending)
    return ProcessCounts(session, exclusive, concurrent, warm, starting, ending)


class ServerNumbers:
    """
    All numbers of the servers of one name.

    There is more than one only if another was removed from the settings and its sessions go
    on: they are shown as one, since no two series may have the same labels.
    """

    def __init__(self, name: str, counters: ServerCounters, servers: Sequence[Server]) -> None:
        self.name = name
        self.counters = counters
        # The one whose settings count was added last.
        self._last = servers[-1]
        self.limit = self._last.settings.max_sessions
        self.condition: Condition = self._last.state().condition
        #: True if a client that comes now may expect an answer.
        self.is_ready = is_ready(self._last)
        counts = [process_counts(each) for each in servers]
        self.processes = ProcessCounts(*(sum(each) for each in zip(*counts, strict=True)))
        self.waiting = sum(each.waiting for each in servers)
        self.live = {
            "sse": sum(len(each.sessions) for each in servers),
            "streamable-http": sum(len(each.streamable) for each in servers),
        }
        #: The messages of all sessions, also of those that are live, by transport.
        self.traffic: dict[str, Traffic] = {}
        #: What the processes of all sessions use.
        self.usage = NO_USAGE


def read_servers(view: BridgeView, usages: Usages) -> Slices[list[ServerNumbers]]:
    """
    Find out the numbers of all servers, a moment's work at a time.

    No sum of messages is ever less than before: what closed sessions have counted and which
    sessions there are is read at one moment.  A session that closes later has its own counts
    still, and counts nothing twice.
    """
    found = []
    for name, servers in _by_name(view.servers):
        counters = view.counters.servers.get(name, servers[-1].counters)
        numbers = ServerNumbers(name, counters, servers)
        numbers.traffic = {key: _copy(each) for key, each in counters.traffic.items()}
        sessions = {each: list(each.unclosed) for each in servers}
        found.append(numbers)
        yield
        for server, its in sessions.items():
            if server.counters is counters:
                yield from _add_traffic(numbers, its)
            yield from _add_usage(numbers, its, usages)
    return found


def _by_name(servers: Iterable[Server]) -> Iterator[tuple[str, list[Server]]]:
    named: dict[str, list[Server]] = {}
    for each in servers:
        named.setdefault(each.settings.name, []).append(each)
    return iter(named.items())


def _copy(traffic: Traffic) -> Traffic:
    copied = Traffic()
    copied.add(traffic)
    return copied


def _add_traffic(numbers: ServerNumbers, sessions: Sequence[BackendSession]) -> Slices[None]:
    for at, session in enumerate(sessions, 1):
        traffic = numbers.traffic.get(session.transport)
        if traffic is not None:
            traffic.add(session)
        if at % SUMMED_SESSIONS == 0:
            yield


def _add_usage(
    numbers: ServerNumbers, sessions: Sequence[BackendSession], usages: Usages
) -> Slices[None]:
    for at, session in enumerate(sessions, 1):
        usage = usages.get(getattr(session.backend, "pid", None) or 0)
        if usage is not None:
            numbers.usage = numbers.usage.plus(usage)
        if at % SUMMED_SESSIONS == 0:
            yield
