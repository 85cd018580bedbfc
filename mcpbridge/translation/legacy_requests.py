"""
The requests that a legacy server is sent: those of clients, and the bridge's own.

Knows which numbers were given out, which of them nobody waits for any more,
and which log level the server was told; must not know what its answers mean.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcpbridge.errors import MethodNotFound
from mcpbridge.jsonrpc.members import Members, encode, members_of, request_line
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

#: How many unanswered requests of the bridge's own are remembered, and how many
#: of clients that were given up.
OWN_KEPT = 256

#: Methods that no legacy server is asked: the last two are for the bridge to answer.
_NOT_FORWARDED = REMOVED | {"server/discover", "subscriptions/listen"}
#: Parameters that are between client and bridge, or ask for a task, which is not
#: translated.  In a request of an extension the names may mean anything.
_REMOVED_PARAMS = ("inputResponses", "requestState", "task")

#: What a request of 2026-07-28 may say of itself in `_meta`.
_META = frozenset({CLIENT_CAPABILITIES, CLIENT_INFO, LOG_LEVEL, PROTOCOL_VERSION})


class LegacyRequests:
    """
    The requests of one process, numbered for its life, and its log level.

    The bridge's own requests have answers that reach no client: `subscribe`,
    `unsubscribe`, `list_tools`, and the setting of the log level.
    """

    def __init__(self) -> None:
        self._last_number = 0
        # Unanswered ones of the bridge's own; True for a tools/list.
        self._own: dict[int, bool] = {}
        self._listing: int | None = None
        self._abandoned: set[int] = set()
        self._level: str | None = None

    # Requests of clients.

    def forward(self, request: ModernRequest) -> tuple[int, bytes]:
        """
        Return the number and the line of a client's request, as a legacy
        server takes it.

        The number is its progress token, too, where the client has given one.
        """
        number = self._last_number = self._last_number + 1
        params: dict[str, object] = {**request.params}
        if request.method in INPUT_REQUIRED_METHODS:
            for name in _REMOVED_PARAMS:
                params.pop(name, None)
        meta = _forwarded_meta(request, number)
        if meta:
            params["_meta"] = meta
        else:
            del params["_meta"]
        return number, encode({**request.outer, "id": number, "params": params})

    def set_level(self, request: ModernRequest) -> list[bytes]:
        """Return the line that sets the log level a client wants, where it is another one."""
        level = request.log_level
        if level is None or level == self._level:
            return []
        self._level = level
        return [self.own("logging/setLevel", {"level": level})]

    def forget_level(self) -> None:
        """Set the level anew next time: it is not known whether the server was told."""
        self._level = None

    @property
    def has_abandoned(self) -> bool:
        """Whether the server may still work on a request that nobody waits for."""
        return bool(self._abandoned)

    def abandon(self, number: int) -> None:
        """Stop waiting for the answer to a client's request."""
        # Of too many, 0 stands for the rest.  It is never answered, so the process
        # is never taken for idle again.
        self._abandoned.add(number if len(self._abandoned) < OWN_KEPT else 0)

    def settle_abandoned(self, number: int | None) -> bool:
        """Take the answer to an abandoned request; return False where it is none."""
        if number not in self._abandoned:
            return False
        self._abandoned.remove(number)
        return True

    # Requests of the bridge's own.

    @property
    def unanswered(self) -> int:
        """How many of the bridge's own have no answer yet."""
        return len(self._own)

    def own(self, method: str, params: Mapping[str, object]) -> bytes:
        """Return the line of a request of the bridge's own."""
        self._last_number += 1
        if len(self._own) >= OWN_KEPT:
            del self._own[next(iter(self._own))]
        self._own[self._last_number] = method == "tools/list"
        return request_line(self._last_number, method, params)

    def subscribe(self, uri: str) -> bytes:
        """Return the line that subscribes to a resource."""
        return self.own("resources/subscribe", {"uri": uri})

    def unsubscribe(self, uri: str) -> bytes:
        """Return the line that ends a subscription."""
        return self.own("resources/unsubscribe", {"uri": uri})

    def list_tools(self, cursor: str | None) -> bytes:
        """Return the line that asks for a page of tools, which comes as `ServerOutput.tools`."""
        line = self.own("tools/list", {} if cursor is None else {"cursor": cursor})
        self._listing = self._last_number
        return line

    def stop_listing(self) -> None:
        """Wait for no page of tools any more; it must not be taken for the next one."""
        if self._listing is not None:
            self._abandoned.add(self._listing)
            self._listing = None

    def settle_own(self, number: int | None) -> bool | None:
        """
        Take the answer to one of the bridge's own; return whether that was a
        tools/list, None where it is another's.
        """
        listed = None if number is None else self._own.pop(number, None)
        if listed and number not in self._abandoned:
            self._listing = None
        return listed

    def undo_own(self) -> None:
        """Forget the last request, which could not be written."""
        if self._own.pop(self._last_number, None):
            self._listing = None


def check_method(request: ModernRequest) -> None:
    """Raise `MethodNotFound` for what 2026-07-28 has removed, or the bridge itself answers."""
    method = request.method
    if method in _NOT_FORWARDED or method.startswith(("tasks/", "notifications/")):
        error = MethodNotFound(
            f"{method[:80]} is no method for a server of {MODERN_PROTOCOL_VERSIONS[-1]}"
        )
        error.ident = request.id
        raise error


def _forwarded_meta(request: ModernRequest, number: int) -> dict[str, object]:
    """
    Return `_meta` for a legacy server: without the keys with the
    specification's prefix, except those of extensions that the client declares,
    and with this number for a progress token.
    """
    if request.meta.keys() <= _META:
        # As in nearly all requests.
        return {}
    extensions: Members = {}
    if any(name.startswith(PREFIX) for name in request.meta.keys() - _META):
        declared = with_extensions(members_of(request.capabilities))
        extensions = members_of(declared.get("extensions"))
    kept: dict[str, object] = {
        name: each
        for name, each in request.meta.items()
        if name not in _META and (name in extensions or not name.startswith(PREFIX))
    }
    if PROGRESS_TOKEN in kept:
        if request.progress_token is None:
            del kept[PROGRESS_TOKEN]
        else:
            kept[PROGRESS_TOKEN] = number
    return kept
