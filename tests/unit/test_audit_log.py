"""The audit log: its lines, when they are written, and what happens where they cannot be."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge import audit_log
from mcpbridge.audit_log import _LONG_RECORD, _RECORD_BYTES, AuditLog, AuditRecord, _printable
from mcpbridge.config.tuning import (
    AUDIT_ARGUMENT_BYTES,
    AUDIT_BATCH,
    AUDIT_QUEUE_BYTES,
    AUDIT_QUEUE_RECORDS,
    AUDIT_RETRY_SECONDS,
    AUDIT_SECONDS,
    AUDIT_TEXT_CHARS,
    COMPLAIN_SECONDS,
)

#: 2030-03-17, when these tests take place.
BEGIN = 1_900_000_000.0


class Audit:
    """A log in a file, with a clock that also tells the time of day."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.clock = Clock()
        self.log = AuditLog(str(path), self.clock, seconds=lambda: BEGIN + self.clock.seconds())

    def record(self, number: int | str = 0, **fields: Any) -> None:
        self.log.record(AuditRecord("files", "ok", name=str(number), **fields))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def names(self) -> list[str | None]:
        """The name of each record; None for a line without one."""
        return [line.get("name") for line in self.lines()]


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    made = Audit(tmp_path / "audit.jsonl")
    yield made
    made.log.stop()
    assert not made.clock.getDelayedCalls()


# What a line shows.


def test_line_has_everything_that_is_known(audit: Audit) -> None:
    audit.clock.advance(0.25)
    audit.log.record(
        AuditRecord(
            "files",
            "error",
            identity="https://issuer.example#alice",
            address="192.0.2.1",
            session="4f8a6bb6",
            transport="streamable-http",
            method="tools/call",
            name="delete_file",
            request_bytes=120,
            response_bytes=80,
            seconds=0.0123456,
            code=-32602,
        )
    )
    audit.log.flush()
    line = audit.path.read_text()
    assert line.endswith("}\n")
    assert json.loads(line) == {
        "time": "2030-03-17T17:46:40.250Z",
        "outcome": "error",
        "identity": "https://issuer.example#alice",
        "address": "192.0.2.1",
        "server": "files",
        "session": "4f8a6bb6",
        "transport": "streamable-http",
        "method": "tools/call",
        "name": "delete_file",
        "request_bytes": 120,
        "response_bytes": 80,
        "duration_ms": 12.346,
        "code": -32602,
    }


def test_what_is_not_known_is_left_out(audit: Audit) -> None:
    audit.log.record(AuditRecord("files", "refused", status=401, reason="no credentials"))
    audit.log.flush()
    assert audit.lines() == [
        {
            "time": "2030-03-17T17:46:40.000Z",
            "outcome": "refused",
            "server": "files",
            "request_bytes": 0,
            "response_bytes": 0,
            "status": 401,
            "reason": "no credentials",
        }
    ]


def test_time_is_that_of_the_record(audit: Audit) -> None:
    audit.clock.advance(0.1)
    audit.record(1)
    audit.clock.advance(0.2)
    audit.record(2)
    audit.clock.advance(AUDIT_SECONDS)
    assert [line["time"][-5:] for line in audit.lines()] == [".100Z", ".300Z"]


#: Text that could end a line, or move the cursor of a terminal, and a lone surrogate.
HOSTILE = st.text(
    st.characters(exclude_categories=())
    | st.sampled_from('\n\r\x00\x1b\x7f\x9b\u2028\u202e\ud800"')
)


@given(text=HOSTILE)
def test_no_text_of_a_client_adds_a_line_or_a_control_character(text: str) -> None:
    log = AuditLog("unused", Clock(), seconds=lambda: BEGIN)
    line = log._line(BEGIN, AuditRecord("files", "ok", method=text, name=text, identity=text))
    shown = line.decode("utf-8")
    assert shown.endswith("}\n")
    assert shown[:-1].isprintable()
    told = json.loads(shown)
    if not any("\ud800" <= each <= "\udfff" for each in text):
        assert told.get("name") == told.get("method") == text


