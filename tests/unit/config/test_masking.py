"""What is shown of values that may hold secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.config.masking import masked_arguments, masked_text, masked_url, printable

SECRET = "hush"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("-y @modelcontextprotocol/server-filesystem /srv/shared", None),
        ("--port 8080 --local-timezone=Europe/Berlin -v", None),
        ("run -i --rm ghcr.io/x/y@sha256:" + "a1" * 32, None),
        ("server@1.2.3-beta.20250101", None),
        ("/home/me/mcp-2025-server-final1/index.js", None),
        ("-e GITHUB_TOKEN image:latest", None),
        ("--api-key hush next", "--api-key *** next"),
        ("--api-key=hush", "--api-key=***"),
        ("--token --verbose", "--token --verbose"),
        ("-e GITHUB_TOKEN=hush", "-e GITHUB_TOKEN=***"),
        ("--db postgresql://me:hush@db:5432/x", "--db postgresql://***@db:5432/x"),
        ("--db me:hush@db", "--db ***@db"),
        ("https://x.org/mcp?key=hush", "https://x.org/mcp?key=***"),
        ("--url=https://x.org/mcp?hush", "--url=https://x.org/mcp?***"),
        ("https://x.org/s/a1b2c3d4e5f6a7b8c9d0/mcp", "https://x.org/s/***/mcp"),
        ("sk-hush123", "***"),
        ("ghp_hush123hush", "***"),
        ("a1b2c3d4e5f6a7b8c9d0", "***"),
    ],
)
def test_arguments(arguments: str, shown: str | None) -> None:
    expected = arguments if shown is None else shown
    assert " ".join(masked_arguments(arguments.split())) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer hush", "Authorization: ***"),
        ("X-Thing: Bearer hush", "X-Thing: Bearer ***"),
        ('{"apiKey": "hush"}', "***"),
        ("cd /srv && API_KEY=hush exec server", "cd /srv && API_KEY=*** exec server"),
        ("exec server --api-key hush", "exec server --api-key ***"),
        ("exec server --port 80", "exec server --port 80"),
        ("API_KEY=hush exec npx foo --url https://x.org", "API_KEY=***"),
        ("exec foo --url https://x.org --token hush", "exec foo --url https://x.org --token ***"),
        ("ghp_hush123hush https://x.org/?k=hush", "*** https://x.org/?k=***"),
        ('{"password": "hush", "url": "https://x.org"}', "***"),
        ("x-api-key: hush https://x.org", "x-api-key: ***"),
        ("get https://a.org http://b.org\0https://c.org", None),
    ],
)
def test_longer_texts(text: str, shown: str | None) -> None:
    assert masked_text(text) == (text.replace("\0", " ") if shown is None else shown)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://x.org", "https://x.org"),
        ("http://[::1]:8080/mcp", "http://[::1]:8080/mcp"),
        ("https://me:hu/sh@x.org/mcp", "https://***@x.org/mcp"),
        ("https://x.org/?a=hush&b=hush", "https://x.org/?a=***&b=***"),
        ("https://x.org/?a1b2c3d4e5f6a7b8c9d0=hush", "https://x.org/?***"),
        ("https://x.org/#hush", "https://x.org/#***"),
        ("hush and https://x", "***"),
        ("plain", "plain"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert masked_url(url) == shown


@given(st.text(), st.sampled_from(["--token", "--api-key", "PASSWORD", "Authorization"]))
def test_a_named_secret_is_never_shown(before: str, name: str) -> None:
    shown = list(masked_arguments([before, name, f"{name}={SECRET}", f"{name}: {SECRET}"]))
    assert SECRET not in "".join(shown[2:])
    masked_url(before)


def test_what_a_terminal_does_not_print_is_escaped() -> None:
    assert printable("a\x1b[1m\u202eb\nü") == "a\\x1b[1m\\u202eb\\nü"
