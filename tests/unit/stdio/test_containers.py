"""
The container of a session: how it is started, removed, and proven to be gone.

The engine is scripted: `Engine` answers each command that is spawned.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    CONTAINER_BIRTH_SECONDS,
    ENGINE_COMMAND_SECONDS,
    ENGINE_COMMANDS,
    ENGINE_OUTPUT_BYTES,
    ENGINE_PAUSE_SECONDS,
    MAX_ENGINE_PAUSE_SECONDS,
    REMOVALS_BEFORE_WARNING,
)
from mcpbridge.stdio.cleanup_records import ContainersRecord
from mcpbridge.stdio.container_command import parse_container_command
from mcpbridge.stdio.containers import Container, ServerContainers
from mcpbridge.stdio.engine_command import SHOWN_ERROR_CHARS
from mcpbridge.testing import FakeProcess, FakeReactor
from tests.fakes import CleanupTable

ID = "0123456789abcdef" * 4
ENVIRONMENT = {"PATH": "/bin", "DOCKER_HOST": "unix:///x", "API_KEY": "secret"}


class Plain:
    """A chain that changes nothing, and shows the directory."""

    closes_descriptors = False

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        assert tag == 0
        return [f"chain:{directory}", *command]


class Engine:
    """An engine that has containers, by the value of their label."""

    def __init__(
        self,
        text: str = "docker --context c run -i --rm x",
        environment: dict[str, str] = ENVIRONMENT,
        **settings: Any,
    ) -> None:
        self.reactor = FakeReactor()
        command, *arguments = text.split()
        parsed = parse_container_command(command, arguments)
        assert parsed is not None
        self.records = CleanupTable()
        self.all = ServerContainers(
            parsed,
            ServerSettings(command=command, args=tuple(arguments), name="s", **settings),
            self.reactor,
            environment,
            chain=Plain,
            bridge_id="b",
            cleanup=self.records,
        )
        self.answered = 0
        self.made: list[Container] = []

    def new(self) -> Container:
        self.made.append(self.all.new("/p", "0c8a4a3e"))
        return self.made[-1]

    @property
    def asked(self) -> list[FakeProcess]:
        """The commands that wait for an answer."""
        return self.reactor.processes[self.answered :]

    def expect(self, *line: str) -> FakeProcess:
        """The one command that was given."""
        [process] = self.asked
        self.answered += 1
        assert process.line == ["chain:None", "/p", "--context", "c", *line]
        assert process.env == ENVIRONMENT
        assert 0 not in process.pipes
        return process

    def listed(self, *ids: str, errors: bytes = b"", status: int = 0) -> None:
        """Answer `ps`."""
        wanted = f"--filter=label=mcpbridge.session={self.made[-1].value}"
        process = self.expect("ps", "--all", "--quiet", "--no-trunc", wanted)
        process.say("".join(f"{each}\n" for each in ids).encode())
        process.complain(errors)
        process.end(status)

    def inspected(self, label: str | None = None) -> None:
        """Answer `inspect`."""
        template = '--format={{index .Config.Labels "mcpbridge.session"}}'
        process = self.expect("container", "inspect", template, ID)
        process.say(f"{self.made[-1].value if label is None else label}\n".encode())
        process.end()

    def removed(self, status: int = 0, errors: bytes = b"") -> None:
        """Answer `rm`."""
        process = self.expect("rm", "--force", "--volumes", ID)
        process.complain(errors)
        process.end(status)

    def wait(self, seconds: float = 6 * ENGINE_PAUSE_SECONDS) -> None:
        """Time for another try, unless there were many."""
        assert self.asked == []
        self.reactor.advance(seconds)

    def end(self, *gone: Deferred[None]) -> None:
        """All is over, and nothing of it is left."""
        assert all(each.called for each in gone)
        assert self.asked == []
        assert self.reactor.getDelayedCalls() == []
        assert self.records == {}


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where cidfiles are: nobody else's."""
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(tmp_path))
    return tmp_path


