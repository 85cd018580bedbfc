"""
Stateless requests of 2026-07-28 in front of servers of both eras: statuses,
JSON and event responses, and clients that leave or do not read.
"""

from __future__ import annotations

import base64
import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import TIMEOUT, Bridge, Connection, Response, backend, serving, wait_until
from tests.e2e.test_backpressure import SMALL
from tests.real.processes import eventually

VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
BASES = ["/modern", "/legacy"]
OLDER = ("/legacy", "/reused")
LARGE = 200_000
MEGABYTE = 1_000_000
USUAL = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": VERSION,
}


class Site:
    """A bridge, and the notes of its servers."""

    def __init__(self, bridge: Bridge, note: Path) -> None:
        self.bridge = bridge
        self._note = note

    def noted(self, what: str) -> bool:
        """Return True if a server has noted this."""
        return self._note.exists() and what in self._note.read_text().splitlines()

    def send(
        self,
        base: str,
        message: dict[str, Any],
        receive_buffer: int | None = None,
        **headers: str | None,
    ) -> Response:
        """Send a request with the usual headers, except as given."""
        given: dict[str, str | None] = {**USUAL, "Mcp-Method": message.get("method")}
        if message.get("method") == "tools/call":
            given["Mcp-Name"] = message["params"]["name"]
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
        body = json.dumps(message).encode()
        response = Response(self.bridge.port, "POST", f"{base}/mcp", body, lines, receive_buffer)
        self.bridge.clients.append(response)
        return response

    def call(self, base: str, receive_buffer: int | None = None, **arguments: Any) -> Response:
        """Call the tool."""
        return self.send(base, calling(**arguments), receive_buffer)

    def listen(self, base: str, ident: object = "l") -> Response:
        """Open a subscription and check its acknowledgement."""
        wanted = {"toolsListChanged": True}
        response = self.send(base, asking("subscriptions/listen", ident, notifications=wanted))
        first = response.read_message()
        assert first["method"] == "notifications/subscriptions/acknowledged"
        assert first["params"]["_meta"][PREFIX + "subscriptionId"] == ident
        return response


def asking(method: str, ident: object = "a", **params: Any) -> dict[str, Any]:
    """Build a request."""
    meta_values: dict[str, Any] = {"protocolVersion": VERSION, "clientCapabilities": {}}
    meta: dict[str, Any] = {PREFIX + name: value for name, value in meta_values.items()}
    meta["progressToken"] = ident
    return {
        "jsonrpc": "2.0",
        "id": ident,
        "method": method,
        "params": {"_meta": meta, **params},
    }


def calling(**arguments: Any) -> dict[str, Any]:
    return asking("tools/call", name="do", arguments=arguments)


def new_token() -> str:
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serve one server of each era, and the modern one with other settings at other bases."""
    note = tmp_path_factory.mktemp("modern") / "note"
    settings: dict[str, dict[str, Any]] = {
        "/modern": {"max_message_bytes": LARGE, "max_waiting_bytes": 4 * MEGABYTE},
        "/legacy": {"max_message_bytes": LARGE},
        "/reused": {"reuse": "identity"},
        "/json": {"json_response": True},
        "/kept": {"keepalive_interval": 0.2},
        "/one": {"concurrency": 1, "max_sessions": 1, "queue_timeout": 0.5},
        "/none": {"command": "/no/such/command"},
    }
    servers = {}
    for base, more in settings.items():
        command, *args = backend(
            "one_tool", "legacy" if base.startswith("/legacy") else "modern", note
        )
        name = base.strip("/")
        servers[name] = {"command": command, "args": args, "base_uri": base, **more}
    with serving(config={"mcpServers": servers}) as bridge:
        yield Site(bridge, note)


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The shared site for one test; its connections end with the test."""
    yield shared
    while shared.bridge.clients:
        shared.bridge.clients.pop().close()


# Answers.


@pytest.mark.parametrize("base", BASES)
def test_single_answer_is_json(site: Site, base: str) -> None:
    answer = site.call(base, token="x")
    if "event-stream" in answer.content_type:
        # The first call starts the server, which may take seconds.
        answer = site.call(base, token="x")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert (answer.json["id"], answer.json["result"]["was"]) == ("a", "x")
    assert "mcp-session-id" not in answer.headers


