"""
Remove a directory with all that is in it, whatever a hostile program has put there.

No symbolic link is followed, and no other file system or mount is entered.
Everything is opened relative to a directory that is open already, so nothing
that another program renames or replaces meanwhile leads outside.  Only one or
two directories are open at a time, however deep the tree is, and one that
nobody may read or change is made readable first.

Uses the standard library alone, since the watchdog runs this file without the
package.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

#: So many names of a directory are read at a time.
BATCH = 200
#: With so many things that cannot be removed, the rest is left, too.
MAX_STUCK = 100

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: To open a directory that may not be read, which Linux alone can.
_OPEN_PATH = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: A directory, whatever its name: device and inode.
Identity = tuple[int, int]


class GivenUp(Exception):
    """The removal was given up; the text says why."""


def identity(path: str) -> Identity:
    """Return which directory this is.  Raises `OSError`, also for a symbolic link."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return found.st_dev, found.st_ino


def remove_tree(path: str, wanted: Identity, give_up: Callable[[], bool]) -> str:
    """
    Remove the directory at this path if it is the wanted one.

    Returns why something is left; "" if nothing is, or another directory has
    its name now.  `give_up` is called before each step, and ends it with True.
    """
    folder, name = os.path.split(path)
    try:
        parent = os.open(folder or ".", os.O_DIRECTORY | getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{folder}: {error.strerror}"
    try:
        if _identity_in(parent, name) != wanted:
            return ""
        removal = _Removal(parent, name, wanted, give_up)
        removal.run()
        return "" if removal.problem is None else f"{path}: {removal.problem}"
    except FileNotFoundError:
        # Somebody else has removed it.
        return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
    except GivenUp as error:
        return f"{path}: {error}"
    finally:
        os.close(parent)


def _identity_in(parent: int, name: str) -> Identity:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else (0, 0)


@dataclass(slots=True)
class _Level:
    """A directory on the way down: its name, which one it is, and names that were read in it."""

    name: str
    place: Identity
    batch: list[tuple[str, bool]] = field(default_factory=list)


class _Removal:
    """
    The removal of one tree, depth first.

    The way back up is `..`, and goes on only if that is the directory from
    which it came down; otherwise somebody has moved the present one, and the
    removal starts again at the top.
    """

    def __init__(
        self, parent: int, name: str, wanted: Identity, give_up: Callable[[], bool]
    ) -> None:
        self._parent = parent
        self._name = name
        self._wanted = wanted
        self._give_up = give_up
        #: What cannot be removed: a name in a directory.
        self._stuck: set[tuple[Identity, str]] = set()
        self._mount: bytes | None = None
        self.problem: str | None = None

    def run(self) -> None:
        """Remove all.  Raises `OSError` and `GivenUp`."""
        while not self._descend():
            pass
        if not self._stuck:
            os.rmdir(self._name, dir_fd=self._parent)

    def _descend(self) -> bool:
        """Empty the tree; return False if it has to be done again, from the top."""
        here = _open_directory(
            self._parent, self._name, lambda found: _identity_of(found) == self._wanted
        )
        try:
            self._mount = _mount_of(here)
            above = [_Level("", self._wanted)]
            while True:
                child = self._empty(here, above[-1])
                if child is not None:
                    name, below = child
                    os.close(here)
                    here = below
                    above.append(_Level(name, _identity_of(here)))
                    continue
                name = above.pop().name
                if not above:
                    return True
                up = os.open("..", _OPEN, dir_fd=here)
                os.close(here)
                here = up
                if _identity_of(here) != above[-1].place:
                    return False
                self._try(here, above[-1].place, name, os.rmdir)
        finally:
            os.close(here)

    def _empty(self, here: int, level: _Level) -> tuple[str, int] | None:
        """
        Remove what is in a directory up to the first directory that is not empty.

        Returns that directory's name, and it is open; None if nothing is left but
        what is stuck.
        """
        while True:
            while level.batch:
                self._check()
                name, is_directory = level.batch.pop()
                if not is_directory:
                    self._try(here, level.place, name, os.unlink)
                    continue
                below = self._enter(here, level.place, name)
                if below is not None:
                    return name, below
            self._check()
            with os.scandir(here) as entries:
                left = (each for each in entries if (level.place, each.name) not in self._stuck)
                level.batch = [
                    (each.name, each.is_dir(follow_symlinks=False)) for each in islice(left, BATCH)
                ]
            if not level.batch:
                return None

    def _enter(self, here: int, place: Identity, name: str) -> int | None:
        """Open a directory; return None if it is gone, empty and removed, or stuck."""
        try:
            os.rmdir(name, dir_fd=here)
            return None
        except OSError:
            # Most often it is not empty.
            pass
        try:
            return _open_directory(here, name, self._is_on_this_mount)
        except _Foreign:
            self._note(place, name, "another file system is mounted there")
            return None
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(place, name, error.strerror or str(error))
            return None

    def _is_on_this_mount(self, directory: int) -> bool:
        return _identity_of(directory)[0] == self._wanted[0] and (
            _mount_of(directory) == self._mount
        )

    def _try(self, here: int, place: Identity, name: str, step: Callable[..., None]) -> None:
        try:
            step(name, dir_fd=here)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.EISDIR or error.errno == errno.ENOTDIR:
                # It was replaced since it was listed: the next listing shows it.
                return
            self._note(place, name, error.strerror or str(error))

    def _note(self, place: Identity, name: str, why: str) -> None:
        self._stuck.add((place, name))
        self.problem = self.problem or f"{name!r} in it cannot be removed: {why}"
        if len(self._stuck) >= MAX_STUCK:
            raise GivenUp(self.problem)

    def _check(self) -> None:
        if self._give_up():
            raise GivenUp("its removal was given up")


def _identity_of(directory: int) -> Identity:
    found = os.fstat(directory)
    return found.st_dev, found.st_ino


class _Foreign(FileNotFoundError):
    """A directory is not the one, or not where, it should be."""


def _open_directory(parent: int, name: str, is_ours: Callable[[int], bool]) -> int:
    """
    Open a directory, and have its owner be able to read and change it.

    Raises `OSError`, also for a symbolic link, and `_Foreign` for one that is not ours,
    which is left as it is.
    """
    try:
        directory = os.open(name, _OPEN, dir_fd=parent)
    except PermissionError:
        _make_readable(parent, name, is_ours)
        directory = os.open(name, _OPEN, dir_fd=parent)
    try:
        if not is_ours(directory):
            raise _Foreign
        mode = stat.S_IMODE(os.fstat(directory).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(directory, mode | stat.S_IRWXU)
    except PermissionError:
        # It is another user's; the superuser needs no permission.
        pass
    except BaseException:
        os.close(directory)
        raise
    return directory


def _make_readable(parent: int, name: str, is_ours: Callable[[int], bool]) -> None:
    """Change the mode of a directory of ours that cannot be opened.  Raises `OSError`."""
    # By its descriptor: its name may have become that of a link.
    opened = os.open(name, _OPEN_PATH, dir_fd=parent)
    try:
        if not is_ours(opened):
            raise _Foreign
        os.chmod(f"/proc/self/fd/{opened}", stat.S_IRWXU)
    except _Foreign:
        raise
    except FileNotFoundError:
        # The system has no /proc.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from None
    finally:
        os.close(opened)


def _mount_of(directory: int) -> bytes | None:
    """
    Return the id of the mount that a directory is in; None if the system does not tell.

    A bind mount of the same file system has the same device (proc(5), fdinfo).
    """
    try:
        with open(f"/proc/self/fdinfo/{directory}", "rb", buffering=0) as file:
            lines = file.read(4096).splitlines()
    except OSError:
        return None
    return next((line for line in lines if line.startswith(b"mnt_id:")), None)
