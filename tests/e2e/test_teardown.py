"""
However a session ends, it ends once, with its whole process tree, and nothing
else ends with it.
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
    Stream,
    backend,
    bystander,
    request,
    serving,
    until,
)
from tests.real.parts import beside_python
from tests.real.processes import Process, alive, eventually

SHORT = {"stop_grace": 0.1, "kill_grace": 0.1}
SHORT_OPTIONS = ("--stop-grace", "0.1", "--kill-grace", "0.1")
READY = b'{"jsonrpc":"2.0","method":"ready"}'
#: A line of the log that says that a session is over.
CLOSED = " closed after "


def config(notes: Path, **settings: object) -> dict[str, object]:
    """One server for each kind of backend."""
    backends = {
        "echo": backend("echo"),
        "obey": backend("obey"),
        "strays": backend("strays"),
        "hydra": backend("hydra"),
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
def zoo(shared: Bridge) -> Iterator[Bridge]:
    """The same for one test, which must leave it as it was."""
    yield shared
    shared.hang_up()


def sleepers(bridge: Bridge) -> set[Process]:
    """The strays of all sessions."""
    return {each for each in bridge.marked() if each.command.startswith("sleep ")}


def open_ready(bridge: Bridge, base: str) -> Stream:
    """A session whose backend has said that it is ready."""
    stream = bridge.open(base)
    assert stream.message() == READY
    return stream


# Every way for a session to end.

LEAVE = [Stream.close, Stream.reset, Stream.half_close]


@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("base", ["/strays", "/hydra", "/stubborn"])
def test_client_leaves(zoo: Bridge, base: str, leave: Callable[[Stream], None]) -> None:
    """FIN, RST, half-close: the whole tree is gone when the session says that it is closed."""
    stream = open_ready(zoo, base)
    leave(stream)
    assert "the client went away" in zoo.wait_for_close(stream)
    assert not zoo.backends()
    assert zoo.log.count(f"session {stream.ident[:8]} of {base[1:]!r} closed") == 1


@pytest.mark.parametrize("leave", LEAVE)
def test_client_leaves_while_its_stream_is_full(
    zoo: Bridge, leave: Callable[[Stream], None]
) -> None:
    """The same while the backend's stdout is not read because the client does not read."""
    stream = zoo.open("/flood", receive_buffer=4096)
    stream.send_message(request("begin"))
    [flooding] = zoo.wait_for_backends(1, sys.executable)
    until(lambda: is_blocked(flooding))
    leave(stream)
    # Its pipes are read again, so it can get to its end of stdin or a signal.
    assert "the client went away" in zoo.wait_for_close(stream)
    assert not zoo.backends()


@pytest.mark.parametrize("leave", LEAVE)
def test_backend_that_was_not_read_may_finish(
    tmp_path: Path, leave: Callable[[Stream], None]
) -> None:
    """A backend that is stuck in its stdout is read again, so that it gets to its end of stdin."""
    command = backend("flood", 20_000_000, 1000, tmp_path / "taken")
    with serving("--stop-grace", NEVER, "--kill-grace", NEVER, command=command) as bridge:
        stream = bridge.open(receive_buffer=4096)
        stream.send_message(request("begin"))
        [flooding] = bridge.wait_for_backends(1, sys.executable)
        until(lambda: is_blocked(flooding))
        leave(stream)
        assert "exit status 0" in bridge.wait_for_close(stream)


def is_blocked(process: Process) -> bool:
    """Whether a process has waited in one place for a while, and computes no more."""

    def computed() -> list[str]:
        with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[11:13]

    before = computed()
    return not eventually(lambda: computed() != before, 0.2)


