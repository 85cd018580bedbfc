"""
The plugin of `twistd`: options to settings to `Bridge`, nothing else.

The options are made from the settings' own metadata (`mcpbridge.config.options`).
"""

from __future__ import annotations

import dataclasses
import difflib
import getopt
import ipaddress
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogLevel
from twisted.python import usage
from twisted.python.components import Componentized

from mcpbridge._version import __version__
from mcpbridge.bridge import Bridge
from mcpbridge.check.command import as_json, check_file, check_settings, failed
from mcpbridge.check.report import Report
from mcpbridge.config.command_help import EXAMPLES, help_text
from mcpbridge.config.config_file import Notice
from mcpbridge.config.file import read_config
from mcpbridge.config.masking import printable
from mcpbridge.config.options import OPTIONS, Option, label_of
from mcpbridge.config.settings import BridgeSettings, ServerSettings, wrong_settings
from mcpbridge.errors import (
    BridgeError,
    CannotListen,
    Described,
    InternalError,
    SettingError,
    SettingErrors,
    ShuttingDown,
)
from mcpbridge.logs.observers import log_observer
from mcpbridge.memory import keep_collections_short, map_large_blocks
from mcpbridge.signals import SignalHandlers
from mcpbridge.systemd import ServiceManager
from mcpbridge.twisted_internals import dispatch_directly
from mcpbridge.web.listeners import make_endpoint

DEFAULT_PORT = 8808
DEFAULT_HOST = "127.0.0.1"
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)
#: How many bytes of a daemon's error message the waiting twistd reads.
_STATUS_BYTES = 100