@given(
    value=st.recursive(st.none() | HOSTILE.filter(lambda t: t.isascii()), st.lists),
    spaces=st.integers(0, 4),
)
def test_arguments_stay_json_on_one_line(value: Any, spaces: int) -> None:
    log = AuditLog("unused", Clock(), seconds=lambda: BEGIN)
    arguments = json.dumps(value, indent=spaces, ensure_ascii=False).encode()
    if len(arguments) <= AUDIT_ARGUMENT_BYTES:
        line = log._line(BEGIN, AuditRecord("files", "ok", arguments=arguments)).decode()
        assert line.count("\n") == 1
        assert json.loads(line)["arguments"] == value


def test_printable_text_stays_as_it_is() -> None:
    line = '{"name":"Übersicht \U0001f600"}'.encode()
    assert _printable(line) is line
    assert _printable(b'{"name":"\x7f"}') == b'{"name":"\\u007f"}'
    assert _printable('{"name":"\U000e0001"}'.encode()) == b'{"name":"\\udb40\\udc01"}'


@pytest.mark.parametrize("field", ["identity", "method", "name", "reason"])
def test_long_text_is_cut(audit: Audit, field: str) -> None:
    """`AUDIT_TEXT_CHARS`, looked at beyond `_LONG_RECORD`; `_RECORD_BYTES` is without texts."""
    for size in (AUDIT_TEXT_CHARS, AUDIT_TEXT_CHARS + 1, 10 * AUDIT_TEXT_CHARS):
        text: Any = {field: "x" * size}
        audit.log.record(AuditRecord("files", "ok", **text))
    assert audit.log._queued_bytes <= 3 * (_LONG_RECORD + 3)
    assert _RECORD_BYTES + AUDIT_TEXT_CHARS == _LONG_RECORD
    audit.log.flush()
    whole, cut, longer = (line[field] for line in audit.lines())
    assert whole == "x" * AUDIT_TEXT_CHARS
    assert cut == longer == whole + "..."


def test_long_arguments_are_cut(audit: Audit) -> None:
    """`AUDIT_ARGUMENT_BYTES`: what is cut is no JSON, so it is a text."""
    whole = json.dumps("x" * (AUDIT_ARGUMENT_BYTES - 2)).encode()
    audit.record(1, arguments=whole)
    audit.record(2, arguments=b'{"a":' + whole + b"}")
    audit.record(3, arguments=b"[" + b"\xc3\xa4" * AUDIT_ARGUMENT_BYTES + b"]")
    audit.log.flush()
    first, second, third = audit.lines()
    assert first["arguments"] == "x" * (AUDIT_ARGUMENT_BYTES - 2)
    assert "arguments" not in second
    assert second["arguments_cut"] == '{"a":' + whole.decode()[: AUDIT_ARGUMENT_BYTES - 5]
    assert third["arguments_cut"].startswith("[\u00e4\u00e4")


def test_record_that_cannot_be_encoded_keeps_no_other(
    audit: Audit, logged_failures: list[Any]
) -> None:
    audit.record(1)
    audit.log.record(AuditRecord("files", "ok", session=object()))  # type: ignore[arg-type]
    audit.record(3)
    audit.log.flush()
    assert audit.names() == ["1", "3"]
    assert len(audit.log) == 0
    assert len(logged_failures) == 1


# When lines are written.


def test_records_are_written_in_one_piece(audit: Audit) -> None:
    """`AUDIT_SECONDS`."""
    for number in range(3):
        audit.record(number)
        audit.clock.advance(AUDIT_SECONDS / 4)
    assert not audit.path.exists()
    audit.clock.advance(AUDIT_SECONDS / 4)
    assert audit.names() == ["0", "1", "2"]
    assert not audit.clock.getDelayedCalls()


