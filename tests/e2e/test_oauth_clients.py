"""
Real clients with tokens, against the installed `twistd mcpbridge` and a real authorization
server.

All visits of one client program run at once, in one process of it: they wait most of the
time, for a stand-in of a browser and for tokens to expire.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.authorized import NAMED_TOKEN, READ, SERVERS, WRITE, Place, authorized
from tests.real import parts
from tests.real.parts import ALL_CLIENTS, Client, JavaScriptClient
from tests.real.provider import Server

pytestmark = pytest.mark.slow

BROWSER = [sys.executable, str(parts.CLIENTS / "browser.py")]
#: Clients that can get a token by themselves.
CLIENTS = {
    "python-1": Client("client1", "authorizing.py"),
    "python-2": Client("client2", "authorizing.py"),
    "fastmcp": Client("fastmcp", "authorizing_fast.py"),
    "npm-1": JavaScriptClient("clients", "authorizing.cjs"),
    "npm-2": JavaScriptClient("clients", "authorizing.cjs"),
}
#: Those of 2026-07-28.
MODERN = ("python-2", "fastmcp", "npm-2")
#: Those on the SDK in Python.  They ask for a new token when they think that theirs has
#: expired, and not only when it is refused.
PYTHON = ("python-1", "python-2", "fastmcp")
#: The bridge takes these for 20 seconds, of which the client knows 3: the authorization
#: server is late by 13, and the bridge allows 30.
SHORT = Server(f"{READ} {WRITE}", ttl=3, behind=13)
#: The results of calls with a pause of 8 seconds before each but the first: far less than a
#: token lasts, and more than that in all.
SPREAD = ["first", "second", "third", "fourth"]

#: Seconds for a visit, and for one that is known to hang after its first call: who hangs is
#: told from who fails.
PATIENCE = 70
SHORT_PATIENCE = 25
#: What a client says that has waited in vain: for itself, or in an SDK for the connection.
GAVE_UP = ("TimeoutError: ", "McpError: Connection closed")

HELLO = ["echo", {"text": "hello"}, 0]
ADD = ["add", {"a": 1, "b": 2}, 0]


def ways(client: str) -> tuple[str, ...]:
    """Return the ways in which a client can speak to a server."""
    return ("mcp", "sse", "modern") if client in MODERN else ("mcp", "sse")


def silent(client: str, way: str) -> bool:
    """Return True if a client logs that a message is refused, and goes on waiting."""
    return client in PYTHON and way == "sse"


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Iterator[Place]:
    with authorized(tmp_path_factory.mktemp("clients"), {**SERVERS, "short": SHORT}) as running:
        yield running


def visits(place: Place, client: str, way: str) -> dict[str, dict[str, Any]]:
    """Return the settings of all visits of a client in one way."""
    spread = [["echo", {"text": text}, 8 if at else 0] for at, text in enumerate(SPREAD)]
    every: dict[str, dict[str, Any]] = {
        "itself": {"browser": BROWSER, "calls": [HELLO]},
        "step-up": {"browser": BROWSER, "calls": [HELLO, ADD, HELLO]},
        "step-up without refresh": {"browser": BROWSER, "calls": [HELLO, ADD], "refresh": False},
        "renewed": {"browser": BROWSER, "server": "short", "calls": spread},
        "named": {"token": NAMED_TOKEN},
        "jwt": {"token": place.token("jwt", way)},
        "opaque": {"token": place.token("opaque", way), "server": "opaque"},
        "too few scopes": {
            "token": place.token("jwt", way),
            "calls": [HELLO, ADD],
            "patience": SHORT_PATIENCE if silent(client, way) else PATIENCE,
        },
        "of another server": {"token": place.token("short", way)},
        "none": {},
    }
    for settings in every.values():
        settings["url"] = place.url(settings.pop("server", "jwt"), way)
        settings["modern"] = way == "modern"
        settings.setdefault("calls", [HELLO])
        settings.setdefault("patience", PATIENCE)
    return every


class Seen:
    """What the visits of one client have seen."""

    def __init__(self, client: str, place: Place) -> None:
        self.client = client
        every = {
            f"{way} {name}": settings
            for way in ways(client)
            for name, settings in visits(place, client, way).items()
        }
        generation = [client[-1]] if client.startswith("npm") else []
        command = [*CLIENTS[client].command(), *generation, json.dumps(every)]
        self._seen = place.bridge.run_command(command)

    def __call__(self, name: str) -> dict[str, dict[str, Any]]:
        """Return what the visits of a name have seen, by way."""
        found = {way: self._seen[f"{way} {name}"] for way in ways(self.client)}
        for way, each in found.items():
            if each["results"]:
                assert (each["protocolVersion"] == "2026-07-28") is (way == "modern")
        return found


def check_that_it_gets_a_token_by_itself(seen: Seen) -> None:
    """From the challenge to the metadata, a registration, a code with PKCE, and a token."""
    for each in seen("itself").values():
        assert each["error"] is None
        assert each["results"] == ["hello"]
        assert (each["visits"], each["scope"]) == (1, READ)


def check_that_it_sends_a_token_that_it_is_given(seen: Seen) -> None:
    for token in ("named", "jwt", "opaque"):
        for each in seen(token).values():
            assert each["error"] is None
            assert each["results"] == ["hello"]


def check_that_it_asks_for_the_scopes_that_it_lacks(seen: Seen) -> None:
    """The call that was refused succeeds then, and the session goes on."""
    for way, each in seen("step-up").items():
        if seen.client == "npm-1" or (seen.client, way) == ("npm-2", "sse"):
            # The SDK has no step-up over HTTP+SSE, and the older one refreshes its token
            # instead, which adds no scope: both show what is missing.
            assert each["results"] == ["hello"]
            assert "403" in each["error"]
        else:
            assert each["error"] is None
            assert each["results"] == ["hello", "3", "hello"]
            assert each["visits"] == 2
            assert set(each["scope"].split()) == {READ, WRITE}


def check_that_it_asks_for_scopes_without_refresh_tokens(seen: Seen) -> None:
    each = seen("step-up without refresh")["mcp"]
    assert each["error"] is None
    assert each["results"] == ["hello", "3"]
    assert each["visits"] == 2


def check_that_its_session_goes_on_with_a_newer_token(seen: Seen) -> None:
    for way, each in seen("renewed").items():
        assert each["visits"] == 1
        if way == "sse" and seen.client not in PYTHON:
            # It has a newer token only once one was refused.  Where the stream has ended by
            # then, its client is told so; which comes first is a matter of time.
            assert each["results"] == SPREAD[: len(each["results"])] != []
            assert (each["error"] is None) == (each["results"] == SPREAD)
            assert each["error"] is None or "404" in each["error"] or "401" in each["error"]
        else:
            assert each["error"] is None
            assert each["results"] == SPREAD


def check_that_it_shows_a_missing_scope(seen: Seen) -> None:
    for way, each in seen("too few scopes").items():
        assert each["results"] == ["hello"]
        if silent(seen.client, way):
            assert each["error"] in GAVE_UP
        else:
            assert any(text in each["error"] for text in ("403", f"{READ} {WRITE}"))


def check_that_it_shows_that_it_is_refused(seen: Seen) -> None:
    for credentials, reason in (
        ("none", "needs credentials"),
        ("of another server", "another server"),
    ):
        for each in seen(credentials).values():
            assert each["results"] == []
            assert "401" in each["error"] or reason in each["error"]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_with_tokens(client: str, place: Place) -> None:
    """One test for each client: its visits run once, and most of them wait."""
    seen = Seen(client, place)
    check_that_it_gets_a_token_by_itself(seen)
    check_that_it_sends_a_token_that_it_is_given(seen)
    check_that_it_asks_for_the_scopes_that_it_lacks(seen)
    check_that_it_asks_for_scopes_without_refresh_tokens(seen)
    check_that_its_session_goes_on_with_a_newer_token(seen)
    check_that_it_shows_a_missing_scope(seen)
    check_that_it_shows_that_it_is_refused(seen)


# Clients that are programs.


@pytest.fixture
def browser(tmp_path: Path) -> str:
    """Return the path of a program that is the browser."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nexec {BROWSER[0]} {BROWSER[1]} "$@"\n')
    program.chmod(0o755)
    return str(program)


