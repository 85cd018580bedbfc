"""The command line: options become settings, and errors say what to do."""

import dataclasses
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Application, IService, IServiceMaker
from twisted.internet.endpoints import serverFromString
from twisted.logger import ILogObserver, LogLevel
from twisted.plugin import getPlugins
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]

from mcpbridge._version import __version__
from mcpbridge.bridge import Bridge
from mcpbridge.config.options import OPTIONS, label_of
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import SECRET_FILE_BYTES
from mcpbridge.errors import CannotListen
from mcpbridge.logs.json_lines import json_line
from mcpbridge.script import ConsoleOptions
from mcpbridge.tap import _STATUS_BYTES, Options, endpoint_of, makeService

CAT = {"command": "cat"}


def parsed(*arguments: str) -> BridgeSettings:
    options = Options()
    options.parseOptions(arguments)
    return options.settings


def refused(*arguments: str) -> str:
    """The one line that a user reads, and that makes the exit status 1."""
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    line = caught.value.code
    assert isinstance(line, str)
    assert "\n" not in line
    return line


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A file with one server."""
    path = tmp_path / "config.json"
    path.write_text('{"mcpServers": {"a": {"command": "cat"}}, "bridge": {"listen": ["tcp:1"]}}')
    return str(path)


# Valid command lines.


def test_a_command_alone_gives_all_defaults() -> None:
    """The defaults are those of the plugin."""
    server = ServerSettings(command="/bin/cat", args=("-u", "--listen", "x"), name="cat")
    assert parsed("/bin/cat", "-u", "--listen", "x") == BridgeSettings(servers=(server,))
    assert parsed("--", "/bin/cat", "-u", "--listen", "x") == BridgeSettings(servers=(server,))


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--base-uri /a/b", "base_uri", "/a/b"),
        ("--base-uri=", "base_uri", ""),
        ("--public-path /out", "public_path", "/out"),
        ("--max-sessions 7", "max_sessions", 7),
        ("--max-sessions +7", "max_sessions", 7),
        ("--ping-interval 0", "ping_interval", 0.0),
        ("--ping-interval 0.5", "ping_interval", 0.5),
        ("--stop-grace 3", "stop_grace", 3.0),
        ("--kill-grace 1e1", "kill_grace", 10.0),
        ("--peer-timeout 5", "peer_timeout", 5.0),
        ("--idle-timeout 0", "idle_timeout", 0.0),
        ("--idle-timeout 7.5", "idle_timeout", 7.5),
        ("--keepalive-interval 0", "keepalive_interval", 0.0),
        ("--keepalive-interval 3", "keepalive_interval", 3.0),
        ("--max-message-bytes 100", "max_message_bytes", 100),
        ("--max-waiting-messages 100", "max_waiting_messages", 100),
        ("--max-waiting-bytes 100", "max_waiting_bytes", 100),
        ("--warm 0", "warm", 0),
        ("--warm 3", "warm", 3),
        ("--reuse connection", "reuse", "connection"),
        ("--reuse identity", "reuse", "identity"),
        ("--reuse never", "reuse", "never"),
        ("--concurrency 1", "concurrency", 1),
        ("--input-timeout 0.5", "input_timeout", 0.5),
        ("--cwd /tmp", "cwd", "/tmp"),
        ("--cwd work", "cwd", os.path.abspath("work")),
        ("--env A=1 --env B=x=y --env C= --env A=2", "env", {"A": "2", "B": "x=y", "C": ""}),
        ("--pass-env A --pass-env B", "pass_env", ("A", "B")),
        ("--no-stderr-notifications", "stderr_notifications", False),
        ("--json-response", "json_response", True),
        ("--stderr-in-errors", "stderr_in_errors", True),
        ("--no-stderr-in-errors", "stderr_in_errors", False),
        ("--stderr-in-errors --no-stderr-in-errors", "stderr_in_errors", False),
        ("--no-containers --containers", "containers", True),
        ("--name other", "name", "other"),
        ("--probe-timeout 5", "probe_timeout", 5.0),
        ("--observers a.b --observers c.d", "observers", ("a.b", "c.d")),
        ('--options {"a":[1]}', "options", {"a": [1]}),
        ("--max-waiting-requests 1 --max-waiting-requests 2", "max_waiting_requests", 2),
    ],
)
def test_an_option_sets_a_setting_of_the_server(arguments: str, name: str, value: Any) -> None:
    [server] = parsed(*arguments.split(), "cat").servers
    assert server == ServerSettings(**{"command": "cat", "name": "cat", name: value})


def test_options_set_settings_of_the_bridge() -> None:
    settings = parsed(
        *("--listen", "tcp:1", "--listen", "unix:/tmp/x", "--access-log", "--no-child-subreaper"),
        *("--bridge-max-sessions", "3", "--max-sessions", "2", "cat"),
    )
    assert settings.listen == ("tcp:1", "unix:/tmp/x")
    assert settings.access_log is True
    assert settings.child_subreaper is False
    assert (settings.max_sessions, settings.servers[0].max_sessions) == (3, 2)


@pytest.mark.parametrize(("given", "value"), [("/run/x", "/run/x"), ("x", os.path.abspath("x"))])
def test_the_state_directory(given: str, value: str, config: str) -> None:
    """Beside a file too; absolute, as twistd changes directory when it becomes a daemon."""
    assert parsed("--state-dir", given, "cat").state_dir == value
    assert parsed("--config", config, "--state-dir", given).state_dir == value


@pytest.mark.parametrize(
    ("given", "value"), [("/run/x", "/run/x"), ("x", os.path.abspath("x")), ("-", "-")]
)
def test_the_audit_log(given: str, value: str) -> None:
    """A file, absolute for the same reason, or standard output."""
    assert parsed("--audit-log", given, "cat").audit_log == value


def test_a_file(config: str) -> None:
    settings = parsed("--config", config)
    assert [server.name for server in settings.servers] == ["a"]
    assert (settings.listen, settings.access_log) == (("tcp:1",), False)


def test_the_command_line_overrides_the_file(config: str) -> None:
    settings = parsed("--config", config, "--listen", "tcp:2", "--access-log")
    assert (settings.listen, settings.access_log) == (("tcp:2",), True)


@pytest.mark.parametrize("asked", ["--version", "version"])
def test_the_version(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(asked)
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"mcpbridge {__version__}\n"


def test_a_terminal_gets_help_of_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, widest in (("30", 49), ("80", 79), ("500", 99)):
        monkeypatch.setenv("COLUMNS", columns)
        assert max(map(len, str(Options()).split("Common options:")[1].splitlines())) <= widest


@pytest.mark.parametrize("asked", ["-h", "--help", "help"])
def test_the_help(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Examples and common options come first, then all others in groups."""
    with pytest.raises(SystemExit) as caught:
        parsed(asked)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: mcpbridge [options] COMMAND [ARG ...]\n")
    assert "`" not in text
    headings = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert headings[:3] == ["Examples", "Common options", "Listening"]
    words = " ".join(text.split())
    assert "(default: 16777216, which is 16 MiB)" in words
    assert "(default: no file; a new random key at each start)" in words
    assert text.splitlines()[-1] == "  twistd --uid=mcp mcpbridge [options] COMMAND"


