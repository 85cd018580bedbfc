"""What clients are told to type, for servers with all kinds of names and headers."""

from __future__ import annotations

import ast
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.web.client_snippets import (
    CLIENTS,
    KNOWN_TARGETS,
    Credentials,
    Target,
    configurations,
    rendered,
)

URL = "https://mcp.example.org/time/mcp"
RENDER = {each.ident: each.render for each in CLIENTS}
TIME = Target("time", URL)
WITH_TOKEN = TIME._replace(credentials=Credentials.TOKEN)


def file(ident: str, *targets: Target) -> dict[str, dict[str, dict[str, object]]]:
    found: dict[str, dict[str, dict[str, object]]] = json.loads(RENDER[ident](list(targets)))
    return found


def test_claude_code() -> None:
    assert RENDER["claude-code"]([TIME]) == f"claude mcp add --transport http time {URL}"
    assert RENDER["claude-code"]([WITH_TOKEN]) == (
        f'claude mcp add --transport http time {URL} --header "Authorization: Bearer $MCP_TOKEN"'
    )
    odd = TIME._replace(name="a b; rm -rf /", mcp="http://$(x)/mcp")
    assert shlex.split(RENDER["claude-code"]([odd]))[5:] == ["a-b-rm--rf", "http://$(x)/mcp"]
    assert " server " in RENDER["claude-code"]([TIME._replace(name="äö")])


def test_claude_desktop() -> None:
    args = ["-y", "mcp-remote", URL, "--transport", "http-only"]
    assert file("claude-desktop", TIME) == {
        "mcpServers": {"time": {"command": "npx", "args": args}}
    }
    target = WITH_TOKEN._replace(headers=("X-Key",))
    assert file("claude-desktop", target)["mcpServers"]["time"] == {
        "command": "npx",
        "args": [*args, "--header", "Authorization:${AUTH_HEADER}", "--header", "X-Key:${X_KEY}"],
        "env": {"AUTH_HEADER": "Bearer YOUR_TOKEN", "X_KEY": "YOUR_X_KEY"},
    }


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("http://127.0.0.1:8", False), ("http://localhost", False), ("http://h", True)],
)
def test_mcp_remote_is_allowed_plain_http_to_other_machines(origin: str, allowed: bool) -> None:
    [server] = file("claude-desktop", TIME._replace(mcp=f"{origin}/mcp"))["mcpServers"].values()
    assert ("--allow-http" in server["args"]) == allowed  # type: ignore[operator]


def test_vs_code_asks_for_each_secret_once() -> None:
    assert file("vs-code", TIME) == {"servers": {"time": {"type": "http", "url": URL}}}
    targets = [WITH_TOKEN, WITH_TOKEN._replace(name="b", headers=("X-Key",))]
    found = file("vs-code", *targets)
    assert [each["id"] for each in found["inputs"]] == ["token", "x_key"]  # type: ignore[index]
    assert found["servers"]["b"]["headers"] == {
        "Authorization": "Bearer ${input:token}",
        "X-Key": "${input:x_key}",
    }


def test_cursor() -> None:
    assert file("cursor", TIME) == {"mcpServers": {"time": {"url": URL}}}
    assert file("cursor", WITH_TOKEN)["mcpServers"]["time"] == {
        "url": URL,
        "headers": {"Authorization": "Bearer ${env:MCP_TOKEN}"},
    }


@pytest.mark.parametrize("credentials", [Credentials.OAUTH, Credentials.OTHER, Credentials.NONE])
def test_only_a_token_is_sent_by_hand(credentials: Credentials) -> None:
    """With OAuth clients get a token themselves."""
    target = TIME._replace(credentials=credentials)
    for each, text in rendered(target):
        assert "Authorization" not in text, each.ident


def test_configurations_are_files_and_commands() -> None:
    found = configurations(WITH_TOKEN)
    assert list(found) == ["claude-code", "claude-desktop", "vs-code", "cursor"]
    assert found["cursor"] == file("cursor", WITH_TOKEN)
    assert found["claude-code"].startswith("claude mcp add")


def test_no_more_than_known_targets_are_cached() -> None:
    rendered.cache_clear()
    for number in range(KNOWN_TARGETS + 5):
        rendered(TIME._replace(name=str(number)))
    assert rendered.cache_info().currsize == KNOWN_TARGETS


_HEADER = st.text("!#$%&'*+.^_`|~09azAZ-", min_size=1, max_size=8)


@given(st.text(max_size=20), st.lists(_HEADER, max_size=2, unique=True))
def test_any_name_and_header_can_be_written(name: str, headers: list[str]) -> None:
    target = Target(name, "http://h$'()&;/a%20b/mcp", Credentials.TOKEN, tuple(headers))
    for client in CLIENTS:
        text = client.render([target])
        if client.ident in ("claude-code", "curl"):
            assert target.mcp in shlex.split(text)
        elif client.ident == "python":
            ast.parse(text)
        elif client.ident != "typescript":
            names = next(iter(v for k, v in json.loads(text).items() if k != "inputs"))
            assert list(names) == [name]
