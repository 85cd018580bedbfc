"""
One configuration file: its values, with variables replaced, and where each of them is.

Knows the text of the file and how errors are written; must not know which servers there
are.  No error shows the value of a variable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from mcpbridge.config.checks import Check, from_text, kind_of
from mcpbridge.config.expansion import (
    bare_variable,
    expand,
    has_dollars_once_literal,
    read_value,
)
from mcpbridge.config.foreign import is_restriction
from mcpbridge.config.jsonc import Document, Keys
from mcpbridge.config.settings import wrong_settings
from mcpbridge.config.tuning import NAMED_KEYS
from mcpbridge.errors import SettingError

#: The largest number of servers that a warning about a key names.
_NAMED_SERVERS = 5


class Notice(NamedTuple):
    """A line about the settings, for the log at the start."""

    level: Literal["info", "warn", "error"]
    text: str


class Problem(NamedTuple):
    """An error: the keys that lead to it, and what to do."""

    keys: Keys
    text: str


class ConfigFile:
    """The values of one file, and what is told of them."""

    def __init__(
        self,
        document: Document,
        folder: str,
        path: str,
        environment: Mapping[str, str],
        notify: Callable[[Notice], object],
    ) -> None:
        self.document = document
        self.path = path
        self._folder = folder
        self._environment = environment
        self._notify = notify
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
        #: Keys that are ignored, and the servers that have them.
        self._ignored: dict[str, list[Keys]] = {}
        #: Where the file has a setting by another name, by where that is today.
        self._written: dict[Keys, Keys] = {}

    # Values.

    def rename(self, today: Keys, written: Keys) -> None:
        """Note that the file has a setting by another name."""
        self._written[today] = written

    def keys_of(self, where: Keys, name: str) -> Keys:
        """Return the keys in the file of what an error of the object at `where` names."""
        setting = re.match(r"\w*", name)[0]  # type: ignore[index]
        place = self._in_file((*where, setting)) if setting else where
        return (*place, *_keys_in(self.raw(place), name[len(setting) :]))

    def expand(self, value: Any, keys: Keys, problems: list[Problem]) -> Any:
        """Replace all variables in the strings of a value."""
        if isinstance(value, dict):
            return {key: self.expand(each, (*keys, key), problems) for key, each in value.items()}
        if isinstance(value, list):
            return [self.expand(each, (*keys, at), problems) for at, each in enumerate(value)]
        if not isinstance(value, str) or "$" not in value:
            return value
        keys = self._in_file(keys)

        def read_file(path: str) -> str:
            return read_value(
                self.in_folder(path),
                f"`${{file:{path}}}`",
                lambda text: self.tell("warn", keys, text),
            )

        text, wrong = expand(value, self._environment, self._predefined, read_file)
        problems += [Problem(keys, each) for each in wrong]
        if has_dollars_once_literal(value):
            self.tell("warn", keys, "`$$` now stands for one dollar sign, and `$$$$` for two")
        # What cannot be replaced is not checked any further.
        return value if wrong else text

    def convert(self, where: Keys, kind: type[Any], values: dict[str, Any]) -> None:
        """Make numbers and flags of texts that were variables."""
        for each in fields(kind):
            check: Check | None = each.metadata.get("check")
            value = values.get(each.name)
            if check is None or not isinstance(value, (str, dict)):
                continue
            if not self.is_expanded(self.keys_of(where, each.name)):
                continue
            if isinstance(value, str):
                values[each.name] = from_text(check.form, value)
            elif isinstance(value, dict) and each.name == "limits":
                values[each.name] = {
                    key: from_text("integer", text) if isinstance(text, str) else text
                    for key, text in value.items()
                }

    def check(
        self, where: Keys, kind: type[Any], values: Mapping[str, Any], problems: list[Problem]
    ) -> None:
        """Check each setting by itself, except those with an error already."""
        wrong = {each.keys for each in problems}
        for error in wrong_settings(kind, values):
            keys = self.keys_of(where, error.name)
            if not any(each[: len(keys)] == keys for each in wrong):
                problems.append(self.problem(keys, error))

    def problem(self, keys: Keys, error: SettingError) -> Problem:
        """Make a problem of an error, without the value of a variable."""
        if keys and self.is_expanded(keys):
            got = f"{kind_of(self.raw(keys))}, once its variables are replaced"
            return Problem(keys, f"expected {error.expected}, got {got}")
        return Problem(keys, without_name(error))

    def warn_of_bare_variables(self, values: Mapping[str, Any], where: Keys) -> None:
        """Warn of `$NAME` in `env`: it is not replaced, though it is meant to be."""
        env = values.get("env")
        for key, value in env.items() if isinstance(env, dict) else ():
            raw = self.raw((*where, "env", key), value)
            name = bare_variable(raw) if isinstance(raw, str) else None
            if name is not None:
                self.tell(
                    "warn",
                    (*where, "env", key),
                    f"`${name}` is passed literally; to insert the variable, write `${{{name}}}`",
                )

    def _in_file(self, keys: Keys) -> Keys:
        """Return the keys in the file of a setting, which may have another name there."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self._written:
                return (*self._written[keys[:length]], *keys[length:])
        return keys

    def raw(self, keys: Keys, default: Any = None) -> Any:
        """Return what the file holds, with its variables."""
        found = self.document.content
        for key in keys:
            try:
                found = found[key]
            except (LookupError, TypeError):
                return default
        return found

    def is_expanded(self, keys: Keys) -> bool:
        """Tell whether the file has a variable in this place."""
        return "${" in json.dumps(self.raw(keys))

    def in_folder(self, path: str) -> str:
        """Return a path that is relative to the folder of the file."""
        return os.path.join(self._folder, os.path.expanduser(path))

    # What is told.

    def line_of(self, keys: Keys) -> int:
        """Return the line of a value, or else of the innermost object around it."""
        while keys and keys not in self.document.lines:
            keys = keys[:-1]
        return self.document.lines.get(keys, 1)

    def place(self, keys: Keys) -> str:
        """Return the file and the line, as far as they are known."""
        return f"{self.path}:{self.line_of(keys)}: " if self.path else ""

    def described(self, problem: Problem) -> str:
        """Return the line of an error."""
        name = f"{name_of(problem.keys)}: " if problem.keys else ""
        return f"{self.place(problem.keys)}{name}{problem.text}"

    def described_in(self, problem: Problem, above: Keys) -> str:
        """Return a problem of an entry, without the keys that lead to the entry."""
        rest = problem.keys[len(above) :]
        if rest and problem.text.startswith(f"`{rest[-1]}`"):
            return problem.text
        line = self.document.lines.get(problem.keys)
        of_line = f" (line {line})" if rest and line else ""
        return f"{name_of(rest)}{of_line}: {problem.text}" if rest else problem.text

    def tell(self, level: Literal["info", "warn", "error"], keys: Keys, text: str) -> None:
        """Give a notice of a place in the file."""
        self._notify(Notice(level, self.described(Problem(keys, text))))

    def ignore(self, keys: Keys) -> None:
        """Note a key that is ignored."""
        self._ignored.setdefault(str(keys[-1]), []).append(keys)

    def tell_ignored(self) -> None:
        """Warn of the ignored keys, in a line for each."""
        for key, places in list(self._ignored.items())[:NAMED_KEYS]:
            names = [str(place[-2]) for place in places if len(place) > 1]
            where = ""
            if names:
                more = len(names) - _NAMED_SERVERS
                others = f" and {more} more" if more > 0 else ""
                where = f" (in {', '.join(names[:_NAMED_SERVERS])}{others})"
            what = "restricts nothing" if is_restriction(key) else "is not a setting of mcpbridge"
            text = f"`{key}`{where} {what} and is ignored"
            self._notify(Notice("warn", f"{self.place(places[0])}{text}"))
        more = len(self._ignored) - NAMED_KEYS
        if more > 0:
            text = f"{more} more keys are not settings of mcpbridge and are ignored"
            self._notify(Notice("warn", f"{self.place(())}{text}"))


def _keys_in(value: Any, name: str) -> Keys:
    """
    Return the keys that the rest of a name stands for: `.tokens.a.b[2]`.

    A key of the file may have dots; what the file does not hold is split at each dot.
    """
    if not name:
        return ()
    indexed = re.match(r"\[(\d+)\]", name)
    if indexed:
        at = int(indexed[1])
        inner = value[at] if isinstance(value, list) and at < len(value) else None
        return (at, *_keys_in(inner, name[indexed.end() :]))
    name = name.removeprefix(".")
    keys = [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []
    for key in sorted(keys, key=len, reverse=True):
        if name == key or name.startswith((f"{key}.", f"{key}[")):
            return (key, *_keys_in(value[key], name[len(key) :]))
    first, dot, rest = name.partition(".")
    return (first, *_keys_in(None, dot + rest))


def name_of(keys: Keys) -> str:
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


def without_name(error: SettingError) -> str:
    """Return an error without the name of the setting."""
    return str(error).removeprefix(f"{error.name}: ")
