"""
Backends in containers: the engine, not the bridge, is the parent of a
container's processes, but none of them is left behind.

The engine is a small fake whose containers are processes of its daemon;
`test_docker` uses a real one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import (
    NEVER,
    STOPPED,
    TIMEOUT,
    Bridge,
    SseStream,
    backend,
    request,
    serving,
    wait_until,
)
from tests.engine.running import LABEL, Engine, running_engine
from tests.real.processes import alive

pytestmark = pytest.mark.slow

READY = b'{"jsonrpc":"2.0","method":"ready"}'
SHORT = {"stop_grace": 0.1, "kill_grace": 0.1}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running_engine() as engine:
        yield engine
        assert engine.containers() == []


def server(
    engine: Engine,
    notes: Path,
    *options: str,
    before: tuple[str, ...] = (),
    name: str = "docker",
    **settings: object,
) -> dict[str, object]:
    """Return a server in a container that ignores the end of its stdin and SIGTERM."""
    line = [*before, "run", "-i", "--rm", *options, "image", *backend("stubborn", notes, "deaf")]
    return {
        "command": str(engine.bin / name),
        "args": line,
        "env": {"DOCKER_HOST": str(engine.socket)},
        **SHORT,
        **settings,
    }


def config(**servers: dict[str, object]) -> dict[str, Any]:
    return {"mcpServers": servers}


def open_ready(bridge: Bridge, base: str = "/s") -> SseStream:
    stream = bridge.open_sse(base)
    assert stream.read_message() == READY
    return stream


@pytest.mark.parametrize("name", ["docker", "podman", "nerdctl"])
def test_container_is_gone_when_its_session_is_closed(
    engine: Engine, tmp_path: Path, name: str
) -> None:
    """The engine must confirm it, and other containers stay."""
    settings = server(engine, tmp_path / "told", name=name, before=("--log-level=debug",))
    with serving(config=config(s=settings)) as bridge:
        stream, other = open_ready(bridge), open_ready(bridge)
        first, second = engine.commands("run")
        assert len(engine.containers()) == 2
        stream.close()
        assert "the client went away" in bridge.wait_for_close(stream)
        [left] = engine.containers()
        # The right one is gone.
        assert other.is_open()
        [wanted] = [each for each in second if each.startswith("--label=mcpbridge.session=")]
        assert engine.containers(wanted.removeprefix("--label=")) == [left]
        assert wanted not in first
        # The engine's global options are passed to `rm` too.
        assert all("--log-level=debug" in line for line in engine.commands("rm"))
        bridge.close_clients()
        assert engine.containers() == []
        assert not Path(cidfile(engine)).parent.exists()


def cidfile(engine: Engine) -> str:
    """Return the path of the first cidfile used."""
    [path] = [each for each in engine.commands("run")[0] if each.startswith("--cidfile=")]
    return path.removeprefix("--cidfile=")


@pytest.mark.parametrize("init", [False, True])
def test_stop_removes_the_containers(engine: Engine, tmp_path: Path, init: bool) -> None:
    settings = server(engine, tmp_path / "told", container_init=init)
    with serving(config=config(s=settings)) as bridge:
        open_ready(bridge)
        open_ready(bridge)
        bridge.stop()
        assert bridge.log.count(" closed after ") == 2
        assert engine.containers() == []
        assert all(("--init" in line) is init for line in engine.commands("run"))


@pytest.mark.parametrize("init", [False, True])
def test_watchdog_removes_the_containers_of_a_killed_bridge(
    engine: Engine, tmp_path: Path, init: bool
) -> None:
    """It removes no other container."""
    settings = server(engine, tmp_path / "told", container_init=init)
    others = backend("stubborn", tmp_path / "others", "deaf")
    with serving(config=config(s=settings)) as bridge:
        open_ready(bridge)
        engine.start(f"{LABEL}=another", *others)
        engine.start("other=label", *others)
        bridge.wait_for_watchdog()
        bridge.kill()
        wait_until(lambda: len(engine.containers()) == 2)
        bridge.wait_until_empty()
        wait_until(lambda: not any(alive(each) for each in bridge.watchdogs))
        assert not Path(cidfile(engine)).parent.exists()
    assert len(engine.containers()) == 2
    engine.run("rm", *engine.containers())


def test_watchdog_removes_a_container_that_is_being_created(engine: Engine, tmp_path: Path) -> None:
    """It is removed as soon as it exists."""
    engine.enable_fault("slow", 1.5)
    with serving(config=config(s=server(engine, tmp_path / "told"))) as bridge:
        bridge.open_sse("/s")
        wait_until(lambda: engine.commands("run"))
        bridge.wait_for_watchdog()
        bridge.kill()
        wait_until(engine.containers)
        wait_until(lambda: not engine.containers())
        wait_until(lambda: not any(alive(each) for each in bridge.watchdogs))


def test_container_being_created_is_removed_when_its_client_leaves(
    engine: Engine, tmp_path: Path
) -> None:
    """The CLI ends before the engine creates the container."""
    engine.enable_fault("slow", 2)
    with serving(config=config(s=server(engine, tmp_path / "told"))) as bridge:
        stream = bridge.open_sse("/s")
        wait_until(lambda: engine.commands("run"))
        stream.close()
        bridge.wait_for_close(stream)
        assert engine.containers() == []
        assert len(engine.commands("rm")) == 1


def test_permit_stays_taken_while_the_engine_is_unreachable(engine: Engine, tmp_path: Path) -> None:
    """It returns when the engine confirms that the container is gone."""
    settings = server(engine, tmp_path / "told", max_sessions=1)
    with serving(config=config(s=settings)) as bridge:
        stream = open_ready(bridge)
        engine.stop_answering()
        stream.close()
        bridge.wait_for_log("server 's': cannot ask docker whether a container is gone: Cannot")
        wait_until(lambda: len(bridge.descendants()) == 0)
        assert bridge.get_sse("/s/sse").status == 429
        engine.resume_answering()
        assert "the client went away" in bridge.wait_for_close(stream)
        bridge.wait_for_log("server 's': docker answers again")
        assert engine.containers() == []
        assert bridge.log.count("cannot ask docker") == 1
        open_ready(bridge)


def test_stop_ends_while_the_engine_is_unreachable(engine: Engine, tmp_path: Path) -> None:
    """The next start removes the container that was left."""
    state = ("--state-dir", str(tmp_path / "state"))
    settings = server(engine, tmp_path / "told")
    with serving(*state, config=config(s=dict(settings)), clean=False) as bridge:
        open_ready(bridge)
        engine.stop_answering()
        bridge.wait_for_watchdog()
        bridge.process.send_signal(signal.SIGTERM)
        assert bridge.process.wait(2 * TIMEOUT) in STOPPED
        assert "1 sessions could not be ended" in bridge.log
        wait_until(lambda: not any(alive(each) for each in bridge.watchdogs))
        engine.resume_answering()
        assert len(engine.containers()) == 1
        with serving(*state, config=config(s=dict(settings))) as following:
            following.wait_for_log("1 containers")
            assert engine.containers() == []


def test_next_start_removes_containers_of_a_dead_bridge(engine: Engine, tmp_path: Path) -> None:
    """It leaves the containers of a living bridge alone."""
    state = ("--state-dir", str(tmp_path / "state"))
    settings = server(engine, tmp_path / "told")
    with serving(*state, config=config(s=dict(settings))) as living:
        open_ready(living)
        with serving(*state, config=config(s=dict(settings))) as dead:
            open_ready(dead)
            watchdog = dead.wait_for_watchdog()
            for pid in (dead.process.pid, watchdog.pid):
                os.kill(pid, signal.SIGSTOP)
            for pid in (dead.process.pid, watchdog.pid):
                os.kill(pid, signal.SIGKILL)
            dead.process.wait()
            assert len(engine.containers()) == 2
            with serving(*state, config=config(s=dict(settings))) as following:
                following.wait_for_log(f"(pid {dead.process.pid})", "1 containers")
                assert len(engine.containers()) == 1
                assert living.clients[0].is_open()  # type: ignore[union-attr]


def test_failed_removal_is_retried(engine: Engine, tmp_path: Path) -> None:
    with serving(config=config(s=server(engine, tmp_path / "told"))) as bridge:
        stream = open_ready(bridge)
        engine.enable_fault("stuck")
        stream.close()
        bridge.wait_for_log("cannot remove container", "removal is stuck")
        assert len(engine.containers()) == 1
        engine.disable_fault("stuck")
        bridge.wait_for_close(stream)


def test_container_without_the_bridges_label_is_never_removed(
    engine: Engine, tmp_path: Path
) -> None:
    """Even if the engine ignores filters and lists every container."""
    engine.start("other=label", *backend("stubborn", tmp_path / "others", "deaf"))
    with serving(config=config(s=server(engine, tmp_path / "told"))) as bridge:
        open_ready(bridge)
        engine.enable_fault("blind")
        bridge.wait_for_watchdog()
        bridge.kill()
        wait_until(lambda: not any(alive(each) for each in bridge.watchdogs))
        engine.disable_fault("blind")
        [left] = engine.containers()
        assert engine.containers("other=label") == [left]
    engine.run("rm", left)


def test_users_name_and_cidfile_are_kept(engine: Engine, tmp_path: Path) -> None:
    """A second session fails by itself and does not affect the first."""
    settings = server(
        engine, tmp_path / "told", "--name=mine", "--cidfile", "mine.cid", cwd=str(tmp_path)
    )
    with serving(config=config(s=settings)) as bridge:
        bridge.wait_for_log("server 's': `docker run`", "`--name`", "`--cidfile mine.cid`")
        stream = open_ready(bridge)
        second = bridge.open_sse("/s")
        assert b"container ID file found" in b"".join(second.read_remaining_messages())
        assert "exit status 125" in bridge.wait_for_close(second)
        assert engine.containers() == [(tmp_path / "mine.cid").read_text()]
        assert stream.is_open()
        stream.close()
        bridge.wait_for_close(stream)
        assert (tmp_path / "mine.cid").exists()


def test_detached_container_is_removed_with_a_warning(engine: Engine, tmp_path: Path) -> None:
    """No session works with it."""
    with serving(config=config(s=server(engine, tmp_path / "told", "-d"))) as bridge:
        bridge.wait_for_log("server 's': `docker run`: `-d` detaches")
        stream = bridge.open_sse("/s")
        stream.read_remaining_messages()
        bridge.wait_for_close(stream)
        assert engine.containers() == []


def test_container_without_rm_is_removed_with_its_session(engine: Engine, tmp_path: Path) -> None:
    """It ends by itself when its stdin is closed."""
    line = ["run", "-i", "image", *backend("echo")]
    settings = {**server(engine, tmp_path / "told"), "args": line, "stop_grace": float(NEVER)}
    with serving(config=config(s=settings)) as bridge:
        stream = bridge.open_sse("/s")
        assert stream.round_trip(request("x")) == request("x")
        stream.close()
        assert "exit status 0" in bridge.wait_for_close(stream)
        assert engine.containers() == []


def test_containers_setting_turns_recognition_off(engine: Engine, tmp_path: Path) -> None:
    with serving(config=config(s=server(engine, tmp_path / "told", containers=False))) as bridge:
        stream = open_ready(bridge)
        stream.close()
        bridge.wait_for_close(stream)
        [line] = engine.commands("run")
        assert line[:4] == ["run", "-i", "--rm", "image"]
        assert len(engine.containers()) == 1
        engine.run("rm", *engine.containers())
