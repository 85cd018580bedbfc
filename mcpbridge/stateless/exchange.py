"""
One request of a stateless client (MCP 2026-07-28), from its arrival until its
answer is out.

Knows where the answer goes and who works on it; must not know HTTP, nor which
revision the server speaks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import BackendEnded, BackendFailed, Refused
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.mcp.header_validation import Annotations, annotated
from mcpbridge.mcp.modern_request import ACKNOWLEDGED, LISTEN, ModernRequest
from mcpbridge.mcp.subscriptions import all_changes, notification_line, promised_by
from mcpbridge.processes.address_shares import Claim
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.caller import Caller
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.timers import Timer

#: How many pages of a list of tools are read for what headers must say.
TOOLS_PAGES = 100


class ExchangeSink(Protocol):
    """The response to one request."""

    def send(self, lines: list[bytes], final: bool) -> None:
        """Write these messages, in order; with `final` the last one is the answer."""

    def fail(self, refusal: Refused) -> None:
        """There is no answer but this."""


class _Nobody:
    """Where nobody reads."""

    def send(self, lines: list[bytes], final: bool) -> None:
        """Nothing."""

    def fail(self, refusal: Refused) -> None:
        """Nothing."""


_NOBODY = _Nobody()


class Worker(Protocol):
    """What works on requests: a process, or what stands for several."""

    def cancel(self, exchange: Exchange) -> None:
        """The client has gone."""

    def pause(self, exchange: Exchange) -> None:
        """The client does not keep up."""

    def resume(self, exchange: Exchange) -> None:
        """It does again, or is gone."""


class Exchange:
    """
    A request, its caller and its response.

    `identity` is who asks, as far as the bridge knows: what has served one
    identity serves no other.  `connection` is the one it came on; None where
    that is not known, or where a proxy sends several clients' requests on it.
    `client` is the address whose share it counts against; None: nobody's.
    `caller` is what filters and observers are told of the client.
    """

    def __init__(
        self,
        request: ModernRequest,
        identity: str,
        outlet: ExchangeSink,
        connection: ClientConnection | None = None,
        *,
        client: str | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.request = request
        self.identity = identity
        self.connection = connection
        self.client = client
        self.caller = caller
        #: What it has of its client's share, until it is over.
        self.claim: Claim | None = None
        self._worker: Worker | None = None
        self.over = False
        self._outlet = outlet
        self._acknowledged = False

    @property
    def listens(self) -> bool:
        """Whether it stays open for notifications."""
        return self.request.method == LISTEN

    def assign(self, worker: Worker) -> None:
        """From now on this worker is told of cancellation and backpressure."""
        self._worker = worker

    def charge(self, claim: Claim | None) -> None:
        """Count against its client's share, until it is over."""
        self.claim = claim

    def take_claim(self) -> Claim | None:
        """Count no more, and return what has to go on counting in its place."""
        claim, self.claim = self.claim, None
        return claim

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Messages for the client; with `final` the exchange is over."""
        if self.over:
            return
        if self.listens and not final:
            lines = [each for line in lines for each in self._heard(line)]
        outlet = self._ended() if final else self._outlet
        if lines:
            outlet.send(lines, final)

    def fail(self, refusal: Refused) -> None:
        """It is over without an answer of the server's."""
        if not self.over:
            refusal.ident = self.request.id
            self._ended().fail(refusal)

    def cancel(self) -> None:
        """The client has gone, which is how it cancels (basic/patterns/cancellation)."""
        if not self.over:
            self._ended()
            if self._worker is not None:
                self._worker.cancel(self)

    def _ended(self) -> ExchangeSink:
        """It is over: it has no response any more, which has it in turn, and all of its request."""
        self.over = True
        claim = self.take_claim()
        if claim is not None:
            claim.release()
        outlet, self._outlet = self._outlet, _NOBODY
        return outlet

    def pause(self) -> None:
        """The client does not keep up."""
        if self._worker is not None:
            self._worker.pause(self)

    def resume(self) -> None:
        """It does again, or is gone."""
        if self._worker is not None:
            self._worker.resume(self)

    def _heard(self, line: bytes) -> list[bytes]:
        """
        A stream is acknowledged once.  Where the bridge had to open it anew,
        what it is about may have changed in between.
        """
        envelope = peek(line) if b"acknowledged" in line else None
        if envelope is None or envelope.method != ACKNOWLEDGED:
            return [line]
        known, self._acknowledged = self._acknowledged, True
        if not known:
            return [line]
        return [
            notification_line(self.request.id, change) for change in all_changes(promised_by(line))
        ]


#: Why a process ends that is worn; that nobody wants; that served one connection.
ENOUGH = "it has been used enough"
UNUSED = "nobody has used it for a while"
DISCONNECTED = "the connection that it served is closed"


class WorkerUsage:
    """When a process that is used again and again has been used enough."""

    def __init__(self, session: BackendSession, settings: ServerSettings) -> None:
        self._session = session
        self._settings = settings
        self._rest = Timer(session.clock)
        #: How many requests it has had.
        self.served = 0
        #: Whether it has heard anything of a caller beyond the handshake.
        self.touched = False

    def is_worn(self) -> bool:
        """Whether it is too old, or has done too much, for another request."""
        settings, session = self._settings, self._session
        age = session.clock.seconds() - session.opened_at
        old = 0 < settings.max_process_age <= age
        return old or self.served >= settings.max_process_requests

    def rest(self, over: Callable[[], object]) -> None:
        """Nobody uses it; `over` is called when that has lasted `idle_timeout`."""
        self.wake()
        if self._settings.idle_timeout:
            self._rest.start(self._settings.idle_timeout, over)

    def wake(self) -> None:
        """Somebody uses it, or it is over."""
        self._rest.stop()


class ToolAnnotations:
    """
    What headers have to say of the arguments of a process's tools.

    `page` gives one result of `tools/list`, for a cursor.
    """

    def __init__(self, page: Callable[[str | None], Awaitable[msgspec.Raw]]) -> None:
        self._page = page
        self._known: dict[str, Annotations] | None = None
        self._changes = 0

    async def annotations(self, tool: str | None) -> Annotations:
        """Those of one tool.  Raises what `page` raises."""
        known = self._known
        if known is None:
            changes = self._changes
            known = await self._list()
            if changes == self._changes:
                self._known = known
        return known.get(tool or "", ())

    def changed(self) -> None:
        """What is known is not true any more, nor what is being told."""
        self._changes += 1
        self._known = None

    async def _list(self) -> dict[str, Annotations]:
        found: dict[str, Annotations] = {}
        cursor: str | None = None
        for _ in range(TOOLS_PAGES):
            some, cursor = annotated(await self._page(cursor))
            found.update(some)
            if cursor is None:
                break
        return found


def backend_ended(session: BackendSession, settings: ServerSettings) -> BackendEnded:
    """What a client is told whose process has ended."""
    error = BackendEnded(f"the request was not answered: {session.reason}")
    error.data = session.last_words(settings)
    return error


def backend_failed(session: BackendSession, settings: ServerSettings) -> BackendFailed:
    """The same where it never came to work."""
    error = BackendFailed(session.reason)
    error.data = session.last_words(settings)
    return error
