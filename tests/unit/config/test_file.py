"""Settings from a file: the `mcpServers` that users have, and every way to get it wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.config.config_file import _NAMED_SERVERS, Notice
from mcpbridge.config.file import parse_config, read_config
from mcpbridge.config.foreign import FOREIGN_KEYS
from mcpbridge.config.settings import BridgeSettings
from mcpbridge.config.tuning import ENV_FILE_BYTES, NAMED_KEYS
from mcpbridge.errors import SettingError, SettingErrors

CAT = {"command": "cat"}


def parsed(content: Any) -> BridgeSettings:
    return parse_config(content, "/folder")


def test_a_file_of_a_desktop_client_works_unchanged() -> None:
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


def test_settings_of_ours_among_keys_of_clients() -> None:
    settings = parsed(
        {
            "mcpServers": {"a": {**CAT, "base_uri": "", "max_sessions": 7, "ping_interval": 0}},
            "bridge": {"listen": ["tcp:1"], "max_sessions": 9, "access_log": True},
        }
    )
    [server] = settings.servers
    assert (server.base_uri, server.max_sessions, server.ping_interval) == ("", 7, 0)
    assert (settings.listen, settings.max_sessions, settings.access_log) == (("tcp:1",), 9, True)


def test_keys_of_clients_are_ignored() -> None:
    [server] = parsed({"mcpServers": {"a": {**CAT, **dict.fromkeys(FOREIGN_KEYS, 1)}}}).servers
    assert server == parsed({"mcpServers": {"a": CAT}}).servers[0]


def test_a_disabled_server_is_left_out() -> None:
    servers = {"a": CAT, "b": {"disabled": True, "url": "https://example.com", "x": 1}}
    assert [each.name for each in parsed({"mcpServers": servers}).servers] == ["a"]


@pytest.mark.parametrize(
    ("given", "expected"), [("state", "/folder/state"), ("/run/x", "/run/x"), (None, None)]
)
def test_a_state_directory_is_relative_to_the_file(given: Any, expected: str | None) -> None:
    settings = parsed({"mcpServers": {"a": CAT}, "bridge": {"state_dir": given}})
    assert settings.state_dir == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a.log", "/folder/a.log"), ("/var/log/a", "/var/log/a"), ("-", "-"), (None, None)],
)
def test_an_audit_log_is_relative_to_the_file(given: Any, expected: str | None) -> None:
    settings = parsed({"mcpServers": {"a": CAT}, "bridge": {"audit_log": given}})
    assert settings.audit_log == expected


@pytest.mark.parametrize(
    ("cwd", "expected"),
    [
        ("work", "/folder/work"),
        ("/work", "/work"),
        ("~/work", os.path.expanduser("~/work")),
        (None, None),
    ],
)
@pytest.mark.parametrize("setting", ["cwd", "stderr_dir"])
def test_a_directory_is_relative_to_the_file(
    setting: str, cwd: str | None, expected: str | None
) -> None:
    """Also where it is the default of all servers."""
    own = {"mcpServers": {"a": {**CAT, setting: cwd}}}
    default = {"mcpServers": {"a": CAT}, "bridge": {"defaults": {setting: cwd}}}
    for content in (own, default):
        [server] = parsed(content).servers
        assert getattr(server, setting) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object with `mcpServers`, got a list"),
        ({}, "expected an object of named servers, `mcpServers` (or `servers` as in VS Code, or"),
        ({"mcp": {"x": {}}}, "expected an object of named servers, `mcpServers` (or"),
        ({"servers": 1}, "servers: expected an object of named servers, got a number"),
        (
            {"mcp": {"servers": 1}},
            "mcp.servers: expected an object of named servers, got a number",
        ),
        ({"mcpServers": []}, "mcpServers: expected an object of named servers, got a list"),
        (
            {"mcpServers": {}},
            "mcpServers: expected at least one server that is not disabled, got none",
        ),
        (
            {"mcpServers": {"a": {**CAT, "disabled": True, "env": {"A": "hush"}}}},
            "mcpServers: expected at least one server that is not disabled, got 1 disabled",
        ),
        ({"mcpServers": {"a": "cat"}}, "mcpServers.a: expected an object, got a string of 3"),
        (
            {"mcpServers": {"a": {**CAT, "env": {"A": "hush", "N": 1}}}},
            "mcpServers.a.env.N: expected a string, got a number",
        ),
        (
            {"mcpServers": {"a": {**CAT, "env": "hush"}}},
            "mcpServers.a.env: expected an object whose values are strings",
        ),
        (
            {"mcpservers": {"a": CAT}},
            "mcpservers: unknown key `mcpservers`; did you mean `mcpServe",
        ),
        ({"mcp_servers": {"a": CAT}}, "mcp_servers: unknown key `mcp_servers`; did you mean `mcp"),
        (
            {"mcpServers": {"a": CAT}, "brigde": {}},
            "brigde: unknown key `brigde`; did you mean `bridge`?",
        ),
        ({"mcpServers": {"a": CAT}, "Bridge": {}}, "Bridge: unknown key `Bridge`; did you mean `b"),
        (
            {"mcpServers": {"a": {**CAT, "envFile": 1}}},
            "mcpServers.a.envFile: expected the path of a file, got a number",
        ),
        (
            {"mcpServers": {"a": {**CAT, "envFile": "no"}}},
            "mcpServers.a.envFile: cannot read /folder/no: No such file or directory",
        ),
        (
            {"mcpServers": {"a": {**CAT, "envFile": "${NO}/x"}}},
            "mcpServers.a.envFile: the environment variable NO is not set; set it for",
        ),
        (
            {"mcpServers": {"a": {**CAT, "envFile": "/no/${HUSH}"}}},
            "mcpServers.a.envFile: cannot read /no/${HUSH}: No such file or directory",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"warm": 1}},
            "bridge.warm: a server setting; to set it for all servers, use `bridge.defaults.warm`",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"command": "x"}},
            "bridge.command: a setting of a single server; move it to the object of that",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"max-sesions": 1}},
            "bridge.max-sesions: unknown key `max-sesions`; did you mean `max_sessions`?",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"defaults": {"listen": []}}},
            "bridge.defaults.listen: a setting of the bridge; move it to `bridge.",
        ),
        ({"mcpServers": {"a": {}}}, "mcpServers.a: there is no `command`"),
        (
            {"mcpServers": {"a": {"command": ""}}},
            "mcpServers.a.command: expected a non-empty string",
        ),
        (
            {"mcpServers": {"a": {**CAT, "disabled": "yes"}}},
            "mcpServers.a.disabled: expected true or false, got a string of 3 characters",
        ),
        (
            {"mcpServers": {"a": {**CAT, "enabled": 0}}},
            "mcpServers.a.enabled: expected true or false, got a number",
        ),
        (
            {"mcpServers": {"a": {**CAT, "url": "http://x"}}},
            "mcpServers.a.url: expected either `command` or `url`, got both",
        ),
        (
            {"mcpServers": {"a": {**CAT, "serverUrl": "http://x"}}},
            "mcpServers.a.serverUrl: expected either `command` or `url`, got both",
        ),
        (
            {"mcpServers": {"a": {"serverUrl": "http://x", "url": "http://y?hush"}}},
            "mcpServers.a.serverUrl: another URL than `url`; remove one of them",
        ),
        (
            {"mcpServers": {"a": {"httpUrl": "ftp://hush"}}},
            "mcpServers.a.httpUrl: expected an `http` or `https` URL",
        ),
        (
            {"mcpServers": {"a": {"httpUrl": "${HUSH}"}}},
            "mcpServers.a.httpUrl: expected an `http` or `https` URL",
        ),
        (
            {"mcpServers": {"a": {"httpUrl": "${NO}"}}},
            "mcpServers.a.httpUrl: the environment variable NO is not set",
        ),
        (
            {"mcpServers": {"a": {"type": "http"}}},
            "mcpServers.a.type: `http` is a remote server, which needs a `url`",
        ),
        (
            {"mcpServers": {"a": {**CAT, "transport": "sse"}}},
            "mcpServers.a.transport: `sse` is a remote server, which needs a `url`",
        ),
        (
            {"mcpServers": {"a": {"url": "http://x", "type": "stdio"}}},
            "mcpServers.a.type: `stdio` is a command, which has no URL",
        ),
        (
            {"mcpServers": {"a": {"url": "http://x", "type": "websocket"}}},
            "mcpServers.a.type: expected `stdio`, `http`, `streamable-http` or `sse`, got 'webso",
        ),
        (
            {"mcpServers": {"a": {"url": "http://x", "transport": 1}}},
            "mcpServers.a.transport: expected `stdio`, `http`, `streamable-http` or `sse`",
        ),
        (
            {"mcpServers": {"a": {"url": "http://x", "type": "sse", "transport": "streamable"}}},
            "mcpServers.a.transport: another transport than `type`; remove one of them",
        ),
        (
            {"mcpServers": {"a": {"url": "http://x", "envFile": "hush.env"}}},
            "mcpServers.a.envFile: a remote server has no environment; remove this key",
        ),
        (
            {"mcpServers": {"a": {"url": "http://x", "headers": {"X-Key": "${HUSH}\n"}}}},
            "mcpServers.a.headers.X-Key: expected a value of printable ASCII characters",
        ),
        (
            {"mcpServers": {"a": {"url": "http://x", "oauth": {"clientSecret": "hush"}}}},
            "mcpServers.a.oauth: `oauth`: mcpbridge does not log in to remote servers; put a",
        ),
        (
            {"mcpServers": {"a": {**CAT, "max_session": 1}}},
            "mcpServers.a.max_session: unknown key `max_session`; did you mean `max_sessions`?",
        ),
        (
            {"mcpServers": {"a": {**CAT, "listen": []}}},
            "mcpServers.a.listen: a setting of the bridge; move it to `bridge.listen`",
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
            {"mcpServers": {"a": {**CAT, "base_uri": "${HUSH}"}}},
            "mcpServers.a.base_uri: expected an empty string, or a path",
        ),
        (
            {"mcpServers": {"a": {**CAT, "cwd": ""}}},
            'mcpServers.a.cwd: expected the path of a directory, got ""',
        ),
        (
            {"mcpServers": {"ü": CAT}},
            "mcpServers.ü: no path can be made of the name; give the server a `base_uri`",
        ),
        ({"mcpServers": {"..": CAT}}, 'mcpServers[".."]: no path can be made of the name'),
        ({"mcpServers": {"a": CAT}, "bridge": 1}, "bridge: expected an object, got a number"),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"servers": []}},
            "bridge.servers: unknown key `servers`; the known keys are access_log,",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"max_sessions": 0}},
            "bridge.max_sessions: expected an integer ≥ 1, got 0",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"listen": "tcp:1"}},
            "bridge.listen: expected a list of endpoint descriptions",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"listen": ["tcp:${NO}"]}},
            "bridge.listen[0]: the environment variable NO is not set",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"request_state_key": "x"}},
            "bridge.request_state_key: a server setting; to set it for all servers",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"max_request_bytes": 1}},
            "bridge.max_request_bytes: expected at least ",
        ),
    ],
)
def test_an_error_names_its_key(content: Any, message: str) -> None:
    """Wrong settings are errors that name the field; no value of a variable is shown."""
    with pytest.raises(SettingErrors) as caught:
        parse_config(content, "/folder", environment={"HUSH": "a hush"})
    [line] = caught.value.lines
    assert line.startswith(message)
    assert str(caught.value) == line
    assert "hush" not in line


@pytest.mark.parametrize(
    "key", ["inputs", "$schema", "globalShortcut", "preferences", "servers", "mcp", "x"]
)
def test_unknown_keys_at_the_top_are_ignored(key: str) -> None:
    assert parsed({"mcpServers": {"a": CAT}, key: {}}).servers


def test_a_long_value_is_truncated() -> None:
    with pytest.raises(SettingError) as caught:
        parsed({"mcpServers": {"a": {**CAT, "base_uri": "x" * 1000}}})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        (b"", "1:1", "expected a value, got the end of the file"),
        (b"{\n// comment\n  x", "3:3", "expected a name in double quotes, got 'x'"),
        (b"{} {}", "1:4", "expected the end of the file, got '{'"),
        (
            b'{"mcpServers": {"a": {},\n"a": {}}}',
            "1",
            "mcpServers.a: duplicate key; it is set again in line 2",
        ),
        (b'{"a": NaN}', "1:7", "expected a value, got 'N'"),
        (b'{\n"a": "\xff"}', "2", "the file is not valid UTF-8; save it as UTF-8"),
        (b"[" * 100_000, "1:101", "nested too deeply, more than 100 levels"),
        (b"[\n]", "1", "expected an object with `mcpServers`, got a list"),
    ],
)
def test_a_file_that_is_not_json(content: bytes, place: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SettingErrors) as caught:
        read_config(str(path))
    assert caught.value.lines[0] == f"{path}:{place}: {problem}"


@pytest.mark.parametrize(("name", "reason"), [("no.json", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read(name: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(SettingError) as caught:
        read_config(str(path))
    assert str(caught.value).startswith(f"config: expected a readable file, got {path}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file(mark: bytes, tmp_path: Path) -> None:
    """A byte order mark, as editors on Windows write it, does not hurt."""
    path = tmp_path / "config.json"
    path.write_bytes(mark + json.dumps({"mcpServers": {"a": {**CAT, "cwd": "x"}}}).encode())
    [server] = read_config(str(path)).servers
    assert server.cwd == str(tmp_path / "x")


def test_defaults_apply_to_all_servers() -> None:
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
        (
            {"command": "x"},
            "bridge.defaults.command: a setting of a single server; move",
        ),
        ([], "bridge.defaults: expected an object"),
    ],
)
def test_wrong_defaults_are_named(defaults: object, says: str) -> None:
    """They are checked also where no server takes them."""
    with pytest.raises(SettingError) as caught:
        parse_config({"mcpServers": {"a": {"command": "x"}}, "bridge": {"defaults": defaults}}, "/")
    assert str(caught.value).startswith(says)


# Entries that cannot be served, and what is told.


def told(content: Any, **options: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of the servers that are served, and the notices."""
    notices: list[Notice] = []
    settings = parse_config(
        content, "/folder", notify=notices.append, environment={"SET": "value"}, **options
    )
    return [each.name for each in settings.servers], [(each.level, each.text) for each in notices]


