"""
The fallback of the exec chain: a Python program that becomes the command.

`python -I -S exec_shim.py TAG DIRECTORY DESCRIPTORS -- COMMAND [ARG ...]` does in one
process what `env -C`, `setsid`, `prlimit` and `setpriv` do: it begins a
session of its own, sets its tag, asks to be killed with its parent, changes
the directory, and executes the command.  It is slower than the other chains
by the start of an interpreter.  TAG 0 means no tag, DIRECTORY `-` the present
directory; DESCRIPTORS is the soft limit on descriptors, 0 the present one.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from prctl import set_parent_death_signal  # type: ignore[import-not-found]
else:
    from mcpbridge.stdio.prctl import set_parent_death_signal

#: `resource` has no name for it.
_RLIMIT_LOCKS = 10


def main(arguments: list[str]) -> int:
    """
    Execute the command; return an exit status only if that is impossible.

    127: there is no such program.  126: it cannot be executed, or a step before that failed.
    """
    tag, directory, descriptors, _, *command = arguments
    try:
        os.setsid()
        if int(descriptors):
            import resource

            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors), hard))
        if int(tag):
            import resource

            for limit in (resource.RLIMIT_RSS, _RLIMIT_LOCKS):
                resource.setrlimit(limit, (int(tag), int(tag)))
        set_parent_death_signal(signal.SIGKILL)
        # The command would inherit what this interpreter ignores.
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
