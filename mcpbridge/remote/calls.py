"""
One request to a server of Streamable HTTP, from its POST to its answer.

The answer comes as JSON or on a stream of events.  If a stream of a legacy server breaks,
it is resumed with `Last-Event-ID` (2025-11-25, basic/transports, "Resumability and
Redelivery").

Knows one request; must not know which others there are.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.tuning import RETRY_MILLISECONDS
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId
from mcpbridge.jsonrpc.event_parser import Event
from mcpbridge.jsonrpc.malformed_output import too_large
from mcpbridge.mcp.modern_request import LISTEN
from mcpbridge.mcp.posted_message import PostedMessage
from mcpbridge.remote.bodies import BodyReader, EventReader, MessageReader
from mcpbridge.remote.context import (
    ACCEPT,
    EVENTS,
    JSON,
    Context,
    content_type,
    header_of,
    read_text,
)
from mcpbridge.remote.problems import CannotConnect, lost_reason, status_text
from mcpbridge.remote.responses import ErrorBody, answered, envelopes_of, failed, message_line
from mcpbridge.timers import Timer

#: How often a stream is resumed in vain, one time after the other.
RESUME_TRIES = 5
#: The shortest and the longest pause before that, whatever the server wants.
MIN_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 300.0
#: From when on what comes on a stream that was resumed counts as a sign of life.
RESUMED_SECONDS = 1.0
#: How long the answer to a request that was cancelled may still come.
CANCELLED_SECONDS = 5.0
#: How long a stream may go on when everything is answered; then it is closed.
LINGER_SECONDS = 1.0


class CallOwner(Protocol):
    """The transport that a call belongs to."""

    def headers_of(self, message: PostedMessage) -> dict[str, str]:
        """Return the headers of the POST of a message."""
        ...

    def session_headers(self) -> dict[str, str]:
        """Return the headers that name the session and its revision."""
        ...

    def responded(self, call: Call, response: Any) -> None:
        """Note the head of a response, whatever its status."""

    def answered(self, call: Call, envelope: Envelope, ident: JsonRpcId) -> None:
        """Note the answer to a request."""

    def refused(self, call: Call, error: ErrorBody, location: str) -> None:
        """Decide what is to be done about a response that is an error."""

    def deferred(self, call: Call) -> bool:
        """Note that the answer comes on the GET stream; return False if there is none."""
        ...

    def unusable(self, call: Call, what: str) -> bool:
        """End the session if the response, which is of no use, means that; return whether."""
        ...

    def cannot_connect(self, call: Call, why: str) -> None:
        """Decide what is to be done, as there is no connection to the server."""

    def lost(self, call: Call, why: str) -> None:
        """Decide what is to be done, as the connection broke before the answer."""

    def overdue(self, call: Call) -> None:
        """Decide what is to be done about a request that is not answered in time."""

    def over(self, call: Call) -> None:
        """Note that the call needs nothing any more."""


def retry_seconds(milliseconds: int | None) -> float:
    """Return the pause before a stream is resumed, as the server wants it, within bounds."""
    wanted = (RETRY_MILLISECONDS if milliseconds is None else milliseconds) / 1000
    return min(max(wanted, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)


class Call:
    """A request that was posted, or a batch, until each request of it is answered."""

    log = Logger()

    def __init__(self, message: PostedMessage, owner: CallOwner, context: Context) -> None:
        self.message = message
        self.heard_at = 0.0
        #: Whether it was posted once more with other headers.
        self.is_repeated = False
        #: Whether its answer is to come on the GET stream.
        self.is_deferred = False
        self._owner = owner
        self._context = context
        self._owed = list(message.idents)
        self._asking: Deferred[Any] | None = None
        self._reader: BodyReader | None = None
        self._timer = Timer(context.clock)
        self._last_id = b""
        self._retry: int | None = None
        #: When the stream was last resumed.
        self._resumed_at: float | None = None
        #: How often the stream was resumed in vain.
        self._tries = 0
        self._is_cancelled = False
        self._is_over = False

    @property
    def owed(self) -> list[JsonRpcId]:
        """The ids of the requests that are not answered."""
        return self._owed

    @property
    def is_connected(self) -> bool:
        """Whether its response is being received, or awaited."""
        return self._asking is not None or self._reader is not None

    @property
    def is_modern(self) -> bool:
        """Whether it is a request without a session."""
        return self.message.version is not None

    def post(self) -> None:
        """Post the request."""
        if self.message.method != LISTEN:
            self._context.silence.watch(self)
        headers = {
            "Accept": ACCEPT,
            "Content-Type": JSON,
            **self._owner.headers_of(self.message),
        }
        self._ask("POST", headers, self.message.line)

    def _ask(self, method: str, headers: dict[str, str], body: bytes | None = None) -> None:
        target = self._context.server.target
        asking = self._context.client.request(
            method, target, headers, body, cookies=not self.is_modern
        )
        # It may have failed already.
        self._asking = asking
        asking.addCallbacks(self._responded, self._not_responded)
        asking.addErrback(self._defect)

    def _defect(self, failure: Failure) -> None:
        self.log.failure("reading a response of a remote server failed", failure)
        self.fail("sent a response that cannot be read")

    def _not_responded(self, failure: Failure) -> None:
        self._asking = None
        if self._is_over:
            return
        if failure.check(CannotConnect):
            self._owner.cannot_connect(self, str(failure.value))
        else:
            self._broken(failure)

    def _responded(self, response: Any) -> None:
        self._asking = None
        self.heard()
        status, kind = response.code, content_type(response)
        self._owner.responded(self, response)
        if self._is_over:
            # The head was of no use; the connections are closed.
            return
        if not 200 <= status < 300:
            where = header_of(response, b"Location")
            self._reader = read_text(
                response, self._context, lambda body: self._explained(status, body, where)
            )
            return
        if kind == EVENTS:
            self._read_events(response)
        elif kind == JSON:
            self._read_message(response)
        elif status in (202, 204) and self._owner.deferred(self):
            self.is_deferred = True
            self._reader = read_text(response, self._context, lambda _: None)
        else:
            read_text(response, self._context, lambda _: None)
            what = f"the content type {kind!r}" if kind else "no content type"
            self._fail_unusable(f"answered {status_text(status)} with {what}; check `url`")

    def _explained(self, status: int, body: bytes, location: str) -> None:
        self._reader = None
        ends = 300 <= status < 400 or status in (401, 404)
        if self._last_id and not ends:
            self._not_resumed(f"did not resume the stream: {status_text(status)}")
        else:
            self._owner.refused(self, ErrorBody(status, body), location)

    # JSON.

    def _read_message(self, response: Any) -> None:
        context = self._context
        reader = MessageReader(
            context.bodies, self._message_over, self.heard, context.budget, context.limit
        )
        self._reader = reader
        reader.read(response)

    def _message_over(self, failure: Failure | None) -> None:
        reader = self._reader
        assert isinstance(reader, MessageReader)
        self._reader = None
        oversized = reader.oversized
        if failure is not None:
            self._broken(failure)
        elif oversized is not None:
            self._lose_oversized(too_large(oversized)._replace(ident=self._owed[0]))
        else:
            line = message_line(reader.body)
            if line is None or not self._take(line):
                self._fail_unusable("sent something other than the answer")
            else:
                self._context.reports.messages_received([line])
            self._settle("answered only a part of a batch")

    def _lose_oversized(self, lost: Any) -> None:
        del self._owed[0]
        self._context.reports.message_lost(lost)
        self._settle("sent a message that is too large")

    def _settle(self, why: str) -> None:
        """End the call: nothing more comes."""
        if self._owed:
            self.fail(why)
        else:
            self.finish()

    # Events.

    def _read_events(self, response: Any) -> None:
        context = self._context
        self._reader = EventReader(
            context.bodies,
            self._events_over,
            self.heard,
            context.budget,
            context.limit,
            self._events,
        )
        self._reader.read(response)

    def _events(self, events: list[Event]) -> None:
        lines: list[bytes] = []
        for event in events:
            if event.oversized is not None:
                self._pass_on(lines)
                lines = []
                self._take_oversized(event)
            elif event.name == b"message" and event.data:
                line = message_line(event.data)
                if line is None:
                    what = "the remote server sent an event that is not a message"
                    self._context.reports.misbehaved("event", what)
                elif self._take(line):
                    lines.append(line)
        self._pass_on(lines)
        if not self._owed and not self._is_over:
            self._timer.start(LINGER_SECONDS, self.finish)

    def _pass_on(self, lines: list[bytes]) -> None:
        if lines:
            self._tries = 0
            self.heard_at = self._context.clock.seconds()
            self._context.reports.messages_received(lines)

    def _take_oversized(self, event: Event) -> None:
        assert event.oversized is not None
        lost = too_large(event.oversized)
        if lost.ident in self._owed and not lost.has_method:
            self._owed.remove(lost.ident)
        self._context.reports.message_lost(lost)

    def _events_over(self, failure: Failure | None) -> None:
        reader = self._reader
        assert isinstance(reader, EventReader)
        self._reader = None
        last_id = reader.parser.last_id or self._last_id
        if last_id != self._last_id:
            self._last_id = last_id
            self.heard_at = self._context.clock.seconds()
        if reader.parser.retry is not None:
            self._retry = reader.parser.retry
        if not self._owed:
            self.finish()
        elif self._last_id and not self.is_modern:
            self._resume_later()
        elif failure is not None:
            self._broken(failure)
        else:
            self._owner.lost(self, "ended the stream before the answer")

    def _broken(self, failure: Failure) -> None:
        if self._last_id and not self.is_modern:
            self._not_resumed(lost_reason(failure))
        else:
            self._owner.lost(self, f"did not answer: {lost_reason(failure)}")

    def _not_resumed(self, why: str) -> None:
        self._tries += 1
        if self._tries < RESUME_TRIES:
            self._resume_later()
        else:
            self._owner.lost(self, why)

    def _resume_later(self) -> None:
        if self._is_cancelled:
            self.finish()
            return
        self._timer.start(retry_seconds(self._retry), self._resume)

    def _resume(self) -> None:
        self._resumed_at = self._context.clock.seconds()
        last = self._last_id.decode("latin-1")
        headers = {"Accept": EVENTS, **self._owner.session_headers(), "Last-Event-ID": last}
        self._ask("GET", headers)

    # Both.

    def _take(self, line: bytes) -> bool:
        """Note what a message answers; return False if it is not to be passed on."""
        envelopes = envelopes_of(line)
        if envelopes is None:
            self._context.reports.misbehaved(
                "invalid", "the remote server sent something other than a JSON-RPC message"
            )
            return False
        return self.take(envelopes)

    def take(self, envelopes: list[Envelope]) -> bool:
        """Note answers among messages; return False if one answers another request."""
        self._context.silence.server_sent(envelopes)
        for envelope in envelopes:
            if envelope.is_response:
                ident = answered(envelope, self._owed)
                if isinstance(ident, msgspec.UnsetType):
                    self._context.reports.misbehaved(
                        "unasked",
                        "the remote server sent, in response to a request, the answer to another"
                        " one; it is dropped",
                    )
                    return False
                self._owed.remove(ident)
                self._owner.answered(self, envelope, ident)
        return True

    def heard(self) -> None:
        """
        Note that the server has sent something.

        That a stream can be resumed does not count, unless it stays open: else a request
        that the server has forgotten would be asked after for ever.
        """
        now = self._context.clock.seconds()
        if self._resumed_at is None or now - self._resumed_at >= RESUMED_SECONDS:
            self.heard_at = now

    def overdue(self) -> None:
        """Give the request up: the server has sent nothing for too long."""
        self._owner.overdue(self)

    def repeat(self) -> None:
        """Post the request once more, with the headers that it has now."""
        self.is_repeated = True
        self.post()

    def answer(self, lines: list[bytes]) -> None:
        """Answer in the server's place, and end the call."""
        if not self._is_over:
            self._owed.clear()
            self._context.reports.messages_made(lines)
            self.drop()

    def fail(self, what: str) -> None:
        """Answer each open request with an error; `what` stands behind the name of the server."""
        if self._is_over:
            return
        if self._is_cancelled:
            self.finish()
            return
        text = f"the remote server {self._context.server.shown} {what}"
        self._context.reports.misbehaved("failed", text)
        self.answer([failed(ident, text) for ident in self._owed])

    def _fail_unusable(self, what: str) -> None:
        if not self._owner.unusable(self, what):
            self.fail(what)

    def cancelled(self) -> None:
        """Wait for the answer a little longer; most servers send none, nor close the stream."""
        self._is_cancelled = True
        self._context.silence.unwatch(self)
        self._timer.start(CANCELLED_SECONDS, self.finish)

    def finish(self) -> None:
        """End the call: everything is answered."""
        self.drop()

    def drop(self) -> None:
        """End the call, whatever is open; its connection is closed if that is in use."""
        if self._is_over:
            return
        self._is_over = True
        self._timer.stop()
        self._context.silence.unwatch(self)
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.drop()
        self._owner.over(self)