@pytest.mark.parametrize(
    ("entry", "level", "text"),
    [
        ({"comand": "x"}, "error", "comand: unknown key `comand`; did you mean `command`?"),
        ({"cmd": "x"}, "error", "cmd: unknown key `cmd`; did you mean `command`?"),
        ({**CAT, "arg": []}, "error", "arg: unknown key `arg`; did you mean `args`?"),
        ({**CAT, "environment": {}}, "error", "environment: unknown key `environment`; did you me"),
        ({**CAT, "env_file": "x"}, "error", "env_file: unknown key `env_file`; did you mean `envF"),
        (
            {**CAT, "enable": False},
            "error",
            "enable: unknown key `enable`; did you mean `enabled`?",
        ),
        ({**CAT, "maxSessions": 1}, "error", "maxSessions: unknown key `maxSessions`; did you m"),
        (
            {**CAT, "args": ["${NO}"]},
            "error",
            "args[0]: the environment variable NO is not set;",
        ),
        ({**CAT, "base_uri": "/a"}, "error", "base_uri: the path '/a' collides with '/a' of serv"),
        (
            {**CAT, "base_uri": "/a/sse/b"},
            "error",
            "base_uri: the path '/a/sse/b' collides with '/",
        ),
        ({**CAT, "base_uri": ""}, None, ""),
        ({"url": "https://example.org"}, None, ""),
        ({"command": "x", "type": "http"}, "error", "type: `http` is a remote server"),
        ({**CAT, "tools": {"one": {"enabled": False}}}, "error", "tools.one: expected `allow` or"),
        ({**CAT, "tools": "read"}, "error", "tools: expected an object with `allow`"),
        ({**CAT, "tools": True, "denyTools": ["a"]}, "error", "tools: expected an object with"),
        ({**CAT, "includeTools": "one"}, "error", "includeTools: expected a list of names, got a"),
        ({**CAT, "disabledTools": {}}, "error", "disabledTools: expected a list of names, got an"),
        ({**CAT, "excludeTools": [1]}, "error", "excludeTools: expected a name of 1 to 2048"),
        ({**CAT, "exludeTools": ["a"]}, "error", "exludeTools: unknown key `exludeTools`; did you"),
        ({**CAT, "enabledTools": ["${NO}"]}, "error", "enabledTools[0]: the environment variable"),
        (
            {**CAT, "enabledTools": ["a"], "tools": []},
            "error",
            "enabledTools: allows tools, which another key (or a default) does too; write `tools`",
        ),
        ({**CAT, "includeTags": ["a"]}, "error", "`includeTags` restricts tools by tags"),
        ({**CAT, "sandboxEnabled": True}, "error", "`sandboxEnabled`: mcpbridge has no such sand"),
        ({**CAT, "disabled": True}, "info", "it is disabled"),
        ({**CAT, "enabled": False}, "info", "it is disabled"),
        ({**CAT, "enabled": True, "disabled": True}, "info", "it is disabled"),
        ({**CAT, "enabled": True, "disabled": False}, None, ""),
        ({**CAT, "type": "stdio", "transport": "stdio"}, None, ""),
        ({**CAT, "type": "local"}, None, ""),
    ],
)
def test_a_server_that_cannot_be_served_does_not_stop_others(
    entry: Any, level: str | None, text: str
) -> None:
    """It is one line, with what to do; with `strict` it is an error, unless it is disabled."""
    content = {"mcpServers": {"a": CAT, "b": entry}}
    served, notices = told(content)
    if level is None:
        assert (served, notices) == (["a", "b"], [])
        return
    [(noted, line)] = notices
    assert (served, noted) == (["a"], level)
    assert line.startswith(f"mcpServers.b: not served: {text}")
    if level == "info":
        assert told(content, strict=True) == (served, notices)
        return
    for strict in (content, {**content, "bridge": {"strict": True}}):
        with pytest.raises(SettingErrors) as caught:
            told(strict, strict=strict is content)
        [error] = caught.value.lines
        assert error.startswith("mcpServers.b")
        assert text.split(": ")[-1] in error


