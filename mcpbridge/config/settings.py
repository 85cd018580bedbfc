"""
The settings of a server and of the bridge, with their defaults and checks.

Each setting is a field of a frozen dataclass and carries its own check, so that
the command line, a configuration file and an embedding application get the same
errors.  Its metadata also makes its option, its line in `--help` and its row in
the documentation.  Knows neither the reactor nor files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from mcpbridge.config.admin import read_admin_tokens
from mcpbridge.config.auth import Auth, merged, read_auth
from mcpbridge.config.checks import (
    COMMAND,
    COUNT,
    COUNT_OR_NONE,
    DIRECTORY,
    DOTTED_NAME,
    DOTTED_NAMES,
    ENV_NAMES,
    ENVIRONMENT,
    FLAG,
    HEADER_NAMES,
    HOSTS,
    INPUT_FILE,
    LOG_LEVELS,
    NETWORKS,
    OBJECT,
    OPTIONAL_FLAG,
    OPTIONAL_PATH_PREFIX,
    ORIGINS,
    OUTPUT_FILE,
    PART,
    PATH_PREFIX,
    POSITIVE_SECONDS,
    RATE,
    SECONDS,
    SECRET,
    SHARE,
    TEXTS,
    TOOL_NAMES,
    Check,
    is_text,
    kind_of,
    one_of,
)
from mcpbridge.config.confinement import (
    ACCOUNT,
    NICE,
    UMASK,
    ResourceLimits,
    read_limits,
)
from mcpbridge.config.confinement import (
    LIMITS as RESOURCE_LIMITS,
)
from mcpbridge.config.env_from import ENV_FROM, EnvironmentRule, read_rules
from mcpbridge.config.log_levels import unknown_components
from mcpbridge.config.name_lists import NAME_LISTS, NameLists, read_name_lists
from mcpbridge.config.remote import FIELDS, REMOTE_URL
from mcpbridge.config.tuning import MIB
from mcpbridge.errors import Described, SettingError

#: Where the bridge listens by default.
DEFAULT_LISTEN = "tcp:8808:interface=127.0.0.1"
#: The default limits on processes, of a server and of all servers.
DEFAULT_SESSIONS = 100
DEFAULT_BRIDGE_SESSIONS = 1000
#: The default limit on connections, and how many of them a session may need: a stream,
#: and connections for the requests that its client sends at one time.
DEFAULT_CONNECTIONS = 10_000
CONNECTIONS_PER_SESSION = 4
#: The headings of `--help`, in their order.
COMMON = "Common options"
LISTENING = "Listening"
AUTHENTICATION = "Authentication"
SECURITY = "Security"
LIMITS = "Limits"
SESSIONS = "Sessions"
PROCESSES = "Backend processes"
REMOTE = "Remote servers"
NAMES = "Tools, prompts and resources"
CONFINEMENT = "Confinement"
STATELESS = "Stateless requests (2026-07-28)"
CONTAINERS = "Containers"
LOGGING = "Logging"
MONITORING = "Monitoring"
EXTENSIONS = "Extensions"
GROUPS = (
    *(COMMON, LISTENING, AUTHENTICATION, NAMES, SECURITY, LIMITS, SESSIONS, PROCESSES),
    *(CONFINEMENT, STATELESS, CONTAINERS, REMOTE, LOGGING, MONITORING, EXTENSIONS),
)
#: Settings that list names, those that only a remote server has, and those that only a
#: process on this machine has.
NAME_SETTINGS = ("tools", "prompts", "resources")
REMOTE_SETTINGS = (
    *("headers", "remote_transport", "ca_file", "connect_timeout", "response_timeout"),
)
PROCESS_SETTINGS = (
    *("args", "env", "pass_env", "env_from", "cwd", "user", "group", "umask", "nice"),
    *("limits", "private_tmp"),
)
#: The paths that a server serves below its base.
SERVED_PATHS = ("/sse", "/message", "/mcp")


def share_of(limit: int, share: int | None) -> int:
    """Return the share of a limit that one caller may use; half of it by default."""
    return max(1, limit // 2) if share is None else share


def _wrong_auth(name: str, value: Any) -> Iterator[SettingError]:
    """Say what is wrong with an object of `auth`, without its values."""
    if not isinstance(value, Mapping):
        yield SettingError(name, "an object, or false", kind_of(value))
        return
    try:
        read_auth(value, name)
    except SettingError as error:
        yield from (error, *error.others)


def _is_auth(value: Any) -> bool:
    if value is None or value is False:
        return True
    try:
        return isinstance(value, Mapping) and bool(read_auth(value))
    except SettingError:
        return False


AUTH = Check(
    "an object, or false",
    _is_auth,
    complain=_wrong_auth,
    form="json",
    metavar="JSON",
    schema={"anyOf": [{"$ref": "#/$defs/Auth"}, {"const": False}]},
)

#: An origin, as a browser shows it: no path, as `public_path` says that.
_PUBLIC_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
PUBLIC_URL = Check(
    "a URL without a path, such as `https://mcp.example.org`",
    lambda v: v is None or (isinstance(v, str) and _PUBLIC_URL.fullmatch(v) is not None),
    metavar="URL",
    schema={"type": "string", "pattern": f"^{_PUBLIC_URL.pattern}$"},
)

ENDPOINTS = Check(
    f"a list of endpoint descriptions, such as `{DEFAULT_LISTEN}`",
    lambda v: isinstance(v, (list, tuple)) and all(is_text(n) and n for n in v),
    form="list",
    metavar="ENDPOINT",
    schema={"type": "array", "items": {"type": "string", "minLength": 1}},
)


OPTIONAL_ENDPOINTS = ENDPOINTS._replace(
    expected="a list of endpoint descriptions, or of `none`",
    accepts=lambda v: v is None or ENDPOINTS.accepts(v),
)


def _wrong_admin_tokens(name: str, value: Any) -> Iterator[SettingError]:
    """Say what is wrong with tokens, without their values."""
    try:
        read_admin_tokens(value, name)
    except SettingError as error:
        yield from (error, *error.others)


ADMIN_TOKENS = Check(
    "an object of tokens by name",
    lambda v: not any(_wrong_admin_tokens("admin_tokens", v)),
    complain=_wrong_admin_tokens,
    form="json",
    metavar="JSON",
    schema={
        "type": "object",
        "propertyNames": {"pattern": "^[A-Za-z0-9._@-]{1,64}$"},
        "additionalProperties": {"$ref": "#/$defs/AdminToken"},
    },
)


def setting(
    default: Any,
    check: Check,
    text: str,
    *,
    group: str,
    unset: str = "",
    metavar: str = "",
    option: str = "",
    aliases: tuple[str, ...] = (),
    renamed_from: str = "",
) -> Any:
    """
    Declare a setting: its default, its check, and a text that says what it does.

    The command line, its help and the tables in the documentation are made from
    this.  `group` is the heading in `--help`.  `unset` describes the default where
    the value itself says too little, such as null.  `option` is the name of the
    option where it is not that of the setting, `aliases` are other names of that
    option, and `metavar` stands for its value where that of the check will not do.
    `renamed_from` is the former name of the setting, which files and the command line
    may still use.
    """
    metadata = {
        "check": check,
        "text": text,
        "group": group,
        "unset": unset,
        "metavar": metavar or check.metavar,
        "option": option,
        "aliases": aliases,
        "renamed_from": renamed_from,
    }
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def former_names(kind: type[Any]) -> dict[str, str]:
    """Map the former names of settings to their names of today."""
    names = {each.metadata.get("renamed_from"): each.name for each in fields(kind)}
    return {former: name for former, name in names.items() if former}


def wrong_settings(kind: type[Any], values: Mapping[str, Any]) -> Iterator[SettingError]:
    """Yield what is wrong with each of the values by itself, in the order of the fields."""
    for each in fields(kind):
        check: Check | None = each.metadata.get("check")
        if check is not None and each.name in values:
            yield from check.errors(each.name, values[each.name])


def _check_all(settings: Any) -> None:
    """Raise `SettingError` for the fields that their checks do not accept."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    if values.get("url") is not None and values["command"] == "":
        del values["command"]
    SettingError.raise_all(wrong_settings(type(settings), values))
    for name, value in values.items():
        if isinstance(value, list):
            object.__setattr__(settings, name, tuple(value))


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """
    The settings of one server: how its backends are started and what its sessions may do.

    Raises `SettingError` for the first wrong setting, with what else is wrong.
    """

    command: str = setting(
        "",
        COMMAND,
        "Program of the MCP server, looked up in the backend's `PATH`.",
        group=COMMON,
    )
    args: tuple[str, ...] = setting(
        (),
        TEXTS,
        "Arguments of the program, passed directly and not through a shell.",
        group=COMMON,
    )
    name: str = setting(
        "default",
        COMMAND,
        "Name of the server in the log.",
        group=PROCESSES,
        unset="the name of the program",
        metavar="NAME",
    )
    env: Mapping[str, str] = setting(
        {}, ENVIRONMENT, "Environment variables to set for the backend.", group=COMMON
    )
    pass_env: tuple[str, ...] = setting(
        (),
        ENV_NAMES,
        "Variables to pass to the backend from the bridge's environment; `*` matches any"
        " characters, as in `AWS_*`.",
        group=COMMON,
    )
    env_from: Mapping[str, EnvironmentRule] = setting(
        {},
        ENV_FROM,
        "Environment variables whose values each client gives for its own processes, in a request"
        " header or by a claim of its identity, such as"
        ' `{"GITHUB_TOKEN": {"header": "X-GitHub-Token", "required": true}}`. They take'
        " precedence over `env`.",
        group=PROCESSES,
    )
    cwd: str | None = setting(
        None,
        DIRECTORY,
        "Working directory of the backend; if it does not exist, the bridge starts anyway and logs"
        " a warning.",
        group=COMMON,
        unset="the directory in which the bridge was started",
    )
    base_uri: str = setting(
        "",
        PATH_PREFIX,
        "Path prefix for `/mcp`, `/sse` and `/message`.",
        group=LISTENING,
        unset="`/NAME` in a configuration file, where NAME is the server's name; otherwise none",
    )
    public_path: str | None = setting(
        None,
        OPTIONAL_PATH_PREFIX,
        "Path prefix that clients see instead of `base_uri`, if a reverse proxy rewrites paths.",
        group=LISTENING,
        unset="the value of `base_uri`",
    )
    auth: Mapping[str, Any] | bool | None = setting(
        None,
        AUTH,
        "Who may use this server, and which scopes that needs; each key takes the place of the"
        " same one in the bridge's `auth`. `false` lets everybody in.",
        group=AUTHENTICATION,
        unset="the bridge's `auth`",
    )
    tools: NameLists = setting(  # noqa: RUF009
        None,
        NAME_LISTS,
        "Tools that clients may see and call, by names and patterns, such as"
        ' `{"allow": ["read_*"], "deny": ["read_secret"]}`; for all others they do not exist.'
        " `identities` has such lists for single identities.",
        group=NAMES,
        unset="all",
    )
    prompts: NameLists = setting(  # noqa: RUF009
        None,
        NAME_LISTS,
        "The same for prompts.",
        group=NAMES,
        unset="all",
    )
    resources: NameLists = setting(  # noqa: RUF009
        None,
        NAME_LISTS,
        "The same for resources, by their URIs.",
        group=NAMES,
        unset="all",
    )
    max_sessions: int = setting(
        DEFAULT_SESSIONS,
        COUNT,
        "Maximum backend processes per server, for sessions and stateless requests together.",
        group=COMMON,
    )
    max_sessions_per_address: int | None = setting(
        None,
        SHARE,
        "Maximum backend processes per server and client address.",
        group=LIMITS,
        unset="half of `max_sessions`",
    )
    max_sessions_per_identity: int | None = setting(
        None,
        SHARE,
        "Maximum backend processes per server and identity, if the server has `auth`.",
        group=LIMITS,
        unset="half of `max_sessions`",
    )
    new_sessions_per_second: float = setting(
        0,
        RATE,
        "Maximum new sessions per second of one identity, or of one client address if the server"
        " has no `auth`; ten seconds' worth may come at once. 0 means no limit.",
        group=LIMITS,
    )
    messages_per_second: float = setting(
        0,
        RATE,
        "Maximum messages per second of one identity, or of one client address if the server has"
        " no `auth`; ten seconds' worth may come at once. 0 means no limit.",
        group=LIMITS,
    )
    ping_interval: float = setting(
        30.0,
        SECONDS,
        "Seconds between the pings that the bridge sends to each client on `/sse`; 0 disables"
        " them.",
        group=SESSIONS,
    )
    stop_grace: float = setting(
        1.0,
        SECONDS,
        "Seconds a backend may take to exit after its stdin is closed; then it gets SIGTERM.",
        group=PROCESSES,
    )
    kill_grace: float = setting(
        2.0,
        SECONDS,
        "Seconds a backend may take to exit after SIGTERM; then it gets SIGKILL.",
        group=PROCESSES,
    )
    peer_timeout: float = setting(
        60.0,
        POSITIVE_SECONDS,
        "Seconds before a client that has stopped reading is disconnected.",
        group=SESSIONS,
    )
    min_transfer_rate: int = setting(
        512,
        COUNT_OR_NONE,
        "Minimum rate at which a client must read responses and send bodies, in bytes per second"
        " averaged over a minute; 0 disables the check.",
        group=LIMITS,
        metavar="BYTES",
    )
    max_message_bytes: int = setting(
        16 * MIB,
        COUNT,
        "Maximum size of one message in bytes, in either direction.",
        group=LIMITS,
        metavar="BYTES",
    )
    max_waiting_messages: int = setting(
        1024, COUNT, "Maximum messages queued for one backend process.", group=LIMITS
    )
    max_waiting_bytes: int = setting(
        8 * MIB,
        COUNT,
        "Once this many bytes are queued for one backend process, further messages are refused."
        " The message that crosses the threshold is still accepted, so a single message can be as"
        " large as `max_message_bytes`.",
        group=LIMITS,
        metavar="BYTES",
    )
    stderr_notifications: bool = setting(
        True,
        FLAG,
        "Send each line of the backend's stderr to the client as a notification, on `/sse` only.",
        group=LOGGING,
    )
    stderr_log: str = setting(
        "log",
        one_of("log", "file", "none"),
        "Where the backend's stderr is written: to the log, to a file in `stderr_dir`, or nowhere.",
        group=LOGGING,
    )
    stderr_dir: str | None = setting(
        None,
        DIRECTORY,
        "Directory for stderr files; required if `stderr_log` is `file`.",
        group=LOGGING,
    )
    idle_timeout: float = setting(
        300.0,
        SECONDS,
        "Seconds without a request or an open stream after which a session on `/mcp` ends;"
        " 0 disables the timeout.",
        group=SESSIONS,
    )
    abandoned_grace: float = setting(
        60.0,
        SECONDS,
        "Seconds of client silence after which a session on `/mcp` may be ended to make room, once"
        " `max_sessions` is reached; 0 means never.",
        group=SESSIONS,
    )
    keepalive_interval: float = setting(
        15.0,
        SECONDS,
        "Seconds between the comments that keep an event stream on `/mcp` open; 0 disables them.",
        group=SESSIONS,
    )
    json_response: bool = setting(
        False,
        FLAG,
        "Respond to requests on `/mcp` with JSON, never with an event stream.",
        group=SESSIONS,
    )
    stderr_in_errors: bool = setting(
        False,
        FLAG,
        "When a backend exits, include the last lines of its stderr in the errors that its client"
        " gets.",
        group=LOGGING,
    )
    warm: int = setting(
        0,
        COUNT_OR_NONE,
        "Number of backend processes kept ready for new clients.",
        group=PROCESSES,
    )
    reuse: str = setting(
        "connection",
        one_of("connection", "identity", "never"),
        "Whether a legacy server's process that has handled one stateless request may handle"
        " another of the same identity. `connection`: only if it arrives over the same connection;"
        " `identity`: any (without `auth` all clients count as one identity, even behind an"
        " authenticating proxy); `never`: each request gets a fresh process.",
        group=STATELESS,
    )
    concurrency: int = setting(
        16,
        COUNT,
        "Maximum stateless requests that one process of a modern server (one that speaks"
        " 2026-07-28) handles at a time.",
        group=STATELESS,
    )
    max_process_age: float = setting(
        3600.0,
        SECONDS,
        "Age in seconds after which a process for stateless requests, or one kept ready by"
        " `warm`, is replaced as soon as it has no request in progress; 0 disables this.",
        group=PROCESSES,
    )
    max_process_requests: int = setting(
        1000,
        COUNT,
        "Number of stateless requests after which a process is replaced.",
        group=STATELESS,
    )
    max_waiting_requests: int = setting(
        64,
        COUNT,
        "Maximum stateless requests per server that wait for a process.",
        group=STATELESS,
    )
    queue_timeout: float = setting(
        10.0,
        POSITIVE_SECONDS,
        "Seconds a stateless request may wait for a process.",
        group=STATELESS,
    )
    input_timeout: float = setting(
        600.0,
        POSITIVE_SECONDS,
        "Seconds a client may take to read and respond to a request from the server, such as an"
        " elicitation.",
        group=SESSIONS,
    )
    task_timeout: float = setting(
        3600.0,
        POSITIVE_SECONDS,
        "Seconds to keep a process running for an unfinished task, unless the task's own `ttlMs` is"
        " shorter.",
        group=STATELESS,
    )
    start_timeout: float = setting(
        30.0,
        POSITIVE_SECONDS,
        "Seconds a new process for stateless requests may take to answer `initialize`, or"
        " `server/discover` if the server is known to speak 2026-07-28, and the same again for"
        " `tools/list`. A session's process may take any time to answer `initialize` while its"
        " client is connected; if the client disconnects first, this limit applies.",
        group=PROCESSES,
    )
    probe_timeout: float = setting(
        10.0,
        POSITIVE_SECONDS,
        "Seconds to wait for the answer to `server/discover` while it is not known whether a"
        " server speaks 2026-07-28; one that stays silent is treated as a legacy server (one that"
        " speaks only revisions up to 2025-11-25).",
        group=PROCESSES,
    )
    request_state_key: str | None = setting(
        None,
        SECRET,
        "Secret that signs the `requestState` of calls waiting for input.",
        group=STATELESS,
        unset="a new random key at each start",
        option="request-state-key-file",
    )
    user: str | int | None = setting(
        None,
        ACCOUNT,
        "User that runs the backend, by name or numeric id; it has no supplementary groups.",
        group=CONFINEMENT,
        unset="the user of the bridge",
    )
    group: str | int | None = setting(
        None,
        ACCOUNT,
        "Group of the backend, by name or numeric id.",
        group=CONFINEMENT,
        unset="the primary group of `user`",
    )
    umask: str | None = setting(
        None,
        UMASK,
        "Permissions that files which the backend creates do not get, such as `0077`.",
        group=CONFINEMENT,
        unset="that of the bridge",
    )
    nice: int = setting(
        0,
        NICE,
        "How much lower the scheduling priority of the backend is than that of the bridge, from"
        " -20 to 19.",
        group=CONFINEMENT,
    )
    limits: ResourceLimits = setting(  # noqa: RUF009
        {},
        RESOURCE_LIMITS,
        "Resource limits of each process of the backend: `open_files`, `file_size` in bytes,"
        " `cpu_seconds`, `core` in bytes, and `address_space` in bytes.",
        group=CONFINEMENT,
        unset="those of the bridge",
    )
    private_tmp: bool = setting(
        False,
        FLAG,
        "Give each backend process a directory for temporary files of its own (`TMPDIR`), which is"
        " removed when the process has ended.",
        group=CONFINEMENT,
    )
    url: str | None = setting(
        None,
        REMOTE_URL,
        "URL of a remote MCP server, to serve instead of a command.",
        group=REMOTE,
        unset="none",
    )
    headers: Mapping[str, str] = setting(
        {},
        FIELDS,
        "HTTP headers to send to the remote server, such as `Authorization`.",
        group=REMOTE,
    )
    remote_transport: str = setting(
        "auto",
        one_of("auto", "streamable-http", "sse"),
        "Transport of the remote server. `auto`: Streamable HTTP, or else HTTP+SSE.",
        group=REMOTE,
    )
    ca_file: str | None = setting(
        None,
        INPUT_FILE,
        "File with certificates of the authorities that may sign the remote server's, in PEM.",
        group=REMOTE,
        unset="those of the system",
    )
    connect_timeout: float = setting(
        10.0,
        POSITIVE_SECONDS,
        "Seconds that a connection to the remote server may take to open.",
        group=REMOTE,
    )
    response_timeout: float = setting(
        300.0,
        SECONDS,
        "Seconds that the remote server may send nothing while it owes a response; 0 disables the"
        " timeout.",
        group=REMOTE,
    )
    containers: bool = setting(
        True,
        FLAG,
        "If a backend is started with `docker run`, `podman run` or `nerdctl run`, label its"
        " container, and remove the container when the backend stops.",
        group=CONTAINERS,
    )
    container_init: bool = setting(
        False,
        FLAG,
        "Add `--init` to `docker run`, `podman run` or `nerdctl run`, so that the container has an"
        " init process.",
        group=CONTAINERS,
    )
    metrics_tools: tuple[str, ...] = setting(
        (),
        TOOL_NAMES,
        "Names of tools whose calls are measured each on its own; other tools are measured"
        " together.",
        group=MONITORING,
        metavar="NAME",
    )
    canary_interval: float = setting(
        0.0,
        SECONDS,
        "Seconds between starts of a process that only show whether the server works; 0 starts"
        " none.",
        group=MONITORING,
    )
    event_store: str | None = setting(
        None,
        DOTTED_NAME,
        "Dotted name of your own `IEventStore`.",
        group=EXTENSIONS,
        unset="events are kept in memory",
    )
    launcher: str | None = setting(
        None,
        DOTTED_NAME,
        "Dotted name of your own `IBackendLauncher`.",
        group=EXTENSIONS,
        unset="backends are local processes",
    )
    limiter: str | None = setting(
        None,
        DOTTED_NAME,
        "Dotted name of your own `ISessionLimiter`.",
        group=EXTENSIONS,
        unset="`max_sessions` is the limit",
    )
    observers: tuple[str, ...] = setting(
        (), DOTTED_NAMES, "Dotted names of your own `ISessionObserver`s.", group=EXTENSIONS
    )
    filters: tuple[str, ...] = setting(
        (), DOTTED_NAMES, "Dotted names of your own `IMessageFilter`s.", group=EXTENSIONS
    )
    options: Mapping[str, Any] = setting(
        {}, OBJECT, "Options for your extensions.", group=EXTENSIONS
    )

    def __post_init__(self) -> None:
        _check_all(self)
        object.__setattr__(self, "env_from", read_rules(self.env_from))
        object.__setattr__(self, "limits", read_limits(self.limits))
        for name in NAME_SETTINGS:
            object.__setattr__(self, name, read_name_lists(getattr(self, name)))
        SettingError.raise_all(self.contradictions())

    @property
    def is_remote(self) -> bool:
        """True for a remote server; False for a command."""
        return self.url is not None

    def contradictions(self) -> Iterator[SettingError]:
        """Yield what is wrong with settings that are right by themselves."""
        if self.stderr_log == "file" and self.stderr_dir is None:
            yield SettingError(
                "stderr_dir", "a directory, because `stderr_log` is `file`", Described("none")
            )
        if self.env_from and self.canary_interval:
            yield SettingError(
                "canary_interval",
                "0, because with `env_from` a process has variables of its client",
                self.canary_interval,
            )
        if self.env_from and self.warm:
            # It would have been started without the credentials of the client that gets it.
            yield SettingError(
                "warm",
                "0, because with `env_from` a process has variables of its client",
                self.warm,
            )
        if self.url is not None:
            yield from self._wrong_for_remote()
        else:
            for name in REMOTE_SETTINGS:
                if self._is_set(name):
                    yield SettingError(
                        name, "no value, because there is no `url`", Described("one")
                    )

    def _wrong_for_remote(self) -> Iterator[SettingError]:
        if self.command:
            yield SettingError("url", "either `command` or `url`", Described("both"))
        if self.launcher is not None:
            yield SettingError("launcher", "none, because `url` is set", Described("one"))
        for name in PROCESS_SETTINGS:
            if self._is_set(name):
                yield SettingError(
                    name,
                    "no value, because `url` is set and the bridge starts no process",
                    Described("one"),
                )

    def _is_set(self, name: str) -> bool:
        field_of = type(self).__dataclass_fields__[name]
        unset = {} if field_of.default is MISSING else field_of.default
        value = getattr(self, name)
        return value not in (unset, ResourceLimits())