def test_command_line_of_a_container(engine: Engine) -> None:
    """Labels of the bridge and of the session, a cidfile that is not there yet."""
    container = engine.new()
    start, (bridge, session, volumes, cidfile), rest = (
        container.line[:4],
        container.line[4:8],
        container.line[8:],
    )
    assert start == ["/p", "--context", "c", "run"]
    assert bridge == "--label=mcpbridge.bridge=b"
    assert session == f"--label=mcpbridge.session={container.value}"
    assert volumes == "--label=mcpbridge.remove-volumes=true"
    folder, name = os.path.split(cidfile.removeprefix("--cidfile="))
    assert name == container.value
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert os.listdir(folder) == []
    assert rest == ["-i", "--rm", "x"]
    other = engine.new()
    assert other.value != container.value
    for each in engine.made:
        each.give_up()
    assert not os.path.exists(folder)
    engine.end()


def test_the_watchdog_is_told(engine: Engine, temporary: Path) -> None:
    """Before the start, of this bridge's containers alone, and of nothing secret."""
    container = engine.new()
    assert engine.records == {
        container.value: ContainersRecord(
            engine=("/p", "--context", "c"),
            filter="label=mcpbridge.bridge=b",
            environment=(
                ("DOCKER_HOST", "unix:///x"),
                ("PATH", "/bin"),
                ("TMPDIR", str(temporary)),
            ),
        )
    }
    container.give_up()
    engine.end()


@pytest.mark.parametrize(
    ("text", "program"),
    [("docker run -i --cidfile mine x", "/p"), ("docker run -i x", "/snap/bin/docker")],
)
def test_user_cidfile_and_snap_prevent_a_cidfile(text: str, program: str) -> None:
    """The user has one; or the CLI is a snap, which has another /tmp."""
    engine = Engine(text)
    container = engine.all.new(program, "0c8a4a3e")
    assert not any("mcpbridge-" in each for each in container.line)
    container.give_up()
    engine.end()


@pytest.mark.parametrize("in_the_way", ["nothing", "a file", "a link"])
def test_container_starts_without_a_folder_for_the_cidfile(in_the_way: str, tmp_path: Path) -> None:
    """It is only a help; what somebody else has put there is not used."""
    wanted = tmp_path / "gone" / "mcpbridge-b"
    if in_the_way != "nothing":
        wanted.parent.mkdir()
    if in_the_way == "a file":
        wanted.touch()
    elif in_the_way == "a link":
        wanted.symlink_to(tmp_path)
    engine = Engine(environment={"TMPDIR": str(wanted.parent)})
    container = engine.new()
    assert not any("cidfile" in each for each in container.line)
    container.give_up()
    engine.end()


def test_folder_of_cidfiles_that_was_deleted(engine: Engine) -> None:
    def folder() -> str:
        [cidfile] = [each for each in engine.new().line if "cidfile" in each]
        return os.path.dirname(cidfile.removeprefix("--cidfile="))

    first = folder()
    os.rmdir(first)
    assert folder() == first
    assert os.path.isdir(first)
    for each in engine.made:
        each.give_up()
    assert not os.path.exists(first)
    engine.end()


def test_init_is_a_setting() -> None:
    engine = Engine(container_init=True)
    container = engine.new()
    assert "--init" in container.line
    container.give_up()


# Its end.


def test_a_container_that_has_ended_by_itself(engine: Engine) -> None:
    """The engine is asked all the same."""
    gone = engine.new().remove(False)
    assert not gone.called
    engine.listed()
    engine.end(gone)


def test_a_container_that_runs_on(engine: Engine) -> None:
    """Its label is read from itself; then it is removed, and the engine asked again."""
    gone = engine.new().remove(True)
    engine.listed(ID)
    engine.inspected()
    engine.removed()
    assert not gone.called
    assert len(engine.records) == 1
    engine.listed()
    engine.end(gone)


@pytest.mark.parametrize("label", ["", "b-other"])
def test_a_container_of_somebody_else(engine: Engine, label: str) -> None:
    """An engine that lists it does not know the filter; it is not removed."""
    gone = engine.new().remove(True)
    engine.listed(ID)
    engine.inspected(label)
    engine.wait()
    engine.listed()
    engine.end(gone)


