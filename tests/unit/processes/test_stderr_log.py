"""The stderr of running backends, in the log or in a file."""

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    STDERR_FILE_BYTES,
    STDERR_FILES,
    STDERR_LOG_CHARS,
    STDERR_PROCESS_LINES,
    STDERR_SECONDS,
    STDERR_SERVER_LINES,
)
from mcpbridge.errors import SettingError
from mcpbridge.processes.stderr_log import _NAME_CHARS, ProcessStderr, ServerStderr, readable


def made(clock: Clock | None = None, **settings: Any) -> ServerStderr:
    return ServerStderr(ServerSettings(command="cat", name="x", **settings), clock or Clock())


def process_of(server: ServerStderr) -> ProcessStderr:
    process = server.process()
    assert process is not None
    return process


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"ready", "stderr: ready"),
        ("grüße 🙂".encode(), "stderr: grüße 🙂"),
        (b"\tat main.js:1", "stderr:     at main.js:1"),
        (b"C:\\temp {x}", "stderr: C:\\temp {x}"),
        (b"\x1b[31mred\x1b[0m", "stderr: \\x1b[31mred\\x1b[0m"),
        (b"10%\r20%\r", "stderr: 10%\\r20%"),
        (b"a\0b\x07\x7f", "stderr: a\\x00b\\x07\\x7f"),
        (b"a\xff\xed\xa0\x80", "stderr: a\\xff\\xed\\xa0\\x80"),
        ("a\u2028b\u0085c\u202ed".encode(), "stderr: a\\u2028b\\x85c\\u202ed"),
        (b"stdout: hello", "stdout: hello"),
    ],
)
def test_control_characters_are_escaped(line: bytes, shown: str) -> None:
    """promise: a backend can forge no line of the log, and controls no terminal."""
    assert readable(line) == shown


def test_a_long_line_is_cut() -> None:
    """bound: STDERR_LOG_CHARS."""
    exact = "é" * STDERR_LOG_CHARS
    assert readable(exact.encode()) == f"stderr: {exact}"
    assert readable((exact + "é").encode()) == (
        f"stderr: {exact}... (cut; {2 * STDERR_LOG_CHARS + 2} bytes)"
    )
    assert len(readable(b"\0" * 65536)) < STDERR_LOG_CHARS + 100


def test_lines_are_in_the_log_as_they_come(log_lines: list[str]) -> None:
    process_of(made()).received("4f8a6bb6", [b"one", b"{two}"])
    assert log_lines == ["'x' 4f8a6bb6 stderr: one", "'x' 4f8a6bb6 stderr: {two}"]


def test_lines_beyond_the_bound_of_a_process_are_counted(log_lines: list[str]) -> None:
    """bound: STDERR_PROCESS_LINES in STDERR_SECONDS."""
    clock = Clock()
    process = process_of(made(clock))
    process.received("a", [b"line"] * (STDERR_PROCESS_LINES + 5))
    process.received("a", [b"line"] * 10)
    assert log_lines.count("'x' a stderr: line") == STDERR_PROCESS_LINES
    assert len(log_lines) == STDERR_PROCESS_LINES + 1
    assert log_lines[-1].endswith("; the rest is counted")
    clock.advance(STDERR_SECONDS)
    process.received("a", [b"line"])
    assert log_lines[-2:] == ["'x' a 15 lines of stderr were left out", "'x' a stderr: line"]
    process.received("a", [b"line"] * (STDERR_PROCESS_LINES + 2))
    process.finish("a")
    assert log_lines[-1] == "'x' a 3 lines of stderr were left out"
    process.finish("a")
    assert len(log_lines) == 2 * STDERR_PROCESS_LINES + 4


def test_all_processes_of_a_server_are_bounded(log_lines: list[str]) -> None:
    """bound: STDERR_SERVER_LINES in STDERR_SECONDS; each process says what it left out."""
    server = made()
    processes = [process_of(server) for _ in range(4)]
    for process in processes:
        process.received("a", [b"line"] * STDERR_PROCESS_LINES)
    assert log_lines.count("'x' a stderr: line") == STDERR_SERVER_LINES
    for process in processes:
        process.finish("a")
    left_out = f"'x' a {STDERR_PROCESS_LINES} lines of stderr were left out"
    assert log_lines.count(left_out) == 2


