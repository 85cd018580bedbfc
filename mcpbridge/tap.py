"""
`twistd mcpbridge`: options to settings to `Bridge`, nothing else.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any, ClassVar, NoReturn

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel
from twisted.python import usage

from mcpbridge._version import __version__
from mcpbridge.bridge import Bridge
from mcpbridge.config.file import Notice, read_config
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.errors import BridgeError, CannotListen, SettingError, SettingErrors
from mcpbridge.signals import SignalHandlers
from mcpbridge.web.listeners import make_endpoint

#: An integer; more digits than these are no setting's.
_DIGITS = re.compile(r"[+-]?[0-9]{1,30}")
#: Settings whose option is not called like them.
_OPTIONS = {
    "command": "COMMAND",
    "allowed_hosts": "--allow-host",
    "allowed_origins": "--allow-origin",
    "allowed_headers": "--allow-header",
    "trusted_proxies": "--trusted-proxy",
    "stderr_notifications": "--no-stderr-notifications",
    "front_channel": "--no-front-channel",
    "containers": "--no-containers",
}
#: What of a message twistd's parent reads of a daemon that cannot start.
_STATUS_BYTES = 100


class Options(usage.Options):
    """The command line; an option is named like its setting."""

    synopsis = "[options] COMMAND [ARG ...]"
    longdesc = (
        "Puts a stdio MCP server on the network over HTTP+SSE and Streamable HTTP, for clients of"
        " every revision of MCP: one backend process for one client session, and nothing is ever"
        " left behind."
        "  COMMAND and what follows it is the command line of the backend."
    )

    optFlags: ClassVar = [
        ["no-stderr-notifications", None, "Do not send the backend's stderr to clients of /sse."],
        ["strict", None, "Start only if every server of the file can be served."],
        ["access-log", None, "Log each request, session ids shortened."],
        ["no-front-channel", None, "Leave all requests to twisted.web's own channel."],
        ["json-response", None, "Answer on /mcp with JSON alone, never events."],
        ["stderr-in-errors", None, "Show the last stderr in the errors of a session that ended."],
        ["no-containers", None, "Do not label and remove containers that COMMAND starts."],
        ["container-init", None, "Add --init to a COMMAND that starts a container."],
    ]

    optParameters: ClassVar = [
        ["base-uri", None, None, "Literal path before /sse and /message; default empty."],
        ["public-path", None, None, "The base as clients see it, behind a proxy that rewrites."],
        ["max-sessions", None, None, "Sessions at a time; default 100."],
        [
            "max-sessions-per-address",
            None,
            None,
            "Of them for one client address; default half.",
        ],
        ["ping-interval", None, None, "Seconds between pings, 0 for none; default 30."],
        ["stop-grace", None, None, "Seconds from closing stdin to SIGTERM; default 1."],
        ["kill-grace", None, None, "Seconds from SIGTERM to SIGKILL; default 2."],
        ["peer-timeout", None, None, "Seconds a client may take no byte; default 60."],
        ["min-transfer-rate", None, None, "Bytes a second a client must take; default 512."],
        [
            "idle-timeout",
            None,
            None,
            "Seconds until an idle session ends, 0 for never; default 300.",
        ],
        [
            "keepalive-interval",
            None,
            None,
            "Seconds between comments on /mcp, 0: none; default 15.",
        ],
        ["max-message-bytes", None, None, "Size of one message; default 16777216."],
        ["max-waiting-messages", None, None, "Messages that may wait for a backend; default 1024."],
        ["max-waiting-bytes", None, None, "Bytes that may wait for a backend; default 8388608."],
        ["warm", None, None, "Processes that are started ahead; default 0."],
        [
            "reuse",
            None,
            None,
            "Reuse processes of older servers: connection, identity or never.",
        ],
        ["concurrency", None, None, "Requests of 2026-07-28 on one process; default 16."],
        ["input-timeout", None, None, "Seconds a call waits for the client's input; default 600."],
        ["stderr-log", None, None, "Where stderr goes: log, file or none; default log."],
        ["stderr-dir", None, None, "Directory for the files of --stderr-log file."],
        ["cwd", None, None, "The backend's directory."],
        ["state-dir", None, None, "Directory of the state file, for a start after kill -9."],
        ["config", None, None, "A JSON file with mcpServers, in the place of COMMAND."],
    ]

    #: How the text of an option becomes the value of a setting.
    _INTEGERS = (
        "max-sessions",
        "max-sessions-per-address",
        "max-message-bytes",
        "max-waiting-messages",
        "max-waiting-bytes",
        "warm",
        "concurrency",
        "min-transfer-rate",
    )
    _SECONDS = (
        "ping-interval",
        "stop-grace",
        "kill-grace",
        "peer-timeout",
        "idle-timeout",
        "keepalive-interval",
        "input-timeout",
    )
    _TEXTS = ("base-uri", "public-path", "cwd", "reuse", "stderr-log", "stderr-dir")
    #: Flags that concern one server.
    _FLAGS = (
        "no-stderr-notifications",
        "json-response",
        "stderr-in-errors",
        "no-containers",
        "container-init",
    )

    def __init__(self) -> None:
        super().__init__()
        self.listen: list[str] = []
        self.hosts: list[str] = []
        self.origins: list[str] = []
        self.headers: list[str] = []
        self.proxies: list[str] = []
        self.env: dict[str, str] = {}
        self.pass_env: list[str] = []
        self.command: tuple[str, ...] = ()
        self.settings = BridgeSettings()
        #: What the log says of the file at the start.
        self.notices: list[Notice] = []

    def opt_listen(self, description: str) -> None:
        """An endpoint to listen on; may repeat; default tcp:8808:interface=127.0.0.1."""
        self.listen.append(description)

    def opt_env(self, assignment: str) -> None:
        """An environment variable of the backend, NAME=VALUE; may repeat."""
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            got = "<no name>" if equals else assignment
            _fail(SettingError("--env", "NAME=VALUE", got))
        self.env[name] = value

    def opt_pass_env(self, name: str) -> None:
        """A variable of this environment that the backend gets too; may repeat."""
        self.pass_env.append(name)

    def opt_allow_host(self, host: str) -> None:
        """What may stand in Host; may repeat; by default anything, on loopback its names."""
        self.hosts.append(host)

    def opt_allow_origin(self, origin: str) -> None:
        """A site whose pages may use the bridge, as in https://example.org; may repeat."""
        self.origins.append(origin)

    def opt_allow_header(self, name: str) -> None:
        """A request header that pages of other sites may send too; repeatable."""
        self.headers.append(name)

    def opt_trusted_proxy(self, address: str) -> None:
        """A proxy, or a network of them, that names its clients in a header; may repeat."""
        self.proxies.append(address)

    opt_h = usage.Options.opt_help

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"mcpbridge {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        """An option that is not known, or lacks its value, is one line too."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"mcpbridge: {error}") from None

    def parseArgs(self, *command: str) -> None:
        """COMMAND [ARG ...]"""
        self.command = command

    def postOptions(self) -> None:
        """Make settings of it all, or say in one line what is wrong."""
        try:
            self.settings = self._read()
            for description in self.listen:
                check_endpoint(description)
        except SettingError as error:
            _fail(error)

    def _read(self) -> BridgeSettings:
        path = self["config"]
        bridge: dict[str, Any] = {}
        if self.listen:
            bridge["listen"] = tuple(self.listen)
        if self.hosts:
            bridge["allowed_hosts"] = tuple(self.hosts)
        if self.origins:
            bridge["allowed_origins"] = tuple(self.origins)
        if self.headers:
            bridge["allowed_headers"] = tuple(self.headers)
        if self.proxies:
            bridge["trusted_proxies"] = tuple(self.proxies)
        if self["access-log"]:
            bridge["access_log"] = True
        if self["no-front-channel"]:
            bridge["front_channel"] = False
        if self["state-dir"] is not None:
            # twistd changes directory when it becomes a daemon.
            bridge["state_dir"] = self["state-dir"] and os.path.abspath(self["state-dir"])
        if path is not None:
            self._refuse_with_config()
            return _as_options(lambda: _replaced(self._read_file(path), bridge))
        if not self.command:
            raise SettingError("COMMAND", "the backend's command line, or --config", "<nothing>")
        return _as_options(lambda: BridgeSettings(servers=(self._server(),), **bridge))

    def _read_file(self, path: str) -> BridgeSettings:
        return read_config(
            path,
            strict=bool(self["strict"]),
            notify=self.notices.append,
            # What the command line says of listeners takes the place of the file's.
            check_listen=(lambda _: None) if self.listen else endpoint_error,
        )

    def _refuse_with_config(self) -> None:
        """With a file, what concerns one server stands in the file."""
        if self.command:
            raise SettingError("--config", "no COMMAND beside it", self.command[0])
        given = [*self._INTEGERS, *self._SECONDS, *self._TEXTS]
        given = [name for name in given if self[name] is not None]
        given += ["env"] * bool(self.env) + ["pass-env"] * bool(self.pass_env)
        given += [name for name in self._FLAGS if self[name]]
        if given:
            raise SettingError(f"--{given[0]}", "to stand in the file of --config", "<an option>")

    def _server(self) -> ServerSettings:
        values: dict[str, Any] = {}
        for names, convert in (
            (self._INTEGERS, _integer),
            (self._SECONDS, _number),
            (self._TEXTS, str),
        ):
            for name in names:
                if self[name] is not None:
                    values[name.replace("-", "_")] = convert(self[name])
        for name in ("cwd", "stderr_dir"):
            if not values.get(name):
                continue
            # twistd changes directory when it becomes a daemon.
            try:
                values[name] = os.path.abspath(values[name])
            except FileNotFoundError:
                expected = "an absolute path, as the working directory was removed"
                option = f"--{name.replace('_', '-')}"
                raise SettingError(option, expected, values[name]) from None
        command, *arguments = self.command
        return ServerSettings(
            command=command,
            args=tuple(arguments),
            name=os.path.basename(command) or command,
            env=self.env,
            pass_env=tuple(self.pass_env),
            stderr_notifications=not self["no-stderr-notifications"],
            json_response=bool(self["json-response"]),
            stderr_in_errors=bool(self["stderr-in-errors"]),
            containers=not self["no-containers"],
            container_init=bool(self["container-init"]),
            **values,
        )