def test_a_setting_of_a_former_name_works_with_a_warning() -> None:
    notices: list[Notice] = []
    content = {"mcpServers": {"a": CAT}, "bridge": {"front_channel": False}}
    assert parse_config(content, "/", notify=notices.append).fast_path is False
    assert notices == [
        (
            "warn",
            "bridge.front_channel: this setting is now `fast_path`; the former name still works",
        )
    ]
    content = {"mcpServers": {"a": CAT}, "bridge": {"front_channel": False, "fast_path": True}}
    with pytest.raises(SettingErrors, match="now `fast_path`, which is set as well; remove"):
        parse_config(content, "/")


def test_an_error_in_a_setting_of_a_former_name_hides_the_value_of_a_variable() -> None:
    """It is expanded under its former name, which is also what the error names."""
    content = {"mcpServers": {"a": CAT}, "bridge": {"front_channel": "${TOKEN}"}}
    with pytest.raises(SettingErrors) as caught:
        parse_config(content, "/", environment={"TOKEN": "secret-value"})
    [line] = caught.value.lines
    assert line == (
        "bridge.front_channel: expected true or false, got a string of 8 characters,"
        " once its variables are replaced"
    )


@pytest.mark.parametrize("former", [True, False])
def test_a_setting_of_the_bridge_in_a_server_is_an_error_by_either_name(former: bool) -> None:
    key = "front_channel" if former else "fast_path"
    served, [(_, line)] = told({"mcpServers": {"a": {**CAT, key: False}, "b": CAT}})
    assert (served, line) == (
        ["b"],
        f"mcpServers.a: not served: {key}: a setting of the bridge; move it to `bridge.fast_path`",
    )


