"""
The environment variables that a caller gives to its own processes (`env_from`).

Knows rules, the head of a request, and identities; must not know processes.  The values
are secrets: no error, log line or `repr` has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import copy
from hashlib import blake2b
from secrets import token_bytes
from typing import Any

from mcpbridge.auth.access import Access
from mcpbridge.config.env_from import EnvironmentRule
from mcpbridge.config.tuning import ENV_FROM_VALUE_BYTES
from mcpbridge.errors import Described, MissingCredentials, SettingError, UnusableCredentials

#: C0, DEL and C1.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: A digest is only compared with others of the process.  Without this key it could be
#: compared with those of guessed values.
_KEY = token_bytes(blake2b.MAX_KEY_SIZE)


class SessionVariables(Mapping[str, str]):
    """
    Environment variables with secret values: their `repr` shows names only.

    A plain mapping would show the values in the `repr` of whatever has it.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<SessionVariables {', '.join(self._values)}>"


class SessionEnvironment:
    """
    Applies the rules of one server to its requests.

    `authenticates` is false where callers have no identity, and
    `authorization_authenticates` is true where the header `Authorization` is what
    identifies them.  A caller's token is for the bridge then, and is not passed on (MCP
    2025-11-25, basic/authorization, "Access Token Privilege Restriction").  Raises
    `SettingError` for a rule that cannot hold under these.
    """

    def __init__(
        self,
        rules: Mapping[str, EnvironmentRule],
        *,
        server: str = "default",
        authenticates: bool = True,
        authorization_authenticates: bool = False,
    ) -> None:
        self._rules = rules
        for variable, rule in rules.items():
            place = f"mcpServers.{server}.env_from.{variable}"
            if rule.header is None and not authenticates:
                raise SettingError(
                    f"{place}.claim",
                    "`auth` for this server, since callers have no claims without it",
                    Described("none"),
                )
            if (rule.header or "").lower() == "authorization" and authorization_authenticates:
                raise SettingError(
                    f"{place}.header",
                    "another header: `Authorization` authenticates the callers of this server,"
                    " and their tokens are not for its process",
                    Described("`Authorization`"),
                )

    def of(self, request: Any, identity: Any) -> Mapping[str, str]:
        """
        Return the variables for a request (`IAuthenticationRequest`) of an `IIdentity`,
        which is None without authentication.

        An empty header or claim counts as missing.  Raises `MissingCredentials` and
        `UnusableCredentials`.
        """
        found: dict[str, str] = {}
        for variable, rule in self._rules.items():
            value = _header(request, rule) if rule.header is not None else _claim(identity, rule)
            if value:
                found[variable] = _checked(value, rule)
            elif rule.required:
                raise MissingCredentials(f"{rule.source} is missing, which this server needs")
        return SessionVariables(found)

    def digest(self, environment: Mapping[str, str]) -> str:
        """
        Return what tells these variables from all others, and nothing else about them.

        It is the same for the same variables as long as the bridge runs.
        """
        digest = blake2b(key=_KEY, digest_size=16)
        for name in sorted(environment):
            for text in (name, environment[name]):
                data = text.encode("utf-8")
                # With their lengths, so that no two environments are the same bytes.
                digest.update(b"%d:" % len(data))
                digest.update(data)
        return digest.hexdigest()

    def admit(self, access: Access, request: Any) -> Access:
        """
        Return the admission of a request, with the variables for the caller's processes.

        Its key has their digest, so that one caller with other variables has other
        sessions and processes.  Raises what `of` raises.
        """
        if not self._rules:
            return access
        environment = self.of(request, access.identity)
        admitted = copy(access)
        admitted.environment = environment
        # All keys of the server end in NUL and a digest, so no name can look like another's key.
        admitted.key = f"{access.name}\0{self.digest(environment)}"
        return admitted


def _header(request: Any, rule: EnvironmentRule) -> str:
    """Return the value of the header; an empty string without it."""
    values = request.values((rule.header or "").lower())
    if len(values) > 1:
        raise UnusableCredentials(f"{rule.source} is there {len(values)} times")
    if not values:
        return ""
    try:
        # Octets above 127 are opaque in HTTP (RFC 9110, section 5.5); clients send UTF-8.
        text: str = values[0].encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise UnusableCredentials(f"{rule.source} is not UTF-8") from None
    return text


def _claim(identity: Any, rule: EnvironmentRule) -> str:
    """Return the claim as text; an empty string without it."""
    if identity is None:
        return ""
    if rule.claim == "sub":
        value = identity.subject
    elif rule.claim == "iss":
        value = identity.issuer
    else:
        value = identity.claims.get(rule.claim)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        try:
            return str(value)
        except ValueError:
            # Python writes no integer of more than a few thousand digits.
            raise UnusableCredentials(f"{rule.source} has too many digits") from None
    if isinstance(value, str):
        return value
    raise UnusableCredentials(f"{rule.source} is neither text nor an integer nor a boolean")


def _checked(value: str, rule: EnvironmentRule) -> str:
    """Return a value that can be that of a variable.  Raises `UnusableCredentials`."""
    if _CONTROL.search(value):
        raise UnusableCredentials(f"{rule.source} contains control characters")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise UnusableCredentials(f"{rule.source} is not valid Unicode") from None
    if size > ENV_FROM_VALUE_BYTES:
        raise UnusableCredentials(f"{rule.source} has more than {ENV_FROM_VALUE_BYTES} bytes")
    return value
