"""
The tests of `test_containers` with a real Docker.

They start a dockerd with its own folders, socket and images, and without a
network, so that it does not disturb another one.  That needs root.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from mcpbridge import Bridge as InProcess
from mcpbridge import BridgeSettings, ServerSettings
from mcpbridge.auth.access import Access
from mcpbridge.config.env_from import EnvironmentRule
from mcpbridge.testing import RecordingSink
from tests.e2e.harness import Bridge, SseStream, serving, wait_until
from tests.engine.running import LABEL
from tests.real.parts import command, need, required
from tests.real.processes import alive, eventually

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]

#: How long dockerd may take to start, and to stop.
PATIENCE = 60.0
READY = b'{"jsonrpc":"2.0","method":"ready"}'
SHORT = {"stop_grace": 0.1, "kill_grace": 0.1}
#: Ignores the end of its stdin, and SIGTERM.
STUBBORN = (
    f"""trap '' TERM; echo '{READY.decode()}'; cat >/dev/null; while :; do sleep 1000; done"""
)
#: CAP_SYS_ADMIN (capabilities(7)): without it nothing can be mounted.
SYS_ADMIN = 21


class Docker:
    """A dockerd that runs, with one image: `busybox`."""

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder / 'docker.sock'}"
        self._cli = command("docker")

    def run(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run a command of the CLI and return its output."""
        line = [self._cli, "--host", self.host, *arguments]
        done = subprocess.run(line, input=stdin, capture_output=True, check=True, timeout=PATIENCE)
        return done.stdout.decode()

    def answers(self) -> bool:
        """Return True if the daemon answers."""
        try:
            self.run("version")
        except subprocess.CalledProcessError:
            return False
        return True

    def containers(self) -> list[str]:
        """Return the ids of all containers."""
        return self.run("ps", "--all", "--quiet", "--no-trunc").split()


