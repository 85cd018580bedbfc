"""
A trial of a confinement: a harmless process behind the same exec chain, examined from outside.

Its parent is a shell between it and the bridge, which is killed at the end: so
the trial also proves that the process dies with its parent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from mcpbridge.stdio.cleanup_records import CleanupRecords
from mcpbridge.stdio.confinement import Confinement
from mcpbridge.stdio.exec_chain import TRIAL_SECONDS, Chain, Compiled, PythonShim
from mcpbridge.stdio.kill_pass import kill_pass
from mcpbridge.stdio.private_tmp import PrivateFolder
from mcpbridge.stdio.process_tags import new_base
from mcpbridge.stdio.procfs import tag_of
from mcpbridge.stdio.remove_tree import identity, remove_tree

#: The most bytes of a trial's output that are read.
OUTPUT_BYTES = 4096

#: How long the process may take to die when its parent is killed.
DEATH_SECONDS = 5.0

#: Takes the place of the parent's pid in a command line.
_PARENT = "@parent@"
#: It tells its pid, tries what the backend will do, and waits for the end of its stdin.
_PROGRAM = """
echo "pid $$"
if [ -n "$1" ] && ! [ -x "$1" ]; then echo program; fi
if [ -n "$2" ] && ! { mkdir -p "$2/trial/deep" && chmod 0 "$2/trial"; } 2>/dev/null; then
    echo private_tmp