@pytest.mark.parametrize("leave", LEAVE)
def test_client_leaves_while_messages_wait(tmp_path: Path, leave: Callable[[Stream], None]) -> None:
    """While the backend has not read what waits for it: its stdin is closed at once."""
    command = backend("gated", tmp_path / "gate")
    with serving("--stop-grace", NEVER, "--kill-grace", NEVER, command=command) as bridge:
        stream = bridge.open()
        for _ in range(5):
            stream.send_message(request("x", pad="x" * 100_000))
        leave(stream)
        assert "exit status 0" in bridge.wait_for_close(stream)
        assert not bridge.backends()


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
def test_backend_ends(zoo: Bridge, order: bytes, reason: str) -> None:
    """Backend exits, crashes, closes stdout, closes stdin: the stream is completed."""
    other, stream = zoo.open("/obey"), zoo.open("/obey")
    stream.send_message(order)
    last = stream.rest()
    assert last == ([b'{"jsonrpc":"2.0","method":"last words"}'] if b"exit" in order else [])
    assert reason in zoo.wait_for_close(stream)
    assert stream.post(request("late")).status == 404
    assert len(zoo.below()) == 1
    assert other.round_trip(request("other")) == request("other")


def test_backend_is_killed_by_somebody_else(zoo: Bridge) -> None:
    """A backend that is killed from outside takes its strays with it."""
    stream = open_ready(zoo, "/strays")
    [leader] = [each for each in zoo.below() if "strays.py" in each.command]
    assert len(sleepers(zoo)) == 3
    os.kill(leader.pid, signal.SIGKILL)
    assert stream.rest() == []
    assert "signal 9" in zoo.wait_for_close(stream)
    assert not zoo.backends()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_service_stops(tmp_path: Path, number: signal.Signals) -> None:
    """Service stop: every tree is gone when the process has exited, within the graces."""
    with serving(config=config(tmp_path)) as bridge:
        streams = [open_ready(bridge, base) for base in ("/strays", "/hydra", "/stubborn")]
        streams.append(bridge.open("/flood", receive_buffer=4096))
        streams[-1].send_message(request("begin"))
        streams.append(bridge.open("/gated"))
        for _ in range(5):
            streams[-1].send_message(request("x", pad="x" * 100_000))
        bridge.stop(number)
        assert bridge.log.count(CLOSED) == len(streams)
        assert "could not be ended" not in bridge.log


def test_service_stops_while_sessions_end(tmp_path: Path) -> None:
    """A stop in the middle of other ends: each session is accounted for once."""
    with serving(config=config(tmp_path)) as bridge:
        streams = [open_ready(bridge, "/strays") for _ in range(6)]
        for leave, stream in zip(LEAVE, streams, strict=False):
            leave(stream)
        bridge.stop()
        assert bridge.log.count(CLOSED) == len(streams)


# Whose a process is.


def test_each_tree_is_its_own_sessions(zoo: Bridge) -> None:
    """Strays are attributed to their own session: another one's, just like them, live on."""
    first, second = open_ready(zoo, "/strays"), open_ready(zoo, "/strays")
    everything = zoo.marked()
    assert len(everything) == 8
    first.reset()
    zoo.wait_for_close(first)
    left = zoo.marked()
    assert len(left) == 4
    assert left < everything
    assert second.round_trip(request("x")) == request("x")
    second.reset()
    zoo.wait_for_close(second)
    assert not zoo.backends()


def test_strangers_survive(tmp_path: Path) -> None:
    """
    Nothing is ever killed that is not ours: a process with another parent,
    one with another tag, one in a session of its own, and the backends of
    another bridge.
    """
    neighbouring = serving(*SHORT_OPTIONS, command=backend("strays"))
    with neighbouring as neighbour, serving(config=config(tmp_path)) as bridge:
        theirs = open_ready(neighbour, "")
        neighbours = neighbour.marked()
        sleep = ["sleep", f"600.{bridge.mark}"]
        tagged = ["prlimit", f"--rss={1 << 40}:{1 << 40}", *sleep]
        with (
            bystander(sleep) as plain,
            bystander(tagged) as other,
            bystander(["setsid", *sleep]) as apart,
        ):
            strangers = {plain.pid, other.pid, apart.pid}
            for base in ("/strays", "/stubborn", "/hydra"):
                stream = open_ready(bridge, base)
                stream.close()
                bridge.wait_for_close(stream)
                assert {each.pid for each in bridge.marked()} == strangers
            open_ready(bridge, "/strays")
            bridge.process.send_signal(signal.SIGTERM)
            bridge.process.wait()
            until(lambda: {each.pid for each in bridge.marked()} == strangers)
            assert all(each.poll() is None for each in (plain, other, apart))
        assert neighbour.marked() == neighbours
        assert theirs.round_trip(request("x")) == request("x")


