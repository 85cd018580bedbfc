"""
Nobody reaches what belongs to another: a session, a stream, an event, a call that waits, a task
or a process.

Bob, who may use the same servers, knows the handles of alice.  Each of his attempts gets, byte for
byte, the answer for a handle that does not exist, and alice notices nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest

from tests.e2e.callers import (
    ACCEPT,
    INITIALIZE,
    TOKENS,
    Answer,
    Wire,
    ask,
    auth,
    authorization,
    demo,
    head,
    modern,
    modern_lines,
    open_session,
    post,
)
from tests.e2e.harness import Bridge, backend, request, serving
from tests.e2e.stateless import PREFIX

pytestmark = pytest.mark.slow

#: Makes a request of bob that names this handle.
Attempt = Callable[[str], bytes]
BOB = authorization("bob")
ALICE = authorization("alice")
PING = request("ping", 2)
LARGE = request("ping", 2, padding="x" * 70_000)
CANCELLED = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}'


def tools_server(base: str, era: str, **settings: Any) -> dict[str, Any]:
    """Return the settings of a server with the tools of `backends/tools.py`."""
    command, *args = backend("tools", era, 0)
    return {"command": command, "args": args, "base_uri": base, "stop_grace": 0.2, **settings}


def config() -> dict[str, Any]:
    """Return the configuration: both callers may use all servers."""
    command, *args = backend("with_tasks")
    servers = {
        "demo": demo("/demo"),
        "warm": demo("/warm", warm=2),
        "scoped": demo("/scoped", auth={"scopes": {"tools/call": {"clock": "adder"}}}),
        "connection": tools_server("/connection", "legacy"),
        "identity": tools_server("/identity", "legacy", reuse="identity"),
        "never": tools_server("/never", "legacy", reuse="never"),
        "modern": tools_server("/modern", "modern", concurrency=16),
        "tasks": {"command": command, "args": args, "base_uri": "/tasks", "stop_grace": 0.2},
    }
    return {"mcpServers": servers, "bridge": {"auth": auth(bob=list(servers))}}


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    """Serve servers of each kind."""
    with serving(config=config()) as bridge:
        yield bridge


def chunked(target: str, body: bytes, *lines: str) -> bytes:
    """Return a POST with a body in chunks."""
    usual = [f"Accept: {ACCEPT}", "Content-Type: application/json", "Transfer-Encoding: chunked"]
    pieces = (body[at : at + 9] for at in range(0, len(body), 9))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)
    return head("POST", target, [*usual, *lines]) + chunks + b"0\r\n\r\n"


def to_mcp(body: bytes = PING, *lines: str, name: str = "Mcp-Session-Id") -> Attempt:
    """Return an attempt to post a message to a session."""
    return lambda ident: post("/demo/mcp", body, *BOB, f"{name}: {ident}", *lines)


def with_session(method: str, *lines: str, target: str = "/demo/mcp") -> Attempt:
    """Return an attempt at a session without a body."""
    return lambda ident: head(
        method, target, [f"Accept: {ACCEPT}", *BOB, f"Mcp-Session-Id: {ident}", *lines]
    )


REVISION = "MCP-Protocol-Version: 2025-11-25"
#: Attempts at a session of Streamable HTTP, each with its status.
ON_SESSIONS: dict[str, tuple[int, Attempt]] = {
    "request": (404, to_mcp()),
    "request with revision": (404, to_mcp(PING, REVISION)),
    "list": (404, to_mcp(request("tools/list", 3))),
    "call": (404, to_mcp(request("tools/call", 3, name="clock", arguments={}))),
    "notification": (404, to_mcp(CANCELLED)),
    "response": (404, to_mcp(b'{"jsonrpc":"2.0","id":1,"result":{}}')),
    "batch": (404, to_mcp(b"[%b]" % PING)),
    "empty batch": (404, to_mcp(b"[]")),
    "second initialize": (404, to_mcp(INITIALIZE)),
    "empty body": (404, to_mcp(b"")),
    "no JSON": (404, to_mcp(b"{")),
    "no JSON-RPC": (404, to_mcp(b"1")),
    "large": (404, to_mcp(LARGE)),
    "large batch": (404, to_mcp(b"[%b]" % LARGE)),
    "large no JSON": (404, to_mcp(LARGE[:-1])),
    "other media type": (
        415,
        lambda ident: (
            head(
                "POST",
                "/demo/mcp",
                [*BOB, f"Mcp-Session-Id: {ident}", "Content-Type: text/plain", f"Accept: {ACCEPT}"],
                len(PING),
            )
            + PING
        ),
    ),
    "accepts nothing": (
        404,
        lambda ident: (
            head(
                "POST",
                "/demo/mcp",
                [
                    *BOB,
                    f"Mcp-Session-Id: {ident}",
                    "Content-Type: application/json",
                    "Accept: image/x",
                ],
                len(PING),
            )
            + PING
        ),
    ),
    "chunked": (404, lambda ident: chunked("/demo/mcp", PING, *BOB, f"Mcp-Session-Id: {ident}")),
    "lower case header": (404, to_mcp(name="mcp-session-id")),
    "upper case header": (404, to_mcp(name="MCP-SESSION-ID")),
    "white space": (404, lambda ident: to_mcp()(f" \t{ident} ")),
    "upper case id": (404, lambda ident: to_mcp()(ident.upper())),
    "quoted id": (404, lambda ident: to_mcp()(f'"{ident}"')),
    "twice": (404, lambda ident: to_mcp(PING, f"Mcp-Session-Id: {ident}")(ident)),
    "beside another": (404, lambda ident: to_mcp(PING, f"Mcp-Session-Id: {'0' * 36}")(ident)),
    "unknown revision": (404, to_mcp(PING, "MCP-Protocol-Version: 1999-01-01")),
    "other revision": (404, to_mcp(PING, "MCP-Protocol-Version: 2025-03-26")),
    "2026-07-28": (
        200,
        to_mcp(modern("tools/list"), *modern_lines("tools/list")),
    ),
    "2026-07-28 by its body": (400, to_mcp(modern("tools/list"), "Mcp-Method: tools/list")),
    "other token beside": (
        400,
        lambda ident: post(
            "/demo/mcp", PING, *BOB, "Authorization: Bearer x", f"Mcp-Session-Id: {ident}"
        ),
    ),
    "slash": (
        404,
        lambda ident: post("/demo/mcp/", PING, *BOB, f"Mcp-Session-Id: {ident}"),
    ),
    "escaped path": (
        404,
        lambda ident: post("/demo/%6Dcp", PING, *BOB, f"Mcp-Session-Id: {ident}"),
    ),
    "query": (404, lambda ident: post("/demo/mcp?x=1", PING, *BOB, f"Mcp-Session-Id: {ident}")),
    "HTTP/1.0": (
        404,
        lambda ident: to_mcp()(ident).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1),
    ),
    "closing": (404, to_mcp(PING, "Connection: close")),
    "browser": (404, to_mcp(PING, "Origin: http://localhost")),
    "GET": (404, with_session("GET")),
    "GET with revision": (404, with_session("GET", REVISION)),
    "GET with JSON alone": (
        404,
        lambda ident: head(
            "GET", "/demo/mcp", [*BOB, f"Mcp-Session-Id: {ident}", "Accept: application/json"]
        ),
    ),
    "GET of 2026-07-28": (405, with_session("GET", "MCP-Protocol-Version: 2026-07-28")),
    "GET slash": (404, with_session("GET", target="/demo/mcp/")),
    "GET query": (404, with_session("GET", target="/demo/mcp?x")),
    "GET events": (404, with_session("GET", "Last-Event-ID: 1-1")),
    "GET sse": (200, with_session("GET", target="/demo/sse")),
    "HEAD": (405, with_session("HEAD")),
    "DELETE": (404, with_session("DELETE")),
    "DELETE with revision": (404, with_session("DELETE", REVISION)),
    "DELETE of 2026-07-28": (405, with_session("DELETE", "MCP-Protocol-Version: 2026-07-28")),
    "DELETE slash": (404, with_session("DELETE", target="/demo/mcp/")),
    "DELETE twice": (
        404,
        lambda ident: with_session("DELETE", f"Mcp-Session-Id: {ident}")(ident),
    ),
    "PUT": (405, with_session("PUT", "Content-Length: 0")),
    "OPTIONS": (405, with_session("OPTIONS")),
    "as HTTP+SSE": (404, lambda ident: post(f"/demo/message?sessionId={ident}", PING, *BOB)),
    "at another server": (
        404,
        lambda ident: post("/scoped/mcp", PING, *BOB, f"Mcp-Session-Id: {ident}"),
    ),
    "forbidden call elsewhere": (
        404,
        lambda ident: post(
            "/scoped/mcp",
            request("tools/call", 3, name="clock"),
            *BOB,
            f"Mcp-Session-Id: {ident}",
        ),
    ),
}


def to_message(body: bytes = PING, *lines: str, server: str = "demo", more: str = "") -> Attempt:
    """Return an attempt to post a message to a session of HTTP+SSE."""
    return lambda ident: post(f"/{server}/message?sessionId={ident}{more}", body, *BOB, *lines)


#: Attempts at a session of HTTP+SSE.
ON_STREAMS: dict[str, tuple[int, Attempt]] = {
    "request": (404, to_message()),
    "call": (404, to_message(request("tools/call", 3, name="clock", arguments={}))),
    "notification": (404, to_message(CANCELLED)),
    "batch": (404, to_message(b"[%b]" % PING)),
    "empty body": (404, to_message(b"")),
    "no JSON": (404, to_message(b"{")),
    "large": (404, to_message(LARGE)),
    "large batch": (404, to_message(b"[%b]" % LARGE)),
    "large no JSON": (404, to_message(LARGE[:-1])),
    "more in the query": (404, to_message(more="&x=1")),
    "twice in the query": (404, lambda ident: to_message(more=f"&sessionId={ident}")(ident)),
    "escaped id": (
        404,
        lambda ident: to_message()("".join(f"%{ord(each):02x}" for each in ident)),
    ),
    "upper case id": (404, lambda ident: to_message()(ident.upper())),
    "slash": (404, lambda ident: post(f"/demo/message/?sessionId={ident}", PING, *BOB)),
    "chunked": (404, lambda ident: chunked(f"/demo/message?sessionId={ident}", PING, *BOB)),
    "HTTP/1.0": (
        404,
        lambda ident: to_message()(ident).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1),
    ),
    "other media type": (
        404,
        lambda ident: (
            head(
                "POST",
                f"/demo/message?sessionId={ident}",
                [*BOB, "Content-Type: text/plain"],
                len(PING),
            )
            + PING
        ),
    ),
    "in a header, too": (404, lambda ident: to_message(PING, f"Mcp-Session-Id: {ident}")(ident)),
    "as Streamable HTTP": (404, to_mcp()),
    "at another server": (404, to_message(server="scoped")),
    "forbidden call elsewhere": (
        404,
        to_message(request("tools/call", 3, name="clock"), server="scoped"),
    ),
}


def unlike(ident: str) -> str:
    """Return an id of the same form that nothing has."""
    return str(uuid.uuid4()) if len(ident) == 36 else ident[:-4] + "AAAA"


class Sessions(NamedTuple):
    """What alice has: the id of a session of each transport, and the stream of the second."""

    streamable: str
    sse: str
    stream: Wire
    get: Wire


@pytest.fixture(scope="module")
def alice(bridge: Bridge) -> Iterator[Sessions]:
    """Open alice's sessions, and a GET stream."""
    streamable = open_session(bridge.port, "/demo", "alice")
    with Wire(bridge.port) as stream, Wire(bridge.port) as get:
        stream.send(head("GET", "/demo/sse", [f"Accept: {ACCEPT}", *ALICE]))
        assert stream.answer().status == 200
        sse = stream.read_until(b"\n\n").rpartition(b"sessionId=")[2]
        lines = [f"Accept: {ACCEPT}", *ALICE, f"Mcp-Session-Id: {streamable}", REVISION]
        get.send(head("GET", "/demo/mcp", lines))
        assert get.answer().status == 200
        yield Sessions(streamable, sse.decode("ascii"), stream, get)


