"""What the POST of a message must say of it."""

from __future__ import annotations

import msgspec
import pytest

from mcpbridge.mcp.header_validation import Annotation
from mcpbridge.mcp.posted_message import NAME_CHARS, Kind, read_posted

META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{}}'
)


@pytest.mark.parametrize(
    ("line", "kind", "idents"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"a"}', Kind.REQUEST, (1,)),
        (b'{"jsonrpc":"2.0","id":"x","method":"a"}', Kind.REQUEST, ("x",)),
        (b'{"jsonrpc":"2.0","method":"a"}', Kind.NOTIFICATION, ()),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', Kind.RESPONSE, ()),
        (b'{"jsonrpc":"2.0","id":1}', Kind.UNKNOWN, ()),
        (b"nonsense", Kind.UNKNOWN, ()),
        (
            b'[{"jsonrpc":"2.0","id":1,"method":"a"},7,{"jsonrpc":"2.0","id":2,"method":"\\ud800"}]',
            Kind.BATCH,
            (1, 2),
        ),
    ],
)
def test_kind(line: bytes, kind: Kind, idents: tuple[object, ...]) -> None:
    message = read_posted(line)
    assert (message.kind, message.idents) == (kind, idents)
    assert message.is_request is bool(idents)
    assert message.line == line


def test_only_a_cancellation_cancels() -> None:
    line = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}'
    assert read_posted(line).cancels == 7
    assert read_posted(b'{"jsonrpc":"2.0","method":"a"}').cancels is msgspec.UNSET


def test_a_legacy_request_has_no_headers() -> None:
    message = read_posted(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t"}}')
    assert message.headers() == []
    assert message.tool == "t"
    assert read_posted(b'{"jsonrpc":"2.0","id":1,"method":"a"}').tool is None


def modern(method: str, params: bytes = b"") -> bytes:
    inner = META + (b"," + params if params else b"")
    return b'{"jsonrpc":"2.0","id":1,"method":"%b","params":{%b}}' % (method.encode(), inner)


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("tools/list", b"", None),
        ("tools/call", b'"name":"add"', "add"),
        ("resources/read", b'"uri":"file:///a b"', "file:///a b"),
        ("prompts/get", b'"name":"=?base64?eA==?="', "=?base64?PT9iYXNlNjQ/ZUE9PT89?="),
        ("tools/call", b'"name":" a"', "=?base64?IGE=?="),
        ("tools/call", b'"name":"\xc3\xa4"', "=?base64?w6Q=?="),
        ("tools/call", b'"name":7', None),
        ("tools/call", b'"name":"' + b"x" * (NAME_CHARS + 1) + b'"', None),
    ],
)
def test_headers_of_a_modern_request(method: str, params: bytes, name: str | None) -> None:
    expected = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", method)]
    if name is not None:
        expected.append(("Mcp-Name", name))
    assert read_posted(modern(method, params)).headers() == expected


def test_arguments_that_are_repeated_in_headers() -> None:
    line = modern("tools/call", b'"name":"t","arguments":{"a":true,"b":{"c":7},"d":null}')
    annotations = (
        Annotation(("a",), "Mcp-Param-A", "boolean"),
        Annotation(("b", "c"), "Mcp-Param-C", "integer"),
        Annotation(("d",), "Mcp-Param-D", "string"),
        Annotation(("e",), "Mcp-Param-E", "string"),
    )
    headers = read_posted(line).headers(annotations)
    assert headers[3:] == [("Mcp-Param-A", "true"), ("Mcp-Param-C", "7")]
