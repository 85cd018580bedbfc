"""
The service as an application embeds it, and third-party extensions, end to
end through real sockets in the test's own reactor.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.application.service import Application, IService, IServiceCollection
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site
from zope.interface.verify import verifyObject

from mcpbridge import Bridge, BridgeSettings, ServerSettings
from mcpbridge.bridge import NAMED_SERVERS
from mcpbridge.config.tuning import BACKLOG, STOP_SLACK_SECONDS
from mcpbridge.errors import CannotListen, Exposed, SettingError
from mcpbridge.stdio import process_tags
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.process_tracker import ProcessTracker
from mcpbridge.stdio.watchdog import END_SECONDS
from mcpbridge.stdio.watchdog_program import DIRECTORY_SECONDS
from mcpbridge.testing import FakeBackend, FakeLauncher
from tests.client import SseClient
from tests.thirdparty import Notebook, OnePlace, ParrotLauncher

PARROT = "tests.thirdparty.ParrotLauncher"
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18",'
    b'"capabilities":{},"clientInfo":{"name":"test","version":"1"}}}'
)
PING = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"word":"hello"}}'


def server(**settings: Any) -> ServerSettings:
    """Return the settings of a server, by default the one of the demo."""
    return ServerSettings(**{"command": "parrot", "launcher": PARROT, **settings})


async def until(reactor: Any, what: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most a minute."""
    deadline = reactor.seconds() + 60
    while not what():
        assert reactor.seconds() < deadline, "it did not come to that"
        await deferLater(reactor, 0.01)


class Started:
    """A started bridge and its clients."""

    def __init__(self, reactor: Any, bridge: Bridge) -> None:
        self._reactor = reactor
        self.bridge = bridge
        self.clients: list[SseClient] = []

    @property
    def origin(self) -> str:
        return self.bridge.urls()[0].removesuffix("/mcp")

    async def client(self, path: str = "/sse", origin: str | None = None) -> SseClient:
        client = SseClient(self._reactor, origin or self.origin)
        self.clients.append(client)
        await client.open(path)
        return client


@pytest.fixture
def start(running_reactor: Any) -> Iterator[Callable[..., Started]]:
    """Starts bridges on ports of their own; stops them at the end."""
    started: list[Started] = []

    def begin(*servers: ServerSettings, **arguments: Any) -> Started:
        listen = arguments.pop("listen", ("tcp:0:interface=127.0.0.1",))
        settings = BridgeSettings(
            servers=servers,
            listen=listen,
            allowed_hosts=arguments.pop("allowed_hosts", ()),
            auth=arguments.pop("auth", None),
            insecure=arguments.pop("insecure", False),
            child_subreaper=False,
        )
        bridge = Bridge(settings, running_reactor, **arguments)
        bridge.startService()
        started.append(Started(running_reactor, bridge))
        return started[-1]

    yield begin
    for each in started:
        for client in each.clients:
            pytest_twisted.blockon(Deferred.fromCoroutine(client.close()))
        pytest_twisted.blockon(each.bridge.stopService())


@pytest_twisted.ensureDeferred
async def test_settings_load_extensions_by_dotted_name(start: Any, log_lines: list[str]) -> None:
    """A third-party launcher, limiter, observer and filter are named in the settings."""
    Notebook.pages.clear()
    running = start(
        server(
            base_uri="/birds",
            limiter="tests.thirdparty.OnePlace",
            observers=("tests.thirdparty.Notebook",),
            filters=("tests.thirdparty.Censor",),
            options={"title": "birds"},
        )
    )
    origin = running.origin.removesuffix("/birds")
    client = await running.client("/birds/sse", origin)
    assert client.endpoint.startswith("/birds/message?sessionId=")
    assert await client.post(PING.replace(b"hello", b"darn")) == (202, b"")
    assert await client.read_message() == '{"jsonrpc":"2.0","id":1,"result":{"word":"****"}}'
    assert await client.post(PING.replace(b"hello", b"secret")) == (202, b"")
    assert await client.read_message() == (
        '{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"that is secret"}}'
    )
    second = await running.client("/birds/sse", origin)
    assert second.response.code == 429
    assert second.response.headers.getRawHeaders("retry-after")
    assert (await client.post(b'{"jsonrpc":"2.0","method":"leave"}'))[0] == 202
    await client.events.ended
    assert [page[0] for page in Notebook.pages] == [
        *("made", "opened", "in", "out", "out", "in", "closed")
    ]
    assert Notebook.pages[0] == ("made", "birds")
    assert Notebook.pages[-1] == ("closed", "the parrot left")
    third = await running.client("/birds/sse", origin)
    assert third.response.code == 200


