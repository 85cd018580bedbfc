"""A token opens for its caller and its request, for a time, and for nobody else."""

import json
import string
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.errors import InvalidRequestState
from mcpbridge.jsonrpc.envelope import peek, peek_again
from mcpbridge.jsonrpc.parsed_message import with_envelope
from mcpbridge.mcp.modern_request import (
    CLIENT_CAPABILITIES,
    PROTOCOL_VERSION,
    ModernRequest,
    read_request,
)
from mcpbridge.mcp.request_state import MAX_HANDLE, MAX_TOKEN, MIN_KEY, StateKey, presented

KEY = StateKey(bytes(range(32)))
META = {PROTOCOL_VERSION: "2026-07-28", CLIENT_CAPABILITIES: {}}
ALPHABET = string.ascii_letters + string.digits + "-_"
NOW, TTL = 1000.0, 60.0


def request(params: Any = None, *, method: str = "tools/list", ident: Any = 7) -> ModernRequest:
    """A request with these parameters: a dict, or the text of its members."""
    if not isinstance(params, str):
        params = json.dumps({} if params is None else params)[1:-1]
    members = ", ".join(filter(None, [params, f'"_meta": {json.dumps(META)}']))
    line = json.dumps({"jsonrpc": "2.0", "id": ident, "method": method})[:-1]
    body = f'{line}, "params": {{{members}}}}}'.encode()
    envelope = peek(body) or peek_again(body)
    assert envelope is not None
    return read_request(with_envelope(body, envelope), version_header="2026-07-28")


def seal(**changes: Any) -> str:
    return KEY.seal(
        changes.get("handle", "h-1"),
        changes.get("identity", "alice"),
        changes.get("request", request({"cursor": "c"})),
        NOW,
        TTL,
    )


def opened(token: str, **changes: Any) -> str:
    return changes.get("key", KEY).open(
        token,
        changes.get("identity", "alice"),
        changes.get("request", request({"cursor": "c"}, ident="retry")),
        changes.get("now", NOW + 1),
    )


# What opens.


@given(
    handle=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    identity=st.text(st.characters(exclude_categories=())),
    now=st.floats(0, 1e10),
)
def test_a_sealed_handle_can_be_opened(handle: str, identity: str, now: float) -> None:
    token = KEY.seal(handle, identity, request(), now, TTL)
    assert set(token) <= set(ALPHABET)
    assert KEY.open(token, identity, request(ident=8), now) == handle


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('"a": 1, "b": {"x": 1, "y": [1, 2]}', '"b":{"y":[1,2],"x":1},"a":1'),
        ('"a": "\\u00e9"', '"a": "é"'),
        ('"a": "\\ud800"', '"a": "\\uD800"'),
        ('"a": 1', '"a": 1, "inputResponses": {"k": {}}, "requestState": "s"'),
        ('"a": 1', '"a": 1, "requestState": 5'),
    ],
)
def test_the_same_parameters_in_another_spelling(first: str, second: str) -> None:
    token = seal(request=request(first))
    assert opened(token, request=request(second)) == "h-1"


def test_params_without_a_canonical_form() -> None:
    """An integer that Python does not read is as good as any other value."""
    one, two = f'"a": {"1" * 5000}', f'"a": {"1" * 4999}2'
    token = seal(request=request(one))
    assert opened(token, request=request(one)) == "h-1"
    with pytest.raises(InvalidRequestState, match="other parameters"):
        opened(token, request=request(two))


def test_tokens_of_other_versions_of_the_bridge_can_be_opened() -> None:
    """Bridges that share a key may be of different releases: the format is fixed."""
    token = (
        "AUCQkAAAAAAATSxwLqdZHfKrOyz1xYkIG337evwuHuDo4zq9gk4DYytoLTFi-dn3UFzmOHs-YkcA"
        "3paGz_Wt9u6PPXK70mtPTdXJVg"
    )
    assert opened(token) == "h-1"
    assert seal() == token


