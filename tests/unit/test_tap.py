"""The command line: an option becomes a setting, or one line says what is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService, IServiceMaker
from twisted.plugin import getPlugins

from mcpbridge._version import __version__
from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.tap import Options, makeService, option_of

CAT = {"command": "cat"}
TWISTD = Path(sys.executable).with_name("twistd")


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


# What is right.


def test_a_command_is_all_it_takes() -> None:
    """keep: the defaults are those of the plugin."""
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
    ],
)
def test_an_option_is_a_setting_of_the_server(arguments: str, name: str, value: Any) -> None:
    [server] = parsed(*arguments.split(), "cat").servers
    assert server == ServerSettings(command="cat", **{"name": "cat", name: value})


def test_options_of_the_bridge() -> None:
    settings = parsed("--listen", "tcp:1", "--listen", "unix:/tmp/x", "--access-log", "cat")
    assert settings.listen == ("tcp:1", "unix:/tmp/x")
    assert settings.access_log is True


@pytest.mark.parametrize(("given", "value"), [("/run/x", "/run/x"), ("x", os.path.abspath("x"))])
def test_the_state_directory(given: str, value: str, config: str) -> None:
    """Beside a file too; absolute, as twistd changes directory when it becomes a daemon."""
    assert parsed("--state-dir", given, "cat").state_dir == value
    assert parsed("--config", config, "--state-dir", given).state_dir == value


def test_a_file(config: str) -> None:
    settings = parsed("--config", config)
    assert [server.name for server in settings.servers] == ["a"]
    assert (settings.listen, settings.access_log) == (("tcp:1",), False)


def test_the_command_line_overrides_the_file(config: str) -> None:
    settings = parsed("--config", config, "--listen", "tcp:2", "--access-log")
    assert (settings.listen, settings.access_log) == (("tcp:2",), True)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"mcpbridge {__version__}\n"


def test_the_help_names_every_option() -> None:
    text = str(Options())
    for name in (
        "base_uri",
        "cwd",
        "max_sessions",
        "warm",
        "reuse",
        "concurrency",
        "input_timeout",
    ):
        assert name in ServerSettings.__dataclass_fields__
        assert f"--{name.replace('_', '-')}=" in text
    assert "COMMAND" in text


def test_the_help_has_a_short_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("-h")
    assert caught.value.code == 0
    assert "--max-sessions" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [ServerSettings, BridgeSettings])
def test_an_error_names_a_setting_by_its_option(kind: type[Any]) -> None:
    """And what has none, which is an error of a file, as it stands there."""
    known = {f"--{each.rstrip('=')}" for each in Options().longOpt} | {"COMMAND"}
    for field in dataclasses.fields(kind):
        named = option_of(field.name)
        assert named in known or named == field.name
    assert option_of("args[2]") == "COMMAND"
    assert option_of("mcpServers.a.cwd") == "mcpServers.a.cwd"


def test_every_option_is_what_an_error_names() -> None:
    """All options but those that concern no setting are names of settings."""
    fields = [*dataclasses.fields(ServerSettings), *dataclasses.fields(BridgeSettings)]
    named = {option_of(field.name) for field in fields}
    known = {f"--{each.rstrip('=')}" for each in Options().longOpt}
    assert known - named == {"--config", "--help", "--version"}


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


# What is wrong.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "COMMAND: expected the backend's command line, or --config, got <nothing>"),
        ("--max-sessions 0 cat", "--max-sessions: expected an integer ≥ 1, got 0"),
        ("--max-sessions ten cat", '--max-sessions: expected an integer ≥ 1, got "ten"'),
        ("--max-sessions 1.5 cat", '--max-sessions: expected an integer ≥ 1, got "1.5"'),
        ("--max-sessions --5 cat", '--max-sessions: expected an integer ≥ 1, got "--5"'),
        ("--max-sessions ٣ cat", '--max-sessions: expected an integer ≥ 1, got "٣"'),
        ("--max-sessions= cat", '--max-sessions: expected an integer ≥ 1, got ""'),
        ("--max-message-bytes -1 cat", "--max-message-bytes: expected an integer ≥ 1, got -1"),
        ("--max-waiting-messages x cat", "--max-waiting-messages: expected an integer ≥ 1,"),
        ("--max-waiting-bytes x cat", "--max-waiting-bytes: expected an integer ≥ 1,"),
        ("--ping-interval -1 cat", "--ping-interval: expected a number of seconds ≥ 0"),
        ("--stop-grace soon cat", "--stop-grace: expected a number of seconds ≥ 0"),
        ("--kill-grace 1e7 cat", "--kill-grace: expected a number of seconds ≥ 0 and ≤ 1000000"),
        ("--peer-timeout 0 cat", "--peer-timeout: expected a number of seconds > 0"),
        ("--idle-timeout -1 cat", "--idle-timeout: expected a number of seconds ≥ 0"),
        ("--keepalive-interval x cat", "--keepalive-interval: expected a number of seconds ≥ 0"),
        ("--warm -1 cat", "--warm: expected an integer ≥ 0, got -1"),
        ("--warm some cat", '--warm: expected an integer ≥ 0, got "some"'),
        (
            "--reuse always cat",
            '--reuse: expected `connection`, `identity` or `never`, got "always"',
        ),
        ("--reuse= cat", '--reuse: expected `connection`, `identity` or `never`, got ""'),
        ("--concurrency 0 cat", "--concurrency: expected an integer ≥ 1, got 0"),
        ("--input-timeout 0 cat", "--input-timeout: expected a number of seconds > 0"),
        ("--json-response=1 cat", "option --json-response must not have an argument"),
        ("--base-uri a cat", "--base-uri: expected an empty string or a path"),
        ("--public-path a/ cat", "--public-path: expected an empty string or a path"),
        ("--state-dir= cat", '--state-dir: expected the path of a directory, got ""'),
        ("--cwd= cat", '--cwd: expected the path of a directory, got ""'),
        ("--env A cat", '--env: expected NAME=VALUE, got "A"'),
        ("--env =1 cat", "--env: expected NAME=VALUE, got <no name>"),
        (
            "--pass-env A=1 cat",
            "--pass-env: expected a list of names of environment variables, in which `*` stands",
        ),
        ("--allow-host= cat", "--allow-host: expected a list of host names"),
        ("--allow-origin x cat", "--allow-origin: expected a list of origins"),
        ("--allow-header * cat", "--allow-header: expected a list of names of HTTP header"),
        (
            "--max-message-bytes 999999999 cat",
            "max_request_bytes: expected room for one message of 999999999 bytes",
        ),
        ("--listen= cat", "--listen: expected a list of endpoint descriptions"),
        ("--listen tcp:x cat", "--listen: expected an endpoint description"),
        ("--listen carrier:1 cat", "--listen: expected an endpoint description"),
        ("--listen tcp cat", "--listen: expected an endpoint description"),
        (
            "--listen 8808 cat",
            (
                "--listen: expected an endpoint description as in `tcp:8808:interface=127.0.0.1`,"
                " got <'8808': a port alone; for this machine: `tcp:8808:interface=127.0.0.1`>"
            ),
        ),
        (
            "--config /no/such/file",
            "--config: expected a file that can be read, got </no/such",
        ),
        ("--sessions 1 cat", "option --sessions not recognized"),
        ("-x cat", "option -x not recognized"),
        ("--max-sessions", "option --max-sessions requires argument"),
        ("--access-log=1 cat", "option --access-log must not have an argument"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: str, line: str) -> None:
    """keep: wrong settings are errors that name the field."""
    assert refused(*arguments.split()).startswith(f"mcpbridge: {line}")


def test_an_empty_command() -> None:
    """keep: `command` is a string that is not empty."""
    assert refused("") == 'mcpbridge: COMMAND: expected a string that is not empty, got ""'


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_number_that_is_none_is_shown_as_it_was_given(text: str) -> None:
    assert refused("--ping-interval", text, "cat").endswith(f'got "{text}"')


def test_a_number_with_very_many_digits() -> None:
    assert refused("--max-sessions", "9" * 5000, "cat").endswith("9999...")


@pytest.mark.parametrize("text", ["<a\nb", "\x1b[2J", "a\u2028b"])
def test_one_line_whatever_was_given(text: str) -> None:
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
def test_what_stands_in_a_file_does_not_stand_beside_it(arguments: str, config: str) -> None:
    name = arguments.split()[0].partition("=")[0]
    assert refused("--config", config, *arguments.split()) == (
        f"mcpbridge: {name}: expected to stand in the file of --config, got <an option>"
    )


def test_no_command_beside_a_file(config: str) -> None:
    line = refused("--config", config, "cat")
    assert line == 'mcpbridge: --config: expected no COMMAND beside it, got "cat"'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([], "expected an object with `mcpServers`, got <a list>"),
        ({}, "expected an object of named servers, `mcpServers` (or"),
        ({"mcpServers": {"a": CAT}, "bridge": 1}, "bridge: expected an object, got <a number>"),
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
def test_what_is_wrong_in_a_file_is_one_line(content: Any, line: str, tmp_path: Path) -> None:
    """keep: wrong settings are errors that name the field, as it stands in the file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    assert refused("--config", str(path)).startswith(f"mcpbridge: {path}:1: {line}")


