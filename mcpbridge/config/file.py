"""
Reads settings from a JSON file: servers in the format of MCP clients, and a
`bridge` object for the bridge itself.

Knows the keys at the top and those of `bridge`; must not know the reactor.  Each error is
one line that names the file, the line, the key and what to do.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mcpbridge.config.auth import with_files
from mcpbridge.config.checks import kind_of
from mcpbridge.config.config_file import ConfigFile, Notice, Problem
from mcpbridge.config.foreign import SERVER_KEYS, nearest, plain, unknown
from mcpbridge.config.jsonc import Document, Keys, NotJsonc, parse_jsonc
from mcpbridge.config.server_entries import BRIDGE_KEYS, BRIDGE_NAMES, ServerEntries
from mcpbridge.config.settings import BridgeSettings, ServerSettings, former_names
from mcpbridge.errors import Described, SettingError, SettingErrors

#: The object that holds the servers: of most clients, VS Code, Zed, and VS Code's settings.
_CONTAINERS: tuple[tuple[str, ...], ...] = (
    ("mcpServers",),
    ("servers",),
    ("context_servers",),
    ("mcp", "servers"),
)
#: Keys at the top that name disabled servers.
_DISABLED_SERVERS = ("disabledMcpServers", "disabledMcpjsonServers")
#: Settings that make sense for several servers at once.
DEFAULT_KEYS = SERVER_KEYS - {"command", "args", "base_uri", "public_path", "url"}
#: How similar to a known key at the top an unknown one must be to count as misspelt.
_NEAR_AT_TOP = 0.83


class Inspection(NamedTuple):
    """Everything that was found in a file."""

    file: ConfigFile
    #: The keys of the object that holds the servers.
    container: Keys
    #: Those that are right, of the bridge and of servers that can be served; None if no
    #: bridge can be made of them.
    settings: BridgeSettings | None
    #: Those that can be served.
    servers: tuple[ServerSettings, ...]
    #: The names of servers that are disabled, and of those that have errors.
    disabled: list[str]
    wrong: list[str]
    #: In the order of the file, as are the names of all servers.
    problems: list[Problem]
    order: list[str]

    @property
    def auth_is_known(self) -> bool:
        """False if an error may be about who is let in."""
        decisive = {"auth", "public_url", "insecure", "listen"}
        return not any(
            each.keys[:1] == ("bridge",) and decisive.intersection(each.keys[1:2] or decisive)
            for each in self.problems
        )


def read_config(
    path: str,
    *,
    strict: bool = False,
    environment: Mapping[str, str] = os.environ,
    notify: Callable[[Notice], object] = lambda notice: None,
    check_listen: Callable[[str], str | None] = lambda description: None,
    required: Collection[str] = (),
) -> BridgeSettings:
    """
    Read the settings from a file.

    A relative `cwd`, `stderr_dir`, `ca_file`, `state_dir`, `audit_log` or `envFile` is relative
    to the folder of the file.  A server that cannot be served is left out with a notice; with
    `strict` it is an error, and so it is with one of `required`, the names of servers that must
    be served if the file has them.  `check_listen` returns what is wrong with the description
    of a listener.  Raises `SettingError` for a file that cannot be read, and `SettingErrors`
    with a line for each error in it.
    """
    file = _open(path, environment, notify)
    return _Reader(file, check_listen).read(strict, required)


def inspect_config(
    path: str,
    overrides: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = os.environ,
    notify: Callable[[Notice], object] = lambda notice: None,
    check_listen: Callable[[str], str | None] = lambda description: None,
) -> Inspection:
    """
    Find everything that is wrong with a file, and what would be served.

    `overrides` are settings of the bridge that take the place of those in the file.
    Raises `SettingError` for a file that cannot be read, and `SettingErrors` for one that
    is not JSON.
    """
    file = _open(path, environment, notify)
    return _Reader(file, check_listen).inspect(overrides)


def parse_config(
    content: object,
    folder: str,
    *,
    strict: bool = False,
    environment: Mapping[str, str] = os.environ,
    notify: Callable[[Notice], object] = lambda notice: None,
) -> BridgeSettings:
    """Read the settings from a decoded file, as `read_config` does.  Raises `SettingErrors`."""
    file = ConfigFile(Document(content, {}, []), folder, "", environment, notify)
    return _Reader(file, lambda _: None).read(strict)


def _open(
    path: str, environment: Mapping[str, str], notify: Callable[[Notice], object]
) -> ConfigFile:
    """Parse a file.  Raises `SettingError`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SettingError(
            "config", "a readable file", Described(f"{path}: {error.strerror}")
        ) from None
    try:
        document = parse_jsonc(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = "the file is not valid UTF-8; save it as UTF-8"
        raise SettingErrors([f"{path}:{line}: {text}"]) from None
    except NotJsonc as error:
        raise SettingErrors([f"{path}:{error.line}:{error.column}: {error}"]) from None
    folder = os.path.dirname(os.path.abspath(path))
    return ConfigFile(document, folder, path, environment, notify)


class _Reader:
    """Makes settings of one file, and collects all of its errors."""

    def __init__(self, file: ConfigFile, check_listen: Callable[[str], str | None]) -> None:
        self._file = file
        self._check_listen = check_listen
        #: Errors of the whole file or the bridge, and errors of single servers.
        self._fatal: list[Problem] = []
        self._of_entries: list[Problem] = []
        self._container: tuple[str, ...] = ("mcpServers",)
        self._disabled: list[str] = []
        self._wrong: list[str] = []
        self._order: list[str] = []

    def read(self, strict: bool, required: Collection[str] = ()) -> BridgeSettings:
        """Return the settings.  Raises `SettingErrors`."""
        bridge, servers = self._read_all(tolerant=not strict)
        strict = strict or bridge.get("strict") is True
        if not {*required}.isdisjoint(self._wrong):
            strict = True
        if self._fatal or not servers or (strict and self._of_entries):
            raise self._errors()
        settings = self._build({**bridge, "servers": tuple(servers), "strict": strict})
        if settings is None:
            raise self._errors()
        self._file.tell_ignored()
        return settings

    def inspect(self, overrides: Mapping[str, Any]) -> Inspection:
        """Find everything that is wrong, and what would be served."""
        bridge, servers = self._read_all(tolerant=False)
        bridge = {**bridge, **overrides}
        values = {**bridge, "servers": tuple(servers)}
        settings = self._build(values) or self._build_without_contradictions(values)
        self._file.tell_ignored()
        return Inspection(
            self._file,
            self._container,
            settings,
            tuple(servers),
            self._disabled,
            self._wrong,
            self._sorted(),
            self._order,
        )

    def _read_all(self, *, tolerant: bool) -> tuple[dict[str, Any], list[ServerSettings]]:
        """Return the settings of the bridge, and its servers."""
        content = self._file.document.content
        for keys, line in self._file.document.repeated:
            again = f"; it is set again in line {line}" if line else ""
            self._fatal.append(Problem(keys, f"duplicate key{again}"))
        if not isinstance(content, dict):
            text = f"expected an object with `mcpServers`, got {kind_of(content)}"
            self._fatal.append(Problem((), text))
            return {}, []
        entries = self._find_servers(content)
        self._check_top(content)
        bridge, defaults = self._read_bridge(content.get("bridge", {}))
        tolerant = tolerant and bridge.get("strict") is not True
        servers = self._read_servers(content, entries, defaults, tolerant=tolerant)
        if not servers and not self._of_entries and not self._fatal:
            got = f"{len(self._disabled)} disabled" if self._disabled else "none"
            text = f"expected at least one server that is not disabled, got {got}"
            self._fatal.append(Problem(self._container, text))
        return bridge, servers

    def _read_servers(
        self,
        content: Mapping[str, Any],
        entries: Mapping[str, Any],
        defaults: Mapping[str, Any],
        *,
        tolerant: bool,
    ) -> list[ServerSettings]:
        """Return the servers that can be served; with `tolerant`, tell of the others."""
        disabled = self._names_disabled_at_top(content)
        reader = ServerEntries(self._file, self._container, defaults, tolerant=tolerant)
        servers = []
        self._order = list(entries)
        for name, entry in entries.items():
            where = (*self._container, name)
            if name in disabled or _is_disabled(entry):
                self._disabled.append(name)
                self._file.tell("info", where, "not served: it is disabled")
                continue
            server, problems = reader.read(name, entry)
            self._of_entries += problems
            if server is not None:
                servers.append(server)
                continue
            self._wrong.append(name)
            if tolerant:
                reasons = "; ".join(self._file.described_in(each, where) for each in problems)
                self._file.tell("error", where, f"not served: {reasons}")
        return servers

    # The top of the file, and the bridge.

    def _find_servers(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        for container in _CONTAINERS:
            found: Any = content
            for key in container:
                found = found.get(key) if isinstance(found, dict) else None
            if found is None:
                continue
            self._container = container
            if isinstance(found, dict):
                return found
            self._fatal.append(
                Problem(container, f"expected an object of named servers, got {kind_of(found)}")
            )
            return {}
        if "mcpServers" in map(_near_at_top, content):
            # Named as what it was to be.
            return {}
        self._fatal.append(
            Problem(
                (),
                "expected an object of named servers, `mcpServers` (or `servers` as in VS Code,"
                " or `context_servers` as in Zed)",
            )
        )
        return {}

    def _check_top(self, content: Mapping[str, Any]) -> None:
        """Ignore other keys, unless they look like misspelt ones of ours."""
        for key in content:
            if key in ("bridge", self._container[0]):
                continue
            near = _near_at_top(key)
            if _is_honoured_at_top(key, content[key]):
                continue
            if near is not None:
                self._fatal.append(Problem((key,), unknown(key, near)))
            else:
                self._file.ignore((key,))

    def _names_disabled_at_top(self, content: Mapping[str, Any]) -> set[str]:
        """Return the servers that lists of other programs exclude."""
        lists = [content.get(key) for key in _DISABLED_SERVERS]
        gemini = content.get("mcp")
        if isinstance(gemini, dict):
            lists.append(gemini.get("excluded"))
        names = {name for each in lists if isinstance(each, list) for name in map(str, each)}
        allowed = gemini.get("allowed") if isinstance(gemini, dict) else None
        servers = content.get(self._container[0])
        if isinstance(allowed, list) and isinstance(servers, dict):
            names |= servers.keys() - set(map(str, allowed))
        return names

    def _read_bridge(self, bridge: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of the bridge, and the defaults of all servers."""
        if not isinstance(bridge, dict):
            self._fatal.append(Problem(("bridge",), f"expected an object, got {kind_of(bridge)}"))
            return {}, {}
        bridge = dict(bridge)
        defaults = bridge.pop("defaults", {})
        bridge = self._own_settings(("bridge",), BridgeSettings, bridge, BRIDGE_KEYS)
        for name in ("state_dir", "audit_log"):
            if isinstance(bridge.get(name), str) and bridge[name] not in ("", "-"):
                bridge[name] = self._file.in_folder(bridge[name])
        if isinstance(bridge.get("auth"), dict):
            bridge["auth"] = with_files(bridge["auth"], self._file.in_folder)
        if isinstance(bridge.get("admin_tokens"), Mapping):
            tokens = {"tokens": bridge["admin_tokens"]}
            bridge["admin_tokens"] = with_files(tokens, self._file.in_folder)["tokens"]
        self._check_listeners(bridge, "listen")
        if bridge.get("admin_listen") not in (None, ("none",), ["none"]):
            self._check_listeners(bridge, "admin_listen")
        where: Keys = ("bridge", "defaults")
        if not isinstance(defaults, dict):
            text = f"expected an object of server settings, got {kind_of(defaults)}"
            self._fatal.append(Problem(where, text))
            return bridge, {}
        before = len(self._fatal)
        values = self._own_settings(where, ServerSettings, defaults, DEFAULT_KEYS)
        # Some of them might contradict what a server sets.
        return bridge, values if len(self._fatal) == before else {}

    def _check_listeners(self, bridge: dict[str, Any], setting: str) -> None:
        """Keep the listeners that can be opened, as far as is known before."""
        right = []
        for at, description in enumerate(bridge.get(setting, ())):
            keys = ("bridge", setting, at)
            why = self._check_listen(description)
            if why is None:
                right.append(description)
                continue
            if self._file.is_expanded(keys):
                why = "it is invalid once its variables are replaced"
            text = (
                "expected an endpoint description, such as `tcp:8808:interface=127.0.0.1`, got"
                f" {self._file.raw(keys)!r}: {why}"
            )
            self._fatal.append(Problem(keys, text))
        if setting in bridge:
            bridge[setting] = right

    def _own_settings(
        self, where: Keys, kind: type[Any], given: Mapping[str, Any], known: frozenset[str]
    ) -> dict[str, Any]:
        """
        Read an object of the bridge, in which every key must be a setting.

        Return those that are right.
        """
        given = self._with_todays_names(where, kind, given)
        for key in given:
            if key not in known:
                self._fatal.append(Problem((*where, key), _not_ours(key, where, known)))
        problems: list[Problem] = []
        values = {key: value for key, value in given.items() if key in known}
        expanded: dict[str, Any] = self._file.expand(values, where, problems)
        self._file.convert(where, kind, expanded)
        self._file.check(where, kind, expanded, problems)
        self._fatal += problems
        wrong = {each.keys[: len(where) + 1] for each in problems}
        return {
            key: value
            for key, value in expanded.items()
            if self._file.keys_of(where, key) not in wrong
        }

    def _with_todays_names(
        self, where: Keys, kind: type[Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Accept settings by their former names, with a warning for each."""
        values = dict(given)
        for former, name in former_names(kind).items():
            if former not in given:
                continue
            value = values.pop(former)
            if name in given:
                text = f"this setting is now `{name}`, which is set as well; remove `{former}`"
                self._fatal.append(Problem((*where, former), text))
            else:
                values[name] = value
                self._file.rename((*where, name), (*where, former))
                text = f"this setting is now `{name}`; the former name still works"
                self._file.tell("warn", (*where, former), text)
        return values

    def _build(self, values: dict[str, Any]) -> BridgeSettings | None:
        """Make the settings of the whole bridge; return None if they contradict each other."""
        try:
            return BridgeSettings(**values)
        except SettingError as error:
            # Each setting by itself is right: this is about several of them together.
            for each in (error, *error.others):
                self._add_contradiction(each)
            return None

    def _build_without_contradictions(self, values: dict[str, Any]) -> BridgeSettings | None:
        """Make the settings without those that are in errors."""
        wrong = {each.keys[1] for each in self._fatal if each.keys[0:1] == ("bridge",) != each.keys}
        if wrong.intersection(("auth", "public_url")):
            wrong.add("auth")
        bridge = {key: value for key, value in values.items() if key not in wrong}
        length = len(self._container)
        of_servers = {
            each.keys[length]
            for each in self._fatal
            if each.keys[:length] == self._container and len(each.keys) > length
        }
        servers = [each for each in values["servers"] if each.name not in of_servers]
        if "auth" in wrong:
            # What is left of it might be without a way to identify callers.
            servers = [replace(each, auth=None) for each in servers]
        bridge["servers"] = tuple(servers)
        self._wrong += (str(each) for each in of_servers if each not in self._wrong)
        try:
            return BridgeSettings(**bridge)
        except SettingError:
            return None

    def _add_contradiction(self, error: SettingError) -> None:
        of_server = error.name.removeprefix("mcpServers.")
        above = self._container if of_server != error.name else ("bridge",)
        keys = self._file.keys_of(above, of_server)
        if self._fatal and keys[1:2] in (("auth",), ("public_url",)):
            # It may follow from another error.
            return
        self._fatal.append(self._file.problem(keys, error))

    def _sorted(self) -> list[Problem]:
        """Return all errors, in the order of the file."""
        lines = self._file.document.lines
        return sorted([*self._fatal, *self._of_entries], key=lambda each: lines.get(each.keys, 0))

    def _errors(self) -> SettingErrors:
        return SettingErrors([self._file.described(each) for each in self._sorted()])


def _is_disabled(entry: object) -> bool:
    """Tell whether an entry is disabled; a value other than true or false is an error later."""
    if not isinstance(entry, dict):
        return False
    return entry.get("disabled") is True or entry.get("enabled") is False


def _is_honoured_at_top(key: str, value: object) -> bool:
    """Tell whether a key at the top has an effect, or is for editors alone."""
    if key == "$schema":
        return True
    if key == "mcp":
        return isinstance(value, dict) and not {"allowed", "excluded"}.isdisjoint(value)
    return key in _DISABLED_SERVERS


def _near_at_top(key: str) -> str | None:
    """Return the object that a misspelt key at the top stands for."""
    if key in ("bridge", "mcpServers"):
        return None
    ours = {"bridge": "bridge", "mcpservers": "mcpServers"}
    near = difflib.get_close_matches(key.lower(), ours, n=1, cutoff=_NEAR_AT_TOP)
    return ours[near[0]] if near else None


def _not_ours(key: str, where: Keys, known: frozenset[str]) -> str:
    """Say what to do about an unknown key in `bridge` or `bridge.defaults`."""
    if where == ("bridge",) and key in DEFAULT_KEYS:
        return f"a server setting; to set it for all servers, use `bridge.defaults.{key}`"
    if key in SERVER_KEYS:
        return "a setting of a single server; move it to the object of that server"
    if key in BRIDGE_NAMES:
        return f"a setting of the bridge; move it to `bridge.{BRIDGE_NAMES[key]}`"
    near = nearest(plain(key), known)
    if near is not None:
        return unknown(key, near)
    return f"unknown key `{key}`; the known keys are {', '.join(sorted(known))}"
