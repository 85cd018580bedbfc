"""
Settings from a JSON file: the `mcpServers` object of desktop clients, and a
`bridge` object of ours.

Knows JSON and names; must not know the reactor.  Every error is one line that
names the setting, what was expected and what was got.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mcpbridge.checks import PATH_PREFIX, kind_of
from mcpbridge.config import BridgeSettings, ServerSettings
from mcpbridge.errors import SettingError

#: Keys of a server's object that desktop clients write for themselves; they
#: mean nothing to a bridge.
FOREIGN_KEYS = frozenset(
    {
        "alwaysAllow",
        "autoApprove",
        "autoStart",
        "description",
        "dev",
        "disabledTools",
        "gallery",
        "icon",
        "initTimeout",
        "timeout",
        "title",
        "trust",
        "version",
    }
)

_SERVER_KEYS = frozenset(f.name for f in fields(ServerSettings)) - {"name"}
#: What makes no sense for several servers alike.
_DEFAULT_KEYS = _SERVER_KEYS - {"command", "args", "base_uri", "public_path"}
_BRIDGE_KEYS = frozenset(f.name for f in fields(BridgeSettings)) - {"servers"}
#: The objects of ours in a file; other keys at its top are those of clients.
_TOP_KEYS = {"bridge": "bridge", "mcpservers": "mcpServers"}
#: How like one of ours a key must be to be a mistake: VS Code's `servers` is less.
_NEAR = 0.83
#: What other programs read from a server's object, and what there is instead.
_INSTEAD = {"envFile": "`env`, as no file of variables is read"}


def read_config(path: str) -> BridgeSettings:
    """
    The settings that a file holds.

    A relative `cwd`, `stderr_dir` or `state_dir` is relative to the file's folder.
    Raises `SettingError`.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise SettingError(
            "config", "a file that can be read", f"<{path}: {error.strerror}>"
        ) from None
    try:
        content = json.loads(
            text.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise SettingError("config", "JSON", f"<{path}: nested too deeply>") from None
    except ValueError as error:
        raise SettingError("config", "JSON", f"<{path}: {error}>") from None
    return parse_config(content, os.path.dirname(os.path.abspath(path)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_config(content: object, folder: str) -> BridgeSettings:
    """The settings in a decoded file.  Raises `SettingError`."""
    if not isinstance(content, dict):
        raise SettingError("config", "an object with `mcpServers`", kind_of(content))
    _check_top(content)
    servers = content.get("mcpServers")
    if not isinstance(servers, dict):
        hint = " (rename VS Code's `servers`)" if "servers" in content else ""
        raise SettingError("mcpServers", f"an object of named servers{hint}", kind_of(servers))
    bridge = content.get("bridge", {})
    if not isinstance(bridge, dict):
        raise SettingError("bridge", "an object", kind_of(bridge))
    _check_keys(bridge, _BRIDGE_KEYS | {"defaults"}, "bridge", foreign=())
    bridge = dict(bridge)
    defaults = bridge.pop("defaults", {})
    if not isinstance(defaults, dict):
        raise SettingError("bridge.defaults", "an object of settings of servers", kind_of(defaults))
    _check_keys(defaults, _DEFAULT_KEYS, "bridge.defaults", foreign=())
    _build("bridge.defaults", ServerSettings, {"command": "none", **defaults})
    parsed = tuple(
        server
        for name, entry in servers.items()
        if (server := _parse_server(name, entry, defaults, folder)) is not None
    )
    if not parsed:
        got = f"<{len(servers)}, all of them disabled>" if servers else "<none>"
        raise SettingError("mcpServers", "at least one server that is not disabled", got)
    if isinstance(bridge.get("state_dir"), str) and bridge["state_dir"]:
        bridge["state_dir"] = os.path.join(folder, os.path.expanduser(bridge["state_dir"]))
    built: BridgeSettings = _build("bridge", BridgeSettings, {**bridge, "servers": parsed})
    return built


def _parse_server(
    name: str, entry: object, defaults: Mapping[str, Any], folder: str
) -> ServerSettings | None:
    where = f"mcpServers.{name}"
    if not isinstance(entry, dict):
        raise SettingError(where, "an object", kind_of(entry))
    entry = dict(entry)
    disabled = entry.pop("disabled", False)
    if not isinstance(disabled, bool):
        raise SettingError(f"{where}.disabled", "true or false", disabled)
    if disabled:
        return None
    if entry.pop("type", "stdio") != "stdio" or "url" in entry:
        raise SettingError(where, "a stdio server with a `command`", "<a remote server>")
    _check_keys(entry, _SERVER_KEYS, where, FOREIGN_KEYS)
    entry = {key: value for key, value in entry.items() if key not in FOREIGN_KEYS}
    entry = {**defaults, **entry}
    for setting in ("cwd", "stderr_dir"):
        path = entry.get(setting)
        if isinstance(path, str) and path:
            entry[setting] = os.path.join(folder, os.path.expanduser(path))
    if "base_uri" not in entry:
        entry["base_uri"] = f"/{name}"
        if not PATH_PREFIX.accepts(entry["base_uri"]):
            raise SettingError(where, "a name that may stand in a path, or a `base_uri`", name)
    server: ServerSettings = _build(where, ServerSettings, {**entry, "name": name})
    return server


def _check_keys(
    entry: Mapping[str, Any], known: frozenset[str], where: str, foreign: Iterable[str]
) -> None:
    for key in entry:
        if key not in known and key not in foreign:
            raise SettingError(
                f"{where}.{key}", _meant(key, known, where), "<a setting that is not known>"
            )


def _check_top(content: Mapping[str, Any]) -> None:
    """Raise `SettingError` for a key that is nearly one of ours."""
    for key in content:
        if key not in _TOP_KEYS.values():
            close = difflib.get_close_matches(key.lower(), _TOP_KEYS, n=1, cutoff=_NEAR)
            if close:
                raise SettingError(
                    key, f"`{_TOP_KEYS[close[0]]}`", "<a key that is not known, and nearly that>"
                )


def _meant(key: str, known: frozenset[str], where: str) -> str:
    """What a key that is not known was to be."""
    if where == "bridge" and key in _DEFAULT_KEYS:
        return f"`bridge.defaults.{key}` for all servers, or `{key}` in one of `mcpServers`"
    if where.startswith("bridge") and key in _SERVER_KEYS:
        return f"`{key}` in one of `mcpServers`"
    if key in _INSTEAD:
        return _INSTEAD[key]
    close = difflib.get_close_matches(key, known, n=1)
    return f"`{close[0]}`" if close else f"one of {', '.join(sorted(known))}"


def _build(where: str, kind: type[Any], entry: Mapping[str, Any]) -> Any:
    try:
        return kind(**entry)
    except SettingError as error:
        name = error.name if error.name.startswith("mcpServers.") else f"{where}.{error.name}"
        raise SettingError(name, error.expected, error.got) from None
