"""The status page of a real bridge, with real sessions, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Bridge, backend, request, serving, wait_until
from tests.real.chromium import browsing

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("status-page")]

TOKEN = "a-token-of-many-random-characters"


def config(tmp_path: Path) -> dict[str, Any]:
    command, *arguments = backend("tools", "legacy", 0)
    (tmp_path / "token").write_text(TOKEN)
    return {
        "mcpServers": {
            "tools": {"command": command, "args": arguments, "base_uri": ""},
            "broken": {
                "command": "sh",
                "args": ["-c", "echo API_KEY is not set >&2; exit 3"],
                "warm": 1,
            },
        },
        "bridge": {
            "admin_listen": ["tcp:0:interface=127.0.0.1"],
            "admin_tokens": {"ann": {"file": str(tmp_path / "token"), "role": "control"}},
        },
    }


def column(index: int) -> str:
    """Return an expression for the text of a cell of the only session of the server that works."""
    return (
        "[...document.querySelectorAll('#sessions tbody tr')]"
        ".filter(row => row.textContent.includes('tools'))"
        f".map(row => row.cells[{index}].firstChild.textContent)[0]"
    )


def admin_of(bridge: Bridge) -> str:
    return f"http://{bridge.admin_address()}"


def test_a_session_appears_moves_and_is_ended(tmp_path: Path) -> None:
    with serving(config=config(tmp_path)) as bridge, browsing(tmp_path / "profile") as page:
        page.send("Page.bringToFront")
        page.open(f"{admin_of(bridge)}/")
        page.wait_for("!document.querySelector('#login').hidden")
        token = f"document.querySelector('#token').value = {TOKEN!r};"
        page.evaluate(f"{token} document.querySelector('#login').requestSubmit()")

        # Why a server fails is there at once.
        page.wait_for("document.querySelector('#problems').textContent.includes('exit status 3')")
        problems = page.evaluate("document.querySelector('#problems').textContent")
        assert "broken" in problems
        assert "API_KEY is not set" in problems

        stream = bridge.open_sse()
        client = {"name": "<b>a client</b>", "version": "7"}
        stream.post(request("initialize", 1, protocolVersion="2025-11-25", clientInfo=client))
        stream.read_message()
        page.wait_for(f"({column(2)} || '').includes('<b>a client</b> 7')")
        before = len(bridge.backend_processes())
        for number in range(5):
            stream.post(request("tools/list", number))
            stream.read_message()
        shown = "document.querySelector('#sessions tbody').textContent"
        page.wait_for(f"{column(7)} === '6'")
        ident = page.evaluate(column(0))
        assert stream.session_id.startswith(ident)
        assert stream.session_id not in page.evaluate(shown)

        page.evaluate(f"document.querySelector('[aria-label=\"End the session {ident}\"]').click()")
        page.evaluate("document.querySelector('#end').click()")
        page.wait_for(f"!{shown}.includes({json.dumps(ident)})")
        stream.read_remaining_messages()
        wait_until(lambda: len(bridge.backend_processes()) < before)
        bridge.wait_for_log(f"ann ends session {ident}")
        bridge.wait_for_log(f"session {ident} of 'tools' closed", "an operator ended it")
        requests = [each for each in page.requests if not each.startswith("data:")]
        assert all(each.startswith(admin_of(bridge)) for each in requests)
        assert TOKEN not in "".join([*page.requests, bridge.log])
