"""
What is to be cleaned up after a bridge that was killed, beside its tags.

Tags find most processes (see `procfs`).  A record names what they do not
find: a process that may have lost its tag, the containers of an engine.
Records travel to the watchdog and into the state file as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mcpbridge.config.tuning import MAX_RECORDS


@dataclass(frozen=True, slots=True)
class MarkedProcess:
    """
    A process of a session, by pid and start time, in clock ticks since boot.

    The start time is field 22 of `/proc/PID/stat` (proc(5)); together they
    name one process for as long as the machine runs.
    """

    pid: int
    start_time: int

    def as_json(self) -> dict[str, Any]:
        """The record as the watchdog reads it."""
        return {"process": [self.pid, self.start_time]}


@dataclass(frozen=True, slots=True)
class Containers:
    """
    All containers that `ENGINE ps --filter FILTER` lists.

    `engine` is the program, by its absolute path, and its global options, as
    in `("/usr/bin/docker", "--context", "x")`.  `environment` holds what the
    engine needs (HOME, DOCKER_HOST, XDG_RUNTIME_DIR, ...), and nothing that
    is secret: it is written into the state file.
    """

    engine: tuple[str, ...]
    filter: str
    environment: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The record as the watchdog reads it."""
        named = {"engine": list(self.engine), "filter": self.filter}
        return {"containers": {**named, "environment": dict(self.environment)}}


Record = MarkedProcess | Containers


def read_record(value: Any) -> Record:
    """The record that JSON stands for.  Raises `ValueError` where it is none."""
    match value:
        case {"process": [int(pid), int(started)]}:
            return MarkedProcess(pid, started)
        case {"containers": {"engine": [*engine], "filter": str(wanted), "environment": given}}:
            if (
                engine
                and isinstance(given, Mapping)
                and all(isinstance(text, str) for text in (*engine, *given, *given.values()))
            ):
                return Containers(tuple(engine), wanted, tuple(sorted(given.items())))
    raise ValueError("not a record")


class CleanupRecords:
    """
    The records of one bridge, by owner: a session's tag, or any other key.

    Bounded by `MAX_RECORDS`.  The same record may have several owners, as
    the containers of one engine have; it goes when the last owner drops it.
    """

    def __init__(self) -> None:
        self._owned: dict[int | str, set[Record]] = {}
        self._count: Counter[Record] = Counter()
        self._size = 0

    def __iter__(self) -> Iterator[Record]:
        """Each record once."""
        return iter(self._count)

    def is_full(self) -> bool:
        """Whether nothing more can be added."""
        return self._size >= MAX_RECORDS

    def add(self, owner: int | str, record: Record) -> bool:
        """Add a record that the owner does not have yet; whether it is new to all owners."""
        owned = self._owned.setdefault(owner, set())
        if record in owned:
            return False
        owned.add(record)
        self._size += 1
        self._count[record] += 1
        return self._count[record] == 1

    def drop(self, owner: int | str, record: Record | None = None) -> list[Record]:
        """Drop a record of an owner, or all that it has; those that no owner has now."""
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