def test_the_longest_handle() -> None:
    handle = "é" * (MAX_HANDLE // 2)
    token = seal(handle=handle)
    assert len(token) <= MAX_TOKEN
    assert opened(token) == handle
    with pytest.raises(ValueError, match="the handle has"):
        seal(handle=handle + "x")


def test_a_short_key_is_refused() -> None:
    StateKey(bytes(MIN_KEY))
    with pytest.raises(ValueError, match="the key has"):
        StateKey(bytes(MIN_KEY - 1))


# What does not.


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"key": StateKey(bytes(32))}, "changed, or is of another server"),
        ({"identity": "bob"}, "changed, or is of another server"),
        ({"identity": ""}, "changed, or is of another server"),
        ({"request": request({"cursor": "d"})}, "other parameters"),
        ({"request": request({"cursor": "c", "more": None})}, "other parameters"),
        ({"request": request({"curso": "rc"})}, "other parameters"),
        ({"request": request({"cursor": "c"}, method="prompts/list")}, "other parameters"),
        ({"now": NOW + TTL}, "has expired"),
        ({"now": float("inf")}, "has expired"),
    ],
)
def test_each_refusal_says_why(changes: dict[str, Any], text: str) -> None:
    """MCP, patterns/mrtr: reject state of another principal, of another request, and old state."""
    with pytest.raises(InvalidRequestState, match=text) as caught:
        opened(seal(), **changes)
    assert caught.value.ident == changes.get("request", request(ident="retry")).id


def test_a_token_expires() -> None:
    assert opened(seal(), now=NOW + TTL - 0.001) == "h-1"


@pytest.mark.parametrize(
    "token",
    ["", "A", "AA", "A" * 40, "é" * 200, "\ud800", "=" * 200, "A" * 200 + "=", " ", "A B" * 60],
)
def test_malformed_tokens(token: str) -> None:
    with pytest.raises(InvalidRequestState, match="malformed"):
        opened(token)


def test_a_long_token_is_not_decoded() -> None:
    with pytest.raises(InvalidRequestState, match="malformed"):
        opened("A" * (MAX_TOKEN + 4))
    with pytest.raises(InvalidRequestState, match="changed"):
        opened("A" * MAX_TOKEN)


def test_a_change_of_any_character_is_refused() -> None:
    """MCP, patterns/mrtr: it is attacker-controlled; each character, each other one."""
    token = seal()
    retry = request({"cursor": "c"}, ident="retry")
    for at, letter in enumerate(token):
        for other in ALPHABET:
            if other != letter:
                with pytest.raises(InvalidRequestState):
                    opened(token[:at] + other + token[at + 1 :], request=retry)


@settings(deadline=None)
@given(st.data())
def test_any_other_text_is_refused(data: st.DataObject) -> None:
    token = seal(handle=data.draw(st.text(string.ascii_letters, max_size=9)))
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, len(token)))
    other = token[:start] + data.draw(st.text(max_size=9)) + token[end:]
    if other != token:
        with pytest.raises(InvalidRequestState):
            opened(other)


# What it tells.


def test_a_token_reveals_neither_caller_nor_request() -> None:
    """Two tokens of one caller have no more in common than two of two callers."""
    one = msgspec.json.encode([seal(handle="x"), seal(handle="y")])
    assert b"alice" not in one
    first, second = (KEY.seal(h, "alice", request(), NOW, TTL) for h in ("x", "y"))
    # Version and expiry are equal, the digests are not: 12 characters are 9 bytes.
    assert first[:12] == second[:12]
    assert first[12:34] != second[12:34]
    assert first[34:54] != second[34:54]


@pytest.mark.parametrize(
    ("params", "state"),
    [
        ("", None),
        ('"requestState": "s"', "s"),
        ('"requestState": ""', ""),
        ('"requestState": "\\ud800"', "\ud800"),
    ],
)
def test_the_token_of_a_retry(params: str, state: str | None) -> None:
    assert presented(request(params)) == state


@pytest.mark.parametrize("value", ["null", "1", "{}", '["s"]'])
def test_a_state_that_is_not_a_string_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequestState) as caught:
        presented(request(f'"requestState": {value}'))
    assert caught.value.ident == 7
