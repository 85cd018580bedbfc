"""
Records of what must be cleaned up after a killed bridge, beside tagged processes.

Tags lead to most processes (see `procfs`).  A record names what they do not
lead to: a process without a tag, the containers of an engine, the directory for
the temporary files of backends.  Records are
sent to the watchdog and written to the state file as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mcpbridge.config.tuning import MAX_RECORDS


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """
    A process of a session, by its pid and its start time in clock ticks since boot.

    The start time is field 22 of `/proc/PID/stat` (proc(5)), 0 if unknown; both
    together identify one process until the next boot.
    """

    pid: int
    start_time: int

    def as_json(self) -> dict[str, Any]:
        """Return the record as the watchdog reads it."""
        return {"process": [self.pid, self.start_time]}


@dataclass(frozen=True, slots=True)
class ContainersRecord:
    """
    All containers that `ENGINE ps --filter FILTER` lists.

    `engine` is the absolute path of the program and its global options, such
    as `("/usr/bin/docker", "--context", "x")`.  `environment` holds what the
    engine needs (HOME, DOCKER_HOST, XDG_RUNTIME_DIR, ...), and no secret: it
    is written to the state file.
    """

    engine: tuple[str, ...]
    filter: str
    environment: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the record as the watchdog reads it."""
        named = {"engine": list(self.engine), "filter": self.filter}
        return {"containers": {**named, "environment": dict(self.environment)}}


@dataclass(frozen=True, slots=True)
class DirectoryRecord:
    """
    A directory that the bridge has made, with all that is in it.

    `device` and `inode` (stat(2)) tell whether the directory at this absolute `path` is
    that one still.
    """

    path: str
    device: int
    inode: int

    def as_json(self) -> dict[str, Any]:
        """Return the record as the watchdog reads it."""
        return {"directory": [self.path, self.device, self.inode]}


Record = ProcessRecord | ContainersRecord | DirectoryRecord


class Cleanup(Protocol):
    """
    Cleans up what its records name if the bridge is killed.

    The watchdog is one; so is a plain `CleanupRecords`, which only keeps them.
    """

    def add(self, owner: int | str, record: Record) -> bool:
        """Add a record of an owner: a session's tag, or any other key."""

    def drop(self, owner: int | str, record: Record | None = None) -> object:
        """Drop a record of an owner, or all that it has."""


def read_record(value: Any) -> Record:
    """Return the record that a JSON value describes.  Raises `ValueError` if it is none."""
    match value:
        case {"process": [int(pid), int(started)]}:
            return ProcessRecord(pid, started)
        case {"directory": [str(path), int(device), int(inode)]}:
            return DirectoryRecord(path, device, inode)
        case {"containers": {"engine": [*engine], "filter": str(wanted), "environment": given}}:
            if (
                engine
                and isinstance(given, Mapping)
                and all(isinstance(text, str) for text in (*engine, *given, *given.values()))
            ):
                return ContainersRecord(tuple(engine), wanted, tuple(sorted(given.items())))
    raise ValueError("not a record")


class CleanupRecords:
    """
    The records of one bridge, by owner: a session's tag, or any other key.

    Whoever adds them checks `is_full` first, which is True from `MAX_RECORDS`
    on.  Several owners may have the same record, such as the containers of
    one engine; it goes when the last of them drops it.
    """

    def __init__(self) -> None:
        self._owned: dict[int | str, set[Record]] = {}
        self._count: Counter[Record] = Counter()
        self._size = 0

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records, each once."""
        return iter(self._count)

    def is_full(self) -> bool:
        """Return True if there are `MAX_RECORDS` records."""
        return self._size >= MAX_RECORDS

    def add(self, owner: int | str, record: Record) -> bool:
        """Add a record of an owner; return True if no owner had it before."""
        owned = self._owned.setdefault(owner, set())
        if record in owned:
            return False
        owned.add(record)
        self._size += 1
        self._count[record] += 1
        return self._count[record] == 1

    def drop(self, owner: int | str, record: Record | None = None) -> list[Record]:
        """Drop one record of an owner, or all; return those that no owner has now."""
        owned = self._owned.get(owner)
        if owned is None:
            return []
        dropped = owned.copy() if record is None else owned & {record}
        owned -= dropped
        if not owned:
            del self._owned[owner]
        self._size -= len(dropped)
        self._count -= Counter(dropped)
        return [each for each in dropped if each not in self._count]
