"""
What the two kinds of worker have in common: one backend process, how much it
has been used, and what it has said of its tools.

Knows one process; must not know which request it works on, nor which revision
of MCP it speaks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from math import inf

import msgspec
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import BackendEnded, BackendFailed
from mcpbridge.mcp.header_validation import Annotations, annotated
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.pool import RETIRED
from mcpbridge.timers import Timer

#: How many pages of `tools/list` are read to learn which headers its tools need.
TOOLS_PAGES = 100

#: Why a worker's process ends: no other request may have it (`reuse`), or the one
#: connection that it served is closed.
SPENT = "it may serve no other caller (reuse)"
DISCONNECTED = "the connection that it served is closed"


class WorkerUsage:
    """How much a process has been used, and how long it has been idle."""

    def __init__(self, session: BackendSession, settings: ServerSettings) -> None:
        self._session = session
        self._clock = session.clock
        self._settings = settings
        #: The timer that ends an idle process.
        self._timer = Timer(session.clock)
        #: Since when it has been idle; None while it is in use.
        self._idle_since: float | None = None
        self._max_requests = settings.max_process_requests
        self._max_age = settings.max_process_age or inf
        #: The number of requests it has been given.
        self.served = 0
        #: Whether it has been told anything of a client beyond the handshake.
        self.touched = False
        #: Whether the server has other settings than when the process was started.
        self.retired = False

    def is_worn(self, reserved: int = 0) -> bool:
        """
        Return whether it is to serve no more requests, once it has been given
        so many more: it is too old, has served too many, or the server has other settings.
        """
        return self.retired or self.served + reserved >= self._max_requests or self._is_aged()

    def _is_aged(self) -> bool:
        if self._max_age == inf:
            return False
        return self._clock.seconds() - self._session.opened_at >= self._max_age

    def worn_by(self) -> str | None:
        """Return why it is to serve no more requests; None where it may go on."""
        if not self.is_worn():
            return None
        if self.retired:
            return RETIRED
        limit = "max_process_age" if self._is_aged() else "max_process_requests"
        return f"it reached {limit}"

    @property
    def idle_reason(self) -> str:
        """Why its process ends when it has been idle for `idle_timeout`."""
        return f"idle for {self._settings.idle_timeout:g} s"

    def begin_idle(self, expired: Callable[[], object]) -> None:
        """
        Call `expired` once it has been idle for `idle_timeout`, if that is not 0.

        A process becomes idle and is used again for each request, so neither
        touches the timer: it looks at the time when it fires.
        """
        self._idle_since = self._clock.seconds()
        if self._settings.idle_timeout and not self._timer.is_running:
            self._timer.start(self._settings.idle_timeout, self._look, expired)

    def end_idle(self) -> None:
        """Note that it is in use again."""
        self._idle_since = None

    def stop(self) -> None:
        """Stop the timer: the process has ended."""
        self._timer.stop()

    def _look(self, expired: Callable[[], object]) -> None:
        if self._idle_since is None:
            # `begin_idle` starts it again.
            return
        left = self._idle_since + self._settings.idle_timeout - self._clock.seconds()
        if left > 0:
            self._timer.start(left, self._look, expired)
        else:
            expired()


class ToolAnnotations:
    """
    The `x-mcp-header` annotations of a server's tools, read on first use.

    `read_page` returns one result of `tools/list`, for a cursor or None.
    """

    def __init__(self, read_page: Callable[[str | None], Awaitable[msgspec.Raw]]) -> None:
        self._read_page = read_page
        self._known: dict[str, Annotations] | None = None
        self._changes = 0

    def known(self, tool: str | None) -> Annotations | None:
        """Return those of one tool; None where they have not been read."""
        return None if self._known is None else self._known.get(tool or "", ())

    async def annotations(self, tool: str | None) -> Annotations:
        """Return those of one tool.  Raises what `read_page` raises."""
        known = self._known
        if known is None:
            changes = self._changes
            known = await self._read_all()
            # A list that changed while it was read is good for this call only.
            if changes == self._changes:
                self._known = known
        return known.get(tool or "", ())

    def invalidate(self) -> None:
        """The list has changed: read it again before the next use."""
        self._changes += 1
        self._known = None

    async def _read_all(self) -> dict[str, Annotations]:
        found: dict[str, Annotations] = {}
        cursor: str | None = None
        for _ in range(TOOLS_PAGES):
            page, cursor = annotated(await self._read_page(cursor))
            found.update(page)
            if cursor is None:
                break
        return found


class BackendWorker(ABC):
    """
    One backend process that works on stateless requests.

    A subclass is the `Sink` of the process's session, and the `Worker` of the
    exchanges that it works on.
    """

    log = Logger()

    def __init__(self, session: BackendSession, settings: ServerSettings) -> None:
        self.session = session
        self.usage = WorkerUsage(session, settings)
        self.tools = ToolAnnotations(self._list_tools)
        self._settings = settings
        # Looked up once: a class's `Logger` makes another one for each look.
        self._log = self.log
        #: When messages of the bridge's own that did not fit into the pipe are sent again.
        self._retry = Timer(session.clock)

    @abstractmethod
    async def open(self, patience: float) -> None:
        """
        Have the process introduce itself within so many seconds.

        Raises `OtherEra` where it does not speak what this worker speaks, and
        a `Refused` where it is of no use.
        """

    @abstractmethod
    async def _list_tools(self, cursor: str | None) -> msgspec.Raw:
        """Return one result of `tools/list`.  Raises a `Refused`."""

    def ended_error(self) -> BackendEnded:
        """Return what a client is told whose process has ended."""
        error = BackendEnded(f"the request was not answered: {self.session.reason}")
        error.data = self.session.stderr_data(self._settings)
        return error

    def failed_error(self) -> BackendFailed:
        """Return what a client is told whose process never came to work."""
        error = BackendFailed(self.session.reason)
        error.data = self.session.stderr_data(self._settings)
        return error
