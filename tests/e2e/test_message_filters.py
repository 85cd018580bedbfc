"""What message filters know about the callers, for clients of every revision."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Response, backend, request, serving
from tests.e2e.stateless import PREFIX, VERSION

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"
SECRET = "Bearer s3cret"
CLIENT = {"name": "tests", "version": "1"}
#: A filter that writes the caller's team and client name into each answer.
TEAMS = """
import json
from zope.interface import implementer
from mcpbridge.interfaces import IMessageFilter

@implementer(IMessageFilter)
class Teams:
    def __init__(self, settings):
        pass

    def from_client(self, session, line):
        return line

    def from_backend(self, session, line):
        message = json.loads(line)
        if session.caller is not None and "result" in message:
            message["result"]["team"] = session.caller.headers["x-team"]
            message["result"]["client"] = session.caller.client_name
        return json.dumps(message).encode()
"""


def config(note: Path, era: str, *filters: str, **options: Any) -> dict[str, Any]:
    command, *args = backend("one_tool", era, note)
    server = {"command": command, "args": args, "filters": filters, "options": options}
    return {"mcpServers": {"one": server}}


def path(folder: Path) -> dict[str, str]:
    """Return the environment in which the bridge finds its filters."""
    folders = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def ask(port: int, tool: str, client: Any, *headers: str, **arguments: Any) -> Response:
    """Send a stateless call."""
    meta = {
        PREFIX + "protocolVersion": VERSION,
        PREFIX + "clientCapabilities": {},
        PREFIX + "clientInfo": client,
        "progressToken": 1,
    }
    usual = [
        "Accept: application/json, text/event-stream",
        "Content-Type: application/json",
        f"MCP-Protocol-Version: {VERSION}",
        "Mcp-Method: tools/call",
        f"Mcp-Name: {tool}",
    ]
    body = request("tools/call", name=tool, arguments=arguments, _meta=meta)
    return Response(port, "POST", "/one/mcp", body, [*usual, *headers])


def test_example_filter_logs_the_caller(tmp_path: Path) -> None:
    """On all three transports; the values of headers are not in the log."""
    settings = config(tmp_path / "note", "legacy", "tool_filter.ToolFilter", allowed_tools=["do"])
    call = request("tools/call", name="nuke", arguments={})
    with serving(config=settings, environment=path(EXAMPLES)) as bridge:
        stream = bridge.open_sse("/one")
        opening = request("initialize", clientInfo={**CLIENT, "name": "over sse"})
        assert b'"result"' in stream.round_trip(opening)
        assert b"may not be called" in stream.round_trip(call)

        client = bridge.new_client("/one")
        params = {"protocolVersion": client.version, "clientInfo": {**CLIENT, "name": "over http"}}
        opened = client.call("initialize", f"Authorization: {SECRET}", **params)
        client.session_id = opened.headers["mcp-session-id"]
        refused = client.call("tools/call", name="nuke", arguments={})
        assert "may not be called" in refused.read_final_message()["error"]["message"]

        for each in ({**CLIENT, "name": "of 2026"}, {"name": "forged\nline", "version": 2}):
            with ask(bridge.port, "nuke", each, f"Authorization: {SECRET}") as answer:
                assert "may not be called" in answer.read_final_message()["error"]["message"]
        for name in ("'over sse' version='1'", "'over http' version='1'", "'of 2026' version='1'"):
            bridge.wait_for_log(f"<Caller address='127.0.0.1' name={name}> may not call 'nuke'")
        bridge.wait_for_log(r"<Caller address='127.0.0.1' name='forged\nline'> may not call")
        assert "s3cret" not in bridge.log


@pytest.mark.parametrize("era", ["modern", "legacy"])
def test_filter_sees_the_caller_of_each_answer(tmp_path: Path, era: str) -> None:
    """With many calls at once, on one process of a modern server or several of a legacy one."""
    (tmp_path / "teams.py").write_text(TEAMS)
    settings = config(tmp_path / "note", era, "teams.Teams")
    asked: dict[str, tuple[str, Response]] = {}
    with serving(config=settings, environment=path(tmp_path)) as bridge:
        for number in range(12):
            team, token = f"team-{number}", uuid.uuid4().hex
            client = {**CLIENT, "name": token}
            response = ask(bridge.port, "do", client, f"X-Team: {team}", token=token)
            bridge.clients.append(response)
            asked[token] = team, response
        for token, (team, response) in asked.items():
            result = response.read_final_message()["result"]
            assert (result["was"], result["client"], result["team"]) == (token, token, team)
