"""
A process of a server that speaks MCP 2026-07-28, which works on several
requests at a time.

Knows whose requests it has; what is rewritten on the way is for
`mcp.multiplexer`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import msgspec
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import SAY_AGAIN_SECONDS
from mcpbridge.errors import (
    INVALID_PARAMS,
    BackendBusy,
    BackendEnded,
    Refused,
    UnknownSession,
)
from mcpbridge.guard import guarded
from mcpbridge.jsonrpc.envelope import JsonRpcId, peek
from mcpbridge.jsonrpc.members import integer_of, members_of
from mcpbridge.mcp.inflight import CANCELLED_KEPT
from mcpbridge.mcp.modern_request import (
    LISTEN,
    MODERN_PROTOCOL_VERSIONS,
    TASKS,
    ModernRequest,
)
from mcpbridge.mcp.multiplexer import Multiplexer
from mcpbridge.mcp.own_request import own_request
from mcpbridge.mcp.server_card import KnownServer, info_of_discovery
from mcpbridge.mcp.tasks import Tasks, for_owner
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.era import NoAnswer, OtherEra
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.stateless.worker import BackendWorker
from mcpbridge.timers import Timer

#: Seconds between two looks at the tasks of a process; each asks the server after one of them.
TASKS_SECONDS = 1.0


class Receiver(Hashable, Protocol):
    """Who has made a request: a client's `Exchange`, or the bridge itself."""

    @property
    def caller(self) -> Caller | None:
        """Who filters and observers are told it is."""
        ...

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Take messages; if `final`, the last one is the response."""

    def fail(self, refusal: Refused) -> None:
        """Take this error in place of a response."""


class ConcurrentWorkerObserver(Protocol):
    """The pool that a worker belongs to."""

    def worker_freed(self, worker: ConcurrentWorker) -> None:
        """It has less to do."""

    def worker_lost(self, worker: ConcurrentWorker) -> None:
        """Its process takes nothing more."""

    def subscription_lost(self, exchange: Exchange) -> None:
        """A subscription was open when its process ended."""


class _OwnRequest:
    """
    A request of the bridge's own; `response` fires with the line, or fails
    with a `Refused`.
    """

    caller = None

    def __init__(self) -> None:
        self.response: Deferred[bytes] = Deferred()

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Take the response; nothing else counts."""
        if final and not self.response.called:
            self.response.callback(lines[-1])

    def fail(self, refusal: Refused) -> None:
        """Fail the response."""
        if not self.response.called:
            self.response.errback(refusal)


class _ToolsSubscription:
    """The bridge's own subscription to changes of the list of tools."""

    caller = None

    def __init__(self, worker: ConcurrentWorker) -> None:
        self._worker = worker

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Forget what is known of the tools."""
        self._worker.tools.invalidate()
        if final:
            self._worker.own_subscriptions = 0

    def fail(self, refusal: Refused) -> None:
        """Do nothing: the process has ended."""


class _TaskQuery:
    """The bridge's own `tasks/get`; `answered` is called with the task's id and the response."""

    caller = None

    def __init__(self, ident: str, answered: Callable[[str, bytes], None]) -> None:
        self._ident = ident
        self._answered = answered

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Take the response."""
        if final:
            self._answered(self._ident, lines[-1])

    def fail(self, refusal: Refused) -> None:
        """Do nothing: the process has ended."""


def _is_unknown_task(line: bytes) -> bool:
    """Return whether a response to `tasks/get` says that there is no such task."""
    envelope = peek(line)
    if envelope is None or isinstance(envelope.error, msgspec.UnsetType):
        return False
    return integer_of(members_of(envelope.error).get("code")) == INVALID_PARAMS


class _TaskPolling:
    """
    Looks at a process's tasks now and then, so that one that is over, or that
    the server has forgotten, does not keep the process.

    `query` sends a request of the bridge's own and returns whether that went;
    `expired` is called when no task is left.
    """

    def __init__(
        self,
        tasks: Tasks,
        clock: IReactorTime,
        query: Callable[[ModernRequest, Receiver], bool],
        expired: Callable[[], None],
    ) -> None:
        self._tasks = tasks
        self._timer = Timer(clock)
        self._query = query
        self._expired = expired
        self._is_polling = False
        #: Whether a query has not been answered.
        self.is_querying = False

    def begin(self) -> None:
        """Poll, unless it polls already."""
        if not self._is_polling:
            self._is_polling = True
            self._timer.start(TASKS_SECONDS, self._poll)

    def stop(self) -> None:
        """Poll no more."""
        self._timer.stop()

    def _poll(self) -> None:
        self._tasks.expire()
        ident = None if self.is_querying else self._tasks.next_to_poll()
        if ident is not None:
            request = own_request("tasks/get", {"taskId": ident}, {TASKS: {}})
            # Where the process is busy, the next look asks again.
            self.is_querying = self._query(request, _TaskQuery(ident, self._answered))
        if len(self._tasks):
            self._timer.start(TASKS_SECONDS, self._poll)
        else:
            self._is_polling = False
            self._expired()

    def _answered(self, ident: str, line: bytes) -> None:
        """Forget a task that the server does not know; any other response was read on the way."""
        self.is_querying = False
        if _is_unknown_task(line):
            self._tasks.forget(ident)


