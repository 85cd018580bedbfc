"""
What differs between two sets of settings, and what of it can be changed while the bridge
runs.

Knows settings; must not know what they change.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any, NamedTuple

from mcpbridge.config.settings import BridgeSettings, ServerSettings

#: Settings of the bridge that hold from its start to its end.
AT_START = frozenset(
    {
        *("access_log", "admin_hosts", "admin_listen", "admin_tokens", "audit_arguments"),
        *("audit_log", "child_subreaper", "fast_path", "log_format", "log_level"),
        *("max_response_bytes", "metrics", "state_dir", "tracing"),
    }
)
#: How many servers a line names.
NAMED_SERVERS = 20


class Changes(NamedTuple):
    """
    What differs: the names of servers, of those that stay with the settings that differ, the
    listeners, and the settings of the bridge; of these, those that need a restart.
    """

    added: list[str]
    removed: list[str]
    changed: dict[str, list[str]]
    opened: list[str]
    closed: list[str]
    bridge: list[str]
    restart: list[str]

    def __str__(self) -> str:
        """Say it in one line."""
        servers = [f"{name} ({', '.join(names)})" for name, names in self.changed.items()]
        parts = {
            "added": self.added,
            "changed": servers,
            "removed": self.removed,
            "listens on": self.opened,
            "closed": self.closed,
            "changed for all servers": self.bridge,
            "changed only by a restart": self.restart,
        }
        found = [f"{what} {_listed(which)}" for what, which in parts.items() if which]
        return "; ".join(found) or "nothing has changed"


def changes(before: BridgeSettings, after: BridgeSettings) -> Changes:
    """Compare settings.  A server is the same as before if it has the same `base_uri`."""
    old = {each.base_uri: each for each in before.servers}
    new = {each.base_uri: each for each in after.servers}
    differing = {
        server.name: differences(old[base], server)
        for base, server in new.items()
        if base in old and server != old[base]
    }
    bridge = [each for each in differences(before, after) if each not in ("listen", "servers")]
    return Changes(
        [server.name for base, server in new.items() if base not in old],
        [server.name for base, server in old.items() if base not in new],
        differing,
        list((Counter(after.listen) - Counter(before.listen)).elements()),
        list((Counter(before.listen) - Counter(after.listen)).elements()),
        [each for each in bridge if each not in AT_START],
        [each for each in bridge if each in AT_START],
    )


def without_restart(before: BridgeSettings, after: BridgeSettings) -> BridgeSettings:
    """Return the settings that hold now: those that need a restart stay as they were."""
    return replace(after, **{name: getattr(before, name) for name in AT_START})


def differences(
    before: BridgeSettings | ServerSettings, after: BridgeSettings | ServerSettings
) -> list[str]:
    """Return the names of the settings that differ, in their order."""
    values: Any = ((each.name, getattr(before, each.name, None)) for each in fields(after))
    return [name for name, value in values if getattr(after, name) != value]


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_SERVERS
    return ", ".join(names[:NAMED_SERVERS]) + (f" and {more} more" if more > 0 else "")