def test_the_help_says_which_options_go_with_a_file() -> None:
    words = " ".join(str(Options()).split())
    found = re.search(r"With --config, these options are allowed: ([^.]*)\.", words)
    assert found is not None
    of_bridge = {f"--{each.name}" for each in OPTIONS if each.kind is BridgeSettings}
    others = {"--port", "--host", "--logfile", "--pidfile"}
    assert set(found[1].split(", ")) == of_bridge | others


@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_a_reader_of_the_help_may_leave(asked: str) -> None:
    """`mcpbridge --help | head` shows no traceback, neither now nor when stdout is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    with (
        os.fdopen(writing, "w") as stdout,
        redirect_stdout(stdout),
        pytest.raises(SystemExit) as caught,
    ):
        parsed(asked)
    assert caught.value.code == 0


def test_the_help_of_twistd_names_twistd() -> None:
    options = Options()
    options.parent = ServerOptions()
    assert str(options).startswith("Usage: twistd [options] mcpbridge [options] COMMAND")
    options.parent = ConsoleOptions()
    assert str(options).startswith("Usage: mcpbridge [options] COMMAND")


def test_every_setting_has_an_option_of_its_own_name() -> None:
    """The bridge's own limits on sessions are named apart from those of a server."""
    known = {each.rstrip("=") for each in Options().longOpt}
    text = str(Options())
    for kind in (BridgeSettings, ServerSettings):
        for field in dataclasses.fields(kind):
            if field.name in ("command", "args", "servers"):
                continue
            [option] = [each for each in OPTIONS if (each.kind, each.field) == (kind, field)]
            name = field.name.replace("_", "-")
            apart = {f"bridge-{name}"} if kind is BridgeSettings else {f"{name}-file"}
            assert option.name == name or {option.name} == apart
            assert option.name in known
            assert f"  {option.spelling}" in text
            if option.form == "flag":
                assert f"no-{option.name}" in known


