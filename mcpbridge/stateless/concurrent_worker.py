"""
One process of a server that speaks MCP 2026-07-28, for several requests at
once.

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
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import SAY_AGAIN_SECONDS
from mcpbridge.errors import (
    INVALID_PARAMS,
    BackendBusy,
    BackendEnded,
    BackendFailed,
    Refused,
    UnknownSession,
)
from mcpbridge.guard import guarded
from mcpbridge.jsonrpc.envelope import JsonRpcId, peek
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
from mcpbridge.processes.era import OtherEra
from mcpbridge.stateless.exchange import (
    Exchange,
    ToolAnnotations,
    WorkerUsage,
    backend_ended,
    backend_failed,
)
from mcpbridge.timers import Timer

#: How often the tasks of a process are looked at; the bridge asks after one of them each time.
TASKS_SECONDS = 1.0


class Receiver(Hashable, Protocol):
    """Whose request it is: a client's `Exchange`, or the bridge itself."""

    @property
    def caller(self) -> Caller | None:
        """Who filters and observers are told it is."""
        ...

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Messages for it; with `final` the last one is the answer."""

    def fail(self, refusal: Refused) -> None:
        """There will be none."""


class _Own:
    """A request of the bridge's own; `answer` fires with the line, or fails with a `Refused`."""

    caller = None

    def __init__(self) -> None:
        self.answer: Deferred[bytes] = Deferred()

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Only the answer counts."""
        if final and not self.answer.called:
            self.answer.callback(lines[-1])

    def fail(self, refusal: Refused) -> None:
        """There will be none."""
        if not self.answer.called:
            self.answer.errback(refusal)


class _ToolsChanged:
    """The bridge's own subscription: what it knows of the tools is not true any more."""

    caller = None

    def __init__(self, process: ConcurrentWorker) -> None:
        self._process = process

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """Something has changed."""
        self._process.tools.changed()
        if final:
            self._process.watched = 0

    def fail(self, refusal: Refused) -> None:
        """The process has ended."""


class _TaskAsked:
    """The bridge's own `tasks/get`, so that a task that is over is not waited for."""

    caller = None

    def __init__(self, process: ConcurrentWorker, ident: str) -> None:
        self._process = process
        self._ident = ident

    def deliver(self, lines: list[bytes], final: bool) -> None:
        """The answer, which has been heeded, unless the server does not know the task."""
        if final:
            self._process.task_told(self._ident, lines[-1])

    def fail(self, refusal: Refused) -> None:
        """The process has ended."""


class _ErrorCode(msgspec.Struct):
    code: float


def _says_unknown(line: bytes) -> bool:
    envelope = peek(line)
    if envelope is None or isinstance(envelope.error, msgspec.UnsetType):
        return False
    try:
        return msgspec.json.decode(envelope.error, type=_ErrorCode).code == INVALID_PARAMS
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


class _Discovered(msgspec.Struct):
    supportedVersions: list[str]
    capabilities: dict[str, Any] = {}


