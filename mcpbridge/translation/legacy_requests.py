"""
What the bridge writes to a legacy backend: requests with numbers of its own.

Knows which numbers were given out, and what the backend was told; must not
know what its answers mean to a client.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mcpbridge.errors import MethodNotFound
from mcpbridge.jsonrpc.members import changed, encode, members_of, request_line
from mcpbridge.mcp.capabilities import with_extensions
from mcpbridge.mcp.modern_request import (
    CLIENT_CAPABILITIES,
    CLIENT_INFO,
    INPUT_REQUIRED_METHODS,
    LOG_LEVEL,
    MODERN_PROTOCOL_VERSIONS,
    PREFIX,
    PROGRESS_TOKEN,
    PROTOCOL_VERSION,
    REMOVED,
    ModernRequest,
)

#: How many requests of the bridge's own may be unanswered and still be told
#: from answers to nothing.
OWN_KEPT = 256

#: What no legacy backend is asked: the last two are for the bridge to answer.
_NOT_ASKED = REMOVED | {"server/discover", "subscriptions/listen"}
#: What is between client and bridge, or asks for a task, which is not translated.
#: In a request of an extension the names may mean anything.
_NOT_PASSED = dict.fromkeys(("inputResponses", "requestState", "task"), msgspec.UNSET)

#: What a request of 2026-07-28 may say of itself in `_meta`.
_META = frozenset({CLIENT_CAPABILITIES, CLIENT_INFO, LOG_LEVEL, PROTOCOL_VERSION})


class Outgoing:
    """The requests of one process, numbered for its life, and its log level."""

    def __init__(self) -> None:
        self._numbers = 0
        # Of the bridge's own: whether it is a tools/list.
        self._own: dict[int, bool] = {}
        self._level: str | None = None

    @property
    def last(self) -> int:
        """The number that was given out last."""
        return self._numbers

    @property
    def waiting(self) -> int:
        """How many of the bridge's own are not answered."""
        return len(self._own)

    def request(self, method: str, params: Mapping[str, object]) -> bytes:
        """The line of a request of the bridge's own."""
        self._numbers += 1
        if len(self._own) >= OWN_KEPT:
            del self._own[next(iter(self._own))]
        self._own[self._numbers] = method == "tools/list"
        return request_line(self._numbers, method, params)

    def settle(self, number: int | None) -> bool | None:
        """One of the bridge's own is answered: whether it was a tools/list; None for another."""
        return None if number is None else self._own.pop(number, None)

    def set_level(self, request: ModernRequest) -> list[bytes]:
        """The line that sets the log level that a client wants, where it is not the last one."""
        level = request.log_level
        if level is None or level == self._level:
            return []
        self._level = level
        return [self.request("logging/setLevel", {"level": level})]

    def forget_level(self) -> None:
        """It is not known whether the backend was told the last one."""
        self._level = None

    def passed(self, request: ModernRequest) -> tuple[int, bytes]:
        """
        A client's request, as a legacy backend takes it, and its number,
        which is its progress token too where the client has given one.
        """
        self._numbers += 1
        changes: dict[str, object] = dict.fromkeys(_not_passed_of_meta(request), msgspec.UNSET)
        if PROGRESS_TOKEN in request.meta:
            wanted = request.progress_token is not None
            changes[PROGRESS_TOKEN] = self._numbers if wanted else msgspec.UNSET
        meta = changed(request.meta, changes)
        own = _NOT_PASSED if request.method in INPUT_REQUIRED_METHODS else {}
        params = changed(request.params, {**own, "_meta": meta or msgspec.UNSET})
        return self._numbers, encode({**request.outer, "id": self._numbers, "params": params})


def check_passed(request: ModernRequest) -> None:
    """Raise `MethodNotFound` for what 2026-07-28 has removed, and what the bridge answers."""
    method = request.method
    if method in _NOT_ASKED or method.startswith(("tasks/", "notifications/")):
        error = MethodNotFound(
            f"{method[:80]} is no method for a server of {MODERN_PROTOCOL_VERSIONS[-1]}"
        )
        error.ident = request.id
        raise error


def _not_passed_of_meta(request: ModernRequest) -> list[str]:
    """
    The keys of `_meta` with the prefix of the specification, but for those
    that are extensions which the client declares.
    """
    named = [name for name in request.meta if name.startswith(PREFIX)]
    if all(name in _META for name in named):
        return named
    declared = with_extensions(members_of(request.capabilities))
    extensions = members_of(declared.get("extensions"))
    return [name for name in named if name in _META or name not in extensions]
