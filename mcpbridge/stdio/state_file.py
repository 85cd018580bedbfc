"""
The state file of a bridge, by which a later start cleans up after it.

A watchdog that is killed together with its bridge cleans up nothing.  So every
bridge writes a small file with the base of its tags, and holds an exclusive
flock(2) on it as long as it lives.  The kernel releases the lock whatever the
bridge dies of, so a file that can be locked belongs to a dead bridge.

The lock belongs to the open file description, which a fork shares: the
descriptor closes on exec, so no backend holds the lock.  (A record lock,
fcntl(2), would belong to the process, but then two bridges of one process
would not exclude each other.)  If an embedding application forks without exec,
the child keeps the lock; the file then counts as a live bridge's, and nothing
is cleaned up, which is safe.

The file has two lines of JSON: the first identifies the bridge, the second has
its records (see `cleanup_records`).  Only the second is ever rewritten, so
that the tags are known even if the disk is full.
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

from twisted.logger import Logger

from mcpbridge.errors import BridgeError
from mcpbridge.stdio import process_tags
from mcpbridge.stdio.cleanup_records import Record, read_record
from mcpbridge.stdio.watchdog_program import start_time

#: The names of state files: prefix, suffix, and the further suffix of an unfinished one.
PREFIX, SUFFIX, UNFINISHED = "bridge-", ".json", ".new"
#: At most so much of each line of a state file is read.
STATE_FILE_BYTES = 4 * 1024 * 1024
#: A file of a bridge elsewhere, after which this one cannot clean up, is removed after so long.
FORGET_SECONDS = 30 * 86400.0
#: A file that is unfinished after so long is removed.
UNFINISHED_SECONDS = 3600.0

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


class NoStateDirectory(BridgeError):
    """No directory can be used for state files; the text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pid has its meaning: a machine, one boot of it, and a PID namespace."""

    host: str
    boot: str
    pid_namespace: str

    @classmethod
    def here(cls) -> Self:
        """Return the place of this process.  Raises `OSError`."""
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return cls(socket.gethostname(), boot, os.readlink("/proc/self/ns/pid"))


@dataclass(frozen=True, slots=True)
class BridgeState:
    """The first line: which bridge this is, and the base of its tags."""

    base: int
    pid: int
    start_time: int
    place: Place
    began: float

    def is_running(self) -> bool:
        """
        Return True if that bridge is alive, by its pid and start time.

        It is checked in addition to the lock, since the locks of some file
        systems exclude nobody.
        """
        return start_time(self.pid) == self.start_time


class StateFile:
    """A state file that this process has locked: its own bridge's, or a dead one's."""

    log = Logger()

    def __init__(self, path: str, descriptor: int, state: BridgeState, at: int) -> None:
        self.path = path
        self.state = state
        self._descriptor = descriptor
        #: Where the second line begins.
        self._at = at

    @classmethod
    def create(cls, folder: str, base: int) -> StateFile:
        """
        Make the file of this process's bridge, and lock it before it gets its name.

        Raises `OSError`, also if the file system has no locks.
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
        Lock the file of a dead bridge.

        Returns None if the bridge is alive, or the file is gone or not ours.
        Removes a file that cannot be read.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | _FLAGS)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another bridge may have cleaned up and removed it meanwhile.
            found = os.fstat(descriptor)
            if not (found.st_nlink and _is_safe(found) and stat.S_ISREG(found.st_mode)):
                return None
            head = os.pread(descriptor, STATE_FILE_BYTES, 0).partition(b"\n")[0]
            taken = cls(path, descriptor, _read_state(json.loads(head)), len(head) + 1)
        except OSError:
            return None
        except ValueError:
            cls.log.warn(
                "removing {path}: it is no state file that this version can read, so nothing is"
                " cleaned up after the bridge that wrote it",
                path=path,
            )
            _unlink(path)
            return None
        else:
            descriptor = -1
            return taken
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def records(self) -> list[Record]:
        """Return the records; none if the second line cannot be read, which is logged."""
        try:
            line = os.pread(self._descriptor, STATE_FILE_BYTES, self._at)
            return [read_record(each) for each in json.loads(line or b"[]")]
        except (OSError, ValueError, TypeError):
            self.log.warn(
                "the records in {path} cannot be read: the bridge that wrote them may have left"
                " containers, and processes without a tag",
                path=self.path,
            )
            return []

    def save(self, records: Iterable[Record]) -> None:
        """Replace the second line.  Raises `OSError`."""
        line = json.dumps([each.as_json() for each in records], separators=(",", ":")).encode()
        # One write, so that all of it is there or nothing.  A shorter line is filled up
        # with spaces, which JSON allows at its end.
        old = os.fstat(self._descriptor).st_size - self._at
        os.pwrite(self._descriptor, line.ljust(old), self._at)

    def age(self) -> float:
        """Return how many seconds ago the bridge was started, by the wall clock."""
        return time.time() - self.state.began

    def remove(self) -> None:
        """Remove the file, then release the lock: nothing is left of the bridge."""
        _unlink(self.path)
        self.release()

    def release(self) -> None:
        """Release the lock, and leave the file to a later start."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def take_dead(folder: str) -> Iterator[StateFile]:
    """
    Iterate over the files of dead bridges, each locked until it is removed or released.

    Removes files that were left unfinished.
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
    Return the directories in which state files may be, the best one first.

    The configured one; otherwise systemd's STATE_DIRECTORY (systemd.exec(5)), the
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
    Return the first usable one of these directories; make it if it is missing (mode 0700).

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
        unusable = _why_unusable(folder, found)
        if unusable is None:
            return folder
        why = f"{folder}: {unusable}"
    raise NoStateDirectory(why)


def why_no_state_directory(folder: str) -> str | None:
    """
    Return why a directory could not be used, or made, for state files; None if it could.

    Makes nothing.
    """
    path = folder = os.path.abspath(folder)
    while True:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            if os.path.lexists(path):
                return f"{path} is a symbolic link to nothing"
            path = os.path.dirname(path)
        except OSError as error:
            return f"{path}: {error.strerror}"
        else:
            break
    if path == folder:
        return _why_unusable(folder, found)
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is no directory"
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path} is not writable"


def _why_unusable(folder: str, found: os.stat_result) -> str | None:
    if not stat.S_ISDIR(found.st_mode):
        return "it is no directory"
    if not _is_safe(found):
        # Whoever can write there could have the bridge run any program.
        return "it belongs to another user, or others may write to it"
    return None if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else "it is not writable"


def is_safe_directory(folder: str) -> bool:
    """Return True if a directory exists and nobody else can put files into it."""
    try:
        return _is_safe(os.stat(folder))
    except OSError:
        return False


def _is_safe(found: os.stat_result) -> bool:
    """Return True if only this user can write to it."""
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _read_state(value: Any) -> BridgeState:
    """Read the first line of a state file.  Raises `ValueError` if it is none."""
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
