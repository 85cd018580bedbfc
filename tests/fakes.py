"""
Fake servers of both eras in memory, and clients of MCP 2026-07-28 in front of them.

The arguments of a tool call say what the tool does, and name a token that each
message of the call has, so that a client can recognise its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.auth.access import Access
from mcpbridge.config.settings import ServerSettings, share_of
from mcpbridge.errors import MessageRefused, Refused, UnknownSession
from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.jsonrpc.parsed_message import with_envelope
from mcpbridge.mcp.modern_request import PREFIX, TASKS, read_request
from mcpbridge.processes.address_shares import Claims, Shares
from mcpbridge.processes.backend_session import NO_VARIABLES, BackendSession
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.era import ServerEra
from mcpbridge.processes.permits import CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.dispatcher import StatelessDispatcher
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.testing import FakeBackend, FakeLauncher

VERSION = "2026-07-28"
#: The capabilities of a client, unless a test gives others.
CAPABILITIES: dict[str, Any] = {"elicitation": {"form": {}}}
#: The same, and the tasks extension.
CAPABILITIES_WITH_TASKS: dict[str, Any] = {**CAPABILITIES, "extensions": {TASKS: {}}}


def no_jitter() -> float:
    """Return no jitter, so that each pause between failed starts is the shortest possible."""
    return 0.0


class ScriptedBackend(FakeBackend):
    """
    A server that handles each message in the next iteration of the reactor, and
    exits `stop_seconds` after it is stopped.  With `silent` it responds to nothing.
    """

    stop_seconds = 0.5
    capabilities: ClassVar[dict[str, Any]] = {"tools": {}, "logging": {}}

    def __init__(self, receiver: Any, label: str, clock: Clock) -> None:
        super().__init__(receiver, label)
        self.clock = clock
        self.received: list[dict[str, Any]] = []
        self.silent = False
        self.ended = False
        #: The arguments of running calls, by their ids.
        self.calls: dict[Any, dict[str, Any]] = {}
        #: The `params` of the latest call.
        self.params: dict[str, Any] = {}

    def send(self, line: bytes) -> None:
        if self.ended:
            raise UnknownSession("it takes nothing more")
        super().send(line)
        for each in line.split(b"\n"):
            self.clock.callLater(0, self._receive, json.loads(each))

    def stop(self) -> Deferred[None]:
        if not self.ended or "stop" not in self.events:
            self.clock.callLater(self.stop_seconds, self._stopped)
        self.ended = True
        return super().stop()

    def _stopped(self) -> None:
        if not self.stopped.called:
            self.stopped.callback(None)

    def _receive(self, message: dict[str, Any]) -> None:
        self.received.append(message)
        if self.silent or self.ended:
            return
        method = message.get("method")
        if method is None:
            self.response_received(message)
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

    # Output.

    def write(self, *messages: dict[str, Any]) -> None:
        """Write messages to stdout; the bridge gets them in one read."""
        if not self.ended:
            lines = [json.dumps({"jsonrpc": "2.0", **each}).encode() for each in messages]
            self.receiver.messages_received(lines)

    def respond(self, ident: Any, result: dict[str, Any]) -> None:
        self.calls.pop(ident, None)
        self.write({"id": ident, "result": result})

    def respond_with_error(self, ident: Any, code: int = -32601) -> None:
        self.calls.pop(ident, None)
        self.write({"id": ident, "error": {"code": code, "message": "no"}})

    def close_input(self) -> None:
        """Close stdin, but not stdout."""
        self.ended_input = True
        self.receiver.input_closed("the backend closed its stdin")

    def die(self, *_: Any) -> None:
        if not self.ended:
            self.receiver.output_closed("it died")

    # Reactions to messages.

    def response_received(self, message: dict[str, Any]) -> None:
        """Handle a response to a request of the server."""

    def tools_list(self, message: dict[str, Any]) -> None:
        schema = {"type": "object"}
        self.respond(message["id"], {"tools": [{"name": "t", "inputSchema": schema}]})

    def echo(self, ident: Any, arguments: dict[str, Any]) -> None:
        self.respond(ident, {"content": [], "token": arguments["token"]})

    def wait(self, ident: Any, arguments: dict[str, Any]) -> None:
        """Do not respond until `finish` is called."""

    def finish(self, token: str) -> None:
        """Respond to the waiting call with this token."""
        for ident, arguments in list(self.calls.items()):
            if arguments["token"] == token:
                self.echo(ident, arguments)


class Legacy(ScriptedBackend):
    """A server of 2025-11-25."""

    #: If False, the server never responds to cancelled requests.
    answers_cancelled = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.open_requests: dict[str, Any] = {}
        self._questions = 0

    def discover(self, message: dict[str, Any]) -> None:
        self.respond_with_error(message["id"])

    def initialize(self, message: dict[str, Any]) -> None:
        info = {"name": "old", "version": "1"}
        told = {"protocolVersion": "2025-11-25", "capabilities": self.capabilities}
        self.respond(message["id"], {**told, "serverInfo": info})

    def resources_subscribe(self, message: dict[str, Any]) -> None:
        self.respond(message["id"], {})

    resources_unsubscribe = resources_subscribe
    logging_setLevel = resources_subscribe

    def ask(self, ident: Any, arguments: dict[str, Any]) -> None:
        """Send the client an elicitation that asks for its token."""
        self._questions += 1
        question = f"q{self._questions}"
        self.open_requests[question] = ident
        params = {"message": arguments["token"], "requestedSchema": {"type": "object"}}
        self.write({"id": question, "method": "elicitation/create", "params": params})

    def response_received(self, message: dict[str, Any]) -> None:
        ident = self.open_requests.pop(message["id"], None)
        if ident in self.calls:
            given = message.get("result", {}).get("content", {}).get("token")
            self.respond(ident, {"token": self.calls[ident]["token"], "given": given})

    def on_cancelled(self, message: dict[str, Any]) -> None:
        ident = message["params"]["requestId"]
        if self.answers_cancelled and ident in self.calls:
            self.respond_with_error(ident, 0)


class Modern(ScriptedBackend):
    """A server of 2026-07-28."""

    def discover(self, message: dict[str, Any]) -> None:
        told = {"supportedVersions": [VERSION], "capabilities": self.capabilities}
        self.respond(message["id"], {"resultType": "complete", **told})

    def initialize(self, message: dict[str, Any]) -> None:
        data = {"supported": [VERSION]}
        self.write({"id": message["id"], "error": {"code": -32022, "message": "no", "data": data}})

    def subscriptions_listen(self, message: dict[str, Any]) -> None:
        self.notify(message["id"], "notifications/subscriptions/acknowledged")

    def notify(self, subscription: Any, method: str) -> None:
        meta = {PREFIX + "subscriptionId": subscription}
        self.write({"method": method, "params": {"_meta": meta}})

    def ask(self, ident: Any, arguments: dict[str, Any]) -> None:
        """Ask the client for its token with an `input_required` result."""
        token = arguments["token"]
        if self.params.get("requestState") == f"state of {token}":
            [given] = self.params["inputResponses"].values()
            self.respond(ident, {"token": token, "given": given["content"]["token"]})
            return
        asked = {"method": "elicitation/create", "params": {"message": token}}
        told = {"inputRequests": {"q": asked}, "requestState": f"state of {token}"}
        self.respond(ident, {"resultType": "input_required", **told})

    def on_cancelled(self, message: dict[str, Any]) -> None:
        self.calls.pop(message["params"]["requestId"], None)


class WithTasks(Modern):
    """A server whose tool may start a task; the tasks of each process have the ids 1, 2, ..."""

    capabilities: ClassVar[dict[str, Any]] = {"tools": {}, "extensions": {TASKS: {}}}
    ttl_ms: ClassVar[Any] = 900_000

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: The tasks, by their ids.
        self.tasks: dict[str, dict[str, Any]] = {}
        #: The task ids of each subscription.
        self.subscriptions: dict[Any, list[str]] = {}

    def task(self, ident: Any, arguments: dict[str, Any]) -> None:
        """Start a task that has the token."""
        name = str(len(self.tasks) + 1)
        times = {"createdAt": "2026-11-29T00:00:00Z", "lastUpdatedAt": "2026-11-29T00:00:00Z"}
        task = {"taskId": name, "status": "working", **times, "ttlMs": self.ttl_ms}
        self.tasks[name] = {**task, "token": arguments["token"]}
        self.respond(ident, {"resultType": "task", **task})
        if "seconds" in arguments:
            self.clock.callLater(arguments["seconds"], self.complete, name)

    def complete(self, name: str, status: str = "completed") -> None:
        """End a task, and notify its subscribers."""
        self.tasks[name].update(status=status, result={"content": []})
        for subscription, names in self.subscriptions.items():
            if name in names:
                meta = {PREFIX + "subscriptionId": subscription}
                self.write(
                    {"method": "notifications/tasks", "params": {"_meta": meta, **self.tasks[name]}}
                )

    def tasks_get(self, message: dict[str, Any]) -> None:
        task = self.tasks.get(message["params"]["taskId"])
        if task is None:
            self.respond_with_error(message["id"], -32602)
        else:
            self.respond(message["id"], {"resultType": "complete", **task})

    def tasks_update(self, message: dict[str, Any]) -> None:
        self.tasks[message["params"]["taskId"]].update(got=message["params"]["inputResponses"])
        self.respond(message["id"], {"resultType": "complete"})

    def tasks_cancel(self, message: dict[str, Any]) -> None:
        self.respond(message["id"], {"resultType": "complete"})
        self.complete(message["params"]["taskId"], "cancelled")

    def subscriptions_listen(self, message: dict[str, Any]) -> None:
        wanted = message["params"]["notifications"]
        self.subscriptions[message["id"]] = wanted.get("taskIds", [])
        params = {"_meta": {PREFIX + "subscriptionId": message["id"]}, "notifications": wanted}
        self.write({"method": "notifications/subscriptions/acknowledged", "params": params})

    def on_cancelled(self, message: dict[str, Any]) -> None:
        super().on_cancelled(message)
        self.subscriptions.pop(message["params"]["requestId"], None)


class Launcher(FakeLauncher):
    """Launches servers of one kind, at once or, with `delays_launches`, on `finish`."""

    def __init__(self, clock: Clock, kind: type[ScriptedBackend]) -> None:
        super().__init__()
        self.clock = clock
        self.kind = kind
        self.delays_launches = False
        self.silent = False
        self.waiting: list[tuple[Deferred[Any], ScriptedBackend]] = []

    def launch(self, receiver: Any, label: str) -> Deferred[Any]:
        launched: Deferred[Any] = Deferred()
        if self.error is not None:
            launched.errback(Failure(self.error))
            return launched
        backend = self.kind(receiver, label, self.clock)
        backend.silent = self.silent
        self.backends.append(backend)
        if self.delays_launches:
            self.waiting.append((launched, backend))
        else:
            launched.callback(backend)
        return launched

    def finish(self) -> None:
        launched, backend = self.waiting.pop(0)
        launched.callback(backend)


class Call:
    """A client's request, and everything the client received for it; an `Outlet`."""

    def __init__(
        self,
        world: World,
        message: dict[str, Any],
        identity: str,
        connection: ClientConnection | None = None,
        environment: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        line = json.dumps(message).encode()
        envelope = peek(line)
        assert envelope is not None
        request = read_request(with_envelope(line, envelope), version_header=VERSION)
        self.world = world
        self.message = message
        self.lines: list[Any] = []
        self.completions = 0
        self.refusal: Refused | None = None
        self.disconnected = False
        self.exchange = Exchange(
            request,
            Access(key=identity, environment=environment),
            self,
            connection,
            client=world.client,
            caller=world.caller,
        )
        self.failure: Failure | None = None
        self.deferred = Deferred.fromCoroutine(self._ask()).addErrback(self._failed)

    async def _ask(self) -> None:
        waiting = self.world.stateless.ask(self.exchange, lambda _: [])
        if waiting is not None:
            await waiting

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, Refused):
            self.exchange.fail(failure.value)
        else:
            self.failure = failure
            failure.trap(CancelledError)

    def send(self, lines: list[bytes], final: bool) -> None:
        assert not self.completions
        assert not self.disconnected
        self.lines += map(json.loads, lines)
        self.completions += final

    def fail(self, refusal: Refused) -> None:
        assert not self.completions
        assert not self.disconnected
        self.refusal = refusal
        self.completions += 1

    def disconnect(self, *, aborted: bool = True) -> Call:
        """Disconnect the client; with `aborted`, also cancel the coroutine of the request."""
        if not self.completions:
            self.disconnected = True
            self.exchange.cancel()
            if aborted:
                self.deferred.cancel()
        return self

    @property
    def result(self) -> Any:
        assert self.refusal is None, self.refusal
        assert self.completions == 1
        return self.lines[-1]["result"]

    @property
    def elicitation_message(self) -> str:
        """The message of the elicitation, which is the token."""
        assert self.result["resultType"] == "input_required"
        [question] = self.result["inputRequests"].values()
        return str(question["params"]["message"])

    def retry(
        self, given: str = "", connection: ClientConnection | None = None, **changes: Any
    ) -> Call:
        """
        Send the request again with a response to each input request, on the same
        connection unless another one is given.
        """
        answer = {"action": "accept", "content": {"token": given}}
        params = {
            **self.message["params"],
            "inputResponses": dict.fromkeys(self.result["inputRequests"], answer),
            "requestState": self.result["requestState"],
            **changes,
        }
        message = {**self.message, "params": params}
        own = self.exchange
        return Call(
            self.world, message, own.identity, connection or own.connection, own.access.environment
        )


