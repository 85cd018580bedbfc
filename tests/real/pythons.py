"""
List the other Pythons of this machine that the tests can run on.

Prints `3.12=/path/to/python3.12` for each minor version of CPython from 3.11 on,
except that of this interpreter.  Searches PATH and the versions of pyenv.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST = (3, 11)
NEWEST = (3, 29)

#: Fails, or prints another version, if the interpreter cannot be used:
#: a pyenv shim that is not active, PyPy, a Debian Python without its venv.
PROBE = """
import ensurepip, platform, sys, venv
assert platform.python_implementation() == "CPython"
print("%d.%d" % sys.version_info[:2])
"""


def candidates(minor: int) -> Iterator[Path]:
    """Yield where an interpreter of this minor version may be, the likeliest first."""
    name = f"python3.{minor}"
    for folder in os.get_exec_path():
        yield Path(folder) / name
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in sorted((pyenv / "versions").glob(f"3.{minor}.*"), reverse=True):
        yield version / "bin" / name


def works(python: Path, minor: int) -> bool:
    """Return True if this is a CPython of that version that can create an environment."""
    if not os.access(python, os.X_OK):
        return False
    command = [str(python), "-I", "-c", PROBE]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0 and probe.stdout.strip() == f"3.{minor}"


def others() -> Iterator[tuple[int, Path]]:
    """Yield the minor version and the path of each other Python that works."""
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        if minor != sys.version_info.minor:
            for python in candidates(minor):
                if works(python, minor):
                    yield minor, python
                    break


if __name__ == "__main__":
    for minor, python in others():
        print(f"3.{minor}={python}")
