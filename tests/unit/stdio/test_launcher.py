"""What a launcher spawns, for a backend that is a container and for one that is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from zope.interface.verify import verifyObject

from mcpbridge.bridge import Bridge
from mcpbridge.config.confinement import ResourceLimits
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import CONTAINER_STOP_SECONDS, STOP_SLACK_SECONDS
from mcpbridge.errors import CannotStart, SettingError
from mcpbridge.interfaces import IEnvironmentLauncher
from mcpbridge.pacer import PACED_SECONDS, Pacer
from mcpbridge.stdio import launcher as module
from mcpbridge.stdio.backend import StdioBackend
from mcpbridge.stdio.exec_chain import Compiled
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.private_tmp import PrivateFolder
from mcpbridge.stdio.process_tags import new_base
from mcpbridge.stdio.process_tracker import ProcessTracker
from mcpbridge.stdio.watchdog import END_SECONDS
from mcpbridge.testing import FakeReactor
from tests.fakes import CleanupTable


class Plain:
    """A chain that changes nothing."""

    closes_descriptors = False

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        return command


class Receiver:
    """Hears of the backend's end."""

    def input_closed(self, reason: str) -> None: ...

    def output_closed(self, reason: str) -> None: ...


class Made:
    """A launcher in front of a program that exists."""

    def __init__(self, folder: Path, name: str, *arguments: str, **settings: Any) -> None:
        self.program = folder / name
        self.program.touch()
        self.program.chmod(0o755)
        self.reactor = FakeReactor()
        self.records = CleanupTable()
        self.launcher = LocalLauncher(
            ServerSettings(command=str(self.program), args=arguments, **settings),
            self.reactor,
            ProcessTracker(self.reactor, new_base()),
            {"TMPDIR": str(folder)},
            chain=Plain,
            cleanup=self.records,
            bridge_id="b",
        )

    def launch(self) -> Any:
        """A backend that runs."""
        launched: list[Any] = []
        self.launcher.launch(Receiver(), "0c8a4a3e").addCallback(launched.append)
        return launched[0]

    def end(self) -> None:
        """The last process ends, and so do the looks for the rest of its tree."""
        self.reactor.processes[-1].end()
        self.reactor.pump([0.1] * 20)


class SlowReactor(FakeReactor):
    """A spawn takes the whole time that an iteration has for it."""

    def spawnProcess(self, *arguments: Any, **options: Any) -> Any:
        self.rightNow += PACED_SECONDS
        return super().spawnProcess(*arguments, **options)

    def iterate(self) -> list[str]:
        """Run what is due, as one iteration; return the programs that were spawned."""
        before = len(self.processes)
        calls, self.calls = self.calls, []
        for call in calls:
            call.called = 1
            call.func(*call.args, **call.kw)
        return [os.path.basename(each.line[0]) for each in self.processes[before:]]


def test_starts_are_paced_and_servers_take_turns(tmp_path: Path) -> None:
    """`PACED_SECONDS`: nobody else waits longer, and a start that is cancelled is given up."""
    reactor = SlowReactor()
    pacer = Pacer(reactor)
    tracker = ProcessTracker(reactor, 0)
    launchers = {}
    for name in ("many", "few"):
        program = tmp_path / name
        program.touch(0o755)
        settings = ServerSettings(command=str(program))
        launchers[name] = LocalLauncher(settings, reactor, tracker, {}, Plain, pacer=pacer)
    started: list[Any] = []
    waiting = [launchers[name].launch(Receiver(), "") for name in ("many",) * 4 + ("few",)]
    for each in waiting:
        each.addBoth(started.append)
    assert len(started) == len(reactor.processes) == 1
    waiting[2].cancel()
    assert started[1].check(CancelledError)
    assert [reactor.iterate() for _ in range(4)] == [["many"], ["few"], ["many"], []]
    assert all(isinstance(each, StdioBackend) for each in (*started[:1], *started[2:]))
    assert len(started) == 5
    for backend in (*started[:1], *started[2:]):
        backend.stop()
    for process in reactor.processes:
        process.end()
    for _ in range(20):
        reactor.pump([0.1] * 10)
    assert reactor.getDelayedCalls() == []


def test_a_container_is_labelled(tmp_path: Path) -> None:
    made = Made(tmp_path, "docker", "run", "-i", "x")
    assert made.launcher.starts_containers
    backend = made.launch()
    [process] = made.reactor.processes
    [value] = made.records
    assert process.line[:2] == [str(made.program), "run"]
    assert process.line[-2:] == ["-i", "x"]
    assert f"--label=mcpbridge.session={value}" in process.line
    # Its end is that of the container, whatever becomes of the CLI.
    made.end()
    stopped = backend.stop()
    [_, asked] = made.reactor.processes
    assert "ps" in asked.line
    assert not stopped.called
    asked.end()
    assert stopped.called
    assert made.records == {}


