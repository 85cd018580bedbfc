"""
A backend's command: its environment, and where its program is.

Knows paths; must not know the reactor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mcpbridge.config.environment import passed_environment
from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import CannotStart


def backend_environment(settings: ServerSettings, own: Mapping[str, str]) -> dict[str, str]:
    """
    The backend's whole environment: of the bridge's `own` what is needed to
    find programs, proxies and caches, what `pass_env` names, and `env`.
    Nothing else passes, so that no secret of the bridge does.
    """
    passed, _ = passed_environment(own, settings.pass_env)
    return {**passed, **settings.env}


def find_program(command: str, environment: Mapping[str, str], directory: str | None) -> str:
    """
    The absolute path of a command, found with the *backend's* PATH and
    directory.  Raises `CannotStart`, saying what is missing.
    """
    here = directory or ""
    if directory and not os.path.isdir(directory):
        shown = _absolute(directory) or directory
        raise CannotStart(f"cannot start {command!r}: there is no directory {shown!r}")
    if os.sep in command:
        candidates = [os.path.join(here, command)]
    else:
        places = environment.get("PATH", os.defpath).split(os.pathsep)
        candidates = [os.path.join(here, place, command) for place in places]
    absolute = [_absolute(path) for path in candidates]
    there = [path for path in absolute if path is not None and os.path.isfile(path)]
    for path in there:
        if os.access(path, os.X_OK):
            return path
    if there:
        raise CannotStart(f"cannot start {command!r}: {there[0]!r} may not be executed")
    where = "" if os.sep in command else " in the backend's PATH"
    hint = "; its arguments belong into `args`" if " " in command else ""
    if None in absolute:
        hint += "; the bridge's own directory was removed: name an absolute path"
    raise CannotStart(f"cannot start {command!r}: it was not found{where}{hint}")


def _absolute(path: str) -> str | None:
    """
    The path from the root.  None where it starts at the bridge's working
    directory and that was removed, as a release's folder is at an upgrade.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        return None
