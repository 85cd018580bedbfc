"""
However a session ends, it ends once and with its whole process tree, and no
other process is ended.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import (
    LOOPBACK,
    NEVER,
    Bridge,
    SseStream,
    backend,
    request,
    serving,
    unrelated_process,
    wait_until,
)
from tests.real.parts import beside_python
from tests.real.processes import Process, alive, eventually

SHORT = {"stop_grace": 0.1, "kill_grace": 0.1}
SHORT_OPTIONS = ("--stop-grace", "0.1", "--kill-grace", "0.1")
READY = b'{"jsonrpc":"2.0","method":"ready"}'
#: Part of the log line of a closed session.
CLOSED = " closed after "


def config(notes: Path, **settings: object) -> dict[str, object]:
    """Return a configuration with one server for each kind of backend."""
    backends = {
        "echo": backend("echo"),
        "obey": backend("obey"),
        "scattered": backend("scattered"),
        "respawning": backend("respawning"),
        "stubborn": backend("stubborn", notes / "told", "deaf"),
        "gated": backend("gated", notes / "gate"),
        "flood": backend("flood", 10**12, 1000, notes / "taken"),
    }
    return {
        "mcpServers": {
            name: {"command": line[0], "args": line[1:], **SHORT, **settings}
            for name, line in backends.items()
        }
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A bridge in front of all kinds of backends."""
    with serving(config=config(tmp_path_factory.mktemp("notes"))) as bridge:
        yield bridge


@pytest.fixture
def shared_bridge(shared: Bridge) -> Iterator[Bridge]:
    """The shared bridge for one test."""
    yield shared
    shared.close_clients()


def sleepers(bridge: Bridge) -> set[Process]:
    """Return the stray processes of all sessions."""
    return {each for each in bridge.marked_processes() if each.command.startswith("sleep ")}


def open_ready(bridge: Bridge, base: str) -> SseStream:
    """Open a session and wait until its backend is ready."""
    stream = bridge.open_sse(base)
    assert stream.read_message() == READY
    return stream


# Every way for a session to end.

LEAVE = [SseStream.close, SseStream.reset, SseStream.half_close]


@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("base", ["/scattered", "/respawning", "/stubborn"])
def test_whole_tree_is_gone_when_a_session_is_closed(
    shared_bridge: Bridge, base: str, leave: Callable[[SseStream], None]
) -> None:
    """The client leaves with FIN, RST or half-close."""
    stream = open_ready(shared_bridge, base)
    leave(stream)
    assert "the client went away" in shared_bridge.wait_for_close(stream)
    assert not shared_bridge.backend_processes()
    assert shared_bridge.log.count(f"session {stream.session_id[:8]} of {base[1:]!r} closed") == 1


@pytest.mark.parametrize("leave", LEAVE)
def test_session_with_a_full_stream_ends_with_its_client(
    shared_bridge: Bridge, leave: Callable[[SseStream], None]
) -> None:
    """Although the bridge had stopped reading the backend's stdout."""
    stream = shared_bridge.open_sse("/flood", receive_buffer=4096)
    stream.send_message(request("begin"))
    [flooding] = shared_bridge.wait_for_backends(1, sys.executable)
    wait_until(lambda: is_blocked(flooding))
    leave(stream)
    # Its pipes are read again, so it can reach the end of its stdin or a signal.
    assert "the client went away" in shared_bridge.wait_for_close(stream)
    assert not shared_bridge.backend_processes()


@pytest.mark.parametrize("leave", LEAVE)
def test_backend_blocked_on_stdout_may_finish(
    tmp_path: Path, leave: Callable[[SseStream], None]
) -> None:
    """The bridge reads it again, so that it reaches the end of its stdin."""
    command = backend("flood", 20_000_000, 1000, tmp_path / "taken")
    with serving("--stop-grace", NEVER, "--kill-grace", NEVER, command=command) as bridge:
        stream = bridge.open_sse(receive_buffer=4096)
        stream.send_message(request("begin"))
        [flooding] = bridge.wait_for_backends(1, sys.executable)
        wait_until(lambda: is_blocked(flooding))
        leave(stream)
        assert "exit status 0" in bridge.wait_for_close(stream)


def is_blocked(process: Process) -> bool:
    """Return True if a process has used no CPU time for a while."""

    def computed() -> list[str]:
        with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[11:13]

    before = computed()
    return not eventually(lambda: computed() != before, 0.2)


