"""What the admin listeners serve, to whom, and within which bounds."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.admin.events import ADMIN_STALLED_SECONDS, ADMIN_STREAMS, STATUS_SECONDS
from mcpbridge.admin.page import FILES
from mcpbridge.admin.site import (
    ADMIN_BODY_BYTES,
    ADMIN_CLOSE_SECONDS,
    ADMIN_CONNECTIONS,
    ADMIN_READ_SECONDS,
    ADMIN_REQUEST_SECONDS,
    ADMIN_RESERVED,
)
from mcpbridge.bridge import LEAST_LABEL_CHARS
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import ATTEMPT_DELAY_SECONDS, ATTEMPTS_FREE
from mcpbridge.errors import SettingErrors
from mcpbridge.processes.endings import EndedByOperator
from tests.unit.admin.world import AS_JSON, MASTER, VIEWER, World

SECURITY = ("x-content-type-options", "cache-control", "content-security-policy", "x-frame-options")
#: An address to which limits apply.
FAR = "192.0.2.1"
VIEWS = ["/status", "/events", "/readyz?verbose", "/readyz/a"]


@pytest.fixture
def world() -> World:
    return World()


# Paths.


def test_everybody_sees_the_page_and_whether_it_lives(world: World) -> None:
    for target in ["/livez", "/readyz", *(path.decode() for path in FILES)]:
        connection = world.connect(trusted=False)
        response = connection.request("GET", target)
        assert response.status == 200, target
        assert all(name in response.headers for name in SECURITY)
        # On a connection that is kept.
        assert connection.request("HEAD", target).body == b""


@pytest.mark.parametrize("target", ["/x", "/status/", "/sessions/abcd", "/sessions//", "//", "/.."])
def test_nothing_else_is_there(world: World, target: str) -> None:
    response = world.get(target)
    assert response.status == 404
    assert response.json == {"error": "nothing is served at this path"}
    assert response.headers["content-type"] == "application/json"
    assert all(name in response.headers for name in SECURITY)


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/status", "GET, HEAD"),
        ("GET", "/reload", "POST"),
        ("PUT", "/sessions/a/end", "POST"),
    ],
)
def test_other_methods_are_refused(world: World, method: str, target: str, allowed: str) -> None:
    response = world.connect().request(method, target, *AS_JSON)
    assert (response.status, response.headers["allow"]) == (405, allowed)


def test_metrics_are_those_of_the_exposition(world: World) -> None:
    assert world.get("/metrics").status in (200, 501)


def test_a_defect_is_an_internal_error(
    world: World, log_lines: list[str], logged_failures: list[Any]
) -> None:
    def defective() -> Any:
        raise ZeroDivisionError("by zero")

    world.bridge.urls = defective  # type: ignore[method-assign]
    response = world.get("/status")
    assert (response.status, response.json["error"].partition(";")[0]) == (500, "internal error")
    assert any("the status could not be found out" in line for line in log_lines)


# Who may come in.


@pytest.mark.parametrize("target", VIEWS)
def test_details_over_tcp_need_a_token(world: World, target: str) -> None:
    response = world.connect(trusted=False).request("GET", target)
    assert response.status == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="mcpbridge admin"'
    for token in (VIEWER, MASTER):
        assert world.get(target, token=token[0]).status == 200
    assert world.get(target).status == 200


def test_control_needs_its_role(world: World) -> None:
    """The socket has it, and so has a token of that role."""
    for target in ("/reload", "/sessions/abcd/end"):
        response = world.post(target, token=VIEWER[0])
        assert response.status == 403
        assert response.json == {"error": "the token of 'eve' has the role `view`, not `control`"}
        assert world.post(target, token=MASTER[0]).status in (404, 501)
        assert world.post(target).status in (404, 501)


def test_wrong_tokens_are_answered_later_and_later(world: World, log_lines: list[str]) -> None:
    for _ in range(ATTEMPTS_FREE):
        response = world.connect(trusted=False, host=FAR).request("GET", "/status", token="wrong")
        assert response.status == 401
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
    connection = world.connect(trusted=False, host=FAR)
    assert connection.request("GET", "/status", token="wrong").status == 0
    # One that is right is not delayed.
    right = world.connect(trusted=False, host=FAR)
    assert right.request("GET", "/status", token=VIEWER[0]).status == 200
    world.reactor.advance(ATTEMPT_DELAY_SECONDS)
    assert connection.response().status == 401
    [line] = [line for line in log_lines if "admin listener was refused" in line]
    assert FAR in line
    assert "wrong" not in line


def test_a_client_that_leaves_meanwhile_is_forgotten(world: World) -> None:
    for _ in range(ATTEMPTS_FREE + 1):
        connection = world.connect(trusted=False, host=FAR)
        connection.request("GET", "/status", token="wrong")
        connection.close()
    world.reactor.advance(ATTEMPT_DELAY_SECONDS)


@pytest.mark.parametrize(
    "headers",
    [
        ("Authorization: Bearer a", "Authorization: Bearer b"),
        ("Authorization: Bearer \x01",),
    ],
)
def test_credentials_that_cannot_be_read_are_refused(
    world: World, headers: tuple[str, ...]
) -> None:
    assert world.connect(trusted=False).request("GET", "/status", *headers).status == 400


def test_a_token_is_not_taken_from_the_query(world: World) -> None:
    target = f"/status?access_token={VIEWER[0]}"
    assert world.connect(trusted=False).request("GET", target).status == 400


# Requests of other sites.


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]", "admin.example"]
)
def test_its_names_are_accepted(host: str, trusted: bool) -> None:
    world = World(admin_hosts=("admin.example",))
    assert world.connect(trusted=trusted).request("GET", "/livez", host=host).status == 200


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "192.0.2.1", "admin.example"]
)
def test_other_names_are_refused(world: World, host: str, trusted: bool) -> None:
    response = world.connect(trusted=trusted).request("GET", "/livez", host=host)
    assert response.status == 403
    assert "admin_hosts" in response.json["error"]
    assert "allowed_hosts" not in response.json["error"]


def test_a_program_may_leave_the_host_out_at_the_socket(world: World) -> None:
    for head in (b"GET /livez HTTP/1.0\r\n\r\n", b"GET /livez HTTP/1.0\r\nHost: \r\n\r\n"):
        for trusted in (True, False):
            connection = world.connect(trusted=trusted)
            connection.send(head)
            status = connection.response().status
            assert status == 200 if trusted else status in (400, 403)
    connection = world.connect()
    connection.send(b"GET /livez HTTP/1.1\r\n\r\n")
    assert connection.response().status == 400


@pytest.mark.parametrize(
    "headers",
    [
        ("Origin: http://evil.example",),
        ("Origin: http://localhost:3000",),
        ("Origin: null",),
        ("Sec-Fetch-Site: cross-site",),
        ("Sec-Fetch-Site: same-site",),
    ],
)
def test_pages_of_other_sites_are_refused(world: World, headers: tuple[str, ...]) -> None:
    session = world.open()
    for target in ("/status", "/events"):
        assert world.get(target, *headers).status == 403
    target = f"/sessions/{session.label}/end"
    response = world.post(target, *headers, *AS_JSON)
    assert response.status == 403
    assert "allowed_origins" not in response.json["error"]
    assert session.receiving


def test_its_own_page_may_do_all(world: World) -> None:
    headers = ("Origin: http://localhost", "Sec-Fetch-Site: same-origin")
    assert world.get("/status", *headers).status == 200
    assert world.post("/sessions/abcd/end", *headers, *AS_JSON).status == 404


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_what_forms_can_send_changes_nothing(world: World, kind: str) -> None:
    session = world.open()
    response = world.post(f"/sessions/{session.label}/end", f"Content-Type: {kind}")
    assert response.status == 415
    assert session.receiving
    assert world.post("/reload", "X-Y: z").status == 415


# Control.


def test_a_session_is_ended_by_the_beginning_of_its_id(world: World, log_lines: list[str]) -> None:
    session = world.open()
    target = f"/sessions/{session.label[:LEAST_LABEL_CHARS]}/end"
    response = world.post(target, token=MASTER[0])
    assert (response.status, response.json) == (200, {"ended": session.label})
    assert not session.receiving
    assert isinstance(session.reason, EndedByOperator)
    assert f"ann ends session {session.label}" in log_lines
    assert world.post(target).status == 404


@pytest.mark.parametrize("ident", ["abc", "", "%00%0a", "a" * 9, "%C3%A4"])
def test_what_names_no_session_is_not_found(world: World, ident: str) -> None:
    world.open()
    assert world.post(f"/sessions/{ident}/end").status == 404


def test_a_whole_id_ends_nothing(world: World) -> None:
    """It is a secret, and nobody is to get used to writing it."""
    session = world.open()
    assert world.post(f"/sessions/{session.ident}/end").status == 404
    assert session.receiving


def test_an_ambiguous_id_ends_nothing(world: World) -> None:
    first, second = world.open(), world.open()
    second.ident = first.ident[:LEAST_LABEL_CHARS] + "zzzz"
    response = world.post(f"/sessions/{first.ident[:LEAST_LABEL_CHARS]}/end")
    assert response.status == 409
    assert first.receiving
    assert second.receiving
    assert world.post(f"/sessions/{second.ident}/end").json == {"ended": second.ident}


def test_a_spare_process_that_is_ended_is_no_failed_start() -> None:
    world = World(ServerSettings(command="x", name="a", warm=1))
    world.server.start()
    world.reactor.advance(1)
    [spare] = world.server.unclosed
    assert world.post(f"/sessions/{spare.label}/end").status == 200
    spare.backend.stopped.callback(None)
    assert not world.server.pool.backoff.failures
    world.reactor.advance(5)
    assert len(world.server.unclosed) == 1


def test_a_reload_tells_what_has_changed(world: World, log_lines: list[str]) -> None:
    world.bridge.reload_file = lambda: "changed: a"  # type: ignore[method-assign]
    response = world.post("/reload", token=MASTER[0])
    assert (response.status, response.json) == (200, {"changed": "changed: a"})
    assert "ann reloads the settings" in log_lines


def test_a_wrong_file_tells_all_errors(world: World) -> None:
    def fail() -> str:
        raise SettingErrors(["one", "two"])

    world.bridge.reload_file = fail  # type: ignore[method-assign]
    response = world.post("/reload")
    assert (response.status, response.json) == (422, {"errors": ["one", "two"]})


def test_without_a_file_there_is_nothing_to_reload(world: World) -> None:
    assert world.post("/reload").status == 501


# Health.


def test_it_is_ready_while_it_serves(world: World) -> None:
    assert world.get("/readyz").body == b"ready\n"
    assert world.get("/readyz/a").json["ready"]
    assert world.get("/readyz/b").status == 404
    world.bridge.condition = "draining"
    for target in ("/readyz", "/readyz/a", "/readyz?verbose"):
        assert world.get(target).status == 503
    assert world.get("/livez").status == 200


# Bounds.


def test_the_oldest_strange_connection_gives_way(world: World) -> None:
    """One that was admitted stays."""
    watcher = world.connect()
    watcher.request("GET", "/events")
    strangers = [world.connect(trusted=False) for _ in range(ADMIN_CONNECTIONS - 1)]
    another = world.connect(trusted=False)
    assert [each.transport.aborted for each in strangers[:2]] == [True, False]
    assert another.request("GET", "/livez").status == 200
    assert not watcher.transport.is_closed
    for each in (another, watcher, *strangers):
        each.close()


def test_beyond_those_that_were_admitted_none_is_accepted_but_on_unix_sockets(
    world: World,
) -> None:
    for trusted, count in ((False, ADMIN_CONNECTIONS), (True, ADMIN_RESERVED)):
        for _ in range(count):
            connection = world.connect(trusted=trusted)
            assert not connection.transport.aborted
            connection.channel.admitted = True
        assert world.connect(trusted=trusted).transport.aborted


def test_a_request_has_to_arrive_in_time(world: World) -> None:
    silent, slow = world.connect(), world.connect()
    slow.send(b"GET /livez HTTP/1.1\r\n")
    world.reactor.advance(ADMIN_REQUEST_SECONDS / 2)
    slow.send(b"X: y\r\n")
    world.reactor.advance(ADMIN_REQUEST_SECONDS / 2)
    assert silent.transport.aborted
    assert slow.transport.aborted


def test_a_connection_has_one_request(world: World) -> None:
    """Twisted would read more and more requests whose responses nobody reads."""
    connection = world.connect()
    connection.transport.is_closed = True
    connection.channel.dataReceived(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    world.turn()
    response = connection.response()
    assert (response.status, response.headers["connection"]) == (200, "close")
    connection.channel.dataReceived(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
    assert connection.response().data == b""
    world.reactor.advance(ADMIN_READ_SECONDS)
    assert connection.transport.aborted


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_at_once(world: World, chunked: bool) -> None:
    connection = world.connect()
    size = ADMIN_BODY_BYTES + 1
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = f"POST /reload HTTP/1.1\r\nHost: localhost\r\n{AS_JSON[0]}\r\n{length}\r\n\r\n"
    connection.send(head.encode())
    if chunked:
        connection.send(b"%x\r\n" % size + b"x" * size)
    response = connection.response()
    assert response.status == 413
    assert len(response.body) == int(response.headers["content-length"])
    assert str(ADMIN_BODY_BYTES) in response.json["error"]
    assert connection.transport.is_closed


def test_a_small_body_is_ignored(world: World) -> None:
    response = world.connect()
    response.send(
        b"POST /sessions/abcd/end HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    assert response.response().status == 404


def test_all_connections_close_at_the_end(world: World) -> None:
    """Those that do not are aborted."""
    connections = [world.connect(), world.connect()]
    stuck = connections[1].transport
    stuck.loseConnection = lambda: None  # type: ignore[method-assign]
    closed: list[object] = []
    world.admin.close().addBoth(closed.append)
    assert connections[0].transport.is_closed
    assert not closed
    world.reactor.advance(ADMIN_CLOSE_SECONDS)
    assert stuck.aborted
    assert closed


# Streams.


def event_of(data: bytes) -> bytes:
    """Return the chunks of a response."""
    assert data.startswith(b"event: status\ndata: {") or b"event: status\ndata: {" in data
    return data


def test_a_stream_has_an_event_at_once_and_then_regularly(world: World) -> None:
    connection = world.connect()
    response = connection.request("GET", "/events")
    assert response.headers["content-type"] == "text/event-stream"
    event_of(response.body)
    assert response.headers["cache-control"] == "no-cache"
    world.reactor.advance(STATUS_SECONDS)
    world.turn()
    event_of(connection.response().data)
    connection.close()
    assert not world.reactor.getDelayedCalls()


def test_all_streams_share_one_document(world: World) -> None:
    made: list[None] = []
    urls = world.bridge.urls

    def counted() -> list[str]:
        made.append(None)
        return urls()

    world.bridge.urls = counted  # type: ignore[method-assign]
    streams = [world.connect() for _ in range(ADMIN_STREAMS)]
    for each in streams:
        each.request("GET", "/events")
    world.reactor.advance(STATUS_SECONDS)
    world.turn()
    assert len(made) == 2
    assert len({each.response().data for each in streams}) == 1
    refused = world.get("/events")
    assert refused.status == 429
    assert "ADMIN_STREAMS" in refused.json["error"]
    streams[0].close()
    assert world.get("/events").status == 200


def test_a_slow_reader_misses_events_and_is_dropped(world: World) -> None:
    connection = world.connect()
    connection.request("GET", "/events")
    connection.channel.pauseProducing()
    world.reactor.advance(STATUS_SECONDS)
    world.turn()
    assert connection.response().data == b""
    connection.channel.resumeProducing()
    world.reactor.advance(STATUS_SECONDS)
    world.turn()
    event_of(connection.response().data)
    connection.channel.pauseProducing()
    connection.channel.pauseProducing()
    world.reactor.advance(ADMIN_STALLED_SECONDS)
    assert connection.transport.aborted
    world.turn()
    assert not world.reactor.getDelayedCalls()


def test_streams_end_with_the_listener(world: World) -> None:
    connection = world.connect()
    connection.request("GET", "/events")
    world.admin.close()
    assert connection.response().data.endswith(b"0\r\n\r\n")
    assert not world.reactor.getDelayedCalls()


def test_head_opens_no_stream(world: World) -> None:
    connection = world.connect()
    response = connection.request("HEAD", "/events")
    assert (response.status, response.body) == (200, b"")
    assert not world.reactor.getDelayedCalls()


def test_a_status_that_fails_is_an_event_that_is_missing(
    world: World, logged_failures: list[Any]
) -> None:
    urls = world.bridge.urls

    def defective() -> Any:
        raise ZeroDivisionError

    world.bridge.urls = defective  # type: ignore[method-assign]
    connection = world.connect()
    connection.request("GET", "/events")
    world.bridge.urls = urls  # type: ignore[method-assign]
    world.reactor.advance(STATUS_SECONDS)
    world.turn()
    event_of(connection.response().data)