def may_mount() -> bool:
    """Return True if dockerd can run here."""
    status = Path("/proc/self/status")
    if os.geteuid() != 0 or not status.exists():
        return False
    [line] = [each for each in status.read_text().splitlines() if each.startswith("CapEff:")]
    return bool(int(line.split()[1], 16) >> SYS_ADMIN & 1)


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    if not may_mount():
        reason = "dockerd needs root, with CAP_SYS_ADMIN"
        if required():
            pytest.xfail(reason)
        pytest.skip(reason)
    dockerd = command("dockerd")
    busybox = command("busybox")
    # A dynamically linked busybox would find no loader in this image.
    alone = b"/ld-" not in Path(busybox).read_bytes()
    need(alone, "busybox is not static (Debian: busybox-static)")
    with tempfile.TemporaryDirectory(prefix="mcpd-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        running = Docker(folder)
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen(
                [
                    dockerd,
                    "--bridge=none",
                    "--iptables=false",
                    "--ip6tables=false",
                    "--storage-driver=vfs",
                    f"--data-root={folder / 'data'}",
                    f"--exec-root={folder / 'exec'}",
                    f"--pidfile={folder / 'pid'}",
                    f"--host={running.host}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            up = eventually(lambda: running.answers() or daemon.poll() is not None, PATIENCE)
            message = (folder / "log").read_text(errors="replace")[-2000:]
            assert up, message
            assert daemon.poll() is None, message
            running.run("import", "-", "busybox", stdin=image(busybox))
            yield running
            left = running.containers()
            assert left == []
        finally:
            stop(daemon, folder)


def image(busybox: str) -> bytes:
    """Build a tar with a static busybox, for `docker import`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
        for each in ("sh", "cat", "sleep"):
            link = tarfile.TarInfo(f"bin/{each}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return packed.getvalue()


def stop(daemon: subprocess.Popen[bytes], folder: Path) -> None:
    """Stop dockerd, and its containerd with it."""
    daemon.terminate()
    try:
        daemon.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError, ValueError):
            containerd = (folder / "exec" / "containerd" / "containerd.pid").read_text()
            os.kill(int(containerd), signal.SIGKILL)
        daemon.kill()
        daemon.wait()


@contextlib.contextmanager
def bridge_before(docker: Docker, *options: str, **settings: object) -> Iterator[Bridge]:
    """Run a bridge whose server, in a container, ignores the end of its stdin and SIGTERM."""
    line = ["run", "-i", "--rm", "--network=none", *options, "busybox", "sh", "-c", STUBBORN]
    server = {
        "command": "docker",
        "args": ["--host", docker.host, *line],
        "pass_env": ["PATH"],
        **SHORT,
        **settings,
    }
    with serving(config={"mcpServers": {"s": server}}) as bridge:
        yield bridge


def open_ready(bridge: Bridge) -> SseStream:
    stream = bridge.open_sse("/s")
    assert stream.read_message() == READY
    return stream


@pytest.mark.parametrize("init", [False, True])
def test_container_is_gone_when_its_session_is_closed(docker: Docker, init: bool) -> None:
    with bridge_before(docker, container_init=init) as bridge:
        stream, other = open_ready(bridge), open_ready(bridge)
        assert len(docker.containers()) == 2
        stream.close()
        bridge.wait_for_close(stream)
        assert len(docker.containers()) == 1
        assert other.is_open()
        bridge.close_clients()
        assert docker.containers() == []


#: Says what its variables are, and waits for the end of its stdin.
TELLING = """echo '{"jsonrpc":"2.0","method":"'"$TOKEN-$REGION"'"}'; cat >/dev/null"""


@pytest.mark.parametrize("containers", [True, False])
@pytest_twisted.ensureDeferred
async def test_container_has_the_variables_of_its_client(
    docker: Docker, running_reactor: Any, containers: bool
) -> None:
    """By `--env NAME`: an optional one that the client has not given is that of `env`, if named."""
    line = ["run", "-i", "--rm", "--network=none", "--env=REGION", "busybox", "sh", "-c", TELLING]
    server = ServerSettings(
        command="docker",
        args=("--host", docker.host, *line),
        env={"REGION": "default"},
        env_from={
            "TOKEN": EnvironmentRule(header="X-Token"),
            "REGION": EnvironmentRule(header="X-Region"),
        },
        containers=containers,
        stop_grace=PATIENCE,
    )
    settings = BridgeSettings(servers=(server,), listen=(), child_subreaper=False)
    bridge = InProcess(settings, running_reactor)
    bridge.startService()
    try:
        for environment, told in (
            ({"TOKEN": "a b'c"}, b"a b'c-default"),
            ({"TOKEN": "d", "REGION": "eu"}, b"d-eu"),
            ({}, b"-default"),
        ):
            sink = RecordingSink()
            session = await bridge.servers[0].open_session(
                lambda _, sink=sink: sink,  # type: ignore[misc]
                access=Access(environment=environment),
            )
            while not sink.lines:
                await deferLater(running_reactor, 0.05)
            assert sink.lines == [b'{"jsonrpc":"2.0","method":"%b"}' % told]
            session.life.end("over")
            await session.gone()
    finally:
        await bridge.stopService()


@pytest.mark.parametrize("init", [False, True])
def test_stop_removes_the_containers(docker: Docker, init: bool) -> None:
    with bridge_before(docker, container_init=init) as bridge:
        open_ready(bridge)
        bridge.stop()
        assert docker.containers() == []
        assert "could not be ended" not in bridge.log


@pytest.mark.parametrize("init", [False, True])
def test_watchdog_removes_the_containers_of_a_killed_bridge(docker: Docker, init: bool) -> None:
    """It removes no other container."""
    own = ["run", "-d", "--network=none", f"--label={LABEL}=other", "busybox", "sleep", "1000"]
    with bridge_before(docker, container_init=init) as bridge:
        open_ready(bridge)
        other = docker.run(*own).strip()
        bridge.wait_for_watchdog()
        bridge.kill()
        wait_until(lambda: docker.containers() == [other])
        wait_until(lambda: not any(alive(each) for each in bridge.watchdogs))
        assert docker.run("inspect", "--format={{.State.Running}}", other) == "true\n"
    docker.run("rm", "--force", other)


def test_users_name_and_cidfile_are_kept(docker: Docker, tmp_path: Path) -> None:
    """A second session fails by itself and does not affect the first."""
    with bridge_before(docker, "--name=mine", f"--cidfile={tmp_path / 'cid'}") as bridge:
        stream = open_ready(bridge)
        second = bridge.open_sse("/s")
        second.read_remaining_messages()
        assert "exit status 125" in bridge.wait_for_close(second)
        assert docker.containers() == [(tmp_path / "cid").read_text()]
        assert stream.is_open()


def test_container_that_ends_with_its_stdin_is_removed(docker: Docker) -> None:
    """`--rm` and the bridge do not get into each other's way."""
    line = ["--host", docker.host, "run", "-i", "--rm", "--network=none", "busybox"]
    with bridge_before(docker, args=[*line, "sh", "-c", "cat"], stop_grace=1000) as bridge:
        stream = bridge.open_sse("/s")
        stream.close()
        assert "exit status 0" in bridge.wait_for_close(stream)
        assert docker.containers() == []