@pytest.mark.parametrize("leave", LEAVE)
def test_waiting_messages_do_not_delay_the_end_of_stdin(
    tmp_path: Path, leave: Callable[[SseStream], None]
) -> None:
    """The backend has not read what waits for it; its stdin is closed at once."""
    command = backend("gated", tmp_path / "gate")
    with serving("--stop-grace", NEVER, "--kill-grace", NEVER, command=command) as bridge:
        stream = bridge.open_sse()
        for _ in range(5):
            stream.send_message(request("x", pad="x" * 100_000))
        leave(stream)
        assert "exit status 0" in bridge.wait_for_close(stream)
        assert not bridge.backend_processes()


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (request("exit", status=0), "backend: exit status 0"),
        (request("exit", status=3), "backend: exit status 3"),
        (request("crash"), "backend: signal 9"),
        (request("close stdout"), ": the backend closed its stdout;"),
        (request("close stdin"), ": the backend closed its stdin;"),
    ],
)
def test_end_of_a_backend_completes_its_stream(
    shared_bridge: Bridge, order: bytes, reason: str
) -> None:
    """Backend exits, crashes, closes stdout or closes stdin."""
    other, stream = shared_bridge.open_sse("/obey"), shared_bridge.open_sse("/obey")
    stream.send_message(order)
    last = stream.read_remaining_messages()
    assert last == ([b'{"jsonrpc":"2.0","method":"last words"}'] if b"exit" in order else [])
    assert reason in shared_bridge.wait_for_close(stream)
    assert stream.post(request("late")).status == 404
    assert len(shared_bridge.descendants()) == 1
    assert other.round_trip(request("other")) == request("other")


def test_descendants_of_a_killed_backend_end_too(shared_bridge: Bridge) -> None:
    """It was killed from outside."""
    stream = open_ready(shared_bridge, "/scattered")
    [leader] = [each for each in shared_bridge.descendants() if "scattered.py" in each.command]
    assert len(sleepers(shared_bridge)) == 3
    os.kill(leader.pid, signal.SIGKILL)
    assert stream.read_remaining_messages() == []
    assert "signal 9" in shared_bridge.wait_for_close(stream)
    assert not shared_bridge.backend_processes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_ends_every_tree_within_the_graces(tmp_path: Path, number: signal.Signals) -> None:
    """Every tree is gone when the bridge has exited."""
    with serving(config=config(tmp_path)) as bridge:
        streams = [open_ready(bridge, base) for base in ("/scattered", "/respawning", "/stubborn")]
        streams.append(bridge.open_sse("/flood", receive_buffer=4096))
        streams[-1].send_message(request("begin"))
        streams.append(bridge.open_sse("/gated"))
        for _ in range(5):
            streams[-1].send_message(request("x", pad="x" * 100_000))
        bridge.stop(number)
        assert bridge.log.count(CLOSED) == len(streams)
        assert "could not be ended" not in bridge.log


def test_stop_while_sessions_end_closes_each_once(tmp_path: Path) -> None:
    with serving(config=config(tmp_path)) as bridge:
        streams = [open_ready(bridge, "/scattered") for _ in range(6)]
        for leave, stream in zip(LEAVE, streams, strict=False):
            leave(stream)
        bridge.stop()
        assert bridge.log.count(CLOSED) == len(streams)


# Which session a process belongs to.


def test_end_of_a_session_ends_only_its_own_tree(shared_bridge: Bridge) -> None:
    """Identical processes of another session go on."""
    first, second = open_ready(shared_bridge, "/scattered"), open_ready(shared_bridge, "/scattered")
    everything = shared_bridge.marked_processes()
    assert len(everything) == 8
    first.reset()
    shared_bridge.wait_for_close(first)
    left = shared_bridge.marked_processes()
    assert len(left) == 4
    assert left < everything
    assert second.round_trip(request("x")) == request("x")
    second.reset()
    shared_bridge.wait_for_close(second)
    assert not shared_bridge.backend_processes()