def still_works(bridge: Bridge, alice: Sessions) -> None:
    """Assert that alice's sessions and streams are as before."""
    lines = [*ALICE, f"Mcp-Session-Id: {alice.streamable}", REVISION]
    assert ask(bridge.port, post("/demo/mcp", PING, *lines)).json["result"] == {}
    accepted = ask(bridge.port, post(f"/demo/message?sessionId={alice.sse}", PING, *ALICE))
    assert accepted.status == 202
    while b'"result"' not in alice.stream.read_until(b"\n\n"):
        pass
    assert alice.get.is_open()


def check(bridge: Bridge, attempt: Attempt, handle: str, status: int) -> None:
    """Assert that an attempt gets what one at no handle gets, on new and on used connections."""
    found = ask(bridge.port, attempt(handle))
    other = ask(bridge.port, attempt(unlike(handle)))
    assert found.status == status, found
    if "event-stream" in found.headers.get("content-type", ""):
        assert found.headers.keys() == other.headers.keys()
        return
    assert found.raw == other.raw
    if b" HTTP/1.0" in attempt(handle) or b"Connection: close" in attempt(handle):
        return
    with Wire(bridge.port) as wire:
        # As bob, and as alice, the connection has had fast requests; a head is cached.
        for before in (BOB, ALICE):
            first = wire.ask(post("/demo/mcp", modern("tools/list"), *before, *TOOLS_LIST))
            assert first.status == 200
            assert wire.ask(attempt(handle)).raw == wire.ask(attempt(unlike(handle))).raw