def test_engine_that_does_not_answer_is_asked_again(engine: Engine, log_lines: list[str]) -> None:
    """
    Its failure proves nothing: it is asked again, ever less often, and the
    log says so once.
    """
    gone = engine.new().remove(False)
    for _ in range(12):
        engine.listed(errors=b"WARNING: x\nCannot connect to the daemon\n", status=1)
        engine.wait(MAX_ENGINE_PAUSE_SECONDS + ENGINE_PAUSE_SECONDS)
    assert not gone.called
    [line] = [each for each in log_lines if "cannot ask docker" in each]
    assert line.startswith("server 's': cannot ask docker whether a container is gone: WARNING: x")
    assert "Cannot connect to the daemon" in line
    engine.listed(ID)
    assert log_lines[-1] == "server 's': docker answers again"
    engine.inspected()
    engine.removed()
    engine.listed()
    engine.end(gone)


def test_engine_whose_program_is_missing_is_asked_again(
    engine: Engine, log_lines: list[str]
) -> None:
    """Its program cannot be started any more."""
    gone = engine.new().remove(False)
    engine.listed(errors=b"", status=1)
    engine.reactor.spawn_error = FileNotFoundError(2, "No such file or directory")
    engine.wait()
    engine.reactor.spawn_error = None
    engine.wait(MAX_ENGINE_PAUSE_SECONDS)
    engine.listed()
    engine.end(gone)


@pytest.mark.parametrize("output", [b"Emulate Docker CLI using podman\n", b"0123\n", b"--all\n"])
def test_malformed_answer_of_an_engine(engine: Engine, output: bytes, log_lines: list[str]) -> None:
    """What is no id is not passed to `rm`."""
    gone = engine.new().remove(False)
    [process] = engine.asked
    engine.answered += 1
    process.say(output)
    process.end()
    assert any("not the id of a container" in each for each in log_lines)
    engine.wait()
    engine.listed()
    engine.end(gone)


@pytest.mark.parametrize("answered", [True, False])
def test_log_shows_a_part_of_what_an_engine_writes(
    engine: Engine, answered: bool, log_lines: list[str]
) -> None:
    """`SHOWN_ERROR_CHARS`: the begin of a malformed answer, the end of an error."""
    shown = "x" * SHOWN_ERROR_CHARS
    gone = engine.new().remove(False)
    if answered:
        engine.listed(f"{shown}Z")
    else:
        engine.listed(errors=f"Z{shown}".encode(), status=1)
    [line] = log_lines
    assert shown in line
    assert "Z" not in line
    engine.wait()
    engine.listed()
    engine.end(gone)


def test_the_time_of_a_command_is_bounded(engine: Engine, log_lines: list[str]) -> None:
    """`ENGINE_COMMAND_SECONDS`: it is killed, and its pipes are closed."""
    gone = engine.new().remove(False)
    [process] = engine.asked
    engine.reactor.advance(ENGINE_COMMAND_SECONDS)
    assert process.pipes == {}
    process.exit(signalled=9)
    assert any(f"no answer in {ENGINE_COMMAND_SECONDS:g} s" in each for each in log_lines)
    engine.answered += 1
    engine.wait()
    engine.listed()
    engine.end(gone)


def test_the_output_of_a_command_is_bounded(engine: Engine, log_lines: list[str]) -> None:
    """`ENGINE_OUTPUT_BYTES`."""
    gone = engine.new().remove(False)
    [process] = engine.asked
    process.complain(b"x" * (2 * ENGINE_OUTPUT_BYTES))
    process.say(b"a" * ENGINE_OUTPUT_BYTES)
    assert process.pipes != {}
    process.say(b"a")
    assert process.pipes == {}
    process.exit(signalled=9)
    assert any(f"more than {ENGINE_OUTPUT_BYTES} bytes" in each for each in log_lines)
    engine.answered += 1
    engine.wait()
    engine.listed()
    engine.end(gone)


