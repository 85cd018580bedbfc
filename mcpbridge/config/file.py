"""
Reads settings from a JSON file: servers in the format of MCP clients, and a
`bridge` object for the bridge itself.

Knows the keys of the settings and those that other programs write; must not know
the reactor.  Each error is one line that names the file, the line, the key and what
to do.  A server that cannot be served as its entry demands is not served.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mcpbridge.config.auth import with_files
from mcpbridge.config.checks import PATH_PREFIX, kind_of
from mcpbridge.config.dotenv import NotDotenv, parse_dotenv
from mcpbridge.config.expansion import bare_variable, expand
from mcpbridge.config.jsonc import Document, Keys, NotJsonc, parse_jsonc
from mcpbridge.config.settings import (
    PROCESS_SETTINGS,
    REMOTE_SETTINGS,
    BridgeSettings,
    ServerSettings,
    former_names,
    path_conflict,
    wrong_settings,
)
from mcpbridge.config.tuning import ENV_FILE_BYTES, NAMED_KEYS
from mcpbridge.errors import Described, SettingError, SettingErrors

#: The object that holds the servers: of most clients, VS Code, Zed, and VS Code's settings.
_CONTAINERS: tuple[tuple[str, ...], ...] = (
    ("mcpServers",),
    ("servers",),
    ("context_servers",),
    ("mcp", "servers"),
)
#: Keys of other programs in a server's object, which might be taken for misspelt
#: settings.
FOREIGN_KEYS = frozenset(
    {
        "alwaysAllow",
        "autoApprove",
        "autoStart",
        "description",
        "dev",
        "gallery",
        "icon",
        "initTimeout",
        "name",
        "networkTimeout",
        "notes",
        "requestTimeout",
        "startupTimeout",
        "startup_timeout_ms",
        "startup_timeout_sec",
        "timeout",
        "title",
        "tool_timeout_sec",
        "trust",
        "version",
    }
)
#: Keys that restrict a server or its clients, without case and separators.  The bridge
#: does not enforce them, so it does not serve a server that has them.
_ALLOWS = frozenset({"includetags"})
_DENIES = frozenset({"excludetags", "sandbox", "sandboxenabled"})
#: Keys of other programs that list the tools that there are, and those that there are not,
#: in the same spelling.
_ALLOWED_TOOLS = frozenset({"includetools", "enabledtools", "allowedtools"})
_DENIED_TOOLS = frozenset({"excludetools", "disabledtools", "deniedtools", "blockedtools"})
#: Keys at the top that name disabled servers.
_DISABLED_SERVERS = ("disabledMcpServers", "disabledMcpjsonServers")
#: Keys of a server that the bridge honours although they are not settings.
_HONOURED = frozenset({"disabled", "enabled", "envFile", "transport", "type"})
_URLS = ("url", "serverUrl", "httpUrl")
#: The words of `type` and `transport`, in lower case and without separators, and the
#: transport of the bridge that each stands for; None for a command.
_TRANSPORTS = {
    "stdio": None,
    "local": None,
    "http": "auto",
    "remote": "auto",
    "auto": "auto",
    "streamablehttp": "auto",
    "sse": "sse",
}
#: Other words for a setting that are not similar to its name.
_SYNONYMS = {
    "arguments": "args",
    "argv": "args",
    "cmd": "command",
    "directory": "cwd",
    "environ": "env",
    "environment": "env",
    "envvars": "env",
    "workdir": "cwd",
    "workingdir": "cwd",
    "workingdirectory": "cwd",
}

_SERVER_KEYS = frozenset(f.name for f in fields(ServerSettings)) - {"name"}
#: Settings that make sense for several servers at once.
_DEFAULT_KEYS = _SERVER_KEYS - {"command", "args", "base_uri", "public_path", "url"}
_BRIDGE_KEYS = frozenset(f.name for f in fields(BridgeSettings)) - {"servers"}
#: The same by each name that works: what it is called today.
_BRIDGE_NAMES = {**{key: key for key in _BRIDGE_KEYS}, **former_names(BridgeSettings)}
#: How similar to a known key an unknown one must be to count as misspelt.
_NEAR_AT_TOP = 0.83
_NEAR = 0.8
#: Characters that a path cannot contain.
_NOT_IN_PATH = re.compile(r"[^\w.~@:+/-]+", re.ASCII)
#: The largest number of servers that a warning about a key names.
_NAMED_SERVERS = 5


class Notice(NamedTuple):
    """A line about the settings, for the log at the start."""

    level: Literal["info", "warn", "error"]
    text: str


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

    A relative `cwd`, `stderr_dir`, `state_dir`, `audit_log` or `envFile` is relative to the
    folder of the file.  A server that cannot be served is left out with a notice; with `strict` it
    is an error, and so it is with one of `required`, the names of servers that must be served if
    the file has them.  `check_listen` returns what is wrong with the description of a listener.
    Raises `SettingError` for a file that cannot be read, and `SettingErrors` with a line
    for each error in it.
    """
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
    reader = _Reader(document, folder, path, environment, notify, check_listen)
    return reader.read(strict, required)