@pytest.mark.parametrize(
    ("name", "arguments", "settings"),
    [
        ("cat", ["run", "-i", "x"], {}),
        ("docker", ["exec", "-i", "x"], {}),
        ("docker", ["run", "-i", "x"], {"containers": False}),
    ],
)
def test_other_commands_run_unchanged(
    tmp_path: Path, name: str, arguments: list[str], settings: dict[str, Any]
) -> None:
    made = Made(tmp_path, name, *arguments, **settings)
    assert not made.launcher.starts_containers
    stopped = made.launch().stop()
    assert made.reactor.processes[0].line == [str(made.program), *arguments]
    made.end()
    assert len(made.reactor.processes) == 1
    assert stopped.called


def test_command_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each session: what is no container starts as fast as ever."""
    made = Made(tmp_path, "cat")
    monkeypatch.delattr(module, "parse_container_command")
    made.launch().stop()
    made.end()


def test_a_container_that_cannot_be_started(tmp_path: Path) -> None:
    """Nothing of it is remembered, and nobody is asked for it."""
    made = Made(tmp_path, "podman", "run", "-i", "x")
    made.reactor.spawn_error = BlockingIOError(11, "Resource temporarily unavailable")
    failures: list[Any] = []
    made.launcher.launch(None, "0c8a4a3e").addErrback(failures.append)
    assert failures[0].check(CannotStart)
    assert made.records == {}
    assert made.reactor.processes == []


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("docker", ["run", "-i", "x"], None),
        (
            "docker",
            ["run", "-it", "x"],
            "`docker run`: `-t` turns its pipes, which carry messages, into",
        ),
        ("cat", ["run", "-it", "x"], None),
    ],
)
def test_doubtful_options_are_reported_at_startup(
    tmp_path: Path, name: str, arguments: list[str], says: str | None
) -> None:
    problem = Made(tmp_path, name, *arguments).launcher.check()
    if says is None:
        assert problem is None
    else:
        assert problem is not None
        assert problem.startswith(says)


@pytest.mark.parametrize("command", ["docker", "cat"])
def test_the_stop_of_the_bridge_leaves_time_for_the_engine(command: str) -> None:
    """And has an end: `CONTAINER_STOP_SECONDS`."""
    server = ServerSettings(command=command, args=("run", "-i", "x"), stop_grace=1, kill_grace=2)
    bridge = Bridge(BridgeSettings(servers=(server,), listen=()), FakeReactor())
    extra = CONTAINER_STOP_SECONDS if command == "docker" else 0
    assert bridge.longest_stop() == 3 + STOP_SLACK_SECONDS + extra + END_SECONDS


# Variables of a client (`env_from`).

RULES: Any = {"TOKEN": {"header": "X-Token"}}


def launched_with(made: Made, environment: dict[str, str]) -> Any:
    launched: list[Any] = []
    launching = made.launcher.launch_with(Receiver(), "0c8a4a3e", environment)
    launching.addCallback(launched.append)
    return launched[0]


def test_a_backend_has_the_variables_of_its_client(tmp_path: Path) -> None:
    """They take precedence over `env`, and the next backend has none of them."""
    made = Made(tmp_path, "cat", env={"TOKEN": "default", "A": "1"}, env_from=RULES)
    verifyObject(IEnvironmentLauncher, made.launcher)
    backends = [launched_with(made, {"TOKEN": "hush"}), made.launch()]
    one, other = made.reactor.processes
    assert (one.env["TOKEN"], one.env["A"]) == ("hush", "1")
    assert (other.env["TOKEN"], other.env["A"]) == ("default", "1")
    assert "hush" not in "".join(one.line)
    for backend in backends:
        backend.stop()
    one.end()
    made.end()


def test_a_variable_is_utf8_whatever_the_locale_is(tmp_path: Path) -> None:
    made = Made(tmp_path, "cat", env_from=RULES)
    backend = launched_with(made, {"TOKEN": "Jos\xe9"})
    assert os.fsencode(made.reactor.processes[0].env["TOKEN"]) == b"Jos\xc3\xa9"
    backend.stop()
    made.end()


def test_a_container_gets_a_variable_of_its_client_by_name(tmp_path: Path) -> None:
    """No command line has the value, nor have later commands of the engine the variable."""
    made = Made(tmp_path, "docker", "run", "-i", "x", env_from=RULES)
    backend = launched_with(made, {"TOKEN": "hush"})
    [process] = made.reactor.processes
    assert "--env=TOKEN" in process.line
    assert process.line[-2:] == ["-i", "x"]
    assert process.env["TOKEN"] == "hush"
    assert "hush" not in "".join(process.line) + repr(made.records)
    made.end()
    backend.stop()
    [_, asked] = made.reactor.processes
    assert "TOKEN" not in asked.env
    asked.end()


@pytest.mark.parametrize("containers", [True, False])
def test_a_container_gets_no_variable_that_its_client_has_not_given(
    tmp_path: Path, containers: bool
) -> None:
    made = Made(tmp_path, "docker", "run", "-i", "x", env_from=RULES, containers=containers)
    backend = made.launch()
    assert not [each for each in made.reactor.processes[0].line if "TOKEN" in each]
    made.end()
    backend.stop()
    for process in made.reactor.processes[1:]:
        process.end()


def test_a_container_that_is_not_labelled_gets_the_variables_too(tmp_path: Path) -> None:
    made = Made(tmp_path, "docker", "run", "-i", "x", env_from=RULES, containers=False)
    launched_with(made, {"TOKEN": "hush"}).stop()
    line = made.reactor.processes[0].line
    assert line == [str(made.program), "run", "--env=TOKEN", "-i", "x"]
    made.end()


def test_an_option_must_not_set_a_variable_of_clients(tmp_path: Path) -> None:
    """It would count instead, so that a client would use the operator's credentials."""
    with pytest.raises(SettingError) as caught:
        Made(tmp_path, "docker", "run", "-e", "TOKEN=hush", "x", env_from=RULES)
    assert str(caught.value) == (
        "mcpServers.default.env_from.TOKEN: expected a variable that no `--env` in `args` sets;"
        " put a default into `env`, and `--env TOKEN` into `args` if need be, got a value in `args`"
    )
    Made(tmp_path, "docker", "run", "-e", "TOKEN", "x", env_from=RULES)


