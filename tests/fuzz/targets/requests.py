"""Requests of 2026-07-28, their headers, and what leads back to earlier ones."""

from __future__ import annotations

import base64
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from mcpbridge.errors import CannotResume, HeaderMismatch, InvalidRequestState, Refused
from mcpbridge.jsonrpc.large_messages import read_large
from mcpbridge.jsonrpc.parsed_message import ParsedMessage, parse_message
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, at_once
from mcpbridge.jsonrpc.surrogates import may_have_surrogates
from mcpbridge.mcp import modern_request
from mcpbridge.mcp.header_validation import annotated, check_headers, check_params, headers_match
from mcpbridge.mcp.modern_request import ModernRequest, read_request, try_read_request
from mcpbridge.mcp.request_state import MAX_HANDLE, StateKey
from tests.fuzz.targets import fields_of, target
from tests.fuzz.targets.messages import loads
from tests.unit.mcp.test_stream_router import Connection, Routed

_VERSION = "2026-07-28"
_META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{}}'
)
_CALL = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":1},%b}}'
)


def _parse(body: bytes) -> ParsedMessage | None:
    try:
        return parse_message(body)
    except Refused:
        return None


def _read(message: ParsedMessage, header: str | None) -> Any:
    try:
        found = read_request(message, version_header=header)
    except Refused as error:
        error.body()
        return type(error), str(error), error.ident
    return _values(found)


def _values(found: ModernRequest) -> list[object]:
    values = [getattr(found, name) for name in ModernRequest.__struct_fields__]
    return [
        {name: bytes(raw) for name, raw in each.items()} if isinstance(each, dict) else each
        for each in values
    ]


def _request(body: bytes) -> ModernRequest:
    message = parse_message(body)
    assert message is not None
    return read_request(message, version_header=_VERSION)


@target
def modern_requests(data: bytes) -> None:
    """A request is read alike, whether its client is known, and whether it is a large one."""
    message = _parse(data)
    if message is None:
        return
    for header in (_VERSION, None, "2025-11-25"):
        modern_request._known_clients.clear()
        first = _read(message, header)
        assert _read(message, header) == first
    modern_request._known_clients.clear()
    first = _read(message, _VERSION)
    quick = try_read_request(message.line)
    if quick is not None:
        assert _values(quick) == first
    if isinstance(first, list):
        model = loads(message.line)
        assert model["params"]["_meta"][modern_request.PROTOCOL_VERSION] == first[5] == _VERSION
    if may_have_surrogates(data):
        # In a name that nobody looks for, `read_large` replaces a lone one.
        return
    try:
        large = at_once(read_large(data, size=16))
    except Refused:
        return
    assert large is not None
    modern_request._known_clients.clear()
    assert _read(large, _VERSION) == first


def _decoded(values: list[str]) -> str | None:
    """Return what a header says, as a lenient proxy might read it."""
    if len(values) != 1:
        return None
    text = values[0].strip(" \t")
    match = re.fullmatch(r"=\?base64\?(.*)\?=", text)
    if match is None:
        return text
    try:
        return base64.b64decode(match[1]).decode("utf-8")
    except ValueError:
        return None


@target
def request_headers(data: bytes) -> None:
    """Headers that are accepted say what the body says."""
    *lines, name = fields_of(data, 5)
    version, method, called, more = (each.decode("latin-1") for each in lines)
    sent = {"mcp-protocol-version": [version], "mcp-method": [method], "mcp-name": [called]}
    if more:
        field, _, value = more.partition(":")
        sent.setdefault(field.lower(), []).append(value)
    try:
        text = name.decode("utf-8")
    except ValueError:
        return
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": text}}
    body = json.dumps(call).encode()[:-2] + b"," + _META + b"}}"
    request = _request(body)

    def headers(name: str) -> list[str]:
        return sent.get(name.lower(), [])

    try:
        check_headers(request, headers)
    except HeaderMismatch as error:
        assert error.ident == 1
        assert not headers_match(request, headers)
        return
    assert headers("MCP-Protocol-Version")[0].strip(" \t") == _VERSION
    assert headers("Mcp-Method")[0].strip(" \t") == "tools/call"
    assert _decoded(headers("Mcp-Name")) == text


@target
def header_annotations(data: bytes) -> None:
    """Annotations of a list of tools are read alike in a large list; a header has its argument."""
    schema, arguments = fields_of(data, 2)
    page = b'{"tools":[{"name":"a","inputSchema":%b}]}' % schema
    found, cursor = annotated(page)
    padded = page.replace(b"[", b"[" + b" " * LARGE_BYTES, 1)
    assert annotated(padded) == (found, cursor)
    annotated(data)
    try:
        request = _request((_CALL % _META).replace(b'{"x":1}', arguments))
        value = loads(arguments)
    except (Refused, ValueError):
        return
    for annotation in found.get("a", ()):
        seen = value
        for step in annotation.path:
            seen = seen.get(step) if isinstance(seen, dict) else None
        try:
            check_params(request, (annotation,), lambda _: ["no argument has this value"])
        except HeaderMismatch:
            continue
        assert seen == "no argument has this value"


_KEY = StateKey(b"k" * 32)
_SEALED = _request(_CALL % _META)
_OTHER = _request((_CALL % _META).replace(b'"x":1', b'"x":2'))
_TOKEN = _KEY.seal("handle", "alice", _SEALED, 0.0, 60.0)


@target
def request_state(data: bytes) -> None:
    """No token opens but the one that was sealed, for nothing but what it was sealed for."""
    blob = urlsafe_b64decode(_TOKEN + "=" * (-len(_TOKEN) % 4))
    changes = data[: len(blob)].ljust(len(blob), b"\0")
    changed = bytes(one ^ other for one, other in zip(blob, changes, strict=True))
    handle = data[:MAX_HANDLE].decode("utf-8", "ignore")
    for token in (
        data.decode("latin-1"),
        data.decode("utf-8", "surrogateescape"),
        urlsafe_b64encode(data).decode(),
        urlsafe_b64encode(changed).decode().rstrip("="),
        _TOKEN + data.decode("latin-1"),
    ):
        try:
            opened = _KEY.open(token, "alice", _SEALED, 1.0)
        except InvalidRequestState as error:
            assert token != _TOKEN
            assert error.ident == 1
        else:
            assert (token, opened) == (_TOKEN, "handle")
    sealed = _KEY.seal(handle, handle, _SEALED, 0.0, 60.0)
    assert _KEY.open(sealed, handle, _SEALED, 59.0) == handle
    for caller, request, now in (
        (handle + "x", _SEALED, 59.0),
        (handle, _OTHER, 59.0),
        (handle, _SEALED, 60.0),
    ):
        try:
            _KEY.open(sealed, caller, request, now)
        except InvalidRequestState:
            continue
        raise AssertionError("a token was opened that must not be")


@target
def last_event_id(data: bytes) -> None:
    """A client that comes back gets what came after its event on that stream, or an error."""
    ident = data.decode("latin-1")
    routed = Routed()
    routed.post(1)
    routed.post(2, 3)
    routed.router.open_get(Connection())
    routed.router.route(b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')
    routed.router.route(b'{"jsonrpc":"2.0","id":2,"result":{}}')
    routed.router.route(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    sink = Connection()
    match = re.fullmatch(r"([0-2])-([0-9]+)", ident, re.ASCII)
    try:
        name = routed.router.resume(ident, sink)
    except CannotResume:
        assert match is None or match[2] not in ("0", "1")
        assert not sink.events
        return
    assert match is not None
    assert name == match[1]
    assert sink.idents == [f"{name}-{at}" for at in range(int(match[2]) + 1, 2)]
