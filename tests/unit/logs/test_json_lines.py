"""Log events as JSON: one object on each line, with fields of bounded length."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, Logger, LogLevel
from twisted.python import log as legacy_log
from twisted.python.failure import Failure

from mcpbridge.config.tuning import (
    LOG_FIELD_CHARS,
    LOG_FIELDS,
    LOG_LINE_BYTES,
    LOG_MESSAGE_CHARS,
    LOG_SHORT_CHARS,
    LOG_TRACEBACK_CHARS,
)
from mcpbridge.logs.json_lines import component_of, json_line, rfc3339
from mcpbridge.processes.endings import Idle
from tests.leftovers import PUBLISHER

CALM = {"log_level": LogLevel.info, "log_namespace": "mcpbridge.web.site.BridgeSite"}


def read(event: LogEvent) -> dict[str, Any]:
    """Return the object of an event's line, which must be one line for every reader."""
    line = json_line(event)
    assert line is not None
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    line.encode("utf-8")
    fields: dict[str, Any] = json.loads(line)
    return fields


def failure(text: str = "unexpected") -> Failure:
    try:
        raise ValueError(text)
    except ValueError:
        return Failure()


def test_line_has_the_time_the_level_the_component_the_message_and_the_events_fields() -> None:
    events: list[Any] = []
    observe: Any = events.append
    log = Logger(namespace="mcpbridge.processes.backend_session.BackendSession", observer=observe)
    log.warn(
        "session {session} of {server!r}: {error} {times}",
        session="4f8a6bb6",
        server="a",
        identity="",
        error=ValueError("x"),
        times=2,
        seconds=1.5,
        final=True,
        port=None,
    )
    events[0]["log_time"] = 1_900_000_000.5
    assert json_line(events[0]) == (
        '{"time":"2030-03-17T17:46:40.500Z","level":"warn","component":"processes.backend_session",'
        '"message":"session 4f8a6bb6 of \'a\': x 2","session":"4f8a6bb6","server":"a","times":2,'
        '"seconds":1.5,"final":true,"port":null}\n'
    )


def test_a_reason_is_a_text_like_any_other() -> None:
    found = read({**CALM, "log_format": "closed: {reason}", "reason": Idle("idle for 3 s")})
    assert found["reason"] == "idle for 3 s"


def test_text_that_is_all_of_the_message_is_not_repeated() -> None:
    found = read({**CALM, "log_format": "{line}", "line": "serving", "log_time": 0.0})
    assert list(found) == ["time", "level", "component", "message"]


def test_own_fields_do_not_replace_the_first_ones() -> None:
    names = {"level": "x", "component": "x", "traceback": "x", "time": 1}
    found = read({**CALM, "log_format": "a", "log_time": 0.0, **names})
    assert found == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "component": "web.site",
        "message": "a",
    }


def test_traceback_is_a_field() -> None:
    found = read(
        {"log_level": LogLevel.critical, "log_format": "it failed", "log_failure": failure()}
    )
    assert (found["message"], found["level"]) == ("it failed", "critical")
    assert found["traceback"].startswith("Traceback")
    assert found["traceback"].rstrip().endswith("builtins.ValueError: unexpected")


def test_event_that_says_nothing_makes_no_line() -> None:
    assert json_line({**CALM}) is None
    assert read({**CALM, "log_failure": failure()})["message"] == ""


def test_traceback_that_cannot_be_formatted() -> None:
    found = read({**CALM, "log_format": "a", "log_failure": object()})
    assert found["traceback"] == "(the traceback cannot be formatted)"


def test_events_of_the_former_log() -> None:
    """Of `twisted.python.log`, which other libraries use."""
    events: list[Any] = []
    observe: Any = events.append
    PUBLISHER.addObserver(observe)
    try:
        legacy_log.msg("a text", system="x")
    finally:
        PUBLISHER.removeObserver(observe)
    found = read(events[0])
    assert (found.pop("message"), found.pop("component")) == ("a text", "log_legacy")
    assert found.keys() == {"time", "level"}


