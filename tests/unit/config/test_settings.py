"""Each setting: its default, what it accepts, and how a wrong one is named."""

import dataclasses
import re
from typing import Any

import pytest

from mcpbridge.config.checks import MEASURED_TOOLS
from mcpbridge.config.confinement import LEAST_OPEN_FILES, MAX_ID, MAX_LIMIT, ResourceLimits
from mcpbridge.config.name_lists import LISTED_NAMES, LISTING_IDENTITIES, NameLists
from mcpbridge.config.remote import REMOTE_HEADERS
from mcpbridge.config.settings import (
    CONNECTIONS_PER_SESSION,
    DEFAULT_BRIDGE_SESSIONS,
    DEFAULT_CONNECTIONS,
    DEFAULT_SESSIONS,
    BridgeSettings,
    ServerSettings,
)
from mcpbridge.errors import SettingError

MIB = 1024 * 1024

SERVER_DEFAULTS: dict[str, Any] = {
    "args": (),
    "name": "default",
    "env": {},
    "env_from": {},
    "pass_env": (),
    "cwd": None,
    "base_uri": "",
    "public_path": None,
    "auth": None,
    "tools": NameLists(),
    "prompts": NameLists(),
    "resources": NameLists(),
    "max_sessions": 100,
    "max_sessions_per_address": None,
    "max_sessions_per_identity": None,
    "new_sessions_per_second": 0,
    "messages_per_second": 0,
    "ping_interval": 30.0,
    "stop_grace": 1.0,
    "kill_grace": 2.0,
    "peer_timeout": 60.0,
    "min_transfer_rate": 512,
    "max_message_bytes": 16 * MIB,
    "max_waiting_messages": 1024,
    "max_waiting_bytes": 8 * MIB,
    "stderr_notifications": True,
    "stderr_log": "log",
    "stderr_dir": None,
    "metrics_tools": (),
    "canary_interval": 0.0,
    "idle_timeout": 300.0,
    "abandoned_grace": 60.0,
    "keepalive_interval": 15.0,
    "json_response": False,
    "stderr_in_errors": False,
    "containers": True,
    "container_init": False,
    "warm": 0,
    "reuse": "connection",
    "concurrency": 16,
    "max_process_age": 3600.0,
    "max_process_requests": 1000,
    "max_waiting_requests": 64,
    "queue_timeout": 10.0,
    "input_timeout": 600.0,
    "task_timeout": 3600.0,
    "start_timeout": 30.0,
    "probe_timeout": 10.0,
    "request_state_key": None,
    "user": None,
    "group": None,
    "umask": None,
    "nice": 0,
    "limits": ResourceLimits(),
    "private_tmp": False,
    "url": None,
    "headers": {},
    "remote_transport": "auto",
    "ca_file": None,
    "connect_timeout": 10.0,
    "response_timeout": 300.0,
    "event_store": None,
    "launcher": None,
    "limiter": None,
    "observers": (),
    "filters": (),
    "options": {},
}
BRIDGE_DEFAULTS: dict[str, Any] = {
    "servers": (),
    "listen": ("tcp:8808:interface=127.0.0.1",),
    "auth": None,
    "public_url": None,
    "insecure": False,
    "max_sessions": None,
    "max_connections": None,
    "max_request_bytes": 256 * MIB,
    "max_sessions_per_address": None,
    "max_sessions_per_identity": None,
    "max_connections_per_address": None,
    "max_streams_per_identity": None,
    "max_request_bytes_per_address": None,
    "exempt_addresses": ("127.0.0.0/8", "::1", "unix"),
    "trusted_proxies": (),
    "max_response_bytes": 256 * MIB,
    "allowed_hosts": (),
    "allowed_origins": (),
    "allowed_headers": (),
    "access_log": False,
    "audit_log": None,
    "log_format": "text",
    "log_level": ("info",),
    "admin_listen": None,
    "admin_tokens": {},
    "admin_hosts": (),
    "metrics": True,
    "tracing": False,
    "trace_ratio": 1.0,
    "drain_timeout": 30.0,
    "audit_arguments": False,
    "fast_path": True,
    "state_dir": None,
    "strict": False,
    "child_subreaper": None,
}