@pytest.mark.parametrize("base", BASES)
def test_notifications_before_the_answer_make_a_stream(site: Site, base: str) -> None:
    """The events have no ids, and a header turns off buffering in proxies."""
    answer = site.call(base, progress=2)
    assert (answer.status, answer.content_type) == (200, "text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    events = answer.read_remaining_events()
    assert {(each.event_id, each.retry) for each in events} == {("", "")}
    *before, last = [json.loads(each.data) for each in events]
    assert [each["params"]["progressToken"] for each in before] == ["a", "a"]
    assert last["id"] == "a"


def test_json_response_setting_answers_with_json_only(site: Site) -> None:
    answer = site.send("/json", calling(progress=2, token="x"), Accept="application/json")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.json["result"]["was"] == "x"


def test_silent_stream_gets_keepalive_comments(site: Site) -> None:
    listening = site.listen("/kept")
    arrived = listening.socket.recv(1000)
    while arrived.count(b": keepalive\n\n") < 3:
        arrived += listening.socket.recv(1000)


# Refusals.


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("message", "headers", "status", "code"),
    [
        (asking("tools/list"), {"Mcp_Method": None}, 400, -32020),
        (asking("tools/list"), {"MCP_Protocol_Version": "2025-11-25"}, 400, -32020),
        (calling(), {"Mcp_Name": "other"}, 400, -32020),
        (calling(city="B"), {}, 400, -32020),
        (calling(city="B"), {"Mcp_Param_City": "=?base64?!?="}, 400, -32020),
        (asking("tools/list", _meta={}), {}, 400, -32602),
        (asking("initialize"), {}, 404, -32601),
        (asking("no/such"), {}, 404, -32601),
        (asking("tools/list"), {"Accept": "text/html"}, 406, -32600),
        (asking("tools/list"), {"Content_Type": "text/plain"}, 415, -32600),
    ],
)
def test_refusals_have_a_status_and_the_id_of_the_request(
    site: Site, base: str, message: Any, headers: dict[str, Any], status: int, code: int
) -> None:
    """Servers of both eras are refused alike."""
    with site.send(base, message, **headers) as answer:
        assert (answer.status, answer.content_type) == (status, "application/json")
        assert (answer.json["error"]["code"], answer.json["id"]) == (code, "a")


@pytest.mark.parametrize("base", BASES)
def test_parameter_in_a_header_is_accepted(site: Site, base: str) -> None:
    header = "=?base64?" + base64.b64encode("Köln".encode()).decode() + "?="
    answer = site.send(base, calling(city="Köln", token="x"), Mcp_Param_City=header)
    assert answer.status == 200


@pytest.mark.parametrize("base", BASES)
def test_body_beyond_the_limit_is_refused_with_413(site: Site, base: str) -> None:
    with site.send(base, calling(token="x" * LARGE)) as answer:
        assert (answer.status, answer.json["error"]["code"]) == (413, -32600)


@pytest.mark.parametrize("message", [{"id": 1, "result": {}}, [], [calling()]])
def test_responses_and_arrays_are_refused(site: Site, message: Any) -> None:
    body = json.dumps({"jsonrpc": "2.0", **message} if isinstance(message, dict) else message)
    lines = [f"{name}: {value}" for name, value in USUAL.items()]
    with Response(site.bridge.port, "POST", "/modern/mcp", body.encode(), lines) as answer:
        assert (answer.status, answer.json["error"]["code"]) == (400, -32600)
        assert answer.json["id"] is None


def test_full_server_refuses_with_429_after_queue_timeout(site: Site) -> None:
    """The error has the request's id, and the response has `Retry-After`."""
    site.call("/one", token=(token := new_token()), wait=True)
    wait_until(lambda: site.noted(f"began {token}"))
    with site.call("/one") as answer:
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert (answer.json["error"]["code"], answer.json["id"]) == (-32603, "a")


def test_server_that_cannot_start_or_exits_is_502(site: Site) -> None:
    with site.call("/none") as answer:
        assert (answer.status, answer.json["error"]["code"]) == (502, -32603)
    for base in BASES:
        with site.call(base, exit=3) as answer:
            assert (answer.status, answer.json["id"]) == (502, "a")
        assert site.call(base, token="x").read_final_message()["result"]["was"] == "x"


# Clients that leave.


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("base", [*BASES, "/json"])
def test_leaving_client_cancels_its_request(
    site: Site, base: str, begun: bool, reset: bool
) -> None:
    """It may leave before the answer begins or in the middle of it."""
    token = new_token()
    call = site.call(base, token=token, wait=True, progress=int(begun))
    if begun and base != "/json":
        assert call.read_message()["method"] == "notifications/progress"
    wait_until(lambda: site.noted(f"began {token}"))
    assert not site.noted(f"cancelled {token}")
    if reset:
        call.reset()
    else:
        call.close()
    wait_until(lambda: site.noted(f"cancelled {token}"))
    assert site.call(base, token="x").read_final_message()["result"]["was"] == "x"


