"""Settings from a file: the `mcpServers` that users have, and every way to get it wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.config import BridgeSettings
from mcpbridge.configfile import FOREIGN_KEYS, parse_config, read_config
from mcpbridge.errors import SettingError

CAT = {"command": "cat"}


def parsed(content: Any) -> BridgeSettings:
    return parse_config(content, "/folder")


def test_a_file_of_a_desktop_client_serves_as_it_is() -> None:
    settings = parsed(
        {
            "mcpServers": {
                "time": {"command": "uvx", "args": ["mcp-server-time"], "env": {"TZ": "UTC"}},
                "git": {"command": "git-mcp", "type": "stdio", "disabled": False},
            },
            "globalShortcut": "Ctrl+Space",
        }
    )
    time, git = settings.servers
    assert (time.name, time.base_uri, time.command) == ("time", "/time", "uvx")
    assert (time.args, time.env) == (("mcp-server-time",), {"TZ": "UTC"})
    assert (git.name, git.base_uri) == ("git", "/git")


def test_ours_beside_theirs() -> None:
    settings = parsed(
        {
            "mcpServers": {"a": {**CAT, "base_uri": "", "max_sessions": 7, "ping_interval": 0}},
            "bridge": {"listen": ["tcp:1"], "max_sessions": 9, "access_log": True},
        }
    )
    [server] = settings.servers
    assert (server.base_uri, server.max_sessions, server.ping_interval) == ("", 7, 0)
    assert (settings.listen, settings.max_sessions, settings.access_log) == (("tcp:1",), 9, True)


def test_keys_that_only_clients_know_are_left_out() -> None:
    [server] = parsed({"mcpServers": {"a": {**CAT, **dict.fromkeys(FOREIGN_KEYS, 1)}}}).servers
    assert server == parsed({"mcpServers": {"a": CAT}}).servers[0]


def test_a_disabled_server_is_left_out_whatever_it_holds() -> None:
    servers = {"a": CAT, "b": {"disabled": True, "url": "https://example.com", "x": 1}}
    assert [each.name for each in parsed({"mcpServers": servers}).servers] == ["a"]


@pytest.mark.parametrize(
    ("given", "expected"), [("state", "/folder/state"), ("/run/x", "/run/x"), (None, None)]
)
def test_a_state_directory_is_relative_to_the_file(given: Any, expected: str | None) -> None:
    settings = parsed({"mcpServers": {"a": CAT}, "bridge": {"state_dir": given}})
    assert settings.state_dir == expected


@pytest.mark.parametrize(
    ("cwd", "expected"),
    [
        ("work", "/folder/work"),
        ("/work", "/work"),
        ("~/work", os.path.expanduser("~/work")),
        (None, None),
    ],
)
def test_a_directory_is_relative_to_the_file(cwd: str | None, expected: str | None) -> None:
    [server] = parsed({"mcpServers": {"a": {**CAT, "cwd": cwd}}}).servers
    assert server.cwd == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "config: expected an object with `mcpServers`, got <a list>"),
        ({}, "mcpServers: expected an object of named servers, got null"),
        ({"servers": {}}, "mcpServers: expected an object of named servers (rename VS Code's"),
        ({"mcpServers": []}, "mcpServers: expected an object of named servers, got <a list>"),
        (
            {"mcpServers": {}},
            "mcpServers: expected at least one server that is not disabled, got <none>",
        ),
        (
            {"mcpServers": {"a": {**CAT, "disabled": True, "env": {"A": "hush"}}}},
            "mcpServers: expected at least one server that is not disabled, got <1, all of them",
        ),
        ({"mcpServers": {"a": "cat"}}, "mcpServers.a: expected an object, got <a string of 3"),
        (
            {"mcpServers": {"a": {**CAT, "env": {"A": "hush", "N": 1}}}},
            "mcpServers.a.env.N: expected a string, got <a number>",
        ),
        ({"mcpservers": {"a": CAT}}, "mcpservers: expected `mcpServers`, got <a key that is not"),
        ({"mcp_servers": {"a": CAT}}, "mcp_servers: expected `mcpServers`"),
        ({"mcpServers": {"a": CAT}, "brigde": {}}, "brigde: expected `bridge`, got <a key that"),
        ({"mcpServers": {"a": CAT}, "Bridge": {}}, "Bridge: expected `bridge`, got <a key that"),
        (
            {"mcpServers": {"a": {**CAT, "envFile": ".env"}}},
            "mcpServers.a.envFile: expected `env`, as no file of variables is read, got <",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"warm": 1}},
            "bridge.warm: expected `bridge.defaults.warm` for all servers, or `warm` in one of",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"command": "x"}},
            "bridge.command: expected `command` in one of `mcpServers`, got <",
        ),
        ({"mcpServers": {"a": {}}}, "mcpServers.a.command: expected a string that is not empty"),
        (
            {"mcpServers": {"a": {**CAT, "disabled": "yes"}}},
            'mcpServers.a.disabled: expected true or false, got "yes"',
        ),
        (
            {"mcpServers": {"a": {"type": "sse", "url": "http://x"}}},
            "mcpServers.a: expected a stdio server with a `command`, got <a remote server>",
        ),
        (
            {"mcpServers": {"a": {**CAT, "url": "http://x"}}},
            "mcpServers.a: expected a stdio server",
        ),
        (
            {"mcpServers": {"a": {**CAT, "max_session": 1}}},
            "mcpServers.a.max_session: expected `max_sessions`, got <a setting that is not known>",
        ),
        (
            {"mcpServers": {"a": {**CAT, "zzz": 1}}},
            "mcpServers.a.zzz: expected one of abandoned_grace, args, base_uri, command,",
        ),
        (
            {"mcpServers": {"a": {**CAT, "name": "b"}}},
            "mcpServers.a.name: expected ",
        ),
        (
            {"mcpServers": {"a": {**CAT, "max_sessions": "10"}}},
            'mcpServers.a.max_sessions: expected an integer ≥ 1, got "10"',
        ),
        (
            {"mcpServers": {"a": {**CAT, "max_sessions": True}}},
            "mcpServers.a.max_sessions: expected an integer ≥ 1, got true",
        ),
        (
            {"mcpServers": {"a": {**CAT, "cwd": ""}}},
            'mcpServers.a.cwd: expected the path of a directory, got ""',
        ),
        (
            {"mcpServers": {"a b": CAT}},
            'mcpServers.a b: expected a name that may stand in a path, or a `base_uri`, got "a b"',
        ),
        (
            {"mcpServers": {"a": CAT, "b": {**CAT, "base_uri": "/a"}}},
            "mcpServers.b.base_uri: expected a path of its own, got <'/a', which server 'a' has>",
        ),
        ({"mcpServers": {"a": CAT}, "bridge": 1}, "bridge: expected an object, got <a number>"),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"servers": []}},
            "bridge.servers: expected one of access_log,",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"max_sessions": 0}},
            "bridge.max_sessions: expected an integer ≥ 1, got 0",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"listen": "tcp:1"}},
            "bridge.listen: expected a list of endpoint descriptions",
        ),
    ],
)
def test_what_is_wrong_is_named(content: Any, message: str) -> None:
    """keep: wrong settings are errors that name the field."""
    with pytest.raises(SettingError) as caught:
        parsed(content)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["inputs", "$schema", "globalShortcut", "preferences", "servers", "mcp", "x"]
)
def test_other_keys_at_the_top_are_those_of_clients(key: str) -> None:
    assert parsed({"mcpServers": {"a": CAT}, key: {}}).servers


def test_a_long_value_is_cut() -> None:
    with pytest.raises(SettingError) as caught:
        parsed({"mcpServers": {"a": {**CAT, "base_uri": "x" * 1000}}})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"{} {}", "Extra data"),
        (b'{"mcpServers": {"a": {}, "a": {}}}', "the key 'a' stands there twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_not_json(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SettingError) as caught:
        read_config(str(path))
    assert str(caught.value).startswith(f"config: expected JSON, got <{path}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(("name", "reason"), [("no.json", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read(name: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(SettingError) as caught:
        read_config(str(path))
    assert str(caught.value).startswith(f"config: expected a file that can be read, got <{path}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file(mark: bytes, tmp_path: Path) -> None:
    """A byte order mark, as editors on Windows write it, does not hurt."""
    path = tmp_path / "config.json"
    path.write_bytes(mark + json.dumps({"mcpServers": {"a": {**CAT, "cwd": "x"}}}).encode())
    [server] = read_config(str(path)).servers
    assert server.cwd == str(tmp_path / "x")


def test_defaults_of_the_bridge_are_for_all_servers() -> None:
    """The `bridge` object holds defaults; a server's own setting comes first."""
    settings = parse_config(
        {
            "mcpServers": {"a": {"command": "x"}, "b": {"command": "x", "ping_interval": 3}},
            "bridge": {"defaults": {"ping_interval": 10, "stop_grace": 2}},
        },
        "/",
    )
    assert [each.ping_interval for each in settings.servers] == [10, 3]
    assert [each.stop_grace for each in settings.servers] == [2, 2]


@pytest.mark.parametrize(
    ("defaults", "says"),
    [
        ({"ping_interval": -1}, "bridge.defaults.ping_interval: expected a number"),
        ({"command": "x"}, "bridge.defaults.command: expected `command` in one of `mcpServers`"),
        ([], "bridge.defaults: expected an object"),
    ],
)
def test_wrong_defaults_are_named(defaults: object, says: str) -> None:
    """They are checked also where no server takes them."""
    with pytest.raises(SettingError) as caught:
        parse_config({"mcpServers": {"a": {"command": "x"}}, "bridge": {"defaults": defaults}}, "/")
    assert str(caught.value).startswith(says)
