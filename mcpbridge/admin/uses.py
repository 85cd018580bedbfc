"""
What a process of a server is used for, and in which state it is, in one word each.

Knows sessions and workers; must not know who asks.
"""

from __future__ import annotations

from collections.abc import Collection

from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.server import Server
from mcpbridge.stateless.concurrent_worker import ConcurrentWorker
from mcpbridge.stateless.exclusive_worker import ExclusiveWorker


def spares_of(server: Server) -> set[BackendSession]:
    """Return the processes that a server keeps ready."""
    return {session for pool in server.pools for session in pool.spares}


def use_of(server: Server, session: BackendSession, spares: Collection[BackendSession]) -> str:
    """Return what a process is used for; `spares` are those that its server keeps ready."""
    if not session.receiving or session.leaving:
        return "ending"
    if session.ident in server.sessions or session.ident in server.streamable:
        return "session"
    if isinstance(session.sink, ExclusiveWorker):
        return "exclusive"
    if isinstance(session.sink, ConcurrentWorker):
        return "concurrent"
    return "warm" if session in spares else "starting"


def state_of(session: BackendSession, use: str) -> str:
    """Return the state of a process with this use: as an operator sees it."""
    if not session.receiving:
        return "closing"
    if session.leaving:
        return "ending"
    if use == "warm":
        return "warm"
    return "open" if session.has_output else "starting"