@pytest_twisted.ensureDeferred
async def test_bridge_takes_extensions_as_arguments(start: Any, running_reactor: Any) -> None:
    Notebook.pages.clear()
    settings = ServerSettings(command="x")
    running = start(
        settings,
        launcher=ParrotLauncher(settings),
        limiter=OnePlace(settings),
        observers=[Notebook(settings)],
    )
    client = await running.client()
    await client.post(PING)
    assert await client.read_message() == '{"jsonrpc":"2.0","id":1,"result":{"word":"hello"}}'
    assert (await running.client()).response.code == 429
    await client.close()
    await until(running_reactor, lambda: Notebook.pages[-1][0] == "closed")
    assert [page[0] for page in Notebook.pages] == ["made", "opened", "in", "out", "closed"]


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("launcher", "tests.thirdparty.NotALauncher", "launcher: expected an object that provides"),
        ("launcher", "tests.nothing.Here", "launcher: expected the dotted name of a factory"),
        ("limiter", "tests.thirdparty.breaks", "no luck today"),
        ("observers", ("tests.thirdparty.Censor",), "ISessionObserver"),
        ("filters", ("tests.thirdparty.Notebook",), "IMessageFilter"),
    ],
)
def test_invalid_extension_is_a_setting_error(setting: str, value: Any, says: str) -> None:
    """The error is one line, and comes before anything starts."""
    settings = BridgeSettings(servers=(server(**{setting: value}),))
    with pytest.raises(SettingError) as caught:
        Bridge(settings, object())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_invalid_argument_is_a_setting_error() -> None:
    """So is an argument that provides nothing."""
    with pytest.raises(SettingError, match="ISessionLimiter"):
        Bridge(BridgeSettings(servers=(server(),)), object(), limiter=object())


def test_bridge_is_a_service_of_an_application() -> None:
    """An existing Twisted application can embed it."""
    bridge = Bridge(BridgeSettings(servers=(server(),), listen=()), Clock())
    assert verifyObject(IService, bridge)
    application = Application("host")
    bridge.setServiceParent(IServiceCollection(application))
    assert list(IServiceCollection(application)) == [bridge]


@pytest_twisted.ensureDeferred
async def test_resource_works_below_any_site(start: Any, running_reactor: Any) -> None:
    """It advertises its mount point and `base_uri`; `public_path` overrides both."""
    running = start(
        server(name="a", base_uri="/a"),
        server(name="b", base_uri="/b", public_path="/out/side"),
        listen=(),
    )
    assert running.bridge.urls() == []
    root = Resource()
    mount = Resource()
    root.putChild(b"my tools", mount)
    resource = running.bridge.resource()
    assert verifyObject(IResource, resource)
    mount.putChild(b"v1", resource)
    port = running_reactor.listenTCP(0, Site(root), interface="127.0.0.1")
    try:
        origin = f"http://127.0.0.1:{port.getHost().port}"
        first = await running.client("/my%20tools/v1/a/sse", origin)
        assert first.endpoint.startswith("/my%20tools/v1/a/message?sessionId=")
        await first.post(PING)
        assert "hello" in await first.read_message()
        too_large = PING.replace(b"hello", b"x" * 17 * 2**20)
        assert (await first.post(too_large))[0] == 413
        second = await running.client("/my%20tools/v1/b/sse", origin)
        assert second.endpoint.startswith("/out/side/message?sessionId=")
        missing = await running.client("/my%20tools/v1/c/sse", origin)
        assert missing.response.code == 404
        await first.close()
        await second.close()
    finally:
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_named_servers_have_their_own_limits_and_a_common_one(running_reactor: Any) -> None:
    settings = BridgeSettings(
        servers=(
            server(name="a", base_uri="/a", max_sessions=1),
            server(name="b", base_uri="/b", max_sessions=9),
        ),
        listen=("tcp:0:interface=127.0.0.1",),
        max_sessions=2,
        child_subreaper=False,
    )
    bridge = Bridge(settings, running_reactor)
    bridge.startService()
    running = Started(running_reactor, bridge)
    origin = running.origin.removesuffix("/a")
    try:
        first = await running.client("/a/sse", origin)
        assert (await running.client("/a/sse", origin)).response.code == 429
        assert (await running.client("/b/sse", origin)).response.code == 200
        assert (await running.client("/b/sse", origin)).response.code == 429
        await first.close()
        await until(running_reactor, lambda: not bridge.servers[0].unclosed)
        assert (await running.client("/b/sse", origin)).response.code == 200
        for client in running.clients:
            await client.close()
    finally:
        await bridge.stopService()


