"""
Configuration warnings: settings that are valid, but hardly intended.

Knows settings; must not know what is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mcpbridge.config.auth import Auth, read_auth
from mcpbridge.config.backend_environment import name_pattern, passed_environment
from mcpbridge.config.name_lists import NameLists
from mcpbridge.config.networks import Networks
from mcpbridge.config.settings import (
    DEFAULT_SESSIONS,
    NAME_SETTINGS,
    BridgeSettings,
    ServerSettings,
)


def configuration_warnings(
    settings: BridgeSettings, environment: Mapping[str, str]
) -> Iterator[str]:
    """Yield a line for each, for the log at the start."""
    yield from _withheld(settings, environment)
    yield from _readable_credentials(settings)
    if settings.audit_arguments and settings.audit_log is None:
        yield "audit_arguments has no effect without --audit-log (bridge.audit_log)"
    # A server's own settings are warned of beside those of all servers.
    given = {"auth": settings.auth}
    given |= {f"mcpServers.{each.name}.auth": each.auth for each in settings.servers}
    for where, auth in given.items():
        if isinstance(auth, Mapping):
            yield from _unknown_servers(where, read_auth(auth, where), settings)
            yield from authentication_warnings(where, read_auth(auth, where), settings.listen)
    for server in settings.servers:
        yield from _unknown_identities(server, settings)
        for name in server.pass_env:
            if name == "*":
                yield (
                    f"server {server.name!r} gets the bridge's whole environment, including"
                    " secrets; name only the variables it needs (--pass-env, pass_env)"
                )
            elif "*" in name:
                if not any(map(name_pattern(name).fullmatch, environment)):
                    yield (
                        f"server {server.name!r}: no environment variable matches {name}"
                        " (--pass-env, pass_env)"
                    )
            elif name not in environment:
                yield (
                    f"server {server.name!r}: the environment variable {name} is not set"
                    " (--pass-env, pass_env)"
                )
        if server.warm >= server.max_sessions:
            yield (
                f"server {server.name!r}: warm ({server.warm}) leaves no room below max_sessions"
                f" ({server.max_sessions}), so a warm process has to end for each other process;"
                " lower --warm or raise --max-sessions"
            )
        # Not of the default, which was not asked for.
        if server.max_sessions > max(settings.session_limit, DEFAULT_SESSIONS):
            yield (
                f"server {server.name!r}: max_sessions ({server.max_sessions}) is more than"
                f" bridge.max_sessions ({settings.session_limit}), which is reached first; raise"
                " --bridge-max-sessions"
            )
    warm = sum(server.warm for server in settings.servers)
    if warm >= settings.session_limit:
        yield (
            f"warm of all servers together ({warm}) leaves no room below bridge.max_sessions"
            f" ({settings.session_limit}), so a warm process has to end for each other process;"
            " lower warm or raise --bridge-max-sessions"
        )


def _unknown_identities(server: ServerSettings, settings: BridgeSettings) -> Iterator[str]:
    """Yield a line for lists of identities where the settings tell nobody apart."""
    if settings.auth_of(server) is not None:
        return
    for name in NAME_SETTINGS:
        lists: NameLists = getattr(server, name)
        if any(each.restricts for each in lists.identities.values()):
            yield (
                f"server {server.name!r}: {name}.identities holds for nobody, because there is no"
                " `auth` that tells identities apart; set `auth`, or use `allow` and `deny` for all"
            )


def _unknown_servers(name: str, auth: Auth, settings: BridgeSettings) -> Iterator[str]:
    """Yield a line for each token that is for a server that there is not."""
    known = {each.name for each in settings.servers}
    for token, given in auth.tokens.items():
        for server in given.servers or ():
            if server not in known:
                yield (
                    f"{name}.tokens.{token}.servers names {server!r}, which is not served; the"
                    f" servers are {', '.join(sorted(known))}"
                )


def _readable_credentials(settings: BridgeSettings) -> Iterator[str]:
    """Yield a line if a backend could read the credentials of another one's client."""
    # A launcher of the operator's own may run backends elsewhere, and as anybody.
    names = [
        repr(each.name)
        for each in settings.servers
        if each.env_from and not each.launcher and each.user is None
    ]
    if names:
        yield (
            f"env_from of {', '.join(names)}: all local backends run as one user, so one that was"
            " taken over can read the credentials of other clients (/proc/PID/environ); to prevent"
            " that, run each server as a `user` of its own, or in a container"
        )


def authentication_warnings(name: str, auth: Auth, listen: Sequence[str]) -> Iterator[str]:
    """
    Yield a line for each way in that others may take, or nobody can.

    `name` is what the configuration calls `auth`, and `listen` are the endpoints; if there
    are none, an application has endpoints of its own.
    """
    local = listen and all(each.startswith("unix:") for each in listen)
    if auth.proxy is not None and not local:
        addresses = Networks(auth.proxy.addresses)
        shown = ", ".join(auth.proxy.addresses)
        if addresses.with_everybody:
            yield (
                f"{name}.proxy.addresses ({shown}) has every address: whoever reaches the bridge"
                f" can claim in {auth.proxy.header} to be anybody; name the proxy's address only"
            )
        elif addresses.with_loopback:
            yield (
                f"{name}.proxy.addresses ({shown}) has loopback addresses: every process on this"
                f" machine, backends included, can claim in {auth.proxy.header} to be anybody;"
                " where that matters, have the proxy connect to a UNIX socket that no one else"
                " may open, and name `unix`"
            )
    if auth.certificates is not None and listen and not any(map(_asks_for_certificates, listen)):
        yield (
            f"{name}.certificates lets nobody in: no listener asks for client certificates; add"
            " clientCA=PATH to an `https:` endpoint (--listen, bridge.listen)"
        )


def _asks_for_certificates(description: str) -> bool:
    return description.startswith("https:") and ":clientCA=" in description


def _withheld(settings: BridgeSettings, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each variable that is withheld; its value is never shown."""
    servers: dict[str, list[str]] = {}
    for server in settings.servers:
        if server.is_remote:
            # It has no environment; the bridge itself uses its variables for a proxy.
            continue
        for name in passed_environment(environment, server.pass_env)[1]:
            if name not in server.env:
                servers.setdefault(name, []).append(repr(server.name))
    for name, without in servers.items():
        yield (
            f"{name} holds a user name or a password, so it is not passed to"
            f" {', '.join(without)}; to pass it, name it with --pass-env (pass_env)"
        )