def run(place: Place, client: str, way: str, token: str | None, server: str = "jwt") -> Any:
    """Run a program that calls a tool; return what it printed."""
    header = [] if token is None else ["--header", f"Authorization: Bearer {token}"]
    arguments = [place.url(server, way), "echo", json.dumps({"text": "hello"}), *header]
    return place.bridge.run_command([*ALL_CLIENTS[client].command(), *arguments])


@pytest.mark.parametrize(("way", "token"), [("mcp", "named"), ("sse", "jwt"), ("mcp", "opaque")])
@pytest.mark.parametrize("client", ["mcp-remote", "inspector"])
def test_a_program_sends_a_header(client: str, way: str, token: str, place: Place) -> None:
    server = "opaque" if token == "opaque" else "jwt"
    value = NAMED_TOKEN if token == "named" else place.token(server, way)
    seen = run(place, client, way, value, server)
    assert "echo" in seen["tools"]
    assert seen["result"]["content"] == [{"type": "text", "text": "hello"}]


@pytest.mark.parametrize("way", ["mcp", "sse"])
def test_mcp_remote_gets_a_token_by_itself(
    way: str, place: Place, browser: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("BROWSER", browser)
    seen = run(place, "mcp-remote", way, None)
    assert seen["result"]["content"] == [{"type": "text", "text": "hello"}]


def test_the_inspector_shows_that_it_has_no_token(place: Place) -> None:
    with pytest.raises(AssertionError, match="auth_required"):
        run(place, "inspector", "mcp", None)


def curl(url: str, token: str | None, *options: str) -> tuple[int, str, str]:
    """Run curl; return the status, the head and the body of the response."""
    header = [] if token is None else ["--header", f"Authorization: Bearer {token}"]
    command = [parts.command("curl"), "--silent", "--include", "--noproxy", "*", "--max-time", "30"]
    done = subprocess.run(
        [*command, *header, *options, url], stdout=subprocess.PIPE, check=False, text=True
    )
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    return int(head.split()[1]), head, body


def post(message: dict[str, Any], *headers: str) -> list[str]:
    """Return curl's options for a message."""
    fields = ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
    options = [option for field in (*fields, *headers) for option in ("--header", field)]
    return [*options, "--data", json.dumps({"jsonrpc": "2.0", **message})]


INITIALIZE = {
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "curl", "version": "8"},
    },
}