@pytest_twisted.ensureDeferred
async def test_failed_listener_leaves_none_open(running_reactor: Any) -> None:
    """An address that is in use is one clear error."""
    taken = running_reactor.listenTCP(0, Site(Resource()), interface="127.0.0.1")
    number = taken.getHost().port
    settings = BridgeSettings(
        servers=(server(),),
        listen=("tcp:0:interface=127.0.0.1", f"tcp:{number}:interface=127.0.0.1"),
    )
    bridge = Bridge(settings, running_reactor)
    try:
        with pytest.raises(CannotListen, match="cannot listen on"):
            bridge.privilegedStartService()
        assert bridge.urls() == []
    finally:
        await taken.stopListening()


@pytest_twisted.ensureDeferred
async def test_listener_open_to_other_machines_is_a_warning(
    start: Any, running_reactor: Any, log_lines: list[str]
) -> None:
    """There is one warning for each such listener; its URL names the real address."""
    running = start(server(), listen=("tcp:0:interface=127.0.0.1", "tcp:0"), insecure=True)
    [here, _, everywhere, _] = running.bridge.urls()
    assert here.startswith("http://127.0.0.1:")
    assert everywhere.startswith("http://0.0.0.0:")
    assert f"serving {everywhere}" in log_lines
    warnings = [line for line in log_lines if "there is no authentication" in line]
    origin = everywhere.removesuffix("/mcp")
    ports: Any = [port for _, port in running.bridge._ports]
    assert {port.backlog for port in ports} == {BACKLOG}
    assert [line.partition(" may be ")[0] for line in warnings] == [f"{origin} (all interfaces)"]
    assert "--allowed-hosts (allowed_hosts)" in warnings[0]
    assert {port._logger.observer for port in ports} == {running.bridge._accept_errors}
    start(server(), listen=("tcp:0",), allowed_hosts=("mcp.example",), insecure=True)
    [_, second] = [line for line in log_lines if "there is no authentication" in line]
    assert "--allowed-hosts" not in second


TOKENS = {"tokens": {"alice": {"sha256": "0" * 64}}}


