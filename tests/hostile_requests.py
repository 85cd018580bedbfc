"""
Requests that try to get past access control, as bytes, each with the statuses of its responses.

`@TOKEN@` is that of carol, who may use the servers `open` and `tools`, but not the tool `add` of
the second; `@SESSION@` and `@SSE@` are sessions of hers with `tools`.  `@ALL@` is the token of
alice, who may do everything.  No response, to whatever request, may have the sum of the two numbers
in `CALL`.

This module imports nothing of mcpbridge, and knows no connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.e2e.callers import TOKENS

#: Where the ids of the sessions are to be put, which have the same length.
SESSION, SSE = b"@SESSION@".ljust(36, b"-"), b"@SSE@".ljust(36, b"-")
_PLACES = {
    b"@TOKEN@": (TOKENS["carol"] or "").encode("ascii"),
    b"@ALL@": (TOKENS["alice"] or "").encode("ascii"),
    b"@SESSION@": SESSION,
    b"@SSE@": SSE,
}
#: The result of the forbidden call.
SUM = b"4200042"
CALL = b'{"name":"add","arguments":{"a":4200000,"b":42}}'
#: The smallest size of a message that is read in slices.
LARGE = 64 * 1024 + 1
_META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{}}'
)
_ACCEPT = "Accept: application/json, text/event-stream"
_JSON = "Content-Type: application/json"
_TOKEN = "Authorization: Bearer @TOKEN@"
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-03-26",'
    b'"capabilities":{},"clientInfo":{"name":"hostile","version":"1"}}}'
)


class Hostile(NamedTuple):
    """
    A request, or several, and the statuses of all responses.  `code` is that of the JSON-RPC error
    of the last one.
    """

    name: str
    raw: bytes
    statuses: tuple[int, ...]
    code: int | None = None


def _head(
    method: str,
    target: str,
    lines: Sequence[str | bytes],
    length: int | None = None,
    version: str = "1.1",
) -> bytes:
    given = [f"{method} {target} HTTP/{version}", "Host: localhost", *lines]
    if length is not None:
        given.append(f"Content-Length: {length}")
    encoded = (x if isinstance(x, bytes) else x.encode("latin-1") for x in given)
    text = b"".join(b"%b\r\n" % each for each in encoded) + b"\r\n"
    for name, value in _PLACES.items():
        text = text.replace(name, value)
    return text


def _post(
    target: str, body: bytes, *lines: str | bytes, length: int | None = None, version: str = "1.1"
) -> bytes:
    size = len(body) if length is None else length
    return _head("POST", target, [_ACCEPT, _JSON, *lines], size, version) + body


def _chunked(target: str, body: bytes, *lines: str) -> bytes:
    pieces = [body[at : at + 4000] for at in range(0, len(body), 4000)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)
    coding = "Transfer-Encoding: chunked"
    return _head("POST", target, [_ACCEPT, _JSON, coding, *lines]) + chunks + b"0\r\n\r\n"


# Credentials, with a request that they would let in.

#: Header lines, or lists of them, by name; with the status and the code of the error.
_CREDENTIALS: dict[str, tuple[int, list[str | bytes]]] = {
    "none": (401, []),
    "empty": (401, ["Authorization:"]),
    "a space": (401, ["Authorization:  "]),
    "two": (400, [_TOKEN, "Authorization: Bearer other"]),
    "two alike": (400, [_TOKEN, _TOKEN]),
    "two in other letters": (400, [_TOKEN, "AUTHORIZATION: Bearer @TOKEN@"]),
    "an empty one beside": (400, [_TOKEN, "Authorization:"]),
    "an empty one before": (400, ["Authorization:", _TOKEN]),
    "Basic beside": (400, [_TOKEN, "Authorization: Basic Ym9iOmJvYg=="]),
    "joined": (400, ["Authorization: Bearer @TOKEN@, Bearer @TOKEN@"]),
    "joined with Basic": (401, ["Authorization: Basic x, Bearer @TOKEN@"]),
    "Basic": (401, ["Authorization: Basic Ym9iOmJvYg=="]),
    "Basic with the token": (401, ["Authorization: Basic @TOKEN@"]),
    "Digest": (401, ['Authorization: Digest username="alice"']),
    "DPoP": (401, ["Authorization: DPoP @TOKEN@"]),
    "Negotiate": (401, ["Authorization: Negotiate YII="]),
    "no scheme": (401, ["Authorization: @TOKEN@"]),
    "scheme alone": (400, ["Authorization: Bearer"]),
    "scheme and a space": (400, ["Authorization: Bearer "]),
    "scheme and a tab": (400, ["Authorization: Bearer\t@TOKEN@"]),
    "scheme and a colon": (400, ["Authorization: Bearer:@TOKEN@"]),
    "scheme and an equals sign": (400, ["Authorization: Bearer=@TOKEN@"]),
    "no space": (401, ["Authorization: Bearer@TOKEN@".replace("@TOKEN@", "x@TOKEN@")]),
    "Bearers": (401, ["Authorization: Bearers @TOKEN@"]),
    "Token": (401, ["Authorization: Token @TOKEN@"]),
    "bearer twice": (400, ["Authorization: Bearer Bearer @TOKEN@"]),
    "behind the token": (400, ["Authorization: Bearer @TOKEN@ x"]),
    "a parameter behind": (400, ["Authorization: Bearer @TOKEN@;x=1"]),
    "quoted": (400, ['Authorization: Bearer "@TOKEN@"']),
    "in angle brackets": (400, ["Authorization: Bearer <@TOKEN@>"]),
    "as JSON": (400, ['Authorization: Bearer {"token":"@TOKEN@"}']),
    "a parameter": (400, ['Authorization: Bearer token="@TOKEN@"']),
    "escaped": (400, ["Authorization: Bearer %61lice"]),
    "equals sign within": (400, ["Authorization: Bearer a=b"]),
    "equals signs alone": (400, ["Authorization: Bearer =="]),
    "wrong": (401, ["Authorization: Bearer nonsense"]),
    "one letter": (401, ["Authorization: Bearer x"]),
    "longer": (401, ["Authorization: Bearer @TOKEN@x"]),
    "padded": (401, ["Authorization: Bearer @TOKEN@="]),
    "null": (401, ["Authorization: Bearer null"]),
    "undefined": (401, ["Authorization: Bearer undefined"]),
    "a star": (400, ["Authorization: Bearer *"]),
    "SQL": (400, ["Authorization: Bearer ' or 1=1 --"]),
    "a token without signature": (
        401,
        ["Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0."],
    ),
    "16 KiB": (401, [f"Authorization: Bearer {'a' * 16_000}"]),
    "more than 16 KiB": (431, [f"Authorization: Bearer {'a' * 17_000}"]),
    "16 KiB of another scheme": (431, [f"Authorization: Basic {'a' * 17_000}"]),
    "16 KiB of spaces": (401, [f"Authorization: {' ' * 17_000}x"]),
    "100 kB": (431, [f"Authorization: Bearer {'a' * 100_000}"]),
    "many fields": (431, [f"X-{number}: 1" for number in range(5000)]),
    "invalid UTF-8": (400, [b"Authorization: Bearer \xff\xfe"]),
    "UTF-8": (400, ["Authorization: Bearer caf\u00e9".encode()]),
    "invalid UTF-8 of no scheme": (401, [b"Authorization: \xff\xfe"]),
    "DEL": (400, [b"Authorization: Bearer @TOKEN@\x7f"]),
    "NUL": (400, [b"Authorization: Bearer @TOKEN@\x00"]),
    "NUL before": (400, [b"Authorization: \x00Bearer @TOKEN@"]),
    "NUL in the name": (400, [b"Authoriz\x00ation: Bearer @TOKEN@"]),
    "CR": (400, [b"Authorization: Bearer x\rAuthorization: Bearer @TOKEN@"]),
    "LF": (400, [b"Authorization: Bearer x\nAuthorization: Bearer @TOKEN@"]),
    "CR at the end": (400, [b"Authorization: Bearer @TOKEN@\r"]),
    "folded": (400, [b"Authorization: Bearer\r\n @TOKEN@"]),
    "folded with a tab": (400, [b"Authorization: Bearer\r\n\t@TOKEN@"]),
    "folded behind": (400, [b"X: 1\r\n Authorization: Bearer @TOKEN@"]),
    "a space before the colon": (400, [b"Authorization : Bearer @TOKEN@"]),
    "a tab before the colon": (400, [b"Authorization\t: Bearer @TOKEN@"]),
    "a space before the name": (400, [b" Authorization: Bearer @TOKEN@"]),
    "no colon": (400, [b"Authorization Bearer @TOKEN@"]),
    "underscores": (401, ["Authorization_: Bearer @TOKEN@"]),
    "Proxy-Authorization": (401, ["Proxy-Authorization: Bearer @TOKEN@"]),
    "X-Authorization": (401, ["X-Authorization: Bearer @TOKEN@"]),
    "X-Forwarded-Authorization": (401, ["X-Forwarded-Authorization: Bearer @TOKEN@"]),
    "X-Api-Key": (401, ["X-Api-Key: @TOKEN@"]),
    "a cookie": (401, ["Cookie: access_token=@TOKEN@"]),
    "a user of a proxy": (401, ["X-Forwarded-User: alice", "X-Forwarded-For: 127.0.0.1"]),
    "X-Original-URL": (401, ["X-Original-URL: /public", "X-Rewrite-URL: /public"]),
    "X-HTTP-Method-Override": (401, ["X-HTTP-Method-Override: OPTIONS"]),
    "a preflight's headers": (401, ["Access-Control-Request-Method: POST"]),
    "an origin": (401, ["Origin: http://localhost"]),
    "another origin": (403, ["Origin: http://evil.example", _TOKEN]),
    "named a connection option": (200, [_TOKEN, "Connection: Authorization"]),
    "in a trailer's announcement": (401, ["Trailer: Authorization"]),
}


def _credentials() -> Iterator[Hostile]:
    for name, (status, lines) in _CREDENTIALS.items():
        code = None
        if status == 401:
            code = -32600
        yield Hostile(
            f"credentials: {name}", _post("/open/mcp", INITIALIZE, *lines), (status,), code
        )


#: Queries, with the status with a token in the header, and without.
_QUERIES: dict[str, tuple[int, int]] = {
    "access_token=@TOKEN@": (400, 400),
    "x=1&access_token=@TOKEN@": (400, 400),
    "x=1;access_token=@TOKEN@": (400, 400),
    "access_token=": (400, 400),
    "access_token": (400, 400),
    "access_token&x": (400, 400),
    "ACCESS_TOKEN=@TOKEN@": (400, 400),
    "Access_Token=@TOKEN@": (400, 400),
    "%61ccess_token=@TOKEN@": (400, 400),
    "access%5Ftoken=@TOKEN@": (400, 400),
    "access%5ftoken%3D@TOKEN@": (400, 400),
    "%61%63%63%65%73%73%5f%74%6f%6b%65%6e=@TOKEN@": (400, 400),
    "x%26access_token=@TOKEN@": (400, 400),
    "&&access_token=@TOKEN@": (400, 400),
    "?access_token=@TOKEN@": (200, 401),
    "token=@TOKEN@": (200, 401),
    "authorization=Bearer+@TOKEN@": (200, 401),
    "access_tokens=@TOKEN@": (200, 401),
    "x_access_token=@TOKEN@": (200, 401),
    "access%255Ftoken=@TOKEN@": (200, 401),
    "access+token=@TOKEN@": (200, 401),
    "x=access_token": (200, 401),
}


def _queries() -> Iterator[Hostile]:
    for query, (with_token, without) in _QUERIES.items():
        target = f"/open/mcp?{query}"
        yield Hostile(
            f"query: {query}, with a token", _post(target, INITIALIZE, _TOKEN), (with_token,)
        )
        yield Hostile(f"query: {query}", _post(target, INITIALIZE), (without,))


# Messages with the forbidden call, or what some server may take for it.

_REQUEST = b'"jsonrpc":"2.0","id":7'
#: Bodies, each with the status.  `@META@` is where the `_meta` of 2026-07-28 may be.
_MESSAGES: dict[str, tuple[int, bytes]] = {
    "plain": (403, b'{%b,"method":"tools/call","params":@CALL@}'),
    "params first": (403, b'{"params":@CALL@,"method":"tools/call",%b}'),
    "white space": (403, b' \t\r\n{ %b , "method" :\r"tools/call"\n, "params"\t: @CALL@ } \n'),
    "method twice": (400, b'{%b,"method":"ping","method":"tools/call","params":@CALL@}'),
    "method twice, harmless last": (
        400,
        b'{%b,"method":"tools/call","params":@CALL@,"method":"ping"}',
    ),
    "params twice": (400, b'{%b,"method":"tools/call","params":@ECHO@,"params":@CALL@}'),
    "params twice, harmless last": (
        400,
        b'{%b,"method":"tools/call","params":@CALL@,"params":@ECHO@}',
    ),
    "name twice": (
        400,
        b'{%b,"method":"tools/call","params":{"name":"echo","name":"add","arguments":{}}}',
    ),
    "name twice, harmless last": (
        400,
        b'{%b,"method":"tools/call","params":{"name":"add","name":"echo","arguments":{}}}',
    ),
    "escaped name twice": (
        400,
        b'{%b,"method":"tools/call","params":{"name":"echo","n\\u0061me":"add","arguments":{}}}',
    ),
    "escaped member": (403, b'{%b,"meth\\u006fd":"tools/call","params":@CALL@}'),
    "escaped params": (403, b'{%b,"method":"tools/call","p\\u0061rams":@CALL@}'),
    "escaped name": (
        403,
        b'{%b,"method":"tools/call","params":{"n\\u0061me":"add","arguments":{}}}',
    ),
    "escaped tool": (
        403,
        b'{%b,"method":"tools/call","params":{"name":"\\u0061dd","arguments":{}}}',
    ),
    "escaped method": (403, b'{%b,"method":"tools\\/call","params":@CALL@}'),
    "every letter escaped": (
        403,
        (
            b'{%b,"method":"\\u0074\\u006f\\u006f\\u006c\\u0073\\u002f\\u0063\\u0061\\u006c\\u006c",'
            b'"params":@CALL@}'
        ),
    ),
    "Method": (400, b'{%b,"Method":"tools/call","params":@CALL@}'),
    "METHOD beside": (400, b'{%b,"method":"ping","METHOD":"tools/call","params":@CALL@}'),
    "Params": (400, b'{%b,"method":"tools/call","Params":@CALL@}'),
    "Params beside": (400, b'{%b,"method":"tools/call","params":@ECHO@,"Params":@CALL@}'),
    "Name": (400, b'{%b,"method":"tools/call","params":{"Name":"add","arguments":{}}}'),
    "Name beside": (
        400,
        b'{%b,"method":"tools/call","params":{"name":"echo","NAME":"add","arguments":{}}}',
    ),
    "long s": (400, '{%b,"method":"tools/call","params":@ECHO@,"param\u017f":@CALL@}'.encode()),
    "escaped long s": (
        400,
        b'{%b,"method":"tools/call","params":@ECHO@,"param\\u017f":@CALL@}',
    ),
    "no name": (400, b'{%b,"method":"tools/call","params":{"arguments":{}}}'),
    "no params": (400, b'{%b,"method":"tools/call"}'),
    "params null": (400, b'{%b,"method":"tools/call","params":null}'),
    "params by position": (400, b'{%b,"method":"tools/call","params":["add",{}]}'),
    "params a string": (400, b'{%b,"method":"tools/call","params":"add"}'),
    "name null": (400, b'{%b,"method":"tools/call","params":{"name":null}}'),
    "name a number": (400, b'{%b,"method":"tools/call","params":{"name":1}}'),
    "name a list": (400, b'{%b,"method":"tools/call","params":{"name":["add"]}}'),
    "name an object": (400, b'{%b,"method":"tools/call","params":{"name":{"name":"add"}}}'),
    "method a number": (400, b'{%b,"method":1,"params":@CALL@}'),
    "method a list": (400, b'{%b,"method":["tools/call"],"params":@CALL@}'),
    "notification": (403, b'{"jsonrpc":"2.0","method":"tools/call","params":@CALL@}'),
    "with a result": (403, b'{%b,"method":"tools/call","params":@CALL@,"result":{}}'),
    "NUL behind the method": (
        400,
        b'{%b,"method\\u0000":"ping","Method":"tools/call","params":@CALL@}',
    ),
    "byte order mark": (400, b'\xef\xbb\xbf{%b,"method":"tools/call","params":@CALL@}'),
    "UTF-16": (400, '{"jsonrpc":"2.0","id":7,"method":"tools/call"}'.encode("utf-16")),
    "invalid UTF-8": (400, b'{%b,"method":"tools/call","params":@CALL@,"x":"\xff"}'),
    "raw control": (400, b'{%b,"method":"tools/\tcall","params":@CALL@}'),
    "two messages": (400, b'{%b,"method":"ping"}{%b,"method":"tools/call","params":@CALL@}'),
    "two lines": (400, b'{%b,"method":"ping"}\n{%b,"method":"tools/call","params":@CALL@}'),
    "two lines by CR": (400, b'{%b,"method":"ping"}\r{%b,"method":"tools/call","params":@CALL@}'),
    "comment": (400, b'{%b,/* */"method":"tools/call","params":@CALL@}'),
    "trailing comma": (400, b'{%b,"method":"tools/call","params":@CALL@,}'),
    "single quotes": (400, b"{%b,'method':'tools/call','params':@CALL@}"),
    "no quotes": (400, b'{%b,method:"tools/call","params":@CALL@}'),
    "NaN": (400, b'{%b,"method":"tools/call","params":{"name":"echo","arguments":{"a":NaN}}}'),
    "truncated": (400, b'{%b,"method":"tools/call","params":{"name":"add"'),
    "nested deeply": (
        400,
        b'{%b,"method":"tools/call","params":@CALL@,"x":' + b"[" * 3000 + b"]" * 3000 + b"}",
    ),
    "a huge number": (
        403,
        b'{%b,"method":"tools/call","params":@CALL@,"x":' + b"9" * 20_000 + b"}",
    ),
    "a huge exponent": (403, b'{%b,"method":"tools/call","params":@CALL@,"x":1e999999999}'),
    "in a message": (400, b'{"message":{%b,"method":"tools/call","params":@CALL@}}'),
}
#: Names of tools that are not the one that needs a scope, so that the server gets them.
_OTHER_TOOLS = (
    b'"ADD"',
    b'"Add"',
    b'"add "',
    b'" add"',
    b'"add\\u0000"',
    b'"\\uff41dd"',
    b'"add\\ud800"',
    b'"../add"',
)
#: Batches, which sessions of 2025-03-26 have.
_BATCHES: dict[str, tuple[int, bytes]] = {
    "last": (403, b'[{%b,"method":"ping"},{%b,"method":"tools/call","params":@CALL@}]'),
    "first": (403, b'[{%b,"method":"tools/call","params":@CALL@},{%b,"method":"ping"}]'),
    "notification": (403, b'[{"jsonrpc":"2.0","method":"tools/call","params":@CALL@}]'),
    "in a batch": (400, b'[[{%b,"method":"tools/call","params":@CALL@}]]'),
    "beside a number": (400, b'[1,{%b,"method":"tools/call","params":@CALL@}]'),
    "beside null": (400, b'[null,{%b,"method":"tools/call","params":@CALL@}]'),
    "twice in one": (400, b'[{%b,"method":"ping","Method":"tools/call","params":@CALL@}]'),
    "white space before": (403, b'\n\t [{%b,"method":"tools/call","params":@CALL@}]'),
    "after many": (
        403,
        b"[" + b'{%b,"method":"ping"},' * 50 + b'{%b,"method":"tools/call","params":@CALL@}]',
    ),
}
_ECHO = b'{"name":"echo","arguments":{"text":"x"}}'


def _filled(text: bytes, *, meta: bool = False) -> bytes:
    call, echo = CALL, _ECHO
    if meta:
        call, echo = (b"{%b,%b" % (_META, each[1:]) for each in (call, echo))
    return text.replace(b"%b", _REQUEST).replace(b"@CALL@", call).replace(b"@ECHO@", echo)


def _large(body: bytes) -> bytes:
    """Return the same message, so large that it is read in slices."""
    space = b" " * LARGE
    # White space behind the first bracket; before that it might be cut.
    at = max(body.find(b"{"), 0) + 1
    return body[:at] + space + body[at:]


#: The ways of a message to the server `tools`.
_WAYS = {
    "session": ("/tools/mcp", ["Mcp-Session-Id: @SESSION@"]),
    "sse": ("/tools/message?sessionId=@SSE@", []),
}


def _messages() -> Iterator[Hostile]:
    for kind, table in (("message", _MESSAGES), ("batch", _BATCHES)):
        for name, (status, text) in table.items():
            body = _filled(text)
            for way, (target, lines) in _WAYS.items():
                label = f"{kind} on {way}: {name}"
                yield Hostile(label, _post(target, body, _TOKEN, *lines), (status,))
                yield Hostile(
                    f"{label}, large", _post(target, _large(body), _TOKEN, *lines), (status,)
                )
                yield Hostile(
                    f"{label}, chunked", _chunked(target, body, _TOKEN, *lines), (status,)
                )
    for name, (status, text) in _MESSAGES.items():
        body = _filled(text, meta=True)
        lines = ["MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call", "Mcp-Name: echo"]
        yield Hostile(f"2026-07-28: {name}", _post("/tools/mcp", body, _TOKEN, *lines), (status,))
    for tool in _OTHER_TOOLS:
        call = CALL.replace(b'"add"', tool)
        body = b'{"jsonrpc":"2.0","id":8,"method":"tools/call","params":%b}' % call
        for (target, lines), status in zip(_WAYS.values(), (200, 202), strict=True):
            raw = _post(target, body, _TOKEN, *lines)
            yield Hostile(f"tool {tool!r} at {target[:10]}", raw, (status,))
    lines = ["Mcp-Session-Id: @SESSION@"]
    plain = _filled(_MESSAGES["plain"][1])
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        for way, (target, more) in _WAYS.items():
            raw = _head(
                "POST", target, [_ACCEPT, _TOKEN, f"Content-Type: {media}", *more], len(plain)
            )
            yield Hostile(f"media type on {way}: {media}", raw + plain, (403,))
    for coding in ("gzip", "identity", "br"):
        raw = _post("/tools/mcp", plain, _TOKEN, *lines, f"Content-Encoding: {coding}")
        yield Hostile(f"Content-Encoding: {coding}", raw, (403,))
    for media in ("application/json; charset=utf-16", "application/json;x"):
        raw = _head(
            "POST", "/tools/mcp", [_ACCEPT, _TOKEN, f"Content-Type: {media}", *lines], len(plain)
        )
        yield Hostile(f"media type: {media}", raw + plain, (403,))


# Targets: the same server by another name, or another one by the name of an open one.

#: Targets of the forbidden call with a token that is good for the server, and without a token.
_TARGETS: dict[str, tuple[int, int]] = {
    "/tools/mcp": (403, 401),
    "/tools/mcp/": (403, 401),
    "/tools/mcp?x": (403, 401),
    "/tools/mcp?": (403, 401),
    "/tools/%6Dcp": (403, 401),
    "/tools/mc%70": (403, 401),
    "/%74ools/mcp": (403, 401),
    "//tools/mcp": (404, 404),
    "/tools//mcp": (404, 404),
    "/tools/./mcp": (404, 401),
    "/open/../tools/mcp": (404, 401),
    "/open/%2e%2e/tools/mcp": (404, 401),
    "/open/..%2ftools/mcp": (404, 404),
    "/tools/mcp/..": (404, 401),
    "/tools/mcp/../mcp": (404, 401),
    "/tools%2Fmcp": (404, 404),
    "/tools%5Cmcp": (404, 404),
    "/tools\\mcp": (404, 404),
    "/TOOLS/mcp": (404, 404),
    "/tools/MCP": (404, 401),
    "/tools/mcp;x": (404, 401),
    "/tools/mcp%00": (404, 401),
    "/tools/mcp%20": (404, 401),
    "/tools/mcp.json": (404, 401),
    "/tools/mcp/message": (404, 401),
    "/tools/mcp/server-card": (405, 401),
    "/tools": (404, 404),
    "/": (405, 405),
    "*": (405, 405),
    "tools/mcp": (400, 400),
    "http://localhost/tools/mcp": (404, 404),
    "https://localhost/tools/mcp": (404, 404),
    "http://evil.example/tools/mcp": (404, 404),
    "http:///tools/mcp": (404, 404),
    "/.well-known/oauth-protected-resource/tools/mcp": (404, 404),
    "/.well-known/../tools/mcp": (404, 404),
}


def _targets() -> Iterator[Hostile]:
    plain = _filled(_MESSAGES["plain"][1])
    session = "Mcp-Session-Id: @SESSION@"
    for target, (with_token, without) in _TARGETS.items():
        raw = _post(target, plain, _TOKEN, session)
        yield Hostile(f"target {target} with a token", raw, (with_token,))
        yield Hostile(f"target {target}", _post(target, plain, session), (without,))


# Bodies whose end is unclear, and several requests on one connection.


def _framing() -> Iterator[Hostile]:
    plain = _filled(_MESSAGES["plain"][1])
    session = "Mcp-Session-Id: @SESSION@"
    ping = b'{"jsonrpc":"2.0","id":3,"method":"ping"}'
    inner = _post("/tools/mcp", plain, "Authorization: Bearer @ALL@")
    small = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ping), ping)

    def post(*lines: str | bytes, body: bytes = small) -> bytes:
        return _head("POST", "/tools/mcp", [_ACCEPT, _JSON, _TOKEN, session, *lines]) + body

    framings: dict[str, tuple[tuple[int, ...], bytes]] = {
        "both": ((400,), post("Content-Length: 4", "Transfer-Encoding: chunked")),
        "both, the other way": ((400,), post("Transfer-Encoding: chunked", "Content-Length: 4")),
        "two lengths": (
            (400,),
            post(f"Content-Length: {len(ping)}", "Content-Length: 4", body=ping),
        ),
        "two lengths alike": (
            (400,),
            post(*[f"Content-Length: {len(ping)}"] * 2, body=ping),
        ),
        "joined lengths": ((400,), post(f"Content-Length: {len(ping)}, 4", body=ping)),
        "signed length": ((400,), post(f"Content-Length: +{len(ping)}", body=ping)),
        "negative length": ((400,), post("Content-Length: -1", body=ping)),
        "hexadecimal length": ((400,), post("Content-Length: 0x28", body=ping)),
        "huge length": ((400,), post(f"Content-Length: {'9' * 30}", body=ping)),
        "no number": ((400,), post("Content-Length: x", body=ping)),
        "a space in the name": ((400,), post("Content-Length : 4", body=ping)),
        "chunked twice": ((400,), post("Transfer-Encoding: chunked, chunked")),
        "chunked in two fields": ((400,), post(*["Transfer-Encoding: chunked"] * 2)),
        "chunked not last": ((400,), post("Transfer-Encoding: chunked, identity")),
        "identity": ((501,), post("Transfer-Encoding: identity")),
        "gzip": ((501,), post("Transfer-Encoding: gzip, chunked")),
        "quoted": ((501,), post('Transfer-Encoding: "chunked"')),
        "vertical tab": ((400,), post(b"Transfer-Encoding: \x0bchunked")),
        "xchunked": ((501,), post("Transfer-Encoding: xchunked")),
        "chunk size with a sign": ((400,), post("Transfer-Encoding: chunked", body=b"+" + small)),
        "chunk size with 0x": ((400,), post("Transfer-Encoding: chunked", body=b"0x" + small)),
        "huge chunk": (
            (400,),
            post("Transfer-Encoding: chunked", body=b"f" * 17 + b"\r\n" + ping),
        ),
        "chunk ended by LF": (
            (400,),
            post("Transfer-Encoding: chunked", body=b"%x\n%b\n0\n\n" % (len(ping), ping)),
        ),
        "chunk too long": (
            (400,),
            post("Transfer-Encoding: chunked", body=b"%x\r\n%bxx\r\n0\r\n\r\n" % (len(ping), ping)),
        ),
        "trailer with a token": (
            (401,),
            _head("POST", "/open/mcp", [_ACCEPT, _JSON, "Transfer-Encoding: chunked"])
            + b"%x\r\n%b\r\n0\r\nAuthorization: Bearer @TOKEN@\r\n\r\n"
            % (len(INITIALIZE), INITIALIZE),
        ),
        "a request in a body": ((401,), _post("/tools/mcp", inner)),
        "a request behind a GET": (
            (401, 403),
            _head("GET", "/tools/mcp", [_ACCEPT]) + _post("/tools/mcp", plain, _TOKEN, session),
        ),
        "a request behind a short body": (
            (400, 401),
            post(f"Content-Length: {len(ping) - 2}", body=ping[:-2]) + _post("/tools/mcp", plain),
        ),
        "HTTP/1.0": ((403,), _post("/tools/mcp", plain, _TOKEN, session, version="1.0")),
        "HTTP/1.0 without a token": ((401,), _post("/tools/mcp", plain, session, version="1.0")),
        "HTTP/1.0 kept alive": (
            (403,),
            _post("/tools/mcp", plain, _TOKEN, session, "Connection: keep-alive", version="1.0"),
        ),
        "HTTP/2.0": ((400,), _post("/tools/mcp", plain, session, version="2.0")),
        "HTTP/9.9": ((400,), _post("/tools/mcp", plain, session, version="9.9")),
        "HTTP/2 preface": ((400,), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "upgrade": (
            (401,),
            _post("/tools/mcp", plain, session, "Connection: Upgrade", "Upgrade: h2c"),
        ),
        "CONNECT": ((501,), _head("CONNECT", "localhost:80", [_TOKEN])),
        "TRACE": ((401,), _head("TRACE", "/tools/mcp", [])),
        "unknown method": ((401,), _head("MERGE", "/tools/mcp", [])),
        "continue": (
            (403,),
            _post("/tools/mcp", plain, _TOKEN, session, "Expect: 100-continue"),
        ),
        "continue without a token": (
            (401,),
            _post("/tools/mcp", plain, session, "Expect: 100-continue"),
        ),
        "continue with a large body": (
            (401,),
            _head(
                "POST", "/tools/mcp", [_ACCEPT, _JSON, session, "Expect: 100-continue"], 10 * LARGE
            ),
        ),
        "a large body without a token": ((401,), _post("/tools/mcp", b" " * 10 * LARGE, session)),
        "large chunks without a token": (
            (401,),
            _chunked("/tools/mcp", b" " * 10 * LARGE, session),
        ),
        "other expectation": (
            (401,),
            _post("/tools/mcp", plain, session, "Expect: a-token"),
        ),
        "no host": ((400,), b"POST /tools/mcp HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
        "two hosts": ((400,), _post("/tools/mcp", plain, session, "Host: x")),
        "another host": (
            (403,),
            _post("/tools/mcp", plain, _TOKEN, session).replace(b"localhost", b"evil.example"),
        ),
        "authorised, not": (
            (200, 401),
            _post("/tools/mcp", ping, _TOKEN, session) + _post("/tools/mcp", ping, session),
        ),
        "not, authorised": (
            (401, 200),
            _post("/tools/mcp", ping, session) + _post("/tools/mcp", ping, _TOKEN, session),
        ),
        "authorised, another's, wrong, authorised": (
            (200, 404, 401, 200),
            _post("/tools/mcp", ping, _TOKEN, session)
            + _post("/tools/mcp", ping, "Authorization: Bearer @ALL@", session)
            + _post("/tools/mcp", ping, "Authorization: Bearer @TOKEN@x", session)
            + _post("/tools/mcp", ping, _TOKEN, session),
        ),
        "allowed, forbidden, allowed": (
            (200, 403, 200),
            _post("/tools/mcp", ping, _TOKEN, session)
            + _post("/tools/mcp", plain, _TOKEN, session)
            + _post("/tools/mcp", ping, _TOKEN, session),
        ),
        "preflight without a token": (
            (204,),
            _head(
                "OPTIONS",
                "/tools/mcp",
                ["Origin: http://localhost", "Access-Control-Request-Method: POST"],
            ),
        ),
        "preflight, then a call": (
            (204, 401),
            _head(
                "OPTIONS",
                "/tools/mcp",
                ["Origin: http://localhost", "Access-Control-Request-Method: POST"],
            )
            + _post("/tools/mcp", plain, session, "Origin: http://localhost"),
        ),
        "OPTIONS with a body": (
            (401,),
            _head("OPTIONS", "/tools/mcp", [_ACCEPT, _JSON, session], len(plain)) + plain,
        ),
        "GET with a body": (
            (401,),
            _head("GET", "/tools/mcp", [_ACCEPT, _JSON, session], len(plain)) + plain,
        ),
        "metadata without a token": (
            (404,),
            _head("GET", "/.well-known/oauth-protected-resource/tools/mcp", []),
        ),
    }
    for name, (statuses, raw) in framings.items():
        yield Hostile(f"framing: {name}", raw, statuses)


HOSTILE = [*_credentials(), *_queries(), *_messages(), *_targets(), *_framing()]