def test_all_reasons_of_a_server_are_one_line() -> None:
    entry = {"comand": "x", "args": [1, "${NO}"], "env": {"A": "${SET}"}}
    served, [(level, line)] = told({"mcpServers": {"a": entry, "b": CAT}})
    assert (served, level) == (["b"], "error")
    assert line == (
        "mcpServers.a: not served: comand: unknown key `comand`; did you mean `command`?;"
        " args[1]: the environment variable NO is not set; set it for mcpbridge, or write"
        " `${NO:-default}`; args[0]: expected a string, got a number"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 1) for key in sorted(FOREIGN_KEYS)),
        ("_comment", "x"),
        ("_command", "x"),
        ("//", "x"),
        ("$args", []),
        ("wholly-other", 1),
        ("oauth", {}),
    ],
)
def test_an_ignored_key_is_a_warning(key: str, value: Any) -> None:
    content = {"mcpServers": {"a": {**CAT, key: value}, "b": {**CAT, key: value}}}
    served, notices = told(content)
    assert served == ["a", "b"]
    assert notices == [("warn", f"`{key}` (in a, b) is not a setting of mcpbridge and is ignored")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("includeTools", ["x", "*"]),
        ("enabledTools", None),
        ("includeTags", "*"),
        ("disabledTools", []),
        ("excludeTools", None),
        ("sandbox", {}),
        ("sandbox", False),
    ],
)
def test_a_restriction_without_effect_is_ignored(key: str, value: Any) -> None:
    served, notices = told({"mcpServers": {"a": {**CAT, key: value}}})
    assert served == ["a"]
    assert notices == [("warn", f"`{key}` (in a) restricts nothing and is ignored")]


