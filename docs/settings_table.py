"""
Keeps the tables of settings in the documents what the code says they are.

`python docs/settings_table.py` writes each table anew between its two
comments, `<!-- settings: NAME -->` and `<!-- settings: end -->`.  With
`--check` it changes nothing, and fails where a table is out of date.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mcpbridge.config import checks, settings
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.tap import Options

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/configuration.md")
_TABLE = re.compile(
    r"^<!-- settings: (?P<name>[a-z]+) -->\n.*?^<!-- settings: end -->$", re.MULTILINE | re.DOTALL
)

#: Settings whose option is not simply called like them.
OPTIONS = {
    "command": "`COMMAND`",
    "args": "`ARG ...`",
    "stderr_notifications": "`--no-stderr-notifications`",
    "env": "`--env NAME=VALUE`",
    "pass_env": "`--pass-env NAME`",
    "stderr_log": "`--stderr-log log\\|file\\|none`",
    "reuse": "`--reuse connection\\|identity\\|never`",
    "allowed_hosts": "`--allow-host HOST`",
    "allowed_origins": "`--allow-origin ORIGIN`",
    "allowed_headers": "`--allow-header NAME`",
    "trusted_proxies": "`--trusted-proxy ADDRESS`",
    "front_channel": "`--no-front-channel`",
    "containers": "`--no-containers`",
}
#: What an option means that turns its setting off.
NEGATED = {
    "stderr_notifications": "Do not send stderr lines as notifications, which `/sse` alone has.",
    "front_channel": "Leave all requests to twisted.web's own channel.",
    "containers": "Do not label and remove containers that the command starts.",
}
#: What stands for the value of an option, by the check of its setting.
VALUES = {
    checks.COUNT: "N",
    checks.COUNT_OR_NONE: "N",
    checks.SHARE: "N",
    checks.SECONDS: "SECONDS",
    checks.POSITIVE_SECONDS: "SECONDS",
    checks.DIRECTORY: "DIR",
    checks.PATH_PREFIX: "PATH",
    checks.OPTIONAL_PATH_PREFIX: "PATH",
    settings.ENDPOINTS: "ENDPOINT",
    checks.FLAG: "",
}
#: Settings of the bridge as a whole that have an option; of the same name as
#: one of a server, `max_sessions` is the server's on the command line.
BRIDGE_OPTIONS = (
    "listen",
    "allowed_hosts",
    "allowed_origins",
    "allowed_headers",
    "trusted_proxies",
    "access_log",
    "front_channel",
    "state_dir",
    "strict",
)
#: In a file the name of a server is its key; a bridge's servers are an object of their own.
NOT_IN_A_FILE = ("name", "servers")

Field = dataclasses.Field[Any]


def option(field: Field) -> str:
    """The option of the command line that sets a field; empty if there is none."""
    if field.name in OPTIONS:
        return OPTIONS[field.name]
    name = field.name.replace("_", "-")
    known = {each.rstrip("=") for each in Options().longOpt}
    if name not in known:
        return ""
    value = VALUES[field.metadata["check"]]
    return f"`--{name} {value}`" if value else f"`--{name}`"


def default(field: Field) -> str:
    """The default of a field, as JSON."""
    if field.name == "command":
        return "required"
    if field.default is not dataclasses.MISSING:
        value = field.default
    else:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(value)}`"


def rows(table: Iterable[Iterable[str]]) -> list[str]:
    """Rows of cells as Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in table]


def settings_of(kind: type[Any]) -> list[Field]:
    """The fields that a file may hold."""
    return [each for each in dataclasses.fields(kind) if each.name not in NOT_IN_A_FILE]


def server_table() -> list[str]:
    """Every setting of a server."""
    head = [["setting", "default", "option", "must be", "meaning"], ["---"] * 5]
    return rows(head) + rows(
        [f"`{each.name}`", default(each), option(each), _expected(each), each.metadata["text"]]
        for each in settings_of(ServerSettings)
    )


def bridge_table() -> list[str]:
    """Every setting of the bridge as a whole."""
    head = [["setting", "default", "option", "must be", "meaning"], ["---"] * 5]
    return rows(head) + rows(
        [
            f"`{each.name}`",
            default(each),
            option(each) if each.name in BRIDGE_OPTIONS else "",
            _expected(each),
            each.metadata["text"],
        ]
        for each in settings_of(BridgeSettings)
    )


def option_table() -> list[str]:
    """Every setting that has an option, in short."""
    wanted = [each for each in settings_of(BridgeSettings) if each.name in BRIDGE_OPTIONS]
    wanted += [each for each in settings_of(ServerSettings) if option(each).startswith("`--")]
    head = [["option", "default", "meaning"], ["---"] * 3]
    return rows(head) + rows(
        [option(each), _shown_default(each), NEGATED.get(each.name, each.metadata["text"])]
        for each in wanted
    )


def _shown_default(field: Field) -> str:
    text = default(field)
    if text in ('`""`', "`[]`", "`{}`", "`null`", "`false`", "`true`"):
        return ""
    return text.replace('["', "").replace('"]', "")


def _expected(field: Field) -> str:
    expected: str = field.metadata["check"].expected
    return expected.replace("|", "\\|")


TABLES: dict[str, Callable[[], list[str]]] = {
    "server": server_table,
    "bridge": bridge_table,
    "options": option_table,
}


def current(document: str) -> str:
    """The document with each of its tables as it should be."""

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        lines = [f"<!-- settings: {name} -->", *TABLES[name](), "<!-- settings: end -->"]
        return "\n".join(lines)

    return _TABLE.sub(table, document)


def main(arguments: list[str]) -> int:
    """Write the tables, or look whether they are current; 1 where they are not."""
    check = arguments == ["--check"]
    if arguments and not check:
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    outdated = []
    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = current(before)
        if before != after:
            outdated.append(name)
            if not check:
                path.write_text(after, encoding="utf-8")
    for name in outdated:
        print(f"{name}: {'out of date; run docs/settings_table.py' if check else 'written'}")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