def test_an_error_names_a_setting_by_option_and_key() -> None:
    assert label_of(ServerSettings, "max_sessions") == "--max-sessions (max_sessions)"
    assert label_of(BridgeSettings, "max_sessions") == "--bridge-max-sessions (bridge.max_sessions)"
    assert label_of(ServerSettings, "env.A") == "--env (env.A)"
    assert label_of(ServerSettings, "args[2]") == "COMMAND (args[2])"
    assert label_of(BridgeSettings, "mcpServers.a.cwd") == "mcpServers.a.cwd"


@pytest.mark.parametrize("old", ["--allow-host", "--allowed-host", "--allowed-hosts"])
def test_other_names_of_an_option(old: str) -> None:
    assert parsed(old, "a", "--allow-host", "b", "cat").allowed_hosts == ("a", "b")


def test_other_names_of_all_options() -> None:
    settings = parsed(
        *("--allow-origin", "https://a", "--allow-header", "x-a", "--trusted-proxy", "::1", "cat")
    )
    assert settings.allowed_origins == ("https://a",)
    assert settings.allowed_headers == ("x-a",)
    assert settings.trusted_proxies == ("::1",)


@pytest.mark.parametrize(("prefix", "value"), [("", True), ("no-", False)])
def test_an_option_of_a_former_name_works_with_one_warning(prefix: str, value: bool) -> None:
    options = Options()
    options.parseOptions([f"--{prefix}front-channel", f"--{prefix}front-channel", "cat"])
    assert options.settings.fast_path is value
    [notice] = options.notices
    assert notice == (
        "warn",
        f"--{prefix}front-channel is now --{prefix}fast-path; the former name still works",
    )
    options = Options()
    options.parseOptions([f"--{prefix}fast-path", "cat"])
    assert (options.settings.fast_path, options.notices) == (value, [])


@pytest.mark.parametrize(
    ("arguments", "listen"),
    [
        ("", "tcp:8808:interface=127.0.0.1"),
        ("--port 9", "tcp:9:interface=127.0.0.1"),
        ("--port 0", "tcp:0:interface=127.0.0.1"),
        ("--port 8 --port 9", "tcp:9:interface=127.0.0.1"),
        ("--host 0.0.0.0", "tcp:8808:interface=0.0.0.0"),
        ("--host localhost --port 65535", "tcp:65535:interface=localhost"),
        ("--host ::1 --port 9", r"tcp6:9:interface=\:\:1"),
        ("--host [::] --port 9", r"tcp6:9:interface=\:\:"),
    ],
)
def test_port_and_host_make_an_endpoint(arguments: str, listen: str, config: str) -> None:
    """They take the place of the listeners of a file."""
    assert parsed(*arguments.split(), "cat").listen == (listen,)
    if arguments:
        assert parsed("--config", config, *arguments.split()).listen == (listen,)