@pytest.mark.parametrize(
    ("of_bridge", "of_servers", "refused"),
    [
        (None, [None], "'s0'"),
        (TOKENS, [None], ""),
        (None, [TOKENS], ""),
        (None, [TOKENS, None], "'s1'"),
        (TOKENS, [False, None], "'s0'"),
        (None, [None] * (NAMED_SERVERS + 2), "'s0', 's1', 's2' and 2 more"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_server_is_open_to_other_machines_unasked(
    start: Any, of_bridge: Any, of_servers: list[Any], refused: str
) -> None:
    """The start is refused, and the error says what to do; `NAMED_SERVERS` are named."""
    servers = [
        server(name=f"s{at}", base_uri=f"/s{at}", auth=each) for at, each in enumerate(of_servers)
    ]
    listen = ("tcp:0:interface=127.0.0.1", "tcp:0")
    if not refused:
        running = start(*servers, listen=listen, auth=of_bridge)
        assert running.bridge.urls()
        return
    with pytest.raises(Exposed) as caught:
        start(*servers, listen=listen, auth=of_bridge)
    text = str(caught.value)
    assert f"anybody could use {refused} there" in text
    for way_out in ("`auth`", "mcpbridge token NAME", "--host 127.0.0.1", "--insecure"):
        assert way_out in text


@pytest_twisted.ensureDeferred
async def test_applications_own_listener_is_no_warning(
    start: Any, running_reactor: Any, log_lines: list[str]
) -> None:
    """The bridge opens no port of its own, or only a UNIX socket."""
    with tempfile.TemporaryDirectory() as folder:
        running = start(server(), listen=())
        local = start(server(), listen=(f"unix:{folder}/socket",))
        port = running_reactor.listenTCP(0, running.bridge.site())
        await port.stopListening()
        await local.bridge.stopService()
    assert any(line.startswith("serving unix:") for line in log_lines)
    assert not [line for line in log_lines if "authentication" in line]


@pytest_twisted.ensureDeferred
async def test_configuration_warnings_are_logged_at_the_start(
    start: Any, log_lines: list[str]
) -> None:
    start(server(pass_env=("GONE",)), environment={})
    assert (
        "server 'default': the environment variable GONE is not set (--pass-env, pass_env)"
        in log_lines
    )


@pytest_twisted.ensureDeferred
async def test_limits_of_the_machine_are_one_warning(
    start: Any, log_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning names what the machine lacks for processes; there is none if it lacks nothing."""
    start(server(launcher=None, command="cat"))
    assert not [line for line in log_lines if "processes of backends" in line]
    here = process_tags.Machine(tags=True, hidden=True, pidfds=False)
    monkeypatch.setattr(process_tags, "machine", lambda: here)
    start(server(launcher=None, command="cat"))
    [warning] = [line for line in log_lines if "processes of backends" in line]
    assert "hidepid" in warning
    assert "pidfd_open" in warning


INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
    b'"capabilities":{},"clientInfo":{"name":"x","version":"1"},"word":"%s"}}'
)


@pytest.mark.parametrize(
    ("word", "status", "reason"),
    [
        (b"secret", 200, "the backend refused to initialize"),
        (b"trouble", 500, "its first message could not be handled"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_session_refused_by_a_filter_leaves_nothing(
    word: bytes, status: int, reason: str, start: Any, logged_failures: list[Any]
) -> None:
    """There is no session, no id and no process, whatever the filter raised."""
    Notebook.pages.clear()
    running = start(
        server(filters=("tests.thirdparty.Censor",), observers=("tests.thirdparty.Notebook",))
    )
    headers: Any = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    response = await treq.post(
        f"{running.origin}/mcp", data=INITIALIZE % word, headers=headers, persistent=False
    )
    await treq.content(response)
    assert response.code == status
    assert not response.headers.hasHeader("Mcp-Session-Id")
    await until(running._reactor, lambda: not running.bridge.servers[0].unclosed)
    assert Notebook.pages[-1] == ("closed", reason)
    assert len(logged_failures) == (status == 500)


@pytest_twisted.ensureDeferred
async def test_unknown_path_is_answered_with_the_endpoints(start: Any) -> None:
    """A server's base gets that server's URLs, the root some of several, other paths none."""
    running = start(
        *(server(name=name, base_uri=f"/{name}") for name in ("a", "b", "c+", "d")),
        server(name="e", base_uri="/deep/e", public_path="/out"),
    )
    origin = running.origin.removesuffix("/a")

    async def hint_at(path: str, method: str = "GET") -> str:
        response = await treq.request(method, f"{origin}{path}", persistent=False)
        assert response.code == (404 if method == "GET" else 405)
        text: str = (await treq.json_content(response))["error"]["message"]
        said, _, hint = text.partition("; ")
        assert said == (
            "nothing is served at this path" if method == "GET" else "the index takes GET"
        )
        return hint

    # What a client is told that takes the index for its server.
    assert await hint_at("/", "POST") == "MCP is at /a/mcp, /b/mcp, /c+/mcp and 2 more"
    assert await hint_at("//") == "MCP is at /a/mcp, /b/mcp, /c+/mcp and 2 more"
    assert await hint_at("/b") == "MCP is at /b/mcp and /b/sse"
    assert await hint_at("/b/") == "MCP is at /b/mcp and /b/sse"
    assert await hint_at("/c%2B/mcp//") == "MCP is at /c+/mcp and /c+/sse"
    assert await hint_at("/deep/e") == "MCP is at /out/mcp and /out/sse"
    assert await hint_at("/deep") == ""
    assert await hint_at("/deep/") == ""
    assert await hint_at("/nothing") == ""
    assert await hint_at("/b/nothing") == ""


@pytest_twisted.ensureDeferred
async def test_endpoints_include_the_mount_point(start: Any, running_reactor: Any) -> None:
    running = start(server(base_uri="/a"), listen=())
    root = Resource()
    root.putChild(b"my tools", running.bridge.resource())
    port = running_reactor.listenTCP(0, Site(root), interface="127.0.0.1")
    try:
        origin = f"http://127.0.0.1:{port.getHost().port}/my%20tools"
        for path in ("", "/"):
            response = await treq.get(f"{origin}{path}", persistent=False)
            [listed] = (await treq.json_content(response))["servers"]
            assert listed["urls"]["streamable-http"] == f"{origin}/a/mcp"
        for path in ("//", "/a", "/a/"):
            response = await treq.get(f"{origin}{path}", persistent=False)
            text = (await treq.json_content(response))["error"]["message"]
            assert text.endswith("; MCP is at /my%20tools/a/mcp and /my%20tools/a/sse")
    finally:
        await port.stopListening()


async def open_and_end(running: Started) -> list[weakref.ref[Any]]:
    """Open a session at /mcp and end it; return what its client had."""
    url = f"{running.origin}/mcp"
    headers: Any = {"Content-Type": "application/json"}
    headers["Accept"] = "application/json, text/event-stream"
    response = await treq.post(url, INITIALIZE, headers=headers, persistent=False)
    await treq.content(response)
    [served] = running.bridge.servers
    [(ident, session)] = served.streamable.items()
    sink: Any = session.sink
    parts = [weakref.ref(sink), weakref.ref(sink.router)]
    del sink, session
    # Of the request: klein's objects refer to each other.
    gc.collect()
    headers = {"Mcp-Session-Id": ident}
    response = await treq.delete(url, headers=headers, persistent=False)
    await treq.content(response)
    return parts


@pytest_twisted.ensureDeferred
async def test_ended_session_is_freed_without_the_garbage_collector(start: Any) -> None:
    """With its streams and what they hold: with thousands of sessions a collection takes long."""
    running = start(ServerSettings(command=sys.executable, args=("-m", "mcpbridge.demo")))
    gc.disable()
    try:
        parts = await open_and_end(running)
        await until(running._reactor, lambda: not running.bridge.servers[0].unclosed)
        await until(running._reactor, lambda: [each() for each in parts] == [None, None])
    finally:
        gc.enable()


async def stream_and_leave(running: Started) -> list[weakref.ref[Any]]:
    """Open a session at /sse and leave it; return what its client had."""
    client = await running.client()
    [served] = running.bridge.servers
    [session] = served.sessions.values()
    sink: Any = session.sink
    parts = [weakref.ref(each) for each in (sink, sink.request.channel)]
    del session, sink
    await client.close()
    return parts


@pytest_twisted.ensureDeferred
async def test_left_stream_is_freed_without_the_garbage_collector(start: Any) -> None:
    """With its connection."""
    running = start(ServerSettings(command=sys.executable, args=("-m", "mcpbridge.demo")))
    gc.disable()
    try:
        parts = await stream_and_leave(running)
        await until(running._reactor, lambda: not running.bridge.servers[0].unclosed)
        await until(running._reactor, lambda: [each() for each in parts] == [None, None])
    finally:
        gc.enable()


@pytest_twisted.ensureDeferred
async def test_endpoint_explains_itself_to_a_browser(start: Any) -> None:
    response = await treq.get(f"{start(server()).origin}/mcp", persistent=False)
    assert response.code == 405
    assert response.headers.getRawHeaders("Allow") == ["POST"]
    text = (await treq.json_content(response))["error"]["message"]
    assert text.startswith("no Mcp-Session-Id; this is an endpoint for MCP clients")


@pytest_twisted.ensureDeferred
async def test_access_log_names_the_session(running_reactor: Any, log_lines: list[str]) -> None:
    """It has eight characters of the session id, and nothing of an invalid id."""
    settings = BridgeSettings(
        servers=(server(),),
        listen=("tcp:0:interface=127.0.0.1",),
        access_log=True,
        child_subreaper=False,
    )
    bridge = Bridge(settings, running_reactor)
    bridge.startService()
    try:
        ident = "0c1d1f0e-7c55-4c0e-9a53-8f3a52d8b1f4"
        for given in (ident, "x" * 50, ident[:20]):
            headers: Any = {"Mcp-Session-Id": given}
            response = await treq.delete(bridge.urls()[0], headers=headers, persistent=False)
            await treq.content(response)
    finally:
        await bridge.stopService()
    lines = [line for line in log_lines if " DELETE /mcp 404 " in line]
    assert [len(line.split(" ")) for line in lines] == [6, 5, 5]
    assert lines[0].endswith(" 0c1d1f0e")


@pytest_twisted.ensureDeferred
async def test_stop_gives_up_on_a_backend_that_never_ends(
    running_reactor: Any, log_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says how many sessions could not be ended."""
    monkeypatch.setattr("mcpbridge.bridge.STOP_SLACK_SECONDS", 0.05)
    assert STOP_SLACK_SECONDS > 1
    launcher = FakeLauncher()
    settings = BridgeSettings(
        servers=(ServerSettings(command="x", stop_grace=0.0, kill_grace=0.0),),
        listen=("tcp:0:interface=127.0.0.1",),
    )
    bridge = Bridge(settings, running_reactor, launcher=launcher)
    bridge.startService()
    running = Started(running_reactor, bridge)
    client = await running.client()
    await bridge.stopService()
    assert "1 sessions could not be ended" in log_lines
    await client.events.ended
    launcher.backends[0].stopped.callback(None)


def test_longest_stop_includes_the_end_of_the_watchdog(running_reactor: Any) -> None:
    each = ServerSettings(command="x", stop_grace=1.0, kill_grace=2.0)
    settings = BridgeSettings(servers=(each,), listen=())
    assert Bridge(settings, running_reactor).longest_stop() == 3 + STOP_SLACK_SECONDS + END_SECONDS
    other = Bridge(settings, running_reactor, launcher=FakeLauncher())
    assert other.longest_stop() == 3 + STOP_SLACK_SECONDS
    own = LocalLauncher(each, running_reactor, ProcessTracker(running_reactor, 0), {})
    local = Bridge(settings, running_reactor, launcher=own)
    assert local.longest_stop() == 3 + STOP_SLACK_SECONDS + END_SECONDS
    private = ServerSettings(command="x", stop_grace=1.0, kill_grace=2.0, private_tmp=True)
    own = LocalLauncher(private, running_reactor, ProcessTracker(running_reactor, 0), {})
    local = Bridge(settings, running_reactor, launcher=own)
    assert local.longest_stop() == 3 + STOP_SLACK_SECONDS + END_SECONDS + DIRECTORY_SECONDS


@pytest_twisted.ensureDeferred
async def test_stop_cancels_a_launch_under_way(start: Any) -> None:
    """Nothing is left of it."""
    cancelled: list[Deferred[FakeBackend]] = []

    class Slow(FakeLauncher):
        def launch(self, receiver: Any, label: str) -> Deferred[FakeBackend]:
            return Deferred(cancelled.append)

    running = start(ServerSettings(command="x"), launcher=Slow())
    client = SseClient(running._reactor, running.origin)
    opening = Deferred.fromCoroutine(client.open())
    while not running.bridge.servers[0].pool.launching:
        await deferLater(running._reactor, 0.01)
    await running.bridge.stopService()
    response = await opening
    assert response.code == 503
    assert len(cancelled) == 1


@pytest_twisted.ensureDeferred
async def test_embedded_bridge_runs_a_real_process(start: Any) -> None:
    """With the default launcher and the watchdog, in the reactor of the application."""
    line = ("-u", "-c", "import sys\nfor line in sys.stdin: sys.stdout.write(line)")
    running = start(ServerSettings(command=sys.executable, args=line, stop_grace=5.0))
    client = await running.client()
    assert (await client.post(PING))[0] == 202
    assert await client.read_message() == PING.decode()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tags are for Linux")
@pytest_twisted.ensureDeferred
async def test_state_file_is_removed_at_a_clean_stop(running_reactor: Any, tmp_path: Path) -> None:
    """A session that ends at the stop leaves nothing for the next start."""
    settings = BridgeSettings(
        servers=(ServerSettings(command="cat"),),
        listen=("tcp:0:interface=127.0.0.1",),
        state_dir=str(tmp_path),
        child_subreaper=False,
    )
    bridge = Bridge(settings, running_reactor)
    bridge.startService()
    client = await Started(running_reactor, bridge).client()
    assert len(os.listdir(tmp_path)) == 1
    await bridge.stopService()
    await client.events.ended
    assert os.listdir(tmp_path) == []
