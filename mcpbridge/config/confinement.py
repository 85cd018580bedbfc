"""
The settings that confine a backend's process: its user, its limits, its files.

Knows shapes and ranges; must not know whether this machine can apply them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mcpbridge.config.checks import Check, kind_of
from mcpbridge.errors import Described, SettingError

#: The largest id of a user or a group: the highest stands for "no change" in the kernel.
MAX_ID = (1 << 32) - 2
#: The largest value of a limit, which is kept apart from "no limit".
MAX_LIMIT = (1 << 63) - 1
#: The fewest descriptors with which a program can run at all.
LEAST_OPEN_FILES = 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
_UMASK = re.compile(r"0?[0-7]{3}")


class ResourceLimits(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """
    Resource limits of every process of a backend (setrlimit(2)); None is that of the bridge.

    `open_files`: descriptors (RLIMIT_NOFILE).  `file_size`: bytes of a file that it writes
    (RLIMIT_FSIZE).  `cpu_seconds`: seconds of processor time (RLIMIT_CPU).  `core`: bytes of
    a core file (RLIMIT_CORE).  `address_space`: bytes of virtual memory (RLIMIT_AS).
    """

    open_files: int | None = None
    file_size: int | None = None
    cpu_seconds: int | None = None
    core: int | None = None
    address_space: int | None = None


#: The least value of each limit.
_LEAST = {
    "open_files": LEAST_OPEN_FILES,
    "file_size": 0,
    "cpu_seconds": 1,
    "core": 0,
    "address_space": 1 << 20,
}
_EXPECTED = f"an object with some of {', '.join(f'`{each}`' for each in _LEAST)}"


def read_limits(value: object) -> ResourceLimits:
    """Return the limits of a valid value."""
    if isinstance(value, ResourceLimits):
        return value
    return msgspec.convert(value, ResourceLimits)


def _wrong_limits(name: str, value: Any) -> Iterator[SettingError]:
    if not isinstance(value, Mapping):
        yield SettingError(name, _EXPECTED, kind_of(value))
        return
    for key, limit in value.items():
        least = _LEAST.get(key) if isinstance(key, str) else None
        if least is None:
            yield SettingError(name, _EXPECTED, Described(f"the key {key!r}"))
        elif limit is not None and (type(limit) is not int or not least <= limit <= MAX_LIMIT):
            yield SettingError(f"{name}.{key}", f"an integer ≥ {least}", limit)


def _is_account(value: object) -> bool:
    if value is None or (type(value) is int and 0 <= value <= MAX_ID):
        return True
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


ACCOUNT = Check(
    "the name or the numeric id of a user or group",
    _is_account,
    form="account",
    metavar="NAME",
    schema={
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": MAX_ID},
            {"type": "string", "pattern": f"^{_NAME.pattern}$"},
        ]
    },
)
UMASK = Check(
    "an octal number in a string, such as `0077`",
    lambda v: v is None or (isinstance(v, str) and _UMASK.fullmatch(v) is not None),
    metavar="OCTAL",
    schema={"type": "string", "pattern": f"^{_UMASK.pattern}$"},
)
NICE = Check(
    "an integer from -20 to 19",
    lambda v: type(v) is int and -20 <= v <= 19,
    form="integer",
    metavar="N",
    schema={"type": "integer", "minimum": -20, "maximum": 19},
)
LIMITS = Check(
    _EXPECTED,
    lambda v: isinstance(v, ResourceLimits) or next(_wrong_limits("", v), None) is None,
    complain=_wrong_limits,
    form="json",
    metavar="JSON",
    schema={
        "type": "object",
        "properties": {
            key: {"type": ["integer", "null"], "minimum": least, "maximum": MAX_LIMIT}
            for key, least in _LEAST.items()
        },
        "additionalProperties": False,
    },
)
