"""
The settings: every default and every limit has its name here.

A setting is a field of a frozen dataclass with a check of its own, so that
the command line, the configuration file and an embedding application get the
same errors.  Knows no reactor and no file; `configfile` reads those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

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
    NETWORKS,
    OBJECT,
    OPTIONAL_PATH_PREFIX,
    ORIGINS,
    PATH_PREFIX,
    POSITIVE_SECONDS,
    SECONDS,
    SECRET,
    SHARE,
    TEXTS,
    Check,
    is_text,
)
from mcpbridge.config.tuning import MIB
from mcpbridge.errors import SettingError

#: Where the bridge listens when nothing is said.
DEFAULT_LISTEN = "tcp:8808:interface=127.0.0.1"
#: What a server serves below its base.
SERVED_PATHS = ("/sse", "/message", "/mcp")


def share_of(limit: int, share: int | None) -> int:
    """How much of so much one client address may have, where the setting may say nothing."""
    return max(1, limit // 2) if share is None else share


ENDPOINTS = Check(
    f"a list of endpoint descriptions, as in `{DEFAULT_LISTEN}`",
    lambda v: isinstance(v, (list, tuple)) and all(is_text(n) and n for n in v),
)


def setting(default: Any, check: Check, text: str) -> Any:
    """A field with its default, its check, and what it is for in one line."""
    return field(default=default, metadata={"check": check, "text": text})


def wrong_settings(kind: type[Any], values: Mapping[str, Any]) -> Iterator[SettingError]:
    """What is wrong with values of a class of settings, each by itself, in the order of fields."""
    for each in fields(kind):
        check: Check | None = each.metadata.get("check")
        if check is not None and each.name in values:
            yield from check.errors(each.name, values[each.name])


def _check_all(settings: Any) -> None:
    """Raise `SettingError` for the first field that its check does not accept."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    for error in wrong_settings(type(settings), values):
        raise error
    for name, value in values.items():
        if isinstance(value, list):
            object.__setattr__(settings, name, tuple(value))


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """
    One named server: how its backends are started, and what its sessions may do.

    Raises `SettingError` for the first setting that is wrong.
    """

    command: str = setting("", COMMAND, "The backend's program, found through its own PATH.")
    args: tuple[str, ...] = setting((), TEXTS, "Its arguments; no shell reads them.")
    name: str = setting("default", COMMAND, "The server's name, for the log.")
    env: Mapping[str, str] = field(
        default_factory=dict,
        metadata={"check": ENVIRONMENT, "text": "Environment variables of the backend."},
    )
    pass_env: tuple[str, ...] = setting(
        (),
        ENV_NAMES,
        "Variables of the bridge's own environment that the backend gets too; `*` stands for any"
        " characters, as in `AWS_*`.",
    )
    cwd: str | None = setting(
        None, DIRECTORY, "The backend's directory; one that is not there is said at the start."
    )
    base_uri: str = setting("", PATH_PREFIX, "The literal path before `/sse` and `/message`.")
    public_path: str | None = setting(
        None, OPTIONAL_PATH_PREFIX, "The base as clients see it, where a proxy rewrites paths."
    )
    max_sessions: int = setting(
        100, COUNT, "Backend processes at a time: those of sessions, and all others."
    )
    max_sessions_per_address: int | None = setting(
        None, SHARE, "How many of these one client address may have; half of them by default."
    )
    ping_interval: float = setting(30.0, SECONDS, "Seconds between pings of a session; 0: none.")
    stop_grace: float = setting(1.0, SECONDS, "Seconds from closing stdin to SIGTERM.")
    kill_grace: float = setting(2.0, SECONDS, "Seconds from SIGTERM to SIGKILL.")
    peer_timeout: float = setting(
        60.0, POSITIVE_SECONDS, "Seconds a client may take no byte while data waits for it."
    )
    min_transfer_rate: int = setting(
        512,
        COUNT_OR_NONE,
        "Bytes a second, over a minute, that a client must take of what waits for it, or send of a"
        " body; 0: any.",
    )
    max_message_bytes: int = setting(16 * MIB, COUNT, "The size of one message, either way.")
    max_waiting_messages: int = setting(1024, COUNT, "Messages that may wait for a backend.")
    max_waiting_bytes: int = setting(8 * MIB, COUNT, "Bytes that may wait for a backend.")
    stderr_notifications: bool = setting(
        True, FLAG, "Send stderr lines as notifications; on `/sse` alone."
    )
    stderr_log: str = setting(
        "log",
        Check("`log`, `file` or `none`", lambda v: v in ("log", "file", "none")),
        "Where stderr goes as it comes: to the log, to a file of the server in `stderr_dir`, or"
        " nowhere.",
    )
    stderr_dir: str | None = setting(
        None, DIRECTORY, "Directory for the files of `stderr_log: file`."
    )
    idle_timeout: float = setting(
        300.0, SECONDS, "Seconds a client of `/mcp` may stay away and say nothing; 0: for ever."
    )
    abandoned_grace: float = setting(
        60.0,
        SECONDS,
        "Seconds that nothing was heard of a client of `/mcp` before its session is ended where"
        " `max_sessions` is reached and another client comes; 0: it is never ended for that.",
    )
    keepalive_interval: float = setting(
        15.0, SECONDS, "Seconds between comments on an open stream of `/mcp`; 0: none."
    )
    json_response: bool = setting(False, FLAG, "Answer on `/mcp` with JSON alone, never events.")
    stderr_in_errors: bool = setting(
        False, FLAG, "Show the last lines of stderr in the errors of a session that ended."
    )
    warm: int = setting(0, COUNT_OR_NONE, "Processes that are started ahead, for whoever comes.")
    reuse: str = setting(
        "connection",
        Check(
            "`connection`, `identity` or `never`",
            lambda v: v in ("connection", "identity", "never"),
        ),
        "Which later requests of 2026-07-28 a process of an older server may serve: those on the"
        " same connection, all of the same identity, or none.",
    )
    concurrency: int = setting(
        16, COUNT, "Requests of 2026-07-28 at a time on one process of a server that speaks it."
    )
    max_process_age: float = setting(
        3600.0, SECONDS, "Seconds after which a process between two uses is replaced; 0: never."
    )
    max_process_requests: int = setting(
        1000, COUNT, "Requests of 2026-07-28 after which a process is replaced."
    )
    max_waiting_requests: int = setting(
        64, COUNT, "Requests of 2026-07-28 that may wait for a process."
    )
    queue_timeout: float = setting(10.0, POSITIVE_SECONDS, "Seconds that each of them may wait.")
    input_timeout: float = setting(
        600.0,
        POSITIVE_SECONDS,
        "Seconds that a call waits for what the client was asked, or a server's question for a"
        " client that reads it.",
    )
    task_timeout: float = setting(
        3600.0,
        POSITIVE_SECONDS,
        "Seconds that an unfinished task of 2026-07-28 keeps its process; its `ttlMs`, if shorter.",
    )
    start_timeout: float = setting(
        30.0,
        POSITIVE_SECONDS,
        "Seconds that a new process may take to answer `initialize`, and as many for `tools/list`;"
        " for requests of 2026-07-28, and where a session's client has left meanwhile.",
    )
    probe_timeout: float = setting(
        10.0, POSITIVE_SECONDS, "Seconds of silence after which a server is not of 2026-07-28."
    )
    request_state_key: str | None = setting(
        None,
        SECRET,
        "Signs what clients bring back of calls that wait for them; by default a random one.",
    )
    containers: bool = setting(
        True,
        FLAG,
        "Label the container that `docker run`, `podman run` or `nerdctl run` starts, and remove it"
        " when its session ends.",
    )
    container_init: bool = setting(
        False, FLAG, "Add `--init` to such a command, for a small init process in the container."
    )
    event_store: str | None = setting(None, DOTTED_NAME, "An `IEventStore` of your own.")
    launcher: str | None = setting(None, DOTTED_NAME, "An `IBackendLauncher` of your own.")
    limiter: str | None = setting(None, DOTTED_NAME, "An `ISessionLimiter` of your own.")
    observers: tuple[str, ...] = setting((), DOTTED_NAMES, "`ISessionObserver`s of your own.")
    filters: tuple[str, ...] = setting((), DOTTED_NAMES, "`IMessageFilter`s of your own.")
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"check": OBJECT, "text": "Anything, for the extensions named here."},
    )

    def __post_init__(self) -> None:
        _check_all(self)
        if self.stderr_log == "file" and self.stderr_dir is None:
            raise SettingError("stderr_dir", "a directory, as stderr_log is `file`", None)


