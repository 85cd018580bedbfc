"""
What a request was admitted as: the identity that it was found to have, and how long
that holds.

Knows identities; must not know how they are found, nor what they are used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from types import MappingProxyType
from typing import Any

from mcpbridge.auth.identity import name_of

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Access:
    """
    The admission of one caller to one server.

    `identity` is its `IIdentity`, None without authentication, and `name` that of the
    identity, or an empty string.  `scopes` are those that it has and those that they
    include.  It holds `until` a time in seconds since the epoch; from `fresh_until` on, which
    may be earlier, a new request has to be admitted anew.

    `environment` are variables for the processes that work for this caller (`env_from`).
    `grounds` are those of the settings under which it was admitted (`auth.grounds`), None if
    nobody was asked.
    `key` is what sessions, processes, tasks and calls that wait belong to: the name, and
    a digest of that environment.  One that has another key gets the answer for something
    that does not exist.
    """

    __slots__ = (
        "environment",
        "fresh_until",
        "grounds",
        "identity",
        "key",
        "name",
        "scopes",
        "until",
    )

    def __init__(
        self,
        identity: Any = None,
        *,
        scopes: frozenset[str] = frozenset(),
        until: float = inf,
        fresh_until: float = inf,
        environment: Mapping[str, str] = _NOTHING,
        key: str | None = None,
    ) -> None:
        self.identity = identity
        self.name = "" if identity is None else name_of(identity)
        self.scopes = scopes
        self.until = until
        self.fresh_until = fresh_until
        self.environment = environment
        self.grounds: Any = None
        self.key = self.name if key is None else key


#: Every caller's, without authentication.
ANYBODY = Access()