class Options(usage.Options):
    """
    The command line of `mcpbridge`, and of `twistd mcpbridge`.

    A method for each option is added below this class.
    """

    def __init__(self) -> None:
        super().__init__()
        #: The values of each option in their order: texts, or true and false for a flag.
        self.given: dict[Option, list[Any]] = {}
        self.port: str | None = None
        self.host: str | None = None
        self.config: str | None = None
        self.command: tuple[str, ...] = ()
        self.settings = BridgeSettings()
        #: The servers that must be served if the file has them.
        self._required: set[str] = set()
        #: Lines about the settings, for the log at the start.
        self.notices: list[Notice] = []
        #: Whether to check the settings instead of serving, and to report in JSON.
        self.checks = False
        self.in_json = False

    def opt_port(self, port: str) -> None:
        """Port to listen on."""
        self.port = port

    def opt_host(self, host: str) -> None:
        """Address to listen on."""
        self.host = host

    def opt_config(self, path: str) -> None:
        """Serve the servers listed in a configuration file."""
        # It is read again at SIGHUP, and a daemon changes its directory.
        self.config = os.path.abspath(path) if path else path

    def opt_check(self) -> None:
        """Check the settings, print what would run, and exit."""
        self.checks = True

    def opt_json(self) -> None:
        """With --check, print JSON."""
        self.in_json = True

    def opt_request_state_key(self, key: str) -> None:
        """Refuse the key, which would be taken for the path of its file otherwise."""
        raise usage.UsageError(
            "--request-state-key cannot be used, because `ps` would show the key to every user;"
            " write the key to a file, and give --request-state-key-file FILE"
        )

    def opt_logfile(self, path: str) -> None:
        """Write the log to a file."""
        self._set_for_twistd("logfile", path)

    def opt_pidfile(self, path: str) -> None:
        """Write the process ID to a file."""
        self._set_for_twistd("pidfile", path)

    def opt_help(self) -> None:
        """Print the help and exit."""
        print_and_exit(str(self))

    opt_h = opt_help

    def opt_version(self) -> None:
        """Print the version and exit."""
        print_and_exit(f"mcpbridge {__version__}")

    def __str__(self) -> str:
        """Return the help."""
        program = self._program()
        command = f"{program} [options] COMMAND [ARG ...]"
        remote = f"{program} [options] --url URL"
        lines = [command, remote, f"{program} [options] --config FILE"]
        return help_text(lines, shutil.get_terminal_size().columns)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line.  Raises `SystemExit` with a line for each error."""
        options = list(sys.argv[1:] if options is None else options)
        if options in (["help"], ["version"]):
            options = [f"--{options[0]}"]
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"mcpbridge: {printable(self._explain(error))}") from None

    def parseArgs(self, *command: str) -> None:
        """Take COMMAND [ARG ...]."""
        self.command = command

    def postOptions(self) -> None:
        """
        Make the settings, or check them.  Raises `SystemExit` with a line for each error,
        and with an exit status after a check.
        """
        if self.in_json and not self.checks:
            raise SystemExit("mcpbridge: --json is only for --check")
        if self.config is None and not self.command and not self._has_url():
            raise SystemExit(
                "mcpbridge: COMMAND is missing: give the command line of an MCP server, --url URL,"
                f" or --config FILE\n\n{EXAMPLES}\nFor all options, run: {self._program()} --help"
            )
        if self.checks:
            report = self._check()
            text = as_json(report) if self.in_json else report.as_text()
            print_and_exit(text, report.status)
        try:
            self.settings = self._read()
        except SettingError as error:
            _fail(error)
        if self.settings.log_format == "json" and self.parent and self.parent["syslog"]:
            text = "log_format: syslog gets text, not JSON, because of --syslog"
            self.notices.append(Notice("warn", text))

    def _check(self) -> Report:
        """Find everything that is wrong."""
        try:
            if self.config is None:
                warnings = [each.text for each in self.notices]
                return check_settings(self._read(), os.environ, label_of, warnings)
            self._refuse_with_config()
            bridge = self._bridge_values()
            with _named_by_option(BridgeSettings):
                SettingError.raise_all(wrong_settings(BridgeSettings, bridge))
        except SettingError as error:
            return failed(self.config, error)
        return check_file(self.config, bridge, os.environ, self._check_listen(bridge))

    # Settings.

    def read_again(self) -> BridgeSettings:
        """
        Read the configuration file again, with the same options; `notices` are then those
        of this reading.

        Raises `SettingError`, also where a server that is served now cannot be served as the
        file says.
        """
        before, self.notices = self.notices, []
        self._required = {each.name for each in self.settings.servers}
        try:
            return self._read()
        except BaseException:
            self.notices = before
            raise

    def _bridge_values(self) -> dict[str, Any]:
        """Return what the options say of the bridge.  Raises `SettingError`."""
        bridge = self._values(BridgeSettings)
        listen = self._listen_on(bridge.get("listen"))
        if listen is not None:
            bridge["listen"] = listen
        for setting in ("listen", "admin_listen"):
            given = bridge.get(setting) or ()
            for description in () if given == ("none",) else given:
                check_endpoint(description, setting)
        return bridge

    def _read(self) -> BridgeSettings:
        bridge = self._bridge_values()
        if self.config is not None:
            self._refuse_with_config()
            with _named_by_option(BridgeSettings):
                return dataclasses.replace(self._read_file(self.config, bridge), **bridge)
        server = self._server()
        with _named_by_option(BridgeSettings):
            return BridgeSettings(servers=(server,), **bridge)

    def _values(self, kind: type[Any]) -> dict[str, Any]:
        """Return what the options say of one kind of settings."""
        return {
            option.setting: texts[-1] if option.form == "flag" else option.value(texts)
            for option, texts in self.given.items()
            if option.kind is kind
        }

    def _server(self) -> ServerSettings:
        command, *arguments = self.command or ("",)
        values = {
            "name": os.path.basename(command) or command or "remote",
            **self._values(ServerSettings),
        }
        with _named_by_option(ServerSettings):
            return ServerSettings(command=command, args=tuple(arguments), **values)

    def _has_url(self) -> bool:
        return any(each.kind is ServerSettings and each.setting == "url" for each in self.given)

    def _listen_on(self, listen: Sequence[str] | None) -> tuple[str, ...] | None:
        """Return the endpoint that --port and --host make; None without them."""
        given = "--port" if self.port is not None else "--host"
        if self.port is None and self.host is None:
            return None
        if listen is not None:
            text = f"{given} cannot be combined with --listen; write address and port into the"
            example = f"--listen tcp:{DEFAULT_PORT}:interface={DEFAULT_HOST}"
            raise SettingErrors([f"{text} endpoint, as in {example}"])
        port = str(DEFAULT_PORT) if self.port is None else self.port
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise SettingError("--port (bridge.listen)", "a port from 0 to 65535", port)
        return (endpoint_of(DEFAULT_HOST if self.host is None else self.host, int(port)),)

    def _read_file(self, path: str, bridge: dict[str, Any]) -> BridgeSettings:
        return read_config(
            path,
            strict=bool(bridge.get("strict")),
            notify=self.notices.append,
            required=self._required,
            check_listen=self._check_listen(bridge),
        )

    @staticmethod
    def _check_listen(bridge: dict[str, Any]) -> Callable[[str], str | None]:
        # Listeners of the command line replace those of the file.
        return (lambda _: None) if "listen" in bridge else endpoint_error

    def _refuse_with_config(self) -> None:
        """Raise `SettingErrors` for what concerns one server: it belongs in the file."""
        if self.command:
            command = json.dumps(self.command[0], ensure_ascii=False)
            text = f"COMMAND ({command}) cannot be combined with --config, which names the servers"
            raise SettingErrors([text])
        lines = [
            f"{option.label} cannot be combined with --config; set it in the file, in the"
            " server's object or in `bridge.defaults`"
            for option in self.given
            if option.kind is ServerSettings
        ]
        if lines:
            raise SettingErrors(lines)

    # The program around.

    def _program(self) -> str:
        """Return how this program is called."""
        default = "mcpbridge" if self.parent is None else "twistd [options] mcpbridge"
        return str(getattr(self.parent, "program", default))

    def _note_former(self, former: str, name: str) -> None:
        """Warn at the start, once, of an option that was renamed."""
        notice = Notice("warn", f"--{former} is now --{name}; the former name still works")
        if former and notice not in self.notices:
            self.notices.append(notice)

    def _set_for_twistd(self, name: str, path: str) -> None:
        """Set an option of twistd, which names a file and is read once these are parsed."""
        written = path if os.path.exists(path) else os.path.dirname(os.path.abspath(path))
        if not path or os.path.isdir(path) or not os.access(written, os.W_OK):
            shown = json.dumps(path, ensure_ascii=False)
            raise usage.UsageError(f"--{name}: expected the path of a writable file, got {shown}")
        if self.parent is not None:
            self.parent[name] = path

    def _hidden(self) -> set[str]:
        """Return options that are not to be suggested."""
        former = {each.renamed_from for each in OPTIONS}
        return {"request-state-key", *former, *(f"no-{each}" for each in former)}

    def _explain(self, error: usage.UsageError) -> str:
        """Say what is wrong with an option, and what to do."""
        cause = error.__context__
        if not isinstance(cause, getopt.GetoptError):
            return str(error)
        known = {each.rstrip("=") for each in self.longOpt} - self._hidden()
        name = cause.opt
        option = f"-{name}" if len(name) == 1 else f"--{name}"
        if "requires argument" in cause.msg:
            spelling = next(_spellings(name), "")
            return f"{option} needs a value" + (f": {spelling}" if spelling else "")
        if "must not have an argument" in cause.msg:
            return f"{option} takes no value"
        if "not a unique prefix" in cause.msg:
            meant = sorted(f"--{each}" for each in known if each.startswith(name))
            return f"{option} is ambiguous: write {' or '.join(meant)}"
        near = difflib.get_close_matches(name, sorted(known), n=1)
        if near:
            return f"unknown option {option}; did you mean --{near[0]}?"
        parents: Sequence[str] = getattr(self.parent, "longOpt", ())
        if name in {each.rstrip("=") for each in parents}:
            return f"{option} is an option of twistd: use `twistd {option} ... mcpbridge ...`"
        return f"unknown option {option}; for all options, run: {self._program()} --help"


def _spellings(name: str) -> Iterator[str]:
    """Yield how options of this name are written, with their values."""
    for option in OPTIONS:
        if name in (option.name, *option.old_names):
            yield option.spelling
    others = {"port": "N", "host": "ADDRESS", "config": "FILE", "logfile": "FILE"}
    others["pidfile"] = "FILE"
    if name in others:
        yield f"--{name} {others[name]}"


def _taking(option: Option, former: str = "") -> Callable[[Options, str], None]:
    def take(self: Options, value: str) -> None:
        self.given.setdefault(option, []).append(value)
        self._note_former(former, option.name)

    take.__doc__ = option.text
    return take


def _switching(option: Option, former: str = "", *, on: bool) -> Callable[[Options], None]:
    prefix = "" if on else "no-"

    def switch(self: Options) -> None:
        self.given.setdefault(option, []).append(on)
        self._note_former(former and f"{prefix}{former}", f"{prefix}{option.name}")

    switch.__doc__ = option.text
    return switch


def _add_options() -> None:
    """Give `Options` a method for each option, and for each of its other names."""
    for option in OPTIONS:
        names = {"": (option.name, *option.old_names)}
        if option.renamed_from:
            names[option.renamed_from] = (option.renamed_from,)
        for former, spelled in names.items():
            methods: dict[str, Any] = {"": _taking(option, former)}
            if option.form == "flag":
                methods = {
                    "": _switching(option, former, on=True),
                    "no_": _switching(option, former, on=False),
                }
            for prefix, method in methods.items():
                for name in spelled:
                    setattr(Options, f"opt_{prefix}{name.replace('-', '_')}", method)


_add_options()


def endpoint_of(host: str, port: int) -> str:
    """
    Describe a TCP endpoint of an address: IPv4, IPv6 with or without brackets, or a
    name.  Raises `SettingError`.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        version = ipaddress.ip_address(bare).version
    except ValueError:
        if not _HOST_NAME.fullmatch(host) or host.isdigit():
            raise SettingError(
                "--host (bridge.listen)", "an IP address or a host name, without a port", host
            ) from None
        version = 4
    if version == 6:
        return f"tcp6:{port}:interface={bare.replace(':', chr(92) + ':')}"
    return f"tcp:{port}:interface={bare}"