@pytest.mark.parametrize("base", ["/modern", "/reused"])
def test_notification_reaches_the_remaining_subscriber(site: Site, base: str) -> None:
    """It carries that subscriber's own subscription id."""
    gone, stays = site.listen(base, 1), site.listen(base, "two")
    gone.close()
    if base == "/modern":
        wait_until(lambda: site.noted("cancelled listen"))
    site.call(base, touch=True).read_final_message()
    notification = stays.read_message()
    assert notification["method"] == "notifications/tools/list_changed"
    assert notification["params"]["_meta"] == {PREFIX + "subscriptionId": "two"}


@pytest.mark.parametrize("era", ["modern", "legacy"])
def test_stop_completes_open_subscriptions(era: str, tmp_path: Path) -> None:
    """A subscriber gets the final result on a complete stream."""
    with serving(command=backend("one_tool", era, tmp_path / "note")) as bridge:
        listening = Site(bridge, tmp_path / "note").listen("", 7)
        bridge.process.send_signal(signal.SIGTERM)
        [last] = listening.read_remaining_messages()
        assert (last["id"], last["result"]["resultType"]) == (7, "complete")
        assert last["result"]["_meta"][PREFIX + "subscriptionId"] == 7
        bridge.process.wait(TIMEOUT)


# Clients that do not read.


def taken(count: Path) -> int:
    """Return how many bytes of its flood a server has written."""
    text = count.read_text() if count.exists() else ""
    return int(text or 0)


def test_slow_reader_on_a_concurrent_worker_is_cut_off(site: Site, tmp_path: Path) -> None:
    """Its call is cancelled, and the others go on."""
    token, count = new_token(), tmp_path / "count"
    size = 40 * MEGABYTE
    slow = site.call("/modern", SMALL, token=token, flood=size, count=str(count))
    assert slow.status == 200
    for _ in range(5):
        assert site.call("/modern", token="x").read_final_message()["result"]["was"] == "x"
    wait_until(lambda: site.noted(f"cancelled {token}"))
    wait_until(lambda: taken(count) >= size)
    assert not slow.read_eof(), "it got only what it had read"
    assert site.call("/modern", token="x").read_final_message()["result"]["was"] == "x"


def test_slow_reader_pauses_its_exclusive_worker(site: Site, tmp_path: Path) -> None:
    """Everything arrives once it is read."""
    count, size = tmp_path / "count", 20 * MEGABYTE
    slow = site.call("/legacy", SMALL, flood=size, count=str(count))
    assert slow.status == 200
    wait_until(lambda: taken(count))
    while True:
        before = taken(count)
        if not eventually(lambda: taken(count) != before, 0.5):  # noqa: B023
            break
    assert before < size
    assert site.call("/legacy", token="x").read_final_message()["result"]["was"] == "x"
    *flood, last = slow.read_remaining_messages()
    assert sum(len(each["params"]["message"]) for each in flood) == len(flood) * 10_000
    assert taken(count) >= size
    assert last["id"] == "a"


# Connections.


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    with Connection(site.bridge.port) as connection:
        for number in (1, 2):
            body = json.dumps(
                asking("tools/call", number, name="do", arguments={"token": f"m{number}"})
            ).encode()
            head = {
                **USUAL,
                "Host": connection.host,
                "Mcp-Method": "tools/call",
                "Mcp-Name": "do",
                "Content-Length": str(len(body)),
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            connection.send(f"POST /modern/mcp HTTP/1.1\r\n{lines}\r\n".encode() + body)
        answers = [connection.read_response().json for _ in range(2)]
    assert [(each["id"], each["result"]["was"]) for each in answers] == [(1, "m1"), (2, "m2")]


@pytest.mark.parametrize("base", BASES)
def test_session_works_beside_stateless_requests(site: Site, base: str) -> None:
    """Both use the same path and the same ids."""
    older = site.bridge.open_streamable_http(base)
    for _ in range(3):
        assert site.call(base, token="new").read_final_message()["result"]["was"] == "new"
        answer = older.call("tools/call", name="do", arguments={"token": "old"}, _meta={})
        assert answer.read_final_message()["result"]["was"] == "old"


def test_stateless_request_ignores_a_session_id(site: Site) -> None:
    """`Mcp-Session-Id` and `Last-Event-ID` have no effect, and the session is not harmed."""
    older = site.bridge.open_streamable_http("/modern")
    answer = site.send(
        "/modern", calling(token="x"), Mcp_Session_Id=older.session_id, Last_Event_ID="0-0"
    )
    assert answer.read_final_message()["result"]["was"] == "x"
    for method in ("GET", "DELETE"):
        with older.send(method, None, f"MCP-Protocol-Version: {VERSION}") as refused:
            # In a session this version is a mistake; it has no such request.
            assert (refused.status, refused.json["error"]["code"]) == (400, -32022)
    answer = older.call("tools/call", name="do", arguments={"token": "old"}, _meta={})
    assert answer.read_final_message()["result"]["was"] == "old"
