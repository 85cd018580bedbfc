"""
Which processes belong to which session, read from /proc (Linux, proc(5)).

A backend is started with a *tag*: a soft and hard RLIMIT_RSS that no other
session has.  The limit has no effect on Linux (getrlimit(2)), but every
descendant inherits it through `fork`, `setsid`, `exec`, a cleared environment
and a new parent, so it says whose a process is when its lineage is gone.
What carries no tag is not ours.

Uses the standard library alone: the guardian runs this file by itself.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass

#: Tags of one bridge lie in `[base, base + TAGS)`.
TAGS = 1 << 24
#: What `tag_of` gives where there is no tag.
NONE = -1
GONE = -2
_LIMIT = b"Max resident set"


@dataclass(frozen=True, slots=True)
class Tagged:
    """A process that carries a tag."""

    pid: int
    tag: int
    zombie: bool
    parent: int


def choose_base(random: bytes, hard_limit: int) -> int:
    """
    A base for the tags of one bridge, from eight random bytes.

    Not above `hard_limit` (-1: no limit), which only a privileged process may
    raise: it is that of an outer bridge where a backend is itself a bridge.
    Returns 0 where there is no room for tags.
    """
    top = (1 << 62) if hard_limit < 0 else min(hard_limit, 1 << 62)
    slots = top // TAGS - 1
    if slots < 1 << 16:
        return 0
    return (slots // 2 + int.from_bytes(random, "big") % (slots // 2)) * TAGS


def readable() -> bool:
    """Whether this is Linux, with a /proc that tells of limits."""
    return sys.platform.startswith("linux") and tag_of(os.getpid()) != GONE


def tag_of(pid: int) -> int:
    """
    The tag of a process, or whatever number its limit is; `NONE` where it has
    none, `GONE` where the process is gone.  Raises `OSError` where there are
    no descriptors left to read with.
    """
    try:
        limits = os.open(f"/proc/{pid}/limits", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            # What was not seen is not gone.
            raise
        return GONE
    try:
        text = os.read(limits, 4096)
    except OSError:
        return GONE
    finally:
        os.close(limits)
    at = text.find(_LIMIT)
    if at < 0:
        return GONE
    soft, hard = text[at + len(_LIMIT) : text.index(b"\n", at)].split()[:2]
    return int(soft) if soft == hard and soft.isdigit() else NONE


def find_tagged(base: int, skip_sessions: Collection[int] = ()) -> list[Tagged]:
    """
    All processes with a tag of this base, zombies among them.

    `skip_sessions` are ids of process sessions (setsid(2)) that are not of
    interest: a process cannot enter the session of another, so one system
    call spares the reading of its files.  Costs about 5 µs for each process
    that is not skipped.
    """
    found = []
    getsid = os.getsid
    for name in os.listdir("/proc"):
        if not name[0].isdigit():
            continue
        pid = int(name)
        try:
            session = getsid(pid)
        except OSError:
            continue
        # Session 0 is the kernel's own.
        if session == 0 or session in skip_sessions:
            continue
        tag = tag_of(pid)
        if base <= tag < base + TAGS:
            state, parent = _state_of(pid)
            if state:
                found.append(Tagged(pid, tag, state == "Z", parent))
    return found


def _state_of(pid: int) -> tuple[str, int]:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            # The name, in parentheses, may hold anything: read behind it.
            fields = stat.read(4096).rpartition(b")")[2].split()
        return fields[0].decode("ascii"), int(fields[1])
    except (OSError, IndexError):
        return "", 0


def signal_tagged(pid: int, tag: int, number: int) -> bool:
    """
    Signal a process if it (still) carries the tag; False where it is gone.

    The descriptor is opened before the tag is read, so that the signal goes
    to the process whose tag was seen, or to nobody (pidfd_open(2)).  Raises
    `PermissionError` where the process is another user's.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if tag_of(pid) != tag:
            return False
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(process)
    return True