class World:
    """
    A server with its limits and its clock.

    `known`: its era is known from the start.  `beside`: another server of the same
    bridge.  `watcher`: a message filter that is also an observer.
    """

    def __init__(
        self,
        kind: type[ScriptedBackend],
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
        command = "" if "url" in changes else "x"
        self.settings = ServerSettings(command=command, max_sessions=limit, reuse=reuse, **changes)
        #: The client address of the next requests.
        self.client: str | None = None
        #: The caller of the next requests.
        self.caller: Caller | None = None
        self.shares = Shares(
            share_of(limit, self.settings.max_sessions_per_address),
            self.clock,
            what="sessions",
            setting="max_sessions_per_address",
        )
        claims = Claims(self.shares)
        #: The pools of all servers.
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
        capabilities: Any = CAPABILITIES,
        level: str | None = None,
        info: Any = None,
        connection: ClientConnection | None = None,
        environment: Mapping[str, str] = NO_VARIABLES,
    ) -> Call:
        self._ids += 1
        meta = {PREFIX + "protocolVersion": VERSION, PREFIX + "clientCapabilities": capabilities}
        if info is not None:
            meta[PREFIX + "clientInfo"] = info
        if level is not None:
            meta[PREFIX + "logLevel"] = level
        params = {"_meta": meta, **(params or {})}
        message = {"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params}
        # A string of its own for each request, as from HTTP.
        return Call(self, message, identity and f"caller {identity}", connection, environment)

    def call(self, token: str, do: str = "echo", **options: Any) -> Call:
        """Call the tool `t`, which does what `do` names."""
        arguments = {"token": token, "do": do}
        return self.request("tools/call", {"name": "t", "arguments": arguments}, **options)

    def listen(self, **options: Any) -> Call:
        wanted = {"toolsListChanged": True, "resourceSubscriptions": ["file:///a"]}
        return self.request("subscriptions/listen", {"notifications": wanted}, **options)

    def run(self, seconds: float = 0.0) -> None:
        """Run what is due; then, with `seconds`, let them pass and do the same again."""
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
        """Stop, and check that no permit and no delayed call is left."""
        self.stop()
        self.run(1)
        assert self.limiter.taken == 0
        assert self.bridge_limiter.taken == 0
        assert self.clock.getDelayedCalls() == []


class Filter:
    """A filter that refuses messages with the word `forbidden`."""

    def from_client(self, session: object, line: bytes) -> bytes:
        return self._checked(line)

    def from_backend(self, session: object, line: bytes) -> bytes:
        return line

    def _checked(self, line: bytes) -> bytes:
        if b"forbidden" in line:
            raise MessageRefused("refused")
        return line


class CleanupTable(dict[Any, Any]):
    """A `Cleanup` in which each owner has one record, and drops it once."""

    def add(self, owner: int | str, record: Any) -> bool:
        self[owner] = record
        return True

    def drop(self, owner: int | str, record: Any = None) -> object:
        return self.pop(owner)