# Confinement.


def test_private_directory_of_a_process(tmp_path: Path) -> None:
    """It is in the environment, whatever else is, and goes with the process."""
    made = Made(tmp_path, "cat", private_tmp=True)
    backend = launched_with(made, {"TMP": "/elsewhere"})
    [process] = made.reactor.processes
    directory = Path(process.env["TMPDIR"])
    assert directory.is_dir()
    assert process.env["TMP"] == process.env["TEMP"] == str(directory)
    assert directory.parent.parent == tmp_path
    assert len(made.records) == 1
    stopped = backend.stop()
    made.end()
    assert stopped.called
    assert not directory.exists()
    # Nobody stops this launcher's folder: it goes with the last directory.
    assert made.records == {}
    assert not directory.parent.exists()


def test_process_that_cannot_be_started_leaves_no_directory(tmp_path: Path) -> None:
    made = Made(tmp_path, "cat", private_tmp=True)
    made.reactor.spawn_error = BlockingIOError(11, "Resource temporarily unavailable")
    failures: list[Any] = []
    made.launcher.launch(None, "0c8a4a3e").addErrback(failures.append)
    assert failures[0].check(CannotStart)
    assert [each.name for each in tmp_path.iterdir()] == ["cat"]


def test_missing_room_for_a_directory_is_an_error(tmp_path: Path) -> None:
    made = Made(tmp_path, "cat")
    folder = PrivateFolder(str(tmp_path / "missing"), made.records)
    settings = ServerSettings(command=str(made.program), private_tmp=True)
    tracker = ProcessTracker(made.reactor, 0)
    made.launcher = LocalLauncher(settings, made.reactor, tracker, {}, Plain, folder=folder)
    failures: list[Any] = []
    made.launcher.launch(None, "0c8a4a3e").addErrback(failures.append)
    assert failures[0].getErrorMessage() == (
        f"cannot start {str(made.program)!r}: no directory for temporary files (private_tmp) can"
        " be made: No such file or directory"
    )


def test_confined_process_has_a_confining_chain(tmp_path: Path) -> None:
    program = tmp_path / "cat"
    program.touch(0o755)
    reactor = FakeReactor()
    settings = ServerSettings(
        command=str(program), user=54321, group=54321, umask="0077", limits=ResourceLimits(core=0)
    )
    launcher = LocalLauncher(
        settings,
        reactor,
        ProcessTracker(reactor, 0),
        {"HOME": "/home/bridge"},
        lambda: Compiled("launch"),
    )
    launcher.launch(Receiver(), "")
    [process] = reactor.processes
    assert process.line[5:] == ["l4:0:0", "m63", "g54321", "u54321", "--", str(program)]
    assert process.env == {"HOME": "/"}
    process.end()
    reactor.pump([0.1] * 20)


def test_unknown_user_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"mcpServers.default.user: expected the name of a us"):
        Made(tmp_path, "cat", user="no-such-user")


def test_privileges_that_are_gone_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`twistd --uid` takes them after the bridge was made, and checked."""
    made = Made(tmp_path, "cat", umask="0077")
    monkeypatch.setattr(module, "confinement_problems", lambda settings: ["no", "no again"])
    assert made.launcher.check() is None
    euid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: euid + 1)
    assert made.launcher.check() == "no"