class ConcurrentWorker:
    """
    One process; the stream of its session.

    `freed` is called when it has less to do, `lost` when it takes nothing
    more, and `orphaned` with each exchange that listened when it ended.
    """

    log = Logger()

    def __init__(
        self,
        session: BackendSession,
        identity: str,
        settings: ServerSettings,
        *,
        freed: Callable[[ConcurrentWorker], None],
        lost: Callable[[ConcurrentWorker], None],
        orphaned: Callable[[Exchange], None],
        known: KnownServer,
    ) -> None:
        self._known = known
        self.session = session
        self.identity = identity
        self.upkeep = WorkerUsage(session, settings)
        #: Requests that are about to be made.
        self.reserved = 0
        #: Its only request wants log messages, and nothing else would say whose they are.
        self.alone = False
        self.tools = ToolAnnotations(self._list_tools)
        #: How many subscriptions are the bridge's own.
        self.watched = 0
        self._settings = settings
        self._freed = freed
        self._lost = lost
        self._orphaned = orphaned
        self.tasks = Tasks(limit=settings.task_timeout, now=session.clock.seconds)
        #: Whether the server has said that it has tasks; None: it has not been asked.
        self.offers_tasks: bool | None = None
        self._requests: Multiplexer[Receiver] = Multiplexer(self.tasks, session.reached_nobody)
        #: How many of them are the bridge's own.
        self._own = 0
        #: Cancellations that it did not take yet.
        self._unsaid: deque[bytes] = deque(maxlen=CANCELLED_KEPT)
        #: When they are said, should it say nothing before.
        self._again = Timer(session.clock)
        #: While there are tasks: when they are looked at, and the question under way.
        self._task_timer = Timer(session.clock)
        self._minding = False
        self._task_asked: _TaskAsked | None = None
        #: It has not answered the bridge's own request: nobody else is to wait for it.
        self.hung = False

    @property
    def load(self) -> int:
        """How many requests of clients it works on, without those that listen."""
        return len(self._requests) - self._own + self.reserved

    @property
    def muddled(self) -> bool:
        """Whether nobody gets logs of it any more."""
        return self._requests.muddled

    @property
    def in_use(self) -> bool:
        """Whether anybody waits for anything of it."""
        return bool(self.load or len(self.tasks) or self._requests.listens > self.watched)

    async def open(self, patience: float) -> None:
        """
        Ask who it is, which also tells which era it is of.

        Raises `OtherEra` for an answer of an older server, and `Refused` for
        none, or one that is of no use.
        """
        try:
            envelope = peek(await self._ask("server/discover", {}, patience))
        except BackendEnded:
            raise backend_failed(self.session, self._settings) from None
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
            self._watch_tools()

    async def _list_tools(self, cursor: str | None) -> msgspec.Raw:
        params: dict[str, object] = {} if cursor is None else {"cursor": cursor}
        envelope = peek(await self._ask("tools/list", params, self._settings.start_timeout))
        if envelope is None or isinstance(envelope.result, msgspec.UnsetType):
            # It has none, or does not want to say: so there are no rules.
            return msgspec.Raw(b"{}")
        return envelope.result

    def ask(self, exchange: Exchange) -> None:
        """Send a client's request.  Raises `Refused`."""
        exchange.assign(self)
        self._send(exchange.request, exchange)
        if not exchange.listens:
            self.upkeep.served += 1

    def ask_task(self, exchange: Exchange, ident: str) -> None:
        """
        Send a client's request about a task of this process, by the server's
        own id.  Whoever asks again and again does not wear it out.  Raises `Refused`.
        """
        exchange.assign(self)
        self._send(for_owner(exchange.request, ident), exchange)

    async def _ask(self, method: str, params: dict[str, object], patience: float) -> bytes:
        own = _Own()
        self._send(own_request(method, params), own)
        self._own += 1
        own.answer.addTimeout(patience, self.session.clock)
        try:
            return await own.answer
        except defer.TimeoutError:
            self.hung = True
            raise BackendFailed(f"no answer to `{method}` in {patience:g} s") from None
        finally:
            # Where there was none, nobody waits for it any more.
            self._withdraw(own)
            self._own -= 1

    def listen(self, request: ModernRequest, receiver: Receiver) -> None:
        """Send a `subscriptions/listen` that is a part of a client's.  Raises `Refused`."""
        self.upkeep.wake()
        try:
            self._send(request, receiver)
        except BaseException:
            self._freed(self)
            raise

    def leave(self, receiver: Receiver) -> None:
        """Nobody listens there any more."""
        self._withdraw(receiver)
        self._freed(self)

    def _send(self, request: ModernRequest, receiver: Receiver, *, own: bool = False) -> None:
        line = self._requests.ask(request, receiver, own=own)
        try:
            self.session.messages_of(receiver.caller, [line])
        except UnknownSession:
            self._requests.undo(receiver)
            raise backend_ended(self.session, self._settings) from None
        except BaseException:
            self._requests.undo(receiver)
            raise

    def _withdraw(self, receiver: Receiver) -> None:
        """The server is to stop working on a request, where it does."""
        line = self._requests.cancel(receiver)
        if line is not None:
            self._unsaid.append(line)
            self._say()

    def _say(self) -> None:
        """What it does not read just now is said later: others wait for its answers."""
        self._again.stop()
        while self._unsaid:
            try:
                self.session.backend.send(self._unsaid[0])
            except BackendBusy:
                self._again.start(SAY_AGAIN_SECONDS, self._say)
                return
            except UnknownSession:
                self._unsaid.clear()
                return
            self._unsaid.popleft()

    def _watch_tools(self) -> None:
        params: dict[str, object] = {"notifications": {"toolsListChanged": True}}
        self.watched = 1
        try:
            self._send(own_request(LISTEN, params), _ToolsChanged(self))
        except Refused:
            self.watched = 0
            self.log.warn("the tools of {label} are not watched", label=self.session.label)

    # Tasks.

    def _mind_tasks(self) -> None:
        """Look at the tasks now and then, as long as there are any."""
        self._minding = True
        self._task_timer.start(TASKS_SECONDS, self._look_at_tasks)

    def _look_at_tasks(self) -> None:
        """Let go what has kept the process for long enough, or ask after one task."""
        self.tasks.expire()
        ident = None if self._task_asked is not None else self.tasks.to_ask()
        if ident is not None:
            self._ask_after(ident)
        if len(self.tasks):
            self._mind_tasks()
        else:
            self._minding = False
            self._freed(self)

    def _ask_after(self, ident: str) -> None:
        asked = _TaskAsked(self, ident)
        request = own_request("tasks/get", {"taskId": ident}, {TASKS: {}})
        try:
            self._send(request, asked, own=True)
        except Refused:
            # It is busy, or ends: asked again, or not.
            return
        self._task_asked = asked
        self._own += 1

    def task_told(self, ident: str, line: bytes) -> None:
        """The server has answered what the bridge asked of a task."""
        self._task_asked = None
        self._own -= 1
        if _says_unknown(line):
            self.tasks.forget(ident)

    # What an exchange asks: Worker.

    def cancel(self, exchange: Exchange) -> None:
        """The client has gone: the server is to stop working on its request."""
        self._withdraw(exchange)
        self._freed(self)

    def pause(self, exchange: Exchange) -> None:
        """Others need not wait for one that does not keep up: its response is bounded."""

    def resume(self, exchange: Exchange) -> None:
        """Nothing was paused."""

    def caller_of(self, line: bytes) -> Caller | None:
        """Whose a line of the process is, before it is sent."""
        receiver = self._requests.whose(line)
        return None if receiver is None else receiver.caller

    # What its session asks: Stream.

    @property
    def has_reader(self) -> bool:
        """Whether any request is open, or anybody listens."""
        return bool(len(self._requests) or self._requests.listens)

    def send(self, lines: list[bytes]) -> None:
        """Messages of the process, each for whom it is."""
        freed = False
        if self._unsaid:
            self._say()
        for line in lines:
            delivery = self._requests.from_backend(line)
            if delivery is not None:
                receiver, told, final = delivery
                freed = freed or final
                guarded(self.log, "a response", receiver.deliver, [told], final)
        if not self._minding and len(self.tasks):
            self._mind_tasks()
        if freed:
            self._freed(self)

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """The only request that it has, as the bridge numbers it."""
        return self._requests.only_open

    def stop_keepalive(self) -> None:
        """It is not used any more."""
        self.upkeep.wake()
        self._lost(self)

    def close(self) -> None:
        """What was asked has no answer; who listens is listened for elsewhere."""
        self._again.stop()
        self._task_timer.stop()
        if len(self.tasks):
            self.log.warn(
                "session {label} has ended with {count} tasks that were not over: {why}",
                label=self.session.label,
                count=len(self.tasks),
                why=self.session.reason,
            )
        for receiver in self._requests.clear():
            if isinstance(receiver, Exchange) and receiver.listens:
                guarded(self.log, "listening anew", self._orphaned, receiver)
            else:
                error = backend_ended(self.session, self._settings)
                guarded(self.log, "a response", receiver.fail, error)
