"""Errors: each knows its status, its code and what a user reads."""

import json
from collections.abc import Iterator

import pytest

from mcpbridge import errors
from mcpbridge.errors import (
    MAX_SHOWN_ID,
    BridgeError,
    IdInUse,
    MethodNotAllowed,
    Refused,
    SettingError,
    StreamTaken,
)

#: Name, HTTP status, JSON-RPC code, Retry-After.
TABLE = {
    "EmptyBody": (400, -32600, None),
    "NotJson": (400, -32700, None),
    "NotJsonRpc": (400, -32600, None),
    "IdInUse": (400, -32600, None),
    "CannotResume": (400, -32000, None),
    "MessageRefused": (400, -32000, None),
    "Forbidden": (403, -32000, None),
    "Unauthorized": (401, -32600, None),
    "InvalidToken": (401, -32600, None),
    "MalformedCredentials": (400, -32600, None),
    "AuthenticationUnavailable": (503, -32603, b"5"),
    "BadHost": (400, -32000, None),
    "MissingCredentials": (400, -32000, None),
    "UnusableCredentials": (400, -32000, None),
    "MalformedRequest": (400, -32000, None),
    "HeadTooLarge": (431, -32000, None),
    "NotSupported": (501, -32000, None),
    "MissingSessionId": (400, -32000, None),
    "NotAcceptable": (406, -32000, None),
    "UnsupportedMediaType": (415, -32000, None),
    "TooManyMcpSessions": (429, -32000, b"5"),
    "NotFound": (404, -32000, None),
    "UnknownSession": (404, -32001, None),
    "Ambiguous": (409, -32000, None),
    "MethodNotAllowed": (405, -32000, None),
    "MessageTooLarge": (413, -32000, None),
    "TooComplex": (413, -32000, None),
    "TooManySessions": (429, -32600, b"5"),
    "InternalError": (500, -32603, None),
    "BackendFailed": (502, -32603, None),
    "BackendEnded": (502, -32603, None),
    "TooManyStreams": (429, -32000, b"5"),
    "BackendBusy": (503, -32000, b"1"),
    "SessionBusy": (503, -32000, b"1"),
    "RequestMemoryFull": (503, -32000, b"1"),
    "ShuttingDown": (503, -32000, b"5"),
    "HeaderMismatch": (400, -32020, None),
    "InvalidParams": (400, -32602, None),
    "InvalidRequestState": (400, -32602, None),
    "MethodNotFound": (404, -32601, None),
    "ServerBusy": (429, -32603, b"1"),
}
#: Those that are made of more than a text, each with a test of its own.
OF_THEIR_OWN = {
    "InsufficientScope",
    "MissingCapability",
    "RateExceeded",
    "ServerDown",
    "StreamTaken",
    "TooManyOfAddress",
    "UnsupportedVersion",
}


def all_below(kind: type[BridgeError]) -> Iterator[type[BridgeError]]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each
            yield from all_below(each)


def test_the_table_is_complete() -> None:
    """One tree, and every class of it says in prose what happened."""
    assert {each.__name__ for each in all_below(Refused)} == {*TABLE} | OF_THEIR_OWN
    for each in all_below(BridgeError):
        assert each.__doc__
        assert each.__doc__.strip().endswith(".")


@pytest.mark.parametrize("name", TABLE)
def test_body_and_headers_of_an_error(name: str) -> None:
    """The status is 400, 404 or 429; invalid input gets a JSON-RPC error."""
    status, code, retry_after = TABLE[name]
    text = 'what "happened"\n\x00 \u00e9'
    kind: type[Refused] = getattr(errors, name)
    error = MethodNotAllowed(text, "GET") if kind is MethodNotAllowed else kind(text)
    headers = dict(error.headers())
    assert (error.status, error.code) == (status, code)
    assert headers.get(b"Retry-After") == retry_after
    assert headers[b"Content-Type"] == b"application/json"
    if name == "TooManySessions":
        return
    assert json.loads(error.body()) == {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": code, "message": text},
    }
    assert error.body().startswith(b'{"jsonrpc":"2.0","id":null,"error":{')
    assert b"\n" not in error.body()


