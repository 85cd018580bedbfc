"""
What the settings may say, and is hardly meant.

Knows settings; must not know what is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mcpbridge.config.environment import name_pattern, passed_environment
from mcpbridge.config.settings import BridgeSettings


def configuration_warnings(
    settings: BridgeSettings, environment: Mapping[str, str]
) -> Iterator[str]:
    """A line for each of them, for the log at the start."""
    yield from _withheld(settings, environment)
    for server in settings.servers:
        for name in server.pass_env:
            if name == "*":
                yield (
                    f"server {server.name!r} gets the bridge's whole environment, secrets"
                    " included; name only what it needs (pass_env)"
                )
            elif "*" in name:
                if not any(map(name_pattern(name).fullmatch, environment)):
                    yield f"server {server.name!r}: nothing like {name} is set here (pass_env)"
            elif name not in environment:
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


def _withheld(settings: BridgeSettings, environment: Mapping[str, str]) -> Iterator[str]:
    """One line for each variable that may hold a password; its value is never shown."""
    servers: dict[str, list[str]] = {}
    for server in settings.servers:
        for name in passed_environment(environment, server.pass_env)[1]:
            if name not in server.env:
                servers.setdefault(name, []).append(repr(server.name))
    for name, without in servers.items():
        yield (
            f"{name} holds a user name or a password, so the backends of {', '.join(without)} do"
            " not get it; if they should, name it with --pass-env (pass_env)"
        )
