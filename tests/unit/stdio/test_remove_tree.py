"""Remove directories in which a hostile program may have put anything."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.stdio import remove_tree as module
from mcpbridge.stdio.remove_tree import BATCH, MAX_STUCK, identity, remove_tree


def never() -> bool:
    return False


def remove(path: Path, give_up: Callable[[], bool] = never) -> str:
    return remove_tree(str(path), identity(str(path)), give_up)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


def test_everything_in_it_is_removed(tree: Path) -> None:
    """`BATCH` names are read at a time: here there are more, and more of directories."""
    for number in range(BATCH + 1):
        (tree / str(number)).touch()
        (tree / f"d{number}").mkdir()
        (tree / f"d{number}" / "x").touch()
    os.mkfifo(tree / "fifo")
    (tree / "-r\n\udcff").touch()
    assert remove(tree) == ""
    assert not tree.exists()


def test_links_are_removed_and_not_followed(tree: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (tree / "deep").mkdir()
    for place in (tree, tree / "deep"):
        (place / "directory").symlink_to(precious)
        (place / "file").symlink_to(precious / "file")
        (place / "hard").hardlink_to(precious / "file")
        (place / "dangling").symlink_to("/nonexistent")
    assert remove(tree) == ""
    assert [each.name for each in precious.iterdir()] == ["file"]
    assert (precious / "file").read_text() == "x"


def test_deep_tree_takes_few_descriptors(tree: Path) -> None:
    """Its path is longer than the system allows."""
    here = os.open(tree, os.O_RDONLY)
    name = "d" * 200
    for _ in range(100):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    most = 0

    def count() -> bool:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))
        return False

    assert remove(tree, count) == ""
    assert most <= before + 3
    assert len(os.listdir("/proc/self/fd")) == before
    assert not tree.exists()


def test_another_directory_of_that_name_stays(tree: Path, tmp_path: Path) -> None:
    wanted = identity(str(tree))
    tree.rename(tmp_path / "moved")
    assert remove_tree(str(tree), wanted, never) == ""
    tree.mkdir()
    (tree / "file").touch()
    assert remove_tree(str(tree), wanted, never) == ""
    assert (tree / "file").exists()
    shutil.rmtree(tree)
    tree.symlink_to(tmp_path / "moved")
    (tmp_path / "moved" / "file").touch()
    assert remove_tree(str(tree), wanted, never) == ""
    assert (tmp_path / "moved" / "file").exists()
    with pytest.raises(NotADirectoryError):
        identity(str(tree))


def test_missing_directory_is_gone(tmp_path: Path) -> None:
    assert remove_tree(str(tmp_path / "a"), (1, 2), never) == ""
    assert remove_tree(str(tmp_path / "a" / "b"), (1, 2), never) == ""
    (tmp_path / "a").touch()
    assert remove_tree(str(tmp_path / "a" / "b"), (1, 2), never).endswith("Not a directory")


def test_removal_can_be_given_up(tree: Path) -> None:
    for number in range(10):
        (tree / str(number)).touch()
    calls = iter([False] * 5)
    assert remove(tree, lambda: next(calls, True)) == f"{tree}: its removal was given up"
    assert 0 < len(list(tree.iterdir())) < 10


def test_directory_that_is_moved_meanwhile(tree: Path, tmp_path: Path) -> None:
    """The way back up leads elsewhere: nothing there is removed, and the rest of the tree is."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    (tree / "z").touch()

    def move() -> bool:
        if not (tree / "a" / "b" / "file").exists() and (tree / "a" / "b").exists():
            (tree / "a" / "b").rename(elsewhere / "b")
        return False

    assert remove(tree, move) == ""
    assert not tree.exists()
    assert {each.name for each in elsewhere.iterdir()} == {"precious", "b"}


def test_directory_that_becomes_a_link_meanwhile(tree: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (tree / "a").mkdir()
    (tree / "a" / "file").touch()
    done: list[Any] = []

    def replace() -> bool:
        if not done and (tree / "a").is_dir():
            done.append(shutil.move(tree / "a", tmp_path / "moved"))
            (tree / "a").symlink_to(precious)
        return False

    assert remove(tree, replace) == ""
    assert (precious / "file").exists()
    assert not tree.exists()


def fail_for(monkeypatch: pytest.MonkeyPatch, step: str, prefix: str) -> None:
    """Have a call of `os` fail for names that begin so, as for a file that is immutable."""
    real = getattr(os, step)

    def call(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith(prefix):
            raise PermissionError(1, "Operation not permitted", name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, step, call)


def test_what_cannot_be_removed_does_not_keep_the_rest(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "stuck").touch()
    for number in range(BATCH):
        (tree / "a" / str(number)).touch()
    with monkeypatch.context() as patch:
        fail_for(patch, "unlink", "stuck")
        problem = remove(tree)
    assert problem == f"{tree}: 'stuck' in it cannot be removed: Operation not permitted"
    assert [each.name for each in (tree / "a").iterdir()] == ["b"]
    assert remove(tree) == ""


def test_too_much_that_cannot_be_removed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`MAX_STUCK`: the rest is left, too."""
    for number in range(2 * MAX_STUCK):
        (tree / f"stuck{number}").touch()
    tried = []

    def refuse(name: str, **_: object) -> None:
        tried.append(name)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    assert "cannot be removed" in remove(tree)
    assert len(tried) == MAX_STUCK


def test_mount_is_not_entered(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "mounted").mkdir()
    (tree / "mounted" / "file").touch()
    (tree / "mounted").chmod(0o500)
    (tree / "own").touch()
    inode = (tree / "mounted").stat().st_ino

    def mount_of(directory: int) -> bytes:
        return b"mnt_id:\t2" if os.fstat(directory).st_ino == inode else b"mnt_id:\t1"

    with monkeypatch.context() as patch:
        patch.setattr(module, "_mount_of", mount_of)
        assert remove(tree).endswith("another file system is mounted there")
    assert [each.name for each in tree.iterdir()] == ["mounted"]
    assert (tree / "mounted" / "file").exists()
    assert stat.S_IMODE((tree / "mounted").stat().st_mode) == 0o500, "nor changed"
    (tree / "mounted").chmod(0o700)
    assert remove(tree) == ""


def test_system_without_proc_has_no_mounts(tree: Path) -> None:
    here = os.open(tree, os.O_RDONLY)
    try:
        assert module._mount_of(here)
    finally:
        os.close(here)
    assert module._mount_of(1 << 20) is None
