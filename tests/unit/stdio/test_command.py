"""A backend's command: what is said where it is not there."""

import sys
from pathlib import Path

import pytest

from mcpbridge.errors import CannotStart
from mcpbridge.stdio.command import find_program
from mcpbridge.tap import Options


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("no-such-program", ""),
        ("no-such-program --with arguments", "; put its arguments into `args`"),
        ("/no/such/program x", "; put its arguments into `args`"),
    ],
)
def test_a_command_that_is_not_found(command: str, hint: str) -> None:
    with pytest.raises(CannotStart) as caught:
        find_program(command, {"PATH": "/bin"}, None)
    where = "" if "/" in command else " in the backend's PATH"
    assert str(caught.value) == f"cannot start {command!r}: it was not found{where}{hint}"


@pytest.fixture
def removed_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is gone."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()


@pytest.mark.usefixtures("removed_directory")
def test_absolute_commands_need_no_working_directory(tmp_path: Path) -> None:
    """An upgrade that removes the folder the bridge was started in breaks nothing."""
    program = tmp_path / "program"
    program.write_text("")
    program.chmod(0o755)
    assert find_program(sys.executable, {}, None) == sys.executable
    assert find_program("program", {"PATH": f"bin::{tmp_path}"}, None) == str(program)
    assert find_program("./program", {}, str(tmp_path)) == str(program)
    assert find_program("program", {"PATH": "."}, str(tmp_path)) == str(program)


@pytest.mark.usefixtures("removed_directory")
@pytest.mark.parametrize(
    ("command", "directory", "says"),
    [
        ("./program", None, "it was not found; the bridge's own directory was removed, so use"),
        ("no-such-program", None, "PATH; the bridge's own directory was removed, so use"),
        ("program", "below", "'below' does not exist"),
    ],
)
def test_relative_command_in_a_removed_directory_is_explained(
    command: str, directory: str | None, says: str
) -> None:
    with pytest.raises(CannotStart, match=says):
        find_program(command, {"PATH": "bin:/nowhere"}, directory)


@pytest.mark.usefixtures("removed_directory")
def test_relative_directory_is_refused_in_one_line() -> None:
    with pytest.raises(SystemExit, match=r"--cwd \(cwd\): expected an absolute path"):
        Options().parseOptions(["--cwd", "below", "--", "cat"])
