"""
The fallback of the exec chain: a Python program that becomes the command.

`python -I -S exec_shim.py TAG PARENT DIRECTORY DESCRIPTORS [STEP ...] -- COMMAND [ARG ...]`
does in one process what `launch.c` does, with the same arguments: it begins a
session of its own, sets its tag, takes the steps that confine the command,
drops the ambient capabilities, changes the directory, asks to be killed with
its parent, and executes the command.  It is slower than the other chains by the
start of an interpreter.
"""

from __future__ import annotations

import os
import signal
import stat
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from prctl import (  # type: ignore[import-not-found]
        clear_ambient_capabilities,
        set_parent_death_signal,
    )
else:
    from mcpbridge.stdio.prctl import clear_ambient_capabilities, set_parent_death_signal

#: `resource` has no name for it.
_RLIMIT_LOCKS = 10


def main(arguments: list[str]) -> int:
    """
    Execute the command; return an exit status only if that is impossible.

    127: there is no such program.  126: it cannot be executed.  125: a step before that failed.
    """
    end = arguments.index("--", 4)
    tag, parent, directory, descriptors, *steps = arguments[:end]
    command = arguments[end + 1 :]
    doing = "setsid"
    try:
        os.setsid()
        # What that needs is loaded before files may be out of the new user's reach.
        possible = set_parent_death_signal(signal.SIGKILL)
        if int(tag) or int(descriptors) or steps:
            doing = "setrlimit"
            _set_limits(int(tag), int(descriptors))
        # The command would inherit what this interpreter ignores.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        for doing in steps:
            _take(doing)
        clear_ambient_capabilities()
        if directory != "-":
            doing = directory
            os.chdir(directory)
        doing = "prctl"
        # Last: a change of credentials has cleared it.
        if not set_parent_death_signal(signal.SIGKILL) and possible:
            raise ValueError("the parent-death signal cannot be set")
    except (OSError, ValueError) as error:
        print(f"{doing}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 125
    if os.getppid() != int(parent):
        return 125
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 126


def _set_limits(tag: int, descriptors: int) -> None:
    import resource

    if descriptors:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    if tag:
        for limit in (resource.RLIMIT_RSS, _RLIMIT_LOCKS):
            resource.setrlimit(limit, (tag, tag))


def _take(step: str) -> None:
    """Take one step of the confinement; `launch.c` has the list of them."""
    numbers = [int(each) for each in step[1:].split(":")]
    match step[0], numbers:
        case "l", [limit, soft, hard]:
            import resource

            resource.setrlimit(limit, (soft, hard))
        case "n", [number]:
            os.setpriority(os.PRIO_PROCESS, 0, number - 20)
        case "m", [mask]:
            os.umask(mask)
        case "g", [group]:
            os.setgroups([])
            os.setresgid(group, group, group)
        case "u", [user]:
            _give_pipes(user)
            os.setresuid(user, user, user)
        case _:
            raise ValueError("unknown step")


def _give_pipes(user: int) -> None:
    """Let the new user open stdin, stdout and stderr by name, as `launch.c` does."""
    for descriptor in range(3):
        try:
            if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                continue
            try:
                os.fchown(descriptor, user, -1)
            except OSError:
                os.fchmod(descriptor, 0o666)
        except OSError:
            # It works without, for most programs.
            pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
