"""
The site: what the access log shows of what a client has sent, which is never a
whole session id, and how connections are closed when the bridge stops.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.web.resource import Resource

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.web.client_addresses import Peer
from mcpbridge.web.site import _DECODINGS, _SHOWN_BYTES, CLOSE_SECONDS, BridgeSite, redacted

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


class FakeChannel:
    """A connection that does not close before the test says so."""

    peer = Peer("192.0.2.1")

    def __init__(self) -> None:
        self.transport = self
        self.told: list[str] = []

    def loseConnection(self) -> None:
        self.told.append("close")

    def abortConnection(self) -> None:
        self.told.append("abort")


def test_connections_that_do_not_close_are_aborted() -> None:
    """After `CLOSE_SECONDS`, and then as often again."""
    clock = Clock()
    settings = BridgeSettings(servers=(ServerSettings(command="x"),))
    site = BridgeSite(Resource(), clock, settings)
    channels: list[Any] = [FakeChannel(), FakeChannel()]
    for each in channels:
        assert site.opened(each)
    closed: list[None] = []
    site.close_connections().addCallback(closed.append)
    clock.advance(CLOSE_SECONDS * 0.9)
    site.closed(channels[0])
    assert channels[1].told == ["close"]
    clock.advance(CLOSE_SECONDS * 0.2)
    assert channels[1].told == ["close", "abort"]
    clock.advance(CLOSE_SECONDS)
    assert channels[1].told == ["close", "abort", "abort"]
    assert closed == []
    site.closed(channels[1])
    assert closed == [None]
    assert channels[0].told == ["close"]
    assert clock.getDelayedCalls() == []