COUNTS = (
    "max_sessions",
    "max_message_bytes",
    "max_waiting_messages",
    "max_waiting_bytes",
    "concurrency",
    "max_process_requests",
    "max_waiting_requests",
)
SHARES = (
    "max_sessions_per_address",
    "max_sessions_per_identity",
    "max_connections_per_address",
    "max_streams_per_identity",
    "max_request_bytes_per_address",
)
WRONG_SHARES = (0, -1, 1.0, "10", True, [1])
WRONG_NETWORKS = ("10.0.0.0/8", None, [""], ["localhost"], ["10.0.0.0/33"], [1], ["::/129"])
WRONG_COUNTS = (0, -1, 1.0, "10", True, None, [1])
WRONG_SECONDS = (-1, -0.1, 1e6 + 1, 10**400, float("nan"), float("inf"), "1", True, None)
WRONG_TEXTS = ("text", None, [1], ["a\0b"], {"a": "b"})
WRONG_NAMES = ("package.Name", None, ["name"], [""], [1], ["."])

WRONG_AUTH: tuple[Any, ...] = (
    *(0, True, "tokens", [], {"token": {}}),
    *({"tokens": {"a b": {}}}, {"tokens": {"a": {}}}, {"tokens": {"a": {"sha256": "0"}}}),
    *({"oauth": {}}, {"oauth": {"issuer": 1}}, {"scopes": {"tools/call": {"a": 1}}}),
)

WRONG_LISTS: tuple[Any, ...] = (
    *("read", 1, True, [1], [""], {"allow": "read"}, {"deny": [None]}, {"denied": []}),
    *({"identities": []}, {"identities": {"": {}}}, {"identities": {"a": {"identities": {}}}}),
    *({"identities": {"a": ["read"]}}, {"deny": None}, {"allow": ["x" * 2049]}),
    {"allow": ["x"] * (LISTED_NAMES + 1)},
    {"identities": {str(each): {} for each in range(LISTING_IDENTITIES + 1)}},
)
WRONG_ACCOUNTS = ("", "a b", "0x", "a:b", -1, 1.0, True, MAX_ID + 1, ["root"])
WRONG_URLS = (
    *("", 1, "example.org", "ftp://example.org", "http://", "http://u:p@example.org/"),
    *("https://example.org/#a", "https://example.org/a b", "http://[::1", "http://h:0/"),
    *("http://h:99999/", "https://ex\xe4mple.org/", "http:///mcp"),
)
WRONG_HEADERS: tuple[Any, ...] = (
    *(None, [], "X: y", {"X y": "z"}, {"": "z"}, {"X": 1}, {"X": ""}, {"X": "a\nb"}),
    *({"X": " a"}, {"X": "\xe4"}, {"Host": "x"}, {"Mcp-Session-Id": "x"}, {"X": "a", "x": "a"}),
    {f"X-{each}": "x" for each in range(REMOTE_HEADERS + 1)},
)