def test_an_endpoint_of_an_ipv6_address_can_be_opened(running_reactor: Any) -> None:
    endpoint = serverFromString(running_reactor, endpoint_of("::1", 7))
    assert (endpoint._interface, endpoint._port) == ("::1", 7)


def test_a_key_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("k" * 40 + "\n")
    [server] = parsed("--request-state-key-file", str(path), "cat").servers
    assert server.request_state_key == "k" * 40


def test_a_file_that_holds_no_key(tmp_path: Path) -> None:
    """An error shows nothing of the key, nor of what may be the key instead of a path."""
    path = tmp_path / "hush"
    name = "mcpbridge: --request-state-key-file (request_state_key): expected "
    for content, says in (
        (None, "a file that contains the key, got a file that cannot be read: No such file or"),
        (b"hush", "a string of at least 32 characters, got a string of 4 characters"),
        (b"\xff" * 40, "a file that contains the key, got a file that cannot be read: not a text"),
        (b"k" * (SECRET_FILE_BYTES + 1), "a file that contains the key, got a file of more than"),
    ):
        if content is not None:
            path.write_bytes(content)
        line = refused("--request-state-key-file", str(path), "cat")
        assert line.startswith(name + says)
        assert "hush" not in line
    line = refused("--request-state-key", "hush", "cat")
    assert "give --request-state-key-file FILE" in line
    assert "hush" not in line


def test_the_plugin() -> None:
    [maker] = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "mcpbridge"]
    assert maker.options is Options


def test_what_twistd_runs_is_a_bridge() -> None:
    options = Options()
    options.parseOptions(["cat"])
    service = makeService(options)
    assert isinstance(service, Bridge)
    assert IService.providedBy(service)
    assert service.settings is options.settings


@pytest.mark.parametrize("own", [None, "twisted.logger.textFileLogObserver"])
def test_twistds_application_gets_the_observer_of_the_log(own: str | None) -> None:
    """Unless the user has named another one (`twistd --logger`)."""
    options = Options()
    options.parent = ConsoleOptions()
    options.parent["logger"] = own
    options.parseOptions(["--log-format", "json", "--log-level", "web=error", "cat"])
    application = Application("mcpbridge")
    makeService(options).setServiceParent(application)
    observer: Any = application.getComponent(ILogObserver, None)
    if own is not None:
        assert observer is None
    else:
        assert observer.observer.formatEvent is json_line
        assert not observer.levels.logs("mcpbridge.web.site", LogLevel.warn)


@pytest.mark.parametrize(("log_format", "count"), [("json", 1), ("text", 0)])
def test_syslog_gets_no_json(log_format: str, count: int) -> None:
    options = Options()
    options.parent = ServerOptions()
    options.parent["syslog"] = True
    options.parseOptions(["--log-format", log_format, "cat"])
    assert len([each for each in options.notices if "--syslog" in each.text]) == count


def test_error_of_a_daemon_is_written_to_the_waiting_twistd(log_lines: list[str]) -> None:
    """In `_STATUS_BYTES`, as twistd reads no more; the log has all of it."""
    reading, writing = os.pipe()
    options = Options()
    options.parseOptions(["cat"])
    parent: Any = {"statusPipe": writing}
    options.parent = parent
    service: Any = makeService(options)
    text = "cannot listen: \u00e4 " + "x" * _STATUS_BYTES
    service._tell_parent(CannotListen(text))
    with open(reading, "rb") as pipe:
        status = pipe.read()
    assert status == b"1 " + text.replace("\u00e4", "\\xe4").encode()[: _STATUS_BYTES - 2]
    assert log_lines == [text]


# Errors.