TOOLS_LIST = modern_lines("tools/list")


@pytest.mark.parametrize("name", ON_SESSIONS)
def test_a_session_of_another(bridge: Bridge, alice: Sessions, name: str) -> None:
    status, attempt = ON_SESSIONS[name]
    check(bridge, attempt, alice.streamable, status)
    still_works(bridge, alice)


@pytest.mark.parametrize("name", ON_STREAMS)
def test_an_sse_session_of_another(bridge: Bridge, alice: Sessions, name: str) -> None:
    status, attempt = ON_STREAMS[name]
    check(bridge, attempt, alice.sse, status)
    still_works(bridge, alice)


def test_an_event_of_another(bridge: Bridge, alice: Sessions) -> None:
    """Bob's own session does not find the events of alice's streams."""
    lines = [f"Accept: {ACCEPT}", REVISION]
    arguments = {"steps": 2, "seconds": 0.01}
    meta = {"progressToken": 1}
    slow = request("tools/call", 9, name="slow", arguments=arguments, _meta=meta)
    with Wire(bridge.port) as wire:
        wire.send(post("/demo/mcp", slow, *ALICE, f"Mcp-Session-Id: {alice.streamable}", REVISION))
        assert wire.answer().status == 200
        streamed = wire.read_until(b"0\r\n\r\n")
    events = [each.partition(b"\n")[0].decode("ascii") for each in streamed.split(b"\nid: ")[1:]]
    assert events
    own = f"Mcp-Session-Id: {open_session(bridge.port, '/demo', 'bob')}"
    for event in events:
        gone = head("GET", "/demo/mcp", [*lines, *BOB, own, f"Last-Event-ID: {event}"])
        unknown = head("GET", "/demo/mcp", [*lines, *BOB, own, "Last-Event-ID: 99-99"])
        found = ask(bridge.port, gone)
        assert (found.status, found.raw) == (400, ask(bridge.port, unknown).raw)
    still_works(bridge, alice)


