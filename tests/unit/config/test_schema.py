"""The JSON Schema of the configuration file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mcpbridge.config.config_file import Notice
from mcpbridge.config.file import parse_config
from mcpbridge.config.jsonc import parse_jsonc
from mcpbridge.config.schema import config_schema, schema_text
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.schema_command import USAGE, schema_command
from tests.unit.config.test_settings import WRONG_BRIDGE, WRONG_SERVER

ROOT = Path(__file__).parents[3]
FILES = [
    *(path for path in (ROOT / "tests/client_files").rglob("*.json") if path.stem != "mistakes"),
    *(ROOT / "docs/examples").glob("*.json"),
]
VALIDATOR = Draft202012Validator(config_schema())
CAT = {"command": "cat"}


def is_valid(content: Any) -> bool:
    valid: bool = VALIDATOR.is_valid(content)
    return valid


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(config_schema())
    assert json.loads(schema_text()) == json.loads(json.dumps(config_schema()))
    # What Python alone reads.
    assert "\\\\Z" not in schema_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_files_of_clients_and_examples_are_valid(path: Path) -> None:
    """But for a server that is not served either, as the bridge has no such sandbox."""
    content = parse_jsonc(path.read_text()).content
    content.get("servers", {}).pop("locked", None)
    VALIDATOR.validate(content)


@pytest.mark.parametrize(
    "entry",
    [
        {**CAT, "max_sessions": "${N:-3}", "json_response": "${FLAG}", "nice": "${N}"},
        {**CAT, "user": 65534, "group": "${G}", "umask": "0077", "limits": {"core": "${C}"}},
        {**CAT, "tools": "*", "prompts": ["a"], "resources": {"deny": ["x"]}},
        {**CAT, "include_tools": ["a"], "disabledTools": [], "sandbox": False, "wholly": 1},
        {**CAT, "auth": {"tokens": {"a": {"sha256": "${DIGEST}"}}}},
        {**CAT, "auth": False, "base_uri": "", "env_from": {"A": {"header": "X-A"}}},
        {"serverUrl": "https://x/", "type": "streamableHttp", "headers": {"A": "${B}"}},
        {"url": "${URL}", "transport": "SSE", "ca_file": None},
        {"disabled": True, "command": 1, "x": []},
        {"enabled": False},
    ],
)
def test_right_entries(entry: Any) -> None:
    for content in (
        {"mcpServers": {"a": entry}, "bridge": {"front_channel": True, "defaults": {"warm": 1}}},
        {"servers": {"a": entry, "b": CAT}, "$schema": "x", "inputs": []},
        {"context_servers": {"a": entry}},
        {"mcp": {"servers": {"a": entry}}},
    ):
        VALIDATOR.validate(content)


@pytest.mark.parametrize(
    "content",
    [
        *([], {}, {"mcpServers": []}, {"mcpServers": {"a": []}}, {"mcpServers": {"a": {}}}),
        {"mcpServers": {"a": CAT}, "bridge": []},
        {"mcpServers": {"a": CAT}, "bridge": {"warm": 1}},
        {"mcpServers": {"a": CAT}, "bridge": {"defaults": {"command": "x"}}},
        {"mcpServers": {"a": CAT}, "bridge": {"defaults": {"listen": []}}},
        {"mcpServers": {"a": CAT}, "bridge": {"max_sesions": 1}},
        {"mcpServers": {"a": {**CAT, "listen": ["tcp:1"]}}},
        {"mcpServers": {"a": {**CAT, "url": "https://x"}}},
        {"mcpServers": {"a": {**CAT, "type": "websocket"}}},
        {"mcpServers": {"a": {**CAT, "disabled": "yes"}}},
        {"mcpServers": {"a": {**CAT, "sandbox": {"x": 1}}}},
        {"mcpServers": {"a": {**CAT, "excludeTools": "x"}}},
        {"mcpServers": {"a": {**CAT, "limits": {"nproc": 1}}}},
        {"mcpServers": {"a": {**CAT, "envFile": 1}}},
        json.loads((ROOT / "tests/client_files/mistakes.json").read_text()),
    ],
)
def test_wrong_files(content: Any) -> None:
    assert not is_valid(content)


#: What no schema can say: what depends on another value, on all of a list, or on more of a
#: text than a pattern should.
UNSAID = {
    *("auth", "env_from", "headers", "url", "tools", "prompts", "resources"),
    *("trusted_proxies", "exempt_addresses", "pass_env"),
}


def test_wrong_values_are_wrong_for_the_schema() -> None:
    """The same values as in the tests of the settings, but for NUL characters."""
    for kind, wrong in (("server", WRONG_SERVER), ("bridge", WRONG_BRIDGE)):
        for name, values in wrong.items():
            for value in values:
                content: dict[str, Any] = {"mcpServers": {"a": {**CAT}}}
                if name in UNSAID or name == "name" or not _is_json(value):
                    continue
                if kind == "server":
                    content["mcpServers"]["a"][name] = value
                else:
                    content["bridge"] = {name: value}
                assert not is_valid(content), (name, value)


def _is_json(value: Any) -> bool:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    # To a schema 1.0 is an integer.
    if isinstance(value, float) and value.is_integer():
        return False
    return "\\u0000" not in text and bool(json.loads(text) == value)


def test_each_setting_has_its_place() -> None:
    definitions = config_schema()["$defs"]
    servers = {*definitions["enabledServer"]["properties"]}
    assert servers >= {*ServerSettings.__dataclass_fields__} - {"name"}
    bridge = {*definitions["bridge"]["properties"]}
    assert bridge >= {*BridgeSettings.__dataclass_fields__} - {"servers"}
    assert definitions["bridge"]["properties"]["front_channel"]["deprecated"] is True


def test_numbers_and_flags_of_variables() -> None:
    """As the schema allows them."""
    notices: list[Notice] = []
    settings = parse_config(
        {
            "servers": {
                "a": {
                    **CAT,
                    "max_sessions": "${N}",
                    "ping_interval": "${F}",
                    "json_response": "${T}",
                    "user": "${N}",
                    "group": "${G}",
                    "limits": {"core": "${N}", "cpu_seconds": 1},
                }
            },
            "bridge": {"max_sessions": "1${N}", "access_log": "${T}", "defaults": {"warm": "${N}"}},
        },
        "/",
        environment={"N": "7", "F": "2.5", "T": "true", "G": "users"},
        notify=notices.append,
    )
    [server] = settings.servers
    assert (server.max_sessions, server.ping_interval, server.json_response) == (7, 2.5, True)
    assert (server.user, server.group, server.limits.core, server.warm) == (7, "users", 7, 7)
    assert (settings.max_sessions, settings.access_log, notices) == (17, True, [])


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert schema_command([]) == 0
    assert capsys.readouterr() == (schema_text(), "")
    assert schema_command(["--help"]) == 0
    assert capsys.readouterr() == (USAGE, "")
    assert schema_command(["x"]) == 1
    assert capsys.readouterr().err.startswith("mcpbridge schema: expected no arguments\n")
