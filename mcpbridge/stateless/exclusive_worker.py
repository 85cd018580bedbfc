"""
A process of a legacy server, which works on one request of MCP 2026-07-28 at
a time.

Knows whose request it works on and how long it waits; what is said is for
`translation.legacy_server`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec
from twisted.internet import defer
from twisted.internet.defer import Deferred

from mcpbridge._version import __version__
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CANCEL_SECONDS, COLLECT_SECONDS, SAY_AGAIN_SECONDS
from mcpbridge.errors import BackendBusy, BackendFailed, UnknownSession
from mcpbridge.guard import guarded
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.subscriptions import Change
from mcpbridge.processes.address_shares import Claim, Hold
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.era import OtherEra
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.stateless.worker import BackendWorker
from mcpbridge.timers import Timer
from mcpbridge.translation.handshake import HandshakeRefused
from mcpbridge.translation.legacy_server import LegacyServerTranslator
from mcpbridge.translation.running_request import ServerOutput

#: How many subscriptions of a process may be unanswered.
SUBSCRIBED_AT_ONCE = 16


class ExclusiveWorkerObserver(Protocol):
    """The pool that a worker belongs to."""

    def worker_free(self, worker: ExclusiveWorker) -> None:
        """It works on nothing."""

    def worker_suspended(self, worker: ExclusiveWorker, request: ModernRequest) -> str:
        """Its request waits for the client; return the `requestState` of the retry."""
        ...

    def worker_resumed(self, worker: ExclusiveWorker) -> None:
        """Its request waits no more, if it did: its `requestState` is void."""

    def worker_notified(self, worker: ExclusiveWorker, change: Change) -> None:
        """The server has sent a notification that clients may subscribe to."""

    def worker_lost(self, worker: ExclusiveWorker) -> None:
        """Its process takes nothing more."""


class ExclusiveWorker(BackendWorker):
    """
    One process of a legacy server.

    At any time it opens, is free, works on an exchange, is suspended until
    its client has answered the server's questions, or recovers from a
    cancelled request.  It never works on a second request before the first is
    answered: on a legacy server's stdio nothing says which request a question
    or a log message belongs to, and it must not reach another client.

    `hold` is whose share it counts against while it is not free.
    """

    def __init__(
        self,
        session: BackendSession,
        first: ModernRequest,
        settings: ServerSettings,
        observer: ExclusiveWorkerObserver,
        hold: Hold,
    ) -> None:
        super().__init__(session, settings)
        self.hold = hold
        self.translator = LegacyServerTranslator(
            first.capabilities, first.client_info, __version__, session.message_dropped
        )
        self.exchange: Exchange | None = None
        #: While it is suspended: what it has of its client's share.
        self.claim: Claim | None = None
        #: The client of its request, also while that is suspended.
        self._caller: Caller | None = None
        self._observer = observer
        #: Fires when the handshake is over, fails with what went wrong.
        self._opening: Deferred[None] | None = None
        self._listing: Deferred[msgspec.Raw] | None = None
        #: What it waits for, one thing at a time: more questions, a retry, or
        #: the late answer to a cancelled request.
        self._wait = Timer(session.clock)
        #: Whether lines of the process are being read; and what is to be done
        #: after that, since it may give the worker to the next request.
        self._reading = False
        self._after_reading: list[Callable[[], object]] = []
        self._free_after_reading = False
        #: Resources that the process is still to be told of: whether to
        #: subscribe to each or to unsubscribe.
        self._unsent: dict[str, bool] = {}

    async def open(self, patience: float) -> None:
        """
        Make the handshake (`initialize`).

        Raises `OtherEra` where the server speaks only revisions without one,
        and `BackendFailed` where it refuses, ends or does not answer.
        """
        opening = self._opening = Deferred()
        try:
            self.session.backend.send(self.translator.initialize())
            opening.addTimeout(patience, self.session.clock)
            await opening
        except HandshakeRefused as error:
            if error.modern_only:
                raise OtherEra(str(error)) from None
            raise BackendFailed(str(error)) from None
        except defer.TimeoutError:
            raise BackendFailed(f"no answer to `initialize` in {patience:g} s") from None
        except (BackendBusy, UnknownSession) as error:
            raise BackendFailed(str(error)) from None
        finally:
            self._opening = None

    async def _list_tools(self, cursor: str | None) -> msgspec.Raw:
        timeout = self._settings.start_timeout
        listing = self._listing = Deferred()
        try:
            self.session.backend.send(self.translator.requests.list_tools(cursor))
            listing.addTimeout(timeout, self.session.clock)
            return await listing
        except BackendBusy:
            self.translator.requests.undo_own()
            raise
        except defer.TimeoutError:
            why = f"no answer to `tools/list` in {timeout:g} s"
            self.session.life.end(why)
            raise BackendFailed(why) from None
        finally:
            self._listing = None
            self.translator.requests.stop_listing()

    # Requests.

    def ask(self, exchange: Exchange) -> None:
        """Work on an exchange.  Raises a `Refused`; then it works on nothing."""
        *before, line = self.translator.start(exchange.request)
        self._work_on(exchange)
        try:
            self._send_own(before)
            self._send_for_client(line)
        except BaseException:
            # The backend has never heard of the request.
            self.exchange = None
            self.translator.undo_start()
            raise
        self.usage.served += 1

    def resume_call(self, exchange: Exchange) -> None:
        """
        Go on with the suspended request, of which this exchange is the retry.

        Raises a `Refused`; then it is suspended as before.
        """
        lines = self.translator.resume(exchange.request)
        self._wait.stop()
        self._work_on(exchange)
        try:
            if lines:
                self._send_for_client(*lines)
        except BaseException:
            self.exchange = None
            self.session.life.end("its queue is full, or a filter refused the client's response")
            raise
        self._observer.worker_resumed(self)
        self._handle(self.translator.take_buffered())
        if self.translator.server_requests.by_key and self.exchange is not None:
            self._collect_questions()

    def give_up(self, reason: str) -> None:
        """
        Cancel the request.

        The worker is free when the request has ended.  Where that takes
        longer than `CANCEL_SECONDS`, the process is ended instead: what it
        says late could reach the next client.
        """
        self.exchange = None
        self._wait.stop()
        self._observer.worker_resumed(self)
        self._send_own(self.translator.cancel(reason))
        self._recover(f"its request was abandoned: {reason}")

    @property
    def is_unused(self) -> bool:
        """Whether it works on no request, not even one whose client has gone."""
        return self.exchange is None and not self.translator.has_request

    def release(self) -> None:
        """
        Give it back unused: whoever had it has asked nothing, or left before.

        It is free when what the bridge itself has asked for that client (the
        list of tools) is answered.
        """
        self._recover("its list of tools was not awaited")

    def leave(self) -> None:
        """
        The process takes nothing more.  Its client still gets an answer that
        is on the way, but is not asked anything any more.
        """
        if self.exchange is not None:
            self._wait.stop()
        self._observer.worker_lost(self)

    def _recover(self, reason: str) -> None:
        """Become free as soon as nothing that was asked before can still be answered."""
        if self.translator.is_idle:
            self._become_free()
        elif self.session.receiving and not self._wait.is_running:
            self._wait.start(CANCEL_SECONDS, partial(self.session.life.end, reason))

    def _become_free(self) -> None:
        """
        Tell the pool that it works on nothing.

        The next request is given to it only when all that was read together
        with the last answer has been handled: that was not said to it.
        """
        self._caller = None
        self._free_after_reading = self._reading
        if not self._reading:
            self._observer.worker_free(self)

    def _work_on(self, exchange: Exchange) -> None:
        exchange.assign(self)
        self.exchange = exchange
        self._caller = exchange.caller

    def _send_for_client(self, *lines: bytes) -> None:
        """Send a client's messages, all or none.  Raises a `Refused`."""
        try:
            self.session.send_to_backend_for(self._caller, list(lines))
        except UnknownSession:
            raise self.ended_error() from None

    def _send_own(self, lines: list[bytes]) -> None:
        for line in lines:
            self.session.answer_backend(line)

    # Resource subscriptions.

    def subscribe(self, uri: str) -> None:
        """Subscribe to a resource."""
        self._change_subscription(uri, True)

    def unsubscribe(self, uri: str) -> None:
        """Unsubscribe from a resource."""
        self._change_subscription(uri, False)

    def _change_subscription(self, uri: str, wanted: bool) -> None:
        if uri in self._unsent and self._unsent[uri] is not wanted:
            # The process was not told of the last change, and need not be.
            del self._unsent[uri]
        else:
            self._unsent[uri] = wanted
        self._send_subscriptions()

    def _send_subscriptions(self) -> None:
        """Send a few at a time: a long list must not keep calls from the process."""
        self._retry.stop()
        if not self.session.receiving:
            self._unsent.clear()
        while self._unsent and self.translator.requests.unanswered < SUBSCRIBED_AT_ONCE:
            uri, wanted = next(iter(self._unsent.items()))
            requests = self.translator.requests
            write = requests.subscribe if wanted else requests.unsubscribe
            try:
                self.session.backend.send(write(uri))
            except BackendBusy:
                self.translator.requests.undo_own()
                self._retry.start(SAY_AGAIN_SECONDS, self._send_subscriptions)
                return
            except UnknownSession:
                self.translator.requests.undo_own()
                self._unsent.clear()
                return
            del self._unsent[uri]

    # Worker: what an exchange calls.

    def cancel(self, exchange: Exchange) -> None:
        """Cancel the request: the client has gone."""
        if exchange is self.exchange:
            guarded(self._log, "reading a backend again", self.session.resume_backend)
            self.give_up("the client has gone")

    def pause(self, exchange: Exchange) -> None:
        """Leave the output in the pipe: the client does not keep up."""
        if exchange is self.exchange:
            self.session.pause_backend()

    def resume(self, exchange: Exchange) -> None:
        """Read on, unless it works on another exchange by now."""
        if self.exchange in (None, exchange):
            self.session.resume_backend()

    def caller_of(self, line: bytes) -> Caller | None:
        """Return the client that a line of the process is for, before it is sent."""
        return self._caller if self.translator.belongs_to_request(line) else None

    # Sink: what its session calls.

    @property
    def has_reader(self) -> bool:
        """Whether it works on an exchange, or on what the bridge itself has asked."""
        return self.exchange is not None or not self.translator.is_idle

    def send(self, lines: list[bytes]) -> None:
        """Handle messages of the process."""
        self._reading = True
        try:
            for line in lines:
                if self.translator.initialized is None:
                    self._make_handshake(line)
                else:
                    self._handle(self.translator.from_backend(line))
        finally:
            self._reading = False
        if self._unsent:
            self._send_subscriptions()
        after, self._after_reading = self._after_reading, []
        for each in after:
            each()
        if self._free_after_reading:
            self._become_free()

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """Return its only request, as the bridge numbers it."""
        return self.translator.only_open

    def stop_keepalive(self) -> None:
        """Stop all timers that keep the worker."""
        self.usage.stop()
        self._wait.stop()
        self.leave()

    def close(self) -> None:
        """Fail what has not been answered."""
        self._retry.stop()
        error = self.ended_error()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            guarded(self._log, "a response", exchange.fail, error)
        for waiting in (self._opening, self._listing):
            if waiting is not None and not waiting.called:
                waiting.errback(self.failed_error())

    def _make_handshake(self, line: bytes) -> None:
        try:
            lines = self.translator.handshake(line)
        except HandshakeRefused as error:
            if self._opening is not None and not self._opening.called:
                self._opening.errback(error)
            return
        self._send_own(lines or [])
        if self.translator.initialized is not None:
            self._after_reading.append(self._opened)

    def _opened(self) -> None:
        if self._opening is not None and not self._opening.called:
            self._opening.callback(None)

    def _listed(self, tools: msgspec.Raw) -> None:
        if self._listing is not None and not self._listing.called:
            self._listing.callback(tools)

    def _handle(self, output: ServerOutput) -> None:
        """Do what a line of the server amounts to."""
        self._send_own(output.to_backend)
        if output.tools is not None:
            self._after_reading.append(partial(self._listed, output.tools))
        for change in output.changes:
            if change.kind == "toolsListChanged":
                self.tools.invalidate()
            self._observer.worker_notified(self, change)
        exchange = self.exchange
        if exchange is None:
            waits = self._wait.is_running
            if waits and self.translator.is_idle:
                # A request that was given up has ended after all.
                self._wait.stop()
                self._become_free()
            return
        if output.notifications:
            guarded(self._log, "a response", exchange.deliver, output.notifications, False)
        if self.exchange is None:
            # To write that has shown that the client has gone.
            return
        if output.refusal is not None:
            self.exchange = None
            guarded(self._log, "a response", exchange.fail, output.refusal)
            self.give_up(str(output.refusal))
        elif output.response is not None:
            self._wait.stop()
            self.exchange = None
            guarded(self._log, "a response", exchange.deliver, [output.response], True)
            self._become_free()
        elif output.wants_input:
            self._collect_questions()

    # Questions to the client.

    def _collect_questions(self) -> None:
        """Wait for `COLLECT_SECONDS` after the first question: it may be one of several."""
        if not self._wait.is_running and not self.session.leaving:
            self._wait.start(COLLECT_SECONDS, self._suspend)

    def _suspend(self) -> None:
        """Send the client the questions; the request waits until they are answered."""
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if not self.translator.server_requests.by_key:
            # The server has taken them back.
            self.exchange = exchange
            return
        # The exchange is about to be over, but the process is not free for that.
        self.claim = exchange.take_claim()
        state = self._observer.worker_suspended(self, exchange.request)
        self._wait.start(
            self._settings.input_timeout, partial(self.give_up, "the client did not come back")
        )
        asked = self.translator.suspend(state)
        guarded(self._log, "a response", exchange.deliver, [asked], True)
