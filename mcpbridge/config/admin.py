"""
The settings of `admin_tokens`: who may see and control the bridge at its admin listener.

They are objects within an object, whose shape msgspec checks; no error shows a value.
Knows neither the reactor nor files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from mcpbridge.config.auth import Sha256, TokenName
from mcpbridge.config.shapes import shape_errors
from mcpbridge.errors import Described, SettingError

#: What a token is good for: to see the status and metrics, or also to end sessions and to
#: reload the settings.
VIEW, CONTROL = "view", "control"


class AdminToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token for the admin listener: `sha256` of it, or a `file` that has it."""

    sha256: Sha256 | None = None
    file: (
        Annotated[
            str, Meta(min_length=1, max_length=2048, description="a string of 1 to 2048 characters")
        ]
        | None
    ) = None
    role: Annotated[str, Meta(pattern=r"^(view|control)\Z", description="`view` or `control`")] = (
        VIEW
    )


def read_admin_tokens(value: object, name: str = "admin_tokens") -> dict[str, AdminToken]:
    """
    Return the tokens of an object, by name.  Raises `SettingError`, which has all errors and
    shows no value.
    """
    kind = Mapping[TokenName, AdminToken]
    SettingError.raise_all(shape_errors(kind, value, name))
    tokens: dict[str, AdminToken] = dict(msgspec.convert(value, kind))
    SettingError.raise_all(
        SettingError(
            f"{name}.{key}",
            "either `sha256`, as `mcpbridge token` prints it, or `file`, which has the token",
            Described("both" if each.sha256 else "neither"),
        )
        for key, each in tokens.items()
        if (each.sha256 is None) == (each.file is None)
    )
    return tokens