# The token.


def variants(token: str) -> list[str]:
    """Return tokens that are nearly this one: another byte at each place, shorter, longer."""
    changed = [
        token[:at] + ("0" if token[at] != "0" else "1") + token[at + 1 :]
        for at in range(len(token))
    ]
    return [*changed, token[:-1], token[1:], token + "x", token + "=", token.upper(), token[:8]]


def test_tokens_that_are_nearly_right(bridge: Bridge, alice: Sessions) -> None:
    """Each follows the right one on one connection, whose head differs in that byte alone."""
    lines = [f"Mcp-Session-Id: {alice.streamable}", REVISION]
    refusals = set()
    with Wire(bridge.port) as wire:
        for token in variants(TOKENS["alice"] or ""):
            right = wire.ask(post("/demo/mcp", PING, *ALICE, *lines))
            assert (right.status, right.json["result"]) == (200, {})
            wrong = wire.ask(post("/demo/mcp", PING, f"Authorization: Bearer {token}", *lines))
            assert wrong.status == 401
            refusals.add(wrong.raw)
    assert len(refusals) == 1


def test_callers_take_turns_on_one_connection(bridge: Bridge, alice: Sessions) -> None:
    lines = [f"Mcp-Session-Id: {alice.streamable}", REVISION]
    with Wire(bridge.port) as wire:
        for _ in range(10):
            assert wire.ask(post("/demo/mcp", PING, *ALICE, *lines)).status == 200
            assert wire.ask(post("/demo/mcp", PING, *BOB, *lines)).status == 404
            assert wire.ask(post("/demo/mcp", PING, *lines)).status == 401
            message = f"/demo/message?sessionId={alice.sse}"
            assert wire.ask(post(message, CANCELLED, *ALICE)).status == 202
            assert wire.ask(post(message, CANCELLED, *BOB)).status == 404
            assert wire.ask(post(message, CANCELLED)).status == 401


