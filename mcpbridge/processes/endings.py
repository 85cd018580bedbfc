"""
Why sessions end, in kinds that can be counted.

A reason is a text for people; its class is its kind.  Knows kinds; must not know sessions.
"""

from __future__ import annotations

from typing import ClassVar


class Reason(str):
    """Why a session ends, for the log; `kind` is for those who count."""

    __slots__ = ()
    kind: ClassVar[str] = "other"


class ClientLeft(Reason):
    """Its client has ended it, or is gone."""

    __slots__ = ()
    kind = "client_left"


class ClientStalled(Reason):
    """Its client did not read what was sent to it."""

    __slots__ = ()
    kind = "client_stalled"


class Idle(Reason):
    """Its client was not active for long."""

    __slots__ = ()
    kind = "idle"


class GaveWay(Reason):
    """Another client needed its process."""

    __slots__ = ()
    kind = "gave_way"


class BackendEnded(Reason):
    """Its backend has ended, or cannot be used any more."""

    __slots__ = ()
    kind = "backend_ended"


class NotAdmitted(Reason):
    """Its client has no access any more."""

    __slots__ = ()
    kind = "not_admitted"


class Removed(Reason):
    """Its server is not in the settings any more, or has other settings."""

    __slots__ = ()
    kind = "removed"


class Stopped(Reason):
    """The bridge stops."""

    __slots__ = ()
    kind = "shutdown"


class EndedByOperator(Reason):
    """An operator has ended it."""

    __slots__ = ()
    kind = "operator"


#: All kinds, for documents and tests.
KINDS = (
    *(Reason.kind, ClientLeft.kind, ClientStalled.kind, Idle.kind, GaveWay.kind),
    *(BackendEnded.kind, NotAdmitted.kind, Removed.kind, Stopped.kind, EndedByOperator.kind),
)


def kind_of(reason: str) -> str:
    """Return the kind of a reason; `other` for a plain text."""
    return reason.kind if isinstance(reason, Reason) else Reason.kind
