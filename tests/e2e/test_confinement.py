"""
Backends that are confined: another user, limits, a private directory; and what is
left of them however the bridge ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import NEVER, Bridge, run_to_end, serving, shell, wait_until
from tests.e2e.test_killed_bridge import kill_together
from tests.e2e.test_teardown import READY, SHORT_OPTIONS
from tests.real.processes import alive

pytestmark = pytest.mark.slow

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can run a backend as another user"
)

#: An id that needs no account.
SOMEBODY = 12345
AS_SOMEBODY = ("--user", str(SOMEBODY), "--group", str(SOMEBODY))
READY_LINE = READY.decode()

#: What `scattered` does, in a language that every user can run: a child, and daemons in
#: process sessions of their own with a cleared environment, one of which ignores SIGTERM.
SCATTERED = f"""
exec 3>&1 >/dev/null
sleep 600.$0 &
setsid env -i sleep 600.$0 &
setsid env -i sh -c 'trap "" TERM; exec sleep 600.'$0 &
echo mine > "${{TMPDIR:-/dev/null}}/file"
exec >&3 3>&-
while [ "$(ps -e -o args= | grep -c "^sleep 600.$0$")" -lt 3 ]; do sleep 0.05; done
echo '{READY_LINE}'
exec cat
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory for temporary files that every user can reach; pytest's own is private."""
    # In memory, if possible: disks are slow to make thousands of files anew.
    memory = "/dev/shm"
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@contextlib.contextmanager
def confined(script: str, folder: Path, *options: str, **more: Any) -> Iterator[Bridge]:
    """Run a bridge in front of a shell script, with its private directories in this folder."""
    options = (*SHORT_OPTIONS, "--private-tmp", *options)
    environment = {"TMPDIR": str(folder)}
    with serving(*options, command=shell(script), environment=environment, **more) as bridge:
        yield bridge


def private_directories(folder: Path) -> list[Path]:
    """Return the directories of processes."""
    return list(folder.glob("mcpbridge-tmp-*/*"))


def private_folders(folder: Path) -> list[Path]:
    """Return the directories of bridges."""
    return list(folder.glob("mcpbridge-tmp-*"))


TELL = """
printf '{"jsonrpc":"2.0","method":"m","params":{"ids":"%s %s %s","umask":"%s","nice":"%s",' \
    $(id -u) $(id -g) $(id -G) $(umask) $(nice)
printf '"limits":"%s %s %s %s","home":"%s","user":"%s","xdg":"%s","tmp":"%s %s %s"}}\\n' \
    $(ulimit -n) $(ulimit -f) $(ulimit -t) $(ulimit -c) "$HOME" "$USER" "$XDG_CACHE_HOME" \
    "$TMPDIR" "$TMP" "$TEMP"
exec cat
"""
LIMITS = {"open_files": 64, "file_size": 512 * 100, "cpu_seconds": 50, "core": 0}


@as_root
def test_backend_is_what_its_settings_say(folder: Path) -> None:
    options = (*AS_SOMEBODY, "--umask", "0027", "--nice", "3", "--limits", json.dumps(LIMITS))
    with confined(TELL, folder, *options) as bridge:
        stream = bridge.open_sse()
        told = json.loads(stream.read_message())["params"]
        [directory] = private_directories(folder)
        found = directory.stat()
        niceness = os.getpriority(os.PRIO_PROCESS, bridge.process.pid) + 3
        assert told == {
            "ids": f"{SOMEBODY} {SOMEBODY} {SOMEBODY}",
            "umask": "0027",
            "nice": str(min(19, niceness)),
            "limits": "64 100 50 0",
            "home": "/",
            "user": "",
            "xdg": "",
            "tmp": f"{directory} {directory} {directory}",
        }
        assert (found.st_uid, found.st_gid) == (SOMEBODY, SOMEBODY)
        assert stat.S_IMODE(found.st_mode) == 0o700
        # Others cannot list the directories of all, nor change them.
        assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o711
        bridge.wait_for_log(f"server 'sh' is confined: user {SOMEBODY}, group {SOMEBODY}, umask")
        stream.close()
        bridge.wait_for_close(stream)
        assert private_directories(folder) == []
    assert private_folders(folder) == []


@as_root
@pytest.mark.parametrize("base", [AS_SOMEBODY, ()], ids=["another user", "the same user"])
def test_sessions_leave_no_process_and_no_file(folder: Path, base: tuple[str, ...]) -> None:
    """Several at a time: each has its own directory, and takes it along."""
    with confined(SCATTERED, folder, *base) as bridge:
        streams = [bridge.open_sse() for _ in range(3)]
        assert [stream.read_message() for stream in streams] == [READY] * 3
        directories = private_directories(folder)
        assert [(each / "file").read_text() for each in directories] == ["mine\n"] * 3
        streams[0].close()
        bridge.wait_for_close(streams[0])
        assert len(private_directories(folder)) == 2
    assert private_folders(folder) == []


