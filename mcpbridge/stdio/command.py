"""
Find a backend's program, and make its environment.

Knows paths; does not know the reactor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mcpbridge.config.backend_environment import passed_environment
from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import CannotStart


def backend_environment(settings: ServerSettings, own: Mapping[str, str]) -> dict[str, str]:
    """
    Return the backend's whole environment.

    It has three parts: those variables of the bridge's `own` that lead to
    programs, proxies and caches; those that `pass_env` names; and `env`.
    Nothing else is passed on, so that no secret of the bridge is.
    """
    passed, _ = passed_environment(own, settings.pass_env)
    return {**passed, **settings.env}


def find_program(command: str, environment: Mapping[str, str], directory: str | None) -> str:
    """
    Return the absolute path of a command, by the *backend's* PATH and directory.

    Raises `CannotStart` with what is missing.
    """
    here = directory or ""
    if directory and not os.path.isdir(directory):
        shown = _absolute(directory) or directory
        raise CannotStart(f"cannot start {command!r}: its directory (cwd) {shown!r} does not exist")
    if os.sep in command:
        candidates = [os.path.join(here, command)]
    else:
        places = environment.get("PATH", os.defpath).split(os.pathsep)
        candidates = [os.path.join(here, place, command) for place in places]
    there: list[str] = []
    removed = False
    for candidate in candidates:
        path = _absolute(candidate)
        if path is None:
            removed = True
        elif os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            there.append(path)
    if there:
        raise CannotStart(f"cannot start {command!r}: {there[0]!r} is not executable")
    where = "" if os.sep in command else " in the backend's PATH"
    hint = "; put its arguments into `args`" if " " in command else ""
    if removed:
        hint += "; the bridge's own directory was removed, so use an absolute path"
    raise CannotStart(f"cannot start {command!r}: it was not found{where}{hint}")


def _absolute(path: str) -> str | None:
    """
    Return the absolute path; None if it is relative to the bridge's own
    directory and that was removed, as an upgrade removes a release's folder.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        return None
