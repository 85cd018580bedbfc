"""
A backend that is a session at a remote server.

Knows the transport of the session, and when it is over; must not know how messages travel.
It dies as a process does: the server cannot be reached, has ended the session, or breaks
the rules so far that nothing can follow.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge.errors import METHOD_NOT_FOUND, UnknownSession
from mcpbridge.guard import guarded
from mcpbridge.interfaces import IBackend
from mcpbridge.jsonrpc.envelope import split_batch
from mcpbridge.jsonrpc.malformed_output import Lost
from mcpbridge.jsonrpc.members import error_line
from mcpbridge.mcp.posted_message import Kind, PostedMessage, read_posted
from mcpbridge.remote.context import Bodies, Context, RemoteServer
from mcpbridge.remote.http_client import HttpClient
from mcpbridge.remote.http_sse import HttpSse
from mcpbridge.remote.responses import PROBE
from mcpbridge.remote.silence import Silence
from mcpbridge.remote.streamable_http import StreamableHttp
from mcpbridge.remote.transport import Transport
from mcpbridge.response_budget import ResponseBudget

_NO_PROBE = "a server of HTTP+SSE does not know this method"


@implementer(IBackend)
class RemoteBackend:
    """One session at a remote server, of which `receiver` is told."""

    log = Logger()

    def __init__(
        self,
        server: RemoteServer,
        client: HttpClient,
        clock: IReactorTime,
        receiver: Any,
        budget: ResponseBudget | None = None,
    ) -> None:
        self._server = server
        self._client = client
        self._clock = clock
        self._receiver = receiver
        self._bodies = Bodies()
        settings = server.settings
        self._silence = Silence(clock, settings.response_timeout, lambda: self._bodies.is_any_held)
        self._context = Context(server, client, clock, self, self._bodies, self._silence, budget)
        self._transport: Transport
        if server.transport == "sse":
            self._transport = HttpSse(self._context)
        else:
            fall_back = self._fall_back if settings.remote_transport == "auto" else None
            self._transport = StreamableHttp(self._context, fall_back)
        #: True once the session is over, or was told to end: nothing more is reported.
        self._is_over = False
        self._stopped: list[Deferred[None]] = []
        self._is_stopping = self._is_gone = False
        #: Whether nothing can be sent to the server, not even that the session is over.
        self._is_unreachable = False
        self.exit_status: str | None = None

    # IBackend.

    def send(self, line: bytes) -> None:
        """Send one message, or several on lines of their own.  Raises `BackendBusy`."""
        if self._is_over:
            raise UnknownSession("the session has ended: its server takes no more messages")
        messages = self._read(line)
        self._transport.outbox.check(len(messages))
        for message in messages:
            if message.kind in (Kind.RESPONSE, Kind.BATCH):
                self._silence.client_answered(message.line)
        for message in messages:
            if message.method == PROBE and isinstance(self._transport, HttpSse):
                # Some servers exit at a request before `initialize`.
                self.messages_made(
                    [error_line(each, METHOD_NOT_FOUND, _NO_PROBE) for each in message.idents]
                )
            else:
                self._transport.put(message)

    def _read(self, line: bytes) -> list[PostedMessage]:
        lines = line.split(b"\n") if b"\n" in line else [line]
        found: list[PostedMessage] = []
        for each in lines:
            message = read_posted(each)
            if message.kind is Kind.BATCH and self._transport.splits_batches():
                found += [read_posted(part) for part in split_batch(each) or []]
            else:
                found.append(message)
        return found

    def pause(self) -> None:
        """Leave what the server sends in its connections."""
        self._bodies.pause()

    def resume(self) -> None:
        """Read the connections again."""
        self._silence.begin_again()
        self._bodies.resume()

    def stop(self) -> Deferred[None]:
        """End the session at the server within the graces, and close all connections."""
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        if self._is_gone:
            self._clock.callLater(0, self._fire_stopped)
        elif not self._is_stopping:
            self._is_stopping = True
            self._is_over = True
            self._silence.stop()
            # What is left of responses must not keep the end.
            self._bodies.resume()
            settings = self._server.settings
            seconds = settings.stop_grace or settings.kill_grace
            left = None
            if not self._is_unreachable:
                # Where the session has failed here, it may live on at the server.
                left = guarded(self.log, "leaving a session", self._transport.leave, seconds)
            if isinstance(left, Deferred):
                left.addBoth(self._left)
            else:
                self._left(None)
        return stopped

    def _left(self, _: object) -> None:
        guarded(self.log, "closing connections", self._client.close)
        self.exit_status = self.exit_status or "remote: session closed"
        self._is_gone = True
        # Never within a call of the session.
        self._clock.callLater(0, self._fire_stopped)

    def _fire_stopped(self) -> None:
        stopped, self._stopped = self._stopped, []
        for each in stopped:
            each.callback(None)
        self._receiver = None

    def _fall_back(self, initialize: PostedMessage, why: str) -> None:
        """Try HTTP+SSE: the server does not take a POST (2025-11-25, "Backwards Compatibility")."""
        waiting = self._transport.outbox.take_all()
        guarded(self.log, "giving Streamable HTTP up", self._transport.abandon)
        self._transport = HttpSse(self._context, why)
        for message in (initialize, *waiting):
            self._transport.put(message)

    # Reports of the transport.

    def messages_received(self, lines: list[bytes]) -> None:
        """Pass messages of the server on."""
        if not self._is_over:
            self._receiver.messages_received(lines)

    def messages_made(self, lines: list[bytes]) -> None:
        """Pass on messages of the bridge, but never within a call of the session."""
        if lines:
            self._clock.callLater(0, self.messages_received, lines)

    def message_lost(self, lost: Lost) -> None:
        """Tell of a message that cannot pass."""
        if not self._is_over:
            self._receiver.message_lost(lost)

    def misbehaved(self, fault: str, what: str, line: bytes = b"") -> None:
        """Tell of a mistake of the server, in the next iteration."""
        self._clock.callLater(0, self._misbehaved, fault, what, line)

    def _misbehaved(self, fault: str, what: str, line: bytes) -> None:
        if not self._is_over:
            self._receiver.misbehaved(fault, what, line)

    def unreachable(self, why: str) -> None:
        """End the session: there is no connection to the server."""
        self._is_unreachable = True
        self.died(f"cannot be reached: {why}", why)

    def died(self, what: str, status: str = "") -> None:
        """End the session: the server is gone, or does not want it any more."""
        if self._is_over:
            return
        self._is_over = True
        self.exit_status = f"remote: {status or what}"
        self._silence.stop()
        guarded(self.log, "giving a session up", self._transport.abandon)
        reason = f"the remote server {self._server.shown} {what}"
        self._clock.callLater(0, self._report_death, reason)

    def _report_death(self, reason: str) -> None:
        if not self._is_stopping:
            self._receiver.input_closed(reason)
        if not self._is_stopping:
            self._receiver.output_closed(reason)