def parse_config(
    content: object,
    folder: str,
    *,
    strict: bool = False,
    environment: Mapping[str, str] = os.environ,
    notify: Callable[[Notice], object] = lambda notice: None,
) -> BridgeSettings:
    """Read the settings from a decoded file, as `read_config` does.  Raises `SettingErrors`."""
    document = Document(content, {}, [])
    return _Reader(document, folder, "", environment, notify, lambda _: None).read(strict)


class _Problem(NamedTuple):
    """An error: the keys that lead to it, and what to do."""

    keys: Keys
    text: str


class _Reader:
    """Makes settings of one file, and collects all of its errors."""

    def __init__(
        self,
        document: Document,
        folder: str,
        path: str,
        environment: Mapping[str, str],
        notify: Callable[[Notice], object],
        check_listen: Callable[[str], str | None],
    ) -> None:
        self._document = document
        self._folder = folder
        self._path = path
        self._environment = environment
        self._notify = notify
        self._check_listen = check_listen
        # A file such as `.vscode/mcp.json` belongs to the folder around `.vscode`.
        name = os.path.basename(folder)
        workspace = os.path.dirname(folder) if name.startswith(".") else folder
        self._predefined = {
            "workspaceFolder": workspace,
            "workspaceFolderBasename": os.path.basename(workspace),
            "userHome": os.path.expanduser("~"),
            "pathSeparator": os.sep,
            "/": os.sep,
        }
        #: Errors of the whole file or the bridge, and errors of single servers.
        self._fatal: list[_Problem] = []
        self._of_entries: list[_Problem] = []
        #: Keys that are ignored, and the servers that have them.
        self._ignored: dict[str, list[Keys]] = {}
        self._container: tuple[str, ...] = ("mcpServers",)
        #: Where the file has a setting by its former name, by where that is today.
        self._written: dict[Keys, Keys] = {}

    def read(self, strict: bool, required: Collection[str] = ()) -> BridgeSettings:
        """Return the settings.  Raises `SettingErrors`."""
        content = self._document.content
        for keys, line in self._document.repeated:
            again = f"; it is set again in line {line}" if line else ""
            self._fatal.append(_Problem(keys, f"duplicate key{again}"))
        if not isinstance(content, dict):
            self._fatal.append(
                _Problem((), f"expected an object with `mcpServers`, got {kind_of(content)}")
            )
            raise self._errors()
        servers = self._find_servers(content)
        self._check_top(content)
        bridge, defaults = self._read_bridge(content.get("bridge", {}))
        strict = strict or bridge.get("strict") is True
        disabled = self._names_disabled_at_top(content)
        parsed: list[ServerSettings] = []
        left_out = 0
        for name, entry in servers.items():
            if name in disabled or self._is_disabled(name, entry):
                left_out += 1
                self._tell("info", (*self._container, name), "not served: it is disabled")
                continue
            server = self._read_server(name, entry, defaults, parsed, strict=strict)
            if server is not None:
                parsed.append(server)
        if not parsed and not self._of_entries and not self._fatal:
            got = f"{left_out} disabled" if left_out else "none"
            self._fatal.append(
                _Problem(
                    self._container, f"expected at least one server that is not disabled, got {got}"
                )
            )
        at = len(self._container)
        if any(each.keys[at] in required for each in self._of_entries):
            strict = True
        if self._fatal or not parsed or (strict and self._of_entries):
            raise self._errors()
        settings = self._build({**bridge, "servers": tuple(parsed), "strict": strict})
        self._tell_ignored()
        return settings

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
                _Problem(container, f"expected an object of named servers, got {kind_of(found)}")
            )
            return {}
        if "mcpServers" in map(_near_at_top, content):
            # Named as what it was to be.
            return {}
        self._fatal.append(
            _Problem(
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
            if _names_servers(key, content[key]):
                continue
            if near is not None:
                self._fatal.append(_Problem((key,), _unknown(key, near)))
            else:
                self._ignored.setdefault(key, []).append((key,))

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
            self._fatal.append(_Problem(("bridge",), f"expected an object, got {kind_of(bridge)}"))
            return {}, {}
        bridge = dict(bridge)
        defaults = bridge.pop("defaults", {})
        bridge = self._own_settings(("bridge",), BridgeSettings, bridge, _BRIDGE_KEYS)
        for name in ("state_dir", "audit_log"):
            if isinstance(bridge.get(name), str) and bridge[name] not in ("", "-"):
                bridge[name] = self._in_folder(bridge[name])
        if isinstance(bridge.get("auth"), dict):
            bridge["auth"] = with_files(bridge["auth"], self._in_folder)
        listen = bridge.get("listen")
        for at, description in enumerate(listen if isinstance(listen, list) else []):
            keys = ("bridge", "listen", at)
            why = self._check_listen(description) if isinstance(description, str) else None
            if why is not None:
                if self._is_expanded(keys):
                    why = "it is invalid once its variables are replaced"
                self._fatal.append(
                    _Problem(
                        keys,
                        "expected an endpoint description, such as"
                        f" `tcp:8808:interface=127.0.0.1`, got {self._raw(keys)!r}: {why}",
                    )
                )
        if not isinstance(defaults, dict):
            text = f"expected an object of server settings, got {kind_of(defaults)}"
            self._fatal.append(_Problem(("bridge", "defaults"), text))
            return bridge, {}
        return bridge, self._own_settings(
            ("bridge", "defaults"), ServerSettings, defaults, _DEFAULT_KEYS
        )

    def _own_settings(
        self, where: Keys, kind: type[Any], given: Mapping[str, Any], known: frozenset[str]
    ) -> dict[str, Any]:
        """Read an object of the bridge, in which every key must be a setting."""
        given = self._with_todays_names(where, kind, given)
        for key in given:
            if key not in known:
                self._fatal.append(_Problem((*where, key), _not_ours(key, where, known)))
        problems: list[_Problem] = []
        values = {key: value for key, value in given.items() if key in known}
        expanded: dict[str, Any] = self._expand(values, where, problems)
        self._check(where, kind, expanded, problems)
        self._fatal += problems
        # The rest of the file is checked all the same.
        return {} if problems else expanded

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
                self._fatal.append(_Problem((*where, former), text))
            else:
                values[name] = value
                self._written[*where, name] = (*where, former)
                text = f"this setting is now `{name}`; the former name still works"
                self._tell("warn", (*where, former), text)
        return values

    def _build(self, values: dict[str, Any]) -> BridgeSettings:
        try:
            return BridgeSettings(**values)
        except SettingError as error:
            # Each setting by itself is right: this is about several of them together.
            self._fatal.append(_Problem(("bridge", error.name), _without_name(error)))
            raise self._errors() from None

    # A server.

    def _is_disabled(self, name: str, entry: object) -> bool:
        """Tell whether an entry is disabled; a value other than true or false is an error later."""
        if not isinstance(entry, dict):
            return False
        return entry.get("disabled") is True or entry.get("enabled") is False

    def _read_server(
        self,
        name: str,
        entry: object,
        defaults: Mapping[str, Any],
        others: list[ServerSettings],
        *,
        strict: bool,
    ) -> ServerSettings | None:
        """Read a server; return None if it cannot be served, with a notice."""
        where: Keys = (*self._container, name)
        problems: list[_Problem] = []
        server = None
        if not isinstance(entry, dict):
            problems.append(_Problem(where, f"expected an object, got {kind_of(entry)}"))
        else:
            values = self._server_values(where, name, entry, problems)
            if not problems:
                values = {**_fitting(defaults, values), **values, "name": name}
                for setting in ("cwd", "stderr_dir", "ca_file"):
                    if values.get(setting):
                        values[setting] = self._in_folder(values[setting])
                if isinstance(values.get("auth"), dict):
                    values["auth"] = with_files(values["auth"], self._in_folder)
                server = self._make_server(where, values, problems)
            if server is not None:
                self._check_path(where, server, others, problems)
        self._of_entries += problems
        if server is not None and not problems:
            if server.base_uri == self._slug(name) != f"/{name}":
                why = "as its name has characters that a path cannot have"
                text = f"served at {server.base_uri}, {why}; for another path set `base_uri`"
                self._tell("warn", where, text)
            return server
        if not strict:
            reasons = "; ".join(self._shown(each, where) for each in problems)
            self._tell("error", where, f"not served: {reasons}")
        return None

    def _make_server(
        self, where: Keys, values: dict[str, Any], problems: list[_Problem]
    ) -> ServerSettings | None:
        try:
            return ServerSettings(**values)
        except SettingError as error:
            # Each setting by itself is right: this is about several of them together.
            problems.append(_Problem((*where, *_keys_of(error.name)), _without_name(error)))
            return None

    def _server_values(
        self, where: Keys, name: str, entry: Mapping[str, Any], problems: list[_Problem]
    ) -> dict[str, Any]:
        """Return the settings of an entry, with variables replaced and everything checked."""
        for key in ("disabled", "enabled"):
            if key in entry and not isinstance(entry[key], bool):
                got = kind_of(entry[key])
                problems.append(_Problem((*where, key), f"expected true or false, got {got}"))
        own: dict[str, Any] = {}
        is_remote = self._read_transport(where, entry, own, problems)
        self._read_tools(where, entry, own, problems)
        for key, value in entry.items():
            if key == "headers" and not is_remote:
                self._ignored.setdefault(key, []).append((*where, key))
            elif key in own or key in _URLS or _lists_tools(key):
                continue
            elif key in _SERVER_KEYS:
                own[key] = value
            elif key not in _HONOURED:
                problem = self._judge(key, value, where)
                if problem is not None:
                    problems.append(_Problem((*where, key), problem))
        values: dict[str, Any] = self._expand(own, where, problems)
        self._warn_of_bare_variables(values, where)
        self._check(where, ServerSettings, values, problems)
        needed = "command" if not is_remote else "url"
        if needed not in own and not any(f"`{needed}`" in each.text for each in problems):
            what = "`command`" if not is_remote else "`url`"
            problems.append(_Problem(where, f"there is no {what}"))
        if entry.get("envFile") is not None:
            given = self._read_env_file((*where, "envFile"), entry["envFile"], problems)
            if isinstance(values.get("env", {}), dict):
                values["env"] = {**given, **values.get("env", {})}
        if "base_uri" not in values:
            values["base_uri"] = self._path_of(where, name, problems)
        return values

    def _read_transport(
        self,
        where: Keys,
        entry: Mapping[str, Any],
        own: dict[str, Any],
        problems: list[_Problem],
    ) -> bool:
        """Read where a server is, and how it is reached; return whether it is remote."""
        urls = [key for key in _URLS if entry.get(key) is not None]
        if urls:
            own["url"] = entry[urls[0]]
            for key in urls[1:]:
                if entry[key] != own["url"]:
                    text = f"`{key}` is another URL than `{urls[0]}`; remove one of them"
                    problems.append(_Problem((*where, key), text))
        is_remote = bool(urls)
        for key in ("type", "transport"):
            given = entry.get(key)
            if given is None:
                continue
            word = _plain(given) if isinstance(given, str) else given
            if not isinstance(word, str) or word not in _TRANSPORTS:
                known = "`stdio`, `http`, `streamable-http` or `sse`"
                got = f"`{given}`" if isinstance(given, str) else kind_of(given)
                problems.append(_Problem((*where, key), f"expected {known}, got {got}"))
                continue
            transport = _TRANSPORTS[word]
            if transport is None and urls:
                problems.append(_Problem((*where, key), f"`{given}` has no `{urls[0]}`"))
            elif transport is not None:
                is_remote = True
                own.setdefault("remote_transport", transport)
        if "remote_transport" in entry:
            own["remote_transport"] = entry["remote_transport"]
        return is_remote

    def _read_tools(
        self,
        where: Keys,
        entry: Mapping[str, Any],
        own: dict[str, Any],
        problems: list[_Problem],
    ) -> None:
        """Read the lists of tools, in the bridge's form or in those of other programs."""
        tools = entry.get("tools")
        lists: dict[str, Any] = {}
        if isinstance(tools, dict):
            lists = dict(tools)
        elif isinstance(tools, list):
            lists = {"allow": tools}
        elif tools is not None and tools != "*":
            own["tools"] = tools
            return
        for key, value in entry.items():
            what = _lists_tools(key)
            if what is None or value is None:
                continue
            if not isinstance(value, list):
                text = f"expected a list of names, got {kind_of(value)}"
                problems.append(_Problem((*where, key), text))
            elif what == "deny":
                lists["deny"] = [*lists.get("deny", ()), *value]
            elif lists.get("allow") is not None:
                text = f"`{key}` allows tools, which another key does already; remove one of them"
                problems.append(_Problem((*where, key), text))
            else:
                lists["allow"] = value
        own["tools"] = lists or None

    def _judge(self, key: str, value: object, where: Keys) -> str | None:
        """Return what is wrong with an unknown key; note one that is ignored."""
        plain = _plain(key)
        if plain in _ALLOWS | _DENIES and not key.startswith("_"):
            if _restricts(value, allows=plain in _ALLOWS):
                if "sandbox" in plain:
                    return f"`{key}`: mcpbridge has no sandbox; remove the key to serve without one"
                return (
                    f"`{key}` restricts tools by tags, which servers do not send; remove it, and"
                    " name the tools in `tools`, as `allow` or `deny`"
                )
        elif key not in FOREIGN_KEYS and not key.startswith(("_", "$", "/", "#", "x-")):
            if key in _BRIDGE_NAMES:
                return f"a setting of the bridge; move it to `bridge.{_BRIDGE_NAMES[key]}`"
            near = _nearest(plain, _SERVER_KEYS | _HONOURED)
            if near is not None:
                return _unknown(key, near)
        self._ignored.setdefault(key, []).append((*where, key))
        return None

    def _check_path(
        self,
        where: Keys,
        server: ServerSettings,
        others: Iterable[ServerSettings],
        problems: list[_Problem],
    ) -> None:
        for other in others:
            error = path_conflict(server, other) or path_conflict(other, server)
            if error is not None:
                problems.append(
                    _Problem(
                        (*where, "base_uri"),
                        f"the path {server.base_uri!r} collides with {other.base_uri!r} of server"
                        f" {other.name!r}; give it a `base_uri` of its own",
                    )
                )
                return

    def _path_of(self, where: Keys, name: str, problems: list[_Problem]) -> str:
        """Return the path that is made of a server's name."""
        base = self._slug(name)
        if base == "/":
            text = "no path can be made of the name; give the server a `base_uri`"
            problems.append(_Problem(where, text))
        return base

    @staticmethod
    def _slug(name: str) -> str:
        """Make a path of a name, without the characters it cannot hold; `/` if none is left."""
        if PATH_PREFIX.accepts(f"/{name}"):
            return f"/{name}"
        base = "/" + re.sub(r"/{2,}", "/", _NOT_IN_PATH.sub("-", name)).strip("-/")
        return base if PATH_PREFIX.accepts(base) else "/"

    def _read_env_file(self, keys: Keys, given: object, problems: list[_Problem]) -> dict[str, str]:
        """Read the variables of an `envFile`."""
        if not isinstance(given, str) or not given or "\0" in given:
            problems.append(_Problem(keys, f"expected the path of a file, got {kind_of(given)}"))
            return {}
        found: list[_Problem] = []
        path = self._in_folder(str(self._expand(given, keys, found)))
        problems += found
        if found:
            return {}
        shown = self._raw(keys) if self._is_expanded(keys) else path
        try:
            with open(path, "rb") as file:
                data = file.read(ENV_FILE_BYTES + 1)
            if len(data) > ENV_FILE_BYTES:
                problems.append(
                    _Problem(keys, f"{shown} has more than {ENV_FILE_BYTES} bytes (ENV_FILE_BYTES)")
                )
                return {}
            if b"\0" in data:
                problems.append(_Problem(keys, f"{shown} is not a text file: it has NUL bytes"))
                return {}
            return parse_dotenv(data.decode("utf-8-sig"))
        except OSError as error:
            problems.append(_Problem(keys, f"cannot read {shown}: {error.strerror}"))
        except UnicodeDecodeError:
            problems.append(_Problem(keys, f"{shown} is not valid UTF-8"))
        except NotDotenv as error:
            problems.append(_Problem(keys, f"{shown}, line {error.line}: {error}"))
        return {}

    def _warn_of_bare_variables(self, values: Mapping[str, Any], where: Keys) -> None:
        """Warn of `$NAME` in `env`: it is not replaced, though it is meant to be."""
        env = values.get("env")
        for key, value in env.items() if isinstance(env, dict) else ():
            raw = self._raw((*where, "env", key), value)
            name = bare_variable(raw) if isinstance(raw, str) else None
            if name is not None:
                self._tell(
                    "warn",
                    (*where, "env", key),
                    f"`${name}` is passed literally; to insert the variable, write `${{{name}}}`",
                )

    # Values.

    def _expand(self, value: Any, keys: Keys, problems: list[_Problem]) -> Any:
        """Replace all variables in the strings of a value."""
        if isinstance(value, dict):
            return {key: self._expand(each, (*keys, key), problems) for key, each in value.items()}
        if isinstance(value, list):
            return [self._expand(each, (*keys, at), problems) for at, each in enumerate(value)]
        if not isinstance(value, str):
            return value
        text, wrong = expand(value, self._environment, self._predefined)
        problems += [_Problem(keys, each) for each in wrong]
        # What cannot be replaced is not checked any further.
        return value if wrong else text

    def _check(
        self, where: Keys, kind: type[Any], values: Mapping[str, Any], problems: list[_Problem]
    ) -> None:
        """Check each setting by itself, except those with an error already."""
        wrong = {each.keys for each in problems}
        for error in wrong_settings(kind, values):
            keys = (*where, *_keys_of(error.name))
            if any(each[: len(keys)] == keys for each in wrong):
                continue
            keys = self._written.get(keys, keys)
            if self._is_expanded(keys):
                # The value of a variable is not shown.
                got = f"{kind_of(self._raw(keys))}, once its variables are replaced"
                text = f"expected {error.expected}, got {got}"
            else:
                text = _without_name(error)
            problems.append(_Problem(keys, text))

    def _raw(self, keys: Keys, default: Any = None) -> Any:
        """Return what the file holds, with its variables."""
        found = self._document.content
        for key in keys:
            try:
                found = found[key]
            except (LookupError, TypeError):
                return default
        return found

    def _is_expanded(self, keys: Keys) -> bool:
        """Tell whether the file has a variable in this place."""
        return "${" in json.dumps(self._raw(keys))

    def _in_folder(self, path: str) -> str:
        return os.path.join(self._folder, os.path.expanduser(path))

    # What is told.

    def _place(self, keys: Keys) -> str:
        """Return the file and the line, as far as they are known."""
        if not self._path:
            return ""
        while keys and keys not in self._document.lines:
            keys = keys[:-1]
        return f"{self._path}:{self._document.lines.get(keys, 1)}: "

    def _shown(self, problem: _Problem, above: Keys) -> str:
        """Return a problem of an entry, without the keys that lead to the entry."""
        rest = problem.keys[len(above) :]
        if rest and problem.text.startswith(f"`{rest[-1]}`"):
            return problem.text
        line = self._document.lines.get(problem.keys)
        of_line = f" (line {line})" if rest and line else ""
        return f"{_name_of(rest)}{of_line}: {problem.text}" if rest else problem.text

    def _tell(self, level: Literal["info", "warn", "error"], keys: Keys, text: str) -> None:
        self._notify(Notice(level, f"{self._place(keys)}{_name_of(keys)}: {text}"))

    def _errors(self) -> SettingErrors:
        """Return all errors, in the order of the file."""
        problems = [*self._fatal, *self._of_entries]
        problems.sort(key=lambda each: self._document.lines.get(each.keys, 0))
        lines = []
        for each in problems:
            name = f"{_name_of(each.keys)}: " if each.keys else ""
            lines.append(f"{self._place(each.keys)}{name}{each.text}")
        return SettingErrors(lines)

    def _tell_ignored(self) -> None:
        """Warn of the ignored keys, in a line for each."""
        for key, places in list(self._ignored.items())[:NAMED_KEYS]:
            names = [str(place[-2]) for place in places if len(place) > 1]
            where = ""
            if names:
                more = len(names) - _NAMED_SERVERS
                others = f" and {more} more" if more > 0 else ""
                where = f" (in {', '.join(names[:_NAMED_SERVERS])}{others})"
            what = (
                "restricts nothing"
                if _plain(key) in _ALLOWS | _DENIES
                else "is not a setting of mcpbridge"
            )
            text = f"`{key}`{where} {what} and is ignored"
            self._notify(Notice("warn", f"{self._place(places[0])}{text}"))
        more = len(self._ignored) - NAMED_KEYS
        if more > 0:
            text = f"{more} more keys are not settings of mcpbridge and are ignored"
            self._notify(Notice("warn", f"{self._place(())}{text}"))


def _lists_tools(key: str) -> Literal["allow", "deny"] | None:
    """Tell whether a key of another program allows or denies tools."""
    if _plain(key) in _ALLOWED_TOOLS:
        return "allow"
    return "deny" if _plain(key) in _DENIED_TOOLS else None


def _fitting(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of all servers that fit this one: a process, or a remote server."""
    others = PROCESS_SETTINGS if "url" in values else REMOTE_SETTINGS
    return {key: value for key, value in defaults.items() if key not in others}


def _restricts(value: object, *, allows: bool) -> bool:
    """Tell whether a list of tools, or a sandbox, restricts anything."""
    if allows:
        # An empty list allows nothing; `*` is all.
        return not (
            value is None or value in ({}, "*") or (isinstance(value, list) and "*" in value)
        )
    return bool(value)


def _names_servers(key: str, value: object) -> bool:
    """Tell whether the bridge honours a key at the top."""
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


def _plain(key: str) -> str:
    """Return a key without case and separators."""
    return key.lower().replace("_", "").replace("-", "")


def _nearest(plain: str, known: Iterable[str]) -> str | None:
    """Return the known key that a misspelt one stands for, if there is one."""
    if plain in _SYNONYMS:
        return _SYNONYMS[plain]
    ours = {_plain(each): each for each in known}
    near = difflib.get_close_matches(plain, ours, n=1, cutoff=_NEAR)
    return ours[near[0]] if near else None


def _unknown(key: str, meant: str) -> str:
    return f"unknown key `{key}`; did you mean `{meant}`?"


def _not_ours(key: str, where: Keys, known: frozenset[str]) -> str:
    """Say what to do about an unknown key in `bridge` or `bridge.defaults`."""
    if where == ("bridge",) and key in _DEFAULT_KEYS:
        return f"a server setting; to set it for all servers, use `bridge.defaults.{key}`"
    if key in _SERVER_KEYS:
        return "a setting of a single server; move it to the object of that server"
    if key in _BRIDGE_NAMES:
        return f"a setting of the bridge; move it to `bridge.{_BRIDGE_NAMES[key]}`"
    near = _nearest(_plain(key), known)
    if near is not None:
        return _unknown(key, near)
    return f"unknown key `{key}`; the known keys are {', '.join(sorted(known))}"


def _keys_of(name: str) -> Keys:
    """Return the keys of a setting that an error names: `args[2]`, `env.NAME`."""
    setting, _, key = name.partition(".")
    if key:
        return (setting, key)
    indexed = re.fullmatch(r"(\w+)\[(\d+)\]", setting)
    return (indexed[1], int(indexed[2])) if indexed else (setting,)


def _name_of(keys: Keys) -> str:
    """Write keys as one name: `mcpServers.files.args[2]`."""
    name = ""
    for key in keys:
        if isinstance(key, int):
            name += f"[{key}]"
        elif re.fullmatch(r"[\w-]+", key):
            name += f".{key}" if name else key
        else:
            quoted = json.dumps(key, ensure_ascii=False)
            name += f"[{quoted}]" if name else quoted
    return name


def _without_name(error: SettingError) -> str:
    return str(error).removeprefix(f"{error.name}: ")
