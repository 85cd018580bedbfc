"""
What stands before a backend's command so that the child, before it runs, is
leader of a session of its own (setsid(2)), carries a tag (see `procfs`), dies
with the bridge (prctl(2), PR_SET_PDEATHSIG) and stands in its directory.

Each way ends in exec: the backend keeps the pid that was spawned, and no
wrapper waits beside it.  None needs a directory for the spawn itself, which
would make Twisted fork the whole bridge.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from mcpbridge.stdio.process_tags import LIMITS

#: How long the trial of a chain at the start may take.
TRIAL_SECONDS = 10.0

#: Asks for its own limits, for which it needs no /proc.
_TRIAL = f"import resource; print(*[n for each in {LIMITS!r} for n in resource.getrlimit(each)])"
_HERE = os.path.dirname(os.path.abspath(__file__))


class Chain(Protocol):
    """A way to prepare a child."""

    #: Whether it closes all descriptors but 0, 1 and 2.
    closes_descriptors: bool

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        """The command line to spawn; `tag` 0: none."""


@dataclass(frozen=True)
class Compiled:
    """`launch.c`, built at installation where there is a compiler: one link."""

    path: str = os.path.join(_HERE, "launch")
    closes_descriptors = True

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        """One program that does it all."""
        return [self.path, str(tag), str(os.getpid()), directory or "-", "--", *command]


@dataclass(frozen=True)
class UtilLinux:
    """Small programs that exec each other: a millisecond each."""

    env: str
    setsid: str
    prlimit: str
    setpriv: str
    closes_descriptors = False

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        """A link for each thing that is wanted."""
        links = []
        if directory is not None:
            # `env` comes first: behind it a command may hold an `=`.
            links += [self.env, "-C", directory]
        links += [self.setsid]
        if tag:
            links += [self.prlimit, f"--rss={tag}:{tag}", f"--locks={tag}:{tag}"]
        return [*links, self.setpriv, "--pdeathsig", "KILL", "--", *command]


@dataclass(frozen=True)
class PythonShim:
    """`exec_shim.py`: slower by the start of an interpreter, and right everywhere."""

    closes_descriptors = False

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        """An interpreter that becomes the command."""
        shim = os.path.join(_HERE, "exec_shim.py")
        return [sys.executable, "-I", "-S", shim, str(tag), directory or "-", "--", *command]


@cache
def find_chain() -> Chain:
    """The fastest chain that works on this machine, each tried once with a harmless command."""
    return next((chain for chain in _candidates() if works(chain)), PythonShim())


def _candidates() -> Iterator[Chain]:
    if not sys.platform.startswith("linux"):
        return
    compiled = Compiled()
    if os.access(compiled.path, os.X_OK):
        yield compiled
    links = [shutil.which(name) for name in ("env", "setsid", "prlimit", "setpriv")]
    found = [link for link in links if link is not None]
    if len(found) == len(links):
        yield UtilLinux(*found)


def works(chain: Chain) -> bool:
    """Whether a tag set by the chain, in a directory, is seen by the command (Linux)."""
    tag = 1 << 40
    try:
        trial = subprocess.run(
            chain.wrap([sys.executable, "-I", "-S", "-c", _TRIAL], tag, "/"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    seen = " ".join(str(tag) for limit in LIMITS for _ in ("soft", "hard"))
    return trial.returncode == 0 and trial.stdout.decode("ascii").strip() == seen