WRONG_SERVER: dict[str, tuple[Any, ...]] = {
    "command": ("", None, 1, ["cat"], "a\0b"),
    "args": WRONG_TEXTS,
    "name": ("", None),
    "env": (None, [], {"A": 1}, {"": "x"}, {"A=B": "x"}, {"A": "\0"}, {1: "x"}),
    "pass_env": (
        ("HOME", None, [""], ["A=B"], [1], ["A,B"], ["A B"], ["A?"], ["[AB]"], ["A**"], ["$A"])
    ),
    "env_from": (
        *(None, [], "A", {"A": None}, {"A": "X-A"}, {"A": {}}, {"A": {"header": "x y"}}),
        *({"A": {"header": "X", "claim": "x"}}, {"A": {"header": 1}}, {"A": {"claim": ""}}),
        *({"A": {"claim": "c", "required": "yes"}}, {"A": {"claim": "c", "default": "x"}}),
        *({each: {"claim": "c"}} for each in ("", "1A", "A-B", "A B", "A=B", "\xe4", "A\n", 1)),
        *({each: {"claim": "c"}} for each in ("PATH", "LD_PRELOAD", "http_proxy", "Node_Options")),
    ),
    "cwd": ("", 1, "a\0b"),
    "auth": WRONG_AUTH,
    **dict.fromkeys(("tools", "prompts", "resources"), WRONG_LISTS),
    **dict.fromkeys(("user", "group"), WRONG_ACCOUNTS),
    "umask": ("", "77", "0888", "00077", 77, "-077", True),
    "nice": (-21, 20, 1.0, "1", True, None),
    "limits": (
        *(
            None,
            [],
            1,
            {"open_files": LEAST_OPEN_FILES - 1},
            {"cpu_seconds": 0},
            {"core": -1},
            {"nproc": 1},
        ),
        *({"file_size": MAX_LIMIT + 1}, {"address_space": "1G"}, {"open_files": True}, {1: 1}),
    ),
    "private_tmp": (None, 0, 1, "true"),
    "url": WRONG_URLS,
    "headers": WRONG_HEADERS,
    "remote_transport": ("", None, "http", True),
    "ca_file": ("", 1, "a\0b"),
    "stderr_log": ("", None, True, "logs", ["log"]),
    "stderr_dir": ("", 1, "a\0b"),
    "metrics_tools": ("a", [1], [""], ["a" * 129], ["a"] * (MEASURED_TOOLS + 1)),
    "canary_interval": (-1, "1", None),
    "public_path": ("x", "/", "/a/", 1),
    **dict.fromkeys(COUNTS, WRONG_COUNTS),
    **dict.fromkeys(("max_sessions_per_address", "max_sessions_per_identity"), WRONG_SHARES),
    **dict.fromkeys(("new_sessions_per_second", "messages_per_second"), WRONG_SECONDS),
    **dict.fromkeys(("ping_interval", "stop_grace", "kill_grace"), WRONG_SECONDS),
    **dict.fromkeys(("idle_timeout", "abandoned_grace", "keepalive_interval"), WRONG_SECONDS),
    "response_timeout": WRONG_SECONDS,
    **dict.fromkeys(
        (
            "peer_timeout",
            "queue_timeout",
            "input_timeout",
            "task_timeout",
            "start_timeout",
            "probe_timeout",
            "connect_timeout",
        ),
        (*WRONG_SECONDS, 0),
    ),
    "max_process_age": WRONG_SECONDS,
    **dict.fromkeys(("warm", "min_transfer_rate"), (-1, 1.0, "1", True, None)),
    "reuse": ("always", "", None, True),
    "request_state_key": ("", "x" * 31, 1, "\0" * 40),
    "stderr_notifications": (None, 0, 1, "true"),
    **dict.fromkeys(
        ("json_response", "stderr_in_errors", "containers", "container_init"),
        (None, 0, 1, "true"),
    ),
    "event_store": ("", "name", ".", 1),
    "launcher": ("", "name", ".", 1),
    "limiter": ("", "name", ".", 1),
    "observers": WRONG_NAMES,
    "filters": WRONG_NAMES,
    "options": (None, [], "x"),
}
WRONG_BRIDGE: dict[str, tuple[Any, ...]] = {
    "auth": WRONG_AUTH,
    "public_url": ("", 1, "example.org", "ftp://x", "https://x/", "https://x/a", "https://x?a"),
    "insecure": (0, "yes", None),
    "listen": ("tcp:1", None, [""], [1], ["\0"]),
    **dict.fromkeys(("max_sessions", "max_connections"), WRONG_SHARES),
    **dict.fromkeys(("max_request_bytes", "max_response_bytes"), WRONG_COUNTS),
    **dict.fromkeys(SHARES, WRONG_SHARES),
    **dict.fromkeys(("exempt_addresses", "trusted_proxies"), WRONG_NETWORKS),
    "allowed_hosts": ("h", None, [""], [1], ["http://h"], ["a b"]),
    "allowed_headers": ("x-a", None, ["*"], [1], [""], ["x a"], ["x:"], ["x\xe4"]),
    "allowed_origins": ("*", None, ["example.org"], [1], ["https://"], ["https://a/b"]),
    **dict.fromkeys(("access_log", "audit_arguments"), (None, 0, "yes")),
    "audit_log": ("", 1, "a\0b"),
    "log_format": ("xml", 1, None),
    "log_level": ("info", ["loud"], [1], ["=info"], ["web=loud"]),
    "admin_listen": ("none", [""], [1]),
    "admin_tokens": (1, {"a": 1}, {"a": {"sha256": "x"}}, {"a b": {"file": "f"}}),
    "admin_hosts": ("h", ["a/b"]),
    "metrics": (None, 1),
    "tracing": (None, 1),
    "trace_ratio": (-0.1, 1.1, "1", None),
    "drain_timeout": (-1, "1", None),
    "fast_path": (None, 1, "no"),
    "strict": (None, 1, "no"),
    "state_dir": ("", 1, "a\0b"),
    "child_subreaper": (0, 1, "yes"),
}


def test_the_defaults() -> None:
    """`command` is required, `args` [], `base_uri` "", `max_sessions` 100."""
    server = dataclasses.asdict(ServerSettings(command="cat"))
    assert server == {"command": "cat", **SERVER_DEFAULTS}
    assert dataclasses.asdict(BridgeSettings()) == BRIDGE_DEFAULTS
    with pytest.raises(SettingError, match=r"^command: "):
        ServerSettings()


