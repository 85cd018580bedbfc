"""
What the settings may say, and is hardly meant.

Knows settings; must not know what is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mcpbridge.config import BridgeSettings


def doubts(settings: BridgeSettings, environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each of them, for the log at the start."""
    for server in settings.servers:
        for name in server.pass_env:
            if name not in environment:
                yield f"server {server.name!r}: {name} is not set here (pass_env)"
        if server.warm >= server.max_sessions:
            yield (
                f"server {server.name!r}: {server.warm} processes ahead (warm) are all that"
                f" max_sessions allows ({server.max_sessions}): others have to make them end first"
            )
    warm = sum(server.warm for server in settings.servers)
    if warm >= settings.max_sessions:
        yield (
            f"{warm} processes ahead of all servers (warm) are all that the bridge's max_sessions"
            f" allows ({settings.max_sessions}): others have to make them end first"
        )
