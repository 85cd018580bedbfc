"""
What an operator wants to know of the sessions that there are now.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.server import Server


def session_lines(server: Server, now: float) -> Iterator[str]:
    """
    A line for each process of a server that is not gone; `now` is the clock's.

    No line holds more of a session's id than the log shows anyway.
    """
    for session in sorted(server.unclosed, key=lambda each: each.opened_at):
        pid = getattr(session.backend, "pid", None)
        yield (
            f"session {session.label} of {session.server!r}: {_use(server, session)},"
            f" {_state(session)}, {now - session.opened_at:.1f} s old,"
            f" pid {pid if pid is not None else 'unknown'},"
            f" in {session.messages_in} messages ({session.bytes_in} B),"
            f" out {session.messages_out} ({session.bytes_out} B), refused {session.refused}"
        )


def _use(server: Server, session: BackendSession) -> str:
    """What it is for."""
    if server.sessions.get(session.ident) is session:
        return "/sse"
    if server.streamable.get(session.ident) is session:
        return "/mcp"
    return "requests of 2026-07-28, or none any more" if session.announced else "warm"


def _state(session: BackendSession) -> str:
    """How far its life has got."""
    if not session.receiving:
        return "closing"
    return "ending" if session.leaving else "open"
