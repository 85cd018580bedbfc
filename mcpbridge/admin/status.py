"""
The status of a bridge, as one JSON document for people and programs.

Knows what operators ask for first; must not know HTTP.  Nothing in it is a secret: sessions
have their short ids, and there are neither command lines nor settings.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from time import time
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge._version import __version__
from mcpbridge.admin.server_numbers import process_counts
from mcpbridge.admin.uses import spares_of, state_of, use_of
from mcpbridge.admin.view import BridgeView
from mcpbridge.counters import Traffic, quantile
from mcpbridge.errors import InternalError
from mcpbridge.health import STATES
from mcpbridge.jsonrpc.sliced_parser import Slices
from mcpbridge.process_usage import Usage
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.failures import Failure as ServerFailure
from mcpbridge.processes.server_state import ServerState
from mcpbridge.server import Server
from mcpbridge.shared_work import SharedWork
from mcpbridge.sliced_work import SlicedWork

#: How many sessions a document lists, the oldest first.
STATUS_SESSIONS = 500
#: For so many seconds a document is shown again instead of a new one.
FRESH_SECONDS = 0.5
#: How many sessions are looked at in one slice of the work.
SLICE_SESSIONS = 100

#: When it was opened, a number that tells equal times apart, its server, and its use.
_Listed = tuple[float, int, BackendSession, Server, str]


class Status:
    """
    Makes the document, at most once in `FRESH_SECONDS` and once for all who ask meanwhile.

    It is made in slices, as there may be many thousands of sessions.  `now` returns the time in
    seconds since the epoch.
    """

    log = Logger()

    def __init__(
        self, view: BridgeView, clock: IReactorTime, now: Callable[[], float] = time
    ) -> None:
        self._view = view
        self._clock = clock
        self._now = now
        self._started = now()
        self._work = SlicedWork(clock)
        self._made: bytes | None = None
        self._made_at = 0.0
        self._making = SharedWork(self._begin)

    def start(self) -> None:
        """Note that the bridge has started now."""
        self._started = self._now()

    def document(self) -> Deferred[bytes]:
        """Return a Deferred of the document, in UTF-8.  It fails with `InternalError`."""
        if self._made is not None and self._clock.seconds() - self._made_at < FRESH_SECONDS:
            return succeed(self._made)
        # No more than connections.
        waiting = self._making.wait()
        self._making.run()
        return waiting

    def _begin(self) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._make()).addCallbacks(self._keep, self._failed)

    async def _make(self) -> bytes:
        usage = await self._view.usage()
        found = await self._work.do(self._collect(usage))
        try:
            # Reasons are texts of a class of their own.
            return msgspec.json.encode(found, enc_hook=str)
        except UnicodeEncodeError:
            # One text that cannot be encoded is not to hide all that there is to see.
            return json.dumps(found, default=str).encode("ascii")

    def _keep(self, document: bytes) -> bytes:
        self._made, self._made_at = document, self._clock.seconds()
        return document

    def _failed(self, failure: Failure) -> Failure:
        self.log.failure("the status could not be found out", failure)
        return Failure(InternalError.of_ours())

    # What it says.

    def _collect(self, usage: Mapping[int, Usage]) -> Slices[dict[str, Any]]:
        view = self._view
        oldest = _Oldest()
        servers: list[dict[str, Any]] = []
        for server in view.servers:
            found = yield from self._server(server, oldest)
            servers.append(found)
        own = usage.get(os.getpid())
        live = sum(each["sessions"]["live"] for each in servers)
        settings = view.settings
        return {
            "version": __version__,
            "pid": os.getpid(),
            "condition": view.condition,
            "started": self._started,
            "now": self._now(),
            "urls": view.urls(),
            "memory_bytes": None if own is None else own.memory_bytes,
            "descriptors": None if own is None else own.descriptors,
            "loop_lag": view.loop_lag,
            "sessions": {"live": live, "limit": settings.session_limit},
            "connections": {"open": view.connection_count, "limit": settings.connection_limit},
            "refusals": dict(view.counters.refusals),
            "servers": servers,
            "listed": [self._session(each, usage) for each in oldest.sessions()],
            "not_listed": oldest.others,
        }

    def _server(self, server: Server, oldest: _Oldest) -> Slices[dict[str, Any]]:
        spares = spares_of(server)
        # Sessions end meanwhile, which does not change a copy.
        total = Traffic()
        for number, session in enumerate(list(server.unclosed)):
            if number % SLICE_SESSIONS == 0:
                yield
            if session.transport:
                total.add(session)
            oldest.add(session, server, use_of(server, session, spares))
        yield
        counters = server.counters
        for each in counters.traffic.values():
            total.add(each)
        operations = counters.operations
        answered = [each.answered for each in operations]
        errors = sum(each.error_count for each in operations)
        yield
        state = server.state()
        return {
            "name": server.settings.name,
            "path": server.settings.base_uri,
            "state": STATES[state.condition],
            "since": self._since(state),
            "why": state.why or state.text,
            "retry_in": state.retry_in,
            "sessions": {
                "live": len(server.sessions) + len(server.streamable),
                "opened": sum(counters.sessions_opened.values()),
                "limit": server.settings.max_sessions,
            },
            "processes": process_counts(server)._asdict(),
            "waiting": server.waiting,
            "requests": sum(each.count for each in answered) + errors,
            "errors": errors,
            "messages": {
                "in": total.messages_in,
                "out": total.messages_out,
                "bytes_in": total.bytes_in,
                "bytes_out": total.bytes_out,
            },
            "latency": {"p50": quantile(answered, 0.5), "p95": quantile(answered, 0.95)},
            "closed": dict(counters.sessions_closed),
            "exits": dict(counters.exits),
            "refusals": dict(counters.refusals),
            "failures": list(map(_failure, server.recent_failures)),
        }

    def _since(self, state: ServerState) -> float | None:
        return None if state.since is None else self._wall_time(state.since)

    def _wall_time(self, when: float) -> float:
        """Return a time of the clock in seconds since the epoch."""
        return self._now() - (self._clock.seconds() - when)

    def _session(self, listed: _Listed, usage: Mapping[int, Usage]) -> dict[str, Any]:
        _, _, session, server, use = listed
        pid: int | None = getattr(session.backend, "pid", None)
        used = None if pid is None else usage.get(pid)
        stateless = use in ("exclusive", "concurrent")
        return {
            "id": session.label,
            "server": server.settings.name,
            "transport": "stateless" if stateless else session.transport,
            "identity": session.caller_name,
            "client": session.client_name,
            "opened": self._wall_time(session.opened_at),
            "state": state_of(session, use),
            "pid": pid,
            "messages_in": session.messages_in,
            "messages_out": session.messages_out,
            "bytes_in": session.bytes_in,
            "bytes_out": session.bytes_out,
            "refused": session.refused,
            "memory_bytes": None if used is None else used.memory_bytes,
            "processes": None if used is None else used.processes,
        }


class _Oldest:
    """Keeps the `STATUS_SESSIONS` oldest sessions, and counts the others."""

    def __init__(self) -> None:
        #: A heap with the newest of them at its front.
        self._heap: list[_Listed] = []
        self._number = count()
        self.others = 0

    def add(self, session: BackendSession, server: Server, use: str) -> None:
        """Look at one more."""
        item = (-session.opened_at, -next(self._number), session, server, use)
        if len(self._heap) < STATUS_SESSIONS:
            heapq.heappush(self._heap, item)
        else:
            self.others += 1
            heapq.heappushpop(self._heap, item)

    def sessions(self) -> Iterable[_Listed]:
        """Return them, the oldest first."""
        return sorted(self._heap, reverse=True)


def _failure(failure: ServerFailure) -> dict[str, Any]:
    return {**failure._asdict(), "stderr": list(failure.stderr)}