fi
echo done
read -r line
"""
_LIMIT_LINES = {
    "open_files": "Max open files",
    "file_size": "Max file size",
    "cpu_seconds": "Max cpu time",
    "core": "Max core file size",
    "address_space": "Max address space",
}
#: What an error of a chain begins with: a call, a program or a step; the setting at fault.
_BLAMED = {
    re.compile(r"setgroups|setresuid|(/\S*/)?setpriv\b|u\d"): "user",
    re.compile(r"setresgid|g\d"): "group",
    re.compile(r"setpriority|(/\S*/)?nice\b|n\d"): "nice",
    # A program that cannot be loaded has too little room.
    re.compile(r"prlimit|(/\S*/)?prlimit\b|l\d|/bin/sh\b"): "limits",
    re.compile(r"/|env:"): "cwd",
}


class TrialFailed(Exception):
    """The process could not be started; the text says why, `setting` what is at fault."""

    def __init__(self, text: str, setting: str) -> None:
        super().__init__(text)
        self.setting = setting


class Finding(NamedTuple):
    """A setting that does not hold: its name, what was expected, and what was found."""

    setting: str
    expected: str
    got: str


class Trial:
    """
    A trial of one chain.

    The process tries to execute `program`, without running it, and to write
    to a private directory below `folder`; both may be None.
    """

    def __init__(
        self,
        chain: Chain,
        wanted: Confinement,
        *,
        program: str | None = None,
        directory: str | None = None,
        folder: str | None = None,
    ) -> None:
        self._chain = chain
        self._wanted = wanted
        self._program = program or ""
        self.directory = directory
        self._folder = folder
        #: Of no bridge; 0 where processes cannot be tagged.
        self._base = new_base()
        self._tag = self._base and self._base + 1

    def run(self) -> list[Finding]:
        """Return what does not hold.  Raises `TrialFailed`."""
        if self._folder is None:
            return list(self._run(""))
        private = PrivateFolder(self._folder, CleanupRecords())
        try:
            path = private.make_directory(self._wanted.uid, self._wanted.gid)
        except OSError as error:
            why = f"{error.strerror or error} in {self._folder}"
            private.stop()
            expected = "room for directories in TMPDIR or /tmp"
            if error.errno == errno.EPERM:
                expected = (
                    "a bridge that may give a directory to the backend's user; run it as root or"
                    " with CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE"
                )
            return [Finding("private_tmp", expected, why)]
        try:
            which = identity(path)
            findings = list(self._run(path))
        finally:
            until = time.monotonic() + TRIAL_SECONDS
            left = remove_tree(path, which, lambda: time.monotonic() > until)
            private.stop()
        if left:
            findings.append(
                Finding(
                    "private_tmp",
                    "a bridge that can remove files of the backend's user; run it as root",
                    left,
                )
            )
        return findings

    def _run(self, private: str) -> Iterator[Finding]:
        process = self._spawn(private)
        try:
            pid, said = self._read(process)
            if "program" in said:
                yield Finding(
                    "user",
                    f"one that may execute {self._program!r}; move the program, or change the"
                    " permissions of its directories",
                    f"user {self._wanted.uid}",
                )
            if "private_tmp" in said:
                yield Finding(
                    "private_tmp", "a TMPDIR that the backend's user can reach", repr(self._folder)
                )
            yield from self._examine(pid)
            yield from self._kill(process, pid)
        except BaseException:
            # Where it is now is unknown: it may still be in the chain.
            if self._base:
                kill_pass(self._base)
            raise
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def _spawn(self, private: str) -> subprocess.Popen[bytes]:
        chain = self._chain
        if isinstance(chain, Compiled | PythonShim):
            chain = replace(chain, parent=_PARENT)
        command = ["/bin/sh", "-c", _PROGRAM, "trial", self._program, private]
        line = chain.wrap(command, self._tag, self.directory)
        words = ['"$$"' if word == _PARENT else shlex.quote(word) for word in line]
        # What runs in the background has no stdin unless it is given one.
        shell = f"exec 3<&0; {' '.join(words)} <&3 3<&- & wait"
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(
                ["/bin/sh", "-c", shell],
                env={"PATH": os.defpath, "LC_ALL": "C"},
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
        except OSError as error:
            raise TrialFailed(f"/bin/sh: {error.strerror}", "") from error

    def _read(self, process: subprocess.Popen[bytes]) -> tuple[int, list[str]]:
        """Return the pid of the process, and the other lines that it has written."""
        assert process.stdout is not None
        assert process.stderr is not None
        output = bytearray()
        until = time.monotonic() + TRIAL_SECONDS
        while not output.endswith(b"done\n") and len(output) < OUTPUT_BYTES:
            left = until - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise TrialFailed(f"it took more than {TRIAL_SECONDS:g} s", "")
            data = os.read(process.stdout.fileno(), OUTPUT_BYTES)
            if not data:
                # Nothing writes to stdout any more, and an error is there already.
                os.set_blocking(process.stderr.fileno(), False)
                errors = (process.stderr.read() or b"")[:OUTPUT_BYTES].decode("utf-8", "replace")
                text = errors.strip().splitlines()[-1] if errors.strip() else "it ended at once"
                raise TrialFailed(text, _blamed(text))
            output += data
        first, *others = output.decode("ascii", "replace").splitlines()
        return int(first.removeprefix("pid ")), others

    def _examine(self, pid: int) -> Iterator[Finding]:
        """Compare what the process has become with what was wanted."""
        wanted = self._wanted
        status = _fields(f"/proc/{pid}/status")
        for setting, name, number in (("user", "Uid", wanted.uid), ("group", "Gid", wanted.gid)):
            if number is not None and status.get(name, "").split() != [str(number)] * 4:
                yield Finding(
                    setting, f"one that a process can have: {number}", status.get(name, "")
                )
        if wanted.gid is not None and status.get("Groups", "").strip():
            groups = status["Groups"]
            yield Finding("user", "one without supplementary groups", f"the groups {groups}")
        capabilities = {status.get(each, "0") for each in ("CapPrm", "CapEff", "CapAmb")}
        if wanted.uid and any(int(each, 16) for each in capabilities):
            yield Finding("user", "one without capabilities", f"{sorted(capabilities)}")
        if (
            wanted.umask is not None
            and "Umask" in status
            and (int(status["Umask"], 8) != wanted.umask)
        ):
            yield Finding("umask", f"{wanted.umask:04o} in a process", status["Umask"])
        if wanted.niceness is not None:
            niceness = os.getpriority(os.PRIO_PROCESS, pid)
            if niceness != wanted.niceness:
                yield Finding("nice", f"a nice value of {wanted.niceness}", str(niceness))
        yield from self._examine_limits(pid)
        if self._tag and tag_of(pid) != self._tag:
            yield Finding(
                "user",
                "one whose processes can be found: the bridge cannot read the limits of a process"
                " of this user (hidepid of /proc); run it as root or with CAP_SYS_RESOURCE",
                f"user {wanted.uid}",
            )

    def _examine_limits(self, pid: int) -> Iterator[Finding]:
        if not self._wanted.limits:
            return
        lines = _lines(f"/proc/{pid}/limits")
        for limit in self._wanted.limits:
            name = _LIMIT_LINES[limit.name]
            found = next((line[len(name) :].split()[:2] for line in lines if name in line), [])
            if found != [str(limit.soft), str(limit.hard)]:
                yield Finding(
                    f"limits.{limit.name}", f"{limit.soft} in a process", " ".join(found) or "none"
                )

    def _kill(self, process: subprocess.Popen[bytes], pid: int) -> Iterator[Finding]:
        """Kill the parent, and find out whether the process dies with it."""
        try:
            child = os.pidfd_open(pid)
        except (OSError, AttributeError):
            child = -1
        try:
            try:
                os.kill(pid, 0)
            except OSError as error:
                yield Finding(
                    "user",
                    "one whose processes the bridge can end; run it as root or with CAP_KILL",
                    error.strerror or str(error),
                )
            process.kill()
            process.wait()
            if child >= 0 and not select.select([child], [], [], DEATH_SECONDS)[0]:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                yield Finding(
                    "user",
                    "one whose processes die with the bridge, which the kernel does not allow here",
                    f"user {self._wanted.uid}",
                )
            # This process has adopted it, if it adopts orphans.
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        finally:
            if child >= 0:
                os.close(child)


def _blamed(text: str) -> str:
    return next((setting for pattern, setting in _BLAMED.items() if pattern.match(text)), "")


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(OUTPUT_BYTES).splitlines()
    except OSError:
        return []


def _fields(path: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in _lines(path))
    return {name: value.strip() for name, _, value in pairs}
