"""
A small stdio MCP server to try the bridge with: `python -m mcpbridge.demo`.

It knows the protocol but not the bridge, and imports only the standard
library.  It reads one JSON-RPC message a line from stdin, writes one a line to
stdout, and exits at the end of stdin.  The main thread answers all requests
except calls of a tool that waits: those run in threads of their own, so that
later requests are answered meanwhile, and a call can be cancelled.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

#: The revisions of the protocol, newest first.
REVISIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
#: Log levels, from the least to the most severe.
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
INVALID_REQUEST = -32600
INVALID_PARAMS = -32602

Message = dict[str, Any]
RequestId = str | int


class Fault(Exception):
    """Raised to answer a request with a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class CancelledCall(Exception):
    """The client has cancelled the call or is gone: nobody waits for an answer."""


@dataclass
class Call:
    """One call of a tool: what the tool may use besides its arguments."""

    server: Server
    progress_token: RequestId | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def progress(self, done: float, total: float) -> None:
        """Send a progress notification, if the client asked for progress."""
        if self.progress_token is not None:
            about = {"progressToken": self.progress_token, "progress": done, "total": total}
            self.server.send({"method": "notifications/progress", "params": about})

    def wait(self, seconds: float) -> None:
        """Wait; raise `CancelledCall` as soon as the call is cancelled."""
        if self.cancelled.wait(seconds):
            raise CancelledCall


@dataclass(frozen=True)
class Parameter:
    """An argument of a tool; optional if it has a default."""

    type: str
    description: str
    default: Any = None

    def schema(self) -> Message:
        """Return the parameter as JSON Schema."""
        schema = {"type": self.type, "description": self.description}
        return schema if self.default is None else {**schema, "default": self.default}

    def accepts(self, value: object) -> bool:
        """Return True if the value has this type; true and false are not numbers."""
        kinds: dict[str, Any] = {"string": str, "integer": int, "number": int | float}
        return isinstance(value, kinds[self.type]) and not isinstance(value, bool)


@dataclass(frozen=True)
class Tool:
    """A tool: `run` takes the call and the arguments, and returns the text of the result."""

    run: Callable[..., str]
    parameters: dict[str, Parameter]
    waits: bool

    def listed(self, name: str) -> Message:
        """Return the tool as `tools/list` shows it."""
        properties = {name: one.schema() for name, one in self.parameters.items()}
        required = [name for name, one in self.parameters.items() if one.default is None]
        schema = {"type": "object", "properties": properties, "required": required}
        return {"name": name, "description": self.run.__doc__, "inputSchema": schema}

    def checked(self, arguments: object) -> dict[str, Any]:
        """Return the arguments with defaults filled in; raise `Fault` for a wrong one."""
        if not isinstance(arguments, dict):
            raise Fault(INVALID_PARAMS, "arguments: expected an object")
        if unknown := arguments.keys() - self.parameters.keys():
            raise Fault(INVALID_PARAMS, f"no such argument: {', '.join(sorted(unknown))}")
        filled = {}
        for name, parameter in self.parameters.items():
            filled[name] = arguments.get(name, parameter.default)
            if not parameter.accepts(filled[name]):
                raise Fault(INVALID_PARAMS, f"{name}: expected {parameter.type}")
        return filled


TOOLS: dict[str, Tool] = {}


def tool(waits: bool = False, **parameters: Parameter) -> Callable[[Callable[..., str]], None]:
    """Offer a function as a tool; its docstring is the description that clients get."""

    def offer(run: Callable[..., str]) -> None:
        TOOLS[run.__name__] = Tool(run, parameters, waits)

    return offer


@tool(text=Parameter("string", "what to say"))
def echo(call: Call, text: str) -> str:
    """Says it again."""
    return text


@tool(a=Parameter("number", "one number"), b=Parameter("number", "the other"))
def add(call: Call, a: float, b: float) -> str:
    """Adds two numbers; integers stay integers."""
    return str(a + b)


