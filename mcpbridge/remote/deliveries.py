"""
A notification, or a client's answer, on its way to a remote server.

Knows one POST that needs no answer but a status; must not know what follows it.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.mcp.posted_message import Kind, PostedMessage
from mcpbridge.remote.context import ACCEPT, JSON, Context, header_of, read_text
from mcpbridge.remote.problems import CannotConnect, lost_reason
from mcpbridge.remote.responses import ErrorBody
from mcpbridge.timers import Timer

#: How long a server may take to accept a notification or an answer.
ACCEPT_SECONDS = 30.0


class DeliveryOwner(Protocol):
    """The transport that a delivery belongs to."""

    def headers_of(self, message: PostedMessage) -> dict[str, str]:
        """Return the headers of the POST of a message."""
        ...

    def delivered(self, delivery: Delivery) -> None:
        """Note that the server has the message, or does not want it."""

    def delivery_refused(self, delivery: Delivery, error: ErrorBody, location: str) -> None:
        """Decide what is to be done about a status that is an error."""


class Delivery:
    """A message that was posted, until the server has accepted it."""

    log = Logger()

    def __init__(
        self,
        message: PostedMessage,
        owner: DeliveryOwner,
        context: Context,
        target: str | None = None,
    ) -> None:
        self.message = message
        self._owner = owner
        self._context = context
        self._target = context.server.target if target is None else target
        self._asking: Deferred[Any] | None = None
        self._timer = Timer(context.clock)
        self._is_over = False

    @property
    def what(self) -> str:
        """What it is, for the log."""
        if self.message.kind is Kind.RESPONSE:
            return "a client's answer to its request"
        return f"{self.message.method!r}" if self.message.method else "a message"

    def post(self) -> None:
        """Post the message."""
        headers = {
            "Accept": ACCEPT,
            "Content-Type": JSON,
            **self._owner.headers_of(self.message),
        }
        if not self.message.is_request:
            # A request on HTTP+SSE may be accepted when it is answered.
            self._timer.start(ACCEPT_SECONDS, self._overdue)
        line = self.message.line
        asking = self._context.client.request("POST", self._target, headers, line)
        # It may have failed already.
        self._asking = asking
        asking.addCallbacks(self._responded, self._failed)
        asking.addErrback(self._defect)

    def _responded(self, response: Any) -> None:
        self._asking = None
        if self._is_over:
            return
        if 200 <= response.code < 300:
            # What a server says beside that is of no use.
            read_text(response, self._context, lambda _: None)
            self.done()
            return
        status = response.code
        where = header_of(response, b"Location")
        read_text(
            response, self._context, lambda body: self._refused(ErrorBody(status, body), where)
        )

    def _refused(self, error: ErrorBody, location: str) -> None:
        if not self._is_over:
            self._owner.delivery_refused(self, error, location)

    def _failed(self, failure: Failure) -> None:
        self._asking = None
        if self._is_over:
            return
        reports = self._context.reports
        if failure.check(CannotConnect):
            reports.unreachable(str(failure.value))
        else:
            # Whether the server has the message cannot be found out.
            why = lost_reason(failure)
            reports.died(f"did not accept {self.what}: {why}", why)

    def _defect(self, failure: Failure) -> None:
        self.log.failure("posting a message to a remote server failed", failure)
        self._context.reports.died("could not be sent a message, by a defect of the bridge")

    def _overdue(self) -> None:
        what = f"did not accept {self.what} within {ACCEPT_SECONDS:g} s"
        self._context.reports.died(what, "timeout")

    def done(self) -> None:
        """End the delivery: the server has the message, or does not want it."""
        if not self._is_over:
            self._is_over = True
            self._timer.stop()
            self._owner.delivered(self)

    def drop(self) -> None:
        """Give it up."""
        self._is_over = True
        self._timer.stop()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