def test_too_many_sessions_has_the_body_of_apisix() -> None:
    """The body with the 429 is the one that APISIX's clients know, and a line feed."""
    body = errors.TooManySessions("whatever").body()
    assert body == b'{"error_msg":"too many concurrent MCP sessions"}\n'


def test_an_error_of_authentication_has_its_challenge() -> None:
    error = errors.InsufficientScope("this needs files:write", ["files:write"])
    assert (error.status, error.code, error.scopes) == (403, -32600, ("files:write",))
    assert dict(error.headers())[b"WWW-Authenticate"] == b"Bearer"
    error.challenge = b'Bearer scope="files:write"'
    assert dict(error.headers())[b"WWW-Authenticate"] == b'Bearer scope="files:write"'


def test_wrong_method_names_the_allowed_ones() -> None:
    headers = dict(MethodNotAllowed("no", "GET, OPTIONS").headers())
    assert headers[b"Allow"] == b"GET, OPTIONS"


@pytest.mark.parametrize("length", [MAX_SHOWN_ID, MAX_SHOWN_ID + 1])
def test_long_id_is_cut_in_an_error(length: int) -> None:
    """`MAX_SHOWN_ID`: in the text, and in the data for programs."""
    ident = '"' + "x" * (length - 2) + '"'
    error = IdInUse.of(ident.encode())
    shown = ident if length <= MAX_SHOWN_ID else ident[:MAX_SHOWN_ID] + "..."
    assert f"the id {shown} is" in str(error)
    told = json.loads(error.body())["error"]["data"]["requestId"]
    assert told == (json.loads(ident) if length <= MAX_SHOWN_ID else shown)


@pytest.mark.parametrize(
    ("got", "shown"),
    [
        ("10", '"10"'),
        (True, "true"),
        (None, "null"),
        ([1, "a"], '[1,"a"]'),
        ("a\nb", '"a\\nb"'),
        (errors.Described("a remote server"), "a remote server"),
        ("<text>", '"<text>"'),
        (b"bytes", '"Ynl0ZXM="'),
        (object, "<class 'object'>"),
        ("x" * 100, '"' + "x" * 76 + "..."),
    ],
)
def test_a_wrong_setting_is_one_line(got: object, shown: str) -> None:
    """An error names the field, what was expected and what was got."""
    assert str(SettingError("name", "a thing", got)) == f"name: expected a thing, got {shown}"


def test_unsupported_version_names_the_supported_ones() -> None:
    """2026-07-28, basic/versioning: -32022 with what is supported."""
    error = errors.UnsupportedVersion("2999-01-01", ("2025-06-18", "2025-11-25"))
    assert (error.status, error.code) == (400, -32022)
    data = json.loads(error.body())["error"]["data"]
    assert data == {"supported": ["2025-06-18", "2025-11-25"], "requested": "2999-01-01"}


def test_a_missing_capability_is_named() -> None:
    """2026-07-28, basic/index: -32021 with an object of capabilities."""
    error = errors.MissingCapability("it asks the user", {"elicitation": {"form": {}}})
    assert (error.status, error.code) == (400, -32021)
    assert json.loads(error.body())["error"] == {
        "code": -32021,
        "message": "it asks the user",
        "data": {"requiredCapabilities": {"elicitation": {"form": {}}}},
    }


def test_server_down_has_a_retry_time() -> None:
    error = errors.ServerDown("it does not start", 17)
    assert (error.status, error.code) == (503, -32603)
    assert dict(error.headers())[b"Retry-After"] == b"17"
    assert "data" not in json.loads(error.body())["error"]


@pytest.mark.parametrize("ident", [7, "a", 1.5, None])
def test_error_has_the_id_of_its_request(ident: str | float | None) -> None:
    """2026-07-28, basic/index, "Error Responses": the id of the request, where it is known."""
    error = errors.MethodNotFound("no such method")
    error.ident = ident
    assert json.loads(error.body())["id"] == ident


def test_taken_stream_has_a_retry_time() -> None:
    """The client may try again after that time."""
    error = StreamTaken("two clients", 7)
    assert (error.status, error.code) == (429, -32000)
    assert (b"Retry-After", b"7") in error.headers()


def test_callers_are_told_when_to_come_back() -> None:
    error = errors.RateExceeded("too fast", 3)
    assert (error.status, error.code) == (429, -32000)
    assert (b"Retry-After", b"3") in error.headers()