def endpoint_error(description: str) -> str | None:
    """Why no endpoint can be made of a description; None where one can."""
    try:
        make_endpoint(None, description)
    except Exception as error:
        return " ".join(str(error).split())
    return None


def check_endpoint(description: str) -> None:
    """Raise `SettingError` for a description that no endpoint can be made of."""
    why = endpoint_error(description)
    if why is not None:
        raise SettingError(
            "--listen",
            "an endpoint description as in `tcp:8808:interface=127.0.0.1`",
            f"<{description!r}: {why}>",
        )


def makeService(options: Options) -> IService:
    """What twistd runs."""
    try:
        return _Run(options)
    except SettingError as error:
        _fail(error)


class _Run(Bridge):
    """
    A bridge as all that twistd runs: it ends it, with a line and a status,
    where it cannot listen, and bears signals while it stops.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options.settings)
        self._notices = options.notices
        self._twistd: Any = options.parent or {}
        self._signals = SignalHandlers(
            self._reactor,
            running=lambda: bool(self.running),
            longest_stop=self.longest_stop,
            report=self.log_sessions,
        )

    def privilegedStartService(self) -> None:
        """Open the listeners, or exit."""
        # By now twistd has become a daemon, or will never.
        self._signals.install()
        try:
            super().privilegedStartService()
        except CannotListen as error:
            self._remove_pid_file()
            self._tell_parent(error)
            _fail(error)

    def startService(self) -> None:
        """Serve, and from when the reactor runs see to its signals."""
        for notice in self._notices:
            self.log.emit(
                LogLevel.levelWithName(notice.level), "{text}", text=_printable(notice.text)
            )
        super().startService()
        if not self.settings.listen:
            self.log.warn("nothing is served: there is no listener (listen)")
        self._reactor.callWhenRunning(self._signals.install_stop)

    def stopService(self) -> Deferred[Any]:
        """Stop; the handlers stay until nothing is left."""
        stopped = super().stopService()

        def restore(result: Any) -> Any:
            self._signals.restore()
            return result

        return stopped.addBoth(restore)

    def _tell_parent(self, error: BridgeError) -> None:
        """
        A daemon's terminal is gone: the log has the line, and the process
        that waits for the start is told, which would wait for ever.
        """
        pipe = self._twistd.get("statusPipe")
        if pipe is not None:
            self.log.critical("{error}", error=error)
            os.write(pipe, f"1 {error}".encode("ascii", "backslashreplace")[:_STATUS_BYTES])
            os.close(pipe)

    def _remove_pid_file(self) -> None:
        """Twistd removes it after an exception, but not after an exit."""
        path = self._twistd.get("pidfile")
        if path and os.path.isfile(path):
            with open(path, encoding="ascii") as file:
                if file.read().strip() == str(os.getpid()):
                    os.unlink(path)


def _as_options(build: Any) -> BridgeSettings:
    """Build settings; an error names the option instead of the setting."""
    try:
        built: BridgeSettings = build()
    except SettingErrors:
        raise
    except SettingError as error:
        raise SettingError(option_of(error.name), error.expected, error.got) from None
    return built


def option_of(name: str) -> str:
    """What a setting is called on the command line; as in a file, where it is in files alone."""
    setting, rest = re.fullmatch(r"(\w*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if setting == "args":
        return "COMMAND"
    option = _OPTIONS.get(setting) or f"--{setting.replace('_', '-')}"
    known = {f"--{each.rstrip('=')}" for each in Options().longOpt}
    if option in known or setting in _OPTIONS:
        return f"{option}{rest}"
    return name


def _replaced(settings: BridgeSettings, changes: dict[str, Any]) -> BridgeSettings:
    return dataclasses.replace(settings, **changes)


def _integer(text: str) -> Any:
    """The number a text stands for, or the text, which no check accepts."""
    return int(text) if _DIGITS.fullmatch(text) else text


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _fail(error: BridgeError) -> NoReturn:
    """A line for each thing that is wrong, and an exit status that is not 0."""
    lines = error.lines if isinstance(error, SettingErrors) else (str(error),)
    raise SystemExit("\n".join(f"mcpbridge: {_printable(line)}" for line in lines))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