def test_stderr_may_be_discarded() -> None:
    server = made(stderr_log="none")
    assert server.process() is None
    assert server.where() == ""


def test_a_file_for_each_server(tmp_path: Path, log_lines: list[str]) -> None:
    server = made(stderr_log="file", stderr_dir=str(tmp_path))
    server.start()
    process = process_of(server)
    process.received("4f8a6bb6", [b"one", "zwö\x1b".encode()])
    server.stop()
    # A process may outlive the stop.
    process.received("4f8a6bb6", [b"three"])
    server.stop()
    path = tmp_path / "x.stderr.log"
    assert server.where() == f"in {path}"
    assert path.stat().st_mode & 0o777 == 0o600
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "4f8a6bb6 stderr: one",
        "4f8a6bb6 stderr: zwö\\x1b",
        "4f8a6bb6 stderr: three",
    ]
    assert log_lines == []


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "x" * 300, "é" * 100])
def test_a_server_name_cannot_be_a_path(name: str, tmp_path: Path) -> None:
    settings = ServerSettings(command="cat", name=name, stderr_log="file", stderr_dir=str(tmp_path))
    server = ServerStderr(settings, Clock())
    server.start()
    server.stop()
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(".stderr.log")


def test_long_server_name_is_cut(tmp_path: Path) -> None:
    """`_NAME_CHARS`; two long names still have a file each."""
    longest = "x" * _NAME_CHARS
    for name in (longest, longest + "y", longest + "z"):
        settings = ServerSettings(
            command="cat", name=name, stderr_log="file", stderr_dir=str(tmp_path)
        )
        server = ServerStderr(settings, Clock())
        server.start()
        server.stop()
    found = sorted((path.name for path in tmp_path.iterdir()), key=len)
    assert found[0] == f"{longest}.stderr.log"
    assert len(found) == 3
    assert all(each.startswith(f"{longest}-") for each in found[1:])
    assert all(len(each) < _NAME_CHARS + 30 for each in found)


def test_an_unwritable_file_falls_back_to_the_log(tmp_path: Path, log_lines: list[str]) -> None:
    """That is logged once, at startup."""
    server = made(stderr_log="file", stderr_dir=str(tmp_path / "gone"))
    server.start()
    (line,) = log_lines
    assert line.startswith(f"server 'x': cannot write {tmp_path}/gone/x.stderr.log: No such file")
    assert "its stderr goes to the log" in line
    process_of(server).received("a", [b"one"])
    server.start()
    assert log_lines[1:] == ["'x' a stderr: one"]
    assert server.where() == "above"


def test_a_full_disk_falls_back_to_the_log(log_lines: list[str]) -> None:
    """The lines that could not be written are logged."""

    class Full:
        size = 0

        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        close = write

    server = made(stderr_log="file", stderr_dir="/nowhere")
    full: Any = Full()
    full.close = lambda: full.write("")
    server._file = full
    process_of(server).received("a", [b"one"])
    assert log_lines[0].startswith("server 'x': cannot write /nowhere/x.stderr.log: No space left")
    assert log_lines[1:] == ["'x' a stderr: one"]


def test_files_are_rotated_and_old_ones_deleted(tmp_path: Path) -> None:
    """bounds: STDERR_FILE_BYTES, STDERR_FILES."""
    server = made(stderr_log="file", stderr_dir=str(tmp_path))
    for _ in range(STDERR_FILES + 3):
        server.start()
        assert server._file is not None
        server._file.size = STDERR_FILE_BYTES
        server.write("a", ["stderr: one"])
    server.stop()
    assert len(list(tmp_path.iterdir())) == STDERR_FILES + 1


def test_a_file_that_cannot_be_rotated_does_not_fill_the_disk(
    tmp_path: Path, log_lines: list[str]
) -> None:
    server = made(stderr_log="file", stderr_dir=str(tmp_path))
    server.start()
    assert server._file is not None
    setattr(server._file, "shouldRotate", lambda: False)  # noqa: B010
    server._file.size = 2 * STDERR_FILE_BYTES
    server.write("a", ["stderr: one"])
    assert "it cannot be rotated" in log_lines[0]


def test_a_file_needs_a_directory() -> None:
    with pytest.raises(SettingError, match="stderr_dir: expected a directory"):
        ServerSettings(command="cat", stderr_log="file")
