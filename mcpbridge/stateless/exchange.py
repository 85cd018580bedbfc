"""
One request of a stateless client (MCP 2026-07-28), from its arrival until its
response is complete.

Knows where the response goes and which worker has the request; must not know
HTTP, nor which revision of MCP the server speaks.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from mcpbridge.auth.access import Access
from mcpbridge.errors import InvalidToken, Refused
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.mcp.modern_request import ACKNOWLEDGED, LISTEN, ModernRequest
from mcpbridge.mcp.subscriptions import Change, Filter, all_changes, change_line, promised_by
from mcpbridge.processes.address_shares import Claim
from mcpbridge.processes.audited_calls import AuditedRequest
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.measured_calls import CANCELLED, MeasuredRequest, error_in
from mcpbridge.processes.visibility import Visibility
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.tracing.tracing import RequestSpans

#: What waits for a process that works on a request.
Work = Coroutine[Deferred[Any], Any, None]


#: Methods whose answers list nothing, and which most requests are of.
NO_LISTS = frozenset({"completion/complete", "prompts/get", "tools/call"})


class ExchangeSink(Protocol):
    """The HTTP response to one request."""

    def send(self, lines: list[bytes], final: bool) -> None:
        """Write these messages in order; if `final`, the last one is the response."""

    def fail(self, refusal: Refused) -> None:
        """Write this error as the whole response."""


class _NoSink:
    """The sink of an exchange that is over."""

    def send(self, lines: list[bytes], final: bool) -> None:
        """Drop them."""

    def fail(self, refusal: Refused) -> None:
        """Drop it."""


_NO_SINK = _NoSink()


class Worker(Protocol):
    """What works on an exchange: a process, or what stands for several."""

    def cancel(self, exchange: Exchange) -> None:
        """Stop working on it: the client has gone."""

    def pause(self, exchange: Exchange) -> None:
        """Write less, if possible: the client does not keep up."""

    def resume(self, exchange: Exchange) -> None:
        """Write again: the client keeps up, or has gone."""


class Exchange:
    """
    A request, its caller and its response.

    `access` is as what its caller was admitted: a process that has served one
    key serves no other, and one that is started for the request gets the variables
    of the caller (`env_from`).  `connection` is the one that the
    request came on; None where that is not known, or where a proxy sends the
    requests of several clients on it.  `client` is the address whose share it
    counts against; None: nobody's.  `caller` is what filters and observers
    are told of the client.
    """

    __slots__ = (
        "_promised",
        "_sink",
        "_worker",
        "access",
        "audited",
        "caller",
        "claim",
        "client",
        "connection",
        "identity",
        "is_subscription",
        "measured",
        "over",
        "request",
        "traced",
        "visibility",
    )

    def __init__(
        self,
        request: ModernRequest,
        access: Access,
        sink: ExchangeSink,
        connection: ClientConnection | None = None,
        *,
        client: str | None = None,
        caller: Caller | None = None,
        audited: AuditedRequest | None = None,
        measured: MeasuredRequest | None = None,
        traced: RequestSpans | None = None,
    ) -> None:
        self.request = request
        #: Whether it is a `subscriptions/listen`, which stays open for notifications.
        self.is_subscription = request.method == LISTEN
        self.access = access
        #: Whom its process may serve: `Access.key`.
        self.identity = access.key
        self.connection = connection
        self.client = client
        self.caller = caller
        #: Makes its record; None where there is no audit log.
        self.audited = audited
        #: Measures it; None where nobody wants that.
        self.measured = measured
        #: Its spans, if it is recorded.
        self.traced = traced
        #: What it has of its client's share, until it is over.
        self.claim: Claim | None = None
        self.over = False
        #: What its client may see; None until it is worked on.
        self.visibility: Visibility | None = None
        self._worker: Worker | None = None
        self._sink = sink
        #: Of a subscription what was acknowledged; None until then.
        self._promised: Filter | None = None

    def assign(self, worker: Worker) -> None:
        """Tell this worker of cancellation and backpressure from now on."""
        self._worker = worker

    def charge(self, claim: Claim | None) -> None:
        """Count it against its client's share until it is over."""
        self.claim = claim

    def take_claim(self) -> Claim | None:
        """Return its claim, which goes on counting for somebody else."""
        claim, self.claim = self.claim, None
        return claim

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Send messages to the client; if `final`, that ends the exchange."""
        if self.over:
            return
        if not final and self.is_subscription:
            lines = [each for line in lines for each in self._acknowledged_once(line)]
        visibility = self.visibility
        if visibility is not None and visibility.rules is not None:
            lines = self._visible(lines, visibility)
        if self.measured is not None and lines:
            self.measured.sent(lines, final)
        if final and self.traced is not None:
            self.traced.end(error_in(lines[-1]) or "" if lines else "")
        if final and self.audited is not None:
            self.audited.answered(lines)
        sink = self._end() if final else self._sink
        if lines:
            sink.send(lines, final)

    def fail(self, refusal: Refused) -> None:
        """End it with an error of the bridge's own."""
        if not self.over:
            refusal.ident = self.request.id
            if self.measured is not None:
                self.measured.refused(refusal)
            if self.traced is not None:
                self.traced.end(str(refusal.code))
            if self.audited is not None:
                self.audited.refused(refusal)
            self._end().fail(refusal)

    def cancel(self) -> None:
        """End it: the client has gone, which is how it cancels (basic/patterns/cancellation)."""
        if not self.over:
            if self.measured is not None:
                self.measured.ended(CANCELLED)
            if self.traced is not None:
                self.traced.end(CANCELLED)
            if self.audited is not None:
                self.audited.cancelled()
            self._end()
            if self._worker is not None:
                self._worker.cancel(self)

    def withdraw(self, why: str) -> None:
        """End it with this error: its caller has no access any more."""
        if not self.over:
            self.fail(InvalidToken(why))
            if self._worker is not None:
                self._worker.cancel(self)

    def tell(self, changes: Iterable[Change]) -> None:
        """Tell a subscriber of changes that are the bridge's own, if it was promised that."""
        promised = self._promised
        if promised is not None:
            self.deliver(
                [change_line(self.request.id, each) for each in changes if promised.wants(each)],
                False,
            )

    def pause(self) -> None:
        """Pass on that the client does not keep up."""
        if self._worker is not None:
            self._worker.pause(self)

    def resume(self) -> None:
        """Pass on that the client keeps up again, or has gone."""
        if self._worker is not None:
            self._worker.resume(self)

    def _visible(self, lines: list[bytes], visibility: Visibility) -> list[bytes]:
        """Return messages without what is not there for the client."""
        if self.request.method in NO_LISTS:
            return lines
        return visibility.to_client(self.access.name, lines)

    def _end(self) -> ExchangeSink:
        """
        Return the claim, and the sink for the last time.

        The sink refers to the exchange, and that to all of the request: a
        cycle would keep a large request until the garbage collector comes.
        """
        self.over = True
        claim, self.claim = self.claim, None
        if claim is not None:
            claim.release()
        sink, self._sink = self._sink, _NO_SINK
        return sink

    def _acknowledged_once(self, line: bytes) -> list[bytes]:
        """
        Replace every acknowledgement of a subscription but the first.

        A second one means that the bridge had to open the subscription again.
        Anything that it is about may have changed in between, so the client
        gets a notification of each change that it was promised.
        """
        envelope = peek(line) if b"acknowledged" in line else None
        if envelope is None or envelope.method != ACKNOWLEDGED:
            return [line]
        again = self._promised is not None
        self._promised = promised_by(line)
        if not again:
            return [line]
        return [change_line(self.request.id, change) for change in all_changes(self._promised)]