@pytest.mark.parametrize("name", WRONG_SERVER)
def test_a_wrong_setting_of_a_server(name: str) -> None:
    """`0`, `"10"`, `true` are errors that name the field."""
    for value in WRONG_SERVER[name]:
        with pytest.raises(SettingError) as caught:
            pytest.fail(f"accepted: {ServerSettings(**{'command': 'cat', name: value})}")
        named = caught.value.name
        # Of a list or an object what is wrong in it, where the rest is not shown.
        assert re.split(r"[.[]", named)[0] == name
        assert str(caught.value).startswith(f"{named}: expected {caught.value.expected}, got ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WRONG_BRIDGE)
def test_a_wrong_setting_of_the_bridge(name: str) -> None:
    for value in WRONG_BRIDGE[name]:
        with pytest.raises(SettingError) as caught:
            pytest.fail(f"accepted: {BridgeSettings(**{name: value})}")
        assert re.split(r"[.[]", caught.value.name)[0] == name


def test_every_setting_has_a_check() -> None:
    """A setting that nobody checks would be one that may be wrong."""
    checked = {f.name for f in dataclasses.fields(ServerSettings) if "check" in f.metadata}
    assert checked == WRONG_SERVER.keys() | {"base_uri"} == SERVER_DEFAULTS.keys() | {"command"}
    checked = {f.name for f in dataclasses.fields(BridgeSettings) if "check" in f.metadata}
    assert checked == WRONG_BRIDGE.keys() == BRIDGE_DEFAULTS.keys() - {"servers"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("args", ["a", ""]),
        ("env", {"A": ""}),
        ("cwd", "."),
        ("public_path", ""),
        ("public_path", "/outside"),
        ("max_sessions", 1),
        ("ping_interval", 0),
        ("stop_grace", 0),
        ("kill_grace", 0.5),
        ("peer_timeout", 0.001),
        ("peer_timeout", 1_000_000),
        ("idle_timeout", 0),
        ("keepalive_interval", 0),
        ("event_store", "package.module.Name"),
        ("launcher", "package.module.Name"),
    ],
)
def test_valid_values(name: str, value: Any) -> None:
    held = getattr(ServerSettings(**{"command": "cat", name: value}), name)
    assert held == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("base", ["", "/a", "/a/b", "/a.b", "/..a", "/mcp-1_~:@!$&'()*+,;=|\\^`"])
def test_a_base_is_literal(base: str) -> None:
    """`base_uri` is a literal path prefix, never a pattern."""
    assert ServerSettings(command="cat", base_uri=base).base_uri == base


@pytest.mark.parametrize(
    "base",
    [
        *("a", "a/b", "/", "/a/", "//", "//a", "/a//b", "/.", "/a/..", "/../a", "/a/./b"),
        *("/a b", "/a\t", "/a?", "/a#", "/a%20", "/<a>", "/a>", "/é", "/\x7f", "/a\n"),
        *(None, 1, ["/a"], b"/a"),
    ],
)
def test_an_invalid_base(base: Any) -> None:
    with pytest.raises(SettingError, match=r"^base_uri: expected an empty string, or a path"):
        ServerSettings(command="cat", base_uri=base)


@pytest.mark.parametrize(
    ("given", "bridge", "limit"),
    [
        ([], {}, DEFAULT_BRIDGE_SESSIONS),
        ([DEFAULT_SESSIONS] * 20, {}, DEFAULT_BRIDGE_SESSIONS),
        ([3000], {}, 3000),
        ([3000, 2000, DEFAULT_SESSIONS], {}, 5000),
        ([3000], {"max_sessions": 7}, 7),
    ],
)
def test_the_limit_of_the_bridge_follows_those_of_the_servers(
    given: list[int], bridge: dict[str, int], limit: int
) -> None:
    """Unless it is set, `--max-sessions 3000` means 3,000."""
    servers = [
        ServerSettings(command="x", name=f"s{at}", base_uri=f"/{at}", max_sessions=each)
        for at, each in enumerate(given)
    ]
    settings = BridgeSettings(servers=tuple(servers), **bridge)  # type: ignore[arg-type]
    assert settings.session_limit == limit
    connections = max(DEFAULT_CONNECTIONS, CONNECTIONS_PER_SESSION * limit)
    assert settings.connection_limit == connections
    assert dataclasses.replace(settings, max_connections=9).connection_limit == 9


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"command": "cat", "headers": {"X": "hush"}}, "headers: expected no value, because there"),
        ({"command": "cat", "remote_transport": "sse"}, "remote_transport: expected no value, bec"),
        ({"command": "cat", "url": "https://example.org/mcp"}, "url: expected either `command` or"),
        ({"url": "https://example.org/mcp", "env": {"A": "hush"}}, "env: expected no value, becau"),
        ({"url": "https://example.org/mcp", "user": "nobody"}, "user: expected no value, because "),
        ({"url": "https://example.org/mcp", "limits": {"core": 0}}, "limits: expected no value, b"),
        ({"url": "https://example.org/mcp", "launcher": "a.B"}, "launcher: expected none, because"),
    ],
)
def test_remote_server_is_no_command(values: dict[str, Any], error: str) -> None:
    """An entry is one or the other, and a setting without effect is an error."""
    with pytest.raises(SettingError) as caught:
        ServerSettings(**values)
    assert str(caught.value).startswith(error)
    assert "hush" not in str(caught.value)


