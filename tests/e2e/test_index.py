"""The index of a bridge: for programs, in a real browser, and what it tells people to type."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.web.client_snippets import CLIENTS, Credentials, Target
from tests.e2e.callers import CALLERS, TOKENS, Answer, ask, auth, authorization, demo, head
from tests.e2e.harness import Bridge, serving
from tests.real.chromium import browsing
from tests.real.parts import REAL, built, node

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("index")]

EVIL = '<img src=x onerror="document.title=1">&amp;'
CONFIG: dict[str, Any] = {
    "mcpServers": {
        "open": demo("/open", auth=False),
        "private": demo("/private"),
        "strict": demo("/strict", auth={"scopes": {"*": "use"}}),
        EVIL: demo("/evil", auth=False),
    },
    "bridge": {"auth": auth(bob=["private"])},
}
#: What each caller sees beside the servers that are open.
SEEN = {"alice": ["private", "strict"], "bob": ["private"], "carol": ["private"]}


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    with serving(config=CONFIG) as bridge:
        yield bridge


def get(bridge: Bridge, caller: str, *lines: str) -> Answer:
    return ask(bridge.port, head("GET", "/", [*authorization(caller), *lines]))


@pytest.mark.parametrize("caller", CALLERS)
def test_each_caller_sees_its_servers_alone(bridge: Bridge, caller: str) -> None:
    answer = get(bridge, caller)
    assert answer.status == 200
    document = answer.json
    names = [each["name"] for each in document["servers"]]
    expected = {"open", EVIL, *SEEN.get(caller, [])}
    assert (set(names), len(names)) == (expected, len(expected))
    assert ("version" in document["bridge"]) == (caller in SEEN)
    assert ("note" in document) == (caller not in SEEN)
    page = get(bridge, caller, "Accept: text/html")
    for name in ("private", "strict"):
        seen = name in SEEN.get(caller, [])
        for body in (answer.body, page.body):
            assert (f"/{name}".encode() in body) == seen
    for response in (answer, page):
        for token in TOKENS.values():
            assert token is None or token.encode() not in response.body
        assert response.headers["cache-control"] == "no-store"
        assert "Authorization" in response.headers["vary"]


def test_page_in_a_browser(bridge: Bridge, tmp_path: Path) -> None:
    origin = f"http://127.0.0.1:{bridge.port}"
    with browsing(tmp_path) as page:
        page.send(
            "Browser.grantPermissions",
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        )
        page.send("Page.bringToFront")
        page.open(f"{origin}/")
        names = "[...document.querySelectorAll('h2')].map(each => each.textContent)"
        assert page.evaluate(names) == ["All servers", "open", EVIL]
        assert page.evaluate("document.title") == f"MCP servers at {origin}"

        # One client's snippets are shown, those that were chosen.
        shown = "[...document.querySelectorAll('section:nth-of-type(2) .snippet')]"
        shown += ".filter(each => each.offsetParent).map(each => each.className)"
        assert page.evaluate(shown) == ["snippet for-claude-code"]
        page.evaluate("document.querySelector('#as-cursor').click()")
        assert page.evaluate(shown) == ["snippet for-cursor"]

        copied = "navigator.clipboard.readText()"
        for secure in (True, False):
            # Over plain HTTP to another machine there is no `navigator.clipboard`.
            value = f"{{value: {json.dumps(secure)}, configurable: true}}"
            page.evaluate(f"Object.defineProperty(window, 'isSecureContext', {value}); 0")
            page.evaluate("navigator.clipboard.writeText('')")
            page.evaluate("document.querySelector('section:nth-of-type(2) dd button').click()")
            page.wait_for(f"{copied}.then(text => text === '{origin}/open/mcp')")
        snippet = "document.querySelector('section:nth-of-type(2) .for-cursor')"
        page.evaluate(f"{snippet}.querySelector('button').click()")
        page.wait_for(
            f"{copied}.then(text => text === {snippet}.querySelector('code').textContent)"
        )

        # With a token, which stays in the page.
        for token, expected in (
            (TOKENS["wrong"], ["All servers", "open", EVIL]),
            (TOKENS["bob"], ["All servers", "open", "private", EVIL]),
        ):
            field = "document.querySelector('#token')"
            page.evaluate("document.querySelector('main').id = 'before'")
            page.evaluate(f"{field}.value = '{token}'; {field}.form.requestSubmit()")
            page.wait_for("!document.querySelector('#before')")
            assert page.evaluate(names) == expected
            assert page.evaluate("document.querySelector('#as-cursor').checked")
            assert ("not accepted" in page.evaluate("document.body.innerText")) == (
                token == TOKENS["wrong"]
            )
        assert page.evaluate("location.href") == f"{origin}/"

        # On a phone nothing is cut off.
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=360,
            height=640,
            deviceScaleFactor=1,
            mobile=True,
        )
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        for client in CLIENTS:
            page.evaluate(f"document.querySelector('#as-{client.ident}').click()")
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 360

        assert not page.complaints
        assert {each for each in page.requests if not each.startswith("data:")} == {f"{origin}/"}
    assert "<img" not in get(bridge, "nobody", "Accept: text/html").body.decode()


def test_snippets_connect(bridge: Bridge, tmp_path: Path) -> None:
    """What the page shows works as it is, with the SDKs that it names."""
    (tmp_path / "node_modules").symlink_to(built(REAL / "clients" / "node_modules"))
    run = {
        "python": ([built(REAL / "client2" / "bin" / "python")], "snippet.py"),
        "typescript": ([node()], "snippet.mjs"),
        "curl": ([shutil.which("sh") or "sh"], "snippet.sh"),
    }
    environment = {**os.environ, "MCP_TOKEN": str(TOKENS["alice"]), "X_EXTRA": "1"}
    origin = f"http://127.0.0.1:{bridge.port}"
    for target in (
        Target("open", f"{origin}/open/mcp"),
        Target("private", f"{origin}/private/mcp", Credentials.TOKEN, ("X-Extra",)),
    ):
        for client in CLIENTS:
            if client.ident in run:
                program, name = run[client.ident]
                (tmp_path / name).write_text(client.render([target]), encoding="utf-8")
                done = subprocess.run(
                    [*program, name],
                    cwd=tmp_path,
                    env=environment,
                    timeout=120,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                assert "add" in done.stdout, (client.ident, done.stdout)
            elif client.ident == "claude-code":
                words = subprocess.run(
                    ["sh", "-c", f"set -- {client.render([target])}; printf '%s\\n' \"$@\""],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.splitlines()
                assert words[:7] == [
                    "claude",
                    "mcp",
                    "add",
                    "--transport",
                    "http",
                    target.name,
                    target.mcp,
                ]
                sent = [f"Authorization: Bearer {TOKENS['alice']}", "X-Extra: 1"]
                assert words[8::2] == (sent if target.headers else [])
            else:
                assert json.loads(client.render([target]))
