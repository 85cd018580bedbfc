"""
Tools, prompts and resources that the settings leave out: in no list, and not reached in any
spelling, by whichever transport.

The backend reads leniently, once with the last and once with the first of two members with
one name, and writes down what reaches it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.callers import (
    ACCEPT,
    INITIALIZE,
    Wire,
    auth,
    authorization,
    head,
    modern,
    modern_lines,
    open_session,
    post,
)
from tests.e2e.harness import Bridge, SseStream, backend, request, serving
from tests.e2e.stateless import PREFIX, VERSION

LISTS: dict[str, Any] = {
    "tools": {"deny": ["denied"]},
    "prompts": {"allow": ["open"]},
    "resources": {"deny": ["file:///secret/*"]},
}
#: More bytes than are read at once.
PADDING = b" " * 70_000
META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{},"progressToken":5}'
)

#: Spellings of a call of the denied tool.  In each, META stands for a `_meta` of 2026-07-28.
SPELLINGS: dict[str, bytes] = {
    "plain": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",META}}',
    "members in another order": b'{"params":{META,"name":"denied"},"method":"tools/call","id":7,'
    b'"jsonrpc":"2.0"}',
    "spaces": b' \t{ "jsonrpc" : "2.0" , "id" : 7 , "method" : "tools/call" , "params" : '
    b'{ META , "name" : "denied" } } ',
    "line ends": b'\r\n{"jsonrpc":"2.0",\n"id":7,"method":\r"tools/call","params":\n'
    b'{"name":\n"denied",META}}\n',
    "an escape in the name": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\\u0064enied",META}}',
    "all of the name escaped": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\\u0064\\u0065\\u006e\\u0069\\u0065\\u0064",META}}',
    "an escape in the method": b'{"jsonrpc":"2.0","id":7,"method":"tools\\u002fcall","params":'
    b'{"name":"denied",META}}',
    "an escaped slash": b'{"jsonrpc":"2.0","id":7,"method":"tools\\/call","params":'
    b'{"name":"denied",META}}',
    "an escape in `name`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"n\\u0061me":"denied",META}}',
    "an escape in `method`": b'{"jsonrpc":"2.0","id":7,"m\\u0065thod":"tools/call","params":'
    b'{"name":"denied",META}}',
    "an escape in `params`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","p\\u0061rams":'
    b'{"name":"denied",META}}',
    "the name twice, last": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed","name":"denied",META}}',
    "the name twice, first": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied","name":"allowed",META}}',
    "the name twice, one escaped": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed","n\\u0061me":"denied",META}}',
    "the params twice, last": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",META},"params":{"name":"denied",META}}',
    "the params twice, first": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied",META},"params":{"name":"allowed",META}}',
    "the method twice, last": b'{"jsonrpc":"2.0","id":7,"method":"ping","method":"tools/call",'
    b'"params":{"name":"denied",META}}',
    "the method twice, first": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","method":"ping",'
    b'"params":{"name":"denied",META}}',
    "`Name`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"Name":"denied",META}}',
    "`name` and `NAME`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed","NAME":"denied",META}}',
    "`NAME` and `name`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"NAME":"denied","name":"allowed",META}}',
    "`Method`": b'{"jsonrpc":"2.0","id":7,"Method":"tools/call","params":{"name":"denied",META}}',
    "`method` and `METHOD`": b'{"jsonrpc":"2.0","id":7,"method":"ping","METHOD":"tools/call",'
    b'"params":{"name":"denied",META}}',
    "`Params`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","Params":{"name":"denied",META}}',
    "`params` and `PARAMS`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",META},"PARAMS":{"name":"denied"}}',
    "`params` with a long s": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",META},"param\xc5\xbf":{"name":"denied"}}',
    "an escaped long s": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",META},"param\\u017f":{"name":"denied"}}',
    "`DENIED`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"DENIED",META}}',
    "`Denied`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"Denied",META}}',
    "space before the name": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":" denied",META}}',
    "space behind the name": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied\\t\\n ",META}}',
    "a no-break space": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\\u00a0denied",META}}',
    "full width letters": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\\uff44\\uff45\\uff4e\\uff49\\uff45\\uff44",META}}',
    "mathematical letters": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\xf0\x9d\x90\x9d\xf0\x9d\x90\x9e\xf0\x9d\x90\xa7\xf0\x9d\x90\xa2'
    b'\xf0\x9d\x90\x9e\xf0\x9d\x90\x9d",META}}',
    "a batch": b'[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",META}}]',
    "second in a batch": b'[{"jsonrpc":"2.0","id":6,"method":"ping"},{"jsonrpc":"2.0","id":7,'
    b'"method":"tools/call","params":{"name":"denied",META}}]',
    "a batch in a batch": b'[[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied",META}}]]',
    "`DENIED` in a batch": b'[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"DENIED",META}},{"jsonrpc":"2.0","method":"notifications/cancelled"}]',
    "the name twice in a batch": b'[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied","name":"allowed"}}]',
    "a notification": b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"denied",META}}',
    "a notification in a batch": b'[{"jsonrpc":"2.0","method":"tools/call","params":'
    b'{"name":"denied"}}]',
    "an id that is text": b'{"jsonrpc":"2.0","id":"tools/list","method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "an id that is a fraction": b'{"jsonrpc":"2.0","id":7.5,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "an id with an exponent": b'{"jsonrpc":"2.0","id":7e0,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "an id that is null": b'{"jsonrpc":"2.0","id":null,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "the id twice": b'{"jsonrpc":"2.0","id":7,"id":8,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "a result beside it": b'{"jsonrpc":"2.0","id":7,"result":{},"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "a byte order mark": b'\xef\xbb\xbf{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "UTF-16": '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied"}}'.encode(
        "utf-16"
    ),
    "trailing data": b'{"jsonrpc":"2.0","id":6,"method":"ping"}{"jsonrpc":"2.0","id":7,"method":'
    b'"tools/call","params":{"name":"denied",META}}',
    "a second line": b'{"jsonrpc":"2.0","id":6,"method":"ping"}\n{"jsonrpc":"2.0","id":7,"method":'
    b'"tools/call","params":{"name":"denied",META}}',
    "a message in a message": b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"method":'
    b'"tools/call","params":{"name":"denied"},META}}',
    "a task": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",'
    b'"task":{"ttl":60000},META}}',
    "a retry": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",'
    b'"inputResponses":{},"requestState":"x",META}}',
    "arguments with names": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":'
    b'{"name":"allowed","method":"ping"},"name":"denied",META}}',
    "no `jsonrpc`": b'{"id":7,"method":"tools/call","params":{"name":"denied",META}}',
    "`_meta` first": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{META,"_meta":'
    b'{"name":"allowed"},"name":"denied"}}',
    "a control character": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied\x01",META}}',
    "a lone surrogate": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied","x":"\\ud800",META}}',
    "deep arguments": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":'
    + b'{"a":' * 300
    + b"1"
    + b"}" * 300
    + b',"name":"denied",META}}',
    "padding before": PADDING
    + b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",META}}',
    "padding within": b'{"jsonrpc":"2.0","id":7,"method":"tools/call",'
    + PADDING
    + b'"params":{"name":"denied",META}}',
    "large arguments": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":'
    b'{"x":"' + b"x" * 70_000 + b'"},"name":"denied",META}}',
    "padding, the name twice": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied",' + PADDING + b'"name":"allowed",META}}',
    "padding, `NAME`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",' + PADDING + b'"NAME":"denied",META}}',
    "padding in a batch": b'[{"jsonrpc":"2.0","id":7,"method":"tools/call",'
    + PADDING
    + b'"params":{"name":"denied",META}}]',
    "a megabyte": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",'
    + PADDING * 20
    + b"META}}",
}
OTHERS: dict[str, bytes] = {
    "a denied prompt": b'{"jsonrpc":"2.0","id":7,"method":"prompts/get","params":{"name":"secret",'
    b"META}}",
    "a denied resource": b'{"jsonrpc":"2.0","id":7,"method":"resources/read","params":'
    b'{"uri":"file:///secret/x",META}}',
    **{
        f"the resource {uri}": b'{"jsonrpc":"2.0","id":7,"method":"resources/read","params":'
        b'{"uri":"%b",META}}' % uri.encode()
        for uri in (
            "FILE:///secret/x",
            "file:///%73ecret/x",
            "file:///Secret/X",
            "file:///pub/../secret/x",
            "file:///pub/%2e%2e/secret/x",
            "file:///pub/..%2fsecret/x",
            "file:////secret//x",
            "file://localhost/secret/x",
            "file:/secret/x",
            " file:///secret/x",
            "file:///pub/a?/../../../secret/x",
            "file:///secret/./x",
            "file:///pub/..\\\\secret/x",
        )
    },
    "a subscription": b'{"jsonrpc":"2.0","id":7,"method":"resources/subscribe","params":'
    b'{"uri":"file:///secret/x",META}}',
    "a completion for a prompt": b'{"jsonrpc":"2.0","id":7,"method":"completion/complete","params":'
    b'{"ref":{"type":"ref/prompt","name":"secret"},"argument":{"name":"a","value":""},META}}',
    "a completion for a resource": b'{"jsonrpc":"2.0","id":7,"method":"completion/complete",'
    b'"params":{"ref":{"type":"ref/resource","uri":"file:///secret/{x}"},'
    b'"argument":{"name":"x","value":""},META}}',
    "a completion, twice": b'{"jsonrpc":"2.0","id":7,"method":"completion/complete",'
    b'"params":{"ref":{"type":"ref/prompt","name":"secret","name":"open"},'
    b'"argument":{"name":"x","value":""},META}}',
}
EVERYTHING = {**SPELLINGS, **OTHERS}
ALLOWED = request("tools/call", "last", name="allowed", arguments={})
Post = Callable[[bytes], object]


def server(era: str, counts: str, record: Path, **settings: Any) -> dict[str, Any]:
    """Return the settings of a lenient server."""
    command, *args = backend("lenient", era, counts, record / f"{era}-{counts}")
    return {
        "command": command,
        "args": args,
        "base_uri": f"/{era}/{counts}",
        "stop_grace": 0.2,
        **settings,
    }


def lenient(record: Path, **settings: Any) -> dict[str, Any]:
    """Return a configuration with four lenient servers."""
    pairs = [(era, counts) for era in ("legacy", "modern") for counts in ("first", "last")]
    servers = {f"{era}-{counts}": server(era, counts, record, **settings) for era, counts in pairs}
    return {"mcpServers": servers}


BASES = [f"/{era}/{counts}" for era in ("legacy", "modern") for counts in ("first", "last")]


def reached(record: Path) -> set[str]:
    """Return all that has reached any of the servers."""
    return {line for each in record.iterdir() for line in each.read_text().splitlines()}


def is_denied(line: str) -> bool:
    return "denied" in line or "secret" in line


def post_over_sse(stream: SseStream) -> Post:
    return lambda body: stream.post(body.replace(b"META", b'"_meta":{"progressToken":5}'))


def all_over_sse(bridge: Bridge, base: str) -> None:
    """Send everything in a session, and then a call that is answered."""
    stream = bridge.get_sse(f"{base}/sse").read_opening_events()
    stream.send_message(INITIALIZE)
    stream.read_message()
    send = post_over_sse(stream)
    for body in EVERYTHING.values():
        send(body)
    stream.send_message(ALLOWED)
    while json.loads(stream.read_message()).get("id") != "last":
        pass
    stream.close()


def all_over_mcp(bridge: Bridge, base: str, version: str) -> None:
    """Do the same in sessions of Streamable HTTP, with a connection for each message."""
    initialize = INITIALIZE.replace(b"2025-11-25", version.encode())
    with Wire(bridge.port) as wire:
        opened = wire.ask(post(f"{base}/mcp", initialize))
    lines = [
        f"Mcp-Session-Id: {opened.headers['mcp-session-id']}",
        f"MCP-Protocol-Version: {version}",
    ]
    for body in [*EVERYTHING.values(), ALLOWED]:
        sent = body.replace(b"META", b'"_meta":{"progressToken":5}')
        with Wire(bridge.port) as wire:
            wire.ask(post(f"{base}/mcp", sent, *lines))
    with Wire(bridge.port) as wire:
        wire.ask(head("DELETE", f"{base}/mcp", lines))


def all_stateless(bridge: Bridge, base: str) -> None:
    """Do the same with requests of 2026-07-28."""
    for body in EVERYTHING.values():
        method = "tools/call"
        for each in ("prompts/get", "resources/read", "resources/subscribe", "completion/complete"):
            method = each if each.encode() in body else method
        names = [json.loads(b'{"x":%b}' % x)["x"] for x in _named(body)]
        for name in dict.fromkeys([*names, "allowed"]):
            with Wire(bridge.port) as wire:
                wire.ask(
                    post(
                        f"{base}/mcp",
                        body.replace(b"META", META),
                        *modern_lines(method, _field(name)),
                    )
                )
    with Wire(bridge.port) as wire:
        assert (
            b"allowed"
            in wire.ask(
                post(
                    f"{base}/mcp",
                    modern("tools/call", name="allowed"),
                    *modern_lines("tools/call", "allowed"),
                )
            ).body
        )


def _named(body: bytes) -> Iterator[bytes]:
    """Yield the JSON strings that a body may name something with."""
    import re

    for match in re.finditer(
        rb'"(?:name|uri|n\\u0061me|Name|NAME)"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)*")', body
    ):
        yield match[1]


def _field(name: str) -> str:
    """Return a name as the value of a header field."""
    import base64

    if name.isascii() and name.isprintable() and name == name.strip():
        return name
    return f"=?base64?{base64.b64encode(name.encode()).decode()}?="


@pytest.mark.slow
def test_a_denied_name_is_reached_in_no_spelling(tmp_path: Path) -> None:
    assert len(SPELLINGS) >= 50
    with serving(config=lenient(tmp_path, **LISTS)) as bridge:
        for base in BASES:
            all_over_sse(bridge, base)
            all_over_mcp(bridge, base, "2025-11-25")
            all_over_mcp(bridge, base, "2025-03-26")
            all_stateless(bridge, base)
    found = reached(tmp_path)
    assert "tool allowed" in found
    assert not {each for each in found if is_denied(each)}


@pytest.mark.slow
def test_the_spellings_are_real(tmp_path: Path) -> None:
    """Without lists, most of them reach a lenient server: otherwise they would prove nothing."""
    with serving(config=lenient(tmp_path)) as bridge:
        stream = bridge.get_sse("/legacy/last/sse").read_opening_events()
        stream.send_message(INITIALIZE)
        stream.read_message()
        send = post_over_sse(stream)
        real = []
        for body in EVERYTHING.values():
            before = len((tmp_path / "legacy-last").read_text()) if real or reached(tmp_path) else 0
            send(body)
            ident = str(uuid.uuid4())
            stream.send_message(request("ping", ident))
            while json.loads(stream.read_message()).get("id") != ident:
                pass
            path = tmp_path / "legacy-last"
            real.append(path.exists() and is_denied(path.read_text()[before:]))
    assert sum(real[: len(SPELLINGS)]) >= 40
    assert sum(real[len(SPELLINGS) :]) >= 15
