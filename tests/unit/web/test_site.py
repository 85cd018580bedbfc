"""The access log shows the target of a request, but never a whole session id."""

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
