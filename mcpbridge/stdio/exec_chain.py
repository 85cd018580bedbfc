"""
Prepare a child process before it becomes a backend's command.

The child must lead a session of its own (setsid(2)), carry a tag (see
`procfs`), die with the bridge (prctl(2), PR_SET_PDEATHSIG) and be in its
working directory.  It gets the limit on descriptors with which the bridge was
started, since a program that uses select(2) fails with more than 1,024.  It gets
none of the ambient capabilities with which a bridge that is not root can
change the user of other servers (capabilities(7)).  And it is confined, if the
server is: another user, limits, a umask, a priority.  A chain is a command line
that does this and then executes the command.

The parent-death signal is set last, because the kernel clears it when the
credentials of a process change.

Every chain ends in exec, so the backend keeps the pid that was spawned and no
wrapper process stays beside it.  None of them needs Twisted to change the
directory: Twisted would then fork the whole bridge in place of a posix_spawn,
which takes longer the more memory the bridge has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

from mcpbridge.stdio.confinement import NOT_CONFINED, Confinement
from mcpbridge.stdio.process_tags import LIMITS

#: How long the trial of a chain may take.
TRIAL_SECONDS = 10.0

#: A program that prints its own limits; it needs no /proc.
_TRIAL = f"import resource; print(*[n for each in {LIMITS!r} for n in resource.getrlimit(each)])"
#: What prlimit(1) calls the limits.
_PRLIMIT_OPTIONS = {
    "open_files": "nofile",
    "file_size": "fsize",
    "cpu_seconds": "cpu",
    "core": "core",
    "address_space": "as",
}
_HERE = os.path.dirname(os.path.abspath(__file__))


class Chain(Protocol):
    """A way to prepare a child."""

    #: True if it closes all descriptors but 0, 1 and 2.
    closes_descriptors: bool

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        """Return the command line to spawn; without a tag if that is 0."""


@dataclass(frozen=True)
class Compiled:
    """The preferred chain: one small program, compiled from `launch.c` at installation."""

    path: str = os.path.join(_HERE, "launch")
    #: The soft limit on descriptors that the command gets; 0: that of the bridge.
    descriptors: int = 0
    #: Those of a `Confinement`.
    steps: tuple[str, ...] = ()
    #: The pid of the parent; by default of this process.
    parent: str = ""
    closes_descriptors = True

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        """Put `launch` with its arguments before the command."""
        parent = self.parent or str(os.getpid())
        settings = [str(tag), parent, directory or "-", str(self.descriptors)]
        return [self.path, *settings, *self.steps, "--", *command]


@dataclass(frozen=True)
class UtilLinux:
    """Programs of util-linux and coreutils that execute each other, a millisecond each."""

    env: str
    setsid: str
    prlimit: str
    setpriv: str
    descriptors: int = 0
    #: None where no server is confined by it.
    nice: str | None = None
    confinement: Confinement = NOT_CONFINED
    closes_descriptors = False

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        """Put one program for each step before the command."""
        links = [self.setsid]
        limits = [f"--rss={tag}:{tag}", f"--locks={tag}:{tag}"] if tag else []
        if self.descriptors:
            limits += [f"--nofile={self.descriptors}:"]
        # Of two values of one limit the last one counts.
        wanted = self.confinement
        limits += [
            f"--{_PRLIMIT_OPTIONS[each.name]}={each.soft}:{each.hard}" for each in wanted.limits
        ]
        if limits:
            links += [self.prlimit, *limits]
        if wanted.niceness is not None and self.nice is not None:
            links += [self.nice, "-n", str(wanted.niceness - os.getpriority(os.PRIO_PROCESS, 0))]
        if wanted.gid is not None:
            links += [self.setpriv, f"--regid={wanted.gid}", "--clear-groups", "--"]
        if directory is not None:
            # The next argument has no `=`: `env` would take it for a variable.
            links += [self.env, "-C", directory]
        last = [self.setpriv, "--ambient-caps=-all", "--pdeathsig", "KILL", "--"]
        return [*links, *last, *command]


@dataclass(frozen=True)
class PythonShim:
    """`exec_shim.py`: slower by the start of an interpreter, but it works everywhere."""

    descriptors: int = 0
    steps: tuple[str, ...] = ()
    parent: str = ""
    closes_descriptors = False

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        """Put the interpreter and the shim before the command."""
        shim = os.path.join(_HERE, "exec_shim.py")
        parent = self.parent or str(os.getpid())
        settings = [str(tag), parent, directory or "-", str(self.descriptors)]
        return [sys.executable, "-I", "-S", shim, *settings, *self.steps, "--", *command]


def confine(chain: Chain, confinement: Confinement) -> Chain:
    """
    Return a chain that confines the command, too.

    It is another one where this one has no program for that: util-linux has none for
    the umask, nor for giving the pipes to another user.
    """
    match chain:
        case Compiled() | PythonShim():
            return replace(chain, steps=confinement.steps())
        case UtilLinux(descriptors=descriptors):
            nice = shutil.which("nice") if confinement.niceness is not None else None
            missing = confinement.niceness is not None and nice is None
            if (confinement.uid, confinement.umask) != (None, None) or missing:
                return PythonShim(descriptors, confinement.steps())
            return replace(chain, nice=nice, confinement=confinement)
    raise TypeError(f"{type(chain).__name__} cannot confine a command")


@cache
def find_chain() -> Compiled | UtilLinux | PythonShim:
    """
    Return the fastest chain that works on this machine.

    Each is tried once with a harmless command: an installed program may be
    of another version, for another machine, or forbidden to set limits.
    """
    return next((chain for chain in _candidates() if works(chain)), PythonShim())


def _candidates() -> Iterator[Compiled | UtilLinux]:
    if not sys.platform.startswith("linux"):
        return
    compiled = Compiled()
    if os.access(compiled.path, os.X_OK):
        yield compiled
    links = [shutil.which(name) for name in ("env", "setsid", "prlimit", "setpriv")]
    found = [link for link in links if link is not None]
    if len(found) == len(links):
        env, setsid, prlimit, setpriv = found
        yield UtilLinux(env, setsid, prlimit, setpriv)


def works(chain: Chain) -> bool:
    """Return True if a command behind this chain, in another directory, has its tag (Linux)."""
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