@pytest.mark.parametrize(
    ("namespace", "component"),
    [
        ("mcpbridge.web.site.BridgeSite", "web.site"),
        ("mcpbridge.tap._Run", "tap"),
        ("mcpbridge.guard", "guard"),
        ("mcpbridge.stderr", "stderr"),
        ("twisted.internet.tcp.Port", "twisted.internet.tcp"),
        ("mine", "mine"),
        ("Mine", "Mine"),
        (None, ""),
        (1, ""),
    ],
)
def test_component(namespace: object, component: str) -> None:
    assert component_of(namespace) == component


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1.9996, "1970-01-01T00:00:01.999Z"),
        (1_900_000_000.25, "2030-03-17T17:46:40.250Z"),
    ],
)
def test_time(when: float, text: str) -> None:
    assert rfc3339(when) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x00\x1b[2J\r\n", "\x00\x1b[2J\r\n"),
        ("\x7f\x9b\u2028\u2029\x85\u202e", "\x7f\x9b\u2028\u2029\x85\u202e"),
        ("\u00e9\U0001f600", "\u00e9\U0001f600"),
        ("a\udc80\ud800", "a\\udc80\\ud800"),
    ],
)
def test_control_characters_and_surrogates_are_escaped(text: str, shown: str) -> None:
    event = {**CALM, "log_format": "{a}.", "a": text}
    assert read(event)["a"] == shown
    line = json_line(event)
    assert line is not None
    assert line[:-1].isprintable()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2**63 - 1, 2**63 - 1),
        (2**70, 2**70),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_numbers_that_json_has_not(value: Any, shown: Any) -> None:
    assert read({**CALM, "log_format": "a", "number": value})["number"] == shown


def test_number_that_python_does_not_write() -> None:
    found = read({**CALM, "log_format": "a", "number": 2**20000, "other": -(2**64)})
    assert (found["number"], found["other"]) == ("(too large)", str(-(2**64)))


def test_fields_are_bounded() -> None:
    """`LOG_FIELDS`, `LOG_MESSAGE_CHARS`, `LOG_FIELD_CHARS`, `LOG_TRACEBACK_CHARS`."""
    numbers = {f"n{number}": number for number in range(LOG_FIELDS + 1)}
    found = read({**CALM, "log_format": "a", **numbers})
    assert len(found) == LOG_FIELDS
    long = "x" * (LOG_MESSAGE_CHARS + 1)
    found = read({**CALM, "log_format": "{a}.", "a": long})
    assert found["message"] == f"{long[:-1]}... (cut; {len(long) + 1} characters)"
    assert found["a"] == f"{'x' * LOG_FIELD_CHARS}... (cut; {len(long)} characters)"
    kept = read({**CALM, "log_format": "{a}.", "a": long[:LOG_FIELD_CHARS]})
    assert kept["a"] == long[:LOG_FIELD_CHARS]
    found = read({**CALM, "log_format": "a", "log_failure": failure("y" * LOG_TRACEBACK_CHARS)})
    text = found["traceback"]
    assert text.count("y") in range(LOG_TRACEBACK_CHARS - 2, LOG_TRACEBACK_CHARS)
    assert text.startswith("(")


def test_line_that_is_too_long_keeps_what_is_agreed_upon() -> None:
    """`LOG_LINE_BYTES`, `LOG_SHORT_CHARS`; escapes take six times as much."""
    long = "\x01" * LOG_MESSAGE_CHARS
    event = {**CALM, "log_format": "{a}", "a": long, "session": "4f8a6bb6", "b": long, "n": 1}
    for name in ("server", "identity", "reason"):
        event[name] = long
    event["log_failure"] = failure(long)
    line = json_line(event)
    assert line is not None
    assert len(line) <= LOG_LINE_BYTES + 1
    found = json.loads(line)
    assert found["session"] == "4f8a6bb6"
    assert "b" not in found
    assert found["message"].startswith("\x01" * LOG_SHORT_CHARS + "... (cut; ")
    assert len(found["traceback"]) == LOG_SHORT_CHARS


VALUES = (
    st.text(st.characters(), max_size=40)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.none()
    | st.binary()
    | st.lists(st.integers())
)


@given(st.dictionaries(st.text(st.characters(), max_size=12), VALUES), st.text(st.characters()))
def test_every_event_is_a_line(fields: dict[str, Any], text: str) -> None:
    """Whatever is in it, surrogates included."""
    found = read({"log_time": 1.0, **fields, "log_format": "{a}.", "a": text, **CALM})
    assert found["component"] == "web.site"
