"""
How a backend's command becomes a process: its environment, where its program
is, and the exec chain that prepares the child.

Knows paths and arguments; must not know the reactor.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from mcpbridge.config import INHERITED_ENV, ServerSettings
from mcpbridge.errors import CannotStart

#: How long the trial of the chain at the start may take.
TRIAL_SECONDS = 10.0


def backend_environment(settings: ServerSettings, own: Mapping[str, str]) -> dict[str, str]:
    """
    The backend's whole environment: a few harmless variables of the bridge's
    `own`, those that `pass_env` names, and `env`.  Nothing else passes, so
    that no secret of the bridge does.
    """
    passed = {
        name: value
        for name, value in own.items()
        if name in INHERITED_ENV or name.startswith("LC_") or name in settings.pass_env
    }
    return {**passed, **settings.env}


def find_program(command: str, environment: Mapping[str, str], directory: str | None) -> str:
    """
    The absolute path of a command, found with the *backend's* PATH and
    directory.  Raises `CannotStart`, saying what is missing.
    """
    here = os.path.abspath(directory or ".")
    if not os.path.isdir(here):
        raise CannotStart(f"cannot start {command!r}: there is no directory {here!r}")
    if os.sep in command:
        candidates = [os.path.join(here, command)]
    else:
        places = environment.get("PATH", os.defpath).split(os.pathsep)
        candidates = [os.path.join(here, place, command) for place in places]
    there = [path for path in candidates if os.path.isfile(path)]
    for path in there:
        if os.access(path, os.X_OK):
            return os.path.abspath(path)
    if there:
        raise CannotStart(f"cannot start {command!r}: {there[0]!r} may not be executed")
    where = "" if os.sep in command else " in the backend's PATH"
    raise CannotStart(f"cannot start {command!r}: it was not found{where}")


@dataclass(frozen=True)
class ExecChain:
    """
    What stands before a command so that the child, before it runs, is a
    session leader (setsid(2)), carries a tag (see `procfs`), dies with the
    bridge (prctl(2), PR_SET_PDEATHSIG) and stands in its directory.

    Small programs of util-linux that exec each other: the backend keeps the
    pid that was spawned, and no wrapper waits beside it.  Without them, one
    Python program does the same, more slowly.  In both cases the spawn itself
    needs no directory, and so no fork of the whole bridge.
    """

    env: str | None
    setsid: str | None
    prlimit: str | None
    setpriv: str | None

    @property
    def complete(self) -> bool:
        """Whether all of its links are there."""
        return None not in (self.env, self.setsid, self.prlimit, self.setpriv)

    def wrap(self, program: list[str], tag: int, directory: str | None) -> list[str]:
        """The command line to spawn; `tag` 0: none."""
        if not self.complete:
            shim = os.path.join(os.path.dirname(__file__), "shim.py")
            return [sys.executable, "-I", "-S", shim, str(tag), directory or "-", "--", *program]
        links: list[str | None] = []
        if directory is not None:
            # `env` comes first: behind it a command may hold an `=`.
            links += [self.env, "-C", directory]
        links += [self.setsid]
        if tag:
            links += [self.prlimit, f"--rss={tag}:{tag}"]
        links += [self.setpriv, "--pdeathsig", "KILL", "--"]
        return [link for link in links if link is not None] + program


NO_CHAIN = ExecChain(None, None, None, None)


@cache
def find_chain() -> ExecChain:
    """The chain of this machine, tried once with a harmless command."""
    if not sys.platform.startswith("linux"):
        return NO_CHAIN
    chain = ExecChain(*map(shutil.which, ("env", "setsid", "prlimit", "setpriv")))
    return chain if chain.complete and _works(chain) else NO_CHAIN


def _works(chain: ExecChain) -> bool:
    """Whether a tag set by the chain, in a directory, is seen by the command."""
    tag = 1 << 40
    cat = shutil.which("cat")
    if cat is None:
        return False
    try:
        trial = subprocess.run(
            chain.wrap([cat, "/proc/self/limits"], tag, "/"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return trial.returncode == 0 and str(tag).encode("ascii") in trial.stdout
