"""
The components of the bridge, whose levels `log_level` may set: its modules, by their names.

Knows the files of the packages; imports none of them.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mcpbridge.errors import Described, SettingError

#: Components that are no modules: the lines of requests, and what backends write.
ACCESS, STDERR = "access", "stderr"


def split_level(text: str) -> tuple[str, str]:
    """Return the component, an empty string for all of them, and the level."""
    component, _, level = text.rpartition("=")
    return component, level


def unknown_components(levels: Iterable[str]) -> Iterator[SettingError]:
    """Yield an error for each level of a component that there is not."""
    for each in levels:
        component = split_level(each)[0]
        if component and not _exists(component):
            near = difflib.get_close_matches(component, sorted(components()), n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            yield SettingError(
                "log_level",
                "a component (a module below `mcpbridge`, such as `web` or `processes.pool`,"
                f" `{ACCESS}`, `{STDERR}` or `twisted`) before `=`",
                Described(f"`{component}`{hint}"),
            )


@cache
def components() -> frozenset[str]:
    """Return the components of the bridge, and `twisted`."""
    package = Path(__file__).parent.parent
    return frozenset({ACCESS, STDERR, "twisted", *_modules([str(package)], "")})


def _modules(path: list[str], prefix: str) -> Iterator[str]:
    for finder, name, is_package in pkgutil.iter_modules(path, prefix):
        if name.rpartition(".")[2].startswith("__"):
            continue
        yield name
        if is_package:
            folder = Path(getattr(finder, "path", "")) / name.rpartition(".")[2]
            yield from _modules([str(folder)], f"{name}.")


def _exists(component: str) -> bool:
    if not component.startswith("twisted."):
        return component in components()
    spec = find_spec("twisted")
    places = spec.submodule_search_locations if spec is not None else None
    *folders, last = component.split(".")[1:]
    return all(folders) and any(
        name == last
        for place in places or ()
        for _, name, _ in pkgutil.iter_modules([str(Path(place, *folders))])
    )
