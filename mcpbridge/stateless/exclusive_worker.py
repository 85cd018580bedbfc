"""
One process of an older server, leased to one request of MCP 2026-07-28 at a
time.

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
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

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
from mcpbridge.stateless.exchange import (
    Exchange,
    ToolAnnotations,
    WorkerUsage,
    backend_ended,
    backend_failed,
)
from mcpbridge.timers import Timer
from mcpbridge.translation.handshake import HandshakeRefused
from mcpbridge.translation.legacy_server import LegacyServerTranslator
from mcpbridge.translation.server_output import ServerOutput

#: How many subscriptions of a process may be unanswered.
SUBSCRIBED_AT_ONCE = 16


class ExclusiveWorkerObserver(Protocol):
    """Who leases processes out."""

    def returned(self, process: ExclusiveWorker) -> None:
        """It works for nobody."""

    def parked(self, process: ExclusiveWorker, request: ModernRequest) -> str:
        """Its request waits for the client; returns the state that brings the client back."""
        ...

    def unparked(self, process: ExclusiveWorker) -> None:
        """It does not wait any more, if it did: no state brings a client back to it."""

    def changed(self, process: ExclusiveWorker, change: Change) -> None:
        """It tells of something that clients may listen for."""

    def lost(self, process: ExclusiveWorker) -> None:
        """It takes nothing more."""


class ExclusiveWorker:
    """
    One process; the stream of its session.  At any time it opens, is free,
    works for an exchange, is parked, or recovers from a cancelled request.
    """

    log = Logger()

    def __init__(
        self,
        session: BackendSession,
        first: ModernRequest,
        settings: ServerSettings,
        owner: ExclusiveWorkerObserver,
        counts: Hold | None = None,
    ) -> None:
        self.session = session
        #: Whose share it counts against while it is not free.
        self.counts = counts or Hold()
        self.conversation = LegacyServerTranslator(
            first.capabilities, first.client_info, __version__, session.reached_nobody
        )
        self.upkeep = WorkerUsage(session, settings)
        self.exchange: Exchange | None = None
        #: The client of its request, also while that is parked.
        self._caller: Caller | None = None
        #: While it is parked: what it has of its client's share.
        self.claim: Claim | None = None
        self._settings = settings
        self._owner = owner
        #: Fires when the handshake is over, fails with what went wrong.
        self._opening: Deferred[None] | None = None
        self._listing: Deferred[msgspec.Raw] | None = None
        self.tools = ToolAnnotations(self._list_tools)
        #: What is waited for: questions to be complete, a retry, a late answer.
        self._wait: IDelayedCall | None = None
        #: Whether lines of it are being read, and what is to follow then.
        self._reading = False
        self._heard: list[Callable[[], object]] = []
        self._is_done = False
        #: Resources it is to be told of: whether they are listened to now.
        self._to_tell: dict[str, bool] = {}
        #: When it is told what it did not take, should it say nothing before.
        self._again = Timer(session.clock)

    async def open(self) -> None:
        """Shake hands.  Raises `HandshakeRefused` and `BackendFailed`."""
        timeout = self._settings.start_timeout
        opening = self._opening = Deferred()
        try:
            self.session.backend.send(self.conversation.initialize())
            opening.addTimeout(timeout, self.session.clock)
            await opening
        except defer.TimeoutError:
            raise BackendFailed(f"no answer to `initialize` in {timeout:g} s") from None
        except (BackendBusy, UnknownSession) as error:
            raise BackendFailed(str(error)) from None
        finally:
            self._opening = None

    async def _list_tools(self, cursor: str | None) -> msgspec.Raw:
        timeout = self._settings.start_timeout
        listing = self._listing = Deferred()
        try:
            self.session.backend.send(self.conversation.list_tools(cursor))
            listing.addTimeout(timeout, self.session.clock)
            return await listing
        except BackendBusy:
            self.conversation.unsaid()
            raise
        except defer.TimeoutError:
            why = f"no answer to `tools/list` in {timeout:g} s"
            self.session.life.end(why)
            raise BackendFailed(why) from None
        finally:
            self._listing = None
            self.conversation.unlisted()

    # Requests.

    def ask(self, exchange: Exchange) -> None:
        """Work for an exchange.  Raises `Refused`; then it works for nobody."""
        *before, line = self.conversation.ask(exchange.request)
        self._work_for(exchange)
        try:
            self._tell(before)
            self._pass(line)
        except BaseException:
            # The backend has never heard of it.
            self.exchange = None
            self.conversation.unasked()
            raise
        self.upkeep.served += 1

    def go_on(self, exchange: Exchange) -> None:
        """Go on with the parked request.  Raises `Refused`; then it is still parked."""
        lines = self.conversation.resume(exchange.request)
        self._no_wait()
        self._work_for(exchange)
        try:
            if lines:
                self._pass(*lines)
        except BaseException:
            self.exchange = None
            self.session.life.end("its queue is full, or a filter refused an answer")
            raise
        self._owner.unparked(self)
        self._heed(self.conversation.held())
        if self.conversation.questions and self.exchange is not None:
            self._collect()

    def subscribe(self, uri: str) -> None:
        """Be told of a resource."""
        self._change(uri, True)

    def unsubscribe(self, uri: str) -> None:
        """Not any more."""
        self._change(uri, False)

    def _change(self, uri: str, wanted: bool) -> None:
        if uri in self._to_tell and self._to_tell[uri] is not wanted:
            # It was not told of the last change, and need not be.
            del self._to_tell[uri]
        else:
            self._to_tell[uri] = wanted
        self._tell_changes()

    def _tell_changes(self) -> None:
        """A few at a time: a list of resources is not to keep calls from the process."""
        self._again.stop()
        if not self.session.receiving:
            self._to_tell.clear()
        while self._to_tell and self.conversation.unanswered < SUBSCRIBED_AT_ONCE:
            uri, wanted = next(iter(self._to_tell.items()))
            told = self.conversation
            try:
                self.session.backend.send((told.subscribe if wanted else told.unsubscribe)(uri))
            except BackendBusy:
                told.unsaid()
                self._again.start(SAY_AGAIN_SECONDS, self._tell_changes)
                return
            except UnknownSession:
                told.unsaid()
                self._to_tell.clear()
                return
            del self._to_tell[uri]

    def give_up(self, reason: str) -> None:
        """
        Cancel the request; it can work for another when that has ended, and
        ends itself where that takes longer than `CANCEL_SECONDS`.
        """
        self.exchange = None
        self._no_wait()
        self._owner.unparked(self)
        self._tell(self.conversation.cancel(reason))
        self._recover(f"its request was given up: {reason}")

    def released(self) -> None:
        """
        Who had it has asked nothing of it, or left before: it is for others
        when what the bridge itself has asked for them has an answer.
        """
        self._recover("its list of tools was not awaited")

    def _recover(self, reason: str) -> None:
        """It works for nobody, once nothing that it was asked may still be heard of."""
        if self.conversation.clean:
            self._done()
        elif self.session.receiving and self._wait is None:
            self._wait = self.session.clock.callLater(CANCEL_SECONDS, self.session.life.end, reason)

    def leave(self) -> None:
        """It takes nothing more: who waits for an answer may get it, but nobody is asked."""
        if self.exchange is not None:
            self._no_wait()
        self._owner.lost(self)

    def _work_for(self, exchange: Exchange) -> None:
        exchange.assign(self)
        self.exchange = exchange
        self._caller = exchange.caller

    def _pass(self, *lines: bytes) -> None:
        """Lines of a client's, all or none."""
        try:
            self.session.messages_of(self._caller, list(lines))
        except UnknownSession:
            raise backend_ended(self.session, self._settings) from None

    def _tell(self, lines: list[bytes]) -> None:
        """Lines of the bridge's own."""
        for line in lines:
            self.session.answer_backend(line)

    # What an exchange asks: Worker.

    def cancel(self, exchange: Exchange) -> None:
        """The client has gone."""
        if exchange is self.exchange:
            guarded(self.log, "reading a backend again", self.session.resume_backend)
            self.give_up("the client has gone")

    def pause(self, exchange: Exchange) -> None:
        """The client does not keep up."""
        if exchange is self.exchange:
            self.session.pause_backend()

    def resume(self, exchange: Exchange) -> None:
        """It does again, or is gone."""
        if self.exchange in (None, exchange):
            self.session.resume_backend()

    def caller_of(self, line: bytes) -> Caller | None:
        """Whose a line of the process is, before it is sent."""
        return self._caller if self.conversation.is_of_request(line) else None

    # What its session asks: Stream.

    @property
    def has_reader(self) -> bool:
        """Whether it works for anybody, or on what the bridge itself has asked."""
        return self.exchange is not None or not self.conversation.clean

    def send(self, lines: list[bytes]) -> None:
        """Messages of the process."""
        self._reading = True
        try:
            for line in lines:
                if self.conversation.initialized is None:
                    self._shake_hands(line)
                else:
                    self._heed(self.conversation.from_backend(line))
        finally:
            self._reading = False
        if self._to_tell:
            self._tell_changes()
        heard, self._heard = self._heard, []
        for each in heard:
            each()
        if self._is_done:
            self._done()

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """Its only request, as the bridge numbers it."""
        return self.conversation.only_open

    def stop_keepalive(self) -> None:
        """It is not used any more."""
        self.upkeep.wake()
        self._no_wait()
        self.leave()

    def close(self) -> None:
        """What was asked has no answer."""
        self._again.stop()
        error = backend_ended(self.session, self._settings)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            guarded(self.log, "a response", exchange.fail, error)
        for waiting in (self._opening, self._listing):
            if waiting is not None and not waiting.called:
                waiting.errback(backend_failed(self.session, self._settings))

    def _shake_hands(self, line: bytes) -> None:
        try:
            lines = self.conversation.handshake(line)
        except HandshakeRefused as error:
            if self._opening is not None and not self._opening.called:
                self._opening.errback(error)
            return
        self._tell(lines or [])
        if self.conversation.initialized is not None:
            self._heard.append(self._opened)

    def _opened(self) -> None:
        if self._opening is not None and not self._opening.called:
            self._opening.callback(None)

    def _listed(self, tools: msgspec.Raw) -> None:
        if self._listing is not None and not self._listing.called:
            self._listing.callback(tools)

    def _done(self) -> None:
        """
        It works for nobody.  What was read together with its last answer, or
        before, was not said to the next one, who has to wait for that long.
        """
        self._caller = None
        self._is_done = self._reading
        if not self._reading:
            self._owner.returned(self)

    def _heed(self, said: ServerOutput) -> None:
        """Do what a line of the backend amounts to."""
        self._tell(said.to_backend)
        if said.tools is not None:
            self._heard.append(partial(self._listed, said.tools))
        for change in said.changed:
            if change.kind == "toolsListChanged":
                self.tools.changed()
            self._owner.changed(self, change)
        exchange = self.exchange
        if exchange is None:
            if self._wait is not None and not self.conversation.running and self.conversation.clean:
                # What was given up has ended after all.
                self._no_wait()
                self._done()
            return
        if said.notes:
            guarded(self.log, "a response", exchange.deliver, said.notes, False)
        if self.exchange is None:
            # The client has gone by that.
            return
        if said.refused is not None:
            self.exchange = None
            guarded(self.log, "a response", exchange.fail, said.refused)
            self.give_up(str(said.refused))
        elif said.final is not None:
            self._no_wait()
            self.exchange = None
            guarded(self.log, "a response", exchange.deliver, [said.final], True)
            self._done()
        elif said.asked:
            self._collect()

    # Waiting.

    def _collect(self) -> None:
        """A question may be the first of several."""
        if self._wait is None and not self.session.leaving:
            self._wait = self.session.clock.callLater(COLLECT_SECONDS, self._park)

    def _park(self) -> None:
        """The client gets the questions; the request waits until they are answered."""
        self._wait = None
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if not self.conversation.questions:
            # They were taken back.
            self.exchange = exchange
            return
        # The exchange is about to be over, but the process is not free for that.
        self.claim = exchange.take_claim()
        state = self._owner.parked(self, exchange.request)
        self._wait = self.session.clock.callLater(
            self._settings.input_timeout, self.give_up, "the client did not come back"
        )
        asked = self.conversation.input_required(state)
        guarded(self.log, "a response", exchange.deliver, [asked], True)

    def _no_wait(self) -> None:
        wait, self._wait = self._wait, None
        if wait is not None and wait.active():
            wait.cancel()