def test_many_records_are_written_soon(audit: Audit) -> None:
    """`AUDIT_BATCH` at a time, and never while a message is passed on."""
    for number in range(2 * AUDIT_BATCH + 1):
        audit.record(number)
    assert not audit.path.exists()
    audit.log.flush()
    assert len(audit.lines()) == AUDIT_BATCH
    audit.clock.advance(0)
    assert audit.names() == [str(number) for number in range(2 * AUDIT_BATCH + 1)]


def test_stop_writes_everything_and_what_comes_later(audit: Audit) -> None:
    count = 3 * AUDIT_BATCH
    for number in range(count):
        audit.record(number)
    audit.log.stop()
    assert len(audit.lines()) == count
    audit.record("late")
    assert audit.names()[-1] == "late"


def test_file_is_for_its_owner_alone(audit: Audit) -> None:
    before = os.umask(0)
    try:
        audit.log.start()
    finally:
        os.umask(before)
    assert audit.path.stat().st_mode & 0o777 == 0o600
    audit.record()
    audit.log.stop()
    audit.path.chmod(0o640)
    audit.record()
    assert audit.path.stat().st_mode & 0o777 == 0o640, "whoever made it has decided"
    assert len(audit.lines()) == 2


def test_file_that_was_there_is_continued(audit: Audit) -> None:
    audit.path.write_text('{"name":"before"}\n')
    audit.record("after")
    audit.log.flush()
    assert audit.names() == ["before", "after"]


# Rotation.


def test_file_that_was_moved_is_made_again(audit: Audit) -> None:
    audit.record(1)
    audit.log.flush()
    moved = audit.path.rename(audit.path.with_suffix(".1"))
    audit.record(2)
    audit.log.flush()
    assert audit.names() == ["2"]
    assert audit.path.stat().st_mode & 0o777 == 0o600
    assert json.loads(moved.read_text())["name"] == "1"


def test_file_that_was_replaced_is_opened_again(audit: Audit) -> None:
    """As by logrotate with `create`."""
    audit.record(1)
    audit.log.flush()
    audit.path.rename(audit.path.with_suffix(".1"))
    audit.path.touch()
    audit.record(2)
    audit.log.flush()
    assert audit.names() == ["2"]


def test_file_that_was_truncated_is_continued(audit: Audit) -> None:
    """As by logrotate with `copytruncate`: lines are appended, wherever that is now."""
    audit.record(1)
    audit.log.flush()
    os.truncate(audit.path, 0)
    audit.record(2)
    audit.log.flush()
    assert audit.names() == ["2"]


