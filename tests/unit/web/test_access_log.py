"""
The access log: what it shows of what a client has sent, which is never a whole
session id, and when its lines are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import BytesIO, StringIO
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import (
    FileLogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    eventAsText,
    formatEvent,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.web.resource import Resource

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import ACCESS_LOG_CHARACTERS, ACCESS_LOG_LINES, ACCESS_LOG_SECONDS
from mcpbridge.logs.json_lines import json_line
from mcpbridge.logs.levels import LevelFilter, Levels
from mcpbridge.script import console_line, console_observer
from mcpbridge.web import access_log
from mcpbridge.web.access_log import (
    _DECODINGS,
    _REMEMBERED,
    _REMEMBERED_BYTES,
    _SHOWN_BYTES,
    AccessLog,
    LoggedRequest,
    redacted,
)
from mcpbridge.web.site import BridgeSite

IDENT = "4f8a6bb6-3a5c-4b33-9c0c-7d1e7e0a51c2"
DIGITS = IDENT.replace("-", "")


def escaped(text: str, times: int) -> str:
    """Percent-encode every character this many times."""
    for _ in range(times):
        text = quote(text) if "%" in text else "".join(f"%{ord(c):02x}" for c in text)
    return text


def longest_part_of_the_id(shown: str) -> int:
    """Return how many digits of the id appear in a row, ignoring hyphens."""
    plain = re.sub("[^0-9a-z]", "", shown.lower())
    return max(n for n in range(33) if any(DIGITS[at : at + n] in plain for at in range(33 - n)))


@pytest.mark.parametrize("before", ["", "x", "_", "Z", "9", "f", "-", "a-", "id=", "\u00e4"])
@pytest.mark.parametrize("behind", ["", "x", "_", "0", "-", "&x=1"])
@pytest.mark.parametrize("ident", [IDENT, IDENT.upper(), DIGITS, IDENT[9:], IDENT[:30]])
def test_session_id_is_cut_whatever_surrounds_it(before: str, behind: str, ident: str) -> None:
    """With a letter or an underscore before it, in part, and percent-encoded several times."""
    for times in range(5):
        target = f"/message?sessionId={before}{escaped(ident, times)}{behind}"
        assert longest_part_of_the_id(redacted(target.encode())) <= 8


@pytest.mark.parametrize(
    "name", ["token", "access_token", "client-secret", "password", "apikey", "api_key", "X-API-Key"]
)
def test_value_of_a_parameter_that_may_be_a_secret_is_left_out(name: str) -> None:
    assert redacted(f"/mcp?a=1&{name}=hidden;b=2".encode()) == f"/mcp?a=1&{name}=...;b=2"
    assert redacted(f"/mcp?{name}%3Dhidden".encode()) == f"/mcp?{name}=..."


@given(st.integers(1900, 2100), st.integers(0, 4))
def test_session_id_is_cut_at_the_end_of_a_long_target(length: int, times: int) -> None:
    """Truncating the target must not hide that this is an id."""
    target = "/" + "x" * length + escaped(IDENT, times)
    assert longest_part_of_the_id(redacted(target.encode())) <= 8


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"/message?sessionId=" + IDENT.encode(), "/message?sessionId=4f8a6bb6..."),
        (b"/a%20b?x=2025-11-25", "/a b?x=2025-11-25"),
        (b"/a%250d", "/a%0d"),
        (b"/a%0d%0aforged\\", "/a\\r\\nforged\\\\"),
        (b"/a%252525252525", "/a"),
    ],
)
def test_target_without_a_session_id_is_logged_unescaped(target: bytes, shown: str) -> None:
    assert redacted(target) == shown


def test_long_target_is_cut() -> None:
    """`_SHOWN_BYTES`."""
    longest = "/" + "x" * (_SHOWN_BYTES - 1)
    assert redacted(longest.encode()) == longest
    assert redacted(longest.encode() + b"y") == longest


@pytest.mark.parametrize(("times", "shown"), [(_DECODINGS - 1, True), (_DECODINGS, False)])
def test_target_is_decoded_a_limited_number_of_times(times: int, shown: bool) -> None:
    """`_DECODINGS`: of one that is escaped more often only the beginning is shown."""
    target = "/a%" + "25" * times + "2f"
    assert redacted(target.encode()) == ("/a%" + "25" * (times - 1) + "2f" if shown else "/a")


# When lines are written, and in which form.

#: A second in which the log of these tests begins.
BEGIN = 1_900_000_000.0


class Written:
    """An access log with one observer, and a clock that also tells the time of day."""

    def __init__(self, *observers: Any) -> None:
        self.clock = Clock()
        self.log = AccessLog(
            self.clock,
            Logger(namespace="site", observer=LogPublisher(*observers)),
            lambda: BEGIN + self.clock.seconds(),
        )

    def add(
        self,
        target: bytes = b"/mcp",
        peer: str = "192.0.2.1",
        method: bytes = b"POST",
        code: int = 202,
        size: int = 0,
        session: bytes | None = None,
    ) -> None:
        self.log.add(LoggedRequest.of(peer, method, target, session), code, size)


class CountingFile(StringIO):
    """A text file that counts how often it is written to."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def as_events(observer: Callable[[LogEvent], None], *requests: tuple[float, Any]) -> None:
    """Log requests as `Logger.info` does, one event for each, at their times."""
    for when, request in requests:
        peer, method, uri, code, size, session = request
        observer(
            {
                "log_level": LogLevel.info,
                "log_namespace": "site",
                "log_time": when,
                "log_format": "{peer} {method} {uri} {code} {size}"
                + (" {session}" if session else ""),
                "peer": peer,
                "method": redacted(method)[:20],
                "uri": redacted(uri),
                "code": code,
                "size": size,
                **({"session": session[:8]} if session else {}),
            }
        )


