"""
The objects of single servers in a configuration file.

Knows what an entry may hold, whoever wrote it; must not know the rest of the file.  A
server that cannot be served as its entry demands is not served.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from mcpbridge.config.auth import with_files
from mcpbridge.config.checks import PATH_PREFIX, kind_of
from mcpbridge.config.config_file import ConfigFile, Problem, without_name
from mcpbridge.config.dotenv import NotDotenv, parse_dotenv
from mcpbridge.config.foreign import (
    HONOURED,
    SERVER_KEYS,
    URLS,
    Transport,
    judge,
    lists_tools,
    read_transport,
    restricts_tools,
)
from mcpbridge.config.jsonc import Keys
from mcpbridge.config.regular_file import read_regular_file
from mcpbridge.config.settings import (
    PROCESS_SETTINGS,
    REMOTE_SETTINGS,
    BridgeSettings,
    ServerSettings,
    former_names,
    path_conflict,
    wrong_settings,
)
from mcpbridge.config.tuning import ENV_FILE_BYTES
from mcpbridge.errors import SettingError

BRIDGE_KEYS = frozenset(f.name for f in fields(BridgeSettings)) - {"servers"}
#: The same by each name that works: what it is called today.
BRIDGE_NAMES = {**{key: key for key in BRIDGE_KEYS}, **former_names(BridgeSettings)}
#: Settings of a server that are paths.
_PATHS = ("cwd", "stderr_dir", "ca_file")
#: Characters that a path cannot contain.
_NOT_IN_PATH = re.compile(r"[^\w.~@:+/-]+", re.ASCII)
#: Stands for a command that is wrong, so that everything else can be checked.
_SOME_COMMAND = "command"


class Entry(NamedTuple):
    """What was read of a server."""

    #: None if there is an error.
    server: ServerSettings | None
    problems: list[Problem]


class ServerEntries:
    """
    Reads the entries of one file, one after the other.

    `container` are the keys of the object that holds them, and `defaults` the settings
    of servers that do not set them.  With `tolerant`, a server that cannot be served
    leaves its path to others.
    """

    def __init__(
        self, file: ConfigFile, container: Keys, defaults: Mapping[str, Any], *, tolerant: bool
    ) -> None:
        self._file = file
        self._container = container
        self._defaults = defaults
        self._tolerant = tolerant
        #: The servers that have their paths.
        self._with_paths: list[ServerSettings] = []

    def read(self, name: str, entry: object) -> Entry:
        """Read an entry.  It is served unless there is a problem."""
        where: Keys = (*self._container, name)
        problems: list[Problem] = []
        if not isinstance(entry, dict):
            text = f"expected an object, got {kind_of(entry)}"
            return Entry(None, [Problem(where, text)])
        transport = read_transport(entry)
        values = self._values(where, name, entry, transport, problems)
        server = self._make(where, name, values, transport, problems)
        if server is not None and "base_uri" in values:
            self._check_path(where, server, problems)
            if not (problems and self._tolerant):
                self._with_paths.append(server)
        if server is None or problems:
            return Entry(None, problems)
        if server.base_uri == self._slug(name) != f"/{name}":
            why = "as its name has characters that a path cannot have"
            text = f"served at {server.base_uri}, {why}; for another path set `base_uri`"
            self._file.tell("warn", where, text)
        return Entry(server, [])

    def _values(
        self,
        where: Keys,
        name: str,
        entry: Mapping[str, Any],
        transport: Transport,
        problems: list[Problem],
    ) -> dict[str, Any]:
        """Return the settings of an entry, with variables replaced and everything checked."""
        for key in ("disabled", "enabled"):
            if key in entry and not isinstance(entry[key], bool):
                got = kind_of(entry[key])
                problems.append(Problem((*where, key), f"expected true or false, got {got}"))
        if transport.url_key != URLS[0]:
            self._file.rename((*where, URLS[0]), (*where, transport.url_key))
        problems += [Problem((*where, key), text) for key, text in transport.findings]
        own = self._settings_of(where, entry, transport, problems)
        values: dict[str, Any] = self._file.expand(own, where, problems)
        self._file.warn_of_bare_variables(values, where)
        self._file.convert(where, ServerSettings, values)
        self._file.check(where, ServerSettings, values, problems)
        needed = "url" if transport.is_remote else "command"
        if needed not in own and not any(f"`{needed}`" in each.text for each in problems):
            text = "there is no `command`, nor the `url` of a remote server"
            problems.append(Problem(where, text))
        self._add_tools(where, entry, values, problems)
        if entry.get("envFile") is not None:
            self._add_env_file(where, entry["envFile"], values, transport, problems)
        if "base_uri" not in values:
            base = self._slug(name)
            if base is None:
                text = "no path can be made of the name; give the server a `base_uri`"
                problems.append(Problem(where, text))
            else:
                values["base_uri"] = base
        return values

    def _settings_of(
        self,
        where: Keys,
        entry: Mapping[str, Any],
        transport: Transport,
        problems: list[Problem],
    ) -> dict[str, Any]:
        """Return what an entry sets, and judge its other keys."""
        own = dict(transport.settings)
        for key, value in entry.items():
            if key in URLS or key in HONOURED or lists_tools(key):
                continue
            if key == "headers" and not transport.is_remote:
                self._file.ignore((*where, key))
            elif key == "tools" and value == "*":
                own[key] = None
            elif key in SERVER_KEYS:
                own[key] = value
            else:
                text = self._judge(key, value, where, is_remote=transport.is_remote)
                if text is not None:
                    problems.append(Problem((*where, key), text))
        return own

    def _judge(self, key: str, value: object, where: Keys, *, is_remote: bool) -> str | None:
        """Return what is wrong with an unknown key; note one that is ignored."""
        if key in BRIDGE_NAMES:
            return f"a setting of the bridge; move it to `bridge.{BRIDGE_NAMES[key]}`"
        problem = judge(key, value, is_remote=is_remote)
        if problem is None:
            self._file.ignore((*where, key))
        return problem

    def _add_tools(
        self,
        where: Keys,
        entry: Mapping[str, Any],
        values: dict[str, Any],
        problems: list[Problem],
    ) -> None:
        """Add to `tools` what keys of other programs allow and deny."""
        given = values.get("tools", self._defaults.get("tools"))
        lists = dict(given) if isinstance(given, dict) else {}
        if isinstance(given, list):
            lists = {"allow": given}
        for key, names in entry.items():
            what = lists_tools(key)
            if what is None:
                continue
            place = (*where, key)
            if not restricts_tools(key, names):
                self._file.ignore(place)
                continue
            names = self._file.expand(names, place, problems)
            before = lists.get(what)
            if not isinstance(names, list):
                problems.append(Problem(place, f"expected a list of names, got {kind_of(names)}"))
            elif what == "allow" and before is not None and "*" not in before:
                text = "allows tools, which another key (or a default) does too; write `tools` only"
                problems.append(Problem(place, text))
            else:
                wrong = [*wrong_settings(ServerSettings, {"tools": {what: names}})]
                problems += [Problem(place, without_name(error)) for error in wrong]
                if not wrong:
                    more = before if what == "deny" and isinstance(before, list) else []
                    values["tools"] = lists = {**lists, what: [*more, *names]}

    # The whole server.

    def _make(
        self,
        where: Keys,
        name: str,
        values: Mapping[str, Any],
        transport: Transport,
        problems: list[Problem],
    ) -> ServerSettings | None:
        """
        Make the settings of right values, or of those that are right.

        Of settings that contradict each other only those are named that are right by
        themselves.
        """
        wrong = self._wrong_keys(where, problems)
        right = {key: value for key, value in values.items() if key not in wrong}
        known = self._complete(where, right, wrong, transport)
        try:
            return ServerSettings(**{**known, "name": name})
        except SettingError as error:
            for each in (error, *error.others):
                keys = self._file.keys_of(where, each.name)
                if not wrong.intersection(keys[len(where) :][:1], {re.split(r"\W", each.name)[0]}):
                    problems.append(Problem(keys, without_name(each)))
            return None

    def _wrong_keys(self, where: Keys, problems: list[Problem]) -> set[Any]:
        """Return the keys of an entry that have an error, by the names of the settings."""
        wrong = {each.keys[len(where)] for each in problems if len(each.keys) > len(where)}
        if wrong.intersection(URLS):
            wrong.add(URLS[0])
        return wrong

    def _complete(
        self,
        where: Keys,
        right: dict[str, Any],
        wrong: set[Any],
        transport: Transport,
    ) -> dict[str, Any]:
        """Add the defaults, and resolve paths."""
        others = (*PROCESS_SETTINGS, "launcher") if transport.is_remote else REMOTE_SETTINGS
        # What does not fit this kind of server is of the other kind.
        fitting = {key: each for key, each in self._defaults.items() if key not in others}
        values = {**fitting, **right}
        if transport.is_remote and "url" not in values:
            values = {key: each for key, each in values.items() if key not in REMOTE_SETTINGS}
        if "url" not in values:
            values.setdefault("command", _SOME_COMMAND)
        for key in _PATHS:
            if values.get(key):
                values[key] = self._file.in_folder(values[key])
        if isinstance(values.get("auth"), dict):
            values["auth"] = with_files(values["auth"], self._file.in_folder)
        return values

    def _check_path(self, where: Keys, server: ServerSettings, problems: list[Problem]) -> None:
        for other in self._with_paths:
            if path_conflict(server, other) or path_conflict(other, server):
                text = (
                    f"the path {server.base_uri!r} collides with {other.base_uri!r} of server"
                    f" {other.name!r}; give it a `base_uri` of its own"
                )
                problems.append(Problem((*where, "base_uri"), text))
                return

    @staticmethod
    def _slug(name: str) -> str | None:
        """Make a path of a name, without the characters it cannot hold; None if none is left."""
        if PATH_PREFIX.accepts(f"/{name}"):
            return f"/{name}"
        base = "/" + re.sub(r"/{2,}", "/", _NOT_IN_PATH.sub("-", name)).strip("-/")
        return base if base != "/" and PATH_PREFIX.accepts(base) else None

    # Files of variables.

    def _add_env_file(
        self,
        where: Keys,
        given: object,
        values: dict[str, Any],
        transport: Transport,
        problems: list[Problem],
    ) -> None:
        """Add the variables of an `envFile` to `env`, which takes precedence."""
        place = (*where, "envFile")
        if transport.is_remote:
            text = "a remote server has no environment; remove this key"
            problems.append(Problem(place, text))
            return
        variables = self._read_env_file(place, given, problems)
        if isinstance(values.get("env", {}), dict):
            values["env"] = {**variables, **values.get("env", {})}

    def _read_env_file(self, keys: Keys, given: object, problems: list[Problem]) -> dict[str, str]:
        """Read the variables of an `envFile`."""
        if not isinstance(given, str) or not given or "\0" in given:
            problems.append(Problem(keys, f"expected the path of a file, got {kind_of(given)}"))
            return {}
        found: list[Problem] = []
        path = self._file.in_folder(str(self._file.expand(given, keys, found)))
        problems += found
        if found:
            return {}
        shown = self._file.raw(keys) if self._file.is_expanded(keys) else path
        try:
            data, _ = read_regular_file(path, ENV_FILE_BYTES)
            if len(data) > ENV_FILE_BYTES:
                problems.append(
                    Problem(keys, f"{shown} has more than {ENV_FILE_BYTES} bytes (ENV_FILE_BYTES)")
                )
                return {}
            if b"\0" in data:
                problems.append(Problem(keys, f"{shown} is not a text file: it has NUL bytes"))
                return {}
            return parse_dotenv(data.decode("utf-8-sig"))
        except OSError as error:
            problems.append(Problem(keys, f"cannot read {shown}: {error.strerror}"))
        except UnicodeDecodeError:
            problems.append(Problem(keys, f"{shown} is not valid UTF-8"))
        except NotDotenv as error:
            problems.append(Problem(keys, f"{shown}, line {error.line}: {error}"))
        return {}