@dataclass(frozen=True, kw_only=True)
class BridgeSettings:
    """
    The settings of the bridge: its listeners, its servers and the limits they share.

    Raises `SettingError` for the first wrong setting, with what else is wrong.
    """

    servers: tuple[ServerSettings, ...] = ()
    listen: tuple[str, ...] = setting(
        (DEFAULT_LISTEN,), ENDPOINTS, "Twisted endpoints to listen on.", group=LISTENING
    )
    auth: Mapping[str, Any] | bool | None = setting(
        None,
        AUTH,
        "Who may come in: named tokens, access tokens of an authorization server, client"
        " certificates, or whom a trusted proxy names.",
        group=AUTHENTICATION,
        unset="everybody, which is allowed only if all listeners are on loopback or UNIX sockets",
        option="bridge-auth",
    )
    public_url: str | None = setting(
        None,
        PUBLIC_URL,
        "Scheme, host and port under which clients reach the bridge; needed for `auth.oauth`.",
        group=AUTHENTICATION,
        unset="none",
    )
    insecure: bool = setting(
        False,
        FLAG,
        "Serve without authentication even on addresses that other machines can reach.",
        group=AUTHENTICATION,
    )
    max_sessions: int | None = setting(
        None,
        SHARE,
        "Maximum backend processes across all servers.",
        group=LIMITS,
        unset="1000; more if the `max_sessions` of servers that have more than 100 add up to more",
        option="bridge-max-sessions",
    )
    max_connections: int | None = setting(
        None,
        SHARE,
        "Maximum open connections across all listeners.",
        group=LIMITS,
        unset="10000, or four for each process that `max_sessions` allows across all servers",
    )
    max_request_bytes: int = setting(
        256 * MIB,
        COUNT,
        "Maximum total size of the requests being received or processed, in bytes.",
        group=LIMITS,
        metavar="BYTES",
    )
    max_sessions_per_address: int | None = setting(
        None,
        SHARE,
        "Maximum backend processes per client address, across all servers.",
        group=LIMITS,
        unset="half of `max_sessions`",
        option="bridge-max-sessions-per-address",
    )
    max_sessions_per_identity: int | None = setting(
        None,
        SHARE,
        "Maximum backend processes per identity, across all servers with `auth`.",
        group=LIMITS,
        unset="half of `max_sessions`",
        option="bridge-max-sessions-per-identity",
    )
    max_connections_per_address: int | None = setting(
        None,
        SHARE,
        "Maximum open connections per client address.",
        group=LIMITS,
        unset="half of `max_connections`",
    )
    max_streams_per_identity: int | None = setting(
        None,
        SHARE,
        "Maximum open streams per identity, across all servers with `auth`: those of `GET /sse`,"
        " `GET /mcp` and `subscriptions/listen`.",
        group=LIMITS,
        unset="half of `max_connections`",
    )
    max_request_bytes_per_address: int | None = setting(
        None,
        SHARE,
        "Share of `max_request_bytes` available to one client address, in bytes.",
        group=LIMITS,
        unset="half of `max_request_bytes`",
        metavar="BYTES",
    )
    exempt_addresses: tuple[str, ...] = setting(
        ("127.0.0.0/8", "::1", "unix"),
        NETWORKS,
        "Client addresses exempt from the per-address limits; `unix` means clients on UNIX"
        " sockets.",
        group=LIMITS,
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        NETWORKS,
        "Proxies trusted to name the client in `X-Forwarded-For` or `Forwarded`; `unix` means"
        " proxies on UNIX sockets.",
        group=SECURITY,
        aliases=("trusted-proxy",),
    )
    max_response_bytes: int = setting(
        256 * MIB,
        COUNT,
        "Maximum total size of the responses that clients have not read yet, including events kept"
        " for resumption, in bytes.",
        group=LIMITS,
        metavar="BYTES",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        HOSTS,
        "Accepted values of the `Host` header.",
        group=SECURITY,
        unset="on a loopback listener, only `localhost`, `127.0.0.1` and `[::1]`; on other"
        " listeners, any host, except that browser requests must use an IP address or a name"
        " without a dot",
        aliases=("allow-host",),
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        ORIGINS,
        "Websites whose pages may use the bridge, such as `https://example.org`; `*` allows all.",
        group=SECURITY,
        unset="the bridge's own origin only",
        aliases=("allow-origin",),
    )
    allowed_headers: tuple[str, ...] = setting(
        (),
        HEADER_NAMES,
        "Request headers, in addition to MCP's own, that pages on other websites may send.",
        group=SECURITY,
        aliases=("allow-header",),
    )
    access_log: bool = setting(
        False, FLAG, "Log each request; session IDs are shortened.", group=LOGGING
    )
    audit_log: str | None = setting(
        None,
        OUTPUT_FILE,
        "File to which a line of JSON is written for each request of a client and each refusal;"
        " `-` means standard output.",
        group=LOGGING,
        unset="no audit log",
    )
    audit_arguments: bool = setting(
        False,
        FLAG,
        "Include the arguments of tools and prompts in the audit log, up to 4096 bytes of each"
        " request; they may contain secrets.",
        group=LOGGING,
    )
    log_format: str = setting(
        "text",
        one_of("text", "json"),
        "Format of the log: lines for people, or a JSON object on each line.",
        group=LOGGING,
    )
    log_level: tuple[str, ...] = setting(
        ("info",),
        LOG_LEVELS,
        "Least level that is logged, or, as in `web=debug`, that of one component.",
        group=LOGGING,
    )
    admin_listen: tuple[str, ...] | None = setting(
        None,
        OPTIONAL_ENDPOINTS,
        "Twisted endpoints of the admin listener, with the status page, metrics and control;"
        " `none` opens no admin listener.",
        group=MONITORING,
        unset="a UNIX socket in the state directory that only its user can open; none if the"
        " bridge is embedded in an application",
    )
    admin_tokens: Mapping[str, Any] = setting(
        {},
        ADMIN_TOKENS,
        "Tokens for the admin listener, by name: `sha256` of each, or its `file`, and whether"
        ' its `role` is "view" or "control". Admin listeners on TCP need one.',
        group=MONITORING,
    )
    admin_hosts: tuple[str, ...] = setting(
        (),
        HOSTS,
        "Accepted values of the `Host` header at the admin listener, besides `localhost`,"
        " `127.0.0.1` and `[::1]`.",
        group=MONITORING,
    )
    metrics: bool = setting(
        True,
        FLAG,
        "Measure requests and count messages, for the status page and for Prometheus.",
        group=MONITORING,
    )
    tracing: bool = setting(
        False,
        FLAG,
        "Record spans of requests and send them by OTLP over HTTP, as the `OTEL_` environment"
        " variables say.",
        group=MONITORING,
    )
    trace_ratio: float = setting(
        1.0,
        PART,
        "Part of the requests that is recorded, of those whose parent does not decide that.",
        group=MONITORING,
    )
    drain_timeout: float = setting(
        30.0,
        SECONDS,
        "Seconds for which running requests may go on after SIGTERM.",
        group=COMMON,
    )
    fast_path: bool = setting(
        True,
        FLAG,
        "Handle ordinary POST requests without the overhead of a request object.",
        group=LISTENING,
        renamed_from="front_channel",
    )
    state_dir: str | None = setting(
        None,
        DIRECTORY,
        "Directory for the state file. If the bridge is killed, its next start uses this file to"
        " kill the processes and remove the containers that were left behind (Linux only).",
        group=PROCESSES,
        unset="`$STATE_DIRECTORY` if systemd sets it; otherwise `/run/mcpbridge` for root, and"
        " `$XDG_RUNTIME_DIR/mcpbridge` or `~/.local/state/mcpbridge` for other users",
    )
    strict: bool = setting(
        False,
        FLAG,
        "Refuse to start if any server in the file would be skipped; disabled servers do not"
        " count.",
        group=COMMON,
    )
    child_subreaper: bool | None = setting(
        None,
        OPTIONAL_FLAG,
        "Adopt processes that a backend leaves behind, so that they can be stopped (Linux only).",
        group=PROCESSES,
        unset="on if the bridge opens a listener",
    )

    @property
    def session_limit(self) -> int:
        """
        The most processes across all servers: `max_sessions`, or else what follows from
        the limits of the servers.

        Many servers with their default share a thousand, as they hardly ever need
        all of theirs at one time.  A server that was given more gets it.
        """
        if self.max_sessions is not None:
            return self.max_sessions
        given = (each.max_sessions for each in self.servers)
        return max(DEFAULT_BRIDGE_SESSIONS, sum(n for n in given if n > DEFAULT_SESSIONS))

    @property
    def connection_limit(self) -> int:
        """The most open connections: `max_connections`, or else what the sessions may need."""
        if self.max_connections is not None:
            return self.max_connections
        return max(DEFAULT_CONNECTIONS, CONNECTIONS_PER_SESSION * self.session_limit)

    def auth_of(self, server: ServerSettings) -> Auth | None:
        """Return who may use a server; None if everybody may.  Raises `SettingError`."""
        if server.auth is False:
            return None
        if not isinstance(server.auth, Mapping) and not isinstance(self.auth, Mapping):
            return None
        own = server.auth if isinstance(server.auth, Mapping) else {}
        ours = self.auth if isinstance(self.auth, Mapping) else {}
        both = merged(ours, own)
        auth = read_auth(both, f"mcpServers.{server.name}.auth" if own else "auth")
        if not auth.identifies:
            raise SettingError(
                f"mcpServers.{server.name}.auth" if own else "auth",
                "a way to tell who a caller is: `tokens`, `oauth`, `certificates`, `proxy` or"
                " `authenticator`",
                Described("none"),
            )
        if auth.oauth is not None and self.public_url is None:
            raise SettingError(
                "public_url",
                "the URL that clients use, such as `https://mcp.example.org`, because"
                " `auth.oauth` is set",
                Described("none"),
            )
        return auth

    def __post_init__(self) -> None:
        _check_all(self)
        SettingError.raise_all(self.contradictions())

    def contradictions(self) -> Iterator[SettingError]:
        """Yield what is wrong with settings that are right by themselves."""
        yield from self._wrong_auth()
        yield from self._wrong_limits()
        yield from unknown_components(self.log_level)
        listeners = [x for x in self.admin_listen or () if not x.startswith("unix:")]
        if [*listeners] not in ([], ["none"]) and not self.admin_tokens:
            yield SettingError(
                "admin_tokens",
                "a token (make one with `mcpbridge token NAME`), because other users of this"
                f" machine, at least, can reach {listeners[0]}",
                Described("none"),
            )
        for at, server in enumerate(self.servers):
            for other in self.servers[:at]:
                error = path_conflict(server, other) or path_conflict(other, server)
                if error is not None:
                    yield error

    def _wrong_auth(self) -> Iterator[SettingError]:
        """Yield each error once, though it may concern several servers."""
        seen: set[str] = set()
        for each in self.servers:
            try:
                self.auth_of(each)
            except SettingError as error:
                for one in (error, *error.others):
                    if str(one) not in seen:
                        seen.add(str(one))
                        yield one

    def _wrong_limits(self) -> Iterator[SettingError]:
        largest = max((each.max_message_bytes for each in self.servers), default=0)
        for name in ("max_request_bytes", "max_response_bytes", "max_request_bytes_per_address"):
            limit = getattr(self, name)
            if limit is not None and limit < largest:
                expected = f"at least {largest}, the size of one message (max_message_bytes)"
                yield SettingError(name, expected, limit)


def path_conflict(server: ServerSettings, other: ServerSettings) -> SettingError | None:
    """Return what is wrong with the path of a server beside another's, if anything."""
    name = f"mcpServers.{server.name}.base_uri"
    if server.base_uri == other.base_uri:
        got = Described(f"{server.base_uri!r}, which server {other.name!r} has already")
        return SettingError(name, "a path of its own", got)
    for path in SERVED_PATHS:
        if f"{server.base_uri}/".startswith(f"{other.base_uri}{path}/"):
            return SettingError(
                name,
                f"a path outside {other.base_uri + path!r}, which server {other.name!r} serves",
                server.base_uri,
            )
    return None