REQUEST = st.tuples(
    st.sampled_from(["192.0.2.1", "fe80::1%eth0", "-"]),
    st.binary(max_size=30),
    st.binary(max_size=300),
    st.integers(100, 599),
    st.integers(0, 2**40),
    st.none() | st.just(IDENT),
)


MAKERS: list[Callable[[StringIO], FileLogObserver]] = [
    textFileLogObserver,
    lambda file: textFileLogObserver(file, "%H:%M:%S.%f"),
    lambda file: textFileLogObserver(file, None),
    lambda file: FileLogObserver(file, console_line),
    lambda file: FileLogObserver(file, json_line),
    lambda file: FileLogObserver(file, lambda event: f"{formatEvent(event)}|"),
    lambda file: FileLogObserver(
        file, lambda event: None if event["code"] < 400 else f"{eventAsText(event)}\n"
    ),
]


@given(
    make=st.sampled_from(MAKERS),
    requests=st.lists(st.tuples(st.floats(0, 0.7), REQUEST), max_size=20),
)
def test_file_has_the_same_text_as_from_one_event_for_each_request(
    make: Callable[[StringIO], FileLogObserver], requests: list[tuple[float, Any]]
) -> None:
    """Also over several seconds, and for formatters that only look as if they formatted a text."""
    file, expected = StringIO(), StringIO()
    written = Written(make(file))
    at: list[tuple[float, Any]] = []
    for pause, request in requests:
        written.clock.advance(pause)
        at.append((BEGIN + written.clock.seconds(), request))
        peer, method, target, code, size, session = request
        line = LoggedRequest.of(peer, method, target, session and session.encode())
        written.log.add(line, code, size)
    written.log.stop()
    as_events(make(expected), *at)
    assert file.getvalue() == expected.getvalue()
    assert written.clock.getDelayedCalls() == []


def test_other_observers_get_an_event_for_each_request() -> None:
    """With the fields that `Logger.info` gives it, and the time of the request."""
    events: list[LogEvent] = []
    observe: Any = events.append
    written = Written(observe)
    written.add()
    written.clock.advance(ACCESS_LOG_SECONDS / 2)
    written.add(b"/sse", session=IDENT.encode())
    written.log.flush()
    assert [event["log_time"] for event in events] == [BEGIN, BEGIN + ACCESS_LOG_SECONDS / 2]
    expected: list[LogEvent] = []
    publisher: Any = expected.append
    log = Logger(namespace="site", observer=publisher)
    fields: Any = {"peer": "192.0.2.1", "method": "POST", "uri": "/sse", "code": 202, "size": 0}
    log.info("{peer} {method} {uri} {code} {size} {session}", session="4f8a6bb6", **fields)
    for event in (events[1], expected[0]):
        del event["log_time"], event["log_logger"]
    assert events[1] == expected[0]
    written.log.stop()


def test_json_log_has_an_event_for_each_request() -> None:
    file = StringIO()
    written = Written(jsonFileLogObserver(file))
    for _ in range(3):
        written.add()
    written.log.stop()
    assert file.getvalue().count('"uri": "/mcp"') == 3


