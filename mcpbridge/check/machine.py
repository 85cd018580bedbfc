"""
What this machine says of settings: programs, files, extensions, listeners.

Knows where to look; must not start a process, open a listener, or write.  No finding
shows what is in a file.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any, NamedTuple, cast

from msgspec.structs import replace

from mcpbridge.auth.factory import scope_errors
from mcpbridge.auth.named_tokens import LEAST_CHARACTERS, NamedTokens
from mcpbridge.auth.oauth import make_issuer
from mcpbridge.auth.secret_file import read_secret
from mcpbridge.config.admin import read_admin_tokens
from mcpbridge.config.auth import Auth, NamedToken
from mcpbridge.config.oauth import origin_of
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import CERTIFICATE_FILE_BYTES
from mcpbridge.errors import BridgeError, CannotStart, SettingError
from mcpbridge.extensions import load
from mcpbridge.interfaces import (
    IAuthenticator,
    IBackendLauncher,
    IEnvironmentLauncher,
    IEventStore,
    IMessageFilter,
    ISessionLimiter,
    ISessionObserver,
)
from mcpbridge.remote.proxies import BadProxy, proxy_for
from mcpbridge.stdio.command import backend_environment, find_program
from mcpbridge.stdio.confinement import describe_confinement
from mcpbridge.stdio.confinement_check import confinement_errors
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.state_file import why_no_state_directory


class Trouble(NamedTuple):
    """What is wrong with a setting; its name is as in the errors of settings."""

    name: str
    text: str


def trouble_of(error: SettingError) -> Trouble:
    """Make a finding of an error."""
    return Trouble(error.name, str(error).removeprefix(f"{error.name}: "))


class ServerCheck:
    """Checks one server on this machine."""

    def __init__(self, settings: ServerSettings, environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._environment = environment
        self._prefix = f"mcpServers.{settings.name}"
        #: The path of the program; None if it was not found, or if there is none.
        self.program: str | None = None
        self.warnings: list[str] = []
        #: What confinement holds here, in words.
        self.confinement: list[str] = []

    def troubles(self) -> Iterator[Trouble]:
        """Yield everything that would keep the server from working."""
        settings = self._settings
        yield from self._extensions()
        if settings.is_remote:
            yield from self._remote()
        elif settings.launcher is None:
            yield from self._command()
            yield from self._confined()
        if settings.stderr_log == "file" and settings.stderr_dir is not None:
            why = _why_not_writable(settings.stderr_dir)
            if why is not None:
                yield Trouble(f"{self._prefix}.stderr_dir", f"cannot write files there: {why}")

    def _extensions(self) -> Iterator[Trouble]:
        settings = self._settings
        launchers = IEnvironmentLauncher if settings.env_from else IBackendLauncher
        named: list[tuple[str, Any, str | None]] = [
            ("launcher", launchers, settings.launcher),
            ("limiter", ISessionLimiter, settings.limiter),
            ("event_store", IEventStore, settings.event_store),
            *(("observers", ISessionObserver, each) for each in settings.observers),
            *(("filters", IMessageFilter, each) for each in settings.filters),
        ]
        for setting, interface, name in named:
            try:
                load(setting, interface, name, settings)
            except SettingError as error:
                yield trouble_of(error)

    def _command(self) -> Iterator[Trouble]:
        settings = self._settings
        environment = backend_environment(settings, self._environment)
        try:
            self.program = find_program(settings.command, environment, settings.cwd)
            # Neither the reactor nor the tracker is used before a start.
            launcher = LocalLauncher(settings, None, cast("Any", None), self._environment)
        except CannotStart as error:
            key = "cwd" if "(cwd)" in str(error) else "command"
            yield Trouble(f"{self._prefix}.{key}", str(error))
        except SettingError as error:
            yield trouble_of(error)
        else:
            doubt = launcher.check()
            if doubt is not None:
                self.warnings.append(f"server {settings.name!r}: {doubt}")

    def _confined(self) -> Iterator[Trouble]:
        """
        Say what confines the backend, and whether this machine can apply it.

        This is the one place for it: `confinement` gets what holds, and each limit or user
        that cannot be applied is a trouble.
        """
        what = describe_confinement(self._settings)
        if what:
            self.confinement.append(what)
        for error in confinement_errors(self._settings, self._environment):
            yield trouble_of(error)

    def _remote(self) -> Iterator[Trouble]:
        settings = self._settings
        if find_spec("treq") is None:
            text = "a remote server needs the extra `remote`: pip install 'mcpbridge[remote]'"
            yield Trouble(f"{self._prefix}.url", text)
        try:
            proxy_for(origin_of(settings.url or ""), self._environment)
        except BadProxy as error:
            yield Trouble(f"{self._prefix}.url", f"cannot be reached: {error}")
        if settings.ca_file is not None:
            try:
                if os.path.getsize(settings.ca_file) > CERTIFICATE_FILE_BYTES:
                    text = f"cannot be used: it has more than {CERTIFICATE_FILE_BYTES} bytes"
                    yield Trouble(f"{self._prefix}.ca_file", text)
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(settings.ca_file)
            except OSError as error:
                # OpenSSL's own errors say nothing of the file.
                is_ssl = isinstance(error, ssl.SSLError)
                why = "it has no certificates in PEM" if is_ssl else error.strerror
                yield Trouble(f"{self._prefix}.ca_file", f"cannot be used: {why}")


def _why_not_writable(path: str) -> str | None:
    """Return why no file can be made in a directory; None if one can."""
    if not os.path.exists(path):
        return "there is no such directory"
    if not os.path.isdir(path):
        return "it is no directory"
    return None if os.access(path, os.W_OK | os.X_OK) else "permission denied"


def bridge_troubles(settings: BridgeSettings) -> Iterator[Trouble]:
    """Yield what is wrong with files of the bridge."""
    path = settings.audit_log
    if path is not None and path != "-":
        if os.path.isdir(path):
            yield Trouble("audit_log", "expected the path of a file, got that of a directory")
        elif os.path.exists(path):
            if not os.access(path, os.W_OK):
                yield Trouble("audit_log", "cannot be written: permission denied")
        else:
            why = _why_not_writable(os.path.dirname(path) or ".")
            if why is not None:
                yield Trouble("audit_log", f"cannot be made in its directory: {why}")
    tokens = {
        name: NamedToken(sha256=each.sha256, file=each.file)
        for name, each in read_admin_tokens(settings.admin_tokens).items()
    }
    yield from map(trouble_of, _token_errors(tokens, "admin_tokens"))


def bridge_warnings(settings: BridgeSettings) -> Iterator[str]:
    """Yield what the bridge does without, and should not."""
    if settings.state_dir is not None:
        why = why_no_state_directory(settings.state_dir)
        if why is not None:
            yield (
                f"state_dir {settings.state_dir!r} cannot be used, so that a start after a kill"
                f" would clean up nothing: {why}"
            )


def auth_troubles(settings: BridgeSettings, server: ServerSettings) -> Iterator[Trouble]:
    """Yield what is wrong with files and names that the `auth` of a server uses."""
    try:
        auth = settings.auth_of(server)
    except SettingError:
        # It is an error of the settings themselves.
        return
    if auth is None:
        return
    own = server.auth if isinstance(server.auth, Mapping) else {}

    def named(key: str, error: SettingError) -> Trouble:
        of_server = f"mcpServers.{server.name}." if key in own else ""
        name = error.name.removeprefix(f"mcpServers.{server.name}.")
        return Trouble(f"{of_server}{name}", trouble_of(error).text)

    for error in scope_errors("auth.scopes", auth.scopes):
        yield named("scopes", error)
    for error in _token_errors(auth.tokens, "auth.tokens"):
        yield named("tokens", error)
    for error in _issuer_errors(auth):
        yield named("oauth", error)
    try:
        load("auth.authenticator", IAuthenticator, auth.authenticator, server)
    except SettingError as error:
        yield named("authenticator", error)


def _token_errors(tokens: Mapping[str, NamedToken], setting: str) -> Iterator[SettingError]:
    found = False
    for name, token in tokens.items():
        if token.file is not None:
            try:
                read_secret(token.file, f"{setting}.{name}.file", LEAST_CHARACTERS)
            except SettingError as error:
                found = True
                yield error
    if not found:
        try:
            NamedTokens(tokens, setting)
        except SettingError as error:
            yield error


def _issuer_errors(auth: Auth) -> Iterator[SettingError]:
    """Yield the errors of each file, one by one."""
    if auth.oauth is None:
        return
    variants = [replace(auth.oauth, ca_file=None), replace(auth.oauth, introspection=None)]
    seen: set[str] = set()
    for each in variants:
        try:
            make_issuer(each, None)
        except SettingError as error:
            if str(error) not in seen:
                seen.add(str(error))
                yield error


# Listeners.

_OPTION = re.compile(r"(?:^|:)interface=((?:[^:\\]|\\.)*)", re.DOTALL)
_INTERNET = ("tcp", "tcp6", "ssl", "tls", "https")


def is_exposed(description: str) -> bool | None:
    """
    Tell whether other machines can reach a listener; None if that is known only later.

    The name of an interface is looked up, as it will be when the listener is opened.
    """
    kind = description.partition(":")[0]
    if kind == "unix":
        return False
    if kind not in _INTERNET:
        return None
    found = _OPTION.search(description)
    host = re.sub(r"\\(.)", r"\1", found[1]) if found else ""
    if not host:
        return True
    try:
        addresses = [host.partition("%")[0]]
        ip_address(addresses[0])
    except ValueError:
        try:
            addresses = [str(each[4][0]) for each in socket.getaddrinfo(host, None)]
        except (OSError, UnicodeError):
            return None
    return not all(ip_address(each.partition("%")[0]).is_loopback for each in addresses)


def open_servers(settings: BridgeSettings) -> list[ServerSettings]:
    """Return the servers that ask nobody who they are."""
    found = []
    for each in settings.servers:
        try:
            if settings.auth_of(each) is None:
                found.append(each)
        except BridgeError:
            pass
    return found