def statuses(port: int, requests: Sequence[bytes]) -> list[int]:
    """Send requests at once, and return the statuses of the responses."""
    with Wire(port) as wire:
        wire.send(b"".join(requests))
        return [wire.answer().status for _ in requests]


def test_pipelined_requests_of_several_callers(bridge: Bridge, alice: Sessions) -> None:
    lines = [f"Mcp-Session-Id: {alice.streamable}", REVISION]
    wrong = authorization("wrong")
    callers: tuple[list[str], ...] = (ALICE, BOB, [], wrong)
    pipelined = [post("/demo/mcp", PING, *who, *lines) for _ in range(8) for who in callers]
    assert statuses(bridge.port, pipelined) == [200, 404, 401, 401] * 8
    ends = [head("DELETE", "/demo/mcp", [*who, *lines]) for who in (BOB, [], wrong)]
    assert statuses(bridge.port, ends) == [404, 401, 401]
    still_works(bridge, alice)


# Requests of 2026-07-28.


TASKS: dict[str, Any] = {"extensions": {f"{PREFIX}tasks": {}}}


def of_2026(base: str, caller: str, method: str, **params: Any) -> bytes:
    """Return a request of 2026-07-28 of a caller."""
    named = params.get("name") or params.get("taskId")
    body = modern(method, **params)
    if base == "/tasks":
        message = json.loads(body)
        message["params"]["_meta"][f"{PREFIX}clientCapabilities"] |= TASKS
        body = json.dumps(message).encode()
    return post(f"{base}/mcp", body, *authorization(caller), *modern_lines(method, named))


def tool_call(base: str, caller: str, tool: str, token: str = "t", **more: Any) -> bytes:
    """Return a request of 2026-07-28 that calls a tool."""
    return of_2026(base, caller, "tools/call", name=tool, arguments={"token": token}, **more)


def pid_of(answer: Answer) -> int:
    """Return the process that has answered a call."""
    assert answer.status == 200, answer
    pid: int = json.loads(answer.json["result"]["content"][0]["text"])["pid"]
    return pid