@pytest.fixture(scope="module")
def labels() -> dict[str, str]:
    """What an error calls an option: with its key in a file."""
    labels = {f"--{option.name}": f"--{option.name} ({option.key})" for option in OPTIONS}
    return {"--port": "--port (bridge.listen)", "--host": "--host (bridge.listen)", **labels}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--max-sessions 0 cat", "--max-sessions: expected an integer ≥ 1, got 0"),
        (
            "--max-sessions ten cat",
            '--max-sessions: expected an integer ≥ 1, got "ten"',
        ),
        (
            "--max-sessions 1.5 cat",
            '--max-sessions: expected an integer ≥ 1, got "1.5"',
        ),
        (
            "--max-sessions --5 cat",
            '--max-sessions: expected an integer ≥ 1, got "--5"',
        ),
        ("--max-sessions ٣ cat", '--max-sessions: expected an integer ≥ 1, got "٣"'),
        ("--max-sessions= cat", '--max-sessions: expected an integer ≥ 1, got ""'),
        (
            "--max-message-bytes -1 cat",
            "--max-message-bytes: expected an integer ≥ 1, got -1",
        ),
        (
            "--max-waiting-messages x cat",
            "--max-waiting-messages: expected an integer ≥ 1,",
        ),
        (
            "--max-waiting-bytes x cat",
            "--max-waiting-bytes: expected an integer ≥ 1,",
        ),
        (
            "--ping-interval -1 cat",
            "--ping-interval: expected a number of seconds ≥ 0",
        ),
        ("--stop-grace soon cat", "--stop-grace: expected a number of seconds ≥ 0"),
        (
            "--kill-grace 1e7 cat",
            "--kill-grace: expected a number of seconds ≥ 0 and ≤ 1000000",
        ),
        ("--peer-timeout 0 cat", "--peer-timeout: expected a number of seconds > 0"),
        (
            "--idle-timeout -1 cat",
            "--idle-timeout: expected a number of seconds ≥ 0",
        ),
        (
            "--keepalive-interval x cat",
            "--keepalive-interval: expected a number of seconds ≥ 0",
        ),
        ("--warm -1 cat", "--warm: expected an integer ≥ 0, got -1"),
        ("--warm some cat", '--warm: expected an integer ≥ 0, got "some"'),
        (
            "--reuse always cat",
            '--reuse: expected `connection`, `identity` or `never`, got "always"',
        ),
        ("--reuse= cat", '--reuse: expected `connection`, `identity` or `never`, got ""'),
        ("--concurrency 0 cat", "--concurrency: expected an integer ≥ 1, got 0"),
        (
            "--input-timeout 0 cat",
            "--input-timeout: expected a number of seconds > 0",
        ),
        ("--json-response=1 cat", "--json-response takes no value"),
        ("--base-uri a cat", "--base-uri: expected an empty string, or a path"),
        ("--public-path a/ cat", "--public-path: expected an empty string, or a path"),
        (
            "--state-dir= cat",
            '--state-dir: expected the path of a directory, got ""',
        ),
        ("--cwd= cat", '--cwd: expected the path of a directory, got ""'),
        ("--env A cat", '--env: expected NAME=VALUE, got "A"'),
        ("--env =1 cat", "--env: expected NAME=VALUE, got a value without a name"),
        (
            "--pass-env A=1 cat",
            "--pass-env: expected a list of environment variable names, in which `*` matches",
        ),
        (
            "--allow-host= cat",
            "--allowed-hosts: expected a list of host names",
        ),
        (
            "--allow-origin x cat",
            "--allowed-origins: expected a list whose entries are origins",
        ),
        (
            "--allow-header * cat",
            "--allowed-headers: expected a list of HTTP header names",
        ),
        (
            "--max-message-bytes 999999999 --max-response-bytes 999999999 cat",
            "--max-request-bytes: expected at least 999999999, the size of",
        ),
        ("--listen= cat", "--listen: expected a list of endpoint descriptions"),
        ("--listen tcp:x cat", "--listen: expected an endpoint description"),
        ("--listen carrier:1 cat", "--listen: expected an endpoint description"),
        ("--listen tcp cat", "--listen: expected an endpoint description"),
        (
            "--listen 8808 cat",
            (
                "--listen: expected an endpoint description, such as"
                " `tcp:8808:interface=127.0.0.1`, got '8808': a port alone; for this machine:"
                " `tcp:8808:interface=127.0.0.1`"
            ),
        ),
        (
            "--config /no/such/file",
            "--config: expected a readable file, got /no/such",
        ),
        ("--options x cat", '--options: expected a JSON object, such as \'{"key": '),
        ("--options [] cat", "--options: expected an object, got a list"),
        ("--port x cat", '--port: expected a port from 0 to 65535, got "x"'),
        ("--port 65536 cat", "--port: expected a port from 0 to 65535, got "),
        ("--host= cat", "--host: expected an IP address or a host name, without"),
        ("--host a:1 cat", "--host: expected an IP address or a host name, wit"),
        ("--port 1 --listen tcp:2 cat", "--port cannot be combined with --listen; write address"),
        ("--host a --listen tcp:2 cat", "--host cannot be combined with --listen; write address"),
        ("--sessions 1 cat", "unknown option --sessions; did you mean --max-sessions?"),
        ("--prot 1 cat", "unknown option --prot; did you mean --port?"),
        ("--prot=1 cat", "unknown option --prot; did you mean --port?"),
        ("--qqq cat", "unknown option --qqq; for all options, run: mcpbridge --help"),
        ("-x cat", "unknown option -x; for all options, run: mcpbridge --help"),
        ("--max-sessions", "--max-sessions needs a value: --max-sessions N"),
        ("--allow-host", "--allow-host needs a value: --allowed-hosts HOST"),
        ("--port", "--port needs a value: --port N"),
        ("--max-waiting 1 cat", "--max-waiting is ambiguous: write --max-waiting-bytes or --max-w"),
        ("--request-state x cat", "--request-state is ambiguous: write --request-state-key-file"),
        ("--host 9 cat", "--host: expected an IP address or a host name, without a port"),
        ("--access-log=1 cat", "--access-log takes no value"),
    ],
)
def test_an_error_is_one_line(arguments: str, line: str, labels: dict[str, str]) -> None:
    """Wrong settings are errors that name the field, as an option and as a key."""
    said = refused(*arguments.split())
    option, colon, _ = line.partition(": ")
    label = labels.get(option, option) if colon else option
    assert said.startswith(f"mcpbridge: {line.replace(option, label, 1)}")