@pytest.mark.parametrize(
    ("entry", "allow", "deny"),
    [
        ({}, None, ("default",)),
        ({"tools": ["*"]}, ("*",), ()),
        ({"tools": "*"}, None, ()),
        ({"tools": None}, None, ()),
        ({"tools": ["a"]}, ("a",), ()),
        ({"tools": []}, (), ()),
        ({"tools": {"allow": ["a"]}, "disabledTools": ["b"]}, ("a",), ("b",)),
        ({"includeTools": ["a"]}, ("a",), ("default",)),
        ({"exclude_tools": ["a"], "disabledTools": ["b"]}, None, ("default", "a", "b")),
        ({"disabledTools": []}, None, ("default",)),
        ({"tools": ["*"], "includeTools": ["${SET}"]}, ("value",), ()),
    ],
)
def test_lists_of_tools(entry: Any, allow: Any, deny: Any) -> None:
    """Those of other programs are added to `tools`, or else to its default."""
    content = {
        "mcpServers": {"a": {**CAT, **entry}},
        "bridge": {"defaults": {"tools": {"deny": ["default"]}}},
    }
    [server] = parse_config(content, "/", environment={"SET": "value"}).servers
    assert (server.tools.allow, server.tools.deny) == (allow, deny)


@pytest.mark.parametrize(
    ("entry", "transport"),
    [
        ({"url": "https://x/"}, "auto"),
        ({"serverUrl": "https://x/"}, "auto"),
        ({"httpUrl": "https://x/", "url": "https://x/"}, "auto"),
        ({"url": "https://x/", "type": "http"}, "auto"),
        ({"url": "https://x/", "type": "remote", "transport": "sse"}, "sse"),
        ({"url": "https://x/", "type": "streamable-http"}, "streamable-http"),
        ({"url": "https://x/", "type": "streamableHttp"}, "streamable-http"),
        ({"url": "https://x/", "type": "sse", "remote_transport": "auto"}, "auto"),
    ],
)
def test_a_remote_server(entry: Any, transport: str) -> None:
    content = {"mcpServers": {"a": {**entry, "headers": {"X-Key": "${KEY}"}, "args": []}}}
    notices: list[Notice] = []
    [server] = parse_config(
        content, "/", environment={"KEY": "hush"}, notify=notices.append
    ).servers
    assert server.is_remote
    assert (server.url, server.remote_transport) == ("https://x/", transport)
    assert (server.headers, notices) == ({"X-Key": "hush"}, [])