def test_a_bridge_behind_a_bridge() -> None:
    """A backend may itself be a bridge with sessions: both clean up after themselves."""
    inner = [beside_python("twistd"), "-n", "--pidfile=", "mcpbridge", *LOOPBACK, *SHORT_OPTIONS]
    options = ("--stop-grace", "0.1", "--kill-grace", NEVER, "--pass-env", "PYTHONPATH")
    with serving(*options, command=[*inner, "--", *backend("strays")]) as bridge:
        first, second = bridge.open(), bridge.open()
        with _inner_session(first) as ended, _inner_session(second) as other:
            assert len(sleepers(bridge)) == 6
            first.close()
            bridge.wait_for_close(first)
            assert ended.rest() == []
            assert len(sleepers(bridge)) == 3
            assert other.round_trip(request("x")) == request("x")


def _inner_session(stream: Stream) -> Stream:
    """A session of the bridge that is the backend of this one: it tells its port on stdout."""
    while not (message := stream.message()).endswith(b'/sse"}}'):
        pass
    port = message.rpartition(b":")[2].removesuffix(b'/sse"}}')
    inner = Stream(int(port)).begin()
    assert inner.message() == READY
    return inner


# The bridge itself is killed.


def test_bridge_is_killed(tmp_path: Path) -> None:
    """Bridge killed with SIGKILL: the whole tree dies, strays too, and the watchdog goes last."""
    with serving(config=config(tmp_path)) as bridge:
        watchdog = bridge.watchdog()
        for base in ("/strays", "/stubborn", "/hydra", "/strays"):
            open_ready(bridge, base)
        everything = bridge.marked()
        assert len(everything) == 4 + 1 + 2 + 4
        bridge.kill()
        until(lambda: not bridge.marked())
        assert not any(map(alive, everything))
        until(lambda: not alive(watchdog))


def test_bridge_is_killed_and_its_watchdog_sleeps(tmp_path: Path) -> None:
    """
    Every direct backend dies with the bridge by itself, also one that ignores
    EOF; the rest dies as soon as the watchdog may run.
    """
    with serving(config=config(tmp_path)) as bridge:
        watchdog = bridge.watchdog()
        os.kill(watchdog.pid, signal.SIGSTOP)
        try:
            open_ready(bridge, "/stubborn")
            open_ready(bridge, "/strays")
            leaders = bridge.marked() - sleepers(bridge)
            assert len(leaders) == 2
            bridge.kill()
            until(lambda: not any(map(alive, leaders)))
            assert len(sleepers(bridge)) == 3
        finally:
            os.kill(watchdog.pid, signal.SIGCONT)
        until(lambda: not bridge.marked())
        until(lambda: not alive(watchdog))


def test_bridge_is_killed_strangers_survive(tmp_path: Path) -> None:
    """The watchdog kills nothing that is not ours."""
    with serving(config=config(tmp_path)) as bridge:
        watchdog = bridge.watchdog()
        open_ready(bridge, "/strays")
        sleep = ["sleep", f"600.{bridge.mark}"]
        tagged = ["prlimit", f"--rss={1 << 40}:{1 << 40}", *sleep]
        with bystander(sleep) as plain, bystander(tagged) as other:
            bridge.kill()
            until(lambda: not alive(watchdog))
            assert {each.pid for each in bridge.marked()} == {plain.pid, other.pid}
            assert plain.poll() is None
            assert other.poll() is None


