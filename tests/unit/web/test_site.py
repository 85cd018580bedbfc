"""What the access log shows of what a client has sent: never a whole session id."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.web.site import redacted

IDENT = "4f8a6bb6-3a5c-4b33-9c0c-7d1e7e0a51c2"
DIGITS = IDENT.replace("-", "")


def escaped(text: str, times: int) -> str:
    """Every character, as often as that."""
    for _ in range(times):
        text = quote(text) if "%" in text else "".join(f"%{ord(c):02x}" for c in text)
    return text


def longest_piece(shown: str) -> int:
    """How many digits of the id stand in a row, hyphens left out."""
    plain = re.sub("[^0-9a-z]", "", shown.lower())
    return max(n for n in range(33) if any(DIGITS[at : at + n] in plain for at in range(33 - n)))


@pytest.mark.parametrize("before", ["", "x", "_", "Z", "9", "f", "-", "a-", "id=", "\u00e4"])
@pytest.mark.parametrize("behind", ["", "x", "_", "0", "-", "&x=1"])
@pytest.mark.parametrize("ident", [IDENT, IDENT.upper(), DIGITS, IDENT[9:], IDENT[:30]])
def test_id_is_cut_whatever_stands_around_it(before: str, behind: str, ident: str) -> None:
    """A letter or an underscore before it, pieces of it, and however often it is escaped."""
    for times in range(5):
        target = f"/message?sessionId={before}{escaped(ident, times)}{behind}"
        assert longest_piece(redacted(target.encode())) <= 8


@given(st.integers(1900, 2100), st.integers(0, 4))
def test_id_where_a_target_is_cut(length: int, times: int) -> None:
    """What is cut off does not make an id look like something else."""
    target = "/" + "x" * length + escaped(IDENT, times)
    assert longest_piece(redacted(target.encode())) <= 8


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
def test_what_is_no_id_is_shown(target: bytes, shown: str) -> None:
    assert redacted(target) == shown
