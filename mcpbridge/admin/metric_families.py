"""
Which metrics there are: names, labels, meanings, and where each number comes from.

Names and labels of durations are those of OpenTelemetry's semantic conventions for MCP, as
Prometheus spells them.  Knows numbers of servers; must not know how a metric is written.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import twisted

from mcpbridge._version import __version__
from mcpbridge.admin.server_numbers import ProcessCounts, ServerNumbers
from mcpbridge.admin.view import BridgeView
from mcpbridge.counters import Histogram
from mcpbridge.process_usage import Usage
from mcpbridge.processes.endings import KINDS
from mcpbridge.processes.server_state import Condition

#: The values of labels, in the order of the labels' names, and the number that they have.
Point = tuple[tuple[str, ...], float | Histogram]
#: How reloads end, as `BridgeCounters.reloads` has it.
_RESULTS = ("loaded", "failed")


class Numbers(NamedTuple):
    """All numbers of a bridge."""

    view: BridgeView
    servers: list[ServerNumbers]


_Points = Callable[[Numbers], Iterable[Point]]


class Family(NamedTuple):
    """
    All series of one name.

    `points` may be iterated slowly while numbers change: each point is read when it is
    reached.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    #: What it means, for people.
    text: str
    points: Callable[[Numbers], Iterable[Point]]


# Of each server.


def _of_servers(value: Callable[[ServerNumbers], float | Histogram]) -> _Points:
    """Return a function to the one number of each server."""
    return lambda numbers: (((each.name,), value(each)) for each in numbers.servers)


def _by_key(
    values: Callable[[ServerNumbers], Iterable[tuple[str, float]]],
) -> _Points:
    """Return a function to the numbers of each server that have another label."""

    def points(numbers: Numbers) -> Iterator[Point]:
        for each in numbers.servers:
            for key, value in list(values(each)):
                yield (each.name, key), value

    return points


def _known(counted: Counter[str], keys: Iterable[str]) -> dict[str, float]:
    """Return what was counted, with 0 for keys that are known before they are counted."""
    return {**dict.fromkeys(keys, 0), **counted}


def _operations(numbers: Numbers) -> Iterator[Point]:
    for server in numbers.servers:
        for each in server.counters.operations:
            labels = server.name, each.method, each.tool
            yield (*labels, ""), each.answered
            for error, histogram in list(each.errors.items()):
                yield (*labels, error), histogram


def _refusals(numbers: Numbers) -> Iterator[Point]:
    for cause, count in list(numbers.view.counters.refusals.items()):
        yield ("", cause), count
    for server in numbers.servers:
        for cause, count in list(server.counters.refusals.items()):
            yield (server.name, cause), count


def _traffic(into: str, out: str) -> _Points:
    """Return a function to what was counted in each direction, by the attributes' names."""

    def points(numbers: Numbers) -> Iterator[Point]:
        for server in numbers.servers:
            for transport, traffic in server.traffic.items():
                yield (server.name, transport, "from_client"), getattr(traffic, into)
                yield (server.name, transport, "to_client"), getattr(traffic, out)

    return points


def _states(server: ServerNumbers) -> Iterator[tuple[str, float]]:
    for each in Condition:
        yield each.name.lower(), each is server.condition


def _usage(value: Callable[[Usage], int]) -> _Points:
    return _of_servers(lambda server: value(server.usage))


# Of the bridge.


def _of_bridge(value: Callable[[BridgeView], float]) -> _Points:
    """Return a function to one number of the bridge."""
    return lambda numbers: [((), value(numbers.view))]


def _reloads(numbers: Numbers) -> Iterator[Point]:
    for result, count in _known(numbers.view.counters.reloads, _RESULTS).items():
        yield (result,), count


def _build(numbers: Numbers) -> list[Point]:
    return [((__version__, platform.python_version(), twisted.__version__), 1)]


_SERVER = ("server",)
_TRAFFIC = ("server", "transport", "direction")

