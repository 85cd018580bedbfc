"""
From a listener's description to an endpoint.

Knows Twisted's descriptions and what they lack; must not know what is served.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint

from mcpbridge.config import BACKLOG

#: The kinds whose descriptions may hold `backlog`.
_WITH_BACKLOG = ("tcp", "tcp6", "ssl", "tls", "unix")


def make_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    The endpoint of a description; its backlog is `BACKLOG` where none is named.

    Raises whatever Twisted raises, and `ValueError` where that says too little.
    """
    if description.isdecimal():
        raise ValueError(f"a port alone; for this machine: `tcp:{description}:interface=127.0.0.1`")
    try:
        return _with_backlog(reactor, description)
    except (ImportError, NameError) as error:
        # Twisted leaves names undefined where it cannot import OpenSSL.
        raise ValueError(f"{error}; TLS needs `pip install 'mcpbridge[tls]'`") from error


def _with_backlog(reactor: Any, description: str) -> IStreamServerEndpoint:
    endpoint: IStreamServerEndpoint
    kind, colon, rest = description.partition(":")
    if colon and kind in _WITH_BACKLOG:
        try:
            # Of two that are named alike the last one counts: the user's own.
            endpoint = serverFromString(reactor, f"{kind}:backlog={BACKLOG}:{rest}")
            return endpoint
        except TypeError:
            # It has one by its place, or something is wrong with it.
            pass
    endpoint = serverFromString(reactor, description)
    return endpoint