@tool()
def clock(call: Call) -> str:
    """Tells the time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@tool(
    waits=True,
    steps=Parameter("integer", "how many steps", 5),
    seconds=Parameter("number", "how long all of them take", 5),
)
def slow(call: Call, steps: int, seconds: float) -> str:
    """Takes a while, reports each step, and can be cancelled."""
    for step in range(1, steps + 1):
        call.wait(seconds / steps)
        call.progress(step, steps)
    return f"{steps} steps in {seconds} s"


@tool(message=Parameter("string", "what to log"))
def log(call: Call, message: str) -> str:
    """Sends the client a log message."""
    call.server.log("info", message)
    return "logged"


class Server:
    """One session: `handle` takes its messages, `send` writes all answers."""

    def __init__(self, out: io.RawIOBase) -> None:
        self._out = out
        self._writing = threading.Lock()
        self._waiting: dict[RequestId, Call] = {}
        self._level = "info"
        self._methods: dict[str, Callable[[Message], Message]] = {
            "initialize": self._initialize,
            "ping": lambda params: {},
            "logging/setLevel": self._set_level,
            "tools/list": lambda params: {"tools": [t.listed(name) for name, t in TOOLS.items()]},
        }

    def serve(self, lines: Iterable[bytes]) -> None:
        """Handle line after line; cancel all calls at their end."""
        try:
            for line in filter(bytes.strip, lines):
                self.handle(line)
        finally:
            for call in tuple(self._waiting.values()):
                call.cancelled.set()

    def send(self, message: Message) -> None:
        """Write a message as one line, unbuffered; may be called in any thread."""
        rest = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        with self._writing:
            while rest:
                rest = rest[self._out.write(rest) :]

    def log(self, level: str, text: str) -> None:
        """Send a log message, unless the client asked for more severe ones only."""
        if LEVELS.index(level) >= LEVELS.index(self._level):
            params = {"level": level, "logger": "demo", "data": text}
            self.send({"method": "notifications/message", "params": params})

    def handle(self, line: bytes) -> None:
        """Answer one line; anything wrong with it is answered with an error."""
        request_id = None
        try:
            message = _decode(line)
            if "method" not in message and ("result" in message or "error" in message):
                return  # a response, and nothing was asked
            method, params = message.get("method"), message.get("params", {})
            request_id = _checked_id(message)
            if not isinstance(method, str) or not isinstance(params, dict):
                raise Fault(INVALID_REQUEST, "expected a method and an object of params")
            if request_id is None:
                self._notified(method, params)
            elif method == "tools/call":
                self._call_tool(request_id, params)
            elif method in self._methods:
                self.send({"id": request_id, "result": self._methods[method](params)})
            else:
                raise Fault(-32601, f"no such method: {method}")
        except Fault as fault:
            self.send({"id": request_id, "error": {"code": fault.code, "message": str(fault)}})

    def _initialize(self, params: Message) -> Message:
        asked = params.get("protocolVersion")
        return {
            "protocolVersion": asked if asked in REVISIONS else REVISIONS[0],
            "capabilities": {"tools": {}, "logging": {}},
            "serverInfo": {"name": "mcpbridge-demo", "version": "1.0"},
        }

    def _set_level(self, params: Message) -> Message:
        if params.get("level") not in LEVELS:
            raise Fault(INVALID_PARAMS, f"level: expected one of {', '.join(LEVELS)}")
        self._level = params["level"]
        return {}

    def _notified(self, method: str, params: Message) -> None:
        cancelled = params.get("requestId")
        call = self._waiting.get(cancelled) if isinstance(cancelled, RequestId) else None
        if method == "notifications/cancelled" and call:
            call.cancelled.set()

    def _call_tool(self, request_id: RequestId, params: Message) -> None:
        name, meta = params.get("name"), params.get("_meta")
        tool = TOOLS.get(name) if isinstance(name, str) else None
        if tool is None:
            raise Fault(INVALID_PARAMS, f"no such tool: {name}")
        arguments = tool.checked(params.get("arguments", {}))
        call = Call(self, meta.get("progressToken") if isinstance(meta, dict) else None)
        work = (request_id, tool, call, arguments)
        if not tool.waits:
            self._run(*work)
        else:
            self._waiting[request_id] = call
            threading.Thread(target=self._run_aside, args=work, daemon=True).start()

    def _run(self, request_id: RequestId, tool: Tool, call: Call, arguments: Message) -> None:
        try:
            text, failed = tool.run(call, **arguments), False
        except (ArithmeticError, ValueError) as error:
            text, failed = str(error), True
        content = [{"type": "text", "text": text}]
        self.send({"id": request_id, "result": {"content": content, "isError": failed}})

    def _run_aside(self, request_id: RequestId, *work: Any) -> None:
        with contextlib.suppress(CancelledCall, BrokenPipeError):
            self._run(request_id, *work)
        self._waiting.pop(request_id, None)


def _decode(line: bytes) -> Message:
    """Return the JSON object in a line.  Raises `Fault`."""
    try:
        message = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise Fault(-32700, f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise Fault(INVALID_REQUEST, "expected one JSON-RPC message")
    return message


def _checked_id(message: Message) -> RequestId | None:
    """Return the id of a request, or None for a notification.  Raises `Fault`."""
    if "id" not in message:
        return None
    request_id = message["id"]
    if isinstance(request_id, bool) or not isinstance(request_id, RequestId):
        raise Fault(INVALID_REQUEST, "id: expected a string or an integer")
    return request_id


def main() -> None:
    """Serve on stdin and stdout until one of them is closed."""
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        Server(io.FileIO(sys.stdout.fileno(), "w", closefd=False)).serve(sys.stdin.buffer)


if __name__ == "__main__":
    main()