#: All metrics, in the order in which they are written.
FAMILIES = (
    Family(
        "mcp_server_operation_duration_seconds",
        "histogram",
        ("server", "mcp_method_name", "gen_ai_tool_name", "error_type"),
        "Time from a client's request to its answer; error_type is empty for a result.",
        _operations,
    ),
    Family(
        "mcp_server_session_duration_seconds",
        "histogram",
        _SERVER,
        "Duration of clients' sessions that have ended.",
        _of_servers(lambda server: server.counters.session_seconds),
    ),
    Family(
        "mcpbridge_backend_spawn_seconds",
        "histogram",
        _SERVER,
        "Time to start a backend process.",
        _of_servers(lambda server: server.counters.spawn_seconds),
    ),
    Family(
        "mcpbridge_backend_initialize_seconds",
        "histogram",
        _SERVER,
        "Time until a backend process has answered for the first time.",
        _of_servers(lambda server: server.counters.initialize_seconds),
    ),
    Family(
        "mcpbridge_sessions_opened_total",
        "counter",
        ("server", "transport"),
        "Sessions that clients have opened.",
        _by_key(lambda server: _known(server.counters.sessions_opened, server.live).items()),
    ),
    Family(
        "mcpbridge_sessions_closed_total",
        "counter",
        ("server", "reason"),
        "Sessions of clients that have ended.",
        _by_key(lambda server: _known(server.counters.sessions_closed, KINDS).items()),
    ),
    Family(
        "mcpbridge_refusals_total",
        "counter",
        ("server", "cause"),
        "Requests that the bridge refused; server is empty where it is not known.",
        _refusals,
    ),
    Family(
        "mcpbridge_backend_exits_total",
        "counter",
        ("server", "status"),
        "Backend processes that have ended.",
        _by_key(lambda server: server.counters.exits.items()),
    ),
    Family(
        "mcpbridge_backend_not_started_total",
        "counter",
        _SERVER,
        "Backend processes that the system could not start.",
        _of_servers(lambda server: server.counters.not_started),
    ),
    Family(
        "mcpbridge_messages_total",
        "counter",
        _TRAFFIC,
        "Messages between clients and the bridge.",
        _traffic("messages_in", "messages_out"),
    ),
    Family(
        "mcpbridge_message_bytes_total",
        "counter",
        _TRAFFIC,
        "Bytes of messages between clients and the bridge, without HTTP.",
        _traffic("bytes_in", "bytes_out"),
    ),
    Family(
        "mcpbridge_reloads_total",
        "counter",
        ("result",),
        "Times that the settings were loaded again.",
        _reloads,
    ),
    Family(
        "mcpbridge_sessions",
        "gauge",
        ("server", "transport"),
        "Live sessions of clients.",
        _by_key(lambda server: server.live.items()),
    ),
    Family(
        "mcpbridge_sessions_limit",
        "gauge",
        _SERVER,
        "Sessions and other processes that a server may have (max_sessions).",
        _of_servers(lambda server: server.limit),
    ),
    Family(
        "mcpbridge_processes",
        "gauge",
        ("server", "use"),
        "Backend processes, by what they are used for.",
        _by_key(lambda server: zip(ProcessCounts._fields, server.processes, strict=True)),
    ),
    Family(
        "mcpbridge_waiting_requests",
        "gauge",
        _SERVER,
        "Requests of 2026-07-28 that wait for a process.",
        _of_servers(lambda server: server.waiting),
    ),
    Family(
        "mcpbridge_server_ready",
        "gauge",
        _SERVER,
        "1 if a client that comes now may expect an answer, 0 if starts fail or none are made.",
        _of_servers(lambda server: server.is_ready),
    ),
    Family(
        "mcpbridge_server_state",
        "gauge",
        ("server", "state"),
        "1 for the present state of a server, 0 for all others.",
        _by_key(_states),
    ),
    Family(
        "mcpbridge_connections",
        "gauge",
        (),
        "Open connections of clients.",
        _of_bridge(lambda view: view.connection_count),
    ),
    Family(
        "mcpbridge_response_bytes",
        "gauge",
        (),
        "Bytes of responses and kept events that clients have not read yet.",
        _of_bridge(lambda view: view.response_bytes),
    ),
    Family(
        "mcpbridge_loop_lag_seconds",
        "gauge",
        (),
        "The longest delay of the reactor in the last 10 seconds.",
        _of_bridge(lambda view: view.loop_lag),
    ),
    Family(
        "mcpbridge_draining",
        "gauge",
        (),
        "1 if the bridge takes no new sessions because it stops, 0 otherwise.",
        _of_bridge(lambda view: view.condition != "serving"),
    ),
    Family(
        "mcpbridge_backend_memory_bytes",
        "gauge",
        _SERVER,
        "Resident memory of a server's process trees, shared pages counted for each process.",
        _usage(lambda usage: usage.memory_bytes),
    ),
    Family(
        "mcpbridge_backend_descriptors",
        "gauge",
        _SERVER,
        "Open file descriptors of a server's process trees.",
        _usage(lambda usage: usage.descriptors),
    ),
    Family(
        "mcpbridge_backend_processes",
        "gauge",
        _SERVER,
        "Processes in a server's process trees.",
        _usage(lambda usage: usage.processes),
    ),
    Family(
        "mcpbridge_build_info",
        "gauge",
        ("version", "python", "twisted"),
        "The versions of what runs; the value is always 1.",
        _build,
    ),
)
