"""What Prometheus gets: read by the library's own parsers, and compared with the counters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.task import Clock

from mcpbridge import __version__
from mcpbridge.admin import metrics, server_numbers
from mcpbridge.admin.metric_families import FAMILIES
from mcpbridge.admin.metrics import HISTOGRAM_LINES, SLICE_LINES, WAITING_SCRAPES, Exposition
from mcpbridge.admin.server_numbers import SUMMED_SESSIONS, ProcessCounts, process_counts
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.counters import OTHER, SECONDS_BOUNDS, BridgeCounters
from mcpbridge.errors import CannotStart, NotSupported, ServerBusy
from mcpbridge.process_usage import Usage
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.endings import KINDS, ClientLeft
from mcpbridge.processes.permits import SessionLimiter
from mcpbridge.server import Server
from mcpbridge.testing import FakeLauncher, RecordingSink

TEXT = "text/plain"
OPENMETRICS = "application/openmetrics-text"
#: What Prometheus 2 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;"
    "q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
each_format = pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
Series = dict[str, dict[tuple[tuple[str, str], ...], float]]


class View:
    """A bridge whose servers have fake backends."""

    def __init__(self, *names: str) -> None:
        self.settings = BridgeSettings()
        self.counters = BridgeCounters()
        self.clock = Clock()
        self.condition = "serving"
        self.connection_count, self.loop_lag, self.response_bytes = 7, 0.25, 4096
        self.usages: Mapping[int, Usage] = {}
        self.answer: Deferred[Any] | None = None
        self.asked = 0
        self.launcher = FakeLauncher()
        self.servers = [self.server(each) for each in names]

    def server(self, name: str, base: str = "", **settings: Any) -> Server:
        return Server(
            ServerSettings(name=name, command="x", base_uri=base or f"/{len(name)}", **settings),
            self.clock,
            launcher=self.launcher,
            limiter=SessionLimiter(5000),
            counters=self.counters.of(name),
            measure=True,
        )

    def usage(self) -> Deferred[Any]:
        self.asked += 1
        return succeed(self.usages) if self.answer is None else self.answer

    def open(self, server: Server) -> BackendSession:
        opened: list[BackendSession] = []
        sink = cast("Callable[..., Any]", lambda session: RecordingSink())
        ensureDeferred(server.open_session(sink)).addCallback(opened.append)
        return opened[0]

    def exposition(self, **options: Any) -> Exposition:
        return Exposition(cast("Any", self), self.clock, **options)

    def finish(self, scrape: Any) -> tuple[str, bytes]:
        found: list[Any] = []
        ensureDeferred(scrape).addBoth(found.append)
        while not found:
            assert self.clock.getDelayedCalls()
            self.clock.advance(0)
        if not isinstance(found[0], tuple):
            found[0].raiseException()
        return cast("tuple[str, bytes]", found[0])

    def scrape(self, accept: str = TEXT) -> Series:
        content_type, body = self.finish(self.exposition().text(accept))
        assert content_type.startswith(accept)
        return parsed(body, accept)


def parsed(body: bytes, accept: str = TEXT) -> Series:
    """Return the values of all series by their names and labels; no series is there twice."""
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    found: Series = {}
    for family in parse(body.decode()):
        for each in family.samples:
            series = found.setdefault(each.name, {})
            labels = tuple(sorted(each.labels.items()))
            assert labels not in series
            series[labels] = each.value
    return found


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


@each_format
def test_all_families_are_there_also_without_numbers(accept: str) -> None:
    view = View()
    _, body = view.finish(view.exposition().text(accept))
    parsed(body, accept)
    declared = re.findall(rb"(?m)^# TYPE (mcp\w+) (\w+)$", body)
    suffix = "" if accept == OPENMETRICS else "_total"
    expected = [
        (each.name.removesuffix("_total") + (suffix if each.kind == "counter" else ""), each.kind)
        for each in FAMILIES
    ]
    assert [(name.decode(), kind.decode()) for name, kind in declared] == expected
    assert body.endswith(b"# EOF\n") is (accept == OPENMETRICS)
    assert body.count(b"# EOF") == (accept == OPENMETRICS)
    assert b"process_resident_memory_bytes" in body


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        (PROMETHEUS, OPENMETRICS),
        (TEXT, TEXT),
        ("image/png", TEXT),
        (f"{OPENMETRICS};q=0.1, {TEXT}", TEXT),
        (f"{OPENMETRICS}; version=9; charset=x", OPENMETRICS),
    ],
)
def test_the_format_is_what_the_client_likes_best(accept: str, media: str) -> None:
    view = View()
    content_type, body = view.finish(view.exposition().text(accept))
    assert content_type.partition(";")[0] == media
    assert body.endswith(b"# EOF\n") is (media == OPENMETRICS)


@each_format
def test_what_is_counted_is_written(accept: str) -> None:
    view = View("a", "bc")
    server, counters = view.servers[0], view.servers[0].counters
    operation = counters.operation("tools/call", "echo")
    operation.succeeded(0.015)
    operation.succeeded(400.0)
    operation.failed("-32601", 3.0)
    counters.spawn_seconds.add(0.5)
    counters.refusals["TooManySessions"] += 2
    view.counters.refusals["NotFound"] += 3
    view.counters.reloads["loaded"] += 4
    counters.exits["signal 9"] += 5
    counters.not_started = 6
    view.condition = "draining"
    session = view.open(server)
    session.messages_in, session.bytes_out = 8, 9
    session.backend.pid = 42
    view.usages = {42: Usage(1000, 10, 2), 43: Usage(1, 1, 1)}
    found = view.scrape(accept)

    name = "mcp_server_operation_duration_seconds"
    of_echo = {"server": "a", "mcp_method_name": "tools/call", "gen_ai_tool_name": "echo"}
    assert found[f"{name}_sum"] == {
        labels(**of_echo, error_type=""): pytest.approx(400.015),
        labels(**of_echo, error_type="-32601"): 3.0,
    }
    assert found[f"{name}_count"][labels(**of_echo, error_type="")] == 2
    buckets = [
        found[f"{name}_bucket"][labels(**of_echo, error_type="", le=bound)]
        for bound in (*map(str, SECONDS_BOUNDS), "+Inf")
    ]
    assert buckets == [0, *[1] * 13, 2]
    assert found["mcpbridge_backend_spawn_seconds_count"] == {
        labels(server="a"): 2,
        labels(server="bc"): 0,
    }
    assert found["mcpbridge_refusals_total"] == {
        labels(server="", cause="NotFound"): 3,
        labels(server="a", cause="TooManySessions"): 2,
    }
    assert found["mcpbridge_reloads_total"] == {
        labels(result="loaded"): 4,
        labels(result="failed"): 0,
    }
    assert found["mcpbridge_backend_exits_total"] == {labels(server="a", status="signal 9"): 5}
    assert found["mcpbridge_backend_not_started_total"][labels(server="a")] == 6
    sse = {"server": "a", "transport": "sse"}
    assert found["mcpbridge_messages_total"][labels(**sse, direction="from_client")] == 8
    assert found["mcpbridge_message_bytes_total"][labels(**sse, direction="to_client")] == 9
    assert found["mcpbridge_sessions_opened_total"][labels(**sse)] == 1
    assert found["mcpbridge_sessions"][labels(**sse)] == 1
    closed = found["mcpbridge_sessions_closed_total"]
    assert closed == {labels(server=x, reason=y): 0 for x in ("a", "bc") for y in KINDS}
    assert found["mcpbridge_sessions_limit"][labels(server="a")] == server.settings.max_sessions
    assert found["mcpbridge_processes"][labels(server="a", use="session")] == 1
    assert found["mcpbridge_server_state"][labels(server="bc", state="not_started")] == 1
    assert sum(found["mcpbridge_server_state"].values()) == 2
    assert found["mcpbridge_server_ready"] == {labels(server="a"): 1, labels(server="bc"): 1}
    assert found["mcpbridge_connections"] == {(): 7}
    assert found["mcpbridge_response_bytes"] == {(): 4096}
    assert found["mcpbridge_loop_lag_seconds"] == {(): 0.25}
    assert found["mcpbridge_draining"] == {(): 1}
    assert found["mcpbridge_backend_memory_bytes"][labels(server="a")] == 1000
    assert found["mcpbridge_backend_descriptors"][labels(server="a")] == 10
    assert found["mcpbridge_backend_processes"] == {labels(server="a"): 2, labels(server="bc"): 0}
    (build,) = found["mcpbridge_build_info"]
    assert dict(build)["version"] == __version__


def test_a_server_that_fails_is_not_ready() -> None:
    view = View("a", "bc")
    for server, error in zip(view.servers, ("no such program", None), strict=True):
        view.launcher.error = None if error is None else CannotStart(error)
        sink = cast("Callable[..., Any]", lambda session: RecordingSink())
        ensureDeferred(server.open_session(sink)).addErrback(lambda _: None)
    found = view.scrape()
    assert found["mcpbridge_server_ready"] == {labels(server="a"): 0, labels(server="bc"): 1}
    assert found["mcpbridge_server_state"][labels(server="a", state="failing")] == 1


@given(st.text(min_size=1), st.sampled_from([TEXT, OPENMETRICS]))
def test_any_name_is_a_label(name: str, accept: str) -> None:
    view = View()
    view.counters.refusals[name] = 1
    # What is no text in UTF-8 cannot be written as it is.
    readable = name.encode("utf-8", "replace").decode()
    found = view.scrape(accept)
    assert found["mcpbridge_refusals_total"] == {labels(server="", cause=readable): 1}


def test_a_lone_surrogate_does_not_prevent_a_scrape() -> None:
    view = View()
    view.counters.refusals["\udc80"] = 1
    assert view.scrape()["mcpbridge_refusals_total"] == {labels(server="", cause="?"): 1}


def test_other_methods_are_one_series() -> None:
    view = View("a")
    measures = view.servers[0].measures
    assert measures is not None
    for number in range(50):
        measures.operation(f"invented/{number}").succeeded(1.0)
    count = view.scrape()["mcp_server_operation_duration_seconds_count"]
    assert {dict(each)["mcp_method_name"]: value for each, value in count.items()} == {OTHER: 50}


# Consistency.


def messages(view: View, found: Series) -> float:
    return sum(found["mcpbridge_messages_total"].values())


def test_messages_are_those_of_closed_sessions_and_of_live_ones() -> None:
    view = View("a")
    sessions = [view.open(view.servers[0]) for _ in range(3)]
    for each in sessions:
        each.messages_in += 5
    assert messages(view, view.scrape()) == 15
    sessions[0].life.end(ClientLeft("gone"))
    # Its process is still there.
    assert messages(view, view.scrape()) == 15
    sessions[0].backend.stopped.callback(None)
    assert messages(view, view.scrape()) == 15
    assert view.servers[0].counters.traffic["sse"].messages_in == 5


@given(st.data())
def test_no_counter_goes_back_while_sessions_close_during_a_scrape(data: st.DataObject) -> None:
    view = View("a")
    server = view.servers[0]
    live = [view.open(server) for _ in range(4)]
    exposition, seen = view.exposition(), 0.0
    sent = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_numbers, "SUMMED_SESSIONS", 1)
        patch.setattr(metrics, "SLICE_LINES", 1)
        for _ in range(3):
            found: list[Any] = []
            before = sent
            ensureDeferred(exposition.text(TEXT)).addBoth(found.append)
            while not found:
                if live and data.draw(st.integers(0, 4)) == 0:
                    session = data.draw(st.sampled_from(live))
                    session.messages_in += 1
                    sent += 1
                    if data.draw(st.booleans()):
                        live.remove(session)
                        session.life.end(ClientLeft("gone"))
                        session.backend.stopped.callback(None)
                view.clock.advance(0)
            count = messages(view, parsed(found[0][1]))
            assert max(seen, before) <= count <= sent
            seen = count
    assert messages(view, view.scrape()) == sent


def test_two_servers_of_one_name_are_shown_as_one() -> None:
    """A server that was removed has sessions left while another of its name is served."""
    view = View("a", "a")
    for server, count in zip(view.servers, (1, 2), strict=True):
        for _ in range(count):
            view.open(server).messages_in = 10
    found = view.scrape()
    assert found["mcpbridge_sessions"][labels(server="a", transport="sse")] == 3
    assert messages(view, found) == 30
    assert found["mcpbridge_sessions_opened_total"][labels(server="a", transport="sse")] == 3


def test_processes_are_counted_by_use() -> None:
    view = View("a")
    server = view.servers[0]
    sessions = [view.open(server) for _ in range(3)]
    assert process_counts(server) == ProcessCounts(3, 0, 0, 0, 0, 0)
    sessions[0].life.drain()
    sessions[1].life.end("x")
    assert process_counts(server) == ProcessCounts(1, 0, 0, 0, 0, 2)
    taken: list[BackendSession] = []
    ensureDeferred(server.pool.take()).addCallback(taken.append)
    assert process_counts(server).starting == 1
    sessions[1].backend.stopped.callback(None)
    assert process_counts(server) == ProcessCounts(1, 0, 0, 0, 1, 1)


def test_processes_that_are_kept_ready_are_warm() -> None:
    view = View()
    server = view.server("a", warm=1, max_sessions=2)
    view.servers = [server]
    server.start()
    while not len(server.pool.spares):
        view.clock.advance(1)
    assert process_counts(server) == ProcessCounts(0, 0, 0, 1, 0, 0)


# Slices and scrapes.


def test_a_scrape_is_made_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View("a")
    for number in range(100):
        view.servers[0].counters.operation("tools/call", f"tool {number}").succeeded(1.0)
    lines: list[int] = []
    written = metrics._written

    def count(generate: Any, collected: Any) -> bytes:
        found: bytes = written(generate, collected)
        lines.append(found.count(b"\n"))
        return found

    monkeypatch.setattr(metrics, "_written", count)
    found = view.scrape()
    assert len(found["mcp_server_operation_duration_seconds_count"]) == 100
    # The header is not counted.
    assert max(lines) <= SLICE_LINES + 2
    assert len(lines) > 100 * HISTOGRAM_LINES // SLICE_LINES


def test_sessions_are_summed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View("a")
    for _ in range(SUMMED_SESSIONS * 2):
        view.open(view.servers[0]).messages_in = 1
    reading = server_numbers.read_servers(cast("Any", view), {})
    steps = 0
    while True:
        try:
            next(reading)
        except StopIteration as done:
            (numbers,) = done.value
            break
        steps += 1
    assert numbers.traffic["sse"].messages_in == SUMMED_SESSIONS * 2
    # One for the server, two for messages and two for what processes use.
    assert steps == 5


def test_scrapes_at_one_time_share_one() -> None:
    view = View("a")
    view.answer = Deferred()
    exposition = view.exposition()
    found: list[Any] = []
    scrapes = [ensureDeferred(exposition.text(TEXT)) for _ in range(WAITING_SCRAPES)]
    scrapes[0].addErrback(lambda _: None).cancel()
    for each in scrapes[1:]:
        each.addCallback(found.append)
    late = ensureDeferred(exposition.text(TEXT)).addCallback(found.append)
    with pytest.raises(ServerBusy, match=str(WAITING_SCRAPES)):
        view.finish(exposition.text(TEXT))
    assert view.asked == 1
    answer, view.answer = view.answer, None
    answer.callback({})
    while len(found) < WAITING_SCRAPES:
        view.clock.advance(0)
    assert late.called
    assert len({id(body) for _, body in found}) == 1
    assert view.finish(exposition.text(TEXT))[1]
    assert view.asked == 2


def test_each_format_is_a_scrape_of_its_own() -> None:
    view = View("a")
    view.answer = Deferred()
    exposition = view.exposition()
    scrapes = [exposition.text(TEXT), exposition.text(OPENMETRICS)]
    found: list[Any] = []
    for each in scrapes:
        ensureDeferred(each).addCallback(found.append)
    assert view.asked == 2
    view.answer.callback({})
    while len(found) < 2:
        view.clock.advance(0)
    assert len({content_type for content_type, _ in found}) == 2


def test_without_the_library_an_error_says_what_to_install() -> None:
    def load(name: str) -> Any:
        raise ModuleNotFoundError(name)

    view = View("a")
    with pytest.raises(NotSupported, match=r"pip install 'mcpbridge\[metrics\]'"):
        view.finish(view.exposition(load=load).text(TEXT))