def test_lines_of_json_are_written_at_once() -> None:
    """As `json_line` formats them, with the session as a field, and without one."""
    file = CountingFile()
    written = Written(FileLogObserver(file, json_line))
    written.add(peer='"\u2028')
    written.add(b"/sse", session=IDENT.encode())
    written.log.flush()
    assert file.writes == 1
    first, second = (json.loads(line) for line in file.getvalue().split("\n")[:-1])
    assert (first["peer"], "session" in first, file.getvalue().isascii()) == (
        '"\u2028',
        False,
        True,
    )
    assert second == {
        "time": "2030-03-17T17:46:40.000Z",
        "level": "info",
        "component": "site",
        "message": "192.0.2.1 POST /sse 202 0 4f8a6bb6",
        "peer": "192.0.2.1",
        "method": "POST",
        "uri": "/sse",
        "code": 202,
        "size": 0,
        "session": "4f8a6bb6",
    }
    written.log.stop()


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        (["info"], True),
        (["warn"], False),
        (["warn", "access=info"], True),
        (["info", "access=warn"], False),
    ],
)
@pytest.mark.parametrize("formatter", [console_line, json_line, formatEvent])
def test_level_holds_for_the_access_log(levels: list[str], shown: bool, formatter: Any) -> None:
    """Also where lines are written to a file directly."""
    file = StringIO()
    written = Written(LevelFilter(FileLogObserver(file, formatter), Levels(levels)))
    written.log = AccessLog(
        written.clock,
        Logger(
            namespace="mcpbridge.access",
            observer=LogPublisher(LevelFilter(FileLogObserver(file, formatter), Levels(levels))),
        ),
        lambda: BEGIN,
    )
    written.add()
    written.log.stop()
    assert bool(file.getvalue()) is shown


def test_lines_wait_for_a_moment_and_are_written_at_once() -> None:
    """`ACCESS_LOG_SECONDS`, from the first line on."""
    file = CountingFile()
    written = Written(textFileLogObserver(file))
    for _ in range(3):
        written.add()
        written.clock.advance(ACCESS_LOG_SECONDS * 0.3)
    assert file.writes == 0
    written.clock.advance(ACCESS_LOG_SECONDS * 0.2)
    assert (file.writes, file.getvalue().count("\n")) == (1, 3)
    assert written.clock.getDelayedCalls() == []
    written.add()
    written.clock.advance(ACCESS_LOG_SECONDS)
    assert (file.writes, file.getvalue().count("\n")) == (2, 4)


def test_so_many_lines_are_written_at_once() -> None:
    """`ACCESS_LOG_LINES`; the timer that runs serves the lines that follow."""
    file = CountingFile()
    written = Written(textFileLogObserver(file))
    for _ in range(ACCESS_LOG_LINES - 1):
        written.add()
    assert file.writes == 0
    written.add()
    assert (file.writes, file.getvalue().count("\n")) == (1, ACCESS_LOG_LINES)
    written.add()
    assert len(written.clock.getDelayedCalls()) == 1
    written.clock.advance(ACCESS_LOG_SECONDS)
    assert (file.writes, file.getvalue().count("\n")) == (2, ACCESS_LOG_LINES + 1)


def test_so_many_characters_are_written_at_once() -> None:
    """`ACCESS_LOG_CHARACTERS` of methods and targets, as they are shown."""
    file = CountingFile()
    written = Written(textFileLogObserver(file))
    method, target = b"X" * 20, b"/" * 1004
    lines, rest = divmod(ACCESS_LOG_CHARACTERS, len(method) + len(target))
    assert (rest, lines < ACCESS_LOG_LINES) == (0, True)
    for _ in range(lines - 1):
        written.add(target, method=method)
    written.add(target[1:], method=method)
    assert file.writes == 0
    written.add(b"/", method=b"")
    assert (file.writes, file.getvalue().count("\n")) == (1, lines + 1)
    written.add()
    assert file.writes == 1
    written.log.stop()


def test_stop_writes_what_waits_and_then_each_line() -> None:
    file = CountingFile()
    written = Written(textFileLogObserver(file))
    written.add()
    written.log.stop()
    assert (file.writes, file.getvalue().count("\n")) == (1, 1)
    written.add()
    assert (file.writes, file.getvalue().count("\n")) == (2, 2)
    assert written.clock.getDelayedCalls() == []


def test_stop_without_a_line_writes_nothing() -> None:
    file = CountingFile()
    Written(textFileLogObserver(file)).log.stop()
    assert file.writes == 0