def test_defaults_that_do_not_fit_do_not_apply() -> None:
    """What is of processes is not of remote servers, and the other way round."""
    defaults = {
        "env": {"A": "b"},
        "user": "nobody",
        "limits": {"core": 0},
        "launcher": "a.b",
        "connect_timeout": 3,
        "headers": {"X-A": "b"},
        "ca_file": "ca.pem",
        "warm": 2,
    }
    content = {
        "mcpServers": {"far": {"url": "https://x/"}, "near": CAT},
        "bridge": {"defaults": defaults},
    }
    far, near = parse_config(content, "/folder").servers
    assert (far.connect_timeout, far.ca_file, far.warm) == (3, "/folder/ca.pem", 2)
    assert (far.env, far.user, far.launcher) == ({}, None, None)
    assert (near.env, near.user, near.limits.core) == ({"A": "b"}, "nobody", 0)
    assert (near.headers, near.connect_timeout) == ({}, 10)


def test_headers_without_a_url_are_ignored() -> None:
    served, [(level, line)] = told({"mcpServers": {"a": {**CAT, "headers": {"A": "hush"}}}})
    assert (served, level) == (["a"], "warn")
    assert line == "`headers` (in a) is not a setting of mcpbridge and is ignored"


@pytest.mark.parametrize("more", [0, 3])
def test_a_warning_names_a_few_servers(more: int) -> None:
    """`_NAMED_SERVERS`."""
    servers = {f"s{number}": {**CAT, "icon": "x"} for number in range(_NAMED_SERVERS + more)}
    _, [(_, line)] = told({"mcpServers": servers})
    named = ", ".join(list(servers)[:_NAMED_SERVERS])
    others = f" and {more} more" if more else ""
    assert line.startswith(f"`icon` (in {named}{others}) is not a setting")


def test_ignored_keys_beyond_the_limit_are_counted() -> None:
    """NAMED_KEYS."""
    others = {f"zz{number}": 1 for number in range(NAMED_KEYS + 2)}
    _, notices = told({"mcpServers": {"a": CAT}, **others})
    assert len(notices) == NAMED_KEYS + 1
    assert notices[-1][1] == "2 more keys are not settings of mcpbridge and are ignored"
    assert (
        len(told({"mcpServers": {"a": CAT}, **dict.fromkeys(list(others)[2:], 1)})[1])
        == len(others) - 2
    )


@pytest.mark.parametrize(
    "top",
    [
        {"mcp": {"excluded": ["b"]}},
        {"mcp": {"allowed": ["a"]}},
        {"disabledMcpServers": ["b"]},
        {"disabledMcpjsonServers": ["b"]},
    ],
)
def test_lists_of_disabled_servers_are_honoured(top: Any) -> None:
    served, notices = told({"mcpServers": {"a": CAT, "b": CAT}, **top})
    assert (served, notices) == (["a"], [("info", "mcpServers.b: not served: it is disabled")])


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("GitHub (work)", "/GitHub-work"),
        ("a  b", "/a-b"),
        ("x?/#y", "/x-/-y"),
        ("/x//y/", "/x/y"),
    ],
)
def test_a_name_with_characters_that_a_path_cannot_have(name: str, base: str) -> None:
    notices: list[Notice] = []
    [server] = parse_config({"mcpServers": {name: CAT}}, "/", notify=notices.append).servers
    assert (server.name, server.base_uri) == (name, base)
    [(level, line)] = notices
    assert level == "warn"
    assert f"served at {base}, as its name has characters that a path cannot have" in line


def test_all_errors_at_once() -> None:
    content = {
        "mcpServers": {"a": {"comand": "x"}, "b": {**CAT, "args": [1, "x", None]}, "c": CAT},
        "bridge": {"listen": "x", "warm": 1, "defaults": {"stop_grace": -1, "x": 1}},
        "brigde": {},
    }
    with pytest.raises(SettingErrors) as caught:
        parsed(content)
    assert {each.split(": ")[0] for each in caught.value.lines} == {
        "mcpServers.a.comand",
        "mcpServers.b.args[0]",
        "mcpServers.b.args[2]",
        "bridge.listen",
        "bridge.warm",
        "bridge.defaults.stop_grace",
        "bridge.defaults.x",
        "brigde",
    }
    assert str(caught.value) == "\n".join(caught.value.lines)


# Variables.


