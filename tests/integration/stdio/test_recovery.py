"""Clean up after a bridge that was killed, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from mcpbridge.stdio.cleanup_records import Record
from mcpbridge.stdio.process_tags import choose_base
from mcpbridge.stdio.recovery import Recovery
from mcpbridge.stdio.state_file import (
    StateFile,
    open_state_directory,
    take_dead,
)
from tests.integration.stdio.test_watchdog_program import Store, ended, sleeping

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tags are for Linux")

BASE = choose_base(os.urandom(8), -1)
MINE = choose_base(os.urandom(8), -1)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return open_state_directory([str(tmp_path / "deep" / "state")])


def dead_bridge(folder: str, base: int = BASE, *records: Record, **changes: Any) -> str:
    """Write the state file of a bridge that has died; return its path."""
    file = StateFile.create(folder, base)
    file.save(records)
    file.release()
    path = Path(file.path)
    head, _, rest = path.read_text().partition("\n")
    told = json.loads(head)
    told["pid"], told["start_time"] = changes.pop("pid", 2**22 + 1), 1
    told["place"] |= {key: changes.pop(key) for key in list(changes) if key in told["place"]}
    path.write_text(json.dumps({**told, **changes}) + "\n" + rest)
    return file.path


def bases(folder: str) -> list[int]:
    """Return the bases of all dead bridges with a state file, and keep the files."""
    found = []
    for file in take_dead(folder):
        found.append(file.state.base)
        file.release()
    return found


def test_lock_is_released_with_the_process(folder: str) -> None:
    """Also if it is killed and its children live on: they do not inherit the lock."""
    program = (
        "import subprocess, sys\n"
        "from mcpbridge.stdio.state_file import StateFile\n"
        "file = StateFile.create(sys.argv[1], int(sys.argv[2]))\n"
        "child = subprocess.Popen(['sleep', '600'], close_fds=False, stdin=-3, stdout=-3)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, folder, str(BASE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert bases(folder) == []
        process.kill()
        process.communicate()
        assert bases(folder) == [BASE]
    finally:
        os.kill(child, signal.SIGKILL)


@pytest_twisted.ensureDeferred
async def test_processes_and_containers_of_a_dead_bridge_are_removed(
    folder: str, tmp_path: Path, running_reactor: Any, log_lines: list[str]
) -> None:
    store = Store(tmp_path)
    store.run("c1")
    finished: Deferred[None] = Deferred()

    class Watched(Recovery):
        def _cleaned(self, report: Any, file: StateFile) -> None:
            super()._cleaned(report, file)
            finished.callback(None)

    with sleeping(BASE + 1) as one, sleeping(BASE + 2) as two, sleeping(MINE + 1) as other:
        two.send_signal(signal.SIGSTOP)
        dead_bridge(folder, BASE, store.record)
        Watched(running_reactor, MINE).start([folder])
        await finished
        assert ended(one)
        assert ended(two)
        assert other.poll() is None
    assert store.left() == []
    assert os.listdir(folder) == []
    assert "had left 2 processes and 1 containers" in log_lines[-1]
