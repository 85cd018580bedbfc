"""The status for a terminal: what fits, and what cannot harm it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge import status_text
from mcpbridge.status_text import (
    RECENT_SECONDS,
    SHOWN_FAILURES,
    Style,
    columns,
    duration,
    is_failing,
    size,
    status_lines,
)

HOSTILE = "\x1b[2J\u202eevil\nnext\x00"


def failure(what: str = "it ended", when: float = 990.0, **members: Any) -> dict[str, Any]:
    base = {"when": when, "what": what, "session": "1a2b3c4d", "exit": "", "stderr": []}
    return {**base, **members}


def server(name: str = "a", state: str = "ready", **members: Any) -> dict[str, Any]:
    uses = ("session", "exclusive", "concurrent", "warm", "starting", "ending")
    return {
        "name": name,
        "path": "/a",
        "state": state,
        "since": None,
        "why": "",
        "retry_in": None,
        "sessions": {"live": 1, "opened": 5, "limit": 100},
        "processes": {**dict.fromkeys(uses, 0), "session": 1, "warm": 2},
        "waiting": 0,
        "requests": 100,
        "errors": 3,
        "messages": {"in": 1, "out": 1, "bytes_in": 1, "bytes_out": 1},
        "latency": {"p50": 0.01, "p95": None},
        "closed": {},
        "exits": {},
        "refusals": {},
        "failures": [],
        **members,
    }


def session(**members: Any) -> dict[str, Any]:
    return {
        "id": "1a2b3c4d",
        "server": "a",
        "transport": "sse",
        "identity": "",
        "client": "inspector 1.0",
        "opened": 900.0,
        "state": "open",
        "pid": 12,
        "messages_in": 1,
        "messages_out": 2,
        "bytes_in": 3,
        "bytes_out": 2048,
        "refused": 0,
        "memory_bytes": None,
        "processes": None,
        **members,
    }


def document(**members: Any) -> dict[str, Any]:
    return {
        "version": "1.2",
        "pid": 1,
        "condition": "serving",
        "started": 0.0,
        "now": 1000.0,
        "urls": [],
        "memory_bytes": 50_000_000,
        "descriptors": 31,
        "loop_lag": 0.0012,
        "sessions": {"live": 1, "limit": 1000},
        "connections": {"open": 1, "limit": 10000},
        "refusals": {},
        "servers": [server()],
        "listed": [session()],
        "not_listed": 0,
        **members,
    }


def text_of(found: dict[str, Any], width: int = 200, *, colours: bool = False) -> str:
    return "\n".join(status_lines(found, Style(width, colours)))


def test_it_says_how_the_bridge_is() -> None:
    text = text_of(document(refusals={"NotFound": 1}, not_listed=7))
    assert "mcpbridge 1.2, pid 1, serving, 16 min 40 s" in text
    assert "sessions 1 of 1000, connections 1 of 10000, memory 48 MiB, 31 descriptors" in text
    assert "loop lag 1 ms" in text
    assert "refused: NotFound 1" in text
    assert "a       ready  1/100     3 (2 warm)  100       3       10 ms  -" in text
    assert "1a2b3c4d  a       open   1 min 40 s  inspector 1.0" in text
    assert "and 7 more" in text
    assert "no sessions" in text_of(document(listed=[], memory_bytes=None))


def test_refusals_of_all_servers_are_added() -> None:
    servers = [server(refusals={"X": 1}), server("b", refusals={"X": 2, "Y": 1})]
    assert "refused: X 4, Y 1" in text_of(document(servers=servers, refusals={"X": 1}))


def test_a_failing_server_says_why() -> None:
    failing = server(
        "bad",
        "failing",
        since=970.0,
        why="cannot start 'x'",
        retry_in=3,
        failures=[failure(exit="exit status 1", stderr=["KEY is missing", "stdout: hello"])] * 3,
    )
    found = document(servers=[failing])
    text = text_of(found)
    assert is_failing(found)
    assert not is_failing(document())
    assert "bad: failing for 30 s: cannot start 'x'; next try in 3 s" in text
    assert "  10 s ago: it ended; exit status 1 (session 1a2b3c4d)" in text
    assert "    stderr: KEY is missing\n    stdout: hello" in text
    assert text.count("it ended") == SHOWN_FAILURES


def test_a_server_that_works_shows_what_has_failed_lately() -> None:
    failures = [failure("first"), failure("second")]
    text = text_of(document(servers=[server(failures=failures)]))
    assert "first" in text
    assert "second" not in text
    old = [failure("first", when=1000.0 - RECENT_SECONDS)]
    assert "first" not in text_of(document(servers=[server(failures=old)]))


def test_a_server_that_only_starts_needs_no_line() -> None:
    text = text_of(document(servers=[server(state="starting", since=990.0)]))
    assert "starting for" not in text


@pytest.mark.parametrize("width", [1, 8, 20, 40, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    wide = "\u7aef" * 50
    found = document(
        servers=[
            server(wide, "failing", why="x " * 100, failures=[failure(wide, stderr=["y" * 300])])
        ],
        listed=[session(client=wide, identity="i" * 100)],
    )
    least = max(width, status_text._NARROWEST)
    assert all(columns(line) <= least for line in status_lines(found, Style(width)))


def test_ids_are_whole_where_there_is_room_for_them() -> None:
    """Who ends a session has to know them."""
    for width in (40, 60, 80):
        assert "1a2b3c4d" in text_of(document(), width)


def test_control_characters_are_made_visible() -> None:
    found = document(
        servers=[
            server(
                HOSTILE,
                "failing",
                why=HOSTILE,
                refusals={HOSTILE: 1},
                failures=[failure(HOSTILE, stderr=[HOSTILE], exit=HOSTILE, session=HOSTILE)],
            )
        ],
        listed=[session(client=HOSTILE, identity=HOSTILE, server=HOSTILE, id=HOSTILE)],
    )
    assert all(line.isprintable() for line in status_lines(found, Style(1000)))


def test_colours_are_only_where_they_are_wanted() -> None:
    found = document(servers=[server(state="failing")])
    assert "\x1b[31mfailing\x1b[0m" in text_of(found, colours=True)
    assert "\x1b" not in text_of(found)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (7260, "2 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (50 << 20, "50 MiB"), (3 << 30, "3.0 GiB")],
)
def test_sizes_are_readable(number: int, text: str) -> None:
    assert size(number) == text


@given(st.text(), st.text(), st.integers(1, 120))
def test_whatever_servers_say_fits_and_is_printable(name: str, what: str, width: int) -> None:
    found = document(
        servers=[server(name, "failing", why=what, failures=[failure(what, stderr=[name])])],
        listed=[session(client=name, identity=what)],
    )
    least = max(width, status_text._NARROWEST)
    for line in status_lines(found, Style(width)):
        assert line.isprintable()
        assert columns(line) <= least