def test_a_missing_command_shows_examples() -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--port", "1")
    first, *others = str(caught.value.code).split("\n")
    assert first.startswith("mcpbridge: COMMAND is missing: give the command line of an MCP server")
    assert "  mcpbridge --port 9000 --config mcp.json" in others
    assert others[-1] == "For all options, run: mcpbridge --help"


def test_a_url_takes_the_place_of_a_command() -> None:
    [server] = parsed("--url", "http://127.0.0.1:1/mcp").servers
    assert (server.name, server.command, server.url) == ("remote", "", "http://127.0.0.1:1/mcp")
    assert "either `command` or `url`, got both" in refused("--url", "http://127.0.0.1:1/", "cat")


def test_an_option_of_twistd_is_pointed_to() -> None:
    options = Options()
    options.parent = ServerOptions()
    with pytest.raises(SystemExit, match="--rundir is an option of twistd: use `twistd --rundir"):
        options.parseOptions(["--rundir", "/", "cat"])


def test_options_that_twistd_has_too() -> None:
    options = Options()
    options.parent = ServerOptions()
    options.parseOptions(["--logfile", "a", "--pidfile", "b", "cat"])
    assert (options.parent["logfile"], options.parent["pidfile"]) == ("a", "b")


@pytest.mark.parametrize("name", ["--logfile", "--pidfile"])
def test_a_file_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    for path in ("", str(tmp_path), str(tmp_path / "missing" / "log")):
        assert refused(name, path, "cat") == (
            f'mcpbridge: {name}: expected the path of a writable file, got "{path}"'
        )