def test_variables_in_all_strings() -> None:
    """But not in names, nor in what is no string; those of defaults and the bridge too."""
    settings = parse_config(
        {
            "servers": {
                "${A}": {
                    "command": "${A}",
                    "args": ["x${A}", "$${A}", "${NO:-d}", "${env:A}", "$A", "$$A"],
                    "env": {"${A}": "${A}"},
                    "cwd": "${A}/x",
                    "base_uri": "/${A}",
                    "options": {"list": [{"deep": "${A}"}, 1]},
                }
            },
            "bridge": {"listen": ["tcp:${PORT}"], "defaults": {"reuse": "${R:-never}"}},
        },
        "/folder",
        environment={"A": "aa", "PORT": "1"},
    )
    [server] = settings.servers
    assert (server.name, server.command, server.cwd) == ("${A}", "aa", "/folder/aa/x")
    assert server.args == ("xaa", "${A}", "d", "aa", "$A", "$A")
    assert (server.env, server.base_uri) == ({"${A}": "aa"}, "/aa")
    assert server.options == {"list": [{"deep": "aa"}, 1]}
    assert (settings.listen, server.reuse) == (("tcp:1",), "never")


@pytest.mark.parametrize(
    ("folder", "workspace"), [("/w/.vscode", "/w"), ("/w/.cursor", "/w"), ("/w/x", "/w/x")]
)
def test_the_folders_of_editors(folder: str, workspace: str) -> None:
    arguments = ["${workspaceFolder}", "${workspaceFolderBasename}", "${userHome}", "${/}"]
    content = {"servers": {"a": {**CAT, "args": arguments}}}
    [server] = parse_config(content, folder, environment={}).servers
    name = os.path.basename(workspace)
    assert server.args == (workspace, name, os.path.expanduser("~"), os.sep)


def test_a_shell_variable_is_passed_literally_with_a_warning() -> None:
    content = {"mcpServers": {"a": {**CAT, "env": {"KEY": "$SET"}, "args": ["$SET"]}}}
    served, [(level, line)] = told(content)
    assert (served, level) == (["a"], "warn")
    assert line == (
        "mcpServers.a.env.KEY: `$SET` is passed literally; to insert the variable, write `${SET}`"
    )


def test_two_dollars_are_one_with_a_warning_where_they_were_two() -> None:
    """Once for each key, without the value."""
    entry = {**CAT, "env": {"A": "hu$$sh$$", "B": "$${A}"}, "args": ["$$"]}
    _, notices = told({"mcpServers": {"a": entry}})
    text = "`$$` now stands for one dollar sign, and `$$$$` for two"
    assert notices == [
        ("warn", f"mcpServers.a.env.A: {text}"),
        ("warn", f"mcpServers.a.args[0]: {text}"),
    ]


def test_a_value_in_a_file(tmp_path: Path) -> None:
    """The path is relative to the configuration file; an error shows nothing of the value."""
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    secret.chmod(0o640)
    entry = {**CAT, "env": {"A": "x-${file:secret}", "B": f"${{file:{secret}}}"}}
    [server] = parse_config({"mcpServers": {"a": entry}}, str(tmp_path)).servers
    assert server.env == {"A": "x-hush", "B": "hush"}
    entry = {**CAT, "cwd": "${file:none}", "base_uri": "${file:secret}"}
    with pytest.raises(SettingErrors) as caught:
        parse_config({"mcpServers": {"a": entry}}, str(tmp_path))
    assert [line.partition("expected an empty")[0] for line in caught.value.lines] == [
        "mcpServers.a.cwd: cannot read `${file:none}`: No such file or directory",
        "mcpServers.a.base_uri: ",
    ]
    assert "hush" not in str(caught.value)


# Files of variables.


def test_a_file_of_variables(tmp_path: Path) -> None:
    """Relative to the file; what `env` says comes first."""
    (tmp_path / "x.env").write_bytes(b"\xef\xbb\xbfA=1\nB='${two}'\n")
    entry = {**CAT, "envFile": "${X}.env", "env": {"A": "mine"}}
    [server] = parse_config(
        {"mcpServers": {"a": entry}}, str(tmp_path), environment={"X": "x"}
    ).servers
    assert server.env == {"A": "mine", "B": "${two}"}
    [server] = parsed({"mcpServers": {"a": {**CAT, "envFile": None}}}).servers
    assert server.env == {}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"A=1\nhush", ", line 2: expected NAME=VALUE, a comment or an empty line"),
        (b"A=\xff", " is not valid UTF-8"),
        (b"A=\0", " is not a text file: it has NUL bytes"),
        (b"#" * (ENV_FILE_BYTES + 1), f" has more than {ENV_FILE_BYTES} bytes (ENV_FILE_BYTES)"),
    ],
)
def test_a_wrong_file_of_variables(data: bytes, problem: str, tmp_path: Path) -> None:
    """Without it the server would fail strangely: it is not served, and nothing of it is shown."""
    path = tmp_path / "x.env"
    path.write_bytes(data)
    with pytest.raises(SettingErrors) as caught:
        parsed({"mcpServers": {"a": {**CAT, "envFile": str(path)}}})
    assert caught.value.lines == (f"mcpServers.a.envFile: {path}{problem}",)


