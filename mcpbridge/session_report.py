"""
Describe the running sessions for an operator: one line of text for each process.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.server import Server


def session_lines(server: Server, now: float) -> Iterator[str]:
    """
    Return an iterator of a line for each process of a server, the oldest first;
    `now` is the clock's time in seconds.  Lines are made one by one: there may be
    thousands.

    A session is named by its label, the part of its id that is in the log
    anyway, since the whole id is a secret.
    """
    sessions = sorted(server.unclosed, key=lambda each: each.opened_at)
    return (_line(server, session, now) for session in sessions)


def _line(server: Server, session: BackendSession, now: float) -> str:
    pid = getattr(session.backend, "pid", None)
    whom = f" for {session.caller_name}" if session.caller_name else ""
    return (
        f"session {session.label} of {session.server!r}{whom}: {_use(server, session)},"
        f" {_state(session)}, {now - session.opened_at:.1f} s old,"
        f" pid {pid if pid is not None else 'unknown'},"
        f" in {session.messages_in} messages ({session.bytes_in} B),"
        f" out {session.messages_out} ({session.bytes_out} B), refused {session.refused}"
    )


def _use(server: Server, session: BackendSession) -> str:
    """Name what the process is used for: an endpoint, stateless requests, nothing yet."""
    if server.sessions.get(session.ident) is session:
        return "/sse"
    if server.streamable.get(session.ident) is session:
        return "/mcp"
    return "requests of 2026-07-28, or idle" if session.announced else "warm"


def _state(session: BackendSession) -> str:
    """Name the state of the session: `open`, `ending` or `closing`."""
    if not session.receiving:
        return "closing"
    return "ending" if session.leaving else "open"