def test_remote_server_has_no_command() -> None:
    server = ServerSettings(url="https://example.org/mcp?key=x", headers={"X-Key": "a b"})
    assert server.is_remote
    assert not ServerSettings(command="cat").is_remote
    # What was made once can be made again with other values.
    assert dataclasses.replace(server, name="x").headers == {"X-Key": "a b"}


@pytest.mark.parametrize(
    ("given", "restricts"),
    [
        (None, False),
        (["*"], False),
        ([], True),
        (["read"], True),
        ({"deny": ["x"]}, True),
        ({"allow": None}, False),
        ({"identities": {"a": {}}}, False),
        ({"identities": {"a": {"allow": []}}}, True),
    ],
)
def test_lists_of_names(given: Any, restricts: bool) -> None:
    server = ServerSettings(command="cat", tools=given)
    assert server.tools.restricts_anybody is restricts
    assert dataclasses.replace(server, name="x").tools == server.tools


def test_two_servers_cannot_have_the_same_base() -> None:
    first = ServerSettings(command="cat", name="first", base_uri="/x")
    second = ServerSettings(command="cat", name="second", base_uri="/x")
    with pytest.raises(SettingError) as caught:
        BridgeSettings(servers=(first, second))
    assert str(caught.value) == (
        "mcpServers.second.base_uri: expected a path of its own,"
        " got '/x', which server 'first' has already"
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("env", {"A": "hush", "N": 1}, "env.N: expected a string, got a number"),
        ("env", {"A": "hush", "N": None}, "env.N: expected a string, got null"),
        ("env", {"N": ["hush"]}, "env.N: expected a string, got a list"),
        ("env", {"N": {"value": "hush"}}, "env.N: expected a string, got an object"),
        (
            "env",
            {"N": "hush\0"},
            "env.N: expected a string without NUL characters, got a str",
        ),
        (
            "env",
            {"A=hush": "x"},
            "env: expected an object whose values are strings and whose keys contain no `=`",
        ),
        ("env", {1: "hush"}, "env: expected an object whose values are strings"),
        ("env", "A=hush", "env: expected an object whose values are strings"),
        ("env", b"hush", "env: expected an object whose values are strings"),
        (
            "pass_env",
            ["A=hush"],
            "pass_env: expected a list of environment variable names, in which",
        ),
        (
            "pass_env",
            "A=hush",
            "pass_env: expected a list of environment variable names, in which",
        ),
        ("pass_env", [["hush"]], "pass_env: expected a list of environment variable names"),
        ("args", ["--token", "hush", 1], "args[2]: expected a string, got a number"),
        (
            "args",
            "--token hush",
            "args: expected a list of strings, got a string of 12 characters",
        ),
        ("command", ["x", "--token=hush"], "command: expected a non-empty string, got a list"),
        ("options", ["hush"], "options: expected an object, got a list"),
        (
            "request_state_key",
            "hush",
            (
                "request_state_key: expected a string of at least 32 characters,"
                " got a string of 4 characters"
            ),
        ),
    ],
)
def test_an_error_shows_no_secret(name: str, value: Any, says: str) -> None:
    """What it shows may stand on a terminal and in a log."""
    with pytest.raises(SettingError) as caught:
        ServerSettings(**{"command": "cat", name: value})
    assert str(caught.value).startswith(says)
    assert "hush" not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServerSettings(command="cat").command = "dog"  # type: ignore[misc]