# The files of other programs, as they are.

CLIENT_FILES = Path(__file__).parents[2] / "client_files"


@pytest.mark.parametrize(
    ("name", "served", "left_out", "warned"),
    [
        ("claude_desktop_config.json", ["filesystem", "GitHub (work)"], [], 3),
        (".vscode/mcp.json", ["fetch", "github"], ["perplexity", "locked"], 2),
        ("project/.cursor/mcp.json", ["time", "remote"], ["notes"], 0),
        ("zed_settings.json", ["local"], ["off"], 2),
        ("windsurf_mcp_config.json", ["memory", "git", "figma"], [], 1),
        ("cline_mcp_settings.json", ["weather"], ["old"], 4),
        ("gemini_settings.json", ["pythonTools", "readOnly"], ["experiments"], 2),
        ("copilot_mcp.json", ["sentry", "few"], [], 0),
    ],
)
def test_the_files_of_clients(
    name: str, served: list[str], left_out: list[str], warned: int
) -> None:
    notices: list[Notice] = []
    path = CLIENT_FILES / name
    environment = {"GITHUB_TOKEN": "hush", "REMOTE": "hush"}
    settings = read_config(str(path), environment=environment, notify=notices.append)
    assert [each.name for each in settings.servers] == served
    lines = [each.text for each in notices]
    out = [line for line in lines if "not served" in line]
    assert len(out) == len(left_out)
    for server, line in zip(left_out, out, strict=True):
        assert f".{server}: not served: " in line
    assert len(lines) - len(out) == warned
    assert all(line.startswith(f"{path}:") for line in lines)
    assert "hush" not in "".join(lines)


def test_the_variables_of_a_client_s_file() -> None:
    fetch, _ = read_config(str(CLIENT_FILES / ".vscode/mcp.json"), environment={}).servers
    assert fetch.env == {"FETCH_TOKEN": "a b", "FETCH_PROXY": ""}


def test_each_error_has_its_line() -> None:
    """All of a file, in its order."""
    path = CLIENT_FILES / "mistakes.json"
    with pytest.raises(SettingErrors) as caught:
        read_config(
            str(path),
            environment={},
            check_listen=lambda description: "no" if description == "tcp:x" else None,
        )
    places = [line.removeprefix(f"{path}:").split(": ")[:2] for line in caught.value.lines]
    assert places == [
        ["4", "mcpServers.files.comand"],
        ["5", "mcpServers.files.arg"],
        ["6", "mcpServers.files.maxSessions"],
        ["10", "mcpServers.git.args[1]"],
        ["10", "mcpServers.git.args[2]"],
        ["11", "mcpServers.git.env.TOKEN"],
        ["11", "mcpServers.git.env.A"],
        ["12", "mcpServers.git.envFile"],
        ["13", "mcpServers.git.enabled"],
        ["15", "mcpServers.none"],
        ["16", "mcpServers.list.environment"],
        ["16", "mcpServers.list.command"],
        ["17", "mcpServers.port.listen"],
        ["20", "bridge.listen[0]"],
        ["21", "bridge.warm"],
        ["22", "bridge.max_session"],
        ["23", "bridge.defaults.ping_interval"],
    ]


def test_a_listener_of_a_variable_shows_no_value(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"servers": {"a": {"command": "x"}}, "bridge": {"listen": ["tcp:${H}"]}}')
    with pytest.raises(SettingErrors) as caught:
        read_config(str(path), environment={"H": "hush"}, check_listen=lambda text: f"{text} no")
    [line] = caught.value.lines
    assert line.endswith("got 'tcp:${H}': it is invalid once its variables are replaced")


def test_an_error_deep_in_an_object_has_its_line(tmp_path: Path) -> None:
    """Also where a key has dots."""
    path = tmp_path / "config.json"
    path.write_text(
        """{"servers": {"a": {"command": "cat",
        "auth": {"tokens": {
          "x.y": {"sha256": 1},
          "x": {"scopes": ["a",
            1]}}},
        "env": {"A.B":
          2}
        }}}"""
    )
    with pytest.raises(SettingErrors) as caught:
        read_config(str(path))
    assert [line.split(": ")[0:2] for line in caught.value.lines] == [
        [f"{path}:3", 'servers.a.auth.tokens["x.y"].sha256'],
        [f"{path}:5", "servers.a.auth.tokens.x.scopes[1]"],
        [f"{path}:6", 'servers.a.env["A.B"]'],
    ]