def test_commands_at_a_time_are_bounded(engine: Engine) -> None:
    """`ENGINE_COMMANDS`: many sessions that end at once do not start as many CLIs."""
    gone = [engine.new().remove(False) for _ in range(3 * ENGINE_COMMANDS)]
    for number in range(len(gone)):
        assert len(engine.asked) == min(ENGINE_COMMANDS, len(gone) - number)
        engine.asked[0].end()
        engine.answered += 1
    engine.end(*gone)


def test_a_removal_that_fails(engine: Engine, log_lines: list[str]) -> None:
    """`REMOVALS_BEFORE_WARNING`: most often the container goes by itself; else the log says so."""
    gone = engine.new().remove(True)
    for number in range(2 * REMOVALS_BEFORE_WARNING):
        said = [each for each in log_lines if "cannot remove container 0123456789ab" in each]
        assert len(said) == (number > REMOVALS_BEFORE_WARNING)
        engine.listed(ID)
        engine.inspected()
        engine.removed(1, b"removal of container is already in progress")
        engine.wait(MAX_ENGINE_PAUSE_SECONDS + ENGINE_PAUSE_SECONDS)
    assert not gone.called
    engine.listed()
    engine.end(gone)


def test_a_removal_that_changes_nothing(engine: Engine) -> None:
    """It does not become a loop without a pause."""
    gone = engine.new().remove(True)
    engine.listed(ID)
    engine.inspected()
    engine.removed()
    engine.listed(ID)
    engine.inspected()
    engine.removed()
    engine.wait()
    engine.listed()
    engine.end(gone)


# A CLI that was interrupted.


def test_a_container_that_is_born_late(engine: Engine) -> None:
    """The engine creates what the CLI had asked for, though nobody waits for it any more."""
    gone = engine.new().remove(True)
    engine.listed()
    assert not gone.called
    engine.wait()
    engine.listed(ID)
    engine.inspected()
    engine.removed()
    engine.listed()
    engine.end(gone)


def test_a_container_that_is_never_born(engine: Engine) -> None:
    """`CONTAINER_BIRTH_SECONDS`: then nothing seen is nothing there."""
    gone = engine.new().remove(True)
    engine.listed()
    engine.wait(CONTAINER_BIRTH_SECONDS)
    assert not gone.called
    engine.listed()
    engine.end(gone)


@pytest.mark.parametrize("text", ["docker --context c run -i --rm x", "own"])
def test_container_with_an_id_in_its_cidfile_needs_no_wait(text: str, tmp_path: Path) -> None:
    """It was created, so one look that finds nothing is enough."""
    if text == "own":
        text = "docker --context c run -i --rm --cidfile own x"
    engine = Engine(text, cwd=str(tmp_path))
    container = engine.new()
    named = [each for each in container.line if each.startswith("--cidfile=")]
    own = Path(named[0].removeprefix("--cidfile=") if named else tmp_path / "own")
    own.write_text(ID, encoding="ascii")
    gone = container.remove(True)
    [process] = engine.asked
    engine.answered += 1
    assert process.line[0] == f"chain:{tmp_path}"
    process.end()
    engine.end(gone)
    # What is the user's stays his.
    assert own.exists() is not bool(named)


def test_an_empty_cidfile_proves_nothing(engine: Engine) -> None:
    container = engine.new()
    [cidfile] = [each for each in container.line if each.startswith("--cidfile=")]
    Path(cidfile.removeprefix("--cidfile=")).touch()
    gone = container.remove(True)
    engine.listed()
    assert not gone.called
    engine.wait(CONTAINER_BIRTH_SECONDS)
    engine.listed()
    engine.end(gone)


def test_unexpected_error_keeps_the_permit(
    engine: Engine, logged_failures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was proven, so the permit stays taken; the log has the error."""
    container = engine.new()
    monkeypatch.setattr(engine.all, "find", _raise)
    gone = container.remove(False)
    assert not gone.called
    assert len(logged_failures) == 1
    assert len(engine.records) == 1
    monkeypatch.undo()
    container.give_up()


def _raise(*_: object) -> None:
    raise RuntimeError("a defect")