def test_processes_of_others_are_never_killed(tmp_path: Path) -> None:
    """
    A process with another parent, one with another tag, one in a process session of
    its own, and the backends of another bridge.
    """
    neighbouring = serving(*SHORT_OPTIONS, command=backend("scattered"))
    with neighbouring as neighbour, serving(config=config(tmp_path)) as bridge:
        theirs = open_ready(neighbour, "")
        neighbours = neighbour.marked_processes()
        sleep = ["sleep", f"600.{bridge.marker}"]
        tagged = ["prlimit", f"--rss={1 << 40}:{1 << 40}", *sleep]
        with (
            unrelated_process(sleep) as plain,
            unrelated_process(tagged) as other,
            unrelated_process(["setsid", *sleep]) as apart,
        ):
            strangers = {plain.pid, other.pid, apart.pid}
            for base in ("/scattered", "/stubborn", "/respawning"):
                stream = open_ready(bridge, base)
                stream.close()
                bridge.wait_for_close(stream)
                assert {each.pid for each in bridge.marked_processes()} == strangers
            open_ready(bridge, "/scattered")
            bridge.process.send_signal(signal.SIGTERM)
            bridge.process.wait()
            wait_until(lambda: {each.pid for each in bridge.marked_processes()} == strangers)
            assert all(each.poll() is None for each in (plain, other, apart))
        assert neighbour.marked_processes() == neighbours
        assert theirs.round_trip(request("x")) == request("x")


def test_bridge_may_be_the_backend_of_a_bridge() -> None:
    """Both clean up after themselves."""
    inner = [beside_python("twistd"), "-n", "--pidfile=", "mcpbridge", *LOOPBACK, *SHORT_OPTIONS]
    options = ("--stop-grace", "0.1", "--kill-grace", NEVER, "--pass-env", "PYTHONPATH")
    with serving(*options, command=[*inner, "--", *backend("scattered")]) as bridge:
        first, second = bridge.open_sse(), bridge.open_sse()
        with _inner_session(first) as ended, _inner_session(second) as other:
            assert len(sleepers(bridge)) == 6
            first.close()
            bridge.wait_for_close(first)
            assert ended.read_remaining_messages() == []
            assert len(sleepers(bridge)) == 3
            assert other.round_trip(request("x")) == request("x")


def _inner_session(stream: SseStream) -> SseStream:
    """Open a session of the inner bridge, whose URL arrives as a stderr notification."""
    while not (message := stream.read_message()).endswith(b'/sse"}}'):
        pass
    port = message.rpartition(b":")[2].removesuffix(b'/sse"}}')
    inner = SseStream(int(port)).read_opening_events()
    assert inner.read_message() == READY
    return inner


# The bridge itself is killed.


def test_watchdog_ends_every_tree_of_a_killed_bridge(tmp_path: Path) -> None:
    """The bridge is killed with SIGKILL; the watchdog itself ends last."""
    with serving(config=config(tmp_path)) as bridge:
        watchdog = bridge.wait_for_watchdog()
        for base in ("/scattered", "/stubborn", "/respawning", "/scattered"):
            open_ready(bridge, base)
        everything = bridge.marked_processes()
        assert len(everything) == 4 + 1 + 2 + 4
        bridge.kill()
        wait_until(lambda: not bridge.marked_processes())
        assert not any(map(alive, everything))
        wait_until(lambda: not alive(watchdog))


def test_direct_backends_die_with_the_bridge_without_the_watchdog(tmp_path: Path) -> None:
    """Even one that ignores EOF dies; the rest dies as soon as the watchdog runs again."""
    with serving(config=config(tmp_path)) as bridge:
        watchdog = bridge.wait_for_watchdog()
        os.kill(watchdog.pid, signal.SIGSTOP)
        try:
            open_ready(bridge, "/stubborn")
            open_ready(bridge, "/scattered")
            leaders = bridge.marked_processes() - sleepers(bridge)
            assert len(leaders) == 2
            bridge.kill()
            wait_until(lambda: not any(map(alive, leaders)))
            assert len(sleepers(bridge)) == 3
        finally:
            os.kill(watchdog.pid, signal.SIGCONT)
        wait_until(lambda: not bridge.marked_processes())
        wait_until(lambda: not alive(watchdog))


