"""
What a line of a legacy backend amounts to for the one client that it works for.

Knows no message; those are made and read in `upward`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from mcpbridge.errors import Refused
from mcpbridge.mcp.subscriptions import Change


@dataclass(slots=True)
class ServerOutput:
    """
    What a line of the backend amounts to.

    `notes`: notifications for the running request's client, in order.
    `final`: the answer for that client, with its own id.  `asked`: the
    backend has asked something; it is in `questions`.  `changed`: for those
    who listen.  `to_backend`: what the bridge answers the backend itself.
    `refused`: the answer for the client, who lacks a capability.  `tools`: a
    result that `list_tools` has asked for; an empty object where it failed.
    """

    notes: list[bytes] = field(default_factory=list)
    final: bytes | None = None
    asked: bool = False
    changed: list[Change] = field(default_factory=list)
    to_backend: list[bytes] = field(default_factory=list)
    refused: Refused | None = None
    tools: msgspec.Raw | None = None
