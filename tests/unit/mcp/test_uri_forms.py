"""The spellings of a URI that a server may take for one resource."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.mcp.uri_forms import (
    DECODINGS,
    WILDCARD,
    UriForms,
    any_forms,
    pattern_forms,
    uri_forms,
)


@pytest.mark.parametrize(
    ("uri", "normal", "path", "whole"),
    [
        ("file:///a/b", "file:///a/b", "file:/a/b", "file:/a/b"),
        ("FILE:///a/%62", "file:///a/b", "file:/a/b", "file:/a/b"),
        ("file:/a", "file:/a", "file:/a", "file:/a"),
        ("file://localhost/a", "file://localhost/a", "file:/a", "file:/a"),
        ("file://host/a", "file://host/a", "file:/host/a", "file:/host/a"),
        ("file:////a//b/", "file:////a//b/", "file:/a/b/", "file:/a/b/"),
        ("file:///a/./b/..", "file:///a/", "file:/a/", "file:/a/"),
        ("file:///../../a", "file:///a", "file:/a", "file:/a"),
        ("file:///a\\..\\b", "file:///a\\..\\b", "file:/b", "file:/b"),
        ("file:///a%2f%2E%2e/b", "file:///a%2F../b", "file:/b", "file:/b"),
        ("file:///a%00.txt", "file:///a%00.txt", "file:/a", "file:/a"),
        ("file:///a?/../b#c", "file:///a?/../b#c", "file:/a", "file:/b#c"),
        ("http://me@HOST:80/a", "http://me@host:80/a", "http:/host/a", "http:/host/a"),
        ("http://host.:8080/a", "http://host.:8080/a", "http:/host.:8080/a", "http:/host.:8080/a"),
        ("http://host./a", "http://host./a", "http:/host/a", "http:/host/a"),
        ("http://host:/a", "http://host:/a", "http:/host/a", "http:/host/a"),
        ("db://a/../b", "db://a/b", "db:/b", "db:/b"),
        ("urn:a:b", "urn:a:b", "urn:/a:b", "urn:/a:b"),
        ("memo:a%2Fb", "memo:a%2Fb", "memo:/a/b", "memo:/a/b"),
        (" memo:a", "memo:a", "memo:/a", "memo:/a"),
        ("note", "note", "note", "note"),
        ("../n%6fte", "../note", "note", "note"),
        ("", "", "", ""),
    ],
)
def test_forms(uri: str, normal: str, path: str, whole: str) -> None:
    assert uri_forms(uri) == UriForms(uri, normal, path, whole)


def test_how_often_it_is_decoded() -> None:
    encoded = "%" + "25" * (DECODINGS - 1) + "61"
    assert uri_forms(f"x:{encoded}").path == "x:/a"
    assert uri_forms(f"x:%25{encoded[1:]}").path == "x:/%61"


parts = st.sampled_from(
    [
        "a",
        "B",
        ":",
        "/",
        ".",
        "..",
        "file:",
        "//",
        "-",
        "~",
        "http:",
        "x.",
        "%2e",
        "%",
        "?",
        "#",
        "@",
    ]
)


@given(st.lists(parts, max_size=9).map("".join) | st.text(max_size=30))
def test_the_quick_way_is_the_same(uri: str) -> None:
    assert uri_forms(uri) == any_forms(uri)


@given(st.lists(parts, max_size=9).map("".join))
def test_a_form_has_no_other_form(uri: str) -> None:
    path = uri_forms(uri).path
    assert "//" not in path
    assert "/../" not in path


@pytest.mark.parametrize(
    ("pattern", "forms"),
    [
        ("file:///a/*", ("file:///a/*", "file:///a/*", "file:/a/*", "file:/a/*")),
        ("file:///a/../*", ("file:///a/../*", "file:///*", "file:/*", "file:/*")),
        ("*/secret/*", ("*/secret/*",) * 2 + ("*/secret/*",) * 2),
        ("*://x/*", ("*://x/*", "*://x/*", "*:/x/*", "*:/x/*")),
        ("no*%61", ("no*%61", "no*a", "no*a", "no*a")),
        ("a%2A", ("a%2A", "a%2A", "a*", "a*")),
    ],
)
def test_patterns(pattern: str, forms: tuple[str, ...]) -> None:
    found = pattern_forms(pattern)
    if "%2A" in pattern:
        # What is encoded is no wildcard.
        assert WILDCARD not in "".join(found)
    assert tuple(each.replace(WILDCARD, "*") for each in found) == forms
