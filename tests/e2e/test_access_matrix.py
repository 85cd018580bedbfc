"""
Who may do what: callers, servers, transports and methods, each cell with its status.

Five callers: alice has all scopes, bob a token for the server `open` alone, carol a token for all
servers without a scope, nobody none at all, and wrong one that differs from alice's in its last
character.  Of three servers `open` needs no scope, `every` one for each request, and `tools` one
for the tool `add`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from tests.e2e.callers import (
    ACCEPT,
    CALLERS,
    INITIALIZE,
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
from tests.e2e.harness import Bridge, request, serving

pytestmark = pytest.mark.slow

SERVERS = {
    "open": demo("/open"),
    "every": demo("/every", auth={"scopes": {"*": "use"}}),
    "tools": demo("/tools", auth={"scopes": {"tools/call": {"add": "adder"}}}),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "preflight")

#: The statuses for each of the methods, in their order.  A POST to `/message` names no session
#: that there is; the other ones are an `initialize`, or a `tools/list` of 2026-07-28.
STATUSES = """
sse      open   alice   200 405 405 405 405 405 204
sse      open   bob     200 405 405 405 405 405 204
sse      open   carol   200 405 405 405 405 405 204
sse      open   nobody  401 401 401 401 401 401 204
sse      open   wrong   401 401 401 401 401 401 204
sse      every  alice   200 405 405 405 405 405 204
sse      every  bob     403 403 403 403 403 403 204
sse      every  carol   403 403 403 403 403 403 204
sse      every  nobody  401 401 401 401 401 401 204
sse      every  wrong   401 401 401 401 401 401 204
sse      tools  alice   200 405 405 405 405 405 204
sse      tools  bob     403 403 403 403 403 403 204
sse      tools  carol   200 405 405 405 405 405 204
sse      tools  nobody  401 401 401 401 401 401 204
sse      tools  wrong   401 401 401 401 401 401 204
message  open   alice   405 405 404 405 405 405 204
message  open   bob     405 405 404 405 405 405 204
message  open   carol   405 405 404 405 405 405 204
message  open   nobody  401 401 401 401 401 401 204
message  open   wrong   401 401 401 401 401 401 204
message  every  alice   405 405 404 405 405 405 204
message  every  bob     403 403 403 403 403 403 204
message  every  carol   403 403 403 403 403 403 204
message  every  nobody  401 401 401 401 401 401 204
message  every  wrong   401 401 401 401 401 401 204
message  tools  alice   405 405 404 405 405 405 204
message  tools  bob     403 403 403 403 403 403 204
message  tools  carol   405 405 404 405 405 405 204
message  tools  nobody  401 401 401 401 401 401 204
message  tools  wrong   401 401 401 401 401 401 204
mcp      open   alice   405 405 200 405 400 405 204
mcp      open   bob     405 405 200 405 400 405 204
mcp      open   carol   405 405 200 405 400 405 204
mcp      open   nobody  401 401 401 401 401 401 204
mcp      open   wrong   401 401 401 401 401 401 204
mcp      every  alice   405 405 200 405 400 405 204
mcp      every  bob     403 403 403 403 403 403 204
mcp      every  carol   403 403 403 403 403 403 204
mcp      every  nobody  401 401 401 401 401 401 204
mcp      every  wrong   401 401 401 401 401 401 204
mcp      tools  alice   405 405 200 405 400 405 204
mcp      tools  bob     403 403 403 403 403 403 204
mcp      tools  carol   405 405 200 405 400 405 204
mcp      tools  nobody  401 401 401 401 401 401 204
mcp      tools  wrong   401 401 401 401 401 401 204
2026     open   alice   405 405 200 405 405 405 204
2026     open   bob     405 405 200 405 405 405 204
2026     open   carol   405 405 200 405 405 405 204
2026     open   nobody  401 401 401 401 401 401 204
2026     open   wrong   401 401 401 401 401 401 204
2026     every  alice   405 405 200 405 405 405 204
2026     every  bob     403 403 403 403 403 403 204
2026     every  carol   403 403 403 403 403 403 204
2026     every  nobody  401 401 401 401 401 401 204
2026     every  wrong   401 401 401 401 401 401 204
2026     tools  alice   405 405 200 405 405 405 204
2026     tools  bob     403 403 403 403 403 403 204
2026     tools  carol   405 405 200 405 405 405 204
2026     tools  nobody  401 401 401 401 401 401 204
2026     tools  wrong   401 401 401 401 401 401 204
"""
#: The same for paths that belong to no transport; `/` is the bridge's own.
OTHER_PATHS = """
/open/mcp/server-card            alice   200 200 405 405 405 405 204
/open/mcp/server-card            nobody  401 401 401 401 401 401 204
/open/mcp/server-card            wrong   401 401 401 401 401 401 204
/every/mcp/server-card           bob     403 403 403 403 403 403 204
/every/nothing                   bob     403 403 403 403 403 403 204
/every/nothing                   nobody  401 401 401 401 401 401 204
/every/nothing                   alice   404 404 404 404 404 404 204
/every                           nobody  404 404 404 404 404 404 204
/nothing                         alice   404 404 404 404 404 404 204
/nothing                         nobody  404 404 404 404 404 404 204
/                                nobody  200 200 405 405 405 405 204
/                                wrong   200 200 405 405 405 405 204
/                                alice   200 200 405 405 405 405 204
//                               nobody  404 404 404 404 404 404 204
/.well-known/ai-catalog.json     nobody  404 404 405 501 501 501 204
/.well-known/oauth-protected-resource/open/mcp  nobody  404 404 404 404 404 404 204
"""
#: What a 401 or 403 says in `WWW-Authenticate`, by server and caller.  That a token is not for
#: a server no other scope would change.
INVALID = (
    'error="invalid_token", error_description="the token is unknown, or the Authorization header'
    ' has none"'
)
INSUFFICIENT = 'error="insufficient_scope", error_description="this needs the scopes: {0}"'
CHALLENGES: dict[tuple[str, str], str | None] = {
    ("open", "nobody"): "Bearer",
    ("open", "wrong"): f"Bearer {INVALID}",
    ("every", "nobody"): 'Bearer scope="use"',
    ("every", "wrong"): f'Bearer {INVALID}, scope="use"',
    ("every", "bob"): None,
    ("every", "carol"): f'Bearer {INSUFFICIENT.format("use")}, scope="use"',
    ("tools", "nobody"): "Bearer",
    ("tools", "wrong"): f"Bearer {INVALID}",
    ("tools", "bob"): None,
}
#: The statuses of requests to the server `tools`: `tools/call` of `add`, of `echo`, a batch of
#: both, a list of the tools, and a message that asks for nothing.
OPERATIONS = """
message  alice   202 202 202 202 202
message  carol   403 202 403 202 202
mcp      alice   200 200 200 200 202
mcp      carol   403 200 403 200 202
2026     alice   200 200 400 200 202
2026     carol   403 200 403 200 202
2026     bob     403 403 403 403 403
2026     nobody  401 401 401 401 401
2026     wrong   401 401 401 401 401
"""
ROWS = [tuple(line.split(maxsplit=3)) for line in STATUSES.strip().splitlines()]
OTHER_ROWS = [tuple(line.split(maxsplit=2)) for line in OTHER_PATHS.strip().splitlines()]
OPERATION_ROWS = [tuple(line.split(maxsplit=2)) for line in OPERATIONS.strip().splitlines()]
ADD = {"name": "add", "arguments": {"a": 2, "b": 3}}
ECHO = {"name": "echo", "arguments": {"text": "hello"}}


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    """Serve the three servers, of which each has said what it is."""
    with serving(config={"mcpServers": SERVERS, "bridge": {"auth": auth()}}) as bridge:
        for server in SERVERS:
            open_session(bridge.port, f"/{server}", "alice")
        yield bridge


def sent(transport: str, method: str, base: str, caller: str) -> bytes:
    """Return the request of a cell."""
    path = {"sse": "sse", "message": "message?sessionId=" + "0" * 36}.get(transport, "mcp")
    target = f"{base}/{path}"
    if method == "preflight":
        asks = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x"]
        return head("OPTIONS", target, ["Origin: http://localhost", *asks])
    lines, body = authorization(caller), INITIALIZE
    if transport == "2026":
        lines, body = [*lines, *modern_lines("tools/list")], modern("tools/list")
    if method == "POST":
        return post(target, body, *lines)
    return head(method, target, [f"Accept: {ACCEPT}", *lines], 0 if method == "PUT" else None)


def check_challenge(answer: Answer, server: str, caller: str) -> None:
    """Assert that a refusal, and nothing else, has the challenge that is due, and no secret."""
    expected = CHALLENGES[server, caller] if answer.status in (401, 403) else None
    assert answer.challenge == expected
    assert b"alice-" not in answer.raw


@pytest.mark.parametrize("row", ROWS, ids=["-".join(row[:3]) for row in ROWS])
def test_each_method_of_each_transport(bridge: Bridge, row: tuple[str, ...]) -> None:
    transport, server, caller, statuses = row
    found = []
    for method in METHODS:
        answer = ask(bridge.port, sent(transport, method, f"/{server}", caller))
        check_challenge(answer, server, caller)
        found.append(answer.status)
    assert found == [int(each) for each in statuses.split()]


def test_the_table_is_complete() -> None:
    """No cell has been forgotten."""
    cells = itertools.product(("sse", "message", "mcp", "2026"), SERVERS, CALLERS)
    assert {row[:3] for row in ROWS} == set(cells)
    assert {len(row[3].split()) for row in ROWS} == {len(METHODS)}


@pytest.mark.parametrize("row", OTHER_ROWS, ids=["-".join(row[:2]) for row in OTHER_ROWS])
def test_each_method_of_other_paths(bridge: Bridge, row: tuple[str, ...]) -> None:
    path, caller, statuses = row
    found = []
    for method in METHODS:
        lines = [] if method == "preflight" else authorization(caller)
        if method == "preflight":
            lines = ["Origin: http://localhost", "Access-Control-Request-Method: GET"]
        verb = "OPTIONS" if method == "preflight" else method
        answer = ask(bridge.port, head(verb, path, lines, 0 if verb in ("POST", "PUT") else None))
        found.append(answer.status)
        if caller != "alice":
            # Nobody learns here which servers there are.
            assert b"tools" not in answer.body
            assert b"every" not in answer.body
    assert found == [int(each) for each in statuses.split()]


@pytest.mark.parametrize("row", OPERATION_ROWS, ids=["-".join(row[:2]) for row in OPERATION_ROWS])
def test_operations(bridge: Bridge, row: tuple[str, ...]) -> None:
    """Of a batch with one forbidden element nothing reaches the server."""
    transport, caller, statuses = row
    make = modern if transport == "2026" else request
    messages = [
        make("tools/call", **ADD),
        make("tools/call", **ECHO),
        b"[%b,%b]" % (request("tools/call", 8, **ADD), request("tools/call", 9, **ECHO)),
        make("tools/list"),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode(),
    ]
    names = ["tools/call", "tools/call", "tools/call", "tools/list", "notifications/initialized"]
    lines, target = authorization(caller), "/tools/mcp"
    if transport == "mcp":
        initialize = json.loads(INITIALIZE)
        # The last revision that has batches.
        initialize["params"]["protocolVersion"] = "2025-03-26"
        opened = ask(bridge.port, post(target, json.dumps(initialize).encode(), *lines))
        lines.append(f"Mcp-Session-Id: {opened.headers['mcp-session-id']}")
    with Wire(bridge.port) as opening:
        if transport == "message":
            opening.send(head("GET", "/tools/sse", [f"Accept: {ACCEPT}", *lines]))
            assert opening.answer().status == 200
            target = opening.read_until(b"\n\n").partition(b"data: ")[2].decode("ascii")
        found = []
        for message, name in zip(messages, names, strict=True):
            more = lines
            if transport == "2026":
                tool = {0: "add", 1: "echo"}.get(messages.index(message))
                more = [*lines, *modern_lines(name, tool)]
            answer = ask(bridge.port, post(target, message, *more))
            found.append(answer.status)
            if answer.status == 403 and caller == "carol":
                assert answer.challenge == f'Bearer {INSUFFICIENT.format("adder")}, scope="adder"'
    assert found == [int(each) for each in statuses.split()]


def test_an_identity_keeps_its_session_with_each_of_its_requests(bridge: Bridge) -> None:
    ident = open_session(bridge.port, "/open", "bob")
    ping = request("ping", 2)
    lines = [*authorization("bob"), f"Mcp-Session-Id: {ident}"]
    with Wire(bridge.port) as wire:
        for _ in range(3):
            assert wire.ask(post("/open/mcp", ping, *lines)).json["result"] == {}


def test_the_log_names_callers_but_no_token(bridge: Bridge) -> None:
    open_session(bridge.port, "/open", "bob")
    bridge.wait_for_log("of 'open' opened for token#bob")
    for caller in CALLERS:
        for line in authorization(caller):
            assert line.rpartition(" ")[2] not in bridge.log


# Servers with an authorization server, which is away.

ISSUER = "http://127.0.0.1:1"
PUBLIC = "https://mcp.example.org"
#: Who may fetch the metadata of which path, without a token and with any.
METADATA = """
/oauth/mcp   200
/oauth/sse   200
/oauth/mcp/  200
/oauth       404
/oauth/message  404
/tokens/mcp  404
/nothing/mcp 404
/            404
"""


@pytest.fixture(scope="module")
def oauth() -> Iterator[Bridge]:
    """Serve a server that takes access tokens and named ones, and one with named tokens alone."""
    both = {"oauth": {"issuer": ISSUER}, "scopes": {"*": "use", "tools/call": {"add": "adder"}}}
    servers = {"oauth": demo("/oauth", auth=both), "tokens": demo("/tokens")}
    settings = {"auth": auth(bob=["tokens"]), "public_url": PUBLIC}
    with serving(config={"mcpServers": servers, "bridge": settings}) as bridge:
        yield bridge


def test_the_metadata_needs_no_token(oauth: Bridge) -> None:
    well_known = "/.well-known/oauth-protected-resource"
    for line in METADATA.strip().splitlines():
        path, status = line.split()
        for caller in CALLERS:
            for origin in ([], ["Origin: http://localhost"]):
                lines = [*authorization(caller), *origin]
                answer = ask(oauth.port, head("GET", f"{well_known}{path}", lines))
                assert answer.status == int(status), path
                if answer.status == 200:
                    assert answer.json["resource"] == f"{PUBLIC}{path.rstrip('/')}"
                    assert answer.json["authorization_servers"] == [ISSUER]
                    assert answer.json["scopes_supported"] == ["use", "adder"]


def test_a_refusal_says_where_the_metadata_is(oauth: Bridge) -> None:
    """A token that only the authorization server could check is refused, or cannot be checked."""
    for endpoint in ("mcp", "sse"):
        url = f'resource_metadata="{PUBLIC}/.well-known/oauth-protected-resource/oauth/{endpoint}"'
        for method in ("GET", "DELETE", "PUT"):
            lines = [f"Accept: {ACCEPT}"]
            size = 0 if method == "PUT" else None
            answer = ask(oauth.port, head(method, f"/oauth/{endpoint}", lines, size))
            assert (answer.status, answer.challenge) == (401, f'Bearer {url}, scope="use"')
    answer = ask(oauth.port, post("/oauth/mcp", INITIALIZE, *authorization("wrong")))
    assert answer.status in (401, 503)
    answer = ask(oauth.port, post("/oauth/mcp", INITIALIZE, *authorization("bob")))
    assert (answer.status, answer.challenge) == (403, None)
    answer = ask(oauth.port, post("/oauth/mcp", INITIALIZE, *authorization("carol")))
    assert answer.status == 403
    assert 'scope="use"' in (answer.challenge or "")
    assert ask(oauth.port, post("/oauth/mcp", INITIALIZE, *authorization("alice"))).status == 200