@pytest.mark.parametrize("token", ["named", "jwt", "opaque"])
def test_curl_with_each_verb(token: str, place: Place) -> None:
    server = "opaque" if token == "opaque" else "jwt"
    url = place.url(server)
    value = NAMED_TOKEN if token == "named" else place.token(server)
    start = post(INITIALIZE)
    for refused in (None, "made-up-0123456789"):
        for options in (start, [], ["--request", "DELETE"]):
            status, head, _ = curl(url, refused, *options)
            assert status == 401
            metadata = f'{place.origin}/.well-known/oauth-protected-resource/{server}/mcp"'
            assert f'resource_metadata="{metadata}' in head
            assert ('error="invalid_token"' in head) is (refused is not None)
    status, head, _ = curl(url, value, *start)
    assert status == 200
    [ident] = [line.split()[1] for line in head.splitlines() if line.startswith("Mcp-Session-Id")]
    session = f"Mcp-Session-Id: {ident}"
    status, _, _ = curl(url, value, *post({"method": "notifications/initialized"}, session))
    assert status == 202
    # The stream has nothing to say: curl leaves it.
    stream = ["--header", session, "--header", "Accept: text/event-stream", "--max-time", "1"]
    assert curl(url, value, *stream)[0] == 200
    assert curl(url, None, *stream)[0] == 401
    assert curl(url, None, "--request", "DELETE", "--header", session)[0] == 401
    call = {"id": 2, "method": "tools/call", "params": {"name": "add", "arguments": ADD[1]}}
    status, head, body = curl(url, value, *post(call, session))
    assert (status, f"{READ} {WRITE}" in body) == (403, True)
    assert 'error="insufficient_scope"' in head
    assert f'scope="{READ} {WRITE}"' in head
    assert curl(url, value, "--request", "DELETE", "--header", session)[0] in (200, 202, 204)
    assert curl(url, value, *post({"id": 3, "method": "ping"}, session))[0] == 404
    preflight = ["Origin: " + place.origin, "Access-Control-Request-Method: POST"]
    options = [option for field in preflight for option in ("--header", field)]
    assert curl(url, None, "--request", "OPTIONS", *options)[0] in (200, 204)
