"""
The check of a configuration file, or of a command line: all errors in one run, and what
would run.

Knows where each part is found out; must not know how the report is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher

from mcpbridge.check.facts import Fact, bridge_facts, callers, server_facts
from mcpbridge.check.machine import (
    ServerCheck,
    Trouble,
    auth_troubles,
    bridge_troubles,
    bridge_warnings,
    is_exposed,
    open_servers,
)
from mcpbridge.check.report import Finding, Report, ServerReport
from mcpbridge.config.config_file import Notice, name_of
from mcpbridge.config.file import Inspection, inspect_config
from mcpbridge.config.jsonc import Keys
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.warnings import configuration_warnings
from mcpbridge.errors import SettingError, SettingErrors

_EXPOSED = (
    "{listener} can be reached from other machines, and {what} would let everybody in: set `auth`,"
    " listen on loopback, or set `insecure` to let everybody in"
)
_EXPOSURE_UNKNOWN = (
    "whether other machines can reach {listener} is known only when it is opened; {what} would"
    " let everybody in"
)
#: How many servers an error names.
NAMED_SERVERS = 3

#: Makes an error of what is wrong with a setting.
Locate = Callable[[Trouble], Finding]


def check_file(
    path: str,
    overrides: Mapping[str, Any],
    environment: Mapping[str, str],
    check_listen: Callable[[str], str | None],
) -> Report:
    """
    Check a file.  `overrides` are settings of the bridge from the command line.

    Starts nothing, opens nothing and writes nothing, but imports and makes the extensions
    that the file names.
    """
    report = Report(file=path)
    notices: list[Notice] = []
    try:
        found = inspect_config(
            path,
            overrides,
            environment=environment,
            notify=notices.append,
            check_listen=check_listen,
        )
    except SettingError as error:
        lines = error.lines if isinstance(error, SettingErrors) else (str(error),)
        report.errors = [_of_text(path, each) for each in lines]
        return report
    file = found.file

    def locate(keys: Keys, text: str) -> Finding:
        return Finding(path, file.line_of(keys), name_of(keys), text)

    def locate_trouble(trouble: Trouble) -> Finding:
        above, name = _above(found, trouble.name)
        keys = file.keys_of(above, name)
        return locate(keys, _without_values(found, keys, trouble.text))

    report.errors = [locate(*each) for each in found.problems]
    report.warnings = [each.text for each in notices if each.level == "warn"]
    settings = found.settings
    if settings is not None:
        _check_settings(report, settings, environment, locate_trouble, found)
    by_name = {each.name: each for each in report.servers}
    report.servers = [by_name.get(each.name, each) for each in _all_servers(found)]
    report.errors = _in_order(report.errors)
    return report


def check_settings(
    settings: BridgeSettings,
    environment: Mapping[str, str],
    label_of: Callable[[type[Any], str], str],
    warnings: Sequence[str] = (),
) -> Report:
    """Check the settings of a command line; `label_of` names the option of a setting."""

    def locate(trouble: Trouble) -> Finding:
        kind: type[Any] = BridgeSettings
        name = trouble.name
        for server in settings.servers:
            prefix = f"mcpServers.{server.name}."
            if name.startswith(prefix):
                kind, name = ServerSettings, name.removeprefix(prefix)
        return Finding(None, None, label_of(kind, name), trouble.text)

    report = Report(file=None, warnings=list(warnings))
    _check_settings(report, settings, environment, locate, None)
    return report


def failed(path: str | None, error: SettingError) -> Report:
    """Return the report about a command line from which no settings can be made."""
    lines = error.lines if isinstance(error, SettingErrors) else (str(error),)
    return Report(file=path, errors=[Finding(None, None, "", each) for each in lines])


def as_json(report: Report) -> str:
    """Write a report for programs."""
    return json.dumps(report.as_json(), indent=2)


def _check_settings(
    report: Report,
    settings: BridgeSettings,
    environment: Mapping[str, str],
    locate: Locate,
    found: Inspection | None,
) -> None:
    """Add what this machine says of the settings, and what would run."""

    def note(event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.warn:
            report.warnings.append(formatEvent(event))

    observer = cast("ILogObserver", note)
    globalLogPublisher.addObserver(observer)
    troubles: dict[Trouble, None] = {}
    auth_is_known = found is None or found.auth_is_known
    try:
        for server in settings.servers:
            check = ServerCheck(server, environment)
            troubles |= dict.fromkeys(check.troubles())
            facts = [*server_facts(server, _raw_of(found, server.name))]
            if auth_is_known:
                troubles |= dict.fromkeys(auth_troubles(settings, server))
                facts.append(("callers", callers(settings, server)))
            report.servers.append(
                ServerReport(name=server.name, status="served", facts=_with_machine(facts, check))
            )
            report.warnings += check.warnings
        troubles |= dict.fromkeys(bridge_troubles(settings))
    finally:
        globalLogPublisher.removeObserver(observer)
    if auth_is_known:
        _check_exposure(report, settings, troubles)
    report.errors += map(locate, troubles)
    report.bridge += (
        each for each in bridge_facts(settings) if auth_is_known or each[0] != "listen"
    )
    report.warnings += configuration_warnings(settings, environment)
    report.warnings += bridge_warnings(settings)
    report.warnings = list(dict.fromkeys(report.warnings))


def _check_exposure(
    report: Report, settings: BridgeSettings, troubles: dict[Trouble, None]
) -> None:
    servers = [repr(each.name) for each in open_servers(settings)]
    if not servers:
        return
    more = len(servers) - NAMED_SERVERS
    what = ", ".join(servers[:NAMED_SERVERS]) + (f" and {more} more" if more > 0 else "")
    for at, listener in enumerate(settings.listen):
        exposed = is_exposed(listener)
        if exposed is None:
            report.warnings.append(_EXPOSURE_UNKNOWN.format(listener=listener, what=what))
        elif exposed and settings.insecure:
            report.warnings.append(
                f"{listener} can be reached from other machines, and `insecure` lets everybody"
                " in there"
            )
        elif exposed:
            text = _EXPOSED.format(listener=listener, what=what)
            troubles[Trouble(f"listen[{at}]", text)] = None


def _with_machine(facts: Sequence[Fact], check: ServerCheck) -> list[Fact]:
    """Add the program behind the command, and what confinement holds."""
    found: list[Fact] = []
    for key, texts in facts:
        found.append((key, texts))
        if key == "command":
            found.append(("program", [check.program or "not found"]))
    if check.confinement:
        found.append(("confinement", check.confinement))
    return found


# What a file holds.


def _of_text(path: str, line: str) -> Finding:
    """Make an error of a line that names its place already."""
    rest = line.removeprefix(f"{path}:")
    number, _, text = rest.partition(": ")
    if rest == line or not number.split(":")[0].isdecimal():
        return Finding(path, None, "", line)
    return Finding(path, int(number.split(":")[0]), "", text)


def _above(found: Inspection, name: str) -> tuple[Keys, str]:
    """Return the object that a name is in, and its name there."""
    of_server = name.removeprefix("mcpServers.")
    if of_server == name:
        return ("bridge",), name
    for server in sorted(found.servers, key=lambda each: len(each.name), reverse=True):
        if of_server.startswith(f"{server.name}."):
            return (*found.container, server.name), of_server.removeprefix(f"{server.name}.")
    return found.container, of_server


def _without_values(found: Inspection, keys: Keys, text: str) -> str:
    """Hide the value of a setting that has variables, as an error must not show it."""
    raw = found.file.raw(keys)
    if not isinstance(raw, str) or not found.file.is_expanded(keys):
        return text
    problems: list[Any] = []
    value = found.file.expand(raw, keys, problems)
    for shown in (found.file.in_folder(value), value):
        text = text.replace(shown, raw) if shown else text
    return text


def _raw_of(found: Inspection | None, name: str) -> Callable[..., object]:
    def raw(*keys: str | int) -> object:
        if found is None:
            return None
        place = found.file.keys_of((*found.container, name), str(keys[0]))
        return found.file.raw((*place, *keys[1:]))

    return raw


def _all_servers(found: Inspection) -> list[ServerReport]:
    """Return all servers in the order of the file, without what would run."""
    known: dict[str, ServerReport] = {}
    for name in found.disabled:
        known[name] = ServerReport(name=name, status="disabled")
    for name in found.wrong:
        known[name] = ServerReport(name=name, status="not served", reason="see the errors above")
    for server in found.servers:
        reason = "the settings of the bridge have errors"
        known[server.name] = ServerReport(name=server.name, status="not served", reason=reason)
    return sorted(known.values(), key=lambda each: found.order.index(each.name))


def _in_order(errors: Sequence[Finding]) -> list[Finding]:
    return sorted(errors, key=lambda each: each.line or 0)
