"""
The bearer token of a request (RFC 6750).

Knows where a token may be; must not know what it means.
"""

from __future__ import annotations

import re
from typing import Any

from zope.interface import implementer

from mcpbridge.errors import InvalidToken, MalformedCredentials
from mcpbridge.interfaces import IAuthenticator

#: The largest `Authorization`, in characters.  Tokens with hundreds of groups stay below that.
MAX_CREDENTIALS = 16 * 1024

#: What a client is told whose token nobody knows.
UNKNOWN = "the token is unknown, or the Authorization header has none"

_BEARER = re.compile(r"(?i)bearer +([A-Za-z0-9._~+/-]+=*)")
_SCHEME = re.compile(r"(?i)bearer\b")
_IN_QUERY = re.compile(r"(?:^|[&;])access_token(?:=|&|;|$)", re.IGNORECASE)


def bearer_token(request: Any) -> str | None:
    """Return the bearer token of an `IAuthenticationRequest`; None if it has none."""
    values = request.values("authorization")
    match = _BEARER.fullmatch(values[0].strip(" \t")) if len(values) == 1 else None
    return None if match is None else match[1]


@implementer(IAuthenticator)
class NoOtherToken:
    """
    Refuses a token that nobody before knows: what a client sends on purpose counts, and is
    not passed over for what its connection or its proxy says.
    """

    def authenticate(self, request: Any) -> None:
        """Return None for a request without a token.  Raises `InvalidToken`."""
        if bearer_token(request) is not None:
            raise InvalidToken(UNKNOWN)


def check_credentials(request: Any) -> None:
    """
    Raise `MalformedCredentials` for a request with two tokens, one in its query (RFC 6750,
    section 2.3; MCP, basic/authorization, "Token Handling"), or one that is none.
    """
    values = request.values("authorization")
    if len(values) > 1:
        raise MalformedCredentials("the request has several Authorization headers")
    query = request.uri.partition("?")[2]
    if query and _IN_QUERY.search(_unquoted(query)):
        raise MalformedCredentials(
            "the request has a token in its query; send it in the Authorization header"
        )
    if not values:
        return
    value = values[0].strip(" \t")
    if len(value) > MAX_CREDENTIALS:
        raise MalformedCredentials(
            f"the Authorization header has more than {MAX_CREDENTIALS} characters (MAX_CREDENTIALS)"
        )
    if _SCHEME.match(value) and not _BEARER.fullmatch(value):
        raise MalformedCredentials(
            "the Authorization header has no valid token; expected `Bearer TOKEN`"
        )


def _unquoted(query: str) -> str:
    """Return a query with its ASCII characters unquoted, for a search."""
    return re.sub(r"%([0-7][0-9A-Fa-f])", lambda match: chr(int(match[1], 16)), query)
