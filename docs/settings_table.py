"""
Writes the tables of settings into the documents, and the schema of the configuration file
beside them, from the code.

`python docs/settings_table.py` replaces each table between its two comments,
`<!-- settings: NAME -->` and `<!-- settings: end -->`.  With `--check` it changes
nothing, and fails if a table or the schema is out of date.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from mcpbridge.config.checks import Check
from mcpbridge.config.command_help import FIRST
from mcpbridge.config.options import OPTIONS, default_text, option_of
from mcpbridge.config.schema import schema_text
from mcpbridge.config.settings import COMMON, BridgeSettings, ServerSettings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/configuration.md")
SCHEMA = "docs/mcpbridge.schema.json"
_TABLE = re.compile(
    r"^<!-- settings: (?P<name>[a-z]+) -->\n.*?^<!-- settings: end -->$", re.MULTILINE | re.DOTALL
)

#: In a file the name of a server is its key, and the servers are an object of their own.
NOT_IN_A_FILE = ("name", "servers")

Field = dataclasses.Field[Any]


def option(kind: type[Any], field: Field) -> str:
    """Return the option of the command line that sets a field."""
    if field.name == "command":
        return "`COMMAND`"
    if field.name == "args":
        return "`ARG ...`"
    found = option_of(kind, field.name)
    assert found is not None
    return f"`{found.spelling}`".replace("|", "\\|")


def default(field: Field) -> str:
    """Return the default of a field as JSON."""
    if field.name == "command":
        return "required"
    if field.name == "base_uri":
        # Not the default of the field: the reader of a file derives it from the name.
        return '`"/NAME"`'
    if field.default is not dataclasses.MISSING:
        value = field.default
    else:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(value)}`"


def rows(table: Iterable[Iterable[str]]) -> list[str]:
    """Format rows of cells as Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in table]


def settings_of(kind: type[Any]) -> list[Field]:
    """Return the fields that a file may hold."""
    return [each for each in dataclasses.fields(kind) if each.name not in NOT_IN_A_FILE]


def settings_table(kind: type[Any]) -> list[str]:
    """Return every setting of the bridge, or of a server."""
    head = [["setting", "default", "option", "must be", "meaning"], ["---"] * 5]
    return rows(head) + rows(
        [f"`{each.name}`", default(each), option(kind, each), _expected(each), _meaning(each)]
        for each in settings_of(kind)
    )


def option_table() -> list[str]:
    """Return the options that most users need, in the order of `--help`."""
    head = [["option", "default", "meaning"], ["---"] * 3]
    common = [
        [f"`{each.spelling}`", f"`{each.default}`" if each.default else "", each.text]
        for each in FIRST
    ]
    common += [
        [option(each.kind, each.field), _shown_default(each.field), each.text]
        for each in OPTIONS
        if each.field.metadata["group"] == COMMON
    ]
    return rows(head) + rows(common)


def _meaning(field: Field) -> str:
    text: str = field.metadata["text"]
    unset = field.metadata["unset"]
    return f"{text} Default: {unset}." if unset else text


def _shown_default(field: Field) -> str:
    text = default_text(field)
    return text if " " in text or not text else f"`{text}`"


def _expected(field: Field) -> str:
    check: Check = field.metadata["check"]
    expected = check.expected
    if check.accepts(None) and "null" not in expected:
        # Errors do not say so, because an option has no value that means null.
        expected = f"null, {expected}" if ", or " in expected else f"{expected}, or null"
    return expected.replace("|", "\\|")


TABLES: dict[str, Callable[[], list[str]]] = {
    "server": partial(settings_table, ServerSettings),
    "bridge": partial(settings_table, BridgeSettings),
    "options": option_table,
}


def current(document: str) -> str:
    """Return the document with all of its tables up to date."""

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        lines = [f"<!-- settings: {name} -->", *TABLES[name](), "<!-- settings: end -->"]
        return "\n".join(lines)

    return _TABLE.sub(table, document)


def main(arguments: list[str]) -> int:
    """Write the tables, or check them; return 1 if one is out of date."""
    check = arguments == ["--check"]
    if arguments and not check:
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    outdated = []
    for name in (*DOCUMENTS, SCHEMA):
        path = ROOT / name
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = schema_text() if name == SCHEMA else current(before)
        if before != after:
            outdated.append(name)
            if not check:
                path.write_text(after, encoding="utf-8")
    for name in outdated:
        print(f"{name}: {'out of date; run docs/settings_table.py' if check else 'written'}")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
