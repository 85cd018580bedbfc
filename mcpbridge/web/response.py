"""
An HTTP response: an error, JSON, or a stream of server-sent events.

Knows requests, and whether a client reads; must not know whose messages are
written.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import Refused, without_frames
from mcpbridge.jsonrpc import sse
from mcpbridge.response_budget import Share
from mcpbridge.timers import Timer
from mcpbridge.web.client_watch import ClientWatch
from mcpbridge.web.tcp import acknowledged, notice_vanished_peer, unsent
from mcpbridge.web.watched_connection import WatchedConnection


def reason_phrase(status: int) -> bytes:
    """Return the reason phrase of a status (RFC 9110, section 15; RFC 6585, section 4)."""
    return HTTPStatus(status).phrase.encode("ascii")


def error_body(request: Any, refusal: Refused) -> bytes:
    """Set the status and the headers of a refusal; return its body."""
    body = without_frames(refusal).body()
    request.setResponseCode(refusal.status, reason_phrase(refusal.status))
    for name, value in refusal.headers():
        request.setHeader(name, value)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return without_body(request, body)


def without_body(request: Any, body: bytes) -> bytes:
    """
    Return a body, or nothing for `HEAD`: Twisted would not write it, but write the whole
    target of the request to the log, with a session id or a token in its query.
    """
    return b"" if request.method == b"HEAD" else body


def accept(request: Any) -> None:
    """Set the status of a message that asks for no answer: 202, without a body."""
    request.setResponseCode(202)
    # Without it Twisted would send an empty body in chunks.
    request.setHeader(b"Content-Length", b"0")


@implementer(IPushProducer)
class Response:
    """
    A response that becomes JSON with `write_json` or events with `begin`.

    It keeps an event stream alive, and aborts the connection of a client that
    takes no byte for `peer_timeout` while data waits for it, or less than
    `min_transfer_rate`.  A complete response is watched by its connection
    (`WatchedConnection`).

    What is written is up to a subclass, one for each kind of sink: the stream
    of a session (`StreamResponse`), an exchange (`ExchangeResponse`), a session
    of HTTP+SSE (`EventStream`).  It overrides the methods from `keepalive` to
    `client_stalled`.  A subclass, not an object behind callbacks: there is one
    for each open stream, and thousands of those.

    `pending` and `acknowledged` are those of `ClientWatch`.
    """

    log = Logger()

    def __init__(
        self,
        request: Any,
        settings: ServerSettings,
        clock: IReactorTime,
        *,
        share: Share | None = None,
        keepalive_interval: float | None = None,
        pending: Callable[[Any], int] = unsent,
        acknowledged: Callable[[Any], int | None] = acknowledged,
    ) -> None:
        #: None when the response is complete, or its connection is lost.
        self.request = request
        #: Fires when the response is complete; not if its connection is lost before.
        self.finished: Deferred[None] = Deferred()
        #: Whether this is an event stream, whose head is written.
        self.streaming = False
        #: Whether the client does not keep up with what is written.
        self.paused = False
        #: Bytes of the event stream after its head, as they are on the wire.
        self.written = 0
        self.settings = settings
        self._keepalive_interval = (
            settings.keepalive_interval if keepalive_interval is None else keepalive_interval
        )
        if share is not None and isinstance(request.channel, WatchedConnection):
            request.channel.count_for(share)
        self._timer = Timer(clock)
        self._watch = ClientWatch(
            clock,
            getattr(request, "transport", None),
            settings.peer_timeout,
            settings.min_transfer_rate,
            self.client_stalled,
            pending,
            acknowledged,
        )

    def commit_after(self, seconds: float) -> None:
        """Call `commit` after so many seconds, unless something is written before."""
        self._timer.start(seconds, self.commit)

    def begin(self, first: bytes) -> None:
        """Write the head of an event stream, and its first events or comment."""
        self._timer.stop()
        self.streaming = True
        request = self.request
        for name, value in sse.HEADERS:
            request.setHeader(name, value)
        notice_vanished_peer(request.transport, self.settings.peer_timeout)
        if isinstance(request.channel, WatchedConnection):
            request.channel.stream_begins()
        request.registerProducer(self, True)
        self._watch.start()
        self.write(first)
        self._keep_alive_later()

    def write(self, data: bytes) -> None:
        """Write events; does nothing after the response."""
        request = self.request
        if request is not None:
            size = len(data)
            # With what frames a chunk: its size in hexadecimal digits, and two line ends.
            self.written += size + (size.bit_length() + 3) // 4 + 4
            self._watch.wrote(size)
            request.write(data)

    def write_json(self, body: bytes, status: int = 200) -> None:
        """Write all of the response."""
        request = self.request
        if status != 200:
            request.setResponseCode(status)
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        self.finish()

    def write_error(self, refusal: Refused) -> None:
        """Write a refusal as all of the response, with its status."""
        self.request.write(error_body(self.request, refusal))
        self.finish()

    def finish(self) -> None:
        """Complete the response; does nothing if it is complete, or its connection lost."""
        request, self.request = self.request, None
        self._end()
        if request is None:
            return
        try:
            # Without a channel the connection is lost, and `gone` about to be called.
            if request.channel is not None and self.streaming:
                if isinstance(request.channel, WatchedConnection):
                    request.channel.stream_ends()
                request.unregisterProducer()
        finally:
            self.finished.callback(None)

    def gone(self) -> None:
        """Write no more: the connection is lost."""
        self.request = None
        self._end()

    def abort(self) -> None:
        """Abort the connection, with what is not sent."""
        abort = getattr(getattr(self.request, "transport", None), "abortConnection", None)
        if abort is not None:
            abort()

    def stop_keepalive(self) -> None:
        """Stop the keepalive, and the checks whether the client reads."""
        self._timer.stop()
        self._watch.stop()

    # To be overridden.

    def keepalive(self) -> bytes:
        """Return what keeps an event stream alive; called every `keepalive_interval`."""
        return sse.comment()

    def commit(self) -> None:
        """Begin the event stream; called by `commit_after`."""
        self.begin(sse.comment())

    def client_paused(self) -> None:
        """Called when the client does not keep up."""

    def client_resumed(self) -> None:
        """Called when the client has taken all that was written."""

    def ended(self) -> None:
        """Called when the response is complete, or its connection lost; perhaps twice."""

    def client_stalled(self, reason: str) -> None:
        """Called when the client does not read: abort the connection."""
        self.log.info("closing a connection: {reason}", reason=reason)
        self.abort()

    # IPushProducer, called by the connection.

    def pauseProducing(self) -> None:
        """Note that the client does not keep up."""
        self.paused = True
        self._watch.arm()
        self.client_paused()

    def resumeProducing(self) -> None:
        """Note that the client has taken all that was written."""
        self.paused = False
        self.client_resumed()

    def stopProducing(self) -> None:
        """Do nothing: `notifyFinish` tells that the connection is lost."""

    def _keep_alive_later(self) -> None:
        if self._keepalive_interval and self.request is not None:
            self._timer.start(self._keepalive_interval, self._keep_alive)

    def _keep_alive(self) -> None:
        self._keep_alive_later()
        # Behind what the client does not take it would prove nothing, and wait.
        if not self.paused:
            self.write(self.keepalive())

    def _end(self) -> None:
        self._timer.stop()
        self._watch.release()
        self.paused = False
        self.ended()
