"""The bearer token of a request: where it may be, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from mcpbridge.auth.bearer import (
    MAX_CREDENTIALS,
    NoOtherToken,
    bearer_token,
    check_credentials,
)
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.errors import InvalidToken, MalformedCredentials
from mcpbridge.interfaces import IAuthenticator


def request(*values: bytes, uri: bytes = b"/mcp") -> AuthenticationRequest:
    fields = [(b"Authorization", value) for value in values]
    return AuthenticationRequest("s", b"POST", uri, fields)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (b"Bearer x", "x"),
        (b"bearer x", "x"),
        (b"BEARER x", "x"),
        (b"Bearer   x", "x"),
        (b" \tBearer x\t ", "x"),
        (b"Bearer aZ09-._~+/==", "aZ09-._~+/=="),
        (b"", None),
        (b"Basic x", None),
        (b"x", None),
        (b"Bearers x", None),
        (b"Bearerx", None),
        (b"DPoP x", None),
    ],
)
def test_the_token_of_a_header(value: bytes, token: str | None) -> None:
    check_credentials(request(value))
    assert bearer_token(request(value)) == token


@pytest.mark.parametrize(
    "values",
    [
        (b"Bearer",),
        (b"Bearer ",),
        (b"Bearer\tx",),
        (b"Bearer x y",),
        (b"Bearer x, Bearer y",),
        (b"Bearer =",),
        (b"Bearer a=b",),
        (b"Bearer \xff",),
        (b"Bearer x\x00",),
        (b"Bearer x\n",),
        (b'Bearer "x"',),
        (b"Bearer:x",),
        (b"Bearer x", b"Bearer x"),
        (b"Bearer x", b""),
        (b"", b""),
        (b"Basic x", b"Bearer x"),
    ],
)
def test_credentials_that_cannot_be_read(values: tuple[bytes, ...]) -> None:
    with pytest.raises(MalformedCredentials):
        check_credentials(request(*values))
    assert bearer_token(request(*values)) is None


def test_a_request_without_credentials_is_not_malformed() -> None:
    check_credentials(request())
    assert bearer_token(request()) is None


def test_the_longest_credentials() -> None:
    """MAX_CREDENTIALS characters."""
    longest = b"Bearer ".ljust(MAX_CREDENTIALS, b"x")
    check_credentials(request(longest))
    assert len(bearer_token(request(longest)) or "") == MAX_CREDENTIALS - len("Bearer ")
    for value in (longest + b"x", b"Basic ".ljust(MAX_CREDENTIALS + 1, b"x")):
        with pytest.raises(MalformedCredentials, match="MAX_CREDENTIALS"):
            check_credentials(request(value))


@pytest.mark.parametrize(
    "query",
    [
        b"access_token=x",
        b"access_token",
        b"a&access_token=x",
        b"a;access_token&b",
        b"ACCESS_TOKEN=x",
        b"%61ccess%5ftoken%3dx",
        b"a%26access_token=x",
        b"access_token=\xff",
    ],
)
def test_a_token_in_the_query_is_refused(query: bytes) -> None:
    for values in ((), (b"Bearer x",)):
        with pytest.raises(MalformedCredentials, match="query") as raised:
            check_credentials(request(*values, uri=b"/mcp?" + query))
        assert "x" not in str(raised.value).replace("expected", "")


@pytest.mark.parametrize(
    "uri",
    [b"/mcp", b"/mcp?", b"/access_token=x", b"/mcp?x=access_token", b"/mcp?access_tokens=1", b"/%"],
)
def test_other_targets_are_not(uri: bytes) -> None:
    check_credentials(request(uri=uri))


@given(st.binary(max_size=40))
def test_a_token_is_read_from_nothing_but_one_bearer_value(value: bytes) -> None:
    """What is not refused has a token of the grammar of RFC 6750, or none and another scheme."""
    text = value.decode("latin-1")
    try:
        check_credentials(request(value))
    except MalformedCredentials:
        return
    token = bearer_token(request(value))
    if token is None:
        assert not re.match(r"(?i)[ \t]*bearer ", text)
    else:
        assert re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token)
        assert text.strip(" \t").lower().startswith("bearer ")
        assert text.strip(" \t").endswith(token)


def test_a_token_that_nobody_knows_is_not_passed_over() -> None:
    """For the certificate of its connection, say."""
    assert verifyObject(IAuthenticator, NoOtherToken())
    with pytest.raises(InvalidToken):
        NoOtherToken().authenticate(
            AuthenticationRequest("s", b"GET", b"/", [(b"Authorization", b"Bearer x")])
        )
    without: Any = NoOtherToken()
    assert without.authenticate(AuthenticationRequest("s", b"GET", b"/", [])) is None