def test_an_empty_command() -> None:
    """keep: `command` is a non-empty string."""
    assert refused("") == 'mcpbridge: COMMAND (command): expected a non-empty string, got ""'


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_an_invalid_number_is_shown_as_given(text: str) -> None:
    assert refused("--ping-interval", text, "cat").endswith(f'got "{text}"')


def test_a_very_long_number_is_truncated() -> None:
    assert refused("--max-sessions", "9" * 5000, "cat").endswith("9999...")


@pytest.mark.parametrize("text", ["<a\nb", "\x1b[2J", "a\u2028b"])
def test_an_error_is_printable(text: str) -> None:
    assert refused("--base-uri", text, "cat").isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        "--base-uri /a",
        "--base-uri=",
        "--public-path /a",
        "--max-sessions 1",
        "--ping-interval 0",
        "--cwd .",
        "--env A=1",
        "--pass-env A",
        "--no-stderr-notifications",
        "--idle-timeout 1",
        "--keepalive-interval 1",
        "--json-response",
        "--stderr-in-errors",
        "--warm 1",
        "--reuse never",
        "--concurrency 1",
        "--input-timeout 1",
    ],
)
def test_server_options_cannot_be_combined_with_a_file(arguments: str, config: str) -> None:
    name = arguments.split()[0].partition("=")[0]
    [option] = [each for each in OPTIONS if name in (f"--{each.name}", f"--no-{each.name}")]
    assert refused("--config", config, *arguments.split()) == (
        f"mcpbridge: --{option.name} ({option.key}) cannot be combined with --config; set it in the"
        " file, in the server's object or in `bridge.defaults`"
    )


def test_a_command_cannot_be_combined_with_a_file(config: str) -> None:
    line = refused("--config", config, "cat")
    assert line == (
        'mcpbridge: COMMAND ("cat") cannot be combined with --config, which names the servers'
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([], "expected an object with `mcpServers`, got a list"),
        ({}, "expected an object of named servers, `mcpServers` (or"),
        ({"mcpServers": {"a": CAT}, "bridge": 1}, "bridge: expected an object, got a number"),
        (
            {"mcpServers": {"a": CAT}, "brigde": {}},
            "brigde: unknown key `brigde`; did you mean `bridge`?",
        ),
        (
            {"mcpServers": {"a": CAT}, "bridge": {"listen": ["tcp:x"]}},
            "bridge.listen[0]: expected an endpoint description",
        ),
        (
            {"mcpServers": {"a": {**CAT, "max_sessions": "10"}}},
            'mcpServers.a.max_sessions: expected an integer ≥ 1, got "10"',
        ),
    ],
)
def test_an_error_in_a_file_is_one_line(content: Any, line: str, tmp_path: Path) -> None:
    """Wrong settings are errors that name the field, as it stands in the file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    assert refused("--config", str(path)).startswith(f"mcpbridge: {path}:1: {line}")


def test_each_error_in_a_file_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(r'{"servers": {"a": {"args\u001b": []}}, "bridge": {"x\u001b": 1, "warm": 1}}')
    with pytest.raises(SystemExit) as caught:
        parsed("--config", str(path))
    lines = str(caught.value.code).split("\n")
    assert len(lines) == 4
    assert all(line.startswith(f"mcpbridge: {path}:1: ") for line in lines)
    assert all(line.isprintable() for line in lines)


def test_strict(tmp_path: Path) -> None:
    """An entry that cannot be served stops the others only with `--strict`."""
    path = tmp_path / "config.json"
    path.write_text('{"mcpServers": {"a": {"command": "cat"}, "b": {"url": "ftp://x"}}}')
    options = Options()
    options.parseOptions(["--config", str(path)])
    assert [server.name for server in options.settings.servers] == ["a"]
    [notice] = options.notices
    assert (notice.level, "mcpServers.b: not served" in notice.text) == ("error", True)
    line = refused("--strict", "--config", str(path))
    assert line.startswith(f"mcpbridge: {path}:1: mcpServers.b.url: expected an `http` or")


def test_a_listener_on_the_command_line_replaces_a_wrong_one(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"servers": {"a": {"command": "cat"}}, "bridge": {"listen": ["tcp:x"]}}')
    assert parsed("--config", str(path), "--listen", "tcp:1").listen == ("tcp:1",)


@pytest.mark.parametrize(
    ("extension", "reason"),
    [
        ("no.such.Launcher", "no.such.Launcher: ObjectNotFound: "),
        ("builtins.len", "builtins.len: TypeError: "),
        ("builtins.id", "check() attribute was not provided"),
    ],
)
def test_an_extension_without_its_interface_is_an_error(
    extension: str, reason: str, tmp_path: Path
) -> None:
    """It is reported at startup."""
    path = tmp_path / "config.json"
    server = {"command": "cat", "launcher": extension}
    path.write_text(json.dumps({"mcpServers": {"a": server}}))
    options = Options()
    options.parseOptions(["--config", str(path)])
    with pytest.raises(SystemExit) as caught:
        makeService(options)
    line = str(caught.value.code)
    assert line.startswith("mcpbridge: mcpServers.a.launcher: expected ")
    assert reason in line
    assert "\n" not in line
    options = Options()
    options.parseOptions(["--launcher", extension, "cat"])
    with pytest.raises(SystemExit) as caught:
        makeService(options)
    line = str(caught.value.code)
    assert line.startswith("mcpbridge: --launcher (launcher): expected ")
    assert reason in line


@pytest.fixture
def handlers() -> Iterator[None]:
    """Handlers of signals are what they were, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_signal_handlers_of_others_stay(running_reactor: Any) -> None:
    """Only Twisted's own are replaced."""

    def theirs(number: int, frame: Any) -> None:
        """Whatever they do."""

    signal.signal(signal.SIGINT, theirs)
    signal.signal(signal.SIGTERM, running_reactor.sigTerm)
    options = Options()
    options.parseOptions(["--listen", "tcp:0:interface=127.0.0.1", "cat"])
    service: Any = makeService(options)
    service._signals.install_stop()
    assert signal.getsignal(signal.SIGINT) is theirs
    assert signal.getsignal(signal.SIGTERM) != running_reactor.sigTerm