def test_watchdog_kills_no_process_of_others(tmp_path: Path) -> None:
    with serving(config=config(tmp_path)) as bridge:
        watchdog = bridge.wait_for_watchdog()
        open_ready(bridge, "/scattered")
        sleep = ["sleep", f"600.{bridge.marker}"]
        tagged = ["prlimit", f"--rss={1 << 40}:{1 << 40}", *sleep]
        with unrelated_process(sleep) as plain, unrelated_process(tagged) as other:
            bridge.kill()
            wait_until(lambda: not alive(watchdog))
            assert {each.pid for each in bridge.marked_processes()} == {plain.pid, other.pid}
            assert plain.poll() is None
            assert other.poll() is None


def test_killed_watchdog_is_replaced(tmp_path: Path) -> None:
    """Sessions are not affected."""
    with serving(config=config(tmp_path)) as bridge:
        first = bridge.wait_for_watchdog()
        stream = open_ready(bridge, "/scattered")
        os.kill(first.pid, signal.SIGKILL)
        bridge.wait_for_log("the watchdog ended")
        wait_until(
            lambda: bridge.descendants() and any(alive(x) for x in bridge.watchdogs if x != first)
        )
        assert stream.round_trip(request("x")) == request("x")
        bridge.kill()
        wait_until(lambda: not bridge.marked_processes())
        wait_until(lambda: not any(map(alive, bridge.watchdogs)))


# Permits, and what is left after many sessions.


@pytest.mark.slow
def test_permit_returns_only_when_the_tree_is_gone(tmp_path: Path) -> None:
    """
    Running backends never exceed `max_sessions` under rapid reconnects.

    Each tree holds a lock that the kernel frees when its last process is
    gone; a backend that finds none free reports it.
    """
    options = ("--max-sessions", "2", "--stop-grace", "0.02", "--kill-grace", "0.02")
    with serving(*options, command=backend("slot", tmp_path, 2)) as bridge:
        opened = refused = 0
        while opened < 30:
            stream = bridge.get_sse()
            if stream.status == 429:
                refused += 1
                stream.close()
                continue
            opened += 1
            if opened % 3:
                assert stream.read_opening_events().read_message() == READY
            LEAVE[opened % 3](stream)
        assert refused
        bridge.close_clients()
        assert not (tmp_path / "too-many").exists()


def test_sessions_leave_no_process_and_no_descriptor(tmp_path: Path) -> None:
    """The sessions end in every way."""
    with serving(config=config(tmp_path)) as bridge:

        def cycle() -> None:
            for base in ("/scattered", "/stubborn", "/respawning"):
                for leave in LEAVE:
                    leave(open_ready(bridge, base))
            for method in ("exit", "crash", "close stdin", "close stdout"):
                stream = bridge.open_sse("/obey")
                # One that says nothing before it ends makes the bridge look whether its server
                # can be started at all.
                stream.round_trip(request("x"))
                stream.send_message(request(method, status=1))
            for _ in range(3):
                bridge.open_sse("/gated").reset()
            assert bridge.get_sse("/nothing/sse").status == 404
            bridge.close_clients()

        cycle()
        before = bridge.count_descriptors()
        for _ in range(3):
            cycle()
        # The bridge may not have noticed yet that the last connections are closed.
        wait_until(lambda: bridge.count_descriptors() <= before)
        assert not bridge.backend_processes()
        assert bridge.log.count("' opened") == bridge.log.count(CLOSED) == 4 * 16


@pytest.mark.parametrize("base", ["/echo", "/scattered"])
def test_client_that_leaves_at_once_leaves_nothing(shared_bridge: Bridge, base: str) -> None:
    """It asks for a stream and resets the connection."""
    for _ in range(20):
        with shared_bridge.connect() as connection:
            connection.send(f"GET {base}/sse HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.reset()
    # When the bridge answers this, it has seen all of those.
    assert shared_bridge.request("GET", "/nothing").status == 404
    shared_bridge.close_clients()


def test_bridge_without_sessions_stops_cleanly() -> None:
    with serving() as bridge:
        bridge.wait_for_watchdog()
        bridge.stop()
        assert "closed after" not in bridge.log


def test_backends_hold_no_descriptor_of_the_bridge() -> None:
    """A backend has its three pipes and no other descriptor."""
    with serving() as bridge:
        streams = [bridge.open_sse() for _ in range(3)]
        for stream in streams:
            assert stream.round_trip(request("x")) == request("x")
        for each in bridge.wait_for_backends(3):
            names = os.listdir(f"/proc/{each.pid}/fd")
            assert sorted(names) == ["0", "1", "2"]
