"""From a description to an endpoint: what is added to it, and what is said of a wrong one."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor

from mcpbridge.config import BACKLOG
from mcpbridge.listeners import make_endpoint


@pytest.mark.parametrize(
    ("description", "backlog"),
    [
        ("tcp:1", BACKLOG),
        ("tcp:port=1:interface=127.0.0.1", BACKLOG),
        ("tcp6:1:interface=\\:\\:1", BACKLOG),
        ("unix:/nowhere/mcp.sock", BACKLOG),
        ("tcp:1:backlog=7", 7),
        ("tcp:1:127.0.0.1:7", 7),
        ("tcp6:1:7", 7),
    ],
)
def test_a_burst_of_clients_may_wait(description: str, backlog: int) -> None:
    """Unless the description says how many."""
    reactor: Any = MemoryReactor()
    make_endpoint(reactor, description).listen(Factory())
    [listener] = reactor.tcpServers or reactor.unixServers
    assert listener[2] == backlog


@pytest.mark.parametrize(
    ("description", "error", "says"),
    [
        ("8808", ValueError, "a port alone; for this machine: `tcp:8808:interface=127.0.0.1`"),
        ("tcp", TypeError, "port"),
        ("tcp:x", ValueError, "invalid literal"),
        ("tcp:1:bogus=2", TypeError, "bogus"),
        ("carrier:1", ValueError, "Unknown endpoint type"),
    ],
)
def test_what_is_wrong_is_said(description: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make_endpoint(MemoryReactor(), description)


def test_tls_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be installed is named."""
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    monkeypatch.delitem(sys.modules, "twisted.internet.ssl", raising=False)
    monkeypatch.delattr("twisted.internet.ssl", raising=False)
    with pytest.raises(ValueError, match=r"OpenSSL.*; TLS needs `pip install 'mcpbridge\[tls\]'`"):
        make_endpoint(MemoryReactor(), "ssl:8443")