# The check of a command line.


def checked(*arguments: str) -> tuple[int, str]:
    """The exit status and what is printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code, printed.getvalue()


def test_check_of_a_command() -> None:
    status, text = checked("--check", "--env", "KEY=hush", "--", "cat", "--token", "hush")
    assert (status, "hush" in text) == (0, False)
    plain = " ".join(text.split())
    assert "cat paths /mcp /sse command cat --token *** program /" in plain
    assert "env KEY=***" in plain
    assert plain.endswith("The command line: no errors.")


def test_check_of_a_wrong_command_names_every_option() -> None:
    status, text = checked("--check", "--max-sessions", "0", "--nice", "99", "cat")
    assert status == 1
    assert "--max-sessions (max_sessions): expected an integer ≥ 1, got 0\n" in text
    assert "--nice (nice): expected an integer from -20 to 19, got 99\n" in text
    status, text = checked("--check", "--launcher", "no.such.Launcher", "--warm", "200", "cat")
    assert status == 1
    assert text.startswith("--launcher (launcher): expected the dotted name of a factory")
    assert "warm (200) leaves no room" in text
    status, text = checked("--check", "--json", "no-such-program-here")
    [error] = json.loads(text)["errors"]
    assert (status, error["file"], error["key"]) == (1, None, "COMMAND (command)")


def test_json_is_for_a_check() -> None:
    assert refused("--json", "cat") == "mcpbridge: --json is only for --check"


def test_check_with_a_file(config: str) -> None:
    status, text = checked("--check", "--config", config, "--listen", "tcp:0")
    assert (status, "tcp:0 can be reached from other machines" in text) == (1, True)
    assert "--config" in checked("--check", "--config", config, "cat")[1]
    status, text = checked("--check", "--config", config, "--listen", "tcp:0:interface=::1")
    assert status == 1
