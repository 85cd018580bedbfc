"""
Servers in memory that answer, and callers of MCP 2026-07-28 before them.

What a tool does is said in its arguments: each call names a token, and
whatever comes of the call bears it, so that a caller can tell its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings, share_of
from mcpbridge.errors import MessageRefused, Refused, UnknownSession
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.jsonrpc.parsed_message import with_envelope
from mcpbridge.mcp.modern_request import PREFIX, TASKS, read_request
from mcpbridge.processes.address_shares import Claims, Shares
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.era import ServerEra
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.dispatcher import StatelessDispatcher
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.testing import FakeBackend, FakeLauncher

VERSION = "2026-07-28"
#: What a caller can do, unless it says otherwise.
ABLE: dict[str, Any] = {"elicitation": {"form": {}}}
#: The same, and take tasks for answers.
ABLE_TASKS: dict[str, Any] = {**ABLE, "extensions": {TASKS: {}}}


def no_jitter() -> float:
    """Let each pause between failed starts be the shortest."""
    return 0.0


class Scripted(FakeBackend):
    """
    A process that hears each message in the next turn, and is gone
    `stop_seconds` after it was told to end.  With `mute` it answers nothing.
    """

    stop_seconds = 0.5
    capabilities: ClassVar[dict[str, Any]] = {"tools": {}, "logging": {}}

    def __init__(self, receiver: Any, label: str, clock: Clock) -> None:
        super().__init__(receiver, label)
        self.clock = clock
        self.heard: list[dict[str, Any]] = []
        self.mute = False
        self.ended = False
        #: Calls under way: their arguments, by their ids.
        self.calls: dict[Any, dict[str, Any]] = {}
        #: The parameters of the last one.
        self.params: dict[str, Any] = {}

    def send(self, line: bytes) -> None:
        if self.ended:
            raise UnknownSession("it takes nothing more")
        super().send(line)
        for each in line.split(b"\n"):
            self.clock.callLater(0, self._hear, json.loads(each))

    def stop(self) -> Deferred[None]:
        if not self.ended or "stop" not in self.events:
            self.clock.callLater(self.stop_seconds, self._stopped)
        self.ended = True
        return super().stop()

    def _stopped(self) -> None:
        if not self.stopped.called:
            self.stopped.callback(None)

    def _hear(self, message: dict[str, Any]) -> None:
        self.heard.append(message)
        if self.mute or self.ended:
            return
        method = message.get("method")
        if method is None:
            self.answered(message)
        elif method == "tools/call":
            arguments = message["params"].get("arguments", {})
            self.calls[message["id"]] = arguments
            self.params = message["params"]
            getattr(self, arguments.get("do", "echo"))(message["id"], arguments)
        else:
            name = method.replace("/", "_").replace("server_", "").replace("notifications_", "on_")
            step: Callable[[Any], None] | None = getattr(self, name, None)
            if step is not None:
                step(message)

    # What it says.

    def say(self, *messages: dict[str, Any]) -> None:
        """All in one piece."""
        if not self.ended:
            lines = [json.dumps({"jsonrpc": "2.0", **each}).encode() for each in messages]
            self.receiver.messages_received(lines)

    def answer(self, ident: Any, result: dict[str, Any]) -> None:
        self.calls.pop(ident, None)
        self.say({"id": ident, "result": result})

    def refuse(self, ident: Any, code: int = -32601) -> None:
        self.calls.pop(ident, None)
        self.say({"id": ident, "error": {"code": code, "message": "no"}})

    def close_input(self) -> None:
        """It takes nothing more, but may still say something."""
        self.ended_input = True
        self.receiver.input_closed("the backend closed its stdin")

    def die(self, *_: Any) -> None:
        if not self.ended:
            self.receiver.output_closed("it died")

    # What it does.

    def answered(self, message: dict[str, Any]) -> None:
        """An answer to its own question."""

    def tools_list(self, message: dict[str, Any]) -> None:
        schema = {"type": "object"}
        self.answer(message["id"], {"tools": [{"name": "t", "inputSchema": schema}]})

    def echo(self, ident: Any, arguments: dict[str, Any]) -> None:
        self.answer(ident, {"content": [], "token": arguments["token"]})

    def wait(self, ident: Any, arguments: dict[str, Any]) -> None:
        """Until told to answer."""

    def finish(self, token: str) -> None:
        """Answer a call that waits."""
        for ident, arguments in list(self.calls.items()):
            if arguments["token"] == token:
                self.echo(ident, arguments)


class Legacy(Scripted):
    """A server of 2025-11-25."""

    #: Whether it answers what was cancelled.
    polite = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: dict[str, Any] = {}
        self._questions = 0

    def discover(self, message: dict[str, Any]) -> None:
        self.refuse(message["id"])

    def initialize(self, message: dict[str, Any]) -> None:
        info = {"name": "old", "version": "1"}
        told = {"protocolVersion": "2025-11-25", "capabilities": self.capabilities}
        self.answer(message["id"], {**told, "serverInfo": info})

    def resources_subscribe(self, message: dict[str, Any]) -> None:
        self.answer(message["id"], {})

    resources_unsubscribe = resources_subscribe
    logging_setLevel = resources_subscribe

    def ask(self, ident: Any, arguments: dict[str, Any]) -> None:
        """Ask the caller for its token."""
        self._questions += 1
        question = f"q{self._questions}"
        self.asked[question] = ident
        params = {"message": arguments["token"], "requestedSchema": {"type": "object"}}
        self.say({"id": question, "method": "elicitation/create", "params": params})

    def answered(self, message: dict[str, Any]) -> None:
        ident = self.asked.pop(message["id"], None)
        if ident in self.calls:
            given = message.get("result", {}).get("content", {}).get("token")
            self.answer(ident, {"token": self.calls[ident]["token"], "given": given})

    def on_cancelled(self, message: dict[str, Any]) -> None:
        ident = message["params"]["requestId"]
        if self.polite and ident in self.calls:
            self.refuse(ident, 0)


class Modern(Scripted):
    """A server of 2026-07-28."""

    def discover(self, message: dict[str, Any]) -> None:
        told = {"supportedVersions": [VERSION], "capabilities": self.capabilities}
        self.answer(message["id"], {"resultType": "complete", **told})

    def initialize(self, message: dict[str, Any]) -> None:
        data = {"supported": [VERSION]}
        self.say({"id": message["id"], "error": {"code": -32022, "message": "no", "data": data}})

    def subscriptions_listen(self, message: dict[str, Any]) -> None:
        self.note(message["id"], "notifications/subscriptions/acknowledged")

    def note(self, subscription: Any, method: str) -> None:
        meta = {PREFIX + "subscriptionId": subscription}
        self.say({"method": method, "params": {"_meta": meta}})

    def ask(self, ident: Any, arguments: dict[str, Any]) -> None:
        """Ask the caller for its token; all it has to remember is in the state."""
        token = arguments["token"]
        if self.params.get("requestState") == f"state of {token}":
            [given] = self.params["inputResponses"].values()
            self.answer(ident, {"token": token, "given": given["content"]["token"]})
            return
        asked = {"method": "elicitation/create", "params": {"message": token}}
        told = {"inputRequests": {"q": asked}, "requestState": f"state of {token}"}
        self.answer(ident, {"resultType": "input_required", **told})

    def on_cancelled(self, message: dict[str, Any]) -> None:
        self.calls.pop(message["params"]["requestId"], None)


class WithTasks(Modern):
    """A server whose tool may begin a task; the tasks of each process are called 1, 2, ..."""

    capabilities: ClassVar[dict[str, Any]] = {"tools": {}, "extensions": {TASKS: {}}}
    ttl_ms: ClassVar[Any] = 900_000

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: The tasks, by their ids.
        self.tasks: dict[str, dict[str, Any]] = {}
        #: The streams that are about tasks.
        self.listens: dict[Any, list[str]] = {}

    def task(self, ident: Any, arguments: dict[str, Any]) -> None:
        """Begin a task that has a token."""
        name = str(len(self.tasks) + 1)
        times = {"createdAt": "2026-11-29T00:00:00Z", "lastUpdatedAt": "2026-11-29T00:00:00Z"}
        task = {"taskId": name, "status": "working", **times, "ttlMs": self.ttl_ms}
        self.tasks[name] = {**task, "token": arguments["token"]}
        self.answer(ident, {"resultType": "task", **task})
        if "seconds" in arguments:
            self.clock.callLater(arguments["seconds"], self.complete, name)

    def complete(self, name: str, status: str = "completed") -> None:
        """End a task, and tell who listens."""
        self.tasks[name].update(status=status, result={"content": []})
        for subscription, names in self.listens.items():
            if name in names:
                meta = {PREFIX + "subscriptionId": subscription}
                self.say(
                    {"method": "notifications/tasks", "params": {"_meta": meta, **self.tasks[name]}}
                )

    def tasks_get(self, message: dict[str, Any]) -> None:
        task = self.tasks.get(message["params"]["taskId"])
        if task is None:
            self.refuse(message["id"], -32602)
        else:
            self.answer(message["id"], {"resultType": "complete", **task})

    def tasks_update(self, message: dict[str, Any]) -> None:
        self.tasks[message["params"]["taskId"]].update(got=message["params"]["inputResponses"])
        self.answer(message["id"], {"resultType": "complete"})

    def tasks_cancel(self, message: dict[str, Any]) -> None:
        self.answer(message["id"], {"resultType": "complete"})
        self.complete(message["params"]["taskId"], "cancelled")

    def subscriptions_listen(self, message: dict[str, Any]) -> None:
        wanted = message["params"]["notifications"]
        self.listens[message["id"]] = wanted.get("taskIds", [])
        params = {"_meta": {PREFIX + "subscriptionId": message["id"]}, "notifications": wanted}
        self.say({"method": "notifications/subscriptions/acknowledged", "params": params})

    def on_cancelled(self, message: dict[str, Any]) -> None:
        super().on_cancelled(message)
        self.listens.pop(message["params"]["requestId"], None)


class Launcher(FakeLauncher):
    """Gives servers of one kind, at once or when told to."""

    def __init__(self, clock: Clock, kind: type[Scripted]) -> None:
        super().__init__()
        self.clock = clock
        self.kind = kind
        self.slow = False
        self.mute = False
        self.waiting: list[tuple[Deferred[Any], Scripted]] = []

    def launch(self, receiver: Any, label: str) -> Deferred[Any]:
        launched: Deferred[Any] = Deferred()
        if self.error is not None:
            launched.errback(Failure(self.error))
            return launched
        backend = self.kind(receiver, label, self.clock)
        backend.mute = self.mute
        self.backends.append(backend)
        if self.slow:
            self.waiting.append((launched, backend))
        else:
            launched.callback(backend)
        return launched

    def finish(self) -> None:
        launched, backend = self.waiting.pop(0)
        launched.callback(backend)


class Call:
    """A request, and all that came of it; an `Outlet`."""

    def __init__(
        self,
        world: World,
        message: dict[str, Any],
        identity: str,
        connection: ClientConnection | None = None,
    ) -> None:
        line = json.dumps(message).encode()
        envelope = peek(line)
        assert envelope is not None
        request = read_request(with_envelope(line, envelope), version_header=VERSION)
        self.world = world
        self.message = message
        self.lines: list[Any] = []
        self.ends = 0
        self.refusal: Refused | None = None
        self.gone = False
        self.exchange = Exchange(
            request, identity, self, connection, client=world.client, caller=world.caller
        )
        self.failure: Failure | None = None
        asking = world.stateless.ask(self.exchange, lambda _: [])
        self.deferred = Deferred.fromCoroutine(asking).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, Refused):
            self.exchange.fail(failure.value)
        else:
            self.failure = failure
            failure.trap(CancelledError)

    def send(self, lines: list[bytes], final: bool) -> None:
        assert not self.ends
        assert not self.gone
        self.lines += map(json.loads, lines)
        self.ends += final

    def fail(self, refusal: Refused) -> None:
        assert not self.ends
        assert not self.gone
        self.refusal = refusal
        self.ends += 1

    def leave(self, *, aborted: bool = True) -> Call:
        """The client has gone, and with `aborted` nobody waits for what was to be done for it."""
        if not self.ends:
            self.gone = True
            self.exchange.cancel()
            if aborted:
                self.deferred.cancel()
        return self

    @property
    def result(self) -> Any:
        assert self.refusal is None, self.refusal
        assert self.ends == 1
        return self.lines[-1]["result"]

    @property
    def question(self) -> str:
        """What it is asked, which is its token."""
        assert self.result["resultType"] == "input_required"
        [question] = self.result["inputRequests"].values()
        return str(question["params"]["message"])

    def retry(
        self, given: str = "", connection: ClientConnection | None = None, **changes: Any
    ) -> Call:
        """
        Come back with an answer to all that is asked, on the same connection
        unless another one is given.
        """
        answer = {"action": "accept", "content": {"token": given}}
        params = {
            **self.message["params"],
            "inputResponses": dict.fromkeys(self.result["inputRequests"], answer),
            "requestState": self.result["requestState"],
            **changes,
        }
        message = {**self.message, "params": params}
        own = self.exchange.connection
        return Call(self.world, message, self.exchange.identity, connection or own)


class World:
    """
    A server, its limits and its time; `known`: which era it is of; `beside`:
    another server; `watcher`: a filter that is an observer too.
    """

    def __init__(
        self,
        kind: type[Scripted],
        limit: int = 4,
        *,
        known: bool = True,
        beside: World | None = None,
        reuse: str = "identity",
        watcher: Any = None,
        **changes: Any,
    ) -> None:
        self.clock: Clock = Clock() if beside is None else beside.clock
        self.launcher = Launcher(self.clock, kind)
        self.bridge_limiter: SessionLimiter = (
            SessionLimiter(1000) if beside is None else beside.bridge_limiter
        )
        self.limiter = SessionLimiter(limit)
        self.settings = ServerSettings(command="x", max_sessions=limit, reuse=reuse, **changes)
        #: The address whose requests are made now, and what each address has.
        self.client: str | None = None
        #: Who makes them.
        self.caller: Caller | None = None
        self.shares = Shares(
            share_of(limit, self.settings.max_sessions_per_address),
            self.clock,
            what="sessions",
            setting="max_sessions_per_address",
        )
        claims = Claims(self.shares)
        #: Those of all servers.
        self.pools: list[ProcessPool] = [] if beside is None else beside.pools
        self.pool = ProcessPool(
            self.settings,
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=CombinedLimiter(self.bridge_limiter, self.limiter),
            bridge_limiter=self.bridge_limiter,
            filters=[Filter()] if watcher is None else [watcher],
            observers=[] if watcher is None else [watcher],
            claims=claims,
            observer=self,
            pools=self.pools,
        )
        self.era = ServerEra()
        if known:
            self.era.modern = issubclass(kind, Modern)
        self.stateless = StatelessDispatcher(self.settings, self.clock, self.pool, self.era, claims)
        self._ids = 0

    def idle_process(self) -> BackendSession | None:
        return self.stateless.idle_process()

    def capacity_freed(self) -> None:
        self.stateless.capacity_freed()

    @property
    def backends(self) -> list[Any]:
        return list(self.launcher.backends)

    @property
    def live(self) -> list[Any]:
        return [each for each in self.backends if not each.ended]

    def request(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        identity: str = "",
        able: Any = ABLE,
        level: str | None = None,
        info: Any = None,
        connection: ClientConnection | None = None,
    ) -> Call:
        self._ids += 1
        meta = {PREFIX + "protocolVersion": VERSION, PREFIX + "clientCapabilities": able}
        if info is not None:
            meta[PREFIX + "clientInfo"] = info
        if level is not None:
            meta[PREFIX + "logLevel"] = level
        params = {"_meta": meta, **(params or {})}
        message = {"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params}
        return Call(self, message, identity, connection)

    def call(self, token: str, do: str = "echo", **options: Any) -> Call:
        """Call the tool."""
        arguments = {"token": token, "do": do}
        return self.request("tools/call", {"name": "t", "arguments": arguments}, **options)

    def listen(self, **options: Any) -> Call:
        wanted = {"toolsListChanged": True, "resourceSubscriptions": ["file:///a"]}
        return self.request("subscriptions/listen", {"notifications": wanted}, **options)

    def run(self, seconds: float = 0.0) -> None:
        """Some turns, then so much time, then some turns."""
        for _ in range(20):
            self.clock.advance(0)
        if seconds:
            self.clock.advance(seconds)
            self.run()

    def stop(self) -> None:
        self.pool.begin_stop()
        self.stateless.stop()
        self.pool.stop()
        self.run()

    def end(self) -> None:
        """Stop, and see that nothing is left."""
        self.stop()
        self.run(1)
        assert self.limiter.taken == 0
        assert self.bridge_limiter.taken == 0
        assert self.clock.getDelayedCalls() == []


class Filter:
    """Refuses one word."""

    def from_client(self, session: object, line: bytes) -> bytes:
        return self._checked(line)

    def from_backend(self, session: object, line: bytes) -> bytes:
        return line

    def _checked(self, line: bytes) -> bytes:
        if b"forbidden" in line:
            raise MessageRefused("refused")
        return line


class CleanupTable(dict[Any, Any]):
    """A `Cleanup` whose owners have one record each, and drop it once."""

    def add(self, owner: int | str, record: Any) -> bool:
        self[owner] = record
        return True

    def drop(self, owner: int | str, record: Any = None) -> object:
        return self.pop(owner)