@pytest.mark.parametrize("base", ["/connection", "/identity", "/never"])
def test_a_call_that_waits_for_alice(bridge: Bridge, base: str) -> None:
    with Wire(bridge.port) as wire:
        asked = wire.ask(tool_call(base, "alice", "ask")).json["result"]
        state = asked["requestState"]
        [key] = asked["inputRequests"]
        given: dict[str, Any] = {key: {"action": "accept", "content": {"answer": "bob was here"}}}
        for changed in (unlike(state), "A" + state[1:] if state[0] != "A" else "B" + state[1:]):
            for connection in (lambda raw: ask(bridge.port, raw), wire.ask):
                retries = [
                    connection(
                        tool_call(base, "bob", "ask", inputResponses=given, requestState=presented)
                    )
                    for presented in (state, changed)
                ]
                assert retries[0].status == 400
                assert retries[0].raw == retries[1].raw
        for caller in ("nobody", "wrong"):
            raw = tool_call(base, caller, "ask", inputResponses=given, requestState=state)
            assert ask(bridge.port, raw).status == 401
        given[key]["content"]["answer"] = "alice"
        done = wire.ask(tool_call(base, "alice", "ask", inputResponses=given, requestState=state))
        assert json.loads(done.json["result"]["content"][0]["text"])["answer"] == "alice"


@pytest.mark.parametrize("base", ["/connection", "/identity", "/never", "/modern"])
def test_processes_serve_one_identity(bridge: Bridge, base: str) -> None:
    """Also on one connection, in turns and pipelined."""
    found: dict[str, set[int]] = {"alice": set(), "bob": set()}
    with Wire(bridge.port) as wire:
        for _ in range(3):
            for caller, pids in found.items():
                pids.add(pid_of(wire.ask(tool_call(base, caller, "echo"))))
                pids.add(pid_of(ask(bridge.port, tool_call(base, caller, "echo"))))
        turns = ["alice", "bob"] * 4
        wire.send(b"".join(tool_call(base, caller, "echo") for caller in turns))
        for caller in turns:
            found[caller].add(pid_of(wire.answer()))
    assert not found["alice"] & found["bob"]


def test_warm_processes_are_used_once(bridge: Bridge) -> None:
    """A warm process becomes the session of one caller, and is nobody else's later."""
    idents = {
        caller: {open_session(bridge.port, "/warm", caller) for _ in range(3)}
        for caller in ("alice", "bob")
    }
    for owner, each in idents.items():
        for ident in each:
            for caller in ("alice", "bob"):
                line = f"Mcp-Session-Id: {ident}"
                answer = ask(bridge.port, post("/warm/mcp", PING, *authorization(caller), line))
                assert answer.status == (200 if caller == owner else 404)


#: Requests about a task, with their status for bob.
ON_TASKS: dict[str, dict[str, Any]] = {
    "tasks/get": {},
    "tasks/update": {"inputResponses": {}},
    "tasks/cancel": {},
}


def test_a_task_of_another(bridge: Bridge) -> None:
    """Neither with bob's own process nor without one, nor by the server's own id of the task."""
    task = ask(bridge.port, tool_call("/tasks", "alice", "task")).json["result"]["taskId"]
    owner, _, number = task.partition(".")
    for _ in range(2):
        for method, params in ON_TASKS.items():
            for handle in (task, number, f".{number}", f"{owner}.2"):
                found = ask(bridge.port, of_2026("/tasks", "bob", method, taskId=handle, **params))
                other = ask(bridge.port, of_2026("/tasks", "bob", method, taskId="x.1", **params))
                assert (found.status, found.raw) == (400, other.raw), (method, handle)
        own = ask(bridge.port, tool_call("/tasks", "bob", "task")).json["result"]["taskId"]
        assert own.partition(".")[0] != owner
    mine = ask(bridge.port, of_2026("/tasks", "alice", "tasks/get", taskId=task))
    assert mine.json["result"]["status"] == "working"


def test_a_subscription_to_the_task_of_another(bridge: Bridge) -> None:
    task = ask(bridge.port, tool_call("/tasks", "alice", "task")).json["result"]["taskId"]

    def acknowledged(caller: str, ident: str) -> bytes:
        wanted = {"taskIds": [ident]}
        with Wire(bridge.port) as wire:
            answer = wire.ask(
                of_2026("/tasks", caller, "subscriptions/listen", notifications=wanted)
            )
            assert answer.status == 200
            return wire.read_until(b"}\n\n").partition(b"data: ")[2]

    assert acknowledged("bob", task) == acknowledged("bob", unlike(task))
    assert task.encode() not in acknowledged("bob", task)
    assert task.encode() in acknowledged("alice", task)