def test_form_of_a_line_is_found_once_a_second_for_each_file() -> None:
    """Not for each batch: a busy bridge writes hundreds in a second."""
    asked: list[float] = []

    observer = textFileLogObserver(CountingFile())
    format_event = observer.formatEvent

    def counting(event: LogEvent) -> str | None:
        asked.append(event["log_time"])
        return format_event(event)

    counting.__module__, counting.__qualname__ = format_event.__module__, format_event.__qualname__
    observer.formatEvent = counting
    written = Written(observer)
    for _ in range(5):
        written.add()
        written.log.flush()
    first = len(asked)
    assert 0 < first < 5
    written.clock.advance(1)
    for _ in range(5):
        written.add()
        written.log.flush()
    assert len(asked) == 2 * first
    written.log.stop()


def test_file_in_bytes_is_written_in_its_encoding() -> None:
    file = BytesIO()
    written = Written(textFileLogObserver(file))
    written.add()
    written.log.stop()
    assert file.getvalue().endswith(b" [site#info] 192.0.2.1 POST /mcp 202 0\n")


def test_files_are_found_under_a_publisher_and_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """The observer of the console script is written to in one piece as well."""
    clock = Clock()
    log = AccessLog(clock, Logger(namespace="site", observer=console_observer()), lambda: BEGIN)
    log.add(LoggedRequest.of("192.0.2.1", b"GET", b"/sse", None), 200, 7)
    log.stop()
    assert capsys.readouterr().out.endswith(" 192.0.2.1 GET /sse 200 7\n")


def test_the_console_formatter_is_known() -> None:
    known = access_log._CONSOLE_FORMATTER
    assert known == (console_line.__module__, console_line.__qualname__)


def test_a_file_that_cannot_be_written_spares_the_others() -> None:
    """The failure is logged, and later lines are tried again."""

    class Full(StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    full, file = Full(), StringIO()
    written = Written(textFileLogObserver(full), textFileLogObserver(file))
    written.add(b"/first")
    written.log.flush()
    assert "writing the access log failed" in file.getvalue()
    assert "POST /first 202" in file.getvalue()
    full.full = False
    written.add(b"/second")
    written.log.stop()
    assert "POST /second 202" in full.getvalue()


def test_a_broken_observer_spares_the_others() -> None:
    seen: list[LogEvent] = []

    def broken(event: LogEvent) -> None:
        if "uri" in event:
            raise ValueError("no uri, please")

    observe: Any = seen.append
    written = Written(broken, observe)
    written.add()
    written.log.stop()
    assert [event["uri"] for event in seen if "uri" in event] == ["/mcp"]


def test_a_limited_number_of_short_targets_is_remembered() -> None:
    """`_REMEMBERED`, `_REMEMBERED_BYTES`."""
    written = Written()
    cache = access_log._remembered
    assert cache.cache_info().maxsize == _REMEMBERED
    cache.cache_clear()
    written.add(b"/" + b"x" * (_REMEMBERED_BYTES - 1))
    written.log.flush()
    assert cache.cache_info().currsize == 2
    written.add(b"/" + b"x" * _REMEMBERED_BYTES)
    written.log.stop()
    assert cache.cache_info().currsize == 2


class FakeRequest:
    """What `Site.log` reads of a request."""

    def __init__(self, *sessions: bytes) -> None:
        self.requestHeaders = self
        self.client = None
        self.method, self.uri, self.code, self.sentLength = b"GET", b"/mcp", 200, 5
        self._sessions = sessions

    def getRawHeaders(self, name: bytes) -> list[bytes] | None:
        assert name == b"mcp-session-id"
        return list(self._sessions) or None


@pytest.mark.parametrize(
    ("sessions", "shown"),
    [
        ((), ""),
        ((IDENT.encode(),), " 4f8a6bb6"),
        ((IDENT.encode(), b"x"), " 4f8a6bb6"),
        ((IDENT[:20].encode(),), ""),
        ((b"x" * 50,), ""),
    ],
)
def test_site_names_the_session_of_a_request(
    sessions: tuple[bytes, ...], shown: str, log_lines: list[str]
) -> None:
    """And writes all lines before it closes its connections."""
    clock = Clock()
    site = BridgeSite(
        Resource(),
        clock,
        BridgeSettings(servers=(ServerSettings(command="x"),), access_log=True),
    )
    site.log(FakeRequest(*sessions))
    assert log_lines == []
    site.close_connections()
    assert log_lines == [f"- GET /mcp 200 5{shown}"]
    assert clock.getDelayedCalls() == []


def test_site_without_an_access_log_logs_no_request(log_lines: list[str]) -> None:
    site = BridgeSite(Resource(), Clock(), BridgeSettings(servers=(ServerSettings(command="x"),)))
    site.log(FakeRequest())
    site.close_connections()
    assert log_lines == []
