"""
The fallback of the exec chain where util-linux is missing.

`python -I -S exec_shim.py TAG DIRECTORY -- COMMAND [ARG ...]` does in one process
what `env -C`, `setsid`, `prlimit` and `setpriv` do: a session of its own, the
tag, death with its parent, the directory; then it becomes the command.  It is
slower than the chain by the start of an interpreter.  TAG 0 means none,
DIRECTORY `-` means the present one.
"""

from __future__ import annotations

import os
import sys

#: `resource` has no name for it.
_RLIMIT_LOCKS = 10


def set_parent_death_signal(number: int) -> bool:
    """Ask for a signal at the parent's death (prctl(2), Linux); False elsewhere."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None, use_errno=True).prctl(1, number, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def main(arguments: list[str]) -> int:
    """Become the command, or say why not: 126 it cannot run, 127 it is not there."""
    import signal

    tag, directory, _, *command = arguments
    try:
        os.setsid()
        if int(tag):
            import resource

            for limit in (resource.RLIMIT_RSS, _RLIMIT_LOCKS):
                resource.setrlimit(limit, (int(tag), int(tag)))
        set_parent_death_signal(signal.SIGKILL)
        # What this interpreter ignores, the command would inherit.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if directory != "-":
            os.chdir(directory)
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