@dataclass(frozen=True, kw_only=True)
class BridgeSettings:
    """
    The bridge: its listeners, its servers, and the limits over all of them.

    Raises `SettingError` for the first setting that is wrong.
    """

    servers: tuple[ServerSettings, ...] = ()
    listen: tuple[str, ...] = setting(
        (DEFAULT_LISTEN,), ENDPOINTS, "Where to listen: Twisted endpoint descriptions."
    )
    max_sessions: int = setting(1000, COUNT, "Sessions of all servers together.")
    max_connections: int = setting(10_000, COUNT, "Open connections of all listeners together.")
    max_request_bytes: int = setting(
        256 * MIB, COUNT, "Bytes of all requests together, until their answers are out."
    )
    max_sessions_per_address: int | None = setting(
        None, SHARE, "How many sessions one client address may have; half of them by default."
    )
    max_connections_per_address: int | None = setting(
        None, SHARE, "How many connections one client address may have; half of them by default."
    )
    max_request_bytes_per_address: int | None = setting(
        None, SHARE, "How much of `max_request_bytes` one client address may take; by default half."
    )
    exempt_addresses: tuple[str, ...] = setting(
        ("127.0.0.0/8", "::1", "unix"),
        NETWORKS,
        "Client addresses that may have all there is; `unix` is every UNIX socket.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        NETWORKS,
        "Proxies whose `X-Forwarded-For` or `Forwarded` names the client; nobody else's is read.",
    )
    max_response_bytes: int = setting(
        256 * MIB, COUNT, "Bytes of all answers that clients have not taken, and of kept events."
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        HOSTS,
        "What may stand in `Host`; by default anything, but on loopback its names, and from"
        " browsers these and addresses.",
    )
    allowed_origins: tuple[str, ...] = setting(
        (), ORIGINS, "Sites whose pages may use the bridge, beside its own; `*` is all."
    )
    allowed_headers: tuple[str, ...] = setting(
        (), HEADER_NAMES, "Request headers that such pages may send, beside those of MCP."
    )
    access_log: bool = setting(False, FLAG, "Log each request, session ids shortened.")
    front_channel: bool = setting(
        True, FLAG, "Answer plain posts before the ordinary HTTP channel; not with `access_log`."
    )
    state_dir: str | None = setting(
        None,
        DIRECTORY,
        "Directory for the bridge's state file, by which a later start cleans up after a bridge"
        " that was killed.",
    )
    strict: bool = setting(
        False, FLAG, "Start only if every server of the file can be served, but for disabled ones."
    )
    child_subreaper: bool | None = field(
        default=None,
        metadata={
            "check": Check("true, false or null", lambda v: v is None or isinstance(v, bool)),
            "text": "Adopt orphans of backends (Linux); by default when run by twistd.",
        },
    )

    def __post_init__(self) -> None:
        _check_all(self)
        largest = max((each.max_message_bytes for each in self.servers), default=0)
        for name in ("max_request_bytes", "max_response_bytes"):
            if getattr(self, name) < largest:
                raise SettingError(
                    name,
                    f"room for one message of {largest} bytes (max_message_bytes)",
                    getattr(self, name),
                )
        share = self.max_request_bytes_per_address
        if share is not None and share < largest:
            raise SettingError(
                "max_request_bytes_per_address",
                f"room for one message of {largest} bytes (max_message_bytes)",
                share,
            )
        for at, server in enumerate(self.servers):
            for other in self.servers[:at]:
                error = path_conflict(server, other) or path_conflict(other, server)
                if error is not None:
                    raise error


def path_conflict(server: ServerSettings, other: ServerSettings) -> SettingError | None:
    """What is wrong with the path of a server beside another's, if anything."""
    name = f"mcpServers.{server.name}.base_uri"
    if server.base_uri == other.base_uri:
        got = f"<{server.base_uri!r}, which server {other.name!r} has>"
        return SettingError(name, "a path of its own", got)
    for path in SERVED_PATHS:
        if f"{server.base_uri}/".startswith(f"{other.base_uri}{path}/"):
            return SettingError(
                name,
                f"a path that is not below {other.base_uri + path!r} of server {other.name!r}",
                server.base_uri,
            )
    return None