def test_all_that_is_wrong_in_a_file_is_a_line_each(tmp_path: Path) -> None:
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
    path.write_text('{"mcpServers": {"a": {"command": "cat"}, "b": {"url": "https://x"}}}')
    options = Options()
    options.parseOptions(["--config", str(path)])
    assert [server.name for server in options.settings.servers] == ["a"]
    [notice] = options.notices
    assert (notice.level, "mcpServers.b: not served" in notice.text) == ("warn", True)
    line = refused("--strict", "--config", str(path))
    assert line.startswith(f"mcpbridge: {path}:1: mcpServers.b.url: a remote server")


def test_a_listener_on_the_command_line_takes_the_place_of_a_wrong_one(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"servers": {"a": {"command": "cat"}}, "bridge": {"listen": ["tcp:x"]}}')
    assert parsed("--config", str(path), "--listen", "tcp:1").listen == ("tcp:1",)


@pytest.mark.parametrize(
    ("extension", "reason"),
    [
        ("no.such.Launcher", "<no.such.Launcher: ObjectNotFound: "),
        ("builtins.len", "<builtins.len: TypeError: "),
        ("builtins.id", "check() attribute was not provided"),
    ],
)
def test_an_extension_that_is_none(extension: str, reason: str, tmp_path: Path) -> None:
    """What does not provide its interface is an error at the start."""
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


def twistd(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TWISTD, "-n", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=False,
    )


@pytest.fixture
def handlers() -> Iterator[None]:
    """Handlers of signals are what they were, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_handlers_of_others_stay(running_reactor: Any) -> None:
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