def endpoint_error(description: str) -> str | None:
    """Return why no endpoint can be made of a description; None if one can."""
    try:
        make_endpoint(None, description)
    except Exception as error:
        return " ".join(str(error).split())
    return None


def check_endpoint(description: str, setting: str = "listen") -> None:
    """Raise `SettingError` for a description that no endpoint can be made of."""
    if not description:
        return
    why = endpoint_error(description)
    if why is not None:
        raise SettingError(
            label_of(BridgeSettings, setting),
            "an endpoint description, such as `tcp:8808:interface=127.0.0.1`",
            Described(f"{description!r}: {why}"),
        )


def makeService(options: Options) -> IService:
    """Return what twistd runs."""
    try:
        return _Run(options)
    except SettingErrors as errors:
        _fail(SettingErrors([_with_option(options, line) for line in errors.lines]))
    except SettingError as error:
        _fail(SettingError(_with_option(options, error.name), error.expected, error.got))


def _with_option(options: Options, text: str) -> str:
    """Name the option in a text that begins with a setting of the only server."""
    prefix = f"mcpServers.{options.settings.servers[0].name}."
    if options.config is not None or not text.startswith(prefix):
        return text
    name, colon, rest = text.removeprefix(prefix).partition(": ")
    return f"{label_of(ServerSettings, name)}{colon}{rest}"


