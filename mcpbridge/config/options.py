"""
The options of the command line, made from the metadata of the settings.

Knows how the text of an option becomes the value of a setting; must not know how
a command line is parsed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mcpbridge.config.checks import Check, Form, from_text, kind_of
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import SECRET_FILE_BYTES
from mcpbridge.errors import Described, SettingError

#: The settings that COMMAND and its arguments give.
POSITIONAL = ("command", "args")


class Option(NamedTuple):
    """An option, and the setting that it sets."""

    #: Without the dashes.
    name: str
    kind: type[Any]
    field: dataclasses.Field[Any]

    @property
    def setting(self) -> str:
        """Name the setting."""
        return self.field.name

    @property
    def key(self) -> str:
        """Name the key in a file: in the object of a server, or in `bridge`."""
        return f"bridge.{self.setting}" if self.kind is BridgeSettings else self.setting

    @property
    def label(self) -> str:
        """Name the option and the key, for an error."""
        return f"--{self.name} ({self.key})"

    @property
    def check(self) -> Check:
        """Return the check of the setting."""
        check: Check = self.field.metadata["check"]
        return check

    @property
    def form(self) -> Form:
        """Tell how the option gives the value."""
        return self.check.form

    @property
    def repeats(self) -> bool:
        """Tell whether each use of the option adds a value, or replaces the last one."""
        return self.form in ("list", "mapping")

    @property
    def old_names(self) -> Sequence[str]:
        """Return other names of the option."""
        names: Sequence[str] = self.field.metadata["aliases"]
        return names

    @property
    def renamed_from(self) -> str:
        """Return the name of the option before its setting was renamed, or an empty string."""
        former: str = self.field.metadata["renamed_from"]
        return former.replace("_", "-")

    @property
    def spelling(self) -> str:
        """Write the option as the help shows it, with a name for its value."""
        if self.form == "flag":
            return f"--[no-]{self.name}"
        return f"--{self.name} {self.field.metadata['metavar']}"

    @property
    def text(self) -> str:
        """Say what the option does."""
        text: str = self.field.metadata["text"]
        if self.form == "secret":
            return f"File with the {text[0].lower()}{text[1:]}"
        return text

    def value(self, texts: Sequence[str]) -> Any:
        """
        Make the value of the setting from the texts that were given.

        The last text counts, unless the option repeats.  A text that should be a number
        and is not is returned unchanged, for the setting's check to refuse.  Raises
        `SettingError` for a text from which no value can be made.
        """
        last = texts[-1]
        if self.form in ("integer", "account", "number"):
            return from_text(self.form, last)
        if self.form == "list":
            return tuple(texts)
        if self.form == "mapping":
            return dict(self._assignment(each) for each in texts)
        if self.form == "json":
            return self._json(last)
        if self.form == "secret":
            return self._secret(last)
        if self.form == "directory" or (self.form == "file" and last != "-"):
            return self._absolute(last)
        return last

    def _assignment(self, text: str) -> tuple[str, str]:
        name, equals, value = text.partition("=")
        if not equals or not name:
            got = Described("a value without a name") if equals else text
            raise SettingError(self.label, "NAME=VALUE", got)
        return name, value

    def _json(self, text: str) -> Any:
        """Decode JSON; an error does not show it, because it may contain a secret."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise SettingError(
                self.label, """a JSON object, such as '{"key": "value"}'""", kind_of(text)
            ) from None
        return value

    def _secret(self, path: str) -> str:
        """
        Read a secret from a file, because `ps` shows command lines to everybody.

        An error does not show the path: somebody may give the secret itself.
        """
        try:
            with open(path, "rb") as file:
                data = file.read(SECRET_FILE_BYTES + 1)
            if len(data) > SECRET_FILE_BYTES:
                got = Described(f"a file of more than {SECRET_FILE_BYTES} bytes")
                raise SettingError(self.label, "a file that contains the key", got)
            return data.decode().strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
            got = Described(f"a file that cannot be read: {why}")
            raise SettingError(self.label, "a file that contains the key", got) from None

    def _absolute(self, path: str) -> str:
        """Make a path absolute: twistd changes its directory when it becomes a daemon."""
        try:
            return path and os.path.abspath(path)
        except FileNotFoundError:
            expected = "an absolute path, because the working directory was removed"
            raise SettingError(self.label, expected, path) from None


def _options_of(kind: type[Any]) -> list[Option]:
    return [
        Option(each.metadata["option"] or each.name.replace("_", "-"), kind, each)
        for each in dataclasses.fields(kind)
        if each.metadata and each.name not in POSITIONAL
    ]


#: All options that set a setting.
OPTIONS = (*_options_of(BridgeSettings), *_options_of(ServerSettings))
_BY_SETTING = {(each.kind, each.setting): each for each in OPTIONS}


def option_of(kind: type[Any], setting: str) -> Option | None:
    """Return the option of a setting; None for COMMAND, its arguments and the servers."""
    return _BY_SETTING.get((kind, setting))


def label_of(kind: type[Any], name: str) -> str:
    """Return what an error on the command line calls a setting, or a part of one."""
    setting, rest = re.fullmatch(r"(\w*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if kind is ServerSettings and setting in POSITIONAL:
        return f"COMMAND ({name})"
    option = option_of(kind, setting)
    return name if option is None else f"--{option.name} ({option.key}{rest})"


def default_text(field: dataclasses.Field[Any]) -> str:
    """Return the default of a setting in words; empty where there is nothing to say."""
    unset: str = field.metadata["unset"]
    default = field.default
    if unset or default is dataclasses.MISSING or default is None:
        return unset
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ", ".join(default)
    if isinstance(default, int) and field.metadata["metavar"] == "BYTES" and default >= 1 << 20:
        return f"{default}, which is {default >> 20} MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)