@as_root
def test_next_start_cleans_up_after_bridge_and_watchdog(folder: Path) -> None:
    """Both are killed at one moment: no process and no directory is left after that."""
    state = folder / "state"
    with confined(SCATTERED, folder, *AS_SOMEBODY, "--state-dir", str(state)) as bridge:
        watchdog = bridge.wait_for_watchdog()
        assert bridge.open_sse().read_message() == READY
        kill_together(bridge, watchdog)
        bridge.process.wait()
        # The backend itself dies with the bridge; its daemons do not.
        wait_until(lambda: len(bridge.marked_processes()) == 3)
        assert len(private_directories(folder)) == 1
        with confined(SCATTERED, folder, *AS_SOMEBODY, "--state-dir", str(state)) as following:
            following.wait_for_log("had left 3 processes and 0 containers, and temporary files")
            assert not bridge.marked_processes()
            assert private_folders(folder) == []
    assert list(state.iterdir()) == []


@as_root
def test_watchdog_cleans_up_after_the_bridge(folder: Path) -> None:
    with confined(SCATTERED, folder, *AS_SOMEBODY) as bridge:
        watchdog = bridge.wait_for_watchdog()
        assert bridge.open_sse().read_message() == READY
        os.kill(bridge.process.pid, signal.SIGKILL)
        wait_until(lambda: not alive(watchdog))
        assert not bridge.marked_processes()
        assert private_folders(folder) == []


#: Leads out of the directory by links, has directories that nobody may enter, is deep, and wide.
HOSTILE = f"""
cd "$TMPDIR"
ln -s "$PRECIOUS" link; ln -s "$PRECIOUS/file" file; ln "$PRECIOUS/file" hard 2>/dev/null
mkdir -p closed/inner readonly
ln -s "$PRECIOUS" closed/link; touch closed/inner/file readonly/file
deep=$(printf 'd/%.0s' $(seq 400))
for i in 1 2 3; do mkdir -p "$deep" && cd "$deep" && ln -s "$PRECIOUS" out; done
cd "$TMPDIR"; seq -f f%g 10000 | xargs touch
mkfifo fifo; touch -- "-r" "a
b"
chmod 500 readonly; chmod 0 closed/inner closed
chmod 0 .
echo '{READY_LINE}'
exec cat
"""


@as_root
@pytest.mark.parametrize("base", [AS_SOMEBODY, ()], ids=["another user", "the same user"])
def test_hostile_directory_is_removed_and_nothing_else(folder: Path, base: tuple[str, ...]) -> None:
    precious = folder / "precious"
    precious.mkdir(mode=0o777)
    (precious / "file").write_text("x")
    options = ("--env", f"PRECIOUS={precious}", "--max-sessions", "1", *base)
    with confined(HOSTILE, folder, *options) as bridge:
        for _ in range(2):
            # The second needs the permit that the first returns when all is gone.
            stream = bridge.open_sse()
            assert stream.read_message() == READY
            stream.close()
            bridge.wait_for_close(stream)
            assert private_directories(folder) == []
    assert private_folders(folder) == []
    assert [each.name for each in precious.iterdir()] == ["file"]
    assert (precious / "file").read_text() == "x"


@as_root
def test_directory_with_a_mount_is_left_with_a_warning(folder: Path) -> None:
    """What is mounted there is not the backend's: it stays, and the session ends all the same."""
    script = f"touch \"$TMPDIR/file\"; echo '{READY_LINE}'; exec cat"
    other = folder / "other"
    other.mkdir()
    (other / "file").write_text("x")
    with confined(script, folder, clean=False) as bridge:
        stream = bridge.open_sse()
        assert stream.read_message() == READY
        [directory] = private_directories(folder)
        (directory / "mounted").mkdir()
        mount = ["mount", "--bind", str(other), str(directory / "mounted")]
        if os.spawnvp(os.P_WAIT, "mount", mount):
            # In a container without privileges nothing can be mounted.
            return
        try:
            stream.close()
            bridge.wait_for_close(stream)
            bridge.wait_for_log("another file system is mounted there")
            assert not (directory / "file").exists()
        finally:
            os.spawnvp(os.P_WAIT, "umount", ["umount", str(directory / "mounted")])
    assert (other / "file").read_text() == "x"
    assert private_folders(folder) == []


def test_wrong_settings_prevent_the_start() -> None:
    """With a line for each, and without a traceback."""
    config = {
        "mcpServers": {
            "a": {"command": "cat", "user": "no-such-user"},
            "b": {"command": "docker", "args": ["run", "x"], "private_tmp": True},
            "c": {"command": "cat", "limits": {"address_space": 1 << 20}},
        }
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        status, output = run_to_end("--config", file.name)
    assert status == 1
    first, second, third = output.splitlines()
    assert first == (
        "mcpbridge: mcpServers.a.user: expected the name of a user of this machine,"
        ' got "no-such-user"'
    )
    assert second.startswith("mcpbridge: mcpServers.b.private_tmp: expected no value, because it")
    assert third.startswith("mcpbridge: mcpServers.c.limits: expected what can be applied here")


def test_command_line_names_the_option() -> None:
    status, output = run_to_end("--user", "no-such-user", "cat")
    line = '--user (user): expected the name of a user of this machine, got "no-such-user"'
    assert (status, output) == (1, f"mcpbridge: {line}\n")


def test_end_by_a_limit_names_it() -> None:
    """It gets SIGXCPU, and the log says which setting that was."""
    script = f"echo '{READY_LINE}'; while :; do :; done"
    limits = ("--limits", '{"cpu_seconds": 1}')
    with serving(*limits, "--stop-grace", NEVER, command=shell(script)) as bridge:
        stream = bridge.open_sse()
        assert stream.read_message() == READY
        line = bridge.wait_for_close(stream)
        assert "signal 24); it may have reached limits.cpu_seconds" in line
