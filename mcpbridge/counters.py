"""
What has happened since the bridge started, as plain integers.

They are made into series, percentiles and pages only when somebody looks.  Knows numbers
and their names; must not know what is counted.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

#: The upper bounds of the buckets of durations in seconds, as OpenTelemetry's semantic
#: conventions for MCP advise them ("mcp.server.operation.duration").
SECONDS_BOUNDS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
#: The method of requests whose method, or a tool whose name, is not to have series of its own.
OTHER = "_OTHER"
#: How many methods and tools of a server are told apart, and how many errors of each.
MAX_OPERATIONS = 200
MAX_ERRORS = 20


#: How a process ends, as the system tells it; there are no more than 320 ways.
_STATUS = re.compile(r"exit status [0-9]{1,3}|signal [0-9]{1,2}")


class Histogram:
    """
    Durations in seconds, counted in buckets.

    `buckets` has one number for each of `SECONDS_BOUNDS`, and one for all that took longer;
    a duration that equals a bound is within it.  `total` is the sum of all durations.
    """

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(SECONDS_BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration, once or several times."""
        self.buckets[bisect_left(SECONDS_BOUNDS, seconds)] += times
        self.total += seconds * times

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.buckets)


def quantile(histograms: Iterable[Histogram], part: float) -> float | None:
    """
    Estimate below how many seconds this part of all durations is, from 0 to 1; None without
    any.  Within a bucket they count as evenly spread, and the last bucket as its lower bound.
    """
    buckets = [sum(each) for each in zip(*(x.buckets for x in histograms), strict=True)]
    wanted = part * sum(buckets)
    if not wanted:
        return None
    below, lower = 0, 0.0
    for bound, count in zip(SECONDS_BOUNDS, buckets, strict=False):
        if count and below + count >= wanted:
            found: float = lower + (bound - lower) * (wanted - below) / count
            return found
        below += count
        lower = bound
    return lower


class Operation:
    """
    The requests of clients with one method, or of one tool, that are over.

    `answered` are the times from a request to its result; `errors` those to an error, by the
    JSON-RPC code as a text, `tool_error` for a result with `isError`, `cancelled` for requests
    that their client has cancelled, and `no_answer` for those whose session ended first.

    To time a request takes a few microseconds, which would be much where there are ten
    thousand in a second.  So not all of them are timed then: the others only count in
    `untimed`, and `fold` has them end like the last one that was timed.
    """

    __slots__ = ("_last", "answered", "errors", "method", "results", "tool", "untimed")

    def __init__(self, method: str, tool: str = "") -> None:
        self.method = method
        #: The name of the tool; empty where calls of all tools are counted together.
        self.tool = tool
        self.answered = Histogram()
        self.errors: dict[str, Histogram] = {}
        self.untimed = 0
        #: How many requests are known to have got a result: of those that were timed.
        self.results = 0
        self._last: tuple[Histogram, float] | None = None

    def succeeded(self, seconds: float) -> None:
        """Count a request with a result."""
        self.results += 1
        self.answered.add(seconds)
        self._last = self.answered, seconds
        if self.untimed:
            self.fold()

    def failed(self, error: str, seconds: float) -> None:
        """Count a request without a result; beyond `MAX_ERRORS` different ones as `_OTHER`."""
        found = self.errors.get(error)
        if found is None:
            if len(self.errors) >= MAX_ERRORS:
                error = OTHER
            found = self.errors.setdefault(error, Histogram())
        found.add(seconds)
        self._last = found, seconds
        if self.untimed:
            self.fold()

    def fold(self) -> None:
        """Count the requests that were not timed as if they had ended like the last other."""
        if self._last is not None:
            histogram, seconds = self._last
            histogram.add(seconds, self.untimed)
            self.untimed = 0

    @property
    def error_count(self) -> int:
        """How many requests got no result."""
        return sum(each.count for each in self.errors.values())


class Counted(Protocol):
    """What has counted messages of its own: a session."""

    messages_in: int
    bytes_in: int
    messages_out: int
    bytes_out: int


class Traffic:
    """Messages of clients that were passed on, messages that clients got, and their bytes."""

    __slots__ = ("bytes_in", "bytes_out", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = 0
        self.bytes_in = 0
        self.messages_out = 0
        self.bytes_out = 0

    def add(self, counted: Counted) -> None:
        """Add the messages of something else."""
        self.messages_in += counted.messages_in
        self.bytes_in += counted.bytes_in
        self.messages_out += counted.messages_out
        self.bytes_out += counted.bytes_out


class ServerCounters:
    """
    What has happened at one server, over all its settings and processes.

    `traffic` is by transport, `sse`, `streamable-http` or `stateless`; that of sessions
    which are live is in these, and is not counted here yet.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        #: Sessions by transport, and by why they ended (`processes.endings`).
        self.sessions_opened: Counter[str] = Counter()
        self.sessions_closed: Counter[str] = Counter()
        self.session_seconds = Histogram()
        #: Requests that the bridge has refused, by the error's name, as in `TooManySessions`.
        self.refusals: Counter[str] = Counter()
        self.traffic = {each: Traffic() for each in ("sse", "streamable-http", "stateless")}
        #: Processes that ended, by how: `exit status 1`, `signal 9`, or `other`.
        self.exits: Counter[str] = Counter()
        #: Processes that the system could not start.
        self.not_started = 0
        #: How long the starts of processes took, and their answers to `initialize`.
        self.spawn_seconds = Histogram()
        self.initialize_seconds = Histogram()
        self._operations: dict[tuple[str, str], Operation] = {}

    def closed(self, transport: str, session: Counted) -> None:
        """Add the messages of a session of which nothing is left; without a transport, none."""
        traffic = self.traffic.get(transport)
        if traffic is not None:
            traffic.add(session)

    def exited(self, status: str | None) -> None:
        """Count the end of a process, by its status as `IBackend` tells it."""
        if not isinstance(status, str) or _STATUS.fullmatch(status) is None:
            status = "other"
        self.exits[status] += 1

    @property
    def operations(self) -> list[Operation]:
        """All operations that were asked for, with the requests that were not timed."""
        found = list(self._operations.values())
        for each in found:
            if each.untimed:
                each.fold()
        return found

    def results(self) -> int:
        """Return how many requests are known to have got a result; see `Operation`."""
        return sum(each.results for each in self._operations.values())

    def operation(self, method: str, tool: str = "") -> Operation:
        """Return that of a method or a tool; beyond `MAX_OPERATIONS` of them, `_OTHER`."""
        key = method, tool
        found = self._operations.get(key)
        if found is None:
            if len(self._operations) >= MAX_OPERATIONS:
                method, tool = key = OTHER, ""
            found = self._operations.setdefault(key, Operation(method, tool))
        return found


class BridgeCounters:
    """The counters of all servers, by name, and what concerns none of them."""

    def __init__(self) -> None:
        self.servers: dict[str, ServerCounters] = {}
        #: Requests that were refused before it was known which server they are for.
        self.refusals: Counter[str] = Counter()
        #: Reloads of the settings, by `loaded` and `failed`.
        self.reloads: Counter[str] = Counter()

    def of(self, name: str) -> ServerCounters:
        """Return the counters of a server; they go on when it gets other settings."""
        return self.servers.setdefault(name, ServerCounters(name))

    def keep(self, servers: Iterable[ServerCounters]) -> None:
        """Have those of these servers, by the names that they have now, and no others."""
        self.servers = {each.name: each for each in servers}