# Where it cannot be written.


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file become larger than this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_stops_nothing_and_tears_no_line(audit: Audit, log_lines: list[str]) -> None:
    """`AUDIT_RETRY_SECONDS`: the rest of a line that was written in part comes first."""
    audit.record(1)
    audit.log.flush()
    size = audit.path.stat().st_size
    with full_disk(2 * size + size // 2):
        for number in range(2, 6):
            audit.record(number)
        audit.clock.advance(AUDIT_SECONDS)
        assert audit.path.stat().st_size == 2 * size + size // 2
        assert len(log_lines) == 1
        assert "cannot write the audit log" in log_lines[0]
        assert "File too large" in log_lines[0]
        for _ in range(10):
            audit.clock.advance(AUDIT_RETRY_SECONDS)
    assert len(log_lines) == 1
    audit.clock.advance(AUDIT_RETRY_SECONDS)
    assert audit.names() == ["1", "2", "3", "4", "5"]
    assert not audit.clock.getDelayedCalls()


def test_torn_line_is_whole_in_a_new_file(audit: Audit) -> None:
    audit.record(1)
    audit.log.flush()
    size = audit.path.stat().st_size
    with full_disk(size + 10):
        audit.record(2)
        audit.record(3)
        audit.log.flush()
    audit.path.rename(audit.path.with_suffix(".1"))
    audit.clock.advance(AUDIT_RETRY_SECONDS)
    assert audit.names() == ["2", "3"]


def test_records_that_find_no_place_are_counted(tmp_path: Path, log_lines: list[str]) -> None:
    """`AUDIT_QUEUE_RECORDS`; a line says how many are lost when it works again."""
    audit = Audit(tmp_path / "missing" / "audit.jsonl")
    for number in range(AUDIT_QUEUE_RECORDS + 7):
        audit.record(number)
    audit.clock.advance(AUDIT_SECONDS)
    assert len(audit.log) == AUDIT_QUEUE_RECORDS
    assert len(log_lines) == 1
    assert "No such file or directory; 10000 records wait, 7 are lost" in log_lines[0]
    audit.path.parent.mkdir()
    audit.clock.pump([AUDIT_RETRY_SECONDS] * (1 + AUDIT_QUEUE_RECORDS // AUDIT_BATCH))
    names = audit.names()
    assert names[:-1] == [str(number) for number in range(AUDIT_QUEUE_RECORDS)]
    assert audit.lines()[-1]["lost"] == 7
    audit.record("again")
    audit.log.stop()
    assert audit.names()[-1] == "again"
    assert sum("lost" in line for line in audit.lines()) == 1


def test_bytes_of_records_that_wait_are_limited(audit: Audit) -> None:
    """`AUDIT_QUEUE_BYTES`."""
    size = AUDIT_ARGUMENT_BYTES + 1 + _RECORD_BYTES + 1
    most = -(-AUDIT_QUEUE_BYTES // size)
    assert most < AUDIT_QUEUE_RECORDS
    for _ in range(most + 3):
        audit.record(arguments=b"x" * AUDIT_ARGUMENT_BYTES * 2)
    assert len(audit.log) == most
    assert audit.log._queued_bytes < AUDIT_QUEUE_BYTES + size
    audit.log.stop()
    assert audit.log._queued_bytes == 0
    assert audit.lines()[-1]["lost"] == 3


def test_failures_are_logged_now_and_then(tmp_path: Path, log_lines: list[str]) -> None:
    audit = Audit(tmp_path)
    audit.log.start()
    assert "Is a directory" in log_lines[0]
    audit.record()
    for _ in range(int(COMPLAIN_SECONDS / AUDIT_RETRY_SECONDS) + 2):
        audit.clock.advance(AUDIT_RETRY_SECONDS)
    assert len(log_lines) == 2
    audit.log.stop()
    assert log_lines[2:] == [f"1 records of the audit log {str(tmp_path)!r} are lost (audit_log)"]


def test_device_that_is_full(log_lines: list[str]) -> None:
    audit = Audit("/dev/full")
    audit.record(1)
    audit.clock.advance(AUDIT_SECONDS)
    assert "No space left on device" in log_lines[0]
    assert len(audit.log) == 1
    audit.log.stop()


# Pipes, and standard output.


def test_pipe_that_nobody_opens_makes_nobody_wait(tmp_path: Path, log_lines: list[str]) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    audit = Audit(path)
    audit.record(1)
    audit.clock.advance(AUDIT_SECONDS)
    assert "cannot write the audit log" in log_lines[0]
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        audit.clock.advance(AUDIT_RETRY_SECONDS)
        assert json.loads(os.read(reader, 10_000))["name"] == "1"
        audit.log.stop()
    finally:
        os.close(reader)


def test_standard_output_that_nobody_reads_makes_nobody_wait(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    """Nothing is lost, and no line torn: what the pipe did not take comes later."""
    reader, writer = os.pipe()
    try:
        monkeypatch.setattr(audit_log, "_STDOUT_FD", writer)
        audit = Audit("-")
        for number in range(2000):
            audit.record(number)
        audit.clock.pump([0] * 10)
        assert len(log_lines) == 1
        assert "nobody reads it" in log_lines[0]
        assert os.get_blocking(writer), "others write to it, too"
        read = b""
        while len(audit.log) or audit.log._file.is_torn:
            read += os.read(reader, 1_000_000)
            audit.clock.advance(AUDIT_RETRY_SECONDS)
        audit.log.stop()
        read += os.read(reader, 1_000_000)
        assert [json.loads(line)["name"] for line in read.splitlines()] == [
            str(number) for number in range(2000)
        ]
    finally:
        os.close(reader)
        os.close(writer)