class _Discovered(msgspec.Struct):
    supportedVersions: list[str]
    capabilities: dict[str, Any] = {}


class ConcurrentWorker(BackendWorker):
    """One process of a server that speaks MCP 2026-07-28, for one identity."""

    def __init__(
        self,
        session: BackendSession,
        identity: str,
        settings: ServerSettings,
        observer: ConcurrentWorkerObserver,
        known: KnownServer,
    ) -> None:
        super().__init__(session, settings)
        self.identity = identity
        #: The number of requests that are about to be made.
        self.reserved = 0
        #: Whether its only request wants log messages.  No other request is
        #: added: nothing would say whose they are.
        self.alone = False
        #: Whether another one has been started for the time when this one is worn.
        self.is_replaced = False
        #: The number of subscriptions that are the bridge's own.
        self.own_subscriptions = 0
        #: Whether the server has tasks; None: it has not been asked.
        self.offers_tasks: bool | None = None
        #: Whether it left a request of the bridge's own unanswered: no other is to wait for it.
        self.hung = False
        self._observer = observer
        self._known = known
        self.tasks = Tasks(limit=settings.task_timeout, now=session.clock.seconds)
        self._requests: Multiplexer[Receiver] = Multiplexer(self.tasks, session.message_dropped)
        #: Cancellations that did not fit into the pipe.
        self._unsent: deque[bytes] = deque(maxlen=CANCELLED_KEPT)
        self._polling = _TaskPolling(
            self.tasks, session.clock, self._query_task, lambda: observer.worker_freed(self)
        )

    @property
    def load(self) -> int:
        """The number of clients' requests that it works on, without subscriptions."""
        return self._requests.of_clients + self.reserved

    @property
    def running(self) -> int:
        """The number of clients' requests that the process has, without subscriptions."""
        return self._requests.of_clients

    @property
    def muddled(self) -> bool:
        """Whether no client gets its log messages any more."""
        return self._requests.has_ambiguous_logs

    @property
    def in_use(self) -> bool:
        """Whether any client waits for anything of it."""
        subscribed = self._requests.subscriptions > self.own_subscriptions
        return bool(self.load or len(self.tasks) or subscribed)

    async def open(self, patience: float) -> None:
        """
        Ask who the server is (`server/discover`), which also shows its era.

        Raises `OtherEra` for the answer of a legacy server, and a `Refused`
        for no answer, or one that is of no use.
        """
        try:
            envelope = peek(await self._request("server/discover", {}, patience))
        except BackendEnded:
            raise self.failed_error() from None
        if envelope is None or isinstance(envelope.result, msgspec.UnsetType):
            raise OtherEra("the server answered `server/discover` with an error")
        try:
            told = msgspec.json.decode(envelope.result, type=_Discovered)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise OtherEra("the server's answer to `server/discover` is of no use") from None
        if not set(told.supportedVersions) & set(MODERN_PROTOCOL_VERSIONS):
            raise OtherEra("the server speaks no revision of MCP that the bridge knows")
        extensions = told.capabilities.get("extensions")
        self.offers_tasks = isinstance(extensions, dict) and TASKS in extensions
        self._known.discovered(info_of_discovery(envelope.result))
        tools = told.capabilities.get("tools")
        if isinstance(tools, dict) and tools.get("listChanged") is True:
            self._subscribe_to_tools()

    # The bridge's own requests.

    async def _request(self, method: str, params: dict[str, object], patience: float) -> bytes:
        own = _OwnRequest()
        self._send_request(own_request(method, params), own, own=True)
        own.response.addTimeout(patience, self.session.clock)
        try:
            return await own.response
        except defer.TimeoutError:
            self.hung = True
            raise NoAnswer(f"no answer to `{method}` in {patience:g} s") from None
        finally:
            # If there was no response, nobody waits for it any more.
            self._cancel_request(own)

    async def _list_tools(self, cursor: str | None) -> msgspec.Raw:
        params: dict[str, object] = {} if cursor is None else {"cursor": cursor}
        envelope = peek(await self._request("tools/list", params, self._settings.start_timeout))
        if envelope is None or isinstance(envelope.result, msgspec.UnsetType):
            # It has no tools, or does not tell: so no header is needed.
            return msgspec.Raw(b"{}")
        return envelope.result

    def _subscribe_to_tools(self) -> None:
        params: dict[str, object] = {"notifications": {"toolsListChanged": True}}
        self.own_subscriptions = 1
        try:
            self._send_request(own_request(LISTEN, params), _ToolsSubscription(self))
        except Refused:
            self.own_subscriptions = 0
            self.log.warn("the tools of {session} are not watched", session=self.session.label)

    def _query_task(self, request: ModernRequest, receiver: Receiver) -> bool:
        try:
            self._send_request(request, receiver, own=True)
        except Refused:
            # It is busy, or ends.
            return False
        return True

    # Requests of clients.

    def ask(self, exchange: Exchange) -> None:
        """Work on a request.  Raises a `Refused`."""
        exchange.assign(self)
        self._send_request(exchange.request, exchange)
        if not exchange.is_subscription:
            self.usage.served += 1

    def ask_about_task(self, exchange: Exchange, ident: str) -> None:
        """
        Work on a request about a task of this process, by the server's own id.

        It does not count as a use: a client may ask again and again.  Raises
        a `Refused`.
        """
        exchange.assign(self)
        self._send_request(for_owner(exchange.request, ident), exchange)

    def subscribe(self, request: ModernRequest, receiver: Receiver) -> None:
        """Send a `subscriptions/listen` that is a part of a client's.  Raises a `Refused`."""
        self.usage.end_idle()
        try:
            self._send_request(request, receiver)
        except BaseException:
            self._observer.worker_freed(self)
            raise

    def unsubscribe(self, receiver: Receiver) -> None:
        """End such a part."""
        self._cancel_request(receiver)
        self._observer.worker_freed(self)

    def _send_request(
        self, request: ModernRequest, receiver: Receiver, *, own: bool = False
    ) -> None:
        line = self._requests.send_to_backend(request, receiver, own=own)
        try:
            self.session.send_to_backend_for(receiver.caller, [line])
        except UnknownSession:
            self._requests.undo(receiver)
            raise self.ended_error() from None
        except BaseException:
            self._requests.undo(receiver)
            raise

    def _cancel_request(self, receiver: Receiver) -> None:
        """Have the server stop working on a request, if it still does."""
        line = self._requests.cancel(receiver)
        if line is not None:
            self._unsent.append(line)
            self._send_cancellations()

    def _send_cancellations(self) -> None:
        """Send what fits into the pipe, and the rest later: others wait for responses."""
        self._retry.stop()
        while self._unsent:
            try:
                self.session.backend.send(self._unsent[0])
            except BackendBusy:
                self._retry.start(SAY_AGAIN_SECONDS, self._send_cancellations)
                return
            except UnknownSession:
                self._unsent.clear()
                return
            self._unsent.popleft()

    # Worker: what an exchange calls.

    def cancel(self, exchange: Exchange) -> None:
        """Have the server stop working on a request: the client has gone."""
        self._cancel_request(exchange)
        self._observer.worker_freed(self)

    def pause(self, exchange: Exchange) -> None:
        """Do nothing: others must not wait for one client, whose response is bounded."""

    def resume(self, exchange: Exchange) -> None:
        """Do nothing: nothing was paused."""

    def caller_of(self, line: bytes) -> Caller | None:
        """Return the client that a line of the process is for, before it is sent."""
        receiver = self._requests.tag_of(line)
        return None if receiver is None else receiver.caller

    # Sink: what its session calls.

    @property
    def has_reader(self) -> bool:
        """Whether any request or subscription is open."""
        return self._requests.has_open()

    def send(self, lines: list[bytes]) -> None:
        """Deliver messages of the process, each to whom it is for."""
        freed = False
        if self._unsent:
            self._send_cancellations()
        for line in lines:
            delivery = self._requests.from_backend(line)
            if delivery is not None:
                receiver, told, final = delivery
                freed = freed or final
                try:
                    receiver.deliver([told], final)
                except Exception:
                    # The other clients get theirs all the same.
                    self._log.failure("a response failed; going on")
        if len(self.tasks):
            self._polling.begin()
        if freed:
            self._observer.worker_freed(self)

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """Return the only request that it has, as the bridge numbers it."""
        return self._requests.only_open

    def stop_keepalive(self) -> None:
        """Stop the timer that keeps the worker."""
        self.usage.stop()
        self._observer.worker_lost(self)

    def close(self) -> None:
        """Fail what has not been answered; subscriptions go on with another process."""
        self._retry.stop()
        self._polling.stop()
        if len(self.tasks):
            self.log.warn(
                "session {session} has ended with {count} tasks that were not over: {reason}",
                session=self.session.label,
                count=len(self.tasks),
                reason=self.session.reason,
            )
        for receiver in self._requests.clear():
            if isinstance(receiver, Exchange) and receiver.is_subscription:
                guarded(self._log, "subscribing again", self._observer.subscription_lost, receiver)
            else:
                guarded(self._log, "a response", receiver.fail, self.ended_error())
