"""
Directories for the temporary files of backends, one for each process (`private_tmp`).

`PrivateFolder` is the bridge's own directory, in which they all are:
backends of another user cannot rename what is in it, and one record leads
the watchdog and a later start to all of them.  `PrivateDirectories` makes and
removes those of one server.  A directory is removed when the process tree is gone,
in a thread if anything is in it, since a backend may have left a million files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.tuning import PRIVATE_TMP_REMOVALS, PRIVATE_TMP_SECONDS, PRIVATE_TMP_WAITING
from mcpbridge.guard import guarded
from mcpbridge.stdio.cleanup_records import Cleanup, DirectoryRecord
from mcpbridge.stdio.remove_tree import Identity, identity, remove_tree
from mcpbridge.stdio.watchdog_program import DIRECTORY_PREFIX

#: The variables by which programs find a directory for temporary files.
VARIABLES = ("TMPDIR", "TMP", "TEMP")

#: The key of the folder's record, which no session has.
_OWNER = "private_tmp"

#: Calls a function elsewhere, and returns a `Deferred` of its result.
InThread = Callable[[Callable[[], str]], Deferred[str]]


def in_daemon_thread(reactor: Any, work: Callable[[], str]) -> Deferred[str]:
    """
    Call a function in a thread of its own; return a `Deferred` of its result.

    Unlike those of a thread pool, such a thread does not keep the process from ending.
    """
    done: Deferred[str] = Deferred()

    def run() -> None:
        try:
            result = work()
        except BaseException:
            reactor.callFromThread(done.errback, Failure())
        else:
            reactor.callFromThread(done.callback, result)

    Thread(target=run, name="mcpbridge private_tmp", daemon=True).start()
    return done


class PrivateFolder:
    """
    The directory of one bridge below `parent`, made when it is first needed.

    Others may pass through it, but not list or change it.  While it exists, `cleanup` has
    a record of it.  With `transient` it goes with the last directory, since nobody
    calls `stop`.
    """

    log = Logger()

    def __init__(self, parent: str, cleanup: Cleanup, *, transient: bool = False) -> None:
        self._transient = transient
        self._parent = parent
        self._cleanup = cleanup
        self._path = ""
        self._descriptor = -1
        self._identity: Identity | None = None
        #: True once the bridge stops: what is left is for the watchdog.
        self.stopped = False

    def make_directory(self, uid: int | None, gid: int | None) -> str:
        """Make a directory in it that only this user can use; return its path.  Raises `OSError`"""
        if self._path and not self._is_there():
            # Somebody has cleaned up in the system's directory for temporary files.
            self._forget()
        folder = self._open()
        name = secrets.token_hex(8)
        # By the descriptor: what has the folder's name by then may be anybody's.
        here = self._descriptor
        os.mkdir(name, 0o700, dir_fd=here)
        try:
            if uid is not None or gid is not None:
                owner = -1 if uid is None else uid, -1 if gid is None else gid
                os.chown(name, *owner, dir_fd=here, follow_symlinks=False)
        except OSError:
            os.rmdir(name, dir_fd=here)
            raise
        return os.path.join(folder, name)

    def interrupt(self) -> None:
        """Interrupt removals, so that no session waits for them: the watchdog does the rest."""
        self.stopped = True

    def report_rest(self) -> None:
        """Say where files are left when the watchdog has ended, too."""
        if self._path and self._is_there():
            self.log.warn(
                "temporary files of backends are left in {path}, which takes too long or cannot"
                " be removed; the next start of the bridge tries again",
                path=self._path,
            )

    def stop(self) -> None:
        """Remove it if it is empty, and interrupt removals."""
        self.interrupt()
        self._remove_if_empty()

    def directory_removed(self) -> None:
        """Note that one of its directories is gone."""
        if self._transient:
            self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        if self._path:
            with contextlib.suppress(OSError):
                os.rmdir(self._path)
                self._forget()

    def _is_there(self) -> bool:
        """Tell whether the folder has its name still, and not another one has it."""
        try:
            return identity(self._path) == self._identity
        except OSError:
            return False

    def _open(self) -> str:
        self.stopped = False
        if not self._path:
            path = os.path.join(self._parent, f"{DIRECTORY_PREFIX}{secrets.token_hex(8)}")
            os.mkdir(path, 0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, 0o711)
                # systemd-tmpfiles leaves alone what is locked, however old it is.
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                which = identity(path)
            except OSError:
                os.close(descriptor)
                os.rmdir(path)
                raise
            self._path, self._descriptor, self._identity = path, descriptor, which
            self._cleanup.add(_OWNER, DirectoryRecord(path, *which))
        return self._path

    def _forget(self) -> None:
        os.close(self._descriptor)
        self._path, self._descriptor = "", -1
        self._cleanup.drop(_OWNER)


class PrivateDirectories:
    """The directories of one server, for processes of this user and group."""

    log = Logger()

    def __init__(
        self,
        folder: PrivateFolder,
        in_thread: InThread,
        clock: IReactorTime,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        self._folder = folder
        self._in_thread = in_thread
        self._clock = clock
        self._uid = uid
        self._gid = gid
        self._slots = DeferredSemaphore(PRIVATE_TMP_REMOVALS)

    def new(self, label: str) -> PrivateDirectory:
        """Make the directory of a session, whose `label` is for the log.  Raises `OSError`."""
        path = self._folder.make_directory(self._uid, self._gid)
        return PrivateDirectory(path, identity(path), label, self)

    @property
    def stopped(self) -> bool:
        """True once the bridge stops."""
        return self._folder.stopped

    def removed(self) -> None:
        """Note that a directory is gone."""
        self._folder.directory_removed()

    def empty(self, path: str, which: Identity) -> Deferred[str]:
        """
        Remove a directory in a thread.

        The `Deferred` fires with why something is left, "" if nothing is.  It does so
        within `PRIVATE_TMP_SECONDS`, also if the thread hangs in a dead file system or has
        not begun: the removal then goes on, but no session waits for it.
        """
        if len(self._slots.waiting) >= PRIVATE_TMP_WAITING:
            return succeed(f"{path}: too many others are being removed")
        done: Deferred[str] = Deferred()
        late = f"{path}: its removal takes more than {PRIVATE_TMP_SECONDS:g} s and goes on"
        timer = self._clock.callLater(PRIVATE_TMP_SECONDS, done.callback, late)

        def ended(result: str | Failure) -> None:
            if result == "":
                guarded(self.log, "noting that a directory is gone", self.removed)
            if timer.active():
                timer.cancel()
                done.callback(result)

        self._slots.run(self._in_thread, partial(self._remove, path, which)).addBoth(ended)
        return done

    def _remove(self, path: str, which: Identity) -> str:
        until = time.monotonic() + PRIVATE_TMP_SECONDS
        return remove_tree(path, which, lambda: self._folder.stopped or time.monotonic() > until)


class PrivateDirectory:
    """The directory of one session."""

    log = Logger()

    __slots__ = ("_directories", "_label", "_path", "_which")

    def __init__(
        self, path: str, which: Identity, label: str, directories: PrivateDirectories
    ) -> None:
        self._path = path
        self._which = which
        self._label = label
        self._directories = directories

    @property
    def variables(self) -> dict[str, str]:
        """The variables that lead the backend to it."""
        return dict.fromkeys(VARIABLES, self._path)

    def remove(self, _: bool = False) -> Deferred[None]:
        """
        Remove it; the `Deferred` fires when it is gone or was given up with a warning.

        It never fails.
        """
        try:
            # Most are empty, and this takes less time than a thread.
            os.rmdir(self._path)
        except FileNotFoundError:
            pass
        except OSError:
            emptied = self._directories.empty(self._path, self._which)
            return emptied.addCallbacks(self._report, self._unexpected)
        self._directories.removed()
        return succeed(None)

    def discard(self) -> None:
        """Remove it at once, for want of a process: it is empty."""
        guarded(self.log, "removing a directory for temporary files", os.rmdir, self._path)
        self._directories.removed()

    def _report(self, problem: str) -> None:
        # At a stop the watchdog follows at once, and reports what it cannot remove.
        if problem and not self._directories.stopped:
            self.log.warn(
                "temporary files of {session} are left: {problem}; they are tried again when the"
                " bridge stops",
                session=self._label,
                problem=problem,
            )

    def _unexpected(self, failure: Failure) -> None:
        self.log.failure(
            "removing the temporary files of {session} failed; they are tried again when the"
            " bridge stops",
            failure,
            session=self._label,
        )
