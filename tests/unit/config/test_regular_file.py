"""Files that settings name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpbridge.config.regular_file import read_regular_file


def test_contents_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")
    path.chmod(0o640)
    data, mode = read_regular_file(str(path), 6)
    assert (data, mode & 0o777) == (b"abcdef", 0o640)
    # One byte more, so that the reader knows that there is more.
    assert read_regular_file(str(path), 2)[0] == b"abc"


def test_nothing_is_waited_for(tmp_path: Path) -> None:
    """The bridge reads its settings again while it serves clients."""
    os.mkfifo(tmp_path / "fifo")
    for name, what in (("fifo", "no regular file"), ("", "a directory")):
        with pytest.raises(OSError, match=what):
            read_regular_file(str(tmp_path / name), 1)
    with pytest.raises(OSError, match="no regular file"):
        read_regular_file("/dev/zero", 1)
    with pytest.raises(FileNotFoundError):
        read_regular_file(str(tmp_path / "none"), 1)
    with pytest.raises(ValueError, match="null"):
        read_regular_file("a\0b", 1)