def test_watchdog_is_killed(tmp_path: Path) -> None:
    """A watchdog that dies is replaced, and sessions do not notice."""
    with serving(config=config(tmp_path)) as bridge:
        first = bridge.watchdog()
        stream = open_ready(bridge, "/strays")
        os.kill(first.pid, signal.SIGKILL)
        bridge.wait_for_log("the watchdog ended")
        until(lambda: bridge.below() and any(alive(x) for x in bridge.watchdogs if x != first))
        assert stream.round_trip(request("x")) == request("x")
        bridge.kill()
        until(lambda: not bridge.marked())
        until(lambda: not any(map(alive, bridge.watchdogs)))


# Permits, and what is left after many sessions.


@pytest.mark.slow
def test_permit_returns_only_when_the_tree_is_gone(tmp_path: Path) -> None:
    """
    Live backends never exceed `max_sessions` under rapid reconnects.

    Each tree holds a lock that the kernel frees when its last process is
    gone; a backend that finds none free says so.
    """
    options = ("--max-sessions", "2", "--stop-grace", "0.02", "--kill-grace", "0.02")
    with serving(*options, command=backend("slot", tmp_path, 2)) as bridge:
        opened = refused = 0
        while opened < 30:
            stream = bridge.knock()
            if stream.status == 429:
                refused += 1
                stream.close()
                continue
            opened += 1
            if opened % 3:
                assert stream.begin().message() == READY
            LEAVE[opened % 3](stream)
        assert refused
        bridge.hang_up()
        assert not (tmp_path / "too-many").exists()


def test_nothing_piles_up(tmp_path: Path) -> None:
    """No zombie, no orphan, no leaked descriptor after sessions that ended in every way."""
    with serving(config=config(tmp_path)) as bridge:

        def cycle() -> None:
            for base in ("/strays", "/stubborn", "/hydra"):
                for leave in LEAVE:
                    leave(open_ready(bridge, base))
            for method in ("exit", "crash", "close stdin", "close stdout"):
                bridge.open("/obey").send_message(request(method, status=1))
            for _ in range(3):
                bridge.open("/gated").reset()
            assert bridge.knock("/nothing/sse").status == 404
            bridge.hang_up()

        cycle()
        before = bridge.descriptors()
        for _ in range(3):
            cycle()
        # It has yet to notice that the last connections of posts are closed.
        until(lambda: bridge.descriptors() <= before)
        assert not bridge.backends()
        assert bridge.log.count("' opened") == bridge.log.count(CLOSED) == 4 * 16


@pytest.mark.parametrize("base", ["/echo", "/strays"])
def test_client_is_gone_before_its_session_is_there(zoo: Bridge, base: str) -> None:
    """A client that asks for a stream and leaves in the same breath leaves nothing behind."""
    for _ in range(20):
        with zoo.wire() as wire:
            wire.send(f"GET {base}/sse HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            wire.reset()
    # Once it answers this it has seen all of those.
    assert zoo.ask("GET", "/nothing").status == 404
    zoo.hang_up()


def test_stop_without_sessions() -> None:
    """A bridge that never had a session stops as cleanly."""
    with serving() as bridge:
        bridge.watchdog()
        bridge.stop()
        assert "closed after" not in bridge.log


def test_backends_hold_no_descriptor_of_the_bridge() -> None:
    """A backend has its three pipes and nothing else of the bridge's."""
    with serving() as bridge:
        streams = [bridge.open() for _ in range(3)]
        for stream in streams:
            assert stream.round_trip(request("x")) == request("x")
        for each in bridge.wait_for_backends(3):
            names = os.listdir(f"/proc/{each.pid}/fd")
            assert sorted(names) == ["0", "1", "2"]
