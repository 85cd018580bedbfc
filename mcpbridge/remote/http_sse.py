"""
One session at a server of HTTP+SSE (2024-11-05, basic/transports).

A stream that is opened by GET brings all messages of the server, and first the path to
which those of the client are posted.  The session lives as long as the stream.

Knows the stream and what is posted; must not know how the session begins above.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.oauth import origin_of
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId
from mcpbridge.jsonrpc.event_parser import Event
from mcpbridge.jsonrpc.malformed_output import too_large
from mcpbridge.mcp.posted_message import PostedMessage
from mcpbridge.remote.bodies import EventReader
from mcpbridge.remote.context import EVENTS, Context, content_type, header_of, read_text
from mcpbridge.remote.deliveries import Delivery
from mcpbridge.remote.outbox import Outbox
from mcpbridge.remote.problems import (
    CannotConnect,
    lost_reason,
    shown_url,
    status_text,
)
from mcpbridge.remote.responses import (
    ErrorBody,
    answered,
    envelopes_of,
    failed,
    fatal_error,
    message_line,
)
from mcpbridge.timers import Timer

#: How long the server may take to name the path for messages once the stream is open.
ENDPOINT_SECONDS = 30.0
#: The longest path for messages.
ENDPOINT_BYTES = 4096


class HttpSse:
    """
    A session of HTTP+SSE.  `before` is what was tried first, for the texts.
    """

    log = Logger()

    def __init__(self, context: Context, before: str = "") -> None:
        self._context = context
        self._before = before
        settings = context.server.settings
        self.outbox = Outbox(self._post, settings.max_waiting_messages, settings.max_waiting_bytes)
        self.heard_at = 0.0
        #: What waits for the path; None once that is known.
        self._early: list[PostedMessage] | None = []
        self._target = ""
        self._deliveries: set[Delivery] = set()
        #: The requests that are not answered.
        self._owed: list[JsonRpcId] = []
        self._asking: Deferred[Any] | None = None
        self._reader: EventReader | None = None
        self._timer = Timer(context.clock)
        self._is_over = False

    # Transport.

    def put(self, message: PostedMessage) -> None:
        """Post a message in its turn; the first one opens the stream."""
        if self._early is not None and not self._timer.is_running:
            self._open()
        self.outbox.put(message)

    def splits_batches(self) -> bool:
        """Return False: a server of this revision reads them as it would on stdio."""
        return False

    def abandon(self) -> None:
        """Close everything."""
        self._is_over = True
        self.outbox.close()
        self._timer.stop()
        self._context.silence.unwatch(self)
        for delivery in list(self._deliveries):
            delivery.drop()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.drop()

    def leave(self, seconds: float) -> Deferred[None]:
        """Close the stream, which ends the session at the server."""
        self.abandon()
        return succeed(None)

    # The stream.

    def _open(self) -> None:
        self._timer.start(ENDPOINT_SECONDS, self._no_endpoint)
        target = self._context.server.target
        asking = self._context.client.request("GET", target, {"Accept": EVENTS})
        # It may have failed already.
        self._asking = asking
        asking.addCallbacks(self._responded, self._failed)
        asking.addErrback(self._defect)

    def _no_endpoint(self) -> None:
        self._died(f"named no path for messages within {ENDPOINT_SECONDS:g} s", "timeout")

    def _defect(self, failure: Failure) -> None:
        self.log.failure("reading the stream of a remote server failed", failure)
        self._died("sent a stream that cannot be read")

    def _died(self, what: str, status: str = "") -> None:
        if not self._is_over:
            before = f"{self._before}, and " if self._before else ""
            self._context.reports.died(f"{before}{what}", status)

    def _failed(self, failure: Failure) -> None:
        self._asking = None
        if failure.check(CannotConnect):
            self._died(f"cannot be reached: {failure.value}", str(failure.value))
        else:
            self._died(f"sent no stream: {lost_reason(failure)}", lost_reason(failure))

    def _responded(self, response: Any) -> None:
        self._asking = None
        status, kind = response.code, content_type(response)
        if status == 200 and kind == EVENTS:
            context = self._context
            self._reader = EventReader(
                context.bodies,
                self._ended,
                self._heard,
                context.budget,
                context.limit,
                self._events,
            )
            self._reader.read(response)
            return
        where = header_of(response, b"Location")
        read_text(response, self._context, lambda _: None)
        if status == 200:
            self._died(f"answered a GET with the content type {kind!r}; check `url`")
            return
        # What the memory says need not be true any more.
        server = self._context.server
        server.transport = server.settings.remote_transport
        what = f"answered {status_text(status)} to a GET; check `url`", status_text(status)
        self._died(*(self._fatal(ErrorBody(status, b""), where) or what))

    def _fatal(
        self, error: ErrorBody, location: str, *, in_session: bool = False
    ) -> tuple[str, str] | None:
        url = self._context.server.settings.url or ""
        return fatal_error(error, location, url, in_session=in_session, opening=not in_session)

    def _heard(self) -> None:
        self.heard_at = self._context.clock.seconds()

    def _ended(self, failure: Failure | None) -> None:
        self._reader = None
        why = "" if failure is None else f": {lost_reason(failure)}"
        self._died(f"closed the stream, and with it the session{why}", "stream closed")

    def _events(self, events: list[Event]) -> None:
        lines: list[bytes] = []
        reports = self._context.reports
        for event in events:
            if event.oversized is not None:
                lost = too_large(event.oversized)
                if lost.ident in self._owed and not lost.has_method:
                    self._owed.remove(lost.ident)
                reports.message_lost(lost)
            elif event.name == b"endpoint" and self._early is not None:
                self._found_endpoint(event.data or b"")
            elif event.name == b"message" and event.data:
                line = message_line(event.data)
                envelopes = None if line is None else envelopes_of(line)
                if line is None or envelopes is None:
                    what = "the remote server sent an event that is not a message"
                    reports.misbehaved("event", what)
                else:
                    self._note_answers(envelopes)
                    lines.append(line)
        if lines and not self._is_over:
            reports.messages_received(lines)

    def _note_answers(self, envelopes: list[Envelope]) -> None:
        self._context.silence.server_sent(envelopes)
        if not self._owed:
            return
        for envelope in envelopes:
            ident = answered(envelope, self._owed) if envelope.is_response else msgspec.UNSET
            if not isinstance(ident, msgspec.UnsetType):
                self._owed.remove(ident)
        if not self._owed:
            self._context.silence.unwatch(self)

    def _found_endpoint(self, data: bytes) -> None:
        """Take the path for messages; it must be of the same origin, which gets credentials."""
        server = self._context.server
        try:
            url = urljoin(server.settings.url or "", data.decode("ascii").strip())
            if len(url) > ENDPOINT_BYTES:
                raise ValueError("too long")
            same = origin_of(url) == server.origin
        except ValueError:
            self._died("named a path for messages that is none")
            return
        if not same:
            what = f"named {shown_url(url)} for messages, which is of another origin; not used"
            self._died(what, "foreign endpoint")
            return
        parts = urlsplit(url)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        server.transport = "sse"
        self._timer.stop()
        early, self._early = self._early or [], None
        for message in early:
            self._post(message)

    # Posting.

    def _post(self, message: PostedMessage) -> None:
        if self._early is not None:
            # As many as the outbox lets run, none of which is accepted before.
            self._early.append(message)
            return
        if message.is_request:
            if not self._owed:
                self._context.silence.watch(self)
            self._owed += message.idents
        delivery = Delivery(message, self, self._context, self._target)
        self._deliveries.add(delivery)
        delivery.post()

    def headers_of(self, message: PostedMessage) -> dict[str, str]:
        """Return no further headers."""
        return {}

    def delivered(self, delivery: Delivery) -> None:
        """Post what follows."""
        self._deliveries.discard(delivery)
        if delivery.message.is_request:
            self.outbox.answered(delivery.message)
        else:
            self.outbox.accepted()

    def delivery_refused(self, delivery: Delivery, error: ErrorBody, location: str) -> None:
        """Answer a request that is refused, or end the session if that is over."""
        status = error.status
        fatal = self._fatal(error, location, in_session=True)
        if fatal is not None:
            self._died(*fatal)
            return
        why = f": {error.text}" if error.text else ""
        text = (
            f"the remote server {self._context.server.shown} refused {delivery.what}"
            f" ({status_text(status)}){why}"
        )
        self._context.reports.misbehaved("refused", text)
        idents = [each for each in delivery.message.idents if each in self._owed]
        for each in idents:
            self._owed.remove(each)
        if idents:
            answers = [error.answer(each) or failed(each, text) for each in idents]
            self._context.reports.messages_made(answers)
        if not self._owed:
            self._context.silence.unwatch(self)
        delivery.done()

    def overdue(self) -> None:
        """End the session: the server owes answers, and sends nothing at all."""
        seconds = self._context.server.settings.response_timeout
        self._died(f"has sent nothing for {seconds:g} s (response_timeout)", "response timeout")