class _Run(Bridge):
    """
    The bridge as the only service of twistd.

    If it cannot listen, it ends the process with a line and an exit status.  It
    handles signals until it has stopped.
    """

    def __init__(self, options: Options) -> None:
        from twisted.internet import reactor

        # First: backends may get all variables that are there then.
        self._manager = ServiceManager.of(os.environ, cast("IReactorTime", reactor))
        super().__init__(options.settings, reactor, admin_socket=True)
        self._options = options
        self._twistd: Any = options.parent or {}
        self._undo_dispatch: Callable[[], None] = lambda: None
        self._undo_collections: Callable[[], None] = lambda: None
        self._signals = SignalHandlers(
            self._reactor,
            running=lambda: bool(self.running),
            bridge=self,
            report=self.log_sessions,
            reload=self._reload,
        )

    def setServiceParent(self, parent: Any) -> None:
        """Have twistd log as the settings say, which it begins when it has an application."""
        if isinstance(parent, Componentized) and not self._twistd.get("logger"):
            console = getattr(self._twistd, "console_observer", None)
            observer = log_observer(self.settings, self._twistd, console)
            parent.setComponent(ILogObserver, observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open the listeners, or exit."""
        # If twistd becomes a daemon, it has done so by now.
        self._signals.install()
        try:
            super().privilegedStartService()
        except CannotListen as error:
            self._remove_pid_file()
            self._tell_parent(error)
            _fail(error)

    def startService(self) -> None:
        """Serve, and handle the reactor's signals as soon as it runs."""
        self._log_notices(self._options.notices)
        super().startService()
        # The process is the bridge's, and so is its reactor.
        self._undo_dispatch = dispatch_directly(self._reactor)
        if not self.settings.listen:
            self.log.warn("nothing is served: there is no listener (--listen, bridge.listen)")
        self._reactor.callWhenRunning(self._signals.install_stop)
        self._reactor.callWhenRunning(self._tell_ready)
        self._undo_collections = keep_collections_short()
        map_large_blocks()

    def drain(self) -> Deferred[None]:
        """Finish what runs, as `Bridge.drain`; the service manager is told."""
        drained = super().drain()
        self._tell_stopping()
        return drained

    def stopService(self) -> Deferred[Any]:
        """Stop; signals are handled until nothing is left."""
        stopped = super().stopService()
        self._tell_stopping()

        def restore(result: Any) -> Any:
            self._manager.stop()
            self._undo_dispatch()
            self._signals.restore()
            self._undo_collections()
            return result

        return stopped.addBoth(restore)

    def _tell_ready(self) -> None:
        count = len(self.settings.servers)
        self._manager.ready(f"serving {count} server{'' if count == 1 else 's'}")

    def _tell_stopping(self) -> None:
        left = self.draining_for()
        seconds = self.longest_stop() + (self.settings.drain_timeout if left else 0)
        self._manager.stopping(f"finishing {left}" if left else "ending sessions", seconds)

    def _log_notices(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            level = LogLevel.levelWithName(notice.level)
            self.log.emit(level, "{text}", text=printable(notice.text))

    def _reload(self) -> bool:
        """Do that at SIGHUP; return False if the settings are from no file."""
        if self._options.config is None:
            return False
        try:
            self._load("SIGHUP")
        except BridgeError:
            # The log says why.
            pass
        return True

    def reload_file(self) -> str:
        """Read the file of the settings again; return what has changed, in one line."""
        if self._options.config is None:
            return super().reload_file()
        if self.condition != "serving":
            raise ShuttingDown("the bridge is shutting down, so its settings stay as they are")
        return self._load("reload")

    def _load(self, cause: str) -> str:
        """
        Read the file of the settings again, and tell the service manager meanwhile; return
        what has changed, in one line.

        Logs what comes of it.  Raises `SettingErrors`, `ShuttingDown` and `InternalError`.
        """
        if self.condition != "serving":
            raise ShuttingDown("the bridge is shutting down")
        self._manager.reloading()
        try:
            return self._load_anew(cause)
        finally:
            self._tell_ready()

    def _load_anew(self, cause: str) -> str:
        options = self._options
        before = options.notices
        known = set(before)
        try:
            settings = options.read_again()
            changed = self.reload(settings)
            options.settings = settings
        except BridgeError as error:
            options.notices = before
            self.counters.reloads["failed"] += 1
            lines = [printable(each) for each in _lines_of(error)]
            for line in lines:
                self.log.error("{line}", line=line)
            self.log.error(
                "{what}: {file} was not loaded, and nothing has changed; the errors are above,"
                " and `mcpbridge check` shows them all",
                what=cause,
                file=options.config,
            )
            raise SettingErrors(lines) from None
        except Exception:
            options.notices = before
            self.counters.reloads["failed"] += 1
            self.log.failure(
                "{what}: {file} could not be loaded; restart the bridge",
                what=cause,
                file=options.config,
            )
            raise InternalError.of_ours() from None
        self.counters.reloads["loaded"] += 1
        self._log_notices([each for each in options.notices if each not in known])
        changed = printable(changed)
        self.log.info(
            "{what}: loaded {file}: {changed}", what=cause, file=options.config, changed=changed
        )
        return changed

    def _tell_parent(self, error: BridgeError) -> None:
        """
        Tell the process that waits for a daemon to start, which would wait for ever,
        and write the error to the log, as the daemon has no terminal.
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


@contextmanager
def _named_by_option(kind: type[Any]) -> Iterator[None]:
    """Name the option in the errors of settings that the command line gives."""
    try:
        yield
    except SettingErrors:
        raise
    except SettingError as error:
        named = [
            SettingError(
                "--config" if each.name == "config" else label_of(kind, each.name),
                each.expected,
                each.got,
            )
            for each in (error, *error.others)
        ]
        raise (named[0] if len(named) == 1 else SettingErrors([*map(str, named)])) from None


def _fail(error: BridgeError) -> NoReturn:
    """Exit with status 1 and a line for each error."""
    raise SystemExit("\n".join(f"mcpbridge: {printable(line)}" for line in _lines_of(error)))


def _lines_of(error: BridgeError) -> Sequence[str]:
    return error.lines if isinstance(error, SettingErrors) else (str(error),)


def print_and_exit(text: str, status: int = 0) -> NoReturn:
    """Print a text and exit with a status, even if its reader, such as `head`, has left."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits, and must not fail then.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    raise SystemExit(status)
