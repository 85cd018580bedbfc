"""
Tools, prompts and resources that the settings leave out: in no list, and not reached in any
spelling, by whichever transport.

The backend reads leniently, once with the last and once with the first of two members with
one name, and writes down what reaches it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.callers import (
    INITIALIZE,
    Answer,
    ask,
    auth,
    authorization,
    head,
    modern,
    modern_lines,
    post,
)
from tests.e2e.harness import Bridge, backend, request, serving
from tests.e2e.spellings import EVERYTHING, SPELLINGS
from tests.e2e.stateless import send

pytestmark = pytest.mark.slow

LISTS: dict[str, Any] = {
    "tools": {"deny": ["denied"]},
    "prompts": {"allow": ["open"]},
    "resources": {"deny": ["file:///secret/*"]},
}
TOKEN = b'"_meta":{"progressToken":5}'
META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{},"progressToken":5}'
)
ALLOWED = request("tools/call", "last", name="allowed", arguments={})
SERVERS = [f"/{era}/{counts}" for era, counts in product(("legacy", "modern"), ("first", "last"))]
#: A name of more bytes does not fit into the head of a request.
HEAD_BYTES = 16384
#: What may name something in a message.
_NAME = re.compile(rb'"(?:name|uri|n\\u0061me|Name|NAME)"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)*")')
_METHODS = ("prompts/get", "resources/read", "resources/subscribe", "completion/complete")
LISTED = {
    "tools/list": ("tools", "name"),
    "prompts/list": ("prompts", "name"),
    "resources/list": ("resources", "uri"),
    "resources/templates/list": ("resourceTemplates", "uriTemplate"),
}


def lenient(folder: Path, *bases: str, **settings: Any) -> dict[str, Any]:
    """Return the servers of a configuration, which write to files in a folder."""
    servers = {}
    for base in bases or SERVERS:
        name = base.strip("/").replace("/", "-")
        command, *args = backend("lenient", *base.split("/")[1:3], folder / name)
        servers[name] = {
            "command": command,
            "args": args,
            "base_uri": base,
            "stop_grace": 0.2,
            **settings,
        }
    return {"mcpServers": servers}


def reached(folder: Path) -> list[str]:
    """Return all that has reached any of the servers."""
    return [line for each in folder.iterdir() for line in each.read_text().splitlines()]


def is_denied(line: str) -> bool:
    return "denied" in line or "secret" in line


class Session:
    """A session of Streamable HTTP, which sends each message on a connection of its own."""

    def __init__(
        self, bridge: Bridge, base: str, caller: str = "nobody", version: str = "2025-11-25"
    ) -> None:
        self._port, self._target = bridge.port, f"{base}/mcp"
        initialize = INITIALIZE.replace(b"2025-11-25", version.encode())
        opened = ask(self._port, post(self._target, initialize, *authorization(caller)))
        self._lines = [
            f"Mcp-Session-Id: {opened.headers['mcp-session-id']}",
            f"MCP-Protocol-Version: {version}",
            *authorization(caller),
        ]

    def post(self, body: bytes) -> Answer:
        """Post a message, and read the response up to an event stream."""
        return ask(self._port, post(self._target, body, *self._lines))

    def ask(self, method: str, **params: object) -> Any:
        """Make a request that is answered with JSON; return the answer."""
        return self.post(request(method, 1, **params)).json

    def close(self) -> None:
        """End the session."""
        ask(self._port, head("DELETE", self._target, self._lines))


class Stateless:
    """A client of 2026-07-28."""

    def __init__(self, bridge: Bridge, base: str, caller: str = "nobody") -> None:
        self._port, self._target, self._lines = bridge.port, f"{base}/mcp", authorization(caller)

    def post(self, body: bytes, method: str, name: str | None) -> Answer:
        """Post a request with these headers."""
        if name is not None and not (
            name.isascii() and name.isprintable() and name == name.strip()
        ):
            name = f"=?base64?{base64.b64encode(name.encode()).decode()}?="
        return ask(self._port, post(self._target, body, *modern_lines(method, name), *self._lines))

    def ask(self, method: str, **params: Any) -> Any:
        """Make a request that is answered with JSON; return the answer."""
        name = params.get("name", params.get("uri"))
        return self.post(modern(method, **params), method, name).json

    def close(self) -> None:
        """Do nothing: there is no session."""


class Sse:
    """A session of HTTP+SSE."""

    def __init__(self, bridge: Bridge, base: str) -> None:
        self.stream = bridge.get_sse(f"{base}/sse").read_opening_events()
        self.stream.round_trip(INITIALIZE)

    def ask(self, method: str, **params: object) -> Any:
        """Make a request; return the answer."""
        return json.loads(self.stream.round_trip(request(method, 1, **params)))

    def read_until(self, ident: str) -> list[Any]:
        """Return all messages up to an answer."""
        found = [json.loads(self.stream.read_message())]
        while found[-1].get("id") != ident:
            found.append(json.loads(self.stream.read_message()))
        return found

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()


# Everything by each transport.


def everything_over_sse(bridge: Bridge, base: str) -> None:
    session = Sse(bridge, base)
    for body in EVERYTHING.values():
        session.stream.post(body.replace(b"META", TOKEN))
    session.stream.send_message(ALLOWED)
    session.read_until("last")
    session.close()


def everything_over_mcp(bridge: Bridge, base: str, version: str) -> None:
    session = Session(bridge, base, version=version)
    for body in [*EVERYTHING.values(), ALLOWED]:
        session.post(body.replace(b"META", TOKEN))
    session.close()


def everything_stateless(bridge: Bridge, base: str) -> None:
    """The header names what the body does, in any of its readings."""
    client = Stateless(bridge, base)
    for body in EVERYTHING.values():
        method = next((each for each in _METHODS if each.encode() in body), "tools/call")
        if b"Tools/Call" in body:
            method = "Tools/Call"
        names = [json.loads(each) for each in _NAME.findall(body)]
        for name in dict.fromkeys([*names, "allowed"]):
            # A head that is too large is refused before all of it is sent.
            early = (BrokenPipeError, ConnectionResetError) if len(name) > HEAD_BYTES else ()
            with contextlib.suppress(*early):
                client.post(body.replace(b"META", META), method, name)
    assert "result" in client.ask("tools/call", name="allowed")


def test_what_is_denied_is_reached_in_no_spelling(tmp_path: Path) -> None:
    assert len(SPELLINGS) >= 50
    with serving(config=lenient(tmp_path, **LISTS)) as bridge:
        for base in SERVERS:
            everything_over_sse(bridge, base)
            everything_over_mcp(bridge, base, "2025-11-25")
            everything_over_mcp(bridge, base, "2025-03-26")
            everything_stateless(bridge, base)
    found = reached(tmp_path)
    assert found.count("tool allowed") == 4 * len(SERVERS)
    assert not [each for each in found if is_denied(each)]


def test_the_spellings_are_real(tmp_path: Path) -> None:
    """Without lists most of them reach a server: otherwise they would prove nothing."""
    with serving(config=lenient(tmp_path, "/legacy/first", "/legacy/last")) as bridge:
        everything_over_sse(bridge, "/legacy/first")
        everything_over_mcp(bridge, "/legacy/last", "2025-03-26")
        over_sse, over_mcp = (
            [is_denied(x) for x in (tmp_path / f"legacy-{y}").read_text().splitlines()].count(True)
            for y in ("first", "last")
        )
        everything_stateless(bridge, "/legacy/last")
    assert over_sse > 60
    assert over_mcp > 60
    assert [is_denied(each) for each in reached(tmp_path)].count(True) > 60 + over_sse + over_mcp


# Lists.


def names_of(client: Any, method: str) -> list[str]:
    """Return the names in all pages of a list."""
    member, name = LISTED[method]
    first = client.ask(method)["result"]
    second = client.ask(method, cursor=first["nextCursor"])["result"]
    assert "nextCursor" not in second
    return [each[name] for each in (*first[member], *second[member])]


def test_what_is_denied_is_in_no_list(tmp_path: Path) -> None:
    with serving(config=lenient(tmp_path, "/legacy/last", "/modern/last", **LISTS)) as bridge:
        for base, kind in product(("/legacy/last", "/modern/last"), (Sse, Session, Stateless)):
            client: Any = kind(bridge, base)
            assert [names_of(client, method) for method in LISTED] == [
                ["allowed", "other"],
                ["open"],
                ["file:///pub/a"],
                ["file:///pub/{x}"],
            ], (base, kind)
            client.close()


def test_what_is_denied_looks_like_what_is_unknown(tmp_path: Path) -> None:
    config = lenient(tmp_path, "/legacy/last", "/modern/last", **LISTS)
    audit_log = tmp_path.parent / f"{tmp_path.name}.audit"
    config["bridge"] = {"audit_log": str(audit_log)}
    pairs = [
        ("tools/call", {"name": "denied"}, {"name": "nothing"}),
        ("resources/read", {"uri": "file:///secret/x"}, {"uri": "file:///nothing"}),
    ]
    with serving(config=config) as bridge:
        for base, (method, *both) in product(("/legacy/last", "/modern/last"), pairs):
            session, stateless = Session(bridge, base), Stateless(bridge, base)
            found = []
            for params in both:
                name = next(iter(params.values()))
                answers = [stateless.post(modern(method, **params), method, name)]
                if "name" in params or base == "/legacy/last":
                    # For resources, a modern server has another code than a legacy one.
                    answers.append(session.post(request(method, 1, **params)))
                found.append(
                    [
                        (x.status, x.headers.keys(), json.dumps(x.json).replace(name, "NAME"))
                        for x in answers
                    ]
                )
            assert found[0] == found[1]
            session.close()
    records = [json.loads(x) for x in audit_log.read_text().splitlines()]
    for name in ("denied", "nothing"):
        mine = [each for each in records if each.get("name") == name]
        assert [(each["outcome"], each["code"]) for each in mine] == [("error", -32602)] * 4


def test_each_identity_has_its_own_lists(tmp_path: Path) -> None:
    lists = {"tools": {"identities": {"token#bob": {"deny": ["denied"]}}}}
    config = lenient(tmp_path, "/legacy/last", "/modern/last", **lists)
    config["bridge"] = {"auth": auth(["legacy-last", "modern-last"])}
    everything, without = ["allowed", "denied", "other"], ["allowed", "other"]
    with serving(config=config) as bridge:
        for base, kind in product(("/legacy/last", "/modern/last"), (Session, Stateless)):
            for caller, expected in (("alice", everything), ("bob", without)):
                client: Any = kind(bridge, base, caller)
                assert names_of(client, "tools/list") == expected
                assert ("result" in client.ask("tools/call", name="denied")) is (caller == "alice")
                assert names_of(client, "prompts/list") == ["open", "secret"]
                client.close()
        listed = Stateless(bridge, "/modern/last", "alice").ask("tools/list")["result"]
        assert listed["cacheScope"] == "private"
        listed = Stateless(bridge, "/modern/last", "alice").ask("prompts/list")["result"]
        assert listed["cacheScope"] == "public"
    assert reached(tmp_path).count("tool denied") == 4


def test_updates_of_what_is_denied_are_dropped(tmp_path: Path) -> None:
    with serving(config=lenient(tmp_path, "/legacy/last", "/modern/last", **LISTS)) as bridge:
        session = Sse(bridge, "/legacy/last")
        for ident, uri in (("a", "file:///secret/x"), ("b", "file:///pub/a")):
            call = request("tools/call", ident, name="allowed", arguments={"notify": uri})
            session.stream.send_message(call)
        found = session.read_until("b")
        assert [each.get("params", {}).get("uri") for each in found] == [
            None,
            "file:///pub/a",
            None,
        ]
        session.close()
        uris = ["file:///secret/x", "file:///pub/a", "file:///pub/b"]
        for base in ("/legacy/last", "/modern/last"):
            wanted = {"resourceSubscriptions": uris}
            stream = send(bridge.port, base, "subscriptions/listen", notifications=wanted)
            params = stream.read_message()["params"]
            assert params["notifications"]["resourceSubscriptions"] == uris[1:]
            if base == "/modern/last":
                assert [stream.read_message()["params"]["uri"] for _ in uris[1:]] == uris[1:]
            stream.close()
    assert not [each for each in reached(tmp_path) if is_denied(each)]


def test_names_that_match_nothing_are_warned_of(tmp_path: Path) -> None:
    lists = {"tools": {"deny": ["deneid", "denied"]}, "prompts": ["open*"]}
    with serving(config=lenient(tmp_path, "/legacy/last", **lists)) as bridge:
        for _ in range(2):
            client = Stateless(bridge, "/legacy/last")
            names_of(client, "tools/list")
            names_of(client, "prompts/list")
        warning = (
            "server 'legacy-last': tools.deny: 'deneid' matches none of the 3 tools that the"
            " server has listed; did you mean 'denied'?"
        )
        bridge.wait_for_log(warning)
        assert bridge.log.count(" matches none of ") == 1
