"""
The state file of a bridge: how a later start finds what it has left.

The watchdog is a single net: killed together with the bridge it cleans up
nothing.  So every bridge writes a small file that says which tags are its
own, and holds an exclusive flock(2) on it as long as it lives.  The kernel
frees the lock whatever the bridge dies of: a file that can be locked is a
dead bridge's.

The lock belongs to the open file description, which a fork shares: the
descriptor closes on exec, so no backend holds the lock.  (A record lock
(fcntl(2)) would be the process's own, but two bridges of one process would
not exclude each other.)  A process that an embedding application forks
without exec keeps the lock; then the file counts as a live bridge's, and
nothing is cleaned up, which is the safe side.

Two lines of JSON say all: the first what the bridge is, the second its
records (see `records`).  Only the second is ever rewritten: where the disk is
full, the tags are still known.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from mcpbridge.errors import BridgeError
from mcpbridge.stdio import process_tags
from mcpbridge.stdio.cleanup_records import Record, read_record
from mcpbridge.stdio.watchdog_program import start_time

#: The names of state files, and of those that are being made.
PREFIX, SUFFIX, UNFINISHED = "bridge-", ".json", ".new"
#: No state file is larger.
STATE_FILE_BYTES = 4 * 1024 * 1024
#: After this time a file is removed that this bridge can do nothing about.
FORGET_SECONDS = 30 * 86400.0
#: After this time a file that is still being made is nobody's.
UNFINISHED_SECONDS = 3600.0

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


class NoStateDirectory(BridgeError):
    """There is no directory for state files; the text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process number means something: a boot of a machine, and a PID namespace."""

    host: str
    boot: str
    pid_namespace: str

    @classmethod
    def here(cls) -> Self:
        """Of this process.  Raises `OSError`."""
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return cls(socket.gethostname(), boot, os.readlink("/proc/self/ns/pid"))


@dataclass(frozen=True, slots=True)
class BridgeState:
    """What the first line says: whose tags these are."""

    base: int
    pid: int
    start_time: int
    place: Place
    began: float

    def is_running(self) -> bool:
        """
        Whether that bridge lives, by pid and start time.

        Asked beside the lock, for file systems whose locks exclude nobody.
        """
        return start_time(self.pid) == self.start_time


class StateFile:
    """A state file that this process has locked: its own, or a dead bridge's."""

    def __init__(self, path: str, descriptor: int, state: BridgeState, at: int) -> None:
        self.path = path
        self.state = state
        self._descriptor = descriptor
        #: Where the second line begins.
        self._at = at

    @classmethod
    def create(cls, folder: str, base: int) -> StateFile:
        """
        The file of this process's bridge, locked before it has its name.

        Raises `OSError`, also where the file system knows no locks.
        """
        pid = os.getpid()
        state = BridgeState(base, pid, start_time(pid) or 0, Place.here(), time.time())
        head = json.dumps({"version": 1, **asdict(state)}).encode() + b"\n"
        path = os.path.join(folder, f"{PREFIX}{base:x}{SUFFIX}")
        unfinished = path + UNFINISHED
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, head)
            os.rename(unfinished, path)
        except BaseException:
            os.close(descriptor)
            _unlink(unfinished)
            raise
        return cls(path, descriptor, state, len(head))

    @classmethod
    def take(cls, path: str) -> StateFile | None:
        """
        The file of a dead bridge; None where it is a live one's, or gone, or
        not ours.  One that cannot be read is removed.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | _FLAGS)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Removed meanwhile by another bridge that has just cleaned up.
            found = os.fstat(descriptor)
            if not (found.st_nlink and _is_safe(found) and stat.S_ISREG(found.st_mode)):
                return None
            head = os.pread(descriptor, STATE_FILE_BYTES, 0).partition(b"\n")[0]
            taken = cls(path, descriptor, _read_state(json.loads(head)), len(head) + 1)
        except OSError:
            return None
        except ValueError:
            _unlink(path)
            return None
        else:
            descriptor = -1
            return taken
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def records(self) -> list[Record]:
        """The second line; none where it cannot be read."""
        try:
            line = os.pread(self._descriptor, STATE_FILE_BYTES, self._at)
            return [read_record(each) for each in json.loads(line)]
        except (OSError, ValueError, TypeError):
            return []

    def save(self, records: Iterable[Record]) -> None:
        """Replace the second line.  Raises `OSError`."""
        line = json.dumps([each.as_json() for each in records], separators=(",", ":")).encode()
        # One write, so that it is all there or nothing; spaces end no JSON early.
        old = os.fstat(self._descriptor).st_size - self._at
        os.pwrite(self._descriptor, line.ljust(old), self._at)

    def age(self) -> float:
        """How many seconds ago the bridge was started, by the wall clock."""
        return time.time() - self.state.began

    def remove(self) -> None:
        """Nothing is left of the bridge: remove the file, then free the lock."""
        _unlink(self.path)
        self.release()

    def release(self) -> None:
        """Free the lock and leave the file to a later start."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def take_dead(folder: str) -> Iterator[StateFile]:
    """
    The files of dead bridges, each locked until it is removed or released.

    Files that were left unfinished long ago are removed by the way.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        if not name.startswith(PREFIX):
            continue
        if name.endswith(SUFFIX + UNFINISHED):
            _remove_unfinished(path)
        elif name.endswith(SUFFIX):
            file = StateFile.take(path)
            if file is None:
                continue
            if file.state.place == Place.here() and file.state.is_running():
                file.release()
            else:
                yield file


def candidates(setting: str | None, environment: Mapping[str, str], uid: int) -> list[str]:
    """
    Where state files may be, the best place first.

    What is set; otherwise systemd's STATE_DIRECTORY (systemd.exec(5)), the
    user's runtime directory, then the state directory (XDG Base Directory
    Specification), and for the superuser `/run` and `/var/lib`.
    """
    if setting is not None:
        return [os.path.abspath(setting)]
    found = [each for each in environment.get("STATE_DIRECTORY", "").split(":")[:1] if each]
    if uid == 0:
        found += ["/run/mcpbridge", "/var/lib/mcpbridge"]
    else:
        runtime = environment.get("XDG_RUNTIME_DIR", "")
        if os.path.isabs(runtime) and os.path.isdir(runtime):
            found.append(os.path.join(runtime, "mcpbridge"))
        state = environment.get("XDG_STATE_HOME", "")
        if not os.path.isabs(state):
            state = os.path.join(environment.get("HOME", ""), ".local", "state")
        if os.path.isabs(state):
            found.append(os.path.join(state, "mcpbridge"))
    return found


def open_state_directory(folders: Iterable[str]) -> str:
    """
    The first of them that can be had, made where it is not there (mode 0700).

    Raises `NoStateDirectory`.
    """
    why = "neither XDG_RUNTIME_DIR nor XDG_STATE_HOME nor HOME is set"
    for folder in folders:
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            found = os.stat(folder)
        except OSError as error:
            why = f"{folder}: {error.strerror}"
            continue
        if not _is_safe(found):
            # Whoever can write there could name programs for us to run.
            why = f"{folder}: it is another user's, or others may write there"
        elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            why = f"{folder}: it cannot be written"
        else:
            return folder
    raise NoStateDirectory(why)


def is_safe_directory(folder: str) -> bool:
    """Whether a directory is there, and nobody else can have put files into it."""
    try:
        return _is_safe(os.stat(folder))
    except OSError:
        return False


def _is_safe(found: os.stat_result) -> bool:
    """Whether nobody else can write it."""
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _read_state(value: Any) -> BridgeState:
    """Raises `ValueError` where it is not the first line of a state file."""
    match value:
        case {
            "base": int(base),
            "pid": int(pid),
            "start_time": int(started),
            "began": float(began),
            "place": {"host": str(host), "boot": str(boot), "pid_namespace": str(namespace)},
        } if base > 0 and base % process_tags.TAGS == 0:
            return BridgeState(base, pid, started, Place(host, boot, namespace), began)
    raise ValueError("not a state file")


def _remove_unfinished(path: str) -> None:
    try:
        if time.time() - os.lstat(path).st_mtime > UNFINISHED_SECONDS:
            os.unlink(path)
    except OSError:
        pass


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
